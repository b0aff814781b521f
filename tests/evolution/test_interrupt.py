"""Ctrl-C: real commands, real signals to their process group, and a served policy that holds its answers back.

So the questions in flight are those a test wants, and nothing but the second signal can end what is held.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from rstar_trl.errors import Interrupted
from rstar_trl.evolution.interrupt import ECHO, WORD, draining, passing_on
from rstar_trl.evolution.launch import Processes
from rstar_trl.io import read_jsonl
from tests.openai_server import Response, Server, completion, serving
from tests.scripted import make_database

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
QUESTIONS = 12
PATIENCE = 120
"""Seconds a command may take on a busy machine."""

SETTINGS = """\
name: interrupted
output_dir: {folder}/run
data: {source: jsonl, path: {folder}/data}
search: {num_candidates: 2, simulations: 4, trees_in_flight: 3, answer: majority}
evaluation: {methods: [greedy, mcts]}
"""
SERVED = "engine: {kind: openai, urls: [{url}], model: toy, retries: 0}\n"
COLD_START = """\
engine: {kind: openai, urls: [{url}], endpoint: chat, retries: 0}
model: {name_or_path: nowhere}
bootstrap: few_shot
few_shot: {model: toy, examples: 0}
"""


class Policy:
    """Draws steps by a request's seed; holds answers back from the `after`-th on until it is released."""

    def __init__(self, after: float = float("inf")):
        self.after, self.asked = after, 0
        self.release = threading.Event()
        self.lock = threading.Lock()

    def __call__(self, body: dict[str, Any]) -> Response:
        with self.lock:
            self.asked += 1
            held = self.asked > self.after
        if held:
            self.release.wait(PATIENCE)
        chat = "messages" in body
        begun = len(body["messages"]) > 1 if chat else not body["prompt"].endswith("?\n")
        options = ["SELECT name", "SELECT age"] if begun else ["FROM singer", "FROM concert"]
        texts = random.Random(body["seed"]).choices(options, k=body["n"])
        answer = completion(*texts, stop_reason=None if begun else "\n\n")
        for choice in answer["choices"] if chat else ():
            choice["message"] = {"role": "assistant", "content": choice.pop("text")}
        return Response(answer)


def questions_asked(server: Server) -> set[str]:
    return {found[1] for body in server.bodies if (found := re.search(r"names (\d+)\?", json.dumps(body)))}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes a recipe for a server; `config` names the accelerate config of its stages."""
    (tmp_path / "data/databases").mkdir(parents=True)
    make_database(tmp_path / "data/databases/music.sqlite")
    for split in ("train", "eval"):
        rows = [
            {"db_id": "music", "question": f"names {i}?", "gold_sql": "SELECT name FROM singer"}
            for i in range(QUESTIONS)
        ]
        (tmp_path / f"data/{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def recipe(server: Server, run: str, kind: str = SERVED, config: str | None = None) -> Path:
        path = tmp_path / f"{run}.yaml"
        text = SETTINGS + kind + (f"accelerate_config: {ROOT}/accelerate_configs/{config}\n" if config else "")
        text = text.replace("{folder}/run", str(tmp_path / run)).replace("{folder}", str(tmp_path))
        path.write_text(text.replace("{url}", server.url))
        return path

    return recipe


class Command:
    """A command in a process group of its own, as a terminal starts it."""

    def __init__(self, *arguments: str | Path):
        command = [sys.executable, "-m", "rstar_trl", *map(str, arguments)]
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, process_group=0
        )
        self.said = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def interrupt(self) -> None:
        os.killpg(self.process.pid, signal.SIGINT)

    def until(self, condition: Callable[[], bool]) -> None:
        started = time.monotonic()
        while not condition():
            assert self.process.poll() is None and time.monotonic() - started < PATIENCE, self.said[-3000:]
            time.sleep(0.01)

    def end(self) -> int:
        code = self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return code

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said += line.decode()


def trees(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Every tree of a folder by file kind and question, without its time; fails when there are two."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for path in sorted(folder.rglob("*-[0-9].jsonl")):
        for row in read_jsonl(path)[0] if not path.name.startswith("seconds") else ():
            key = path.name.partition("-")[0], row["question_id"]
            assert key not in found
            found[key] = {**row, "seconds": 0.0}
    return found


def run(*arguments: str | Path) -> None:
    command = Command(*arguments)
    assert command.end() == 0, command.said


@pytest.mark.parametrize(
    ("kind", "config", "arguments"),
    [
        (SERVED, None, ("evolve", "--in-process")),
        (SERVED, "cpu.yaml", ("evolve",)),
        (SERVED, "cpu_2.yaml", ("evolve",)),
        (COLD_START, None, ("search", "--round", "0")),
    ],
    ids=["evolve-in-process", "evolve-launches-one", "evolve-launches-two", "search"],
)
def test_first_interrupt_finishes_what_is_in_flight_and_the_same_command_goes_on(
    kind: str, config: str | None, arguments: Sequence[str], write: Callable[..., Path], tmp_path: Path
) -> None:
    alone = ("search", "--round", "0") if kind == COLD_START else ("evolve", "--in-process")
    with serving(Policy()) as server:
        run(*alone, write(server, "whole", kind))
    expected = trees(tmp_path / "whole")

    policy = Policy(after=6)
    with serving(policy) as server:
        command = Command(*arguments, write(server, "broken", kind, config))
        command.until(lambda: policy.asked >= 9)
        begun = len(trees(tmp_path / "broken"))
        command.interrupt()
        command.until(lambda: "the questions in flight are finished first" in command.said)
        policy.release.set()
        assert command.end() == 130, command.said
        asked = questions_asked(server)
    left = trees(tmp_path / "broken")
    assert {name.rpartition("-")[2] for _, name in left} == asked and begun < len(left) < QUESTIONS
    assert left == {key: expected[key] for key in left}
    assert "Traceback" not in command.said
    assert command.said.count("finished work is kept, give the same command again to go on") == 1

    with serving(Policy()) as server:
        run(*alone, write(server, "broken", kind))
        assert questions_asked(server) and trees(tmp_path / "broken") == expected


@pytest.mark.parametrize("config", [None, "cpu_2.yaml"], ids=["in-process", "two-launched"])
def test_second_interrupt_stops_at_once(config: str | None, write: Callable[..., Path], tmp_path: Path) -> None:
    """Nothing that is held is ever answered."""
    policy = Policy(after=6)
    with serving(policy) as server:
        recipe = write(server, "run", config=config)
        command = Command("evolve", recipe, *([] if config else ["--in-process"]))
        command.until(lambda: policy.asked >= 9)
        command.interrupt()
        command.until(lambda: "the questions in flight are finished first" in command.said)
        time.sleep(ECHO + 0.2)
        finished = trees(tmp_path / "run")
        assert command.process.poll() is None
        started = time.monotonic()
        command.interrupt()
        assert command.end() == 130, command.said
        assert time.monotonic() - started < 20
        assert trees(tmp_path / "run") == finished
        policy.release.set()
    assert "finished work is kept" in command.said


# --- the handler -----------------------------------------------------------------------------------------------------

ALONE = Processes(0, 1, launched=False)


@pytest.fixture(autouse=True)
def handler_is_put_back() -> Any:
    before = signal.getsignal(signal.SIGINT)
    yield
    assert signal.getsignal(signal.SIGINT) is before


def test_first_signal_asks_and_a_later_one_interrupts() -> None:
    with pytest.raises(KeyboardInterrupt) as caught, draining(ALONE) as stop:
        assert not stop()
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert stop(), "a wrapper that passes on what the terminal has sent does not make it two"
        time.sleep(ECHO + 0.05)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("the second did not interrupt")
    assert not isinstance(caught.value, Interrupted)


def test_signal_that_nobody_asked_about_is_not_lost() -> None:
    with pytest.raises(Interrupted), draining(ALONE):
        signal.raise_signal(signal.SIGINT)


def test_outside_the_main_thread_nothing_changes() -> None:
    seen: list[Any] = []

    def in_thread() -> None:
        with draining(ALONE) as stop:
            seen.extend([signal.getsignal(signal.SIGINT), stop()])

    thread = threading.Thread(target=in_thread)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGINT), False]


def test_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with draining(ALONE) as stop:
            signal.raise_signal(signal.SIGINT)
            assert not stop()
    finally:
        signal.signal(signal.SIGINT, before)


def test_process_whose_launcher_does_not_wait_stops_at_once() -> None:
    with pytest.raises(KeyboardInterrupt), draining(Processes(0, 1, launched=True)):
        signal.raise_signal(signal.SIGINT)
        pytest.fail("it went on")


def test_parent_asks_a_stage_that_searches_and_ends_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt), passing_on(tmp_path):
        signal.raise_signal(signal.SIGINT)
        pytest.fail("the stage trains, and was not ended")
    monkeypatch.setenv(WORD, str(tmp_path))
    with draining(Processes(0, 1, launched=True)) as stop, passing_on(tmp_path) as asked:
        assert not stop() and not asked()
        signal.raise_signal(signal.SIGINT)
        assert stop() and asked()
    with pytest.raises(KeyboardInterrupt), passing_on(tmp_path):
        signal.raise_signal(signal.SIGINT)
