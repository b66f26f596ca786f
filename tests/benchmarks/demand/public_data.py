"""Reads public measurements of operators on GPUs into one table: what the roofline is fitted to and tested on.

* microsoft/vidur (MIT), commit 7d47513: decoder layers without attention in float16 on A100, A40 and H100. Either a checkout
  (``data/profiling/compute/<device>/.../mlp.csv``) or a folder of ``<device>__<model>.csv.gz``.
* ai-dynamo/aiconfigurator (Apache-2.0), commit 095f58a: matrix products and attention in bfloat16 on six GPUs (needs pyarrow).
* sitar-lab/NeuSight (MIT), commit 6945927: float32 products, convolutions and light operators on five GPUs of our catalogue.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from aimass_lab.devices import load_devices

VIDUR_DEVICES = {"a100": "a100-80", "a40": "a40", "h100": "h100-sxm"}
AIC_DEVICES = {
    "a100_sxm": "a100-80", "h100_sxm": "h100-sxm", "h200_sxm": "h200-sxm", "l40s": "l40s", "b200_sxm": "b200", "rtx_pro_6000_server": "rtx-pro-6000",
}  # fmt: skip
NEUSIGHT_DEVICES = {
    "Tesla V100-PCIE-32GB": "v100-pcie", "Tesla T4": "t4", "NVIDIA L4": "l4", "NVIDIA A100 80GB PCIe": "a100-80-pcie", "NVIDIA H100 80GB HBM3": "h100-sxm",
}  # fmt: skip
CHIP = {"h200-sxm": "h100-sxm", "a100-80-pcie": "a100-80"}
"""Devices of the same chip are held out together: the one would give the other away."""
COLUMNS = ["source", "device", "model", "tp", "tokens", "op", "family", "batch", "m", "n", "k", "flops", "elements", "bytes", "seconds"]


def vidur(folder: Path) -> pd.DataFrame:
    """Operators of decoder layers: medians of kernel times, read in steps of 1 microsecond."""
    files = sorted(folder.glob("[ah]*__*.csv.gz"))
    named = [(f.name.split("__")[0], f.name.split("__")[1].removesuffix(".csv.gz"), f) for f in files]
    if not named:
        named = [(f.parts[-4], f.parts[-2], f) for f in sorted(folder.glob("data/profiling/compute/*/*/*/mlp.csv"))]
    parts = [_vidur_model(pd.read_csv(path), VIDUR_DEVICES[device], model) for device, model, path in named if device in VIDUR_DEVICES]
    if not parts:
        raise SystemExit(f"no measurements in {folder}: it is a checkout of https://github.com/microsoft/vidur at 7d47513, or its mlp.csv files by device")
    return pd.concat(parts, ignore_index=True)


def _vidur_model(d: pd.DataFrame, device: str, model: str) -> pd.DataFrame:
    d = d.rename(columns={"num_tokens": "tokens", "num_tensor_parallel_workers": "tp"})
    t, width, heads = d.tokens, d.n_embd, d.n_head
    q = width / d.tp
    kv = np.maximum(1, np.ceil(d.n_kv_head / d.tp)) * (width / heads)
    inner, gated = d.n_expanded_embd / d.tp, d.use_gated_mlp.astype(bool)
    up = np.where(gated, 2 * inner, inner)
    products = {"attn_pre_proj": (q + 2 * kv, width), "attn_post_proj": (width, q), "mlp_up_proj": (up, width), "mlp_down_proj": (width, inner)}
    light = {
        "input_layernorm": ("norm", 2 * t * width), "post_attention_layernorm": ("norm", 2 * t * width), "add": ("elementwise", 3 * t * width),
        "mlp_act": ("fused", t * (up + inner)), "attn_rope": ("fused", 2 * t * (q + kv)), "emb": ("gather", 2 * t * width),
    }  # fmt: skip
    parts = []
    for op, (n, k) in products.items():
        parts.append(_matrix(d, op, 1.0, t, n, k, 2))
    for op, (family, elements) in light.items():
        parts.append(_light(d, op, family, elements, 2))
    timed = [(p, f"time_stats.{p.op.iloc[0]}.median") for p in parts]
    out = pd.concat([p.assign(tp=d.tp, tokens=t, seconds=d[name] * 1e-3) for p, name in timed if name in d], ignore_index=True)
    return out[out.seconds.notna()].assign(source="vidur", device=device, model=model)[COLUMNS]


def _matrix(d: pd.DataFrame, op: str, batch: object, m: object, n: object, k: object, width: int, family: str = "gemm") -> pd.DataFrame:
    x = pd.DataFrame({"batch": batch, "m": m, "n": n, "k": k}, index=d.index).astype(float)
    x["flops"] = 2 * x.batch * x.m * x.n * x.k
    x["elements"] = x.batch * (x.m * x.k + x.n * x.k + x.m * x.n)
    return x.assign(op=op, family=family, bytes=width * x.elements)


def _light(d: pd.DataFrame, op: str, family: str, elements: object, width: int) -> pd.DataFrame:
    x = pd.DataFrame({"elements": elements}, index=d.index).astype(float)
    return x.assign(batch=1.0, m=1.0, n=1.0, k=1.0, flops=0.0, op=op, family=family, bytes=width * x.elements)


def aiconfigurator(checkout: Path, count: int, seed: int = 0) -> pd.DataFrame:
    """Products and attention in bfloat16, `count` of each drawn per device."""
    parts = []
    for name, device in AIC_DEVICES.items():
        root = checkout / "aic-core/src/aiconfigurator_core/systems/data" / name
        for read, pattern in (
            (_aic_gemm, "gemm/vllm/*/gemm_perf.parquet"),
            (_aic_prefill, "attention/vllm/*/context_*.parquet"),
            (_aic_decode, "attention/vllm/*/generation_*.parquet"),
        ):
            newest = max(root.glob(pattern), key=lambda p: [int(n) for n in p.parent.name.split(".")])
            x = read(pd.read_parquet(newest))
            x = x.sample(min(count, len(x)), random_state=seed)
            parts.append(x.assign(source="aiconfigurator", device=device, model="", tp=1, tokens=0)[COLUMNS])
    return pd.concat(parts, ignore_index=True)


def _aic_gemm(d: pd.DataFrame) -> pd.DataFrame:
    d = d[(d.gemm_dtype == "bfloat16") & (d.m <= 16384) & (d.n >= 256) & (d.k >= 256)]
    return _matrix(d, "linear", 1.0, d.m, d.n, d.k, 2).assign(seconds=d.latency * 1e-3)


def _plain(d: pd.DataFrame) -> pd.DataFrame:
    d = d[(d.kv_cache_dtype == "bfloat16") & (d.head_dim.isin([64, 128])) & ~d.kernel_source.str.contains("triton")]
    return d[d.window_size == 0] if "window_size" in d else d


def _aic_prefill(d: pd.DataFrame) -> pd.DataFrame:
    d = _plain(d)
    d = d[(d.step == 0) & (d.isl >= 16)]
    heads, kv, length, size = d.num_heads, d.num_key_value_heads, d.isl, d.head_dim
    moved = 2 * d.batch_size * length * size * (2 * heads + 2 * kv)
    # causal: half of the square
    flops = 2 * d.batch_size * heads * length * length * size
    return _attention(d, "prefill", flops, d.batch_size * heads * np.ceil(length / 128), moved)


def _aic_decode(d: pd.DataFrame) -> pd.DataFrame:
    d = _plain(d)
    length = d.step + d.isl
    d, length = d[length >= 64], length[length >= 64]
    moved = 2 * d.batch_size * length * d.head_dim * 2 * d.num_key_value_heads
    flops = 4 * d.batch_size * d.num_heads * length * d.head_dim
    return _attention(d, "decode", flops, d.batch_size * d.num_key_value_heads * np.ceil(length / 128), moved)


def _attention(d: pd.DataFrame, op: str, flops: pd.Series, blocks: pd.Series, moved: pd.Series) -> pd.DataFrame:
    x = pd.DataFrame({"flops": flops, "batch": blocks, "bytes": moved}).astype(float)
    return x.assign(op=op, family="attention", m=1.0, n=1.0, k=1.0, elements=x.bytes / 2, seconds=d.latency * 1e-3)


def neusight(checkout: Path, count: int, seed: int = 0) -> pd.DataFrame:
    """float32 operators of torch 2.1, `count` of each kind drawn per device; 10 microseconds and longer."""
    root = checkout / "scripts/asplos/data/dataset"
    frames = [_neusight(pd.read_csv(root / f"test/{kind}.csv"), kind) for kind in ("linear", "bmm", "elem", "ln", "softmax")]
    frames += [_neusight(pd.read_csv(path), "conv") for path in sorted((root / "train/collect/conv").glob("*/*.csv"))]
    x = pd.concat(frames, ignore_index=True)
    x = x[x.device.notna() & (x.seconds >= 1e-5)]
    drawn = [g.sample(min(count, len(g)), random_state=seed) for _, g in x.groupby(["device", "kind"])]
    return pd.concat(drawn, ignore_index=True).assign(source="neusight", model="", tp=1, tokens=0)[COLUMNS]


def _neusight(d: pd.DataFrame, kind: str) -> pd.DataFrame:
    if kind == "conv":
        side = (d.Input_Size + 2 * d.Padding - d.Kernel_Szie) // d.Stride + 1
        x = _matrix(d, kind, 1.0, d.B * side**2, d.Output_Channel, d.Input_Channel * d.Kernel_Szie**2, 4, "conv32")
        elements = d.B * d.Input_Channel * d.Input_Size**2 + d.Output_Channel * d.Input_Channel * d.Kernel_Szie**2 + x.m * x.n
        x = x.assign(elements=elements, bytes=4.0 * elements)
    elif kind in ("linear", "bmm"):
        x = _matrix(d, kind, d.B, d.M, d.N, d.K, 4, "gemm32")
    else:
        operands = 2 if kind != "elem" else np.where(d.OPName.isin(["relu", "tanh", "gelu"]) | d.OPName.str.endswith("u"), 2, 3)
        x = _light(d, kind, "elementwise" if kind == "elem" else "norm32", operands * d.B * d.H, 4)
    return x.assign(device=d.Device.map(NEUSIGHT_DEVICES), seconds=d.Latency * 1e-3, kind=kind)


def with_rates(x: pd.DataFrame) -> pd.DataFrame:
    """Add what the catalogue says of each row's device."""
    devices = load_devices()
    precision = {"gemm32": "float32", "conv32": "float32", "norm32": "float32"}
    x = x.assign(chip=x.device.map(lambda d: CHIP.get(d, d)))
    for column, read in {
        "bytes_per_s": lambda d: d.memory_bytes_per_s.value,
        "num_multiprocessors": lambda d: d.num_multiprocessors.value,
        "clock_hz": lambda d: d.clock_hz.value,
        "cache_bytes": lambda d: d.cache_bytes.value,
    }.items():
        x[column] = x.device.map({name: read(devices[name]) for name in x.device.unique()}).astype(float)
    peaks = {(d, f): devices[d].flops_per_s[precision.get(f, "float16")].value for d, f in {*zip(x.device, x.family, strict=True)}}
    x["flops_per_s"] = [float(peaks[key]) for key in zip(x.device, x.family, strict=True)]
    return x
