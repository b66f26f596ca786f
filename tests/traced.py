"""What the tests of tracing share: functions as models, and torch's own counter over a real run."""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from aimass_lab.tracing.trace import trace_call
from aimass_lab.tracing.training import trace_training
from aimass_lab.workload import as_call


class Function(nn.Module):
    """A function as a model; its tensors are inputs."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *tensors):
        return self.function(*tensors)


class Trained(nn.Module):
    """A function of parameters: every gradient is wanted."""

    def __init__(self, function, *tensors):
        super().__init__()
        self.function = function
        self.tensors = nn.ParameterList(tensors)

    def forward(self, x):
        return self.function(*self.tensors) + x.sum()


def trace_of(function, *tensors):
    trace = trace_call(Function(function), as_call(tensors))
    assert not trace.uncovered
    return trace


def training_of(function, *tensors, **options):
    trace = trace_training(Trained(function, *tensors), as_call(torch.zeros(2, device=tensors[0].device)), optimizer="none", **options)
    assert not trace.uncovered
    return trace


def counted_by_torch(model, call, train=False):
    """FLOPs of a real run; the MATH backend is made of matrix products, which torch's counter knows."""
    counter = FlopCounterMode(display=False)
    with counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), torch.set_grad_enabled(train):
        out = model(*call.args, **call.kwargs)
        if train:
            out.mean().backward()
    return counter.get_total_flops()


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
