"""Attention over packed rows on a CPU: SDPA, one block of queries after the other.

A token of a packed row never sees what stands behind it, but SDPA with a mask computes the whole square. Here each
block of queries is given only the keys up to its own end, which saves nearly half. Guarantees: the same result as SDPA
under any mask that hides the keys behind a query, up to rounding; calls without such a mask (generation, plain
batches) go to SDPA as they are. On a GPU `flex_attention` skips more, and kernels that small would not pay.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "sdpa_blocks"
BLOCK = 256
"""Queries a block has: larger ones compute more that nobody sees, smaller ones cost more calls."""


def block_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """As transformers' SDPA: `query` [batch, heads, width, size] to an output of [batch, width, heads, size]."""
    width = query.shape[2]
    square = attention_mask is not None and attention_mask.shape[-2:] == (width, width)
    if attention_mask is None or not square or width <= BLOCK:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    outputs = []
    for start in range(0, width, BLOCK):
        end = min(start + BLOCK, width)
        seen = attention_mask[:, :, start:end, :end]
        found = torch.nn.functional.scaled_dot_product_attention(
            query[:, :, start:end], key[:, :, :end], value[:, :, :end], seen, dropout, scale=scaling
        )
        outputs.append(found)
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def use_blocks(model: Any, device: torch.device) -> None:
    """Makes a model that was loaded with `sdpa` compute attention in blocks from now on, when it trains on a CPU."""
    for part in model.modules():
        config: Any = getattr(part, "config", None)
        if device.type == "cpu" and getattr(config, "_attn_implementation", None) == "sdpa":
            config._attn_implementation = NAME


AttentionInterface.register(NAME, block_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
