"""The scores of `rstar_trl.evaluation.official` as the tables that the official evaluators print, for people to read.

Layout and row names are theirs, so that two outputs can be laid side by side; what was not scored follows below.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rstar_trl.evaluation.prediction_files import DIFFICULTIES
from rstar_trl.evaluation.spider_match import COMPONENTS

MAX_PROBLEMS = 20
"""Problems that are printed one by one; the JSON has them all."""


def render(scores: dict[str, Any]) -> str:
    """The tables of one scored file, and then what was not scored and why."""
    lines = _spider(scores["levels"]) if scores["format"] == "spider" else _bird(scores["levels"])
    return "\n".join([*lines, "", *_not_scored(scores)])


def _spider(levels: dict[str, Any]) -> Iterator[str]:
    yield _row("", list(levels))
    yield _row("count", [str(level["count"]) for level in levels.values()])
    if "execution" in levels["all"]:
        yield "=====================   EXECUTION ACCURACY     ====================="
        yield _row("execution", [f"{level['execution']:.3f}" for level in levels.values()])
        yield _row("valid SQL", [f"{level['valid_sql']:.3f}" for level in levels.values()])
    if "exact_match" in levels["all"]:
        yield ""
        yield "====================== EXACT MATCHING ACCURACY ====================="
        yield _row("exact match", [f"{level['exact_match']:.3f}" for level in levels.values()])
        for title, key in (
            ("---------------------PARTIAL MATCHING ACCURACY----------------------", "accuracy"),
            ("---------------------- PARTIAL MATCHING RECALL ----------------------", "recall"),
            ("---------------------- PARTIAL MATCHING F1 --------------------------", "f1"),
        ):
            yield ""
            yield title
            for name in COMPONENTS:
                yield _row(name, [f"{level['partial'][name][key]:.3f}" for level in levels.values()])


def _bird(levels: dict[str, Any]) -> Iterator[str]:
    names = (*DIFFICULTIES, "total")
    yield _row("", names)
    yield _row("count", [str(levels[name]["count"]) for name in names])
    rows = (("EX", "ex"), ("VES", "ves"), ("R-VES", "r_ves"), ("Soft-F1", "soft_f1"), ("valid SQL", "valid_sql"))
    for title, key in rows:
        if key in levels["total"]:
            yield f"======================================    {title}    ====================================="
            yield _row(title, [f"{levels[name][key]:.2f}" for name in names])


def _not_scored(scores: dict[str, Any]) -> Iterator[str]:
    modes = ", ".join(f"{name}: {mode}" for name, mode in scores["modes"].items())
    yield f"modes: {modes}"
    yield (
        f"{scores['scored']} scored, {scores['not_scored']} not scored, "
        f"{scores['missing_predictions']} without a prediction (counted as wrong)"
    )
    yield from scores["problems"][:MAX_PROBLEMS]
    hidden = len(scores["problems"]) - MAX_PROBLEMS
    if hidden > 0:
        yield f"... and {hidden} more problems"


def _row(name: str, cells: Sequence[str]) -> str:
    return " ".join(f"{cell:20}" for cell in (name, *cells)).rstrip()
