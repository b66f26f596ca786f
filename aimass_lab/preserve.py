"""Leaves the user's model as it was: puts back what a block changed, or makes a copy to change instead."""

from __future__ import annotations

import contextlib
import copy
import random
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from .compiled import compiled_apart, copy_compiled, uncompiled
from .errors import DoesNotFitError, ModelError, first_line
from .interrupts import keep_whole
from .workload import is_out_of_memory

if TYPE_CHECKING:
    import torch
    from torch import nn

keep_whole(__file__)  # an interrupt that left a model half put back would leave it in another mode

COPY_LIMIT_BYTES = 2**30
"""Parameters up to this size are copied, so that even a write behind torch's back is put back."""
_held: dict[int, tuple[torch.Tensor, int, torch.Tensor]] = {}
"""Copies that blocks which are under way keep, by the tensor's id: the tensor, the writes that torch had seen, its values. A block within takes them."""


@contextlib.contextmanager
def preserved(model: nn.Module, *, evaluate: bool = True, values: bool = True) -> Iterator[None]:
    """Run a block on `model` and put back everything that the block, or the model itself, changed.

    Put back: train/eval mode of every submodule, values of parameters, buffers (batch norm in
    training mode writes them) and tensors that are plain attributes, ``.grad``, hooks and plain
    attributes of every module, the random state of Python, NumPy and torch on every device, and
    grad mode. What `torch.compile` makes for calls in the block stays apart from what it made before.

    Args:
        model: The user's model.
        evaluate: Put every submodule into eval mode for the block.
        values: Keep copies of values. False is for a block that runs the model on stand-ins for
            its weights only: copying them would cost more than the block.

    Raises:
        ModelError: the model's own forward wrote into a parameter of a model too large to keep
            a copy of (`COPY_LIMIT_BYTES`). Writes through ``.data`` cannot be noticed there.
    """
    import torch

    modules = list(model.modules())
    attributes = [_shallow(module) for module in modules]
    parameters = [(name, p, _version(p)) for name, p in model.named_parameters()] if values else []
    small = sum(p.numel() * p.element_size() for _, p, _ in parameters) <= COPY_LIMIT_BYTES
    plain = [v for module in modules for v in vars(module).values() if isinstance(v, torch.Tensor)]
    kept_tensors = [*model.buffers(), *plain, *(p for _, p, _ in parameters if small)] if values else []
    mine: list[int] = []
    copies = _copies([t for t in kept_tensors if t.device.type != "meta"], mine)
    grads = [(p, p.grad) for p in model.parameters()]
    random_state = _random_state()
    grad_enabled = torch.is_grad_enabled()
    try:
        if evaluate:
            # by attribute, because a model may override train() to do more than set the flag
            for module in modules:
                module.__dict__["training"] = False
        with compiled_apart(model):
            yield
    finally:
        torch.set_grad_enabled(grad_enabled)
        for module, kept in zip(modules, attributes, strict=True):
            _restore(module, kept)
        for tensor, value in copies:
            if not _same(tensor, value):
                # a tensor made under inference mode may only be written there
                with torch.inference_mode() if tensor.is_inference() else torch.no_grad():
                    tensor.copy_(value)
            if (held := _held.get(id(tensor))) is not None and held[2] is value:
                _held[id(tensor)] = (tensor, _version(tensor), value)  # putting it back was a write, too
        _forget(mine)
        for parameter, grad in grads:
            parameter.grad = grad
        _set_random_state(random_state)
    written = [name for name, p, version in parameters if not small and _version(p) != version]
    if written:
        raise ModelError(
            f"the model's forward writes into its own parameter {written[0]!r}, so running it changes the model",
            help="write into a buffer instead, or profile a copy.deepcopy(model)",
        )


def private_copy(model: nn.Module, *, alike: bool = False) -> nn.Module:
    """A copy in eval mode, of what is behind `torch.compile`.

    Args:
        model: The user's model.
        alike: Compile the copy as the model is, for itself alone.

    Raises:
        ModelError: something in the model cannot be copied.
        DoesNotFitError: the memory did not suffice.
    """
    import torch

    try:
        with torch.no_grad():
            duplicate = copy_compiled(model) if alike else copy.deepcopy(uncompiled(model))
    except Exception as error:
        if is_out_of_memory(error):
            raise DoesNotFitError("there was not enough memory for a copy of the model") from error
        raise ModelError(
            f"{type(model).__name__} cannot be copied: {first_line(error)}",
            help="what may change a model works on copy.deepcopy(model): remove what cannot be copied from the module's attributes "
            "(locks, open files, generators, results of earlier calls), or give the class a __deepcopy__",
        ) from error
    for module in duplicate.modules():
        module.__dict__["training"] = False  # by attribute, because a model may override train() to do more than set the flag
    return duplicate


def _copies(tensors: Iterable[torch.Tensor], mine: list[int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Tensors with their values, kept apart: those that a block around this one keeps, as long as nobody wrote since; else new ones, for blocks within.

    Args:
        tensors: Whose.
        mine: Gets the keys of what is new, to be forgotten with the block.
    """
    try:
        return [(tensor, _copy(tensor, mine)) for tensor in tensors]
    except BaseException:  # there may be no memory for it
        _forget(mine)
        raise


def _forget(keys: list[int]) -> None:
    for key in keys:
        del _held[key]


def _copy(tensor: torch.Tensor, mine: list[int]) -> torch.Tensor:
    held = _held.get(id(tensor))
    if held is not None and held[1] == _version(tensor) and not tensor.is_inference() and held[2].shape == tensor.shape and held[2].dtype == tensor.dtype:
        return held[2]
    value = tensor.detach().clone()
    if held is None:
        _held[id(tensor)] = (tensor, _version(tensor), value)
        mine.append(id(tensor))
    return value


def _version(tensor: torch.Tensor) -> int:
    """How often torch saw `tensor` written; tensors made under inference mode do not count."""
    return 0 if tensor.is_inference() else tensor._version


def _same(a: Any, b: Any) -> bool:
    import torch

    with contextlib.suppress(NotImplementedError):  # some quantised tensors cannot be compared
        return bool(torch.equal(a, b))
    return False


def _shallow(module: nn.Module) -> dict[str, Any]:
    """The module's attributes, with the containers copied one level deep: registries of hooks, parameters and buffers are such."""
    return {k: (v, v.copy()) if type(v) in (dict, OrderedDict, list, set) else (v, v) for k, v in vars(module).items()}


def _restore(module: nn.Module, kept: dict[str, Any]) -> None:
    now = vars(module)
    for name in [n for n in now if n not in kept]:
        del now[name]
    for name, (original, content) in kept.items():
        if isinstance(original, list):
            original[:] = content
        elif original is not content:
            original.clear()
            original.update(content)
        now[name] = original


def _random_state() -> tuple[Any, ...]:
    import numpy as np
    import torch

    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else None
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda


def _set_random_state(state: tuple[Any, ...]) -> None:
    import numpy as np
    import torch

    python_state, numpy_state, torch_state, cuda_state = state
    random.setstate(python_state)
    np.random.set_state(numpy_state)
    torch.set_rng_state(torch_state)
    if cuda_state is not None:
        torch.cuda.set_rng_state_all(cuda_state)
