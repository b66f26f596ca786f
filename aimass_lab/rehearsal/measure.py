"""Starts a bundle's own server, measures it in seconds, predicts what a load will come to, runs that load, and sets the two side by side."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..bundle import read_bundle, require_bundle
from ..environment import LoadMeter, read_environment, usable_cores
from ..errors import InputError
from ..prediction.ledger import Correction, rehearsal_kind
from ..records import INTERRUPTED, Environment, LoadPattern, Note, Number, Plan, Quality, Recovery, Rehearsal, RehearsalVerdict, derived
from ..serving.config import ServingConfig, load_config
from ..units import format_seconds, format_share
from .calibration import Calibration, calibrate
from .figures import Load, Sides, compare, given_arrivals, measured_figures, predict, replay
from .journal import recoveries
from .replicas import Replicas, Run
from .verdict import crowd_note, disturbance

CALIBRATION_S, LEAST_CALIBRATION_S = 6.0, 2.0
"""For measuring the server; half of the run where that is shorter."""
FEWEST_REQUESTS = 20
"""Below so many there is no p99 to speak of, and nothing to keep of an interrupted run."""
FRONT_END_LIMIT = 0.7
"""Share of its core that a front end may need; beyond, requests wait for it, and the simulated queue knows no such wait."""

Progress = Callable[[float, str], None]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What to run."""

    rate: Number
    """Requests per second at each replica."""
    seconds: float
    pattern: LoadPattern = "poisson"
    replicas: int | None = None
    """Servers side by side; as many as planned if not given and there are cores for them, else one."""
    plan: Plan | None = None
    technique: str = "none"
    kill: int = 0
    """Workers to kill on the way."""
    seed: int = 0

    @property
    def calibration_s(self) -> float:
        """For measuring the server before."""
        return min(CALIBRATION_S, max(LEAST_CALIBRATION_S, self.seconds / 2))


def rehearse(folder: Path, asked: Asked, *, corrections: Mapping[str, Correction] | None = None, progress: Progress | None = None) -> Rehearsal:
    """Run a bundle at a load on this machine.

    An interrupt while the load runs ends it early; what was sent until then is kept.

    Args:
        folder: The bundle.
        asked: The load.
        corrections: What the ledger teaches, by kind.
        progress: Told the share done and what is being done.

    Raises:
        BundleError: it is no bundle, was altered, or does not run.
        InputError: a value out of range, or more replicas than there are cores for.
    """
    import torch

    say = progress or (lambda share, text: None)
    folder = require_bundle(folder)
    config = load_config(folder)
    replicas, note = _count(asked, config)
    _check(asked)
    environment = read_environment(torch.device("cpu"))
    share = asked.calibration_s / (asked.calibration_s + asked.seconds)
    with LoadMeter() as meter, Replicas(folder, replicas, seed=asked.seed) as running:
        say(0.05, "measuring the server")
        calibration = calibrate(running, seconds=asked.calibration_s, environment=environment.id, seed=asked.seed)
        load = Load(pattern=asked.pattern, rate=asked.rate.value, seconds=asked.seconds)
        say(share, f"sending {replicas * load.rate:.4g} requests/s for {format_seconds(load.seconds)}")
        run = _send(running, load, asked)
        startups = max(server.startup_s for server in running.servers), running.worker_startup_s()
    if run.num_requests < FEWEST_REQUESTS:
        raise KeyboardInterrupt  # ended before there was anything to keep
    say(0.95, "simulating it")
    load = dataclasses.replace(load, seconds=run.results[0].duration_s)
    environment = read_environment(torch.device("cpu"), load=meter)
    return _record(folder, asked, load, calibration, run, environment, startups, corrections or {}, note)


def _send(running: Replicas, load: Load, asked: Asked) -> Run:
    times = [load.times_s([asked.seed, replica]) for replica in range(len(running.servers))]
    killed, began = 0, None

    def kill_when_due() -> None:
        nonlocal killed, began
        began = began or time.perf_counter()
        if killed < asked.kill and time.perf_counter() - began >= (killed + 1) * load.seconds / (asked.kill + 1):
            killed += running.kill_worker()  # again at the next look where none was there

    return running.send(times, len(times[0]) / load.rate, meanwhile=kill_when_due if asked.kill else None, keep=True)


def _record(
    folder: Path,
    asked: Asked,
    load: Load,
    calibration: Calibration,
    run: Run,
    environment: Environment,
    startups: tuple[float, float],
    corrections: Mapping[str, Correction],
    notes: tuple[Note, ...],
) -> Rehearsal:
    config, bundle, replicas = load_config(folder), read_bundle(folder), len(run.results)
    starved = disturbance(run) or (None if calibration.server_time.typical.quality == "ok" else "the machine was busy while the server was measured")
    quality: Quality = "noisy" if starved else "ok"
    verdict: RehearsalVerdict = "starved" if starved else "interrupted" if run.interrupted else "measured"
    fits, misfit = _fitting(asked.plan, config, load)
    sides = Sides(
        measured=measured_figures(run, load, config),
        predicted=predict(load, calibration, config, replicas, asked.seed),
        given=given_arrivals(load, [events.queued_s for events in run.events], calibration, config, asked.seed),
        replayed=replay(load, run, calibration, config, asked.seed),
        run=run,
        plan=fits,
        replicas=replicas,
        quality=quality,
        environment=environment.id,
    )

    def measured(value: float, unit: str, method: str) -> Number:
        return Number(value=value, unit=unit, source="measured", method=method, environment=environment.id, quality=quality)  # type: ignore[arg-type]

    ended = tuple(recovery for events in run.events for recovery in recoveries(events))
    return Rehearsal(
        model=bundle.model,
        technique=asked.technique,
        environment=environment,
        bundle=f"{bundle.name} {bundle.version}",
        format=bundle.format,
        verdict=verdict,
        pattern=asked.pattern,
        requests_per_s=derived(load.rate * replicas, "request/s", "rate of a replica x replicas run", [("rate", asked.rate)]),
        span=measured(load.seconds, "s", "over which requests were sent"),
        num_requests=run.num_requests,
        num_failed=sum(result.num_failed for result in run.results),
        replicas=replicas,
        planned_replicas=int(asked.plan.replicas.value) if asked.plan else None,
        plan_server_time=fits.server_time if fits else None,
        plan_experience=fits.experience if fits else None,
        workers=config.workers,
        threads=config.threads_per_worker,
        max_batch_size=config.max_batch_size,
        max_wait=Number(value=config.max_wait_s, unit="s", source="user", method="as the bundle is configured"),
        metrics=compare(sides, corrections, rehearsal_kind),
        service_time=calibration.ladder,
        server_time=calibration.server_time,
        capacity=calibration.capacity,
        front_end=calibration.front_end,
        startup=measured(startups[0], "s", "from starting the process to ready, the slowest of the replicas"),
        worker_startup=measured(startups[1], "s", "from starting a worker's process until it takes batches, the slowest of the first ones"),
        recoveries=ended,
        notes=(*notes, *misfit, *_notes(run, load, calibration, starved, ended)),
    )


def _notes(run: Run, load: Load, calibration: Calibration, starved: str | None, ended: tuple[Recovery, ...]) -> tuple[Note, ...]:
    notes = list(crowd_note(run))
    if starved:
        notes.append(Note(code="W-STARVED", text=f"{starved}: the figures judge no prediction and are not in the ledger; repeat on a quiet machine"))
    if run.interrupted:
        notes.append(Note(code=INTERRUPTED, text=f"ended after {format_seconds(load.seconds)}; the figures are of what was sent until then"))
    busy = calibration.front_end.value * load.rate
    if busy > FRONT_END_LIMIT:
        text = f"the front end needs {format_share(busy)} of a core at this rate, and from {1 / calibration.front_end.value:.4g} requests/s on it is the limit"
        notes.append(Note(code="W-FRONT-END", text=f"{text}, which the simulated queue leaves out"))
    if load.rate > calibration.capacity.value:
        text = f"a replica answered {calibration.capacity.value:.4g} requests/s in full batches, and {load.rate:.4g} are offered: the queue grows without bound"
        notes.append(Note(code="W-UNSTABLE", text=text))
    if ended:
        notes.append(Note(code="killed", text=f"{len(ended)} workers ended on the way; replay and prediction know nothing of it"))
    return tuple(notes)


def _fitting(plan: Plan | None, config: ServingConfig, load: Load) -> tuple[Plan | None, tuple[Note, ...]]:
    """The plan, where what is run is what it planned; else a note on what differs."""
    if plan is None:
        return None, ()
    planned_rate = plan.target.requests_per_s.value * (1 + plan.target.headroom) / plan.replicas.value
    differing = [
        name
        for name, differs in (
            (f"arrivals ({load.pattern})", load.pattern != "poisson"),
            (f"a rate of {load.rate:.4g} a replica", not math.isclose(load.rate, planned_rate, rel_tol=1e-3)),
            (f"a batch limit of {config.max_batch_size}", config.max_batch_size != plan.max_batch_size.value),
            (f"a wait of {format_seconds(config.max_wait_s)}", not math.isclose(config.max_wait_s, plan.max_wait.value, abs_tol=1e-6)),
            (f"{config.workers} workers", config.workers != 1),
        )
        if differs
    ]
    if not differing:
        return plan, ()
    return None, (Note(code="not-as-planned", text=f"the plan's own figures are not compared: this run has {', '.join(differing)}"),)


def _count(asked: Asked, config: ServingConfig) -> tuple[int, tuple[Note, ...]]:
    """How many replicas run here, and why not all.

    Raises:
        InputError: more are asked for than there are cores for.
    """
    planned = int(asked.plan.replicas.value) if asked.plan else 1
    wanted = planned if asked.replicas is None else asked.replicas
    each = config.workers * config.threads_per_worker
    if wanted < 1:
        raise InputError(f"the number of replicas must be at least 1, got {asked.replicas}")
    cores = usable_cores()
    if wanted == 1 or wanted * each + 1 <= cores:
        return wanted, ()
    text = f"{wanted} replicas of {each} thread{'s' if each > 1 else ''} and the load need {wanted * each + 1} cores, and {cores:g} are usable here"
    if asked.replicas is not None and wanted * each <= cores:
        shared = (
            f"the load is sent from the cores of the {wanted} replicas, {cores:g} in all: they wait for a core now and then where a larger machine's would not"
        )
        return wanted, (Note(code="W-SHARED-CORES", text=shared),)
    if asked.replicas is not None:
        raise InputError(text, help="run one of them at its share of the rate: leave replicas out; or write the bundle with fewer threads")
    return 1, (Note(code="one-replica", text=f"{text}: one of them was run, at its share of the rate"),)


def _check(asked: Asked) -> None:
    for name, value in (("rate", asked.rate.value), ("seconds", asked.seconds)):
        if not (math.isfinite(value) and value > 0):
            raise InputError(f"the {name} must be above 0, got {value}")
    if asked.rate.value * asked.seconds < FEWEST_REQUESTS:
        text = f"{asked.rate.value:g} requests/s for {format_seconds(asked.seconds)} are too few to judge anything: at least {FEWEST_REQUESTS} are needed"
        raise InputError(text, help="give more seconds")
    if asked.kill < 0:
        raise InputError(f"the number of workers to kill must be at least 0, got {asked.kill}")
    if asked.seed < 0:
        raise InputError(f"the seed must be at least 0, got {asked.seed}")
