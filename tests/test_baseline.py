"""What got worse since a baseline: beyond both spreads and the tolerance, and not because of another machine."""

import json

import msgspec
import pytest
from specs import make, number

from aimass_lab import check
from aimass_lab.baseline import compare_with_baseline, figures_of
from aimass_lab.errors import InputError
from aimass_lab.export import read_exporter
from aimass_lab.export.files import write_files
from aimass_lab.frontends.cli import main
from aimass_lab.frontends.render import render_text
from aimass_lab.records import Bundle, Check, Environment, Number, Promise, any_from_json, to_json
from aimass_lab.spec import write_spec
from aimass_lab.store import Store


def promised(**values):
    """A proof's figures: name -> measured value, or (value, low, high)."""
    units = {"latency_p99": ("s", "<="), "throughput": ("request/s", ">="), "memory": ("B", "<="), "errors": ("request", "=="), "fidelity": ("ratio", "<=")}
    promises = []
    for name, value in values.items():
        unit, relation = units[name]
        spread = value if isinstance(value, tuple) else (value, None, None)
        interval = None if spread[1] is None else spread[1:]
        limit = Number(value=0, unit=unit, source="user", method="asked for")
        promises.append(Promise(name=name, relation=relation, limit=limit, measured=number(spread[0], unit, interval=interval), passed=True))
    return Check(subject="bundle", passed=True, promises=tuple(promises))


def verdicts(before, after, tolerance=0.05):
    found = compare_with_baseline(after, before, after, baseline="base", tolerance=tolerance)
    return found.passed, {change.name: change.verdict for change in found.changes}


@pytest.mark.parametrize(
    ("before", "now", "verdict"),
    [
        ((0.020, 0.019, 0.021), (0.0205, 0.0195, 0.022), "same"),  # the spreads overlap
        ((0.020, 0.019, 0.021), (0.023, 0.0215, 0.024), "same"),  # surely more, surely by 2 % at least: within the tolerance
        ((0.020, 0.019, 0.021), (0.026, 0.025, 0.027), "worse"),  # 19 % at least
        ((0.020, 0.019, 0.021), (0.017, 0.016, 0.018), "better"),
        (0.020, 0.030, "same"),  # measured once each: a quarter may be chance, on both sides
        (0.020, 0.036, "worse"),
    ],
)
def test_a_latency_is_worse_when_even_the_best_case_loses_more_than_the_tolerance(before, now, verdict):
    passed, found = verdicts(promised(latency_p99=before), promised(latency_p99=now))
    assert (passed, found) == (verdict != "worse", {"latency_p99": verdict})


def test_of_throughput_less_is_worse_and_of_errors_any():
    before = promised(throughput=(400, 390, 410), errors=0, memory=10**9)
    assert verdicts(before, promised(throughput=(350, 340, 360), errors=0, memory=10**9)) == (
        False,
        {"throughput": "worse", "errors": "same", "memory": "same"},
    )
    assert verdicts(before, promised(throughput=(450, 440, 460), errors=1, memory=10**9))[1] == {"throughput": "better", "errors": "worse", "memory": "same"}
    assert verdicts(before, promised(throughput=(350, 340, 360), errors=0, memory=10**9), tolerance=0.2)[0] is True


def test_the_ratio_has_the_interval_that_both_spreads_leave():
    (change,) = compare_with_baseline(
        now := promised(latency_p99=(0.030, 0.027, 0.033)), promised(latency_p99=(0.020, 0.018, 0.024)), now, baseline="base", tolerance=0
    ).changes
    assert change.ratio.value == pytest.approx(1.5)
    assert change.ratio.interval == pytest.approx((0.027 / 0.024, 0.033 / 0.018))


def test_what_was_measured_under_other_work_is_not_judged():
    quiet, better, worse = promised(latency_p99=0.02), promised(latency_p99=0.01), promised(latency_p99=0.05)
    assert verdicts(quiet, noisy(worse)) == (None, {"latency_p99": "not judged"})
    for now in (better, quiet, worse, noisy(worse)):
        assert verdicts(noisy(quiet), now) == (None, {"latency_p99": "not judged"})


def test_a_time_that_holds_beside_other_work_holds_and_is_not_called_better():
    quiet, better = promised(latency_p99=0.02, fidelity=0.01), promised(latency_p99=0.01, fidelity=0.005)
    assert verdicts(quiet, noisy(quiet))[1] == {"latency_p99": "same", "fidelity": "not judged"}
    assert verdicts(quiet, noisy(better))[1] == {"latency_p99": "same", "fidelity": "not judged"}


def noisy(check):
    """As measured while other work had the machine."""
    promises = (msgspec.structs.replace(p, measured=msgspec.structs.replace(p.measured, quality="noisy")) for p in check.promises)
    return msgspec.structs.replace(check, promises=tuple(promises))


def test_another_machine_is_not_blamed_for_times_and_still_for_bytes():
    here = make().environment
    elsewhere = msgspec.structs.replace(here, device_name="Another CPU")
    assert isinstance(elsewhere, Environment)
    slower = make(environment=elsewhere, startup_time=number(60), memory_bytes=number(9 * 2**30, "B"))
    found = compare_with_baseline(Check(subject="spec", passed=True), make(), slower, baseline="base", tolerance=0.05)
    assert {c.name: c.verdict for c in found.changes if c.verdict != "same"} == {"startup_time": "not judged", "memory_bytes": "worse"}
    assert "W-ENVIRONMENT" in {finding.code for finding in found.findings}
    assert found.passed is False


def test_what_was_asked_is_no_figure_and_a_difference_is_told():
    assert not {"requests_per_s", "latency_p99_target", "scale_at", "max_replicas"} & set(figures_of(make()))
    found = compare_with_baseline(
        Check(subject="spec", passed=True), make(), make(requests_per_s=number(800, "request/s", "user")), baseline="base", tolerance=0
    )
    assert [f.text for f in found.findings if f.code == "W-ASKED"] == ["what was asked differs: 400 before, 800 now"]


def test_results_of_two_kinds_are_compared_by_their_common_figures_and_it_says_so():
    spec, proof = make(), promised(latency_p99=0.02, memory=10**9)
    bundle = Bundle(
        folder="b", name="b", version="1", model=spec.model, format="onnx", size_bytes=number(1, "B"), num_files=1, promises=proof.promises, digest="d"
    )
    found = compare_with_baseline(proof, bundle, proof, baseline="base", tolerance=0.05)
    assert {change.verdict for change in found.changes} == {"same"}
    assert ["the baseline is a Bundle and what is checked a Check" in finding.text for finding in found.findings if finding.code == "W-KINDS"] == [True]
    alike = compare_with_baseline(proof, proof, proof, baseline="base", tolerance=0.05)
    assert "W-KINDS" not in [finding.code for finding in alike.findings]


def test_a_check_that_failed_anyway_stays_failed_and_one_that_was_not_judged_too():
    same = promised(latency_p99=0.02)
    for passed in (False, None):
        was = msgspec.structs.replace(same, passed=passed)
        assert compare_with_baseline(was, same, was, baseline="base", tolerance=0.05).passed is passed


# --- as a user calls it ------------------------------------------------------------------


def test_a_spec_against_an_earlier_one_on_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("AIMASS_STORE", str(tmp_path / "store.db"))
    write_spec(make(), tmp_path / "base.yaml")
    write_spec(make(memory_bytes=number(900 * 2**20, "B")), tmp_path / "now.json")
    words = ["check", str(tmp_path / "now.json"), "--baseline", str(tmp_path / "base.yaml")]
    assert main(words) == 1
    said = capsys.readouterr().out
    assert "worse" in said
    assert "memory_bytes" in said
    assert main([*words, "--tolerance", "0.5"]) == 0
    capsys.readouterr()
    assert main([*words, "--json"]) == 1
    record = any_from_json(capsys.readouterr().out)
    assert {c.name for c in record.changes if c.verdict == "worse"} == {"memory_bytes"}
    assert json.loads(to_json(record))["baseline"].endswith("base.yaml")


def test_manifests_are_compared_by_the_spec_that_they_carry(tmp_path, monkeypatch):
    monkeypatch.setenv("AIMASS_STORE", str(tmp_path / "store.db"))
    write_files(tmp_path / "now", read_exporter("kubernetes").export(make(cpu_cores=number(3, "core"))))
    write_files(tmp_path / "base", read_exporter("kubernetes").export(make()))
    found = check(str(tmp_path / "now"), baseline=str(tmp_path / "base"))
    assert {c.name for c in found.changes if c.verdict == "worse"} == {"cpu_cores"}
    assert "cpu_cores" in render_text(found).splitlines()[1]


def test_a_record_against_a_run_of_the_history(tmp_path, monkeypatch):
    monkeypatch.setenv("AIMASS_STORE", str(tmp_path / "store.db"))
    run = Store().add("check", promised(latency_p99=0.02))
    path = tmp_path / "now.json"
    path.write_text(to_json(promised(latency_p99=0.06)))
    found = check(str(path), baseline=str(run))
    assert (found.passed, found.baseline, found.changes[0].verdict) == (False, f"run {run}", "worse")
    assert check(str(path), baseline=str(run), tolerance=1.0).passed


@pytest.mark.parametrize(
    ("baseline", "options", "message"),
    [
        ("nowhere.json", {}, "is not there"),
        ("notes.json", {}, "is there, and is no record"),
        ("old.json", {}, "a record of another version"),
        ("base.yaml", {"tolerance": -1}, "tolerance: -1 is not a share of at least 0"),
        ("other.json", {}, "no figure in common"),
    ],
)
def test_a_baseline_that_is_none_says_why(tmp_path, monkeypatch, baseline, options, message):
    monkeypatch.setenv("AIMASS_STORE", str(tmp_path / "store.db"))
    write_spec(make(), tmp_path / "base.yaml")
    (tmp_path / "notes.json").write_text('{"a": 1}')
    (tmp_path / "old.json").write_text('{"record": "plan", "rate": 3}')
    (tmp_path / "other.json").write_text(to_json(promised(errors=0)))
    with pytest.raises(InputError, match=message):
        check(str(tmp_path / "base.yaml"), baseline=str(tmp_path / baseline), **options)
