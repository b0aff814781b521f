"""Spider's exact set match, with hardness and partial components (no query is run)."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate

from rstar_trl.evaluation import loadable

_ARGUMENTS = """    tables: Spider's tables.json; by default beside `databases`.
Returns:
    exact_match: share of predictions all of whose components match, 0..1; `levels` has hardness and components.
"""


class SpiderExactMatch(evaluate.Metric):
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
    ) -> dict[str, Any]:
        scores = loadable.spider_scores(predictions, references, databases, tables, "match")
        return {
            "exact_match": scores["levels"]["all"]["exact_match"],
            "levels": scores["levels"],
            "not_scored": scores["not_scored"],
            "problems": scores["problems"],
        }
