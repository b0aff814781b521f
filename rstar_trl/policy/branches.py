"""Many branches of many trees in one forward pass, each seeing only its own past.

A batch has one row per tree node; a row holds the node's prefix once, and its branches (the siblings being sampled or
scored) side by side in the same row. A token sees the row's shared prefix and the earlier tokens of its own branch,
through a 4D mask; positions count along the branch. So the prefix of n siblings is read from memory once, not n times,
and nothing is copied to fork. Rows may bring different numbers of new tokens: a sibling that has ended costs nothing
more (see `ragged_attention`). Segments of keys and values are kept by `PrefixCache`, so that a child continues where
its parent stopped.

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
from rstar_trl.policy.ragged_attention import Ragged, spread_over, use_ragged
from rstar_trl.policy.tokens import first_line

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


def prepare(model: Any, read_last: bool) -> None:
    """Makes a model ready for batches of branches, or refuses it by name. `read_last`: whether logits are wanted."""
    require_full_attention(model.config)
    use_ragged(model)
    try:
        with torch.inference_mode():
            prefill(model, PrefixCache(0), [("",), ("",)], [[[0]], [[0, 0]]], 1, read_last)
    except (RuntimeError, TypeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise EngineError(
            f"the attention of {model.config.model_type} cannot share a prefix ({first_line(error)}); "
            "use another model (Llama, Qwen2, Qwen3, ...) or serve this one over HTTP."
        ) from error


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
            found.append(segment)
        self._touch(key[: len(found)])
        return found

    def put(self, key: tuple[str, ...], segment: Segment) -> None:
        """Keeps the segment of the last part of `key`."""
        if key not in self._segments:
            self._segments[key] = segment
            self.bytes += segment.nbytes
        self._touch(key)
        while self.bytes > self.max_bytes and self._segments:
            _, dropped = self._segments.popitem(last=False)
            self.bytes -= dropped.nbytes

    def _touch(self, key: tuple[str, ...]) -> None:
        """What a prefix begins with is dropped after it, never before: alone, its end is of no use."""
        for length in range(len(key), 0, -1):
            if key[:length] in self._segments:
                self._segments.move_to_end(key[:length])

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
            end = 0
            for segment in past:
                start, end = end, end + segment.shape[3]
                self.store[:, :, row, :, start:end] = segment
                self.branch[row, start:end] = SHARED

    def append(
        self, tokens: torch.Tensor, row: torch.Tensor, branch: torch.Tensor, offset: Any, **options: Any
    ) -> Any:
        """Runs new tokens and returns the model's output for them: [1, tokens, ...]. All arguments are [tokens].

        `row` ascends; `branch`: SHARED joins the row's prefix, 0, 1, ... a sibling; `offset` (or one number for all):
        the tokens between a row's prefix and this one. `options` go to the model. A row's new tokens stand side by
        side from slot `used` on.
        """
        ragged = Ragged.of(row, len(self.lengths))
        start, end = self.used, self.used + ragged.shape[1]
        if end > self.branch.shape[1]:
            self._grow(GROWTH * ragged.shape[1])
        slot = start + ragged.column
        self.branch[row, slot] = branch
        slots = torch.arange(end, device=self.device)
        keys, own = self.branch[:, None, :end], ragged.spread(branch, PADDING)[:, :, None]
        seen = (keys == SHARED) | (keys == own)
        # What is spread over no token sees itself alone.
        seen &= (slots <= slots[start:, None]) & (own != PADDING)
        seen |= slots == slots[start:, None]
        with spread_over(ragged):
            output = self.model(
                input_ids=tokens[None],
                attention_mask=seen[:, None],
                position_ids=(self.lengths[row] + offset)[None],
                past_key_values=Cache(layers=[_Slots(layer, row, slot, end) for layer in self.store]),
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
    """One layer's view on the store: the keys and values of new tokens go in place, into `slot` of `row`."""

    def __init__(self, layer: torch.Tensor, row: torch.Tensor, slot: torch.Tensor, end: int):
        super().__init__()
        self.is_initialized = True
        self.keys, self.values = layer[0], layer[1]
        self.row, self.slot, self.end = row, slot, end

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        assert self.keys is not None and self.values is not None
        self.keys[self.row, :, self.slot] = key_states[0].transpose(0, 1)
        self.values[self.row, :, self.slot] = value_states[0].transpose(0, 1)
        return self.keys[:, :, : self.end], self.values[:, :, : self.end]


def prefill(
    model: Any,
    cache: PrefixCache,
    keys: Sequence[tuple[str, ...]],
    pieces: Sequence[Sequence[list[int]]],
    room: int,
    read_last: bool,
) -> tuple[BranchBatch, torch.Tensor | None, int]:
    """Brings every row's prefix into a batch, computing only what the cache lacks.

    `keys[i]` names row i's prefix and `pieces[i]` holds the tokens of each part of the key. With `read_last` the last
    token is always computed, for the logits after it. Returns the batch, those logits [rows, vocabulary] (else None)
    and the number of tokens computed.
    """
    pasts = [cache.longest(key) for key in keys]
    fresh = [list(chain(*parts[len(past) :])) for parts, past in zip(pieces, pasts, strict=True)]
    if read_last:
        for index, (parts, past) in enumerate(zip(pieces, pasts, strict=True)):
            if not fresh[index]:
                fresh[index] = parts[-1][-1:]
                pasts[index] = [*past[:-1], past[-1][:, :, :, :-1]]
    longest = max(map(len, fresh))
    batch = BranchBatch(model, pasts, longest + room)
    if not longest:
        return batch, None, 0
    new = [(token, row, offset) for row, ids in enumerate(fresh) for offset, token in enumerate(ids)]
    tokens, row, offset = torch.tensor(new, device=batch.device).unbind(1)
    counts = torch.tensor([len(ids) for ids in fresh], device=batch.device)
    options = {"logits_to_keep": counts.cumsum(0) - 1} if read_last else {}
    start = batch.used
    output = batch.append(tokens, row, torch.full_like(row, SHARED), offset, **options)
    batch.lengths = batch.lengths + counts
    for index, (key, parts, past) in enumerate(zip(keys, pieces, pasts, strict=True)):
        end = start  # of what is computed, side by side from there
        for length in range(len(past) + 1, len(parts) + 1):
            begin, end = end, end + len(parts[length - 1])
            cache.put(key[:length], batch.segment(index, begin, end))
    return batch, output.logits[0] if read_last else None, len(new)
