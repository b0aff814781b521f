"""Keeps many trees in flight: each generation batch is filled from whichever trees are ready.

Guarantees: at most `trees_in_flight` trees at once, a finished one makes room for the next; a tree's outcome does not
depend on the others (up to floating-point rounding in the engine). SQL and scores are answered first, so that every
tree in flight joins the next generation batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice

from rstar_trl.config import SearchConfig
from rstar_trl.policy.interface import Engine, ProposeRequest, Scorer
from rstar_trl.search.algorithm import search
from rstar_trl.search.effects import Effect, RunSql, ScoreSteps, Search, Task
from rstar_trl.search.tree import Tree
from rstar_trl.sql.sandbox import Sandbox


@dataclass
class _Running:
    steps: Search
    done: list[Tree]
    started: float
    waits_for: Effect


def run_searches(
    tasks: Iterable[Task],
    config: SearchConfig,
    engine: Engine,
    scorer: Scorer | None,
    sandbox: Sandbox,
    on_tree: Callable[[Tree], None],
) -> None:
    """Searches every task and hands each finished tree to `on_tree`, in the order they finish."""
    waiting = iter(tasks)
    running: list[_Running] = []
    while True:
        while any(not isinstance(run.waits_for, ProposeRequest) for run in running):
            running = _answer_scores(_answer_sql(running, sandbox, on_tree), scorer, on_tree)
        # Trees begin by asking for steps, so those that take the place of finished ones join this very batch.
        for task in islice(waiting, config.trees_in_flight - len(running)):
            running.append(_begin(task, config))
        if not running:
            return
        answers = engine.propose([run.waits_for for run in running if isinstance(run.waits_for, ProposeRequest)])
        running = _resume(list(zip(running, answers, strict=True)), on_tree)


def _begin(task: Task, config: SearchConfig) -> _Running:
    done: list[Tree] = []
    steps = search(task, config, done)
    return _Running(steps, done, time.perf_counter(), next(steps))


def _answer_sql(running: list[_Running], sandbox: Sandbox, on_tree: Callable[[Tree], None]) -> list[_Running]:
    asking = [run for run in running if isinstance(run.waits_for, RunSql)]
    jobs = [job for run in asking if isinstance(run.waits_for, RunSql) for job in run.waits_for.jobs]
    executions = iter(sandbox.run(jobs))
    answers = [
        (run, list(islice(executions, len(run.waits_for.jobs)))) for run in asking if isinstance(run.waits_for, RunSql)
    ]
    return [run for run in running if not isinstance(run.waits_for, RunSql)] + _resume(answers, on_tree)


def _answer_scores(running: list[_Running], scorer: Scorer | None, on_tree: Callable[[Tree], None]) -> list[_Running]:
    asking = [run for run in running if isinstance(run.waits_for, ScoreSteps)]
    if not asking:
        return running
    assert scorer is not None, "a task asks for scores, but the search was given no scorer"
    requests = [
        request for run in asking if isinstance(run.waits_for, ScoreSteps) for request in run.waits_for.requests
    ]
    scores = iter(scorer.score(requests))
    answers = [
        (run, list(islice(scores, len(run.waits_for.requests))))
        for run in asking
        if isinstance(run.waits_for, ScoreSteps)
    ]
    return [run for run in running if not isinstance(run.waits_for, ScoreSteps)] + _resume(answers, on_tree)


def _resume(answers: list[tuple[_Running, list]], on_tree: Callable[[Tree], None]) -> list[_Running]:
    going = []
    for run, answer in answers:
        try:
            run.waits_for = run.steps.send(answer)
            going.append(run)
        except StopIteration:
            tree = run.done[0]
            tree.seconds = time.perf_counter() - run.started
            on_tree(tree)
    return going
