"""Replay searches on recorded grids: how much of the best hypervolume each sampler finds, by the share of the grid that it measured.

``python tests/benchmarks/search/replay.py`` writes RESULTS.md and curves.png beside this file, with what `goals.py` found. Nothing is measured and no
model is run. Curves are kept in ``curves.json`` as they come; ``--again`` draws them anew.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import tempfile
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
SAMPLERS_SHOWN = ("guided", "tpe", "random")
OBJECTIVES = (("throughput", "drop"), ("throughput", "latency", "drop"))
MOST_DROP = 0.02
"""Limit of the problem: a setting that loses more of the accuracy counts for nothing."""
SEEDS = 20
FULL = 0.15
"""Share of the grid that is replayed."""
SHOWN = (0.02, 0.04, 0.06, 0.08, 0.1, 0.15)
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
    parser.add_argument("--processes", type=int, help="as many as there are cores if not given")
    parser.add_argument("--samplers", nargs="*", default=SAMPLERS_SHOWN)
    parser.add_argument("--again", action="store_true", help="replay what was replayed before, too")
    options = parser.parse_args()
    paths = sorted(options.grids.glob("*.json"))
    if not paths:
        parser.error(f"there is no grid in {options.grids}: record.py measures them")
    kept = options.out / "curves.json"
    known = json.loads(kept.read_text()) if kept.exists() and not options.again else {}
    curves: dict[tuple[str, tuple[str, ...], str], np.ndarray] = {}
    for path in paths:
        for objectives in OBJECTIVES:
            for sampler in options.samplers:
                key = f"{path.stem}, {'/'.join(objectives)}, {sampler}"
                began = time.perf_counter()
                if len(known.get(key, ())) < options.seeds:
                    with ProcessPoolExecutor(options.processes) as pool:
                        jobs = [pool.submit(replay, path, objectives, sampler, seed) for seed in range(options.seeds)]
                        known[key] = [[round(share, 4) for share in job.result()] for job in jobs]
                    kept.write_text("{\n" + ",\n".join(f"{json.dumps(name)}: {json.dumps(found)}" for name, found in known.items()) + "\n}\n")
                curves[path.stem, objectives, sampler] = found = np.array(known[key][: options.seeds])
                at_goal = found[:, math.floor(GOAL_MEASURED / FULL * found.shape[1]) - 1].mean()
                print(f"{key}: {at_goal:.3f} found at {GOAL_MEASURED:.0%}, {time.perf_counter() - began:.0f} s", flush=True)
    draw(curves, options.out / "curves.png")
    (options.out / "RESULTS.md").write_text(report(paths, curves, options.seeds))


def report(paths: list[Path], curves: dict[tuple[str, tuple[str, ...], str], np.ndarray], seeds: int) -> str:
    """The tables: mean over seeds of the share found, by the share measured."""
    lines = ["# Evaluation of the search", "", "## What is found by measuring a part of a grid", ""]
    lines += [
        f"Share of the full grid's hypervolume, mean of {seeds} seeds (worst seed); limit: at most {MOST_DROP:g} of the accuracy lost. Rates and times count",
        "by their logarithms. All samplers see the same recorded measurements, one by one. `record.py` measures the grids, `replay.py` replays them. The",
        "guided sampler saw them after it was made; one change came later, made for ResNet-50: options that never vary are no dimensions of their own.",
        "", "![share found, by share measured](curves.png)", "",
    ]  # fmt: skip
    for path in paths:
        grid = load(path, OBJECTIVES[0])
        failed = sum(t.values is None for t in grid.table.values())
        feasible = sum(t.feasible for t in grid.table.values())
        recorded = f"recorded {grid.head['date']} on {grid.head['machine']}, torch {grid.head['packages']['torch']}"
        lines += [f"### {path.stem}", "", f"{len(grid.table)} settings ({failed} failed, {feasible} within the limit), {recorded}.", ""]
        for objectives in OBJECTIVES:
            lines += [f"#### {', '.join(objectives)}", "", *table({s: c for (stem, o, s), c in curves.items() if (stem, o) == (path.stem, objectives)}), ""]
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
    from plotly.colors import hex_to_rgb
    from plotly.graph_objects import Scatter
    from plotly.subplots import make_subplots

    panels = list(dict.fromkeys((stem, objectives) for stem, objectives, _ in curves))
    titles = [f"{stem.replace('_', ' ')}: {', '.join(objectives)}" for stem, objectives in panels]
    figure = make_subplots(rows=2, cols=math.ceil(len(panels) / 2), subplot_titles=titles, shared_yaxes=True, vertical_spacing=0.14, horizontal_spacing=0.05)
    colours = dict(zip(dict.fromkeys(s for *_, s in curves), ("#1f77b4", "#d95f02", "#7f7f7f", "#7570b3"), strict=False))
    columns = math.ceil(len(panels) / 2)
    for (stem, objectives, sampler), found in curves.items():
        number = panels.index((stem, objectives))
        place = {"row": 1 + number // columns, "col": 1 + number % columns}
        x = 100 * np.arange(1, found.shape[1] + 1) / (found.shape[1] / FULL)
        shade = f"rgba({','.join(map(str, hex_to_rgb(colours[sampler])))},0.15)"
        ends = np.concatenate([found.max(axis=0), found.min(axis=0)[::-1]])
        area = Scatter(x=np.concatenate([x, x[::-1]]), y=100 * ends, fill="toself", fillcolor=shade, line_width=0, hoverinfo="skip", showlegend=False)
        figure.add_trace(area, **place)
        line = Scatter(x=x, y=100 * found.mean(axis=0), name=sampler, legendgroup=sampler, showlegend=number == 0, line_color=colours[sampler], mode="lines")
        figure.add_trace(line, **place)
    figure.add_hline(y=100 * GOAL_FOUND, line_dash="dash", line_color="#888888", line_width=1)
    figure.add_vline(x=100 * GOAL_MEASURED, line_dash="dash", line_color="#888888", line_width=1)
    figure.update_xaxes(title_text="% of the grid measured", row=2)
    figure.update_yaxes(range=[40, 101], ticksuffix=" %")
    figure.update_layout(template="plotly_white", width=1100, height=760, legend={"orientation": "h", "y": -0.1}, margin={"l": 60, "r": 20, "t": 40, "b": 60})
    screenshot(figure, path)


def screenshot(figure: Any, path: Path) -> None:
    """The figure as a picture, drawn by the Chromium of the browser tests; says so where there is none."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        print(f"no chromium here: {path.name} was not drawn")
        return
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        page_file = Path(folder) / "figure.html"
        figure.write_html(page_file, include_plotlyjs=True, config={"staticPlot": True})
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": figure.layout.width, "height": figure.layout.height})
        page.goto(page_file.as_uri())
        page.wait_for_selector(".main-svg")
        page.screenshot(path=path)
        browser.close()


if __name__ == "__main__":
    main()
