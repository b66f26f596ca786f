"""How long one training step takes: forward, backward and the optimizer's update, timed on a copy of the model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..environment import LoadMeter, read_environment
from ..errors import InputError, ModelError
from ..preserve import preserved, private_copy
from ..records import Environment, Note, Number
from ..timing import latency_number, sample_latency
from ..tracing.training import OPTIMIZERS, scalar_loss

if TYPE_CHECKING:
    import torch

    from ..workload import Workload


@dataclass(frozen=True)
class StepTimes:
    """What steps of one size took."""

    samples_s: tuple[float, ...]
    latency_p50: Number
    environment: Environment
    notes: tuple[Note, ...]


def time_training_step(workload: Workload, *, batch_size: int | None = None, optimizer: str = "adamw", budget_s: float = 1.0) -> StepTimes:
    """Train a copy of the model for some steps where it is, and time each; the model itself and the random state stay as they were.

    Args:
        workload: Model and example inputs.
        batch_size: Items per step; as many as the example inputs hold if not given.
        optimizer: "adamw", "sgd" or "none".
        budget_s: Seconds to spend.

    Raises:
        InputError: no such optimizer, nothing to train, or no output with a gradient.
        ModelError: the model cannot be copied, or raised while it was trained.
        DoesNotFitError: there is no memory for a copy.
    """
    device = workload.torch_device
    with LoadMeter() as meter, training_steps(workload, batch_size=batch_size, optimizer=optimizer) as step:
        samples = sample_latency(step, device, budget_s=budget_s, warmup=2)
    environment = read_environment(device, load=meter)
    number = latency_number(samples, 50, environment=environment.id, quality="noisy" if meter.noisy else "ok")
    return StepTimes(tuple(samples), number, environment, tuple(meter.notes()))


@contextlib.contextmanager
def training_steps(workload: Workload, *, batch_size: int | None = None, optimizer: str = "adamw") -> Iterator[Callable[[], None]]:
    """Give a function that makes one training step on a copy of the model.

    The loss is the outputs' own where they have one, else the sum of the means of all floating-point outputs: what a loss of yours costs
    besides is not in it, nor is the loading of data.

    Args:
        workload: Model and example inputs.
        batch_size: Items per step; as many as the example inputs hold if not given.
        optimizer: "adamw", "sgd" or "none".

    Raises:
        InputError: no such optimizer, nothing to train, or no output with a gradient.
        ModelError: the model cannot be copied, or raised while it was trained.
        DoesNotFitError: there is no memory for a copy.
    """
    import torch

    if optimizer not in OPTIMIZERS:
        raise InputError(f"no optimizer called {optimizer!r}", help=f"there are: {', '.join(OPTIMIZERS)}")
    call = workload.call if batch_size is None else workload.call.with_batch(batch_size)
    trained = private_copy(workload.model, alike=True)
    parameters: list[torch.Tensor] = [p for p in trained.parameters() if p.requires_grad]
    if not parameters:
        raise InputError(f"{workload.name} has no parameter to train", help="set requires_grad on those that should be trained")
    make = OPTIMIZERS[optimizer]
    update = None if make is None else make(parameters, workload.torch_device.type == "cuda")

    def step() -> None:
        try:
            with torch.enable_grad():
                for parameter in parameters:
                    parameter.grad = None
                scalar_loss(trained(*call.args, **call.kwargs)).backward()
                if update is not None:
                    update.step()
        except InputError:
            raise
        except Exception as error:
            text = f"a training step of {workload.name} on {call.describe()} raised {type(error).__name__}: {error}"
            raise ModelError(text, help="train it for one step yourself, or give the time of a step") from error

    with preserved(trained, evaluate=False, values=False):
        for module in trained.modules():  # by attribute, because a model may override train() to do more than set the flag
            module.__dict__["training"] = True
        yield step
