"""Whether the verdicts are right: held against long measurements that the product takes no part in, and tried on copies that nothing was done to.

``python tests/benchmarks/compression/verdicts.py`` does what is not done yet; ``--minutes 30`` stops after that time, ``--only long`` or ``--only aa``
takes one part. Each long measurement runs in two processes of its own, because where a process happens to lay its memory makes a difference, too.
"""

from __future__ import annotations

import argparse
import sys

import recipes
import results

PROCESSES = 2
TIMEOUT_S = 900.0
CONTROLS = (("digits_cnn", 20), ("digits_vit", 20), ("minilm", 10))
"""Trials of untouched copies, and of which model; each at both batch sizes."""
AT_ONCE = 5
"""Of these in one process."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, help="stop after so many")
    parser.add_argument("--only", choices=("long", "aa"))
    parser.add_argument("--again", action="store_true", help="measure what was measured before, too")
    parser.add_argument("--at-once", type=int, default=1, help="so many measurements at a time, each on a core of its own")
    parser.add_argument("--seconds", type=float, default=12.0, help="of each long measurement")
    options = parser.parse_args()
    clock = results.Clock(options.minutes)
    if options.only != "long":
        untouched(clock, again=options.again, at_once=options.at_once)
    if options.only != "aa":
        long(clock, again=options.again, seconds=options.seconds, at_once=options.at_once)
    import report

    report.write()


def long(clock: results.Clock, *, again: bool, seconds: float, at_once: int) -> None:
    """The product's trial with its default budget, which is a cell of the tables too, then the long measurement, close to each other in time."""
    known = {} if again else results.load("long")
    jobs = [(model, recipe) for model, texts in recipes.VERDICTS.items() for recipe in texts if f"{model}: {recipe}" not in known]

    def work(job: tuple[str, str], core: int | None) -> None:
        key = f"{job[0]}: {job[1]}"
        print(f"long: {key} ...", file=sys.stderr, flush=True)
        trial = results.cell(*job, core=core, at_once=at_once, timeout_s=TIMEOUT_S)
        arguments = ["long", *job, "--seconds", str(seconds)]
        runs = [results.child("measure.py", [*arguments, "--seed", str(seed)], timeout_s=TIMEOUT_S, core=core) for seed in range(PROCESSES)]
        points = trial.get("points")
        failed = None if points else trial.get("refused") or trial.get("failed")
        results.add("long", key, found={"points": points, "failed": failed, "runs": runs})

    results.side_by_side(jobs, work, at_once=at_once, clock=clock)


def untouched(clock: results.Clock, *, again: bool, at_once: int) -> None:
    """Trials of the recipe without steps."""
    if again:
        results.keep("aa", {})
    jobs = [
        (model, min(AT_ONCE, count - begun)) for model, count in CONTROLS for begun in range(len(results.load("aa").get(model, [])), count, AT_ONCE)
    ]  # fmt: skip

    def work(job: tuple[str, int], core: int | None) -> None:
        model, count = job
        print(f"{count} untouched copies of {model} ...", file=sys.stderr, flush=True)
        answer = results.child("measure.py", ["aa", model, "--count", str(count)], timeout_s=TIMEOUT_S, core=core)
        if "failed" in answer:
            print(answer["failed"], file=sys.stderr)
        else:
            results.extend("aa", model, found=answer["trials"])

    results.side_by_side(jobs, work, at_once=at_once, clock=clock)


if __name__ == "__main__":
    main()
