"""Chrome traces of torch's profiler as files: read, checked, put into the words that torch_tb_profiler 0.4.3 knows, written."""

from __future__ import annotations

import gzip
import json
import math
import os
import re
import tempfile
import zlib
from collections import defaultdict
from pathlib import Path
from typing import Any

import msgspec

from ..errors import InputError, reason_of
from ..places import why_not_there

Event = dict[str, Any]

MODULE_MARK = "nn.Module: "
"""Begins the name of a module's range; torch's own Python tracer begins it so too, and the plugin takes it off."""
THE_MODEL = "(model)"
"""Stands in a range's name for the path of the model itself, which is empty."""
PLUGIN_SUFFIX = ".pt.trace.json.gz"
"""Ends the names of files that the plugin looks for in a log folder."""

_PLUGIN_NAME = re.compile(r"\.pt\.trace\.json(\.gz)?$")
_COMPRESSION = 3
"""Of gzip: a trace shrinks to about a twelfth; level 9 takes five times as long for a tenth less."""

_CATEGORIES = {
    "cuda_runtime": "runtime",
    "cuda_driver": "runtime",
    "hip_runtime": "runtime",
    "xpu_runtime": "runtime",
    "fwdbwd": "forward_backward",
    # What was annotated on the host, mirrored to the GPU's rows. The plugin would take it for work of the host, and count every step twice.
    "gpu_user_annotation": "gpu_annotation",
}
"""What today's torch calls a kind of event, and the name that the plugin knows or, for the last, passes over."""
_ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset", "memcpy", "memset")
_NESTED = ("cpu_op", "operator", "user_annotation", "python_function", "python", "runtime")
"""What calls each other on one thread."""
_KNOWN_DEVICES = (0, 1)
"""Numbers of torch's device types, CPU and CUDA, whose memory the plugin can tell apart."""


def load_trace(path: Path) -> dict[str, Any]:
    """Read a trace, compressed or not.

    Raises:
        InputError: there is no such file, or it is no trace of torch's profiler.
    """
    from torch_tb_profiler.profiler.data import RunProfileData

    if not path.is_file():
        raise InputError(f"there is no trace at {str(path)!r}", help="give a file that torch.profiler wrote: .json or .json.gz")
    wanted = "give a file that torch.profiler wrote with export_chrome_trace"
    try:
        with tempfile.TemporaryDirectory() as scratch:
            # The plugin's own reader: it knows the broken JSON that some versions of the profiler write.
            _, trace = RunProfileData._preprocess_file(str(path), scratch)
    except (json.JSONDecodeError, UnicodeDecodeError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{str(path)!r} is no trace: {error}", help=wanted) from error
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise InputError(f"{str(path)!r} is JSON, but no Chrome trace: it has no list 'traceEvents' of named events", help=wanted) from error
    if not any(event.get("ph") == "X" and _kind(event) in ("cpu_op", "operator") for event in trace["traceEvents"]):
        raise InputError(f"{str(path)!r} has no operators: torch's profiler did not write it, or did not record the host", help=wanted)
    return dict(trace)


def write_trace(path: Path, trace: dict[str, Any]) -> int:
    """Write a trace to a new file, compressed if its name ends in ``.gz``.

    Returns:
        Bytes of the JSON before compression.

    Raises:
        InputError: there is a file already, or it cannot be written.
    """
    data = msgspec.json.encode(trace)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            file.write(gzip.compress(data, _COMPRESSION, mtime=0) if path.suffix == ".gz" else data)
    except OSError as error:
        check_new(path)  # what has come there since it was looked at
        raise _unwritten(path, reason_of(error)) from error
    return len(data)


def check_new(path: Path) -> None:
    """Refuse a place where no trace can be written, before the time that one takes.

    Raises:
        InputError: something is there already, or no file can be.
    """
    if os.path.lexists(path):
        raise InputError(f"there is a file {str(path)!r} already", help="name another file, or a folder: there every trace gets a name of its own")
    if why := why_not_there(path.parent):
        raise _unwritten(path, why)


def _unwritten(path: Path, why: str) -> InputError:
    return InputError(f"the trace cannot be written to {str(path)!r}: {why}", help="name another folder")


def shown_by_plugin(path: Path) -> bool:
    """Whether the TensorBoard plugin would find the file in a log folder."""
    return bool(_PLUGIN_NAME.search(path.name))


def translate_(trace: dict[str, Any]) -> None:
    """Rename the kinds of events that the plugin does not know, in place.

    Without it, the plugin finds no runtime calls in traces of today's torch: it then knows of no operator which kernels
    it launched, shows their device time as 0, and takes the steps to end before their kernels do.
    """
    for event in trace["traceEvents"]:
        category = event.get("cat")
        if category in _CATEGORIES:
            event["cat"] = _CATEGORIES[category]


def modules_to_calls_(trace: dict[str, Any]) -> None:
    """Turn the ranges around modules into calls of modules, in place.

    The plugin builds its module view from what torch's Python tracer writes, which slows a model down several times.
    A range named ``nn.Module: PATH [TYPE]`` says the same. As an annotation it would count as an operator of the host.
    """
    by_thread: dict[Any, list[Event]] = defaultdict(list)
    for event in trace["traceEvents"]:
        if event.get("cat") == "user_annotation" and event.get("ph") == "X" and event["name"].startswith(MODULE_MARK):
            by_thread[(event["pid"], event["tid"])].append(event)
    identities: dict[str, int] = {}
    number = 0
    for events in by_thread.values():
        around: list[Event] = []
        for event in sorted(events, key=lambda e: (e["ts"], -e["dur"])):
            while around and around[-1]["ts"] + around[-1]["dur"] <= event["ts"]:
                around.pop()
            number += 1
            event["cat"] = "python_function"
            event.setdefault("args", {}).update(
                {
                    "Python id": number,
                    "Python parent id": around[-1]["args"]["Python id"] if around else None,
                    "Python module id": identities.setdefault(event["name"], len(identities)),
                }
            )
            around.append(event)


def prepare_(trace: dict[str, Any]) -> None:
    """Put a trace of any torch since 1.9 into the form that the plugin adds up without loss, in place."""
    translate_(trace)
    trace["traceEvents"] = [event for event in trace["traceEvents"] if _is_readable(event)]
    _round_times_(trace["traceEvents"])
    _link_runtime_(trace["traceEvents"])


def _is_readable(event: Event) -> bool:
    """Whether the plugin can read it: it stumbles over spans without a kind, and over memory of devices that it does not know."""
    if event.get("ph") == "X":
        return isinstance(event.get("cat"), str) and isinstance(event.get("dur", 0), (int, float))
    if event.get("name") == "[memory]":
        return event.get("args", {}).get("Device Type") in _KNOWN_DEVICES
    return True


def _round_times_(events: list[Event]) -> None:
    """Count microseconds from the first event on, in steps of 2^-20, and cut off by how little callees outlast their callers.

    Large floating-point times make the end of an operator fall behind the end of the one that called it, by rounding;
    the plugin then drops it. In binary fractions of small numbers, sums are exact, and what was nested stays nested.
    """
    first = min((event["ts"] for event in events if "ts" in event and event.get("ph") in ("X", "i")), default=0)
    slack = max(2 * math.ulp(float(first)), 2 / 1024)
    by_thread: dict[Any, list[Event]] = defaultdict(list)
    for event in events:
        if "ts" not in event:
            continue
        ts = event["ts"]
        event["ts"] = start = _fraction(ts - first)
        if "dur" in event:
            event["dur"] = _fraction((ts - first) + event["dur"]) - start  # added to the small time: to the large one it would lose a nanosecond
            if _kind(event) in _NESTED:
                by_thread[(event.get("pid"), event.get("tid"))].append(event)
    for calls in by_thread.values():
        ends: list[float] = []
        for event in sorted(calls, key=lambda e: (e["ts"], -e["dur"])):
            end = event["ts"] + event["dur"]
            while ends and ends[-1] <= event["ts"]:
                ends.pop()
            if ends and ends[-1] < end <= ends[-1] + slack:
                end = ends[-1]
                event["dur"] = end - event["ts"]
            ends.append(end)


def _fraction(microseconds: float) -> float:
    return (round(microseconds * 1000) * 2**20 // 1000) / 2**20


def _link_runtime_(events: list[Event]) -> None:
    """Give each runtime call the number of the operator around it, and each kernel that of its runtime call.

    Where the profiler itself gave the number of an operator around the call, nothing changes. Some versions
    give numbers of other series instead, which the plugin would take for operators that have nothing to do with it.
    """
    numbers: dict[Any, Any] = {}
    by_thread: dict[Any, list[Event]] = defaultdict(list)
    for event in events:
        if event.get("ph") == "X" and (_launches(event) or _kind(event) == "runtime"):
            by_thread[(event.get("pid"), event.get("tid"))].append(event)
    for calls in by_thread.values():
        around: list[Event] = []
        for event in sorted(calls, key=lambda e: (e["ts"], -e["dur"], _kind(e) == "runtime")):
            while around and around[-1]["ts"] + around[-1]["dur"] < event["ts"] + event["dur"]:
                around.pop()
            if _kind(event) != "runtime":
                around.append(event)
                continue
            possible = [number for number in map(_number, around) if number is not None]
            if _number(event) not in possible:
                _set_number_(event, possible[-1] if possible else 0)
            numbers[event["args"].get("correlation")] = _number(event)
    for event in events:
        if _kind(event) in _ON_DEVICE:
            correlation = event.get("args", {}).get("correlation")
            _set_number_(event, numbers.get(correlation, _number(event) or 0))


def _launches(event: Event) -> bool:
    """Whether the plugin makes a node of the event that runtime calls can belong to."""
    kind = _kind(event)
    if kind == "user_annotation":
        return str(event["name"]).startswith(("ProfilerStep#", "Optimizer.step"))
    return kind in ("cpu_op", "operator") or (kind == "python_function" and "Python module id" in event.get("args", {}))


def _kind(event: Event) -> str:
    return str(event.get("cat", "")).lower()


def _number(event: Event) -> Any:
    """The number that links operators, runtime calls and kernels; old versions spell it differently."""
    arguments = event.get("args", {})
    return arguments.get("External id", arguments.get("external id"))


def _set_number_(event: Event, number: Any) -> None:
    arguments = event.setdefault("args", {})
    arguments.pop("external id", None)
    arguments["External id"] = number
