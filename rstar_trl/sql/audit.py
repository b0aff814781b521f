"""Looks for gold queries that should not be labels: every one is run, and run again where rows lie in another order.

Guarantees: each question appears at most once per kind of finding, with its reason in words; what `quarantined` says
is what training leaves out (`data.quarantine`). Does not guarantee that a gold query without a finding answers its
question, nor that every unstable query is caught: `COPIES` shuffles are looked at, not all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from rstar_trl.data.copies import shuffled_copy
from rstar_trl.data.databases import is_there
from rstar_trl.data.question import Corpus, Question
from rstar_trl.errors import DataError, SqlError
from rstar_trl.io import iter_jsonl
from rstar_trl.sql.compare import orders_rows, results_equal
from rstar_trl.sql.dialects import in_engine_dialect
from rstar_trl.sql.execution import Execution, SqlJob
from rstar_trl.sql.gold import require_readable
from rstar_trl.sql.policy import nondeterminism
from rstar_trl.sql.sandbox import Sandbox

Kind = Literal[
    "unknown database", "failed", "timeout", "infra", "empty", "non-deterministic", "tied order", "duplicate"
]
QUARANTINED: frozenset[Kind] = frozenset(
    {"unknown database", "failed", "timeout", "infra", "empty", "non-deterministic"}
)
COPIES = 2
CHUNK = 1024


@dataclass(frozen=True)
class Finding:
    """What was found about one gold query. `quarantined`: it must not be a label."""

    question_id: str
    split: str
    kind: Kind
    reason: str

    @property
    def quarantined(self) -> bool:
        """Ties in an order and duplicates are told, but may stay."""
        return self.kind in QUARANTINED


def audit(corpus: Corpus, sandbox: Sandbox, scratch: Path, seed: int = 0) -> list[Finding]:
    """Findings about all gold queries of a corpus; shuffled copies of its SQLite databases are made in `scratch`.

    Databases of other engines are not copied: their queries run once, and what depends on the order of rows stays
    unseen. Raises `InfraError` when a database cannot be read.
    """
    # A database that is missing is a finding about its questions; one that cannot be read says nothing about them.
    corpus = replace(corpus, databases={name: each for name, each in corpus.databases.items() if is_there(each)})
    require_readable(corpus, sandbox)
    corpus, unsayable = in_engine_dialect(corpus)
    copies = _shuffled(corpus, scratch, seed)
    findings: list[Finding] = []
    for split, questions in (("train", corpus.train), ("eval", corpus.eval)):
        findings += _duplicates(questions, split)
        findings += [Finding(q.id, split, "failed", unsayable[q.id]) for q in questions if q.id in unsayable]
        asked = [question for question in questions if question.gold_sql and question.id not in unsayable]
        for start in range(0, len(asked), CHUNK):
            findings += _chunk(corpus, asked[start : start + CHUNK], split, sandbox, copies)
    return findings


def read_quarantine(path: Path) -> dict[str, str]:
    """Reasons by question id, from a list that `data audit` wrote; raises `DataError` when it is no such list."""
    if not path.is_file():
        raise DataError(f"the quarantine list {path} does not exist; write it with `rstar-trl data audit`.")
    found = {}
    for number, row in iter_jsonl(path):
        if not isinstance(row.get("question_id"), str) or not isinstance(row.get("reason"), str):
            raise DataError(
                f"{path}:{number} has no `question_id` and `reason`; write it with `rstar-trl data audit`."
            )
        found[row["question_id"]] = row["reason"]
    return found


def _shuffled(corpus: Corpus, scratch: Path, seed: int) -> Mapping[str, list[Path]]:
    copies: dict[str, list[Path]] = {}
    count = COPIES if corpus.engine == "sqlite" else 0
    for db_id, database in corpus.databases.items():
        copies[db_id] = [scratch / f"{db_id}-{number}.sqlite" for number in range(count)]
        for number, copy in enumerate(copies[db_id]):
            shuffled_copy(Path(database), copy, seed + number)
    return copies


def _chunk(
    corpus: Corpus, questions: Sequence[Question], split: str, sandbox: Sandbox, copies: Mapping[str, list[Path]]
) -> Iterator[Finding]:
    known = [question for question in questions if question.db_id in copies]
    for question in questions:
        if question.db_id not in copies:
            yield Finding(question.id, split, "unknown database", f"unknown database {question.db_id!r}")
    jobs = [
        SqlJob(str(database), question.gold_sql or "")
        for question in known
        for database in (corpus.databases[question.db_id], *copies[question.db_id])
    ]
    executions = iter(sandbox.run(jobs))
    for question in known:
        execution = next(executions)
        again = [next(executions) for _ in copies[question.db_id]]
        found = _judge(question.gold_sql or "", corpus.dialect, execution, again)
        if found:
            yield Finding(question.id, split, *found)


def _judge(sql: str, dialect: str, execution: Execution, again: list[Execution]) -> tuple[Kind, str] | None:
    if execution.verdict != "ok":
        kinds: dict[str, Kind] = {"timeout": "timeout", "infra": "infra"}
        return kinds.get(execution.verdict, "failed"), f"gold SQL: {execution.verdict}: {execution.error}"
    try:
        reason = execution.unstable or nondeterminism(sql, dialect)
    except SqlError as error:
        return "failed", f"gold SQL: {error}"
    if reason:
        return "non-deterministic", f"gold SQL is non-deterministic: {reason}"
    rows = execution.rows or ()
    if not all(results_equal(other.rows or (), rows, ordered=False) for other in again):
        return "non-deterministic", "gold SQL is non-deterministic: other rows when rows are stored in another order"
    if not rows:
        return "empty", "empty"
    if orders_rows(sql, dialect) and not all(results_equal(other.rows or (), rows, ordered=True) for other in again):
        return "tied order", "ORDER BY leaves ties, which come in the order in which rows are stored"
    return None


def _duplicates(questions: Sequence[Question], split: str) -> Iterator[Finding]:
    """Questions asked before, word for word, about the same database."""
    first: dict[tuple[str, str], Question] = {}
    for question in questions:
        key = (question.db_id, " ".join(question.question.lower().split()))
        before = first.setdefault(key, question)
        if before is not question:
            same = _words(before.gold_sql) == _words(question.gold_sql)
            yield Finding(
                question.id,
                split,
                "duplicate",
                f"asked before as {before.id}, " + ("with the same SQL" if same else "with other SQL"),
            )


def _words(sql: str | None) -> list[str]:
    return (sql or "").lower().rstrip("; ").split()
