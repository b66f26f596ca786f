"""The evaluation of compression: every technique on every model, written to RESULTS.md with refusals, failures and misses.

``python tests/benchmarks/compression/run.py`` measures what is not measured yet and writes the report; it may be interrupted and started again.
``--minutes 30`` stops after that time, ``--only digits_cnn`` takes one model, ``--recipe TEXT`` one recipe, ``--again`` measures anew, ``--report``
only writes. The verdicts and the peers are measured by `verdicts.py` and `peers.py`. What was measured lies in ``results/``.
"""

from __future__ import annotations

import argparse
import sys

import recipes
import results

TIMEOUT_S = 900.0
"""Of one cell, in a process of its own: learning included."""
FIRST_TIMES = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, help="stop after so many")
    parser.add_argument("--only", action="append", help="a model's name; may be repeated")
    parser.add_argument("--recipe", action="append", help="a recipe; may be repeated")
    parser.add_argument("--again", action="store_true", help="measure what was measured before, too")
    parser.add_argument("--failed", action="store_true", help="measure again what failed or was refused")
    parser.add_argument("--at-once", type=int, default=1, help="so many cells at a time, each on a core of its own")
    parser.add_argument("--report", action="store_true", help="measure nothing")
    options = parser.parse_args()
    if not options.report:
        clock = results.Clock(options.minutes)
        cells(clock, options)
        if not options.recipe:
            first(clock, again=options.again)
    import report

    print(report.write())


def cells(clock: results.Clock, options: argparse.Namespace) -> None:
    """Measure each recipe on each model, those models first that learned something."""
    import zoo

    jobs = []
    for entry in zoo.ZOO:
        if (options.only and entry.name not in options.only) or not available(entry.device):
            continue
        known = results.load(entry.name).get("cells", {})
        for recipe in recipes.RECIPES[entry.name]:
            before = known.get(recipe)
            redo = options.again or (options.failed and before is not None and ("failed" in before or "refused" in before))
            if (not options.recipe or recipe in options.recipe) and (before is None or redo):
                jobs.append((entry.name, recipe))

    def work(job: tuple[str, str], core: int | None) -> None:
        print(f"{job[0]}: {job[1]} ...", file=sys.stderr, flush=True)
        results.cell(*job, core=core, at_once=options.at_once, timeout_s=TIMEOUT_S)

    results.side_by_side(jobs, work, at_once=options.at_once, clock=clock)


def available(device: str) -> bool:
    """Whether the device is here; what is not measured is not written down."""
    import torch

    return device == "cpu" or torch.cuda.is_available()


def first(clock: results.Clock, *, again: bool) -> None:
    """Time from asking to a first verdict, each in fresh processes."""
    found = results.load("first")
    for model, recipe, bar in recipes.FIRST:
        key = f"{model}: {recipe}"
        if clock.up or (key in found and not again):
            continue
        print(f"first verdict: {key} ...", file=sys.stderr, flush=True)
        runs = [results.child("measure.py", ["first", model, recipe, "--threads", "2"], timeout_s=TIMEOUT_S) for _ in range(FIRST_TIMES)]
        results.add("first", key, found={"bar_s": bar, "runs": runs})


if __name__ == "__main__":
    main()
