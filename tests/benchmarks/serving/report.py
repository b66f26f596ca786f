"""RESULTS.md from what lies in ``results/``: goals, tables with medians and ranges over the cycles, failures and misses."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

import peers
import results
import zoo
from contestants import CONTESTANTS, OURS
from results import kept

TARGET = results.HERE / "RESULTS.md"
TITLES = {"echo": "Echo: 784 numbers back", "mlp": "MLP 784-1024-10", "encoder": "Encoder: 2 layers of width 128 over 32 tokens"}
NAMES = {contestant.name: contestant for contestant in CONTESTANTS}
Models = dict[str, Any]


def write(name: str = "speed") -> str:
    """Write the report and return it."""
    speed, promise = results.load(name), results.load("promise")
    models = {key: speed["models"][key] for key in zoo.ZOO if speed.get("models", {}).get(key, {}).get("cycles")}
    parts = [head(speed, models), goals(models), *(tables(key, models[key]) for key in models), at_rest(models), failed(speed), promises(promise)]
    text = "\n\n".join(part.strip() for part in parts if part) + "\n"
    if name == "speed":
        TARGET.write_text(text)
    return text


# --- figures -------------------------------------------------------------------------------------


def figures(model: dict[str, Any], server: str, point: str, what: str) -> list[float]:
    """One figure by cycle, as far as it was measured and no request failed: ``rate``, ``cpu_ms`` or ``p99_ms``."""
    found = []
    for cycle in model["cycles"]:
        burst = cycle.get(server, {}).get(point)
        good = burst["requests"] - burst["failed"] if burst else 0
        if good > 0:
            found.append({"rate": good / burst["seconds"], "cpu_ms": 1e3 * burst["cpu_s"] / good, "p99_ms": 1e3 * burst["p99_s"]}[what])
    return found


def ratios(model: dict[str, Any], peer: str, point: str, what: str) -> list[float]:
    """By cycle, of those in which both were measured: how many times better ours is."""
    found = []
    for cycle in model["cycles"]:
        pair = [figures({"cycles": [cycle]}, server, point, what) for server in (peer, OURS)]
        if all(pair) and pair[0][0] and pair[1][0]:
            (theirs,), (ours,) = pair
            found.append(ours / theirs if what == "rate" else theirs / ours)
    return found


def spread(values: list[float], digits: int = 2) -> str:
    """Median and range. Of 6 cycles, the range is a 97 % interval of the median, whatever the distribution."""
    if not values:
        return "–"
    return f"{statistics.median(values):.{digits}f} [{min(values):.{digits}f}, {max(values):.{digits}f}]"


def plain(values: list[float]) -> str:
    if not values:
        return "–"
    value = statistics.median(values)
    return f"{value:.0f}" if value >= 100 else f"{value:.2f}"


def hit(text: str, reached: bool) -> str:
    return text if reached else f"**{text}**"


# --- what was to be reached ----------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Goal:
    """How many times better than one peer at one point."""

    peer: str
    model: str
    connections: int
    what: str
    at_least: float


CPU_GOALS = {
    "LitServe": (8.0, 3.0), "BentoML": (8.0, 4.0), "KServe SDK": (6.0, 3.0), "MLServer": (5.0, 2.5), "FastAPI": (3.0, 2.0),
    "Ray Serve, HAProxy": (3.0, 1.8), "Ray Serve": (30.0, 12.0), "mosec": (1.0, 0.9), "mosec, ORT": (1.0, 0.9),
}  # fmt: skip
"""Processor time of the peer over ours at 16 connections: on the MLP and on the encoder."""
GOALS = [
    *(
        Goal(peer=peer, model=model, connections=16, what="cpu_ms", at_least=bar)
        for peer, bars in CPU_GOALS.items() for model, bar in zip(("mlp", "encoder"), bars, strict=True)
    ),
    *(
        Goal(peer=peer, model=model, connections=connections, what="rate", at_least=bar)
        for peer in ("mosec", "mosec, ORT") for model in ("mlp", "encoder") for connections, bar in ((1, 5.0), (16, 1.2), (64, 1.0))
    ),
]  # fmt: skip
WORDS = {"cpu_ms": "processor time", "rate": "requests/s"}


def goals(models: Models) -> str:
    body = []
    for goal in GOALS:
        values = ratios(models[goal.model], goal.peer, f"json/{goal.connections}", goal.what) if goal.model in models else []
        if values:
            reached = statistics.median(values) >= goal.at_least
            told = [goal.peer, goal.model, str(goal.connections), WORDS[goal.what], f"≥ {goal.at_least:g}×", hit(spread(values) + "×", reached)]
            body.append([*told, "yes" if reached else "**no**"])
    for key in models:
        body += p99_goal(key, models[key])
    if OURS in models.get("mlp", {}).get("servers", {}):
        body += rest_goals(models["mlp"]["servers"])
    if not body:
        return ""
    told = sum(row[-1] == "yes" for row in body)
    text = f"## What was to be reached\n\n{told} of {len(body)}. JSON; × is how many times better ours is, the range that of the cycles; a miss is in bold.\n\n"
    return text + kept.table(["against", "model", "connections", "what", "goal", "measured", "reached"], body)


def p99_goal(key: str, model: dict[str, Any]) -> list[list[str]]:
    """No worse than the best peer's, where ranges of cycles that overlap are a draw."""
    ours = figures(model, OURS, "json/16", "p99_ms")
    theirs = {name: found for name in model["servers"] if name != OURS and (found := figures(model, name, "json/16", "p99_ms"))}
    if not ours or not theirs:
        return []
    best = min(theirs, key=lambda name: statistics.median(theirs[name]))
    reached = statistics.median(ours) <= statistics.median(theirs[best])
    draw = not reached and min(ours) <= max(theirs[best])
    said = "yes" if reached else "**no**, ranges overlap" if draw else "**no**"
    return [[f"the best, {best}", key, "16", "p99", "≤ its p99", hit(f"{spread(ours, 1)} ms, its {spread(theirs[best], 1)} ms", reached), said]]


def rest_goals(servers: dict[str, Any]) -> list[list[str]]:
    """Start, memory and idling, on the MLP."""
    ours, rows = servers[OURS], []
    if starts := servers.get("LitServe", {}).get("start_s"):
        share = statistics.median(ours["start_s"]) / statistics.median(starts)
        rows.append(["LitServe", "mlp", "", "seconds to the first right answer", "≤ 0.25×", hit(f"{share:.2f}×", share <= 0.25), share <= 0.25])
    batching = {n: statistics.median(s["pss_bytes"]) for n, s in servers.items() if n != OURS and NAMES[n].batches and s.get("pss_bytes")}
    if batching and ours.get("pss_bytes"):
        for tuned, kind in ((False, "torch"), (True, "ORT")):
            some = {name: size for name, size in batching.items() if NAMES[name].tuned is tuned}
            if some:
                least = min(some, key=some.__getitem__)
                share = statistics.median(ours["pss_bytes"]) / some[least]
                rows.append(
                    [f"the lightest that batches, with {kind}: {least}", "mlp", "", "memory", "≤ 0.5×", hit(f"{share:.2f}×", share <= 0.5), share <= 0.5]
                )
    if ours.get("idle_cores"):
        idle = statistics.median(ours["idle_cores"])
        rows.append(["", "mlp", "", "processor while idle", "< 1 %", hit(f"{100 * idle:.2f} %", idle < 0.01), idle < 0.01])
    return [[*row[:-1], "yes" if row[-1] else "**no**"] for row in rows]


# --- tables --------------------------------------------------------------------------------------


def head(speed: dict[str, Any], models: Models) -> str:
    if not models:
        return "# Evaluation of serving\n\nSpeed was not measured yet."
    facts = speed["facts"]
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    cycles = ", ".join(f"{key} {len(model['cycles'])}" for key, model in models.items())
    return f"""# Evaluation of serving

{facts["date"]}, {facts["processor"]}, {facts["cores"]:g} cores, {facts["memory_bytes"] / 1e9:.0f} GB, Python {facts["python"]}; here {versions};
the others, each in an environment of its own: {", ".join(peers.versions())}. Cycles measured: {cycles}.

Command: `make benchmark-serving`, which is `peers.py --install FOLDER`, `run.py --peers FOLDER` and `promise.py` of this folder;
it goes on where it was interrupted.

The same weights, one model process with one thread, batches of at most {zoo.MAX_BATCH} held for at most {1e3 * zoo.MAX_WAIT_S:g} ms where the server batches
(BentoML adapts both by itself, KServe's SDK and FastAPI do not batch). “ORT” beside a name is what a user can do by hand: ONNX Runtime on our bundle's own
file instead of torch, and orjson instead of json; it tells the server from the runtime. Ours runs as the bundle starts it: token, checks of every input,
metrics and gRPC on; the others have no token. Every answer to 64 samples is compared with the model's before anything is measured.
All servers of a model are up; in each cycle they come in random order, each loaded for a second at a time by `wrk` with 1, 16 and 64
connections in random order; those not measured are stopped (SIGSTOP; Ray Serve, which does not bear it, idles). Processor time is that of the server's whole
process tree, without the client's; requests/s and p99 share the machine with the client. Figures are medians, with the range over the
cycles in brackets.{beside_earlier()}"""


def beside_earlier() -> str:
    """What the server takes of an earlier one, where `versions.py` measured both side by side."""
    found = results.load("versions")
    if not found:
        return ""

    def times(point: str) -> str:
        today, earlier = (figures(found, server, point, "cpu_ms") for server in ("today", "earlier"))
        return spread([a / b for a, b in zip(today, earlier, strict=True)])

    return (
        f" Ours was measured beside an earlier one, too (`versions.py --against {found['against']}`): {found['model']}, 16 connections, "
        f"{times('json/16')} times the processor time in JSON and {times('binary/16')} in binary ({len(found['cycles'])} cycles, side by side)."
    )


def tables(key: str, model: dict[str, Any]) -> str:
    parts = [f"## {TITLES[key]}"]
    for wire in ("json", "binary"):
        body = []
        for name in NAMES:
            row = [name if name != OURS else f"**{name}**"]
            for what in ("cpu_ms", "rate", "p99_ms"):
                row += [plain(figures(model, name, f"{wire}/{count}", what)) for count in (1, 16, 64)]
            ratio = spread(ratios(model, name, f"{wire}/16", "cpu_ms")) if name != OURS else "1"
            if any(cell != "–" for cell in row[1:]):
                body.append([*row, ratio])
        if body:
            header = ["", *(f"{text} at {count}" for text in ("CPU-ms", "requests/s", "p99 ms") for count in (1, 16, 64)), "CPU at 16 over ours"]
            parts.append(f"{wire.upper() if wire == 'json' else 'Binary'}:\n\n" + kept.table(header, body))
    failures = [
        f"{name}, {point}: {sum(cycle[name][point]['failed'] + cycle[name][point]['broken'] for cycle in model['cycles'])}"
        for name, points in model["cycles"][0].items() for point in points
        if any(cycle.get(name, {}).get(point, {}).get("failed", 0) + cycle.get(name, {}).get(point, {}).get("broken", 0) for cycle in model["cycles"])
    ]  # fmt: skip
    parts.append("Requests that failed: " + ("; ".join(failures) if failures else "none") + ".")
    return "\n\n".join(parts)


def at_rest(models: Models) -> str:
    body = []
    for name in NAMES:
        row = [name]
        for model in models.values():
            server = model["servers"].get(name, {})
            idle = [100 * value for value in server.get("idle_cores", ())]
            row += [plain(server.get("start_s", [])), plain([value / 2**20 for value in server.get("pss_bytes", ())]), plain(idle)]
        if any(cell != "–" for cell in row[1:]):
            body.append(row)
    header = ["", *(f"{key}: {what}" for key in models for what in ("start s", "memory MiB", "idle %"))]
    told = "Start is from the command to the first right answer; memory is PSS of the tree after the load; idle is processor time of one core."
    return f"## At rest\n\n{told}\n\n{kept.table(header, body)}" if body else ""


def failed(speed: dict[str, Any]) -> str:
    found = [
        [name, key, server["failed"].replace("|", "/")]
        for key, model in speed.get("models", {}).items() for name, server in model.get("servers", {}).items()
        if "failed" in server and "start_s" not in server
    ]  # fmt: skip
    return "## Not measured\n\n" + kept.table(["server", "model", "why"], found) if found else ""


# --- promises ------------------------------------------------------------------------------------


VERDICTS = {True: "PASS", False: "FAIL", None: "cannot tell"}


def promises(found: dict[str, Any]) -> str:
    """Bands of plans and verdicts of proofs."""
    honest, sabotaged = found.get("honest", {}), found.get("sabotaged", {})
    if not honest:
        return ""
    inside = {key: within(entry) for key, entry in honest.items()}
    share, right = sum(inside.values()) / len(inside), [entry["passed"] is True for entry in honest.values()]
    caught = [entry["passed"] is False for entry in sabotaged.values()]
    quiet = [inside[key] for key, entry in honest.items() if not any(finding.startswith("W-NOISY") for finding in entry["findings"])]
    plans = [entry["plan"] for entry in honest.values() if entry["plan"]["band_s"]]
    ends = [statistics.median([plan["band_s"][end] / plan["p99_s"] for plan in plans] or [1.0]) for end in (0, 1)]
    text = (
        f"The measured p99 lay within the plan's band in {hit(f'{sum(inside.values())} of {len(inside)}', share >= 0.8)} runs (goal: 80 %), and in "
        f"{sum(quiet)} of the {len(quiet)} whose proof found nothing that disturbed it. "
        f"`verify` said PASS to {hit(f'{sum(right)} of {len(right)}', all(right))} bundles as they were written, and FAIL to "
        f"{hit(f'{sum(caught)} of {len(caught)}', all(caught))} copies that something was done to.\n\n"
        f"Bands reached from {ends[0]:.2f} to {ends[1]:.1f} times the predicted p99, by the median: a plan's reaches as far beyond its own as the rehearsals "
        "of the model here did, and where other work, or the host of a virtual machine, had the processor in these, it is as wide as what they met.\n\n"
        "The plan rests on a rehearsal of the server where nothing disturbed its measurement, else on the model's profile and a recorded default for the "
        "server, as the one before the rehearsal does. A proof of an honest bundle that says itself that the machine was not quiet is "
        "repeated, once; the last one counts.\n\n"
    )
    rows = []
    for key, entry in honest.items():
        p99 = "–" if entry["p99_s"] is None else hit(f"{1e3 * entry['p99_s']:.1f}", inside[key])
        verdict = hit(VERDICTS[entry["passed"]], entry["passed"] is True)
        rows.append([key, p99, band(entry, "band_s"), band(entry, "before_band_s"), verdict, "; ".join(entry["findings"]).replace("|", "/")])
    text += kept.table(["model, rate, arrivals", "measured p99 ms", "plan's band ms", "before the rehearsal ms", "verdict", "findings"], rows)
    rows = [
        [key, hit(VERDICTS[entry["passed"]], entry["passed"] is False), ", ".join(entry["broken"]), "; ".join(entry["findings"]).replace("|", "/")]
        for key, entry in sabotaged.items()
    ]  # fmt: skip
    return "## Promises\n\n" + text + ("\n\n" + kept.table(["what was done", "verdict", "broken promises", "findings"], rows) if rows else "")


def within(entry: dict[str, Any]) -> bool:
    low, high = entry["plan"]["band_s"] or (0.0, 0.0)
    return entry["p99_s"] is not None and low <= entry["p99_s"] <= high


def band(entry: dict[str, Any], which: str) -> str:
    return " to ".join(f"{1e3 * value:.1f}" for value in entry["plan"][which]) or "none"
