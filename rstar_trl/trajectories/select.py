"""Which finished trajectories of a search are worth learning from.

A *finished* node is one the policy ended and the reward judged. A *failed* node is a dead end: a step that does not
parse, name or run, or one too many. Faults of our own (`infra`) are neither, so they never become training signal.
"""

from __future__ import annotations

from collections.abc import Sequence

from rstar_trl.search.tree import Tree


def finished(tree: Tree, node: int) -> bool:
    """The policy ended its trajectory here and the result was judged, right or wrong."""
    judged = tree.terminal[node] and tree.reward[node] is not None
    return judged and tree.verdict[node] == "ok" and not tree.error[node]


def right(tree: Tree, node: int) -> bool:
    """Finished, and the result is right."""
    return finished(tree, node) and tree.reward[node] == 1


def wrong(tree: Tree, node: int) -> bool:
    """Finished, and the result is not right."""
    return finished(tree, node) and tree.reward[node] != 1


def failed(tree: Tree, node: int) -> bool:
    """A dead end by the policy's own fault."""
    dead = tree.verdict[node] != "ok" or bool(tree.error[node])
    return tree.terminal[node] and dead and tree.verdict[node] != "infra"


def path_quality(tree: Tree, leaf: int) -> tuple[float, float]:
    """`(mean Q, least Q)` along the path to `leaf`: the order of rStar-Math's selection."""
    values = [tree.q[node] for node in tree.path(leaf)]
    return sum(values) / len(values), min(values)


def right_trajectories(tree: Tree, top_k: int) -> list[int]:
    """At most `top_k` right leaves, best first, no two with the same final SQL."""
    return [leaf for _, leaf in best_right([tree], top_k)]


def wrong_trajectories(tree: Tree, top_k: int) -> list[int]:
    """At most `top_k` finished wrong leaves, lowest quality first, no two with the same final SQL."""
    leaves = [node for node in range(1, len(tree)) if wrong(tree, node)]
    leaves.sort(key=lambda leaf: (path_quality(tree, leaf), leaf))
    return [leaf for _, leaf in _distinct([(tree, leaf) for leaf in leaves], top_k)]


def best_right(trees: Sequence[Tree], top_k: int) -> list[tuple[Tree, int]]:
    """The best `(tree, leaf)` pairs over all trees of one question, no two with the same final SQL."""
    found = [(tree, leaf) for tree in trees for leaf in range(1, len(tree)) if right(tree, leaf)]
    found.sort(key=lambda item: path_quality(*item), reverse=True)
    return _distinct(found, top_k)


def _distinct(found: list[tuple[Tree, int]], top_k: int) -> list[tuple[Tree, int]]:
    chosen: dict[str, tuple[Tree, int]] = {}
    for tree, leaf in found:
        if len(chosen) == top_k:
            break
        chosen.setdefault(" ".join(tree.sql[leaf].split()), (tree, leaf))
    return list(chosen.values())
