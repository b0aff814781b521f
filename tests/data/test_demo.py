"""The embedded demo corpus: its promises about determinism, the split, coverage, and sound gold queries."""

from __future__ import annotations

import collections
import re
import sqlite3
import string
from contextlib import closing
from pathlib import Path

import pytest

from rstar_trl.data.demo.build import build_demo
from rstar_trl.data.demo.catalog import DOMAINS
from rstar_trl.data.demo.questions import MAX_ROWS, TEMPLATES
from rstar_trl.data.question import Corpus, Question
from rstar_trl.errors import StorageError

CONSTRUCTS = {
    "two-table join": r"^(?!.* JOIN .* JOIN ).* JOIN ",
    "three-table join": r" JOIN .* JOIN ",
    "count": r"COUNT\(\*\)",
    "count distinct": r"COUNT\(DISTINCT ",
    "sum": r"SUM\(",
    "avg": r"AVG\(",
    "min": r"MIN\(",
    "max": r"MAX\(",
    "group": r" GROUP BY (?!.*HAVING)",
    "having": r" HAVING ",
    "order": r" ORDER BY (?!.*LIMIT)",
    "top k": r" ORDER BY .* LIMIT ",
    "distinct": r"SELECT DISTINCT ",
    "subquery": r"\(SELECT AVG",
    "not in": r" NOT IN \(SELECT ",
    "not exists": r" NOT EXISTS \(SELECT ",
    "union": r" UNION ",
    "intersect": r" INTERSECT ",
    "except": r" EXCEPT ",
    "between": r" BETWEEN ",
    "like": r" LIKE ",
    "null": r" IS NULL",
    "not null": r" IS NOT NULL",
    "in list": r" IN \('",
    "or": r" OR ",
    "escaped quote": r"[A-Za-z]''[A-Za-z]",
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return build_demo(tmp_path_factory.mktemp("demo"), seed=0)


def everything(corpus: Corpus) -> tuple[Question, ...]:
    return corpus.train + corpus.eval


def rows_of(path: Path, sql: str) -> list[tuple]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(sql).fetchall()


def test_size_and_databases(corpus: Corpus) -> None:
    assert len(corpus.train) >= 4000
    assert len(corpus.eval) >= 400
    assert len(corpus.databases) >= 8
    assert {q.db_id for q in corpus.train} == {q.db_id for q in corpus.eval} == set(corpus.databases)


def test_same_seed_same_corpus_and_same_database_content(corpus: Corpus, tmp_path: Path) -> None:
    again = build_demo(tmp_path, seed=0)
    assert again.train == corpus.train
    assert again.eval == corpus.eval
    for name, path in corpus.databases.items():
        with closing(sqlite3.connect(path)) as one, closing(sqlite3.connect(again.databases[name])) as two:
            assert list(one.iterdump()) == list(two.iterdump())


def test_another_seed_gives_another_corpus_and_replaces_stale_databases(corpus: Corpus, tmp_path: Path) -> None:
    other = build_demo(tmp_path, seed=1)
    assert other.digest() != corpus.digest()
    assert not {q.question for q in other.eval} >= {q.question for q in corpus.eval}
    before = rows_of(other.databases["music"], "SELECT * FROM singer")
    build_demo(tmp_path, seed=0)
    assert rows_of(other.databases["music"], "SELECT * FROM singer") != before


def test_building_again_rewrites_no_database(corpus: Corpus) -> None:
    folder = corpus.databases["music"].parent
    times = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    build_demo(folder.parent)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == times, "a file was rewritten or left over"


def test_a_database_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "databases").write_text("a file where the folder should be")
    with pytest.raises(StorageError, match="could not be written"):
        build_demo(tmp_path)


def test_no_question_and_no_query_occurs_twice(corpus: Corpus) -> None:
    texts = [(q.question.lower().split()) for q in everything(corpus)]
    queries = [(q.db_id, *str(q.gold_sql).split()) for q in everything(corpus)]
    assert len(set(map(tuple, texts))) == len(texts)
    assert len(set(queries)) == len(queries)
    assert len({q.id for q in everything(corpus)}) == len(texts)


def test_every_construct_is_in_both_splits(corpus: Corpus) -> None:
    for split in (corpus.train, corpus.eval):
        missing = [
            name for name, form in CONSTRUCTS.items() if not any(re.search(form, str(q.gold_sql)) for q in split)
        ]
        if split is corpus.eval:
            missing = [name for name in missing if name != "escaped quote"]
        assert not missing


def test_every_gold_query_runs_and_returns_few_rows(corpus: Corpus) -> None:
    for name, path in corpus.databases.items():
        with closing(sqlite3.connect(path)) as connection:
            for question in everything(corpus):
                if question.db_id == name:
                    rows = connection.execute(str(question.gold_sql)).fetchall()
                    assert 1 <= len(rows) <= MAX_ROWS, question
                    assert any(cell for row in rows for cell in row), question


def test_a_forgotten_where_clause_never_gives_the_right_rows(corpus: Corpus) -> None:
    """On every query without a subquery or set operation, whose clause can be cut out by its text."""
    checked = 0
    for question in everything(corpus):
        sql = str(question.gold_sql)
        head, found, tail = sql.partition(" WHERE ")
        if not found or "SELECT" in sql[6:]:
            continue
        rest = re.search(r" (GROUP BY|ORDER BY) .*", tail)
        path = corpus.databases[question.db_id]
        assert rows_of(path, sql) != rows_of(path, head + (rest[0] if rest else "")), question
        checked += 1
    assert checked > 2000


def test_shape_of_the_corpus(corpus: Corpus) -> None:
    questions = everything(corpus)
    counts = collections.Counter(q.meta["template"] for q in questions)
    assert set(counts) == {template.name for template in TEMPLATES}
    assert min(counts.values()) >= 40
    joins = sum(" JOIN " in str(q.gold_sql) for q in questions) / len(questions)
    assert 0.3 < joins < 0.45
    assert {q.meta["hardness"] for q in questions} == {"easy", "medium", "hard", "extra"}
    assert sum(len(str(q.gold_sql).split()) for q in questions) / len(questions) < 35


def test_templates_are_spread_over_all_databases(corpus: Corpus) -> None:
    places = collections.defaultdict(set)
    for question in everything(corpus):
        places[question.meta["template"]].add(question.db_id)
    assert min(len(found) for found in places.values()) >= 6


def test_questions_leave_no_slot_open_and_no_double_space(corpus: Corpus) -> None:
    for question in everything(corpus):
        assert not set("{}") & set(question.question)
        assert "  " not in question.question
        assert question.question[-1] in ".?"
        assert question.question[0] in string.ascii_uppercase


def test_every_template_has_four_phrasings_and_every_noun_a_synonym() -> None:
    for template in TEMPLATES:
        assert len(set(template.phrasings)) >= 4, template.name
    for domain in DOMAINS:
        for table in domain.tables:
            assert len(table.nouns) >= 2
            assert all(len(column.nouns) >= 2 for column in table.columns)


def test_databases_hold_nulls_duplicates_quotes_and_dates(corpus: Corpus) -> None:
    for path in corpus.databases.values():
        assert rows_of(path, "PRAGMA foreign_key_check") == []
        tables = [name for (name,) in rows_of(path, "SELECT name FROM sqlite_master WHERE type = 'table'")]
        assert 3 <= len(tables) <= 4
        assert any(cell is None for table in tables for row in rows_of(path, f"SELECT * FROM {table}") for cell in row)
        assert all(40 <= len(rows_of(path, f"SELECT * FROM {table}")) <= 200 for table in tables)
    music = corpus.databases["music"]
    assert rows_of(music, "SELECT name FROM singer WHERE name LIKE '%''%'")
    assert rows_of(music, "SELECT city FROM venue GROUP BY city HAVING COUNT(*) > 1")
    assert rows_of(music, "SELECT day FROM gig WHERE day > '2020-01-01'")
