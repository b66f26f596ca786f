"""Trials: whole ones on small models, what a session keeps, and everything that can go wrong on the way."""

from __future__ import annotations

import dataclasses
import gc
import math
import statistics
import threading
import time
import weakref
from collections.abc import Iterator
from typing import ClassVar

import pytest
import torch
from models import RUNNABLE, DictModel, PaddedEncoder, RaisingModel, TinyCNN, TinyMLP, assert_same, features, ids, padded_sequences, snapshot
from torch import nn

from aimass_lab.compression.base import TECHNIQUES, Context, Stage, Technique
from aimass_lab.environment import LoadMeter
from aimass_lab.errors import DoesNotFitError, InputError, ModelError, OutOfTime, UnknownNameError, UnsupportedError
from aimass_lab.recipe import read_recipe
from aimass_lab.records import INTERRUPTED, Note, Recipe, Setting, Step, TrialResult, from_json, to_json
from aimass_lab.trial import TrialSession, apply_recipe, run_trial
from aimass_lab.trial.speed import MANY_CALLS, Burst, Model, burst, compare_speed, torch_threads, window
from aimass_lab.workload import Workload

NONE = Recipe()
CPU = torch.device("cpu")


def accuracy(outputs: torch.Tensor, labels: torch.Tensor) -> float:
    return (outputs.argmax(1) == labels).double().mean().item()


@pytest.fixture(autouse=True)
def few_rounds(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Enough to see what a trial does; the time is never what ends it, so that a busy machine changes nothing."""
    monkeypatch.setattr("aimass_lab.trial.speed.MAX_ROUNDS", 15)
    with torch_threads(1):  # two that wait for each other take ten times as long beside other work
        yield


def mlp_workload(**options: object) -> Workload:
    torch.manual_seed(0)
    return Workload(TinyMLP(), features(16), **options)  # type: ignore[arg-type]


def as_technique(monkeypatch: pytest.MonkeyPatch, change: object, causes: tuple[str, ...] = ()) -> Recipe:
    """A technique that exists for one test only."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Custom(Technique):
        """Made by a test."""

        stage: ClassVar[Stage] = Stage.ARCHITECTURE

        def apply(self, model: nn.Module, context: Context) -> nn.Module:
            return change(model)  # type: ignore[operator, no-any-return]

        def causes(self, model: nn.Module, batch_size: int, device: torch.device) -> tuple[str, ...]:
            return tuple(f"{cause} of {sum(1 for _ in model.parameters())} tensors" for cause in causes)

    monkeypatch.setitem(TECHNIQUES._load(), "custom", Custom)
    return Recipe(steps=(Step(technique="custom"),))


class Wrapped(nn.Module):
    """Calls a model and does something to its outputs, by the number of the call."""

    def __init__(self, model: nn.Module, after: object) -> None:
        super().__init__()
        self.model, self.after, self.calls = model, after, 0

    def forward(self, *args: object, **kwargs: object) -> object:
        self.calls += 1
        return self.after(self.model(*args, **kwargs), self.calls)  # type: ignore[operator]


def test_the_control_finds_identical_outputs() -> None:
    found = run_trial(mlp_workload(), NONE)
    assert (found.fidelity.value, found.relative_error.value, found.agreement and found.agreement.value) == (1.0, 0.0, 1.0)
    assert found.divergence is not None
    assert found.divergence.value == 0.0
    assert found.worst_samples == ()
    assert found.verdict != "not equivalent"
    assert found.steps == ()
    assert found.size_bytes.value == found.size_original_bytes.value == 4 * (8 * 16 + 16 + 16 * 3 + 3)
    assert found.stored_bytes.value == found.stored_original_bytes.value > found.size_bytes.value  # the file has a header
    assert found.setting == Setting(batch_size=16)
    assert (found.metric_original, found.metric_drop) == (None, None)
    assert not found.recommended
    assert found.recommendation.startswith("the control")
    if found.verdict in ("no gain", "slower"):
        assert any("this is the control, whose interval shows what the comparison can resolve" in reason for reason in found.reasons)
    assert from_json(to_json(found), TrialResult) == found


def test_speed_is_told_by_both_clocks_with_the_one_that_decides() -> None:
    (point,) = run_trial(mlp_workload(), NONE).points
    assert point.batch_size == 16
    assert point.wall_speedup is not None
    assert point.processor_speedup is not None
    assert point.speedup == {"wall": point.wall_speedup, "processor": point.processor_speedup}[point.clock]
    for speedup in (point.wall_speedup, point.processor_speedup):
        low, high = speedup.interval or (0, 0)
        assert low <= speedup.value <= high
        assert 5 <= (speedup.n or 0) <= 15
        assert "95 %" in (speedup.interval_kind or "")
    assert (point.latency_original.n or 0) >= 5 * (point.speedup.n or 0)  # short calls are made in bursts
    assert point.latency_p99_original is not None
    assert point.latency_p99_original.value >= point.latency_original.value
    assert point.throughput_original.unit == "item/s"
    assert point.compile_time is None


def test_every_batch_size_gets_a_verdict_of_its_own() -> None:
    found = run_trial(mlp_workload(), read_recipe("bf16"), batch_sizes=(3, 1, 32), budget_s=1.0)
    assert [p.batch_size for p in found.points] == [3, 1, 32]
    assert found.setting.batch_size == found.batch_size == 3
    assert found.speedup == found.points[0].speedup
    verdicts = {p.verdict for p in found.points}
    assert found.verdict == ("cannot tell" if "cannot tell" in verdicts else verdicts.pop() if len(verdicts) == 1 else "mixed")
    assert all(any(reason.startswith(f"batch {p.batch_size}: speed-up") for reason in found.reasons) for p in found.points)


def test_layers_are_told_one_by_one_for_every_step() -> None:
    torch.manual_seed(0)
    workload = Workload(TinyCNN(), torch.rand(8, 1, 8, 8))
    found = run_trial(workload, read_recipe("bf16 + channels_last"))
    assert [s.step.technique for s in found.steps] == ["bf16", "channels_last"]
    assert [(s.num_changed_layers.value, s.num_layers.value) for s in found.steps] == [(2, 2), (1, 2)]
    assert [(layer.name, layer.changed) for layer in found.steps[1].layers] == [("features.0", True), ("head", False)]
    assert "Linear" in found.steps[1].layers[1].detail
    assert found.steps[0].apply_time.value + found.steps[1].apply_time.value <= found.apply_time.value
    if found.verdict in ("no gain", "slower"):
        assert any("step 1, bf16: " in reason or "step 2, channels_last: " in reason for reason in found.reasons)


@pytest.fixture
def no_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine of its own: of one thread there is a verdict, however busy the machine is."""
    monkeypatch.setattr(LoadMeter, "robbed", False)


def spin(out: torch.Tensor, _: int) -> torch.Tensor:
    """Take 2 ms of the processor itself, so that a model is slower by both clocks, whichever of them decides."""
    end = time.thread_time() + 2e-3
    while time.thread_time() < end:
        pass
    return out


def test_a_cause_is_asked_of_the_model_that_the_step_found(monkeypatch: pytest.MonkeyPatch, no_host: None) -> None:
    # given a first step that puts a smaller model in place, when the second one is slow, then its cause counts the smaller model's tensors
    small = nn.Linear(8, 3, bias=False)
    recipe = as_technique(monkeypatch, lambda model: small, causes=("a cause",))

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Slow(TECHNIQUES["custom"]):  # type: ignore[misc]
        """Made by a test."""

        def apply(self, model: nn.Module, context: Context) -> nn.Module:
            return Wrapped(model, spin)

    monkeypatch.setitem(TECHNIQUES._load(), "slow", Slow)
    found = run_trial(mlp_workload(), Recipe(steps=(*recipe.steps, Step(technique="slow"))), budget_s=0.5, threads=1)
    assert "step 1, custom: a cause of 4 tensors" in found.reasons
    assert "step 2, slow: a cause of 1 tensors" in found.reasons


def test_slower_is_refused_and_says_so(monkeypatch: pytest.MonkeyPatch, no_host: None) -> None:
    found = run_trial(mlp_workload(), as_technique(monkeypatch, lambda model: Wrapped(model, spin)), batch_sizes=(1, 2), threads=1)
    assert found.verdict == "slower"
    assert not found.recommended
    assert found.recommendation == "refused: slower at batch 1, 2"


def test_what_is_faster_or_smaller_is_recommended(monkeypatch: pytest.MonkeyPatch, no_host: None) -> None:
    class Slow(TinyMLP):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return spin(super().forward(x), 0)

    torch.manual_seed(0)
    model = Slow()
    plain = TinyMLP()
    plain.load_state_dict(model.state_dict())
    found = run_trial(Workload(model, features(16)), as_technique(monkeypatch, lambda _: plain), threads=1)
    assert (found.verdict, found.recommended) == ("faster", True)
    assert found.recommendation.startswith("recommended: ")
    assert "times as fast at batch 16" in found.recommendation


@pytest.mark.parametrize("name", RUNNABLE)
def test_a_trial_leaves_every_kind_of_model_as_it_was(name: str) -> None:
    make, inputs = RUNNABLE[name]
    torch.manual_seed(0)
    workload = Workload(make(), inputs())
    workload.model.train()
    before = snapshot(workload.model)
    run_trial(workload, NONE)
    assert_same(before, snapshot(workload.model))


@pytest.mark.slow
def test_compiling_is_timed_apart_and_the_copy_is_gone_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    from aimass_lab.compression._torch_compile import CompiledModule

    seen = []
    make = CompiledModule.__init__

    def make_and_watch(self: CompiledModule, model: nn.Module, **options: object) -> None:
        seen.append(weakref.ref(model))
        make(self, model, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(CompiledModule, "__init__", make_and_watch)
    found = run_trial(mlp_workload(), read_recipe("compile"), batch_sizes=(16, 2))
    for point in found.points:
        assert point.compile_time is not None
        assert point.compile_time.value >= 0
    assert found.fidelity.value > 0.9999
    gc.collect()
    assert [ref() for ref in seen] == [None]


def test_nan_where_the_original_has_numbers_is_not_equivalent(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = as_technique(monkeypatch, lambda model: Wrapped(model, lambda out, _: out * math.nan))
    found = run_trial(mlp_workload(), recipe)
    assert found.verdict == "not equivalent"
    assert found.reasons[0] == "16 of 16 samples have values that are not finite where the original's are"
    assert found.fidelity.value == 0.0


def test_nan_in_the_original_too_is_no_difference() -> None:
    make, inputs = RUNNABLE["nan"]
    found = run_trial(Workload(make(), inputs()), NONE)
    assert found.fidelity.value == 1.0
    assert found.verdict != "not equivalent"


def test_another_shape_is_not_equivalent(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = as_technique(monkeypatch, lambda model: Wrapped(model, lambda out, _: out[:, :2]))
    found = run_trial(mlp_workload(), recipe)
    assert found.verdict == "not equivalent"
    assert "[16, 3] in the original and [16, 2]" in found.reasons[0]


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")  # torch's own, of its fused path
def test_padded_places_that_one_of_both_fills_are_told_as_the_cause() -> None:
    # given a copy whose layers torch cannot fuse, when the places it pads are compared, then it is said that they are, and not for one that it fuses
    workload = Workload(PaddedEncoder(), padded_sequences())
    found = run_trial(workload, read_recipe("int8_dynamic"))
    assert found.verdict == "not equivalent"
    (note,) = (note for note in found.notes if note.code == "W-PADDING")
    assert note.text.startswith("'output': where items are padded")
    assert "W-PADDING" not in {note.code for note in run_trial(workload, NONE).notes}


def test_a_metric_decides_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    # given scores ten times as large, when there are no labels, then the outputs differ; with labels, no class does
    x = features(21)
    torch.manual_seed(0)
    labels = TinyMLP()(x).argmax(1)
    recipe = as_technique(monkeypatch, lambda model: Wrapped(model, lambda out, _: 10 * out))
    assert run_trial(mlp_workload(), recipe).verdict == "not equivalent"
    judged = run_trial(mlp_workload(data=(x, labels), metric=accuracy), recipe)
    assert judged.verdict != "not equivalent"
    assert judged.metric_original is not None
    assert judged.metric_variant is not None
    assert (judged.metric_original.value, judged.metric_variant.value) == (1.0, 1.0)
    assert judged.metric_drop is not None
    assert judged.metric_drop.value == 0.0
    assert judged.metric_original.n == 21  # two batches of 16, the second filled up and cut again
    # given another class for every item, when judged, then the metric says so
    recipe = as_technique(monkeypatch, lambda model: Wrapped(model, lambda out, _: out.roll(1, 1)))
    lost = run_trial(mlp_workload(data=(x, labels), metric=accuracy), recipe)
    assert lost.verdict == "not equivalent"
    assert "metric 1 before and 0 after" in lost.reasons[0]


def test_few_labels_do_not_exclude_a_drop(monkeypatch: pytest.MonkeyPatch) -> None:
    x = features(150)
    torch.manual_seed(0)
    labels = TinyMLP()(x).argmax(1)
    recipe = as_technique(monkeypatch, lambda model: Wrapped(model, lambda out, _: torch.cat([out[:1].roll(1, 1), out[1:]])))
    found = run_trial(mlp_workload(data=(x, labels), metric=accuracy), recipe, batch_sizes=(150,))
    assert found.metric_variant is not None
    assert found.metric_variant.value == pytest.approx(149 / 150)
    assert found.verdict != "not equivalent"
    assert any(note.code == "W-METRIC" for note in found.notes)


def test_outputs_as_dicts_are_joined_for_the_metric() -> None:
    torch.manual_seed(0)
    inputs, labels = {"input_ids": ids(5), "attention_mask": torch.ones(5, 12)}, torch.zeros(5, dtype=torch.long)
    shapes = []

    def metric(outputs: dict, y: torch.Tensor) -> float:
        shapes.append((outputs["logits"].shape[0], outputs["hidden"].shape[0], len(y)))
        return 0.5

    found = run_trial(Workload(DictModel(), inputs, data=(inputs, labels), metric=metric), NONE, batch_sizes=(2,))
    assert set(shapes) == {(5, 5, 5)}
    assert found.agreement is not None
    assert found.agreement.n == 5


def test_models_that_draw_random_numbers_get_the_same_ones() -> None:
    class Noisy(TinyMLP):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + torch.rand(x.shape[0], 3)

    assert run_trial(Workload(Noisy(), features(4)), NONE).fidelity.value == 1.0


def test_when_time_is_short_some_samples_stand_for_all() -> None:
    torch.manual_seed(0)
    found = run_trial(Workload(TinyMLP(), features(2000)), read_recipe("bf16"), batch_sizes=(1,), budget_s=0.002)
    assert 0 < (found.fidelity.n or 0) < 2000
    assert any(note.code == "W-SUBSET" for note in found.notes)
    # drawn at random, and named by their place among all: not the first ones
    assert max(w.index for w in found.worst_samples) > (found.fidelity.n or 0)


def test_the_worst_sample_is_found_where_the_user_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    # given a variant that gets one of 200 samples wrong, when samples are compared in batches of random order, then it is named by its index
    x = features(200)

    def spoil(model: nn.Module) -> nn.Module:
        class Spoiled(nn.Module):
            def forward(self, inputs: torch.Tensor) -> torch.Tensor:
                return torch.where((inputs == x[123]).all(1, keepdim=True), -1.0, 1.0) * model(inputs)

        return Spoiled()

    workload = Workload(TinyMLP(), x[:4], data=(x, torch.zeros(200)), metric=lambda outputs, labels: 1.0)
    found = run_trial(workload, as_technique(monkeypatch, spoil), batch_sizes=(16,))
    assert [w.index for w in found.worst_samples] == [123]
    assert found.worst_samples[0].cosine == pytest.approx(-1.0)
    assert found.agreement is not None
    assert found.agreement.value == 199 / 200


def test_one_sample_is_few() -> None:
    found = run_trial(Workload(TinyMLP(), features(1)), NONE)
    assert any(note.text.startswith("fidelity rests on 1 sample;") for note in found.notes)


def test_progress_goes_from_the_copy_to_the_comparison() -> None:
    told: list[tuple[float, str]] = []
    run_trial(mlp_workload(), read_recipe("bf16"), progress=lambda share, text: told.append((share, text)))
    shares = [share for share, _ in told]
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert shares[-1] <= 1
    assert "copy" in told[0][1]


def test_a_variant_that_is_given_is_used_and_kept() -> None:
    workload = mlp_workload()
    recipe = read_recipe("bf16")
    variant = apply_recipe(workload, recipe)
    found = run_trial(workload, recipe, variant=variant)
    assert found.setting.recipe == recipe
    assert variant.model(features(2)).shape == (2, 3)
    with pytest.raises(InputError, match="made by 'bf16', and 'fp16' is to be tried"):
        run_trial(workload, read_recipe("fp16"), variant=variant)


def test_a_variant_that_is_released_holds_no_weights() -> None:
    variant = apply_recipe(mlp_workload(), NONE)
    weight = weakref.ref(variant.model.first.weight)
    variant.release()
    assert weight() is None


# --- threads and callers --------------------------------------------------------------------


def test_threads_are_set_for_the_trial_and_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    seen: set[int] = set()
    recipe = as_technique(monkeypatch, lambda model: Wrapped(model, lambda out, _: (seen.add(torch.get_num_threads()), out)[1]))
    found = run_trial(mlp_workload(), recipe, threads=before + 1)
    assert seen == {before + 1}
    assert found.environment.threads == found.setting.threads == before + 1
    assert torch.get_num_threads() == before


def test_threads_are_put_back_after_an_error() -> None:
    before = torch.get_num_threads()
    with pytest.raises(KeyError), torch_threads(before + 1):
        raise KeyError
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("name", ["threads", "instances"])
def test_more_threads_than_a_process_lives_through_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"{name}=100000 is more than 16 for each of the"):
        run_trial(mlp_workload(), read_recipe("none"), **{name: 100_000})


def test_several_callers_call_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    # given a variant that waits instead of computing, when three call it, then three calls take the time of one
    callers: set[int] = set()
    lock, inside, most, bursts = threading.Lock(), 0, 0, []

    def wait(out: torch.Tensor, _: int) -> torch.Tensor:
        nonlocal inside, most
        assert torch.is_inference_mode_enabled()
        callers.add(threading.get_ident())
        with lock:
            inside += 1
            most = max(most, inside)
        time.sleep(5e-3)
        with lock:
            inside -= 1
        return out

    def window_and_keep(model: Model, *args: object, **options: object) -> Burst:
        bursts.append(window(model, *args, **options))  # type: ignore[arg-type]
        return bursts[-1]

    monkeypatch.setattr("aimass_lab.trial.speed.window", window_and_keep)
    monkeypatch.setattr("aimass_lab.trial.speed.MAX_ROUNDS", 6)
    found = run_trial(mlp_workload(), as_technique(monkeypatch, lambda model: Wrapped(model, wait)), batch_sizes=(4,), instances=3)
    (point,) = found.points
    assert len(callers) == 4  # and the one that makes the first call
    assert found.setting.instances == 3
    assert point.latency_variant.value >= 5e-3
    assert most == 3
    # three at once, so that a third of the time that a call itself takes passes between two answers, however long this machine lets one sleep
    slept = [burst for burst in bursts if min(burst.calls_s) >= 5e-3]
    assert statistics.median(burst.seconds / statistics.mean(burst.calls_s) for burst in slept) == pytest.approx(1 / 3, rel=0.3)
    assert point.throughput_variant.value <= 1.05 * 3 * 4 / 5e-3
    assert "3 callers" in point.throughput_variant.method
    assert any(note.code == "one-process" for note in found.notes)


def test_an_error_of_one_caller_ends_the_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(out: torch.Tensor, calls: int) -> torch.Tensor:
        if calls > 20:
            raise RuntimeError("not twice at once")
        return out

    with pytest.raises(UnsupportedError, match="not twice at once"):
        run_trial(mlp_workload(), as_technique(monkeypatch, lambda model: Wrapped(model, fail)), instances=2)


def test_a_burst_counts_every_call() -> None:
    calls = []
    found = burst(lambda: calls.append(1), CPU, num_calls=7, warm=True)
    assert len(calls) == 8
    assert len(found.calls_s) == 7
    assert found.seconds == pytest.approx(sum(found.calls_s) / 7)


def test_waiting_is_wall_time_and_no_processor_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """By clocks that a call moves itself: how long a machine lets one sleep is its own matter."""
    wall, processor = [0.0], [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: wall[0])
    monkeypatch.setattr(time, "process_time", lambda: processor[0])

    def call(waits_s: float, works_s: float) -> None:
        wall[0] += waits_s + works_s
        processor[0] += works_s

    found = compare_speed(lambda: call(6e-3, 2e-3), lambda: call(1e-3, 1e-3), CPU, budget_s=0.2)
    assert found.decision.wall.value == pytest.approx(4)
    assert found.decision.processor is not None
    assert found.decision.processor.value == pytest.approx(2)
    for bursts, seconds, processor_s in ((found.original, 8e-3, 2e-3), (found.variant, 2e-3, 1e-3)):
        assert [(b.seconds, b.processor_s) for b in bursts] == [pytest.approx((seconds, processor_s))] * found.num_rounds


# --- a session ------------------------------------------------------------------------------


def counted_applications(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    applied: list[str] = []

    def apply_and_count(workload: Workload, recipe: Recipe, **options: object) -> object:
        applied.append(recipe.name)
        return apply_recipe(workload, recipe, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("aimass_lab.trial.session.apply_recipe", apply_and_count)
    return applied


class Unhurried(nn.Module):
    """So slow that a few calls fill a short comparison."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(0.01)
        return self.layer(x)


@pytest.mark.parametrize(("tail_s", "known"), [(0.0, False), (60.0, True)])
def test_a_slow_model_is_called_often_enough_for_a_99th_percentile_where_that_is_asked_for(monkeypatch: pytest.MonkeyPatch, tail_s: float, known: bool) -> None:
    monkeypatch.setattr("aimass_lab.trial.speed.MAX_ROUNDS", 2 * MANY_CALLS)
    with TrialSession(Workload(Unhurried(), torch.randn(2, 4))) as session:
        result = session.run(Setting(recipe=read_recipe("none"), batch_size=2), budget_s=0.1, tail_s=tail_s)
    p99 = result.points[0].latency_p99_variant
    assert (p99 is not None) is known
    assert p99 is None or p99.n == MANY_CALLS


def test_a_recipe_that_comes_again_costs_the_timing_only(monkeypatch: pytest.MonkeyPatch) -> None:
    applied = counted_applications(monkeypatch)
    with TrialSession(mlp_workload()) as session:
        first = session.run(Setting(recipe=read_recipe("bf16")))
        monkeypatch.setattr("aimass_lab.trial.session.compare_outputs", lambda *_, **__: pytest.fail("outputs were compared again"))
        monkeypatch.setattr("aimass_lab.trial.session.measure_sizes", lambda *_: pytest.fail("weighed again"))
        second = session.run(Setting(recipe=read_recipe("bf16"), batch_size=3, threads=1))
    assert applied == ["bf16"]
    assert second.batch_size == 3
    assert (second.fidelity.value, second.stored_bytes, second.steps) == (first.fidelity.value, first.stored_bytes, first.steps)


def test_another_seed_is_another_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    applied = counted_applications(monkeypatch)
    with TrialSession(mlp_workload()) as session:
        session.run(Setting(recipe=read_recipe("bf16", seed=0)))
        session.run(Setting(recipe=read_recipe("bf16", seed=1)))
    assert applied == ["bf16", "bf16"]


def test_the_copy_that_was_not_used_for_longest_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    applied = counted_applications(monkeypatch)
    workload = mlp_workload()
    size = workload.info().weight_bytes
    with TrialSession(workload, memory_bytes=2 * size) as session:
        for name in ("bf16", "none", "bf16", "fp16", "bf16", "none"):
            session.run(Setting(recipe=read_recipe(name)), budget_s=0.05)
            assert session.held_bytes <= 2 * size
    # bf16 was used after none, so fp16 takes the place of none
    assert applied == ["bf16", "none", "fp16", "none"]
    assert session.held_bytes == 0


def test_copies_that_are_kept_make_room_when_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    from aimass_lab.profiling import memory

    with TrialSession(mlp_workload(), memory_bytes=2**30) as session:
        session.run(Setting(recipe=read_recipe("bf16")), budget_s=0.05)
        free = iter([1000, 2**30])
        monkeypatch.setattr(memory, "free_bytes", lambda device: next(free))
        assert session.run(Setting(recipe=NONE), budget_s=0.05).fidelity.value == 1.0
        assert session.take(read_recipe("bf16")) is None


def test_a_session_that_is_closed_holds_no_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list = []
    session = TrialSession(mlp_workload())
    session.run(Setting(recipe=as_technique(monkeypatch, lambda model: (seen.append(weakref.ref(model.first.weight)), model)[1])))
    assert seen[0]() is not None
    session.close()
    assert seen[0]() is None


def test_a_copy_can_be_taken_out_of_a_session() -> None:
    with TrialSession(mlp_workload()) as session:
        session.run(Setting(recipe=NONE))
        variant = session.take(NONE)
        assert session.take(NONE) is None
    assert variant is not None
    assert variant.model(features(2)).shape == (2, 3)


def test_what_is_impossible_is_not_tried_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    applied = counted_applications(monkeypatch)
    with TrialSession(mlp_workload()) as session:
        for _ in range(2):
            with pytest.raises(UnsupportedError, match="channels_last is not possible here"):
                session.run(Setting(recipe=read_recipe("channels_last")))
        assert session.run(Setting(recipe=NONE)).fidelity.value == 1.0
    assert applied == ["channels_last", "none"]


def learning_workload() -> Workload:
    torch.manual_seed(0)
    return Workload(TinyMLP(), features(16), train=features(64))


def counted_trainings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    trained: list[str] = []
    member = TECHNIQUES["recover"]
    train = member.train

    def train_and_count(self: object, name: str, *arguments: object) -> object:
        trained.append(name)
        return train(self, name, *arguments)

    monkeypatch.setattr(member, "train", train_and_count)
    return trained


def test_a_training_that_recipes_begin_with_is_done_once_and_gives_the_same_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    trained = counted_trainings(monkeypatch)
    begin = "unstructured_pruning + recover(epochs=2,learning_rate=0.01)"
    again = f"{begin} + recover(epochs=1,learning_rate=0.01)"
    with TrialSession(learning_workload()) as session:
        for text, so_far in ((begin, 1), (f"{begin} + bf16", 1), (again, 2), (f"{again} + bf16", 2)):
            session.run(Setting(recipe=read_recipe(text)), budget_s=0.05)
            assert len(trained) == so_far, text
        variants = {text: session.take(read_recipe(text)) for text in (again, f"{begin} + bf16")}
    for text, variant in variants.items():
        fresh = apply_recipe(learning_workload(), read_recipe(text))
        assert variant is not None
        assert_same(dict(variant.model.state_dict()), dict(fresh.model.state_dict()))
        assert [step.step.technique for step in variant.steps] == [step.step.technique for step in fresh.steps]
        assert variant.apply_time_s >= sum(step.apply_time.value for step in variant.steps)
    # what pruning made zero stayed zero in a training that began from a kept copy
    assert (variants[again].model.first.weight == 0).float().mean() > 0.3  # type: ignore[union-attr]


def test_a_training_that_was_begun_with_another_seed_or_options_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    trained = counted_trainings(monkeypatch)
    with TrialSession(learning_workload()) as session:
        for recipe in (read_recipe("recover(epochs=1)"), read_recipe("recover(epochs=1) + bf16", seed=1), read_recipe("recover(epochs=2) + bf16")):
            session.run(Setting(recipe=recipe), budget_s=0.05)
    assert len(trained) == 3


def test_trainings_are_kept_within_their_share_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    trained = counted_trainings(monkeypatch)
    workload = learning_workload()
    size = workload.info().weight_bytes
    texts = ("recover(epochs=1)", "recover(epochs=2)", "recover(epochs=1) + bf16")
    with TrialSession(workload, memory_bytes=4 * size) as session:
        for text in texts:
            session.run(Setting(recipe=read_recipe(text)), budget_s=0.05)
    assert len(trained) == 3  # there was room for one, and the first had to go
    trained.clear()
    with TrialSession(workload, memory_bytes=8 * size) as session:
        for text in texts:
            session.run(Setting(recipe=read_recipe(text)), budget_s=0.05)
    assert len(trained) == 2
    trained.clear()
    with TrialSession(workload, memory_bytes=size) as session:
        for text in ("recover(epochs=1)", "recover(epochs=1) + bf16"):
            session.run(Setting(recipe=read_recipe(text)), budget_s=0.05)
    assert len(trained) == 2


def test_a_training_that_was_cut_short_is_not_gone_on_from(monkeypatch: pytest.MonkeyPatch) -> None:
    member = TECHNIQUES["recover"]
    train, calls = member.train, []

    def cut_short(self: object, name: str, student: nn.Module, context: Context, frozen: object) -> object:
        calls.append(name)
        report = train(self, name, student, context, frozen)
        context.notes.append(Note(code=INTERRUPTED, text="cut short"))
        return report

    monkeypatch.setattr(member, "train", cut_short)
    with TrialSession(learning_workload()) as session:
        for text in ("recover(epochs=1)", "recover(epochs=1) + bf16"):
            session.run(Setting(recipe=read_recipe(text)), budget_s=0.05)
    assert len(calls) == 2


def test_a_copy_that_takes_too_long_is_given_up_where_the_technique_tells_its_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[weakref.ref] = []

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Slow(Technique):
        """Never ready."""

        stage: ClassVar[Stage] = Stage.VALUES

        def apply(self, model: nn.Module, context: Context) -> nn.Module:
            seen.append(weakref.ref(next(model.parameters())))
            while True:
                try:
                    time.sleep(0.01)
                    context.progress(0.5, "thinking")
                except Exception:  # which a technique may do, and then try something else
                    continue

    monkeypatch.setitem(TECHNIQUES._load(), "slow", Slow)
    with TrialSession(mlp_workload()) as session:
        for making_s in (0.3, 3.0, 30.0):  # a busy machine may need the first for what comes before the technique
            with pytest.raises(OutOfTime, match=rf"took more than {making_s:.3g} s and was given up \(") as caught:
                session.run(Setting(recipe=Recipe(steps=(Step(technique="slow"),))), making_s=making_s)
            told = str(caught.value)
            del caught
            if seen:
                break
        assert told.endswith("(thinking)")
        assert session.held_bytes == 0
        assert session.run(Setting(recipe=NONE), budget_s=0.05, making_s=10.0).fidelity.value == 1.0
    gc.collect()
    assert seen[0]() is None


def test_a_session_measures_here_only() -> None:
    with TrialSession(mlp_workload()) as session, pytest.raises(InputError, match="nothing can be measured on l4"):
        session.run(Setting(device="l4"))


# --- interrupts, errors and memory ----------------------------------------------------------


WARM_CALLS = 5
"""Of the variant before the first round: the very first one, one for its outputs, two to see how long it takes, and one to warm up."""


@pytest.fixture
def single_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """One call a round, so that calls can be counted."""
    monkeypatch.setattr("aimass_lab.trial.speed.BURST_S", 0.0)
    monkeypatch.setattr("aimass_lab.trial.speed.WARM_BELOW_S", 0.0)


def interrupt_at(call: int, seen: list) -> object:
    def change(model: nn.Module) -> nn.Module:
        def after(out: torch.Tensor, calls: int) -> torch.Tensor:
            if calls == call:
                raise KeyboardInterrupt
            return out

        seen.append(weakref.ref(model.first.weight))  # type: ignore[attr-defined]
        return Wrapped(model, after)

    return change


@pytest.mark.usefixtures("single_calls")
def test_an_interrupt_keeps_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list = []
    found = run_trial(mlp_workload(), as_technique(monkeypatch, interrupt_at(WARM_CALLS + 10, seen)))
    assert 9 <= (found.speedup.n or 0) <= 10
    assert [note.code for note in found.notes if note.code == INTERRUPTED]
    gc.collect()
    assert seen[0]() is None


@pytest.mark.usefixtures("single_calls")
def test_an_early_interrupt_ends_the_trial_and_gives_the_memory_back(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list = []
    workload = mlp_workload()
    before = snapshot(workload.model)
    with pytest.raises(KeyboardInterrupt) as caught:
        run_trial(workload, as_technique(monkeypatch, interrupt_at(WARM_CALLS + 3, seen)))
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
        run_trial(Workload(RaisingModel(), features()), read_recipe("bf16"))


def test_no_eligible_layer_is_unsupported_with_its_cause() -> None:
    with pytest.raises(UnsupportedError, match=r"channels_last is not possible here: 0 of 2 layers would be changed: it changes 2-d convolutions"):
        run_trial(mlp_workload(), read_recipe("channels_last"))


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


@pytest.mark.parametrize(
    "options",
    [
        {"budget_s": 0}, {"tolerance": 0}, {"tolerance": 1.5}, {"max_drop": -0.1}, {"budget_s": math.nan}, {"batch_sizes": (0,)}, {"batch_sizes": (2, 2)},
        {"threads": 0}, {"instances": 0}, {"instances": True},
    ],
)  # fmt: skip
def test_arguments_that_cannot_be_used_are_refused(options: dict) -> None:
    with pytest.raises(InputError):
        run_trial(mlp_workload(), NONE, **options)


@pytest.mark.parametrize(
    ("step", "error"), [(Step(technique="int9"), UnknownNameError), (Step(technique="bf16", options={"x": "1"}), InputError)]
)  # fmt: skip
def test_recipes_that_cannot_be_used_are_refused(step: Step, error: type[Exception]) -> None:
    with pytest.raises(error):
        run_trial(mlp_workload(), Recipe(steps=(step,)))


# --- how it is shown ------------------------------------------------------------------------


def test_a_page_says_first_what_to_do_and_folds_the_detail_away(monkeypatch: pytest.MonkeyPatch) -> None:
    from aimass_lab.frontends.layouts import lay_out

    recipe = as_technique(monkeypatch, lambda model: Wrapped(model, lambda out, _: out.roll(1, 1)))
    page = lay_out(run_trial(mlp_workload(), recipe, batch_sizes=(1, 2)))
    assert (page.headline, page.tone) == ("Refused: its outputs are not equivalent", "bad")
    tables = {table.title: table for table in page.tables}
    speeds = tables["Original → variant, by batch size"]
    assert [row[0] for row in speeds.rows] == [1, 2]
    assert all(len(row) == len(speeds.columns) for row in speeds.rows)
    assert "compiling" not in speeds.columns
    worst = tables["Samples that differ most (10 of 16)"]
    assert worst.folded
    assert len(worst.rows) == 10
    layers = tables["Layers, step 1: custom (2 of 2 changed)"]
    assert layers.folded
    assert [row[0] for row in layers.rows] == ["first", "second"]


def test_the_control_is_shown_as_the_control() -> None:
    from aimass_lab.frontends.layouts import lay_out

    page = lay_out(run_trial(mlp_workload(), NONE))
    assert page.headline.startswith("The control, an identical copy: ")
    assert page.tone in ("warn", "bad")


class Routed(nn.Module):
    """Sends each row to one of its experts, and to the last one none."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Even rows to the first, odd ones to the second."""
        expert, answer = torch.arange(len(x)) % 2, torch.zeros_like(x)
        for i, layer in enumerate(self.experts):
            rows = (expert == i).nonzero().squeeze(-1)
            answer = answer.index_add(0, rows, layer(x[rows]))
        return answer


def test_a_layer_that_gets_no_rows_is_named_with_the_recipes_that_take_none() -> None:
    workload = Workload(Routed(), torch.randn(4, 16))
    with pytest.raises(UnsupportedError, match=r"its layer 'experts.2' got no rows there.*\nhelp: .*int8_weight_only and onnxruntime\(quantize=dynamic\)"):
        run_trial(workload, read_recipe("int8_dynamic"), budget_s=0.2)
    for recipe in ("int8_weight_only", "onnxruntime(quantize=dynamic)"):
        assert run_trial(workload, read_recipe(recipe), budget_s=0.2).fidelity.value > 0.99
