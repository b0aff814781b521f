"""The documentation is true: commands parse, recipes load, tables match the code, examples run.

Tables of options are compared with the dataclasses, defaults included, so that a changed option fails here until the
guide says so.
"""

from __future__ import annotations

import ast
import dataclasses
import json
import os
import re
import shlex
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from typer.core import TyperGroup

from rstar_trl import config
from rstar_trl.cli import app
from rstar_trl.data.loaders import load_corpus
from rstar_trl.data.question import Question
from rstar_trl.evolution.plan import plan
from rstar_trl.evolution.recipe import load_recipe
from rstar_trl.policy.prompting import Prompter
from rstar_trl.search.tree import Tree
from rstar_trl.sql.gold import prepare
from rstar_trl.sql.sandbox import Sandbox
from rstar_trl.sql.steps import STEP_DELIMITER, parse_step, sql_from_steps
from rstar_trl.trajectories.dataset import FILES, write_datasets
from rstar_trl.trajectories.store import append_tree

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ARITHMETIC = (ROOT / "docs/arithmetic.md").read_text(encoding="utf-8")
GUIDE = (ROOT / "docs/guide.md").read_text(encoding="utf-8")
NOTEBOOK = json.loads((ROOT / "docs/analysis.ipynb").read_text(encoding="utf-8"))
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))

SECTIONS = {
    "Top level": config.Recipe,
    "`data`": config.DataConfig,
    "`prompt`": config.PromptConfig,
    "`sandbox`": config.SandboxConfig,
    "`search`": config.SearchConfig,
    "`trajectories`": config.TrajectoryConfig,
    "`model`": config.ModelConfig,
    "`engine`": config.EngineConfig,
    "`few_shot`": config.FewShotConfig,
    "`evaluation`": config.EvaluationConfig,
    "`rounds`": config.RoundConfig,
}
FRAGMENT_BASE = {"name": "n", "output_dir": "runs/n", "model": {"from_scratch": {"architecture": "llama"}}}


def fences(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def section(heading: str) -> str:
    """The guide from a heading to the next one of the same or a higher level."""
    found = re.search(rf"^(#+) {re.escape(heading)}$", GUIDE, re.MULTILINE)
    assert found, f"the guide has no section {heading}"
    rest = GUIDE[found.end() :]
    end = re.search(rf"^#{{1,{len(found[1])}}} ", rest, re.MULTILINE)
    return rest[: end.start()] if end else rest


def table(text: str, first: str) -> list[list[str]]:
    """The rows of all tables whose first column is called `first`."""
    rows, wanted = [], False
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        wanted = bool(cells) and (wanted or cells[0] == first)
        if wanted and cells[0] != first and set(cells[0]) != {"-"}:
            rows.append(cells)
    return rows


def shell_lines() -> Iterator[list[str]]:
    for block in (*fences(README, "bash"), *fences(GUIDE, "bash")):
        for line in block.replace("\\\n", " ").splitlines():
            yield shlex.split(line, comments=True)


def program_lines() -> list[list[str]]:
    """The arguments of every documented call of the program, directly or through `accelerate launch`."""
    lines = [words[1:] for words in shell_lines() if words[:1] == ["rstar-trl"]]
    launched = [words for words in shell_lines() if words[:2] == ["accelerate", "launch"]]
    for words in launched:
        assert (ROOT / words[words.index("--config_file") + 1]).is_file()
        assert words[words.index("rstar_trl") - 1] == "-m"
    return lines + [words[words.index("rstar_trl") + 1 :] for words in launched]


def parse(arguments: list[str]) -> dict[str, Any]:
    """What the program would be called with; raises the command line's own error for an unknown word."""
    command, rest = typer.main.get_command(app), list(arguments)
    while isinstance(command, TyperGroup):
        name = rest.pop(0)
        assert name in command.commands, f"there is no command {name}"
        command = command.commands[name]
    return dict(command.make_context(command.name, rest).params)


def commands() -> dict[str, Any]:
    root = typer.main.get_command(app)
    assert isinstance(root, TyperGroup)
    found: dict[str, Any] = {}
    for name, command in root.commands.items():
        below = command.commands if isinstance(command, TyperGroup) else {"": command}
        found |= {f"{name} {sub}".strip(): each for sub, each in below.items()}
    return found


def example_tree() -> Tree:
    """The small search whose rows the guide shows."""
    tree = Tree("train-17", "concerts", "concerts\nHow many concerts were in 2014?\n", generated_tokens=61)
    tree.add(0, "-- use the concert\nFROM concert", sql="SELECT * FROM concert", kind="FROM", visits=2)
    for sign, reward in (("=", 1.0), (">", -1.0)):
        clause, end = f"WHERE year {sign} 2014", {"terminal": True, "reward": reward}
        found = {"visits": 1, "q": reward}
        step = tree.add(1, f"-- keep rows by year\n{clause}", sql=f"SELECT * FROM concert {clause}", **found)
        tree.add(
            step, "-- show the count\nSELECT COUNT(*)", sql=f"SELECT COUNT(*) FROM concert {clause}", **found | end
        )
    return tree


def make_database(path: Path, seats: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path)
    connection.executescript(f"""
        create table stadium(id integer primary key, name text, city text{seats});
        create table concert(id integer primary key, name text, year integer,
                             stadium_id integer references stadium(id));
        insert into stadium(id, name, city) values (1, 'Arena', 'Oslo'), (2, 'Dome', 'Lyon');
        insert into concert values (1, 'Spring', 2014, 1), (2, 'Autumn', 2015, 2);
    """)
    connection.close()
    return path


# --- commands --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", program_lines(), ids=" ".join)
def test_documented_command_parses_and_its_recipe_takes_its_settings(arguments: list[str]) -> None:
    given = parse(arguments)
    path = given.get("recipe") or given.get("config")
    if path is None:
        return
    loaded = load_recipe(ROOT / path, given["assignments"] or [])
    stages = plan(loaded.recipe)
    if given.get("restart_from"):
        assert given["restart_from"] in {stage.name for stage in stages}
    if "number" in given:
        assert (arguments[0], given["number"]) in {(stage.kind, stage.round) for stage in stages}


def test_a_command_line_that_is_wrong_is_noticed() -> None:
    """The check above is worth something: an option that does not exist fails."""
    with pytest.raises(Exception, match="No such option: --fast"):
        parse(["evolve", "recipes/quickstart.yaml", "--fast"])


def test_documented_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = [words[1] for words in shell_lines() if words[:1] == ["make"]]
    assert {"demo", "test"} <= set(targets)
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


def test_every_command_and_option_is_in_the_guide() -> None:
    found = {}
    for cell, _, options in table(section("Commands"), "command"):
        words = cell.strip("`").split()
        found[" ".join(word for word in words if word.islower())] = set(re.findall(r"`(--[\w-]+)`", options))
    expected = {
        name: {option for each in command.params for option in each.opts if option.startswith("--")}
        for name, command in commands().items()
    }
    assert found == expected


# --- recipes and options ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(ROOT)))
def test_recipe_opens_with_needs_costs_and_its_launch_line(path: Path) -> None:
    head = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        head.append(line)
    text = "\n".join(head)
    assert all(word in text for word in ("# Needs:", "# Costs:", "# Run:"))
    launch = re.search(r"^# Run:\s+(?:accelerate launch .* -m rstar_trl|rstar-trl) (.*)$", text, re.MULTILINE)
    assert launch, f"{path} has no launch line"
    given = parse(shlex.split(launch[1]))
    assert ROOT / given["recipe"] == path
    load_recipe(path, given["assignments"] or [])


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(ROOT)))
def test_trainers_take_every_training_section_of_a_recipe(path: Path, tmp_path: Path) -> None:
    """Loading checks fields one by one; the trainers' configs also know which do not go together."""
    from trl import SFTConfig

    from rstar_trl.training.common import arguments
    from rstar_trl.training.ppm_config import PPMConfig
    from rstar_trl.training.sft_trainer import TreeSFTConfig

    classes = {"pretrain": SFTConfig, "sft": TreeSFTConfig, "ppm": PPMConfig}
    for stage in plan(load_recipe(path).recipe):
        for name in classes.keys() & stage.config.keys():
            on_cpu = {"use_cpu": True, "bf16": False}
            arguments(classes[name], stage.config[name] | on_cpu, tmp_path, 0, False)


@pytest.mark.parametrize("text", fences(GUIDE, "yaml") + fences(README, "yaml"), ids=lambda text: text.split("\n")[0])
def test_yaml_in_the_documentation_loads(text: str, tmp_path: Path) -> None:
    """A whole recipe as it stands; a fragment as part of a minimal one."""
    (tmp_path / "accelerate_configs").symlink_to(ROOT / "accelerate_configs")
    path = tmp_path / "recipes/recipe.yaml"
    path.parent.mkdir()
    data = yaml.safe_load(text)
    path.write_text(text if "name" in data else yaml.safe_dump({**FRAGMENT_BASE, **data}), encoding="utf-8")
    load_recipe(path)


@pytest.mark.parametrize("heading", SECTIONS)
def test_every_config_field_is_in_the_guide_with_its_default(heading: str) -> None:
    assert _documented(section(heading)) == _defaults(SECTIONS[heading])


def test_every_config_class_has_its_section() -> None:
    classes = {cls for cls in vars(config).values() if dataclasses.is_dataclass(cls)}
    assert set(SECTIONS.values()) == classes


def test_training_fields_in_the_guide_exist() -> None:
    from trl import RewardConfig, SFTConfig

    from rstar_trl.training.ppm_config import PPMConfig
    from rstar_trl.training.sft_trainer import TreeSFTConfig

    heading = "`pretrain`, `sft` and `ppm`"
    known = {field.name for field in dataclasses.fields(RewardConfig)}
    _, *tables = re.split("^Fields that `(?:TreeSFTConfig|PPMConfig)` adds", section(heading), flags=re.MULTILINE)
    for text, own, base in zip(tables, (TreeSFTConfig, PPMConfig), (SFTConfig, RewardConfig), strict=True):
        theirs = {field.name for field in dataclasses.fields(base)}
        expected = {name: value for name, value in _defaults(own).items() if name not in theirs}
        assert _documented(text) == expected
    named = {name for cells in table(section(heading), "field") for name in re.findall(r"`(\w+)`", cells[0])}
    assert named and named <= known & {field.name for field in dataclasses.fields(SFTConfig)}


def _documented(text: str) -> dict[str, Any]:
    rows = table(text, "key")
    return {key.strip("`"): yaml.safe_load(cell.strip("`")) for key, cell, _ in rows}


def _defaults(cls: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        value = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        value = "required" if value is dataclasses.MISSING else value
        found[field.name] = "section" if dataclasses.is_dataclass(value) else value
    return found


# --- data, prompts, rows ---------------------------------------------------------------------------------------------


def test_example_questions_load_and_none_is_quarantined(tmp_path: Path) -> None:
    (text,) = fences(GUIDE, "jsonl")
    (tmp_path / "train.jsonl").write_text(text)
    (tmp_path / "eval.jsonl").write_text(text.splitlines()[0])
    make_database(tmp_path / "databases/concerts.sqlite")
    make_database(tmp_path / "other/concerts.sqlite", seats=", seats integer")
    corpus = load_corpus(config.DataConfig(source="jsonl", path=str(tmp_path)), tmp_path)
    assert set(corpus.databases) == {"concerts", "more_concerts"}
    assert [question.id for question in corpus.train] == ["train-0", "train-1", "train-2", "arena-1"]
    with Sandbox(config.SandboxConfig()) as sandbox:
        prepared = prepare(corpus, sandbox, 1.0, 0)
    assert not prepared.quarantine and len(prepared.train) == 4
    written = {field for line in text.splitlines() for field in json.loads(line)}
    assert written == {cells[0].strip("`") for cells in table(section("Your own data"), "field")}


def test_example_prompt_and_steps_are_what_the_code_makes(tmp_path: Path) -> None:
    prompt, answer = fences(section("Prompts and steps"), "text")
    databases = {"concerts": make_database(tmp_path / "concerts.sqlite")}
    question = Question("q", "concerts", prompt.splitlines()[-1])
    assert Prompter(databases, config.PromptConfig(instructions=False)).prompt(question) == prompt
    sql = sql_from_steps(tuple(parse_step(step) for step in answer.strip().split(STEP_DELIMITER)))
    assert sqlite3.connect(databases["concerts"]).execute(sql).fetchall() == [(1,)]


@pytest.mark.parametrize("name", FILES)
def test_example_row_is_what_the_code_writes(name: str, tmp_path: Path) -> None:
    write_datasets([example_tree()], tmp_path, config.TrajectoryConfig())
    written = json.loads((tmp_path / f"{name}.jsonl").read_text().splitlines()[0])
    (shown,) = map(json.loads, fences(section(f"`{name}.jsonl`"), "json"))
    if name == "trees":
        tree, part = json.loads(written.pop("tree")), json.loads(shown.pop("tree"))
        assert part == {column: tree[column] for column in part}
        assert all(f"`{column}`" in section("`trees.jsonl`") for column in tree)
    assert shown == written


# --- Python ----------------------------------------------------------------------------------------------------------


def test_trainer_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The README's trainers on a random model and the example search, then the guide's scoring with that PPM."""
    import datasets

    from rstar_trl.policy.from_scratch import build_base

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    folder = Path("runs/quickstart/round-1")
    spec = {"architecture": "llama", "vocab_size": 300, "hidden_size": 32, "intermediate_size": 64}
    heads = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    build_base(spec | heads, [example_tree().prompt], folder / "policy", seed=0)
    write_datasets([example_tree()], folder / "data", config.TrajectoryConfig())
    (trainers,) = fences(README, "python")
    exec(compile(trainers, "README.md", "exec"), {})
    assert json.loads(Path("my-ppm/config.json").read_text())["architectures"] == ["LlamaForSequenceClassification"]
    assert Path("my-policy/model.safetensors").exists()
    Path("my-ppm").rename(folder / "ppm")
    found: dict[str, Any] = {}
    append_tree(folder / "search/trees-0.jsonl", example_tree())
    for text in (*fences(section("The PPM"), "python"), *fences(section("Packed trajectories"), "python")):
        exec(compile(text, "guide.md", "exec"), found)
    assert callable(found["score"]) and found["tree"].text[2].startswith("-- show")


def test_the_arithmetic_example_learns_and_imports_nothing_of_sql(tmp_path: Path) -> None:
    """Run as a reader would, in a process of its own."""
    script = "\n".join(fences(ARITHMETIC, "python")) + (
        "\nimport json, sys\n"
        "used = [name for name in sys.modules if name.startswith('rstar_trl.sql')]\n"
        "open('found.json', 'w').write(json.dumps([metrics['eval_accuracy'], len(scores), used]))\n"
    )
    (tmp_path / "script.py").write_text(script)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    accuracy, scores, used = json.loads((tmp_path / "found.json").read_text())
    assert accuracy > 0.8 and scores == 4 and used == []


@pytest.mark.parametrize("text", fences(GUIDE, "python") + fences(README, "python"))
def test_python_in_the_documentation_compiles(text: str) -> None:
    """Those that need the network are not run."""
    compile(text, "documentation", "exec")


def test_notebook_is_valid_empty_and_imports_only_what_a_reader_has() -> None:
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    cells = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
    assert cells and all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    assert len({cell["id"] for cell in NOTEBOOK["cells"]}) == len(NOTEBOOK["cells"])
    imported = set()
    for node in ast.walk(ast.parse("\n".join("".join(cell["source"]) for cell in cells))):
        if isinstance(node, ast.Import):
            imported |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(str(node.module).split(".")[0])
    assert imported - set(sys.stdlib_module_names) == {"matplotlib", "rstar_trl"}


def test_notebook_runs_on_a_run_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib", reason="the notebook needs matplotlib, which is no dependency").use("Agg")
    accuracy = {"greedy": {"execution_accuracy": 0.25}, "mcts": {"execution_accuracy": 0.5}}
    rows = [
        {"round": number, "solved": number or None, "train_questions": 2, "methods": accuracy} for number in (0, 1, 2)
    ]
    (tmp_path / "report.json").write_text(json.dumps({"recipe": "tiny", "rounds": rows}))
    for number in (1, 2):
        file = tmp_path / f"round-{number}/search/trees-0.jsonl"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(example_tree().record()) + '\n{"torn')
    monkeypatch.setenv("RSTAR_RUN", str(tmp_path))
    namespace: dict[str, Any] = {}
    for cell in NOTEBOOK["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), namespace)
    printed = capsys.readouterr().out
    assert "round 2: 1 trees, 1 solved, 61 generated tokens" in printed and "round 1: ok 100.0%" in printed


# --- links -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["README.md", "docs/guide.md"])
def test_links_lead_somewhere(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    anchors = {
        re.sub(r"[^\w\- ]", "", line).replace(" ", "-").lower() for line in re.findall(r"^#+ (.*)$", text, re.M)
    }
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("#"):
            assert target[1:] in anchors, f"{name} has no heading {target}"
        elif not target.startswith("http"):
            assert (ROOT / name).parent.joinpath(target).exists(), f"{name} links to {target}"
    paths = re.findall(r"`((?:recipes|accelerate_configs|docs|tests)/[\w./-]+)`", text)
    assert all((ROOT / path).exists() for path in paths), f"{name} names a file that does not exist"


def test_readme_keeps_a_place_for_the_results() -> None:
    assert README.count("<!-- results -->") == README.count("<!-- /results -->") == 1
    assert README.index("<!-- results -->") < README.index("<!-- /results -->")
