"""A module that a runtime computes: it holds the written model as bytes, and is called like the model that was written."""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from ..errors import InputError
from ..workload import Call, call_model
from ._interface import Flat, Interface, flat_call, named_leaves
from .signature import Signature, as_numpy, with_tensors


class Runtime(nn.Module):
    """A module that something else than eager torch computes."""

    runtime: ClassVar[str]
    """What runs it, as people call it."""

    @abstractmethod
    def close(self) -> None:
        """Free what the runtime holds."""


class RuntimeModule(Runtime):
    """Runs a written model in a runtime of its own, behind the arguments and containers of the model it was made from.

    The bytes are a buffer, so that they count as weights and travel with the state dict. The runtime holds a copy of the weights of its
    own; it is loaded at the first call, and anew where torch's number of threads or the bytes are others than before. Copies and pickles hold
    the bytes only.
    """

    file: torch.Tensor
    """The written model, uint8[n]."""

    def __init__(self, file: torch.Tensor, interface: Interface, device: torch.device) -> None:
        super().__init__()
        self.register_buffer("file", file)
        self.interface = interface
        self.device = device
        self.training = False
        self._forget()

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._loaded: Any = None
        self._loaded_for = (0, 0)

    @abstractmethod
    def _load(self, threads: int) -> Any:
        """Load the file into the runtime."""

    @abstractmethod
    def _run(self, loaded: Any, tensors: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """Compute the outputs."""

    def loaded(self) -> Any:
        """The model in the runtime, for as many threads as torch uses.

        Raises:
            InputError: the bytes were released.
        """
        wanted = torch.get_num_threads(), _version(self._buffers.get("file"))
        found = self._loaded
        if found is not None and self._loaded_for == wanted:
            return found
        with self._lock:
            if self._loaded is None or self._loaded_for != wanted:
                if "file" not in self._buffers:
                    raise InputError("this copy of the model was released and cannot be called any more", help="try the recipe again")
                self._loaded = None  # first, so that two of them never take memory side by side
                self._loaded, self._loaded_for = self._load(wanted[0]), wanted
            return self._loaded

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute what the model does, without gradients.

        Raises:
            InputError: other arguments, types or sizes than the model was written for; or it was released.
        """
        tensors = self.interface.take_apart(args, kwargs)
        loaded = self.loaded()
        try:
            outputs = self._run(loaded, tensors)
        except Exception:
            # asked only now: the runtime has refused what is wrong already, and a good call need not pay for the question
            refusal = self.interface.refusal(tensors, self.device)
            if refusal is not None:
                raise refusal from None
            raise
        return self.interface.put_together(outputs)

    def close(self) -> None:
        """Free what the runtime holds; the next call loads it again."""
        with self._lock:
            self._loaded = None

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_lock", "_loaded", "_loaded_for")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._forget()

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        found = state_dict.get(f"{prefix}file")
        if isinstance(found, torch.Tensor):
            self.file = torch.empty_like(found, device=self.file.device)  # two files of one model need not be equally long
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self.close()


def _version(file: torch.Tensor | None) -> int:
    """How often the bytes were written; torch does not count for tensors made under inference mode."""
    return 0 if file is None or file.is_inference() else file._version


def verify(module: RuntimeModule, model: nn.Module, call: Call, signature: Signature) -> None:
    """Compare a written model with the one it was written from, at batch sizes 1, 2 and that of `call`.

    Raises:
        BundleError: it computes something else.
    """
    from .base import compare

    def answers(flat: Call) -> dict[str, Any]:
        return {name: as_numpy(tensor) for name, tensor in named_leaves(call_model(module, with_tensors(call, flat.tensors())))}

    compare(answers, Flat(model, call), flat_call(call), signature, sizes={1, 2, call.batch_size}, runtime=module.runtime)
