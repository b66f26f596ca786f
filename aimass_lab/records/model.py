"""What a result is about and what it holds for: the model, its tensors, the machine."""

from __future__ import annotations

import hashlib

import msgspec

from .number import Record


class Environment(Record, frozen=True, kw_only=True, tag="environment"):
    """What a measurement holds for. Facts read from the operating system, torch and the driver."""

    device: str
    """torch's name of the device: ``"cpu"``, ``"cuda:0"``."""
    device_name: str
    """The processor's or the accelerator's own name."""
    driver: str | None = None
    """Version of the accelerator's driver; None on the processor, and where nothing tells it."""
    cuda: str | None = None
    """Version of CUDA that torch was built for; None on the processor."""
    memory_bytes: int
    """What this process may use on that device: a container's limit where it is lower than the machine's."""
    cpu_cores: float
    """Cores this process may use: affinity and container quota respected."""
    threads: int
    """torch's intra-op threads."""
    clock_hz: float | None = None
    python: str
    torch: str
    platform: str
    foreign_cores: float | None = None
    """Cores kept busy by other processes while measuring; None where it could not be read."""
    cpu_pressure: float | None = None
    """Share of the measurement in which some task waited for a core; None where the kernel does not count it."""
    cpu_steal: float | None = None
    """Share of our cores that the host of a virtual machine took away while measuring; None where it could not be read."""
    taken_at: str
    """UTC, ISO 8601."""

    @property
    def id(self) -> str:
        """Digest of what does not change from one run to the next on the same set-up."""
        stable = (self.device, self.device_name, self.driver, self.memory_bytes, self.cpu_cores, self.threads, self.python, self.torch, self.platform)
        return hashlib.sha256(repr(stable).encode()).hexdigest()[:12]


class TensorSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One input or output tensor."""

    name: str
    dtype: str
    """torch's word without the prefix: ``"float32"``."""
    shape: tuple[int, ...]
    """Sizes; -1 along the batch axis, and along those that a request may choose."""


class Dimension(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A size of the inputs that a request may choose."""

    name: str
    min: int
    max: int
    axes: tuple[tuple[str, int], ...]
    """Where it is, of the same size in all of them: name of the input, and axis."""


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which model a result is about."""

    name: str
    type: str
    """Qualified name of its class."""
    num_parameters: int
    weight_bytes: int
    """Parameters and buffers, tied tensors counted once."""
    dtype: str
    """Of most parameters: ``"float32"``."""
    digest: str
    """Of names, shapes, dtypes and a sample of the values, so that the same model is known again."""
    inputs: tuple[TensorSpec, ...] = ()
