"""The verbs that need no model: serving and checking what was written, and looking at what was found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from .comparison import compare_records
from .errors import BundleError, InputError
from .records import AnyRecord, Check, Comparison, History, Ledger, Monitoring, Readings, Record, Service, ServingSpec, TraceSummary
from .store import Store
from .units import parse_seconds
from .verbs import Count, Latency, Part, Progress, Seconds, Share, verb

if TYPE_CHECKING:
    from .serving.launch import Server

LEDGER_ENTRIES = 200
"""Most entries that a ledger is given out with; its running errors count them all."""


@verb
def serve(folder: str, *, port: int = 8000, grpc_port: int = 8001) -> Server:
    """Serve a bundle on this machine.

    Args:
        folder: Folder of the bundle.
        port: Port for REST on the loopback address; 0 picks a free one.
        grpc_port: Port for gRPC on the loopback address; 0 picks a free one.
    """
    from .bundle import require_bundle
    from .serving.errors import ServerError
    from .serving.launch import start

    bundle = require_bundle(Path(folder))
    try:
        return start(bundle, port=port, grpc_port=grpc_port)
    except ServerError as error:
        raise BundleError(str(error), help="choose other ports if these are taken: --port 0 --grpc-port 0 picks free ones") from error


def service_record(server: Server) -> Service:
    """Describe a running server."""
    return Service(folder=str(server.folder), url=server.url, grpc_address=server.grpc_address, pid=server.pid)


@verb
def check(
    path: str,
    *,
    seconds: Seconds | None = None,
    crd: tuple[str, ...] = (),
    baseline: str | None = None,
    tolerance: Share = 0.05,
    progress: Progress | None = None,
    seen: Callable[[Check], None] | None = None,
) -> Check:
    """Verify a bundle, a resource spec, or manifests, or see what got worse since a baseline.

    A bundle is started and measured against its own promises. A spec and manifests are checked without a
    cluster: by Kubernetes' own schemas, by rules on what objects say of each other, and, where the spec that
    they were made from is there, against its numbers.

    With a baseline it fails as well where a figure got worse beyond the spread of both and the tolerance; what may be another
    machine's or other work's is not judged. For that, what any verb printed with --json can be checked too.

    Args:
        path: Folder of a bundle, a spec's file, a file or folder of manifests (Kubernetes, compose, alert rules, a chart of ours), or a record.
        seconds: Time of a bundle's load test; what the bundle says if not given.
        crd: File or folder of definitions of custom resources to check by, as kubectl get crd NAME -o json gives them; may be repeated.
        baseline: What to compare with: a run's number, a record's or spec's file, or the folder of a bundle.
        tolerance: Share of a figure that it may lose, beyond the spread, before the check fails.
        progress: Told how far it is.
        seen: Given the check of a bundle as far as it is, whenever more is known.
    """
    from .baseline import compare_with_baseline, read_baseline
    from .bundle import is_bundle, verify_bundle
    from .export import check_spec_path, find_spec

    target = Path(path)
    if not target.exists():
        raise InputError(f"there is nothing at {path!r}", help="give the folder of a bundle, a spec's file, or manifests")
    earlier = None if baseline is None else read_baseline(baseline, lambda run: Store().get(run)[1])
    now: Record | None = None
    if is_bundle(target):
        now = record = verify_bundle(target, duration_s=None if seconds is None else parse_seconds(seconds), progress=progress, seen=seen)
    elif earlier is not None and (found := _record_at(target)) is not None:
        now, record = found, Check(subject=str(path), passed=True)
    else:
        record = check_spec_path(target, crd)
        now = None if earlier is None else find_spec(target)
    if earlier is not None and baseline is not None:
        if now is None:
            raise InputError(f"{path} holds no spec, so there is nothing to compare", help="give a spec, a bundle, or what a verb printed with --json")
        record = compare_with_baseline(record, earlier, now, baseline=f"run {baseline}" if baseline.isdigit() else baseline, tolerance=tolerance)
    Store().remember("check", record, model=target.name)
    return record


def _record_at(path: Path) -> Record | None:
    """What a verb printed with --json; None for a spec, which has a check of its own, and for all else."""
    from .baseline import read_record

    found = read_record(path) if path.is_file() and path.suffix == ".json" else None
    return None if isinstance(found, ServingSpec) else found


@verb
def monitor(
    url: str,
    *,
    seconds: Seconds = 10.0,
    every: Seconds = 1.0,
    p99: Latency | None = None,
    attainment: Part = 0.99,
    token: str | None = None,
    progress: Progress | None = None,
) -> Monitoring:
    """Watch a running bundle's server: latency, queue, utilization, restarts, and what is left of its error budget.

    Every look is a line while it goes on, read off the server's own metrics. An interrupt ends it early and keeps what was seen.

    Args:
        url: Address of the server, such as http://127.0.0.1:8000.
        seconds: How long to watch.
        every: Time from one look to the next.
        p99: Latency within which requests should be answered; what the bundle promises if not given.
        attainment: Share of all requests that should be.
        token: Token that the server asks for.
        progress: Told every look.
    """
    from .monitoring import monitor as watch

    latency_s = None if p99 is None else parse_seconds(p99)
    record = watch(url, seconds=parse_seconds(seconds), every=parse_seconds(every), latency_s=latency_s, attainment=attainment, token=token, progress=progress)
    Store().remember("monitor", record, model=record.models[0].split()[0])
    return record


@verb
def history(*, model: str | None = None, limit: Count = 20) -> History:
    """List what was measured, newest first.

    Args:
        model: Only runs of the model of this name.
        limit: Most runs to list.
    """
    store = Store()
    return History(store=str(store.path), runs=store.runs(limit=limit, model=model))


@verb
def ledger(*, model: str | None = None) -> Ledger:
    """Hold predictions against what was measured later: the running error by kind, and the newest entries.

    Args:
        model: Only predictions for the model of this name.
    """
    from .prediction.ledger import summarise

    store = Store()
    entries = store.entries(model=model)
    return Ledger(store=str(store.path), model=model, kinds=summarise(entries), entries=entries[:LEDGER_ENTRIES])


@verb
def show(run: Count) -> AnyRecord:
    """Show a run of the history again; neither its model nor its device is needed.

    Args:
        run: Number of the run.
    """
    return Store().get(run)[1]


@verb
def compare(before: Count, after: Count) -> Comparison:
    """Set two runs of the history side by side.

    Args:
        before: Number of the run to compare with.
        after: Number of the run to compare.
    """
    store = Store()
    return compare_records(store.get(before), store.get(after))


@verb
def readings(*, seconds: Seconds = 0.5) -> Readings:
    """Read what this machine is doing: GPUs, processor, memory, network, and why something cannot be read.

    Args:
        seconds: Time between the two looks that rates come from.
    """
    from .readings import take_readings

    return take_readings(parse_seconds(seconds))


@verb
def read_trace(path: str) -> TraceSummary:
    """Sum up a trace of torch's profiler, from whatever machine: steps, operators, kernels, modules, memory.

    Args:
        path: The file: .json or .json.gz.
    """
    from .profiling.traces import read_trace as read

    return read(path)
