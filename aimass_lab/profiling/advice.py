"""The next step in plain words, with the gain that this profile lets one expect and how sure that is.

A rule is a small function from a `Situation` to an `Advice` or None. It speaks only where the profile has evidence,
and only of a gain that is worth a line.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import msgspec
import torch
from torch import nn

from ..comparison import is_doubtful
from ..environment import usable_cores
from ..records import Advice, BatchPoint, Number, Profile, TrialResult
from ..units import format_bytes, format_seconds, format_share
from .bottleneck import Split
from .evidence import PRODUCTS, Evidence
from .kernels import family_named, share_of_families
from .probes import Range
from .recorder import Recording

WORTH_IT = 1.05
"""Gains below this are not advised."""
PAGE_BYTES = 4096
PREDICTED = "from its pessimistic to its optimistic end; not a coverage interval"


@dataclass(frozen=True)
class Situation:
    """What the rules look at."""

    model: nn.Module
    device: torch.device
    dtype: str
    batch_size: int
    latency: Number
    ladder: tuple[BatchPoint, ...]
    recording: Recording | None
    split: Split | None
    compute_share: float
    """Of the matrix products' time: what arithmetic binds; memory traffic binds the rest."""
    evidence: Evidence
    compiled: bool
    in_training: bool

    def family_share(self, *families: str) -> float:
        """Share of the recorded call, or of its kernels, that these families take."""
        return 0.0 if self.recording is None else share_of_families(self.recording, *families)

    @property
    def overhead_share(self) -> float:
        """Share of the call that starting operators takes."""
        return 0.0 if self.split is None else min(0.95, self.split.overhead_s / self.latency.value)

    def gain(self, value: float, low: float, high: float, basis: str) -> Number:
        """A predicted gain: times faster."""
        return Number(
            value=value, unit="ratio", source="estimated", method=basis, interval=(min(low, value), max(high, value)), interval_kind=PREDICTED,
            environment=self.latency.environment, quality=self.latency.quality,
        )  # fmt: skip


def faster(share: float, times: float) -> float:
    """How many times faster the whole becomes if `share` of it becomes `times` faster (Amdahl's law)."""
    return 1 / (1 - share + share / max(times, 1e-9))


def advise(situation: Situation) -> tuple[Advice, ...]:
    """Ask every rule; the largest predicted gain first, steps about correctness last."""
    found = [advice for rule in RULES if (advice := rule(situation)) is not None]
    worth = [a for a in found if a.gain is None or a.gain.value >= WORTH_IT]
    return tuple(sorted(worth, key=lambda a: -(a.gain.value if a.gain else 0.0)))


def without_disproved(profile: Profile, trials: Iterable[TrialResult]) -> Profile:
    """Leave out advice whose technique a trial of the same model on the same device has shown to bring nothing.

    Args:
        profile: With its advice.
        trials: What was tried; of several trials of a technique the last one counts that could tell.
    """
    here = (profile.model.digest, profile.environment.device)
    told = (t for t in trials if (t.model.digest, t.environment.device) == here and t.verdict != "cannot tell")
    verdicts = {t.setting.recipe.name: t.verdict for t in told}
    kept = tuple(a for a in profile.advice if verdicts.get(a.technique, "faster") in ("faster", "mixed"))
    return profile if kept == profile.advice else msgspec.structs.replace(profile, advice=kept)


# --- the rules


def keep_freed_memory(s: Situation) -> Advice | None:
    """Large blocks go back to the operating system at every release, and every page of the next one is mapped anew."""
    faults, cost = s.evidence.faults_per_call, s.evidence.fault_cost_s
    if faults is None or cost is None:
        return None
    latency = s.latency.value

    def speedup(seconds: float) -> float:
        return latency / max(0.05 * latency, latency - faults * seconds)

    fresh = format_bytes(faults * PAGE_BYTES)
    return Advice(
        name="keep_freed_memory",
        text=(
            f"every call takes {fresh} of fresh memory from the operating system, page by page, because the C library returns large blocks as "
            f"soon as they are free; mapping them takes about {format_seconds(faults * cost.value)} of {format_seconds(latency)}. Let it keep them: "
            "memory then stays at its highest. For every process: MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=2147483647 in its environment"
        ),
        code="import ctypes; [ctypes.CDLL('libc.so.6').mallopt(k, v) for k, v in ((-4, 0), (-1, 2**31 - 1))]",
        gain=s.gain(
            speedup(0.9 * cost.value), speedup(0.6 * cost.low), speedup(1.2 * cost.high),
            f"{faults:.0f} page faults a call counted, {cost.value * 1e6:.2f} µs each on fresh memory here; 0.6 to 1.2 of that is expected, "
            "for a page that is mapped anew is also in the cache when it is written",
        ),
    )  # fmt: skip


def allow_tf32(s: Situation) -> Advice | None:
    """Float32 matrix products on a GPU that has faster units for them."""
    if s.evidence.tf32_speedup is None:
        return None
    return _products(
        s, s.evidence.tf32_speedup, ("gemm",), name="allow_tf32", code='torch.backends.cuda.matmul.fp32_precision = "tf32"', technique="",
        text="float32 matrix products run without TF32: with it they are {times:.1f} times faster here, with 10 bits of mantissa instead of 23",
    )  # fmt: skip


def use_bf16(s: Situation) -> Advice | None:
    """Float32 weights on a device whose matrix products are faster in bfloat16."""
    if s.evidence.bf16_speedup is None:
        return None
    return _products(
        s, s.evidence.bf16_speedup, PRODUCTS, name="use_bf16", code='study.trial("bf16")', technique="bf16",
        text="a matrix product in bfloat16 is {times:.1f} times faster here than in the float32 of this model; a trial tells what it does to the outputs",
    )  # fmt: skip


def _products(s: Situation, speedup: Range, families: tuple[str, ...], *, name: str, code: str, technique: str, text: str) -> Advice | None:
    share = s.family_share(*families)
    if speedup.value <= 1 or share == 0:
        return None

    def products(times: float) -> float:
        """What products gain of which some are bound by memory traffic, which at most halves."""
        times = max(1.0, times)
        return 1 / (s.compute_share / times + (1 - s.compute_share) / min(2.0, times))

    basis = (
        f"matrix products take {format_share(share)} of the call, arithmetic binds {format_share(s.compute_share)} of that; a large one was measured "
        f"{speedup.value:.2f} times faster; a half to all of that is expected"
    )
    low, high = faster(share, products(1 + (speedup.low - 1) / 2)), faster(share, products(speedup.high))
    gain = s.gain(faster(share, products(1 + 0.75 * (speedup.value - 1))), low, high, basis)
    return Advice(name=name, text=text.format(times=speedup.value), code=code, gain=gain, technique=technique)


def fuse_attention(s: Situation) -> Advice | None:
    """Attention that is put together from its parts where a fused kernel would do."""
    if s.recording is None:
        return None
    plain = _plain_attention(s.recording)
    if plain is None:
        return None
    how, share, by_library = plain
    code = "F.scaled_dot_product_attention(q, k, v, attn_mask=mask)"
    if by_library:  # with one backend allowed, torch says what stands in its way
        code = "with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION): model(inputs)"
    elif hasattr(s.model, "set_attn_implementation"):
        code = 'model.set_attn_implementation("sdpa")'
    return Advice(
        name="fuse_attention",
        text=f"{how}: beside its matrix products it spends {format_share(share)} of the call on scores that a fused kernel never writes to memory",
        code=code,
        gain=s.gain(
            1 / (1 - 0.5 * share), 1.0, 1 / (1 - 0.9 * share), f"operators around the products take {format_share(share)}; none to nine tenths of that goes"
        ),
    )


def _plain_attention(recording: Recording) -> tuple[str, float, bool] | None:
    """What kind of unfused attention there is, the share of its operators that are no products, and whether torch chose it."""
    ops, weights, whole = recording.ops, recording.weights_ns, max(1, recording.whole_ns)
    chosen = [i for i, op in enumerate(ops) if op.name == "aten::_scaled_dot_product_attention_math"]
    if chosen:
        within = set(chosen)
        for i, op in enumerate(ops):
            if op.parent in within:
                within.add(i)
        spent = sum(weights[i] for i in within if family_named(ops[i].name) not in PRODUCTS)
        return "torch took the plain path for attention, for a mask, dropout, dtype or head size that its fused kernels lack", spent / whole, True
    modules: dict[str, list[int]] = {}
    for i, op in enumerate(ops):
        modules.setdefault(op.module or "", []).append(i)
    spent = 0
    for members in modules.values():
        names = [ops[i].name for i in members]
        if names.count("aten::bmm") + names.count("aten::baddbmm") >= 2 and "aten::_softmax" in names:
            spent += sum(weights[i] for i in members if family_named(ops[i].name) not in PRODUCTS)
    return ("attention is written out as products and a softmax", spent / whole, False) if spent else None


def raise_batch(s: Situation) -> Advice | None:
    """A batch at which the device is better filled, as the ladder measured it."""
    base = next((p for p in s.ladder if p.batch_size == s.batch_size), None)
    if base is None or base.throughput.value <= 0:
        return None
    best = max(p.throughput.value for p in s.ladder)
    enough = min((p for p in s.ladder if p.throughput.value >= 0.95 * best), key=lambda p: p.batch_size)
    if enough.batch_size <= base.batch_size:
        return None
    if is_doubtful(enough.throughput, base.throughput):
        return None
    ratio = enough.throughput.value / base.throughput.value
    a, b = (p.throughput.ends for p in (enough, base))
    return Advice(
        name="raise_batch",
        text=(
            f"items come {ratio:.2f} times faster in batches of {enough.batch_size} than of {base.batch_size}, and no more beyond; "
            f"a call then takes {format_seconds(enough.latency_p50.value)}"
        ),
        code=f"study.profile(batch={enough.batch_size})",
        gain=msgspec.structs.replace(
            s.gain(ratio, a[0] / b[1], a[1] / b[0], f"throughput per item as measured at both batch sizes, {enough.throughput.n or ''} calls".rstrip(", ")),
            interval_kind="ends of both 95 % intervals",
        ),
    )


def compile_it(s: Situation) -> Advice | None:
    """Many small operators, whose starting takes longer than their work."""
    share = s.overhead_share
    if s.compiled or share < 0.2 or (s.device.type == "cpu" and not any(map(shutil.which, ("c++", "g++", "clang++")))):
        return None
    return Advice(
        name="compile",
        text=f"starting operators takes about {format_share(share)} of a call: torch.compile fuses them into fewer, which takes seconds to minutes, once",
        code='study.trial("compile")',
        technique="compile",
        gain=s.gain(
            1 / (1 - 0.5 * share), 1.0, 1 / (1 - 0.9 * share), f"roofline: {format_share(share)} of the call is overhead, of which none to nine tenths goes"
        ),
    )


def use_channels_last(s: Situation) -> Advice | None:
    """Convolutions whose images have their channels outermost."""
    if s.evidence.channels_last is None:
        return None
    layer, speedup = s.evidence.channels_last
    share = s.family_share("conv")
    if speedup.low <= 1 or share == 0:
        return None
    return Advice(
        name="channels_last",
        text=f"with its channels innermost the slowest convolution, {layer}, is {speedup.value:.2f} times faster here; "
        f"all of them take {format_share(share)} of a call",
        code='study.trial("channels_last")',
        technique="channels_last",
        gain=s.gain(
            faster(share, 1 + 0.5 * (speedup.value - 1)), 1.0, faster(share, speedup.high),
            f"convolutions take {format_share(share)}; the slowest was measured in both orders, the others may gain nothing or as much",
        ),
    )  # fmt: skip


def set_threads(s: Situation) -> Advice | None:
    """More threads than cores, or cores without a thread."""
    if s.device.type != "cpu":
        return None
    threads, cores = torch.get_num_threads(), int(usable_cores())
    if threads > cores:
        text = f"torch computes with {threads} threads on {cores} cores: they wait for one another"
        gain = s.gain((threads / cores) ** 0.5, 1.0, threads / cores, "threads over cores: none to all of it")
    elif 2 * threads <= cores:
        share = 1 - s.overhead_share
        text = f"torch computes with {threads} of {cores} cores"
        times = cores / threads
        gain = s.gain(
            faster(share, 1 + 0.6 * (times - 1)), 1.0, faster(share, times), f"{format_share(share)} of the call can be spread, at none to all of the cores"
        )
    else:
        return None
    return Advice(name="set_threads", text=text, code=f"torch.set_num_threads({max(1, cores)})", gain=gain)


def leave_training_mode(s: Situation) -> Advice | None:
    """Dropout and batch statistics do not belong into a service."""
    if not s.in_training:
        return None
    text = "the model is in training mode: dropout and batch statistics change its answers from call to call; figures here are those of evaluation mode"
    return Advice(name="evaluate", text=text, code="model.eval()")


RULES: tuple[Callable[[Situation], Advice | None], ...] = (
    keep_freed_memory,
    allow_tf32,
    use_bf16,
    fuse_attention,
    raise_batch,
    compile_it,
    use_channels_last,
    set_threads,
    leave_training_mode,
)
