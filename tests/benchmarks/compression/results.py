"""What was measured so far, as JSON files beside this one, and the child processes that measure."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent))
import kept  # noqa: E402  # it lies one folder above
from kept import Clock as Clock  # noqa: E402

_kept = kept.Results(HERE / "results")
CORE = "BENCHMARK_CORE"
"""Environment variable: the core that a process keeps to."""

Job = TypeVar("Job")


load, keep, add, extend = _kept.load, _kept.keep, _kept.add, _kept.extend


def child(
    script: str, arguments: Sequence[str], *, timeout_s: float, python: str = sys.executable, environment: Mapping[str, str] | None = None,
    core: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """What `script` prints as JSON on its last line, with the seconds it took; why there is nothing, else."""
    command = [python, "-W", "ignore", str(HERE / script), *arguments]
    variables = {**os.environ, **(environment or {}), **({} if core is None else {CORE: str(core)})}
    start = time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, env=variables)
    except subprocess.TimeoutExpired:
        return {"failed": f"not done after {timeout_s:g} s"}
    wall_s = time.perf_counter() - start
    lines = done.stdout.strip().splitlines()
    if done.returncode == 0 and lines:
        return json.loads(lines[-1]) | {"wall_s": wall_s}
    return {"failed": f"killed by signal {-done.returncode}" if done.returncode < 0 else last_error(done.stderr), "wall_s": wall_s}


def last_error(text: str) -> str:
    """The line that names the exception, of a process that ended with one; messages of several lines follow it."""
    lines = text.strip().splitlines() or ["no output"]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Exit|Interrupt)\b", line)]
    return (errors or lines)[-1][:300]


def cell(model: str, recipe: str, *, core: int | None, at_once: int, timeout_s: float) -> dict[str, Any]:
    """Measure one recipe on one model in a process of its own, write it down, and return it."""
    measured = child("measure.py", ["cell", model, recipe], timeout_s=timeout_s, core=core)
    add(model, "facts", found=facts() | {"at_once": at_once})
    add(model, "cells", recipe, found=measured)
    return measured


def keep_to_core() -> None:
    """Stay on the core that this process was given, if it was; to be called before anything starts a thread."""
    if CORE in os.environ:
        os.sched_setaffinity(0, {int(os.environ[CORE])})


def side_by_side(jobs: Iterable[Job], work: Callable[[Job, int | None], None], *, at_once: int, clock: Clock) -> None:
    """Do ``work(job, core)`` for one job after the other until the time is up; with `at_once` above 1, so many at a time, each on a core of its own."""
    left = iter(list(jobs))
    cores: list[int | None] = sorted(os.sched_getaffinity(0)) if at_once > 1 else [None]  # type: ignore[assignment]
    if at_once > len(cores):
        raise SystemExit(f"--at-once {at_once} needs as many cores, and there are {len(cores)}")
    taking = threading.Lock()

    def lane(core: int | None) -> None:
        while not clock.up:
            with taking:
                job = next(left, None)
            if job is None:
                return
            work(job, core)

    with ThreadPoolExecutor(at_once) as pool:
        for done in [pool.submit(lane, core) for core in cores[:at_once]]:
            done.result()


def facts() -> dict[str, Any]:
    """Machine and versions that what is measured now holds for."""
    return kept.facts(("torch", "torchao", "torch-pruning", "onnxruntime", "onnx", "transformers", "scikit-learn"))
