from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.policy.toys import build

torch.set_num_threads(1)  # these matrices are too small to share


@pytest.fixture(scope="session", params=["llama", "qwen3"])
def policy_dir(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    fields = {"head_dim": 16} if request.param == "qwen3" else {}
    return build(request.param, tmp_path_factory.mktemp(request.param), **fields)


@pytest.fixture(scope="session")
def llama_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("llama", tmp_path_factory.mktemp("llama"))
