from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

from rstar_trl.config import TrajectoryConfig
from rstar_trl.errors import DataError
from rstar_trl.io import read_jsonl
from rstar_trl.search.tree import Tree
from rstar_trl.trajectories.dataset import FILES, sft_row, write_datasets
from rstar_trl.trajectories.rows import split_step
from rstar_trl.trajectories.store import append_tree, read_trees

CONFIG = TrajectoryConfig()


def renamed(tree: Tree, name: str) -> Tree:
    tree = copy.deepcopy(tree)
    tree.question_id = name
    return tree


def read(folder: Path, name: str) -> list[dict]:
    return read_jsonl(folder / f"{name}.jsonl")[0]


def test_trees_survive_the_disk_and_a_torn_line(tree: Tree, tmp_path: Path) -> None:
    for number, name in enumerate(("b", "a", "c")):
        append_tree(tmp_path / f"trees-{number % 2}.jsonl", renamed(tree, name))
    with open(tmp_path / "trees-0.jsonl", "a") as file:
        file.write('{"question_id": "torn", "par')
    trees = read_trees([tmp_path])
    assert [t.question_id for t in trees] == ["a", "b", "c"]
    assert trees[0] == renamed(tree, "a")


def test_a_line_that_is_no_tree_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"question_id": "q", "nonsense": 1}\n')
    with pytest.raises(DataError, match=r"x\.jsonl"):
        read_trees([tmp_path / "x.jsonl"])


def test_every_rendering_of_one_tree(tree: Tree, tmp_path: Path) -> None:
    counts = write_datasets([tree], tmp_path, CONFIG)
    assert counts == {
        "sft": 1, "instruction": 1, "step_by_step": 1, "qa": 1, "preference": 5, "stepwise": 3, "trees": 1,
        "extra": 0, "questions": 1, "solved": 1,
    }  # fmt: skip
    completion = "-- from a\nFROM a\n\n-- the x\nSELECT x"
    row = {"question_id": "q1", "prompt": tree.prompt, "completion": completion, "weight": pytest.approx(0.85)}
    assert read(tmp_path, "sft") == [row]
    assert read(tmp_path, "instruction")[0]["output"] == "SELECT x FROM a"
    steps = "1. from a\n   FROM a\n2. the x\n   SELECT x\n\nFinal SQL:\nSELECT x FROM a"
    assert read(tmp_path, "step_by_step")[0]["completion"] == steps
    assert read(tmp_path, "qa")[0]["answer"] == "Steps: from a; the x.\n\n```sql\nSELECT x FROM a\n```"
    labels = [(row["completions"][-1], row["labels"]) for row in read(tmp_path, "stepwise")]
    assert labels[0] == ("-- the x\nSELECT x", [True, True])
    assert labels[1] == ("-- the z\nSELECT z", [False, False])
    assert labels[2] == ("-- the y\nSELECT y", [True, False])
    assert Tree.from_record(json.loads(read(tmp_path, "trees")[0]["tree"])) == tree


def test_preference_rows_say_where_steps_begin_and_end(tree: Tree, tmp_path: Path) -> None:
    write_datasets([tree], tmp_path, CONFIG)
    rows = read(tmp_path, "preference")
    deep = next(row for row in rows if row["chosen"] == "-- the x\nSELECT x")
    assert deep["prompt"] == tree.prompt + "-- from a\nFROM a\n\n"
    assert deep["prompt"][: deep["prompt_chars"]] == tree.prompt
    assert (deep["chosen_final"], deep["rejected_final"]) == (True, True)
    first = next(row for row in rows if row["prompt"] == tree.prompt and "\n\n" not in row["chosen"])
    assert (first["chosen_final"], first["rejected_final"]) == (False, False)
    assert all(row["rejected"] != "FROM nowhere" for row in rows), "a dead end is found by running it"
    whole = [row for row in rows if "\n\n" in row["chosen"]]
    assert {row["prompt"] for row in whole} == {tree.prompt}
    assert len(whole) == 2


def test_rows_do_not_depend_on_the_order_of_questions(tree: Tree, tmp_path: Path) -> None:
    trees = [renamed(tree, name) for name in ("q2", "q10", "q1")]
    write_datasets(trees, tmp_path / "one", CONFIG)
    write_datasets(trees[::-1], tmp_path / "two", CONFIG)
    for name in FILES:
        assert (tmp_path / "one" / f"{name}.jsonl").read_bytes() == (tmp_path / "two" / f"{name}.jsonl").read_bytes()


def test_the_same_tree_of_two_rounds_adds_no_row(tree: Tree, tmp_path: Path) -> None:
    once = write_datasets([tree], tmp_path / "once", CONFIG)
    twice = write_datasets([tree, copy.deepcopy(tree)], tmp_path / "twice", CONFIG)
    assert twice == {**once, "trees": 2}


def test_extra_rows_join_unless_the_search_found_them(tree: Tree, tmp_path: Path) -> None:
    found = {"question_id": "q1", "prompt": tree.prompt, "completion": "-- from a\nFROM a\n\n-- the x\nSELECT x"}
    other = {"question_id": "q0", "prompt": "another", "completion": "SELECT 1"}
    counts = write_datasets([tree], tmp_path, CONFIG, [found, other, other])
    assert read(tmp_path, "sft") == [other, {**found, "weight": pytest.approx(0.85)}]
    assert counts["extra"] == 1


def test_the_largest_margins_are_kept(tree: Tree, tmp_path: Path) -> None:
    write_datasets([tree], tmp_path, TrajectoryConfig(max_pairs_per_question=2))
    assert [row["margin"] for row in read(tmp_path, "preference")] == [2.0, 2.0]


def test_an_unsolved_question_teaches_no_policy(tree: Tree, tmp_path: Path) -> None:
    tree.reward = [-1.0 if reward else None for reward in tree.reward]
    counts = write_datasets([tree], tmp_path, CONFIG)
    assert (counts["sft"], counts["preference"], counts["solved"]) == (0, 0, 0)


def test_every_file_loads_as_a_dataset(tree: Tree, tmp_path: Path) -> None:
    from datasets import load_dataset

    blank = Tree("q0", "db", "p")
    write_datasets([blank, tree, renamed(tree, "q2")], tmp_path, CONFIG)
    for name in FILES:
        file = str(tmp_path / f"{name}.jsonl")
        dataset = load_dataset("json", data_files=file, split="train", cache_dir=str(tmp_path / "cache"))
        assert len(dataset) == len(read(tmp_path, name)) > 0


def test_a_trajectory_weighs_its_mean_q(tree: Tree) -> None:
    row = sft_row(tree, 5)
    assert row["completion"] == "-- from a\nFROM a\n\n-- the x\nSELECT x"
    assert row["weight"] == pytest.approx((1 + (0.4 + 1.0) / 2) / 2)


def test_split_step() -> None:
    assert split_step("-- only 2014\nWHERE year = 2014\n  AND x > 1") == ("only 2014", "WHERE year = 2014 AND x > 1")
    assert split_step("LIMIT 1") == ("", "LIMIT 1")
