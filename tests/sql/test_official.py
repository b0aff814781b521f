"""A hand-written pair for every quirk of the official comparisons, and the same pairs in the mode of the reward."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from typing import Any

import pytest

from rstar_trl.sql.compare import results_equal
from rstar_trl.sql.official import (
    bird_set_equal,
    soft_f1,
    spider_ts_equal,
    spider_ts_ordered,
    spider_ts_query,
    without_undecodable,
)

BOTH = (True, True)
NEITHER = (False, False)
AS_BAG = (True, False)


@pytest.mark.parametrize(
    ("quirk", "predicted", "gold", "reward", "spider", "bird"),
    [
        ("the same rows", [(1, "a")], [(1, "a")], BOTH, BOTH, True),
        ("another order of rows", [(1,), (2,)], [(2,), (1,)], AS_BAG, AS_BAG, True),
        ("columns swapped", [(1, "a"), (2, "b")], [("a", 1), ("b", 2)], NEITHER, BOTH, False),
        ("columns swapped in one row only", [(1, 2), (3, 4)], [(1, 2), (4, 3)], NEITHER, NEITHER, False),
        ("columns and rows swapped", [(1, "a"), (2, "b")], [("b", 2), ("a", 1)], NEITHER, AS_BAG, False),
        ("other duplicates", [(1,), (1,), (2,)], [(1,), (2,), (2,)], NEITHER, NEITHER, True),
        ("a duplicate more", [(1,), (1,)], [(1,)], NEITHER, NEITHER, True),
        ("a column more", [(1, 1)], [(1,)], NEITHER, NEITHER, False),
        ("both empty", [], [], BOTH, BOTH, True),
        ("one empty", [], [(1,)], NEITHER, NEITHER, False),
        ("one null is not empty", [(None,)], [], NEITHER, NEITHER, False),
        ("an integer and its float", [(1.0,)], [(1,)], BOTH, BOTH, True),
        ("a sum of floats", [(0.1 + 0.2,)], [(0.3,)], BOTH, NEITHER, False),
        ("null and null", [(None, 1)], [(None, 1)], BOTH, BOTH, True),
        ("null and zero", [(None,)], [(0,)], NEITHER, NEITHER, False),
        ("null and empty text", [(None,)], [("",)], NEITHER, NEITHER, False),
        ("a number and its text", [("1",)], [(1,)], NEITHER, NEITHER, False),
        ("upper and lower case", [("A",)], [("a",)], NEITHER, NEITHER, False),
        ("mixed types in a column, swapped", [(1, "x"), ("y", 2)], [("x", 1), (2, "y")], NEITHER, BOTH, False),
        # '1/' sorts before '1<class int' but after '1.0<class float': the first look misses that these are equal.
        ("sorted by text and type", [(1, "1/")], [(1.0, "1/")], BOTH, NEITHER, True),
    ],
)
def test_pairs(
    quirk: str,
    predicted: list[Any],
    gold: list[Any],
    reward: tuple[bool, bool],
    spider: tuple[bool, bool],
    bird: bool,
) -> None:
    """Expected outcomes are (as a bag, in order) for the first two modes."""
    assert tuple(results_equal(predicted, gold, ordered) for ordered in (False, True)) == reward
    assert tuple(spider_ts_equal(predicted, gold, ordered) for ordered in (False, True)) == spider
    assert bird_set_equal(predicted, gold) is bird


@pytest.mark.parametrize("ordered", [False, True])
def test_permutations_are_found_as_if_all_were_tried(ordered: bool) -> None:
    generator = random.Random(0)
    outcomes: Counter[bool] = Counter()
    for _ in range(3_000):
        width, height = generator.randint(1, 4), generator.randint(1, 4)
        gold = [tuple(generator.randint(0, 1) for _ in range(width)) for _ in range(height)]
        order = generator.sample(range(width), width)
        predicted = [tuple(row[i] for i in order) for row in gold]
        generator.shuffle(predicted)
        if generator.random() < 0.5:
            predicted[0] = tuple(generator.randint(0, 1) for _ in range(width))
        tables = [[tuple(row[i] for i in each) for row in predicted] for each in itertools.permutations(range(width))]
        expected = any(table == gold if ordered else Counter(table) == Counter(gold) for table in tables)
        outcomes[expected] += 1
        assert spider_ts_equal(predicted, gold, ordered) is expected
    assert min(outcomes.values()) > 200


def test_many_equal_columns_do_not_explode() -> None:
    gold = [(*(i % 2 for _ in range(12)), i) for i in range(50)]
    assert spider_ts_equal([row[::-1] for row in gold], gold, False)
    assert not spider_ts_equal([(1 - row[0], *row[1:])[::-1] for row in gold], gold, False)


@pytest.mark.parametrize(
    ("sql", "ordered"),
    [
        ("SELECT a FROM t ORDER BY a", True),
        ("SELECT a FROM t WHERE a IN (SELECT a FROM t order by b LIMIT 3)", True),
        ("SELECT 'order by' FROM t", True),
        ("SELECT a FROM t ORDER  BY a", False),
        ("SELECT a FROM t", False),
    ],
)
def test_order_counts_where_the_words_stand(sql: str, ordered: bool) -> None:
    assert spider_ts_ordered(sql) is ordered


@pytest.mark.parametrize(
    ("sql", "run", "kept"),
    [
        ("SELECT DISTINCT a FROM t", "SELECT  a FROM t", "SELECT DISTINCT a FROM t"),
        ("SELECT count(distinct a) FROM t", "SELECT count( a) FROM t", "SELECT count(distinct a) FROM t"),
        ("SELECT 'distinct', \"distinct\"", "SELECT 'distinct', \"distinct\"", "SELECT 'distinct', \"distinct\""),
        ("SELECT distinctive FROM t", "SELECT distinctive FROM t", "SELECT distinctive FROM t"),
        ("SELECT a WHERE b > = 1 AND c ! = 2", "SELECT a WHERE b >= 1 AND c != 2", "SELECT a WHERE b >= 1 AND c != 2"),
        ("SELECT year( CURDATE() ) - a", "SELECT 2020- a", "SELECT 2020- a"),
        ("SELECT 1; SELECT 2", "SELECT 1", "SELECT 1; SELECT 2"),
        ("SELECT ';'", "SELECT ';'", "SELECT ';'"),
        ("SELECT (distinct 1;) ; SELECT 2", "SELECT ( 1;) ", "SELECT (distinct 1;) ; SELECT 2"),
    ],
)
def test_text_that_is_run(sql: str, run: str, kept: str) -> None:
    assert spider_ts_query(sql) == run
    assert spider_ts_query(sql, keep_distinct=True) == kept


def test_undecodable_bytes_are_dropped() -> None:
    assert without_undecodable([("A\ufffdB", 1, None)]) == [("AB", 1, None)]


@pytest.mark.parametrize(
    ("predicted", "gold", "score"),
    [
        ([], [], 1.0),
        ([], [(1,)], 0.0),
        ([(1,)], [], 0.0),
        ([(1, 2)], [(2, 1)], 1.0),
        ([(1,), (1,), (2,)], [(1,), (2,), (2,)], 1.0),
        ([(2,), (1,)], [(1,), (2,)], 0.0),
        # One of two gold cells: tp 1/2, fp 0, fn 1/2; precision 1, recall 1/2.
        ([(1,)], [(1, 2)], 2 / 3),
        # Two predicted, one right: tp 1, fp 1 (of one gold column), fn 0.
        ([(1, 9)], [(1,)], 2 / 3),
        # A second row too many: tp 1, fp 1.
        ([(1,), (5,)], [(1,)], 2 / 3),
        # A row missing: tp 1, fn 1.
        ([(1,)], [(1,), (5,)], 2 / 3),
        ([(1, 1)], [(1, 2)], 2 * 1.0 * (2 / 3) / (1.0 + 2 / 3)),
    ],
)
def test_soft_f1_by_hand(predicted: list[Any], gold: list[Any], score: float) -> None:
    assert soft_f1(predicted, gold) == pytest.approx(score)
