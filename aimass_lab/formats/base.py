"""What a model format is: it writes a model to one file, and runs that file in a runtime of its own."""

from __future__ import annotations

import importlib.util
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ..dynamic_shapes import describe_sizes
from ..errors import BundleError, MissingPackageError, UnsupportedError, first_line
from ..preserve import preserved
from ..records import Note, Number, TensorSpec
from ..registry import Registry
from ..workload import Call
from .signature import IN_FLOAT32, Signature, as_numpy, read_signature, relative_error, run

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

    from ._runtime import Runtime

Arrays = dict[str, "np.ndarray[Any, Any]"]
Runner = Callable[[Mapping[str, "np.ndarray[Any, Any]"]], Arrays]
"""A loaded model: arrays by input name to arrays by output name."""

EXACT_TOLERANCE = 1e-3
"""Relative L2 error of a float32 export, above which it is wrong: summing in another order gives about 1e-6."""
ROUNDED_TOLERANCE = 2e-2
"""The same where the model computes in 16 or fewer bits, whose roundings a runtime may place elsewhere."""


@dataclass(frozen=True, kw_only=True)
class FormatFile:
    """A model that was written, and proved in its own runtime."""

    path: Path
    format: str
    signature: Signature
    error: Number
    """Largest relative L2 error of an output against the torch model that was exported."""
    write_s: float
    """Seconds that writing it took, without the checks."""
    notes: tuple[Note, ...] = ()
    loaded: tuple[int, Runner] | None = field(default=None, repr=False, compare=False)
    """With how many threads it was opened for the checks, and what that gave: opening a large file again takes seconds."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Of the model."""
        return self.signature.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Of the model."""
        return self.signature.outputs

    @property
    def batched(self) -> bool:
        """Whether axis 0 of every input and output counts the items."""
        return self.signature.batched

    def runner(self, threads: int) -> Runner:
        """The file in its own runtime."""
        if self.loaded is not None and self.loaded[0] == threads:
            return self.loaded[1]
        return FORMATS[self.format]().open(self.path, threads=threads)

    @property
    def paths(self) -> tuple[Path, ...]:
        """Every file of the model: the one that is loaded, and what lies beside it."""
        return tuple(sorted(path for path in self.path.parent.iterdir() if path.stem == self.path.stem))


class Format(ABC):
    """One way to write a model. Members say how to export and how to load; checking is the same for all."""

    name: ClassVar[str]
    file_name: ClassVar[str]
    runtime: ClassVar[str]
    """What runs it, as people call it."""
    requires: ClassVar[tuple[str, ...]] = ()
    """Import names of the packages that exporting and running need."""
    runs_on: ClassVar[tuple[str, ...]]
    """Distributions that a server of this format needs, besides what every server needs."""
    safety: ClassVar[str]
    """What loading such a file can do, and what is done about it; users read it."""
    preference: ClassVar[int] = 100
    """Lower ones are tried first, and win where none is clearly faster: safer to load, lighter to install."""
    same_file_as: ClassVar[str | None] = None
    """Another format whose file this one's runtime reads, too."""
    on_request: ClassVar[str | None] = None
    """Why it is not tried unless it is asked for; None: it is."""

    def export(
        self, model: nn.Module, call: Call, path: Path, *, max_batch_size: int = 1, names: Sequence[str] | None = None, threads: int = 1,
        like: FormatFile | None = None, written: Callable[[Path], None] | None = None, opened: Callable[[], Runner] | None = None,
    ) -> FormatFile:  # fmt: skip
        """Write `model` to `path`, and check in the format's own runtime that it computes the same.

        The model is left as it was, bit by bit.

        Args:
            model: What to write; exported in evaluation mode.
            call: Example inputs; all sizes but the batch's and its ``dims`` are fixed to theirs.
            path: File to write; its folder exists.
            max_batch_size: Largest batch that will be served; the check takes no larger one, and `prove_largest` takes this one.
            names: Of the input tensors, in order; read off ``forward`` if not given.
            threads: That the runtime may use for the check.
            like: The same model in another format, whose signature it has, and whose file it takes where the formats share it.
            written: Called with the file before it is checked, so that others can begin with it.
            opened: Gives what `open_copy` gave, where that began before; of a format that shares the file of `like`.

        Raises:
            UnsupportedError: the format or its runtime cannot express this model.
            BundleError: the file computes something else than the model, or the model's outputs are not finite.
            ModelError: the model raises on its example inputs, or gives no tensor.
            MissingPackageError: a package that the format needs is not installed.
        """
        import torch

        from ._runtime import Runtime, RuntimeModule

        self.check_packages()
        if isinstance(model, Runtime) and not self.carries(model):
            raise UnsupportedError(
                f"this copy of the model is run by {model.runtime}, which no {self.name} file can hold",
                help="bundle the recipe without its last step, or with onnxruntime in its place",
            )
        if isinstance(model, RuntimeModule):
            names = [spec.name for spec in model.interface.inputs]  # as the file has them
        write_s = 0.0
        if like is not None and like.format == self.same_file_as:
            signature = like.signature
            runner = opened() if opened is not None else self.open_copy(like.path, path, threads=threads)
        else:
            with preserved(model), torch.no_grad():
                signature = read_signature(model, call, names=names) if like is None else like.signature
                check_dtypes(signature)
                began = time.perf_counter()
                self._write(model, signature.example(call), signature, path)
                write_s = time.perf_counter() - began
            if written is not None:
                written(path)
            runner = self.open(path, threads=threads)
        answers = partial(_answers, runner, signature.inputs)
        error = compare(answers, model, call, signature, sizes={1, max(2, min(call.batch_size, max_batch_size))}, runtime=self.runtime)
        notes = _notes(signature)
        return FormatFile(path=path, format=self.name, signature=signature, error=error, write_s=write_s, notes=notes, loaded=(threads, runner))

    def missing_package(self) -> str | None:
        """The first package of `requires` that is not installed."""
        return next((package for package in self.requires if importlib.util.find_spec(package) is None), None)

    def check_packages(self) -> None:
        """Raise MissingPackageError where a package of `requires` is not installed."""
        if (package := self.missing_package()) is not None:
            raise MissingPackageError(package, f"the format {self.name!r}")

    def carries(self, model: Runtime) -> bool:
        """Whether a file of this format is what `model` runs."""
        return False

    @abstractmethod
    def _write(self, model: nn.Module, call: Call, signature: Signature, path: Path) -> None:
        """Write the file, with the names of `signature`; model and gradients are already as they should be."""

    @abstractmethod
    def open(self, path: Path, *, threads: int = 1) -> Runner:
        """Load the file in its own runtime.

        Raises:
            UnsupportedError: the runtime does not take it.
        """

    def open_copy(self, source: Path, path: Path, *, threads: int = 1) -> Runner:
        """Take the file of a format that this one shares it with, and load that; it may run in a thread of its own.

        Raises:
            UnsupportedError: the runtime does not take it.
        """
        try:
            path.hardlink_to(source)  # nobody writes into either
        except OSError:  # which not every file system has
            shutil.copyfile(source, path)
        return self.open(path, threads=threads)

    def load_and_run(self, path: Path, inputs: Mapping[str, np.ndarray[Any, Any]], *, threads: int = 1) -> Arrays:
        """Load the file in its own runtime and call it once."""
        return self.open(path, threads=threads)(inputs)


def _notes(signature: Signature) -> tuple[Note, ...]:
    notes = []
    if not signature.batched:
        notes.append(Note(code="W-NOT-BATCHED", text=f"requests run one at a time: {signature.unbatched_because}"))
    if signature.left_out:
        kinds, kept = ", ".join(signature.left_out), ", ".join(repr(spec.name) for spec in signature.outputs)
        notes.append(Note(code="W-OUTPUT-DROPPED", text=f"the outputs hold what is no tensor ({kinds}), and the file returns the tensors only: {kept}"))
    if signature.filled:
        what = f"{', '.join(map(repr, signature.filled))}: where items are padded, torch's fused kernels leave zeros"
        help = "a sum or mean over all places then differs, outside or inside the model: leave the padded ones out"
        notes.append(Note(code="W-PADDING", text=f"{what}, and the file gives what the layers compute there, as in training; {help}"))
    return tuple(notes)


def prove_largest(file: FormatFile, model: nn.Module, call: Call, *, max_batch_size: int, threads: int) -> None:
    """Compare a written model at the largest batch that will be served, too, where the example inputs are fewer: of a large model this takes a while.

    Args:
        file: What `Format.export` wrote.
        model: What it was written from; left as it was.
        call: Example inputs of `model`.
        max_batch_size: The largest batch.
        threads: For the runtime.

    Raises:
        BundleError: it computes something else than the model.
    """
    if not file.batched or max_batch_size <= max(2, call.batch_size):
        return
    answers = partial(_answers, file.runner(threads), file.inputs)
    compare(answers, model, call, file.signature, sizes={max_batch_size}, runtime=FORMATS[file.format].runtime)


def compare(answers: Callable[[Call], Arrays], model: nn.Module, call: Call, signature: Signature, *, sizes: Collection[int], runtime: str) -> Number:
    """Compare a written model, in its own runtime, with the torch model that it was written from, at the sizes that requests may choose, too.

    Torch computes each item once, as its signature is read: a larger batch repeats items, and what a model answers to one rests on nothing else in
    the batch. Of a model where it does, it is asked for that very batch, too, before the written one is called wrong. It is left as it was.

    Args:
        answers: Calls the written model; outputs by name.
        model: What it was written from.
        call: Example inputs of `model`.
        signature: As read off this model and this call.
        sizes: Batch sizes to compare at, where there is a batch axis.
        runtime: What runs the written model, as people call it.

    Returns:
        The largest relative L2 error of an output.

    Raises:
        BundleError: it is more than rounding explains.
        UnsupportedError: the runtime does not take a size that requests may choose.
    """
    sizes = sorted(sizes) if signature.batched else [call.batch_size]
    tolerance = tolerance_of(model)
    fits = not signature.batched or call.batch_size <= sizes[-1]
    computed = signature.answers if fits and signature.answers is not None else _outputs(model, call if fits else call.with_batch(sizes[-1]))
    worst = 0.0
    for size in sizes:
        batch = call.with_batch(size) if signature.batched else call
        got = answers(batch)
        errors = _errors(_repeated(computed, size) if signature.batched else computed, got)
        if not max(errors.values()) <= tolerance and signature.batched:
            errors = _errors(_outputs(model, batch), got)
        worst = max(worst, _judged(errors, tolerance, f"{size} items", runtime))
    for probe in signature.probes:
        place = describe_sizes(probe.sizes)
        try:
            got = answers(probe.call)
        except Exception as error:  # every runtime has errors of its own
            raise UnsupportedError(f"{runtime} does not run the exported file with {place}: {first_line(error)}", help="try another format") from error
        worst = max(worst, _judged(_errors(probe.answers, got), tolerance, place, runtime))
    elsewhere = "".join(f"; {describe_sizes(probe.sizes)}" for probe in signature.probes)
    return Number(
        value=worst,
        unit="ratio",
        source="measured",
        method=f"largest relative L2 error of an output in {runtime} against torch, batch sizes {', '.join(map(str, sizes))}{elsewhere}",
        n=sum(sizes) + sum(probe.call.batch_size for probe in signature.probes),
    )


def _judged(errors: Mapping[str, float], tolerance: float, place: str, runtime: str) -> float:
    """The largest error of an output.

    Raises:
        BundleError: it is more than rounding explains.
    """
    for name, error in errors.items():
        if not error <= tolerance:
            raise BundleError(
                f"the exported file computes something else than the model: the output {name!r} of {place} has a relative error of "
                f"{error:.3g} in {runtime}, and {tolerance:g} is the most that rounding explains",
                help="nothing was written; this is a fault of the exporter: try another format, or rewrite the part of the model that it gets wrong",
            )
    return max(errors.values())


def _outputs(model: nn.Module, call: Call) -> Arrays:
    import torch

    with preserved(model), torch.no_grad():
        return {name: as_numpy(tensor).copy() for name, tensor in run(model, call)}


def _repeated(outputs: Mapping[str, np.ndarray[Any, Any]], size: int) -> Arrays:
    """The answers to so many items, of which there are the first ones, over and over."""
    import numpy as np

    return {name: array[np.arange(size) % len(array)] for name, array in outputs.items()}


def _errors(expected: Mapping[str, np.ndarray[Any, Any]], got: Arrays) -> dict[str, float]:
    return {name: relative_error(array, got[name]) for name, array in expected.items()}


def _answers(runner: Runner, specs: Sequence[TensorSpec], call: Call) -> Arrays:
    return runner(input_arrays(specs, call))


def input_arrays(specs: Sequence[TensorSpec], call: Call) -> Arrays:
    """The call's tensors by name, as the runtime takes them."""
    return {spec.name: as_numpy(tensor) for spec, tensor in zip(specs, call.tensors(), strict=True)}


def check_dtypes(signature: Signature) -> None:
    """Raise UnsupportedError where an input or output is of a type that NumPy lacks."""
    for spec in (*signature.inputs, *signature.outputs):
        if spec.dtype == "bfloat16":
            raise UnsupportedError(
                f"the tensor {spec.name!r} is bfloat16, which NumPy and the serving protocols lack",
                help=f"{IN_FLOAT32}; or let it take and return float32, and cast inside",
            )


def tolerance_of(model: nn.Module) -> float:
    """Relative L2 error that rounding explains: more where the model computes in few bits."""
    import torch

    def exact(tensor: torch.Tensor) -> bool:
        return type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.dtype not in (torch.float16, torch.bfloat16)

    if has_quantised_operators(model) or not all(exact(t) for t in [*model.parameters(), *model.buffers()]):
        return ROUNDED_TOLERANCE
    return EXACT_TOLERANCE


def has_quantised_operators(model: nn.Module) -> bool:
    """Whether `model` holds an exported graph that rounds values to integers and back."""
    import torch

    graphs = (module.graph for module in model.modules() if isinstance(module, torch.fx.GraphModule))
    return any("quantize_per_" in str(node.target) for graph in graphs for node in graph.nodes if node.op == "call_function")


FORMATS: Registry[type[Format]] = Registry("model format", "aimass_lab.formats")
