"""The searches: Monte Carlo tree search, independent samples, greedy; each a generator over one tree.

MCTS repeats simulations: from the root, select the best open child, expand every new node on the way, until a node
without open children is reached. Finished queries are valued when they appear (in training by their reward, at
inference by the PPM) and backed up to the root; failed steps count against themselves alone; a step the PPM has scored
starts with one pseudo-visit of tanh(score / value_scale). A node whose children are all closed is closed.

The rules are rStar-Math's (Guan et al. 2025, arXiv 2501.04519) with two changes for search without a PPM: PUCT with
the policy's prior, and first-play urgency, since under plain UCT unvisited children score zero and starve.
`reference: true` restores its selection rule.
"""

from __future__ import annotations

import math

from rstar_trl.config import SearchConfig
from rstar_trl.search.answers import choose_answer
from rstar_trl.search.effects import Search, Task
from rstar_trl.search.expand import State, expand, start
from rstar_trl.search.tree import Tree


def search(task: Task, config: SearchConfig, done: list[Tree]) -> Search:
    """Runs the configured algorithm and appends the finished tree to `done`."""
    state = start(task, config)
    if config.algorithm == "mcts":
        yield from _mcts(state)
    else:
        yield from _samples(state)
    state.tree.answer = choose_answer(state.tree, config.answer)
    done.append(state.tree)


def _mcts(state: State) -> Search:
    config = state.config
    for _ in range(config.simulations):
        if state.closed[0] or _solved(state) >= (config.stop_when_solved or math.inf):
            return
        yield from _simulate(state)


def _simulate(state: State) -> Search:
    """One simulation: down from the root to a node that has no open child."""
    config, node = state.config, 0
    width = config.num_candidates
    while True:
        if not state.expanded[node]:
            added = yield from expand(state, node, width, config.temperature)
            _evaluate(state, added)
            state.expanded[node] = width == config.num_candidates
            if config.simulate:
                width = 1  # below the expanded leaf the rollout follows one step at a time
        child = select(state, node)
        if child is None:
            break
        node = child
    _close(state, node)


def _samples(state: State) -> Search:
    """Independent trajectories (one, arg-max, when greedy); equal prefixes are one node with a count."""
    config = state.config
    greedy = config.algorithm == "greedy"
    state.tree.meta["sampled"] = True
    frontier = [(0, 1 if greedy else config.num_candidates)]
    while frontier:
        node, n = frontier.pop()
        added = yield from expand(state, node, n, 0.0 if greedy else config.temperature)
        _evaluate(state, added)
        frontier += [(child, state.tree.count[child]) for child in added if not state.closed[child]]


def select(state: State, node: int) -> int | None:
    """The open child with the highest selection score; the first one wins a tie. None when all are closed."""
    open_children = [child for child in state.children[node] if not state.closed[child]]
    return max(open_children, key=lambda child: score(state, node, child), default=None)


def score(state: State, node: int, child: int) -> float:
    """PUCT, UCT, or rStar-Math's own rule, for one child."""
    tree, config = state.tree, state.config
    parent_visits, visits = tree.visits[node], tree.visits[child]
    if config.reference:
        explore = 2 * math.sqrt(math.log(parent_visits) / visits) if parent_visits and visits else 0.0
        return tree.q[child] + explore
    value = tree.q[child] if visits else tree.q[node] - config.first_play_urgency
    if config.selection == "uct":
        return value + config.c_puct * math.sqrt(math.log(parent_visits + 1) / (visits + 1))
    return value + config.c_puct * tree.prior[child] * math.sqrt(max(1, parent_visits)) / (1 + visits)


def backup(tree: Tree, node: int, value: float) -> None:
    """Adds one visit with `value` to the node and all its ancestors."""
    while node >= 0:
        tree.visits[node] += 1
        tree.q[node] += (value - tree.q[node]) / tree.visits[node]
        node = tree.parent[node]


def _evaluate(state: State, added: list[int]) -> None:
    """Values new nodes: finished queries to the root, scored steps on themselves, failures are valued already."""
    tree, scale = state.tree, state.config.value_scale
    for node in added:
        if tree.error[node]:
            continue
        guess = math.tanh(tree.value[node] / scale) if tree.value[node] is not None else None  # type: ignore[operator]
        if tree.terminal[node]:
            reward = tree.reward[node]
            backup(tree, node, reward if reward is not None else guess or 0.0)
        elif guess is not None:
            tree.visits[node], tree.q[node] = 1, guess


def _close(state: State, node: int) -> None:
    """Closes the node and every ancestor that has no open child left."""
    while node >= 0 and state.expanded[node] and all(state.closed[child] for child in state.children[node]):
        state.closed[node] = True
        node = state.tree.parent[node]


def _solved(state: State) -> int:
    return sum(reward == 1.0 for reward in state.tree.reward)
