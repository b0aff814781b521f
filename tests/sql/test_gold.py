"""Gold queries become results, or a quarantined question with its reason."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from rstar_trl.config import SandboxConfig
from rstar_trl.data.question import Corpus, GoldResult, Question
from rstar_trl.errors import DataError, InfraError
from rstar_trl.sql.gold import Prepared, prepare, question_from_record, question_record
from rstar_trl.sql.sandbox import Sandbox

SPIDER = Path(os.environ.get("RSTAR_SPIDER", Path(__file__).resolve().parents[2] / "../shared/data/spider"))


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(SandboxConfig(timeout=0.5, max_rows=100)) as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shop") / "shop.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE item (id INTEGER, price REAL, name TEXT)")
        connection.executemany("INSERT INTO item VALUES (?, ?, ?)", [(i, i / 4, f"n{i}") for i in range(60)])
    connection.close()
    return path


def ask(sql: str | None, id: str = "q", db_id: str = "shop", result: GoldResult | None = None) -> Question:
    return Question(id, db_id, f"What about {id}?", gold_sql=sql, gold_result=result)


def corpus(shop: Path, train: list[Question], evaluation: list[Question] | None = None) -> Corpus:
    return Corpus("test", tuple(train), tuple(evaluation or ()), {"shop": shop, "gone": shop.with_name("gone.sqlite")})


GOOD = ask("SELECT COUNT(*) FROM item", "good")


@pytest.mark.parametrize(
    ("question", "reason"),
    [
        (ask("SELECT colour FROM item"), "no such column"),
        (ask("SELECT name FROM"), "sql_error"),
        (ask("DELETE FROM item"), "rejected"),
        (ask("WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n FROM r) SELECT COUNT(*) FROM r"), "timeout"),
        (ask("SELECT a.id FROM item AS a, item AS b"), "truncated"),
        (ask("SELECT name FROM item LIMIT 2"), "LIMIT without ORDER BY"),
        (ask("SELECT random()"), "a random value"),
        (ask("SELECT name FROM item WHERE id < 0"), "empty"),
        (ask("SELECT 1", db_id="nowhere"), "'nowhere'"),
        (ask(None), "neither gold SQL nor a gold result"),
        (ask("SELECT 1", result=GoldResult(((2,),))), "other rows"),
        (ask(None, result=GoldResult(())), "empty"),
    ],
)
def test_unusable_gold_is_quarantined_with_its_reason(
    sandbox: Sandbox, shop: Path, question: Question, reason: str
) -> None:
    prepared = prepare(corpus(shop, [GOOD, question]), sandbox, 1.0, seed=0)
    assert [q.id for q in prepared.train] == ["good"]
    (item,) = prepared.quarantine
    assert (item.question_id, item.split) == ("q", "train")
    assert reason in item.reason


def test_results_are_filled_in_and_ordered_where_the_gold_query_orders(sandbox: Sandbox, shop: Path) -> None:
    questions = [
        ask("SELECT id FROM item WHERE id < 3", "bag"),
        ask("SELECT id FROM item ORDER BY price DESC LIMIT 2", "sequence"),
        ask(None, "given", result=GoldResult(((5,),), True)),
    ]
    prepared = prepare(corpus(shop, questions), sandbox, 1.0, seed=0)
    assert [q.gold_result for q in prepared.train] == [
        GoldResult(((0,), (1,), (2,)), False),
        GoldResult(((59,), (58,)), True),
        GoldResult(((5,),), True),
    ]
    assert prepared.quarantine == ()


def test_empty_gold_stays_in_eval(sandbox: Sandbox, shop: Path) -> None:
    prepared = prepare(corpus(shop, [GOOD], [ask("SELECT id FROM item WHERE id < 0")]), sandbox, 1.0, seed=0)
    assert [q.gold_result for q in prepared.eval] == [GoldResult((), False)]


def test_label_fraction_is_exact_seeded_and_nested(sandbox: Sandbox, shop: Path) -> None:
    questions = [ask(f"SELECT {i}", f"q{i}") for i in range(40)]

    def labelled(fraction: float, seed: int, order: int = 1) -> set[str]:
        whole = corpus(shop, questions[::order], [GOOD])
        prepared = prepare(whole, sandbox, fraction, seed)
        assert len(prepared.train) == 40 and all(q.gold_result for q in prepared.train)
        assert [q.id for q in prepared.train] == [q.id for q in whole.train]
        assert prepared.eval[0].gold_sql
        return {q.id for q in prepared.train if q.gold_sql}

    assert len(labelled(0.1, 0)) == 4
    assert len(labelled(0.001, 0)) == 1
    assert len(labelled(1.0, 0)) == 40
    assert labelled(0.1, 0) == labelled(0.1, 0, order=-1)
    assert labelled(0.1, 0) != labelled(0.1, 1)
    assert labelled(0.1, 0) < labelled(0.5, 0)


def test_a_database_that_cannot_be_read_is_no_reason_for_a_quarantine(sandbox: Sandbox, shop: Path) -> None:
    with pytest.raises(InfraError, match=r"gone\.sqlite cannot be opened.*run the same command again"):
        prepare(corpus(shop, [GOOD, ask("SELECT 1", db_id="gone")]), sandbox, 1.0, seed=0)


def prepare_beside_a_killer(shop: Path, questions: int) -> Prepared:
    """Gold queries, with one among them during which the worker is killed, as often as it is tried."""
    endless = "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n FROM r) SELECT COUNT(*) FROM r"
    asked = [*(ask(f"SELECT {i}", f"q{i}") for i in range(questions)), ask(endless, "killer")]
    with Sandbox(SandboxConfig(timeout=30, workers=1)) as pool:
        ended = threading.Event()

        def kill() -> None:
            (worker,) = pool._workers
            while not ended.wait(0.005):
                # The query may just have ended, and so may the worker that is being replaced.
                with contextlib.suppress(IndexError, ProcessLookupError):
                    if worker.batch[0][1] == endless:
                        os.kill(worker.process.pid, signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        try:
            return prepare(corpus(shop, asked), pool, 1.0, seed=0)
        finally:
            ended.set()
            killer.join()


def test_gold_whose_worker_dies_is_quarantined_after_its_second_try(shop: Path) -> None:
    prepared = prepare_beside_a_killer(shop, 30)
    (item,) = prepared.quarantine
    assert item.question_id == "killer" and item.reason.startswith("gold SQL: infra: the worker process died twice")
    assert len(prepared.train) == 30, "all the others are there"


def test_too_much_infra_stops_loudly(shop: Path) -> None:
    with pytest.raises(InfraError, match=r"1 of 11 gold queries .* died twice .* run the same command again"):
        prepare_beside_a_killer(shop, 10)


def test_nothing_left_is_a_data_error_that_names_the_commonest_reason(sandbox: Sandbox, shop: Path) -> None:
    with pytest.raises(DataError, match="no such table"):
        prepare(corpus(shop, [ask("SELECT 1 FROM nope", str(i)) for i in range(3)]), sandbox, 0.1, seed=0)
    with pytest.raises(DataError, match="evaluation questions"):
        prepare(corpus(shop, [GOOD], [ask("SELECT 1 FROM nope")]), sandbox, 0.1, seed=0)
    with pytest.raises(DataError, match="no questions"):
        prepare(corpus(shop, []), sandbox, 0.1, seed=0)


def test_questions_survive_json() -> None:
    result = GoldResult(((1, 0.5, None, b"\xff", "é"),), True)
    question = replace(ask("SELECT 1", result=result), evidence="e", meta={"hardness": "easy"})
    for original in (question, ask(None)):
        assert question_from_record(json.loads(json.dumps(question_record(original)))) == original


@pytest.mark.skipif(not (SPIDER / "dev.json").exists(), reason="needs Spider; set RSTAR_SPIDER to its folder")
def test_spider_dev_gold_is_usable() -> None:
    rows = json.loads((SPIDER / "dev.json").read_text())
    databases = {row["db_id"]: SPIDER / "database" / row["db_id"] / f"{row['db_id']}.sqlite" for row in rows}
    questions = tuple(
        Question(f"dev-{i}", row["db_id"], row["question"], gold_sql=row["query"]) for i, row in enumerate(rows)
    )
    with Sandbox(SandboxConfig(timeout=30, workers=1)) as pool:
        prepared = prepare(Corpus("spider", (), questions, databases), pool, 0.1, seed=0)
    reasons = {item.reason for item in prepared.quarantine}
    assert reasons <= {"gold SQL is non-deterministic: LIMIT without ORDER BY"}
    assert len(prepared.eval) >= 0.98 * len(questions)
