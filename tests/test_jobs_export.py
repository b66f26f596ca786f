"""Exporters of jobs: promises of the family, Kubernetes' own schemas, our linter, drift, and devices that are no GPU."""

import itertools
import math

import kubernetes_validate
import msgspec
import pytest
import yaml

from aimass_lab.errors import SpecError
from aimass_lab.export import check_spec_path
from aimass_lab.export.files import write_files
from aimass_lab.export.jobs import JOB_EXPORTERS, read_job_exporter
from aimass_lab.jobs import Given, Task, Terms, plan_jobs
from aimass_lab.planning.queueing import ServiceTimes
from aimass_lab.records import JobPlan, JobTenant, ModelInfo, Number, PlannedJob, derived, from_json
from aimass_lab.scheduling import make_policy

everyone = pytest.mark.parametrize("name", sorted(JOB_EXPORTERS))
MODEL = ModelInfo(name="Digits", type="app.Digits", num_parameters=1000, weight_bytes=4000, dtype="float32", digest="0123456789ab")
RUN = {
    "cores": Number(value=2, unit="core", source="user", method="given for the job"),
    "memory_bytes": Number(value=3 * 2**30 + 1, unit="B", source="user", method="given for the job"),
    "image": "registry.example/digits:1",
    "command": ("python", "job.py"),
}
OF_KUBERNETES = ("Job", "PriorityClass", "ConfigMap")


def given(value, unit="s"):
    return Number(value=value, unit=unit, source="user", method="given for the job")


def job(name, kind="batch", *, calls, parts=1, call_s=1.0, by_s=math.inf, after=(), tenant="lab", priority=1, **fields):
    task = Task(
        name=name, times=ServiceTimes.from_values({8: call_s}), batch=8, parts=parts, calls=calls, parallel=min(parts, 2), by_s=by_s, after=after,
        tenant=tenant, priority=priority,
    )  # fmt: skip
    shown = PlannedJob(
        name=name, kind=kind, model=MODEL, tenant=tenant, priority=priority, batch_size=8, calls=parts * calls, parts=parts, parallel=min(parts, 2),
        call_time=given(call_s), work=derived(parts * calls * call_s, "s", "calls x time of one", [("call_time", given(call_s))]),
        submitted=given(0.0), deadline=None if math.isinf(by_s) else given(by_s), after=after,
        **(RUN | fields),
    )  # fmt: skip
    return task, shown


def make(*jobs, device="cpu", **changes):
    """A plan whose every number is fixed."""
    asked = jobs or (
        job("night", calls=5, parts=2, by_s=60.0),
        job("tune", "training", calls=8, after=("night",), priority=2),
        job("sweep", "search", calls=3, parts=6, tenant="Other Team"),
    )
    tenants = (JobTenant(name="lab", weight=2.0, max_jobs=2),) if not jobs else ()
    plan = plan_jobs("Digits", Given(online=(), jobs=asked), [make_policy("priority", ageing_s=math.inf)], Terms(device=device, devices=4, tenants=tenants))
    return msgspec.structs.replace(plan, **changes)


def objects(files):
    return [document for text in files.values() for document in yaml.safe_load_all(text)]


def by_kind(files, kind):
    return {document["metadata"]["name"]: document for document in objects(files) if document["kind"] == kind}


@everyone
def test_files_are_relative_and_the_same_every_time_and_hold_the_plan(name):
    plan = make()
    files = JOB_EXPORTERS[name]().export(plan)
    assert files == JOB_EXPORTERS[name]().export(plan)
    assert all(path.endswith(".yaml") and ".." not in path and not path.startswith("/") for path in files)
    (held,) = [value for document in by_kind(files, "ConfigMap").values() for value in document["data"].values()]
    assert from_json(held, JobPlan).digest == plan.digest
    assert all(document["metadata"]["annotations"]["aimass.dev/spec-digest"] == plan.digest for document in objects(files))


@everyone
@pytest.mark.parametrize("version", ["1.31", kubernetes_validate.latest_version()])
def test_objects_of_kubernetes_pass_its_own_schemas(name, version):
    for document in objects(JOB_EXPORTERS[name]().export(make())):
        if document["kind"] in OF_KUBERNETES:
            kubernetes_validate.validate(document, version, strict=True)


@everyone
def test_a_folder_passes_the_check_and_an_edit_fails_it(name, tmp_path):
    write_files(tmp_path, JOB_EXPORTERS[name]().export(make()))
    found = check_spec_path(tmp_path)
    assert found.passed, found.findings
    assert {finding.code for finding in found.findings} <= {"W-NO-SCHEMA"}, "Kueue's definitions are the cluster's"
    path = next(tmp_path.glob("digits-sweep.yaml"))
    path.write_text(path.read_text().replace("parallelism: 2", "parallelism: 3"))
    assert [f.code for f in check_spec_path(tmp_path).findings if f.code.startswith("E-")] == ["E-EDITED"]
    path.unlink()
    assert "E-MISSING" in {f.code for f in check_spec_path(tmp_path).findings}


def test_what_a_job_asks_for():
    jobs = by_kind(read_job_exporter("kubernetes").export(make()), "Job")
    sweep, tune = jobs["digits-sweep"]["spec"], jobs["digits-tune"]["spec"]
    assert (sweep["completions"], sweep["parallelism"], sweep["completionMode"]) == (6, 2, "Indexed")
    assert tune["suspend"] is True, "nothing in Kubernetes waits for another job"
    assert "suspend" not in sweep
    (container,) = sweep["template"]["spec"]["containers"]
    assert container["resources"] == {"requests": {"cpu": "2", "memory": "3073Mi"}, "limits": {"memory": "3073Mi"}}
    assert {"name": "AIMASS_JOB_CALLS", "value": "3"} in container["env"]
    night = jobs["digits-night"]["metadata"]["annotations"]
    assert "60.0 s after" in night["aimass.dev/deadline"]


def test_urgent_jobs_have_the_higher_class_and_none_goes_before_a_service():
    classes = by_kind(read_job_exporter("kubernetes").export(make()), "PriorityClass")
    assert 0 > classes["digits-jobs-1"]["value"] > classes["digits-jobs-2"]["value"], "a pod without a class has 0"
    assert classes["digits-jobs-1"]["preemptionPolicy"] == "PreemptLowerPriority"


def test_queues_share_all_devices_by_weight():
    files = read_job_exporter("kueue(cohort=everybody)").export(make())
    queues = by_kind(files, "ClusterQueue")
    quota = {name: q["spec"]["resourceGroups"][0]["flavors"][0]["resources"][0]["nominalQuota"] for name, q in queues.items()}
    assert quota == {"digits-lab": "6000m", "digits-other-team": "2000m"}, "3 and 1 of 4 devices of 2 cores: 8/3 and 4/3, the larger remainder first"
    assert {q["spec"]["cohortName"] for q in queues.values()} == {"everybody"}
    assert queues["digits-lab"]["spec"]["fairSharing"]["weight"] == "2"
    for name, one in by_kind(files, "Job").items():
        labels = one["metadata"]["labels"]
        assert labels["kueue.x-k8s.io/queue-name"] in by_kind(files, "LocalQueue"), name
        assert labels["kueue.x-k8s.io/priority-class"] in by_kind(files, "WorkloadPriorityClass"), name
        assert one["spec"]["suspend"] is True, name


def test_a_device_that_is_no_gpu_is_asked_for_by_its_name():
    plan = make(job("night", calls=5, accelerators=1), device="alveo", resource="xilinx.com/fpga-u250", node_selector={"fpga": "u250"})
    for name in JOB_EXPORTERS:
        (one,) = by_kind(JOB_EXPORTERS[name]().export(plan), "Job").values()
        pod = one["spec"]["template"]["spec"]
        assert pod["containers"][0]["resources"]["limits"]["xilinx.com/fpga-u250"] == 1
        assert pod["nodeSelector"] == {"fpga": "u250"}
        assert pod["tolerations"][0]["key"] == "xilinx.com/fpga-u250"
        kubernetes_validate.validate(one, kubernetes_validate.latest_version(), strict=True)


@everyone
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": None}, "does not say what runs it"),
        ({"command": ()}, "does not say what runs it"),
        ({"memory_bytes": None}, "how much memory"),
        ({"cores": None}, "how much cores"),
        ({"by_s": 1.0}, "not everything holds"),
    ],
)
def test_what_is_missing_is_said(name, changes, message):
    with pytest.raises(SpecError, match=message):
        JOB_EXPORTERS[name]().export(make(job("night", calls=5, **changes)))


@everyone
def test_jobs_that_a_cluster_could_not_tell_apart_are_refused(name):
    with pytest.raises(SpecError, match="two jobs would be called digits-the-night"):
        JOB_EXPORTERS[name]().export(make(job("the night", calls=5), job("The_Night", calls=5)))


def test_a_large_job_may_borrow_what_its_cohort_lends(tmp_path):
    """Both trials of the small tenant run at once on devices of which one is its own: the linter knows that cohorts lend."""
    files = read_job_exporter("kueue").export(make(job("a", calls=1, parts=4, tenant="big"), job("b", calls=1, parts=4, tenant="small")))
    queue = next(d for d in objects(files) if d["kind"] == "ClusterQueue")
    assert queue["spec"]["cohortName"]
    for share, code in itertools.product((True, False), ("E-QUEUE",)):
        text = {name: t if share else t.replace("  cohortName: digits-jobs\n", "") for name, t in files.items()}
        folder = tmp_path / str(share)
        write_files(folder, {name: t.replace('nominalQuota: "4000m"', 'nominalQuota: "3000m"') for name, t in text.items()})
        found = {f.code for f in check_spec_path(folder).findings}
        assert (code in found) is not share
