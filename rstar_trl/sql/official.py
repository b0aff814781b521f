"""Results compared as the official evaluators of Spider and BIRD do: modes `spider_ts` and `bird_set`, and Soft-F1.

These are for reported numbers, never for rewards: each forgives what a policy would learn to get wrong (see
`rstar_trl.sql.compare` for the mode of the reward). Every function takes rows as they came from the database; reading
text with undecodable bytes dropped is `without_undecodable`.

Guarantees: the outcome of `spider_ts_equal` is that of trying every permutation of the columns, found without trying
them all. Does not guarantee good sense: `bird_set_equal` takes `[1, 1, 2]` for `[1, 2, 2]`, because BIRD does.

Sources: Zhong et al. 2020 (arXiv 2010.02840, test suites), Li et al. 2023 (arXiv 2305.03111, BIRD).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from rstar_trl.data.question import Row, Value

_UNDECODABLE = "\ufffd"
_QUOTED_OR_WORD = re.compile(
    r"'[^']*'|\"[^\"]*\"|`[^`]*`|\[[^\]]*\]|--[^\n]*|/\*.*?\*/|[;()]|\bdistinct\b", re.I | re.S
)
_SPLIT_OPERATOR = re.compile(r"([<>!]) =")
_CURRENT_YEAR = re.compile(r"year\s*\(\s*curdate\s*\(\s*\)\s*\)\s*", re.IGNORECASE)


def spider_ts_equal(predicted: Sequence[Row], gold: Sequence[Row], ordered: bool) -> bool:
    """Mode `spider_ts` on one database: bags of rows, or lists where `ordered`, under any permutation of columns.

    Two empty results are equal, whatever their columns. Values compare as Python values: 1 == 1.0, no tolerance.
    """
    if not predicted and not gold:
        return True
    if len(predicted) != len(gold) or len(predicted[0]) != len(gold[0]):
        return False
    if not _rows_alike(predicted, gold, ordered):
        return False
    theirs = list(zip(*predicted, strict=True))
    ours = list(zip(*gold, strict=True))
    if ordered:
        # Equality of whole columns is transitive, so any pairing of equal columns will do.
        return Counter(theirs) == Counter(ours)
    return _assign(ours, theirs, [], Counter(range(len(theirs))))


def spider_ts_ordered(gold_sql: str) -> bool:
    """Whether `spider_ts` compares the order of rows: the words stand anywhere in the gold query, a subquery even."""
    return "order by" in gold_sql.lower()


def spider_ts_query(sql: str, keep_distinct: bool = False) -> str:
    """The text that `spider_ts` runs: operators put together, DISTINCT removed, the current year 2020.

    Where DISTINCT is removed, only the first of several statements is left.
    """
    return in_2020(spider_ts_text(sql, keep_distinct))


def spider_ts_text(sql: str, keep_distinct: bool = False) -> str:
    """`spider_ts_query` but for the year: what `plug_value` fills values into."""
    sql = _SPLIT_OPERATOR.sub(r"\1=", sql)
    if not keep_distinct:
        sql = "".join(_without_distinct(sql))
    return sql


def in_2020(sql: str) -> str:
    """The query with the current year as 2020."""
    return _CURRENT_YEAR.sub("2020", sql)


def without_undecodable(rows: Sequence[Row]) -> list[Row]:
    """Rows as `spider_ts` reads them: bytes that are no text are dropped (the sandbox marks them)."""
    return [tuple(_dropped(value) for value in row) for row in rows]


def bird_set_equal(predicted: Sequence[Row], gold: Sequence[Row]) -> bool:
    """Mode `bird_set`: the sets of rows are the same. Duplicates and order do not count, the order of columns does."""
    return set(map(tuple, predicted)) == set(map(tuple, gold))


def soft_f1(predicted: Sequence[Row], gold: Sequence[Row]) -> float:
    """BIRD's Soft-F1 of two results, 0..1: how many cells of rows paired by position are in both.

    Rows are de-duplicated keeping their order. A pair counts its matched, predicted-only and gold-only cells as shares
    of the gold columns; a row without a partner counts 1 as predicted-only or gold-only. Two empty results score 1.
    """
    if not predicted and not gold:
        return 1.0
    theirs, ours = list(dict.fromkeys(map(tuple, predicted))), list(dict.fromkeys(map(tuple, gold)))
    matched = predicted_only = gold_only = 0.0
    for their_row, our_row in zip(theirs, ours, strict=False):
        found = sum(value in our_row for value in their_row)
        matched += found / len(our_row)
        predicted_only += (len(their_row) - found) / len(our_row)
        gold_only += sum(value not in their_row for value in our_row) / len(our_row)
    predicted_only += max(0, len(theirs) - len(ours))
    gold_only += max(0, len(ours) - len(theirs))
    precision = matched / (matched + predicted_only) if matched + predicted_only else 0.0
    recall = matched / (matched + gold_only) if matched + gold_only else 0.0
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _rows_alike(predicted: Sequence[Row], gold: Sequence[Row], ordered: bool) -> bool:
    """The evaluator's own first look: rows with their cells sorted by text and type are the same.

    Sorting by text may order 1 and 1.0 differently among other cells, and then calls equal rows unequal; so do we.
    """
    theirs, ours = ([_sorted_cells(row) for row in rows] for rows in (predicted, gold))
    return theirs == ours if ordered else set(theirs) == set(ours)


def _sorted_cells(row: Row) -> Row:
    return tuple(sorted(row, key=lambda value: str(value) + str(type(value))))


def _assign(
    ours: list[tuple[Value, ...]], theirs: list[tuple[Value, ...]], chosen: list[int], free: Counter[int]
) -> bool:
    """Whether the columns of `theirs` still free can follow `chosen` so that both tables are the same bag of rows.

    The first k columns must already agree as bags, which ends most branches at once; equal columns are tried once.
    """
    width = len(chosen)
    if width == len(ours):
        return True
    wanted = Counter(zip(*ours[: width + 1], strict=True))
    tried: set[tuple[Value, ...]] = set()
    for index in +free:
        if theirs[index] in tried:
            continue
        tried.add(theirs[index])
        following = [*chosen, index]
        if Counter(zip(*(theirs[i] for i in following), strict=True)) == wanted and _assign(
            ours, theirs, following, free - Counter([index])
        ):
            return True
    return False


def _without_distinct(sql: str) -> Iterator[str]:
    """The first statement's text, piece by piece, without the word outside of quotes and comments.

    A semicolon in parentheses ends no statement.
    """
    end = depth = 0
    for found in _QUOTED_OR_WORD.finditer(sql):
        yield sql[end : found.start()]
        end = found.end()
        depth += (found[0] == "(") - (found[0] == ")")
        if found[0] == ";" and depth <= 0:
            return
        if found[0].lower() != "distinct":
            yield found[0]
    yield sql[end:]


def _dropped(value: Value) -> Value:
    return value.replace(_UNDECODABLE, "") if isinstance(value, str) else value
