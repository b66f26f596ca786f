"""Which format a bundle ships: ONNX, unless it is surely slower here than torch, or another runtime, measured beside it, is surely faster."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..comparison import is_doubtful
from ..errors import AimassError, BundleError, UnsupportedError
from ..formats import FORMATS, FormatFile
from ..formats.base import Runner, prove_largest
from ..formats.measure import Speed, compare_speeds
from ..records import Note, RuntimeTrial, Speedup
from ..workload import Workload

if TYPE_CHECKING:
    from torch import nn

SLOWER_LIMIT = 0.98
"""A runtime is called slower than torch at a batch size where the whole interval of the ratio lies below this."""
GAIN = 1.1
"""By how much a runtime must surely be faster to take the place of one that stands before it, which is safer to load or lighter to install.

It is measured alone, and differs from what the server sees by more than a few percent; and what is chosen today should be chosen tomorrow."""
EXPORT_BUDGET_S = 6.0
"""Seconds for exporting to further formats, after the first one."""
COMPARE_BUDGET_S = 3.0

Files = dict[str, FormatFile]


@dataclass(frozen=True, kw_only=True)
class Shipped:
    """The file that goes into the bundle, and what led to it."""

    file: FormatFile
    trials: tuple[RuntimeTrial, ...]
    notes: tuple[Note, ...]


def export_fastest(
    folder: Path, workload: Workload, served: nn.Module, *, format: str | None, max_batch_size: int, threads: int, say: Callable[[str], None],
    wrong: Mapping[str, str], prove: bool,
) -> Shipped:  # fmt: skip
    """Export to the formats whose runtimes are installed, compare them with torch, and leave the fastest one's files in `folder`.

    Formats are tried in the order of their preference, the later ones within a budget of time; those that are on request only where `format` names them,
    or where they are the ones that carry the model, and where nothing else holds torch's speed, the budget does not count.

    Args:
        folder: Where the model's files go; it exists and is empty.
        workload: The model and its inputs.
        served: What is served in the model's place, or the model itself.
        format: The only one to try; None: all that are installed.
        max_batch_size: Largest batch that will be served.
        threads: Of the server's worker.
        say: Told what is being done.
        wrong: Formats that turned out to be wrong before, and how; they are not tried.
        prove: Whether to compare what is shipped with the model at the largest batch, too; else `prove_largest` is left to the caller.

    Raises:
        UnknownNameError: no such format.
        UnsupportedError: no format can express the model; the message is the one of the first.
        BundleError: a file computes something else than the model, or the model's outputs are not finite.
        ModelError: the model raises.
        MissingPackageError: the format that was asked for needs it.
    """
    waiting = [format] if format is not None else formats_for(served, without=wrong)
    search = _Search(folder, workload, served, waiting, max_batch_size=max_batch_size, threads=threads, say=say)
    search.left_out |= wrong
    try:
        for name in waiting:
            search.try_format(name, hurry=format is None)
        if not search.files:
            raise search.first_error or UnsupportedError(f"{type(served).__name__} is run by something that no format carries")
        search.compare(list(search.files))
        late = [name for name in waiting if name in search.out_of_time and not holding(search.speeds, search.files)]
        for name in late:  # torch's speed is a promise, the budget a wish
            search.try_format(name, hurry=False)
            if name in search.files:
                search.compare([name])
        return search.ship(format, prove=prove)
    finally:
        search.clear()


def formats_for(served: nn.Module, *, without: Container[str] = ()) -> list[str]:
    """Formats to try, best first."""
    from ..formats._runtime import Runtime

    if isinstance(served, Runtime):
        names = [name for name, member in FORMATS.items() if member().carries(served)] or ["onnx"]
    else:
        names = [name for name, member in FORMATS.items() if member.on_request is None]
    return sorted((name for name in names if name not in without), key=lambda name: FORMATS[name].preference)


class _Search:
    """Formats that were tried so far."""

    def __init__(
        self, folder: Path, workload: Workload, served: nn.Module, waiting: Sequence[str], *, max_batch_size: int, threads: int, say: Callable[[str], None]
    ) -> None:
        self._folder, self._workload, self._served, self._waiting, self._say = folder, workload, served, waiting, say
        self._max_batch_size, self._threads = max_batch_size, threads
        self.files: Files = {}
        self.speeds: dict[str, list[Speed]] = {}
        self.left_out: dict[str, str] = {name: member.on_request for name, member in FORMATS.items() if member.on_request is not None}
        self.out_of_time: set[str] = set()
        self.first_error: AimassError | None = None
        self._notes: list[Note] = []
        self._ahead = ThreadPoolExecutor(1, thread_name_prefix="aimass-open")
        self._opened: dict[str, Future[Runner]] = {}
        self._first_s = 0.0
        self._further_s = 0.0

    def _candidate(self, name: str) -> Path:
        return self._folder / f".{name}"

    def try_format(self, name: str, *, hurry: bool) -> None:
        """Export to one format, or write down why not."""
        member = FORMATS[name]()
        self.left_out.pop(name, None)
        self.out_of_time.discard(name)
        shared = next((file for other, file in self.files.items() if other == member.same_file_as), None)
        expected_s = self._first_s - (shared.write_s if shared else 0.0)
        if hurry and self.files and self._further_s + expected_s > EXPORT_BUDGET_S:
            self.out_of_time.add(name)
            self.left_out[name] = f"there was no time: exporting takes about {expected_s:.0f} s, and {EXPORT_BUDGET_S:.0f} s are spent on further formats"
            return
        self._say(f"exporting to {name}")
        began = time.perf_counter()
        ahead = self._opened.pop(name, None)
        if ahead is not None:
            wait([ahead])  # even where the first one turned out wrong, so that this one writes a file of its own in its place
        try:
            self.files[name] = member.export(
                self._served, self._workload.call, self._place(name), max_batch_size=self._max_batch_size, names=self._names(), threads=self._threads,
                like=shared or next(iter(self.files.values()), None), written=partial(self._open_ahead, name),
                opened=None if ahead is None else ahead.result,
            )  # fmt: skip
        except AimassError as error:  # where another format is right, only this one is wrong
            self.first_error = self.first_error or error
            self.left_out[name] = error.message
        spent = time.perf_counter() - began
        if self._first_s:
            self._further_s += spent
        elif name in self.files:
            self._first_s = spent

    def _place(self, name: str) -> Path:
        """Where a format's file goes, until one is chosen."""
        self._candidate(name).mkdir(exist_ok=True)
        return self._candidate(name) / FORMATS[name].file_name

    def _open_ahead(self, name: str, path: Path) -> None:
        """Let the runtimes that read this very file begin to load it, while the first one is compared: nothing is timed then."""
        for other in self._waiting:
            member = FORMATS[other]()
            if member.same_file_as == name and member.missing_package() is None:
                self._opened[other] = self._ahead.submit(member.open_copy, path, self._place(other), threads=self._threads)

    def _names(self) -> list[str]:
        return [name for name, _ in self._workload.call.named_tensors(self._workload.model)]

    def compare(self, names: Sequence[str]) -> None:
        """Measure some of the files side by side with torch, once nothing else is under way."""
        wait(self._opened.values())
        self._say(f"measuring {', '.join(FORMATS[name].runtime for name in names)} beside torch")
        speeds, notes = compare_speeds(
            [self.files[name] for name in names], self._served, self._workload.call, max_batch_size=self._max_batch_size, threads=self._threads,
            budget_s=COMPARE_BUDGET_S,
        )  # fmt: skip
        for name in names:
            self.speeds[name] = [speed for speed in speeds if speed.format == name]
        self._notes += notes

    def ship(self, asked: str | None, *, prove: bool) -> Shipped:
        """Put the winner's files where they belong."""
        chosen = self._choose(asked, prove=prove)
        file = self.files[chosen]
        for path in sorted(self._candidate(chosen).iterdir()):
            path.rename(self._folder / path.name)
        file = replace(file, path=self._folder / file.path.name)
        return Shipped(file=file, trials=self._trials(chosen, asked), notes=(*self._notes, *slower_notes(chosen, self.speeds[chosen], asked)))

    def _choose(self, asked: str | None, *, prove: bool) -> str:
        """The fastest of those that are right at the largest batch, too, which only the one that is shipped has to show."""
        while True:
            chosen = asked or fastest(self.speeds, self.files)
            if not prove:
                return chosen
            try:
                prove_largest(self.files[chosen], self._served, self._workload.call, max_batch_size=self._max_batch_size, threads=self._threads)
            except BundleError as error:
                if len(self.files) == 1:
                    raise
                del self.files[chosen]
                self.left_out[chosen] = error.message
            else:
                return chosen

    def _trials(self, chosen: str, asked: str | None) -> tuple[RuntimeTrial, ...]:
        trials = []
        for name in sorted(FORMATS, key=lambda name: (FORMATS[name].preference, name)):
            why = (
                None
                if name in self.files
                else f"only {asked} was asked for"
                if asked
                else self.left_out.get(name, "another format carries this copy of the model")
            )
            speedups = tuple(Speedup(batch_size=speed.batch_size, ratio=speed.ratio) for speed in self.speeds.get(name, ()))
            trials.append(RuntimeTrial(format=name, runtime=FORMATS[name].runtime, chosen=name == chosen, speedups=speedups, left_out=why))
        return tuple(trials)

    def clear(self) -> None:
        """Remove what is not shipped."""
        self._ahead.shutdown()
        for name in FORMATS:
            shutil.rmtree(self._candidate(name), ignore_errors=True)


def slower_at(speeds: Iterable[Speed]) -> list[Speed]:
    """Where torch came out surely faster. One format has to be shipped, so beside other work this is the best that is known, and no claim."""
    return [speed for speed in speeds if speed.ratio.ends[1] < SLOWER_LIMIT]


def holding(speeds: Mapping[str, Sequence[Speed]], names: Iterable[str]) -> list[str]:
    """Formats whose runtime is nowhere surely slower than torch."""
    return [name for name in names if speeds.get(name) and not slower_at(speeds[name])]


def fastest(speeds: Mapping[str, Sequence[Speed]], names: Sequence[str] | Mapping[str, FormatFile]) -> str:
    """The format to ship.

    Of those that are nowhere surely slower than torch, the first one; one that comes later in `names` takes its place where even the lower ends of its ratios
    are above the upper ends of the other's by `GAIN`, in the geometric mean. Where all are slower somewhere, the one whose worst batch size is the least bad.

    Args:
        speeds: Of each format, at the same batch sizes.
        names: The formats, preferred ones first.
    """
    good = holding(speeds, names)
    if not good:
        return max(names, key=lambda name: min((speed.ratio.value for speed in speeds.get(name, ())), default=0.0))
    best = good[0]
    for name in good[1:]:
        if _mean(speeds[name], 0) > GAIN * _mean(speeds[best], 1):
            best = name
    return best


def _mean(speeds: Sequence[Speed], end: int) -> float:
    """Geometric mean of the lower (0) or upper (1) ends."""
    return math.exp(sum(math.log(speed.ratio.ends[end]) for speed in speeds) / len(speeds))


def slower_notes(name: str, speeds: Sequence[Speed], asked: str | None) -> tuple[Note, ...]:
    """A doubt, where what is shipped is surely slower than torch; of figures that other work disturbed it is not said."""
    slower = [speed for speed in slower_at(speeds) if not is_doubtful(speed.ratio)]
    if not slower:
        return ()
    where = ", ".join(f"{1 / speed.ratio.value:.2g} times the time at batch size {speed.batch_size}" for speed in slower)
    why = "it was asked for" if asked else "no other format that is installed here and carries this model does better"
    return (Note(code="W-FORMAT-SLOWER", text=f"{FORMATS[name].runtime} is slower here than torch with as many threads: {where}; {why}"),)
