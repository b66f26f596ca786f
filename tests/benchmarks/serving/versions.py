"""What a change of the server gives: one bundle with today's server and with that of an earlier commit, measured in turn as `run.py` measures servers.

``python tests/benchmarks/serving/versions.py --against REVISION`` measures anew, keeps results/versions.json, and prints the ratios, cycle by cycle.
"""

from __future__ import annotations

import argparse
import io
import random
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import results
import run
import zoo
from contestants import OIP, Contestant
from processes import Running, check_tools
from report import figures, spread

from aimass_lab.bundle.folder import write_manifest

RESULTS = "versions"
SERVER = "aimass_lab/serving"
TODAY, EARLIER = "today", "earlier"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--against", required=True, metavar="REVISION", help="of this repository")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "aimass-serving-benchmark", help="where models and bundles are written")
    parser.add_argument("--model", choices=tuple(zoo.ZOO), default="mlp")
    parser.add_argument("--cycles", type=int, default=6)
    options = parser.parse_args()
    check_tools()
    work = options.work.resolve()
    folders = {TODAY: work / TODAY / options.model, EARLIER: work / EARLIER / options.model}
    for folder in folders.values():
        shutil.rmtree(folder, ignore_errors=True)
    zoo.write(zoo.ZOO[options.model], folders[TODAY])
    shutil.copytree(folders[TODAY], folders[EARLIER])
    take_server(folders[EARLIER] / "bundle", options.against)
    results.keep(RESULTS, {"facts": results.facts(), "against": options.against, "model": options.model})
    running: dict[str, Running] = {}
    try:
        for name, folder in folders.items():
            running[name] = Running(Contestant(name=name, environment=None, wires=OIP), options.model, peers=Path(), folder=folder)
            running[name].stop()
        for cycle in range(options.cycles):
            results.extend(RESULTS, "cycles", found=[run.one_cycle(running, random.Random(f"{options.model} {cycle}"))])
    finally:
        for server in running.values():
            server.end()
    print(report(results.load(RESULTS)))


def take_server(bundle: Path, revision: str) -> None:
    """Put the server as it was at a revision in the place of the bundle's."""
    top = Path(__file__).parents[3]
    files = subprocess.run(["git", "archive", revision, SERVER], cwd=top, capture_output=True, check=True)
    with tempfile.TemporaryDirectory() as scratch:
        with tarfile.open(fileobj=io.BytesIO(files.stdout)) as archive:
            archive.extractall(scratch, filter="data")
        shutil.rmtree(bundle / "aimass_serve")
        shutil.copytree(Path(scratch) / SERVER, bundle / "aimass_serve", ignore=shutil.ignore_patterns("client.py"))
    write_manifest(bundle)


def report(found: dict[str, Any]) -> str:
    """Today's figure over the earlier one's: medians of the ratios within a cycle, and their range."""
    lines = [f"{found['model']}, today's server over that of {found['against']}, {len(found['cycles'])} cycles:"]
    for point in found["cycles"][0][TODAY]:
        for what in ("cpu_ms", "rate"):
            pairs = zip(*(figures(found, name, point, what) for name in (TODAY, EARLIER)), strict=True)
            lines.append(f"  {point} {what}: {spread([today / earlier for today, earlier in pairs])}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
