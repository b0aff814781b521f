"""The searches replayed with a scripted policy on a real database: whole trees, and the properties they promise."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rstar_trl.config import SearchConfig
from rstar_trl.data.question import GoldResult
from rstar_trl.search.mcts import score
from rstar_trl.search.state import start
from rstar_trl.search.tree import Tree
from rstar_trl.search.values import backup
from rstar_trl.sql.sandbox import Sandbox
from tests.scripted import (
    Script,
    ScriptedEngine,
    ScriptedScorer,
    end,
    grow,
    make_task,
    step,
    without_time,
)

SINGER, CONCERT = "-- use singer\nFROM singer", "-- use concert\nFROM concert"
NAME, AGE = "-- show name\nSELECT name", "-- show age\nSELECT age"
TITLE, NOTHING = "-- show title\nSELECT title", "-- show nothing\nSELECT nothing"

SMALL: Script = {
    (): [step(SINGER), step(CONCERT)],
    (SINGER,): [end(NAME), end(AGE)],
    (CONCERT,): [end(TITLE), end(NOTHING)],
}


def wide(right: str | None = None) -> Script:
    """Twelve ways on at each of three steps, then one wrong end; below the table `right` a right one."""
    script: dict[tuple[str, ...], list[Any]] = {(): [step(f"FROM singer AS t{i}") for i in range(12)]}
    for begin in script[()]:
        script[(begin.text,)] = [step(f"WHERE age > {i}") for i in range(12)]
        for filtered in script[(begin.text,)]:
            path = (begin.text, filtered.text)
            script[path] = [step(f"GROUP BY id, age + {i}") for i in range(12)]
            for grouped in script[path]:
                script[(*path, grouped.text)] = [end("SELECT name" if begin.text == right else "SELECT age")]
    return script


def visited(tree: Tree) -> int:
    """Children of the root below which something was tried."""
    return sum(bool(tree.children(child)) for child in tree.children(0))


def test_whole_tree_of_a_small_search(small_database: Path, shared_sandbox: Sandbox) -> None:
    """Two simulations finish everything there is: the search then stops, whatever it was allowed."""
    engine = ScriptedEngine(SMALL)
    tree = grow(engine, make_task(small_database), shared_sandbox, num_candidates=2, simulations=10)
    assert tree.parent == [-1, 0, 0, 1, 1, 2, 2]
    assert tree.text == ["", SINGER, CONCERT, NAME, AGE, TITLE, NOTHING]
    assert tree.kind == ["", "FROM", "FROM", "SELECT", "SELECT", "SELECT", "SELECT"]
    assert tree.sql[1:4] == ["SELECT * FROM singer", "SELECT * FROM concert", "SELECT name FROM singer"]
    assert tree.verdict == ["ok"] * 6 + ["sql_error"]
    assert tree.terminal == [False] * 3 + [True] * 4
    assert tree.reward == [None, None, None, 1.0, -1.0, -1.0, -1.0]
    assert tree.visits == [3, 2, 1, 1, 1, 1, 1]
    assert tree.q == pytest.approx([-1 / 3, 0, -1, 1, -1, -1, -1])
    assert tree.prior[1:] == pytest.approx([0.5] * 6)
    assert "nothing" in tree.error[6] and not any(tree.error[:6])
    assert (tree.generated_tokens, len(engine.requests), tree.answer) == (18, 3, 3)


@pytest.mark.parametrize("settings", [{}, {"selection": "uct"}, {"reference": True}, {"simulate": True}])
def test_root_visits_are_the_finished_queries(
    settings: dict[str, Any], small_database: Path, shared_sandbox: Sandbox
) -> None:
    task = make_task(small_database)
    script = wide("FROM singer AS t3")
    tree = grow(script, task, shared_sandbox, num_candidates=12, simulations=20, **settings)
    judged = [node for node in range(len(tree)) if tree.terminal[node] and not tree.error[node]]
    assert tree.visits[0] == len(judged) > 0
    assert tree.q[0] == pytest.approx(sum(tree.reward[node] or 0 for node in judged) / len(judged))
    for node in range(len(tree)):
        below = [leaf for leaf in judged if node == 0 or node in tree.path(leaf)]
        assert tree.visits[node] == len(below)


@pytest.mark.parametrize(
    ("selection", "right"),
    [
        ("puct", None),
        ("puct", "FROM singer AS t0"),
        ("uct", None),
        ("uct", "FROM singer AS t0"),
        ("uct", "FROM singer AS t7"),
    ],
)
def test_no_sibling_starves_without_a_ppm(
    selection: str, right: str | None, small_database: Path, shared_sandbox: Sandbox
) -> None:
    settings: dict[str, Any] = {"num_candidates": 12, "simulations": 48, "selection": selection}
    assert visited(grow(wide(right), make_task(small_database), shared_sandbox, **settings)) == 12


def test_reference_rule_starves_siblings_as_published(small_database: Path, shared_sandbox: Sandbox) -> None:
    settings: dict[str, Any] = {"num_candidates": 12, "simulations": 48, "reference": True}
    assert visited(grow(wide("FROM singer AS t0"), make_task(small_database), shared_sandbox, **settings)) <= 2


def test_selection_rules_are_the_published_ones(small_database: Path) -> None:
    def scores(**settings: Any) -> tuple[float, float]:
        state = start(make_task(small_database), SearchConfig(**settings))
        for visits, q in ((3, 0.5), (0, 0.0)):
            node = state.add(0, "FROM singer", None, prior=0.25, visits=visits, q=q)
        state.tree.visits[0], state.tree.q[0] = 9, 0.1
        return score(state, 0, node - 1), score(state, 0, node)

    assert scores(reference=True) == pytest.approx((0.5 + 2 * math.sqrt(math.log(9) / 3), 0.0))
    assert scores(c_puct=2.0) == pytest.approx((0.5 + 2 * 0.25 * 3 / 4, 0.1 - 0.2 + 2 * 0.25 * 3))
    explore = 1.4 * math.sqrt(math.log(10))
    assert scores(selection="uct") == pytest.approx((0.5 + explore / 2, 0.1 - 0.2 + explore))


def test_same_clause_is_one_node_with_a_count(small_database: Path, shared_sandbox: Sandbox) -> None:
    script: Script = {
        (): [step("-- a\nFROM singer"), step("-- b\nfrom  SINGER", -0.1), step(CONCERT), step("FROM singer")],
        ("-- a\nFROM singer",): [end(NAME)],
        (CONCERT,): [end(TITLE)],
    }
    tree = grow(script, make_task(small_database), shared_sandbox, num_candidates=4)
    first = tree.children(0)
    assert [tree.text[node] for node in first] == ["-- a\nFROM singer", CONCERT]
    assert [tree.count[node] for node in first] == [3, 1]
    assert sum(tree.prior[node] for node in first) == pytest.approx(1)


@pytest.mark.parametrize("cut_first", [True, False])
def test_a_step_that_was_cut_off_never_stands_for_a_whole_one(
    cut_first: bool, small_database: Path, shared_sandbox: Sandbox
) -> None:
    both = [step("FROM singer", finish="length"), step("FROM singer")]
    script: Script = {(): both if cut_first else both[::-1], ("FROM singer",): [end(NAME)]}
    tree = grow(script, make_task(small_database), shared_sandbox, num_candidates=2)
    assert sorted(tree.error[node] == "" for node in tree.children(0)) == [False, True]
    assert tree.reward.count(1.0) == 1


def test_an_end_and_a_step_of_the_same_clause_are_two_nodes(small_database: Path, shared_sandbox: Sandbox) -> None:
    script: Script = {
        (): [step(SINGER)],
        (SINGER,): [end(NAME), step(NAME)],
        (SINGER, NAME): [end("ORDER BY age"), end("LIMIT 1")],
    }
    tree = grow(script, make_task(small_database), shared_sandbox, num_candidates=2)
    assert [tree.terminal[node] for node in tree.children(1)] == [True, False]


DEAD: dict[str, Any] = {
    "unknown table": step("FROM nowhere"),
    "no SQL": step("what a day (("),
    "out of order": step("ORDER BY age"),
    "too long": step("FROM singer", finish="length"),
    "ends too early": end("FROM concert"),
    "not a query": step("DROP TABLE singer"),
}


@pytest.mark.parametrize("dead", DEAD.values(), ids=DEAD)
def test_dead_end_is_found_before_anything_is_asked_below_it(
    dead: Any, small_database: Path, shared_sandbox: Sandbox
) -> None:
    script: Script = {(): [step(SINGER), dead], (SINGER,): [end(NAME), end(AGE)]}
    engine = ScriptedEngine(script)
    tree = grow(engine, make_task(small_database), shared_sandbox, num_candidates=2)
    assert [request.steps for request in engine.requests] == [(), (SINGER,)]
    assert tree.error[2] and tree.terminal[2] and tree.reward[2] == -1.0
    assert (tree.q[2], tree.visits[2]) == (-1.0, 1)


def test_failed_steps_count_against_themselves_alone(small_database: Path, shared_sandbox: Sandbox) -> None:
    script: Script = {
        (): [step(SINGER)],
        (SINGER,): [end(NAME), end(NOTHING), step("WHERE nothing = 1"), step("SELECT FROM WHERE")],
    }
    tree = grow(script, make_task(small_database), shared_sandbox, num_candidates=4)
    assert (tree.visits[:2], tree.q[:2]) == ([1, 1], [1.0, 1.0])
    assert [tree.q[node] for node in tree.children(1)] == [1.0, -1.0, -1.0, -1.0]


def test_infra_never_becomes_a_reward(tmp_path: Path, shared_sandbox: Sandbox) -> None:
    tree = grow(SMALL, make_task(tmp_path / "gone.sqlite"), shared_sandbox, num_candidates=2)
    assert tree.verdict[1:] == ["infra", "infra"]
    assert tree.reward == [None] * 3 and tree.visits == [0] * 3 and tree.q == [0.0] * 3
    assert tree.answer is None


def test_depth_is_bounded(small_database: Path, shared_sandbox: Sandbox) -> None:
    steps = [SINGER, "WHERE age > 1", "SELECT name"]
    script: Script = {tuple(steps[:depth]): [step(steps[depth])] for depth in range(3)}
    engine = ScriptedEngine(script)
    tree = grow(engine, make_task(small_database), shared_sandbox, num_candidates=1, max_depth=3)
    assert len(engine.requests) == 3 and "longer than 3 steps" in tree.error[3]


@pytest.mark.parametrize("algorithm", ["mcts", "sample", "greedy"])
def test_gold_is_never_looked_at_in_inference(algorithm: str, small_database: Path, shared_sandbox: Sandbox) -> None:
    def search(gold: GoldResult | None) -> Tree:
        task = make_task(small_database, "inference", gold=gold, use_ppm=True)
        scorer = ScriptedScorer({AGE: 2.0, NAME: -1.0})
        return grow(SMALL, task, shared_sandbox, scorer, num_candidates=2, algorithm=algorithm)

    without, right = search(None), search(make_task(small_database).gold)
    nonsense = search(GoldResult((("nonsense",),)))
    assert without_time(without) == without_time(right) == without_time(nonsense)
    assert set(without.reward) == {None}


def test_ppm_guides_and_answers_at_inference(small_database: Path, shared_sandbox: Sandbox) -> None:
    task = make_task(small_database, "inference", gold=None, use_ppm=True)
    scorer = ScriptedScorer({SINGER: -5.0, CONCERT: 5.0, TITLE: 1.0, NAME: 0.5})
    engine = ScriptedEngine(SMALL)
    tree = grow(engine, task, shared_sandbox, scorer, num_candidates=2, simulations=1, value_scale=5.0, answer="ppm")
    assert [request.steps for request in engine.requests] == [(), (CONCERT,)]
    assert (tree.visits[1], tree.q[1]) == (1, pytest.approx(math.tanh(-1)))
    # One pseudo-visit of its own score and one of the finished query below.
    assert (tree.visits[2], tree.q[2]) == (2, pytest.approx((math.tanh(1) + math.tanh(0.2)) / 2))
    assert (tree.visits[0], tree.q[0]) == (1, pytest.approx(math.tanh(0.2)))
    assert tree.answer is not None and tree.text[tree.answer] == TITLE
    assert {request.final for request in scorer.requests if request.steps[-1] == TITLE} == {True}
    assert NOTHING not in {request.steps[-1] for request in scorer.requests}


def test_in_training_the_reward_overrules_the_ppm(small_database: Path, shared_sandbox: Sandbox) -> None:
    scorer = ScriptedScorer({NAME: -9.0, AGE: 9.0})
    tree = grow(SMALL, make_task(small_database, use_ppm=True), shared_sandbox, scorer, num_candidates=2)
    assert {tree.text[node]: tree.q[node] for node in tree.children(1)} == {NAME: 1.0, AGE: -1.0}


def test_search_stops_once_enough_is_solved(small_database: Path, shared_sandbox: Sandbox) -> None:
    task, script = make_task(small_database), wide("FROM singer AS t0")
    settings: dict[str, Any] = {"num_candidates": 12, "simulations": 48}
    tree = grow(script, task, shared_sandbox, stop_when_solved=2, **settings)
    assert tree.reward.count(1.0) == 2
    assert grow(script, task, shared_sandbox, **settings).reward.count(1.0) > 2


def test_rollout_joins_the_tree(small_database: Path, shared_sandbox: Sandbox) -> None:
    """One simulation expands the root fully and follows one step at a time below it, down to a finished query."""
    tree = grow(wide(), make_task(small_database), shared_sandbox, num_candidates=12, simulations=1, simulate=True)
    assert [len(tree.children(node)) for node in (0, 1)] == [12, 1]
    leaf = len(tree) - 1
    assert tree.reward[leaf] == -1.0 and tree.steps(leaf) == (
        "FROM singer AS t0",
        "WHERE age > 0",
        "GROUP BY id, age + 0",
        "SELECT age",
    )
    later = grow(wide(), make_task(small_database), shared_sandbox, num_candidates=12, simulations=48, simulate=True)
    assert visited(later) == 12
    assert any(len(later.children(child)) == 12 for child in later.children(0))


def test_samples_are_counted_one_by_one(small_database: Path, shared_sandbox: Sandbox) -> None:
    engine = ScriptedEngine(SMALL, draw=True)
    tree = grow(engine, make_task(small_database), shared_sandbox, algorithm="sample", num_candidates=40)
    leaves = [node for node in range(len(tree)) if tree.terminal[node]]
    assert sum(tree.count[node] for node in leaves) == 40
    for node in (1, 2):
        assert sum(tree.count[child] for child in tree.children(node)) == tree.count[node]
    assert sum(request.n for request in engine.requests) == 80 and tree.generated_tokens == 240
    assert len(tree) == 7 and tree.meta["sampled"]


def test_greedy_is_one_trajectory_at_temperature_zero(small_database: Path, shared_sandbox: Sandbox) -> None:
    engine = ScriptedEngine(SMALL)
    tree = grow(engine, make_task(small_database), shared_sandbox, algorithm="greedy", num_candidates=8)
    assert [(request.n, request.temperature) for request in engine.requests] == [(1, 0.0)] * 2
    assert tree.text == ["", SINGER, NAME] and tree.answer == 2


def test_every_expansion_has_a_stream_of_its_own(small_database: Path, shared_sandbox: Sandbox) -> None:
    def seeds(seed: int) -> list[int]:
        engine = ScriptedEngine(wide())
        grow(engine, make_task(small_database, seed=seed), shared_sandbox, num_candidates=12, simulations=3)
        return [request.seed for request in engine.requests]

    assert seeds(1) == seeds(1) and len(set(seeds(1)) | set(seeds(2))) == 2 * len(seeds(1))


def test_backup_averages_along_the_path() -> None:
    tree = Tree("q", "db", "p")
    left, right = tree.add(0, "FROM a"), tree.add(0, "FROM b")
    for node, value in ((left, 1.0), (left, 0.0), (right, -1.0)):
        backup(tree, node, value)
    assert tree.visits == [3, 2, 1] and tree.q == pytest.approx([0.0, 0.5, -1.0])


@pytest.mark.parametrize("on", [False, True])
@pytest.mark.parametrize(
    ("option", "dead", "alive", "reason"),
    [
        ("avoid_empty", "WHERE age > 900", "WHERE age > 0", "no row is left"),
        ("grounded", "WHERE age > 21", "WHERE age > 20", "21 stands nowhere in the prompt"),
    ],
)
def test_an_option_ends_a_branch_where_going_on_cannot_be_right(
    option: str, dead: str, alive: str, reason: str, on: bool, small_database: Path, shared_sandbox: Sandbox
) -> None:
    script: Script = {
        (): [step(SINGER)],
        (SINGER,): [step(dead), step(alive)],
        (SINGER, dead): [end(NAME)],
        (SINGER, alive): [end(NAME)],
    }
    engine = ScriptedEngine(script)
    task = replace(make_task(small_database, mode="inference"), prompt="singers over 20")
    options: dict[str, Any] = {"num_candidates": 2, "simulations": 4, option: on}
    tree = grow(engine, task, shared_sandbox, **options)
    node = tree.text.index(dead)
    assert tree.terminal[node] is on and (tree.error[node] == reason) is on
    assert ((SINGER, dead) in {request.steps for request in engine.requests}) is not on
    assert tree.answer is not None and (tree.steps(tree.answer)[1] == alive or not on)
