"""Asks a trained policy one question about one database: a live search, its answer, and the tree as text.

Guarantees: the database is only read, through the same sandbox as training; no gold answer is involved. A model
folder that lies in no run folder is asked with default prompt and search settings, which may not be those it was
trained with.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rstar_trl.config import EngineConfig, ModelConfig, PromptConfig, SandboxConfig, SearchConfig
from rstar_trl.data.databases import Database, dialect_of, name_of
from rstar_trl.data.question import Question
from rstar_trl.errors import ConfigError, EngineError, RunError
from rstar_trl.evolution import manifest
from rstar_trl.evolution.recipe import evaluation_search, load_recipe
from rstar_trl.evolution.stages import ppm_folder
from rstar_trl.search.tree import Tree
from rstar_trl.sql.execution import Execution, SqlJob
from rstar_trl.strict_yaml import Document, build, override

MAX_ROWS = 20
"""Rows of an answer that are printed."""


@dataclass(frozen=True)
class Asked:
    """A policy, its PPM if it has one, and the settings to search with."""

    policy: Path
    ppm: Path | None
    prompt: PromptConfig
    search: SearchConfig
    sandbox: SandboxConfig
    model: ModelConfig
    engine: EngineConfig = field(default_factory=EngineConfig)


def find_model(path: Path | None, assignments: Sequence[str] = ()) -> Asked:
    """Takes a run folder (its newest finished policy), a policy folder inside a run, or any model folder.

    `assignments` (`search.simulations=64`, `engine.kind=vllm`) change the search and the engine; without a path one of
    them must name the model that answers. Raises `RunError` or `EngineError` where there is no model and `ConfigError`
    for a setting that does not exist.
    """
    asked = _find(path) if path is not None else _untrained(Path())
    settings = _with_settings(asked, assignments)
    if path is None and settings.engine.model is None:
        raise ConfigError("Say who answers: --model FOLDER, or --engine with --set engine.model=NAME.")
    return dataclasses.replace(asked, search=settings.search, engine=settings.engine)


def _untrained(path: Path) -> Asked:
    return Asked(path, None, PromptConfig(), SearchConfig(answer="majority"), SandboxConfig(), ModelConfig(str(path)))


def _find(path: Path) -> Asked:
    if (path / "recipe.yaml").exists():
        rounds = sorted((int(folder.name.removeprefix("round-")) for folder in path.glob("round-*")), reverse=True)
        for number in rounds:
            if manifest.read(path / f"round-{number}/policy") is not None:
                return _from_run(path, number)
        raise RunError(
            f"The run folder {path} has no finished policy yet; run `rstar-trl evolve` on its recipe first."
        )
    if not any((path / name).exists() for name in ("config.json", "adapter_config.json")):
        raise EngineError(f"{path} is neither a run folder nor a model folder; give --model one of the two.")
    run, parent = path.resolve().parent.parent, path.resolve().parent.name
    if (run / "recipe.yaml").exists() and parent.startswith("round-"):
        return _from_run(run, int(parent.removeprefix("round-")))
    return _untrained(path)


def ask(asked: Asked, database: str, text: str, seed: int = 0) -> tuple[Tree, Execution | None]:
    """Searches for an answer; returns the tree and the result of its chosen query (None when it chose none)."""
    from rstar_trl.data.schema import introspect
    from rstar_trl.policy.engines import open_engine, open_scorer
    from rstar_trl.policy.prompting import Prompter
    from rstar_trl.search.run import search_questions
    from rstar_trl.sql.sandbox import Sandbox
    from rstar_trl.trajectories.store import read_trees

    # A database that is missing, locked or none at all is named here, before any model is loaded.
    introspect(database, sample_values=0)
    name = name_of(database)
    databases: dict[str, Database] = {name: database}
    with (
        open_engine(asked.engine, asked.model, str(asked.policy), asked.search.max_step_tokens) as engine,
        open_scorer(asked.engine, asked.model, asked.ppm) as scorer,
        Sandbox(asked.sandbox) as sandbox,
        tempfile.TemporaryDirectory() as scratch,
    ):
        out = Path(scratch) / "trees.jsonl"
        search_questions(
            [Question("ask", name, text)],
            engine=engine,
            scorer=scorer,
            sandbox=sandbox,
            prompter=Prompter(databases, asked.prompt, engine.render),
            databases=databases,
            config=asked.search,
            mode="inference",
            seed=seed,
            out=out,
            dialect=dialect_of(database),
        )
        (tree,) = read_trees([out])
        if tree.answer is None:
            return tree, None
        return tree, sandbox.run([SqlJob(database, tree.sql[tree.answer])])[0]


def render_answer(tree: Tree, result: Execution | None) -> str:
    """The steps, the SQL and the first rows of an answer."""
    if tree.answer is None or result is None:
        return "No query that runs was found; give the search more simulations (--set search.simulations=...)."
    parts = ["\n\n".join(tree.steps(tree.answer)), f"SQL: {tree.sql[tree.answer]}"]
    if result.rows is None:
        return "\n\n".join([*parts, f"The query did not run ({result.verdict}): {result.error}"])
    rows = [result.columns, *(tuple("NULL" if v is None else str(v) for v in row) for row in result.rows[:MAX_ROWS])]
    lines = [" | ".join(row) for row in rows]
    if len(result.rows) > MAX_ROWS:
        lines.append(f"... and {len(result.rows) - MAX_ROWS} more rows")
    return "\n\n".join([*parts, "\n".join(lines)])


def render_tree(tree: Tree, width: int = 100) -> str:
    """The search tree, one node a line: visits, mean value, the clause.

    The answer's path is starred, dead ends are crossed; the most visited child comes first; `width` bounds a clause's
    characters.
    """
    chosen = set(tree.path(tree.answer)) if tree.answer is not None else set()
    children: dict[int, list[int]] = {}
    for node in range(1, len(tree)):
        children.setdefault(tree.parent[node], []).append(node)
    lines = [f"{len(tree) - 1} nodes, {tree.generated_tokens} generated tokens, {tree.seconds:.1f} s"]

    def draw(node: int, indent: str) -> None:
        below = sorted(children.get(node, []), key=lambda child: (-tree.visits[child], child))
        for index, child in enumerate(below):
            last = index == len(below) - 1
            mark = "*" if child in chosen else "x" if tree.error[child] else " "
            clause = _clause(tree.text[child])
            clause = clause if len(clause) <= width else clause[: width - 3] + "..."
            branch = "└─" if last else "├─"
            lines.append(f"{indent}{branch}{mark} [{tree.visits[child]:>3} q={tree.q[child]:+.2f}] {clause}")
            draw(child, indent + ("   " if last else "│  "))

    draw(0, "")
    return "\n".join(lines)


def _clause(text: str) -> str:
    return " ".join(line.strip() for line in text.splitlines() if not line.lstrip().startswith("--")) or "(end)"


def _from_run(run: Path, number: int) -> Asked:
    recipe = load_recipe(run / "recipe.yaml").recipe
    ppm = ppm_folder(run, number)
    search = evaluation_search(recipe)
    if ppm is None:
        search = dataclasses.replace(search, answer="majority")
    policy = run / f"round-{number}/policy"
    return Asked(policy, ppm, recipe.prompt, search, recipe.sandbox, recipe.model, recipe.engine)


def _with_settings(asked: Asked, assignments: Sequence[str]) -> _Settings:
    current = {"search": dataclasses.asdict(asked.search), "engine": dataclasses.asdict(asked.engine)}
    return build(_Settings, override(Document("--set", current, {}), list(assignments)))


@dataclass(frozen=True)
class _Settings:
    """What can be set when asking."""

    search: SearchConfig
    engine: EngineConfig
