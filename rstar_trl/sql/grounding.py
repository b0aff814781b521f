"""Whether the constants of a step's conditions can be known from what the policy was shown.

Guarantees: every text and number that a condition of the clause compares with, in its subqueries too, is looked for
in the prompt without regard to case; of a pattern the text between its wildcards. Numbers up to `SMALL` pass, since
questions write them as words. Arguments of functions, and constants outside of conditions, are not looked at.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING

from rstar_trl.sql.clauses import CACHE_SIZE, SCAFFOLDS, parse_clause

if TYPE_CHECKING:
    from sqlglot import exp

    from rstar_trl.sql.compose import Step

SMALL = 12
PROMPTS = 1 << 12
"""Prompts whose words are remembered."""

Wanted = float | re.Pattern[str] | tuple[str, ...]
"""A number, words, or parts that follow each other."""

_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}\b)")
_WILDCARDS = re.compile(r"[%_*?]")


def ungrounded(step: Step, prompt: str, dialect: str = "sqlite") -> str | None:
    """The first constant of the step's conditions that stands nowhere in the prompt; None if all do."""
    constants = _constants(step.kind, step.clause, dialect)
    if not constants:
        return None
    text, numbers = _shown(prompt)
    for written, wanted in constants:
        if isinstance(wanted, float):
            known = wanted in numbers or wanted <= SMALL
        else:
            known = _follow(wanted, text) if isinstance(wanted, tuple) else bool(wanted.search(text))
        if not known:
            return written
    return None


@lru_cache(PROMPTS)
def _shown(prompt: str) -> tuple[str, frozenset[float]]:
    """The prompt in lower case, and its numbers."""
    numbers = frozenset(map(float, _NUMBER.findall(_THOUSANDS.sub("", prompt))))
    return prompt.lower().replace("''", "'"), numbers


@lru_cache(CACHE_SIZE)
def _constants(kind: str, clause: str, dialect: str) -> tuple[tuple[str, Wanted], ...]:
    """What conditions compare with, as written, and what to look for."""
    from sqlglot import exp

    if kind not in SCAFFOLDS:
        return ()
    conditions = parse_clause(kind, clause, dialect).find_all(exp.Predicate)
    return tuple(constant for condition in conditions for constant in _compared(condition, dialect))


def _compared(condition: exp.Expr, dialect: str) -> Iterator[tuple[str, Wanted]]:
    """The constants among a condition's own operands, signs and brackets aside."""
    from sqlglot import exp

    pattern = isinstance(condition, (exp.Like, exp.ILike, exp.Glob))
    operands = list(condition.iter_expressions())
    for operand in operands:
        if isinstance(operand, (exp.Neg, exp.Paren, exp.Tuple)):
            operands.extend(operand.iter_expressions())
        elif isinstance(operand, exp.Literal) and not operand.is_string:
            yield operand.name, _number(operand.name)
        elif isinstance(operand, exp.Literal) or (operand is not condition.this and _may_be_text(operand, dialect)):
            yield repr(operand.name), _look_for(operand.name.lower(), pattern)


def _number(text: str) -> float:
    """The number, or NaN (which no prompt shows) for one that was cut off, such as `28e`, which sqlglot lets pass."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def _may_be_text(node: exp.Expr, dialect: str) -> bool:
    """SQLite reads a quoted name that is no column as text, and Spider writes text so."""
    from sqlglot import exp

    return (
        dialect == "sqlite" and isinstance(node, exp.Column) and not node.table and bool(node.this.args.get("quoted"))
    )


def _look_for(text: str, pattern: bool) -> Wanted:
    """A text as whole words; of a pattern what is between its wildcards, in order."""
    if pattern:
        return tuple(filter(None, _WILDCARDS.split(text)))
    return re.compile(rf"(?<!\w){re.escape(text)}(?!\w)")


def _follow(parts: tuple[str, ...], text: str) -> bool:
    """Whether the parts stand in the text one after the other.

    No regular expression: a policy writes patterns of dozens of wildcards, over which one would not come to an end.
    """
    place = 0
    for part in parts:
        place = text.find(part, place)
        if place < 0:
            return False
        place += len(part)
    return True
