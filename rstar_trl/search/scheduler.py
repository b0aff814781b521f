"""Keeps many trees in flight: each asks for what it needs, and goes on as soon as it has it.

One thread owns all trees. Generation, SQL and scores are each a *service*: what trees ask of it waits in its queue, is
sent off in calls (all that is waiting, up to a size), and comes back through one queue of events. So the three run
beside each other, a tree joins the next generation batch when it is ready, and a slow query holds up one worker of the
sandbox, not those who wait for another.

Guarantees: at most `trees_in_flight` trees at once, a finished one makes room for the next before the next batch; a
tree's outcome does not depend on the others or on timing (up to floating-point rounding in the engine, and except
under `max_seconds`); a `ConcurrentEngine` has `capacity` requests in hand whenever as many are wanted. An exception in
a service (the whole engine is gone) is raised here after the calls under way have ended; the trees in flight are lost.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from queue import Empty, SimpleQueue
from typing import Any

from rstar_trl.config import SearchConfig
from rstar_trl.policy.interface import ConcurrentEngine, Engine, ProposeRequest, Scorer
from rstar_trl.search.algorithm import search
from rstar_trl.search.effects import Effect, RunSql, ScoreSteps, Search, SqlRunner, Task
from rstar_trl.search.tree import Tree

SQL_CALL = 64
"""Queries of one call to one worker: few enough that a slow one holds up few trees, enough that it costs little."""
LINGER, LEAST_LINGER = 0.25, 0.01
"""A generation batch waits for trees whose SQL or scores are under way for at most this part of the last batch's time
(and no less than so many seconds): batches are then full, and the same from run to run. Each time that was in vain the
next wait is half as long, so that slow queries do not hold up generation."""


@dataclass
class _Run:
    """A tree in flight: its search, and the answers it waits for."""

    steps: Search[Tree]
    started: float
    answers: list[Any] = field(default_factory=list)
    missing: int = 0


_Ticket = tuple[_Run, int, Any]
"""Who asked, as which of its effects, and for what."""
_Work = Callable[[list[Any]], list[Any]]
_Call = Callable[[list[Any]], Future[list[Any]]]


class _Service:
    """Work of one kind: a queue, and at most `slots` calls under way with `size` effects (by weight) at most."""

    def __init__(self, call: _Call, slots: int, size: float, weight: Callable[[Any], int], work: _Work | None = None):
        """`work` is what `call` does, for doing it here where nothing else could be done meanwhile."""
        self.call, self.slots, self.size, self.weight, self.work = call, slots, size, weight, work
        self.waiting: deque[_Ticket] = deque()
        self.free = slots
        self.idle_since = self.took = 0.0

    @property
    def busy(self) -> bool:
        return self.free < self.slots or bool(self.waiting)

    def is_one_call(self) -> bool:
        """Nothing is under way, and what is waiting fits in one call."""
        total = 0
        return self.free == self.slots and all(
            (total := total + self.weight(e)) <= self.size for _, _, e in self.waiting
        )

    def send(self, events: SimpleQueue, here: bool = False) -> None:
        """Sends off what is waiting, as far as there are slots; does the first call `here` when told so."""
        while self.waiting and self.free:
            tickets = [self.waiting.popleft()]
            size = self.weight(tickets[0][2])
            while self.waiting and (size := size + self.weight(self.waiting[0][2])) <= self.size:
                tickets.append(self.waiting.popleft())
            self.free -= 1
            sent = time.monotonic()
            effects = [effect for _, _, effect in tickets]
            future = _finished(self.work(effects)) if here and self.work else self.call(effects)
            here = False
            future.add_done_callback(partial(self._report, events, tickets, sent))

    def _report(self, events: SimpleQueue, tickets: list[_Ticket], sent: float, done: Future[list[Any]]) -> None:
        events.put((self, tickets, sent, done))

    def end(self, sent: float) -> None:
        """A call is over."""
        self.free += 1
        self.idle_since = time.monotonic()
        self.took = self.idle_since - sent


def run_searches(
    tasks: Iterable[Task],
    config: SearchConfig,
    engine: Engine | ConcurrentEngine,
    scorer: Scorer | None,
    sandbox: SqlRunner,
    on_tree: Callable[[Tree], None],
) -> None:
    """Searches every task and hands each finished tree to `on_tree`, in the order they finish, in this thread."""
    with ThreadPoolExecutor(2 + sandbox.size, thread_name_prefix="search") as pool:
        _Scheduler(config, engine, scorer, sandbox, on_tree, pool).run(iter(tasks))


class _Scheduler:
    def __init__(
        self,
        config: SearchConfig,
        engine: Engine | ConcurrentEngine,
        scorer: Scorer | None,
        sandbox: SqlRunner,
        on_tree: Callable[[Tree], None],
        pool: ThreadPoolExecutor,
    ):
        self.config, self.on_tree = config, on_tree
        self.events: SimpleQueue[tuple[_Service, list[_Ticket], float, Future[list[Any]]]] = SimpleQueue()
        self.in_flight = 0
        self.hope = 1.0

        def threaded(work: _Work, slots: int, size: float, weight: Callable[[Any], int] = _one) -> _Service:
            return _Service(lambda effects: pool.submit(work, effects), slots, size, weight, work)

        if isinstance(engine, ConcurrentEngine):
            generation = _Service(lambda effects: _single(engine.submit(effects[0])), engine.capacity, 1, _one)
        else:
            generation = threaded(engine.propose, 1, math.inf)
        sql = threaded(partial(_run_sql, sandbox), sandbox.size, SQL_CALL, lambda effect: len(effect.jobs))
        scores = threaded(partial(_run_scores, scorer), 1, math.inf)
        self.generation, self.batched = generation, not isinstance(engine, ConcurrentEngine)
        self.services: dict[type[Effect], _Service] = {RunSql: sql, ScoreSteps: scores, ProposeRequest: generation}

    def run(self, tasks: Iterable[Task]) -> None:
        while True:
            for task in islice(tasks, self.config.trees_in_flight - self.in_flight):
                self.in_flight += 1
                self._go_on(_Run(search(task, self.config), time.perf_counter()), None)
            if not self.in_flight:
                return
            patience = self._send()
            try:
                event = self.events.get(timeout=patience)
            except Empty:
                continue
            self._take(*event)
            while not self.events.empty():
                self._take(*self.events.get())

    def _send(self) -> float | None:
        """Sends off what can be sent. Returns the seconds for which the next batch waits for more, if it waits."""
        services = self.services.values()
        busy = [service for service in services if service.busy]
        # A single call with none under way has nothing that could run beside it: no need for a thread.
        alone = len(busy) == 1 and busy[0].is_one_call()
        generation = self.generation
        for service in services:
            if service is not generation:
                service.send(self.events, here=alone)
        if self.batched and generation.free and generation.waiting and busy != [generation]:
            patience = self.hope * max(LEAST_LINGER, LINGER * generation.took)
            left = generation.idle_since + patience - time.monotonic()
            if left > 0:
                return left
            self.hope /= 2
        elif generation.free and generation.waiting:
            self.hope = min(1.0, 2 * self.hope)
        generation.send(self.events, here=alone)
        return None

    def _take(self, service: _Service, tickets: list[_Ticket], sent: float, done: Future[list[Any]]) -> None:
        """Gives a call's answers to the trees that asked; those that have all they asked for go on."""
        service.end(sent)
        for (run, place, _), answer in zip(tickets, done.result(), strict=True):
            run.answers[place] = answer
            run.missing -= 1
            if not run.missing:
                self._go_on(run, run.answers)

    def _go_on(self, run: _Run, answers: list[Any] | None) -> None:
        try:
            effects = run.steps.send(answers)  # type: ignore[arg-type]
        except StopIteration as stop:
            self.in_flight -= 1
            tree: Tree = stop.value
            tree.seconds = time.perf_counter() - run.started
            self.on_tree(tree)
            return
        run.answers, run.missing = [None] * len(effects), len(effects)
        for place, effect in enumerate(effects):
            self.services[type(effect)].waiting.append((run, place, effect))


def _one(effect: Effect) -> int:
    return 1


def _run_sql(sandbox: SqlRunner, effects: list[RunSql]) -> list[list[Any]]:
    executions = iter(sandbox.run([job for effect in effects for job in effect.jobs], workers=1))
    return [list(islice(executions, len(effect.jobs))) for effect in effects]


def _run_scores(scorer: Scorer | None, effects: list[ScoreSteps]) -> list[list[Any]]:
    assert scorer is not None, "a task asks for scores, but the search was given no scorer"
    scores = iter(scorer.score([request for effect in effects for request in effect.requests]))
    return [list(islice(scores, len(effect.requests))) for effect in effects]


def _finished(answers: list[Any]) -> Future[list[Any]]:
    future: Future[list[Any]] = Future()
    future.set_result(answers)
    return future


def _single(future: Future[Any]) -> Future[list[Any]]:
    """The answer of one request as that of a call with one."""
    call: Future[list[Any]] = Future()

    def pass_on(done: Future[Any]) -> None:
        if done.cancelled():
            call.cancel()
        elif error := done.exception():
            call.set_exception(error)
        else:
            call.set_result([done.result()])

    future.add_done_callback(pass_on)
    return call
