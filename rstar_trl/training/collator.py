"""`MCTSDataCollator`: the trajectories of a question as one packed trie, for TRL's `SFTTrainer`.

A row of the data set is a question with its trajectories (`trajectory_dataset` makes such rows), or a single
trajectory; those of a batch that begin alike share what they have in common. Guarantees: with `shared_steps="each"`
loss and gradients are those of the separate sequences, up to rounding, in the trainer's own `compute_loss`; a token
whose label is -100 (prompt, observation) is never trained on; no sequence sees another. A trajectory that is longer
than a row, or has nothing to learn, is left out, counted in `skipped` and logged. Weights and flex attention need
`TreeSFTTrainer`, and are refused without it: the stock trainer ignores the one, and counts tokens by a mask's sum,
which a block mask has not. Does not guarantee equality under dropout.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch

from rstar_trl.errors import ConfigError
from rstar_trl.training.packing import Layout, Rows, attention_mask, check_attention, fill_rows, lay_out
from rstar_trl.training.sft_rows import IGNORED, Row
from rstar_trl.training.step_scores import ROW_TOKENS

logger = logging.getLogger(__name__)


@dataclass
class MCTSDataCollator:
    """Packs questions whose trajectories share prefixes.

    `attention`: the model's implementation (see `for_trainer`). `row_tokens`: tokens a row may have; a larger trie is
    split along its branches, its prefix repeated. `shared_steps`: what a step that n trajectories share counts for.
    `each`: n times, as in the separate sequences. `once`: a single time, so that the loss weighs the places where
    trajectories differ more. `weighted`: weigh each token's loss by its row's `weight`; a step shared `once` has the
    mean weight of its trajectories. `TreeSFTTrainer` computes every shared token once; the stock trainer knows no
    weights, so there `each` computes the prompt once and the steps once per trajectory.
    """

    attention: str = "sdpa"
    row_tokens: int = ROW_TOKENS
    shared_steps: Literal["each", "once"] = "each"
    weighted: bool = False
    skipped: Counter[str] = field(default_factory=Counter)
    tree_trainer: bool = field(default=False, init=False)
    """Set by `TreeSFTTrainer`, which reads what the stock trainer would pass on to a model that ignores it."""

    @classmethod
    def for_trainer(cls, model: Any, args: Any, **options: Any) -> MCTSDataCollator:
        """A collator that fits `model` and the `SFTConfig` `args`; what cannot work together is refused here."""
        problems = [
            f"`{name}` packs rows by itself and would undo the trees; set it to false."
            for name in ("packing", "padding_free", "eval_packing")
            if getattr(args, name)
        ]
        tree_mode = getattr(args, "mode", None) == "tree"  # of a `TreeSFTConfig`, whose trainer prepares rows itself
        if not tree_mode and not (args.dataset_kwargs or {}).get("skip_prepare_dataset"):
            problems.append("set `dataset_kwargs={'skip_prepare_dataset': True}`: the rows are tokenised already.")
        if args.label_smoothing_factor:
            problems.append("`label_smoothing_factor` shifts labels that are shifted already; set it to 0.")
        if options.get("weighted") and args.remove_unused_columns:
            problems.append(
                "set `remove_unused_columns=False`, or the `weight` column is dropped before the collator."
            )
        if problems:
            raise ConfigError([f"MCTSDataCollator: {problem}" for problem in problems])
        return cls(attention=check_attention(model.config), **options)

    def __call__(self, examples: Sequence[Row]) -> dict[str, Any]:
        """`input_ids, position_ids, attention_mask, labels, shift_labels`, as the stock trainer reads them.

        For `TreeSFTTrainer` see `_for_tree_trainer`. All but the mask are [rows, width].
        """
        if not self.tree_trainer and (self.weighted or self.attention == "flex_attention"):
            raise ConfigError(
                "MCTSDataCollator: weights and flex attention need TreeSFTTrainer in SFTTrainer's place."
            )
        found = [trajectory for example in examples for trajectory in _trajectories(example)]
        kept = [each for each in found if not self._skip(*each[:2])]
        # Every process must compute something, so a batch of which nothing is left is one token without a label.
        sequences, labels, weights = zip(*(kept or [([0], [IGNORED], 1.0)]), strict=True)
        # What may be shared without a trained token losing a copy: everything before the first of them.
        separate = self.shared_steps == "each" and not self.tree_trainer
        limits = [_first_trained(each) for each in labels] if separate else None
        layout = lay_out(sequences, self.row_tokens, overlap=1, limits=limits)
        rows = fill_rows(layout.pieces, self.row_tokens if self.attention == "flex_attention" else None)
        targets, sums, counts = self._trained(layout, rows, labels, weights)
        batch = {"input_ids": torch.as_tensor(rows.tokens), "position_ids": torch.as_tensor(rows.positions)}
        if self.tree_trainer:
            batch |= self._for_tree_trainer(rows.last, targets, sums, counts)
            return batch | {"num_tokens": torch.tensor(sum(map(len, layout.pieces)))}
        shift_labels = torch.as_tensor(targets)
        # The trainer counts tokens by the one and computes the loss from the other.
        batch |= {"labels": shift_labels, "shift_labels": shift_labels}
        return batch | {"attention_mask": attention_mask(torch.as_tensor(rows.last), self.attention)}

    def _trained(
        self, layout: Layout, rows: Rows, labels: Sequence[Sequence[int]], weights: Sequence[float]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """For each slot of the rows the next token it learns, its trajectories' weights summed, and their number."""
        targets = np.full(rows.tokens.shape, IGNORED, dtype=np.int64)
        sums, counts = np.zeros(targets.shape, dtype=np.float32), np.zeros(targets.shape, dtype=np.int64)
        for label, weight, piece, path in zip(labels, weights, layout.piece, layout.paths, strict=True):
            following = np.asarray(label[1:])
            trained = following != IGNORED
            slots = (rows.offsets[piece] + path[:-1])[trained]
            targets.flat[slots] = following[trained]
            sums.flat[slots] += weight if self.weighted else 1.0
            counts.flat[slots] += 1
        return targets, sums, counts

    def _for_tree_trainer(
        self, last: np.ndarray, targets: np.ndarray, sums: np.ndarray, counts: np.ndarray
    ) -> dict[str, Any]:
        """`last` (from which the mask is made where the model is), `targets`, `loss_weights`; `labels` only to count.

        The trainer divides the loss by the number of `shift_labels`, so these hold each label as often as it counts.
        """
        if self.shared_steps == "once":
            sums, counts = sums / counts.clip(min=1), counts.clip(max=1)
        counted = [np.repeat(row, count) for row, count in zip(targets, counts, strict=True)]
        labels = np.full((len(counted), max(1, *map(len, counted))), IGNORED, dtype=np.int64)
        for row, values in zip(labels, counted, strict=True):
            row[: len(values)] = values
        found = {"last": last, "targets": targets, "loss_weights": sums, "labels": labels, "shift_labels": labels}
        return {name: torch.as_tensor(values) for name, values in found.items()}

    def _skip(self, tokens: Sequence[int], labels: Sequence[int]) -> bool:
        if len(tokens) > self.row_tokens:
            reason = f"longer than {self.row_tokens} tokens"
        elif _first_trained(labels) == len(labels):
            reason = "nothing to learn"
        else:
            return False
        self.skipped[reason] += 1
        logger.warning("a trajectory is left out (%s); so far: %s", reason, dict(self.skipped))
        return True


def _trajectories(example: Row) -> list[tuple[list[int], list[int], float]]:
    if example["input_ids"] and isinstance(example["input_ids"][0], list):
        weights = example.get("weight") or [1.0] * len(example["input_ids"])
        return list(zip(example["input_ids"], example["labels"], weights, strict=True))
    return [(example["input_ids"], example["labels"], example.get("weight", 1.0))]


def _first_trained(labels: Sequence[int]) -> int:
    """Index of the first token that is trained on, not counting the first, which nothing predicts."""
    return next((index for index, label in enumerate(labels) if index and label != IGNORED), len(labels))
