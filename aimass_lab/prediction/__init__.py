"""How long a call takes and how much memory it needs where it was not measured: with a band and a stated basis."""

from .ladder import estimate_ladder

__all__ = ["estimate_ladder"]
