"""What one call of a model asks of any device, without running it."""

from .estimate import estimate_demand
from .ladder import estimate_ladder

__all__ = ["estimate_demand", "estimate_ladder"]
