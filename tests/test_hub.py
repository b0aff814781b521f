"""Pushing a run: what goes out, what stays at home, what the cards say. Nothing leaves this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from huggingface_hub import DatasetCard, ModelCard

from rstar_trl.errors import RunError
from rstar_trl.evolution.manifest import Manifest, write
from rstar_trl.hub import uploads
from rstar_trl.io import write_jsonl, write_text
from tests import hub_server

ROOT = Path(__file__).parents[1]
GREEDY = {"execution_accuracy": 0.625, "tokens_per_question": 31.0, "questions": 40}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run of two rounds as far as a push looks at it."""
    recipe = {
        "name": "shop",
        "output_dir": str(tmp_path / "run"),
        "model": {"name_or_path": "org/base-1b"},
        "prompt": {"sample_values": 0},
        "rounds": [{"guide": "reward"}, {"guide": "ppm"}],
    }
    folder = tmp_path / "run"
    write_text(folder / "recipe.yaml", yaml.safe_dump(recipe))
    for number in (0, 1, 2):
        for kind in ("policy", "ppm") if number == 1 else ("policy",):
            made = folder / f"round-{number}/{kind}"
            write_text(made / "config.json", "{}")
            write_text(made / "model.safetensors", f"weights {number} {kind}")
            write_text(made / "training_args.bin", "pickle")
            write_text(made / "started.json", "{}")
            write_text(made / "checkpoints/optimizer.pt", "state")
            write_text(made / "README.md", '---\ntags: [ppm]\n---\n\npipeline(model="ppm")\n')
            if number < 2:
                write(made, Manifest(kind, {}, {}, {}, {}, 0, 1.0, {"torch": "2.13.0"}))
    write(folder / "round-1/eval", Manifest("eval", {}, {}, {}, {"greedy": GREEDY}, 0, 1.0))
    write_jsonl(folder / "round-1/data/sft.jsonl", [{"prompt": "p", "completion": "c"}] * 3)
    write_jsonl(folder / "round-1/data/preference.jsonl", [])
    return folder


def push(hub: hub_server.Hub, run: Path, *options: str) -> subprocess.CompletedProcess[str]:
    # The client reads the Hub's address when it is imported.
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_secret"}
    environment.pop("HF_HUB_OFFLINE", None)
    command = [sys.executable, "-m", "rstar_trl", "push", str(run), *options]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_push_sends_models_and_data_with_cards_and_keeps_the_rest_at_home(run: Path) -> None:
    names = ("--policy", "me/policy", "--ppm", "me/ppm", "--dataset", "me/trees", "--private")
    with hub_server.running() as hub:
        done = push(hub, run, *names)
        assert done.returncode == 0, done.stderr[-3000:]
        assert set(hub.repos) == {"model/me/policy", "model/me/ppm", "dataset/me/trees"} and hub.commits == 3
        assert all(hub.private.values())
    assert set(hub.repos["model/me/policy"]) == {"config.json", "model.safetensors", "README.md"}
    assert hub.repos["model/me/policy"]["model.safetensors"] == b"weights 1 policy"
    assert b'model="me/ppm"' in hub.repos["model/me/ppm"]["README.md"]
    assert set(hub.repos["dataset/me/trees"]) == {"sft.jsonl", "preference.jsonl", "README.md"}
    assert "hf_secret" not in done.stdout + done.stderr


@pytest.mark.parametrize("status", [401, 403])
def test_a_hub_that_refuses_is_one_sentence(run: Path, status: int) -> None:
    with hub_server.running() as hub:
        hub.refuse = status
        done = push(hub, run, "--policy", "me/policy")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "me/policy could not be pushed" in done.stderr and "hf auth login" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and "hf_secret" not in done.stderr


def test_a_hub_that_is_not_there_is_one_sentence(run: Path) -> None:
    done = push(hub_server.Hub(url="http://127.0.0.1:9"), run, "--policy", "me/policy")
    assert done.returncode == 2 and "Traceback" not in done.stderr and "me/policy could not be pushed" in done.stderr


def test_cards_say_how_and_how_well(run: Path) -> None:
    policy, dataset = uploads(run, policy="me/policy", dataset="me/trees")
    card = ModelCard(policy.card)
    assert card.data.base_model == "org/base-1b" and card.data.library_name == "transformers"
    for fact in ("`shop`, round 1", "| greedy | 62.5 | 31 |", "bag_ordered", "torch 2.13.0", "`sample_values: 0`"):
        assert fact in card.text
    data = DatasetCard(dataset.card)
    assert [each["config_name"] for each in data.data.to_dict()["configs"]] == ["sft"]
    assert "| `sft` | 3 |" in data.text and "| `preference` | 0 |" in data.text


def test_a_card_names_no_local_folder_as_its_base(run: Path) -> None:
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    write_text(run / "recipe.yaml", yaml.safe_dump({**recipe, "model": {"from_scratch": {"architecture": "llama"}}}))
    (policy,) = uploads(run, policy="me/policy")
    assert ModelCard(policy.card).data.base_model is None and "random weights (`llama`)" in policy.card


def test_what_is_not_there_is_refused_before_anything_is_sent(run: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is no run folder"):
        uploads(tmp_path, policy="me/policy")
    with pytest.raises(RunError, match="round 2 not finished"):
        uploads(run, policy="me/policy", number=2)
    with pytest.raises(RunError, match="no finished PPM up to round 0"):
        uploads(run, policy="me/policy", ppm="me/ppm", number=0)
    assert uploads(run) == []
