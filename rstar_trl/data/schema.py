"""What a live database holds: tables, keys, sample values, and which columns hold a word of the question.

Guarantees: the same for every engine (`rstar_trl.data.readers`); the same database gives the same schema; only the
first `SCAN_ROWS` rows of a table are looked at, so that a big one costs no more than a small one. Does not guarantee:
that every stored value is indexed, for the same reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from rstar_trl.config import PromptConfig
from rstar_trl.data.databases import Database, Dialect, dialect_of, is_there, shown
from rstar_trl.data.question import Value
from rstar_trl.data.readers import Reader, open_reader, quoted, sqlite_connection
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
_RESERVED_ELSEWHERE = (
    "analyze any array asc asymmetric authorization binary both cast cross current_date current_time current_user "
    "desc do end false fetch for freeze full grant ilike initially inner lateral leading left like localtime natural "
    "offset only outer overlaps pivot placing qualify right show similar some summarize symmetric tablesample "
    "trailing true unpivot user variadic verbose window with"
)
"""What PostgreSQL or DuckDB reserve beyond SQLite."""
_RESERVED_ELSEWHERE_WORDS = frozenset(_RESERVED_ELSEWHERE.split())


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
    """Tables in the order of their reader. `values` maps a value's words, lower-cased, to where it is stored."""

    tables: tuple[Table, ...]
    foreign_keys: tuple[ForeignKey, ...]
    values: Mapping[str, tuple[Hint, ...]] = field(default_factory=dict, repr=False)
    longest: int = 0
    """Words of the longest value in `values`."""
    dialect: Dialect = "sqlite"


def introspect(database: Database, sample_values: int = 2) -> Schema:
    """The schema of a database with up to `sample_values` distinct values per column.

    Raises `DataError` when it is missing, locked, no database, on a server that cannot be asked, or holds no table.
    """
    with open_reader(database) as reader:
        schema = _read(reader, sample_values, dialect_of(database))
    if not schema.tables:
        raise DataError(f"the database {shown(database)} holds no table; check that it is the one you meant.")
    return schema


def column_names(path: Database) -> dict[str, tuple[str, ...]]:
    """The columns of every table of an SQLite file, names as they are spelled; no value is looked at.

    Raises `DataError` when the file is missing or cannot be read.
    """
    if not is_there(path):
        raise DataError(f"the database {path} does not exist; check the path, or put the file there.")
    with sqlite_connection(path) as connection:
        names = [name for (name,) in connection.execute("select name from sqlite_master where type = 'table'")]
        rows = {name: connection.execute(f"pragma table_info({quoted(name)})").fetchall() for name in names}
    return {name: tuple(row[1] for row in found) for name, found in rows.items()}


def _read(reader: Reader, sample_values: int, dialect: Dialect) -> Schema:
    tables, values = [], dict[str, list[Hint]]()
    for name, described in reader.tables():
        columns = []
        for column, declared, key in described:
            found = list(dict.fromkeys(reader.values(name, column, SCAN_ROWS)))[:VALUES_PER_COLUMN]
            _index(values, name, column, found)
            samples = tuple(value for value in found if not isinstance(value, bytes))[:sample_values]
            columns.append(Column(column, declared.lower(), key, samples))
        tables.append(Table(name, tuple(columns)))
    index = {key: tuple(hints) for key, hints in values.items()}
    longest = max((key.count(" ") + 1 for key in index), default=0)
    return Schema(tuple(tables), tuple(_foreign_keys(reader, tables)), index, longest, dialect)


def _index(values: dict[str, list[Hint]], table: str, column: str, found: list[Value]) -> None:
    for value in found:
        if isinstance(value, str) and len(value) <= MAX_CHARS:
            words = _WORD.findall(value.lower())
            if 0 < len(words) <= MAX_WORDS:
                values.setdefault(" ".join(words), []).append((table, column, value))


def _foreign_keys(reader: Reader, tables: list[Table]) -> Iterator[ForeignKey]:
    """Keys whose parent exists, with names as their tables spell them."""
    known = {table.name.lower(): table for table in tables}
    for name, column, parent_name, target in reader.references():
        parent = known.get(parent_name.lower())
        if parent is None:
            continue
        keys = [other.name for other in parent.columns if other.primary_key]
        if isinstance(target, int):
            target = keys[target] if target < len(keys) else ""
        own, other = _spelled(known[name.lower()], column), _spelled(parent, target)
        if own and other:
            yield ForeignKey(name, own, parent.name, other)


def _spelled(table: Table, name: str) -> str | None:
    return next((column.name for column in table.columns if column.name.lower() == name.lower()), None)


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
        columns = [
            _column(column, config, (table.name, column.name) in referring, schema.dialect) for column in table.columns
        ]
        lines.append(f"{identifier(table.name, schema.dialect)}({', '.join(columns)})")
    for key in schema.foreign_keys:
        names = (identifier(name, schema.dialect) for name in (key.table, key.column, key.parent, key.parent_column))
        lines.append("{}.{} = {}.{}".format(*names))
    return "\n".join(lines)


def _column(column: Column, config: PromptConfig, refers: bool, dialect: Dialect) -> str:
    text = identifier(column.name, dialect)
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


def identifier(name: str, dialect: Dialect = "sqlite") -> str:
    """The name as SQL must write it: quoted only where the engine would not read it plain."""
    plain = _PLAIN_NAME.match(name) and name.lower() not in _RESERVED_WORDS
    if dialect != "sqlite":
        plain = plain and name.lower() not in _RESERVED_ELSEWHERE_WORDS
    if dialect == "postgres":
        plain = plain and name == name.lower()  # Names that are not quoted are read in lower case.
    return name if plain else quoted(name)
