"""How a bundle is going to be served: what was asked, else what the spec or the plan says, else a default that is marked as one."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..devices import load_devices
from ..environment import usable_cores
from ..errors import InputError
from ..records import Note, Number, Plan, Recipe, ServingSpec, Unit, derived

DEFAULT_MAX_BATCH_SIZE = 16
DEFAULT_MAX_WAIT_S = 0.002
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_VERSION = re.compile(r"[1-9][0-9]{0,8}")


@dataclass(frozen=True, kw_only=True)
class Choices:
    """How the bundle is going to be served."""

    name: str
    version: str
    recipe: Recipe
    rate: Number | None
    """Per replica; None: nobody said."""
    latency_p99: Number | None
    max_batch_size: int
    max_wait_s: float
    workers: int = 1
    frontends: int = 1
    threads: int
    on_accelerator: bool = False
    """Planned for a device that this bundle's runtime does not use."""
    notes: tuple[Note, ...] = ()


def choose(
    model_name: str,
    spec: ServingSpec | None,
    plan: Plan | None,
    *,
    rate: float | None = None,
    latency_p99_s: float | None = None,
    max_batch_size: int | None = None,
    max_wait_s: float | None = None,
    threads: int | None = None,
    frontends: int = 1,
    name: str | None = None,
    version: str = "1",
) -> Choices:
    """Settle every figure of the service that does not need a measurement.

    Raises:
        InputError: a name, version or figure that cannot be.
    """
    name = name if name is not None else spec.name if spec else dns_name(model_name)
    if not _NAME.fullmatch(name):
        raise InputError(f"{name!r} cannot be the name of a service", help="use lower-case letters, digits and hyphens, at most 63")
    if not _VERSION.fullmatch(str(version)):
        raise InputError(f"{version!r} cannot be the version of a served model", help="use a positive whole number, such as 1")
    planned = spec or plan
    batch = _first(max_batch_size, planned.max_batch_size if planned else None, DEFAULT_MAX_BATCH_SIZE)
    wait = _first(max_wait_s, planned.max_wait if planned else None, DEFAULT_MAX_WAIT_S)
    measured_with = spec.environment.threads if spec and spec.environment else None
    count = _first(threads, measured_with, spec.cpu_cores if spec else None, usable_cores())
    if int(batch) != batch or batch < 1:
        raise InputError(f"the batch limit {batch!r} is not a positive whole number")
    if wait < 0:
        raise InputError(f"the waiting time {wait!r} s is negative")
    if int(count) < 1:
        raise InputError(f"the number of threads {count!r} is not positive")
    if isinstance(frontends, bool) or not isinstance(frontends, int) or frontends < 1:
        raise InputError(f"the number of front ends {frontends!r} is not a positive whole number")
    device = planned.device if planned else "cpu"
    return Choices(
        name=name,
        version=str(version),
        recipe=spec.recipe if spec else Recipe(),
        rate=_rate(rate, spec, plan),
        latency_p99=_latency(latency_p99_s, spec, plan),
        max_batch_size=int(batch),
        max_wait_s=float(wait),
        threads=int(count),
        frontends=frontends,
        on_accelerator=_is_accelerator(device),
        notes=_plan_notes(plan, device),
    )


def _first(*candidates: Number | float | None) -> float:
    found = next(candidate for candidate in candidates if candidate is not None)
    return found.value if isinstance(found, Number) else found


def _rate(rate: float | None, spec: ServingSpec | None, plan: Plan | None) -> Number | None:
    """What one replica has to take of the whole rate."""
    if rate is not None:
        total = _asked(rate, "request/s", "the rate that was asked for")
    elif spec is not None:
        total = spec.requests_per_s
    elif plan is not None:
        total = plan.target.requests_per_s
    else:
        return None
    planned = plan or spec
    if planned is None or planned.replicas.value == 1:
        return total
    inputs = [("requests_per_s", total), ("replicas", planned.replicas)]
    return derived(total.value / planned.replicas.value, "request/s", "the rate over the number of replicas", inputs)


def _latency(latency_p99_s: float | None, spec: ServingSpec | None, plan: Plan | None) -> Number | None:
    if latency_p99_s is not None:
        return _asked(latency_p99_s, "s", "the latency that was asked for")
    if spec:
        return spec.latency_p99_target
    return plan.target.latency_p99 if plan else None


def _asked(value: float, unit: Unit, method: str) -> Number:
    if not 0 < value < float("inf"):
        raise InputError(f"{method} is {value!r}; it must be greater than 0")
    return Number(value=value, unit=unit, source="user", method=method)


def _is_accelerator(device: str) -> bool:
    if device.split(":")[0] in ("cpu", "cuda"):
        return device.startswith("cuda")
    entry = load_devices().get(device)
    return entry is not None and entry.kind != "cpu"


def _plan_notes(plan: Plan | None, device: str) -> tuple[Note, ...]:
    notes = []
    if plan is not None and not plan.feasible:
        notes.append(Note(code="W-PROMISE-AT-RISK", text=f"the plan says that the target cannot be held: {plan.binding}"))
    if _is_accelerator(device):
        text = f"planned for {device}, which the runtime of this bundle does not use: it computes on the processor, where nothing of that plan was measured"
        notes.append(Note(code="W-PROMISE-AT-RISK", text=text))
    return tuple(notes)


def dns_name(text: str) -> str:
    """A service name made of whatever a model is called: ``"BertModel"`` -> ``"bertmodel"``."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:63].strip("-") or "model"
