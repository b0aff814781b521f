"""Does any tree wait for another? A server with long-tailed latency, and the part of its capacity that search uses.

    python benchmarks/search_latency.py

The server answers each request after a time drawn from a log-normal distribution (sigma 1), `--capacity` of them at
once. The same questions are searched twice: by the scheduler as it is, and in lock-step, where all trees ask together
and go on when the last answer is there. Capacity in use is the area under the number of requests in work, over
capacity x time: until the last question was begun (after that there is less work than capacity), and to the very end.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import threading
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field

from search_bookkeeping import FreeDatabase, FreePolicy

from rstar_trl.config import SearchConfig
from rstar_trl.data.question import GoldResult
from rstar_trl.policy.interface import Answer, ConcurrentEngine, ProposeRequest
from rstar_trl.search.effects import Task
from rstar_trl.search.scheduler import run_searches


class SlowServer(ConcurrentEngine):
    """Works on `capacity` requests at once; each takes its own time, which depends on its seed alone."""

    def __init__(self, capacity: int, median: float):
        self.capacity, self.median = capacity, median
        self.policy = FreePolicy(distinct=False)
        self.queue: deque[tuple[ProposeRequest, Future[Answer]]] = deque()
        self.in_work = 0
        self.changes: list[tuple[float, int]] = []
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()

    def render(self, messages: list[dict[str, str]]) -> str:
        return ""

    def submit(self, request: ProposeRequest) -> Future[Answer]:
        future: Future[Answer] = Future()
        self.loop.call_soon_threadsafe(self._arrive, request, future)
        return future

    def _arrive(self, request: ProposeRequest, future: Future[Answer]) -> None:
        self.queue.append((request, future))
        self._begin()

    def _begin(self) -> None:
        while self.queue and self.in_work < self.capacity:
            request, future = self.queue.popleft()
            self._count(1)
            latency = self.median * random.Random(request.seed).lognormvariate(0.0, 1.0)
            self.loop.call_later(latency, self._answer, request, future)

    def _answer(self, request: ProposeRequest, future: Future[Answer]) -> None:
        self._count(-1)
        self._begin()
        future.set_result(self.policy.propose([request])[0])

    def _count(self, change: int) -> None:
        self.in_work += change
        self.changes.append((time.monotonic(), self.in_work))

    def in_use(self, start: float, end: float) -> float:
        """The part of the capacity in use between two times."""
        area, since, level = 0.0, start, 0
        for at, now in self.changes:
            area += level * (max(start, min(at, end)) - since)
            since, level = max(start, min(at, end)), now
        return (area + level * (end - since)) / (self.capacity * (end - start))


class LockStep:
    """The same server, but nothing is answered before everything is."""

    def __init__(self, server: SlowServer):
        self.server = server

    def render(self, messages: list[dict[str, str]]) -> str:
        return ""

    def propose(self, requests: list[ProposeRequest]) -> list[Answer]:
        return self.server.propose(requests)


@dataclass
class Clock:
    """When the questions of a run began and ended."""

    started: float = field(default_factory=time.monotonic)
    last_begun: float = 0.0


def main() -> None:
    """Prints a table row per way of scheduling, and the ratio of their times."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--questions", type=int, default=400)
    parser.add_argument("--simulations", type=int, default=4)
    parser.add_argument("--trees-in-flight", type=int, default=64)
    parser.add_argument("--capacity", type=int, default=32)
    parser.add_argument("--median", type=float, default=0.05, help="median latency in seconds")
    arguments = parser.parse_args()
    print("| scheduling | seconds | capacity in use | to the very end |")
    print("|---|---|---|---|")
    seconds = [search(arguments, lock_step) for lock_step in (False, True)]
    print(f"\nlock-step takes {seconds[1] / seconds[0]:.1f} times as long")


def search(arguments: argparse.Namespace, lock_step: bool) -> float:
    """Searches all questions and prints the row."""
    server, clock = SlowServer(arguments.capacity, arguments.median), Clock()

    def tasks():
        for number in range(arguments.questions):
            clock.last_begun = time.monotonic()
            gold = GoldResult(((2,),))
            yield Task(f"q{number}", "free", f"question {number}\n", "free", number, "train", gold)

    config = SearchConfig(simulations=arguments.simulations, trees_in_flight=arguments.trees_in_flight)
    run_searches(tasks(), config, LockStep(server) if lock_step else server, None, FreeDatabase(), lambda tree: None)
    end = time.monotonic()
    use, to_the_end = (server.in_use(clock.started, until) for until in (clock.last_begun, end))
    name = "lock-step" if lock_step else "as it is"
    print(f"| {name} | {end - clock.started:.1f} | {use:.1%} | {to_the_end:.1%} |", flush=True)
    return end - clock.started


if __name__ == "__main__":
    main()
