"""A model that its user compiled stays compiled: our calls cost it no recompilation, and its copies none of its room."""

import warnings
from itertools import pairwise

import pytest
import torch
from models import TinyMLP, features
from torch import nn
from torch._dynamo.utils import counters

from aimass_lab import Study
from aimass_lab.compiled import is_compiled, uncompiled
from aimass_lab.compression.base import Context
from aimass_lab.preserve import preserved, private_copy
from aimass_lab.recipe import read_recipe
from aimass_lab.searching.possible import default_space, make_check
from aimass_lab.trial import run_trial
from aimass_lab.workload import Workload

SIZES = (2, 3, 5, 7)


def wrapped() -> nn.Module:
    return torch.compile(TinyMLP().eval(), backend="eager")


def in_place() -> nn.Module:
    model = TinyMLP().eval()
    model.compile(backend="eager")
    return model


def in_parts() -> nn.Module:
    model = TinyMLP().eval()
    name, part = next((name, part) for name, part in model.named_children() if isinstance(part, (nn.Linear, nn.Sequential)))
    setattr(model, name, torch.compile(part, backend="eager"))
    return model


class Decorated(TinyMLP):
    @torch.compile(backend="eager")
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x)


WAYS = [wrapped, in_place, in_parts]


@pytest.fixture(autouse=True)
def nothing_compiled_before():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled_frames() -> int:
    return counters["frames"]["total"]


@pytest.mark.parametrize("way", [*WAYS, lambda: Decorated().eval()], ids=["wrapped", "in place", "in parts", "decorated"])
def test_calls_of_ours_leave_no_compiled_code_behind(way):
    def compiled_for(model: nn.Module, *sizes: int) -> list[int]:
        counts = [compiled_frames()]
        for size in sizes:
            model(features(size))
            counts.append(compiled_frames())
        return [after - before for before, after in pairwise(counts)]

    model = way()
    assert compiled_for(model, 4) == [1]
    usual = compiled_for(model, 4, 6, 8)
    assert usual == [0, 1, 0], "for the size that it saw, for one that changes, and that is all"
    torch._dynamo.reset()
    model = way()
    assert compiled_for(model, 4) == [1]
    with preserved(model), torch.inference_mode():
        assert sum(compiled_for(model, *SIZES)) > 0
    assert compiled_for(model, 4, 6, 8) == usual


def test_what_is_compiled_there_is_used_and_ours_is_kept_for_the_next_verb():
    model = wrapped()
    with torch.inference_mode():
        model(features(4))
    before = compiled_frames()
    with preserved(model), torch.inference_mode():
        model(features(4))
    assert compiled_frames() == before
    for _ in range(2):
        with preserved(model), torch.inference_mode():
            model(features(7))
    assert compiled_frames() == before + 1


def test_sizes_that_change_in_our_calls_do_not_make_the_users_code_dynamic():
    def symbols(model: nn.Module, size: int) -> list[bool]:
        model(features(size))
        return dynamic

    dynamic: list[bool] = []

    def backend(graph, inputs):
        dynamic.append(any(isinstance(value, torch.SymInt) for value in inputs))
        return graph.forward

    model = torch.compile(TinyMLP().eval(), backend=backend)
    with preserved(model), torch.no_grad():
        for size in SIZES:
            model(features(size))
    assert any(dynamic), "what this is about"
    dynamic.clear()
    assert symbols(model, 4) == [False]


@pytest.mark.parametrize("way", WAYS)
def test_a_copy_to_change_is_plain_and_one_to_compare_is_compiled_for_itself(way):
    model, x = way(), features(4)
    expected = model(x)
    plain, alike = private_copy(model), private_copy(model, alike=True)
    assert not is_compiled(plain)
    assert [*plain.state_dict()] == [*TinyMLP().state_dict()]
    assert is_compiled(alike)
    before = compiled_frames()
    torch.testing.assert_close(plain(x), expected)
    assert compiled_frames() == before
    for size in SIZES:
        alike(features(size))
    before = compiled_frames()
    model(x)
    assert compiled_frames() == before
    private_copy(model, alike=True)(features(SIZES[-1]))
    assert compiled_frames() == before, "one copy for each recipe that is tried is no reason to compile it each time"
    assert all(a is not b for a, b in zip(alike.parameters(), model.parameters(), strict=True))
    assert [a.data_ptr() for a in uncompiled(model).parameters()] == [b.data_ptr() for b in model.parameters()]


def test_profile_and_trials_of_a_compiled_model(tmp_path, monkeypatch):
    """All that a notebook does in one sitting, at more shapes and modes than torch compiles one function for."""
    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", 2)
    monkeypatch.setattr(torch._dynamo.config, "fail_on_recompile_limit_hit", True)
    model, x = wrapped(), features(8)
    expected = model(x)
    study = Study(model, x, store=tmp_path / "history.db")
    assert study.workload.name == "TinyMLP"
    profile = study.profile(seconds=0.5)
    assert all(advice.technique != "compile" for advice in profile.advice)
    assert "torch.compile" not in profile.binds
    trial = study.trial("bf16", batch=(2, 4, 8), seconds=0.6)
    (note,) = [note for note in trial.notes if note.code == "compiled-original"]
    assert "bf16 + compile" in note.text
    control = study.trial("none", batch=(2, 8), seconds=0.4)
    assert not [note for note in control.notes if note.code == "compiled-original"]
    assert control.fidelity.value > 0.999
    assert all(point.compile_time is not None for point in control.points), "the control is compiled as well"
    study.trial("none", batch=(2, 8), threads=1, seconds=0.2)
    before = compiled_frames()
    torch.testing.assert_close(model(x), expected)
    assert compiled_frames() == before
    model(features(6))  # the second of two that there may be
    assert compiled_frames() == before + 1
    with pytest.raises(Exception, match="recompile_limit"), torch.no_grad():
        model(features(6))


def test_compile_is_not_offered_to_what_is_compiled():
    workload = Workload(wrapped(), features(4))
    check = make_check(workload)
    assert "already" in str(check(read_recipe("compile")))
    context = Context.of(workload)
    assert context.compiled
    assert check(read_recipe("bf16 + compile")) == check(read_recipe("compile(dynamic=true)"))
    assert "compile" in default_space(workload, check=check, cores=2)["runtime"]
    with pytest.raises(Exception, match="runs through torch.compile already"):
        run_trial(workload, read_recipe("compile"))


def test_modules_of_torch_jit_have_nothing_to_do_with_it():
    """Whose classes raise when asked for their forward."""
    x = torch.randn(2, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        models = torch.jit.script(nn.Linear(4, 4)), torch.jit.trace(nn.Sequential(nn.Linear(4, 4)), x)
    for model in models:
        before = model(x)
        assert not is_compiled(model)
        assert uncompiled(model) is model
        with preserved(model):
            model(x)
        assert torch.equal(model(x), before)
