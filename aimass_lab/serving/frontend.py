"""What listens: HTTP and gRPC of one process, whether the models are in it or not."""

from __future__ import annotations

import asyncio
import gc
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .app import App
from .heap import IDLE_S, give_back, look_for_circles_seldom
from .listener import make_http_server
from .service import Catalogue, Service


@dataclass(frozen=True, kw_only=True)
class FrontEndOptions:
    """How to listen."""

    grpc_address: str | None
    """``HOST:PORT``; None: no gRPC."""
    shared: bool = False
    """Whether other processes listen on the same ports."""
    max_body_bytes: int
    header_timeout_s: float
    body_timeout_s: float
    drain_timeout_s: float
    tls: tuple[Path, Path] | None = None
    """Certificate and key."""


class FrontEnd:
    """HTTP and gRPC in this process.

    Args:
        service: Answers.
        catalogue: Tells and changes what is served.
        listener: For HTTP.
        options: How to listen.
    """

    def __init__(self, service: Service, catalogue: Catalogue, listener: socket.socket, options: FrontEndOptions) -> None:
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Never done: what ends this, ends the process."""
        self.grpc_port: int | None = None
        self._service, self._catalogue, self._listener, self._options = service, catalogue, listener, options
        self._http = make_http_server(
            App(service, catalogue, options.max_body_bytes),
            header_timeout_s=options.header_timeout_s,
            body_timeout_s=options.body_timeout_s,
            drain_timeout_s=options.drain_timeout_s,
            tls=options.tls,
            forwarded=bool(service.log),  # which is where callers' addresses go
        )
        self._serving: asyncio.Task[None] | None = None
        self._grpc: Any = None

    async def start(self) -> None:
        """Listen from now on.

        Raises:
            ServerError: gRPC's port is taken, or the address is not ours.
        """
        options = self._options
        look_for_circles_seldom()
        if options.grpc_address is not None:
            from .grpc_app import start_grpc  # here, because gRPC costs time and memory that not everybody wants to spend

            self._grpc, self.grpc_port = await start_grpc(
                self._service, self._catalogue, options.grpc_address, options.max_body_bytes, options.tls, shared=options.shared,
                greeting_timeout_s=options.header_timeout_s, grace_s=options.drain_timeout_s,
            )  # fmt: skip
        self._serving = asyncio.get_running_loop().create_task(self._http.serve(sockets=[self._listener]))

    async def drain(self) -> None:
        """Accept no more, and finish what was accepted."""
        self._http.should_exit = True
        ending = [] if self._serving is None else [self._serving]
        await asyncio.gather(*ending, *([self._grpc.stop(self._options.drain_timeout_s)] if self._grpc is not None else []))

    async def stop(self) -> None:
        """End at once."""
        self._http.should_exit = self._http.force_exit = True
        if self._grpc is not None:
            await self._grpc.stop(0)
        if self._serving is not None:
            await asyncio.gather(self._serving, return_exceptions=True)


async def tidy(service: Service) -> None:
    """Give memory back whenever nobody has asked for a while and somebody had before; probes do not count."""
    seen, tidied = -1, -1
    while True:
        await asyncio.sleep(IDLE_S)
        asked = sum(model.num_asked for model in service.models.values())
        if asked == seen != tidied:
            gc.collect()  # closed connections are circles, which else wait until there are as many as the server has objects
            give_back()
            tidied = asked
        seen = asked
