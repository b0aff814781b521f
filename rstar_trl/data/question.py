"""The one record the whole house passes around: a question about a database.

Guarantees: a `Question` never changes; its `id` is unique within a corpus (two questions with the same text stay two).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rstar_trl.data.databases import Database, Dialect, dialect_of
from rstar_trl.errors import DataError
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
    """What the right query returns on another database of the same schema, named like `Corpus.databases`."""

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

    `databases` maps `db_id` to an SQLite file or the URL of another database, all of one engine; `dialect` is
    sqlglot's name of the dialect the gold SQL is written in.
    """

    name: str
    train: tuple[Question, ...]
    eval: tuple[Question, ...]
    databases: Mapping[str, Database]
    dialect: str = "sqlite"

    @property
    def engine(self) -> Dialect:
        """The engine of all databases. Raises `DataError` when there are several."""
        first: dict[Dialect, str] = {}
        for db_id, database in self.databases.items():
            first.setdefault(dialect_of(database), db_id)
        if len(first) > 1:
            found = ", ".join(f"{db_id} is {engine}" for engine, db_id in first.items())
            raise DataError(
                f"the databases of {self.name} are of several engines ({found}); make a data set for each."
            )
        return next(iter(first), "sqlite")

    def digest(self) -> str:
        """Changes whenever a question, a label or the set of databases changes."""
        questions = [
            (q.id, q.db_id, q.question, q.evidence, q.gold_sql, repr(q.gold_result)) for q in self.train + self.eval
        ]
        return digest([self.name, self.dialect, sorted(self.databases), questions])
