"""How bundles, checks and services are shown."""

from __future__ import annotations

from ...dynamic_shapes import describe_sizes
from ...headlines import format_measured, format_number, headline
from ...records import Bundle, Check, Promise, RuntimeTrial, Service
from ...units import format_share
from ..page import Page, Table
from .base import lay_out, notes_of


def promise_table(promises: tuple[Promise, ...]) -> Table:
    """Each promise with what was measured and where its limit comes from."""
    words, relations = {True: "PASS", False: "FAIL", None: ""}, {"<=": "≤", ">=": "≥", "==": "="}
    rows = tuple((words[p.passed], p.name.replace("_", " "), p.measured, f"{relations[p.relation]} {format_number(p.limit)}", p.limit.method) for p in promises)
    return Table(title="Promises", columns=("", "promise", "measured", "limit", "limit comes from"), rows=rows)


def runtime_table(trials: tuple[RuntimeTrial, ...]) -> Table:
    """How the format was chosen: each one beside torch, or why it was left out."""
    rows = []
    for trial in trials:
        ratios = ", ".join(f"{speedup.ratio.value:.2f} × at {speedup.batch_size}" for speedup in trial.speedups)
        rows.append(("shipped" if trial.chosen else "", trial.format, trial.runtime, ratios or "left out", trial.left_out or ""))
    return Table(title="Formats", columns=("", "format", "runtime", "speed over torch, by batch size", ""), rows=tuple(rows))


def size_tables(record: Bundle) -> tuple[Table, ...]:
    """Sizes that a request may choose, and what one item takes at their ends."""
    places = tuple((d.name, f"{d.min} to {d.max}", ", ".join(f"axis {axis} of {name}" for name, axis in d.axes)) for d in record.dimensions)
    took = tuple((describe_sizes(point.sizes), point.latency_p50) for point in record.sizes)
    asked = Table(title="Sizes that a request may choose", columns=("size", "range", "where"), rows=places)
    measured = Table(title="One item at their ends", columns=("sizes", "p50"), rows=took)
    return tuple(table for table in (asked, measured) if table.rows)


@lay_out.register
def _(record: Bundle) -> Page:
    return Page(
        title=f"Bundle of {record.name}",
        headline=headline(record),
        facts=(("folder", record.folder), ("format", record.format), ("size", record.size_bytes), ("files", record.num_files), ("digest", record.digest)),
        tables=(promise_table(record.promises), *size_tables(record), runtime_table(record.runtimes)),
        notes=notes_of(record.notes),
        remarks=(f"Serve it with: python {record.folder}/run.py serve", f"Prove it with: python {record.folder}/run.py verify"),
    )


@lay_out.register
def _(record: Check) -> Page:
    findings = tuple((f.code, f.path, f.text) for f in record.findings)
    return Page(
        title=f"Check of {record.subject}",
        headline=_verdict(record),
        tone={True: "good", False: "bad", None: "plain"}[record.passed],
        tables=((change_table(record),) if record.changes else ())
        + ((promise_table(record.promises),) if record.promises else ())
        + ((Table(title="Findings", columns=("code", "where", "what"), rows=findings),) if findings else ()),
    )


def change_table(record: Check) -> Table:
    """Each figure beside what it was, those that got worse first."""
    from ...baseline import UNKNOWN_SPREAD, has_assumed_spread  # which reads bundles and specs: not for every result that is shown

    order = ("worse", "not judged", "better", "same")
    rows = []
    for change in sorted(record.changes, key=lambda change: order.index(change.verdict)):
        ratio = "" if change.ratio is None else f"{format_measured(change.ratio)}"
        assumed = has_assumed_spread(change.before) or has_assumed_spread(change.after)
        spread = f"measured once: a spread of {format_share(UNKNOWN_SPREAD, decimals=0)} is assumed" if assumed else ""
        rows.append((change.verdict, change.name, format_measured(change.before), format_measured(change.after), ratio, spread))
    return Table(title=f"Since {record.baseline}", columns=("", "figure", "before", "now", "now / before", ""), rows=tuple(rows))


def _verdict(record: Check) -> str:
    worse = [change.name for change in record.changes if change.verdict == "worse"]
    since = f": worse than {record.baseline}: {', '.join(worse)}" if worse else ""
    if record.passed is None and any(change.verdict == "not judged" for change in record.changes):
        return f"NOT JUDGED: what changed since {record.baseline} may be another machine's, or other work's"
    return {True: "PASS", False: f"FAIL{since}", None: "NOT JUDGED: other work kept the machine too busy"}[record.passed]


@lay_out.register
def _(record: Service) -> Page:
    return Page(title="Serving", headline=headline(record), facts=(("REST", record.url), ("gRPC", record.grpc_address), ("process", str(record.pid))))
