"""The official scores of whole prediction files, by hardness (Spider) or difficulty (BIRD), as one JSON-able object.

Guarantees: every number is of the official definition and names its mode; what could not be scored is in `problems`
with its place, and in the counts `not_scored` (gold queries left out of every number) and `missing_predictions` (wrong
in every number). Does not guarantee SParC's and CoSQL's turn-by-turn and joint accuracies.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rstar_trl.data.schema import column_names
from rstar_trl.errors import DataError, SqlError
from rstar_trl.evaluation.bird import bird_scores, r_ves, ves
from rstar_trl.evaluation.prediction_files import DIFFICULTIES, Loaded, Pair
from rstar_trl.evaluation.spider_match import COMPONENTS, Match, foreign_keys, hardness, match
from rstar_trl.evaluation.spider_sql import EMPTY, read_query
from rstar_trl.evaluation.test_suite import Outcome, database_files, execution_outcomes
from rstar_trl.io import read_json
from rstar_trl.sql.sandbox import Sandbox

LEVELS = ("easy", "medium", "hard", "extra")
ALL_LEVELS = (*LEVELS, "all")
Wanted = Literal["all", "exec", "match"]


@dataclass(frozen=True)
class SpiderScore:
    """One question: its grade, and its scores where they were wanted."""

    hardness: str
    match: Match | None = None
    outcome: Outcome | None = None


class SpiderSchemas:
    """Column names of the databases in a folder, and what `tables.json` says of their foreign keys."""

    def __init__(self, folder: Path, tables: Path) -> None:
        self.folder = folder
        self.tables = tables
        self.entries = _entries(tables)
        self._known: dict[str, tuple[dict[str, tuple[str, ...]], tuple[str, ...], dict[str, str]]] = {}

    def __getitem__(self, db_id: str) -> tuple[dict[str, tuple[str, ...]], tuple[str, ...], dict[str, str]]:
        """Columns by table, all columns by their full name, and the column that each counts as.

        Raises `DataError` for a database that has no file or no entry.
        """
        if db_id not in self._known:
            if db_id not in self.entries:
                raise DataError(f"{self.tables} has no entry for {db_id}; give the tables.json of this data set.")
            names = column_names(self.folder / db_id / f"{db_id}.sqlite")
            schema = {table.lower(): tuple(map(str.lower, columns)) for table, columns in names.items()}
            columns = tuple(f"__{table}.{column}__" for table, found in schema.items() for column in found)
            self._known[db_id] = (schema, columns, foreign_keys(self.entries[db_id]))
        return self._known[db_id]


def _entries(path: Path) -> dict[str, dict[str, Any]]:
    rows = read_json(path)
    needed = ("db_id", "table_names_original", "column_names_original", "foreign_keys")
    rows = rows if isinstance(rows, list) else [rows]
    if not all(isinstance(row, dict) and all(key in row for key in needed) for row in rows):
        raise DataError(f"{path} is no list of schemas with {', '.join(needed)}; give Spider's own tables.json.")
    return {row["db_id"]: row for row in rows}


def exact_set_match(predicted: str, gold: str, db_id: str, schemas: SpiderSchemas) -> tuple[str, Match]:
    """Hardness of the gold query, and how the prediction matches it; raises `SqlError` if gold cannot be read."""
    schema, columns, keys = schemas[db_id]
    ours = read_query(gold, schema)
    try:
        # The official evaluator reads a masked value as a number.
        theirs = read_query(predicted.replace(" value ", " 1 "), schema)
    except SqlError:
        theirs = EMPTY
    return hardness(ours), match(theirs, ours, columns, keys)


def score_spider(
    loaded: Loaded,
    databases: Path,
    tables: Path,
    sandbox: Sandbox,
    wanted: Wanted = "all",
    plug_value: bool = False,
    keep_distinct: bool = False,
) -> dict[str, Any]:
    """Exact set match with its components, and test-suite execution accuracy, by hardness."""
    require_databases(databases)
    schemas = SpiderSchemas(databases, tables)
    problems = list(loaded.problems)
    graded: list[tuple[Pair, str, Match, list[Path]]] = []
    for pair in loaded.pairs:
        try:
            files = database_files(databases, pair.db_id)
            grade, matched = exact_set_match(pair.predicted, pair.gold, pair.db_id, schemas)
        except (DataError, SqlError) as error:
            problems.append(f"{pair.place}: {error} Not scored.")
            continue
        graded.append((pair, grade, matched, files))
    scores = [SpiderScore(grade, matched if wanted != "exec" else None) for _, grade, matched, _ in graded]
    if wanted != "match":
        queries = [(pair.predicted.replace(" value ", " 1 "), pair.gold, files) for pair, _, _, files in graded]
        outcomes = execution_outcomes(queries, sandbox, plug_value, keep_distinct)
        scores = [SpiderScore(s.hardness, s.match, outcome) for s, outcome in zip(scores, outcomes, strict=True)]
        for pair, outcome in zip((pair for pair, *_ in graded), outcomes, strict=True):
            if outcome.problem:
                problems.append(f"{pair.place}: {outcome.problem} Not scored.")
            if outcome.note:
                problems.append(f"{pair.place}: {outcome.note} Counted as wrong.")
        scores = [score for score in scores if score.outcome and not score.outcome.problem]
    levels = {level: _spider_level([s for s in scores if level in (s.hardness, "all")]) for level in ALL_LEVELS}
    left_out = len(loaded.pairs) - len(scores)
    return {
        "format": "spider",
        "modes": {"execution": "spider_ts", "exact_match": "exact set match"},
        "plug_value": plug_value,
        "keep_distinct": keep_distinct,
        "levels": levels,
        "scored": len(scores),
        "not_scored": loaded.not_scored + left_out,
        "missing_predictions": loaded.missing,
        "problems": problems,
    }


def score_bird(loaded: Loaded, databases: Path, sandbox: Sandbox, iterations: int = 0) -> dict[str, Any]:
    """EX, Soft-F1 and valid-SQL rate, and with `iterations` VES and R-VES, by difficulty, in percent."""
    require_databases(databases)
    problems = list(loaded.problems)
    found: list[tuple[Pair, str]] = []
    for pair in loaded.pairs:
        path = databases / pair.db_id / f"{pair.db_id}.sqlite"
        if path.is_file():
            found.append((pair, str(path)))
        else:
            problems.append(f"{pair.place}: there is no database {pair.db_id} ({path} does not exist). Not scored.")
    scores = bird_scores([(pair.predicted, pair.gold, path) for pair, path in found], sandbox, iterations)
    scored = [(pair.difficulty, score) for (pair, _), score in zip(found, scores, strict=True) if not score.problem]
    problems += [
        f"{pair.place}: {score.problem} Not scored."
        for (pair, _), score in zip(found, scores, strict=True)
        if score.problem
    ]
    levels = {}
    for level in (*DIFFICULTIES, "total"):
        mine = [score for difficulty, score in scored if level in (difficulty, "total")]
        levels[level] = {
            "count": len(mine),
            "ex": _percent([score.ex or 0.0 for score in mine]),
            "soft_f1": _percent([score.soft_f1 or 0.0 for score in mine]),
            "valid_sql": _percent([float(score.valid or 0) for score in mine]),
        }
        if iterations:
            ratios = [score.ratio or 0.0 for score in mine]
            levels[level] |= {"ves": ves(ratios), "r_ves": r_ves(ratios)}
    return {
        "format": "bird",
        "modes": {"ex": "bird_set", "ves": "bird_set", "r_ves": "bird_set", "soft_f1": "Soft-F1"},
        "iterations": iterations,
        "levels": levels,
        "scored": len(scored),
        "not_scored": loaded.not_scored + len(loaded.pairs) - len(scored),
        "missing_predictions": loaded.missing,
        "problems": problems,
    }


def require_databases(folder: Path) -> None:
    """Raises `DataError` for a folder in which no database lies where the formats expect it."""
    if not folder.is_dir():
        raise DataError(f"the folder of databases {folder} does not exist; check the path.")
    if not any(folder.glob("*/*.sqlite*")):
        raise DataError(f"{folder} holds no database: expected <name>/<name>.sqlite under it; check the path.")


def _spider_level(scores: Sequence[SpiderScore]) -> dict[str, Any]:
    level: dict[str, Any] = {"count": len(scores)}
    matches = [score.match for score in scores if score.match is not None]
    outcomes = [score.outcome for score in scores if score.outcome is not None]
    if outcomes or not matches:
        level["execution"] = _mean([bool(outcome.right) for outcome in outcomes])
        level["valid_sql"] = _mean([bool(outcome.valid) for outcome in outcomes])
    if matches or not outcomes:
        level["exact_match"] = _mean([found.exact for found in matches])
        level["partial"] = {name: _partial(matches, name) for name in COMPONENTS}
    return level


def _partial(matches: Sequence[Match], name: str) -> Mapping[str, float]:
    """Accuracy over the predictions that have the component, recall over the gold queries that have it.

    F1 is that of these two, and 1 where both are 0, as in the official tables.
    """
    found = [each.components[name] for each in matches]
    accuracy = _mean([each.matched for each in found if each.predicted])
    recall = _mean([each.matched for each in found if each.gold])
    total = accuracy + recall
    f1 = 2 * accuracy * recall / total if total else float(bool(found))
    return {"accuracy": accuracy, "recall": recall, "f1": f1}


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0


def _percent(values: Sequence[float]) -> float:
    return 100 * _mean(values)
