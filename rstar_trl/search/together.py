"""A search by all processes of a launch: one queue, one file of trees for each process, every question once.

Guarantees: when this returns, every question has exactly one tree in the files `<name>-*.jsonl` of the folder, however
many processes wrote them, now or in an earlier run that was interrupted.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rstar_trl.data.question import Question
from rstar_trl.search.queue import LEASE, Peers, Queue, SharedQueue, drop_repeats, unfinished
from rstar_trl.search.run import SearchSummary, search_questions


@dataclass(frozen=True)
class Alone:
    """The only process there is."""

    rank: int = 0
    world: int = 1

    def barrier(self) -> None:
        """Nobody to wait for."""


ALONE = Alone()


def tree_files(folder: Path, name: str) -> list[Path]:
    """The files of all processes, in a fixed order."""
    return sorted(folder.glob(f"{name}-*.jsonl"))


def search_together(
    questions: Sequence[Question], *, folder: Path, name: str, peers: Peers, lease: float = LEASE, **search: Any
) -> SearchSummary:
    """Searches what has no tree yet; all processes call this together, with the same questions.

    `search` is what `search_questions` takes besides, `lease` the seconds after which a silent process loses its
    questions to the others. Returns the summary of this process alone; raises `RunError` when another one is gone.
    """
    pending = unfinished(questions, tree_files(folder, name))
    # Everyone has read the files before anyone adds to them.
    peers.barrier()
    claims = folder / "claims"
    share = Queue if peers.world == 1 else partial(SharedQueue, claims, peers, lease=lease)
    summary = search_questions(pending, out=folder / f"{name}-{peers.rank}.jsonl", share=share, **search)
    peers.barrier()
    if peers.rank == 0:
        drop_repeats(tree_files(folder, name))
        shutil.rmtree(claims, ignore_errors=True)
    peers.barrier()
    return summary
