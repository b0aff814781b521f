"""The data of tree mode: preference pairs of a question as one packed trie, and the loss over all of them at once.

Guarantees: a question's pairs are computed from the tokens `pairs` mode would give the model, each once. Weights are
normalised over the data set so that a question's pairs weigh 1 on average, and a batch's loss is divided by its number
of questions: so losses average to the weighted mean over all pairs, however batches fall on processes. Pairs
that cannot be learned from are skipped and counted by reason; a data set of which nothing is left is an error.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch.nn.functional import logsigmoid

from rstar_trl.errors import DataError
from rstar_trl.policy.tokens import DELIMITER
from rstar_trl.training.packing import Layout, Piece, fill_rows, lay_out
from rstar_trl.training.sft_rows import normalised

Row = dict[str, Any]

UNKNOWN, FINAL = 0, -1
"""Depths that are none: of a pair whose rows do not say, and of two finished trajectories."""


@dataclass(frozen=True)
class Settings:
    """What of a trainer's config decides how pairs become tensors."""

    row_tokens: int
    weighted: bool
    use_margin: bool


def depth_of(row: Row) -> int:
    """Which step of the trajectory a pair judges: 1 is the first after the prompt."""
    if row.get("prompt_chars") is None:
        return UNKNOWN
    if row["chosen_final"] and row["rejected_final"]:
        return FINAL
    return int((row["prompt"][row["prompt_chars"] :] + row["chosen"]).count(DELIMITER)) + 1


def question_of(row: Row, number: int) -> str:
    """What pairs are grouped by: the question's id and its prompt (without the steps before the judged one)."""
    question, prompt, cut = row.get("question_id"), row.get("prompt"), row.get("prompt_chars")
    if prompt is not None and cut is not None:
        # Copies of a question with other values have its id, and prompts of their own.
        return repr((question, prompt[:cut]))
    return str(question or prompt or f"row {number}")


def unusable(row: Row, settings: Settings) -> str | None:
    """Why a pair (with `chosen_ids`, `rejected_ids`) cannot be learned from; None when it can."""
    if not row["chosen_ids"] or not row["rejected_ids"]:
        return "a step of no tokens"
    if max(len(row["chosen_ids"]), len(row["rejected_ids"])) > settings.row_tokens:
        return "too long"
    if row["chosen_ids"] == row["rejected_ids"]:
        return "both sides the same tokens"
    margin = row.get("margin")
    if settings.use_margin and (margin is None or not math.isfinite(margin)):
        return "no margin"
    return None


def pack_questions(rows: Any, settings: Settings, name: str) -> tuple[dict[str, list[Any]], Counter[str]]:
    """Encoded pairs as columns with one entry per question (see `TreeCollator`), and the skipped pairs by reason.

    `rows`: a list or a `datasets.Dataset`; it is read twice, to hold but one question's tokens as rows at a time.
    """
    groups: dict[str, list[int]] = {}
    weights: dict[int, float] = {}
    skipped: Counter[str] = Counter()
    for number, row in enumerate(rows):
        if reason := unusable(row, settings):
            skipped[reason] += 1
        else:
            groups.setdefault(question_of(row, number), []).append(number)
            weights[number] = _weight(row, settings.weighted)
    if not weights:
        reasons = ", ".join(f"{count} x {reason}" for reason, count in skipped.items()) or "there were none"
        raise DataError(f"no {name} pair is left to learn from ({reasons}); look at the rows and at `max_length`.")
    weights = dict(zip(weights, normalised(list(weights.values()), f"{name} pairs"), strict=True))
    scale = len(groups) / len(weights)
    packed = [_pack([rows[number] for number in numbers], settings) for numbers in groups.values()]
    continued = sum(len(set(item["parents"]) - {-1}) for item in packed)
    for item, numbers in zip(packed, groups.values(), strict=True):
        item["weight"] = [weights[number] * scale for number in numbers]
        item["centre"] = scale
        item["step_share"] = len(groups) / max(continued, 1)
    return {column: [item[column] for item in packed] for column in packed[0]}, skipped


def _weight(row: Row, weighted: bool) -> float:
    weight = row.get("weight")
    return float(weight) if weighted and weight is not None else 1.0


def _pack(group: list[Row], settings: Settings) -> Row:
    """One question: its distinct sequences as pieces, laid end to end, and its pairs as indices of scored steps."""
    steps: dict[tuple[int, ...], int] = {}
    chosen, rejected = (
        [steps.setdefault(tuple(row[side]), len(steps)) for row in group] for side in ("chosen_ids", "rejected_ids")
    )
    layout = lay_out(list(steps), settings.row_tokens)
    lengths = [len(piece) for piece in layout.pieces]
    item: Row = {
        name: np.concatenate([getattr(piece, name) for piece in layout.pieces]).astype(np.int32)
        for name in ("tokens", "positions", "last")
    }
    item |= {"lengths": lengths, "ends": _ends(layout, lengths), "parents": layout.parent}
    item |= {"chosen": chosen, "rejected": rejected, "depth": [depth_of(row) for row in group]}
    if settings.use_margin:
        item["margin"] = [float(row["margin"]) for row in group]
    return item


def _ends(layout: Layout, lengths: list[int]) -> list[int]:
    starts = np.cumsum([0, *lengths])
    return [int(starts[piece] + path[-1]) for piece, path in zip(layout.piece, layout.paths, strict=True)]


@dataclass
class TreeCollator:
    """Packed questions into rows, and their pairs into flat tensors.

    Gives `input_ids, position_ids, last` [rows, width]; `ends, parents, step_share` [steps] (slots of step ends, the
    step each one continues or -1, its share in the consistency term); `chosen, rejected, weight, centre, depth` and
    perhaps `margin` [pairs]; `num_tokens` and `questions`, which count.
    """

    pad_token_id: int
    row_budget: int | None = None

    def __call__(self, examples: list[Row]) -> dict[str, torch.Tensor]:
        pieces: list[Piece] = []
        places: list[tuple[int, np.ndarray]] = []
        for example in examples:
            arrays = [np.asarray(example[name]) for name in ("tokens", "positions", "last")]
            starts = np.cumsum([0, *example["lengths"]])
            places.append((len(pieces), starts))
            pieces += [Piece(*(a[i:j] for a in arrays)) for i, j in pairwise(starts)]
        rows = fill_rows(pieces, self.row_budget, self.pad_token_id)
        columns: dict[str, list[np.ndarray]] = {}
        before = 0
        for example, (first, starts) in zip(examples, places, strict=True):
            ends = np.asarray(example["ends"])
            piece = np.searchsorted(starts, ends, side="right") - 1
            parents = np.asarray(example["parents"])
            pairs = len(example["chosen"])
            found = {
                "ends": rows.offsets[first + piece] + ends - starts[piece],
                "parents": np.where(parents < 0, -1, parents + before),
                "step_share": np.full(len(ends), example["step_share"], dtype=np.float32) / len(examples),
                "chosen": np.asarray(example["chosen"]) + before,
                "rejected": np.asarray(example["rejected"]) + before,
                "weight": np.asarray(example["weight"], dtype=np.float32) / len(examples),
                "centre": np.full(pairs, example["centre"], dtype=np.float32) / len(examples),
                "depth": np.asarray(example["depth"]),
            }
            if "margin" in example:
                found["margin"] = np.asarray(example["margin"], dtype=np.float32)
            before += len(ends)
            for name, values in found.items():
                columns.setdefault(name, []).append(values)
        batch = {"input_ids": rows.tokens, "position_ids": rows.positions, "last": rows.last}
        batch |= {name: np.concatenate(parts) for name, parts in columns.items()}
        counts = {"num_tokens": sum(map(len, pieces)), "questions": len(examples)}
        return {name: torch.as_tensor(value) for name, value in (batch | counts).items()}


def tree_loss(
    scores: torch.Tensor,
    batch: dict[str, torch.Tensor],
    center_rewards_coefficient: float | None = None,
    consistency_coefficient: float | None = None,
) -> torch.Tensor:
    """Bradley-Terry over all pairs of a batch, with the two optional terms (`scores`: [steps])."""
    chosen, rejected = scores[batch["chosen"]], scores[batch["rejected"]]
    difference = chosen - rejected - batch["margin"] if "margin" in batch else chosen - rejected
    loss = -(batch["weight"] * logsigmoid(difference)).sum()
    if center_rewards_coefficient is not None:
        loss = loss + center_rewards_coefficient * (batch["centre"] * (chosen + rejected) ** 2).sum()
    if consistency_coefficient is not None:
        loss = loss + consistency_coefficient * consistency(scores, batch)
    return loss


def consistency(scores: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The squared distance of each continued step's score from the mean score of its continuations.

    Continuations are the nearest scored steps below it. Their mean is what the step is drawn to: it gives no gradient
    itself, or steps would be drawn to their past.
    """
    below = batch["parents"] >= 0
    parents = batch["parents"][below]
    sums = torch.zeros_like(scores).index_add(0, parents, scores.detach()[below])
    counts = torch.zeros_like(scores).index_add(0, parents, torch.ones_like(scores)[below])
    distance = (scores - sums / counts.clamp(min=1)) ** 2
    return (batch["step_share"] * distance * (counts > 0)).sum()
