"""Reasons, read from the syntax tree."""

from __future__ import annotations

import pytest

from rstar_trl.errors import SqlError
from rstar_trl.sql.policy import nondeterminism, parse_statements, violation


@pytest.mark.parametrize(
    ("sql", "reason"),
    [
        ("", "no statement"),
        ("-- only a comment", "no statement"),
        ("PRAGMA table_info(t)", "PRAGMA is not a query"),
        ("/* hidden */ DROP TABLE t", "DROP is not a query"),
        ("ATTACH 'x' AS y", "ATTACH is not a query"),
        ("EXPLAIN SELECT 1", "EXPLAIN is not a query"),
        ("SELECT 1; SELECT 2", "2 statements"),
        ("WITH x AS (SELECT 1) DELETE FROM t", "DELETE changes data"),
        ("WITH x AS (SELECT 1) INSERT INTO t SELECT * FROM x", "INSERT changes data"),
        ("SELECT a INTO u FROM t", "INTO inside the query"),
        ("SELECT Load_Extension('x')", "load_extension reaches outside"),
        ("SELECT a FROM t WHERE a IN (SELECT readfile('x'))", "readfile reaches outside"),
        ("SELECT * FROM pragma_database_list()", "runs a PRAGMA"),
        ("SELECT FROM WHERE (", "does not parse"),
    ],
)
def test_violation_says_why(sql: str, reason: str) -> None:
    found = violation(sql)
    assert found is not None and reason in found


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT a FROM t",
        "SELECT a FROM t;",
        "SELECT a FROM t; -- the end",
        "(SELECT 1)",
        "VALUES (1)",
        "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r WHERE n < 3) SELECT n FROM r",
        "SELECT replace(a, 'x', 'y') FROM t UNION SELECT b FROM u ORDER BY 1 LIMIT 3",
        "SELECT value FROM json_each('[1]')",
    ],
)
def test_reading_is_no_violation(sql: str) -> None:
    assert violation(sql) is None


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT random()",
        "SELECT a FROM t ORDER BY RANDOM() LIMIT 1",
        "SELECT hex(randomblob(4))",
        "SELECT date('now')",
        "SELECT datetime('NOW', '-1 day')",
        "SELECT strftime('%Y', 'now')",
        "SELECT strftime('%Y')",
        "SELECT julianday('now') - julianday(d) FROM t",
        "SELECT datetime()",
        "SELECT CURRENT_TIMESTAMP",
        "SELECT a FROM t WHERE d < CURRENT_DATE",
        "SELECT a FROM t LIMIT 3",
        "SELECT a FROM t WHERE b IN (SELECT b FROM u LIMIT 2) ORDER BY a",
        "SELECT a, COUNT(*) FROM t GROUP BY a LIMIT 1",
        "SELECT a FROM t UNION SELECT a FROM u LIMIT 2",
    ],
)
def test_unstable_rows_are_found(sql: str) -> None:
    assert nondeterminism(sql, "sqlite")


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT a FROM t ORDER BY a LIMIT 3",
        "SELECT a FROM t UNION SELECT a FROM u ORDER BY a LIMIT 2",
        "SELECT a FROM t WHERE b = (SELECT b FROM t ORDER BY c DESC LIMIT 1)",
        "SELECT COUNT(*), MAX(a) AS m FROM t LIMIT 1",
        "SELECT a FROM t WHERE EXISTS (SELECT 1 FROM u LIMIT 1)",
        "SELECT a FROM t WHERE status = 'now' OR lower(status) = 'now'",
        "SELECT date(d), strftime('%Y', d), date(d, '+1 day') FROM t",
        'SELECT date, time, "limit", random FROM t',
        "SELECT a FROM t",
    ],
)
def test_stable_queries_pass(sql: str) -> None:
    assert nondeterminism(sql, "sqlite") is None


def test_unparsable_text_is_a_sql_error_in_one_line() -> None:
    for sql in ("SELECT a FROM t LIMIT (", "SELECT " + "(" * 3000 + "1 LIMIT"):
        with pytest.raises(SqlError) as error:
            nondeterminism(sql, "sqlite")
        assert "\n" not in str(error.value) and "\x1b" not in str(error.value)


def test_parsing_is_memoised() -> None:
    assert parse_statements("SELECT 1", "sqlite") is parse_statements("SELECT 1", "sqlite")
