"""The environments of the other servers: ``python tests/benchmarks/serving/peers.py --install FOLDER`` makes those that are not there yet."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import results
from results import kept

WANTED = results.HERE / "peers.txt"
KEPT = ("torch", "onnxruntime")
"""In the same version everywhere, so that servers are compared and not runtimes."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--install", type=Path, metavar="FOLDER", required=True)
    folder = parser.parse_args().install.resolve()
    outcomes = {name: install_one(folder / name, wanted) for name, wanted in kept.environments(WANTED).items()}
    if any(outcome != "installed" for outcome in outcomes.values()):
        sys.exit("\n".join(f"{name}: {outcome}" for name, outcome in outcomes.items()))


def install_one(folder: Path, wanted: list[str]) -> str:
    """Install one environment, and say what came of it; nothing is done where the same was installed before."""
    stamp, text = folder / "installed.txt", "\n".join(wanted)
    if stamp.exists() and stamp.read_text() == text:
        return "installed"
    print(f"installing {folder.name} ...", file=sys.stderr, flush=True)
    try:
        pip = kept.new_environment(folder, KEPT)
    except subprocess.CalledProcessError as error:
        return f"does not install: {error}"
    done = subprocess.run([*pip, *wanted], capture_output=True, text=True)
    if done.returncode:
        return kept.pip_failure(done.stderr)
    stamp.write_text(text)
    return "installed"


def versions() -> list[str]:
    """What is compared, as pip was asked for it."""
    return [line for wanted in kept.environments(WANTED).values() for line in wanted if not line.startswith("orjson")]


if __name__ == "__main__":
    main()
