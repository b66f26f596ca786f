"""What this notebook knows so far about one model, and the verbs that find out more."""

from __future__ import annotations

from .base import StudyState

# Verbs are listed in the order in which these files are read: that of the work.
# isort: off
from .measuring import Measuring
from .estimating import Estimating
from .trying import Trying
from .shipping import Shipping  # noqa: F401  its verbs come before those of the next
from .rehearsing import Rehearsing
from .following import Following
from .rotating import Rotating
from .allocating import Allocating  # noqa: F401  as above
from .scheduling import Scheduling
from .showing import Showing, Workbench
# isort: on

__all__ = ["Study", "StudyState", "Workbench"]


class Study(Measuring, Estimating, Trying, Rehearsing, Following, Rotating, Scheduling, Showing):
    """One model, its inputs, and everything found out about it.

    The model is never changed: it is run in place with everything put back afterwards, and every
    technique works on a copy.

    Args:
        model: A `torch.nn.Module`, or a `Workload`, and then nothing else but `store`.
        inputs: What the model is called with; see `Workload`.
        data: Labelled data, ``(inputs, labels)``.
        metric: ``metric(outputs, labels) -> float``, higher is better.
        loss: ``loss(outputs, labels) -> scalar tensor``.
        train: Samples to learn from and to calibrate with: ``(inputs, labels)`` or inputs alone; never judged on.
        students: Smaller networks by name, to distil the model into.
        batch_axis: The axis that counts the items.
        dynamic_shapes: Other sizes that requests may choose, such as ``"1=1..512"``; see `Workload`.
        name: What to call the model.
        store: The history's file; by default ``$AIMASS_STORE`` or the user's data folder.

    Raises:
        InputError: model or inputs cannot be used.
    """
