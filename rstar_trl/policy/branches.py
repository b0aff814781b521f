"""Many branches of many trees in one forward pass, each seeing only its own past.

A batch has one row per tree node; a row holds the node's prefix once, and its branches (the siblings being sampled or
scored) side by side in the same row. A token sees the row's shared prefix and the earlier tokens of its own branch,
through a 4D mask; positions count along the branch. So the prefix of n siblings is read from memory once, not n times,
and nothing is copied to fork. Segments of keys and values are kept by `PrefixCache`, so that a child continues
where its parent stopped.

Guarantees: hidden states equal those of the separate sequences up to rounding. Does not support: models whose layers
do not all use full attention (sliding windows, recurrent states): `require_full_attention` refuses them by name.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from transformers import Cache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

from rstar_trl.errors import EngineError

SHARED, PADDING = -1, -2
GROWTH = 12
"""Appends that a growing batch makes room for at once."""

Segment = torch.Tensor
"""Keys and values of consecutive tokens: [layers, 2, heads, tokens, head size]."""


def require_full_attention(config: PreTrainedConfig) -> None:
    """Refuses a model that a 4D mask over one growing cache cannot drive."""
    if kinds := other_layers(config):
        raise EngineError(
            f"{config.model_type} uses {', '.join(kinds)} layers, which cannot share a prefix between siblings; use a "
            "model with full attention (Llama, Qwen2, Qwen3, ...) or serve this one over HTTP."
        )


def other_layers(config: PreTrainedConfig) -> list[str]:
    """The kinds of a model's layers that do not let every token see its whole past."""
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"]) - {"full_attention"}
    window = getattr(config, "sliding_window", None)
    # A config that names each layer's kind has said whether its window is used; the others always use it.
    if window is not None and not hasattr(config, "layer_types") and window < config.max_position_embeddings:
        kinds.add(f"sliding_window {window}")
    return sorted(kinds)


class PrefixCache:
    """Segments by prefix, least recently used dropped first. A key is `(prompt, step, step, ...)`."""

    def __init__(self, max_bytes: int):
        self.max_bytes = max_bytes
        self.bytes = 0
        self._segments: OrderedDict[tuple[str, ...], Segment] = OrderedDict()

    def longest(self, key: tuple[str, ...]) -> list[Segment]:
        """The segments of the longest cached prefix of `key`, from the start."""
        found = []
        for length in range(1, len(key) + 1):
            segment = self._segments.get(key[:length])
            if segment is None:
                break
            self._segments.move_to_end(key[:length])
            found.append(segment)
        return found

    def put(self, key: tuple[str, ...], segment: Segment) -> None:
        """Keeps the segment of the last part of `key`."""
        if key in self._segments:
            return
        self._segments[key] = segment
        self.bytes += segment.nbytes
        while self.bytes > self.max_bytes and self._segments:
            _, dropped = self._segments.popitem(last=False)
            self.bytes -= dropped.nbytes

    def clear(self) -> None:
        """Drops everything."""
        self._segments.clear()
        self.bytes = 0


class BranchBatch:
    """The state of one batch: keys and values written in place, and which branch each of them belongs to."""

    def __init__(self, model: Any, pasts: Sequence[Sequence[Segment]], room: int):
        """`pasts`: per row the cached segments of its prefix; `room`: slots for the first tokens to come."""
        config = model.config
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        parameter = next(model.parameters())
        self.model, self.device = model, parameter.device
        self.lengths = torch.tensor([sum(s.shape[3] for s in past) for past in pasts], device=self.device)
        width = int(self.lengths.max()) if len(pasts) else 0
        shape = (config.num_hidden_layers, 2, len(pasts), heads, width + room, size)
        # Zeros, not garbage: a masked key's score is still computed, and NaN times zero is NaN.
        self.store = torch.zeros(shape, dtype=parameter.dtype, device=self.device)
        self.branch = torch.full((len(pasts), width + room), PADDING, device=self.device)
        self.used = width
        for row, past in enumerate(pasts):
            start = width - int(sum(s.shape[3] for s in past))
            for segment in past:
                end = start + segment.shape[3]
                self.store[:, :, row, :, start:end] = segment
                self.branch[row, start:end] = SHARED
                start = end

    def append(self, tokens: torch.Tensor, branch: torch.Tensor, positions: torch.Tensor, **options: Any) -> Any:
        """Runs new tokens (all three arguments [rows, new]) and returns the model's output for them.

        `branch`: SHARED joins the row's prefix, 0, 1, ... a sibling, PADDING nothing. `options` go to the model.
        """
        new = tokens.shape[1]
        start, end = self.used, self.used + new
        if end > self.branch.shape[1]:
            self._grow(GROWTH * new)
        self.branch[:, start:end] = branch
        slots = torch.arange(end, device=self.device)
        keys = self.branch[:, None, :end]
        seen = (keys == SHARED) | (keys == branch[:, :, None])
        seen &= (slots <= slots[start:, None]) & (branch[:, :, None] != PADDING)
        seen |= slots == slots[start:, None]
        cache = Cache(layers=[_Slots(layer, start, end) for layer in self.store])
        output = self.model(
            input_ids=tokens,
            attention_mask=seen[:, None],
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            **options,
        )
        self.used = end
        return output

    def segment(self, row: int, start: int, end: int) -> Segment:
        """A copy of the keys and values in slots `start` to `end` of a row."""
        return self.store[:, :, row, :, start:end].clone()

    def keep(self, rows: torch.Tensor) -> None:
        """Drops all rows but those given (indices)."""
        self.store = self.store[:, :, :, :, : self.used].index_select(2, rows)
        self.branch = self.branch[:, : self.used].index_select(0, rows)
        self.lengths = self.lengths.index_select(0, rows)

    def _grow(self, room: int) -> None:
        """Makes room for more tokens. The store grows by parts: most steps end long before they must."""
        blank = self.store.new_zeros((*self.store.shape[:4], room, self.store.shape[5]))
        self.store = torch.cat([self.store[:, :, :, :, : self.used], blank], dim=4)
        padding = self.branch.new_full((len(self.branch), room), PADDING)
        self.branch = torch.cat([self.branch[:, : self.used], padding], dim=1)


class _Slots(DynamicLayer):
    """One layer's view on the store: new keys and values go into slots `start` to `end`, in place."""

    def __init__(self, layer: torch.Tensor, start: int, end: int):
        super().__init__()
        self.is_initialized = True
        self.keys, self.values = layer[0], layer[1]
        self.start, self.end = start, end

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        assert self.keys is not None and self.values is not None
        self.keys[:, :, self.start : self.end] = key_states
        self.values[:, :, self.start : self.end] = value_states
        return self.keys[:, :, : self.end], self.values[:, :, : self.end]


def pad(rows: Sequence[Sequence[int]], fill: int, left: bool, device: torch.device) -> torch.Tensor:
    """Token lists as one tensor [rows, longest], padded with `fill`."""
    width = max((len(row) for row in rows), default=0)
    filled = [
        [fill] * (width - len(row)) + list(row) if left else list(row) + [fill] * (width - len(row)) for row in rows
    ]
    return torch.tensor(filled, dtype=torch.long, device=device).reshape(len(rows), width)


def prefill(
    model: Any,
    cache: PrefixCache,
    keys: Sequence[tuple[str, ...]],
    pieces: Sequence[Sequence[list[int]]],
    room: int,
    read_last: bool,
    **options: Any,
) -> tuple[BranchBatch, Any, int]:
    """Brings every row's prefix into a batch, computing only what the cache lacks.

    `keys[i]` names row i's prefix and `pieces[i]` holds the tokens of each part of the key. With `read_last` the last
    part is always computed, so that the model's output ends with every prefix's last token. Returns the batch, that
    output (None when nothing had to be computed) and the number of tokens computed.
    """
    pasts = [cache.longest(key[:-1] if read_last else key) for key in keys]
    fresh = [list(chain(*parts[len(past) :])) for parts, past in zip(pieces, pasts, strict=True)]
    width = max(len(tokens) for tokens in fresh)
    batch = BranchBatch(model, pasts, width + room)
    if not width:
        return batch, None, 0
    counts = torch.tensor([len(row) for row in fresh], device=batch.device)
    order = torch.arange(width, device=batch.device)[None] - (width - counts)[:, None]
    branch = torch.where(order >= 0, SHARED, PADDING)
    tokens = pad(fresh, 0, left=True, device=batch.device)
    output = batch.append(tokens, branch, (batch.lengths[:, None] + order).clamp(min=0), **options)
    for row, (key, parts, past) in enumerate(zip(keys, pieces, pasts, strict=True)):
        stop = batch.used
        for length in range(len(parts), len(past), -1):
            start = stop - len(parts[length - 1])
            cache.put(key[:length], batch.segment(row, start, stop))
            stop = start
    batch.lengths = batch.lengths + counts
    return batch, output, int(counts.sum())
