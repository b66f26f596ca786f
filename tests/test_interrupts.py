"""Ctrl-C in a cell: it ends a verb at once, and a library that is being imported stays whole."""

from __future__ import annotations

import _thread
import importlib
import inspect
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from models import TinyCNN

import aimass_lab
from aimass_lab import interrupts
from aimass_lab.bundle import write_bundle
from aimass_lab.frontends.cli import EXIT_INTERRUPTED, main
from aimass_lab.interrupts import importing, spare_imports
from aimass_lab.preserve import preserved
from aimass_lab.verbs import announce
from aimass_lab.workload import Workload

PACKAGE = "library_that_takes_long"


@pytest.fixture(autouse=True)
def as_in_a_kernel() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, as Python has it from the start."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], ModuleType]]:
    """Import a package that is interrupted, once, when its part is done and it is not."""
    (tmp_path / PACKAGE).mkdir()
    (tmp_path / PACKAGE / "part.py").write_text("VALUE = 1\n")
    (tmp_path / PACKAGE / "__init__.py").write_text(
        f"import signal, sys\nfrom {PACKAGE}.part import VALUE\n"
        "if not hasattr(sys, 'interrupted'):\n    sys.interrupted = True\n    signal.raise_signal(signal.SIGINT)\nDEBUG = VALUE\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield lambda: importlib.import_module(PACKAGE)
    for name in (PACKAGE, f"{PACKAGE}.part"):
        sys.modules.pop(name, None)
    vars(sys).pop("interrupted", None)


def test_without_it_the_library_is_broken_for_good(load: Callable[[], ModuleType]) -> None:
    with pytest.raises(KeyboardInterrupt):
        load()
    assert f"{PACKAGE}.part" in sys.modules
    assert PACKAGE not in sys.modules
    assert not hasattr(load(), "part"), "Python mends this by itself now, and nobody needs to"


def test_a_verb_is_ended_once_the_import_is_done(load: Callable[[], ModuleType]) -> None:
    goes_on = threading.Event()

    def work() -> None:
        load()
        assert not goes_on.wait(60), "nobody sets it"
        pytest.fail("the interrupt did not end what came after the import")

    with pytest.raises(KeyboardInterrupt):
        announce("bundle", work)
    library = sys.modules[PACKAGE]
    assert (vars(library)["DEBUG"], vars(library)["part"].VALUE) == (1, 1)
    assert announce("bundle", load) is library


class Rude(list[int]):
    """An attribute of a model at whose putting back somebody presses Ctrl-C."""

    def __setitem__(self, key: Any, value: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        super().__setitem__(key, value)


def test_a_model_is_put_back_before_an_interrupt_is_heeded() -> None:
    model = TinyCNN()
    model.log = Rude([1])  # an attribute of the root, which comes before the layers

    def work() -> None:
        with preserved(model):
            assert not model.features[1].training

    with pytest.raises(KeyboardInterrupt):
        announce("profile", work)
    assert all(module.training for module in model.modules())


def test_a_verb_that_ends_with_an_import_is_interrupted_too(load: Callable[[], ModuleType]) -> None:
    with pytest.raises(KeyboardInterrupt):
        announce("bundle", load)
    assert vars(sys.modules[PACKAGE])["DEBUG"] == 1


def test_what_is_asked_again_never_reaches_what_comes_after(load: Callable[[], ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    ask, about_to = signal.pthread_kill, threading.Event()

    def ask_late(thread: int, number: int) -> None:
        about_to.set()
        time.sleep(0.1)
        ask(thread, number)

    def work() -> None:
        load()
        assert about_to.wait(60)

    monkeypatch.setattr(signal, "pthread_kill", ask_late)
    with pytest.raises(KeyboardInterrupt):
        announce("bundle", work)
    time.sleep(0.3)  # nothing interrupts this


def test_a_bundle_that_is_written_without_a_verb_is_ended_once_the_import_is_done(load: Callable[[], ModuleType], tmp_path: Path) -> None:
    goes_on = threading.Event()

    def progress(share: float, text: str) -> None:
        load()
        assert not goes_on.wait(60), "nobody sets it"

    with pytest.raises(KeyboardInterrupt):
        write_bundle(tmp_path / "b", Workload(torch.nn.Linear(2, 1), torch.ones(3, 2)), calibrate=False, progress=progress)
    assert vars(sys.modules[PACKAGE])["DEBUG"] == 1
    assert not (tmp_path / "b").exists()


@pytest.fixture
def named(load: Callable[[], ModuleType], tmp_path: Path) -> str:
    """A model of a file that takes the interrupt of an import for the library's absence, as torch does with NumPy, and then waits."""
    swallowed = f"try:\n    import {PACKAGE}\nexcept BaseException:\n    pass\n"
    factory = tmp_path / "net.py"
    factory.write_text(f"import threading\n{swallowed}def make():\n    assert not threading.Event().wait(60), 'nobody sets it'\n")
    return f"{factory}:make"


def test_the_command_line_breaks_off_no_import(named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demand", named]) == EXIT_INTERRUPTED
    assert vars(sys.modules[PACKAGE])["DEBUG"] == 1
    assert capsys.readouterr().err.endswith("interrupted\n")


def test_nor_does_a_magic(named: str) -> None:
    shell = InteractiveShell.instance()
    try:
        shell.run_line_magic("load_ext", "aimass_lab")
        with pytest.raises(KeyboardInterrupt):
            shell.run_line_magic("aimass", f"demand {named}")
        assert vars(sys.modules[PACKAGE])["DEBUG"] == 1
        shell.run_line_magic("unload_ext", "aimass_lab")
    finally:
        InteractiveShell.clear_instance()


def test_every_public_function_that_runs_a_model_does_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupts, "spare_imports", lambda work: "spared")
    asked = []
    for name in aimass_lab.__all__:
        function = getattr(aimass_lab, name)
        needed = {p.name: None for p in inspect.signature(function).parameters.values() if p.default is p.empty} if inspect.isfunction(function) else {}
        if needed.keys() & {"model", "workload", "function"}:
            assert function(**needed) == "spared", name
            asked.append(name)
    assert {"profile_model", "run_trial", "write_bundle"} < set(asked)


def test_elsewhere_it_takes_effect_at_once() -> None:
    done = []

    def work() -> None:
        signal.raise_signal(signal.SIGINT)
        done.append("went on")

    with pytest.raises(KeyboardInterrupt):
        spare_imports(work)
    assert not done


def test_who_handles_interrupts_goes_on_doing_so() -> None:
    seen: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
    assert spare_imports(lambda: _thread.interrupt_main() or "done") == "done"
    assert seen == [signal.SIGINT]
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_another_thread_is_left_alone() -> None:
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(spare_imports(lambda: signal.getsignal(signal.SIGINT))))
    thread.start()
    thread.join()
    assert found == [signal.default_int_handler]


def test_only_what_was_begun_since_counts_as_an_import() -> None:
    assert not importing(sys._getframe())
