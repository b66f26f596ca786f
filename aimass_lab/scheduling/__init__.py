"""Scheduling policies: which waiting requests go into the next batch. One policy a file."""

from __future__ import annotations

from .base import POLICIES, Policy, Queue, Request, make_policy

__all__ = ["POLICIES", "Policy", "Queue", "Request", "make_policy"]
