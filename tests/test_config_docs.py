"""Every option of a recipe is explained, and every option of the command line."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import typer.main

from rstar_trl.cli import app

CONFIG = Path(__file__).parents[1] / "rstar_trl" / "config.py"
CLASSES = [node for node in ast.parse(CONFIG.read_text(encoding="utf-8")).body if isinstance(node, ast.ClassDef)]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.name)
def test_every_config_field_has_its_doc_beneath_it(cls: ast.ClassDef) -> None:
    assert ast.get_docstring(cls)
    fields = [(i, node) for i, node in enumerate(cls.body) if isinstance(node, ast.AnnAssign)]
    assert fields
    for index, field in fields:
        beneath = cls.body[index + 1] if index + 1 < len(cls.body) else None
        documented = isinstance(beneath, ast.Expr) and isinstance(beneath.value, ast.Constant)
        assert documented, f"{cls.name}.{ast.unparse(field.target)} has no doc beneath it"


def test_every_command_and_option_has_help() -> None:
    root = typer.main.get_command(app)
    commands = [root, *root.commands.values(), *root.commands["data"].commands.values()]  # type: ignore[attr-defined]
    assert len(commands) == 17
    for command in commands:
        assert command.help, f"{command.name} has no help"
        for parameter in command.params:
            assert parameter.help, f"{command.name} {parameter.name} has no help"
