"""The sandbox against a bare in-process `sqlite3` loop, on all of Spider's queries: rates per second.

    python benchmarks/sql_speed.py --spider /data/spider

Three rates: the loop, the sandbox with one worker, and with two; each the best of `--repeats`, since other work on the
machine only slows them. Then a query that was asked before, one call a query, answered from the cache. The loop opens
each database once, decodes text as the sandbox does and fetches every row; nothing protects it.
"""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from rstar_trl.config import SandboxConfig
from rstar_trl.sql.execution import SqlJob
from rstar_trl.sql.sandbox import Sandbox

CACHED_CALLS = 50_000


def main() -> None:
    """Prints one line per rate."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--spider", type=Path, required=True, help="Spider's own folder")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each, the best counts")
    parser.add_argument("--limit", type=int, help="only so many queries")
    arguments = parser.parse_args()
    jobs = spider_jobs(arguments.spider)[: arguments.limit]
    bare = best(lambda: rate(len(jobs), partial(loop, jobs)), arguments.repeats)
    print(f"{len(jobs)} distinct queries, {os.cpu_count()} cores, best of {arguments.repeats}")
    print(f"bare sqlite3 loop: {bare:,.0f} queries/s")
    single = best(lambda: sandboxed(jobs, 1), arguments.repeats)
    print(f"sandbox, 1 worker: {single:,.0f} queries/s, {100 * single / bare:.0f} % of the loop")
    double = best(lambda: sandboxed(jobs, 2), arguments.repeats)
    print(f"sandbox, 2 workers: {double:,.0f} queries/s, {double / single:.2f} times one worker")
    print(f"cache, one call a query: {cached(jobs[0]):,.0f} queries/s")


def spider_jobs(folder: Path) -> list[SqlJob]:
    """Every gold query once, on its database."""
    rows = [row for name in ("train_spider", "dev") for row in json.loads((folder / f"{name}.json").read_text())]
    jobs = (SqlJob(str(folder / "database" / r["db_id"] / f"{r['db_id']}.sqlite"), r["query"]) for r in rows)
    return list(dict.fromkeys(jobs))


def loop(jobs: list[SqlJob]) -> None:
    """What one would write without a sandbox."""
    connections: dict[str, sqlite3.Connection] = {}
    for job in jobs:
        if job.database not in connections:
            connection = sqlite3.connect(f"file:{job.database}?mode=ro", uri=True)
            connection.text_factory = partial(str, encoding="utf-8", errors="replace")
            connections[job.database] = connection
        connections[job.database].execute(job.sql).fetchall()
    for connection in connections.values():
        connection.close()


def sandboxed(jobs: list[SqlJob], workers: int) -> float:
    """The rate of a new sandbox, its workers started before the clock."""
    with Sandbox(SandboxConfig(workers=workers, timeout=30)) as sandbox:
        sandbox.run([SqlJob(jobs[0].database, f"SELECT {number}") for number in range(64)])
        return rate(len(jobs), lambda: sandbox.run(jobs))


def cached(job: SqlJob) -> float:
    """The rate of asking one query again and again."""
    with Sandbox(SandboxConfig()) as sandbox:
        sandbox.run([job])

        def ask() -> None:
            for _ in range(CACHED_CALLS):
                sandbox.run([job])

        return rate(CACHED_CALLS, ask)


def rate(count: int, work: Callable[[], object]) -> float:
    """`count` per second of what `work` takes."""
    started = time.perf_counter()
    work()
    return count / (time.perf_counter() - started)


def best(measure: Callable[[], float], repeats: int) -> float:
    """The highest of several measurements."""
    return max(measure() for _ in range(repeats))


if __name__ == "__main__":
    main()
