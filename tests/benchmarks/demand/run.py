"""The evaluation of demand: every model, every oracle, every peer, written to RESULTS.md with the misses.

``make benchmark-demand`` runs it. ``--only NAME`` takes one model, ``--vidur FOLDER`` adds the devices never seen and the
all-reduce times (a checkout of the public measurements of microsoft/vidur, see vidur.py), ``--quick`` leaves out what has to be quiet.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "RESULTS.md"
PEERS_FLOPS = ("torch FlopCounterMode", "torchinfo", "fvcore", "calflops", "DeepSpeed")
PEERS_MEMORY = ("torch MemTracker", "torchinfo", "accelerate")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", help="a model's name; may be repeated")
    parser.add_argument("--vidur", type=Path, help="folder of the public measurements")
    parser.add_argument("--quick", action="store_true", help="leave out latencies")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    import zoo

    entries = [entry for entry in zoo.ZOO if not options.only or entry.name in options.only]
    found = [result for entry in entries if (result := child(entry.name))]
    parts = [head(), flops_table(found), memory_table(found), training_table(found), time_table(found)]
    if not options.quick:
        parts += [
            script("latency.py", "Latency at batch sizes that were not measured, wall time"),
            script("latency.py", "The same, processor time", "--clock", "cpu"),
            script("resources.py", "R = α·C + β·S + γ·N on this machine", plain=True),
        ]
    if options.vidur:
        parts.append(script("vidur.py", "Devices never seen", str(options.vidur)))
        parts.append(script("network.py", "All-reduce times on held-out sizes", str(options.vidur), plain=True))
    options.out.write_text("\n\n".join(part.strip() for part in parts if part) + "\n")
    print(options.out.read_text())


def child(name: str) -> dict[str, Any] | None:
    print(f"{name} ...", file=sys.stderr, flush=True)
    done = subprocess.run([sys.executable, "-W", "ignore", str(HERE / "measure.py"), name], capture_output=True, text=True, env=os.environ)
    if done.returncode:
        print(f"{name} failed:\n{done.stderr[-2000:]}", file=sys.stderr)
        return {"name": name, "failed": done.stderr.strip().splitlines()[-1][:200]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def script(name: str, title: str, *arguments: str, plain: bool = False) -> str:
    """What one of the scripts beside this one prints, under its title; plain text as it is."""
    print(f"{name} ...", file=sys.stderr, flush=True)
    done = subprocess.run([sys.executable, "-W", "ignore", str(HERE / name), *arguments], capture_output=True, text=True, env=os.environ)
    if done.returncode:
        return f"## {title}\n\nfailed: {done.stderr.strip().splitlines()[-1][:300]}"
    printed = done.stdout.strip().replace("\n## ", "\n### ")
    return f"## {title}\n\nBy `{name}`.\n\n" + (f"```\n{printed}\n```" if plain else printed)


def head() -> str:
    import torch
    import transformers

    from aimass_lab.environment import read_environment

    here = read_environment(torch.device("cpu"))
    return (
        f"# Evaluation of demand\n\n{datetime.date.today()}, {here.device_name}, {here.cpu_cores:g} cores, {here.memory_bytes / 1e9:.0f} GB, "
        f"torch {here.torch}, transformers {transformers.__version__}, Python {here.python}; one torch thread; no GPU, so nothing here was measured on one.\n\n"
        "Command: `make benchmark-demand`. Weights are random, shapes are real. A miss is in bold."
    )


def percent(value: float, truth: float, *, bar: float) -> str:
    error = 100 * (value / truth - 1)
    text = f"{error:+.2f} %" if abs(error) < 1000 else f"{value / truth:.1f}×"
    return text if abs(error) <= bar else f"**{text}**"


def said(answer: dict[str, Any] | None, truth: float, *, bar: float) -> str:
    if answer is None:
        return "–"
    return "fails" if "error" in answer else percent(answer["value"], truth, bar=bar)


def rows(header: list[str], body: list[list[str]]) -> str:
    return "\n".join(["| " + " | ".join(header) + " |", "|" + " --- |" * len(header), *("| " + " | ".join(row) + " |" for row in body)])


def whole(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [result for result in found if "failed" not in result]


def flops_table(found: list[dict[str, Any]]) -> str:
    body = []
    for result in found:
        if "failed" in result:
            body.append([result["name"], "", f"**{result['failed']}**", *[""] * (1 + len(PEERS_FLOPS))])
            continue
        truth = result["hand_count"]
        others = [said(result["peers_flops"].get(peer), truth, bar=0.1) for peer in PEERS_FLOPS]
        listed = ", ".join(result["unknown"]) or "–"
        body.append([result["name"], f"{truth / 1e9:,.2f}", percent(result["flops"], truth, bar=0.1), listed, *others])
    text = "## FLOPs of one forward call, against a hand count\n\nThe hand count comes from layer shapes, forward hooks and a formula beside each model; "
    text += "peers' multiply-adds are doubled. Error in per cent; bar 0.1 %.\n\n"
    return text + rows(["model", "GFLOP", "ours", "listed as unknown", *PEERS_FLOPS], body)


def memory_table(found: list[dict[str, Any]]) -> str:
    body, errors, held = [], [], []
    for result in whole(found):
        for point in result["memory"]:
            error = point["predicted"] / point["measured"] - 1
            errors.append(abs(error))
            if point["band"]:
                held.append(point["band"][0] <= point["measured"] <= point["band"][1])
            first = point is result["memory"][min(1, len(result["memory"]) - 1)]
            others = [said(result["peers_memory"].get(peer), point["measured"], bar=5) if first else "" for peer in PEERS_MEMORY]
            calibrated = percent(point["calibrated"], point["measured"], bar=1) if point.get("calibrated") else "–"
            predicted = percent(point["predicted"], point["measured"], bar=5)
            body.append([result["name"], str(point["batch"]), f"{point['measured'] / 2**20:,.1f}", predicted, calibrated, *others])
    errors.sort()
    summary = (
        f"Without a run: median {100 * statistics.median(errors):.2f} %, p95 {100 * errors[int(0.95 * (len(errors) - 1))]:.2f} %, "
        f"worst {100 * errors[-1]:.1f} %; the band held {sum(held)} of {len(held)}."
    )
    calibrated = [abs(p["calibrated"] / p["measured"] - 1) for r in whole(found) for p in r["memory"] if p.get("calibrated")]
    if calibrated:
        summary += f" After calibration on two batches: worst {100 * max(calibrated):.2f} % over {len(calibrated)} held-out batches."
    text = "## Peak memory of one call on the CPU, weights and inputs included\n\nMeasured: every allocation of torch's CPU allocator during a real call. "
    text += "Bars: 5 % without a run, 1 % calibrated.\n\n"
    return text + summary + "\n\n" + rows(["model", "batch", "measured MiB", "without a run", "calibrated, held out", *PEERS_MEMORY], body)


def training_table(found: list[dict[str, Any]]) -> str:
    body = []
    for result in whole(found):
        step = result.get("training")
        if not step:
            continue
        memory = percent(step["peak_predicted"], step["peak_measured"], bar=3) if step.get("peak_measured") else "–"
        measured = f"{step['peak_measured'] / 2**20:,.1f}" if step.get("peak_measured") else "–"
        counter = percent(step["counter"], step["hand_count"], bar=0.1) if step.get("counter") else "–"
        flops = percent(step["flops"], step["hand_count"], bar=0.1) if step.get("hand_count") else "–"
        body.append([result["name"], str(step["batch"]), flops, counter, measured, memory, f"{step['cpu_s']:.2f}"])
    if not body:
        return ""
    text = "## One training step (forward, backward, AdamW), the second of two\n\nFLOPs against the hand count, "
    text += "peak with weights, gradients and optimizer state against torch's CPU allocator during a real step. Bars: 0.1 %, 3 %.\n\n"
    return text + rows(["model", "batch", "FLOPs, ours", "torch FlopCounterMode", "measured MiB", "peak, ours", "estimate, CPU-s"], body)


def time_table(found: list[dict[str, Any]]) -> str:
    body = []
    for result in whole(found):
        peer = {name: f"{a['cpu_s']:.2f}" if "cpu_s" in a else "fails" for name, a in {**result["peers_flops"], **result["peers_memory"]}.items()}
        names = ("torch FlopCounterMode", "torch MemTracker", "calflops", "DeepSpeed")
        body.append([result["name"], f"{result['cold_cpu_s']:.2f}", f"{result['warm_cpu_s']:.3f}", *(peer.get(name, "–") for name in names)])
    text = "## Time of one whole estimate, CPU seconds\n\nFLOPs, bytes, memory by batch size, payloads and latency for us; peers compute their one figure, "
    text += "most of them by running the model. Bars: BERT-base 0.3 warm, 2 cold; 7B 1.5.\n\n"
    return text + rows(["model", "first", "warm, median of 5", "torch FlopCounterMode", "torch MemTracker", "calflops", "DeepSpeed"], body)


if __name__ == "__main__":
    sys.path.insert(0, str(HERE))
    main()
