"""The bundle's command line: serve, load, verify."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from .errors import BundleError, ServerError
from .version_policy import HELP as POLICIES
from .version_policy import VersionPolicies, parse_policies

BROKEN, BAD_BUNDLE, NO_SERVER, NOT_JUDGED = 1, 3, 4, 5
MOST_REQUESTS = 10_000_000
"""Of one load: what is noted of each takes some ten bytes, and far beyond them the memory."""


def main(bundle_dir: str | Path, argv: Sequence[str] | None = None) -> int:
    """Run one command on a bundle.

    Args:
        bundle_dir: The bundle's folder.
        argv: The arguments; None: those of the process.

    Returns:
        The exit code: 0; 1, a promise is broken; 2, wrong arguments; 3, the bundle cannot be used; 4, the server cannot run; 5, the
        machine was too busy with other work to judge it.
    """
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    arguments = make_parser().parse_args(argv)
    try:
        return int(arguments.run(Path(bundle_dir).resolve(), arguments))
    except BundleError as error:
        return _fail(BAD_BUNDLE, error)
    except ServerError as error:
        return _fail(NO_SERVER, error)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == str(__package__).partition(".")[0]:
            raise
        return _fail(NO_SERVER, ServerError(f"{error.name} is not installed for {sys.executable}: pip install -r requirements.txt"))
    except KeyboardInterrupt:
        return 130


def _fail(code: int, error: Exception) -> int:
    print("error:", " ".join(str(error).split()), file=sys.stderr)
    return code


def make_parser() -> argparse.ArgumentParser:
    """The parser; each command's namespace holds the function that runs it."""
    parser = argparse.ArgumentParser(prog="run.py", description="Serve this bundle, or prove what it promises.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="answer requests until SIGTERM")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on; any but loopback needs a token")
    serve.add_argument("--port", type=_port, default=8000, help="for HTTP; 0: a free one")
    serve.add_argument("--grpc-port", type=_optional_port, default=8001, help="0: a free one; none: no gRPC")
    serve.add_argument("--workers", type=_positive, help="model processes; default: as the bundle says")
    serve.add_argument("--frontends", type=_positive, help="processes that take connections and read requests, for one queue; default: as the bundle says")
    serve.add_argument("--devices", metavar="NAMES", help="such as cuda:0,cuda:1: a worker on each, which sees no other; default: the processor")
    serve.add_argument("--repository", type=Path, metavar="FOLDER", help="serve the bundles in its subfolders, too")
    serve.add_argument("--versions", action="append", default=[], metavar="POLICY", help=f"which versions of each model are served: {POLICIES}")
    serve.add_argument("--canary", type=_share, help="share of requests that the newest of several versions gets, where they name none")
    serve.add_argument("--shadow", type=_share, help="share of requests of which the newest of several versions gets a copy; its answers are only compared")
    serve.add_argument("--poll", type=_positive_number, metavar="SECONDS", help="look at the repository so often; else only when asked to")
    serve.add_argument("--token-file", type=Path, help="tokens that callers must show, each on a line: TOKEN [NAME [REQUESTS_PER_S]] (or set AIMASS_TOKEN)")
    serve.add_argument("--rate-limit", type=_positive_number, help="requests per second of each token that has no rate of its own; more get 429")
    serve.add_argument("--tls-cert", type=Path, help="certificate, with those that vouch for it, in PEM; needs --tls-key")
    serve.add_argument("--tls-key", type=Path, help="its key")
    serve.add_argument("--log-requests", metavar="FILE", help="write one JSON line a request there, rotated at 16 MiB; - is standard error")
    serve.add_argument("--journal", metavar="FILE", help="write one JSON line a batch there, and what became of workers; rotated, or -, likewise")
    serve.add_argument(
        "--amqp", metavar="URL", help="take requests from a RabbitMQ broker, too (or set AIMASS_AMQP, which keeps the password off the list of processes)"
    )
    serve.add_argument("--queue", metavar="NAME", help="the queue there; default: the model's name")
    serve.add_argument("--prefetch", type=_positive, help="messages taken and not answered yet; default: two batches for every worker")
    serve.add_argument(
        "--drain-grace", type=_seconds, metavar="SECONDS", help="so long after SIGTERM new requests are accepted, until all know; default: as the bundle says"
    )
    serve.add_argument("--until-stdin-closes", action="store_true", help="stop also when standard input ends")
    serve.set_defaults(run=_serve)
    load = commands.add_parser("load", help="send the stored inputs to a server at a rate, and print what came back")
    load.add_argument("--url", required=True, help="http://HOST:PORT, or https://")
    load.add_argument("--token", help="to show to the server (or set AIMASS_TOKEN, which keeps it off the list of processes)")
    load.add_argument("--cafile", type=Path, help="certificate that vouches for the server's, in PEM; default: those that the system trusts")
    how = load.add_mutually_exclusive_group(required=True)
    how.add_argument("--rate", type=_positive_number, help="requests per second, on average")
    how.add_argument("--trace", type=Path, help="file with the times of a recorded load, in seconds, one a line")
    load.add_argument("--pattern", choices=("poisson", "bursty", "steady"), default="poisson", help="how requests at a rate are spread")
    load.add_argument("--duration", type=_positive_number, default=10.0, help="seconds, at a rate")
    load.add_argument("--speed", type=_positive_number, default=1.0, help="of a trace; 2: in half the time")
    load.add_argument("--items", type=_positive, default=1, help="items per request")
    load.add_argument("--seed", type=_natural, default=0, help="of the times; the same seed, the same load")
    load.set_defaults(run=_load)
    verify = commands.add_parser("verify", help="start the server, measure every promise, print PASS or FAIL, or that the machine was too busy to tell")
    printed = verify.add_mutually_exclusive_group()
    printed.add_argument("--json", action="store_true", help="print the record and nothing else")
    printed.add_argument("--follow", action="store_true", help="print a line of JSON whenever more is known: a step, or the record so far")
    verify.add_argument("--duration", type=_positive_number, help="seconds of load; default: as promised")
    verify.set_defaults(run=_verify)
    return parser


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port from 0 to 65535")
    return int(text)


def _optional_port(text: str) -> int | None:
    return None if text == "none" else _port(text)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def _natural(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 on")
    return int(text)


def _positive_number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return value


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
    return value


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share from 0 to 1")
    return value


def _policies(texts: list[str]) -> VersionPolicies:
    try:
        return parse_policies(texts)
    except ValueError as error:
        raise ServerError(f"--versions: {error}") from None


def _open_standard_streams() -> None:
    """Open to nothing what is closed of them: else a socket gets such a number, and the event loop's library aborts the process where it closes it."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest that is free


def _serve(folder: Path, arguments: argparse.Namespace) -> int:
    from .config import check_manifest

    _open_standard_streams()
    with ThreadPoolExecutor(1) as aside:
        whole = aside.submit(check_manifest, folder)  # of a large model this takes as long as what is imported meanwhile
        from .server import ServeOptions, serve

        whole.result()
    options = ServeOptions(
        host=arguments.host,
        port=arguments.port,
        grpc_port=arguments.grpc_port,
        workers=arguments.workers,
        frontends=arguments.frontends,
        devices=arguments.devices,
        repository=arguments.repository,
        versions=_policies(arguments.versions),
        canary=arguments.canary,
        shadow=arguments.shadow,
        poll_s=arguments.poll,
        token_file=arguments.token_file,
        rate_limit=arguments.rate_limit,
        tls_cert=arguments.tls_cert,
        tls_key=arguments.tls_key,
        log_requests=arguments.log_requests,
        journal=arguments.journal,
        amqp=arguments.amqp or os.environ.get("AIMASS_AMQP") or None,
        queue=arguments.queue,
        prefetch=arguments.prefetch,
        drain_grace_s=arguments.drain_grace,
        until_stdin_closes=arguments.until_stdin_closes,
    )
    serve(folder, options)
    return 0


def _load(folder: Path, arguments: argparse.Namespace) -> int:
    from .arrivals import arrival_times, read_trace
    from .config import load_config
    from .load import make_bodies, run_load

    config = load_config(folder)
    if arguments.items > config.max_batch_size:
        raise ServerError(f"--items {arguments.items} is more than a request to this bundle may hold: {config.max_batch_size}")
    if arguments.rate is not None and not 0.5 < arguments.rate * arguments.duration <= MOST_REQUESTS:
        due, most = arguments.rate * arguments.duration, f"{MOST_REQUESTS:,}"
        raise ServerError(f"--rate {arguments.rate:g} over --duration {arguments.duration:g} s are {due:g} requests: give values that make 1 to {most}")
    bodies = make_bodies(folder, config, items=arguments.items, token=arguments.token or os.environ.get("AIMASS_TOKEN"))
    if arguments.trace is not None:
        times = read_trace(arguments.trace, speed=arguments.speed)
        duration_s = float(times[-1]) or 1.0
    else:
        times = arrival_times(arguments.pattern, rate=arguments.rate, duration_s=arguments.duration, seed=arguments.seed)
        duration_s = len(times) / arguments.rate
    result = run_load(arguments.url, config, bodies, times, duration_s=duration_s, cafile=arguments.cafile)
    _print(json.dumps(result.summary(), indent=1))
    if result.lateness:
        print(f"{result.lateness}: this machine was too busy to send in time, and what is measured is not the server's alone", file=sys.stderr)
    return 0 if result.num_failed == 0 else 1


def _verify(folder: Path, arguments: argparse.Namespace) -> int:
    from .verify import report, verify

    if arguments.follow:
        check = verify(folder, duration_s=arguments.duration, progress=lambda text: _line({"step": text}), seen=_line)
    else:
        check = verify(folder, duration_s=arguments.duration, progress=None if arguments.json else _progress)
    _print(json.dumps(check) if arguments.json or arguments.follow else report(check))
    return {True: 0, False: BROKEN, None: NOT_JUDGED}[check["passed"]]


def _line(value: dict[str, Any]) -> None:
    _print(json.dumps(value))


def _print(text: str) -> None:
    """Print while somebody reads: a reader such as head that went away has seen enough, and the exit code is told all the same."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
