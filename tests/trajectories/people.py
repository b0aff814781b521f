"""A table of people whose names, cities and ages a query can be wrong about."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

FIRST = ("Ann", "Bob", "Joe", "Jan", "Kim", "Lee", "Max", "Sue")
LAST = ("O'Neil", "Smith", "Jones", "Adams")


def make_people(path: Path) -> None:
    """Writes the database: one person for each first and last name."""
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE person (id INTEGER PRIMARY KEY, name TEXT, city TEXT, age INTEGER)")
        names = [f"{first} {last}" for first in FIRST for last in LAST]
        cities = ("Paris", "Rome", "New York", "Oslo")
        connection.executemany(
            "INSERT INTO person (name, city, age) VALUES (?, ?, ?)",
            [(name, cities[i % 4], 18 + 2 * i) for i, name in enumerate(names)],
        )
