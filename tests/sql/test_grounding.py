"""Constants of conditions that the prompt does not show."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rstar_trl.config import DataConfig, PromptConfig
from rstar_trl.data.loaders import load_corpus
from rstar_trl.policy.prompting import Prompter
from rstar_trl.sql.grounding import ungrounded
from rstar_trl.sql.steps import parse_step, steps_from_sql

SPIDER = Path(os.environ.get("RSTAR_SPIDER", Path(__file__).resolve().parents[2] / "../shared/data/spider"))
PROMPT = "table singer (name)\nsinger.name = 'O''Hara'\nSingers from New York, over 30, who sold 1,500 or more"


@pytest.mark.parametrize(
    "clause",
    [
        "WHERE city = 'New York' AND age > 30",
        "WHERE city = 'new york' OR name = 'O''Hara'",
        "WHERE sold >= 1500.0 AND rank <= 3",
        "WHERE name LIKE 'N%' AND city LIKE '%new%york%'",
        f"WHERE name LIKE '{'%' * 60}n{'%_' * 60}'",
        "WHERE age > -30 AND NOT (city IN ('New York'))",
        'WHERE city = "New York" AND "Real Name" IS NULL',
        "WHERE DATE(born, 'start of month') = DATE('now')",
        "SELECT 99, 'x'",
        "LIMIT 50",
        "UNION ALL",
    ],
)
def test_what_the_prompt_shows_is_grounded(clause: str) -> None:
    assert ungrounded(parse_step(clause), PROMPT) is None


@pytest.mark.parametrize(
    ("clause", "constant"),
    [
        ("WHERE city = 'York, York'", "'York, York'"),
        ("WHERE city = 'New Yor'", "'New Yor'"),
        ('WHERE city = "Boston"', "'Boston'"),
        ("WHERE age > 30 AND age < 300", "300"),
        ("WHERE sold > 500", "500"),
        ("WHERE age > 30e", "30e"),
        ("WHERE name LIKE '%york%new%'", "'%york%new%'"),
        ("WHERE name LIKE '%york%york%'", "'%york%york%'"),
        (f"WHERE name LIKE '{'%' * 60}lima%'", f"'{'%' * 60}lima%'"),
        ("WHERE city IN ('New York', 'Lima')", "'Lima'"),
        ("WHERE age BETWEEN 30 AND 40", "40"),
        ("WHERE age < (SELECT MAX(age) FROM singer WHERE city = 'Oslo')", "'Oslo'"),
        ("FROM singer JOIN song ON song.year = 1999", "1999"),
        ("HAVING COUNT(*) > 20", "20"),
        ("SELECT age > 77", "77"),
        ("WITH old AS (SELECT * FROM singer WHERE age > 80)", "80"),
    ],
)
def test_an_invented_constant_is_named(clause: str, constant: str) -> None:
    assert ungrounded(parse_step(clause), PROMPT) == constant


def test_quoted_names_are_text_in_sqlite_alone() -> None:
    assert ungrounded(parse_step('WHERE city = "Boston"', "postgres"), PROMPT, "postgres") is None


@pytest.mark.skipif(not SPIDER.exists(), reason="Spider's data is not here")
def test_nearly_all_of_spiders_gold_queries_are_grounded_in_their_prompts(tmp_path: Path) -> None:
    corpus = load_corpus(DataConfig(source="spider", path=str(SPIDER)), tmp_path)
    prompter = Prompter(corpus.databases, PromptConfig())
    found = [
        any(ungrounded(step, prompter.prompt(question)) for step in steps_from_sql(question.gold_sql or ""))
        for question in corpus.eval
    ]
    assert len(found) > 400 and sum(found) <= 0.01 * len(found)
