"""From gold SQL to labels that can be trusted: every gold query is run, and what cannot be a label is set aside.

Guarantees: each question of a corpus ends in exactly one place, its split or the quarantine, except evaluation
questions without gold rows, which stay in their split (`empty` is an answer, but a poor teacher); what stays has a
`gold_result`; the labelled fraction depends on the question ids and the seed alone, and a larger fraction contains the
smaller one. Does not guarantee that a gold query answers its question.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rstar_trl.data.question import Check, Corpus, GoldResult, Question
from rstar_trl.errors import DataError, InfraError, SqlError
from rstar_trl.sql.compare import decode_rows, encode_rows, orders_rows, results_equal
from rstar_trl.sql.dialects import in_engine_dialect
from rstar_trl.sql.execution import MAX_INFRA_SHARE, Execution, SqlJob
from rstar_trl.sql.policy import nondeterminism
from rstar_trl.sql.sandbox import Sandbox
from rstar_trl.sql.stability import stable_results

# Large enough that all workers stay busy, small enough that the gold rows of a chunk are all that is held twice.
CHUNK = 4096
_INFRA = "gold SQL: infra: "


@dataclass(frozen=True)
class Quarantined:
    """A question that is not used, the split it was in (`train` or `eval`), and why, in words."""

    question_id: str
    split: str
    reason: str


@dataclass(frozen=True)
class Prepared:
    """Questions fit for training and evaluation, all with `gold_result`, and those that are not."""

    train: tuple[Question, ...]
    eval: tuple[Question, ...]
    quarantine: tuple[Quarantined, ...]


def prepare(
    corpus: Corpus,
    sandbox: Sandbox,
    label_fraction: float,
    seed: int,
    listed: Mapping[str, str] | None = None,
    variants: Mapping[str, Sequence[Path]] | None = None,
) -> Prepared:
    """Runs all gold SQL, fills in gold results, and leaves gold SQL on `label_fraction` of the training questions.

    Gold SQL of another dialect is first carried over to that of the databases' engine.
    The fraction is of the training questions that stay and have gold SQL, rounded, at least one. Evaluation questions
    keep theirs. A question that comes with a `gold_result` keeps it. `listed` holds question ids
    that are quarantined for a reason found before (`rstar_trl.sql.audit`). `variants` holds further databases by
    `db_id`: training questions get the gold query's results there as their checks. Raises `DataError` when a split
    that had questions has none left, and `InfraError` when a database cannot be read (a lock, a broken file, a server
    that is down) or more than `MAX_INFRA_SHARE` of the gold queries fail for reasons of the sandbox.
    """
    require_readable(corpus, sandbox)
    corpus, unsayable = in_engine_dialect(corpus)
    listed = {**unsayable, **(listed or {})}
    train, bad_train = _verify(corpus, corpus.train, "train", sandbox, listed)
    evaluation, bad_eval = _verify(corpus, corpus.eval, "eval", sandbox, listed)
    train = _with_checks(train, sandbox, corpus.dialect, variants or {})
    quarantine = (*bad_train, *bad_eval)
    _require_few_infra(sum(q.gold_sql is not None for q in corpus.train + corpus.eval), quarantine)
    _require_questions(corpus, train, evaluation, quarantine)
    return Prepared(tuple(_keep_labels(train, label_fraction, seed)), tuple(evaluation), quarantine)


def question_record(question: Question) -> dict[str, Any]:
    """The question as one JSON object."""
    gold = question.gold_result
    return {
        "id": question.id,
        "db_id": question.db_id,
        "question": question.question,
        "evidence": question.evidence,
        "gold_sql": question.gold_sql,
        "gold_result": None if gold is None else _result_record(gold),
        "checks": [{"database": check.database, **_result_record(check.result)} for check in question.checks],
        "meta": dict(question.meta),
    }


def question_from_record(record: Mapping[str, Any]) -> Question:
    """Reads what `question_record` wrote."""
    gold = record["gold_result"]
    result = None if gold is None else _result_from(gold)
    checks = tuple(Check(each["database"], _result_from(each)) for each in record.get("checks", ()))
    return Question(**{**record, "gold_result": result, "checks": checks})


def _result_record(result: GoldResult) -> dict[str, Any]:
    return {"rows": encode_rows(result.rows), "ordered": result.ordered}


def _result_from(record: Mapping[str, Any]) -> GoldResult:
    return GoldResult(decode_rows(record["rows"]), record["ordered"])


def _verify(
    corpus: Corpus, questions: tuple[Question, ...], split: str, sandbox: Sandbox, listed: Mapping[str, str]
) -> tuple[list[Question], list[Quarantined]]:
    kept: list[Question] = []
    quarantine: list[Quarantined] = []
    for start in range(0, len(questions), CHUNK):
        chunk = questions[start : start + CHUNK]
        for question, execution in zip(chunk, _execute(corpus, chunk, sandbox), strict=True):
            reason = listed.get(question.id) or _reason(corpus, question, execution)
            if reason is None:
                question = _with_result(question, execution, corpus.dialect)
                empty = question.gold_result is not None and not question.gold_result.rows
                reason = "empty" if empty and split == "train" else None
            if reason is None:
                kept.append(question)
            else:
                quarantine.append(Quarantined(question.id, split, reason))
    return kept, quarantine


def _with_checks(
    questions: list[Question], sandbox: Sandbox, dialect: str, variants: Mapping[str, Sequence[Path]]
) -> list[Question]:
    """A check for every variant on which the gold query's rows are no matter of luck."""
    checks: dict[str, list[Check]] = {question.id: [] for question in questions}
    for db_id, files in variants.items():
        asked = [(question.id, question.gold_sql) for question in questions if question.db_id == db_id]
        queries = list(dict.fromkeys(sql for _, sql in asked if sql))
        for path in files if queries else ():
            results = stable_results(queries, path, sandbox, dialect)
            for question_id, sql in asked:
                if sql in results:
                    checks[question_id].append(Check(str(path), results[sql]))
    return [replace(question, checks=tuple(checks[question.id])) for question in questions]


def _execute(corpus: Corpus, questions: Iterable[Question], sandbox: Sandbox) -> list[Execution | None]:
    """One execution per question; None for one that has no gold SQL or whose database is unknown."""
    jobs = [
        SqlJob(str(corpus.databases[q.db_id]), q.gold_sql) if q.gold_sql and q.db_id in corpus.databases else None
        for q in questions
    ]
    executions = iter(sandbox.run([job for job in jobs if job is not None]))
    return [None if job is None else next(executions) for job in jobs]


def _reason(corpus: Corpus, question: Question, execution: Execution | None) -> str | None:
    """Why a question cannot be used, or None."""
    if question.db_id not in corpus.databases:
        return f"unknown database {question.db_id!r}"
    if execution is None or question.gold_sql is None:
        return "neither gold SQL nor a gold result" if question.gold_result is None else None
    if execution.verdict != "ok":
        return f"gold SQL: {execution.verdict}: {execution.error}"
    try:
        unstable = nondeterminism(question.gold_sql, corpus.dialect)
    except SqlError as error:
        return f"gold SQL: {error}"
    if unstable:
        return f"gold SQL is non-deterministic: {unstable}"
    given = question.gold_result
    if given is not None and not results_equal(execution.rows or (), given.rows, given.ordered):
        return "gold SQL gives other rows than the gold result that came with it"
    return None


def require_readable(corpus: Corpus, sandbox: Sandbox) -> None:
    """Looks into every database once: a locked one costs a second here, and one per question later."""
    used = {q.db_id for q in corpus.train + corpus.eval if q.gold_sql} & corpus.databases.keys()
    # A constant would not make SQLite look into the file.
    sql = "SELECT name FROM sqlite_master" if corpus.engine == "sqlite" else "SELECT 1"
    jobs = [SqlJob(str(corpus.databases[db_id]), sql, probe=True) for db_id in sorted(used)]
    for execution in sandbox.run(jobs):
        if execution.verdict != "ok":
            reason = execution.error.rstrip(".")
            raise InfraError(f"Gold SQL cannot be run: {reason}, then run the same command again.")


def _require_few_infra(asked: int, quarantine: tuple[Quarantined, ...]) -> None:
    # A quarantine outlasts its cause: a query that kills its worker belongs there, those of a sick machine do not.
    ours = [item.reason for item in quarantine if item.reason.startswith(_INFRA)]
    if len(ours) > MAX_INFRA_SHARE * asked:
        raise InfraError(
            f"{len(ours)} of {asked} gold queries could not be run for reasons of the sandbox (the last: "
            f"{ours[-1].removeprefix(_INFRA).rstrip('.')}); mend that, then run the same command again."
        )


def _with_result(question: Question, execution: Execution | None, dialect: str) -> Question:
    if question.gold_result is not None or execution is None or question.gold_sql is None:
        return question
    return replace(question, gold_result=GoldResult(execution.rows or (), orders_rows(question.gold_sql, dialect)))


def _keep_labels(questions: list[Question], fraction: float, seed: int) -> list[Question]:
    labelled = sorted(question.id for question in questions if question.gold_sql is not None)
    random.Random(seed).shuffle(labelled)
    kept = set(labelled[: max(1, math.floor(fraction * len(labelled) + 0.5))])
    return [question if question.id in kept else replace(question, gold_sql=None) for question in questions]


def _require_questions(
    corpus: Corpus, train: list[Question], evaluation: list[Question], quarantine: tuple[Quarantined, ...]
) -> None:
    if not corpus.train and not corpus.eval:
        raise DataError(f"The corpus {corpus.name} has no questions; check its path and the filters in `data`.")
    for split, before, after in (("training", corpus.train, train), ("evaluation", corpus.eval, evaluation)):
        if before and not after:
            name = "train" if split == "training" else "eval"
            reasons = Counter(item.reason for item in quarantine if item.split == name)
            reason, count = reasons.most_common(1)[0]
            raise DataError(
                f"None of the {len(before)} {split} questions of {corpus.name} can be used "
                f"({count} for this reason: {reason}); mend the data or choose other questions."
            )
