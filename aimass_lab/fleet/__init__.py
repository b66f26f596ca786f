"""Several models on one fleet: the cheapest way to serve all of them, or the fairest where there is not enough."""

from .allocate import Terms, make_allocation

__all__ = ["Terms", "make_allocation"]
