"""BIRD's reward-based valid efficiency score R-VES, in percent."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate

from rstar_trl.evaluation import loadable

_ARGUMENTS = """    iterations: times that both queries are measured.
    timeout: seconds a query may take.
Returns:
    r_ves: mean square root of the rewards for speed, 0 where wrong, in percent.
"""


class BirdRVes(evaluate.Metric):
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
        return {name: totals[name] for name in ("r_ves", "not_scored", "problems")}
