"""Models that their user gave to `torch.compile`: what is behind it, and calls that leave the compiled code as it was."""

from __future__ import annotations

import contextlib
import copy
import inspect
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from torch import nn

_REGION = "_isolate_recompiles_id"
"""Where torch notes whose compiled code a call may add to: what ``isolate_recompiles=True`` sets when something is compiled."""
MOST_RECOMPILED = 64
"""In our calls: at torch's own limit, which is 8, a model goes back to eager, and a few numbers of threads, modes and sizes are that many."""
_regions: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
"""Ours, by torch's notes on one `torch.compile`: kept, so that what one verb compiled the next need not."""


def is_compiled(model: nn.Module) -> bool:
    """Whether `torch.compile` stands between a call of this model and its operators."""
    return any(getattr(m, "_compiled_call_impl", None) is not None or _is_wrapper(m) for m in model.modules())


def uncompiled(model: nn.Module) -> nn.Module:
    """What `torch.compile` was given: the same tensors, under the names that they have without it.

    The model itself where nothing in it is wrapped. Where parts of it are, the modules around them are copied, and the tensors are not.
    """
    plain: nn.Module = model._orig_mod if _is_wrapper(model) else model  # type: ignore[assignment]
    if not any(map(_is_wrapper, plain.modules())):
        return plain
    shell = copy.deepcopy(plain, {id(tensor): tensor for tensor in (*plain.parameters(), *plain.buffers())})
    for module in [m for m in shell.modules() if not _is_wrapper(m)]:
        for name, child in module._modules.items():
            if child is not None and _is_wrapper(child):
                module._modules[name] = child._orig_mod  # type: ignore[assignment]
    return shell


def copy_compiled(model: nn.Module) -> nn.Module:
    """A copy that is compiled as `model` is; its code is ours, and serves all such copies, of which torch would else compile each anew until it gave up."""
    own = {id(context): _apart(context) for context in _contexts(model)}
    duplicate = copy.deepcopy(model, {**own})
    for before, after in zip(model.modules(), duplicate.modules(), strict=True):
        context = own.get(id(_context_of(vars(before).get("_compiled_call_impl"))))
        if context is not None:  # copying drops it
            after._compiled_call_impl = context(after._call_impl)
    return duplicate


@contextlib.contextmanager
def compiled_apart(model: nn.Module) -> Iterator[None]:
    """Keep what calls of `model` compile in this block apart from what it was compiled for before.

    torch compiles anew for other shapes, modes and numbers of threads, and after a few times goes back to eager for good. In here a call uses the code
    that is there, and what is missing is compiled for us alone: later calls outside find what they had, and as many recompilations left. What
    torch learns about sizes that change is forgotten, too.
    """
    contexts = _contexts(model)
    if not contexts:
        yield
        return
    from torch._dynamo import config, pgo

    sizes = pgo.get_code_state()
    before = [(context, getattr(context, _REGION)) for context in contexts]
    for context in contexts:
        setattr(context, _REGION, _region_of(context))
    pgo._CODE_STATE = copy.deepcopy(sizes)
    try:
        with config.patch(recompile_limit=max(MOST_RECOMPILED, config.recompile_limit)):
            yield
    finally:
        pgo._CODE_STATE = sizes
        for context, region in before:
            setattr(context, _REGION, region)


def _is_wrapper(module: nn.Module) -> bool:
    """Whether it is what `torch.compile` gives for a module; without torch's compiler loaded nothing can be."""
    wrapper = getattr(sys.modules.get("torch._dynamo.eval_frame"), "OptimizedModule", None)
    return wrapper is not None and isinstance(module, wrapper)


def _contexts(model: nn.Module) -> list[Any]:
    """Torch's notes on how the model, parts of it or their forwards were compiled."""
    if "torch._dynamo.eval_frame" not in sys.modules:
        return []
    found: dict[int, Any] = {}
    for module in model.modules():
        held = vars(module)
        of_class = inspect.getattr_static(type(module), "forward", None)  # which torch.jit's classes let nobody look up
        of_calls = map(_context_of, (held.get("_compiled_call_impl"), held.get("forward"), of_class))
        for context in (module.dynamo_ctx if _is_wrapper(module) else None, *of_calls):
            if hasattr(context, _REGION):
                found[id(context)] = context
    return list(found.values())


def _context_of(compiled: Callable[..., Any] | None) -> Any:
    """Torch's notes on a compiled function, which its wrapper keeps in its closure and nowhere else; None of any other."""
    function = getattr(compiled, "__func__", compiled)
    code, cells = getattr(function, "__code__", None), getattr(function, "__closure__", None)
    if code is None or not cells or not hasattr(function, "_torchdynamo_orig_callable"):
        return None
    held = dict(zip(code.co_freevars, cells, strict=True))
    return held["self"].cell_contents if "self" in held else None


def _apart(context: Any) -> Any:
    """The same way to compile, into code of ours."""
    other = copy.copy(context)
    _regions[other] = _region_of(context)
    setattr(other, _REGION, _regions[other])
    return other


def _region_of(context: Any) -> int:
    if context not in _regions:
        from torch._dynamo import eval_frame

        _regions[context] = next(eval_frame._next_isolate_recompiles_id)
    return _regions[context]
