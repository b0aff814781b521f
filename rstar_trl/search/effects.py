"""What a search asks the world for. A search is a generator: it yields one of these and is sent the answer.

`ProposeRequest` is answered by `list[Candidate]`, `RunSql` by `list[Execution]`, `ScoreSteps` by `list[float]`. The
algorithm so stays pure (no model, no process, no clock in it) and the scheduler decides what is batched with what.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Literal

from rstar_trl.data.question import Check, GoldResult
from rstar_trl.policy.interface import ProposeRequest, ScoreRequest
from rstar_trl.sql.execution import SqlJob


@dataclass(frozen=True)
class RunSql:
    """Queries to run, in order."""

    jobs: tuple[SqlJob, ...]


@dataclass(frozen=True)
class ScoreSteps:
    """Trajectories to score, in order."""

    requests: tuple[ScoreRequest, ...]


Effect = ProposeRequest | RunSql | ScoreSteps
Search = Generator[Effect, Any, None]


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
