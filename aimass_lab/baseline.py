"""A result against an earlier one, for a script that has to notice what got worse: beyond the spread of both, and beyond a tolerance."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import singledispatch
from pathlib import Path
from typing import Any, Literal

import msgspec

from .comparison import how_it_stands, is_doubtful
from .errors import InputError
from .records import Bundle, Change, Check, Environment, Finding, Number, Promise, Record, Rehearsal, ServingSpec, TrialResult, Unit, any_from_json, derived
from .spec import is_spec, read_documents, spec_from_data

LOWER: frozenset[Unit] = frozenset({"s", "B", "USD", "USD/h", "USD/month", "USD/item", "replica", "core", "device", "node", "J", "W"})
HIGHER: frozenset[Unit] = frozenset({"item/s", "request/s", "token/s"})
"""Units of which less, or more, is better."""
BETTER_HIGHER = frozenset({"fidelity", "agreement", "metric_variant", "speedup"})
BETTER_LOWER = frozenset({"relative_error", "metric_drop"})
"""Shares of which more, or less, is better."""
OF_THE_TOOL = frozenset({
    "profiling_overhead", "warmup_time", "solve_time", "apply_time", "first_call", "max_wait", "scale_at", "span", "min_replicas", "max_replicas",
    "size_original_bytes", "stored_original_bytes", "host_residual", "outside_operators", "operator_overhead",
})  # fmt: skip
"""Numbers of a record that are neither good nor bad, or are none of the model's."""
OF_THE_MACHINE: frozenset[Unit] = frozenset({"s", "item/s", "request/s", "token/s", "J", "W"})
"""Units of what another machine does otherwise."""
UNKNOWN_SPREAD = 0.25
"""Taken for the spread, to both sides, of what was measured once on a machine, such as a start-up time: nobody checked it."""


@dataclass(frozen=True)
class Figure:
    """One number that can get better or worse."""

    number: Number
    lower_is_better: bool


def read_baseline(text: str, history: Callable[[int], Record]) -> Record:
    """Read an earlier result.

    Args:
        text: A run's number in the history, a file with a record's JSON or a spec, or the folder of a bundle or of manifests.
        history: ``history(number) -> record``.

    Raises:
        InputError: it is none of these.
    """
    if text.isdigit():
        return history(int(text))
    path = Path(text)
    if path.is_dir():
        from .bundle import is_bundle, read_bundle
        from .export import find_spec

        found_there: Record | None = read_bundle(path) if is_bundle(path) else find_spec(path)
    else:
        found_there = read_record(path) if path.is_file() else None
    if found_there is None:
        what = "is there, and is no record" if path.exists() else "is not there"
        raise InputError(
            f"{path} {what}", help="a baseline is a run's number, a bundle's folder, a spec, manifests of ours, or what any verb printed with --json"
        )
    return found_there


def read_record(path: Path) -> Record | None:
    """The record in a file; None where there is none.

    Raises:
        SpecError: the file cannot be read or parsed.
    """
    documents = read_documents(path)
    if is_spec(documents):
        return spec_from_data(documents[0], str(path))
    if len(documents) != 1 or not isinstance(documents[0], dict) or "record" not in documents[0]:
        return None
    try:
        return any_from_json(msgspec.json.encode(documents[0]))
    except msgspec.ValidationError as error:
        raise InputError(f"{path} is a record of another version: {error}", help="make it again with this one") from None


@singledispatch
def figures_of(record: Record) -> dict[str, Figure]:
    """What of a record can get better or worse, by name."""
    return _top_level(record)


@figures_of.register
def _(record: Check) -> dict[str, Figure]:
    return _promised(record.promises)


@figures_of.register
def _(record: Bundle) -> dict[str, Figure]:
    return {**_top_level(record), **_promised(record.promises)}


@figures_of.register
def _(record: ServingSpec) -> dict[str, Figure]:
    return {**_top_level(record), **{f"rehearsed {m.name}": Figure(m.measured, m.measured.unit in LOWER) for m in _judged(record.rehearsed)}}


@figures_of.register
def _(record: Rehearsal) -> dict[str, Figure]:
    return {m.name: Figure(m.measured, m.measured.unit in LOWER) for m in _judged(record.metrics)}


@figures_of.register
def _(record: TrialResult) -> dict[str, Figure]:
    return {**_top_level(record), "speedup": Figure(record.speedup, False)}


def _judged(metrics: Iterable[Any]) -> list[Any]:
    return [m for m in metrics if m.measured.unit in LOWER | HIGHER]


def _promised(promises: Sequence[Promise]) -> dict[str, Figure]:
    return {p.name: Figure(p.measured, p.relation != ">=") for p in promises if p.measured is not None}


def _top_level(record: Record) -> dict[str, Figure]:
    found = {}
    for name in record.__struct_fields__:
        number = getattr(record, name)
        if not isinstance(number, Number) or name in OF_THE_TOOL or number.source == "user":
            continue
        if number.unit in LOWER or name in BETTER_LOWER:
            found[name] = Figure(number, True)
        elif number.unit in HIGHER or name in BETTER_HIGHER:
            found[name] = Figure(number, False)
    return found


def compare_with_baseline(check: Check, before: Record, after: Record, *, baseline: str, tolerance: float) -> Check:
    """Add to a check what changed since an earlier result, and let it fail where something got worse.

    A figure is worse when even the best case of the two spreads is a loss of more than the tolerance: the lower end of what it takes now
    over the upper end of what it took. What was measured without a spread is given `UNKNOWN_SPREAD`; what was counted or computed is
    compared as it is. Where a change may be another machine's or other work's, it is not judged.

    Args:
        check: What was found without a baseline.
        before: The earlier result.
        after: That of now; of another kind of record, those figures are compared that both have.
        baseline: What to call the earlier one.
        tolerance: Share of a figure that it may lose.

    Raises:
        InputError: they have no figure in common, or the tolerance is negative.
    """
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise InputError(f"the tolerance must be a share of at least 0, got {tolerance}", help="0.05 lets a figure lose 5 %")
    old, new = figures_of(before), figures_of(after)
    both = [name for name in old if name in new and old[name].lower_is_better == new[name].lower_is_better]
    if not both:
        kinds = " and ".join(type(record).__name__ for record in (before, after))
        raise InputError(f"{baseline} and what is checked have no figure in common: they are a {kinds}", help="compare two results of the same verb")
    moved = _other_machine(before, after)
    changes = tuple(_change(name, old[name], new[name].number, tolerance, moved) for name in both)
    verdicts = [change.verdict for change in changes]
    passed: bool | None = check.passed
    if check.passed is not False:
        passed = False if "worse" in verdicts else None if "not judged" in verdicts else check.passed
    findings = (*check.findings, *_context(before, after, moved), *_gone(old, new))
    return msgspec.structs.replace(check, passed=passed, findings=findings, baseline=baseline, changes=changes)


def _change(name: str, before: Figure, now: Number, tolerance: float, moved: bool) -> Change:
    was = before.number
    verdict: Literal["better", "same", "worse", "not judged"] = "same"
    if was.unit != now.unit:
        verdict = "not judged"
    elif is_doubtful(was, now):
        # Other work only takes: a time or a throughput that holds beside it holds.
        holds = now.unit in OF_THE_MACHINE and not is_doubtful(was) and not _is_worse(before, msgspec.structs.replace(now, quality="ok"), tolerance)
        verdict = "same" if holds else "not judged"
    elif _is_worse(before, now, tolerance):
        other = now.unit in OF_THE_MACHINE and (moved or (was.environment and now.environment and was.environment != now.environment))
        verdict = "not judged" if other else "worse"
    elif how_it_stands(now, was, spread=_spread) == ("lower" if before.lower_is_better else "higher"):
        verdict = "better"
    return Change(name=name, before=was, after=now, ratio=_ratio(was, now), lower_is_better=before.lower_is_better, verdict=verdict)


def _is_worse(before: Figure, now: Number, tolerance: float) -> bool:
    """Whether even the best case is a loss of more than the tolerance."""
    if before.lower_is_better:
        return how_it_stands(now, before.number, tolerance=tolerance, spread=_spread) == "higher"
    return how_it_stands(before.number, now, tolerance=tolerance, spread=_spread) == "higher"


def has_assumed_spread(number: Number) -> bool:
    """Whether it was measured on a machine and nothing says how far it moves from one time to the next."""
    return number.interval is None and number.weakest_source == "measured" and number.unit in OF_THE_MACHINE


def _spread(number: Number) -> tuple[float, float]:
    if has_assumed_spread(number):
        return number.value * (1 - UNKNOWN_SPREAD), number.value * (1 + UNKNOWN_SPREAD)
    return number.ends


def _ratio(was: Number, now: Number) -> Number | None:
    (low_was, high_was), (low_now, high_now) = _spread(was), _spread(now)
    if was.unit != now.unit or low_was <= 0:
        return None
    spread = low_was < high_was or low_now < high_now
    return derived(
        now.value / was.value, "ratio", "now / before", [("before", was), ("now", now)],
        interval=(low_now / high_was, high_now / low_was) if spread else None, interval_kind="from the ends of both spreads" if spread else None,
    )  # fmt: skip


def _other_machine(before: Record, after: Record) -> bool:
    a, b = (getattr(record, "environment", None) for record in (before, after))
    return isinstance(a, Environment) and isinstance(b, Environment) and a.id != b.id


def _context(before: Record, after: Record, moved: bool) -> list[Finding]:
    """What else differs, and speaks against comparing the two."""
    found = []
    was_kind, kind = (type(record).__name__ for record in (before, after))
    if was_kind != kind:
        text = f"the baseline is a {was_kind} and what is checked a {kind}: figures of the same name are compared, which may have been found in other ways"
        found.append(Finding(code="W-KINDS", path="/", text=text))
    a, b = (getattr(record, "model", None) for record in (before, after))
    if getattr(a, "digest", None) != getattr(b, "digest", None) and a is not None and b is not None:
        text = f"the models differ: {getattr(a, 'name', a)} ({getattr(a, 'digest', '')}) before, {getattr(b, 'name', b)} ({getattr(b, 'digest', '')}) now"
        found.append(Finding(code="W-MODEL", path="/model", text=text))
    if moved:
        was, now = (record.environment for record in (before, after))  # type: ignore[attr-defined]  # both have one: they moved
        text = f"measured elsewhere: on {was.device_name} ({was.id}) before, on {now.device_name} ({now.id}) now; what took longer is not judged"
        found.append(Finding(code="W-ENVIRONMENT", path="/environment", text=text))
    for name in before.__struct_fields__:
        x, y = getattr(before, name), getattr(after, name, None)
        if isinstance(x, Number) and isinstance(y, Number) and "user" in (x.source, y.source):
            x, y = x.value, y.value
        elif name != "batch_size" or y is None:
            continue
        if x != y:
            found.append(Finding(code="W-ASKED", path=f"/{name}", text=f"what was asked differs: {x:g} before, {y:g} now"))
    return found


def _gone(old: dict[str, Figure], new: dict[str, Figure]) -> list[Finding]:
    gone = sorted(set(old) - set(new))
    return [Finding(code="W-NOT-COMPARED", path="/", text=f"the baseline has {', '.join(gone)}, and now there is none")] if gone else []
