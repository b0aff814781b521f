from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import sqlglot
from sqlglot import exp

from rstar_trl.config import PromptConfig
from rstar_trl.data.question import Question
from rstar_trl.policy.bootstrap import bootstrap_rows
from rstar_trl.policy.prompting import Prompter
from rstar_trl.policy.tokens import DELIMITER
from rstar_trl.sql.execution import SqlJob
from rstar_trl.sql.sandbox import Sandbox
from rstar_trl.sql.steps import parse_step, sql_from_steps
from rstar_trl.training.ppm_trees import question_of
from rstar_trl.trajectories.rows import Row
from rstar_trl.trajectories.values import value_copies
from tests.trajectories.people import FIRST, LAST

GOLD = {
    "How many people live in Paris?": "SELECT COUNT(*) FROM person WHERE city = 'Paris'",
    "How many are between 20 and 40 years old?": "SELECT COUNT(*) FROM person WHERE age BETWEEN 20 AND 40",
    "Ages of people whose name contains Smith.": "SELECT age FROM person WHERE name LIKE '%Smith%'",
    "Ages of people whose name starts with J.": "SELECT age FROM person WHERE name LIKE 'J%'",
    "Who is called Ann O'Neil?": "SELECT id FROM person WHERE name = 'Ann O''Neil'",
    "The 3 oldest people older than 30.": "SELECT name FROM person WHERE age > 30 ORDER BY age DESC LIMIT 3",
    "All names.": "SELECT name FROM person",
    "People aged 30, only those aged 30.": "SELECT name FROM person WHERE age = 30",
    "People in the city of light.": "SELECT name FROM person WHERE city = 'Paris'",
}
QUESTIONS = {
    f"q{number}": Question(f"q{number}", "people", words, gold_sql=sql)
    for number, (words, sql) in enumerate(GOLD.items())
}


@pytest.fixture(scope="module")
def prompter(people: Path) -> Prompter:
    return Prompter({"people": people}, PromptConfig(show_schema=False, instructions=False))


def copies(
    prompter: Prompter, sandbox: Sandbox, count: int = 4, seed: int = 0, held_out: Sequence[Question] = ()
) -> dict[str, list[Row]]:
    rows = bootstrap_rows(QUESTIONS.values(), prompter.prompt)
    found = value_copies(rows, QUESTIONS, count, prompter, sandbox, seed, held_out).completions()
    return {name: [row for row in found if row["question_id"] == name] for name in QUESTIONS}


def query(row: Row) -> str:
    return sql_from_steps([parse_step(step) for step in row["completion"].split(DELIMITER)])


def shape(sql: str) -> str:
    tree = sqlglot.parse_one(sql, read="sqlite")
    for literal in list(tree.find_all(exp.Literal)):
        if not isinstance(literal.parent, exp.Limit):
            literal.replace(exp.Placeholder())
    return tree.sql()


def test_only_constants_differ(prompter: Prompter, shared_sandbox: Sandbox) -> None:
    for name, rows in copies(prompter, shared_sandbox).items():
        gold = QUESTIONS[name].gold_sql
        assert gold is not None
        assert all(shape(query(row)) == shape(gold) for row in rows)
        assert len({query(row) for row in rows} | {gold}) == len(rows) + 1


def test_a_copy_runs_and_gives_rows(prompter: Prompter, shared_sandbox: Sandbox) -> None:
    rows = [row for group in copies(prompter, shared_sandbox).values() for row in group]
    path = str(prompter.databases["people"])
    executions = shared_sandbox.run([SqlJob(path, query(row)) for row in rows])
    assert len(rows) > 10
    assert all(execution.verdict == "ok" and execution.rows for execution in executions)


def test_the_question_says_what_the_query_says(prompter: Prompter, shared_sandbox: Sandbox) -> None:
    for rows in copies(prompter, shared_sandbox).values():
        for row in rows:
            for literal in sqlglot.parse_one(query(row), read="sqlite").find_all(exp.Literal):
                assert str(literal.this).strip("%") in row["prompt"]


def test_a_range_stays_a_range(prompter: Prompter, shared_sandbox: Sandbox) -> None:
    rows = copies(prompter, shared_sandbox, 20)["q1"]
    assert rows
    for row in rows:
        low, high = (float(e.this) for e in sqlglot.parse_one(query(row)).find_all(exp.Literal))
        assert low < high


def test_patterns_keep_their_form_and_quotes_are_escaped(prompter: Prompter, shared_sandbox: Sandbox) -> None:
    found = copies(prompter, shared_sandbox, 20)
    words = {row["completion"].split("LIKE ")[1].split("\n")[0] for row in found["q2"]}
    assert words <= {f"'%{word}%'" for word in (*FIRST, "O''Neil", *LAST)}
    assert {row["completion"].split("LIKE ")[1].split("\n")[0] for row in found["q3"]} <= {f"'{c}%'" for c in "ABKLMS"}
    assert any("''" not in row["completion"] for row in found["q4"])
    assert any("O''Neil" in row["completion"] and "O'Neil?" in row["prompt"] for row in found["q4"])


@pytest.mark.parametrize("name", ["q6", "q7", "q8"], ids=["no constant", "said twice", "said in other words"])
def test_what_the_question_does_not_spell_once_has_no_copies(
    name: str, prompter: Prompter, shared_sandbox: Sandbox
) -> None:
    assert copies(prompter, shared_sandbox)[name] == []


def test_no_copy_is_a_held_out_question(prompter: Prompter, shared_sandbox: Sandbox) -> None:
    by_query = Question("e", "people", "?", gold_sql="select count(*) from person where city = 'Rome'")
    by_words = Question("f", "people", "how many people  live in oslo?")
    free = {query(row) for row in copies(prompter, shared_sandbox, 20)["q0"]}
    kept = {query(row) for row in copies(prompter, shared_sandbox, 20, held_out=[by_query, by_words])["q0"]}
    assert {sql for sql in free if "Rome" in sql or "Oslo" in sql} == free - kept
    assert len(free - kept) == 2


def test_preferences_are_about_the_copied_question(prompter: Prompter, shared_sandbox: Sandbox) -> None:
    rows = bootstrap_rows(QUESTIONS.values(), prompter.prompt)
    made = value_copies(rows, QUESTIONS, 3, prompter, shared_sandbox, 0)
    prompt = rows[0]["prompt"]
    before, chosen, rejected = "FROM person\n\n", "WHERE city = 'Paris'", "WHERE city = 'Oslo' AND name = 'Paris'"
    row = {
        "question_id": "q0",
        "prompt": prompt + before,
        "chosen": chosen,
        "rejected": rejected,
        "prompt_chars": len(prompt),
        "margin": 1.0,
    }
    found = made.preferences([row])
    assert len(found) == len(made.of_rows[0][1]) > 0
    for each, copy in zip(found, made.of_rows[0][1], strict=True):
        city = copy.words["Paris"]
        assert each["prompt"] == prompter.prompt(copy.question) + before
        assert each["prompt"][: each["prompt_chars"]] == prompter.prompt(copy.question)
        assert (each["chosen"], each["margin"]) == (f"WHERE city = '{city}'", 1.0)
        assert each["rejected"] == f"WHERE city = 'Oslo' AND name = '{city}'"


def test_a_copy_is_a_question_of_its_own_to_the_ppm() -> None:
    row = {"question_id": "q0", "chosen": "a", "rejected": "b", "prompt_chars": 3}
    rows = [{**row, "prompt": prompt} for prompt in ("one FROM t", "one", "two")]
    first, second, other = (question_of(each, number) for number, each in enumerate(rows))
    assert first == second != other


def test_the_same_seed_gives_the_same_copies(prompter: Prompter, shared_sandbox: Sandbox) -> None:
    assert copies(prompter, shared_sandbox) == copies(prompter, shared_sandbox)
    assert copies(prompter, shared_sandbox) != copies(prompter, shared_sandbox, seed=1)
