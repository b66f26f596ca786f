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
    parser.add_argument("--seconds", type=float, default=12.0, help="of each long measurement")
    options = parser.parse_args()
    clock = results.Clock(options.minutes)
    if options.only != "long":
        untouched(clock, again=options.again)
    if options.only != "aa":
        long(clock, again=options.again, seconds=options.seconds)
    import report

    report.write()


def long(clock: results.Clock, *, again: bool, seconds: float) -> None:
    """The product's trial with its default budget, then the long measurement, close to each other in time."""
    found = results.load("long")
    for model, texts in recipes.VERDICTS.items():
        for recipe in texts:
            key = f"{model}: {recipe}"
            if clock.up or (key in found and not again):
                continue
            print(f"long: {key} ...", file=sys.stderr, flush=True)
            trial = results.child("measure.py", ["cell", model, recipe], timeout_s=TIMEOUT_S)
            arguments = ["long", model, recipe, "--seconds", str(seconds)]
            runs = [results.child("measure.py", [*arguments, "--seed", str(seed)], timeout_s=TIMEOUT_S) for seed in range(PROCESSES)]
            points = trial.get("points")
            failed = None if points else trial.get("refused") or trial.get("failed")
            results.keep("long", {**results.load("long"), key: {"points": points, "failed": failed, "runs": runs}})


def untouched(clock: results.Clock, *, again: bool) -> None:
    """Trials of the recipe without steps."""
    found = {} if again else results.load("aa")
    for model, count in CONTROLS:
        while len(found.get(model, [])) < count and not clock.up:
            have = len(found.get(model, []))
            print(f"untouched copies of {model}: {have} of {count} ...", file=sys.stderr, flush=True)
            answer = results.child("measure.py", ["aa", model, "--count", str(min(AT_ONCE, count - have))], timeout_s=TIMEOUT_S)
            if "failed" in answer:
                print(answer["failed"], file=sys.stderr)
                break
            found[model] = [*found.get(model, []), *answer["trials"]]
            results.keep("aa", found)


if __name__ == "__main__":
    main()
