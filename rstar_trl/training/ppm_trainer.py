"""`PPMTrainer`: TRL's `RewardTrainer` for steps instead of whole answers.

Guarantees: rows written by `rstar_trl.trajectories` are encoded as search and `PPMScorer` encode them, so a step is
scored at the token that ends it (its delimiter, or end-of-sequence); rows without those columns, and already encoded
ones, are handled by `RewardTrainer` unchanged, with the same loss. Weights are normalised over the data set, not over
the batch, so the loss does not depend on how batches fall on processes. A pad token equal to the end-of-sequence token
is refused: the score would be read one token early. In tree mode (see `ppm_trees`) the same pairs give the same loss
from one forward pass per batch of questions; a model that cannot take the mask is refused before training.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.logging import get_logger
from datasets import Dataset
from torch.nn.functional import logsigmoid
from trl import RewardTrainer
from trl.trainer.reward_trainer import DataCollatorForPreference

from rstar_trl.errors import ConfigError, DataError, EngineError
from rstar_trl.policy.tokens import DELIMITER, encode_prompt, encode_step
from rstar_trl.training.block_attention import use_blocks
from rstar_trl.training.card import PAPER, write_card
from rstar_trl.training.packing import check_attention
from rstar_trl.training.ppm_card import ppm_sections
from rstar_trl.training.ppm_config import PPMConfig
from rstar_trl.training.ppm_trees import Settings, TreeCollator, consistency, pack_questions, tree_loss
from rstar_trl.training.sft_rows import normalised
from rstar_trl.training.step_scores import classifier, forward_scores
from rstar_trl.training.tally import Tally

logger = get_logger(__name__)

TREE_COLUMNS = ("tokens", "positions", "last", "lengths", "ends", "parents", "step_share", "chosen", "rejected")
"""What `TreeCollator` reads, beside `weight, centre, depth` and `margin`."""


def encode_side(tokenizer: Any, row: dict[str, Any], side: str) -> list[int]:
    """Token ids of a preference row's `side` ("chosen" or "rejected"): prompt, steps before, the step, and its end."""
    cut = row["prompt_chars"]
    ids = encode_prompt(tokenizer, row["prompt"][:cut])
    *before, last = (row["prompt"][cut:] + row[side]).split(DELIMITER)
    for step in before:
        ids += encode_step(tokenizer, step, final=False)
    return ids + encode_step(tokenizer, last, final=row[f"{side}_final"])


def bradley_terry(
    chosen: torch.Tensor,
    rejected: torch.Tensor,
    weight: torch.Tensor | None = None,
    margin: torch.Tensor | None = None,
) -> torch.Tensor:
    """The mean of `-w * log sigmoid(chosen - rejected - margin)` over pairs (all arguments [pairs])."""
    difference = chosen - rejected if margin is None else chosen - rejected - margin
    loss = -logsigmoid(difference)
    return loss.mean() if weight is None else (weight * loss).mean()


@dataclass
class PPMDataCollator(DataCollatorForPreference):
    """TRL's collator, keeping `weight` and, where it is known, whether both sides end their trajectory (`final`)."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super().torch_call(examples)
        if "weight" in examples[0]:
            batch["weight"] = torch.tensor([row["weight"] for row in examples], dtype=torch.float)
        if "chosen_final" in examples[0]:
            batch["final"] = torch.tensor([row["chosen_final"] and row["rejected_final"] for row in examples])
        return batch


class PPMTrainer(RewardTrainer):
    """Trains a process preference model: a one-label sequence classifier, by Bradley-Terry over weighted step pairs.

    Takes `RewardTrainer`'s arguments, with a `PPMConfig`. The columns beyond `prompt, chosen, rejected`: `weight`;
    `question_id`; `prompt_chars, chosen_final, rejected_final` (see `rstar_trl.trajectories.rows`); `margin`, which
    for such step rows counts only with `use_margin`. Logs `accuracy_step` and `accuracy_final` beside
    `RewardTrainer`'s metrics; tree mode also `accuracy_depth_<d>`, `pairs` and what `Tally` counts. `skipped` holds,
    per data set, how many pairs tree mode left out and why.
    """

    _name = "PPM"
    _tag_names = ["trl", "rstar-trl", "ppm"]
    _paper = PAPER
    args: PPMConfig
    _signature_columns: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.skipped: dict[str, dict[str, int]] = {}
        super().__init__(*args, **kwargs)
        if self.args.mode == "tree":
            if type(self.data_collator) is not DataCollatorForPreference:
                raise ConfigError("`mode: tree` packs questions by a collator of its own; give no `data_collator`.")
            config = classifier(self.model).config
            self._attention = check_attention(config)
            use_blocks(self.model, self.accelerator.device)
            self._tallies = {"train": Tally(), "eval": Tally()}
            budget = self.args.row_tokens if self._attention == "flex_attention" else None
            # A dense mask costs the square of a row, so rows are then only as long as the longest tree.
            self.data_collator = TreeCollator(config.get_text_config().pad_token_id, budget)
        elif type(self.data_collator) is DataCollatorForPreference:
            self.data_collator = PPMDataCollator(
                pad_token_id=self.data_collator.pad_token_id,
                pad_to_multiple_of=self.data_collator.pad_to_multiple_of,
            )

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        if processing_class.pad_token_id == processing_class.eos_token_id:
            raise EngineError(
                f"the tokenizer pads with its end-of-sequence token {processing_class.eos_token!r}, so the PPM would "
                "score a finished trajectory one token early; set a `pad_token` of its own."
            )
        if args.mode == "tree":
            if not isinstance(dataset, Dataset):
                raise DataError("`mode: tree` groups pairs by question, so it needs a whole `Dataset`, not a stream.")
            if "lengths" in dataset.column_names:
                return dataset
        if args.use_margin and "margin" not in dataset.column_names:
            raise DataError(f"`use_margin` is set and the {dataset_name} pairs have no `margin`; add it to every row.")
        if "prompt_chars" in dataset.column_names and "chosen_ids" not in dataset.column_names:
            dataset = self._encode(dataset, processing_class, args)
        dataset = super()._prepare_dataset(dataset, processing_class, args, dataset_name)
        if args.mode == "tree":
            return self._pack(dataset, args, dataset_name)
        return _normalise(dataset, args.weighted, dataset_name) if "weight" in dataset.column_names else dataset

    def _pack(self, dataset: Any, args: PPMConfig, name: str) -> Any:
        settings = Settings(args.row_tokens, args.weighted, "margin" in dataset.column_names)
        columns, skipped = pack_questions(dataset, settings, name)
        self.skipped[name] = dict(skipped)
        for reason, count in skipped.items():
            logger.warning(f"{count} {name} pairs are left out: {reason}")
        return Dataset.from_dict(columns)

    def _encode(self, dataset: Any, tokenizer: Any, args: Any) -> Any:
        def encode(row: dict[str, Any]) -> dict[str, list[int]]:
            return {f"{side}_ids": encode_side(tokenizer, row, side) for side in ("chosen", "rejected")}

        unused = [] if args.use_margin or "margin" not in dataset.column_names else ["margin"]
        return dataset.map(encode, remove_columns=unused, num_proc=args.dataset_num_proc, desc="Encoding pairs")

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        extra = ["weight", "chosen_final", "rejected_final"]
        if self.args.mode == "tree":
            extra += [*TREE_COLUMNS, "centre", "depth"]
        self._signature_columns = list(dict.fromkeys([*(self._signature_columns or []), *extra]))

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """`RewardTrainer`'s loss with each pair weighed; its logging is kept by calling it, or done for trees."""
        if self.args.mode == "tree":
            return self._compute_tree_loss(model, inputs, return_outputs)
        weight, final = inputs.pop("weight", None), inputs.pop("final", None)
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        chosen, rejected = torch.chunk(outputs.logits.squeeze(-1), chunks=2)
        if weight is not None:
            loss = bradley_terry(chosen, rejected, weight, inputs.get("margin"))
            if self.args.center_rewards_coefficient is not None:
                loss = loss + self.args.center_rewards_coefficient * ((chosen + rejected) ** 2).mean()
        if final is not None:
            self._log_accuracy(chosen > rejected, final, model.training)
        return (loss, outputs) if return_outputs else loss

    def _compute_tree_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
        where = (inputs[name] for name in ("input_ids", "position_ids", "last", "ends"))
        scores = forward_scores(model, self._attention, *where)
        loss = tree_loss(scores, inputs, self.args.center_rewards_coefficient, self.args.consistency_coefficient)
        mode = "train" if model.training else "eval"
        with torch.no_grad():
            tokens = self._tallies[mode].add(scores, inputs, consistency(scores, inputs), self.accelerator)
        if mode == "train":
            self._total_train_tokens += tokens
        return (loss, {"loss": loss, "scores": scores}) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the exact metrics of tree mode to what `RewardTrainer` logs."""
        if self.args.mode == "tree":
            assert self.model is not None
            mode = "train" if self.model.training else "eval"
            metrics = {"num_tokens": self._total_train_tokens, **self._tallies[mode].read()}
            prefix = "eval_" if mode == "eval" else ""
            logs.update({prefix + name: value for name, value in metrics.items()})
        super().log(logs, start_time)

    def create_model_card(  # type: ignore[override]
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        """Writes `README.md` to the output folder: TRL's metadata, with method, data and results of this training."""
        super().create_model_card(model_name, dataset_name, tags)
        if self.is_world_process_zero():
            name = model_name or Path(str(self.args.output_dir)).name
            write_card(self, name, ppm_sections(self, self.hub_model_id or name, dataset_name))

    def _log_accuracy(self, right: torch.Tensor, final: torch.Tensor, training: bool) -> None:
        counts = torch.stack([(right & ~final).sum(), (~final).sum(), (right & final).sum(), final.sum()])
        steps_right, steps, finals_right, finals = self.accelerator.gather(counts[None]).sum(0).tolist()
        metrics = self._metrics["train" if training else "eval"]
        if steps:
            metrics["accuracy_step"].append(steps_right / steps)
        if finals:
            metrics["accuracy_final"].append(finals_right / finals)


def _normalise(dataset: Any, weighted: bool, name: str) -> Any:
    """The data set with `weight` divided by its mean, or without the column when pairs are not to be weighed."""
    weights = list(dataset["weight"])
    dataset = dataset.remove_columns("weight")
    if not weighted or not weights:
        return dataset
    return dataset.add_column("weight", normalised(weights, f"{name} pairs"))
