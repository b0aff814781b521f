from __future__ import annotations

import json

from rstar_trl.search.tree import NODE_COLUMNS, Tree


def grown() -> Tree:
    tree = Tree("q", "db", "prompt", "digest", seed=3, answer=3, meta={"sampled": True})
    first = tree.add(0, "FROM a", kind="FROM", prior=0.5)
    tree.add(0, "FROM b", verdict="sql_error", terminal=True, error="no such table: b")
    tree.add(first, "SELECT x", terminal=True, reward=1.0, value=None, result="k")
    return tree


def test_record_survives_json() -> None:
    tree = grown()
    again = Tree.from_record(json.loads(json.dumps(tree.record())))
    assert again == tree
    assert again.record() == tree.record()


def test_every_column_grows_with_every_node() -> None:
    tree = grown()
    assert {name: len(getattr(tree, name)) for name in NODE_COLUMNS} == dict.fromkeys(NODE_COLUMNS, 4)
    assert set(NODE_COLUMNS) == {name for name, value in vars(tree).items() if isinstance(value, list)}


def test_paths_steps_and_children() -> None:
    tree = grown()
    assert tree.path(0) == [] and tree.steps(0) == ()
    assert tree.path(3) == [1, 3] and tree.steps(3) == ("FROM a", "SELECT x")
    assert (tree.children(0), tree.children(1), tree.children(3)) == ([1, 2], [3], [])
    assert all(tree.parent[node] < node for node in range(len(tree)))


def test_trees_share_no_columns() -> None:
    grown().add(0, "FROM c")
    assert len(Tree("q", "db", "p")) == 1 and Tree("q", "db", "p").text == [""]
