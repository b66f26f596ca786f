"""What this machine is doing right now: accelerators, processor, memory, network, storage."""

from __future__ import annotations

import msgspec

from .number import Note, Number, Record


class GpuProcess(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One process on one GPU."""

    pid: int
    """As the driver counts: in a container this may be the host's number."""
    name: str | None = None
    """None where the process cannot be looked up from here."""
    ours: bool
    """Whether it is the process that read this; False also where numbers differ, so that nobody can tell."""
    memory_bytes: Number | None = None
    """None where the driver keeps no account of single processes."""
    utilization: Number | None = None
    """Share of the time in which one of its kernels ran; None where none did, or the driver does not tell."""


class GpuReading(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One GPU, or one MIG instance of it, as its driver sees it."""

    index: int
    """The driver's, which ``CUDA_VISIBLE_DEVICES`` does not change."""
    mig_instance: int | None = None
    """Which instance of a divided GPU; None for the whole one."""
    name: str
    uuid: str | None = None
    utilization: Number | None = None
    """Share of the time in which any kernel ran; a kernel on one multiprocessor counts like one on all."""
    memory_utilization: Number | None = None
    """Share of the time in which the memory was read or written."""
    memory_used_bytes: Number | None = None
    memory_total_bytes: Number | None = None
    power: Number | None = None
    power_limit: Number | None = None
    temperature: Number | None = None
    sm_clock: Number | None = None
    memory_clock: Number | None = None
    pcie_receive: Number | None = None
    """From the host to the GPU."""
    pcie_transmit: Number | None = None
    throttled: tuple[str, ...] = ()
    """What keeps its clocks down, in words; empty also where the driver does not tell."""
    processes: tuple[GpuProcess, ...] = ()


class CpuReading(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The processor."""

    name: str
    usable_cores: Number
    """Affinity and the container's quota respected."""
    machine: Number | None = None
    """Busy cores of the whole machine."""
    process: Number | None = None
    """Cores that this process kept busy."""
    container: Number | None = None
    """Cores that this process's container or control group kept busy."""
    cores: tuple[float, ...] = ()
    """Busy share of each core, 0 to 1, in the kernel's order; of the cores this process may use."""
    load_1min: Number | None = None
    """Runnable and blocked tasks of the machine, averaged over a minute."""
    frequency: Number | None = None
    power: Number | None = None
    """Of the processor packages and their memory."""
    stalled: Number | None = None
    """Share of the last ten seconds in which some task waited for a core."""
    throttled: Number | None = None
    """Share of the time in which the container's quota held this process's group back."""
    stolen: Number | None = None
    """Share of the time of the cores of `cores` in which the host of this virtual machine ran something else; 0 where no host shares them."""


class MemoryReading(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Main memory."""

    process_bytes: Number | None = None
    """Resident memory of this process."""
    process_unique_bytes: Number | None = None
    """What would become free if this process ended."""
    machine_used_bytes: Number | None = None
    machine_total_bytes: Number | None = None
    container_used_bytes: Number | None = None
    """Of the control group whose limit binds; file pages that can be dropped at once are left out."""
    container_limit_bytes: Number | None = None
    """None where there is no limit."""
    usable_bytes: Number | None = None
    """What this process can still take: the container's limit and the machine's free memory, whichever is less."""
    swap_used_bytes: Number | None = None
    stalled: Number | None = None
    """Share of the last ten seconds in which some task waited for memory."""


class NetworkReading(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One network interface that this process can see."""

    interface: str
    receive: Number
    transmit: Number


class StorageReading(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What this process reads from and writes to storage; pages served from memory are not counted."""

    read: Number | None = None
    write: Number | None = None
    stalled: Number | None = None
    """Share of the last ten seconds in which some task waited for input or output."""


class Readings(Record, frozen=True, kw_only=True, tag="readings"):
    """One look at the machine; rates are means over `interval`."""

    taken_at: str
    """UTC, ISO 8601, of the end of the interval."""
    interval: Number
    """Seconds between the two looks that the rates come from."""
    cpu: CpuReading
    memory: MemoryReading
    gpus: tuple[GpuReading, ...] = ()
    network: tuple[NetworkReading, ...] = ()
    storage: StorageReading
    notes: tuple[Note, ...] = ()
    """For everything that is None, why: ``"missing:gpu"``, ``"missing:cpu.power"``."""
