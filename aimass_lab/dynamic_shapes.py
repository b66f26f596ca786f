"""Which sizes of its inputs a model leaves open besides the number of items, in the forms that people say it in."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .errors import InputError

if TYPE_CHECKING:
    import torch

BATCH = "batch"
"""What the axis of the items is called in files; no other dimension has this name."""
HELP = (
    'dynamic_shapes="input_ids:1+attention_mask:1=1..512", "1=1..512" for axis 1 of every input, or as torch.export has it: '
    "{'input_ids': {1: torch.export.Dim('tokens', min=1, max=512)}}"
)
_TEXT = re.compile(r"(?P<places>[^=]+)=\s*(?P<min>\d+)\s*\.\.\s*(?P<max>\d+)\s*")
_PLACE = re.compile(r"(?:(?P<input>[^:+=,]+):)?(?P<axis>-?\d+)")


@dataclass(frozen=True)
class Dim:
    """A size that a call may choose within a range.

    Args:
        name: What files and messages call it.
        min: Smallest size.
        max: Largest size.
        axes: Where it is, all of the same size in a call: index of the tensor among those of the call, and axis.
    """

    name: str
    min: int
    max: int
    axes: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class AskedDim:
    """A dimension as it was asked for, before the inputs are known.

    Args:
        name: Given to it; made from its place if None.
        min: Smallest size.
        max: Largest size.
        places: Name of the input and axis; no name: every input in which this axis has the size that it has in the first one.
    """

    name: str | None
    min: int
    max: int
    places: tuple[tuple[str | None, int], ...]


def read_dynamic_shapes(value: Any) -> tuple[AskedDim, ...]:
    """Read which sizes are open.

    Args:
        value: ``"input_ids:1+attention_mask:1=1..512"``, several of them with commas between or in a list; or by name of the input and axis a
            `torch.export.Dim` or a pair of the smallest and the largest size. The same `Dim` in several places is one size.

    Raises:
        InputError: none of these, or a range that holds no two sizes.
    """
    if isinstance(value, str):
        return tuple(_read_text(part) for part in value.split(","))
    if isinstance(value, Mapping) and value:
        return _read_mapping(value)
    if isinstance(value, Iterable) and not isinstance(value, Mapping) and not isinstance(value, bytes):
        return tuple(dim for part in value for dim in ((part,) if isinstance(part, AskedDim) else read_dynamic_shapes(part)))
    raise InputError(f"{value!r} does not say which sizes are open", help=HELP)


def _read_text(text: str) -> AskedDim:
    found = _TEXT.fullmatch(text.strip())
    places = [_PLACE.fullmatch(place.strip()) for place in found["places"].split("+")] if found else []
    if found is None or not all(places):
        raise InputError(f"{text.strip()!r} does not say which sizes are open", help=HELP)
    return _asked(None, int(found["min"]), int(found["max"]), tuple((place["input"], int(place["axis"])) for place in places if place))


def _read_mapping(shapes: Mapping[Any, Any]) -> tuple[AskedDim, ...]:
    named: dict[str, AskedDim] = {}
    for input_name, axes in shapes.items():
        if not isinstance(input_name, str) or not isinstance(axes, Mapping | None):
            raise InputError(f"{input_name!r}: {axes!r} does not say which axes of an input are open", help=HELP)
        for axis, size in (axes or {}).items():
            if isinstance(axis, bool) or not isinstance(axis, int):
                raise InputError(f"{axis!r} is not the number of an axis of the input {input_name!r}", help=HELP)
            name, low, high = _range(input_name, axis, size)
            known = named.get(name)
            if known is not None and (known.min, known.max) != (low, high):
                raise InputError(f"the dimension {name!r} has two ranges: {known.min}..{known.max} and {low}..{high}", help="give each its own name")
            named[name] = _asked(name, low, high, (*(known.places if known else ()), (input_name, axis)))
    return tuple(named.values())


def _range(input_name: str, axis: int, size: Any) -> tuple[str, int, int]:
    """Name and ends of what stands for a size: a `torch.export.Dim`, or a pair."""
    if isinstance(size, (tuple, list)) and len(size) == 2 and all(type(end) is int for end in size):
        return f"{input_name}_{axis}", size[0], size[1]
    name, low, high = (getattr(size, key, None) for key in ("__name__", "min", "max"))
    if isinstance(name, str) and type(low) is int and type(high) is int:
        return name, max(1, low), high  # a Dim of which nobody said where it begins begins at 0
    if isinstance(name, str) and low is not None:
        raise InputError(f"the dimension {name!r} has no upper end, and a server must know how much a request may ask for", help=f"Dim({name!r}, max=512)")
    raise InputError(f"axis {axis} of the input {input_name!r} is given as {size!r}, which is no range", help=HELP)


def _asked(name: str | None, low: int, high: int, places: tuple[tuple[str | None, int], ...]) -> AskedDim:
    if not 1 <= low < high:
        raise InputError(f"{low}..{high} is not a range of sizes", help="the smallest is 1 at least, and the largest is larger than it")
    return AskedDim(name, low, high, places)


def describe_sizes(sizes: Mapping[str, int]) -> str:
    """``tokens = 512, height = 32``."""
    return ", ".join(f"{name} = {size}" for name, size in sizes.items())


def place_dims(asked: Sequence[AskedDim], inputs: Sequence[tuple[str, torch.Tensor]], batch_axis: int, *, batched: Sequence[bool]) -> tuple[Dim, ...]:
    """Find the axes in the example inputs.

    Args:
        asked: What is open.
        inputs: Name and example of every input.
        batch_axis: The axis that counts the items.
        batched: Of every input, whether it has that axis.

    Raises:
        InputError: there is no such input or axis, it counts the items, is open twice, or its example's size is out of its range or not that of the others.
    """
    dims: list[Dim] = []
    for one in asked:
        axes = [found for place in one.places for found in _find(place, inputs, batch_axis, batched)]
        name = one.name or re.sub(r"\W", "_", f"{one.places[0][0] or 'axis'}_{axes[0][1]}")
        if name == BATCH or any(name == dim.name for dim in dims) or not name.isidentifier():
            raise InputError(f"a dimension cannot be called {name!r}", help="give each a name of its own, of letters, digits and _; the items' is 'batch'")
        taken = {place for dim in dims for place in dim.axes}
        if twice := [place for k, place in enumerate(axes) if place in taken or place in axes[:k]]:
            raise InputError(f"axis {twice[0][1]} of the input {inputs[twice[0][0]][0]!r} is given twice")
        sizes = {f"{inputs[index][0]}:{axis}": int(inputs[index][1].shape[axis]) for index, axis in axes}
        if len(set(sizes.values())) > 1:
            told = ", ".join(f"{place} is {size}" for place, size in sizes.items())
            raise InputError(f"the dimension {name!r} has several sizes in the example inputs: {told}", help="give each a range of its own")
        if not one.min <= (size := next(iter(sizes.values()))) <= one.max:
            raise InputError(f"the dimension {name!r} is {size} in the example inputs, which is not in {one.min}..{one.max}")
        dims.append(Dim(name, one.min, one.max, tuple(axes)))
    return tuple(dims)


def _find(place: tuple[str | None, int], inputs: Sequence[tuple[str, torch.Tensor]], batch_axis: int, batched: Sequence[bool]) -> list[tuple[int, int]]:
    name, axis = place
    having = [(k, axis % tensor.dim()) for k, (_, tensor) in enumerate(inputs) if -tensor.dim() <= axis < tensor.dim()]
    if name is None:
        having = [(k, at) for k, at in having if inputs[k][1].shape[at] == inputs[having[0][0]][1].shape[having[0][1]]]
    else:
        known = [k for k, (input_name, _) in enumerate(inputs) if input_name == name]
        if not known:
            raise InputError(f"there is no input {name!r}", help=f"the inputs are {', '.join(repr(input_name) for input_name, _ in inputs)}")
        having = [(k, at) for k, at in having if k in known]
    if not having:
        shapes = ", ".join(f"{input_name} {list(tensor.shape)}" for input_name, tensor in inputs if name in (None, input_name))
        raise InputError(f"no input has an axis {axis}: {shapes}" if name is None else f"the input {name!r} has no axis {axis}: {shapes}")
    if any(at == batch_axis and batched[k] for k, at in having):
        raise InputError(f"axis {batch_axis} counts the items, and is open anyway", help="give the axis whose size requests may choose, such as 1")
    return having
