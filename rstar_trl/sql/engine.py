"""What every database engine is: one query, on one database named by a URL, under limits.

An engine is one file with one class, `Engine(limits).run(database, sql, probe) -> Reply`, made by `open_engine` inside
a worker process (`rstar_trl.sql.worker`). Nothing beyond the standard library is imported until an engine that needs
more is asked for.

A database is named by a URL: `sqlite:///data/shop.sqlite`, `duckdb:///data/shop.duckdb`,
`postgresql://reader@localhost/shop`; a plain path is an SQLite file. What follows the two slashes of the first two is
the path, relative when it does not begin with a third.
"""

from __future__ import annotations

import os
from decimal import Decimal
from marshal import dumps
from typing import Any, Literal, NamedTuple, Protocol

# verdict, rows (None unless ok or truncated), column names, error, seconds, why a second run may differ (or empty)
Reply = tuple[str, list[tuple[Any, ...]] | None, tuple[str, ...], str, float, str]
Outcome = tuple[str, list[tuple[Any, ...]] | None, tuple[str, ...], str]
Dialect = Literal["sqlite", "duckdb", "postgres"]

SQL_LENGTH = 200_000
_SCHEMES: dict[str, Dialect] = {"sqlite": "sqlite", "duckdb": "duckdb", "postgresql": "postgres"}


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


def dialect_of(database: str) -> Dialect:
    """The engine, and sqlglot's name of its dialect, that a database's URL asks for."""
    scheme, slashes, _ = database.partition("://")
    return _SCHEMES.get(scheme, "sqlite") if slashes else "sqlite"


def path_of(database: str) -> str:
    """The file that the URL of an SQLite or DuckDB database names."""
    scheme, slashes, path = database.partition("://")
    return path if slashes and scheme in _SCHEMES else database


def absolute(database: str) -> str:
    """The same database, wherever the process that opens it stands; equal for equal files."""
    dialect = dialect_of(database)
    if dialect == "postgres":
        return database
    path = os.path.abspath(path_of(database))
    return path if dialect == "sqlite" else f"{dialect}://{path}"


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


def plain_value(value: Any) -> Any:
    """The values that a result may hold are numbers, text, bytes and NULL; anything else is shown as text.

    A decimal is an integer where its type has no places after the point, else a float.
    """
    if value is None or isinstance(value, int | float | str | bytes):
        return value
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    if isinstance(value, Decimal):
        exponent = value.as_tuple().exponent
        return int(value) if isinstance(exponent, int) and exponent >= 0 else float(value)
    return str(value)
