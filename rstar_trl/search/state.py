"""A tree under search and what is derived from it.

Compact on purpose, since a thousand trees of a thousand nodes may be in flight: per node a handful of small values;
what only nodes with children need lies in dictionaries.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from rstar_trl.config import SearchConfig
from rstar_trl.io import digest
from rstar_trl.policy.interface import FinishReason
from rstar_trl.search.effects import Task
from rstar_trl.search.tree import Tree
from rstar_trl.sql.steps import Step

Key = tuple[str, str, FinishReason]

# How many others are in flight is no part of what a tree is.
_OUTSIDE = ("trees_in_flight",)


@dataclass
class State:
    """The tree, its parsed steps, and which nodes are still open.

    `step`: None for the root and for text that is none. `asked`: candidates asked for below a node. `busy`: nodes
    being expanded. `stale`: nodes whose last expansion brought nothing new. `virtual`: simulations now below a node.
    `told`: the policy told the probability of every step. `solved`, `votes` (weight by result), `seen` (probability
    of all trajectories that ended) and `heaviest` (the most that one of them weighs for its probability) are kept up
    to date as trajectories end.
    """

    tree: Tree
    task: Task
    config: SearchConfig
    children: dict[int, list[int]] = field(default_factory=dict)
    keys: dict[int, dict[Key, int]] = field(default_factory=dict)
    step: list[Step | None] = field(default_factory=lambda: [None])
    asked: list[int] = field(default_factory=lambda: [0])
    closed: list[bool] = field(default_factory=lambda: [False])
    busy: set[int] = field(default_factory=set)
    stale: set[int] = field(default_factory=set)
    virtual: dict[int, int] = field(default_factory=dict)
    requests: int = 0
    told: bool = True
    solved: int = 0
    votes: dict[str, float] = field(default_factory=dict)
    seen: float = 0.0
    heaviest: float = 0.0
    started: float = field(default_factory=time.monotonic)

    def add(self, parent: int, text: str, step: Step | None, **columns: Any) -> int:
        """Appends a node; a terminal one is closed."""
        node = self.tree.add(parent, text, **columns)
        self.children.setdefault(parent, []).append(node)
        self.step.append(step)
        self.asked.append(0)
        self.closed.append(self.tree.terminal[node])
        return node

    def steps(self, node: int) -> list[Step]:
        """The parsed steps down to `node`."""
        return [step for step in map(self.step.__getitem__, self.tree.path(node)) if step is not None]

    def close(self, node: int) -> None:
        """Closes the node and every ancestor whose children are all there and closed.

        By the reference rule an ancestor is closed only when a simulation finds it so (and is spent on that).
        """
        while node >= 0 and self.exhausted(node):
            self.closed[node] = True
            node = -1 if self.config.reference else self.tree.parent[node]

    def exhausted(self, node: int) -> bool:
        """Nothing is left to try below the node; under widening only once asking again has brought nothing new."""
        if self.asked[node] < self.config.num_candidates or self.open_children(node):
            return False
        return self.config.widening is None or node in self.stale

    def open_children(self, node: int) -> list[int]:
        """The children below which there is something left to find, in the order they were added."""
        closed = self.closed
        return [child for child in self.children.get(node, ()) if not closed[child]]

    def note(self, node: int, reason: str) -> None:
        """Records on the tree what went wrong with a request for steps after `node`."""
        self.tree.meta.setdefault("failures", []).append([node, reason])


def start(task: Task, config: SearchConfig) -> State:
    """A tree with nothing but its root."""
    return State(Tree(task.question_id, task.db_id, task.prompt, _digest(config), task.seed), task, config)


def _digest(config: SearchConfig) -> str:
    return digest({name: value for name, value in vars(config).items() if name not in _OUTSIDE})
