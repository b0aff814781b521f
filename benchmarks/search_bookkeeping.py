"""What search costs beside model and database: node expansions per second on one core, and bytes per node.

    python benchmarks/search_bookkeeping.py

A policy and a database that answer at once, so that all time is the search's own: selection, reading and merging
steps, composing the query of every prefix, values, and the scheduler with its threads. All trees are in flight
together. A *node expansion* is one node joined to its tree. Step texts come from a pool that all trees share, as
sibling trees about one database do, so each is parsed once; `--distinct` makes every text new to show what parsing
costs on top (it belongs to SQL, not to bookkeeping, and is done once per text).

Memory is the growth of the process up to its peak, over the nodes; their texts (the step and the query of its prefix)
are counted apart.
"""

from __future__ import annotations

import argparse
import gc
import resource
import sys
import time
from collections.abc import Sequence
from itertools import count

from rstar_trl.config import SearchConfig
from rstar_trl.data.question import GoldResult
from rstar_trl.policy.interface import Answer, Candidate, ProposeRequest
from rstar_trl.search.effects import Task
from rstar_trl.search.scheduler import run_searches
from rstar_trl.search.tree import Tree
from rstar_trl.sql.execution import Execution, SqlJob

CLAUSES = ("FROM t{}", "WHERE a > {}", "GROUP BY a, b + {}", "HAVING COUNT(*) > {}")
DONE = Execution("ok", ((1,),), ("a",))


class FreePolicy:
    """Answers at once: the next clause, `n` ways; a SELECT ends."""

    def __init__(self, distinct: bool):
        self.fresh = count() if distinct else None
        self.pool: dict[tuple[int, int], list[Candidate]] = {}

    def render(self, messages: list[dict[str, str]]) -> str:
        return ""

    def propose(self, requests: list[ProposeRequest]) -> list[Answer]:
        return [self._answer(len(request.steps), request.n) for request in requests]

    def _answer(self, depth: int, n: int) -> Answer:
        if self.fresh is not None:
            return self._candidates(depth, [next(self.fresh) for _ in range(n)])
        if (depth, n) not in self.pool:
            self.pool[depth, n] = self._candidates(depth, list(range(n)))
        return list(self.pool[depth, n])

    def _candidates(self, depth: int, numbers: list[int]) -> list[Candidate]:
        if depth == len(CLAUSES):
            return [Candidate(f"-- show a\nSELECT a + {i}", -1.0 - i % 7, 9, "eos") for i in numbers]
        return [Candidate(f"-- go on\n{CLAUSES[depth].format(i)}", -1.0 - i % 7, 9, "step") for i in numbers]


class FreeDatabase:
    """Every query runs, and gives one row."""

    size = 1

    def run(self, jobs: Sequence[SqlJob], *, workers: int | None = None) -> list[Execution]:
        return [DONE] * len(jobs)


def main() -> None:
    """Prints a table row per setting."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trees", type=int, default=1000)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--candidates", type=int, default=4)
    parser.add_argument("--parallel", type=int, default=1, help="simulations of one tree at once")
    parser.add_argument("--distinct", action="store_true", help="every step text is new and must be parsed")
    arguments = parser.parse_args()
    before = peak()
    started = time.process_time()
    trees = grow(arguments)
    seconds = time.process_time() - started
    nodes = sum(len(tree) - 1 for tree in trees)
    grown = peak() - before
    text = sum(sys.getsizeof(t) for tree in trees for column in (tree.text, tree.sql) for t in column)
    expanded = sum(len(set(tree.parent)) - 1 for tree in trees)
    print("| trees | nodes | nodes/s | expanded nodes/s | peak MB | bytes/node | beside text |")
    print("|---" * 7 + "|")
    print(
        f"| {len(trees)} | {nodes} | {nodes / seconds:,.0f} | {expanded / seconds:,.0f} | {peak() / 2**20:,.0f} | "
        f"{grown / nodes:,.0f} | {(grown - text) / nodes:,.0f} |"
    )


def grow(arguments: argparse.Namespace) -> list[Tree]:
    """Grows all trees at once, to about `nodes` nodes each, and keeps them."""
    per_question = {"database": "free", "seed": 0, "mode": "train", "gold": GoldResult(((2,),))}
    tasks = [Task(f"q{i}", "free", f"question {i}\n", **per_question) for i in range(arguments.trees)]  # type: ignore[arg-type]
    config = SearchConfig(
        num_candidates=arguments.candidates,
        simulations=arguments.nodes,
        max_tokens=9 * arguments.nodes,
        parallel_simulations=arguments.parallel,
        trees_in_flight=arguments.trees,
    )
    trees: list[Tree] = []
    gc.freeze()
    run_searches(tasks, config, FreePolicy(arguments.distinct), None, FreeDatabase(), trees.append)
    return trees


def peak() -> int:
    """The highest resident size of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
