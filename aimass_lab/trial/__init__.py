"""One setting on a copy of the model, measured side by side with the original, and judged."""

from .run import run_trial
from .variant import Variant, apply_setting

__all__ = ["Variant", "apply_setting", "run_trial"]
