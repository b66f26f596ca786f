"""Proves what a bundle promises: starts its server, compares stored outputs, runs the load, measures, says PASS or FAIL.

Other work on the machine can only make a server look slower. So what passes beside it has passed; what fails beside it
has failed if it would have done so without all that the other work can have added (`watch.Disturbance`); and what lies
between was not judged, which is a verdict of its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from .arrivals import arrival_times
from .config import ServingConfig, check_manifest, load_config, load_vectors, read_json
from .errors import BundleError, ServerError
from .launch import Server, start
from .load import LoadResult, SoFar, infer_body, infer_path, make_bodies, quantile, run_load
from .memory import KIND
from .protocol import HEADER_LENGTH, parse_object
from .tensors import Array, decode, encode, relative_error
from .watch import Disturbance, Watch, busy_s, stolen_s, waited_s

Number = dict[str, Any]
Progress = Callable[[str], None]
Seen = Callable[[dict[str, Any]], None]

NAMES = {
    "errors": "request", "fidelity": "ratio", "latency_p50": "s", "latency_p95": "s", "latency_p99": "s",
    "throughput": "request/s", "memory": "B", "startup": "s",
}  # fmt: skip
"""What can be promised, and its unit."""
RELATIONS: dict[str, Callable[[float, float], bool]] = {
    "<=": lambda measured, limit: measured <= limit,
    ">=": lambda measured, limit: measured >= limit,
    "==": lambda measured, limit: measured == limit,
}
FOREIGN_SHARE = 0.1
"""More of the machine than this busy with other work makes the run noisy."""
SETTLE_REQUESTS, SETTLE_S = 20, 1.0
"""Before it counts, so many requests, or what comes in so long at the promised rate where that is slower: a large model would take many seconds for them.
Where that is no more than the requests whose outputs were compared, those were enough."""
ALONE = 4
"""Stored samples that are asked for one by one."""
TELL_EVERY_S = 0.5
TELL_WITHIN_S = 30.0
MAX_WINDOWS = 3
"""Runs of the load, as long as other work keeps one from being judged."""


def verify(
    folder: Path | str, *, duration_s: float | None = None, python: str | None = None, progress: Progress | None = None, seen: Seen | None = None
) -> dict[str, Any]:
    """Measure every promise of a bundle.

    Args:
        folder: The bundle.
        duration_s: Seconds of load; None: as in the promised scenario.
        python: The interpreter that runs the server; None: this one.
        progress: Told in a few words what happens now.
        seen: Given the check as far as it is, whenever more is known: what is measured and not judged yet has `passed` None.

    Returns:
        A check record: ``{"record": "check", "subject", "passed", "promises": [...], "findings": [...]}``; `passed` is None
        where the machine was too busy with other work to tell.
    """
    folder = Path(folder).resolve()
    say = progress or (lambda text: None)
    findings: list[dict[str, str]] = []
    promises: list[dict[str, Any]] = []
    measured: dict[str, Number] = {}
    least: dict[str, float] = {}
    try:
        promised = read_json(folder / "promises.json")
        promises = check_promises(promised)
        say("checking hashes")
        check_manifest(folder)
        measured, least = _measure(folder, promised, duration_s, python, say, _Follower(folder, promises, seen), findings)
    except (BundleError, ServerError) as error:
        findings.append(_finding("E-BUNDLE" if isinstance(error, BundleError) else "E-SERVER", "", str(error)))
    judged = [_judge(promise, measured.get(promise["name"]), least.get(promise["name"]), findings) for promise in promises]
    return {"record": "check", "subject": str(folder), "passed": verdict(judged, findings), "promises": judged, "findings": findings}


def verdict(judged: list[dict[str, Any]], findings: list[dict[str, str]]) -> bool | None:
    """True: every promise is kept; False: one is not, or something else is wrong; None: what is left could not be judged."""
    if not judged or any(promise["passed"] is False for promise in judged) or any(finding["code"].startswith("E-") for finding in findings):
        return False
    return None if any(promise["passed"] is None for promise in judged) else True


def check_promises(raw: dict[str, Any]) -> list[dict[str, Any]]:
    """The list of promises in a decoded `promises.json`.

    Raises:
        BundleError: a promise or the scenario is not understood; a promise that nobody can check is worth nothing.
    """
    promises, scenario = raw.get("promises"), raw.get("scenario")
    if not isinstance(promises, list) or not promises:
        raise BundleError("promises.json promises nothing")
    wanted = {"requests_per_s", "duration_s", "items_per_request", "seed"}
    if not isinstance(scenario, dict) or set(scenario) != wanted or not all(isinstance(scenario[key], (int, float)) for key in wanted):
        raise BundleError(f"promises.json: the scenario must have the numbers {', '.join(sorted(wanted))}")
    if min(scenario["requests_per_s"], scenario["duration_s"], scenario["items_per_request"]) <= 0:
        raise BundleError("promises.json: rate, duration and items of the scenario must be greater than 0")
    for promise in promises:
        if not isinstance(promise, dict) or promise.get("name") not in NAMES or promise.get("relation") not in RELATIONS:
            raise BundleError(f"promises.json: {promise!r} is not understood; names are {', '.join(NAMES)}, relations <=, >=, ==")
        limit = promise.get("limit")
        if not isinstance(limit, dict) or not isinstance(limit.get("value"), (int, float)) or limit.get("unit") != NAMES[promise["name"]]:
            raise BundleError(f"promises.json: the limit of {promise['name']} must have a value in {NAMES[promise['name']]}")
    return promises


def _finding(code: str, path: str, text: str) -> dict[str, str]:
    return {"code": code, "path": path, "text": text}


def _judge(promise: dict[str, Any], measured: Number | None, least: float | None, findings: list[dict[str, str]]) -> dict[str, Any]:
    kept = {"name": promise["name"], "relation": promise["relation"], "limit": promise["limit"], "measured": measured, "passed": False}
    if measured is not None:
        kept["passed"] = judge(promise, measured["value"], least)
    elif not any(finding["code"].startswith("E-") for finding in findings):
        findings.append(_finding("E-NOT-MEASURED", promise["name"], f"{promise['name']} could not be measured: no request was answered"))
    return kept


def judge(promise: dict[str, Any], measured: float, least: float | None) -> bool | None:
    """Whether a promise is kept; None where it is not, and would be without what other work can have added.

    Args:
        promise: What was promised.
        measured: What was measured.
        least: The figure without all that other work can have added; None where there was no more of it than usual.
    """
    holds, limit = RELATIONS[promise["relation"]], promise["limit"]["value"]
    if holds(measured, limit):
        return True
    return None if least is not None and holds(least, limit) else False


def _number(value: float, unit: str, method: str, **more: Any) -> Number:
    return {"value": value, "unit": unit, "source": "measured", "method": method, **more}


# --- measuring ---------------------------------------------------------------------------


class _Follower:
    """Tells whoever wants to see it how far the check is."""

    def __init__(self, folder: Path, promises: list[dict[str, Any]], seen: Seen | None) -> None:
        self._rows = {promise["name"]: {**promise, "measured": None, "passed": None} for promise in promises}
        self._subject, self._seen = str(folder), seen
        self._told_at = 0.0

    def settle(self, figures: dict[str, Number], least: dict[str, float]) -> None:
        """These figures are final."""
        self._tell({name: (figure, judge(self._rows[name], figure["value"], least.get(name))) for name, figure in figures.items() if name in self._rows})

    def running(self, so_far: SoFar) -> None:
        """So far has the load come; told twice a second and no more, because the load is sent by this very process."""
        if self._seen is None or time.monotonic() - self._told_at < TELL_EVERY_S:
            return
        result = so_far()
        if not result.ok.any():
            return
        latencies, method = result.latency_s[result.ok], f"of the {len(result.status):,} requests that were answered so far"
        figures = {
            name: _number(quantile(latencies, share), "s", method, n=len(latencies))
            for name, share in (("latency_p50", 0.5), ("latency_p95", 0.95), ("latency_p99", 0.99))
        }
        figures["errors"] = _number(result.num_failed, "request", method, n=len(result.status))
        self._tell({name: (figure, None) for name, figure in figures.items() if name in self._rows})

    def _tell(self, found: dict[str, tuple[Number, bool | None]]) -> None:
        for name, (figure, passed) in found.items():
            self._rows[name] |= {"measured": figure, "passed": passed}
        self._told_at = time.monotonic()
        if self._seen is not None:
            self._seen({"record": "check", "subject": self._subject, "passed": None, "promises": list(self._rows.values()), "findings": []})


def _measure(
    folder: Path,
    promised: dict[str, Any],
    duration_s: float | None,
    python: str | None,
    say: Progress,
    follower: _Follower,
    findings: list[dict[str, str]],
) -> tuple[dict[str, Number], dict[str, float]]:
    """Run the server through everything.

    Returns:
        The figures, and those of them that other work can have made worse, without what it can have added.
    """
    config, scenario = load_config(folder), promised["scenario"]
    rate, items, seed = float(scenario["requests_per_s"]), int(scenario["items_per_request"]), int(scenario["seed"])
    duration = float(duration_s or scenario["duration_s"])
    bodies = make_bodies(folder, config, items=items, seed=seed)
    say("starting the server")
    began, busy_before, own_before, stolen_before = time.monotonic(), busy_s(), time.process_time(), stolen_s()
    with start(folder, python=python, private=True, arguments=("--drain-grace", "0")) as server:  # nobody else has to learn that it ends
        watch = Watch(server.pid)
        measured = {"startup": _number(server.startup_s, "s", "from starting the process to ready", n=1)}
        startup_foreign_s = max(0.0, busy_s() - busy_before - watch.own_s() + own_before)
        least = _least_startup(server, startup_foreign_s, stolen_s() - stolen_before, time.monotonic() - began)
        follower.settle(measured, least)
        say("comparing stored outputs over REST and gRPC")
        error, num_compared = _fidelity(folder, config, server, findings)
        if error is not None:
            measured["fidelity"] = error
            follower.settle({"fidelity": error}, {})
        if len(times := settling_times(rate, num_compared, seed=seed + 1)):
            run_load(server.url, config, bodies, times, duration_s=len(times) / max(rate, 1 / SETTLE_S))
        times = arrival_times("poisson", rate=rate, duration_s=duration, seed=seed)

        def meanwhile(so_far: SoFar) -> None:
            watch.sample()
            follower.running(so_far)

        for window in range(MAX_WINDOWS):
            say(f"sending {rate:g} requests/s for {duration:g} s" + (", again, because other work kept the machine busy" if window else ""))
            watch.begin()
            result = run_load(server.url, config, bodies, times, duration_s=len(times) / rate, meanwhile=meanwhile)
            disturbance = watch.end()
            figures, without = _load_numbers(result), _least(result, disturbance)
            judged = [judge(p, figures[p["name"]]["value"], without.get(p["name"])) for p in promised["promises"] if p["name"] in figures]
            if None not in judged or False in judged:
                break
        measured |= figures
        least |= without
        measured["memory"] = _number(watch.peak_bytes, "B", f"peak {KIND} of the server and its workers, read 10 times a second")
        follower.settle({**figures, "memory": measured["memory"]}, without)
        say("stopping the server")
        if (code := server.stop()) != 0:
            findings.append(_finding("E-SHUTDOWN", "", f"the server ended with code {code} instead of 0"))
    if noise := noise_in(result, disturbance):
        findings.append(_finding("W-NOISY", "", noise))
        for name in ("latency_p50", "latency_p95", "latency_p99", "throughput", "startup"):
            if name in measured:
                measured[name]["quality"] = "noisy"
    return measured, least


def settling_times(rate: float, num_compared: int, *, seed: int) -> Array:
    """When requests leave that are sent before the load counts, in seconds.

    Args:
        rate: The promised one, in requests/s.
        num_compared: Requests that were answered before; where these were as many, none are sent.
        seed: Of the times.
    """
    rate = max(rate, 1 / SETTLE_S)
    wanted = min(SETTLE_REQUESTS, rate * SETTLE_S)
    return arrival_times("poisson", rate=rate, duration_s=wanted / rate, seed=seed) if wanted > num_compared else np.zeros(0)


def _is_busy(taken_cores: float) -> bool:
    return taken_cores > FOREIGN_SHARE * (os.cpu_count() or 1)


def _least_startup(server: Server, foreign_s: float, host_s: float, elapsed_s: float) -> dict[str, float]:
    """The start without what others can have added: other work its processor time, and no more than we waited, and the host what it took."""
    if not _is_busy((foreign_s + host_s) / elapsed_s):
        return {}
    waited = waited_s(server.pid)
    return {"startup": server.startup_s - min(foreign_s, foreign_s if waited is None else waited) - host_s}


def _least(result: LoadResult, disturbance: Disturbance) -> dict[str, float]:
    """Times and throughput of a run without what other work can have added; nothing where there was little of it."""
    if not _is_busy(disturbance.taken_cores):
        return {}
    undisturbed = dataclasses.replace(result, latency_s=disturbance.least_latency(result))
    numbers = _load_numbers(undisturbed)
    return {name: number["value"] for name, number in numbers.items() if name == "throughput" or name.startswith("latency_")}


def _load_numbers(result: LoadResult) -> dict[str, Number]:
    """The figures of a load run."""
    count = len(result.status)
    how = f"open loop, Poisson arrivals, {result.rate:g} requests/s for {result.duration_s:g} s"
    numbers = {
        "errors": _number(result.num_failed, "request", f"requests not answered with 200; {how}", n=count),
        "throughput": _number(result.throughput(), "request/s", f"answers that kept up with the offered load; {how}", n=count),
    }
    latencies = np.sort(result.latency_s[result.ok])
    for name, share in (("latency_p50", 0.5), ("latency_p95", 0.95), ("latency_p99", 0.99)) if len(latencies) else ():
        numbers[name] = _number(
            quantile(latencies, share),
            "s",
            f"from when a request should have left to its whole answer; {how}",
            n=len(latencies),
            interval=quantile_interval(latencies, share),
            interval_kind="95 % order-statistic interval",
        )
    return numbers


def quantile_interval(ordered: Array, share: float, confidence: float = 0.95) -> tuple[float, float]:
    """Distribution-free interval of a quantile, from the binomial law of the number of values below it.

    Args:
        ordered: Sorted values.
        share: Which quantile.
        confidence: Of the interval; where there are too few values for it, an end is the least or greatest value.
    """
    count = len(ordered)
    ranks = np.arange(count + 1)
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, count + 1)))])
    below = np.cumsum(np.exp(logs[count] - logs - logs[::-1] + ranks * math.log(share) + (count - ranks) * math.log1p(-share)))
    tail = (1 - confidence) / 2
    low = int(np.searchsorted(below, tail, side="right")) - 1
    high = int(np.searchsorted(below, 1 - tail, side="left"))
    return float(ordered[min(max(low, 0), count - 1)]), float(ordered[min(high, count - 1)])


def noise_in(result: LoadResult, disturbance: Disturbance) -> str | None:
    """Why the times should not be trusted; None when they can."""
    reasons = []
    if _is_busy(disturbance.taken_cores):
        reasons.append(disturbance.words)
    if lateness := result.lateness:
        reasons.append(lateness)
    return " and ".join(reasons) + " during the load" if reasons else None


# --- fidelity ----------------------------------------------------------------------------


def _fidelity(folder: Path, config: ServingConfig, server: Server, findings: list[dict[str, str]]) -> tuple[Number | None, int]:
    """Largest relative L2 error of a stored sample, over both protocols and in the workers' warm-up, and how many requests were answered for it."""
    inputs, outputs = load_vectors(folder, config)
    worst, count, num_answered = 0.0, 0, 0
    for first, (protocol, infer) in enumerate((("REST", _rest_client(config, server)), ("gRPC", _grpc_client(config, server)))):
        try:
            for part in _parts(config, len(inputs[0]), first):
                got = infer([array[part] for array in inputs])
                worst = max(worst, relative_error(config, got, [array[part] for array in outputs]))
                count += len(got[0]) if config.batched else 1
                num_answered += 1
        except ServerError as error:
            findings.append(_finding("E-FIDELITY", protocol, f"the stored inputs got no answer over {protocol}: {error}"))
            return None, num_answered
    parity = _parity_error(server)
    if not math.isfinite(parity):
        text = "a worker's answers to its warm-up, which is made of the stored inputs, are not finite or of other shapes than the stored outputs"
        findings.append(_finding("E-FIDELITY", "warm-up", text))
        return None, num_answered
    how = "largest relative L2 error of a stored sample, over REST and gRPC, singly and in batches, and in a worker's warm-up, which takes a full one"
    return _number(max(worst, parity), "ratio", how, n=count), num_answered


def _parity_error(server: Server) -> float:
    """How far the workers' answers to their warm-up are from the stored ones.

    Raises:
        ServerError: it does not tell.
    """
    address = urlsplit(server.url)
    with contextlib.closing(http.client.HTTPConnection(address.hostname or "", address.port, timeout=TELL_WITHIN_S)) as connection:
        try:
            connection.request("GET", "/metrics")
            lines = connection.getresponse().read().decode().splitlines()
            return max(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("aimass_parity_error{"))
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise ServerError(f"/metrics does not tell of the warm-up: {error or type(error).__name__}") from None


def _parts(config: ServingConfig, samples: int, first: int) -> list[Any]:
    """Which samples go together: all in batches, and every second of the first few alone, since the others go over the other protocol.

    Args:
        config: Says how large a batch may be.
        samples: How many there are.
        first: The first one that goes alone, 0 or 1.
    """
    if not config.batched:
        return [...]
    size = config.max_batch_size
    return [slice(i, i + size) for i in range(0, samples, size)] + [slice(i, i + 1) for i in range(min(first, samples - 1), min(samples, ALONE), 2)]


Infer = Callable[[list[Array]], list[Array]]


def _rest_client(config: ServingConfig, server: Server) -> Infer:
    address = urlsplit(server.url)

    def infer(arrays: list[Array]) -> list[Array]:
        length, body = infer_body(config, arrays)
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=config.request_timeout_s + 5)
        try:
            connection.request("POST", infer_path(config), body, {HEADER_LENGTH: str(length)})
            response = connection.getresponse()
            answer = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise ServerError(str(error) or type(error).__name__) from None
        finally:
            connection.close()
        if response.status != 200:
            raise ServerError(f"{response.status} {answer[:500].decode('utf-8', 'replace')}")
        header = int(response.headers[HEADER_LENGTH])
        tail, arrays = answer[header:], []
        for entry in parse_object(answer[:header])["outputs"]:
            size = entry["parameters"]["binary_data_size"]
            arrays.append(decode(entry["datatype"], entry["shape"], tail[:size]))
            tail = tail[size:]
        return arrays

    return infer


def _grpc_client(config: ServingConfig, server: Server) -> Infer:
    import grpc

    from .grpc_messages import INFERENCE_SERVICE, ModelInferRequest, ModelInferResponse

    def infer(arrays: list[Array]) -> list[Array]:
        request = ModelInferRequest(model_name=config.name, model_version=config.version)
        for spec, array in zip(config.inputs, arrays, strict=True):
            request.inputs.add(name=spec.name, datatype=spec.datatype, shape=array.shape)
            request.raw_input_contents.append(bytes(encode(spec.datatype, array)))
        options = [("grpc.max_receive_message_length", -1), ("grpc.enable_http_proxy", 0)]  # a proxy that the environment names is no way to this machine
        with grpc.insecure_channel(server.grpc_address, options=options) as channel:
            call = channel.unary_unary(f"/{INFERENCE_SERVICE}/ModelInfer", lambda m: m.SerializeToString(), ModelInferResponse.FromString)
            try:
                answer = call(request, timeout=config.request_timeout_s + 5)
            except grpc.RpcError as error:
                raise ServerError(f"{error.code().name} {error.details()}") from None
        pairs = zip(answer.outputs, answer.raw_output_contents, strict=True)
        return [decode(output.datatype, tuple(output.shape), data) for output, data in pairs]

    return infer


# --- for people --------------------------------------------------------------------------

WORDS = {True: "PASS", False: "FAIL", None: "BUSY"}
"""BUSY: not judged, because other work kept the machine busy."""


def report(check: dict[str, Any]) -> str:
    """One line per promise, the findings, and the verdict on the last line."""
    width = max((len(promise["name"]) for promise in check["promises"]), default=0)
    lines = []
    for promise in check["promises"]:
        limit, measured = promise["limit"], promise["measured"]
        shown = "not measured" if measured is None else format_number(measured["value"], measured["unit"])
        promised = format_number(limit["value"], limit["unit"])
        lines.append(f"{WORDS[promise['passed']]}  {promise['name']:{width}}  {shown:>14}   promised {promise['relation']} {promised}")
    lines += [f"{finding['code']}: {finding['text']}" for finding in check["findings"]]
    return "\n".join([*lines, "NOT JUDGED: the machine was too busy with other work" if check["passed"] is None else WORDS[check["passed"]]])


def format_number(value: float, unit: str) -> str:
    """``0.0172, "s"`` -> ``17.2 ms``."""
    if unit == "s":
        return f"{value * 1e3:.3g} ms" if value < 1 else f"{value:.3g} s"
    if unit == "B":
        return f"{value / 2**20:.1f} MiB"
    if unit == "ratio":
        return f"{value:.2e}"
    return f"{value:,.5g} {unit}"
