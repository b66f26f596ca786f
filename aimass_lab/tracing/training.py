"""One training step under torch's dispatcher, over tensors without data: forward, backward and the optimizer's update."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..errors import InputError, ModelError
from ..outputs import output_tensors
from ..preserve import preserved
from ..quiet import quiet_fakes
from ..workload import Call, check_initialised
from .fakes import Fakes
from .formulas import tensor_bytes
from .one_pass import OnePass
from .rows import Phase, Trace
from .trace import eager, summary

MakeOptimizer = Callable[[list[torch.Tensor]], torch.optim.Optimizer]

OPTIMIZERS: dict[str, Callable[[list[torch.Tensor], bool], torch.optim.Optimizer] | None] = {
    "adamw": lambda parameters, foreach: torch.optim.AdamW(parameters, lr=1e-3, foreach=foreach),
    "sgd": lambda parameters, foreach: torch.optim.SGD(parameters, lr=1e-3, foreach=foreach),
    "none": None,
}
"""``adamw`` keeps two tensors per parameter, ``sgd`` (without momentum) none; ``none`` ends after the backward pass."""


@dataclass(frozen=True)
class TrainingTrace(Trace):
    """What one training step does, once the optimizer's state exists; each row says its phase.

    The live bytes of the rows are those of tensors that the step made: activations, gradients and whatever
    is needed for a moment; weights, inputs and the optimizer's state are there before it and come on top.
    """

    gradient_bytes: int = 0
    """Gradients of all trained parameters, as they are after the backward pass."""
    optimizer_state_bytes: int = 0
    """What the optimizer keeps from step to step."""
    saved_activation_bytes: int = 0
    """Alive at the end of the forward pass: what the backward pass needs, and the outputs."""
    trained_parameters: int = field(default=0)
    """Parameters that get a gradient."""

    @property
    def peak_live_bytes(self) -> int:
        """Most bytes alive at once beyond weights and inputs: tensors of the step and the optimizer's state; at row `peak_row`."""
        return self.activation_peak_bytes + self.optimizer_state_bytes

    @property
    def peak_bytes(self) -> int:
        """The same with weights and inputs."""
        return self.weight_bytes + self.input_bytes + self.peak_live_bytes

    def flops_of(self, phase: Phase) -> int:
        """Model FLOPs of one phase."""
        return sum(row.flops for row in self.rows if row.phase == phase)


def trace_training(
    model: nn.Module,
    call: Call,
    *,
    batch_size: int | None = None,
    loss: Callable[[Any], torch.Tensor] | None = None,
    optimizer: str | MakeOptimizer = "adamw",
    foreach: bool = False,
    autocast: torch.dtype | None = None,
    may_run: bool = True,
) -> TrainingTrace:
    """Follow one training step of `model`, without weights and without running it where that is possible.

    The step is forward, loss, backward, update, with the gradients freed before it and every module in training
    mode. The optimizer's state exists already, as it does from the second step on. As in `trace_call` neither
    the model nor its gradients, mode or the random state change, and a model on the meta device is welcome.
    The outputs stay alive until the step ends, as in a loop that gives them a name.
    Recomputed activations (checkpointing) show as they run: in the backward phase. Operators of the backward
    pass belong to the modules whose gradient they compute.

    Args:
        model: The model; parameters without ``requires_grad`` are not trained.
        call: Its arguments.
        batch_size: Items per call; those of `call` if not given.
        loss: ``loss(outputs) -> scalar``. If not given: the outputs' own ``loss`` where there is one (Hugging
            Face models that got labels), else the sum of the means of all floating-point outputs.
        optimizer: "adamw", "sgd", "none", or a function from the parameters to a `torch.optim.Optimizer`.
        foreach: Let a named optimizer update all parameters at once, as torch's do by default on a GPU: fewer
            operators, and intermediate results of all parameters alive at the same time.
        autocast: Run forward and loss in mixed precision of this dtype.
        may_run: Allow a step on real copies of the weights where shapes alone do not say what the model does.

    Raises:
        InputError: no such optimizer, no parameter to train, an output without gradient, or the batch size cannot be set.
        ModelError: the model raised, or its training step cannot be followed without data and may not be run.
    """
    make = _optimizer(optimizer, foreach)
    check_initialised(model)
    if not any(p.requires_grad for p in model.parameters()):
        none = next(model.parameters(), None) is None
        help = "a model without parameters can be run only" if none else "set requires_grad on those that should be trained"
        raise InputError(f"{type(model).__name__} has no parameter to train", help=help)
    size = call.batch_size if batch_size is None else batch_size
    shapes = call.sized(size)
    fakes = Fakes()
    try:
        with quiet_fakes():
            return _Step(model, shapes, make, loss, autocast).follow(fakes.of, fakes.mode)
    except (InputError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever the model does that shapes alone cannot answer
        cause = error
    reason = f"{type(cause).__name__}: {(str(cause).strip().splitlines() or [''])[0]}"[:200]
    on_meta = any(t.device.type == "meta" for t in [*model.parameters(), *model.buffers(), *call.tensors()])
    if on_meta or not may_run:
        raise ModelError(
            f"a training step of {type(model).__name__} on {shapes.describe()} cannot be followed without running it ({reason})",
            help="pass a model and inputs that hold data" if on_meta else "allow the real step",
        ) from cause
    try:
        return _Step(model, call.with_batch(size), make, loss, autocast).follow(_copy, contextlib.nullcontext(), reason)
    except InputError:
        raise
    except Exception as error:
        raise ModelError(f"a training step of {type(model).__name__} raised {type(error).__name__}: {error}", help="train it for one step yourself") from error


def _optimizer(optimizer: str | MakeOptimizer, foreach: bool) -> MakeOptimizer | None:
    if callable(optimizer):
        return optimizer
    if optimizer not in OPTIMIZERS:
        raise InputError(
            f"no optimizer called {optimizer!r}", help=f"there are: {', '.join(OPTIMIZERS)}; or pass a function, parameters -> torch.optim.Optimizer"
        )
    make = OPTIMIZERS[optimizer]
    return None if make is None else lambda parameters: make(parameters, foreach)


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().clone()


class _Step:
    """One step on stand-ins for the weights: fake tensors, or copies."""

    def __init__(
        self, model: nn.Module, call: Call, make: MakeOptimizer | None, loss: Callable[[Any], torch.Tensor] | None, autocast: torch.dtype | None
    ) -> None:
        self.model, self.call, self.make, self.loss, self.autocast = model, call, make, loss, autocast

    def follow(self, stand_in: Callable[[torch.Tensor], Any], mode: Any, why_ran: str | None = None) -> TrainingTrace:
        """Make the step, with `stand_in` for every tensor and within `mode`."""
        model = self.model
        state = self._state(stand_in)
        call = self.call.map(stand_in)
        trained = {name: p for name, p in state.items() if p.requires_grad}
        with contextlib.ExitStack() as stack:
            stack.enter_context(preserved(model, evaluate=False, values=why_ran is not None))
            stack.enter_context(eager(model))
            for module in model.modules():  # by attribute, because a model may override train() to do more than set the flag
                module.__dict__["training"] = True
            # For the whole step, because checkpointing calls the modules again in the backward pass.
            stack.enter_context(torch.nn.utils.stateless._reparametrize_module(model, state))
            stack.enter_context(mode)
            stack.enter_context(torch.enable_grad())
            optimizer = self._prepare(list({id(p): p for p in trained.values()}.values()))
            kept = _state_tensors(optimizer)
            one_pass = OnePass(model, [*state.values(), *call.tensors(), *kept], _Step.follow.__code__, fake_mode=None if why_ran else mode, training=True)
            for name, parameter in trained.items():
                one_pass.own(name, parameter)
            stack.enter_context(one_pass.watching_modules())
            stack.enter_context(one_pass)
            with self._precision():
                outputs = model(*call.args, **call.kwargs)
                value = scalar_loss(outputs, self.loss)
            saved = one_pass.memory.live_bytes
            one_pass.phase = "backward"
            value.backward()
            gradients = _unique_bytes(p.grad for p in trained.values() if p.grad is not None)
            if optimizer is not None:
                one_pass.phase = "optimizer"
                _update(optimizer, trained)
        fields = summary(one_pass, model, self.call, outputs)
        return TrainingTrace(
            **fields, ran=why_ran is not None, why_ran=why_ran, gradient_bytes=gradients, optimizer_state_bytes=_unique_bytes(kept),
            saved_activation_bytes=saved, trained_parameters=sum(p.numel() for p in {id(p): p for p in trained.values()}.values()),
        )  # fmt: skip

    def _state(self, stand_in: Callable[[torch.Tensor], Any]) -> dict[str, Any]:
        made: dict[int, Any] = {}
        state: dict[str, Any] = {}
        for name, tensor in [*self.model.named_parameters(remove_duplicate=False), *self.model.named_buffers(remove_duplicate=False)]:
            if id(tensor) not in made:
                made[id(tensor)] = stand_in(tensor).requires_grad_(tensor.requires_grad)
            state[name] = made[id(tensor)]
        return state

    def _prepare(self, parameters: list[torch.Tensor]) -> torch.optim.Optimizer | None:
        """The optimizer with the state that it has after one step."""
        if self.make is None:
            return None
        optimizer = self.make(parameters)
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        for parameter in parameters:
            parameter.grad = None
        return optimizer

    @contextlib.contextmanager
    def _precision(self) -> Iterator[None]:
        if self.autocast is None:
            yield
            return
        device = next((p.device.type for p in self.model.parameters() if p.device.type != "meta"), "cpu")
        with torch.autocast(device, dtype=self.autocast):
            yield


def scalar_loss(outputs: Any, loss: Callable[[Any], torch.Tensor] | None = None) -> torch.Tensor:
    """What a step minimises: `loss` of the outputs, else their own, else the sum of the means of all floating-point outputs.

    Raises:
        InputError: it is no scalar with a gradient.
    """
    if loss is not None:
        value = loss(outputs)
    else:
        own = outputs.get("loss") if isinstance(outputs, dict) else getattr(outputs, "loss", None)
        means = [t.float().mean() for _, t in output_tensors(outputs) if t.is_floating_point() and t.requires_grad] if own is None else [own]
        value = sum(means[1:], means[0]) if means else None  # type: ignore[assignment]
    if not isinstance(value, torch.Tensor) or not value.requires_grad or value.numel() != 1:
        what = "gives no floating-point output with a gradient" if loss is None else f"loss gives {_tell(value)}, not a scalar with a gradient"
        raise InputError(f"nothing to train on: the model {what}" if loss is None else what, help="pass loss=lambda outputs: ..., giving a scalar tensor")
    return value


def _tell(value: Any) -> str:
    return f"a tensor of shape {list(value.shape)}" if isinstance(value, torch.Tensor) else f"a {type(value).__name__}"


def _update(optimizer: torch.optim.Optimizer, trained: Mapping[str, torch.Tensor]) -> None:
    """Let the optimizer make its step.

    Raises:
        InputError: a gradient is sparse, and the optimizer takes dense ones only.
    """
    try:
        optimizer.step()
    except RuntimeError as error:
        sparse = [name for name, parameter in trained.items() if parameter.grad is not None and parameter.grad.is_sparse]
        if not sparse:
            raise
        raise InputError(
            f"the gradient of {sparse[0]!r} is sparse, which {type(optimizer).__name__} does not take",
            help="optimizer='sgd' does, and so do torch.optim.Adagrad and, for sparse gradients only, SparseAdam; or make the layer without sparse=True",
        ) from error


def _state_tensors(optimizer: torch.optim.Optimizer | None) -> list[torch.Tensor]:
    if optimizer is None:
        return []
    return [value for state in optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor)]


def _unique_bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor_bytes(t) for t in {id(t): t for t in tensors}.values())
