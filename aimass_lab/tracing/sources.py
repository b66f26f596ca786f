"""Which line of the user's code asked for an operator: ``model.py:41``, or ``In [7]:3`` in a notebook."""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import sys
from types import CodeType, FrameType

_LIBRARIES = ("torch", "torchao", "functorch", "einops")
"""Packages whose lines say nothing about a model: they only pass calls on."""

_IPYTHON_CELL = re.compile(r"<ipython-input-(\d+)-[^>]*>$|<ipython-input-(\d+)>$")
_KERNEL_CELL = re.compile(r"ipykernel_\d+[\\/]\w+\.py$")


def source_line(frame: FrameType | None, stop: CodeType) -> str:
    """The innermost line from `frame` outwards that is the user's; empty if `stop` is reached before one is.

    Args:
        frame: Where to begin.
        stop: The function that began the pass: what lies outside of it is no part of the model.
    """
    while frame is not None:
        code = frame.f_code
        if code is stop:
            return ""
        if not _is_passing_on(code.co_filename):
            return _label(code.co_filename, frame.f_lineno)
        frame = frame.f_back
    return ""


@functools.cache
def _is_passing_on(filename: str) -> bool:
    if _IPYTHON_CELL.search(filename):
        return False
    # Generated code (<eval_with_key>, <frozen ...>, dataclass methods) has no line to show.
    return filename.startswith(("<", *_roots()))


@functools.cache
def _roots() -> tuple[str, ...]:
    """Folders of libraries, of this package and of Python's own library."""
    own = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    specs = (importlib.util.find_spec(name) for name in _LIBRARIES)
    libraries = [folder for spec in specs if spec is not None for folder in spec.submodule_search_locations or ()]
    standard = [os.path.join(os.path.dirname(os.__file__), name) for name in ("contextlib.py", "functools.py", "threading.py", "concurrent")]
    return tuple(folder if folder.endswith(".py") else folder + os.sep for folder in [own, *libraries, *standard])


# A cell that is run again gets another file name, but a shell restarted in this process counts its cells anew.
@functools.lru_cache(maxsize=65536)
def _label(filename: str, line: int) -> str:
    return f"{_name(filename)}:{line}"


@functools.lru_cache(maxsize=4096)
def _name(filename: str) -> str:
    cell = _cell_number(filename)
    if cell is not None:
        return f"In [{cell}]"
    if _KERNEL_CELL.search(filename):
        return "notebook cell"
    path = os.path.abspath(filename)
    folders = [os.path.abspath(folder or ".") for folder in ("", *sys.path)]
    inside = [folder for folder in folders if path.startswith(folder.rstrip(os.sep) + os.sep) and os.path.isdir(folder)]
    if inside:  # the longest root gives the shortest name, the one that an import would use
        return os.path.relpath(path, max(inside, key=len)).replace(os.sep, "/")
    return "/".join(path.split(os.sep)[-2:])


def _cell_number(filename: str) -> str | None:
    """The execution count of the cell that was compiled under this name."""
    plain = _IPYTHON_CELL.search(filename)
    if plain:
        return plain.group(1) or plain.group(2)
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    # A kernel compiles each cell under the name of a file that does not exist; its compiler knows which cell that was.
    label = shell.compile.format_code_name(filename) if shell is not None and hasattr(shell.compile, "format_code_name") else None
    found = re.search(r"\d+", label[1]) if label else None
    return found.group() if found else None
