"""Sequences that share prefixes, laid out so that a shared token stands once and every sequence sees only itself.

A *piece* is a trie of token sequences in depth-first order, as plain arrays. One number per token says where its
continuations end (`last`), and that is the whole structure: token i sees token j when `j <= i < last[j]`. Pieces
stand side by side in *rows*, none seeing another; padding sees itself alone.

Guarantees: what a causal model with full attention computes at a token equals what it computes in the separate
sequence, up to rounding, when it is given `positions` and `attention_mask`. A piece never exceeds the budget: a trie
that would is split along its branches, and its prefix stands in every part. Does not guarantee the fewest tokens:
sequences that share less than `MIN_SHARED` of themselves are laid apart, because with a dense mask a row costs the
square of its length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedConfig

from rstar_trl.errors import EngineError
from rstar_trl.policy.branches import other_layers
from rstar_trl.training.block_attention import NAME as BLOCKS

MIN_SHARED = 0.25
"""A sequence joins the trie before it when it shares at least this part of its own length."""

ATTENTION = ("sdpa", "eager", "flex_attention")
"""The attention implementations that take a mask of this kind."""


@dataclass(frozen=True)
class Piece:
    """A trie in depth-first order. All arrays are [tokens]: ids, distance from the start, end of what continues it."""

    tokens: np.ndarray
    positions: np.ndarray
    last: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class Layout:
    """Pieces, and for each sequence given its piece, the slots of its tokens there, and its nearest proper prefix.

    `parent` is the index of the longest other sequence that this one continues, -1 where there is none.
    """

    pieces: list[Piece]
    piece: list[int]
    paths: list[np.ndarray]
    parent: list[int]


@dataclass(frozen=True)
class Rows:
    """Pieces side by side. Arrays are [rows, width]; `offsets[p]` is the flat index at which piece p begins."""

    tokens: np.ndarray
    positions: np.ndarray
    last: np.ndarray
    offsets: np.ndarray


def lay_out(
    sequences: Sequence[Sequence[int]],
    budget: int | None = None,
    overlap: int = 0,
    limits: Sequence[int] | None = None,
) -> Layout:
    """Lays out sequences (each at most `budget` tokens) as tries.

    `overlap`: a branch begins with copies of this many of the last tokens it shares, which see what the originals see;
    with one, every slot has a single next token, as a language model's labels need. `limits`: per sequence, how many
    of its first tokens it may share with those laid before it; all when None.
    """
    arrays = [np.asarray(sequence, dtype=">u4") for sequence in sequences]
    order = sorted(range(len(arrays)), key=lambda index: arrays[index].tobytes())  # big-endian: the tokens' own order
    room = sum(map(len, arrays))
    tokens, positions, last = (np.zeros(room, dtype=np.int64) for _ in range(3))
    piece, parent = [0] * len(arrays), [-1] * len(arrays)
    paths: list[np.ndarray] = [np.zeros(0, dtype=np.int64)] * len(arrays)
    starts, path, used = [0], np.zeros(0, dtype=np.int64), 0
    above: list[int] = []
    before = np.zeros(0, dtype=">u4")
    for index in order:
        new = arrays[index]
        common = _common(before, new)
        while above and len(arrays[above[-1]]) > min(common, len(new) - 1):
            above.pop()
        parent[index] = above[-1] if above else -1
        above.append(index)
        shared = common if limits is None else min(common, limits[index])
        start = shared if shared == len(new) else max(shared - overlap, 0)
        size = used - starts[-1] + len(new) - start
        if used and (shared < MIN_SHARED * len(new) or (budget is not None and size > budget)):
            last[path] = used
            starts.append(used)
            path, start = path[:0], 0
        last[path[start:]] = used
        end = used + len(new) - start
        tokens[used:end], positions[used:end] = new[start:], np.arange(start, len(new))
        path = np.concatenate([path[:start], np.arange(used, end)])
        paths[index], piece[index] = path - starts[-1], len(starts) - 1
        used, before = end, new
    last[path] = used
    bounds = [*starts, used] if used else []
    pieces = [Piece(tokens[a:b], positions[a:b], last[a:b] - a) for a, b in pairwise(bounds)]
    return Layout(pieces, piece, paths, parent)


def fill_rows(pieces: Sequence[Piece], budget: int | None = None, pad_token: int = 0) -> Rows:
    """Puts pieces into as few rows as first-fit-decreasing finds, each row `budget` long, or as the longest piece."""
    longest = max(map(len, pieces))
    room = longest if budget is None else max(budget, longest)
    free: list[int] = []
    places = [(0, 0)] * len(pieces)
    for index in sorted(range(len(pieces)), key=lambda number: -len(pieces[number])):
        size = len(pieces[index])
        row = next((number for number, left in enumerate(free) if left >= size), len(free))
        if row == len(free):
            free.append(room)
        places[index] = (row, room - free[row])
        free[row] -= size
    width = room - min(free)
    tokens = np.full((len(free), width), pad_token, dtype=np.int64)
    positions = np.zeros((len(free), width), dtype=np.int64)
    last = np.tile(np.arange(1, width + 1), (len(free), 1))
    for piece, (row, begin) in zip(pieces, places, strict=True):
        span = slice(begin, begin + len(piece))
        tokens[row, span], positions[row, span], last[row, span] = piece.tokens, piece.positions, piece.last + begin
    offsets = np.array([row * width + begin for row, begin in places], dtype=np.int64)
    return Rows(tokens, positions, last, offsets)


def attention_mask(last: torch.Tensor, attention: str) -> Any:
    """What each token of the rows sees (`last`: [rows, width]), in the form an attention implementation takes.

    `sdpa`: bool [rows, 1, width, width]; `eager`: the same as 0 and the lowest float, to be added; `flex_attention`: a
    `BlockMask`, which skips the blocks where nothing is seen.
    """
    rows, width = last.shape
    if attention == "flex_attention":
        from torch.nn.attention.flex_attention import create_block_mask

        def sees(row: Any, head: Any, query: Any, key: Any) -> Any:
            return (key <= query) & (query < last[row, key])

        return create_block_mask(sees, rows, None, width, width, device=str(last.device))
    slot = torch.arange(width, device=last.device)
    seen = (slot <= slot[:, None]) & (slot[:, None] < last[:, None, :])
    if attention == "sdpa":
        return seen[:, None]
    return torch.where(seen, 0.0, torch.finfo(torch.float32).min)[:, None]


def check_attention(config: PreTrainedConfig) -> str:
    """The model's attention implementation; one that cannot take the mask of packed trees is an `EngineError`.

    One that training has set to compute `sdpa` in blocks takes the same mask.
    """
    if kinds := other_layers(config):
        raise EngineError(
            f"{config.model_type} uses {', '.join(kinds)} layers, which cannot take the mask of packed trees; use a "
            "model with full attention (Llama, Qwen2, Qwen3, Gemma, Phi, ...), or train this one without packing "
            "(`mode: pairs` for a PPM, `mode: rows` for a policy)."
        )
    attention = str(config._attn_implementation)
    attention = "sdpa" if attention == BLOCKS else attention
    if attention not in ATTENTION:
        raise EngineError(
            f"{config.model_type} is loaded with `attn_implementation={attention}`, which cannot take the mask of "
            f"packed trees; load it with one of {', '.join(ATTENTION)}."
        )
    return attention


def _common(first: np.ndarray, second: np.ndarray) -> int:
    """How many tokens two sequences begin with in common."""
    size = min(len(first), len(second))
    different = first[:size] != second[:size]
    return int(different.argmax()) if different.any() else size
