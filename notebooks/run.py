"""Runs a notebook without a browser, tells what each cell printed, and fails when a cell does or when it does not end in PASS."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError


def main() -> int:
    """Run the notebook named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("notebook", type=Path)
    parser.add_argument("--save", type=Path, help="write the executed notebook here")
    arguments = parser.parse_args()
    notebook = nbformat.read(arguments.notebook, as_version=4)
    client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(arguments.notebook.parent)}}, store_widget_state=False)
    start = time.perf_counter()
    failed = False
    with client.setup_kernel():
        for index, cell in enumerate(notebook.cells):
            if cell.cell_type == "markdown":
                print("\n" + cell.source.splitlines()[0], flush=True)
                continue
            try:
                client.execute_cell(cell, index)
            except CellExecutionError as error:
                print(error, file=sys.stderr)
                failed = True
                break
            print(text_of(cell), flush=True)
    if arguments.save:
        nbformat.write(notebook, arguments.save)
    verdict = "FAIL" if failed else "PASS" if "PASS" in {line for cell in notebook.cells for line in text_of(cell).splitlines()} else "no proof was made"
    print(f"\n{arguments.notebook.name}: {verdict} in {time.perf_counter() - start:.0f} s")
    return 0 if verdict == "PASS" else 1


def text_of(cell: nbformat.NotebookNode) -> str:
    """What a reader without a browser would see of a cell's outputs."""
    texts = []
    for output in cell.get("outputs", []):
        texts.append(output.text if output.output_type == "stream" else output.get("data", {}).get("text/plain", ""))
    return "\n".join(text.rstrip() for text in texts if text.strip())


if __name__ == "__main__":
    sys.exit(main())
