from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, pipeline

from rstar_trl.errors import ConfigError
from rstar_trl.policy.interface import ScoreRequest
from rstar_trl.policy.ppm_scorer import PPMScorer
from rstar_trl.training.common import arguments
from rstar_trl.training.ppm import hold_out, load_scorer, run_ppm
from rstar_trl.training.ppm_config import PPMConfig
from rstar_trl.training.ppm_trainer import encode_side
from rstar_trl.training.sft import run_sft
from tests.training.toys import pair_rows

FAST: dict[str, Any] = {
    "max_steps": 150,
    "learning_rate": 1e-2,
    "per_device_train_batch_size": 32,
    "logging_steps": 150,
    "save_strategy": "no",
    "eval_fraction": 0.2,
}


@pytest.fixture(scope="module")
def ppm(
    tiny_model_dir: str, pair_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, float]]:
    folder = tmp_path_factory.mktemp("ppm")
    return folder, run_ppm(tiny_model_dir, pair_file, folder, FAST, None, seed=0)


def test_held_out_pairs_are_ranked(ppm: tuple[Path, dict[str, float]]) -> None:
    metrics = ppm[1]
    assert (metrics["pairs"], metrics["eval_pairs"]) == (96, 24)
    assert metrics["eval_accuracy"] > 0.9
    assert metrics["eval_accuracy_step"] > 0.9


def test_the_ppm_is_a_plain_sequence_classifier(ppm: tuple[Path, dict[str, float]]) -> None:
    folder = str(ppm[0])
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.config.num_labels == 1
    assert model.config.pad_token_id == tokenizer.pad_token_id != tokenizer.eos_token_id
    row = pair_rows(7)[1]
    classify = pipeline("text-classification", model=folder, function_to_apply="none")
    score = classify([row["prompt"] + row[side] + tokenizer.eos_token for side in ("chosen", "rejected")])
    assert score[0]["score"] > score[1]["score"]


def test_search_reads_the_score_where_training_put_it(ppm: tuple[Path, dict[str, float]]) -> None:
    folder = str(ppm[0])
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    scorer = PPMScorer.load(folder)
    for row in pair_rows(5):
        prompt = row["prompt"][: row["prompt_chars"]]
        steps = (row["prompt"][row["prompt_chars"] :] + row["chosen"]).split("\n\n")
        found = scorer.score([ScoreRequest(prompt, tuple(steps), row["chosen_final"])])[0]
        ids = torch.tensor([encode_side(tokenizer, row, "chosen")])
        assert found == pytest.approx(model(input_ids=ids).logits.item(), abs=1e-4)


def test_the_ppm_starts_as_the_policy_with_a_head_from_the_seed(tiny_model_dir: str, tmp_path: Path) -> None:
    def start(seed: int) -> Any:
        args = arguments(PPMConfig, {}, tmp_path, seed, False)
        return load_scorer(tiny_model_dir, AutoTokenizer.from_pretrained(tiny_model_dir), args)

    first, again, other = start(0), start(0), start(1)
    assert torch.equal(first.score.weight, again.score.weight)
    assert not torch.equal(first.score.weight, other.score.weight)
    assert 0 < first.score.weight.std() < 0.1
    policy = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32).model.state_dict()
    assert all(torch.equal(tensor, policy[name]) for name, tensor in first.model.state_dict().items())


def test_a_tokenizer_that_pads_with_eos_gets_a_pad_token(tiny_model_dir: str, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    tokenizer.pad_token = tokenizer.eos_token
    model = load_scorer(tiny_model_dir, tokenizer, arguments(PPMConfig, {}, tmp_path, 0, False))
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert model.get_input_embeddings().num_embeddings >= len(tokenizer)
    assert model.config.pad_token_id == tokenizer.pad_token_id


def test_hold_out_splits_by_question() -> None:
    rows = [{"question_id": f"q{number // 4}"} for number in range(40)]
    train, held = hold_out(rows, 0.3, seed=0)
    assert len({row["question_id"] for row in held}) == 3
    assert not {row["question_id"] for row in train} & {row["question_id"] for row in held}
    assert len(train) + len(held) == 40
    assert hold_out(rows, 0.3, seed=0) == (train, held) != hold_out(rows, 0.3, seed=1)
    assert hold_out(rows[:4], 0.9, seed=0) == (rows[:4], [])


def test_adapters_all_the_way(tiny_model_dir: str, sft_file: Path, pair_file: Path, tmp_path: Path) -> None:
    """A LoRA policy is merged to start a LoRA PPM, and that is merged into a plain model that kept what it learned."""
    lora = {"r": 4, "target_modules": "all-linear"}
    few = {"max_steps": 3, "learning_rate": 1e-2, "save_strategy": "no"}
    run_sft(tiny_model_dir, sft_file, tmp_path / "policy", few, lora, seed=0)
    assert (tmp_path / "policy" / "adapter_config.json").exists()
    run_ppm(str(tmp_path / "policy"), pair_file, tmp_path / "ppm", {**few, "max_steps": 150}, lora, seed=0)
    assert not (tmp_path / "ppm" / "adapter_config.json").exists()
    assert not any(path.is_dir() for path in (tmp_path / "ppm").iterdir())
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "ppm", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "ppm")
    scores = [
        [
            model(input_ids=torch.tensor([encode_side(tokenizer, row, side)])).logits.item()
            for side in ("chosen", "rejected")
        ]
        for number in range(12)
        for row in pair_rows(number)
    ]
    assert sum(chosen > rejected for chosen, rejected in scores) >= 20


def test_bad_options_are_named(tiny_model_dir: str, pair_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"eval_fracton.*did you mean `eval_fraction`"):
        run_ppm(tiny_model_dir, pair_file, tmp_path, {"eval_fracton": 0.1}, None, 0)
    with pytest.raises(ConfigError, match="eval_fraction"):
        run_ppm(tiny_model_dir, pair_file, tmp_path, {"eval_fraction": 1}, None, 0)
    with pytest.raises(ConfigError, match="LoraConfig: unknown key `rank`"):
        run_ppm(tiny_model_dir, pair_file, tmp_path, {}, {"rank": 8}, 0)
