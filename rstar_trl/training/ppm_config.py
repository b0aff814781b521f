"""Options of `PPMTrainer`: TRL's `RewardConfig` and what step preferences add to it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from trl import RewardConfig


@dataclass
class PPMConfig(RewardConfig):
    """`RewardConfig`, with the fields below; `max_length` drops a pair when either side is longer."""

    mode: Literal["pairs", "tree"] = field(
        default="pairs",
        metadata={"help": "Compute pairs one by one as RewardTrainer does, or all pairs of a question at once."},
    )
    """`pairs`: two sequences a pair, as `RewardTrainer`; batch sizes count pairs. `tree`: all pairs of a question in
    one pass in which shared tokens stand once; batch sizes count questions. The loss is the same."""

    row_tokens: int = field(
        default=4096,
        metadata={"help": "Tree mode: tokens a row may have; a larger tree is split, its prefix repeated."},
    )
    """Tree mode: tokens a row may have. A tree with more is split along its branches, its prefix repeated."""

    consistency_coefficient: float | None = field(
        default=None,
        metadata={"help": "Tree mode: weight of a step score's squared distance from its continuations' mean score."},
    )
    """Tree mode: weight of the squared distance of a step's score from the mean score of its continuations."""

    weighted: bool = field(
        default=True,
        metadata={"help": "Weigh each pair by its `weight` column, normalised to mean 1 over the data set."},
    )
    """Weigh each pair by its `weight` column, normalised to mean 1 over the data set; all alike when false."""

    use_margin: bool = field(
        default=False,
        metadata={"help": "Ask the chosen step to score higher by the pair's `margin`, its Q difference."},
    )
    """Ask the chosen step to score higher by at least the pair's `margin`, its Q difference, as Llama 2 did."""

    eval_fraction: float = field(
        default=0.05, metadata={"help": "Fraction of the questions whose pairs are held out to measure accuracy."}
    )
    """Fraction of the questions whose pairs are held out to measure accuracy; unused with an evaluation file."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.eval_fraction < 1:
            raise ValueError(f"`eval_fraction` must be at least 0 and below 1, not {self.eval_fraction}.")
        if self.mode not in ("pairs", "tree"):
            raise ValueError(f"`mode` must be `pairs` or `tree`, not `{self.mode}`.")
        if self.mode == "pairs":
            if self.consistency_coefficient is not None:
                raise ValueError("`consistency_coefficient` needs `mode: tree`: a pair has no continuations.")
        elif self.max_length is None:
            self.max_length = self.row_tokens
        elif self.max_length > self.row_tokens:
            raise ValueError(
                f"`row_tokens` {self.row_tokens} must hold the longest sequence, `max_length` {self.max_length}."
            )
