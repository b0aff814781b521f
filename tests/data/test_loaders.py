"""Every loader on a small data set of its own layout, and the sentences bad data gives."""

from __future__ import annotations

import json
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from rstar_trl.config import DataConfig
from rstar_trl.data.loaders import load_corpus
from rstar_trl.data.question import GoldResult, Question
from rstar_trl.data.schema import introspect
from rstar_trl.errors import DataError

SPIDER = Path(os.environ.get("RSTAR_SPIDER", Path(__file__).parents[2] / "../shared/data/spider"))


def make_database(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("create table t (a int)")
        connection.commit()


def spider_rows(db_id: str, count: int) -> list[dict[str, Any]]:
    return [{"db_id": db_id, "question": f"{db_id} {i}?", "query": f"SELECT {i}"} for i in range(count)]


@pytest.fixture
def spider(tmp_path: Path) -> Path:
    folder = tmp_path / "spider"
    make_database(folder / "database" / "cars" / "cars.sqlite")
    (folder / "train_spider.json").write_text(json.dumps(spider_rows("cars", 6) + spider_rows("gone", 2)))
    (folder / "train_others.json").write_text(json.dumps(spider_rows("cars", 1)))
    (folder / "dev.json").write_text(json.dumps(spider_rows("cars", 3)))
    return folder


@pytest.fixture
def bird(tmp_path: Path) -> Path:
    folder = tmp_path / "bird"
    make_database(folder / "train" / "train_databases" / "shop" / "shop.sqlite")
    make_database(folder / "dev" / "dev_databases" / "bank" / "bank.sqlite")
    row = {"question": "q?", "evidence": "e", "SQL": "SELECT 1"}
    (folder / "train" / "train.json").write_text(json.dumps([{**row, "db_id": "shop"}]))
    dev = {**row, "db_id": "bank", "question_id": 0, "difficulty": "moderate"}
    (folder / "dev" / "dev.json").write_text(json.dumps([dev]))
    return folder


@pytest.fixture
def jsonl(tmp_path: Path) -> Path:
    folder = tmp_path / "jsonl"
    make_database(folder / "databases" / "flat.sqlite")
    make_database(folder / "databases" / "deep" / "deep.sqlite")
    make_database(folder / "elsewhere" / "third.sqlite")
    train = [
        {"db_id": "flat", "question": "a?", "sql": "SELECT 1", "evidence": "hint"},
        {"id": "mine", "db_id": "deep", "question": "b?", "gold_result": [[1, "x", None]]},
        {"question": "c?", "database": "elsewhere/third.sqlite", "gold_sql": "SELECT 3"},
    ]
    write_lines(folder / "train.jsonl", train)
    gold = {"rows": [[2.5]], "ordered": True}
    write_lines(folder / "eval.jsonl", [{"db_id": "flat", "question": "d?", "gold_result": gold}])
    return folder


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def load(source: Any, folder: Path, **options: Any) -> Any:
    return load_corpus(DataConfig(source=source, path=str(folder), **options), folder)


def test_demo_is_built_under_the_work_folder_and_narrowed(tmp_path: Path) -> None:
    corpus = load_corpus(DataConfig(databases=["music", "shop"], train_size=50, eval_size=10), tmp_path)
    assert (len(corpus.train), len(corpus.eval)) == (50, 10)
    assert set(corpus.databases) == {"music", "shop"}
    assert all(tmp_path in path.parents and path.is_file() for path in corpus.databases.values())


def test_spider_layout(spider: Path) -> None:
    corpus = load("spider", spider)
    assert [q.id for q in corpus.train] == [f"spider-train-{i}" for i in range(8)] + ["spider-others-0"]
    assert [q.id for q in corpus.eval] == [f"spider-dev-{i}" for i in range(3)]
    assert corpus.train[1].gold_sql == "SELECT 1"
    assert corpus.databases == {"cars": spider / "database" / "cars" / "cars.sqlite"}


def test_question_without_its_database_stays(spider: Path) -> None:
    corpus = load("spider", spider)
    assert sum(q.db_id == "gone" for q in corpus.train) == 2
    assert "gone" not in corpus.databases


def test_no_database_at_all_is_an_error(spider: Path) -> None:
    (spider / "database" / "cars" / "cars.sqlite").unlink()
    with pytest.raises(DataError, match=r"no question of spider has its database.*cars/cars\.sqlite"):
        load("spider", spider)


def test_bird_layout_keeps_evidence_and_difficulty(bird: Path) -> None:
    corpus = load("bird", bird)
    assert [q.id for q in corpus.train + corpus.eval] == ["bird-train-0", "bird-dev-0"]
    assert corpus.eval[0].evidence == "e"
    assert corpus.eval[0].meta == {"hardness": "moderate"}
    assert set(corpus.databases) == {"shop", "bank"}


def test_bird_dev_folder_alone(bird: Path) -> None:
    corpus = load("bird", bird / "dev")
    assert corpus.train == ()
    assert [q.db_id for q in corpus.eval] == ["bank"]


def test_jsonl_layout_with_three_ways_to_name_a_database(jsonl: Path) -> None:
    corpus = load("jsonl", jsonl)
    assert [q.id for q in corpus.train + corpus.eval] == ["train-0", "mine", "train-2", "eval-0"]
    assert [q.db_id for q in corpus.train] == ["flat", "deep", "third"]
    assert corpus.train[0].gold_sql == "SELECT 1"
    assert corpus.train[1].gold_result == GoldResult(((1, "x", None),))
    assert corpus.eval[0].gold_result == GoldResult(((2.5,),), ordered=True)
    assert corpus.databases["third"] == jsonl / "elsewhere" / "third.sqlite"
    assert all(path.is_file() for path in corpus.databases.values())


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"question": "x?"}, r"train\.jsonl:4 has no `db_id`"),
        ({"db_id": "flat", "question": " "}, r"train\.jsonl:4 has no `question`"),
        ({"db_id": "flat", "question": 3}, r"train\.jsonl:4: `question` is int"),
        ({"db_id": "flat", "question": "x?", "gold_result": [1]}, r"train\.jsonl:4: `gold_result`"),
        ({"db_id": "flat", "question": "x?", "gold_result": [[[]]]}, r"train\.jsonl:4: `gold_result`"),
        ({"id": "mine", "db_id": "flat", "question": "x?"}, "'mine' stands twice"),
        ({"db_id": "third", "question": "x?", "database": "other.sqlite"}, r"train\.jsonl:4: database third"),
    ],
)
def test_malformed_jsonl_row_names_file_and_line(jsonl: Path, row: dict[str, Any], why: str) -> None:
    with open(jsonl / "train.jsonl", "a") as file:
        file.write(json.dumps(row) + "\n")
    with pytest.raises(DataError, match=why):
        load("jsonl", jsonl)


def test_malformed_benchmark_entry_names_file_and_index(spider: Path) -> None:
    rows = spider_rows("cars", 2)
    del rows[1]["query"]
    (spider / "dev.json").write_text(json.dumps(rows))
    with pytest.raises(DataError, match=r"dev\.json, entry 1 has no `query`"):
        load("spider", spider)
    (spider / "dev.json").write_text('{"not": "a list"}')
    with pytest.raises(DataError, match=r"dev\.json holds dict"):
        load("spider", spider)
    (spider / "dev.json").write_text("[3]")
    with pytest.raises(DataError, match=r"dev\.json, entry 0 is int"):
        load("spider", spider)


def test_missing_and_empty_data_are_errors(spider: Path, jsonl: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"does not exist; set `data\.path`"):
        load("spider", tmp_path / "nowhere")
    (spider / "dev.json").unlink()
    with pytest.raises(DataError, match=r"dev\.json cannot be read"):
        load("spider", spider)
    (jsonl / "eval.jsonl").write_text("\n")
    with pytest.raises(DataError, match=r"eval\.jsonl holds no question"):
        load("jsonl", jsonl)


def test_unknown_database_is_listed_with_those_that_exist(spider: Path) -> None:
    with pytest.raises(DataError, match="names boats, which spider does not have; it has cars, gone"):
        load("spider", spider, databases=["cars", "boats"])
    with pytest.raises(DataError, match="no question that is left"):
        load("spider", spider, databases=["gone"])


def test_samples_depend_on_the_seed_alone_and_keep_order(spider: Path) -> None:
    one, two, other = (load("spider", spider, train_size=4, eval_size=2, seed=seed) for seed in (0, 0, 1))
    assert one.train == two.train
    assert (len(one.train), len(one.eval)) == (4, 2)
    ids = [q.id for q in load("spider", spider).train]
    assert [q.id for q in one.train] == [name for name in ids if name in {q.id for q in one.train}]
    assert one.train != other.train
    assert len(load("spider", spider, train_size=1000).train) == 9


def test_real_spider_loads_and_every_database_is_readable() -> None:
    if not (SPIDER / "train_spider.json").exists():
        pytest.skip("the Spider data set is not here; set RSTAR_SPIDER to its folder")
    corpus = load("spider", SPIDER)
    assert len(corpus.train) > 6000
    assert len(corpus.eval) > 400
    assert {q.db_id for q in corpus.train + corpus.eval} == set(corpus.databases)
    for name in sorted(corpus.databases)[::10]:
        assert introspect(corpus.databases[name]).tables


def test_held_out_queries_are_not_trained_on_in_any_wording(tmp_path: Path) -> None:
    config = DataConfig(source="demo", databases=["music", "shop"], held_out=0.2)
    corpus = load_corpus(config, tmp_path)

    def queries(questions: tuple[Question, ...]) -> set[tuple[str, str]]:
        return {(q.db_id, "".join((q.gold_sql or "").lower().split())) for q in questions}

    train, evaluation = queries(corpus.train), queries(corpus.eval)
    assert not train & evaluation
    assert 0.15 < len(evaluation) / (len(train) + len(evaluation)) < 0.25
    assert {q.id for q in corpus.eval} <= {
        q.id for q in load_corpus(DataConfig(databases=["music", "shop"]), tmp_path).train
    }


def test_demo_questions_keep_to_the_grades_asked_for(tmp_path: Path) -> None:
    corpus = load_corpus(DataConfig(databases=["music", "shop"], hardness=["easy"]), tmp_path)
    assert {q.meta["hardness"] for q in corpus.train + corpus.eval} == {"easy"}
    assert {q.db_id for q in corpus.train} == {"music", "shop"} and len(corpus.train) == 4000
