"""Model formats: real exports, judged by the format's own runtime and by readers that nobody here wrote."""

from __future__ import annotations

import copy
import logging
import pickletools
import warnings
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import PaddedEncoder, padded_sequences
from torch import nn

from aimass_lab import Study
from aimass_lab.bundle import write_bundle
from aimass_lab.bundle.runtimes import slower_at, slower_notes
from aimass_lab.environment import LoadMeter
from aimass_lab.errors import BundleError, MissingPackageError, ModelError, UnsupportedError
from aimass_lab.fast_path import filled_by_fast_path
from aimass_lab.formats import FORMATS, FormatFile, _onnx_export
from aimass_lab.formats._export import without_stack_traces
from aimass_lab.formats.base import Arrays, compare
from aimass_lab.formats.measure import batch_ladder, compare_speeds, measure_format
from aimass_lab.formats.signature import read_signature, relative_error
from aimass_lab.workload import Call, Workload, as_call


class TwoInputs(nn.Module):
    """Positional arguments in, a dict out."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, tokens: torch.Tensor, weights: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden = (self.embed(tokens) * weights.unsqueeze(-1)).mean(1)
        return {"logits": self.head(hidden), "hidden": hidden}


class RunsOn(nn.Module):
    """Adds up from item to item: one end of the batch is answered as if it were alone."""

    def __init__(self, *, backwards: bool) -> None:
        super().__init__()
        self.backwards = backwards

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Running sums."""
        return x.flip(0).cumsum(0).flip(0) if self.backwards else x.cumsum(0)


class GivesSparse(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.relu().to_sparse()


class MixesItems(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - x.mean(0)


class EachWithEach(nn.Module):
    """As models of images and texts compare all with all."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ x.T


class Unexportable(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.svd(x)[1]


class FixedBatch(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(4, 2, -1).sum(1)


class Pair(nn.Module):
    """A tuple out, and batch norm, whose buffers training would change."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.body(image)
        return features, features.sum(1)


def tiny_bert() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, max_position_embeddings=16
    )
    ids = torch.randint(0, 60, (3, 8))
    mask = torch.ones(3, 8, dtype=torch.int64)
    mask[1, 5:] = 0
    return transformers.BertModel(config), {"input_ids": ids, "attention_mask": mask}


CASES = {
    "mlp": lambda: (nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2)), torch.randn(3, 6)),
    "cnn": lambda: (Pair(), torch.randn(3, 1, 8, 8)),
    "two inputs": lambda: (TwoInputs(), (torch.randint(0, 50, (3, 7)), torch.rand(3, 7))),
    "transformer": lambda: (nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 1), torch.randn(3, 5, 16)),
    "bert": tiny_bert,
}


COMPILED = [pytest.param("mlp", "aot_inductor", marks=pytest.mark.slow)]
"""One case is enough for what compiles for the better part of a minute."""
PAIRS = [(case, format) for case in CASES for format in FORMATS if format != "aot_inductor"] + COMPILED


@pytest.mark.parametrize(("model", "x", "what"), [
    (GivesSparse(), torch.eye(3), "the output 'output'"), (nn.ReLU(), torch.eye(3).to_sparse(), "the input 'input'"),
])  # fmt: skip
def test_what_no_request_can_carry_is_refused(model: nn.Module, x: torch.Tensor, what: str) -> None:
    with torch.no_grad(), pytest.raises(UnsupportedError, match=f"{what} is laid out as sparse_coo.*\n.*dense"):
        read_signature(model, as_call(x))


@pytest.mark.parametrize(("case", "format"), PAIRS)
def test_every_format_computes_what_the_model_computes(format: str, case: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, inputs = CASES[case]()
    model.train()
    call = as_call(inputs)
    before = copy.deepcopy(model.state_dict())

    file = FORMATS[format]().export(model, call, tmp_path / FORMATS[format].file_name, max_batch_size=8)

    assert file.batched
    assert not file.notes
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for batch in (call.with_batch(1), call.with_batch(5)):  # 5 is no size that the exporter or its check saw
        arrays = {spec.name: t.numpy() for spec, t in zip(file.inputs, batch.tensors(), strict=True)}
        got = FORMATS[format]().load_and_run(file.path, arrays)
        with torch.no_grad():
            outputs = copy.deepcopy(model).eval()(*batch.args, **batch.kwargs)
        leaves = [outputs] if isinstance(outputs, torch.Tensor) else list(outputs.values() if isinstance(outputs, dict) else outputs)
        assert len(leaves) == len(file.outputs)
        for spec, leaf in zip(file.outputs, leaves, strict=True):
            np.testing.assert_allclose(got[spec.name], leaf.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")  # torch's own, of its fused path
def test_an_encoder_that_torch_fuses_is_exported_and_says_what_becomes_of_padded_places(tmp_path: Path) -> None:
    """A file has the layers themselves: what torch's fused kernels leave zero is what the layers compute there, in all formats."""
    model, (x, padded) = PaddedEncoder(), padded_sequences()
    file = FORMATS["onnx"]().export(model, as_call((x, padded)), tmp_path / "model.onnx", max_batch_size=8)
    (note,) = file.notes
    assert note.code == "W-PADDING"
    assert note.text.startswith("'output': where items are padded")
    assert file.batched
    got = FORMATS["onnx"]().load_and_run(file.path, {"x": x.numpy(), "padded": padded.numpy()})["output"]
    with torch.no_grad():
        fused = model.eval()(x, padded).numpy()
    np.testing.assert_allclose(got[~padded.numpy()], fused[~padded.numpy()], rtol=1e-4, atol=1e-5)
    assert not fused[padded.numpy()].any()
    assert got[padded.numpy()].all()

    full = FORMATS["onnx"]().export(model, as_call((x, torch.zeros_like(padded))), tmp_path / "full.onnx", max_batch_size=8)
    assert not full.notes  # nothing is padded


def test_complex_outputs_of_a_fused_encoder_are_one_answer_but_for_rounding() -> None:
    class Complex(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.fft.fft(self.layer(x), dim=-1)

    with torch.no_grad():
        assert filled_by_fast_path(Complex().eval(), as_call(torch.randn(3, 5, 16))) == ()


def test_names_and_shapes_are_those_of_the_model(tmp_path: Path) -> None:
    model, inputs = tiny_bert()
    file = FORMATS["onnx"]().export(model, as_call(inputs), tmp_path / "model.onnx")
    assert [(s.name, s.dtype, s.shape) for s in file.inputs] == [("input_ids", "int64", (-1, 8)), ("attention_mask", "int64", (-1, 8))]
    assert [(s.name, s.dtype, s.shape) for s in file.outputs] == [("last_hidden_state", "float32", (-1, 8, 16)), ("pooler_output", "float32", (-1, 16))]


def test_the_onnx_file_is_valid_alone_and_tells_nothing_about_this_machine(tmp_path: Path) -> None:
    import onnx

    path = tmp_path / "model.onnx"
    FORMATS["onnx"]().export(Pair(), as_call(torch.randn(2, 1, 8, 8)), path)

    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(str(path), load_external_data=False)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 20)]
    assert not any(t.data_location == onnx.TensorProto.EXTERNAL for t in model.graph.initializer)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx"]
    content = path.read_bytes()
    assert str(Path(__file__).parent).encode() not in content
    assert b"stack_trace" not in content
    with pytest.raises(ValueError, match="opcode|exhausted|expected"):
        list(pickletools.genops(content))


@pytest.mark.parametrize(
    ("model", "inputs", "axis", "because"),
    [
        (MixesItems(), torch.randn(4, 3), 0, "depends on the other items"),
        (RunsOn(backwards=False), torch.randn(4, 3), 0, "depends on the other items"),
        (RunsOn(backwards=True), torch.randn(4, 3), 0, "depends on the other items"),
        (EachWithEach(), torch.randn(4, 3), 0, "'output' has shape [2, 2] for 2 items, and [4, 4] for 4"),
        (FixedBatch(), torch.randn(8, 6), 0, "items"),
        (nn.Linear(3, 3), torch.randn(5, 4, 3), 1, "axis 1"),
        (TwoInputs(), (torch.randint(0, 50, (4, 7)), torch.rand(1, 7)), 0, "'weights' [1, 7] has no batch axis"),
        (nn.LSTM(3, 4, num_layers=2, batch_first=True), torch.randn(4, 5, 3), 0, "'output_1' has shape [2, 4, 4] for 4 items"),
        (nn.LSTM(3, 4, num_layers=2, batch_first=True), torch.randn(1, 5, 3), 0, "'output_1' has shape [2, 1, 4] for 1 items"),
    ],
)
def test_a_model_without_batch_axis_is_exported_as_it_is_called(model: nn.Module, inputs: object, axis: int, because: str, tmp_path: Path) -> None:
    call = as_call(inputs, axis)
    file = FORMATS["onnx"]().export(model, call, tmp_path / "model.onnx", max_batch_size=8)
    assert not file.batched
    assert [note.code for note in file.notes] == ["W-NOT-BATCHED"]
    assert because in file.notes[0].text
    assert [spec.shape for spec in file.inputs] == [tuple(t.shape) for t in call.tensors()]
    arrays = {spec.name: t.numpy() for spec, t in zip(file.inputs, call.tensors(), strict=True)}
    expected = model(*call.args)
    expected = expected["logits"] if isinstance(expected, dict) else expected[0] if isinstance(expected, tuple) else expected
    got = FORMATS["onnx"]().load_and_run(file.path, arrays)
    np.testing.assert_allclose(got[file.outputs[0].name], expected.detach().numpy(), rtol=1e-4, atol=1e-5)


class Drawing(nn.Linear):
    """Adds noise, of a size that may be nothing."""

    def __init__(self, noise: float) -> None:
        super().__init__(4, 3)
        self.noise = noise

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + self.noise * torch.randn(3)


def test_outputs_that_are_drawn_at_random_are_refused_as_such(tmp_path: Path) -> None:
    """Whose items differ in a batch and alone, too, and whose file is not what errs."""
    noisy, still, call = Drawing(1.0), Drawing(0.0), as_call(torch.randn(2, 4))
    state = torch.get_rng_state()
    for format in ("onnx", "safetensors"):
        with pytest.raises(BundleError, match="'output' of the model is drawn at random") as raised:
            FORMATS[format]().export(noisy, call, tmp_path / FORMATS[format].file_name)
        assert "as one more input" in (raised.value.help or "")
    assert torch.equal(torch.get_rng_state(), state)
    assert read_signature(still.eval(), call).batched


def test_what_is_no_tensor_in_the_outputs_is_told(tmp_path: Path) -> None:
    class Cache:
        pass

    class Several(nn.Linear):
        def forward(self, x: torch.Tensor) -> dict[str, Any]:
            return {"logits": super().forward(x), "cache": Cache(), "depth": 3, "hidden": None}

    (note,) = FORMATS["onnx"]().export(Several(4, 3), as_call(torch.randn(2, 4)), tmp_path / "model.onnx").notes
    assert note.code == "W-OUTPUT-DROPPED"
    assert note.text == "the outputs hold what is no tensor (Cache, int), and the file returns the tensors only: 'logits'"


def test_an_output_with_the_name_of_an_input_is_refused_where_a_name_is_one_value(tmp_path: Path) -> None:
    class Brightens(nn.Linear):
        def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"image": super().forward(image)}

    model, x = Brightens(4, 4), torch.randn(2, 4)
    with pytest.raises(UnsupportedError, match="'image' is the name of an input and of an output"):
        FORMATS["onnx"]().export(model, as_call(x), tmp_path / "model.onnx")
    file = FORMATS["safetensors"]().export(model, as_call(x), tmp_path / FORMATS["safetensors"].file_name)
    got = FORMATS["safetensors"]().load_and_run(file.path, {"image": x.numpy()})
    np.testing.assert_allclose(got["image"], model(x)["image"].detach().numpy(), rtol=1e-4, atol=1e-5)


def test_what_cannot_be_exported_names_the_operator(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UnsupportedError, match="linalg_svd") as raised:
        FORMATS["onnx"]().export(Unexportable(), as_call(torch.randn(2, 4, 4)), tmp_path / "model.onnx")
    assert "in a format that torch runs, such as safetensors" in str(raised.value)
    assert "stack" not in capfd.readouterr().err.lower()


@torch.library.custom_op("aimass_tests::doubled", mutates_args=())
def doubled(x: torch.Tensor) -> torch.Tensor:
    return x * 2


@doubled.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


class CallsAnotherLibrary(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return doubled(x)


@pytest.mark.parametrize("format", ["onnx", "safetensors"])
def test_an_operator_of_another_library_is_refused_with_what_helps_in_every_format(tmp_path: Path, format: str) -> None:
    with pytest.raises(UnsupportedError, match=r"aimass_tests\.doubled") as raised:
        FORMATS[format]().export(CallsAnotherLibrary(), as_call(torch.randn(2, 4)), tmp_path / FORMATS[format].file_name)
    assert raised.value.help is not None
    assert raised.value.help.startswith("let the model compute what aimass_tests.doubled")
    assert raised.value.help.endswith("by torch's own operators")


@pytest.mark.parametrize("format", ["onnx", "safetensors"])
def test_operators_of_torchao_are_refused_with_the_step_that_can_be_written(tmp_path: Path, format: str) -> None:
    study = Study(nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)), torch.randn(3, 16))
    study.trial("int8_dynamic", seconds=0.2)
    with pytest.raises(UnsupportedError, match="int8_weight_only is written as onnx and as safetensors"):
        FORMATS[format]().export(study.variant("int8_dynamic"), study.workload.call, tmp_path / FORMATS[format].file_name)


@pytest.mark.parametrize("format", ["onnx", "exported_program", "torchscript"])
def test_a_model_that_decides_by_values_is_refused_and_says_where(tmp_path: Path, format: str) -> None:
    """Also by the one whose exporter would keep the way that the example inputs took, for all inputs."""

    class Branching(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) if x.sum() > 0 else -x

    with pytest.raises(UnsupportedError, match="its forward decides by the values in a tensor") as raised:
        FORMATS[format]().export(Branching(4, 4), as_call(torch.randn(2, 4)), tmp_path / FORMATS[format].file_name)
    assert "torch.where" in (raised.value.help or "")
    assert ("if x.sum() > 0" in raised.value.message) is (format != "torchscript")


@dataclass
class Scored:
    scores: torch.Tensor
    hidden: torch.Tensor


def test_a_dataclass_goes_through_a_runtime_and_comes_back(tmp_path: Path) -> None:
    """Its fields are the outputs of the file; who calls the copy in place of the model gets the dataclass."""

    class Scoring(nn.Linear):
        def forward(self, x: torch.Tensor) -> Scored:
            hidden = torch.relu(super().forward(x))
            return Scored(scores=hidden.sum(1), hidden=hidden)

    model, x = Scoring(4, 4), torch.randn(3, 4)
    study = Study(model, x, store=tmp_path / "history.db")
    assert study.trial("onnxruntime", seconds=0.3).fidelity.value > 0.999
    answer, expected = study.variant("onnxruntime")(x), model(x)
    assert isinstance(answer, Scored)
    torch.testing.assert_close((answer.scores, answer.hidden), (expected.scores, expected.hidden), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("format", ["onnx", "exported_program"])
def test_a_scripted_model_is_refused_for_what_it_is(tmp_path: Path, format: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted = torch.jit.script(nn.Linear(4, 4))
    with pytest.raises(UnsupportedError, match="it is a TorchScript module"):
        FORMATS[format]().export(scripted, as_call(torch.randn(2, 4)), tmp_path / FORMATS[format].file_name)


def test_bfloat16_is_refused_with_what_can_be_bundled(tmp_path: Path) -> None:
    class Inside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4).bfloat16()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x.bfloat16()).float()

    with pytest.raises(UnsupportedError, match="ONNX Runtime cannot run") as raised:
        FORMATS["onnx"]().export(Inside(), as_call(torch.randn(2, 4)), tmp_path / "model.onnx")
    assert "bfloat16" in (raised.value.help or "")
    assert "copy.deepcopy(model).float()" in (raised.value.help or "")
    with pytest.raises(UnsupportedError, match=r"'input' is bfloat16.*\n.*copy\.deepcopy\(model\)\.float\(\); or .* cast inside"):
        FORMATS["onnx"]().export(nn.Linear(4, 4).bfloat16(), as_call(torch.randn(2, 4).bfloat16()), tmp_path / "model.onnx")


def test_a_model_beyond_the_size_of_one_file_is_refused_before_exporting(tmp_path: Path) -> None:
    class Huge(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    model = Huge(1, 1, bias=False)
    with torch.no_grad():
        model.weight = nn.Parameter(torch.empty(2**29 + 1, 1, device="meta"), requires_grad=False)
    with pytest.raises(UnsupportedError, match="2 GiB"):
        FORMATS["onnx"]().export(model, as_call(torch.randn(2, 3)), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_what_is_written_without_protobuf_s_own_serialiser_is_read_by_it(tmp_path: Path) -> None:
    import ml_dtypes
    import onnx
    import onnx_ir
    from onnx import numpy_helper

    from aimass_lab.formats._protobuf import serialize

    generator = np.random.default_rng(0)
    arrays = {
        "large": generator.standard_normal((40, 50)).astype(np.float32),
        "transposed": generator.standard_normal((50, 40)).astype(np.float32).T,
        "small": np.arange(3, dtype=np.int64),
        "scalar": np.array(1.5, np.float32),
        "empty": np.zeros((0, 4), np.float32),
        "brain": generator.standard_normal((33, 33)).astype(ml_dtypes.bfloat16),
        "packed": generator.integers(-8, 8, (99, 33)).astype(ml_dtypes.int4),
        "flags": generator.random((40, 40)) > 0.5,
    }
    nodes = [onnx.helper.make_node("Identity", [name], [f"{name}_out"], name=f"layer/{name}") for name in arrays]
    graph = onnx.helper.make_graph(nodes, "g", [], [])
    model = onnx_ir.from_proto(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)]))
    for name, array in arrays.items():
        value = onnx_ir.Value(name=name, const_value=onnx_ir.tensor(array, name=name))
        model.graph.initializers[name] = value

    data = serialize(model).numpy().tobytes()
    read = onnx.load_from_string(data)
    assert data == serialize(model).numpy().tobytes()
    assert [node.name for node in read.graph.node] == [f"layer/{name}" for name in arrays]
    assert {tensor.name for tensor in read.graph.initializer} == set(arrays)
    for tensor in read.graph.initializer:
        got, expected = numpy_helper.to_array(tensor), arrays[tensor.name]
        assert (got.shape, got.dtype) == (expected.shape, expected.dtype)
        np.testing.assert_array_equal(got.astype(np.float64), expected.astype(np.float64))


def test_nodes_are_named_after_the_layers_they_come_from(tmp_path: Path) -> None:
    import onnx

    path = tmp_path / "model.onnx"
    FORMATS["onnx"]().export(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), as_call(torch.randn(2, 5, 16)), path)
    layers = {node.name.partition("/")[0] for node in onnx.load(str(path)).graph.node}
    assert {"linear1", "linear2", "norm1", "norm2", "self_attn"} <= layers
    FORMATS["onnx"]().export(Pair(), as_call(torch.randn(2, 1, 8, 8)), path)
    (convolution,) = (node.name for node in onnx.load(str(path)).graph.node if node.op_type == "Conv")
    assert convolution.startswith("body.0/")  # the batch norm body.1 is folded into it


class Writes(nn.Module):
    """Writes into a tensor of its own, which an exporter has to take apart."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept = x * 2
        first = kept[:, 0]
        first += 1
        return kept


@pytest.mark.parametrize(("make", "taken_apart"), [(tiny_bert, 0), (lambda: (Writes(), torch.randn(3, 4)), 1)], ids=["as it stands", "writes in place"])
def test_a_program_is_taken_apart_only_where_it_has_to_be(
    make: Callable[[], tuple[nn.Module, Any]], taken_apart: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which traces it twice more, as long as everything else together; what comes out is right either way."""
    whole, calls = torch.export.ExportedProgram.run_decompositions, list[int]()
    monkeypatch.setattr(torch.export.ExportedProgram, "run_decompositions", lambda self, *args: (calls.append(1), whole(self, *args))[1])
    model, inputs = make()
    call = as_call(inputs)
    file = FORMATS["onnx"]().export(model, call, tmp_path / "model.onnx")
    assert len(calls) == taken_apart
    batch = call.with_batch(5)
    got = FORMATS["onnx"]().load_and_run(file.path, {spec.name: t.numpy() for spec, t in zip(file.inputs, batch.tensors(), strict=True)})
    with torch.no_grad():
        expected = model.eval()(*batch.args, **batch.kwargs)
    expected = expected if isinstance(expected, torch.Tensor) else expected["last_hidden_state"]
    np.testing.assert_allclose(got[file.outputs[0].name], expected.numpy(), rtol=1e-4, atol=1e-5)


def test_what_keeps_an_export_from_the_shorter_way_is_told_where_nobody_expects_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def told() -> list[logging.LogRecord]:
        return [record for record in caplog.records if record.name == _onnx_export.__name__]

    FORMATS["onnx"]().export(Writes(), as_call(torch.randn(3, 4)), tmp_path / "model.onnx")
    assert not told()

    def broken(node: object) -> None:
        raise AttributeError("torch has changed")

    monkeypatch.setattr(_onnx_export, "_respell", broken)
    file = FORMATS["onnx"]().export(nn.Linear(6, 3), as_call(torch.randn(2, 6)), tmp_path / "linear.onnx")
    assert file.error.value < 1e-5
    (record,) = told()
    assert "Linear was exported to ONNX the longer way" in record.getMessage()
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "torch has changed"


def test_a_wrong_export_is_refused_with_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnx
    from onnx import numpy_helper

    onnx_format = FORMATS["onnx"]
    write = onnx_format._write

    def sabotage(self, model, call, signature, path):  # type: ignore[no-untyped-def]
        write(self, model, call, signature, path)
        proto = onnx.load(str(path))
        weight = proto.graph.initializer[0]
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.01), weight.name))
        onnx.save(proto, str(path))

    monkeypatch.setattr(onnx_format, "_write", sabotage)
    with pytest.raises(BundleError, match=r"relative error of 0\.0\d+ in ONNX Runtime"):
        onnx_format().export(nn.Linear(6, 3, bias=False), as_call(torch.randn(2, 6)), tmp_path / "model.onnx")


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FORMATS["onnx"], "requires", ("no_such_package",))
    with pytest.raises(MissingPackageError, match="no_such_package"):
        FORMATS["onnx"]().export(nn.Linear(2, 2), as_call(torch.randn(2, 2)), tmp_path / "model.onnx")


def test_a_model_without_tensor_outputs_is_refused() -> None:
    class Nothing(nn.Module):
        def forward(self, x: torch.Tensor) -> str:
            return "nothing"

    with pytest.raises(ModelError, match="no tensor"):
        read_signature(Nothing(), as_call(torch.randn(2, 2)))


def test_relative_error_is_that_of_the_definition() -> None:
    reference = np.array([3.0, 4.0], np.float32)
    assert relative_error(reference, reference) == 0
    assert relative_error(reference, reference + np.float32([0, 0.5])) == pytest.approx(0.1)
    assert relative_error(np.zeros(2), np.array([0.0, 0.25])) == 0.25
    assert relative_error(np.complex64([3, 4]), np.complex64([3, 4 + 0.5j])) == pytest.approx(0.1)
    assert relative_error(reference, np.array([3.0, np.nan])) == float("inf")
    assert relative_error(reference, reference[:1]) == float("inf")


def test_the_ladder_ends_at_the_limit() -> None:
    assert batch_ladder(1) == [1]
    assert batch_ladder(8) == [1, 2, 4, 8]
    assert batch_ladder(12) == [1, 2, 4, 8, 12]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, FormatFile]:
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
    file = FORMATS["onnx"]().export(model, as_call(torch.randn(2, 64)), tmp_path_factory.mktemp("f") / "model.onnx")
    return model, file


def test_measuring_gives_a_point_per_batch_size_and_leaves_torch_as_it_was(exported: tuple[nn.Module, FormatFile]) -> None:
    _, file = exported
    threads = torch.get_num_threads()
    points, _ = measure_format(file, as_call(torch.randn(2, 64)), max_batch_size=4, threads=1, budget_s=3.0)
    assert [p.batch_size for p in points] == [1, 2, 4]
    assert torch.get_num_threads() == threads
    for point in points:
        assert point.latency_p50.source == "measured"
        assert "ONNX Runtime, 1 thread," in point.latency_p50.method
        assert point.throughput.value == pytest.approx(point.batch_size / point.latency_p50.value)
        assert point.latency_p50.value <= point.latency_p99.value


def test_a_format_that_is_slower_than_torch_is_called_so(exported: tuple[nn.Module, FormatFile], monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    model, file = exported
    load = FORMATS["onnx"].open

    def slow(self, path, *, threads=1):  # type: ignore[no-untyped-def]
        runner = load(self, path, threads=threads)
        return lambda inputs: (time.sleep(0.02), runner(inputs))[1]

    monkeypatch.setattr(FORMATS["onnx"], "open", slow)
    monkeypatch.setattr(LoadMeter, "noisy", False)  # as on a quiet machine: twenty milliseconds are seen on any
    file = replace(file, loaded=None)
    speeds, _ = compare_speeds([file], model, as_call(torch.randn(2, 64)), max_batch_size=1, threads=1, budget_s=1.0)
    assert slower_at(speeds) == list(speeds)
    (note,) = slower_notes("onnx", speeds, None)
    assert note.code == "W-FORMAT-SLOWER"
    assert "times the time at batch size 1; no other format" in note.text


def test_batches_that_do_not_fit_into_the_time_are_named(exported: tuple[nn.Module, FormatFile]) -> None:
    model, file = exported
    points, notes = measure_format(file, as_call(torch.randn(2, 64)), max_batch_size=8, threads=1, budget_s=0.0)
    speeds, more = compare_speeds([file], model, as_call(torch.randn(2, 64)), max_batch_size=8, threads=1, budget_s=0.0)
    assert [s.batch_size for s in speeds] == [1]
    assert "2, 4, 8 were not compared" in next(note.text for note in more if note.code == "missing:batch-sizes")
    assert [p.batch_size for p in points] == [1]
    assert "2, 4, 8" in next(note.text for note in notes if note.code == "missing:batch-sizes")


class Counting(nn.Module):
    """Notes down how many items each call has; an item's answer may lean a little on its neighbours."""

    def __init__(self, lean: float = 0.0) -> None:
        super().__init__()
        self.weight, self.lean, self.sizes = nn.Parameter(torch.ones(3)), lean, deque[int]()  # which is not put back, as a list would be

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(x))
        return x * self.weight + self.lean * x.mean(0)


@pytest.mark.parametrize(("lean", "asked"), [(0.0, []), (0.01, [1, 2])])
def test_torch_computes_each_item_once_where_that_is_the_same(lean: float, asked: list[int]) -> None:
    torch.manual_seed(0)
    model, call = Counting(lean), as_call(torch.randn(3, 3))
    signature = read_signature(model, call)
    assert signature.batched
    assert list(model.sizes) == [3, 2, 1]
    (output,) = (spec.name for spec in signature.outputs)
    model.sizes.clear()

    def answers(batch: Call, factor: float = 1.0) -> Arrays:
        (x,) = batch.tensors()
        return {output: (factor * (x + lean * x.mean(0))).numpy()}

    assert compare(answers, model, call, signature, sizes={1, 2, 16}, runtime="itself").value <= lean * 0.1
    assert list(model.sizes)[: len(asked)] == asked
    assert lean or not model.sizes
    with pytest.raises(BundleError, match="of 1 items has a relative error"):
        compare(lambda batch: answers(batch, 1.01), model, call, signature, sizes={1, 2, 16}, runtime="itself")


def test_a_large_batch_is_compared_too() -> None:
    model, call = Counting(), as_call(torch.ones(2, 3))
    signature = read_signature(model, call)

    def answers(batch: Call) -> Arrays:
        (x,) = batch.tensors()
        return {signature.outputs[0].name: (x if len(x) < 16 else x.roll(1, 1) * torch.tensor([1.0, 1.0, 1.1])).numpy()}

    with pytest.raises(BundleError, match="of 16 items has a relative error"):
        compare(answers, model, call, signature, sizes={1, 2, 16}, runtime="itself")


def test_a_file_is_opened_once_for_all_that_a_bundle_checks_and_measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load, opened = FORMATS["onnx"].open, list[Path]()
    monkeypatch.setattr(FORMATS["onnx"], "open", lambda self, path, *, threads=1: (opened.append(path), load(self, path, threads=threads))[1])
    write_bundle(tmp_path / "bundle", Workload(nn.Linear(4, 2), torch.randn(3, 4)), format="onnx", calibrate=False)
    assert len(opened) == 1


def test_torch_takes_stack_traces_for_everybody_else() -> None:
    def traced() -> list[str]:
        program = torch.export.export(nn.Linear(2, 1), (torch.ones(1, 2),))
        return [node.stack_trace for node in program.graph.nodes if node.op == "call_function" and node.stack_trace]

    with without_stack_traces():
        assert traced() == []
    assert traced()
