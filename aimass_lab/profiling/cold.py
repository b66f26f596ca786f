"""From nothing to steady calls, in a process of its own: interpreter, torch, weights, first call, warm-up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..records import ColdStart, Note, Number, Quality, Unit, derived

if TYPE_CHECKING:
    import torch

    from ..environment import LoadMeter
    from ..workload import Call, Workload

FRESH = "a fresh process"
HERE = "this kernel, where torch was loaded and the model may have run before"
LIMIT_S = 600.0
STEADY_CALLS = 10
STEADY_S = 2.0
"""Most seconds for the steady calls at the end; three are always made."""
WARMUP_S = 5.0


def measure_cold_start(workload: Workload, *, factory: str | None = None, limit_s: float = LIMIT_S) -> ColdStart:
    """Start a fresh process that makes the model and calls it until the calls are steady.

    The process makes the model with `factory`; without one it reads a file into which the model was pickled here,
    which works for models whose classes can be imported. Where that fails, the calls are made in this process, and
    the record says so.

    Args:
        workload: Model and inputs.
        factory: ``path/to/file.py:name`` or ``package.module:name`` of a function without arguments that gives
            ``(model, inputs)``, a `Workload` or a `Study`.
        limit_s: Most seconds for the process.

    Raises:
        InputError: `factory` does not name a function, or the process failed with it.
        UnsupportedError: the model is on the meta device, and there is no factory.
    """
    from ..environment import LoadMeter

    if factory is not None and not all(factory.rpartition(":")):
        raise InputError(f"{factory!r} does not name a function", help="give path/to/file.py:factory or package.module:factory")
    if factory is None:
        workload.require_weights("name a factory that loads them: --factory path/to/file.py:factory")
    load, how, why = LoadMeter(), FRESH, None
    with load:
        seen, why = _in_fresh_process(["factory", factory], limit_s) if factory else _from_file(workload, limit_s)
        if seen is None and factory:
            raise InputError(f"a fresh process could not make and call the model with {factory}: {why}")
        if seen is None:
            seen, how = _in_this_process(workload), HERE
    record = _Record(workload, seen, how, load)
    if how == HERE:
        text = f"the model could not be made again in a fresh process ({why}); name its factory to have loading measured too"
        record.notes.insert(0, Note(code="missing:fresh_process", text=text))
    return record.make()


def _from_file(workload: Workload, limit_s: float) -> tuple[dict[str, Any] | None, str | None]:
    with tempfile.TemporaryDirectory(prefix="aimass-cold-") as folder:
        path = Path(folder) / "model.pt"
        why = _save(workload, path)
        return _in_fresh_process(["file", str(path)], limit_s) if why is None else (None, why)


def _save(workload: Workload, path: Path) -> str | None:
    """Pickle model and inputs; why it cannot be done."""
    import torch

    try:
        torch.save((workload.model, workload.call), path)
    except Exception as error:  # whatever the model's own pickling raises
        return f"{type(error).__name__}: {error}"
    return None


def _in_fresh_process(how: list[str], limit_s: float) -> tuple[dict[str, Any] | None, str | None]:
    command = [sys.executable, "-m", "aimass_lab.profiling.cold", *how]
    # What can be imported here can be imported there.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(folder or os.getcwd() for folder in sys.path)}
    started = time.time()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, check=False, env=environment)
    except subprocess.TimeoutExpired:
        return None, f"it was not ready after {limit_s:g} s"
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return None, last[:300]
    seen: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    seen["import_s"] = seen.pop("imported_at") - started
    return seen, None


def _in_this_process(workload: Workload) -> dict[str, Any]:
    from ..preserve import preserved

    with preserved(workload.model):
        return observe_calls(workload.model, workload.call, workload.torch_device)


def observe_calls(model: Any, call: Call, device: torch.device) -> dict[str, Any]:
    """Call `model` until it is steady; seconds and bytes of everything."""
    import torch

    from ..compiled import is_compiled
    from ..timing import calls_until_steady, percentile, sample_latency, timed, warm_up
    from ..workload import call_model
    from .memory import begin_peak, peak_since

    def run() -> Any:
        with torch.inference_mode():
            return call_model(model, call)

    before = begin_peak(device)
    first_s = timed(run, device)
    peak = None if before is None else max(0, peak_since(device) - before)
    calls = warm_up(run, device, first_s=first_s, budget_s=WARMUP_S)
    steady = sample_latency(run, device, budget_s=STEADY_S, warmup=0, min_samples=3, max_samples=STEADY_CALLS)
    cold = calls_until_steady(calls, steady)
    return {
        "calls_s": calls,
        "cold": len(calls) if cold is None else cold,
        "steady_s": percentile(steady, 50),
        "steady_low_s": min(steady),
        "steady_high_s": max(steady),
        "num_steady": len(steady),
        "first_call_peak": peak,
        "compiled": is_compiled(model),
    }


class _Record:
    """Builds the numbers of one cold start."""

    def __init__(self, workload: Workload, seen: dict[str, Any], how: str, load: LoadMeter) -> None:
        from ..environment import read_environment

        self.seen, self.how = seen, how
        self.environment = read_environment(workload.torch_device, load=load)
        self.quality: Quality = "noisy" if load.noisy else "ok"
        self.notes: list[Note] = list(load.notes())

    def _number(self, value: float, unit: Unit, method: str, **more: Any) -> Number:
        quality: Quality = "ok" if unit == "B" else self.quality
        return Number(value=value, unit=unit, source="measured", method=method, environment=self.environment.id, quality=quality, **more)

    def _known(self, key: str, unit: Unit, method: str) -> Number | None:
        value = self.seen.get(key)
        return None if value is None else self._number(value, unit, method, n=1)

    def make(self) -> ColdStart:
        """Return the record."""
        seen = self.seen
        first = self._number(seen["calls_s"][0], "s", "the very first call", n=1)
        steady = self._number(
            seen["steady_s"], "s", f"median of {seen['num_steady']} calls", n=seen["num_steady"],
            interval=(seen["steady_low_s"], seen["steady_high_s"]), interval_kind="smallest and largest",
        )  # fmt: skip
        warm = self._number(sum(seen["calls_s"][: seen["cold"]]), "s", "calls before the first steady one")
        loaded = {
            "import_time": self._known("import_s", "s", "from starting the interpreter to torch being imported"),
            "load_time": self._known("load_s", "s", seen.get("load_how", "")),
        }
        parts = [*((name, n) for name, n in loaded.items() if n is not None), ("warmup_time", warm)]
        return ColdStart(
            environment=self.environment,
            how=self.how,
            **loaded,
            load_growth_bytes=self._known("load_growth", "B", "resident memory after loading less before"),
            first_call=first,
            compile_time=derived(max(0.0, first.value - steady.value), "s", "first call less a steady one", [("first call", first), ("steady", steady)])
            if seen["compiled"]
            else None,
            warmup_calls=seen["cold"],
            warmup_time=warm,
            first_call_peak_bytes=self._known("first_call_peak", "B", "high-water mark during the first call less before"),
            steady=steady,
            ready_after=derived(sum(n.value for _, n in parts), "s", "sum of " + ", ".join(name.replace("_", " ") for name, _ in parts), parts),
            notes=tuple(self.notes),
        )


def _load(how: str, what: str) -> tuple[Any, Call, str]:
    """Make the model in the fresh process; model, call, and how it was made."""
    import torch

    from ..workload import Workload, as_call

    if how == "file":
        model, call = torch.load(what, weights_only=False)  # written a moment ago by the process that started this one
        return model, call, "reading the pickled model from a file in the page cache"
    source, _, name = what.rpartition(":")
    if source.endswith(".py"):
        import runpy

        sys.path.insert(0, str(Path(source).resolve().parent))
        made = runpy.run_path(source)[name]()
    else:
        import importlib

        sys.path.insert(0, "")
        made = getattr(importlib.import_module(source), name)()
    made = getattr(made, "workload", made)  # of a Study, which is not this room's to know
    model, call = (made.model, made.call) if isinstance(made, Workload) else (made[0], as_call(made[1]))
    return model, call, f"running {what}"


def _main(how: str, what: str) -> None:
    import psutil
    import torch

    imported_at = time.time()
    before = psutil.Process().memory_info().rss
    started = time.perf_counter()
    model, call, load_how = _load(how, what)
    model.eval()
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    loaded = {
        "imported_at": imported_at,
        "load_s": time.perf_counter() - started,
        "load_how": load_how,
        "load_growth": max(0, psutil.Process().memory_info().rss - before),
    }
    print(json.dumps({**loaded, **observe_calls(model, call, device)}))


if __name__ == "__main__":
    _main(*sys.argv[1:])
