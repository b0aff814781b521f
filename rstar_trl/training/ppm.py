"""Trains a round's process preference model from the round's policy, on preference rows.

Guarantees: the PPM starts as the policy's backbone with a new one-output head drawn from `seed`; what is saved is a
plain one-label sequence-classification model with its tokenizer (an adapter is merged), loadable by
`AutoModelForSequenceClassification` and `pipeline("text-classification")`. Accuracy is measured on pairs of questions
that no training pair is about. Runs in one process, or in every process of an `accelerate launch`; resumes by itself.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from rstar_trl.errors import DataError
from rstar_trl.io import digest
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

PAD_TOKEN = "<|pad|>"
COLUMNS = ("prompt", "chosen", "rejected")

Row = dict[str, Any]


def run_ppm(
    policy_path: str,
    train_file: Path,
    output_dir: Path,
    ppm: dict[str, Any],
    lora: dict[str, Any] | None,
    seed: int,
    eval_file: Path | None = None,
    trust_remote_code: bool = False,
) -> dict[str, float]:
    """Trains on `train_file` and saves the PPM and its tokenizer to `output_dir`.

    `ppm`: fields of `PPMConfig`; `lora`: fields of `LoraConfig`. Returns the trainer's metrics (`eval_accuracy` among
    them where pairs were held out), with `pairs`, `pairs_too_long`, `pairs_unusable`, `eval_pairs`,
    `steps` and `num_processes`.
    Errors: `ConfigError`, `DataError`, `EngineError`, `StorageError`.
    """
    rows = read_rows(Path(train_file), COLUMNS)
    output_dir = Path(output_dir)
    base = plain_base(policy_path, output_dir, ppm, trust_remote_code)

    from datasets import Dataset

    from rstar_trl.training.ppm_card import count_pairs
    from rstar_trl.training.ppm_config import PPMConfig
    from rstar_trl.training.ppm_trainer import PPMTrainer

    args = arguments(PPMConfig, ppm, output_dir, seed, trust_remote_code)
    if eval_file is not None:
        train_rows, eval_rows = rows, read_rows(Path(eval_file), COLUMNS)
    else:
        train_rows, eval_rows = hold_out(rows, args.eval_fraction, seed)
    tokenizer = load_tokenizer(base, trust_remote_code)
    with loading_errors(base):
        model = load_scorer(base, tokenizer, args)
    trainer: Any = PPMTrainer(
        model=model,
        args=args,
        train_dataset=Dataset.from_list(train_rows),
        eval_dataset=Dataset.from_list(eval_rows) if eval_rows else None,
        processing_class=tokenizer,
        peft_config=lora_config(lora, "SEQ_CLS"),
    )
    pairs = count_pairs(trainer.train_dataset)
    if not pairs:
        raise DataError(f"every pair of {train_file} is longer than {args.max_length} tokens; raise `ppm.max_length`.")
    metrics = train(trainer, output_dir)
    with storage_errors(output_dir):
        _save(trainer, base, tokenizer, args, output_dir)
    finish(trainer, output_dir)
    unusable = sum(trainer.skipped.get("train", {}).values())
    counts = {"pairs": pairs, "pairs_too_long": len(train_rows) - pairs - unusable, "eval_pairs": len(eval_rows)}
    return {**metrics, **counts, "pairs_unusable": unusable}


def load_scorer(path: str, tokenizer: Any, args: Any) -> Any:
    """The policy at `path` as a one-label sequence classifier, its new head drawn from `args.seed`.

    Gives `tokenizer` a pad token of its own where it lacks one: the score is read at the last token before padding.
    """
    from transformers import AutoModelForSequenceClassification, set_seed
    from transformers.utils import logging

    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})
    options = {"dtype": "float32", "trust_remote_code": args.trust_remote_code, **(args.model_init_kwargs or {})}
    args.model_init_kwargs = None
    verbosity = logging.get_verbosity()
    # The report of a new head and a dropped language-model head is what is wanted here, not news.
    logging.set_verbosity_error()
    set_seed(args.seed)
    try:
        model = AutoModelForSequenceClassification.from_pretrained(path, num_labels=1, **options)
    finally:
        logging.set_verbosity(verbosity)
    if len(tokenizer) > model.config.get_text_config().vocab_size:
        model.resize_token_embeddings(len(tokenizer))
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    return model


def hold_out(rows: list[Row], fraction: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Splits rows into `(train, held out)` by question: whole questions, drawn by `seed`, at least one left to train.

    A row without `question_id` is a question of its own.
    """
    ids = [str(row.get("question_id", f"row {number}")) for number, row in enumerate(rows)]
    order = sorted(set(ids), key=lambda name: digest([seed, name]))
    held = set(order[: min(int(fraction * len(order)), len(order) - 1)])
    train_rows = [row for row, name in zip(rows, ids, strict=True) if name not in held]
    return train_rows, [row for row, name in zip(rows, ids, strict=True) if name in held]


def _save(trainer: Any, base: str, tokenizer: Any, args: Any, output_dir: Path) -> None:
    from peft import PeftModel

    save_card(trainer, output_dir)
    if not isinstance(trainer.accelerator.unwrap_model(trainer.model), PeftModel):
        trainer.save_model(str(output_dir))
        return
    adapter = output_dir / "adapter"
    trainer.save_model(str(adapter))
    trainer.accelerator.wait_for_everyone()
    if trainer.accelerator.is_main_process:
        from transformers.integrations.deepspeed import unset_hf_deepspeed_config

        # Merging needs whole weights in this one process; ZeRO-3 would hand it a shard of them.
        unset_hf_deepspeed_config()
        merged = PeftModel.from_pretrained(load_scorer(base, tokenizer, args), str(adapter)).merge_and_unload()
        merged.save_pretrained(output_dir)
        tokenizer.save_pretrained(output_dir)
        shutil.rmtree(adapter)
