"""Supervised fine-tuning of the policy on prompt-completion rows, with TRL's own `SFTTrainer`.

Guarantees: the tokens trained on are those the search samples: prompt, steps and end-of-sequence are encoded by
`rstar_trl.policy.tokens`, each piece for itself, and only the completion's tokens carry loss. A row is never truncated
(a trajectory without its end teaches never to stop): longer ones are left out and counted. Runs in one process, or in
every process of an `accelerate launch`; resumes by itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rstar_trl.errors import DataError
from rstar_trl.policy.tokens import DELIMITER, encode_completion, encode_prompt, load_tokenizer
from rstar_trl.training.common import (
    arguments,
    check_fields,
    finish,
    loading_errors,
    lora_config,
    plain_base,
    read_rows,
    storage_errors,
    train,
)

__all__ = ["check_fields", "encode_row", "run_sft"]


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

    `sft`: fields of `SFTConfig`; `lora`: fields of `LoraConfig`, to train an adapter instead of all weights. An
    adapter given as `model_path` is merged into its base first. Returns the trainer's metrics, with `rows`,
    `rows_too_long`, `steps` and `num_processes`. Errors: `ConfigError`, `DataError`, `EngineError`, `StorageError`.
    """
    rows = read_rows(Path(train_file), ("prompt", "completion"))
    output_dir = Path(output_dir)
    base = plain_base(model_path, output_dir, sft, trust_remote_code)

    from trl import SFTConfig, SFTTrainer

    args = arguments(SFTConfig, sft, output_dir, seed, trust_remote_code)
    tokenizer = load_tokenizer(base, trust_remote_code)
    dataset = _dataset(rows, tokenizer, args, str(train_file))
    eval_dataset = None
    if eval_file is not None:
        eval_rows = read_rows(Path(eval_file), ("prompt", "completion"))
        eval_dataset = _dataset(eval_rows, tokenizer, args, str(eval_file))
    with loading_errors(base):
        trainer = SFTTrainer(
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
    finish(trainer, output_dir)
    return {**metrics, "rows": len(dataset), "rows_too_long": len(rows) - len(dataset)}


def encode_row(tokenizer: Any, row: dict[str, Any], completion_only: bool = True) -> dict[str, list[int]]:
    """`input_ids` and `labels` (-100 on the prompt) of a prompt-completion row, the end-of-sequence token included."""
    prompt = encode_prompt(tokenizer, row["prompt"])
    completion = encode_completion(tokenizer, row["completion"].split(DELIMITER))
    masked = [-100] * len(prompt) if completion_only else prompt
    return {"input_ids": prompt + completion, "labels": masked + completion}


def _dataset(rows: list[dict[str, Any]], tokenizer: Any, args: Any, source: str) -> Any:
    from datasets import Dataset

    encoded = [encode_row(tokenizer, row, args.completion_only_loss is not False) for row in rows]
    kept = [row for row in encoded if args.max_length is None or len(row["input_ids"]) <= args.max_length]
    if not kept:
        shortest = min(len(row["input_ids"]) for row in encoded)
        raise DataError(
            f"every row of {source} is longer than `max_length` {args.max_length} (the shortest has {shortest} "
            "tokens); raise `sft.max_length` or show less of the schema."
        )
    return Dataset.from_list(kept)
