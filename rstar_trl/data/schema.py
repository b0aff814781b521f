"""What a live SQLite database holds: tables, keys, sample values, and which columns hold a word of the question.

Guarantees: the database is opened read-only and never changed; any text comes back (bytes that are not UTF-8 are
replaced); the same file gives the same schema; only the first `SCAN_ROWS` rows of a table are looked at, so that a
big one costs no more than a small one. Does not guarantee: that every stored value is indexed, for the same reason.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from rstar_trl.config import PromptConfig
from rstar_trl.data.question import Value
from rstar_trl.errors import DataError

SCAN_ROWS = 20_000
VALUES_PER_COLUMN = 2_000
MAX_WORDS, MAX_CHARS = 6, 60
"""Longer values are not indexed: nobody quotes them in a question."""

_WORD = re.compile(r"\w+")
_PLAIN_NAME = re.compile(r"[A-Za-z_]\w*\Z", re.ASCII)
_RESERVED = (
    "add all alter and as autoincrement between case cast check collate commit constraint create default deferrable "
    "delete distinct drop else escape except exists foreign from group having in index insert intersect into is "
    "isnull join limit not nothing notnull on or order primary raise references returning select set table then to "
    "transaction union unique update using values when where"
)
_RESERVED_WORDS = frozenset(_RESERVED.split())


@dataclass(frozen=True)
class Column:
    """`type` is the declared one, in lower case, empty when there is none."""

    name: str
    type: str
    primary_key: bool = False
    samples: tuple[Value, ...] = ()


@dataclass(frozen=True)
class Table:
    name: str
    columns: tuple[Column, ...]


@dataclass(frozen=True)
class ForeignKey:
    """`table`.`column` refers to `parent`.`parent_column`; composite keys give one of these per column."""

    table: str
    column: str
    parent: str
    parent_column: str


Hint = tuple[str, str, str]
"""Table, column, and the text it holds, as stored."""


@dataclass(frozen=True)
class Schema:
    """Tables in the order they were created. `values` maps a value's words, lower-cased, to where it is stored."""

    tables: tuple[Table, ...]
    foreign_keys: tuple[ForeignKey, ...]
    values: Mapping[str, tuple[Hint, ...]] = field(default_factory=dict, repr=False)
    longest: int = 0
    """Words of the longest value in `values`."""


def introspect(path: Path | str, sample_values: int = 2) -> Schema:
    """The schema of the database file `path` with up to `sample_values` distinct values per column.

    Raises `DataError` when the file is missing, locked, not an SQLite database, or holds no table.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"the database {path} does not exist; check the path, or put the file there.")
    try:
        with closing(
            sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=ro", uri=True, timeout=2)
        ) as connection:
            connection.text_factory = lambda data: data.decode("utf-8", "replace")
            schema = _read(connection, sample_values)
    except sqlite3.Error as error:
        raise DataError(f"the database {path} cannot be read ({error}); {_remedy(error)}.") from error
    if not schema.tables:
        raise DataError(f"the database {path} holds no table; check that it is the file you meant.")
    return schema


def column_names(path: Path | str) -> dict[str, tuple[str, ...]]:
    """The columns of every table of a database file, names as they are spelled; no value is looked at.

    Raises `DataError` when the file is missing or cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"the database {path} does not exist; check the path, or put the file there.")
    try:
        with closing(
            sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=ro", uri=True, timeout=2)
        ) as connection:
            names = [name for (name,) in connection.execute("select name from sqlite_master where type = 'table'")]
            return {name: _columns(connection, name) for name in names}
    except sqlite3.Error as error:
        raise DataError(f"the database {path} cannot be read ({error}); {_remedy(error)}.") from error


def _columns(connection: sqlite3.Connection, table: str) -> tuple[str, ...]:
    return tuple(row[1] for row in connection.execute(f"pragma table_info({quoted(table)})"))


def _remedy(error: sqlite3.Error) -> str:
    if "locked" in str(error):
        return "close the program that is writing to it and run the same command again"
    if isinstance(error, sqlite3.OperationalError):
        return "check that the file and its folder may be read"
    return "replace the file by a whole SQLite database"


def _read(connection: sqlite3.Connection, sample_values: int) -> Schema:
    query = "select name from sqlite_master where type in ('table', 'view') and name not like 'sqlite\\_%' escape '\\'"
    names = [name for (name,) in connection.execute(query)]
    tables, values = [], dict[str, list[Hint]]()
    for name in names:
        columns = []
        for _, column, declared, _, _, key in connection.execute(f"pragma table_info({quoted(name)})").fetchall():
            found = _distinct(connection, name, column)
            _index(values, name, column, found)
            samples = tuple(value for value in found if not isinstance(value, bytes))[:sample_values]
            columns.append(Column(column, declared.lower(), key > 0, samples))
        tables.append(Table(name, tuple(columns)))
    index = {key: tuple(hints) for key, hints in values.items()}
    longest = max((key.count(" ") + 1 for key in index), default=0)
    return Schema(tuple(tables), tuple(_foreign_keys(connection, tables)), index, longest)


def _distinct(connection: sqlite3.Connection, table: str, column: str) -> list[Value]:
    """Distinct values that are not NULL, in the order of first appearance."""
    name = quoted(column)
    inner = f"select {name} from {quoted(table)} limit {SCAN_ROWS}"
    rows = connection.execute(
        f"select distinct {name} from ({inner}) where {name} is not null limit {VALUES_PER_COLUMN}"
    )
    return [value for (value,) in rows]


def _index(values: dict[str, list[Hint]], table: str, column: str, found: list[Value]) -> None:
    for value in found:
        if isinstance(value, str) and len(value) <= MAX_CHARS:
            words = _WORD.findall(value.lower())
            if 0 < len(words) <= MAX_WORDS:
                values.setdefault(" ".join(words), []).append((table, column, value))


def _foreign_keys(connection: sqlite3.Connection, tables: list[Table]) -> Iterator[ForeignKey]:
    """Keys whose parent exists, with names as their tables spell them."""
    known = {table.name.lower(): table for table in tables}
    for table in tables:
        rows = connection.execute(f"pragma foreign_key_list({quoted(table.name)})").fetchall()
        for _, position, parent_name, column, target, *_ in sorted(rows, key=lambda row: (-row[0], row[1])):
            parent = known.get(parent_name.lower())
            if parent is None:
                continue
            keys = [other.name for other in parent.columns if other.primary_key]
            if target is None:
                target = keys[position] if position < len(keys) else None
            own, other = _spelled(table, column), _spelled(parent, target)
            if own and other:
                yield ForeignKey(table.name, own, parent.name, other)


def _spelled(table: Table, name: str | None) -> str | None:
    return next((column.name for column in table.columns if name and column.name.lower() == name.lower()), None)


def value_hints(schema: Schema, question: str, limit: int) -> list[Hint]:
    """At most `limit` columns that hold, as a whole value, words of the question.

    Words are compared without case and punctuation. Longer values come first, then those whose spelling is in the
    question as it stands; a value inside a longer one that was found is left out. A value that several columns hold
    is first given where the question names table or column, and again only when every other value had its turn.
    Values of up to three characters count only as spelled, or "a" would be a blood group.
    """
    words = _WORD.findall(question.lower())
    mentioned = {word.rstrip("s") for word in words}
    free = [True] * len(words)
    turns: list[tuple[int, Hint]] = []
    for size in range(min(schema.longest, len(words)), 0, -1):
        for held in _held(schema, words, size, free, question):
            held.sort(key=lambda hint: -_mentions(hint, mentioned))
            turns += enumerate(held)
    turns.sort(key=lambda turn: turn[0])
    return list(dict.fromkeys(hint for _, hint in turns))[:limit]


def _held(schema: Schema, words: list[str], size: int, free: list[bool], question: str) -> list[list[Hint]]:
    """The columns holding each run of `size` words, runs spelled as stored first; marks what they take in `free`."""
    spans: list[tuple[bool, int, list[Hint]]] = []
    for start in range(len(words) - size + 1):
        hints = schema.values.get(" ".join(words[start : start + size])) if free[start] else None
        if hints and all(free[start : start + size]):
            kept = [hint for hint in hints if len(hint[2]) > 3 or _spelled_in(hint[2], question)]
            if kept:
                spans.append((kept[0][2] not in question, start, kept))
    for _, start, _ in spans:
        free[start : start + size] = [False] * size
    return [kept for _, _, kept in sorted(spans, key=lambda span: span[:2])]


def _spelled_in(value: str, question: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(value)}(?!\w)", question) is not None


def _mentions(hint: Hint, mentioned: set[str]) -> int:
    """How many of the table and the column are named in the question (plural -s aside)."""
    return sum(name.lower().rstrip("s") in mentioned for name in hint[:2])


def render_schema(schema: Schema, config: PromptConfig) -> str:
    """The schema in one line per table and one per foreign key, ready to stand in a prompt.

    `singer(id int primary key, name text ('Ana', 'Ben'))`, then `album.singer_id = singer.id`. Names that SQL must
    quote are quoted. Whole-number keys and referring columns show no samples: their values say nothing.
    """
    referring = {(key.table, key.column) for key in schema.foreign_keys}
    lines = []
    for table in schema.tables:
        columns = [_column(column, config, (table.name, column.name) in referring) for column in table.columns]
        lines.append(f"{identifier(table.name)}({', '.join(columns)})")
    for key in schema.foreign_keys:
        own = f"{identifier(key.table)}.{identifier(key.column)}"
        lines.append(f"{own} = {identifier(key.parent)}.{identifier(key.parent_column)}")
    return "\n".join(lines)


def _column(column: Column, config: PromptConfig, refers: bool) -> str:
    text = identifier(column.name)
    if config.column_types and column.type:
        text += f" {column.type}"
    if column.primary_key:
        text += " primary key"
    samples = column.samples[: config.sample_values]
    if not samples or refers or (column.primary_key and isinstance(samples[0], int)):
        return text
    return f"{text} ({', '.join(map(sample, samples))})"


def sample(value: Value) -> str:
    """A value as it stands in a prompt: text in SQL quotes on one line, cut after 40 characters."""
    if not isinstance(value, str):
        return str(value)
    text = value if len(value) <= 40 else value[:37] + "..."
    text = text.replace("'", "''").replace("\\", "\\\\")
    return "'" + "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text) + "'"


def identifier(name: str) -> str:
    """The name as SQL must write it: quoted only where SQLite would not read it plain."""
    plain = _PLAIN_NAME.match(name) and name.lower() not in _RESERVED_WORDS
    return name if plain else quoted(name)


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
