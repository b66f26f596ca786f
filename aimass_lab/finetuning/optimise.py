"""Makes steps: optimiser, learning rate over time, clipping, and what earlier steps of a recipe ask training to hold to."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import nn

from .settings import FineTuneSettings

Constraint = Callable[[nn.Module], None]
FIRST_LOSS_SCALE = 2.0**12
"""What losses of a float16 model are multiplied by, so that small gradients do not round to 0; halved when they overflow."""


def learning_rate_at(step: int, num_steps: int, settings: FineTuneSettings) -> float:
    """Learning rate of the step with the index `step`."""
    if settings.schedule == "constant":
        return settings.learning_rate
    num_warmup = math.ceil(settings.warmup * num_steps)
    if step < num_warmup:
        return settings.learning_rate * (step + 1) / num_warmup
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - num_warmup) / max(1, num_steps - num_warmup)))


class Stepper:
    """Turns gradients into steps.

    A parameter of 16 bits has a copy in 32 bits that the steps add up in: in 16 bits most of them would round to nothing.

    Args:
        model: What is trained, for the constraints.
        parameters: Those that are trained.
        settings: How.
        num_steps: Steps there will be at most.
        constraints: Called on the model after each step.
    """

    def __init__(
        self, model: nn.Module, parameters: Sequence[nn.Parameter], settings: FineTuneSettings, num_steps: int, constraints: Sequence[Constraint]
    ) -> None:
        self._model = model
        self._parameters = parameters
        self._settings = settings
        self._num_steps = num_steps
        self._constraints = constraints
        self._masters = [p.detach().float() if _is_short(p) else p for p in parameters]
        self._scale = FIRST_LOSS_SCALE if any(p.dtype == torch.float16 for p in parameters) else 1.0
        self._optimizer = _make_optimizer(self._masters, settings)
        self._share = 1.0
        self.num_done = 0

    @property
    def num_bytes(self) -> int:
        """Memory of gradients, of what the optimiser keeps per parameter, and of 32-bit copies."""
        kept = 2 if self._settings.optimizer == "adamw" else int(self._settings.momentum > 0)
        long = sum(m.numel() * m.element_size() for m in self._masters)
        copies = sum(2 * m.numel() * m.element_size() for m, _ in self._copied())  # each with its gradient
        return kept * long + copies + sum(p.numel() * p.element_size() for p in self._parameters)

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of `loss` to those there are, of 16-bit parameters in 32 bits."""
        (loss * self._scale).backward()
        for master, parameter in self._copied():
            if parameter.grad is not None:
                gradient = parameter.grad.float()
                master.grad = gradient if master.grad is None else master.grad + gradient
                parameter.grad = None

    def step(self) -> bool:
        """Make a step of the gradients added up; False where they are not finite, and none is made."""
        gradients = [m.grad for m in self._masters if m.grad is not None]
        if self._scale != 1:
            for gradient in gradients:
                gradient /= self._scale
        norm = torch.nn.utils.get_total_norm(gradients)
        usable = bool(torch.isfinite(norm))
        if usable:
            if self._settings.gradient_clip is not None:
                torch.nn.utils.clip_grads_with_norm_(self._masters, self._settings.gradient_clip, norm)
            for group in self._optimizer.param_groups:
                group["lr"] = self._share * learning_rate_at(self.num_done, self._num_steps, self._settings)
            self._optimizer.step()
            self._hold()
        self.forget_gradients()
        self.num_done += 1
        if not usable and self._scale > 1:  # float16 overflows before anything is wrong
            self._scale /= 2
            return True
        return usable

    def start_over(self, share: float) -> None:
        """Forget the steps made, after the parameters were put back, and go on with `share` of the learning rate."""
        self._share *= share
        for master, parameter in self._copied():
            master.copy_(parameter.float())
        self._optimizer = _make_optimizer(self._masters, self._settings)

    def forget_gradients(self) -> None:
        """Give the gradients' memory back."""
        for tensor in (*self._parameters, *self._masters):
            tensor.grad = None

    def _copied(self) -> list[tuple[torch.Tensor, nn.Parameter]]:
        return [(m, p) for m, p in zip(self._masters, self._parameters, strict=True) if m is not p]

    @torch.no_grad()
    def _hold(self) -> None:
        """Give the model the values of the 32-bit copies, put it back to what it is held to, and let the copies follow."""
        pairs = self._copied()
        for master, parameter in pairs:
            parameter.copy_(master)
        if not self._constraints:
            return
        rounded = [parameter.clone() for _, parameter in pairs]
        for constraint in self._constraints:
            constraint(self._model)
        for (master, parameter), before in zip(pairs, rounded, strict=True):
            master.copy_(torch.where(parameter == before, master, parameter.float()))


def _is_short(parameter: torch.Tensor) -> bool:
    return parameter.dtype in (torch.float16, torch.bfloat16)


def _make_optimizer(parameters: Sequence[torch.Tensor], settings: FineTuneSettings) -> torch.optim.Optimizer:
    if settings.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=settings.learning_rate, momentum=settings.momentum, weight_decay=settings.weight_decay)
    return torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)
