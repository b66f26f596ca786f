"""Records as Plotly figures, for those that have a shape worth seeing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import singledispatch
from typing import TYPE_CHECKING

from ..errors import InputError
from ..headlines import format_number
from ..records import Number, Plan, Profile, Record, SearchResult

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

# Plotly's own default template has a fixed white paper; without one a figure takes the page's colours, light or dark.
LAYOUT = {"template": "none", "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)", "font": {"color": "#888"}, "height": 360, "margin": {"t": 40}}


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
    """Latency and throughput by batch size, and time by module as a treemap."""
    from plotly.subplots import make_subplots

    figure = make_subplots(cols=3, specs=[[{}, {}, {"type": "domain"}]], subplot_titles=("latency", "throughput", "own time by module"))
    batches = [point.batch_size for point in record.ladder]
    for name, get in (("p50", lambda p: p.latency_p50), ("p99", lambda p: p.latency_p99)):
        figure.add_trace(_band_line(name, batches, [get(point) for point in record.ladder], 1e3), row=1, col=1)
    figure.add_trace(_band_line("throughput", batches, [point.throughput for point in record.ladder], 1.0), row=1, col=2)
    figure.add_trace(_treemap(record), row=1, col=3)
    figure.update_xaxes(title_text="batch size", type="log", tickvals=batches, ticktext=[str(b) for b in batches])
    figure.update_yaxes(rangemode="tozero")
    figure.update_yaxes(title_text="ms", col=1)
    figure.update_yaxes(title_text="item/s", col=2)
    return figure.update_layout(**LAYOUT, title_text=f"{record.model.name} on {record.environment.device_name}")


@chart.register(Plan)
def _(record: Plan) -> Figure:
    """The latencies by batch size that the plan was simulated on, and the target."""
    from plotly.graph_objects import Figure

    batches = [point.batch_size for point in record.service_time]
    figure = Figure(_band_line("one batch", batches, [point.latency_p50 for point in record.service_time], 1e3))
    figure.add_hline(y=1e3 * record.target.latency_p99.value, line_dash="dash", annotation_text="p99 target")
    figure.update_xaxes(title_text="batch size")
    figure.update_yaxes(title_text="ms", rangemode="tozero")
    return figure.update_layout(**LAYOUT, title_text=f"service time of {record.model.name} on {record.device}")


@chart.register(SearchResult)
def _(record: SearchResult) -> Figure:
    """Speed against fidelity, with those that no other beats joined by a line."""
    from plotly.graph_objects import Figure, Scatter

    tried = [f"{t.setting.technique}, batch {t.batch_size}: {t.verdict}" for t in record.trials]
    points = Scatter(x=[t.speedup.value for t in record.trials], y=[t.fidelity.value for t in record.trials], text=tried, mode="markers", name="tried")
    front = sorted((record.trials[i] for i in record.front), key=lambda t: t.speedup.value)
    line = Scatter(x=[t.speedup.value for t in front], y=[t.fidelity.value for t in front], mode="lines", name="not beaten")
    figure = Figure([points, line])
    figure.update_xaxes(title_text="speed-up")
    figure.update_yaxes(title_text="cosine similarity")
    return figure.update_layout(**LAYOUT, title_text=f"search on {record.model.name}")


def _band_line(name: str, x: Sequence[int], numbers: Sequence[Number], scale: float) -> object:
    from plotly.graph_objects import Scatter

    error: Callable[[Number, int], float] = lambda n, end: abs((n.interval or (n.value, n.value))[end] - n.value) * scale  # noqa: E731
    bars = {"type": "data", "symmetric": False, "array": [error(n, 1) for n in numbers], "arrayminus": [error(n, 0) for n in numbers]}
    return Scatter(x=x, y=[n.value * scale for n in numbers], error_y=bars, mode="lines+markers", name=name)


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
