"""The share of predictions that run, in percent."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate

from rstar_trl.evaluation import loadable

_ARGUMENTS = """    timeout: seconds a query may take.
Returns:
    valid_sql: percent of predictions that run without error and in time.
"""


class ValidSql(evaluate.Metric):
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
        timeout: float = 30.0,
    ) -> dict[str, Any]:
        totals = loadable.bird_totals(predictions, references, databases, timeout=timeout)
        return {name: totals[name] for name in ("valid_sql", "not_scored", "problems")}
