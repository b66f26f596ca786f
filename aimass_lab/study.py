"""What this notebook knows so far about one model, and the verbs that find out more."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from .errors import InputError
from .headlines import format_number
from .records import (
    BatchPoint,
    Bundle,
    Demand,
    Environment,
    Number,
    Plan,
    Profile,
    Record,
    SearchResult,
    ServingSpec,
    Setting,
    TrialResult,
)
from .store import Store
from .targets import make_target, parse_prices
from .units import parse_rate, parse_seconds
from .verbs import Progress, Rate, Seconds, verb
from .workload import Workload

if TYPE_CHECKING:
    import torch
    from torch import nn

    from .trial import Variant

R = TypeVar("R", bound=Record)

ORIGINAL = "none"
"""The technique that changes nothing: what is served is the model itself."""


def no_progress(share: float, text: str) -> None:
    """The progress of who does not want to know."""


class Study:
    """One model, its inputs, and everything found out about it.

    The model is never changed: it is run in place with everything put back afterwards, and every
    technique works on a copy.

    Args:
        model: A `torch.nn.Module`, or a `Workload`, and then nothing else but `store`.
        inputs: What the model is called with; see `Workload`.
        data: Labelled data, ``(inputs, labels)``.
        metric: ``metric(outputs, labels) -> float``, higher is better.
        loss: ``loss(outputs, labels) -> scalar tensor``.
        batch_axis: The axis that counts the items.
        name: What to call the model.
        store: The history's file; by default ``$AIMASS_STORE`` or the user's data folder.

    Raises:
        InputError: model or inputs cannot be used.
    """

    def __init__(
        self,
        model: nn.Module | Workload,
        inputs: Any = None,
        *,
        data: tuple[Any, torch.Tensor] | None = None,
        metric: Any = None,
        loss: Any = None,
        batch_axis: int = 0,
        name: str | None = None,
        store: Store | Path | str | None = None,
    ) -> None:
        if isinstance(model, Workload):
            if inputs is not None or data is not None or metric is not None or loss is not None:
                raise InputError("a Workload already has its inputs and data", help="Study(workload), or Study(model, inputs, ...)")
            self.workload = model
        else:
            self.workload = Workload(model, inputs, data=data, metric=metric, loss=loss, batch_axis=batch_axis, name=name)
        self.store = store if isinstance(store, Store) else Store(store)
        self.results: list[Record] = []
        """Everything found so far, oldest first."""
        self.progress: Progress = no_progress
        """Where long work tells how far it is; a front-end puts its own here."""
        self._variants: dict[str, Variant] = {}
        self._profiles: dict[str, Profile] = {}
        """The newest of each technique, on the model's own device."""

    @property
    def model(self) -> nn.Module:
        """The user's own model, as it was."""
        return self.workload.model

    # --- verbs ---------------------------------------------------------------------------

    @verb
    def profile(self, *, batch: int | None = None, device: str | None = None, seconds: Seconds = 4.0, force: bool = False) -> Profile:
        """Measure the model: latency, throughput, memory, time by module, and what binds.

        The model is run as it is loaded, in evaluation mode, and left as it was, bit by bit.

        Args:
            batch: Items per call; as many as the example inputs hold if not given.
            device: Attached device to measure on, such as cpu or cuda:0; where the model is if not given.
            seconds: Time to spend.
            force: Try a batch even if the estimate says that it does not fit.
        """
        from .profiling import profile_model

        workload = self._on_device(device)
        profile = profile_model(workload, batch_size=batch, budget_s=parse_seconds(seconds), force=force, progress=self.progress)
        if workload is self.workload:
            self._profiles[ORIGINAL] = profile
        return self._keep("profile", profile)

    @verb
    def demand(self, *, batch: int | None = None, device: str | None = None) -> Demand:
        """Estimate FLOPs, bytes, memory and network demand without running the model.

        Args:
            batch: Items per call; as many as the example inputs hold if not given.
            device: Device to estimate for: an attached one (cpu, cuda:0) or a name of the catalogue.
        """
        from .demand import estimate_demand

        return self._keep("demand", estimate_demand(self.workload, batch_size=batch, device=device, progress=self.progress))

    @verb
    def trial(self, technique: str, *, batch: int | None = None, option: dict[str, str] | None = None, seconds: Seconds = 6.0) -> TrialResult:
        """Try one technique on a copy of the model, side by side with the original.

        Args:
            technique: What to try: a name such as bf16, int8_dynamic or compile.
            batch: Items per call; as many as the example inputs hold if not given.
            option: Field of the technique, as name=value; may be repeated.
            seconds: Time to spend on the comparison.
        """
        from .trial import apply_setting, run_trial

        setting = Setting(technique=technique, options=dict(option or {}), batch_size=batch)
        variant = apply_setting(self.workload, setting)
        try:
            result = run_trial(self.workload, setting, variant=variant, budget_s=parse_seconds(seconds), progress=self.progress)
        except BaseException:
            variant.release()  # the notebook keeps the traceback, and with it this frame
            raise
        name = technique + (f"({','.join(f'{k}={v}' for k, v in sorted(setting.options.items()))})" if setting.options else "")
        self._variants[name] = variant
        if name != ORIGINAL:
            self._profiles.pop(name, None)
        return self._keep("trial", result)

    @verb
    def search(
        self,
        *,
        technique: tuple[str, ...] | None = None,
        batch: tuple[int, ...] | None = None,
        sampler: str = "grid",
        trials: int | None = None,
        seconds: Seconds = 60.0,
        seed: int = 0,
    ) -> SearchResult:
        """Try many settings and mark those that no other beats.

        Args:
            technique: Technique to try; may be repeated. All of them if not given.
            batch: Batch size to try; may be repeated. That of the example inputs if not given.
            sampler: How to choose the next setting: grid or random.
            trials: Most settings to try.
            seconds: Time to spend in all.
            seed: Of samplers that draw lots.
        """
        from .compression.base import TECHNIQUES
        from .search import make_search_result, search
        from .trial import run_trial

        for name in technique or ():
            TECHNIQUES[name]
        techniques = technique or tuple(name for name in TECHNIQUES if name != ORIGINAL)
        space = {"technique": techniques, "batch_size": batch or (self.workload.call.batch_size,)}
        outcome = search(
            lambda setting: run_trial(self.workload, setting, budget_s=min(3.0, parse_seconds(seconds))),
            space,
            sampler=sampler,
            budget_s=parse_seconds(seconds),
            max_trials=trials,
            seed=seed,
            progress=self.progress,
        )
        return self._keep("search", make_search_result(self.workload.info(), sampler, outcome))

    @verb
    def plan(
        self,
        *,
        rate: Rate,
        p99: Seconds,
        device: tuple[str, ...] | None = None,
        technique: str = ORIGINAL,
        price: dict[str, str] | None = None,
        burst: float = 1.0,
        headroom: float = 0.0,
        policy: str = "fcfs",
        max_replicas: int = 1000,
    ) -> Plan:
        """Find devices, replicas and batching that hold a request rate under a latency target.

        The attached device is planned with what was measured on it; devices of the catalogue with
        what is estimated for them, and marked so.

        Args:
            rate: Requests per second, such as 400 or 24000/min.
            p99: Latency that 99 % of the requests must stay under, such as 50ms.
            device: Device to consider; may be repeated. The attached one if not given.
            technique: What to serve instead of the original: a technique, or the name of a copy that a trial made.
            price: Price of a device, as name=USD per hour; may be repeated.
            burst: Rate of bursts over the rate between them; 1 is a Poisson stream.
            headroom: Spare share of the rate to plan for: 0.2 plans for 1.2 times the rate.
            policy: Which waiting request goes first: the name of a scheduling policy.
            max_replicas: Most replicas to consider.
        """
        from .planning import make_plan

        target = make_target(rate, p99, max_replicas=max_replicas, headroom=headroom)
        here = self._environment_device()
        names = tuple(device or (here,))
        served = self._served(technique)
        service_time = {name: self._measured_ladder(technique) if name == here else self._estimated_ladder(served, name) for name in names}
        plan = make_plan(
            served.info(),
            service_time,
            target,
            prices=parse_prices(price),
            memory_limit={name: limit for name in names if (limit := self._memory_limit(name))},
            policy=policy,
            burstiness=burst,
            progress=self.progress,
        )
        return self._keep("plan", msgspec.structs.replace(plan, technique=technique))

    @verb
    def spec(
        self,
        *,
        rate: Rate,
        p99: Seconds,
        format: str = "kubernetes",
        out: str | None = None,
        device: tuple[str, ...] | None = None,
        technique: str = ORIGINAL,
        name: str | None = None,
        image: str | None = None,
    ) -> ServingSpec:
        """Write down what a cluster must give the service, each number with its provenance.

        Args:
            rate: Requests per second.
            p99: Latency that 99 % of the requests must stay under.
            format: What to write it for: the name of an exporter, such as kubernetes or json.
            out: Folder for the files; shown instead of written if not given.
            device: Device to consider; may be repeated.
            technique: What to serve instead of the original: a technique, or the name of a copy that a trial made.
            name: Name of the service; made from the model's if not given.
            image: Container image that runs the bundle.
        """
        from .export import EXPORTERS
        from .export.files import write_files

        exporter = EXPORTERS[format]
        plan = self._plan_for(rate, p99, device, technique)
        spec = self._make_spec(plan, name=name, image=image, export_format=format)
        if out is not None:
            write_files(Path(out), exporter(spec))
        return self._keep("spec", spec)

    @verb
    def bundle(
        self,
        *,
        out: str,
        rate: Rate | None = None,
        p99: Seconds | None = None,
        technique: str = ORIGINAL,
        name: str | None = None,
        version: str = "1",
        force: bool = False,
    ) -> Bundle:
        """Write a folder that serves the model without this package, and proves its own promises.

        Args:
            out: Folder to write; it must not exist yet.
            rate: Requests per second that all replicas together must hold; chosen from what is measured if not given.
            p99: Latency that 99 % of the requests must stay under; promised from what is measured if not given.
            technique: What to serve instead of the original: a technique, or the name of a copy that a trial made.
            name: Name of the service; made from the model's if not given.
            version: Version of the model that is served.
            force: Replace a bundle that is already there.
        """
        from .bundle import write_bundle

        if (rate is None) != (p99 is None):
            raise InputError("rate and p99 belong together", help="give both, for example --rate 400 --p99 50ms, or neither")
        plan = spec = None
        if rate is not None and p99 is not None:
            plan = self._plan_for(rate, p99, None, technique)
            spec = self._make_spec(plan, name=name, image=None)
        bundle = write_bundle(
            Path(out),
            self.workload,
            plan=plan,
            spec=spec,
            rate=None if rate is None else parse_rate(rate),
            latency_p99_s=None if p99 is None else parse_seconds(p99),
            name=name,
            version=version,
            variant=None if technique == ORIGINAL else self._served(technique).model,
            force=force,
            progress=self.progress,
        )
        return self._keep("bundle", bundle)

    # --- variants ------------------------------------------------------------------------

    def variant(self, name: str) -> nn.Module:
        """The copy that a trial made, to be called like the model.

        Args:
            name: The technique, with the options that were given: ``"bf16"``, ``"int8_dynamic(compile=true)"``.

        Raises:
            InputError: this study did not try it, or undid it.
        """
        if name not in self._variants:
            tried = ", ".join(self._variants) or "none yet"
            raise InputError(f"{name!r} was not tried in this study, or was undone", help=f"tried: {tried}; study.trial(...) makes one")
        return self._variants[name].model

    @property
    def variants(self) -> tuple[str, ...]:
        """Names of the copies that are held, oldest first."""
        return tuple(self._variants)

    def undo(self) -> str | None:
        """Forget the copy that the last trial made and give its memory back; the model itself was never touched.

        Returns:
            The name of what was forgotten; None when there is nothing to undo.
        """
        if not self._variants:
            return None
        name, variant = self._variants.popitem()
        variant.release()
        if name != ORIGINAL:
            self._profiles.pop(name, None)
        return name

    # --- inside --------------------------------------------------------------------------

    def _keep(self, verb_name: str, record: R) -> R:
        self.results.append(record)
        info = self.workload.info()
        self.store.remember(verb_name, record, model=info.name, model_digest=info.digest)
        return record

    def _last(self, kind: type[R]) -> R | None:
        return next((r for r in reversed(self.results) if isinstance(r, kind)), None)

    def _environment_device(self) -> str:
        device = self.workload.torch_device
        return str(device) if device.type != "cuda" or device.index is not None else "cuda:0"

    def _on_device(self, device: str | None) -> Workload:
        """The workload, or a copy of it on another attached device."""
        import copy

        import torch

        if device is None or device == self._environment_device():
            return self.workload
        attached = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        if device not in attached:
            raise InputError(
                f"{device!r} is not attached to this machine, so nothing can be measured on it",
                help=f"attached: {', '.join(attached)}; for other devices there is an estimate: demand --device {device}",
            )
        model = copy.deepcopy(self.model).to(device)
        return Workload(model, self.workload.call.map(lambda t: t.to(device)), name=self.workload.name)

    def _served(self, technique: str) -> Workload:
        """The original, or a copy to be served in its place: the one that a trial made, or a new one."""
        if technique == ORIGINAL:
            return self.workload
        if technique not in self._variants and "(" not in technique:  # with options, only a trial makes one
            from .trial import apply_setting

            self._variants[technique] = apply_setting(self.workload, Setting(technique=technique))
        return Workload(self.variant(technique), self.workload.call, name=self.workload.name)

    def _setting(self, technique: str) -> Setting:
        """What makes the copy that is called `technique`."""
        if technique == ORIGINAL:
            return Setting(technique=ORIGINAL)
        self._served(technique)
        return self._variants[technique].setting

    def _measured_ladder(self, technique: str) -> tuple[BatchPoint, ...]:
        """By batch size, from the newest profile of what is served; from a new one if there is none."""
        from .profiling import profile_model

        if technique not in self._profiles:
            self._profiles[technique] = self._keep("profile", profile_model(self._served(technique), progress=self.progress))
        return self._profiles[technique].ladder

    def _estimated_ladder(self, served: Workload, device: str) -> tuple[BatchPoint, ...]:
        from .prediction import estimate_ladder

        return estimate_ladder(served, device)

    def _memory_limit(self, device: str) -> Number | None:
        """What a replica may use of `device`."""
        from .prediction.target import find_target

        return find_target(device, self.workload).memory

    def _plan_for(self, rate: Rate, p99: Seconds, device: tuple[str, ...] | None, technique: str) -> Plan:
        """The plan for this target: the last one if it is for the same, a new one if not.

        Raises:
            InputError: the target cannot be held.
        """
        target = make_target(rate, p99)
        plan = self._last(Plan)
        asked = (target.requests_per_s.value, target.latency_p99.value, technique)
        known = plan and (plan.target.requests_per_s.value, plan.target.latency_p99.value, plan.technique)
        if plan is None or known != asked or (device and plan.device not in device):
            plan = self.plan(rate=rate, p99=p99, device=device, technique=technique)
        if not plan.feasible:
            asked_for = f"{format_number(target.requests_per_s)} with a p99 under {format_number(target.latency_p99)}"
            raise InputError(f"{asked_for} is not feasible on {plan.device}", help=plan.binding)
        return plan

    def _make_spec(self, plan: Plan, *, name: str | None, image: str | None, export_format: str = "kubernetes") -> ServingSpec:
        from .spec import dns_label, make_spec, replica_memory, startup_time

        service = dns_label(name or self.workload.name) if name is None else name
        return make_spec(
            plan,
            name=service,
            setting=self._setting(plan.technique),
            memory=replica_memory(self._peak_memory(plan), plan.model.weight_bytes),
            startup_time=startup_time(self._last(Bundle) if plan.device == self._environment_device() else None),
            environment=self._planned_environment(plan),
            image=image or f"{service}:1",
            export_format=export_format,
        )

    def _peak_memory(self, plan: Plan) -> Number:
        """Of the model at the planned batch limit: measured where the plan's ladder has it, else estimated."""
        from .demand import estimate_demand

        batch = int(plan.max_batch_size.value)
        measured = next((p.peak_memory_bytes for p in plan.service_time if p.batch_size == batch and p.peak_memory_bytes), None)
        return measured or estimate_demand(self._served(plan.technique), batch_size=batch, device=plan.device).peak_memory_bytes

    def _planned_environment(self, plan: Plan) -> Environment | None:
        """Where the plan's latencies were measured; None where they are estimates for a device that is not here."""
        profile = self._profiles.get(plan.technique)
        return profile.environment if profile and plan.device == self._environment_device() else None
