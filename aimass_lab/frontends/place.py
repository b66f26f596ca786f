"""The one output under a running cell: how far the work is, what is known of its subject already, and at the end the result, all in the same place."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from .pace import Pace

if TYPE_CHECKING:
    from ..records import Record
    from .kernel import KernelLink
    from .page import Page

_waiting: dict[int, Place] = {}
"""By the id of a result that a cell has ended in and that is not shown yet: the place that is its own."""


class Place:
    """An output that begins with the first word of progress; work that tells none has no place, and its result is shown like any other value.

    Args:
        shell: The kernel's IPython shell.
        link: Told of the progress, too; None where no panel can listen.
    """

    def __init__(self, shell: Any, link: KernelLink | None) -> None:
        self._shell, self._link = shell, link
        self._handle: Any = None
        self._pace = Pace()
        self._line = ""
        self._page: Page | None = None
        self._result: Record | None = None

    def __enter__(self) -> Place:
        return self

    def progress(self, share: float, text: str) -> None:
        """How far the work is."""
        if self._link is not None:
            self._link.progress(share, text)
        if self._pace.due(text):
            self._line = f"{100 * share:3.0f} %  {text}"
            self._draw()

    def seen(self, record: Record) -> None:
        """What is known before the result is, shown with the progress above it."""
        from .layouts import lay_out

        self._page = lay_out(record)
        self._draw()

    def ends_in(self, result: Any) -> None:
        """What becomes of this place when the cell shows `result`; where the cell does not, it is cleared at the cell's end."""
        from ..records import Record

        if self._handle is not None and isinstance(result, Record):
            self._result = result
            _waiting[id(result)] = self
            self._shell.events.register("post_execute", self._clear)

    def __exit__(self, *exc: object) -> None:
        if self._result is None:
            self._put({"text/plain": ""})

    def _draw(self) -> None:
        from .render import page_html, page_text

        if self._page is None:
            self._put({"text/plain": self._line})
        else:
            page = dataclasses.replace(self._page, headline=self._line.strip() or self._page.headline)
            self._put({"text/html": page_html(page), "text/plain": page_text(page)})

    def _put(self, bundle: dict[str, str]) -> None:
        from IPython.display import display

        if self._handle is not None:
            self._handle.update(bundle, raw=True)
        elif any(bundle.values()):
            self._handle = display(bundle, raw=True, display_id=True)

    def take(self, record: Record) -> None:
        """Show the result here."""
        from .render import render_html, render_text

        self._put({"text/html": render_html(record), "text/plain": render_text(record)})
        self._leave(record)

    def _clear(self) -> None:
        """The cell has ended; a result that it kept for itself leaves nothing behind."""
        if self._result is not None:
            self._put({"text/plain": ""})
            self._leave(self._result)

    def _leave(self, record: Record) -> None:
        _waiting.pop(id(record), None)
        self._result = None
        self._shell.events.unregister("post_execute", self._clear)


def show_in_place(record: Record) -> bool:
    """Show a result in the place that waits for it; False where none does."""
    place = _waiting.get(id(record))
    if place is not None:
        place.take(record)
    return place is not None
