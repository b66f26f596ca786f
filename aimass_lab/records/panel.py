"""What JupyterLab's side panel shows: the machine with its kernels and servers, and what one kernel tells of itself."""

from __future__ import annotations

import msgspec

from .history import Service
from .number import Note, Number, Record
from .readings import Readings


class KernelUse(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one kernel takes of the machine, its child processes included."""

    kernel_id: str
    name: str
    """Of the kernel spec: ``"python3"``."""
    path: str | None = None
    """The notebook or console that runs in it, as the server names it."""
    busy: bool = False
    pid: int | None = None
    """None where the kernel runs on another machine; then nothing else is known."""
    num_processes: int = 0
    cpu: Number | None = None
    """Cores kept busy."""
    memory_bytes: Number | None = None
    gpu_memory_bytes: Number | None = None
    """On all GPUs, as the driver counts."""
    gpu_utilization: Number | None = None
    """Share of the time in which one of its GPU kernels ran, summed over GPUs."""


class GpuHolder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whoever holds memory of one GPU: a kernel of this server with its child processes, or another process."""

    kernel_id: str | None = None
    """None for a process of somebody else, or where it cannot be told."""
    name: str
    """The kernel's notebook or the process's name; where that is not known, the driver's number of the process."""
    pids: tuple[int, ...]
    """As the driver counts."""
    memory_bytes: Number | None = None
    utilization: Number | None = None
    """Share of the time in which one of its GPU kernels ran."""


class GpuMemory(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whose the memory of one GPU, or one MIG instance, is; holders, rest and free add up to all of it."""

    index: int
    """The driver's."""
    mig_instance: int | None = None
    uuid: str | None = None
    holders: tuple[GpuHolder, ...] = ()
    """Those with most memory first."""
    rest_bytes: Number
    """Used, less what the holders are known to hold: the driver's own, processes that it does not list here, and holders whose memory it does not tell."""
    free_bytes: Number


class Live(Record, frozen=True, kw_only=True, tag="live"):
    """One look at the machine, at the kernels of one Jupyter server, and at what is being served."""

    version: str
    """Of this package in the Jupyter server."""
    readings: Readings
    """`Readings.cpu.process` and the like are the Jupyter server's own."""
    kernels: tuple[KernelUse, ...] = ()
    gpus: tuple[GpuMemory, ...] = ()
    """Of each of `Readings.gpus` that the driver gives the memory of."""
    services: tuple[Service, ...] = ()
    newest_run: int = 0
    """Number of the newest run in the history; 0 where there is none."""
    notes: tuple[Note, ...] = ()
    """Why something of a kernel, or the history, cannot be read."""


class HeldModel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A variable of the notebook that is a model."""

    name: str
    type: str
    """Its class, or that of the model which a `Study` or `Workload` holds."""
    num_parameters: int
    weight_bytes: int
    device: str
    inputs_known: bool
    """Whether a verb can be called without naming inputs."""


class Task(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A verb that is running."""

    verb: str
    share: float
    """Done, 0 to 1; 0 where it does not tell."""
    text: str


class Result(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a verb found, in one line."""

    verb: str
    headline: str
    taken_at: str
    """UTC, ISO 8601."""


class CellUse(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What running one cell took of its kernel's process."""

    number: int
    """As ``[7]`` beside the cell."""
    cell_id: str | None = None
    """None where the front end does not tell."""
    first_line: str
    raised: str | None = None
    """Class of the error that ended it."""
    wall_time: Number
    cpu_time: Number
    memory_growth_bytes: Number | None = None
    """Resident memory after less before."""
    gpu_memory_growth_bytes: Number | None = None
    """Memory that torch's tensors hold, after less before; None where torch uses no GPU."""
    gpu_time: Number | None = None
    """In which its GPU kernels ran, by the driver's samples."""


class GpuAccount(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whose memory of one GPU it is, as this kernel sees it; the parts add up to what the driver reports."""

    index: int
    """torch's."""
    uuid: str | None = None
    """The driver's identity of it; None where torch does not tell."""
    tensors_bytes: Number
    cached_bytes: Number
    """Kept by torch's allocator, and free for its next tensors."""
    context_bytes: Number | None = None
    """The rest of what this kernel's process holds, by the driver's account of it: CUDA's context, libraries, other allocators; None where it does not tell."""
    elsewhere_bytes: Number
    """What the driver reports as used, less torch's and `context_bytes`: other processes and the driver's own; without that, contexts too."""
    free_bytes: Number


class KernelState(Record, frozen=True, kw_only=True, tag="kernel_state"):
    """What a kernel with this package loaded tells the panel."""

    version: str
    """Of this package in the kernel."""
    pid: int
    models: tuple[HeldModel, ...] = ()
    inputs: tuple[str, ...] = ()
    """Variables that a model could be called with."""
    running: Task | None = None
    results: tuple[Result, ...] = ()
    """Newest first."""
    cells: tuple[CellUse, ...] = ()
    """Newest first; a cell that was run twice is there twice."""
    gpus: tuple[GpuAccount, ...] = ()
    notes: tuple[Note, ...] = ()
    """For everything that is None or absent, why."""
