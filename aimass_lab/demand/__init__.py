"""What one call of a model asks of any device, without running it."""

from .estimate import estimate_demand

__all__ = ["estimate_demand"]
