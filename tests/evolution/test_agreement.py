"""Training questions without an answer: kept for the rounds that reward by agreement, set aside otherwise."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from rstar_trl.evolution.launch import Processes
from rstar_trl.evolution.plan import plan
from rstar_trl.evolution.recipe import load_recipe
from rstar_trl.evolution.run_data import load_data, prepare_data
from tests.scripted import make_database


def test_unanswered_questions_are_kept_only_where_agreement_rewards_them(
    tmp_path: Path, write_recipe: Callable[..., Path], minimal: str
) -> None:
    (tmp_path / "databases").mkdir()
    make_database(tmp_path / "databases/music.sqlite")
    rows = [{"db_id": "music", "question": "how many?", "gold_sql": "SELECT COUNT(*) FROM singer"}]
    bare = [{"db_id": "music", "question": "which names?"}]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, *bare]))
    (tmp_path / "eval.jsonl").write_text(json.dumps(rows[0]) + "\n")
    recipe = write_recipe(minimal + f"data: {{source: jsonl, path: {tmp_path}}}\n")
    found = {}
    agreeing = "rounds=[{guide: reward, search: {self_consistency: 0.5}}]"
    for name, settings in {"without": [], "with": [agreeing]}.items():
        loaded = load_recipe(recipe, [*settings, f"output_dir={tmp_path}/{name}"])
        stage = plan(loaded.recipe)[0]
        metrics = prepare_data(loaded, stage, Processes(0, 1, False))
        found[name] = (metrics["train"], metrics["quarantined"])
        stored = load_data(loaded.folder / "data").train
        assert [q.question for q in stored if q.gold_result is None] == ([] if name == "without" else ["which names?"])
    assert found == {"without": (1, 1), "with": (2, 0)}
