"""Builds the embedded demo corpus: ten SQLite databases and 4,400 questions, from a seed and nothing else.

Guarantees: the same seed gives the same questions, split and database content; building again over a finished folder
rewrites nothing; a database is put in place in one move, so that processes building at once do not see a half of one.
"""

from __future__ import annotations

import dataclasses
import os
import sqlite3
import tempfile
from collections.abc import Collection, Sequence
from contextlib import closing
from pathlib import Path

from rstar_trl.data.demo.catalog import DOMAINS
from rstar_trl.data.demo.domains import Content, Domain, ddl, make_content
from rstar_trl.data.demo.questions import make_questions
from rstar_trl.data.question import Corpus, Question
from rstar_trl.errors import DataError, StorageError
from rstar_trl.io import digest

TRAIN, EVAL = 4000, 400


def build_demo(
    folder: Path, seed: int = 0, only: Sequence[str] | None = None, hardness: Collection[str] | None = None
) -> Corpus:
    """The demo corpus for `seed`, with its databases under `folder`/databases.

    `only` names the databases all questions are about and `hardness` the grades of the templates they are drawn from;
    None stands for all, and the number of questions stays. Raises `DataError` for a name that is none of theirs, and
    `StorageError`.
    """
    unknown = sorted(set(only or ()) - {domain.name for domain in DOMAINS})
    if unknown:
        known = ", ".join(domain.name for domain in DOMAINS)
        raise DataError(f"the demo has no database {', '.join(unknown)}; it has {known}.")
    parts: dict[str, tuple[Domain, Content, sqlite3.Connection]] = {}
    databases: dict[str, Path] = {}
    try:
        for domain in DOMAINS:
            if only is not None and domain.name not in only:
                continue
            content = make_content(domain, seed)
            connection = _in_memory(domain, content)
            parts[domain.name] = (domain, content, connection)
            databases[domain.name] = _place(connection, folder / "databases" / f"{domain.name}.sqlite")
        questions = make_questions(parts, TRAIN + EVAL, seed, hardness)
    finally:
        for _, _, connection in parts.values():
            connection.close()
    return Corpus("demo", _numbered("train", questions[EVAL:]), _numbered("eval", questions[:EVAL]), databases)


def _numbered(split: str, questions: list[Question]) -> tuple[Question, ...]:
    return tuple(dataclasses.replace(question, id=f"demo-{split}-{i}") for i, question in enumerate(questions))


def _in_memory(domain: Domain, content: Content) -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:")
    for table in domain.tables:
        connection.execute(ddl(table))
        rows = [tuple(row.values()) for row in content[table.name]]
        connection.executemany(f"insert into {table.name} values ({', '.join('?' * len(rows[0]))})", rows)
    connection.execute(f"pragma user_version = {_fingerprint(domain, content)}")
    connection.commit()
    return connection


def _fingerprint(domain: Domain, content: Content) -> int:
    """31 bits of the content, kept in the file as `user_version`: tells a database of another seed from ours."""
    return int(digest([[ddl(table) for table in domain.tables], content])[:7], 16)


def _place(connection: sqlite3.Connection, path: Path) -> Path:
    (wanted,) = connection.execute("pragma user_version").fetchone()
    if _version(path) == wanted:
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        with closing(sqlite3.connect(temporary)) as target:
            connection.backup(target)
        os.replace(temporary, path)
    except (OSError, sqlite3.Error) as error:
        raise StorageError(
            f"the demo database {path} could not be written ({error}); free space or fix the permissions and run the "
            "same command again."
        ) from error
    return path


def _version(path: Path) -> int | None:
    """The `user_version` of a database file; None when there is none that can be read."""
    if not path.exists():
        return None
    try:
        with closing(sqlite3.connect(path)) as connection:
            return int(connection.execute("pragma user_version").fetchone()[0])
    except sqlite3.Error:
        return None
