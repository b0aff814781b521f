"""Test-suite execution accuracy (`spider_ts`): right on every database file of the schema's folder."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate

from rstar_trl.evaluation import loadable

_ARGUMENTS = """    tables: Spider's tables.json; by default beside `databases`.
    plug_value: fill the gold query's values into the prediction.
    keep_distinct: let DISTINCT count.
    timeout: seconds a query may take.
Returns:
    execution: share of right predictions, 0..1; `levels` has it by hardness.
"""


class TestSuiteAccuracy(evaluate.Metric):
    """See `_info`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__ or "",
            citation="Yu et al. 2018 (arXiv 1809.08887), Zhong et al. 2020 (arXiv 2010.02840).",
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
        tables: str | None = None,
        plug_value: bool = False,
        keep_distinct: bool = False,
        timeout: float = 30.0,
    ) -> dict[str, Any]:
        scores = loadable.spider_scores(
            predictions, references, databases, tables, "exec", plug_value, keep_distinct, timeout
        )
        return {
            "execution": scores["levels"]["all"]["execution"],
            "levels": scores["levels"],
            "not_scored": scores["not_scored"],
            "problems": scores["problems"],
        }
