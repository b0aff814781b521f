"""A tiny model and toy rows, so that training tests take seconds and download nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rstar_trl.policy.from_scratch import build_base
from tests.training.toys import SPEC, pair_rows, sft_row, write_rows

torch.set_num_threads(1)  # these matrices are too small to share


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tiny")
    rows = [sft_row(number) for number in range(60)]
    build_base(SPEC, [row["prompt"] + row["completion"] for row in rows], folder, seed=0)
    return str(folder)


@pytest.fixture(scope="session")
def sft_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows") / "sft.jsonl", [sft_row(number) for number in range(60)])


@pytest.fixture(scope="session")
def pair_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [row for number in range(60) for row in pair_rows(number)]
    return write_rows(tmp_path_factory.mktemp("rows") / "preference.jsonl", rows)
