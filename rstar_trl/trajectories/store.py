"""Finished trees on disk: one JSON line each, appended at once.

Guarantees: a killed writer loses at most the line it was writing; readers skip that line. Trees come back sorted by
question id, and for one question in the order of the files and lines given. Does not: remove duplicates (two
rounds may search one question with the same settings and another policy, and both trees count).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rstar_trl.errors import DataError
from rstar_trl.io import append_jsonl, read_jsonl
from rstar_trl.search.tree import Tree


def append_tree(path: Path | str, tree: Tree) -> None:
    """Appends a finished tree to a file that this process alone writes."""
    append_jsonl(path, tree.record())


def read_trees(paths: Iterable[Path | str]) -> list[Tree]:
    """Reads tree files, or all `trees-*.jsonl` of a folder; a line that is JSON but no tree is a `DataError`."""
    trees = [tree for path in paths for file in _files(Path(path)) for tree in _read(file)]
    return sorted(trees, key=lambda tree: tree.question_id)


def by_question(trees: Iterable[Tree]) -> dict[str, list[Tree]]:
    """The trees of each question, questions in order of their ids."""
    groups: dict[str, list[Tree]] = {}
    for tree in trees:
        groups.setdefault(tree.question_id, []).append(tree)
    return dict(sorted(groups.items()))


def _files(path: Path) -> list[Path]:
    return sorted(path.glob("trees-*.jsonl")) if path.is_dir() else [path]


def _read(path: Path) -> list[Tree]:
    rows, _ = read_jsonl(path)
    try:
        return [Tree.from_record(row) for row in rows]
    except TypeError as error:
        raise DataError(
            f"{path} holds a line that is no search tree ({error}); name a file that `search` wrote."
        ) from error
