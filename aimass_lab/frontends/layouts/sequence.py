"""How the demand of a generation is shown."""

from __future__ import annotations

from ...headlines import headline
from ...records import SequenceDemand
from ..page import Page, Table, share
from .base import lay_out, notes_of

KINDS = {
    "decoder": "decoder with a cache",
    "encoder-decoder": "encoder once, decoder with a cache",
    "recompute": "no cache: the whole sequence again for every token",
    "custom": "stepped by your function",
}


@lay_out.register
def _(record: SequenceDemand) -> Page:
    columns = ("tokens before", "FLOPs", "bytes moved", "cache in place", "cache held", "time", "time, cache in place")
    rows = tuple((s.position, s.flops, s.bytes_moved, s.bytes_moved_paged, s.cache_bytes, s.time, s.time_paged) for s in record.steps)
    return Page(
        title=f"Generating with {record.model.name}",
        headline=headline(record),
        tone="bad" if record.fits is False else "plain",
        facts=(
            ("how", KINDS[record.kind]),
            ("prompt", f"{record.prompt_tokens} tokens × {record.batch_size}"),
            ("new tokens", f"{record.new_tokens} × {record.batch_size}"),
            ("prefill", record.prefill_flops),
            ("  of it encoder", record.encoder_flops),
            ("  bytes moved", record.prefill_bytes_moved),
            ("  activations, peak", record.prefill_activation_peak_bytes),
            ("decode, all steps", record.decode_flops),
            ("  bytes moved, as it runs", record.decode_bytes_moved),
            ("  bytes moved, cache in place", record.decode_bytes_moved_paged),
            ("prefill and decode", record.total_flops),
            ("cache per token", record.cache_bytes_per_token),
            ("cache, fixed part", record.cache_bytes_fixed),
            ("cache at the end", record.cache_bytes_end),
            ("weights", record.weight_bytes),
            ("peak memory", record.peak_memory_bytes),
            ("memory there", record.memory_limit_bytes),
            ("largest batch", record.max_batch_size),
            ("time to first token", record.time_to_first_token),
            ("time per token", record.time_per_output_token),
            ("  cache in place", record.time_per_output_token_paged),
            ("whole generation", record.generation_time),
            ("tokens per second", record.tokens_per_s),
            ("  while decoding", record.decode_tokens_per_s),
            ("sequences in flight", record.sequences_in_flight),
            ("cache at this rate", record.cache_bytes_at_rate),
            ("devices at this rate, at least", record.devices_at_rate),
            ("FLOPs known for", share(record.coverage)),
        ),
        tables=(Table(title="One step of the batch", columns=columns, rows=rows),),
        remarks=(f"Not modelled: {'; '.join(record.not_modelled)}.",),
        notes=notes_of(record.notes),
    )
