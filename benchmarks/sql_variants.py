"""How many near-misses of Spider's development queries are told from gold by one database, and by K variants of it.

    python benchmarks/sql_variants.py --spider /data/spider

A near-miss counts as not equivalent when the original, the pool that variants are chosen from, or a second pool of
`--witnesses` variants from another seed, which nothing is chosen from, tells it apart. So the last column cannot be
100 % by construction. Also checked: no gold query that is stable contradicts itself on any variant.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from rstar_trl.config import SandboxConfig
from rstar_trl.sql.sandbox import Sandbox
from rstar_trl.sql.variants import choose_variants, make_pool, tell_apart


def main() -> None:
    """Prints a Markdown table over K, summed over the databases."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--spider", type=Path, required=True, help="Spider's own folder")
    parser.add_argument("--per-db", type=int, default=8, help="the largest K")
    parser.add_argument("--witnesses", type=int, default=40, help="variants of the second pool")
    parser.add_argument("--databases", type=int, help="only so many databases")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rows = json.loads((arguments.spider / "dev.json").read_text())
    names = sorted({row["db_id"] for row in rows})[: arguments.databases]
    curve, total, contradictions = [0] * (arguments.per_db + 1), 0, 0
    with Sandbox(SandboxConfig(timeout=5)) as sandbox:
        for name in names:
            queries = list(dict.fromkeys(row["query"] for row in rows if row["db_id"] == name))
            database = arguments.spider / "database" / name / f"{name}.sqlite"
            found, alive, wrong = measure(database, queries, arguments, sandbox)
            curve = [a + b for a, b in zip(curve, found, strict=True)]
            total, contradictions = total + alive, contradictions + wrong
            print(f"{name}: {len(queries)} queries, {alive} near-misses, told apart {found}", flush=True)
    print("\n| databases | near-misses told apart | share |\n|---|---|---|")
    for count, value in enumerate(curve):
        label = "the original alone" if count == 0 else f"and {count} variants"
        print(f"| {label} | {value} of {total} | {100 * value / total:.1f} % |")
    print(f"\ngold queries contradicted by themselves: {contradictions}")


def measure(
    database: Path, queries: list[str], arguments: argparse.Namespace, sandbox: Sandbox
) -> tuple[list[int], int, int]:
    """Told apart by K = 0.., near-misses that are not equivalent, and gold queries that contradict themselves."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        chosen = choose_variants(database, queries, arguments.per_db, folder / "chosen", sandbox, arguments.seed)
        witnesses = make_pool(database, queries, arguments.witnesses, folder / "witnesses", arguments.seed + 1)
        apart = tell_apart(chosen.pairs, [database, *chosen.files, *witnesses], sandbox)
        found = [len(set().union(*apart[: count + 1])) for count in range(arguments.per_db + 1)]
        alive = chosen.distinguishable.union(*apart)
        stable = list(dict.fromkeys(gold for gold, _ in chosen.pairs))
        # Another text, so that it is run again and not looked up.
        itself = [(sql, f"{sql} ") for sql in stable]
        wrong = set[int]().union(*tell_apart(itself, [database, *chosen.files], sandbox))
    return found, len(alive), len(wrong)


if __name__ == "__main__":
    main()
