"""Keeps what a model is called with as it was: finds out whether the model writes into it, and gives it copies if so.

torch is imported inside the functions, as in `workload`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    import torch
    from torch import nn

    from .workload import Call

_WRITES: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def writes_inputs(model: nn.Module) -> bool:
    """Whether `model` was seen to write into its inputs."""
    return _WRITES.get(model, False)


def with_spared_inputs(model: nn.Module, call: Call, run: Callable[[Call], Any]) -> Any:
    """Run a call of `model` so that the tensors of `call` stay as they are.

    The first call gets copies, and is looked at: a model that leaves them alone gets the tensors themselves from then on. One that writes into
    them would change the user's data, and see other inputs at each call.
    """
    writes = _WRITES.get(model)
    if writes is False:
        return run(call)
    if writes is None and not _are_plain(call.tensors()):
        return run(call)
    own = copied(call)
    outputs = run(own)
    if writes is None:
        _WRITES[model] = not all(map(_is_same, own.tensors(), call.tensors()))
    return outputs


def copied(call: Call) -> Call:
    """The same call with tensors of its own, which are ordinary ones even where inference mode is on: a model may hand them to a thread where it is not."""
    import torch

    with torch.inference_mode(False):
        return call.map(lambda t: t.detach().clone().requires_grad_(t.requires_grad))


def _are_plain(tensors: list[torch.Tensor]) -> bool:
    """Whether they hold values that can be compared, and nobody writes down what is done to them."""
    import torch
    from torch.utils._python_dispatch import is_in_torch_dispatch_mode

    if torch._C._get_tracing_state() is not None or is_in_torch_dispatch_mode():
        return False
    return all(type(t) in (torch.Tensor, torch.nn.Parameter) and t.device.type != "meta" for t in tensors)


def _is_same(a: torch.Tensor, b: torch.Tensor) -> bool:
    import torch

    try:
        return bool(torch.equal(a, b) or ((a == b) | ((a != a) & (b != b))).all())
    except (RuntimeError, NotImplementedError):  # sparse and quantised ones cannot be compared
        return True
