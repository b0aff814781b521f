"""A PPM trained on trees, from preference rows to what a user loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from rstar_trl.errors import DataError
from rstar_trl.policy.interface import ScoreRequest
from rstar_trl.policy.ppm_scorer import PPMScorer
from rstar_trl.search.tree import Tree
from rstar_trl.training.ppm import run_ppm
from rstar_trl.training.ppm_trainer import PPMTrainer
from rstar_trl.training.step_scores import score_steps
from tests.training.test_ppm_trainer import make
from tests.training.toys import pair_rows

FAST: dict[str, Any] = {
    "mode": "tree",
    "max_steps": 60,
    "learning_rate": 1e-2,
    "per_device_train_batch_size": 16,
    "logging_steps": 60,
    "save_strategy": "no",
    "eval_fraction": 0.2,
}


@pytest.fixture(scope="module")
def ppm(
    tiny_model_dir: str, pair_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, float]]:
    folder = tmp_path_factory.mktemp("ppm")
    return folder, run_ppm(tiny_model_dir, pair_file, folder, FAST, None, seed=0)


def example_trees() -> list[Tree]:
    trees = []
    for number in range(3):
        tree = Tree(f"q{number}", "db", f"{number} show name\n")
        tree.add(0, "-- name of t\nFROM t")
        tree.add(1, "SELECT name", terminal=True)
        tree.add(1, "SELECT age", terminal=True)
        tree.add(1, "SELECT nothing", terminal=True, verdict="sql_error", error="no such column")
        trees.append(tree)
    return [*trees, Tree("blank", "db", "nothing was searched\n")]


def test_held_out_questions_are_ranked(ppm: tuple[Path, dict[str, float]]) -> None:
    metrics = ppm[1]
    assert (metrics["pairs"], metrics["eval_pairs"]) == (96, 24)
    assert (metrics["pairs_too_long"], metrics["pairs_unusable"]) == (0, 0)
    assert metrics["eval_accuracy"] > 0.9
    assert metrics["eval_accuracy_depth_2"] == metrics["eval_accuracy_step"] > 0.9
    assert metrics["eval_accuracy_final"] > 0.9


def test_the_card_tells_method_data_and_results(ppm: tuple[Path, dict[str, float]]) -> None:
    card = ModelCard.load(ppm[0] / "README.md")
    assert set(card.data.tags) >= {"trl", "rstar-trl", "ppm"}
    assert "mode `tree`" in card.text and "96 preference pairs of 48 questions." in card.text
    assert f"| accuracy | {ppm[1]['eval_accuracy']:.4f} |" in card.text
    assert "2501.04519" in card.text and "None" not in card.text.split("## Method")[0]


def test_the_ppm_is_a_plain_sequence_classifier(ppm: tuple[Path, dict[str, float]]) -> None:
    folder = str(ppm[0])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert AutoModelForSequenceClassification.from_pretrained(folder).config.num_labels == 1
    row = pair_rows(7)[1]
    classify = pipeline("text-classification", model=folder, function_to_apply="none")
    score = classify([row["prompt"] + row[side] + tokenizer.eos_token for side in ("chosen", "rejected")])
    assert score[0]["score"] > score[1]["score"]


def test_packed_step_scores_are_those_search_reads(ppm: tuple[Path, dict[str, float]]) -> None:
    folder = str(ppm[0])
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    trees = example_trees()
    found = score_steps(model, AutoTokenizer.from_pretrained(folder), trees, row_tokens=40)
    scorer = PPMScorer.load(folder)
    for tree, scores in zip(trees, found, strict=True):
        assert len(scores) == len(tree) and scores[0] is None
        ends = [node in (2, 3) for node in range(1, len(tree))]
        requests = [ScoreRequest(tree.prompt, tree.steps(node), end) for node, end in enumerate(ends, 1)]
        expected = scorer.score(requests) if requests else []
        assert scores[1:] == pytest.approx(expected, abs=1e-4)
    with pytest.raises(DataError, match="raise `row_tokens`"):
        score_steps(model, AutoTokenizer.from_pretrained(folder), trees, row_tokens=8)


def test_training_continues_from_a_checkpoint(tiny_model_dir: str, tmp_path: Path) -> None:
    rows = [row for number in range(12) for row in pair_rows(number)]
    few = {"mode": "tree", "max_steps": 6, "learning_rate": 1e-2, "save_steps": 3, "per_device_train_batch_size": 4}
    whole = make(PPMTrainer, tiny_model_dir, rows, tmp_path / "whole", save_total_limit=2, **few)
    whole.train()
    resumed = make(PPMTrainer, tiny_model_dir, rows, tmp_path / "resumed", **few)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole/checkpoints/checkpoint-3"))
    expected, found = (
        load_file(tmp_path / name / "checkpoints/checkpoint-6/model.safetensors") for name in ("whole", "resumed")
    )
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-6, rtol=1e-5)


def test_adapters_are_trained_on_trees_and_merged(tiny_model_dir: str, pair_file: Path, tmp_path: Path) -> None:
    lora = {"r": 4, "target_modules": "all-linear", "use_dora": True}
    options = {**FAST, "max_steps": 100, "gradient_checkpointing": True}
    metrics = run_ppm(tiny_model_dir, pair_file, tmp_path / "ppm", options, lora, seed=0)
    assert metrics["eval_accuracy"] > 0.9
    assert not (tmp_path / "ppm" / "adapter_config.json").exists()
    AutoModelForSequenceClassification.from_pretrained(tmp_path / "ppm")


def test_bfloat16_trains(tiny_model_dir: str, pair_file: Path, tmp_path: Path) -> None:
    metrics = run_ppm(tiny_model_dir, pair_file, tmp_path, {**FAST, "bf16": True, "max_steps": 150}, None, seed=0)
    assert metrics["eval_accuracy"] > 0.9


def test_grpo_takes_the_ppm_as_its_reward(
    ppm: tuple[Path, dict[str, float]], tiny_model_dir: str, tmp_path: Path
) -> None:
    from trl import GRPOConfig, GRPOTrainer

    args = GRPOConfig(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=8,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        logging_steps=1,
        disable_tqdm=True,
    )
    prompts = Dataset.from_list([{"prompt": pair_rows(number)[1]["prompt"]} for number in range(4)])
    policy = AutoTokenizer.from_pretrained(tiny_model_dir)
    trainer = GRPOTrainer(
        model=tiny_model_dir,
        reward_funcs=str(ppm[0]),
        args=args,
        train_dataset=prompts,
        processing_class=policy,
        reward_processing_classes=AutoTokenizer.from_pretrained(ppm[0]),
    )
    trainer.train()
    rewards = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    assert len(rewards) == 2 and all(reward == reward for reward in rewards)
