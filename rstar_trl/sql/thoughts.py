"""Short plain thoughts for clauses, made by rule: what a cold start learns from when no other model can write them.

Guarantees: one line of plain lower-case words, the same for the same clause; three to eight words long unless a
single name has more words than that. Does not guarantee insight: it names what a clause is about, not why.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import lru_cache

from sqlglot import exp

from rstar_trl.sql.clauses import CACHE_SIZE, generate, parse_clause
from rstar_trl.sql.compose import Step

MAX_WORDS = 8

_SET_THOUGHTS = {
    "UNION": "add the rows of another query",
    "INTERSECT": "keep rows another query also has",
    "EXCEPT": "leave out rows of another query",
}
_AGGREGATES: dict[type[exp.Expr], str] = {
    exp.Avg: "average",
    exp.Max: "highest",
    exp.Min: "lowest",
    exp.Sum: "total",
    exp.Count: "count of",
}


def with_thoughts(steps: Iterable[Step], dialect: str = "sqlite") -> tuple[Step, ...]:
    """The steps, with a plain thought wherever one has none."""
    return tuple(step if step.thought else replace(step, thought=plain_thought(step, dialect)) for step in steps)


def plain_thought(step: Step, dialect: str = "sqlite") -> str:
    """What the step does, in three to eight plain words ("keep rows by year")."""
    return _thought(step.kind, step.clause, dialect)


@lru_cache(CACHE_SIZE)
def _thought(kind: str, clause: str, dialect: str) -> str:
    if kind not in _WRITERS:
        return _SET_THOUGHTS[kind.removesuffix(" ALL")]
    return _WRITERS[kind](parse_clause(kind, clause, dialect), dialect)


def _with(node: exp.Expr, dialect: str) -> str:
    return f"first work out {_words(node.args['with_'].expressions[0].alias)}"


def _from(node: exp.Expr, dialect: str) -> str:
    sources = [node.args["from_"].this, *(join.this for join in node.args.get("joins") or [])]
    names = [_words(source.name) if isinstance(source, exp.Table) else "a subquery" for source in sources]
    if len(names) == 1:
        return f"use the {names[0]}" if names[0] != "a subquery" else "use the rows of a subquery"
    return _listed("use", names, "with", "table")


def _where(node: exp.Expr, dialect: str) -> str:
    return _filter("keep rows by", node.args["where"].this)


def _having(node: exp.Expr, dialect: str) -> str:
    return _filter("keep groups by", node.args["having"].this)


def _qualify(node: exp.Expr, dialect: str) -> str:
    return "keep rows by their window value"


def _window(node: exp.Expr, dialect: str) -> str:
    return "name the windows to use"


def _group(node: exp.Expr, dialect: str) -> str:
    keys = [_noun(key, dialect) for key in node.args["group"].expressions]
    return _listed("one row per", keys or ["group"], "and", "key")


def _select(node: exp.Expr, dialect: str) -> str:
    nouns = [_noun(column, dialect) for column in node.expressions]
    if node.args.get("distinct"):
        return _listed("show each different", nouns, "and", "column")
    single = f"show the {nouns[0]}"
    return single if len(nouns) == 1 and len(single.split()) <= MAX_WORDS else _listed("show", nouns, "and", "column")


def _order(node: exp.Expr, dialect: str) -> str:
    keys = node.args["order"].expressions
    first = "highest" if keys[0].args.get("desc") else "lowest"
    noun = _noun(keys[0].this, dialect).removeprefix("highest ").removeprefix("lowest ")
    thought = f"{first} {noun} first"
    return f"{thought}, then others" if len(keys) > 1 and len(thought.split()) <= MAX_WORDS - 2 else thought


def _limit(node: exp.Expr, dialect: str) -> str:
    limit, offset = node.args.get("limit"), node.args.get("offset")
    if limit is None:
        return "skip the first rows"
    # FETCH FIRST keeps its number under another name than LIMIT.
    count = _words(generate(limit.args.get("expression") or limit.args.get("count") or exp.Star(), dialect)) or "few"
    if offset is not None:
        return f"skip some, then only {count}"
    return "only the first" if count == "1" else f"only the first {count}"


_WRITERS: dict[str, Callable[[exp.Expr, str], str]] = {
    "WITH": _with,
    "FROM": _from,
    "WHERE": _where,
    "GROUP BY": _group,
    "HAVING": _having,
    "WINDOW": _window,
    "QUALIFY": _qualify,
    "SELECT": _select,
    "ORDER BY": _order,
    "LIMIT": _limit,
}


def _filter(opening: str, condition: exp.Expr) -> str:
    """Names the columns a condition asks about; what a subquery asks is that subquery's business."""
    nouns: dict[str, None] = {}
    texts: dict[str, None] = {}
    nested = False
    stack = [condition]
    while stack:
        node = stack.pop()
        if isinstance(node, exp.Query):
            nested = True
            continue
        if isinstance(node, exp.Count):
            nouns["count"] = None
        elif type(node) in _AGGREGATES and isinstance(node.this, exp.Column):
            nouns[f"{_AGGREGATES[type(node)]} {_words(node.this.name)}"] = None
        elif isinstance(node, exp.Column):
            # SQLite reads "Smith" as text where no such column exists, and most often that is what was meant.
            (texts if node.this.args.get("quoted") and not node.table else nouns)[_words(node.name)] = None
        else:
            stack.extend(reversed(list(node.iter_expressions())))
    names = list(nouns or texts)
    if nested:
        names.append("a subquery")
    return _listed(opening, names or ["a condition"], "and", "column")


def _noun(node: exp.Expr, dialect: str) -> str:
    """A few words for what an expression is about."""
    if isinstance(node, exp.Alias | exp.Paren):
        return _noun(node.this, dialect)
    if isinstance(node, exp.Star) or (isinstance(node, exp.Column) and isinstance(node.this, exp.Star)):
        return "whole row"
    if isinstance(node, exp.Count):
        counted = node.this
        if isinstance(counted, exp.Distinct) and counted.expressions:
            return f"count of different {_noun(counted.expressions[0], dialect)}"
        return "count" if not isinstance(counted, exp.Column) else f"count of {_noun(counted, dialect)}"
    if type(node) in _AGGREGATES:
        return f"{_AGGREGATES[type(node)]} {_noun(node.this, dialect)}"
    if isinstance(node, exp.Column):
        return _words(node.name) or "column"
    column = node.find(exp.Column)
    return f"{_words(column.name)} value" if column is not None else "value"


def _listed(opening: str, names: list[str], word: str, unit: str) -> str:
    """`opening` and as many names as fit, the rest as a number ("show name and 3 more")."""
    names = list(dict.fromkeys(names))
    for shown in range(len(names), 0, -1):
        rest = len(names) - shown
        thought = f"{opening} {_joined(names[:shown] + ([f'{rest} more'] if rest else []), word)}"
        if len(thought.split()) <= MAX_WORDS:
            break
    else:
        thought = f"{opening} {names[0]}"
    return thought if len(thought.split()) > 2 else f"{opening} {unit} {names[0]}"


def _joined(names: list[str], word: str) -> str:
    """Names as a list in words; `word` stands before the last, `with` after the first."""
    if len(names) == 1:
        return names[0]
    if word == "with":
        return f"{names[0]} with {_joined(names[1:], 'and')}"
    return ", ".join(names[:-1]) + f" {word} {names[-1]}"


def _words(name: str) -> str:
    """An identifier as plain words: `Song_Name` and `SongName` are "song name"."""
    parted = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return " ".join(re.findall(r"\w+", parted.replace("_", " ").lower()))
