"""Kubernetes: a Job each, and the priority classes that order them."""

from __future__ import annotations

from dataclasses import dataclass

from ...records import JobPlan
from .._yaml import dump
from ._objects import config_map, header, job, priority_class
from .base import JOB_EXPORTERS, JobExporter, object_name


@JOB_EXPORTERS.register("kubernetes")
@dataclass(frozen=True, kw_only=True)
class KubernetesJobs(JobExporter):
    """One file an object; together they are what ``kubectl apply -f FOLDER`` wants."""

    def write(self, plan: JobPlan) -> dict[str, str]:
        """A Job each, a priority class for each priority, and the plan beside them."""
        documents = {f"{object_name(plan, one)}.yaml": job(plan, one) for one in plan.jobs}
        documents |= {f"priority-{priority}.yaml": priority_class(plan, priority) for priority in sorted({one.priority for one in plan.jobs})}
        documents["job-plan-configmap.yaml"] = config_map(plan)
        limits = [f"at most {t.max_jobs} jobs of {t.name} at once: plain Kubernetes has no such limit" for t in plan.tenants if t.max_jobs is not None]
        lines = header(plan, *limits)
        return {name: dump(document, lines) for name, document in documents.items()}
