"""BIRD's metrics: EX, VES, R-VES and Soft-F1 (mode `bird_set` for the first three).

Guarantees: the official definitions, run in the sandbox: a prediction that fails, is refused or runs out of time
scores 0; a gold query that fails is the data's error, told apart from a wrong prediction. Does not guarantee that VES
and R-VES repeat: they measure time on this machine, inside the worker, where other work disturbs it.

Source: Li et al. 2023 (arXiv 2305.03111) and the evaluators published with BIRD and its mini-dev set.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from rstar_trl.sql.execution import Execution, SqlJob
from rstar_trl.sql.official import bird_set_equal, soft_f1
from rstar_trl.sql.sandbox import Sandbox

TIMEOUT = 30.0
"""Seconds that the official evaluator gives a question, both queries together."""
ITERATIONS = 100
"""Times that it runs both queries to measure them."""
CHUNK = 64


@dataclass(frozen=True)
class BirdScore:
    """One question: EX (0 or 1), Soft-F1, and the ratio of times (0 if wrong, None if not measured).

    All are None where `problem` says why nothing was scored.
    """

    ex: float | None
    soft_f1: float | None
    valid: bool | None
    ratio: float | None = None
    problem: str = ""


def bird_scores(pairs: Sequence[tuple[str, str, str]], sandbox: Sandbox, iterations: int = 0) -> list[BirdScore]:
    """One score per (prediction, gold query, database), in order; times are measured `iterations` times over."""
    scores: list[BirdScore] = []
    for start in range(0, len(pairs), CHUNK):
        chunk = pairs[start : start + CHUNK]
        executions = sandbox.run([SqlJob(db, sql) for predicted, gold, db in chunk for sql in (predicted, gold)])
        for pair, theirs, ours in zip(chunk, executions[::2], executions[1::2], strict=True):
            score = _score(theirs, ours, sandbox.config.timeout)
            if iterations and score.ex is not None:
                ratio = _time_ratio(pair, sandbox, iterations) if score.ex else 0.0
                score = BirdScore(score.ex, score.soft_f1, score.valid, ratio)
            scores.append(score)
    return scores


def ves(ratios: Sequence[float]) -> float:
    """Valid efficiency score, in percent: the mean of the square roots of the time ratios, 0 where wrong."""
    return 100 * sum(map(math.sqrt, ratios)) / len(ratios) if ratios else 0.0


def r_ves(ratios: Sequence[float]) -> float:
    """Reward-based VES, in percent: the mean of the square roots of the rewards."""
    return 100 * sum(math.sqrt(reward(ratio)) for ratio in ratios) / len(ratios) if ratios else 0.0


def reward(ratio: float) -> float:
    """The reward of R-VES for gold time over predicted time; 0 for a wrong query (a ratio of 0)."""
    if ratio == 0:
        return 0.0
    return next((value for least, value in ((2, 1.25), (1, 1.0), (0.5, 0.75), (0.25, 0.5)) if ratio >= least), 0.25)


def mean_ratio(ratios: Sequence[float]) -> float:
    """The mean of those within three standard deviations of the mean."""
    mean, deviation = statistics.fmean(ratios), statistics.pstdev(ratios)
    kept = [ratio for ratio in ratios if mean - 3 * deviation < ratio < mean + 3 * deviation]
    # All the same: none lies strictly within zero deviations, and the official evaluator divides by zero.
    return statistics.fmean(kept or ratios)


def _score(theirs: Execution, ours: Execution, timeout: float) -> BirdScore:
    if ours.verdict != "ok" or ours.rows is None:
        return BirdScore(None, None, None, problem=f"the gold query fails: {ours.verdict}: {ours.error}")
    if theirs.verdict == "infra":
        return BirdScore(None, None, None, problem=f"the prediction could not be run: {theirs.error}")
    valid = theirs.verdict in ("ok", "truncated")
    if theirs.verdict != "ok" or theirs.rows is None or theirs.seconds + ours.seconds > timeout:
        return BirdScore(0.0, 0.0, valid)
    return BirdScore(float(bird_set_equal(theirs.rows, ours.rows)), soft_f1(theirs.rows, ours.rows), valid)


def _time_ratio(pair: tuple[str, str, str], sandbox: Sandbox, iterations: int) -> float:
    """How many times as long the gold query takes as the predicted one, over repeated runs of both in turn."""
    predicted, gold, database = pair
    ratios = []
    for _ in range(iterations):
        # One after the other: side by side on two workers, each would slow the other down.
        theirs, ours = (sandbox.run([SqlJob(database, sql)], fresh=True)[0] for sql in (predicted, gold))
        if theirs.verdict == ours.verdict == "ok":
            ratios.append(ours.seconds / theirs.seconds)
    return mean_ratio(ratios) if ratios else 0.0
