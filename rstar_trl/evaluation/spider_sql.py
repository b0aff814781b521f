"""SQL as Spider's official exact match reads it: a small grammar of its own, and everything outside of it unparsable.

The reader is part of the metric's definition. What it cannot read (outer joins, tables joined by commas, `UNION ALL`,
operators without spaces around them, arithmetic over more than two columns) counts as an empty query on the predicted
side, so reading more than the official reader would give other scores. Names are lower-cased; a column without its
table belongs to the first table of its FROM clause that has it; text after the query is ignored.

Guarantees: `read_query` returns a query or raises `SqlError`. Does not guarantee that the SQL would run.

Source: Yu et al. 2018 (arXiv 1809.08887) and the evaluator published with it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rstar_trl.errors import SqlError

CLAUSES = frozenset({"select", "from", "where", "group", "order", "limit", "intersect", "union", "except"})
JOIN_WORDS = frozenset({"join", "on", "as"})
COMPARISONS = ("not", "between", "=", ">", "<", ">=", "<=", "!=", "in", "like", "is", "exists")
OPERATORS = ("none", "-", "+", "*", "/")
AGGREGATES = ("none", "max", "min", "count", "sum", "avg")
SET_OPERATIONS = ("intersect", "union", "except")
_CLOSES = frozenset({")", ";"})

ColumnUnit = tuple[str, str, bool | None]
"""Aggregate, column (`__table.column__`, or `__all__`), and whether DISTINCT stands inside the aggregate."""
ValueUnit = tuple[str, ColumnUnit, ColumnUnit | None]
"""Operator between two columns, or `none` with one."""
Schema = Mapping[str, Sequence[str]]
"""Columns by table, lower-cased."""


@dataclass(frozen=True)
class Condition:
    """One comparison. Values are numbers, texts, column units, subqueries or None."""

    negated: bool
    comparison: str
    left: ValueUnit
    right: Any
    upper: Any = None


@dataclass(frozen=True)
class Conditions:
    """Comparisons and the words (`and`, `or`) between them.

    The official reader takes every second element for a word: where none stands between two comparisons, the later one
    is in its place.
    """

    items: tuple[Condition, ...] = ()
    words: tuple[str | Condition, ...] = ()


@dataclass(frozen=True)
class SpiderQuery:
    """A query taken apart. `tables` holds `__table__` names and subqueries, `order` the direction and values."""

    distinct: bool | None = None
    select: tuple[tuple[str, ValueUnit], ...] = ()
    tables: tuple[Any, ...] = ()
    joined_on: Conditions = field(default_factory=Conditions)
    where: Conditions = field(default_factory=Conditions)
    group: tuple[ColumnUnit, ...] = ()
    having: Conditions = field(default_factory=Conditions)
    order: tuple[str, tuple[ValueUnit, ...]] | None = None
    limited: bool = False
    intersect: SpiderQuery | None = None
    union: SpiderQuery | None = None
    except_: SpiderQuery | None = None


EMPTY = SpiderQuery()
"""What an unparsable prediction counts as."""


def read_query(sql: str, schema: Schema) -> SpiderQuery:
    """Reads one query. Raises `SqlError` for text that the official reader cannot read."""
    try:
        tokens = tokenize(sql)
        return _Reader(tokens, schema, _aliases(tokens, schema)).query()
    except (IndexError, KeyError, ValueError, RecursionError) as error:
        raise SqlError(f"the query is outside of Spider's grammar ({error or type(error).__name__}).") from error


def tokenize(sql: str) -> list[str]:
    """Words as the official reader splits them: quoted text is one word, an operator only where spaces set it apart.

    Punctuation follows the Penn Treebank rules: brackets, angle brackets, `!`, `;` and commas before anything but a
    digit stand alone; `=`, `+`, `-`, `*`, `/` and dots do not.
    """
    sql = sql.replace("'", '"')
    parts = sql.split('"')
    if len(parts) % 2 == 0:
        raise ValueError("a quote is not closed")
    quoted = {f"__quoted_{i}__": f'"{parts[i]}"' for i in range(1, len(parts), 2)}
    text = "".join(part if i % 2 == 0 else f"__quoted_{i}__" for i, part in enumerate(parts))
    text = re.sub(r"([:,])(\D)", r" \1 \2", text)
    text = re.sub(r"([:,])$", r" \1 ", text)
    text = re.sub(r"--|\.\.+|[;@#$%&?!`()\[\]{}<>]", r" \g<0> ", text)
    words = [quoted.get(word, word.lower()) for word in text.split()]
    tokens: list[str] = []
    for word in words:
        if word == "=" and tokens and tokens[-1] in ("!", "<", ">"):
            tokens[-1] += word
        else:
            tokens.append(word)
    return tokens


def _aliases(tokens: list[str], schema: Schema) -> dict[str, str]:
    found = {tokens[i + 1]: tokens[i - 1] for i, token in enumerate(tokens) if token == "as"}
    clash = found.keys() & schema.keys()
    if clash:
        raise ValueError(f"the alias {min(clash)} is the name of a table")
    return found | {table: table for table in schema}


def _conditions(found: list[str | Condition]) -> Conditions:
    items = tuple(each for each in found[::2] if isinstance(each, Condition))
    if len(items) != len(found[::2]):
        raise ValueError("a word stands where a comparison should")
    return Conditions(items, tuple(found[1::2]))


class _Reader:
    """Reads tokens from left to right; `at` is the next one."""

    def __init__(self, tokens: list[str], schema: Schema, aliases: Mapping[str, str], at: int = 0) -> None:
        self.tokens = tokens
        self.schema = schema
        self.aliases = aliases
        self.at = at

    def peek(self) -> str:
        """The next token; empty at the end."""
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self) -> str:
        token = self.tokens[self.at]
        self.at += 1
        return token

    def accept(self, token: str) -> bool:
        found = self.peek() == token
        self.at += found
        return found

    def expect(self, token: str) -> None:
        if not self.accept(token):
            raise ValueError(f"{self.peek() or 'the end'} stands where {token} should")

    # --- clauses ---

    def query(self) -> SpiderQuery:
        block = self.peek() == "("
        begin = self.at + block
        self.at = self.tokens.index("from", self.at) + 1
        tables, joined_on, names = self.from_()
        after_from, self.at = self.at, begin
        distinct, select = self.select(names)
        self.at = after_from
        where = _conditions(self.conditions(names) if self.accept("where") else [])
        group = self.group(names)
        having = _conditions(self.conditions(names) if self.accept("having") else [])
        order = self.order(names)
        limited = self.accept("limit") and bool(self.take())
        self.skip_semicolons()
        if block:
            self.expect(")")
        self.skip_semicolons()
        combined: dict[str, Any] = {}
        if self.peek() in SET_OPERATIONS:
            operation = self.take()
            combined["except_" if operation == "except" else operation] = self.query()
        return SpiderQuery(distinct, select, tables, joined_on, where, group, having, order, limited, **combined)

    def from_(self) -> tuple[tuple[Any, ...], Conditions, list[str]]:
        tables: list[Any] = []
        names: list[str] = []
        joined_on: list[str | Condition] = []
        while self.at < len(self.tokens):
            block = self.accept("(")
            if self.peek() == "select":
                tables.append(self.query())
            else:
                self.accept("join")
                name = self.aliases[self.take()]
                if self.peek() == "as":
                    self.at += 2
                tables.append(self.identifier(name))
                names.append(name)
            if self.accept("on"):
                joined_on += ["and"] * bool(joined_on) + self.conditions(names)
            if block:
                self.expect(")")
            if self.peek() in CLAUSES or self.peek() in _CLOSES:
                break
        return tuple(tables), _conditions(joined_on), names

    def select(self, names: list[str]) -> tuple[bool, tuple[tuple[str, ValueUnit], ...]]:
        self.expect("select")
        distinct = self.accept("distinct")
        units = []
        while self.at < len(self.tokens) and self.peek() not in CLAUSES:
            aggregate = self.take() if self.peek() in AGGREGATES else "none"
            units.append((aggregate, self.value_unit(names)))
            self.accept(",")
        return distinct, tuple(units)

    def group(self, names: list[str]) -> tuple[ColumnUnit, ...]:
        if not self.accept("group"):
            return ()
        self.expect("by")
        units = []
        while self.peek() and self.peek() not in CLAUSES and self.peek() not in _CLOSES:
            units.append(self.column_unit(names))
            if not self.accept(","):
                break
        return tuple(units)

    def order(self, names: list[str]) -> tuple[str, tuple[ValueUnit, ...]] | None:
        if not self.accept("order"):
            return None
        self.expect("by")
        direction, units = "asc", []
        while self.peek() and self.peek() not in CLAUSES and self.peek() not in _CLOSES:
            units.append(self.value_unit(names))
            if self.peek() in ("asc", "desc"):
                direction = self.take()
            if not self.accept(","):
                break
        return direction, tuple(units)

    def conditions(self, names: list[str]) -> list[str | Condition]:
        found: list[str | Condition] = []
        while self.at < len(self.tokens):
            left = self.value_unit(names)
            negated = self.accept("not")
            comparison = self.take()
            if comparison not in COMPARISONS:
                raise ValueError(f"{comparison} is no comparison")
            right, upper = self.value(names), None
            if comparison == "between":
                self.expect("and")
                upper = self.value(names)
            found.append(Condition(negated, comparison, left, right, upper))
            token = self.peek()
            if token in CLAUSES or token in _CLOSES or token in JOIN_WORDS:
                break
            if token in ("and", "or"):
                found.append(self.take())
        return found

    # --- values ---

    def value(self, names: list[str]) -> Any:
        start = self.at
        block = self.accept("(")
        token = self.tokens[self.at]
        found: Any
        if token == "select":
            found = self.query()
        elif '"' in token:
            found = self.take()
        else:
            found = self.number_or_column(start, names)
        if block:
            self.expect(")")
        return found

    def number_or_column(self, start: int, names: list[str]) -> Any:
        try:
            number = float(self.tokens[self.at])
        except ValueError:
            end = self.at
            stops = CLAUSES | JOIN_WORDS | {",", ")", "and"}
            while end < len(self.tokens) and self.tokens[end] not in stops:
                end += 1
            column = _Reader(self.tokens[start:end], self.schema, self.aliases).column_unit(names)
            self.at = end
            return column
        self.at += 1
        return number

    def value_unit(self, names: list[str]) -> ValueUnit:
        block = self.accept("(")
        first, second, operator = self.column_unit(names), None, "none"
        if self.peek() in OPERATORS:
            operator = self.take()
            second = self.column_unit(names)
        if block:
            self.expect(")")
        return operator, first, second

    def column_unit(self, names: list[str]) -> ColumnUnit:
        block = self.accept("(")
        if self.tokens[self.at] in AGGREGATES:
            aggregate = self.take()
            self.expect("(")
            distinct = self.accept("distinct")
            unit = (aggregate, self.column(names), distinct)
            self.expect(")")
            return unit
        distinct = self.accept("distinct")
        unit = ("none", self.column(names), distinct)
        if block:
            self.expect(")")
        return unit

    def column(self, names: list[str]) -> str:
        token = self.take()
        if token == "*":
            return "__all__"
        if "." in token:
            alias, name = token.split(".")
            return self.identifier(self.aliases[alias], name)
        table = next((self.aliases[name] for name in names if token in self.schema[self.aliases[name]]), None)
        if table is None:
            raise ValueError(f"no table has a column {token}")
        return self.identifier(table, token)

    def identifier(self, table: str, column: str | None = None) -> str:
        if table not in self.schema or (column is not None and column not in self.schema[table]):
            raise ValueError(f"there is no {table}" + (f".{column}" if column is not None else ""))
        return f"__{table}__" if column is None else f"__{table}.{column}__"

    def skip_semicolons(self) -> None:
        while self.accept(";"):
            pass
