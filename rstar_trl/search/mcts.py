"""Monte Carlo tree search: simulations over one tree, one after another or several at once.

A simulation goes down from the root along the best open child, expands every new node on the way, and ends at a node
without open children. A node whose children are all closed is closed.

The rules are rStar-Math's (Guan et al. 2025, arXiv 2501.04519) with two changes for search without a PPM: PUCT with
the policy's prior, and first-play urgency, since under plain UCT unvisited children score zero and starve.
`reference: true` restores its selection rule.

Several simulations of one tree run side by side under virtual loss: a child that others are below counts as if each
had already come back with -1, so that simulations spread out; the loss is gone when the simulation ends. One at a time
is the serial search, move for move.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from rstar_trl.search.budget import enough, spent
from rstar_trl.search.effects import Part
from rstar_trl.search.expand import expand
from rstar_trl.search.state import State
from rstar_trl.search.values import count_votes, evaluate


def simulations(state: State) -> Iterator[Part[None]]:
    """The simulations still to be run, as long as there is reason for another."""
    for _ in range(state.config.simulations):
        if enough(state):
            return
        yield _simulate(state)


def _simulate(state: State) -> Part[None]:
    """One simulation: down from the root to a node that has no open child."""
    config, node, path = state.config, 0, [0]
    width = config.num_candidates
    _pass(state, node, 1)
    while True:
        while node in state.busy:
            yield None
        if state.asked[node] < _wanted(state, node) and not state.closed[node]:
            if spent(state):
                break
            state.busy.add(node)
            added = yield from expand(state, node, width, config.temperature)
            state.busy.remove(node)
            if not added:
                state.stale.add(node)
            evaluate(state, added)
            count_votes(state, added)
            if config.simulate:
                width = 1  # below the expanded leaf the rollout follows one step at a time
        child = select(state, node)
        if child is None:
            state.close(node)
            break
        node = child
        path.append(node)
        _pass(state, node, 1)
    for passed in path:
        _pass(state, passed, -1)


def select(state: State, node: int) -> int | None:
    """The open child with the highest selection score; the first one wins a tie. None when all are closed."""
    return max(state.open_children(node), key=lambda child: score(state, node, child), default=None)


def score(state: State, node: int, child: int) -> float:
    """PUCT, UCT, or rStar-Math's own rule, for one child, with the virtual losses of the other simulations."""
    tree, config = state.tree, state.config
    losses = state.virtual.get(child, 0)
    # The simulation that asks is itself below `node`.
    parent_visits = tree.visits[node] + max(0, state.virtual.get(node, 0) - 1)
    visits, q = tree.visits[child], tree.q[child]
    if losses:
        q = (q * visits - losses) / (visits + losses)
        visits += losses
    if config.reference:
        explore = 2 * math.sqrt(math.log(parent_visits) / visits) if parent_visits and visits else 0.0
        return q + explore
    value = q if visits else tree.q[node] - config.first_play_urgency
    if config.selection == "uct":
        return value + config.c_puct * math.sqrt(math.log(parent_visits + 1) / (visits + 1))
    return value + config.c_puct * tree.prior[child] * math.sqrt(max(1, parent_visits)) / (1 + visits)


def _wanted(state: State, node: int) -> int:
    """Candidates a node should have been asked for by now; more with its visits under progressive widening."""
    config, asked = state.config, state.asked[node]
    if config.widening is None:
        return config.num_candidates
    if asked and not state.open_children(node) and node not in state.stale:
        return asked + config.num_candidates
    return config.num_candidates * max(1, int(state.tree.visits[node] ** config.widening))


def _pass(state: State, node: int, change: int) -> None:
    """A simulation comes to a node, or is over."""
    left = state.virtual.get(node, 0) + change
    if left:
        state.virtual[node] = left
    else:
        del state.virtual[node]
