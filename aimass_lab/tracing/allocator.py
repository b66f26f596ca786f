"""Replays a stream of allocations and releases through the rules of torch's CUDA caching allocator: what it would hold and reserve.

No GPU and no torch is needed: the allocator is a set of rules over sizes, and the sizes are known from a pass over
shapes. The rules are those of ``c10/cuda/CUDACachingAllocator.cpp`` and ``c10/core/AllocatorConfig.h`` (torch 2.x):
requests are rounded up to 512 bytes; up to 1 MiB they come from 2 MiB segments, up to 10 MiB from 20 MiB segments,
above from segments of their own size rounded up to 2 MiB; the smallest free block that is large enough is taken, and
split if what is left over is worth keeping; a block that is released joins its free neighbours; segments stay reserved.
"""

from __future__ import annotations

import os
from bisect import bisect_left, insort
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from itertools import islice

MIB = 2**20
SMALLEST_BLOCK = 512
SMALL_REQUEST = MIB
"""Requests up to here are served from the small pool."""
SMALL_SEGMENT = 2 * MIB
LARGE_SEGMENT = 20 * MIB
OWN_SEGMENT = 10 * MIB
"""Requests from here on get a segment of their own size."""
SEGMENT_STEP = 2 * MIB
"""Own segments are rounded up to this."""

CUBLAS_WORKSPACE = 2 * 4 * MIB + 8 * 16 * 1024
"""Bytes that a cuBLAS handle takes per stream through the allocator, unless ``CUBLAS_WORKSPACE_CONFIG`` says otherwise."""
CUBLAS_WORKSPACE_SM90 = 32 * MIB
"""The same on devices of compute capability 9.0."""


class CapacityExceededError(Exception):
    """The device has no room for a segment, even after every segment that is wholly free was given back."""


@dataclass(frozen=True)
class AllocatorRules:
    """How the allocator is set up.

    Args:
        expandable_segments: ``PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True``: one segment per pool that grows by pages.
        caching: False: ``PYTORCH_NO_CUDA_MEMORY_CACHING``: every request goes to the driver as it is.
        capacity_bytes: What the device can give to segments; None: without end.
    """

    expandable_segments: bool = False
    caching: bool = True
    capacity_bytes: int | None = None


@dataclass(frozen=True)
class AllocatorPeaks:
    """The most that was held at once, by three ways of counting, each as torch's statistics name them."""

    requested_bytes: int
    """What tensors asked for (``requested_bytes.all.peak``)."""
    allocated_bytes: int
    """Blocks handed out, rounding and unsplit rests included (``max_memory_allocated``)."""
    reserved_bytes: int
    """Segments taken from the driver (``max_memory_reserved``)."""

    @property
    def slack_bytes(self) -> int:
        """Reserved beyond what was asked for."""
        return self.reserved_bytes - self.requested_bytes


@dataclass(eq=False, slots=True)
class _Block:
    address: int
    size: int
    pool: _Pool
    free: bool = True
    requested: int = 0
    before: _Block | None = None
    after: _Block | None = None

    @property
    def key(self) -> tuple[int, int]:
        """Place in the list of free blocks: by size, then by address."""
        return self.size, self.address


@dataclass(eq=False, slots=True)
class _Pool:
    """Free blocks of one pool on one stream."""

    small: bool
    page: int
    keys: list[tuple[int, int]] = field(default_factory=list)
    blocks: dict[tuple[int, int], _Block] = field(default_factory=dict)
    last: _Block | None = None
    """The block at the end of an expandable segment."""

    def add(self, block: _Block) -> None:
        insort(self.keys, block.key)
        self.blocks[block.key] = block

    def remove(self, block: _Block) -> None:
        del self.keys[bisect_left(self.keys, block.key)]
        del self.blocks[block.key]

    def best_fit(self, size: int, beside: _Block | None) -> _Block | None:
        """The smallest free block of at least `size`; `beside` is left out."""
        fits = islice(self.keys, bisect_left(self.keys, (size, -1)), None)
        return next((self.blocks[key] for key in fits if self.blocks[key] is not beside), None)


class CachingAllocator:
    """The allocator of one device, on one stream.

    Args:
        rules: How it is set up.
    """

    def __init__(self, rules: AllocatorRules | None = None) -> None:
        self.rules = rules or AllocatorRules()
        self.requested_bytes = self.allocated_bytes = self.reserved_bytes = 0
        self._peaks = (0, 0, 0)
        self._small, self._large = _Pool(True, SMALL_SEGMENT), _Pool(False, LARGE_SEGMENT)
        self._held: dict[Hashable, _Block] = {}
        self._next_address = 0

    @property
    def peaks(self) -> AllocatorPeaks:
        """The most that was held at once so far; the three peaks need not have come at the same moment."""
        return AllocatorPeaks(*self._peaks)

    def allocate(self, key: Hashable, size: int) -> None:
        """Serve a request of `size` bytes and call what it got `key`; a request of nothing gets nothing.

        Raises:
            ValueError: the size is negative, or `key` is held already.
            CapacityExceededError: the device is full.
        """
        if size < 0 or key in self._held:
            raise ValueError(f"cannot allocate {size} bytes as {key!r}" + (": it is held already" if key in self._held else ""))
        if size == 0:
            return
        block = self._find(size)
        block.free, block.requested = False, size
        self._held[key] = block
        self.requested_bytes += size
        self.allocated_bytes += block.size
        now = (self.requested_bytes, self.allocated_bytes, self.reserved_bytes)
        self._peaks = (max(self._peaks[0], now[0]), max(self._peaks[1], now[1]), max(self._peaks[2], now[2]))

    def release(self, key: Hashable) -> None:
        """Give back what was allocated as `key`; what was never held is passed over, as a request of nothing is."""
        block = self._held.pop(key, None)
        if block is None:
            return
        self.requested_bytes -= block.requested
        self.allocated_bytes -= block.size
        block.free, block.requested = True, 0
        if not self.rules.caching:
            self.reserved_bytes -= block.size
            return
        for neighbour in (block.before, block.after):
            if neighbour is not None and neighbour.free:
                block.pool.remove(neighbour)
                self._join(block, neighbour)
        block.pool.add(block)

    def empty_cache(self) -> None:
        """Give segments that are wholly free back to the driver, as ``torch.cuda.empty_cache`` does; of an expandable one, the pages at its end."""
        for pool in (self._small, self._large):
            for block in list(pool.blocks.values()):
                if pool.last is block:
                    self._shrink(pool, block)
                elif block.before is None and block.after is None:
                    pool.remove(block)
                    self.reserved_bytes -= block.size

    def _shrink(self, pool: _Pool, last: _Block) -> None:
        pages = last.size // pool.page * pool.page
        pool.remove(last)
        self.reserved_bytes -= pages
        last.size -= pages
        if last.size:
            pool.add(last)
            return
        pool.last = last.before
        if last.before is not None:
            last.before.after = None

    # --- inside

    def _find(self, size: int) -> _Block:
        if not self.rules.caching:
            self._reserve(size)
            return _Block(0, size, self._large)
        rounded = -(-size // SMALLEST_BLOCK) * SMALLEST_BLOCK
        pool = self._small if rounded <= SMALL_REQUEST else self._large
        # The end of an expandable segment can grow, so it counts as the largest block there is.
        tail = pool.last if self.rules.expandable_segments else None
        block = pool.best_fit(rounded, beside=tail)
        if block is not None:
            pool.remove(block)
        else:
            block = self._grow(pool, rounded) if self.rules.expandable_segments else self._segment(pool, rounded)
        return self._split(block, rounded)

    def _segment(self, pool: _Pool, size: int) -> _Block:
        own = -(-size // SEGMENT_STEP) * SEGMENT_STEP
        taken = SMALL_SEGMENT if pool.small else LARGE_SEGMENT if size < OWN_SEGMENT else own
        self._reserve(taken)
        block = _Block(self._next_address, taken, pool)
        self._next_address += taken
        return block

    def _grow(self, pool: _Pool, size: int) -> _Block:
        last = pool.last
        at_hand = last.size if last is not None and last.free else 0
        missing = max(0, -(-(size - at_hand) // pool.page) * pool.page)
        self._reserve(missing)
        if last is not None and last.free:
            pool.remove(last)
            last.size += missing
            return last
        # Each pool's segment has addresses of its own; the small one lies below the large one.
        start = (0 if pool.small else 2**60) if last is None else last.address + last.size
        block = _Block(start, missing, pool, before=last)
        if last is not None:
            last.after = block
        pool.last = block
        return block

    def _split(self, block: _Block, size: int) -> _Block:
        rest = block.size - size
        keeps = rest >= SMALLEST_BLOCK if block.pool.small or self.rules.expandable_segments else rest > SMALL_REQUEST
        if keeps:
            block.size = size
            left = _Block(block.address + size, rest, block.pool, before=block, after=block.after)
            if block.after is not None:
                block.after.before = left
            block.after = left
            if block.pool.last is block:
                block.pool.last = left
            block.pool.add(left)
        return block

    def _join(self, block: _Block, neighbour: _Block) -> None:
        """Make `block` cover its free neighbour too."""
        if neighbour is block.before:
            block.address, block.before = neighbour.address, neighbour.before
            if neighbour.before is not None:
                neighbour.before.after = block
        else:
            block.after = neighbour.after
            if neighbour.after is not None:
                neighbour.after.before = block
        block.size += neighbour.size
        if block.pool.last is neighbour:
            block.pool.last = block

    def _reserve(self, size: int) -> None:
        capacity = self.rules.capacity_bytes
        if capacity is not None and self.reserved_bytes + size > capacity:
            self.empty_cache()
            if self.reserved_bytes + size > capacity:
                raise CapacityExceededError(f"{size} bytes more than {self.reserved_bytes} of {capacity}")
        self.reserved_bytes += size


def replay(events: Iterable[tuple[Hashable, int]], rules: AllocatorRules | None = None) -> AllocatorPeaks:
    """Send a stream through the allocator.

    Args:
        events: What is allocated or released, and its bytes: above 0 an allocation, below a release, in order.
        rules: How the allocator is set up.

    Raises:
        CapacityExceededError: the stream does not fit into ``rules.capacity_bytes``.
    """
    allocator = CachingAllocator(rules)
    for key, size in events:
        if size > 0:
            allocator.allocate(key, size)
        else:
            allocator.release(key)
    return allocator.peaks


def rules_from_environment() -> AllocatorRules:
    """How this process's allocator is set up: ``PYTORCH_CUDA_ALLOC_CONF`` (or ``PYTORCH_ALLOC_CONF``) and ``PYTORCH_NO_CUDA_MEMORY_CACHING``."""
    settings = os.environ.get("PYTORCH_ALLOC_CONF") or os.environ.get("PYTORCH_CUDA_ALLOC_CONF") or ""
    expandable = "expandable_segments:true" in settings.lower().replace(" ", "")
    return AllocatorRules(expandable_segments=expandable, caching="PYTORCH_NO_CUDA_MEMORY_CACHING" not in os.environ)
