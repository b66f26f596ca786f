"""How long an all-reduce takes: start-up time and bus bandwidth by message size, fitted where public measurements exist."""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ..records import Number

if TYPE_CHECKING:
    from ..devices import Device

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CONSTANTS = Path(__file__).with_name("allreduce.toml")

DATASHEET_SHARE = (0.6, 0.85, 0.2)
"""Share of one direction of a link that a ring reaches: as expected, at best, at worst; the fits here reach 0.38 to 0.86 within a node."""
DATASHEET_STEP_S = (10e-6, 3e-6, 40e-6)
"""Seconds before the first byte, in the same order."""


class Segment(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Messages from one size on, up to the next segment: where the library switches protocol or algorithm."""

    from_bytes: float
    start_s: float
    """Alpha: seconds of an empty message."""
    bus_bytes_per_s: float
    """Bytes that one rank sends in a ring over the seconds they take, NCCL tests' "busbw"; 0: time does not grow with size."""
    band: tuple[float, float]
    """Factors from the prediction to the lower and the upper end of the 90 % band."""


class Fit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One number of ranks on one topology."""

    topology: str
    ranks: int
    ranks_per_node: int
    segments: tuple[Segment, ...]
    largest_bytes: float
    """Largest message that was measured."""
    held_out_error: float
    """Mean of |predicted/measured - 1| over sizes that no constant has seen."""
    held_out_coverage: float
    """Share of them within the band."""
    held_out_sizes: int

    def segment(self, message_bytes: float) -> Segment:
        """The segment that a message of this size falls into."""
        return next((s for s in reversed(self.segments) if message_bytes >= s.from_bytes), self.segments[0])

    def time_s(self, message_bytes: float) -> float:
        """Seconds of one all-reduce of `message_bytes`: alpha + 2(n-1)/n S / busbw."""
        segment = self.segment(message_bytes)
        wire = 2 * (self.ranks - 1) / self.ranks * message_bytes
        return segment.start_s + (wire / segment.bus_bytes_per_s if segment.bus_bytes_per_s else 0.0)


class _Topology(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    title: str
    devices: tuple[str, ...]


class _Constants(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    source: str
    licence: str
    method: str
    topology: dict[str, _Topology]
    fit: tuple[Fit, ...]


@functools.cache
def _constants() -> _Constants:
    return msgspec.convert(tomllib.loads(CONSTANTS.read_text(encoding="utf-8")), _Constants)


def fits() -> tuple[Fit, ...]:
    """All that were fitted."""
    return _constants().fit


def find_fit(device: str | None, ranks: int, ranks_per_node: int | None = None) -> Fit | None:
    """The constants for `ranks` devices of this name of the catalogue; None where nobody measured that.

    Args:
        device: A name of the catalogue.
        ranks: In the collective.
        ranks_per_node: In one machine; all of them if not given.
    """
    topologies = {name for name, topology in _constants().topology.items() if device in topology.devices}
    per_node = ranks_per_node or ranks
    return next((f for f in fits() if f.topology in topologies and (f.ranks, f.ranks_per_node) == (ranks, per_node)), None)


def allreduce_time(
    sizes: Sequence[float], ranks: int, *, device: Device | None = None, link: Number | None = None, ranks_per_node: int | None = None
) -> Number | None:
    """Predict the seconds that all-reduces of these sizes take one after another, nothing overlapped.

    Where the device's topology was measured: the fitted constants. Else alpha + wire bytes over a share of
    the link's rate, with a band that is wide because it must be.

    Args:
        sizes: Bytes of each message; an all-gather or a reduce-scatter of S counts as an all-reduce of S/2, which sends the same.
        ranks: In the collective.
        device: An entry of the catalogue.
        link: Rate of one direction of what connects the ranks, where there are no constants.
        ranks_per_node: In one machine; all of them if not given.

    Returns:
        None where neither constants nor a link's rate are known.
    """
    if ranks == 1 or not sizes:
        return Number(value=0.0, unit="s", source="estimated", method="one rank: nothing is sent")
    fit = find_fit(device.name if device else None, ranks, ranks_per_node)
    if fit is not None:
        return _fitted(fit, sizes)
    if link is None:
        return None
    wire = 2 * (ranks - 1) / ranks * sum(sizes)
    expected, low, high = (len(sizes) * start + wire / (link.value * share) for share, start in zip(DATASHEET_SHARE, DATASHEET_STEP_S, strict=True))
    return Number(
        value=expected, unit="s", source="estimated", method=f"datasheet: {100 * DATASHEET_SHARE[0]:.0f} % of {link.method}, no all-reduce measured there",
        interval=(low, high), interval_kind="band from 85 % to 20 % of the link's rate",
    )  # fmt: skip


def _fitted(fit: Fit, sizes: Sequence[float]) -> Number:
    times = [(fit.time_s(size), fit.segment(size).band) for size in sizes]
    value = sum(time for time, _ in times)
    beyond = max(sizes) > 1.5 * fit.largest_bytes
    widen = 1.3 if beyond else 1.0
    further = ", widened beyond the largest" if beyond else ""
    return Number(
        value=value, unit="s", source="estimated",
        method=f"alpha + wire bytes / bus bandwidth, fitted on {fit.topology} with {fit.ranks} ranks: {100 * fit.held_out_error:.1f} % off on held-out sizes",
        interval=(sum(t * low for t, (low, _) in times) / widen, sum(t * high for t, (_, high) in times) * widen),
        interval_kind=f"90 % band; it held {100 * fit.held_out_coverage:.0f} % of {fit.held_out_sizes} held-out sizes{further}",
        n=fit.held_out_sizes, quality="extrapolated" if beyond else "ok",
    )  # fmt: skip
