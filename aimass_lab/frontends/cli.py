"""The command line: ``aimass VERB ...``."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import AimassError, InputError
from ..interrupts import spare_imports
from ..records import Check, Record, to_json
from .arguments import HelpShown, all_verbs, get_verb, parse_arguments

if TYPE_CHECKING:
    from ..verbs import Progress, Verb

EXIT_OK, EXIT_FAILED, EXIT_ERROR, EXIT_NOT_JUDGED, EXIT_INTERRUPTED = 0, 1, 2, 5, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb.

    Args:
        argv: The words after ``aimass``; those of this process if not given.

    Returns:
        0; 1 when a check failed or a plan is not feasible; 2 after an error that was printed; 130 after an interrupt.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return spare_imports(lambda: _answer(words))  # those of the model's own file included
    except HelpShown:
        return EXIT_OK
    except AimassError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()  # the reader, such as head, has seen enough
        return EXIT_OK


def _answer(words: Sequence[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(overview())
        return EXIT_OK
    if words[0] == "--version":
        from .. import __version__

        print(__version__)
        return EXIT_OK
    return _run(words[0], words[1:])


def overview() -> str:
    """The verbs, a line each."""
    verbs = all_verbs()
    width = max(len(verb.name) for verb in verbs)
    lines = [f"  {verb.name:<{width}}  {verb.summary}" for verb in verbs]
    return "\n".join(["usage: aimass VERB ...", "", "Profile, shrink, plan and serve a PyTorch model.", "", *lines, "", "aimass VERB --help tells more."])


def _run(name: str, words: Sequence[str]) -> int:
    verb = get_verb(name)
    model, values, as_json = parse_arguments(verb, words, model_required=True)
    with TerminalProgress() as progress:
        result = _call(verb, model, values, progress)
    return _show(result, as_json)


def _call(verb: Verb, model: str | None, values: dict[str, Any], progress: Progress) -> Any:
    if not verb.of_study:
        return call_function(verb, values, progress)
    from ..study import Study
    from .locate import locate_workload

    if model is None:
        raise InputError("no model was named")
    if verb.name == "workbench":
        raise InputError("a workbench is a panel in a notebook", help="there: %load_ext aimass_lab, then %aimass workbench MODEL INPUTS")
    study = Study(locate_workload(model))
    with study.telling(progress):
        return verb.function(study, **find_models(verb, values, locate_workload))


def find_models(verb: Verb, values: Mapping[str, Any], find: Callable[[str], Any]) -> dict[str, Any]:
    """Replace the names of further models by the models."""
    found = dict(values)
    for parameter in verb.parameters:
        if parameter.names_model and values.get(parameter.name) is not None:
            found[parameter.name] = tuple(map(find, values[parameter.name]))
    return found


def call_function(verb: Verb, values: Mapping[str, Any], progress: Any, seen: Any = None) -> Any:
    """Call a verb that needs no model; the long ones tell their progress, and some what they have found so far."""
    import inspect

    known = inspect.signature(verb.function).parameters
    return verb.function(**values, **{name: told for name, told in (("progress", progress), ("seen", seen)) if name in known})


def _show(result: Any, as_json: bool) -> int:
    from ..serving.launch import Server

    if isinstance(result, Server):
        return _wait(result, as_json)
    _print(result, as_json)
    return exit_code(result)


def exit_code(record: Record) -> int:
    """Whether a script should go on after this result."""
    from ..records import FleetAllocation, JobPlan, Plan, Rehearsal

    if (isinstance(record, Check) and record.passed is None) or (isinstance(record, Rehearsal) and record.verdict == "starved"):
        return EXIT_NOT_JUDGED
    failed = (isinstance(record, Check) and not record.passed) or (isinstance(record, (Plan, JobPlan)) and not record.feasible)
    failed = failed or (isinstance(record, FleetAllocation) and record.status != "all served")
    return EXIT_FAILED if failed else EXIT_OK


def _print(record: Record, as_json: bool) -> None:
    from .render import render_plain

    print(to_json(record) if as_json else render_plain(record), flush=True)


def _wait(server: Any, as_json: bool) -> int:
    from ..operations import service_record

    def end(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    # A service manager ends us with SIGTERM; a person with Ctrl-C. Either way the server finishes what it accepted.
    before = signal.signal(signal.SIGTERM, end)
    try:
        _print(service_record(server), as_json)
        return int(server.wait())
    except KeyboardInterrupt:
        return EXIT_OK
    finally:
        signal.signal(signal.SIGTERM, before)
        server.stop()


class TerminalProgress:
    """Shows on a terminal's last line what is being done, and leaves nothing there; silent where nobody looks."""

    def __init__(self) -> None:
        self._shown = False

    def __enter__(self) -> TerminalProgress:
        return self

    def __call__(self, share: float, text: str) -> None:
        """Say how far it is."""
        if sys.stderr.isatty():
            self._shown = True
            print(f"\r\033[K{100 * share:3.0f} %  {text[:100]}", end="", file=sys.stderr, flush=True)

    def __exit__(self, *exc: object) -> None:
        if self._shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
