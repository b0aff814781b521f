"""Introspection of live databases, value hints, and how a schema stands in a prompt."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from rstar_trl.config import PromptConfig
from rstar_trl.data.schema import ForeignKey, introspect, render_schema, sample, value_hints
from rstar_trl.errors import DataError

SCRIPT = """
create table stadium (id integer primary key, name text, city text);
create table concert (id int primary key, "home town" text, year int, "order" text, stadium_id int references Stadium);
create table lost (id int, gone_id int references nowhere(id));
insert into stadium values (1, 'St. John''s Park', 'New York'), (2, 'Small Park', 'York'), (3, null, 'York');
insert into concert values (1, 'York', 2014, 'a', 1), (2, 'line
break', 2015, 'AB', 1);
"""


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "a folder with ? and #.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(SCRIPT)
    return path


def test_tables_types_keys_and_samples_come_from_the_live_database(database: Path) -> None:
    schema = introspect(database)
    assert [table.name for table in schema.tables] == ["stadium", "concert", "lost"]
    key, name, city = schema.tables[0].columns
    assert (key.type, key.primary_key, name.primary_key) == ("integer", True, False)
    assert name.samples == ("St. John's Park", "Small Park")
    assert city.samples == ("New York", "York")


def test_foreign_keys_are_spelled_as_their_tables_and_dangling_ones_dropped(database: Path) -> None:
    assert introspect(database).foreign_keys == (ForeignKey("concert", "stadium_id", "stadium", "id"),)


def test_composite_foreign_key_gives_its_columns_in_order(tmp_path: Path) -> None:
    path = tmp_path / "d.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("create table p (a int, b int, primary key (a, b))")
        connection.execute("create table c (x int, y int, foreign key (x, y) references p)")
    assert introspect(path).foreign_keys == (ForeignKey("c", "x", "p", "a"), ForeignKey("c", "y", "p", "b"))


def test_render_is_one_line_per_table_and_key(database: Path) -> None:
    schema = introspect(database)
    assert render_schema(schema, PromptConfig(sample_values=0)) == (
        "stadium(id integer primary key, name text, city text)\n"
        'concert(id int primary key, "home town" text, year int, "order" text, stadium_id int)\n'
        "lost(id int, gone_id int)\n"
        "concert.stadium_id = stadium.id"
    )
    assert render_schema(schema, PromptConfig(sample_values=2, column_types=False)).splitlines()[:2] == [
        "stadium(id primary key, name ('St. John''s Park', 'Small Park'), city ('New York', 'York'))",
        "concert(id primary key, \"home town\" ('York', 'line\\nbreak'), year (2014, 2015), \"order\" ('a', 'AB'), "
        "stadium_id)",
    ]


@pytest.mark.parametrize(
    ("value", "shown"),
    [("a\nb\u2028c", "'a\\nb\\u2028c'"), ("\\n", "'\\\\n'"), ("x" * 50, "'" + "x" * 37 + "...'"), (1.5, "1.5")],
)
def test_sample_stays_on_one_line(value: str | float, shown: str) -> None:
    assert sample(value) == shown


def test_hints_prefer_longer_values_and_ignore_case_and_punctuation(database: Path) -> None:
    schema = introspect(database)
    assert value_hints(schema, "Who plays in st johns park?", 4) == []
    assert value_hints(schema, "Who plays in st. john's park?", 4) == [("stadium", "name", "St. John's Park")]
    assert value_hints(schema, "Which parks are in new york?", 4) == [("stadium", "city", "New York")]


def test_hints_prefer_the_column_the_question_names(database: Path) -> None:
    schema = introspect(database)
    assert value_hints(schema, "concerts in York", 4)[0] == ("concert", "home town", "York")
    assert value_hints(schema, "stadiums in York", 4)[0] == ("stadium", "city", "York")


def test_every_value_has_its_turn_before_one_is_repeated(database: Path) -> None:
    hints = value_hints(introspect(database), "stadium in New York, concert in York, at Small Park", 3)
    assert {value for _, _, value in hints} == {"New York", "York", "Small Park"}


def test_short_values_count_only_as_spelled(database: Path) -> None:
    schema = introspect(database)
    assert value_hints(schema, "what is A order with ab", 4) == []
    assert value_hints(schema, "orders AB", 4) == [("concert", "order", "AB")]


def test_numbers_are_no_hints_and_the_limit_holds(database: Path) -> None:
    schema = introspect(database)
    assert value_hints(schema, "the year 2014", 4) == []
    assert len(value_hints(schema, "York or Small Park or New York", 1)) == 1
    assert value_hints(schema, "York", 0) == []


def test_hints_are_fast(tmp_path: Path) -> None:
    path = tmp_path / "big.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("create table t (v text)")
        connection.executemany("insert into t values (?)", [(f"value number {i}",) for i in range(3000)])
        connection.commit()
    schema = introspect(path)
    question = "how many rows hold value number 17 and not value number 18 in the table of all values"
    start = time.perf_counter()
    for _ in range(200):
        value_hints(schema, question, 4)
    assert (time.perf_counter() - start) / 200 < 0.001


def test_undecodable_text_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "bytes.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("create table t (v text, b blob)")
        connection.execute("insert into t values (cast(x'ff41' as text), x'00ff')")
        connection.commit()
    columns = introspect(path).tables[0].columns
    assert columns[0].samples == ("\ufffdA",)
    assert columns[1].samples == ()


def test_database_is_not_changed(database: Path) -> None:
    before = database.read_bytes()
    introspect(database)
    assert database.read_bytes() == before
    assert [path.name for path in database.parent.iterdir()] == [database.name]


def test_bad_files_are_one_helpful_sentence(tmp_path: Path) -> None:
    missing, text, empty = tmp_path / "missing.sqlite", tmp_path / "text.sqlite", tmp_path / "empty.sqlite"
    text.write_text("this is no database " * 100)
    empty.touch()
    for path, why in ((missing, "does not exist"), (text, "not a database"), (empty, "holds no table")):
        with pytest.raises(DataError, match=why) as caught:
            introspect(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not missing.exists()


def test_locked_database_is_one_helpful_sentence(database: Path) -> None:
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("begin exclusive")
        with pytest.raises(DataError, match=r"locked.*close the program"):
            introspect(database)
