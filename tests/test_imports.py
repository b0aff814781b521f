"""The house stands on its rows: a module imports only from rows above its own, and nothing heavy too early."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "rstar_trl"
ROWS = (
    ("errors", "config", "io", "strict_yaml", "progress"),
    ("data",),
    ("sql",),
    ("policy",),
    ("search",),
    ("trajectories",),
    ("training",),
    ("evaluation",),
    ("evolution",),
    ("report", "hub", "cli", "__main__"),
)
HEAVY = ("torch", "transformers", "trl", "datasets", "peft", "accelerate", "deepspeed", "vllm")
LIGHT = ("rstar_trl.cli", "rstar_trl.evolution.rounds", "rstar_trl.evolution.stages", "rstar_trl.evolution.ask")

MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def row_of(unit: str) -> int:
    return next(index for index, row in enumerate(ROWS) if unit in row)


def unit_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    """`(line, unit)` of every import of our own package, wherever in the file it stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write the import in full"
            module = node.module or ""
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "rstar_trl" else [module]
        for name in names:
            if name.startswith("rstar_trl."):
                yield node.lineno, name.split(".")[1]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_module_imports_only_from_rows_above_or_its_own_unit(path: Path) -> None:
    own = unit_of(path)
    for line, unit in imports_of(path):
        above = row_of(unit) < row_of(own) or unit == own or row_of(own) == row_of(unit) == 0
        assert above or own in ROWS[-1], f"{path}:{line} imports {unit}, which is in a row below {own}"


def test_nothing_is_read_that_could_run_code() -> None:
    """JSON, marshal of plain values, safetensors and safe YAML only."""
    dangerous = re.compile(
        r"\bimport (pickle|shelve|dill|joblib|cloudpickle)\b|\byaml\.(unsafe_|full_)?load\(|torch\.load\("
    )
    for path in MODULES:
        found = dangerous.search(path.read_text(encoding="utf-8"))
        assert found is None, f"{path}: {found}"


def test_the_reader_of_imports_sees_them_all(tmp_path: Path) -> None:
    source = tmp_path / "module.py"
    source.write_text(
        "import rstar_trl.sql.steps\nfrom rstar_trl import config\ndef f():\n    from rstar_trl.cli import app\n"
    )
    assert sorted(unit for _, unit in imports_of(source)) == ["cli", "config", "sql"]


def test_surface_and_evolution_import_nothing_heavy() -> None:
    code = f"import sys, {', '.join(LIGHT)}; print([name for name in {HEAVY} if name in sys.modules])"
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent, check=True
    )
    assert shown.stdout.strip() == "[]"
