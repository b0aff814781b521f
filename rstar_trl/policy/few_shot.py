"""The cold start by a stronger model: it is shown worked examples in the step format, then asked the question.

The examples are labelled training questions, their gold SQL taken apart into steps. They are the same for every
question and come first, so an engine that shares prefixes reads them once. Does not judge: what the model answers is
searched and run like any policy's, and only what gives the right result is learned from.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rstar_trl.config import PromptConfig
from rstar_trl.data.databases import Database
from rstar_trl.data.question import Question
from rstar_trl.policy.bootstrap import gold_completion
from rstar_trl.policy.prompting import Prompter
from rstar_trl.policy.tokens import DELIMITER, Render, plain
from rstar_trl.sql.steps import parse_step


@dataclass(frozen=True)
class Example:
    """A question and the trajectory that answers it."""

    question: Question
    completion: str


class FewShotPrompter(Prompter):
    """Renders a question after worked examples, as earlier turns of the same chat."""

    def __init__(
        self,
        databases: Mapping[str, Database],
        config: PromptConfig,
        render: Render = plain,
        examples: Sequence[Example] = (),
    ):
        super().__init__(databases, config, render)
        self.examples = examples

    def messages(self, question: Question) -> list[dict[str, str]]:
        """The instructions, each example as a question and its answer, and the question."""
        *instructions, asked = super().messages(question)
        turns = [
            message
            for example in self.examples
            for message in (
                super(FewShotPrompter, self).messages(example.question)[-1],
                {"role": "assistant", "content": example.completion},
            )
        ]
        return [*instructions, *turns, asked]


def pick_examples(questions: Sequence[Question], count: int, seed: int, dialect: str = "sqlite") -> list[Example]:
    """At most `count` of the labelled questions: each time the one that shows most kinds of step not shown before.

    Ties are drawn by `seed`. Fewer, or none, where fewer questions have SQL that can be taken apart.
    """
    found = [
        Example(question, completion)
        for question in questions
        if (completion := gold_completion(question, dialect)) is not None
    ]
    random.Random(seed).shuffle(found)
    kinds = {each.question.id: _kinds(each.completion, dialect) for each in found}
    chosen: list[Example] = []
    shown: set[str] = set()
    while found and len(chosen) < count:
        best = max(found, key=lambda each: len(kinds[each.question.id] - shown))
        found.remove(best)
        chosen.append(best)
        shown |= kinds[best.question.id]
    return chosen


def _kinds(completion: str, dialect: str) -> set[str]:
    return {parse_step(text, dialect).kind for text in completion.split(DELIMITER)}
