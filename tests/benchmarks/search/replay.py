"""Replay searches on recorded grids: how much of the best hypervolume each sampler finds, by the share of the grid that it measured.

``python tests/benchmarks/search/replay.py`` writes RESULTS.md and curves.html beside this file. Nothing is measured and no model is run.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import goals
import numpy as np

from aimass_lab.samplers._hypervolume import hypervolume
from aimass_lab.samplers.base import SAMPLERS, Key, Knowledge, Point, Tried, point_key
from aimass_lab.searching import Space
from aimass_lab.searching.objectives import merit

FOLDER = Path(__file__).parent
SAMPLERS_SHOWN = ("guided", "tpe", "nsga2", "random")
OBJECTIVES = (("throughput", "drop"), ("throughput", "latency", "drop"))
MOST_DROP = 0.02
"""Limit of the problem: a setting that loses more of the accuracy counts for nothing."""
SEEDS = 20
FULL = 0.2
"""Share of the grid that is replayed."""
SHOWN = (0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2)
GOAL_FOUND, GOAL_MEASURED = 0.95, 0.1


@dataclass(frozen=True)
class Grid:
    """A recorded grid as a problem with some objectives."""

    head: dict[str, Any]
    space: Space
    points: list[Point]
    table: dict[Key, Tried]
    priors: dict[Key, tuple[float | None, ...]]
    reference: np.ndarray

    def volume(self, tried: Sequence[Tried]) -> float:
        """Hypervolume that the feasible ones dominate, on the scale on which objectives are compared: rates and times by their logarithms."""
        values = [t.values for t in tried if t.feasible]
        return hypervolume(np.array(values), self.reference) if values else 0.0


@cache
def load(path: Path, objectives: tuple[str, ...]) -> Grid:
    head = json.loads(path.read_text())
    rows = head.pop("rows")
    space = Space(head["dimensions"])
    points, table, priors = [], {}, {}
    for row in rows:
        point = {name: values[place] for (name, values), place in zip(head["dimensions"].items(), row["point"], strict=True)}
        key = point_key(point)
        points.append(point)
        predicted = dict(zip(head["predicted"], row["predicted"], strict=True))
        priors[key] = tuple(None if predicted.get(name) is None else merit(name, predicted[name]) for name in objectives)
        if "failed" in row:
            table[key] = Tried(point, None)
        else:
            table[key] = Tried(point, tuple(merit(name, row[name][0]) for name in objectives), (row["drop"][0] - MOST_DROP,))
    feasible = np.array([t.values for t in table.values() if t.feasible])
    reference = feasible.min(axis=0) - 1e-9
    if "drop" in objectives:
        reference[objectives.index("drop")] = -MOST_DROP - 1e-9
    return Grid(head, space, points, table, priors, reference)


def replay(path: Path, objectives: tuple[str, ...], sampler: str, seed: int) -> list[float]:
    """Share of the full grid's hypervolume after each point."""
    grid = load(path, objectives)
    whole = grid.volume(list(grid.table.values()))
    knowledge = Knowledge(
        possible=lambda point: point_key(point) in grid.table,
        features=grid.space.features,
        cost=grid.space.cost,
        prior=lambda point: grid.priors[point_key(point)],
    )
    chooser = SAMPLERS[sampler](grid.head["dimensions"], seed=seed, knowledge=knowledge)
    history: list[Tried] = []
    shares = []
    while len(history) < FULL * len(grid.table):
        point = chooser.ask(history)
        assert point is not None
        history.append(grid.table[point_key(point)])
        shares.append(grid.volume(history) / whole)
    return shares


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--grids", type=Path, default=FOLDER / "grids")
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--samplers", nargs="*", default=SAMPLERS_SHOWN)
    options = parser.parse_args()
    paths = sorted(options.grids.glob("*.json"))
    if not paths:
        parser.error(f"there is no grid in {options.grids}: record.py measures them")
    curves: dict[tuple[str, tuple[str, ...], str], np.ndarray] = {}
    for path in paths:
        for objectives in OBJECTIVES:
            for sampler in options.samplers:
                began = time.perf_counter()
                with ProcessPoolExecutor() as pool:
                    jobs = [pool.submit(replay, path, objectives, sampler, seed) for seed in range(options.seeds)]
                    curves[path.stem, objectives, sampler] = found = np.array([job.result() for job in jobs])
                at_goal = found[:, math.floor(GOAL_MEASURED / FULL * found.shape[1]) - 1].mean()
                print(
                    f"{path.stem}, {'/'.join(objectives)}, {sampler}: {at_goal:.3f} found at {GOAL_MEASURED:.0%}, {time.perf_counter() - began:.0f} s",
                    flush=True,
                )
    (options.out / "RESULTS.md").write_text(report(paths, curves))
    draw(curves, options.out / "curves.html")


def report(paths: list[Path], curves: dict[tuple[str, tuple[str, ...], str], np.ndarray]) -> str:
    """The tables: mean over seeds of the share found, by the share measured."""
    lines = ["# Search: what is found by measuring a part of the grid", ""]
    lines += [f"Share of the full grid's hypervolume, mean of the seeds (worst seed); limit: at most {MOST_DROP:g} of the accuracy lost. Rates and", ""]
    lines[-2] += " times count by their logarithms. All samplers see the same recorded measurements, failures included."
    for path in paths:
        grid = load(path, OBJECTIVES[0])
        failed = sum(t.values is None for t in grid.table.values())
        feasible = sum(t.feasible for t in grid.table.values())
        recorded = f"recorded {grid.head['date']} on {grid.head['machine']}, torch {grid.head['packages']['torch']}"
        lines += [f"## {path.stem}", "", f"{len(grid.table)} settings ({failed} failed, {feasible} within the limit), {recorded}.", ""]
        for objectives in OBJECTIVES:
            lines += [f"### {', '.join(objectives)}", "", *table({s: c for (stem, o, s), c in curves.items() if (stem, o) == (path.stem, objectives)}), ""]
    return "\n".join([*lines, goals.section()])


def table(curves: dict[str, np.ndarray]) -> list[str]:
    lines = [f"| sampler | {' | '.join(f'{share:.0%}' for share in SHOWN)} | measured for {GOAL_FOUND:.0%} | goal |", f"|---{'|---:' * (len(SHOWN) + 2)}|"]
    for sampler, found in curves.items():
        total = found.shape[1] / FULL
        places = [max(0, math.floor(share * total) - 1) for share in SHOWN]
        cells = [f"{100 * found[:, k].mean():.1f} ({100 * found[:, k].min():.0f})" for k in places]
        reached = np.flatnonzero(found.mean(axis=0) >= GOAL_FOUND)
        needed = f"{100 * (reached[0] + 1) / total:.1f} %" if len(reached) else f"more than {FULL:.0%}"
        met = "met" if len(reached) and reached[0] + 1 <= GOAL_MEASURED * total else "missed"
        lines.append(f"| {sampler} | {' | '.join(cells)} | {needed} | {met} |")
    return lines


def draw(curves: dict[tuple[str, tuple[str, ...], str], np.ndarray], path: Path) -> None:
    """The curves, a panel for each grid and set of objectives: mean over the seeds, and the range from the worst to the best."""
    from plotly.colors import qualitative
    from plotly.graph_objects import Scatter
    from plotly.subplots import make_subplots

    panels = list(dict.fromkeys((stem, objectives) for stem, objectives, _ in curves))
    figure = make_subplots(rows=1, cols=len(panels), subplot_titles=[f"{stem}: {', '.join(objectives)}" for stem, objectives in panels], shared_yaxes=True)
    for (stem, objectives, sampler), found in curves.items():
        column = panels.index((stem, objectives)) + 1
        colour = qualitative.Plotly[list(dict.fromkeys(s for *_, s in curves)).index(sampler)]
        x = 100 * np.arange(1, found.shape[1] + 1) / (found.shape[1] / FULL)
        figure.add_trace(
            Scatter(x=x, y=found.mean(axis=0), name=sampler, legendgroup=sampler, showlegend=column == 1, line_color=colour, mode="lines"), row=1, col=column
        )
        figure.add_trace(Scatter(x=x, y=found.min(axis=0), line_color=colour, line_dash="dot", mode="lines", showlegend=False), row=1, col=column)
    figure.add_hline(y=GOAL_FOUND, line_dash="dash", line_color="gray")
    figure.update_xaxes(title_text="% of the grid measured")
    figure.update_yaxes(title_text="share of the hypervolume (dotted: worst seed)", col=1)
    figure.write_html(path, include_plotlyjs="cdn")


if __name__ == "__main__":
    main()
