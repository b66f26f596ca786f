"""Ways to run replicas of one model: variant x node type x share x batch limit, and what rate one replica carries within the target."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..devices import given_ladder
from ..planning.allocation import Allocator, Candidate, Load
from ..planning.overhead import FRONT_END_S
from ..planning.queueing import Arrivals, Bursty, Poisson, ServiceTimes
from ..planning.simulations import Simulations
from ..records import BatchPoint, ModelInfo, Number, derived
from ..units import format_seconds, format_share
from .inventory import NodeKind
from .problem import Option
from .shares import Share

QUICK = (4_000, 5)
"""Requests and replications of a simulation while the rate that a replica carries is looked for."""

Ladder = tuple[BatchPoint, ...]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """The original of a model or a copy that was tried, on one device."""

    technique: str
    ladder: Ladder
    cores: Number | None = None
    """Cores that a call held while it was measured; None where it was not measured on a processor."""
    weight_bytes: int
    front_end_per_s: float = 1 / FRONT_END_S
    """More requests per second than the server of one replica reads, whatever its model could do."""


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One model with what is asked of it."""

    model: ModelInfo
    rate: Number
    """Requests per second."""
    p99: Number
    value: float = 1.0
    tenant: str = ""
    variants: Mapping[str, Sequence[Variant]]
    """By device."""

    @property
    def name(self) -> str:
        """Of the model."""
        return self.model.name


@dataclass(frozen=True, kw_only=True)
class Way:
    """What stands behind an `Option`: everything that is shown of it."""

    kind: NodeKind
    share: Share
    variant: Variant
    ladder: Ladder
    """On its share."""
    candidate: Candidate
    capacity: Number
    read_at_most: bool
    """Whether the server binds the capacity, and not the model."""
    cores: Number
    memory: Number | None
    """Of the host, for one replica; None where nothing says how much."""
    device_memory: Number | None
    """Of the device, for one replica."""


def law(rate: float, burst: float) -> Arrivals:
    """Arrivals at a service, or at one of its replicas."""
    return Bursty(rate, burst=burst) if burst > 1 else Poisson(rate)


@functools.lru_cache(maxsize=50_000)
def capacity(ladder: Ladder, batch: int, p99_s: float, burst: float, seed: int) -> float:
    """Requests per second that one replica carries with the upper end of the band of its p99 within the target; 0: none.

    Requests go to replicas at random, so a replica sees the law of the whole at its part of the rate: what one carries does not
    depend on how many there are. It is therefore simulated once, and kept for whatever is planned next.

    Args:
        ladder: Latencies by batch size.
        batch: Most items in a batch; it gathers what waits and holds nothing back.
        p99_s: Target.
        burst: Rate of bursts over the rate between them.
        seed: Of everything random.
    """
    service = ServiceTimes.from_points(ladder)
    candidate = Candidate(device="", service=service, max_batch_size=batch, max_wait_s=0.0)
    if candidate.alone_s() > p99_s:
        return 0.0
    load = Load(arrivals=law(1.0, burst), latency_p99_s=p99_s, seed=seed)
    return Allocator(load, quick=QUICK, thorough=QUICK, known=Simulations()).highest_rate(candidate, 1, lambda rate: law(rate, burst))


def find_ways(
    ask: Ask, kinds: Sequence[NodeKind], *, burst: float, seed: int, held_back: Mapping[str, float], progress: Callable[[str], None]
) -> list[tuple[int, Way]]:
    """All ways to run one model that are worth considering, each with the place of its node type.

    Args:
        ask: The model.
        kinds: Types of nodes.
        burst: Rate of bursts over the rate between them.
        seed: Of everything random.
        held_back: Share of what a replica carries that is not planned with, by model, because a joint simulation missed the target.
        progress: Told what is being simulated.
    """
    found = []
    for place, kind in enumerate(kinds):
        given = kind.latency.get(ask.name)
        variants = [_given(ask, given)] if given else ask.variants.get(kind.device, ())
        for variant in variants:
            for share in kind.shares:
                progress(f"{ask.name} ({variant.technique}) on {kind.name}, {share.name}")
                found += [(place, way) for way in _by_batch(ask, kind, variant, share, burst, seed, 1 - held_back.get(ask.name, 0.0))]
    return found


def _given(ask: Ask, latency: Mapping[int, float]) -> Variant:
    """Latencies that the user gave for a node type, as a ladder."""
    return Variant(technique="none", ladder=given_ladder(latency, "given for this type of node"), weight_bytes=ask.model.weight_bytes)


def _by_batch(ask: Ask, kind: NodeKind, variant: Variant, share: Share, burst: float, seed: int, kept: float) -> list[Way]:
    """The batch limits that carry more than every smaller one; a larger one that carries no more only needs more memory."""
    ladder = share.ladder(variant.ladder)
    service = ServiceTimes.from_points(ladder)
    ways: list[Way] = []
    best = 0.0
    for batch in (2**k for k in range(service.max_batch_size.bit_length())):
        if service.stable_rate(batch) <= best:
            continue
        peak = _peak(variant.ladder, batch)
        if not _device_holds(kind, share, peak):
            break
        by_model = capacity(ladder, batch, ask.p99.value, burst, seed)
        carried = min(by_model, variant.front_end_per_s)
        if carried <= best * 1.01:
            continue
        best = carried
        inputs = [("p99", ask.p99), *((f"batch {p.batch_size}", p.latency_p50) for p in ladder)]
        method = "highest rate at which the upper end of the simulated p99 is within the target"
        if carried < by_model:
            method = f"more than one front end reads, which computes on one core, {format_seconds(1 / carried)} for a request at least"
            inputs.append(("front end", Number(value=carried, unit="request/s", source="estimated", method=method)))
        rate = derived(
            carried * kept, "request/s", method if kept == 1 else f"{method}, less {format_share(1 - kept)} that the joint simulation asked for", inputs
        )
        candidate = Candidate(device=kind.device, service=service, max_batch_size=batch, max_wait_s=0.0)
        ways.append(
            Way(
                kind=kind,
                share=share,
                variant=variant,
                ladder=ladder,
                candidate=candidate,
                capacity=rate,
                read_at_most=carried < by_model,
                cores=_cores(kind, variant),
                memory=_host_memory(kind, variant, peak),
                device_memory=None if kind.on_processor else peak,
            )
        )
    return ways


def _peak(ladder: Ladder, batch: int) -> Number | None:
    known = [p.peak_memory_bytes for p in ladder if p.peak_memory_bytes and p.batch_size >= batch]
    return min(known, key=lambda n: n.value) if known else None


def _device_holds(kind: NodeKind, share: Share, peak: Number | None) -> bool:
    if kind.on_processor or kind.device_memory is None or peak is None:
        return True
    return peak.value <= kind.device_memory.value * (share.memory or 1.0)


def _cores(kind: NodeKind, variant: Variant) -> Number:
    if variant.cores is not None and kind.on_processor:
        return variant.cores
    return Number(value=1, unit="core", source="assumed", method="one core a replica" if kind.on_processor else "one core feeds the device")


def _host_memory(kind: NodeKind, variant: Variant, peak: Number | None) -> Number | None:
    """On a processor what `spec` asks for too; beside an accelerator the weights while they are loaded, and the server."""
    from ..spec import SERVER_MEMORY_BYTES, replica_memory

    if kind.on_processor:
        return None if peak is None else replica_memory(peak, variant.weight_bytes)
    loading = Number(value=variant.weight_bytes, unit="B", source="assumed", method="weights while they are loaded")
    server = Number(value=SERVER_MEMORY_BYTES, unit="B", source="assumed", method="interpreter, server and runtime without a model")
    return derived(loading.value + server.value, "B", "loading + server", [("loading", loading), ("server", server)])


def option_of(model: int, place: int, way: Way) -> Option:
    """The way as the program reads it."""
    lot = "" if way.kind.on_processor else way.share.lot
    part = way.share.memory
    if lot and part is None:  # shared with its neighbours: as much as it needs
        total, needed = way.kind.device_memory, way.device_memory
        part = needed.value / total.value if total and needed else 0.0
    return Option(
        model=model,
        node=place,
        cores=way.cores.value,
        memory=way.memory.value if way.memory else 0.0,
        lot=lot,
        compute=way.share.compute if lot else 0.0,
        device_memory=part or 0.0 if lot else 0.0,
        rate=way.capacity.value,
        tag=way,
    )


def unbeaten(options: Sequence[Option]) -> list[Option]:
    """Leave out what another option of the same model and kind of device beats: it carries as much and takes no more of anything."""

    def beats(a: Option, b: Option) -> bool:
        needs = [(getattr(a, name), getattr(b, name)) for name in ("cores", "memory", "compute", "device_memory")]
        better = a.rate >= b.rate and all(x <= y for x, y in needs)
        return better and (a.rate > b.rate or any(x < y for x, y in needs))

    groups: dict[tuple[int, int, str], list[Option]] = {}
    for option in options:
        groups.setdefault((option.model, option.node, option.lot), []).append(option)
    return [o for group in groups.values() for o in group if not any(beats(other, o) for other in group)]
