"""Ways of answering compared, with a scripted policy: budgets, metrics, resume."""

from __future__ import annotations

import dataclasses
import json
import math
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from rstar_trl.config import EvaluationConfig, PromptConfig, SandboxConfig, SearchConfig
from rstar_trl.data.question import GoldResult, Question
from rstar_trl.evaluation.evaluate import cost, equal_budget, evaluate, measure
from rstar_trl.io import read_jsonl
from rstar_trl.policy.prompting import Prompter
from rstar_trl.search.tree import Tree
from rstar_trl.sql.sandbox import Sandbox
from tests.scripted import NAMES, Script, ScriptedEngine, ScriptedScorer, end, step

SINGER = "FROM singer"
SCRIPT: Script = {
    # Greedy takes the first: the ages, which is wrong, and so are two draws of three. The PPM knows better.
    (): [step(SINGER)],
    (SINGER,): [end("SELECT age", -0.5), end("-- show age\nSELECT age", -0.5), end("SELECT name", -2)],
}
SCORER = ScriptedScorer({"SELECT name": 3.0, "SELECT age": -3.0})
QUESTIONS = [
    Question(f"q{i}", "music", f"names {i}?", gold_sql="select NAME from singer", gold_result=GoldResult(NAMES))
    for i in range(6)
]
METHODS = ("greedy", "majority", "best_of_n", "mcts")


def run(database: Path, sandbox: Sandbox, out: Path, **options: Any) -> tuple[dict[str, Any], ScriptedEngine]:
    engine = ScriptedEngine(SCRIPT, draw=True)
    databases = {"music": database}
    settings: dict[str, Any] = {"config": EvaluationConfig(), "questions": QUESTIONS, "scorer": SCORER, **options}
    metrics = evaluate(
        settings.pop("questions"),
        engine=engine,
        sandbox=sandbox,
        prompter=Prompter(databases, PromptConfig()),
        databases=databases,
        search=SearchConfig(num_candidates=6, simulations=6, answer="ppm"),
        seed=3,
        out=out,
        **settings,
    )
    return metrics, engine


def without_times(metrics: dict[str, Any]) -> dict[str, Any]:
    return {
        method: {name: value for name, value in metrics[method].items() if "second" not in name and "lat" not in name}
        for method in METHODS
    }


def test_methods_answer_as_they_promise(small_database: Path, shared_sandbox: Sandbox, tmp_path: Path) -> None:
    metrics, _ = run(small_database, shared_sandbox, tmp_path)
    accuracy = {method: metrics[method]["execution_accuracy"] for method in METHODS}
    assert accuracy["greedy"] == 0.0 and metrics["greedy"]["valid_sql"] == 1.0
    # Where the right query was drawn at all, the PPM picks it; the majority is for the likelier ages.
    assert accuracy["mcts"] == metrics["mcts"]["exact_match"] > 0.5
    assert accuracy["best_of_n"] > 0.5 > accuracy["majority"]
    assert all(metrics[method]["questions"] == 6 for method in METHODS)
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    assert "price_per_question" not in metrics["mcts"]


def test_samples_spend_no_fewer_tokens_than_search(
    small_database: Path, shared_sandbox: Sandbox, tmp_path: Path
) -> None:
    metrics, _ = run(small_database, shared_sandbox, tmp_path)
    searched, sampled = (metrics[name]["tokens_per_question"] for name in ("mcts", "majority"))
    assert searched <= sampled < searched + 2 * metrics["greedy"]["tokens_per_question"]
    assert metrics["samples"] == math.ceil(searched / metrics["greedy"]["tokens_per_question"])
    assert metrics["best_of_n"]["tokens_per_question"] == sampled


def test_equal_budget_is_the_least_number_that_suffices() -> None:
    def spent(*tokens: int) -> list[Tree]:
        return [Tree("q", "d", "p", generated_tokens=count) for count in tokens]

    config = SearchConfig(simulations=5)
    assert equal_budget(spent(30, 70), spent(10, 10), config) == 5
    assert equal_budget(spent(30, 71), spent(10, 10), config) == 6
    assert equal_budget(spent(1), spent(10), config) == 1
    assert equal_budget(spent(10), spent(0), config) == 10
    assert equal_budget(None, spent(10), config) == equal_budget([], spent(10), config) == 5


def test_only_the_methods_asked_for_are_run(small_database: Path, shared_sandbox: Sandbox, tmp_path: Path) -> None:
    config = EvaluationConfig(methods=["greedy"], price_per_million_tokens=2.0)
    metrics, engine = run(small_database, shared_sandbox, tmp_path, config=config, scorer=None)
    assert set(metrics) == {"greedy"} and {request.temperature for request in engine.requests} == {0.0}
    assert metrics["greedy"]["price_per_question"] == pytest.approx(6 * 2 / 1e6)


def test_evaluation_goes_on_where_it_stopped(small_database: Path, shared_sandbox: Sandbox, tmp_path: Path) -> None:
    whole, _ = run(small_database, shared_sandbox, tmp_path / "whole")
    broken = tmp_path / "broken"
    run(small_database, shared_sandbox, broken)
    for path in (broken / "mcts-0.jsonl", broken / "samples-0.jsonl"):
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join(lines[:2]) + lines[2][:40])
    (broken / "metrics.json").unlink()
    resumed, engine = run(small_database, shared_sandbox, broken)
    assert all(request.temperature > 0 for request in engine.requests), "greedy was finished"
    assert without_times(resumed) == without_times(whole)
    _, idle = run(small_database, shared_sandbox, broken)
    assert idle.requests == []


def test_two_processes_answer_every_question_once(
    small_database: Path, shared_sandbox: Sandbox, tmp_path: Path
) -> None:
    """Two threads stand for them, with a barrier of their own: both return the metrics of one process."""
    alone, _ = run(small_database, shared_sandbox, tmp_path / "alone")
    gate = threading.Barrier(2)

    @dataclasses.dataclass(frozen=True)
    class Process:
        rank: int
        world: int = 2

        def barrier(self) -> None:
            gate.wait()

    def measured(rank: int) -> dict[str, Any]:
        with Sandbox(SandboxConfig(workers=1)) as sandbox:
            return run(small_database, sandbox, tmp_path / "both", peers=Process(rank))[0]

    with ThreadPoolExecutor(2) as pool:
        metrics = list(pool.map(measured, range(2)))
    assert without_times(metrics[0]) == without_times(metrics[1]) == without_times(alone)
    for name in ("greedy", "mcts", "samples"):
        shares = [read_jsonl(tmp_path / f"both/{name}-{rank}.jsonl")[0] for rank in range(2)]
        assert sorted(row["question_id"] for share in shares for row in share) == [f"q{i}" for i in range(6)]


def test_measures_by_hand(small_database: Path, shared_sandbox: Sandbox) -> None:
    """Right by rows, right by AST, valid but wrong, broken, unanswered, and one without gold."""
    answers: list[tuple[Tree, int | None]] = []
    for number, sql in enumerate(
        ["SELECT s.name FROM singer AS s", "SELECT name FROM singer", "SELECT age FROM singer", "SELECT x", None]
    ):
        tree = Tree(f"q{number}", "music", "p")
        answers.append((tree, None if sql is None else tree.add(0, "step", sql=sql, terminal=True)))
    free = Question("free", "music", "?")
    tree = Tree("free", "music", "p")
    answers.append((tree, tree.add(0, "step", sql="SELECT 1", terminal=True)))
    found = measure([*QUESTIONS, free], answers, shared_sandbox, {"music": small_database})
    assert found == {
        "questions": 6,
        "execution_accuracy": 2 / 5,
        "exact_match": 1 / 6,
        "valid_sql": 4 / 6,
    }


def test_costs_by_hand() -> None:
    trees = [Tree("q", "d", "p", generated_tokens=100, prompt_tokens=700, seconds=float(i)) for i in range(1, 21)]
    assert cost(trees, 10.0, price=3.0, prompt_price=1.0) == {
        "tokens_per_question": 100.0,
        "prompt_tokens_per_question": 700.0,
        "seconds_per_question": 0.5,
        "latency_median": 10.5,
        "latency_p95": 19.0,
        "price_per_question": pytest.approx(0.001),
    }
    assert cost([], 0.0, None)["tokens_per_question"] == 0
