"""What a search asks the world for. A search is a generator: it yields some of these at once and is sent the answers.

`ProposeRequest` is answered by `Answer`, `RunSql` by `list[Execution]`, `ScoreSteps` by `list[float | Refused]`. The
algorithm so stays pure (no model and no process in it; a clock only for `max_seconds`), and the scheduler decides what
is batched with what.

A search is made of *parts*: generators that ask for one thing at a time, such as one simulation. `gather` runs parts
of one tree side by side, in waves: each part that is not waiting for another asks for one thing, and all go on, in
order, when all is answered. So a tree does not depend on which answer came first.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

from rstar_trl.data.question import Check, GoldResult
from rstar_trl.policy.interface import ProposeRequest, ScoreRequest
from rstar_trl.sql.execution import Execution, SqlJob


@dataclass(frozen=True)
class RunSql:
    """Queries to run, in order."""

    jobs: tuple[SqlJob, ...]


@dataclass(frozen=True)
class ScoreSteps:
    """Trajectories to score, in order."""

    requests: tuple[ScoreRequest, ...]


T = TypeVar("T")
Effect = ProposeRequest | RunSql | ScoreSteps
Search = Generator[tuple[Effect, ...], list[Any], T]
Part = Generator[Effect | None, Any, T]
"""One strand of a search; it yields None to wait until the other parts of its tree have gone on."""


class SqlRunner(Protocol):
    """What runs queries: `rstar_trl.sql.sandbox.Sandbox`."""

    @property
    def size(self) -> int: ...

    def run(self, jobs: Sequence[SqlJob], *, workers: int | None = None) -> list[Execution]: ...


@dataclass(frozen=True)
class Task:
    """One question ready to be searched.

    `gold` and `checks` judge terminals in `train` mode and are not looked at otherwise.
    """

    question_id: str
    db_id: str
    prompt: str
    database: str
    seed: int
    mode: Literal["train", "inference"]
    gold: GoldResult | None = None
    checks: tuple[Check, ...] = ()
    dialect: str = "sqlite"
    use_ppm: bool = False


def gather(parts: Iterable[Part[T]], width: int) -> Search[list[T]]:
    """Runs parts side by side, `width` at most, and returns their results in the order they were begun.

    A part is taken from `parts` only when there is room for it, so `parts` may end when enough is done.
    """
    waiting = iter(parts)
    results: list[Any] = []
    live: list[tuple[int, Part[T], Any]] = []
    while True:
        asking: list[tuple[int, Part[T], Effect | None]] = []
        for place, part, answer in live:
            _advance(place, part, answer, asking, results)
        while len(asking) < width and (fresh := next(waiting, None)) is not None:
            results.append(None)
            _advance(len(results) - 1, fresh, None, asking, results)
        if not asking:
            return results
        effects = tuple(effect for _, _, effect in asking if effect is not None)
        answers = iter((yield effects)) if effects else iter(())
        live = [(place, part, None if effect is None else next(answers)) for place, part, effect in asking]


def _advance(place: int, part: Part[Any], answer: Any, asking: list, results: list[Any]) -> None:
    try:
        asking.append((place, part, part.send(answer)))
    except StopIteration as stop:
        results[place] = stop.value
