"""How far the formulas of resource demand are off: on operators held out of the fit, and on whole models that no fit saw.

Run with ``python tests/benchmarks/demand/resources.py``. Seconds are CPU seconds of one thread, so that other work on
the machine disturbs little; a model's are the median of several calls.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaForCausalLM,
    ResNetConfig,
    ResNetModel,
    T5Config,
    T5EncoderModel,
    ViTConfig,
    ViTModel,
)

from aimass_lab.demand.blocks import measure_blocks
from aimass_lab.demand.coefficients import Fit, check_on_blocks, fit_samples
from aimass_lab.demand.operators import cache_bytes, measure_operators
from aimass_lab.demand.sequence import estimate_sequence
from aimass_lab.environment import LoadMeter, read_environment
from aimass_lab.tracing.trace import trace_call
from aimass_lab.workload import Workload

CPU = torch.device("cpu")
REPEATS, CALLS = 3, 5


def ids(length: int) -> torch.Tensor:
    """Two sequences."""
    return torch.randint(0, 1000, (2, length), generator=torch.Generator().manual_seed(0))


def images() -> torch.Tensor:
    """Two images."""
    return torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))


def depthwise() -> nn.Module:
    """Blocks as MobileNet has them."""

    def block(c: int, o: int, stride: int) -> list[nn.Module]:
        return [nn.Conv2d(c, c, 3, stride, 1, groups=c, bias=False), nn.BatchNorm2d(c), nn.ReLU(), nn.Conv2d(c, o, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU()]

    widths = [(32, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1), (256, 512, 2), (512, 512, 1), (512, 512, 1)]
    return nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.ReLU(), *(m for width in widths for m in block(*width)))


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], object]]] = {
    "BERT, 4 layers of base": (lambda: BertModel(BertConfig(num_hidden_layers=4)), lambda: {"input_ids": ids(128)}),
    "GPT-2, 4 layers": (lambda: GPT2Model(GPT2Config(n_layer=4)), lambda: {"input_ids": ids(128)}),
    "ViT-B, 4 layers": (lambda: ViTModel(ViTConfig(num_hidden_layers=4)), lambda: {"pixel_values": images()}),
    "ResNet-50": (lambda: ResNetModel(ResNetConfig()), lambda: {"pixel_values": images()}),
    "MobileNet-like": (depthwise, images),
    "T5 encoder, small": (lambda: T5EncoderModel(T5Config()), lambda: {"input_ids": ids(128)}),
    "Llama, 4 layers of 512": (
        lambda: LlamaForCausalLM(LlamaConfig(hidden_size=512, intermediate_size=1376, num_hidden_layers=4, num_attention_heads=8, vocab_size=8000)),
        lambda: {"input_ids": ids(128)},
    ),
    "BERT, 2 layers of 128": (
        lambda: BertModel(BertConfig(hidden_size=128, num_hidden_layers=2, num_attention_heads=2, intermediate_size=512)),
        lambda: {"input_ids": ids(32)},
    ),
}


def main() -> None:
    """Print the tables."""
    torch.set_num_threads(1)
    environment = read_environment(CPU)
    with LoadMeter() as load:
        start, cpu = time.perf_counter(), time.process_time()
        fits = [_fit(environment.id) for _ in range(REPEATS)]
        wall, cpu = (time.perf_counter() - start) / REPEATS, (time.process_time() - cpu) / REPEATS
        rows = [_model(name, fits[-1]) for name in MODELS]
        sequence_s = _sequence()
    print(f"{environment.device_name}, 1 thread, torch {environment.torch}, {environment.taken_at}; other load {load.foreign_cores:.1f} cores")
    print(f"measuring and fitting: {wall:.1f} s wall, {cpu:.1f} CPU-s")
    print(f"\nmedian held-out error on operators (reach: 13 % by family), {REPEATS} measurements")
    _print_errors("additive, one set", [fit.all.held_out_error for fit in fits])
    _print_errors("roofline, one set", [fit.roofline.held_out_error for fit in fits])
    _print_errors("by family", [fit.family_error for fit in fits])
    for form in fits[-1].network_errors:
        _print_errors(f"networks, {form}", [fit.network_errors[form] for fit in fits])
    for family in fits[-1].families:
        _print_errors(f"  {family}", [fit.families[family].held_out_error for fit in fits])
    print(f"\nwhole models, batch 2: predicted over measured - 1\n{'':28} {'measured':>10} {'additive':>9} {'roofline':>9} {'by family':>9}")
    for name, measured_s, errors in rows:
        print(f"{name:28} {1e3 * measured_s:7.2f} ms " + " ".join(f"{error:+9.0%}" for error in errors))
    medians = [statistics.median(abs(errors[k]) for _, _, errors in rows) for k in range(3)]
    print(f"{'median of the absolute':39} " + " ".join(f"{error:9.0%}" for error in medians))
    print("\nsequence demand on the meta device, CPU seconds: " + ", ".join(f"{name} {seconds:.1f}" for name, seconds in sequence_s.items()))


def _fit(environment: str) -> Fit:
    fit = fit_samples(measure_operators(CPU, torch.float32), environment=environment, quality="ok", cache=cache_bytes(CPU))
    return check_on_blocks(fit, measure_blocks(CPU, torch.float32), between=True)


def _print_errors(name: str, errors: list[object]) -> None:
    print(f"{name:28} " + "  ".join(f"{error.value:5.1%}" for error in errors))  # type: ignore[attr-defined]


def _model(name: str, fit: Fit) -> tuple[str, float, tuple[float, float, float]]:
    make, inputs = MODELS[name]
    torch.manual_seed(0)
    workload = Workload(make().eval(), inputs())
    call = workload.call
    seconds = []
    with torch.inference_mode():
        for _ in range(CALLS + 1):
            start = time.thread_time()
            workload.model(*call.args, **call.kwargs)
            seconds.append(time.thread_time() - start)
    middle = statistics.median(seconds[1:])
    rows = trace_call(workload.model, call).rows
    predicted = fit.additive_s(rows), fit.roofline_s(rows), fit.by_family_s(rows)
    return name, middle, tuple(p / middle - 1 for p in predicted)  # type: ignore[return-value]


def _sequence() -> dict[str, float]:
    """Of a generation of 2048 tokens by models that no machine here could hold."""
    seconds = {}
    for name, width, inner, layers, heads, key_heads in (("7B", 4096, 11008, 32, 32, 32), ("70B", 8192, 28672, 80, 64, 8)):
        config = LlamaConfig(
            hidden_size=width, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=key_heads, vocab_size=32000
        )
        with torch.device("meta"):
            model = LlamaForCausalLM(config).to(torch.bfloat16)
        workload = Workload(model, {"input_ids": torch.zeros(1, 1, dtype=torch.long, device="meta")})
        start = time.process_time()
        estimate_sequence(workload, prompt_tokens=1920, new_tokens=129, batch_size=8, device="h100-sxm")
        seconds[name] = time.process_time() - start
    return seconds


if __name__ == "__main__":
    main()
