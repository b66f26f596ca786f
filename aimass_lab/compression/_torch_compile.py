"""torch.compile for one copy of a model: with caches and memory of its own, and failures that name the operator."""

from __future__ import annotations

import builtins
import contextlib
import threading
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import nn
from torch.utils import _pytree

from ..errors import UnsupportedError
from ..formats._runtime import Runtime
from ..quiet import import_quietly

RECOMPILE_LIMIT = 64
"""Shapes for which a model is compiled. At torch's own limit, which is 8, a model goes back to eager without an error."""
CUDA_GRAPH_MODES = {"reduce-overhead", "max-autotune"}
"""Modes that record CUDA graphs, whose outputs the next call overwrites."""
BREAK_REASON_LENGTH = 200


class CompiledModule(Runtime):
    """Runs a model through torch.compile; the first call of each shape compiles.

    torch keeps what it compiles with the code object and the globals of the compiled function, for as long as the process lives. So
    each copy has a function of its own: its caches are not shared with other copies of the same class, and `close` frees them.
    """

    runtime: ClassVar[str] = "torch.compile"

    def __init__(self, model: nn.Module, *, mode: str, dynamic: bool, fullgraph: bool, freezing: bool) -> None:
        super().__init__()
        self.model = model
        self.mode = mode
        self.dynamic = dynamic
        self.fullgraph = fullgraph
        self.freezing = freezing
        self.training = False
        self._forget()

    def _forget(self) -> None:
        self.graph_breaks: tuple[str, ...] = ()
        """Why torch.compile had to cut the model into several graphs; known after the first call."""
        self._call: Callable[..., Any] | None = None
        self._globals: dict[str, Any] = {}
        self._constants: list[types.ModuleType] = []
        self._seen: set[tuple[Any, ...]] = set()
        self._lock = threading.RLock()

    def _begin(self) -> Callable[..., Any]:
        """Make the function that torch compiles."""
        inductor = import_quietly("torch._inductor")
        import_quietly("torch._inductor.compile_fx")
        model = self.model

        def call(*args: Any, **kwargs: Any) -> Any:
            return model(*args, **kwargs)

        self._globals = {"__builtins__": builtins, "__name__": __name__}
        own = types.FunctionType(call.__code__.replace(), self._globals, "call", None, call.__closure__)
        options = {**inductor.list_mode_options(self.mode, self.dynamic), "freezing": self.freezing}
        # torch 2.13 has the last parameter, its type stubs do not
        return torch.compile(own, dynamic=self.dynamic, fullgraph=self.fullgraph, options=options, recompile_limit=RECOMPILE_LIMIT)  # type: ignore[call-overload]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute what the model does.

        Raises:
            UnsupportedError: torch.compile failed.
        """
        key = _key(args, kwargs) if self.freezing else ()
        if self._call is None or key not in self._seen:
            return self._first(key, args, kwargs)
        return self._run(args, kwargs)

    def _first(self, key: tuple[Any, ...], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """A call that may compile: torch reads whether to fold weights from a global setting while it traces."""
        from torch._dynamo.utils import counters
        from torch._inductor import config

        with self._lock:
            self._call = self._call or self._begin()
            breaks = dict(counters["graph_break"])
            with config.patch(freezing=self.freezing), self._remembering_constants():
                outputs = self._run(args, kwargs)
            found = [" ".join(reason.split())[:BREAK_REASON_LENGTH] for reason, count in counters["graph_break"].items() if count > breaks.get(reason, 0)]
            self.graph_breaks = (*self.graph_breaks, *(reason for reason in found if reason not in self.graph_breaks))
            self._seen.add(key)
        return outputs

    def _run(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        assert self._call is not None
        graphs = self.mode in CUDA_GRAPH_MODES and torch.cuda.is_available()
        try:
            if graphs:
                torch.compiler.cudagraph_mark_step_begin()
            outputs = self._call(*args, **kwargs)
        except Exception as error:
            cause = _compile_failure(error)
            if cause is None:
                raise
            raise UnsupportedError(f"torch.compile failed: {cause}", help="leave the step compile out, or give it other options") from error
        if graphs:
            return _pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) and leaf.is_cuda else leaf, outputs)
        return outputs

    @contextlib.contextmanager
    def _remembering_constants(self) -> Iterator[None]:
        """Note which generated modules come to hold weights: torch keeps those modules for ever."""
        from torch._inductor.codecache import PyCodeCache

        before = {id(module) for module in PyCodeCache.modules}
        yield
        self._constants += [module for module in PyCodeCache.modules if id(module) not in before]

    def close(self) -> None:
        """Free the compiled code and the weights folded into it; the next call compiles anew."""
        with self._lock:
            for module in self._constants:
                for name in [name for name, value in vars(module).items() if isinstance(value, torch.Tensor)]:
                    delattr(module, name)
            for name in self._globals:
                self._globals[name] = None  # emptied but kept: torch deletes them itself when the code object goes
            self._forget()

    def __getstate__(self) -> dict[str, Any]:
        own = ("_call", "_globals", "_constants", "_seen", "_lock", "graph_breaks")
        return {key: value for key, value in self.__dict__.items() if key not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._forget()

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        if self.freezing:
            self.close()  # the weights of before are folded into the code


def _key(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
    """What torch compiles anew for, as far as a caller can change it."""
    leaves = [*args, *kwargs.values()]
    if not all(isinstance(leaf, torch.Tensor) for leaf in leaves):
        leaves = _pytree.tree_leaves((args, dict(kwargs)))
    parts = [(leaf.shape, leaf.dtype, leaf.stride(), leaf.is_inference()) if isinstance(leaf, torch.Tensor) else repr(leaf) for leaf in leaves]
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_num_threads(), *parts


def _compile_failure(error: Exception) -> str | None:
    """What torch.compile says about a failure of its own, on one line; None for errors of the model itself."""
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import CppCompileError

    inner: BaseException | None = error
    while inner is not None and not isinstance(inner, (TorchDynamoException, CppCompileError)):
        inner = inner.__cause__
    if inner is None:
        return None
    lines = [line.strip() for line in str(inner).splitlines() if line.strip()]
    targets = [line for line in lines if line.startswith(("target:", "Explanation:"))]
    return "; ".join([*lines[:1], *targets[:1]]) or type(inner).__name__


def why_not_compile(device: torch.device) -> str | None:
    """Say what torch.compile lacks for `device`, or None."""
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        return None if has_triton() else "torch.compile needs Triton on a GPU, and it is not installed or does not support this one"
    from ..formats._aot_module import has_compiler

    if not has_compiler():
        return "torch.compile needs a C++ compiler on a CPU, and there is none: install g++, or name one in the variable CXX"
    return None
