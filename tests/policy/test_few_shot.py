"""A stronger model's prompt, and what is learned from its answers."""

from __future__ import annotations

from pathlib import Path

from rstar_trl.config import PromptConfig
from rstar_trl.data.question import Question
from rstar_trl.policy.bootstrap import gold_completion
from rstar_trl.policy.few_shot import Example, FewShotPrompter, pick_examples
from rstar_trl.policy.prompting import Prompter
from rstar_trl.sql.sandbox import Sandbox
from rstar_trl.trajectories.dataset import reprompted
from tests.scripted import ScriptedEngine, end, grow, make_task, step

LABELLED = [
    Question("plain", "music", "all names?", gold_sql="SELECT name FROM singer"),
    Question("other", "music", "all ages?", gold_sql="SELECT age FROM singer"),
    Question("rich", "music", "oldest?", gold_sql="SELECT name FROM singer WHERE age > 1 ORDER BY age DESC LIMIT 1"),
    Question("broken", "music", "?", gold_sql="SELECT FROM"),
    Question("unlabelled", "music", "?"),
]


def test_examples_are_turns_between_the_instructions_and_the_question(small_database: Path) -> None:
    examples = pick_examples(LABELLED, 2, seed=0)
    plain = Prompter({"music": small_database}, PromptConfig())
    few_shot = FewShotPrompter({"music": small_database}, PromptConfig(), examples=examples)
    asked = Question("q", "music", "How old is Bob?")
    messages = few_shot.messages(asked)
    assert [message["role"] for message in messages] == ["system", *["user", "assistant"] * 2, "user"]
    assert [messages[0], messages[-1]] == plain.messages(asked)
    for place, example in enumerate(examples):
        shown, answer = messages[1 + 2 * place : 3 + 2 * place]
        assert shown == plain.messages(example.question)[-1]
        assert answer["content"] == gold_completion(example.question)
    none = FewShotPrompter({"music": small_database}, PromptConfig())
    assert none.messages(asked) == plain.messages(asked)


def test_examples_show_as_many_kinds_of_step_as_they_can() -> None:
    chosen = pick_examples(LABELLED, 2, seed=3)
    assert chosen[0].question.id == "rich"
    assert {example.question.id for example in pick_examples(LABELLED, 9, seed=0)} == {"plain", "other", "rich"}
    assert pick_examples(LABELLED, 2, seed=3) == chosen
    assert pick_examples(LABELLED[3:], 2, seed=0) == pick_examples(LABELLED, 0, seed=0) == []


def test_right_answers_follow_the_prompt_of_the_policy_that_learns_them(
    small_database: Path, shared_sandbox: Sandbox
) -> None:
    script = {
        (): [step("-- the singers\nFROM singer")],
        ("-- the singers\nFROM singer",): [end("-- their names\nSELECT name"), end("SELECT age")],
    }
    example = Example(LABELLED[0], str(gold_completion(LABELLED[0])))
    prompter = FewShotPrompter({"music": small_database}, PromptConfig(), examples=[example])
    task = make_task(small_database)
    tree = grow(ScriptedEngine(script), task, shared_sandbox, num_candidates=2)
    tree.prompt = prompter.prompt(Question("q", "music", "names?"))
    rows = reprompted([tree], 2, {"q": "the short prompt\n"})
    completion = "-- the singers\nFROM singer\n\n-- their names\nSELECT name"
    (row,) = rows
    assert (row["question_id"], row["prompt"], row["completion"]) == ("q", "the short prompt\n", completion)
