"""Plans devices, replicas and batching by simulating the queue: arrivals and service times in, a plan out."""

from .plan import make_plan

__all__ = ["make_plan"]
