"""Records as Plotly figures, for those that have a shape worth seeing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import singledispatch
from typing import TYPE_CHECKING

from ..errors import InputError
from ..headlines import describe_policy, format_number, headline
from ..records import Candidate, FleetAllocation, JobPlan, Number, ObjectiveName, Plan, Prediction, Profile, Record, Rotation, ScalePlan, SearchResult

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

# Plotly's own default template has a fixed white paper; without one a figure takes the page's colours, light or dark.
LAYOUT = {"template": "none", "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)", "font": {"color": "#888"}, "height": 360, "margin": {"t": 80}}
GRID = "rgba(128,128,128,0.25)"

TOP_OPERATORS = 12


@singledispatch
def chart(record: Record) -> Figure:
    """Draw `record`.

    Raises:
        InputError: this kind of record has no figure.
    """
    drawn = ", ".join(kind.__name__ for kind in chart.registry if kind not in (object, Record))
    raise InputError(f"there is no chart of a {type(record).__name__}", help=f"there are charts of: {drawn}")


@chart.register(Profile)
def _(record: Profile) -> Figure:
    """Latency and throughput by batch size, time by module as a treemap and by operator as bars, and memory over one call."""
    from plotly.subplots import make_subplots

    titles = ("latency", "throughput", "own time by module", "time by operator", "memory of one call")
    grid: list[list[dict[str, object] | None]] = [[{}, {}, {"type": "domain"}], [{}, {"colspan": 2}, None]]
    rows = 2 if record.operators else 1
    figure = make_subplots(rows=rows, cols=3, specs=grid[:rows], subplot_titles=titles[: 3 if rows == 1 else 5])
    batches = [point.batch_size for point in record.ladder]
    for name, get in (("p50", lambda p: p.latency_p50), ("p99", lambda p: p.latency_p99)):
        figure.add_trace(_band_line(name, batches, [get(point) for point in record.ladder], 1e3), row=1, col=1)
    figure.add_trace(_band_line("throughput", batches, [point.throughput for point in record.ladder], 1.0), row=1, col=2)
    figure.add_trace(_treemap(record), row=1, col=3)
    figure.update_xaxes(title_text="batch size", type="log", tickvals=batches, ticktext=[str(b) for b in batches], row=1)
    figure.update_yaxes(rangemode="tozero", row=1)
    figure.update_yaxes(title_text="latency, ms", row=1, col=1)
    figure.update_yaxes(title_text="items/s", row=1, col=2)
    if record.operators:
        _add_second_row(figure, record)
    layout = {**LAYOUT, "height": 320 * rows, "showlegend": False}
    figure.update_xaxes(gridcolor=GRID).update_yaxes(gridcolor=GRID, automargin=True)
    return figure.update_layout(**layout, title_text=f"{record.model.name} on {record.environment.device_name}", title_y=0.98)


def _add_second_row(figure: Figure, record: Profile) -> None:
    """Bars of the operators that take the most, and the memory that is held over one call with its highest moment."""
    from plotly.graph_objects import Bar, Scatter

    top = record.operators[:TOP_OPERATORS]
    times = [1e3 * (o.device_time or o.self_time).value for o in top]
    words = [f"{o.calls} calls, {o.source}" if o.source else f"{o.calls} calls" for o in top]
    figure.add_trace(Bar(y=[o.name.partition("::")[2] or o.name for o in top], x=times, text=words, orientation="h", textposition="none"), row=2, col=1)
    figure.update_yaxes(autorange="reversed", row=2, col=1)
    figure.update_xaxes(title_text="time of its own, ms", row=2, col=1)
    timeline = record.timeline
    if timeline is None:
        return
    mebi = 2.0**20
    held = Scatter(
        x=[1e3 * t for t in timeline.times_s], y=[b / mebi for b in timeline.held_bytes], mode="lines", line_shape="hv", fill="tozeroy", name="held"
    )  # fmt: skip
    place = f"{timeline.operator} in {timeline.module}" if timeline.module else timeline.operator
    peak = Scatter(
        x=[1e3 * timeline.peak_at.value], y=[timeline.peak.value / mebi], mode="markers", text=[place], name="peak"
    )  # fmt: skip
    figure.add_trace(held, row=2, col=2)
    figure.add_trace(peak, row=2, col=2)
    figure.update_xaxes(title_text=f"time since the call began, profiler on, ms<br>peak: {place}", row=2, col=2)
    figure.update_yaxes(title_text="held, MiB", rangemode="tozero", row=2, col=2)


@chart.register(Prediction)
def _(record: Prediction) -> Figure:
    """Latency and throughput by batch size with their bands, and what was measured as dots."""
    from plotly.graph_objects import Scatter
    from plotly.subplots import make_subplots

    figure = make_subplots(cols=2, subplot_titles=("latency", "throughput"))
    batches = [point.batch_size for point in record.points]
    for col, scale, predicted, seen in (
        (1, 1e3, [p.latency for p in record.points], [p.latency_p50 for p in record.measured]),
        (2, 1.0, [p.throughput for p in record.points], [p.throughput for p in record.measured]),
    ):
        for trace in _band_area(batches, predicted, scale):
            figure.add_trace(trace, row=1, col=col)
        dots = Scatter(x=[p.batch_size for p in record.measured], y=[n.value * scale for n in seen], mode="markers", marker_size=9, name="measured")
        figure.add_trace(dots, row=1, col=col)
    figure.update_xaxes(title_text="batch size", type="log", tickvals=batches, ticktext=[str(b) for b in batches])
    figure.update_yaxes(rangemode="tozero")
    figure.update_yaxes(title_text="latency, ms", col=1)
    figure.update_yaxes(title_text="items/s", col=2)
    return figure.update_layout(**LAYOUT, showlegend=False, title_text=f"{record.model.name} on {record.device}, predicted with 90 % bands")


@chart.register(Plan)
def _(record: Plan) -> Figure:
    """The latencies by batch size that the plan was simulated on, and the target."""
    from plotly.graph_objects import Figure

    batches = [point.batch_size for point in record.service_time]
    figure = Figure(_band_line("one batch", batches, [point.latency_p50 for point in record.service_time], 1e3))
    figure.add_hline(y=1e3 * record.target.latency_p99.value, line_dash="dash", annotation_text="p99 target")
    figure.update_xaxes(title_text="batch size")
    figure.update_yaxes(title_text="time of a batch, ms", rangemode="tozero")
    return figure.update_layout(**LAYOUT, title_text=f"service time of {record.model.name} on {record.device}")


@chart.register(Rotation)
def _(record: Rotation) -> Figure:
    """For each policy the turns of the run, and below them those of the replay and of a prediction; a colour for each model."""
    from plotly.colors import qualitative
    from plotly.graph_objects import Bar
    from plotly.subplots import make_subplots

    figure = make_subplots(
        rows=len(record.runs), shared_xaxes=True, subplot_titles=[describe_policy(run) for run in record.runs], vertical_spacing=0.25 / len(record.runs)
    )
    for row, run in enumerate(record.runs, 1):
        for k, model in enumerate(record.models):
            bars: dict[str, list[object]] = {"base": [], "x": [], "y": [], "text": []}
            for kind, turns in (("run", run.real), ("replay", run.replayed), ("prediction", run.predicted)):
                for i in (i for i, of in enumerate(turns.model) if of == k):
                    bars["base"].append(turns.start_s[i])
                    bars["x"].append(turns.end_s[i] - turns.start_s[i])
                    bars["y"].append(kind if record.lanes == 1 else f"{kind}, lane {turns.lane[i]}")
                    bars["text"].append(f"call {turns.job[i]}{'' if turns.finished[i] else ', made room'}")
            color = qualitative.Plotly[k % len(qualitative.Plotly)]
            bar = Bar(**bars, orientation="h", textposition="none", marker_color=color, marker_line_width=0, name=model.model.name, showlegend=row == 1)
            figure.add_trace(bar, row=row, col=1)
        figure.update_yaxes(autorange="reversed", row=row, col=1)
    figure.update_xaxes(title_text=f"time by the {record.clock} clock, s", row=len(record.runs), gridcolor=GRID)
    return figure.update_layout(**{**LAYOUT, "height": 80 + 170 * len(record.runs)}, barmode="overlay", title_text="turns on the device")


@chart.register(ScalePlan)
def _(record: ScalePlan) -> Figure:
    """What each way costs and attains; and, over time, arrivals and replicas of the recommended one."""
    from plotly.graph_objects import Scatter
    from plotly.subplots import make_subplots

    series = record.series
    figure = make_subplots(rows=2, cols=2, specs=[[{"rowspan": 2}, {}], [None, {}]], subplot_titles=("cost and attainment", "arrivals", "replicas"))
    for kind in ("static", "dynamic", "hybrid"):
        drawn = [option for option in record.options if option.kind == kind]
        words = [f"{o.scaler} from {o.min_replicas}: {o.reason}" for o in drawn]
        x, y = [o.replicas.value for o in drawn], [100 * o.attainment.value for o in drawn]
        figure.add_trace(Scatter(x=x, y=y, text=words, mode="markers", marker_size=9, name=kind), row=1, col=1)
    figure.add_hline(y=100 * record.attainment_target.value, line_dash="dash", row=1, col=1)
    figure.add_trace(Scatter(x=series.time_s, y=series.requests_per_s, mode="lines", name="requests/s"), row=1, col=2)
    for name, values in (("wanted", series.wanted), ("ready", series.ready)):
        figure.add_trace(Scatter(x=series.time_s, y=values, mode="lines", line_shape="hv", name=name), row=2, col=2)
    figure.update_xaxes(title_text="mean replicas", row=1, col=1).update_xaxes(title_text="time, s", row=2, col=2)
    figure.update_yaxes(title_text="requests in time, %", row=1, col=1).update_yaxes(title_text="requests/s", row=1, col=2)
    figure.update_yaxes(title_text="replicas", row=2, col=2)
    return figure.update_layout(**LAYOUT, title_text=f"replicas of {record.model.name}")


@chart.register(FleetAllocation)
def _(record: FleetAllocation) -> Figure:
    """Who has which cores of the nodes, alike ones in one bar; and how much of its rate each model gets."""
    from plotly.graph_objects import Bar
    from plotly.subplots import make_subplots

    figure = make_subplots(rows=1, cols=2, subplot_titles=("cores of one node, by model", "share of the rate that is served"))
    names = [f"{node.count} × {node.node_type}{' ' * k}" for k, node in enumerate(record.nodes)]  # two bars of one name would be one
    for model in record.models:
        if model.cores is None:
            continue
        held = [sum(r.count for r in node.replicas if r.model == model.model.name) for node in record.nodes]
        figure.add_trace(Bar(x=[count * model.cores.value for count in held], y=names, orientation="h", name=model.model.name), row=1, col=1)
    shares = Bar(x=[100 * m.share.value for m in record.models], y=[m.model.name for m in record.models], orientation="h", showlegend=False)
    figure.add_trace(shares, row=1, col=2)
    figure.update_xaxes(title_text="cores", row=1, col=1).update_xaxes(title_text="served, %", range=[0, 100], row=1, col=2)
    figure.update_yaxes(autorange="reversed", automargin=True)
    return figure.update_layout(**{**LAYOUT, "height": 200 + 24 * max(len(names), len(record.models))}, barmode="stack", title_text=headline(record))


@chart.register(JobPlan)
def _(record: JobPlan) -> Figure:
    """Each job from its begin to its end with the band of the end and its deadline, and each online model's p99 without and beside them."""
    from plotly.graph_objects import Bar, Scatter
    from plotly.subplots import make_subplots

    run = record.chosen
    figure = make_subplots(cols=2, column_widths=[0.65, 0.35], subplot_titles=("jobs", "p99 of models online"))
    ended = [outcome for outcome in run.jobs if outcome.begins is not None and outcome.ends is not None]
    starts, ends = [o.begins.value for o in ended if o.begins], [o.ends for o in ended if o.ends]
    reach = [n.ends for n in ends]
    bars = {
        "type": "data", "symmetric": False,
        "array": [high - n.value for n, (_, high) in zip(ends, reach, strict=True)],
        "arrayminus": [n.value - low for n, (low, _) in zip(ends, reach, strict=True)],
    }  # fmt: skip
    lengths = [n.value - start for n, start in zip(ends, starts, strict=True)]
    names = [o.job for o in ended]
    figure.add_trace(Bar(y=names, x=lengths, base=starts, orientation="h", error_x=bars, showlegend=False), row=1, col=1)
    due = [job for job in record.jobs if job.deadline]
    late = Scatter(
        y=[job.name for job in due], x=[job.deadline.value for job in due if job.deadline], mode="markers", marker_symbol="line-ns-open", marker_size=18,
        name="deadline",
    )  # fmt: skip
    figure.add_trace(late, row=1, col=1)
    for title, get in (("without jobs", lambda o: o.latency_p99_alone), ("beside them", lambda o: o.latency_p99)):
        figure.add_trace(Bar(x=[o.model for o in run.online], y=[1e3 * get(o).value for o in run.online], name=title), row=1, col=2)
    figure.update_xaxes(title_text="time, s", row=1, col=1).update_yaxes(title_text="p99, ms", row=1, col=2)
    figure.update_yaxes(autorange="reversed", automargin=True, row=1, col=1)
    return figure.update_layout(**{**LAYOUT, "height": 220 + 24 * len(record.jobs)}, title_text=headline(record))


@chart.register(SearchResult)
def _(record: SearchResult) -> Figure:
    """The first two objectives against each other with their intervals, the front joined by a line, the best marked."""
    from plotly.graph_objects import Figure, Scatter

    across, up = (record.objectives * 2)[1].name, record.objectives[0].name
    drawn = {i: c for i, c in enumerate(record.candidates) if across in c.numbers and up in c.numbers}
    kinds = {
        "predicted": [i for i, c in drawn.items() if c.status == "predicted"],
        "beyond a limit or not equivalent": [i for i, c in drawn.items() if c.status == "measured" and (c.beyond or c.verdict == "not equivalent")],
    }
    kinds["measured"] = [i for i in drawn if not any(i in others for others in kinds.values())]
    figure = Figure()
    for name, symbol in (("measured", "circle"), ("beyond a limit or not equivalent", "x"), ("predicted", "circle-open")):
        chosen = [drawn[i] for i in kinds[name]]
        if chosen:
            figure.add_trace(_scatter(name, chosen, across, up, {"symbol": symbol, "size": 7}))
    front = sorted((drawn[i] for i in record.front if i in drawn), key=lambda c: c.numbers[across].value)
    x, y = ([c.numbers[name].value for c in front] for name in (across, up))
    figure.add_trace(Scatter(x=x, y=y, mode="lines", line_dash="dot", name="not beaten", hoverinfo="skip"))
    if record.best in drawn:
        figure.add_trace(_scatter("best", [drawn[record.best]], across, up, {"symbol": "star", "size": 15}))
    for axis, name in ((figure.update_xaxes, across), (figure.update_yaxes, up)):
        unit = next((c.numbers[name].unit for c in drawn.values()), "")
        axis(title_text=f"{name.replace('_', ' ')}{'' if unit in ('', 'ratio') else f', {unit}'}", gridcolor=GRID)
    return figure.update_layout(**LAYOUT, title_text=f"search on {record.model.name}")


def _scatter(name: str, candidates: Sequence[Candidate], across: ObjectiveName, up: ObjectiveName, marker: dict[str, object]) -> object:
    """Candidates as points with bars as long as their intervals."""
    from plotly.graph_objects import Scatter

    def bars(of: ObjectiveName) -> dict[str, object]:
        numbers = [c.numbers[of] for c in candidates]
        ends = [n.ends for n in numbers]
        low, high = ([max(0.0, sign * (n.value - end[k])) for n, end in zip(numbers, ends, strict=True)] for k, sign in ((0, 1), (1, -1)))
        return {"type": "data", "symmetric": False, "array": high, "arrayminus": low, "thickness": 1, "width": 0}

    words = [_describe(c) for c in candidates]
    values = {axis: [c.numbers[of].value for c in candidates] for axis, of in (("x", across), ("y", up))}
    return Scatter(**values, error_x=bars(across), error_y=bars(up), text=words, mode="markers", marker=marker, name=name)


def _describe(candidate: Candidate) -> str:
    setting = candidate.setting
    load = f"batch {setting.batch_size}, {setting.instances} × {setting.threads or 'all'} threads"
    return f"{setting.recipe.name}, {load}{f' on {setting.device}' if setting.device else ''}: {candidate.verdict or candidate.status}"


def _band_line(name: str, x: Sequence[int], numbers: Sequence[Number], scale: float) -> object:
    from plotly.graph_objects import Scatter

    error: Callable[[Number, int], float] = lambda n, end: abs(n.ends[end] - n.value) * scale  # noqa: E731
    bars = {"type": "data", "symmetric": False, "array": [error(n, 1) for n in numbers], "arrayminus": [error(n, 0) for n in numbers]}
    return Scatter(x=x, y=[n.value * scale for n in numbers], error_y=bars, mode="lines+markers", name=name)


def _band_area(x: Sequence[int], numbers: Sequence[Number], scale: float) -> list[object]:
    """A line in its band: the band's two edges, the area between them, and the line."""
    from plotly.graph_objects import Scatter

    low, high = ([n.ends[end] * scale for n in numbers] for end in (0, 1))
    edge = {"mode": "lines", "line_width": 0, "hoverinfo": "skip"}
    area = [Scatter(x=x, y=high, **edge), Scatter(x=x, y=low, fill="tonexty", fillcolor="rgba(128,128,128,.25)", **edge)]
    return [*area, Scatter(x=x, y=[n.value * scale for n in numbers], mode="lines", name="predicted")]


def _treemap(record: Profile) -> object:
    from plotly.graph_objects import Treemap

    names = [module.name for module in record.modules]
    known = set(names)

    def parent(name: str) -> str | None:
        while name:
            name = name.rpartition(".")[0]
            if name in known:
                return name
        return None

    return Treemap(
        ids=[f"/{name}" for name in names],
        labels=[name.rpartition(".")[2] or record.model.name for name in names],
        parents=["" if (p := parent(name)) is None or not name else f"/{p}" for name in names],
        values=[module.self_time.value for module in record.modules],
        text=[f"{module.type}, {format_number(module.self_time)}" for module in record.modules],
        branchvalues="remainder",
    )
