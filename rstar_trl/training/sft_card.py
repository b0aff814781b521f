"""The model card of a policy: how it was made, from what, and its loss where rows were held out (see `card`)."""

from __future__ import annotations

from typing import Any

import datasets

from rstar_trl.training.card import PAPER_LINK, base_of, data_set, results, schedule
from rstar_trl.training.collator import MCTSDataCollator

SHOWN = ("loss", "mean_token_accuracy", "entropy")


def sft_sections(trainer: Any, hub_name: str, dataset_name: str | None) -> dict[str, str]:
    """The card's text, by heading."""
    return {
        "": "A policy: it writes an answer step by step, so that a tree search can weigh each step. It started as "
        f"{base_of(trainer)}.",
        "Use": "Steps are separated by a blank line; the end-of-sequence token ends the answer. The prompt must be "
        "rendered as in training: by the chat template where the tokenizer has one.\n\n"
        f'```python\nfrom transformers import pipeline\n\nwrite = pipeline("text-generation", model="{hub_name}")\n'
        'print(write("the question\\n", max_new_tokens=256, return_full_text=False))\n```',
        "Method": "Supervised fine-tuning on trajectories whose final answer was verified, as in the rounds of "
        f"{PAPER_LINK}, by TRL's `SFTTrainer`. {_packing(trainer.data_collator)} {schedule(trainer)}",
        "Data": _data(trainer, dataset_name),
        "Results": results(trainer, "On held-out rows", SHOWN),
    }


def _packing(collator: Any) -> str:
    if not isinstance(collator, MCTSDataCollator):
        return "Trajectories are trained on one by one."
    weights = "weighed by their mean Q" if collator.weighted else "all weighed alike"
    return (
        "The trajectories of a question are packed into one row by `MCTSDataCollator` of rstar-trl; a step they share "
        f"counts {'once for each' if collator.shared_steps == 'each' else 'once'}; they are {weights}."
    )


def _data(trainer: Any, dataset_name: str | None) -> str:
    data = trainer.train_dataset
    if not isinstance(data, datasets.Dataset):
        return f"A stream of trajectories{data_set(dataset_name)}."
    if not isinstance(trainer.data_collator, MCTSDataCollator):
        return f"{len(data)} trajectories{data_set(dataset_name)}."
    first = data[0]["input_ids"] if len(data) else []
    grouped = bool(first) and isinstance(first[0], list)
    count = sum(map(len, data["input_ids"])) if grouped else len(data)
    questions = f" of {len(data)} questions" if grouped else ""
    left_out = ", ".join(f"{number} ({reason})" for reason, number in trainer.data_collator.skipped.items())
    return f"{count} trajectories{questions}{data_set(dataset_name)}." + (
        f" Left out: {left_out}." if left_out else ""
    )
