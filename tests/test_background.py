"""Work beside the notebook: one at a time, away while a cell runs, stopped like an interrupt; and lines of code that ask for it."""

import sys
import threading
import time

import pytest
import torch
from models import TinyCNN

from aimass_lab import Study
from aimass_lab.errors import InputError, UnknownNameError
from aimass_lab.frontends.background import Held, Worker
from aimass_lab.frontends.lines import read_line
from aimass_lab.frontends.widgets.calls import VerbCall
from aimass_lab.verbs import VERBS

PATIENCE_S = 60

# Work is broken off from outside wherever it is. Right after psutil opened a file of /proc, the interpreter closes it, and says so.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")


def ignore(job):
    pass


def spin(progress, *, until, counter=None):
    """Work in small steps of Python, as a verb does."""
    if counter is not None:
        counter.append(threading.get_ident())
    while not until.is_set():
        progress(0.5, "working")
        time.sleep(0.002)
    return "finished"


def wait_for(condition):
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.005)


def test_jobs_run_one_after_the_other_in_one_thread_and_give_their_results():
    worker, done, threads = Worker(), threading.Event(), []
    done.set()
    jobs = worker.submit(*((f"job {i}", lambda progress: spin(progress, until=done, counter=threads)) for i in range(5)), changed=ignore)
    assert worker.wait(PATIENCE_S)
    assert [job.result for job in jobs] == ["finished"] * 5
    assert [job.state for job in jobs] == ["done"] * 5
    assert len(set(threads)) == 1
    assert threads[0] != threading.get_ident()


def test_a_failure_is_told_what_goes_on_from_it_is_dropped_and_the_next_job_runs():
    worker = Worker()

    def broken(progress):
        raise InputError("batch 0 is not a batch")

    told = []
    first, after = worker.submit(("broken", broken), ("goes on from it", lambda progress: 8), changed=lambda job: told.append((job.line, job.state)))
    (second,) = worker.submit(("fine", lambda progress: 7), changed=ignore)
    assert worker.wait(PATIENCE_S)
    assert (first.state, first.text) == ("failed", "batch 0 is not a batch")
    assert [state for line, state in told if line == "broken"] == ["waiting", "running", "failed"]
    assert (after.state, after.result) == ("dropped", None)
    assert second.result == 7


def test_stopping_ends_what_runs_as_an_interrupt_does_and_drops_what_waits():
    worker, never, interrupted = Worker(), threading.Event(), []

    def work(progress):
        try:
            return spin(progress, until=never)
        except KeyboardInterrupt:
            interrupted.append(True)
            return "what was found until then"

    (running,), (waiting,) = worker.submit(("long", work), changed=ignore), worker.submit(("later", work), changed=ignore)
    wait_for(lambda: running.text == "working")
    worker.stop()
    assert worker.wait(PATIENCE_S)
    assert [job.state for job in (running, waiting)] == ["stopped", "dropped"]
    assert running.result == "what was found until then"
    assert len(interrupted) == 1


def test_while_it_is_held_nothing_runs_and_what_ran_begins_again():
    worker, done, starts = Worker(), threading.Event(), []
    (job,) = worker.submit(("job", lambda progress: spin(progress, until=done, counter=starts)), changed=ignore)
    wait_for(lambda: job.text == "working")
    worker.hold()
    assert job.state == "waiting"
    assert len(starts) == 1
    done.set()
    assert not worker.wait(0.2)
    worker.release()
    assert worker.wait(PATIENCE_S)
    assert (job.state, job.result, len(starts)) == ("done", "finished", 2)


def test_a_model_is_never_met_in_the_middle_of_a_measurement():
    """What a cell sees while it runs: the model in its own mode, with its own values, and random numbers that go on."""
    model = TinyCNN().train()
    study = Study(model, torch.randn(2, 1, 8, 8))
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    worker = Worker()
    (job,) = worker.submit(("study.profile(seconds=1)", lambda progress: run(study, progress)), changed=ignore)
    for _ in range(25):
        time.sleep(0.02)
        worker.hold()
        try:
            assert all(module.training for module in model.modules())
            assert all(torch.equal(kept[name], tensor) for name, tensor in model.state_dict().items())
            assert not any(module._forward_hooks for module in model.modules())
            assert not torch.equal(torch.rand(8), torch.rand(8))
        finally:
            worker.release()
    assert worker.wait(PATIENCE_S)
    assert job.state == "done"
    assert [type(record).__name__ for record in study.results] == ["Profile"]


class Dies:
    """Spends its time where Python lets no exception out."""

    def __del__(self):
        for _ in range(20_000):
            pass


def die_often(progress):
    while True:
        Dies()
        for _ in range(20_000):
            pass


@pytest.mark.parametrize("ask", [Worker.hold, Worker.stop])
def test_what_ends_in_a_destructor_is_asked_again_and_told_to_nobody(ask, monkeypatch):
    told, swallowed = [], []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    mine, worker = sys.unraisablehook, Worker()
    for _ in range(20):
        (job,) = worker.submit(("", die_often), changed=ignore)
        wait_for(lambda: sys.unraisablehook is not mine)
        theirs = sys.unraisablehook
        monkeypatch.setattr(sys, "unraisablehook", lambda one, theirs=theirs: (swallowed.append(one.exc_type), theirs(one)))
        ask(worker)
        if ask is Worker.hold:
            assert worker.jobs == (job,)
            worker.stop()
            worker.release()
        else:
            wait_for(lambda: not worker.jobs or (worker.stop(), False)[1])
        assert worker.wait(PATIENCE_S)
        monkeypatch.setattr(sys, "unraisablehook", mine)
    assert told == []
    assert set(swallowed) == {Held if ask is Worker.hold else KeyboardInterrupt}


def test_a_cell_that_comes_while_a_result_is_kept_waits_and_the_result_is_there_once(monkeypatch):
    study, keeping, kept = Study(TinyCNN(), torch.randn(2, 1, 8, 8)), threading.Event(), []
    remember = study.store.remember

    def slowly(verb, record, **facts):
        keeping.set()
        for _ in range(60):
            time.sleep(0.005)
        remember(verb, record, **facts)
        kept.append(verb)

    monkeypatch.setattr(study.store, "remember", slowly)
    worker = Worker()
    (job,) = worker.submit(("study.demand()", VerbCall(study, VERBS["demand"], {})), changed=ignore)
    assert keeping.wait(PATIENCE_S)
    worker.hold()
    assert kept == ["demand"]
    worker.release()
    assert worker.wait(PATIENCE_S)
    assert (job.state, kept, [type(record).__name__ for record in study.results]) == ("done", ["demand"], ["Demand"])


def test_a_cell_that_comes_when_all_is_kept_does_not_have_it_done_again(monkeypatch):
    class Last:
        """The last to be told that a verb has ended, when a cell comes."""

        def began(self, name):
            pass

        def ended(self, name, result):
            raise Held

    monkeypatch.setattr("aimass_lab.verbs.WATCHERS", [Last()])
    study = Study(TinyCNN(), torch.randn(2, 1, 8, 8))
    assert VerbCall(study, VERBS["demand"], {})(lambda share, text: None) is study.results[0]
    with pytest.raises(Held):  # it kept nothing
        VerbCall(study, VERBS["demand"], {"batch": 0})(lambda share, text: None)
    assert len(study.results) == 1


def run(study, progress):
    study.progress = progress
    return study.profile(seconds=1)


@pytest.mark.parametrize(
    ("line", "name", "values"),
    [
        ("study.profile(batch=8, seconds=2)", "profile", {"batch": 8, "seconds": 2}),
        ("net.trial('bf16', batch=(1, 8))", "trial", {"technique": "bf16", "batch": (1, 8)}),
        ("%aimass profile net --batch 8 --seconds 2", "profile", {"batch": 8, "seconds": 2.0, "device": None, "force": False}),
        ("%aimass predict --batch 4 --batch 6", "predict", {"batch": (4, 6), "device": None, "technique": "none"}),
    ],
)
def test_a_line_is_the_call_that_it_says(line, name, values):
    verb, read = read_line(line)
    assert verb.name == name
    for option, value in values.items():
        assert (parse(value) if option == "seconds" else value) == (parse(read[option]) if option == "seconds" else read[option])


def parse(seconds):
    return float(seconds)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("study.profile(batch=__import__('os').getpid())", "does not stand for|not a line"),
        ("print(1)", "not a line"),
        ("study.profile(", "not a line"),
        ("study.profile(btach=8)", "btach"),
        ("%aimass profile net --btach 8", "btach"),
    ],
)
def test_a_line_that_is_no_call_of_a_verb_is_refused_with_its_text(line, message):
    with pytest.raises(InputError, match=message):
        read_line(line)


def test_a_verb_that_is_not_there_is_named():
    with pytest.raises(UnknownNameError, match="destroy"):
        read_line("study.destroy()")
