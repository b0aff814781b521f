"""The table a run ends with: one row per round, from the stages' manifests alone."""

from __future__ import annotations

from typing import Any

from rstar_trl.evolution import manifest
from rstar_trl.evolution.plan import Stage

METHODS = {"greedy": "greedy", "majority": "majority-of-N", "best_of_n": "best-of-N", "mcts": "MCTS+PPM"}
COLUMNS = ("round", "solved by search", *METHODS.values(), "valid SQL", "tokens/question", "seconds/question")

NOTE = """\
Round 0 is the cold start. Accuracies: percent of evaluation questions whose result equals the gold one (bag_ordered).
Valid SQL is greedy's; tokens and seconds per question are those of MCTS, or of greedy where MCTS was not measured."""


def report_rows(stages: list[Stage]) -> list[dict[str, Any]]:
    """One record per round whose evaluation is finished.

    `solved` and `train_questions` count questions with a right query found in this round or an earlier one (None for
    a cold start that does not search); `methods` holds the evaluation's metrics by method.
    """
    done = {stage.name: manifest.read(stage.folder) for stage in stages}
    rows = []
    for number in sorted({stage.round for stage in stages}):
        evaluation, searched = done.get(f"round-{number}/eval"), done.get(f"round-{number}/search")
        if evaluation is None:
            continue
        found = searched.metrics if searched is not None else {}
        rows.append(
            {
                "round": number,
                "solved": found.get("solved_so_far"),
                "train_questions": found.get("train_questions"),
                "methods": {name: evaluation.metrics[name] for name in METHODS if name in evaluation.metrics},
            }
        )
    return rows


def cells(rows: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """The table's text by line and column, the names of the columns first."""
    return [COLUMNS, *(_cells(row) for row in rows)]


def render_table(rows: list[dict[str, Any]]) -> str:
    """Aligned text. Accuracies are execution accuracy in percent, mode `bag_ordered`; a dash is not measured.

    Valid SQL is greedy's; tokens and seconds per question are MCTS's where it was measured, else greedy's.
    """
    table = cells(rows)
    widths = [max(len(line[column]) for line in table) for column in range(len(COLUMNS))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in table]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join([*lines, NOTE, ""])


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    methods: dict[str, dict[str, Any]] = row["methods"]
    solved = "-" if row["solved"] is None else f"{row['solved']}/{row['train_questions']}"
    accuracies = [_percent(methods.get(name, {}).get("execution_accuracy")) for name in METHODS]
    dearest = "mcts" if "mcts" in methods else "greedy"
    costs = [
        f"{methods[dearest][key]:.{digits}f}" if key in methods.get(dearest, {}) else "-"
        for key, digits in (("tokens_per_question", 0), ("seconds_per_question", 2))
    ]
    return (str(row["round"]), solved, *accuracies, _percent(methods.get("greedy", {}).get("valid_sql")), *costs)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
