from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from rstar_trl.config import PromptConfig
from rstar_trl.data.question import GoldResult, Question
from rstar_trl.errors import DataError
from rstar_trl.policy.prompting import INSTRUCTIONS, Prompter
from tests.scripted import make_database

QUESTION = Question("q1", "music", "How old is Bob?", evidence="old means age")
BARE = PromptConfig(show_schema=False, sample_values=0, value_hints=0, instructions=False)


def prompt(database: Path, config: PromptConfig, question: Question = QUESTION) -> str:
    return Prompter({"music": database}, config).prompt(question)


def test_everything_a_policy_is_shown(small_database: Path) -> None:
    text = prompt(small_database, PromptConfig())
    assert text.startswith(INSTRUCTIONS) and text.endswith("\nhint: old means age\nHow old is Bob?\n")
    assert "singer.name = 'Bob'" in text and "concert" in text and "age" in text


def test_each_part_can_be_left_out(small_database: Path) -> None:
    assert prompt(small_database, BARE) == "music\nhint: old means age\nHow old is Bob?\n"
    hinted = prompt(small_database, PromptConfig(show_schema=False, instructions=False))
    assert hinted == "music\nsinger.name = 'Bob'\nhint: old means age\nHow old is Bob?\n"


def test_gold_answers_are_never_shown(small_database: Path) -> None:
    secret = Question("q1", "music", "How old is Bob?", "old means age", "SELECT 'secret'", GoldResult((("secret",),)))
    assert prompt(small_database, PromptConfig(), secret) == prompt(small_database, PromptConfig())


def test_messages_are_a_chat(small_database: Path) -> None:
    messages = Prompter({"music": small_database}, PromptConfig()).messages(QUESTION)
    assert [message["role"] for message in messages] == ["system", "user"]
    rendered = Prompter({"music": small_database}, BARE, render=lambda chat: f"<{len(chat)}>").prompt(QUESTION)
    assert rendered == "<1>"


def test_hints_quote_what_the_database_holds(tmp_path: Path) -> None:
    path = make_database(tmp_path / "music.sqlite")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("INSERT INTO singer VALUES (9, 'D''Arc', 33)")
        connection.commit()
    text = prompt(path, PromptConfig(), Question("q", "music", "is D'Arc there?"))
    assert "singer.name = 'D''Arc'" in text


def test_question_about_an_unknown_database_is_named(small_database: Path) -> None:
    with pytest.raises(DataError, match="question q2 is about the database films, which is not there; known: music"):
        prompt(small_database, PromptConfig(), Question("q2", "films", "which?"))
