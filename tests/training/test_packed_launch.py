"""The packed trainings in several processes on the CPU: the same losses as in one, whatever shards the model."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

ROOT = Path(__file__).parents[2]
SCRIPT = """
import json, os, sys
from pathlib import Path
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer
from rstar_trl import MCTSDataCollator, PPMConfig, PPMTrainer, TreeSFTConfig, TreeSFTTrainer, trajectory_dataset
from rstar_trl.training.ppm import load_scorer
from tests.training.test_collator import ROWS
from tests.training.toys import pair_rows

torch.set_num_threads(1)
base, out, batch = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
common = dict(max_steps=3, learning_rate=1e-2, per_device_train_batch_size=batch, logging_steps=1, bf16=False,
              save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True, max_grad_norm=0,
              gradient_checkpointing=True)

def run(trainer, name):
    trainer.train()
    trainer.save_model(str(out / name))
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {"losses": losses, "processes": trainer.accelerator.num_processes,
            "type": str(trainer.accelerator.distributed_type)}

tokenizer = AutoTokenizer.from_pretrained(base)
args = PPMConfig(output_dir=str(out / "ppm-run"), mode="tree", **common)
pairs = Dataset.from_list([row for number in range(4) for row in pair_rows(number)])
scorer = load_scorer(base, tokenizer, args)
ppm = run(PPMTrainer(scorer, args, train_dataset=pairs, processing_class=tokenizer), "ppm")

args = SFTConfig(output_dir=str(out / "sft-run"), dataset_kwargs={"skip_prepare_dataset": True},
                 remove_unused_columns=False, **common)
model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
sft = run(SFTTrainer(model, args, MCTSDataCollator.for_trainer(model, args), trajectory_dataset(ROWS, tokenizer),
                     processing_class=tokenizer), "policy")
args = TreeSFTConfig(output_dir=str(out / "tree-run"), mode="tree", weighted=True, **common)
tree = run(TreeSFTTrainer(base, args, train_dataset=trajectory_dataset(ROWS, tokenizer), processing_class=tokenizer),
           "tree-policy")
if int(os.environ.get("RANK", 0)) == 0:
    (out / "found.json").write_text(json.dumps({"ppm": ppm, "sft": sft, "tree": tree}))
"""
TWO = [
    "--multi_gpu",
    "--num_processes",
    "2",
    "--num_machines",
    "1",
    "--mixed_precision",
    "no",
    "--dynamo_backend",
    "no",
]

pytestmark = pytest.mark.slow


def launch(folder: Path, base: str, options: list[str], batch: int) -> dict[str, dict]:
    folder.mkdir()
    (folder / "script.py").write_text(SCRIPT)
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", *options]
    command += ["--main_process_port", str(port), str(folder / "script.py"), base, str(folder), str(batch)]
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    if "--config_file" not in options:
        environment["ACCELERATE_USE_CPU"] = "true"  # with it DeepSpeed would be left out without a word
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-12000:]
    return json.loads((folder / "found.json").read_text())


def zero(stage: int, folder: Path) -> list[str]:
    """The accelerate config that comes with the project, told to use two processes."""
    text = (ROOT / f"accelerate_configs/zero{stage}.yaml").read_text()
    path = folder / f"zero{stage}.yaml"
    path.write_text(text.replace("num_processes: 8", "num_processes: 2").replace("bf16", '"no"'))
    return ["--config_file", str(path)]


@pytest.fixture(scope="module")
def alone(tiny_model_dir: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    options = ["--cpu", "--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no"]
    return launch(tmp_path_factory.mktemp("one") / "run", tiny_model_dir, [*options, "--dynamo_backend", "no"], 4)


@pytest.mark.parametrize("kind", ["ddp", "zero2", "zero3"])
def test_two_processes_train_as_one_does(
    kind: str, alone: dict[str, dict], tiny_model_dir: str, tmp_path: Path
) -> None:
    if kind != "ddp" and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("needs deepspeed")
    options = TWO if kind == "ddp" else zero(int(kind[-1]), tmp_path)
    found = launch(tmp_path / "run", tiny_model_dir, options, 2)
    for name, expected in alone.items():
        assert found[name]["processes"] == 2 and expected["processes"] == 1
        assert found[name]["losses"] == pytest.approx(expected["losses"], rel=1e-5)
        assert ("DEEPSPEED" in found[name]["type"]) == (kind != "ddp")
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "run/ppm").config.num_labels == 1
    AutoModelForCausalLM.from_pretrained(tmp_path / "run/policy")
