"""The proof of a bundle, made again where the machine may be why it was not given."""

from collections.abc import Callable, Iterable
from typing import TypeVar

TRIES = 3
TIMED = ("latency_p50", "latency_p95", "latency_p99", "throughput", "startup")
"""Promises that a machine which stands still for a while breaks by itself. It never makes a server look faster, so one proof of several that passes is one."""

Proof = TypeVar("Proof")


def proved(prove: Callable[[], Proof], broken: Callable[[Proof], Iterable[str]]) -> Proof:
    """The first proof in which nothing is broken, or the last; what does not rest on time has to hold in each.

    Args:
        prove: Makes one.
        broken: The promises that were not kept in it, and the findings that make it fail, by name.
    """
    for _ in range(TRIES):
        found = prove()
        names = set(broken(found))
        assert names <= set(TIMED), found
        if not names:
            break
    return found


def broken_in(check) -> list[str]:
    """Of a check record: promises that were not kept, and findings that are errors."""
    return [promise.name for promise in check.promises if promise.passed is not True] + [f.code for f in check.findings if f.code.startswith("E-")]


def broken_lines(done) -> list[str]:
    """Of a proof on the command line: what stands after FAIL or BUSY, and findings that are errors; all that it said, where it failed without either."""
    lines = done.stdout.splitlines()
    names = [line.split()[1] for line in lines if line.startswith(("FAIL ", "BUSY "))] + [line for line in lines if line.startswith("E-")]
    return names or ([] if done.returncode == 0 and lines[-1:] == ["PASS"] else [done.stdout + done.stderr])
