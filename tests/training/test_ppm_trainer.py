from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl import RewardTrainer

from rstar_trl.errors import DataError, EngineError
from rstar_trl.training.common import arguments
from rstar_trl.training.ppm import load_scorer
from rstar_trl.training.ppm_config import PPMConfig
from rstar_trl.training.ppm_trainer import PPMTrainer, encode_side
from tests.training.toys import pair_rows

ROWS = [row for number in range(6) for row in pair_rows(number)]
PLAIN = ("prompt", "chosen", "rejected")


def make(cls: Any, model_dir: str, rows: list[dict[str, Any]], folder: Path, **options: Any) -> Any:
    args = arguments(
        PPMConfig, {"per_device_eval_batch_size": 4, "use_cpu": True, "bf16": False, **options}, folder, 0, False
    )
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    dataset = Dataset.from_list(rows)
    model = load_scorer(model_dir, tokenizer, args)
    return cls(model=model, args=args, train_dataset=dataset, eval_dataset=dataset, processing_class=tokenizer)


def by_hand(trainer: Any, rows: list[dict[str, Any]], weights: list[float], margin: float = 0.0) -> float:
    """The loss from one unpadded forward pass per side."""
    losses = []
    for row, weight in zip(rows, weights, strict=True):
        ids = [torch.tensor([encode_side(trainer.processing_class, row, side)]) for side in ("chosen", "rejected")]
        with torch.no_grad():
            chosen, rejected = (trainer.model.eval()(input_ids=i).logits.item() for i in ids)
        difference = torch.tensor(chosen - rejected - margin)
        losses.append(-weight * torch.nn.functional.logsigmoid(difference).item())
    return sum(losses) / len(losses)


def test_a_side_ends_in_its_delimiter_or_in_eos(tiny_model_dir: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    step, whole = pair_rows(1)

    def encode(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False).input_ids)

    prompt, first = step["prompt"][: step["prompt_chars"]], "-- age of t\nFROM t\n\n"
    expected = encode(prompt) + encode(first) + encode("SELECT age")
    assert encode_side(tokenizer, step, "chosen") == expected + encode("\n\n")
    assert encode_side(tokenizer, whole, "chosen") == [*expected, tokenizer.eos_token_id]


def test_weighted_loss_is_the_hand_computed_one(tiny_model_dir: str, tmp_path: Path) -> None:
    trainer = make(PPMTrainer, tiny_model_dir, ROWS, tmp_path)
    mean = sum(row["weight"] for row in ROWS) / len(ROWS)
    weights = [row["weight"] / mean for row in ROWS]
    assert trainer.train_dataset["weight"][:] == pytest.approx(weights)
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] == pytest.approx(by_hand(trainer, ROWS, weights), abs=1e-5)
    assert {"eval_accuracy_step", "eval_accuracy_final"} <= metrics.keys()


def test_unweighted_and_margin_options(tiny_model_dir: str, tmp_path: Path) -> None:
    ones = [1.0] * len(ROWS)
    flat = make(PPMTrainer, tiny_model_dir, ROWS, tmp_path, weighted=False)
    assert flat.evaluate()["eval_loss"] == pytest.approx(by_hand(flat, ROWS, ones), abs=1e-5)
    wide = make(PPMTrainer, tiny_model_dir, ROWS, tmp_path, weighted=False, use_margin=True)
    assert wide.evaluate()["eval_loss"] == pytest.approx(by_hand(wide, ROWS, ones, margin=2.0), abs=1e-5)


@pytest.mark.parametrize("options", [{}, {"center_rewards_coefficient": 0.01}])
def test_plain_rows_and_equal_weights_give_reward_trainers_loss(
    tiny_model_dir: str, tmp_path: Path, options: dict[str, Any]
) -> None:
    plain = [{name: row[name] for name in PLAIN} for row in ROWS]
    weighted = [{**row, "weight": 3.0} for row in plain]
    reference = make(RewardTrainer, tiny_model_dir, plain, tmp_path, **options)
    for rows in (plain, weighted):
        ours = make(PPMTrainer, tiny_model_dir, rows, tmp_path, **options)
        assert ours.train_dataset["chosen_ids"][:] == reference.train_dataset["chosen_ids"][:]
        assert ours.evaluate()["eval_loss"] == pytest.approx(reference.evaluate()["eval_loss"], abs=1e-7)


def test_gradients_follow_the_weights(tiny_model_dir: str, tmp_path: Path) -> None:
    """A pair of weight zero moves nothing: the gradient is that of the other pair alone, at twice its weight."""
    first, second = pair_rows(0)[0], pair_rows(1)[0]

    def gradient(rows: list[dict[str, Any]]) -> torch.Tensor:
        trainer = make(PPMTrainer, tiny_model_dir, rows, tmp_path, per_device_train_batch_size=len(rows))
        trainer.model.train()
        batch = next(iter(trainer.get_train_dataloader()))
        trainer.compute_loss(trainer.model, dict(batch)).backward()
        return trainer.model.score.weight.grad

    both = gradient([{**first, "weight": 1.0}, {**second, "weight": 0.0}])
    torch.testing.assert_close(both, gradient([first]), atol=1e-6, rtol=1e-4)


def test_padding_with_eos_is_refused(tiny_model_dir: str, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    tokenizer.pad_token = tokenizer.eos_token
    model = AutoModelForSequenceClassification.from_pretrained(tiny_model_dir, num_labels=1)
    args = arguments(PPMConfig, {"use_cpu": True, "bf16": False}, tmp_path, 0, False)
    with pytest.raises(EngineError, match="pad_token"):
        PPMTrainer(model=model, args=args, train_dataset=Dataset.from_list(ROWS), processing_class=tokenizer)


def test_useless_weights_are_refused(tiny_model_dir: str, tmp_path: Path) -> None:
    for weight in (0.0, -1.0):
        with pytest.raises(DataError, match="weights"):
            make(PPMTrainer, tiny_model_dir, [{**row, "weight": weight} for row in ROWS], tmp_path)
