"""Corpora from where people keep them: the embedded demo, Spider's and BIRD's own file layouts, plain JSONL.

Guarantees: ids are unique and stable (`spider-train-17` is the 18th entry of its file, whatever is sampled); samples
depend on the seed alone; a row that cannot be used as it is raises `DataError` with its file and place. A question
whose database file is missing stays in the corpus, for the gold check to report, and its `db_id` is then not a key of
`Corpus.databases`. Does not guarantee: that gold SQL runs, or that a training question has a label.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

from rstar_trl.config import DataConfig
from rstar_trl.data.databases import Database, is_there, name_of, resolved, shown
from rstar_trl.data.demo.build import build_demo
from rstar_trl.data.question import Corpus, GoldResult, Question
from rstar_trl.errors import DataError
from rstar_trl.io import iter_jsonl, read_json

Rows = list[tuple[str, dict[str, Any]]]
"""Rows of a file, each with its place in words ("dev.json, entry 3") for messages."""


def load_corpus(config: DataConfig, workdir: Path) -> Corpus:
    """The corpus a recipe names, narrowed to its databases and sizes; the demo is built under `workdir`/demo.

    Raises `DataError`: a file is missing, a row is malformed, a named database does not exist, nothing is left, or
    no question has its database.
    """
    if config.source == "demo":
        return _narrowed(build_demo(workdir / "demo", config.seed, config.databases, config.hardness), config)
    corpus = _narrowed(_load(config), config)
    engine = corpus.engine  # Which there must be one of, whatever the gold queries are written in.
    return dataclasses.replace(corpus, dialect=config.dialect or engine)


def _load(config: DataConfig) -> Corpus:
    folder = Path(config.path or ".").expanduser()
    if not folder.is_dir():
        raise DataError(f"the data folder {folder} does not exist; set `data.path` to the folder of the data set.")
    load = {"spider": _spider, "bird": _bird, "jsonl": _jsonl}[config.source]
    return load(folder)


# --- Spider and BIRD ---------------------------------------------------------------------------------------------


def _spider(folder: Path) -> Corpus:
    train = _benchmark("spider-train", folder / "train_spider.json", "query")
    if (folder / "train_others.json").exists():
        train += _benchmark("spider-others", folder / "train_others.json", "query")
    return _corpus("spider", train, _benchmark("spider-dev", folder / "dev.json", "query"), [folder / "database"])


def _bird(folder: Path) -> Corpus:
    """BIRD keeps each split in a folder of its own; a folder that holds `dev.json` directly has no training split."""
    dev = folder if (folder / "dev.json").exists() else folder / "dev"
    evaluation = _benchmark("bird-dev", dev / "dev.json", "SQL")
    if dev == folder and not (folder / "train").exists():
        return _corpus("bird", (), evaluation, [dev / "dev_databases"])
    train = _benchmark("bird-train", folder / "train" / "train.json", "SQL")
    return _corpus("bird", train, evaluation, [folder / "train" / "train_databases", dev / "dev_databases"])


def _benchmark(prefix: str, path: Path, sql_key: str) -> tuple[Question, ...]:
    questions = []
    for index, (place, row) in enumerate(_json_rows(path)):
        meta = {"hardness": row["difficulty"]} if isinstance(row.get("difficulty"), str) else {}
        questions.append(
            Question(
                id=f"{prefix}-{index}",
                db_id=_text(row, "db_id", place),
                question=_text(row, "question", place),
                evidence=_optional_text(row, "evidence", place) or "",
                gold_sql=_text(row, sql_key, place),
                meta=meta,
            )
        )
    return tuple(questions)


def _json_rows(path: Path) -> Rows:
    rows = read_json(path)
    if not isinstance(rows, list):
        raise DataError(f"{path} holds {type(rows).__name__}, not a JSON list; it should be a list of questions.")
    if not rows:
        raise DataError(f"{path} holds no question; replace it by the data set's own file.")
    for index, row in enumerate(rows):
        if not isinstance(row, dict):
            raise DataError(f"{path}, entry {index} is {type(row).__name__}, not an object; fix or delete it.")
    return [(f"{path}, entry {index}", row) for index, row in enumerate(rows)]


def _corpus(name: str, train: tuple[Question, ...], evaluation: tuple[Question, ...], folders: list[Path]) -> Corpus:
    databases: dict[str, Database] = {}
    for db_id in sorted({question.db_id for question in train + evaluation}):
        path = _database(folders, db_id)
        if path is not None:
            databases[db_id] = path
    return _with_databases(Corpus(name, train, evaluation, databases), folders)


def _database(folders: list[Path], db_id: str) -> Path | None:
    """The first of `folder/db_id/db_id.sqlite` and `folder/db_id.sqlite` that exists."""
    candidates = (
        path for folder in folders for path in (folder / db_id / f"{db_id}.sqlite", folder / f"{db_id}.sqlite")
    )
    return next((path for path in candidates if path.is_file()), None)


def _with_databases(corpus: Corpus, folders: list[Path]) -> Corpus:
    if not corpus.databases:
        places = " or ".join(str(folder) for folder in folders)
        example = (corpus.train + corpus.eval)[0].db_id
        raise DataError(
            f"no question of {corpus.name} has its database: {places} holds no {example}/{example}.sqlite nor any "
            "other that is asked about; put the databases there."
        )
    return corpus


# --- JSONL -------------------------------------------------------------------------------------------------------


def _jsonl(folder: Path) -> Corpus:
    """`train.jsonl`, `eval.jsonl`, and databases under `databases/` or named row by row under `database`.

    A row names an SQLite file, relative to the folder, or a URL (`rstar_trl.data.databases`).
    """
    explicit: dict[str, Database] = {}
    splits = [_jsonl_split(folder, split, explicit) for split in ("train", "eval")]
    train, evaluation = splits
    seen: set[str] = set()
    for question in train + evaluation:
        if question.id in seen:
            raise DataError(f"the id {question.id!r} stands twice in {folder}; give every question an id of its own.")
        seen.add(question.id)
    found = {
        db_id: explicit.get(db_id) or _database([folder / "databases"], db_id)
        for db_id in sorted({question.db_id for question in train + evaluation})
    }
    databases = {db_id: database for db_id, database in found.items() if database is not None and is_there(database)}
    return _with_databases(Corpus("jsonl", train, evaluation, databases), [folder / "databases"])


def _jsonl_split(folder: Path, split: str, explicit: dict[str, Database]) -> tuple[Question, ...]:
    path = folder / f"{split}.jsonl"
    if not path.is_file():
        raise DataError(f"{path} does not exist; a JSONL data set needs train.jsonl and eval.jsonl.")
    questions = []
    for index, (line, row) in enumerate(iter_jsonl(path)):
        place = f"{path}:{line}"
        questions.append(_jsonl_question(row, place, f"{split}-{index}", folder, explicit))
    if not questions:
        raise DataError(f"{path} holds no question; write one JSON object a line, with `db_id` and `question`.")
    return tuple(questions)


def _jsonl_question(
    row: dict[str, Any], place: str, default_id: str, folder: Path, explicit: dict[str, Database]
) -> Question:
    named = _optional_text(row, "database", place)
    if named is not None:
        row = {"db_id": name_of(named), **row}
    db_id = _text(row, "db_id", place)
    if named is not None:
        try:
            database = resolved(named, folder)
        except DataError as error:
            raise DataError(f"{place}: {error}") from error
        if explicit.setdefault(db_id, database) != database:
            here, above = shown(database), shown(explicit[db_id])
            raise DataError(f"{place}: database {db_id} is {here} here but {above} above; name them apart.")
    labels = [_optional_text(row, key, place) for key in ("gold_sql", "sql", "query")]
    return Question(
        id=str(row.get("id", default_id)),
        db_id=db_id,
        question=_text(row, "question", place),
        evidence=_optional_text(row, "evidence", place) or "",
        gold_sql=next((label for label in labels if label), None),
        gold_result=_gold_result(row.get("gold_result"), place),
        meta=row["meta"] if isinstance(row.get("meta"), Mapping) else {},
    )


def _gold_result(value: Any, place: str) -> GoldResult | None:
    """Rows alone (their order then does not count), or `{"rows": [...], "ordered": true}`."""
    if value is None:
        return None
    rows, ordered = (value.get("rows"), value.get("ordered", False)) if isinstance(value, dict) else (value, False)
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows) or not isinstance(ordered, bool):
        raise DataError(f'{place}: `gold_result` is not a list of rows; write [[1, "a"], [2, "b"]].')
    if any(not isinstance(cell, int | float | str | None) for row in rows for cell in row):
        raise DataError(f"{place}: `gold_result` has a cell that is no number, text or null; use only those.")
    return GoldResult(tuple(tuple(row) for row in rows), ordered)


# --- shared ------------------------------------------------------------------------------------------------------


def _text(row: dict[str, Any], key: str, place: str) -> str:
    value = _optional_text(row, key, place)
    if not value or not value.strip():
        raise DataError(f"{place} has no `{key}`; add it or delete the row.")
    return value


def _optional_text(row: dict[str, Any], key: str, place: str) -> str | None:
    value = row.get(key)
    if value is not None and not isinstance(value, str):
        raise DataError(f"{place}: `{key}` is {type(value).__name__}, not text; fix or delete the row.")
    return value


def _narrowed(corpus: Corpus, config: DataConfig) -> Corpus:
    """Only the wanted databases, then the seeded samples; questions keep their order."""
    known = {question.db_id for question in corpus.train + corpus.eval}
    wanted = known if config.databases is None else set(config.databases)
    if wanted - known:
        unknown, existing = ", ".join(sorted(wanted - known)), ", ".join(sorted(known))
        raise DataError(f"`data.databases` names {unknown}, which {corpus.name} does not have; it has {existing}.")
    if config.held_out is not None:
        corpus = _held_out(corpus, wanted, config.held_out, f"{config.seed}/held out")
    train = _sampled(corpus.train, wanted, config.train_size, f"{config.seed}/train")
    evaluation = _sampled(corpus.eval, wanted, config.eval_size, f"{config.seed}/eval")
    if not train and not evaluation:
        raise DataError(f"no question of {corpus.name} is left; allow more `data.databases` or larger sizes.")
    used = {question.db_id for question in train + evaluation}
    databases = {db_id: path for db_id, path in corpus.databases.items() if db_id in used}
    if not databases:
        raise DataError(f"no question that is left of {corpus.name} has a database file; widen `data.databases`.")
    return Corpus(corpus.name, train, evaluation, databases, corpus.dialect)


def _held_out(corpus: Corpus, wanted: set[str], fraction: float, seed: str) -> Corpus:
    """Splits the training questions by query, so that no wording of an evaluation query is trained on."""
    groups: dict[tuple[str, str], list[Question]] = {}
    for question in corpus.train:
        if question.db_id in wanted:
            query = question.gold_sql.lower() if question.gold_sql is not None else question.id
            groups.setdefault((question.db_id, "".join(query.split())), []).append(question)
    keys = sorted(groups)
    chosen = set(Random(seed).sample(keys, round(fraction * len(keys))))
    train = tuple(question for key in keys if key not in chosen for question in groups[key])
    evaluation = tuple(question for key in keys if key in chosen for question in groups[key])
    return dataclasses.replace(corpus, train=train, eval=evaluation)


def _sampled(questions: tuple[Question, ...], wanted: set[str], size: int | None, seed: str) -> tuple[Question, ...]:
    kept = [question for question in questions if question.db_id in wanted]
    if size is None or size >= len(kept):
        return tuple(kept)
    chosen = sorted(Random(seed).sample(range(len(kept)), max(size, 0)))
    return tuple(kept[index] for index in chosen)
