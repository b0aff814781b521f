"""More search, better SQL? Accuracy against simulations and against tokens, for every algorithm, on a finished run.

    python benchmarks/search_scaling.py runs/benchmark/seed-*/evolved --out runs/scaling --plot docs/scaling.png

Takes run folders that `evolve` finished (one for each training seed; or one with `--seeds 0 1 2`, search seeds) and
answers their evaluation questions with the last round's policy and PPM. The size of a search is its simulations for
the tree searches, the samples for majority and best-of-N, and the width for beam search. Trees are kept in `--out`, so
the command may be given again; prints Markdown tables for docs/results.md.
"""

from __future__ import annotations

import argparse
import re
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rstar_trl.config import SearchConfig
from rstar_trl.evaluation.evaluate import measure
from rstar_trl.evolution.ask import Asked, find_model
from rstar_trl.evolution.recipe import load_recipe
from rstar_trl.evolution.run_data import RunData, load_data, sample
from rstar_trl.search.answers import choose_answer
from rstar_trl.trajectories.store import read_trees

ALGORITHMS: dict[str, tuple[str, dict[str, Any], str]] = {
    "mcts": ("simulations", {"algorithm": "mcts", "widening": 0.3}, ""),
    "mcts, uct": ("simulations", {"algorithm": "mcts", "widening": 0.3, "selection": "uct"}, ""),
    "mcts, each node asked once": ("simulations", {"algorithm": "mcts", "widening": None}, ""),
    "mcts, reference": ("simulations", {"algorithm": "mcts", "widening": None, "reference": True}, ""),
    "beam": ("beam_width", {"algorithm": "beam"}, ""),
    "majority": ("num_candidates", {"algorithm": "sample"}, "majority"),
    "best_of_n": ("num_candidates", {"algorithm": "sample"}, "ppm"),
    "greedy": ("num_candidates", {"algorithm": "greedy"}, "majority"),
}
"""By name: the setting that is its size, its others, and how it answers (if empty, as the run's search does)."""


@dataclass(frozen=True)
class Point:
    """One algorithm at one size on one run: accuracy in percent, generated tokens per question."""

    algorithm: str
    size: int
    accuracy: float
    tokens: float


def main() -> None:
    """Answers what is missing, prints the tables and draws the plot."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", help="finished run folders")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--algorithms", nargs="+", choices=list(ALGORITHMS), default=list(ALGORITHMS))
    parser.add_argument("--questions", type=int, help="only so many evaluation questions")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="seeds of the search")
    parser.add_argument("--out", type=Path, default=Path("runs/scaling"))
    parser.add_argument("--plot", type=Path, help="write the curves to this file (needs matplotlib)")
    arguments = parser.parse_args()
    points = [point for run in arguments.runs for point in measured(run, arguments)]
    print(table(points, arguments.sizes, lambda point: point.accuracy, "execution accuracy, %"))
    print(table(points, arguments.sizes, lambda point: point.tokens, "tokens per question"))
    if arguments.plot:
        draw(points, arguments.plot)


def measured(run: Path, arguments: argparse.Namespace) -> Iterator[Point]:
    """All points of one run."""
    from rstar_trl.policy.ppm_scorer import PPMScorer
    from rstar_trl.policy.prompting import Prompter
    from rstar_trl.policy.transformers_engine import TransformersEngine
    from rstar_trl.sql.sandbox import Sandbox

    asked, data = find_model(run), load_data(run / "data")
    model, seed = asked.model, load_recipe(run / "recipe.yaml").recipe.data.seed
    questions = sample(data.eval, arguments.questions, seed)
    engine = TransformersEngine.load(
        str(asked.policy), model.dtype, model.trust_remote_code, asked.search.max_step_tokens
    )
    scorer = PPMScorer.load(str(asked.ppm), model.dtype, model.trust_remote_code) if asked.ppm else None
    with Sandbox(asked.sandbox) as sandbox:
        tools = {
            "engine": engine,
            "scorer": scorer,
            "sandbox": sandbox,
            "prompter": Prompter(data.databases, asked.prompt, engine.render),
        }
        for search_seed in arguments.seeds:
            for name in arguments.algorithms:
                for size in [1] if name == "greedy" else arguments.sizes:
                    if scorer is not None or name != "best_of_n":
                        folder = arguments.out / "-".join([*run.parts[-2:], str(search_seed)])
                        yield answer(name, size, questions, asked, data, tools, search_seed, folder)


def answer(
    name: str, size: int, questions: list, asked: Asked, data: RunData, tools: dict, seed: int, folder: Path
) -> Point:
    """Searches the questions by one algorithm at one size, as far as that is not done, and judges the answers."""
    from rstar_trl.search.run import search_questions

    setting, others, how = ALGORITHMS[name]
    config: SearchConfig = replace(asked.search, stop_when_solved=None, **others, **{setting: size})
    # Majority and best-of-N read the same samples.
    kind = config.algorithm if how else re.sub(r"\W+", "-", name)
    out = folder / f"{kind}-{size}.jsonl"
    search_questions(
        questions, **tools, databases=data.databases, config=config, mode="inference", seed=seed, out=out,
        dialect=data.dialect,
    )  # fmt: skip
    picked: Any = how or config.answer
    chosen = [(tree, choose_answer(tree, picked, config.value_scale)) for tree in read_trees([out])]
    found = measure(questions, chosen, tools["sandbox"], data.databases, data.dialect)
    tokens = statistics.mean(tree.generated_tokens for tree, _ in chosen)
    point = Point(name, size, 100 * found["execution_accuracy"], tokens)
    print(f"{folder.name}: {name} {size}: {point.accuracy:.1f} %, {tokens:.0f} tokens", flush=True)
    return point


def table(points: list[Point], sizes: list[int], value: Any, title: str) -> str:
    """Rows are algorithms, columns sizes; each cell the mean over runs and seeds, and their spread where several."""
    lines = ["", f"| {title} | " + " | ".join(map(str, sizes)) + " |", "|---" * (len(sizes) + 1) + "|"]
    for name in dict.fromkeys(point.algorithm for point in points):
        cells = []
        for size in sizes:
            found = [value(point) for point in points if (point.algorithm, point.size) == (name, size)]
            spread = f" ± {(max(found) - min(found)) / 2:.1f}" if len(found) > 1 else ""
            cells.append(f"{statistics.mean(found):.1f}{spread}" if found else "")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(points: list[Point], path: Path) -> None:
    """Accuracy against size and against tokens, a curve for each algorithm."""
    from matplotlib import pyplot

    figure, (by_size, by_tokens) = pyplot.subplots(1, 2, figsize=(11, 4.5), sharey=True)
    for name in dict.fromkeys(point.algorithm for point in points):
        sizes = sorted({point.size for point in points if point.algorithm == name})
        groups = [[p for p in points if (p.algorithm, p.size) == (name, size)] for size in sizes]
        accuracy = [statistics.mean(point.accuracy for point in group) for group in groups]
        tokens = [statistics.mean(point.tokens for point in group) for group in groups]
        by_size.plot(sizes, accuracy, marker="o", label=name)
        by_tokens.plot(tokens, accuracy, marker="o", label=name)
    by_size.set(xscale="log", xlabel="simulations, samples or width", ylabel="execution accuracy, %")
    by_tokens.set(xscale="log", xlabel="generated tokens per question")
    by_tokens.legend()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
