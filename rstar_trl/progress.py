"""One live line of progress on a terminal; plain lines, few of them, everywhere else.

Guarantees: nothing is written when not `enabled` (ranks other than 0); a terminal sees one line rewritten at most ten
times a second; a log file sees a line at most every 10 seconds or 10 % of the work. Does not guarantee a steady time
left: it is the mean pace so far, carried on.
"""

from __future__ import annotations

import sys
import time
from typing import TextIO


class Progress:
    """Counts finished questions of `total`; use as a context manager or call `close()`."""

    def __init__(self, total: int, label: str, enabled: bool = True, stream: TextIO | None = None):
        self.total, self.label, self.enabled = total, label, enabled
        self.stream = stream if stream is not None else sys.stderr
        self.live = self.stream.isatty()
        self.done = self.solved = self.dead_ends = self.tokens = 0
        self.started = time.monotonic()
        self._shown_at = self.started
        self._shown_done = 0
        self._width = 0

    def update(self, done: int, *, solved: int = 0, dead_ends: int = 0, tokens: int = 0) -> None:
        """Sets the counters (all are totals since the start) and redraws when it is time to."""
        self.done, self.solved, self.dead_ends, self.tokens = done, solved, dead_ends, tokens
        if self.enabled and self._due():
            self._show()

    def begin(self, label: str) -> None:
        """Starts over under another label: the same questions, answered another way."""
        self.close()
        self.label = label
        self.done = self.solved = self.dead_ends = self.tokens = 0
        self.started = self._shown_at = time.monotonic()
        self._shown_done = self._width = 0

    def close(self) -> None:
        """Draws the final state and ends the live line."""
        if self.enabled and (self.live or self._shown_done != self.done):
            self._show()
        if self.enabled and self.live:
            self.stream.write("\n")
            self.stream.flush()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def line(self) -> str:
        """The state in one line: done / total, solved, dead ends, tokens per second, time left."""
        seconds = max(time.monotonic() - self.started, 1e-6)
        left = duration(seconds / self.done * (self.total - self.done)) if self.done else "?"
        return (
            f"{self.label}: {self.done}/{self.total}, {self.solved} solved, {self.dead_ends} dead ends, "
            f"{self.tokens / seconds:.0f} tokens/s, {left} left"
        )

    def _due(self) -> bool:
        waited = time.monotonic() - self._shown_at
        if self.live:
            return waited >= 0.1
        return waited >= 10 or (self.done - self._shown_done) * 10 >= self.total > 0

    def _show(self) -> None:
        line = self.line()
        if self.live:
            self.stream.write("\r" + line.ljust(self._width))
        else:
            self.stream.write(line + "\n")
        self.stream.flush()
        self._shown_at, self._shown_done, self._width = time.monotonic(), self.done, len(line)


def duration(seconds: float) -> str:
    """Seconds as a person says them: `42 s`, `3 min 20 s`, `5 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
