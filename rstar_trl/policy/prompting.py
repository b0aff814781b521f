"""What the policy is shown: instructions, the schema as it stands in the live database, value hints, the question.

Guarantees: the same question, database content and config give the same prompt; gold answers are never shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

from rstar_trl.config import PromptConfig
from rstar_trl.data.databases import Database
from rstar_trl.data.question import Question
from rstar_trl.data.schema import Schema, introspect, render_schema, value_hints
from rstar_trl.errors import DataError
from rstar_trl.policy.tokens import Render, plain

INSTRUCTIONS = """\
Answer the question about the database with one SQL query, written as steps in the order the database works: \
WITH, FROM (with its joins), WHERE, GROUP BY, HAVING, SELECT, ORDER BY, LIMIT. \
A step is one comment line that says what it does (-- ...) and then the clause. \
Leave one blank line between steps and write nothing after the last one."""


class Prompter:
    """Renders questions about a set of databases; schemas are read once each."""

    def __init__(self, databases: Mapping[str, Database], config: PromptConfig, render: Render = plain):
        self.databases, self.config, self.render = databases, config, render

    @cached_property
    def _schemas(self) -> dict[str, tuple[Schema, str]]:
        return {}

    def messages(self, question: Question) -> list[dict[str, str]]:
        """The question as a chat; render it with the tokenizer's template, or read it as plain text."""
        user = {"role": "user", "content": self._content(question)}
        return [{"role": "system", "content": INSTRUCTIONS}, user] if self.config.instructions else [user]

    def prompt(self, question: Question) -> str:
        """The prompt as the model reads it."""
        return self.render(self.messages(question))

    def _content(self, question: Question) -> str:
        schema, text = self._schema(question)
        parts = [text if self.config.show_schema else question.db_id]
        if self.config.value_hints:
            hints = value_hints(schema, question.question, self.config.value_hints)
            parts += [f"{table}.{column} = {_quoted(value)}" for table, column, value in hints]
        if question.evidence:
            parts.append(f"hint: {question.evidence}")
        return "\n".join([*parts, question.question])

    def _schema(self, question: Question) -> tuple[Schema, str]:
        if question.db_id not in self._schemas:
            if question.db_id not in self.databases:
                raise DataError(
                    f"question {question.id} is about the database {question.db_id}, which is not there; "
                    f"known: {', '.join(sorted(self.databases)[:20])}."
                )
            schema = introspect(self.databases[question.db_id], self.config.sample_values)
            self._schemas[question.db_id] = (schema, render_schema(schema, self.config))
        return self._schemas[question.db_id]


def _quoted(value: object) -> str:
    return "'" + str(value).replace("'", "''").replace("\n", " ") + "'"
