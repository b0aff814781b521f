from __future__ import annotations

import pytest

from rstar_trl.search.tree import Tree
from rstar_trl.trajectories.pairs import outcomes, step_pairs, trajectory_pairs


def test_step_pairs_follow_the_reference_rules(tree: Tree) -> None:
    pairs = {(p.chosen, p.rejected): p for p in step_pairs(tree, 0.5)}
    # Root: one chosen (1), rejected 2 (Q -0.8); 3 is a dead end and 1 itself is left out. Node 1: 5 and 7 against 6.
    assert set(pairs) == {(1, 2), (5, 6), (7, 6)}
    assert pairs[1, 2].margin == pytest.approx(1.2)
    assert pairs[1, 2].weight == pytest.approx(1 / 2)
    assert pairs[5, 6].weight == pytest.approx(1 / 2)


def test_margin_is_exclusive(tree: Tree) -> None:
    assert {(p.chosen, p.rejected) for p in step_pairs(tree, 1.25)} == {(5, 6), (7, 6)}


def test_nothing_is_preferred_where_all_failed_or_all_succeeded() -> None:
    for reward in (1.0, -1.0):
        tree = Tree("q", "db", "p")
        for number in range(3):
            tree.add(0, str(number), terminal=True, reward=reward, q=reward)
        assert step_pairs(tree, 0.5) == []
        assert trajectory_pairs(tree) == []


@pytest.mark.parametrize(("good", "bad", "expected"), [(5, 5, 4), (1, 6, 4), (6, 1, 4), (1, 2, 2), (3, 2, 4)])
def test_two_by_two_or_one_by_four(good: int, bad: int, expected: int) -> None:
    tree = Tree("q", "db", "p")
    for number in range(good):
        tree.add(0, f"right {number}", sql=f"r{number}", terminal=True, reward=1.0, q=1.0)
    for number in range(bad):
        tree.add(0, f"wrong {number}", sql=f"w{number}", terminal=True, reward=-1.0, q=-1.0)
    for pairs in (step_pairs(tree, 0.5), trajectory_pairs(tree)):
        assert len(pairs) == expected
        assert sum(pair.weight for pair in pairs) == pytest.approx(1)
        assert all(tree.reward[p.chosen] == 1 and tree.reward[p.rejected] == -1 for p in pairs)


def test_a_dead_end_below_does_not_make_its_parent_bad() -> None:
    tree = Tree("q", "db", "p")
    parent = tree.add(0, "FROM a", q=-0.9)
    tree.add(0, "FROM b", terminal=True, reward=1.0, q=1.0)
    tree.add(parent, "WHERE nonsense", terminal=True, verdict="sql_error", error="no column")
    assert step_pairs(tree, 0.5) == []


def test_our_own_fault_is_never_rejected(tree: Tree) -> None:
    pairs = [*step_pairs(tree, -10), *trajectory_pairs(tree)]
    assert 4 not in {p.rejected for p in pairs}
    assert all(p.chosen != p.rejected for p in pairs)


def test_outcomes_reach_the_root(tree: Tree) -> None:
    known = outcomes(tree)
    assert known.right[:5] == [True, True, False, False, False]
    assert known.wrong[:5] == [True, True, True, False, False]
    assert known.children == [tree.children(node) for node in range(len(tree))]
