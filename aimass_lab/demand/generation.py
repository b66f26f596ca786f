"""Follows a model through a generation without running it: the prompt, then single tokens at chosen positions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import nn

from ..errors import InputError, ModelError
from ..records.sequence import GenerationKind
from ..tracing.formulas import tensor_bytes
from ..tracing.trace import Row, Trace, trace_call
from ..workload import Call, Workload, forward_parameters

Step = Callable[[nn.Module, torch.Tensor, Any], Any]
"""``step(model, tokens, state) -> state``: feed ``tokens`` (batch, count) after what `state` holds; None at the start."""

CACHE_ARGUMENTS = ("past_key_values", "cache_params")
"""What the models of transformers call their cache, in forward and in its result."""

_GIVEN_BY_GENERATION = frozenset(
    ("input_ids", "attention_mask", "position_ids", "cache_position", "labels", "use_cache", "return_dict", "inputs_embeds", "decoder_input_ids",
     "decoder_attention_mask", *CACHE_ARGUMENTS)
)  # fmt: skip

CONCATENATION = "aten::cat"


class NoCacheError(ModelError):
    """The model has the argument of a cache, and returns none."""


@dataclass(frozen=True)
class Phase:
    """One call of the model within a generation."""

    trace: Trace
    cache_bytes: int = 0
    """Held once the call is done, of the whole batch."""
    cache_shapes: frozenset[tuple[int, ...]] = frozenset()

    @property
    def in_place(self) -> Trace:
        """The same call with a cache that is appended to in place: without the rows that copy it."""
        rows = tuple(row for row in self.trace.rows if not self._copies_cache(row))
        return replace(self.trace, rows=rows)

    def _copies_cache(self, row: Row) -> bool:
        return row.op == CONCATENATION and row.shape in self.cache_shapes


@dataclass(frozen=True)
class Phases:
    """One batch of sequences, followed."""

    prefill: Phase
    encoder_flops: int | None
    steps: dict[int, Phase]
    """By the tokens that went before."""


class Generation(Protocol):
    """How one model makes sequences."""

    kind: GenerationKind
    prompt_tokens: int

    @property
    def start(self) -> int:
        """Tokens that the decoder reads before the first one it makes."""

    def follow(self, batch_size: int, positions: Iterable[int]) -> Phases:
        """Follow the prompt, and one token at each of `positions`, in ascending order."""


class _Scope(nn.Module):
    """Gives what is called within it a name in the trace."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any) -> Any:
        return self.function(*args)


@dataclass
class _Seen:
    """What is read off the cache between two calls; kept beside the module, whose attributes are put back."""

    bytes_after: dict[str, int] = field(default_factory=dict)
    shapes_after: dict[str, frozenset[tuple[int, ...]]] = field(default_factory=dict)

    def look(self, name: str, cache: Any) -> None:
        tensors = [t for t in _tensors_in(cache, set()) if t.dim()]  # scalars are counters
        self.bytes_after[name] = sum({t.untyped_storage()._cdata: tensor_bytes(t) for t in tensors}.values())
        self.shapes_after[name] = frozenset(tuple(int(n) for n in t.shape) for t in tensors)


class _Steps(nn.Module):
    """Calls the model the way a generation does, each phase in a scope of its own."""

    def __init__(self, maker: CachedGeneration, positions: tuple[int, ...], seen: _Seen) -> None:
        super().__init__()
        self.model = maker.model
        self.maker, self.positions, self.seen = maker, positions, seen
        self.encode = _Scope(maker.encode)
        self.prefill = _Scope(maker.step)
        self.grow = _Scope(maker.grow)
        for position in positions:
            self.add_module(f"step_{position}", _Scope(maker.step))

    def forward(self, token: torch.Tensor, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        encoded = self.encode(inputs)
        state = self.prefill(self._prompt(token, self.maker.start), None, encoded, inputs)
        held = self.maker.start
        self.seen.look("prefill", self.maker.cache(state))
        for position in self.positions if state is not None else ():
            if position > held:
                state = self._grown(state, position, held, token, encoded, inputs)
            state = self.get_submodule(f"step_{position}")(token, state, encoded, {})
            held = position + 1
            self.seen.look(f"step_{position}", self.maker.cache(state))
        return token

    def _grown(self, state: Any, position: int, held: int, token: torch.Tensor, encoded: Any, inputs: Mapping[str, torch.Tensor]) -> Any:
        if self.grow(self.maker.cache(state), position - held):
            return state
        # A cache of a kind that cannot be lengthened from outside: read a prompt of that length instead.
        return _Scope(self.maker.step)(self._prompt(token, position), None, encoded, inputs)

    @staticmethod
    def _prompt(token: torch.Tensor, length: int) -> torch.Tensor:
        return token.new_zeros((token.shape[0], length))


@dataclass
class CachedGeneration:
    """A model that keeps what it needs of the tokens that went before."""

    model: nn.Module
    kind: GenerationKind
    prompt_tokens: int
    start: int
    inputs: Mapping[str, torch.Tensor]
    """Tensors that the encoder or the prefill reads beside the tokens."""
    advance: Callable[[torch.Tensor, Any, Any, Mapping[str, torch.Tensor]], Any]
    """Tokens, state, encoder's output and inputs -> state."""
    encoder: Callable[[Mapping[str, torch.Tensor]], Any] | None = None

    def encode(self, inputs: Mapping[str, torch.Tensor]) -> Any:
        """The encoder's output, once per sequence; None where there is no encoder."""
        return None if self.encoder is None else self.encoder(inputs)

    def step(self, tokens: torch.Tensor, state: Any, encoded: Any, inputs: Mapping[str, torch.Tensor]) -> Any:
        """Feed tokens; the state afterwards."""
        return self.advance(tokens, state, encoded, inputs)

    def cache(self, state: Any) -> Any:
        """What of the state grows with the sequence."""
        return state

    @staticmethod
    def grow(cache: Any, count: int) -> bool:
        """Lengthen a cache of transformers by `count` tokens without calling the model; False for any other."""
        cache = getattr(cache, "self_attention_cache", cache)
        layers = getattr(cache, "layers", None)
        if not layers or not all(_is_keys_and_values(layer) for layer in layers):
            return False
        for i, layer in enumerate(layers):
            keys, values = (t.new_empty((*t.shape[:-2], count, t.shape[-1])) for t in (layer.keys, layer.values))
            cache.update(keys, values, i)
        return True

    def follow(self, batch_size: int, positions: Iterable[int]) -> Phases:
        """Follow the prompt, and one token at each of `positions`, in ascending order.

        Raises:
            ModelError: the model raised.
            NoCacheError: it gave no cache to go on from.
        """
        wanted = tuple(sorted(set(positions)))
        seen = _Seen()
        device = next((p.device for p in self.model.parameters()), torch.device("cpu"))
        token = torch.zeros((batch_size, 1), dtype=torch.long, device=device)
        inputs = dict(Call(kwargs=dict(self.inputs)).with_batch(batch_size).kwargs) if self.inputs else {}
        trace = trace_call(_Steps(self, wanted, seen), Call(kwargs={"token": token, "inputs": inputs}))
        if not seen.bytes_after.get("prefill"):
            raise NoCacheError(
                f"{type(self.model).__name__} gave no cache to go on from", help="pass step=, a function that feeds tokens and returns the state"
            )
        return self._phases(trace, wanted, seen)

    def _phases(self, trace: Trace, positions: tuple[int, ...], seen: _Seen) -> Phases:
        def rows(*scopes: str) -> Trace:
            return replace(trace, rows=tuple(row for row in trace.rows if any(scope in row.scope for scope in scopes)))

        def phase(name: str, *scopes: str) -> Phase:
            return Phase(rows(*scopes, name), seen.bytes_after[name], seen.shapes_after[name])

        return Phases(
            prefill=phase("prefill", "encode"),
            encoder_flops=None if self.encoder is None else rows("encode").flops,
            steps={position: phase(f"step_{position}") for position in positions},
        )


@dataclass
class RecomputedGeneration:
    """A model without a cache: for every token it is called with the whole sequence."""

    model: nn.Module
    call: Call
    prompt_tokens: int
    kind: GenerationKind = "recompute"

    @property
    def start(self) -> int:
        """The whole prompt."""
        return self.prompt_tokens

    def follow(self, batch_size: int, positions: Iterable[int]) -> Phases:
        """Follow one call per position.

        Raises:
            InputError: the model cannot be called with another length, or its output has no length.
        """
        steps = {position: self._phase(batch_size, position + 1) for position in sorted(set(positions))}
        return Phases(prefill=self._phase(batch_size, self.prompt_tokens), encoder_flops=None, steps=steps)

    def _phase(self, batch_size: int, length: int) -> Phase:
        call = with_length(self.call, length)
        try:
            trace = trace_call(self.model, call, batch_size=batch_size)
        except ModelError as error:
            raise _no_sequence_model(self.model, f"called with {length} tokens it raises ({error.message})") from error
        axis = self.call.batch_axis + 1
        if not any(len(output.shape) > axis and output.shape[axis] == length for output in trace.outputs):
            raise _no_sequence_model(self.model, f"called with {length} tokens it gives no output of that length")
        return Phase(trace)


def make_generation(workload: Workload, *, prompt_tokens: int | None, step: Step | None) -> Generation:
    """Find out how the model makes sequences.

    Args:
        workload: Model and example inputs.
        prompt_tokens: Length of one prompt; that of the example inputs if not given.
        step: The user's own way of feeding tokens.

    Raises:
        InputError: the model is no sequence model.
    """
    if step is not None:
        model = workload.model
        length = prompt_tokens or sequence_length(workload.call) or 1
        return CachedGeneration(model, "custom", length, length, {}, lambda tokens, state, encoded, inputs: step(model, tokens, state))
    plain = getattr(workload.model, "_orig_mod", workload.model)
    parameters = forward_parameters(plain)
    cache_argument = next((name for name in CACHE_ARGUMENTS if name in parameters), None)
    if cache_argument and getattr(getattr(plain, "config", None), "is_encoder_decoder", False):
        return _encoder_decoder(workload, plain, cache_argument, prompt_tokens)
    if cache_argument and "input_ids" in parameters:
        return _decoder(workload, parameters, cache_argument, prompt_tokens)
    return make_recomputed(workload, prompt_tokens)


def make_recomputed(workload: Workload, prompt_tokens: int | None) -> RecomputedGeneration:
    """Call the model with the whole sequence for every token.

    Raises:
        InputError: nothing in the example inputs has a length.
    """
    length = sequence_length(workload.call)
    if length is None:
        where = f"in {workload.call.describe()} nothing has a length"
        raise _no_sequence_model(workload.model, f"{where}; sequences are integers (batch, length) or numbers (batch, length, features)")
    return RecomputedGeneration(workload.model, workload.call, prompt_tokens or length)


def _decoder(workload: Workload, parameters: Mapping[str, Any], cache_argument: str, prompt_tokens: int | None) -> CachedGeneration:
    model, options = workload.model, _plain_options(workload.call)
    if "logits_to_keep" in parameters:
        options.setdefault("logits_to_keep", 1)  # as generate() does: only the last position of the prompt is asked for

    def advance(tokens: torch.Tensor, state: Any, encoded: Any, inputs: Mapping[str, torch.Tensor]) -> Any:
        given = {cache_argument: state} if state is not None else {}
        return _cache_in(model(input_ids=tokens, use_cache=True, **given, **inputs, **options), cache_argument)

    length = prompt_tokens or sequence_length(workload.call) or 1
    extras = {k: v for k, v in workload.call.kwargs.items() if k not in _GIVEN_BY_GENERATION and isinstance(v, torch.Tensor)}
    return CachedGeneration(model, "decoder", length, length, extras, advance)


def _encoder_decoder(workload: Workload, plain: nn.Module, cache_argument: str, prompt_tokens: int | None) -> CachedGeneration:
    model, call, options = workload.model, workload.call, _plain_options(workload.call)
    main = getattr(plain, "main_input_name", "input_ids")
    example = call.kwargs.get(main, call.args[0] if call.args else None)
    if not isinstance(example, torch.Tensor):
        raise InputError(f"the encoder's input {main!r} is not among the example inputs", help=f"pass {{{main!r}: ...}}")
    asked = call.kwargs.get("decoder_input_ids")
    start = int(asked.shape[1]) if isinstance(asked, torch.Tensor) else 1
    if main == "input_ids":
        length = prompt_tokens or int(example.shape[1])
        example = example.new_zeros((example.shape[0], length))
    else:
        # The prompt of a model that hears or sees is what its decoder reads first.
        length = start = prompt_tokens or start
    encoder = plain.get_encoder()  # type: ignore[operator]

    def advance(tokens: torch.Tensor, state: Any, encoded: Any, inputs: Mapping[str, torch.Tensor]) -> Any:
        given = {cache_argument: state} if state is not None else {}
        return _cache_in(model(encoder_outputs=encoded, decoder_input_ids=tokens, use_cache=True, **given, **options), cache_argument)

    return CachedGeneration(model, "encoder-decoder", length, start, {main: example}, advance, lambda inputs: encoder(**inputs))


def _plain_options(call: Call) -> dict[str, Any]:
    return {k: v for k, v in call.kwargs.items() if k not in _GIVEN_BY_GENERATION and not isinstance(v, torch.Tensor)}


def _cache_in(outputs: Any, name: str) -> Any:
    return outputs.get(name) if isinstance(outputs, Mapping) else getattr(outputs, name, None)


def sequence_length(call: Call) -> int | None:
    """Length of the sequences in a call: of the first whole-number tensor (batch, length) or (batch, length, features); None if there is none."""
    example = _sequence_tensor(call)
    return None if example is None else int(example.shape[call.batch_axis + 1])


def _sequence_tensor(call: Call) -> torch.Tensor | None:
    axis = call.batch_axis + 1
    whole = [t for t in call.tensors() if t.dim() == axis + 1 and not t.is_floating_point()]
    return next(iter([*whole, *(t for t in call.tensors() if t.dim() == axis + 2 and t.is_floating_point())]), None)


def with_length(call: Call, length: int) -> Call:
    """The same call with sequences of `length`: cut, or repeated from the start."""
    now, axis = sequence_length(call), call.batch_axis + 1
    if now is None or now == length:
        return call

    def fit(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dim() <= axis or tensor.shape[axis] != now:
            return tensor
        return tensor.index_select(axis, torch.arange(length, device=tensor.device) % now)

    return call.map(fit)


def _no_sequence_model(model: nn.Module, why: str) -> InputError:
    return InputError(
        f"{type(model).__name__} is no sequence model: {why}",
        help="what a model that only reads asks for, by length, tells demand (--length); one that makes tokens by another signature takes step=, "
        "a function (model, tokens, state) -> state",
    )


def _is_keys_and_values(layer: Any) -> bool:
    return all(isinstance(getattr(layer, name, None), torch.Tensor) and getattr(layer, name).dim() == 4 for name in ("keys", "values"))


def _tensors_in(tree: Any, visited: set[int]) -> Iterable[torch.Tensor]:
    """Every tensor within containers and plain objects; modules are weights, not state."""
    if isinstance(tree, torch.Tensor):
        yield tree
        return
    if id(tree) in visited or isinstance(tree, (nn.Module, type, str, bytes)):
        return
    visited.add(id(tree))
    if isinstance(tree, Mapping):
        parts: Iterable[Any] = tree.values()
    elif isinstance(tree, (list, tuple, set)):
        parts = tree
    else:
        parts = getattr(tree, "__dict__", {}).values()
    for part in parts:
        yield from _tensors_in(part, visited)
