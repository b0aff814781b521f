"""Which finished trajectory becomes the answer, on hand-made trees."""

from __future__ import annotations

import math

import pytest

from rstar_trl.search.answers import choose_answer, weight
from rstar_trl.search.tree import Tree


def finish(tree: Tree, result: str, probability: float, value: float | None = None, count: int = 1) -> int:
    return tree.add(
        0,
        f"SELECT {len(tree)}",
        terminal=True,
        result=result,
        logprob=math.log(probability),
        value=value,
        count=count,
    )


@pytest.fixture
def tree() -> Tree:
    """Nodes 1 and 2 agree, 3 stands alone but is likelier than either, 4 is a favourite of the PPM, 5 is dead."""
    tree = Tree("q", "db", "p")
    finish(tree, "same", 0.20, value=-2.0)
    finish(tree, "same", 0.25, value=-3.0)
    finish(tree, "lone", 0.40, value=0.0)
    finish(tree, "rare", 0.05, value=1.0)
    tree.add(0, "SELECT no", terminal=True, verdict="sql_error", error="no such column", value=9.0)
    return tree


def test_ppm_takes_the_highest_score_of_what_ran(tree: Tree) -> None:
    assert choose_answer(tree, "ppm") == 4


def test_majority_is_over_results_and_shows_its_likeliest_trajectory(tree: Tree) -> None:
    assert choose_answer(tree, "majority") == 2


def test_weighted_majority_lets_the_ppm_overrule(tree: Tree) -> None:
    votes = {node: weight(tree, node, 1.0) for node in (1, 2, 3, 4)}
    assert votes[3] == pytest.approx(0.4)
    assert votes[1] + votes[2] < votes[3]
    assert choose_answer(tree, "weighted") == 3


def test_value_scale_says_how_far_the_ppm_is_believed(tree: Tree) -> None:
    assert weight(tree, 1, 4.0) == pytest.approx(0.2 * math.exp(-0.5))
    assert weight(tree, 1, None) == pytest.approx(0.2)
    assert [choose_answer(tree, "weighted", scale) for scale in (0.1, 1.0, 50.0)] == [4, 3, 2]


def test_samples_vote_by_how_often_they_were_drawn() -> None:
    tree = Tree("q", "db", "p", meta={"sampled": True})
    finish(tree, "often", 0.01, count=3)
    finish(tree, "likely", 0.9, count=2)
    assert choose_answer(tree, "majority") == 1
    assert choose_answer(tree, "weighted") == 1


def test_the_first_found_wins_a_tie() -> None:
    tree = Tree("q", "db", "p")
    finish(tree, "a", 0.3, value=1.0)
    finish(tree, "b", 0.3, value=1.0)
    assert [choose_answer(tree, how) for how in ("ppm", "majority", "weighted")] == [1, 1, 1]


def test_extreme_scores_do_not_overflow() -> None:
    tree = Tree("q", "db", "p")
    finish(tree, "a", 0.5, value=-1e6)
    finish(tree, "b", 0.5, value=1e6)
    assert choose_answer(tree, "weighted") == 2


def test_no_finished_query_is_no_answer(tree: Tree) -> None:
    empty = Tree("q", "db", "p")
    empty.add(0, "SELECT no", terminal=True, verdict="timeout", error="slow")
    empty.add(0, "FROM singer")
    assert choose_answer(empty, "weighted") is None
