"""What an exporter of jobs is."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import SpecError
from ...records import JobPlan, PlannedJob
from ...registry import Registry
from ...spec import dns_label
from ..base import as_read, member_text, read_member

JOBS_FILE = "aimass-jobs.json"
"""Under which a plan of jobs lies beside what was made from it."""


@dataclass(frozen=True, kw_only=True)
class JobExporter:
    """Writes a plan of jobs for one platform; its fields are its options."""

    def export(self, plan: JobPlan) -> dict[str, str]:
        """Relative path -> text; nothing touches the disk.

        Raises:
            SpecError: not everything holds in the plan, or it does not say of a job what runs it and with how much.
        """
        if not plan.feasible:
            raise SpecError("not everything holds in this plan, so nothing is written from it", help=plan.binding)
        for job in plan.jobs:
            _check(job)
        names = [object_name(plan, job) for job in plan.jobs]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise SpecError(f"two jobs would be called {twice} on a cluster", help="give them names that differ in letters and digits")
        return self.write(as_read(plan, job_exporter_text(self)))

    def write(self, plan: JobPlan) -> dict[str, str]:
        """What `export` gives, for a plan that can be written."""
        raise NotImplementedError


JOB_EXPORTERS: Registry[type[JobExporter]] = Registry("exporter of jobs", "aimass_lab.export.jobs")


def read_job_exporter(text: str) -> JobExporter:
    """Make the exporter that a text names: ``"kubernetes"`` or ``"kueue(cohort=team)"``.

    Raises:
        UnknownNameError: there is no such exporter.
        InputError: it has no such option or value.
    """
    return read_member(JOB_EXPORTERS, text)


def job_exporter_text(exporter: JobExporter) -> str:
    """The text that `read_job_exporter` makes this exporter of."""
    return member_text(JOB_EXPORTERS, exporter)


def object_name(plan: JobPlan, job: PlannedJob) -> str:
    """What the job is called on a cluster."""
    return dns_label(f"{plan.name}-{job.name}")


def _check(job: PlannedJob) -> None:
    if job.image is None or not job.command:
        text = f"the job {job.name!r} does not say what runs it"
        raise SpecError(text, help='add to its table: image = "registry/name:tag" and command = ["python", "job.py"]')
    missing = [name for name, value in (("cores", job.cores), ("memory", job.memory_bytes)) if value is None]
    if missing:
        raise SpecError(f"nothing says how much {missing[0]} a worker of the job {job.name!r} needs", help=f"add to its table: {missing[0]} = ...")
