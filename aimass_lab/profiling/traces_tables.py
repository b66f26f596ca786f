"""Takes the plugin's sums out of its parsers and makes records of them, each list cut to a size that stays small."""

from __future__ import annotations

import functools
import html
import math
import re
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from ..records import Number, Quality, TraceGpu, TraceKernel, TraceMemory, TraceModule, TraceOperator, TraceStep, Unit
from ..units import format_count
from .traces_file import MODULE_MARK, THE_MODEL

MOST_STEPS = 20
MOST_OPERATORS = 50
MOST_KERNELS = 50
MOST_MODULES = 200
MOST_CURVES = 8
MOST_POINTS = 400
MOST_RECOMMENDATIONS = 10
LONGEST_NAME = 160
"""Names of templated kernels run to thousands of characters."""

_MODULE_NAME = re.compile(r"^(?P<name>.*) \[(?P<type>[^\[\]]*)\]$")
_LINK = re.compile(r"<[^>]*>")


@dataclass(frozen=True)
class Tables:
    """Reads the results of one trace."""

    environment: str | None
    """Id of the environment; None where it is not known."""
    quality: Quality

    def read(self, data: Any, run: Any) -> dict[str, Any]:
        """Everything of a `TraceSummary` that is counted.

        Args:
            data: A ``RunProfileData`` of torch_tb_profiler.
            run: The ``RunProfile`` made from it.
        """
        steps = [self._step(str(name), costs.costs, data) for name, costs in zip(data.steps_names, data.steps_costs, strict=False)]
        modules = self._modules(run, data)
        kernels = self._kernels(data)
        return {
            "num_steps": len(steps),
            "step": self._step("mean", data.avg_costs.costs, data, of=len(steps)),
            "steps": tuple(steps[:MOST_STEPS]),
            "num_operators": len(data.op_list_groupby_name),
            "operators": self._operators(data, run),
            "num_kernels": len(kernels),
            "kernels": tuple(kernels[:MOST_KERNELS]),
            "num_modules": len(modules),
            "modules": _largest(modules),
            "gpus": self._gpus(data),
            "memory": self._memory(data, run),
            "recommendations": tuple(html.unescape(_LINK.sub("", text)) for text in data.recommendations[:MOST_RECOMMENDATIONS]),
        }

    def _step(self, name: str, costs: list[float], data: Any, of: int = 1) -> TraceStep:
        from torch_tb_profiler.profiler.event_parser import ProfileRole as Role

        gpu = data.has_runtime or data.has_kernel or data.has_memcpy_or_memset

        def part(role: Any, there: bool = True) -> Number | None:
            return self._time(costs[role], f"mean of {format_count(of, 'step')}" if name == "mean" else "one step") if there else None

        return TraceStep(
            name=name,
            total=self._time(costs[Role.Total], f"mean of {format_count(of, 'step')}" if name == "mean" else "one step"),
            kernel=part(Role.Kernel, gpu),
            memcpy=part(Role.Memcpy, gpu),
            memset=part(Role.Memset, gpu),
            communication=part(Role.Communication, data.has_communication),
            runtime=part(Role.Runtime, gpu),
            data_loader=self._time(costs[Role.DataLoader], "DataLoader.__next__"),
            cpu=self._time(costs[Role.CpuOp], "operators on the host"),
            other=self._time(costs[Role.Other], "the rest of the step"),
        )

    def _operators(self, data: Any, run: Any) -> tuple[TraceOperator, ...]:
        gpu = data.has_kernel or data.has_memcpy_or_memset
        found = sorted(data.op_list_groupby_name, key=lambda op: -(op.self_device_duration if gpu else op.self_host_duration))
        allocated = _allocations(run)
        return tuple(
            TraceOperator(
                name=_short(op.name),
                calls=op.calls,
                host_self=self._time(op.self_host_duration, "sum over calls, without operators called"),
                host_total=self._time(op.host_duration, "sum over calls"),
                device_self=self._time(op.self_device_duration, "kernels launched by it") if gpu else None,
                device_total=self._time(op.device_duration, "kernels launched in it") if gpu else None,
                allocated_bytes=None if allocated is None else self._number(allocated.get(op.name, 0.0), "B", "allocations in it, frees not taken off"),
                tensor_core_share=self._number(op.tc_self_ratio, "ratio", "kernels known to use tensor cores, by name") if gpu else None,
            )
            for op in found[:MOST_OPERATORS]
        )

    def _kernels(self, data: Any) -> list[TraceKernel]:
        if data.kernel_stat is None:
            return []
        launched_by: dict[str, tuple[float, str]] = {}
        for kernel in data.kernel_list_groupby_name_op:
            known = kernel.op_name not in (None, "N/A", "CallTreeRoot")
            launched_by[kernel.name] = max(launched_by.get(kernel.name, (-1.0, "")), (kernel.total_duration, kernel.op_name if known else ""))
        found = []
        for name, row in data.kernel_stat.iterrows():
            low, high = self._seconds(row["min"]), self._seconds(row["max"])
            mean = self._time(row["mean"], f"mean of {format_count(int(row['count']), 'run')}", interval=(low, high), interval_kind="shortest and longest")
            blocks, occupancy = _finite(row.get("blocks_per_sm")), _finite(row.get("occupancy"))
            found.append(
                TraceKernel(
                    name=_short(str(name)),
                    calls=int(row["count"]),
                    total=self._time(row["sum"], "sum over runs"),
                    mean=mean,
                    operator=_short(launched_by.get(str(name), (0.0, ""))[1]) or None,
                    blocks_per_sm=blocks,
                    occupancy=None if occupancy is None else self._number(occupancy / 100, "ratio", "the profiler's estimate, weighted with time"),
                    uses_tensor_cores=bool(row["tc_used"]),
                )
            )
        return found

    def _modules(self, run: Any, data: Any) -> list[TraceModule]:
        gpu = data.has_kernel or data.has_memcpy_or_memset
        found: list[TraceModule] = []
        seen: set[tuple[str, int]] = set()

        def visit(stats: Any, depth: int) -> None:
            if (stats.name, stats.id) not in seen:  # the plugin repeats a module for every way in which it was called
                seen.add((stats.name, stats.id))
                match = _MODULE_NAME.match(stats.name.removeprefix(MODULE_MARK))
                found.append(
                    TraceModule(
                        name=_path(match["name"]) if match else _short(stats.name),
                        type=_short(match["type"]) if match else "",
                        depth=depth,
                        calls=stats.occurences,
                        operators=stats.operators,
                        host_total=self._time(stats.host_duration, "sum over calls"),
                        host_self=self._time(stats.self_host_duration, "sum over calls, without operators and submodules"),
                        device_total=self._time(stats.device_duration, "kernels launched in it") if gpu else None,
                        device_self=self._time(stats.self_device_duration, "kernels launched in no operator or submodule") if gpu else None,
                    )
                )
            for child in stats.children:
                visit(child, depth + 1)

        for root in run.module_stats or ():
            visit(root, 0)
        return found

    def _gpus(self, data: Any) -> tuple[TraceGpu, ...]:
        parser = data.gpu_metrics_parser
        names = {props.get("id"): props.get("name") for props in data.device_props or ()}

        def share(value: float | None, method: str) -> Number | None:
            return None if value is None else self._number(value, "ratio", method)

        return tuple(
            TraceGpu(
                index=gpu,
                name=names.get(gpu),
                utilization=self._number(parser.gpu_utilization[gpu] or 0.0, "ratio", "any kernel at work, over all steps"),
                sm_efficiency=share(parser.avg_approximated_sm_efficiency_per_device[gpu], "kernels weighted with multiprocessors taken"),
                occupancy=share(_percent(parser.avg_occupancy_per_device[gpu]), "the profiler's estimate, weighted with time"),
            )
            for gpu in sorted(parser.gpu_ids)
        )

    def _memory(self, data: Any, run: Any) -> tuple[TraceMemory, ...]:
        if data.memory_snapshot is None:
            return ()
        from torch_tb_profiler.utils import lttb_sample

        peaks = {("CPU" if kind == 0 else f"GPU{index}"): peak for (kind, index), peak in data.memory_snapshot.get_peak_memory().items()}
        curves = run.get_memory_curve(time_metric="s", memory_metric="B", patch_for_step_plot=False)["rows"]
        found = []
        for device in sorted(curves)[:MOST_CURVES]:
            points = lttb_sample({device: curves[device]}, n_out=MOST_POINTS)[device]
            found.append(
                TraceMemory(
                    device=device,
                    peak_bytes=self._number(int(peaks[device]), "B", "highest of all allocations traced"),
                    times_s=tuple(round(float(p[0]), 9) for p in points),
                    allocated_bytes=tuple(int(p[1]) for p in points),
                    reserved_bytes=tuple(int(p[2]) for p in points),
                )
            )
        return tuple(found)

    def _seconds(self, microseconds: float) -> float:
        return float(microseconds) / 1e6

    def _time(self, microseconds: float, method: str, *, interval: tuple[float, float] | None = None, interval_kind: str | None = None) -> Number:
        return self._number(self._seconds(microseconds), "s", f"{method}, profiler on", interval=interval, interval_kind=interval_kind)

    def _number(self, value: float, unit: Unit, method: str, *, interval: tuple[float, float] | None = None, interval_kind: str | None = None) -> Number:
        return Number(
            value=value,
            unit=unit,
            source="measured",
            method=f"{method}; torch_tb_profiler {_plugin_version()}",
            interval=interval,
            interval_kind=interval_kind,
            environment=self.environment,
            quality=self.quality,
        )


@functools.cache
def _plugin_version() -> str:
    return version("torch-tb-profiler")


def _allocations(run: Any) -> dict[str, float] | None:
    """Bytes that each operator asked for itself, on all devices; None where memory was not traced."""
    if run.memory_snapshot is None:
        return None
    found: dict[str, float] = {}
    for rows in run.get_memory_stats(memory_metric="B")["rows"].values():
        for row in rows:
            found[row[0]] = found.get(row[0], 0.0) + row[7]
    return found


def _largest(modules: list[TraceModule]) -> tuple[TraceModule, ...]:
    """Those with the most time, in the order of the tree; a module takes at least as long as what it contains, so parents stay."""
    ranked = sorted(range(len(modules)), key=lambda i: (-(modules[i].device_total or modules[i].host_total).value, -modules[i].host_total.value, i))
    return tuple(modules[i] for i in sorted(ranked[:MOST_MODULES]))


def _path(name: str) -> str:
    return "" if name == THE_MODEL else _short(name)


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


def _finite(value: Any) -> float | None:
    return float(value) if value is not None and math.isfinite(float(value)) else None


def _percent(value: float | None) -> float | None:
    return None if value is None else value / 100
