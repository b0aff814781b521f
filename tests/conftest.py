"""What several parts of the suite share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rstar_trl.config import SandboxConfig
from rstar_trl.sql.sandbox import Sandbox
from tests import postgres_server as postgres
from tests.scripted import make_database


@pytest.fixture(scope="session")
def small_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_database(tmp_path_factory.mktemp("small") / "music.sqlite")


@pytest.fixture(scope="session")
def shared_sandbox() -> Iterator[Sandbox]:
    with Sandbox(SandboxConfig(workers=1)) as sandbox:
        yield sandbox


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[postgres.Server]:
    pytest.importorskip("psycopg", reason="the extra postgres is not installed")
    if reason := postgres.reason_to_skip():
        pytest.skip(reason)
    with postgres.running() as server:
        yield server
