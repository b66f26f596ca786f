"""How bundles, checks and services are shown."""

from __future__ import annotations

from ...headlines import format_number, headline
from ...records import Bundle, Check, Promise, RuntimeTrial, Service
from ..page import Page, Table
from .base import lay_out, notes_of


def promise_table(promises: tuple[Promise, ...]) -> Table:
    """Each promise with what was measured and where its limit comes from."""
    words = {True: "PASS", False: "FAIL", None: ""}
    rows = tuple((words[p.passed], p.name, p.measured, f"{p.relation} {format_number(p.limit)}", p.limit.method) for p in promises)
    return Table(title="Promises", columns=("", "promise", "measured", "limit", "limit comes from"), rows=rows)


def runtime_table(trials: tuple[RuntimeTrial, ...]) -> Table:
    """How the format was chosen: each one beside torch, or why it was left out."""
    rows = []
    for trial in trials:
        ratios = ", ".join(f"{speedup.ratio.value:.2f}x at {speedup.batch_size}" for speedup in trial.speedups)
        rows.append(("shipped" if trial.chosen else "", trial.format, trial.runtime, ratios or "left out", trial.left_out or ""))
    return Table(title="Formats", columns=("", "format", "runtime", "speed over torch, by batch size", ""), rows=tuple(rows))


@lay_out.register
def _(record: Bundle) -> Page:
    return Page(
        title=f"Bundle of {record.name}",
        headline=headline(record),
        facts=(("folder", record.folder), ("format", record.format), ("size", record.size_bytes), ("files", record.num_files), ("digest", record.digest)),
        tables=(promise_table(record.promises), runtime_table(record.runtimes)),
        notes=notes_of(record.notes),
        remarks=(f"Serve it with: python {record.folder}/run.py serve", f"Prove it with: python {record.folder}/run.py verify"),
    )


@lay_out.register
def _(record: Check) -> Page:
    findings = tuple((f.code, f.path, f.text) for f in record.findings)
    return Page(
        title=f"Check of {record.subject}",
        headline={True: "PASS", False: "FAIL", None: "NOT JUDGED: other work kept the machine too busy"}[record.passed],
        tone={True: "good", False: "bad", None: "plain"}[record.passed],
        tables=((promise_table(record.promises),) if record.promises else ())
        + ((Table(title="Findings", columns=("code", "where", "what"), rows=findings),) if findings else ()),
    )


@lay_out.register
def _(record: Service) -> Page:
    return Page(title="Serving", headline=headline(record), facts=(("REST", record.url), ("gRPC", record.grpc_address), ("process", str(record.pid))))
