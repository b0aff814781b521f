"""Is search as fast as its model? Tokens per second in search, against plain `generate`, and with nothing shared.

    python benchmarks/search_tokens.py                       # the demo's model and a 46M one, on the CPU
    python benchmarks/search_tokens.py --models 0.5B --dtype bfloat16 --questions 256 --trees-in-flight 256

A whole search is timed, with its SQL, values and scheduling: generated tokens over wall time. Then the very batches it
asked for are given to `model.generate` as plain left-padded prompts, with as many rows as the search had candidates.
Then the search is run again with nothing shared: every candidate is a request of its own and no prefix is kept.

Models have random weights. So that steps end and trees grow, the head is biased towards the blank line (steps of 20
tokens on average, 48 at most), and the text of each candidate is replaced by a step that runs: what is computed is
what a trained model of this shape would compute.
"""

from __future__ import annotations

import argparse
import math
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from rstar_trl.config import SandboxConfig, SearchConfig
from rstar_trl.data.question import GoldResult
from rstar_trl.policy.from_scratch import build_base
from rstar_trl.policy.interface import Answer, Candidate, ProposeRequest, Refused
from rstar_trl.policy.tokens import DELIMITER, load_tokenizer
from rstar_trl.policy.transformers_engine import TransformersEngine, load_policy
from rstar_trl.search.effects import Task
from rstar_trl.search.scheduler import run_searches
from rstar_trl.search.tree import Tree
from rstar_trl.sql.sandbox import Sandbox

MODELS: dict[str, dict[str, Any]] = {
    "0.8M": {"hidden_size": 128, "num_hidden_layers": 3, "intermediate_size": 384, "num_attention_heads": 4},
    "46M": {"hidden_size": 576, "num_hidden_layers": 11, "intermediate_size": 1536, "num_attention_heads": 9},
    "0.5B": {"hidden_size": 896, "num_hidden_layers": 24, "intermediate_size": 4864, "num_attention_heads": 14},
}
CLAUSES = (
    "-- use the singer with the concerts of number {i}\nFROM singer AS t{i}",
    "-- keep the rows whose age is above {i} years\nWHERE t{p}.age > {i}",
    "-- one row for each name and age plus {i}\nGROUP BY name, age + {i}",
    "-- show the name and the count of number {i}\nSELECT name, COUNT(*) + {i}",
)
STEP_TOKENS, MEAN_STEP = 48, 20
WORDS = ("singer", "concert", "stadium", "name", "age", "city", "year", "title", "visitor", "ticket", "price", "album")


class Steps:
    """The engine's work with the script's words: each candidate's text is replaced by the next clause."""

    def __init__(self, engine: TransformersEngine, shared: bool):
        self.engine, self.shared = engine, shared
        self.batches: list[list[ProposeRequest]] = []

    def render(self, messages: list[dict[str, str]]) -> str:
        return ""

    def propose(self, requests: list[ProposeRequest]) -> list[Answer]:
        self.batches.append(requests)
        if self.shared:
            answers = self.engine.propose(requests)
        else:
            single = [replace(r, n=1, seed=r.seed + i) for r in requests for i in range(r.n)]
            found = iter(self.engine.propose(single))
            answers = [[c for _ in range(r.n) for c in _candidates(next(found))] for r in requests]
        return [
            [self._scripted(request, i, c) for i, c in enumerate(_candidates(answer))]
            for request, answer in zip(requests, answers, strict=True)
        ]

    def _scripted(self, request: ProposeRequest, number: int, candidate: Candidate) -> Candidate:
        depth = len(request.steps)
        table = request.steps[0][-1] if request.steps else ""
        text = CLAUSES[depth].format(i=number, p=table)
        return Candidate(text, candidate.logprob, candidate.tokens, "eos" if depth == len(CLAUSES) - 1 else "step")


def _candidates(answer: Answer) -> list[Candidate]:
    assert not isinstance(answer, Refused), answer
    return answer


@dataclass
class Bench:
    """One model with everything a search needs around it."""

    engine: TransformersEngine
    database: Path
    arguments: argparse.Namespace
    prompts: list[str] = field(default_factory=list)

    def clock(self) -> float:
        """Seconds."""
        return time.process_time() if self.arguments.cpu_time else time.perf_counter()

    def search(self, shared: bool) -> tuple[float, float, list[list[ProposeRequest]]]:
        """Generated tokens per second and trees per minute of a whole search, and the batches it asked for."""
        options = {} if shared else {"cache_bytes": 0, "rows_per_batch": 128 * self.arguments.candidates}
        engine = TransformersEngine(self.engine.model, self.engine.tokenizer, STEP_TOKENS, **options)
        steps, trees = Steps(engine, shared), list[Tree]()
        tasks = [
            Task(f"q{i}", "music", prompt, str(self.database), i, "train", GoldResult((("nobody",),)))
            for i, prompt in enumerate(self.prompts)
        ]
        config = SearchConfig(
            num_candidates=self.arguments.candidates,
            simulations=self.arguments.simulations,
            trees_in_flight=self.arguments.trees_in_flight,
        )
        with Sandbox(SandboxConfig()) as sandbox:
            started = self.clock()
            run_searches(tasks, config, steps, None, sandbox, trees.append)
            seconds = self.clock() - started
        tokens = sum(tree.generated_tokens for tree in trees)
        return tokens / seconds, 60 * len(trees) / seconds, steps.batches

    def generate(self, batches: list[list[ProposeRequest]]) -> float:
        """Generated tokens per second of `generate` on the same prompts, batch by batch."""
        tokenizer, model = self.engine.tokenizer, self.engine.model
        delimiter = tokenizer(DELIMITER)["input_ids"]
        ends = torch.tensor([*delimiter, tokenizer.eos_token_id], device=model.device)
        total, seconds = 0, 0.0
        for batch in batches:
            texts = [request.prompt + "".join(step + DELIMITER for step in request.steps) for request in batch]
            started = self.clock()
            inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False).to(model.device)
            with torch.inference_mode():
                rows = model.generate(
                    **{key: inputs[key] for key in ("input_ids", "attention_mask")},
                    do_sample=True,
                    top_k=0,
                    max_new_tokens=STEP_TOKENS,
                    num_return_sequences=batch[0].n,
                    eos_token_id=ends.tolist(),
                    pad_token_id=tokenizer.pad_token_id,
                )
            new = rows[:, inputs["input_ids"].shape[1] :]
            ended = torch.isin(new, ends).cumsum(1)
            total += int((ended - torch.isin(new, ends).int() == 0).sum())
            seconds += self.clock() - started
        return total / seconds


def main() -> None:
    """Prints a table row per model and prompt length."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=["0.8M", "46M"])
    parser.add_argument("--prompts", nargs="+", type=int, default=[50, 300, 600], help="tokens of a prompt")
    parser.add_argument("--questions", type=int, default=64)
    parser.add_argument("--trees-in-flight", type=int, default=32)
    parser.add_argument("--candidates", type=int, default=4)
    parser.add_argument("--simulations", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=1, help="runs of each, taken in turns; the best counts")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--cpu-time", action="store_true", help="count this process's CPU time (on a busy machine)")
    arguments = parser.parse_args()
    columns = ("search, tok/s", "trees/min", "`generate`, tok/s", "ratio", "not shared, tok/s", "ratio")
    print(f"| model | prompt | rows | {' | '.join(columns)} |")
    print("|---" * 9 + "|")
    for name in arguments.models:
        with benches(name, arguments) as bench:
            for length in arguments.prompts:
                bench.prompts = prompts(bench.engine.tokenizer, length, arguments.questions)
                print(row(name, length, bench, arguments), flush=True)


def row(name: str, length: int, bench: Bench, arguments: argparse.Namespace) -> str:
    """Measures the three in turns."""
    shared, plain, unshared = [], [], []
    for _ in range(arguments.repeats):
        *speeds, batches = bench.search(shared=True)
        shared.append(speeds)
        plain.append(bench.generate(batches))
        unshared.append(bench.search(shared=False)[0])
    (fast, trees), full, slow = max(shared), max(plain), max(unshared)
    rows = arguments.trees_in_flight * arguments.candidates
    numbers = (f"{fast:,.0f}", f"{trees:,.0f}", f"{full:,.0f}", f"{fast / full:.0%}", f"{slow:,.0f}")
    return f"| {' | '.join(map(str, (name, length, rows, *numbers)))} | {fast / slow:.1f}x |"


@contextmanager
def benches(name: str, arguments: argparse.Namespace) -> Iterator[Bench]:
    """A random model of the size, its tokenizer, and a small database."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        spec = {
            "architecture": "llama",
            "vocab_size": 2000,
            "max_position_embeddings": 4096,
            "tie_word_embeddings": True,
            **MODELS[name],
        }
        texts = [clause.format(i=i, p=i) + DELIMITER for clause in CLAUSES for i in range(10)]
        build_base(spec, [*texts, *WORDS, " ".join(WORDS)], folder, seed=0)
        model, tokenizer = load_policy(str(folder), arguments.dtype), load_tokenizer(str(folder))
        tokenizer.padding_side = "left"
        bias_towards_the_end(model, tokenizer)
        connection = sqlite3.connect(folder / "music.sqlite")
        connection.executescript(
            "CREATE TABLE singer (name TEXT, age INTEGER); INSERT INTO singer VALUES ('Ann', 50);"
        )
        connection.close()
        yield Bench(TransformersEngine(model, tokenizer, STEP_TOKENS), folder / "music.sqlite", arguments)


def bias_towards_the_end(model: Any, tokenizer: Any) -> None:
    """Makes the blank line about as likely as 1 in `MEAN_STEP` tokens."""
    (delimiter,) = tokenizer(DELIMITER)["input_ids"]
    bias = torch.zeros(model.config.vocab_size, device=model.device)
    bias[delimiter] = math.log(len(tokenizer) / MEAN_STEP)
    model.lm_head.register_forward_hook(lambda module, inputs, output: output + bias.to(output.dtype))


def prompts(tokenizer: Any, length: int, count: int) -> list[str]:
    """Texts of about `length` tokens, each different from its first word on."""
    found = []
    for number in range(count):
        words = [f"{number}"]
        while len(tokenizer(" ".join(words))["input_ids"]) < length:
            words += [WORDS[(number * 7 + len(words) * 5 + k) % len(WORDS)] for k in range(max(1, length // 20))]
        found.append(" ".join(words) + "\n")
    return found


if __name__ == "__main__":
    main()
