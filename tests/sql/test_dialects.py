"""Queries of the SQLite dialect give the same rows on the other engines once they are translated."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

import pytest

from rstar_trl.errors import SqlError
from rstar_trl.sql.compare import orders_rows, results_equal
from rstar_trl.sql.dialects import translate, translate_steps
from rstar_trl.sql.execution import SqlJob
from rstar_trl.sql.sandbox import Sandbox
from rstar_trl.sql.steps import Step, parse_step, sql_from_steps, steps_from_sql
from tests.postgres_server import Server

SINGERS = [(1, "Ann", 30, 1.5), (2, "Bo", 41, None), (3, "Cy", 41, 2.25), (4, None, 17, 3.0)]
CREATE = "CREATE TABLE singer (id INTEGER, name VARCHAR(20), age INTEGER, score DOUBLE PRECISION)"
QUERIES = [
    "SELECT COUNT(*) FROM singer",
    "SELECT name FROM singer WHERE age > 20 ORDER BY age DESC, id LIMIT 2",
    "SELECT age, COUNT(*), AVG(score) FROM singer GROUP BY age HAVING COUNT(*) >= 1 ORDER BY age",
    "SELECT IFNULL(name, 'nobody') FROM singer ORDER BY id",
    "SELECT name FROM singer WHERE name LIKE '%n%' UNION SELECT name FROM singer WHERE id = 3",
    "SELECT SUBSTR(name, 1, 1), LENGTH(name) FROM singer WHERE name IS NOT NULL",
    "SELECT a.name FROM singer AS a JOIN singer AS b ON a.age = b.age AND a.id <> b.id",
    "SELECT CASE WHEN age >= 18 THEN 'adult' ELSE 'child' END FROM singer ORDER BY id",
    "SELECT `name` FROM singer WHERE id IN (SELECT id FROM singer WHERE score > 2)",
    "SELECT CAST(score AS INTEGER) * 2 FROM singer WHERE id = 4",
    "SELECT name || '!' FROM singer WHERE id = 1",
    "SELECT MAX(age) - MIN(age), ROUND(AVG(score), 2) FROM singer",
]


@pytest.fixture(scope="module")
def sqlite_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("dialects")
    connection = sqlite3.connect(folder / "music.sqlite")
    connection.execute(CREATE)
    connection.executemany("INSERT INTO singer VALUES (?, ?, ?, ?)", SINGERS)
    connection.commit()
    connection.close()
    return str(folder / "music.sqlite")


@pytest.fixture(scope="module")
def duckdb_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    duckdb = pytest.importorskip("duckdb", reason="the extra duckdb is not installed")
    path = tmp_path_factory.mktemp("dialects") / "music.duckdb"
    with duckdb.connect(str(path)) as connection:
        connection.execute(CREATE)
        connection.executemany("INSERT INTO singer VALUES (?, ?, ?, ?)", SINGERS)
    return f"duckdb://{path}"


@pytest.fixture(scope="module")
def postgres_url(postgres_server: Server) -> Iterator[str]:
    import psycopg

    with psycopg.connect(postgres_server.url("owner", "postgres"), autocommit=True) as connection:
        connection.execute("CREATE DATABASE music")
        connection.execute("CREATE ROLE listener LOGIN")
    with psycopg.connect(postgres_server.url("owner", "music"), autocommit=True) as connection:
        connection.execute(CREATE)
        connection.cursor().executemany("INSERT INTO singer VALUES (%s, %s, %s, %s)", SINGERS)
        connection.execute("GRANT SELECT ON singer TO listener")
    yield postgres_server.url("listener", "music")


@pytest.mark.parametrize("engine", ["duckdb", "postgres"])
def test_translated_queries_give_the_same_rows(
    engine: str, sqlite_path: str, request: pytest.FixtureRequest, shared_sandbox: Sandbox
) -> None:
    url = request.getfixturevalue(f"{engine}_url")
    ours = shared_sandbox.run([SqlJob(sqlite_path, sql) for sql in QUERIES])
    theirs = shared_sandbox.run([SqlJob(url, translate(sql, "sqlite", engine)) for sql in QUERIES])
    for sql, expected, found in zip(QUERIES, ours, theirs, strict=True):
        assert expected.verdict == found.verdict == "ok", (sql, found)
        assert results_equal(found.rows or (), expected.rows or (), orders_rows(sql)), (sql, found, expected)


def test_same_dialect_leaves_the_text_alone() -> None:
    assert translate("select  `a`", "sqlite", "sqlite") == "select  `a`"


def test_what_is_no_single_query_is_a_sql_error() -> None:
    for sql in ("SELECT (", "SELECT 1; SELECT 2", ""):
        with pytest.raises(SqlError):
            translate(sql, "sqlite", "postgres")


def test_steps_are_translated_with_their_thoughts() -> None:
    steps = tuple(
        parse_step(text)
        for text in (
            "-- the singers\nFROM singer",
            "-- grown up\nWHERE IFNULL(age, 0) > 18",
            "-- names\nSELECT `name`",
        )
    )
    found = translate_steps(steps, "sqlite", "postgres")
    assert [step.thought for step in found] == ["the singers", "grown up", "names"]
    assert sql_from_steps(found, "postgres") == 'SELECT "name" FROM singer WHERE COALESCE(age, 0) > 18'
    assert translate_steps(steps, "sqlite", "sqlite") is steps
    plain: tuple[Step, ...] = tuple(steps_from_sql("SELECT a FROM t ORDER BY a"))
    assert [step.kind for step in translate_steps(plain, "sqlite", "duckdb")] == ["FROM", "SELECT", "ORDER BY"]
