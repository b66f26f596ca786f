"""What a search makes large or small, what it must hold, and where both are read from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, cast, get_args

from ..comparison import how_it_stands
from ..errors import InputError, UnknownNameError
from ..records import Number, Objective, ObjectiveName, TrialResult, Unit, derived

NAMES: tuple[ObjectiveName, ...] = get_args(ObjectiveName)
LARGE: tuple[ObjectiveName, ...] = ("throughput", "speedup")
"""Those that are made large; the others are made small."""
LINEAR: tuple[ObjectiveName, ...] = ("drop", "dissimilarity")
"""Those compared by their differences; the others by their ratios."""
UNITS: dict[ObjectiveName, Unit] = {
    "throughput": "item/s", "speedup": "ratio", "latency": "s", "latency_p99": "s", "drop": "ratio", "dissimilarity": "ratio", "size": "B",
    "memory": "B", "cost": "USD/item",
}  # fmt: skip
WORDS: dict[ObjectiveName, str] = {
    "throughput": "throughput", "speedup": "speed-up", "latency": "latency", "latency_p99": "p99 latency", "drop": "metric lost",
    "dissimilarity": "dissimilarity", "size": "bytes on disk", "memory": "weights in memory", "cost": "cost",
}  # fmt: skip

Numbers = Mapping[ObjectiveName, Number]
Limits = Mapping[ObjectiveName, Number]


def make_objectives(names: Iterable[str] | None, *, has_metric: bool, priced: bool) -> tuple[Objective, ...]:
    """The objectives called `names`, in their order; throughput and what it costs in quality if there are none.

    Raises:
        UnknownNameError: there is no such objective.
        InputError: one of them cannot be had, or comes twice.
    """
    quality = "drop" if has_metric else "dissimilarity"
    chosen = tuple(names or ("throughput", quality))
    for name in chosen:
        if name not in NAMES:
            raise UnknownNameError("objective", name, NAMES)
        if name == "drop" and not has_metric:
            raise InputError("there is no metric whose loss could be made small", help="give data=(inputs, labels) and metric=, or take dissimilarity")
        if name == "cost" and not priced:
            raise InputError("cost cannot be made small without a price", help="give the price of the device: price=cpu=0.20 (USD per hour)")
        if chosen.count(name) > 1:
            raise InputError(f"the objective {name!r} is given twice")
    known = cast("tuple[ObjectiveName, ...]", chosen)
    return tuple(Objective(name=name, goal="maximise" if name in LARGE else "minimise") for name in known)


def make_limits(limits: Mapping[str, float | None], *, has_metric: bool, priced: bool) -> dict[ObjectiveName, Number]:
    """Limits as numbers that the user gave.

    Args:
        limits: Quantity -> what it may be at most, in SI units; None is no limit. ``"quality"`` is the loss of the metric where there is one,
            else the dissimilarity of outputs.
        has_metric: Whether there is a metric.
        priced: Whether the price of a device is known.

    Raises:
        InputError: a limit that nothing can hold, or that cannot be checked.
    """
    made: dict[ObjectiveName, Number] = {}
    for given, value in limits.items():
        if value is None:
            continue
        name = cast(ObjectiveName, ("drop" if has_metric else "dissimilarity") if given == "quality" else given)
        if name not in NAMES or name in LARGE:
            raise InputError(f"{given!r} cannot be limited from above", help=f"there are limits of {', '.join(n for n in NAMES if n not in LARGE)}")
        if not math.isfinite(value) or (value <= 0 and name not in LINEAR) or value < 0:
            raise InputError(f"nothing can hold the limit {value!r} of {WORDS[name]}")
        if name == "cost" and not priced:
            raise InputError("a limit of cost needs a price", help="give the price of the device: price=cpu=0.20 (USD per hour)")
        made[name] = Number(value=value, unit=UNITS[name], source="user", method="asked for")
    return made


def numbers_of(result: TrialResult, price: Number | None = None) -> dict[ObjectiveName, Number]:
    """What a trial says about each quantity; those it does not know are left out.

    Args:
        result: At one batch size.
        price: Of the device, USD per hour.
    """
    point = result.points[0]
    found: dict[ObjectiveName, Number | None] = {
        "throughput": point.throughput_variant,
        "speedup": point.speedup,
        "latency": point.latency_variant,
        "latency_p99": point.latency_p99_variant,
        "drop": result.metric_drop,
        "dissimilarity": _dissimilarity(result.fidelity),
        "size": result.stored_bytes,
        "memory": result.size_bytes,
        "cost": None if price is None else cost_of(point.throughput_variant, price),
    }
    return {name: number for name, number in found.items() if number is not None}


def cost_of(throughput: Number, price: Number) -> Number:
    """USD of one item, the device kept busy.

    Args:
        throughput: Items per second.
        price: USD per hour.
    """
    per_s = price.value / 3600
    interval = None
    if throughput.interval is not None and throughput.interval[0] > 0:
        interval = (per_s / throughput.interval[1], per_s / throughput.interval[0])
    inputs = (("price", price), ("throughput", throughput))
    return derived(per_s / throughput.value, "USD/item", "price / throughput", inputs, interval=interval, interval_kind=interval and throughput.interval_kind)


def _dissimilarity(fidelity: Number) -> Number:
    interval = fidelity.interval and (1 - fidelity.interval[1], 1 - fidelity.interval[0])
    inputs = (("fidelity", fidelity),)
    value = 1 - fidelity.value
    return derived(value, "ratio", "1 - mean cosine similarity", inputs, interval=interval, interval_kind=interval and fidelity.interval_kind)


def values_of(numbers: Numbers, objectives: Sequence[Objective]) -> tuple[float, ...] | None:
    """What a sampler is told: each to be made large, ratios as logarithms; None where a number is missing."""
    if any(objective.name not in numbers for objective in objectives):
        return None
    return tuple(merit(objective.name, float(numbers[objective.name].value)) for objective in objectives)


def merit(name: ObjectiveName, value: float) -> float:
    """A quantity as something to be made large, on the scale on which it is compared."""
    scaled = value if name in LINEAR else math.log(max(value, 1e-300))
    return scaled if name in LARGE else -scaled


def excess_of(numbers: Numbers, limits: Limits) -> tuple[float, ...]:
    """How far each limit is exceeded, on the scale on which it is compared.

    Where too few calls were made for a 99th percentile, the median stands for it: it tells a sampler where to look. What is not known at all exceeds.
    """
    known = {"latency_p99": numbers["latency"], **numbers} if "latency" in numbers else numbers
    return tuple(merit(name, float(limit.value)) - merit(name, float(known[name].value)) if name in known else 1.0 for name, limit in limits.items())


def beyond(numbers: Numbers, limits: Limits) -> tuple[ObjectiveName, ...]:
    """Limits that are not held."""
    return tuple(name for name, limit in limits.items() if name not in numbers or numbers[name].value > limit.value)


Judgement = Literal["better", "worse", "within noise"]


def compare(name: ObjectiveName, one: Number, other: Number) -> Judgement:
    """How `one` stands to `other`: within noise where their intervals overlap, or one of them was taken on a busy machine."""
    standing = how_it_stands(one, other)
    if standing in ("same", "cannot tell"):
        return "within noise"
    return "better" if (standing == "higher") == (name in LARGE) else "worse"
