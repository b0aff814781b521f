"""Official files in, official scores out: by hand, with bad input, by the command line, and through `evaluate`."""

from __future__ import annotations

import json
import math
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rstar_trl.cli import app
from rstar_trl.config import SandboxConfig
from rstar_trl.errors import DataError
from rstar_trl.evaluation import test_suite
from rstar_trl.evaluation.bird import _score, bird_scores, mean_ratio, r_ves, reward, ves
from rstar_trl.evaluation.official import score_bird, score_spider
from rstar_trl.evaluation.official_tables import render
from rstar_trl.evaluation.prediction_files import load_bird, load_spider
from rstar_trl.evaluation.test_suite import database_files, execution_outcomes, fillings
from rstar_trl.sql.execution import SqlJob
from rstar_trl.sql.sandbox import Sandbox

METRICS = Path(__file__).parents[2] / "rstar_trl/evaluation/metrics"
TABLES = [
    {
        "db_id": "music",
        "table_names_original": ["singer"],
        "column_names_original": [[-1, "*"], [0, "id"], [0, "name"], [0, "age"]],
        "foreign_keys": [],
    }
]
GOLD = [
    "SELECT name FROM singer",
    "SELECT name FROM singer WHERE age > 30",
    "SELECT name , age FROM singer ORDER BY age",
    "SELECT count(*) FROM singer",
]


def make(path: Path, ages: Sequence[int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE singer (id INTEGER, name TEXT, age INTEGER)")
    connection.executemany("INSERT INTO singer VALUES (?, ?, ?)", [(i, f"n{i}", age) for i, age in enumerate(ages)])
    connection.commit()
    connection.close()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with two database files for one schema, `tables.json`, and four gold queries."""
    make(tmp_path / "database/music/music.sqlite", [20, 31, 40])
    make(tmp_path / "database/music/music_second.sqlite", [30, 31, 29, 31])
    (tmp_path / "tables.json").write_text(json.dumps(TABLES))
    (tmp_path / "gold.txt").write_text("".join(f"{sql}\tmusic\n" for sql in GOLD))
    return tmp_path


def spider(data: Path, sandbox: Sandbox, predictions: Sequence[str], **options: Any) -> dict[str, Any]:
    (data / "pred.txt").write_text("".join(f"{sql}\n" for sql in predictions))
    loaded = load_spider(data / "gold.txt", data / "pred.txt")
    return score_spider(loaded, data / "database", data / "tables.json", sandbox, **options)


def run(data: Path, sandbox: Sandbox, predicted: str, gold: str, **options: bool) -> bool | None:
    files = database_files(data / "database", "music")
    return execution_outcomes([(predicted, gold, files)], sandbox, **options)[0].right


# --- test suites -----------------------------------------------------------------------------------------------------


def test_right_means_right_on_every_file(data: Path, shared_sandbox: Sandbox) -> None:
    predicted, gold = "SELECT name FROM singer WHERE age >= 30", "SELECT name FROM singer WHERE age > 30"
    assert len(database_files(data / "database", "music")) == 2
    assert run(data, shared_sandbox, predicted, gold) is False
    (data / "database/music/music_second.sqlite").unlink()
    assert run(data, shared_sandbox, predicted, gold) is True


def test_distinct_counts_only_where_it_is_kept(data: Path, shared_sandbox: Sandbox) -> None:
    pair = "SELECT DISTINCT age FROM singer", "SELECT age FROM singer"
    assert run(data, shared_sandbox, *pair) is True
    assert run(data, shared_sandbox, *pair, keep_distinct=True) is False


def test_gold_values_are_plugged_in_where_asked(data: Path, shared_sandbox: Sandbox) -> None:
    pair = "SELECT name FROM singer WHERE age > 99 AND name != 'x'", "SELECT name FROM singer WHERE age > 30"
    assert run(data, shared_sandbox, *pair) is False
    assert run(data, shared_sandbox, *pair, plug_value=True) is True
    assert run(data, shared_sandbox, "SELECT name FROM singer WHERE age < 99", pair[1], plug_value=True) is False


def test_fillings_are_all_ways_to_put_gold_values_into_slots() -> None:
    count, found = fillings("SELECT T1.a WHERE b = 1 AND c = 'x y' LIMIT 3", 'SELECT a WHERE b = .5 AND c = "z"')
    sql = list(found)
    assert len(sql) == len(set(sql)) == count == 2**3
    assert 'SELECT T1.a WHERE b = .5 AND c = "z" LIMIT .5' in sql
    assert list(fillings("SELECT a", "SELECT a WHERE b = 1")[1]) == ["SELECT a"]
    assert list(fillings("SELECT a WHERE b = 1", "SELECT a")[1]) == []


def test_fillings_have_the_quirks_of_the_official_evaluator() -> None:
    """Each was seen side by side: semicolons go, a name like `s1` is taken for a number, the current year is not."""
    gold = "SELECT a FROM b WHERE c = 7"
    predicted = "SELECT T2.* FROM b AS T2 WHERE c IN (1;) AND YEAR(CURDATE()) > 1;"
    filled = "SELECT T2.* FROM b AS T2 WHERE c IN (7) AND YEAR(CURDATE()) > 7"
    assert list(fillings(predicted, gold)[1]) == [filled]
    assert list(fillings("SELECT s1.a FROM b AS s1", gold)[1]) == ["SELECT 7.a FROM b AS 7"]


def test_fillings_that_are_not_tried_are_told(
    data: Path, shared_sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(test_suite, "MAX_FILLINGS", 3)
    predicted = "SELECT age FROM singer WHERE age > 1 AND age > 2"
    gold = "SELECT name FROM singer WHERE age > 30 OR age < 20"
    files = database_files(data / "database", "music")
    (outcome,) = execution_outcomes([(predicted, gold, files)], shared_sandbox, plug_value=True)
    assert outcome.right is False and outcome.note == "3 of 4 ways to plug gold values in were tried."


def test_text_is_put_right_before_it_runs(data: Path, shared_sandbox: Sandbox) -> None:
    assert run(
        data, shared_sandbox, "SELECT name FROM singer WHERE age > = 31", "SELECT name FROM singer WHERE age > 30"
    )
    assert run(data, shared_sandbox, "SELECT YEAR(CURDATE())", "SELECT 2020")
    pair = "SELECT YEAR(CURDATE()) , 8", "SELECT 2020 , 9"
    assert run(data, shared_sandbox, *pair, plug_value=True)


def test_gold_that_fails_is_not_a_wrong_prediction(data: Path, shared_sandbox: Sandbox) -> None:
    files = database_files(data / "database", "music")
    (outcome,) = execution_outcomes([("SELECT 1", "SELECT nope", files)], shared_sandbox)
    assert outcome.right is None and "gold query fails on music.sqlite: sql_error" in outcome.problem


def test_prediction_that_never_ends_is_wrong_in_time(data: Path) -> None:
    """The limit of the official evaluators never fires in one thread; ours does, and the next query is judged."""
    gold = "SELECT COUNT(*) FROM singer"
    endless = "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r) SELECT COUNT(*) FROM r"
    files = database_files(data / "database", "music")
    with Sandbox(SandboxConfig(timeout=0.3)) as sandbox:
        found = execution_outcomes([(endless, gold, files), (gold, gold, files)], sandbox)
        (score,) = bird_scores([(endless, gold, str(files[0]))], sandbox)
    assert [(each.right, each.valid) for each in found] == [(False, False), (True, True)]
    assert (score.ex, score.soft_f1, score.valid) == (0.0, 0.0, False)


def test_birds_limit_holds_for_both_queries_together(data: Path) -> None:
    slow = "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r WHERE n < 200000) SELECT COUNT(*) FROM r"
    database = str(data / "database/music/music.sqlite")
    with Sandbox(SandboxConfig(timeout=30)) as sandbox:
        (alone,) = sandbox.run([SqlJob(database, slow)])
        assert bird_scores([(slow, slow + " ", database)], sandbox)[0].ex == 1.0
    assert _score(alone, alone, 1.5 * alone.seconds).ex == 0.0


# --- whole files -----------------------------------------------------------------------------------------------------


def test_spider_scores_by_hand(data: Path, shared_sandbox: Sandbox) -> None:
    scores = spider(
        data,
        shared_sandbox,
        [GOLD[0], "SELECT name FROM singer WHERE age >= 31", "SELECT age FROM singer", "SELECT x"],
    )
    easy, medium, everything = (scores["levels"][level] for level in ("easy", "medium", "all"))
    assert [level["count"] for level in scores["levels"].values()] == [3, 1, 0, 0, 4]
    # The second gives the gold rows but is another query; the last does not run.
    assert (easy["execution"], easy["exact_match"]) == (pytest.approx(2 / 3), pytest.approx(1 / 3))
    assert (medium["execution"], medium["exact_match"], medium["valid_sql"]) == (0, 0, 1)
    assert everything["valid_sql"] == 0.75 and scores["scored"] == 4
    # Of four predictions one cannot be read: three have a select, of which two match; gold has four.
    assert everything["partial"]["select"]["accuracy"] == pytest.approx(2 / 3)
    assert everything["partial"]["select"]["recall"] == pytest.approx(2 / 4)
    assert everything["partial"]["select"]["f1"] == pytest.approx(4 / 7)
    # No query has the component: official tables show 0, 0 and 1.
    assert everything["partial"]["IUEN"] == {"accuracy": 0.0, "recall": 0.0, "f1": 1.0}
    table = render(scores)
    assert "execution            0.667                0.000" in table and "spider_ts" in table


def test_a_metric_that_was_not_asked_for_is_not_there(data: Path, shared_sandbox: Sandbox) -> None:
    assert "execution" not in spider(data, shared_sandbox, GOLD, wanted="match")["levels"]["all"]
    assert "partial" not in spider(data, shared_sandbox, GOLD, wanted="exec")["levels"]["all"]


@pytest.mark.parametrize(
    ("gold", "predictions", "scored", "left_out", "missing", "problem"),
    [
        (GOLD, GOLD[:2], 4, 0, 2, "pred.txt has 2 lines, {}/gold.txt has 4: from line 3 on, the missing"),
        (GOLD, [*GOLD, "SELECT 1"], 4, 0, 0, "from line 5 on, predictions are ignored"),
        (GOLD, [GOLD[0], "", *GOLD[2:]], 4, 0, 1, "pred.txt:2 is empty; it counts as wrong"),
        (GOLD, ["SELECT\tname", *GOLD[1:]], 4, 0, 0, "pred.txt:1 has a tab in its SQL"),
        (GOLD, [GOLD[0] + "\tmusic", *GOLD[1:]], 4, 0, 0, ""),
        (["SELECT\tname FROM singer"], GOLD[:1], 1, 0, 0, "gold.txt:1 has a tab in its SQL"),
        (
            ["SELECT nope FROM singer", *GOLD[1:]],
            GOLD,
            3,
            1,
            0,
            "gold.txt:1: the query is outside of Spider's grammar",
        ),
        ([GOLD[0], "", GOLD[1]], [GOLD[0], "", GOLD[1]], 2, 0, 0, ""),
        ([GOLD[0], "", GOLD[1]], [GOLD[0], GOLD[1], GOLD[1]], 2, 1, 0, "gold.txt:2 is empty, but"),
    ],
)
def test_bad_lines_are_located_and_the_rest_is_scored(
    data: Path,
    shared_sandbox: Sandbox,
    gold: list[str],
    predictions: list[str],
    scored: int,
    left_out: int,
    missing: int,
    problem: str,
) -> None:
    (data / "gold.txt").write_text("".join(f"{sql}\tmusic\n" if sql else "\n" for sql in gold))
    scores = spider(data, shared_sandbox, predictions)
    counts = scores["scored"], scores["not_scored"], scores["missing_predictions"]
    assert counts == (scored, left_out, missing)
    assert bool(scores["problems"]) is bool(problem)
    assert problem.replace("{}", str(data)) in "\n".join(scores["problems"])


def test_missing_predictions_are_wrong_not_left_out(data: Path, shared_sandbox: Sandbox) -> None:
    assert spider(data, shared_sandbox, GOLD[:1])["levels"]["all"]["execution"] == 0.25


def test_lines_without_a_database_or_with_an_unknown_one_are_left_out(data: Path, shared_sandbox: Sandbox) -> None:
    (data / "gold.txt").write_text(f"{GOLD[0]}\tmusic\n{GOLD[0]} music\n{GOLD[0]}\tnowhere\n")
    scores = spider(data, shared_sandbox, GOLD[:3])
    assert (scores["scored"], scores["not_scored"]) == (1, 2)
    assert "gold.txt:2 has no tab" in scores["problems"][0]
    assert "gold.txt:3: there is no database nowhere" in scores["problems"][1]


def test_undecodable_bytes_are_located(data: Path, shared_sandbox: Sandbox) -> None:
    (data / "pred.txt").write_bytes(b"SELECT name FROM singer WHERE name != '\xff'\n" + b"SELECT 1\n" * 3)
    loaded = load_spider(data / "gold.txt", data / "pred.txt")
    scores = score_spider(loaded, data / "database", data / "tables.json", shared_sandbox)
    assert scores["problems"] == [f"{data}/pred.txt:1 has bytes that are not UTF-8; they are read as \ufffd."]
    assert scores["scored"] == 4 and scores["levels"]["all"]["execution"] == 0.25


def test_folders_and_files_that_are_not_there_are_one_sentence(data: Path, shared_sandbox: Sandbox) -> None:
    (data / "empty").mkdir()
    loaded = load_spider(data / "gold.txt", data / "gold.txt")
    for folder, sentence in ((data / "empty", "holds no database"), (data / "nowhere", "does not exist")):
        with pytest.raises(DataError, match=sentence):
            score_spider(loaded, folder, data / "tables.json", shared_sandbox)
    with pytest.raises(DataError, match=r"nothing\.txt cannot be read"):
        load_spider(data / "gold.txt", data / "nothing.txt")
    (data / "blank.txt").write_text("\n\n")
    with pytest.raises(DataError, match=r"holds no gold query that can be read: .*blank\.txt has 0"):
        load_spider(data / "blank.txt", data / "gold.txt")
    (data / "schemas.json").write_text('[{"db_id": "music"}]')
    with pytest.raises(DataError, match=r"no list of schemas .* give Spider's own"):
        score_spider(loaded, data / "database", data / "schemas.json", shared_sandbox)


# --- BIRD ------------------------------------------------------------------------------------------------------------


def bird_files(data: Path, answers: dict[str, Any], difficulties: Sequence[str]) -> tuple[Path, Path, Path]:
    gold, predictions, graded = data / "gold.txt", data / "predict.json", data / "dev.json"
    predictions.write_text(json.dumps(answers))
    graded.write_text(json.dumps([{"difficulty": each} for each in difficulties]))
    return gold, predictions, graded


def test_bird_scores_by_hand(data: Path, shared_sandbox: Sandbox) -> None:
    mark = "\t----- bird -----\tmusic"
    answers = {
        "0": "SELECT DISTINCT name FROM singer ORDER BY age DESC" + mark,
        "1": "SELECT name, 1 FROM singer WHERE age > 30" + mark,
        "2": "SELECT age, name FROM singer ORDER BY age" + mark,
        "3": "SELECT COUNT(* FROM singer" + mark,
    }
    files = bird_files(data, answers, ["simple", "simple", "moderate", "challenging"])
    scores = score_bird(load_bird(*files), data / "database", shared_sandbox)
    levels = scores["levels"]
    assert {name: level["count"] for name, level in levels.items()} == {
        "simple": 2, "moderate": 1, "challenging": 1, "total": 4,
    }  # fmt: skip
    assert {name: level["ex"] for name, level in levels.items()} == {
        "simple": 50.0, "moderate": 0.0, "challenging": 0.0, "total": 25.0,
    }  # fmt: skip
    # Rows in reverse share the middle one: 1 of 3. A second column that gold lacks: F1 of 1 and 1/2. Swapped: 1.
    assert levels["simple"]["soft_f1"] == pytest.approx(100 * (1 / 3 + 2 / 3) / 2)
    assert levels["moderate"]["soft_f1"] == 100.0
    assert levels["total"]["valid_sql"] == 75.0 and not scores["problems"]
    assert "bird_set" in render(scores)


def test_bird_bad_input_is_located(data: Path, shared_sandbox: Sandbox) -> None:
    answers = {"0": "SELECT 1\t----- bird -----\tother", "1": 7, "2": GOLD[2], "x": "", "9": ""}
    files = bird_files(data, answers, ["simple", "odd"])
    scores = score_bird(load_bird(*files), data / "database", shared_sandbox)
    text = "\n".join(scores["problems"])
    for sentence in (
        "key 0 names database other, the gold music",
        "key 1 is int, not text",
        "key 2 has no `----- bird -----` mark",
        "key 'x' is no number of a gold query",
        "key '9' is no number of a gold query",
        "no answer to 1 of 4 questions, first number 3",
        "gold.txt:2 has no difficulty ('odd')",
    ):
        assert sentence in text
    assert (scores["scored"], scores["missing_predictions"]) == (4, 2)


def test_bird_reads_its_own_question_file_as_gold(data: Path, shared_sandbox: Sandbox) -> None:
    questions = [{"SQL": sql, "db_id": "music", "difficulty": "simple"} for sql in GOLD] + [{"db_id": "music"}]
    (data / "dev.json").write_text(json.dumps(questions))
    (data / "predict.json").write_text(
        json.dumps({str(i): f"{s}\t----- bird -----\tmusic" for i, s in enumerate(GOLD)})
    )
    scores = score_bird(load_bird(data / "dev.json", data / "predict.json"), data / "database", shared_sandbox)
    assert scores["levels"]["simple"]["ex"] == 100.0 and scores["not_scored"] == 1


def test_rewards_of_time_ratios() -> None:
    ratios = [0, 0.1, 0.25, 0.5, 0.99, 1, 1.99, 2, 50]
    assert [reward(ratio) for ratio in ratios] == [0, 0.25, 0.5, 0.75, 0.75, 1, 1, 1.25, 1.25]
    assert ves([4.0, 0.0]) == 100.0 and ves([]) == 0.0
    assert r_ves([4.0, 0.0]) == pytest.approx(100 * math.sqrt(1.25) / 2)


def test_outliers_beyond_three_sigma_are_dropped() -> None:
    assert mean_ratio([1.0] * 99 + [1000.0]) == 1.0
    assert mean_ratio([1.0, 3.0]) == 2.0
    assert mean_ratio([2.0, 2.0]) == 2.0


def test_faster_right_query_scores_higher_and_a_wrong_one_nothing(data: Path, shared_sandbox: Sandbox) -> None:
    database = str(data / "database/music/music.sqlite")
    slow = "SELECT count(*) * 0 + 3 FROM " + ", ".join(f"singer AS t{i}" for i in range(10))
    pairs = [("SELECT 3", slow, database), (slow, "SELECT 3", database), ("SELECT 4", "SELECT 3", database)]
    fast, behind, wrong = (score.ratio for score in bird_scores(pairs, shared_sandbox, iterations=5))
    assert fast is not None and behind is not None
    assert fast > 2 and 0 < behind < 0.5 and wrong == 0.0


# --- the command and the loadable folders ---------------------------------------------------------------------------


def test_command_prints_tables_and_writes_json(data: Path) -> None:
    (data / "pred.txt").write_text("\n".join(GOLD))
    arguments = ["metrics", str(data / "gold.txt"), str(data / "pred.txt"), "--db", str(data / "database")]
    ended = CliRunner().invoke(app, [*arguments, "--json", str(data / "out/scores.json")])
    assert ended.exit_code == 0, ended.output
    assert "exact match          1.000" in ended.output
    scores = json.loads((data / "out/scores.json").read_text())
    assert scores["levels"]["all"]["execution"] == scores["levels"]["all"]["exact_match"] == 1.0


LOAD = """
import json, sys
import evaluate
folders, gold, databases = json.loads(sys.argv[1])
found = {}
for folder in folders:
    metric = evaluate.load(folder)
    assert metric.inputs_description.startswith("Args:") and "databases:" in metric.inputs_description
    options = {"iterations": 2} if "ves" in folder else {}
    references = [{"sql": sql, "db_id": "music"} for sql in gold[:2]]
    scores = metric.compute(predictions=[gold[0], "SELECT x"], references=references, databases=databases, **options)
    assert scores["not_scored"] == 0
    found[metric.name] = {name: value for name, value in scores.items() if isinstance(value, float)}
print(json.dumps(found))
"""


def test_metric_folders_load_offline_and_score(data: Path) -> None:
    """From copies elsewhere, so that nothing but the folder and the installed package is used."""
    shutil.copytree(METRICS, data / "copied")
    folders = [str(data / "copied" / path.name) for path in METRICS.iterdir() if (path / f"{path.name}.py").exists()]
    environment = {
        **os.environ,
        "HF_HOME": str(data / "home"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(METRICS.parents[2]),
    }
    ended = subprocess.run(
        [sys.executable, "-c", LOAD, json.dumps([folders, GOLD, str(data / "database")])],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout.splitlines()[-1])
    assert found.pop("bird_ves")["ves"] > 0 and found.pop("bird_r_ves")["r_ves"] > 0
    assert found == {
        "spider_exact_match": {"exact_match": 0.5},
        "test_suite_accuracy": {"execution": 0.5},
        "bird_ex": {"ex": 50.0},
        "bird_soft_f1": {"soft_f1": 50.0},
        "valid_sql": {"valid_sql": 50.0},
    }


def test_every_metric_has_a_folder() -> None:
    named = {path.parent.name for path in METRICS.glob("*/*.py") if path.stem == path.parent.name}
    assert named == {path.name for path in METRICS.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert len(named) == 7
