"""What finished trajectories and scored steps are worth, and how worth travels up the tree.

Finished queries are valued by their reward in training and by the PPM at inference, and backed up to the root; a step
that the PPM has scored starts with one pseudo-visit of tanh(score / value_scale); failed steps count against
themselves alone. These are rStar-Math's rules (Guan et al. 2025, arXiv 2501.04519).

Questions without an answer may be trained on by self-consistency (Wang et al. 2023, arXiv 2203.11171): see
`reward_consistency`.
"""

from __future__ import annotations

import math

from rstar_trl.search.answers import belief, finished, weight
from rstar_trl.search.state import State
from rstar_trl.search.tree import Tree


def backup(tree: Tree, node: int, value: float) -> None:
    """Adds one visit with `value` to the node and all its ancestors."""
    while node >= 0:
        tree.visits[node] += 1
        tree.q[node] += (value - tree.q[node]) / tree.visits[node]
        node = tree.parent[node]


def evaluate(state: State, added: list[int]) -> None:
    """Values new nodes, in order; failed ones are valued already."""
    tree, scale = state.tree, state.config.value_scale
    for node in added:
        if tree.error[node]:
            continue
        score, reward = tree.value[node], tree.reward[node]
        guess = None if score is None else math.tanh(score / scale)
        if tree.terminal[node]:
            backup(tree, node, reward if reward is not None else guess or 0.0)
            state.solved += reward == 1.0
        elif guess is not None:
            tree.visits[node], tree.q[node] = 1, guess


def count_votes(state: State, added: list[int]) -> None:
    """Keeps what `settled` needs: the weight of each result, how much of all there is has ended, the heaviest."""
    if state.config.settled is None:
        return
    tree, config = state.tree, state.config
    scale = config.value_scale if config.answer == "weighted" else None
    for node in added:
        if not tree.terminal[node]:
            continue
        state.seen += weight(tree, node, None)
        if tree.verdict[node] == "ok" and not tree.error[node]:
            result = tree.result[node]
            state.votes[result] = state.votes.get(result, 0.0) + weight(tree, node, scale)
            state.heaviest = max(state.heaviest, belief(tree, node, scale))


def reward_consistency(state: State, least: float) -> None:
    """Rewards a finished tree without a gold answer: +1 for the result with the most votes, -1 for all others.

    Votes are those of `answer: majority`. Where the winner has less than `least` of them nothing is rewarded, and the
    tree teaches nothing. The winner's share is kept in `tree.meta["consistency"]`. Values are then backed up again, in
    the order the trajectories ended.
    """
    tree = state.tree
    votes: dict[str, float] = {}
    for node in finished(tree):
        votes[tree.result[node]] = votes.get(tree.result[node], 0.0) + weight(tree, node, None)
    if not votes:
        return
    best = max(votes, key=lambda result: votes[result])
    tree.meta["consistency"] = votes[best] / sum(votes.values())
    if tree.meta["consistency"] < least:
        return
    for node in finished(tree):
        tree.reward[node] = 1.0 if tree.result[node] == best else -1.0
    alive = [node for node in range(len(tree)) if not tree.error[node]]
    for node in alive:
        tree.visits[node], tree.q[node] = 0, 0.0
    evaluate(state, alive)
