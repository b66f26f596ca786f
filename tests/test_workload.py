"""Workloads: every form of inputs that people hold, and an answer to every form that cannot be used."""

from collections import UserDict
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from models import DictModel, RaisingModel, TiedModel, TinyCNN, TinyMLP, features, ids
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import DataLoader, TensorDataset

from aimass_lab.errors import DoesNotFitError, InputError, ModelError
from aimass_lab.outputs import opened, output_tensors
from aimass_lab.workload import Call, Workload, as_call, call_model, digest_model, is_out_of_memory, weight_bytes


class BatchEncoding(UserDict):
    """What HF tokenizers return: a mapping that is no dict."""


@dataclass(frozen=True)
class Extra:
    hidden: torch.Tensor


@dataclass
class Answer:
    scores: torch.Tensor
    extra: Extra

    def __post_init__(self):
        assert len(self.scores)


def test_a_tensor_is_one_positional_argument():
    x = features()
    assert as_call(x).args == (x,)


def test_a_tuple_is_positional_and_a_mapping_by_name():
    assert len(as_call((features(), 3)).args) == 2
    assert set(as_call({"input_ids": ids()}).kwargs) == {"input_ids"}
    assert set(as_call(BatchEncoding({"input_ids": ids()})).kwargs) == {"input_ids"}


@pytest.mark.parametrize(
    ("inputs", "advice"),
    [
        (None, "pass a tensor"),
        ((x for x in [1]), "generator"),
        (iter([1]), "generator"),
        (DataLoader(TensorDataset(torch.ones(4, 2))), r"next\(iter\(loader\)\)"),
        (np.ones(3), "from_numpy"),
        ([torch.ones(2)], "tuple"),
        ("a text", "tokenizer"),
        (3.0, "pass a tensor"),
        ((1, 2), "no tensor"),
        ({"a": 1}, "no tensor"),
    ],
)
def test_what_cannot_be_used_is_refused_with_advice(inputs, advice):
    with pytest.raises(InputError, match=advice):
        as_call(inputs)


def test_a_model_must_be_a_module():
    with pytest.raises(InputError, match=r"not a torch\.nn\.Module"):
        Workload(lambda x: x, features())


@pytest.mark.parametrize("extra", [{"data": (features(), torch.ones(2))}, {"metric": lambda out, y: 1.0}])
def test_data_and_metric_come_together(extra):
    with pytest.raises(InputError, match="without"):
        Workload(TinyMLP(), features(), **extra)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"data": features(), "metric": len}, "data is a Tensor and not a pair"),
        ({"data": (features(), [0, 1]), "metric": len}, "data is a tuple and not a pair of inputs and a tensor of labels"),
        ({"data": (features(), torch.ones(5)), "metric": len}, r"data has 2 items and labels of shape \[5\]"),
        ({"data": (features(), torch.ones(2)), "metric": 0.5}, "metric is a float, which cannot be called"),
        ({"loss": "mse"}, "loss is a str, which cannot be called"),
        ({"batch_axis": -1}, "batch_axis -1 is not the number of an axis"),
        ({"batch_axis": "0"}, "batch_axis '0' is not"),
    ],
)
def test_what_goes_with_a_model_is_looked_at_when_it_is_given(extra, message):
    with pytest.raises(InputError, match=message):
        Workload(TinyMLP(), features(), **extra)


def test_a_lazy_model_is_refused_before_any_verb_asks_for_its_shapes():
    model = nn.Sequential(nn.LazyLinear(4), nn.ReLU())
    with pytest.raises(ModelError, match=r"parameters without a shape yet: 0\.weight, 0\.bias") as raised:
        Workload(model, features())
    assert "call the model once" in raised.value.help
    model(features())
    assert Workload(model, features()).info().num_parameters == 4 * 8 + 4


def test_inputs_hold_an_item_at_least():
    with pytest.raises(InputError, match=r"no item in the example inputs \(float32\[0, 8\]\)"):
        Workload(TinyMLP(), torch.ones(0, 8))


def test_inputs_on_another_device_than_the_model_are_refused():
    with pytest.raises(InputError, match=r"input 'x' is on meta"):
        Workload(TinyMLP(), features().to("meta"))


def test_tensors_are_named_as_forward_names_them():
    workload = Workload(DictModel(), (ids(), torch.ones(2, 12)))
    assert [name for name, _ in workload.call.named_tensors(workload.model)] == ["input_ids", "attention_mask"]
    nested = as_call((features(), [features(), features()]))
    assert [name for name, _ in nested.named_tensors(TinyMLP())] == ["x", "input_1_0", "input_1_1"]


def test_with_batch_takes_the_first_items_and_repeats_them_in_order():
    call = as_call({"x": torch.arange(3).view(3, 1), "scale": torch.ones(5), "flag": True})
    assert call.batch_size == 3
    assert call.with_batch(2).kwargs["x"].flatten().tolist() == [0, 1]
    assert call.with_batch(7).kwargs["x"].flatten().tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert call.with_batch(7).kwargs["scale"].shape == (5,)
    assert call.with_batch(7).kwargs["flag"] is True
    assert call.with_batch(3) is call


def test_another_batch_axis():
    call = as_call(torch.arange(6).view(3, 2), batch_axis=1)
    assert call.batch_size == 2
    assert call.with_batch(4).args[0].tolist() == [[0, 1, 0, 1], [2, 3, 2, 3], [4, 5, 4, 5]]
    assert call.rows(1, 2).args[0].tolist() == [[1], [3], [5]]


@pytest.mark.parametrize("size", [0, -1, True, 1.0])
def test_a_batch_is_a_positive_integer(size):
    with pytest.raises(InputError, match="positive integer"):
        as_call(features()).with_batch(size)


def test_without_a_batch_axis_the_batch_cannot_be_set():
    with pytest.raises(InputError, match="batch_axis"):
        as_call(torch.tensor(1.0)).with_batch(2)


def test_a_call_describes_itself():
    call = Call((features(),), {"mask": ids(1, 3), "flag": True, "other": object()})
    assert call.describe() == "float32[2, 8], mask=int64[1, 3], flag=True, other=object"


def test_weight_bytes_count_shared_memory_once():
    model = TiedModel()
    assert weight_bytes(model) == 4 * (20 * 8 + 8 * 8 + 8)
    assert weight_bytes(TinyCNN()) == sum(t.numel() * t.element_size() for t in TinyCNN().state_dict().values())


def test_weight_bytes_of_a_quantised_model_are_what_it_holds():
    torchao = pytest.importorskip("torchao.quantization")
    model = nn.Sequential(nn.Linear(64, 64, bias=False))
    torchao.quantize_(model, torchao.Int8WeightOnlyConfig(version=2))
    assert 64 * 64 <= weight_bytes(model) < 64 * 64 * 4


def test_the_digest_knows_the_same_weights_again():
    model, twin = TinyMLP(), TinyMLP()
    twin.load_state_dict(model.state_dict())
    assert digest_model(model) == digest_model(twin)
    with torch.no_grad():
        twin.second.bias += 1
    assert digest_model(model) != digest_model(twin)


def test_the_digest_knows_complex_weights():
    weights = [torch.tensor([1 + 2j, 3]), torch.tensor([1 + 2j, 3]), torch.tensor([1 - 2j, 3])]
    same, twin, other = (digest_model(nn.ParameterDict({"filter": weight})) for weight in weights)
    assert same == twin != other


def test_info_of_a_workload():
    info = Workload(DictModel(), {"input_ids": ids(3)}, name="mine").info()
    assert (info.name, info.dtype, info.num_parameters) == ("mine", "float32", 20 * 8 + 8 * 4 + 4)
    assert [(i.name, i.dtype, i.shape) for i in info.inputs] == [("input_ids", "int64", (-1, 12))]


def test_a_script_module_can_be_described():
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls torch.jit deprecated
        scripted = torch.jit.script(TinyMLP())
    info = Workload(scripted, features()).info()
    assert info.num_parameters == 8 * 16 + 16 + 16 * 3 + 3
    assert len(info.inputs) == 1


def test_a_traced_module_can_be_described():
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls torch.jit deprecated
        traced = torch.jit.trace(TinyMLP().eval(), features(2))
    assert [spec.name for spec in Workload(traced, features(2)).info().inputs] == ["input_0"]


def test_what_a_model_raises_comes_with_the_inputs():
    with pytest.raises(ModelError, match=r"RaisingModel raised ValueError on float32\[2, 8\]: this model never works") as caught:
        call_model(RaisingModel(), as_call(features()))
    assert isinstance(caught.value.__cause__, ValueError)


def test_an_allocation_that_is_refused_is_no_error_of_the_model():
    class Greedy(nn.Module):
        def forward(self, x):
            return x.expand(2, 10**15).contiguous()

    with pytest.raises(DoesNotFitError, match="out of memory"):
        call_model(Greedy(), as_call(torch.ones(1, 1)))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shapes differ"))


def test_output_tensors_have_names():
    x = features()
    assert [n for n, _ in output_tensors(x)] == ["output"]
    assert [n for n, _ in output_tensors({"logits": x, "cache": object()})] == ["logits"]
    assert [n for n, _ in output_tensors((x, [x, 3]))] == ["output", "output_1"]
    assert [n for n, _ in output_tensors({"score": x, "states": (x, {"deep": x}), "one": [x]})] == ["score", "states_0", "states_1", "one"]


def test_a_dataclass_is_opened_by_its_fields_and_put_together_again():
    """Also one that is frozen, checks what it is made of, and lies in another: torch's own functions see nothing in it."""
    x = features()
    outputs = (Answer(scores=x, extra=Extra(hidden=2 * x)), "note")
    assert tree_leaves(outputs) == [outputs[0], "note"]
    assert [name for name, _ in output_tensors(outputs[0])] == ["scores", "extra"]
    doubled = tree_map(lambda leaf: 2 * leaf if isinstance(leaf, torch.Tensor) else leaf, opened(outputs))
    assert isinstance(doubled[0], Answer)
    assert isinstance(doubled[0].extra, Extra)
    assert torch.equal(doubled[0].extra.hidden, 4 * x)
    assert opened({"scores": x})["scores"] is x
