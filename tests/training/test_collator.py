"""Packed trajectories against the separate sequences: the same loss, gradients and trained model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from rstar_trl.errors import ConfigError, DataError, EngineError
from rstar_trl.training.collator import MCTSDataCollator
from rstar_trl.training.sft_rows import encode_trajectory, trajectory_dataset
from rstar_trl.training.sft_trainer import TreeSFTTrainer
from tests.training.toys import sft_row
from tests.training.trees import (
    FAMILIES,
    assert_same,
    collated_loss,
    separate_loss,
    tiny_policy,
    trajectory_rows,
)

ROWS: list[dict[str, Any]] = [
    {
        "question_id": f"q{number}",
        "prompt": f"{number} show column of the table called t\n",
        "completion": f"-- {first} of t\nFROM t\n\nSELECT {second}",
        "weight": 0.5 + 0.25 * index,
    }
    for number in range(4)
    for index, (first, second) in enumerate([("name", "name"), ("name", "age"), ("city", "city")])
]
BRANCHING = {"input_ids": [[5, 6, 7, 8, 1], [5, 6, 7, 9, 1]], "labels": [[-100, -100, 7, 8, 1], [-100, -100, 7, 9, 1]]}


def for_tree_trainer(**options: Any) -> MCTSDataCollator:
    """A collator as `TreeSFTTrainer` sets it."""
    collator = MCTSDataCollator(**options)
    collator.tree_trainer = True
    return collator


@settings(deadline=None, max_examples=25)
@given(trajectory_rows(), st.sampled_from([70, 256]))
def test_loss_and_gradients_equal_the_separate_sequences(rows: list[dict[str, Any]], budget: int) -> None:
    model = tiny_policy()
    assert_same(model, collated_loss(model, MCTSDataCollator(row_tokens=budget)(rows)), separate_loss(model, rows))


@settings(deadline=None, max_examples=25)
@given(trajectory_rows(), st.sampled_from([70, 256]), st.booleans())
def test_tokens_computed_once_give_the_same_loss_and_gradients(
    rows: list[dict[str, Any]], budget: int, weighted: bool
) -> None:
    model = tiny_policy()
    batch = for_tree_trainer(row_tokens=budget, weighted=weighted)(rows)
    assert_same(model, collated_loss(model, batch), separate_loss(model, rows, weighted))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_and_attention(family: str, attention: str) -> None:
    model = tiny_policy(family, attention)
    rows = [{**BRANCHING, "weight": [1.0, 1.0]}]
    batch = MCTSDataCollator(attention)(rows)
    assert_same(model, collated_loss(model, batch), separate_loss(model, rows))


def test_the_check_can_fail() -> None:
    """The comparison is worth something: branches that see each other are noticed."""
    model = tiny_policy()
    batch = MCTSDataCollator()([{**BRANCHING, "weight": [1.0, 1.0]}])
    batch["attention_mask"] = batch["attention_mask"] | torch.ones_like(batch["attention_mask"]).tril()
    with pytest.raises(AssertionError):
        assert_same(model, collated_loss(model, batch), separate_loss(model, [{**BRANCHING, "weight": [1.0, 1.0]}]))


def test_a_shared_step_counts_once_or_once_per_trajectory() -> None:
    each, once = (MCTSDataCollator(shared_steps=choice)([BRANCHING]) for choice in ("each", "once"))
    assert sorted(each["labels"][each["labels"] >= 0].tolist()) == [1, 1, 7, 7, 8, 9]
    assert sorted(once["labels"][once["labels"] >= 0].tolist()) == [1, 1, 7, 8, 9]
    assert each["input_ids"].shape[1] == 5 + 4 and once["input_ids"].shape[1] == 5 + 3


@pytest.mark.parametrize(("choice", "weights"), [("each", (2.0, 0.5, 1.5)), ("once", (1.0, 0.5, 1.5))])
def test_the_tree_trainer_computes_a_shared_step_once_and_counts_it_as_told(
    choice: str, weights: tuple[float, ...]
) -> None:
    batch = for_tree_trainer(shared_steps=choice, weighted=True)([{**BRANCHING, "weight": [0.5, 1.5]}])
    assert batch["input_ids"].shape[1] == 5 + 3
    found = dict(zip(batch["targets"].flatten().tolist(), batch["loss_weights"].flatten().tolist(), strict=True))
    assert tuple(found[token] for token in (7, 8, 9)) == weights
    assert int((batch["shift_labels"] != -100).sum()) == (6 if choice == "each" else 5)


def test_single_rows_that_begin_alike_share_it() -> None:
    rows = [{"input_ids": ids, "labels": labels} for ids, labels in zip(*BRANCHING.values(), strict=True)]
    batch, expected = MCTSDataCollator()(rows), MCTSDataCollator()([BRANCHING])
    assert all(torch.equal(batch[name], expected[name]) for name in expected)


def test_observations_are_shown_and_never_trained_on(tiny_model_dir: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    row = {**ROWS[0], "observations": ["-- 2 rows", "-- never reached"]}
    encoded = encode_trajectory(tokenizer, row)
    shown = tokenizer("-- 2 rows\n\n", add_special_tokens=False).input_ids
    text = tokenizer.decode(encoded["input_ids"])
    assert text.count("-- 2 rows") == 1 and "never" not in text
    trained = [token for token in encoded["labels"] if token != -100]
    plain = encode_trajectory(tokenizer, ROWS[0])
    assert trained == [token for token in plain["labels"] if token != -100]
    assert len(encoded["input_ids"]) == len(plain["input_ids"]) + len(shown)
    batch = MCTSDataCollator()([{name: [value] for name, value in encoded.items()}])
    assert batch["labels"][batch["labels"] >= 0].tolist() == trained
    with pytest.raises(DataError, match="2 steps and 1 observations"):
        encode_trajectory(tokenizer, {**row, "observations": ["x"]})


# --- stock trainers --------------------------------------------------------------------------------------------------

OPTIONS: dict[str, Any] = {
    "max_steps": 4,
    "learning_rate": 1e-2,
    "optim": "sgd",
    "max_grad_norm": 0,
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "disable_tqdm": True,
    "seed": 0,
    "logging_steps": 1,
}


def trained(model_dir: str, folder: Path, packed: bool, trainer: Any = SFTTrainer, **options: Any) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    attention, peft_config = options.pop("attention", "sdpa"), options.pop("peft_config", None)
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32, attn_implementation=attention)
    collator, weighted = None, options.pop("weighted", False)
    if packed:
        skip = {"dataset_kwargs": {"skip_prepare_dataset": True}, "remove_unused_columns": False}
        args = SFTConfig(output_dir=str(folder), **{**OPTIONS, **skip, **options})
        dataset = trajectory_dataset(ROWS, tokenizer)
        collator = MCTSDataCollator.for_trainer(model, args, weighted=weighted)
    else:
        args = SFTConfig(output_dir=str(folder), **{**OPTIONS, **options})
        dataset = Dataset.from_list([encode_trajectory(tokenizer, row) for row in ROWS])
    made = trainer(model, args, collator, dataset, processing_class=tokenizer, peft_config=peft_config)
    made.train()
    return made


def assert_same_weights(found: Any, expected: Any) -> None:
    others = dict(expected.model.named_parameters())
    for name, weight in found.model.named_parameters():
        torch.testing.assert_close(weight, others[name], rtol=1e-4, atol=1e-6)
    losses = [[entry["loss"] for entry in each.state.log_history if "loss" in entry] for each in (found, expected)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize("trainer", [SFTTrainer, TreeSFTTrainer])
@pytest.mark.parametrize("options", [{}, {"gradient_checkpointing": True}, {"attention": "eager"}])
def test_packed_training_learns_the_same(
    tiny_model_dir: str, tmp_path: Path, options: dict[str, Any], trainer: Any
) -> None:
    """In TRL's own `SFTTrainer` and in ours, with whole-data-set steps, so that both see the same rows."""
    expected = trained(tiny_model_dir, tmp_path, packed=False, per_device_train_batch_size=12)
    found = trained(tiny_model_dir, tmp_path, True, trainer, per_device_train_batch_size=4, **options)
    assert_same_weights(found, expected)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_bfloat16_is_close(tiny_model_dir: str, tmp_path: Path, attention: str) -> None:
    whole = {"per_device_train_batch_size": 4, "attention": attention}
    exact, rounded = (trained(tiny_model_dir, tmp_path, True, bf16=bf16, **whole) for bf16 in (False, True))
    losses = [[entry["loss"] for entry in each.state.log_history if "loss" in entry] for each in (exact, rounded)]
    assert losses[1] == pytest.approx(losses[0], rel=0.01) and losses[1] != losses[0]


@pytest.mark.parametrize("trainer", [SFTTrainer, TreeSFTTrainer])
def test_accumulation_changes_nothing(tiny_model_dir: str, tmp_path: Path, trainer: Any) -> None:
    expected = trained(tiny_model_dir, tmp_path, packed=False, per_device_train_batch_size=12)
    parts = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
    assert_same_weights(trained(tiny_model_dir, tmp_path, True, trainer, **parts), expected)


@pytest.mark.parametrize(("dora", "trainer"), [(False, SFTTrainer), (True, SFTTrainer), (True, TreeSFTTrainer)])
def test_adapters_learn_the_same(tiny_model_dir: str, tmp_path: Path, dora: bool, trainer: Any) -> None:
    from peft import LoraConfig

    def lora() -> LoraConfig:
        return LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", use_dora=dora)

    options = {"learning_rate": 1.0}
    torch.manual_seed(0)
    expected = trained(tiny_model_dir, tmp_path, False, per_device_train_batch_size=12, peft_config=lora(), **options)
    whole = {"per_device_train_batch_size": 4, "peft_config": lora(), **options}
    found = trained(tiny_model_dir, tmp_path, True, trainer, **whole)
    assert_same_weights(found, expected)


def test_weights_reach_the_loss_and_equal_ones_change_nothing(tiny_model_dir: str, tmp_path: Path) -> None:
    whole = {"per_device_train_batch_size": 4}
    weighed = trained(tiny_model_dir, tmp_path, True, TreeSFTTrainer, weighted=True, **whole)
    tokenizer = weighed.processing_class
    start = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    rows = trajectory_dataset(ROWS, tokenizer).to_list()
    assert sum(weight for row in rows for weight in row["weight"]) == pytest.approx(len(ROWS))
    first = next(entry["loss"] for entry in weighed.state.log_history if "loss" in entry)
    assert first == pytest.approx(separate_loss(start, rows, weighted=True).item(), rel=1e-4)
    assert first != pytest.approx(separate_loss(start, rows).item(), rel=1e-4)
    assert {"entropy", "mean_token_accuracy"} <= weighed.state.log_history[0].keys()


@pytest.mark.slow
def test_flex_attention_gives_the_same_loss(tiny_model_dir: str, tmp_path: Path) -> None:
    """On a CPU flex attention has no backward pass, so what is compared is an evaluation."""
    skip = {"dataset_kwargs": {"skip_prepare_dataset": True}, "remove_unused_columns": False}
    args = SFTConfig(output_dir=str(tmp_path), per_device_eval_batch_size=2, **{**OPTIONS, **skip})
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    dataset = trajectory_dataset(ROWS, tokenizer)
    losses = []
    for attention in ("sdpa", "flex_attention"):
        model = tiny_policy("llama", attention, hidden_size=64, vocab_size=len(tokenizer))
        collator = MCTSDataCollator.for_trainer(model, args, row_tokens=128)
        trainer = TreeSFTTrainer(model, args, collator, dataset, dataset, processing_class=tokenizer)
        losses.append(trainer.evaluate()["eval_loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


# --- refusals and skips ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["packing", "padding_free", "eval_packing"])
def test_what_packs_by_itself_is_refused(name: str, tmp_path: Path) -> None:
    given = {"dataset_kwargs": {"skip_prepare_dataset": True}, name: True, "use_cpu": True, "bf16": False}
    with pytest.raises(ConfigError, match=f"`{name}` packs rows by itself"):
        MCTSDataCollator.for_trainer(tiny_policy(), SFTConfig(output_dir=str(tmp_path), **given))


def test_options_that_would_drop_or_spoil_what_it_needs_are_refused(tmp_path: Path) -> None:
    args = SFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, label_smoothing_factor=0.1)
    with pytest.raises(ConfigError) as caught:
        MCTSDataCollator.for_trainer(tiny_policy(), args, weighted=True)
    for word in ("skip_prepare_dataset", "remove_unused_columns", "label_smoothing_factor"):
        assert word in str(caught.value)


@pytest.mark.parametrize("options", [{"weighted": True}, {"attention": "flex_attention"}])
def test_what_the_stock_trainer_would_ignore_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="need TreeSFTTrainer"):
        MCTSDataCollator(**options)([BRANCHING])


def test_a_model_with_windows_is_refused(tmp_path: Path) -> None:
    args = SFTConfig(str(tmp_path), dataset_kwargs={"skip_prepare_dataset": True}, use_cpu=True, bf16=False)
    with pytest.raises(EngineError, match="mistral uses sliding_window"):
        MCTSDataCollator.for_trainer(tiny_policy("mistral", sliding_window=32), args)


def test_a_bad_trajectory_is_skipped_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    collator = MCTSDataCollator(row_tokens=6)
    long = {"input_ids": [5] * 9, "labels": [-100] * 5 + [5] * 4}
    mute = {"input_ids": [5, 6], "labels": [-100, -100]}
    good = {"input_ids": [5, 6], "labels": [-100, 6]}
    assert collator([long, mute, good])["labels"].tolist() == [[6, -100]]
    assert collator.skipped == {"longer than 6 tokens": 1, "nothing to learn": 1}
    assert "nothing to learn" in caplog.text
    assert collator([mute])["labels"].tolist() == [[-100]], "a batch of bad rows does not stop a run"


def test_useless_weights_and_no_rows_are_refused(tiny_model_dir: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    for weight in (0.0, -1.0):
        with pytest.raises(DataError, match="give positive ones"):
            trajectory_dataset([{**sft_row(1), "weight": weight}], tokenizer)
    with pytest.raises(DataError, match="no rows"):
        trajectory_dataset([], tokenizer)
    assert trajectory_dataset([sft_row(1), sft_row(1), sft_row(2)], tokenizer).num_rows == 2
