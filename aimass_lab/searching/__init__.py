"""Many settings tried, best first; knows only a function to call, and nothing of what it optimises."""

from .engine import Search
from .objectives import make_limits, make_objectives
from .space import Space

__all__ = ["Search", "Space", "make_limits", "make_objectives"]
