"""What is known of a model before it runs, by the model's own figures."""

import torch
from models import TinyCNN, TinyMLP, features
from torch import nn
from torch._subclasses import FakeTensor

from aimass_lab.demand import estimate_demand
from aimass_lab.frontends.render import render_html, render_text
from aimass_lab.headlines import headline
from aimass_lab.profiling.summary import look_first, summarise, with_counts
from aimass_lab.tracing.trace import trace_call
from aimass_lab.workload import Workload


def looks(model, inputs):
    """The trace, and what is shown; the model does not run on real data for either."""
    ran, seen = [], []
    hook = model.register_forward_pre_hook(lambda module, args: ran.append(not isinstance(args[0], FakeTensor)))
    try:
        trace = look_first(Workload(model, inputs), len(inputs), seen.append)
    finally:
        hook.remove()
    assert not any(ran)
    return trace, seen


def test_first_who_it_is_then_what_it_computes_and_the_model_has_not_run():
    model, inputs = TinyCNN(), torch.rand(2, 1, 8, 8)
    trace, seen = looks(model, inputs)
    first, second = seen
    assert (first.flops, first.activation_peak_bytes) == (None, None)
    assert first.num_parameters.value == sum(p.numel() for p in model.parameters())
    assert first.weight_bytes.value == sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    assert (first.model.type, first.model.dtype, first.device, first.batch_size) == ("models.TinyCNN", "float32", "cpu", 2)
    demand = estimate_demand(Workload(model, inputs))
    assert second.flops.value == demand.flops.value == trace.flops
    assert second.activation_peak_bytes.value == demand.activation_peak_bytes.value
    assert second.flops.source == "estimated"


def test_a_model_that_only_a_real_call_can_follow_is_shown_without_a_count():
    class ByData(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 3)

        def forward(self, x):
            return self.layer(x) if x.sum().item() > -1e9 else x

    trace, seen = looks(ByData(), features(4))
    assert trace is None
    assert [summary.flops for summary in seen] == [None]


def test_text_and_html_and_headline_say_the_same():
    workload = Workload(TinyMLP(), features(4))
    first = summarise(workload, 4)
    for summary in (first, with_counts(first, trace_call(workload.model, workload.call))):
        text, html = render_text(summary), render_html(summary)
        for words in ("TinyMLP", "float32", "195 parameters", "780 B"):
            assert words in text, words
            assert words in html, words
        assert ("FLOP" in text) == ("FLOP" in html) == ("FLOP" in headline(summary)) == (summary.flops is not None)
