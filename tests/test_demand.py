"""Demand: what one call asks for, held against closed forms, real encodings and real runs."""

import json

import pytest
import torch
from models import RUNNABLE, BranchingModel, DictModel, RaisingModel, TiedModel, TinyCNN, TinyMLP, TinyTransformer, assert_same, features, ids, snapshot
from torch import nn

from aimass_lab.demand import estimate_demand
from aimass_lab.devices import get_device, load_devices
from aimass_lab.errors import InputError, ModelError, UnknownNameError, UnsupportedError
from aimass_lab.prediction import estimate_ladder
from aimass_lab.profiling import profile_model
from aimass_lab.records import Demand, from_json, to_json
from aimass_lab.tracing.trace import trace_call
from aimass_lab.workload import Workload

L4_FP32 = get_device("l4").flops_per_s["float32"].value


def demand_of(model, inputs, **options):
    return estimate_demand(Workload(model, inputs), **options)


def codes(demand):
    return {note.code for note in demand.notes}


@pytest.mark.parametrize("name", RUNNABLE)
def test_every_model_has_a_demand_and_is_left_alone(name):
    make, inputs = RUNNABLE[name]
    model = make().train()
    before = snapshot(model)
    demand = demand_of(model, inputs(), device="l4")
    assert_same(before, snapshot(model))
    assert demand.flops.value > 0
    assert demand.coverage.value == 1
    assert demand.fits
    assert from_json(to_json(demand), Demand) == demand


def test_an_mlp_by_hand():
    batch = 5
    demand = demand_of(TinyMLP(), features(batch))
    parameters = 8 * 16 + 16 + 16 * 3 + 3
    assert demand.batch_size == batch
    assert demand.num_parameters.value == parameters
    assert demand.weight_bytes.value == 4 * parameters
    assert demand.flops.value == 2 * batch * (8 * 16 + 16 * 3)
    assert demand.activation_peak_bytes.value == 4 * batch * 16 * 2
    assert demand.peak_memory_bytes.value == 4 * (parameters + batch * 8 + batch * 16 * 2)
    first = 4 * (batch * 8 + 8 * 16 + 16 + batch * 16)
    relu = 4 * 2 * batch * 16
    second = 4 * (batch * 16 + 16 * 3 + 3 + batch * 3)
    assert demand.bytes_moved.value == first + relu + second
    assert demand.arithmetic_intensity.value == pytest.approx(demand.flops.value / demand.bytes_moved.value)


def test_weight_bytes_are_those_of_the_state_dict():
    model = TinyCNN()
    assert demand_of(model, torch.ones(1, 1, 8, 8)).weight_bytes.value == sum(t.numel() * t.element_size() for t in model.state_dict().values())
    tied = TiedModel()
    own = {t.data_ptr(): t.numel() * t.element_size() for t in tied.state_dict().values()}
    assert demand_of(tied, ids()).weight_bytes.value == sum(own.values())


def test_the_rows_add_up():
    demand = demand_of(TinyTransformer(), ids())
    assert sum(o.flops.value for o in demand.operators) == demand.flops.value == demand.modules[0].flops.value
    assert sum(o.bytes_moved.value for o in demand.operators) == demand.bytes_moved.value
    by_name = {m.name: m for m in demand.modules}
    blocks = by_name["blocks.0"].flops.value + by_name["blocks.1"].flops.value
    assert blocks == demand.flops.value
    assert by_name["blocks.0.qkv"].flops.value == 2 * 2 * 12 * 32 * 96
    assert by_name[""].num_parameters == demand.num_parameters.value


def test_what_a_profile_measures_lies_in_the_band():
    model = TinyTransformer()
    demand = demand_of(model, ids(4))
    profile = profile_model(Workload(model, ids(4)), budget_s=0.2, ladder=[])
    low, high = demand.peak_memory_bytes.interval
    assert low <= profile.peak_memory_bytes.value <= high
    assert profile.peak_memory_bytes.value == pytest.approx(demand.peak_memory_bytes.value, rel=0.01)
    assert profile.flops.value == demand.flops.value


def test_the_source_says_that_nothing_ran():
    demand = demand_of(TinyMLP(), features())
    assert {demand.flops.source, demand.bytes_moved.source, demand.activation_peak_bytes.source} == {"estimated"}
    assert demand.peak_memory_bytes.weakest_source == "estimated"
    assert "W-REAL-RUN" not in codes(demand)


def test_a_demand_really_runs_nothing():
    class Untouchable(TinyMLP):
        def forward(self, x):
            assert isinstance(x, torch._subclasses.FakeTensor)
            return super().forward(x)

    demand_of(Untouchable(), features())


def test_a_model_that_must_run_says_so():
    demand = demand_of(BranchingModel(), features())
    assert demand.flops.source == "measured"
    assert demand.flops.value == 2 * 2 * (8 * 16 + 16 * 3)
    assert "W-REAL-RUN" in codes(demand)


def test_a_model_on_the_meta_device():
    with torch.device("meta"):
        empty = TinyTransformer()
    demand = demand_of(empty, ids().to("meta"), device="l4")
    full = demand_of(TinyTransformer(), ids(), device="l4")
    for name in ("flops", "bytes_moved", "weight_bytes", "activation_peak_bytes", "peak_memory_bytes", "request_bytes", "response_bytes", "max_batch_size"):
        assert getattr(demand, name).value == getattr(full, name).value, name
    assert demand.weight_bytes.source == "estimated"


# --- network


def test_request_and_response_are_really_encoded():
    inputs = {"input_ids": ids(3), "attention_mask": torch.ones(3, 12)}
    demand = demand_of(DictModel(), inputs)
    assert demand.request_bytes.value == len(oip_request(inputs)) + 12 * 8 + 12 * 4
    tensors = [
        {"name": "input_ids", "shape": [1, 12], "datatype": "INT64", "data": inputs["input_ids"][0].tolist()},
        {"name": "attention_mask", "shape": [1, 12], "datatype": "FP32", "data": [1.0] * 12},
    ]
    assert demand.request_json_bytes.value == len(json.dumps({"inputs": tensors}, separators=(",", ":")))
    assert demand.request_json_bytes.source == "measured"
    assert 4 * 4 + 12 * 8 * 4 < demand.response_bytes.value < 4 * 4 + 12 * 8 * 4 + 400
    assert demand.response_json_bytes.interval[0] < demand.response_json_bytes.value < demand.response_json_bytes.interval[1]


def oip_request(inputs):
    """The JSON part of a binary request, as the protocol's binary extension defines it."""
    names = {torch.int64: "INT64", torch.float32: "FP32"}
    tensors = [{"name": n, "shape": [1, *t.shape[1:]], "datatype": names[t.dtype], "parameters": {"binary_data_size": t[0].nbytes}} for n, t in inputs.items()]
    return json.dumps({"parameters": {"binary_data_output": True}, "inputs": tensors}, separators=(",", ":")).encode()


def test_network_bytes_are_of_one_item_whatever_the_batch():
    one, many = demand_of(TinyMLP(), features(1)), demand_of(TinyMLP(), features(7))
    for name in ("request_bytes", "response_bytes", "request_json_bytes", "response_json_bytes"):
        assert getattr(one, name).value == pytest.approx(getattr(many, name).value, rel=0.1), name


def test_json_of_a_long_tensor_is_scaled_from_its_start():
    class Pass(nn.Module):
        def forward(self, x):
            return x[:, :1] * 2

    x = torch.randn(1, 200_000, generator=torch.Generator().manual_seed(0))
    demand = demand_of(Pass(), x)
    real = len(json.dumps({"inputs": [{"name": "x", "shape": [1, 200_000], "datatype": "FP32", "data": x[0].tolist()}]}, separators=(",", ":")))
    assert demand.request_json_bytes.source == "estimated"
    assert demand.request_json_bytes.value == pytest.approx(real, rel=0.01)
    assert demand.request_json_bytes.interval[0] <= real <= demand.request_json_bytes.interval[1]


# --- batch and device


def test_largest_batch_is_the_last_whose_band_stays_below_the_limit():
    model = TinyTransformer()
    demand = demand_of(model, ids(2, 64), device="t4")
    largest = int(demand.max_batch_size.value)
    limit = demand.memory_limit_bytes.value
    workload = Workload(model, ids(2, 64))
    bands = [estimate_demand(workload, batch_size=b, device="t4").peak_memory_bytes.interval[1] for b in (largest, largest + 1)]
    assert bands[0] <= limit < bands[1]


def test_a_batch_too_large_does_not_fit():
    demand = demand_of(TinyMLP(), features(), batch_size=10**9, device="t4")
    assert demand.fits is False
    assert demand.batch_size == 10**9
    assert demand.max_batch_size.value < 10**9
    assert demand.flops.value == 2 * 10**9 * (8 * 16 + 16 * 3)


def test_weights_larger_than_the_device_leave_no_batch():
    with torch.device("meta"):
        huge = nn.Linear(2**16, 2**17, bias=False)
    demand = demand_of(huge, torch.empty(2, 2**16, device="meta"), device="t4")
    assert demand.fits is False
    assert demand.max_batch_size.value == 0


def test_inputs_without_a_batch_axis_give_no_largest_batch():
    class Scalar(nn.Module):
        def forward(self, x):
            return x * 2

    demand = demand_of(Scalar(), torch.tensor(1.0))
    assert demand.max_batch_size is None
    assert "missing:max_batch_size" in codes(demand)


def test_latency_on_a_datasheet_device_is_a_labelled_roofline():
    layer = nn.Linear(4096, 4096, bias=False, device="meta")
    demand = demand_of(layer, torch.empty(8192, 4096, device="meta"), device="l4")
    at_peak = 2 * 8192 * 4096 * 4096 / L4_FP32
    assert demand.device == "l4"
    assert demand.latency.source == "estimated"
    assert "not measured here" in demand.latency.method
    assert at_peak < demand.latency.interval[0] < demand.latency.value < demand.latency.interval[1] < 10 * at_peak


def test_a_rate_the_catalogue_lacks_gives_no_latency():
    no_bf16 = next(name for name, d in load_devices().items() if d.kind == "gpu" and "bfloat16" not in d.flops_per_s)
    demand = demand_of(TinyMLP().to(torch.bfloat16), features().to(torch.bfloat16), device=no_bf16)
    assert demand.latency is None
    assert "missing:latency" in codes(demand)


def test_latency_on_the_attached_device_has_a_band():
    demand = demand_of(TinyTransformer(), ids())
    assert demand.device == "cpu"
    low, high = demand.latency.interval
    assert 0 < low < demand.latency.value < high
    assert demand.memory_limit_bytes.source == "measured"


def test_an_operator_without_a_formula_is_in_the_open():
    @torch.library.custom_op("aimass_test::demand_mystery", mutates_args=())
    def mystery(x: torch.Tensor) -> torch.Tensor:
        return x @ x.T

    @mystery.register_fake
    def _(x):
        return x.new_empty(len(x), len(x))

    class Mystery(TinyMLP):
        def forward(self, x):
            return mystery(super().forward(x))

    demand = demand_of(Mystery(), features())
    assert demand.coverage.value < 1
    assert [o.name for o in demand.operators if not o.has_formula] == ["aimass_test::demand_mystery"]
    assert any(note.code == "W-COVERAGE" and "demand_mystery" in note.text for note in demand.notes)


# --- what cannot be used


def test_a_model_that_raises():
    with pytest.raises(ModelError, match="this model never works"):
        demand_of(RaisingModel(), features())


@pytest.mark.parametrize("batch_size", [0, -2, 1.5, True])
def test_a_batch_size_must_be_a_positive_integer(batch_size):
    with pytest.raises(InputError, match="positive integer"):
        demand_of(TinyMLP(), features(), batch_size=batch_size)


def test_an_unknown_device_lists_those_there_are():
    with pytest.raises(UnknownNameError, match="no device called 'h1000'"):
        demand_of(TinyMLP(), features(), device="h1000")


@pytest.mark.skipif(torch.cuda.device_count() > 6, reason="this machine has that device")
def test_a_gpu_that_is_not_attached():
    with pytest.raises(UnsupportedError, match="cuda:7 is not attached"):
        demand_of(TinyMLP(), features(), device="cuda:7")


def test_progress_goes_from_nothing_to_all():
    told = []
    demand_of(TinyMLP(), features(), progress=lambda share, text: told.append(share))
    assert (told[0], told[-1]) == (0, 1)
    assert told == sorted(told)


def test_a_fused_encoder_is_bounded_by_its_parts():
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    demand = demand_of(layer, torch.randn(2, 6, 16))
    assert "W-FUSED" in codes(demand)
    assert demand.activation_peak_bytes.value == trace_call(layer, Workload(layer, torch.randn(2, 6, 16)).call).activation_peak_bytes


# --- the ladder of a device that is not here


def test_an_estimated_ladder_is_what_the_single_demands_say():
    workload = Workload(TinyTransformer(), ids(2))
    ladder = estimate_ladder(workload, "l4")
    assert [point.batch_size for point in ladder] == [1, 2, 4, 8, 16, 32, 64, 128, 256]
    for point in (ladder[0], ladder[4], ladder[8]):
        demand = estimate_demand(workload, batch_size=point.batch_size, device="l4")
        assert point.latency_p50.value == pytest.approx(demand.latency.value, rel=1e-9)
        assert point.peak_memory_bytes.value == demand.peak_memory_bytes.value
        assert point.throughput.value == pytest.approx(point.batch_size / point.latency_p50.value)
    assert {point.latency_p50.source for point in ladder} == {"estimated"}


def test_an_estimated_ladder_ends_where_memory_does():
    class Wide(nn.Module):
        def forward(self, x):
            return x.expand(len(x), 10**9).contiguous()

    ladder = estimate_ladder(Workload(Wide(), torch.ones(1, 1)), "t4")
    assert [point.batch_size for point in ladder] == [1, 2]


def test_a_ladder_without_rates_is_refused():
    no_bf16 = next(name for name, d in load_devices().items() if d.kind == "gpu" and "bfloat16" not in d.flops_per_s)
    with pytest.raises(UnsupportedError, match="bfloat16 rate"):
        estimate_ladder(Workload(TinyMLP().to(torch.bfloat16), features().to(torch.bfloat16)), no_bf16)
