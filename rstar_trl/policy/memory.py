"""Passes through a model that fit into the device's memory, found by trying.

A pass is a batch of rows padded to the same width, and its *size* is what its memory grows with: rows times tokens. A
pass over several requests that does not fit halves the size allowed to those after it; each that fits allows one
percent more, so that a shortage another process caused does not slow the rest of a long run.

Guarantees: nothing of a failed pass is held when it returns, and the prefixes kept are gone; a pass that failed with
nothing kept will not fit in any other way. Does not know what else runs on the device: a request may be refused for
another process's memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeVar

import torch

from rstar_trl.policy.branches import PrefixCache

T = TypeVar("T")

REGROWTH = 1.01
"""Growth of the allowed size with every pass that fits: it doubles in about seventy."""
SHORTAGES = ("out of memory", "can't allocate memory", "ALLOC_FAILED")
"""What allocators that do not raise `torch.OutOfMemoryError` say: MPS, the CPU's, cuBLAS and cuDNN."""


def prefix_bytes(device: torch.device) -> int:
    """What one model's prefixes may take unless it is told otherwise: a third of what a GPU has free, else 2 GiB.

    A third each for policy and PPM leaves one to their passes. Hundreds of trees in flight need it: with fewer bytes
    than their prompts have, each is dropped before its tree asks again.
    """
    return torch.cuda.mem_get_info(device)[0] // 3 if device.type == "cuda" else 2 << 30


def usual_rows(device: torch.device) -> int:
    """Tree nodes expanded in one pass unless told otherwise; a GPU is fast at what a CPU would only hold in memory."""
    return 512 if device.type == "cuda" else 128


class MemoryLimit:
    """How large a pass may be, learnt from those that failed. `cache` is what can be given up for room."""

    def __init__(self, cache: PrefixCache):
        self.cache = cache
        self.most = math.inf

    def in_passes(
        self, order: list[int], fitting: Callable[[list[int]], tuple[int, float]], work: Callable[[list[int]], list[T]]
    ) -> Iterator[tuple[int, T | None]]:
        """Every number in `order` with what `work` finds for it, or None where it does not fit even alone.

        `fitting` says how many of the numbers left go into one pass, from their start, and the size of that pass;
        `work` answers those of one pass, in order.
        """
        while order:
            count, size = fitting(order)
            cold = not self.cache.bytes
            found = self.attempt(count, size, partial(work, order[:count]))
            if found is None and (count > 1 or not cold):
                continue
            yield from zip(order[:count], [None] if found is None else found, strict=True)
            order = order[count:]

    def attempt(self, count: int, size: float, work: Callable[[], T]) -> T | None:
        """What `work` over `count` requests returns, or None when it ran out of memory; other exceptions pass."""
        try:
            found = work()
        except (RuntimeError, MemoryError) as error:
            if not is_shortage(error):
                raise
        else:
            self.most *= REGROWTH
            return found
        # Only here: within the block above the traceback still held the failed pass's tensors.
        if count > 1:
            self.most = size / 2
        self.cache.clear()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return None


def is_shortage(error: Exception) -> bool:
    """Whether an exception says that memory ran out, on whatever device."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in str(error) for words in SHORTAGES)
