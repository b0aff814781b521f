"""One SQL clause as text: what kind it is, what it says once formatting is taken away, and how to run it alone.

Guarantees: `read_clause` accepts text only if it is exactly one clause, of one statement, by sqlglot's reading of the
dialect; the text it returns holds no comment and no statement separator outside literals, so clause texts may be
joined by blanks into a query. Everything is memoised per clause text (bounded), so a search that meets the same
clauses again pays for a dictionary look-up. Does not guarantee that a clause runs: names, types and the right place
of aggregates are the database's to judge.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import sqlglot
from sqlglot import exp
from sqlglot.dialects.dialect import Dialect
from sqlglot.errors import ErrorLevel, SqlglotError
from sqlglot.tokens import TokenType

from rstar_trl.errors import SqlError
from rstar_trl.sql.parsing import parse

STEP_DELIMITER = "\n\n"
"""Ends a step in a trajectory; no step contains it."""

BLOCK_KINDS = (
    "WITH", "FROM", "WHERE", "GROUP BY", "HAVING", "WINDOW", "QUALIFY", "SELECT", "ORDER BY", "LIMIT",
)  # fmt: skip
"""Kinds of steps within one query block, in logical order."""

SET_KINDS = ("UNION", "UNION ALL", "INTERSECT", "INTERSECT ALL", "EXCEPT", "EXCEPT ALL")
"""Kinds of steps that open the next query block."""

CACHE_SIZE = 1 << 16


@dataclass(frozen=True)
class Scaffold:
    """What turns a clause into a query sqlglot can read: text around it, and the `Select` arguments it may fill."""

    prefix: str
    args: tuple[str, ...]
    suffix: str = ""


_TABLE = "SELECT * FROM t "
SCAFFOLDS = {
    "WITH": Scaffold("", ("with_",), " SELECT 1"),
    "FROM": Scaffold("SELECT * ", ("from_", "joins", "laterals")),
    "WHERE": Scaffold(_TABLE, ("where",)),
    "GROUP BY": Scaffold(_TABLE, ("group",)),
    "HAVING": Scaffold(_TABLE, ("having",)),
    "WINDOW": Scaffold(_TABLE, ("windows",)),
    "QUALIFY": Scaffold(_TABLE, ("qualify",)),
    "SELECT": Scaffold("", ("expressions", "distinct", "kind", "hint")),
    "ORDER BY": Scaffold(_TABLE, ("order",)),
    "LIMIT": Scaffold(_TABLE, ("limit", "offset")),
}
_SET_SCAFFOLD = Scaffold("SELECT 1 ", (), " SELECT 1")

_OPENING = re.compile(
    r"(WITH|FROM|WHERE|GROUP\s+BY|HAVING|WINDOW|QUALIFY|SELECT|ORDER\s+BY|LIMIT|OFFSET|FETCH|UNION|INTERSECT|EXCEPT)\b",
    re.IGNORECASE,
)


_WANTS_MORE = (TokenType.ALIAS, TokenType.COMMA)
_GIVES_NONE = (TokenType.COMMA, TokenType.R_PAREN)
_CLASS_NAME = re.compile(r"<class '[\w.]*?(\w+)'>")

# Model-written text makes sqlglot warn about every odd literal it meets; what matters comes back as an error.
logging.getLogger("sqlglot").setLevel(logging.ERROR)


@dataclass(frozen=True)
class Clause:
    """A clause that was read.

    `text` is as written, without comments and with single blanks between tokens; `canonical` is equal for clauses
    that differ in formatting alone. `body` is a WITH clause's definition without the keyword, `recursive` whether the
    keyword said so. `probe` is the select list that runs this clause while its block has no SELECT yet (for WITH: the
    name of the table it defines).
    """

    kind: str
    text: str
    canonical: str
    body: str = ""
    recursive: bool = False
    probe: str = "*"


def read_clause(text: str, dialect: str = "sqlite") -> Clause:
    """Reads one clause; raises `SqlError` when `text` is anything else."""
    found = _read(text, dialect)
    if isinstance(found, str):
        raise SqlError(f"The step {shorten(text)!r} is not one clause of {dialect} SQL: {found}.")
    return found


def parse_query(sql: str, dialect: str) -> exp.Expr:
    """The syntax tree of exactly one statement; raises `SqlError` otherwise."""
    tree = _tree(sql, dialect)
    if isinstance(tree, str):
        raise SqlError(f"{shorten(sql)!r} is no {dialect} query: {tree}.")
    return tree


def parse_clause(kind: str, text: str, dialect: str) -> exp.Expr:
    """The syntax tree of a clause inside its scaffold (a `Select`, or a `SetOperation` of two)."""
    scaffold = SCAFFOLDS.get(kind, _SET_SCAFFOLD)
    return parse_query(f"{scaffold.prefix}{text}{scaffold.suffix}", dialect)


def clause_text(kind: str, node: exp.Expr, dialect: str) -> str:
    """The inverse of `parse_clause`, in sqlglot's formatting: `node` holds the clause within its scaffold.

    The tree may change.
    """
    scaffold = SCAFFOLDS.get(kind, _SET_SCAFFOLD)
    text = generate(node, dialect, copy=False)
    if not (text.startswith(scaffold.prefix) and text.endswith(scaffold.suffix)):
        raise SqlError(f"{dialect} has no {kind} clause of this form: {shorten(text)!r}; write the query another way.")
    return text[len(scaffold.prefix) : len(text) - len(scaffold.suffix)]


def scaffold_select(kind: str) -> exp.Select:
    """The scaffold of a block clause as a tree still without the clause."""
    if not SCAFFOLDS[kind].prefix:
        return exp.Select(expressions=[exp.Literal.number(1)])
    select = exp.Select(expressions=[exp.Star()])
    if SCAFFOLDS[kind].prefix == _TABLE:
        select.set("from_", exp.From(this=exp.to_table("t")))
    return select


def generate(node: exp.Expr, dialect: str, copy: bool = True) -> str:
    """SQL text of a tree on one line, without comments. Faster without `copy`, but the tree may change."""
    try:
        return node.sql(dialect, copy=copy, comments=False, unsupported_level=ErrorLevel.IGNORE)
    except (SqlglotError, RecursionError, ValueError) as error:
        raise SqlError(f"The query cannot be written as {dialect} SQL ({describe(error)}); simplify it.") from error


def normalize_identifiers(node: exp.Expr, dialect: str) -> exp.Expr:
    """Folds the case of identifiers in place where the dialect ignores it, and returns the tree.

    SQLite reads "name" as text where no such column exists, so there quoted identifiers stay as they are.
    """
    rules = Dialect.get_or_raise(dialect)
    for identifier in list(node.find_all(exp.Identifier)):
        if dialect != "sqlite" or not identifier.args.get("quoted"):
            rules.normalize_identifier(identifier)
    return node


def filled(node: exp.Expr) -> set[str]:
    """Names of the arguments a syntax node has."""
    return {name for name, value in node.args.items() if value}


def shorten(text: str, width: int = 100) -> str:
    """Text for an error message: one line, at most `width` characters."""
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 3] + "..."


def describe(error: Exception) -> str:
    """An error of sqlglot in a few words, without its coloured excerpt."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    details = getattr(error, "errors", None)
    text = _CLASS_NAME.sub(r"\1", str(details[0]["description"]) if details else str(error))
    return shorten(text.split(" but got <")[0]).rstrip(". ")


@lru_cache(CACHE_SIZE)
def _read(text: str, dialect: str) -> Clause | str:
    """The clause, or what is wrong with it (returned, not raised: failures are memoised too)."""
    try:
        clean = _without_comments(text, dialect)
        opening = _OPENING.match(clean)
        if opening is None:
            return "it opens with none of " + ", ".join((*BLOCK_KINDS, "UNION", "INTERSECT", "EXCEPT"))
        word = " ".join(opening[0].upper().split())
        if word in ("UNION", "INTERSECT", "EXCEPT"):
            return _read_set_operation(clean, dialect)
        return _read_block_clause("LIMIT" if word in ("OFFSET", "FETCH") else word, clean, dialect)
    except SqlError as error:
        return str(error).rstrip(".")


def _tree(sql: str, dialect: str) -> exp.Expr | str:
    """The one statement of `sql`, or why there is none."""
    try:
        statements = [statement for statement in parse(sql, dialect) if statement is not None]
    except SqlError as error:
        return str(error)
    except (SqlglotError, RecursionError, ValueError) as error:
        return f"it does not parse ({describe(error)})"
    return statements[0] if len(statements) == 1 else f"it holds {len(statements)} statements; write exactly one"


def _read_block_clause(kind: str, text: str, dialect: str) -> Clause | str:
    scaffold = SCAFFOLDS[kind]
    node = _tree(f"{scaffold.prefix}{text}{scaffold.suffix}", dialect)
    if isinstance(node, str):
        return node
    if not isinstance(node, exp.Select):
        return "it holds more than a clause; give each clause its own step"
    expected = {"expressions", *scaffold.args} | ({"from_"} if scaffold.prefix == _TABLE else set())
    if extra := filled(node) - expected:
        return f"it also holds {', '.join(sorted(name.strip('_').upper() for name in extra))}; one clause per step"
    if not node.expressions or text.upper() == kind:
        return f"nothing follows {kind}"
    body, recursive, probe = "", False, "*"
    if kind == "WITH":
        definitions = node.args["with_"]
        if len(definitions.expressions) != 1:
            return "it defines several tables; give each WITH table its own step"
        recursive = bool(definitions.args.get("recursive"))
        body = re.sub(r"^WITH\s+RECURSIVE\s+" if recursive else r"^WITH\s+", "", text, flags=re.IGNORECASE)
        probe = generate(definitions.expressions[0].args["alias"].this, dialect)
    elif kind == "GROUP BY":
        probe = _group_probe(node.args["group"], dialect)
    canonical = _canonical_clause(kind, node, dialect)
    return Clause(kind, text, canonical, body, recursive, probe)


def _group_probe(group: exp.Group, dialect: str) -> str:
    """Grouping keys and group size. Dialects other than SQLite refuse `*` here; ROLLUP and the like are no columns."""
    if filled(group) != {"expressions"} or group.find(exp.Rollup, exp.Cube, exp.GroupingSets):
        return "COUNT(*)"
    return ", ".join([*(generate(key, dialect) for key in group.expressions), "COUNT(*)"])


def _read_set_operation(text: str, dialect: str) -> Clause | str:
    node = _tree(f"{_SET_SCAFFOLD.prefix}{text}{_SET_SCAFFOLD.suffix}", dialect)
    bare = scaffold_select("SELECT")
    if not isinstance(node, exp.SetOperation) or node.this != bare or node.expression != bare:
        return "a set operation is a step of its own; the next step is the next query's FROM or SELECT"
    kind = set_kind(node)
    return Clause(kind, text, _canonical_clause(kind, node, dialect))


def set_kind(node: exp.SetOperation) -> str:
    """The step kind of a set operation."""
    return node.key.upper() + (" ALL" if node.args.get("distinct") is False else "")


def _canonical_clause(kind: str, node: exp.Expr, dialect: str) -> str:
    return clause_text(kind, normalize_identifiers(node, dialect), dialect)


def _without_comments(text: str, dialect: str) -> str:
    """The text with comments cut out and one blank wherever tokens were apart; literals stay as they are."""
    try:
        tokens = sqlglot.tokenize(text, dialect=dialect)
    except (SqlglotError, ValueError) as error:
        raise SqlError(f"it cannot be read ({describe(error)})") from error
    while tokens and tokens[-1].token_type == TokenType.SEMICOLON:
        tokens.pop()
    if any(token.token_type == TokenType.SEMICOLON for token in tokens):
        raise SqlError("it holds several statements; write one clause")
    # sqlglot overlooks these, the database does not; they must not count as the same clause as one that runs.
    for token, following in pairwise([*tokens, None]):
        if token and token.token_type in _WANTS_MORE and (not following or following.token_type in _GIVES_NONE):
            raise SqlError(f"nothing follows {token.text.upper()!r}; complete it or leave it out")
    parts: list[str] = []
    end = 0
    for token in tokens:
        if parts and token.start > end + 1:
            parts.append(" ")
        parts.append(text[token.start : token.end + 1])
        end = token.end
    clean = "".join(parts)
    if STEP_DELIMITER in clean:
        raise SqlError("a text literal in it holds a blank line, which would end the step; use char(10) instead")
    return clean
