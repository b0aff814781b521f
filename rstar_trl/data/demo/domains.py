"""What a demo database is made of: tables, columns, the words people use for them, and their content.

Guarantees: every table has a primary key `id`; foreign keys are never NULL; other columns hold NULLs only where
`nulls` says so; content depends on the seed, the domain and the table alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import Literal

from rstar_trl.data.demo.content import Cell, Maker

Kind = Literal["name", "category", "number", "date"]
TYPES: dict[Kind, str] = {"name": "text", "category": "text", "number": "int", "date": "date"}


@dataclass(frozen=True)
class Column:
    """A column and its words. `additive` says that a sum of it means something; `nulls` is the fraction of NULLs."""

    name: str
    kind: Kind
    nouns: tuple[str, ...]
    make: Maker
    nulls: float = 0.0
    additive: bool = False
    type: str = ""

    @property
    def declared(self) -> str:
        return self.type or TYPES[self.kind]


@dataclass(frozen=True)
class Link:
    """A foreign key `column` to `parent`.id, and the words between child and parent ("albums by singers")."""

    column: str
    parent: str
    words: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """`nouns` are (singular, plural) pairs."""

    name: str
    rows: int
    nouns: tuple[tuple[str, str], ...]
    columns: tuple[Column, ...]
    links: tuple[Link, ...] = ()

    @property
    def label(self) -> Column | None:
        """The column that names a row for people, if there is one."""
        return next((column for column in self.columns if column.kind == "name"), None)


@dataclass(frozen=True)
class Domain:
    """One database; parents stand before their children."""

    name: str
    tables: tuple[Table, ...]
    by_name: dict[str, Table] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_name", {table.name: table for table in self.tables})


Content = dict[str, list[dict[str, Cell | None]]]


def make_content(domain: Domain, seed: int) -> Content:
    """Rows of every table, the same for the same seed. Early parents have many children, the last have none."""
    made: Content = {}
    for table in domain.tables:
        rng = Random(f"{seed}/{domain.name}/{table.name}")
        made[table.name] = [_row(rng, table, number, made) for number in range(1, table.rows + 1)]
    return made


def _row(rng: Random, table: Table, number: int, made: Content) -> dict[str, Cell | None]:
    row: dict[str, Cell | None] = {"id": number}
    for link in table.links:
        parents = len(made[link.parent])
        row[link.column] = 1 + int(parents * 0.92 * rng.random() ** 1.5)
    for column in table.columns:
        row[column.name] = None if rng.random() < column.nulls else column.make(rng)
    return row


def ddl(table: Table) -> str:
    columns = ["id int primary key", *(f"{link.column} int" for link in table.links)]
    columns += [f"{column.name} {column.declared}" for column in table.columns]
    columns += [f"foreign key ({link.column}) references {link.parent}(id)" for link in table.links]
    return f"create table {table.name} ({', '.join(columns)})"
