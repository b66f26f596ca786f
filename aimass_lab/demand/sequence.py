"""The demand of generating sequences: the prompt, every token after it, the cache that grows, and how fast it could go."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..errors import InputError
from ..interrupts import sparing_imports
from ..prediction.target import TargetDevice, find_target
from ..records import Note, Number, Unit, derived
from ..records.sequence import DecodeStep, SequenceDemand
from ..tracing.law import BatchLaw
from ..tracing.trace import Row
from ..workload import Workload
from .generation import Generation, NoCacheError, Phase, Step, make_generation, make_recomputed
from .pace import Pace
from .positions import Decode, follow_steps, read_bytes, read_flops

NOT_MODELLED = (
    "speculative decoding and beams: one new token of each sequence a step",
    "continuous batching: every sequence of the batch starts and ends together",
    "pages of a paged cache that are partly empty, and prefixes that sequences share",
    "a quantised or offloaded cache: keys and values in the dtype in which the model makes them",
    "choosing the next token: sampling, penalties, tokenising; and padding, as every prompt has the same length",
)


@sparing_imports
def estimate_sequence(
    workload: Workload,
    *,
    new_tokens: int,
    prompt_tokens: int | None = None,
    batch_size: int | None = None,
    device: str | None = None,
    requests_per_s: float | None = None,
    step: Step | None = None,
    progress: Callable[[float, str], None] | None = None,
) -> SequenceDemand:
    """Estimate what generating sequences asks for; the model is neither run nor touched, and may lie on the meta device.

    The model is followed over tensors without data as ``generate()`` would call it: the prompt at once, from
    which the first new token comes, then one token at a time. Only a few steps are followed, because a step's
    FLOPs and bytes are a straight line in the tokens that went before, a broken one where a window of attention
    fills up, and a parabola for a model without a cache; whether they are is checked at a further step. Bytes of
    the cache are those of the tensors the model itself keeps: for plain attention 2 x layers x key heads x width
    of a head x bytes of an element, for every token (keys and values).

    Args:
        workload: Model and example inputs. Models of transformers that take ``past_key_values`` are known, encoder-decoders
            among them; any other is called with the whole sequence for every token, unless `step` says how.
        new_tokens: Tokens made of each sequence.
        prompt_tokens: Length of one prompt; that of the example inputs if not given. For an encoder-decoder the
            encoder's, where that reads tokens.
        batch_size: Sequences made side by side; as many as in the inputs if not given.
        device: What times and the largest batch are about, as for `estimate_demand`.
        requests_per_s: Sequences asked for per second; then also what the cache holds at that rate, and how many devices it keeps busy.
        step: ``step(model, tokens, state) -> state`` for a model whose forward has another signature: feed ``tokens``
            (batch, count) after what ``state`` holds, None at the start.
        progress: Called now and then with the share that is done and what comes next.

    Raises:
        InputError: a number that cannot be used, or a model that makes no sequences.
        ModelError: the model raises on these inputs.
        UnknownNameError: no such device.
        UnsupportedError: a device that is not attached.
    """
    tell = progress or (lambda share, text: None)
    size = workload.call.batch_size if batch_size is None else batch_size
    for what, value in (("batch size", size), ("number of new tokens", new_tokens), ("prompt length", prompt_tokens)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise InputError(f"the {what} {value!r} is not a positive integer")
    if requests_per_s is not None and not requests_per_s > 0:
        raise InputError(f"a rate of {requests_per_s!r} sequences per second cannot be served", help="give a number above 0")
    target = find_target(device, workload)
    tell(0.0, "following the generation")
    generation, decode = _follow(workload, prompt_tokens, step, size, new_tokens)
    tell(0.6, "following the batch size")
    law = _batch_law(generation, decode, size)
    tell(0.9, "adding up")
    demand = _Assembly(workload, generation, decode, law, target, size, new_tokens, requests_per_s).make()
    tell(1.0, "done")
    return demand


def _follow(workload: Workload, prompt_tokens: int | None, step: Step | None, size: int, new_tokens: int) -> tuple[Generation, Decode]:
    generation = make_generation(workload, prompt_tokens=prompt_tokens, step=step)
    try:
        return generation, follow_steps(generation, size, new_tokens)
    except NoCacheError:  # it has the argument, and no use for it: an encoder
        if step is not None:
            raise
    generation = make_recomputed(workload, prompt_tokens)
    return generation, follow_steps(generation, size, new_tokens)


def _batch_law(generation: Generation, decode: Decode, size: int) -> BatchLaw:
    """Memory by batch size: the lines of every row in the prefill and the last step, through two batch sizes."""
    other = 2 if size != 2 else 3
    last = max(decode.phases.steps, default=None)
    again = generation.follow(other, () if last is None else (last,))

    def rows(phases: Any) -> list[Row]:
        return [row for phase in (phases.prefill, *([] if last is None else [phases.steps[last]])) for row in phase.trace.rows]

    first, second = rows(decode.phases), rows(again)
    aligned = [row.op for row in first] == [row.op for row in second]

    def lines(read: Callable[[Row], int]) -> tuple[tuple[float, float], ...]:
        pairs = list(zip(first, second, strict=True)) if aligned else [(max(first, key=read), max(second, key=read))]
        return tuple({_line(size, read(a), other, read(b)) for a, b in pairs})

    trace = decode.phases.prefill.trace
    return BatchLaw(
        weight_bytes=trace.weight_bytes,
        inputs=_line(size, trace.input_bytes, other, again.prefill.trace.input_bytes),
        live=lines(lambda row: row.live_bytes),
        bound=lines(lambda row: row.live_bytes + row.workspace_bytes),
        exact=aligned,
    )


def _line(x1: int, y1: float, x2: int, y2: float) -> tuple[float, float]:
    slope = (y2 - y1) / (x2 - x1)
    return y1 - slope * x1, slope


class _Assembly:
    """Turns what was followed into the record."""

    def __init__(
        self,
        workload: Workload,
        generation: Generation,
        decode: Decode,
        law: BatchLaw,
        target: TargetDevice,
        size: int,
        new_tokens: int,
        requests_per_s: float | None,
    ) -> None:
        self.workload, self.generation, self.decode, self.law, self.target = workload, generation, decode, law, target
        self.size, self.new_tokens = size, new_tokens
        self.rate = None if requests_per_s is None else Number(value=requests_per_s, unit="request/s", source="user", method="asked for")
        self.model = workload.info()
        self.prefill = decode.phases.prefill
        self.cached = generation.kind != "recompute"
        self.pace = Pace(decode, target, self.model.dtype, batch_size=size, new_tokens=new_tokens, cached=self.cached)
        self._how = "counted over real calls" if self.prefill.trace.ran else "exact arithmetic on shapes, followed without data"

    def make(self) -> SequenceDemand:
        trace, pace, limit = self.prefill.trace, self.pace, self.target.memory
        moved = f"{self._how}: what every operator reads and writes"
        prefill_flops = self._number(trace.flops, "FLOP", f"{self._how}: the prompts of the batch")
        decode_flops = self._sum(read_flops, "FLOP")
        encoder_flops = self.decode.phases.encoder_flops
        peak, largest = self._peak(), self._largest_batch(limit)
        per_token, fixed, end = self._cache()
        flying = None if self.rate is None else pace.in_flight(self.rate)
        return SequenceDemand(
            model=self.model,
            kind=self.generation.kind,
            device=self.target.name,
            batch_size=self.size,
            prompt_tokens=self.generation.prompt_tokens,
            decoder_prompt_tokens=self.generation.start,
            new_tokens=self.new_tokens,
            weight_bytes=self._weights(),
            prefill_flops=prefill_flops,
            encoder_flops=None if encoder_flops is None else self._number(encoder_flops, "FLOP", f"{self._how}: the encoder, once per sequence"),
            prefill_bytes_moved=self._number(trace.bytes_moved, "B", moved),
            prefill_activation_peak_bytes=self._number(trace.activation_peak_bytes, "B", f"{self._how}: tensors alive at once, the cache among them"),
            steps=tuple(self._step(q) for q in self.decode.shown),
            decode_flops=decode_flops,
            decode_bytes_moved=self._sum(read_bytes, "B"),
            decode_bytes_moved_paged=self._sum(self._paged_bytes, "B") if self.cached and self.decode.weights else None,
            total_flops=derived(prefill_flops.value + decode_flops.value, "FLOP", "prefill and decode", [("prefill", prefill_flops), ("decode", decode_flops)]),
            cache_bytes_per_token=per_token,
            cache_bytes_fixed=fixed,
            cache_bytes_end=end,
            peak_memory_bytes=peak,
            memory_limit_bytes=limit,
            fits=None if limit is None else peak.value <= limit.value,
            max_batch_size=largest,
            time_to_first_token=pace.first_token,
            time_per_output_token=pace.per_token,
            time_per_output_token_paged=pace.per_token_paged,
            generation_time=pace.whole,
            tokens_per_s=pace.tokens_per_s,
            decode_tokens_per_s=pace.decode_tokens_per_s,
            requests_per_s=self.rate,
            sequences_in_flight=flying,
            cache_bytes_at_rate=self._cache_in_flight(flying, end),
            devices_at_rate=self._devices(flying),
            coverage=self._coverage(),
            not_modelled=NOT_MODELLED,
            notes=(*self._notes(limit, largest, flying), *pace.notes),
        )

    def _number(self, value: float, unit: Unit, method: str, **more: Any) -> Number:
        return Number(value=value, unit=unit, source="measured" if self.prefill.trace.ran else "estimated", method=method, **more)

    def _weights(self) -> Number:
        on_meta = any(p.device.type == "meta" for p in self.workload.model.parameters())
        method = "sizes of parameters and buffers, tied ones once"
        return Number(value=self.model.weight_bytes, unit="B", source="estimated" if on_meta else "measured", method=method)

    def _sum(self, read: Callable[[Phase], float], unit: Unit) -> Number:
        steps = self.new_tokens - 1
        method = f"{self._how}: sum over {steps} steps of the batch, {len(self.decode.phases.steps)} of them followed"
        if self.decode.exact:
            return self._number(self.decode.total(read), unit, method)
        followed = [read(phase) for phase in self.decode.phases.steps.values()]
        low, high = steps * min(followed), steps * max(followed)
        return self._number(
            min(max(self.decode.total(read), low), high), unit, f"{method}, on no simple line",
            interval=(low, high), interval_kind="every step like the least, or like the greatest", quality="extrapolated",
        )  # fmt: skip

    def _paged_bytes(self, phase: Phase) -> float:
        """The cache read once and one entry written: without the rows that copy it."""
        return phase.in_place.bytes_moved + self._entry_bytes() * self.size

    def _entry_bytes(self) -> float:
        """What one token adds to the cache of one sequence."""
        held = {self.generation.start: self.prefill.cache_bytes, **{q + 1: phase.cache_bytes for q, phase in self.decode.phases.steps.items()}}
        counts = sorted(held)
        return 0.0 if len(counts) < 2 else (held[counts[1]] - held[counts[0]]) / (counts[1] - counts[0]) / self.size

    def _step(self, position: int) -> DecodeStep:
        phase = self.decode.phases.steps[position]
        moved = f"{self._how}: what every operator reads and writes"
        paged = held = None
        if self.cached:
            paged = self._number(self._paged_bytes(phase), "B", f"{moved}, less what copies the cache, and one entry written")
            held = self._number(phase.cache_bytes, "B", f"{self._how}: tensors of the model's own cache after the step")
        return DecodeStep(
            position=position,
            flops=self._number(phase.trace.flops, "FLOP", self._how),
            bytes_moved=self._number(phase.trace.bytes_moved, "B", moved),
            bytes_moved_paged=paged,
            cache_bytes=held,
            time=self.pace.of_step(position),
            time_paged=self.pace.of_step(position, paged=True),
        )

    def _cache(self) -> tuple[Number | None, Number | None, Number | None]:
        """Of one token, of a sequence whatever its length, of the batch at the end."""
        if not self.cached:
            return None, None, None
        how, steps = f"{self._how}: tensors of the model's own cache", self.decode.phases.steps
        end = self._number(steps[max(steps)].cache_bytes if steps else self.prefill.cache_bytes, "B", f"{how}, whole batch after the last step")
        if not steps:  # without a second look at the cache, what grows is not known
            return None, None, end
        entry = self._entry_bytes()
        fixed = max(0.0, self.prefill.cache_bytes / self.size - entry * self.generation.start)
        return self._number(entry, "B", f"{how}, one step more"), self._number(fixed, "B", f"{how}, what does not grow with the tokens"), end

    def _cache_in_flight(self, flying: Number | None, end: Number | None) -> Number | None:
        if flying is None or end is None:
            return None
        mean = (self.prefill.cache_bytes + end.value) / 2 / self.size
        return derived(
            flying.value * mean, "B", "sequences in flight, each with the mean of its cache at the start and at the end",
            [("sequences_in_flight", flying), ("cache_bytes_end", end)],
            interval=None if flying.interval is None else (flying.interval[0] * mean, flying.interval[1] * mean), interval_kind=flying.interval_kind,
        )  # fmt: skip

    def _devices(self, flying: Number | None) -> Number | None:
        """At the rate that was asked for."""
        if flying is None:
            return None
        low, high = flying.ends
        return derived(
            flying.value / self.size, "device", f"sequences in flight over the {self.size} of a batch: every batch full, none waits",
            [("sequences_in_flight", flying)], interval=(low / self.size, high / self.size), interval_kind=flying.interval_kind,
        )  # fmt: skip

    def _peak(self) -> Number:
        trace = self.prefill.trace
        fixed = trace.weight_bytes + trace.input_bytes
        phases = (self.prefill, *self.decode.phases.steps.values())
        live = max(phase.trace.activation_peak_bytes for phase in phases)
        most = max(phase.trace.activation_bound_bytes for phase in phases) + self.target.context_bytes
        where = "the prefill" if live == trace.activation_peak_bytes else "the last step"
        return self._number(
            fixed + live, "B", f"{self._how}: weights, inputs and live tensors, at its highest in {where}",
            interval=(fixed + 0.98 * live, fixed + max(most, live)), interval_kind="band: operators' own workspaces, from none to their bound by operator",
        )  # fmt: skip

    def _largest_batch(self, limit: Number | None) -> Number | None:
        if limit is None:
            return None
        safe = self.law.largest_batch(limit.value - self.target.context_bytes, bound=True)
        most = self.law.largest_batch(limit.value, bound=False)
        if safe is None or most is None:
            return None
        method = "sequences side by side whose weights, cache and activations stay below the limit to the last token, workspaces at their bound"
        return Number(
            value=safe, unit="item", source="estimated", method=method, interval=(safe, max(safe, most)),
            interval_kind="with workspaces at their bound, and without any", quality="ok" if self.law.exact else "extrapolated",
        )  # fmt: skip

    def _coverage(self) -> Number:
        rows = [row for phase in (self.prefill, *self.decode.phases.steps.values()) for row in phase.trace.rows]
        total = sum(row.bytes_read + row.bytes_written for row in rows)
        unknown = sum(row.bytes_read + row.bytes_written for row in rows if row.kind == "unknown")
        return self._number(1 - unknown / total if total else 1.0, "ratio", "share of the bytes moved by operators whose FLOPs are known")

    def _notes(self, limit: Number | None, largest: Number | None, flying: Number | None) -> list[Note]:
        trace, tokens, longest = self.prefill.trace, self.generation.start + self.new_tokens, _longest(self.workload)
        said = {
            "W-REAL-RUN": trace.ran and f"the model was called for counting, because following it over shapes was not possible: {trace.why_ran}",
            "W-COVERAGE": trace.uncovered and f"FLOPs are a lower bound: no formula for {', '.join(sorted(trace.uncovered))}",
            "W-RECOMPUTE": not self.cached and "the model keeps no cache: every new token is counted as a call with the whole sequence",
            "decoder-prompt": self.generation.kind == "encoder-decoder"
            and self.generation.start == 1
            and "the decoder starts from one token; give decoder_input_ids among the inputs for a longer start",
            "W-LENGTH": longest is not None and tokens > longest and f"{tokens} tokens are more than the {longest} positions that the configuration names",
            "W-POSITIONS": not self.decode.exact and "steps between those that were followed may ask for more or less: they lie on no simple line",
            "missing:memory_limit_bytes": limit is None and f"the memory of {self.target.name} is unknown",
            "missing:max_batch_size": limit is not None and largest is None and "memory does not grow with the batch size",
            "missing:sequences_in_flight": self.rate is not None and flying is None and "the time of a generation is unknown, so is how many run at once",
        }
        return [Note(code=code, text=text) for code, text in said.items() if isinstance(text, str)]


def _longest(workload: Workload) -> int | None:
    """Positions that the model's configuration names."""
    config = getattr(workload.model, "config", None)
    names = ("max_target_positions", "max_position_embeddings")
    return next((value for name in names if isinstance(value := getattr(config, name, None), int)), None)
