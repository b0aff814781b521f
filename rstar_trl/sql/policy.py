"""What a query may be, read from its syntax tree: a single statement that only reads, and gives the same rows twice.

The wall against hostile SQL is the engine's own authorizer inside the worker; the policy here says *why* in words, and
judges gold queries. Guarantees: `violation` is None only for one read-only query; nothing here runs SQL. Does not
guarantee that `nondeterminism` finds every query with unstable rows: a query that orders by a column with ties, or
concatenates a group in no stated order, passes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING

from rstar_trl.errors import SqlError
from rstar_trl.sql.parsing import parse

if TYPE_CHECKING:
    from sqlglot import exp

_SPACE = r"(?>\s+|--[^\n]*+|/\*(?>.*?\*/))*+"
_FIRST_WORD = re.compile(_SPACE + r"([A-Za-z_]+|\S)?", re.DOTALL)
_QUERY_WORDS = frozenset({"SELECT", "WITH", "VALUES", "("})
_FORBIDDEN_FUNCTIONS = frozenset({"LOAD_EXTENSION", "FTS3_TOKENIZER", "READFILE", "WRITEFILE", "EDIT"})
# PostgreSQL: functions that reach files, other sessions, settings, large objects, or run a query given as text.
_POSTGRES_FORBIDDEN = re.compile(
    r"(PG_(?!TYPEOF$|GET_|COLUMN_)|LO_|DBLINK|SET_CONFIG$|CURRENT_SETTING$|NEXTVAL$|SETVAL$|TXID_|BRIN_|GIN_)\w*"
    r"|(QUERY|CURSOR|TABLE|SCHEMA|DATABASE)_TO_XML\w*|LOREAD$|LOWRITE$"
)
_RANDOM_FUNCTIONS = frozenset({"RAND", "RANDOM", "RANDOMBLOB", "UUID", "NEWID", "GEN_RANDOM_UUID", "CLOCK_TIMESTAMP"})
_CLOCK_FUNCTIONS = frozenset({"DATE", "TIME", "DATETIME", "JULIANDAY", "UNIXEPOCH", "NOW", "GETDATE"})
_TIME_NAME = re.compile(r"DATE|TIME|JULIANDAY|EPOCH")
# Only a query with one of these words can be non-deterministic; the others are not worth a parse (about 1 ms).
_SUSPICIOUS = re.compile(r"limit|fetch|rand|uuid|newid|now|current_|date|time|julianday|unixepoch", re.IGNORECASE)


@lru_cache(maxsize=8192)
def parse_statements(sql: str, dialect: str) -> tuple[exp.Expr, ...]:
    """The statements of a text as sqlglot trees; memoised, so never change them. Raises `SqlError`."""
    from sqlglot import exp
    from sqlglot.errors import SqlglotError

    try:
        found = parse(sql, dialect)
        # A comment behind the last semicolon is no statement.
        return tuple(each for each in found if each is not None and not isinstance(each, exp.Semicolon))
    except (SqlError, SqlglotError, RecursionError) as error:
        reason = " ".join(re.sub(r"\x1b\[\d*m", "", str(error)).split())[:200] or "nested too deeply"
        raise SqlError(f"The query does not parse as {dialect}: {reason}") from error


@lru_cache(maxsize=8192)
def violation(sql: str, dialect: str = "sqlite") -> str | None:
    """Why a text is not a single read-only query, in one sentence; None when it is one."""
    match = _FIRST_WORD.match(sql)
    word = (match.group(1) or "").upper() if match else ""
    if not word:
        return "there is no statement in this text; write one query."
    if word not in _QUERY_WORDS:
        return f"{word} is not a query; only a single SELECT may run."
    try:
        statements = parse_statements(sql, dialect)
    except SqlError as error:
        return str(error)
    if len(statements) != 1:
        return f"there are {len(statements)} statements; only a single query may run."
    return next(_violations(statements[0], dialect), None)


def _violations(statement: exp.Expr, dialect: str) -> Iterator[str]:
    from sqlglot import exp

    if not isinstance(statement, exp.Query | exp.Values):
        yield f"{statement.key.upper()} changes data; only a single SELECT may run."
    changing = (exp.DML, exp.DDL, exp.Command, exp.Pragma, exp.Attach, exp.Detach, exp.Into, exp.Lock)
    for node in statement.walk():
        if isinstance(node, changing):
            yield f"{node.key.upper()} inside the query writes or steers the database; only reading is allowed."
        name = _function_name(node)
        if name in _FORBIDDEN_FUNCTIONS or (dialect == "postgres" and _POSTGRES_FORBIDDEN.match(name)):
            yield f"the function {name.lower()} reaches outside the database; leave it out."
        if name.startswith("PRAGMA_"):
            yield f"the table function {name.lower()} runs a PRAGMA; only tables may be read."


@lru_cache(maxsize=8192)
def nondeterminism(sql: str, dialect: str = "sqlite") -> str | None:
    """Why two runs of a query may give different rows on the same data; None when no reason is found.

    A LIMIT needs an ORDER BY beside it, unless the query gives one row anyway; ties in the order are not looked for.
    Raises `SqlError` for a text that does not parse, unless no suspicious word is in it.
    """
    return _first_reason(sql, dialect, lambda node: _unordered_limit(node) or _changing_value(node))


@lru_cache(maxsize=8192)
def changing_values(sql: str, dialect: str) -> str | None:
    """`nondeterminism` without the rule for LIMIT: random values and the clock alone."""
    return _first_reason(sql, dialect, _changing_value)


def _first_reason(sql: str, dialect: str, reason_of: Callable[[exp.Expr], str | None]) -> str | None:
    if not _SUSPICIOUS.search(sql):
        return None
    nodes = (node for statement in parse_statements(sql, dialect) for node in statement.walk())
    return next((reason for node in nodes if (reason := reason_of(node))), None)


def _unordered_limit(node: exp.Expr) -> str | None:
    from sqlglot import exp

    if not isinstance(node, exp.Limit | exp.Fetch) or node.parent is None or node.parent.args.get("order"):
        return None
    return None if _gives_one_row(node.parent) or _only_tests(node.parent) else "LIMIT without ORDER BY"


def _changing_value(node: exp.Expr) -> str | None:
    from sqlglot import exp

    if isinstance(node, exp.CurrentDate | exp.CurrentTime | exp.CurrentTimestamp | exp.CurrentDatetime):
        return "the current date or time"
    name = _function_name(node)
    if name in _RANDOM_FUNCTIONS:
        return f"a random value: {name.lower()}()"
    if name in _CLOCK_FUNCTIONS and not any(True for _ in node.iter_expressions()):
        return f"the current date or time: {name.lower()}()"
    # SQLite reads the clock wherever a date function is given the word 'now'.
    reads_now = isinstance(node, exp.Literal) and node.is_string and str(node.this).strip().lower() == "now"
    if reads_now and node.parent is not None and _TIME_NAME.search(_function_name(node.parent)):
        return "the current date or time: 'now'"
    return None


def _gives_one_row(query: exp.Expr) -> bool:
    """A query that only aggregates, without groups, has one row: its LIMIT cuts nothing at random."""
    from sqlglot import exp

    if not isinstance(query, exp.Select) or query.args.get("group") or not query.expressions:
        return False
    outputs = [output.unalias() for output in query.expressions]
    return all(isinstance(output, exp.AggFunc) for output in outputs)


def _only_tests(query: exp.Expr) -> bool:
    from sqlglot import exp

    return isinstance(query.parent, exp.Exists)


def _function_name(node: exp.Expr) -> str:
    """The function's name in upper case, whether sqlglot knows it (`Rand`) or not (`randomblob`); empty for others."""
    from sqlglot import exp

    if isinstance(node, exp.Anonymous):
        return str(node.this).upper()
    return node.sql_name().upper() if isinstance(node, exp.Func) else ""
