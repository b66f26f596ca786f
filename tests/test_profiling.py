"""Profiles: what they measure, and that the model never notices."""

import inspect
import math
import random
import sys
import time
import warnings

import msgspec
import psutil
import pytest
import torch
from models import (
    RUNNABLE,
    BranchingModel,
    MutatingModel,
    NaNModel,
    PaddedEncoder,
    RaisingModel,
    TiedModel,
    TinyCNN,
    TinyLSTM,
    TinyMLP,
    TinyTransformer,
    assert_same,
    features,
    ids,
    padded_sequences,
    snapshot,
)
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from aimass_lab import Study
from aimass_lab.errors import DoesNotFitError, InputError, ModelError, UnsupportedError
from aimass_lab.profiling import bottleneck, measure, profile_callable, profile_model
from aimass_lab.profiling.bottleneck import Rates, say_what_binds, split_time
from aimass_lab.profiling.cold import measure_cold_start
from aimass_lab.profiling.contradictions import find_contradicted
from aimass_lab.profiling.measure import INSTRUMENTED_CALLS
from aimass_lab.profiling.memory import address_space_capped, free_bytes, peak_of_call
from aimass_lab.profiling.modules import ModuleTimer
from aimass_lab.records import INTERRUPTED, Number, Profile, from_json, to_json
from aimass_lab.timing import MAX_WARMUP
from aimass_lab.tracing.law import fit_batch_law
from aimass_lab.tracing.trace import Row, Trace, trace_call
from aimass_lab.workload import Workload, as_call, call_model

CPU = torch.device("cpu")


def profiled(model, inputs, **options):
    return profile_model(Workload(model, inputs), **{"budget_s": 0.2, "ladder": [], **options})


# --- the profile


@pytest.mark.parametrize("name", RUNNABLE)
@pytest.mark.parametrize("training", [False, True])
def test_a_profile_leaves_the_model_as_it_was(name, training):
    make, inputs = RUNNABLE[name]
    model = make().train(training)
    for i, p in enumerate(model.parameters()):
        p.grad = torch.full_like(p, float(i))
    handle = model.register_forward_hook(lambda module, args, output: None)
    call = inputs()
    random.seed(5)
    before = snapshot(model)
    profile = profiled(model, call, ladder=[1, 4])
    assert_same(before, snapshot(model))
    handle.remove()
    assert profile.latency_p50.value > 0
    assert training == any(note.code == "W-TRAINING-MODE" for note in profile.notes)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")  # torch's own, of its fused path
def test_modules_that_are_handed_nested_tensors_are_timed():
    """They have a length for each item and no sizes, which torch refuses to tell."""
    model = PaddedEncoder()
    profile = profiled(model, padded_sequences())
    timed = {module.name: module.self_time.value for module in profile.modules}
    assert timed["encoder.layers.0"] > 0
    assert timed["encoder.layers.1"] > 0


def test_the_numbers_agree_with_one_another():
    profile = profiled(TinyTransformer(), ids(4), ladder=[1, 2, 8])
    assert [point.batch_size for point in profile.ladder] == [1, 2, 4, 8]
    assert profile.latency_p50.value <= profile.latency_p95.value <= profile.latency_p99.value
    assert profile.throughput.value == pytest.approx(4 / profile.latency_p50.value)
    assert profile.throughput.interval[0] <= profile.throughput.value <= profile.throughput.interval[1]
    split = profile.weight_bytes.value + profile.activation_peak_bytes.value + profile.other_memory_bytes.value
    assert profile.peak_memory_bytes.value == split
    assert profile.flops_per_s.value == pytest.approx(profile.flops.value / profile.latency_p50.value)
    wholes = [m.self_time.value / m.share.value for m in profile.modules if m.share.value]
    assert wholes == pytest.approx([wholes[0]] * len(wholes)), "shares are of one and the same call"
    assert profile.peak_memory_bytes.weakest_source == "measured"
    assert {n.environment for n in (profile.latency_p50, profile.peak_memory_bytes, profile.first_call)} == {profile.environment.id}
    assert profile.process_memory_bytes.value > profile.peak_memory_bytes.value


def test_a_profile_survives_json():
    profile = profiled(TinyMLP(), features())
    assert from_json(to_json(profile), Profile) == profile


def test_requested_batch_comes_from_repeating_the_inputs():
    profile = profiled(TinyMLP(), features(2), batch_size=16)
    assert profile.batch_size == 16
    assert [point.batch_size for point in profile.ladder] == [16]


def test_default_ladder_grows_in_powers_of_two():
    profile = profiled(TinyMLP(), features(3), ladder=None, budget_s=1.0)
    sizes = [point.batch_size for point in profile.ladder]
    assert 3 in sizes
    assert all(size == 3 or size & (size - 1) == 0 for size in sizes)
    assert len(sizes) > 2


def test_memory_of_a_profile_is_what_the_tensors_need():
    # x (2 x 8), then the first layer's 2 x 16 result and its ReLU alive together
    profile = profiled(TinyMLP(), features(2))
    assert profile.activation_peak_bytes.value == 2 * 2 * 16 * 4
    assert profile.weight_bytes.value == (8 * 16 + 16 + 16 * 3 + 3) * 4
    assert profile.other_memory_bytes.value >= 2 * 8 * 4


def test_allocator_peak_counts_every_allocation_of_the_call():
    def call():
        a = torch.empty(1000)
        b = a + a
        del a
        return b * b  # b and its square: two live at once, as a and b before

    assert peak_of_call(call, CPU) == 8000


def test_stderr_stays_clean_while_memory_is_read(capfd):
    peak_of_call(lambda: torch.empty(10), CPU)
    print("still here", file=sys.stderr)
    captured = capfd.readouterr()
    assert "profiler" not in captured.err
    assert "still here" in captured.err


def test_a_profile_inside_another_profiler_does_without_the_allocator():
    with torch.autograd.profiler.profile():
        profile = profiled(TinyMLP(), features())
    assert profile.peak_memory_bytes.weakest_source == "estimated"
    assert any(note.code == "missing:allocator" for note in profile.notes)


def test_nan_outputs_are_noted():
    notes = profiled(NaNModel(), features(2)).notes
    assert any(note.code == "W-NAN" and "2 of 6" in note.text for note in notes)


def test_a_model_that_raises_is_a_model_error_with_its_message():
    with pytest.raises(ModelError, match="this model never works"):
        profiled(RaisingModel(), features())


def test_wrong_shapes_are_a_model_error_with_the_shapes():
    with pytest.raises(ModelError, match=r"float32\[2, 9\]"):
        profiled(TinyMLP(), features(2, 9))


@pytest.mark.parametrize("batch_size", [0, -1, True, 2.0, "4"])
def test_a_batch_size_must_be_a_positive_integer(batch_size):
    with pytest.raises(InputError, match="positive integer"):
        profiled(TinyMLP(), features(), batch_size=batch_size)


@pytest.mark.parametrize("budget_s", [0, -1, float("nan"), float("inf")])
def test_a_budget_must_be_a_time(budget_s):
    with pytest.raises(InputError, match="budget"):
        profiled(TinyMLP(), features(), budget_s=budget_s)


def test_a_model_without_weights_in_memory_cannot_be_profiled():
    with torch.device("meta"):
        model = TinyMLP()
    with pytest.raises(UnsupportedError, match="meta"):
        profiled(model, features().to("meta"))
    with pytest.raises(UnsupportedError, match="meta"):
        measure_cold_start(Workload(model, features().to("meta")))


def test_inputs_without_a_batch_axis_give_no_ladder():
    class Scalar(nn.Module):
        def forward(self, x):
            return x * 2

    profile = profiled(Scalar(), torch.tensor(1.0), ladder=[1, 2])
    assert [point.batch_size for point in profile.ladder] == [1]
    assert any(note.code == "W-LADDER" and "batch axis" in note.text for note in profile.notes)


def test_the_ladder_ends_where_the_model_raises():
    class Fixed(TinyMLP):
        def forward(self, x):
            return super().forward(x.reshape(4, 8)) if len(x) <= 4 else super().forward(x.reshape(7, 8))

    profile = profiled(Fixed(), features(4), ladder=[4, 8])
    assert [point.batch_size for point in profile.ladder] == [4]
    assert any("before batch 8" in note.text for note in profile.notes)


def test_a_model_that_needs_autograd_is_measured_without_inference_mode():
    class Versioned(TinyMLP):
        def forward(self, x):
            y = super().forward(x)
            y._version  # inference tensors have none  # noqa: B018
            return y

    profile = profiled(Versioned(), features())
    assert any(note.code == "W-NO-INFERENCE-MODE" for note in profile.notes)


class Wide(nn.Module):
    """Needs four terabytes for one item."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return (x.expand(len(x), 10**12) * self.scale).sum(1, keepdim=True)


def test_what_cannot_fit_is_refused_before_it_runs():
    model = Wide()
    started = time.monotonic()
    with pytest.raises(DoesNotFitError, match=r"does not fit.*TiB"):
        profiled(model, torch.ones(1, 1))
    assert time.monotonic() - started < 30  # a run would touch terabytes first


def test_the_refusal_names_a_batch_that_fits():
    class Steep(nn.Module):
        def forward(self, x):
            return x.expand(len(x), 10**8) * 2

    with pytest.raises(DoesNotFitError) as caught:
        profiled(Steep(), torch.ones(1, 1), batch_size=10_000)
    assert "a batch of" in caught.value.help


def test_forced_it_fails_and_everything_is_as_before():
    model = Wide()
    before = snapshot(model)
    with pytest.raises(DoesNotFitError, match="out of memory"):
        profiled(model, torch.ones(1, 1), force=True)
    assert_same(before, snapshot(model))
    assert model.scale.item() == 1
    assert torch.empty(2**20).numel() == 2**20


def test_an_error_of_memory_lets_go_of_the_tensors_that_filled_it():
    """The error is kept, as a notebook keeps its last one."""
    import gc
    import weakref

    alive = []

    class Hoarder(nn.Module):
        def forward(self, x):
            hoard = x + 1
            alive.extend(map(weakref.ref, (x, hoard)))
            return hoard.expand(2, 10**13).contiguous()

    with pytest.raises(DoesNotFitError) as caught:
        profiled(Hoarder(), torch.ones(1, 1), batch_size=2, force=True)
    gc.collect()
    assert alive
    assert all(ref() is None for ref in alive), caught.value


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits on the address space are Linux'")
def test_a_limit_on_the_address_space_is_memory_that_is_not_there():
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    limit = psutil.Process().memory_info().vms + 2**30
    resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
    try:
        assert free_bytes(torch.device("cpu")) <= 2**30
        with address_space_capped(torch.device("cpu")):
            assert resource.getrlimit(resource.RLIMIT_AS)[0] <= limit
        assert resource.getrlimit(resource.RLIMIT_AS)[0] == limit
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


class Interrupting(TinyMLP):
    """The user presses stop during call number `at`."""

    def __init__(self, at):
        super().__init__()
        self.at = [at]

    def forward(self, x):
        if not isinstance(x, torch._subclasses.FakeTensor):
            ticker.append(1)
            if len(ticker) == self.at[0]:
                raise KeyboardInterrupt
        return super().forward(x)


ticker = []


def test_an_interrupt_after_the_first_latency_keeps_what_is_there():
    ticker.clear()
    # the first call, at most ten to warm up, one recorded, at most three with hooks, one sample
    model = Interrupting(at=1 + MAX_WARMUP + 1 + INSTRUMENTED_CALLS + 1 + 1)
    before = snapshot(model)
    profile = profiled(model, features(), ladder=[1, 2, 4])
    assert_same(before, snapshot(model))
    assert any(note.code == "W-INTERRUPTED" for note in profile.notes)
    assert 1 <= profile.latency_p50.n < 16


def test_an_interrupt_before_the_first_latency_interrupts():
    ticker.clear()
    model = Interrupting(at=2)
    before = snapshot(model)
    with pytest.raises(KeyboardInterrupt):
        profiled(model, features())
    assert_same(before, snapshot(model))


def test_progress_goes_from_nothing_to_all():
    told = []
    profiled(TinyMLP(), features(), ladder=[1, 4], progress=lambda share, text: told.append((share, text)))
    shares = [share for share, _ in told]
    assert (shares[0], shares[-1]) == (0, 1)
    assert shares == sorted(shares)
    assert any("batch 4" in text for _, text in told)


def test_other_load_makes_times_doubtful_and_leaves_sizes_alone(monkeypatch):
    from aimass_lab.environment import LoadMeter

    monkeypatch.setattr(LoadMeter, "noisy", property(lambda self: True))
    monkeypatch.setattr(LoadMeter, "foreign_cores", 1.5)
    monkeypatch.setattr(LoadMeter, "__exit__", lambda self, *exc: None)
    profile = profiled(TinyMLP(), features())
    assert profile.latency_p50.quality == profile.throughput.quality == profile.modules[0].self_time.quality == "noisy"
    assert profile.peak_memory_bytes.quality == profile.weight_bytes.quality == "ok"
    assert any(note.code == "W-NOISY" and "1.5 of" in note.text for note in profile.notes)


# --- times that the ladder contradicts


@pytest.mark.parametrize(
    ("medians", "found"),
    [
        ({1: 20e-6, 2: 21e-6, 4: 30e-6}, {}),
        ({1: 20e-6, 2: 16e-3, 4: 30e-6, 8: 40e-6}, {2: 4}),
        ({1: 16e-3, 2: 16e-3, 4: 30e-6, 8: 20e-6}, {2: 8, 1: 8}),
        ({1: 39e-6, 2: 20e-6}, {}),
        ({1: 20e-6, 2: 16e-3}, {}),
        ({4: 1.0}, {}),
    ],
)
def test_a_batch_far_slower_than_a_larger_one_is_contradicted(medians, found):
    """The quickest of the larger ones says it; of the largest one nothing does, as a time may well jump there."""
    assert find_contradicted({size: [median, median, 9 * median] for size, median in medians.items()}) == found


AMPLE = {"budget_s": 60.0, "ladder": [1, 2, 4, 8]}
"""Time for every pass on a slow machine: sampling ends with the most samples, after a tenth of a second."""


def slowed(monkeypatch, size, most):
    """The timer of a profile, with times that follow from the batch alone; those of one batch are slow the first `most` times that it is looked at."""
    real, looks = measure.sample_latency, []

    def sample(function, device, *, into, cpu_into=None, **options):
        own = []
        real(function, device, **options, into=own, cpu_into=cpu_into)
        batch = function.args[0].batch_size if hasattr(function, "args") else inspect.getclosurevars(function).nonlocals["call"].batch_size
        looks.append(batch)
        into += [0.016 if batch == size and looks.count(size) <= most else 20e-6 + 1e-6 * batch] * len(own)
        return into

    monkeypatch.setattr(measure, "sample_latency", sample)
    return looks


@pytest.mark.parametrize("size", [2, 3])
def test_what_the_ladder_contradicts_is_timed_again_before_it_is_believed(monkeypatch, size):
    """A middle of the ladder, and the batch that the profile is of: the times of both passes are slow, and the third look is not."""
    looks = slowed(monkeypatch, size, 2)
    profile = profiled(TinyMLP(), features(3), **AMPLE)
    assert (profile.batch_size, looks.count(size), looks.count(4)) == (3, 3, 2)
    point = next(p for p in profile.ladder if p.batch_size == size)
    assert [p.latency_p99.value for p in profile.ladder] == pytest.approx([21e-6, 22e-6, 23e-6, 24e-6, 28e-6])
    assert point.latency_p50.quality == next(p for p in profile.ladder if p.batch_size == 8).latency_p50.quality
    (note,) = [note for note in profile.notes if note.code == "timed-again"]
    assert note.text == f"a batch of {size} took 16.0 ms, longer than larger ones; timed again, it took {20 + size}.0 µs"


def test_what_stays_slower_than_a_larger_batch_is_marked_noisy(monkeypatch):
    from aimass_lab.environment import LoadMeter

    monkeypatch.setattr(LoadMeter, "noisy", property(lambda self: False))
    looks = slowed(monkeypatch, 2, 99)
    profile = profiled(TinyMLP(), features(3), **AMPLE)
    assert looks.count(2) == 3
    assert {p.batch_size: p.latency_p99.quality for p in profile.ladder} == {1: "ok", 2: "noisy", 3: "ok", 4: "ok", 8: "ok"}
    (note,) = [note for note in profile.notes if note.code == "W-CONTRADICTED"]
    assert note.text.startswith("a batch of 2 took 16.0 ms and one of 3 only 23.0 µs")


def test_an_interrupt_while_a_batch_is_timed_again_leaves_it_noisy(monkeypatch):
    looks = slowed(monkeypatch, 2, 99)
    timed_before = measure.sample_latency

    def sample(*args, **options):
        if looks.count(2) == 2 and len(looks) == 10:
            raise KeyboardInterrupt
        return timed_before(*args, **options)

    monkeypatch.setattr(measure, "sample_latency", sample)
    profile = profiled(TinyMLP(), features(3), **AMPLE)
    assert INTERRUPTED in {note.code for note in profile.notes}
    assert next(p for p in profile.ladder if p.batch_size == 2).latency_p50.quality == "noisy"


def test_the_energy_of_a_call_is_that_of_the_calls_that_were_metered(monkeypatch):
    """The ladder's second pass times more calls at the same batch, when the meter is off."""
    counts = []
    monkeypatch.setattr(measure.EnergyMeter, "per_call", lambda self, num_calls=1: counts.append(num_calls))
    looks = slowed(monkeypatch, 0, 0)
    profile = profiled(TinyMLP(), features(3), **AMPLE)
    assert looks.count(3) == 2
    assert 0 < counts[0] < profile.latency_p50.n


# --- time by module


class Slow(nn.Module):
    """Sleeps twice as long in its submodule, which it calls twice, as by itself."""

    class Inner(nn.Module):
        def forward(self, x):
            time.sleep(0.02)
            return x

    def __init__(self):
        super().__init__()
        self.inner = self.Inner()

    def forward(self, x):
        time.sleep(0.01)
        return self.inner(self.inner(x))


def test_module_times_add_up(monkeypatch):
    """By a clock that sleeping moves, and nothing else."""
    now, model = [0.0], Slow()
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: now.append(now.pop() + seconds))
    with ModuleTimer(CPU) as timer:
        model(features())
    times = timer.totals()
    inner, outer = times[id(model.inner)], times[id(model)]
    assert (inner.calls, inner.self_s, inner.total_s) == (2, pytest.approx(0.04), pytest.approx(0.04))
    assert (outer.calls, outer.self_s, outer.total_s) == (1, pytest.approx(0.01), pytest.approx(0.05))


def test_module_times_are_those_of_a_call():
    profile = profiled(Slow(), features())
    by_name = {m.name: m for m in profile.modules}
    assert by_name["inner"].calls == 2
    assert by_name["inner"].self_time.value >= 0.04
    assert by_name[""].self_time.value >= 0.01
    assert by_name[""].total_time.value >= by_name["inner"].total_time.value + 0.01
    assert profile.host_residual == by_name[""].self_time
    assert {m.name for m in profile.modules} == {"", "inner"}
    assert [m.self_time.value for m in profile.modules] == sorted((m.self_time.value for m in profile.modules), reverse=True)


def test_a_module_within_itself_counts_its_total_once():
    model = TiedModel().eval()
    with ModuleTimer(CPU) as timer:
        model(ids())
    times = timer.totals()
    step, root = times[id(model.step)], times[id(model)]
    assert step.calls == 3
    assert step.total_s <= root.total_s
    assert sum(t.self_s for t in times.values()) == pytest.approx(root.total_s)


def test_modules_of_other_threads_are_not_counted():
    import threading

    model = TinyMLP()
    with ModuleTimer(CPU) as timer:
        thread = threading.Thread(target=lambda: model(features()))
        thread.start()
        thread.join()
    assert timer.spans == []


# --- the pass over shapes


def flops_by_torch(model, call):
    counter = FlopCounterMode(display=False)
    # The MATH backend is made of matrix products, which torch's counter knows; it misses the CPU's fused attention.
    with counter, torch.no_grad(), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        model(*call.args, **call.kwargs)
    return counter.get_total_flops()


@pytest.mark.parametrize("name", ["mlp", "cnn", "transformer", "dict", "tied", "nan"])
def test_flops_agree_with_torch_on_a_real_run(name):
    make, inputs = RUNNABLE[name]
    model, call = make().eval(), as_call(inputs())
    trace = trace_call(model, call)
    assert not trace.ran
    assert not trace.uncovered
    assert trace.flops == flops_by_torch(model, call) > 0


def test_flops_of_layers_by_hand():
    linear = trace_call(nn.Linear(7, 5), as_call(torch.ones(3, 7)))
    assert linear.flops == 2 * 3 * 7 * 5
    convolution = trace_call(nn.Conv2d(4, 6, 3, padding=1, groups=2), as_call(torch.ones(2, 4, 10, 10)))
    assert convolution.flops == 2 * (2 * 10 * 10) * 6 * (4 // 2) * 9


def test_flops_of_a_transformer_in_closed_form():
    batch, length, width, layers = 3, 10, 32, 2
    trace = trace_call(TinyTransformer(width=width, layers=layers), as_call(ids(batch, length)))
    weights = 12 * width * width  # qkv, output projection, two of four widths
    assert trace.flops == layers * (2 * batch * length * weights + 4 * batch * length * length * width)


def test_flops_of_an_lstm_in_closed_form():
    trace = trace_call(TinyLSTM(), as_call(torch.ones(3, 5, 8)))
    gates = 4 * 16
    assert trace.flops == 2 * 3 * 5 * (gates * (8 + 16) + gates * (16 + 16))


def test_flops_of_grouped_query_attention():
    class Grouped(nn.Module):
        def forward(self, q, k):
            return torch.nn.functional.scaled_dot_product_attention(q, k, k, enable_gqa=True)

    trace = trace_call(Grouped(), as_call((torch.ones(2, 8, 6, 16), torch.ones(2, 2, 9, 16))))
    assert trace.flops == 4 * 2 * 8 * 6 * 9 * 16


def test_torch_s_own_encoder_layer_is_not_free():
    width, batch, length, hidden = 16, 2, 6, 32
    layer = nn.TransformerEncoderLayer(width, 2, hidden, batch_first=True)
    trace = trace_call(layer, as_call(torch.randn(batch, length, width)))
    matrices = 4 * width * width + 2 * width * hidden
    assert trace.flops == 2 * batch * length * matrices + 4 * batch * length * length * width
    assert trace.slow_path


def test_int8_modules_have_flops():
    from torch.ao.nn.quantized.dynamic import Linear  # what torch.ao.quantization makes of nn.Linear

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls its own quantised tensors deprecated
        model = nn.Sequential(Linear(8, 4))
        trace = trace_call(model, as_call(features(3)))
    assert trace.flops == 2 * 3 * 8 * 4


def test_torchao_tensors_unfold_into_the_operators_that_run():
    torchao = pytest.importorskip("torchao.quantization")
    model = nn.Sequential(nn.Linear(64, 32))
    torchao.quantize_(model, torchao.Int8WeightOnlyConfig(version=2))
    trace = trace_call(model, as_call(torch.randn(3, 64)))
    assert trace.flops >= 2 * 3 * 64 * 32


def test_an_operator_without_formula_is_listed_not_forgotten():
    @torch.library.custom_op("aimass_test::mystery", mutates_args=())
    def mystery(x: torch.Tensor) -> torch.Tensor:
        return x @ x.T

    @mystery.register_fake
    def _(x):
        return x.new_empty(len(x), len(x))

    class Mystery(nn.Module):
        def forward(self, x):
            return mystery(x)

    trace = trace_call(Mystery(), as_call(torch.ones(3, 4)))
    assert trace.uncovered == {"aimass_test::mystery": 1}


@pytest.mark.parametrize("name", ["mlp", "transformer", "dict", "tied"])
def test_activation_peak_is_what_the_allocator_saw(name):
    make, inputs = RUNNABLE[name]
    model, call = make().eval(), as_call(inputs())
    trace = trace_call(model, call)
    with torch.inference_mode():
        model(*call.args, **call.kwargs)
        seen = peak_of_call(lambda: model(*call.args, **call.kwargs), CPU)
    assert trace.activation_peak_bytes <= seen <= trace.activation_bound_bytes
    if name == "transformer":
        assert trace.activation_peak_bytes == pytest.approx(seen, rel=0.01)


@pytest.mark.parametrize("name", ["cnn", "lstm", "encoder"])
def test_workspaces_stay_below_their_bound(name):
    make, inputs = RUNNABLE[name]
    model, call = make().eval(), as_call(inputs()).with_batch(8)
    trace = trace_call(model, call)
    with torch.inference_mode():
        seen = peak_of_call(lambda: model(*call.args, **call.kwargs), CPU)
    assert 0 < seen <= trace.activation_bound_bytes


@pytest.mark.parametrize("name", RUNNABLE)
def test_a_trace_leaves_the_model_as_it_was(name):
    make, inputs = RUNNABLE[name]
    model, call = make().train(), as_call(inputs())
    before = snapshot(model)
    trace_call(model, call)
    assert_same(before, snapshot(model))


def test_data_dependent_control_flow_falls_back_to_a_real_call():
    trace = trace_call(BranchingModel(), as_call(features(2)))
    assert trace.ran
    assert trace.why_ran
    assert trace.flops == 2 * 2 * (8 * 16 + 16 * 3)
    with pytest.raises(ModelError, match="without running it"):
        trace_call(BranchingModel(), as_call(features(2)), may_run=False)


def test_both_passes_give_the_same_rows():
    model = TinyTransformer().eval()

    class Stubborn(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            if x.sum() > -1:
                return self.model(x)
            return x

    fake, real = trace_call(model, as_call(ids())), trace_call(Stubborn(), as_call(ids()))
    assert real.ran
    kept = [row for row in real.rows if row.scope != ("",)]
    assert [(r.op, r.flops, r.bytes_read, r.bytes_written) for r in kept] == [(r.op, r.flops, r.bytes_read, r.bytes_written) for r in fake.rows]


def test_a_meta_model_is_traced_as_one_in_memory():
    with torch.device("meta"):
        empty = TinyTransformer()
    full = TinyTransformer()
    a, b = trace_call(empty, as_call(ids().to("meta"))), trace_call(full, as_call(ids()))
    assert (a.flops, a.bytes_moved, a.activation_peak_bytes, a.weight_bytes) == (b.flops, b.bytes_moved, b.activation_peak_bytes, b.weight_bytes)


def test_a_compiled_model_is_followed_through():
    model = TinyMLP()
    trace = trace_call(torch.compile(model, backend="eager"), as_call(features(2)))
    assert trace.flops == trace_call(model, as_call(features(2))).flops


@pytest.mark.parametrize("name", ["mlp", "cnn", "transformer", "dict", "lstm"])
def test_the_batch_law_is_exact(name):
    make, inputs = RUNNABLE[name]
    model, call = make().eval(), as_call(inputs())
    law = fit_batch_law(model, call)
    for batch in (5, 32):
        trace = trace_call(model, call, batch_size=batch)
        assert law.activation_peak_bytes(batch) == trace.activation_peak_bytes
        assert law.peak_bytes(batch) == trace.weight_bytes + trace.input_bytes + trace.activation_peak_bytes
        assert law.bound_bytes(batch) == pytest.approx(trace.weight_bytes + trace.input_bytes + trace.activation_bound_bytes, abs=2)
    limit = law.peak_bytes(20) + 1
    assert law.largest_batch(limit, bound=False) == 20
    assert law.largest_batch(law.peak_bytes(1) / 2, bound=False) == 0


# --- what binds


def test_rates_are_measured_once_and_again_after_a_noisy_look(monkeypatch):
    looks = []
    real = bottleneck._probe
    monkeypatch.setattr(bottleneck, "_probe", lambda *args: looks.append(args[2:]) or real(*args))
    monkeypatch.setattr(bottleneck, "_known_rates", {})
    monkeypatch.setattr(bottleneck, "_tries", {})
    monkeypatch.setattr(bottleneck, "PROBE_S", 0.01)
    monkeypatch.setattr(bottleneck.LoadMeter, "noisy", property(lambda self: looks.count(()) == 1))
    first = bottleneck.measure_rates(CPU, torch.float32)
    second = bottleneck.measure_rates(CPU, torch.float32)
    assert (first.flops_per_s.quality, second.flops_per_s.quality) == ("noisy", "ok")
    assert second.flops_per_s.value >= first.flops_per_s.value
    assert second.overhead.value <= first.overhead.value
    assert bottleneck.measure_rates(CPU, torch.float32) is second
    assert looks.count(()) == 2, "what one thread alone does comes on top, of the noisy look"
    assert second.flops_per_s.value > 1e8
    assert second.memory_bytes_per_s.value > 1e8
    assert 1e-8 < second.overhead.value < 1e-2


def rates(flops_per_s, bytes_per_s, overhead_s, quality="ok"):
    def number(value, unit):
        return Number(value=value, unit=unit, source="measured", method="given", quality=quality)

    return Rates(number(flops_per_s, "FLOP/s"), number(bytes_per_s, "B/s"), number(overhead_s, "s"))


def trace_of(*rows):
    return Trace(tuple(Row("aten::mm", (), "formula", f, b, 0, 0, 0) for f, b in rows), 1, 0, 0, (), False)


def test_split_is_a_roofline_per_operator():
    split = split_time(trace_of((100, 10), (10, 100)), flops_per_s=10, bytes_per_s=5, overhead_s=0.5)
    assert (split.compute_s, split.memory_s, split.overhead_s) == (10, 20, 1)


def test_the_sentence_on_what_binds_has_the_figures():
    compute = say_what_binds(trace_of((22.4e9, 1e6)), rates(258e9, 10e9, 1e-6), 0.107)
    assert compute == "compute-bound: 22.4 GFLOP in 107 ms is 209 GFLOP/s, 81 % of the 258 GFLOP/s that matrix products reach here"
    assert say_what_binds(trace_of((1e6, 10e9)), rates(1e12, 10e9, 1e-6), 2.0).startswith("memory-bound: operators move 9.31 GiB in 2.00 s")
    assert say_what_binds(trace_of((1, 1)), rates(1e12, 1e12, 1e-3), 2e-3).startswith("overhead-bound: starting 1 operator at")
    assert say_what_binds(trace_of((1e9, 1)), rates(1e12, 1e12, 1e-6), 1.0).startswith("no single limit found")
    assert "more than the" in say_what_binds(trace_of((2e9, 1)), rates(1e9, 1e12, 1e-6), 1.0)
    assert "busy machine" in say_what_binds(trace_of((1e9, 1)), rates(1e9, 1e12, 1e-6, quality="noisy"), 1.0)


# --- cells


def test_a_cell_is_run_exactly_once_and_its_models_are_seen():
    model, calls = TinyMLP(), []

    def cell():
        calls.append(1)
        model(features())
        model(features())

    record = profile_callable(cell, label="cell [1]")
    assert calls == [1]
    assert record.raised is None
    assert {m.name: m.calls for m in record.modules} == {"TinyMLP": 2, "TinyMLP.first": 2, "TinyMLP.second": 2}
    inside = next(m for m in record.modules if m.name == "TinyMLP").total_time.value
    assert record.outside_modules.value == pytest.approx(record.wall_time.value - inside)
    assert msgspec.json.decode(to_json(record))["record"] == "cell_profile"


def test_a_cell_that_raises_is_reported_with_what_ran():
    def cell():
        TinyMLP()(features())
        raise ValueError("halfway")

    before = dict(torch.nn.modules.module._global_forward_hooks)
    record = profile_callable(cell, label="cell [2]")
    assert record.raised == "ValueError: halfway"
    assert record.modules
    assert torch.nn.modules.module._global_forward_hooks == before
    assert any(note.code == "W-RAISED" for note in record.notes)


def test_a_cell_s_memory_peak_and_growth():
    kept = []

    def cell():
        block = bytearray(64 * 2**20)
        time.sleep(0.05)
        del block
        kept.append(torch.ones(128 * 2**20, dtype=torch.uint8))  # too large for the allocator to find in memory that is already resident

    record = profile_callable(cell, label="cell [3]")
    assert record.peak_memory_bytes.value >= 64 * 2**20
    assert record.memory_growth_bytes.value > 100 * 2**20
    assert any(note.code == "missing:modules" for note in record.notes)


def test_two_models_of_one_class_keep_their_names_apart():
    first, second = TinyCNN().eval(), TinyCNN().eval()
    image = torch.ones(1, 1, 8, 8)
    record = profile_callable(lambda: (first(image), second(image)), label="cell [4]")
    assert {"TinyCNN", "TinyCNN#2", "TinyCNN.head", "TinyCNN#2.head"} <= {m.name for m in record.modules}


def test_the_mutating_fixture_really_mutates():
    model = MutatingModel()
    before = snapshot(model)
    model(features())
    with pytest.raises(AssertionError):
        assert_same(before, snapshot(model))


def test_measuring_the_device_leaves_the_random_state_alone(monkeypatch):
    monkeypatch.setattr("aimass_lab.profiling.bottleneck._known_rates", {})
    monkeypatch.setattr("aimass_lab.profiling.bottleneck._tries", {})
    before = torch.get_rng_state()
    bottleneck.measure_rates(CPU, torch.float32)
    assert torch.equal(torch.get_rng_state(), before)


class WritesItsInput(nn.Module):
    """Scales what it is given in place, as some preprocessing does."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 4)

    def forward(self, x):
        return self.layer(x.mul_(0.5))


def test_inputs_stay_as_they_are_though_the_model_writes_into_them(tmp_path):
    """And it sees the same at each call: its copy, called after it, is no other model."""
    x = torch.randn(4, 8)
    before = x.clone()
    study = Study(WritesItsInput(), x, store=tmp_path / "history.db")
    profile = study.profile(seconds=0.3)
    assert torch.equal(x, before)
    assert "W-WRITES-INPUTS" in {note.code for note in profile.notes}
    trial = study.trial("none", seconds=0.3)
    assert torch.equal(x, before)
    assert trial.fidelity.value == 1.0
    assert trial.relative_error.value == 0.0


def test_a_model_that_leaves_its_inputs_alone_gets_them_themselves(tmp_path):
    seen = []

    class Sees(nn.Linear):
        def forward(self, x):
            seen.append(x)
            return super().forward(x)

    model, call = Sees(8, 4), as_call(torch.randn(2, 8).fill_diagonal_(math.nan))  # which is equal to nothing, not to itself
    call_model(model, call)
    call_model(model, call)
    assert [tensor is call.args[0] for tensor in seen] == [False, True]


class Bags(nn.Module):
    """Sums what lies between offsets into another input."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(50, 8)

    def forward(self, offsets, indices):
        sums = torch.nn.functional.pad(self.table(indices).cumsum(0), (0, 0, 1, 0))
        ends = torch.cat([offsets[1:], torch.tensor([len(indices)])])
        return sums[ends] - sums[offsets]


def test_a_ladder_over_inputs_that_do_not_bear_being_repeated_says_so():
    profile = profiled(Bags(), (torch.tensor([0, 3, 7]), torch.arange(10)), ladder=[1, 2, 4, 8])
    notes = [note.text for note in profile.notes if note.code == "W-ITEMS-DIFFER"]
    assert len(notes) == 1
    assert notes[0].startswith("in a batch of 4, which repeats the 3 of the example, the output 'output' of an item depends on the other items of its batch")
    assert "offsets into another" in notes[0]


@pytest.mark.parametrize("name", RUNNABLE)
def test_items_that_stand_alone_are_not_said_to_differ(name):
    make, inputs = RUNNABLE[name]
    assert "W-ITEMS-DIFFER" not in {note.code for note in profiled(make(), inputs(), ladder=[16]).notes}


def test_what_is_drawn_is_not_said_to_differ_by_the_batch():
    profile = profiled(nn.Sequential(nn.Linear(8, 4), Noise()), features(), ladder=[16])
    assert "W-ITEMS-DIFFER" not in {note.code for note in profile.notes}


class Noise(nn.Module):
    def forward(self, x):
        return x + torch.randn_like(x)
