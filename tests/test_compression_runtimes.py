"""Runtimes: what they compute is checked against the runtime itself, against arithmetic by hand, and against torch."""

from __future__ import annotations

import copy
import functools
import gc
import pickle
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import nn

from aimass_lab.compression._processor import no_int8_products
from aimass_lab.compression.base import Context, make_technique
from aimass_lab.errors import BundleError, InputError, UnsupportedError
from aimass_lab.formats import FORMATS
from aimass_lab.formats.signature import relative_error
from aimass_lab.quiet import quiet
from aimass_lab.recipe import read_recipe
from aimass_lab.trial import Variant, apply_recipe
from aimass_lab.trial.causes import _graph_breaks
from aimass_lab.workload import Call, Workload, as_call, weight_bytes


@pytest.fixture(autouse=True)
def _reproducible() -> Iterator[None]:
    torch.manual_seed(0)
    with quiet():
        yield


def variant_of(model: nn.Module, inputs: Any, text: str, **given: Any) -> Variant:
    return apply_recipe(Workload(model, inputs, **given), read_recipe(text))


def run(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    with torch.inference_mode():
        return model(*args, **kwargs)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 10)).eval()


@functools.cache
def exported_mlp() -> tuple[nn.Module, nn.Module]:
    """A model and its export; tests that change the export work on a copy."""
    torch.manual_seed(0)
    model = mlp()
    return model, variant_of(model, torch.randn(4, 32), "onnxruntime").model


class Convolutions(nn.Module):
    """Convolutions with batch norm, which the exporter folds into them, and a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second, self.head = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 10)
        self.norm.running_mean.uniform_(-0.5, 0.5)
        self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norm(self.first(x)))
        return self.head((x + F.relu(self.second(x))).mean((2, 3)))


class Containers(nn.Module):
    """Nested arguments in; a dict with a tuple, a list, None and a number out."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor, extra: dict[str, torch.Tensor], scale: float = 2.0, shift: torch.Tensor | None = None) -> dict[str, Any]:
        y = self.linear(x) * scale + extra["bias"]
        return {"y": y, "states": (x * 2, [y + 1, y - 1]), "nothing": None, "version": 3, "shifted": y if shift is None else y + shift}


class PairOut(nn.Module):
    def forward(self, a: torch.Tensor, *, b: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor]]:
        return a + b, (a * b,)


def bert(**options: Any) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=60, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, max_position_embeddings=16, **options
    )
    mask = torch.ones(2, 8, dtype=torch.int64)
    mask[1, 5:] = 0
    return transformers.BertModel(config).eval(), {"input_ids": torch.randint(0, 60, (2, 8)), "attention_mask": mask}


def same_structure(a: Any, b: Any) -> None:
    """Types, keys and values, tensors up to rounding."""
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert (a.dtype, a.shape, a.device) == (b.dtype, b.shape, b.device)
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            same_structure(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            same_structure(x, y)
    else:
        assert a == b


CALLS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "tensor": lambda: (mlp(), torch.randn(3, 32)),
    "containers": lambda: (Containers(), Call((torch.randn(3, 4), {"bias": torch.randn(3, 3)}), {"shift": torch.randn(3, 3)})),
    "keywords": lambda: (PairOut(), Call((torch.randn(3, 4),), {"b": torch.randn(3, 4)})),
    "hf": lambda: bert(output_hidden_states=True),
}


@pytest.mark.parametrize("case", CALLS)
def test_containers_come_in_and_go_out_as_they_did(case: str) -> None:
    model, inputs = CALLS[case]()
    variant = variant_of(model, inputs, "onnxruntime")
    for size in (1, 5):
        call = as_call(inputs).with_batch(size)
        same_structure(run(variant.model, *call.args, **call.kwargs), run(model.eval(), *call.args, **call.kwargs))


def test_arguments_may_be_written_in_another_way_and_must_mean_the_same() -> None:
    x, bias = torch.randn(2, 4), {"bias": torch.randn(2, 3)}
    model = Containers().eval()
    exported = variant_of(model, (x, bias), "onnxruntime").model
    expected = run(model, x, bias)
    for args, kwargs in [((x,), {"extra": bias}), ((), {"extra": bias, "x": x}), ((x, bias, 2.0), {}), ((x, bias, 2.0, None), {})]:
        same_structure(run(exported, *args, **kwargs), expected)
    with pytest.raises(InputError, match=r"3\.0, and was fixed to 2\.0"):
        run(exported, x, bias, 3.0)
    with pytest.raises(InputError, match="does not take"):
        run(exported, x, {"other": bias["bias"]})
    with pytest.raises(InputError, match="missing a required argument: 'extra'"):
        run(exported, x)


def test_tensors_that_do_not_fit_are_refused_by_name() -> None:
    _, exported = exported_mlp()
    with pytest.raises(InputError, match="'input' is float64, and the exported model takes float32"):
        run(exported, torch.randn(2, 32).double())
    with pytest.raises(InputError, match=r"shape \[2, 31\], and the exported model takes \[any, 32\]"):
        run(exported, torch.randn(2, 31))
    with pytest.raises(InputError, match="'input' is on meta, and the exported model runs on cpu"):
        run(exported, torch.randn(2, 32, device="meta"))
    two = variant_of(PairOut(), Call((torch.randn(3, 4),), {"b": torch.randn(3, 4)}), "onnxruntime").model
    with pytest.raises(InputError, match="equally many items: 2, 3"):
        run(two, torch.randn(3, 4), b=torch.randn(2, 4))


def test_views_and_tensors_that_require_gradients_are_read_as_they_are() -> None:
    model, exported = exported_mlp()
    wide = torch.randn(32, 4, requires_grad=True)
    torch.testing.assert_close(exported(wide.T), run(model, wide.T), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(exported(wide.T[1:3]), run(model, wide.T[1:3]), rtol=1e-4, atol=1e-5)
    image = torch.randn(2, 1, 8, 8).contiguous(memory_format=torch.channels_last)
    net = Convolutions().eval()
    torch.testing.assert_close(variant_of(net, image, "onnxruntime").model(image), run(net, image), rtol=1e-4, atol=1e-5)


def test_the_module_answers_exactly_what_the_runtime_answers_and_weighs_what_the_file_weighs(tmp_path: Path) -> None:
    x = torch.randn(4, 32)
    variant = variant_of(mlp(), x, "onnxruntime(quantize=dynamic)")
    path = tmp_path / "m.onnx"
    path.write_bytes(variant.model.file.numpy().tobytes())
    onnx.checker.check_model(str(path))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    (expected,) = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]).run(None, {"input": x.numpy()})
    np.testing.assert_array_equal(run(variant.model, x).numpy(), expected)
    assert weight_bytes(variant.model) == variant.size_bytes == path.stat().st_size < weight_bytes(mlp())


def test_the_session_has_as_many_threads_as_torch() -> None:
    before = torch.get_num_threads()
    _, exported = exported_mlp()
    try:
        for threads in (1, 2, 2, 1):
            torch.set_num_threads(threads)
            run(exported, torch.randn(2, 32))
            assert exported.loaded().session.get_session_options().intra_op_num_threads == threads
            assert exported.loaded() is exported.loaded()
    finally:
        torch.set_num_threads(before)


def test_copies_pickles_and_saved_weights_compute_the_same() -> None:
    x = torch.randn(3, 32)
    _, exported = exported_mlp()
    expected = run(exported, x)
    assert torch.equal(run(copy.deepcopy(exported), x), expected)
    assert torch.equal(run(pickle.loads(pickle.dumps(exported)), x), expected)
    torch.manual_seed(9)
    other = variant_of(nn.Linear(32, 10), x, "onnxruntime").model  # a file of another length
    assert not torch.equal(run(other, x), expected)
    other.load_state_dict(exported.state_dict())
    assert torch.equal(run(other, x), expected)


def test_bytes_written_in_place_are_what_the_next_call_runs() -> None:
    x = torch.randn(3, 4)
    one, two = (variant_of(nn.Linear(4, 4), x, "onnxruntime").model for _ in range(2))
    assert not torch.equal(run(one, x), run(two, x))
    with torch.no_grad():
        one.file.copy_(two.file)
    assert torch.equal(run(one, x), run(two, x))


def test_closing_frees_the_session_and_a_released_copy_says_so() -> None:
    x = torch.randn(3, 4)
    variant = variant_of(nn.Linear(4, 4), x, "onnxruntime")
    expected = run(variant.model, x)
    session = weakref.ref(variant.model.loaded().session)
    variant.model.close()
    gc.collect()
    assert session() is None
    assert torch.equal(run(variant.model, x), expected)
    variant.release()
    assert weight_bytes(variant.model) == 0
    with pytest.raises(InputError, match="released"):
        run(variant.model, x)


def test_many_threads_may_call_at_once() -> None:
    _, exported = exported_mlp()
    exported.close()
    inputs = [torch.randn(1 + i % 3, 32) for i in range(12)]
    answers: dict[tuple[int, int], torch.Tensor] = {}

    def work(which: int) -> None:
        for i, x in enumerate(inputs):
            answers[which, i] = run(exported, x)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 72
    for (_, i), answer in answers.items():
        torch.testing.assert_close(answer, run(exported, inputs[i]), rtol=1e-5, atol=1e-6)


# --- quantisation ---


def linear_by_hand(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, *, largest: int) -> np.ndarray:
    """ONNX's DynamicQuantizeLinear and MatMulInteger, one scale a row of `weight`, whose integers go up to `largest`, after the operators' definitions."""
    low, high = min(x.min(), 0), max(x.max(), 0)
    scale = (high - low) / 255
    zero = np.clip(np.rint(-low / scale), 0, 255)
    rounded = np.clip(np.rint(x / scale) + zero, 0, 255)
    scales = np.abs(weight).max(1) / largest
    weights = np.clip(np.rint(weight / scales[:, None]), -largest, largest)
    return (rounded - zero) @ weights.T * scale * scales + bias


@pytest.mark.parametrize(("reduce_range", "largest"), [("false", 127), ("true", 64)])
def test_dynamic_quantisation_is_that_of_the_definition(reduce_range: str, largest: int) -> None:
    if largest > 64 and no_int8_products():
        pytest.skip("this processor sums two products of 8-bit integers in 16 bits, where eight bits do not fit")
    layer, x = nn.Linear(64, 16), torch.randn(5, 64)
    got = run(variant_of(layer, x, f"onnxruntime(quantize=dynamic,reduce_range={reduce_range})").model, x).numpy()
    expected = linear_by_hand(x.double().numpy(), layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy(), largest=largest)
    assert relative_error(expected, got) < 2e-3
    assert relative_error(run(layer, x).numpy(), got) > 2 * relative_error(expected, got)


def test_static_ranges_are_those_of_the_training_samples() -> None:
    x = torch.rand(40, 1, 8, 8) * 3 - 1
    variant = variant_of(Convolutions(), x[:2] * 5, "onnxruntime(quantize=static)", train=x)
    graph = onnx.load_from_string(variant.model.file.numpy().tobytes()).graph
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    first = next(node for node in graph.node if node.op_type == "QuantizeLinear" and node.input[0] == "x")
    assert values[first.input[1]].item() == pytest.approx(((x.max() - x.min()) / 255).item(), rel=1e-5)
    assert not variant.steps[0].notes
    by_examples = variant_of(Convolutions(), x[:2], "onnxruntime(quantize=static)")
    assert [note.code for note in by_examples.steps[0].notes] == ["W-CALIBRATED-ON-EXAMPLES"]


@pytest.mark.parametrize("options", ["quantize=static", "quantize=static,calibration=entropy", "quantize=static,calibration=percentile,per_channel=false"])
def test_static_quantisation_stays_near_the_model_and_gives_the_same_file_again(options: str) -> None:
    x = torch.randn(64, 1, 8, 8)
    net = Convolutions().eval()
    variant = variant_of(net, x[:4], f"onnxruntime({options})", train=x)
    assert relative_error(run(net, x).numpy(), run(variant.model, x).numpy()) < 0.05
    assert all(layer.changed and layer.detail == "int8 weights and activations" for layer in variant.steps[0].layers)
    if "entropy" in options:
        assert torch.equal(variant_of(net, x[:4], f"onnxruntime({options})", train=x).model.file, variant.model.file)


def test_four_bit_weights_are_within_half_a_step_of_each_block() -> None:
    layer = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32, bias=False))
    x = torch.eye(64).reshape(64, 1, 64)  # in three dimensions the product is a MatMul, and with unit vectors it shows the weights
    got = run(variant_of(layer[0], x, "onnxruntime(quantize=int4,block_size=32)").model, x).squeeze(1) - layer[0].bias
    weight = layer[0].weight.detach()
    blocks = weight.reshape(32, 2, 32)
    step = (blocks.amax(2).clamp(min=0) - blocks.amin(2).clamp(max=0)) / 15
    off = (got.T - weight).abs().reshape(32, 2, 32).amax(2)
    assert (off <= step * 1.05).all()  # half a step, and half of one that the zero point loses
    assert off.max() > 0


def test_layers_that_a_quantiser_leaves_are_named_with_the_reason() -> None:
    x = torch.randn(4, 1, 8, 8)
    layers = {layer.name: layer for layer in variant_of(Convolutions(), x, "onnxruntime(quantize=dynamic)").steps[0].layers}
    assert {name for name, layer in layers.items() if layer.changed} == {"head"}
    assert "slower with activations rounded at each call" in layers["first"].detail
    with pytest.raises(UnsupportedError, match="would change nothing"):
        variant_of(nn.Sequential(nn.Conv2d(1, 4, 3)), x, "onnxruntime(quantize=dynamic)")
    with pytest.raises(UnsupportedError, match="no layer with weights"):
        variant_of(nn.ReLU(), x, "onnxruntime(quantize=dynamic)")


def test_a_transformer_quantises_by_layer_and_keeps_its_outputs() -> None:
    model, inputs = bert()
    variant = variant_of(model, inputs, "onnxruntime(quantize=dynamic)")
    got, expected = run(variant.model, **inputs), run(model, **inputs)
    assert type(got) is type(expected)
    assert relative_error(expected.last_hidden_state.numpy(), got.last_hidden_state.numpy()) < 0.03
    # the positions are constants, and so is what their embedding gives
    assert [layer.name for layer in variant.steps[0].layers if not layer.changed] == ["embeddings.position_embeddings"]


def test_importing_the_quantisers_leaves_logging_as_it_was(caplog: pytest.LogCaptureFixture) -> None:
    import logging

    before = (logging.getLogger().level, list(logging.getLogger().handlers), list(logging.getLogger().filters))
    variant_of(nn.Linear(32, 16), torch.randn(2, 3, 32), "onnxruntime(quantize=int4)")
    assert (logging.getLogger().level, logging.getLogger().handlers, logging.getLogger().filters) == before
    assert not [record for record in caplog.records if "onnx" in record.name]


@pytest.mark.parametrize(
    ("recipe", "because"),
    [
        ("bf16 + onnxruntime", "no kernels for 16-bit models on CPUs"),
        ("int8_weight_only + onnxruntime", "ONNX Runtime quantises by itself"),
        ("int8_static + aot_inductor", "code that computes something else"),
        ("int8_static + onnxruntime(quantize=static)", "quantised already: quantize=none"),
        ("onnxruntime + compile", "a runtime took the model over"),
    ],
)
def test_what_does_not_go_together_says_why(recipe: str, because: str) -> None:
    with pytest.raises(UnsupportedError, match=because):
        variant_of(mlp(), torch.randn(4, 32), recipe, train=torch.randn(16, 32))


@pytest.mark.parametrize("options", [{"num_samples": 0}, {"block_size": 24}])
def test_options_that_cannot_be_used_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        make_technique("onnxruntime", options)


def test_a_wrong_export_is_no_variant(monkeypatch: pytest.MonkeyPatch) -> None:
    from aimass_lab.formats import onnx as member

    right = member.onnx_bytes

    def sabotaged(model: nn.Module, call: Call, signature: Any) -> torch.Tensor:
        changed = copy.deepcopy(model)
        with torch.no_grad():
            next(changed.parameters()).mul_(1.01)
        return right(changed, call, signature)

    monkeypatch.setattr(member, "onnx_bytes", sabotaged)
    with pytest.raises(UnsupportedError, match=r"the export is refused: .*relative error of 0\.0"):
        variant_of(nn.Linear(8, 4, bias=False), torch.randn(2, 8), "onnxruntime")


def test_quantising_to_nan_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from aimass_lab.compression import _onnx

    def poisoned(file: torch.Tensor, rounding: Any) -> torch.Tensor:
        model = onnx.load_from_string(file.numpy().tobytes())
        model.graph.node[-1].name = "0/MatMulInteger"
        for tensor in model.graph.initializer:
            array = numpy_helper.to_array(tensor)
            if array.dtype == np.float32:
                tensor.CopyFrom(numpy_helper.from_array(array * np.float32("nan"), tensor.name))
        return torch.frombuffer(bytearray(model.SerializeToString()), dtype=torch.uint8)

    monkeypatch.setattr(_onnx, "quantize_dynamic", poisoned)
    monkeypatch.setattr(_onnx, "quantized_layers", lambda file: ({"0"}, {"0"}))
    with pytest.raises(UnsupportedError, match="'output' holds NaN or infinity"):
        variant_of(nn.Sequential(nn.Linear(8, 8)), torch.randn(2, 8), "onnxruntime(quantize=dynamic)")


def test_a_model_without_batch_axis_and_objects_in_the_outputs_are_noted() -> None:
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, Any]:
            return {"y": x - x.mean(0), "object": torch.Generator()}

    x = torch.randn(4, 3)
    variant = variant_of(Odd(), x, "onnxruntime")
    assert [note.code for note in variant.steps[0].notes] == ["W-NOT-BATCHED", "W-OUTPUT-DROPPED"]
    got = run(variant.model, x)
    torch.testing.assert_close(got["y"], x - x.mean(0))
    assert got["object"] is None


def test_a_gpu_that_the_installed_runtime_cannot_use_is_said_before_anything_is_copied() -> None:
    context = Context.of(Workload(mlp(), torch.randn(2, 32)))
    context.device = torch.device("cuda", 0)
    assert "onnxruntime-gpu" in (make_technique("onnxruntime").unavailable(context) or "")
    context.device = torch.device("cpu")
    assert make_technique("onnxruntime").unavailable(context) is None


def test_without_a_compiler_it_is_said_before_anything_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import cpp_builder
    from torch._inductor.exc import InvalidCxxCompiler

    def none() -> str:
        raise InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    for name, called in (("compile", "torch.compile"), ("aot_inductor", "AOTInductor")):
        with pytest.raises(UnsupportedError, match=f"{called} needs a C\\+\\+ compiler"):
            variant_of(mlp(), torch.randn(2, 32), name)


# --- compilation ---


def test_a_package_is_refused_by_a_bundle_and_says_what_runs_it(tmp_path: Path) -> None:
    from aimass_lab.formats._aot_module import PackageModule

    _, exported = exported_mlp()
    package = PackageModule(torch.zeros(1, dtype=torch.uint8), exported.interface, torch.device("cpu"))
    with pytest.raises(UnsupportedError, match="run by AOTInductor, which no onnx file can hold"):
        FORMATS["onnx"]().export(package, as_call(torch.randn(2, 32)), tmp_path / "model.onnx")


class Breaks(nn.Module):
    """Cut by torch.compile into two graphs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        torch._dynamo.graph_break()
        return self.second(x)


def test_graph_breaks_are_counted_and_refused_where_one_graph_is_asked_for() -> None:
    x = torch.randn(2, 8)
    net = Breaks().eval()
    compiled = variant_of(net, x, "compile").model
    torch.testing.assert_close(run(compiled, x), run(net, x))
    (reason,) = compiled.graph_breaks
    assert "graph_break()" in reason
    (told,) = _graph_breaks(compiled)
    assert told == f"torch.compile had to cut the model in one place and goes back to Python there: {reason}"
    assert not list(_graph_breaks(net))
    whole = variant_of(net, x, "compile(fullgraph=true)").model
    with pytest.raises(UnsupportedError, match="torch.compile failed: "):
        run(whole, x)


def test_an_error_of_the_model_itself_stays_its_own() -> None:
    compiled = variant_of(nn.Linear(4, 4), torch.randn(2, 4), "compile").model
    with pytest.raises((RuntimeError, UnsupportedError), match="shape|size"):
        run(compiled, torch.randn(2, 5))


def test_folded_weights_are_freed_and_the_setting_does_not_leak() -> None:
    from torch._inductor import config
    from torch._inductor.codecache import PyCodeCache

    def folded() -> int:
        return sum(v.nbytes for module in PyCodeCache.modules for v in vars(module).values() if isinstance(v, torch.Tensor))

    x = torch.randn(2, 64)
    net = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 64)).eval()
    before = folded()
    variant = variant_of(net, x, "compile(freezing=true)")
    torch.testing.assert_close(run(variant.model, x), run(net, x), rtol=1e-4, atol=1e-5)
    assert not config.freezing
    assert folded() >= before + 64 * 512 * 4
    weight = weakref.ref(variant.model.model[0].weight)
    variant.release()
    assert folded() == before
    del variant
    gc.collect()
    assert weight() is None


def test_a_static_graph_is_frozen_by_itself() -> None:
    x = torch.randn(8, 32)
    compiled = variant_of(mlp(), x, "int8_static + compile", train=x).model
    assert compiled.freezing
    eager = variant_of(mlp(), x, "int8_static", train=x).model
    assert not variant_of(mlp(), x, "compile").model.freezing
    torch.manual_seed(0)
    assert compiled.model is not eager


@pytest.mark.slow
def test_ahead_of_time_computes_what_the_model_computes_at_any_batch_size(monkeypatch: pytest.MonkeyPatch) -> None:
    from aimass_lab.formats._aot_module import PackageModule
    from aimass_lab.formats._interface import Flat, flat_call
    from aimass_lab.formats._runtime import verify
    from aimass_lab.formats.signature import read_signature

    model, inputs = bert()
    exported = variant_of(model, inputs, "int8_weight_only + aot_inductor").model
    eager = variant_of(model, inputs, "int8_weight_only").model
    for size in (1, 5):
        call = as_call(inputs).with_batch(size)
        same_structure(run(exported, **call.kwargs), run(eager, **call.kwargs))
    assert torch.equal(run(copy.deepcopy(exported), **inputs).pooler_output, run(exported, **inputs).pooler_output)
    right = PackageModule._run
    monkeypatch.setattr(PackageModule, "_run", lambda self, loaded, tensors: [t * 1.1 for t in right(self, loaded, tensors)])
    call = as_call(inputs)
    with torch.no_grad(), pytest.raises(BundleError, match="relative error of 0.1 in AOTInductor"):
        verify(exported, eager, call, read_signature(Flat(eager, call), flat_call(call)))


def test_channels_last_reorders_convolutions_and_nothing_else() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 3, 3), nn.Conv1d(3, 3, 1)).eval()
    net.pos = nn.Parameter(torch.randn(2, 3, 4, 5))
    net.forward = lambda x: net[1](net[0](x))  # type: ignore[method-assign]
    changed = make_technique("channels_last").apply(copy.deepcopy(net), Context.of(Workload(net, torch.randn(2, 3, 8, 8))))
    assert changed[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert changed.pos.is_contiguous()
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(run(changed, x), run(net, x), rtol=1e-4, atol=1e-5)
