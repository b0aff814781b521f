"""Exact set match by hand: what is ignored, what is not, what cannot be read, and the grades."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from rstar_trl.errors import SqlError
from rstar_trl.evaluation.official import SpiderSchemas, exact_set_match
from rstar_trl.evaluation.spider_match import Match, foreign_keys, hardness, match
from rstar_trl.evaluation.spider_sql import EMPTY, read_query, tokenize

SPIDER = Path(os.environ.get("RSTAR_SPIDER", Path(__file__).resolve().parents[2] / "../shared/data/spider"))
SCHEMA = {
    "singer": ("id", "name", "age", "country"),
    "concert": ("id", "title", "year", "stadium_id"),
    "singer_in_concert": ("concert_id", "singer_id"),
    "stadium": ("id", "name"),
}
COLUMNS = [f"__{table}.{column}__" for table, columns in SCHEMA.items() for column in columns]
KEYS = foreign_keys(
    {
        "table_names_original": ["Singer", "Concert", "Singer_in_concert", "Stadium"],
        "column_names_original": [
            [-1, "*"],
            *([0, name] for name in ("ID", "name", "age", "country")),
            *([1, name] for name in ("ID", "title", "year", "stadium_id")),
            *([2, name] for name in ("concert_id", "singer_id")),
            *([3, name] for name in ("ID", "name")),
        ],
        "foreign_keys": [[9, 5], [10, 1], [8, 11]],
    }
)


def compare(predicted: str, gold: str) -> Match:
    try:
        theirs = read_query(predicted, SCHEMA)
    except SqlError:
        theirs = EMPTY
    return match(theirs, read_query(gold, SCHEMA), COLUMNS, KEYS)


JOINED = "SELECT T1.name FROM singer AS T1 JOIN singer_in_concert AS T2 ON T1.id = T2.singer_id"


@pytest.mark.parametrize(
    ("predicted", "gold", "wrong"),
    [
        ("SELECT name , age FROM singer", "SELECT age , name FROM singer", ""),
        ("SELECT NAME FROM Singer", "select name from singer;", ""),
        ("SELECT DISTINCT name FROM singer", "SELECT name FROM singer", ""),
        ("SELECT count(DISTINCT name) FROM singer", "SELECT count(name) FROM singer", ""),
        ("SELECT name FROM singer WHERE age > 3", "SELECT name FROM singer WHERE age > 40", ""),
        ("SELECT name FROM singer WHERE age > 3 AND id = 1", "SELECT name FROM singer WHERE id = 2 AND age > 4", ""),
        ("SELECT T9.name FROM singer AS T9", "SELECT name FROM singer", ""),
        ("SELECT name FROM singer LIMIT 3", "SELECT name FROM singer LIMIT 5", ""),
        ("SELECT name FROM singer WHERE age ! = 3", "SELECT name FROM singer WHERE age != 4", ""),
        # The number of a LIMIT is a value, in a subquery as well.
        ("SELECT name FROM singer WHERE id = (SELECT id FROM singer LIMIT 1)",
         "SELECT name FROM singer WHERE id = (SELECT id FROM singer LIMIT 2)", ""),
        ("SELECT max(age) FROM singer", "SELECT min(age) FROM singer", "select"),
        ("SELECT name FROM singer", "SELECT age FROM singer", "select,select(no AGG)"),
        ("SELECT name , name FROM singer", "SELECT name FROM singer", "select,select(no AGG)"),
        ("SELECT name FROM singer WHERE age > 3", "SELECT name FROM singer WHERE age >= 3", "where"),
        ("SELECT name FROM singer WHERE age > 3", "SELECT name FROM singer WHERE id > 3", "where,where(no OP)"),
        ("SELECT name FROM singer WHERE age > 3 OR id = 1", "SELECT name FROM singer WHERE age > 3 AND id = 1",
         "and/or,keywords"),
        ("SELECT name FROM singer", "SELECT name FROM singer WHERE age = 1", "where,where(no OP),keywords"),
        # Without a word between them, the second comparison stands in the word's place.
        ("SELECT name FROM singer WHERE age = 3 id = 1", "SELECT name FROM singer WHERE age = 3 AND id = 1",
         "where,where(no OP),and/or"),
        ("SELECT age FROM singer GROUP BY age", "SELECT age FROM singer GROUP BY country", "group(no Having),group"),
        ("SELECT age FROM singer GROUP BY age", "SELECT age FROM singer GROUP BY age HAVING count(*) > 1",
         "group,keywords"),
        ("SELECT age FROM singer ORDER BY age", "SELECT age FROM singer ORDER BY age DESC", "order,keywords"),
        ("SELECT age FROM singer ORDER BY age", "SELECT age FROM singer ORDER BY age LIMIT 1", "order,keywords"),
        ("SELECT age FROM singer LIMIT 1", "SELECT age FROM singer", "keywords"),
        ("SELECT age FROM singer UNION SELECT id FROM singer", "SELECT age FROM singer UNION SELECT id FROM singer",
         ""),
        ("SELECT age FROM singer UNION SELECT id FROM singer", "SELECT age FROM singer UNION SELECT age FROM singer",
         "IUEN"),
        ("SELECT age FROM singer UNION SELECT id FROM singer", "SELECT age FROM singer EXCEPT SELECT id FROM singer",
         "IUEN,keywords"),
        # Columns that a foreign key joins are one column, whichever table is named.
        (JOINED.replace("T1.name", "T1.id"), JOINED.replace("T1.name", "T2.singer_id"), ""),
        # What tables are joined on is not compared.
        (JOINED, JOINED.replace("T1.id = T2.singer_id", "T1.age = T2.concert_id"), ""),
        # Inside a subquery of WHERE values do not count, DISTINCT and the very column do.
        ("SELECT name FROM singer WHERE id IN (SELECT singer_id FROM singer_in_concert WHERE concert_id = 1)",
         "SELECT name FROM singer WHERE id IN (SELECT singer_id FROM singer_in_concert WHERE concert_id = 2)", ""),
        ("SELECT name FROM singer WHERE id IN (SELECT DISTINCT singer_id FROM singer_in_concert)",
         "SELECT name FROM singer WHERE id IN (SELECT singer_id FROM singer_in_concert)", "where"),
        # Outside of the grammar: an empty query, which shares only what gold does not have.
        ("SELECT name FROM singer LEFT JOIN concert ON singer.id = concert.id", "SELECT name FROM singer",
         "select,select(no AGG)"),
        ("SELECT name FROM singer WHERE age=3", "SELECT name FROM singer WHERE age = 3",
         "select,select(no AGG),where,where(no OP),keywords"),
        ("SELECT name FROM singer UNION ALL SELECT name FROM singer", "SELECT name FROM singer",
         "select,select(no AGG)"),
        ("", "SELECT name FROM singer", "select,select(no AGG)"),
    ],
)  # fmt: skip
def test_components_that_differ(predicted: str, gold: str, wrong: str) -> None:
    found = compare(predicted, gold)
    assert ",".join(name for name, component in found.components.items() if not component.matched) == wrong
    assert found.exact is (not wrong)


def test_tables_must_be_the_same_though_every_component_matches() -> None:
    predicted = "SELECT T1.id FROM singer AS T1 JOIN concert AS T2 ON T1.id = T2.id"
    gold = "SELECT T1.id FROM singer AS T1 JOIN stadium AS T2 ON T1.id = T2.id"
    found = compare(predicted, gold)
    assert all(component.matched for component in found.components.values()) and not found.exact
    assert (
        compare("SELECT id FROM concert JOIN singer ON id = age", "SELECT id FROM singer JOIN concert").exact is False
    )


def test_values_count_inside_a_subquery_of_from() -> None:
    gold = "SELECT count(*) FROM (SELECT name FROM singer WHERE age > 3)"
    assert compare(gold, gold).exact
    assert not compare(gold.replace("3", "4"), gold).exact


@pytest.mark.parametrize(
    ("sql", "grade"),
    [
        ("SELECT name FROM singer", "easy"),
        ("SELECT name FROM singer WHERE age = 3", "easy"),
        ("SELECT name , age FROM singer", "medium"),
        ("SELECT name FROM singer WHERE age = 3 ORDER BY age", "medium"),
        ("SELECT name , age FROM singer WHERE age > 1 AND id > 2", "medium"),
        (JOINED, "easy"),
        (JOINED + " WHERE T1.age > 1 ORDER BY T1.age", "hard"),
        ("SELECT name FROM singer WHERE id IN (SELECT singer_id FROM singer_in_concert)", "hard"),
        ("SELECT name , age FROM singer WHERE id IN (SELECT singer_id FROM singer_in_concert)", "extra"),
        ("SELECT name FROM singer UNION SELECT title FROM concert", "hard"),
        ("SELECT name FROM singer WHERE name LIKE '%a%' OR age > 3", "hard"),
        ("SELECT age , count(*) , max(id) FROM singer WHERE age > 1 AND id > 2 GROUP BY age", "hard"),
        ("SELECT age FROM singer WHERE age > 3 GROUP BY age ORDER BY count(*) LIMIT 1", "extra"),
        # A negation counts as an aggregate, and so does the AND of HAVING.
        ("SELECT count(*) FROM singer WHERE name NOT LIKE '%a%'", "medium"),
        ("SELECT age FROM singer GROUP BY age HAVING count(*) > 1 AND max(id) > 2 AND min(id) > 3", "medium"),
    ],
)
def test_hardness(sql: str, grade: str) -> None:
    assert hardness(read_query(sql, SCHEMA)) == grade


@pytest.mark.parametrize(
    ("sql", "tokens"),
    [
        ("SELECT count(*),a FROM t;", ["select", "count", "(", "*", ")", ",", "a", "from", "t", ";"]),
        ("a >= 'X y' and b!= 2", ["a", ">=", '"X y"', "and", "b", "!=", "2"]),
        ("a=b", ["a=b"]),
        ("limit 1,2", ["limit", "1,2"]),
        ("T1.a - T2.b", ["t1.a", "-", "t2.b"]),
    ],
)
def test_words(sql: str, tokens: list[str]) -> None:
    assert tokenize(sql) == tokens


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 'a FROM t",
        "SELECT nope FROM singer",
        "SELECT id FROM singer WHERE id = 1 id = 2 OR id = 3",
        "FROM singer",
        "SELECT * FROM nowhere",
        "(" * 5000,
        "UPDATE",
    ],
)
def test_text_outside_of_the_grammar_is_a_sql_error(sql: str) -> None:
    with pytest.raises(SqlError, match="outside of Spider's grammar"):
        read_query(sql, SCHEMA)


def test_groups_of_keys_are_put_together_in_the_order_of_the_file() -> None:
    entry: dict[str, Any] = {
        "table_names_original": ["a", "b", "c"],
        "column_names_original": [[-1, "*"], [0, "x"], [1, "x"], [2, "x"], [2, "y"]],
        "foreign_keys": [[2, 1], [4, 3], [3, 2]],
    }
    # The last pair joins the first group that knows one of its columns; the second group stays, and has the last word.
    found = foreign_keys(entry)
    assert found == {"__a.x__": "__a.x__", "__b.x__": "__a.x__", "__c.x__": "__c.x__", "__c.y__": "__c.x__"}


@pytest.mark.skipif(not (SPIDER / "dev.json").exists(), reason="needs Spider; set RSTAR_SPIDER to its folder")
def test_every_gold_query_of_spider_reads_and_matches_itself_only() -> None:
    schemas = SpiderSchemas(SPIDER / "database", SPIDER / "tables.json")
    rows = json.loads((SPIDER / "dev.json").read_text())
    wrong = 0
    for row, other in zip(rows, rows[1:] + rows[:1], strict=True):
        _, found = exact_set_match(row["query"], row["query"], row["db_id"], schemas)
        assert found.exact, row
        wrong += not exact_set_match(other["query"], row["query"], row["db_id"], schemas)[1].exact
    assert wrong > len(rows) / 3
