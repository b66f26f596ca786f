"""The verbs that plan a service and write it down."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from ..errors import InputError, StoreError
from ..headlines import format_number
from ..records import ORIGINAL, BatchPoint, Bundle, Environment, Experience, Note, Number, Plan, Rehearsal, RehearsalMetric, ServerTime, ServingSpec
from ..targets import make_target, parse_prices
from ..units import parse_rate, parse_seconds
from ..verbs import Amount, Burst, Count, DynamicShapes, Latency, Rate, Seconds, Share, verb
from ..workload import Workload, generates
from .base import StudyState

if TYPE_CHECKING:
    from ..prediction.ledger import Correction


class Shipping(StudyState):
    """The verbs that plan a service and write it down."""

    @verb
    def plan(
        self,
        *,
        rate: Rate,
        p99: Latency,
        device: tuple[str, ...] | None = None,
        technique: str = ORIGINAL,
        price: dict[str, str] | None = None,
        burst: Burst = 1.0,
        headroom: Share = 0.0,
        policy: str = "fcfs",
        max_replicas: Count = 1000,
        budget: Amount | None = None,
    ) -> Plan:
        """Find devices, replicas and batching that hold a request rate under a latency target.

        The attached device is planned with what was measured on it: in the server itself where the bundle was rehearsed, else of the
        model alone, and with a recorded default for the server's own time. Devices of the catalogue are planned with what is estimated
        for them, and marked so. How earlier plans fared in rehearsals is in the figures and their bands.

        Args:
            rate: Requests per second, such as 400 or 24000/min.
            p99: Latency that 99 % of the requests must stay under, such as 50ms.
            device: Device to consider; may be repeated. The attached one if not given.
            technique: What to serve instead of the original: a technique, or a recipe such as 'low_rank(ratio=0.5) + int8_dynamic'.
            price: Price of a device, as name=USD per hour; may be repeated.
            burst: Rate of bursts over the rate between them; 1 is a Poisson stream.
            headroom: Spare share of the rate to plan for: 0.2 or 20% plans for 1.2 times the rate.
            policy: Which waiting request goes first, such as edf or 'priority(ageing_s=60)'.
            max_replicas: Most replicas to consider.
            budget: USD per hour that is never exceeded; needs the price of every device.
        """
        from ..planning import make_plan
        from ..planning.overhead import Overhead
        from ..planning.simulations import Simulations

        self._simulated = self._simulated or Simulations()
        technique = self._recipe(technique).name
        target = make_target(rate, p99, max_replicas=max_replicas, headroom=headroom, budget=budget)
        here = self._environment_device()
        names = tuple(device or (here,))
        rehearsed = self._rehearsed(technique) if here in names else None
        service_time = {name: self._planned_ladder(technique, rehearsed) if name == here else self._estimated_ladder(technique, name) for name in names}
        overhead = Overhead.from_record(rehearsed.server_time) if rehearsed else Overhead.recorded()
        plan = make_plan(
            self._served(technique).info(),
            service_time,
            target,
            prices=parse_prices(price),
            memory_limit={name: limit for name in names if (limit := self._memory_limit(name))},
            policy=policy,
            overhead=overhead,
            experience=self._experience(overhead.record, technique, rehearsed) if names == (here,) else None,
            burstiness=burst,
            known=self._simulated,
            progress=self.progress,
        )
        return self._keep("plan", msgspec.structs.replace(plan, technique=technique, notes=(*self._one_call(), *plan.notes)))

    @verb
    def spec(
        self,
        *,
        rate: Rate | None = None,
        p99: Latency | None = None,
        format: str = "kubernetes",
        out: str | None = None,
        device: tuple[str, ...] | None = None,
        technique: str = ORIGINAL,
        name: str | None = None,
        image: str | None = None,
    ) -> ServingSpec:
        """Write down what a cluster must give the service, each number with its provenance.

        Args:
            rate: Requests per second; with p99 as in the last plan if not given.
            p99: Latency that 99 % of the requests must stay under.
            format: What to write it for: an exporter (kubernetes, kserve, ray, kueue, helm, compose, prometheus, triton, tensorflow_serving,
                json), with options in brackets where wanted, such as 'kubernetes(scaler=keda)'.
            out: Folder for the files; shown instead of written if not given.
            device: Device to consider; may be repeated.
            technique: What to serve instead of the original: a technique, or a recipe such as 'low_rank(ratio=0.5) + int8_dynamic'.
            name: Name of the service; made from the model's if not given.
            image: Container image that runs the bundle.
        """
        from ..export import exporter_text, read_exporter
        from ..export.files import check_folder, write_files

        exporter = read_exporter(format)
        folder = None if out is None else Path(out).expanduser()
        if folder is not None:
            check_folder(folder)
        plan = self._plan_for(rate, p99, device, technique)
        spec = self._make_spec(plan, name=name, image=image, export_format=exporter_text(exporter))
        if folder is not None:
            write_files(folder, exporter.export(spec))
        return self._keep("spec", spec)

    @verb
    def bundle(
        self,
        *,
        out: str,
        rate: Rate | None = None,
        p99: Latency | None = None,
        technique: str = ORIGINAL,
        name: str | None = None,
        version: str = "1",
        format: str | None = None,
        frontends: Count = 1,
        dynamic_shapes: DynamicShapes | None = None,
        hashes: bool = False,
        force: bool = False,
    ) -> Bundle:
        """Write a folder that serves the model without this package, and proves its own promises.

        Args:
            out: Folder to write; it must not exist yet.
            rate: Requests per second that all replicas together must hold; chosen from what is measured if not given.
            p99: Latency that 99 % of the requests must stay under; promised from what is measured if not given.
            technique: What to serve instead of the original: a technique, or a recipe such as 'low_rank(ratio=0.5) + int8_dynamic'.
            name: Name of the service; made from the model's if not given.
            version: Version of the model that is served.
            format: How the model is written, such as onnx, openvino, safetensors or aot_inductor; onnx if not given, unless another one is surely faster.
            frontends: Processes of the server that take connections and read requests, for one queue.
            dynamic_shapes: Sizes that requests may choose, as input:axis=smallest..largest: '1=1..512' for axis 1 of every input,
                'input_ids:1+attention_mask:1=1..512' for one size of two inputs, with commas between several; all sizes but the number of items
                are those of the example inputs if not given.
            hashes: Ask the package index for hashes, so that pip installs what was pinned here and nothing else; needs uv, and the index.
            force: Replace a bundle that is already there.
        """
        from ..bundle import check_free

        if (rate is None) != (p99 is None):
            raise InputError("rate and p99 belong together", help="give both, for example --rate 400 --p99 50ms, or neither")
        self.workload.require_weights("load them; a plan and a spec for a device of the catalogue need none: --device h100-sxm")
        check_free(Path(out).expanduser(), force=force)  # told before the seconds that a plan takes, as what is wrong with the sizes is
        workload = self.workload if dynamic_shapes is None else self.workload.with_dynamic_shapes(dynamic_shapes)
        plan = spec = None
        if rate is not None and p99 is not None:
            plan = self._plan_for(rate, p99, None, technique)
            spec = self._make_spec(plan, name=name, image=None)
        asked = {"rate": None if rate is None else parse_rate(rate), "latency_p99_s": None if p99 is None else parse_seconds(p99)}
        how = {"name": name, "version": version, "format": format, "frontends": frontends, "hashes": hashes, "force": force}
        bundle = self._write_bundle(Path(out), technique, workload=workload, plan=plan, spec=spec, **how, **asked)
        return self._keep("bundle", msgspec.structs.replace(bundle, notes=(*self._one_call(), *bundle.notes)))

    def _one_call(self) -> tuple[Note, ...]:
        """What a request is, where the model is one that people ask for whole texts."""
        if not generates(self.model):
            return ()
        text = (
            f"a request is one call of the model on {self.workload.call.describe()}, and a bundle serves such calls, not generate(): a text of n tokens takes "
            "the prompt and n - 1 further calls with a cache; sequence tells what they take, how large the cache gets, and how many fit on a device"
        )
        return (Note(code="assumes:one-call", text=text),)

    def _write_bundle(self, folder: Path, technique: str, *, workload: Workload | None = None, **options: Any) -> Bundle:
        """Write what `technique` makes of the model; options are those of `bundle.write_bundle`."""
        from ..bundle import write_bundle

        variant = None if self._recipe(technique).name == ORIGINAL else self._served(technique).model
        return write_bundle(folder, workload or self.workload, variant=variant, progress=self.progress, **options)

    def _plan_for(self, rate: Rate | None, p99: Seconds | None, device: tuple[str, ...] | None, technique: str) -> Plan:
        """The plan for this target: the last one if it is for the same, or none is named; a new one if not.

        Raises:
            InputError: the target cannot be held, half of it is missing, or all of it and nothing was planned.
        """
        technique = self._recipe(technique).name
        plan = self._last(Plan)
        if rate is None or p99 is None:
            if rate is not None or p99 is not None:
                raise InputError("rate and p99 belong together", help="give both, for example --rate 400 --p99 50ms, or neither after a plan")
            if plan is None:
                raise InputError("nothing is planned yet", help="give rate and p99, for example --rate 400 --p99 50ms, or plan first")
            technique = plan.technique if technique == ORIGINAL else technique
            rate, p99 = plan.target.requests_per_s.value, plan.target.latency_p99.value
        target = make_target(rate, p99)
        asked = (target.requests_per_s.value, target.latency_p99.value, technique)
        known = plan and (plan.target.requests_per_s.value, plan.target.latency_p99.value, plan.technique)
        if plan is None or known != asked or (device and plan.device not in device):
            plan = self.plan(rate=rate, p99=p99, device=device, technique=technique)
        if not plan.feasible:
            asked_for = f"{format_number(target.requests_per_s)} with a p99 under {format_number(target.latency_p99)}"
            noisy = any(note.code == "W-NOISY" for note in plan.notes)
            busy = "; other work kept the machine busy while these latencies were measured: profile again when it is quiet" if noisy else ""
            raise InputError(f"{asked_for} is not feasible on {plan.device}", help=plan.binding + busy)
        return plan

    def _make_spec(self, plan: Plan, *, name: str | None, image: str | None, export_format: str = "kubernetes") -> ServingSpec:
        from ..spec import dns_label, make_spec, replica_memory, startup_time

        service = dns_label(name or self.workload.name) if name is None else name
        return make_spec(
            plan,
            name=service,
            recipe=self._recipe(plan.technique),
            memory=replica_memory(self._peak_memory(plan), plan.model.weight_bytes),
            startup_time=startup_time(self._last(Bundle) if plan.device == self._environment_device() else None),
            environment=self._planned_environment(plan),
            image=image or f"{service}:1",
            export_format=export_format,
            rehearsed=self._figures_of(plan),
        )

    def _figures_of(self, plan: Plan) -> tuple[RehearsalMetric, ...]:
        """What the newest run of this very plan came to; nothing where it was not run, or the machine was not quiet."""
        run = self._rehearsed(plan.technique)
        if run is None or run.verdict != "measured":
            return ()
        planned = run.metric("latency p99").planned
        return run.metrics if planned is not None and planned == plan.latency_p99 else ()

    def _rehearsed(self, technique: str) -> Rehearsal | None:
        """The newest rehearsal of what is served whose measurement of the server nothing disturbed."""
        found = (r for r in reversed(self.results) if isinstance(r, Rehearsal) and r.technique == technique and r.server_time.typical.quality == "ok")
        return next(found, None)

    def _planned_ladder(self, technique: str, rehearsed: Rehearsal | None) -> tuple[BatchPoint, ...]:
        from ..planning.ladders import join_ladders

        profiled = self._measured_ladder(technique)
        return join_ladders(rehearsed.service_time, profiled) if rehearsed else profiled

    def _experience(self, server_time: ServerTime, technique: str, rehearsed: Rehearsal | None) -> Experience | None:
        """What the runs of earlier plans on this machine teach, and how far beyond their bands those of this model were; None without any."""
        from ..prediction.ledger import NO_CORRECTION, plan_kind, reach_of

        learnt = self._learnt()
        p50, p99 = (learnt.get(plan_kind(server_time, f"latency {name}"), NO_CORRECTION) for name in ("p50", "p99"))
        runs = self._runs(technique)
        if not runs and not max(p50.n, p99.n):
            return None
        reach = {name: reach_of(runs, name, planned=rehearsed is None) for name in ("latency p50", "latency p99")}
        return Experience(
            p50=(p50.factor, p50.stretch),
            p99=(p99.factor, p99.stretch),
            p50_reach=reach["latency p50"],
            p99_reach=reach["latency p99"],
            n=max((p50.n, p99.n, len(runs))),
        )

    def _runs(self, technique: str) -> list[Rehearsal]:
        """The rehearsals of what is served on this machine, in this study and before, the newest first, but for those that were no ordinary service."""
        from ..prediction.bookkeeping import environment_key
        from ..prediction.ledger import ordinary

        found: list[Any] = self.results[::-1]
        with contextlib.suppress(StoreError):  # a history that cannot be read teaches nothing
            found += [record for record in self.store.records("rehearse", model_digest=self.workload.info().digest) if record not in found]
        here = environment_key("cpu")
        return [r for r in found if isinstance(r, Rehearsal) and r.technique == technique and r.environment.id == here and ordinary(r)]

    def _learnt(self) -> dict[str, Correction]:
        """By kind of prediction: what those for this machine's processor teach."""
        from ..prediction.bookkeeping import environment_key, learnt_by_kind

        try:
            return learnt_by_kind(self.store.entries(environment=environment_key("cpu")))
        except StoreError:  # a history that cannot be read teaches nothing
            return {}

    def _peak_memory(self, plan: Plan) -> Number:
        """Of the model at the planned batch limit: measured where the plan's ladder has it, else estimated."""
        from ..demand import estimate_demand

        batch = int(plan.max_batch_size.value)
        measured = next((p.peak_memory_bytes for p in plan.service_time if p.batch_size == batch and p.peak_memory_bytes), None)
        return measured or estimate_demand(self._served(plan.technique), batch_size=batch, device=plan.device).peak_memory_bytes

    def _planned_environment(self, plan: Plan) -> Environment | None:
        """Where the plan's latencies were measured; None where they are estimates for a device that is not here."""
        profile = self._profiles.get(plan.technique)
        return profile.environment if profile and plan.device == self._environment_device() else None

    def _memory_limit(self, device: str) -> Number | None:
        """What a replica may use of `device`."""
        from ..prediction.target import find_target

        return find_target(device, self.workload).memory
