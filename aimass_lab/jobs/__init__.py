"""Batch, training and search jobs that share devices with models online: simulated under scheduling policies, quotas and priorities."""

from .mix import Mix, Online, Task, draw_mix
from .plan import Given, Terms, plan_jobs, question_of
from .simulate import Question
from .table import JobsFile, JobTable, read_jobs, times_of

__all__ = ["Given", "JobTable", "JobsFile", "Mix", "Online", "Question", "Task", "Terms", "draw_mix", "plan_jobs", "question_of", "read_jobs", "times_of"]
