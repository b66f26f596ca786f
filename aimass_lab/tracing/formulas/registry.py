"""Which formula an operator has: ours, torch's own for the rest, and those that users register."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

from ...errors import InputError
from . import attention, convolution, matmul, recurrent, transforms
from .kinds import FAMILIES, METADATA, Family, Formula, Kind, family_by_name, is_gather, is_light, is_view, name_of, packet_of

_TABLES: tuple[tuple[Family, dict[str, Formula]], ...] = (
    ("gemm", matmul.TABLE),
    ("conv", convolution.TABLE),
    ("attention", attention.TABLE),
    ("recurrent", recurrent.TABLE),
    ("fft", transforms.FFT_TABLE),
    ("other", transforms.TABLE),
)
BUILT_IN: dict[str, tuple[Family, Formula]] = {name: (family, formula) for family, table in _TABLES for name, formula in table.items()}
_registered: dict[str, tuple[Family, Formula]] = {}


class Operator(NamedTuple):
    """All that the name of an operator says."""

    name: str
    kind: Kind
    family: Family
    formula: Formula | None
    gathers: bool
    """Reads only the rows it fetches, not the whole table."""
    computes: bool
    """Light, and more than moving data."""
    composite: bool
    """Made of other operators; it reaches the pass whole only under inference mode."""
    writes: tuple[int, ...]
    """Positions of the arguments it writes into."""


def register_formula(operator: Any, formula: Formula, *, family: Family = "other") -> None:
    """Say how many FLOPs a custom operator takes, so that estimates count it instead of listing it as unknown.

    Registering again replaces your formula, so that a notebook's cell can run twice.

    ::

        @torch.library.custom_op("mine::attend", mutates_args=())
        def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor: ...

        register_formula(attend, lambda q, k, v, *, out_val: 4 * q.numel() * k.shape[-2], family="attention")

    Args:
        operator: What ``torch.library.custom_op`` made, ``torch.ops.mine.attend``, one of its overloads, a
            higher-order operator, or the name ``"mine::attend"``; all overloads share the formula.
        formula: ``formula(*args, out_val, **kwargs) -> int`` with the operator's own arguments and its result.
            The tensors have shapes and dtypes, but mostly no data. The answer is in FLOP; a multiply-add is 2,
            element-wise arithmetic is left out. Formulas written for torch's counter with ``get_raw=True`` fit.
        family: Which operators reach a like share of a device's rates: one of "gemm", "conv", "attention",
            "recurrent", "fft", "norm", "reduction", "elementwise", "gather", "copy", "other".

    Raises:
        InputError: this is no operator's name, no function, no such family, or an operator whose formula comes with this package.
    """
    name = operator if isinstance(operator, str) else str(getattr(operator, "_qualname", None) or name_of(operator))
    if isinstance(operator, str) and "::" not in name:
        raise InputError(f"{name!r} is no operator's name", help='write it with its namespace: "mine::attend"')
    if not isinstance(operator, str) and not hasattr(operator, "_qualname") and not _is_operator(operator):
        raise InputError(f"{operator!r} is no operator", help="pass torch.ops.<namespace>.<name>, what torch.library.custom_op made, or the name")
    if not callable(formula):
        raise InputError(f"the formula of {name} is a {type(formula).__name__}, not a function", help="pass formula(*args, out_val, **kwargs) -> int")
    if family not in FAMILIES:
        raise InputError(f"no family called {family!r}", help=f"there are: {', '.join(FAMILIES)}")
    if name in BUILT_IN:
        raise InputError(f"{name} already has a formula, which comes with this package", help="register one for an operator of your own")
    _registered[name] = (family, formula)
    _describe.cache_clear()


def _is_operator(operator: Any) -> bool:
    from torch._ops import HigherOrderOperator, OpOverload, OpOverloadPacket

    return isinstance(operator, (OpOverload, OpOverloadPacket, HigherOrderOperator))


def is_users(name: str) -> bool:
    """Whether a user registered the formula."""
    return name in _registered


def describe(operator: Any) -> Operator:
    """All that is known of an operator by its name."""
    from torch.utils.flop_counter import flop_registry

    return _describe(operator, len(flop_registry))


def classify(operator: Any) -> Kind:
    """Which of the four kinds the operator is."""
    return describe(operator).kind


@functools.lru_cache(maxsize=4096)
def _describe(operator: Any, _num_formulas_of_torch: int) -> Operator:
    # Formulas registered with torch after a first look are new ones: their number is part of the key.
    name = name_of(operator)
    family, formula = _find(operator, name)
    if name in METADATA or is_view(operator):
        kind: Kind = "view"
    elif formula is not None:
        kind = "formula"
    else:
        kind = "light" if is_light(operator) else "unknown"
    return Operator(
        name=name,
        kind=kind,
        family=family,
        formula=formula,
        gathers=is_gather(name),
        computes=kind == "light" and family not in ("copy", "gather"),
        composite=kind != "view" and name not in _registered and bool(getattr(operator, "_can_decompose", bool)()),
        writes=tuple(
            i for i, a in enumerate(getattr(getattr(operator, "_schema", None), "arguments", ())) if a.alias_info is not None and a.alias_info.is_write
        ),
    )


def _find(operator: Any, name: str) -> tuple[Family, Formula | None]:
    from torch.utils.flop_counter import flop_registry

    # addmm_ does what addmm does.
    for known in (name, name.rstrip("_")):
        for table in (_registered, BUILT_IN):
            if known in table:
                return table[known]
    return family_by_name(operator), flop_registry.get(packet_of(operator))
