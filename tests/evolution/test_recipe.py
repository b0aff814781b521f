"""A recipe's mistakes are all found, each with file and line, before anything runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from rstar_trl.errors import ConfigError
from rstar_trl.evolution.recipe import evaluation_search, load_recipe, round_search

WriteRecipe = Callable[..., Path]

ROOT = Path(__file__).parents[2]


def problems(path: Path, *assignments: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_recipe(path, assignments)
    return [problem.removeprefix(f"{path}:") for problem in caught.value.problems]


def line_of(path: Path, text: str) -> str:
    return str(1 + next(i for i, line in enumerate(path.read_text().splitlines()) if text in line))


def test_every_mistake_is_listed_with_its_line_and_a_suggestion(write_recipe: WriteRecipe, minimal: str) -> None:
    path = write_recipe(
        minimal.replace("simulations: 32", "simulation: 32")
        + "serch: {}\nseed: many\nsearch:\n  c_puct: high\nevaluation:\n  search:\n    max_dept: 3\n"
        + "sft:\n  learning_rat: 1\n  max_steps: soon\nppm:\n  weighte: true\n"
    )
    found = problems(path)
    expected = [
        ("serch:", "did you mean `search`?"),
        ("seed:", "`seed` must be a whole number"),
        ("c_puct:", "`search.c_puct` must be a number"),
        ("simulation: 32", "did you mean `simulations`?"),
        ("max_dept", "did you mean `max_depth`?"),
        ("learning_rat", "did you mean `learning_rate`?"),
        ("max_steps", "must be a whole number"),
        ("weighte", "did you mean `weighted`?"),
    ]
    for text, sentence in expected:
        line = line_of(path, text)
        assert any(each.startswith(f"{line}: ") and sentence in each for each in found), (text, found)
    assert len(found) == len(expected)


def test_first_round_cannot_be_guided_by_a_ppm(write_recipe: WriteRecipe, minimal: str) -> None:
    path = write_recipe(minimal.replace("guide: reward", "guide: ppm", 1))
    (found,) = problems(path)
    assert found.startswith(line_of(path, "guide: ppm")) and "write `guide: reward`" in found


def test_guide_left_out_of_the_first_round_is_found_too(write_recipe: WriteRecipe, minimal: str) -> None:
    (found,) = problems(write_recipe(minimal.replace("- guide: reward", "- init: base", 1)))
    assert "round 1 cannot have `guide: ppm`" in found


@pytest.mark.parametrize(
    ("addition", "sentence"),
    [
        ("accelerate_config: nowhere.yaml\n", "nowhere.yaml does not exist"),
        ("data:\n  source: spider\n", "`data.path` is needed"),
        ("data:\n  label_fraction: 0\n", "`data.label_fraction` must be above 0"),
        ("name: twice\n", "given twice"),
    ],
)
def test_settings_that_cannot_work_are_found(
    write_recipe: WriteRecipe, minimal: str, addition: str, sentence: str
) -> None:
    assert any(sentence in each for each in problems(write_recipe(minimal + addition)))


def test_model_needs_an_architecture_or_an_existing_folder(write_recipe: WriteRecipe, minimal: str) -> None:
    (found,) = problems(write_recipe(minimal.replace("architecture: qwen2", "num_hidden_layers: 1")))
    assert "needs `architecture`" in found
    (found,) = problems(write_recipe(), "model={name_or_path: ./no/such/model}")
    assert "there is no folder ./no/such/model" in found


def test_assignments_replace_values_and_are_checked(write_recipe: WriteRecipe) -> None:
    path = write_recipe()
    loaded = load_recipe(path, ["search.simulations=5", "sft.learning_rate=1e-3"])
    assert loaded.recipe.search.simulations == 5
    # YAML 1.1 reads 1e-3 as text; a trainer must get a number.
    assert loaded.recipe.sft == {"learning_rate": 0.001}
    assert "did you mean `simulations`?" in problems(path, "search.simulatons=5")[0]


def test_overrides_apply_to_their_round_and_to_evaluation_only(write_recipe: WriteRecipe) -> None:
    recipe = load_recipe(write_recipe(), ["evaluation.search={num_candidates: 9}"]).recipe
    assert [round_search(recipe, number).simulations for number in (1, 2)] == [16, 32]
    assert evaluation_search(recipe).num_candidates == 9
    assert round_search(recipe, 1).num_candidates == recipe.search.num_candidates == 4


def test_accelerate_config_is_relative_to_the_recipe(write_recipe: WriteRecipe, minimal: str, tmp_path: Path) -> None:
    (tmp_path / "cpu.yaml").write_text("use_cpu: true\n")
    loaded = load_recipe(write_recipe(minimal + "accelerate_config: cpu.yaml\n"))
    assert loaded.accelerate_config == tmp_path / "cpu.yaml"


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").rglob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_recipes_load_and_open_with_needs_costs_and_launch_line(path: Path) -> None:
    load_recipe(path)
    head = path.read_text().split("\nname:")[0]
    assert head.startswith("# ") and "# Needs: " in head and "# Costs: " in head
    assert f" evolve {path.relative_to(ROOT)}" in head


def test_the_ppm_may_be_trained_on_trees(write_recipe: WriteRecipe, minimal: str) -> None:
    path = write_recipe(minimal + "ppm: {mode: tree, consistency_coefficient: 1e-2}\n")
    assert load_recipe(path).recipe.ppm == {"mode": "tree", "consistency_coefficient": 0.01}
    (problem,) = problems(write_recipe(minimal + "ppm: {mode: trees}\n"))
    assert "must be one of pairs, tree" in problem and "did you mean `tree`?" in problem
