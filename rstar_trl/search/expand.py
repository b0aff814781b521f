"""Expansion: ask the policy, merge what is the same, run what is new, judge what is finished, score the rest.

Guarantees: candidates whose clause is the same AST are one node (their counts add up); a step that does not parse, is
out of order, compares with an invented constant (`grounded`) or does not run is a dead end before any further token is
spent on it; a request that the engine refuses closes its node, with the reason in `tree.meta["failures"]`; an `infra`
failure closes a node without a reward.
Observes the gold result only in `train` mode.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

from rstar_trl.errors import SqlError
from rstar_trl.io import digest
from rstar_trl.policy.interface import Answer, Candidate, ProposeRequest, Refused, ScoreRequest
from rstar_trl.search.effects import Part, RunSql, ScoreSteps
from rstar_trl.search.state import Key, State
from rstar_trl.sql.compare import result_key, results_equal
from rstar_trl.sql.execution import Execution, SqlJob
from rstar_trl.sql.grounding import ungrounded
from rstar_trl.sql.steps import Step, canonical_step, check_order, is_complete, parse_step, partial_sql

STEP_CACHE = 1 << 16
"""Step texts whose reading is remembered, over all trees of the process."""


def expand(state: State, node: int, n: int, temperature: float) -> Part[list[int]]:
    """Asks for `n` next steps after `node` and adds the new ones. Returns the nodes added, open or not."""
    tree, task = state.tree, state.task
    state.asked[node] += n
    state.requests += 1
    seed = int(digest([task.seed, state.requests]), 16)
    answer: Answer = yield ProposeRequest(task.prompt, tree.steps(node), n, temperature, seed)
    known = len(tree)
    before = state.steps(node)
    for candidate in _candidates(state, node, answer, n):
        # Where a probability is not told, siblings are as likely as each other.
        state.told &= candidate.logprob is not None
        _place(state, node, before, candidate)
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


def _candidates(state: State, node: int, answer: Answer, n: int) -> list[Candidate]:
    """What the policy answered, counted; whatever was wrong with it is noted, and a node without any is closed."""
    if isinstance(answer, Refused) or not answer:
        state.note(node, answer.reason if isinstance(answer, Refused) else "the policy gave no candidate")
        state.closed[node] = True
        return []
    if len(answer) < n:
        state.note(node, f"{len(answer)} of {n} candidates came back")
    state.tree.prompt_tokens += answer[0].prefix_tokens
    state.tree.generated_tokens += sum(candidate.tokens for candidate in answer)
    return answer


@lru_cache(STEP_CACHE)
def _read(text: str, dialect: str) -> tuple[Step, str, str] | str:
    """A step's text as `(step, kind, normalised clause)`, or what is wrong with it."""
    try:
        step = parse_step(text, dialect)
        return (step, *canonical_step(step, dialect))
    except SqlError as error:
        return str(error)


def _place(state: State, parent: int, before: list[Step], candidate: Candidate) -> None:
    """Adds a candidate as a child, or counts it where the same step is there already. `before`: the parent's steps."""
    tree, dialect = state.tree, state.task.dialect
    final = candidate.finish == "eos"
    read = _read(candidate.text, dialect)
    # A step that was cut off may read like a whole one; it must not stand for it, nor the other way round.
    key: Key = ("", candidate.text, candidate.finish) if isinstance(read, str) else (*read[1:], candidate.finish)
    known = state.keys.setdefault(parent, {})
    if key in known:
        tree.count[known[key]] += 1
        return
    columns: dict[str, Any] = {"logprob": candidate.logprob or 0.0, "terminal": final, "kind": key[0]}
    step = None if isinstance(read, str) else read[0]
    steps = [*before, step] if step else before
    if candidate.finish == "length":
        problem = f"the step is longer than {state.config.max_step_tokens} tokens"
    else:
        problem = read if isinstance(read, str) else _problem(state, steps, final)
    if problem:
        columns |= {"terminal": True, "verdict": "sql_error", "error": problem, "q": -1.0, "visits": 1}
        if state.task.mode == "train":
            columns["reward"] = -1.0
    else:
        columns["sql"] = partial_sql(steps, dialect)
    known[key] = state.add(parent, candidate.text, step, **columns)


def _problem(state: State, steps: list[Step], final: bool) -> str:
    """Why the last of the steps cannot stand where it does; empty when it can."""
    task, config = state.task, state.config
    try:
        check_order(steps)
        if config.grounded and steps and (constant := ungrounded(steps[-1], task.prompt, task.dialect)):
            return f"{constant} stands nowhere in the prompt"
    except SqlError as error:
        return str(error)
    if final:
        return "" if is_complete(steps) else "the trajectory ends before its query is complete"
    return f"the trajectory is longer than {config.max_depth} steps" if len(steps) >= config.max_depth else ""


def _set_priors(state: State, node: int) -> None:
    """The policy's probabilities of the children, normalised among them."""
    tree, children = state.tree, state.children.get(node)
    if children:
        highest = max(tree.logprob[child] for child in children)
        weights = [math.exp(tree.logprob[child] - highest) for child in children]
        total = sum(weights)
        for child, weight in zip(children, weights, strict=True):
            tree.prior[child] = weight / total


def _judge(state: State, node: int, execution: Execution) -> None:
    tree, task = state.tree, state.task
    tree.verdict[node] = execution.verdict
    empty = state.config.avoid_empty and execution.verdict == "ok" and not execution.rows
    if execution.verdict != "ok" or empty:
        tree.error[node] = "no row is left" if empty else execution.error or execution.verdict
        tree.terminal[node] = state.closed[node] = True
        if execution.verdict != "infra":
            tree.q[node], tree.visits[node] = -1.0, 1
            tree.reward[node] = -1.0 if task.mode == "train" else None
        return
    if tree.terminal[node]:
        rows = execution.rows or ()
        tree.result[node] = result_key(rows, False)
        if task.mode == "train" and task.gold is not None:
            tree.reward[node] = 1.0 if results_equal(rows, task.gold.rows, task.gold.ordered) else -1.0


def _check(state: State, nodes: list[int]) -> Part[None]:
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


def _score(state: State, nodes: list[int]) -> Part[None]:
    """PPM scores for the nodes that need one: all when it guides the search, finished ones when it only picks."""
    tree, task = state.tree, state.task
    if state.config.algorithm in ("sample", "greedy"):
        nodes = [node for node in nodes if tree.terminal[node]]
    if not task.use_ppm or not nodes:
        return
    requests = tuple(ScoreRequest(task.prompt, tree.steps(node), tree.terminal[node]) for node in nodes)
    scores: list[float | Refused] = yield ScoreSteps(requests)
    for node, score in zip(nodes, scores, strict=True):
        if isinstance(score, Refused):
            state.note(node, score.reason)
        else:
            tree.value[node] = score
