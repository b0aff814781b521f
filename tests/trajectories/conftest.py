"""A hand-made tree in which every rule of selection and pairing has something to decide."""

from __future__ import annotations

from pathlib import Path

import pytest

from rstar_trl.search.tree import Tree
from tests.trajectories.people import make_people


def finish(tree: Tree, parent: int, text: str, sql: str, reward: float) -> int:
    return tree.add(parent, text, sql=sql, terminal=True, reward=reward, q=reward, visits=1)


@pytest.fixture
def tree() -> Tree:
    """Nodes: 1 FROM a (right and wrong ends below), 2 FROM b (wrong below), 3 a dead end, 4 our own fault.

    Under 1: 5 right `x`, 6 wrong `y`, 7 right again with the SQL of 5 and another thought; under 2: 8 wrong `z`.
    """
    tree = Tree("q1", "db", "Schema and question\n")
    tree.add(0, "-- from a\nFROM a", sql="SELECT * FROM a", q=0.4, visits=4)
    tree.add(0, "-- from b\nFROM b", sql="SELECT * FROM b", q=-0.8, visits=2)
    tree.add(
        0, "FROM nowhere", sql="SELECT * FROM nowhere", terminal=True, verdict="sql_error", error="no such table", q=0
    )
    tree.add(0, "FROM broken", terminal=True, verdict="infra", error="worker died")
    finish(tree, 1, "-- the x\nSELECT x", "SELECT x FROM a", 1.0)
    finish(tree, 1, "-- the y\nSELECT y", "SELECT y FROM a", -1.0)
    finish(tree, 1, "-- x again\nSELECT x", "SELECT x  FROM a", 1.0)
    finish(tree, 2, "-- the z\nSELECT z", "SELECT z FROM b", -1.0)
    return tree


@pytest.fixture(scope="session")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("people") / "people.sqlite"
    make_people(path)
    return path
