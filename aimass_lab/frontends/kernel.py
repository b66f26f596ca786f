"""What a kernel tells JupyterLab's side panel: its models, what is running and was found, and what each cell took.

The kernel opens the comm, so that kernels without this package never hear from the panel; a panel that is opened later
finds the comm by its target's name and asks. Nothing is sent but when something changed, or was asked for.
"""

from __future__ import annotations

import datetime
import os
import sys
from collections import UserDict, deque
from typing import Any

import msgspec

from .. import __version__
from ..readings.cells import CellMeter
from ..records import CellUse, HeldModel, KernelState, Note, Record, Result, Task, to_json
from ..verbs import WATCHERS
from .pace import Pace

TARGET = "aimass-lab"
KEPT_CELLS, KEPT_RESULTS = 40, 20
KEPT_GROWN = 5
"""Cells that grew memory the most are kept however old they are: it is still there."""
MOST_PARTS = 32
"""Of what a model is called with; a larger collection of tensors is no call."""


class KernelLink:
    """Keeps the state of one kernel, and sends it to the panels that listen.

    Args:
        shell: The kernel's IPython shell.
        inputs_known: Whether a variable's value can be given to a verb without inputs.
    """

    def __init__(self, shell: Any, inputs_known: Any) -> None:
        self._shell, self._inputs_known = shell, inputs_known
        self._meter = CellMeter()
        self._cells: list[CellUse] = []
        self._results: deque[Result] = deque(maxlen=KEPT_RESULTS)
        self._running: Task | None = None
        self._notes: tuple[Note, ...] = ()
        self._variables: tuple[tuple[HeldModel, ...], tuple[str, ...]] = ((), ())
        self._comms: list[Any] = []
        self._pace = Pace()

    def open(self) -> None:
        """Begin to watch cells and verbs, and tell who listens."""
        self._look()
        self._shell.events.register("pre_run_cell", self._before_cell)
        self._shell.events.register("post_run_cell", self._after_cell)
        WATCHERS.append(self)
        from comm import create_comm

        comm = create_comm(target_name=TARGET, data=self._message())
        comm.on_msg(lambda message: self.tell())  # whatever a panel says, it wants to know
        comm.on_close(lambda message: self._comms.remove(comm))
        self._comms.append(comm)

    def close(self) -> None:
        """Stop watching, and say goodbye."""
        self._shell.events.unregister("pre_run_cell", self._before_cell)
        self._shell.events.unregister("post_run_cell", self._after_cell)
        WATCHERS.remove(self)
        for comm in self._comms:
            comm.close()
        self._comms.clear()

    # --- what happens ----------------------------------------------------------------------

    def began(self, name: str) -> None:
        """A verb begins."""
        self._running = Task(verb=name, share=0.0, text="")
        self._pace = Pace()
        self.tell()

    def progress(self, share: float, text: str) -> None:
        """It tells how far it is."""
        if self._running is not None:
            self._running = msgspec.structs.replace(self._running, share=share, text=text)
            if self._pace.due(text):
                self.tell()

    def ended(self, name: str, result: Any) -> None:
        """A verb ended."""
        self._running = None
        self._look()
        if isinstance(result, Record):
            from ..headlines import headline

            now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
            self._results.appendleft(Result(verb=name, headline=headline(result), taken_at=now))
        self.tell()

    def _before_cell(self, info: Any) -> None:
        self._meter.start()

    def _after_cell(self, result: Any) -> None:
        info = result.info
        error = result.error_before_exec or result.error_in_exec
        name = None if error is None else type(error).__name__
        number = result.execution_count
        found = self._meter.finish(number=number or 0, code=info.raw_cell, cell_id=info.cell_id, raised=name) if info is not None else None
        # Without a number the front end asked for something on its own account; a cell within a cell is part of the outer one.
        if found is not None and number is not None and not self._meter.nested:
            self._cells = _kept([found[0], *self._cells])
            self._notes = found[1]
        self._look()
        self.tell()

    # --- telling ---------------------------------------------------------------------------

    def state(self) -> KernelState:
        """Everything as it is now."""
        models, inputs = self._variables
        gpus, notes = self._meter.accounts()
        return KernelState(
            version=__version__,
            pid=os.getpid(),
            models=models,
            inputs=inputs,
            running=self._running,
            results=tuple(self._results),
            cells=tuple(self._cells),
            gpus=gpus,
            notes=(*self._notes, *notes),
        )

    def tell(self) -> None:
        """Send the state to every panel that listens."""
        message = self._message()
        for comm in self._comms:
            comm.send(message)

    def _message(self) -> dict[str, str]:
        return {"state": to_json(self.state(), indent=None)}

    def _look(self) -> None:
        """Find the notebook's models, and what they could be called with; nothing as long as torch is not loaded."""
        torch = sys.modules.get("torch")
        if torch is None or not hasattr(torch, "nn"):  # still being imported
            return
        models, inputs = [], []
        for name, value in list(self._shell.user_ns.items()):
            if name.startswith("_"):
                continue
            try:
                module = _module(value, torch)
                if module is not None:
                    models.append(_held(name, module, self._inputs_known(value)))
                elif _could_be_inputs(value, torch):
                    inputs.append(name)
            except Exception:  # a variable of any kind, which may refuse to be looked at: then it is none of these
                continue
        self._variables = tuple(models), tuple(inputs)


def _kept(cells: list[CellUse]) -> list[CellUse]:
    """The newest, and of the older those that grew memory the most."""

    def grown(cell: CellUse) -> float:
        growth = cell.gpu_memory_growth_bytes or cell.memory_growth_bytes
        return growth.value if growth else 0.0

    older = cells[KEPT_CELLS:]
    most = sorted(older, key=grown, reverse=True)[:KEPT_GROWN]
    return cells[:KEPT_CELLS] + [cell for cell in older if cell in most]


def _module(value: Any, torch: Any) -> Any:
    """The model that a variable holds: itself, or in a `Study` or `Workload`."""
    if isinstance(value, torch.nn.Module):
        return value
    if type(value).__module__.partition(".")[0] == "aimass_lab":
        model = getattr(value, "model", None)
        return model if isinstance(model, torch.nn.Module) else None
    return None


def _held(name: str, module: Any, inputs_known: bool) -> HeldModel:
    parameters = list(module.parameters())
    tensors = [*parameters, *module.buffers()]
    return HeldModel(
        name=name,
        type=type(module).__name__,
        num_parameters=sum(p.numel() for p in parameters),
        weight_bytes=sum(t.numel() * t.element_size() for t in tensors),
        device=str(tensors[0].device) if tensors else "cpu",
        inputs_known=inputs_known,
    )


def _could_be_inputs(value: Any, torch: Any) -> bool:
    """A tensor, or a tuple or dictionary of tensors and nothing else."""
    if isinstance(value, torch.Tensor):
        return not isinstance(value, torch.nn.Parameter)
    if not isinstance(value, (tuple, dict, UserDict)) or not 0 < len(value) <= MOST_PARTS:
        return False
    parts = value if isinstance(value, tuple) else value.values()
    return all(isinstance(part, torch.Tensor) for part in parts)
