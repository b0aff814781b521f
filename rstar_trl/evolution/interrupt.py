"""Ctrl-C during a search: the first lets the trees in flight finish, a second one stops at once.

A search asks before it takes a question whether to stop, so it needs to know nothing of signals. Who hears the signal
depends on who was started how:

- A stage in the process of the command hears it itself.
- A launched stage has a session of its own, so the terminal's signal reaches its parent alone. The two leave each
  other word in a folder: the stage notes that it is searching, and the parent then asks it to stop instead of ending
  it. No launcher in between hears of it (accelerate's and torchrun's end their processes on a signal).
- Processes that `accelerate launch` started from the command line hear it from torchrun, which ends them 30 seconds
  later (`TORCH_ELASTIC_SHUTDOWN_TIMEOUT`). The launcher of a single process does not wait at all; there the first one
  stops at once.

Guarantees: outside `draining` and `passing_on` a signal does what it did before; the handler that was there is put
back; outside the main thread, or where Ctrl-C is ignored, nothing changes. Signals within half a second count as one,
since wrappers pass on what the terminal has sent already.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from rstar_trl.errors import Interrupted

if TYPE_CHECKING:
    from rstar_trl.evolution.launch import Processes

WORD = "RSTAR_TRL_INTERRUPT_FOLDER"
"""Environment variable naming the folder in which a launched stage and its parent leave each other word."""

ECHO = 0.5
"""Seconds after the first signal for which others are taken for the same."""

SAID = b"\nInterrupted: the questions in flight are finished first. Press Ctrl-C again to stop at once.\n"


@contextlib.contextmanager
def draining(processes: Processes) -> Iterator[Callable[[], bool]]:
    """Yields what a search asks before it takes a question. Raises `Interrupted` at the end if nobody else has."""
    if WORD in os.environ:
        folder = Path(os.environ[WORD])
        _mark(folder).touch()
        try:
            yield _asked(folder).exists
        finally:
            _mark(folder).unlink(missing_ok=True)
        return
    if processes.launched and processes.world == 1:
        yield lambda: False
        return
    stop = threading.Event()

    def ask() -> None:
        stop.set()
        if processes.first:
            os.write(2, SAID)

    with _first_interrupt(ask):
        yield stop.is_set
    if stop.is_set():
        raise Interrupted


@contextlib.contextmanager
def passing_on(folder: Path) -> Iterator[Callable[[], bool]]:
    """In the parent of a launched stage: asks it to drain while it searches, else raises `KeyboardInterrupt` at once.

    Yields whether it was asked. `folder` is what the stage finds in `WORD`.
    """

    def ask() -> None:
        if not _mark(folder).exists():
            raise KeyboardInterrupt
        _asked(folder).touch()
        os.write(2, SAID)

    with _first_interrupt(ask):
        yield _asked(folder).exists


def _mark(folder: Path) -> Path:
    return folder / "draining"


def _asked(folder: Path) -> Path:
    return folder / "stop"


@contextlib.contextmanager
def _first_interrupt(ask: Callable[[], None]) -> Iterator[None]:
    """Within, the first SIGINT calls `ask`, and a later one what was there before."""
    before = signal.getsignal(signal.SIGINT)
    if not callable(before):
        yield
        return
    first: list[float] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if not first:
            first.append(time.monotonic())
            ask()
        elif time.monotonic() - first[0] > ECHO:
            before(number, frame)

    with handling(signal.SIGINT, handle):
        yield


@contextlib.contextmanager
def handling(number: signal.Signals, handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Within, a signal goes to `handler`; outside the main thread, where none can be set, to what was there."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)
