"""Small language models teach themselves SQL by search and self-evolution, as an extension of TRL.

The names below are what other projects use; each is imported when it is first asked for, so that `import rstar_trl`
stays instant.
"""

from __future__ import annotations

import importlib
from typing import Any

_PUBLIC = {
    "MCTSDataCollator": "rstar_trl.training.collator",
    "PPMConfig": "rstar_trl.training.ppm_config",
    "PPMTrainer": "rstar_trl.training.ppm_trainer",
    "PPMScorer": "rstar_trl.policy.ppm_scorer",
    "Question": "rstar_trl.data.question",
    "Sandbox": "rstar_trl.sql.sandbox",
    "SearchConfig": "rstar_trl.config",
    "TransformersEngine": "rstar_trl.policy.transformers_engine",
    "score_steps": "rstar_trl.training.step_scores",
    "Tree": "rstar_trl.search.tree",
    "TreeSFTConfig": "rstar_trl.training.sft_trainer",
    "TreeSFTTrainer": "rstar_trl.training.sft_trainer",
    "search_questions": "rstar_trl.search.run",
    "trajectory_dataset": "rstar_trl.training.sft_rows",
}

__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)
