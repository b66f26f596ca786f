"""What is known of a model before it runs, by the model's own figures."""

import torch
from models import TinyCNN, TinyMLP, features
from torch import nn

from aimass_lab.demand import estimate_demand
from aimass_lab.frontends.render import render_html, render_text
from aimass_lab.headlines import headline
from aimass_lab.profiling import profile_model
from aimass_lab.profiling.summary import summarise
from aimass_lab.tracing.trace import trace_call
from aimass_lab.workload import Workload


def looks(model, inputs, **options):
    """The profile, and what was shown before it, with whether the model had run by then."""
    calls, seen = [], []
    hook = model.register_forward_pre_hook(lambda module, args: calls.append(isinstance(args[0], torch._subclasses.FakeTensor)))
    try:
        profile = profile_model(Workload(model, inputs), budget_s=0.1, ladder=[], seen=lambda summary: seen.append((summary, False in calls)), **options)
    finally:
        hook.remove()
    return profile, seen


def test_first_who_it_is_then_what_it_computes_and_the_model_has_not_run_yet():
    model, inputs = TinyCNN(), torch.rand(2, 1, 8, 8)
    profile, seen = looks(model, inputs)
    (first, ran_first), (second, ran_second) = seen
    assert not ran_first
    assert not ran_second
    assert (first.flops, first.activation_peak_bytes) == (None, None)
    assert first.num_parameters.value == sum(p.numel() for p in model.parameters())
    assert first.weight_bytes.value == sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    assert (first.model.type, first.model.dtype, first.device, first.batch_size) == ("models.TinyCNN", "float32", "cpu", 2)
    demand = estimate_demand(Workload(model, inputs))
    assert second.flops.value == demand.flops.value == profile.flops.value
    assert second.activation_peak_bytes.value == demand.activation_peak_bytes.value
    assert second.flops.source == "estimated"


def test_a_model_that_only_a_real_call_can_follow_is_shown_without_a_count():
    class ByData(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 3)

        def forward(self, x):
            return self.layer(x) if x.sum().item() > -1e9 else x

    _, seen = looks(ByData(), features(4))
    assert [summary.flops for summary, _ in seen] == [None]


def test_text_and_html_and_headline_say_the_same():
    workload = Workload(TinyMLP(), features(4))
    for summary in (summarise(workload, 4), summarise(workload, 4, trace_call(workload.model, workload.call))):
        text, html = render_text(summary), render_html(summary)
        for words in ("TinyMLP", "float32", "195 parameters", "780 B"):
            assert words in text, words
            assert words in html, words
        assert ("FLOP" in text) == ("FLOP" in html) == ("FLOP" in headline(summary)) == (summary.flops is not None)
