"""Predictions held against what was measured later: the running error by kind, and what the next prediction learns from it."""

from __future__ import annotations

import datetime
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from ..headlines import format_number
from ..records import (
    ORIGINAL,
    Basis,
    Demand,
    Experience,
    LedgerEntry,
    LedgerKind,
    ModelInfo,
    Note,
    Number,
    Prediction,
    Profile,
    Quantity,
    Record,
    Rehearsal,
    RehearsalMetric,
    RehearsalQuantity,
    ServerTime,
    TrialResult,
)
from .interpolate import pooled_quantile

FEWEST_SCORED = 3
"""Predictions of one kind that were measured before the next one is corrected."""

NEWEST = 50
"""So many of the newest count: machines and the rules of prediction change."""

SHRINK = 3
"""The correction is drawn towards none as if this many further predictions had come out exactly."""

MOST_CORRECTION = 2.0
"""No prediction is moved by more than this factor, either way."""

LEAST_STRETCH, MOST_STRETCH = 0.5, 5.0
"""A band becomes at most this much narrower or wider, on the logarithmic scale."""

NEWEST_RUNS, RUNS_WITHIN = 20, 0.9
"""Rehearsals that say how far beyond its band the next one may be, and the share of them that were not further."""

NARROWEST = 1.001
"""A prediction without a band is scored against this factor either way: exact arithmetic, up to rounding."""


@dataclass(frozen=True)
class Measured:
    """One measured value that a prediction may have been made of."""

    batch_size: int
    technique: str
    quantity: Quantity
    number: Number


@dataclass(frozen=True)
class Correction:
    """What earlier predictions of one kind teach."""

    factor: float
    """A prediction is multiplied by this."""
    stretch: float
    """The logarithm of the band's ends over the value is multiplied by this."""
    n: int
    """Predictions that it was learnt from."""


NO_CORRECTION = Correction(1.0, 1.0, 0)


# --- what a record predicts and what it measures ------------------------------------------------


def kind_of(quantity: Quantity, basis: str, number: Number) -> str:
    """What predictions of `quantity` on this basis are scored under; those beyond the measured range apart."""
    if basis in ("interpolated", "extrapolated"):  # the memory of a point may be within the range where its latency is not
        basis = "beyond the range" if number.quality == "extrapolated" else "interpolated"
    return f"{basis}: {quantity}"


def basis_of(latency: Number, environment: str) -> Basis:
    """The basis that the method of a predicted latency names."""
    if environment.startswith("catalogue:") and "calibrated roofline" not in latency.method:
        return "datasheet"
    return "calibrated roofline"


def predictions_of(record: Record, *, environment: str, digest: str, corrections: Mapping[str, Correction] | None = None) -> list[LedgerEntry]:
    """Everything in `record` that a measurement could prove wrong.

    Args:
        record: Of any kind; most predict nothing.
        environment: What it holds for: an `Environment.id`, or ``catalogue:NAME``.
        digest: Of the user's own model, whose copies are known by the technique.
        corrections: By kind, what `record` has in it already.
    """
    made: list[tuple[str, int, Quantity, str, Number | None]] = []
    model, device = getattr(record, "model", None), getattr(record, "device", None) or ""
    if isinstance(record, Demand):
        basis = str(basis_of(record.latency, environment)) if record.latency else ""
        made = [("none", record.batch_size, "latency", basis, record.latency), ("none", record.batch_size, "memory", "shapes", record.peak_memory_bytes)]
    elif isinstance(record, Prediction):
        for point in record.points:
            made.append((record.technique, point.batch_size, "latency", point.basis, point.latency))
            made.append((record.technique, point.batch_size, "memory", point.basis, point.peak_memory_bytes))
        of_copy: tuple[tuple[Quantity, Number | None], ...] = (("speedup", record.speedup), ("size", record.weight_bytes))
        made += [(record.technique, record.effect_batch_size or 0, quantity, "effect", number) for quantity, number in of_copy]
    entries = []
    for technique, batch_size, quantity, basis, number in made:
        if number is None or basis == "measured" or number.weakest_source == "measured" or number.value <= 0:
            continue
        kind = kind_of(quantity, basis, number)
        learnt = (corrections or {}).get(kind, NO_CORRECTION)
        low, high = number.interval or (number.value / NARROWEST, number.value * NARROWEST)
        entries.append(
            LedgerEntry(
                predicted_at=now(), model=model.name if isinstance(model, ModelInfo) else "", model_digest=digest, device=device, environment=environment,
                technique=technique, batch_size=batch_size, quantity=quantity, kind=kind, unit=number.unit, value=float(number.value),
                interval=(float(low), float(high)), correction=learnt.factor, stretch=learnt.stretch,
            )
        )  # fmt: skip
    return entries


def plan_kind(server_time: ServerTime | None, quantity: str) -> str:
    """What a plan's latencies are scored under: those that rest on a rehearsal of the server apart from those on a profile of the model."""
    rehearsed = server_time is not None and server_time.typical.weakest_source == "measured"
    return f"plan on a {'rehearsal' if rehearsed else 'profile'}: {quantity}"


def rehearsal_kind(quantity: str) -> str:
    """What the prediction just before a run is scored under."""
    return f"rehearsal: {quantity}"


def outcomes_of(record: Rehearsal, *, digest: str, corrections: Mapping[str, Correction]) -> list[LedgerEntry]:
    """What a run's plan and its own prediction said, with what was measured; nothing where the machine did not let it judge.

    Args:
        record: Of a run.
        digest: Of the user's own model.
        corrections: By kind, what the prediction has in it already.
    """
    entries = []
    for metric in record.metrics if record.verdict == "measured" else ():
        learnt = corrections.get(rehearsal_kind(metric.name), NO_CORRECTION)
        entries.append(_outcome(record, digest, metric, metric.predicted, rehearsal_kind(metric.name), (learnt.factor, learnt.stretch)))
        if metric.planned is not None and metric.planned.interval is not None:
            known = record.plan_experience or Experience()
            taught = _of_quantile(known, metric.name), _reach(known, metric.name)
            entries.append(_outcome(record, digest, metric, metric.planned, plan_kind(record.plan_server_time, metric.name), *taught))
    return [entry for entry in entries if entry.value > 0 and (entry.measured or 0) > 0]


def _of_quantile(known: Experience, name: str) -> tuple[float, float]:
    return {"latency p50": known.p50, "latency p99": known.p99}.get(name, (1.0, 1.0))


def _outcome(
    record: Rehearsal,
    digest: str,
    metric: RehearsalMetric,
    said: Number,
    kind: str,
    learnt: tuple[float, float],
    reach: tuple[float, float] = (1.0, 0.0),
) -> LedgerEntry:
    low, high = said.interval or (said.value / NARROWEST, said.value * NARROWEST)
    load = f"{record.requests_per_s.value:.4g}/s {record.pattern} on {record.replicas}"
    return LedgerEntry(
        predicted_at=now(), model=record.model.name, model_digest=digest, device=record.environment.device, environment=record.environment.id,
        technique=record.technique, batch_size=record.max_batch_size, point=load, quantity=metric.name, kind=kind, unit=said.unit,
        value=float(said.value), interval=(float(low), float(high)), correction=learnt[0], stretch=learnt[1] * _widened(metric, said, reach),
        measured=float(metric.measured.value), measured_at=now(),
    )  # fmt: skip


def _widened(metric: RehearsalMetric, said: Number, reach: tuple[float, float]) -> float:
    """What a band's reach widened it by as a power, on the side where the measurement lay: what is learnt is learnt without it."""
    low, high = said.ends
    if reach == (1.0, 0.0) or not 0 < low < said.value < high - reach[1] or not low / reach[0] < said.value:
        return 1.0
    if metric.measured.value > said.value:
        return math.log(high / said.value) / math.log((high - reach[1]) / said.value)
    return math.log(said.value / low) / math.log(said.value / (low / reach[0]))


def measurements_of(record: Record, *, technique: str = "none") -> list[Measured]:
    """Everything in `record` that was measured and can score a prediction; what other load disturbed is left out.

    Args:
        record: Of any kind; most measure nothing.
        technique: What a profile was taken of.
    """
    found: list[Measured] = []
    if isinstance(record, Profile):
        for point in record.ladder:
            found.append(Measured(point.batch_size, technique, "latency", point.latency_p50))
            if point.peak_memory_bytes is not None:
                found.append(Measured(point.batch_size, technique, "memory", point.peak_memory_bytes))
    elif isinstance(record, TrialResult) and record.setting.threads is None and record.setting.instances == 1:
        name = record.setting.recipe.name
        for tried in record.points:
            found += [
                Measured(tried.batch_size, ORIGINAL, "latency", tried.latency_original),
                Measured(tried.batch_size, name, "latency", tried.latency_variant),
                Measured(tried.batch_size, name, "speedup", tried.speedup),
                Measured(tried.batch_size, name, "size", record.size_bytes),
            ]
    return [m for m in found if m.number.quality == "ok" and m.number.weakest_source == "measured" and m.number.value > 0]


def score(open_entries: Iterable[LedgerEntry], measured: Iterable[Measured], at: str | None = None) -> list[LedgerEntry]:
    """The entries that `measured` settles, with what was measured.

    Args:
        open_entries: Of one model in one environment.
        measured: There, of the same model.
        at: Time of the measurement; now if not given.
    """
    known = {(m.technique, m.batch_size, m.quantity): float(m.number.value) for m in measured}
    found = []
    for entry in open_entries:
        value = known.get((entry.technique, entry.batch_size, entry.quantity))
        if value is not None and entry.measured is None:
            found.append(msgspec.structs.replace(entry, measured=value, measured_at=at or now()))
    return found


# --- what is learnt -----------------------------------------------------------------------------


def learn(entries: Sequence[LedgerEntry]) -> Correction:
    """What scored predictions of one kind in one environment teach the next one.

    The factor is the median of measured over predicted, before any correction, drawn towards 1. It is used
    only where leaving each prediction out in turn shows that it helps the one left out. The band is stretched
    by a conformal quantile of how far, in units of the band, the predictions fell from their corrected values;
    that the stated bands are right counts as a prior.

    Args:
        entries: Scored and open ones, the newest first; only the former count.
    """
    scored = [e for e in entries if e.measured is not None][:NEWEST]
    if len(scored) < FEWEST_SCORED:
        return NO_CORRECTION
    errors = [_raw_error(e) for e in scored]
    rest = [errors[:i] + errors[i + 1 :] for i in range(len(errors))]
    without = statistics.fmean(abs(e) for e in errors)
    corrected = statistics.fmean(abs(e - _shrunk(others)) for e, others in zip(errors, rest, strict=True))
    shift = _shrunk(errors) if corrected < without else 0.0
    scores = [abs(e - shift) / _raw_half_width(entry, upwards=e > shift) for e, entry in zip(errors, scored, strict=True)]
    stretch = min(MOST_STRETCH, max(LEAST_STRETCH, pooled_quantile(scores, prior=1.0)))
    return Correction(math.exp(shift), stretch, len(scored))


def ordinary(run: Rehearsal) -> bool:
    """Whether a run's latencies are those of a service as it should be: no worker was killed, and it was offered no more than it can answer."""
    return not run.recoveries and run.requests_per_s.value < run.capacity.value * run.replicas


def reach_of(runs: Sequence[Rehearsal], quantity: RehearsalQuantity, *, planned: bool) -> tuple[float, float]:
    """How far beyond its band a latency was in runs here: the ratio to the lower end, at most 1, and the seconds above the upper one, at least 0.

    Runs that other work disturbed count: nobody knows of the next hour that it is quieter. They correct nothing, are not in the ledger, and rule out
    nothing that was planned before. Each of the two is what 90 % of the runs did not go beyond, as a conformal quantile has it: of fewer than
    nineteen the most of all, which of fewer than nine promises less than 90 %.

    Args:
        runs: The newest first.
        quantity: A latency.
        planned: Against the plan's band, where there was one; else against what was predicted once the server had been measured.
    """
    ratios, added = [], []
    for run in runs[:NEWEST_RUNS]:
        metric = run.metric(quantity)
        least, most = metric.measured.ends
        low, high = metric.predicted.ends
        if metric.planned is not None and (planned or run.verdict == "starved"):
            known = _reach(run.plan_experience or Experience(), quantity)
            own = metric.planned.ends[0] / known[0], metric.planned.ends[1] - known[1]
            if planned:
                low, high = own
            else:
                least, most = min(least, own[0]), max(most, own[1])
        ratios.append(min(1.0, least / low) if least > 0 and low > 0 else 1.0)
        added.append(max(0.0, most - high))
    if not added:
        return 1.0, 0.0
    rank = min(len(added), math.ceil(RUNS_WITHIN * (len(added) + 1)))
    return sorted(ratios)[-rank], sorted(added)[rank - 1]


def _reach(known: Experience, quantity: str) -> tuple[float, float]:
    return {"latency p50": known.p50_reach, "latency p99": known.p99_reach}.get(quantity, (1.0, 0.0))


def _shrunk(errors: Sequence[float]) -> float:
    shift = statistics.median(errors) * len(errors) / (len(errors) + SHRINK)
    most = math.log(MOST_CORRECTION)
    return max(-most, min(most, shift))


def _raw_error(entry: LedgerEntry) -> float:
    """Logarithm of measured over what would have been predicted without any correction."""
    return math.log((entry.measured or 0.0) / (entry.value / entry.correction))


def _raw_half_width(entry: LedgerEntry, *, upwards: bool) -> float:
    low, high = entry.interval
    width = math.log(high / entry.value) if upwards else math.log(entry.value / low) if low > 0 else math.inf
    return max(width / entry.stretch, math.log(NARROWEST))


def apply_correction(number: Number, correction: Correction) -> Number:
    """`number` with what was learnt, and a method that says so."""
    if correction.n < FEWEST_SCORED or number.interval is None or number.value <= 0:
        return number
    low, high = number.interval
    value = number.value * correction.factor
    up, down = (math.log(max(1.0, r)) * correction.stretch for r in (high / number.value, number.value / low if low > 0 else math.inf))
    moved = "" if correction.factor == 1.0 else f"corrected by ×{correction.factor:.2f}, "
    widened = f"band ×{correction.stretch:.2g}, "
    return msgspec.structs.replace(
        number, value=value, interval=(value * math.exp(-down), value * math.exp(up)),
        method=f"{number.method}; {moved}{widened}from {correction.n} earlier predictions here",
    )  # fmt: skip


# --- what is shown ------------------------------------------------------------------------------


def summarise(entries: Sequence[LedgerEntry]) -> tuple[LedgerKind, ...]:
    """The running error of each kind, the kinds with most scored predictions first."""
    kinds: dict[str, list[LedgerEntry]] = {}
    for entry in entries:
        kinds.setdefault(entry.kind, []).append(entry)
    found = [_summary(kind, group) for kind, group in kinds.items()]
    return tuple(sorted(found, key=lambda k: (-k.scored, k.kind)))


def _summary(kind: str, entries: Sequence[LedgerEntry]) -> LedgerKind:
    scored = [e for e in entries if e.measured is not None]
    inside = sum(e.inside is True for e in scored)
    if not scored:
        return LedgerKind(kind=kind, open=len(entries), scored=0, inside=0)
    errors = [math.log((e.measured or 0.0) / e.value) for e in scored]

    def number(value: float, method: str) -> Number:
        return Number(value=value, unit="ratio", source="measured", method=method, n=len(scored))

    sizes = sorted(math.exp(abs(e)) - 1 for e in errors)
    return LedgerKind(
        kind=kind,
        open=len(entries) - len(scored),
        scored=len(scored),
        inside=inside,
        median_error=number(statistics.median(sizes), "median of the larger over the smaller of measured and predicted, less 1"),
        p90_error=number(sizes[min(len(sizes), math.ceil(0.9 * (len(sizes) + 1))) - 1], "90 % of the predictions are closer, the same measure"),
        bias=number(math.exp(statistics.median(errors)), "median of measured over predicted"),
        coverage=number(inside / len(scored), "share of the measured values inside their band"),
    )


def ledger_notes(entries: Sequence[LedgerEntry], kinds: Iterable[str]) -> tuple[Note, ...]:
    """One line on how predictions of these kinds fared so far; nothing where none was measured."""
    wanted = set(kinds)
    notes = []
    for summary in summarise([e for e in entries if e.kind in wanted]):
        if summary.scored and summary.median_error is not None:
            fared = f"{summary.inside} inside the band; median error {_percent(summary.median_error)}"
            text = f"of {summary.scored} predictions of this kind ({summary.kind}), {fared}"
            notes.append(Note(code="ledger", text=text))
    return tuple(notes)


def scored_note(entries: Sequence[LedgerEntry]) -> tuple[Note, ...]:
    """One line on the predictions that a measurement has just settled; nothing where there were none."""
    if not entries:
        return ()
    inside = sum(e.inside is True for e in entries)
    worst = max(entries, key=lambda e: abs(math.log((e.measured or 0.0) / e.value)))
    predicted, measured = (Number(value=v, unit=worst.unit, source="measured", method="ledger") for v in (worst.value, worst.measured or 0.0))
    text = (
        f"{len(entries)} earlier prediction{'s' if len(entries) > 1 else ''} measured here: {inside} inside the band; furthest off: {worst.quantity} at batch "
        f"{worst.batch_size}, predicted {format_number(predicted)}, measured {format_number(measured)}"
    )
    return (Note(code="ledger", text=text),)


def _percent(number: Number) -> str:
    return f"{100 * number.value:.0f} %" if number.value >= 0.01 else f"{100 * number.value:.1f} %"


def now() -> str:
    """The time, as entries have it."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
