"""Queries and steps carried from one SQL dialect to another, where a data set's dialect and the engine differ.

Guarantees: equal dialects leave the text as it is. Does not guarantee equal rows: dialects differ in how they divide
integers, compare text and sort NULLs, and sqlglot carries over only what it knows. A translated gold query is
therefore run like any other before it becomes a label.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache

from rstar_trl.data.databases import Database
from rstar_trl.data.question import Corpus, Question
from rstar_trl.data.readers import open_reader
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


def spelled(sql: str, dialect: str, names: Mapping[str, str]) -> str:
    """The query with the names of tables and columns as `names` has them, by their lower-case form.

    Needed where an engine tells `Name` from `"Name"` and the dialect of the query does not (PostgreSQL, SQLite).
    """
    from sqlglot import exp

    (statement,) = (each.copy() for each in parse_statements(sql, dialect))
    for node in statement.find_all(exp.Identifier):
        name = names.get(node.name.lower())
        if name is not None:
            node.set("this", name)
            node.set("quoted", node.args.get("quoted") or name != name.lower())
    return statement.sql(dialect=dialect)


def _spellings(database: Database) -> dict[str, str]:
    """Names of tables and columns by their lower-case form, where only one has it."""
    with open_reader(database) as reader:
        found = {name for table, columns in reader.tables() for name in (table, *(column for column, _, _ in columns))}
    shared = {name for name, count in Counter(map(str.lower, found)).items() if count > 1}
    return {name.lower(): name for name in found if name.lower() not in shared}


def in_engine_dialect(corpus: Corpus) -> tuple[Corpus, dict[str, str]]:
    """The corpus with its gold queries in the dialect of its databases' engine, and by question id why one is not.

    Raises `DataError` when a PostgreSQL database cannot be asked for its names.
    """
    engine = corpus.engine
    reasons: dict[str, str] = {}
    if corpus.dialect == engine:
        return corpus, reasons
    databases = corpus.databases if engine == "postgres" else {}
    names = {db_id: _spellings(database) for db_id, database in databases.items()}

    def carried(question: Question) -> Question:
        if question.gold_sql is None:
            return question
        try:
            sql = translate(question.gold_sql, corpus.dialect, engine)
            return replace(question, gold_sql=spelled(sql, engine, names.get(question.db_id, {})))
        except SqlError as error:
            reasons[question.id] = f"gold SQL cannot be said in {engine}: {error}"
            return question

    train, evaluation = (tuple(map(carried, questions)) for questions in (corpus.train, corpus.eval))
    return replace(corpus, train=train, eval=evaluation, dialect=engine), reasons


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
