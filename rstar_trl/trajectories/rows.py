"""Renderings: a trajectory or a preference pair as one row of a standard TRL data set.

A *completion* is steps joined by a blank line, without the end-of-sequence token: whoever tokenises appends it. A
row's text alone does not say how it was cut into tokens; step preference rows therefore also say where their question
prompt ends (`prompt_chars`) and which sides end the trajectory (`chosen_final`, `rejected_final`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from rstar_trl.policy.tokens import DELIMITER
from rstar_trl.search.tree import Tree
from rstar_trl.trajectories.pairs import Outcomes, Pair
from rstar_trl.trajectories.select import finished

INSTRUCTION = "Write one SQL query that answers the question about this database."

Row = dict[str, Any]


def prompt_completion(tree: Tree, leaf: int) -> Row:
    """`question_id, prompt, completion`: what the policy is fine-tuned on."""
    return {"question_id": tree.question_id, "prompt": tree.prompt, "completion": DELIMITER.join(tree.steps(leaf))}


def instruction(tree: Tree, leaf: int) -> Row:
    """`instruction, input, output`: the plain SQL as the answer."""
    return {
        "question_id": tree.question_id,
        "instruction": INSTRUCTION,
        "input": tree.prompt,
        "output": tree.sql[leaf],
    }


def step_by_step(tree: Tree, leaf: int) -> Row:
    """`prompt, completion`: numbered thoughts, each with its clause, and the whole query at the end."""
    lines = []
    for number, step in enumerate(tree.steps(leaf), 1):
        thought, clause = split_step(step)
        lines.append(f"{number}. {thought}\n   {clause}" if thought else f"{number}. {clause}")
    text = "\n".join([*lines, "", "Final SQL:", tree.sql[leaf]])
    return {"question_id": tree.question_id, "prompt": tree.prompt, "completion": text}


def qa(tree: Tree, leaf: int) -> Row:
    """`question, answer`: the thoughts as prose, then the query in a fenced block."""
    thoughts = [thought for thought, _ in map(split_step, tree.steps(leaf)) if thought]
    prose = f"Steps: {'; '.join(thoughts)}.\n\n" if thoughts else ""
    answer = f"{prose}```sql\n{tree.sql[leaf]}\n```"
    return {"question_id": tree.question_id, "question": tree.prompt, "answer": answer}


def preference(tree: Tree, pair: Pair) -> Row:
    """`prompt, chosen, rejected, weight, margin` and how the texts are cut into tokens (see the module)."""
    before = () if pair.whole else tree.steps(tree.parent[pair.chosen])
    return {
        "question_id": tree.question_id,
        "prompt": tree.prompt + "".join(step + DELIMITER for step in before),
        "chosen": _side(tree, pair.chosen, pair.whole),
        "rejected": _side(tree, pair.rejected, pair.whole),
        "weight": pair.weight,
        "margin": pair.margin,
        "chosen_final": finished(tree, pair.chosen),
        "rejected_final": finished(tree, pair.rejected),
        "prompt_chars": len(tree.prompt),
    }


def stepwise(tree: Tree, leaf: int, known: Outcomes) -> Row:
    """`prompt, completions, labels`: TRL's stepwise supervision; a step is good when a right end lies below it."""
    return {
        "question_id": tree.question_id,
        "prompt": tree.prompt,
        "completions": list(tree.steps(leaf)),
        "labels": [known.right[node] for node in tree.path(leaf)],
    }


def tree_row(tree: Tree) -> Row:
    """`question_id, tree`: the whole record as JSON text, so that every tree has the same columns."""
    return {"question_id": tree.question_id, "tree": json.dumps(tree.record(), separators=(",", ":"))}


def split_step(step: str) -> tuple[str, str]:
    """A step's thought (without its comment mark; empty if it has none) and its clause on one line."""
    lines = step.strip().splitlines()
    thoughts = [line[2:].strip() for line in lines if line.startswith("--")]
    return " ".join(thoughts), _one_line([line for line in lines if not line.startswith("--")])


def _side(tree: Tree, node: int, whole: bool) -> str:
    return DELIMITER.join(tree.steps(node)) if whole else tree.text[node]


def _one_line(lines: Sequence[str]) -> str:
    return " ".join(line.strip() for line in lines)
