"""The resource spec: made from a plan, read, written and checked."""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from .devices import load_devices
from .errors import InputError, SpecError, reason_of
from .records import Bundle, Environment, Finding, Number, Plan, Recipe, RehearsalMetric, ServingSpec, Unit, derived, to_json
from .units import format_bytes, format_seconds

if TYPE_CHECKING:
    import yaml

API_VERSION = "aimass.dev/v1"
MEMORY_HEADROOM = 0.2
"""Above the highest memory seen: what allocators, fragmentation and rare inputs add."""
MAX_FACTOR = 2
"""An autoscaler may go up to this many times the planned replicas."""
MAX_NAME = 50
"""Shorter than Kubernetes' 63, because objects are named after the service with an ending."""
CPU_SIGNAL_LIMIT = 0.9
"""Above it the share of time that a replica computes says little about how much more it can take."""

_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_IMAGE = re.compile(r"[a-z0-9]+([._-]+[a-z0-9]+)*(:[0-9]+)?(/[a-z0-9]+([._-]+[a-z0-9]+)*)*(:[A-Za-z0-9_][A-Za-z0-9._-]{0,127})?(@sha256:[0-9a-f]{64})?")
_MAX_FILE_BYTES = 8 * 2**20
_MIB = 2**20

SERVER_MEMORY_BYTES = 256 * 2**20
"""Of a replica's interpreter, server and runtime, until a bundle was started and measured."""
STARTUP_S = 10.0
"""Until a bundle was started and measured."""


def dns_label(text: str) -> str:
    """Turn any text into a name that a service may have: ``"My Net v2"`` -> ``"my-net-v2"``."""
    label = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    label = label if label[:1].isalpha() else f"model-{label}".rstrip("-")
    return label[:MAX_NAME].rstrip("-")


def make_spec(
    plan: Plan,
    *,
    name: str,
    recipe: Recipe,
    memory: Number,
    startup_time: Number,
    image: str,
    cpu_cores: Number | None = None,
    accelerators: int | None = None,
    environment: Environment | None = None,
    export_format: str = "kubernetes",
    rehearsed: tuple[RehearsalMetric, ...] = (),
) -> ServingSpec:
    """Write down what each replica must get, and how many there are.

    Memory is the highest that was seen, plus 20 %. The planned replicas are the least that run;
    an autoscaler may double them, within the target's limit. One more replica is wanted when
    each gets more than its share of the planned rate.

    Args:
        plan: A feasible plan.
        name: Of the service: a DNS label, see `dns_label`.
        recipe: How the model was changed.
        memory: Highest resident memory of one replica's processes, in bytes.
        startup_time: From start to the first answer, in seconds.
        image: Container image.
        cpu_cores: Cores of one replica; None: the threads that the latencies were measured with.
        accelerators: Of one replica; None: as the kind of the plan's device says.
        environment: What the measurements hold for.
        export_format: The exporter that it is made for.
        rehearsed: What a run of this plan came to, where there was one.

    Raises:
        SpecError: the plan is not feasible; the message says what binds.
        InputError: nobody knows what kind of device the plan's is.
    """
    if not plan.feasible:
        raise SpecError("the plan does not meet its target, so there is nothing to specify", help=plan.binding)
    replicas = int(plan.replicas.value)
    most = max(replicas, min(MAX_FACTOR * replicas, plan.target.max_replicas))
    planned = plan.target.requests_per_s.value * (1 + plan.target.headroom)
    share = planned / plan.throughput_limit.value
    of_plan = [("replicas", plan.replicas)]
    entry = load_devices().get(plan.device)
    return ServingSpec(
        name=name,
        model=plan.model,
        recipe=recipe,
        environment=environment,
        device=plan.device,
        accelerators=derived(_accelerators(plan.device, accelerators), "device", "one worker a replica, one device a worker", of_plan),
        resource=entry.resource if entry else None,
        node_selector=entry.node_selector if entry else {},
        replicas=plan.replicas,
        min_replicas=derived(replicas, "replica", "as planned: fewer do not meet the target at the planned rate", of_plan),
        max_replicas=derived(most, "replica", f"{MAX_FACTOR} x planned, at most {plan.target.max_replicas}", of_plan),
        cpu_cores=cpu_cores or _cores(environment),
        memory_bytes=derived(
            math.ceil(memory.value * (1 + MEMORY_HEADROOM) / _MIB) * _MIB,
            "B",
            f"{format_bytes(memory.value)} ({memory.method}) + {100 * MEMORY_HEADROOM:.0f} %",
            [("memory", memory)],
        ),
        max_batch_size=plan.max_batch_size,
        max_wait=plan.max_wait,
        scheduling_policy=plan.scheduling_policy,
        scale_at=derived(
            planned / replicas,
            "request/s",
            f"planned rate / replicas: {100 * share:.0f} % of the rate at which a replica's queue grows without bound",
            [("requests_per_s", plan.target.requests_per_s), ("throughput_limit", plan.throughput_limit)],
        ),
        startup_time=startup_time,
        requests_per_s=plan.target.requests_per_s,
        latency_p99_target=plan.target.latency_p99,
        latency_p99=plan.latency_p99,
        utilization=plan.utilization,
        cost=plan.cost,
        image=image,
        export_format=export_format,
        rehearsed=rehearsed,
        notes=plan.notes,
    )


def replica_memory(peak: Number, weight_bytes: int) -> Number:
    """Memory of one replica before any headroom.

    Args:
        peak: What the model needs at the largest batch.
        weight_bytes: Of the model; while it is loaded there are two copies of it.
    """
    loading = Number(value=weight_bytes, unit="B", source="assumed", method="one more copy of the weights while they are loaded")
    server = Number(value=SERVER_MEMORY_BYTES, unit="B", source="assumed", method="interpreter, server and runtime without a model")
    total = peak.value + loading.value + server.value
    return derived(total, "B", "peak + loading + server", [("peak", peak), ("loading", loading), ("server", server)])


def startup_time(bundle: Bundle | None) -> Number:
    """Seconds until a replica answers: as it was measured when the bundle was written, or an assumption without one."""
    measured = next((promise.measured for promise in bundle.promises if promise.name == "startup"), None) if bundle else None
    return measured or Number(value=STARTUP_S, unit="s", source="assumed", method="no bundle was started yet")


def _accelerators(device: str, given: int | None) -> int:
    if given is not None:
        return given
    if device == "cpu" or device.startswith("cuda"):
        return int(device != "cpu")
    entry = load_devices().get(device)
    if entry is None:
        raise InputError(f"device {device!r} is not in the catalogue, so its kind is not known", help="say how many accelerators a replica gets")
    return int(entry.kind != "cpu")


def _cores(environment: Environment | None) -> Number:
    if environment is None:
        return Number(value=1, unit="core", source="assumed", method="nothing was measured that would say how many")
    method = "threads of the process whose latencies the plan uses"
    return Number(value=environment.threads, unit="core", source="measured", method=method, environment=environment.id)


# --- lint --------------------------------------------------------------------------------

_FIELD_UNITS: dict[str, Unit] = {
    "accelerators": "device", "replicas": "replica", "min_replicas": "replica", "max_replicas": "replica", "cpu_cores": "core",
    "memory_bytes": "B", "max_batch_size": "item", "max_wait": "s", "scale_at": "request/s", "startup_time": "s",
    "requests_per_s": "request/s", "latency_p99_target": "s", "latency_p99": "s", "utilization": "ratio", "cost": "USD/h",
}  # fmt: skip
_MAY_BE_ZERO = {"accelerators", "max_wait", "cost", "utilization"}
_WHOLE = {"accelerators", "replicas", "min_replicas", "max_replicas", "max_batch_size", "memory_bytes"}


def spec_numbers(spec: ServingSpec) -> Iterator[tuple[str, Number]]:
    """Yield every number of a spec with the name of its field."""
    for field in _FIELD_UNITS:
        number = getattr(spec, field)
        if number is not None:
            yield field, number


def lint_spec(spec: ServingSpec) -> tuple[Finding, ...]:
    """Check what a schema cannot: names, signs, units, and that the numbers agree with each other.

    Codes that start with ``E-`` are errors, and nothing is exported with one; ``W-`` are warnings.
    """
    return (*_lint_names(spec), *_lint_numbers(spec), *_lint_agreement(spec), *_lint_trust(spec))


def errors_of(findings: tuple[Finding, ...]) -> tuple[Finding, ...]:
    """The findings that are errors."""
    return tuple(finding for finding in findings if finding.code.startswith("E-"))


def _lint_names(spec: ServingSpec) -> Iterator[Finding]:
    if not (_LABEL.fullmatch(spec.name) and len(spec.name) <= MAX_NAME):
        text = f"{spec.name!r} is no DNS label: up to {MAX_NAME} lower-case letters, digits and hyphens, first a letter; try {dns_label(spec.name)!r}"
        yield Finding(code="E-NAME", path="/name", text=text)
    if spec.api_version != API_VERSION:
        yield Finding(code="E-VERSION", path="/api_version", text=f"{spec.api_version!r} is not {API_VERSION!r}, the version that this reads")
    if not _IMAGE.fullmatch(spec.image):
        yield Finding(code="E-IMAGE", path="/image", text=f"{spec.image!r} is no container image; it looks like registry/name:tag")
    elif ":" not in spec.image.rpartition("/")[2] or spec.image.endswith(":latest"):
        yield Finding(code="W-IMAGE-TAG", path="/image", text=f"{spec.image!r} does not say which version runs; give a tag or a digest")


def _lint_numbers(spec: ServingSpec) -> Iterator[Finding]:
    for field, number in spec_numbers(spec):
        if number.unit != _FIELD_UNITS[field]:
            yield Finding(code="E-UNIT", path=f"/{field}/unit", text=f"is {number.unit!r}, must be {_FIELD_UNITS[field]!r}")
        if number.value < 0 or (number.value == 0 and field not in _MAY_BE_ZERO):
            yield Finding(code="E-RANGE", path=f"/{field}/value", text=f"is {number.value}, must be above 0")
        if field in _WHOLE and number.value != int(number.value):
            yield Finding(code="E-WHOLE", path=f"/{field}/value", text=f"is {number.value}, must be a whole number")


def _lint_agreement(spec: ServingSpec) -> Iterator[Finding]:
    low, now, high = spec.min_replicas.value, spec.replicas.value, spec.max_replicas.value
    if not low <= now <= high:
        yield Finding(code="E-REPLICAS", path="/replicas/value", text=f"min {low} <= replicas {now} <= max {high} does not hold")
    target = spec.latency_p99_target.value
    if spec.latency_p99 is None or spec.utilization.value > 1:
        text = "the queue grows without bound at the planned rate; plan more replicas or a lower rate"
        yield Finding(code="E-UNSTABLE", path="/latency_p99", text=text)
    elif spec.latency_p99.value > target:
        text = f"the predicted p99 {format_seconds(spec.latency_p99.value)} is above the target {format_seconds(target)}"
        yield Finding(code="E-SLO", path="/latency_p99/value", text=text)
    elif spec.latency_p99.interval and spec.latency_p99.interval[1] > target:
        text = f"the p99 may be as high as {format_seconds(spec.latency_p99.interval[1])}, above the target {format_seconds(target)}"
        yield Finding(code="W-SLO-BAND", path="/latency_p99/interval", text=text)
    if spec.max_wait.value >= target:
        text = f"holding a batch for {format_seconds(spec.max_wait.value)} alone uses up the target {format_seconds(target)}"
        yield Finding(code="E-SLO-IMPOSSIBLE", path="/max_wait/value", text=text)
    if spec.device == "cpu" and spec.accelerators.value:
        yield Finding(code="E-DEVICE", path="/accelerators/value", text=f"is {spec.accelerators.value} on a CPU, must be 0")
    if spec.min_replicas.value == 1:
        text = "with one replica, every move of it to another node is an interruption; two would bridge it"
        yield Finding(code="W-SINGLE-REPLICA", path="/min_replicas/value", text=text)
    if not spec.accelerators.value and spec.utilization.value > CPU_SIGNAL_LIMIT:
        text = (
            f"replicas compute {100 * spec.utilization.value:.0f} % of the time at the planned rate, as batches fill up before queues grow: "
            f"processor load hardly tells more load apart; scale on requests per second where you can ({spec.scale_at.value:.3g} per replica)"
        )
        yield Finding(code="W-CPU-SIGNAL", path="/utilization/value", text=text)


def _lint_trust(spec: ServingSpec) -> Iterator[Finding]:
    numbers = dict(spec_numbers(spec))
    for field, number in numbers.items():
        if number.weakest_source in ("assumed", "datasheet"):
            yield Finding(code="W-NOT-MEASURED", path=f"/{field}", text=f"rests on something {number.weakest_source}: {number.method}")
    for note in spec.notes:
        if note.code == "W-NOT-MEASURED":
            yield Finding(code=note.code, path="/device", text=note.text)
    noisy = [field for field, number in numbers.items() if number.quality == "noisy"]
    if noisy:
        text = f"the machine was busy while this was measured, or what it rests on ({', '.join(noisy)}); measure again when it is quiet"
        yield Finding(code="W-NOISY", path=f"/{noisy[0]}", text=text)
    beyond = [field for field, number in numbers.items() if number.quality == "extrapolated"]
    if beyond:
        text = f"lies beyond what was measured, or rests on what does ({', '.join(beyond)})"
        yield Finding(code="W-EXTRAPOLATED", path=f"/{beyond[0]}", text=text)


# --- files -------------------------------------------------------------------------------


def write_spec(spec: ServingSpec, path: Path) -> None:
    """Write a spec as JSON or YAML, as the file's name ends; all of it or nothing.

    Raises:
        SpecError: the name ends otherwise, or the file cannot be written.
    """
    if path.suffix == ".json":
        text = to_json(spec) + "\n"
    elif path.suffix in (".yaml", ".yml"):
        import yaml

        text = yaml.safe_dump(json.loads(to_json(spec)), sort_keys=False, allow_unicode=True, width=140)
    else:
        raise SpecError(f"{path.name!r} ends neither in .json nor in .yaml", help="choose one of them")
    try:
        write_text(path, text)
    except OSError as error:
        raise SpecError(f"cannot write {path}: {error.strerror or error}") from error


def write_text(path: Path, text: str) -> None:
    """Put `text` at `path` in one step, so that no reader and no full disk leaves half of it.

    Raises:
        OSError: it cannot be written; what was there is still there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_spec(path: Path) -> ServingSpec:
    """Read a spec from a JSON or YAML file.

    Raises:
        SpecError: it cannot be read, or is no spec; the message has the path of the field.
    """
    documents = read_documents(path)
    if len(documents) != 1:
        raise SpecError(f"{path} holds {len(documents)} documents, a spec is one", help="for manifests: aimass check FOLDER")
    return spec_from_data(documents[0], str(path))


def spec_from_data(data: Any, where: str) -> ServingSpec:
    """Turn what a JSON or YAML parser gave into a spec.

    Args:
        data: Mappings, lists and scalars.
        where: What to call the source in messages.

    Raises:
        SpecError: as `read_spec`.
    """
    try:
        return msgspec.convert(data, ServingSpec)
    except msgspec.ValidationError as error:
        raise SpecError(f"{where} is not a resource spec: {error}", help="the JSON Schema of a spec says what each field must be") from error


def read_documents(path: Path) -> list[Any]:
    """Parse every document of a JSON or YAML file; a mapping that has a key twice is refused.

    Raises:
        SpecError: the file cannot be read or parsed.
    """
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise SpecError(f"{path} is larger than {format_bytes(_MAX_FILE_BYTES)}, so it is no spec")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"cannot read {path}: {reason_of(error)}") from error
    return parse_documents(text, str(path), is_json=path.suffix == ".json")


def parse_documents(text: str, where: str, *, is_json: bool = False) -> list[Any]:
    """Parse `text`; see `read_documents`."""
    import yaml

    try:
        if is_json:
            return [json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)]
        return [document for document in yaml.load_all(text, Loader=_loader()) if document is not None]
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise SpecError(f"cannot parse {where}: {error}") from error


def _unique(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} is there twice")
    return found


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


def _loader() -> type[yaml.SafeLoader]:
    """PyYAML's safe loader, without its silence about a key that is there twice."""
    import yaml

    class UniqueLoader(yaml.SafeLoader):  # type: ignore[misc, unused-ignore]  # PyYAML ships no types
        pass

    def construct(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
        return _unique(loader.construct_pairs(node, deep=True))

    construct_mapping: Callable[[Any, Any], dict[Any, Any]] = construct
    UniqueLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, construct_mapping)
    return UniqueLoader


def is_spec(documents: list[Any]) -> bool:
    """Whether what was parsed says that it is a resource spec."""
    return len(documents) == 1 and isinstance(documents[0], dict) and documents[0].get("record") == "serving_spec"
