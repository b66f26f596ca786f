"""The errors a user can cause, each saying what was wrong, with the value, and what to do.

::

    AimassError
    ├── InputError          an argument, an option or example inputs that cannot be used
    │   └── UnknownNameError    a name that no member of a family has
    ├── ModelError          the user's model raised, or gave outputs that cannot be used
    ├── DoesNotFitError     more memory is needed than the device has
    ├── MissingPackageError an optional package is needed and not installed
    ├── UnsupportedError    this device, model or technique cannot do what was asked
    ├── StoreError          the history on disk cannot be read or written
    ├── SpecError           a resource spec that is not valid
    └── BundleError         a serving bundle that cannot be written, read or verified
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import TypeVar

E = TypeVar("E", bound=BaseException)


def first_line(error: BaseException) -> str:
    """First line of an error's message that is not empty; the error's class where there is none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def reason_of(error: BaseException) -> str:
    """Why a file could not be read or written, for a message that names it: what the system says begins with a number, and ends in the name once more."""
    return getattr(error, "strerror", None) or str(error)


def without_traceback(error: E) -> E:
    """The same error; it and those that it came from no longer hold the frames that they passed through, nor what lives in them.

    A notebook keeps its last error until the next one, and with it would keep the tensors that filled the memory, inputs included.
    Clearing the frames would not do: a function that was called keeps what it closes over.
    """
    link: BaseException | None = error
    while link is not None:
        link.__traceback__ = None
        link = link.__cause__ or link.__context__
    return error


class OutOfTime(BaseException):
    """What was being done took longer than it was given, and was given up.

    No error of a user's: whoever gave the time catches it. Like `KeyboardInterrupt` it is no `Exception`, so that nothing on the way takes it for
    a failure of its own and tries something else.
    """


class AimassError(Exception):
    """Base of every error that the user can act upon.

    Args:
        message: What was wrong, with the value.
        help: What to do about it; shown on a line of its own.
    """

    def __init__(self, message: str, *, help: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.help = help

    def __str__(self) -> str:
        return f"{self.message}\nhelp: {self.help}" if self.help else self.message


class InputError(AimassError, ValueError):
    """An argument, an option or example inputs that cannot be used."""


OTHER_WORDS = {
    "try": "trial", "compress": "trial", "tune": "search", "optimize": "search", "optimise": "search", "what": "demand", "estimate": "demand",
    "benchmark": "profile", "export": "spec", "deploy": "bundle", "verify": "check", "k8s": "kubernetes", "prune": "channel_pruning",
    "quantize": "int8_dynamic", "quantise": "int8_dynamic",
}  # fmt: skip
"""What people call things elsewhere, and which name of ours they mean by it, where a family has that name."""


class UnknownNameError(InputError):
    """A name that no member of a family has.

    Args:
        kind: What the name should have named, for example ``"technique"``.
        name: The name that was given.
        known: The names there are.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        super().__init__(f"no {kind} called {name!r}", help=f"{did_you_mean(name, names)}there are: {', '.join(names) or 'none'}")


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """A question that goes before the names there are; empty where none is near."""
    low = name.lower()
    same, close = [one for one in known if one.lower() == low], difflib.get_close_matches(low, known, n=1)
    meant = [one for one in known if one == OTHER_WORDS.get(low)]
    near = next(iter([*same, *meant, *close, *(one for one in known if low and one.startswith(low))]), None)
    return f"did you mean {near!r}? " if near else ""


class ArgumentError(InputError, TypeError):
    """A call with an argument that there is not, or without the name that it goes by."""


class ModelError(AimassError, RuntimeError):
    """The user's model raised, or gave outputs that cannot be used."""


class DoesNotFitError(AimassError, MemoryError):
    """More memory is needed than the device has."""


class MissingPackageError(AimassError, ImportError):
    """An optional package is needed and not installed.

    Args:
        package: The distribution's name, as ``pip install`` knows it.
        needed_for: What wanted it.
    """

    def __init__(self, package: str, needed_for: str) -> None:
        super().__init__(f"{needed_for} needs the package {package!r}, which is not installed", help=f"pip install {package}")
        self.package = package


class UnsupportedError(AimassError, RuntimeError):
    """This device, model or technique cannot do what was asked."""


class StoreError(AimassError, OSError):
    """The history on disk cannot be read or written."""


class SpecError(AimassError, ValueError):
    """A resource spec that is not valid."""


class BundleError(AimassError, RuntimeError):
    """A serving bundle that cannot be written, read or verified."""
