"""One queue for several processes: shared in proportion, given back by the dead, every question once.

The processes are real; only the policy is scripted, and as slow as a test wants it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rstar_trl.data.question import Question
from rstar_trl.errors import RunError
from rstar_trl.io import append_jsonl, read_jsonl
from rstar_trl.search.queue import Queue, SharedQueue, drop_repeats
from rstar_trl.search.tree import Tree

ROOT = Path(__file__).parents[2]
QUESTIONS = [Question(f"q{i}", "music", f"names {i}?") for i in range(12)]
TWO = str(ROOT / "accelerate_configs/cpu_2.yaml")
LAUNCH = ["-m", "accelerate.commands.accelerate_cli", "launch", "--config_file", TWO]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
PATIENCE = 120
"""Seconds a process may take on a busy machine."""


class Place:
    """A process among `world` that the test plays in turn."""

    def __init__(self, rank: int, world: int):
        self.rank, self.world = rank, world

    def barrier(self) -> None:
        pass


def queue(folder: Path, rank: int) -> SharedQueue:
    return SharedQueue(folder, Place(rank, 2), QUESTIONS)


def ids(questions: Sequence[Question]) -> list[str]:
    return [question.id for question in questions]


def finish(queue: Queue, question: Question) -> None:
    queue.done(Tree(question.id, "music", "p", generated_tokens=2))


def test_a_process_alone_takes_its_questions_in_order() -> None:
    with Queue(QUESTIONS) as alone:
        assert alone.wait() and list(alone) == QUESTIONS
        finish(alone, QUESTIONS[0])
        assert not alone.wait() and alone.totals == (1, 0, 0, 2)


def test_no_question_is_taken_twice_and_none_is_left(tmp_path: Path) -> None:
    taken: list[str] = []
    with queue(tmp_path / "claims", 0) as first, queue(tmp_path / "claims", 1) as second:
        while first.wait():
            for each in (first, second):
                for question in each:
                    taken.append(question.id)
                    finish(each, question)
        assert not second.wait()
        assert first.totals == second.totals == (12, 0, 0, 24)
    assert sorted(taken) == sorted(ids(QUESTIONS))


def test_nobody_hoards_what_others_could_search(tmp_path: Path) -> None:
    """Each takes its part of what is left, and more as soon as it has finished some."""
    with queue(tmp_path / "claims", 0) as first, queue(tmp_path / "claims", 1) as second:
        held = list(first)
        assert ids(held) == ["q0", "q2", "q4", "q6"]
        assert second.wait()
        assert ids(list(second)) == ["q1", "q3", "q5"]
        assert list(first) == []
        for question in held:
            finish(first, question)
        assert first.wait()
        assert len(list(first)) == 2


def test_a_process_that_fails_gives_its_questions_back_at_once(tmp_path: Path) -> None:
    with queue(tmp_path / "claims", 0) as first:
        with pytest.raises(ValueError, match="engine"), queue(tmp_path / "claims", 1) as second:
            assert len(list(second)) == 4
            raise ValueError("engine")
        taken = []
        with pytest.raises(RunError, match="process 1 of this run is gone"):
            while first.wait():
                for question in first:
                    taken.append(question.id)
                    finish(first, question)
    assert sorted(taken) == sorted(ids(QUESTIONS))


def test_one_process_that_is_asked_to_stop_stops_all(tmp_path: Path) -> None:
    asked: list[int] = []
    folder = tmp_path / "claims"
    stopping = SharedQueue(folder, Place(0, 2), QUESTIONS, stop=lambda: bool(asked))
    with stopping as first, queue(folder, 1) as second:
        held = next(first)
        asked.append(1)
        assert list(first) == [] and not first.wait()
        finish(first, held)
        assert not second.wait() and list(second) == [], "the other hears of it before it waits or takes more"


def test_a_process_alone_stops_between_two_questions() -> None:
    asked: list[int] = []
    with Queue(QUESTIONS, stop=lambda: bool(asked)) as alone:
        assert alone.wait() and next(alone) == QUESTIONS[0]
        asked.append(1)
        assert list(alone) == [] and not alone.wait()


def test_repeats_go_and_the_first_tree_stays(tmp_path: Path) -> None:
    files = [tmp_path / "trees-0.jsonl", tmp_path / "trees-1.jsonl"]
    for place, name in ((0, "a"), (0, "b"), (1, "b"), (1, "c")):
        append_jsonl(files[place], {"question_id": name, "of": place})
    untouched = files[0].read_bytes()
    assert drop_repeats(files) == 1 and drop_repeats(files) == 0
    assert files[0].read_bytes() == untouched
    assert read_jsonl(files[1])[0] == [{"question_id": "c", "of": 1}]


# --- real processes --------------------------------------------------------------------------------------------------


def begin(folder: Path, database: Path, launcher: Sequence[str] = (), **settings: Any) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    settings = {"folder": str(folder), "database": str(database), **settings}
    command = [sys.executable, *launcher, "-m", "tests.search.queue_process", json.dumps(settings)]
    # A group of its own, as a terminal gives each command: Ctrl-C is a signal to the whole group.
    return subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True, process_group=0)


def end(process: subprocess.Popen[str], code: int = 0) -> str:
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == code, said[-3000:]
    return said


def written(folder: Path, rank: int) -> int:
    path = folder / f"trees-{rank}.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def until_written(folder: Path, rank: int, count: int, process: subprocess.Popen[str]) -> None:
    started = time.monotonic()
    while written(folder, rank) < count:
        assert process.poll() is None and time.monotonic() - started < PATIENCE
        time.sleep(0.005)


def trees(folder: Path) -> dict[str, dict[str, Any]]:
    """The trees without their times; fails when a question has two."""
    rows = [row for path in sorted(folder.glob("trees-*.jsonl")) for row in read_jsonl(path)[0]]
    assert len({row["question_id"] for row in rows}) == len(rows)
    return {row["question_id"]: {**row, "seconds": 0.0} for row in rows}


@pytest.fixture(scope="module")
def expected(small_database: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What one process finds."""
    folder = tmp_path_factory.mktemp("alone")
    end(begin(folder, small_database))
    assert not (folder / "claims").exists()
    found = trees(folder)
    assert len(found) == 24 and len({json.dumps(tree["reward"]) for tree in found.values()}) > 1
    return found


def test_a_slow_process_does_not_hold_the_others(
    small_database: Path, tmp_path: Path, expected: dict[str, dict[str, Any]]
) -> None:
    """Four times as slow, it searches about a fifth; and the trees are those of one process."""
    both = [begin(tmp_path, small_database, rank=r, world=2, delay=d) for r, d in ((0, 0.08), (1, 0.02))]
    for process in both:
        end(process)
    assert trees(tmp_path) == expected
    slow, fast = (written(tmp_path, rank) for rank in (0, 1))
    assert slow + fast == 24 and 1 <= slow <= 8
    assert not (tmp_path / "claims").exists()


def test_what_a_killed_process_held_is_searched_by_the_others(
    small_database: Path, tmp_path: Path, expected: dict[str, dict[str, Any]]
) -> None:
    first, killed, third = (
        begin(tmp_path, small_database, rank=rank, world=3, delay=0.01, lease=1.0) for rank in range(3)
    )
    until_written(tmp_path, 1, 1, killed)
    killed.kill()
    end(killed, -9)
    for survivor in (first, third):
        assert "process 1 of this run is gone" in end(survivor, 2)
    assert trees(tmp_path) == expected
    assert written(tmp_path, 1) < 8


def test_resumed_by_one_process_and_then_by_two_the_trees_are_the_same(
    small_database: Path, tmp_path: Path, expected: dict[str, dict[str, Any]]
) -> None:
    """A real launch loses a process and is torn down; one process goes on and is killed; two end it."""
    launched = begin(tmp_path, small_database, LAUNCH, delay=0.03, in_flight=2)
    until_written(tmp_path, 1, 2, launched)
    os.kill(int((tmp_path / "1.pid").read_text()), 9)
    end(launched, 1)
    left = trees(tmp_path)
    assert 2 <= len(left) < 24

    alone = begin(tmp_path, small_database, delay=0.03, in_flight=2)
    until_written(tmp_path, 0, written(tmp_path, 0) + 3, alone)
    alone.kill()
    end(alone, -9)

    end(begin(tmp_path, small_database, LAUNCH))
    assert trees(tmp_path) == expected


@pytest.mark.parametrize("launcher", [(), LAUNCH], ids=["alone", "two-launched"])
def test_interrupted_once_the_trees_in_flight_are_finished_and_the_rest_is_searched_later(
    launcher: Sequence[str], small_database: Path, tmp_path: Path, expected: dict[str, dict[str, Any]]
) -> None:
    """Launched from the command line, both processes hear of it from torchrun, which fails when they have ended."""
    process = begin(tmp_path, small_database, launcher, delay=0.1, in_flight=3)
    until_written(tmp_path, 0, 1, process)
    before = len(trees(tmp_path))
    os.killpg(process.pid, signal.SIGINT)
    said = end(process, 1 if launcher else 130)
    left = trees(tmp_path)
    assert said.count("the questions in flight are finished first") == 1
    assert before < len(left) < 24 and not (tmp_path / "claims").exists()
    assert left == {name: expected[name] for name in left}
    end(begin(tmp_path, small_database, launcher))
    assert trees(tmp_path) == expected


def test_one_interrupted_process_of_two_stops_both(
    small_database: Path, tmp_path: Path, expected: dict[str, dict[str, Any]]
) -> None:
    both = [begin(tmp_path, small_database, rank=rank, world=2, delay=0.1, in_flight=3) for rank in (0, 1)]
    for rank, process in enumerate(both):
        until_written(tmp_path, rank, 1, process)
    both[1].send_signal(signal.SIGINT)
    for process in both:
        end(process, 130)
    assert len(trees(tmp_path)) < 24
    end(begin(tmp_path, small_database))
    assert trees(tmp_path) == expected
