"""Runs model-written SQL in worker processes that can be killed.

Guarantees: every query gets exactly one verdict, in order, within the time limit plus `GRACE` seconds, whatever the
SQL does; a worker that hangs is killed (`timeout`); one that dies is replaced; a query whose worker died, or whose
verdict is `infra`, is tried once more before that verdict stands; no text is parsed in this process; workers see an
empty environment and no descriptor of the parent but their own pipes, and end with the parent. Equal queries of one
sandbox run once while their result is in the cache, unless their rows may change from run to run. Safe to call from
several threads: each call takes workers that are free, and waits only while none is. Does not guarantee: fresh answers
when a database changes while the sandbox is open; isolation against a bug in an engine itself beyond the process
boundary and its resource limits. Needs Linux.
"""

from __future__ import annotations

import contextlib
import marshal
import os
import select
import subprocess
import sys
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rstar_trl.config import SandboxConfig
from rstar_trl.data.databases import absolute
from rstar_trl.data.question import Row
from rstar_trl.errors import InfraError
from rstar_trl.sql.execution import Execution, SqlJob, Verdict
from rstar_trl.sql.worker import HEADER_BYTES, frame, write_all

GRACE = 0.5
"""Seconds past the limit before a kill: time for the worker to stop the query itself and stay alive."""
START_SECONDS = 60.0
BATCH = 32
CACHE_BYTES = 64 * 2**20
CACHED_VERDICTS = frozenset({"ok", "sql_error", "rejected"})

Key = tuple[str, str, bool]

_PACKAGE_ROOT = str(Path(__file__).resolve().parents[2])
# -I and -S: neither the environment, nor the working directory, nor installed packages can put code into a worker.
_START = "import sys; sys.path.append(sys.argv[1]); from rstar_trl.sql.worker import main; main(sys.argv[2:])"


class Sandbox:
    """A pool of `config.workers` persistent processes. Use as a context manager, or call `close`."""

    def __init__(self, config: SandboxConfig | None = None) -> None:
        self.config = config or SandboxConfig()
        self._turn = threading.Condition()
        self._cache = _Cache(CACHE_BYTES)
        self._workers = [_Worker(self.config) for _ in range(self.config.workers)]
        self._free = list(self._workers)

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def size(self) -> int:
        """Workers, and so calls that can run at once."""
        return self.config.workers

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids of the workers that stand now."""
        return tuple(worker.process.pid for worker in self._workers)

    def close(self) -> None:
        """Ends the workers once their calls are answered. A second call does nothing."""
        with self._turn:
            self._turn.wait_for(lambda: len(self._free) == len(self._workers))
            for worker in self._workers:
                worker.kill()
            self._workers, self._free = [], []

    def run(self, jobs: Sequence[SqlJob], fresh: bool = False, workers: int | None = None) -> list[Execution]:
        """One execution per job, in order. Equal jobs of one call run once; `fresh` looks into no cache (for timing).

        The call takes at most so many `workers` (all that are free when None). Raises `InfraError` only if closed, or
        if no worker can be started.
        """
        keys = [(absolute(job.database), job.sql, job.probe) for job in jobs]
        found: dict[Key, Execution] = {}
        missing: dict[Key, None] = {}
        if not self._workers:
            raise InfraError("The sandbox is closed; open a new one to run queries.")
        for key in keys:
            hit = None if fresh else self._cache.get(key)
            if hit is None:
                missing[key] = None
            else:
                found[key] = hit
        if missing:
            found.update(self._run_missing(list(missing), workers))
        return [found[key] for key in keys]

    def _run_missing(self, keys: list[Key], most: int | None) -> dict[Key, Execution]:
        with self._turn:
            self._turn.wait_for(lambda: self._free or not self._workers)
            if not self._workers:
                raise InfraError("The sandbox was closed while queries waited for it; open a new one.")
            count = min(len(self._free), len(keys), most or len(self._free))
            workers = [self._free.pop() for _ in range(count)]
        try:
            return _Dispatch(workers, self.config, self._cache, keys).run()
        except BaseException:
            # An interrupt leaves answers in the pipes that would be taken for those of the next call.
            for worker in workers:
                worker.restart()
            raise
        finally:
            with self._turn:
                self._free += workers
                self._turn.notify_all()


class _Cache:
    """Least recently used executions within a budget of (marshalled) bytes."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.used = 0
        self.lock = threading.Lock()
        self.entries: OrderedDict[Key, tuple[Execution, int]] = OrderedDict()

    def get(self, key: Key) -> Execution | None:
        with self.lock:
            entry = self.entries.get(key)
            if entry is None:
                return None
            self.entries.move_to_end(key)
            return entry[0]

    def put(self, key: Key, execution: Execution, size: int) -> None:
        # One huge result must not drive out thousands of small ones.
        if execution.verdict not in CACHED_VERDICTS or execution.unstable or size > self.budget // 64:
            return
        size += len(key[0]) + len(key[1]) + 200
        with self.lock:
            self.used += size - self.entries.get(key, (execution, 0))[1]
            self.entries[key] = (execution, size)
            while self.used > self.budget:
                self.used -= self.entries.popitem(last=False)[1][1]


class _Worker:
    """One child process, the queries it has been given and not answered, and when it counts as hung."""

    def __init__(self, config: SandboxConfig) -> None:
        limits = (config.timeout, config.max_rows, config.max_bytes, config.memory_mb)
        self.command = [sys.executable, "-I", "-S", "-B", "-c", _START, _PACKAGE_ROOT, *map(str, limits), *_packages()]
        self.start()

    def start(self) -> None:
        try:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                env={},
                cwd="/",
                start_new_session=True,  # Ctrl-C is for the parent, which then decides.
            )
        except OSError as error:
            raise InfraError(
                f"A sandbox worker could not be started ({error}); free memory or processes and run again."
            ) from error
        assert self.process.stdin and self.process.stdout
        self.input, self.output = self.process.stdin.fileno(), self.process.stdout.fileno()
        self.ready = False
        self.starting = True
        self.batch: deque[Key] = deque()
        self.buffer = bytearray()
        self.deadline = time.monotonic() + START_SECONDS

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        self.process.stdout.close()

    def restart(self) -> None:
        self.kill()
        self.start()

    def send(self, batch: list[Key], deadline: float) -> None:
        self.batch.extend(batch)
        self.deadline = deadline
        # A dead worker is dealt with where reading from it says so.
        with contextlib.suppress(BrokenPipeError):
            write_all(self.input, frame(batch))

    def receive(self) -> list[bytes] | None:
        """The answers that have arrived in full, or None when the worker is dead."""
        data = os.read(self.output, 2**20)
        if not data:
            return None
        self.buffer += data
        payloads, start = [], 0
        while len(self.buffer) - start >= HEADER_BYTES:
            body = start + HEADER_BYTES
            end = body + int.from_bytes(self.buffer[start:body], "little")
            if end > len(self.buffer):
                break
            payloads.append(bytes(self.buffer[body:end]))
            start = end
        del self.buffer[:start]
        return payloads


def _packages() -> list[str]:
    """Folders of installed packages, from which a worker takes what an engine needs, when it needs it."""
    return [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]


class _Dispatch:
    """One call of `run`: hands `keys` out to the workers until each has its execution."""

    def __init__(self, workers: list[_Worker], config: SandboxConfig, cache: _Cache, keys: list[Key]) -> None:
        self.workers = workers
        self.patience = config.timeout + GRACE
        self.timeout = config.timeout
        self.cache = cache
        self.queue = deque(keys)
        self.total = len(keys)
        self.found: dict[Key, Execution] = {}
        self.failures: dict[Key, int] = {}
        self.failed_starts = 0

    def run(self) -> dict[Key, Execution]:
        while len(self.found) < self.total:
            self._hand_out()
            self._collect()
        return self.found

    def _hand_out(self) -> None:
        for worker in self.workers:
            if worker.ready and not worker.batch and self.queue:
                # Small batches towards the end, so that no worker sits on work that another could do.
                size = max(1, min(BATCH, len(self.queue) // (2 * len(self.workers))))
                batch = [self.queue.popleft() for _ in range(min(size, len(self.queue)))]
                worker.send(batch, time.monotonic() + self.patience)

    def _collect(self) -> None:
        waiting = {worker.output: worker for worker in self.workers if worker.batch or not worker.ready}
        poll = select.poll()
        for descriptor in waiting:
            poll.register(descriptor, select.POLLIN)
        now = time.monotonic()
        patience = max(0.0, min(worker.deadline for worker in waiting.values()) - now)
        for descriptor, _ in poll.poll(patience * 1000 + 1):
            self._take(waiting.pop(descriptor))
        for worker in waiting.values():
            # Compared with the time before polling: an answer that came while this process slept is read first.
            if worker.deadline < now:
                self._bury(worker, hung=True)

    def _take(self, worker: _Worker) -> None:
        payloads = worker.receive()
        if payloads is None:
            self._bury(worker, hung=False)
            return
        for payload in payloads:
            message = marshal.loads(payload)
            if not isinstance(message, tuple):
                worker.ready, worker.starting = True, bool(message)
                continue
            key = worker.batch.popleft()
            execution = _execution(*message)
            if execution.verdict == "infra" and self._failed(key) == 1:
                self.queue.append(key)
                continue
            self.found[key] = execution
            self.cache.put(key, execution, len(payload))
        worker.deadline = time.monotonic() + (START_SECONDS if worker.starting else self.patience)

    def _bury(self, worker: _Worker, hung: bool) -> None:
        """Replaces a worker that hangs or is dead, and decides about the query it was running."""
        left = list(worker.batch)
        started, hung = worker.ready, hung and not worker.starting
        worker.restart()
        if not started:
            self.failed_starts += 1
            if self.failed_starts > 2 * len(self.workers):
                raise InfraError(
                    f"Sandbox workers do not start (`{sys.executable} -I -S`); free memory and run again."
                )
        elif left and hung:
            self.found[left.pop(0)] = Execution("timeout", error=f"the query took longer than {self.timeout:g} s")
        elif left and self._failed(left[0]) > 1:
            error = "the worker process died twice on this query; look for a killer of processes (memory?)."
            self.found[left.pop(0)] = Execution("infra", error=error)
        self.queue.extendleft(reversed(left))

    def _failed(self, key: Key) -> int:
        """How often our own machinery has failed this query, this time included."""
        self.failures[key] = self.failures.get(key, 0) + 1
        return self.failures[key]


def _execution(verdict: Verdict, rows: list[Row] | None, *rest: Any) -> Execution:
    return Execution(verdict, None if rows is None else tuple(rows), *rest)
