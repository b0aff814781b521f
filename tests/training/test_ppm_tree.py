"""Tree mode against the pairs computed one by one: the same loss, the same gradients, the same trained model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from rstar_trl.errors import ConfigError, DataError, EngineError
from rstar_trl.training.common import arguments
from rstar_trl.training.ppm_config import PPMConfig
from rstar_trl.training.ppm_trainer import PPMDataCollator, PPMTrainer
from rstar_trl.training.ppm_trees import FINAL, Settings, consistency, depth_of, pack_questions
from rstar_trl.training.step_scores import classifier
from tests.training.test_ppm_trainer import make
from tests.training.toys import pair_rows
from tests.training.trees import (
    FAMILIES,
    assert_same,
    batch_loss,
    packed_batch,
    packed_loss,
    pairs,
    random_pairs,
    tiny_ppm,
    unpacked_loss,
)

ROWS = [row for number in range(6) for row in pair_rows(number)]
PLAIN = Settings(4096, weighted=True, use_margin=False)


@settings(deadline=None, max_examples=25)
@given(pairs(), st.sampled_from([70, 256]), st.sampled_from([None, 0.05]))
def test_loss_and_gradients_equal_the_pairs(rows: list[dict[str, Any]], budget: int, center: float | None) -> None:
    model = tiny_ppm()
    packed = packed_loss(model, rows, budget, center_rewards_coefficient=center)
    assert_same(model, packed, unpacked_loss(model, rows, center))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_and_attention(family: str, attention: str) -> None:
    model = tiny_ppm(family, attention)
    rows = random_pairs(1)
    assert_same(model, packed_loss(model, rows), unpacked_loss(model, rows))


def test_the_check_can_fail() -> None:
    """The comparison is worth something: branches that see each other are noticed."""
    model, rows = tiny_ppm(), random_pairs(1)
    batch = packed_batch(rows, 256)
    batch["last"] = torch.full_like(batch["last"], batch["last"].shape[1])
    with pytest.raises(AssertionError):
        assert_same(model, batch_loss(model, batch), unpacked_loss(model, rows))


def test_gradient_checkpointing_changes_nothing() -> None:
    model, rows = tiny_ppm(), random_pairs(2)
    expected = unpacked_loss(model, rows)
    model.gradient_checkpointing_enable()
    model.train()  # checkpoints are made in training alone; these models have no dropout
    assert model.is_gradient_checkpointing
    assert_same(model, packed_loss(model, rows), expected)


def test_bfloat16_is_close() -> None:
    model, rows = tiny_ppm().to(torch.bfloat16), random_pairs(2)
    with torch.no_grad():
        torch.testing.assert_close(packed_loss(model, rows), unpacked_loss(model, rows).float(), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("dora", [False, True])
def test_adapters_learn_the_same(dora: bool) -> None:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="SEQ_CLS", use_dora=dora, init_lora_weights=False)
    model = get_peft_model(tiny_ppm(), lora).eval()
    rows = random_pairs(3)
    assert_same(model, packed_loss(model, rows), unpacked_loss(model, rows))


@pytest.mark.slow
def test_flex_attention_gives_the_same_loss() -> None:
    """On a CPU flex attention has no backward pass, so only the loss is compared."""
    models = [tiny_ppm("llama", attention, hidden_size=64) for attention in ("sdpa", "flex_attention")]
    with torch.no_grad():
        expected, found = (packed_loss(model, random_pairs(1)) for model in models)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_reading_scores_leaves_the_model_as_it_was() -> None:
    model = tiny_ppm()
    before = model.loss_function
    packed_loss(model, random_pairs(1))
    assert model.loss_function is before


# --- the trainer -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"center_rewards_coefficient": 0.01}, {"weighted": False}, {"use_margin": True}]
)
def test_trainer_measures_what_pairs_mode_measures(
    tiny_model_dir: str, tmp_path: Path, options: dict[str, Any]
) -> None:
    by_pairs = make(PPMTrainer, tiny_model_dir, ROWS, tmp_path, **options).evaluate()
    by_trees = make(PPMTrainer, tiny_model_dir, ROWS, tmp_path, mode="tree", **options).evaluate()
    for name in ("loss", "accuracy", "accuracy_step", "accuracy_final", "margin"):
        assert by_trees[f"eval_{name}"] == pytest.approx(by_pairs[f"eval_{name}"], rel=1e-5, abs=1e-6)
    assert by_trees["eval_pairs"] == len(ROWS)
    assert by_trees["eval_accuracy_depth_2"] == by_trees["eval_accuracy_step"]
    assert by_trees["eval_min_reward"] <= by_trees["eval_mean_reward"] <= by_trees["eval_max_reward"]


def trained(model_dir: str, folder: Path, **options: Any) -> dict[str, torch.Tensor]:
    few = {"max_steps": 4, "learning_rate": 1e-2, "optim": "sgd", "save_strategy": "no", "max_grad_norm": 0}
    trainer = make(PPMTrainer, model_dir, ROWS, folder, **few, **options)
    trainer.train()
    return dict(trainer.model.named_parameters())


def test_training_moves_the_weights_as_pairs_do(tiny_model_dir: str, tmp_path: Path) -> None:
    """Whole-data-set steps, so that both modes see the same pairs; also cut into accumulation steps."""
    expected = trained(tiny_model_dir, tmp_path, per_device_train_batch_size=12)
    whole = trained(tiny_model_dir, tmp_path, mode="tree", per_device_train_batch_size=6)
    parts = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3}
    accumulated = trained(tiny_model_dir, tmp_path, mode="tree", **parts)
    for name, weight in expected.items():
        torch.testing.assert_close(whole[name], weight, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(accumulated[name], weight, rtol=1e-4, atol=1e-6)


def test_training_logs_pairs_depths_and_rewards(tiny_model_dir: str, tmp_path: Path) -> None:
    options = {"max_steps": 2, "logging_steps": 2, "per_device_train_batch_size": 3, "save_strategy": "no"}
    trainer = make(PPMTrainer, tiny_model_dir, ROWS, tmp_path, mode="tree", **options)
    trainer.train()
    logs = next(entry for entry in trainer.state.log_history if "loss" in entry)
    assert (logs["pairs"], logs["pairs_per_question"]) == (12, 2)
    expected = {"accuracy", "margin", "accuracy_depth_2", "accuracy_final", "min_reward", "max_reward", "num_tokens"}
    assert expected <= logs.keys()


def test_consistency_draws_a_step_to_the_mean_of_its_continuations() -> None:
    scores = torch.tensor([1.0, 3.0, 5.0, 7.0], requires_grad=True)
    batch = {"parents": torch.tensor([-1, 0, 0, 2]), "step_share": torch.full((4,), 0.5)}
    loss = consistency(scores, batch)
    assert loss.item() == pytest.approx(0.5 * ((1 - 4) ** 2 + (5 - 7) ** 2))
    loss.backward()
    torch.testing.assert_close(scores.grad, torch.tensor([-3.0, 0.0, -2.0, 0.0]))


def test_consistency_reaches_the_loss(tiny_model_dir: str, tmp_path: Path) -> None:
    rows = [{**row, "prompt": row["prompt"].removesuffix("\n\n")} for row in ROWS]
    model = tiny_ppm()
    path = random_pairs(4)
    plain, drawn = packed_loss(model, path), packed_loss(model, path, consistency_coefficient=0.5)
    assert drawn > plain
    with pytest.raises(Exception, match="needs `mode: tree`"):
        make(PPMTrainer, tiny_model_dir, rows, tmp_path, consistency_coefficient=0.5)


# --- data ------------------------------------------------------------------------------------------------------------


def encoded(**changes: Any) -> dict[str, Any]:
    return {"question_id": "q", "chosen_ids": [5, 6], "rejected_ids": [5, 7], **changes}


def test_pairs_that_teach_nothing_are_skipped_and_counted() -> None:
    rows = [
        encoded(margin=1.0),
        encoded(rejected_ids=[5, 6], margin=1.0),
        encoded(chosen_ids=[], margin=1.0),
        encoded(chosen_ids=[5] * 9, margin=1.0),
        encoded(margin=None),
        encoded(margin=float("nan")),
    ]
    columns, skipped = pack_questions(rows, Settings(8, weighted=True, use_margin=True), "train")
    assert len(columns["chosen"]) == 1 and columns["chosen"][0] == [0]
    assert dict(skipped) == {"both sides the same tokens": 1, "a step of no tokens": 1, "too long": 1, "no margin": 2}
    with pytest.raises(DataError, match=r"no train pair is left.*1 x too long"):
        pack_questions([rows[3]], Settings(8, weighted=True, use_margin=False), "train")
    with pytest.raises(DataError, match=r"no train pair is left.*there were none"):
        pack_questions([], Settings(8, weighted=True, use_margin=False), "train")


def test_skips_are_logged_and_kept(tiny_model_dir: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [*ROWS, {**ROWS[0], "rejected": ROWS[0]["chosen"]}]
    trainer = make(PPMTrainer, tiny_model_dir, rows, tmp_path, mode="tree")
    assert trainer.skipped["train"] == {"both sides the same tokens": 1}
    assert "1 train pairs are left out: both sides the same tokens" in caplog.text


def test_questions_are_grouped_by_id_or_by_prompt() -> None:
    def groups(rows: list[dict[str, Any]]) -> list[int]:
        return [len(chosen) for chosen in pack_questions(rows, PLAIN, "train")[0]["chosen"]]

    ids = {"chosen_ids": [5, 6], "rejected_ids": [5, 7]}
    assert groups([{**ids, "question_id": name} for name in ("a", "b", "a")]) == [2, 1]
    heads = [{**ids, "prompt": prompt, "prompt_chars": 3} for prompt in ("p1\n", "p1\nFROM", "p2\n")]
    assert groups([{**row, "chosen": "x", "chosen_final": True, "rejected_final": True} for row in heads]) == [2, 1]
    assert groups([{**ids, "prompt": prompt} for prompt in ("p", "p", "q")]) == [2, 1]
    assert groups([ids, ids]) == [1, 1]


def test_depth_counts_the_steps_up_to_the_judged_one() -> None:
    step, whole = pair_rows(1)
    assert (depth_of(step), depth_of(whole)) == (2, FINAL)
    assert depth_of({**step, "prompt": step["prompt"][: step["prompt_chars"]]}) == 1


# --- refusals --------------------------------------------------------------------------------------------------------


def test_what_cannot_be_packed_is_refused_before_training(tiny_model_dir: str, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="`row_tokens` 64 must hold the longest sequence, `max_length` 128"):
        make(PPMTrainer, tiny_model_dir, ROWS, tmp_path, mode="tree", row_tokens=64, max_length=128)
    with pytest.raises(Exception, match="`mode` must be `pairs` or `tree`"):
        make(PPMTrainer, tiny_model_dir, ROWS, tmp_path, mode="forest")
    with pytest.raises(DataError, match="no train pair is left"):
        make(PPMTrainer, tiny_model_dir, ROWS, tmp_path, mode="tree", max_length=4)
    bare = [{name: value for name, value in row.items() if name != "margin"} for row in ROWS]
    for mode in ("tree", "pairs"):
        with pytest.raises(DataError, match="`use_margin` is set"):
            make(PPMTrainer, tiny_model_dir, bare, tmp_path, mode=mode, use_margin=True)


def test_a_stream_and_a_collator_of_ones_own_are_refused(tiny_model_dir: str, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    args = arguments(PPMConfig, {"mode": "tree", "max_steps": 1}, tmp_path, 0, False)
    given = {"model": tiny_model_dir, "args": args, "processing_class": tokenizer}
    with pytest.raises(DataError, match="not a stream"):
        PPMTrainer(train_dataset=Dataset.from_list(ROWS).to_iterable_dataset(), **given)
    collator = PPMDataCollator(pad_token_id=tokenizer.pad_token_id)
    with pytest.raises(ConfigError, match="give no `data_collator`"):
        PPMTrainer(train_dataset=Dataset.from_list(ROWS), data_collator=collator, **given)


def test_a_classifier_with_a_forward_of_its_own_is_refused() -> None:
    from transformers import GPT2Config, GPT2ForSequenceClassification

    model = GPT2ForSequenceClassification(GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=1, num_labels=1))
    with pytest.raises(EngineError, match="GPT2ForSequenceClassification cannot score the steps"):
        classifier(model)
