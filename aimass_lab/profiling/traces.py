"""Traces: recorded here or anywhere, added up by torch_tb_profiler's own parsers in this process, bounded in size."""

from __future__ import annotations

import contextlib
import gc
import logging
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from ..records import Note, Number, TraceSummary
from .traces_file import load_trace, prepare_, shown_by_plugin
from .traces_tables import Tables

if TYPE_CHECKING:
    from ..workload import Workload

PERFETTO_LIMIT_BYTES = 500_000_000
"""Uncompressed traces above this have left the browser's view empty (pytorch/kineto issues 595 and 805)."""
MOST_REMARKS = 3
"""Of the parser's own remarks, kinds to pass on."""
NO_KERNELS = Note(
    code="missing:kernels",
    text="the profiler recorded no GPU kernels: the driver keeps its counters for administrators (NVreg_RestrictProfilingToAdminUsers), or CUPTI is taken",
)

Progress = Callable[[float, str], None]


def trace_model(
    workload: Workload,
    path: Path,
    *,
    calls: int = 3,
    batch_size: int | None = None,
    shapes: bool = True,
    memory: bool = True,
    stacks: bool = False,
    progress: Progress | None = None,
) -> TraceSummary:
    """Trace some calls of a model, write the trace and sum it up.

    Takes the arguments, and raises the errors, of `traces_record.record_trace`.
    """
    from ..environment import LoadMeter, read_environment
    from .traces_record import record_trace

    tell = progress or (lambda share, text: None)
    tell(0.0, "trace the model")
    with LoadMeter() as load:
        file = record_trace(workload, path, calls=calls, batch_size=batch_size, shapes=shapes, memory=memory, stacks=stacks)
    tell(0.6, "add the trace up")
    environment = read_environment(workload.torch_device, load=load)
    summary = _summarise(file, Tables(environment.id, "noisy" if load.noisy else "ok"))
    notes = (*summary.notes, *load.notes(), *([NO_KERNELS] if workload.torch_device.type == "cuda" and not summary.kernels else []))
    return msgspec.structs.replace(summary, model=workload.info(), environment=environment, notes=notes)


def read_trace(path: Path | str) -> TraceSummary:
    """Sum up a trace that torch's profiler wrote, on whatever machine.

    Args:
        path: The file: ``.json`` or ``.json.gz``.

    Raises:
        InputError: there is no such file, or it is no trace of torch's profiler.
    """
    return _summarise(Path(path), Tables(None, "ok"))


def _summarise(path: Path, tables: Tables) -> TraceSummary:
    from torch_tb_profiler.profiler.data import RunProfileData
    from torch_tb_profiler.profiler.run_generator import RunGenerator

    with _collector_paused(), _parser_remarks() as remarks:
        trace = load_trace(path)
        num_events = len(trace["traceEvents"])
        prepare_(trace)
        data = RunProfileData.from_json(path.name, None, trace)
        run = RunGenerator(path.name, None, data).generate_run_profile()
        parts = tables.read(data, run)
    size = path.stat().st_size
    return TraceSummary(
        path=str(path),
        size_bytes=Number(value=size, unit="B", source="measured", method="size of the file"),
        num_events=num_events,
        tensorboard=f"%tensorboard --logdir {path.parent}" if shown_by_plugin(path) else None,
        notes=(*_notes(remarks), *_size_notes(path, size)),
        **parts,
    )


@contextlib.contextmanager
def _collector_paused() -> Iterator[None]:
    """Keep the garbage collector from walking a million objects again and again while they are made: a third of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@contextlib.contextmanager
def _parser_remarks() -> Iterator[Counter[str]]:
    """Keep the parsers' log messages off the screen, and count them by kind."""
    from torch_tb_profiler.utils import get_logger

    kinds: Counter[str] = Counter()

    class Count(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno >= logging.WARNING:
                kinds[_kind(record.getMessage())] += 1

    logger, handler = get_logger(), Count()
    propagates = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        with warnings.catch_warnings():
            # torch_tb_profiler's last release is older than pandas 3 and uses what that deprecates.
            warnings.filterwarnings("ignore", module=r"torch_tb_profiler\.")
            yield kinds
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagates


_KINDS = {
    "should not intersect": "calls that overlap on one thread without one being inside the other were left out",
    "don't correlate": "calls of the GPU's runtime belong to no operator",
    "different external id": "kernels and the calls that launched them disagree on their operator",
    "Remove the last": "the last steps were left out of the breakdown: not all of their kernels are in the trace",
    "cannot find forward": "operators of the backward pass belong to no operator of the forward pass",
}


def _kind(message: str) -> str:
    return next((text for part, text in _KINDS.items() if part in message), message.splitlines()[0][:200] if message else "")


def _notes(remarks: Counter[str]) -> tuple[Note, ...]:
    return tuple(Note(code="W-TRACE", text=f"{text} ({count}×)") for text, count in remarks.most_common(MOST_REMARKS))


def _size_notes(path: Path, size: int) -> tuple[Note, ...]:
    found: Any = size
    if path.suffix == ".gz":
        with path.open("rb") as file:
            file.seek(-4, 2)
            found = int.from_bytes(file.read(4), "little")  # RFC 1952: the size before compression, modulo 2^32
    if found <= PERFETTO_LIMIT_BYTES:
        return ()
    text = f"the trace has {found / 1e6:.0f} MB before compression, which Perfetto in a browser may not show: trace fewer calls"
    return (Note(code="W-LARGE", text=text),)
