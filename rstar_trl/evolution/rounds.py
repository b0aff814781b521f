"""The whole run: every stage in order, each finished one skipped, the rest resumed.

Guarantees: a stage runs only on finished inputs; nothing is redone that has a manifest; a run folder is never
continued under a changed configuration or by another recipe, and the error names the keys that changed. Does not guard
against two commands working in one run folder at the same time.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from rstar_trl.errors import ConfigError, RunError
from rstar_trl.evolution import manifest, stages
from rstar_trl.evolution.launch import Processes, launch
from rstar_trl.evolution.manifest import Manifest
from rstar_trl.evolution.plan import Stage, plan
from rstar_trl.evolution.recipe import LoadedRecipe
from rstar_trl.evolution.table import render_table, report_rows
from rstar_trl.io import write_json, write_text
from rstar_trl.progress import duration


def evolve(loaded: LoadedRecipe, in_process: bool = False, restart_from: str | None = None) -> str:
    """Runs a recipe to its end and returns its table (one row per round).

    `in_process` runs every stage in this process; so does a process that `accelerate launch` started. Otherwise each
    stage that uses a model is launched as its own processes. `restart_from` names a stage to do again, with all later.
    """
    processes = Processes.from_environment()
    todo = plan(loaded.recipe)
    if processes.first:
        claim(loaded)
        if restart_from is not None:
            restart(todo, restart_from)
        check(todo)
    processes.barrier()
    for stage in todo:
        if manifest.read(stage.folder) is not None:
            _say(processes, f"{stage.name}: finished before, kept")
        elif stage.launched and not in_process and not processes.launched:
            launch(loaded, stage)
        else:
            execute(loaded, stage, todo, processes)
    return _report(loaded, todo) if processes.first else ""


def run_alone(loaded: LoadedRecipe, kind: str, number: int) -> None:
    """Runs one stage of one round in these processes, after the short preparations it still lacks."""
    processes = Processes.from_environment()
    todo = plan(loaded.recipe)
    wanted = next((stage for stage in todo if stage.kind == kind and stage.round == number), None)
    if wanted is None:
        rounds = sorted({stage.round for stage in todo if stage.kind == kind})
        raise ConfigError(f"Round {number} has no {kind} stage; {loaded.path} has it in rounds {rounds}.")
    if processes.first:
        claim(loaded)
        check(todo)
    processes.barrier()
    _run_with_preparations(loaded, wanted, todo, processes)


def execute(loaded: LoadedRecipe, stage: Stage, todo: list[Stage], processes: Processes) -> None:
    """Runs a stage in this process (all processes call it together) and then declares it finished."""
    inputs = _inputs(stage, todo)
    if processes.first:
        _note(stage, inputs)
        _say(processes, f"{stage.name}: started")
    processes.barrier()
    started = time.monotonic()
    metrics: dict[str, Any] = {}
    if stage.launched or processes.first:
        metrics = stages.RUN[stage.kind](loaded, stage, processes)
    processes.barrier()
    if processes.first:
        seconds = time.monotonic() - started
        outputs = manifest.output_digests(stage.folder)
        versions = manifest.versions()
        done = Manifest(stage.name, stage.config, inputs, outputs, metrics, stage.seed, seconds, versions)
        manifest.write(stage.folder, done)
        _say(processes, f"{stage.name}: finished in {duration(seconds)}")
    processes.barrier()


def claim(loaded: LoadedRecipe) -> None:
    """Makes the run folder this recipe's, or raises `RunError` when it is another one's."""
    path = loaded.folder / "recipe.yaml"
    if path.exists():
        owner = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("name")
        if owner != loaded.recipe.name:
            raise RunError(
                f"{loaded.folder} holds a run of the recipe `{owner}`, not of `{loaded.recipe.name}`; "
                "give another output_dir (--set output_dir=...), or move that folder away."
            )
    resolved = dataclasses.asdict(loaded.recipe)
    if loaded.accelerate_config is not None:
        resolved["accelerate_config"] = os.path.relpath(loaded.accelerate_config, loaded.folder)
    write_text(path, yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True))


def restart(todo: list[Stage], name: str) -> None:
    """Deletes the stage `name` and all later ones."""
    names = [stage.name for stage in todo]
    if name not in names:
        raise ConfigError(f"--restart-from {name}: there is no such stage; the stages are {', '.join(names)}.")
    for stage in todo[names.index(name) :]:
        shutil.rmtree(stage.folder, ignore_errors=True)


def check(todo: list[Stage]) -> None:
    """Raises `RunError` for a stage that was finished or begun with another configuration or from other inputs."""
    current = {stage.name: _digest(stage.folder) for stage in todo}
    for stage in todo:
        before = manifest.begun(stage.folder)
        if before is None:
            continue
        config, inputs = before
        changed = manifest.changes(config, stage.config)
        if changed:
            raise RunError(
                f"{stage.folder} was made with another configuration ({'; '.join(changed)}). Put that back, "
                f"or give another output_dir (--set output_dir=...), or do this stage and all later ones again: "
                f"--restart-from {stage.name}."
            )
        stale = [name for name, digest in inputs.items() if current.get(name) != digest]
        if stale:
            raise RunError(
                f"{stage.folder} was made from another result of {', '.join(stale)} than the one there now; "
                f"do it and all later stages again: --restart-from {stage.name}."
            )


def _run_with_preparations(loaded: LoadedRecipe, stage: Stage, todo: list[Stage], processes: Processes) -> None:
    if manifest.read(stage.folder) is not None:
        _say(processes, f"{stage.name}: finished before, kept")
        return
    by_name = {each.name: each for each in todo}
    for needed in (by_name[name] for name in stage.depends_on):
        if manifest.read(needed.folder) is None and not needed.launched:
            _run_with_preparations(loaded, needed, todo, processes)
    execute(loaded, stage, todo, processes)


def _inputs(stage: Stage, todo: list[Stage]) -> dict[str, str]:
    """Digests of the stages this one reads; raises `RunError` naming the command for one that is not finished."""
    by_name = {each.name: each for each in todo}
    inputs = {}
    for name in stage.depends_on:
        digest = _digest(by_name[name].folder)
        if digest is None:
            needed = by_name[name]
            raise RunError(
                f"Stage {stage.name} needs {name}, which is not finished; "
                f"run `rstar-trl {needed.command} RECIPE --round {needed.round}` first, or `rstar-trl evolve RECIPE`."
            )
        inputs[name] = digest
    return inputs


def _digest(folder: Path) -> str | None:
    done = manifest.read(folder)
    return done.digest() if done is not None else None


def _note(stage: Stage, inputs: dict[str, str]) -> None:
    """An unfinished stage continues from what it has, which only fits the inputs it was begun with."""
    before = manifest.begun(stage.folder)
    if before is not None and before[1] != inputs:
        shutil.rmtree(stage.folder)
    manifest.begin(stage.folder, stage.config, inputs)


def _report(loaded: LoadedRecipe, todo: list[Stage]) -> str:
    rows = report_rows(todo)
    table = render_table(rows)
    write_json(loaded.folder / "report.json", {"recipe": loaded.recipe.name, "rounds": rows})
    write_text(loaded.folder / "table.txt", table)
    return table


def _say(processes: Processes, line: str) -> None:
    if processes.first:
        print(line, file=sys.stderr, flush=True)
