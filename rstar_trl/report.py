"""A run as one HTML page: its rounds, curves, time, quarantine and some of its trees.

Guarantees: the page needs no other file and no network, and runs no script; whatever a model, a question or a database
wrote is shown as text. It is made from what is on disk, so a run under way can be looked at too. Does not measure
anything: every number is a manifest's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from rstar_trl.config import Recipe
from rstar_trl.errors import RunError
from rstar_trl.evolution import manifest
from rstar_trl.evolution.ask import render_tree
from rstar_trl.evolution.plan import Stage, plan
from rstar_trl.evolution.recipe import load_recipe
from rstar_trl.evolution.table import METHODS, NOTE, cells, report_rows
from rstar_trl.io import read_jsonl, write_text
from rstar_trl.progress import duration
from rstar_trl.search.tree import Tree

EXAMPLES = 3
"""Trees shown of each kind: solved and not solved."""
LISTED = 50
"""Quarantined questions that are listed one by one."""
COLOURS = ("#1f6f8b", "#c2571a", "#5b8c2a", "#7a4fa3", "#444444")
STYLE = """\
body { font: 15px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; } th, td { padding: .2rem .7rem; text-align: right; }
th { border-bottom: 1px solid #888; } td:first-child, th:first-child { text-align: left; }
pre { overflow-x: auto; background: #f5f5f5; padding: .7rem; font-size: 12px; line-height: 1.35; }
svg { max-width: 100%; } .note { color: #555; white-space: pre-line; }
"""


def write_report(run: Path, out: Path) -> None:
    """Writes the page; raises `RunError` for a folder that is no run."""
    if not (run / "recipe.yaml").exists():
        raise RunError(f"{run} is no run folder (it has no recipe.yaml); give the `output_dir` of a recipe.")
    write_text(out, page(run))


def page(run: Path) -> str:
    """The HTML of a run folder."""
    recipe = load_recipe(run / "recipe.yaml", [f"output_dir={run}"]).recipe
    stages = plan(recipe)
    rows = report_rows(stages)
    parts = [
        f"<h1>{escape(recipe.name)}</h1>",
        f"<p>{escape(_what(recipe))}</p>",
        "<h2>Rounds</h2>",
        _table(cells(rows)) + f'<p class="note">{escape(NOTE)}</p>' if rows else "<p>No round is evaluated yet.</p>",
        *_curves(rows),
        "<h2>Time</h2>",
        _times(stages),
        *_quarantine(run),
        *_trees(run, len(recipe.rounds)),
    ]
    title = escape(f"rstar-trl: {recipe.name}")
    head = f'<meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n' + "\n".join(parts) + "\n</body></html>\n"


def chart(title: str, series: dict[str, list[tuple[int, float]]]) -> str:
    """An SVG line chart of percentages (0 to 100) over round numbers; series are named in a legend."""
    width, height, left, top = 560, 260, 40, 30
    rounds = [x for points in series.values() for x, _ in points]
    last = max(1, *rounds) if rounds else 1

    def at(x: float, y: float) -> str:
        return f"{left + (width - 180 - left) * x / last:.1f},{top + (height - 60) * (1 - y / 100):.1f}"

    lines = [f'<text x="{left}" y="16" font-weight="bold">{escape(title)}</text>']
    for level in (0, 25, 50, 75, 100):
        a, b = at(0, level).split(","), at(last, level).split(",")
        lines.append(f'<line x1="{a[0]}" y1="{a[1]}" x2="{b[0]}" y2="{b[1]}" stroke="#ddd"/>')
        lines.append(f'<text x="{left - 6}" y="{a[1]}" text-anchor="end" dy="4">{level}</text>')
    for number in range(last + 1):
        x, y = at(number, 0).split(",")
        lines.append(f'<text x="{x}" y="{y}" text-anchor="middle" dy="18">{number}</text>')
    for place, (name, points) in enumerate(series.items()):
        colour = COLOURS[place % len(COLOURS)]
        lines.append(
            f'<polyline points="{" ".join(at(*point) for point in points)}" fill="none" stroke="{colour}" '
            'stroke-width="2"/>'
        )
        for point in points:
            x, y = at(*point).split(",")
            lines.append(f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>')
        y_name = top + 10 + 20 * place
        lines.append(f'<text x="{width - 165}" y="{y_name}" fill="{colour}">{escape(name)}</text>')
    body = "".join(lines)
    return f'<svg viewBox="0 0 {width} {height}" width="{width}" font-size="12" role="img">{body}</svg>'


def _what(recipe: Recipe) -> str:
    scratch = recipe.model.from_scratch
    base = f"{scratch['architecture']} from random weights" if scratch else str(recipe.model.name_or_path)
    return f"Base model: {base}. Questions: {recipe.data.source}. Seed: {recipe.seed}."


def _table(lines: Sequence[Sequence[str]]) -> str:
    head, *body = (
        "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in line)
        for tag, line in zip(["th", *["td"] * (len(lines) - 1)], lines, strict=True)
    )
    return "<table><tr>" + "</tr><tr>".join([head, *body]) + "</tr></table>"


def _curves(rows: list[dict[str, Any]]) -> list[str]:
    accuracy = {
        label: [
            (row["round"], 100 * row["methods"][name]["execution_accuracy"]) for row in rows if name in row["methods"]
        ]
        for name, label in METHODS.items()
    }
    solved = [
        (row["round"], 100 * row["solved"] / row["train_questions"]) for row in rows if row["solved"] is not None
    ]
    charts = []
    if shown := {label: points for label, points in accuracy.items() if points}:
        charts.append(chart("Execution accuracy by round, percent", shown))
    if solved:
        charts.append(chart("Training questions solved so far, percent", {"by search": solved}))
    return charts


def _times(stages: Iterable[Stage]) -> str:
    done = [(stage.name, made) for stage in stages if (made := manifest.read(stage.folder)) is not None]
    lines = [[name, duration(made.seconds), str(made.metrics.get("num_processes", 1))] for name, made in done]
    return _table([["stage", "time", "processes"], *lines])


def _quarantine(run: Path) -> list[str]:
    rows, _ = read_jsonl(run / "data/quarantine.jsonl")
    if not rows:
        return []
    lines = [[str(row["question_id"]), str(row["split"]), str(row["reason"])] for row in rows[:LISTED]]
    more = f"<p>... and {len(rows) - LISTED} more in data/quarantine.jsonl</p>" if len(rows) > LISTED else ""
    return [f"<h2>Quarantine: {len(rows)} questions</h2>", _table([["question", "split", "reason"], *lines]) + more]


def _trees(run: Path, rounds: int) -> list[str]:
    """The first few solved and unsolved questions of the newest round that was searched, by question id."""
    for number in range(rounds, -1, -1):
        files = sorted((run / f"round-{number}/search").glob("trees-*.jsonl"))
        rows = sorted((row for path in files for row in read_jsonl(path)[0]), key=lambda row: str(row["question_id"]))
        if rows:
            break
    else:
        return []
    solved = [row for row in rows if 1.0 in row["reward"]]
    others = [row for row in rows if 1.0 not in row["reward"]]
    return [
        f"<h2>Trees of round {number}</h2>",
        "<p>One node a line: visits, mean value, the clause. * leads to the answer, x is a dead end.</p>",
        *(_tree(row, "solved") for row in solved[:EXAMPLES]),
        *(_tree(row, "not solved") for row in others[:EXAMPLES]),
    ]


def _tree(row: dict[str, Any], how: str) -> str:
    tree = Tree.from_record(row)
    asked = tree.prompt.strip().splitlines()[-1] if tree.prompt.strip() else tree.question_id
    title = escape(f"{tree.question_id} ({how}): {asked}")
    return f"<details><summary>{title}</summary><pre>{escape(render_tree(tree))}</pre></details>"
