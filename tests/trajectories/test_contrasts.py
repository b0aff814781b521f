from __future__ import annotations

from pathlib import Path

import pytest

from rstar_trl.data.question import GoldResult, Question
from rstar_trl.policy.bootstrap import bootstrap_rows
from rstar_trl.policy.tokens import DELIMITER
from rstar_trl.sql.compare import results_equal
from rstar_trl.sql.execution import SqlJob
from rstar_trl.sql.grounding import ungrounded
from rstar_trl.sql.sandbox import Sandbox
from rstar_trl.sql.steps import parse_step, sql_from_steps
from rstar_trl.trajectories.contrasts import contrasts
from rstar_trl.trajectories.rows import Row
from tests.trajectories.people import FIRST

GOLD = (
    "SELECT COUNT(*) FROM person WHERE city = 'Paris'",
    "SELECT name FROM person WHERE city = 'Oslo' OR city = 'Rome' ORDER BY age DESC",
    "SELECT city, MAX(age) FROM person WHERE name LIKE '%Smith%' GROUP BY city",
    "SELECT name FROM person WHERE age BETWEEN 20 AND 60",
    "SELECT name FROM person",
)


@pytest.fixture(scope="module")
def questions(people: Path, shared_sandbox: Sandbox) -> dict[str, Question]:
    executions = shared_sandbox.run([SqlJob(str(people), sql) for sql in GOLD])
    return {
        f"q{i}": Question(
            f"q{i}", "people", "?", gold_sql=sql, gold_result=GoldResult(tuple(e.rows or ()), "ORDER BY" in sql)
        )
        for i, (sql, e) in enumerate(zip(GOLD, executions, strict=True))
    }


def made(
    questions: dict[str, Question],
    people: Path,
    sandbox: Sandbox,
    count: int = 3,
    seed: int = 0,
    grounded: bool = False,
) -> list[Row]:
    """The prompts show every constant of the question's own query."""
    rows = bootstrap_rows(questions.values(), lambda question: f"{question.id} {question.gold_sql}\n")
    return contrasts(rows, questions, {"people": people}, count, sandbox, seed, grounded=grounded)


def query(steps: str) -> str:
    return sql_from_steps([parse_step(step) for step in steps.split(DELIMITER)])


def test_a_near_miss_gives_rows_but_not_the_answer(
    questions: dict[str, Question], people: Path, shared_sandbox: Sandbox
) -> None:
    whole = [row for row in made(questions, people, shared_sandbox) if len(row["prompt"]) == row["prompt_chars"]]
    whole = [row for row in whole if row["chosen_final"] and row["rejected_final"]]
    executions = shared_sandbox.run([SqlJob(str(people), query(row["rejected"])) for row in whole])
    assert len(whole) >= 3 * (len(GOLD) - 1)
    for row, execution in zip(whole, executions, strict=True):
        gold = questions[row["question_id"]].gold_result
        assert gold is not None and execution.verdict == "ok" and execution.rows
        assert not results_equal(execution.rows, gold.rows, gold.ordered)


def test_a_step_pair_is_the_first_difference_of_the_whole_pair_before_it(
    questions: dict[str, Question], people: Path, shared_sandbox: Sandbox
) -> None:
    rows = made(questions, people, shared_sandbox)
    for whole, step in zip(rows[::2], rows[1::2], strict=True):
        prompt = whole["prompt"]
        assert step["prompt"].startswith(prompt) and step["prompt_chars"] == len(prompt) == whole["prompt_chars"]
        before = step["prompt"][len(prompt) :]
        for side in ("chosen", "rejected"):
            assert (whole[side] + DELIMITER).startswith(before + step[side] + DELIMITER)
            last = before + step[side] == whole[side]
            assert step[f"{side}_final"] == last
        assert step["chosen"] != step["rejected"]


def test_nothing_but_the_change_tells_the_sides_apart(
    questions: dict[str, Question], people: Path, shared_sandbox: Sandbox
) -> None:
    rows = made(questions, people, shared_sandbox, count=20)
    assert not any('"' in row["rejected"] for row in rows)
    worded = [{**row, "completion": row["completion"].replace("-- ", "-- now ")} for row in bootstrap(questions)]
    for row in contrasts(worded, questions, {"people": people}, 20, shared_sandbox, 0):
        kept = set(row["chosen"].split(DELIMITER)) & set(row["rejected"].split(DELIMITER))
        other = [s for s in row["rejected"].split(DELIMITER) if s not in kept]
        clauses = {step.split("\n", 1)[1] for step in row["chosen"].split(DELIMITER)}
        assert all(step.split("\n", 1)[1] not in clauses for step in other)


def bootstrap(questions: dict[str, Question]) -> list[Row]:
    return bootstrap_rows(questions.values(), lambda question: f"{question.id}\n")


def test_constants_come_from_the_query_and_the_column(
    questions: dict[str, Question], people: Path, shared_sandbox: Sandbox
) -> None:
    rejected = " ".join(row["rejected"] for row in made(questions, people, shared_sandbox, count=50))
    assert "city = 'Rome' OR city = 'Rome'" in rejected
    assert any(f"name LIKE '%{word}%'" in rejected for word in (*FIRST, "Jones", "Adams"))


def test_other_questions_queries_are_asked_with_this_questions_constants(
    questions: dict[str, Question], people: Path, shared_sandbox: Sandbox
) -> None:
    rows = made(questions, people, shared_sandbox, count=50)
    wrong = {name: {row["rejected"] for row in rows if row["question_id"] == name} for name in questions}
    clauses = {
        name: {step.split("\n")[-1] for text in wrong[name] for step in text.split(DELIMITER)} for name in wrong
    }
    assert "WHERE city = 'Paris' OR city = 'Paris'" in clauses["q0"]
    # The query of q3 compares numbers, of which q0 has none; that of q4 compares nothing.
    assert not any("BETWEEN" in clause for clause in clauses["q0"])
    assert any(text.count(DELIMITER) == 1 and text.endswith("SELECT name") for text in wrong["q0"])


def test_a_grounded_search_is_not_taught_what_it_never_sees(
    questions: dict[str, Question], people: Path, shared_sandbox: Sandbox
) -> None:
    free = made(questions, people, shared_sandbox, count=20)
    kept = made(questions, people, shared_sandbox, count=20, grounded=True)

    def invented(rows: list[Row]) -> int:
        steps = [(row, step) for row in rows for step in row["rejected"].split(DELIMITER)]
        return sum(ungrounded(parse_step(step), row["prompt"]) is not None for row, step in steps)

    assert invented(free) > 0 == invented(kept)
    assert len({row["question_id"] for row in kept}) == len(GOLD)


def test_the_same_seed_gives_the_same_pairs_and_the_count_is_an_upper_bound(
    questions: dict[str, Question], people: Path, shared_sandbox: Sandbox
) -> None:
    first = made(questions, people, shared_sandbox, 2, seed=7)
    assert first == made(questions, people, shared_sandbox, 2, seed=7)
    assert first != made(questions, people, shared_sandbox, 2, seed=8)
    for name in questions:
        own = [row for row in first if row["question_id"] == name]
        assert len(own) <= 4 and all(row["weight"] == 0.5 for row in own)


def test_a_question_without_an_answer_has_none(
    questions: dict[str, Question], people: Path, shared_sandbox: Sandbox
) -> None:
    unknown = {"q0": Question("q0", "people", "?", gold_sql=GOLD[0])}
    assert made(unknown, people, shared_sandbox) == []
