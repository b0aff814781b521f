"""The PostgreSQL engine: one query on a server, under limits. Needs the extra `postgres` (psycopg 3).

Guarantees: every query has a session of its own, in a read-only transaction that is rolled back, under a role that is
no superuser and may write to no table (any other role is refused before a query runs); the query is declared as a
cursor by itself, which the server grants to a single SELECT without data-modifying parts only; the server stops it in
time, anew for every fetch, so that a query which raises its own limit gains nothing. Functions that reach files,
sessions, settings or large objects are refused by name. Does not guarantee a bound on the server's memory and
temporary files: set `temp_file_limit` and `work_mem` for the role, which the server lets only a superuser do.

A role that passes:

    CREATE ROLE reader LOGIN PASSWORD '...';
    GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader;
    ALTER ROLE reader SET temp_file_limit = '1GB';
"""

from __future__ import annotations

import re
import time
from contextlib import closing
from typing import Any

import psycopg
import sqlglot  # noqa: F401  Needed for the first query already, whose time an import would take.

from rstar_trl.data.databases import plain_value, shown
from rstar_trl.errors import SqlError
from rstar_trl.sql.engine import SQL_LENGTH, Collector, DatabaseUnusable, Limits, Outcome, Reply
from rstar_trl.sql.policy import changing_values, parse_statements, violation

LEAST_CONNECT_SECONDS = 2
"""What libpq waits at least, whatever it is told."""
FETCH_FIRST, FETCH_MOST = 8, 512
"""Rows asked for at once: few at first, since a whole answer is held before its bytes are counted."""
_MEMORY_MB = 64
_ROLE = """
    SELECT rolname, rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls,
           (SELECT string_agg(g.rolname, ', ') FROM pg_roles g
            WHERE g.rolname IN ('pg_read_server_files', 'pg_write_server_files', 'pg_execute_server_program',
                                'pg_write_all_data', 'pg_signal_backend')
              AND pg_has_role(current_user, g.oid, 'MEMBER')),
           (SELECT min(c.oid::regclass::text) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE c.relkind IN ('r', 'p', 'v', 'f') AND n.nspname NOT IN ('pg_catalog', 'information_schema')
              AND has_table_privilege(c.oid, 'INSERT, UPDATE, DELETE, TRUNCATE'))
    FROM pg_roles WHERE rolname = current_user"""
# Text that sqlglot cannot parse is the server's to judge, but not with one of these names in it.
_ESCAPED_NAME = re.compile(r'\bu&"', re.IGNORECASE)
_SUSPECT = re.compile(
    r'\b(pg_(?!catalog\b)|lo_|dblink|set_config|query_to_xml|cursor_to_xml)\w*"?\s*\(', re.IGNORECASE
)
_VERDICT_OF_STATE = {
    "08P01": "sql_error",  # A placeholder without a value.
    "57014": "timeout",
    "55P03": "timeout",
    "25006": "rejected",
    "42501": "rejected",
    "53100": "memory",
    "53200": "memory",
    "53400": "memory",
    "54000": "memory",
}
_INFRA_CLASSES = ("08", "28", "3D", "53", "57", "58")


class PostgresEngine:
    """Runs queries on PostgreSQL servers; opens a session for each."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._trusted: set[str] = set()

    def run(self, database: str, sql: str, probe: bool) -> Reply:
        """Runs one query; `probe` fetches at most one row. Every outcome is a reply, none an exception."""
        start = time.perf_counter()
        rows: list[tuple[Any, ...]] | None = None
        columns: tuple[str, ...] = ()
        unstable = ""
        try:
            refusal = _refusal(sql)
            if refusal:
                verdict, error = refusal
            else:
                verdict, rows, columns, error = self._query(database, sql, probe, start + self.limits.timeout)
                unstable = _unstable(sql) if verdict == "ok" else ""
        except DatabaseUnusable as problem:
            verdict, error = "infra", str(problem)
        except MemoryError:
            verdict, error = "memory", f"the result needs more memory than {self.limits.memory_mb} MiB"
        except psycopg.Error as problem:
            verdict, error = self._judge(problem, database)
        seconds = time.perf_counter() - start
        return verdict, rows, columns, " ".join(error.split())[:400], seconds, unstable

    def _query(self, database: str, sql: str, probe: bool, deadline: float) -> Outcome:
        # Closing an open transaction undoes it.
        with closing(self._connect(database)) as connection:
            self._require_reader(connection, database)
            found = Collector(self.limits)
            # A named cursor is declared through the protocol that takes a single statement, and by SQL that takes a
            # single query.
            cursor = connection.cursor(name="answer")
            cursor.execute(sql)
            columns = tuple(column.name for column in cursor.description or ())
            size = 1 if probe else FETCH_FIRST
            while True:
                left = max(1, int((deadline - time.perf_counter()) * 1000))
                connection.execute(f"SET LOCAL statement_timeout = {left}")
                chunk = cursor.fetchmany(size)
                size = min(2 * size, FETCH_MOST)
                for row in chunk:
                    if not found.add(tuple(map(plain_value, row))):
                        return "truncated", found.rows, columns, found.cut
                if probe or not chunk:
                    return "ok", found.rows, columns, ""

    def _connect(self, database: str) -> psycopg.Connection:
        settings = {
            "default_transaction_read_only": "on",
            "statement_timeout": int(self.limits.timeout * 1000),
            "lock_timeout": int(self.limits.timeout * 500),
            "client_connection_check_interval": 500,
            "work_mem": f"{_MEMORY_MB}MB",
            "max_parallel_workers_per_gather": 0,
            "cursor_tuple_fraction": 1,
            "DateStyle": "ISO",
        }
        options = " ".join(f"-c {name}={value}" for name, value in settings.items())
        try:
            # The wait for a server that does not answer must end before the parent takes it for a query that hangs.
            patience = max(LEAST_CONNECT_SECONDS, int(self.limits.timeout / 2))
            connection = psycopg.connect(database, options=options, connect_timeout=patience)
        except (psycopg.Error, UnicodeError) as problem:
            raise DatabaseUnusable(
                f"the server of {shown(database)} cannot be used ({problem}); start it, or check the role and its "
                "password."
            ) from problem
        return connection

    def _require_reader(self, connection: psycopg.Connection, database: str) -> None:
        """Refuses a role that could do harm if everything else failed. Looked up once per database and worker."""
        if database in self._trusted:
            return
        name, powerful, groups, writable = connection.execute(_ROLE).fetchone() or ("", True, None, None)
        reasons = ["it is a superuser or may create or replicate"] * bool(powerful)
        reasons += [f"it is a member of {groups}"] * bool(groups) + [f"it may write to {writable}"] * bool(writable)
        if reasons:
            raise DatabaseUnusable(
                f"the role {name} of {shown(database)} is refused: {', '.join(reasons)}; "
                "use a role that can only SELECT."
            )
        self._trusted.add(database)

    def _judge(self, problem: psycopg.Error, database: str) -> tuple[str, str]:
        state, text = problem.sqlstate or "", str(problem)
        if "multiple commands" in text:
            return "rejected", "more than one statement; only a single query may run"
        if "data-modifying" in text:
            return "rejected", text
        if "invalid memory alloc request" in text or "out of memory" in text:
            return "memory", text
        verdict = _VERDICT_OF_STATE.get(state)
        if verdict == "timeout":
            return verdict, f"the query took longer than {self.limits.timeout:g} s"
        if verdict:
            return verdict, text
        if not state or state.startswith(_INFRA_CLASSES):
            return "infra", f"the server of {shown(database)} gave up ({text}); look at its log."
        return "sql_error", text


def _refusal(sql: str) -> tuple[str, str] | None:
    """Verdict and reason for a text that is not sent to the server."""
    if len(sql) > SQL_LENGTH:
        return "sql_error", f"the query is longer than {SQL_LENGTH} characters"
    try:
        sql.encode()
    except UnicodeError as problem:
        return "sql_error", f"the query is not valid text: {problem}"
    if "\x00" in sql:
        return "sql_error", "the query is not valid text: it holds a NUL"
    if _ESCAPED_NAME.search(sql):
        return "rejected", "a name written in escapes can hide what it names; write it as it is"
    try:
        statements = parse_statements(sql, "postgres")
    except SqlError:
        return ("rejected", "a function that reaches outside of the tables") if _SUSPECT.search(sql) else None
    if not statements:
        return "sql_error", "there is no statement in this text"
    reason = violation(sql, "postgres")
    return ("rejected", reason) if reason else None


def _unstable(sql: str) -> str:
    try:
        return changing_values(sql, "postgres") or ""
    except SqlError:
        return ""
