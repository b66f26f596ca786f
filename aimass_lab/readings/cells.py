"""What running a notebook cell takes: wall and processor time, and the memory that it left behind, on the GPU too."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import psutil

from ..records import CellUse, GpuAccount, Note, Number
from .base import measured
from .nvml import Nvml, open_nvml

_INVISIBLE = Note(code="missing:cell.gpu_time", text="the driver counts no process of this number: in a container it uses the host's numbers")


class CellMeter:
    """Measures one cell after the other; what it reads costs well under a millisecond a cell, and loads nothing.

    Args:
        nvml: A module with the calls of ``pynvml``; that one if not given.
    """

    def __init__(self, nvml: Any = None) -> None:
        self._process = psutil.Process()
        self._nvml_module = nvml
        self._nvml: Nvml | Note | None = None
        self._starts: list[tuple[float, float, float, int, int | None]] = []

    @property
    def nested(self) -> bool:
        """Whether a cell is running: what ended just now was run by it."""
        return bool(self._starts)

    def start(self) -> None:
        """A cell begins; a cell may run another."""
        self._starts.append((time.time(), time.perf_counter(), time.process_time(), self._process.memory_info().rss, _tensor_bytes()))

    def finish(self, *, number: int, code: str, cell_id: str | None = None, raised: str | None = None) -> tuple[CellUse, tuple[Note, ...]] | None:
        """It ended: what it took, and why something is not known; None if its beginning was not seen.

        Args:
            number: Its execution count.
            code: Its source.
            cell_id: The front end's name of it.
            raised: Class of the error that ended it.
        """
        if not self._starts:
            return None
        since_s, wall, cpu, resident, held = self._starts.pop()
        wall_s, cpu_s = time.perf_counter() - wall, time.process_time() - cpu
        now = _tensor_bytes()
        gpu_time, notes = (None, ()) if now is None else self._gpu_time(since_s, wall_s)
        use = CellUse(
            number=number,
            cell_id=cell_id,
            first_line=next((line.strip() for line in code.splitlines() if line.strip()), "")[:80],
            raised=raised,
            wall_time=measured(wall_s, "s", "wall clock"),
            cpu_time=measured(cpu_s, "s", "processor time of all threads of the kernel's process"),
            memory_growth_bytes=measured(self._process.memory_info().rss - resident, "B", "resident memory of the kernel's process, after less before"),
            gpu_memory_growth_bytes=None if now is None else measured(now - (held or 0), "B", "torch's account of its tensors, after less before"),
            gpu_time=gpu_time,
        )
        return use, notes

    def _gpu_time(self, since_s: float, wall_s: float) -> tuple[Number | None, tuple[Note, ...]]:
        if self._nvml is None:
            self._nvml = open_nvml(self._nvml_module)
        if isinstance(self._nvml, Note):
            return None, (Note(code="missing:cell.gpu_time", text=self._nvml.text),)
        share = self._nvml.process_share(os.getpid(), since_s)
        if share is None:
            return None, (_INVISIBLE,)
        return measured(share * wall_s, "s", "share of the driver's samples in which a GPU kernel of this process ran, times wall clock"), ()


def gpu_accounts() -> tuple[GpuAccount, ...]:
    """Whose memory it is, for each GPU that torch uses in this process; nothing where it uses none."""
    torch = _torch_with_gpu()
    if torch is None:
        return ()
    accounts = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        held, reserved = torch.cuda.memory_allocated(index), torch.cuda.memory_reserved(index)
        accounts.append(
            GpuAccount(
                index=index,
                tensors_bytes=measured(held, "B", "torch's allocator: memory that tensors hold"),
                cached_bytes=measured(reserved - held, "B", "torch's allocator: reserved, less what tensors hold"),
                elsewhere_bytes=measured(max(0, total - free - reserved), "B", "the driver's used memory, less what torch's allocator reserved"),
                free_bytes=measured(free, "B", "the driver"),
            )
        )
    return tuple(accounts)


def _tensor_bytes() -> int | None:
    """Memory of all GPUs that torch's tensors hold in this process; None where torch is not loaded or has not touched a GPU."""
    torch = _torch_with_gpu()
    return None if torch is None else sum(torch.cuda.memory_allocated(i) for i in range(torch.cuda.device_count()))


def _torch_with_gpu() -> Any:
    torch = sys.modules.get("torch")
    # Asking a GPU that this process has not used would create a context on it: memory taken by the one who only looks.
    return torch if torch is not None and hasattr(torch, "cuda") and torch.cuda.is_initialized() else None
