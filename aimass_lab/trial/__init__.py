"""One recipe on a copy of the model, measured side by side with the original, and judged."""

from .run import run_trial
from .session import TrialSession
from .variant import Variant, apply_recipe

__all__ = ["TrialSession", "Variant", "apply_recipe", "run_trial"]
