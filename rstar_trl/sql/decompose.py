"""From a whole query to its steps, and the normal form of a query.

Guarantees: whatever `steps_from_sql` returns composes back to a query equal up to formatting, because it is checked
before it is returned; a query that steps cannot carry is a `SqlError`, never a wrong decomposition. Does not see that
two queries mean the same when they are written differently.
"""

from __future__ import annotations

from functools import lru_cache

from sqlglot import exp

from rstar_trl.errors import SqlError
from rstar_trl.sql.clauses import (
    CACHE_SIZE,
    SCAFFOLDS,
    STEP_DELIMITER,
    clause_text,
    filled,
    generate,
    normalize_identifiers,
    parse_query,
    scaffold_select,
    set_kind,
    shorten,
)
from rstar_trl.sql.compose import Step, sql_from_steps

_KIND_OF_ARG = {arg: kind for kind, scaffold in SCAFFOLDS.items() for arg in scaffold.args}


def steps_from_sql(sql: str, dialect: str = "sqlite") -> tuple[Step, ...]:
    """Takes a query apart into clause steps without thoughts, in logical order, in sqlglot's formatting.

    Raises:
        SqlError: the text does not parse, is no SELECT, or is a query that flat steps cannot carry (parenthesised
            operands of a set operation that change its meaning, INTO, locking clauses, ...).
    """
    try:
        steps = tuple(_steps(parse_query(sql, dialect), dialect))
        composed = sql_from_steps(steps, dialect)
    except SqlError as error:
        raise SqlError(f"{shorten(sql)!r} cannot be taken apart into steps. {error}") from error
    if any(STEP_DELIMITER in step.clause for step in steps):
        raise SqlError(f"{shorten(sql)!r} holds a blank line inside a literal, which would end a step; use char(10).")
    if canonical(composed, dialect) != canonical(sql, dialect):
        raise SqlError(
            f"{shorten(sql)!r} nests its queries in a way that a flat list of steps cannot say; rewrite it."
        )
    return steps


@lru_cache(CACHE_SIZE)
def canonical(sql: str, dialect: str = "sqlite") -> str:
    """A text that is equal for queries whose syntax trees are equal up to formatting.

    Blanks, comments, keyword case, the case of unquoted identifiers, parentheses around the whole query and spellings
    sqlglot writes alike (`FROM t, u` and `CROSS JOIN`, `IFNULL` and `COALESCE` of two) do not
    count; aliases, the order of conditions and the quoting of identifiers do. Raises `SqlError` for text that does not
    parse.
    """
    return generate(normalize_identifiers(_unwrapped(parse_query(sql, dialect)), dialect), dialect, copy=False)


def _unwrapped(node: exp.Expr) -> exp.Expr:
    """The query inside parentheses that carry nothing else (no alias, no ORDER BY of their own)."""
    while isinstance(node, exp.Subquery) and filled(node) == {"this"}:
        node = node.this
    return node


def _steps(node: exp.Expr, dialect: str) -> list[Step]:
    """The steps of a query; takes the tree's nodes for itself."""
    node = _unwrapped(node)
    if isinstance(node, exp.Select):
        return _block_steps(node, filled(node), dialect)
    if not isinstance(node, exp.SetOperation):
        raise SqlError(f"It is {node.key.upper()}, not SELECT; only queries have steps.")
    flags = {arg: node.args.get(arg) for arg in ("distinct", "by_name", "side", "kind", "on")}
    operator = type(node)(this=scaffold_select("SELECT"), expression=scaffold_select("SELECT"), **flags)
    outer = _block_steps(node, filled(node) - {"this", "expression", *flags}, dialect)
    opening = [step for step in outer if step.kind == "WITH"]
    middle = Step(set_kind(node), clause_text(set_kind(node), operator, dialect))
    before, after = _steps(node.this, dialect), _steps(node.expression, dialect)
    return [*opening, *before, middle, *after, *outer[len(opening) :]]


def _block_steps(node: exp.Expr, args: set[str], dialect: str) -> list[Step]:
    """The steps of the arguments `args` of one query block."""
    if unknown := args - set(_KIND_OF_ARG):
        names = ", ".join(sorted(name.strip("_").upper() for name in unknown))
        raise SqlError(f"No step can carry {names}; write the query without it.")
    steps = []
    for kind, scaffold in SCAFFOLDS.items():
        values = {arg: node.args[arg] for arg in scaffold.args if arg in args}
        for part in _one_table_each(values) if kind == "WITH" else [values]:
            if part:
                select = scaffold_select(kind)
                for arg, value in part.items():
                    select.set(arg, value)
                steps.append(Step(kind, clause_text(kind, select, dialect)))
    return steps


def _one_table_each(values: dict[str, exp.With]) -> list[dict[str, exp.With]]:
    return [
        {arg: exp.With(expressions=[table], recursive=definitions.args.get("recursive"))}
        for arg, definitions in values.items()
        for table in definitions.expressions
    ]
