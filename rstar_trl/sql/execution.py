"""What running one query gives: a verdict and, where there are any, rows.

The verdicts are a closed set. `infra` is our own fault (a missing file, a dead worker) and must never become a reward.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rstar_trl.data.question import Row

MAX_INFRA_SHARE = 0.05
"""Queries that may end in `infra`, of all; more stops what is under way, since single ones are set aside."""

Verdict = Literal["ok", "rejected", "sql_error", "timeout", "memory", "truncated", "infra"]


@dataclass(frozen=True)
class Execution:
    """The outcome of one query.

    `rows` is None unless the verdict is `ok` (all rows) or `truncated` (those up to the limit). `error` is one line
    for a person. `seconds` is the wall time inside the worker. `unstable` says why a second run may give other rows (a
    random value, the clock), and is empty where no reason was seen. A probe fetches at most one row.
    """

    verdict: Verdict
    rows: tuple[Row, ...] | None = None
    columns: tuple[str, ...] = ()
    error: str = ""
    seconds: float = 0.0
    unstable: str = ""


@dataclass(frozen=True)
class SqlJob:
    """One query to run on a database, named by its path or its URL (`rstar_trl.data.databases`).

    `probe` asks only whether it runs: at most one row is fetched.
    """

    database: str
    sql: str
    probe: bool = False
