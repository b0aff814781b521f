"""What `ask` prints, and which model it takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from rstar_trl.errors import ConfigError, EngineError, RunError
from rstar_trl.evolution.ask import MAX_ROWS, find_model, render_answer, render_tree
from rstar_trl.search.tree import Tree
from rstar_trl.sql.execution import Execution


@pytest.fixture
def tree() -> Tree:
    grown = Tree("q", "db", "prompt", generated_tokens=12)
    singer = grown.add(0, "-- use singer\nFROM singer", visits=5, q=0.5)
    grown.add(0, "-- wrong\nFROM nowhere", visits=1, q=-1.0, verdict="sql_error", error="no such table", terminal=True)
    grown.answer = grown.add(
        singer, "-- show name\nSELECT name", sql="SELECT name FROM singer", visits=4, terminal=True
    )
    return grown


def test_tree_shows_visits_values_clauses_answer_and_dead_ends(tree: Tree) -> None:
    lines = render_tree(tree).splitlines()
    assert lines[1] == "├─* [  5 q=+0.50] FROM singer"
    assert lines[2] == "│  └─* [  4 q=+0.00] SELECT name"
    assert lines[3] == "└─x [  1 q=-1.00] FROM nowhere"


def test_answer_shows_steps_sql_and_bounded_rows(tree: Tree) -> None:
    rows = tuple((f"name {i}", None) for i in range(MAX_ROWS + 5))
    text = render_answer(tree, Execution("ok", rows, ("name", "age")))
    assert "-- use singer\nFROM singer\n\n-- show name\nSELECT name" in text
    assert "SQL: SELECT name FROM singer" in text and "name | age\nname 0 | NULL" in text
    assert f"name {MAX_ROWS - 1} |" in text and f"name {MAX_ROWS} |" not in text and "and 5 more rows" in text


def test_no_answer_is_said_so() -> None:
    assert "No query that runs was found" in render_answer(Tree("q", "db", "p"), None)


def test_model_that_is_no_model_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="neither a run folder nor a model folder"):
        find_model(tmp_path)
    (tmp_path / "recipe.yaml").write_text("name: x\n")
    with pytest.raises(RunError, match="no finished policy yet"):
        find_model(tmp_path)


def test_search_settings_can_be_set_and_are_checked(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert find_model(tmp_path, ["search.simulations=3"]).search.simulations == 3
    with pytest.raises(ConfigError, match="did you mean `simulations`"):
        find_model(tmp_path, ["search.simulation=3"])
