"""`bag_ordered` result by result, against a brute-force definition where floats make it hard."""

from __future__ import annotations

import itertools
import json
import random
from typing import Any

import pytest

from rstar_trl.sql.compare import decode_rows, encode_rows, orders_rows, result_key, results_equal

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("predicted", "gold", "as_bag", "as_sequence"),
    [
        ([], [], True, True),
        ([(1,)], [], False, False),
        ([(1,), (2,)], [(2,), (1,)], True, False),
        ([(1,), (1,), (2,)], [(1,), (2,), (2,)], False, False),
        ([(1, 2)], [(2, 1)], False, False),
        ([(1,)], [(1, 1)], False, False),
        ([(1.0,)], [(1,)], True, True),
        ([(True,)], [(1,)], True, True),
        ([("1",)], [(1,)], False, False),
        ([("1",)], [(1.0,)], False, False),
        ([("a",)], [("A",)], False, False),
        ([("a",)], [(b"a",)], False, False),
        ([(None,)], [(None,)], True, True),
        ([(None,)], [(0,)], False, False),
        ([(None, 1.0)], [(None, 1)], True, True),
        ([("",)], [(None,)], False, False),
        ([(0.1 + 0.2,)], [(0.3,)], True, True),
        ([(1e9 + 1,)], [(1e9,)], True, True),
        ([(10**9 + 1,)], [(10**9,)], False, False),
        ([(2**62 + 1,)], [(2**62,)], False, False),
        ([(1.00001,)], [(1.0,)], False, False),
        ([(NAN,)], [(float("nan"),)], True, True),
        ([(INF,)], [(-INF,)], False, False),
        ([(INF,)], [(1e308,)], False, False),
        ([(-0.0,)], [(0,)], True, True),
        ([(0.1 + 0.2, "b"), (1.0, "a")], [(1, "a"), (0.3, "b")], True, False),
    ],
)
def test_pairs_of_results(predicted: list[Any], gold: list[Any], as_bag: bool, as_sequence: bool) -> None:
    for left, right in ((predicted, gold), (gold, predicted)):
        assert results_equal(left, right, ordered=False) is as_bag
        assert results_equal(left, right, ordered=True) is as_sequence


def test_rows_may_be_lists_as_read_from_json() -> None:
    assert results_equal([[1, "a"]], ((1, "a"),), ordered=True)  # type: ignore[list-item]


def test_no_rounding_boundary_splits_close_values() -> None:
    generator = random.Random(0)
    for _ in range(2000):
        value = generator.uniform(-1000, 1000)
        assert results_equal([(value,), (7.5,)], [(7.5,), (value * (1 + 1e-12),)], ordered=False)


def test_equal_pairs_must_sometimes_be_broken_up() -> None:
    # The two zeros are equal, yet pairing them leaves -0.9 with 0.9: the only pairing is crosswise.
    assert results_equal([(0.0,), (-0.9,)], [(0.9,), (0.0,)], ordered=False, tolerance=1.0)
    predicted, gold = [(0.0, 0.0), (-0.9, 0.9)], [(0.9, -0.9), (0.0, 0.0)]
    assert results_equal(predicted, gold, ordered=False, tolerance=1.0)


@pytest.mark.parametrize("width", [1, 2, 3])
def test_bags_are_equal_exactly_when_a_pairing_exists(width: int) -> None:
    generator = random.Random(width)
    outcomes = set()
    for _ in range(1500):
        size = generator.randint(1, 4)
        left, right = (
            [
                tuple(generator.choice([0, 1]) + generator.choice([0.0, 0.06, 0.12]) for _ in range(width))
                for _ in range(size)
            ]
            for _ in range(2)
        )
        expected = any(
            all(results_equal([a], [b], True, 0.07) for a, b in zip(left, order, strict=True))
            for order in itertools.permutations(right)
        )
        outcomes.add(expected)
        assert results_equal(left, right, False, 0.07) is expected
    assert outcomes == {True, False}


def test_large_shuffled_float_bags_compare_in_near_linear_time() -> None:
    generator = random.Random(0)
    gold = [(generator.random(), generator.random() * 1e6, generator.choice("abc")) for _ in range(20_000)]
    predicted = [(a * (1 + 1e-13), b * (1 - 1e-13), c) for a, b, c in gold]
    generator.shuffle(predicted)
    assert results_equal(predicted, gold, ordered=False)
    assert not results_equal([*predicted[:-1], (5.0, 5.0, "a")], gold, ordered=False)


def test_rows_survive_json_value_and_type() -> None:
    rows = ((1, 1.0, "1", None, b"\x00\xff", INF, -INF, 2**63 - 1, -(2**63), True, "\ud800", "", b""), ())
    back = decode_rows(json.loads(json.dumps(encode_rows(rows), allow_nan=False)))
    assert back == rows
    assert [type(value) for value in back[0]] == [type(value) for value in rows[0]]
    assert repr(decode_rows(encode_rows([(NAN,)]))) == "((nan,),)"


def test_result_key_follows_equality_where_no_boundary_is_near() -> None:
    rows = [(1, "a", 0.3), (2, "b", None)]
    assert result_key(rows, False) == result_key([(2.0, "b", None), (True, "a", 0.1 + 0.2)], False)
    assert result_key(rows, True) != result_key(rows[::-1], True)
    assert result_key([("1",)], False) != result_key([(1,)], False)
    assert result_key([], False) != result_key([(None,)], False)
    assert result_key([("\ud800", NAN)], False) == result_key([("\ud800", NAN)], False)


@pytest.mark.parametrize(
    ("sql", "ordered"),
    [
        ("SELECT a FROM t ORDER BY a", True),
        ("SELECT a FROM t", False),
        ("SELECT a FROM (SELECT a FROM t ORDER BY a LIMIT 3)", False),
        ("SELECT a FROM t WHERE b = (SELECT b FROM t ORDER BY b LIMIT 1)", False),
        ("SELECT a FROM t UNION SELECT b FROM t ORDER BY 1", True),
        ("WITH x AS (SELECT a FROM t ORDER BY a) SELECT a FROM x", False),
        ("WITH x AS (SELECT a FROM t) SELECT a FROM x ORDER BY a", True),
        ("SELECT SUM(a) OVER (ORDER BY a) FROM t", False),
        ("SELECT 'order by' FROM t", False),
        ("SELECT FROM order WHERE (", False),
    ],
)
def test_only_the_outermost_order_counts(sql: str, ordered: bool) -> None:
    assert orders_rows(sql, "sqlite") is ordered
