"""Batch, training and search jobs that share devices with models online: simulated under scheduling policies, quotas and priorities."""

from .mix import Online, Task
from .plan import Given, Terms, plan_jobs
from .table import JobsFile, JobTable, read_jobs, times_of

__all__ = ["Given", "JobTable", "JobsFile", "Online", "Task", "Terms", "plan_jobs", "read_jobs", "times_of"]
