"""Training on packed trees against TRL's own trainers: wall clock, memory, loss. One command, Markdown tables.

    python benchmarks/packed_training.py --parts ppm --sizes 7M --prompts 300 600 1200 --json measured.jsonl

`ppm`: `RewardTrainer` and `PPMTrainer` in tree mode on the same pairs (24 sibling pairs a question), for the same
epoch with the same optimizer steps. `sft`: TRL's `SFTTrainer` with padding, length grouping and packing, the same with
`MCTSDataCollator`, and `TreeSFTTrainer` without and with length grouping, on the same trajectories. `growth`: one
forward and backward pass as a row grows, and as trees share a batch; `--plot FILE` draws it.

Every measurement is a process of its own: seconds are those of the whole `train()`, memory is the process's peak above
its peak just before `train()` (on a GPU, the allocator's peak above it). Rows come in the data's order unless they are
grouped or packed, so first and last losses can be compared. With `--json FILE` a measurement that the file has is not
repeated, so tables can be made part by part and resumed.

On a GPU: `--device cuda --sizes 0.5B`, with `--attention sdpa flex_attention` for `growth`. A quick look:
`--questions 2 --sizes 7M --prompts 300`.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SIZES = {
    "1M": {"hidden_size": 128, "num_hidden_layers": 4, "intermediate_size": 352, "num_attention_heads": 4},
    "7M": {"hidden_size": 256, "num_hidden_layers": 8, "intermediate_size": 704, "num_attention_heads": 4},
    "50M": {"hidden_size": 512, "num_hidden_layers": 15, "intermediate_size": 1408, "num_attention_heads": 8},
    "0.5B": {"hidden_size": 896, "num_hidden_layers": 24, "intermediate_size": 4864, "num_attention_heads": 14},
}
"""Qwen2 shapes; key-value heads are half (0.5B: 2) of the attention heads."""

VOCABULARY, STEP_TOKENS, DEPTHS = 2000, 16, 6
Spec = dict[str, Any]


def main() -> None:
    """Measures what is asked for and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=["ppm", "sft", "growth"], default=["ppm", "sft", "growth"])
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=["7M", "50M"])
    parser.add_argument("--prompts", nargs="+", type=int, default=[300, 600, 1200], help="tokens of a prompt")
    parser.add_argument("--trajectories", nargs="+", type=int, default=[2, 4], help="trajectories a question (sft)")
    parser.add_argument("--questions", type=int, default=8, help="questions of the epoch")
    parser.add_argument("--pair-batch", type=int, default=8, help="pairs RewardTrainer computes at once; divides 24")
    parser.add_argument("--lengths", nargs="+", type=int, default=[512, 1024, 2048, 4096], help="row lengths (growth)")
    parser.add_argument("--attention", nargs="+", default=["sdpa"], help="implementations to compare (growth)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of every measurement")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="on cuda models train in bf16")
    parser.add_argument("--plot", type=Path, help="write the growth curves to this file (needs matplotlib)")
    parser.add_argument("--json", type=Path, help="keep measurements in this file, and use those it has")
    parser.add_argument("--repeats", type=int, default=1, help="take the fastest of so many runs of a measurement")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(json.loads(arguments.one))))
        return
    for part in arguments.parts:
        print(f"\n## {part}\n")
        {"ppm": ppm_table, "sft": sft_table, "growth": growth_table}[part](arguments)


# --- tables ----------------------------------------------------------------------------------------------------------


def ppm_table(arguments: argparse.Namespace) -> None:
    """RewardTrainer against tree mode."""
    head("model", "prompt", "trainer", "seconds", "speed-up", "peak MB", "first loss", "last loss")
    for size in arguments.sizes:
        for prompt in arguments.prompts:
            common = {"part": "ppm", "size": size, "prompt": prompt, "questions": arguments.questions}
            pairs = run(arguments, {**common, "trainer": "RewardTrainer", "batch": arguments.pair_batch})
            trees = run(arguments, {**common, "trainer": "PPMTrainer, tree"})
            for found in (pairs, trees):
                losses = f"{found['losses'][0]:.6f}", f"{found['losses'][-1]:.6f}"
                speed = f"{pairs['seconds'] / found['seconds']:.1f}x"
                line(size, prompt, found["trainer"], f"{found['seconds']:.2f}", speed, f"{found['peak']:.0f}", *losses)


def sft_table(arguments: argparse.Namespace) -> None:
    """Stock settings against the collator."""
    head("model", "prompt", "trajectories", "setting", "seconds", "of the best stock", "peak MB", "first loss")
    for size in arguments.sizes:
        for prompt in arguments.prompts:
            for count in arguments.trajectories:
                common = {"part": "sft", "size": size, "prompt": prompt, "questions": arguments.questions}
                settings = ("padding", "length-grouped", "packing", "collator", "tree", "tree, length-grouped")
                found = [run(arguments, {**common, "count": count, "trainer": each}) for each in settings]
                best = min(each["seconds"] for each in found[:3])
                for each in found:
                    speed = f"{best / each['seconds']:.2f}x"
                    cells = f"{each['seconds']:.2f}", speed, f"{each['peak']:.0f}", f"{each['losses'][0]:.6f}"
                    line(size, prompt, count, each["trainer"], *cells)


def growth_table(arguments: argparse.Namespace) -> None:
    """A forward and backward pass by row length, and by trees in the batch at the shortest length."""
    head("model", "attention", "rows", "row tokens", "seconds", "peak MB", "tokens/second")
    curves: dict[str, list[Spec]] = {}
    for size in arguments.sizes:
        for attention in arguments.attention:
            shapes = [(1, length) for length in arguments.lengths] + [(n, arguments.lengths[0]) for n in (2, 4, 8)]
            for trees, length in shapes:
                spec = {"part": "growth", "size": size, "attention": attention, "trees": trees, "length": length}
                found = run(arguments, spec)
                speed = trees * length / found["seconds"]
                line(size, attention, trees, length, f"{found['seconds']:.3f}", f"{found['peak']:.0f}", f"{speed:.0f}")
                curves.setdefault(f"{size}, {attention}, {'one row' if trees == 1 else 'more rows'}", []).append(found)
    if arguments.plot:
        plot(curves, arguments.plot)


def head(*cells: str) -> None:
    """The head of a Markdown table."""
    line(*cells)
    line(*["---"] * len(cells))


def line(*cells: Any) -> None:
    """One row of it, shown at once."""
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def plot(curves: dict[str, list[Spec]], path: Path) -> None:
    """Seconds and memory against the tokens of a batch."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4))
    for axis, column, unit in zip(axes, ("seconds", "peak"), ("seconds", "peak MB"), strict=True):
        for name, found in curves.items():
            axis.plot(
                [each["trees"] * each["length"] for each in found], [each[column] for each in found], "o-", label=name
            )
        axis.set(xlabel="tokens in the batch", ylabel=unit, xscale="log", yscale="log")
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(path)


def run(arguments: argparse.Namespace, spec: Spec) -> Spec:
    """One measurement in a process of its own."""
    spec = {**spec, "threads": arguments.threads, "device": arguments.device}
    known = read(arguments.json)
    found = [each for each in known if spec.items() <= each.items()][: arguments.repeats]
    for _ in range(arguments.repeats - len(found)):
        command = [sys.executable, __file__, "--one", json.dumps(spec)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"the measurement {spec} failed:\n{done.stderr[-3000:]}")
        found.append({**spec, **json.loads(done.stdout.splitlines()[-1])})
        if arguments.json:
            with open(arguments.json, "a") as file:
                file.write(json.dumps(found[-1]) + "\n")
    return min(found, key=lambda each: each["seconds"])


def read(path: Path | None) -> list[Spec]:
    """The measurements a file has."""
    if path is None or not path.exists():
        return []
    return [json.loads(text) for text in path.read_text().splitlines()]


# --- one measurement -------------------------------------------------------------------------------------------------


def measure(spec: Spec) -> Spec:
    """Seconds, peak memory in MB and losses of one specification."""
    import torch

    torch.set_num_threads(spec["threads"])
    with tempfile.TemporaryDirectory() as folder:
        return {"ppm": measure_ppm, "sft": measure_sft, "growth": measure_growth}[spec["part"]](spec, Path(folder))


def measure_ppm(spec: Spec, folder: Path) -> Spec:
    """A whole `train()` over the pairs of all questions, one optimizer step a question."""
    from datasets import Dataset
    from trl import RewardTrainer

    from rstar_trl import PPMConfig, PPMTrainer

    tree = spec["trainer"] != "RewardTrainer"
    rows = [pair for number in range(spec["questions"]) for pair in question_pairs(number, spec["prompt"])]
    batch = 1 if tree else spec["batch"]
    options = {"mode": "tree" if tree else "pairs", "per_device_train_batch_size": batch, "max_length": 4096}
    options["gradient_accumulation_steps"] = 1 if tree else 24 // batch
    args = PPMConfig(**options, **common(spec, folder))
    return timed(
        spec,
        (PPMTrainer if tree else RewardTrainer)(
            model(spec, "SequenceClassification"),
            args,
            train_dataset=Dataset.from_list(rows),
            processing_class=words(),
        ),
    )


def measure_sft(spec: Spec, folder: Path) -> Spec:
    """A whole `train()` over all trajectories, eight of them an optimizer step."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from rstar_trl import MCTSDataCollator, TreeSFTConfig, TreeSFTTrainer

    setting, count = spec["trainer"], spec["count"]
    questions = [question_trajectories(number, spec["prompt"], count) for number in range(spec["questions"])]
    options: Spec = {**common(spec, folder), "per_device_train_batch_size": 8, "max_length": 4096}
    if "length-grouped" in setting:
        options["train_sampling_strategy"] = "group_by_length"
    policy = model(spec, "CausalLM")
    if setting in ("padding", "length-grouped", "packing"):
        if setting == "packing":
            # As many rows a step as eight trajectories fill, or a step would hold more of them than the others' do.
            longest = max(len(ids) for question in questions for ids in question["input_ids"])
            options |= {"packing": True, "max_length": 8 * longest, "per_device_train_batch_size": 1}
        pairs = [zip(each["input_ids"], each["labels"], strict=True) for each in questions]
        dataset = Dataset.from_list([{"input_ids": i, "labels": t} for each in pairs for i, t in each])
        return timed(spec, SFTTrainer(policy, SFTConfig(**options), None, dataset, processing_class=words()))
    options["per_device_train_batch_size"] = max(8 // count, 1)
    dataset = Dataset.from_list(questions)
    if setting == "collator":
        args = SFTConfig(**options, dataset_kwargs={"skip_prepare_dataset": True})
        collator = MCTSDataCollator.for_trainer(policy, args)
        return timed(spec, SFTTrainer(policy, args, collator, dataset, processing_class=words()))
    args = TreeSFTConfig(**options, mode="tree")
    return timed(spec, TreeSFTTrainer(policy, args, None, dataset, processing_class=words()))


def measure_growth(spec: Spec, folder: Path) -> Spec:
    """The best of three forward and backward passes over rows of one tree each."""
    import torch

    from rstar_trl.training.block_attention import use_blocks
    from rstar_trl.training.packing import attention_mask, fill_rows, lay_out

    trees = [grown_tree(number, spec["length"]) for number in range(spec["trees"])]
    rows = fill_rows([piece for tree in trees for piece in lay_out(tree).pieces])
    policy = model(spec, "CausalLM", spec["attention"]).to(spec["device"])
    use_blocks(policy, policy.device)  # as the trainers do on a CPU
    tokens, positions, last = (
        torch.as_tensor(each, device=spec["device"]) for each in (rows.tokens, rows.positions, rows.last)
    )
    before, best = peak(spec), float("inf")
    for _ in range(3):
        started = time.perf_counter()
        mask = attention_mask(last, spec["attention"])
        policy.model(input_ids=tokens, position_ids=positions, attention_mask=mask).last_hidden_state.mean().backward()
        if spec["device"] == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return {"seconds": best, "peak": peak(spec) - before}


def timed(spec: Spec, trainer: Any) -> Spec:
    """Trains, with the clock running."""
    before = peak(spec)
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {"seconds": seconds, "peak": peak(spec) - before, "losses": losses}


def peak(spec: Spec) -> float:
    """The process's peak memory so far, in MB."""
    if spec["device"] == "cuda":
        import torch

        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def common(spec: Spec, folder: Path) -> Spec:
    """What all trainers are told."""
    cpu = spec["device"] == "cpu"
    return {
        "output_dir": str(folder),
        "num_train_epochs": 1,
        "learning_rate": 1e-4,
        "lr_scheduler_type": "constant",
        "train_sampling_strategy": "sequential",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "gradient_checkpointing": False,
        "use_cpu": cpu,
        "bf16": not cpu,
        "dataloader_pin_memory": not cpu,
    }


# --- models and data -------------------------------------------------------------------------------------------------


def model(spec: Spec, head: str, attention: str = "sdpa") -> Any:
    """A random Qwen2 of the size asked for."""
    import torch
    import transformers

    shape = SIZES[spec["size"]]
    heads = 2 if spec["size"] == "0.5B" else shape["num_attention_heads"] // 2
    config = transformers.Qwen2Config(
        vocab_size=VOCABULARY,
        num_key_value_heads=heads,
        max_position_embeddings=32768,
        pad_token_id=0,
        eos_token_id=1,
        num_labels=1,
        **shape,
    )
    torch.manual_seed(0)
    loader = getattr(transformers, f"AutoModelFor{head}")
    dtype = torch.bfloat16 if spec["part"] == "growth" and spec["device"] == "cuda" else torch.float32
    return loader.from_config(config, attn_implementation=attention, dtype=dtype)


def words() -> Any:
    """A tokenizer of as many words as the models know; the data are token ids already."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<pad>": 0, "<eos>": 1} | {f"w{number}": number for number in range(2, VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


def tokens(source: random.Random, size: int) -> list[int]:
    """Random tokens."""
    return [source.randrange(2, VOCABULARY) for _ in range(size)]


def question_pairs(number: int, prompt: int) -> list[Spec]:
    """24 sibling pairs: at each of six steps, two chosen against two rejected, and on with the first of them."""
    source = random.Random(number)
    path = tokens(source, prompt)
    rows = []
    for _ in range(DEPTHS):
        siblings = [path + tokens(source, STEP_TOKENS) for _ in range(4)]
        for good in siblings[:2]:
            rows += [{"question_id": str(number), "chosen_ids": good, "rejected_ids": bad} for bad in siblings[2:]]
        path = siblings[0]
    return rows


def question_trajectories(number: int, prompt: int, count: int) -> Spec:
    """Trajectories of about six steps that share their prompt and, in part, their first steps."""
    source = random.Random(number)
    first = tokens(source, source.randint(int(0.8 * prompt), int(1.2 * prompt)))
    opening = tokens(source, STEP_TOKENS)
    steps = [opening + tokens(source, source.randint(3, 6) * STEP_TOKENS) + [1] for _ in range(count)]
    labels = [[-100] * len(first) + step for step in steps]
    packed = len(first) + len(opening) + sum(len(step) - len(opening) for step in steps)
    return {"input_ids": [first + step for step in steps], "labels": labels, "length": packed}


def grown_tree(number: int, length: int) -> list[list[int]]:
    """A prompt of half the length, and branches of 64 tokens for the other half."""
    source = random.Random(number)
    first = tokens(source, length // 2)
    return [first + tokens(source, 64) for _ in range(length // 2 // 64)]


if __name__ == "__main__":
    main()
