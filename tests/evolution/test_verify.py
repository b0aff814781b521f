"""`verify: variants` reaches the run's data: training questions have checks, missing files are named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rstar_trl.cli import app
from rstar_trl.errors import DataError
from rstar_trl.evolution.launch import Processes
from rstar_trl.evolution.plan import plan
from rstar_trl.evolution.recipe import load_recipe
from rstar_trl.evolution.run_data import load_data, prepare_data
from tests.scripted import make_database


@pytest.fixture
def recipe(tmp_path: Path, write_recipe: Callable[..., Path], minimal: str) -> Path:
    (tmp_path / "databases").mkdir()
    make_database(tmp_path / "databases/music.sqlite")
    rows = [
        {"db_id": "music", "question": "grown-ups?", "gold_sql": "SELECT name FROM singer WHERE age > 25"},
        {"db_id": "music", "question": "how many?", "gold_sql": "SELECT COUNT(*) FROM singer"},
    ]
    for split in ("train", "eval"):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = f"data: {{source: jsonl, path: {tmp_path}, variants: {tmp_path}/variants, label_fraction: 0.5}}\n"
    return write_recipe(minimal + data + "verify: variants\n")


def test_training_questions_are_stored_with_their_checks(recipe: Path, tmp_path: Path) -> None:
    made = CliRunner().invoke(app, ["data", "variants", str(recipe), "--per-db", "2", "--out", f"{tmp_path}/variants"])
    assert made.exit_code == 0, made.output
    loaded = load_recipe(recipe)
    stage = plan(loaded.recipe)[0]
    prepare_data(loaded, stage, Processes(0, 1, False))
    data = load_data(stage.folder)
    assert [len(question.checks) for question in data.train] == [2, 2]
    assert sum(question.gold_sql is not None for question in data.train) == 1, "hidden labels keep their checks"
    assert all(Path(check.database).is_absolute() for question in data.train for check in question.checks)
    assert not any(question.checks for question in data.eval)
    plain = load_recipe(recipe, ["verify=database"])
    assert plan(plain.recipe)[0].config != stage.config, "a changed rule is another data stage"


def test_variants_that_are_missing_are_named(recipe: Path) -> None:
    loaded = load_recipe(recipe)
    with pytest.raises(DataError, match="has no variants of music"):
        prepare_data(loaded, plan(loaded.recipe)[0], Processes(0, 1, False))


def test_a_run_without_a_folder_of_variants_makes_its_own(recipe: Path) -> None:
    loaded = load_recipe(recipe, ["data.variants=null", "data.variants_per_db=3"])
    stage = plan(loaded.recipe)[0]
    prepare_data(loaded, stage, Processes(0, 1, False))
    checks = [question.checks for question in load_data(stage.folder).train]
    assert [len(each) for each in checks] == [3, 3]
    assert all(
        Path(check.database).parent == stage.folder.absolute() / "variants/music" for c in checks for check in c
    )
