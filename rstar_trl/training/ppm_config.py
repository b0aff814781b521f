"""Options of `PPMTrainer`: TRL's `RewardConfig` and what step preferences add to it."""

from __future__ import annotations

from dataclasses import dataclass, field

from trl import RewardConfig


@dataclass
class PPMConfig(RewardConfig):
    """`RewardConfig`, with the fields below; `max_length` drops a pair when either side is longer."""

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
