"""Tracing: hard cases, events, source lines and remembered results of one pass."""

import logging
import warnings

import pytest
import torch
from models import RUNNABLE, BranchingModel, TiedModel, TinyMLP, TinyTransformer, features, ids
from torch import nn
from torch.utils.checkpoint import checkpoint
from traced import Function, Trained, randn, trace_of

from aimass_lab.errors import ModelError
from aimass_lab.tracing.fakes import Fakes
from aimass_lab.tracing.law import extrapolate, fit_batch_law
from aimass_lab.tracing.trace import trace_call
from aimass_lab.tracing.training import trace_training
from aimass_lab.workload import as_call

# --- hard cases: the right count, or an answer that says what it is


def select_positive(x):
    return (x[x > 0] * 2).sum().expand(len(x))


def test_sizes_that_depend_on_data_are_counted_on_a_real_call():
    trace = trace_call(Function(select_positive), as_call(randn(4, 8)))
    assert trace.ran
    assert "DynamicOutputShape" in trace.why_ran
    selected = int((randn(4, 8) > 0).sum())
    assert next(row for row in trace.rows if row.op == "aten::index").shape == (selected,)


@pytest.mark.parametrize(
    "function",
    [
        select_positive,
        lambda x: x.nonzero().float().mean(1)[: len(x)],
        lambda x: torch.masked_select(x, x > 0)[: len(x)],
        lambda x: x[torch.where(x > 0)][: len(x)],
        lambda x: torch.unique(x, return_counts=True)[0][: len(x)],
    ],
    ids=["mask", "nonzero", "masked_select", "where", "unique"],
)
def test_sizes_that_depend_on_data_have_an_upper_bound_where_there_is_none(function):
    x = randn(4, 8).abs() + torch.arange(32).reshape(4, 8)  # all positive, all different: the bound is reached
    bound = trace_call(Function(function), as_call(x.to("meta")))
    assert bound.assumptions
    assert not bound.ran
    real = trace_call(Function(function), as_call(x))
    assert real.ran
    assert (bound.bytes_moved, bound.activation_peak_bytes) == (pytest.approx(real.bytes_moved, rel=0.2), pytest.approx(real.activation_peak_bytes, rel=0.35))
    assert bound.activation_peak_bytes >= 32 * 4


def test_a_branch_on_data_without_data_is_refused():
    model = BranchingModel().to("meta")
    with pytest.raises(ModelError, match="cannot be followed"):
        trace_call(model, as_call(features().to("meta")))


@pytest.mark.parametrize("follow", [trace_call, trace_training])
def test_what_a_model_raises_on_shapes_is_told_once_and_not_logged_as_well(follow):
    logged = []
    logger, handler = logging.getLogger("torch._subclasses.fake_tensor"), logging.Handler()
    handler.emit = logged.append
    logger.addHandler(handler)
    level = logger.level
    try:
        model = Trained(lambda weight: weight.expand(2, 9), randn(4)).to("meta")
        with pytest.raises(ModelError, match="The expanded size of the tensor"):
            follow(model, as_call(randn(2, 4).to("meta")))
        assert (logged, logger.level) == ([], level)
        with Fakes().mode, pytest.raises(RuntimeError):
            torch.empty(2, 4).expand(2, 9)  # of somebody else's it still logs
        assert len(logged) == 1
    finally:
        logger.removeHandler(handler)


def test_generation_is_pointed_to_the_sequence_demand():
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(num_hidden_layers=1, hidden_size=16, intermediate_size=32, num_attention_heads=2, vocab_size=50)
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config).eval()

    class Generate(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, ids):
            return self.model.generate(ids, max_new_tokens=2)

    with pytest.raises(ModelError, match="demand of a sequence"):
        trace_call(Generate(), as_call(torch.ones(1, 4, dtype=torch.long, device="meta")))


def test_a_lazy_module_is_refused_in_words():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lazy = nn.Sequential(nn.LazyLinear(4), nn.ReLU())
    with pytest.raises(ModelError, match=r"without a shape yet: 0\.weight"):
        trace_call(lazy, as_call(randn(2, 3)))
    with pytest.raises(ModelError, match="without a shape yet"):
        trace_training(lazy, as_call(randn(2, 3)))


@pytest.mark.parametrize("how", ["script", "trace"])
def test_a_script_module(how):
    model = TinyMLP().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(model) if how == "script" else torch.jit.trace(model, features())
        trace = trace_call(scripted, as_call(features(3)))
    assert trace.flops == 2 * 3 * (8 * 16 + 16 * 3)


def test_a_function_compiled_inside_of_forward():
    inner = torch.compile(lambda x: x @ x.T, backend="eager")
    assert trace_of(lambda x: inner(x), randn(3, 4)).flops == 2 * 3 * 3 * 4


def test_a_compiled_method_of_the_model_itself():
    model = TinyMLP()
    model.compile(backend="eager")
    assert trace_call(model, as_call(features(3))).flops == 2 * 3 * (8 * 16 + 16 * 3)


def test_inference_mode_hides_no_operator():
    model = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.Conv1d(2, 2, 3))
    x = randn(3, 2, 8)
    plain = trace_call(model, as_call(x))
    inside = trace_call(Function(torch.inference_mode()(lambda x: model(x))), as_call(x))
    assert inside.flops == plain.flops
    assert not inside.uncovered
    assert [row.op for row in inside.rows] == [row.op for row in plain.rows]


def test_a_tied_module_counts_each_time_it_runs():
    trace = trace_call(TiedModel(), as_call(ids(2, 12)))
    assert trace.flops == 2 * 2 * 12 * (3 * 8 * 8 + 8 * 20)
    step = trace_training(TiedModel(), as_call(ids(2, 12)))
    assert step.trained_parameters == 20 * 8 + 8 * 8 + 8
    assert step.gradient_bytes == 4 * step.trained_parameters


def test_views_move_and_take_nothing():
    trace = trace_of(lambda x: x.view(8, 4).t().unsqueeze(0).expand(5, 4, 8)[:, 1:], randn(4, 8))
    assert trace.rows == ()
    assert trace.events == ()


def test_in_place_operators_take_nothing_new():
    trace = trace_of(lambda x: (x + 1).mul_(2).relu_(), randn(4, 8))
    assert trace.activation_peak_bytes == 4 * 32
    assert [row.allocated_bytes for row in trace.rows] == [4 * 32, 0, 0]
    assert [row.bytes_written for row in trace.rows] == [4 * 32] * 3


def test_foreach_operators_are_seen_to_write():
    def twice(x):
        out = [x + 1, x + 2]
        torch._foreach_mul_(out, 2.0)
        return out[0]

    row = trace_of(twice, randn(4, 8)).rows[-1]
    assert (row.op, row.kind, row.bytes_written) == ("aten::_foreach_mul_", "light", 2 * 4 * 32)


def test_a_hook_that_replaces_outputs_is_followed():
    model = TinyMLP()
    model.first.register_forward_hook(lambda module, args, output: torch.cat([output, output]))
    assert trace_call(model, as_call(features(3))).flops == 2 * 3 * 8 * 16 + 2 * 6 * 16 * 3


def test_a_buffer_made_in_forward_does_not_stay():
    class Caching(nn.Module):
        def forward(self, x):
            if not hasattr(self, "table"):
                self.register_buffer("table", torch.arange(x.shape[1]).to(x))
            return x * self.table

    model = Caching()
    assert not trace_call(model, as_call(randn(2, 4))).ran
    assert not hasattr(model, "table")
    assert model(randn(2, 4)).shape == (2, 4)


def test_inputs_too_large_for_any_memory_take_none():
    trace = trace_call(TinyMLP(), as_call(features()), batch_size=10**9)
    assert trace.flops == 2 * 10**9 * (8 * 16 + 16 * 3)
    assert trace_training(TinyMLP(), as_call(features()), batch_size=10**9).saved_activation_bytes > 10**10


def test_mixed_precision_inside_of_forward():
    class Mixed(TinyMLP):
        def forward(self, x):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return super().forward(x)

    trace = trace_call(Mixed(), as_call(features(3)))
    assert trace.flops == 2 * 3 * (8 * 16 + 16 * 3)
    assert {row.dtype for row in trace.rows if row.kind == "formula"} == {"bfloat16"}
    step = trace_training(TinyMLP(), as_call(features(3)), autocast=torch.bfloat16)
    assert {row.dtype for row in step.rows if row.kind == "formula" and row.phase == "forward"} == {"bfloat16"}
    assert step.gradient_bytes == step.weight_bytes


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputed_activations_are_counted_where_they_run(reentrant):
    class Recomputing(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16)) for _ in range(3))
            self.recompute = True

        def forward(self, x):
            x = x * self.layers[0][0].bias[0]  # a reentrant checkpoint needs an input with a gradient
            for layer in self.layers:
                x = checkpoint(layer, x, use_reentrant=reentrant) if self.recompute else layer(x)
            return x

    model, call = Recomputing(), as_call(randn(32, 16))
    with_it = trace_training(model, call)
    model.recompute = False
    without = trace_training(model, call)
    forward = 3 * 2 * 32 * 2 * 16 * 64
    assert without.flops_of("forward") == with_it.flops_of("forward") == forward
    assert without.flops_of("backward") == 2 * forward
    # Recomputing stops where the last saved tensor is there again: the second linear layer is left out, half of the work.
    assert with_it.flops_of("backward") == (3 * forward if reentrant else 2 * forward + forward // 2)
    assert with_it.saved_activation_bytes < without.saved_activation_bytes / 2


# --- events


@pytest.mark.parametrize("name", ["transformer", "cnn", "mlp"])
def test_events_replay_to_the_live_bytes(name):
    make, inputs = RUNNABLE[name]
    for trace in (trace_call(make(), as_call(inputs())), trace_training(make(), as_call(inputs()))):
        live, at, alive = 0, {}, {}
        for (key, size), row in zip(trace.events, trace.event_rows, strict=True):
            live += size
            at.setdefault(row, []).append(live)
            assert alive.pop(key, 0) + size >= 0
            if size > 0:
                alive[key] = size
        assert max(max(values) for values in at.values()) >= trace.activation_peak_bytes
        assert sum(size for _, size in trace.events if size > 0) == sum(row.allocated_bytes for row in trace.rows)
        assert list(trace.event_rows) == sorted(trace.event_rows)


def test_the_batch_law_carries_every_field():
    model, call = TinyTransformer(), as_call(ids(2))
    first, second, real = (trace_call(model, call, batch_size=b) for b in (2, 3, 9))
    drawn = extrapolate(first, second, 9)
    assert drawn.rows == real.rows
    assert (drawn.events, drawn.event_rows, drawn.outputs) == (real.events, real.event_rows, real.outputs)
    assert fit_batch_law(model, call).peak_bytes(9) == real.weight_bytes + real.input_bytes + real.activation_peak_bytes


# --- lines


def test_a_row_names_the_line_that_asked_for_it():
    trace = trace_call(TinyTransformer(), as_call(ids()))
    lines = {row.op: row.source for row in trace.rows}
    name, _, number = lines["aten::gelu"].rpartition(":")
    assert name.endswith("models.py")
    from pathlib import Path

    assert "F.gelu" in (Path(__file__).parent / "models.py").read_text().splitlines()[int(number) - 1]
    assert trace_call(nn.Linear(4, 4), as_call(randn(2, 4))).rows[0].source == ""


def test_a_library_s_model_is_named_as_it_is_imported():
    transformers = pytest.importorskip("transformers")
    model = transformers.BertModel(transformers.BertConfig(num_hidden_layers=1, hidden_size=16, intermediate_size=32, num_attention_heads=2, vocab_size=50))
    sources = {row.source.rpartition(":")[0] for row in trace_call(model.eval(), as_call(ids())).rows}
    assert "transformers/models/bert/modeling_bert.py" in sources


CELL = """import torch
from torch import nn
class Net(nn.Module):
    def forward(self, x):
        y = x * 2
        return y @ y.T
from aimass_lab.tracing.trace import trace_call
from aimass_lab.workload import as_call
sources = [row.source for row in trace_call(Net(), as_call(torch.ones(2, 3))).rows]
"""


@pytest.mark.parametrize("kind", ["terminal", "kernel"])
def test_a_notebook_cell_is_named_by_its_number(kind):
    import subprocess
    import sys

    shell = (
        "from IPython.core.interactiveshell import InteractiveShell as S; shell = S.instance()"
        if kind == "terminal"
        else "from ipykernel.zmqshell import ZMQInteractiveShell as S; shell = S.instance()"
    )
    run = f"shell.run_cell('1', store_history=True)\nshell.run_cell({CELL!r}, store_history=True).raise_error()"
    script = f"{shell}\n{run}\nprint(*shell.user_ns['sources'], sep='|')"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "In [2]:5|In [2]:6"


# --- what was seen before


@pytest.mark.parametrize("name", RUNNABLE)
def test_remembered_results_are_what_torch_s_own_rules_give(name, monkeypatch):
    from aimass_lab.tracing import one_pass, replay

    make, inputs = RUNNABLE[name]
    torch.manual_seed(0)
    model, call = make(), as_call(inputs())
    again = [(trace_call(model, call), trace_training(model, call)) for _ in range(2)][1]
    assert replay._plans
    monkeypatch.setattr(one_pass, "replay", lambda mode, func, args, kwargs: func(*args, **kwargs))
    plain = trace_call(model, call), trace_training(model, call)
    for a, b in zip(again, plain, strict=True):
        assert a.rows == b.rows
        assert (a.events, a.event_rows, a.outputs) == (b.events, b.event_rows, b.outputs)


def test_a_memory_that_is_full_starts_anew(monkeypatch):
    from aimass_lab.tracing import replay

    monkeypatch.setattr(replay, "_plans", {})
    monkeypatch.setattr(replay, "CAPACITY", 3)
    first = trace_call(TinyTransformer(), as_call(ids()))
    assert len(replay._plans) <= 3
    assert trace_call(TinyTransformer(), as_call(ids())).rows == first.rows


def test_views_of_remembered_results_share_their_memory():
    def function(x):
        y = x + 1
        parts = torch.split(y, 2)
        parts[0].mul_(2)
        return y.view(-1)[3:].t(), parts[1].unsqueeze(0)

    for _ in range(2):
        trace = trace_of(function, randn(4, 8))
        assert [row.allocated_bytes for row in trace.rows] == [4 * 32, 0]
        assert [output.shape for output in trace.outputs] == [(29,), (1, 2, 8)]


def test_a_memory_layout_of_its_own_is_kept():
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3)).eval().to(memory_format=torch.channels_last)
    x = randn(2, 4, 9, 9).to(memory_format=torch.channels_last)
    strides = []

    class Watching(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            out = self.model(x)
            strides.append(out.stride())
            return out

    for _ in range(2):
        trace_call(Watching(), as_call(x))
    assert set(strides) == {model(x).stride()}
