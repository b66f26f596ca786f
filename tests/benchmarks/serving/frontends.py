"""How many front ends pay: servers of one bundle, alike but for that, are measured in turn as `run.py` measures servers.

``python tests/benchmarks/serving/frontends.py`` measures what is not measured yet and writes FRONTENDS.md; it goes on where it stopped.
``--minutes N`` stops after that time, ``--frontends N`` may be repeated, ``--cycles N`` are measured of each model, ``--again`` forgets what was measured.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import results
import run
import zoo
from contestants import OIP, Contestant
from processes import Running, check_tools
from report import TITLES, figures, plain, spread

RESULTS = "frontends"
TARGET = results.HERE / "FRONTENDS.md"
WHAT = {"rate": "requests/s", "cpu_ms": "CPU-ms a request", "p99_ms": "p99 ms"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "aimass-serving-benchmark", help="where models and bundles are written")
    parser.add_argument("--frontends", type=int, action="append", help="how many; may be repeated; 1 and 2 if not given")
    parser.add_argument("--cycles", type=int, default=6, help="of each model")
    parser.add_argument("--minutes", type=float, help="stop after so many")
    parser.add_argument("--model", action="append", choices=tuple(zoo.ZOO), help="may be repeated; mlp if not given")
    parser.add_argument("--again", action="store_true", help="forget what was measured before")
    parser.add_argument("--report", action="store_true", help="measure nothing")
    options = parser.parse_args()
    if not options.report:
        measure(options)
    TARGET.write_text(report(results.load(RESULTS)), encoding="utf-8")
    print(TARGET)


def measure(options: argparse.Namespace) -> None:
    """All cycles that are missing."""
    check_tools()
    if options.again:
        results.keep(RESULTS, {})
    results.add(RESULTS, "facts", found=results.facts())
    end = None if options.minutes is None else time.monotonic() + 60 * options.minutes
    for model in options.model or ["mlp"]:
        zoo.write(zoo.ZOO[model], options.work.resolve() / model)
        running: dict[str, Running] = {}
        try:
            for count in options.frontends or (1, 2):
                contestant = Contestant(name=str(count), environment=None, wires=OIP, arguments=("--frontends", str(count)))
                running[contestant.name] = Running(contestant, model, peers=Path(), folder=options.work.resolve() / model)
                running[contestant.name].stop()
            done = len(results.load(RESULTS).get("models", {}).get(model, {}).get("cycles", ()))
            for cycle in range(done, options.cycles):
                results.extend(RESULTS, "models", model, "cycles", found=[run.one_cycle(running, random.Random(f"{model} {cycle}"))])
                if end is not None and time.monotonic() > end:
                    break
            for name, server in running.items():
                server.go_on()
                results.extend(RESULTS, "models", model, "servers", name, "pss_bytes", found=[server.pss_bytes()])
        finally:
            for server in running.values():
                server.end()


def report(found: dict[str, Any]) -> str:
    """The tables: each number of front ends against one, cycle by cycle."""
    facts = found["facts"]
    lines = [
        "# Front ends",
        "",
        f"{facts['date']}, {facts['processor']}, {facts['cores']:g} cores. Command: `python tests/benchmarks/serving/frontends.py`.",
        "",
    ]
    lines += ["One bundle, one worker with one thread; all servers are up, those not measured are stopped; `wrk` loads one for a second at a time, on the"]
    lines += ["same cores. × is how many times one front end's figure it is: medians of the ratios within a cycle, their range in brackets.", ""]
    for model, entry in found["models"].items():
        lines += [f"## {TITLES[model]}", "", f"{len(entry['cycles'])} cycles. Memory after the load: {memory(entry)}.", ""]
        lines += [f"| front ends | wire | connections | {' | × | '.join(WHAT.values())} | × |", "| --- " * (3 + 2 * len(WHAT)) + "|"]
        points = sorted((point.split("/") for point in entry["cycles"][0]["1"]), key=lambda point: (point[0], int(point[1])))
        lines += [row(entry, name, wire, connections) for wire, connections in points for name in sorted(entry["servers"], key=int)] + [""]
    return "\n".join(lines)


def row(entry: dict[str, Any], name: str, wire: str, connections: str) -> str:
    """One server under one load."""
    cells = [name, wire, connections]
    for what in WHAT:
        values, ones = (figures(entry, server, f"{wire}/{connections}", what) for server in (name, "1"))
        cells += [plain(values), spread([value / one for value, one in zip(values, ones, strict=True)]) if name != "1" else ""]
    return f"| {' | '.join(cells)} |"


def memory(entry: dict[str, Any]) -> str:
    """PSS of each server's processes."""
    return ", ".join(f"{name}: {median(server['pss_bytes']) / 2**20:.0f} MiB" for name, server in entry["servers"].items())


if __name__ == "__main__":
    main()
