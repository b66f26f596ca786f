"""Lets IPython show our records as pages, without loading anything before the first is shown."""

from __future__ import annotations

from typing import Any

RECORD_NAMES = (
    "Bundle", "CellProfile", "Check", "Comparison", "Demand", "Environment", "History", "Plan", "Profile", "SearchResult", "Service",
    "ServingSpec", "TrialResult",
)  # fmt: skip
"""Spelled out because looking them up would load the records; a test compares."""


def register(shell: Any) -> None:
    """Teach `shell` to show records as HTML and as text."""
    formatters = shell.display_formatter.formatters
    for name in RECORD_NAMES:
        formatters["text/html"].for_type_by_name("aimass_lab.records", name, _html)
        formatters["text/plain"].for_type_by_name("aimass_lab.records", name, _text)


def _html(record: Any) -> str:
    from .render import render_html

    return render_html(record)


def _text(record: Any, printer: Any, cycle: bool) -> None:
    from .render import render_text

    printer.text(render_text(record))
