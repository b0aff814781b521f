"""Expansion: ask the policy, merge what is the same, run what is new, judge what is finished, score the rest.

Guarantees: candidates whose clause is the same AST are one node (their counts add up); a step that does not parse, is
out of order or does not run is a dead end before any further token is spent on it; an `infra` failure closes a node
without a reward. Observes the gold result only in `train` mode.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

from rstar_trl.config import SearchConfig
from rstar_trl.errors import SqlError
from rstar_trl.io import digest
from rstar_trl.policy.interface import Candidate, FinishReason, ProposeRequest, ScoreRequest
from rstar_trl.search.effects import Effect, RunSql, ScoreSteps, Task
from rstar_trl.search.tree import Tree
from rstar_trl.sql.compare import result_key, results_equal
from rstar_trl.sql.execution import Execution, SqlJob
from rstar_trl.sql.steps import Step, canonical_step, check_order, is_complete, parse_step, partial_sql, sql_from_steps

Key = tuple[str, str, FinishReason]


@dataclass
class State:
    """A tree under search and what is derived from it: children, parsed steps, and which nodes are still open."""

    tree: Tree
    task: Task
    config: SearchConfig
    children: list[list[int]] = field(default_factory=lambda: [[]])
    steps: list[tuple[Step, ...]] = field(default_factory=lambda: [()])
    keys: list[dict[Key, int]] = field(default_factory=lambda: [{}])
    expanded: list[bool] = field(default_factory=lambda: [False])
    closed: list[bool] = field(default_factory=lambda: [False])
    asked: int = 0

    def add(self, parent: int, text: str, steps: tuple[Step, ...], **columns: Any) -> int:
        node = self.tree.add(parent, text, **columns)
        self.children.append([])
        self.children[parent].append(node)
        self.steps.append(steps)
        self.keys.append({})
        self.expanded.append(self.tree.terminal[node])
        self.closed.append(self.tree.terminal[node])
        return node


def start(task: Task, config: SearchConfig) -> State:
    """A tree with nothing but its root."""
    # How many others are in flight is no part of what a tree is.
    config_digest = digest({name: value for name, value in vars(config).items() if name != "trees_in_flight"})
    return State(Tree(task.question_id, task.db_id, task.prompt, config_digest, task.seed), task, config)


def expand(state: State, node: int, n: int, temperature: float) -> Generator[Effect, Any, list[int]]:
    """Asks for `n` next steps after `node` and adds the new ones. Returns the nodes added, open or not."""
    tree, task = state.tree, state.task
    state.asked += 1
    seed = int(digest([task.seed, state.asked]), 16)
    candidates: list[Candidate] = yield ProposeRequest(task.prompt, tree.steps(node), n, temperature, seed)
    tree.generated_tokens += sum(candidate.tokens for candidate in candidates)
    known = len(tree)
    for candidate in candidates:
        _place(state, node, candidate)
    _set_priors(state, node)
    added = list(range(known, len(tree)))
    live = [child for child in added if not tree.error[child]]
    if live:
        jobs = tuple(SqlJob(task.database, tree.sql[child], probe=not tree.terminal[child]) for child in live)
        executions: list[Execution] = yield RunSql(jobs)
        for child, execution in zip(live, executions, strict=True):
            _judge(state, child, execution)
        yield from _check(state, [child for child in live if tree.reward[child] == 1.0])
    yield from _score(state, [child for child in live if not tree.error[child]])
    return added


def _place(state: State, parent: int, candidate: Candidate) -> None:
    """Adds a candidate as a child, or counts it where the same step is there already."""
    tree, dialect = state.tree, state.task.dialect
    final = candidate.finish == "eos"
    try:
        step = parse_step(candidate.text, dialect)
        # A step that was cut off may read like a whole one; it must not stand for it, nor the other way round.
        key: Key = (*canonical_step(step, dialect), candidate.finish)
    except SqlError as error:
        key, problem, steps = ("", candidate.text, candidate.finish), str(error), state.steps[parent]
    else:
        steps = (*state.steps[parent], step)
        problem = _problem(steps, candidate, state.config)
    if key in state.keys[parent]:
        tree.count[state.keys[parent][key]] += 1
        return
    columns: dict[str, Any] = {"logprob": candidate.logprob, "terminal": final, "kind": key[0]}
    if problem:
        columns |= {"terminal": True, "verdict": "sql_error", "error": problem, "q": -1.0, "visits": 1}
        if state.task.mode == "train":
            columns["reward"] = -1.0
    else:
        columns["sql"] = (sql_from_steps if final else partial_sql)(steps, dialect)
    state.keys[parent][key] = state.add(parent, candidate.text, steps, **columns)


def _problem(steps: tuple[Step, ...], candidate: Candidate, config: SearchConfig) -> str:
    if candidate.finish == "length":
        return f"the step is longer than {config.max_step_tokens} tokens"
    try:
        check_order(steps)
    except SqlError as error:
        return str(error)
    if candidate.finish == "eos":
        return "" if is_complete(steps) else "the trajectory ends before its query is complete"
    return f"the trajectory is longer than {config.max_depth} steps" if len(steps) >= config.max_depth else ""


def _set_priors(state: State, node: int) -> None:
    """The policy's probabilities of the children, normalised among them."""
    tree, children = state.tree, state.children[node]
    if children:
        highest = max(tree.logprob[child] for child in children)
        weights = [math.exp(tree.logprob[child] - highest) for child in children]
        for child, weight in zip(children, weights, strict=True):
            tree.prior[child] = weight / sum(weights)


def _judge(state: State, node: int, execution: Execution) -> None:
    tree, task = state.tree, state.task
    tree.verdict[node] = execution.verdict
    empty = state.config.avoid_empty and execution.verdict == "ok" and not execution.rows
    if execution.verdict != "ok" or empty:
        tree.error[node] = "no row is left" if empty else execution.error or execution.verdict
        tree.terminal[node] = state.closed[node] = state.expanded[node] = True
        if execution.verdict != "infra":
            tree.q[node], tree.visits[node] = -1.0, 1
            tree.reward[node] = -1.0 if task.mode == "train" else None
        return
    if tree.terminal[node]:
        rows = execution.rows or ()
        tree.result[node] = result_key(rows, False)
        if task.mode == "train":
            assert task.gold is not None, "train mode needs a gold result"
            tree.reward[node] = 1.0 if results_equal(rows, task.gold.rows, task.gold.ordered) else -1.0


def _check(state: State, nodes: list[int]) -> Generator[Effect, Any, None]:
    """Right so far: a query that gives other rows than the gold query on another database was right by accident."""
    tree, checks = state.tree, state.task.checks
    if not nodes or not checks:
        return
    jobs = tuple(SqlJob(check.database, tree.sql[node]) for node in nodes for check in checks)
    executions: list[Execution] = yield RunSql(jobs)
    for place, node in enumerate(nodes):
        mine = executions[place * len(checks) : (place + 1) * len(checks)]
        for check, execution in zip(checks, mine, strict=True):
            if execution.verdict == "infra":
                tree.verdict[node], tree.error[node], tree.reward[node] = "infra", execution.error, None
                break
            gold = check.result
            if execution.verdict != "ok" or not results_equal(execution.rows or (), gold.rows, gold.ordered):
                tree.reward[node] = -1.0
                break


def _score(state: State, nodes: list[int]) -> Generator[Effect, Any, None]:
    """PPM scores for the nodes that need one: all when it guides the search, finished ones when it only picks."""
    tree, task = state.tree, state.task
    if state.config.algorithm != "mcts":
        nodes = [node for node in nodes if tree.terminal[node]]
    if not task.use_ppm or not nodes:
        return
    requests = tuple(ScoreRequest(task.prompt, tree.steps(node), tree.terminal[node]) for node in nodes)
    scores: list[float] = yield ScoreSteps(requests)
    for node, score in zip(nodes, scores, strict=True):
        tree.value[node] = score
