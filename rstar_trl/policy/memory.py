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


def prefix_bytes(device: torch.device, held: int = 0) -> int:
    """What one model's prefixes, which hold so many bytes now, may take unless told otherwise.

    2 GiB, or on a GPU a third of what neither models nor other prefixes have: a second model's prefixes make that a
    quarter each, and half is left to passes. Hundreds of trees in flight need it: with fewer bytes than their prompts
    have, each is dropped before its tree asks again.
    """
    if device.type != "cuda":
        return 2 << 30
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0] + unused + held) // 3


def usual_rows(device: torch.device) -> int:
    """Tree nodes expanded in one pass unless told otherwise; a GPU is fast at what a CPU would only hold in memory."""
    return 512 if device.type == "cuda" else 128


class MemoryLimit:
    """How large a pass may be, learnt from those that failed. `cache` is what can be given up for room.

    `device`: let the cache have `prefix_bytes` of it, as there are before each pass.
    """

    def __init__(self, cache: PrefixCache, device: torch.device | None = None):
        self.cache, self.device = cache, device
        self.most = math.inf

    def in_passes(
        self, order: list[int], fitting: Callable[[list[int]], tuple[int, float]], work: Callable[[list[int]], list[T]]
    ) -> Iterator[tuple[int, T | None]]:
        """Every number in `order` with what `work` finds for it, or None where it does not fit even alone.

        `fitting` says how many of the numbers left go into one pass, from their start, and the size of that pass;
        `work` answers those of one pass, in order.
        """
        while order:
            if self.device is not None:
                self.cache.max_bytes = prefix_bytes(self.device, self.cache.bytes)
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
