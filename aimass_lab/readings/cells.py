"""What running a notebook cell takes: wall and processor time, and the memory that it left behind, on the GPU too; and whose the GPU's memory is."""

from __future__ import annotations

import sys
import time
from typing import Any

import psutil

from ..records import CellUse, GpuAccount, Note, Number
from .base import measured
from .nvml import Nvml, cuda_uuid, open_nvml


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
        session = self._session()
        if isinstance(session, Note):
            return None, (Note(code="missing:cell.gpu_time", text=session.text),)
        share = session.own_share(since_s)
        if isinstance(share, str):
            return None, (Note(code="missing:cell.gpu_time", text=f"how long a cell keeps the GPU busy is not known: {share}"),)
        return measured(share * wall_s, "s", "share of the driver's samples in which a GPU kernel of this process ran, times wall clock"), ()

    def accounts(self) -> tuple[tuple[GpuAccount, ...], tuple[Note, ...]]:
        """Whose memory it is, for each GPU that torch uses in this process, and why something is not known; nothing where it uses none."""
        torch = _torch_with_gpu()
        if torch is None:
            return (), ()
        found, notes = zip(*(self._account(torch, index) for index in range(torch.cuda.device_count())), strict=True)
        return found, tuple(dict.fromkeys(note for note in notes if note is not None))

    def _account(self, torch: Any, index: int) -> tuple[GpuAccount, Note | None]:
        free, total = torch.cuda.mem_get_info(index)
        held, reserved = torch.cuda.memory_allocated(index), torch.cuda.memory_reserved(index)
        session = self._session()
        own = session.text if isinstance(session, Note) else session.own_bytes(index)
        context = None if isinstance(own, str) else max(0, own - reserved)
        account = GpuAccount(
            index=index,
            uuid=cuda_uuid(index),
            tensors_bytes=measured(held, "B", "torch's allocator: memory that tensors hold"),
            cached_bytes=measured(reserved - held, "B", "torch's allocator: reserved, less what tensors hold"),
            context_bytes=None if context is None else measured(context, "B", "the driver's account of this process, less what torch's allocator reserved"),
            elsewhere_bytes=measured(max(0, total - free - reserved - (context or 0)), "B", "the driver's used memory, less what is this process's"),
            free_bytes=measured(free, "B", "the driver"),
        )
        if not isinstance(own, str):
            return account, None
        return account, Note(code="missing:gpu.context", text=f"what CUDA's context takes is not told apart from other processes: {own}")

    def _session(self) -> Nvml | Note:
        if self._nvml is None:
            self._nvml = open_nvml(self._nvml_module)
        return self._nvml


def _tensor_bytes() -> int | None:
    """Memory of all GPUs that torch's tensors hold in this process; None where torch is not loaded or has not touched a GPU."""
    torch = _torch_with_gpu()
    return None if torch is None else sum(torch.cuda.memory_allocated(i) for i in range(torch.cuda.device_count()))


def _torch_with_gpu() -> Any:
    torch = sys.modules.get("torch")
    # Asking a GPU that this process has not used would create a context on it: memory taken by the one who only looks.
    return torch if torch is not None and hasattr(torch, "cuda") and torch.cuda.is_initialized() else None
