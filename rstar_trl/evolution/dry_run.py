"""What a run would do, how long it might take and how much disk it needs, without doing any of it.

The counts are exact where the data is on this machine. The estimate is good to a factor of about three: it knows the
sizes of the model and of the data and assumes the round figures below for everything else; it prints them.
"""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rstar_trl.config import Recipe, SearchConfig
from rstar_trl.errors import RStarError
from rstar_trl.evolution.launch import launch_line
from rstar_trl.evolution.plan import plan
from rstar_trl.evolution.recipe import LoadedRecipe, evaluation_search, round_search
from rstar_trl.progress import duration

STEP_TOKENS = 16
TRAJECTORY_STEPS = 4
PROMPT_TOKENS = 300
CHARACTERS_PER_TOKEN = 4
TREE_BYTES = 12_000
CPU_FLOPS = 1e11
GPU_FLOPS = 1e14
CPU_TOKENS = 4_000.0
GPU_TOKENS = 10_000.0
EPOCHS = 3.0
"""Default of the trainers, as is a batch of 8."""

PUBLISHED = {"spider": (7_000, 1_034), "bird": (9_428, 1_534)}
"""Training and evaluation questions of data sets that are not on this machine."""


@dataclass(frozen=True)
class Machine:
    """Processes of a launch and whether they compute on the CPU."""

    processes: int
    cpu: bool


def describe(loaded: LoadedRecipe) -> str:
    """The resolved plan as text: question counts, every stage with its launch line, the estimate."""
    recipe = loaded.recipe
    data, counted = _measure(recipe)
    lines = [f"Recipe {recipe.name} ({loaded.path}), run folder {recipe.output_dir}", counted, "", "Stages:"]
    for stage in plan(recipe):
        how = launch_line(loaded, stage) if stage.launched else "(in the process of `evolve`)"
        lines.append(f"  {stage.name:<16} {how}")
    lines += ["", "Resolved settings:"]
    engine = recipe.engine
    if engine.model is not None:
        lines.append(f"  {engine.model} answers as it stands ({engine.kind}); nothing is trained")
        return "\n".join([*lines, "", *_baseline_estimate(recipe, data), ""])
    if recipe.bootstrap == "few_shot":
        lines.append(f"  round 0: learns from {recipe.few_shot.model}, whose search is not in the estimate")
    for number in range(1, len(recipe.rounds) + 1):
        settings, search = recipe.rounds[number - 1], round_search(recipe, number)
        lines.append(
            f"  round {number}: guide {settings.guide}, {settings.only} questions, train from {settings.init}, "
            f"{search.simulations} simulations x {search.num_candidates} candidates"
        )
    return "\n".join([*lines, "", *_estimate(loaded, data), ""])


def parameters(recipe: Recipe) -> float | None:
    """Parameters of the base model, from its shape or from the size in its name (`...-1.5B`); None when unknown."""
    spec = recipe.model.from_scratch
    if spec is None:
        size = re.search(r"(\d+(?:\.\d+)?)([bm])(?![a-z])", str(recipe.model.name_or_path).lower())
        return float(size[1]) * (1e9 if size[2] == "b" else 1e6) if size else None
    hidden, layers = int(spec.get("hidden_size", 256)), int(spec.get("num_hidden_layers", 4))
    inner = int(spec.get("intermediate_size", 4 * hidden))
    embeddings = int(spec.get("vocab_size", 2000)) * hidden * (1 if spec.get("tie_word_embeddings") else 2)
    return float(embeddings + layers * (4 * hidden**2 + 3 * hidden * inner))


def machine(config: Path | None) -> Machine:
    """What an accelerate config file asks for; without one, accelerate's default is taken to be one GPU."""
    settings: dict[str, Any] = yaml.safe_load(config.read_text(encoding="utf-8")) if config else {}
    return Machine(int(settings.get("num_processes", 1)), bool(settings.get("use_cpu", False)))


@dataclass(frozen=True)
class _Size:
    """What the data asks for: questions and the tokens of a prompt."""

    train: int
    evaluation: int
    prompt_tokens: int = PROMPT_TOKENS


def _measure(recipe: Recipe) -> tuple[_Size | None, str]:
    """The size of the data with a sentence about it; the published size where the data is not on this machine."""
    from rstar_trl.data.databases import is_there
    from rstar_trl.data.loaders import load_corpus
    from rstar_trl.policy.prompting import Prompter

    data = recipe.data
    try:
        with tempfile.TemporaryDirectory() as scratch:
            corpus = load_corpus(data, Path(scratch))
            prompter = Prompter(corpus.databases, recipe.prompt)
            texts = [prompter.prompt(q) for q in corpus.train if is_there(corpus.databases[q.db_id])][:20]
    except RStarError as error:
        if data.source not in PUBLISHED:
            return None, f"Questions: not counted, the data cannot be loaded here: {error}"
        train, held_out = PUBLISHED[data.source]
        size = _Size(
            min(train, data.train_size or train), _evaluated(recipe, min(held_out, data.eval_size or held_out))
        )
        return size, f"Questions: {size.train} to train and {size.evaluation} to evaluate, as published; {error}"
    train, held_out, databases = len(corpus.train), len(corpus.eval), len(corpus.databases)
    labelled = max(1, round(train * data.label_fraction))
    tokens = sum(map(len, texts)) // max(1, len(texts)) // CHARACTERS_PER_TOKEN
    text = f"Questions: {train} to train ({labelled} keep their SQL), {held_out} to evaluate, {databases} databases"
    return _Size(train, _evaluated(recipe, held_out), tokens), text


def _evaluated(recipe: Recipe, held_out: int) -> int:
    return min(held_out, recipe.evaluation.questions or held_out)


def _estimate(loaded: LoadedRecipe, data: _Size | None) -> list[str]:
    recipe, size = loaded.recipe, parameters(loaded.recipe)
    if data is None or size is None:
        return ["Estimate: none, " + ("the data is not here." if size else "the model's name does not tell its size.")]
    where, rounds = machine(loaded.accelerate_config), len(recipe.rounds)
    flops = (CPU_FLOPS if where.cpu else GPU_FLOPS) * (1 if where.cpu else where.processes)
    # Small models are bound by overhead, large ones by their weights.
    speed = CPU_TOKENS * min(1, 1e6 / size) ** 0.5 if where.cpu else GPU_TOKENS * where.processes / max(1, size / 1e9)
    searched = sum(
        data.train * _tokens(round_search(recipe, number)) / (3 if recipe.rounds[number - 1].only == "unsolved" else 1)
        for number in range(1, rounds + 1)
    )
    measured = data.evaluation * 3 * _tokens(evaluation_search(recipe))
    trained = (rounds + 1) * _training_tokens(recipe.sft, data) + rounds * 2 * _training_tokens(recipe.ppm, data)
    seconds = {
        "search": searched / speed,
        "training": 6 * size * trained / flops,
        "evaluation": measured * (rounds + 1 if recipe.evaluation.rounds == "all" else 1) / speed,
    }
    weights = size * (2 if "16" in recipe.model.dtype else 4)
    disk = (2 * rounds + 2) * weights * 4 + rounds * data.train * TREE_BYTES
    parts = ", ".join(f"{name} {duration(value)}" for name, value in seconds.items())
    return [
        f"Estimate (to a factor of three): {duration(sum(seconds.values()))} ({parts}); disk {disk / 1e9:.1f} GB.",
        f"  It assumes {size / 1e6:.1f} M parameters, {where.processes} {'CPU' if where.cpu else 'GPU'} process(es), "
        f"{speed:.0f} generated tokens/s and {flops:.0e} training FLOP/s in all,",
        f"  {data.prompt_tokens} tokens a prompt, {STEP_TOKENS} tokens a step, {TRAJECTORY_STEPS} steps an answer,",
        "  and weights kept four times over per model (itself, its checkpoint, two optimizer states);",
        "  `stop_when_solved` is taken to save half of a search, `only: unsolved` to leave a third of the questions.",
    ]


def _baseline_estimate(recipe: Recipe, data: _Size | None) -> list[str]:
    """Tokens, and money where prices are given: what a server is asked for does not depend on this machine."""
    if data is None:
        return ["Estimate: none, the data is not here."]
    search, config = evaluation_search(recipe), recipe.evaluation
    greedy = STEP_TOKENS * TRAJECTORY_STEPS
    searched = _tokens(search) if {"mcts", "majority"} & set(config.methods) else 0
    generated = data.evaluation * (greedy + searched * len({"mcts", "majority"} & set(config.methods)))
    # One request expands a node or goes one step down a sample, and reads the whole prompt.
    requests = data.evaluation * (TRAJECTORY_STEPS + (search.simulations + searched / STEP_TOKENS if searched else 0))
    read = requests * (data.prompt_tokens + greedy / 2)
    prices = config.price_per_million_tokens or 0.0, config.price_per_million_prompt_tokens
    money = (generated * prices[0] + read * prices[1]) / 1e6
    cost = f", {money:.2f} at the prices given" if any(prices) else "; no price is given"
    return [
        f"Estimate (to a factor of three): {generated / 1e6:.2f} M tokens generated, {read / 1e6:.2f} M read{cost}."
    ]


def _tokens(search: SearchConfig) -> float:
    """Tokens one question's search generates: each simulation expands one node."""
    if search.algorithm != "mcts":
        return STEP_TOKENS * TRAJECTORY_STEPS * (search.num_candidates if search.algorithm == "sample" else 1)
    return search.simulations * search.num_candidates * STEP_TOKENS * (0.5 if search.stop_when_solved else 1)


def _training_tokens(settings: dict[str, Any], data: _Size) -> float:
    steps = int(settings.get("max_steps", -1))
    batch = int(settings.get("per_device_train_batch_size", 8)) * int(settings.get("gradient_accumulation_steps", 1))
    rows = steps * batch if steps > 0 else float(settings.get("num_train_epochs", EPOCHS)) * data.train
    return rows * (data.prompt_tokens + STEP_TOKENS * TRAJECTORY_STEPS)
