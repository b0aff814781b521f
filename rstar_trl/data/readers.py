"""Reading what a live database holds, the same way from every engine: its tables, its keys, its values.

Guarantees: the database is opened read-only and never changed; any text comes back (bytes that are not UTF-8 are
replaced); rows come in the order in which they are stored, so that the same file reads the same. What fails raises
`DataError` in one sentence. Does not guarantee keys that the role may not see.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any, Protocol
from urllib.parse import quote

from rstar_trl.data.databases import Database, Dialect, absolute, dialect_of, is_there, path_of, plain_value, shown
from rstar_trl.data.question import Value
from rstar_trl.errors import DataError

CONNECT_SECONDS = 5

Column = tuple[str, str, bool]
"""Name, declared type, and whether it is part of the primary key."""
Reference = tuple[str, str, str, str | int]
"""Table, column, parent, and the parent's column; or its place in the parent's primary key, if no name is given."""


class Reader(Protocol):
    """An open database. `values` are those of the first `rows` rows, without NULL, and with or without repetitions."""

    def tables(self) -> list[tuple[str, list[Column]]]: ...

    def references(self) -> list[Reference]: ...

    def values(self, table: str, column: str, rows: int) -> list[Value]: ...


@contextmanager
def open_reader(database: Database) -> Iterator[Reader]:
    """The reader of a database. Raises `DataError` when it is not there or cannot be read."""
    if not is_there(database):
        raise DataError(f"the database {database} does not exist; check the path, or put the file there.")
    dialect = dialect_of(database)
    if dialect == "sqlite":
        with sqlite_connection(database) as connection:
            yield SqliteReader(connection)
        return
    try:
        connect, failure = _driver(dialect)
    except ImportError as error:
        raise DataError(
            f"the database {shown(database)} needs a package that is not installed ({error}); run "
            f"`pip install 'rstar-trl[{dialect}]'`."
        ) from error
    try:
        with closing(connect(database)) as connection:
            yield CatalogReader(connection, dialect)
    except failure as error:
        raise DataError(
            f"the database {shown(database)} cannot be read ({' '.join(str(error).split())}); check that it is there "
            "and may be read."
        ) from error


@contextmanager
def sqlite_connection(database: Database) -> Iterator[sqlite3.Connection]:
    """A connection that only reads; what fails while it is open is a `DataError` about the file."""
    path = path_of(database)
    try:
        with closing(sqlite3.connect(f"file:{quote(absolute(path))}?mode=ro", uri=True, timeout=2)) as connection:
            connection.text_factory = lambda data: data.decode("utf-8", "replace")
            yield connection
    except sqlite3.Error as error:
        raise DataError(f"the database {path} cannot be read ({error}); {_remedy(error)}.") from error


def quoted(name: str) -> str:
    """The name as all dialects read it, whatever is in it."""
    return '"' + name.replace('"', '""') + '"'


class SqliteReader:
    """Tables and views in the order in which they were created."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection

    def tables(self) -> list[tuple[str, list[Column]]]:
        query = (
            "select name from sqlite_master where type in ('table', 'view') and name not like 'sqlite\\_%' escape '\\'"
        )
        names = [name for (name,) in self.connection.execute(query)]
        return [(name, [(row[1], row[2], row[5] > 0) for row in self._rows("table_info", name)]) for name in names]

    def references(self) -> list[Reference]:
        found: list[Reference] = []
        for table, _ in self.tables():
            rows = sorted(self._rows("foreign_key_list", table), key=lambda row: (-row[0], row[1]))
            found += [(table, row[3], row[2], row[1] if row[4] is None else row[4]) for row in rows]
        return found

    def values(self, table: str, column: str, rows: int) -> list[Value]:
        inner = f"select {quoted(column)} from {quoted(table)} limit {rows}"
        query = f"select distinct * from ({inner}) where {quoted(column)} is not null"
        return [value for (value,) in self.connection.execute(query)]

    def _rows(self, pragma: str, table: str) -> list[Any]:
        return self.connection.execute(f"pragma {pragma}({quoted(table)})").fetchall()


class CatalogReader:
    """Databases with a catalogue: DuckDB and PostgreSQL. Tables and views of the current schema, by name."""

    def __init__(self, connection: Any, dialect: Dialect) -> None:
        self.connection = connection
        # Table, columns, parent (NULL for a primary key), parent's columns. A role that may only SELECT sees no key in
        # PostgreSQL's information_schema.
        self.keys = self._rows(_DUCKDB_KEYS if dialect == "duckdb" else _POSTGRES_KEYS)

    def tables(self) -> list[tuple[str, list[Column]]]:
        primary = {(table, column) for table, columns, parent, _ in self.keys if parent is None for column in columns}
        found: dict[str, list[Column]] = {}
        for table, column, declared in self._rows(_COLUMNS):
            found.setdefault(table, []).append((column, declared, (table, column) in primary))
        return list(found.items())

    def references(self) -> list[Reference]:
        return [
            (table, column, parent, target)
            for table, columns, parent, targets in self.keys
            if parent is not None
            for column, target in zip(columns, targets, strict=True)
        ]

    def values(self, table: str, column: str, rows: int) -> list[Value]:
        found = self._rows(f"select {quoted(column)} from {quoted(table)} limit {rows}")
        return [plain_value(value) for (value,) in found if value is not None]

    def _rows(self, query: str) -> list[Any]:
        return self.connection.execute(query).fetchall()


_COLUMNS = """
    select table_name, column_name, data_type from information_schema.columns
    where table_schema = current_schema() order by table_name, ordinal_position"""
_DUCKDB_KEYS = """
    select table_name, constraint_column_names, referenced_table, referenced_column_names from duckdb_constraints()
    where constraint_type in ('PRIMARY KEY', 'FOREIGN KEY') and schema_name = current_schema()
    order by table_name, constraint_index"""
_POSTGRES_KEYS = """
    select t.relname,
           array(select a.attname::text from unnest(k.conkey) with ordinality as u(number, place)
                 join pg_attribute as a on a.attrelid = k.conrelid and a.attnum = u.number order by u.place),
           p.relname,
           array(select a.attname::text from unnest(k.confkey) with ordinality as u(number, place)
                 join pg_attribute as a on a.attrelid = k.confrelid and a.attnum = u.number order by u.place)
    from pg_constraint as k join pg_class as t on t.oid = k.conrelid left join pg_class as p on p.oid = k.confrelid
    where k.contype in ('p', 'f') and t.relnamespace = current_schema()::regnamespace
    order by t.relname, k.oid"""


def _driver(dialect: Dialect) -> tuple[Callable[[Database], Any], type[Exception]]:
    """How to connect, only to read, and the error that everything about the connection raises."""
    if dialect == "duckdb":
        import duckdb

        # The file may come from anywhere: nothing in it, a view for one, shall reach other files.
        settings: dict[str, Any] = {"enable_external_access": "false", "lock_configuration": "true", "threads": "1"}
        return lambda database: duckdb.connect(path_of(database), read_only=True, config=settings), duckdb.Error
    import psycopg

    options = "-c default_transaction_read_only=on -c DateStyle=ISO"
    return (
        lambda database: psycopg.connect(str(database), options=options, connect_timeout=CONNECT_SECONDS),
        psycopg.Error,
    )


def _remedy(error: sqlite3.Error) -> str:
    if "locked" in str(error):
        return "close the program that is writing to it and run the same command again"
    if isinstance(error, sqlite3.OperationalError):
        return "check that the file and its folder may be read"
    return "replace the file by a whole SQLite database"
