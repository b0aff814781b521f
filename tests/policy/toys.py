"""Small random models, tokenizers with all that can go wrong at a step's end, and a plain way to sample."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rstar_trl.policy.from_scratch import build_base, model_config
from rstar_trl.policy.interface import Candidate, ProposeRequest
from rstar_trl.policy.tokens import DELIMITER, encode_prompt, encode_step

TEXTS = [
    "singer: id, name, age\nhow many singers?\n",
    "-- use singer\nFROM singer\n\n-- keep rows by age\nWHERE age > 30\n\n-- count them\nSELECT COUNT(*)",
    "concert: id, title\nwhich titles?\n-- use concert\nFROM concert\n\n-- show title\nSELECT title",
]
SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 512,
    # Wide weights: with small ones all tokens are about equally likely and no arg-max is worth comparing.
    "initializer_range": 0.4,
}


def build(architecture: str, folder: Path, **fields: Any) -> Path:
    spec = {"architecture": architecture, "vocab_size": 340, **SHAPE, **fields}
    build_base(spec, TEXTS, folder, seed=1)
    return folder


def merging_tokenizer() -> Any:
    """A tokenizer that was allowed to merge across blank lines, as those of pretrained models are."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    texts = ["x\n\n--", "r\n\n-- s", "\n\n\n", "s\n", "\n\nS", ")\n\n", "\nW"] * 5
    alphabet = sorted({character for text in texts for character in text.replace("\n", "Ċ").replace(" ", "Ġ")})
    trainer = trainers.BpeTrainer(
        vocab_size=30, special_tokens=["<pad>", "<eos>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


def random_model(architecture: str, vocab_size: int, **fields: Any) -> Any:
    from transformers import AutoModelForCausalLM

    config = model_config(architecture, {**SHAPE, **fields})
    config.vocab_size = vocab_size
    torch.manual_seed(3)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


class SmallDevice:
    """Lets a model run out of memory as a device with room for so many tokens would: rows times their whole length.

    `failures` counts forward passes, `largest` is the size of one that fitted, and `held` is whether the tensors of a
    failed one were alive at a later one.
    """

    def __init__(self, module: Any, tokens: int):
        self.tokens = tokens
        self.failures = self.largest = 0
        self.held = False
        self._failed: list[weakref.ref[torch.Tensor]] = []
        module.register_forward_pre_hook(self._before, with_kwargs=True)

    def _before(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        rows, _, _, width = kwargs["attention_mask"].shape
        self.held |= any(tensor() is not None for tensor in self._failed)
        if rows * width > self.tokens:
            self.failures += 1
            self._failed.append(weakref.ref(kwargs["attention_mask"]))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        self.largest = max(self.largest, rows * width)


@torch.inference_mode()
def one_by_one(model: Any, tokenizer: Any, request: ProposeRequest, longest: int) -> list[Candidate]:
    """What an engine should answer, found the slow way: a plain forward pass per token, no cache, no batch."""
    prefix = encode_prompt(tokenizer, request.prompt)
    for text in request.steps:
        prefix = prefix + encode_step(tokenizer, text, final=False)
    draws = np.random.Generator(np.random.Philox(key=request.seed)).random((request.n, longest), np.float32)
    return [_sample(model, tokenizer, prefix, request.temperature, row) for row in draws]


def _sample(model: Any, tokenizer: Any, prefix: list[int], temperature: float, draws: Any) -> Candidate:
    ids: list[int] = []
    total = 0.0
    for draw in draws:
        logits = model(input_ids=torch.tensor([prefix + ids])).logits[0, -1]
        if temperature == 0:
            token = int(logits.argmax())
        else:
            cumulative = torch.softmax(logits / temperature, -1).cumsum(-1)
            token = int((cumulative <= float(draw) * cumulative[-1]).sum())
        total += float(torch.log_softmax(logits, -1)[token])
        ids.append(token)
        text = tokenizer.decode([t for t in ids if t != tokenizer.eos_token_id])
        if token == tokenizer.eos_token_id:
            return Candidate(text, total, len(ids), "eos")
        if DELIMITER in text:
            return Candidate(text.partition(DELIMITER)[0], total, len(ids), "step")
    return Candidate(text, total, len(ids), "length")
