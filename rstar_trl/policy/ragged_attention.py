"""Attention for batches whose rows bring different numbers of new tokens: nothing is computed for padding but here.

A model that uses this is given the new tokens of all rows as one sequence [1, tokens], so that its layers compute no
padding; only the attention itself spreads them over their rows. Without `ragged` among the forward's arguments it is
transformers' SDPA (plain batches, `generate`). Needs: a model that takes its attention from transformers' interface
and passes on the keyword arguments of its forward, as those of transformers do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from rstar_trl.errors import EngineError

NAME = "sdpa_ragged"


@dataclass(frozen=True)
class Ragged:
    """Where new tokens stand in their batch: both [tokens], and `shape` the numbers of rows and columns."""

    row: torch.Tensor
    column: torch.Tensor
    shape: tuple[int, int]

    @classmethod
    def of(cls, row: torch.Tensor, rows: int) -> Ragged:
        """Side by side in each row, from the left. `row` [tokens] ascends."""
        counts = torch.bincount(row, minlength=rows)
        first = counts.cumsum(0) - counts
        column = torch.arange(len(row), device=row.device) - first[row]
        return cls(row, column, (rows, int(counts.max())))

    def spread(self, values: torch.Tensor, fill: Any = 0) -> torch.Tensor:
        """Values of the tokens [tokens, ...] as [rows, columns, ...]."""
        wide = values.new_full((*self.shape, *values.shape[1:]), fill)
        wide[self.row, self.column] = values
        return wide


def ragged_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    ragged: Ragged | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """`query` [1, heads, tokens, size], keys and values [rows, heads, slots, size], to [1, tokens, heads, size]."""
    if ragged is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    wide = ragged.spread(query[0].transpose(0, 1)).transpose(1, 2)
    output, _ = sdpa_attention_forward(module, wide, key, value, attention_mask, **kwargs)
    return output[ragged.row, ragged.column][None], None


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
