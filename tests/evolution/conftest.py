"""Recipes for tests: small files, written to a temporary folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

MINIMAL = """\
name: tiny
output_dir: {folder}/run
model:
  from_scratch:
    architecture: qwen2
    hidden_size: 32
rounds:
  - guide: reward
  - guide: ppm
    only: unsolved
    search:
      simulations: 32
"""


@pytest.fixture
def minimal() -> str:
    """A valid recipe."""
    return MINIMAL


@pytest.fixture
def write_recipe(tmp_path: Path) -> Callable[..., Path]:
    """Writes a recipe (by default the minimal one) and returns its path."""

    def write(text: str = MINIMAL) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(text.replace("{folder}", str(tmp_path)), encoding="utf-8")
        return path

    return write
