"""Weights on disk, packed without loss: a codebook with indices, or a mask with what is not zero, wherever that is smaller.

The file is one of safetensors: a tensor that nothing makes smaller stands in it under its own name, so any reader of that format opens it.
A packed tensor stands in it as its parts (``weight::codebook``, ``weight::indices``), and the metadata says how they go together.
No code is stored and none is run: `load_weights` writes values into a model that is there.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ..errors import InputError, UnsupportedError
from ..interrupts import sparing_imports
from .packing import PARTS, Form, choose_form, pack, unpack, words_of

if TYPE_CHECKING:
    import torch
    from torch import nn

_METADATA = "aimass"
_DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "complex64": "C64",
    "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8", "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip
"""torch's names of types -> those of safetensors; tensors of other types are stored as bytes."""


def stored_bytes(model: nn.Module) -> int:
    """Bytes of the file that `save_weights` would write, without writing it.

    Raises:
        UnsupportedError: something in the model's state is no tensor that can be stored.
    """
    header, parts, _ = _lay_out(model)
    return len(header) + sum(part.num_bytes for part in parts.values())


@sparing_imports
def save_weights(model: nn.Module, path: str | Path) -> int:
    """Write parameters and persistent buffers to `path`, each in its smallest lossless form; tied ones once.

    Returns:
        Bytes written.

    Raises:
        UnsupportedError: something in the model's state is no tensor that can be stored.
        InputError: the file cannot be written.
    """
    path = Path(path)
    unfinished = path.with_name(f"{path.name}.part")
    try:
        with open(unfinished, "wb") as file:
            _write(model, file)
            size = file.tell()
        os.replace(unfinished, path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        unfinished.unlink(missing_ok=True)
    return size


@sparing_imports
def load_weights(model: nn.Module, path: str | Path) -> None:
    """Write the values in `path` into a model of the same structure, such as the same recipe gives on a fresh copy.

    Nothing is written before everything fits. A plain safetensors file is read too.

    Raises:
        InputError: the file cannot be read, is damaged, or holds other tensors than the model; the message names them.
        UnsupportedError: something in the model's state is no tensor that can be stored.
    """
    import torch

    path = Path(path)
    leaves, kinds = _leaves(model)
    try:
        with open(path, "rb") as file:
            contents = _read_header(path, file)
            _check_sum(path, file, contents)
            _check_fit(path, leaves, kinds, contents)
            _check_ties(path, file, leaves, contents)
            for name, leaf in leaves.items():
                value = _unpack(file, contents, name)
                # a tensor made under inference mode may only be written there
                with torch.inference_mode() if leaf.is_inference() else torch.no_grad():
                    leaf.copy_(value)
    except OSError as error:
        raise InputError(f"the weights {path} cannot be read: {error.strerror or error}") from error


def _leaves(model: nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Name -> plain tensor of everything to be stored, and name -> what kind of tensor the leaves under it make up."""
    import torch

    leaves: dict[str, torch.Tensor] = {}
    kinds: dict[str, str] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if not isinstance(value, torch.Tensor):
            raise UnsupportedError(f"{name!r} in the model's state is a {type(value).__name__}, not a tensor, and cannot be stored")
        for leaf, tensor in _flatten(name, value.detach() if type(value) in (torch.Tensor, torch.nn.Parameter) else value, kinds):
            if tensor.layout is not torch.strided or tensor.is_quantized:
                raise UnsupportedError(f"{leaf!r} is a {tensor.layout} tensor of {tensor.dtype}, which cannot be stored")
            leaves[leaf] = tensor
    return leaves, kinds


def _flatten(name: str, tensor: Any, kinds: dict[str, str]) -> Iterator[tuple[str, torch.Tensor]]:
    from torch.utils._python_dispatch import is_traceable_wrapper_subclass

    if not is_traceable_wrapper_subclass(tensor):
        yield name, tensor.detach()
        return
    inner, context = tensor.__tensor_flatten__()
    kinds[name] = f"{type(tensor).__name__} {context}"
    for part in inner:
        yield from _flatten(f"{name}::{part}", getattr(tensor, part), kinds)


def _identity(tensor: torch.Tensor) -> Any:
    """The same for tensors that are one piece of memory read in one way."""
    if tensor.device.type == "meta" or tensor.numel() == 0:
        return id(tensor)
    return tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride()


@dataclass(frozen=True)
class _Part:
    """One entry of the file."""

    dtype: str
    shape: tuple[int, ...]
    num_bytes: int


def _lay_out(model: nn.Module, checksum: int = 0) -> tuple[bytes, dict[str, _Part], dict[str, tuple[torch.Tensor, Form]]]:
    """Header, entries in their order, and by name what they are made of."""
    leaves, kinds = _leaves(model)
    first: dict[Any, str] = {}
    same_as = {name: first[key] for name, leaf in leaves.items() if first.setdefault(key := _identity(leaf), name) != name}
    forms = {name: (leaf, choose_form(leaf)) for name, leaf in leaves.items() if name not in same_as}
    parts: dict[str, _Part] = {}
    packed: dict[str, dict[str, Any]] = {}
    for name, (leaf, form) in forms.items():
        dtype = str(leaf.dtype).removeprefix("torch.")
        stored = _DTYPES.get(dtype, "U8")
        num_bytes = leaf.numel() * leaf.element_size()
        if form.is_dense:
            parts[name] = _Part(stored, tuple(leaf.shape) if dtype in _DTYPES else (num_bytes,), num_bytes)
        else:
            word_bytes = min(leaf.element_size(), 8)
            for suffix, size in form.sizes(num_bytes // word_bytes, word_bytes).items():
                wide = suffix in ("codebook", "values") and dtype in _DTYPES
                parts[f"{name}::{suffix}"] = _Part(stored if wide else "U8", (size // leaf.element_size() if wide else size,), size)
        if not form.is_dense or dtype not in _DTYPES:
            packed[name] = {"dtype": dtype, "shape": list(leaf.shape)}
    return _header(parts, {"packed": packed, "same_as": same_as, "kinds": kinds}, checksum), parts, forms


def _header(parts: Mapping[str, _Part], about: dict[str, Any], checksum: int) -> bytes:
    metadata = {"format": "pt", "checksum": f"{checksum:08x}", _METADATA: json.dumps(about, separators=(",", ":"))}
    entries: dict[str, Any] = {"__metadata__": metadata}
    start = 0
    for name, part in parts.items():
        entries[name] = {"dtype": part.dtype, "shape": part.shape, "data_offsets": [start, start + part.num_bytes]}
        start += part.num_bytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _write(model: nn.Module, file: IO[bytes]) -> None:
    header, parts, forms = _lay_out(model)
    file.write(header)
    checksum = zlib.crc32(header)
    written = {}
    for name, (leaf, form) in forms.items():
        if leaf.device.type == "meta":
            raise UnsupportedError(f"{name!r} is on the meta device: it has no values that could be stored", help="load the weights first")
        made = pack(leaf, form)
        for entry, suffix in ((f"{name}::{s}" if s else name, s) for s in _order(form)):
            content = made[suffix].cpu().contiguous().flatten().view(_uint8()).numpy()
            checksum = zlib.crc32(content.data, checksum)
            written[entry] = file.write(content.data)
    assert written == {name: part.num_bytes for name, part in parts.items()}
    size = file.tell()
    file.seek(0)
    file.write(header.replace(b'"checksum":"00000000"', b'"checksum":"%08x"' % checksum, 1))
    file.seek(size)


def _order(form: Form) -> list[str]:
    return [""] if form.is_dense else list(form.sizes(0, 1))


def _uint8() -> torch.dtype:
    import torch

    return torch.uint8


@dataclass(frozen=True)
class _Contents:
    """What a file holds, as its header tells it."""

    parts: dict[str, _Part]
    starts: dict[str, int]
    """Where each entry begins, from the start of the file."""
    packed: dict[str, dict[str, Any]]
    same_as: dict[str, str]
    kinds: dict[str, str]
    checksum: str | None
    """None for a file that others wrote."""

    def source(self, name: str) -> str:
        """The tensor that is stored for the one called `name`."""
        return self.same_as.get(name, name)

    def dtype_and_shape(self, name: str) -> tuple[str, tuple[int, ...]]:
        """Torch's name of the type, and the sizes, of a tensor before it was packed."""
        name = self.source(name)
        if name in self.packed:
            return self.packed[name]["dtype"], tuple(self.packed[name]["shape"])
        part = self.parts[name]
        return {stored: dtype for dtype, stored in _DTYPES.items()}.get(part.dtype, part.dtype), part.shape

    def described(self, name: str) -> str:
        dtype, shape = self.dtype_and_shape(name)
        return f"{dtype} {list(shape)}"

    @property
    def tensors(self) -> set[str]:
        """Names of the tensors, packed or not."""
        return {name for name in self.parts if name.rpartition("::")[0] not in self.packed} | set(self.packed) | set(self.same_as)


def _read_header(path: Path, file: IO[bytes]) -> _Contents:
    """Read what the file holds.

    Raises:
        InputError: it is no safetensors file, or its end is missing.
    """
    size = os.fstat(file.fileno()).st_size
    start = file.read(8)
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
    try:
        if length > size - 8:
            raise ValueError("the header is longer than the file")
        entries = json.loads(file.read(length))
        metadata = entries.pop("__metadata__", {})
        about = json.loads(metadata[_METADATA]) if _METADATA in metadata else {}
        checksum = metadata["checksum"] if about else metadata.get("checksum")
        starts = {name: 8 + length + entry["data_offsets"][0] for name, entry in entries.items()}
        parts = {name: _Part(e["dtype"], tuple(e["shape"]), e["data_offsets"][1] - e["data_offsets"][0]) for name, e in entries.items()}
        contents = _Contents(
            parts=parts, starts=starts, packed=about.get("packed", {}), same_as=about.get("same_as", {}), kinds=about.get("kinds", {}),
            checksum=checksum,
        )  # fmt: skip
        for name in contents.tensors:
            contents.described(name)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise InputError(f"{path} holds no weights: {error}", help="give a file that save_weights wrote, or a safetensors file") from error
    end = max((starts[name] + part.num_bytes for name, part in parts.items()), default=8 + length)
    if end != size:
        raise InputError(f"{path} is damaged: it has {size:,} bytes and its header speaks of {end:,}", help="write or copy it again")
    return contents


def _check_fit(path: Path, leaves: Mapping[str, torch.Tensor], kinds: Mapping[str, str], contents: _Contents) -> None:
    help_ = "load into a model of the same structure: apply the same recipe to a copy of the same model first"
    held = contents.tensors
    if leaves.keys() != held:
        lacking = _listed("are not in the file", leaves.keys() - held)
        extra = _listed("are not in the model", held - leaves.keys())
        raise InputError(f"{path} does not fit the model: {' and '.join(filter(None, (lacking, extra)))}", help=help_)
    for name in kinds.keys() | contents.kinds.keys():
        if kinds.get(name) != contents.kinds.get(name):
            raise InputError(
                f"{name!r} is {kinds.get(name, 'a plain tensor')} in the model and {contents.kinds.get(name, 'a plain tensor')} in {path}", help=help_
            )
    for name, leaf in leaves.items():
        if leaf.device.type == "meta":
            raise InputError(f"{name!r} of the model is on the meta device, where no values can be written", help="model.to_empty(device='cpu') first")
        of_leaf, of_file = _described(leaf), contents.described(name)
        if of_leaf != of_file:
            raise InputError(f"{name!r} is {of_leaf} in the model and {of_file} in {path}", help=help_)


def _listed(what: str, names: set[str]) -> str:
    shown = ", ".join(repr(name) for name in sorted(names)[:5])
    return f"{shown}{f' and {len(names) - 5} more' if len(names) > 5 else ''} {what}" if names else ""


def _described(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _check_sum(path: Path, file: IO[bytes], contents: _Contents) -> None:
    if contents.checksum is None:
        return
    written = b'"checksum":"%s"' % contents.checksum.encode()
    file.seek(0)
    start = file.read(min(contents.starts.values(), default=-1))
    checksum = zlib.crc32(start.replace(written, b'"checksum":"00000000"', 1))
    while block := file.read(2**20):
        checksum = zlib.crc32(block, checksum)
    if f"{checksum:08x}" != contents.checksum:
        raise InputError(f"{path} is damaged: its checksum is {checksum:08x} and should be {contents.checksum}", help="write or copy it again")


def _check_ties(path: Path, file: IO[bytes], leaves: Mapping[str, torch.Tensor], contents: _Contents) -> None:
    """One piece of memory cannot take two different values."""
    import torch

    groups: dict[Any, list[str]] = {}
    for name, leaf in leaves.items():
        groups.setdefault(_identity(leaf), []).append(name)
    for first, *others in groups.values():
        for other in others:
            if contents.source(first) != contents.source(other) and not torch.equal(
                words_of(_unpack(file, contents, first)), words_of(_unpack(file, contents, other))
            ):
                raise InputError(f"{first!r} and {other!r} are one tensor in the model and two different ones in {path}", help="untie them in the model first")


def _unpack(file: IO[bytes], contents: _Contents, name: str) -> torch.Tensor:
    """One tensor as it was."""
    import torch

    def read(entry: str) -> torch.Tensor:
        content = bytearray(contents.parts[entry].num_bytes)
        file.seek(contents.starts[entry])
        file.readinto(content)  # type: ignore[attr-defined]
        return torch.frombuffer(content, dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)

    dtype, shape = contents.dtype_and_shape(name)
    name = contents.source(name)
    entries = {"": name} if name in contents.parts else {s: f"{name}::{s}" for s in PARTS if f"{name}::{s}" in contents.parts}
    try:
        return unpack({suffix: read(entry) for suffix, entry in entries.items()}, getattr(torch, dtype), shape)
    except (KeyError, IndexError, RuntimeError, ValueError) as error:
        raise InputError(f"{name!r} in {file.name} is damaged: {error}", help="write or copy the file again") from error
