"""The plan: order, what a stage depends on, and the dry run's text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rstar_trl.evolution.dry_run import describe
from rstar_trl.evolution.plan import Stage, plan
from rstar_trl.evolution.recipe import load_recipe

WriteRecipe = Callable[..., Path]


def stages_of(write_recipe: WriteRecipe, *assignments: str) -> dict[str, Stage]:
    return {stage.name: stage for stage in plan(load_recipe(write_recipe(), assignments).recipe)}


def test_stages_come_after_what_they_read(write_recipe: WriteRecipe) -> None:
    names = list(stages_of(write_recipe))
    assert names[:5] == ["data", "base", "round-0/data", "round-0/policy", "round-0/eval"]
    assert names[5:10] == [f"round-1/{name}" for name in ("search", "data", "policy", "ppm", "eval")]
    for stage in stages_of(write_recipe).values():
        assert all(names.index(needed) < names.index(stage.name) for needed in stage.depends_on)


def test_pretrained_model_has_no_base_stage(write_recipe: WriteRecipe) -> None:
    stages = stages_of(write_recipe, "model={name_or_path: org/name}")
    assert "base" not in stages and stages["round-1/policy"].depends_on == ("round-1/data",)


def test_later_round_depends_on_earlier_ppm_and_searches(write_recipe: WriteRecipe) -> None:
    needed = stages_of(write_recipe)["round-2/search"].depends_on
    assert set(needed) == {"data", "round-1/policy", "round-1/ppm", "round-1/search"}


def test_init_previous_trains_from_the_last_policy(write_recipe: WriteRecipe) -> None:
    stages = stages_of(write_recipe, "rounds=[{guide: reward, init: previous}]")
    assert stages["round-1/policy"].depends_on == ("round-1/data", "round-0/policy")


def test_a_ppm_may_start_from_the_cold_start(write_recipe: WriteRecipe) -> None:
    rounds = "rounds=[{guide: reward}, {guide: ppm, ppm_init: cold_start}]"
    stages = stages_of(write_recipe, rounds)
    assert stages["round-1/ppm"].depends_on == ("round-1/data", "round-1/policy")
    assert stages["round-2/ppm"].depends_on == ("round-2/data", "round-0/policy")


def test_speed_settings_are_not_part_of_a_stage(write_recipe: WriteRecipe) -> None:
    plain = stages_of(write_recipe)
    faster = stages_of(write_recipe, "sandbox.workers=8", "search.trees_in_flight=7")
    assert {name: stage.config for name, stage in plain.items()} == {n: s.config for n, s in faster.items()}


def test_a_round_override_changes_that_round_alone(write_recipe: WriteRecipe) -> None:
    plain = stages_of(write_recipe)
    other = stages_of(write_recipe, "rounds=[{guide: reward}, {guide: ppm, only: unsolved, search: {simulations: 9}}]")
    assert [name for name in plain if plain[name].config != other[name].config] == ["round-2/search"]


def test_each_search_has_its_own_seed_and_keeps_it(write_recipe: WriteRecipe) -> None:
    stages = stages_of(write_recipe)
    assert stages["round-1/search"].seed != stages["round-2/search"].seed
    assert stages["round-1/search"].seed == stages_of(write_recipe)["round-1/search"].seed
    assert stages["round-1/search"].seed != stages_of(write_recipe, "seed=1")["round-1/search"].seed


def test_evaluation_compares_all_methods_in_the_last_round_only(write_recipe: WriteRecipe) -> None:
    stages = stages_of(write_recipe, "evaluation.rounds=last")
    assert stages["round-1/eval"].config["evaluation"]["methods"] == ["greedy"]
    assert "mcts" in stages["round-2/eval"].config["evaluation"]["methods"]


def test_dry_run_prints_stages_launch_lines_counts_and_estimate(write_recipe: WriteRecipe) -> None:
    path = write_recipe()
    (path.parent / "two.yaml").write_text("use_cpu: true\nnum_processes: 2\n")
    loaded = load_recipe(path, ["accelerate_config=two.yaml", "search.simulations=3", "data.train_size=50"])
    text = describe(loaded)
    assert (
        f"accelerate launch --config_file {path.parent}/two.yaml -m rstar_trl search --config {path} --round 2 "
        "--set accelerate_config=two.yaml --set search.simulations=3 --set data.train_size=50"
    ) in text
    assert "Questions: 50 to train (5 keep their SQL)" in text
    assert all(stage.name in text for stage in plan(loaded.recipe))
    assert "disk" in text and "2 CPU process(es)" in text
    assert not loaded.folder.exists()


def test_dry_run_works_without_the_data(write_recipe: WriteRecipe) -> None:
    text = describe(load_recipe(write_recipe(), ["data={source: bird, path: no/such/folder}"]))
    assert "no/such/folder does not exist" in text and "Estimate (" in text


def test_a_cold_start_by_a_stronger_model_searches_first(write_recipe: WriteRecipe) -> None:
    few_shot = ("bootstrap=few_shot", "few_shot={model: org/big, search: {simulations: 5}}")
    stages = stages_of(write_recipe, *few_shot)
    assert list(stages)[:4] == ["data", "base", "round-0/search", "round-0/data"]
    searched = stages["round-0/search"]
    assert searched.launched and searched.config["search"]["simulations"] == 5
    assert "round-0/search" in stages["round-0/data"].depends_on
    assert "round-0/search" not in stages["round-1/data"].depends_on
    text = describe(load_recipe(write_recipe(), few_shot))
    assert "learns from org/big" in text and "search --config" in text
