"""Variants keep the schema, tell right queries from near-misses, and make an accident worth -1."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rstar_trl.cli import app
from rstar_trl.config import DataConfig
from rstar_trl.data.question import Check, Corpus, GoldResult, Question
from rstar_trl.data.schema import introspect
from rstar_trl.data.variants import make_variant
from rstar_trl.errors import ConfigError
from rstar_trl.sql.gold import prepare, question_from_record, question_record
from rstar_trl.sql.near_misses import constants, near_misses
from rstar_trl.sql.sandbox import Sandbox
from rstar_trl.sql.stability import stable_results
from rstar_trl.sql.variants import choose_variants, columns_of, pairs_of, tell_apart
from tests.scripted import end, grow, make_task, step

COLUMNS = {"t": {"a": "int", "b": "int", "c": "text"}, "u": {"a": "int", "d": "text"}}
GOLD = [
    "SELECT name FROM shop WHERE sales > 100",
    "SELECT COUNT(*) FROM sale AS s JOIN shop AS p ON s.shop_id = p.id WHERE p.city = 'Oslo'",
    "SELECT city, MAX(sales) FROM shop GROUP BY city ORDER BY city DESC",
    "SELECT name FROM shop WHERE id NOT IN (SELECT shop_id FROM sale)",
]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shop") / "shop.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript("""
            CREATE TABLE shop (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, city TEXT, sales INTEGER,
                               CHECK (sales IS NULL OR sales >= 0));
            CREATE TABLE sale (shop_id INTEGER REFERENCES shop (id), day TEXT, PRIMARY KEY (shop_id, day));
            CREATE TABLE empty (x INTEGER NOT NULL, y TEXT);
            CREATE INDEX by_city ON shop (city);
            CREATE VIEW big AS SELECT * FROM shop WHERE sales > 100;
            INSERT INTO shop VALUES (1, 'A', 'Oslo', 50), (2, 'B', 'Lyon', 150), (3, 'C', 'Oslo', 250);
            INSERT INTO sale VALUES (1, 'mon'), (1, 'tue'), (2, 'mon');
        """)
    return path


@pytest.mark.parametrize(
    ("sql", "kind", "expected"),
    [
        ("SELECT a FROM t WHERE b > 3", "operator", "SELECT a FROM t WHERE b >= 3"),
        ("SELECT a FROM t WHERE b > 3", "constant", "SELECT a FROM t WHERE b > 4"),
        ("SELECT a FROM t WHERE c = 'xy'", "constant", "SELECT a FROM t WHERE c = 'x'"),
        ("SELECT a FROM t WHERE c LIKE '%x%'", "constant", "SELECT a FROM t WHERE c LIKE 'x'"),
        ("SELECT a FROM t ORDER BY b", "direction", "SELECT a FROM t ORDER BY b DESC"),
        ("SELECT a FROM t", "distinct", "SELECT DISTINCT a FROM t"),
        ("SELECT DISTINCT a FROM t", "distinct", "SELECT a FROM t"),
        ("SELECT COUNT(DISTINCT a) FROM t", "distinct", "SELECT COUNT(a) FROM t"),
        ("SELECT c FROM t JOIN u ON t.a = u.a", "join", "SELECT c FROM t LEFT JOIN u ON t.a = u.a"),
        ("SELECT a FROM t WHERE b > 3 AND c = 'x'", "dropped condition", "SELECT a FROM t WHERE b > 3"),
        ("SELECT a FROM t WHERE b > 3", "dropped condition", "SELECT a FROM t"),
        ("SELECT a FROM t", "added condition", "SELECT a FROM t WHERE NOT a IS NULL"),
        ("SELECT a FROM t", "column", 'SELECT "b" FROM t'),
        ("SELECT COUNT(*) FROM t", "count", 'SELECT COUNT("a") FROM t'),
        ("SELECT COUNT(a) FROM t", "count", "SELECT COUNT(*) FROM t"),
        ("SELECT MAX(a) FROM t", "aggregate", "SELECT MIN(a) FROM t"),
        ("SELECT a FROM t WHERE b > 3 AND c = 'x'", "operator", "SELECT a FROM t WHERE b > 3 OR c = 'x'"),
        ("SELECT a FROM t UNION SELECT a FROM u", "operator", "SELECT a FROM t INTERSECT SELECT a FROM u"),
    ],
)
def test_near_misses(sql: str, kind: str, expected: str) -> None:
    found = near_misses(sql, COLUMNS)
    assert expected in [each.sql for each in found if each.kind == kind], found
    assert sql not in [each.sql for each in found]
    assert len({each.sql for each in found}) == len(found)


def test_constants_come_with_their_columns() -> None:
    sql = "SELECT a FROM t WHERE b > 3 AND c LIKE '%x%' AND t.a BETWEEN 1 AND 2.5 AND c = \"y\""
    found = set(constants(sql))
    assert {("b", 3.0), ("c", "%x%"), ("a", 1.0), ("a", 2.5), ("c", "y")} <= found


def test_variant_keeps_schema_and_constraints_and_changes_rows(shop: Path, tmp_path: Path) -> None:
    before = shop.read_bytes()
    contents = []
    for name, seed in (("a", 1), ("b", 1), *((f"c{i}", i) for i in range(2, 22))):
        path = tmp_path / f"{name}.sqlite"
        make_variant(shop, path, seed, {"sales": [100], "city": ["Oslo"]})
        with closing(sqlite3.connect(path)) as connection:
            assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            names = {row[0] for row in connection.execute("SELECT name FROM sqlite_master")}
            assert {"shop", "sale", "empty", "by_city", "big"} <= names
            assert connection.execute("SELECT COUNT(*) FROM shop WHERE name IS NULL OR sales < 0").fetchone() == (0,)
            contents.append(connection.execute("SELECT * FROM shop").fetchall())
    assert contents[0] == contents[1] != contents[2]
    sales = {row[3] for rows in contents for row in rows}
    assert {99, 100, 101, None} <= sales, "boundary values and NULLs"
    assert any(len({row[3] for row in rows}) < len(rows) for rows in contents), "ties"
    assert shop.read_bytes() == before


def test_chosen_variants_tell_apart_what_the_database_does_not(
    shop: Path, tmp_path: Path, shared_sandbox: Sandbox
) -> None:
    chosen = choose_variants(shop, GOLD, 5, tmp_path, shared_sandbox, seed=0)
    assert len(chosen.files) == 5 and all(path.parent == tmp_path for path in chosen.files)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"shop-{i}.sqlite" for i in range(1, 6)]
    assert list(chosen.told_apart) == sorted(chosen.told_apart)
    assert chosen.told_apart[0] < 0.8 * len(chosen.distinguishable), "one small database lets accidents pass"
    assert chosen.told_apart[-1] >= 0.95 * len(chosen.distinguishable)
    again = choose_variants(shop, GOLD, 5, tmp_path / "again", shared_sandbox, seed=0)
    assert again.told_apart == chosen.told_apart


def test_no_gold_query_is_contradicted_by_itself(shop: Path, tmp_path: Path, shared_sandbox: Sandbox) -> None:
    chosen = choose_variants(shop, GOLD, 3, tmp_path, shared_sandbox, seed=0)
    pairs = [(sql, sql) for sql in GOLD] + [(sql, f"{sql} ") for sql in GOLD]
    assert tell_apart(pairs, [shop, *chosen.files], shared_sandbox) == [set()] * 4
    assert tuple(pairs_of(GOLD, columns_of(introspect(shop)))) == chosen.pairs


def test_query_that_is_right_by_accident_gets_minus_one(
    small_database: Path, tmp_path: Path, shared_sandbox: Sandbox
) -> None:
    """Everyone is under 50 in the small database; on the variant one is not."""
    other = tmp_path / "other.sqlite"
    make_variant(small_database, other, 0, {})
    with closing(sqlite3.connect(other)) as connection:
        connection.execute("DELETE FROM singer")
        connection.execute("INSERT INTO singer VALUES (1, 'Old', 80), (2, 'Young', 20)")
        connection.commit()
    script = {
        (): [step("FROM singer"), end("SELECT 1")],
        ("FROM singer",): [end("SELECT name"), step("WHERE age < 50")],
        ("FROM singer", "WHERE age < 50"): [end("SELECT name")],
    }
    checks = (Check(str(other), GoldResult((("Old",), ("Young",)))),)
    rewards = []
    for given in ((), checks):
        tree = grow(script, make_task(small_database, checks=given), shared_sandbox, num_candidates=2, simulations=8)
        rewards.append({sql: reward for sql, reward in zip(tree.sql, tree.reward, strict=True) if reward is not None})
    accident, right = "SELECT name FROM singer WHERE age < 50", "SELECT name FROM singer"
    assert (rewards[0][right], rewards[0][accident]) == (1.0, 1.0)
    assert (rewards[1][right], rewards[1][accident]) == (1.0, -1.0)
    broken = (Check(str(tmp_path / "gone.sqlite"), GoldResult(())),)
    tree = grow(script, make_task(small_database, checks=broken), shared_sandbox, num_candidates=2, simulations=8)
    assert 1.0 not in tree.reward and "infra" in tree.verdict, "our own failure is no reward"


def test_training_questions_get_checks_that_survive_the_disk(
    shop: Path, tmp_path: Path, shared_sandbox: Sandbox
) -> None:
    chosen = choose_variants(shop, GOLD, 2, tmp_path, shared_sandbox, seed=0)
    questions = (Question("q", "shop", "?", gold_sql=GOLD[0]), Question("r", "shop", "?", gold_sql=GOLD[1]))
    corpus = Corpus("test", questions, questions[:1], {"shop": shop})
    prepared = prepare(corpus, shared_sandbox, 0.5, 0, variants={"shop": chosen.files})
    assert [len(question.checks) for question in prepared.train] == [2, 2], "with or without a label"
    assert prepared.eval[0].checks == ()
    stored = json.loads(json.dumps(question_record(prepared.train[0])))
    assert question_from_record(stored) == prepared.train[0]


def test_rows_that_are_a_matter_of_luck_are_no_check(shop: Path, tmp_path: Path, shared_sandbox: Sandbox) -> None:
    tied = tmp_path / "tied.sqlite"
    make_variant(shop, tied, 0, {})
    with closing(sqlite3.connect(tied)) as connection:
        connection.execute("DELETE FROM shop")
        connection.executemany("INSERT INTO shop VALUES (?, ?, 'Oslo', ?)", [(i, f"n{i}", i // 10) for i in range(40)])
        connection.commit()
    queries = [
        "SELECT name FROM shop ORDER BY sales DESC LIMIT 1",
        "SELECT name FROM shop ORDER BY sales",
        "SELECT name FROM shop ORDER BY sales, id",
        "SELECT nope FROM shop",
    ]
    found = stable_results(queries, tied, shared_sandbox)
    assert {sql: result.ordered for sql, result in found.items()} == {queries[1]: False, queries[2]: True}
    assert tell_apart([(queries[0], "SELECT 1"), (queries[1], "SELECT 1")], [tied], shared_sandbox) == [{1}]


@pytest.mark.parametrize("count", [0, 49])
def test_a_number_of_variants_that_cannot_be_made_is_refused(count: int) -> None:
    with pytest.raises(ConfigError, match=r"`data\.variants_per_db` must lie between 1 and 48"):
        DataConfig(variants_per_db=count)


def test_command_makes_variants_and_prints_the_curve(shop: Path, tmp_path: Path) -> None:
    (tmp_path / "databases").mkdir()
    (tmp_path / "databases/shop.sqlite").write_bytes(shop.read_bytes())
    for split in ("train", "eval"):
        rows = [{"db_id": "shop", "question": sql, "gold_sql": sql} for sql in GOLD]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"name: n\noutput_dir: {tmp_path}/run\nmodel: {{from_scratch: {{architecture: llama}}}}\n"
        f"data: {{source: jsonl, path: {tmp_path}, variants: {tmp_path}/variants}}\nverify: variants\n"
    )
    out = tmp_path / "variants"
    ended = CliRunner().invoke(app, ["data", "variants", str(recipe), "--per-db", "3", "--out", str(out)])
    assert ended.exit_code == 0, ended.output
    assert "the database alone:" in ended.output and "with 3 variants:" in ended.output
    assert len(list(out.glob("shop/*.sqlite"))) == 3
    assert set(json.loads((out / "variants.json").read_text())) == {"shop"}
