"""Budgets, settled answers, several simulations at once, widening, beam search, self-consistency, strange policies."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest

from rstar_trl.config import SearchConfig
from rstar_trl.errors import ConfigError
from rstar_trl.policy.interface import Candidate
from rstar_trl.search.effects import gather
from rstar_trl.search.mcts import simulations
from rstar_trl.search.state import State, start
from rstar_trl.search.tree import Tree
from rstar_trl.sql.execution import Execution
from rstar_trl.sql.sandbox import Sandbox
from tests.scripted import Script, ScriptedEngine, ScriptedScorer, end, grow, make_task, step, without_time

FROMS = [f"FROM singer AS t{i}" for i in range(6)]
WIDE: Script = {
    (): [step(text) for text in FROMS],
    **{(text,): [step(f"WHERE age > {i}") for i in range(6)] for text in FROMS},
    **{(text, f"WHERE age > {i}"): [end("SELECT name"), end("SELECT age")] for text in FROMS for i in range(6)},
}


def drive(state: State, script: Script) -> list[int]:
    """Runs the simulations of a state; returns how many requests for steps were made together, wave by wave."""
    engine, sizes = ScriptedEngine(script), list[int]()
    waves = gather(simulations(state), state.config.parallel_simulations)
    effects = next(waves)
    while True:
        proposals = [effect for effect in effects if type(effect).__name__ == "ProposeRequest"]
        sizes.append(len(proposals))
        answers = [
            engine.propose([effect])[0] if effect in proposals else [Execution("ok", ((1,),)) for _ in effect.jobs]  # type: ignore[union-attr]
            for effect in effects
        ]
        try:
            effects = waves.send(answers)
        except StopIteration:
            return sizes


def test_parallel_simulations_spread_out_and_leave_no_virtual_loss(small_database: Path) -> None:
    config = SearchConfig(num_candidates=6, simulations=12, parallel_simulations=4)
    state = start(make_task(small_database), config)
    sizes = drive(state, WIDE)
    assert max(sizes) == 4 and sizes[0] == 1
    tree = state.tree
    assert [bool(tree.children(child)) for child in tree.children(0)].count(True) >= 4
    assert state.virtual == {} and state.busy == set()
    finished = [n for n in range(len(tree)) if tree.terminal[n]]
    assert tree.visits[0] == len(finished) and tree.q[0] == pytest.approx(
        sum(tree.reward[n] or 0 for n in finished) / len(finished)
    )


@pytest.mark.parametrize("settings", [{}, {"selection": "uct"}, {"simulate": True}])
def test_parallel_simulations_ask_for_as_much_as_serial_ones(
    settings: dict[str, Any], small_database: Path, shared_sandbox: Sandbox
) -> None:
    def size(parallel: int) -> int:
        options = {"num_candidates": 6, "simulations": 12, "parallel_simulations": parallel, **settings}
        return len(grow(WIDE, make_task(small_database), shared_sandbox, **options))

    assert size(4) == pytest.approx(size(1), rel=0.3)


@pytest.mark.parametrize("algorithm", ["mcts", "beam", "sample"])
def test_no_step_is_asked_for_once_the_tokens_are_spent(
    algorithm: str, small_database: Path, shared_sandbox: Sandbox
) -> None:
    engine = ScriptedEngine(WIDE, draw=True)
    options: dict[str, Any] = {"num_candidates": 4, "simulations": 40, "algorithm": algorithm}
    tree = grow(engine, make_task(small_database), shared_sandbox, max_tokens=20, **options)
    before_last = sum(3 * request.n for batch in engine.batches[:-1] for request in batch)
    assert before_last < 20 <= tree.generated_tokens
    assert grow(WIDE, make_task(small_database), shared_sandbox, **options).generated_tokens > tree.generated_tokens


def test_no_step_is_asked_for_once_the_time_is_over(small_database: Path, shared_sandbox: Sandbox) -> None:
    assert len(grow(WIDE, make_task(small_database), shared_sandbox, max_seconds=1e-9)) == 1
    assert len(grow(WIDE, make_task(small_database), shared_sandbox, max_seconds=60)) > 1


def likely(seed: int) -> Script:
    """A policy with true probabilities: three tables, then up to three queries each, none left out."""
    pick = random.Random(seed)

    def split(texts: list[str], make: Any) -> list[Candidate]:
        weights = [pick.random() ** 3 + 0.01 for _ in texts]
        return [make(text, math.log(w / sum(weights))) for text, w in zip(texts, weights, strict=True)]

    script: dict[tuple[str, ...], list[Candidate]] = {(): split(FROMS[:3], step)}
    for text in FROMS[:3]:
        script[(text,)] = split(["SELECT name", "SELECT age", f"SELECT id + {pick.randrange(2)}"], end)
    return script


@pytest.mark.parametrize(
    ("answer", "score"), [("majority", 1.0), ("weighted", 0.0), ("weighted", 8.0), ("weighted", -8.0)]
)
def test_a_settled_answer_is_the_one_of_the_whole_search(
    answer: str, score: float, small_database: Path, shared_sandbox: Sandbox
) -> None:
    """Whatever the level of the PPM's scores, of which only the differences mean anything."""
    early = 0
    options: dict[str, Any] = {"num_candidates": 3, "simulations": 9, "answer": answer}
    for seed in range(12):
        task = make_task(small_database, "inference", use_ppm=True)
        ends = ("SELECT name", "SELECT age", "SELECT id + 0", "SELECT id + 1")
        scorer = ScriptedScorer(dict.fromkeys(ends, score))
        whole, stopped = (
            grow(likely(seed), task, shared_sandbox, scorer, settled=settled, **options) for settled in (None, 1.0)
        )
        assert whole.answer is not None and stopped.answer is not None
        assert whole.result[whole.answer] == stopped.result[stopped.answer]
        early += len(stopped) < len(whole)
    assert early > 3


def test_a_trajectory_of_no_probability_settles_nothing(small_database: Path, shared_sandbox: Sandbox) -> None:
    script: Script = {(): [end("SELECT 1", -800.0), end("SELECT 2", -800.0)]}
    tree = grow(script, make_task(small_database, "inference"), shared_sandbox, num_candidates=2, settled=1.0)
    assert tree.answer == 1


def test_nothing_is_settled_by_a_policy_that_tells_no_probabilities(
    small_database: Path, shared_sandbox: Sandbox
) -> None:
    script: Script = {
        (): [step("FROM singer", None), step("FROM concert", None)],
        ("FROM singer",): [end("SELECT name", None), end("SELECT name AS n", None)],
        ("FROM concert",): [end("SELECT title", None), end("SELECT title AS t", None)],
    }
    tree = grow(script, make_task(small_database, "inference"), shared_sandbox, num_candidates=2, settled=1.0)
    assert len(tree) == 7


def test_nothing_is_settled_in_training_or_by_the_best_score(small_database: Path, shared_sandbox: Sandbox) -> None:
    for mode, answer in (("train", "majority"), ("inference", "ppm")):
        trees = [
            grow(
                likely(3),
                make_task(small_database, mode),
                shared_sandbox,
                num_candidates=3,
                answer=answer,
                settled=settled,
            )
            for settled in (None, 0.01)
        ]
        assert trees[0].text == trees[1].text


def test_samples_stop_when_those_to_come_cannot_change_the_answer(
    small_database: Path, shared_sandbox: Sandbox
) -> None:
    script: Script = {
        (): [end("SELECT 1"), end("SELECT 1"), end("SELECT 1"), step(FROMS[0])],
        (FROMS[0],): [end("SELECT name")],
    }
    engine = ScriptedEngine(script)
    task = make_task(small_database, "inference")
    tree = grow(engine, task, shared_sandbox, algorithm="sample", num_candidates=4, answer="majority", settled=1.0)
    assert len(engine.requests) == 1 and tree.answer == 1


def test_widening_asks_again_where_the_search_keeps_coming(small_database: Path, shared_sandbox: Sandbox) -> None:
    options: dict[str, Any] = {"num_candidates": 2, "simulations": 40}
    narrow, wide = (
        grow(ScriptedEngine(WIDE, draw=True), make_task(small_database), shared_sandbox, widening=widening, **options)
        for widening in (None, 0.5)
    )
    assert len(narrow.children(0)) <= 2 < len(wide.children(0))
    assert sum(wide.prior[child] for child in wide.children(0)) == pytest.approx(1)


def test_widening_goes_on_where_everything_is_finished_until_nothing_new_comes(
    small_database: Path, shared_sandbox: Sandbox
) -> None:
    """Three ends, each likely to be missed by one draw of two; they are all found, and then the search is over."""
    script: Script = {(): [end("SELECT 1"), end("SELECT 2"), end("SELECT 3")]}
    options: dict[str, Any] = {"num_candidates": 2, "simulations": 50}
    narrow, wide = (ScriptedEngine(script, draw=True) for _ in range(2))
    assert len(grow(narrow, make_task(small_database), shared_sandbox, **options)) <= 3
    tree = grow(wide, make_task(small_database), shared_sandbox, widening=0.1, **options)
    assert len(tree) == 4 and len(narrow.requests) == 1 < len(wide.requests) < 20


def test_beam_keeps_the_best_by_ppm_and_without_one_the_likeliest(
    small_database: Path, shared_sandbox: Sandbox
) -> None:
    script: Script = {
        (): [step(text, logprob=-1.0 - i) for i, text in enumerate(FROMS[:4])],
        **{(text,): [end("SELECT name"), end("SELECT age", -3.0), end("SELECT id", -4.0)] for text in FROMS[:4]},
    }
    engine = ScriptedEngine(script)
    options: dict[str, Any] = {"algorithm": "beam", "beam_width": 2, "num_candidates": 4}
    grow(engine, make_task(small_database), shared_sandbox, **options)
    assert [[request.steps for request in batch] for batch in engine.batches] == [[()], [(FROMS[0],), (FROMS[1],)]]
    engine = ScriptedEngine(script)
    scorer = ScriptedScorer({FROMS[3]: 2.0, FROMS[2]: 1.0, "SELECT age": 3.0})
    task = make_task(small_database, "inference", use_ppm=True)
    tree = grow(engine, task, shared_sandbox, scorer, answer="ppm", **options)
    assert [request.steps for request in engine.batches[1]] == [(FROMS[3],), (FROMS[2],)]
    assert tree.answer is not None and tree.steps(tree.answer) == (FROMS[3], "SELECT age")


def test_agreement_rewards_a_question_without_an_answer(small_database: Path, shared_sandbox: Sandbox) -> None:
    """The most probable result counts as right; the values are those of a search that knew it."""
    task = make_task(small_database, gold=None)
    options: dict[str, Any] = {"num_candidates": 3, "simulations": 9, "self_consistency": 0.4}
    tree = grow(likely(1), task, shared_sandbox, **options)
    finished = [n for n in range(len(tree)) if tree.terminal[n]]
    votes: dict[str, float] = {}
    for node in finished:
        weight = math.exp(sum(tree.logprob[n] for n in tree.path(node)))
        votes[tree.result[node]] = votes.get(tree.result[node], 0.0) + weight
    best = max(votes, key=lambda result: votes[result])
    assert tree.meta["consistency"] == pytest.approx(votes[best] / sum(votes.values()))
    assert {tree.result[n] for n in finished if tree.reward[n] == 1.0} == {best}
    assert tree.q[0] == pytest.approx(sum(tree.reward[n] or 0 for n in finished) / len(finished))
    for node in range(len(tree)):
        assert tree.visits[node] == sum(node == 0 or node in tree.path(leaf) for leaf in finished)


def test_too_little_agreement_teaches_nothing(small_database: Path, shared_sandbox: Sandbox) -> None:
    task = make_task(small_database, gold=None)
    tree = grow(likely(1), task, shared_sandbox, num_candidates=3, simulations=9, self_consistency=0.999)
    assert 0 < tree.meta["consistency"] < 0.999 and 1.0 not in tree.reward


def test_prompt_tokens_are_counted_once_a_request(small_database: Path, shared_sandbox: Sandbox) -> None:
    script: Script = {
        (): [Candidate("FROM singer", -1.0, 3, "step", prefix_tokens=10)] * 2,
        ("FROM singer",): [Candidate("SELECT name", -1.0, 3, "eos", prefix_tokens=13)],
    }
    tree = grow(script, make_task(small_database), shared_sandbox, num_candidates=2)
    assert (tree.prompt_tokens, tree.generated_tokens) == (23, 12)


ENDLESS = {
    tuple(f"WITH w{k} AS (SELECT {k})" for k in range(d)): [step(f"WITH w{d} AS (SELECT {d})")] for d in range(9)
}
STRANGE: dict[str, tuple[Script, str]] = {
    "never ends": (ENDLESS, "longer than 5 steps"),
    "repeats itself": ({(): [step("FROM singer")], ("FROM singer",): [step("FROM singer")]}, "FROM cannot come"),
    "emits nothing": ({(): [step("")]}, "is not one clause"),
    "ends at once": ({(): [end("")]}, "is not one clause"),
    "is cut off": ({(): [step("-- use the the the the", finish="length")]}, "longer than 96 tokens"),
}


@pytest.mark.parametrize("algorithm", ["mcts", "beam", "sample", "greedy"])
@pytest.mark.parametrize("name", STRANGE)
def test_a_strange_policy_ends_in_dead_ends_with_reasons(
    name: str, algorithm: str, small_database: Path, shared_sandbox: Sandbox
) -> None:
    script, reason = STRANGE[name]
    options: dict[str, Any] = {"algorithm": algorithm, "max_depth": 5, "num_candidates": 3}
    tree = grow(script, make_task(small_database), shared_sandbox, **options)
    assert tree.answer is None and reason in tree.error[-1]
    assert tree.count[-1] == (1 if algorithm == "greedy" else 3)


def test_the_same_settings_give_the_same_tree_again(small_database: Path, shared_sandbox: Sandbox) -> None:
    options: dict[str, Any] = {"num_candidates": 3, "parallel_simulations": 5, "widening": 0.5, "simulations": 20}

    def tree() -> Tree:
        return grow(ScriptedEngine(WIDE, draw=True), make_task(small_database), shared_sandbox, **options)

    assert without_time(tree()) == without_time(tree())


@pytest.mark.parametrize("other", [{"widening": 0.3}, {"parallel_simulations": 4}])
def test_the_published_rules_are_not_mixed_with_others(other: dict[str, Any]) -> None:
    assert SearchConfig(reference=True).reference
    with pytest.raises(ConfigError, match="`reference` knows neither `widening` nor `parallel_simulations`"):
        SearchConfig(reference=True, **other)
