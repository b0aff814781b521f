"""Right trajectories against near-misses: what a PPM must tell apart, whether the policy happened to sample it or not.

A search finds few wrong trajectories of a question, all of them mistakes of one policy. A small PPM trained on nothing
else tells its own pairs apart and no others. So a right trajectory is also set against queries that

- differ from it in one place: another operator, column, aggregate, order or condition (`rstar_trl.sql.near_misses`);
- compare with another constant, which stands elsewhere in the query or in the same column;
- answer another question about the same database, with this question's constants.

Guarantees: every near-miss runs, and gives rows, but not those of the question's answer; its steps are worded as the
right trajectory's, where they differ as the cold start's; rows are those of `rows.preference`, one for the whole
trajectories and one for the first step in which they differ; the same input gives the same rows.
"""

from __future__ import annotations

import contextlib
import random
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice, zip_longest
from typing import TYPE_CHECKING

from rstar_trl.data.databases import Database
from rstar_trl.data.question import Question
from rstar_trl.data.schema import introspect
from rstar_trl.errors import SqlError
from rstar_trl.io import digest
from rstar_trl.policy.tokens import DELIMITER
from rstar_trl.sql.execution import Execution, SqlJob
from rstar_trl.sql.grounding import ungrounded
from rstar_trl.sql.near_misses import Columns, near_misses
from rstar_trl.sql.policy import parse_statements
from rstar_trl.sql.sandbox import Sandbox
from rstar_trl.sql.steps import parse_step, steps_from_sql, with_thoughts
from rstar_trl.sql.variants import agrees, columns_of
from rstar_trl.trajectories.rows import Row
from rstar_trl.trajectories.values import VALUES_PER_COLUMN, Values, column_values, piece, query_of

if TYPE_CHECKING:
    from sqlglot import exp

ATTEMPTS = 3
"""Near-misses run for each one wanted; some give the answer after all, or nothing."""

STRANGERS = 8
"""Queries of other questions tried for each trajectory."""

MARGIN = 2.0
"""Difference of the rewards of a right and a wrong trajectory."""

_QUOTED = re.compile(r'"([a-z_]\w*)"', re.IGNORECASE)
"""Names that near-misses quote to be safe. Policies do not, so quotes would give the near-miss away."""


def contrasts(
    rows: Sequence[Row],
    questions: Mapping[str, Question],
    databases: Mapping[str, Database],
    count: int,
    sandbox: Sandbox,
    seed: int,
    dialect: str = "sqlite",
    grounded: bool = False,
) -> list[Row]:
    """Preference rows of right trajectories (`question_id, prompt, completion`) with `count` near-misses of each.

    Questions without an answer to compare with are left out; so are near-misses that a `grounded` search would not
    follow, when that is given.
    """
    schemas = {name: introspect(database, VALUES_PER_COLUMN) for name, database in databases.items()}
    columns = {name: columns_of(schema) for name, schema in schemas.items()}
    values = {name: column_values(schema) for name, schema in schemas.items()}
    others = _queries(rows, questions, dialect)
    drafts, jobs = list[tuple[Row, list[str]]](), list[SqlJob]()
    for row in rows:
        question = questions[row["question_id"]]
        if question.gold_result is None:
            continue
        chance = random.Random(digest([seed, row["question_id"], row["completion"]]))
        name = question.db_id
        found = _drafts(row["completion"], columns[name], values[name], others.get(name, ()), chance, dialect)
        drafts.append((row, found[: ATTEMPTS * count]))
        jobs += [SqlJob(str(databases[question.db_id]), sql) for sql in drafts[-1][1]]
    executions = iter(sandbox.run(jobs))
    made = []
    for row, found in drafts:
        ran = [(sql, next(executions)) for sql in found]
        wrong = (sql for sql, execution in ran if _is_wrong(execution, questions[row["question_id"]]))
        steps = (_steps(sql, row["completion"], dialect) for sql in wrong)
        known = (each for each in steps if not (grounded and _is_invented(each, row["prompt"], dialect)))
        pairs = (_pair(row, each, count) for each in known)
        made += [each for pair in islice(filter(None, pairs), count) for each in pair]
    return made


def _queries(rows: Iterable[Row], questions: Mapping[str, Question], dialect: str) -> Mapping[str, Sequence[str]]:
    """The queries of all trajectories by database, each once."""
    found: dict[str, dict[str, None]] = defaultdict(dict)
    for row in rows:
        with contextlib.suppress(SqlError):
            found[questions[row["question_id"]].db_id][query_of(row["completion"], dialect)] = None
    return {name: list(queries) for name, queries in found.items()}


def _drafts(
    completion: str,
    columns: Columns,
    values: Values,
    others: Sequence[str],
    chance: random.Random,
    dialect: str,
) -> list[str]:
    """Queries near to a trajectory's: of every kind as many as there are, in turns and random order."""
    try:
        sql = query_of(completion, dialect)
        changed = [_QUOTED.sub(r"\1", each.sql) for each in near_misses(sql, columns, dialect)]
        constants = list(_other_constants(sql, values, chance, dialect))
    except (SqlError, ValueError):  # a number cut off, such as 28e, is none
        return []
    strangers = list(_strangers(sql, chance.sample(others, min(STRANGERS, len(others))), chance, dialect))
    kinds = [constants, strangers, changed]
    for kind in kinds:
        chance.shuffle(kind)
    return list(dict.fromkeys(sql for turn in zip_longest(*kinds) for sql in turn if sql))


def _strangers(sql: str, others: Iterable[str], chance: random.Random, dialect: str) -> Iterator[str]:
    """Other queries, their constants replaced by this one's; those left out that need a kind of constant it lacks."""
    (tree,) = parse_statements(sql, dialect)
    own = {is_string: [c for c in _compared(tree) if c.is_string is is_string] for is_string in (True, False)}
    for other in others:
        stranger = parse_statements(other, dialect)[0].copy()
        for literal in _compared(stranger):
            pool = own[literal.is_string]
            if not pool:
                break
            literal.replace(chance.choice(pool).copy())
        else:
            yield stranger.sql(dialect=dialect, copy=False)


def _other_constants(sql: str, values: Values, chance: random.Random, dialect: str) -> Iterator[str]:
    """The query with one compared constant replaced: by another one of the query, and by one of its column."""
    from sqlglot import exp

    (tree,) = parse_statements(sql, dialect)
    literals = _compared(tree)
    for place, literal in enumerate(literals):
        text, predicate = str(literal.this), literal.find_ancestor(exp.Predicate)
        assert predicate is not None
        names = [column.name.lower() for column in predicate.find_all(exp.Column)]
        pools: tuple[Sequence[object], ...] = (
            [other.this for other in literals if other.is_string == literal.is_string and str(other.this) != text],
            [value for name in names for value in values.get(name, ())],
        )
        for pool in filter(None, pools):
            new = _like(text, str(chance.choice(pool)), chance)
            if new != text and (literal.is_string or new.replace(".", "", 1).isdigit()):
                changed = tree.copy()
                made = exp.Literal.string(new) if literal.is_string else exp.Literal.number(new)
                _compared(changed)[place].replace(made)
                yield changed.sql(dialect=dialect, copy=False)


def _compared(tree: exp.Expr) -> list[exp.Literal]:
    """The constants that something is compared with."""
    from sqlglot import exp

    return [literal for literal in tree.find_all(exp.Literal) if literal.find_ancestor(exp.Predicate)]


def _like(constant: str, value: str, chance: random.Random) -> str:
    """`value` as it would stand where `constant`, which may be a LIKE pattern, does."""
    word = piece(value.strip("%"), constant, chance)
    return f"{'%' * constant.startswith('%')}{word}{'%' * constant.endswith('%')}"


def _is_wrong(execution: Execution, question: Question) -> bool:
    gold = question.gold_result
    assert gold is not None
    return execution.verdict == "ok" and bool(execution.rows) and not agrees(execution, gold)


def _is_invented(steps: Iterable[str], prompt: str, dialect: str) -> bool:
    return any(ungrounded(parse_step(step, dialect), prompt, dialect) for step in steps)


def _steps(sql: str, completion: str, dialect: str) -> list[str]:
    """A query as the texts of its steps, those of `completion` where the clause is the same; none if that fails."""
    try:
        own = {parse_step(text, dialect).clause: text for text in completion.split(DELIMITER)}
        steps = with_thoughts(steps_from_sql(sql, dialect), dialect)
    except SqlError:
        return []
    return [own.get(step.clause, str(step)) for step in steps]


def _pair(row: Row, wrong: list[str], count: int) -> list[Row]:
    """The whole trajectories, and the first step in which they differ; nothing where one begins with the other."""
    right = row["completion"].split(DELIMITER)
    same = next((place for place, (a, b) in enumerate(zip(right, wrong, strict=False)) if a != b), None)
    if same is None:
        return []
    base = {"question_id": row["question_id"], "weight": 1 / count, "margin": MARGIN}
    base["prompt_chars"] = len(row["prompt"])
    before = "".join(step + DELIMITER for step in right[:same])
    whole = {"chosen": row["completion"], "rejected": DELIMITER.join(wrong)}
    step = {"chosen": right[same], "rejected": wrong[same]}
    ends = {"chosen_final": same == len(right) - 1, "rejected_final": same == len(wrong) - 1}
    return [
        {**base, "prompt": row["prompt"], **whole, "chosen_final": True, "rejected_final": True},
        {**base, "prompt": row["prompt"] + before, **step, **ends},
    ]
