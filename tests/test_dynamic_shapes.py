"""Sizes that requests may choose: said in several ways, kept by every format, and held to by a real server."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from serving.servers import call
from torch import nn

from aimass_lab import Study, Workload
from aimass_lab.bundle import runtimes, write_bundle, writer
from aimass_lab.compression._static_graph import export_graph
from aimass_lab.dynamic_shapes import AskedDim, Dim, read_dynamic_shapes
from aimass_lab.errors import AimassError, InputError, UnsupportedError
from aimass_lab.formats import FORMATS
from aimass_lab.formats.signature import read_signature
from aimass_lab.frontends.cli import main
from aimass_lab.frontends.render import render_plain
from aimass_lab.records import Bundle, from_json, to_json
from aimass_lab.serving.config import parse_config
from aimass_lab.serving.errors import BundleError as ServedBundleError
from aimass_lab.serving.launch import Server, start

LARGEST = 24


class Reader(nn.Module):
    """Embeds tokens, attends to those that the mask leaves, and gives one row a token and one an item."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.places = nn.Embedding(50, 8), nn.Embedding(LARGEST, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        """`ids` and `mask` are ``[items, tokens]``."""
        found = self.embed(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        weight = ((found @ found.transpose(1, 2)) / 3 + (mask[:, None].float() - 1) * 1e9).softmax(-1)
        tokens = self.head(weight @ found)
        return {"tokens": tokens, "pooled": tokens.mean(1)}


def reader() -> Reader:
    torch.manual_seed(0)
    return Reader().eval()


def inputs(items: int = 4, tokens: int = 6) -> dict[str, torch.Tensor]:
    chance = torch.Generator().manual_seed(items * 100 + tokens)
    mask = torch.ones(items, tokens, dtype=torch.long)
    mask[0, tokens // 2 + 1 :] = 0
    return {"ids": torch.randint(50, (items, tokens), generator=chance), "mask": mask}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "MEASURE_BUDGET_S", 0.1)
    monkeypatch.setattr(runtimes, "COMPARE_BUDGET_S", 0.1)


# --- how it is said ----------------------------------------------------------------------


def test_all_ways_of_saying_it_mean_the_same():
    tokens = torch.export.Dim("tokens", min=1, max=LARGEST)
    net, example = reader(), inputs()
    axes = ((0, 1), (1, 1))
    for said, name in (
        ("1=1..24", "axis_1"),
        ("-1 = 1..24", "axis_1"),
        ("ids:1+mask:1=1..24", "ids_1"),
        (["ids:1+mask:1=1..24"], "ids_1"),
        ({"ids": {1: tokens}, "mask": {1: tokens}}, "tokens"),
    ):
        assert Workload(net, example, dynamic_shapes=said).call.dims == (Dim(name, 1, LARGEST, axes),)
    apart = Workload(net, example, dynamic_shapes={"ids": {1: (1, 24)}, "mask": None}).call.dims
    assert apart == (Dim("ids_1", 1, LARGEST, ((0, 1),)),)
    assert read_dynamic_shapes("x:2=8..64, x:3=8..32") == (AskedDim(None, 8, 64, (("x", 2),)), AskedDim(None, 8, 32, (("x", 3),)))
    assert read_dynamic_shapes(read_dynamic_shapes("1=1..24")) == read_dynamic_shapes("1=1..24")


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("tokens", "'tokens' does not say"),
        ("1=512", "'1=512' does not say"),
        ("1=9..9", "9..9 is not a range"),
        ("1=0..9", "0..9 is not a range"),
        ("0=1..9", "axis 0 counts the items"),
        ("2=1..9", "no input has an axis 2"),
        ("ids:2=1..9", "'ids' has no axis 2"),
        ("words:1=1..9", "there is no input 'words'"),
        ("ids:1=1..5", "is 6 in the example inputs, which is not in 1..5"),
        ("ids:1=1..9,1=1..9", "axis 1 of the input 'ids' is given twice"),
        ("ids:1+ids:1=1..9", "given twice"),
        (7, "7 does not say"),
        ({"ids": {"1": (1, 9)}}, "'1' is not the number of an axis"),
        ({"ids": {1: 9}}, "given as 9, which is no range"),
        ({"ids": {1: torch.export.Dim.AUTO}}, "which is no range"),
        ({"ids": {1: torch.export.Dim("tokens")}}, "'tokens' has no upper end"),
        ({"ids": {1: torch.export.Dim("batch", max=9)}}, "cannot be called 'batch'"),
        ({"ids": {1: torch.export.Dim("t", max=9)}, "mask": {1: torch.export.Dim("t", max=8)}}, "'t' has two ranges"),
    ],
)
def test_what_cannot_be_is_refused_with_the_value(said: Any, told: str):
    with pytest.raises(InputError) as caught:
        Workload(reader(), inputs(), dynamic_shapes=said)
    assert told in caught.value.message


def test_axes_of_different_sizes_are_not_one_dimension():
    example = inputs()
    example["mask"] = example["mask"][:, :4]
    with pytest.raises(InputError, match="ids:1 is 6, mask:1 is 4"):
        Workload(reader(), example, dynamic_shapes="ids:1+mask:1=1..24")
    assert Workload(reader(), example, dynamic_shapes="1=1..24").call.dims[0].axes == ((0, 1),), "of every input, the one that is alike"


def test_a_call_takes_other_sizes_and_stays_as_it_is():
    work = Workload(reader(), inputs(), dynamic_shapes="1=1..24")
    long, short = work.call.with_sizes({"axis_1": 9}), work.call.with_sizes({"axis_1": 2})
    ids = work.call.kwargs["ids"]
    assert torch.equal(long.kwargs["ids"], torch.cat([ids, ids[:, :3]], 1))
    assert [t.shape for t in short.tensors()] == [(4, 2), (4, 2)]
    assert ids.shape == (4, 6)
    assert (long.size_of(long.dims[0]), long.batch_size, long.dims) == (9, 4, work.call.dims)
    assert work.call.with_batch(2).dims == work.call.dims


# --- what is written ---------------------------------------------------------------------


def signature(model: nn.Module, example: Any, said: Any):
    with torch.no_grad():
        return read_signature(model.eval(), Workload(model, example, dynamic_shapes=said).call)


def test_outputs_show_which_of_their_sizes_follow():
    found = signature(reader(), inputs(), "1=1..24")
    assert [spec.shape for spec in found.inputs] == [(-1, -1), (-1, -1)]
    assert {spec.name: spec.shape for spec in found.outputs} == {"tokens": (-1, -1, 3), "pooled": (-1, 3)}
    assert [(probe.sizes["axis_1"], probe.call.batch_size) for probe in found.probes] == [(1, 1), (24, 1), (12, 2)]
    for probe in found.probes:
        assert probe.answers["tokens"].shape == (probe.call.batch_size, probe.sizes["axis_1"], 3)


def test_sizes_of_a_picture_are_tried_apart():
    net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(8, 3))
    found = signature(net, torch.randn(3, 1, 8, 8), {"input": {2: (4, 16), 3: (5, 20)}})
    assert {(probe.sizes["input_2"], probe.sizes["input_3"]) for probe in found.probes} == {(4, 5), (16, 20), (8, 15), (16, 5)}
    assert [spec.shape for spec in (*found.inputs, *found.outputs)] == [(-1, 1, -1, -1), (-1, 3)]


def test_a_range_that_the_model_does_not_take_is_refused_before_anything_is_written():
    with pytest.raises(InputError, match=r"does not take axis_1 = 25: Reader raised IndexError"):
        signature(reader(), inputs(), "1=1..25")


def test_a_model_without_batch_axis_may_have_sizes_that_are_open():
    class Sums(nn.Module):
        def forward(self, x):
            return x.cumsum(0)

    class Last(nn.Module):
        def forward(self, x):
            return x[-1]

    mixing, dropping = (signature(net, torch.randn(5, 3), "1=2..6") for net in (Sums(), Last()))
    assert not mixing.batched
    assert not dropping.batched
    assert [spec.shape for spec in (*mixing.inputs, *mixing.outputs)] == [(5, -1), (5, -1)]
    assert [spec.shape for spec in (*dropping.inputs, *dropping.outputs)] == [(5, -1), (-1,)]


@pytest.mark.parametrize("name", ["onnx", "openvino", "exported_program", "safetensors", "torchscript", pytest.param("aot_inductor", marks=pytest.mark.alone)])
def test_every_format_answers_at_all_sizes_what_the_model_answers(name: str, tmp_path: Path):
    net, member = reader(), FORMATS[name]()
    if (package := member.missing_package()) is not None:
        pytest.skip(f"{package} is not installed")
    work = Workload(net, inputs(4, 4), dynamic_shapes="1=1..24")  # as many items as tokens: an exporter could take them for one size
    file = member.export(net, work.call, tmp_path / member.file_name, max_batch_size=4)
    assert file.error.value < 1e-5
    assert "axis_1 = 24" in file.error.method
    runner = member.open(file.path)
    for items, tokens in ((1, 1), (3, 2), (2, 23), (1, 24), (4, 7)):
        example = inputs(items, tokens)
        got = runner({key: tensor.numpy() for key, tensor in example.items()})
        with torch.no_grad():
            for output, expected in net(**example).items():
                np.testing.assert_allclose(got[output], expected, atol=1e-5)


class Fixed(nn.Module):
    """Counts in Python, which a trace takes for a constant: right for one size only."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`x` is ``[items, size]``."""
        return x.sum(1, keepdim=True) / float(int(x.shape[1]))


def test_a_file_that_is_right_at_the_examples_size_only_is_not_taken(tmp_path: Path):
    work = Workload(Fixed(), torch.rand(3, 4), dynamic_shapes="1=2..9")
    with pytest.raises(AimassError) as caught:
        FORMATS["torchscript"]().export(work.model, work.call, tmp_path / "model.pt")
    assert "axis_1 = " in caught.value.message
    assert FORMATS["torchscript"]().export(work.model, Workload(Fixed(), torch.rand(3, 4)).call, tmp_path / "model.pt").error.value < 1e-6


def test_a_copy_that_runs_elsewhere_takes_the_open_sizes_and_no_others():
    net = reader()
    open_copy = Study(net, inputs(), dynamic_shapes="1=1..24")._served("onnxruntime").model
    for tokens in (1, 17, 24):
        with torch.no_grad():
            assert torch.allclose(open_copy(**inputs(2, tokens))["tokens"], net(**inputs(2, tokens))["tokens"], atol=1e-5)
    with pytest.raises(InputError, match=r"axis_1 is 25 on axis 1 of 'ids', 25 on axis 1 of 'mask', and must be one of 1 to 24"):
        open_copy(**inputs(2, 25))
    with pytest.raises(InputError, match="axis_1 is 5 on axis 1 of 'ids', 6 on axis 1 of 'mask'"):
        open_copy(ids=inputs(2, 5)["ids"], mask=inputs(2, 6)["mask"])


def test_a_rounded_graph_takes_the_open_sizes_and_no_others_and_keeps_them_in_a_file(tmp_path: Path):
    net = reader()
    study = Study(net, inputs(), dynamic_shapes="1=1..24")
    rounded = study._served("int8_static").model
    file = FORMATS["onnx"]().export(rounded, study.workload.call, tmp_path / "model.onnx", max_batch_size=4)
    assert [dimension.max for dimension in file.signature.dimensions] == [24]
    for tokens in (1, 17, 24):
        with torch.no_grad():
            got, expected = rounded(**inputs(2, tokens))["tokens"], net(**inputs(2, tokens))["tokens"]
        assert got.shape == expected.shape
        assert torch.nn.functional.cosine_similarity(got.flatten(), expected.flatten(), 0) > 0.99
    for ids, mask, told in ((25, 25, "called with 25 and 25"), (5, 6, "called with 5 and 6")):
        with pytest.raises(InputError, match=f"a size axis_1 of 1 to 24, and is {told}"):
            rounded(ids=inputs(2, ids)["ids"], mask=inputs(2, mask)["mask"])


def test_a_number_of_items_that_decides_is_seen_beside_a_size_of_the_same_range():
    class Few(nn.Module):
        def forward(self, x):
            return x.sum(1) if x.shape[0] <= 24 else x.mean(1)

    for low in (1, 2):
        call = Workload(Few(), torch.randn(2, 6), dynamic_shapes=f"1={low}..24").call
        with pytest.raises(UnsupportedError, match="something else outside of . to 24 items"):
            export_graph(Few().eval(), call, any_batch=True)


def test_a_copy_with_fixed_sizes_is_not_bundled_as_one_with_open_ones(tmp_path: Path):
    with pytest.raises(InputError, match="does not take axis_1 = 1: the input 'ids' has shape") as caught:
        Study(reader(), inputs()).bundle(out=str(tmp_path / "b"), technique="onnxruntime", dynamic_shapes="1=1..24")
    assert "Study(model, inputs, dynamic_shapes=...)" in caught.value.help
    assert not (tmp_path / "b").exists()


# --- what is served ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("dynamic") / "b"
    work = Workload(reader(), inputs(), name="reader", dynamic_shapes={name: {1: torch.export.Dim("tokens", min=2, max=LARGEST)} for name in ("ids", "mask")})
    write_bundle(where, work, max_batch_size=8, max_wait_s=0.02, threads=1, format="onnx", calibrate=False)
    return where


@pytest.fixture(scope="module", params=[1, 2])
def server(folder: Path, request: pytest.FixtureRequest) -> Iterator[Server]:
    with start(folder, arguments=("--frontends", str(request.param))) as running:
        yield running
        assert running.exit_code is None, running.log


def body(example: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {"inputs": [{"name": key, "datatype": "INT64", "shape": list(t.shape), "data": t.flatten().tolist()} for key, t in example.items()]}


def test_the_bundle_says_which_sizes_it_takes(folder: Path):
    from aimass_lab.bundle import read_bundle

    bundle = read_bundle(folder)
    assert from_json(to_json(bundle), Bundle) == bundle
    assert [(d.name, d.min, d.max, d.axes) for d in bundle.dimensions] == [("tokens", 2, 24, (("ids", 1), ("mask", 1)))]
    assert [point.sizes for point in bundle.sizes] == [{"tokens": 2}, {"tokens": 24}]
    assert all(point.latency_p50.source == "measured" and point.latency_p50.value > 0 for point in bundle.sizes)
    assert "for requests of the example's sizes, tokens = 6" in {note.code: note.text for note in bundle.notes}["assumes:example-sizes"]
    assert "2 to 24" in render_plain(bundle)
    text = (folder / "README.md").read_text()
    assert "- tokens: 2 to 24; axis 1 of `ids`, axis 1 of `mask`" in text
    assert '"shape":[1,2]' in text, "its curl line sends the smallest"
    assert "dims: [-1]" in (folder / "model/reader/config.pbtxt").read_text().replace("[ -1 ]", "[-1]")


def test_requests_of_any_size_are_answered_at_once_each_with_its_own(server: Server):
    net = reader()
    examples = [inputs(1 + k % 3, 2 + k % 23) for k in range(46)]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda example: call(server, "POST", "/v2/models/reader/infer", body(example)), examples))
    for example, answer in zip(examples, answers, strict=True):
        assert answer.status == 200, answer.body
        found = {output["name"]: np.array(output["data"]).reshape(output["shape"]) for output in answer.json["outputs"]}
        with torch.no_grad():
            for name, expected in net(**example).items():
                np.testing.assert_allclose(found[name], expected, atol=1e-5)


def test_a_client_nobody_here_wrote_sends_any_size(server: Server):
    http, grpc = pytest.importorskip("tritonclient.http"), pytest.importorskip("tritonclient.grpc")
    for library, address in ((http, server.url.removeprefix("http://")), (grpc, server.grpc_address)):
        client = library.InferenceServerClient(address)
        for tokens in (2, 24):
            example = inputs(2, tokens)
            sent = [library.InferInput(name, list(tensor.shape), "INT64") for name, tensor in example.items()]
            for one, tensor in zip(sent, example.values(), strict=True):
                one.set_data_from_numpy(tensor.numpy())
            with torch.no_grad():
                np.testing.assert_allclose(client.infer("reader", sent).as_numpy("tokens"), reader()(**example)["tokens"], atol=1e-5)
        client.close()


@pytest.mark.parametrize(
    ("ids", "mask", "told"),
    [
        (25, 25, "the size 'tokens' is 25 on axis 1 of 'ids', 25 on axis 1 of 'mask'; the model takes 2 to 24, the same on all of them"),
        (1, 1, "the size 'tokens' is 1 on axis 1 of 'ids'"),
        (6, 5, "the size 'tokens' is 6 on axis 1 of 'ids', 5 on axis 1 of 'mask'"),
        (6, 1, "the size 'tokens' is 6 on axis 1 of 'ids', 1 on axis 1 of 'mask'"),
    ],
)
def test_other_sizes_get_400_with_the_range(server: Server, ids: int, mask: int, told: str):
    example = {"ids": inputs(1, ids)["ids"], "mask": inputs(1, mask)["mask"]}
    plain = {"inputs": {name: tensor.tolist() for name, tensor in example.items()}}
    for path, sent in (("/v2/models/reader/infer", body(example)), ("/predict", plain)):
        answer = call(server, "POST", path, sent)
        assert answer.status == 400, answer.body
        assert told in answer.json["error"]


def test_the_ranges_are_in_its_descriptions(server: Server):
    described = call(server, "GET", "/openapi.json").json
    text = str(described)
    assert "'minimum': 2, 'maximum': 24" in text
    assert "'minItems': 2, 'maxItems': 24" in text
    assert "size tokens: 2 to 24, axis 1 of ids, axis 1 of mask" in call(server, "GET", "/").body.decode()
    assert call(server, "GET", "/v2/models/reader/sample").json["sizes"] == ["tokens: 2 to 24, axis 1 of ids, axis 1 of mask"]
    assert call(server, "GET", "/v2/models/reader").json["inputs"][0]["shape"] == [-1, -1]


GOOD = {"name": "n", "min": 1, "max": 9, "axes": [["x", 1]]}


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({**GOOD, "axes": [["x", 2]]}, "axes [['x', 2]]"),
        ({**GOOD, "axes": [["y", 1]]}, "axes [['y', 1]]"),
        ({**GOOD, "axes": []}, "axes []"),
        ({**GOOD, "min": 0}, "is 0 to 9"),
        ({**GOOD, "max": "9"}, "is 1 to '9'"),
        ({"name": "n"}, "has exactly name, min, max and axes"),
        ("n", "has exactly name, min, max and axes"),
    ],
)
def test_a_serving_json_with_a_wrong_dimension_is_refused(wrong: Any, told: str):
    tensors = [{"name": "x", "datatype": "FP32", "shape": [-1, -1, 3]}]
    whole = {"schema": 1, "name": "net", "version": "1", "format": "onnx", "model_file": "m", "inputs": tensors, "outputs": tensors, "max_batch_size": 2}
    assert parse_config({**whole, "dimensions": [GOOD]}).dimensions[0].axes == ((0, 1),)
    with pytest.raises(ServedBundleError) as caught:
        parse_config({**whole, "dimensions": [wrong]})
    assert told in str(caught.value)


def test_the_command_line_opens_sizes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source = tmp_path / "reads.py"
    source.write_text(
        "import torch\nfrom torch import nn\nclass Mean(nn.Module):\n    def forward(self, x):\n        return x.mean(1)\n"
        "def make():\n    return Mean(), torch.randn(3, 5, 2)\n"
    )
    assert main(["bundle", f"{source}:make", "--out", str(tmp_path / "b"), "--dynamic-shapes", "x:1=1..12", "--format", "onnx"]) == 0
    assert "1 to 12" in capsys.readouterr().out
    assert main(["bundle", f"{source}:make", "--out", str(tmp_path / "c"), "--dynamic-shapes", "x:1=12"]) == 2
    assert "'x:1=12' does not say which sizes are open" in capsys.readouterr().err
