"""What a model puts on a network: requests, copies between host and device, and traffic between devices."""

from .estimate import estimate_network
from .scenario import Scenario, make_scenario

__all__ = ["Scenario", "estimate_network", "make_scenario"]
