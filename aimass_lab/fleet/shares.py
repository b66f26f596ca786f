"""How replicas share a device: whole, MIG, MPS and time-slicing, with the isolation that each gives.

None of it was measured here: what a part of a device does is bounded by arithmetic, and every number that follows from it is called assumed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import InputError
from ..records import BatchPoint, Number, derived
from .problem import WHOLE

if TYPE_CHECKING:
    from ..devices import Device

MIG_MEMORY = {7: {1: 1, 2: 2, 3: 4, 4: 4, 7: 8}, 4: {1: 1, 2: 2, 4: 4}}
"""Most instances of a device -> compute slices of an instance -> its memory slices (NVIDIA MIG User Guide: a device of 7 has 8 memory
slices, one of 4 has 4). Any instances whose slices add up can be placed, the largest first."""
ISOLATION = {
    WHOLE: "has the device for itself",
    "mig": "MIG: memory, its bandwidth and compute are isolated",
    "mps": "MPS: at most this part of the compute; neither memory bandwidth nor faults are isolated, so neighbours are taken to keep to their part",
    "time_slice": "time-slicing: neither memory nor faults are isolated; each waits for the others' turns, and switching is taken to cost nothing",
}
HELP = "shares are written whole, mig/2 (compute slices), mps/4 or time_slice/4 (replicas of one device)"


@dataclass(frozen=True)
class Share:
    """A part of one device."""

    kind: str
    """A key of `ISOLATION`."""
    compute: float
    """Part of the device's compute that is there when all others work."""
    memory: float | None
    """Part of its memory; None: as much as a replica needs, together with the others."""
    name: str

    @property
    def lot(self) -> str:
        """What a device that is used so cannot be used for besides."""
        return self.kind if self.kind in (WHOLE, "mig") else self.name

    def ladder(self, points: tuple[BatchPoint, ...]) -> tuple[BatchPoint, ...]:
        """Latencies on this part, from those on the whole device: longer by its part of compute or bandwidth, whichever is less.

        A call that does not fill the device takes less; the interval goes down to what it takes there.
        """
        pace = min(self.compute, self.memory or 1.0)  # a MIG instance has as much of the bandwidth as of the memory
        if pace == 1:
            return points
        part = Number(value=pace, unit="ratio", source="assumed", method=f"part of the device: {self.name}; not measured")
        return tuple(_stretched(point, part) for point in points)


def _stretched(point: BatchPoint, part: Number) -> BatchPoint:
    def longer(number: Number) -> Number:
        low, high = number.ends
        return derived(
            number.value / part.value, "s", "latency on the whole device over the part of it", [("latency", number), ("part", part)],
            interval=(low, high / part.value), interval_kind="from a call that does not fill the device to one that does",
        )  # fmt: skip

    inputs = [("throughput", point.throughput), ("part", part)]
    return BatchPoint(
        batch_size=point.batch_size,
        latency_p50=longer(point.latency_p50),
        latency_p95=longer(point.latency_p95),
        latency_p99=longer(point.latency_p99),
        throughput=derived(point.throughput.value * part.value, "item/s", "throughput of the whole device x the part of it", inputs),
        peak_memory_bytes=point.peak_memory_bytes,
    )


def read_share(text: str, device: Device | None) -> Share:
    """Read ``"whole"``, ``"mig/2"``, ``"mps/4"`` or ``"time_slice/4"``.

    Args:
        text: As a user writes it.
        device: What is shared; None: a device that is attached here.

    Raises:
        InputError: it is none of these, or the device cannot be shared so.
    """
    match = re.fullmatch(r"(whole|mig|mps|time_slice)(?:/(\d+))?", text.strip())
    if match is None or (match[2] is None) != (match[1] == WHOLE):
        raise InputError(f"{text!r} is no share of a device", help=HELP)
    kind, number = match[1], int(match[2] or 1)
    if kind == WHOLE:
        return Share(WHOLE, 1.0, 1.0, WHOLE)
    if kind != "mig":
        if not 2 <= number <= 48:
            raise InputError(f"{text!r}: a device is shared by 2 to 48 replicas", help=HELP)
        return Share(kind, 1 / number, None, f"{kind}/{number}")
    slices = device.mig_slices if device else None
    if slices is None:
        name = device.name if device else "this device"
        raise InputError(f"{name} has no MIG instances, as far as the catalogue knows", help="give mig_slices = 7 (or 4) for it in your device catalogue")
    profiles = MIG_MEMORY[slices]
    if number not in profiles:
        raise InputError(f"{text!r}: instances of {device.name if device else 'it'} have {', '.join(map(str, profiles))} compute slices")
    return Share("mig", number / slices, profiles[number] / max(profiles.values()), f"mig/{number}")
