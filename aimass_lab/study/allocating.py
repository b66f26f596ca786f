"""The verb that allocates several models on a fleet of nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import AimassError, InputError
from ..records import ORIGINAL, FleetAllocation, Number, Profile, ResourceDemand, TrialResult
from ..targets import make_target, parse_prices
from ..units import parse_latency, parse_rate, parse_seconds
from ..verbs import Amount, Burst, Count, Model, Seconds, Seed, Share, verb
from ..workload import Workload
from .base import StudyState
from .rotating import read_pairs, whole, workload_of
from .shipping import Shipping

if TYPE_CHECKING:
    from ..fleet.allocate import Formula
    from ..fleet.inventory import Attached, NodeKind
    from ..fleet.ways import Ask, Variant, Way


class Allocating(StudyState):
    """The verb that allocates several models on a fleet of nodes."""

    @verb
    def allocate(
        self,
        *,
        rate: dict[str, str],
        p99: dict[str, str],
        beside: tuple[Model, ...] | None = None,
        fleet: str | None = None,
        node: tuple[str, ...] | None = None,
        count: dict[str, str] | None = None,
        price: dict[str, str] | None = None,
        budget: Amount | None = None,
        max_jobs: Count | None = None,
        tenant: dict[str, str] | None = None,
        quota: dict[str, str] | None = None,
        weight: dict[str, str] | None = None,
        value: dict[str, str] | None = None,
        objective: Literal["cost", "value"] = "cost",
        technique: tuple[str, ...] | None = None,
        burst: Burst = 1.0,
        headroom: Share = 0.0,
        seconds: Seconds = 10.0,
        seed: Seed = 0,
    ) -> FleetAllocation:
        """Allocate several models on a fleet: variant, node type, share of a device, batch limit and replicas of each, and the nodes.

        Everybody is served at the least cost; where that cannot be, as fairly as it can, and the answer says what binds and what one more of it
        would buy. What was chosen is simulated together before it is shown. The attached device is planned with what was measured on it, others
        with estimates, shares of a device with bounds; each number says which.

        Args:
            rate: Requests per second of each model, as model=rate; may be repeated.
            p99: Latency that 99 % of a model's requests must stay under, as model=50ms; may be repeated.
            beside: Further model; may be repeated.
            fleet: TOML file with a table [nodes.NAME] for each type of node (device, devices, cores, memory, price, count, boot, shares, latency)
                and [tenants.NAME] for each tenant (models, weight, replicas, devices, cores, memory).
            node: Type of node with one such device: an attached one or a name of the catalogue; may be repeated. This machine's if neither is given.
            count: Most nodes of a type, as node=number; may be repeated. No limit if not given.
            price: USD per hour and node, as node=price; may be repeated. Without prices for all, the fewest nodes are looked for.
            budget: USD per hour that is never exceeded.
            max_jobs: Most replicas of all models together.
            tenant: Whom a model belongs to, as model=tenant; may be repeated.
            quota: Most that a tenant may hold, as tenant=devices:2,cores:16,memory:64GB,replicas:4; may be repeated.
            weight: Weight of a tenant, or of a model without one, where not everything fits, as name=weight; may be repeated.
            value: What attaining a model's whole rate is worth, as model=number; 1 if not given; may be repeated.
            objective: Serve everybody at the least cost, or attain the most value within the limits.
            technique: Variant to weigh beside the original of every model; may be repeated. Those that trials recommended if not given.
            burst: Rate of bursts over the rate between them; 1 is a Poisson stream.
            headroom: Spare share of every rate to plan for.
            seconds: Time for the choice itself, after which the best found so far is taken, with its distance to the bound.
            seed: Of everything random.
        """
        from ..fleet import Terms, make_allocation
        from ..fleet.inventory import read_fleet, read_quota

        studies = [self, *map(self._study_of, beside or ())]
        names = [study.workload.name for study in studies]
        rates, targets = read_pairs("rate", rate, names, parse_rate), read_pairs("p99", p99, names, parse_latency)
        values, tenants = read_pairs("value", value, names, float), read_pairs("tenant", tenant, names, str)
        for option, given in (("rate", rates), ("p99", targets)):
            if missing := [name for name in names if name not in given]:
                raise InputError(f"there is no {option} for {', '.join(missing)}", help=f"give one for each model: --{option} {missing[0]}=...")
        counts = read_pairs("count", count, [*count] if count else [], whole)
        there = read_fleet(Path(fleet) if fleet else None, self._attached(), nodes=node or (), counts=counts, prices=parse_prices(price))
        terms = Terms(
            budget=budget,
            max_jobs=max_jobs,
            quotas=tuple(q for name, text in (quota or {}).items() for q in read_quota(name, text)),
            weights=read_pairs("weight", weight, [*weight] if weight else [], float),
            objective=objective,
            burst=burst,
            headroom=headroom,
            seed=seed,
            seconds=parse_seconds(seconds),
        )
        asks = [
            _ask(study, there.kinds, rates[name], targets[name], values.get(name, 1.0), tenants.get(name, there.tenants.get(name, "")), technique)
            for name, study in zip(names, studies, strict=True)
        ]
        allocation = make_allocation(asks, there, terms, formula=_formula(dict(zip(names, studies, strict=True))), progress=self.progress)
        return self._keep("allocate", allocation)

    def _study_of(self, model: Any) -> StudyState:
        """A study as it is, with its variants; of any other model a new one."""
        return model if isinstance(model, StudyState) else StudyState(workload_of(model), store=self.store)

    def _attached(self) -> Attached:
        from ..environment import read_environment
        from ..fleet.inventory import Attached

        environment = read_environment(self.workload.torch_device)
        return Attached(device=self._environment_device(), cores=environment.cpu_cores, memory=environment.memory_bytes)


def _ask(study: StudyState, kinds: Sequence[NodeKind], rate: float, p99: float, value: float, tenant: str, techniques: Sequence[str] | None) -> Ask:
    from ..fleet.ways import Ask

    if not value > 0:
        raise InputError(f"the value of {study.workload.name} must be above 0, got {value}")
    name, target = study.workload.name, make_target(rate, p99)
    devices = {kind.device for kind in kinds if name not in kind.latency}
    tried = _techniques(study, techniques)
    variants = {device: [found for technique in tried if (found := _variant(study, technique, device))] for device in sorted(devices)}
    return Ask(model=study.workload.info(), rate=target.requests_per_s, p99=target.latency_p99, value=value, tenant=tenant, variants=variants)


def _techniques(study: StudyState, given: Sequence[str] | None) -> list[str]:
    """The original, and what was asked for or what the newest trials recommended."""
    if given is not None:
        return list(dict.fromkeys([ORIGINAL, *(study._recipe(technique).name for technique in given)]))
    newest = {r.setting.recipe.name: r.recommended for r in study.results if isinstance(r, TrialResult)}
    held = {item.name for item in study.variants.items}
    return [ORIGINAL, *(name for name, recommended in newest.items() if recommended and name in held and name != ORIGINAL)]


def _variant(study: StudyState, technique: str, device: str) -> Variant | None:
    """A variant on a device: measured where it is attached, else predicted; None where nothing can be said."""
    from ..fleet.ways import Variant
    from ..planning.overhead import Overhead

    weights = study._served(technique).info().weight_bytes
    if device == study._environment_device():
        profile = study._measured_profile(technique)
        rehearsed = study._rehearsed(technique) if isinstance(study, Shipping) else None
        server = Overhead.from_record(rehearsed.server_time) if rehearsed else Overhead.recorded()
        return Variant(
            technique=technique, ladder=profile.ladder, cores=_cores(profile), weight_bytes=weights, front_end_per_s=server.requests_per_s
        )  # fmt: skip
    try:
        return Variant(technique=technique, ladder=study._estimated_ladder(technique, device), weight_bytes=weights)
    except AimassError:  # the answer says for which models nothing is known on which nodes
        return None


def _cores(profile: Profile) -> Number:
    environment = profile.environment
    return Number(value=environment.threads, unit="core", source="measured", method="threads of a measured call", environment=environment.id)


def _formula(studies: Mapping[str, StudyState]) -> Formula:
    """The formula's first cut of a model on its way."""
    from ..demand.resources import Measured, estimate_resources
    from ..wire import server_codecs

    def first_cut(ask: Ask, way: Way, rate: float) -> ResourceDemand | str:
        study, device = studies[ask.name], way.kind.device
        workload: Workload = study._served(way.variant.technique)
        here = way.variant.cores is not None and device == study._environment_device()
        try:
            return estimate_resources(
                workload,
                requests_per_s=rate,
                batch_size=way.candidate.max_batch_size,
                device=device,
                measured=Measured(way.variant.ladder, int(way.variant.cores.value)) if here and way.variant.cores else None,
                codecs=server_codecs,
            )
        except AimassError as error:
            return f"no first cut by the formula: {error.message}"

    return first_cut
