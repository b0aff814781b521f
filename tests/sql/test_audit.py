"""Gold queries that must not be labels are found, and training leaves them out."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rstar_trl.cli import app
from rstar_trl.data.copies import shuffled_copy
from rstar_trl.data.question import Corpus, Question
from rstar_trl.errors import DataError
from rstar_trl.sql.audit import audit, read_quarantine
from rstar_trl.sql.gold import prepare
from rstar_trl.sql.sandbox import Sandbox


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shop") / "shop.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(
            'CREATE TABLE item (id INTEGER PRIMARY KEY AUTOINCREMENT, "integer note" TEXT, price INTEGER, kind TEXT)'
        )
        rows = [(i, b"\xff".decode("latin-1"), i // 10, "abc"[i % 3]) for i in range(60)]
        connection.executemany("INSERT INTO item VALUES (?, ?, ?, ?)", rows)
        connection.execute("UPDATE item SET \"integer note\" = CAST(x'41ff' AS TEXT) WHERE id = 3")
        connection.execute("CREATE INDEX by_price ON item (price)")
        connection.execute("CREATE VIEW cheap AS SELECT * FROM item WHERE price < 2")
        connection.commit()
    return path


def ask(id: str, sql: str | None, db_id: str = "shop", text: str = "") -> Question:
    return Question(id, db_id, text or f"What about {id}?", gold_sql=sql)


def test_findings(shop: Path, shared_sandbox: Sandbox, tmp_path: Path) -> None:
    questions = (
        ask("good", "SELECT kind, COUNT(*) FROM item GROUP BY kind ORDER BY kind"),
        ask("good average", "SELECT AVG(price * 0.1) FROM item"),
        ask("no sql", None),
        ask("fails", "SELECT colour FROM item"),
        ask("writes", "DELETE FROM item"),
        ask("empty", "SELECT id FROM item WHERE id > 99"),
        ask("random", "SELECT id FROM item ORDER BY random() LIMIT 1"),
        ask("today", "SELECT id FROM item WHERE date('now') > '2020-01-01'"),
        ask("limit", "SELECT id FROM item LIMIT 3"),
        ask("limit over ties", "SELECT id FROM item ORDER BY price DESC LIMIT 1"),
        ask("not grouped", "SELECT kind, id FROM item GROUP BY kind"),
        ask("ties", "SELECT id FROM item ORDER BY price"),
        ask("elsewhere", "SELECT 1", db_id="gone"),
        ask("again", "select kind, count(*) from item group by kind order by kind;", text="what  about GOOD?"),
        ask("again, other", "SELECT 1", text="What about good?"),
    )
    corpus = Corpus("test", questions, (), {"shop": shop, "gone": tmp_path / "gone.sqlite"})
    found = {finding.question_id: finding for finding in audit(corpus, shared_sandbox, tmp_path / "copies")}
    assert {name: finding.kind for name, finding in found.items()} == {
        "fails": "failed",
        "writes": "failed",
        "empty": "empty",
        "random": "non-deterministic",
        "today": "non-deterministic",
        "limit": "non-deterministic",
        "limit over ties": "non-deterministic",
        "not grouped": "non-deterministic",
        "ties": "tied order",
        "elsewhere": "unknown database",
        "again": "duplicate",
        "again, other": "duplicate",
    }
    assert "with the same SQL" in found["again"].reason and "with other SQL" in found["again, other"].reason
    assert {name for name, finding in found.items() if not finding.quarantined} == {"ties", "again", "again, other"}


def test_shuffled_copy_has_the_same_rows_in_another_order(shop: Path, tmp_path: Path) -> None:
    before = shop.read_bytes()
    rows = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        shuffled_copy(shop, tmp_path / f"{name}.sqlite", seed)
        with closing(sqlite3.connect(tmp_path / f"{name}.sqlite")) as connection:
            connection.text_factory = bytes
            rows.append(connection.execute("SELECT * FROM item").fetchall())
            assert connection.execute("SELECT COUNT(*) FROM cheap").fetchone() == (20,)
            assert connection.execute("SELECT typeof(id) FROM item LIMIT 1").fetchone() == (b"integer",)
    with closing(sqlite3.connect(shop)) as connection:
        connection.text_factory = bytes
        original = connection.execute("SELECT * FROM item").fetchall()
    assert rows[0] == rows[1] != rows[2]
    assert original != rows[0] and sorted(original) == sorted(rows[0]) == sorted(rows[2])
    assert shop.read_bytes() == before


def test_copy_of_what_is_no_database_is_one_sentence_and_leaves_no_file(tmp_path: Path) -> None:
    (tmp_path / "text.sqlite").write_text("not a database " * 100)
    with pytest.raises(DataError, match="cannot be copied"):
        shuffled_copy(tmp_path / "text.sqlite", tmp_path / "copy.sqlite", 0)
    assert not (tmp_path / "copy.sqlite").exists()


def test_training_leaves_out_what_is_listed(shop: Path, shared_sandbox: Sandbox) -> None:
    questions = (ask("good", "SELECT COUNT(*) FROM item"), ask("ties", "SELECT id FROM item ORDER BY price LIMIT 1"))
    corpus = Corpus("test", questions, (), {"shop": shop})
    assert len(prepare(corpus, shared_sandbox, 1.0, 0).train) == 2
    prepared = prepare(corpus, shared_sandbox, 1.0, 0, {"ties": "unstable"})
    assert [question.id for question in prepared.train] == ["good"]
    assert [(each.question_id, each.reason) for each in prepared.quarantine] == [("ties", "unstable")]


def test_command_writes_a_list_that_a_recipe_takes(shop: Path, tmp_path: Path) -> None:
    (tmp_path / "databases").mkdir()
    (tmp_path / "databases/shop.sqlite").write_bytes(shop.read_bytes())
    rows = [
        {"db_id": "shop", "question": "how many?", "gold_sql": "SELECT COUNT(*) FROM item"},
        {"db_id": "shop", "question": "dearest?", "gold_sql": "SELECT id FROM item ORDER BY price DESC LIMIT 1"},
    ]
    for split in ("train", "eval"):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"name: n\noutput_dir: {tmp_path}/run\nmodel: {{from_scratch: {{architecture: llama}}}}\n"
        f"data: {{source: jsonl, path: {tmp_path}}}\n"
    )
    out = tmp_path / "quarantine.jsonl"
    ended = CliRunner().invoke(app, ["data", "audit", str(recipe), "--out", str(out)])
    assert ended.exit_code == 0, ended.output
    assert "2 x non-deterministic" in ended.output
    assert set(read_quarantine(out)) == {"train-1", "eval-1"}
    checked = CliRunner().invoke(app, ["validate", str(recipe), "--set", f"data.quarantine={out}"])
    assert "train: 1 questions" in checked.output and "eval train" not in checked.output


def test_a_list_that_is_none_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_quarantine(tmp_path / "nothing.jsonl")
    (tmp_path / "list.jsonl").write_text('{"id": 3}\n')
    with pytest.raises(DataError, match=r"list\.jsonl:1 has no `question_id`"):
        read_quarantine(tmp_path / "list.jsonl")
