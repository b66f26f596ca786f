"""What is done to a copy of a model: steps in their order."""

from __future__ import annotations

import msgspec

OptionValue = bool | int | float | str | None

ORIGINAL = "none"
"""The name of the recipe without steps: the model as it is."""


class Step(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One technique with its options."""

    technique: str
    options: dict[str, OptionValue] = {}
    """Fields of the technique that differ from its defaults."""

    @property
    def name(self) -> str:
        """``low_rank(energy=0.9)``, as a recipe's text has it."""
        options = ",".join(f"{key}={_word(value)}" for key, value in self.options.items())
        return self.technique + (f"({options})" if options else "")


class Recipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An ordered list of steps; the same recipe with the same seed gives the same copy."""

    steps: tuple[Step, ...] = ()
    seed: int = 0
    """Of whatever a step draws by lot: the order of training samples, starts of a clustering."""

    @property
    def name(self) -> str:
        """``channel_pruning(ratio=0.5) + recover + onnxruntime``; ``none`` without steps. The seed is not in it."""
        return " + ".join(step.name for step in self.steps) or ORIGINAL


def _word(value: OptionValue) -> str:
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)
