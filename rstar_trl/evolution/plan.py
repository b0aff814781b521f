"""From a recipe to its stages: pure data, so that a dry run and a real one follow the same plan.

Guarantees: stages are listed in an order in which each one's dependencies come before it; `Stage.config` holds exactly
the settings that can change a stage's result, keyed as in the recipe. Settings that only change speed (worker counts,
trees in flight) are left out, so that they may differ when a run is resumed.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rstar_trl.config import Recipe
from rstar_trl.evolution.recipe import evaluation_search, few_shot_search, round_search
from rstar_trl.io import digest

Kind = Literal["data", "base", "pretrain", "bootstrap", "search", "dataset", "sft", "ppm", "evaluate"]

LAUNCHED: tuple[Kind, ...] = ("pretrain", "search", "sft", "ppm", "evaluate")
"""Stages that use a model at length and get processes of their own; each is also a command of that name."""


@dataclass(frozen=True)
class Stage:
    """One step of a run. `name` is also its folder below the run folder, e.g. `round-1/search`."""

    name: str
    kind: Kind
    round: int
    folder: Path
    depends_on: tuple[str, ...]
    config: dict[str, Any]
    seed: int

    @property
    def launched(self) -> bool:
        """Whether the stage gets processes of its own; the others take seconds and run where the command was given."""
        return self.kind in LAUNCHED

    @property
    def command(self) -> str:
        """The sub-command that runs this stage alone."""
        return self.kind


def plan(recipe: Recipe) -> list[Stage]:
    """All stages of a recipe, in the order they run."""
    found: list[Stage] = []

    def add(name: str, kind: Kind, number: int, depends_on: list[str], **config: Any) -> None:
        folder = Path(recipe.output_dir) / name
        found.append(Stage(name, kind, number, folder, tuple(depends_on), config, stage_seed(recipe, name, kind)))

    sandbox = _without(asdict(recipe.sandbox), "workers")
    prompt = asdict(recipe.prompt)
    base = ["base"] if recipe.model.from_scratch is not None else []
    add("data", "data", 0, [], data=asdict(recipe.data), sandbox=sandbox, verify=recipe.verify)
    if recipe.engine.model is not None:
        _evaluation_stage(recipe, 0, ["data"], sandbox, prompt, add)
        return found
    if base:
        add("base", "base", 0, ["data"], model={"from_scratch": recipe.model.from_scratch}, prompt=prompt)
    if recipe.pretrain:
        add("pretrain", "pretrain", 0, ["data", *base], pretrain=recipe.pretrain, prompt=prompt, seed=recipe.seed)
        base = ["pretrain"]
    copies = {"value_copies": recipe.trajectories.value_copies}
    if recipe.bootstrap == "few_shot":
        add(
            "round-0/search",
            "search",
            0,
            ["data"],
            few_shot=_without(asdict(recipe.few_shot), "search"),
            search=_without(asdict(few_shot_search(recipe)), "trees_in_flight"),
            sandbox=sandbox,
            prompt=prompt,
            seed=recipe.seed,
        )
        learned = {"bootstrap": "few_shot", "trajectories": {"top_k": recipe.trajectories.top_k, **copies}}
        needs = ["data", "round-0/search", *base]
        add("round-0/data", "bootstrap", 0, needs, prompt=prompt, seed=recipe.seed, **learned)
    else:
        add("round-0/data", "bootstrap", 0, ["data", *base], prompt=prompt, trajectories=copies, seed=recipe.seed)
    for number in range(len(recipe.rounds) + 1):
        if number:
            _search_stages(recipe, number, base, sandbox, prompt, add)
        _training_stages(recipe, number, base, add)
        ppm = [f"round-{number}/ppm"] if number else []
        _evaluation_stage(recipe, number, ["data", f"round-{number}/policy", *ppm], sandbox, prompt, add)
    return found


def stage_seed(recipe: Recipe, name: str, kind: Kind) -> int:
    """Searches draw from a stream of their own each; everything that trains shares the recipe's seed."""
    return int(digest([recipe.seed, name])[:7], 16) if kind in ("search", "evaluate") else recipe.seed


def _evaluation_stage(recipe: Recipe, number: int, depends_on: list[str], sandbox: Any, prompt: Any, add: Any) -> None:
    add(
        f"round-{number}/eval",
        "evaluate",
        number,
        depends_on,
        evaluation={**_without(asdict(recipe.evaluation), "search", "rounds"), "methods": _methods(recipe, number)},
        search=_without(asdict(evaluation_search(recipe)), "trees_in_flight"),
        sandbox=sandbox,
        prompt=prompt,
        **_engine(recipe),
    )


def _search_stages(recipe: Recipe, number: int, base: list[str], sandbox: Any, prompt: Any, add: Any) -> None:
    settings = recipe.rounds[number - 1]
    earlier = [f"round-{before}/search" for before in range(1, number)]
    guide = [f"round-{before}/ppm" for before in range(1, number)] if settings.guide == "ppm" else []
    add(
        f"round-{number}/search",
        "search",
        number,
        ["data", f"round-{number - 1}/policy", *guide, *(earlier if settings.only == "unsolved" else [])],
        rounds={"guide": settings.guide, "only": settings.only},
        search=_without(asdict(round_search(recipe, number)), "trees_in_flight"),
        sandbox=sandbox,
        prompt=prompt,
        seed=recipe.seed,
        **_engine(recipe),
    )
    add(
        f"round-{number}/data",
        "dataset",
        number,
        ["round-0/data", *earlier, f"round-{number}/search"],
        trajectories=asdict(recipe.trajectories),
        prompt=prompt,
        seed=recipe.seed,
    )


def _training_stages(recipe: Recipe, number: int, base: list[str], add: Any) -> None:
    settings = recipe.rounds[number - 1] if number else None
    previous = settings is not None and settings.init == "previous"
    model = {"name_or_path": recipe.model.name_or_path, "lora": recipe.model.lora}
    add(
        f"round-{number}/policy",
        "sft",
        number,
        [f"round-{number}/data", *([f"round-{number - 1}/policy"] if previous else base)],
        sft={**recipe.sft, **(settings.sft if settings else {})},
        model=model,
        rounds={"init": settings.init if settings else "base"},
        seed=recipe.seed,
    )
    if settings is not None:
        add(
            f"round-{number}/ppm",
            "ppm",
            number,
            [f"round-{number}/data", f"round-{0 if settings.ppm_init == 'cold_start' else number}/policy"],
            ppm={**recipe.ppm, **settings.ppm},
            rounds={"ppm_init": settings.ppm_init},
            model={"lora": recipe.model.lora},
            seed=recipe.seed,
        )


def _engine(recipe: Recipe) -> dict[str, Any]:
    """What of the engine changes an answer; nothing for the embedded one, whose runs are older than the section."""
    engine = recipe.engine
    if engine.kind == "transformers" and engine.model is None:
        return {}
    names = ("kind", "model", "tokenizer", "endpoint", "prefill", "token_ids")
    options = {"options": engine.options} if engine.kind == "openai" else {}
    return {"engine": {name: getattr(engine, name) for name in names} | options}


def _methods(recipe: Recipe, number: int) -> list[str]:
    last = number == len(recipe.rounds) or recipe.engine.model is not None
    return list(recipe.evaluation.methods) if last or recipe.evaluation.rounds == "all" else ["greedy"]


def _without(values: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}
