"""The caching allocator's rules, each held against blocks and segments counted by hand."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aimass_lab.tracing.allocator import AllocatorPeaks, AllocatorRules, CachingAllocator, CapacityExceededError, replay, rules_from_environment

KIB, MIB = 2**10, 2**20
EXPANDABLE = AllocatorRules(expandable_segments=True)


def held(allocator):
    return allocator.requested_bytes, allocator.allocated_bytes, allocator.reserved_bytes


def allocator_with(*sizes, rules=None):
    allocator = CachingAllocator(rules)
    for number, size in enumerate(sizes):
        allocator.allocate(number, size)
    return allocator


@pytest.mark.parametrize(
    ("size", "allocated", "reserved"),
    [
        (1, 512, 2 * MIB),
        (512, 512, 2 * MIB),
        (513, 1024, 2 * MIB),
        (MIB, MIB, 2 * MIB),
        (MIB + 1, MIB + 512, 20 * MIB),
        (10 * MIB - 512, 10 * MIB - 512, 20 * MIB),
        # From 10 MiB on a segment of its own, rounded up to 2 MiB: a rest of 1 MiB or less stays with the block.
        (10 * MIB, 10 * MIB, 10 * MIB),
        (10 * MIB + 1, 10 * MIB + 512, 12 * MIB),
        (11 * MIB, 12 * MIB, 12 * MIB),
        (11 * MIB - 512, 11 * MIB - 512, 12 * MIB),
        (300 * MIB, 300 * MIB, 300 * MIB),
    ],
)
def test_one_request(size, allocated, reserved):
    assert held(allocator_with(size)) == (size, allocated, reserved)


def test_a_request_of_nothing_takes_nothing():
    allocator = allocator_with(0)
    allocator.release(0)
    assert held(allocator) == (0, 0, 0)


def test_small_requests_share_a_segment_until_it_is_full():
    assert allocator_with(*[MIB, MIB]).reserved_bytes == 2 * MIB
    assert allocator_with(*[MIB, MIB, 512]).reserved_bytes == 4 * MIB
    assert allocator_with(*[512] * 4096).reserved_bytes == 2 * MIB
    assert allocator_with(*[512] * 4097).reserved_bytes == 4 * MIB


def test_small_and_large_requests_do_not_share():
    assert allocator_with(2 * MIB, 512).reserved_bytes == 22 * MIB


def test_a_large_block_is_split_only_if_more_than_a_mebibyte_is_left():
    # 20 - 18.5 leaves 1.5 MiB, which serves another request; 20 - 19 leaves 1 MiB, which stays with the block.
    split = allocator_with(9 * MIB, 9 * MIB + 512 * KIB)
    assert held(split) == (18 * MIB + 512 * KIB, 18 * MIB + 512 * KIB, 20 * MIB)
    split.allocate("third", MIB + 512 * KIB)
    assert split.reserved_bytes == 20 * MIB
    whole = allocator_with(9 * MIB + 512 * KIB, 9 * MIB + 512 * KIB)
    assert held(whole) == (19 * MIB, 9 * MIB + 512 * KIB + 10 * MIB + 512 * KIB, 20 * MIB)


def test_the_smallest_block_that_is_large_enough_is_taken():
    allocator = allocator_with(12 * MIB, 30 * MIB, 16 * MIB)
    for number in range(3):
        allocator.release(number)
    allocator.allocate("fits the 16 MiB", 13 * MIB)
    allocator.allocate("fits the 30 MiB", 29 * MIB)
    allocator.allocate("fits the 12 MiB", 12 * MIB)
    assert allocator.reserved_bytes == 58 * MIB
    allocator.allocate("fits nothing", 4 * MIB)
    assert allocator.reserved_bytes == 78 * MIB


def test_neighbours_that_are_free_join():
    allocator = allocator_with(5 * MIB, 5 * MIB, 5 * MIB, 5 * MIB)
    assert allocator.reserved_bytes == 20 * MIB
    allocator.release(1)
    allocator.release(2)
    allocator.allocate("over both", 10 * MIB)
    assert allocator.reserved_bytes == 20 * MIB
    allocator.allocate("one more", 2 * MIB)
    assert allocator.reserved_bytes == 40 * MIB


def test_blocks_of_two_segments_never_join():
    allocator = allocator_with(20 * MIB, 20 * MIB)
    allocator.release(0)
    allocator.release(1)
    allocator.allocate("across", 40 * MIB)
    assert allocator.reserved_bytes == 80 * MIB


def test_released_memory_stays_reserved_until_the_cache_is_emptied():
    allocator = allocator_with(50 * MIB, 3 * MIB)
    allocator.release(0)
    assert held(allocator) == (3 * MIB, 3 * MIB, 70 * MIB)
    allocator.empty_cache()
    assert allocator.reserved_bytes == 20 * MIB  # its rest belongs to a segment in use
    allocator.release(1)
    allocator.empty_cache()
    assert held(allocator) == (0, 0, 0)
    assert allocator.peaks == AllocatorPeaks(requested_bytes=53 * MIB, allocated_bytes=53 * MIB, reserved_bytes=70 * MIB)


def test_expandable_segments_grow_by_pages_and_split_at_512_bytes():
    allocator = allocator_with(11 * MIB, rules=EXPANDABLE)
    assert held(allocator) == (11 * MIB, 11 * MIB, 20 * MIB)
    allocator.allocate(1, 19 * MIB)
    assert held(allocator) == (30 * MIB, 30 * MIB, 40 * MIB)
    allocator.allocate(2, 512)
    assert allocator.reserved_bytes == 42 * MIB  # small requests have a segment of their own, with pages of 2 MiB
    allocator.release(0)
    allocator.allocate("in the hole", 11 * MIB)
    assert allocator.reserved_bytes == 42 * MIB
    allocator.release(1)
    allocator.allocate("over the end", 49 * MIB)
    assert allocator.reserved_bytes == 62 * MIB


def test_an_expandable_segment_has_no_fragments_of_its_own():
    # The same stream leaves 80 MiB reserved where segments do not grow.
    allocator = allocator_with(20 * MIB, 20 * MIB, rules=EXPANDABLE)
    allocator.release(0)
    allocator.release(1)
    allocator.allocate("across", 40 * MIB)
    assert allocator.reserved_bytes == 40 * MIB
    allocator.release("across")
    allocator.empty_cache()
    assert allocator.reserved_bytes == 0


def test_without_caching_every_request_goes_to_the_driver():
    allocator = allocator_with(100, 3 * MIB, rules=AllocatorRules(caching=False))
    assert held(allocator) == (3 * MIB + 100,) * 3
    allocator.release(1)
    assert held(allocator) == (100,) * 3


def test_a_full_device_gives_back_what_is_wholly_free_before_it_refuses():
    allocator = allocator_with(30 * MIB, 30 * MIB, rules=AllocatorRules(capacity_bytes=64 * MIB))
    allocator.release(0)
    allocator.allocate("in its place", 32 * MIB)
    assert allocator.reserved_bytes == 62 * MIB
    with pytest.raises(CapacityExceededError):
        allocator.allocate("too much", 4 * MIB)


def test_what_cannot_be_allocated():
    allocator = allocator_with(512)
    with pytest.raises(ValueError, match="held already"):
        allocator.allocate(0, 512)
    with pytest.raises(ValueError, match="-1"):
        allocator.allocate(1, -1)


def test_a_stream_is_replayed_in_order():
    events = [("weight", 4 * MIB), ("a", 8 * MIB), ("b", 8 * MIB), ("a", -8 * MIB), ("c", 8 * MIB), ("b", -8 * MIB)]
    assert replay(events) == AllocatorPeaks(requested_bytes=20 * MIB, allocated_bytes=20 * MIB, reserved_bytes=20 * MIB)
    assert replay([]) == AllocatorPeaks(0, 0, 0)
    assert replay([("x", 700)]).slack_bytes == 2 * MIB - 700


def test_the_environments_settings_are_read(monkeypatch):
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF", raising=False)
    monkeypatch.delenv("PYTORCH_ALLOC_CONF", raising=False)
    monkeypatch.delenv("PYTORCH_NO_CUDA_MEMORY_CACHING", raising=False)
    assert rules_from_environment() == AllocatorRules()
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:64,expandable_segments:True")
    assert rules_from_environment() == EXPANDABLE
    monkeypatch.setenv("PYTORCH_NO_CUDA_MEMORY_CACHING", "1")
    assert not rules_from_environment().caching


SIZES = st.one_of(st.integers(1, 4 * KIB), st.integers(1, 3 * MIB), st.integers(MIB, 64 * MIB))
STREAMS = st.lists(st.tuples(st.integers(0, 12), SIZES), max_size=60)


@given(STREAMS, st.booleans())
@settings(max_examples=300, deadline=None)
def test_whatever_comes_reserved_holds_allocated_holds_requested(stream, expandable):
    """A key that comes again is released. Blocks tile their segments, whatever the order."""
    allocator = CachingAllocator(AllocatorRules(expandable_segments=expandable))
    sizes = {}
    for key, size in stream:
        if key in sizes:
            allocator.release(key)
            del sizes[key]
        else:
            allocator.allocate(key, size)
            sizes[key] = size
        assert allocator.requested_bytes == sum(sizes.values())
        assert allocator.reserved_bytes >= allocator.allocated_bytes >= allocator.requested_bytes >= 0
        assert allocator.allocated_bytes + sum(free_sizes(allocator)) == allocator.reserved_bytes
        assert_no_overlap(allocator)
    for key in sizes:
        allocator.release(key)
    assert (allocator.requested_bytes, allocator.allocated_bytes) == (0, 0)
    assert allocator.peaks.reserved_bytes >= allocator.peaks.allocated_bytes >= allocator.peaks.requested_bytes
    allocator.empty_cache()
    assert allocator.reserved_bytes == 0


def free_sizes(allocator):
    return [block.size for pool in (allocator._small, allocator._large) for block in pool.blocks.values()]


def assert_no_overlap(allocator):
    blocks = [*allocator._held.values(), *allocator._small.blocks.values(), *allocator._large.blocks.values()]
    places = sorted((block.address, block.address + block.size) for block in blocks)
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(places))
