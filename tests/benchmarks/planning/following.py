"""Does what `scale` recommends hold on arrivals that nothing was chosen by, and is it the cheapest there?

``python tests/benchmarks/planning/following.py`` simulates 36 cases, writes ``results/following.json`` and prints the section of RESULTS.md. Goal: in 90 % of
the cases the recommended way is the cheapest that meets the target on the part held out. Nothing is measured: ways are judged by the simulator
that chose among them, on other arrivals; what is tested is the choice.
"""

from __future__ import annotations

import itertools
import json
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from aimass_lab.planning.follow import Asked, Comparison, _choose
from aimass_lab.planning.queueing import Arrivals, Bursty, ServiceTimes
from aimass_lab.planning.workloads import Mmpp, Timetable
from aimass_lab.records import Number

RESULTS = Path(__file__).with_name("results") / "following.json"
SERVICE = ServiceTimes.from_values({b: 0.08 + 0.02 * b for b in range(1, 9)})
TARGET_S, ATTAINMENT, SPAN_S = 0.8, 0.95, 900.0
SAME = 0.02
"""Costs this near to each other count as equal."""


def laws() -> dict[str, Arrivals]:
    return {
        "bursts of 4 times": Bursty(50, burst=4, cycle_s=240),
        "day and night": Timetable(((0, 10), (300, 100), (600, 10), (900, 10))),
        "three states": Mmpp((15.0, 50.0, 112.0), (60.0, 60.0, 30.0)),
    }


def judge(law: str, startup_s: float, seed: int) -> dict[str, object]:
    startup = Number(value=startup_s, unit="s", source="user", method="asked for")
    asked = Asked(arrivals=laws()[law], span_s=SPAN_S, latency_s=TARGET_S, attainment=ATTAINMENT, max_replicas=16, startup=startup, seed=seed)
    compared = Comparison(asked, SERVICE, 8, ("hpa", "keda", "knative", "ray_serve"))
    tried = compared.all(lambda share, text: None)
    best = _choose(tried, compared)
    # All runs of the held-out part together, as a user would count them.
    kept = [compared.again(t) for t in tried]
    held = [(t.replicas.value, t.attainment(TARGET_S).value) for t in kept]
    meeting = [cost for cost, attained in held if attained >= ATTAINMENT]
    cost, attained = held[best]
    pool = tried[best].pool
    return {
        "law": law,
        "startup_s": startup_s,
        "seed": seed,
        "kind": tried[best].kind,
        "scaler": pool.scaler.name if pool.scaler else "none",
        "floor": pool.min_replicas,
        "static": tried[0].pool.min_replicas,
        "cost": cost,
        "attained": attained,
        "meets": attained >= ATTAINMENT,
        "cheapest": min(meeting, default=None),
        "hit": attained >= ATTAINMENT and cost <= (1 + SAME) * min(meeting),
    }


def main() -> None:
    with ProcessPoolExecutor() as pool:
        cases = list(pool.map(judge, *zip(*itertools.product(laws(), (5.0, 30.0, 120.0), range(4)), strict=True)))
    RESULTS.write_text(json.dumps(cases, indent=1) + "\n")
    print(table(cases))


def table(cases: list[dict[str, object]]) -> str:
    lines = ["| arrivals | start-up | recommended | meets, held out | cheapest too | saves of the fixed number |", "|---|---:|---|---:|---:|---|"]
    for law, startup_s in dict.fromkeys((case["law"], case["startup_s"]) for case in cases):
        some = [case for case in cases if (case["law"], case["startup_s"]) == (law, startup_s)]
        ways = ", ".join(sorted({f"{c['kind']} {c['scaler']}".replace("static none", "static") for c in some}))
        saved = ", ".join(f"{100 * (1 - c['cost'] / c['static']):.0f} %" for c in some)  # type: ignore[operator]
        meets, hits = (sum(bool(c[key]) for c in some) for key in ("meets", "hit"))
        lines.append(f"| {law} | {startup_s:g} s | {ways} | {meets} of {len(some)} | {hits} of {len(some)} | {saved} |")
    meets, hits = (sum(bool(c[key]) for c in cases) for key in ("meets", "hit"))
    share = hits / len(cases)
    verdict = "met" if share >= 0.9 else "missed"
    lines += [
        "",
        f"Meets the target on the part held out: {meets} of {len(cases)}; and is the cheapest there: {hits} of {len(cases)} ({share:.0%}). Goal: {verdict}.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
