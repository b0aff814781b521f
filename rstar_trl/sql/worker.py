"""The child's side of the sandbox: reads batches of queries from stdin, runs them, answers each on stdout.

Guarantees: only the standard library is imported at the start, so that a killed worker is replaced in tens of
milliseconds (an engine's package, and the parser that words a rejection, when they are first needed); the process ends
when its stdin closes, that is, when the parent is gone. Does not guarantee an end by itself within the
time limit (the parent kills), only that CPU time beyond the limits of its batch ends it. Python code here can neither
use the network nor start a process; C code could (PostgreSQL's client must), and is kept from it by what each engine
refuses.

Frames, both ways: 4 bytes of little-endian length, then marshal data (plain tuples; nothing in it can run code).
To the child: `[(database, sql, probe), ...]`. From the child: None when it is ready, then one `Reply` a query, in
order, each sent at once: the query without an answer is therefore the one that hung or killed the worker. Between True
and the next None the worker imports a package, which on a busy machine takes longer than many a query may.
"""

from __future__ import annotations

import marshal
import os
import resource
import sys
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any, BinaryIO, TypeVar

from rstar_trl.data.databases import Dialect, dialect_of
from rstar_trl.sql.engine import DatabaseUnusable, Engine, Limits, Reply, open_engine

T = TypeVar("T")

EXPLAINED_LENGTH = 10_000
OPEN_FILES = 32

# What a worker never does; audit events, raised by the interpreter itself (PEP 578), and a hook cannot be taken back.
_FORBIDDEN_EVENTS = ("socket.", "subprocess.", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.system", "pty.")

HEADER_BYTES = 4
MARSHAL_VERSION = 2  # Later versions track shared objects, which costs time and saves nothing on rows.


def frame(message: Any) -> bytes:
    """A message as it travels."""
    payload = marshal.dumps(message, MARSHAL_VERSION)
    return len(payload).to_bytes(HEADER_BYTES, "little") + payload


def write_all(descriptor: int, data: bytes) -> None:
    """Writes every byte, or raises `OSError` (`BrokenPipeError` when nobody reads)."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def main(arguments: list[str]) -> None:
    """Serves until stdin closes. Arguments: the four `Limits` as text, then folders of installed packages."""
    timeout, max_rows, max_bytes, memory_mb, *packages = arguments
    # Last on the path: nothing there can stand in for a module of the standard library.
    sys.path += packages
    limits = Limits(float(timeout), int(max_rows), int(max_bytes), int(memory_mb))
    _restrict(limits)
    engines: dict[Dialect, Engine] = {}
    try:
        write_all(1, frame(None))
        with open(0, "rb") as requests:
            while batch := _receive(requests):
                _allow_cpu(limits.timeout * len(batch))
                for database, sql, probe in batch:
                    write_all(1, _answer(engines, limits, database, sql, probe))
    except BrokenPipeError:
        sys.exit(0)


def _answer(engines: dict[Dialect, Engine], limits: Limits, database: str, sql: str, probe: bool) -> bytes:
    dialect = dialect_of(database)
    try:
        if dialect not in engines:
            engines[dialect] = _patiently(lambda: open_engine(dialect, limits))
        reply = _explained(engines[dialect].run(database, sql, probe), sql, dialect)
        return frame(reply)
    except DatabaseUnusable as problem:
        return frame(("infra", None, (), str(problem), 0.0, ""))
    except MemoryError:
        return frame(("memory", None, (), "the result does not fit into the worker's memory", 0.0, ""))


def _explained(reply: Reply, sql: str, dialect: Dialect) -> Reply:
    """SQLite's rejections in the words of the policy, whose parser runs here, where it can be killed.

    The other engines word their own.
    """
    if dialect != "sqlite" or reply[0] != "rejected" or len(sql) > EXPLAINED_LENGTH:
        return reply
    from rstar_trl.sql.policy import violation

    if "sqlglot" not in sys.modules:
        _patiently(lambda: import_module("sqlglot"))
    return (*reply[:3], violation(sql, dialect) or reply[3], *reply[4:])


def _patiently(start: Callable[[], T]) -> T:
    """Does what is no query's fault, and has the parent wait for it."""
    write_all(1, frame(True))
    try:
        return start()
    finally:
        write_all(1, frame(None))


def _receive(requests: BinaryIO) -> list[tuple[str, str, bool]] | None:
    header = requests.read(HEADER_BYTES)
    if len(header) < HEADER_BYTES:
        return None
    return marshal.loads(requests.read(int.from_bytes(header, "little")))


def _restrict(limits: Limits) -> None:
    """Takes away what no query needs: memory beyond the limit, writing to files, core dumps, descriptors, network."""
    memory = limits.memory_mb * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, OPEN_FILES))
    sys.addaudithook(_refuse)


def _refuse(event: str, _: tuple[Any, ...]) -> None:
    if event.startswith(_FORBIDDEN_EVENTS):
        raise PermissionError(f"a sandbox worker uses no network and starts no process ({event})")


def _allow_cpu(seconds: float) -> None:
    """Counted anew for each batch: the limit is on the process, and a worker that lives for days has used a lot."""
    limit = int(time.process_time() + seconds) + 2
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))
