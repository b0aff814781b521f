"""The policy trained on trees: `sft` with `mode: tree`, and `TreeSFTTrainer` as a TRL user calls it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import AutoTokenizer

from rstar_trl.errors import ConfigError, DataError
from rstar_trl.evolution.recipe import load_recipe
from rstar_trl.training.collator import MCTSDataCollator
from rstar_trl.training.packing import lay_out
from rstar_trl.training.sft import run_sft
from rstar_trl.training.sft_trainer import TreeSFTConfig, TreeSFTTrainer
from tests.training.test_collator import ROWS
from tests.training.toys import write_rows

WHOLE: dict[str, Any] = {
    "max_steps": 4,
    "learning_rate": 1e-2,
    "optim": "sgd",
    "max_grad_norm": 0,
    "save_strategy": "no",
    "logging_steps": 1,
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "report_to": "none",
    "disable_tqdm": True,
}
"""Steps over the whole data set, so that both modes see the same rows."""


@pytest.fixture(scope="module")
def rows_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows") / "sft.jsonl", ROWS)


@pytest.fixture(scope="module")
def by_rows(tiny_model_dir: str, rows_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder, options = tmp_path_factory.mktemp("rows-mode"), {**WHOLE, "per_device_train_batch_size": 12}
    return folder, run_sft(tiny_model_dir, rows_file, folder, options, None, seed=0, eval_file=rows_file)


@pytest.mark.parametrize("parts", [(4, 1), (1, 4)])
def test_tree_mode_trains_the_policy_that_rows_train(
    tiny_model_dir: str, rows_file: Path, by_rows: tuple[Path, Any], tmp_path: Path, parts: tuple[int, int]
) -> None:
    options = {
        **WHOLE,
        "mode": "tree",
        "per_device_train_batch_size": parts[0],
        "gradient_accumulation_steps": parts[1],
    }
    metrics = run_sft(tiny_model_dir, rows_file, tmp_path, options, None, seed=0, eval_file=rows_file)
    assert metrics["train_loss"] == pytest.approx(by_rows[1]["train_loss"], rel=1e-5)
    assert metrics["eval_loss"] == pytest.approx(by_rows[1]["eval_loss"], rel=1e-5)
    assert (metrics["rows"], metrics["rows_too_long"]) == (12, 0)
    found = load_file(tmp_path / "model.safetensors")
    for name, tensor in load_file(by_rows[0] / "model.safetensors").items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-6)


def make(model_dir: str, folder: Path, rows: Any = ROWS, **options: Any) -> TreeSFTTrainer:
    collator, tokenizer = options.pop("data_collator", None), AutoTokenizer.from_pretrained(model_dir)
    if options.pop("pad_with_eos", False):
        tokenizer.pad_token = tokenizer.eos_token
    args = TreeSFTConfig(output_dir=str(folder), **{**WHOLE, "mode": "tree", **options})
    dataset = Dataset.from_list(rows) if isinstance(rows, list) else rows
    return TreeSFTTrainer(model_dir, args, collator, dataset, processing_class=tokenizer)


def test_the_trainer_takes_plain_rows_and_its_options_reach_the_collator(tiny_model_dir: str, tmp_path: Path) -> None:
    trainer = make(tiny_model_dir, tmp_path, weighted=True, shared_steps="once", row_tokens=128, max_length=64)
    collator = trainer.data_collator
    assert (collator.weighted, collator.shared_steps, collator.row_tokens) == (True, "once", 128)
    assert len(trainer.train_dataset) == 4 and sum(map(len, trainer.train_dataset["input_ids"])) == 12
    (batch,) = make(tiny_model_dir, tmp_path, weighted=True, per_device_train_batch_size=4).get_train_dataloader()
    assert batch["loss_weights"].max() > batch["loss_weights"][batch["loss_weights"] > 0].min()


def test_rows_sorted_by_packed_length_can_be_grouped(tiny_model_dir: str, tmp_path: Path) -> None:
    trainer = make(tiny_model_dir, tmp_path, train_sampling_strategy="group_by_length")
    assert trainer.train_dataset["length"][0] < sum(map(len, trainer.train_dataset["input_ids"][0]))
    trainer.train()


def test_tokens_are_counted_as_often_as_they_are_computed(tiny_model_dir: str, tmp_path: Path) -> None:
    """Without padding, and what trajectories share once, with the token before each branch."""
    options = {"num_train_epochs": 2, "per_device_train_batch_size": 3, "logging_steps": 1}
    trainer = make(tiny_model_dir, tmp_path, [*ROWS, {**ROWS[0], "prompt": 2 * ROWS[0]["prompt"]}], **options)
    assert len(set(trainer.train_dataset["length"])) > 1
    trainer.train()
    counted = [entry["num_tokens"] for entry in trainer.state.log_history if "num_tokens" in entry]
    packed = [lay_out(ids, overlap=1).pieces for ids in trainer.train_dataset["input_ids"]]
    assert counted[-1] == 2 * sum(len(piece) for pieces in packed for piece in pieces)


def test_a_long_trajectory_is_left_out_and_the_others_of_its_question_stay(
    tiny_model_dir: str, tmp_path: Path
) -> None:
    rows = [*ROWS, {**ROWS[0], "completion": "SELECT name\n\n" * 200}]
    file, options = write_rows(tmp_path / "rows.jsonl", rows), {**WHOLE, "mode": "tree", "max_length": 128}
    metrics = run_sft(tiny_model_dir, file, tmp_path / "out", {**options, "max_steps": 1}, None, 0)
    assert (metrics["rows"], metrics["rows_too_long"]) == (12, 1)
    with pytest.raises(DataError, match="longer than `max_length` 4"):
        run_sft(tiny_model_dir, file, tmp_path / "out", {**options, "max_length": 4}, None, 0)


def test_a_row_without_a_weight_weighs_one(tiny_model_dir: str, tmp_path: Path) -> None:
    rows = [{**row, "weight": row["weight"] if number else None} for number, row in enumerate(ROWS)]
    weights = [each for group in make(tiny_model_dir, tmp_path, rows).train_dataset["weight"] for each in group]
    given = [1.0, *(row["weight"] for row in ROWS[1:])]
    assert weights == pytest.approx([weight * len(given) / sum(given) for weight in given])


def test_padding_with_eos_changes_nothing(tiny_model_dir: str, tmp_path: Path) -> None:
    """Padding of packed rows carries no label, whatever token it is."""
    losses = []
    for pad_with_eos in (False, True):
        trainer = make(tiny_model_dir, tmp_path, pad_with_eos=pad_with_eos, per_device_train_batch_size=2)
        losses.append(trainer.train().training_loss)
    assert losses[0] == losses[1]


def test_training_continues_from_a_checkpoint(tiny_model_dir: str, tmp_path: Path) -> None:
    few = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "per_device_train_batch_size": 2}
    make(tiny_model_dir, tmp_path / "whole", **few).train()
    resumed = make(tiny_model_dir, tmp_path / "resumed", **few)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole/checkpoint-2"))
    expected, found = (load_file(tmp_path / name / "checkpoint-4/model.safetensors") for name in ("whole", "resumed"))
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "forest"}, "`mode` must be `rows` or `tree`"),
        ({"mode": "rows", "weighted": True}, "need `mode: tree`"),
        ({"row_tokens": 64, "max_length": 128}, "`row_tokens` 64 must hold the longest sequence, `max_length` 128"),
        ({"packing": True}, "`packing` packs rows by itself"),
        ({"label_smoothing_factor": 0.1}, "`label_smoothing_factor`"),
        ({"loss_type": "dft"}, "`loss_type: nll`"),
        ({"data_collator": MCTSDataCollator()}, "give no `data_collator`"),
        ({"rows": Dataset.from_list(ROWS).to_iterable_dataset()}, "not a stream"),
        ({"rows": [{"prompt": [{"role": "user", "content": "x"}], "completion": []}]}, "as text"),
        ({"max_length": 4}, "no rows to train on"),
    ],
)
def test_what_cannot_work_is_refused_before_training(
    tiny_model_dir: str, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises((ConfigError, DataError, ValueError), match=message):
        make(tiny_model_dir, tmp_path, **options)


def test_a_recipe_sets_it_in_its_sft_section(tmp_path: Path) -> None:
    text = "name: n\noutput_dir: o\nmodel: {from_scratch: {architecture: llama}}\n"
    path = tmp_path / "recipe.yaml"
    path.write_text(text + "sft: {mode: tree, weighted: true}\nrounds:\n  - {guide: reward, sft: {mode: rows}}\n")
    recipe = load_recipe(path).recipe
    assert recipe.sft == {"mode": "tree", "weighted": True} and recipe.rounds[0].sft == {"mode": "rows"}
    path.write_text(text + "sft: {mode: trees}\n")
    with pytest.raises(ConfigError, match="mode"):
        load_recipe(path)
    path.write_text(text + "pretrain: {mode: tree}\n")
    with pytest.raises(ConfigError, match="unknown key `mode`"):
        load_recipe(path)


# --- the card --------------------------------------------------------------------------------------------------------


def test_the_card_tells_method_data_and_results(tiny_model_dir: str, rows_file: Path, tmp_path: Path) -> None:
    options = {**WHOLE, "mode": "tree", "max_steps": 2}
    metrics = run_sft(tiny_model_dir, rows_file, tmp_path / "policy", options, None, seed=0, eval_file=rows_file)
    card = ModelCard.load(tmp_path / "policy/README.md")
    assert set(card.data.tags) >= {"trl", "rstar-trl", "sft"}
    assert "packed into one row by `MCTSDataCollator`" in card.text and "12 trajectories of 4 questions." in card.text
    assert f"| loss | {metrics['eval_loss']:.4f} |" in card.text and "2 steps" in card.text
    assert "2501.04519" in card.text and "# policy" in card.text


def test_the_card_of_a_policy_trained_row_by_row(by_rows: tuple[Path, Any]) -> None:
    text = ModelCard.load(by_rows[0] / "README.md").text
    assert "one by one" in text and "12 trajectories." in text
