"""What a request rate asks of a device, and how many of them it keeps busy: the field's formulas with their coefficients."""

from __future__ import annotations

from typing import Literal

import msgspec

from .model import ModelInfo
from .number import Note, Number, Record

FormName = Literal["additive", "per family", "roofline", "table"]
"""How a call's time is put together. *additive*: one coefficient each for arithmetic, traffic and launches;
*per family*: the same with coefficients of each family of operators; *roofline*: the larger of arithmetic and
traffic, operator by operator; *table*: measured by batch size."""


class Coefficients(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Device-seconds that each unit of demand takes, for all operators or for one family of them."""

    family: str
    """``"all"``, or a family: ``"gemm"``."""
    alpha: Number
    """Seconds per FLOP."""
    beta: Number
    """Seconds per byte of memory traffic."""
    epsilon: Number
    """Seconds per operator launched."""
    held_out_error: Number | None = None
    """Median error on configurations that the fit had not seen; None where nothing was fitted."""


class Form(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One way to get from demand to device time."""

    name: FormName
    time_per_request: Number
    """Device-seconds, the network's part among them where it is known."""
    busy_devices: Number
    """R_alloc: device-seconds asked for per second; on a processor core-seconds, so that it counts cores."""
    replicas: Number
    """The least that the utilisation asked for allows."""
    held_out_error: Number | None = None
    """Median error of the form on operators that its fit had not seen."""
    network_error: Number | None = None
    """Median error of the form on small networks that were timed and not fitted."""


class ResourceDemand(Record, frozen=True, kw_only=True, tag="resource_demand"):
    """What a rate of requests asks for: C, S, N, and the devices that are busy with them."""

    model: ModelInfo
    device: str
    batch_size: int
    requests_per_s: Number
    utilization: Number
    """Highest share of its time that a device should be busy."""
    compute_flops_per_s: Number
    """C_req."""
    memory_capacity_bytes: Number
    """S_req as room: of one replica at this batch."""
    memory_bytes_per_s: Number
    """S_req as traffic."""
    network_bytes_per_s: Number
    """N_req: requests and responses in the binary form of the Open Inference Protocol."""
    launches_per_s: Number
    coefficients: tuple[Coefficients, ...]
    """The fit over all operators first, then one per family."""
    gamma: Number | None = None
    """Seconds per byte of network traffic."""
    forms: tuple[Form, ...]
    replica_width: Number
    """Cores or devices that one replica holds."""
    chosen: FormName
    """The measured table where there is one and the machine was quiet, else the form with the least error on networks."""
    busy_devices: Number
    replicas: Number
    """A lower bound: waiting and bursts ask for more, which a plan simulates."""
    difference: str | None = None
    """Measured against formula, in words."""
    decision_time: Number
    """δ of one scheduling decision on this machine."""
    jobs: Number
    """J: requests that the two readings of T_schedule are about."""
    schedule_overhead: Number
    """First reading, δ·J/P: time spent deciding, by P replicas."""
    makespan: Number
    """Second reading: time to finish J requests on P replicas, from the least possible to the greatest of any list schedule."""
    notes: tuple[Note, ...] = ()
