"""The search tree as plain data: parallel arrays over nodes, one JSONL line when finished.

Guarantees: node 0 is the root; a parent's index is smaller than its children's; `Tree.from_record(tree.record())`
is equal to `tree`. The algorithm (`rstar_trl.search.algorithm`) is functions over this; nothing here decides.
"""

from __future__ import annotations

from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any


@dataclass
class Tree:
    """One question's search.

    Per node: `text` (the step as written: thought line and clause), `sql` (the query its prefix stands for, as run),
    `kind` (FROM, WHERE, ...), `verdict` (of running it), `terminal` (the policy ended here or it is a dead end),
    `reward` (+1 / -1 for a judged terminal, None otherwise), `prior` (the policy's probability among its siblings),
    `logprob` (summed over the step's tokens), `value` (the PPM's raw score, None without one), `visits`, `q` (mean
    backed-up value), `count` (how often the policy proposed it), `error` (why a dead end is dead), `result` (the
    fingerprint of a finished query's rows). `answer` is the node chosen as the tree's answer, None when it has none.
    """

    question_id: str
    db_id: str
    prompt: str
    config_digest: str = ""
    seed: int = 0
    parent: list[int] = field(default_factory=lambda: [-1])
    text: list[str] = field(default_factory=lambda: [""])
    sql: list[str] = field(default_factory=lambda: [""])
    kind: list[str] = field(default_factory=lambda: [""])
    verdict: list[str] = field(default_factory=lambda: ["ok"])
    terminal: list[bool] = field(default_factory=lambda: [False])
    reward: list[float | None] = field(default_factory=lambda: [None])
    prior: list[float] = field(default_factory=lambda: [1.0])
    logprob: list[float] = field(default_factory=lambda: [0.0])
    value: list[float | None] = field(default_factory=lambda: [None])
    visits: list[int] = field(default_factory=lambda: [0])
    q: list[float] = field(default_factory=lambda: [0.0])
    count: list[int] = field(default_factory=lambda: [1])
    error: list[str] = field(default_factory=lambda: [""])
    result: list[str] = field(default_factory=lambda: [""])
    generated_tokens: int = 0
    prompt_tokens: int = 0
    seconds: float = 0.0
    answer: int | None = None
    meta: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.parent)

    def add(self, parent: int, text: str, **values: Any) -> int:
        """Appends a node below `parent`; columns not given take the root's blank values. Returns its index."""
        values["parent"], values["text"] = parent, text
        columns, given = self.__dict__, values.get
        for name, blank in _BLANKS:
            columns[name].append(given(name, blank))
        return len(self.parent) - 1

    def children(self, node: int) -> list[int]:
        """Indices of the node's children, in the order they were added."""
        return [i for i in range(node + 1, len(self)) if self.parent[i] == node]

    def path(self, node: int) -> list[int]:
        """Node indices from the root's child down to `node` (the root itself, which has no step, is left out)."""
        nodes: list[int] = []
        while node > 0:
            nodes.append(node)
            node = self.parent[node]
        return nodes[::-1]

    def steps(self, node: int) -> tuple[str, ...]:
        """The step texts from the start down to `node`."""
        return tuple(self.text[i] for i in self.path(node))

    def record(self) -> dict[str, Any]:
        """The tree as one JSON object."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Tree:
        """Reads what `record` wrote."""
        return cls(**record)


_BLANK: dict[str, Any] = {
    column.name: column.default_factory()[0]
    for column in fields(Tree)
    if column.default_factory is not MISSING and column.name != "meta"
}

_BLANKS = tuple(_BLANK.items())
NODE_COLUMNS = tuple(_BLANK)
"""The columns that hold one value per node."""
