"""What jobs are asked for: read from a user's table, or from one line each."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, get_args

import msgspec

from ..errors import InputError, reason_of
from ..options import read_call, read_table, read_tables
from ..records import JobKind
from ..units import parse_bytes, parse_seconds

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

COUNTS: dict[JobKind, str] = {"batch": "items", "training": "steps", "search": "trials"}
"""The field that says how long a job of a kind is."""
HELP = "for example nightly='batch(items=20000, batch=32, by=10min)', tune='training(steps=500)' or sweep='search(trials=20, steps=100, parallel=2)'"

_Count = Annotated[int, msgspec.Meta(ge=1)]
_Positive = Annotated[float, msgspec.Meta(gt=0)]
_Priority = Annotated[int, msgspec.Meta(ge=0)]


class JobTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One table ``[jobs.NAME]``, as it is written."""

    kind: JobKind
    model: str | None = None
    """The study's own if not given."""
    technique: str = "none"
    """Of a batch: what computes instead of the original."""
    items: _Count | None = None
    """Of a batch."""
    steps: _Count | None = None
    """Of a training run, or of one trial."""
    trials: _Count | None = None
    """Of a search."""
    batch: _Count | None = None
    """Items of one call or step; of a batch the size that takes least per item, else as many as the example inputs hold."""
    time: float | str | None = None
    """Of one call or step; measured or predicted if not given."""
    parallel: _Count | None = None
    """Most devices at once; all that there are if not given, and one for training."""
    at: float | str | None = None
    """When it is submitted; at once if not given."""
    by: float | str | None = None
    """Deadline, from the start of the plan."""
    after: tuple[str, ...] = ()
    """Jobs that must have ended before."""
    tenant: str = ""
    """Stands for itself if not given."""
    priority: _Priority = 1
    """0 is the most urgent, and what models online have."""
    cores: _Positive | None = None
    """Of one worker; as many threads as were measured with if not given."""
    memory: float | str | None = None
    """Of one worker; what was measured or estimated if not given."""
    image: str | None = None
    """What runs it on a cluster."""
    command: tuple[str, ...] = ()


class TenantTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One table ``[tenants.NAME]``, as it is written."""

    models: tuple[str, ...] = ()
    """Models online that are its own."""
    weight: _Positive = 1.0
    max_jobs: _Count | None = None
    device_seconds: float | str | None = None
    """Most device time of its jobs together: 3600, or "2h"."""


class JobsFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All of it."""

    jobs: dict[str, JobTable] = {}
    tenants: dict[str, TenantTable] = {}


FIELDS = f"fields of a job: {', '.join(JobTable.__struct_fields__)}; of a tenant: {', '.join(TenantTable.__struct_fields__)}"


@dataclass(frozen=True, kw_only=True)
class Times:
    """The times of a table in seconds, and its memory in bytes."""

    call_s: float | None
    at_s: float
    by_s: float
    memory_bytes: float | None


def read_jobs(path: Path | None, lines: Mapping[str, str] | None = None) -> JobsFile:
    """Read the tables of a TOML file, and jobs that are given in a line each.

    Args:
        path: A file with a table ``[jobs.NAME]`` for each job and ``[tenants.NAME]`` for each tenant.
        lines: Name -> ``"batch(items=20000, by=10min)"``; goes before a table of the same name.

    Raises:
        InputError: the file cannot be read, a field is unknown or out of range, or there is no job at all.
    """
    written = _read(path) if path else JobsFile()
    jobs = {**written.jobs, **{name: _of_line(name, text) for name, text in (lines or {}).items()}}
    if not jobs:
        raise InputError(f"there is no job{f' in {path}' if path else ''}", help=f"give a table [jobs.NAME] for each, or {HELP}")
    for name, job in jobs.items():
        _check(name, job, jobs)
    return JobsFile(jobs=jobs, tenants=written.tenants)


def times_of(name: str, job: JobTable) -> Times:
    """Read what is written as text.

    Raises:
        InputError: it is no time or no size, or the deadline comes before the job.
    """
    at_s = 0.0 if job.at in (None, 0) else parse_seconds(job.at)
    by_s = float("inf") if job.by is None else parse_seconds(job.by)
    if by_s <= at_s:
        raise InputError(f"job {name!r} is to end by {job.by} and is submitted at {job.at}", help="both count from the start of the plan")
    return Times(
        call_s=None if job.time is None else parse_seconds(job.time),
        at_s=at_s,
        by_s=by_s,
        memory_bytes=None if job.memory is None else parse_bytes(job.memory),
    )


def _read(path: Path) -> JobsFile:
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"cannot read the jobs {path}: {reason_of(error)}", help="it is a TOML file with a table [jobs.NAME] for each job") from error
    return read_tables(tables, JobsFile, {"jobs": JobTable, "tenants": TenantTable}, str(path), help=FIELDS, strict=False)


def _of_line(name: str, text: str) -> JobTable:
    kind, options = read_call(text, what="is no job", help=HELP)
    lists = {key: tuple(options.pop(key).split("+")) for key in ("after",) if key in options}
    if "command" in options:
        raise InputError(f"job {name}={text}: a command stands in a file's table", help='command = ["python", "train.py"]')
    return read_table({"kind": kind, **options, **lists}, JobTable, f"job {name}={text}", help=FIELDS, strict=False)


def _check(name: str, job: JobTable, jobs: Mapping[str, JobTable]) -> None:
    length = COUNTS[job.kind]
    if getattr(job, length) is None:
        raise InputError(f"job {name!r} is a {job.kind} job and does not say how many {length}", help=f"give {length}")
    for field, kinds in (("items", ("batch",)), ("trials", ("search",)), ("steps", ("training", "search"))):
        if getattr(job, field) is not None and job.kind not in kinds:
            raise InputError(f"job {name!r} is a {job.kind} job, which has no {field}", help=f"kinds of jobs: {', '.join(get_args(JobKind))}")
    if job.kind == "training" and (job.parallel or 1) > 1:
        text = f"job {name!r} trains on {job.parallel} devices at once, and jobs whose parts need each other at the same time are not simulated"
        raise InputError(text, help="leave parallel out; a search of that many trials may run side by side")
    for other in job.after:
        if other not in jobs:
            raise InputError(f"job {name!r} comes after {other!r}, which is no job here", help=f"jobs: {', '.join(jobs)}")
    if name in _before(name, jobs):
        raise InputError(f"job {name!r} would have to come after itself", help="let `after` form no circle")
    times_of(name, job)


def _before(name: str, jobs: Mapping[str, JobTable]) -> set[str]:
    """All jobs that must have ended before a job."""
    found: set[str] = set()
    to_see = list(jobs[name].after)
    while to_see:
        other = to_see.pop()
        if other not in found and other in jobs:
            found.add(other)
            to_see += jobs[other].after
    return found
