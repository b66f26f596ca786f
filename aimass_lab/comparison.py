"""How one measured number stands to another, beyond what chance moves: the rule behind every verdict, and two records side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from .errors import InputError
from .headlines import format_number
from .records import Comparison, Difference, ModuleTime, Note, Number, Profile, Record, Run, derived
from .units import format_share

Standing = Literal["lower", "same", "higher", "cannot tell"]


def is_doubtful(*numbers: Number) -> bool:
    """Whether no verdict may rest on these: one was taken while others had the machine, and says nothing, however narrow its interval is."""
    return any(number.quality == "noisy" for number in numbers)


def how_it_stands(number: Number, other: Number, *, tolerance: float = 0.0, spread: Callable[[Number], tuple[float, float]] | None = None) -> Standing:
    """How `number` stands to `other`, which is what every verdict of better or worse comes from.

    Lower or higher only where their intervals lie apart, by more than the tolerance where there is one. Of figures that are known to be
    noisy it cannot be told.

    Args:
        number: What is judged.
        other: What it is held against.
        tolerance: Share of `other` by which they may lie apart.
        spread: Gives the ends of a number; those of its interval, or its value twice, if not given.
    """
    if is_doubtful(number, other):
        return "cannot tell"
    (low, high), (least, most) = (one.ends if spread is None else spread(one) for one in (number, other))
    if low > most * (1 + tolerance):
        return "higher"
    return "lower" if high * (1 + tolerance) < least else "same"


def compare_records(before: tuple[Run, Record], after: tuple[Run, Record]) -> Comparison:
    """Compare every number that both records have at their top level.

    Two measured numbers differ when their intervals do not overlap; numbers without an
    interval differ when their values do. Of those that were taken on a busy machine it cannot be told.

    Args:
        before: A run and its record.
        after: The other run, of the same verb.

    Raises:
        InputError: the two are records of different kinds.
    """
    (run_before, a), (run_after, b) = before, after
    if type(a) is not type(b):
        raise InputError(
            f"run {run_before.id} is a {run_before.verb} and run {run_after.id} a {run_after.verb}; they have no numbers in common",
            help="compare two runs of the same verb",
        )
    pairs = [(name, getattr(a, name), getattr(b, name)) for name in a.__struct_fields__]
    differences = [_difference(name, x, y) for name, x, y in pairs if isinstance(x, Number) and isinstance(y, Number)]
    notes = [*_context_notes(run_before, a, run_after, b), *_noise_note(differences)]
    if isinstance(a, Profile) and isinstance(b, Profile) and not is_doubtful(a.latency_p50, b.latency_p50):
        notes += _module_note(a, b)
    return Comparison(before=run_before, after=run_after, differences=tuple(differences), notes=tuple(notes))


def _difference(name: str, before: Number, after: Number) -> Difference:
    ratio = None if before.value == 0 else derived(after.value / before.value, "ratio", "after / before", [("before", before), ("after", after)])
    verdict: Literal["lower", "higher", "same within spread", "changed", "cannot tell"]
    if before.unit != after.unit:
        verdict = "changed"
    else:
        standing = how_it_stands(after, before)
        verdict = "same within spread" if standing == "same" else standing
    return Difference(name=name, before=before, after=after, ratio=ratio, verdict=verdict)


def _noise_note(differences: Sequence[Difference]) -> list[Note]:
    untold = [d for d in differences if d.verdict == "cannot tell"]
    if not untold:
        return []
    which = [word for word in ("before", "after") if any(is_doubtful(getattr(d, word)) for d in untold)]
    text = f"the machine was busy in the run {' and '.join(which)}: of {len(untold)} figures it cannot be told how they changed; measure again when it is quiet"
    return [Note(code="W-NOISY", text=text)]


def _context_notes(run_before: Run, a: Record, run_after: Run, b: Record) -> list[Note]:
    notes = []
    if run_before.model_digest != run_after.model_digest:
        notes.append(
            Note(code="W-MODEL", text=f"the models differ: {run_before.model} ({run_before.model_digest}) and {run_after.model} ({run_after.model_digest})")
        )
    for name, what in (("batch_size", "batch sizes"), ("environment", "environments")):
        x, y = getattr(a, name, None), getattr(b, name, None)
        if name == "environment" and x is not None and y is not None:
            x, y = (f"{e.device_name}, {e.threads} threads, torch {e.torch} ({e.id})" for e in (x, y))
        if x != y:
            notes.append(Note(code=f"W-{name.upper()}", text=f"the {what} differ: {x} and {y}"))
    return notes


def _module_note(a: Profile, b: Profile) -> list[Note]:
    """Name the module that explains most of a change of the whole."""
    change = b.latency_p50.value - a.latency_p50.value
    before = {m.name: m for m in a.modules}
    moved: list[tuple[float, ModuleTime]] = [(m.self_time.value - before[m.name].self_time.value, m) for m in b.modules if m.name in before]
    if not moved or change == 0:
        return []
    delta, module = max(moved, key=lambda pair: pair[0] * change)
    share = delta / change
    if share < 0.2:
        return []
    times = f"took {format_number(before[module.name].self_time)} and takes {format_number(module.self_time)}"
    text = f"{module.name or 'the model itself'} {times}: {format_share(min(share, 1))} of the change of the median"
    return [Note(code="module", text=text)]
