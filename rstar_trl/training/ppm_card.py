"""The model card of a PPM: how it was made, from what, and how well it ranks what it has not seen.

Guarantees: numbers are those of this training (the last evaluation in the trainer's log); where nothing was evaluated
the card says so. Does not describe the data beyond its counts: only its owner can.
"""

from __future__ import annotations

from typing import Any

import datasets
import torch
import transformers
import trl

SHOWN = ("accuracy", "accuracy_step", "accuracy_final", "margin", "mean_reward", "loss")

PAPER = {
    "title": "rStar-Math: Small LLMs Can Master Math Reasoning with Self-Evolved Deep Thinking",
    "id": "2501.04519",
    "citation": """\
@article{guan2025rstarmath,
    title   = {{rStar-Math: Small LLMs Can Master Math Reasoning with Self-Evolved Deep Thinking}},
    author  = {Xinyu Guan and Li Lyna Zhang and Yifei Liu and Ning Shang and Youran Sun and Yi Zhu and Fan Yang and Mao Yang},
    year    = 2025,
    eprint  = {arXiv:2501.04519},
}""",  # noqa: E501
}


def card_text(trainer: Any, model_name: str, base_model: str | None, dataset_name: str | None) -> str:
    """The card's text below its metadata."""
    args = trainer.args
    source = f"[{base_model}](https://huggingface.co/{base_model})" if base_model else "a local model"
    hub = trainer.hub_model_id or model_name
    parts = [
        f"# {model_name}",
        f"A process preference model (PPM): it scores the steps of a trajectory, so that a search knows which of two "
        f"next steps is better. It started as {source} with a new one-output head.",
        "## Use",
        "The score of a step is the model's single output at the token that ends it. The text is the prompt, then "
        "the steps, separated and ended by a blank line; a finished trajectory ends with the end-of-sequence token. "
        "Only differences between scores of one prompt mean something.",
        f'```python\nfrom transformers import pipeline\n\nscore = pipeline("text-classification", model="{hub}", '
        'function_to_apply="none")\nprint(score("the question\\nfirst step\\n\\n"))\n```',
        "## Method",
        f"Bradley-Terry on pairs of steps that a tree search ranked, as in [{PAPER['title']}]"
        f"(https://huggingface.co/papers/{PAPER['id']}), by `PPMTrainer` of rstar-trl in mode `{args.mode}`"
        + (" (all pairs of a question in one packed pass)" if args.mode == "tree" else "")
        + f". Pairs are {'weighed by their column' if args.weighted else 'all weighed alike'}; the margin is "
        f"{'used' if args.use_margin else 'not used'}; center_rewards_coefficient {args.center_rewards_coefficient}; "
        f"consistency_coefficient {args.consistency_coefficient}. {trainer.state.global_step} steps, learning rate "
        f"{args.learning_rate}, batch size {args.train_batch_size} x {args.gradient_accumulation_steps} x "
        f"{args.world_size}, seed {args.seed}.",
        "## Data",
        _data(trainer, dataset_name),
        "## Results",
        _results(trainer),
        "## Versions",
        f"TRL {trl.__version__}, Transformers {transformers.__version__}, PyTorch {torch.__version__}, "
        f"Datasets {datasets.__version__}.",
        f"## Citation\n\n```bibtex\n{PAPER['citation']}\n```",
    ]
    return "\n" + "\n\n".join(parts) + "\n"


def count_pairs(dataset: Any) -> int:
    """The pairs of a prepared data set, which tree mode has grouped by question."""
    return sum(map(len, dataset["weight"])) if "lengths" in dataset.column_names else len(dataset)


def _data(trainer: Any, dataset_name: str | None) -> str:
    where = f" from [{dataset_name}](https://huggingface.co/datasets/{dataset_name})" if dataset_name else ""
    data = trainer.train_dataset
    if not isinstance(data, datasets.Dataset):
        return f"A stream of preference pairs{where}."
    questions = f" of {len(data)} questions" if trainer.args.mode == "tree" else ""
    left_out = ", ".join(f"{count} ({reason})" for reason, count in trainer.skipped.get("train", {}).items())
    return f"{count_pairs(data)} preference pairs{questions}{where}." + (f" Left out: {left_out}." if left_out else "")


def _results(trainer: Any) -> str:
    """The last evaluation as a table."""
    found = next((entry for entry in reversed(trainer.state.log_history) if "eval_loss" in entry), None)
    if found is None:
        return "Nothing was held out to evaluate on."
    depths = sorted((n for n in found if n.startswith("eval_accuracy_depth_")), key=lambda n: int(n.split("_")[-1]))
    names = [f"eval_{name}" for name in SHOWN if f"eval_{name}" in found]
    lines = [f"| {name.removeprefix('eval_')} | {float(found[name]):.4f} |" for name in [*names, *depths]]
    return "\n".join(["On held-out pairs:", "", "| metric | value |", "|---|---|", *lines])
