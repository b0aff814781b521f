"""Spider's exact set match: hardness, the ten partial components, and whether all of them match.

Each component of the predicted query is compared with that of the gold query as a set; it matches wholly or not at
all. Values are ignored, DISTINCT is ignored, and columns joined by a foreign key count as the same column; but as in
the official evaluator all three hold for the query itself and what UNION, INTERSECT or EXCEPT adds to it: inside a
subquery of WHERE or HAVING, DISTINCT and the very column count, and inside one of FROM the values, too.

Guarantees: `exact` is true only if every component's F1 is 1 and the tables are the same. Does not guarantee that two
queries which match give the same rows: that is what execution is for.

Source: Yu et al. 2018 (arXiv 1809.08887) and the evaluator published with it.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rstar_trl.evaluation.spider_sql import ColumnUnit, Condition, Conditions, SpiderQuery, ValueUnit

Hardness = Literal["easy", "medium", "hard", "extra"]
COMPONENTS = (
    "select",
    "select(no AGG)",
    "where",
    "where(no OP)",
    "group(no Having)",
    "group",
    "order",
    "and/or",
    "IUEN",
    "keywords",
)


@dataclass(frozen=True)
class Component:
    """How one component compares: elements on either side, and whether all of them match."""

    gold: int
    predicted: int
    matched: bool


@dataclass(frozen=True)
class Match:
    """The outcome for one question."""

    exact: bool
    components: Mapping[str, Component]


def match(predicted: SpiderQuery, gold: SpiderQuery, schema: Iterable[str], keys: Mapping[str, str]) -> Match:
    """Compares two queries.

    `schema` holds every column as `__table.column__`; `keys` maps a column to the one it counts as (`foreign_keys`).
    """
    columns = tuple(schema)
    return _match(*(_canonical(query, _own_columns(query, columns), keys) for query in (predicted, gold)))


def foreign_keys(entry: Mapping[str, Any]) -> dict[str, str]:
    """The column that each column joined by foreign keys counts as, from an entry of Spider's `tables.json`.

    Pairs are put together in the order of the file, each into the first group that shares a column with it, so groups
    that only a later pair connects stay apart; the first column of the file stands for its group.
    """
    tables = [name.lower() for name in entry["table_names_original"]]
    names = [
        f"__{tables[table]}.{column.lower()}__" if table >= 0 else "__all__"
        for table, column in entry["column_names_original"]
    ]
    groups: list[set[int]] = []
    for pair in entry["foreign_keys"]:
        group = next((each for each in groups if each & set(pair)), None)
        if group is None:
            groups.append(set(pair))
        else:
            group |= set(pair)
    return {names[index]: names[min(group)] for group in groups for index in group}


def hardness(query: SpiderQuery) -> Hardness:
    """The grade of a gold query, from how many components of three kinds it has."""
    first, nested, others = _clauses(query), len(_subqueries(query)), _others(query)
    if first <= 1 and not others and not nested:
        return "easy"
    if not nested and ((others <= 2 and first <= 1) or (first <= 2 and others < 2)):
        return "medium"
    if (
        (others > 2 and first <= 2 and not nested)
        or (first == 3 and others <= 2 and not nested)
        or (first <= 1 and not others and nested <= 1)
    ):
        return "hard"
    return "extra"


# --- hardness ----------------------------------------------------------------------------------------------------


def _clauses(query: SpiderQuery) -> int:
    """WHERE, GROUP BY, ORDER BY, LIMIT, joins, ORs and LIKEs."""
    present = [query.where.items, query.group, query.order, query.limited]
    joins = max(0, len(query.tables) - 1)
    return sum(map(bool, present)) + joins + _all_words(query).count("or") + _compared(query).count("like")


def _others(query: SpiderQuery) -> int:
    """Whether there are several aggregates, selected values, conditions, grouping columns.

    The official count of aggregates also counts negated conditions, and the words between the conditions of HAVING.
    """
    aggregates = sum(aggregate != "none" for aggregate, _ in query.select)
    aggregates += sum(condition.negated for condition in query.where.items)
    aggregates += sum(aggregate != "none" for aggregate, _, _ in query.group)
    if query.order:
        units = [unit for _, first, second in query.order[1] for unit in (first, second) if unit is not None]
        aggregates += sum(aggregate != "none" for aggregate, _, _ in units)
    aggregates += sum(condition.negated for condition in query.having.items) + len(query.having.words)
    conditions = len(query.where.items) + len(query.where.words)
    return sum(count > 1 for count in (aggregates, len(query.select), conditions, len(query.group)))


def _subqueries(query: SpiderQuery) -> list[SpiderQuery]:
    values = [value for each in _all_items(query) for value in (each.right, each.upper)]
    added = [query.intersect, query.except_, query.union]
    return [value for value in (*values, *added) if isinstance(value, SpiderQuery)]


def _all_items(query: SpiderQuery) -> tuple[Condition, ...]:
    return query.joined_on.items + query.where.items + query.having.items


def _all_words(query: SpiderQuery) -> tuple[Any, ...]:
    return query.joined_on.words + query.where.words + query.having.words


def _compared(query: SpiderQuery) -> list[str]:
    return [condition.comparison for condition in _all_items(query)]


# --- components --------------------------------------------------------------------------------------------------


def _match(predicted: SpiderQuery, gold: SpiderQuery) -> Match:
    components = dict(zip(COMPONENTS, _components(predicted, gold), strict=True))
    exact = all(component.matched for component in components.values())
    return Match(exact and _same_bag(predicted.tables, gold.tables), components)


def _components(predicted: SpiderQuery, gold: SpiderQuery) -> list[Component]:
    both = (predicted, gold)
    return [
        _as_sets(*(query.select for query in both)),
        _as_sets(*([unit for _, unit in query.select] for query in both)),
        _as_sets(*(query.where.items for query in both)),
        _as_sets(*([condition.left for condition in query.where.items] for query in both)),
        _as_sets(*([_bare(column) for _, column, _ in query.group] for query in both)),
        _whole(
            bool(predicted.group),
            bool(gold.group),
            [column for _, column, _ in predicted.group] == [column for _, column, _ in gold.group]
            and predicted.having == gold.having,
        ),
        _whole(
            predicted.order is not None,
            gold.order is not None,
            predicted.order == gold.order and predicted.limited == gold.limited,
        ),
        _connectors(*(set(query.where.words) for query in both)),
        _set_operations(predicted, gold),
        _as_sets(*(sorted(_keywords(query)) for query in both)),
    ]


def _as_sets(predicted: Sequence[Any], gold: Sequence[Any]) -> Component:
    return Component(len(gold), len(predicted), _same_bag(predicted, gold))


def _whole(predicted: bool, gold: bool, equal: bool) -> Component:
    """A clause that is there or not, and is compared as one."""
    return Component(int(gold), int(predicted), predicted == gold and (equal or not gold))


def _connectors(predicted: set[Any], gold: set[Any]) -> Component:
    # The official counts of the two sides are exchanged here, which shows in accuracy and recall of this component.
    return Component(1, 1, True) if predicted == gold else Component(len(predicted), len(gold), False)


def _set_operations(predicted: SpiderQuery, gold: SpiderQuery) -> Component:
    pairs = [(getattr(predicted, name), getattr(gold, name)) for name in ("intersect", "except_", "union")]
    theirs, ours = (sum(pair[side] is not None for pair in pairs) for side in (0, 1))
    matched = sum(a is not None and b is not None and _match(a, b).exact for a, b in pairs)
    return Component(ours, theirs, theirs == ours == matched)


def _keywords(query: SpiderQuery) -> set[str]:
    found = {
        "where": query.where.items,
        "group": query.group,
        "having": query.having.items,
        "order": query.order,
        "limit": query.limited,
        "except": query.except_,
        "union": query.union,
        "intersect": query.intersect,
        "or": "or" in _all_words(query),
        "not": any(condition.negated for condition in _all_items(query)),
        "in": "in" in _compared(query),
        "like": "like" in _compared(query),
    }
    direction = {query.order[0]} if query.order else set()
    return {name for name, present in found.items() if present} | direction


def _same_bag(left: Sequence[Any], right: Sequence[Any]) -> bool:
    return Counter(left) == Counter(right)


def _bare(column: str) -> str:
    return column.split(".")[1] if "." in column else column


# --- what is ignored ---------------------------------------------------------------------------------------------


def _own_columns(query: SpiderQuery, columns: tuple[str, ...]) -> frozenset[str]:
    """The columns of the tables in the outermost FROM: only these may count as another."""
    tables = {table[2:-2] for table in query.tables if isinstance(table, str)}
    return frozenset(column for column in columns if column[2:].split(".")[0] in tables)


def _canonical(query: SpiderQuery, own: frozenset[str], keys: Mapping[str, str]) -> SpiderQuery:
    """The query without values and DISTINCT, its columns replaced by those they count as."""

    def column(unit: ColumnUnit) -> ColumnUnit:
        aggregate, name, _ = unit
        return aggregate, keys.get(name, name) if name in own else name, None

    def value(unit: ValueUnit) -> ValueUnit:
        operator, first, second = unit
        return operator, column(first), None if second is None else column(second)

    def conditions(found: Conditions) -> Conditions:
        items = (
            dataclasses.replace(
                each, left=value(each.left), right=_without_values(each.right), upper=_without_values(each.upper)
            )
            for each in found.items
        )
        return Conditions(tuple(items), found.words)

    added: dict[str, Any] = {
        name: _canonical(each, own, keys)
        for name in ("intersect", "union", "except_")
        if (each := getattr(query, name)) is not None
    }
    return dataclasses.replace(
        query,
        distinct=None,
        select=tuple((aggregate, value(unit)) for aggregate, unit in query.select),
        joined_on=conditions(query.joined_on),
        where=conditions(query.where),
        group=tuple(map(column, query.group)),
        having=conditions(query.having),
        order=None if query.order is None else (query.order[0], tuple(map(value, query.order[1]))),
        **added,
    )


def _without_values(value: Any) -> Any:
    """A subquery without its values; any other value is nothing."""
    if not isinstance(value, SpiderQuery):
        return None

    def conditions(found: Conditions) -> Conditions:
        items = (
            dataclasses.replace(each, right=_without_values(each.right), upper=_without_values(each.upper))
            for each in found.items
        )
        return Conditions(tuple(items), found.words)

    added: dict[str, Any] = {name: _without_values(getattr(value, name)) for name in ("intersect", "union", "except_")}
    return dataclasses.replace(
        value,
        joined_on=conditions(value.joined_on),
        where=conditions(value.where),
        having=conditions(value.having),
        **added,
    )
