"""FLOP formulas of every operator family, forward and backward, held against closed forms."""

import copy
import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from models import TinyMLP, features, ids
from torch import nn
from traced import Function, counted_by_torch, randn, trace_of, training_of

from aimass_lab.errors import InputError
from aimass_lab.tracing.formulas import classify, describe, register_formula, tensor_bytes
from aimass_lab.tracing.trace import trace_call
from aimass_lab.tracing.training import trace_training
from aimass_lab.workload import as_call

# --- matrix products


def test_linear_forward_and_backward():
    batch, inputs, outputs = 3, 7, 5
    layer = nn.Linear(inputs, outputs)
    trace = trace_training(nn.Sequential(nn.Linear(inputs, inputs), layer), as_call(randn(batch, inputs)))
    forward = 2 * batch * inputs * (inputs + outputs)
    # The first layer's input needs no gradient.
    assert trace.flops_of("forward") == forward
    assert trace.flops_of("backward") == 2 * forward - 2 * batch * inputs * inputs


PRODUCTS = {
    "mm": (lambda a, b: a @ b, [(4, 6), (6, 5)], 2 * 4 * 6 * 5),
    "bmm": (torch.bmm, [(3, 4, 6), (3, 6, 5)], 2 * 3 * 4 * 6 * 5),
    "matmul": (torch.matmul, [(2, 3, 4, 6), (6, 5)], 2 * 2 * 3 * 4 * 6 * 5),
    "mv": (torch.mv, [(4, 6), (6,)], 2 * 4 * 6),
    "dot": (torch.dot, [(9,), (9,)], 2 * 9),
    "addmv": (torch.addmv, [(4,), (4, 6), (6,)], 2 * 4 * 6),
    "addmm": (torch.addmm, [(4, 5), (4, 6), (6, 5)], 2 * 4 * 6 * 5),
    "baddbmm": (torch.baddbmm, [(3, 4, 5), (3, 4, 6), (3, 6, 5)], 2 * 3 * 4 * 6 * 5),
    "addbmm": (torch.addbmm, [(4, 5), (3, 4, 6), (3, 6, 5)], 2 * 3 * 4 * 6 * 5),
    "addr": (torch.addr, [(4, 5), (4,), (5,)], 2 * 4 * 5),
    "einsum": (lambda a, b: torch.einsum("bik,bjk->bij", a, b), [(3, 4, 6), (3, 5, 6)], 2 * 3 * 4 * 6 * 5),
    "in place": (lambda c, a, b: c.clone().addmm_(a, b), [(4, 5), (4, 6), (6, 5)], 2 * 4 * 6 * 5),
    "multi_dot": (lambda a, b, c: torch.linalg.multi_dot([a, b, c]), [(10, 2), (2, 10), (10, 3)], 2 * 2 * 10 * 3 + 2 * 10 * 2 * 3),
    "tensordot": (lambda a, b: torch.tensordot(a, b, 2), [(4, 5, 6), (5, 6, 7)], 2 * 4 * 30 * 7),
    "vmap": (lambda a, b: torch.vmap(torch.mv)(a, b), [(3, 4, 6), (3, 6)], 2 * 3 * 4 * 6),
    "bilinear": (F.bilinear, [(4, 5), (4, 6), (3, 5, 6)], 2 * 4 * 3 * 5 * 6 + 2 * 4 * 3 * 6),
    "cdist": (torch.cdist, [(8, 5), (9, 5)], 3 * 8 * 9 * 5),
    "pdist": (F.pdist, [(8, 5)], 3 * 28 * 5),
    "cholesky": (lambda a: torch.linalg.cholesky(a @ a.mT), [(9, 9)], 2 * 9**3 + 9**3 // 3),
    "solve": (torch.linalg.solve, [(2, 6, 6), (2, 6, 4)], 2 * (2 * 6**3 // 3) + 2 * 2 * 6 * 6 * 4),
    "inverse": (torch.linalg.inv, [(6, 6)], 2 * 6**3),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_by_hand(name):
    function, shapes, flops = PRODUCTS[name]
    assert trace_of(function, *(randn(*shape) for shape in shapes)).flops == flops


@pytest.mark.parametrize("name", ["mm", "bmm", "matmul", "addmm", "baddbmm", "einsum"])
def test_the_backward_of_a_product_is_two_of_them(name):
    function, shapes, flops = PRODUCTS[name]
    trace = training_of(function, *(randn(*shape) for shape in shapes))
    assert (trace.flops_of("forward"), trace.flops_of("backward")) == (flops, 2 * flops)


def test_gradients_of_a_bilinear_layer():
    n, i, j, o = 4, 5, 6, 3
    trace = training_of(F.bilinear, randn(n, i), randn(n, j), randn(o, i, j))
    # Each gradient is a product of three operands as well: contracted in pairs.
    assert trace.flops_of("forward") == 2 * n * o * i * j + 2 * n * o * j
    assert trace.flops_of("backward") > 2 * trace.flops_of("forward")


def test_a_sparse_product_counts_the_values_that_are_there():
    dense = torch.eye(6)
    trace = trace_call(Function(lambda x: torch.sparse.mm(dense.to_sparse(), x)), as_call(randn(6, 4)))
    assert trace.flops == 2 * 6 * 4
    assert tensor_bytes(dense.to_sparse().coalesce()) == 6 * (2 * 8 + 4)


# --- convolutions

CONVOLUTIONS = {
    "1d": (lambda: nn.Conv1d(4, 6, 3, stride=2), (2, 4, 21)),
    "2d": (lambda: nn.Conv2d(4, 6, (3, 5), padding=1, dilation=2), (2, 4, 16, 18)),
    "3d": (lambda: nn.Conv3d(2, 3, 3), (2, 2, 6, 7, 8)),
    "grouped": (lambda: nn.Conv2d(8, 12, 3, groups=4), (2, 8, 9, 9)),
    "depthwise": (lambda: nn.Conv2d(32, 32, 3, groups=32, padding=1), (2, 32, 9, 9)),
    "transposed 1d": (lambda: nn.ConvTranspose1d(4, 6, 3, stride=2), (2, 4, 9)),
    "transposed 2d": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1), (2, 4, 9, 9)),
    "transposed 3d": (lambda: nn.ConvTranspose3d(2, 3, 3), (2, 2, 4, 5, 6)),
    "transposed grouped": (lambda: nn.ConvTranspose2d(8, 12, 3, groups=4), (2, 8, 9, 9)),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_in_closed_form_forward_and_backward(name):
    make, shape = CONVOLUTIONS[name]
    layer, x = make(), randn(*shape)
    positions = (x if layer.transposed else layer(x)).shape[2:]
    taps = math.prod(layer.kernel_size) * layer.in_channels * layer.out_channels // layer.groups
    flops = 2 * shape[0] * math.prod(positions) * taps

    class TrainedInput(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.x = layer, nn.Parameter(x)

        def forward(self, zero):
            return self.layer(self.x) + zero

    trace = trace_training(TrainedInput(), as_call(torch.zeros(1)))
    assert not trace.uncovered
    assert (trace.flops_of("forward"), trace.flops_of("backward")) == (flops, 2 * flops)
    assert trace_call(layer, as_call(x)).flops == flops == counted_by_torch(layer, as_call(x))


def test_channels_last_changes_no_count():
    layer, x = nn.Conv2d(4, 6, 3), randn(2, 4, 9, 9)
    plain = trace_call(layer, as_call(x))
    last = trace_call(copy.deepcopy(layer).to(memory_format=torch.channels_last), as_call(x.to(memory_format=torch.channels_last)))
    assert (plain.flops, plain.bytes_moved, plain.activation_peak_bytes) == (last.flops, last.bytes_moved, last.activation_peak_bytes)


# --- attention


def sdpa(**options):
    return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, **options)


B, H, S, T, D = 2, 4, 12, 10, 16
ATTENTION = 4 * B * H * S * T * D


@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"dropout_p": 0.25}, {"attn_mask": torch.ones(S, T, dtype=torch.bool)}, {"scale": 0.3}], ids=str)
@pytest.mark.parametrize("backend", ["FLASH_ATTENTION", "MATH"])
def test_attention_in_closed_form(options, backend):
    with torch.nn.attention.sdpa_kernel(getattr(torch.nn.attention.SDPBackend, backend)), warnings.catch_warnings():
        if backend == "FLASH_ATTENTION" and "dropout_p" in options:
            pytest.skip("torch has no such kernel on the CPU")
        trace = trace_of(sdpa(**options), randn(B, H, S, D), randn(B, H, T, D), randn(B, H, T, D))
    assert trace.flops == ATTENTION
    assert {row.family for row in trace.rows if row.kind == "formula"} == ({"attention"} if backend == "FLASH_ATTENTION" else {"gemm"})


def test_attention_with_grouped_queries():
    tensors = randn(B, 8, S, D), randn(B, 2, T, D), randn(B, 2, T, D)
    assert trace_of(sdpa(enable_gqa=True), *tensors).flops == 4 * B * 8 * S * T * D


def test_the_backward_of_attention():
    tensors = randn(B, H, S, D), randn(B, H, T, D), randn(B, H, T, D)
    trace = training_of(sdpa(), *tensors)
    product = 2 * B * H * S * T * D
    # The fused kernel makes the scores once more; the plain one has kept them.
    assert (trace.flops_of("forward"), trace.flops_of("backward")) == (2 * product, 5 * product)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        plain = training_of(sdpa(), *tensors)
    assert (plain.flops_of("forward"), plain.flops_of("backward")) == (2 * product, 4 * product)


FUSED = ("flash_attention", "efficient_attention", "cudnn_attention", "fused_attention_overrideable", "flash_attention_for_cpu")


@pytest.mark.parametrize("name", FUSED)
def test_formulas_of_the_kernels_of_other_devices(name):
    q, k, v = (torch.empty(B, h, n, D, device="meta") for h, n in ((8, S), (2, T), (2, T)))
    forward = describe(getattr(torch.ops.aten, f"_scaled_dot_product_{name}").default)
    backward = describe(getattr(torch.ops.aten, f"_scaled_dot_product_{name}_backward").default)
    assert forward.formula(q, k, v, out_val=None) == 4 * B * 8 * S * T * D
    assert backward.formula(q, q, k, v, out_val=None) == 10 * B * 8 * S * T * D
    assert (forward.family, backward.family) == ("attention", "attention")


def test_formulas_of_the_kernels_with_their_own_layout():
    q, k = torch.empty(B, S, 8, D, device="meta"), torch.empty(B, T, 2, D, device="meta")
    flash = describe(torch.ops.aten._flash_attention_forward.default).formula
    assert flash(q, k, k, None, None, S, T, 0.0, False, False, out_val=None) == 4 * B * 8 * S * T * D
    efficient = describe(torch.ops.aten._efficient_attention_forward.default).formula
    assert efficient(q, k, k, None, None, None, S, T, 0.0, 0, out_val=None) == 4 * B * 8 * S * T * D
    lengths = [3, 7, 2]
    offsets = torch.tensor([0, 3, 10, 12])
    packed = torch.empty(12, 8, D)
    assert flash(packed, packed, packed, offsets, offsets, 7, 7, 0.0, False, False, out_val=None) == 4 * 8 * D * sum(n * n for n in lengths)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention():
    from torch.nn.attention.flex_attention import flex_attention

    tensors = randn(1, 2, 128, 16), randn(1, 2, 128, 16), randn(1, 2, 128, 16)
    trace = trace_of(lambda q, k, v: flex_attention(q, k, v), *tensors)
    assert trace.flops == 4 * 2 * 128 * 128 * 16


@pytest.mark.parametrize("training", [False, True])
def test_multi_head_attention_and_its_encoder_layer(training):
    batch, length, width, wide = 2, 6, 16, 32
    attention = nn.MultiheadAttention(width, 2, batch_first=True)
    layer = nn.TransformerEncoderLayer(width, 2, wide, batch_first=True, dropout=0.0)
    x = randn(batch, length, width)
    of_attention = 2 * batch * length * 4 * width * width + 4 * batch * length * length * width
    of_layer = of_attention + 2 * batch * length * 2 * width * wide
    if training:
        step = trace_training(layer, as_call(x))
        assert step.flops_of("forward") == of_layer
        assert not step.uncovered
    else:
        assert trace_call(attention, as_call((x, x, x))).flops == of_attention
        assert trace_call(layer, as_call(x)).flops == of_layer


def test_the_fast_path_kernels_by_hand():
    batch, length, keys, width, wide = 2, 6, 9, 16, 32
    q, k = torch.empty(batch, length, width), torch.empty(batch, keys, width)
    attention = 2 * batch * (2 * length + 2 * keys) * width * width + 4 * batch * length * keys * width
    assert describe(torch.ops.aten._native_multi_head_attention.default).formula(q, k, k, width, 2, out_val=None) == attention
    matrices = [torch.empty(3 * width, width), torch.empty(3 * width), torch.empty(width, width), torch.empty(width)]
    norms = [torch.empty(width)] * 4
    feed = [torch.empty(wide, width), torch.empty(wide), torch.empty(width, wide), torch.empty(width)]
    layer = describe(torch.ops.aten._transformer_encoder_layer_fwd.default).formula
    by_hand = 2 * batch * length * (4 * width * width + 2 * width * wide) + 4 * batch * length * length * width
    assert layer(q, width, 2, *matrices, False, False, 1e-5, *norms, *feed, out_val=None) == by_hand


# --- recurrent layers

GATES = {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1}


@pytest.mark.parametrize("kind", GATES, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("options", [{}, {"num_layers": 2}, {"bidirectional": True, "num_layers": 2}, {"batch_first": True}], ids=str)
def test_a_recurrent_layer_by_hand(kind, options):
    batch, length, inputs, width = 3, 5, 8, 16
    layer = kind(inputs, width, **options)
    x = randn(*((batch, length) if options.get("batch_first") else (length, batch)), inputs)
    directions = 2 if options.get("bidirectional") else 1
    entering = [inputs] + [width * directions] * (options.get("num_layers", 1) - 1)
    flops = sum(2 * batch * length * directions * GATES[kind] * width * (n + width) for n in entering)
    trace = trace_call(layer, as_call(x))
    assert trace.flops == flops
    assert not trace.uncovered
    step = trace_training(layer, as_call(x))
    assert step.flops_of("forward") == flops
    assert not step.uncovered
    # Gradients of data and of weights. Step by step, those of the input and of the first state are not asked for.
    spared = 2 * batch * directions * GATES[kind] * width * (length * inputs + width * options.get("num_layers", 1))
    assert step.flops_of("backward") == 2 * flops - (0 if kind is nn.LSTM else spared)


def test_an_lstm_with_projections_and_cells():
    batch, length, inputs, width, projected = 3, 5, 8, 16, 4
    trace = trace_call(nn.LSTM(inputs, width, proj_size=projected), as_call(randn(length, batch, inputs)))
    assert trace.flops == 2 * batch * length * (4 * width * (inputs + projected) + width * projected)
    for kind, gates in ((nn.LSTMCell, 4), (nn.GRUCell, 3), (nn.RNNCell, 1)):
        cell = trace_call(kind(inputs, width), as_call(randn(batch, inputs)))
        assert cell.flops == 2 * batch * gates * width * (inputs + width)
        assert not cell.uncovered


def test_a_packed_sequence_counts_real_steps():
    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.LSTM(8, 16)

        def forward(self, x):
            lengths = torch.tensor([5, 3, 2])
            return self.rnn(nn.utils.rnn.pack_padded_sequence(x, lengths))[0].data

    trace = trace_call(Packed(), as_call(randn(5, 3, 8)))
    assert trace.flops == 2 * (5 + 3 + 2) * 4 * 16 * (8 + 16)


def test_formulas_of_cudnn_s_recurrent_layers():
    length, batch, inputs, width = 5, 3, 8, 16
    x = torch.empty(length, batch, inputs, device="meta")
    weights = [torch.empty(4 * width, n, device="meta") for n in (inputs, width)] + [torch.empty(4 * width, device="meta")] * 2
    flops = 2 * length * batch * 4 * width * (inputs + width)
    assert describe(torch.ops.aten._cudnn_rnn.default).formula(x, weights, 4, out_val=None) == flops
    backward = describe(torch.ops.aten._cudnn_rnn_backward.default).formula
    assert backward(x, weights, 4, [True, True, True, True], out_val=None) == 2 * flops
    assert backward(x, weights, 4, [True, True, True, False], out_val=None) == flops


# --- embeddings, norms, transforms


@pytest.mark.parametrize(
    "model,inputs",
    [
        (nn.Embedding(50, 8), lambda: ids()),
        (nn.EmbeddingBag(50, 8), lambda: ids()),
        (nn.LayerNorm(8), lambda: randn(4, 8)),
        (nn.RMSNorm(8), lambda: randn(4, 8)),
        (nn.GroupNorm(2, 8), lambda: randn(4, 8, 5)),
        (nn.BatchNorm1d(8), lambda: randn(4, 8)),
        (nn.Softmax(-1), lambda: randn(4, 8)),
        (nn.MaxPool2d(2), lambda: randn(2, 3, 8, 8)),
        (nn.Upsample(scale_factor=2), lambda: randn(2, 3, 8, 8)),
        (nn.PReLU(), lambda: randn(4, 8)),
        (nn.GELU(), lambda: randn(4, 8)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_what_is_no_model_flop_is_light_in_both_directions(model, inputs):
    trace = trace_call(model, as_call(inputs()))
    assert trace.flops == 0
    assert trace.rows
    assert not trace.uncovered
    if any(p.requires_grad for p in model.parameters()):
        step = trace_training(model, as_call(inputs()))
        assert step.flops == 0
        assert not step.uncovered


def test_light_flops_count_elements_and_leave_out_copies():
    rows = {row.op: row for row in trace_of(lambda x: torch.cat([torch.relu(x), x]), randn(4, 8)).rows}
    assert rows["aten::relu"].light_flops == 32
    assert rows["aten::cat"].light_flops == 0
    assert rows["aten::relu"].family == "elementwise"
    assert rows["aten::cat"].family == "copy"


@pytest.mark.parametrize("loss", [F.cross_entropy, lambda x, y: F.nll_loss(F.log_softmax(x, -1), y), lambda x, y: F.mse_loss(x[:, 0], y.float())])
def test_losses_are_light(loss):
    step = trace_training(TinyMLP(), as_call(features()), loss=lambda out: loss(out, torch.tensor([0, 2])))
    assert not step.uncovered
    assert step.flops_of("forward") == 2 * 2 * (8 * 16 + 16 * 3)


def test_fourier_transforms():
    n, batch = 64, 3
    assert trace_of(torch.fft.fft, torch.complex(randn(batch, n), randn(batch, n))).flops == 5 * batch * n * 6
    assert trace_of(torch.fft.rfft, randn(batch, n)).flops == 5 * batch * n * 6 / 2
    assert trace_of(lambda x: torch.fft.irfft(torch.fft.rfft(x)), randn(batch, n)).flops == 5 * batch * n * 6
    assert trace_of(torch.fft.fft2, torch.complex(randn(batch, 8, 16), randn(batch, 8, 16))).flops == 5 * batch * 128 * 7
    assert trace_of(lambda x: torch.stft(x, 16, return_complex=True, window=torch.ones(16)), randn(2, 64)).flops > 0


# --- quantised layers


def test_dynamically_quantised_linear_layers_of_torch():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.ao.quantization.quantize_dynamic(TinyMLP().eval(), {nn.Linear}, dtype=torch.qint8)
        trace = trace_call(model, as_call(features(3)))
    assert trace.flops == 2 * 3 * (8 * 16 + 16 * 3)
    assert not trace.uncovered


def test_dynamically_quantised_lstm_of_torch():
    batch, length, inputs, width = 3, 5, 8, 16
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.ao.quantization.quantize_dynamic(nn.LSTM(inputs, width, num_layers=2).eval(), {nn.LSTM}, dtype=torch.qint8)
        trace = trace_call(model, as_call(randn(length, batch, inputs)))
    assert trace.flops == 2 * batch * length * 4 * width * (inputs + width + 2 * width)
    assert not trace.uncovered


@pytest.mark.parametrize("config", ["Int8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig"])
def test_torchao_linear_layers(config):
    quantization = pytest.importorskip("torchao.quantization")
    model = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 32)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantization.quantize_(model, getattr(quantization, config)())
        trace = trace_call(model, as_call(randn(4, 64)))
    assert trace.flops == 2 * 4 * (64 * 96 + 96 * 32)
    assert not trace.uncovered


@pytest.mark.parametrize(
    "name,tensors,flops",
    [
        ("_int_mm", [(32, 64), (64, 16)], 2 * 32 * 64 * 16),
        ("_scaled_mm", [(32, 64), (64, 16)], 2 * 32 * 64 * 16),
        ("_weight_int8pack_mm", [(32, 64), (16, 64)], 2 * 32 * 64 * 16),
        ("_weight_int4pack_mm", [(32, 64), (2, 4, 32, 4)], 2 * 32 * 64 * 16),
        ("_grouped_mm", [(32, 64), (4, 64, 16)], 2 * 32 * 64 * 16),
    ],
)
def test_formulas_of_low_precision_products(name, tensors, flops):
    operator = describe(getattr(torch.ops.aten, name).default)
    a, b = (torch.empty(*shape, device="meta") for shape in tensors)
    assert operator.formula(a, b, out_val=torch.empty(32, 16, device="meta")) == flops
    assert operator.family == "gemm"


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_a_compiled_flex_attention_and_its_backward():
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    compiled = torch.compile(flex_attention, backend="eager")
    mask = create_block_mask(lambda b, h, q, k: q >= k, 1, 1, 128, 128, device="cpu")
    tensors = randn(1, 2, 128, 16), randn(1, 2, 128, 16), randn(1, 2, 128, 16)
    assert trace_of(lambda q, k, v: compiled(q, k, v, block_mask=mask), *tensors).flops == 4 * 2 * 128 * 128 * 16
    # torch has the backward pass for other devices than the CPU only.
    step = training_of(lambda q, k, v: flex_attention(q, k, v), *(t.to("meta") for t in tensors))
    assert (step.flops_of("forward"), step.flops_of("backward")) == (4 * 2 * 128 * 128 * 16, 10 * 2 * 128 * 128 * 16)


# --- operators of others


def mystery_operator(name):
    @torch.library.custom_op(f"aimass_tracing::{name}", mutates_args=())
    def mystery(x: torch.Tensor) -> torch.Tensor:
        return x @ x.T

    return mystery


def with_fake(operator):
    operator.register_fake(lambda x: x.new_empty(len(x), len(x)))
    return operator


def product_of_itself(x, *, out_val):
    return 2 * out_val.numel() * x.shape[-1]


@pytest.mark.parametrize("form", ["definition", "packet", "overload", "name"])
def test_a_registered_formula_counts_a_custom_operator(form):
    operator = with_fake(mystery_operator(f"known_by_{form}"))
    model = Function(lambda x: operator(x))
    before = trace_call(model, as_call(randn(3, 4)))
    assert (before.flops, before.uncovered) == (0, {f"aimass_tracing::known_by_{form}": 1})
    packet = getattr(torch.ops.aimass_tracing, f"known_by_{form}")
    forms = {"definition": operator, "packet": packet, "overload": packet.default, "name": f"aimass_tracing::known_by_{form}"}
    register_formula(forms[form], product_of_itself, family="gemm")
    after = trace_call(model, as_call(randn(3, 4)))
    assert (after.flops, after.uncovered, after.rows[0].family) == (2 * 3 * 3 * 4, {}, "gemm")
    register_formula(forms[form], lambda x, *, out_val: 7, family="conv")  # a cell that runs again replaces what is the user's own
    again = trace_call(model, as_call(randn(3, 4)))
    assert (again.flops, again.rows[0].family) == (7, "conv")


def test_a_custom_operator_without_a_fake_runs_for_real_and_is_listed():
    operator = mystery_operator("no_fake")
    trace = trace_call(Function(lambda x: operator(x)), as_call(randn(3, 4)))
    assert trace.ran
    assert trace.uncovered == {"aimass_tracing::no_fake": 1}
    assert "no_fake" in trace.why_ran


@pytest.mark.parametrize(
    "operator,formula,options,match",
    [
        ("matmul", len, {}, "no operator's name"),
        (len, len, {}, "is no operator"),
        ("mine::x", 3, {}, "not a function"),
        ("mine::x", len, {"family": "big"}, "no family called 'big'"),
        ("aten::mm", len, {}, "aten::mm already has a formula"),
        (torch.ops.aten.convolution, len, {}, "already has a formula"),
    ],
)
def test_what_cannot_be_registered(operator, formula, options, match):
    with pytest.raises(InputError, match=match):
        register_formula(operator, formula, **options)


def test_a_formula_that_raises_leaves_the_operator_unknown_and_says_so():
    operator = with_fake(mystery_operator("broken_formula"))
    register_formula(operator, lambda x, *, out_val: x.nothing)
    with pytest.warns(UserWarning, match="broken_formula raised AttributeError"):
        trace = trace_call(Function(lambda x: operator(x)), as_call(randn(3, 4)))
    assert trace.uncovered == {"aimass_tracing::broken_formula": 1}


def test_a_formula_registered_with_torch_counts_too():
    operator = with_fake(mystery_operator("torch_knows"))
    assert classify(torch.ops.aimass_tracing.torch_knows.default) == "unknown"
    torch.utils.flop_counter.register_flop_formula(torch.ops.aimass_tracing.torch_knows)(lambda x, out_shape=None: 2 * x[0] * x[0] * x[1])
    assert trace_call(Function(lambda x: operator(x)), as_call(randn(3, 4))).flops == 2 * 3 * 3 * 4


def test_every_formula_names_an_operator_of_torch():
    from aimass_lab.tracing.formulas.registry import BUILT_IN

    known = {name.partition(".")[0] for name in torch._C._dispatch_get_all_op_names()}
    only_elsewhere = {name for name in BUILT_IN if "::" in name and name not in known}
    assert {name.partition("::")[0] for name in only_elsewhere} <= {"mkl", "mkldnn", "quantized"}
