"""A policy and a PPM that say what a script tells them, and the small database their steps are about."""

from __future__ import annotations

import random
import sqlite3
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from rstar_trl.config import SearchConfig
from rstar_trl.data.question import GoldResult
from rstar_trl.errors import EngineError
from rstar_trl.policy.interface import (
    Answer,
    Candidate,
    ConcurrentEngine,
    FinishReason,
    ProposeRequest,
    Refused,
    ScoreRequest,
)
from rstar_trl.policy.tokens import plain
from rstar_trl.search.effects import Task
from rstar_trl.search.scheduler import run_searches
from rstar_trl.search.tree import Tree
from rstar_trl.sql.sandbox import Sandbox

Script = Mapping[tuple[str, ...], Sequence[Candidate] | Refused]

NAMES = (("Ann",), ("Bob",), ("Cleo",))


def step(text: str, logprob: float | None = -1.0, finish: FinishReason = "step") -> Candidate:
    return Candidate(text, logprob, 3, finish)


def end(text: str, logprob: float | None = -1.0) -> Candidate:
    return step(text, logprob, "eos")


class ScriptedEngine:
    """Answers by the steps so far: its candidates in turn, or drawn by the request's seed when `draw`."""

    def __init__(self, script: Script, draw: bool = False):
        self.script, self.draw = script, draw
        self.batches: list[list[ProposeRequest]] = []

    @property
    def requests(self) -> list[ProposeRequest]:
        return [request for batch in self.batches for request in batch]

    def render(self, messages: list[dict[str, str]]) -> str:
        return plain(messages)

    def propose(self, requests: list[ProposeRequest]) -> list[Answer]:
        self.batches.append(requests)
        return [self._answer(request, self.script[request.steps]) for request in requests]

    def _answer(self, request: ProposeRequest, options: Sequence[Candidate] | Refused) -> Answer:
        if isinstance(options, Refused) or not options:
            return options if isinstance(options, Refused) else []
        if self.draw and request.temperature > 0:
            return random.Random(request.seed).choices(options, k=request.n)
        return list(islice(cycle(options), request.n))


class ScriptedServer(ConcurrentEngine):
    """The same answers one by one, each after a time drawn by `latency(request)`, at most `capacity` at once."""

    def __init__(self, script: Script, capacity: int, latency: Callable[[ProposeRequest], float]):
        self.capacity, self.latency = capacity, latency
        self.engine = ScriptedEngine(script, draw=True)
        self.in_work = self.most = 0
        self.lock = threading.Lock()

    def render(self, messages: list[dict[str, str]]) -> str:
        return plain(messages)

    def submit(self, request: ProposeRequest) -> Future[Answer]:
        future: Future[Answer] = Future()
        with self.lock:
            self.in_work += 1
            self.most = max(self.most, self.in_work)
        threading.Timer(self.latency(request), self._answer, (request, future)).start()
        return future

    def _answer(self, request: ProposeRequest, future: Future[Answer]) -> None:
        with self.lock:
            self.in_work -= 1
        try:
            future.set_result(self.engine.propose([request])[0])
        except EngineError as error:
            future.set_exception(error)


class ScriptedScorer:
    """Scores a trajectory by its last step; what is not in the script scores 0."""

    def __init__(self, scores: Mapping[str, float]):
        self.scores = scores
        self.requests: list[ScoreRequest] = []

    def score(self, requests: list[ScoreRequest]) -> list[float | Refused]:
        self.requests += requests
        return [self.scores.get(request.steps[-1], 0.0) for request in requests]


def make_database(path: Path) -> Path:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE singer (id INTEGER PRIMARY KEY, name TEXT, age INTEGER)")
        connection.execute("CREATE TABLE concert (id INTEGER PRIMARY KEY, title TEXT)")
        connection.executemany(
            "INSERT INTO singer VALUES (?, ?, ?)", [(i, name, 20 + 10 * i) for i, (name,) in enumerate(NAMES)]
        )
        connection.executemany("INSERT INTO concert VALUES (?, ?)", [(1, "Rain"), (2, "Sun")])
        connection.commit()
    return path


def make_task(database: Path, mode: str = "train", name: str = "q", **values: Any) -> Task:
    values = {"gold": GoldResult(NAMES), "seed": 7, **values}
    return Task(name, "music", f"{name}?\n", str(database), mode=mode, **values)  # type: ignore[arg-type]


def grow(
    script: Script | ScriptedEngine,
    task: Task,
    sandbox: Sandbox,
    scorer: ScriptedScorer | None = None,
    **settings: Any,
) -> Tree:
    """The finished tree of one task."""
    engine = script if isinstance(script, ScriptedEngine) else ScriptedEngine(script)
    trees: list[Tree] = []
    run_searches([task], SearchConfig(**settings), engine, scorer, sandbox, trees.append)
    (tree,) = trees
    return tree


def without_time(tree: Tree) -> dict[str, Any]:
    return {**tree.record(), "seconds": 0.0}
