"""The DuckDB engine: one query on one DuckDB file, under limits. Needs the extra `duckdb`.

Guarantees: the file is opened read-only, without access to any other file, the network, extensions or Python's
variables, and the configuration is locked, so that no query can undo this; only a single SELECT runs, and none that
reaches for files, settings, the catalogue of functions or a query in a text, found in DuckDB's own syntax tree.
Does not guarantee an end in time, nor a bound on memory: DuckDB may look up from one operator only after many seconds,
and counts only a part of what it uses. The first needs the parent's SIGKILL, the second the worker's RLIMIT_AS.
"""

from __future__ import annotations

import json
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import duckdb

from rstar_trl.data.databases import path_of, plain_value
from rstar_trl.sql.engine import SQL_LENGTH, Collector, DatabaseUnusable, Limits, Outcome, Reply

OPEN_CONNECTIONS = 8
FETCH = 256
_RANDOM = frozenset({"random", "uuid", "gen_random_uuid", "uuidv4", "uuidv7", "nextval"})
_CLOCK = frozenset(
    {"now", "today", "current_date", "current_time", "current_timestamp", "get_current_timestamp", "localtime"}
) | {"get_current_time", "transaction_timestamp", "localtimestamp", "current_localtime", "current_localtimestamp"}
_FORBIDDEN = frozenset({"glob", "query", "query_table", "getenv", "getvariable", "current_setting", "sniff_csv"}) | {
    "which_secret",
    "read_blob",
    "checkpoint",
    "force_checkpoint",
    "json_execute_serialized_sql",
    "from_substrait",
    "from_substrait_json",
    "nextval",
    "currval",
    "arrow_scan",
    "pandas_scan",
    "python_map_function",
}
_FORBIDDEN_PREFIXES = (
    "read_",
    "duckdb_",
    "pragma_",
    "parquet_",
    "write_",
    "sqlite_",
    "postgres_",
    "mysql_",
    "iceberg_",
)
_UNKNOWN_TABLE = re.compile(r"Table with name (\w+) does not exist")
_CLOCK_KEYWORDS = frozenset({"current_date", "current_time", "current_timestamp", "localtime", "localtimestamp"})


class DuckDBEngine:
    """Runs queries on DuckDB files; keeps the last `OPEN_CONNECTIONS` open, and reopens one that was replaced."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._connections: dict[str, tuple[tuple[int, ...], duckdb.DuckDBPyConnection]] = {}

    def run(self, database: str, sql: str, probe: bool) -> Reply:
        """Runs one query; `probe` fetches at most one row. Every outcome is a reply, none an exception."""
        start = time.perf_counter()
        path = path_of(database)
        unstable: set[str] = set()
        rows: list[tuple[Any, ...]] | None = None
        columns: tuple[str, ...] = ()
        try:
            verdict, rows, columns, error = self._query(self._connection(path), sql, probe, unstable)
        except DatabaseUnusable as problem:
            verdict, error = "infra", str(problem)
        except (MemoryError, duckdb.OutOfMemoryException):
            self._connections.clear()
            verdict, error = "memory", f"the query needs more memory than {self.limits.memory_mb} MiB"
        except duckdb.InterruptException:
            verdict, error = "timeout", f"the query took longer than {self.limits.timeout:g} s"
        except duckdb.PermissionException as problem:
            verdict, error = "rejected", str(problem)
        except (duckdb.IOException, duckdb.FatalException, duckdb.InternalException) as problem:
            # The file or the engine; a query that may not name files cannot cause these.
            self._connections.clear()
            verdict, error = "infra", f"{path} could not be read ({problem}); check the file."
        except duckdb.CatalogException as problem:
            verdict, error = _unknown(str(problem))
        except (duckdb.Error, UnicodeError, ValueError) as problem:
            verdict = "rejected" if "read-only mode" in str(problem) else "sql_error"
            error = str(problem)
        seconds = time.perf_counter() - start
        return verdict, rows, columns, " ".join(error.split())[:400], seconds, ", ".join(sorted(unstable))

    def _query(self, connection: duckdb.DuckDBPyConnection, sql: str, probe: bool, unstable: set[str]) -> Outcome:
        if len(sql) > SQL_LENGTH:
            return "sql_error", None, (), f"the query is longer than {SQL_LENGTH} characters"
        if "\x00" in sql.encode().decode():  # Half a surrogate pair is an error here, and a crash further down.
            return "sql_error", None, (), "the query is not valid text: it holds a NUL"
        statements = connection.extract_statements(sql)
        if not statements:
            return "sql_error", None, (), "there is no statement in this text"
        if len(statements) > 1:
            return "rejected", None, (), "more than one statement; only a single query may run"
        if statements[0].type != duckdb.StatementType.SELECT:
            kind = str(statements[0].type).rpartition(".")[2]
            return "rejected", None, (), f"{kind} is not a query; only a single SELECT may run"
        problem = _violation(connection, sql, unstable)
        if problem:
            return "rejected", None, (), problem
        # A timer, because DuckDB calls nothing back while it runs.
        timer = threading.Timer(self.limits.timeout, connection.interrupt)
        timer.start()
        try:
            connection.execute(statements[0])
            columns = tuple(column[0] for column in connection.description or ())
            return self._fetch(connection, columns, probe)
        finally:
            timer.cancel()
            timer.join()  # An interrupt on its way must not hit the next query.

    def _fetch(self, connection: duckdb.DuckDBPyConnection, columns: tuple[str, ...], probe: bool) -> Outcome:
        found = Collector(self.limits)
        while chunk := connection.fetchmany(1 if probe else FETCH):
            for row in chunk:
                if not found.add(tuple(map(plain_value, row))):
                    return "truncated", found.rows, columns, found.cut
            if probe:
                break
        return "ok", found.rows, columns, ""

    def _connection(self, path: str) -> duckdb.DuckDBPyConnection:
        try:
            stat = os.stat(path)
        except (OSError, ValueError) as problem:
            self._connections.pop(path, None)
            reason = getattr(problem, "strerror", None) or problem
            raise DatabaseUnusable(f"{path} cannot be opened ({reason}); check the path.") from problem
        stamp = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)
        cached = self._connections.pop(path, None)
        if cached is None or cached[0] != stamp:
            if len(self._connections) >= OPEN_CONNECTIONS:
                self._connections.pop(next(iter(self._connections)))
            cached = (stamp, open_read_only(path, self.limits))
        self._connections[path] = cached
        return cached[1]


def open_read_only(path: str, limits: Limits) -> duckdb.DuckDBPyConnection:
    """A connection that can read this one file and nothing else, with its settings locked."""
    settings: dict[str, str | bool | int | float | list[str]] = {
        "enable_external_access": "false",
        "autoinstall_known_extensions": "false",
        "autoload_known_extensions": "false",
        "python_enable_replacements": "false",
        "threads": "1",
        # Half, because DuckDB counts only a part of what it takes; spilling to disk is refused by RLIMIT_FSIZE.
        "memory_limit": f"{max(64, limits.memory_mb // 2)}MB",
        "temp_directory": "",
        "lock_configuration": "true",
    }
    try:
        return duckdb.connect(path, read_only=True, config=settings)
    except (duckdb.Error, OSError) as problem:
        raise DatabaseUnusable(
            f"{path} cannot be opened as a DuckDB database ({problem}); check the file and that nothing writes to it."
        ) from problem


def _violation(connection: duckdb.DuckDBPyConnection, sql: str, unstable: set[str]) -> str:
    """Why the query may not run, from DuckDB's own syntax tree; empty when it may. Fills in `unstable`."""
    (text,) = connection.execute("SELECT json_serialize_sql(?)", [sql]).fetchone() or ("{}",)
    tree = json.loads(text)
    if tree.get("error", True):
        return f"this is no plain query ({tree.get('error_message', 'not serializable')}); only a SELECT may run"
    for node in _nodes(tree):
        if node.get("type") == "SHOW_REF":
            return "SHOW and DESCRIBE are not queries; only a SELECT may run"
        table = str(node.get("table_name", "")).lower() if node.get("type") == "BASE_TABLE" else ""
        if node.get("catalog_name") or table.startswith(_FORBIDDEN_PREFIXES):
            return f"{table} is not of this database; only its own tables may be read"
        name = str(node.get("function_name", "")).lower()
        if name in _FORBIDDEN or name.startswith(_FORBIDDEN_PREFIXES):
            return f"the function {name} reaches outside of the tables; leave it out"
        names = node.get("column_names") if node.get("class") == "COLUMN_REF" else None
        if names and len(names) == 1 and str(names[0]).lower() in _CLOCK_KEYWORDS:
            unstable.add("the current date or time")
        if name in _RANDOM:
            unstable.add(f"a random value: {name}()")
        if name in _CLOCK:
            unstable.add("the current date or time")
    return ""


def _unknown(message: str) -> tuple[str, str]:
    """What to say of a name that is not in the database.

    It is refused where DuckDB's scans of Python variables, which are switched off, would have found one of that name:
    they look through the stack of frames.
    """
    found = _UNKNOWN_TABLE.search(message)
    frame = sys._getframe() if found else None
    while found and frame:
        if found[1] in frame.f_locals or found[1] in frame.f_globals:
            return "rejected", f"{found[1]} is no table; variables of Python may not be read"
        frame = frame.f_back
    return "sql_error", message


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """Every object of the tree, without recursion: the depth is the query's to choose."""
    left = [tree]
    while left:
        node = left.pop()
        if isinstance(node, dict):
            yield node
            left += node.values()
        elif isinstance(node, list):
            left += node
