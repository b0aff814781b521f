"""Steps, and the queries they stand for: a step is read from text, steps become SQL by joining their clauses.

Guarantees: `partial_sql` is a query for every prefix that `check_order` accepts, made by joining text (nothing is
parsed that was seen before); `sql_from_steps` is that query for a complete sequence. Both assume clauses that came
from `parse_step` or `steps_from_sql`: text put into a `Step` by hand is not checked. Does not guarantee that the query
of a prefix runs where a clause uses a name that a later one defines (SQLite lets WHERE use an alias of SELECT).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from rstar_trl.errors import SqlError
from rstar_trl.sql.clauses import BLOCK_KINDS, SET_KINDS, Clause, read_clause

_RANK = {kind: rank for rank, kind in enumerate(BLOCK_KINDS)}
_SELECT_RANK = _RANK["SELECT"]
_SET_KINDS = frozenset(SET_KINDS)
_TEXT_ORDER = ("SELECT", "FROM", "WHERE", "GROUP BY", "HAVING", "WINDOW", "QUALIFY", "ORDER BY", "LIMIT")
_THOUGHT = re.compile(r"[ \t]*--([^\n]*)(?:\n|\Z)")


@dataclass(frozen=True)
class Step:
    """One thought and one SQL clause. `kind` is one of `BLOCK_KINDS` or `SET_KINDS`; `clause` opens with its keyword.

    `str(step)` is the step as the policy writes it: the thought as comment lines, then the clause.
    """

    kind: str
    clause: str
    thought: str = ""

    def __str__(self) -> str:
        return "".join(f"-- {line}\n" for line in self.thought.splitlines() if line.strip()) + self.clause


def parse_step(text: str, dialect: str = "sqlite") -> Step:
    """Reads a step: leading `--` lines are its thought, the rest must be exactly one clause.

    Raises:
        SqlError: the rest does not parse, is of no known kind, or holds more than one clause.
    """
    thought: list[str] = []
    text = text.strip()
    while match := _THOUGHT.match(text):
        thought.append(match[1].strip())
        text = text[match.end() :]
    clause = read_clause(text.strip(), dialect)
    return Step(clause.kind, clause.text, "\n".join(filter(None, thought)))


def canonical_step(step: Step, dialect: str = "sqlite") -> tuple[str, str]:
    """Kind and normalised clause: equal for steps whose SQL differs in formatting or thought alone."""
    clause = read_clause(step.clause, dialect)
    return clause.kind, clause.canonical


def check_order(steps: Sequence[Step]) -> None:
    """Raises `SqlError` when a step cannot follow those before it.

    Within a block kinds rise in the order of `BLOCK_KINDS`, each once, except WITH, which may repeat and opens the
    first block only; ORDER BY and LIMIT need a SELECT; a set operation follows a SELECT directly.
    """
    previous, rank, first_block, selected = "", -1, True, False
    for step in steps:
        kind = step.kind
        if kind in _SET_KINDS:
            if rank != _SELECT_RANK:
                raise _out_of_order(kind, previous, "a set operation follows a SELECT directly")
            rank, first_block, selected = -1, False, False
        else:
            here = _RANK.get(kind)
            if here is None:
                raise SqlError(f"{kind!r} is no kind of step; use one of {', '.join((*BLOCK_KINDS, *SET_KINDS))}.")
            if here < rank or (here == rank and here):
                raise _out_of_order(kind, previous, f"the order is {', '.join(BLOCK_KINDS)}, each once")
            if not here and not first_block:
                raise _out_of_order(kind, previous, "WITH opens the whole query")
            if here > _SELECT_RANK and not selected:
                raise _out_of_order(kind, previous, f"{kind} comes after SELECT")
            rank, selected = here, selected or here == _SELECT_RANK
        previous = kind


def is_complete(steps: Sequence[Step]) -> bool:
    """Whether the steps end a query: the last block has its SELECT."""
    for step in reversed(steps):
        if step.kind == "SELECT":
            return True
        if step.kind in _SET_KINDS:
            return False
    return False


def sql_from_steps(steps: Sequence[Step], dialect: str = "sqlite") -> str:
    """The finished query on one line.

    Raises:
        SqlError: the steps are out of order, or the last block has no SELECT yet.
    """
    if not is_complete(steps):
        raise SqlError("The steps are no finished query: the last block has no SELECT; add one, or use partial_sql.")
    return partial_sql(steps, dialect)


def partial_sql(steps: Sequence[Step], dialect: str = "sqlite") -> str:
    """A query that runs what the steps say so far; the finished query once the last block has its SELECT.

    A block without SELECT runs alone, selecting every column (grouping keys and group sizes after GROUP BY). After
    WITH alone the last table defined is read; after a set operation the query before it runs again. No step at all is
    `SELECT 1`.

    Raises:
        SqlError: the steps are out of order.
    """
    check_order(steps)
    tables: list[Clause] = []
    finished: list[str] = []
    block: dict[str, str] = {}
    for step in steps:
        if step.kind == "WITH":
            tables.append(read_clause(step.clause, dialect))
        elif step.kind in _SET_KINDS:
            finished += (_join(block), step.clause)
            block = {}
        else:
            block[step.kind] = step.clause
    head = _with(tables)
    if "SELECT" in block:
        return head + " ".join([*finished, _join(block)])
    if block:
        return f"{head}SELECT {_probe(block, dialect)} {_join(block)}"
    if finished:
        return head + " ".join(finished[:-1])
    return f"{head}SELECT * FROM {tables[-1].probe}" if tables else "SELECT 1"


def _join(block: dict[str, str]) -> str:
    return " ".join([block[kind] for kind in _TEXT_ORDER if kind in block])


def _with(tables: list[Clause]) -> str:
    if not tables:
        return ""
    keyword = "WITH RECURSIVE " if any(table.recursive for table in tables) else "WITH "
    return keyword + ", ".join(table.body for table in tables) + " "


def _probe(block: dict[str, str], dialect: str) -> str:
    """The select list of a block that has none yet."""
    if "GROUP BY" in block:
        return read_clause(block["GROUP BY"], dialect).probe
    if "HAVING" in block:
        return "COUNT(*)"
    return "*" if "FROM" in block else "1"


def _out_of_order(kind: str, previous: str, rule: str) -> SqlError:
    place = f"directly after {previous}" if previous else "first"
    return SqlError(f"{kind} cannot come {place}: {rule}; write another step.")
