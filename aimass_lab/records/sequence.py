"""What generating a sequence asks of any device: the prompt at once, then token by token."""

from __future__ import annotations

from typing import Literal

import msgspec

from .model import ModelInfo
from .number import Note, Number, Record

GenerationKind = Literal["decoder", "encoder-decoder", "recompute", "custom"]
"""*decoder* and *encoder-decoder* keep keys and values of the tokens that went before; *recompute* has no
cache and calls the model with the whole sequence for every token; *custom* is stepped by the user's function."""


class DecodeStep(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One output token of every sequence in the batch."""

    position: int
    """Tokens that went before it."""
    flops: Number
    bytes_moved: Number
    """As the model itself runs, eagerly: a cache that grows by concatenation is read and written once more."""
    bytes_moved_paged: Number | None = None
    """The same where the cache stays in place, as paged servers keep it: weights, the cache read once, one entry written."""
    cache_bytes: Number | None = None
    """Held after the step."""
    time: Number | None = None
    time_paged: Number | None = None


class SequenceDemand(Record, frozen=True, kw_only=True, tag="sequence_demand"):
    """What one batch of generated sequences asks of a device; nothing was run."""

    model: ModelInfo
    kind: GenerationKind
    device: str
    batch_size: int
    prompt_tokens: int
    """Tokens of one prompt: for an encoder-decoder those of the encoder, where it reads tokens."""
    decoder_prompt_tokens: int
    """Tokens that the decoder reads before the first one it makes."""
    new_tokens: int
    weight_bytes: Number
    prefill_flops: Number
    """Of the prompt of every sequence, up to the logits of the first new token."""
    encoder_flops: Number | None = None
    """The encoder's part of the prefill."""
    prefill_bytes_moved: Number
    prefill_activation_peak_bytes: Number
    """Most bytes alive at once in tensors made by the prefill, the cache among them."""
    steps: tuple[DecodeStep, ...] = ()
    """The first and the last step, and one between where the demand does not grow evenly."""
    decode_flops: Number
    decode_bytes_moved: Number
    decode_bytes_moved_paged: Number | None = None
    total_flops: Number
    """Prefill and decode of the whole batch."""
    cache_bytes_per_token: Number | None = None
    """Of one sequence."""
    cache_bytes_fixed: Number | None = None
    """Of one sequence, whatever its length: keys and values of the encoder's output, recurrent states."""
    cache_bytes_end: Number | None = None
    """Of the whole batch, after the last step."""
    peak_memory_bytes: Number
    """Weights, inputs, cache and activations at the highest moment of the whole generation."""
    memory_limit_bytes: Number | None = None
    fits: bool | None = None
    max_batch_size: Number | None = None
    time_to_first_token: Number | None = None
    """The prefill, without waiting and without the network."""
    time_per_output_token: Number | None = None
    """Mean over the decode steps, as the model itself runs."""
    time_per_output_token_paged: Number | None = None
    generation_time: Number | None = None
    tokens_per_s: Number | None = None
    """New tokens of the batch over the time of the whole generation."""
    decode_tokens_per_s: Number | None = None
    """New tokens of the batch over the time of the decode steps."""
    requests_per_s: Number | None = None
    sequences_in_flight: Number | None = None
    """Being generated at any moment at this rate."""
    cache_bytes_at_rate: Number | None = None
    """Held for the sequences in flight."""
    devices_at_rate: Number | None = None
    """Kept busy with batches of this size, all of them full: more are needed where sequences wait for each other."""
    coverage: Number
    """Share of the bytes moved by operators whose FLOPs are known."""
    not_modelled: tuple[str, ...] = ()
    notes: tuple[Note, ...] = ()
