"""Sums of what a PPM's batches show, over all processes, so that what is logged is exact for unequal batches.

`RewardTrainer` averages its metrics over batches; a batch of trees has as many pairs as its questions gave, so the
mean of its accuracies is not the accuracy.
"""

from __future__ import annotations

from typing import Any

import torch

from rstar_trl.training.ppm_trees import FINAL, UNKNOWN

MAX_DEPTH = 16
"""Pairs that judge a later step are counted with those of this one."""

SUMS = ("right", "margin", "pairs", "reward", "steps", "questions", "tokens", "consistency")


class Tally:
    """Accumulates until it is read."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self.sums = torch.zeros(len(SUMS) + 2 * (MAX_DEPTH + 2), dtype=torch.float64)
        self.extremes: tuple[float, float] | None = None

    def add(self, scores: torch.Tensor, batch: dict[str, torch.Tensor], consistency: Any, accelerator: Any) -> int:
        """Adds one batch of every process (a collective call); returns the tokens all of them computed."""
        difference = (scores[batch["chosen"]] - scores[batch["rejected"]]).double()
        right = (difference > 0).double()
        steps = torch.full_like(difference[:1], len(scores)).squeeze(0)
        pairs = torch.full_like(steps, len(difference))
        plain = [right.sum(), difference.sum(), pairs, scores.double().sum(), steps]
        plain += [batch["questions"], batch["num_tokens"], consistency * batch["questions"]]
        depth = batch["depth"].clamp(max=MAX_DEPTH)
        bins = torch.where(depth == FINAL, MAX_DEPTH + 1, depth)
        counts = [
            torch.bincount(bins, weights, minlength=MAX_DEPTH + 2) for weights in (right, torch.ones_like(right))
        ]
        ends = torch.stack([scores.min(), scores.max()]).double()
        row = torch.cat([torch.stack([torch.as_tensor(each).to(ends) for each in plain]), *counts, ends])
        rows = accelerator.gather(row[None]).cpu()
        self.sums += rows[:, :-2].sum(0)
        low, high = rows[:, -2].min().item(), rows[:, -1].max().item()
        before = self.extremes or (low, high)
        self.extremes = min(before[0], low), max(before[1], high)
        return int(rows[:, SUMS.index("tokens")].sum())

    def read(self) -> dict[str, float]:
        """The metrics of everything added since the last reading; nothing when nothing was."""
        if self.extremes is None:
            return {}
        total = dict(zip(SUMS, self.sums.tolist(), strict=False))
        right, count = self.sums[len(SUMS) :].reshape(2, MAX_DEPTH + 2).tolist()
        metrics = {
            "accuracy": total["right"] / total["pairs"],
            "margin": total["margin"] / total["pairs"],
            "mean_reward": total["reward"] / total["steps"],
            "min_reward": self.extremes[0],
            "max_reward": self.extremes[1],
            "pairs": total["pairs"],
            "pairs_per_question": total["pairs"] / total["questions"],
            "steps_scored": total["steps"],
            "consistency": total["consistency"] / total["questions"],
        }
        judged = sum(count[1 : MAX_DEPTH + 1])
        if judged:
            metrics["accuracy_step"] = sum(right[1 : MAX_DEPTH + 1]) / judged
        if count[FINAL]:
            metrics["accuracy_final"] = right[FINAL] / count[FINAL]
        depths = [depth for depth in range(UNKNOWN + 1, MAX_DEPTH + 1) if count[depth]]
        metrics |= {f"accuracy_depth_{depth}": right[depth] / count[depth] for depth in depths}
        self._start()
        return metrics
