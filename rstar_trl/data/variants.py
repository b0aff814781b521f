"""Variants of an SQLite database: the same schema and constraints, other rows.

Rows are drawn again from the original's, cells mixed between rows, set to the constants of gold queries and their
neighbours, to NULL where that is allowed, to values that other rows have (ties); whole rows come twice where no key
forbids it. Foreign keys point to rows that exist. Small, so that a query on one costs little.

Guarantees: tables, columns, keys, checks, indexes and views are those of the original; a seed gives the same variant
again; the original is opened read-only. Does not guarantee that rows make sense: a singer may be older than her song.
"""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rstar_trl.data.copies import copy_in_progress, create_rest, create_tables
from rstar_trl.data.question import Value
from rstar_trl.data.readers import quoted

SAMPLE = 400
"""Rows of a table that are drawn from."""
SIZES = (3, 8, 16, 30, 50)
INTACT, BOUNDARY, TIE, MISSING, MIXED = 0.35, 0.2, 0.1, 0.08, 0.25
Constants = Mapping[str, Sequence[Value]]
"""Values that gold queries compare a column with, by its name in lower case."""


@dataclass(frozen=True)
class _Table:
    """A table as it is filled: `unique` holds columns that are a key by themselves, `nullable` those that may be NULL.

    `links` are foreign keys: positions of the columns, the parent's name, positions of the columns in the parent.
    """

    name: str
    columns: tuple[str, ...]
    unique: frozenset[int]
    nullable: frozenset[int]
    links: tuple[tuple[tuple[int, ...], str, tuple[int, ...]], ...]


def make_variant(source: Path, target: Path, seed: int, constants: Constants) -> None:
    """Writes one variant of the database `source` to the new file `target`."""
    generator = random.Random(seed)
    with copy_in_progress(source, target) as connection:
        connection.text_factory = lambda data: data.decode("utf-8", "replace")
        tables = _tables(connection, create_tables(connection, loose_keys=False))
        filled: dict[str, list[tuple[Value, ...]]] = {}
        for table in _parents_first(tables):
            rows = _rows(connection, table, generator, constants, filled)
            marks = ", ".join("?" * len(table.columns))
            for row in rows:
                # A row that breaks a key, a check or a strict type is left out, and is then no parent.
                with suppress(sqlite3.IntegrityError):
                    connection.execute(f"INSERT INTO main.{quoted(table.name)} VALUES ({marks})", row)
            filled[table.name.lower()] = connection.execute(f"SELECT * FROM main.{quoted(table.name)}").fetchall()
        create_rest(connection)


def _tables(connection: sqlite3.Connection, names: list[str]) -> list[_Table]:
    columns = {
        name.lower(): connection.execute(f"PRAGMA source.table_info({quoted(name)})").fetchall() for name in names
    }
    spelled = {table: [row[1].lower() for row in rows] for table, rows in columns.items()}
    found = []
    for name in names:
        rows = columns[name.lower()]
        keys = [row[0] for row in rows if row[5]]
        unique = set(keys) if len(keys) == 1 else set()
        for _, index, is_unique, *_ in connection.execute(f"PRAGMA source.index_list({quoted(name)})").fetchall():
            parts = connection.execute(f"PRAGMA source.index_info({quoted(index)})").fetchall()
            if is_unique and len(parts) == 1 and parts[0][1] >= 0:
                unique.add(parts[0][1])
        nullable = frozenset(row[0] for row in rows if not row[3] and not row[5])
        links = _links(connection, name, spelled)
        names_of = tuple(row[1].lower() for row in rows)
        found.append(_Table(name, names_of, frozenset(unique), nullable, links))
    return found


def _links(
    connection: sqlite3.Connection, name: str, spelled: Mapping[str, list[str]]
) -> tuple[tuple[tuple[int, ...], str, tuple[int, ...]], ...]:
    """The foreign keys whose parent exists, composite ones as one."""
    groups: dict[int, list[tuple[int, str, int]]] = {}
    for number, _, parent, column, target, *_ in connection.execute(f"PRAGMA source.foreign_key_list({quoted(name)})"):
        parent = parent.lower()
        own, others = spelled[name.lower()], spelled.get(parent, [])
        goal = (target or column).lower()
        if column.lower() in own and goal in others:
            groups.setdefault(number, []).append((own.index(column.lower()), parent, others.index(goal)))
    return tuple(
        (tuple(part[0] for part in parts), parts[0][1], tuple(part[2] for part in parts))
        for parts in groups.values()
        if parts[0][1] != name.lower()
    )


def _parents_first(tables: list[_Table]) -> list[_Table]:
    """An order in which parents come before children; a cycle is cut where it is met."""
    by_name = {table.name.lower(): table for table in tables}
    ordered: dict[str, _Table] = {}

    def visit(name: str, above: frozenset[str]) -> None:
        if name in ordered or name in above:
            return
        for _, parent, _ in by_name[name].links:
            visit(parent, above | {name})
        ordered[name] = by_name[name]

    for name in by_name:
        visit(name, frozenset())
    return list(ordered.values())


def _rows(
    connection: sqlite3.Connection,
    table: _Table,
    generator: random.Random,
    constants: Constants,
    filled: Mapping[str, list[tuple[Value, ...]]],
) -> list[list[Value]]:
    original = connection.execute(f"SELECT * FROM source.{quoted(table.name)} LIMIT {SAMPLE}").fetchall()
    if not original:
        original = [tuple(None for _ in table.columns)]
    rows: list[list[Value]] = []
    for number in range(generator.choice(SIZES)):
        row = list(generator.choice(rows if rows and generator.random() < TIE else original))
        if generator.random() >= INTACT:
            for position, column in enumerate(table.columns):
                if position in table.unique:
                    continue
                row[position] = _cell(row, position, table, column, original, rows, generator, constants)
        for position in table.unique:
            row[position] = _fresh(row[position], number, {other[position] for other in rows})
        for positions, parent, targets in table.links:
            _point(row, positions, filled.get(parent, []), targets, table, generator)
        rows.append(row)
    return rows


def _cell(
    row: list[Value],
    position: int,
    table: _Table,
    column: str,
    original: Sequence[Sequence[Value]],
    rows: list[list[Value]],
    generator: random.Random,
    constants: Constants,
) -> Value:
    """What a cell is set to: a boundary, a tie, NULL, another row's value, or left as it was."""
    draw = generator.random()
    known = constants.get(column, ())
    if known and draw < BOUNDARY:
        return _near(generator.choice(known), row[position], generator)
    draw -= BOUNDARY
    if rows and 0 <= draw < TIE:
        return generator.choice(rows)[position]
    draw -= TIE
    if position in table.nullable and 0 <= draw < MISSING:
        return None
    draw -= MISSING
    if 0 <= draw < MIXED:
        return generator.choice(original)[position]
    return row[position]


def _near(constant: Value, before: Value, generator: random.Random) -> Value:
    """The constant itself or a neighbour of it, a number for a column that held one."""
    if isinstance(constant, str):
        text = constant.strip("%")
        return generator.choice([text, text, text + "x", "x" + text, f"x{text}x", text.swapcase(), text[:-1]])
    if not isinstance(constant, int | float):
        return constant
    value = constant + generator.choice([-1, 0, 0, 1])
    return int(value) if float(value).is_integer() and not isinstance(before, float) else value


def _fresh(value: Value, number: int, taken: set[Value]) -> Value:
    """A key that no row has yet, like the one that was drawn."""
    if value is not None and value not in taken:
        return value
    if isinstance(value, str):
        return f"{value}{number}"
    numbers = [each for each in taken if isinstance(each, int | float)]
    return int(max(numbers, default=0)) + 1


def _point(
    row: list[Value],
    positions: tuple[int, ...],
    parents: list[tuple[Value, ...]],
    targets: tuple[int, ...],
    table: _Table,
    generator: random.Random,
) -> None:
    """Lets a foreign key point to a row of the parent that exists; to none where there is none, or by chance."""
    optional = all(position in table.nullable for position in positions)
    parent = generator.choice(parents) if parents else None
    if parent is None or (optional and generator.random() < MISSING / 2):
        if optional:
            for position in positions:
                row[position] = None
        return
    # Half of the keys stay where they point, if that row exists: joins keep the shape that they had.
    here = tuple(row[position] for position in positions)
    if generator.random() < 0.5 and any(tuple(other[target] for target in targets) == here for other in parents):
        return
    for position, target in zip(positions, targets, strict=True):
        row[position] = parent[target]
