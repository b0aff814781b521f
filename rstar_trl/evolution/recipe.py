"""Reads a recipe and finds everything that is wrong with it before anything runs.

Guarantees: unknown keys and wrong types are reported together, each with file and line, for the recipe's own sections
and for the ones that borrow their keys (`sft`, `ppm`, overrides of `search`); a rounds list that cannot work and files
that do not exist are reported too. Does not guarantee that the data (see `validate`) or a Hub model can be loaded.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from rstar_trl import strict_yaml
from rstar_trl.config import Recipe, SearchConfig
from rstar_trl.errors import ConfigError
from rstar_trl.strict_yaml import Document

Key = tuple[str, ...]


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe with where it came from, which its stages need when they are launched as processes of their own."""

    recipe: Recipe
    document: Document
    path: Path
    assignments: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.recipe.output_dir)

    @property
    def accelerate_config(self) -> Path | None:
        """The accelerate config file: relative names are taken from the recipe's own folder."""
        name = self.recipe.accelerate_config
        return Path(os.path.normpath(self.path.parent / name)) if name else None


def load_recipe(path: Path | str, assignments: Sequence[str] = ()) -> LoadedRecipe:
    """Reads a recipe and applies `key=value` assignments; raises `ConfigError` with every problem found."""
    path = Path(path)
    document = strict_yaml.override(strict_yaml.load(path), list(assignments))
    problems: list[str] = []
    recipe = _collect(problems, Recipe, document)
    borrowed = _training_sections(document, problems)
    _search_overrides(document, problems)
    if recipe is not None:
        _consistent(recipe, document, path, problems)
    if problems or recipe is None:
        raise ConfigError(problems)
    return LoadedRecipe(_with_sections(recipe, borrowed), document, path, tuple(assignments))


def round_search(recipe: Recipe, number: int) -> SearchConfig:
    """The search settings of round `number` (1 is the first after the cold start)."""
    return dataclasses.replace(recipe.search, **recipe.rounds[number - 1].search)


def evaluation_search(recipe: Recipe) -> SearchConfig:
    """The search settings of evaluation, and of `ask`."""
    return dataclasses.replace(recipe.search, **recipe.evaluation.search)


def few_shot_search(recipe: Recipe) -> SearchConfig:
    """The search settings of a cold start by a stronger model."""
    return dataclasses.replace(recipe.search, **recipe.few_shot.search)


def _collect(problems: list[str], cls: type[Any], document: Document) -> Any:
    try:
        return strict_yaml.build(cls, document)
    except ConfigError as error:
        problems.extend(error.problems)
        return None


def _section(document: Document, key: Key) -> Document | None:
    """The part of a document below `key`, still knowing its lines; None where it is absent or no mapping."""
    data: Any = document.data
    for part in key:
        data = data[int(part)] if isinstance(data, list) else data.get(part) if isinstance(data, dict) else None
    if not isinstance(data, dict):
        return None
    lines = {name[len(key) :]: line for name, line in document.lines.items() if name[: len(key)] == key}
    return Document(document.path, data, lines)


def _round_keys(document: Document, section: str) -> list[Key]:
    rounds = document.data.get("rounds")
    count = len(rounds) if isinstance(rounds, list) else 0
    return [("rounds", str(index), section) for index in range(count)]


def _search_overrides(document: Document, problems: list[str]) -> None:
    for key in [*_round_keys(document, "search"), ("evaluation", "search"), ("few_shot", "search")]:
        section = _section(document, key)
        if section is not None:
            _collect(problems, SearchConfig, section)


def _training_sections(document: Document, problems: list[str]) -> dict[Key, dict[str, Any]]:
    """Checks every `sft` and `ppm` section against its config class; returns their values with the right types."""
    found = {
        (key, name): section
        for name in ("pretrain", "sft", "ppm")
        for key in [(name,), *_round_keys(document, name)]
        if (section := _section(document, key))
    }
    if not found:
        return {}
    # Imported here because these classes pull in torch, which takes seconds.
    from trl import SFTConfig

    from rstar_trl.training.ppm_config import PPMConfig
    from rstar_trl.training.sft_trainer import TreeSFTConfig

    kinds = {"pretrain": SFTConfig, "sft": TreeSFTConfig, "ppm": PPMConfig}
    classes = {name: _field_types(cls) for name, cls in kinds.items()}
    values = {}
    for (key, name), section in found.items():
        built = _collect(problems, classes[name], section)
        if built is not None:
            values[key] = {field: getattr(built, field) for field in section.data}
    return values


def _field_types(cls: type[Any]) -> type[Any]:
    """A dataclass with the fields of a trainer's config and none of what that does when it is made."""
    hints = get_type_hints(cls)
    fields = [(f.name, _plain(hints[f.name]), dataclasses.field(default=None)) for f in dataclasses.fields(cls)]
    return dataclasses.make_dataclass(cls.__name__, fields)


def _plain(hint: Any) -> Any:
    """Types that YAML can hold are checked; enums, paths and wide unions are left to the config class itself."""
    if hint in (int, float, str, bool) or get_origin(hint) is Literal:
        return hint
    inner = [arg for arg in get_args(hint) if arg is not type(None)]
    if len(inner) == 1 and len(get_args(hint)) == 2 and inner[0] in (int, float, str, bool):
        return hint
    return Any


def _with_sections(recipe: Recipe, values: dict[Key, dict[str, Any]]) -> Recipe:
    rounds = [
        dataclasses.replace(
            each,
            sft=values.get(("rounds", str(index), "sft"), {}),
            ppm=values.get(("rounds", str(index), "ppm"), {}),
        )
        for index, each in enumerate(recipe.rounds)
    ]
    sections: dict[str, Any] = {name: values.get((name,), {}) for name in ("pretrain", "sft", "ppm")}
    return dataclasses.replace(recipe, **sections, rounds=rounds)


def _consistent(recipe: Recipe, document: Document, path: Path, problems: list[str]) -> None:
    """What no single section can know is wrong."""
    if recipe.rounds and recipe.rounds[0].guide == "ppm":
        problems.append(
            f"{document.at(('rounds', '0', 'guide'))}: round 1 cannot have `guide: ppm`, no PPM is trained before it; "
            "write `guide: reward`."
        )
    if recipe.accelerate_config and not (path.parent / recipe.accelerate_config).is_file():
        problems.append(
            f"{document.at(('accelerate_config',))}: {path.parent / recipe.accelerate_config} does not exist; "
            "`accelerate_config` is a file, relative to the recipe."
        )
    if recipe.bootstrap == "few_shot" and recipe.few_shot.model is None:
        problems.append(
            f"{document.at(('bootstrap',))}: `bootstrap: few_shot` needs `few_shot.model`, the stronger model to "
            "learn from; or write `bootstrap: labels`."
        )
    spec = recipe.model.from_scratch
    if spec is not None and not isinstance(spec.get("architecture"), str):
        problems.append(
            f"{document.at(('model', 'from_scratch'))}: `model.from_scratch` needs `architecture`, "
            "a model type of transformers such as llama."
        )
    if recipe.pretrain and spec is None:
        problems.append(
            f"{document.at(('pretrain',))}: `pretrain` warms up a model built from scratch, and this one is loaded; "
            "delete the section."
        )
    name = recipe.model.name_or_path
    if name and name.startswith(("/", ".", "~")) and not Path(name).expanduser().is_dir():
        problems.append(
            f"{document.at(('model', 'name_or_path'))}: there is no folder {name}; "
            "give a model folder, or a Hub name such as Qwen/Qwen2.5-Coder-1.5B."
        )
