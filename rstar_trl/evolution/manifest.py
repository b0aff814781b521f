"""What a stage leaves behind to say what it was made from.

Guarantees: `manifest.json` is written last, so a folder with one is finished; `started.json` is written first, so a
folder that a kill left half done still knows its configuration, and is not continued under another one. The digests of
results are over content (rows and weights), never over times. Does not guarantee that results were not edited since.
"""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rstar_trl.io import digest, file_digest, read_json, write_json

MANIFEST = "manifest.json"
STARTED = "started.json"
PACKAGES = ("rstar-trl", "torch", "transformers", "trl", "accelerate", "peft", "datasets", "sqlglot")


@dataclass(frozen=True)
class Manifest:
    """A finished stage.

    `config` is the part of the recipe the stage depends on, `inputs` the digest of every stage it read,
    `outputs` the digest of each file it made, `seconds` its wall time in the process that finished it.
    """

    stage: str
    config: dict[str, Any]
    inputs: dict[str, str]
    outputs: dict[str, str]
    metrics: dict[str, Any]
    seed: int
    seconds: float
    versions: dict[str, str] = field(default_factory=dict)

    def digest(self) -> str:
        """Changes whenever a result of the stage does."""
        return digest(self.outputs)


def read(folder: Path) -> Manifest | None:
    """The manifest of a finished stage; None while there is none."""
    path = folder / MANIFEST
    return Manifest(**read_json(path)) if path.exists() else None


def write(folder: Path, manifest: Manifest) -> None:
    """Declares the stage finished."""
    write_json(folder / MANIFEST, asdict(manifest))


def begin(folder: Path, config: Mapping[str, Any], inputs: Mapping[str, str]) -> None:
    """Notes, before any work, what the stage is being made from."""
    write_json(folder / STARTED, {"config": config, "inputs": inputs})


def begun(folder: Path) -> tuple[dict[str, Any], dict[str, str]] | None:
    """What `begin` noted, as `(config, inputs)`; None where the stage was never begun."""
    if not (folder / STARTED).exists():
        return None
    record = read_json(folder / STARTED)
    return record["config"], record["inputs"]


def output_digests(folder: Path) -> dict[str, str]:
    """Digests of the rows, weights and tokenizer in a stage folder (its sub-folders hold checkpoints, not results)."""
    return {
        path.name: file_digest(path)
        for path in sorted(folder.iterdir())
        if path.suffix in (".jsonl", ".safetensors") or path.name == "tokenizer.json"
    }


def changes(old: Any, new: Any, key: str = "") -> list[str]:
    """Every difference between two nested configurations, as `search.simulations: 16 -> 32`."""
    if isinstance(old, dict) and isinstance(new, dict):
        names = [*old, *(name for name in new if name not in old)]
        return [
            change
            for name in names
            for change in changes(old.get(name), new.get(name), f"{key}.{name}" if key else str(name))
        ]
    return [] if old == new else [f"{key}: {_show(old)} -> {_show(new)}"]


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _show(value: Any) -> str:
    return "(none)" if value is None else str(value)
