"""What explains a profile: time by operator, kernel and line, memory by part and over time."""

import mmap
import time
from types import SimpleNamespace

import msgspec
import psutil
import pytest
import torch
from models import RUNNABLE, TinyMLP, TinyTransformer, assert_same, features, ids, snapshot
from torch import nn

from aimass_lab.environment import LoadMeter
from aimass_lab.frontends.charts import chart
from aimass_lab.frontends.render import render_html, render_text
from aimass_lab.profiling import profile_callable, profile_model
from aimass_lab.profiling.cold import measure_cold_start
from aimass_lab.profiling.kernels import Breakdown, family_named, match_rows, share_of_families, spread_sources
from aimass_lab.profiling.ledger import DeviceAccount, device_ledger, processor_ledger
from aimass_lab.profiling.memory import begin_peak, peak_of_call, peak_since
from aimass_lab.profiling.recorder import Allocation, Kernel, Op, Recording, _Reader, record_call
from aimass_lab.profiling.timeline import downsample, find_peak, make_timeline
from aimass_lab.records import ColdStart, Number, Profile, from_json, to_json
from aimass_lab.tracing.trace import Row, trace_call
from aimass_lab.workload import Workload, as_call

CPU = torch.device("cpu")


def recorded(model, call):
    call = as_call(call)
    with torch.inference_mode():
        model(*call.args, **call.kwargs)
        return record_call(lambda: model(*call.args, **call.kwargs), CPU, model)


def broken_down(recording, trace=None):
    return Breakdown(recording, trace, environment="here", quality="ok")


def size(value):
    return Number(value=value, unit="B", source="measured", method="given")


@pytest.fixture(scope="module")
def profile():
    return profile_model(Workload(TinyTransformer(), ids(4)), budget_s=0.5, ladder=[1, 8])


# --- the recorded call


def test_operators_carry_the_module_that_they_ran_in():
    recording = recorded(TinyMLP().eval(), features())
    where = {(op.name, op.module) for op in recording.ops}
    assert {("aten::addmm", "first"), ("aten::addmm", "second"), ("aten::relu", "")} <= where
    assert recording.input_shapes == {"": (2, 8), "first": (2, 8), "second": (2, 16)}


def test_times_of_operators_and_of_what_is_outside_add_up_to_the_call():
    class Slow(TinyMLP):
        def forward(self, x):
            time.sleep(0.02)
            return super().forward(x)

    recording = recorded(Slow().eval(), features())
    assert sum(op.self_ns for op in recording.ops) + recording.outside_ops_ns == recording.call_ns
    assert recording.outside_ops_ns > 15e6, "sleeping is no operator"


@pytest.mark.parametrize("name", RUNNABLE)
def test_recording_leaves_the_model_as_it_was(name):
    if name == "mutating":
        pytest.skip("its own forward changes it")
    make, inputs = RUNNABLE[name]
    model = make().eval()
    before = snapshot(model)
    recorded(model, inputs())
    assert_same(before, snapshot(model))


def test_a_call_that_raises_leaves_no_hook_and_no_profiler():
    hooks = dict(torch.nn.modules.module._global_forward_hooks)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        recorded(TinyMLP(), features(2, 9))
    assert torch.nn.modules.module._global_forward_hooks == hooks
    assert not torch._C._autograd._profiler_enabled()


def test_within_another_profiler_nothing_is_recorded_but_the_call_is_made():
    calls = []
    with torch.autograd.profiler.profile():
        assert record_call(lambda: calls.append(1), CPU) is None
    assert calls == [1]


def test_operators_are_those_that_torch_s_own_profiler_counts():
    model, x = TinyTransformer().eval(), ids()
    recording = recorded(model, x)
    with torch.inference_mode(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as reference:
        model(x)
    counted = {event.key: event.count for event in reference.key_averages() if "::" in event.key}
    table = {row.name: row.calls for row in broken_down(recording).operators()}
    assert table == counted


def test_the_peak_is_what_the_allocations_of_another_call_say():
    model, x = TinyTransformer().eval(), ids()
    recording = recorded(model, x)
    with torch.inference_mode():
        assert recording.peak_bytes == peak_of_call(lambda: model(x), CPU)


# --- lines


def test_time_is_given_to_the_line_that_asked_for_it():
    class Sleepy(nn.Module):
        def __init__(self):
            super().__init__()
            self.heavy = nn.Linear(512, 512)

        def forward(self, x):
            y = self.heavy(x)  # the first line
            return y + 1  # the second

    model = Sleepy().eval()
    x = torch.randn(256, 512)
    trace = trace_call(model, as_call(x))
    first = Sleepy.forward.__code__.co_firstlineno + 1
    lines = {line.source.rpartition(":")[2]: line for line in broken_down(recorded(model, x), trace).lines()}
    assert set(lines) == {str(first), str(first + 1)}
    assert lines[str(first)].operator == "aten::addmm"
    assert (lines[str(first)].calls, lines[str(first + 1)].calls) == (1, 1)


def test_rows_are_matched_by_module_and_order():
    def row(op, module, source):
        return Row(op, (module,), "light", 0, 0, 0, 0, 0, source=source)

    ops = [Op(name, module, parent, 1, 1) for name, module, parent in [("a", "m", -1), ("b", "m", 0), ("a", "n", -1), ("a", "m", -1)]]
    rows = (row("a", "m", "x:1"), row("a", "m", "x:2"), row("a", "n", "y:1"))
    matched = match_rows(ops, rows)
    assert [r.source if r else None for r in matched] == ["x:1", None, "y:1", "x:2"]
    assert spread_sources(ops, matched) == ["x:1", "x:1", "y:1", "x:2"], "what an operator calls belongs to its line"


def test_where_the_real_call_differs_from_the_trace_no_line_is_made_up():
    def row(source):
        return Row("a", ("m",), "light", 0, 0, 0, 0, 0, source=source)

    ops = [Op("a", "m", -1, 1, 1)] * 3
    assert match_rows(ops, (row("x:1"), row("x:2"))) == [None] * 3
    assert [r.source for r in match_rows(ops, (row("x:1"), row("x:1")))] == ["x:1"] * 3, "one line: which is which does not matter"


def test_an_operator_around_several_lines_belongs_to_none():
    ops = [Op("outer", "m", -1, 3, 1), Op("a", "m", 0, 1, 1), Op("b", "m", 0, 1, 1), Op("around", "m", -1, 1, 1), Op("c", "m", 3, 1, 1)]

    def row(op, source):
        return Row(op, ("m",), "light", 0, 0, 0, 0, 0, source=source)

    sources = spread_sources(ops, match_rows(ops, (row("a", "x:1"), row("b", "x:2"), row("c", "x:3"))))
    assert sources == ["", "x:1", "x:2", "x:3", "x:3"]


@pytest.mark.parametrize(
    ("name", "family"), [("aten::addmm", "gemm"), ("aten::view", "view"), ("aten::gelu", "elementwise"), ("no::such", "other"), ("x", "other")]
)
def test_families_are_known_by_name(name, family):
    assert family_named(name) == family


# --- GPU kernels: the arithmetic on what the profiler gives there


def gpu_recording():
    ops = [Op("aten::linear", "fc", -1, 100, 10), Op("aten::addmm", "fc", 0, 90, 90), Op("aten::relu", "", -1, 50, 50)]
    kernels = [Kernel("gemm", 700, 1, "fc"), Kernel("gemm", 100, 1, "fc"), Kernel("relu", 200, 2, "")]
    return Recording(call_ns=2000, ops=ops, kernels=kernels)


def test_kernels_are_charged_to_the_operator_that_launched_them():
    breakdown = broken_down(gpu_recording())
    kernels = {k.name: k for k in breakdown.kernels()}
    assert (kernels["gemm"].calls, kernels["gemm"].device_time.value, kernels["gemm"].share.value) == (2, 8e-7, 0.8)
    assert (kernels["gemm"].operator, kernels["gemm"].module) == ("aten::linear", "fc")
    operators = {o.name: o for o in breakdown.operators()}
    assert (operators["aten::addmm"].device_time.value, operators["aten::addmm"].share.value) == (8e-7, 0.8)
    assert next(iter(operators)) == "aten::addmm", "ranked by the time of kernels, not of launching them"
    assert share_of_families(gpu_recording(), "gemm") == 0.8


def event(name, kind, start, end, children=(), correlation=0, **more):
    return SimpleNamespace(
        name=name, tag=SimpleNamespace(name=kind), start_time_ns=start, end_time_ns=end, duration_time_ns=end - start, children=list(children),
        correlation_id=correlation, extra_fields=SimpleNamespace(**more),
    )  # fmt: skip


def kernel_event(name, activity, duration, linked):
    return SimpleNamespace(name=lambda: name, activity_type=lambda: activity, duration_ns=lambda: duration, linked_correlation_id=lambda: linked)


def test_kernels_are_found_by_the_number_of_what_launched_them():
    cuda = torch.device("cuda", 0)
    launch = event("cudaLaunchKernel", "Kineto", 12, 13, correlation=4)  # the driver's own numbering, which may meet ours
    taken = event("[memory]", "Allocation", 12, 12, device=cuda, alloc_size=512, ptr=1)
    elsewhere = event("[memory]", "Allocation", 12, 12, device=CPU, alloc_size=64, ptr=2)
    mm = event("aten::mm", "TorchOp", 11, 15, [launch, taken, elsewhere], correlation=3)
    module = event("aimass:0", "TorchOp", 10, 20, [mm], correlation=2)
    call = event("aimass:", "TorchOp", 0, 100, [module], correlation=1)
    found = [kernel_event("k", "kernel", 7, 3), kernel_event("own", "kernel", 5, 2), kernel_event("note", "gpu_user_annotation", 9, 2)]
    recording = Recording()
    _Reader(recording, ["fc"], cuda, regions=False).read(SimpleNamespace(experimental_event_tree=lambda: [call], events=lambda: found))
    assert recording.kernels == [Kernel("k", 7, 0, "fc"), Kernel("own", 5, -1, "fc")], "the second: a kernel that no operator of torch launched"
    assert [a.bytes for a in recording.allocations] == [512], "of the model's device only"


# --- memory over time


def allocations(*changes):
    return [Allocation(time_ns, size_bytes, address, -1, None) for time_ns, (size_bytes, address) in enumerate(changes)]


def test_the_peak_and_what_is_alive_then():
    events = allocations((100, 1), (50, 2), (-100, 1), (70, 1), (30, 3), (-50, 2), (-70, 1))
    peak = find_peak(events)
    assert (peak.index, peak.held_bytes) == (1, 150), "the first of two equal moments"
    assert [a.bytes for a in peak.alive] == [100, 50]
    assert find_peak(allocations((-10, 9), (5, 1))) is None, "less is held than before, at every moment"
    assert find_peak([]) is None


def test_a_long_series_keeps_its_ends_and_its_peak():
    held = [(7919 * i) % 1000 for i in range(100_000)]
    held[61_803] = 5000
    times, kept = downsample([float(i) for i in range(len(held))], held)
    assert len(times) == len(kept) == 500
    assert (times[0], times[-1]) == (0.0, 99_999.0)
    assert (61_803.0, 5000) in zip(times, kept, strict=True)
    assert list(times) == sorted(times)


def test_a_short_series_stays_as_it_is():
    assert downsample([0.0, 1.0], [3, 4]) == ((0.0, 1.0), (3, 4))


def test_the_peak_names_the_tensors_that_make_it():
    class Two(nn.Module):
        def forward(self, x):
            a = x.new_ones(1000)
            b = a + a
            del a
            return (b * b)[:1]

    model = Two()
    x = torch.ones(1)
    timeline = make_timeline(broken_down(recorded(model, x), trace_call(model, as_call(x))), environment="here")
    line = Two.forward.__code__.co_firstlineno
    assert timeline.peak.value == 8000
    assert timeline.source.endswith(f":{line + 2}")
    assert sorted((t.bytes.value, int(t.source.rpartition(":")[2]) - line) for t in timeline.alive) == [(4000, 1), (4000, 2)]
    assert timeline.alive_rest.value == 0
    assert max(timeline.held_bytes) == 8000


# --- the ledger


def test_parts_of_the_process_add_up_to_what_the_system_reports():
    parts = processor_ledger(size(1000), weights=size(300), inputs=size(20), activations=size(100), call_peak=size(150), environment="here")
    assert [p.bytes.value for p in parts] == [300, 20, 100, 50, 530]
    assert sum(p.bytes.value for p in parts) == 1000
    assert "interpreter" in parts[-1].name


def test_weights_that_are_mapped_but_not_read_do_not_break_the_sum():
    parts = processor_ledger(size(1000), weights=size(5000), inputs=size(0), activations=size(10), call_peak=size(10), environment="here")
    assert sum(p.bytes.value for p in parts) == 1000
    assert parts[-1].bytes.value < 0
    assert "not in memory" in parts[-1].name


def test_parts_of_the_gpu_add_up_to_what_the_driver_reports():
    account = DeviceAccount(used=10_000, reserved=4000, allocated_before=2500, allocated_peak=3200, own=4600)
    parts, notes = device_ledger(size(10_000), account, weights=size(2000), inputs=size(100), activations=size(600), environment="here")
    assert {p.name: p.bytes.value for p in parts} == {
        "weights": 2000,
        "inputs": 100,
        "activations": 600,
        "operator workspaces": 100,
        "other tensors of this process, allocator rounding": 400,
        "allocator slack": 800,
        "CUDA context and libraries": 600,
        "other processes and the driver": 5400,
    }
    assert notes == []


def test_without_the_driver_s_count_of_processes_context_and_others_stay_together():
    account = DeviceAccount(used=10_000, reserved=4000, allocated_before=2500, allocated_peak=3200, own=None, why_not_own="no NVML")
    parts, notes = device_ledger(size(10_000), account, weights=size(2000), inputs=size(100), activations=size(600), environment="here")
    assert sum(p.bytes.value for p in parts) == 10_000
    assert parts[-1].name == "CUDA context, libraries and other processes"
    assert "no NVML" in notes[0].text


def test_the_high_water_mark_sees_memory_that_came_and_went():
    held = begin_peak(CPU)
    if held is None:
        pytest.skip("this system's high-water mark cannot be reset")
    with mmap.mmap(-1, 2**26) as memory:  # given back for certain; what malloc is given back, it may keep
        for _ in range(2**6):
            memory.write(bytes(2**20))
    assert peak_since(CPU) - held > 0.9 * 2**26
    assert begin_peak(CPU) < held + 2**25, "it begins anew"
    assert peak_since(CPU) == pytest.approx(psutil.Process().memory_info().rss, rel=0.1)


# --- a whole profile


def test_a_profile_explains_itself(profile):
    spent = sum(o.self_time.value for o in profile.operators) + profile.outside_operators.value
    assert spent == pytest.approx(profile.operator_overhead.value * profile.latency_p50.value)
    assert sum(part.bytes.value for part in profile.memory) == profile.memory_total.value
    assert profile.memory_total.value > profile.peak_memory_bytes.value
    held = {part.name: part.bytes.value for part in profile.memory}
    assert held["weights"] == profile.weight_bytes.value
    assert profile.timeline.peak.value == held["activations"] + held["operator workspaces"]
    assert {line.source.partition(":")[0] for line in profile.lines} == {"models.py"}
    assert 0.5 < sum(line.share.value for line in profile.lines) + profile.outside_operators.value / spent <= 1.0001
    assert profile.kernels == ()
    assert profile.device_busy is None
    assert {m.name: m.input_shape for m in profile.modules}["blocks.0.qkv"] == (4, 12, 32)


def test_a_profile_says_what_it_cost(profile):
    assert profile.profiling_cost.value > 1
    assert profile.cpu_time_per_call.value > 0
    assert (profile.warmup_calls is None) == any(note.code == "missing:warmup" for note in profile.notes)
    assert (profile.energy_per_call is None) == any(note.code == "missing:energy" for note in profile.notes)
    assert profile.first_call_peak_bytes.unit == "B"


def test_what_explains_survives_json_and_is_shown(profile):
    assert from_json(to_json(profile), Profile) == profile
    for text in (render_text(profile), render_html(profile)):
        assert "Time by operator" in text
        assert "Time by line" in text
        assert "Memory at the highest moment of a call" in text
        assert "The whole profile took" in text
        assert "Time by GPU kernel" not in text
    drawn = chart(profile)
    assert {type(trace).__name__ for trace in drawn.data} == {"Scatter", "Treemap", "Bar"}
    assert len(drawn.to_json()) < 100_000


def test_a_profile_from_before_operators_were_recorded_is_still_shown(profile):
    old = msgspec.structs.replace(profile, operators=(), lines=(), memory=(), memory_total=None, timeline=None, outside_operators=None, operator_overhead=None)
    assert "Time by operator" not in render_text(old)
    assert {type(trace).__name__ for trace in chart(old).data} == {"Scatter", "Treemap"}


def test_many_operators_become_one_row_of_others():
    ops = [Op(f"mine::op{i}", None, -1, 1000 - i, 1000 - i) for i in range(100)]
    rows = broken_down(Recording(call_ns=200_000, ops=ops)).operators()
    assert len(rows) == 41
    assert rows[-1].name == "(60 other operators)"
    assert sum(r.self_time.value for r in rows) == pytest.approx(sum(op.self_ns for op in ops) / 1e9)


def test_a_model_of_thousands_of_modules_stays_small():
    deep = nn.Sequential(*(nn.Identity() for _ in range(1200)), nn.Linear(8, 8))
    profile = profile_model(Workload(deep, features()), budget_s=0.2, ladder=[])
    assert len(profile.modules) <= 501
    assert "" in {m.name for m in profile.modules}
    assert any(note.code == "W-MODULES" and "1202" in note.text for note in profile.notes)
    assert len(to_json(profile, indent=None)) < 1_000_000


def test_a_cell_s_peak_is_exact_even_below_an_older_one():
    if begin_peak(CPU) is None:
        pytest.skip("this system's high-water mark cannot be reset")
    torch.ones(2**28, dtype=torch.uint8)
    record = profile_callable(lambda: torch.ones(2**26, dtype=torch.uint8), label="cell [1]")
    assert "high-water mark" in record.peak_memory_bytes.method
    assert record.peak_memory_bytes.value < psutil.Process().memory_info().rss + 2**27


def test_a_compiled_model_is_recorded_without_marks_in_it():
    model = torch.compile(TinyMLP(), backend="eager")
    profile = profile_model(Workload(model, features()), budget_s=0.2, ladder=[])
    assert any(note.code == "missing:modules" for note in profile.notes)
    assert profile.operators


def test_on_a_busy_machine_the_processor_time_is_told(monkeypatch):
    monkeypatch.setattr(LoadMeter, "noisy", property(lambda self: True))
    notes = profile_model(Workload(TinyMLP(), features()), budget_s=0.1, ladder=[]).notes
    assert any(note.code == "W-PROCESSOR-TIME" and "processor time" in note.text for note in notes)


# --- cold start


def test_a_cold_start_in_a_fresh_process(tmp_path):
    (tmp_path / "factory.py").write_text("import torch\ndef make():\n    return torch.nn.Linear(512, 512), torch.ones(2, 512)\n")
    cold = measure_cold_start(Workload(nn.Linear(512, 512), torch.ones(2, 512)), factory=f"{tmp_path / 'factory.py'}:make")
    assert cold.how == "a fresh process"
    assert cold.import_time.value > 0.1
    assert cold.ready_after.value == pytest.approx(cold.import_time.value + cold.load_time.value + cold.warmup_time.value)
    assert cold.first_call.value > 0
    assert cold.compile_time is None
    assert from_json(to_json(cold), ColdStart) == cold
    assert "interpreter and torch" in render_text(cold)


def test_a_cold_start_that_cannot_be_fresh_says_so():
    class Local(nn.Linear):
        """Cannot be pickled: nothing can import it."""

    model = Local(4, 4)
    before = snapshot(model)
    cold = measure_cold_start(Workload(model, torch.ones(1, 4)))
    assert_same(before, snapshot(model))
    assert cold.how.startswith("this kernel")
    assert cold.import_time is None
    assert any(note.code == "missing:fresh_process" and "Local" in note.text for note in cold.notes)


def test_a_factory_that_fails_is_named_with_its_error(tmp_path):
    from aimass_lab.errors import InputError

    (tmp_path / "broken.py").write_text("def make():\n    raise ValueError('no weights here')\n")
    with pytest.raises(InputError, match="no weights here"):
        measure_cold_start(Workload(nn.Linear(4, 4), torch.ones(1, 4)), factory=f"{tmp_path / 'broken.py'}:make")
    with pytest.raises(InputError, match="does not name a function"):
        measure_cold_start(Workload(nn.Linear(4, 4), torch.ones(1, 4)), factory="broken.py")
