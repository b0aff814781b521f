"""`TreeSFTTrainer`: TRL's `SFTTrainer` for what else `MCTSDataCollator` can pack, and `TreeSFTConfig`, its options.

Guarantees: the loss is TRL's own sum over trained tokens, each weighed, divided by their number over all accumulation
steps and processes; a token that n trajectories share is computed once and counts n times (`shared_steps="each"`), so
loss and gradients are those of the separate sequences. Weights of mean 1 keep the scale. Metrics are TRL's own, over
distinct tokens. Without the collator it is `SFTTrainer`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from rstar_trl.errors import ConfigError, DataError
from rstar_trl.training.block_attention import use_blocks
from rstar_trl.training.card import PAPER, write_card
from rstar_trl.training.collator import MCTSDataCollator
from rstar_trl.training.packing import attention_mask
from rstar_trl.training.sft_card import sft_sections
from rstar_trl.training.sft_rows import IGNORED, trajectory_dataset
from rstar_trl.training.step_scores import ROW_TOKENS


@dataclass
class TreeSFTConfig(SFTConfig):
    """`SFTConfig`, with the fields below."""

    mode: Literal["rows", "tree"] = field(
        default="rows",
        metadata={"help": "Train on trajectories one by one, or on all trajectories of a question in one packed row."},
    )
    """`rows`: one sequence a trajectory; batch sizes count trajectories. `tree`: the trajectories of a question in one
    packed row in which shared tokens stand once; batch sizes count questions. The loss is the same."""

    row_tokens: int = field(
        default=ROW_TOKENS,
        metadata={"help": "Tree mode: tokens a row may have; a larger tree is split, its prefix repeated."},
    )
    """Tree mode: tokens a row may have. A tree with more is split along its branches, its prefix repeated."""

    shared_steps: Literal["each", "once"] = field(
        default="each",
        metadata={"help": "Tree mode: count a step that n trajectories share n times, as separate rows do, or once."},
    )
    """Tree mode: count a step that n trajectories share n times, as separate rows do, or once."""

    weighted: bool = field(
        default=False,
        metadata={"help": "Tree mode: weigh each trajectory by its `weight` column, normalised to mean 1."},
    )
    """Tree mode: weigh each trajectory by its `weight` column (its mean Q), normalised to mean 1 over the data set."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode not in ("rows", "tree") or self.shared_steps not in ("each", "once"):
            raise ValueError("`mode` must be `rows` or `tree`, and `shared_steps` must be `each` or `once`.")
        if self.mode == "rows":
            if self.weighted or self.shared_steps == "once":
                raise ValueError("`weighted` and `shared_steps: once` need `mode: tree`.")
            return
        if self.max_length is None:
            self.max_length = self.row_tokens
        elif self.max_length > self.row_tokens:
            raise ValueError(
                f"`row_tokens` {self.row_tokens} must hold the longest sequence, `max_length` {self.max_length}."
            )
        self.remove_unused_columns = False


class TreeSFTTrainer(SFTTrainer):
    """TRL's `SFTTrainer` that reads everything `MCTSDataCollator` can emit.

    With a `TreeSFTConfig` in tree mode it makes that collator itself, and takes prompt-completion rows as
    `trajectory_dataset` does. Without, give it a collator and a data set as you would the stock trainer.
    """

    _tag_names = ["trl", "rstar-trl", "sft"]
    _paper = PAPER
    args: SFTConfig
    model: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        options = self.args
        if isinstance(options, TreeSFTConfig) and options.mode == "tree":
            if isinstance(self.data_collator, MCTSDataCollator):
                raise ConfigError("`mode: tree` makes its own `MCTSDataCollator`; give no `data_collator`.")
            own = {name: getattr(options, name) for name in ("row_tokens", "shared_steps", "weighted")}
            self.data_collator = MCTSDataCollator.for_trainer(self.model, options, **own)
        if isinstance(self.data_collator, MCTSDataCollator):
            if options.loss_type != "nll":
                raise ConfigError(f"TreeSFTTrainer weighs tokens; set `loss_type: nll`, not {options.loss_type}.")
            self.data_collator.tree_trainer = True
            self._attention = self.data_collator.attention
            use_blocks(self.model, self.accelerator.device)

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, *others: Any, **named: Any) -> Any:
        if not isinstance(args, TreeSFTConfig) or args.mode != "tree":
            return super()._prepare_dataset(dataset, processing_class, args, *others, **named)
        if not isinstance(dataset, Dataset):
            raise DataError("`mode: tree` groups rows by question, so it needs a whole `Dataset`, not a stream.")
        if "input_ids" in dataset.column_names:
            return dataset
        return trajectory_dataset(dataset, processing_class, args.completion_only_loss is not False, args.max_length)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The stock loss of a model that is given its mask, and whose log-probabilities are weighed."""
        if "targets" not in inputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        last, weights, tokens = inputs.pop("last"), inputs.pop("loss_weights"), inputs.pop("num_tokens")
        counted = (inputs["labels"] != IGNORED).sum()
        inputs["labels"] = inputs["shift_labels"] = inputs.pop("targets")

        def forward(**arguments: Any) -> Any:
            outputs = model(**arguments, attention_mask=attention_mask(last, self._attention))
            if outputs.get("log_probs") is not None:
                # In evaluation the stock loss is divided by the number of distinct tokens.
                scale = outputs.label_mask.sum() / counted.clamp(min=1) if num_items_in_batch is None else 1.0
                outputs.log_probs = outputs.log_probs * weights * scale
            return outputs

        before = self._total_train_tokens
        found = super().compute_loss(forward, inputs, return_outputs, num_items_in_batch)
        # Without an attention mask the stock trainer takes a row's width for the tokens of a batch.
        mode = "train" if self.model.training else "eval"
        if mode == "train":
            self._total_train_tokens = before + self.accelerator.gather(tokens).sum().item() // self._tp_size
        self._metrics[mode]["num_tokens"] = [self._total_train_tokens]
        return found

    def create_model_card(  # type: ignore[override]
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        """Writes `README.md` to the output folder: TRL's metadata, with method, data and results of this training."""
        super().create_model_card(model_name, dataset_name, tags)
        if self.is_world_process_zero():
            name = model_name or Path(str(self.args.output_dir)).name
            write_card(self, name, sft_sections(self, self.hub_model_id or name, dataset_name))
