"""The same trajectories with other values: a question about Paris also teaches how to ask about Lima.

A small policy learns by heart the names and numbers of the few trajectories it is trained on, and then copies only
those. A copy made here has the constants that a question and its query share replaced, in both, by other values of
the same columns.

Guarantees: a copy's query compares the same columns in the same way as the original, and other constants are its only
difference; it runs, and gives rows if the original does; it has neither the words nor the query of a question held
out; the same rows and seed give the same copies. Does not guarantee that a copy's wording is what a person would have
written.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from rstar_trl.data.question import Question, Value
from rstar_trl.data.schema import Schema, introspect
from rstar_trl.errors import SqlError
from rstar_trl.io import digest
from rstar_trl.policy.prompting import Prompter
from rstar_trl.policy.tokens import DELIMITER
from rstar_trl.sql.execution import Execution, SqlJob
from rstar_trl.sql.near_misses import constants
from rstar_trl.sql.sandbox import Sandbox
from rstar_trl.sql.steps import canonical, parse_step, sql_from_steps
from rstar_trl.trajectories.rows import Row

ATTEMPTS = 2
"""Copies drawn for each copy wanted; some of them give no rows."""

VALUES_PER_COLUMN = 500
"""Distinct values of a column to draw from."""

Values = Mapping[str, Sequence[Value]]
"""The values a column holds, by its name in lower case."""


@dataclass(frozen=True)
class Copy:
    """A question with other values, and `words`: what replaces which of its words, there and in its trajectories."""

    question: Question
    words: Mapping[str, str]

    def apply(self, text: str) -> str:
        """Steps about the original question, as they read about this one."""
        return _replaced(text, {**self.words, **{_escaped(old): _escaped(new) for old, new in self.words.items()}})


@dataclass(frozen=True)
class _Draft(Copy):
    sql: str


@dataclass(frozen=True)
class ValueCopies:
    """Prompt-completion rows (`question_id, prompt, completion`), each with its copies, as training rows."""

    of_rows: Sequence[tuple[Row, Sequence[Copy]]]
    prompter: Prompter

    def completions(self) -> list[Row]:
        """The copies as prompt-completion rows."""
        return [
            {**row, "prompt": self.prompter.prompt(copy.question), "completion": copy.apply(row["completion"])}
            for row, copies in self.of_rows
            for copy in copies
        ]

    def preferences(self, rows: Iterable[Row]) -> list[Row]:
        """Preference rows (see `rows.preference`) as they read about the copies of their question's first row.

        The two sides are not run again: they differ there as they differ here.
        """
        first = {row["question_id"]: copies for row, copies in reversed(self.of_rows)}
        return [self._preference(row, copy) for row in rows for copy in first.get(row["question_id"], ())]

    def _preference(self, row: Row, copy: Copy) -> Row:
        prompt = self.prompter.prompt(copy.question)
        return {
            **row,
            "prompt": prompt + copy.apply(row["prompt"][row["prompt_chars"] :]),
            "chosen": copy.apply(row["chosen"]),
            "rejected": copy.apply(row["rejected"]),
            "prompt_chars": len(prompt),
        }


def value_copies(
    rows: Iterable[Row],
    questions: Mapping[str, Question],
    count: int,
    prompter: Prompter,
    sandbox: Sandbox,
    seed: int,
    held_out: Sequence[Question] = (),
    dialect: str = "sqlite",
) -> ValueCopies:
    """Up to `count` copies of each row; none where the question spells none of the query's constants.

    `held_out` are the evaluation's questions.
    """
    unseen = {_words(question) for question in held_out}
    unseen |= {canonical(question.gold_sql, dialect) for question in held_out if question.gold_sql}
    values = {db_id: column_values(introspect(path, VALUES_PER_COLUMN)) for db_id, path in prompter.databases.items()}
    groups = []
    for row in rows:
        question = questions[row["question_id"]]
        chance = random.Random(digest([seed, row["question_id"], row["completion"]]))
        held = values[question.db_id]
        groups.append((row, list(_drafts(question, row["completion"], held, count * ATTEMPTS, chance, dialect))))
    jobs = [SqlJob(str(prompter.databases[d.question.db_id]), d.sql) for _, drafts in groups for d in drafts]
    executions = iter(sandbox.run(jobs))
    found = []
    for row, drafts in groups:
        original, *others = [(draft, next(executions)) for draft in drafts]
        good = (draft for draft, execution in others if _as_good(execution, original[1]))
        new = (draft for draft in good if not {_words(draft.question), canonical(draft.sql, dialect)} & unseen)
        found.append((row, [Copy(draft.question, draft.words) for draft in islice(new, count)]))
    return ValueCopies(found, prompter)


def column_values(schema: Schema) -> Values:
    """The sample values of every column; columns of one name in several tables share theirs."""
    found: dict[str, list[Value]] = {}
    for table in schema.tables:
        for column in table.columns:
            found.setdefault(column.name.lower(), []).extend(column.samples)
    return {name: list(dict.fromkeys(held)) for name, held in found.items()}


def _drafts(
    question: Question, completion: str, values: Values, count: int, chance: random.Random, dialect: str
) -> Iterator[_Draft]:
    """The original first, then copies that differ from it and from each other."""
    sql = query_of(completion, dialect)
    compared = _constants(sql, dialect)
    shared = _shared(question, compared, values)
    seen = {completion}
    yield _Draft(question, {}, sql)
    for _ in range(count if shared else 0):
        new = _draw(shared, values, chance)
        other = replace(
            question, question=_replaced(question.question, new), evidence=_replaced(question.evidence, new)
        )
        copied = Copy(other, new).apply(completion)
        if copied in seen:
            continue
        seen.add(copied)
        try:
            draft = _Draft(other, new, query_of(copied, dialect))
        except SqlError:
            continue
        if _constants(draft.sql, dialect) == [(name, _mapped(value, new)) for name, value in compared]:
            yield draft


def query_of(completion: str, dialect: str) -> str:
    """The SQL of a trajectory. Raises `SqlError` where its text is none."""
    return sql_from_steps([parse_step(step, dialect) for step in completion.split(DELIMITER)], dialect)


def _constants(sql: str, dialect: str) -> list[tuple[str, str]]:
    return [(name, _spelled(value)) for name, value in constants(sql, dialect)]


def _shared(question: Question, compared: list[tuple[str, str]], values: Values) -> dict[str, tuple[str, str]]:
    """Column and constant, by how the question spells it: what stands there once, as a word of its own."""
    found: dict[str, tuple[str, str]] = {}
    for name, constant in compared:
        word = constant.strip("%")
        if word and "%" not in word and len(values.get(name, ())) > 1 and len(_places(word, question.question)) == 1:
            found.setdefault(word, (name, constant))
    return found


def _draw(shared: Mapping[str, tuple[str, str]], values: Values, chance: random.Random) -> dict[str, str]:
    """A new word for each shared one. Those of one column keep their order, so that a range stays a range."""
    new: dict[str, str] = {}
    for name in dict.fromkeys(column for column, _ in shared.values()):
        words = [word for word, (column, _) in shared.items() if column == name]
        drawn = chance.sample(list(values[name]), min(len(words), len(values[name])))
        for word, value in zip(sorted(words, key=_order), sorted(map(_spelled, drawn), key=_order), strict=False):
            new[word] = piece(value, shared[word][1], chance)
    return {word: other for word, other in new.items() if other}


def piece(value: str, constant: str, chance: random.Random) -> str:
    """The piece of `value` that stands where `constant`, which may be a LIKE pattern, has its word."""
    if constant.startswith("%"):
        return chance.choice(value.split() or [""])
    return value[: len(constant) - 1] if constant.endswith("%") else value


def _words(question: Question) -> str:
    return " ".join(question.question.lower().split())


def _as_good(copy: Execution, original: Execution) -> bool:
    return copy.verdict == "ok" and (bool(copy.rows) or not original.rows)


def _replaced(text: str, new: Mapping[str, str]) -> str:
    if not new:
        return text
    words = "|".join(map(re.escape, sorted(new, key=len, reverse=True)))
    return re.sub(rf"{_BEFORE}(?:{words}){_AFTER}", lambda match: new[match.group()], text)


def _places(word: str, text: str) -> list[str]:
    return re.findall(_BEFORE + re.escape(word) + _AFTER, text)


_BEFORE, _AFTER = r"(?<![\w.-])", r"(?![\w-]|\.\d)"
"""A word of its own: no part of a longer word, number or date."""


def _mapped(constant: str, new: Mapping[str, str]) -> str:
    word = constant.strip("%")
    return constant.replace(word, new[word]) if word in new else constant


def _spelled(value: Value) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _escaped(word: str) -> str:
    return word.replace("'", "''")


def _order(word: str) -> tuple[float, str]:
    try:
        return float(word), ""
    except ValueError:
        return 0.0, word
