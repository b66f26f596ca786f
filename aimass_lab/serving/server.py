"""The server's process from start to exit: listen, start the workers, say ready, serve, drain on SIGTERM."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import signal
import ssl
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
import uvloop

from .access import Door, read_tokens
from .config import ServingConfig, load_config
from .devices import CPU, parse_devices
from .errors import ServerError
from .frontend import FrontEnd, FrontEndOptions, tidy
from .frontends import FrontEnds
from .journal import Journal
from .listener import bind, bind_shared, reserve, share, take_handles
from .metrics import Metrics
from .repository import Found, Repository
from .request_log import RequestLog
from .service import LocalService
from .shadow import Shadows
from .tracing import make_tracing
from .version_policy import VersionPolicies

logger = logging.getLogger(__name__)

FORCED_EXIT = 1
NUM_THREADS = 2
"""For what takes longer than the loop should stand still; each keeps memory of its own."""


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """What the command line decides."""

    host: str = "127.0.0.1"
    port: int = 8000
    grpc_port: int | None = 8001
    """0: a free one; None: no gRPC."""
    workers: int | None = None
    """None: as the bundle says."""
    frontends: int | None = None
    """None: as the bundle says."""
    devices: str | None = None
    """``cuda:0,cuda:1``: a worker of each model on each; None: on the processor."""
    repository: Path | None = None
    """Folder of further bundles."""
    versions: VersionPolicies = field(default_factory=VersionPolicies)
    """Which ones of each model are served."""
    canary: float | None = None
    """Share of requests for the newest of several versions."""
    shadow: float | None = None
    """Share of requests of which the newest of several versions gets a copy."""
    poll_s: float | None = None
    """Between two looks at the repository; None: only when asked to."""
    token_file: Path | None = None
    rate_limit: float | None = None
    """Requests per second of each token that has no rate of its own, or of everybody where no token is asked for."""
    tls_cert: Path | None = None
    tls_key: Path | None = None
    log_requests: str | None = None
    """A file; ``-``: standard error."""
    journal: str | None = None
    """Likewise, for batches and what became of workers."""
    amqp: str | None = None
    """Address of a RabbitMQ broker; None: requests come over HTTP and gRPC only."""
    queue: str | None = None
    """None: the model's name."""
    prefetch: int | None = None
    """None: two batches for every worker."""
    drain_grace_s: float | None = None
    """None: as the bundle says."""
    until_stdin_closes: bool = False
    """Stop also when standard input ends, so that a server started by a program never outlives it."""


def serve(folder: Path, options: ServeOptions) -> None:
    """Serve a bundle, whose files are as its manifest says, until SIGTERM, SIGINT, or SIGHUP where that is not ignored.

    Raises:
        BundleError: the bundle cannot be used.
        ServerError: the server cannot start, or gave up on its workers.
    """
    config = load_config(folder)
    if options.drain_grace_s is not None:
        config = replace(config, drain_grace_s=options.drain_grace_s)
    if options.repository is not None and not options.repository.is_dir():
        raise ServerError(f"the repository {options.repository} is no folder")
    if options.canary is not None and not options.versions.serve_several:
        raise ServerError("a canary share needs several versions: give --versions 2")
    if options.shadow is not None and not options.versions.serve_several:
        raise ServerError("a shadow needs several versions: give --versions 2")
    if options.shadow is not None and options.canary is not None:
        raise ServerError("the newest version is either a canary, which answers, or a shadow, which does not: give --canary or --shadow")
    if options.poll_s is not None and options.repository is None:
        raise ServerError("there is no folder to look at: give --repository FOLDER with --poll")
    if options.amqp is None and (options.queue is not None or options.prefetch is not None):
        raise ServerError("there is no broker to take requests from: give --amqp URL with --queue and --prefetch, or set AIMASS_AMQP")
    if options.devices is not None and options.workers is not None:
        raise ServerError("there is a worker for each device: give --workers or --devices")
    tokens = read_tokens(options.token_file, os.environ.get("AIMASS_TOKEN"))
    tls = check_tls(options.tls_cert, options.tls_key)
    if not is_loopback(options.host):
        if not tokens:
            raise ServerError(f"{options.host} can be reached from other machines: give --token-file FILE or set AIMASS_TOKEN")
        if tls is None:
            logger.warning("%s can be reached from other machines, and tokens travel to it in the clear: give --tls-cert and --tls-key", options.host)
    door, logs = Door(tokens, requests_per_s=options.rate_limit), (RequestLog(options.log_requests), Journal(options.journal))
    uvloop.run(_serve(folder, config, options, door, logs, tls))


def check_tls(cert: Path | None, key: Path | None) -> tuple[Path, Path] | None:
    """The certificate and its key, once they are known to be usable; None where neither is given.

    Raises:
        ServerError: one is missing, cannot be read, or they do not belong together.
    """
    if cert is None and key is None:
        return None
    if cert is None or key is None:
        raise ServerError("--tls-cert and --tls-key belong together")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key)
    except OSError as error:  # of which ssl.SSLError is one
        raise ServerError(f"cannot use the certificate {cert} with the key {key}: {error.strerror or error}") from None
    return cert, key


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server bound to `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


async def _serve(
    folder: Path, config: ServingConfig, options: ServeOptions, door: Door, logs: tuple[RequestLog, Journal], tls: tuple[Path, Path] | None
) -> None:
    loop = asyncio.get_running_loop()
    stop, asked = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        if asked.is_set():
            os._exit(FORCED_EXIT)  # asked twice; the workers die with their parent
        asked.set()
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # which is what nohup is for
        loop.add_signal_handler(signal.SIGHUP, stop.set)  # a terminal and its shell both send it, systemd besides SIGTERM: nobody is impatient
    if options.until_stdin_closes:
        _watch_stdin(loop, stop)
    take_handles()
    loop.set_default_executor(ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="aside"))
    service = LocalService(Metrics(), door, *logs, canary=options.canary)
    service.tracing = make_tracing(config.name, os.environ)
    if options.shadow is not None:
        service.shadows = Shadows(service, options.shadow)
    devices = parse_devices(options.devices) if options.devices is not None else (CPU,)
    workers = options.workers if options.devices is None else len(devices)
    repository = Repository(service, Found(folder, config), options.repository, versions=options.versions, workers=workers, devices=devices)
    front, url = _make_front(service, repository, config, options, tls)
    consumer = None
    try:
        starting = asyncio.gather(front.start(), repository.start())
        await _first(stop, starting)
        if not stop.is_set():
            service.started = True
            service.changed()
            if options.amqp is not None:
                from .amqp import QueueConsumer, queue_options  # here, because not everybody has a queue

                consumer = QueueConsumer(service, config, queue_options(options.amqp, options.queue, options.prefetch, config, workers=workers))
                await consumer.start()
            service.metrics.startup_s.set(time.time() - psutil.Process().create_time())
            if isinstance(front, FrontEnds):
                await front.settled()
            _say(f"ready {url}" + (f" grpc {_shown(options.host)}:{front.grpc_port}" if front.grpc_port is not None else ""))
            aside = [loop.create_task(tidy(service))]
            if options.poll_s is not None:
                aside.append(loop.create_task(_look(repository, options.poll_s)))
            await _first(stop, repository.failed, front.failed)
            for task in aside:
                task.cancel()
            queue = [consumer.stop(config.request_timeout_s)] if consumer else []
            await asyncio.gather(_drain(service, config, front), *queue)
    finally:
        await front.stop()
        if service.shadows is not None:
            service.shadows.close()
        await repository.stop()
        if service.tracing is not None:
            await service.tracing.close()
        for log in logs:
            log.close()


def _make_front(
    service: LocalService, repository: Repository, config: ServingConfig, options: ServeOptions, tls: tuple[Path, Path] | None
) -> tuple[FrontEnd | FrontEnds, str]:
    """What takes connections, and its address.

    Raises:
        ServerError: a port is taken, or the address is not ours.
    """
    count, port, reserved = options.frontends or config.frontends, options.grpc_port, None
    try:
        listeners = [bind(options.host, options.port)] if count == 1 else bind_shared(options.host, options.port, count)
    except OSError as error:
        raise ServerError(f"cannot listen on {options.host} port {options.port}: {error.strerror or error}") from None
    if port is not None:
        try:
            reserved = reserve(options.host, port)  # also where gRPC takes it by itself, which says at length why it cannot
        except OSError as error:
            for listener in listeners:
                listener.close()
            raise ServerError(f"cannot listen for gRPC on {options.host} port {port}: {error.strerror or error}") from None
        if count == 1:
            reserved.close()
        else:
            share(reserved)
            port = reserved.getsockname()[1]
    how = FrontEndOptions(
        grpc_address=None if port is None else f"{_shown(options.host)}:{port}",
        shared=count > 1,
        max_body_bytes=config.max_body_bytes,
        header_timeout_s=config.header_timeout_s,
        body_timeout_s=config.body_timeout_s,
        drain_timeout_s=config.request_timeout_s,
        tls=tls,
    )
    url = f"{'http' if tls is None else 'https'}://{_shown(options.host)}:{listeners[0].getsockname()[1]}"
    if count == 1:
        return FrontEnd(service, repository, listeners[0], how), url
    return FrontEnds(service, repository, listeners, reserved, config, how, canary=options.canary), url


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _say(line: str) -> None:
    """Tell whoever started the server.

    Raises:
        ServerError: standard output takes nothing.
    """
    try:
        print(line, flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the interpreter tries again as it ends, and says so at length
        raise ServerError(f"cannot write to standard output: {error.strerror or error}") from None


async def _look(repository: Repository, poll_s: float) -> None:
    """Look at the repository now and then."""
    while True:
        await asyncio.sleep(poll_s)
        try:
            await repository.refresh()
        except Exception:  # such as a folder that vanished meanwhile: the next look will see
            logger.exception("the repository could not be read")


def _watch_stdin(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    """Stop when standard input ends.

    Raises:
        ServerError: there is none, or it is a file or nothing, which nobody holds open.
    """
    try:
        if sys.stdin is not None:
            return loop.add_reader(sys.stdin.fileno(), _on_stdin, loop, stop)
    except PermissionError:  # what the system cannot wait for
        pass
    raise ServerError("--until-stdin-closes needs a standard input that somebody holds open, such as a pipe or a terminal; this process has none")


def _on_stdin(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    if not os.read(sys.stdin.fileno(), 4096):
        loop.remove_reader(sys.stdin.fileno())
        stop.set()


async def _first(stop: asyncio.Event, *works: asyncio.Future[Any]) -> None:
    """Wait for one of the works to end or for the signal to stop; the others are cancelled and have ended then, and the work's error is raised."""

    async def until_stop() -> None:
        await stop.wait()

    stopped = asyncio.ensure_future(until_stop())
    await asyncio.wait([*works, stopped], return_when=asyncio.FIRST_COMPLETED)
    late = [work for work in (stopped, *works) if not work.done()]
    for work in late:
        work.cancel()
    ended = [work for work in works if work not in late]
    await asyncio.gather(*late, return_exceptions=True)  # a start that is broken off has workers to end
    for work in ended:
        work.result()


async def _drain(service: LocalService, config: ServingConfig, front: FrontEnd | FrontEnds) -> None:
    """Send clients elsewhere, stop accepting after a grace time, finish what was accepted."""
    service.draining = True
    service.changed()
    await asyncio.sleep(config.drain_grace_s)
    await front.drain()
