"""Make FAULTS.md of what `faults.py` and `kserve_client.py` wrote down."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def main() -> None:
    results = json.loads((HERE / "results" / "faults.json").read_text())
    lines = (HERE / "results" / "faults_notes.md").read_text().splitlines()
    lines += ["", "| what | arguments | when | passed | what came out |", "| --- | --- | --- | --- | --- |"]
    for name, run in results.items():
        arguments = ", ".join(f"{key} {value:g}" for key, value in run["arguments"].items())
        lines.append(f"| {name} | {arguments} | {run['date'][:16]} | {'yes' if run['result']['passed'] else '**no**'} | {described(run['result'])} |")
    newest = max(results.values(), key=lambda run: run["date"])
    versions = ", ".join(f"{package} {version}" for package, version in newest["packages"].items())
    lines += ["", f"Python {newest['python']}, {newest['cores_used']} of {newest['cores']} cores, {versions}."]
    client = json.loads((HERE / "results" / "kserve.json").read_text())
    kept = [name for name, value in client.items() if value is True]
    lines += ["", f"KServe's own client {client['kserve']}, in an environment of its own: right in {len(kept)} of {len(client) - 1}: {', '.join(kept)}."]
    (HERE / "FAULTS.md").write_text("\n".join(lines) + "\n")


def described(result: dict[str, Any]) -> str:
    """Every figure that is not one of a series."""
    shown = []
    for key, value in result.items():
        if key == "passed" or key.endswith("_by_part"):
            continue
        shown.append(f"{key.replace('_', ' ')}: {f'{value:.4g}' if isinstance(value, float) else json.dumps(value).replace('|', '/')}")
    return "; ".join(shown)


if __name__ == "__main__":
    main()
