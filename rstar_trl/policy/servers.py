"""The servers of one model: which of them answer, which one a question goes to, and waiting for those that do not.

Guarantees: a server that is down is asked whether it is back by one task alone, at growing pauses, for as long as the
engine lives, and takes its questions again when it is; others take them meanwhile; when none answers, requests wait,
and fail with `EngineError` once that has lasted for `patience` seconds; each outage is told once on standard error.
Runs in one event loop. Does not know what a server is asked: `probe` does.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence

from rstar_trl.errors import EngineError
from rstar_trl.progress import duration

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
"""Seconds before a server that is down is asked for the first time, doubled each time up to the longest."""

GO_ON = "then give the same command again: finished work is kept"


class Down(Exception):
    """This server cannot be reached, or is not ready; the text says why."""


class Servers:
    """Those in `urls`, all up at first. `probe` asks one of them and raises `Down` while it is not back."""

    def __init__(self, urls: Sequence[str], patience: float, probe: Callable[[str], Awaitable[None]]):
        self.urls, self.patience, self._probe = list(dict.fromkeys(urls)), patience, probe
        self._homes: dict[int, int] = {}
        self._down: dict[str, str] = {}
        self._watches: dict[str, asyncio.Task[None]] = {}
        self._back = asyncio.Event()
        self._silent_since = 0.0

    async def pick(self, prompt: str) -> str:
        """The prompt's own server, or the next one that is up; waits while there is none."""
        while (url := next(filter(self._is_up, self._order(prompt)), None)) is None:
            left = self._silent_since + self.patience - time.monotonic()
            if left <= 0:
                raise no_server(self._down, self.patience)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._back.wait(), left)
        return url

    def lost(self, url: str, reason: str) -> None:
        """Takes a server out until it answers again."""
        known = url in self._down
        self._down[url] = reason
        if known:
            return
        if len(self._down) == len(self.urls):
            self._silent_since = time.monotonic()
            self._back.clear()
            if self.patience:
                _tell(f"{url} does not answer ({reason}); waiting for a server for up to {duration(self.patience)}.")
        else:
            _tell(f"{url} does not answer ({reason}); the others take its questions until it does.")
        self._watches[url] = asyncio.create_task(self._watch(url))

    async def _watch(self, url: str) -> None:
        """Asks until the server is back."""
        pause = FIRST_PAUSE
        while url in self._down:
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
            try:
                await self._probe(url)
            except Down as error:
                self._down[url] = str(error)
            else:
                del self._down[url], self._watches[url]
                self._back.set()
                _tell(f"{url} answers again.")

    def _is_up(self, url: str) -> bool:
        return url not in self._down

    def _order(self, prompt: str) -> list[str]:
        """All servers, the prompt's own first: a question stays with the server that has its prefix."""
        home = self._homes.setdefault(hash(prompt), len(self._homes) % len(self.urls))
        return [*self.urls[home:], *self.urls[:home]]


def no_server(down: Mapping[str, str], waited: float = 0.0) -> EngineError:
    """What to raise when no server is left. `down`: why, by address; `waited`: seconds."""
    reasons = "; ".join(f"{url}: {reason}" for url, reason in down.items())
    what = f"No server has answered for {duration(waited)}" if waited else "No server answers"
    return EngineError(f"{what} ({reasons}); start it or mend `engine.urls`, {GO_ON}.")


def _tell(line: str) -> None:
    """Says so below the live line of progress, where there is one."""
    print(("\n" if sys.stderr.isatty() else "") + line, file=sys.stderr, flush=True)
