"""Preference pairs from a search tree: which of two sibling steps the search found better, and by how much.

The rules are rStar-Math's. Guarantees: no pair prefers a step to itself, and a pair's sides always share their parent
(`step_pairs`) or are whole trajectories of one question (`trajectory_pairs`). Pairs are not deduplicated across trees.
"""

from __future__ import annotations

from dataclasses import dataclass

from rstar_trl.search.tree import Tree
from rstar_trl.trajectories.select import right, right_trajectories, wrong, wrong_trajectories


@dataclass(frozen=True)
class Pair:
    """`chosen` and `rejected` are node indices; `whole` says that they stand for their whole trajectories.

    `margin` is the difference of their Q. `weight` is 1 / (chosen * rejected) of the set the pair was drawn from, so
    that every node of the tree counts about once, however many pairs it gives.
    """

    chosen: int
    rejected: int
    margin: float
    weight: float
    whole: bool = False


@dataclass(frozen=True)
class Outcomes:
    """Per node: its children, and whether a right or a wrong finished trajectory passes through it."""

    children: list[list[int]]
    right: list[bool]
    wrong: list[bool]


def outcomes(tree: Tree) -> Outcomes:
    """One pass over the tree; dead ends count for neither side, since they fail by themselves alone."""
    children: list[list[int]] = [[] for _ in range(len(tree))]
    rights = [right(tree, node) for node in range(len(tree))]
    wrongs = [wrong(tree, node) for node in range(len(tree))]
    for node in range(len(tree) - 1, 0, -1):
        parent = tree.parent[node]
        children[parent].append(node)
        rights[parent] |= rights[node]
        wrongs[parent] |= wrongs[node]
    return Outcomes([nodes[::-1] for nodes in children], rights, wrongs)


def step_pairs(tree: Tree, margin: float) -> list[Pair]:
    """Pairs of siblings whose Q differ by more than `margin`, for every node with something to prefer.

    Chosen: the children of highest Q below which a right trajectory ends. Rejected: those of lowest Q below which a
    wrong one ends. Two of each, or one of one and up to four of the other. Dead ends are no part of it: the search
    finds them by running them, and what a PPM is asked to tell apart has run.
    """
    known = outcomes(tree)
    pairs = []
    for children in known.children:
        good = sorted((n for n in children if known.right[n]), key=lambda n: -tree.q[n])
        bad = sorted((n for n in children if known.wrong[n]), key=lambda n: tree.q[n])
        pairs += [pair for pair in _cross(tree, good, bad) if pair.margin > margin]
    return pairs


def trajectory_pairs(tree: Tree) -> list[Pair]:
    """Pairs of whole finished trajectories, right against wrong, in the same numbers as `step_pairs`."""
    return _cross(tree, right_trajectories(tree, 4), wrong_trajectories(tree, 4), whole=True)


def _cross(tree: Tree, good: list[int], bad: list[int], whole: bool = False) -> list[Pair]:
    good, bad = good[: 4 if len(bad) == 1 else 2], bad[: 4 if len(good) == 1 else 2]
    weight = 1 / max(1, len(good) * len(bad))
    return [Pair(a, b, tree.q[a] - tree.q[b], weight, whole) for a in good for b in bad if a != b]
