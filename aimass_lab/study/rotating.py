"""The verb that lets several models take turns on this device."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar

from ..errors import InputError
from ..records import Rotation
from ..units import parse_rate, parse_seconds
from ..verbs import Burst, Count, Model, Seconds, Seed, verb
from ..workload import Workload
from .base import StudyState

T = TypeVar("T")


class Rotating(StudyState):
    """The verb that lets several models take turns on this device."""

    @verb
    def rotate(
        self,
        *,
        beside: tuple[Model, ...] | None = None,
        policy: tuple[str, ...] | None = None,
        load: float = 0.7,
        seconds: Seconds = 5.0,
        rate: dict[str, str] | None = None,
        priority: dict[str, str] | None = None,
        weight: dict[str, str] | None = None,
        deadline: dict[str, str] | None = None,
        clock: Literal["device", "wall"] = "device",
        lanes: Count = 1,
        burst: Burst = 1.0,
        max_jobs: Count | None = None,
        seed: Seed = 0,
    ) -> Rotation:
        """Let several models take turns on this device under scheduling policies: predicted, run for real, and compared.

        Calls are cut into segments, so that one can make room for another in the middle; the models are left as they were.
        The error of the prediction is split into that of the mechanism and that of the times of segments.

        Args:
            beside: Further model that shares the device; may be repeated.
            policy: Who goes first and who makes room: fcfs, sjf, srpt, round_robin, priority, edf or weighted_fair, with options in brackets
                where wanted, such as 'round_robin(quantum_s=0.01)'; may be repeated. First come first served and round robin if not given.
            load: Share of the device's time that the calls should take.
            seconds: Time over which calls arrive, for each policy.
            rate: Calls per second of a model, as model=rate; may be repeated. Models without one share the load.
            priority: Priority of a model's calls, as model=number, 0 the most urgent; may be repeated.
            weight: Share of a model under load, as model=weight; may be repeated.
            deadline: Time within which a model's calls should be answered, as model=50ms; may be repeated.
            clock: Time that the device worked, which other processes hardly disturb, or the wall's.
            lanes: Cores that share one waiting line; more than one with the device's clock only.
            burst: Rate of bursts over the rate between them; 1 is a Poisson stream.
            max_jobs: Most calls that are let in at once; further ones wait outside.
            seed: Of the arrivals.
        """
        from ..rotation import Stream, rotate
        from ..scheduling import Limits, read_policy

        policies = [read_policy(text) for text in policy or ("fcfs", "round_robin")]
        workloads = [self.workload, *map(workload_of, beside or ())]
        names = [workload.name for workload in workloads]
        rates = read_pairs("rate", rate, names, parse_rate)
        priorities = read_pairs("priority", priority, names, whole)
        weights = read_pairs("weight", weight, names, float)
        deadlines = read_pairs("deadline", deadline, names, parse_seconds)
        streams = [
            Stream(
                workload=workload,
                rate=rates.get(workload.name),
                priority=priorities.get(workload.name, 0),
                weight=weights.get(workload.name, 1.0),
                deadline_s=deadlines.get(workload.name, math.inf),
            )
            for workload in workloads
        ]
        rotation = rotate(
            streams,
            policies,
            load=load,
            seconds=parse_seconds(seconds),
            clock=clock,
            lanes=lanes,
            burst=burst,
            limits=Limits(max_jobs=max_jobs),
            seed=seed,
            progress=self.progress,
        )
        return self._keep("rotate", rotation)


def workload_of(model: Any) -> Workload:
    """What stands behind a further model.

    Raises:
        InputError: it is none of the forms in which a model may be given.
    """
    if isinstance(model, StudyState):
        return model.workload
    if isinstance(model, Workload):
        return model
    if isinstance(model, tuple) and len(model) == 2:
        return Workload(*model)
    raise InputError(f"a {type(model).__name__} cannot stand beside a model", help="give a Study, a Workload or (model, example_inputs)")


def read_pairs(option: str, pairs: Mapping[str, Any] | None, names: Sequence[str], parse: Callable[[Any], T]) -> dict[str, T]:
    """Read values by model.

    Args:
        option: Its name, for messages.
        pairs: Model -> value, or the value's text.
        names: The models that there are.
        parse: Reads one value.

    Raises:
        InputError: there is no such model, or a value is none.
    """
    values = {}
    for name, value in (pairs or {}).items():
        if name not in names:
            raise InputError(f"{option} {name}={value}: no model here is called {name!r}", help=f"models: {', '.join(names)}")
        try:
            values[name] = parse(value)
        except ValueError as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{option} {name}={value}: {value!r} is not a number") from None
        if values[name] != values[name]:  # not a number
            raise InputError(f"{option} {name}={value}: it must be a number")
    return values


def whole(value: Any) -> int:
    """Read a whole number."""
    return int(str(value))
