"""Which variants of a database are worth keeping: those that tell gold queries from their near-misses.

A query can give the right rows by accident. Of a pool of variants those are chosen, one after another, that tell apart
most of the near-misses which the original and the variants chosen before do not.

Guarantees: the same corpus, seed and sizes give the same variants; a gold query that fails, is cut off, or owes its
rows to ties is not judged there. Does not guarantee that two queries which agree everywhere are equivalent.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rstar_trl.data.question import Corpus, GoldResult, Value
from rstar_trl.data.schema import Schema, introspect
from rstar_trl.data.variants import make_variant
from rstar_trl.errors import DataError, SqlError
from rstar_trl.sql.compare import results_equal
from rstar_trl.sql.dialects import in_engine_dialect
from rstar_trl.sql.execution import Execution, SqlJob
from rstar_trl.sql.near_misses import Columns, constants, near_misses
from rstar_trl.sql.policy import nondeterminism
from rstar_trl.sql.sandbox import Sandbox
from rstar_trl.sql.stability import stable_results

POOL_PER_VARIANT = 4
MAX_POOL = 48
MAX_QUERIES = 300
"""Queries of one database whose near-misses choose among the pool; of more, a sample at even distances is taken."""


@dataclass(frozen=True)
class Chosen:
    """The variants of one database, and how many near-misses the original and each longer prefix of them tell apart.

    `told_apart[0]` is the original alone; `distinguishable` are the pairs (see `pairs_of`) that the original and the
    whole pool tell apart.
    """

    files: tuple[Path, ...]
    pairs: tuple[tuple[str, str], ...]
    distinguishable: frozenset[int]
    told_apart: tuple[int, ...]


def choose_all(corpus: Corpus, per_db: int, folder: Path, sandbox: Sandbox, seed: int) -> dict[str, Chosen]:
    """`per_db` variants of every database of a corpus, each database's in a folder of its own below `folder`.

    Raises `DataError` for databases that are no SQLite files: only those are copied.
    """
    if corpus.engine != "sqlite":
        raise DataError(
            f"variants are made of SQLite files, and the databases of {corpus.name} are {corpus.engine}; "
            "set `verify: database`."
        )
    corpus, unsayable = in_engine_dialect(corpus)
    questions = corpus.train + corpus.eval
    return {
        db_id: choose_variants(
            Path(path),
            [q.gold_sql for q in questions if q.db_id == db_id and q.gold_sql and q.id not in unsayable],
            per_db,
            folder / db_id,
            sandbox,
            seed,
            corpus.dialect,
        )
        for db_id, path in corpus.databases.items()
    }


def choose_variants(
    database: Path,
    queries: Iterable[str],
    count: int,
    folder: Path,
    sandbox: Sandbox,
    seed: int,
    dialect: str = "sqlite",
) -> Chosen:
    """Makes a pool of variants in `folder`, keeps `count` of them as `<stem>-1.sqlite` and so on, deletes the rest."""
    stable = [sql for sql in dict.fromkeys(queries) if _is_stable(sql, dialect)]
    pool = make_pool(database, stable, min(MAX_POOL, POOL_PER_VARIANT * count), folder / "pool", seed, dialect)
    pairs = pairs_of(stable[:: math.ceil(len(stable) / MAX_QUERIES) or 1], columns_of(introspect(database)), dialect)
    apart = tell_apart(pairs, [database, *pool], sandbox, dialect)
    original, candidates = apart[0], apart[1:]
    known, chosen, curve = set(original), list[int](), [len(original)]
    for _ in range(min(count, len(pool))):
        left = [index for index in range(len(pool)) if index not in chosen]
        best = max(left, key=lambda index: (len(candidates[index] - known), len(candidates[index]), -index))
        chosen.append(best)
        known |= candidates[best]
        curve.append(len(known))
    for old in folder.glob(f"{database.stem}-*.sqlite"):
        old.unlink()  # Of an earlier call for more of them.
    files = []
    for number, index in enumerate(chosen, 1):
        files.append(folder / f"{database.stem}-{number}.sqlite")
        pool[index].replace(files[-1])
    shutil.rmtree(folder / "pool")
    return Chosen(tuple(files), tuple(pairs), frozenset(original).union(*candidates), tuple(curve))


def make_pool(
    database: Path, queries: Sequence[str], size: int, folder: Path, seed: int, dialect: str = "sqlite"
) -> list[Path]:
    """`size` variants of a database, with the constants of the queries among their values."""
    values: dict[str, list[Value]] = {}
    for sql in queries:
        for column, value in constants(sql, dialect):
            values.setdefault(column, []).append(value)
    pool = [folder / f"{number}.sqlite" for number in range(size)]
    for number, path in enumerate(pool):
        make_variant(database, path, seed * 1_000 + number, values)
    return pool


def pairs_of(queries: Sequence[str], columns: Columns, dialect: str = "sqlite") -> list[tuple[str, str]]:
    """Every query with each of its near-misses that is as stable as itself."""
    return [
        (sql, each.sql)
        for sql in queries
        for each in near_misses(sql, columns, dialect)
        if _is_stable(each.sql, dialect)
    ]


def columns_of(schema: Schema) -> dict[str, dict[str, str]]:
    """Declared types as `near_misses` wants them."""
    return {table.name.lower(): {c.name.lower(): c.type for c in table.columns} for table in schema.tables}


def tell_apart(
    pairs: Sequence[tuple[str, str]], databases: Sequence[Path], sandbox: Sandbox, dialect: str = "sqlite"
) -> list[set[int]]:
    """For each database, the numbers of the pairs whose queries differ on it: other rows, or only the first runs.

    A first query whose rows there depend on the order in which rows are stored tells nothing apart.
    """
    golds = list(dict.fromkeys(gold for gold, _ in pairs))
    misses = list(dict.fromkeys(miss for _, miss in pairs))
    found = []
    for database in databases:
        results = stable_results(golds, database, sandbox, dialect)
        executions = dict(zip(misses, sandbox.run([SqlJob(str(database), sql) for sql in misses]), strict=True))
        found.append(
            {
                number
                for number, (gold, miss) in enumerate(pairs)
                if gold in results
                and executions[miss].verdict != "infra"
                and not agrees(executions[miss], results[gold])
            }
        )
    return found


def agrees(predicted: Execution, gold: GoldResult) -> bool:
    """Whether a prediction gives the gold rows (mode `bag_ordered`)."""
    return predicted.verdict == "ok" and results_equal(predicted.rows or (), gold.rows, gold.ordered)


def _is_stable(sql: str, dialect: str) -> bool:
    try:
        return nondeterminism(sql, dialect) is None
    except SqlError:
        return False
