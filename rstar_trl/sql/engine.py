"""What every database engine is: one query, on one database, under limits.

An engine is one file with one class, `Engine(limits).run(database, sql, probe) -> Reply`, made by `open_engine` inside
a worker process (`rstar_trl.sql.worker`). Nothing beyond the standard library is imported until an engine that needs
more is asked for.
"""

from __future__ import annotations

from marshal import dumps
from typing import Any, NamedTuple, Protocol

from rstar_trl.data.databases import Dialect

# verdict, rows (None unless ok or truncated), column names, error, seconds, why a second run may differ (or empty)
Reply = tuple[str, list[tuple[Any, ...]] | None, tuple[str, ...], str, float, str]
Outcome = tuple[str, list[tuple[Any, ...]] | None, tuple[str, ...], str]

SQL_LENGTH = 200_000


class Limits(NamedTuple):
    """What one query may use: seconds of wall clock, rows, bytes of the marshalled result, MiB of address space."""

    timeout: float
    max_rows: int
    max_bytes: int
    memory_mb: int


class DatabaseUnusable(Exception):
    """The database cannot be queried at all; never the query's fault."""


class Engine(Protocol):
    """Runs queries; every outcome is a reply, none an exception."""

    def run(self, database: str, sql: str, probe: bool) -> Reply: ...


def open_engine(dialect: Dialect, limits: Limits) -> Engine:
    """The engine of a dialect. Raises `DatabaseUnusable` when its package is not installed."""
    if dialect == "sqlite":
        from rstar_trl.sql.sqlite import SqliteEngine

        return SqliteEngine(limits)
    try:
        if dialect == "duckdb":
            from rstar_trl.sql.duckdb import DuckDBEngine

            return DuckDBEngine(limits)
        from rstar_trl.sql.postgres import PostgresEngine

        return PostgresEngine(limits)
    except ImportError as error:
        raise DatabaseUnusable(
            f"{dialect} databases need a package that is not installed ({error}); "
            f"run `pip install 'rstar-trl[{dialect}]'`."
        ) from error


class Collector:
    """Takes rows until a limit is reached; `cut` then says which, and is empty as long as all rows were taken."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.rows: list[tuple[Any, ...]] = []
        self.size = 0
        self.cut = ""

    def add(self, row: tuple[Any, ...]) -> bool:
        """Keeps a row, or says no because it does not fit."""
        self.size += len(dumps(row, 2))
        if self.size > self.limits.max_bytes:
            self.cut = f"the result has more than {self.limits.max_bytes} bytes"
        elif len(self.rows) == self.limits.max_rows:
            self.cut = f"the result has more than {self.limits.max_rows} rows"
        else:
            self.rows.append(row)
        return not self.cut
