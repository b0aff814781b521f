"""The searches, each a generator over one tree: MCTS, step beam search, independent samples, greedy.

MCTS is in `mcts`; the other three go down level by level, all nodes of a level side by side:

- `sample`: `num_candidates` independent trajectories; equal prefixes are one node with a count. With `answer` they are
  majority-of-N and best-of-N.
- `greedy`: one trajectory, the arg-max of every token.
- `beam`: step beam search. Of all steps below the beam, and of the trajectories that ended, the `beam_width` best go
  on: by PPM score, or by log-probability without a PPM.
"""

from __future__ import annotations

from rstar_trl.config import SearchConfig
from rstar_trl.search.answers import choose_answer
from rstar_trl.search.budget import settled, spent
from rstar_trl.search.effects import Part, Search, Task, gather
from rstar_trl.search.expand import expand
from rstar_trl.search.mcts import simulations
from rstar_trl.search.state import State, start
from rstar_trl.search.tree import Tree
from rstar_trl.search.values import count_votes, evaluate, reward_consistency


def search(task: Task, config: SearchConfig) -> Search[Tree]:
    """Runs the configured algorithm and returns the finished tree."""
    state = start(task, config)
    if config.algorithm == "mcts":
        yield from gather(simulations(state), config.parallel_simulations)
    elif config.algorithm == "beam":
        yield from _beam(state)
    else:
        yield from _samples(state)
    if task.mode == "train" and task.gold is None and config.self_consistency is not None:
        reward_consistency(state, config.self_consistency)
    state.tree.answer = choose_answer(state.tree, config.answer, config.value_scale)
    return state.tree


def _samples(state: State) -> Search[None]:
    config = state.config
    greedy = config.algorithm == "greedy"
    state.tree.meta["sampled"] = True
    frontier = [(0, 1 if greedy else config.num_candidates)]
    while frontier and not spent(state):
        unseen = sum(n for _, n in frontier)
        if state.task.mode == "inference" and config.settled is not None and settled(state, unseen, config.settled):
            break
        temperature = 0.0 if greedy else config.temperature
        grown = yield from gather((_grow(state, node, n, temperature) for node, n in frontier), len(frontier))
        frontier = [(node, state.tree.count[node]) for added in grown for node in added if not state.closed[node]]


def _beam(state: State) -> Search[None]:
    config, tree = state.config, state.tree
    frontier, ended = [0], list[int]()
    while frontier and not spent(state):
        parts = (_grow(state, node, config.num_candidates, config.temperature) for node in frontier)
        grown = yield from gather(parts, len(frontier))
        fresh = [node for added in grown for node in added if not tree.error[node]]
        best = sorted(ended + fresh, key=lambda node: _rank(tree, node), reverse=True)[: config.beam_width]
        ended = [node for node in best if tree.terminal[node]]
        frontier = [node for node in best if not tree.terminal[node]]


def _grow(state: State, node: int, n: int, temperature: float) -> Part[list[int]]:
    added = yield from expand(state, node, n, temperature)
    evaluate(state, added)
    count_votes(state, added)
    return added


def _rank(tree: Tree, node: int) -> tuple[float, float]:
    """By PPM score where there is one, else by the probability of the whole prefix."""
    logprob = sum(tree.logprob[step] for step in tree.path(node))
    value = tree.value[node]
    return (logprob, 0.0) if value is None else (value, logprob)
