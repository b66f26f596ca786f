"""One pass of a call under torch's dispatcher, over tensors without data: operators, FLOPs, bytes and live memory."""

from __future__ import annotations

import contextlib
import sys
import warnings
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass

from ..errors import ModelError
from ..preserve import preserved
from ..workload import Call, call_model, output_tensors, weight_bytes
from .formulas import GATHERS, Family, Kind, classify, family_of, name_of, packet_of, registry, tensor_bytes, workspace_bound

Phase = Literal["forward", "backward", "optimizer"]


class Row(NamedTuple):
    """One operator call."""

    op: str
    """``"aten::addmm"``."""
    scope: tuple[str, ...]
    """Dotted names of the modules it ran in, outermost first."""
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
    """The innermost line outside torch that asked for it: ``"model.py:41"``, ``"In [7]:3"``."""
    phase: Phase = "forward"


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
    def uncovered(self) -> dict[str, int]:
        """Calls of each operator that may compute and that no formula covers."""
        counts: dict[str, int] = {}
        for row in self.rows:
            if row.kind == "unknown":
                counts[row.op] = counts.get(row.op, 0) + 1
        return counts


class OnePass(TorchDispatchMode):
    """Writes one `Row` per operator that reaches the dispatcher while it is active, on fake tensors and on real ones.

    Args:
        model: Whose modules the rows are attributed to.
        external: Tensors that were there before: weights, buffers and inputs are no activations.
    """

    supports_higher_order_operators = True

    def __init__(self, model: nn.Module, external: list[torch.Tensor]) -> None:
        super().__init__()
        self.rows: list[Row] = []
        self._scope: list[tuple[str, ...]] = [()]
        self._names = {id(module): name for name, module in model.named_modules()}
        self._live_bytes = 0
        self._live: dict[int, Any] = {}
        # Held here, because a storage's address is given to another once it dies.
        self._external_storages = [s for t in external for s in _storages(t)]
        self._external = {s._cdata for s in self._external_storages}

    @contextlib.contextmanager
    def watching_modules(self) -> Iterator[None]:
        """Keep the stack of running modules, through hooks that belong to no module."""
        from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

        handles = [register_module_forward_pre_hook(self._enter), register_module_forward_hook(self._leave, always_call=True)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, module: nn.Module, args: Any) -> None:
        outer = self._scope[-1]
        name = self._names.get(id(module))
        self._scope.append(outer if name is None else (*outer, name))

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        # Must return None: a hook's return value would replace the module's output.
        self._scope.pop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if any(is_traceable_wrapper_subclass(leaf) for leaf in _leaves((args, kwargs))):
            return NotImplemented  # a quantised tensor: let it unfold into the operators that really run
        result = func(*args, **kwargs)
        kind = classify(func)
        if kind != "view":
            self._record(func, kind, args, kwargs, result)
        return result

    def _record(self, func: Any, kind: Kind, args: Any, kwargs: Any, result: Any) -> None:
        inputs, outputs = _leaves((args, kwargs)), _leaves(result)
        allocated = sum(map(self._track, outputs))
        written = sum(map(tensor_bytes, outputs))
        if name_of(func) in GATHERS:
            read = written + sum(tensor_bytes(t) for t in inputs if not t.is_floating_point())
        else:
            read = sum(tensor_bytes(t) for t in {id(t): t for t in inputs}.values())
        flops = 0
        if kind == "formula":
            try:
                flops = int(registry()[packet_of(func)](*args, **kwargs, out_val=result))
            except Exception:  # a formula met arguments it was not written for: that is an operator without a formula
                kind = "unknown"
        workspace = workspace_bound(func, args, read, written)
        floating = next((t.dtype for t in (*inputs, *outputs) if t.is_floating_point()), None)
        self.rows.append(
            Row(
                op=name_of(func),
                scope=self._scope[-1],
                kind=kind,
                flops=flops,
                bytes_read=read,
                bytes_written=written,
                live_bytes=self._live_bytes,
                workspace_bytes=workspace,
                light_flops=max((int(t.numel()) for t in (*inputs, *outputs)), default=0) if kind == "light" else 0,
                family=family_of(func),
                dtype=str(floating or "").removeprefix("torch."),
                shape=tuple(int(n) for n in outputs[0].shape) if outputs else (),
                allocated_bytes=allocated,
            )
        )

    def _track(self, tensor: torch.Tensor) -> int:
        """Count the storages of `tensor` that are new; return their bytes."""
        new = 0
        for storage in _storages(tensor):
            key = storage._cdata
            if key in self._external or key in self._live:
                continue
            size = int(storage.nbytes())
            self._live[key] = weakref.ref(storage, self._forget(key, size))
            self._live_bytes += size
            new += size
        return new

    def _forget(self, key: int, size: int) -> Callable[[Any], None]:
        me = weakref.ref(self)

        def forget(_reference: Any) -> None:
            this = me()
            if this is not None and this._live.pop(key, None) is not None:
                this._live_bytes -= size

        return forget


def _leaves(tree: Any) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    _collect(tree, found)
    return found


def _collect(tree: Any, found: list[torch.Tensor]) -> None:
    # Operators' arguments are tensors in flat lists; a pytree walk would cost more than the operator's own bookkeeping.
    if isinstance(tree, torch.Tensor):
        found.append(tree)
    elif isinstance(tree, (list, tuple)):
        for item in tree:
            _collect(item, found)
    elif isinstance(tree, dict):
        for item in tree.values():
            _collect(item, found)


def _storages(tensor: torch.Tensor) -> list[Any]:
    if is_traceable_wrapper_subclass(tensor):
        names, _ = tensor.__tensor_flatten__()
        return [s for name in names for s in _storages(getattr(tensor, name))]
    try:
        return [tensor.untyped_storage()]
    except (NotImplementedError, RuntimeError):  # sparse, mkldnn and other tensors without a storage
        return []


def trace_call(model: nn.Module, call: Call, *, batch_size: int | None = None, may_run: bool = True) -> Trace:
    """Follow one call of `model`, without weights and without running it where that is possible.

    The pass runs over fake tensors: shapes without data, so a model on the meta device is as welcome as
    one in memory, and neither is touched. Where shapes depend on data the same pass is made over one
    real call, and `Trace.ran` says so.

    Args:
        model: The model, in the mode it should be traced in.
        call: Its arguments.
        batch_size: Items per call; those of `call` if not given.
        may_run: Allow the real call.

    Raises:
        InputError: the inputs have no batch axis, so that `batch_size` cannot be set.
        ModelError: the model raised on these inputs, or it cannot be traced and may not be run.
    """
    size = call.batch_size if batch_size is None else batch_size
    # Sizes are all the pass needs: inputs of another batch size are not built in memory.
    shapes = call if size == call.batch_size else call.map(lambda t: t.to("meta")).with_batch(size)
    try:
        return _trace_fake(model, shapes)
    except Exception as error:  # whatever the model does that shapes alone cannot answer
        reason = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"[:200]
        cause = error
    on_meta = any(t.device.type == "meta" for t in [*model.parameters(), *model.buffers(), *call.tensors()])
    if on_meta or not may_run:
        raise ModelError(
            f"{type(model).__name__} cannot be followed on {shapes.describe()} without running it ({reason})",
            help="check the inputs, or pass a model and inputs that hold data" if on_meta else "call it with real inputs",
        ) from cause
    return _trace_real(model, call.with_batch(size), reason)


def _trace_fake(model: nn.Module, call: Call) -> Trace:
    from torch._subclasses.fake_tensor import FakeTensorMode

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    memo: dict[int, tuple[torch.Tensor, Any]] = {}

    def fake(tensor: torch.Tensor) -> Any:
        if id(tensor) not in memo:  # the tensor is held too, so that its id stays its own
            memo[id(tensor)] = (tensor, _fake(mode, tensor))
        return memo[id(tensor)][1]

    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    state = {name: fake(tensor) for name, tensor in named}
    fake_call = call.map(fake)
    one_pass = OnePass(model, [*state.values(), *fake_call.tensors()])
    with preserved(model, values=False), _eager(model), one_pass.watching_modules(), torch.no_grad(), mode, one_pass:
        outputs = torch.func.functional_call(model, state, fake_call.args, dict(fake_call.kwargs), tie_weights=False)
    return _trace(one_pass, model, call, outputs, ran=False)


def _fake(mode: Any, tensor: torch.Tensor) -> Any:
    from torch._subclasses.fake_tensor import FakeTensor

    if type(tensor) not in (torch.Tensor, nn.Parameter) or tensor.layout != torch.strided or tensor.is_quantized:
        return mode.from_tensor(tensor)
    # Always as if on the CPU: tensors faked on a GPU that is not there abort the process.
    shape = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="meta")
    return FakeTensor(mode, shape, torch.device("cpu"))


def _trace_real(model: nn.Module, call: Call, reason: str) -> Trace:
    one_pass = OnePass(model, [*model.parameters(), *model.buffers(), *call.tensors()])
    with preserved(model), _eager(model), one_pass.watching_modules(), torch.no_grad(), one_pass:
        outputs = call_model(model, call)
    return _trace(one_pass, model, call, outputs, ran=True, why=reason)


def _trace(one_pass: OnePass, model: nn.Module, call: Call, outputs: Any, *, ran: bool, why: str | None = None) -> Trace:
    return Trace(
        rows=tuple(one_pass.rows),
        batch_size=call.batch_size,
        weight_bytes=weight_bytes(model),
        input_bytes=sum(tensor_bytes(t) for t in call.tensors() if t.layout == torch.strided),
        outputs=tuple(OutputShape(name, t.dtype, tuple(int(s) for s in t.shape)) for name, t in output_tensors(outputs)),
        ran=ran,
        why_ran=why,
        slow_path=any(isinstance(m, (nn.MultiheadAttention, nn.TransformerEncoderLayer)) for m in model.modules()),
        modules=dict(model.named_modules()),
    )


def is_compiled(model: nn.Module) -> bool:
    """Whether `torch.compile` stands between a call of this model and its operators."""
    dynamo = sys.modules.get("torch._dynamo.eval_frame")
    wrapper = getattr(dynamo, "OptimizedModule", None)
    return any(getattr(m, "_compiled_call_impl", None) is not None or (wrapper is not None and isinstance(m, wrapper)) for m in model.modules())


@contextlib.contextmanager
def _eager(model: nn.Module) -> Iterator[None]:
    """Take fused and compiled modules apart, so that each operator is seen."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with contextlib.ExitStack() as stack:
            if is_compiled(model):
                stack.enter_context(torch.compiler.set_stance("force_eager"))
                stack.enter_context(warnings.catch_warnings())
                # Our hooks fire for the wrapper as well; it has no name of its own that a row could get.
                warnings.filterwarnings("ignore", message="Using `torch.compile")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
