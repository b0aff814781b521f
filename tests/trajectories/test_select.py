from __future__ import annotations

from rstar_trl.search.tree import Tree
from rstar_trl.trajectories.select import best_right, failed, finished, right_trajectories, wrong_trajectories


def forked(values: list[tuple[float, str]]) -> Tree:
    """One right trajectory of two steps per `(q of the first step, final SQL)`."""
    tree = Tree("q", "db", "prompt")
    for number, (q, sql) in enumerate(values):
        step = tree.add(0, f"FROM t{number}", q=q)
        tree.add(step, f"SELECT {number}", sql=sql, terminal=True, reward=1.0, q=1.0)
    return tree


def test_right_trajectories_come_best_first_by_mean_q() -> None:
    tree = forked([(0.1, "a"), (0.9, "b"), (0.5, "c")])
    assert [tree.sql[leaf] for leaf in right_trajectories(tree, 2)] == ["b", "c"]


def test_equal_means_are_ranked_by_least_q() -> None:
    tree = Tree("q", "db", "prompt")
    for sql, first, second in (("uneven", -1.0, 1.0), ("even", 0.0, 0.0)):
        step = tree.add(0, sql, q=first)
        tree.add(step, "SELECT", sql=sql, terminal=True, reward=1.0, q=second)
    assert [tree.sql[leaf] for leaf in right_trajectories(tree, 2)] == ["even", "uneven"]


def test_no_final_query_is_chosen_twice(tree: Tree) -> None:
    assert right_trajectories(tree, 5) == [5]


def test_wrong_dead_and_infra_ends_are_never_right(tree: Tree) -> None:
    assert [finished(tree, node) for node in (3, 4, 5, 6)] == [False, False, True, True]
    assert [failed(tree, node) for node in (3, 4, 5, 6)] == [True, False, False, False]
    assert wrong_trajectories(tree, 5) == [8, 6]


def test_best_right_looks_at_all_trees_of_a_question() -> None:
    first, second = forked([(0.1, "a"), (0.2, "b")]), forked([(0.9, "a"), (0.3, "c")])
    assert [(tree is second, tree.sql[leaf]) for tree, leaf in best_right([first, second], 2)] == [
        (True, "a"),
        (True, "c"),
    ]


def test_a_node_closed_because_its_children_are_is_no_trajectory() -> None:
    tree = forked([(0.1, "a")])
    tree.terminal[1] = True
    assert right_trajectories(tree, 5) == [2]
    assert not failed(tree, 1)
