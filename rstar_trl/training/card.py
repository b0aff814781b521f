"""What the model cards of policy and PPM share: where the text goes, how the training ran, what was measured.

Guarantees: numbers are those of this training (the last evaluation in the trainer's log); where nothing was evaluated
the card says so. A card does not describe the data beyond its counts: only its owner can.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
import trl
from huggingface_hub import ModelCard

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
PAPER_LINK = f"[{PAPER['title']}](https://huggingface.co/papers/{PAPER['id']})"


def write_card(trainer: Any, name: str, sections: dict[str, str]) -> None:
    """Gives the card that TRL wrote to the trainer's folder another text; its metadata stay.

    `sections`: heading to text; what stands under the empty heading comes first.
    """
    path = Path(str(trainer.args.output_dir)) / "README.md"
    card = ModelCard.load(path)
    versions = (
        f"TRL {trl.__version__}, Transformers {transformers.__version__}, PyTorch {torch.__version__}, "
        f"Datasets {datasets.__version__}."
    )
    sections = {**sections, "Versions": versions, "Citation": f"```bibtex\n{PAPER['citation']}\n```"}
    parts = [f"## {heading}\n\n{text}" if heading else text for heading, text in sections.items()]
    card.text = "\n" + "\n\n".join([f"# {name}", *parts]) + "\n"
    card.save(path)


def base_of(trainer: Any) -> str:
    """The model a training started from, as a link where it has a place on the Hub."""
    card = ModelCard.load(Path(str(trainer.args.output_dir)) / "README.md")
    base = getattr(card.data, "base_model", None)
    return f"[{base}](https://huggingface.co/{base})" if base else "a local model"


def schedule(trainer: Any) -> str:
    """Steps, learning rate, batch and seed in one sentence."""
    args = trainer.args
    return (
        f"{trainer.state.global_step} steps, learning rate {args.learning_rate}, batch size {args.train_batch_size} x "
        f"{args.gradient_accumulation_steps} x {args.world_size}, seed {args.seed}."
    )


def data_set(name: str | None) -> str:
    """` from` a data set on the Hub, or nothing."""
    return f" from [{name}](https://huggingface.co/datasets/{name})" if name else ""


def results(trainer: Any, title: str, names: tuple[str, ...]) -> str:
    """The last evaluation's `names`, and accuracies by depth where there are any, as a table."""
    found = next((entry for entry in reversed(trainer.state.log_history) if "eval_loss" in entry), None)
    if found is None:
        return "Nothing was held out to evaluate on."
    depths = sorted((n for n in found if n.startswith("eval_accuracy_depth_")), key=lambda n: int(n.split("_")[-1]))
    shown = [*(f"eval_{name}" for name in names if f"eval_{name}" in found), *depths]
    lines = [f"| {name.removeprefix('eval_')} | {float(found[name]):.4f} |" for name in shown]
    return "\n".join([f"{title}:", "", "| metric | value |", "|---|---|", *lines])
