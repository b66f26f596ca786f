"""How long a call takes and how much memory it needs where it was not measured: with a band and a stated basis.

``target.predict_on_device(trace, target, dtype) -> Number`` is the latency of one traced call on any device;
``effects.Effects(workload, technique).at(device, batch_size=) -> Effect`` is what a technique or dtype would change.
"""

from .ladder import estimate_ladder

__all__ = ["estimate_ladder"]
