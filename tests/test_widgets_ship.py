"""The kernel's side of the Plan and Ship views: the lines that they run, what they are sent, and the checks that are kept."""

import time
from pathlib import Path

import psutil
import pytest
import torch
from models import TinyCNN, TinyMLP, TinyTransformer

from aimass_lab import Study, check
from aimass_lab.bundle import writer
from aimass_lab.errors import InputError
from aimass_lab.frontends.background import END_STATES, Worker
from aimass_lab.frontends.lines import read_line
from aimass_lab.frontends.widgets.facts.base import FACTS
from aimass_lab.frontends.widgets.panel import Panel, subject_of
from aimass_lab.records import Check, Plan, Rotation, ServingSpec

PATIENCE_S = 120


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """A study that has measured and planned; the tests find out more with it."""
    torch.manual_seed(0)
    study = Study(TinyMLP(), torch.randn(4, 8), name="mlp", store=tmp_path_factory.mktemp("store") / "history.db")
    study.profile(seconds=0.2)
    study.plan(rate=50, p99="1s", price={"cpu": 0.5})
    return study


@pytest.fixture
def panel_of():
    """Makes a panel as a notebook does; all are closed at the end."""
    made = []

    def make(study, **names):
        made.append(Panel(study.workbench(view="ship"), Worker(), {"study": study, **names}))
        return made[-1]

    yield make
    for panel in made:
        panel.close()


def wait_for(condition):
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.01)


def run(panel, *lines, state="done"):
    """Let lines run beside the notebook until the panel has heard how they ended."""
    jobs = panel.run(*lines)
    wait_for(lambda: {job.number for job in jobs} <= {job["number"] for job in panel.jobs if job["state"] in END_STATES})
    assert [job.state for job in jobs] == [state] * len(jobs), [job.text for job in jobs]
    return jobs


def test_a_line_may_name_further_models_and_nothing_else():
    verb, values = read_line("study.rotate(beside=(other, third), policy=('fcfs',), seconds=1)")
    assert (verb.name, values["beside"]) == ("rotate", ("other", "third"))
    assert read_line("study.rotate(beside=other)")[1]["beside"] == ("other",)
    for line in ("study.rotate(beside=(other(),))", "study.rotate(beside=(a.b,))", "study.plan(rate=rate, p99='1s')"):
        with pytest.raises(InputError, match="not a line"):
            read_line(line)


def test_prices_in_a_line_are_those_of_the_plan(planned):
    verb, values = read_line('study.plan(rate=50, p99="1s", price={"cpu": 0.25}, budget=2)')
    plan = verb.function(planned, **values)
    assert plan.cost.value == pytest.approx(0.25 * plan.replicas.value)
    assert plan.target.budget.value == 2


def test_another_study_stands_beside_this_one_by_its_variable(planned, panel_of):
    other = Study(TinyMLP(), torch.randn(2, 8), name="other")
    panel = panel_of(planned, other=other)
    assert subject_of(planned, {"study": planned, "other": other, "x": 1})["others"] == ["other"]
    (job,) = run(panel, "study.rotate(beside=(other,), policy=('fcfs', 'round_robin'), load=0.3, seconds=0.2)")
    assert isinstance(job.result, Rotation)
    turns = panel.facts["turns"]
    assert turns["models"] == ["mlp", "other"]
    assert {row[1] for run in turns["runs"] for row in run["turns"]["run"]} == {0, 1}
    with pytest.raises(InputError, match="no Study called 'nobody'"):
        panel.run("study.rotate(beside=(nobody,))")


def test_a_spec_is_sent_with_its_files_and_what_a_check_finds_in_them(planned, panel_of, tmp_path):
    panel = panel_of(planned)
    folder = tmp_path / "deploy"
    run(panel, f'study.spec(rate=50, p99="1s", out={str(folder)!r})', f"aimass_lab.check({str(folder)!r})")
    assert isinstance(planned.results[-2], ServingSpec)
    checked = planned.results[-1]
    assert isinstance(checked, Check)
    sent = panel.facts["export"]
    assert {path.name: path.read_text() for path in folder.iterdir()} == sent["files"]
    assert [f["code"] for f in sent["findings"]] == [f.code for f in checked.findings]
    assert (panel.facts["checks"]["manifests"]["subject"], panel.facts["checks"]["proof"]) == (str(folder), None)
    run(panel, 'study.spec(rate=50, p99="1s", format="triton")')
    assert any(name.endswith("config.pbtxt") for name in panel.facts["export"]["files"])


def test_a_bundle_is_proved_row_by_row_and_a_check_in_a_cell_is_seen_too(planned, panel_of, tmp_path, monkeypatch):
    others = set(psutil.Process().children(recursive=True))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(writer, "MEASURE_BUDGET_S", 0.1)
    panel = panel_of(planned)
    seen = []
    panel.observe(lambda change: seen.append(change["new"].get("check")), "records")
    run(panel, 'study.bundle(out="served", rate=20, p99="2s", format="onnx")', 'aimass_lab.check("served", seconds=1)')
    live = [record for record in seen if record and record["index"] is None]
    filled = [{p["name"] for p in record["promises"] if p.get("measured")} for record in live]
    assert filled[0] == {"startup"}
    assert len(filled[-1]) == len(live[-1]["promises"])
    done = planned.results[-1]
    assert isinstance(done, Check)
    assert panel.records["check"]["index"] == panel.facts["checks"]["proof"]["index"] == len(planned.results) - 1
    before = len(planned.results)
    check(str(Path("served") / "spec.json"))  # of a file, not of the bundle that it lies in
    assert len(planned.results) == before
    again = check("served", seconds=0.5)
    assert planned.results[-1] == again

    del seen[:]
    (stopped,) = panel.run('aimass_lab.check("served", seconds=60)')
    wait_for(lambda: seen and seen[-1] and seen[-1]["index"] is None)
    panel.worker.stop(stopped.number)
    wait_for(lambda: panel.records["check"]["index"] is not None)
    assert stopped.state == "stopped"
    assert set(psutil.Process().children(recursive=True)) <= others

    panel.close()
    check("served", seconds=0.5)
    assert len(planned.results) == before + 1


def test_formats_and_exporters_are_those_that_there_are(planned):
    from aimass_lab.export import EXPORTERS
    from aimass_lab.formats import FORMATS

    assert [one["name"] for one in FACTS["exporters"](planned)] == list(EXPORTERS)
    assert [one["name"] for one in FACTS["formats"](planned)] == list(FORMATS)
    assert all(one["text"] for one in FACTS["exporters"](planned))


def test_lengths_are_those_of_all_demands_for_the_same_call():
    torch.manual_seed(0)
    tokens = Study(TinyTransformer(), torch.randint(0, 50, (2, 12)), name="tokens")
    assert FACTS["length"](tokens) == {"own": 12, "most": None, "points": []}
    tokens.demand(length=(6, 12, 24), device="l4")
    tokens.demand(length=(18,), device="l4")
    tokens.demand(batch=4, device="l4")
    known = FACTS["length"](tokens)
    assert [point["length"] for point in known["points"]] == [6, 12, 18, 24]
    assert (known["batch"], known["device"]) == (2, "l4")
    latencies = [point["latency"]["value"] for point in known["points"]]
    assert latencies == sorted(latencies)
    tokens.demand(batch=4, length=(6,), device="l4")
    assert [point["length"] for point in FACTS["length"](tokens)["points"]] == [6]
    assert FACTS["length"](Study(TinyCNN(), torch.rand(1, 1, 8, 8))) is None


def test_a_plan_tells_the_view_what_it_was_made_for(planned, panel_of):
    sent = panel_of(planned).records["plan"]
    index, plan = [(i, record) for i, record in enumerate(planned.results) if isinstance(record, Plan)][-1]
    assert (sent["burst"], sent["index"]) == (1, index)
    assert [point["requests_per_s"]["value"] for point in sent["by_load"]] == [point.requests_per_s.value for point in plan.by_load]
