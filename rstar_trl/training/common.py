"""What SFT and PPM training share: options, checkpoints, adapters, and errors a user can mend.

Guarantees: a training that was killed continues from its last whole checkpoint (one that a kill cut short is removed);
a full disk is a `StorageError`, whichever library met it. Does not guarantee: bit-equal weights after a resume with
another number of processes. Nothing heavy is imported before a function is called.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import shutil
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rstar_trl.errors import ConfigError, DataError, EngineError, StorageError
from rstar_trl.io import read_jsonl
from rstar_trl.policy.tokens import check_path, first_line
from rstar_trl.strict_yaml import unknown_key

RESERVED = {"output_dir", "resume_from_checkpoint"}
"""Options the run sets itself."""

FULL_DISK = ("No space left on device", "file write failed", "unexpected pos")
"""How a full disk reads: from the system and safetensors, and from `torch.save` at a file's end or in its middle."""


def check_fields(given: dict[str, Any], cls: type) -> list[str]:
    """One sentence per key of `given` that is no field of the dataclass `cls`, or that the run sets itself."""
    known = [field.name for field in dataclasses.fields(cls) if field.init and field.name not in RESERVED]
    problems = [f"key `{name}` is set by the run; delete it." for name in given if name in RESERVED]
    return problems + [unknown_key(name, known) for name in given if name not in known and name not in RESERVED]


def on_cpu(given: dict[str, Any]) -> bool:
    """Whether training runs on the CPU: because it is told to, or because there is nothing else."""
    import torch

    return bool(given.get("use_cpu", not torch.accelerator.is_available()))


def arguments(cls: Any, given: dict[str, Any], output_dir: Path, seed: int, trust_remote_code: bool) -> Any:
    """The trainer's config: `given` over our defaults. Unknown keys and unusable values are a `ConfigError`."""
    if problems := check_fields(given, cls):
        raise ConfigError([f"{cls.__name__}: {problem}" for problem in problems])
    if not sys.stderr.isatty():
        _no_bars()
    values: dict[str, Any] = {
        "report_to": "none",
        "save_total_limit": 1,
        "seed": seed,
        "disable_tqdm": not sys.stderr.isatty(),
        "trust_remote_code": trust_remote_code,
    }
    if on_cpu(given):
        # TRL's defaults save the memory of an accelerator; on a CPU they only cost time.
        values |= {"use_cpu": True, "bf16": False, "gradient_checkpointing": False, "dataloader_pin_memory": False}
    values |= _numbers(given, cls)
    try:
        return cls(output_dir=str(output_dir / "checkpoints"), **values)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{cls.__name__} refuses these options ({first_line(error)}); correct them.") from error


def lora_config(lora: dict[str, Any] | None, task_type: str) -> Any:
    """A `peft.LoraConfig` for `task_type`, or None without LoRA."""
    if lora is None:
        return None
    from peft import LoraConfig

    if problems := check_fields(lora, LoraConfig):
        raise ConfigError([f"LoraConfig: {problem}" for problem in problems])
    return LoraConfig(**{**lora, "task_type": task_type})


def plain_base(path: str, output_dir: Path, given: dict[str, Any], trust_remote_code: bool) -> str:
    """`path` itself, or for an adapter folder its base with the adapter merged in, written to `output_dir/base`.

    To be called before the trainer's config exists: under ZeRO-3 that config would shard the merge over processes.
    """
    check_path(path)
    if not (Path(path) / "adapter_config.json").exists():
        return path
    from accelerate import PartialState

    from rstar_trl.policy.tokens import load_tokenizer
    from rstar_trl.policy.transformers_engine import load_policy

    state = PartialState(cpu=on_cpu(given))
    merged = output_dir / "base"
    if state.is_main_process:
        with storage_errors(output_dir):
            load_policy(path, "float32", trust_remote_code).save_pretrained(merged)
            load_tokenizer(path, trust_remote_code).save_pretrained(merged)
    state.wait_for_everyone()
    return str(merged)


def read_rows(path: Path, needed: tuple[str, ...]) -> list[dict[str, Any]]:
    """The rows of a JSONL training file; an empty or unfitting file is a `DataError`."""
    rows, _ = read_jsonl(path)
    if not rows:
        raise DataError(f"{path} has no rows to train on; run the stage that writes it, or search more questions.")
    for number, row in enumerate(rows, 1):
        if missing := [name for name in needed if name not in row]:
            raise DataError(f"{path}, row {number} lacks {', '.join(missing)}; give rows with {', '.join(needed)}.")
    return rows


def train(trainer: Any, output_dir: Path) -> dict[str, float]:
    """Trains to the end, from the last whole checkpoint where there is one, and evaluates; returns the metrics."""
    resume = last_checkpoint(Path(trainer.args.output_dir), clean=trainer.accelerator.is_main_process)
    with storage_errors(output_dir):
        metrics = dict(trainer.train(resume_from_checkpoint=resume).metrics)
        if trainer.eval_dataset is not None:
            metrics |= trainer.evaluate()
    metrics["steps"] = trainer.state.global_step
    metrics["num_processes"] = trainer.accelerator.num_processes
    return {name: value for name, value in metrics.items() if isinstance(value, int | float)}


def save_card(trainer: Any, output_dir: Path) -> None:
    """Writes the trainer's model card, with the results of its training, beside the model in `output_dir`."""
    trainer.create_model_card(model_name=trainer.hub_model_id or output_dir.name)
    if trainer.accelerator.is_main_process:
        output_dir.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(trainer.args.output_dir) / "README.md", output_dir / "README.md")


def finish(trainer: Any, output_dir: Path) -> None:
    """Drops checkpoints, a merged base no adapter needs, and the trainer's memory, once the final model is on disk."""
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    trainer.accelerator.wait_for_everyone()
    if trainer.accelerator.is_main_process:
        shutil.rmtree(trainer.args.output_dir, ignore_errors=True)
        if not (output_dir / "adapter_config.json").exists():
            shutil.rmtree(output_dir / "base", ignore_errors=True)
    trainer.accelerator.free_memory()
    trainer.model = trainer.model_wrapped = trainer.optimizer = trainer.lr_scheduler = None
    # Left set, a ZeRO-3 config would shard whatever model this process loads next, in a call the others may not make.
    unset_hf_deepspeed_config()
    gc.collect()


def last_checkpoint(folder: Path, clean: bool = False) -> str | None:
    """The newest whole checkpoint of a trainer's folder; `clean` removes those that a kill cut short."""
    found: dict[int, Path] = {}
    for path in folder.glob("checkpoint-*"):
        step = path.name.removeprefix("checkpoint-")
        if not step.isdigit():
            continue
        if _whole(path, int(step)):
            found[int(step)] = path
        elif clean:
            shutil.rmtree(path, ignore_errors=True)
    return str(found[max(found)]) if found else None


@contextmanager
def storage_errors(folder: Path) -> Iterator[None]:
    """Turns a failed write into `StorageError`; each library reports a full disk by an exception of its own."""
    try:
        yield
    except Exception as error:
        if not any(sign in str(error) for sign in FULL_DISK):
            raise
        raise StorageError(
            f"the model could not be written below {folder} ({first_line(error)}); "
            "free space and run the same command again, it continues from the last whole checkpoint."
        ) from error


@contextmanager
def loading_errors(path: str) -> Iterator[None]:
    """Turns a model that cannot be loaded into an `EngineError` that names it."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise EngineError(f"no model could be loaded from {path}: {first_line(error)}; check the path.") from error


def _whole(checkpoint: Path, step: int) -> bool:
    # The state file is written last by the main process; the others may still be writing their `.pth` then.
    try:
        state = json.loads((checkpoint / "trainer_state.json").read_text())
    except (OSError, ValueError):
        return False
    return state.get("global_step") == step and all(zipfile.is_zipfile(file) for file in checkpoint.glob("*.pt*"))


def _no_bars() -> None:
    # A progress bar in a log file is a line per refresh.
    import datasets
    from transformers.utils import logging

    datasets.disable_progress_bars()
    logging.disable_progress_bar()


def _numbers(given: dict[str, Any], cls: type) -> dict[str, Any]:
    """`given` with text turned into a float where the field is one: YAML 1.1 reads `1e-3` as text."""
    values = dict(given)
    for field in dataclasses.fields(cls):
        if isinstance(field.default, float) and isinstance(values.get(field.name), str):
            try:
                values[field.name] = float(values[field.name])
            except ValueError as error:
                problem = f"{cls.__name__}: `{field.name}` must be a number, not {values[field.name]!r}."
                raise ConfigError(problem) from error
    return values
