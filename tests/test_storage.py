"""Weights on disk: the same bits back, no more bytes than told, and a sentence for each file that does not fit."""

from __future__ import annotations

import copy
import math
import struct

import numpy as np
import pytest
import torch
from models import RUNNABLE, TinyMLP
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from aimass_lab.errors import InputError, UnsupportedError
from aimass_lab.storage import load_weights, save_weights, stored_bytes
from aimass_lab.storage.packing import choose_form, pack, unpack
from aimass_lab.workload import weight_bytes


def lots(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def of_codes(count: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    codes = torch.linspace(-1.5, 1.7, count, dtype=torch.float64).to(dtype)
    return codes[torch.randint(count, shape, generator=lots())]


class Holding(nn.Module):
    """Holds one tensor of any type."""

    def __init__(self, tensor: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("held", tensor)


def sparse(shape: tuple[int, ...], share: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    values = torch.randn(shape, generator=lots())
    return values.masked_fill(torch.rand(shape, generator=lots(1)) < share, 0.0).to(dtype)


TENSORS = {
    "dense": torch.randn(40, 50, generator=lots()),
    "two values": of_codes(2, (33, 31)),
    "constant": torch.full((40, 40), 0.3),
    "all zero": torch.zeros(40, 40),
    "all negative zero": -torch.zeros(40, 40),
    **{f"{count} values": of_codes(count, (41, 77)) for count in (3, 7, 16, 17, 100, 256)},
    "257 values": of_codes(257, (90, 77)),
    "half zero": sparse((50, 61), 0.5),
    "zeros of both signs": torch.randn(50, 61, generator=lots()) * (torch.rand(50, 61, generator=lots(1)) > 0.7),
    "few values and many zeros": of_codes(15, (70, 61)) * (torch.rand(70, 61, generator=lots(1)) > 0.9),
    "one zero": torch.cat([torch.zeros(1), torch.randn(999, generator=lots())]),
    "not finite": torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0] * 200),
    "scalar": torch.tensor(3.5),
    "empty": torch.zeros(0, 4),
    "bool": torch.rand(50, 61, generator=lots()) > 0.5,
    "int8 of 4 bits": torch.randint(-8, 8, (60, 61), generator=lots(), dtype=torch.int8),
    "int64": torch.randint(5, (60, 61), generator=lots()),
    "bfloat16": of_codes(16, (60, 61), torch.bfloat16),
    "float16 sparse": sparse((60, 61), 0.8, torch.float16),
    "float64": of_codes(5, (60, 61), torch.float64),
    "complex64": of_codes(3, (60, 61)).to(torch.complex64) * (1 - 2j),
    "complex128": torch.complex(of_codes(3, (60, 61), torch.float64), of_codes(5, (60, 61), torch.float64)),
    "conjugate": torch.complex(of_codes(3, (60, 61)), of_codes(5, (60, 61))).conj(),
    "float8": of_codes(9, (60, 61)).to(torch.float8_e4m3fn),
    "uint16": torch.randint(9, (60, 61), generator=lots()).to(torch.uint16),
    "channels last": of_codes(16, (8, 4, 5, 6)).to(memory_format=torch.channels_last),
    "transposed": sparse((50, 61), 0.7).T,
    "larger than a sample": of_codes(16, (700, 601)),
    "a rare value in many": torch.where(torch.arange(400_000) == 399_999, 5.0, of_codes(4, (400_000,))),
    "more values late": torch.cat([of_codes(4, (300_000,)), torch.randn(5_000, generator=lots())]),
}


@pytest.mark.parametrize("name", TENSORS)
def test_every_tensor_comes_back_bit_by_bit_in_as_many_bytes_as_told(name, tmp_path):
    model = Holding(TENSORS[name].clone())
    path = tmp_path / "weights.safetensors"
    told = stored_bytes(model)
    assert save_weights(model, path) == told == path.stat().st_size
    fresh = Holding(torch.empty_like(TENSORS[name]))
    load_weights(fresh, path)
    assert (fresh.held.dtype, fresh.held.shape, fresh.held.stride()) == (model.held.dtype, model.held.shape, model.held.stride())
    assert bits(fresh.held.resolve_conj()) == bits(model.held.resolve_conj())


@pytest.mark.parametrize(
    ("name", "bits_per_value", "codes"),
    [("two values", 1, 2), ("7 values", 3, 7), ("16 values", 4, 16), ("17 values", 5, 17), ("256 values", 8, 256), ("larger than a sample", 4, 16)],
)
def test_indices_take_exactly_the_bits_they_need(name, bits_per_value, codes):
    tensor = TENSORS[name]
    parts = pack(tensor, choose_form(tensor))
    assert set(parts) == {"codebook", "indices"}
    assert parts["indices"].numel() == math.ceil(tensor.numel() * bits_per_value / 8)
    assert parts["codebook"].numel() == codes


def test_bits_are_in_numpys_little_order():
    # an independent reader: numpy unpacks the mask and the one-bit indices, lowest bit first
    tensor = TENSORS["half zero"]
    parts = pack(tensor, choose_form(tensor))
    mask = np.unpackbits(parts["mask"].numpy(), bitorder="little")[: tensor.numel()].astype(bool)
    assert (mask == (tensor != 0).numpy().ravel()).all()
    assert parts["values"].view(torch.float32).numpy() == pytest.approx(tensor[tensor != 0].numpy())
    tensor = TENSORS["100 values"]
    parts = pack(tensor, choose_form(tensor))
    of_seven = np.unpackbits(parts["indices"].numpy(), bitorder="little")[: tensor.numel() * 7].reshape(-1, 7) @ (1 << np.arange(7))
    assert (parts["codebook"].view(torch.float32).numpy()[of_seven] == tensor.numpy().ravel()).all()


def test_the_smallest_form_is_chosen():
    def form(name: str) -> set[str]:
        return set(pack(TENSORS[name], choose_form(TENSORS[name])))

    assert form("dense") == form("257 values") == form("one zero") == form("scalar") == {""}
    assert form("half zero") == {"mask", "values"}
    assert form("zeros of both signs") == {"mask", "signs", "values"}
    assert form("few values and many zeros") == {"mask", "signs", "codebook", "indices"}
    assert form("int8 of 4 bits") == {"codebook", "indices"}
    assert form("more values late") == {""}


def test_bytes_of_an_80_percent_sparse_matrix_are_those_of_mask_and_values():
    model = nn.Linear(512, 512, bias=False)
    with torch.no_grad():
        model.weight.copy_(sparse((512, 512), 0.8))
    num_left = int(model.weight.count_nonzero())
    assert stored_bytes(model) == pytest.approx(512 * 512 / 8 + 4 * num_left, abs=600)


def test_what_is_not_packed_is_a_plain_safetensors_file(tmp_path):
    model = TinyMLP()
    path = tmp_path / "w.safetensors"
    save_weights(model, path)
    read = load_file(path)
    assert {name: bits(t) for name, t in read.items()} == {name: bits(t) for name, t in model.state_dict().items()}
    with safe_open(path, "pt") as file:
        assert file.metadata()["format"] == "pt"


def test_a_packed_file_too_is_one_of_safetensors(tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(Holding(TENSORS["16 values"].clone()), path)
    read = load_file(path)
    assert {name: (t.dtype, t.numel()) for name, t in read.items()} == {
        "held::codebook": (torch.float32, 16),
        "held::indices": (torch.uint8, math.ceil(41 * 77 / 2)),
    }


def test_a_safetensors_file_that_others_wrote_is_read(tmp_path):
    model, fresh = TinyMLP(), TinyMLP()
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    load_weights(fresh, tmp_path / "w.safetensors")
    assert torch.equal(model.first.weight, fresh.first.weight)


@pytest.mark.parametrize("name", RUNNABLE)
def test_models_give_the_same_outputs_after_a_round_trip(name, tmp_path):
    make, _ = RUNNABLE[name]
    torch.manual_seed(0)
    model = make().eval()
    torch.manual_seed(1)
    fresh = make().eval()
    size = save_weights(model, tmp_path / "w")
    load_weights(fresh, tmp_path / "w")
    assert {k: bits(v) for k, v in model.state_dict().items()} == {k: bits(v) for k, v in fresh.state_dict().items()}
    assert size == stored_bytes(model) == stored_bytes(fresh)
    assert size <= weight_bytes(model) + 250 * (len(model.state_dict()) + 1)  # a tied tensor once, and a header


def test_tied_weights_are_stored_once_and_stay_tied(tmp_path):
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(200, 32)
            self.head = nn.Linear(32, 200, bias=False)
            self.head.weight = self.embed.weight

    model, fresh = Tied(), Tied()
    assert save_weights(model, tmp_path / "w") < 200 * 32 * 4 + 500
    load_weights(fresh, tmp_path / "w")
    assert fresh.head.weight is fresh.embed.weight
    assert torch.equal(fresh.embed.weight, model.embed.weight)
    # given a file with two different tensors, when the model has one under both names, then nothing is loaded
    untied = Tied()
    untied.head = nn.Linear(32, 200, bias=False)
    save_weights(untied, tmp_path / "untied")
    with pytest.raises(InputError, match="one tensor in the model and two different ones"):
        load_weights(fresh, tmp_path / "untied")
    assert torch.equal(fresh.embed.weight, model.embed.weight)
    load_weights(untied, tmp_path / "w")
    assert torch.equal(untied.head.weight, model.embed.weight)


@pytest.mark.parametrize("config", ["Int8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig", "Float8WeightOnlyConfig", "IntxWeightOnlyConfig"])
def test_quantized_tensors_are_stored_as_they_are(config, tmp_path):
    from aimass_lab.quiet import import_quietly

    torchao = import_quietly("torchao.quantization")
    options = {"weight_dtype": torch.int4, "granularity": torchao.PerGroup(32)} if config == "IntxWeightOnlyConfig" else {}

    def make(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64)).eval()
        torchao.quantize_(model, getattr(torchao, config)(**options))
        return model

    model, fresh = make(0), make(1)
    x = torch.randn(4, 64, generator=lots())
    size = save_weights(model, tmp_path / "w")
    assert size == stored_bytes(model)
    assert size < 0.4 * 4 * 2 * 64 * 128
    if config == "IntxWeightOnlyConfig":  # 16 values held in 8 bits take 4 on disk
        assert size < 0.2 * 4 * 2 * 64 * 128
    load_weights(fresh, tmp_path / "w")
    with torch.no_grad():
        assert torch.equal(model(x), fresh(x))
    # another kind of tensor is refused by name
    with pytest.raises(InputError, match=r"'0\.weight'"):
        load_weights(nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64)), tmp_path / "w")


def test_a_model_made_under_inference_mode_can_be_loaded_into(tmp_path):
    with torch.inference_mode():
        model, fresh = TinyMLP(), TinyMLP()
    save_weights(model, tmp_path / "w")
    load_weights(fresh, tmp_path / "w")
    assert bits(model.first.weight) == bits(fresh.first.weight)


def test_looking_changes_nothing():
    model = nn.Linear(64, 64)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    stored_bytes(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_a_model_on_meta_has_a_size_and_no_values(tmp_path):
    model = nn.Linear(64, 64, device="meta")
    assert stored_bytes(model) == stored_bytes(nn.Linear(64, 64))
    with pytest.raises(UnsupportedError, match="meta device"):
        save_weights(model, tmp_path / "w")
    assert not list(tmp_path.iterdir())
    save_weights(nn.Linear(64, 64), tmp_path / "w")
    with pytest.raises(InputError, match="meta device"):
        load_weights(model, tmp_path / "w")


def test_a_state_that_is_no_tensor_is_named(tmp_path):
    class Odd(nn.Linear):
        def get_extra_state(self) -> str:
            return "x"

    with pytest.raises(UnsupportedError, match="'0._extra_state' .* is a str"):
        stored_bytes(nn.Sequential(Odd(2, 2)))
    with pytest.raises(UnsupportedError, match="sparse"):
        stored_bytes(Holding(torch.eye(4).to_sparse()))


# --- files that do not fit --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (nn.Linear(8, 16), "'bias' and 'weight' are|'bias', 'weight' are not in the file"),
        (nn.Sequential(TinyMLP()), "not in the model"),
        (TinyMLP().double(), r"'first.weight' is float64 \[16, 8\] in the model and float32 \[16, 8\]"),
    ],
)
def test_another_structure_is_refused_with_the_names(model, text, tmp_path):
    save_weights(TinyMLP(), tmp_path / "w")
    before = {k: bits(v) for k, v in model.state_dict().items()}
    with pytest.raises(InputError, match=text) as caught:
        load_weights(model, tmp_path / "w")
    assert "the same recipe" in (caught.value.help or "")
    assert {k: bits(v) for k, v in model.state_dict().items()} == before


def test_a_damaged_file_is_refused_wherever_the_damage_is(tmp_path):
    torch.manual_seed(0)
    model, path = Holding(of_codes(5, (50, 50))), tmp_path / "w"
    save_weights(model, path)
    content = path.read_bytes()
    target = Holding(torch.zeros(50, 50))
    for place in [*range(0, 400, 7), *range(400, len(content), 53), len(content) - 1]:
        damaged = bytearray(content)
        damaged[place] ^= 0x11
        path.write_bytes(damaged)
        with pytest.raises(InputError):
            load_weights(target, path)
    for length in (0, 5, 8, 100, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(InputError):
            load_weights(target, path)
    path.write_bytes(content + b"x")
    with pytest.raises(InputError, match="damaged"):
        load_weights(target, path)
    assert not target.held.any()


@pytest.mark.parametrize("content", [b"not weights at all", struct.pack("<Q", 2) + b"[]", struct.pack("<Q", 2**63) + b"{}", b"PK\x03\x04" + bytes(100)])
def test_a_foreign_file_is_refused(content, tmp_path):
    (tmp_path / "w").write_bytes(content)
    with pytest.raises(InputError, match="holds no weights"):
        load_weights(TinyMLP(), tmp_path / "w")


def test_a_file_that_is_not_there_or_cannot_be_written(tmp_path):
    with pytest.raises(InputError, match="cannot be read: No such file"):
        load_weights(TinyMLP(), tmp_path / "w")
    with pytest.raises(InputError, match="cannot be written"):
        save_weights(TinyMLP(), tmp_path / "nowhere" / "w")


def test_a_plain_file_whose_sizes_do_not_agree_is_refused(tmp_path):
    header = b'{"held":{"dtype":"F32","shape":[2,2],"data_offsets":[0,12]}}'
    (tmp_path / "w").write_bytes(struct.pack("<Q", len(header)) + header + bytes(12))
    with pytest.raises(InputError, match="'held' in .* is damaged"):
        load_weights(Holding(torch.zeros(2, 2)), tmp_path / "w")


def test_a_codebook_index_beyond_the_codebook_is_an_error_and_no_value():
    tensor = of_codes(5, (50, 50))
    parts = {name: part.view(torch.uint8) for name, part in pack(tensor, choose_form(tensor)).items()}
    with pytest.raises(IndexError):
        unpack(parts | {"indices": torch.full_like(parts["indices"], 255)}, torch.float32, (50, 50))
