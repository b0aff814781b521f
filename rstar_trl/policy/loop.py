"""What engines that work on many requests at once have in common: an event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from abc import abstractmethod
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from rstar_trl.policy.interface import Answer, ConcurrentEngine, ProposeRequest

T = TypeVar("T")


class LoopEngine(ConcurrentEngine):
    """Answers each request in a task of its own; `close` ends the thread, and requests still open with it."""

    def __init__(self, capacity: int):
        self.capacity = capacity
        self._loop = asyncio.new_event_loop()
        # A daemon: a run that ends by an error must not wait for a server.
        self._thread = threading.Thread(target=self._loop.run_forever, name=type(self).__name__, daemon=True)
        self._thread.start()

    @abstractmethod
    async def answer(self, request: ProposeRequest) -> Answer:
        """Runs in the loop. Raises `EngineError` when the whole engine is gone."""

    def submit(self, request: ProposeRequest) -> Future[Answer]:
        """See `ConcurrentEngine.submit`."""
        return asyncio.run_coroutine_threadsafe(self.answer(request), self._loop)

    def close(self) -> None:
        """Cancels what is open and ends the thread; the engine answers nothing afterwards."""
        self.wait_for(self._cancel_all())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def wait_for(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs something in the loop, from another thread, and returns what it does."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _cancel_all(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
