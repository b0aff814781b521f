"""Hostility in bulk: random queries through the sandbox on Spider databases; nothing may crash, hang, leak or change.

    python benchmarks/sql_hostility.py --spider /data/spider --queries 20000 --databases 20

Queries are gold queries mutated by sqlglot (near-misses, and subtrees put where they do not belong), text that was
cut, doubled or garbled, and the attacks of `tests/sql_attacks`, in random order from a seed. Reported: verdicts, the
longest answer against the limit, workers killed, memory of parent and workers at the end, and that every database is
byte-identical and no file has appeared. Exit code 1 if a promise is broken.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import sys
import time
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError

from rstar_trl.config import SandboxConfig
from rstar_trl.data.schema import introspect
from rstar_trl.errors import SqlError
from rstar_trl.io import file_digest
from rstar_trl.sql.execution import SqlJob
from rstar_trl.sql.near_misses import near_misses
from rstar_trl.sql.sandbox import Sandbox
from rstar_trl.sql.variants import columns_of

ATTACKS = Path(__file__).parents[1] / "tests/sql_attacks"
LATENCY_MARGIN = 1.0
"""Seconds past the limit that an answer may take."""


def main() -> None:
    """Runs the queries one by one, so that each has its own clock, and prints what came of them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--spider", type=Path, required=True, help="Spider's own folder")
    parser.add_argument("--queries", type=int, default=20_000)
    parser.add_argument("--databases", type=int, default=20)
    parser.add_argument("--timeout", type=float, default=0.3, help="seconds a query may take")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    generator = random.Random(arguments.seed)
    rows = json.loads((arguments.spider / "train_spider.json").read_text())
    names = generator.sample(sorted({row["db_id"] for row in rows}), arguments.databases)
    files = {name: arguments.spider / "database" / name / f"{name}.sqlite" for name in names}
    before = snapshot(files)
    # Made beforehand, so that what sqlglot keeps is not taken for a leak of the sandbox.
    made = list(islice(queries(rows, files, generator), arguments.queries))
    verdicts: Counter[str] = Counter()
    slowest, restarts, memory = 0.0, 0, []
    with Sandbox(SandboxConfig(workers=1, timeout=arguments.timeout, memory_mb=512)) as sandbox:
        pids = sandbox.pids
        for number, job in enumerate(made):
            started = time.perf_counter()
            (execution,) = sandbox.run([job])
            slowest = max(slowest, time.perf_counter() - started)
            verdicts[execution.verdict] += 1
            restarts += sandbox.pids != pids
            pids = sandbox.pids
            if number in (arguments.queries // 10, arguments.queries - 1):
                memory.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
        worker_memory = resident(pids[0])
    left = [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    print(
        f"{arguments.queries} queries on {len(files)} databases, limit {arguments.timeout:g} s, seed {arguments.seed}"
    )
    print("verdicts: " + ", ".join(f"{count} {verdict}" for verdict, count in verdicts.most_common()))
    print(f"slowest answer {slowest:.2f} s, workers replaced {restarts}")
    print(
        f"parent memory {memory[0]} MB after a tenth, {memory[-1]} MB at the end (its cache of results is bounded); "
        f"worker {worker_memory} MB"
    )
    broken = []
    if slowest > arguments.timeout + LATENCY_MARGIN:
        broken.append("an answer came late")
    if verdicts["infra"]:
        broken.append("a verdict is infra")
    if snapshot(files) != before:
        broken.append("a database or its folder has changed")
    if left:
        broken.append("a worker is left")
    print("broken: " + ", ".join(broken) if broken else "no promise broken")
    sys.exit(bool(broken))


def snapshot(files: dict[str, Path]) -> dict[str, str]:
    """Digests of all files in the folders of the databases."""
    return {str(path): file_digest(path) for file in files.values() for path in file.parent.iterdir()}


def queries(rows: list[dict[str, str]], files: dict[str, Path], generator: random.Random) -> Iterator[SqlJob]:
    """Endless random queries, most on the database that their words come from."""
    gold = [(row["db_id"], row["query"]) for row in rows if row["db_id"] in files]
    columns = {name: columns_of(introspect(path)) for name, path in files.items()}
    hostile = attacks()
    while True:
        name, sql = generator.choice(gold)
        draw = generator.random()
        if draw < 0.4:
            text = mutated(sql, columns[name], generator)
        elif draw < 0.6:
            text = transplanted(sql, generator.choice(gold)[1], generator)
        elif draw < 0.9:
            text = garbled(sql, generator)
        else:
            text = generator.choice(hostile)
        if generator.random() < 0.1:
            name = generator.choice(sorted(files))
        yield SqlJob(str(files[name]), text)


def mutated(sql: str, columns: dict[str, dict[str, str]], generator: random.Random) -> str:
    """One to three near-miss changes after one another."""
    for _ in range(generator.randint(1, 3)):
        try:
            found = near_misses(sql, columns)
        except SqlError:
            return sql
        if found:
            sql = generator.choice(found).sql
    return sql


def transplanted(sql: str, other: str, generator: random.Random) -> str:
    """A part of another query where a part of this one was."""
    try:
        tree, donor = (sqlglot.parse_one(text, dialect="sqlite").copy() for text in (sql, other))
        place = generator.choice([node for node in tree.walk() if node.parent is not None])
        place.replace(generator.choice([node for node in donor.walk() if isinstance(node, exp.Expression)]).copy())
        return tree.sql(dialect="sqlite")
    except (SqlglotError, ValueError, AttributeError, TypeError):
        return sql + " " + other


def garbled(sql: str, generator: random.Random) -> str:
    """Text cut, doubled, shuffled, or with odd characters in it."""
    place = generator.randrange(len(sql))
    words = sql.split()
    generator.shuffle(words)
    return generator.choice(
        [
            sql[:place],
            sql[place:],
            sql + " UNION ALL " + sql,
            " ".join(words),
            sql[:place] + generator.choice("();'\"\x00\ud800%*,é\U0001f600") + sql[place:],
            "(" * generator.randint(1, 200) + sql + ")" * generator.randint(1, 200),
            sql.replace("FROM", "FROM " + ", ".join(words[-1:] * 5) + ","),
            sql + ";" + sql,
        ]
    )


def attacks() -> list[str]:
    """The attacks on SQLite as they stand, without those that need placeholders."""
    texts = [path.read_text(encoding="utf-8") for path in sorted(ATTACKS.glob("sqlite_*.sql"))]
    bodies = [part.partition("\n")[2].strip() for text in texts for part in text.split("--- sqlite")[1:]]
    return [body for body in bodies if body and "{" not in body and "<<" not in body]


def resident(pid: int) -> int:
    """Resident memory of a process in MB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) // 1024
    return 0


if __name__ == "__main__":
    main()
