"""Supervised fine-tuning of the policy on prompt-completion rows, with TRL's `SFTTrainer`, row by row or on trees.

Guarantees: the tokens trained on are those the search samples (see `sft_rows`). A row is never truncated
(a trajectory without its end teaches never to stop): longer ones are left out and counted. Runs in one process, or in
every process of an `accelerate launch`; resumes by itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rstar_trl.errors import DataError
from rstar_trl.policy.tokens import load_tokenizer
from rstar_trl.training.common import (
    arguments,
    finish,
    loading_errors,
    lora_config,
    plain_base,
    read_rows,
    save_card,
    storage_errors,
    train,
)
from rstar_trl.training.sft_rows import encode_trajectory, trajectory_dataset


def run_sft(
    model_path: str,
    train_file: Path,
    output_dir: Path,
    sft: dict[str, Any],
    lora: dict[str, Any] | None,
    seed: int,
    eval_file: Path | None = None,
    trust_remote_code: bool = False,
) -> dict[str, float]:
    """Fine-tunes `model_path` on `train_file` and saves model (or adapter) and tokenizer to `output_dir`.

    `sft`: fields of `TreeSFTConfig`; `lora`: fields of `LoraConfig`, to train an adapter instead of all weights. An
    adapter given as `model_path` is merged into its base first. Returns the trainer's metrics, with `rows`,
    `rows_too_long`, `steps` and `num_processes`. Errors: `ConfigError`, `DataError`, `EngineError`, `StorageError`.
    """
    rows = read_rows(Path(train_file), ("prompt", "completion"))
    output_dir = Path(output_dir)
    base = plain_base(model_path, output_dir, sft, trust_remote_code)

    from rstar_trl.training.sft_trainer import TreeSFTConfig, TreeSFTTrainer

    args = arguments(TreeSFTConfig, sft, output_dir, seed, trust_remote_code)
    tokenizer = load_tokenizer(base, trust_remote_code)
    dataset = _dataset(rows, tokenizer, args, str(train_file))
    eval_dataset = None
    if eval_file is not None:
        eval_rows = read_rows(Path(eval_file), ("prompt", "completion"))
        eval_dataset = _dataset(eval_rows, tokenizer, args, str(eval_file))
    with loading_errors(base):
        trainer = TreeSFTTrainer(
            model=base,
            args=args,
            train_dataset=dataset,
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
            peft_config=lora_config(lora, "CAUSAL_LM"),
        )
    metrics = train(trainer, output_dir)
    with storage_errors(output_dir):
        trainer.save_model(str(output_dir))
        save_card(trainer, output_dir)
    finish(trainer, output_dir)
    kept = sum(map(len, dataset["input_ids"])) if args.mode == "tree" else len(dataset)
    return {**metrics, "rows": kept, "rows_too_long": len(rows) - kept}


def _dataset(rows: list[dict[str, Any]], tokenizer: Any, args: Any, source: str) -> Any:
    """The rows that fit `max_length` as a `Dataset`: one entry a row, or in tree mode a question."""
    from datasets import Dataset

    completion_only = args.completion_only_loss is not False
    encoded = [encode_trajectory(tokenizer, row, completion_only) for row in rows]
    lengths = [len(row["input_ids"]) for row in encoded]
    if args.max_length is not None and min(lengths) > args.max_length:
        raise DataError(
            f"every row of {source} is longer than `max_length` {args.max_length} (the shortest has {min(lengths)} "
            "tokens); raise `sft.max_length` or show less of the schema."
        )
    if args.mode == "tree":
        return trajectory_dataset(rows, tokenizer, completion_only, args.max_length)
    fits = (args.max_length is None or size <= args.max_length for size in lengths)
    return Dataset.from_list([row for row, fit in zip(encoded, fits, strict=True) if fit])
