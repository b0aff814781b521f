"""Near-misses: queries that differ from a gold query in one place, as a policy's mistakes do.

Kinds: `operator`, `constant`, `direction`, `distinct`, `join`, `dropped condition`, `added condition`, `column`
(another of the same type), `count` (COUNT(*) or COUNT(column)), `aggregate`.

Guarantees: every near-miss parses, and is another syntax tree than the query it came from; the same query gives the
same list. Does not guarantee that it gives other rows: some are equivalent by the meaning of the data or of SQL.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rstar_trl.errors import SqlError
from rstar_trl.sql.policy import parse_statements

if TYPE_CHECKING:
    from sqlglot import exp

Columns = Mapping[str, Mapping[str, str]]
"""Declared type by column by table, all in lower case."""
Change = tuple[str, Callable[["exp.Expr"], object]]
"""A kind, and a function that changes a node of a copy in place."""

OTHER_COLUMNS = 2


@dataclass(frozen=True)
class NearMiss:
    """A changed query and what was changed."""

    kind: str
    sql: str


def near_misses(sql: str, columns: Columns, dialect: str = "sqlite") -> list[NearMiss]:
    """All near-misses of one query, without repeats. Raises `SqlError` for text that is not one statement."""
    from sqlglot import exp

    statements = parse_statements(sql, dialect)
    if len(statements) != 1:
        raise SqlError(f"There are {len(statements)} statements where one query should be.")
    tree = statements[0]
    same, tables = tree.sql(dialect=dialect), _tables(tree)
    found: dict[str, NearMiss] = {}
    for index, node in enumerate(tree.walk()):
        for kind, change in _changes(node, columns, tables):
            # Inside of something, because a node without a parent cannot be replaced.
            holder = exp.Paren(this=tree.copy())
            change(next(each for place, each in enumerate(holder.this.walk()) if place == index))
            text = holder.this.sql(dialect=dialect, copy=False)
            if text != same:
                found.setdefault(text, NearMiss(kind, text))
    return list(found.values())


def constants(sql: str, dialect: str = "sqlite") -> Iterator[tuple[str, str | float]]:
    """`(column, value)` for every constant that the query compares a column with, names in lower case."""
    from sqlglot import exp

    for statement in parse_statements(sql, dialect):
        for node in statement.find_all(exp.Predicate):
            names = [column.name.lower() for column in node.find_all(exp.Column)]
            # SQLite reads a quoted name that is no column as text, and Spider writes text so.
            quoted = [c.name for c in node.find_all(exp.Column) if c.this.args.get("quoted") and not c.table]
            values: list[str | float] = [*quoted]
            for literal in node.find_all(exp.Literal):
                values.append(str(literal.this) if literal.is_string else float(literal.this))
            yield from ((name, value) for name in names for value in values)


def _changes(node: exp.Expr, columns: Columns, tables: Mapping[str, str]) -> Iterator[Change]:
    from sqlglot import exp

    yield from _operators(node)
    yield from _constants(node)
    yield from _conditions(node)
    yield from _functions(node, columns, tables)
    if isinstance(node, exp.Ordered):
        yield "direction", _turn_around
    if isinstance(node, exp.Select):
        yield "distinct", _toggle_distinct
    if isinstance(node, exp.Join) and not node.side and node.args.get("on"):
        yield "join", lambda found: found.set("side", "LEFT")
    if isinstance(node, exp.Column) and not isinstance(node.this, exp.Star):
        for other in _others(node, columns, tables):
            yield "column", lambda found, name=other: found.set("this", exp.to_identifier(name, quoted=True))  # type: ignore[misc]


def _operators(node: exp.Expr) -> Iterator[Change]:
    from sqlglot import exp

    swaps: dict[type[exp.Expr], tuple[type[exp.Expr], ...]] = {
        exp.EQ: (exp.NEQ,),
        exp.NEQ: (exp.EQ,),
        exp.GT: (exp.GTE, exp.LT),
        exp.GTE: (exp.GT, exp.LTE),
        exp.LT: (exp.LTE, exp.GT),
        exp.LTE: (exp.LT, exp.GTE),
        exp.And: (exp.Or,),
        exp.Or: (exp.And,),
        exp.Union: (exp.Intersect,),
        exp.Intersect: (exp.Union, exp.Except),
        exp.Except: (exp.Intersect,),
    }
    for other in swaps.get(type(node), ()):
        if isinstance(node.parent, exp.Join) and not isinstance(node, exp.And | exp.Or):
            continue  # Another condition of a join is another query, not a near-miss.
        yield "operator", lambda found, new=other: found.replace(new(**_parts(found)))  # type: ignore[misc]


def _parts(node: exp.Expr) -> dict[str, object]:
    return dict(node.args)


def _constants(node: exp.Expr) -> Iterator[Change]:
    from sqlglot import exp

    if not isinstance(node, exp.Literal):
        return
    if not node.is_string:
        number = float(node.this)
        for step in (1, -1):
            text = f"{number + step:g}"
            if number + step > 0 or not isinstance(node.parent, exp.Limit):
                yield "constant", lambda found, new=text: found.replace(exp.Literal.number(new))  # type: ignore[misc]
    elif str(node.this).strip("%"):
        text = str(node.this)
        changed = text.strip("%") if text != text.strip("%") else text[:-1]
        yield "constant", lambda found: found.replace(exp.Literal.string(changed))


def _conditions(node: exp.Expr) -> Iterator[Change]:
    from sqlglot import exp

    if isinstance(node, exp.And):
        yield "dropped condition", lambda found: found.replace(found.args["this"].copy())
        yield "dropped condition", lambda found: found.replace(found.args["expression"].copy())
    if isinstance(node, exp.Where | exp.Having):
        yield "dropped condition", lambda found: found.pop()
    if isinstance(node, exp.Select) and node.args.get("from_"):
        shown = [each.unalias() for each in node.expressions]
        column = next((each for each in shown if isinstance(each, exp.Column) and not each.is_star), None)
        if column is not None:
            present = exp.Not(this=exp.Is(this=column.copy(), expression=exp.Null()))
            yield "added condition", lambda found: found.where(present, copy=False)  # type: ignore[attr-defined]


def _functions(node: exp.Expr, columns: Columns, tables: Mapping[str, str]) -> Iterator[Change]:
    from sqlglot import exp

    swaps: dict[type[exp.Expr], tuple[type[exp.Expr], ...]] = {
        exp.Max: (exp.Min, exp.Avg),
        exp.Min: (exp.Max,),
        exp.Sum: (exp.Avg, exp.Count),
        exp.Avg: (exp.Sum, exp.Max),
    }
    for other in swaps.get(type(node), ()):
        yield "aggregate", lambda found, new=other: found.replace(new(this=found.this.copy()))  # type: ignore[misc]
    if not isinstance(node, exp.Count):
        return
    if isinstance(node.this, exp.Star):
        table = next(iter(tables.values()), "")
        for name in list(columns.get(table, ()))[:OTHER_COLUMNS]:
            column = exp.column(exp.to_identifier(name, quoted=True))
            yield "count", lambda found, new=column: found.set("this", new.copy())  # type: ignore[misc]
    elif isinstance(node.this, exp.Distinct):
        yield "distinct", lambda found: found.set("this", found.this.expressions[0].copy())
    else:
        yield "count", lambda found: found.set("this", exp.Star())
        yield "distinct", lambda found: found.set("this", exp.Distinct(expressions=[found.this.copy()]))


def _turn_around(ordered: exp.Expr) -> None:
    descending = not ordered.args.get("desc")
    ordered.set("desc", descending)
    ordered.set("nulls_first", not descending)  # SQLite's own default, which then need not be written.


def _toggle_distinct(select: exp.Expr) -> None:
    from sqlglot import exp

    select.set("distinct", None if select.args.get("distinct") else exp.Distinct())


def _tables(tree: exp.Expr) -> dict[str, str]:
    """The table by the name it goes by, in lower case."""
    from sqlglot import exp

    return {table.alias_or_name.lower(): table.name.lower() for table in tree.find_all(exp.Table)}


def _others(column: exp.Expr, columns: Columns, tables: Mapping[str, str]) -> list[str]:
    """The first columns of the same table that are declared alike."""
    from sqlglot import exp

    assert isinstance(column, exp.Column)
    name = column.name.lower()
    if column.table:
        owners = [tables.get(column.table.lower(), "")]
    else:
        owners = [table for table in tables.values() if name in columns.get(table, ())]
    if not owners or name not in columns.get(owners[0], ()):
        return []
    own = columns[owners[0]]
    return [other for other, declared in own.items() if other != name and declared == own[name]][:OTHER_COLUMNS]
