"""Are two results the same answer? The mode `bag_ordered`, and rows as JSON.

`bag_ordered`: rows are compared as a bag, or as a sequence where the gold query orders at top level; the order and
number of columns count, their names do not. A column in which neither side holds a float is compared exactly; one in
which either does is compared numerically, a and b being equal when |a - b| <= tolerance * max(1, |a|, |b|). True is 1,
NULL equals NULL, NaN equals NaN, and text is never a number.

Guarantees: bags are equal exactly when their rows can be paired off one to one (no rounding, no greedy pairing);
`decode_rows(json.loads(json.dumps(encode_rows(rows)))) == rows`, value and type. Does not guarantee that `result_key`
agrees with `results_equal` for floats that lie on both sides of a rounding boundary: keys are for voting, not rewards.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from rstar_trl.data.question import Row, Value
from rstar_trl.errors import SqlError

TOLERANCE = 1e-6
VOTE_DIGITS = 7
_EXACT_JSON_INTEGER = 2**53


def results_equal(predicted: Sequence[Row], gold: Sequence[Row], ordered: bool, tolerance: float = TOLERANCE) -> bool:
    """Compares two results in mode `bag_ordered`; `ordered` says whether the gold query orders its rows."""
    if len(predicted) != len(gold):
        return False
    left, right = [tuple(row) for row in predicted], [tuple(row) for row in gold]
    if left == right:
        return True
    width = len(right[0])
    if any(len(row) != width for row in left + right):
        return False
    loose = [i for i in range(width) if any(isinstance(row[i], float) for row in left + right)]
    if not loose:
        return not ordered and Counter(left) == Counter(right)
    if ordered:
        return all(_row_close(a, b, loose, tolerance) for a, b in zip(left, right, strict=True))
    return _bags_close(left, right, loose, tolerance)


def result_key(rows: Sequence[Row], ordered: bool) -> str:
    """A short hash that equal results share (floats to `VOTE_DIGITS` significant digits), for majority voting."""
    lines = [repr(tuple(_rounded(value) for value in row)) for row in rows]
    if not ordered:
        lines.sort()
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


@lru_cache(maxsize=8192)
def orders_rows(sql: str, dialect: str = "sqlite") -> bool:
    """Whether the outermost query has an ORDER BY (one inside a subquery does not count; no parse, no order)."""
    from rstar_trl.sql.policy import parse_statements

    if "order" not in sql.lower():
        return False
    try:
        statements = parse_statements(sql, dialect)
    except SqlError:
        return False
    return bool(statements) and bool(statements[0].args.get("order") or statements[0].unnest().args.get("order"))


def encode_rows(rows: Iterable[Row]) -> list[list[Any]]:
    """Rows as JSON; what JSON has no exact form for is a one-key object: `bytes` (hex), `float`, `int`."""
    return [[_encode(value) for value in row] for row in rows]


def decode_rows(rows: Iterable[Sequence[Any]]) -> tuple[Row, ...]:
    """Reads what `encode_rows` wrote."""
    return tuple(tuple(_decode(value) for value in row) for row in rows)


def _encode(value: Value) -> Any:
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    if isinstance(value, int) and abs(value) > _EXACT_JSON_INTEGER:
        return {"int": str(value)}
    return value


def _decode(value: Any) -> Value:
    if not isinstance(value, Mapping):
        return value
    ((kind, text),) = value.items()
    readers: dict[str, Callable[[str], Value]] = {"bytes": bytes.fromhex, "float": float, "int": int}
    return readers[kind](text)


def _rounded(value: Value) -> Any:
    if isinstance(value, bool):
        return int(value)
    if not isinstance(value, float) or not math.isfinite(value):
        return value
    value = float(f"{value:.{VOTE_DIGITS}g}")
    return int(value) if value.is_integer() else value


def _is_number(value: Value) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _close(a: Any, b: Any, tolerance: float) -> bool:
    return abs(a - b) <= tolerance * max(1.0, abs(a), abs(b))


def _value_close(a: Value, b: Value, tolerance: float) -> bool:
    if _is_number(a) and _is_number(b):
        return _close(a, b, tolerance)
    return _exact(a) == _exact(b)


def _row_close(a: Row, b: Row, loose: list[int], tolerance: float) -> bool:
    exact = all(x == y for i, (x, y) in enumerate(zip(a, b, strict=True)) if i not in loose)
    return exact and all(_value_close(a[i], b[i], tolerance) for i in loose)


def _exact(value: Value) -> Any:
    """A stand-in that equals itself: NaN does not."""
    return ("nan",) if isinstance(value, float) and math.isnan(value) else value


def _bags_close(left: list[Row], right: list[Row], loose: list[int], tolerance: float) -> bool:
    """Splits both bags into cells no close pair can straddle; equal counts settle a cell whose rows are all close.

    Within a column, closeness is an interval around each value whose ends move with it. Sorted values with a gap that
    is not close therefore fall into clusters, and values of different clusters are never close.
    """
    clusters = {i: _clusters([row[i] for row in left + right], tolerance) for i in loose}
    cells: dict[tuple[Any, ...], tuple[list[Row], list[Row]]] = defaultdict(lambda: ([], []))
    for side, rows in enumerate((left, right)):
        for row in rows:
            cells[tuple(_cell(row[i], clusters.get(i)) for i in range(len(row)))][side].append(row)
    if any(len(ours) != len(theirs) for ours, theirs in cells.values()):
        return False
    return all(_cell_matches(ours, theirs, loose, tolerance) for ours, theirs in cells.values())


def _clusters(values: list[Value], tolerance: float) -> dict[Any, int]:
    numbers = sorted({value for value in values if _is_number(value)})  # type: ignore[type-var]
    found: dict[Any, int] = {}
    for i, number in enumerate(numbers):
        previous = numbers[i - 1]
        found[number] = 0 if i == 0 else found[previous] + (not _close(previous, number, tolerance))
    return found


def _cell(value: Value, clusters: dict[Any, int] | None) -> Any:
    if clusters is not None and _is_number(value):
        return ("near", clusters[value])
    return _exact(value)


def _cell_matches(ours: list[Row], theirs: list[Row], loose: list[int], tolerance: float) -> bool:
    """Whether the rows of one cell, as many on either side, can be paired off."""
    numeric = [i for i in loose if _is_number(ours[0][i])]
    for i in numeric:
        # Along one column, pairing in sorted order succeeds whenever any pairing does.
        columns = (sorted(row[i] for row in rows) for rows in (ours, theirs))  # type: ignore[type-var]
        if not all(_close(a, b, tolerance) for a, b in zip(*columns, strict=True)):
            return False
    spread = [[row[i] for row in ours + theirs] for i in numeric]
    tight = all(_close(min(column), max(column), tolerance) for column in spread)  # type: ignore[type-var]
    return tight or len(numeric) == 1 or _perfect_matching(ours, theirs, numeric, tolerance)


def _perfect_matching(ours: list[Row], theirs: list[Row], numeric: list[int], tolerance: float) -> bool:
    """Augmenting paths, breadth first. Only reached when values chain: each close to the next, the ends not close."""
    neighbours = [
        [t for t, b in enumerate(theirs) if all(_close(a[i], b[i], tolerance) for i in numeric)] for a in ours
    ]
    mate: list[int | None] = [None] * len(ours)
    partner: dict[int, int] = {}
    for start in range(len(ours)):
        came_from: dict[int, int] = {}
        free = _reach_free(start, neighbours, partner, came_from)
        if free is None:
            return False
        while free is not None:
            mine = came_from[free]
            previous = mate[mine]
            mate[mine], partner[free] = free, mine
            free = previous
    return True


def _reach_free(
    start: int, neighbours: list[list[int]], partner: dict[int, int], came_from: dict[int, int]
) -> int | None:
    """The first unpaired row of theirs on an alternating path from `start`; fills `came_from` (theirs -> ours)."""
    frontier = deque([start])
    while frontier:
        mine = frontier.popleft()
        for t in neighbours[mine]:
            if t in came_from:
                continue
            came_from[t] = mine
            if t not in partner:
                return t
            frontier.append(partner[t])
    return None
