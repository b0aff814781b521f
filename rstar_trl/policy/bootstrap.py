"""The cold start's training rows: gold SQL, where it is known, taken apart into steps with plain thoughts.

Needs no other model. A query that cannot be taken apart, or whose steps do not give it back, is left out and counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from rstar_trl.data.question import Question
from rstar_trl.errors import SqlError
from rstar_trl.policy.tokens import DELIMITER
from rstar_trl.sql.steps import canonical, sql_from_steps, steps_from_sql, with_thoughts


def bootstrap_rows(
    questions: Iterable[Question], render: Callable[[Question], str], dialect: str = "sqlite"
) -> list[dict[str, Any]]:
    """`question_id, prompt, completion` for each question whose gold SQL is known and can be taken apart."""
    rows = []
    for question in questions:
        completion = gold_completion(question, dialect)
        if completion is not None:
            rows.append({"question_id": question.id, "prompt": render(question), "completion": completion})
    return rows


def gold_completion(question: Question, dialect: str = "sqlite") -> str | None:
    """The gold SQL as a trajectory, or None where there is no gold SQL or it does not survive the round trip."""
    if question.gold_sql is None:
        return None
    try:
        steps = steps_from_sql(question.gold_sql, dialect)
        if canonical(sql_from_steps(steps, dialect), dialect) != canonical(question.gold_sql, dialect):
            return None
    except SqlError:
        return None
    return DELIMITER.join(str(step) for step in with_thoughts(steps, dialect))
