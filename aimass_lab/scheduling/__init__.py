"""Scheduling policies, one a file: which waiting requests go into the next batch, and which jobs take turns on a device."""

from __future__ import annotations

from ._loop import Job, Lane, Limits, Schedule, SimulatedLane, Turn, run_jobs
from .base import POLICIES, Policy, Queue, Request, make_policy, read_policy

__all__ = ["POLICIES", "Job", "Lane", "Limits", "Policy", "Queue", "Request", "Schedule", "SimulatedLane", "Turn", "make_policy", "read_policy", "run_jobs"]
