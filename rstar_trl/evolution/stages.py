"""What each stage does: one thin function per kind, wiring the layers below.

Every function takes the recipe, its stage and this process's place among the others, and returns the stage's metrics
(rank 0's are kept). Guarantees: a stage killed half way goes on where it stopped when it is called again; model memory
is freed between stages that share a process. Manifests are written by `rounds`, not here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rstar_trl.config import SearchConfig
from rstar_trl.errors import DataError, RunError
from rstar_trl.evolution import manifest
from rstar_trl.evolution.interrupt import draining
from rstar_trl.evolution.launch import Processes
from rstar_trl.evolution.plan import Kind, Stage
from rstar_trl.evolution.recipe import LoadedRecipe, evaluation_search, few_shot_search, round_search
from rstar_trl.evolution.run_data import Metrics, RunData, load_data, prepare_data, sample
from rstar_trl.io import read_jsonl, write_jsonl
from rstar_trl.progress import Progress

if TYPE_CHECKING:
    from rstar_trl.policy.few_shot import Example
    from rstar_trl.policy.prompting import Prompter
    from rstar_trl.trajectories.values import ValueCopies


def build_base(loaded: LoadedRecipe, stage: Stage, processes: Processes) -> Metrics:
    """Builds the from-scratch policy; its tokenizer is trained on every prompt and on the labelled SQL."""
    from rstar_trl.policy.bootstrap import bootstrap_rows
    from rstar_trl.policy.from_scratch import build_base as build
    from rstar_trl.policy.prompting import Prompter

    data = load_data(loaded.folder / "data")
    prompter = Prompter(data.databases, loaded.recipe.prompt)
    labelled = [question for question in data.train if question.gold_sql is not None]
    rows = bootstrap_rows(labelled, lambda question: "", data.dialect)
    texts = [*map(prompter.prompt, data.train), *(row["completion"] for row in rows)]
    assert loaded.recipe.model.from_scratch is not None
    build(loaded.recipe.model.from_scratch, texts, stage.folder, stage.seed)
    return {"texts": len(texts)}


def pretrain(loaded: LoadedRecipe, stage: Stage, processes: Processes) -> Metrics:
    """The from-scratch base reads every training prompt twice over; no label is used."""
    from rstar_trl.policy.prompting import Prompter
    from rstar_trl.training.sft import run_sft

    data = load_data(loaded.folder / "data")
    prompter = Prompter(data.databases, loaded.recipe.prompt)
    rows = stage.folder / "prompts.jsonl"
    if processes.first:
        prompts = [prompter.prompt(question) for question in data.train]
        write_jsonl(rows, ({"prompt": prompt, "completion": prompt} for prompt in prompts))
    processes.barrier()
    settings = {"completion_only_loss": False, **stage.config["pretrain"]}
    metrics = run_sft(str(loaded.folder / "base"), rows, stage.folder, settings, None, stage.seed)
    release_memory()
    return metrics


def bootstrap(loaded: LoadedRecipe, stage: Stage, processes: Processes) -> Metrics:
    """The cold start's training rows: the labelled gold SQL, step by step, or a stronger model's right answers."""
    from rstar_trl.policy.bootstrap import bootstrap_rows
    from rstar_trl.trajectories.dataset import reprompted
    from rstar_trl.trajectories.store import read_trees

    data = load_data(loaded.folder / "data")
    prompter = _prompter(loaded, data)
    labelled = [question for question in data.train if question.gold_sql is not None]
    if loaded.recipe.bootstrap == "few_shot":
        trees = read_trees(_tree_files(loaded.folder / "round-0/search"))
        prompts = {question.id: prompter.prompt(question) for question in data.train}
        rows = reprompted(trees, loaded.recipe.trajectories.top_k, prompts)
        if not rows:
            raise DataError(
                f"{loaded.recipe.few_shot.model} answered none of {len(trees)} questions right, so there is nothing "
                "to start from; give `few_shot` more simulations or another model, or write `bootstrap: labels`."
            )
    else:
        rows = bootstrap_rows(labelled, prompter.prompt, data.dialect)
    copies = _value_copies(loaded, data, prompter, rows, stage.seed).completions()
    write_jsonl(stage.folder / "sft.jsonl", [*rows, *copies])
    return {"rows": len(rows), "copies": len(copies), "labelled": len(labelled)}


def _prompter(loaded: LoadedRecipe, data: RunData) -> Prompter:
    """Prompts as the recipe's base model reads them."""
    from rstar_trl.policy.prompting import Prompter
    from rstar_trl.policy.tokens import load_tokenizer, renderer

    tokenizer = load_tokenizer(base_model(loaded), loaded.recipe.model.trust_remote_code)
    return Prompter(data.databases, loaded.recipe.prompt, renderer(tokenizer))


def _value_copies(
    loaded: LoadedRecipe, data: RunData, prompter: Prompter, rows: Sequence[dict[str, Any]], seed: int
) -> ValueCopies:
    """The copies of prompt-completion rows with other values that the recipe asks for."""
    from rstar_trl.sql.sandbox import Sandbox
    from rstar_trl.trajectories.values import ValueCopies, value_copies

    count = loaded.recipe.trajectories.value_copies
    if not count:
        return ValueCopies((), prompter)
    questions = {question.id: question for question in data.train}
    with Sandbox(loaded.recipe.sandbox) as sandbox:
        return value_copies(rows, questions, count, prompter, sandbox, seed, data.eval, data.dialect)


def search(loaded: LoadedRecipe, stage: Stage, processes: Processes) -> Metrics:
    """Searches the questions that no earlier, interrupted run of the stage has finished.

    Round 0 searches with a stronger model (`bootstrap: few_shot`), every later one with the policy before it.
    """
    from rstar_trl.policy.few_shot import pick_examples
    from rstar_trl.search.queue import unfinished
    from rstar_trl.search.together import search_together

    recipe, data = loaded.recipe, load_data(loaded.folder / "data")
    config = few_shot_search(recipe) if stage.round == 0 else round_search(recipe, stage.round)
    examples, guide = [], None
    questions = [q for q in data.train if q.gold_result is not None or config.self_consistency is not None]
    if stage.round == 0:
        policy = str(recipe.few_shot.model)
        examples = pick_examples(data.train, recipe.few_shot.examples, stage.seed, data.dialect)
        # Their answers stand in the prompt.
        shown = {example.question.id for example in examples}
        questions = sample([q for q in questions if q.id not in shown], recipe.few_shot.questions, recipe.data.seed)
    else:
        policy = _policy_folder(loaded, stage.round - 1)
        if recipe.rounds[stage.round - 1].only == "unsolved":
            solved = _solved(loaded, range(1, stage.round))
            questions = [q for q in questions if q.id not in solved]
        guide = _guide(loaded, stage.round) if recipe.rounds[stage.round - 1].guide == "ppm" else None
    pending = unfinished(questions, _tree_files(stage.folder))
    if pending:
        with (
            _tools(loaded, data, policy, config, guide, examples) as tools,
            Progress(len(pending), stage.name, processes.first) as progress,
            draining(processes) as stop,
        ):
            search_together(
                questions,
                folder=stage.folder,
                name="trees",
                peers=processes,
                stop=stop,
                **tools,
                config=config,
                mode="train",
                dialect=data.dialect,
                seed=stage.seed,
                progress=progress,
            )
    if not processes.first:
        return {}
    return {**_search_metrics(loaded, stage, len(questions), len(data.train)), "num_processes": processes.world}


def dataset(loaded: LoadedRecipe, stage: Stage, processes: Processes) -> Metrics:
    """Training rows from the trees of all rounds so far, with the cold start's rows beside them."""
    from rstar_trl.trajectories.dataset import selected_rows, write_datasets
    from rstar_trl.trajectories.store import read_trees

    folders = [loaded.folder / f"round-{number}/search" for number in range(1, stage.round + 1)]
    trees = read_trees([path for folder in folders for path in _tree_files(folder)])
    labelled, _ = read_jsonl(loaded.folder / "round-0/data/sft.jsonl")
    settings, copies, near_misses = loaded.recipe.trajectories, None, list[dict[str, Any]]()
    if settings.value_copies or settings.near_misses:
        data = load_data(loaded.folder / "data")
        selected = selected_rows(trees, settings.top_k)
        near_misses = _contrasts(loaded, data, selected, stage)
        if settings.value_copies:
            copies = _value_copies(loaded, data, _prompter(loaded, data), selected, stage.seed)
    counts = write_datasets(trees, stage.folder, settings, labelled, copies, near_misses)
    return {**counts, "near_misses": len(near_misses)}


def _contrasts(
    loaded: LoadedRecipe, data: RunData, rows: Sequence[dict[str, Any]], stage: Stage
) -> list[dict[str, Any]]:
    """The near-misses of prompt-completion rows that the recipe asks for, as preference rows."""
    from rstar_trl.sql.sandbox import Sandbox
    from rstar_trl.trajectories.contrasts import contrasts

    count = loaded.recipe.trajectories.near_misses
    if not count:
        return []
    questions = {question.id: question for question in data.train}
    with Sandbox(loaded.recipe.sandbox) as sandbox:
        grounded = round_search(loaded.recipe, stage.round).grounded
        return contrasts(rows, questions, data.databases, count, sandbox, stage.seed, data.dialect, grounded)


def sft(loaded: LoadedRecipe, stage: Stage, processes: Processes) -> Metrics:
    """Trains the round's policy, from the base model or from the last round's policy."""
    from rstar_trl.training.sft import run_sft

    model = loaded.recipe.model
    previous = stage.config["rounds"]["init"] == "previous"
    metrics = run_sft(
        str(loaded.folder / f"round-{stage.round - 1}/policy") if previous else base_model(loaded),
        loaded.folder / f"round-{stage.round}/data/sft.jsonl",
        stage.folder,
        stage.config["sft"],
        model.lora,
        stage.seed,
        trust_remote_code=model.trust_remote_code,
    )
    release_memory()
    return metrics


def ppm(loaded: LoadedRecipe, stage: Stage, processes: Processes) -> Metrics:
    """Trains the round's PPM from a policy of the run; a round that found no pair leaves a note and no model."""
    from rstar_trl.training.ppm import run_ppm

    train_file = loaded.folder / f"round-{stage.round}/data/preference.jsonl"
    if not train_file.exists() or train_file.stat().st_size == 0:
        note = "no preference pairs: no question had both a right and a wrong step to compare"
        if processes.first:
            print(f"{stage.name}: skipped, {note}", file=sys.stderr)
        return {"skipped": note}
    start = 0 if stage.config["rounds"]["ppm_init"] == "cold_start" else stage.round
    model = loaded.recipe.model
    metrics = run_ppm(
        str(loaded.folder / f"round-{start}/policy"),
        train_file,
        stage.folder,
        stage.config["ppm"],
        model.lora,
        stage.seed,
        trust_remote_code=model.trust_remote_code,
    )
    release_memory()
    return metrics


def evaluate(loaded: LoadedRecipe, stage: Stage, processes: Processes) -> Metrics:
    """Measures the round's policy, and its PPM where there is one, on the evaluation questions."""
    from rstar_trl.evaluation.evaluate import evaluate as measure

    data = load_data(loaded.folder / "data")
    recipe = loaded.recipe
    questions = sample(data.eval, recipe.evaluation.questions, recipe.data.seed)
    ppm = ppm_folder(loaded.folder, stage.round)
    config = evaluation_search(recipe)
    methods = [name for name in stage.config["evaluation"]["methods"] if ppm or name != "best_of_n"]
    with (
        _tools(loaded, data, _policy_folder(loaded, stage.round), config, ppm) as tools,
        Progress(len(questions), stage.name, processes.first) as progress,
        draining(processes) as stop,
    ):
        return measure(
            questions,
            **tools,
            config=dataclasses.replace(recipe.evaluation, methods=methods),
            search=config,
            seed=stage.seed,
            out=stage.folder,
            progress=progress,
            peers=processes,
            stop=stop,
            dialect=data.dialect,
        )


RUN: Mapping[Kind, Callable[[LoadedRecipe, Stage, Processes], Metrics]] = {
    "data": prepare_data,
    "base": build_base,
    "pretrain": pretrain,
    "bootstrap": bootstrap,
    "search": search,
    "dataset": dataset,
    "sft": sft,
    "ppm": ppm,
    "evaluate": evaluate,
}


def base_model(loaded: LoadedRecipe) -> str:
    """The folder or Hub name every round starts from."""
    built = "pretrain" if loaded.recipe.pretrain else "base"
    return loaded.recipe.model.name_or_path or str(loaded.folder / built)


def ppm_folder(run: Path, number: int) -> Path | None:
    """The newest finished PPM of rounds 1 to `number`; None where none has been trained."""
    for before in range(number, 0, -1):
        folder = run / f"round-{before}/ppm"
        done = manifest.read(folder)
        if done is not None and "skipped" not in done.metrics:
            return folder
    return None


def _policy_folder(loaded: LoadedRecipe, number: int) -> str:
    return str(loaded.folder / f"round-{number}/policy")


def release_memory() -> None:
    """Returns what a finished stage held, so that the next one in this process has the whole device."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextlib.contextmanager
def _tools(
    loaded: LoadedRecipe,
    data: RunData,
    policy: str,
    config: SearchConfig,
    ppm: Path | None,
    examples: Sequence[Example] = (),
) -> Iterator[dict[str, Any]]:
    """The engine of a policy and the scorer of a PPM, with the sandbox and prompts around them."""
    from rstar_trl.policy.engines import open_engine, open_scorer
    from rstar_trl.policy.few_shot import FewShotPrompter
    from rstar_trl.sql.sandbox import Sandbox

    how, model = loaded.recipe.engine, loaded.recipe.model
    with (
        open_engine(how, model, policy, config.max_step_tokens) as engine,
        open_scorer(how, model, ppm) as scorer,
        Sandbox(loaded.recipe.sandbox) as sandbox,
    ):
        yield {
            "engine": engine,
            "scorer": scorer,
            "sandbox": sandbox,
            "prompter": FewShotPrompter(data.databases, loaded.recipe.prompt, engine.render, examples),
            "databases": data.databases,
        }
    release_memory()


def _guide(loaded: LoadedRecipe, number: int) -> Path:
    folder = ppm_folder(loaded.folder, number - 1)
    if folder is None:
        raise RunError(
            f"Round {number} is guided by a PPM, but no earlier round could train one: their searches found no pair "
            "of a right and a wrong step. Give the earlier rounds more simulations, or set `guide: reward` here."
        )
    return folder


def _tree_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("trees-*.jsonl"))


def _solved(loaded: LoadedRecipe, rounds: range) -> set[str]:
    """Ids of the questions for which some search of these rounds found a right query."""
    folders = [loaded.folder / f"round-{number}/search" for number in rounds]
    rows = (row for folder in folders for path in _tree_files(folder) for row in read_jsonl(path)[0])
    return {row["question_id"] for row in rows if 1 in row["reward"]}


def _search_metrics(loaded: LoadedRecipe, stage: Stage, questions: int, train: int) -> Metrics:
    rows = [row for path in _tree_files(stage.folder) for row in read_jsonl(path)[0]]
    return {
        "questions": questions,
        "solved": sum(1 in row["reward"] for row in rows),
        # What a stronger model solved is not counted for the policy's own rounds.
        "solved_so_far": len(_solved(loaded, range(min(1, stage.round), stage.round + 1))),
        "train_questions": train,
        "generated_tokens": sum(row["generated_tokens"] for row in rows),
        "nodes": sum(len(row["parent"]) - 1 for row in rows),
    }
