"""Queries and steps carried from one SQL dialect to another, where a data set's dialect and the engine differ.

Guarantees: equal dialects leave the text as it is. Does not guarantee equal rows: dialects differ in how they divide
integers, compare text and sort NULLs, and sqlglot carries over only what it knows. A translated gold query is
therefore run like any other before it becomes a label.
"""

from __future__ import annotations

from functools import lru_cache

from rstar_trl.errors import SqlError
from rstar_trl.sql.policy import parse_statements
from rstar_trl.sql.steps import Step, sql_from_steps, steps_from_sql


@lru_cache(maxsize=8192)
def translate(sql: str, source: str, target: str) -> str:
    """The query in the dialect `target`. Raises `SqlError` for text that does not parse, or is not one statement."""
    if source == target:
        return sql
    from sqlglot.errors import SqlglotError

    statements = parse_statements(sql, source)
    if len(statements) != 1:
        raise SqlError(f"There are {len(statements)} statements where one query should be.")
    try:
        return statements[0].sql(dialect=target)
    except SqlglotError as error:
        raise SqlError(f"The query cannot be said in {target}: {error}") from error


def translate_steps(steps: tuple[Step, ...], source: str, target: str) -> tuple[Step, ...]:
    """Finished steps in the dialect `target`; a step keeps its thought where its kind is still there."""
    if source == target:
        return steps
    thoughts = [(step.kind, step.thought) for step in steps]
    translated = []
    for step in steps_from_sql(translate(sql_from_steps(steps, source), source, target), target):
        found = next((index for index, (kind, _) in enumerate(thoughts) if kind == step.kind), None)
        translated.append(Step(step.kind, step.clause, thoughts.pop(found)[1] if found is not None else step.thought))
    return tuple(translated)
