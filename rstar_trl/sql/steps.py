"""Clause steps: SQL in logical order, one thought and one clause at a time, so that every prefix can run.

    -- use concert with singer
    FROM concert AS c JOIN singer AS s ON c.singer_id = s.id

    -- keep rows by year
    WHERE c.year = 2014

    -- show the name
    SELECT s.name

Kinds, in order: WITH (one step per table), FROM (with its joins), WHERE, GROUP BY, HAVING, WINDOW and QUALIFY (where
the dialect has them), SELECT, ORDER BY, LIMIT (with its OFFSET). UNION, INTERSECT and EXCEPT (with ALL or without) are
a step of their own between two blocks; ORDER BY and LIMIT after the last block belong to the whole. Subqueries stay
inside their clause. Steps are separated by a blank line (`STEP_DELIMITER`).

This module is the public face; the parts are `clauses` (one clause's text), `compose` (steps to SQL), `decompose` (SQL
to steps) and `thoughts`.
"""

from rstar_trl.sql.clauses import BLOCK_KINDS, SET_KINDS, STEP_DELIMITER
from rstar_trl.sql.compose import (
    Step,
    canonical_step,
    check_order,
    is_complete,
    parse_step,
    partial_sql,
    sql_from_steps,
)
from rstar_trl.sql.decompose import canonical, steps_from_sql
from rstar_trl.sql.thoughts import plain_thought, with_thoughts

__all__ = [
    "BLOCK_KINDS",
    "SET_KINDS",
    "STEP_DELIMITER",
    "Step",
    "canonical",
    "canonical_step",
    "check_order",
    "is_complete",
    "parse_step",
    "partial_sql",
    "plain_thought",
    "sql_from_steps",
    "steps_from_sql",
    "with_thoughts",
]
