"""Attention for batches whose rows bring different numbers of new tokens: nothing is computed for padding but here.

A model that uses this is given the new tokens of all rows as one sequence [1, tokens], so that its layers compute no
padding; only the attention itself spreads them over their rows. Outside of `spread_over` it is transformers' SDPA
(plain batches, `generate`). Needs: a model that takes its attention from transformers' interface.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from rstar_trl.errors import EngineError

NAME = "sdpa_ragged"

FOLDED = 64
"""Up to so many columns the query heads that share a key head are folded into columns; else keys are repeated."""


@dataclass(frozen=True)
class Ragged:
    """Where new tokens stand in their batch: both [tokens], and `shape` the numbers of rows and columns."""

    row: torch.Tensor
    column: torch.Tensor
    shape: tuple[int, int]

    @classmethod
    def of(cls, row: torch.Tensor, rows: int) -> Ragged:
        """Side by side in each row, from the left. `row` [tokens] ascends."""
        counts = row.new_zeros(rows).index_add_(0, row, torch.ones_like(row))
        first = counts.cumsum(0) - counts
        column = torch.arange(len(row), device=row.device) - first[row]
        return cls(row, column, (rows, int(counts.max())))

    def spread(self, values: torch.Tensor, fill: Any = 0) -> torch.Tensor:
        """Values of the tokens [tokens, ...] as [rows, columns, ...]."""
        wide = values.new_full((*self.shape, *values.shape[1:]), fill)
        wide[self.row, self.column] = values
        return wide


# Not an argument of the forward: some models do not hand those on to their attention.
_current: ContextVar[Ragged | None] = ContextVar("ragged", default=None)


@contextmanager
def spread_over(ragged: Ragged) -> Iterator[None]:
    """Forward passes within have their tokens spread over rows."""
    token = _current.set(ragged)
    try:
        yield
    finally:
        _current.reset(token)


def ragged_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """`query` [1, heads, tokens, size], keys and values [rows, heads, slots, size], to [1, tokens, heads, size]."""
    ragged = _current.get()
    if ragged is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    wide = ragged.spread(query[0].transpose(0, 1))
    groups = query.shape[1] // key.shape[1]
    if groups > 1 and ragged.shape[1] <= FOLDED and attention_mask is not None:
        output = _folded(wide, key, value, attention_mask, groups, scaling)
    else:
        wide = wide.transpose(1, 2)
        output, _ = sdpa_attention_forward(module, wide, key, value, attention_mask, scaling=scaling, **kwargs)
    return output[ragged.row, ragged.column][None], None


def _folded(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, groups: int, scaling: float | None
) -> torch.Tensor:
    """Grouped-query attention that reads each key once: `query` [rows, columns, heads, size] to the same shape."""
    rows, columns, heads, size = query.shape
    folded = query.view(rows, columns, heads // groups, groups, size).transpose(1, 2).flatten(2, 3)
    seen = mask.repeat_interleave(groups, dim=2)
    output = scaled_dot_product_attention(folded, key, value, seen, scale=scaling)
    return output.view(rows, heads // groups, columns, groups, -1).transpose(1, 2).flatten(2, 3)


def use_ragged(model: Any) -> None:
    """Makes a model that was loaded with `sdpa` take ragged batches from now on."""
    attention = model.config._attn_implementation
    if attention not in ("sdpa", NAME):
        raise EngineError(
            f"{model.config.model_type} is loaded with `attn_implementation={attention}`; load it with `sdpa`, which "
            "lets the steps of a node share its prefix."
        )
    for part in model.modules():
        if isinstance(config := getattr(part, "config", None), PreTrainedConfig):
            config._attn_implementation = NAME


AttentionInterface.register(NAME, ragged_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
