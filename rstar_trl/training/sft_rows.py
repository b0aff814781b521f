"""Prompt-completion rows as tokens: the policy's training data, encoded as the search encodes what it samples.

Guarantees: prompt, each step and end-of-sequence are encoded by `rstar_trl.policy.tokens`, each piece for itself; only
the completion's tokens carry a label, and what the environment answered never does.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rstar_trl.errors import DataError
from rstar_trl.policy.tokens import DELIMITER, encode_prompt, encode_step

IGNORED = -100
"""The label of a token that is not trained on."""

Row = dict[str, Any]


def encode_trajectory(tokenizer: Any, row: Row, completion_only: bool = True) -> dict[str, list[int]]:
    """`input_ids` and `labels` of a prompt-completion row whose steps are separated by a blank line.

    `observations`, one text per step (perhaps empty), are shown after their step. The prompt's tokens are labels too
    when not `completion_only`.
    """
    ids = encode_prompt(tokenizer, row["prompt"])
    labels = [IGNORED] * len(ids) if completion_only else list(ids)
    steps = row["completion"].split(DELIMITER)
    observations = row.get("observations") or [""] * len(steps)
    if len(observations) != len(steps):
        raise DataError(f"a trajectory has {len(steps)} steps and {len(observations)} observations; give one a step.")
    for number, (step, observation) in enumerate(zip(steps, observations, strict=True), 1):
        tokens = encode_step(tokenizer, step, final=number == len(steps))
        ids, labels = ids + tokens, labels + tokens
        if observation and number < len(steps):
            shown = encode_step(tokenizer, observation, final=False)
            ids, labels = ids + shown, labels + [IGNORED] * len(shown)
    return {"input_ids": ids, "labels": labels}


def trajectory_dataset(
    rows: Iterable[Row], tokenizer: Any, completion_only: bool = True, max_length: int | None = None
) -> Any:
    """Prompt-completion rows as a `Dataset` of one row per prompt: lists of `input_ids`, `labels` and `weight`.

    See `encode_trajectory`. Trajectories of more than `max_length` tokens are left out. Weights are divided by their
    mean, and must not be negative; a row without one weighs 1. `length` counts a prompt's packed tokens, by which
    `train_sampling_strategy="group_by_length"` sorts.
    """
    from datasets import Dataset

    from rstar_trl.training.packing import lay_out

    groups: dict[str, Row] = {}
    for row in rows:
        if not isinstance(row["prompt"], str) or not isinstance(row["completion"], str):
            raise DataError(
                "a packed trajectory needs `prompt` and `completion` as text; apply the chat template first."
            )
        encoded = encode_trajectory(tokenizer, row, completion_only)
        if max_length is not None and len(encoded["input_ids"]) > max_length:
            continue
        group = groups.setdefault(row["prompt"], {"input_ids": [], "labels": [], "weight": []})
        group["input_ids"].append(encoded["input_ids"])
        group["labels"].append(encoded["labels"])
        group["weight"].append(1.0 if row.get("weight") is None else float(row["weight"]))
    if not groups:
        raise DataError("there are no rows to train on; give prompt-completion rows, and a `max_length` they fit in.")
    weights = iter(normalised([weight for group in groups.values() for weight in group["weight"]], "trajectories"))
    for group in groups.values():
        group["weight"] = [next(weights) for _ in group["weight"]]
        group["length"] = sum(map(len, lay_out(group["input_ids"]).pieces))
    return Dataset.from_list(list(groups.values()))


def normalised(weights: list[float], name: str) -> list[float]:
    """`weights` divided by their mean; negative ones, or nothing but zeros, are a `DataError`."""
    if min(weights) < 0 or max(weights) <= 0:
        raise DataError(f"the {name} have weights from {min(weights)} to {max(weights)}; give positive ones.")
    mean = sum(weights) / len(weights)
    return [weight / mean for weight in weights]
