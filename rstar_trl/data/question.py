"""The one record the whole house passes around: a question about a database.

Guarantees: a `Question` never changes; its `id` is unique within a corpus (two questions with the same text stay two).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rstar_trl.io import digest

Value = int | float | str | bytes | None
Row = tuple[Value, ...]


@dataclass(frozen=True)
class GoldResult:
    """The rows a right query returns; `ordered` says whether their order is part of the answer."""

    rows: tuple[Row, ...]
    ordered: bool = False


@dataclass(frozen=True)
class Check:
    """What the right query returns on another database of the same schema, named by its path."""

    database: str
    result: GoldResult


@dataclass(frozen=True)
class Question:
    """A question in words about one database, with what is known of its answer.

    Training needs `gold_sql` or `gold_result`; asking needs neither. `checks` are further databases that a right query
    must be right on. `meta` is free (hardness, template, split) and
    is never shown to a model.
    """

    id: str
    db_id: str
    question: str
    evidence: str = ""
    gold_sql: str | None = None
    gold_result: GoldResult | None = None
    checks: tuple[Check, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Corpus:
    """Questions with the databases they are about.

    `databases` maps `db_id` to an SQLite file; `dialect` is sqlglot's name of the dialect the gold SQL is written in.
    """

    name: str
    train: tuple[Question, ...]
    eval: tuple[Question, ...]
    databases: Mapping[str, Path]
    dialect: str = "sqlite"

    def digest(self) -> str:
        """Changes whenever a question, a label or the set of databases changes."""
        questions = [
            (q.id, q.db_id, q.question, q.evidence, q.gold_sql, repr(q.gold_result)) for q in self.train + self.eval
        ]
        return digest([self.name, self.dialect, sorted(self.databases), questions])
