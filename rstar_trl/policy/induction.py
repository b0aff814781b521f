"""Attention that can copy from the first step: induction heads written into a model with random weights.

A query mostly repeats what its question says: names, numbers, dates. Trained models do that with induction heads
(Olsson et al. 2022, arXiv 2209.11895): a head that writes each token's predecessor beside it, and in the layer above a
head that looks for its own token among those predecessors and copies what follows. They take far more steps to form
than a small run has, so `induction_heads` starts the first two layers that way; training is free to change them.

Guarantees: only weights change, no code of the model; the rest of the network starts as the identity, so that nothing
random drowns the copy. Needs a Llama-like attention with biases (`attention_bias: true`), one key head per query head,
and plain rotary positions.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from rstar_trl.errors import ConfigError

SHARPNESS = 10.0
"""Attention logit by which the predecessor's position stands out."""
MATCH = 20.0
"""Attention logit of a token that equals the one looked for."""
WRITE, COPY = 0.1, 0.6
"""Scale of what the lower and the upper head add to the residual stream, for embeddings drawn with scale 0.08."""
POSITION_PAIRS = 4
"""Rotary pairs that turn fast enough to tell neighbours apart; the others carry content."""


@torch.no_grad()
def induction_heads(model: Any, count: int, seed: int) -> None:
    """Makes the first `count` heads of layers 0 and 1 induction heads. Raises `ConfigError` for an unfit model."""
    config = model.config
    attention = [getattr(layer, "self_attn", None) for layer in getattr(model.base_model, "layers", [])]
    if len(attention) < 2 or getattr(getattr(attention[0], "q_proj", None), "bias", None) is None:
        raise ConfigError(
            "`model.from_scratch.induction_heads` needs two layers and biased attention; use `architecture: llama` "
            "with `attention_bias: true`, or delete the key."
        )
    heads, width = config.num_attention_heads, config.hidden_size
    size = width // heads
    if config.num_key_value_heads != heads or count > heads or 2 * size > width or size <= 2 * POSITION_PAIRS:
        raise ConfigError(
            "`model.from_scratch.induction_heads` needs as many key-value heads as attention heads, at least two, no "
            f"fewer than {count}, and more than {2 * POSITION_PAIRS} dimensions in each; change the shape."
        )
    generator = torch.Generator().manual_seed(seed)
    for layer in model.base_model.layers:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    copied = _orthogonal(width, generator)
    for head in range(count):
        rows = slice(head * size, (head + 1) * size)
        basis = _orthogonal(width, generator)
        signature, place = basis[:size], basis[size : 2 * size]
        _look_back(attention[0], rows, signature, place, config.rope_parameters["rope_theta"])
        _find_and_copy(attention[1], rows, signature, place, copied[rows])


def _look_back(attention: Any, rows: slice, signature: torch.Tensor, place: torch.Tensor, theta: float) -> None:
    """Attends to the token before, by position alone, and writes its `signature` into the directions `place`."""
    size = len(signature)
    strength = math.sqrt(SHARPNESS * math.sqrt(size))
    key, query = torch.zeros(size), torch.zeros(size)
    for pair in range(POSITION_PAIRS):
        turn = theta ** (-2 * pair / size)
        key[pair] = strength
        # The key's bias turned back by one position: their product is greatest where the query stands one later.
        query[pair], query[pair + size // 2] = strength * math.cos(turn), -strength * math.sin(turn)
    attention.q_proj.weight[rows].mul_(0.1)
    attention.k_proj.weight[rows].mul_(0.1)
    attention.q_proj.bias[rows], attention.k_proj.bias[rows] = query, key
    attention.v_proj.weight[rows] = signature
    attention.o_proj.weight[:, rows] = WRITE * place.T


def _find_and_copy(
    attention: Any, rows: slice, signature: torch.Tensor, place: torch.Tensor, copied: torch.Tensor
) -> None:
    """Looks for its own token's `signature` among what stands in `place`, and adds the token found to its own."""
    size = len(signature)
    content = torch.tensor([i for i in range(size) if i % (size // 2) >= POSITION_PAIRS])
    gain = math.sqrt(MATCH * math.sqrt(size) / len(content))
    blank = torch.zeros_like(signature)
    attention.q_proj.weight[rows] = blank.index_copy(0, content, gain * signature[content])
    attention.k_proj.weight[rows] = blank.index_copy(0, content, gain * place[content])
    attention.v_proj.weight[rows] = copied
    attention.o_proj.weight[:, rows] = COPY * copied.T


def _orthogonal(width: int, generator: torch.Generator) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(width, width, generator=generator))[0]
