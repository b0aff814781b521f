from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rstar_trl.errors import ConfigError, DataError, EngineError
from rstar_trl.policy.tokens import encode_prompt
from rstar_trl.training.sft import run_sft
from rstar_trl.training.sft_rows import encode_trajectory
from tests.training.toys import sft_row, write_rows

FAST: dict[str, Any] = {
    "max_steps": 150,
    "learning_rate": "1e-2",
    "per_device_train_batch_size": 16,
    "logging_steps": 150,
    "save_strategy": "no",
}


@pytest.fixture(scope="module")
def policy(
    tiny_model_dir: str, sft_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, float]]:
    folder = tmp_path_factory.mktemp("policy")
    return folder, run_sft(tiny_model_dir, sft_file, folder, FAST, None, seed=0, eval_file=sft_file)


def test_the_policy_writes_what_it_was_taught(policy: tuple[Path, dict[str, float]]) -> None:
    folder, metrics = policy
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    for number in (1, 2, 3):
        row = sft_row(number)
        prompt = torch.tensor([encode_prompt(tokenizer, row["prompt"])])
        output = model.generate(prompt, max_new_tokens=60, do_sample=False)[0, prompt.shape[1] :]
        assert output[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(output, skip_special_tokens=True) == row["completion"]
    assert metrics["eval_loss"] < 0.1
    assert (metrics["rows"], metrics["rows_too_long"], metrics["steps"]) == (60, 0, 150)


def test_no_checkpoint_is_left_behind(policy: tuple[Path, dict[str, float]]) -> None:
    folder, _ = policy
    assert not (folder / "checkpoints").exists()
    assert (folder / "model.safetensors").exists()


def test_tokens_are_prompt_steps_and_end(tiny_model_dir: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    row = sft_row(4)
    encoded = encode_trajectory(tokenizer, row)
    prompt, completion = (
        tokenizer(row[name], add_special_tokens=False).input_ids for name in ("prompt", "completion")
    )
    assert encoded["input_ids"] == [*prompt, *completion, tokenizer.eos_token_id]
    assert encoded["labels"] == [-100] * len(prompt) + [*completion, tokenizer.eos_token_id]
    assert encode_trajectory(tokenizer, row, completion_only=False)["labels"] == encoded["input_ids"]


def test_the_trainer_sees_exactly_these_tokens(tiny_model_dir: str, sft_file: Path, tmp_path: Path) -> None:
    """The batch that reaches the model holds the encoded rows and nothing else: `SFTTrainer` changes no token."""
    from datasets import Dataset
    from trl import SFTTrainer

    from rstar_trl.training.common import arguments

    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    rows = [encode_trajectory(tokenizer, sft_row(number)) for number in range(4)]
    from trl import SFTConfig

    args = arguments(SFTConfig, {"per_device_train_batch_size": 4}, tmp_path, 0, False)
    trainer = SFTTrainer(tiny_model_dir, args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    batch = next(iter(trainer.get_train_dataloader()))
    seen = [
        (ids[mask.bool()].tolist(), labels[mask.bool()].tolist())
        for ids, mask, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True)
    ]
    assert sorted(seen) == sorted((row["input_ids"], row["labels"]) for row in rows)


def test_long_rows_are_left_out_whole(tiny_model_dir: str, tmp_path: Path) -> None:
    rows = [sft_row(1), {**sft_row(2), "completion": "SELECT name\n\n" * 200}]
    file = write_rows(tmp_path / "rows.jsonl", rows)
    metrics = run_sft(tiny_model_dir, file, tmp_path / "out", {**FAST, "max_steps": 1, "max_length": 128}, None, 0)
    assert (metrics["rows"], metrics["rows_too_long"]) == (1, 1)
    with pytest.raises(DataError, match="max_length"):
        run_sft(tiny_model_dir, file, tmp_path / "out", {**FAST, "max_length": 4}, None, 0)


def test_bad_input_is_one_sentence(tiny_model_dir: str, sft_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"learning_rte.*did you mean `learning_rate`"):
        run_sft(tiny_model_dir, sft_file, tmp_path, {"learning_rte": 1}, None, 0)
    with pytest.raises(ConfigError, match="set by the run"):
        run_sft(tiny_model_dir, sft_file, tmp_path, {"output_dir": "x"}, None, 0)
    with pytest.raises(ConfigError, match="must be a number"):
        run_sft(tiny_model_dir, sft_file, tmp_path, {"learning_rate": "fast"}, None, 0)
    with pytest.raises(DataError, match="no rows"):
        run_sft(tiny_model_dir, tmp_path / "missing.jsonl", tmp_path, {}, None, 0)
    with pytest.raises(DataError, match="lacks completion"):
        run_sft(tiny_model_dir, write_rows(tmp_path / "x.jsonl", [{"prompt": "p"}]), tmp_path, {}, None, 0)
    with pytest.raises(EngineError, match="does not exist"):
        run_sft("./no/such/model", sft_file, tmp_path, {}, None, 0)
