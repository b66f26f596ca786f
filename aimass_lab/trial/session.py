"""Trials of one model that share what they can: a copy for each recipe, and the comparison of its outputs."""

from __future__ import annotations

import gc
import math
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from ..compiled import is_compiled
from ..environment import LoadMeter, read_environment, usable_cores
from ..errors import DoesNotFitError, InputError, OutOfTime, UnsupportedError
from ..preserve import COPY_LIMIT_BYTES, preserved, private_copy
from ..quiet import quiet
from ..records import Environment, ModelInfo, Recipe, Setting, TrialResult
from ..timing import timed
from ..workload import Call, Workload
from .beginnings import Beginnings
from .outputs import Outputs, Pair, compare_outputs
from .result import Measured, Sizes, make_result, measure_sizes
from .speed import Speeds, compare_speed, torch_threads
from .variant import Variant, apply_recipe
from .verdict import DEFAULT_MAX_DROP, DEFAULT_TOLERANCE

if TYPE_CHECKING:
    import torch
    from torch import nn

Progress = Callable[[float, str], None]

OUTPUTS_SHARE = 0.25
"""Of the budget, for comparing outputs; as many samples as fit."""
MOST_AT_ONCE = 64
"""Samples whose outputs are compared in one call, where fewer items than that are timed."""
LEAST_S = 0.2
"""For the comparison of speed at each batch size."""
CHECK_SHARE = 0.5
"""Of that time, once more for the comparison with one thread, where other work disturbs several."""
MOST_A_CORE = 16
"""Threads or callers for each core: with very many, the library that starts them ends the process."""
MEMORY_SHARE = 0.5
"""Of the memory that is free when a session begins, for the copies that it keeps."""
BEGINNINGS_SHARE = 0.25
"""On top of that memory, as a share of it, for what recipes that begin alike go on from."""


@dataclass
class _Held:
    """A copy, and what need not be found out again about it."""

    variant: Variant
    lent: bool = False
    """Whether somebody else made it, and will release it."""
    outputs: Outputs | None = None
    sizes: Sizes | None = None
    first_calls_s: dict[tuple[int, int], float] = field(default_factory=dict)
    """By batch size and threads: seconds of the first call."""


class TrialSession:
    """Tries one model's recipes at batch sizes, threads and callers; a recipe that comes again costs the timing only.

    Copies are kept as long as they fit into `memory_bytes`; those that were not used for longest go first. A training that several recipes
    begin with is done once.

    Args:
        workload: The model and what it is called with; it must not be trained while the session is open.
        tolerance: Without a metric, outputs are equivalent if their mean cosine similarity is at
            least ``1 - tolerance`` and their relative error at most ``sqrt(2 * tolerance)``.
        max_drop: With a metric, a variant is equivalent if it loses at most this much of it.
        memory_bytes: For the weights of the copies that are kept; half of what is free now if not given.

    Raises:
        InputError: a limit cannot be used.
    """

    def __init__(
        self, workload: Workload, *, tolerance: float = DEFAULT_TOLERANCE, max_drop: float = DEFAULT_MAX_DROP, memory_bytes: int | None = None
    ) -> None:
        if not (0 < tolerance < 1 and max_drop >= 0):
            raise InputError(f"tolerance={tolerance}, max_drop={max_drop} cannot be used together", help="0 < tolerance < 1 and max_drop >= 0")
        self.workload = workload
        self.tolerance = tolerance
        self.max_drop = max_drop
        self.memory_bytes = _default_memory(workload.torch_device) if memory_bytes is None else memory_bytes
        self._held: OrderedDict[tuple[str, int], _Held] = OrderedDict()
        self._beginnings = Beginnings(int(BEGINNINGS_SHARE * self.memory_bytes))
        self._impossible: dict[tuple[str, int], tuple[str, str | None]] = {}
        self._reference: nn.Module | None = None
        self._sizes: Sizes | None = None
        self._info: ModelInfo | None = None

    def __enter__(self) -> TrialSession:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def held_bytes(self) -> int:
        """Weights of the copies that are kept."""
        return sum(held.variant.size_bytes for held in self._held.values() if not held.lent)

    def run(self, setting: Setting, *, budget_s: float = 3.0, tail_s: float = 0.0, making_s: float = math.inf, progress: Progress | None = None) -> TrialResult:
        """Try one setting; see `run_trial`.

        Args:
            setting: What to try.
            budget_s: Seconds for comparing.
            tail_s: Seconds that may be spent for a 99th percentile; see `compare_speed`.
            making_s: Seconds that making the copy may take.
            progress: Told the share done.

        Raises:
            OutOfTime: making the copy took longer than `making_s`; it is noticed where a technique tells its progress.
        """
        if setting.device is not None:
            raise InputError(f"nothing can be measured on {setting.device}", help="a trial runs where the model is: leave the device out")
        sizes = None if setting.batch_size is None else (setting.batch_size,)
        return self.try_recipe(
            setting.recipe, batch_sizes=sizes, threads=setting.threads, instances=setting.instances, budget_s=budget_s, tail_s=tail_s,
            making_s=making_s, progress=progress,
        )  # fmt: skip

    def try_recipe(
        self,
        recipe: Recipe,
        *,
        batch_sizes: Sequence[int] | None = None,
        threads: int | None = None,
        instances: int = 1,
        budget_s: float = 6.0,
        tail_s: float = 0.0,
        making_s: float = math.inf,
        progress: Progress | None = None,
        variant: Variant | None = None,
    ) -> TrialResult:
        """Try one recipe at one or more batch sizes; see `run_trial`."""
        sizes = tuple(batch_sizes or (self.workload.call.batch_size,))
        _check_arguments(sizes, threads, instances, budget_s)
        trial = _Trial(self, recipe, sizes, instances, budget_s, tail_s, progress or (lambda share, text: None))
        try:
            with torch_threads(threads):
                trial.hold(variant, making_s)
                with preserved(self.workload.model, values=self._reference is None):
                    return trial.run(threads)
        except BaseException as error:
            _clear_frames(error)
            if isinstance(error, (UnsupportedError, KeyboardInterrupt)) and variant is None:
                self._drop(_key(recipe))
            raise
        finally:
            if variant is not None:
                self._held.pop(_key(recipe), None)

    def take(self, recipe: Recipe) -> Variant | None:
        """Hand over the copy that was made by `recipe`, if it is still kept: it is the caller's to release."""
        held = self._held.pop(_key(recipe), None)
        return held.variant if held else None

    def close(self) -> None:
        """Release all copies and give their memory back."""
        for key in list(self._held):
            self._drop(key)
        self._reference = None
        self._beginnings.clear()
        release_memory(self.workload.torch_device)

    # --- what is kept ---

    def _hold(self, recipe: Recipe, batch_size: int, variant: Variant | None, report: Progress) -> _Held:
        key = _key(recipe)
        if variant is not None:
            self._drop(key)
            self._held[key] = _Held(variant, lent=True)
            self._place_reference()
        elif key in self._impossible:
            message, help_ = self._impossible[key]
            raise UnsupportedError(message, help=help_)
        elif key not in self._held:
            report(0.0, f"{recipe.name}: changing a copy of the model")
            self._make_room()
            self._held[key] = _Held(self._apply(recipe, batch_size, report))
            self._place_reference()
        self._held.move_to_end(key)
        return self._held[key]

    def _apply(self, recipe: Recipe, batch_size: int, report: Progress) -> Variant:
        """Make a copy; if the memory does not suffice, without those that are kept."""
        try:
            return apply_recipe(self.workload, recipe, batch_size=batch_size, progress=report, beginnings=self._beginnings)
        except UnsupportedError as error:
            self._impossible[_key(recipe)] = (error.message, error.help)
            raise
        except DoesNotFitError as error:
            if not self._held and self._reference is None and not self._beginnings.held_bytes:
                raise
            _clear_frames(error)
        self.close()
        return apply_recipe(self.workload, recipe, batch_size=batch_size, progress=report)

    @property
    def original(self) -> nn.Module:
        """What variants are compared with."""
        return self.workload.model if self._reference is None else self._reference

    def _place_reference(self) -> None:
        """Copy the original, unless it is large, so that both sides of a comparison lie in fresh memory.

        Where the weights lie changes the time of a call: the original, where it happens to be, was up to 6 % faster or slower than every one
        of its copies, which differed by 1 % among themselves. A service will load the weights afresh too.
        """
        self._reference = None
        if self.info().weight_bytes <= COPY_LIMIT_BYTES:
            with preserved(self.workload.model, evaluate=False, values=False):
                self._reference = private_copy(self.workload.model, alike=True)

    def _make_room(self) -> None:
        """Release what was not used for longest, until another copy as large as the original fits in."""
        while self._held and self.held_bytes + self.info().weight_bytes > self.memory_bytes:
            self._drop(next(iter(self._held)))

    def _drop(self, key: tuple[str, int]) -> None:
        held = self._held.pop(key, None)
        if held is not None and not held.lent:
            held.variant.release()

    def info(self) -> ModelInfo:
        """Who the model is."""
        if self._info is None:
            self._info = self.workload.info()
        return self._info

    def sizes(self) -> Sizes:
        """Of the original."""
        if self._sizes is None:
            self._sizes = measure_sizes(self.workload.model)
        return self._sizes


class _Trial:
    """The steps of one trial."""

    def __init__(self, session: TrialSession, recipe: Recipe, sizes: tuple[int, ...], instances: int, budget_s: float, tail_s: float, report: Progress) -> None:
        self.session = session
        self.recipe = recipe
        self.sizes = sizes
        self.instances = instances
        self.budget_s = budget_s
        self.tail_s = tail_s
        self.report = report
        self.device = session.workload.torch_device
        self.original_compiles = is_compiled(session.workload.model)

    def hold(self, variant: Variant | None, making_s: float) -> None:
        """Make the copy, or take the one that is there."""
        begin = time.perf_counter()

        def report(share: float, text: str) -> None:
            if time.perf_counter() - begin > making_s:
                raise OutOfTime(f"making the copy took more than {making_s:.3g} s and was given up ({text})")
            self.report(0.1 * share, text)

        self.held = self.session._hold(self.recipe, max(self.sizes), variant, report)
        self.pair = Pair(self.session.workload, self.session.original, self.held.variant)

    def run(self, threads: int | None) -> TrialResult:
        """Measure, and put the result together."""
        import torch

        self.deadline = time.perf_counter() + self.budget_s
        with torch.inference_mode():
            self._first_call(self.sizes[0])
            if self.held.outputs is None:
                if self.compiles:  # for the size at which outputs are compared, on top of the budget
                    self._first_call(max(self.sizes))
                self.held.outputs = self._compare_outputs()
            measured = []
            for number, batch_size in enumerate(self.sizes):
                measured.append(self._measure(number, batch_size))
                if measured[-1].speeds.interrupted:
                    break
        if self.held.sizes is None:
            self.held.sizes = measure_sizes(self.held.variant.model)
        setting = Setting(recipe=self.held.variant.recipe, batch_size=self.sizes[0], threads=threads, instances=self.instances)
        return make_result(
            self.session.workload, self.session.info(), self._environment([m.speeds for m in measured]), setting, self.held.variant, self.held.outputs,
            measured, self.session.sizes(), self.held.sizes, self.session.tolerance, self.session.max_drop,
        )  # fmt: skip

    @property
    def compiles(self) -> bool:
        """Whether a call of another shape, of either, includes a compilation."""
        return self.original_compiles or self.held.variant.compiles

    def _environment(self, speeds: Sequence[Speeds]) -> Environment:
        def taken(meter: LoadMeter) -> float:
            return (meter.foreign_cores or 0.0) + (meter.stolen or 0.0) * usable_cores()

        return read_environment(self.device, load=max((s.meter for s in speeds), key=taken))

    def _call(self, batch_size: int) -> Call:
        return self.session.workload.call.with_batch(batch_size)

    def _first_call(self, batch_size: int) -> None:
        """The variant's first call at this size, unless there was one before; it comes on top of the budget."""
        import torch

        key = (batch_size, torch.get_num_threads())
        call = self._call(batch_size)
        if key not in self.held.first_calls_s:
            # first, so that a model that raises by itself is not blamed on the recipe
            original_s = timed(partial(self.pair.run_original, call), self.device)
            compiling = ", compiling it" if self.held.variant.compiles else ""
            self.report(0.1, f"{self.recipe.name}: first call at batch {batch_size}{compiling}")
            with quiet():
                self.held.first_calls_s[key] = timed(partial(self.pair.run_variant, call), self.device)
            self.deadline += self.held.first_calls_s[key] + (original_s if self.original_compiles else 0.0)

    def _compare_outputs(self) -> Outputs:
        batch_size = max(self.sizes)
        if not self.compiles:
            batch_size = max(batch_size, min(MOST_AT_ONCE, self.session.workload.call.batch_size))
        name = self.recipe.name

        def report(share: float) -> None:
            self.report(0.15 + 0.2 * share, f"{name}: comparing outputs")

        return compare_outputs(self.pair, batch_size, budget_s=OUTPUTS_SHARE * self.budget_s, report=report)

    def _measure(self, number: int, batch_size: int) -> Measured:
        """The comparison of speed at one batch size."""
        import torch

        self._first_call(batch_size)
        call = self._call(batch_size)
        left_s = (self.deadline - time.perf_counter()) / (len(self.sizes) - number)

        def report(share: float, ratio: float, rounds: int) -> None:
            done = (number + share) / len(self.sizes)
            self.report(0.35 + 0.6 * done, f"{self.recipe.name}: speed-up about {ratio:.2f} at batch {batch_size} after {rounds} rounds")

        both = partial(self.pair.run_original, call), partial(self.pair.run_variant, call)
        budget_s = max(LEAST_S, left_s)
        speeds = compare_speed(*both, self.device, budget_s=budget_s, tail_s=self.tail_s, instances=self.instances, report=report)
        if speeds.decision.alone_would_tell and not speeds.interrupted and not self.compiles:  # which would be compiled anew
            with torch_threads(1):
                alone = compare_speed(*both, self.device, budget_s=CHECK_SHARE * budget_s, report=report)
            if alone.decision.processor is not None:
                speeds = speeds.beside(alone.decision.processor)
        first_call_s = self.held.first_calls_s[batch_size, torch.get_num_threads()]
        return Measured(batch_size, speeds, first_call_s if self.held.variant.compiles else None)


def _key(recipe: Recipe) -> tuple[str, int]:
    return recipe.name, recipe.seed


def _check_arguments(sizes: Sequence[int], threads: int | None, instances: int, budget_s: float) -> None:
    if not budget_s > 0:
        raise InputError(f"budget_s={budget_s} leaves no time to compare", help="give a positive number of seconds")
    if len(set(sizes)) < len(sizes):
        raise InputError(f"batch sizes {', '.join(map(str, sizes))} hold one twice", help="give each size once")
    for name, value in (("threads", threads), ("instances", instances)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise InputError(f"{name}={value!r} is not a positive integer")
        if value is not None and value > MOST_A_CORE * max(1, usable_cores()):
            raise InputError(
                f"{name}={value} is more than {MOST_A_CORE} for each of the {usable_cores():g} cores here", help="more callers than cores only wait"
            )


def _default_memory(device: torch.device) -> int:
    from ..profiling.memory import free_bytes

    return 0 if device.type == "meta" else int(MEMORY_SHARE * free_bytes(device))


def _clear_frames(error: BaseException | None) -> None:
    """Let go of what frames hold: a notebook keeps its last traceback, and with its frames would keep the copy."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def release_memory(device: torch.device) -> None:
    """Give freed memory back."""
    import torch

    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
