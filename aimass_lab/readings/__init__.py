"""Live readings of this machine: GPU, processor, memory, network, energy; what cannot be read says why."""

from .energy import EnergyMeter
from .nvml import driver_version
from .sampler import Monitor, Sampler, take_readings

__all__ = ["EnergyMeter", "Monitor", "Sampler", "driver_version", "take_readings"]
