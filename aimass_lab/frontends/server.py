"""The Jupyter server's half of the side panel: readings, history and served bundles for a browser; loads no torch.

Every address lies under ``aimass-lab/`` of the server's base URL and asks for its token:

======================  ======  ==================================================================
``live``                socket  a `Live` record every interval; the client may send ``{"interval": 2}``
``runs``                GET     a `History`; ``?limit=`` and ``?model=``
``runs/7``              GET     the record of a run; ``/page`` after it: the same as HTML
``compare``             GET     a `Comparison`; ``?before=&after=``; ``/page`` likewise
``services/4711``       DELETE  stop the bundle that this process serves
``document/page``       GET     a file or bundle of the server's root folder as HTML; ``?path=``
======================  ======  ==================================================================
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import tornado
from jupyter_server.auth.decorator import authorized, ws_authenticated
from jupyter_server.base.handlers import APIHandler, JupyterHandler
from jupyter_server.base.websocket import WebSocketMixin
from jupyter_server.utils import url_path_join
from tornado.websocket import WebSocketHandler

from ..bundle.served import ServedBundles
from ..errors import AimassError, InputError, StoreError
from ..operations import compare, history, show
from ..records import Record, to_json
from .documents import read_document
from .live import LiveFeed
from .render import render_html

HTML = "text/html; charset=UTF-8"
RESOURCE = "aimass_lab"
"""What a hub's authorizer is asked about."""


def _load_jupyter_server_extension(app: Any) -> None:
    """Called by Jupyter's server when it starts."""
    services = ServedBundles()
    app.web_app.settings["aimass_lab"] = {"feed": LiveFeed(app, services), "services": services}
    base = url_path_join(app.web_app.settings["base_url"], "aimass-lab")
    handlers = [
        ("live", LiveHandler),
        ("runs", RunsHandler),
        (r"runs/(\d+)(/page)?", RunHandler),
        (r"compare(/page)?", CompareHandler),
        (r"services/(\d+)", ServiceHandler),
        (r"document/page", DocumentHandler),
    ]
    app.web_app.add_handlers(".*$", [(url_path_join(base, path), handler) for path, handler in handlers])


class _Handler(APIHandler):
    """Answers with records, and with our errors as ``{"message", "help"}``."""

    auth_resource = RESOURCE

    async def answer(self, work: Any, *arguments: Any, page: bool = False, **named: Any) -> None:
        """Do `work` in a thread, and send the record that it returns, as HTML if `page` is true."""
        try:
            record: Record = await asyncio.to_thread(work, *arguments, **named)
        except AimassError as error:
            self.refuse(404 if isinstance(error, StoreError) else 400, error)
        else:
            if page:
                self.finish(render_html(record), set_content_type=HTML)
            else:
                self.finish(to_json(record, indent=None))

    def refuse(self, status: int, error: AimassError) -> None:
        """Send what was wrong, and what to do."""
        self.set_status(status)
        self.finish(json.dumps({"message": error.message, "help": error.help}))

    def number(self, name: str, default: str | None = None) -> int:
        """A whole number of the query.

        Raises:
            tornado.web.HTTPError: it is absent, or something else.
        """
        text = self.get_query_argument(name, default)
        if text is None or not text.isdecimal():
            raise tornado.web.HTTPError(400, f"{name}={text!r} is not the number that it must be")
        return int(text)


class RunsHandler(_Handler):
    """The history."""

    @tornado.web.authenticated
    @authorized
    async def get(self) -> None:
        """List the runs, newest first."""
        await self.answer(history, model=self.get_query_argument("model", None), limit=self.number("limit", "50"))


class RunHandler(_Handler):
    """One run."""

    @tornado.web.authenticated
    @authorized
    async def get(self, number: str, page: str | None) -> None:
        """Show it again."""
        await self.answer(show, int(number), page=page is not None)


class CompareHandler(_Handler):
    """Two runs."""

    @tornado.web.authenticated
    @authorized
    async def get(self, page: str | None) -> None:
        """Set them side by side."""
        await self.answer(compare, self.number("before"), self.number("after"), page=page is not None)


class ServiceHandler(_Handler):
    """One served bundle."""

    @tornado.web.authenticated
    @authorized
    async def delete(self, pid: str) -> None:
        """Let it finish what it accepted, and end."""
        try:
            await asyncio.to_thread(self.settings["aimass_lab"]["services"].stop, int(pid))
        except AimassError as error:
            self.refuse(404, error)
        else:
            self.set_status(204)
            self.finish()


class DocumentHandler(_Handler):
    """A file or bundle below the server's root folder."""

    @tornado.web.authenticated
    @authorized
    async def get(self) -> None:
        """Show it."""
        try:
            record = await read_document(self.contents_manager, self.get_query_argument("path"))
        except AimassError as error:
            self.refuse(400, error)
        else:
            self.finish(await asyncio.to_thread(render_html, record), set_content_type=HTML)


class LiveHandler(WebSocketMixin, WebSocketHandler, JupyterHandler):
    """One text frame an interval, to whoever may see them."""

    auth_resource = RESOURCE

    @ws_authenticated
    @authorized
    async def get(self, *args: Any, **kwargs: Any) -> Any:
        """Open the socket, once it is known who asks."""
        return await super().get(*args, **kwargs)

    def set_default_headers(self) -> None:
        """None: this is no page."""

    def open(self, *args: Any, **kwargs: Any) -> None:
        """Begin to send."""
        super().open(*args, **kwargs)
        self.settings["aimass_lab"]["feed"].join(self)

    def on_message(self, message: str | bytes) -> None:
        """The listener wants another pace."""
        try:
            interval_s = float(json.loads(message)["interval"])
        except (ValueError, KeyError, TypeError):
            error = InputError(f"{message!r} is not understood", help='send {"interval": SECONDS}')
            self.close(1003, error.message[:100])
        else:
            self.settings["aimass_lab"]["feed"].pace(self, interval_s)

    def on_close(self) -> None:
        """The listener has gone."""
        self.settings["aimass_lab"]["feed"].leave(self)
        super().on_close()
