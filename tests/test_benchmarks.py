"""The benchmarks run, and compare what they say they compare."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.slow


def test_packed_training_compares_trainings_of_the_same_loss(tmp_path: Path) -> None:
    small = (
        f"--sizes 1M --prompts 40 --questions 1 --trajectories 2 --lengths 128 --threads 1 --json {tmp_path}/m.jsonl"
    )
    command = [sys.executable, "benchmarks/packed_training.py", "--parts", "ppm", "sft", "growth", *small.split()]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if line.startswith("| 1M")]
    pairs, trees, *trajectories = rows[:8]
    assert pairs[6:] == trees[6:]
    losses = {row[3]: float(row[7]) for row in trajectories}
    assert losses.keys() == {"padding", "length-grouped", "packing", "collator", "tree", "tree, length-grouped"}
    assert all(loss == pytest.approx(losses["padding"], abs=3e-6) for loss in losses.values())
    assert [row[2:4] for row in rows[8:]] == [["1", "128"], ["2", "128"], ["4", "128"], ["8", "128"]]
    again = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=20)
    assert again.stdout == done.stdout, "what was measured is not measured again"
