"""What running one query gives: a verdict and, where there are any, rows.

The verdicts are a closed set. `infra` is our own fault (a missing file, a dead worker) and must never become a reward.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rstar_trl.data.question import Row

Verdict = Literal["ok", "rejected", "sql_error", "timeout", "memory", "truncated", "infra"]


@dataclass(frozen=True)
class Execution:
    """The outcome of one query.

    `rows` is None unless the verdict is `ok` (all rows) or `truncated` (those up to the limit). `error` is one line
    for a person. `seconds` is the wall time inside the worker. A probe (see `Sandbox.run`) fetches at most one row.
    """

    verdict: Verdict
    rows: tuple[Row, ...] | None = None
    columns: tuple[str, ...] = ()
    error: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class SqlJob:
    """One query to run: `probe` asks only whether it runs (at most one row is fetched)."""

    database: str
    sql: str
    probe: bool = False
