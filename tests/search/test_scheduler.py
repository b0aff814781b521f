"""Many trees at once: bounded, and each the same as alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rstar_trl.config import SearchConfig
from rstar_trl.policy.interface import Answer, ProposeRequest
from rstar_trl.search.scheduler import run_searches
from rstar_trl.search.tree import Tree
from rstar_trl.sql.sandbox import Sandbox
from tests.scripted import Script, ScriptedEngine, ScriptedScorer, end, grow, make_task, step, without_time

WHERE = [step(f"WHERE age > {n}", -n / 10) for n in range(0, 60, 10)]
SCRIPT: Script = {
    (): [step("FROM singer"), step("FROM concert", -2.0), step("FROM nowhere", -3.0)],
    ("FROM singer",): [*WHERE, end("SELECT name")],
    ("FROM concert",): [end("SELECT title"), end("SELECT id")],
    **{("FROM singer", where.text): [end("SELECT name"), end("SELECT age", -3.0)] for where in WHERE},
}
SCORES = {"SELECT name": 1.0, "FROM concert": -2.0, "FROM singer": 0.5}


def run(database: Path, sandbox: Sandbox, names: list[str], **settings: Any) -> tuple[dict[str, Tree], ScriptedEngine]:
    engine, trees = ScriptedEngine(SCRIPT, draw=True), list[Tree]()
    tasks = (make_task(database, name=name, seed=int(name), use_ppm=True) for name in names)
    config = SearchConfig(num_candidates=3, simulations=6, **settings)
    run_searches(tasks, config, engine, ScriptedScorer(SCORES), sandbox, trees.append)
    assert len(trees) == len(names)
    return {tree.question_id: tree for tree in trees}, engine


@pytest.mark.parametrize("in_flight", [1, 4])
def test_so_many_trees_are_in_flight_and_no_more(
    in_flight: int, small_database: Path, shared_sandbox: Sandbox
) -> None:
    """A finished tree makes room at once: until the questions run out, every batch finds all places taken."""
    taken: list[int] = []
    finished: list[Tree] = []
    seen: list[int] = []

    class Watching(ScriptedEngine):
        def propose(self, requests: list[ProposeRequest]) -> list[Answer]:
            assert len(requests) <= in_flight
            if len(taken) < 11:
                seen.append(len(taken) - len(finished))
            return super().propose(requests)

    def tasks() -> Any:
        for number in range(11):
            taken.append(number)
            assert len(taken) - len(finished) <= in_flight
            yield make_task(small_database, name=str(number), seed=number)

    config = SearchConfig(num_candidates=3, simulations=6, trees_in_flight=in_flight)
    run_searches(tasks(), config, Watching(SCRIPT, draw=True), None, shared_sandbox, finished.append)
    assert len(finished) == 11 and set(seen) == {in_flight}


@pytest.mark.parametrize("algorithm", ["mcts", "sample"])
def test_a_tree_is_the_same_whatever_the_others_are(
    algorithm: str, small_database: Path, shared_sandbox: Sandbox
) -> None:
    names = [str(i) for i in range(9)]
    together, _ = run(small_database, shared_sandbox, names, algorithm=algorithm)
    narrow, _ = run(small_database, shared_sandbox, names[::-1], algorithm=algorithm, trees_in_flight=2)
    for name in names:
        alone, _ = run(small_database, shared_sandbox, [name], algorithm=algorithm)
        assert without_time(alone[name]) == without_time(together[name]) == without_time(narrow[name])
    assert len({str(tree.text) for tree in together.values()}) > 1, "the trees should differ by seed"


def test_time_of_a_tree_is_taken(small_database: Path, shared_sandbox: Sandbox) -> None:
    assert grow(SCRIPT, make_task(small_database), shared_sandbox).seconds > 0
