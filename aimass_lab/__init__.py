"""Profile, shrink, plan and serve a PyTorch model without leaving the notebook.

::

    import aimass_lab
    study = aimass_lab.Study(model, example_inputs)
    study.profile()

or, in a notebook, ``%load_ext aimass_lab`` and ``%aimass profile model x``.

Importing this package loads neither torch nor anything else that is heavy; the first verb does.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

from .interrupts import spare_imports

__version__ = "0.1.0"

_HOMES = {
    "AimassError": "errors",
    "EnergyMeter": "readings",
    "Monitor": "readings",
    "Study": "study",
    "Workload": "workload",
    "chart": "frontends.charts",
    "check": "operations",
    "compare": "operations",
    "estimate_demand": "demand",
    "estimate_network": "network",
    "estimate_resources": "demand.resources",
    "estimate_sequence": "demand.sequence",
    "history": "operations",
    "ledger": "operations",
    "load_weights": "storage",
    "make_plan": "planning",
    "profile_callable": "profiling",
    "profile_model": "profiling",
    "read_trace": "operations",
    "register_formula": "tracing.formulas.registry",
    "read_recipe": "recipe",
    "run_trial": "trial",
    "save_weights": "storage",
    "serve": "operations",
    "show": "operations",
    "take_readings": "readings",
    "to_frames": "frontends.frames",
    "write_bundle": "bundle",
    "write_recipe": "recipe",
}
__all__ = sorted([*_HOMES, "__version__"])


def __getattr__(name: str) -> Any:
    """Load a public name's module the first time the name is used."""
    if name in _HOMES:
        home = spare_imports(lambda: importlib.import_module(f"{__name__}.{_HOMES[name]}"))
        _let_records_read_as_text()
        return getattr(home, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)


def load_ipython_extension(shell: Any) -> None:
    """Called by ``%load_ext aimass_lab``."""
    from .frontends import display, magics

    magics.load(shell)
    display.register(shell)


def unload_ipython_extension(shell: Any) -> None:
    """Called by ``%unload_ext aimass_lab``."""
    from .frontends import magics

    magics.unload(shell)


def _jupyter_server_extension_points() -> list[dict[str, str]]:
    return [{"module": f"{__name__}.frontends.server"}]


def _jupyter_labextension_paths() -> list[dict[str, str]]:
    return [{"src": "labextension", "dest": "aimass-lab"}]


def _let_records_read_as_text() -> None:
    """Let `print` show a record as the command line does, once there are any."""
    if (numbers := sys.modules.get(f"{__name__}.records.number")) is not None:
        numbers.read_as(_text_of)


def _text_of(record: Any) -> str:
    from .frontends.layouts import lay_out
    from .frontends.render import render_text

    return repr(record) if lay_out.dispatch(type(record)) is lay_out.dispatch(object) else render_text(record)


def _show_records_in_ipython() -> None:
    """Show records as pages wherever this package is imported in a notebook, magics or not."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if shell is not None:
        from .frontends import display

        display.register(shell)


_show_records_in_ipython()
