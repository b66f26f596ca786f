"""What a search finds by itself, asked as a user would ask: the fastest that loses no more than is allowed, at one batch size and in one thread.

``python tests/benchmarks/search/goals.py`` searches what was not searched yet and writes ``goals.json`` beside this file; ``replay.py`` puts it
into RESULTS.md. The search sees a part of the held-out images; what it found is judged on all of them, and on those that it did not see, by the
code that judges the evaluation of compression, in a process of its own and one at a time. Nobody names a recipe: the space is the product's own.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "compression"))

import results  # noqa: E402

results.keep_to_core()
os.environ.setdefault("OMP_NUM_THREADS", "1")
FOUND = HERE / "goals.json"
SEEN = 297
"""Of the 597 held-out images, those that the search judges by."""
TIMEOUT_S = 1800.0


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What is to be found on one model at one batch size."""

    model: str
    batch: int
    speedup: float
    max_drop: float | None
    """Most of the accuracy that may be lost; None where nothing was learnt, and outputs must be alike."""
    seconds: float

    @property
    def key(self) -> str:
        return f"{self.model} at batch {self.batch}"


GOALS = (
    Goal(model="digits_cnn", batch=1, speedup=8.0, max_drop=0.005, seconds=300),
    Goal(model="digits_cnn", batch=32, speedup=11.0, max_drop=0.005, seconds=300),
    Goal(model="digits_vit", batch=1, speedup=3.4, max_drop=0.0, seconds=300),
    Goal(model="digits_vit", batch=32, speedup=2.9, max_drop=0.0, seconds=300),
    Goal(model="resnet50", batch=1, speedup=5.0, max_drop=None, seconds=300),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--again", action="store_true", help="search what was searched before, too")
    parser.add_argument("--at-once", type=int, default=1, help="so many searches at a time, each on a core of its own")
    parser.add_argument("--rejudge", action="store_true", help="judge again what was found before")
    parser.add_argument("--search", metavar="KEY", help="one of them, in this process; prints JSON")
    parser.add_argument("--judge", nargs=2, metavar=("KEY", "RECIPE"), help="what was found, in this process; prints JSON")
    options = parser.parse_args()
    if options.search or options.judge:
        print("\n" + json.dumps(judged(*options.judge) if options.judge else search(options.search)))
        return
    found = json.loads(FOUND.read_text()) if FOUND.exists() and not options.again else {}
    script = os.path.relpath(__file__, results.HERE)

    def keep(key: str, told: dict[str, Any]) -> None:
        found[key] = told
        FOUND.write_text(json.dumps(found, indent=1) + "\n")

    def work(goal: Goal, core: int | None) -> None:
        print(f"{goal.key} ...", file=sys.stderr, flush=True)
        keep(goal.key, results.child(script, ["--search", goal.key], timeout_s=TIMEOUT_S, core=core))

    results.side_by_side([goal for goal in GOALS if goal.key not in found], work, at_once=options.at_once, clock=results.Clock(None))
    for key, told in found.items():
        if "recipe" in told and ("judged" not in told or options.rejudge):
            print(f"judging {told['recipe']} on {key} ...", file=sys.stderr, flush=True)
            keep(key, told | {"judged": results.child(script, ["--judge", key, told["recipe"]], timeout_s=TIMEOUT_S)})
    print(section())


def goal_of(key: str) -> Goal:
    return next(goal for goal in GOALS if goal.key == key)


def search(key: str) -> dict[str, Any]:
    """Search as a user would."""
    import judge
    import torch
    import zoo

    from aimass_lab import Study

    goal = goal_of(key)
    torch.set_num_threads(1)
    parts = zoo.by_name(goal.model).make("cpu")
    shown = dataclasses.replace(parts, data=None if parts.data is None else (judge.rows(parts.data[0], torch.arange(SEEN)), parts.data[1][:SEEN]))
    quality = "dissimilarity" if parts.data is None else "drop"
    with tempfile.TemporaryDirectory() as folder:
        os.environ["AIMASS_STORE"] = folder
        began = time.perf_counter()
        result = Study(shown.workload()).search(
            batch=(goal.batch,), threads=(1,), instances=(1,), objective=("speedup", quality), max_drop=goal.max_drop, seconds=goal.seconds
        )  # fmt: skip
        seconds = time.perf_counter() - began
    told: dict[str, Any] = {
        "goal": dataclasses.asdict(goal), "date": results.facts()["date"], "seconds": seconds, "points": result.num_points.value, "stopped": result.stopped,
        "tried": len([c for c in result.candidates if c.status == "measured"]), "failed": len([c for c in result.candidates if c.status == "failed"]),
    }  # fmt: skip
    if result.best is None:
        return told
    best = result.candidates[result.best]
    speedup = best.numbers["speedup"]
    return told | {"recipe": best.setting.recipe.name, "code": result.code, "speedup": [speedup.value, *(speedup.interval or ())]}


def judged(key: str, recipe: str) -> dict[str, Any]:
    """What is true of a recipe: its outputs on all held-out images and on those that the search did not see, and its speed."""
    import judge
    import torch
    import zoo

    from aimass_lab.recipe import read_recipe
    from aimass_lab.trial import apply_recipe

    goal = goal_of(key)
    torch.set_num_threads(1)
    parts = zoo.by_name(goal.model).make("cpu")
    variant = apply_recipe(parts.workload(), read_recipe(recipe), batch_size=goal.batch)
    told: dict[str, Any] = {"truth": judge.judge_outputs(parts.model, variant.model, parts)}
    if parts.data is not None:
        unseen = dataclasses.replace(parts, data=(judge.rows(parts.data[0], torch.arange(SEEN, len(parts.data[1]))), parts.data[1][SEEN:]))
        told["unseen"] = judge.judge_outputs(parts.model, variant.model, unseen)["metric"]
    return told | {"long": judge.long_measurement(parts.model, variant.model, judge.batch_of(parts.inputs, goal.batch), seconds=10.0)}


def section() -> str:
    """What was found, as a part of RESULTS.md."""
    found = json.loads(FOUND.read_text()) if FOUND.exists() else {}
    if not found:
        return ""
    lines = [
        "## What a search finds by itself", "",
        "The product's own space, `study.search(batch=B, threads=1, instances=1, objective=(\"speedup\", \"drop\"), max_drop=D)`; nobody names a recipe.",
        f"The search judges by {SEEN} of the 597 held-out images. Speed-up by this evaluation's long measurement, points lost on all images and on those that",
        "the search did not see; ResNet-50 has random weights, and its outputs must be alike. A miss is in bold.", "",
        "| model | goal | seconds | tried of possible | failed | found | speed-up [95 %] | the search said | points lost, all | unseen | reached |",
        "| --- | --- | ---: | ---: | ---: | --- | --- | --- | ---: | ---: | --- |",
    ]  # fmt: skip
    lines += [_line(key, told) for key, told in found.items()]
    return "\n".join(lines)


def _line(key: str, told: dict[str, Any]) -> str:
    if "goal" not in told:
        return f"| {key} | | | | | **{told['failed']}** | | | | | **no** |"
    goal = Goal(**told["goal"])
    lost = "outputs alike" if goal.max_drop is None else f"{100 * goal.max_drop:g} points at most"
    begin = f"| {key} | ≥ {goal.speedup:g}×, {lost} | {told['seconds']:.0f} | {told['tried']} of {told['points']:g} | {told['failed']} |"
    if "recipe" not in told:
        return f"{begin} **nothing** | | | | | **no** |"
    checked = told["judged"]
    if "failed" in checked:
        return f"{begin} `{told['recipe']}` | **{checked['failed']}** | | | | **no** |"
    speed, said, metric = checked["long"]["truth"], told["speedup"], checked["truth"].get("metric")
    drops = ["–", "–"] if metric is None else [f"{100 * metric['drop']:+.2f}", f"{100 * checked['unseen']['drop']:+.2f}"]
    reached = speed[0] >= goal.speedup and (metric is None or metric["drop"] <= goal.max_drop + 1e-9)  # type: ignore[operator]
    ratios = [f"{value[0]:.2f} [{value[1]:.2f}, {value[2]:.2f}]" for value in (speed, said)]
    return f"{begin} `{told['recipe']}` | {' | '.join([*ratios, *drops])} | {'yes' if reached else '**no**'} |"


if __name__ == "__main__":
    main()
