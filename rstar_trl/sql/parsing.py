"""sqlglot's parser behind a guard: a policy's text must not keep the search waiting.

Guarantees: statements come back in time that grows gently with the text. sqlglot doubles its work with every JOIN that
has no condition and with every type-named call (DATE, TEXT, CHAR, ...) inside of another, so a text with many of
either, which a policy that repeats itself writes and no question needs, is refused unread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rstar_trl.errors import SqlError

if TYPE_CHECKING:
    from sqlglot import exp

MOST = 10
"""Joins without a condition and type-named calls inside of each other, together: a thousandfold work."""


def parse(sql: str, dialect: str) -> list[exp.Expr | None]:
    """sqlglot's `parse`. Raises `SqlError` for a text that is refused, else what sqlglot raises."""
    import sqlglot

    if (sql.upper().count("JOIN") > MOST or sql.count("(") > MOST) and _doublings(sql, dialect) > MOST:
        raise SqlError(f"it has more than {MOST} joins without a condition, or calls like DATE() inside of each other")
    return sqlglot.parse(sql, dialect=dialect)


def _doublings(sql: str, dialect: str) -> int:
    """How often sqlglot would double its work."""
    import sqlglot
    from sqlglot.tokens import TokenType

    types = sqlglot.Dialect.get_or_raise(dialect).parser_class.TYPE_TOKENS
    joins, deepest, calls, previous = 0, 0, list[bool](), None
    for token in sqlglot.tokenize(sql, dialect=dialect):
        kind = token.token_type
        if kind is TokenType.JOIN:
            joins += 1
        elif kind in (TokenType.ON, TokenType.USING):
            joins -= 1
        elif kind is TokenType.L_PAREN:
            calls.append(previous in types)
            deepest = max(deepest, sum(calls))
        elif kind is TokenType.R_PAREN and calls:
            calls.pop()
        previous = kind
    return max(0, joins) + deepest
