from __future__ import annotations

import pytest

from rstar_trl.data.question import Question
from rstar_trl.policy.bootstrap import bootstrap_rows, gold_completion
from rstar_trl.sql.steps import canonical, parse_step, sql_from_steps

SQL = "SELECT name FROM singer WHERE age > 30 ORDER BY age LIMIT 1"


def question(sql: str | None, name: str = "q") -> Question:
    return Question(name, "music", f"{name}?", gold_sql=sql)


def test_gold_sql_becomes_steps_that_give_it_back() -> None:
    completion = gold_completion(question(SQL))
    assert completion is not None
    texts = completion.split("\n\n")
    steps = [parse_step(text) for text in texts]
    assert [step.kind for step in steps] == ["FROM", "WHERE", "SELECT", "ORDER BY", "LIMIT"]
    assert all(text.startswith("-- ") and len(text.splitlines()) == 2 for text in texts)
    assert canonical(sql_from_steps(steps)) == canonical(SQL)


@pytest.mark.parametrize("sql", [None, "", "SELECT FROM WHERE", "DELETE FROM singer", "nonsense"])
def test_what_cannot_be_taken_apart_is_left_out(sql: str | None) -> None:
    assert gold_completion(question(sql)) is None


def test_rows_are_those_with_usable_sql() -> None:
    questions = [question(SQL, "a"), question(None, "b"), question("SELECT FROM", "c"), question(SQL, "d")]
    rows = bootstrap_rows(questions, lambda q: f"<{q.id}>")
    assert [row["question_id"] for row in rows] == ["a", "d"]
    assert rows[0] == {"question_id": "a", "prompt": "<a>", "completion": gold_completion(questions[0])}
