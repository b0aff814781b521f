"""Test-suite execution accuracy (mode `spider_ts`): a prediction is right when it gives the gold result on every
database file of the schema's folder. One file is plain execution accuracy.

Guarantees: the definition of the official evaluator (see `rstar_trl.sql.official` for how results are compared), run
in the sandbox, so that every query ends in time; a gold query that fails is the data's error, told apart from a wrong
prediction. Under `plug_value` every filling is tried; beyond `MAX_FILLINGS` a question keeps a note that some were not
(Spider's own gold queries need at most 256).

Source: Zhong et al. 2020 (arXiv 2010.02840) and the evaluator published with it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice, product
from pathlib import Path

from rstar_trl.errors import DataError
from rstar_trl.sql.execution import Execution, SqlJob
from rstar_trl.sql.official import in_2020, spider_ts_equal, spider_ts_ordered, spider_ts_text, without_undecodable
from rstar_trl.sql.sandbox import Sandbox

MAX_FILLINGS = 100_000
# To the official evaluator a name of one letter and digits is a number too, but for the t of its usual aliases.
_VALUE = re.compile(
    r"""'[^']*'|"[^"]*"|(?<![\w.])[-+]?(?:\d*\.)?\d+(?![\w.])|(?<![\w`])[a-su-z_]\d+(?![\w`])""", re.IGNORECASE
)
# Small, because a chunk's results are all held at once.
CHUNK = 64


@dataclass(frozen=True)
class Outcome:
    """`right` and `valid` (the prediction runs everywhere) are None where `problem` says why nothing was scored.

    `note` says what a score of False does not rest on.
    """

    right: bool | None
    valid: bool | None
    problem: str = ""
    note: str = ""


def database_files(folder: Path, db_id: str) -> list[Path]:
    """The files of a schema's test suite: all in `folder/db_id` with `.sqlite` in their name.

    Raises `DataError` when there are none.
    """
    place = folder / db_id
    found = sorted(path for path in place.glob("*.sqlite*") if path.is_file()) if place.is_dir() else []
    # What SQLite itself leaves beside a database is none.
    found = [path for path in found if not path.name.endswith(("-wal", "-shm", "-journal"))]
    if not found:
        raise DataError(f"there is no database {db_id}: {place} holds no .sqlite file; check the folder and the name.")
    return found


def execution_outcomes(
    pairs: Sequence[tuple[str, str, Sequence[Path]]],
    sandbox: Sandbox,
    plug_value: bool = False,
    keep_distinct: bool = False,
) -> list[Outcome]:
    """One outcome per (prediction, gold query, database files), in order."""
    outcomes: list[Outcome] = []
    for start in range(0, len(pairs), CHUNK):
        outcomes += _chunk(pairs[start : start + CHUNK], sandbox, plug_value, keep_distinct)
    return outcomes


def fillings(predicted: str, gold: str) -> tuple[int, Iterator[str]]:
    """How many ways there are to put values of the gold query where the prediction has values, and all of them.

    As in the official evaluator, semicolons are gone from what is filled in.
    """
    values = list(dict.fromkeys(found[0] for found in _VALUE.finditer(gold.replace(";", ""))))
    pieces = _VALUE.split(predicted.replace(";", ""))
    slots = len(pieces) - 1
    filled = (
        pieces[0] + "".join(value + piece for value, piece in zip(chosen, pieces[1:], strict=True))
        for chosen in product(values, repeat=slots)
    )
    return len(values) ** slots, filled


def _chunk(
    pairs: Sequence[tuple[str, str, Sequence[Path]]], sandbox: Sandbox, plug_value: bool, keep_distinct: bool
) -> list[Outcome]:
    queries = [(spider_ts_text(p, keep_distinct), spider_ts_text(g, keep_distinct)) for p, g, _ in pairs]
    jobs = [
        SqlJob(str(path), in_2020(sql))
        for (predicted, gold), (_, _, files) in zip(queries, pairs, strict=True)
        for sql in (gold, predicted)
        for path in files
    ]
    executions = iter(sandbox.run(jobs))
    outcomes = []
    for (predicted, gold), (_, _, files) in zip(queries, pairs, strict=True):
        ours, theirs = (list(islice(executions, len(files))) for _ in range(2))
        outcome = _judge(theirs, ours, files, spider_ts_ordered(gold))
        if plug_value and outcome.right is False:
            outcome = _any_filling(predicted, gold, files, ours, sandbox, outcome)
        outcomes.append(outcome)
    return outcomes


def _judge(theirs: list[Execution], ours: list[Execution], files: Sequence[Path], ordered: bool) -> Outcome:
    for path, execution in zip(files, ours, strict=True):
        if execution.verdict != "ok":
            return Outcome(None, None, f"the gold query fails on {path.name}: {execution.verdict}: {execution.error}")
    broken = next((each for each in theirs if each.verdict == "infra"), None)
    if broken is not None:
        return Outcome(None, None, f"the prediction could not be run: {broken.error}")
    valid = all(each.verdict in ("ok", "truncated") for each in theirs)
    right = all(_equal(a, b, ordered) for a, b in zip(theirs, ours, strict=True))
    return Outcome(right, valid)


def _equal(predicted: Execution, gold: Execution, ordered: bool) -> bool:
    theirs, ours = (without_undecodable(each.rows or ()) for each in (predicted, gold))
    return predicted.verdict == "ok" and spider_ts_equal(theirs, ours, ordered)


def _any_filling(
    predicted: str, gold: str, files: Sequence[Path], ours: list[Execution], sandbox: Sandbox, outcome: Outcome
) -> Outcome:
    """The outcome with `right` true if some filling gives the gold result on every file."""
    ordered = spider_ts_ordered(gold)
    count, filled = fillings(predicted, gold)
    tried = islice(filled, MAX_FILLINGS)
    while left := list(islice(tried, CHUNK)):
        # Most fillings are wrong on the first file already.
        for path, execution in zip(files, ours, strict=True):
            found = sandbox.run([SqlJob(str(path), in_2020(sql)) for sql in left])
            left = [sql for sql, each in zip(left, found, strict=True) if _equal(each, execution, ordered)]
            if not left:
                break
        else:
            return replace(outcome, right=True)
    note = f"{MAX_FILLINGS:,} of {count:,} ways to plug gold values in were tried." if count > MAX_FILLINGS else ""
    return replace(outcome, note=note)
