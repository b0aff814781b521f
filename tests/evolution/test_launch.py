"""Stages as processes of their own, through the real `accelerate launch`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rstar_trl.evolution.launch import StageError, launch
from rstar_trl.evolution.plan import plan
from rstar_trl.evolution.recipe import load_recipe

ROOT = Path(__file__).parents[2]
WriteRecipe = Callable[..., Path]

WHO = """\
import sys, time
from pathlib import Path
from rstar_trl.evolution.launch import Processes
from accelerate import PartialState
found = Processes.from_environment()
started = time.monotonic()
found.barrier()
if found.first:
    time.sleep(1)
found.barrier()
assert time.monotonic() - started >= 1, "the barrier did not wait"
state = PartialState()
assert (found.rank, found.world) == (state.process_index, state.num_processes)
Path(sys.argv[1], f"rank-{found.rank}").write_text(f"{found.world} {found.launched} {state.distributed_type.value}")
"""
ORPHAN = """\
import subprocess, sys, time
child = subprocess.Popen(
    [sys.executable, "-c", "import time; from rstar_trl.evolution.launch import follow_parent; follow_parent();"
     "print('up', flush=True); time.sleep(60)"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.mark.parametrize("config", ["cpu.yaml", "cpu_2.yaml"])
def test_user_error_in_a_launched_stage_reaches_the_parent(
    config: str, write_recipe: WriteRecipe, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(ROOT / "accelerate_configs" / config, tmp_path)
    assignments = [f"accelerate_config={config}", "data.train_size=20", "data.eval_size=5"]
    loaded = load_recipe(write_recipe(), assignments)
    stage = next(stage for stage in plan(loaded.recipe) if stage.name == "round-0/eval")
    with pytest.raises(StageError, match="needs round-0/policy, which is not finished") as caught:
        launch(loaded, stage)
    assert caught.value.code == 2
    if config == "cpu.yaml":
        assert "Traceback" not in capfd.readouterr().err


def test_stage_can_be_launched_from_another_thread(write_recipe: WriteRecipe) -> None:
    """Where no signal handler can be set, as in a server or a notebook's worker."""
    loaded = load_recipe(write_recipe(), ["data.train_size=20", "data.eval_size=5"])
    stage = next(stage for stage in plan(loaded.recipe) if stage.name == "round-0/eval")
    with ThreadPoolExecutor(1) as pool, pytest.raises(StageError, match="which is not finished"):
        pool.submit(launch, loaded, stage).result()


def test_two_cpu_processes_are_two_ranks_of_one_run(tmp_path: Path) -> None:
    script = tmp_path / "who.py"
    script.write_text(WHO)
    config = ROOT / "accelerate_configs/cpu_2.yaml"
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--config_file", str(config)]
    subprocess.run([*command, str(script), str(tmp_path)], check=True, timeout=120)
    assert [path.read_text() for path in sorted(tmp_path.glob("rank-*"))] == ["2 True MULTI_CPU"] * 2


def test_stage_ends_when_its_parent_is_killed() -> None:
    parent = subprocess.Popen([sys.executable, "-c", ORPHAN], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    stage = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    for _ in range(100):
        if not _alive(stage):
            return
        time.sleep(0.1)
    os.kill(stage, 9)
    pytest.fail("the stage outlived its parent by ten seconds")


def _alive(process: int) -> bool:
    """A zombie that nobody has reaped yet counts as ended."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
