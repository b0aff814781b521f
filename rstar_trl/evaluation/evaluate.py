"""Ways of answering compared on the same questions, at equal budgets of generated tokens.

Methods: `greedy`; `mcts` (search guided by the PPM, answer picked as the search config says); `majority` and
`best_of_n`, which share one set of N independent samples. N is the smallest number that gives them at least as many
generated tokens as `mcts` used, so that a lead of search is never bought with tokens.

Guarantees: no method sees a gold answer before it has answered; every tree is on disk (`<method>-<rank>.jsonl`), so an
interrupted evaluation goes on where it stopped; accuracies are in mode `bag_ordered`.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from rstar_trl.config import EvaluationConfig, SearchConfig
from rstar_trl.data.databases import Database
from rstar_trl.data.question import Question
from rstar_trl.errors import SqlError
from rstar_trl.io import append_jsonl, read_jsonl, write_json
from rstar_trl.policy.interface import Engine, Scorer
from rstar_trl.policy.prompting import Prompter
from rstar_trl.search.answers import choose_answer
from rstar_trl.search.queue import Peers, never
from rstar_trl.search.run import Reporter
from rstar_trl.search.together import ALONE, search_together, tree_files
from rstar_trl.search.tree import Tree
from rstar_trl.sql.compare import results_equal
from rstar_trl.sql.execution import SqlJob
from rstar_trl.sql.sandbox import Sandbox
from rstar_trl.sql.steps import canonical

SAMPLED = ("majority", "best_of_n")


class Phases(Reporter, Protocol):
    """Progress that can start over for the next method (`rstar_trl.progress.Progress`)."""

    def begin(self, label: str) -> None: ...


def evaluate(
    questions: Sequence[Question],
    *,
    engine: Engine,
    scorer: Scorer | None,
    sandbox: Sandbox,
    prompter: Prompter,
    databases: Mapping[str, Database],
    config: EvaluationConfig,
    search: SearchConfig,
    seed: int,
    out: Path,
    dialect: str = "sqlite",
    progress: Phases | None = None,
    peers: Peers = ALONE,
    stop: Callable[[], bool] = never,
) -> dict[str, Any]:
    """Answers the questions by every method of `config` and returns the metrics by method (also in metrics.json).

    Several processes (`peers`) answer them from one queue; all must call this together. Raises `Interrupted` after a
    method in which `stop` became true; the trees that were in flight are finished then.
    """

    def answer(name: str, settings: SearchConfig, judge: Scorer | None) -> list[Tree]:
        if progress is not None:
            progress.begin(f"{out.parent.name} {name}")
        summary = search_together(
            questions,
            folder=out,
            name=name,
            peers=peers,
            stop=stop,
            engine=engine,
            scorer=judge,
            sandbox=sandbox,
            prompter=prompter,
            databases=databases,
            config=settings,
            mode="inference",
            seed=seed,
            dialect=dialect,
            progress=progress,
        )
        append_jsonl(out / f"seconds-{peers.rank}.jsonl", {"method": name, "seconds": summary.seconds})
        peers.barrier()
        return _read(out, name, questions)

    metrics: dict[str, Any] = {}
    trees = {"greedy": answer("greedy", dataclasses.replace(search, algorithm="greedy"), None)}
    if "mcts" in config.methods:
        trees["mcts"] = answer("mcts", search, scorer)
    if any(name in config.methods for name in SAMPLED):
        samples = equal_budget(trees.get("mcts"), trees["greedy"], search)
        settings = dataclasses.replace(search, algorithm="sample", num_candidates=samples)
        trees["samples"] = answer("samples", settings, scorer)
        metrics["samples"] = samples
    answers = {
        "greedy": ("greedy", "majority"),
        "mcts": ("mcts", search.answer),
        "majority": ("samples", "majority"),
        "best_of_n": ("samples", "ppm"),
    }
    for method in config.methods:
        source, how = answers[method]
        chosen = [(tree, choose_answer(tree, how, search.value_scale)) for tree in trees[source]]
        metrics[method] = measure(questions, chosen, sandbox, databases, dialect) | cost(
            trees[source],
            _seconds(out, source),
            config.price_per_million_tokens,
            config.price_per_million_prompt_tokens,
        )
    if peers.rank == 0:
        write_json(out / "metrics.json", metrics)
    return metrics


def equal_budget(searched: list[Tree] | None, greedy: list[Tree], search: SearchConfig) -> int:
    """The least N for which N samples a question generate as many tokens as the search did."""
    if not searched:
        return search.simulations
    spent = sum(tree.generated_tokens for tree in searched) / len(searched)
    single = sum(tree.generated_tokens for tree in greedy) / len(greedy)
    return max(1, math.ceil(spent / max(single, 1.0)))


def measure(
    questions: Sequence[Question],
    answers: Sequence[tuple[Tree, int | None]],
    sandbox: Sandbox,
    databases: Mapping[str, Database],
    dialect: str = "sqlite",
) -> dict[str, float]:
    """Execution accuracy (`bag_ordered`), exact match (same AST as the gold SQL) and valid-SQL rate, in 0..1.

    Questions without a gold result count for the valid-SQL rate alone.
    """
    by_id = {question.id: question for question in questions}
    jobs = [SqlJob(str(databases[tree.db_id]), tree.sql[node] if node is not None else "") for tree, node in answers]
    right = exact = valid = judged = 0
    for (tree, _), job, execution in zip(answers, jobs, sandbox.run(jobs), strict=True):
        question = by_id[tree.question_id]
        valid += execution.verdict == "ok"
        exact += question.gold_sql is not None and _same(job.sql, question.gold_sql, dialect)
        if question.gold_result is not None:
            judged += 1
            gold = question.gold_result
            right += execution.verdict == "ok" and results_equal(execution.rows or (), gold.rows, gold.ordered)
    return {
        "questions": len(answers),
        "execution_accuracy": right / max(1, judged),
        "exact_match": exact / max(1, len(answers)),
        "valid_sql": valid / max(1, len(answers)),
    }


def cost(trees: Sequence[Tree], seconds: float, price: float | None, prompt_price: float = 0.0) -> dict[str, float]:
    """Tokens, seconds and, where a price is given, money per question. Prices are for a million tokens.

    `seconds_per_question` is the time of the whole run over its questions (throughput); `latency_median` and
    `latency_p95` are those of single questions, from the first request to the answer, with others in flight.
    """
    count = max(1, len(trees))
    tokens = sum(tree.generated_tokens for tree in trees) / count
    latencies = sorted(tree.seconds for tree in trees) or [0.0]
    prompt_tokens = sum(tree.prompt_tokens for tree in trees) / count
    found = {
        "tokens_per_question": tokens,
        "prompt_tokens_per_question": prompt_tokens,
        "seconds_per_question": seconds / count,
        "latency_median": statistics.median(latencies),
        "latency_p95": latencies[min(len(latencies) - 1, math.ceil(0.95 * len(latencies)) - 1)],
    }
    if price is not None:
        found["price_per_question"] = (tokens * price + prompt_tokens * prompt_price) / 1e6
    return found


def _same(sql: str, gold: str, dialect: str) -> bool:
    try:
        return canonical(sql, dialect) == canonical(gold, dialect)
    except SqlError:
        return False


def _read(out: Path, name: str, questions: Sequence[Question]) -> list[Tree]:
    """The trees of all processes, one per question, in the order of the questions."""
    trees = {
        row["question_id"]: Tree.from_record(row) for path in tree_files(out, name) for row in read_jsonl(path)[0]
    }
    return [trees[question.id] for question in questions if question.id in trees]


def _seconds(out: Path, name: str) -> float:
    rows = (row for path in tree_files(out, "seconds") for row in read_jsonl(path)[0])
    return sum(row["seconds"] for row in rows if row["method"] == name)
