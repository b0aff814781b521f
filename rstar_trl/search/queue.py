"""One queue of questions for all processes of a search, on one machine or on several that share the run folder.

A claim is a symbolic link `<question>.<generation>` in a folder of claims: making one is atomic, on network file
systems too, and its target names the claimant, so that no claim is ever seen half made. Nothing is taken out of the
folder while a search runs: to take a question over from a process that is gone means to be the first to make the link
of the next generation. A process is gone when its heartbeat file is, or when that has not changed for `LEASE` seconds
on the watcher's own clock; clocks of different machines are never compared.

Why files: the run folder is shared anyway, no process has to outlive the others (a TCP store ends with rank 0), and a
file system with `O_EXCL` semantics needs no lock daemon. One process alone uses no files.

A process that is asked to stop takes no further question and tells the others by a file in the folder, so that all
stop and none waits for questions that nobody will search.

Guarantees: a question is handed to one live process at a time; every question is handed out until some process has
written its tree; a process that raises gives its questions back at once, one that is killed after `LEASE`; the slowest
process holds the others up by one tree. Does not guarantee that work is never done twice: a process that stood still
for longer than `LEASE` and then went on, or was killed between writing a tree and saying so, leaves a second tree of
the same question, an equal one, since a tree depends on the question, seed and settings alone. `drop_repeats` removes
it when the search is over.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from rstar_trl.data.question import Question
from rstar_trl.errors import RunError
from rstar_trl.io import digest, read_jsonl, write_jsonl
from rstar_trl.search.tree import Tree

LEASE = 300.0
"""Seconds without a heartbeat after which a process counts as gone; far above what a network file system delays."""
BEATS = 20
"""Heartbeats in a lease."""
GLANCE = 1.0
"""Seconds for which a listing of the claims is good enough; a process may take a little too much meanwhile."""
STOP = "stop"
"""The file in the folder of claims that tells every process to stop."""


class Peers(Protocol):
    """This process among those of the search (`rstar_trl.evolution.launch.Processes`)."""

    @property
    def rank(self) -> int: ...

    @property
    def world(self) -> int: ...

    def barrier(self) -> None: ...


def never() -> bool:
    """No reason to stop."""
    return False


class Totals(NamedTuple):
    """What all processes together have finished since the search began."""

    questions: int = 0
    solved: int = 0
    dead_ends: int = 0
    tokens: int = 0

    def plus(self, other: Totals) -> Totals:
        """The element-wise sum."""
        return Totals(*map(sum, zip(self, other, strict=True)))


class Queue(Iterator[Question]):
    """The questions of a process that works alone, in order.

    `while queue.wait(): search(queue)` searches all of them; `done` is told of every finished tree. The iterator ends
    when there is nothing to take *now*. It may be asked again, and so fills a scheduler's room as soon as there is
    more; a scheduler that does not ask again gets the rest after the next `wait`. Once `stop` is true there is nothing
    more to take.
    """

    def __init__(self, questions: Sequence[Question], stop: Callable[[], bool] = never):
        self._waiting = deque(questions)
        self._stop = stop
        self.totals = Totals()

    def __enter__(self) -> Queue:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __next__(self) -> Question:
        if not self._waiting or self.stopped():
            raise StopIteration
        return self._waiting.popleft()

    def wait(self) -> bool:
        """True as soon as there is a question to take, False when every question is finished, or on a stop."""
        return bool(self._waiting) and not self.stopped()

    def stopped(self) -> bool:
        """Whether this search was asked to stop."""
        return self._stop()

    def done(self, tree: Tree) -> None:
        """Tells that the tree of a question taken here is on disk."""
        self.totals = self.totals.plus(_totals(tree))


class SharedQueue(Queue):
    """The same questions for every process in `peers`; all enter it together, each with an equal list.

    `folder` holds the claims, and is emptied on entering: claims of an earlier run are void. A process holds at most
    its part of what nobody has taken yet (at least one), so that the queue runs dry everywhere at the same time.
    """

    def __init__(
        self,
        folder: Path,
        peers: Peers,
        questions: Sequence[Question],
        lease: float = LEASE,
        stop: Callable[[], bool] = never,
    ):
        super().__init__([], stop)
        own = questions[peers.rank :: peers.world]
        others = [question for i, question in enumerate(questions) if i % peers.world != peers.rank]
        # Each begins with other questions, and takes those of others from their end: so claims rarely collide.
        self._open = {digest(question.id): question for question in [*own, *reversed(others)]}
        self._free = dict.fromkeys(self._open)
        self._held: set[str] = set()
        self._generation: dict[str, int] = {}
        self._folder, self._peers, self._lease = folder, peers, lease
        self._me = f"{peers.rank}-{uuid.uuid4().hex[:12]}"
        self._beats: dict[str, tuple[int, float]] = {}
        self._alive: set[str] = set()
        self._listed = -math.inf
        self._told = False
        self._left = threading.Event()
        self._heart = threading.Thread(target=self._keep_alive, daemon=True)

    def __enter__(self) -> SharedQueue:
        if self._peers.rank == 0:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder.mkdir(parents=True, exist_ok=True)
        self._peers.barrier()
        self._beat_file(self._me).touch()
        self._heart.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        self._heart.join()
        self._beat_file(self._me).unlink(missing_ok=True)

    def __next__(self) -> Question:
        if time.monotonic() - self._listed > GLANCE:
            self._list()
        while (
            self._free
            and not self.stopped()
            and len(self._held) < max(1, math.ceil(len(self._free) / self._peers.world))
        ):
            key = next(iter(self._free))
            if self._claim(key):
                self._held.add(key)
                return self._open[key]
            self._list()
        raise StopIteration

    def wait(self) -> bool:
        """Blocks while others work on all that is left; raises `RunError` at the end when one of them is gone."""
        pause = 0.01
        while True:
            self._list()
            if not self._open:
                self._all_here()
                return False
            if self.stopped():
                return False
            if not self._free:
                self._free = dict.fromkeys(self._abandoned())
            if self._free:
                return True
            time.sleep(pause)
            pause = min(2 * pause, GLANCE, self._lease / BEATS)

    def stopped(self) -> bool:
        """Whether any process was asked to stop; the first to know tells the others."""
        if not self._told and self._stop():
            (self._folder / STOP).touch()
            self._told = True
        return self._told

    def done(self, tree: Tree) -> None:
        """Tells every process that this question needs no more work."""
        super().done(tree)
        key = digest(tree.question_id)
        with contextlib.suppress(FileExistsError):
            os.symlink(" ".join(map(str, _totals(tree))), self._folder / f"{key}.done")
        self._held.discard(key)
        self._open.pop(key, None)
        self._free.pop(key, None)

    def _claim(self, key: str) -> bool:
        generation = self._generation.get(key, -1) + 1
        path = self._folder / f"{key}.{generation}"
        del self._free[key]
        try:
            os.symlink(self._me, path)
        except FileExistsError:
            # A network file system may have made the link, lost its answer and asked again: then it is ours after all.
            if os.readlink(path) != self._me:
                return False
        self._generation[key] = generation
        return True

    def _list(self) -> None:
        """Looks at the whole folder: who is alive, what is finished, and what nobody has taken."""
        finished, beating = [], set()
        names = os.listdir(self._folder)
        self._told |= STOP in names
        for name in names:
            key, _, what = name.partition(".")
            if what == "alive":
                beating.add(key)
            elif what == "done":
                finished.append(key)
            elif what.isdigit():
                self._generation[key] = max(self._generation.get(key, -1), int(what))
        for key in finished:
            if self._open.pop(key, None) is not None:
                counts = os.readlink(self._folder / f"{key}.done").split()
                self.totals = self.totals.plus(Totals(*map(int, counts)))
        self._alive = {owner for owner in beating if self._beats_on(owner)}
        self._free = {key: None for key in self._open if key not in self._generation}
        self._listed = time.monotonic()

    def _beats_on(self, owner: str) -> bool:
        """Whether the heartbeat has changed within a lease, as far as this process has been watching."""
        try:
            # Opening makes a network file system ask for the file's present attributes.
            with open(self._beat_file(owner)) as file:
                stamp = os.fstat(file.fileno()).st_mtime_ns
        except FileNotFoundError:
            return False
        seen, since = self._beats.get(owner, (None, 0.0))
        if stamp != seen:
            since = time.monotonic()
            self._beats[owner] = stamp, since
        return time.monotonic() - since < self._lease

    def _abandoned(self) -> list[str]:
        """The questions whose claimants are gone."""
        lost = self._open.keys() - self._held
        return sorted(key for key in lost if self._owner(key, self._generation[key]) not in self._alive)

    def _owner(self, key: str, generation: int) -> str:
        return os.readlink(self._folder / f"{key}.{generation}")

    def _all_here(self) -> None:
        """Whoever lost a question and is still silent is gone, and the next barrier would wait for it."""
        lost = {self._owner(key, before) for key, last in self._generation.items() for before in range(last)}
        gone = sorted(owner.partition("-")[0] for owner in lost - self._alive)
        if gone:
            raise RunError(
                f"process {', '.join(gone)} of this run is gone. The others have searched its questions and every "
                "tree is on disk; give the same command again to go on from here."
            )

    def _keep_alive(self) -> None:
        while not self._left.wait(self._lease / BEATS):
            # A beat that fails is one beat less; a lease has many.
            with contextlib.suppress(OSError):
                os.utime(self._beat_file(self._me))

    def _beat_file(self, owner: str) -> Path:
        return self._folder / f"{owner}.alive"


def unfinished(questions: Iterable[Question], files: Iterable[Path]) -> list[Question]:
    """The questions that have no tree in `files`."""
    finished = {row["question_id"] for path in files for row in read_jsonl(path)[0]}
    return [question for question in questions if question.id not in finished]


def drop_repeats(files: Iterable[Path]) -> int:
    """Keeps the first tree of each question over all `files`, in their order; returns how many were dropped."""
    seen: set[str] = set()
    dropped = 0
    for path in files:
        rows, _ = read_jsonl(path)
        kept = [row for row in rows if not (row["question_id"] in seen or seen.add(row["question_id"]))]  # type: ignore[func-returns-value]
        if len(kept) < len(rows):
            dropped += len(rows) - len(kept)
            write_jsonl(path, kept)
    return dropped


def _totals(tree: Tree) -> Totals:
    solved = any(reward == 1.0 for reward in tree.reward)
    return Totals(1, int(solved), sum(bool(error) for error in tree.error), tree.generated_tokens)
