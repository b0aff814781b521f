"""Skipping, resuming and refusing, with stages that only write a line of text."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from rstar_trl.errors import ConfigError, RunError
from rstar_trl.evolution import manifest, rounds, stages
from rstar_trl.evolution.launch import Processes
from rstar_trl.evolution.plan import Stage
from rstar_trl.evolution.recipe import LoadedRecipe, load_recipe

WriteRecipe = Callable[..., Path]

NAMES = [
    *("data", "base", "round-0/data", "round-0/policy", "round-0/eval"),
    *(f"round-{number}/{name}" for number in (1, 2) for name in ("search", "data", "policy", "ppm", "eval")),
]


class Recorder:
    """Stage functions that note their name and write one row; `fail_at` breaks off in the middle of a stage."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.fail_at: str | None = None
        self.text = "same"

    def __call__(self, loaded: LoadedRecipe, stage: Stage, processes: Processes) -> dict[str, object]:
        if stage.name == self.fail_at:
            raise KeyboardInterrupt
        self.ran.append(stage.name)
        (stage.folder / "rows.jsonl").write_text(json.dumps({"row": self.text}) + "\n")
        return {"greedy": {"execution_accuracy": 0.5}} if stage.kind == "evaluate" else {"solved_so_far": 3}

    def take(self) -> list[str]:
        ran, self.ran = self.ran, []
        return ran


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    found = Recorder()
    monkeypatch.setattr(stages, "RUN", dict.fromkeys(stages.RUN, found))
    return found


def test_run_does_every_stage_once_and_ends_with_its_table(write_recipe: WriteRecipe, recorder: Recorder) -> None:
    loaded = load_recipe(write_recipe())
    table = rounds.evolve(loaded, in_process=True)
    assert recorder.take() == NAMES
    assert table.count("50.0") == 3 and (loaded.folder / "table.txt").read_text() == table
    assert len(json.loads((loaded.folder / "report.json").read_text())["rounds"]) == 3
    rounds.evolve(loaded, in_process=True)
    assert recorder.take() == []


def test_interrupted_run_goes_on_with_the_stage_it_was_in(write_recipe: WriteRecipe, recorder: Recorder) -> None:
    loaded = load_recipe(write_recipe())
    recorder.fail_at = "round-1/policy"
    with pytest.raises(KeyboardInterrupt):
        rounds.evolve(loaded, in_process=True)
    assert recorder.take() == NAMES[:7]
    left = loaded.folder / "round-1/policy/checkpoint"
    left.write_text("half")
    recorder.fail_at = None
    rounds.evolve(loaded, in_process=True)
    assert recorder.take() == NAMES[7:]
    assert left.exists()


def test_changed_configuration_is_refused_by_key(write_recipe: WriteRecipe, recorder: Recorder) -> None:
    rounds.evolve(load_recipe(write_recipe()), in_process=True)
    recorder.take()
    with pytest.raises(
        RunError, match=r"search\.simulations: 16 -> 20; search\.c_puct: 1\.4 -> 2\.0|c_puct"
    ) as caught:
        rounds.evolve(load_recipe(write_recipe(), ["search.simulations=20", "search.c_puct=2"]), in_process=True)
    assert "search.simulations: 16 -> 20" in str(caught.value) and "--restart-from" in str(caught.value)
    assert recorder.take() == []


def test_changed_configuration_is_refused_in_the_middle_of_a_stage(
    write_recipe: WriteRecipe, recorder: Recorder
) -> None:
    recorder.fail_at = "round-1/search"
    with pytest.raises(KeyboardInterrupt):
        rounds.evolve(load_recipe(write_recipe()), in_process=True)
    with pytest.raises(RunError, match=r"prompt\.value_hints|search\.max_depth: 16 -> 9"):
        rounds.evolve(load_recipe(write_recipe(), ["search.max_depth=9"]), in_process=True)


def test_speed_settings_may_change_on_resume(write_recipe: WriteRecipe, recorder: Recorder) -> None:
    rounds.evolve(load_recipe(write_recipe()), in_process=True)
    recorder.take()
    rounds.evolve(load_recipe(write_recipe(), ["sandbox.workers=3", "search.trees_in_flight=4"]), in_process=True)
    assert recorder.take() == []


def test_restart_from_does_that_stage_and_all_later_ones_again(write_recipe: WriteRecipe, recorder: Recorder) -> None:
    rounds.evolve(load_recipe(write_recipe()), in_process=True)
    recorder.take()
    changed = load_recipe(write_recipe(), ["trajectories.top_k=1"])
    rounds.evolve(changed, in_process=True, restart_from="round-1/data")
    assert recorder.take() == NAMES[6:]
    with pytest.raises(ConfigError, match="no such stage; the stages are data, base"):
        rounds.evolve(changed, in_process=True, restart_from="round-9/data")


def test_results_from_other_inputs_are_refused(write_recipe: WriteRecipe, recorder: Recorder) -> None:
    loaded = load_recipe(write_recipe())
    rounds.evolve(loaded, in_process=True)
    (loaded.folder / "round-1/data/manifest.json").unlink()
    with pytest.raises(RunError, match=r"round-1/policy was made from another result of round-1/data"):
        rounds.evolve(loaded, in_process=True)


def test_run_folder_of_another_recipe_is_refused(write_recipe: WriteRecipe, recorder: Recorder) -> None:
    rounds.evolve(load_recipe(write_recipe()), in_process=True)
    before = (load_recipe(write_recipe()).folder / "recipe.yaml").read_bytes()
    with pytest.raises(RunError, match="holds a run of the recipe `tiny`, not of `other`"):
        rounds.evolve(load_recipe(write_recipe(), ["name=other"]), in_process=True)
    assert (load_recipe(write_recipe()).folder / "recipe.yaml").read_bytes() == before


def test_manifest_tells_what_a_stage_was_made_from(write_recipe: WriteRecipe, recorder: Recorder) -> None:
    loaded = load_recipe(write_recipe())
    rounds.evolve(loaded, in_process=True)
    data, policy = (manifest.read(loaded.folder / f"round-1/{name}") for name in ("data", "policy"))
    assert data is not None and policy is not None
    assert policy.inputs["round-1/data"] == data.digest()
    assert set(policy.outputs) == {"rows.jsonl"} and policy.seed == 0 and "torch" in policy.versions


def test_resolved_recipe_in_the_run_folder_loads_again(write_recipe: WriteRecipe, recorder: Recorder) -> None:
    path = write_recipe()
    (path.parent / "cpu.yaml").write_text("use_cpu: true\n")
    loaded = load_recipe(path, ["accelerate_config=cpu.yaml", "sft.max_steps=3"])
    rounds.evolve(loaded, in_process=True)
    again = load_recipe(loaded.folder / "recipe.yaml")
    assert again.recipe.sft == {"max_steps": 3} and again.recipe.rounds == loaded.recipe.rounds
    assert again.accelerate_config == loaded.accelerate_config


def test_stage_alone_prepares_its_data_but_not_its_models(write_recipe: WriteRecipe, recorder: Recorder) -> None:
    loaded = load_recipe(write_recipe())
    with pytest.raises(RunError, match=r"needs round-0/policy, which is not finished; run `rstar-trl sft"):
        rounds.run_alone(loaded, "search", 1)
    recorder.take()
    rounds.run_alone(loaded, "sft", 0)
    assert recorder.take()[-2:] == ["round-0/data", "round-0/policy"]
    rounds.run_alone(loaded, "search", 1)
    assert recorder.take() == ["round-1/search"]
    with pytest.raises(ConfigError, match=r"Round 7 has no search stage; .* in rounds \[1, 2\]"):
        rounds.run_alone(loaded, "search", 7)


def test_changes_name_nested_keys() -> None:
    old = {"search": {"simulations": 16, "gone": 1}, "list": [1]}
    new = {"search": {"simulations": 32, "new": {"a": 2}}, "list": [1]}
    assert manifest.changes(old, new) == [
        "search.simulations: 16 -> 32",
        "search.gone: 1 -> (none)",
        "search.new: (none) -> {'a': 2}",
    ]


def test_config_survives_json(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    """A tuple or a None that JSON changes would make a finished stage look changed."""
    for stage in rounds.plan(load_recipe(write_recipe()).recipe):
        manifest.begin(tmp_path, stage.config, {})
        assert manifest.begun(tmp_path) == (stage.config, {})
        assert yaml.safe_load(yaml.safe_dump(stage.config)) == stage.config
