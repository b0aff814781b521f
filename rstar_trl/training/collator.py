"""`MCTSDataCollator`: the trajectories of a question as one packed trie, for TRL's stock `SFTTrainer`.

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
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from datasets import Dataset
from trl import SFTTrainer

from rstar_trl.errors import ConfigError, DataError
from rstar_trl.policy.tokens import DELIMITER, encode_prompt, encode_step
from rstar_trl.training.packing import attention_mask, check_attention, fill_rows, lay_out
from rstar_trl.training.step_scores import ROW_TOKENS

logger = logging.getLogger(__name__)

IGNORED = -100

Row = dict[str, Any]


@dataclass
class MCTSDataCollator:
    """Packs questions whose trajectories share prefixes.

    `attention`: the model's implementation (see `for_trainer`). `row_tokens`: tokens a row may have; a larger trie is
    split along its branches, its prefix repeated. `shared_steps`: what a step that n trajectories share counts for.
    `each`: n times, as in the separate sequences; the prompt is then computed once, the steps once per trajectory.
    `once`: a single time, so that the loss weighs the places where trajectories differ more, and nothing is computed
    twice. `weighted`: also emit `loss_weights` from the rows' `weight`, for `TreeSFTTrainer`; a step shared `once` has
    the mean weight of its trajectories.
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
        if not (args.dataset_kwargs or {}).get("skip_prepare_dataset"):
            problems.append("set `dataset_kwargs={'skip_prepare_dataset': True}`: the rows are tokenised already.")
        if options.get("weighted") and args.remove_unused_columns:
            problems.append(
                "set `remove_unused_columns=False`, or the `weight` column is dropped before the collator."
            )
        if options.get("weighted") and args.loss_type != "nll":
            problems.append(f"weights need `loss_type='nll'`, not '{args.loss_type}'.")
        if problems:
            raise ConfigError([f"MCTSDataCollator: {problem}" for problem in problems])
        return cls(attention=check_attention(model.config), **options)

    def __call__(self, examples: Sequence[Row]) -> dict[str, Any]:
        """`input_ids, position_ids, labels, shift_labels` [rows, width], `attention_mask`, perhaps `loss_weights`.

        With flex attention `last` [rows, width] stands for the mask, which is made where the model is.
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
        limits = [_first_trained(each) for each in labels] if self.shared_steps == "each" else None
        layout = lay_out(sequences, self.row_tokens, overlap=1, limits=limits)
        rows = fill_rows(layout.pieces, self.row_tokens if self.attention == "flex_attention" else None)
        targets = np.full(rows.tokens.size, IGNORED, dtype=np.int64)
        sums, counts = (np.zeros(rows.tokens.size, dtype=np.float32) for _ in range(2))
        for label, weight, piece, path in zip(labels, weights, layout.piece, layout.paths, strict=True):
            following = np.asarray(label[1:])
            slots = rows.offsets[piece] + path[:-1]
            trained = following != IGNORED
            targets[slots[trained]] = following[trained]
            sums[slots[trained]] += weight
            counts[slots[trained]] += 1
        shape = rows.tokens.shape
        shift_labels = torch.as_tensor(targets.reshape(shape))
        last = torch.as_tensor(rows.last)
        flexible = self.attention == "flex_attention"
        batch = {
            "input_ids": torch.as_tensor(rows.tokens),
            "position_ids": torch.as_tensor(rows.positions),
            **({"last": last} if flexible else {"attention_mask": attention_mask(last, self.attention)}),
            # The trainer counts tokens by the one and computes the loss from the other.
            "labels": shift_labels,
            "shift_labels": shift_labels,
        }
        if self.weighted:
            batch["loss_weights"] = torch.as_tensor((sums / counts.clip(min=1)).reshape(shape))
        return batch

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


class TreeSFTTrainer(SFTTrainer):
    """TRL's `SFTTrainer` for what else `MCTSDataCollator` can emit: `loss_weights`, and `last` for flex attention.

    Each token's loss is multiplied by its weight; the sum is divided by the number of trained tokens, as without
    weights, so weights of mean 1 keep the scale. Scaling and metrics are TRL's own.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if isinstance(self.data_collator, MCTSDataCollator):
            self.data_collator.tree_trainer = True

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The stock loss of a model that is given its mask, and whose log-probabilities are weighed."""
        weights, last = inputs.pop("loss_weights", None), inputs.pop("last", None)

        def forward(**arguments: Any) -> Any:
            if last is not None:
                arguments["attention_mask"] = attention_mask(last, "flex_attention")
            outputs = model(**arguments)
            if weights is not None and outputs.get("log_probs") is not None:
                outputs.log_probs = outputs.log_probs * weights
            return outputs

        return super().compute_loss(forward, inputs, return_outputs, num_items_in_batch)


def trajectory_dataset(rows: Iterable[Row], tokenizer: Any) -> Dataset:
    """Prompt-completion rows as one row per question: lists of `input_ids` and `labels`, and `weight` where given.

    Rows are grouped by `question_id`, else by `prompt`; a completion is steps separated by a blank line, encoded as
    the search encodes them. `observations`, one text per step (perhaps empty), are shown after their step and never
    trained on. Weights are divided by their mean; they must not be negative.
    """
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(str(row.get("question_id", row["prompt"])), []).append(row)
    if not groups:
        raise DataError("there are no rows to train on; give prompt-completion rows.")
    columns: dict[str, list[Any]] = {"input_ids": [], "labels": []}
    for group in groups.values():
        encoded = [encode_trajectory(tokenizer, row) for row in group]
        columns["input_ids"].append([each["input_ids"] for each in encoded])
        columns["labels"].append([each["labels"] for each in encoded])
    if all("weight" in row for group in groups.values() for row in group):
        weights = [[float(row["weight"]) for row in group] for group in groups.values()]
        flat = [weight for group in weights for weight in group]
        if min(flat) < 0 or max(flat) <= 0:
            raise DataError(f"the trajectories have weights from {min(flat)} to {max(flat)}; give positive ones.")
        mean = sum(flat) / len(flat)
        columns["weight"] = [[weight / mean for weight in group] for group in weights]
    return Dataset.from_dict(columns)


def encode_trajectory(tokenizer: Any, row: Row) -> dict[str, list[int]]:
    """`input_ids` and `labels` of a prompt-completion row; -100 on the prompt and on what the environment answered."""
    ids = encode_prompt(tokenizer, row["prompt"])
    labels = [IGNORED] * len(ids)
    steps = row["completion"].split(DELIMITER)
    observations = row.get("observations") or [""] * len(steps)
    if len(observations) != len(steps):
        raise DataError(f"a trajectory has {len(steps)} steps and {len(observations)} observations; give one a step.")
    for number, (step, observation) in enumerate(zip(steps, observations, strict=True), 1):
        tokens = encode_step(tokenizer, step, final=number == len(steps))
        ids, labels = ids + tokens, labels + tokens
        if observation and number < len(steps):
            shown = encode_step(tokenizer, observation, final=False)
            ids, labels = ids + shown, labels + [IGNORED] * len(shown)
    return {"input_ids": ids, "labels": labels}


def _trajectories(example: Row) -> list[tuple[list[int], list[int], float]]:
    if example["input_ids"] and isinstance(example["input_ids"][0], list):
        weights = example.get("weight") or [1.0] * len(example["input_ids"])
        return list(zip(example["input_ids"], example["labels"], weights, strict=True))
    return [(example["input_ids"], example["labels"], example.get("weight", 1.0))]


def _first_trained(labels: Sequence[int]) -> int:
    """Index of the first token that is trained on, not counting the first, which nothing predicts."""
    return next((index for index, label in enumerate(labels) if index and label != IGNORED), len(labels))
