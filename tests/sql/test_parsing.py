"""Texts over which sqlglot would not come to an end, as policies that repeat themselves write them."""

from __future__ import annotations

import pytest

from rstar_trl.errors import SqlError
from rstar_trl.sql.parsing import parse
from rstar_trl.sql.policy import parse_statements, violation
from rstar_trl.sql.steps import parse_step, steps_from_sql

JOINS = "FROM singer " + "JOIN concert " * 60
CALLS = "WHERE a = " + "DATE(" * 60 + "b" + ")" * 60


@pytest.mark.parametrize("dialect", ["sqlite", "postgres", "duckdb"])
@pytest.mark.parametrize("clause", [JOINS, JOINS + "JOIN", CALLS, CALLS[:-60], JOINS + CALLS])
def test_a_text_that_doubles_the_work_again_and_again_is_refused(clause: str, dialect: str) -> None:
    query = f"SELECT * {'' if clause.startswith('FROM') else 'FROM t '}{clause}"
    with pytest.raises(SqlError, match="joins without a condition, or calls like DATE"):
        parse_step(clause, dialect)
    with pytest.raises(SqlError, match="joins without a condition, or calls like DATE"):
        steps_from_sql(query, dialect)
    with pytest.raises(SqlError, match="joins without a condition, or calls like DATE"):
        parse_statements(query, dialect)
    violation(query, dialect)


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM t0 " + " ".join(f"JOIN t{i} ON t{i}.a = t0.a" for i in range(1, 40)),
        "SELECT * FROM t0 " + " ".join(f"JOIN t{i} USING (a)" for i in range(1, 40)),
        "SELECT " + ", ".join(["DATE(a)"] * 40) + " FROM t",
        "SELECT " + "(" * 20 + "a" + ")" * 20 + " FROM t JOIN u",
        "SELECT 'JOIN JOIN JOIN JOIN JOIN JOIN JOIN JOIN JOIN JOIN JOIN JOIN ((((((((((((('",
    ],
)
def test_a_long_query_is_read(sql: str) -> None:
    (tree,) = parse(sql, "sqlite")
    assert tree is not None and tree.key == "select"
