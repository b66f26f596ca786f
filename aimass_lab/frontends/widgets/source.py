"""Reads the panel's JavaScript and CSS: plain modules beside this file, joined into the one text that a front-end is sent."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

VIEWS = ("profile.js", "whatif.js", "tries.js", "search.js", "plan.js", "ship.js")
"""Each exports one view, see panel.js, and is listed there."""
PARTS = ("lengths.js", "form.js", "foreseen.js", "verdict.js", "scatter.js", "loads.js", "cheaper.js", "policies.js", "turns.js", "proof.js")
"""Parts of a view that fill a file of their own."""
MODULES = ("format.js", "dom.js", "plot.js", "code.js", *PARTS, *VIEWS, "saving.js", "panel.js")
"""In the order in which they need each other; the last one's default export is the widget."""

_IMPORT = re.compile(r'^import (\{.*\}) from "\./(\w+)\.js";$', re.M)
_KINDS = re.compile(r"^  kinds: \[(.*)\],$", re.M)
_EXPORT = re.compile(r"^export (?=(?:const|function|class) (\w+))", re.M)


@cache
def script() -> str:
    """The panel's program. A front-end loads it from memory, where a module cannot import its neighbours: so each becomes a scope of its own."""
    *parts, last = MODULES
    return "\n".join([*map(_scope, parts), _with_imports(_read(last))])


@cache
def shown_kinds() -> tuple[str, ...]:
    """Kinds of records that the views draw, as each says itself; the kernel sends no others."""
    lists = [_KINDS.findall(_read(name)) for name in VIEWS]
    return tuple(dict.fromkeys(kind.strip(' "') for (kinds,) in lists for kind in kinds.split(",")))


@cache
def style() -> str:
    """The panel's style sheet."""
    return _read("panel.css")


def _scope(name: str) -> str:
    text = _read(name)
    exported = ", ".join(_EXPORT.findall(text))
    return f"const ${name.removesuffix('.js')} = (() => {{\n{_with_imports(_EXPORT.sub('', text))}\nreturn {{ {exported} }};\n}})();"


def _with_imports(text: str) -> str:
    return _IMPORT.sub(r"const \1 = $\2;", text)


def _read(name: str) -> str:
    return (files(__package__) / name).read_text(encoding="utf-8")
