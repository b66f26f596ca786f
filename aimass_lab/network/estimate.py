"""The network demand of one model: requests, copies, roll-outs and traffic between devices, put together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..devices import Device, find_by_driver_name, get_device
from ..errors import UnsupportedError
from ..interrupts import sparing_imports
from ..records import MessageForm, NetworkDemand, Note, Number, Traffic, Unit, derived
from ..units import format_bytes
from .allreduce import allreduce_time
from .collectives import Flow
from .copies import estimate_copy, measure_copies
from .forms import Codecs, LoadOnLink, make_forms
from .payload import request_parts, request_sizes, response_parts, response_sizes
from .rollout import WAYS, busiest_bytes, rollout_time_s
from .scenario import Scenario
from .strategies import Subject, kv_transfer_bytes, step_flows

if TYPE_CHECKING:
    import torch

    from ..tracing.trace import Trace
    from ..workload import Workload

LARGE_RESPONSE_BYTES = 2**20
NODE_RANKS = 8
"""Devices that are taken to share a machine where nobody said."""


@dataclass(frozen=True)
class _Place:
    """The device the copies and collectives are about."""

    name: str
    entry: Device | None
    attached: torch.device | None


@sparing_imports
def estimate_network(
    workload: Workload,
    scenario: Scenario | None = None,
    *,
    batch_size: int | None = None,
    codecs: Codecs | None = None,
    runtime_bytes: Number | None = None,
    budget_s: float = 2.0,
    progress: Callable[[float, str], None] | None = None,
) -> NetworkDemand:
    """Estimate what a model puts on networks and buses; the model is neither run nor touched.

    Bytes of messages and collectives are exact arithmetic on shapes; JSON depends on the values and carries a band.

    Args:
        workload: Model and example inputs.
        scenario: Request rate, links, strategy.
        batch_size: Items per call in copies and steps, on one rank; those of the inputs if not given.
        codecs: Makes the codecs to be timed; nothing is timed without.
        runtime_bytes: What a container image holds beside the weights.
        budget_s: Seconds for timing the codecs.
        progress: Called now and then with the share that is done and what comes next.

    Raises:
        InputError: the scenario contradicts itself, or `batch_size` cannot be used.
        ModelError: the model raises on these inputs.
        UnknownNameError: no such device.
        UnsupportedError: a device that is not attached.
    """
    from ..tracing.trace import trace_call

    tell = progress or (lambda share, text: None)
    scenario = scenario or Scenario()
    place = _find_place(scenario.device, workload)
    tell(0.0, "following one call")
    trace = trace_call(workload.model, workload.call, batch_size=batch_size)
    tell(0.3, "timing what writes and reads the messages")
    messages, message_notes = _messages(workload, trace, scenario, codecs, budget_s)
    tell(0.9, "adding up")
    return _Assembly(workload, trace, scenario, place, runtime_bytes).make(messages, message_notes)


def _find_place(name: str | None, workload: Workload) -> _Place:
    import torch

    if name is None:
        own = workload.torch_device
        name = "cpu" if own.type == "meta" else str(own)
    if name == "cpu":
        return _Place("cpu", None, torch.device("cpu"))
    if name.partition(":")[0] == "cuda":
        index = name.partition(":")[2] or "0"
        if not torch.cuda.is_available() or not index.isdigit() or int(index) >= torch.cuda.device_count():
            raise UnsupportedError(f"the device {name} is not attached to this machine", help="name a device of the catalogue, or cpu")
        device = torch.device("cuda", int(index))
        properties = torch.cuda.get_device_properties(device)
        return _Place(f"cuda:{index}", find_by_driver_name(properties.name, properties.total_memory), device)
    return _Place(name, get_device(name), None)


def _messages(workload: Workload, trace: Trace, scenario: Scenario, codecs: Codecs | None, budget_s: float) -> tuple[tuple[MessageForm, ...], tuple[Note, ...]]:
    inputs = request_parts(workload.model, workload.call)
    outputs = response_parts(trace.outputs, workload.call, trace.batch_size)
    sizes = (
        request_sizes(workload.model, workload.call, workload.name),
        response_sizes(workload.name, trace.outputs, workload.call, trace.batch_size),
    )
    load = LoadOnLink(scenario.requests_per_s, scenario.link, scenario.egress_price)
    return make_forms(workload.name, (inputs, outputs), sizes, load, codecs, budget_s)


class _Assembly:
    """Puts the record together."""

    def __init__(self, workload: Workload, trace: Trace, scenario: Scenario, place: _Place, runtime: Number | None) -> None:
        self.workload, self.trace, self.scenario, self.place, self.runtime = workload, trace, scenario, place, runtime
        self.model = workload.info()
        self.notes: list[Note] = []

    def make(self, forms: tuple[MessageForm, ...], notes: tuple[Note, ...]) -> NetworkDemand:
        scenario = self.scenario
        on_meta = any(p.device.type == "meta" for p in self.workload.model.parameters())
        method = "sizes of parameters and buffers, tied ones once"
        weights = Number(value=self.model.weight_bytes, unit="B", source="estimated" if on_meta else "measured", method=method)
        image = self.image(weights)
        subject = Subject(self.workload.model, self.workload.call, self.trace)
        sharing = step_flows(subject, scenario.strategy, scenario.ranks)
        step = tuple(self.traffic(flow) for flow in sharing.flows)
        self.notes += sharing.notes
        kv = kv_transfer_bytes(subject)
        (inward, inward_time), (outward, outward_time) = self.copies()
        self.notes += self.remarks(inward_time, step)
        return NetworkDemand(
            model=self.model,
            batch_size=self.trace.batch_size,
            device=self.place.name,
            requests_per_s=scenario.requests_per_s,
            link_bytes_per_s=scenario.link,
            forms=forms,
            host_to_device_bytes=inward,
            device_to_host_bytes=outward,
            host_to_device_time=inward_time,
            device_to_host_time=outward_time,
            egress_price=scenario.egress_price,
            weight_bytes=weights,
            image_bytes=image,
            weights_time=self.over_link(weights, "weight_bytes"),
            image_time=None if image is None else self.over_link(image, "image_bytes"),
            replicas=scenario.replicas,
            rollouts=tuple(self.rollouts(weights)),
            strategy=scenario.strategy,
            ranks=scenario.ranks,
            step=step,
            step_bytes=_total([(t.name, t.bytes) for t in step], "B"),
            step_time=_total([(t.name, t.time) for t in step if t.time], "s") if all(t.time for t in step) else None,
            kv_transfer_bytes=None if kv is None else _exact(kv, "2·L·S·n_kv·d·itemsize of one request as long as the inputs"),
            notes=(*notes, *self.notes),
        )

    def image(self, weights: Number) -> Number | None:
        if self.runtime is None:
            self.notes.append(Note(code="missing:image_bytes", text="what the bundle's container image holds beside the weights is not known here"))
            return None
        low, high = self.runtime.ends
        return derived(
            weights.value + self.runtime.value, "B", "weights, the bundle's packages and a base image", [("weight_bytes", weights), ("runtime", self.runtime)],
            interval=(weights.value + low, weights.value + high), interval_kind=self.runtime.interval_kind,
        )  # fmt: skip

    def over_link(self, size: Number, name: str) -> Number:
        rate = self.scenario.link
        low, high = size.ends
        # TCP, TLS and Ethernet take 6 % of the link; shared links and disks on the way may take most of the rest.
        return derived(
            size.value / (0.94 * rate.value), "s", "bytes over 94 % of the link's rate", [(name, size), ("link_bytes_per_s", rate)],
            interval=(low / rate.value, high / (0.3 * rate.value)), interval_kind="band from the whole link to 30 % of it",
        )  # fmt: skip

    def rollouts(self, weights: Number) -> list[Traffic]:
        found = []
        for way in WAYS:
            sent = busiest_bytes(int(weights.value), self.scenario.replicas, way)
            seconds = rollout_time_s(int(weights.value), self.scenario.replicas, self.scenario.link.value, way)
            inputs = [("weight_bytes", weights), ("link_bytes_per_s", self.scenario.link)]
            time = derived(
                seconds / 0.94, "s", f"weights to {self.scenario.replicas} replicas, {way}, at 94 % of the link's rate", inputs,
                interval=(seconds, seconds / 0.3), interval_kind="band from the whole link to 30 % of it",
            )  # fmt: skip
            size = derived(sent, "B", f"what the busiest machine sends, {way}", inputs[:1])
            found.append(Traffic(name="weights to replicas", kind=way, calls=self.scenario.replicas, bytes=size, time=time))
        return found

    def copies(self) -> tuple[tuple[Number, Number | None], tuple[Number, Number | None]]:
        """Bytes and seconds to the device and from it."""
        import torch

        inputs = [t.numel() * t.element_size() for t in self.workload.call.tensors()]
        scale = self.trace.input_bytes / sum(inputs) if sum(inputs) else 1.0
        sizes = [round(size * scale) for size in inputs]
        outputs = [int(torch.Size(o.shape).numel()) * o.dtype.itemsize for o in self.trace.outputs]
        if self.place.name == "cpu":
            here = _exact(0, "the model runs in the host's memory: nothing is copied")
            return (here, None), (here, None)
        return (
            (_exact(sum(sizes), "inputs of one call"), self.copy_time(sizes, to_device=True)),
            (_exact(sum(outputs), "outputs of one call"), self.copy_time(outputs, to_device=False)),
        )

    def copy_time(self, sizes: list[int], *, to_device: bool) -> Number | None:
        if self.place.attached is not None:
            from ..environment import read_environment

            return measure_copies(sizes, self.place.attached, to_device=to_device, environment=read_environment(self.place.attached).id)
        return estimate_copy(sum(sizes), len(sizes), self.place.entry) if self.place.entry else None

    def traffic(self, flow: Flow) -> Traffic:
        method = f"{flow.formula}, n = {flow.ranks}; sent by one rank, headers left out"
        return Traffic(name=flow.name, kind=flow.kind, calls=flow.calls, bytes=_exact(flow.sent_bytes, method), time=self.flow_time(flow))

    def flow_time(self, flow: Flow) -> Number | None:
        """Every collective as the all-reduce that sends as much."""
        ranks, total = flow.ranks, sum(flow.sizes)
        wire_per_byte = flow.sent_bytes / total if total else 0.0
        sizes = [size * wire_per_byte / (2 * (ranks - 1) / ranks) for size in flow.sizes]
        per_node = self.scenario.ranks_per_node or min(ranks, NODE_RANKS)
        server = self.scenario.strategy == "parameter_server"  # crosses the machines' links, not those between devices
        return allreduce_time(
            sizes, ranks, device=None if server else self.place.entry, link=self.rank_link(ranks > per_node or server), ranks_per_node=per_node
        )

    def rank_link(self, between_nodes: bool) -> Number:
        """One direction of what connects the ranks, where nobody measured an all-reduce."""
        entry = self.place.entry
        both = None if entry is None or between_nodes else entry.link_bytes_per_s or entry.pcie_bytes_per_s
        if both is None or entry is None:
            return self.scenario.link
        what = "device link" if entry.link_bytes_per_s else "PCIe"
        return Number(value=both.value / 2, unit="B/s", source="datasheet", method=f"one direction of {entry.name}'s {what}")

    def large_output(self) -> Note | None:
        """One output that is nearly all of a long response: whoever needs less of it should say so."""
        import torch

        sizes = {o.name: int(torch.Size(o.shape).numel()) * o.dtype.itemsize / self.trace.batch_size for o in self.trace.outputs}
        total = sum(sizes.values())
        name = max(sizes, key=lambda n: sizes[n], default="")
        if total < LARGE_RESPONSE_BYTES or sizes[name] < 0.9 * total:
            return None
        share = f"{100 * sizes[name] / total:.0f} % of a response is the output {name!r}"
        text = f"{share}, {format_bytes(sizes[name])} an item: a model that returns less of it sends less"
        return Note(code="W-LARGE-RESPONSE", text=text)

    def remarks(self, inward_time: Number | None, step: Sequence[Traffic]) -> list[Note]:
        notes = []
        if self.scenario.requests_per_s is None:
            notes.append(Note(code="missing:requests_per_s", text="no request rate was given, so bytes per second and costs are left out: rate="))
        if self.scenario.egress_price is None:
            notes.append(Note(code="missing:egress_cost", text="no price was given, and none is built in: egress_price= in USD/GB, as your provider bills it"))
        if inward_time is None and self.place.name != "cpu":
            notes.append(Note(code="missing:host_to_device_time", text=f"the PCIe rate of {self.place.name} is unknown"))
        if large := self.large_output():
            notes.append(large)
        if any(t.time for t in step):
            notes.append(Note(code="W-OVERLAP", text="step times are the collectives one after another; frameworks hide part of them behind computation"))
        if self.trace.ran:
            notes.append(Note(code="W-REAL-RUN", text=f"the model was called once, because a pass over shapes was not possible: {self.trace.why_ran}"))
        return notes


def _exact(value: float, method: str) -> Number:
    return Number(value=round(value) if float(value).is_integer() else value, unit="B", source="estimated", method=method)


def _total(named: Sequence[tuple[str, Number]], unit: Unit) -> Number | None:
    if not named:
        return None
    numbers = [number for _, number in named]
    spread = [n.ends for n in numbers]
    banded = any(n.interval for n in numbers)
    return derived(
        sum(n.value for n in numbers), unit, "sum over the step", named,
        interval=(sum(low for low, _ in spread), sum(high for _, high in spread)) if banded else None,
        interval_kind="sum of the bands" if banded else None,
    )  # fmt: skip
