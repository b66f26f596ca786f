"""Put a server through its faults for as long as one likes, and write down what came out.

``python tests/benchmarks/serving/faults.py`` takes about an hour, half of it the soak; ``faults.py kills --count 50 --frontends 2`` runs one part.
Each part ends as an entry of ``results/faults.json`` beside this file, which ``faults_report.py`` makes FAULTS.md of.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parents[2]))

from serving import scenarios

RESULTS = Path(__file__).with_name("results") / "faults.json"
PARTS: dict[str, dict[str, Any]] = {
    "malformed": {"count": 10_000},
    "kills": {"count": 50},
    "reloads": {"count": 20},
    "drains": {"count": 10},
    "overload": {"duration_s": 30.0},
    "soak": {"duration_s": 1800.0},
}
"""With what the record asks for."""
PACKAGES = ("onnxruntime", "uvicorn", "uvloop", "httptools", "grpcio", "protobuf", "orjson", "numpy", "schemathesis")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all if none is named")
    parser.add_argument("--count", type=int, help="of requests, kills, reloads or drains")
    parser.add_argument("--duration", type=float, help="seconds of overload or soak")
    parser.add_argument("--frontends", type=int, default=1, help="of the server whose workers are killed")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no part called {sorted(unknown)[0]!r}; there are: {', '.join(PARTS)}")
    if options.frontends > 1 and options.parts != ["kills"]:
        parser.error("--frontends is for kills alone")
    failed = False
    for name in options.parts or PARTS:
        arguments = {key: {"count": options.count, "duration_s": options.duration}[key] or value for key, value in PARTS[name].items()}
        entry = name
        if options.frontends > 1:
            arguments, entry = arguments | {"frontends": options.frontends}, f"{name}, {options.frontends} front ends"
        result = run(name, arguments)
        print(entry, json.dumps(result["result"]), flush=True)
        kept = json.loads(options.results.read_text()) if options.results.exists() else {}
        options.results.write_text(json.dumps(kept | {entry: result}, indent=1) + "\n")
        failed |= not result["result"]["passed"]
    return 1 if failed else 0


def run(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """One part, with when, where and beside how much other work it ran."""
    psutil.cpu_percent()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        result = getattr(scenarios, name)(Path(folder), **arguments)
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "packages": {package: importlib.metadata.version(package) for package in PACKAGES},
        "cores": os.cpu_count(),
        "cores_used": len(os.sched_getaffinity(0)),
        "machine_busy_percent": psutil.cpu_percent(),
        "seconds": round(time.monotonic() - began, 1),
        "arguments": arguments,
        "result": result,
    }


if __name__ == "__main__":
    sys.exit(main())
