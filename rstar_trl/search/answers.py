"""From a finished tree to one answer, without looking at the gold result.

Candidates are the finished queries that ran. `ppm`: the one with the highest PPM score. `majority`: the result that
most of the policy's probability (for samples: most samples) leads to. `weighted`: the same, each trajectory weighted
by exp(score / value_scale): scores trained with Bradley-Terry are log-odds, so this is the policy's prior times the
PPM's odds, as far as they are believed. A PPM learns from other mistakes than it meets and is surer than it should be;
`value_scale` takes that back, here as in the search.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Literal

from rstar_trl.search.tree import Tree


def choose_answer(tree: Tree, how: Literal["ppm", "majority", "weighted"], value_scale: float = 1.0) -> int | None:
    """The node of the answer, or None when no finished query ran. Ties go to the node found first."""
    nodes = finished(tree)
    if not nodes:
        return None
    if how == "ppm":
        return max(nodes, key=lambda node: _or_zero(tree.value[node]))
    weights = {node: weight(tree, node, value_scale if how == "weighted" else None) for node in nodes}
    votes: dict[str, float] = defaultdict(float)
    for node in nodes:
        votes[tree.result[node]] += weights[node]
    best = max(votes, key=lambda result: votes[result])
    return max((node for node in nodes if tree.result[node] == best), key=lambda node: weights[node])


def finished(tree: Tree) -> list[int]:
    """The terminal nodes whose query ran and is no dead end."""
    return [n for n in range(len(tree)) if tree.terminal[n] and tree.verdict[n] == "ok" and not tree.error[n]]


def weight(tree: Tree, node: int, value_scale: float | None) -> float:
    """How much a finished trajectory counts: its probability under the policy, or how often it was sampled.

    With a `value_scale` times exp(score / value_scale).
    """
    if tree.meta.get("sampled"):
        share = float(tree.count[node])
    else:
        share = math.exp(sum(tree.logprob[n] for n in tree.path(node)))
    return share * belief(tree, node, value_scale)


def belief(tree: Tree, node: int, value_scale: float | None) -> float:
    """What a trajectory's PPM score multiplies its share with; 1 where there is no score, or no `value_scale`."""
    if value_scale is None:
        return 1.0
    return math.exp(max(-30.0, min(30.0, _or_zero(tree.value[node]) / value_scale)))


def _or_zero(value: float | None) -> float:
    return 0.0 if value is None else value
