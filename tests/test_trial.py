"""Trials: the rules of the verdict on synthetic samples, the comparison of outputs against oracles, and whole trials on small models."""

from __future__ import annotations

import dataclasses
import gc
import math
import random
import threading
import weakref

import pytest
import torch
from models import RUNNABLE, DictModel, RaisingModel, TinyCNN, TinyMLP, assert_same, features, ids, snapshot
from torch import nn

from aimass_lab.compression.base import TECHNIQUES, Technique
from aimass_lab.errors import DoesNotFitError, InputError, ModelError, UnknownNameError, UnsupportedError
from aimass_lab.records import INTERRUPTED, Setting, TrialResult, from_json, to_json
from aimass_lab.timing import ratio_interval
from aimass_lab.trial import apply_setting, run_trial
from aimass_lab.trial.fidelity import OutputComparison, compare_metric, wilson_interval
from aimass_lab.trial.verdict import EnoughRounds, explain_speed, is_resolved, judge_metric, judge_outputs, speed_verdict
from aimass_lab.workload import Workload, as_call

# --- the rule of speed, on synthetic samples ------------------------------------------------


def decide(true_ratio: float, noise: float, seed: int, max_rounds: int = 150) -> str:
    """What a trial would say if seconds were log-normal with some calls ten times slower, as on a busy machine."""
    draw = random.Random(seed)

    def seconds(typical: float) -> float:
        return typical * math.exp(draw.gauss(0, noise)) * (10 if draw.random() < 0.03 else 1)

    samples: list[list[float]] = [[], []]
    enough = EnoughRounds()
    for _ in range(max_rounds):
        samples[0].append(seconds(true_ratio))
        samples[1].append(seconds(1.0))
        if len(samples[0]) >= 5 and enough(samples):
            break
    _, low, high = ratio_interval(*samples)
    return speed_verdict(low, high)


@pytest.mark.parametrize("noise", [0.01, 0.1, 0.5])
def test_two_equal_models_are_called_different_in_fewer_than_five_of_a_hundred(noise: float) -> None:
    verdicts = [decide(1.0, noise, seed) for seed in range(80)]
    assert sum(v != "no gain" for v in verdicts) <= 4


@pytest.mark.parametrize(("ratio", "expected"), [(1.3, "faster"), (0.7, "slower"), (1.01, "no gain")])
def test_a_real_difference_is_found_and_a_tiny_one_is_none(ratio: float, expected: str) -> None:
    assert [decide(ratio, 0.05, seed) for seed in range(20)] == [expected] * 20


@pytest.mark.parametrize(
    ("low", "high", "verdict", "resolved"),
    [
        (1.03, 1.2, "faster", True),
        (1.02, 1.2, "no gain", False),  # the band belongs to no gain
        (0.7, 0.97, "slower", True),
        (0.99, 1.01, "no gain", True),
        (0.5, 2.0, "no gain", False),
    ],
)
def test_the_whole_interval_must_lie_beyond_the_band(low: float, high: float, verdict: str, resolved: bool) -> None:
    assert (speed_verdict(low, high), is_resolved(low, high)) == (verdict, resolved)
    sentence = explain_speed(math.sqrt(low * high), low, high, 40)
    assert "40 rounds" in sentence
    assert ("not shown" in sentence) == (not resolved)


def test_measuring_stops_as_soon_as_the_verdict_is_clear_but_not_before_twenty_rounds() -> None:
    enough = EnoughRounds()
    asked = [enough([[2.0 + i % 3 / 100 for i in range(n)], [1.0] * n]) for n in range(5, 21)]
    assert asked == [False] * 15 + [True]


# --- the rule of equivalence ----------------------------------------------------------------


def test_the_error_allowed_is_that_of_a_rotation_by_the_cosine_allowed() -> None:
    # given unit vectors at the angle whose cosine is 0.99, when the rule is asked, then both its limits are met exactly
    angle = math.acos(0.99)
    chord = 2 * math.sin(angle / 2)
    assert chord == pytest.approx(math.sqrt(2 * 0.01))
    assert judge_outputs(0.9901, chord * 0.999, 0.01)[0]
    assert not judge_outputs(0.9899, 0.01, 0.01)[0]
    assert not judge_outputs(1.0, 0.5, 0.01)[0]  # the same direction, another scale


def test_a_metric_may_drop_by_as_much_as_allowed_and_no_more() -> None:
    assert judge_metric(0.98, 0.97, None, 0.01)[0]
    held, why = judge_metric(0.98, 0.96, (0.01, 0.03), 0.01)
    assert not held
    assert "0.98 before and 0.96 after" in why
    assert not judge_metric(0.98, None, None, 0.01)[0]
    assert judge_metric(0.9, 0.95, None, 0.0)[0]  # better is fine


# --- comparing outputs ----------------------------------------------------------------------


def compare(a: object, b: object, batch_size: int) -> OutputComparison:
    comparison = OutputComparison()
    comparison.add(a, b, as_call(torch.ones(batch_size, 2)), batch_size)
    return comparison


def test_cosine_and_relative_error_are_those_of_torch() -> None:
    torch.manual_seed(0)
    a = {"x": torch.randn(6, 3, 4), "y": torch.randn(6), "loss": torch.randn(())}
    b = {name: t + 0.1 * torch.randn_like(t) for name, t in a.items()}
    found = compare(a, b, 6)
    rows = [torch.cat([o["x"].flatten(1), o["y"][:, None]], 1).double() for o in (a, b)]
    cosines = nn.functional.cosine_similarity(*rows)
    fidelity, error = found.fidelity("e"), found.relative_error("e")
    assert fidelity.value == pytest.approx(cosines.mean().item())
    assert fidelity.interval == pytest.approx((cosines.min().item(), cosines.max().item()))
    assert error.value == pytest.approx(((rows[0] - rows[1]).norm() / rows[0].norm()).item())
    assert fidelity.n == error.n == 6
    assert found.agreement("e") is None


def test_agreement_counts_equal_largest_scores_and_its_interval_is_wilsons() -> None:
    stats = pytest.importorskip("scipy.stats")
    scores = torch.eye(8)
    other = scores.clone()
    other[0] = scores[1]
    agreement = compare(scores, other, 8).agreement("e")
    assert agreement is not None
    assert agreement.value == 7 / 8
    for k, n in [(7, 8), (0, 5), (5, 5), (300, 600)]:
        expected = stats.binomtest(k, n).proportion_ci(method="wilson")
        assert wilson_interval(k, n) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize(
    ("outputs", "scored"),
    [
        (torch.ones(4, 3), 4),
        ({"logits": torch.ones(4, 3), "hidden": torch.ones(4, 2, 2)}, 4),
        ((torch.ones(4, 3),), 4),
        (torch.ones(4, 1), 0),
        (torch.ones(4, 3, 2), 0),
        (torch.ones(4, 3, dtype=torch.long), 0),
        ({"pooled": torch.ones(4, 3), "hidden": torch.ones(4, 2, 2)}, 0),
    ],
)
def test_what_looks_like_scores_of_classes(outputs: object, scored: int) -> None:
    assert compare(outputs, outputs, 4).num_scored == scored


def test_values_that_are_lost_are_counted_and_infinite_originals_are_not_held_against_anyone() -> None:
    a = torch.tensor([[1.0, -math.inf, 2.0], [1.0, 2.0, 3.0], [1.0, 1.0, 1.0]])
    b = a.clone()
    b[1, 0], b[2] = math.nan, math.inf
    found = compare(a, b, 3)
    assert found.num_lost == 2
    assert found.cosines[0] == 1.0
    assert found.cosines[2] == 0.0
    assert found.num_agreeing == 1
    assert "not finite in 2" in found.fidelity("e").method


def test_outputs_of_zeros_are_equal_to_zeros_only() -> None:
    found = compare(torch.zeros(2, 3), torch.tensor([[0.0] * 3, [1.0, 0.0, 0.0]]), 2)
    assert found.cosines == [1.0, 0.0]
    assert found.relative_error("e").value == 1.0


@pytest.mark.parametrize(
    ("other", "text"),
    [({"y": torch.ones(2, 3)}, "returns x and the variant y"), ({"x": torch.ones(2, 4)}, r"\[2, 3\] in the original and \[2, 4\]")],
)
def test_outputs_of_other_names_or_shapes_have_nothing_in_common(other: dict, text: str) -> None:
    import re

    found = compare({"x": torch.ones(2, 3)}, other, 2)
    assert re.search(text, found.mismatch or "")
    assert (found.fidelity("e").value, found.relative_error("e").value) == (0.0, 1.0)


def accuracy(outputs: torch.Tensor, labels: torch.Tensor) -> float:
    return (outputs.argmax(1) == labels).double().mean().item()


def test_the_metrics_interval_holds_for_pairs() -> None:
    # given two models that are wrong on the same items, when items are resampled as pairs, then each accuracy varies and their drop does not
    torch.manual_seed(0)
    labels = torch.randint(3, (200,))
    wrong = torch.where(torch.arange(200) < 40, (labels + 1) % 3, labels)
    outputs = nn.functional.one_hot(wrong, 3).double()
    found = compare_metric(accuracy, outputs, outputs * 2, labels, as_call(torch.ones(200, 1)))
    assert (found.original, found.variant, found.drop_interval) == (0.8, 0.8, (0.0, 0.0))
    low, high = found.original_interval or (0.0, 0.0)
    # the normal approximation of the binomial: 0.8 ± 1.96 * sqrt(0.8 * 0.2 / 200)
    assert (low, high) == pytest.approx((0.745, 0.855), abs=0.02)


def test_a_metric_that_fails_is_the_users_to_mend() -> None:
    call = as_call(torch.ones(2, 1))
    for metric, text in [(lambda o, y: o["x"], "IndexError|TypeError"), (lambda o, y: math.nan, "is nan")]:
        with pytest.raises(InputError, match=text):
            compare_metric(metric, torch.ones(2, 3), torch.ones(2, 3), torch.ones(2), call)


# --- whole trials ---------------------------------------------------------------------------

NONE = Setting(technique="none")


@pytest.fixture(autouse=True)
def few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enough to see what a trial does; the time is never what ends it, so that a busy machine changes nothing."""
    monkeypatch.setattr("aimass_lab.trial.run.MAX_ROUNDS", 25)


def mlp_workload(**options: object) -> Workload:
    torch.manual_seed(0)
    return Workload(TinyMLP(), features(16), **options)  # type: ignore[arg-type]


def as_technique(monkeypatch: pytest.MonkeyPatch, change: object) -> Setting:
    """A technique that exists for one test only."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Custom(Technique):
        """Made by a test."""

        def apply(self, model: nn.Module) -> nn.Module:
            return change(model)  # type: ignore[operator, no-any-return]

    monkeypatch.setitem(TECHNIQUES._load(), "custom", Custom)
    return Setting(technique="custom")


class Wrapped(nn.Module):
    """Calls a model and does something to its outputs, by the number of the call."""

    def __init__(self, model: nn.Module, after: object) -> None:
        super().__init__()
        self.model, self.after, self.calls = model, after, 0

    def forward(self, *args: object, **kwargs: object) -> object:
        self.calls += 1
        return self.after(self.model(*args, **kwargs), self.calls)  # type: ignore[operator]


def test_the_control_finds_identical_outputs() -> None:
    workload = mlp_workload()
    found = run_trial(workload, NONE)
    assert (found.fidelity.value, found.relative_error.value, found.agreement and found.agreement.value) == (1.0, 0.0, 1.0)
    assert found.verdict != "not equivalent"
    assert (found.num_changed_layers.value, found.num_eligible_layers.value) == (0, 2)
    assert found.size_bytes.value == found.size_original_bytes.value == 4 * (8 * 16 + 16 + 16 * 3 + 3)
    assert found.speedup.source == "measured"
    low, high = found.speedup.interval or (0, 0)
    assert low <= found.speedup.value <= high
    assert found.speedup.n == found.latency_original.n == found.latency_variant.n >= 5
    assert found.speedup.value == pytest.approx(found.latency_original.value / found.latency_variant.value)
    assert found.batch_size == found.setting.batch_size == 16
    assert found.metric_original is None
    assert found.compile_time is None
    assert from_json(to_json(found), TrialResult) == found


@pytest.mark.parametrize("name", RUNNABLE)
def test_a_trial_leaves_every_kind_of_model_as_it_was(name: str) -> None:
    make, inputs = RUNNABLE[name]
    torch.manual_seed(0)
    workload = Workload(make(), inputs())
    workload.model.train()
    before = snapshot(workload.model)
    run_trial(workload, NONE)
    assert_same(before, snapshot(workload.model))


@pytest.mark.parametrize("technique", [t for t in TECHNIQUES if t != "compile"])
def test_every_technique_can_be_tried_and_says_why(technique: str) -> None:
    torch.manual_seed(0)
    workload = Workload(TinyCNN(), torch.rand(8, 1, 8, 8))  # in training mode, with dropout
    found = run_trial(workload, Setting(technique=technique, batch_size=4))
    assert found.batch_size == 4
    assert found.fidelity.value > 0.999
    assert found.fidelity.n == 8  # all samples, though batches of 4 were timed
    assert len(found.reasons) >= 2
    if found.verdict != "faster":
        assert len(found.reasons) > 2
    changed = {"none": 0, "channels_last": 1, "int8_dynamic": 1, "int8_weight_only": 1}.get(technique, 2)
    assert (found.num_changed_layers.value, found.num_eligible_layers.value) == (changed, 2)
    if changed:
        assert any(f"{changed} of 2 layers with weights were changed" in reason for reason in found.reasons)


@pytest.mark.slow
def test_compiling_is_timed_apart_and_the_copy_is_gone_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    from aimass_lab.compression import _torch_compile
    from aimass_lab.compression import compile as member

    seen = []

    def compile_and_watch(model: nn.Module, **options: object) -> nn.Module:
        seen.append(weakref.ref(model))
        return _torch_compile.compile_model(model, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(member, "compile_model", compile_and_watch)
    found = run_trial(mlp_workload(), Setting(technique="compile", options={"mode": "default"}))
    assert found.setting.options == {}  # only what differs from the defaults
    assert found.compile_time is not None
    assert found.compile_time.value >= 0
    assert found.fidelity.value > 0.9999
    gc.collect()
    assert [ref() for ref in seen] == [None]


def test_nan_where_the_original_has_numbers_is_not_equivalent(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = as_technique(monkeypatch, lambda model: Wrapped(model, lambda out, _: out * math.nan))
    found = run_trial(mlp_workload(), setting)
    assert found.verdict == "not equivalent"
    assert found.reasons[0] == "16 of 16 samples have values that are not finite where the original's are"
    assert found.fidelity.value == 0.0


def test_nan_in_the_original_too_is_no_difference() -> None:
    make, inputs = RUNNABLE["nan"]
    found = run_trial(Workload(make(), inputs()), NONE)
    assert found.fidelity.value == 1.0
    assert found.verdict != "not equivalent"


def test_another_shape_is_not_equivalent(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = as_technique(monkeypatch, lambda model: Wrapped(model, lambda out, _: out[:, :2]))
    found = run_trial(mlp_workload(), setting)
    assert found.verdict == "not equivalent"
    assert "[16, 3] in the original and [16, 2]" in found.reasons[0]


def test_a_metric_decides_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    # given scores ten times as large, when there are no labels, then the outputs differ; with labels, no class does
    x = features(21)
    torch.manual_seed(0)
    labels = TinyMLP()(x).argmax(1)
    setting = as_technique(monkeypatch, lambda model: Wrapped(model, lambda out, _: 10 * out))
    assert run_trial(mlp_workload(), setting).verdict == "not equivalent"
    judged = run_trial(mlp_workload(data=(x, labels), metric=accuracy), setting)
    assert judged.verdict != "not equivalent"
    assert judged.metric_original is not None
    assert judged.metric_variant is not None
    assert (judged.metric_original.value, judged.metric_variant.value) == (1.0, 1.0)
    assert judged.metric_original.n == 21  # two batches of 16, the second filled up and cut again
    # given another class for every item, when judged, then the metric says so
    setting = as_technique(monkeypatch, lambda model: Wrapped(model, lambda out, _: out.roll(1, 1)))
    lost = run_trial(mlp_workload(data=(x, labels), metric=accuracy), setting)
    assert lost.verdict == "not equivalent"
    assert "metric 1 before and 0 after" in lost.reasons[0]


def test_few_labels_do_not_exclude_a_drop(monkeypatch: pytest.MonkeyPatch) -> None:
    x = features(150)
    torch.manual_seed(0)
    labels = TinyMLP()(x).argmax(1)
    setting = as_technique(monkeypatch, lambda model: Wrapped(model, lambda out, _: torch.cat([out[:1].roll(1, 1), out[1:]])))
    found = run_trial(mlp_workload(data=(x, labels), metric=accuracy), at_batch(setting, 150))
    assert found.metric_variant is not None
    assert found.metric_variant.value == pytest.approx(149 / 150)
    assert found.verdict != "not equivalent"
    assert any(note.code == "W-METRIC" for note in found.notes)


def at_batch(setting: Setting, batch_size: int) -> Setting:
    return Setting(technique=setting.technique, options=setting.options, batch_size=batch_size)


def test_outputs_as_dicts_are_joined_for_the_metric() -> None:
    torch.manual_seed(0)
    inputs, labels = {"input_ids": ids(5), "attention_mask": torch.ones(5, 12)}, torch.zeros(5, dtype=torch.long)
    shapes = []

    def metric(outputs: dict, y: torch.Tensor) -> float:
        shapes.append((outputs["logits"].shape[0], outputs["hidden"].shape[0], len(y)))
        return 0.5

    found = run_trial(Workload(DictModel(), inputs, data=(inputs, labels), metric=metric), Setting(technique="none", batch_size=2))
    assert set(shapes) == {(5, 5, 5)}
    assert found.agreement is not None
    assert found.agreement.n == 5


def test_models_that_draw_random_numbers_get_the_same_ones() -> None:
    class Noisy(TinyMLP):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + torch.rand(x.shape[0], 3)

    assert run_trial(Workload(Noisy(), features(4)), NONE).fidelity.value == 1.0


def test_when_time_is_short_some_samples_stand_for_all() -> None:
    x = features(400)
    found = run_trial(Workload(TinyMLP(), x), Setting(technique="bf16", batch_size=1), budget_s=0.01)
    assert (found.fidelity.n or 0) < 400
    assert any(note.code == "W-SUBSET" for note in found.notes)


def test_one_sample_is_few() -> None:
    found = run_trial(Workload(TinyMLP(), features(1)), NONE)
    assert any(note.text.startswith("fidelity rests on 1 sample;") for note in found.notes)


def test_progress_goes_from_the_copy_to_the_comparison() -> None:
    told: list[tuple[float, str]] = []
    run_trial(mlp_workload(), Setting(technique="bf16"), progress=lambda share, text: told.append((share, text)))
    shares = [share for share, _ in told]
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert shares[-1] <= 1
    assert "copy" in told[0][1]


def test_a_variant_that_is_given_is_used_and_kept() -> None:
    workload = mlp_workload()
    variant = apply_setting(workload, Setting(technique="int8_weight_only", options={"group_size": "8"}))
    found = run_trial(workload, Setting(technique="int8_weight_only"), variant=variant)
    assert found.setting.options == {"group_size": 8}
    assert variant.model(features(2)).shape == (2, 3)
    with pytest.raises(InputError, match="'int8_weight_only' and the setting asks for 'bf16'"):
        run_trial(workload, Setting(technique="bf16"), variant=variant)


def test_a_variant_that_is_released_holds_no_weights() -> None:
    variant = apply_setting(mlp_workload(), NONE)
    weight = weakref.ref(variant.model.first.weight)
    variant.release()
    assert weight() is None


# --- interrupts, errors and memory ----------------------------------------------------------


def interrupt_at(call: int, seen: list) -> object:
    def change(model: nn.Module) -> nn.Module:
        def after(out: torch.Tensor, calls: int) -> torch.Tensor:
            if calls == call:
                raise KeyboardInterrupt
            return out

        seen.append(weakref.ref(model.first.weight))  # type: ignore[attr-defined]
        return Wrapped(model, after)

    return change


def test_an_interrupt_keeps_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    # the variant is called once at first, once for its outputs, once to warm up, and then once a round
    seen: list = []
    found = run_trial(mlp_workload(), as_technique(monkeypatch, interrupt_at(3 + 10, seen)))
    assert 9 <= (found.speedup.n or 0) <= 10
    assert [note.code for note in found.notes if note.code == INTERRUPTED]
    gc.collect()
    assert seen[0]() is None


def test_an_early_interrupt_ends_the_trial_and_gives_the_memory_back(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list = []
    workload = mlp_workload()
    before = snapshot(workload.model)
    with pytest.raises(KeyboardInterrupt) as caught:
        run_trial(workload, as_technique(monkeypatch, interrupt_at(3 + 3, seen)))
    gc.collect()
    assert seen[0]() is None  # though the error, and with it the traceback, is still held here, as a notebook does
    assert caught.tb is not None
    assert_same(before, snapshot(workload.model))


def test_a_variant_that_does_not_run_is_unsupported_and_released(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def change(model: nn.Module) -> nn.Module:
        def after(out: torch.Tensor, calls: int) -> torch.Tensor:
            raise RuntimeError("no kernel for this type\nand a long list of details")

        seen.append(weakref.ref(model.first.weight))  # type: ignore[attr-defined]
        return Wrapped(model, after)

    with pytest.raises(UnsupportedError) as caught:
        run_trial(mlp_workload(), as_technique(monkeypatch, change))
    assert str(caught.value) == "custom gives a model that does not run on float32[16, 8]: RuntimeError: no kernel for this type"
    gc.collect()
    assert seen[0]() is None


def test_a_technique_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def change(model: nn.Module) -> nn.Module:
        raise AssertionError("N must be divisible by 16")

    with pytest.raises(UnsupportedError, match="custom cannot be applied to this model: N must be divisible by 16"):
        run_trial(mlp_workload(), as_technique(monkeypatch, change))


def test_a_model_that_raises_by_itself_is_not_blamed_on_the_technique() -> None:
    with pytest.raises(ModelError, match="this model never works"):
        run_trial(Workload(RaisingModel(), features()), Setting(technique="bf16"))


def test_no_eligible_layer_is_unsupported_with_its_cause() -> None:
    with pytest.raises(UnsupportedError, match=r"channels_last is not possible here: 0 of 2 layers would be changed: it changes 2-d convolutions"):
        run_trial(mlp_workload(), Setting(technique="channels_last"))


@pytest.mark.parametrize("attribute", [threading.Lock(), (i for i in range(3)), torch.ones(2, requires_grad=True) * 2])
def test_a_model_that_cannot_be_copied_says_what_to_do(attribute: object) -> None:
    model = TinyMLP()
    model.extra = attribute
    with pytest.raises(ModelError, match="TinyMLP cannot be copied") as caught:
        run_trial(Workload(model, features()), NONE)
    assert "__deepcopy__" in str(caught.value)


def test_a_copy_that_does_not_fit_is_refused_before_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    from aimass_lab.profiling import memory

    monkeypatch.setattr(memory, "free_bytes", lambda device: 1000)
    monkeypatch.setattr("copy.deepcopy", lambda *_: pytest.fail("copied"))
    with pytest.raises(DoesNotFitError, match="1,000 B are free|1000 B are free") as caught:
        run_trial(mlp_workload(), NONE)
    assert "undo" in str(caught.value)


def test_a_model_without_weights_to_load_is_refused() -> None:
    with torch.device("meta"):
        model = TinyMLP()
    with pytest.raises(UnsupportedError, match="meta device"):
        run_trial(Workload(model, torch.ones(2, 8, device="meta")), NONE)


@pytest.mark.parametrize("options", [{"budget_s": 0}, {"tolerance": 0}, {"tolerance": 1.5}, {"max_drop": -0.1}, {"budget_s": math.nan}])
def test_arguments_that_cannot_be_used_are_refused(options: dict) -> None:
    with pytest.raises(InputError):
        run_trial(mlp_workload(), NONE, **options)


@pytest.mark.parametrize(
    ("setting", "error"),
    [
        (Setting(technique="int9"), UnknownNameError),
        (Setting(technique="bf16", options={"x": "1"}), InputError),
        (Setting(technique="none", batch_size=0), InputError),
    ],
)
def test_settings_that_cannot_be_used_are_refused(setting: Setting, error: type[Exception]) -> None:
    with pytest.raises(error):
        run_trial(mlp_workload(), setting)
