"""Trials: the comparison of outputs and of the user's metric against oracles, and the rules of equivalence."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from aimass_lab.errors import InputError
from aimass_lab.trial.fidelity import OutputComparison, compare_metric, divergence, wilson_interval
from aimass_lab.trial.verdict import judge_metric, judge_outputs
from aimass_lab.workload import as_call

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
    comparison.add(a, b, as_call(torch.ones(batch_size, 2)), range(batch_size))
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


@pytest.mark.parametrize("shape", [(6,), (6, 3)])
def test_the_imaginary_part_counts(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    a = torch.randn(shape, dtype=torch.complex64)
    assert compare(a, a, 6).relative_error("e").value == 0
    error = compare(a, a + 0.1j, 6).relative_error("e")
    assert error.value == pytest.approx(0.1 * math.sqrt(a.numel()) / a.norm().item())


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
    assert len(compare(outputs, outputs, 4).same_class) == scored


def test_values_that_are_lost_are_counted_and_infinite_originals_are_not_held_against_anyone() -> None:
    a = torch.tensor([[1.0, -math.inf, 2.0], [1.0, 2.0, 3.0], [1.0, 1.0, 1.0]])
    b = a.clone()
    b[1, 0], b[2] = math.nan, math.inf
    found = compare(a, b, 3)
    assert found.num_lost == 2
    assert found.cosines[0] == 1.0
    assert found.cosines[2] == 0.0
    assert found.same_class == [True, False, False]
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


def test_the_divergence_is_that_of_torch() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(7, 5), torch.randn(7, 5)
    expected = nn.functional.kl_div(b.double().log_softmax(1), a.double().log_softmax(1), reduction="none", log_target=True).sum(1)
    assert torch.allclose(divergence(a, b), expected)
    assert torch.allclose(divergence(a.softmax(1), b.softmax(1)), expected, atol=1e-6)  # probabilities are taken as they are
    assert torch.allclose(divergence(a.log_softmax(1), b.log_softmax(1)), expected)
    assert divergence(a, a).tolist() == [0.0] * 7


def test_a_class_that_is_masked_in_both_adds_nothing_and_one_that_only_the_variant_excludes_much() -> None:
    a = torch.tensor([[1.0, 2.0, -math.inf]])
    assert divergence(a, a).item() == 0.0
    assert math.isfinite(divergence(torch.tensor([[0.5, 0.5]]), torch.tensor([[1.0, 0.0]])).item())
    assert divergence(torch.tensor([[0.5, 0.5]]), torch.tensor([[1.0, 0.0]])).item() > 100


def test_the_mean_divergence_has_an_interval_that_holds_it() -> None:
    torch.manual_seed(0)
    a = torch.randn(300, 4)
    found = compare(a, a + 0.3 * torch.randn(300, 4), 300)
    number = found.divergence("e")
    assert number is not None
    assert number.value == pytest.approx(sum(found.divergences) / 300)
    low, high = number.interval or (0.0, 0.0)
    spread = torch.tensor(found.divergences).std().item() / math.sqrt(300)
    assert (low, high) == pytest.approx((number.value - 1.96 * spread, number.value + 1.96 * spread), rel=0.15)
    assert compare(torch.ones(4, 3, 2), torch.ones(4, 3, 2), 4).divergence("e") is None


def test_the_worst_samples_are_named_by_the_order_in_which_the_user_has_them() -> None:
    a = torch.eye(3).repeat(5, 1)  # 15 samples, three classes
    b = a.clone()
    b[4] *= 3.0  # relative error 2, the same class
    b[11] = b[11].roll(1)  # relative error sqrt(2), another class
    b[2, 0] += 0.5
    comparison = OutputComparison()
    order = torch.randperm(15, generator=torch.Generator().manual_seed(1))
    for rows in order.split(4):
        comparison.add(a[rows], b[rows], as_call(torch.ones(len(rows), 2)), rows.tolist())
    worst = comparison.worst()
    assert [w.index for w in worst] == [4, 11, 2]  # and no sample that does not differ
    assert [w.relative_error for w in worst] == pytest.approx([2.0, math.sqrt(2), 0.5])
    assert [w.same_class for w in worst] == [True, False, True]
    assert [(w.class_original, w.class_variant) for w in worst] == [(1, 1), (2, 0), (2, 2)]
    assert worst[0].cosine == pytest.approx(1.0)


def test_at_most_ten_samples_are_named() -> None:
    a = torch.eye(20)
    worst = compare(a, a * torch.arange(2, 22)[:, None], 20).worst()
    assert [w.index for w in worst] == list(range(19, 9, -1))


def test_the_drop_of_the_metric_is_a_number_of_its_own() -> None:
    labels = torch.arange(100) % 2
    outputs = nn.functional.one_hot(labels, 2).double()
    worse = outputs.clone()
    worse[:10] = worse[:10].roll(1, 1)
    drop = compare_metric(accuracy, outputs, worse, labels, as_call(torch.ones(100, 1))).drop("e")
    assert drop is not None
    assert drop.value == pytest.approx(0.1)
    # ten of a hundred, resampled: 0.1 ± 1.96 * sqrt(0.1 * 0.9 / 100)
    assert drop.interval == pytest.approx((0.041, 0.159), abs=0.025)
