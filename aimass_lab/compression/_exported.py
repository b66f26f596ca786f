"""What steps that export a model tell about the limits of the result."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..records import Note

if TYPE_CHECKING:
    from ..formats._runtime import RuntimeModule
    from ..formats.signature import Signature
    from .base import Context


def note_limits(module: RuntimeModule, signature: Signature, context: Context) -> None:
    """Say where the exported model takes or returns less than the model did."""
    if not signature.batched:
        text = f"the exported model takes the batch size of the example inputs only: {signature.unbatched_because}"
        context.notes.append(Note(code="W-NOT-BATCHED", text=text))
    if module.interface.dropped:
        kinds = ", ".join(sorted(set(module.interface.dropped)))
        text = f"the outputs hold objects that no runtime can return ({kinds}); None takes their place"
        context.notes.append(Note(code="W-OUTPUT-DROPPED", text=text))
