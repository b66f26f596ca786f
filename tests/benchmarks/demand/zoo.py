"""The models that the evaluation of demand runs on, each with a hand count of its FLOPs.

Weights are random: nothing here is called accuracy. The hand count knows nothing of torch's dispatcher: it reads the
shapes that layers make through forward hooks, multiplies them out, and adds what no layer does (attention, experts, FFT)
by the formula that stands beside each model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

Inputs = Callable[[int], dict[str, torch.Tensor] | tuple[torch.Tensor, ...]]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One model of the evaluation."""

    name: str
    make: Callable[[], nn.Module]
    inputs: Inputs
    """Example inputs of a batch size."""
    beyond_layers: Callable[[int], float] = lambda batch: 0.0
    """Forward FLOPs at a batch size that no counted layer does."""
    beyond_backward: float = 2.0
    """Backward over forward of `beyond_layers`: 2.5 where fused attention computes its scores again, 1 for an FFT."""
    beyond_unneeded: Callable[[int], float] = lambda batch: 0.0
    """Backward FLOPs of the same that nobody needs, because the model's own input asks for no gradient."""
    only_meta: bool = False
    """Too large to be run here: followed on the meta device."""
    closed_form: Callable[[int], float] | None = None
    """All forward FLOPs at a batch size, where the model cannot be called for its layers' shapes."""
    train: bool = True
    technique: str | None = None
    """A technique of ours to apply before following; the hand count is that of the original."""
    control_flow: bool = False
    batches: tuple[int, ...] = (1, 2, 3, 4, 8)


def tokens(batch: int, length: int, vocabulary: int, name: str = "input_ids") -> dict[str, torch.Tensor]:
    return {name: torch.randint(0, vocabulary, (batch, length), generator=torch.Generator().manual_seed(0))}


def image(channels: int, *size: int) -> Inputs:
    return lambda batch: (torch.rand(batch, channels, *size, generator=torch.Generator().manual_seed(0)),)


def attention(batch: int, heads: int, queries: int, keys: int, width: int) -> float:
    """Scores and their product with the values, two multiply-adds; a causal mask does not halve it."""
    return 4.0 * batch * heads * queries * keys * width


# --- models of our own ---------------------------------------------------------------------------


class RecurrentTagger(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], bidirectional: bool = False) -> None:
        super().__init__()
        self.recurrent = kind(512, 512, num_layers=2, batch_first=True, bidirectional=bidirectional)
        self.head = nn.Linear(512 * (2 if bidirectional else 1), 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.recurrent(x)[0])


class UNet3d(nn.Module):
    def __init__(self) -> None:
        super().__init__()

        def block(a: int, b: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv3d(a, b, 3, padding=1), nn.BatchNorm3d(b), nn.ReLU(), nn.Conv3d(b, b, 3, padding=1), nn.BatchNorm3d(b), nn.ReLU())

        self.down1, self.down2, self.middle = block(1, 16), block(16, 32), block(32, 64)
        self.up2, self.join2 = nn.ConvTranspose3d(64, 32, 2, stride=2), block(64, 32)
        self.up1, self.join1 = nn.ConvTranspose3d(32, 16, 2, stride=2), block(32, 16)
        self.head = nn.Conv3d(16, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.down1(x)
        b = self.down2(F.max_pool3d(a, 2))
        c = self.middle(F.max_pool3d(b, 2))
        b = self.join2(torch.cat([self.up2(c), b], 1))
        return self.head(self.join1(torch.cat([self.up1(b), a], 1)))


class DepthwiseNet(nn.Module):
    def __init__(self, blocks: int = 8, width: int = 64) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, stride=2, padding=1, bias=False)
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(width, width * 4, 1), nn.BatchNorm2d(width * 4), nn.ReLU6(),
                    nn.Conv2d(width * 4, width * 4, 3, padding=1, groups=width * 4), nn.BatchNorm2d(width * 4), nn.ReLU6(),
                    nn.Conv2d(width * 4, width, 1),
                )
                for _ in range(blocks)
            )
        )  # fmt: skip
        self.head = nn.Linear(width, 100)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class EarlyExit(nn.Module):
    """Data decide how many blocks run: the shapes alone cannot tell."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(256, 256) for _ in range(6))
        self.head = nn.Linear(256, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = torch.relu(block(x))
            if x.mean() > 10:
                break
        return self.head(x)


class FourierMixer(nn.Module):
    """Token mixing by a two-dimensional FFT (Lee-Thorp et al. 2021)."""

    def __init__(self, width: int = 256, layers: int = 4) -> None:
        super().__init__()

        def block() -> nn.Sequential:
            return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

        self.layers = nn.ModuleList(block() for _ in range(layers))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = x + torch.fft.fft2(x).real
            x = x + layer(x)
        return x


class FusedEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(256, 8, 1024, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.encoder(x)


def fft2_flops(batch: int, rows: int, columns: int) -> float:
    """5 N log2 N over both axes (Van Loan 1992, 1.4); torch makes real input complex first, so nothing is saved on it."""
    return 5 * batch * rows * columns * math.log2(rows * columns)


# --- transformers ----------------------------------------------------------------------------------


def from_config(model: str, config: str, dtype: torch.dtype = torch.float32, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import transformers

        made = getattr(transformers, model)(getattr(transformers, config)(**options))
        return made.to(dtype).eval()

    return make


def llama(layers: int, width: int, heads: int, kv_heads: int, inner: int, vocabulary: int) -> dict[str, Any]:
    return {
        "num_hidden_layers": layers, "hidden_size": width, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
        "intermediate_size": inner, "vocab_size": vocabulary, "use_cache": False,
    }  # fmt: skip


def llama_flops(batch: int, length: int, layers: int, width: int, heads: int, kv_heads: int, inner: int, vocabulary: int) -> float:
    """Two FLOPs a weight and token, and the attention."""
    head = width // heads
    weights = layers * (2 * width * width + 2 * width * kv_heads * head + 3 * width * inner) + width * vocabulary
    return 2.0 * batch * length * weights + layers * attention(batch, heads, length, length, head)


def whisper_inputs(batch: int) -> dict[str, torch.Tensor]:
    return {"input_features": torch.rand(batch, 80, 3000), **tokens(batch, 32, 50000, "decoder_input_ids")}


def whisper_attention(batch: int) -> float:
    encoder = 4 * attention(batch, 6, 1500, 1500, 64)
    return encoder + 4 * (attention(batch, 6, 32, 32, 64) + attention(batch, 6, 32, 1500, 64))


def t5_inputs(batch: int) -> dict[str, torch.Tensor]:
    return {**tokens(batch, 128, 32000), **tokens(batch, 32, 32000, "decoder_input_ids")}


def t5_attention(batch: int) -> float:
    return 6 * (attention(batch, 8, 128, 128, 64) + attention(batch, 8, 32, 32, 64) + attention(batch, 8, 32, 128, 64))


def mixtral_experts(batch: int) -> float:
    # Two of the experts a token, three matrices each; the router is a matrix of its own, and no Linear.
    routed = 4 * batch * 64 * (2 * 3 * 2 * 512 * 1024 + 2 * 512 * 8)
    return routed + 4 * attention(batch, 8, 64, 64, 64)


MIXTRAL = llama(4, 512, 8, 4, 1024, 8000)
LLAMA_56M = (8, 512, 8, 4, 1536, 8000)
LLAMA_1B = (16, 2048, 32, 8, 8192, 32000)
LLAMA_7B = (32, 4096, 32, 32, 11008, 32000)
LLAMA_70B = (80, 8192, 64, 8, 28672, 32000)
BERT = {"vocab_size": 30522}

ZOO = (
    Entry(name="ResNet-50", make=from_config("ResNetForImageClassification", "ResNetConfig"), inputs=image(3, 224, 224)),
    Entry(name="MobileNetV2", make=from_config("MobileNetV2ForImageClassification", "MobileNetV2Config"), inputs=image(3, 224, 224)),
    Entry(name="Depthwise CNN", make=DepthwiseNet, inputs=image(3, 112, 112)),
    Entry(name="ConvNeXt-tiny", make=from_config("ConvNextForImageClassification", "ConvNextConfig"), inputs=image(3, 224, 224)),
    Entry(
        name="ViT-B/16", make=from_config("ViTForImageClassification", "ViTConfig"), inputs=image(3, 224, 224),
        beyond_backward=2.5, beyond_layers=lambda b: 12 * attention(b, 12, 197, 197, 64),
    ),
    Entry(name="3-D UNet", make=UNet3d, inputs=image(1, 48, 48, 48), batches=(1, 2, 3, 4)),
    Entry(
        name="BERT-base", make=from_config("BertModel", "BertConfig", **BERT), inputs=lambda b: tokens(b, 128, 30000),
        beyond_layers=lambda b: 12 * attention(b, 12, 128, 128, 64),
    ),
    Entry(
        name="BERT-base, S=384", make=from_config("BertModel", "BertConfig", **BERT), inputs=lambda b: tokens(b, 384, 30000),
        beyond_layers=lambda b: 12 * attention(b, 12, 384, 384, 64), batches=(1, 2, 3, 4),
    ),
    Entry(
        name="BERT-base, eager attention", make=from_config("BertModel", "BertConfig", attn_implementation="eager", **BERT),
        inputs=lambda b: tokens(b, 128, 30000), beyond_layers=lambda b: 12 * attention(b, 12, 128, 128, 64),
    ),
    Entry(
        name="GPT-2", make=from_config("GPT2LMHeadModel", "GPT2Config", use_cache=False), inputs=lambda b: tokens(b, 128, 50000),
        beyond_layers=lambda b: 12 * attention(b, 12, 128, 128, 64),
    ),
    Entry(name="Whisper-tiny", make=from_config("WhisperForConditionalGeneration", "WhisperConfig", use_cache=False,
        encoder_layers=4, decoder_layers=4, d_model=384, encoder_attention_heads=6, decoder_attention_heads=6, encoder_ffn_dim=1536,
        decoder_ffn_dim=1536), inputs=whisper_inputs, beyond_backward=2.5, beyond_layers=whisper_attention, batches=(1, 2, 3, 4)),
    Entry(
        name="T5-small", make=from_config("T5ForConditionalGeneration", "T5Config", use_cache=False), inputs=t5_inputs, beyond_layers=t5_attention,
    ),
    Entry(
        name="Llama, 56 M", make=from_config("LlamaForCausalLM", "LlamaConfig", **llama(*LLAMA_56M)), inputs=lambda b: tokens(b, 128, 8000),
        closed_form=lambda b: llama_flops(b, 128, *LLAMA_56M), beyond_layers=lambda b: 8 * attention(b, 8, 128, 128, 64), beyond_backward=2.5,
    ),
    Entry(
        name="Llama-style 1B, bf16", make=from_config("LlamaForCausalLM", "LlamaConfig", dtype=torch.bfloat16, **llama(*LLAMA_1B)),
        inputs=lambda b: tokens(b, 64, 32000), closed_form=lambda b: llama_flops(b, 64, *LLAMA_1B), train=False, batches=(1, 2, 3),
    ),
    Entry(
        name="Llama-style 7B", make=from_config("LlamaForCausalLM", "LlamaConfig", dtype=torch.bfloat16, **llama(*LLAMA_7B)),
        inputs=lambda b: tokens(b, 2048, 32000), closed_form=lambda b: llama_flops(b, 2048, *LLAMA_7B), only_meta=True, batches=(1,),
    ),
    Entry(
        name="Llama-style 70B", make=from_config("LlamaForCausalLM", "LlamaConfig", dtype=torch.bfloat16, **llama(*LLAMA_70B)),
        inputs=lambda b: tokens(b, 2048, 32000), closed_form=lambda b: llama_flops(b, 2048, *LLAMA_70B), only_meta=True, train=False, batches=(1,),
    ),
    Entry(
        name="Mixtral-style MoE, bf16", make=from_config("MixtralForCausalLM", "MixtralConfig", dtype=torch.bfloat16, num_local_experts=8, **MIXTRAL),
        inputs=lambda b: tokens(b, 64, 8000), beyond_layers=mixtral_experts, train=False, batches=(2, 3, 4, 8),
    ),
    Entry(name="LSTM", make=lambda: RecurrentTagger(nn.LSTM), inputs=lambda b: (torch.rand(b, 64, 512),)),
    Entry(name="GRU, both directions", make=lambda: RecurrentTagger(nn.GRU, True), inputs=lambda b: (torch.rand(b, 64, 512),)),
    Entry(
        name="torch's TransformerEncoder", make=FusedEncoder, inputs=lambda b: (torch.rand(b, 64, 256),),
        # The projections of nn.MultiheadAttention are no Linear modules that a hook could see, nor is its output layer called as one.
        beyond_layers=lambda b: 4 * (attention(b, 8, 64, 64, 32) + 2 * b * 64 * 256 * 4 * 256),
        beyond_unneeded=lambda b: 2 * b * 64 * 256 * 3 * 256,
    ),
    Entry(
        name="Fourier mixer", make=FourierMixer, inputs=lambda b: (torch.rand(b, 128, 256),), beyond_layers=lambda b: 4 * fft2_flops(b, 128, 256),
        beyond_backward=1.0, beyond_unneeded=lambda b: fft2_flops(b, 128, 256),
    ),
    Entry(name="Early exit", make=EarlyExit, inputs=lambda b: (torch.rand(b, 256),), control_flow=True, train=False),
    Entry(
        name="BERT-base, int8 dynamic", make=from_config("BertModel", "BertConfig", **BERT), inputs=lambda b: tokens(b, 128, 30000),
        beyond_layers=lambda b: 12 * attention(b, 12, 128, 128, 64), technique="int8_dynamic", train=False,
    ),
    Entry(
        name="Llama, 56 M, int8 weights", make=from_config("LlamaForCausalLM", "LlamaConfig", **llama(*LLAMA_56M)), inputs=lambda b: tokens(b, 128, 8000),
        closed_form=lambda b: llama_flops(b, 128, *LLAMA_56M), technique="int8_weight_only", train=False,
    ),
    Entry(name="ResNet-50, bf16", make=from_config("ResNetForImageClassification", "ResNetConfig"), inputs=image(3, 224, 224), technique="bf16", train=False),
)  # fmt: skip


def by_name(name: str) -> Entry:
    """The model called `name`."""
    return next(entry for entry in ZOO if entry.name == name)


def move(inputs: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Apply `change` to every tensor of the inputs."""
    return {k: change(v) for k, v in inputs.items()} if isinstance(inputs, dict) else tuple(map(change, inputs))


def call(model: nn.Module, inputs: Any) -> Any:
    """Call the model as its inputs are meant."""
    return model(**inputs) if isinstance(inputs, dict) else model(*inputs)


# --- the hand count --------------------------------------------------------------------------------


def layer_flops(module: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    """Forward FLOPs of one layer from the shapes it met; 0 for modules that are no such layer."""
    kind = type(module).__name__
    if isinstance(module, nn.Linear):
        return 2.0 * y.numel() * module.in_features
    if kind == "Conv1D":  # transformers' linear layer with the weight transposed
        return 2.0 * y.numel() * module.weight.shape[0]
    if isinstance(module, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        return 2.0 * x.numel() * (module.out_channels // module.groups) * math.prod(module.kernel_size)
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return 2.0 * y.numel() * (module.in_channels // module.groups) * math.prod(module.kernel_size)
    if isinstance(module, nn.RNNBase):
        matrices = sum(p.numel() for name, p in module.named_parameters() if name.startswith("weight"))
        return 2.0 * (x.numel() // x.shape[-1]) * matrices
    return 0.0


def hand_count(entry: Entry, model: nn.Module, batch: int) -> float:
    """Forward FLOPs of one call, by layer shapes and the formula beside the model."""
    if entry.closed_form:
        return entry.closed_form(batch)
    total = entry.beyond_layers(batch)

    def count(module: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
        nonlocal total
        total += layer_flops(module, x, y)

    with torch.no_grad():
        _watch(entry, model, batch, count)
    return total


def hand_count_training(entry: Entry, model: nn.Module, batch: int) -> float:
    """FLOPs of forward and backward: each product once more for the weights, and once more for an input that asks for a gradient."""
    total = entry.beyond_layers(batch) * (1 + entry.beyond_backward) - entry.beyond_unneeded(batch)

    def count(module: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
        nonlocal total
        # The fused LSTM kernel makes the gradient of its input whether or not it is asked for.
        times = 3 if x.requires_grad or isinstance(module, nn.RNNBase) else 2
        total += times * layer_flops(module, x, y)
        if isinstance(module, nn.GRU) and not x.requires_grad:
            shapes = {name: p.numel() for name, p in module.named_parameters() if name.startswith("weight")}
            total -= 2.0 * (x.numel() // x.shape[-1]) * sum(n for name, n in shapes.items() if name.startswith("weight_ih_l0"))
            # Nor does the first step's hidden state, in any layer, ask for one: it is zero.
            total -= 2.0 * x.shape[0] * sum(n for name, n in shapes.items() if name.startswith("weight_hh"))

    with torch.enable_grad():
        _watch(entry, model, batch, count)
    return total


def _watch(entry: Entry, model: nn.Module, batch: int, count: Callable[[nn.Module, torch.Tensor, torch.Tensor], None]) -> None:
    def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        x = args[0] if args else next(iter(kwargs.values()), None)
        y = output[0] if isinstance(output, tuple) else output
        if isinstance(x, torch.Tensor) and isinstance(y, torch.Tensor):
            count(module, x, y)

    handles = [m.register_forward_hook(after, with_kwargs=True) for m in model.modules() if not list(m.children())]
    device = next(model.parameters()).device
    try:
        call(model, move(entry.inputs(batch), lambda t: t.to(device)))
    finally:
        for handle in handles:
            handle.remove()
