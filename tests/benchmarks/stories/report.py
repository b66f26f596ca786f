"""Writes the times of the stories as RESULTS.md."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from kept import table
from stories import STORIES

TARGET = Path(__file__).with_name("RESULTS.md")


def write(found: dict[str, Any], names: dict[str, str]) -> str:
    """Put what was measured into RESULTS.md.

    Args:
        found: The machine, and the walks of each story by subject.
        names: What each subject is called.

    Returns:
        What was written.
    """
    machine = found["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    dates = sorted({walk["date"] for stories in found["subjects"].values() for walks in stories.values() for walk in walks})
    parts = [
        HEAD.format(
            dates=" to ".join(dict.fromkeys((dates[0], dates[-1]))), processor=machine["processor"], cores=f"{machine['cores']:g}",
            memory=f"{machine['memory_bytes'] / 1e9:.0f} GB", python=machine["python"], versions=versions, browser=machine["browser"],
        )
    ]  # fmt: skip
    parts += [section(name, found["subjects"][subject]) for subject, name in names.items() if subject in found["subjects"]]
    text = "\n".join([*parts, NOT_MEASURED])
    TARGET.write_text(text)
    return text


def section(name: str, walks: dict[str, Any]) -> str:
    """One subject's table, and what it missed."""
    rows, missed, untold, aims = [], [], [], 0
    for story in STORIES:
        kept = walks.get(story.__name__, [])
        title = (story.__doc__ or "").partition(": ")[0]
        if not kept:
            untold.append(title)
        for number, step in enumerate(kept[-1]["steps"] if kept else ()):
            taken = [walk["steps"][number]["seconds"] for walk in kept if number < len(walk["steps"]) and walk["steps"][number]["what"] == step["what"]]
            reached = verdict(taken, step["target_s"])
            aims += step["target_s"] is not None
            if reached.startswith("**"):
                missed.append(f"{title}, {step['what']}: {seconds(statistics.median(taken))} instead of {seconds(step['target_s'])}")
            outcomes = [walk["steps"][number]["outcome"] for walk in kept if walk["steps"][number]["outcome"]]
            what = step["what"] + (f" ({', '.join(f'{outcomes.count(one)} × {one}' for one in dict.fromkeys(outcomes))})" if outcomes else "")
            target = "" if step["target_s"] is None else f"≤ {seconds(step['target_s'])}"
            spread = f"{seconds(min(taken))} to {seconds(max(taken))}" if len(taken) > 1 else ""
            rows.append([title if not number else "", what, target, seconds(statistics.median(taken)), spread, str(len(taken)), reached])
    said = "".join(f" {word}: {'; '.join(which)}." for word, which in (("Missed", missed), ("Not walked to the end yet", untold)) if which)
    header = ["story", "what the person waits for", "target", "median", "spread", "walks", "reached"]
    return f"## {name}\n\n{aims - len(missed)} of {aims} targets reached.{said}\n\n{table(header, rows)}\n"


def verdict(taken: list[float], target_s: float | None) -> str:
    """Whether a target was reached; a miss is in bold."""
    if target_s is None:
        return ""
    if max(taken) <= target_s:
        return "yes"
    return "by the median" if statistics.median(taken) <= target_s else "**no**"


def seconds(value: float) -> str:
    """As people read it."""
    return f"{1e3 * value:.0f} ms" if value < 1 else f"{value:.1f} s" if value < 99.95 else f"{value:.0f} s"


HEAD = """# How long the stories take

{dates}, {processor}, {cores} cores, {memory}, no GPU, Python {python}; {versions}; Chromium {browser}. Nothing else ran on the machine.

Command: `make benchmark-stories`, which is `python tests/benchmarks/stories/run.py`; it goes on where it was interrupted.

A person's way through a notebook, in ten stories, told in `tests/stories.py` and held by `tests/browser/test_stories.py`: each walk is a JupyterLab, a
browser and a kernel of their own, with an empty history. Times are taken where the person sees them, in the browser: from running a cell, clicking or letting
go, to the frame in which the answer is drawn; those of memory that comes back, of requests to the server and of the bundle's own proof by a clock beside it.
Browser, kernel and server share the processor. What has no target was not given one. The targets were set for a model of 100 to 500 million parameters on a
data-centre GPU; here there is none, and the model computes on the processor.
"""

NOT_MEASURED = """## Not measured here

- **First look** and **Drag the batch** of the digits CNN, and the drag of BERT-base, were walked while other notebooks' kernels may have run on the machine. A
  press took 55 and 62 ms before: JupyterLab's handler of its mousedown had the whole page laid out.
- **Ask too much**: no GPU, so nothing was read off `nvidia-smi`. What comes back is the kernel's resident memory, which is read right after the failure.
- **Tune to a promise, with BERT-base**: what is usable needs a p99, so a hundred calls of either model, of 140 and 160 ms each.
- **Tune to a promise**: whether what is best after seconds is near the best there is, is measured [elsewhere](../search/RESULTS.md).
- **Export the server**: “anywhere” is another folder of the same machine, with the same Python.
- **Next month** was not walked with BERT-base; the machine is the same, only kernel and page are new; that `check --baseline` fails a CI job is tested in
  `tests/test_baseline.py`, and not a step here.
"""
