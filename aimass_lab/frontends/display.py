"""Lets IPython show our records as pages and a workbench as a panel, without loading anything before the first is shown."""

from __future__ import annotations

from typing import Any


def register(shell: Any) -> None:
    """Teach `shell` to show records as HTML and as text."""
    formatters = shell.display_formatter.formatters
    # By the base class's name, which loads no record: IPython looks through the base classes of what it shows.
    formatters["text/html"].for_type_by_name("aimass_lab.records.number", "Record", _html)
    formatters["text/plain"].for_type_by_name("aimass_lab.records.number", "Record", _text)
    shell.display_formatter.ipython_display_formatter.for_type_by_name("aimass_lab.study.showing", "Workbench", _open)
    shell.display_formatter.ipython_display_formatter.for_type_by_name("aimass_lab.records.number", "Record", _in_place)


def _html(record: Any) -> str:
    from .render import render_html

    return render_html(record)


def _text(record: Any, printer: Any, cycle: bool) -> None:
    from .render import render_text

    printer.text(render_text(record))


def _in_place(record: Any) -> None:
    from .place import show_in_place

    if not show_in_place(record):
        raise NotImplementedError  # IPython's word for: show it in the usual ways


def _open(workbench: Any) -> None:
    from .widgets import open_panel

    open_panel(workbench)
