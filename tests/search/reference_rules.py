"""rStar-Math's published rules once more, written down plainly and without any of the package's code.

`python -m tests.search.reference_rules` writes the golden files from their scripts; `test_reference` replays them. A
script names, by the steps so far, the children that the policy gives: `[text, outcome, score]`, where the outcome is
`step`, `right`, `wrong` or `failed`.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "golden"
SELECT = "select the child of highest Q + 2 sqrt(ln N_parent / N), zero when a count is zero, first wins, no terminal"
CLOSE = "select: only terminal children, so the node becomes terminal and the rollout ends"
TRAIN = "back-up: a finished trajectory goes to the root with +1 or -1, whatever the PPM says"
INFER = "back-up: a finished trajectory goes to the root with tanh(score / 5)"
FAILED = "back-up: a failed step is -1 on itself alone"
GUESS = "back-up: a step with a PPM score gets one pseudo-visit of tanh(score / 5) on itself alone"
SFT = "SFT: the best two right trajectories by (mean Q, least Q)"
PAIRS = (
    "PPM: siblings above a right leaf (highest Q) against above a wrong leaf (lowest Q), 2 x 2, 1 x 4 or 4 x 1, > 0.5"
)
WHOLE = "PPM: whole trajectories, right against wrong, in the same numbers"


@dataclass
class Node:
    text: str
    outcome: str
    score: float
    parent: Node | None
    children: list[Node] = field(default_factory=list)
    expanded: bool = False
    terminal: bool = False
    n: int = 0
    q: float = 0.0

    def path(self) -> list[Node]:
        return [*self.parent.path(), self] if self.parent else []

    def name(self) -> str:
        return " / ".join(node.text for node in self.path())


def search(golden: dict[str, Any]) -> tuple[Node, list[dict[str, Any]]]:
    """The tree and the moves of `golden["simulations"]` rollouts."""
    root, moves = Node("", "step", 0.0, None), list[dict[str, Any]]()
    for _ in range(golden["simulations"]):
        node: Node | None = root
        while node is not None and not root.terminal:
            if not node.expanded:
                _expand(node, golden, moves)
            node = _select(node, moves)
    return root, moves


def _expand(node: Node, golden: dict[str, Any], moves: list[dict[str, Any]]) -> None:
    node.expanded = True
    for text, outcome, score in golden["script"][node.name()]:
        node.children.append(Node(text, outcome, score, node))
    for child in node.children:
        child.terminal = child.outcome != "step"
        guess = math.tanh(child.score / 5)
        if child.outcome == "failed":
            child.n, child.q = 1, -1.0
            moves.append({"rule": FAILED, "node": child.name(), "n": child.n, "q": child.q})
        elif child.terminal:
            reward = 1.0 if child.outcome == "right" else -1.0
            _backup(child, reward if golden["mode"] == "train" else guess)
            above = [[node.name(), node.n, node.q] for node in [root_of(child), *child.path()]]
            moves.append({"rule": TRAIN if golden["mode"] == "train" else INFER, "node": child.name(), "above": above})
        elif golden["ppm"]:
            child.n, child.q = 1, guess
            moves.append({"rule": GUESS, "node": child.name(), "n": child.n, "q": child.q})


def _backup(node: Node, value: float) -> None:
    for above in [root_of(node), *node.path()]:
        above.q = (above.q * above.n + value) / (above.n + 1)
        above.n += 1


def _select(node: Node, moves: list[dict[str, Any]]) -> Node | None:
    best, highest, seen = None, -math.inf, []
    for child in node.children:
        if child.terminal:
            continue
        score = child.q + (2 * math.sqrt(math.log(node.n) / child.n) if node.n and child.n else 0.0)
        seen.append([child.name(), child.n, child.q, score])
        if score > highest:
            best, highest = child, score
    if best is None:
        node.terminal = True
        moves.append({"rule": CLOSE, "node": node.name()})
    else:
        moves.append({"rule": SELECT, "node": node.name(), "n": node.n, "open": seen, "chosen": best.name()})
    return best


def root_of(node: Node) -> Node:
    return root_of(node.parent) if node.parent else node


def everything(node: Node) -> list[Node]:
    return [node, *(below for child in node.children for below in everything(child))]


def sft(root: Node) -> list[str]:
    return [node.name() for node in _best(root, "right", reverse=True)[:2]]


def _best(root: Node, outcome: str, reverse: bool) -> list[Node]:
    def quality(leaf: Node) -> tuple[float, float]:
        values = [node.q for node in leaf.path()]
        return sum(values) / len(values), min(values)

    return sorted((node for node in everything(root) if node.outcome == outcome), key=quality, reverse=reverse)


def pairs(root: Node) -> list[list[Any]]:
    found = []
    for node in everything(root):
        good = [child for child in node.children if any(below.outcome == "right" for below in everything(child))]
        bad = [child for child in node.children if any(below.outcome == "wrong" for below in everything(child))]
        good.sort(key=lambda child: -child.q)
        bad.sort(key=lambda child: child.q)
        found += [pair for pair in _cross(good, bad) if pair[2] > 0.5]
    return sorted(found)


def whole(root: Node) -> list[list[Any]]:
    return sorted(_cross(_best(root, "right", True), _best(root, "wrong", False)))


def _cross(good: list[Node], bad: list[Node]) -> list[list[Any]]:
    good, bad = good[: 4 if len(bad) == 1 else 2], bad[: 4 if len(good) == 1 else 2]
    weight = 1 / max(1, len(good) * len(bad))
    return [[a.name(), b.name(), a.q - b.q, weight] for a, b in product(good, bad) if a is not b]


def expected(golden: dict[str, Any]) -> dict[str, Any]:
    """What the rules give for a golden file's script."""
    root, moves = search(golden)
    found: dict[str, Any] = {"moves": moves}
    if golden["mode"] == "train":
        found |= {"sft": {"rule": SFT, "picks": sft(root)}}
        found |= {"pairs": {"rule": PAIRS, "pairs": pairs(root)}, "whole": {"rule": WHOLE, "pairs": whole(root)}}
    return found


def written(golden: dict[str, Any]) -> str:
    """JSON with one move, or one entry of the script, to a line."""
    lines = []
    for key, value in golden.items():
        if key == "moves":
            body = "[\n " + ",\n ".join(json.dumps(move) for move in value) + "\n]"
        elif key == "script":
            body = "{\n " + ",\n ".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in value.items()) + "\n}"
        else:
            body = json.dumps(value)
        lines.append(f"{json.dumps(key)}: {body}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def rounded(value: Any) -> Any:
    """Floats to nine places, so that the order of a sum does not count."""
    if isinstance(value, float):
        return round(value, 9) + 0.0
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return {key: rounded(item) for key, item in value.items()} if isinstance(value, dict) else value


def main() -> None:
    for path in sorted(FOLDER.glob("*.json")):
        golden = json.loads(path.read_text(encoding="utf-8"))
        given = {key: golden[key] for key in ("about", "mode", "ppm", "simulations", "script")}
        path.write_text(written(rounded(given | expected(given))), encoding="utf-8")


if __name__ == "__main__":
    main()
