"""A whole run in miniature: killed, launched in two processes, and given twice.

Real stages on a real database and a model small enough to learn forty questions by heart in seconds.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rstar_trl.io import read_json, read_jsonl

ROOT = Path(__file__).parents[2]
RECIPE = """\
name: miniature
output_dir: {folder}/run
model:
  # A resumed search batches other trees together; in float32 that alone draws about one token in 10,000 differently.
  dtype: float64
  from_scratch:
    architecture: llama
    vocab_size: 700
    hidden_size: 32
    num_hidden_layers: 2
    num_attention_heads: 4
    num_key_value_heads: 2
    intermediate_size: 64
    max_position_embeddings: 512
    initializer_range: 0.08
data: {databases: [music], train_size: 40, eval_size: 10, label_fraction: 1.0}
prompt: {show_schema: false, sample_values: 0, value_hints: 2, instructions: false}
search: {num_candidates: 6, simulations: 6, max_depth: 8, max_step_tokens: 40, trees_in_flight: 4}
sft: &training
  max_steps: 200
  per_device_train_batch_size: 8
  learning_rate: 1.0e-2
  lr_scheduler_type: cosine
  save_strategy: steps
  save_steps: 5
  save_total_limit: 2
  gradient_checkpointing: false
  disable_tqdm: true
ppm: {<<: *training, max_steps: 40, learning_rate: 1.0e-3}
evaluation: {rounds: last, questions: 4, methods: [greedy]}
rounds:
  - guide: reward
    sft: {max_steps: 40}
"""
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
PATIENCE = 240
"""Seconds a command may take on a busy machine."""


def write(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.replace("{folder}", str(folder)))
    return path


def begin(recipe: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "rstar_trl", "evolve", str(recipe), "--in-process", *options]
    log = open(recipe.parent / "log", "a")  # noqa: SIM115
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=log, stderr=log, text=True)


def finish(process: subprocess.Popen[str], recipe: Path) -> None:
    assert process.wait(PATIENCE) == 0, (recipe.parent / "log").read_text()[-3000:]


def kill_when(recipe: Path, reached: Callable[[Path], bool]) -> None:
    """Gives the command, and kills it without warning once the run folder has come so far."""
    process = begin(recipe)
    started = time.monotonic()
    try:
        while not reached(recipe.parent / "run"):
            assert process.poll() is None, (recipe.parent / "log").read_text()[-3000:]
            assert time.monotonic() - started < PATIENCE
            time.sleep(0.002)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def has_checkpoint(folder: Path) -> bool:
    return any((folder / "checkpoints").glob("checkpoint-*/trainer_state.json"))


def trees(folder: Path) -> dict[str, dict[str, Any]]:
    rows = [row for path in sorted(folder.glob("trees-*.jsonl")) for row in read_jsonl(path)[0]]
    assert len({row["question_id"] for row in rows}) == len(rows), "a question was searched twice"
    return {row["question_id"]: row for row in rows}


def assert_same_trees(found: dict[str, dict[str, Any]], expected: dict[str, dict[str, Any]]) -> None:
    """Equal in everything but time; what the model computes may differ in the last digits, with its batches."""
    rounded = ("logprob", "prior", "value")
    assert found.keys() == expected.keys()
    for name, tree in found.items():
        other = expected[name]
        assert {k: v for k, v in tree.items() if k not in (*rounded, "seconds")} == {
            k: v for k, v in other.items() if k not in (*rounded, "seconds")
        }
        for column in ("logprob", "prior"):
            assert tree[column] == pytest.approx(other[column], abs=1e-3)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing happened to."""
    recipe = write(tmp_path_factory.mktemp("undisturbed"))
    finish(begin(recipe), recipe)
    return recipe.parent


def test_the_miniature_is_worth_testing_with(undisturbed: Path) -> None:
    """The tests below prove nothing where search finds nothing."""
    found = read_json(undisturbed / "run/round-1/search/manifest.json")["metrics"]
    assert 5 < found["solved"] < found["questions"] == 40
    assert lines(undisturbed / "run/round-1/data/preference.jsonl") > 10
    assert "skipped" not in read_json(undisturbed / "run/round-1/ppm/manifest.json")["metrics"]


def test_killed_three_times_the_run_ends_the_same(undisturbed: Path, tmp_path: Path) -> None:
    """In the middle of search, of SFT and of PPM training; the same command goes on each time."""
    recipe, expected = write(tmp_path / "killed"), undisturbed / "run"
    run = recipe.parent / "run"
    # What comes before is taken over: it is not what is killed.
    shutil.copytree(expected, run, ignore=shutil.ignore_patterns("round-1"))

    kill_when(recipe, lambda run: lines(run / "round-1/search/trees-0.jsonl") >= 9)
    searched = lines(run / "round-1/search/trees-0.jsonl")
    assert 9 <= searched < 40 and not (run / "round-1/search/manifest.json").exists()
    kept = (run / "round-1/search/trees-0.jsonl").read_bytes()

    kill_when(recipe, lambda run: has_checkpoint(run / "round-1/policy"))
    assert not (run / "round-1/policy/manifest.json").exists()
    assert (run / "round-1/search/trees-0.jsonl").read_bytes().startswith(kept[: kept.rindex(b"\n") + 1])
    assert_same_trees(trees(run / "round-1/search"), trees(expected / "round-1/search"))

    kill_when(recipe, lambda run: has_checkpoint(run / "round-1/ppm"))
    assert not (run / "round-1/ppm/manifest.json").exists()

    finish(begin(recipe), recipe)
    for name in ("sft", "preference"):
        path = f"round-1/data/{name}.jsonl"
        assert (run / path).read_bytes() == (expected / path).read_bytes()
    for name in ("policy", "ppm"):
        weights, others = (load_file(folder / f"round-1/{name}/model.safetensors") for folder in (run, expected))
        for key, tensor in others.items():
            torch.testing.assert_close(weights[key], tensor, atol=1e-4, rtol=1e-3)
        assert not (run / f"round-1/{name}/checkpoints").exists()


def test_a_run_trains_its_ppm_on_whole_trees(undisturbed: Path, tmp_path: Path) -> None:
    recipe = write(tmp_path / "trees")
    run = recipe.parent / "run"
    shutil.copytree(undisturbed / "run", run)
    finish(
        begin(recipe, "--restart-from", "round-1/ppm", "--set", "ppm.mode=tree", "--set", "ppm.max_steps=8"), recipe
    )
    by_trees, by_pairs = (read_json(f / "round-1/ppm/manifest.json")["metrics"] for f in (run, undisturbed / "run"))
    assert by_trees["pairs"] == by_pairs["pairs"] and by_trees["steps"] == 8
    assert by_trees["pairs_unusable"] == 0


def test_given_twice_the_second_run_does_nothing(undisturbed: Path) -> None:
    def made() -> dict[str, int]:
        files = (undisturbed / "run").rglob("*")
        surface = ("recipe.yaml", "report.json", "table.txt")
        return {str(path): path.stat().st_mtime_ns for path in files if path.is_file() and path.name not in surface}

    before = made()
    table = (undisturbed / "run/table.txt").read_text()
    recipe = undisturbed / "recipe.yaml"
    finish(begin(recipe), recipe)
    assert made() == before
    assert (undisturbed / "run/table.txt").read_text() == table
    said = (undisturbed / "log").read_text()
    manifests = list((undisturbed / "run").rglob("manifest.json"))
    assert said.count("finished before, kept") == len(manifests)


def test_two_processes_search_once_and_train_one_model(undisturbed: Path, tmp_path: Path) -> None:
    recipe = write(tmp_path / "launched")
    run = recipe.parent / "run"
    shutil.copytree(undisturbed / "run", run, ignore=shutil.ignore_patterns("round-1"))
    config = ROOT / "accelerate_configs/cpu_2.yaml"
    launch = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--config_file", str(config)]
    for stage in ("search", "sft", "ppm"):
        command = [*launch, "-m", "rstar_trl", stage, "--config", str(recipe), "--round", "1"]
        done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 0, done.stderr[-3000:]

    shares = [trees_of(run / f"round-1/search/trees-{rank}.jsonl") for rank in (0, 1)]
    assert shares[0] and shares[1] and not shares[0] & shares[1]
    assert_same_trees(trees(run / "round-1/search"), trees(undisturbed / "run/round-1/search"))
    for name in ("search", "policy", "ppm"):
        manifest = json.loads((run / f"round-1/{name}/manifest.json").read_text())
        assert manifest["metrics"]["num_processes"] == 2
    for name in ("policy", "ppm"):
        assert len(list((run / f"round-1/{name}").rglob("*.safetensors"))) == 1
    path = "round-1/data/preference.jsonl"
    assert (run / path).read_bytes() == (undisturbed / "run" / path).read_bytes()


def test_a_cold_start_learns_what_a_stronger_model_answers_right(undisturbed: Path, tmp_path: Path) -> None:
    """The stronger model is another run's policy; not one label is learned from."""
    recipe = write(tmp_path / "few_shot")
    run = recipe.parent / "run"
    shutil.copytree(undisturbed / "run", run, ignore=shutil.ignore_patterns("round-*"))
    stronger = [f"few_shot={{model: {undisturbed}/run/round-0/policy, examples: 0, questions: 30}}", "sft.max_steps=2"]
    options = [word for each in ("bootstrap=few_shot", *stronger) for word in ("--set", each)]
    for stage in ("search", "sft"):
        command = [sys.executable, "-m", "rstar_trl", stage, "--config", str(recipe), "--round", "0", *options]
        done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 0, done.stderr[-3000:]
    searched = read_json(run / "round-0/search/manifest.json")["metrics"]
    assert searched["questions"] == 30 and 3 < searched["solved"] == searched["solved_so_far"]
    rows, found = read_jsonl(run / "round-0/data/sft.jsonl")[0], trees(run / "round-0/search")
    assert {row["question_id"] for row in rows} == {name for name, tree in found.items() if 1.0 in tree["reward"]}
    assert read_json(run / "round-0/policy/manifest.json")["metrics"]["steps"] == 2


def trees_of(path: Path) -> set[str]:
    return {row["question_id"] for row in read_jsonl(path)[0]}
