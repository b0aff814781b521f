"""Searches a list of questions and writes each finished tree as one JSONL line.

Guarantees: a question whose tree is already in `out` is not searched again; a kill loses at most the trees in flight;
a question's tree depends on its id, the seed and the config, not on the other questions. Stops with `InfraError` when
more than `MAX_INFRA_SHARE` of the executed steps fail for reasons of our own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from rstar_trl.config import SearchConfig
from rstar_trl.data.databases import Database
from rstar_trl.data.question import Question
from rstar_trl.errors import DataError, InfraError
from rstar_trl.io import append_jsonl, digest, read_jsonl
from rstar_trl.policy.interface import Engine, Scorer
from rstar_trl.policy.prompting import Prompter
from rstar_trl.search.effects import Task
from rstar_trl.search.queue import Queue
from rstar_trl.search.scheduler import run_searches
from rstar_trl.search.tree import Tree
from rstar_trl.sql.execution import MAX_INFRA_SHARE
from rstar_trl.sql.sandbox import Sandbox


class Reporter(Protocol):
    """What a search tells while it runs (`rstar_trl.progress.Progress`)."""

    def update(self, done: int, *, solved: int, dead_ends: int, tokens: int) -> None: ...


@dataclass
class SearchSummary:
    """Counts over the trees of one call (those found finished on disk included, but for `seconds`)."""

    questions: int = 0
    solved: int = 0
    nodes: int = 0
    dead_ends: int = 0
    infra: int = 0
    generated_tokens: int = 0
    seconds: float = 0.0
    torn_lines: int = 0

    def add(self, tree: Tree) -> None:
        """Counts one tree."""
        self.questions += 1
        self.solved += any(reward == 1.0 for reward in tree.reward)
        self.nodes += len(tree) - 1
        self.dead_ends += sum(bool(error) for error in tree.error)
        self.infra += sum(verdict == "infra" for verdict in tree.verdict)
        self.generated_tokens += tree.generated_tokens
        if self.nodes > 200 and self.infra > MAX_INFRA_SHARE * self.nodes:
            raise InfraError(
                f"{self.infra} of {self.nodes} steps could not be executed for reasons of the sandbox (last: "
                f"{next((e for e, v in zip(tree.error, tree.verdict, strict=True) if v == 'infra'), 'unknown')}); "
                "check the databases and the memory limit, then run the same command again."
            )

    def record(self) -> dict[str, Any]:
        """The counts as a plain mapping."""
        return asdict(self)


def search_questions(
    questions: Sequence[Question],
    *,
    engine: Engine,
    scorer: Scorer | None,
    sandbox: Sandbox,
    prompter: Prompter,
    databases: Mapping[str, Database],
    config: SearchConfig,
    mode: Literal["train", "inference"],
    seed: int,
    out: Path,
    dialect: str = "sqlite",
    progress: Reporter | None = None,
    share: Callable[[Sequence[Question]], Queue] = Queue,
) -> SearchSummary:
    """Searches the questions that `out` lacks.

    In `train` mode each question needs its gold result, unless it may be rewarded by agreement. `share` makes the
    queue they are taken from; under a shared one, other processes search some of them.
    """
    rows, torn = read_jsonl(out)
    summary = SearchSummary(torn_lines=torn)
    known = {question.id for question in questions}
    finished = set()
    for row in rows:
        if row["question_id"] in known and row["question_id"] not in finished:
            finished.add(row["question_id"])
            summary.add(Tree.from_record(row))
    pending = [question for question in questions if question.id not in finished]
    if mode == "train" and config.self_consistency is None:
        _require_gold(pending)
    use_ppm = scorer is not None

    started = time.perf_counter()
    with share(pending) as queue:

        def on_tree(tree: Tree) -> None:
            append_jsonl(out, tree.record())
            queue.done(tree)
            summary.add(tree)
            if progress is not None:
                done, solved, dead_ends, tokens = queue.totals
                progress.update(done, solved=solved, dead_ends=dead_ends, tokens=tokens)

        def task(question: Question) -> Task:
            return _task(question, prompter, databases, mode, seed, dialect, use_ppm)

        while queue.wait():
            run_searches(map(task, queue), config, engine, scorer, sandbox, on_tree)
    summary.seconds = time.perf_counter() - started
    return summary


def _require_gold(questions: Sequence[Question]) -> None:
    for question in questions:
        if question.gold_result is None:
            raise DataError(
                f"question {question.id} has no gold result, so it cannot be searched for training; run `data`, or "
                "set `search.self_consistency` to reward it by agreement."
            )


def _task(
    question: Question,
    prompter: Prompter,
    databases: Mapping[str, Database],
    mode: Literal["train", "inference"],
    seed: int,
    dialect: str,
    use_ppm: bool,
) -> Task:
    return Task(
        question_id=question.id,
        db_id=question.db_id,
        prompt=prompter.prompt(question),
        database=str(databases[question.db_id]),
        seed=int(digest([seed, question.id]), 16),
        mode=mode,
        gold=question.gold_result if mode == "train" else None,
        checks=question.checks if mode == "train" else (),
        dialect=dialect,
        use_ppm=use_ppm,
    )
