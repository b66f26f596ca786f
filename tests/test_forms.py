"""The loops that numba compiles, against the same loops run by Python: equal to the last bit, or not used."""

import builtins
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aimass_lab.planning import forms
from aimass_lab.planning.pool import Pool, simulate_pool
from aimass_lab.planning.queueing import Bursty, Poisson, ServiceTimes
from aimass_lab.planning.simulate import simulate_fcfs
from aimass_lab.scaling import make_scaler

SECONDS = st.floats(1e-4, 0.1)


def in_both_forms(work):
    """What `work` gives when Python runs the loops, and when they are compiled from the first step on."""
    pytest.importorskip("numba", reason="the extra `fast` is not installed: there is only one form")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forms, "PAYS", math.inf)
        plain = work()
        patch.setattr(forms, "PAYS", 0)
        return plain, work()


def assert_identical(plain, compiled, arrays, others=()):
    """Not close: the same numbers."""
    for name in arrays:
        expected, found = getattr(plain, name), getattr(compiled, name)
        assert found.dtype == expected.dtype
        assert found.tobytes() == expected.tobytes(), name
    for name in others:
        assert getattr(compiled, name) == getattr(plain, name), name


@st.composite
def services(draw, largest=8):
    """Tables with and without spread, and not monotone."""
    levels = draw(st.sampled_from([1, 7]))
    return ServiceTimes.from_samples({b: draw(st.lists(SECONDS, min_size=levels, max_size=levels)) for b in (1, 2, largest)})


@st.composite
def arrivals(draw):
    """Sorted times: at random, in bursts, or any, several at once among them."""
    if draw(st.booleans()):
        return np.cumsum(draw(st.lists(st.sampled_from([0.0, 0.0, 1e-3, 0.0125, 0.3]) | SECONDS, min_size=1, max_size=60)))
    law = draw(st.sampled_from([Poisson(80), Poisson(900), Bursty(300, burst=6)]))
    return law.times_s(draw(st.integers(1, 3_000)), np.random.default_rng(draw(st.integers(0, 99))))


@given(arrivals(), services(), st.data())
@settings(max_examples=60, deadline=None)
def test_a_queue_compiled_is_the_queue_in_python(times, service, data):
    limits = {
        "max_batch_size": data.draw(st.sampled_from([1, 3, 8])),
        "max_wait_s": data.draw(st.sampled_from([0, 0.002, 0.05])),
        "wait_policy": data.draw(st.sampled_from(["adaptive", "always"])),
        "num_workers": data.draw(st.sampled_from([1, 2, 5])),
        "seed": data.draw(st.integers(0, 99)),
    }
    plain, compiled = in_both_forms(lambda: simulate_fcfs(times, service, **limits))
    assert_identical(plain, compiled, ["arrival_s", "finish_s", "batch_start_s", "batch_service_s", "batch_items"])


@given(arrivals(), services(), st.data())
@settings(max_examples=60, deadline=None)
def test_a_pool_compiled_is_the_pool_in_python(times, service, data):
    scaler = data.draw(st.sampled_from(["", "hpa", "keda", "knative", "ray_serve"]))
    pool = Pool(
        service=service,
        max_batch_size=data.draw(st.sampled_from([1, 3, 8])),
        min_replicas=data.draw(st.integers(0 if scaler else 1, 2)),
        max_replicas=data.draw(st.integers(2, 5)),
        startup_s=data.draw(st.sampled_from([(0.0,), (0.2, 1.5), (4.0,)])),
        scaler=make_scaler(scaler) if scaler else None,
        max_waiting=data.draw(st.sampled_from([None, None, 4])),
        patience_s=data.draw(st.sampled_from([math.inf, 0.05])),
        mtbf_s=data.draw(st.sampled_from([math.inf, 0.7])),
    )
    plain, compiled = in_both_forms(lambda: simulate_pool(times, pool, seed=3))
    figures = ["replica_s", "span_s", "time_s", "wanted", "ready", "waiting", "requests_per_s", "failures", "requeued", "most_replicas"]
    assert_identical(plain, compiled, ["arrival_s", "finish_s"], figures)


# --- which form is used ------------------------------------------------------------------


@forms.Loop
def total(numbers, start):
    for number in numbers:
        start += number
    return start


def fresh():
    return forms.Loop(total.form(0).run)


def test_what_is_short_is_not_compiled(monkeypatch):
    """Loading the compiler costs what it saves only after so many steps, in one call or in several."""
    pytest.importorskip("numba", reason="the extra `fast` is not installed: there is only one form")
    monkeypatch.setattr(forms, "PAYS", 100)
    loop = fresh()
    assert [loop.form(steps).compiled for steps in (60, 30, 30, 1)] == [False, False, True, True]
    form = loop.form(1)
    assert form.run(form.numbers(np.array([0.1, 0.2, 0.3])), 0.5) == 0.5 + 0.1 + 0.2 + 0.3


def refusing(error):
    original = builtins.__import__

    def importing(name, *rest):
        if name == "numba":
            raise error
        return original(name, *rest)

    return importing


def test_without_numba_python_goes_on(monkeypatch):
    monkeypatch.setattr(builtins, "__import__", refusing(ModuleNotFoundError("No module named 'numba'", name="numba")))
    form = fresh().form(forms.PAYS)
    assert not form.compiled
    assert form.run(form.numbers(np.arange(4.0)), 0.5) == 6.5


def test_a_numba_that_does_not_load_is_said(monkeypatch):
    monkeypatch.setattr(builtins, "__import__", refusing(ImportError("Numba needs NumPy 2.5 or less")))
    with pytest.warns(UserWarning, match=r"plain Python, since numba does not load: Numba needs NumPy 2\.5 or less"):
        assert not fresh().form(forms.PAYS).compiled
