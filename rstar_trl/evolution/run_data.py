"""The questions of a run: loaded, checked by running their gold, stripped of the labels the recipe hides, and kept.

`prepare_data` is the first stage; the later ones read what it wrote with `load_data`.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rstar_trl.data.databases import Database, dialect_of
from rstar_trl.data.question import Corpus, Question
from rstar_trl.errors import DataError
from rstar_trl.evolution.launch import Processes
from rstar_trl.evolution.plan import Stage
from rstar_trl.evolution.recipe import LoadedRecipe, round_search
from rstar_trl.io import read_json, read_jsonl, write_json, write_jsonl

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
    digest = corpus.digest()
    corpus, unanswered = _unanswered(loaded, corpus)
    with Sandbox(loaded.recipe.sandbox) as sandbox:
        variants = _variants(loaded, corpus, stage.folder / "variants", sandbox)
        prepared = prepare(corpus, sandbox, config.label_fraction, config.seed, listed, variants)
    write_jsonl(stage.folder / "train.jsonl", map(question_record, (*prepared.train, *unanswered)))
    write_jsonl(stage.folder / "eval.jsonl", map(question_record, prepared.eval))
    write_jsonl(stage.folder / "quarantine.jsonl", map(dataclasses.asdict, prepared.quarantine))
    used = {q.db_id for q in (*prepared.train, *unanswered, *prepared.eval)}
    databases = {name: _relative(path, stage.folder) for name, path in corpus.databases.items() if name in used}
    write_json(stage.folder / "corpus.json", {"dialect": corpus.engine, "databases": databases})
    labelled = sum(q.gold_sql is not None for q in prepared.train)
    return {
        "corpus": digest,
        "train": len(prepared.train) + len(unanswered),
        "labelled": labelled,
        "eval": len(prepared.eval),
        "quarantined": len(prepared.quarantine),
    }


def _unanswered(loaded: LoadedRecipe, corpus: Corpus) -> tuple[Corpus, list[Question]]:
    """The corpus without the training questions that only agreement can reward, and those, where a round has them."""
    recipe = loaded.recipe
    searches = [round_search(recipe, number) for number in range(1, len(recipe.rounds) + 1)]
    if all(search.self_consistency is None for search in searches):
        return corpus, []
    train = corpus.train
    left = [q for q in train if q.gold_sql is None and q.gold_result is None and q.db_id in corpus.databases]
    chosen = {question.id for question in left}
    return dataclasses.replace(corpus, train=tuple(q for q in train if q.id not in chosen)), left


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


def sample(questions: Sequence[Question], size: int | None, seed: int) -> list[Question]:
    """A seeded sample in the order of `questions`; all of them when `size` is None or larger."""
    if size is None or size >= len(questions):
        return list(questions)
    return [questions[index] for index in sorted(random.Random(seed).sample(range(len(questions)), size))]


def _relative(database: Database, folder: Path) -> str:
    """Databases made inside the run folder move with it; others keep their place."""
    if dialect_of(database) != "sqlite":
        return str(database)
    path, folder = Path(database).resolve(), folder.resolve()
    return str(path.relative_to(folder) if path.is_relative_to(folder) else path)
