"""The comparison of serving speed: all servers of one model up, measured in random order within each cycle.

``python tests/benchmarks/serving/run.py --peers FOLDER`` measures what is not measured yet and writes RESULTS.md; it may be interrupted and started
again. ``--minutes 20`` stops after that time, ``--cycles 6`` are measured of each model, ``--only NAME`` and ``--model NAME`` choose, ``--again``
forgets what was measured, ``--results NAME`` keeps it under another name, ``--report`` only writes. ``peers.py --install FOLDER`` makes the environments.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import results
import zoo
from contestants import CONTESTANTS, Contestant
from processes import Failed, Running, check_tools

CONNECTIONS = (1, 16, 64)
BURST_S = 1
WARM_UP_S = 0.3
IDLE_S = 4.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", type=Path, default=Path(os.environ.get("AIMASS_PEERS", "peers")), metavar="FOLDER", help="where their environments are")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "aimass-serving-benchmark", help="where models and bundles are written")
    parser.add_argument("--cycles", type=int, default=6, help="of each model")
    parser.add_argument("--minutes", type=float, help="stop after so many")
    parser.add_argument("--only", action="append", help="a server's name; may be repeated")
    parser.add_argument("--model", action="append", choices=tuple(zoo.ZOO), help="may be repeated")
    parser.add_argument("--again", action="store_true", help="forget what was measured before")
    parser.add_argument("--results", default="speed", help="name of the file below results/")
    parser.add_argument("--report", action="store_true", help="measure nothing")
    options = parser.parse_args()
    if not options.report:
        measure(options)
    import report

    print(report.write(options.results))


def measure(options: argparse.Namespace) -> None:
    """All cycles that are missing, the time shared evenly by the models that are left."""
    check_tools()
    if options.again:
        results.keep(options.results, {})
    end = None if options.minutes is None else time.monotonic() + 60 * options.minutes
    known = results.load(options.results).get("models", {})
    names = [name for name in options.model or zoo.ZOO if len(known.get(name, {}).get("cycles", ())) < options.cycles]
    for position, name in enumerate(names):
        zoo.write(zoo.ZOO[name], options.work.resolve() / name)
        share = None if end is None else time.monotonic() + max(0.0, end - time.monotonic()) / (len(names) - position)
        if end is None or time.monotonic() < end:
            one_model(name, options, share)


def one_model(name: str, options: argparse.Namespace, end: float | None) -> None:
    """Start the servers one after the other, measure cycles, then read what they take while idle."""
    results.add(options.results, "facts", found=results.facts())
    running: dict[str, Running] = {}
    try:
        for contestant in CONTESTANTS:
            if name in contestant.models and (not options.only or contestant.name in options.only):
                start(contestant, name, options, running)
        done = len(results.load(options.results).get("models", {}).get(name, {}).get("cycles", ()))
        for cycle in range(done, options.cycles):
            began = time.monotonic()
            found = one_cycle(running, random.Random(f"{name} {cycle}"))
            results.extend(options.results, "models", name, "cycles", found=[found])
            say(f"{name}: cycle {cycle + 1} of {options.cycles}, {time.monotonic() - began:.0f} s")
            if end is not None and time.monotonic() + (time.monotonic() - began) > end:
                break
        at_rest(name, running, options)
    finally:
        for server in running.values():
            server.end()


def start(contestant: Contestant, model: str, options: argparse.Namespace, running: dict[str, Running]) -> None:
    """Start one, check its answers, write down how long it took, or what went wrong."""
    place = ("models", model, "servers", contestant.name)
    why = contestant.missing(options.peers.resolve())
    if why is None:
        try:
            server = Running(contestant, model, peers=options.peers.resolve(), folder=options.work.resolve() / model)
        except Failed as failed:
            why = str(failed)
        else:
            results.extend(options.results, *place, "start_s", found=[server.start_s])
            running[contestant.name] = server
            server.stop()
    if why is not None:
        results.add(options.results, *place, "failed", found=why)
    say(f"{model}: {contestant.name}: {why or f'answers rightly after {server.start_s:.1f} s'}")


def one_cycle(running: dict[str, Running], generator: random.Random) -> dict[str, Any]:
    """Every point of every server once: server -> "wire/connections" -> figures."""
    found: dict[str, Any] = {}
    for name in generator.sample(list(running), len(running)):
        server = running[name]
        points = [(wire, connections) for wire in server.contestant.wires for connections in CONNECTIONS]
        server.go_on()
        warm_up(server)
        found[name] = {f"{wire}/{count}": server.load(wire, count, BURST_S) for wire, count in generator.sample(points, len(points))}
        server.stop()
    return found


def warm_up(server: Running) -> None:
    """A stopped server has lost its caches."""
    end = time.monotonic() + WARM_UP_S
    while time.monotonic() < end:
        server.ask_again()


def at_rest(model: str, running: dict[str, Running], options: argparse.Namespace) -> None:
    """Processor time of all of them while nobody asks, and their memory after the load."""
    for server in running.values():
        server.go_on()
    time.sleep(2.0)
    before, began = {name: server.cpu_s() for name, server in running.items()}, time.monotonic()
    time.sleep(IDLE_S)
    after, elapsed = {name: server.cpu_s() for name, server in running.items()}, time.monotonic() - began
    for name, server in running.items():
        place = ("models", model, "servers", name)
        results.extend(options.results, *place, "idle_cores", found=[(after[name] - before[name]) / elapsed])
        results.extend(options.results, *place, "pss_bytes", found=[server.pss_bytes()])


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
