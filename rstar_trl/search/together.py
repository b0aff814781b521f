"""A search by all processes of a launch: one queue, one file of trees for each process, every question once.

Guarantees: when this returns, every question has exactly one tree in the files `<name>-*.jsonl` of the folder, however
many processes wrote them, now or in an earlier run that was interrupted. When any process was asked to stop, all
finish the trees they have in flight and raise `Interrupted`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rstar_trl.data.question import Question
from rstar_trl.errors import Interrupted
from rstar_trl.search.queue import LEASE, STOP, Peers, Queue, SharedQueue, drop_repeats, never, unfinished
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
    questions: Sequence[Question],
    *,
    folder: Path,
    name: str,
    peers: Peers,
    lease: float = LEASE,
    stop: Callable[[], bool] = never,
    **search: Any,
) -> SearchSummary:
    """Searches what has no tree yet; all processes call this together, with the same questions.

    `search` is what `search_questions` takes besides, `lease` the seconds after which a silent process loses its
    questions to the others; `stop` is asked before a question is taken. Returns the summary of this process alone;
    raises `RunError` when another one is gone.
    """
    pending = unfinished(questions, tree_files(folder, name))
    # Everyone has read the files before anyone adds to them.
    peers.barrier()
    claims = folder / "claims"
    alone = peers.world == 1
    share = partial(Queue, stop=stop) if alone else partial(SharedQueue, claims, peers, lease=lease, stop=stop)
    summary = search_questions(pending, out=folder / f"{name}-{peers.rank}.jsonl", share=share, **search)
    peers.barrier()
    # Read between two barriers: the same for all, though it may be asked for at any time.
    stopped = stop() if alone else (claims / STOP).exists()
    peers.barrier()
    if peers.rank == 0:
        drop_repeats(tree_files(folder, name))
        shutil.rmtree(claims, ignore_errors=True)
    peers.barrier()
    if stopped:
        raise Interrupted
    return summary
