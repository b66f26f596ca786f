"""What one pass writes down: a row per operator, and what the rows add up to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import nn

from .formulas import Family, Kind

Phase = Literal["forward", "backward", "optimizer"]


class Row(NamedTuple):
    """One operator call."""

    op: str
    """``"aten::addmm"``."""
    scope: tuple[str, ...]
    """Dotted names of the modules it ran in, outermost first; in the backward phase of those that it is the gradient of."""
    kind: Kind
    flops: int
    bytes_read: int
    bytes_written: int
    live_bytes: int
    """Tensors made by this call of the model and alive once the operator is done."""
    workspace_bytes: int
    """Upper bound of what the operator takes for itself while it runs."""
    light_flops: int = 0
    """Element-wise and reduction arithmetic, one FLOP an element; never mixed into `flops`."""
    family: Family = "other"
    """Which operators reach a like share of a device's rates."""
    dtype: str = ""
    """Of the first floating-point tensor it reads or makes, torch's word: ``"bfloat16"``."""
    shape: tuple[int, ...] = ()
    """Of its first result: how far the work can be spread."""
    allocated_bytes: int = 0
    """New memory for its results; views and in-place operators make none."""
    source: str = ""
    """The innermost line outside torch that asked for it: ``"model.py:41"``, ``"In [7]:3"``; empty where only torch's own code ran."""
    phase: Phase = "forward"
    expected_workspace_bytes: int | None = None
    """What its CPU kernel is known to take for itself; None where no rule says."""


@dataclass(frozen=True)
class OutputShape:
    """One output tensor as the pass saw it."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Trace:
    """What one call of a model does, operator by operator."""

    rows: tuple[Row, ...]
    batch_size: int
    weight_bytes: int
    input_bytes: int
    outputs: tuple[OutputShape, ...]
    ran: bool
    """True: counted over a real call, because the pass without data was not possible."""
    why_ran: str | None = None
    """What stood in the way of the pass without data."""
    slow_path: bool = False
    """True: torch's fused transformer layers were taken apart for counting; a real call holds less memory."""
    modules: dict[str, nn.Module] = field(default_factory=dict, compare=False, repr=False)
    events: tuple[tuple[int, int], ...] = field(default=(), repr=False)
    """Memory taken and given back by tensors that the call made, in order: a storage's number, and its bytes,
    positive when it is made and negative when it is freed. What is alive at the end is never freed."""
    event_rows: tuple[int, ...] = field(default=(), repr=False)
    """For each event the index of the row that it happened at: the one that made it, or before which it was freed."""
    assumptions: tuple[str, ...] = ()
    """Sizes that depend on data and were taken at their upper bound: everything counted here is "at most"."""

    @property
    def flops(self) -> int:
        """Model FLOPs: matrix products, convolutions, attention, recurrent layers, FFTs."""
        return sum(row.flops for row in self.rows)

    @property
    def bytes_moved(self) -> int:
        """Bytes that operators read and write, nothing kept in caches between them."""
        return sum(row.bytes_read + row.bytes_written for row in self.rows)

    @property
    def activation_peak_bytes(self) -> int:
        """Most bytes alive at once in tensors made by the call; weights and inputs left out, outputs counted."""
        return max((row.live_bytes for row in self.rows), default=0)

    @property
    def activation_bound_bytes(self) -> int:
        """The same with every operator's workspace bound on top."""
        return max((row.live_bytes + row.workspace_bytes for row in self.rows), default=0)

    @property
    def peak_row(self) -> int | None:
        """Index of the row at which `activation_peak_bytes` is first reached; None without rows."""
        return max(range(len(self.rows)), key=lambda i: self.rows[i].live_bytes, default=None)

    @property
    def uncovered(self) -> dict[str, int]:
        """Calls of each operator that may compute and that no formula covers."""
        counts: dict[str, int] = {}
        for row in self.rows:
            if row.kind == "unknown":
                counts[row.op] = counts.get(row.op, 0) + 1
        return counts
