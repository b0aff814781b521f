"""Results that do not depend on the order in which rows happen to be stored.

Small databases with ties in them are full of queries whose answer is a matter of luck: the first of two equals. Nobody
should be judged by such an answer.

Guarantees: what is returned came out the same on a copy of the database whose rows lie in another order. Does not
guarantee that yet another order would not tell.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from rstar_trl.data.copies import shuffled_copy
from rstar_trl.data.question import GoldResult
from rstar_trl.sql.compare import orders_rows, results_equal
from rstar_trl.sql.execution import SqlJob
from rstar_trl.sql.sandbox import Sandbox


def stable_results(
    queries: Sequence[str], database: Path, sandbox: Sandbox, dialect: str = "sqlite"
) -> dict[str, GoldResult]:
    """The results of those queries that run, and give the same rows on a shuffled copy of the database.

    A result is `ordered` where the query orders its rows and their order was the same, too: no ties.
    """
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "shuffled.sqlite"
        shuffled_copy(database, copy, seed=0)
        here, there = (sandbox.run([SqlJob(str(path), sql) for sql in queries]) for path in (database, copy))
    found = {}
    for sql, execution, again in zip(queries, here, there, strict=True):
        if execution.verdict != "ok" or again.verdict != "ok" or execution.unstable:
            continue
        rows, others = execution.rows or (), again.rows or ()
        if results_equal(others, rows, ordered=False):
            ordered = orders_rows(sql, dialect) and results_equal(others, rows, ordered=True)
            found[sql] = GoldResult(rows, ordered)
    return found
