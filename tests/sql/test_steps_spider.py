"""Clause steps on every gold query of Spider: round trip, same result, every prefix runs. Exceptions are named here.

Each exception is a (database, query) pair under its reason; a new one fails the test, and so does one that is mended.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import sqlglot

from rstar_trl.errors import SqlError
from rstar_trl.sql.steps import (
    STEP_DELIMITER,
    parse_step,
    partial_sql,
    plain_thought,
    sql_from_steps,
    steps_from_sql,
    with_thoughts,
)

SPIDER = Path(os.environ.get("RSTAR_SPIDER") or Path(__file__).parents[2] / "../shared/data/spider")
GOLD_QUERIES = 7266

pytestmark = pytest.mark.skipif(
    not (SPIDER / "dev.json").exists(), reason=f"Spider is not at {SPIDER}; set RSTAR_SPIDER to its folder"
)

Key = tuple[str, str]

NOT_DECOMPOSED: set[Key] = set()
TREE_DIFFERS: set[Key] = set()
RESULT_DIFFERS: set[Key] = set()
PREFIX_FAILS: set[Key] = set()


@dataclass
class Findings:
    """How often each distinct gold query occurs, and the queries for which a promise does not hold."""

    count: Counter[Key]
    not_decomposed: set[Key] = field(default_factory=set)
    tree_differs: set[Key] = field(default_factory=set)
    result_differs: set[Key] = field(default_factory=set)
    prefix_fails: set[Key] = field(default_factory=set)
    text_differs: set[Key] = field(default_factory=set)
    thoughts: list[str] = field(default_factory=list)

    def share(self, exceptions: set[Key]) -> float:
        """The fraction of all gold queries that are not among the exceptions."""
        return 1 - sum(self.count[key] for key in exceptions) / self.count.total()


@pytest.fixture(scope="module")
def findings() -> Findings:
    rows = [row for name in ("train_spider", "dev") for row in json.loads((SPIDER / f"{name}.json").read_text())]
    found = Findings(Counter((row["db_id"], row["query"]) for row in rows))
    databases: dict[str, sqlite3.Connection] = {}
    for key in sorted(found.count):
        if key[0] not in databases:
            databases[key[0]] = open_database(key[0])
        inspect(key, databases[key[0]], found)
    for connection in databases.values():
        connection.close()
    return found


def open_database(name: str) -> sqlite3.Connection:
    path = (SPIDER / "database" / name / f"{name}.sqlite").resolve()
    connection = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)
    # Some text columns hold bytes that are no UTF-8.
    connection.text_factory = bytes
    return connection


def inspect(key: Key, database: sqlite3.Connection, found: Findings) -> None:
    try:
        steps = with_thoughts(steps_from_sql(key[1]))
    except SqlError:
        found.not_decomposed.add(key)
        return
    composed = sql_from_steps(steps)
    if sqlglot.parse_one(composed, dialect="sqlite") != sqlglot.parse_one(key[1], dialect="sqlite"):
        found.tree_differs.add(key)
    elif database.execute(composed).fetchall() != database.execute(key[1]).fetchall():
        found.result_differs.add(key)
    for end in range(1, len(steps) + 1):
        try:
            database.execute(partial_sql(steps[:end])).fetchone()
        except sqlite3.Error:
            found.prefix_fails.add(key)
    written = STEP_DELIMITER.join(str(step) for step in steps)
    if tuple(parse_step(text) for text in written.split(STEP_DELIMITER)) != steps:
        found.text_differs.add(key)
    found.thoughts += [plain_thought(step) for step in steps]


def test_all_gold_queries_are_looked_at(findings: Findings) -> None:
    assert findings.count.total() == GOLD_QUERIES


def test_round_trip_gives_an_equal_syntax_tree(findings: Findings) -> None:
    assert findings.share(findings.not_decomposed | findings.tree_differs) >= 0.998
    assert findings.not_decomposed == NOT_DECOMPOSED
    assert findings.tree_differs == TREE_DIFFERS


def test_round_trip_gives_an_equal_result(findings: Findings) -> None:
    assert findings.result_differs == RESULT_DIFFERS == set()


def test_every_prefix_executes(findings: Findings) -> None:
    assert findings.share(findings.not_decomposed | findings.prefix_fails) >= 0.995
    assert findings.prefix_fails == PREFIX_FAILS


def test_steps_survive_being_written_and_read(findings: Findings) -> None:
    assert findings.text_differs == set()


def test_plain_thoughts_are_three_to_eight_words(findings: Findings) -> None:
    assert {len(thought.split()) for thought in findings.thoughts} <= set(range(3, 9))
    assert all(thought == thought.lower() for thought in findings.thoughts)
