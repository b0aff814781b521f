"""`rstar-trl metrics`: official files in, official tables and JSON out."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from rstar_trl.config import SandboxConfig
from rstar_trl.errors import ConfigError
from rstar_trl.evaluation.official import Wanted, score_bird, score_spider
from rstar_trl.evaluation.official_tables import render
from rstar_trl.evaluation.prediction_files import load_bird, load_spider
from rstar_trl.io import write_json
from rstar_trl.sql.sandbox import Sandbox


def evaluation_sandbox(timeout: float, workers: int) -> SandboxConfig:
    """Limits wide enough that no honest result of a benchmark meets them: a result cut off could not be compared."""
    return SandboxConfig(
        workers=workers, timeout=timeout, max_rows=1_000_000, max_bytes=256_000_000, memory_mb=3 * 1024
    )


def metrics(
    gold: Path,
    predictions: Path,
    databases: Path,
    layout: Literal["spider", "bird"],
    *,
    tables: Path | None,
    wanted: Wanted,
    plug_value: bool,
    keep_distinct: bool,
    difficulties: Path | None,
    iterations: int,
    timeout: float,
    workers: int,
    out: Path | None,
) -> str:
    """Scores a file of predictions; returns the tables and writes the JSON to `out`."""
    with Sandbox(evaluation_sandbox(timeout, workers)) as sandbox:
        if layout == "bird":
            scores = score_bird(load_bird(gold, predictions, difficulties), databases, sandbox, iterations)
        else:
            tables = tables or databases.parent / "tables.json"
            if not tables.is_file():
                raise ConfigError(f"{tables} does not exist; give Spider's tables.json with --tables.")
            scores = score_spider(
                load_spider(gold, predictions), databases, tables, sandbox, wanted, plug_value, keep_distinct
            )
    if out is not None:
        write_json(out, scores)
    return render(scores)
