"""Finds the model that a command names: ``path/to/file.py:factory`` or ``package.module:factory``."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from ..errors import AimassError, InputError, ModelError
from ..quiet import quiet_logs
from ..workload import Workload

T = TypeVar("T")

FORM = "path/to/file.py:factory or package.module:factory"


def locate_workload(reference: str) -> Workload:
    """Import the module that `reference` names and call its factory.

    Args:
        reference: ``path/to/file.py:factory`` or ``package.module:factory``; the factory takes no
            arguments and returns ``(model, example_inputs)``, a `Workload` or a `Study`.

    Raises:
        InputError: no such file, module or factory, or it returned something else.
        ModelError: the module or the factory raised.
    """
    source, colon, name = reference.rpartition(":")
    if not (source and colon and name.isidentifier()):
        raise InputError(f"{reference!r} does not name a model", help=f"give {FORM}")
    module = _import(source, reference)
    factory = getattr(module, name, None)
    if not callable(factory):
        callables = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_") and getattr(v, "__module__", None) == module.__name__]
        raise InputError(f"there is no function {name!r} in {source}", help=f"there are: {', '.join(callables) or 'none'}")
    return as_workload(_run(factory, reference), f"the factory {reference}")


def as_workload(value: Any, what: str) -> Workload:
    """Accept a `Workload`, ``(model, example_inputs)`` or a `Study`, whose workload has its name, data and metric.

    Raises:
        InputError: it is none of them.
    """
    from ..study import Study

    if isinstance(value, Workload):
        return value
    if isinstance(value, Study):  # its store is not taken: what a command finds out is kept where all commands keep theirs
        return value.workload
    if isinstance(value, tuple) and len(value) == 2:
        return Workload(*value)
    raise InputError(f"{what} gave a {type(value).__name__}", help="it must give (model, example_inputs), an aimass_lab.Workload or an aimass_lab.Study")


def _import(source: str, reference: str) -> ModuleType:
    path = Path(source)
    if source.endswith(".py"):
        if not path.is_file():
            raise InputError(f"there is no file {source!r}", help=f"give {FORM}")
        return _run(lambda: _import_file(path.resolve()), reference)
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # as python -m does
    try:
        found = importlib.util.find_spec(source)
    except (ImportError, ValueError):
        found = None
    if found is None:
        raise InputError(f"there is no module {source!r}", help=f"give {FORM}")
    return _run(lambda: importlib.import_module(source), reference)


def _import_file(path: Path) -> ModuleType:
    taken = sys.modules.get(path.stem)
    # A user's torch.py must not take the place of the real one; the same file read again takes its own place.
    name = path.stem if taken is None or getattr(taken, "__file__", None) == str(path) else f"{path.parent.name}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # So that its neighbours can be imported, as when it is run as a script, and its classes found by name.
    sys.path.append(str(path.parent))
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _run(function: Callable[[], T], reference: str) -> T:
    try:
        with quiet_logs():
            return function()
    except AimassError:
        raise
    except (Exception, SystemExit) as error:  # a script that is no module may end the process
        raise ModelError(f"{reference} raised {type(error).__name__}: {error}", help="run it in Python to see the whole traceback") from error
