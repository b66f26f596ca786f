"""The smallest lossless form of one tensor: as it is, a codebook with indices, or a mask with what is not zero."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

MOST_CODES = 256
"""Different values up to which a codebook is tried: an index takes a byte at most."""
MIN_GAIN_BYTES = 256
"""What packing must save at least, because its description takes room in the header too."""
_SAMPLE = 4096
_CHUNK = 2**18
"""Words that are looked at in one go: what a core's cache holds."""


PARTS = ("mask", "signs", "values", "codebook", "indices")
"""What a packed tensor may consist of."""


@dataclass(frozen=True)
class Form:
    """How one tensor is stored."""

    zeros: tuple[int, int] | None = None
    """Zeros and negative zeros, where a mask says which values are not zero and only those are kept."""
    codes: torch.Tensor | None = None
    """The different values that are kept, where indices into them are stored instead."""

    @property
    def is_dense(self) -> bool:
        """Whether it is stored as it is."""
        return self.zeros is None and self.codes is None

    def sizes(self, num_words: int, word_bytes: int) -> dict[str, int]:
        """Bytes of each part, by what follows the tensor's name."""
        kept = num_words - (sum(self.zeros) if self.zeros else 0)
        sizes: dict[str, int] = {}
        if self.zeros:
            sizes["mask"] = _packed_bytes(num_words, 1)
            if self.zeros[1]:
                sizes["signs"] = _packed_bytes(sum(self.zeros), 1)
        if self.codes is None:
            return sizes | {"values": kept * word_bytes}
        return sizes | {"codebook": len(self.codes) * word_bytes, "indices": _packed_bytes(kept, _width(len(self.codes)))}


def _width(num_codes: int) -> int:
    """Bits of an index into `num_codes` values."""
    return max(0, num_codes - 1).bit_length()


def _packed_bytes(count: int, width: int) -> int:
    return math.ceil(count * width / 8)


def words_of(tensor: torch.Tensor) -> torch.Tensor:
    """The bits of a tensor as a vector of signed integers, of at most 8 bytes: two for each complex128."""
    import torch

    flat = tensor.resolve_conj().resolve_neg().contiguous().flatten()
    return flat.view({1: torch.int8, 2: torch.int16, 4: torch.int32}.get(tensor.element_size(), torch.int64))


def choose_form(tensor: torch.Tensor) -> Form:
    """The smallest form; a few values are looked at first, because most tensors have neither zeros nor few values."""
    import torch

    num_bytes = tensor.numel() * tensor.element_size()
    if tensor.device.type == "meta" or num_bytes <= MIN_GAIN_BYTES:
        return Form()
    words = words_of(tensor)
    width = words.element_size()
    sample = words
    if len(words) > _SAMPLE:
        lots = torch.randint(len(words), (_SAMPLE,), generator=torch.Generator().manual_seed(0))
        sample = words[lots.to(words.device)]
    smallest = torch.iinfo(words.dtype).min if tensor.is_floating_point() else 0  # the bits of -0.0
    forms = [Form()]
    zeros = None
    if int(((sample == 0) | (sample == smallest)).sum()) * 32 * width >= len(sample):  # a quarter of what makes a mask pay
        all_zeros, plus = len(words) - _count(words, 0, smallest), len(words) - _count(words, 0, 0)
        zeros = (plus, all_zeros - plus)
        forms.append(Form(zeros=zeros))
    codes = _different(words, sample)
    if codes is not None:
        forms.append(Form(codes=codes))
        if zeros is not None:
            forms.append(Form(zeros=zeros, codes=codes[(codes != 0) & (codes != smallest)]))
    best = min(forms, key=lambda form: sum(form.sizes(len(words), width).values()))
    gain = num_bytes - sum(best.sizes(len(words), width).values())
    return best if gain > MIN_GAIN_BYTES else Form()


def _count(words: torch.Tensor, zero: int, other: int) -> int:
    """How many words are neither `zero` nor `other`."""
    return sum(int(((chunk != zero) & (chunk != other)).sum()) if other else int(chunk.count_nonzero()) for chunk in words.split(_CHUNK))


def _different(words: torch.Tensor, sample: torch.Tensor) -> torch.Tensor | None:
    """The different values in order; None where they are more than a codebook may have."""
    import torch

    codes = sample.unique()
    if len(codes) > MOST_CODES:
        return None
    look_up = _index(codes)
    for chunk in words.split(_CHUNK):
        unknown = chunk[codes.index_select(0, look_up(chunk)) != chunk]
        while len(unknown):
            codes = torch.cat([codes, unknown[:_SAMPLE].unique()]).unique()
            if len(codes) > MOST_CODES:
                return None
            look_up = _index(codes)
            unknown = unknown[codes.index_select(0, look_up(unknown)) != unknown]
    return codes


def _index(codes: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function that tells where a word stands among `codes`, which are in order; for a word that is none of them, any place.

    A table of hashed words is an order of magnitude faster than a search, and a factor under which no two codes meet is soon found.
    """
    import torch

    def search(words: torch.Tensor) -> torch.Tensor:
        return torch.searchsorted(codes, words, out_int32=True).clamp_max_(len(codes) - 1)

    if codes.element_size() == 8 or not len(codes):
        return search
    for factor in range(0x1E37, 0x1E37 + 128, 2):  # odd, and with its bits mixed

        def key(words: torch.Tensor, factor: int = factor) -> torch.Tensor:
            return (words.to(torch.int32) * (factor << 16 | factor) >> 16) & 0xFFFF

        keys = key(codes)
        if len(keys.unique()) == len(codes):
            table = torch.zeros(2**16, dtype=torch.int32, device=codes.device)
            table[keys] = torch.arange(len(codes), dtype=torch.int32, device=codes.device)
            return lambda words: table.index_select(0, key(words))
    return search


def _pack_bits(values: torch.Tensor, width: int) -> torch.Tensor:
    """Non-negative integers of `width` bits each as a stream of bytes, lowest bit first: eight of them at a time fill `width` bytes."""
    import torch

    groups = torch.nn.functional.pad(values.to(torch.uint8), (0, -len(values) % 8)).view(-1, 8)
    filled = torch.zeros(len(groups), dtype=torch.int64, device=values.device)
    for place in range(8):
        filled |= groups[:, place].to(torch.int64) << width * place
    return filled.view(torch.uint8).view(-1, 8)[:, :width].flatten()[: _packed_bytes(len(values), width)]


def _unpack_bits(stream: torch.Tensor, count: int, width: int) -> torch.Tensor:
    """The integers that `_pack_bits` packed."""
    import torch

    num_groups = math.ceil(count / 8)
    filled = torch.zeros(num_groups, 8, dtype=torch.uint8)
    if width:
        filled[:, :width] = torch.nn.functional.pad(stream, (0, num_groups * width - len(stream))).view(-1, width)
    whole = filled.view(torch.int64).flatten()
    return torch.stack([(whole >> width * place) & ((1 << width) - 1) for place in range(8)], dim=1).flatten()[:count]


def pack(tensor: torch.Tensor, form: Form) -> dict[str, torch.Tensor]:
    """The parts of one tensor, as vectors of its own bits or of packed bytes."""
    import torch

    words = words_of(tensor)
    if form.is_dense:
        return {"": words}
    parts: dict[str, torch.Tensor] = {}
    if form.zeros:
        zero = words == 0
        if form.zeros[1]:
            zero |= words == torch.iinfo(words.dtype).min
            parts["signs"] = _pack_bits(words[zero] != 0, 1)
        parts["mask"] = _pack_bits(~zero, 1)
        words = words[~zero]
    if form.codes is None:
        return parts | {"values": words}
    width, look_up = _width(len(form.codes)), _index(form.codes)
    packed = _pack_bits(torch.cat([look_up(chunk) for chunk in words.split(_CHUNK)]), width) if width else words[:0].view(torch.uint8)
    return parts | {"codebook": form.codes, "indices": packed}


def unpack(parts: Mapping[str, torch.Tensor], dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    """The tensor that `pack` took apart, from its parts as bytes on the CPU."""
    import torch

    if "" in parts:
        return parts[""].view(dtype).reshape(shape)
    element = torch.empty(1, dtype=dtype)
    kind = words_of(element).dtype
    num_words = math.prod(shape) * len(words_of(element))
    mask = _unpack_bits(parts["mask"], num_words, 1).bool() if "mask" in parts else None
    kept = num_words if mask is None else int(mask.sum())
    if "values" in parts:
        words = parts["values"].view(kind)
    else:
        codes = parts["codebook"].view(kind)
        words = codes[_unpack_bits(parts["indices"], kept, _width(len(codes)))]
    if mask is None:
        return words.view(dtype).reshape(shape)
    whole = torch.zeros(num_words, dtype=kind)
    if "signs" in parts:
        whole[~mask] = _unpack_bits(parts["signs"], num_words - kept, 1).to(kind) * torch.iinfo(kind).min
    whole[mask] = words
    return whole.view(dtype).reshape(shape)
