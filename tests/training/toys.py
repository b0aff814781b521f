"""Toy rows, and the shape of a model that learns them in seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SPEC = {
    "architecture": "llama",
    "vocab_size": 300,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
}
COLUMNS = ("name", "age", "city")


def sft_row(number: int) -> dict[str, str]:
    column = COLUMNS[number % 3]
    completion = f"-- {column} of t\nFROM t\n\nSELECT {column}"
    return {
        "question_id": f"q{number:03}",
        "prompt": f"{number} show {column}\n",
        "completion": completion,
    }


def pair_rows(number: int) -> list[dict[str, Any]]:
    """A step pair and a whole-trajectory pair of one question: the right column is the one the prompt asks for."""
    row = sft_row(number)
    good, bad = COLUMNS[number % 3], COLUMNS[(number + 1) % 3]
    first = f"-- {good} of t\nFROM t"
    step = {
        "question_id": row["question_id"],
        "prompt": row["prompt"] + first + "\n\n",
        "chosen": f"SELECT {good}",
        "rejected": f"SELECT {bad}",
        "weight": 0.25,
        "margin": 2.0,
        "chosen_final": False,
        "rejected_final": False,
        "prompt_chars": len(row["prompt"]),
    }
    whole = {
        **step,
        "prompt": row["prompt"],
        "chosen": f"{first}\n\nSELECT {good}",
        "rejected": f"{first}\n\nSELECT {bad}",
        "weight": 1.0,
        "chosen_final": True,
        "rejected_final": True,
    }
    return [step, whole]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
