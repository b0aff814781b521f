"""All data sets of a round, from the trees of all rounds so far, as JSONL that `datasets.load_dataset("json")` reads.

Guarantees: every file is replaced whole or not at all; rows come in order of question id, whatever order the
trees' questions have; `sft`, `preference` and `stepwise` hold no row twice. A question may have several trees: its
best trajectories are chosen over all of them, its pairs are made within each.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from rstar_trl.config import TrajectoryConfig
from rstar_trl.io import write_jsonl
from rstar_trl.search.tree import Tree
from rstar_trl.trajectories import rows
from rstar_trl.trajectories.pairs import outcomes, step_pairs, trajectory_pairs
from rstar_trl.trajectories.rows import Row
from rstar_trl.trajectories.select import best_right, path_quality, right_trajectories, wrong_trajectories
from rstar_trl.trajectories.store import by_question
from rstar_trl.trajectories.values import ValueCopies

FILES = ("sft", "instruction", "step_by_step", "qa", "preference", "stepwise", "trees")
"""The stems of the files `write_datasets` writes."""


def write_datasets(
    trees: Sequence[Tree],
    folder: Path | str,
    config: TrajectoryConfig,
    extra_rows: Sequence[Row] = (),
    copies: ValueCopies | None = None,
    contrasts: Sequence[Row] = (),
) -> dict[str, int]:
    """Writes `sft.jsonl` and its siblings to `folder`; returns the rows in each file.

    Counted too: `extra` rows kept, `questions` searched, and how many were `solved`. `extra_rows`: prompt-completion
    rows with `question_id` (gold SQL taken apart); those equal to a selected trajectory are dropped, the others join
    `sft.jsonl`. `contrasts`: preference rows that join those of the trees. `copies` of the selected trajectories join
    `sft.jsonl` and `preference.jsonl`.
    """
    sets: dict[str, list[Row]] = {name: [] for name in FILES}
    groups = by_question(trees)
    solved = 0
    for group in groups.values():
        best = best_right(group, config.top_k)
        solved += bool(best)
        sets["sft"] += [sft_row(*item) for item in best]
        sets["instruction"] += [rows.instruction(*item) for item in best]
        sets["step_by_step"] += [rows.step_by_step(*item) for item in best]
        sets["qa"] += [rows.qa(*item) for item in best]
        sets["preference"] += preference_rows(group, config)
        sets["stepwise"] += _unique(row for tree in group for row in stepwise_rows(tree, config.top_k))
        sets["trees"] += [rows.tree_row(tree) for tree in group]
    sets["preference"] = _unique([*sets["preference"], *contrasts])
    if copies is not None:
        extra_rows = [*extra_rows, *copies.completions()]
        sets["preference"] += copies.preferences(sets["preference"])
    searched = {(row["prompt"], row["completion"]) for row in sets["sft"]}
    extra = _unique(row for row in extra_rows if (row["prompt"], row["completion"]) not in searched)
    sets["sft"] = sorted([*sets["sft"], *extra], key=lambda row: str(row.get("question_id", "")))
    for name, content in sets.items():
        write_jsonl(Path(folder) / f"{name}.jsonl", content)
    counts = {name: len(content) for name, content in sets.items()}
    return {**counts, "extra": len(extra), "questions": len(groups), "solved": solved}


def selected_rows(trees: Sequence[Tree], top_k: int) -> list[Row]:
    """The best right trajectories of every question, as `sft.jsonl` has them."""
    return [sft_row(*item) for group in by_question(trees).values() for item in best_right(group, top_k)]


def reprompted(trees: Sequence[Tree], top_k: int, prompts: Mapping[str, str]) -> list[Row]:
    """`selected_rows`, each after the prompt that `prompts` has for its question."""
    return [{**row, "prompt": prompts[row["question_id"]]} for row in selected_rows(trees, top_k)]


def sft_row(tree: Tree, leaf: int) -> Row:
    """A trajectory as a prompt-completion row with a `weight`, for trainings that weigh.

    It is the path's mean Q, moved from [-1, 1] to [0, 1]: a negative one would teach not to write what is right.
    """
    return {**rows.prompt_completion(tree, leaf), "weight": round((1 + path_quality(tree, leaf)[0]) / 2, 4)}


def preference_rows(trees: Sequence[Tree], config: TrajectoryConfig) -> list[Row]:
    """The preference rows of one question's trees; a pair found twice keeps its larger margin."""
    found: dict[tuple[object, ...], Row] = {}
    for tree in trees:
        for pair in [*step_pairs(tree, config.margin), *trajectory_pairs(tree)]:
            row = rows.preference(tree, pair)
            key = tuple(row[name] for name in ("prompt", "chosen", "rejected", "chosen_final", "rejected_final"))
            if key not in found or row["margin"] > found[key]["margin"]:
                found[key] = row
    kept = list(found.values())
    if config.max_pairs_per_question is not None:
        kept = sorted(kept, key=lambda row: -row["margin"])[: config.max_pairs_per_question]
    return kept


def stepwise_rows(tree: Tree, top_k: int) -> list[Row]:
    """The best right and the worst wrong trajectories of a tree, at most `top_k` of each, with a label per step."""
    leaves = [*right_trajectories(tree, top_k), *wrong_trajectories(tree, top_k)]
    known = outcomes(tree)
    return [rows.stepwise(tree, leaf, known) for leaf in leaves]


def _unique(items: Iterable[Row]) -> list[Row]:
    unique: list[Row] = []
    seen = set()
    for row in items:
        key = repr(sorted(row.items()))
        if key not in seen:
            seen.add(key)
            unique.append(row)
    return unique
