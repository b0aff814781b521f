"""What the folders in `rstar_trl/evaluation/metrics` share: official scores of lists instead of files.

Each folder is a metric that `evaluate.load("rstar_trl/evaluation/metrics/<name>")` opens without network. Predictions
are SQL texts; references are objects with `sql` and `db_id`; `databases` is the folder with `<db_id>/<db_id>.sqlite`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rstar_trl.errors import DataError
from rstar_trl.evaluation.command import evaluation_sandbox
from rstar_trl.evaluation.official import Wanted, score_bird, score_spider
from rstar_trl.evaluation.prediction_files import Loaded, Pair
from rstar_trl.sql.sandbox import Sandbox

INPUTS = """Args:
    predictions: list of SQL texts.
    references: list of objects with `sql` (the gold query) and `db_id`.
    databases: folder that holds `<db_id>/<db_id>.sqlite`.
"""


def spider_scores(
    predictions: Sequence[str],
    references: Sequence[Mapping[str, str]],
    databases: str,
    tables: str | None = None,
    wanted: Wanted = "all",
    plug_value: bool = False,
    keep_distinct: bool = False,
    timeout: float = 30.0,
) -> dict[str, Any]:
    """`score_spider` of lists; `tables` is by default `tables.json` beside `databases`."""
    folder = Path(databases)
    with Sandbox(evaluation_sandbox(timeout, workers=1)) as sandbox:
        return score_spider(
            _loaded(predictions, references),
            folder,
            Path(tables) if tables else folder.parent / "tables.json",
            sandbox,
            wanted,
            plug_value,
            keep_distinct,
        )


def bird_totals(
    predictions: Sequence[str],
    references: Sequence[Mapping[str, str]],
    databases: str,
    iterations: int = 0,
    timeout: float = 30.0,
) -> dict[str, Any]:
    """The totals of `score_bird` of lists, in percent, with the count of what was not scored."""
    with Sandbox(evaluation_sandbox(timeout, workers=1)) as sandbox:
        scores = score_bird(_loaded(predictions, references), Path(databases), sandbox, iterations)
    return {**scores["levels"]["total"], "not_scored": scores["not_scored"], "problems": scores["problems"]}


def _loaded(predictions: Sequence[str], references: Sequence[Mapping[str, str]]) -> Loaded:
    if len(predictions) != len(references):
        raise DataError(f"there are {len(predictions)} predictions but {len(references)} references; pair them up.")
    pairs = [
        Pair(f"reference {index}", reference["db_id"], reference["sql"], predicted)
        for index, (predicted, reference) in enumerate(zip(predictions, references, strict=True))
    ]
    return Loaded(pairs, missing=sum(not predicted.strip() for predicted in predictions))
