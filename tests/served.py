"""Real servers on loopback, and a policy of a few thousand weights that knows two answers by heart."""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

PROMPT = "singer: id, name, age\nhow many singers?\n"
STEPS = ("-- use singer\nFROM singer", "-- keep rows by age\nWHERE age > 20", "-- count them\nSELECT COUNT(*)")
MAX_STEP_TOKENS = 40


def build_policy(folder: Path) -> Path:
    """A policy that answers `PROMPT` with `STEPS` when greedy; trained in a second or two."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from rstar_trl.policy.from_scratch import build_base
    from rstar_trl.policy.tokens import encode_completion, encode_prompt

    # Servers have kernels for heads of 32 and more.
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    spec = {"architecture": "llama", "vocab_size": 340, "intermediate_size": 96, "max_position_embeddings": 256}
    build_base(spec | shape, [PROMPT, *STEPS], folder, seed=1)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor([encode_prompt(tokenizer, PROMPT) + encode_completion(tokenizer, STEPS)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(60):
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    # `transformers serve` samples only where the model's own settings say so.
    model.generation_config.do_sample = True
    model.save_pretrained(folder)
    return folder


@contextmanager
def served(command: Sequence[str], seconds: float, **environment: str) -> Iterator[str]:
    """Runs a server with `--port` added and gives the address of its API once it answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", **environment}
    line = [*command, "--host", "127.0.0.1", "--port", str(port)]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(line, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            if not _answers(process, f"http://127.0.0.1:{port}/health", seconds):
                log.seek(0)
                said = log.read().decode(errors="replace")[-3000:]
                raise AssertionError(f"the server did not come up in {seconds:.0f} s:\n{said}")
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _answers(process: subprocess.Popen[bytes], address: str, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=1) as answer:
                return bool(answer.status == 200)
        except OSError:
            time.sleep(0.1)
    return False
