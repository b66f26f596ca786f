"""The notebook's commands: ``%aimass VERB ...`` and ``%%aimass profile``."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from IPython.core.magic import Magics, line_cell_magic, magics_class, no_var_expand

from ..errors import AimassError, InputError
from ..interrupts import spare_imports
from ..quiet import mute, unmute
from ..records import Record, to_json
from ..verbs import announce
from .arguments import HelpShown, get_verb, parse_arguments
from .cli import TerminalProgress, call_function, find_models, overview
from .place import Place

if TYPE_CHECKING:
    from ..verbs import Progress, Seen, Verb
    from .kernel import KernelLink


@magics_class
class AimassMagics(Magics):
    """``%aimass`` for a notebook's models."""

    def __init__(self, shell: InteractiveShell) -> None:
        super().__init__(shell)
        self._shell = shell
        self._studies: dict[int, Any] = {}
        """Study by the id of its model; the study holds the model, so the id stays its own."""
        self._last: Any = None
        self._servers: list[Any] = []
        self._next: str | None = None
        """The id of a cell to be profiled when it is run; an empty one stands for the next cell, whichever."""
        self.link: KernelLink | None = None
        """None where no panel can listen: in a terminal."""

    @no_var_expand
    @line_cell_magic
    def aimass(self, line: str, cell: str | None = None) -> Any:
        """Profile, shrink, plan and serve a model: ``%aimass VERB ...``; ``%aimass`` alone lists the verbs."""
        try:
            words = _split(line)
            if cell is not None:
                return self._cell(words, cell)
            if not words or words[0] in ("-h", "--help"):
                print(overview())
                return None
            return spare_imports(lambda: self._line(words[0], words[1:]))  # those of a model's own file included
        except HelpShown:
            return None
        except AimassError as error:
            # UsageError is shown without a traceback of ours, and still fails the cell.
            raise UsageError(str(error)) from error

    # --- one verb ------------------------------------------------------------------------

    def _line(self, name: str, words: list[str]) -> Any:
        verb = get_verb(name)
        words, inputs = self._take_inputs(verb, words) if verb.of_study else (words, None)
        model, values, as_json = parse_arguments(verb, words, model_required=False)
        if verb.of_study and model is None:
            self._refuse_a_model_alone(verb, values)
        if not hasattr(self._shell, "kernel"):  # a terminal cannot write over what it has shown, but its last line
            with TerminalProgress() as progress:
                return self._present(self._call(verb, model, inputs, values, progress), as_json)
        with Place(self._shell, self.link) as place:
            result = self._present(self._call(verb, model, inputs, values, place.progress, place.seen), as_json)
            place.ends_in(result)
        return result

    def _call(self, verb: Verb, model: str | None, inputs: Any, values: Mapping[str, Any], progress: Progress, seen: Seen | None = None) -> Any:
        if not verb.of_study:
            return call_function(verb, values, progress)
        study = self._study(model, inputs)
        with study.telling(progress, seen):
            return verb.function(study, **find_models(verb, values, self._other))

    def _present(self, result: Any, as_json: bool) -> Any:
        from ..operations import service_record
        from ..serving.launch import Server
        from ..study import Workbench

        if isinstance(result, Workbench):
            if as_json:
                raise InputError("a workbench is a panel, not a record", help="%aimass history lists what it shows, %aimass show N --json prints one")
            return result
        if isinstance(result, Server):
            self._servers.append(result)
            result = service_record(result)
        if as_json:
            print(to_json(result))
            return None
        return result

    def _take_inputs(self, verb: Verb, words: list[str]) -> tuple[list[str], Any]:
        """Take the inputs out of ``model x --batch 8``: the word after the model, if it names what a model can be called with.

        Raises:
            InputError: it names something else, and the verb has no argument that it could be instead.
        """
        if len(words) < 2 or words[0].startswith("-") or words[1].startswith("-"):
            return words, None
        import torch

        from ..workload import ACCEPTED_INPUTS, as_call

        value = self._value(words[1])
        if isinstance(value, (torch.Tensor, tuple, Mapping)):
            return [words[0], *words[2:]], value
        if any(parameter.positional for parameter in verb.parameters) and (value is None or callable(value) or isinstance(value, (str, int, float))):
            return words, None
        if value is None:
            raise InputError(f"there is no variable {words[1]!r}", help=f"{verb.name} MODEL INPUTS, with the name of {ACCEPTED_INPUTS}")
        as_call(value)  # says what is wrong with it
        return words, None

    def _refuse_a_model_alone(self, verb: Verb, values: Mapping[str, Any]) -> None:
        """``%aimass trial model``: the only word is the model, and was taken for what should be tried.

        Raises:
            InputError: so it was.
        """
        from torch import nn

        for parameter in verb.parameters:
            word = values[parameter.name]
            if parameter.positional and isinstance(word, str) and isinstance(self._value(word), nn.Module):
                raise InputError(f"{word!r} is a model, and there is no {parameter.name}", help=f"%aimass {verb.name} {word} {parameter.name.upper()}")

    def _value(self, name: str) -> Any:
        """What a name such as ``net`` or ``pipeline.model`` stands for in the notebook; None if nothing."""
        first, *attributes = name.split(".")
        value = self._shell.user_ns.get(first)
        for attribute in attributes:
            value = getattr(value, attribute, None)
        return value

    def _study(self, name: str | None, inputs: Any) -> Any:
        """The study of the model that `name` names; the last one without a name."""
        from ..study import Study

        if name is None:
            if self._last is None:
                raise InputError("no model was named, and there is none from before", help="%aimass VERB MODEL INPUTS")
            return self._last
        self._last = self._find(name, inputs, Study)
        return self._last

    def _other(self, name: str) -> Any:
        """One more model beside the study's own, which stays the one that is meant without a name."""
        from ..study import Study

        return self._find(name, None, Study)

    def _find(self, name: str, inputs: Any, study_type: Any) -> Any:
        from torch import nn

        from ..workload import Workload
        from .locate import locate_workload

        value = self._value(name)
        if isinstance(value, study_type):
            return value
        if isinstance(value, Workload):
            known = self._studies.get(id(value.model))
            return known if known is not None and known.workload is value else self._remember(value.model, study_type(value))
        if isinstance(value, nn.Module):
            known = self._studies.get(id(value))
            if known is not None and (inputs is None or _same_tensors(known.workload.call, inputs)):
                return known
            if inputs is None:
                help = f"name them once, behind the model: %aimass profile {name} INPUTS, with the variable of a tensor, a tuple or a dict"
                raise InputError(f"nothing is known yet about the inputs of {name!r}", help=help)
            return self._remember(value, study_type(value, inputs, name=name))
        if value is not None and ":" not in name:
            raise InputError(f"the variable {name!r} is a {type(value).__name__}, not a model", help="name a torch.nn.Module, a Workload or a Study")
        if ":" not in name:
            raise InputError(f"there is no variable {name!r}", help="name a model of this notebook, or path/to/file.py:factory")
        return study_type(locate_workload(name))

    def _remember(self, model: Any, study: Any) -> Any:
        self._studies[id(model)] = study
        return study

    # --- a cell --------------------------------------------------------------------------

    def _cell(self, words: list[str], cell: str) -> Record:
        from ..profiling import profile_callable
        from ..store import Store

        self._next = None
        if words != ["profile"]:
            raise InputError(f"%%aimass {' '.join(words)} is not a command for a cell", help="%%aimass profile profiles the cell")
        outcome: list[Any] = []
        outer = self._shell.displayhook.exec_result
        record = announce("profile", lambda: profile_callable(lambda: outcome.append(self._shell.run_cell(cell)), label="cell"))
        self._shell.displayhook.exec_result = outer  # the inner run leaves None, and our record would not reach the caller
        error = outcome[0].error_before_exec or outcome[0].error_in_exec
        if error is not None:
            raise UsageError(f"the cell raised {type(error).__name__}; its own traceback is above")
        Store().remember("profile_cell", record, model="(cell)")
        return record

    def profile_next(self, cell_id: str = "") -> None:
        """Profile a cell when it is run, as if ``%%aimass profile`` stood above it.

        Args:
            cell_id: The front end's name of the cell; the next one, whichever, if not given.
        """
        self._next = cell_id

    def as_profiled(self, lines: list[str]) -> list[str]:
        """Put ``%%aimass profile`` above the cell that `profile_next` named."""
        if self._next is None:
            return lines
        parent = self._shell.get_parent() if hasattr(self._shell, "get_parent") else {}
        running = parent.get("metadata", {}).get("cellId", "")
        return ["%%aimass profile\n", *lines] if not self._next or running == self._next else lines

    def knows_inputs(self, value: Any) -> bool:
        """Whether a verb can be called on the value of a variable without naming inputs."""
        from torch import nn

        return id(value) in self._studies or not isinstance(value, nn.Module)

    def stop_servers(self) -> None:
        """Stop what ``%aimass serve`` started."""
        while self._servers:
            self._servers.pop().stop()


def _same_tensors(call: Any, inputs: Any) -> bool:
    """Whether `inputs` are what the study was made with: then it goes on, with its copies and plans."""
    from ..workload import as_call

    new, old = as_call(inputs).tensors(), call.tensors()
    return len(new) == len(old) and all(a is b for a, b in zip(new, old, strict=True))


_COMMENT = re.compile(r"(^|\s)#\s.*$")
"""As after any other line of Python; a # inside a word is part of it."""


def _split(line: str) -> list[str]:
    try:
        return shlex.split(_COMMENT.sub("", line))
    except ValueError as error:
        raise InputError(f"the line cannot be read: {error}") from None


_QUESTION = re.compile(r"^\s*%{1,2}aimass(\s+\w+)?\s*\?{1,2}\s*$")


def question_to_help(lines: list[str]) -> list[str]:
    """Turn ``%aimass VERB?`` into ``%aimass VERB --help``: IPython would look for a Python object called VERB."""
    match = _QUESTION.match("".join(lines))
    return [f"%aimass{match[1] or ''} --help\n"] if match else lines


def load(shell: InteractiveShell) -> None:
    """Give `shell` the magics."""
    mute()
    magics = AimassMagics(shell)
    shell.register_magics(magics)
    shell.input_transformers_cleanup.append(question_to_help)
    shell.input_transformers_cleanup.append(magics.as_profiled)
    if hasattr(shell, "kernel"):
        from .kernel import KernelLink

        magics.link = KernelLink(shell, magics.knows_inputs)
        magics.link.open()


def profile_next(shell: InteractiveShell, cell_id: str = "") -> None:
    """Profile a cell of `shell` when it is run: what the button above a cell asks for."""
    shell.run_line_magic("load_ext", "aimass_lab")
    shell.magics_manager.registry["AimassMagics"].profile_next(cell_id)


def unload(shell: InteractiveShell) -> None:
    """Take them away again, and stop the servers that they started."""
    unmute()
    if "aimass_lab.frontends.widgets" in sys.modules:
        from .widgets.notebook import leave

        leave(shell)
    magics = shell.magics_manager.registry.pop("AimassMagics", None)
    if magics is not None:
        magics.stop_servers()
        if magics.link is not None:
            magics.link.close()
        if magics.as_profiled in shell.input_transformers_cleanup:
            shell.input_transformers_cleanup.remove(magics.as_profiled)
    for kind in ("line", "cell"):
        shell.magics_manager.magics[kind].pop("aimass", None)
    if question_to_help in shell.input_transformers_cleanup:
        shell.input_transformers_cleanup.remove(question_to_help)
