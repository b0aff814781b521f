"""What each stage does: one thin function per kind, wiring the layers below.

Every function takes the recipe, its stage and this process's place among the others, and returns the stage's metrics
(rank 0's are kept). Guarantees: a stage killed half way goes on where it stopped when it is called again; model memory
is freed between stages that share a process. Manifests are written by `rounds`, not here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rstar_trl.config import SearchConfig
from rstar_trl.data.databases import Database, dialect_of
from rstar_trl.data.question import Corpus, Question
from rstar_trl.errors import DataError, RunError
from rstar_trl.evolution import manifest
from rstar_trl.evolution.launch import Processes
from rstar_trl.evolution.plan import Kind, Stage
from rstar_trl.evolution.recipe import LoadedRecipe, evaluation_search, round_search
from rstar_trl.io import read_json, read_jsonl, write_json, write_jsonl
from rstar_trl.progress import Progress

if TYPE_CHECKING:
    from rstar_trl.sql.sandbox import Sandbox

Metrics = dict[str, Any]


@dataclass(frozen=True)
class RunData:
    """The questions of a run after their gold queries were run, and the databases they are about."""

    train: tuple[Question, ...]
    eval: tuple[Question, ...]
    databases: Mapping[str, Database]
    dialect: str


def prepare_data(loaded: LoadedRecipe, stage: Stage, processes: Processes) -> Metrics:
    """Loads the corpus, runs all gold SQL, drops the labels the recipe hides, and writes the questions."""
    from rstar_trl.data.loaders import load_corpus
    from rstar_trl.sql.audit import read_quarantine
    from rstar_trl.sql.gold import prepare, question_record
    from rstar_trl.sql.sandbox import Sandbox

    config = loaded.recipe.data
    corpus = load_corpus(config, stage.folder)
    listed = read_quarantine(Path(config.quarantine)) if config.quarantine else {}
    with Sandbox(loaded.recipe.sandbox) as sandbox:
        variants = _variants(loaded, corpus, stage.folder / "variants", sandbox)
        prepared = prepare(corpus, sandbox, config.label_fraction, config.seed, listed, variants)
    write_jsonl(stage.folder / "train.jsonl", map(question_record, prepared.train))
    write_jsonl(stage.folder / "eval.jsonl", map(question_record, prepared.eval))
    write_jsonl(stage.folder / "quarantine.jsonl", map(dataclasses.asdict, prepared.quarantine))
    used = {q.db_id for q in (*prepared.train, *prepared.eval)}
    databases = {name: _relative(path, stage.folder) for name, path in corpus.databases.items() if name in used}
    write_json(stage.folder / "corpus.json", {"dialect": corpus.engine, "databases": databases})
    labelled = sum(q.gold_sql is not None for q in prepared.train)
    return {
        "corpus": corpus.digest(),
        "train": len(prepared.train),
        "labelled": labelled,
        "eval": len(prepared.eval),
        "quarantined": len(prepared.quarantine),
    }


def _variants(loaded: LoadedRecipe, corpus: Corpus, made: Path, sandbox: Sandbox) -> dict[str, list[Path]]:
    """The variants of each database where the recipe verifies on them; where it names none, they are made in `made`.

    Raises `DataError` for a database that the folder named has none of.
    """
    from rstar_trl.sql.variants import choose_all

    config = loaded.recipe.data
    if loaded.recipe.verify != "variants":
        return {}
    if config.variants is None:
        chosen = choose_all(corpus, config.variants_per_db, made.absolute(), sandbox, config.seed)
        return {db_id: list(each.files) for db_id, each in chosen.items()}
    found = {db_id: sorted(Path(config.variants).absolute().glob(f"{db_id}/*.sqlite")) for db_id in corpus.databases}
    bare = sorted(db_id for db_id, files in found.items() if not files)
    if bare:
        raise DataError(
            f"{config.variants} has no variants of {', '.join(bare)}; make them with `rstar-trl data variants`, or "
            "delete `data.variants`, so that the run makes its own."
        )
    return found


def load_data(folder: Path) -> RunData:
    """Reads what `prepare_data` wrote."""
    from rstar_trl.sql.gold import question_from_record

    corpus = read_json(folder / "corpus.json")
    train, evaluation = (
        tuple(question_from_record(row) for row in read_jsonl(folder / f"{split}.jsonl")[0])
        for split in ("train", "eval")
    )
    databases: dict[str, Database] = {
        name: folder / named if dialect_of(named) == "sqlite" else named for name, named in corpus["databases"].items()
    }
    return RunData(train, evaluation, databases, corpus["dialect"])


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
    """The cold start's training rows: the labelled gold SQL, step by step."""
    from rstar_trl.policy.bootstrap import bootstrap_rows
    from rstar_trl.policy.prompting import Prompter
    from rstar_trl.policy.tokens import load_tokenizer, renderer

    data = load_data(loaded.folder / "data")
    tokenizer = load_tokenizer(base_model(loaded), loaded.recipe.model.trust_remote_code)
    prompter = Prompter(data.databases, loaded.recipe.prompt, renderer(tokenizer))
    labelled = [question for question in data.train if question.gold_sql is not None]
    rows = bootstrap_rows(labelled, prompter.prompt, data.dialect)
    write_jsonl(stage.folder / "sft.jsonl", rows)
    return {"rows": len(rows), "labelled": len(labelled)}


def search(loaded: LoadedRecipe, stage: Stage, processes: Processes) -> Metrics:
    """Searches this process's share of the questions that no earlier, interrupted run of the stage has finished."""
    from rstar_trl.search.run import search_questions

    data = load_data(loaded.folder / "data")
    settings = loaded.recipe.rounds[stage.round - 1]
    questions = [q for q in data.train if q.gold_result is not None or q.gold_sql is not None]
    if settings.only == "unsolved":
        solved = _solved(loaded, range(1, stage.round))
        questions = [q for q in questions if q.id not in solved]
    finished = {row["question_id"] for path in _tree_files(stage.folder) for row in read_jsonl(path)[0]}
    # Everyone has read the list before anyone adds to it, or the shares would overlap.
    processes.barrier()
    share = [q for q in questions if q.id not in finished][processes.rank :: processes.world]
    if share:
        config = round_search(loaded.recipe, stage.round)
        scorer = _guide(loaded, stage.round) if settings.guide == "ppm" else None
        with (
            _tools(loaded, data, stage.round - 1, config) as tools,
            Progress(len(share), stage.name, processes.first) as progress,
        ):
            search_questions(
                share,
                **tools,
                scorer=_load_scorer(loaded, scorer),
                config=config,
                mode="train",
                dialect=data.dialect,
                seed=stage.seed,
                out=stage.folder / f"trees-{processes.rank}.jsonl",
                progress=progress,
            )
    processes.barrier()
    if not processes.first:
        return {}
    return {**_search_metrics(loaded, stage, len(questions), len(data.train)), "num_processes": processes.world}


def dataset(loaded: LoadedRecipe, stage: Stage, processes: Processes) -> Metrics:
    """Training rows from the trees of all rounds so far, with the cold start's rows beside them."""
    from rstar_trl.trajectories.dataset import write_datasets
    from rstar_trl.trajectories.store import read_trees

    folders = [loaded.folder / f"round-{number}/search" for number in range(1, stage.round + 1)]
    trees = read_trees([path for folder in folders for path in _tree_files(folder)])
    labelled, _ = read_jsonl(loaded.folder / "round-0/data/sft.jsonl")
    return dict(write_datasets(trees, stage.folder, loaded.recipe.trajectories, labelled))


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
    scorer = ppm_folder(loaded.folder, stage.round)
    config = evaluation_search(recipe)
    methods = [name for name in stage.config["evaluation"]["methods"] if scorer or name != "best_of_n"]
    with (
        _tools(loaded, data, stage.round, config) as tools,
        Progress(len(questions[processes.rank :: processes.world]), stage.name, processes.first) as progress,
    ):
        return measure(
            questions,
            **tools,
            scorer=_load_scorer(loaded, scorer),
            config=dataclasses.replace(recipe.evaluation, methods=methods),
            search=config,
            seed=stage.seed,
            out=stage.folder,
            progress=progress,
            rank=processes.rank,
            world=processes.world,
            barrier=processes.barrier,
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


def sample(questions: Sequence[Question], size: int | None, seed: int) -> list[Question]:
    """A seeded sample in the order of `questions`; all of them when `size` is None or larger."""
    if size is None or size >= len(questions):
        return list(questions)
    return [questions[index] for index in sorted(random.Random(seed).sample(range(len(questions)), size))]


def release_memory() -> None:
    """Returns what a finished stage held, so that the next one in this process has the whole device."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextlib.contextmanager
def _tools(loaded: LoadedRecipe, data: RunData, policy_round: int, config: SearchConfig) -> Iterator[dict[str, Any]]:
    """The engine of a round's policy, with the sandbox and prompts around it."""
    from rstar_trl.policy.prompting import Prompter
    from rstar_trl.policy.transformers_engine import TransformersEngine
    from rstar_trl.sql.sandbox import Sandbox

    model = loaded.recipe.model
    folder = str(loaded.folder / f"round-{policy_round}/policy")
    engine = TransformersEngine.load(folder, model.dtype, model.trust_remote_code, config.max_step_tokens)
    with Sandbox(loaded.recipe.sandbox) as sandbox:
        yield {
            "engine": engine,
            "sandbox": sandbox,
            "prompter": Prompter(data.databases, loaded.recipe.prompt, engine.render),
            "databases": data.databases,
        }
    release_memory()


def _load_scorer(loaded: LoadedRecipe, folder: Path | None) -> Any:
    if folder is None:
        return None
    from rstar_trl.policy.ppm_scorer import PPMScorer

    return PPMScorer.load(str(folder), loaded.recipe.model.dtype, loaded.recipe.model.trust_remote_code)


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
        "solved_so_far": len(_solved(loaded, range(1, stage.round + 1))),
        "train_questions": train,
        "generated_tokens": sum(row["generated_tokens"] for row in rows),
        "nodes": sum(len(row["parent"]) - 1 for row in rows),
    }


def _relative(database: Database, folder: Path) -> str:
    """Databases made inside the run folder move with it; others keep their place."""
    if dialect_of(database) != "sqlite":
        return str(database)
    path, folder = Path(database).resolve(), folder.resolve()
    return str(path.relative_to(folder) if path.is_relative_to(folder) else path)
