"""Traces: what the plugin's parsers add up, against a plain reading of the same file and against torch's own sums."""

import gzip
import json
import re
import shlex
import threading
import time
import urllib.request
from collections import Counter, defaultdict

import msgspec
import pytest
import torch
from models import RUNNABLE, RaisingModel, TinyMLP, TinyTransformer, assert_same, features, ids, snapshot
from torch import nn

from aimass_lab import Study, Workload
from aimass_lab.errors import InputError, ModelError, UnsupportedError
from aimass_lab.frontends.cli import main
from aimass_lab.frontends.render import render_html, render_text
from aimass_lab.headlines import headline
from aimass_lab.profiling.traces import read_trace, trace_model
from aimass_lab.profiling.traces_file import prepare_
from aimass_lab.profiling.traces_tensorboard import open_tensorboard
from aimass_lab.records import TraceSummary, any_from_json, to_json

NANOSECOND = 1e-9


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    """A small transformer, traced for three calls."""
    torch.manual_seed(0)
    model = TinyTransformer().eval()
    folder = tmp_path_factory.mktemp("traces")
    return model, trace_model(Workload(model, ids()), folder, calls=3)


def events_of(path):
    with gzip.open(path) as file:
        return json.load(file)["traceEvents"]


def own_sums(events):
    """Calls, self and total microseconds of each operator, by nesting in time: no line of the plugin's."""
    spans = [e for e in events if e.get("cat") in ("cpu_op", "python_function") and e["ph"] == "X"]
    spans.sort(key=lambda e: (e["tid"], e["ts"], -e["dur"]))
    calls, own, total, stack = Counter(), defaultdict(float), defaultdict(float), []
    for e in spans:
        while stack and (stack[-1]["tid"] != e["tid"] or stack[-1]["ts"] + stack[-1]["dur"] <= e["ts"]):
            stack.pop()
        calls[e["name"]] += 1
        total[e["name"]] += e["dur"]
        own[e["name"]] += e["dur"]
        if stack:
            own[stack[-1]["name"]] -= e["dur"]
        stack.append(e)
    return calls, own, total


# --- a real trace --------------------------------------------------------------------------


def test_operators_as_a_plain_reading_of_the_file_has_them(traced):
    _, summary = traced
    calls, own, total = own_sums(events_of(summary.path))
    names = {name for name in calls if not name.startswith("nn.Module: ")}
    assert {o.name for o in summary.operators} == names
    assert summary.num_operators == len(names)
    for operator in summary.operators:
        assert operator.calls == calls[operator.name]
        assert operator.host_self.value == pytest.approx(own[operator.name] / 1e6, abs=2 * NANOSECOND * 4 * operator.calls)
        assert operator.host_total.value == pytest.approx(total[operator.name] / 1e6, abs=2 * NANOSECOND * operator.calls)
        assert operator.device_self is None
    assert [o.host_self.value for o in summary.operators] == sorted((o.host_self.value for o in summary.operators), reverse=True)


def test_steps_are_the_calls_and_their_parts_add_up(traced):
    _, summary = traced
    marks = [e for e in events_of(summary.path) if e["name"].startswith("ProfilerStep#")]
    assert summary.num_steps == len(marks) == len(summary.steps) == 3
    assert summary.step.total.value == pytest.approx(sum(e["dur"] for e in marks) / 3e6, abs=NANOSECOND)
    for step in (*summary.steps, summary.step):
        parts = [part.value for part in (step.data_loader, step.cpu, step.other)]
        assert sum(parts) == pytest.approx(step.total.value, rel=1e-9)
        assert (step.kernel, step.memcpy, step.runtime, step.communication) == (None, None, None, None)
    # On the processor, the time of operators is that of the outermost: they do not overlap on one thread.
    outermost = union([(e["ts"], e["ts"] + e["dur"]) for e in events_of(summary.path) if e.get("cat") == "cpu_op"])
    assert summary.step.cpu.value == pytest.approx(sum(b - a for a, b in outermost) / 3e6, rel=1e-3)


def union(ranges):
    merged = []
    for a, b in sorted(ranges):
        if merged and a <= merged[-1][1]:
            merged[-1][1] = max(b, merged[-1][1])
        else:
            merged.append([a, b])
    return merged


def test_modules_have_their_paths_and_their_times(traced):
    model, summary = traced
    # a ModuleList is never called
    expected = {name: type(m).__name__ for name, m in model.named_modules() if not isinstance(m, nn.ModuleList)}
    assert {m.name: m.type for m in summary.modules} == expected
    assert summary.num_modules == len(expected)
    assert all(m.calls == 3 for m in summary.modules)
    calls, _, total = own_sums(events_of(summary.path))
    for module in summary.modules:
        name = f"nn.Module: {module.name or '(model)'} [{module.type}]"
        assert module.calls == calls[name]
        assert module.host_total.value == pytest.approx(total[name] / 1e6, abs=4 * NANOSECOND * module.calls)
        assert 0 <= module.host_self.value <= module.host_total.value
    assert [m.depth for m in summary.modules if m.name in ("", "blocks.1", "blocks.1.norm")] == [0, 1, 2]
    names = [m.name for m in summary.modules]
    assert names.index("") < names.index("blocks.1") < names.index("blocks.1.norm")
    linear = next(m for m in summary.modules if m.name == "blocks.0.widen")
    assert linear.operators == 3, "aten::linear, once a call"


def test_the_memory_curve_is_the_sum_of_the_allocations(traced):
    _, summary = traced
    held = peak = 0
    for event in sorted((e for e in events_of(summary.path) if e["name"] == "[memory]"), key=lambda e: e["ts"]):
        held = event["args"]["Total Allocated"]
        peak = max(peak, held)
    (memory,) = summary.memory
    assert memory.device == "CPU"
    assert memory.peak_bytes.value == peak > 0
    assert len(memory.times_s) == len(memory.allocated_bytes) == len(memory.reserved_bytes) <= 400
    assert list(memory.times_s) == sorted(memory.times_s)
    assert max(memory.allocated_bytes) <= peak
    assert memory.allocated_bytes[-1] == held


def test_allocations_belong_to_the_operator_that_asked(tmp_path):
    """One matrix product of known size: its output, and nothing else."""
    model = nn.Linear(64, 256, bias=False)
    summary = trace_model(Workload(model, torch.ones(32, 64)), tmp_path, calls=2)
    allocated = {o.name: o.allocated_bytes.value for o in summary.operators}
    assert allocated["aten::mm"] == 2 * 32 * 256 * 4
    assert sum(allocated.values()) == 2 * 32 * 256 * 4


def test_the_same_sums_as_torch_makes_itself(tmp_path):
    """A trace made without us, by torch alone, against torch's own table of it."""
    model, x = TinyTransformer().eval(), ids()
    with torch.inference_mode(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profiler:
        for _ in range(4):
            model(x)
    path = tmp_path / "plain.json"
    profiler.export_chrome_trace(str(path))
    summary = read_trace(path)
    theirs = {event.key: event for event in profiler.key_averages()}
    assert summary.num_steps == 1
    assert summary.model is None
    assert summary.tensorboard is None
    for operator in summary.operators:
        event = theirs[operator.name]
        assert operator.calls == event.count
        assert operator.host_self.value == pytest.approx(event.self_cpu_time_total / 1e6, abs=5 * NANOSECOND * event.count)
        assert operator.host_total.value == pytest.approx(event.cpu_time_total / 1e6, abs=2 * NANOSECOND * event.count)
        assert operator.allocated_bytes is None
    assert not summary.modules
    assert not summary.memory


def test_the_profilers_own_stacks_give_modules_too(tmp_path):
    summary = trace_model(Workload(TinyTransformer(layers=1), ids()), tmp_path, calls=1, stacks=True)
    assert "TinyTransformer_0" in {m.name for m in summary.modules}
    assert any(e.get("cat") == "python_function" and "models.py" in e["name"] for e in events_of(summary.path))


def test_a_lean_trace_has_no_shapes_and_no_memory(tmp_path):
    summary = Study(TinyTransformer(layers=1), ids()).trace(path=str(tmp_path), lean=True, calls=1)
    assert summary.memory == ()
    assert all(o.allocated_bytes is None for o in summary.operators)
    assert not any("Input Dims" in e.get("args", {}) for e in events_of(summary.path))


# --- the model and the files ---------------------------------------------------------------


@pytest.mark.parametrize("name", RUNNABLE)
def test_the_model_is_left_as_it_was(name, tmp_path):
    make, inputs = RUNNABLE[name]
    torch.manual_seed(0)
    model, x = make(), inputs()
    before = snapshot(model)
    summary = trace_model(Workload(model, x), tmp_path, calls=1)
    assert_same(before, snapshot(model))
    assert summary.num_steps == 1
    assert summary.modules


def test_a_model_that_raises_leaves_nothing_behind(tmp_path):
    model = RaisingModel()
    before = snapshot(model)
    with pytest.raises(ModelError, match="this model never works"):
        trace_model(Workload(model, features()), tmp_path)
    assert_same(before, snapshot(model))
    assert not torch._C._autograd._profiler_enabled()
    assert list(tmp_path.iterdir()) == []


def test_modules_called_by_other_threads_are_not_marked(tmp_path):
    class Threaded(nn.Module):
        def __init__(self):
            super().__init__()
            self.here, self.there = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            thread = threading.Thread(target=self.there, args=(x,))
            thread.start()
            thread.join()
            return self.here(x)

    summary = trace_model(Workload(Threaded(), features()), tmp_path, calls=2)
    assert {m.name for m in summary.modules} == {"", "here"}


def test_a_compiled_model_is_one_module(tmp_path):
    model = torch.compile(TinyMLP().eval(), backend="eager")
    summary = trace_model(Workload(model, features()), tmp_path, calls=2)
    assert [(m.name, m.type, m.calls) for m in summary.modules] == [("", "OptimizedModule", 2)]
    assert "aten::linear" in {o.name for o in summary.operators}


def test_nothing_of_the_profiler_is_printed(tmp_path, capfd):
    trace_model(Workload(nn.Linear(8, 8), features()), tmp_path, calls=1)
    assert capfd.readouterr() == ("", "")


def test_traces_lie_beside_the_history_and_never_on_one_another(tmp_path):
    study = Study(nn.Linear(8, 8), features(), name="my net/1.5", store=tmp_path / "own.db")
    paths = {study.trace(calls=1).path for _ in range(3)}
    assert len(paths) == 3
    # the pattern that torch_tb_profiler looks for
    assert all(re.search(r"/traces/my_net_1_5\.\d+\.pt\.trace\.json\.gz$", path) for path in paths)
    assert [run.verb for run in study.store.runs()] == ["trace"] * 3
    assert study.store.get(1)[1].tensorboard == f"%tensorboard --logdir {tmp_path / 'traces'}"


@pytest.mark.parametrize("name", ["mine.json", "mine.pt.trace.json.gz"])
def test_a_named_file_is_written_once(tmp_path, name):
    workload, path = Workload(nn.Linear(8, 8), features()), tmp_path / "new" / name
    first = trace_model(workload, path, calls=1)
    assert first.path == str(path)
    assert first.size_bytes.value == path.stat().st_size
    assert first.tensorboard == (f"%tensorboard --logdir {path.parent}" if ".pt.trace." in name else None)
    content = path.read_bytes()
    with pytest.raises(InputError, match=re.escape(f"there is a file {str(path)!r} already")):
        trace_model(workload, path, calls=1)
    assert path.read_bytes() == content
    again = read_trace(path)
    assert (again.operators[0].name, again.num_events) == (first.operators[0].name, first.num_events)


def test_a_folder_that_cannot_be_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file and no folder"):
        trace_model(Workload(nn.Linear(8, 8), features()), tmp_path / "file")
    for below in (tmp_path / "file" / "below", tmp_path / "file" / "x.json", tmp_path / "file" / "below" / "x.json.gz"):
        with pytest.raises(InputError, match=f"cannot be written to .*: {re.escape(str(tmp_path))}/file is no folder"):
            trace_model(Workload(RaisingModel(), features()), below, calls=1)  # told before the model is called


@pytest.mark.parametrize("calls", [0, -1, 1.5, True])
def test_calls_that_cannot_be_made(tmp_path, calls):
    with pytest.raises(InputError, match="cannot be traced"):
        trace_model(Workload(nn.Linear(8, 8), features()), tmp_path, calls=calls)


def test_a_model_without_weights_and_a_second_profiler_are_refused(tmp_path):
    with pytest.raises(UnsupportedError, match="meta device"):
        trace_model(Workload(nn.Linear(8, 8, device="meta"), torch.empty(1, 8, device="meta")), tmp_path)
    with torch.profiler.profile(), pytest.raises(UnsupportedError, match="already at work"):
        trace_model(Workload(nn.Linear(8, 8), features()), tmp_path)


# --- files of others -----------------------------------------------------------------------

NO_TRACES = {
    "empty": b"",
    "text": b"not a trace",
    "binary": bytes(range(256)),
    "list": b"[1, 2]",
    "number": b"3",
    "object": b'{"events": []}',
    "names": b'{"traceEvents": [{"ph": "X"}]}',
    "nothing": b'{"traceEvents": []}',
    "null": b'{"traceEvents": null}',
    "browser": b'{"traceEvents": [{"ph": "X", "cat": "toplevel", "name": "RunTask", "ts": 1, "dur": 2, "pid": 1, "tid": 1}]}',
}


@pytest.mark.parametrize("kind", NO_TRACES)
@pytest.mark.parametrize("packed", [False, True])
def test_what_is_no_trace_is_refused_by_name(tmp_path, kind, packed):
    path = tmp_path / ("a.json.gz" if packed else "a.json")
    path.write_bytes(gzip.compress(NO_TRACES[kind]) if packed else NO_TRACES[kind])
    with pytest.raises(InputError, match=re.escape(str(path))):
        read_trace(path)


def test_broken_and_absent_files_are_refused(tmp_path, traced):
    half = tmp_path / "half.json.gz"
    with open(traced[1].path, "rb") as whole:
        half.write_bytes(whole.read()[:-100])
    plain = tmp_path / "plain.json.gz"
    plain.write_text("{}")
    for path in (half, plain):
        with pytest.raises(InputError, match="is no trace"):
            read_trace(path)
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(InputError, match="there is no trace at"):
            read_trace(path)


def test_broken_json_of_old_profilers_is_read(tmp_path):
    """Some versions wrote N/A without quotes where a figure was unknown."""
    path = tmp_path / "a.json"
    event = '{"ph": "X", "cat": "cpu_op", "name": "aten::add", "pid": 1, "tid": 1, "ts": 5, "dur": 7, "args": {"External id": 1, "kind": N/A}}'
    path.write_text(f'{{"traceEvents": [{event}]}}')
    summary = read_trace(path)
    assert [(o.name, o.calls) for o in summary.operators] == [("aten::add", 1)]
    assert summary.operators[0].host_self.value == pytest.approx(7e-6, abs=NANOSECOND)


# --- a trace of a GPU, written by hand in the form of today's profiler -----------------------

BASE = 4_344_809_790_000.0
"""Microseconds since the profiler's own zero: of the size that a running machine has."""


def span(cat, name, ts, dur, tid=1, pid=1, **args):
    return {"ph": "X", "cat": cat, "name": name, "pid": pid, "tid": tid, "ts": BASE + ts, "dur": dur, "args": args}


def launch(number, operator, ts, kernel_ts, kernel_dur, name="gemm", cat="kernel", **args):
    """A runtime call of 2 us and the kernel that it launches."""
    device = {"device": 0, "stream": 7, "correlation": number, "External id": operator, **args}
    yield span("cuda_runtime", "cudaLaunchKernel", ts, 2, correlation=number, **{"External id": operator})
    yield span(cat, name, kernel_ts, kernel_dur, tid=7, pid=0, **device)


def gpu_trace():
    """Two steps of 100 us on the host. Each: a linear layer (gemm 40 us), an activation (10 us), one copy (5 us)."""
    events = [span("Trace", "PyTorch Profiler (0)", 0, 260, tid="PyTorch Profiler", pid="Spans")]
    for i, t in enumerate((0, 100)):
        first = 10 * i
        events += [
            span("user_annotation", f"ProfilerStep#{i + 1}", t, 100, **{"External id": first + 1}),
            span("gpu_user_annotation", f"ProfilerStep#{i + 1}", t + 20, 75, tid=7, pid=0, **{"External id": first + 1}),
            span("cpu_op", "aten::linear", t + 10, 30, **{"External id": first + 2, "Input Dims": [[8, 8]]}),
            span("cpu_op", "aten::addmm", t + 12, 20, **{"External id": first + 3}),
            span("cpu_op", "aten::gelu", t + 50, 10, **{"External id": first + 4}),
            span("cpu_op", "aten::copy_", t + 70, 10, **{"External id": first + 5}),
            *launch(first + 1, first + 3, t + 15, t + 20, 40, "gemm", **{"est. achieved occupancy %": 50, "blocks per SM": 2.0}),
            *launch(first + 2, first + 4, t + 52, t + 62, 10, "gelu_kernel", **{"est. achieved occupancy %": 100, "blocks per SM": 0.5}),
            *launch(first + 3, first + 5, t + 72, t + 80, 5, "Memcpy DtoH", cat="gpu_memcpy", bytes=4096),
        ]
    device = {"id": 0, "name": "Hand-written GPU", "totalGlobalMem": 2**34, "computeMajor": 9, "computeMinor": 0, "numSms": 100}
    return {"schemaVersion": 1, "deviceProperties": [device], "traceEvents": events}


def written(trace, folder, name="worker.1.pt.trace.json"):
    path = folder / name
    path.write_text(json.dumps(trace))
    return path


def microseconds(number):
    return None if number is None else round(number.value * 1e6, 2)


def test_kernels_belong_to_the_operators_that_launched_them(tmp_path):
    summary = read_trace(written(gpu_trace(), tmp_path))
    found = {o.name: (o.calls, microseconds(o.device_self), microseconds(o.device_total), microseconds(o.host_self)) for o in summary.operators}
    assert found == {
        "aten::addmm": (2, 80, 80, 36),
        "aten::linear": (2, 0, 80, 20),
        "aten::gelu": (2, 20, 20, 16),
        "aten::copy_": (2, 10, 10, 16),
    }
    assert [(k.name, k.calls, microseconds(k.total), k.operator, k.occupancy.value, k.blocks_per_sm) for k in summary.kernels] == [
        ("gemm", 2, 80, "aten::addmm", 0.5, 2.0),
        ("gelu_kernel", 2, 20, "aten::gelu", 1.0, 0.5),
    ]
    assert summary.kernels[0].mean.interval == pytest.approx((40e-6, 40e-6))


def test_a_step_on_a_gpu_is_told_by_what_the_gpu_did(tmp_path):
    """Each step: kernels 20-60 and 62-72, the copy 80-85; of the rest the runtime 15-17 and 72-74; then operators 10-15, 17-20, 74-80."""
    summary = read_trace(written(gpu_trace(), tmp_path))
    assert summary.num_steps == 2, "the mirror image of a step on the GPU's row is no step"
    for step in (*summary.steps, summary.step):
        assert microseconds(step.total) == pytest.approx(100, abs=0.01)
        assert (microseconds(step.kernel), microseconds(step.memcpy), microseconds(step.memset)) == (50, 5, 0)
        assert microseconds(step.runtime) == 4
        assert microseconds(step.cpu) == pytest.approx(5 + 3 + 6, abs=0.01)
        assert microseconds(step.other) == pytest.approx(100 - 50 - 5 - 4 - 14, abs=0.01)
    (gpu,) = summary.gpus
    assert (gpu.index, gpu.name, gpu.utilization.value) == (0, "Hand-written GPU", pytest.approx(0.5))
    assert gpu.sm_efficiency.value == pytest.approx((40 * 1.0 + 10 * 0.5) / 100)
    assert gpu.occupancy.value == pytest.approx((40 * 0.5 + 10 * 1.0) / 50)
    assert "Tensor Cores" in " ".join(summary.recommendations)
    assert "<" not in " ".join(summary.recommendations)


def test_numbers_of_another_series_do_not_link_kernels_to_strangers(tmp_path):
    """Where the profiler gave runtime calls numbers that are not those of the operators around them."""
    trace = gpu_trace()
    for event in trace["traceEvents"]:
        if event["cat"] in ("cuda_runtime", "kernel", "gpu_memcpy"):
            event["args"]["External id"] = {1: 5, 2: 2, 3: 99, 11: 14, 12: 3, 13: 99}[event["args"]["correlation"]]
    found = {o.name: microseconds(o.device_self) for o in read_trace(written(trace, tmp_path)).operators}
    assert found == {"aten::addmm": 80, "aten::linear": 0, "aten::gelu": 20, "aten::copy_": 10}


def test_callees_that_end_with_their_callers_are_kept_however_large_the_times_are(tmp_path):
    """At 1.7e15 us since 1970 a floating-point time has steps of a quarter microsecond."""
    base = 1_712_195_495_505_543.0
    events = []
    for i in range(400):
        start, length = base + 10 * i + 0.1 * (i % 7), 5 + 0.013 * (i % 11)
        inner = start + 0.37 * (i % 5)
        number = 3 * i + 1
        events.append({**span("cpu_op", "outer", 0, length, **{"External id": number}), "ts": start})
        events.append({**span("cpu_op", "inner", 0, start + length - inner, **{"External id": number + 1}), "ts": inner})
    summary = read_trace(written({"traceEvents": events}, tmp_path))
    assert {o.name: o.calls for o in summary.operators} == {"outer": 400, "inner": 400}
    assert not [note for note in summary.notes if note.code == "W-TRACE"]


def test_preparing_twice_changes_nothing():
    once, twice = gpu_trace(), gpu_trace()
    prepare_(once)
    prepare_(twice)
    prepare_(twice)
    assert once == twice


# --- size ----------------------------------------------------------------------------------


def long_trace(steps, per_step):
    """Hundreds of thousands of events with thousands of long names, deep modules and a busy allocator."""
    events, number = [], 0
    for step in range(steps):
        began = step * per_step * 10
        events.append(span("user_annotation", f"ProfilerStep#{step}", began, per_step * 10, **{"External id": 10**7 + step}))
        for i in range(per_step):
            number += 1
            t = began + 10 * i
            events.append(span("python_function", f"nn.Module: layer.{i % 1500} [Layer]", t, 9, **{"Python id": number, "Python module id": i % 1500}))
            events.append(span("cpu_op", f"custom::operator_{number % 3000}_" + "x" * 200, t + 1, 7, **{"External id": number}))
            events += launch(number, number, t + 2, t + 4, 3, f"void kernel_{number % 3000}<" + "float, " * 60 + ">")
            change = {"Addr": number % 50, "Bytes": 512, "Device Type": 1, "Device Id": 0, "Total Allocated": 512 * number, "Total Reserved": 2**30}
            events.append({"ph": "i", "cat": "cpu_instant_event", "name": "[memory]", "s": "t", "pid": 1, "tid": 1, "ts": BASE + t + 3, "args": change})
    return {"schemaVersion": 1, "traceEvents": events}


@pytest.mark.slow
def test_what_goes_to_the_browser_is_small_however_long_the_trace(tmp_path):
    trace = long_trace(steps=30, per_step=2050)
    assert len(trace["traceEvents"]) > 300_000
    path = tmp_path / "long.1.pt.trace.json.gz"
    path.write_bytes(gzip.compress(msgspec.json.encode(trace), 1))
    summary = read_trace(path)
    assert summary.num_events == len(trace["traceEvents"])
    assert (summary.num_steps, summary.num_operators, summary.num_kernels, summary.num_modules) == (30, 3000, 3000, 1500)
    assert len(to_json(summary, indent=None)) < 1_000_000 / 3
    assert len(to_json(summary)) < 1_000_000
    assert len(render_html(summary)) < 1_000_000 / 3
    assert summary.memory[0].peak_bytes.value == 512 * 30 * 2050
    assert any(note.code == "W-LARGE" for note in summary.notes) == (len(msgspec.json.encode(trace)) > 500e6)


def test_a_real_trace_is_a_small_record(traced):
    assert len(to_json(traced[1])) < 200_000


# --- showing -------------------------------------------------------------------------------


def test_a_trace_survives_json_and_both_ways_of_showing(traced, tmp_path):
    for summary in (traced[1], read_trace(written(gpu_trace(), tmp_path))):
        assert any_from_json(to_json(summary)) == summary
        text, page = render_text(summary), render_html(summary)
        for shown in (text, page):
            assert summary.operators[0].name in shown
            assert "ui.perfetto.dev" in shown
        assert summary.operators[0].name in headline(summary)
    assert "By GPU kernel" in text
    assert "launched by" in text
    assert "GPU 0 (Hand-written GPU) busy" in text
    assert "By GPU kernel" not in render_text(traced[1])
    assert "blocks.0.widen" in render_text(traced[1])


def test_the_verbs(model_file, tmp_path, capsys):
    assert main(["trace", f"{model_file}:make", "--path", str(tmp_path / "logs"), "--calls", "2", "--json"]) == 0
    summary = any_from_json(capsys.readouterr().out)
    assert isinstance(summary, TraceSummary)
    assert (summary.model.name, summary.num_steps) == ("Net", 2)
    assert main(["read_trace", summary.path]) == 0
    assert "aten::addmm" in capsys.readouterr().out
    assert main(["read_trace", str(model_file)]) == 2
    assert "is no trace" in capsys.readouterr().err


# --- TensorBoard ---------------------------------------------------------------------------


def ask(board, route, **query):
    parameters = "&".join(f"{k}={v}" for k, v in query.items())
    with urllib.request.urlopen(f"{board.url.partition('/#')[0]}/data/plugin/pytorch_profiler/{route}?{parameters}", timeout=30) as answer:
        data = answer.read()
    return json.loads(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)


@pytest.mark.slow
def test_tensorboard_shows_the_same(tmp_path):
    """The real program and the real plugin; a trace of a GPU that it could not add up by itself among them."""
    study = Study(TinyTransformer(layers=1), ids(), name="net")
    with pytest.raises(InputError, match="no trace yet"):
        study.open_tensorboard()
    ours = study.trace(path=str(tmp_path / "runs" / "ours"), calls=2)
    (tmp_path / "runs" / "theirs").mkdir()
    written(gpu_trace(), tmp_path / "runs" / "theirs")
    with open_tensorboard(tmp_path / "runs") as board:
        assert board.url.startswith("http://127.0.0.1:")
        assert shlex.split(board.magic) == ["%tensorboard", "--logdir", str(tmp_path / "runs")]
        assert board.url in repr(board)
        deadline = time.monotonic() + 200
        while (runs := ask(board, "runs")) != {"runs": ["ours", "theirs"], "loading": False}:
            assert time.monotonic() < deadline, runs
            time.sleep(0.3)
        assert ask(board, "views", run="ours") == ["Overview", "Operator", "Trace", "Memory", "Module"]
        (worker,) = ask(board, "workers", run="ours", view="Operator")
        (span_,) = ask(board, "spans", run="ours", worker=worker)
        table = ask(board, "operation/table", run="ours", worker=worker, span=span_, group_by="Operation")["data"]
        assert {row["name"]: row["calls"] for row in table} == {o.name: o.calls for o in ours.operators}
        modules = ask(board, "module", run="ours", worker=worker, span=span_)["data"]
        assert [m["name"] for m in modules] == ["(model) [TinyTransformer]"]
        (worker,) = ask(board, "workers", run="theirs", view="Kernel")
        (span_,) = ask(board, "spans", run="theirs", worker=worker)
        table = ask(board, "operation/table", run="theirs", worker=worker, span=span_, group_by="Operation")["data"]
        assert {row["name"]: row["device_self_duration"] for row in table}["aten::addmm"] == 80
        assert board.running
    assert not board.running
    with pytest.raises(OSError):
        ask(board, "runs")


def test_a_folder_without_traces_opens_nothing(tmp_path):
    (tmp_path / "mine.json").write_text("{}")
    with pytest.raises(InputError, match="no trace in"):
        open_tensorboard(tmp_path)
    with pytest.raises(InputError, match="no trace in"):
        open_tensorboard(tmp_path / "none")
