from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rstar_trl.errors import StorageError
from rstar_trl.training.common import last_checkpoint, storage_errors
from rstar_trl.training.sft import run_sft

OPTIONS: dict[str, Any] = {
    "max_steps": 60,
    "learning_rate": 1e-2,
    "per_device_train_batch_size": 8,
    "save_steps": 5,
    "logging_steps": 60,
}

CHILD = """
import json, sys, torch
from pathlib import Path
from rstar_trl.training.sft import run_sft
torch.set_num_threads(1)
model, rows, out, options = sys.argv[1:]
run_sft(model, Path(rows), Path(out), json.loads(options), None, seed=0)
"""


def checkpoint(folder: Path, step: int, state: str | None = None, weights: bytes | None = None) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    torch.save({"step": step}, path / "optimizer.pt")
    if weights is not None:
        (path / "optimizer.pt").write_bytes(weights)
    if state is not None:
        (path / "trainer_state.json").write_text(state)
    return path


def test_checkpoints_cut_short_are_skipped_and_removed(tmp_path: Path) -> None:
    whole = checkpoint(tmp_path, 9, json.dumps({"global_step": 9}))
    checkpoint(tmp_path, 10, json.dumps({"global_step": 10}), weights=b"PK\x03\x04 torn")
    checkpoint(tmp_path, 11, '{"global_step": 1')
    checkpoint(tmp_path, 12)
    assert last_checkpoint(tmp_path) == str(whole)
    assert len(list(tmp_path.iterdir())) == 4
    last_checkpoint(tmp_path, clean=True)
    assert list(tmp_path.iterdir()) == [whole]
    assert last_checkpoint(tmp_path / "missing") is None


def test_training_resumes_after_kill(tiny_model_dir: str, sft_file: Path, tmp_path: Path) -> None:
    """Killed in the middle, the same call ends with the weights of an undisturbed run."""
    killed = tmp_path / "killed"
    arguments = [tiny_model_dir, str(sft_file), str(killed), json.dumps({**OPTIONS, "save_steps": 5})]
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        while last_checkpoint(killed / "checkpoints") is None:
            assert child.poll() is None, child.stdout.read().decode() if child.stdout else ""
            time.sleep(0.005)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert not (killed / "model.safetensors").exists()
    (killed / "checkpoints" / "checkpoint-59").mkdir()

    resumed = run_sft(tiny_model_dir, sft_file, killed, OPTIONS, None, seed=0)
    whole = run_sft(tiny_model_dir, sft_file, tmp_path / "whole", {**OPTIONS, "save_strategy": "no"}, None, seed=0)
    assert resumed["steps"] == whole["steps"] == 60
    # The trainer averages the loss over all steps but sums only those of this process: less means it did resume.
    assert resumed["train_loss"] < 0.95 * whole["train_loss"]
    expected, found = (load_file(folder / "model.safetensors") for folder in (tmp_path / "whole", killed))
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-6, rtol=1e-5)


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="free space"), storage_errors(tmp_path):
        raise OSError(28, "No space left on device")
    with pytest.raises(ZeroDivisionError), storage_errors(tmp_path):
        _ = 1 / 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_torch_reports_a_full_disk_in_other_words(tmp_path: Path) -> None:
    with pytest.raises(StorageError), storage_errors(tmp_path), open("/dev/full", "wb") as file:
        torch.save({"weight": torch.zeros(1_000_000)}, file)
