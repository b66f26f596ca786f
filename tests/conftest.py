"""What every test shares: its own history, and a model file outside the repository."""

import resource
import signal
import subprocess
import textwrap

import psutil
import pytest
from hypothesis import HealthCheck, settings
from model_file import MODEL_FILE

settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
settings.load_profile("suite")
"""The same examples in every run, however slow the machine is; ``--hypothesis-profile=default`` looks for others."""

ALONE = {
    "test_bundle.py", "test_bundle_formats.py", "test_notebooks.py", "test_rehearsal.py", "test_rotation.py", "test_serving_verify.py", "test_stories.py",
    "test_study.py", "test_widgets_ship.py", "test_workbench_ship.py",
}  # fmt: skip
"""Files whose tests measure, plan for what was measured, and prove it: what runs beside them could make a plan infeasible."""


DIED = pytest.StashKey[bool]()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.name in ALONE:
            item.add_marker("alone")


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    """Say what ended a process of pytest: pytest-xdist names its test only, and one that ends for want of memory leaves no other trace."""
    if not error:
        return
    try:
        code = node.gateway._io.popen.wait(2)
        how = f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    except subprocess.TimeoutExpired:
        how = "still runs"
    largest, free = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024, psutil.virtual_memory().available
    node.config.stash[DIED] = True
    print(f"\n[{node.gateway.id}] {how}; the largest process took {largest / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free now")


def pytest_sessionfinish(session):
    """A process that died took tests with it that nobody ran: not the exit code of failed tests, which `make test` repeats."""
    if session.config.stash.get(DIED, False):
        session.exitstatus = pytest.ExitCode.INTERNAL_ERROR


@pytest.fixture(autouse=True)
def own_history(tmp_path, monkeypatch):
    """No test reads or writes the history of the person who runs it."""
    path = tmp_path / "history.db"
    monkeypatch.setenv("AIMASS_STORE", str(path))
    return path


@pytest.fixture
def model_file(tmp_path_factory):
    """A file with factories, where no part of ours is."""
    path = tmp_path_factory.mktemp("elsewhere") / "net.py"
    path.write_text(textwrap.dedent(MODEL_FILE))
    return path
