"""What stands in place of a panel where none can live: in a saved notebook, without a kernel, in a terminal."""

from __future__ import annotations

from ...headlines import headline
from ...records import Record
from ...study import Workbench
from .source import shown_kinds


def twin_html(bench: Workbench) -> str:
    """The newest results as pages: what is kept until a browser has drawn the panel and sent its picture."""
    from ..render import render_html

    return "".join(render_html(record) for record in _shown(bench).values()) or f"<pre>{twin_text(bench)}</pre>"


def twin_text(bench: Workbench) -> str:
    """One line a result."""
    known = _shown(bench)
    lines = [f"{kind}: {headline(record)}" for kind, record in known.items()] or ["nothing is known yet: study.profile() measures"]
    return "\n".join([f"Workbench of {bench.study.workload.name}", *lines])


def _shown(bench: Workbench) -> dict[str, Record]:
    return {kind: record for kind, record in bench.newest.items() if kind in shown_kinds()}
