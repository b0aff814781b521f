"""Is self-evolution real, and does search pay? One command, several seeds, two controls.

    python benchmarks/self_evolution.py recipes/quickstart.yaml --seeds 0 1 2 --out runs/benchmark

For every seed, the recipe as it stands (its last round answers by every method, on all evaluation questions), and two
controls that never search: `cold`, trained on the labelled fraction of the SQL, and `ceiling`, on all of it. Both are
trained like the last round's policy: from the same kind of base, for as many steps as it has behind it. Where the cold
start itself is, it is the control `cold`. Prints Markdown tables for docs/results.md. Finished stages are kept, so the
command may be given again.

Every run is one process with one thread, `--jobs` of them side by side, with the batch that all processes of the
recipe's accelerate config would make together.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rstar_trl.config import Recipe
from rstar_trl.evolution.dry_run import machine
from rstar_trl.evolution.recipe import LoadedRecipe, load_recipe

METHODS = ("greedy", "majority", "best_of_n", "mcts")


def main() -> None:
    """Runs what is missing and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark"))
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time, one thread each")
    parser.add_argument("--tables-only", action="store_true", help="print the tables of the seeds that are finished")
    arguments = parser.parse_args()
    loaded = load_recipe(arguments.recipe)
    if not arguments.tables_only:
        runs = [run for seed in arguments.seeds for run in settings(loaded, seed, arguments.out / f"seed-{seed}")]
        with ThreadPoolExecutor(arguments.jobs) as pool:
            failed = sum(pool.map(lambda run: evolve(arguments.recipe, run), runs))
        if failed:
            sys.exit(f"{failed} runs failed; their logs say why. Give the same command again to go on.")
    print(tables([arguments.out / f"seed-{seed}" for seed in arguments.seeds], len(loaded.recipe.rounds)))


def settings(loaded: LoadedRecipe, seed: int, out: Path) -> list[dict[str, object]]:
    """What the recipe and its two controls change, as `--set` assignments."""
    recipe, processes = loaded.recipe, machine(loaded.accelerate_config).processes
    common: dict[str, object] = {"seed": seed, "data.seed": seed, "evaluation.questions": "null"}
    common["accelerate_config"] = "null"
    # A setting below `pretrain` would give the stage to a recipe that has none.
    for name in ("sft", "ppm", *(["pretrain"] if recipe.pretrain else [])):
        key = "per_device_train_batch_size"
        common[f"{name}.{key}"] = processes * int(getattr(recipe, name).get(key, 8))
    runs = [{**common, "output_dir": out / "evolved", "evaluation.rounds": "last"}]
    control = {**common, "rounds": "[]", "evaluation.methods": "[greedy]", "sft.max_steps": trained_steps(recipe)}
    if trained_steps(recipe) != int(recipe.sft["max_steps"]):
        runs.append({**control, "output_dir": out / "cold"})
    return [*runs, {**control, "output_dir": out / "ceiling", "data.label_fraction": 1.0}]


def trained_steps(recipe: Recipe) -> int:
    """SFT steps that the last round's policy has behind it."""
    steps = int(recipe.sft["max_steps"])
    for each in recipe.rounds:
        own = int(each.sft.get("max_steps", recipe.sft["max_steps"]))
        steps = steps + own if each.init == "previous" else own
    return steps


def evolve(path: Path, assignments: dict[str, object]) -> bool:
    """Runs the recipe with some settings changed to its end; its output goes into `<output_dir>.log`."""
    command = [sys.executable, "-m", "rstar_trl", "evolve", str(path), "--in-process"]
    command += [part for key, value in assignments.items() for part in ("--set", f"{key}={value}")]
    log = Path(f"{assignments['output_dir']}.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    print(f"{assignments['output_dir']}: started", flush=True)
    with log.open("a", encoding="utf-8") as file:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        failed = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=environment).returncode != 0
    print(f"{assignments['output_dir']}: {'failed, see ' + str(log) if failed else 'finished'}", flush=True)
    return failed


def tables(folders: list[Path], rounds: int) -> str:
    """Two Markdown tables: greedy accuracy by round against the controls, and the methods of the last round."""
    done = [folder for folder in folders if (folder / "ceiling/round-0/eval/metrics.json").exists()]
    by_round = [[greedy(folder / "evolved", number) for folder in done] for number in range(rounds + 1)]
    cold = [greedy(folder / ("cold" if (folder / "cold").exists() else "evolved"), 0) for folder in done]
    ceiling = [greedy(folder / "ceiling", 0) for folder in done]
    gaps = [(last - low) / (high - low) for last, low, high in zip(by_round[-1], cold, ceiling, strict=True)]
    lines = ["| policy, greedy | " + " | ".join(folder.name for folder in done) + " | mean | spread |"]
    lines.append("|---" * (len(done) + 3) + "|")
    for number, values in enumerate(by_round):
        lines.append(row(f"round {number}" + (" (cold start)" if number == 0 else ""), values))
    lines += [row("control: cold start", cold), row("control: all SQL labels", ceiling)]
    lines += [row("share of the gap closed", gaps), ""]
    lines.append(
        "| last round | " + " | ".join(folder.name for folder in done) + " | mean | spread | tokens/question |"
    )
    lines.append("|---" * (len(done) + 4) + "|")
    last = [json.loads((folder / f"evolved/round-{rounds}/eval/metrics.json").read_text()) for folder in done]
    for method in METHODS:
        tokens = statistics.mean(metrics[method]["tokens_per_question"] for metrics in last)
        values = [metrics[method]["execution_accuracy"] for metrics in last]
        lines.append(row(method, values) + f" {tokens:.0f} |")
    return "\n".join(lines)


def greedy(folder: Path, number: int) -> float:
    """Greedy execution accuracy of a round."""
    metrics = json.loads((folder / f"round-{number}/eval/metrics.json").read_text())
    return float(metrics["greedy"]["execution_accuracy"])


def row(name: str, values: list[float]) -> str:
    """One table row in percent, with mean and spread (highest minus lowest)."""
    cells = [f"{100 * value:.1f}" for value in [*values, statistics.mean(values), max(values) - min(values)]]
    return f"| {name} | " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
