"""`reference: true` against golden files: every selection, back-up, SFT pick and PPM pair of rStar-Math's rules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rstar_trl.search import mcts, values
from rstar_trl.search.state import State
from rstar_trl.search.tree import Tree
from rstar_trl.sql.sandbox import Sandbox
from rstar_trl.trajectories.pairs import Pair, step_pairs, trajectory_pairs
from rstar_trl.trajectories.select import right_trajectories
from tests.scripted import Script, ScriptedScorer, end, grow, make_task, step
from tests.search import reference_rules as rules
from tests.search.reference_rules import rounded

FILES = sorted(rules.FOLDER.glob("*.json"))


class Moves:
    """What the search does, in the words of the golden files."""

    def __init__(self, mode: str):
        self.mode, self.made = mode, list[dict[str, Any]]()
        self.select, self.evaluate, self.backup = mcts.select, values.evaluate, values.backup

    def name(self, tree: Tree, node: int) -> str:
        return " / ".join(tree.steps(node))

    def on_select(self, state: State, node: int) -> int | None:
        tree, chosen = state.tree, self.select(state, node)
        if chosen is None:
            self.made.append({"rule": rules.CLOSE, "node": self.name(tree, node)})
            return None
        seen = [
            [self.name(tree, child), tree.visits[child], tree.q[child], mcts.score(state, node, child)]
            for child in state.open_children(node)
        ]
        move = {"rule": rules.SELECT, "node": self.name(tree, node), "n": tree.visits[node], "open": seen}
        self.made.append(move | {"chosen": self.name(tree, chosen)})
        return chosen

    def on_evaluate(self, state: State, added: list[int]) -> None:
        """Node by node, as the golden files tell it; valuing a node does not look at the others."""
        tree = state.tree
        for node in added:
            self.evaluate(state, [node])
            move: dict[str, Any] = {"node": self.name(tree, node)}
            if tree.terminal[node] and not tree.error[node]:
                above = [[self.name(tree, n), tree.visits[n], tree.q[n]] for n in (0, *tree.path(node))]
                self.made.append(
                    {"rule": rules.TRAIN if self.mode == "train" else rules.INFER, **move, "above": above}
                )
            elif tree.error[node] or tree.value[node] is not None:
                rule = rules.FAILED if tree.error[node] else rules.GUESS
                self.made.append({"rule": rule, **move, "n": tree.visits[node], "q": tree.q[node]})


def script_of(golden: dict[str, Any]) -> Script:
    return {
        tuple(path.split(" / ")) if path else (): [
            end(text) if text.startswith("SELECT") else step(text) for text, _, _ in children
        ]
        for path, children in golden["script"].items()
    }


class ByPath(ScriptedScorer):
    """The PPM scores of a golden file, by the whole path."""

    def __init__(self, golden: dict[str, Any]):
        script = golden["script"].items()
        super().__init__({f"{path} / {text}".removeprefix(" / "): s for path, found in script for text, _, s in found})

    def score(self, requests: list[Any]) -> list[Any]:
        return [self.scores[" / ".join(request.steps)] for request in requests]


def named(tree: Tree, found: list[Pair]) -> list[list[Any]]:
    return sorted(
        [*(" / ".join(tree.steps(node)) for node in (pair.chosen, pair.rejected)), pair.margin, pair.weight]
        for pair in found
    )


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_search_follows_the_published_rules_move_for_move(
    path: Path, small_database: Path, shared_sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    golden = json.loads(path.read_text(encoding="utf-8"))
    moves = Moves(golden["mode"])
    monkeypatch.setattr(mcts, "select", moves.on_select)
    monkeypatch.setattr(mcts, "evaluate", moves.on_evaluate)
    task = make_task(small_database, golden["mode"], use_ppm=golden["ppm"])
    scorer = ByPath(golden) if golden["ppm"] else None
    width = max(map(len, golden["script"].values()))
    tree = grow(
        script_of(golden),
        task,
        shared_sandbox,
        scorer,
        num_candidates=width,
        simulations=golden["simulations"],
        reference=True,
    )
    for number, (made, expected) in enumerate(zip(moves.made, golden["moves"], strict=False)):
        assert rounded(made) == rounded(expected), f"move {number}"
    assert len(moves.made) == len(golden["moves"])
    if golden["mode"] == "train":
        picks = [" / ".join(tree.steps(leaf)) for leaf in right_trajectories(tree, 2)]
        assert picks == golden["sft"]["picks"]
        assert rounded(named(tree, step_pairs(tree, 0.5))) == rounded(golden["pairs"]["pairs"])
        assert rounded(named(tree, trajectory_pairs(tree))) == rounded(golden["whole"]["pairs"])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_golden_files_are_what_the_rules_give(path: Path) -> None:
    golden = json.loads(path.read_text(encoding="utf-8"))
    assert rounded(rules.expected(golden)) == rounded({key: golden[key] for key in rules.expected(golden)})


def test_golden_files_show_every_rule() -> None:
    shown = {move["rule"] for path in FILES for move in json.loads(path.read_text(encoding="utf-8"))["moves"]}
    assert shown == {rules.SELECT, rules.CLOSE, rules.TRAIN, rules.INFER, rules.FAILED, rules.GUESS}
