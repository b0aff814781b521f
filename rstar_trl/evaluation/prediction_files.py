"""The file formats of the official evaluators: Spider's tab-separated text, BIRD's JSON.

Guarantees: nothing is passed over in silence: every line that is not read as it stands is in `problems`, with file and
line. Predictions belong to gold queries by their place in the file; one that is missing is an empty prediction (wrong,
as in the official denominators), a gold line that cannot be read is not scored. Does not guarantee that SQL parses.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rstar_trl.errors import DataError
from rstar_trl.io import read_json

BIRD_MARK = "\t----- bird -----\t"
DIFFICULTIES = ("simple", "moderate", "challenging")


@dataclass(frozen=True)
class Pair:
    """A prediction with its gold query; `place` names both in messages. `difficulty` is BIRD's, empty for Spider."""

    place: str
    db_id: str
    gold: str
    predicted: str
    difficulty: str = ""


@dataclass
class Loaded:
    """Pairs, in order, and what was not read as it stands: `not_scored` gold queries, `missing` predictions."""

    pairs: list[Pair] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    not_scored: int = 0
    missing: int = 0


def load_spider(gold: Path, predictions: Path) -> Loaded:
    """Reads `SQL<TAB>db_id` lines and one prediction a line.

    An empty line in both files at the same place separates dialogues and is skipped. A prediction ends at its first
    tab, as in the official evaluator. Raises `DataError` when a file is missing or holds no gold query at all.
    """
    loaded = Loaded()
    ours, theirs = _lines(gold, loaded), _lines(predictions, loaded)
    _count(gold, len(ours), predictions, len(theirs), loaded)
    for index, line in enumerate(ours):
        predicted = theirs[index] if index < len(theirs) else ""
        place = f"{gold}:{index + 1}"
        if not line.strip():
            if predicted.strip():
                loaded.problems.append(f"{place} is empty, but {predictions}:{index + 1} is not; not scored.")
                loaded.not_scored += 1
            continue
        sql, tab, db_id = line.strip().rpartition("\t")
        if not tab or not sql.strip():
            loaded.problems.append(f"{place} has no tab between SQL and database name; not scored.")
            loaded.not_scored += 1
            continue
        if "\t" in sql:
            loaded.problems.append(f"{place} has a tab in its SQL; the database name is read after the last one.")
        text = _first_field(predicted, db_id, f"{predictions}:{index + 1}", loaded)
        if index < len(theirs) and not text:
            loaded.problems.append(f"{predictions}:{index + 1} is empty; it counts as wrong.")
        loaded.missing += not text
        loaded.pairs.append(Pair(place, db_id.strip(), sql.replace("\t", " "), text))
    return _not_empty(loaded, gold)


def load_bird(gold: Path, predictions: Path, difficulties: Path | None = None) -> Loaded:
    """Reads BIRD's gold (`SQL<TAB>db_id` lines, or its JSON list of questions) and predictions.

    Predictions are an object from the question's number to `SQL<TAB>----- bird -----<TAB>db_id`. Difficulties stand
    in the JSON list of questions. Raises `DataError` when a file is missing, broken, or holds no gold query at all.
    """
    loaded = Loaded()
    questions = _questions(gold) if gold.suffix == ".json" else None
    graded = _questions(difficulties) if difficulties else questions or []
    rows = _bird_gold(gold, questions, loaded)
    answers = _bird_answers(predictions, len(rows), loaded)
    for index, row in enumerate(rows):
        if row is None:
            continue
        place, sql, db_id = row
        text, named = answers.get(index, ("", ""))
        if named and named != db_id:
            loaded.problems.append(
                f"{predictions}, key {index} names database {named}, the gold {db_id}: run on that."
            )
        if index in answers and not text:
            loaded.problems.append(f"{predictions}, key {index} is empty; it counts as wrong.")
        loaded.missing += not text
        difficulty = graded[index].get("difficulty", "") if index < len(graded) else ""
        if graded and difficulty not in DIFFICULTIES:
            loaded.problems.append(f"{place} has no difficulty ({difficulty!r}); it counts in the total alone.")
        loaded.pairs.append(Pair(place, db_id, sql, text, difficulty))
    return _not_empty(loaded, gold)


def _lines(path: Path, loaded: Loaded) -> list[str]:
    """The lines of a text file without the empty ones at its end; undecodable bytes are replaced and reported."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); check the path.") from error
    lines: list[str] = []
    for number, raw in enumerate(data.rstrip().split(b"\n") if data.strip() else [], 1):
        line = raw.decode("utf-8", "replace").rstrip("\r")
        if "\ufffd" in line and not _is_utf8(raw):
            loaded.problems.append(f"{path}:{number} has bytes that are not UTF-8; they are read as \ufffd.")
        lines.append(line)
    return lines


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _count(gold: Path, ours: int, predictions: Path, theirs: int, loaded: Loaded) -> None:
    if theirs < ours:
        loaded.problems.append(
            f"{predictions} has {theirs} lines, {gold} has {ours}: from line {theirs + 1} on, the missing "
            "predictions count as wrong."
        )
    if theirs > ours:
        loaded.problems.append(
            f"{predictions} has {theirs} lines, {gold} has {ours}: from line {ours + 1} on, predictions are ignored."
        )


def _first_field(predicted: str, db_id: str, place: str, loaded: Loaded) -> str:
    text, tab, rest = predicted.strip().partition("\t")
    if tab and rest.strip() != db_id.strip():
        loaded.problems.append(f"{place} has a tab in its SQL; as in the official evaluator it ends there.")
    return text.strip()


def _questions(path: Path) -> list[dict[str, Any]]:
    rows = read_json(path)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path} is not a JSON list of questions; give BIRD's own dev.json.")
    return rows


def _bird_gold(
    path: Path, questions: list[dict[str, Any]] | None, loaded: Loaded
) -> list[tuple[str, str, str] | None]:
    """Place, SQL and database of each gold query; None for one that cannot be read."""
    rows: list[tuple[str, str, str] | None] = []
    if questions is not None:
        found = [
            (f"{path}, entry {i}", str(q.get("SQL", "")), str(q.get("db_id", ""))) for i, q in enumerate(questions)
        ]
    else:
        found = []
        for number, line in enumerate(_lines(path, loaded), 1):
            sql, _, db_id = line.strip().rpartition("\t")
            found.append((f"{path}:{number}", sql, db_id))
    for place, sql, db_id in found:
        if sql.strip() and db_id.strip():
            rows.append((place, sql.replace("\t", " "), db_id.strip()))
        else:
            loaded.problems.append(f"{place} has no SQL or no database name; not scored.")
            loaded.not_scored += 1
            rows.append(None)
    return rows


def _bird_answers(path: Path, count: int, loaded: Loaded) -> dict[int, tuple[str, str]]:
    """SQL and database name by question number."""
    answers = read_json(path)
    if not isinstance(answers, dict):
        raise DataError(f"{path} holds {type(answers).__name__}, not an object from question number to SQL.")
    found: dict[int, tuple[str, str]] = {}
    for key, value in answers.items():
        if not key.isdecimal() or int(key) >= count:
            loaded.problems.append(f"{path}, key {key!r} is no number of a gold query; ignored.")
            continue
        if not isinstance(value, str):
            loaded.problems.append(f"{path}, key {key} is {type(value).__name__}, not text; it counts as wrong.")
            value = ""
        sql, mark, db_id = value.partition(BIRD_MARK)
        if value and not mark:
            loaded.problems.append(f"{path}, key {key} has no `----- bird -----` mark; all of it is read as SQL.")
        found[int(key)] = (sql.strip(), db_id.strip())
    missing = [number for number in range(count) if number not in found]
    if missing:
        loaded.problems.append(
            f"{path} has no answer to {len(missing)} of {count} questions, first number {missing[0]}; "
            "they count as wrong."
        )
    return found


def _not_empty(loaded: Loaded, gold: Path) -> Loaded:
    if not loaded.pairs:
        raise DataError(f"{gold} holds no gold query that can be read: " + (loaded.problems or ["it is empty"])[0])
    return loaded
