"""A study: the verbs on one real model, what is kept, and everything a user can do wrong on the way."""

import gc
import json
import warnings
import weakref

import psutil
import pytest
import torch
from proofs import broken_in, proved
from torch import nn

from aimass_lab import Study, Workload, check
from aimass_lab.errors import BundleError, DoesNotFitError, InputError, ModelError, SpecError, StoreError, UnsupportedError
from aimass_lab.recipe import write_recipe
from aimass_lab.records import Bundle, Demand, HeldVariants, Plan, Profile, SearchResult, ServingSpec, TrialResult, from_json, to_json, was_interrupted
from aimass_lab.store import Store, StoreWarning
from aimass_lab.targets import make_target
from aimass_lab.workload import weight_bytes


class Net(nn.Module):
    def __init__(self, width=32):
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(8, width), nn.BatchNorm1d(width), nn.Linear(width, 4)

    def forward(self, x):
        return self.second(torch.relu(self.norm(self.first(x))))


@pytest.fixture
def study():
    torch.manual_seed(0)
    return Study(Net().eval(), torch.randn(4, 8))


def state(model):
    """Everything about a model that a measurement might change."""
    return (
        {name: tensor.clone() for name, tensor in model.state_dict().items()},
        [module.training for module in model.modules()],
        [parameter.grad for parameter in model.parameters()],
        [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.modules()],
        torch.get_rng_state(),
    )


def assert_same_state(model, before):
    after = state(model)
    assert all(torch.equal(before[0][name], after[0][name]) for name in before[0])
    assert before[1:4] == after[1:4]
    assert torch.equal(before[4], after[4])


def test_every_verb_leaves_the_model_as_it_was(study, tmp_path):
    study.model.train()
    before = state(study.model)
    study.profile(seconds=0.3)
    study.demand()
    study.trial("bf16", seconds=0.3)
    study.search(recipe=("none", "channels_last"), seconds=1)
    study.plan(rate=100, p99="500ms")
    study.spec(rate=100, p99="500ms")
    study.bundle(out=str(tmp_path / "bundle"))
    assert_same_state(study.model, before)


@pytest.mark.parametrize(
    ("verb", "arguments"),
    [
        ("spec", {"rate": 50, "p99": "1s"}),
        ("bundle", {"rate": 50, "p99": "1s"}),
        ("schedule", {"job": {"night": "batch(items=100, by=10min)"}}),
    ],
)
def test_a_folder_that_cannot_be_is_told_before_anything_is_measured(study, tmp_path, verb, arguments):
    (tmp_path / "file").write_text("")
    with pytest.raises((InputError, BundleError), match=f"cannot write .*: {tmp_path}/file is no folder"):
        getattr(study, verb)(**arguments, out=str(tmp_path / "file" / "below"))
    assert study.results == []


def test_a_quota_that_is_none_is_told_before_anything_is_measured(study):
    name = study.workload.name
    with pytest.raises(InputError, match="quota lab=many"):
        study.allocate(rate={name: "50"}, p99={name: "1s"}, quota={"lab": "many"})
    assert study.results == []


def test_what_was_found_is_kept_in_order_and_in_the_history(study):
    study.demand()
    study.profile(seconds=0.3)
    study.trial("none", seconds=0.3)
    plan = study.plan(rate=100, p99="500ms")
    kinds = [Demand, Profile, TrialResult, Plan]
    assert [type(result) for result in study.results] == kinds
    runs = study.store.runs()
    assert [run.verb for run in runs] == ["plan", "trial", "profile", "demand"]
    assert study.store.get(runs[0].id)[1] == plan


def test_a_plan_uses_the_profile_that_is_there_and_makes_one_if_none_is(study):
    study.plan(rate=100, p99="500ms")
    study.plan(rate=200, p99="500ms")
    assert [type(result).__name__ for result in study.results] == ["Profile", "Plan", "Plan"]


def test_a_spec_for_the_same_target_or_for_none_that_is_named_is_about_the_same_plan(study):
    with pytest.raises(InputError, match="nothing is planned yet"):
        study.spec()
    with pytest.raises(InputError, match="belong together"):
        study.spec(rate=100)
    plan = study.plan(rate=100, p99="500ms")
    for spec in (study.spec(rate=100, p99="500ms"), study.spec()):
        assert isinstance(spec, ServingSpec)
        assert (spec.replicas.value, spec.max_batch_size.value) == (plan.replicas.value, plan.max_batch_size.value)
        assert (spec.requests_per_s.value, spec.latency_p99_target.value) == (100, 0.5)
    assert sum(isinstance(result, Plan) for result in study.results) == 1


def test_a_target_that_cannot_be_held_gives_no_spec_but_says_what_binds(study):
    with pytest.raises(InputError, match="not feasible"):
        study.spec(rate=100, p99="1ns")


def test_a_card_that_no_catalogue_has_goes_all_the_way_to_manifests(tmp_path, monkeypatch):
    """Without figures of it, what to give is said; with latencies of the user's own it is planned, specified, allocated and exported."""
    table = tmp_path / "devices.toml"
    monkeypatch.setenv("AIMASS_DEVICES", str(table))
    study = Study(Net(), torch.randn(4, 8), name="net", store=tmp_path / "store.db")
    table.write_text('[card]\nkind = "fpga"\n')
    with pytest.raises(UnsupportedError) as caught:
        study.spec(rate=100, p99="50ms", device="card")
    assert 'latency = { "net" = {' in str(caught.value)
    known = '[card]\nkind = "fpga"\nprice_usd_per_h = 1.2\nlatency = { net = { "1" = "2ms", "8" = "9ms" } }\n'
    table.write_text(known)
    with pytest.raises(SpecError, match="under which name a cluster offers card"):
        study.spec(rate=100, p99="50ms", device="card", out=str(tmp_path / "manifests"))
    table.write_text(f'{known}resource = "vendor.com/card"\nnode_selector = {{ card = "yes" }}\n')
    spec = study.spec(rate=100, p99="50ms", device="card", out=str(tmp_path / "manifests"))
    assert (spec.accelerators.value, spec.resource, spec.node_selector) == (1, "vendor.com/card", {"card": "yes"})
    assert spec.latency_p99.weakest_source != "measured"
    assert check(str(tmp_path / "manifests")).passed
    allocation = study.allocate(rate={"net": "100"}, p99={"net": "50ms"}, node="card", count={"card": "3"})
    assert (allocation.status, allocation.models[0].node_type) == ("all served", "card")


def test_a_spec_is_written_where_it_is_asked_for(study, tmp_path):
    study.spec(rate=100, p99="500ms", out=str(tmp_path / "manifests"))
    assert list((tmp_path / "manifests").rglob("*.yaml"))
    assert check(str(tmp_path / "manifests")).passed


def test_devices_that_are_not_here_are_planned_with_estimates_and_say_so(study):
    plan = study.plan(rate=100, p99="500ms", device=("l4",))
    assert plan.device == "l4"
    assert plan.latency_p99.weakest_source in ("estimated", "assumed", "datasheet")
    measured = study.plan(rate=100, p99="500ms")
    assert measured.device == "cpu"


# --- variants -------------------------------------------------------------------------------


def test_a_variant_can_be_called_like_the_model_and_undo_gives_its_memory_back(study):
    study.trial("bf16", seconds=0.3)
    x = study.workload.call.args[0]
    assert study.variants.names == ("bf16",)
    assert torch.allclose(study.variant("bf16")(x).float(), study.model(x), atol=0.05)
    copy = weakref.ref(study.variant("bf16"))
    assert study.undo() == "bf16"
    gc.collect()
    assert copy() is None
    assert study.undo() is None
    with pytest.raises(InputError, match="was not tried"):
        study.variant("bf16")


def test_variants_show_their_memory_and_are_released_on_demand(study):
    tried = study.trial("none", seconds=0.1)
    study.trial("bf16", seconds=0.1)
    held = study.variants
    assert [item.name for item in held.items] == ["none", "bf16"]
    assert [item.memory.value for item in held.items] == [weight_bytes(study.variant(name)) for name in held.names]
    assert held.items[0].memory.value == weight_bytes(study.model)
    assert held.memory.value == sum(item.memory.value for item in held.items)
    assert held.items[0].verdict == tried.verdict
    assert from_json(to_json(held), HeldVariants) == held
    assert study.release("none").memory.value == held.items[1].memory.value
    assert study.variants.names == ("bf16",)
    with pytest.raises(InputError, match="'none' was not tried in this study, or was released"):
        study.release("none")
    assert study.release().names == ()
    assert study.variants.memory.value == 0
    assert study.release().names == ()


def test_a_recipe_is_found_however_it_is_spaced(study):
    study.trial("low_rank( ratio = 0.5 )+bf16", seconds=0.1)
    name = "low_rank(ratio=0.5) + bf16"
    assert study.variants.names == (name,)
    assert study.variant("low_rank(ratio=0.5)+bf16") is study.variant(name)
    assert study.recipe(name) == study.results[-1].setting.recipe
    assert [step.technique for step in study.recipe(name).steps] == ["low_rank", "bf16"]


@pytest.mark.parametrize("ending", ["yaml", "json"])
def test_a_recipe_travels_as_a_file(study, tmp_path, ending):
    path = tmp_path / f"small.{ending}"
    study.trial("low_rank(ratio=0.5) + bf16", seconds=0.1)
    write_recipe(study.recipe("low_rank(ratio=0.5) + bf16"), path)
    again = Study(study.model, study.workload.call)
    assert again.trial(str(path), seconds=0.1).setting.recipe == study.results[-1].setting.recipe
    x = study.workload.call.args[0]
    assert torch.equal(again.variant(str(path))(x), study.variant(str(path))(x))


def test_options_belong_to_a_single_technique(study):
    found = study.trial("low_rank", option={"ratio": "0.5"}, seconds=0.1)
    assert found.setting.recipe.name == "low_rank(ratio=0.5)"
    for recipe, count in (("low_rank + bf16", 2), ("none", 0)):
        with pytest.raises(InputError, match=f"which has {count} steps"):
            study.trial(recipe, option={"ratio": "0.5"})
    with pytest.raises(InputError, match="has no option 'rotio'"):
        study.trial("low_rank", option={"rotio": "0.5"})


def test_a_second_trial_of_a_recipe_uses_the_copy_that_is_there_unless_the_model_was_trained(study):
    study.trial("bf16", seconds=0.1)
    copy = study.variant("bf16")
    study.trial("bf16", batch=(1, 2), seconds=0.1)
    assert study.variant("bf16") is copy
    with torch.no_grad():
        study.model.first.weight += 1
    assert study.trial("bf16", seconds=0.1).fidelity.value > 0.999
    assert study.variant("bf16") is not copy
    assert study.variants.names == ("bf16",)


def test_a_trial_takes_batch_sizes_threads_and_callers(study):
    found = study.trial("none", batch=(1, 8), threads=1, instances=2, seconds=0.4)
    assert [point.batch_size for point in found.points] == [1, 8]
    assert (found.setting.threads, found.setting.instances, found.environment.threads) == (1, 2, 1)
    assert study.trial("none", batch=3, seconds=0.1).batch_size == 3


def test_what_may_be_repeated_may_be_given_once(study):
    trial, search = study.trial("none", batch=2, seconds=0.2), study.search(recipe="none", runtime="eager", batch=1, trials=1, seconds=5)
    assert [point.batch_size for point in trial.points] == [2]
    assert [candidate.setting.recipe.name for candidate in search.candidates] == ["none"]
    assert study.plan(rate=10, p99="1s", device="l4").device == "l4"
    with pytest.raises(InputError, match="batch: 'many' is not a whole number"):
        study.trial("none", batch="many")


def test_a_trial_that_fails_leaves_the_variants_as_they_were(study):
    study.trial("bf16", seconds=0.1)
    with pytest.raises(UnsupportedError):
        study.trial("channels_last", seconds=0.1)
    with pytest.raises(InputError):
        study.trial("bf16", batch=(0,), seconds=0.1)
    assert study.variants.names == ("bf16",)
    assert study.variant("bf16")(study.workload.call.args[0]).shape == (4, 4)


def test_memory_comes_back_after_thirty_tries():
    study = Study(nn.Sequential(nn.Linear(1024, 2048), nn.ReLU(), nn.Linear(2048, 256)).eval(), torch.randn(4, 1024))
    study.trial("bf16", threads=1, seconds=0.05)
    study.release()
    before = psutil.Process().memory_info().rss
    for number in range(30):
        study.trial("bf16" if number % 2 else "none", threads=1, seconds=0.02)
        study.release()
    gc.collect()
    assert psutil.Process().memory_info().rss < 1.05 * before


def test_a_search_finds_what_is_there_and_names_the_best(study):
    result = study.search(recipe=("none", "channels_last"), batch=(1, 4), seconds=3)
    assert isinstance(result, SearchResult)
    tried = {(candidate.setting.recipe.name, candidate.setting.batch_size) for candidate in result.candidates}
    assert tried <= {(t, b) for t in ("none", "channels_last") for b in (1, 4)}
    assert len(tried) >= 2


# --- what can go wrong ----------------------------------------------------------------------


def test_a_batch_that_cannot_fit_is_refused_before_anything_is_allocated(study):
    before = psutil.Process().memory_info().rss
    with pytest.raises(DoesNotFitError, match="does not fit|needs"):
        study.profile(batch=2**40)
    assert psutil.Process().memory_info().rss - before < 200 * 2**20
    demand = study.demand(batch=2**40)
    assert demand.fits is False


class Hungry(nn.Module):
    """Needs far more memory than there is, from the second item on, and not before it is really called."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        if len(x) > 1:
            torch.empty(2**50, dtype=torch.uint8)
        return self.linear(x)


def test_a_batch_that_is_forced_fails_and_the_model_still_works():
    study = Study(Hungry(), torch.randn(1, 4))
    study.profile(seconds=0.3)
    before = psutil.Process().memory_info().rss
    with pytest.raises(DoesNotFitError):
        study.profile(batch=2, force=True)
    gc.collect()
    assert psutil.Process().memory_info().rss - before < 100 * 2**20
    assert study.model(torch.randn(1, 4)).shape == (1, 4)


def test_an_error_that_is_kept_holds_nothing_of_what_did_not_fit():
    """As a notebook keeps its last one."""
    alive = []

    class Seen(Hungry):
        def forward(self, x):
            if len(x) > 1:
                alive.append(weakref.ref(x))
            return super().forward(x)

    study = Study(Seen(), torch.randn(1, 4))
    kept = []
    for verb in (lambda: study.profile(batch=2, force=True), lambda: study.trace(batch=2), lambda: study.trial("none", batch=2)):
        with pytest.raises(DoesNotFitError) as caught:
            verb()
        kept.append(caught.value)
    gc.collect()
    assert len(alive) >= len(kept)
    assert all(ref() is None for ref in alive)


def test_wrong_shapes_name_the_shapes(study):
    with pytest.raises(ModelError, match=r"float32\[2, 9\].*2x9 and 8x32"):
        Study(study.model, torch.randn(2, 9)).profile()
    with pytest.raises(ModelError, match=r"float32\[2, 9\]"):
        Study(study.model, torch.randn(2, 9)).demand()


def test_a_model_that_raises_keeps_its_own_error():
    class Broken(nn.Module):
        def forward(self, x):
            raise KeyError("adapter")

    study = Study(Broken(), torch.randn(1, 2))
    for verb in (study.profile, study.demand, lambda: study.trial("none")):
        with pytest.raises(ModelError, match="KeyError") as caught:
            verb()
        assert isinstance(caught.value.__cause__, KeyError)


class NotANumber(nn.Linear):
    def forward(self, x):
        return super().forward(x) / 0


def test_outputs_that_are_no_numbers_are_noted_and_never_bundled(tmp_path):
    study = Study(NotANumber(4, 4), torch.randn(2, 4))
    assert "W-NAN" in {note.code for note in study.profile(seconds=0.3).notes}
    with pytest.raises(BundleError, match="NaN|not finite|Inf"):
        study.bundle(out=str(tmp_path / "bundle"))
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("inputs", "message"),
    [(None, "no example inputs"), ((i for i in range(2)), "only once"), ([torch.ones(1)], "cannot be used"), ({"x": 1}, "no tensor"), ("text", "tokenizer")],
)
def test_inputs_that_cannot_be_used_say_what_to_pass(inputs, message):
    with pytest.raises(InputError, match=message) as caught:
        Study(nn.Linear(2, 2), inputs)
    assert caught.value.help


def test_a_model_must_be_a_module():
    with pytest.raises(InputError, match="is a function, not a torch.nn.Module"):
        Study(lambda x: x, torch.ones(1))
    with pytest.raises(InputError, match="metric"):
        Study(nn.Linear(2, 2), torch.ones(1, 2), data=(torch.ones(1, 2), torch.ones(1)))
    with pytest.raises(InputError, match="already has its inputs"):
        Study(Workload(nn.Linear(2, 2), torch.ones(1, 2)), torch.ones(1, 2))


def test_inputs_of_another_device_are_named():
    model = nn.Linear(2, 2, device="meta")
    assert Study(model, torch.ones(1, 2)).demand().flops.value == 2 * 2 * 2
    with pytest.raises(InputError, match="not attached"):
        Study(nn.Linear(2, 2), torch.ones(1, 2)).profile(device="cuda:7")


def test_a_result_is_returned_even_if_the_history_cannot_be_written(study, monkeypatch):
    def full(*args, **kwargs):
        raise StoreError("the disk is full")

    monkeypatch.setattr(Store, "add", full)
    with pytest.warns(StoreWarning, match="the disk is full"):
        demand = study.demand()
    assert study.results == [demand]


@pytest.mark.parametrize("existing", ["folder", "file"])
def test_a_bundle_does_not_overwrite_what_it_did_not_write(study, tmp_path, existing):
    out = tmp_path / "thesis"
    if existing == "folder":
        out.mkdir()
        (out / "chapter1.tex").write_text("words")
    else:
        out.write_text("words")
    for force in (False, True):
        with pytest.raises(BundleError, match="overwrite|replace"):
            study.bundle(out=str(out), force=force)
    assert (out / "chapter1.tex" if existing == "folder" else out).read_text() == "words"


@pytest.mark.parametrize(("rate", "p99", "extra"), [(0, 1, {}), (-4, 1, {}), (4, 0, {}), (4, 1, {"headroom": -1}), (4, 1, {"max_replicas": 0})])
def test_targets_that_make_no_sense_are_refused(rate, p99, extra):
    with pytest.raises(InputError):
        make_target(rate, p99, **extra)


def test_an_interrupt_keeps_what_was_found(study):
    seen = []

    def interrupt(share, text):
        seen.append(text)
        if len(seen) > 3:
            raise KeyboardInterrupt

    study.progress = interrupt
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            record = study.search(recipe=("none", "channels_last"), batch=(1, 2, 4, 8), seconds=20)
            assert record.stopped
        except KeyboardInterrupt:
            record = None
    study.progress = lambda share, text: None
    assert study.demand().flops.value > 0
    assert study.model(study.workload.call.args[0]).shape == (4, 4)


def interrupt_once(study, text):
    """Ctrl-C as progress says `text`."""

    def progress(share, said):
        if text in said:
            study.progress = lambda share, said: None
            raise KeyboardInterrupt

    study.progress = progress


def test_an_interrupt_within_the_profile_of_a_plan_ends_the_plan(study):
    interrupt_once(study, "measuring what the device reaches")
    with pytest.raises(KeyboardInterrupt):
        study.plan(rate=50, p99="2s")
    (half,) = study.results
    assert (type(half), was_interrupted(half.notes)) == (Profile, True)
    plan = study.plan(rate=50, p99="2s")
    whole = study.results[1]
    assert not was_interrupted(whole.notes)
    assert len(whole.ladder) > len(half.ladder)
    assert study.results[-1] is plan


def test_no_plan_is_founded_on_a_profile_that_was_cut_short(study):
    interrupt_once(study, "measuring what the device reaches")
    half = study.profile(seconds=1)
    assert was_interrupted(half.notes)
    study.plan(rate=50, p99="2s")
    assert [type(record) for record in study.results[:2]] == [Profile, Profile]
    assert not was_interrupted(study.results[1].notes)


# --- the whole way --------------------------------------------------------------------------


@pytest.mark.slow
def test_the_whole_way_ends_in_a_proof(tmp_path):
    torch.manual_seed(0)
    study = Study(Net(64), torch.randn(16, 8), name="small net")
    plan = study.plan(rate=50, p99="2s")
    assert plan.feasible
    bundle = study.bundle(out=str(tmp_path / "bundle"), rate=50, p99="2s")
    assert isinstance(bundle, Bundle)
    assert {promise.name for promise in bundle.promises} >= {"errors", "fidelity", "latency_p99", "throughput"}
    proof = proved(lambda: check(str(tmp_path / "bundle"), seconds=2), broken_in)
    assert proof.passed, proof
    assert list(dict.fromkeys(run.verb for run in Store().runs()))[:2] == ["check", "bundle"]
    assert {promise.name for promise in bundle.promises if promise.measured} >= {"fidelity", "latency_p99", "memory", "startup"}
    assert study.spec(rate=50, p99="2s").startup_time.source == "measured"  # by the bundle; it was assumed before
    spec = json.loads((tmp_path / "bundle" / "spec.json").read_text())
    (startup,) = (promise.measured for promise in bundle.promises if promise.name == "startup")
    assert (spec["startup_time"]["source"], spec["startup_time"]["value"]) == ("measured", startup.value)  # and in the bundle's own, too
    assert spec["requests_per_s"] == {"value": 50.0, "unit": "request/s", "source": "user", "method": "asked for"}


def test_what_was_tried_can_be_planned_specified_and_bundled(tmp_path):
    torch.manual_seed(0)
    study = Study(nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 10)), torch.randn(16, 64), name="wide")
    study.trial("int8_weight_only", seconds=0.3)
    original = study.plan(rate=50, p99="500ms")
    shrunk = study.plan(rate=50, p99="500ms", technique="int8_weight_only")
    assert (original.technique, shrunk.technique) == ("none", "int8_weight_only")
    assert shrunk.model.weight_bytes < original.model.weight_bytes / 2
    assert shrunk.service_time != original.service_time
    spec = study.spec(rate=50, p99="500ms", technique="int8_weight_only")
    assert spec.recipe.name == "int8_weight_only"
    bundle = study.bundle(out=str(tmp_path / "bundle"), rate=50, p99="500ms", technique="int8_weight_only")
    assert json.loads((tmp_path / "bundle" / "spec.json").read_text())["recipe"]["steps"][0]["technique"] == "int8_weight_only"
    fidelity = next(promise for promise in bundle.promises if promise.name == "fidelity")
    assert 2e-4 < fidelity.limit.value < 0.1  # against the original, from which eight bits differ


def test_what_was_undone_is_made_again_where_it_can_be(study):
    study.trial("int8_weight_only", seconds=0.3)
    study.plan(rate=50, p99="500ms", technique="int8_weight_only")
    study.undo()
    assert study.spec(rate=50, p99="500ms", technique="int8_weight_only").recipe.name == "int8_weight_only"
    with pytest.raises(InputError, match="no technique called 'int9'"):
        study.plan(rate=50, p99="500ms", technique="int9")


def test_nothing_in_a_spec_for_another_device_claims_to_be_measured_there(study, tmp_path):
    study.profile(seconds=0.3)
    study.bundle(out=str(tmp_path / "bundle"))
    here, elsewhere = study.spec(rate=100, p99="500ms"), study.spec(rate=100, p99="500ms", device=("l4",))
    assert here.environment is not None
    assert {here.cpu_cores.source, here.startup_time.source} == {"measured"}
    assert elsewhere.device == "l4"
    assert elsewhere.environment is None
    assert "measured" not in {elsewhere.cpu_cores.weakest_source, elsewhere.startup_time.weakest_source, elsewhere.memory_bytes.weakest_source}
