"""Records of trials with figures given by hand, for tests of what reads them."""

from __future__ import annotations

from aimass_lab.records import Environment, ModelInfo, Number, Quality, Recipe, Setting, Step, TrialPoint, TrialResult, Unit, Verdict


def given(value: float, unit: Unit = "ratio", quality: Quality = "ok") -> Number:
    return Number(value=value, unit=unit, source="measured", method="given", quality=quality)


def trial_record(
    model: ModelInfo, environment: Environment, *, technique: str = "bf16", options: dict | None = None, verdict: Verdict = "faster", batch_size: int = 4,
    latency_original: Number | None = None, latency_variant: Number | None = None, speedup: float | None = None, size_bytes: float = 2, fidelity: float = 1.0,
) -> TrialResult:  # fmt: skip
    """A trial of one step at one batch size."""
    before, after = latency_original or given(1.0, "s"), latency_variant or given(1.0, "s")
    ratio = before.value / after.value if speedup is None else speedup
    point = TrialPoint(
        batch_size=batch_size, verdict=verdict if verdict in ("faster", "slower", "cannot tell") else "no gain", speedup=given(ratio, quality=before.quality),
        latency_original=before, latency_variant=after, throughput_original=given(batch_size / before.value, "item/s"),
        throughput_variant=given(batch_size / after.value, "item/s"),
    )  # fmt: skip
    return TrialResult(
        model=model, environment=environment, setting=Setting(recipe=Recipe(steps=(Step(technique=technique, options=options or {}),)), batch_size=batch_size),
        verdict=verdict, recommended=verdict == "faster", reasons=(), points=(point,), size_bytes=given(size_bytes, "B"), size_original_bytes=given(4, "B"),
        stored_bytes=given(size_bytes, "B"), stored_original_bytes=given(4, "B"), fidelity=given(fidelity), relative_error=given(0.0),
        apply_time=given(0.1, "s"),
    )  # fmt: skip
