"""The model card of a PPM: how it was made, from what, and how well it ranks what it has not seen (see `card`)."""

from __future__ import annotations

from typing import Any

import datasets

from rstar_trl.training.card import PAPER_LINK, base_of, data_set, results, schedule

SHOWN = ("accuracy", "accuracy_step", "accuracy_final", "margin", "mean_reward", "loss")


def ppm_sections(trainer: Any, hub_name: str, dataset_name: str | None) -> dict[str, str]:
    """The card's text, by heading."""
    args = trainer.args
    return {
        "": "A process preference model (PPM): it scores the steps of a trajectory, so that a search knows which of "
        f"two next steps is better. It started as {base_of(trainer)} with a new one-output head.",
        "Use": "The score of a step is the model's single output at the token that ends it. The text is the prompt, "
        "then the steps, separated and ended by a blank line; a finished trajectory ends with the end-of-sequence "
        "token. Only differences between scores of one prompt mean something.\n\n"
        f'```python\nfrom transformers import pipeline\n\nscore = pipeline("text-classification", model="{hub_name}", '
        'function_to_apply="none")\nprint(score("the question\\nfirst step\\n\\n"))\n```',
        "Method": f"Bradley-Terry on pairs of steps that a tree search ranked, as in {PAPER_LINK}, by `PPMTrainer` of "
        f"rstar-trl in mode `{args.mode}`"
        + (" (all pairs of a question in one packed pass)" if args.mode == "tree" else "")
        + f". Pairs are {'weighed by their column' if args.weighted else 'all weighed alike'}; the margin is "
        f"{'used' if args.use_margin else 'not used'}; center_rewards_coefficient {args.center_rewards_coefficient}; "
        f"consistency_coefficient {args.consistency_coefficient}. {schedule(trainer)}",
        "Data": _data(trainer, dataset_name),
        "Results": results(trainer, "On held-out pairs", SHOWN),
    }


def count_pairs(dataset: Any) -> int:
    """The pairs of a prepared data set, which tree mode has grouped by question."""
    return sum(map(len, dataset["weight"])) if "lengths" in dataset.column_names else len(dataset)


def _data(trainer: Any, dataset_name: str | None) -> str:
    data = trainer.train_dataset
    if not isinstance(data, datasets.Dataset):
        return f"A stream of preference pairs{data_set(dataset_name)}."
    questions = f" of {len(data)} questions" if trainer.args.mode == "tree" else ""
    left_out = ", ".join(f"{count} ({reason})" for reason, count in trainer.skipped.get("train", {}).items())
    pairs = f"{count_pairs(data)} preference pairs{questions}{data_set(dataset_name)}."
    return pairs + (f" Left out: {left_out}." if left_out else "")
