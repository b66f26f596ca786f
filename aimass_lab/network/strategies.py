"""What one training step of a given model sends, for each way to share it among devices: the formulas fed with its own tensors."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from ..records import Note
from ..workload import generates
from .collectives import Flow, data_parallel, expert_parallel, fully_sharded, kv_transfer, parameter_server, pipeline, tensor_parallel, zero

if TYPE_CHECKING:
    from torch import nn

    from ..tracing.trace import Row, Trace
    from ..workload import Call

Strategy = Literal["none", "ddp", "ddp_fp16", "zero1", "zero2", "zero3", "tensor", "sequence", "pipeline", "expert", "parameter_server"]
STRATEGIES: tuple[str, ...] = get_args(Strategy)


@dataclass(frozen=True)
class Sharing:
    """Flows of one step, and what must be said about them."""

    flows: list[Flow]
    notes: tuple[Note, ...] = ()


@dataclass(frozen=True)
class Subject:
    """One model and one call of it."""

    model: nn.Module
    call: Call
    trace: Trace

    def trained(self) -> list[nn.Parameter]:
        """Parameters that get gradients, tied ones once; all of them where none asks for any."""
        parameters = list(self.model.parameters())
        return [p for p in parameters if p.requires_grad] or parameters

    def gradient_bytes(self) -> list[int]:
        """Of each trained parameter, in the model's order."""
        return [p.numel() * p.element_size() for p in self.trained()]

    def blocks(self) -> dict[str, nn.Module]:
        """The repeated blocks: children of the list or sequence that holds most parameters; empty where there is none."""
        from torch import nn

        lists = [(name, m) for name, m in self.model.named_modules() if isinstance(m, (nn.ModuleList, nn.Sequential)) and len(m) > 1]
        # Outer sequences before inner ones: `max` keeps the first of equals.
        name, chosen = max(lists, key=lambda pair: sum(p.numel() for p in pair[1].parameters()), default=("", None))
        return {} if chosen is None else {f"{name}.{child}".lstrip("."): m for child, m in chosen.named_children()}

    def output_bytes(self, module_name: str) -> int | None:
        """Bytes of the last result within a module; None where it ran no operator."""
        row = next((row for row in reversed(self.trace.rows) if module_name in row.scope), None)
        return None if row is None else _row_bytes(row)

    def attention_layers(self) -> list[int]:
        """Bytes of the tensor that leaves each attention layer, after its output projection."""
        found, waiting = [], False
        for row in self.trace.rows:
            if row.family == "attention" and row.phase == "forward":
                waiting = True
            elif waiting and row.family == "gemm":
                found.append(_row_bytes(row))
                waiting = False
        return found


def _row_bytes(row: Row) -> int:
    import torch

    itemsize = getattr(torch, row.dtype).itemsize if row.dtype else 4
    return math.prod(row.shape) * itemsize


def step_flows(subject: Subject, strategy: Strategy, ranks: int) -> Sharing:
    """Flows of one training step of `subject`, whose call is one rank's batch.

    Args:
        subject: The model and the call.
        strategy: How the work is shared.
        ranks: Devices that share it; with a parameter server, the workers.
    """
    if strategy == "none" or ranks == 1:
        return Sharing([])
    return _STRATEGIES[strategy](subject, ranks)


def _missing(what: str, why: str) -> Sharing:
    return Sharing([], (Note(code="missing:step_bytes", text=f"{what} traffic is not known: {why}"),))


def _ddp(subject: Subject, ranks: int, *, travels: int | None = None) -> Sharing:
    itemsize = subject.trained()[0].element_size()
    buffers = sum(b.numel() * b.element_size() for b in subject.model.buffers())
    return Sharing(data_parallel(subject.gradient_bytes(), ranks, element_bytes=(itemsize, travels or itemsize), buffer_bytes=buffers))


def _zero(subject: Subject, ranks: int) -> Sharing:
    total = sum(subject.gradient_bytes())
    return Sharing(zero(total, total, ranks))


def _zero3(subject: Subject, ranks: int) -> Sharing:
    """As ``fully_shard`` on each block and then on the model does it: the root's own parameters are gathered once."""
    blocks = [list(block.parameters()) for block in subject.blocks().values()]
    blocks = [group for group in blocks if group]
    inside = {id(p) for group in blocks for p in group}
    root = [p for p in subject.model.parameters() if id(p) not in inside]
    flows: list[Flow] = []
    for groups, reshard in ((blocks, True), ([root] if root else [], False)):
        shapes = [[tuple(p.shape) for p in group] for group in groups]
        if shapes:
            itemsize = groups[0][0].element_size()
            made = fully_sharded(shapes, ranks, parameter_itemsize=itemsize, gradient_itemsize=itemsize, reshard=reshard)
            flows += made if groups is blocks else [replace(flow, name=f"{flow.name}, outside the blocks") for flow in made]
    return Sharing(flows)


def _tensor(subject: Subject, ranks: int, *, sequence: bool = False) -> Sharing:
    layers = subject.attention_layers()
    if not layers:
        return _missing("tensor-parallel", "no fused attention was found in the call, so there are no layers to split this way")
    text = f"{len(layers)} layers of attention and a feed-forward part are taken to be split as Megatron does, embedding and head not"
    return Sharing(tensor_parallel(layers, ranks, sequence=sequence), (Note(code="W-ASSUMED", text=text),))


def _pipeline(subject: Subject, ranks: int) -> Sharing:
    names = list(subject.blocks())
    if len(names) < ranks:
        return _missing("pipeline", f"the model has {len(names)} repeated blocks, too few for {ranks} stages")
    ends = [names[len(names) * stage // ranks - 1] for stage in range(1, ranks)]
    sizes = [size for name in ends if (size := subject.output_bytes(name)) is not None]
    if len(sizes) < len(ends):
        return _missing("pipeline", "a block at the end of a stage ran no operator")
    note = Note(code="W-ASSUMED", text=f"stages of equal numbers of blocks, cut after {', '.join(ends)}; the figures are of the widest cut")
    return Sharing(pipeline(max(sizes), ranks), (note,))


def _expert(subject: Subject, ranks: int) -> Sharing:
    names = [name for name, m in subject.model.named_modules() if hasattr(m, "experts")]
    chosen = _setting(subject.model, "num_experts_per_tok", "top_k", "moe_k")
    sizes = [size for name in names if (size := subject.output_bytes(name)) is not None]
    if not sizes or chosen is None:
        return _missing("expert-parallel", "no module with experts was found" if not sizes else "how many experts a token takes is not in the model's config")
    return Sharing(expert_parallel(sizes, ranks, experts_per_token=chosen))


def _parameter_server(subject: Subject, ranks: int) -> Sharing:
    total = sum(subject.gradient_bytes())
    server = parameter_server(total, total, ranks)
    flows = [
        Flow("worker pushes gradients", "send", (float(total),), ranks, "gradient bytes"),
        Flow("server answers with parameters", "send", (server["server_sent"],), ranks, "workers × parameter bytes, of one server; divide by its shards"),
    ]
    return Sharing(flows)


_STRATEGIES: dict[str, Callable[[Subject, int], Sharing]] = {
    "ddp": _ddp,
    "ddp_fp16": lambda subject, ranks: _ddp(subject, ranks, travels=2),
    "zero1": _zero,
    "zero2": _zero,
    "zero3": _zero3,
    "tensor": _tensor,
    "sequence": lambda subject, ranks: _tensor(subject, ranks, sequence=True),
    "pipeline": _pipeline,
    "expert": _expert,
    "parameter_server": _parameter_server,
}


_CONFIG_NAMES = (("num_hidden_layers", "n_layer"), ("num_attention_heads", "n_head"), ("hidden_size", "n_embd"))
"""Layers, heads and width, as the configs of published models call them."""


def kv_transfer_bytes(subject: Subject) -> int | None:
    """Keys and values of one request as long as the call's; None where the model generates nothing or its config does not tell its heads."""
    model = subject.model
    if not generates(model):
        return None
    layers, heads, width = (_setting(model, *names) for names in _CONFIG_NAMES)
    tokens = next((t.shape[1] for t in subject.call.tensors() if t.dim() == 2 and not t.is_floating_point()), None)
    first = next(model.parameters(), None)
    if not (layers and heads and width and tokens and first is not None):
        return None
    size = _setting(model, "head_dim") or width // heads
    return kv_transfer(layers, int(tokens), _setting(model, "num_key_value_heads") or heads, size, first.element_size())


def _setting(model: nn.Module, *names: str) -> int | None:
    config: Any = getattr(model, "config", None)
    return next((value for name in names if isinstance(value := getattr(config, name, None), int)), None)
