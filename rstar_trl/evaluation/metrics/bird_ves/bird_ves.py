"""BIRD's valid efficiency score VES, in percent (above 100 where predictions are faster than gold)."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate

from rstar_trl.evaluation import loadable

_ARGUMENTS = """    iterations: times that both queries are measured.
    timeout: seconds a query may take.
Returns:
    ves: mean square root of gold time over predicted time, 0 where wrong, in percent.
"""


class BirdVes(evaluate.Metric):
    """See `_info`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__ or "",
            citation="Li et al. 2023 (arXiv 2305.03111).",
            inputs_description=loadable.INPUTS + _ARGUMENTS,
            features=datasets.Features(
                {
                    "predictions": datasets.Value("string"),
                    "references": {"sql": datasets.Value("string"), "db_id": datasets.Value("string")},
                }
            ),
        )

    def _compute(
        self,
        predictions: list[str],
        references: list[dict[str, str]],
        databases: str,
        iterations: int = 100,
        timeout: float = 30.0,
    ) -> dict[str, Any]:
        totals = loadable.bird_totals(predictions, references, databases, iterations, timeout)
        return {name: totals[name] for name in ("ves", "not_scored", "problems")}
