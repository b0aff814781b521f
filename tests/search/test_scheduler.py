"""Many trees at once: bounded, and each the same as alone."""

from __future__ import annotations

import random
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from rstar_trl.config import SandboxConfig, SearchConfig
from rstar_trl.errors import EngineError
from rstar_trl.policy.interface import Answer, ConcurrentEngine, ProposeRequest, Refused, ScoreRequest
from rstar_trl.policy.tokens import plain
from rstar_trl.search import scheduler
from rstar_trl.search.scheduler import run_searches
from rstar_trl.search.tree import Tree
from rstar_trl.sql.execution import SqlJob
from rstar_trl.sql.sandbox import Sandbox
from tests.scripted import (
    Script,
    ScriptedEngine,
    ScriptedScorer,
    ScriptedServer,
    end,
    grow,
    make_task,
    step,
    without_time,
)

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


def record(trees: list[Tree]) -> list[dict[str, Any]]:
    return [without_time(tree) for tree in sorted(trees, key=lambda tree: tree.question_id)]


@pytest.mark.parametrize("parallel", [1, 3])
@pytest.mark.parametrize("algorithm", ["mcts", "beam", "sample"])
def test_trees_do_not_depend_on_which_answer_came_first(
    algorithm: str, parallel: int, small_database: Path, shared_sandbox: Sandbox
) -> None:
    """A server that answers in any order, against a policy that answers whole batches."""
    settings: Any = {"algorithm": algorithm, "parallel_simulations": parallel}
    found = []
    for capacity, salt in ((5, 1), (2, 2)):
        server = ScriptedServer(SCRIPT, capacity, lambda r, salt=salt: random.Random(r.seed + salt).random() / 100)  # type: ignore[misc]
        trees: list[Tree] = []
        tasks = [make_task(small_database, name=str(i), seed=i, use_ppm=True) for i in range(8)]
        config = SearchConfig(num_candidates=3, simulations=6, **settings)
        run_searches(tasks, config, server, ScriptedScorer(SCORES), shared_sandbox, trees.append)
        assert server.most <= capacity
        found.append(record(trees))
    batched, _ = run(small_database, shared_sandbox, [str(i) for i in range(8)], **settings)
    assert found[0] == found[1] == record(list(batched.values()))


class FullServer(ConcurrentEngine):
    """Answers one request, picked at random, when it is full; otherwise only once nothing has come for a while."""

    def __init__(self, capacity: int):
        self.capacity = capacity
        self.engine = ScriptedEngine(SCRIPT, draw=True)
        self.held: list[tuple[ProposeRequest, Future[Answer]]] = []
        self.arrived = threading.Condition()
        self.short: list[int] = []
        """Requests held whenever it had to answer without being full."""

    def render(self, messages: list[dict[str, str]]) -> str:
        return plain(messages)

    def submit(self, request: ProposeRequest) -> Future[Answer]:
        future: Future[Answer] = Future()
        with self.arrived:
            self.held.append((request, future))
            assert len(self.held) <= self.capacity
            self.arrived.notify()
        return future

    def serve(self, answers: int) -> None:
        pick = random.Random(0)
        for _ in range(answers):
            with self.arrived:
                self.arrived.wait_for(lambda: len(self.held) == self.capacity, timeout=5)
                if len(self.held) < self.capacity:
                    self.short.append(len(self.held))
                    return
                request, future = self.held.pop(pick.randrange(len(self.held)))
            future.set_result(self.engine.propose([request])[0])

    def let_go(self) -> None:
        """From now on every request is answered at once."""
        with self.arrived:
            held, self.held = self.held, []
            self.submit = self._at_once  # type: ignore[method-assign]
        for request, future in held:
            future.set_result(self.engine.propose([request])[0])

    def _at_once(self, request: ProposeRequest) -> Future[Answer]:
        future: Future[Answer] = Future()
        future.set_result(self.engine.propose([request])[0])
        return future


def test_a_server_is_kept_full(small_database: Path, shared_sandbox: Sandbox) -> None:
    """Every answer is followed by the next request before anything else happens, for as long as there is work."""
    server = FullServer(6)
    tasks = (make_task(small_database, name=str(i), seed=i) for i in range(40))
    config = SearchConfig(num_candidates=3, simulations=4, trees_in_flight=12)
    trees: list[Tree] = []
    with ThreadPoolExecutor(1) as pool:
        # 40 questions ask at least twice each, so there is work for this many answers.
        serving = pool.submit(server.serve, 60)
        serving.add_done_callback(lambda _: server.let_go())
        run_searches(tasks, config, server, None, shared_sandbox, trees.append)
    assert server.short == [] and len(trees) == 40


ENDLESS = "FROM (WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT COUNT(*) FROM n) AS endless"


def test_a_slow_query_holds_up_one_worker_not_the_others(
    small_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Naive(ScriptedEngine):
        def propose(self, requests: list[ProposeRequest]) -> list[Answer]:
            answers = super().propose(requests)
            return [[step(ENDLESS)] if r.prompt == "slow?\n" else a for r, a in zip(requests, answers, strict=True)]

    monkeypatch.setattr(scheduler, "SQL_CALL", 1)
    tasks = [make_task(small_database, name=name, seed=i) for i, name in enumerate(["slow", *"abcdef"])]
    trees: list[Tree] = []
    with Sandbox(SandboxConfig(workers=2, timeout=2.0)) as sandbox:
        sandbox.run([SqlJob(str(small_database), f"SELECT {i}") for i in range(9)])
        config = SearchConfig(num_candidates=3, simulations=4)
        run_searches(tasks, config, Naive(SCRIPT, draw=True), None, sandbox, trees.append)
    assert len(trees) == 7 and trees[-1].question_id == "slow"
    assert trees[-1].verdict[1] == "timeout"


def test_steps_are_scored_beside_generation(small_database: Path, shared_sandbox: Sandbox) -> None:
    """A scorer that waits until the policy is asked again is not waited for by the trees that need no scores."""
    scoring, asked = threading.Event(), threading.Event()

    class Engine(ScriptedEngine):
        def propose(self, requests: list[ProposeRequest]) -> list[Answer]:
            if scoring.is_set():
                asked.set()
            return super().propose(requests)

    class Scorer(ScriptedScorer):
        def score(self, requests: list[ScoreRequest]) -> list[float | Refused]:
            scoring.set()
            assert asked.wait(20), "nothing was generated while steps were scored"
            return super().score(requests)

    tasks = [make_task(small_database, "inference", name, seed=i, use_ppm=name == "a") for i, name in enumerate("abc")]
    trees: list[Tree] = []
    config = SearchConfig(num_candidates=3, simulations=4)
    run_searches(tasks, config, Engine(SCRIPT, draw=True), Scorer({}), shared_sandbox, trees.append)
    assert len(trees) == 3


class Gone(ScriptedEngine):
    """Answers three batches; then nothing is there any more."""

    def propose(self, requests: list[ProposeRequest]) -> list[Answer]:
        if len(self.batches) == 3:
            raise EngineError("the server at http://localhost:1 is gone; start it and run the same command again.")
        return super().propose(requests)


@pytest.mark.parametrize("served", [False, True])
def test_an_engine_that_is_gone_stops_the_run_and_finished_trees_are_kept(
    served: bool, small_database: Path, shared_sandbox: Sandbox
) -> None:
    engine: Any = Gone(SCRIPT, draw=True)
    if served:
        server = ScriptedServer(SCRIPT, 2, lambda request: 0.001)
        server.engine, engine = engine, server
    kept: list[Tree] = []
    config = SearchConfig(num_candidates=3, simulations=1, trees_in_flight=1)
    tasks = (make_task(small_database, name=str(i), seed=i) for i in range(9))
    with pytest.raises(EngineError, match="is gone"):
        run_searches(tasks, config, engine, None, shared_sandbox, kept.append)
    assert len(kept) >= 1


def test_a_refused_request_is_recorded_and_the_others_go_on(small_database: Path, shared_sandbox: Sandbox) -> None:
    script: Script = {**SCRIPT, ("FROM singer",): Refused("the prompt is longer than the model reads")}
    engine, trees = ScriptedEngine(script), list[Tree]()
    tasks = [make_task(small_database, name=str(i), seed=i) for i in range(3)]
    run_searches(tasks, SearchConfig(num_candidates=3), engine, None, shared_sandbox, trees.append)
    for tree in trees:
        assert tree.meta["failures"] == [[1, "the prompt is longer than the model reads"]]
        assert tree.kind[1] == "FROM" and "SELECT" in tree.kind


@pytest.mark.parametrize("answer", [Refused("nobody is at home"), []])
@pytest.mark.parametrize("algorithm", ["mcts", "beam", "sample", "greedy"])
def test_a_root_that_nobody_answers_is_a_tree_with_its_reason(
    algorithm: str, answer: Any, small_database: Path, shared_sandbox: Sandbox
) -> None:
    tree = grow({(): answer}, make_task(small_database), shared_sandbox, algorithm=algorithm)
    assert len(tree) == 1 and tree.answer is None
    assert tree.meta["failures"] == [[0, "nobody is at home" if answer else "the policy gave no candidate"]]


def test_fewer_candidates_than_asked_for_are_used_and_recorded(small_database: Path, shared_sandbox: Sandbox) -> None:
    class Short(ScriptedEngine):
        def propose(self, requests: list[ProposeRequest]) -> list[Answer]:
            return [answer[:2] for answer in super().propose(requests)]  # type: ignore[index]

    tree = grow(Short(SCRIPT), make_task(small_database), shared_sandbox, num_candidates=3, simulations=1)
    assert tree.meta["failures"][0] == [0, "2 of 3 candidates came back"] and len(tree) > 3
