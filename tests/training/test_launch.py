"""Both trainings as `accelerate launch` runs them, in two processes on the CPU."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

SCRIPT = """
import json, os, sys
from pathlib import Path
import torch
from rstar_trl.training.ppm import run_ppm
from rstar_trl.training.sft import run_sft

torch.set_num_threads(1)
model, sft_file, pair_file, out = sys.argv[1], *map(Path, sys.argv[2:])
options = {"max_steps": 4, "per_device_train_batch_size": 4, "save_steps": 2, "eval_fraction": 0.2}
ppm = run_ppm(model, pair_file, out / "ppm", options, None, seed=0)
del options["eval_fraction"]
sft = run_sft(model, sft_file, out / "policy", options, None, seed=0)
(out / f"rank-{os.environ['RANK']}.json").write_text(json.dumps([sft, ppm]))
"""


def test_two_processes_train_one_model(tiny_model_dir: str, sft_file: Path, pair_file: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    (tmp_path / "script.py").write_text(SCRIPT)
    launch = "--multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no"
    command = [sys.executable, "-m", "accelerate.commands.launch", *launch.split(), "--main_process_port", str(port)]
    script = [str(tmp_path / "script.py"), tiny_model_dir, str(sft_file), str(pair_file), str(tmp_path)]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([*command, *script], env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    for rank in (0, 1):
        sft, ppm = json.loads((tmp_path / f"rank-{rank}.json").read_text())
        assert sft["num_processes"] == ppm["num_processes"] == 2
        assert sft["steps"] == ppm["steps"] == 4
    AutoModelForCausalLM.from_pretrained(tmp_path / "policy")
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "ppm").config.num_labels == 1
    assert not list(tmp_path.glob("*/checkpoints"))
