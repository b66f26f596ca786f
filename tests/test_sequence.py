"""Sequence demand: held against real generations under torch's own counter, real caches, and closed forms by hand."""

import pytest
import torch
from models import TinyCNN, TinyMLP, TinyTransformer, assert_same, features, ids, snapshot
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from aimass_lab import Study
from aimass_lab.demand.positions import linear_weights, quadratic_weights
from aimass_lab.demand.sequence import estimate_sequence
from aimass_lab.errors import InputError, UnsupportedError
from aimass_lab.frontends.render import render_html, render_text
from aimass_lab.records import SequenceDemand, from_json, to_json
from aimass_lab.workload import Workload

BATCH, PROMPT, NEW = 2, 12, 9


def llama(key_heads=2, attention="sdpa", **options):
    config = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=key_heads, vocab_size=50,
        attn_implementation=attention, **options,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def gpt2(attention="eager"):
    return GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=50, n_positions=64, attn_implementation=attention)).eval()


def t5():
    return T5ForConditionalGeneration(
        T5Config(vocab_size=50, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0, pad_token_id=0, attn_implementation="eager")
    ).eval()


def whisper():
    return WhisperForConditionalGeneration(
        WhisperConfig(
            vocab_size=50, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=64,
            decoder_ffn_dim=64, num_mel_bins=8, max_source_positions=20, max_target_positions=60, attn_implementation="eager", decoder_start_token_id=1,
            pad_token_id=0, bos_token_id=1, eos_token_id=2,
        )
    ).eval()  # fmt: skip


def tokens(batch=BATCH, length=PROMPT):
    return torch.randint(3, 50, (batch, length), generator=torch.Generator().manual_seed(0))


def really_generate(model, inputs, new=NEW):
    """FLOPs that torch counts while the model really generates, and the bytes of the cache it is left with."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        outputs = model.generate(**inputs, max_new_tokens=new, min_new_tokens=new, do_sample=False, num_beams=1, return_dict_in_generate=True)
    cache = outputs.past_key_values
    parts = [cache.self_attention_cache, cache.cross_attention_cache] if hasattr(cache, "cross_attention_cache") else [cache]
    return counter.get_total_flops(), sum(t.numel() * t.element_size() for part in parts for layer in part.layers for t in (layer.keys, layer.values))


def sequence_of(model, inputs, **options):
    return estimate_sequence(Workload(model, inputs), **{"new_tokens": NEW, "device": "l4", **options})


@pytest.mark.parametrize("make", [lambda: llama(attention="eager"), lambda: llama(4, attention="eager"), gpt2], ids=["llama-gqa", "llama", "gpt2"])
@pytest.mark.parametrize("new", [1, 2, 3, NEW])
def test_decoders_ask_for_what_torch_counts_when_they_really_generate(make, new):
    model = make()
    flops, cache_bytes = really_generate(model, {"input_ids": tokens(), "attention_mask": torch.ones_like(tokens())}, new)
    demand = sequence_of(model, {"input_ids": tokens()}, new_tokens=new)
    assert demand.kind == "decoder"
    assert demand.total_flops.value == flops == demand.prefill_flops.value + demand.decode_flops.value
    assert demand.cache_bytes_end.value == cache_bytes
    assert demand.coverage.value == 1


def test_a_t5_encodes_once_and_decodes_step_by_step():
    model = t5()
    flops, cache_bytes = really_generate(model, {"input_ids": tokens(), "attention_mask": torch.ones_like(tokens())})
    demand = sequence_of(model, {"input_ids": tokens()})
    assert (demand.kind, demand.prompt_tokens, demand.decoder_prompt_tokens) == ("encoder-decoder", PROMPT, 1)
    assert demand.total_flops.value == flops
    assert 0 < demand.encoder_flops.value < demand.prefill_flops.value
    assert demand.cache_bytes_end.value == cache_bytes
    heads, width, layers = 4, 8, 2
    assert demand.cache_bytes_per_token.value == 2 * layers * heads * width * 4
    assert demand.cache_bytes_fixed.value == 2 * layers * heads * width * 4 * PROMPT


def test_a_whisper_hears_once_and_decodes_step_by_step():
    model = whisper()
    sound = torch.randn(BATCH, 8, 40, generator=torch.Generator().manual_seed(0))
    start = torch.full((BATCH, 3), 1)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        # by hand: generate() of Whisper adds a search for the language and the end of segments of its own
        encoded = model.model.encoder(sound)
        out = model(encoder_outputs=encoded, decoder_input_ids=start, use_cache=True)
        for _ in range(NEW - 1):
            out = model(encoder_outputs=encoded, decoder_input_ids=start[:, :1], past_key_values=out.past_key_values, use_cache=True)
    cache = out.past_key_values
    held = sum(t.nbytes for part in (cache.self_attention_cache, cache.cross_attention_cache) for layer in part.layers for t in (layer.keys, layer.values))
    demand = sequence_of(model, {"input_features": sound, "decoder_input_ids": start})
    assert (demand.kind, demand.decoder_prompt_tokens) == ("encoder-decoder", 3)
    assert demand.total_flops.value == counter.get_total_flops()
    assert demand.cache_bytes_end.value == held


def test_the_prefill_of_a_llama_is_the_closed_form():
    model = llama(4)
    layers, width = 3, 32
    parameters = sum(p.numel() for name, p in model.named_parameters() if "layers" in name and p.dim() == 2)
    head = model.lm_head.weight.numel()
    demand = sequence_of(model, {"input_ids": tokens()})
    attention = 4 * BATCH * PROMPT**2 * width * layers
    assert demand.prefill_flops.value == 2 * parameters * BATCH * PROMPT + attention + 2 * head * BATCH  # logits of the last token alone
    every = sequence_of(model, {"input_ids": tokens(), "logits_to_keep": 0}).prefill_flops.value
    assert every == 2 * (parameters + head) * BATCH * PROMPT + attention


@pytest.mark.parametrize(("key_heads", "dtype"), [(4, torch.float32), (1, torch.float32), (2, torch.bfloat16)])
def test_the_cache_is_two_tensors_a_layer(key_heads, dtype):
    layers, head_width = 3, 8
    demand = sequence_of(llama(key_heads).to(dtype), {"input_ids": tokens()})
    per_token = 2 * layers * key_heads * head_width * dtype.itemsize
    assert demand.cache_bytes_per_token.value == per_token
    assert demand.cache_bytes_fixed.value == 0
    assert demand.cache_bytes_end.value == per_token * BATCH * (PROMPT + NEW - 1)


def test_a_cache_that_is_concatenated_moves_three_times_what_one_in_place_does():
    demand = sequence_of(llama(4), {"input_ids": tokens()})
    first, last = demand.steps[0], demand.steps[-1]
    more = (last.position - first.position) * BATCH * demand.cache_bytes_per_token.value
    assert last.bytes_moved.value - first.bytes_moved.value == 3 * more
    assert last.bytes_moved_paged.value - first.bytes_moved_paged.value == more
    # in place: every weight but the table of embeddings, the cache once, one entry, and the activations of one token
    model = llama(4)
    read = sum(p.nbytes for name, p in model.named_parameters() if "embed" not in name)
    rest = last.bytes_moved_paged.value - read - last.cache_bytes.value - BATCH * demand.cache_bytes_per_token.value
    assert 0 < rest < 0.7 * read
    assert demand.decode_bytes_moved.value > demand.decode_bytes_moved_paged.value


def test_every_step_between_lies_on_the_line():
    model, prompt = llama(attention="eager"), {"input_ids": tokens()}
    whole = sequence_of(model, prompt, new_tokens=12)
    each = [sequence_of(model, {"input_ids": tokens(length=PROMPT + k)}, new_tokens=2) for k in range(11)]
    assert whole.decode_flops.value == sum(one.decode_flops.value for one in each)
    assert whole.decode_bytes_moved.value == sum(one.decode_bytes_moved.value for one in each)
    assert whole.decode_flops.interval is None


def test_a_window_of_attention_bends_the_line_and_the_sum_stays_exact():
    config = MistralConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=50, sliding_window=20,
        attn_implementation="eager",
    )  # fmt: skip
    model = MistralForCausalLM(config).eval()
    flops, cache_bytes = really_generate(model, {"input_ids": tokens(), "attention_mask": torch.ones_like(tokens())}, 30)
    demand = sequence_of(model, {"input_ids": tokens()}, new_tokens=30)
    assert demand.total_flops.value == flops
    assert demand.cache_bytes_end.value == cache_bytes
    assert len(demand.steps) > 2


def test_a_module_without_a_cache_computes_everything_again():
    model = TinyTransformer()
    demand = sequence_of(model, ids(BATCH, 6), new_tokens=NEW)
    width, layers = 32, 2

    def call(length):
        return layers * (2 * BATCH * length * 12 * width**2 + 4 * BATCH * length**2 * width)

    assert demand.kind == "recompute"
    assert demand.prefill_flops.value == call(6)
    assert demand.decode_flops.value == sum(call(6 + k) for k in range(1, NEW))
    assert demand.cache_bytes_end is None
    assert demand.steps[0].bytes_moved_paged is None
    assert "W-RECOMPUTE" in {note.code for note in demand.notes}


def test_an_encoder_with_the_argument_of_a_cache_has_none():
    config = BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, vocab_size=50)
    assert sequence_of(BertModel(config).eval(), {"input_ids": tokens()}).kind == "recompute"


class Stepped(nn.Module):
    """Feeds one vector after another to a recurrent cell, under names that nobody knows."""

    def __init__(self):
        super().__init__()
        self.embed, self.cell, self.head = nn.Embedding(20, 16), nn.GRUCell(16, 16), nn.Linear(16, 20)

    def forward(self, symbols, memory):
        for k in range(symbols.shape[1]):
            memory = self.cell(self.embed(symbols[:, k]), memory)
        return self.head(memory), memory


def test_a_function_of_the_user_steps_any_other_signature():
    model = Stepped()

    def step(model, symbols, memory):
        return model(symbols, torch.zeros(symbols.shape[0], 16) if memory is None else memory)[1]

    demand = sequence_of(model, (ids(BATCH, 6), torch.zeros(BATCH, 16)), step=step)
    cell = 2 * BATCH * 2 * 16 * 48
    head = 2 * BATCH * 16 * 20
    assert demand.kind == "custom"
    assert demand.prefill_flops.value == 6 * cell + head
    assert demand.decode_flops.value == (NEW - 1) * (cell + head)
    assert (demand.cache_bytes_per_token.value, demand.cache_bytes_fixed.value) == (0, 16 * 4)


@pytest.mark.parametrize(("model", "inputs"), [(TinyMLP(), features()), (TinyCNN(), torch.ones(2, 1, 8, 8))], ids=["mlp", "cnn"])
def test_a_model_that_makes_no_sequences_is_told_so(model, inputs):
    with pytest.raises(InputError, match=f"{type(model).__name__} is no sequence model"):
        sequence_of(model, inputs)


@pytest.mark.parametrize("wrong", [{"new_tokens": 0}, {"prompt_tokens": -3}, {"batch_size": 0}, {"requests_per_s": -1.0}])
def test_numbers_that_make_no_sense_are_refused(wrong):
    with pytest.raises(InputError):
        sequence_of(llama(), {"input_ids": tokens()}, **wrong)


def test_the_model_and_the_random_state_are_left_alone():
    model = llama().train()
    before = snapshot(model)
    sequence_of(model, {"input_ids": tokens()}, device="l4")
    assert_same(before, snapshot(model))


def test_a_seven_billion_llama_on_meta():
    config = LlamaConfig(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32, vocab_size=32000, dtype=torch.bfloat16)
    with torch.device("meta"):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    batch, prompt, new = 8, 1920, 129
    demand = sequence_of(
        model, {"input_ids": torch.zeros(1, 1, dtype=torch.long, device="meta")}, batch_size=batch, prompt_tokens=prompt, new_tokens=new, device="h100-sxm"
    )
    layer_parameters = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    assert demand.prefill_flops.value == 2 * layer_parameters * batch * prompt + 4 * batch * prompt**2 * 4096 * 32 + 2 * batch * 4096 * 32000
    assert demand.cache_bytes_per_token.value == 2 * 32 * 4096 * 2
    assert demand.cache_bytes_end.value == 2 * 32 * 4096 * 2 * batch * (prompt + new - 1)
    # a step with the cache in place: 13.2 GB of weights and 8.6 GB of cache; concatenated: the cache three times
    assert demand.steps[-1].bytes_moved_paged.value == pytest.approx(22.1e9, rel=0.01)
    assert demand.steps[-1].bytes_moved.value == pytest.approx(39.2e9, rel=0.01)
    assert demand.fits
    per_sequence = demand.cache_bytes_end.value / batch
    room = demand.memory_limit_bytes.value - demand.weight_bytes.value
    assert batch < demand.max_batch_size.value < room / per_sequence
    low, high = demand.time_per_output_token_paged.interval
    assert 0 < low < demand.time_per_output_token_paged.value < demand.time_per_output_token.value < high


def test_the_largest_batch_keeps_weights_cache_and_activations_below_the_limit():
    model = llama()
    demand = sequence_of(model, {"input_ids": tokens()}, device="cpu")
    there = sequence_of(model, {"input_ids": tokens()}, batch_size=demand.max_batch_size.value, device="cpu")
    assert there.peak_memory_bytes.value <= there.memory_limit_bytes.value
    beyond = sequence_of(model, {"input_ids": tokens()}, batch_size=int(demand.max_batch_size.interval[1]) + 1, device="cpu")
    assert beyond.peak_memory_bytes.value > beyond.memory_limit_bytes.value
    assert not beyond.fits


def test_a_rate_fills_the_cache_by_littles_law():
    demand = sequence_of(llama(), {"input_ids": tokens()}, device="l4", requests_per_s=50.0)
    flying = 50 * demand.generation_time.value
    assert demand.sequences_in_flight.value == pytest.approx(flying)
    assert demand.devices_at_rate.value == pytest.approx(50 / (BATCH / demand.generation_time.value)), "rate over what one device ends per second"
    mean_tokens = PROMPT + (NEW - 1) / 2
    assert demand.cache_bytes_at_rate.value == pytest.approx(flying * demand.cache_bytes_per_token.value * mean_tokens)
    assert demand.tokens_per_s.value == pytest.approx(BATCH * NEW / demand.generation_time.value)
    assert demand.generation_time.value == pytest.approx(demand.time_to_first_token.value + (NEW - 1) * demand.time_per_output_token.value)


def test_more_tokens_than_positions_are_noted():
    assert "W-LENGTH" in {note.code for note in sequence_of(gpt2(), {"input_ids": tokens()}, new_tokens=60).notes}


def test_a_device_without_a_rate_gives_no_times_but_the_counts():
    demand = sequence_of(llama().to(torch.float64), {"input_ids": tokens()}, device="l4")
    assert demand.time_to_first_token is None
    assert demand.generation_time is None
    assert "missing:latency" in {note.code for note in demand.notes}
    assert demand.total_flops.value > 0


def test_weights_of_sums_are_those_of_adding_up_one_by_one():
    cubic = [3 * q + 7 for q in range(40)]
    broken = [min(q, 25) for q in range(40)]
    square = [2 * q * q - 5 * q + 1 for q in range(40)]
    assert sum(w * cubic[q] for q, w in linear_weights((4, 33)).items()) == sum(cubic[4:34])
    assert sum(w * broken[q] for q, w in linear_weights((4, 25, 33)).items()) == sum(broken[4:34])
    assert sum(w * square[q] for q, w in quadratic_weights((4, 17, 33)).items()) == sum(square[4:34])


def test_a_plan_for_a_model_that_makes_texts_says_what_a_request_is(tmp_path):
    """On the meta device, where nothing can be run and a plan for another device can be made; an encoder is asked for single calls anyway."""
    with torch.device("meta"):
        model, encoder = llama(), BertModel(BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64, vocab_size=50))
    prompt = {"input_ids": torch.zeros(BATCH, PROMPT, dtype=torch.long, device="meta")}
    study = Study(model, prompt, store=tmp_path / "h.db")
    said = {note.code: note.text for note in study.plan(rate=5, p99="1s", device=("l4",)).notes}
    assert f"one call of the model on input_ids=int64[{BATCH}, {PROMPT}]" in said["assumes:one-call"]
    assert "sequence tells" in said["assumes:one-call"]
    assert "assumes:one-call" in {note.code for note in study.spec(rate=5, p99="1s", device=("l4",)).notes}
    other = Study(encoder.eval(), prompt, store=tmp_path / "h.db").plan(rate=5, p99="1s", device=("l4",))
    assert "assumes:one-call" not in {note.code for note in other.notes}
    for ask in (lambda: study.search(seconds=1), lambda: study.bundle(out=str(tmp_path / "b")), lambda: study.plan(rate=5, p99="1s"), study.profile):
        with pytest.raises(UnsupportedError, match="meta device: it has no weights"):
            ask()


def test_the_verb_the_record_and_its_pages(tmp_path):
    study = Study(llama(), {"input_ids": tokens()}, store=tmp_path / "h.db")
    demand = study.sequence(new=NEW, device="l4", rate="600/min")
    assert from_json(to_json(demand), SequenceDemand) == demand
    text = render_text(demand)
    assert "time to first token" in text
    assert "Not modelled: speculative decoding" in text
    assert "cache in place" in render_html(demand)
    assert demand.requests_per_s.value == 10
