"""RESULTS.md from what lies in ``results/``: tables, refusals with their causes, and the misses in bold."""

from __future__ import annotations

import re
import statistics
from typing import Any

import judge
import peers
import recipes
import results
import zoo
from kept import table as rows

TARGET = results.HERE / "RESULTS.md"
Cell = dict[str, Any]


def write() -> str:
    """Write the report and return it."""
    found = {entry.name: results.load(entry.name) for entry in zoo.ZOO}
    parts = [
        head(found), goals(found), first(results.load("first")), verdicts(results.load("long")), untouched(results.load("aa")),
        *(table(entry, found[entry.name].get("cells", {})) for entry in zoo.ZOO), refused(found), checked(found), carried(found),
        compared(results.load("peers"), found),
    ]  # fmt: skip
    TARGET.write_text("\n\n".join(part.strip() for part in parts if part) + "\n")
    return TARGET.read_text()


def interval(values: list[float] | None, digits: int = 2) -> str:
    if not values:
        return "–"
    return f"{values[0]:.{digits}f}" + (f" [{values[1]:.{digits}f}, {values[2]:.{digits}f}]" if len(values) == 3 else "")


def done(cells: dict[str, Cell]) -> dict[str, Cell]:
    """Those in which something was measured."""
    return {recipe: cell for recipe, cell in cells.items() if "points" in cell}


def hit(text: str, reached: bool) -> str:
    return text if reached else f"**{text}**"


# --- what it holds for ---------------------------------------------------------------------------


def head(found: dict[str, Any]) -> str:
    facts = next((part["facts"] for part in found.values() if part), None)
    if facts is None:
        return "# Evaluation of compression\n\nNothing was measured yet."
    dates = sorted({part["facts"]["date"] for part in found.values() if part})
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    there = f"{facts['processor']}, {facts['cores']:g} cores with {', '.join(facts['instructions'])}, {facts['memory_bytes'] / 1e9:.0f} GB"
    gpu = f"GPU: {facts['gpu']}." if facts["gpu"] else "No GPU: nothing here was measured on one; the decoder's part of the code is there and was not run."
    at_once = max(part["facts"].get("at_once", 1) for part in found.values() if part)
    beside = f" {at_once} cells were measured at a time, each on a core of its own." if at_once > 1 else ""
    return f"""# Evaluation of compression

{" to ".join(dict.fromkeys((dates[0], dates[-1])))}, {there}, Python {facts["python"]}, {versions}. {gpu}

Commands: `python tests/benchmarks/compression/run.py`, `verdicts.py` and `peers.py` beside it; each goes on where it was interrupted. One torch thread,
except for the first verdicts.{beside} Speed-ups are the product's own, from trials with its default budget; × is the variant over the original;
a miss is in bold.
Accuracy is judged apart from the product on all held-out items: digits on 597 images that were not trained on, MiniLM by the share of {zoo.NUM_QUERIES}
queries (first sentences of docstrings of the standard library) whose own passage is among the first ten of an index that the original made.
BERT-base, ResNet-50 and the decoder have random weights: speed, size and output error only; the first two are
given each technique once, whose other options are tried on the small models."""


def goals(found: dict[str, Any]) -> str:
    titles = {entry.name: entry.title for entry in zoo.ZOO}
    body = []
    for goal in recipes.GOALS:
        cell = found[goal.model].get("cells", {}).get(goal.recipe)
        if cell is None:
            continue
        if "points" not in cell:
            body.append([goal.text, titles[goal.model], f"`{goal.recipe}`", "", "", "", f"**{cause(cell)}**"])
            continue
        metric = cell["truth"].get("metric")
        lost = f"{100 * metric['drop']:+.2f} [{100 * metric['drop_interval'][0]:+.2f}, {100 * metric['drop_interval'][1]:+.2f}]" if metric else "–"
        speeds = " / ".join(f"{point['ratio'][0]:.2f}×" for point in cell["points"])
        disk = f"{cell['stored_original'] / cell['stored']:.1f}× smaller"
        body.append([goal.text, titles[goal.model], f"`{goal.recipe}`", speeds, disk, lost, hit("yes" if goal.holds(cell) else "no", goal.holds(cell))])
    if not body:
        return ""
    text = "## What was to be reached\n\n" + rows(["goal", "model", "recipe", "speed-up", "on disk", "points lost", "reached"], body)
    return "\n\n".join([text, *filter(None, (best(entry, found[entry.name].get("cells", {})) for entry in zoo.ZOO))])


def best(entry: zoo.Entry, cells: dict[str, Cell]) -> str:
    """The fastest and the smallest in the table of those that lose half a point at most."""
    good = {recipe: cell for recipe, cell in done(cells).items() if cell["truth"].get("metric") and recipes.drop(cell) <= 0.5 + 1e-9}
    if not good:
        return ""
    told = []
    for at, batch in enumerate(entry.batches):
        recipe = max(good, key=lambda name: recipes.ratio(good[name], at))
        told.append(f"fastest at batch {batch} `{recipe}`, {interval(good[recipe]['points'][at]['ratio'])}×")
    recipe = min(good, key=lambda name: good[name]["stored"])
    told.append(f"smallest on disk `{recipe}`, {good[recipe]['stored_original'] / good[recipe]['stored']:.1f}× smaller")
    return f"{entry.title}, at most 0.5 point lost: {'; '.join(told)}."


def first(found: dict[str, Any]) -> str:
    body = []
    for key, entry in found.items():
        runs = [run for run in entry["runs"] if "trial_s" in run]
        if not runs:
            body.append([key, f"{entry['bar_s']:g}", f"**{entry['runs'][0]['failed']}**", "", "", "", ""])
            continue
        seconds = [run["trial_s"] - run["compile_s"] for run in runs]
        middle = statistics.median(seconds)
        spread = f"{middle:.1f} ({min(seconds):.1f} to {max(seconds):.1f})"
        told = [f"{statistics.median(run[name] for run in runs):.1f}" for name in ("figure_s", "compile_s", "import_s")]
        body.append([key, f"{entry['bar_s']:g}", hit(spread, middle <= entry["bar_s"]), *told, f"{runs[0]['verdict']}, {interval(runs[0]['ratio'])}"])
    text = "## Seconds from asking to a first verdict\n\nA fresh process each, two threads; copying and changing the model included, and so is\n"
    text += "importing the technique's library, once a process: of the digits ViT's seconds, torchao takes the most.\n\n"
    header = ["model: recipe", "at most", "verdict after, median of the runs", "first figure after", "compiling, apart", "importing, apart", "verdict"]
    return text + rows(header, body) if body else ""


# --- verdicts ------------------------------------------------------------------------------------


def verdicts(found: dict[str, Any]) -> str:
    """The product's verdicts against long measurements."""
    agree, decided, body = [], [], []
    for key, entry in found.items():
        runs = [run for run in entry["runs"] if "failed" not in run]
        for point in entry["points"] or ():
            measured = [run[str(point["batch"])] for run in runs]
            if not measured:
                continue
            truth, allowed = judge.truths(measured)
            right = point["verdict"] in allowed
            agree.append(right)
            if len(allowed) == 1:
                decided.append(right)
            sure = " or ".join(sorted(allowed))
            said = f"{point['verdict']}, {interval(point['ratio'])}"
            body.append([key, str(point["batch"]), hit(said, right), point["clock"], sure, interval(truth)])
    if not agree:
        return ""
    share, (low, high) = sum(agree) / len(agree), judge.wilson(sum(agree) / len(agree), len(agree))
    summary = (
        f"{sum(agree)} of {len(agree)} verdicts agree: {hit(f'{100 * share:.1f} %', share >= 0.95)} [{100 * low:.1f}, {100 * high:.1f}], 95 % asked. "
        f"In {len(agree) - len(decided)} the long measurement reaches over an edge of ±2 %, and either side counts as right; of those that it decides, "
        f"{sum(decided)} of {len(decided)} agree. Disagreements are in bold. "
        "The long measurement is the evaluation's own code: blocks of calls of both in one thread, by that thread's processor time, two processes each."
    )
    failed = [f"- {key}: {entry['failed']}" for key, entry in found.items() if entry["failed"]]
    failed += [f"- {key}, long: {run['failed']}" for key, entry in found.items() for run in entry["runs"] if "failed" in run]
    listed = rows(["model: recipe", "batch", "verdict of the trial", "by clock", "long measurement", "ratio"], body)
    return "## Are the verdicts right?\n\n" + summary + "\n\n" + listed + ("\n\nNot tried:\n\n" + "\n".join(failed) if failed else "")


def untouched(found: dict[str, Any]) -> str:
    """Trials of copies that nothing was done to."""
    body, trials, wrong_trials, num_points, wrong_points = [], 0, 0, 0, 0
    for model, answers in found.items():
        points = [point for answer in answers for point in answer["points"]]
        wrong = [point for point in points if point[1] != "no gain"]
        trials, num_points, wrong_points = trials + len(answers), num_points + len(points), wrong_points + len(wrong)
        wrong_trials += sum(any(point[1] != "no gain" for point in answer["points"]) for answer in answers)
        widths = statistics.median(point[4] - point[3] for point in points)
        said = ", ".join(f"{point[1]} at batch {point[0]}: {interval(point[2:], 3)}" for point in wrong) or "–"
        body.append([model, str(len(answers)), str(len(points)), str(len(wrong)), f"{widths:.3f}", said])
    if not trials:
        return ""
    text = f"{wrong_trials} of {trials} trials, {wrong_points} of {num_points} comparisons called an untouched copy faster or slower; "
    text += f"the stated rate is 5 % of the trials at most, {hit('held', wrong_trials <= 0.05 * trials)}.\n\n"
    listed = rows(["model", "trials", "comparisons", "called different", "median width of the interval", "which"], body)
    return "## Untouched copies\n\n" + text + listed


# --- tables --------------------------------------------------------------------------------------


def table(entry: zoo.Entry, cells: dict[str, Cell]) -> str:
    """Everything that was measured on one model."""
    measured = done(cells)
    if not measured:
        return ""
    order = [recipe for recipe in recipes.RECIPES[entry.name] if recipe in measured] + [r for r in measured if r not in recipes.RECIPES[entry.name]]
    body = [row(recipe, measured[recipe]) for recipe in order]
    before = next(iter(measured.values()))
    metric = before["truth"].get("metric")
    quality = f", {metric_name(entry)} of the original {100 * metric['original']:.2f} %" if metric else ", random weights"
    latency = ", ".join(f"{1e3 * point['original_s']:.3g} ms at batch {point['batch']}" for point in measured.get("none", before)["points"])
    header = ["recipe", "memory ×", "disk ×", *(f"speed-up, batch {batch} [interval]" for batch in entry.batches), "compiling s", "rel. error", "cosine"]
    header += ["agreement", f"{metric_name(entry)} % [95 %]"] if entry.learned else []
    text = f"## {entry.title} on {entry.device}\n\n{before['size_original'] / 2**20:.3g} MiB{quality}; {latency}.\n\n"
    return text + rows([*header, "layers", "apply s", "verdict"], [line if entry.learned else line[:8] + line[10:] for line in body])


def metric_name(entry: zoo.Entry) -> str:
    return "found among ten" if entry.name == "minilm" else "accuracy"


def row(recipe: str, cell: Cell) -> list[str]:
    truth, metric = cell["truth"], cell["truth"].get("metric")
    speeds = [hit(interval(point["ratio"]), point["verdict"] != "slower") + ("" if point["quality"] == "ok" else " noisy") for point in cell["points"]]
    compiling = sum(point["compile_s"] or 0 for point in cell["points"])
    after = f"{100 * metric['variant']:.2f} [{100 * metric['interval'][0]:.1f}, {100 * metric['interval'][1]:.1f}]" if metric else "–"
    retrieval = truth.get("retrieval")
    agreement = truth.get("agreement")
    alike = "–" if agreement is None else f"{agreement:.3f}"
    if retrieval:
        alike = f"top 1 {retrieval['top1']:.3f}, top 10 {retrieval['top10']:.3f}, τ {retrieval['tau']:.3f}"
    layers = ", ".join(f"{step['changed']}/{step['layers']}" for step in cell["steps"]) or "–"
    sizes = [f"{cell['size'] / cell['size_original']:.2f}", f"{cell['stored'] / cell['stored_original']:.2f}"]
    outputs = [f"{truth['relative_error']:.2g}", f"{truth['cosine']:.4f}", alike, after]
    return [f"`{recipe}`", *sizes, *speeds, f"{compiling:.1f}" if compiling else "–", *outputs, layers, f"{cell['apply_s']:.1f}", cell["verdict"]]


def refused(found: dict[str, Any]) -> str:
    titles = {entry.name: entry.title for entry in zoo.ZOO}
    body = [
        [titles[model], f"`{recipe}`", "refused" if "refused" in cell else "**failed**", cause(cell)]
        for model, part in found.items()
        for recipe, cell in part.get("cells", {}).items()
        if "points" not in cell
    ]
    return "## Refused, and failed\n\n" + rows(["model", "recipe", "", "cause, in the product's words where it refused"], body) if body else ""


def cause(cell: Cell) -> str:
    text = re.sub(r"/\S+/", "", cell.get("refused") or cell["failed"])  # where a file lay for a moment
    return text.replace("\n", " ").replace("|", "\\|")[:300]


def checked(found: dict[str, Any]) -> str:
    """The trial's own figures against ours."""
    cells = [cell for part in found.values() for cell in done(part.get("cells", {})).values()]
    every = [cell for part in found.values() for cell in part.get("cells", {}).values() if "untouched" in cell]
    if not cells:
        return ""
    whole = [cell for cell in cells if "W-SUBSET" not in cell["notes"] and cell["truth"]["relative_error"] > 1e-3]
    errors = sorted(abs(cell["relative_error"] / cell["truth"]["relative_error"] - 1) for cell in whole)
    both = [cell for cell in cells if "W-SUBSET" not in cell["notes"] and cell["truth"].get("metric") and cell["metric_variant"]]
    metrics = [abs(cell["metric_variant"][0] - cell["truth"]["metric"]["variant"]) for cell in both]
    files = [abs(cell["file"] / cell["stored"] - 1) for cell in cells if cell.get("file")]
    lines = [
        f"- The original was bit for bit as before after {sum(cell['untouched'] for cell in every)} of {len(every)} recipes, refused ones included.",
        f"- Outputs of all samples compared: the relative error that a trial tells differs from ours by at most {100 * max(errors, default=0):.2g} % "
        f"of itself ({len(errors)} cells).",
        f"- The metric of all samples differs by at most {100 * max(metrics, default=0):.2g} points ({len(metrics)} cells), "
        "where activations are rounded by one range for a whole batch and the two batch sizes differ; "
        f"{len([cell for cell in cells if 'W-SUBSET' in cell['notes']])} trials judged a part of the samples, and said so.",
        f"- The size on disk is that of the file that is written within {100 * max(files, default=0):.2g} % ({len(files)} cells).",
    ]
    return "## The trial's figures against this evaluation's\n\n" + "\n".join(lines)


def carried(found: dict[str, Any]) -> str:
    """What a bundle can carry, and how the file differs from the variant in the runtime that serves it."""
    cells = [(model, recipe, cell["carried"]) for model, part in found.items() for recipe, cell in part.get("cells", {}).items() if "carried" in cell]
    if not cells:
        return ""
    told = [(model, recipe, answer) for model, recipe, answer in cells if "refused" not in answer]
    causes: dict[str, list[str]] = {}
    for model, recipe, answer in cells:
        if "refused" in answer:
            causes.setdefault(cause(answer), []).append(f"{model}: `{recipe}`")
    worst = max(told, key=lambda row: row[2]["relative_error"], default=None)
    most = f"; the largest error is {worst[2]['relative_error']:.2g} (`{worst[1]}` on {worst[0]})" if worst else ""
    text = f"{len(told)} of {len(cells)} variants were written as ONNX and, loaded in ONNX Runtime, gave the variant's own outputs on all samples{most}."
    body = [[why, str(len(where)), ", ".join(where[:4]) + (" …" if len(where) > 4 else "")] for why, where in sorted(causes.items(), key=lambda c: -len(c[1]))]
    return "## What a bundle can carry\n\n" + text + ("\n\n" + rows(["not carried, in the product's words", "variants", "which"], body) if body else "")


# --- peers ---------------------------------------------------------------------------------------


OURS = {"digits_cnn": "onnxruntime(quantize=static)", "digits_vit": "onnxruntime(quantize=dynamic)", "minilm": "onnxruntime(quantize=dynamic)"}
"""What stands beside them, beside the forms that torchao has: `study.trial(...)`, two lines with the study."""


def compared(found: dict[str, Any], ours: dict[str, Any]) -> str:
    asked = found.get("asked", {})
    if not asked:
        return ""
    body = []
    for model in peers.MODELS:
        for peer in peers.PEERS:
            answer = asked.get(f"{peer.title}: {model}")
            if answer is not None:
                body.append(peer_row(model, peer, answer))
        for recipe in (OURS[model], "int8_static + compile", "int8_dynamic + compile", "int8_dynamic"):
            cell = ours[model].get("cells", {}).get(recipe)
            if cell and "points" in cell:
                speeds = [hit(interval(point["ratio"]), point["ratio"][2] >= 0.98) for point in cell["points"]]
                told = f"“{cell['verdict']}”, intervals, errors, layers and causes; {'recommended' if cell['recommended'] else 'not recommended'}"
                body.append([model, f"`study.trial('{recipe}')`", "2", f"{cell['apply_s'] + cell['trial_s']:.1f}", *speeds, *quality(cell["truth"]), told])
    header = ["model", "tool", "lines", "seconds", "speed-up, batch 1", "speed-up, batch 32", "rel. error", "points lost", "what the user is told"]
    installed = "\n".join(f"- {name}: {text}" for name, text in found.get("installed", {}).items())
    text = f"""## The same request to other tools

Int8 for each model, as each tool's documentation has it. Lines are those of the request; seconds until a model is there (ours: until the verdict is),
the first call and so most compiling not included. Speed and outputs of theirs are judged by this evaluation's long measurement, since the tools
measure neither unless told to.

{silence(asked)}

{installed}

Pruna ran with two changes that a user would have to find: `huggingface_hub<2`, and stand-ins for the operators of torchvision, whose build on PyPI is for CUDA.
ModelOpt and Neural Compressor import `requests` and `accelerate`, which they do not ask for."""
    return text + "\n\n" + rows(header, body)


def silence(asked: dict[str, Any]) -> str:
    """How many of the tools' answers are worse than what they were given, in a way that none of them says."""
    answers = [answer for answer in asked.values() if "failed" not in answer]
    slower = sum(any(point["truth"][2] < 1 for point in answer["points"].values()) for answer in answers)
    worse = sum(answer["truth"]["metric"]["drop"] > 0.01 for answer in answers)
    return f"""{len(asked)} requests: {len(asked) - len(answers)} fail. Of the {len(answers)} models that come back, {slower} are surely slower than the
original at one of the batch sizes at least, and {worse} lose more than a point. Nothing in what the tools return or print says so."""


def peer_row(model: str, peer: peers.Peer, answer: dict[str, Any]) -> list[str]:
    if "failed" in answer:
        return [model, peer.title, str(answer["lines"]), "", f"fails: {cause(answer)[:160]}", "", "", "", "the exception"]
    speeds = [answer["points"][str(batch)]["truth"] for batch in peers.BATCHES]
    told = [hit(interval(speed), speed[2] >= 0.98) for speed in speeds]
    return [model, peer.title, str(answer["lines"]), f"{answer['request_s']:.1f}", *told, *quality(answer["truth"]), peer.tells]


def quality(truth: dict[str, Any]) -> list[str]:
    return [f"{truth['relative_error']:.2g}", f"{100 * truth['metric']['drop']:+.2f}"]
