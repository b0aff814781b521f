"""Searching a list of questions into a file, and going on after a kill."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from rstar_trl.config import PromptConfig, SearchConfig
from rstar_trl.data.question import GoldResult, Question
from rstar_trl.errors import DataError, InfraError
from rstar_trl.io import read_jsonl
from rstar_trl.policy.prompting import Prompter
from rstar_trl.search.run import SearchSummary, search_questions
from rstar_trl.sql.sandbox import Sandbox
from tests.scripted import NAMES, Script, ScriptedEngine, end, step

SCRIPT: Script = {
    (): [step("FROM singer"), step("FROM concert"), step("FROM nowhere")],
    ("FROM singer",): [end("SELECT name"), end("SELECT age")],
    ("FROM concert",): [end("SELECT title")],
}
QUESTIONS = [Question(f"q{i}", "music", f"names {i}?", gold_result=GoldResult(NAMES)) for i in range(8)]


class Lines:
    """A progress that remembers what it was told."""

    def __init__(self) -> None:
        self.done: list[int] = []

    def update(self, done: int, *, solved: int, dead_ends: int, tokens: int) -> None:
        self.done.append(done)


def run(
    database: Path, sandbox: Sandbox, out: Path, questions: list[Question] = QUESTIONS, **options: Any
) -> tuple[SearchSummary, ScriptedEngine]:
    engine = ScriptedEngine(SCRIPT, draw=True)
    databases = {"music": database}
    settings: dict[str, Any] = {"mode": "train", "seed": 5, "progress": None, **options}
    summary = search_questions(
        questions,
        engine=engine,
        scorer=None,
        sandbox=sandbox,
        prompter=Prompter(databases, PromptConfig()),
        databases=databases,
        config=SearchConfig(num_candidates=3, simulations=4, trees_in_flight=3),
        out=out,
        **settings,
    )
    return summary, engine


def trees(path: Path) -> dict[str, dict[str, Any]]:
    rows, _ = read_jsonl(path)
    assert len({row["question_id"] for row in rows}) == len(rows)
    return {row["question_id"]: {**row, "seconds": 0.0} for row in rows}


def test_each_question_becomes_one_line(small_database: Path, shared_sandbox: Sandbox, tmp_path: Path) -> None:
    progress = Lines()
    summary, _ = run(small_database, shared_sandbox, tmp_path / "trees.jsonl", progress=progress)
    rows = trees(tmp_path / "trees.jsonl")
    assert set(rows) == {question.id for question in QUESTIONS} and progress.done == list(range(1, 9))
    assert (summary.questions, summary.infra, summary.torn_lines) == (8, 0, 0)
    assert summary.solved == sum(1.0 in row["reward"] for row in rows.values()) > 0
    assert summary.generated_tokens == sum(row["generated_tokens"] for row in rows.values())
    assert "names 3?" in rows["q3"]["prompt"] and "singer" in rows["q3"]["prompt"]


def test_resume_searches_only_what_is_missing(small_database: Path, shared_sandbox: Sandbox, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole.jsonl", tmp_path / "broken.jsonl"
    expected, _ = run(small_database, shared_sandbox, whole)
    lines = whole.read_bytes().splitlines(keepends=True)
    broken.write_bytes(b"".join(lines[:3]) + lines[3][: len(lines[3]) // 2])
    kept = set(list(trees(whole))[:3])

    summary, engine = run(small_database, shared_sandbox, broken)
    assert summary.torn_lines == 1
    assert trees(broken) == trees(whole)
    asked = {request.prompt.strip().splitlines()[-1] for request in engine.requests}
    assert asked == {question.question for question in QUESTIONS if question.id not in kept}
    assert dataclasses.replace(summary, seconds=0, torn_lines=0) == dataclasses.replace(expected, seconds=0)
    before = broken.read_bytes()
    _, idle = run(small_database, shared_sandbox, broken)
    assert idle.requests == [] and broken.read_bytes() == before


def test_trees_depend_on_seed_and_id_alone(small_database: Path, shared_sandbox: Sandbox, tmp_path: Path) -> None:
    run(small_database, shared_sandbox, tmp_path / "all.jsonl")
    run(small_database, shared_sandbox, tmp_path / "some.jsonl", QUESTIONS[5:2:-1])
    run(small_database, shared_sandbox, tmp_path / "other.jsonl", seed=6)
    everything, some, other = (trees(tmp_path / f"{name}.jsonl") for name in ("all", "some", "other"))
    assert some == {name: everything[name] for name in some}
    assert other != everything


def test_training_without_a_gold_result_is_refused(
    small_database: Path, shared_sandbox: Sandbox, tmp_path: Path
) -> None:
    question = Question("q", "music", "names?")
    with pytest.raises(DataError, match="question q has no gold result"):
        run(small_database, shared_sandbox, tmp_path / "trees.jsonl", [question])
    run(small_database, shared_sandbox, tmp_path / "trees.jsonl", [question], mode="inference")


def test_a_sandbox_that_fails_on_everything_stops_the_search(
    small_database: Path, shared_sandbox: Sandbox, tmp_path: Path
) -> None:
    """The prompt is written from the whole database; then the file is gone."""
    database = tmp_path / "gone.sqlite"
    database.write_bytes(small_database.read_bytes())
    prompter = Prompter({"music": database}, PromptConfig())
    questions = [dataclasses.replace(QUESTIONS[0], id=f"q{i}") for i in range(200)]
    prompter.prompt(questions[0])
    database.unlink()
    with pytest.raises(InfraError, match=r"could not be executed.*cannot be opened"):
        search_questions(
            questions,
            engine=ScriptedEngine(SCRIPT),
            scorer=None,
            sandbox=shared_sandbox,
            prompter=prompter,
            databases={"music": database},
            config=SearchConfig(),
            mode="train",
            seed=0,
            out=tmp_path / "trees.jsonl",
        )
