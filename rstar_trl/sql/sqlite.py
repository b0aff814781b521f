"""The SQLite engine: one query on one database file, under limits.

It runs inside a worker process (`rstar_trl.sql.worker`) and needs nothing but the standard library.

Guarantees: the database is opened read-only and its bytes never change; no other file is opened, none is created; a
statement that does anything but read is `rejected` before it runs; rows, bytes and time are bounded; `run` never
raises, whatever the SQL says. Does not guarantee: that one long operator (a pathological LIKE) stops in time, nor
that memory is bounded. The first needs the parent's SIGKILL, the second the worker's RLIMIT_AS.
"""

from __future__ import annotations

import os
import re
import sqlite3
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any
from urllib.parse import quote

from rstar_trl.data.databases import path_of
from rstar_trl.sql.engine import SQL_LENGTH, Collector, DatabaseUnusable, Limits, Outcome, Reply

OPEN_CONNECTIONS = 16
PROGRESS_OPCODES = 10_000

_ALLOWED = frozenset({sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_RECURSIVE})
_FORBIDDEN_FUNCTIONS = frozenset({"load_extension", "fts3_tokenizer"})
_VERDICT_OF_CODE = {
    sqlite3.SQLITE_AUTH: "rejected",
    sqlite3.SQLITE_INTERRUPT: "timeout",
    sqlite3.SQLITE_NOMEM: "memory",
    sqlite3.SQLITE_TOOBIG: "memory",
    # The file, not the query: nothing a query may say can cause these once writing and attaching are rejected.
    sqlite3.SQLITE_BUSY: "infra",
    sqlite3.SQLITE_LOCKED: "infra",
    sqlite3.SQLITE_CANTOPEN: "infra",
    sqlite3.SQLITE_IOERR: "infra",
    sqlite3.SQLITE_CORRUPT: "infra",
    sqlite3.SQLITE_NOTADB: "infra",
    sqlite3.SQLITE_PROTOCOL: "infra",
    sqlite3.SQLITE_PERM: "infra",
    sqlite3.SQLITE_READONLY: "infra",
    sqlite3.SQLITE_FULL: "infra",
}
_RANDOM = frozenset({"random", "randomblob"})
_CLOCK = frozenset({"date", "time", "datetime", "julianday", "unixepoch", "strftime", "timediff"}) | {
    "current_date",
    "current_time",
    "current_timestamp",
}
# A date function reads the clock where it is given the word 'now', or no time at all.
_READS_NOW = re.compile(
    r"""['"]\s*now\s*['"]|(?:date|time|julianday|unixepoch)\s*\(\s*\)|strftime\s*\(\s*(?:'[^']*'|"[^"]*")\s*\)""",
    re.IGNORECASE,
)
# Possessive, so that a pile of comments cannot make it backtrack.
_SPACE = r"(?>\s+|--[^\n]*+|/\*(?>.*?\*/))*+"
_BLANK = re.compile(rf"(?>{_SPACE};?+)*+", re.DOTALL)
# EXPLAIN passes the authorizer as the query it explains.
_EXPLAIN = re.compile(_SPACE + r"explain\b", re.IGNORECASE | re.DOTALL)


class SqliteEngine:
    """Runs queries on SQLite files; keeps the last `OPEN_CONNECTIONS` open, and reopens one that was replaced."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.deadline = 0.0
        self._functions: set[str] = set()
        self._connections: OrderedDict[str, tuple[tuple[int, ...], sqlite3.Connection]] = OrderedDict()

    def run(self, database: str, sql: str, probe: bool) -> Reply:
        """Runs one query; `probe` fetches at most one row. Every outcome is a reply, none an exception."""
        start = time.perf_counter()
        self.deadline = start + self.limits.timeout
        self._functions.clear()
        database = path_of(database)
        rows: list[tuple[Any, ...]] | None = None
        columns: tuple[str, ...] = ()
        try:
            connection = self._connection(database)
            verdict, rows, columns, error = self._query(connection, sql, probe)
        except DatabaseUnusable as problem:
            verdict, error = "infra", str(problem)
        except MemoryError:
            self._close_all()
            verdict, error = "memory", f"the query needs more memory than {self.limits.memory_mb} MiB"
        except sqlite3.Error as problem:
            verdict, error = self._judge(problem, database)
        except ValueError as problem:
            verdict, error = "sql_error", f"the query is not valid text: {problem}"
        seconds = time.perf_counter() - start
        return verdict, rows, columns, " ".join(error.split())[:400], seconds, _unstable(self._functions, sql)

    def _query(self, connection: sqlite3.Connection, sql: str, probe: bool) -> Outcome:
        if _EXPLAIN.match(sql):
            return "rejected", None, (), "EXPLAIN shows a plan, not an answer; only a query may run"
        cursor = connection.cursor()
        try:
            cursor.execute(sql)
            if cursor.description is None:
                if _BLANK.fullmatch(sql):
                    return "sql_error", None, (), "there is no statement in this text"
                return "rejected", None, (), "this statement gives no rows; only a query may run"
            columns = tuple(column[0] for column in cursor.description)
            found = Collector(self.limits)
            for row in cursor:
                if not found.add(row) or probe:
                    break
        finally:
            cursor.close()  # A statement left open would keep its read lock on the file.
        return "truncated" if found.cut else "ok", found.rows, columns, found.cut

    def _judge(self, problem: sqlite3.Error, database: str) -> tuple[str, str]:
        if "one statement at a time" in str(problem):
            return "rejected", "more than one statement; only a single query may run"
        if str(problem).startswith("not authorized"):  # A forbidden function has the code of any other error.
            return "rejected", str(problem)
        code = getattr(problem, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        verdict = _VERDICT_OF_CODE.get(code, "sql_error")
        if verdict == "timeout":
            return verdict, f"the query took longer than {self.limits.timeout:g} s"
        if verdict == "infra":
            self._forget(database)
            return (
                verdict,
                f"{database} could not be read ({problem}); check the file and that nothing is writing to it.",
            )
        return verdict, str(problem)

    def _connection(self, database: str) -> sqlite3.Connection:
        try:
            stat = os.stat(database)
        except (OSError, ValueError) as problem:
            self._forget(database)
            reason = getattr(problem, "strerror", None) or problem
            raise DatabaseUnusable(f"{database} cannot be opened ({reason}); check the path.") from problem
        stamp = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)
        cached = self._connections.get(database)
        if cached and cached[0] == stamp:
            self._connections.move_to_end(database)
            return cached[1]
        self._forget(database)
        if stat.st_size == 0:
            raise DatabaseUnusable(f"{database} is empty (0 bytes), not a database; check the path.")
        while len(self._connections) >= OPEN_CONNECTIONS:
            self._forget(next(iter(self._connections)))
        connection = open_read_only(
            database, self.limits, lambda: time.perf_counter() > self.deadline, self._functions.add
        )
        self._connections[database] = (stamp, connection)
        return connection

    def _forget(self, database: str) -> None:
        _, connection = self._connections.pop(database, (None, None))
        if connection is not None:
            connection.close()

    def _close_all(self) -> None:
        for database in list(self._connections):
            self._forget(database)


def open_read_only(
    database: str, limits: Limits, expired: Callable[[], bool], called: Callable[[str], None]
) -> sqlite3.Connection:
    """A connection that can only read this one file.

    A statement under way is interrupted once `expired()` is true; `called` is told the functions of each statement.
    """
    uri = f"file:{quote(os.fsencode(database))}?mode=ro{_immutable(database)}"
    # The wait for another process's lock must end before the parent takes it for a query that hangs.
    busy_seconds = min(1.0, limits.timeout / 2)
    # No statement is kept: a second run of it would pass the authorizer unseen, and its functions with it.
    connection = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=busy_seconds, cached_statements=0)
    connection.text_factory = partial(str, encoding="utf-8", errors="replace")
    connection.execute("PRAGMA query_only = ON")
    connection.execute("PRAGMA temp_store = MEMORY")
    connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
    connection.setlimit(sqlite3.SQLITE_LIMIT_SQL_LENGTH, SQL_LENGTH)
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, limits.max_bytes)
    # These connect on first use, by what the authorizer takes for an update of the schema.
    connection.execute("SELECT 1 FROM json_each('[]'), json_tree('[]')").fetchall()
    connection.set_progress_handler(expired, PROGRESS_OPCODES)

    def authorize(action: int, _first: str | None, second: str | None, _database: str | None, _: str | None) -> int:
        if action in _ALLOWED:
            return sqlite3.SQLITE_OK
        if action != sqlite3.SQLITE_FUNCTION:
            return sqlite3.SQLITE_DENY
        name = (second or "").lower()
        called(name)
        return sqlite3.SQLITE_DENY if name in _FORBIDDEN_FUNCTIONS else sqlite3.SQLITE_OK

    connection.set_authorizer(authorize)
    return connection


def _unstable(functions: set[str], sql: str) -> str:
    """Why the query may give other rows next time: it draws at random, or reads the clock; empty when it does not."""
    random = functions & _RANDOM
    if random:
        return f"a random value: {min(random)}()"
    clock = functions & _CLOCK
    if clock and (any(name.startswith("current_") for name in clock) or _READS_NOW.search(sql)):
        return f"the current date or time: {min(clock)}"
    return ""


def _immutable(database: str) -> str:
    """The URI option a file in WAL mode needs: without it even a reader creates `-wal` and `-shm` beside the file."""
    try:
        with open(database, "rb") as file:
            header = file.read(20)
    except OSError as problem:
        raise DatabaseUnusable(f"{database} cannot be read ({problem.strerror}); check the path.") from problem
    if header[18:20] != b"\x02\x02":
        return ""
    if os.path.exists(database + "-wal") and os.path.getsize(database + "-wal"):
        raise DatabaseUnusable(
            f"{database} has changes in {database}-wal that are not yet in the file; "
            "close the program that writes it, or run `PRAGMA wal_checkpoint(TRUNCATE)` on it."
        )
    return "&immutable=1"
