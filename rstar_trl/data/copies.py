"""Copies of SQLite databases that hold the same rows in another order.

A query whose answer depends on the order in which rows lie on disk answers differently on a shuffled copy. So that
they can lie in any order, integer keys that SQLite would sort by are declared INT instead of INTEGER in the copy: the
same affinity.

Guarantees: every table holds the same rows, byte for byte; a seed gives the same copy again; the source is opened
read-only. Does not guarantee another order for tables WITHOUT ROWID, which are kept in the order of their key.
"""

from __future__ import annotations

import random
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote

from rstar_trl.data.readers import quoted
from rstar_trl.errors import DataError

_INTEGER = re.compile(r"\binteger\b(?=[^'\"]*(?:['\"][^'\"]*['\"][^'\"]*)*$)", re.IGNORECASE)
_AUTOINCREMENT = re.compile(r"\bautoincrement\b", re.IGNORECASE)


@contextmanager
def copy_in_progress(source: Path, target: Path) -> Iterator[sqlite3.Connection]:
    """A connection to a new file `target` with `source` attached read-only as `source`; committed at the end.

    Raises `DataError` when the source cannot be read or the copy not be written; then there is no `target`.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        with closing(sqlite3.connect(target, uri=True)) as connection:
            connection.execute("ATTACH ? AS source", (f"file:{quote(str(source.absolute()))}?mode=ro",))
            connection.execute("PRAGMA synchronous = OFF")
            yield connection
            connection.commit()
    except sqlite3.Error as error:
        target.unlink(missing_ok=True)
        raise DataError(f"{source} cannot be copied to {target} ({error}); check the file and the space.") from error


def create_tables(connection: sqlite3.Connection, loose_keys: bool) -> list[str]:
    """Makes the source's tables, empty, and returns their names; `loose_keys` frees rows from their key's order."""
    query = (
        "SELECT name, sql FROM source.sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"
    )
    names = []
    for name, sql in connection.execute(query).fetchall():
        connection.execute(_loosened(sql) if loose_keys else sql)
        names.append(name)
    return names


def create_rest(connection: sqlite3.Connection) -> None:
    """Makes the source's indexes and views; triggers have nothing to do in a copy that is only read."""
    query = "SELECT sql FROM source.sqlite_master WHERE type IN ('index', 'view') AND sql IS NOT NULL ORDER BY rowid"
    for (sql,) in connection.execute(query).fetchall():
        connection.execute(sql)


def shuffled_copy(source: Path, target: Path, seed: int) -> None:
    """Writes the database `source` to the new file `target`, its rows in an order drawn by `seed`."""
    generator = random.Random(seed)
    with copy_in_progress(source, target) as connection:
        connection.create_function("shuffle_rank", 0, generator.random)
        for name in create_tables(connection, loose_keys=True):
            table = quoted(name)
            connection.execute(f"INSERT INTO main.{table} SELECT * FROM source.{table} ORDER BY shuffle_rank()")
        create_rest(connection)


def _loosened(sql: str) -> str:
    return _AUTOINCREMENT.sub("", _INTEGER.sub("INT", sql))
