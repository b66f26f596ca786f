"""How long the stories of a person at work take, in a real JupyterLab and a real browser, each walk in a new kernel with an empty history.

``python tests/benchmarks/stories/run.py`` walks what is missing and writes RESULTS.md; it may be interrupted and started again, and keeps every story that
was walked to its end. ``--walks 3`` are made of each story, ``--minutes 6`` begins no further one after that time, ``--subject NAME`` and ``--story NAME``
choose, ``--again`` forgets what was measured, ``--report`` only writes. It wants the machine for itself, Chromium, and the panel built.
"""

from __future__ import annotations

import argparse
import datetime
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TESTS = HERE.parents[1]
sys.path += [str(TESTS), str(HERE.parent)]

from kept import Clock, Results, facts  # noqa: E402
from labserver import CHROMIUM, TOKEN, opened, running_lab, write_notebook  # noqa: E402
from stories import BERT, DIGITS, PATIENCE_MS, STORIES, Subject, Walk  # noqa: E402

SUBJECTS = {"digits": DIGITS, "bert": BERT}
NEEDED = STORIES[:2]
"""By all others: they make the model and its study, and are walked with them."""
VERSIONS = ("torch", "transformers", "jupyterlab", "ipykernel", "ipython", "anywidget", "onnxruntime", "openvino", "playwright")
NAME = "times"

Story = Callable[[Walk], Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--walks", type=int, default=3, help="of each story")
    parser.add_argument("--minutes", type=float, help="begin no further story after so many")
    parser.add_argument("--subject", action="append", choices=tuple(SUBJECTS), help="may be repeated")
    parser.add_argument("--story", action="append", choices=[story.__name__ for story in STORIES], help="may be repeated")
    parser.add_argument("--again", action="store_true", help="forget what was measured before")
    parser.add_argument("--report", action="store_true", help="walk nothing")
    options = parser.parse_args()
    results = Results(HERE / "results")
    if options.again:
        results.keep(NAME, {})
    if not options.report:
        walk_all(results, options)
    import report

    print(report.write(results.load(NAME), {name: subject.name for name, subject in SUBJECTS.items()}))


def browser_version() -> str:
    told = subprocess.check_output([str(CHROMIUM), "--version"], text=True, stderr=subprocess.DEVNULL)
    return next((word for word in told.split() if word[0].isdigit()), told.strip())


def walk_all(results: Results, options: argparse.Namespace) -> None:
    """Every walk that is missing, for as long as there is time."""
    clock = Clock(options.minutes)
    chosen = [story for story in STORIES if story.__name__ in (options.story or [s.__name__ for s in STORIES])]
    results.add(NAME, "machine", found=facts(VERSIONS) | {"browser": browser_version()})
    for name in options.subject or SUBJECTS:
        while not clock.up:
            known = results.load(NAME).get("subjects", {}).get(name, {})
            missing = [story for story in chosen if len(known.get(story.__name__, ())) < options.walks]
            if not missing:
                break
            together = [story for story in STORIES if story in missing or story in NEEDED]
            walk(together, SUBJECTS[name], partial(keep, results, name), clock)


def walk(stories: list[Story], subject: Subject, keep: Callable[[Story, Any], None], clock: Clock) -> None:
    """Walk some stories, one after the other."""
    with tempfile.TemporaryDirectory(prefix="aimass-stories-") as made:
        folder = Path(made)
        write_notebook(folder / "stories.ipynb", [])
        with running_lab(folder, panel=True, **{"aimass-lab:panel": {"interval": 0.5}}) as address:
            address = f"{address}lab/tree/stories.ipynb?token={TOKEN}&reset"
            with opened(address, height=1400) as page:
                page.set_default_timeout(PATIENCE_MS)
                person = Walk(page, folder, address, subject)
                for story in stories:
                    if clock.up:
                        return
                    print(f"{subject.name}: {story.__name__} ...", file=sys.stderr, flush=True)
                    keep(story, story(person))


def keep(results: Results, subject: str, story: Story, steps: Any) -> None:
    told = [{"what": step.what, "target_s": step.target_s, "seconds": step.seconds, "outcome": step.outcome} for step in steps]
    results.extend(NAME, "subjects", subject, story.__name__, found=[{"date": str(datetime.date.today()), "steps": told}])
    for step in steps:
        print(f"    {step.what}: {step.seconds:.2f} s {step.outcome}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
