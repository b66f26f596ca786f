"""What kind of failure an exception is."""

from __future__ import annotations

from collections.abc import Iterator

from ..errors import AimassError, DoesNotFitError, MissingPackageError, UnsupportedError
from ..records import FailureKind
from .claims import Failure

COMPILERS = ("torch._dynamo", "torch._inductor", "torch.export", "torch._export", "torch.onnx", "onnxruntime", "onnx", "triton")
"""Where errors of compiling and exporting are defined."""


def describe_failure(error: BaseException) -> Failure:
    """Kind and cause of what was raised instead of a result."""
    if isinstance(error, AimassError):
        cause = error.message
    else:
        first_line = (str(error).strip().splitlines() or [""])[0]
        cause = f"{type(error).__name__}: {first_line}" if first_line else type(error).__name__
    return Failure(kind=_kind(error), cause=cause)


def _kind(error: BaseException) -> FailureKind:
    chain = tuple(_chain(error))
    words = " ".join(str(link) for link in chain).lower()
    if any(isinstance(link, (DoesNotFitError, MemoryError)) for link in chain) or "out of memory" in words or "not enough memory" in words:
        return "out of memory"
    if any(type(link).__module__.startswith(COMPILERS) for link in chain):
        return "compile error"
    if "not finite" in words or "non-finite" in words or "nan" in words.split():
        return "not finite"
    if isinstance(error, (UnsupportedError, MissingPackageError)):
        return "unsupported"
    return "error"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and what it was raised from or while handling."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
