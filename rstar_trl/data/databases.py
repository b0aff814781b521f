"""How a database is named: by a path (an SQLite file) or by a URL, and what the values in it become.

`sqlite:///data/shop.sqlite`, `duckdb:///data/shop.duckdb`, `postgresql://reader@localhost/shop`. What follows the two
slashes of the first two is the path, relative when it does not begin with a third. Needs nothing but the standard
library: sandbox workers start with it.
"""

from __future__ import annotations

import os
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from rstar_trl.errors import DataError

Database = Path | str
"""The path of an SQLite file, or the URL of any database."""
Dialect = Literal["sqlite", "duckdb", "postgres"]
"""The engine of a database, and sqlglot's name of what it speaks."""

_SCHEMES: dict[str, Dialect] = {"sqlite": "sqlite", "duckdb": "duckdb", "postgresql": "postgres"}


def dialect_of(database: Database) -> Dialect:
    """The engine that a database asks for."""
    scheme, slashes, _ = str(database).partition("://")
    return _SCHEMES.get(scheme, "sqlite") if slashes else "sqlite"


def path_of(database: Database) -> str:
    """The file that an SQLite or DuckDB database is."""
    scheme, slashes, path = str(database).partition("://")
    return path if slashes and scheme in _SCHEMES else str(database)


def absolute(database: Database, folder: str = "") -> str:
    """The same database, wherever the process that opens it stands; equal for equal files.

    Relative paths start at `folder`, or where this process stands. SQLite files lose their scheme.
    """
    dialect = dialect_of(database)
    if dialect == "postgres":
        return str(database)
    path = os.path.abspath(os.path.join(folder, path_of(database)))
    return path if dialect == "sqlite" else f"{dialect}://{path}"


def resolved(database: str, folder: Path) -> Database:
    """The database that a row of a data set in `folder` names, wherever it is used from.

    Raises `DataError` for a URL of an engine that is not known here.
    """
    scheme, slashes, _ = database.partition("://")
    if slashes and scheme not in _SCHEMES:
        raise DataError(f"{scheme}:// is no engine that can be used; the known ones are {', '.join(_SCHEMES)}.")
    dialect = dialect_of(database)
    if dialect == "postgres":
        return database
    path = folder / Path(path_of(database)).expanduser()
    return path if dialect == "sqlite" else f"{dialect}://{path.absolute()}"


def name_of(database: Database) -> str:
    """What a database is called where nobody has named it: its file's name, or its name on the server."""
    return Path(urlsplit(str(database)).path if dialect_of(database) == "postgres" else path_of(database)).stem


def is_there(database: Database) -> bool:
    """Whether the file exists; a database on a server is asked when it is used."""
    return dialect_of(database) == "postgres" or os.path.isfile(path_of(database))


def shown(database: Database) -> str:
    """The name for messages: the URL of a server without a password."""
    if dialect_of(database) != "postgres":
        return str(database)
    parts = urlsplit(str(database))
    return f"{parts.scheme}://{parts.username or ''}@{parts.hostname or ''}{parts.path}"


def plain_value(value: Any) -> Any:
    """The values that a result may hold are numbers, text, bytes and NULL; anything else is shown as text.

    A decimal is an integer where its type has no places after the point, else a float.
    """
    if value is None or isinstance(value, int | float | str | bytes):
        return value
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    if isinstance(value, Decimal):
        exponent = value.as_tuple().exponent
        return int(value) if isinstance(exponent, int) and exponent >= 0 else float(value)
    return str(value)
