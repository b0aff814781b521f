"""The accelerate configs that come with the project say what accelerate understands."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser

FOLDER = Path(__file__).parents[1] / "accelerate_configs"
KINDS = {
    "cpu": "NO",
    "cpu_2": "MULTI_GPU",
    "single_gpu": "NO",
    "multi_gpu": "MULTI_GPU",
    "multi_node": "MULTI_GPU",
    "zero1": "DEEPSPEED",
    "zero2": "DEEPSPEED",
    "zero3": "DEEPSPEED",
    "fsdp": "FSDP",
}


def launched(name: str) -> argparse.Namespace:
    """The arguments of `accelerate launch --config_file`, as it completes them."""
    parser = launch_command_parser()
    arguments, *_ = _validate_launch_command(parser.parse_args(["--config_file", str(FOLDER / name), "x.py"]))
    return arguments


def test_every_config_is_known() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} == KINDS.keys()


@pytest.mark.parametrize("name", KINDS)
def test_accelerate_parses_it(name: str) -> None:
    """An unknown key at the top level is an error of accelerate's own; below it would be ignored without a word."""
    config = load_config_from_file(str(FOLDER / f"{name}.yaml"))
    assert str(config.distributed_type).removeprefix("DistributedType.") == KINDS[name]
    known = vars(launch_command_parser().parse_args(["x.py"]))
    given = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    below = [key for section in ("fsdp_config", "deepspeed_config") for key in given.get(section, {})]
    assert [key for key in below if key not in known] == []


def test_fsdp_becomes_a_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the launcher writes into the environment of its processes is a plugin that FSDP 2 accepts."""
    from accelerate.utils import FullyShardedDataParallelPlugin
    from accelerate.utils.launch import prepare_multi_gpu_env

    arguments = launched("fsdp.yaml")
    assert arguments.use_fsdp and arguments.num_processes == 8
    for name, value in prepare_multi_gpu_env(arguments).items():
        monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    assert (plugin.fsdp_version, plugin.reshard_after_forward) == (2, True)
    assert "FULL_STATE_DICT" in str(plugin.state_dict_type) and "transformer" in str(plugin.auto_wrap_policy)
