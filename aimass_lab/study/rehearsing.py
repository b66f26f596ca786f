"""The verb that runs a plan's bundle on this machine and holds it against what was foretold."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec

from ..errors import InputError
from ..records import ORIGINAL, Bundle, LoadPattern, Number, Plan, Rehearsal, derived
from ..units import parse_rate, parse_seconds
from ..verbs import Count, Latency, Rate, Seconds, Seed, verb
from .shipping import Shipping


class Rehearsing(Shipping):
    """The verb that runs a plan's bundle on this machine and holds it against what was foretold."""

    @verb
    def rehearse(
        self,
        *,
        rate: Rate | None = None,
        p99: Latency | None = None,
        bundle: str | None = None,
        technique: str = ORIGINAL,
        seconds: Seconds = 20.0,
        pattern: LoadPattern = "poisson",
        replicas: Count | None = None,
        kill: int = 0,
        seed: Seed = 0,
    ) -> Rehearsal:
        """Run a plan with its real bundle on this machine: predict, run, compare.

        The bundle's own server is started and measured for some seconds; what it will do at the planned load is predicted; the load is sent.
        Each error is split into that of the mechanism, that of the times, and what these very arrivals did. Plans and predictions that were
        run teach the next ones. An interrupt keeps what was measured.

        Args:
            rate: Requests per second of the plan, such as 400 or 24000/min; the last plan's if not given.
            p99: Latency that 99 % of the requests must stay under, of the plan.
            bundle: Folder of the bundle to run; the last one written for this model if not given, or a new one for the time of the run.
            technique: What to serve instead of the original: a technique, or a recipe such as 'low_rank(ratio=0.5) + int8_dynamic'.
            seconds: Time over which requests are sent.
            pattern: How they come: poisson, bursty or steady.
            replicas: Servers to run side by side; as many as planned if not given and there are cores for them, else one.
            kill: Workers to kill on the way, to see what becomes of their requests.
            seed: Of the arrivals.
        """
        from ..bundle import require_bundle
        from ..rehearsal import Asked
        from ..rehearsal import rehearse as run

        technique = self._recipe(technique).name
        if (rate is None) != (p99 is None) and bundle is None:
            raise InputError("rate and p99 belong together", help="give both, for example --rate 400 --p99 50ms, or neither after a plan")
        if bundle is not None:
            require_bundle(bundle)  # told before the minutes that a plan may take
        plan = self._rehearsed_plan(rate, p99, technique, needed=bundle is None)
        here = self._environment_device()
        if plan is not None and plan.device != "cpu":
            where = "a bundle computes on the processor" if plan.device == here else "that device is not here"
            raise InputError(f"the plan is for {plan.device}, and {where}, so it cannot be run", help="plan for this machine: device=cpu")
        with self._bundle_to_run(bundle, plan, technique) as folder:
            asked = Asked(
                rate=self._rate_of_replica(rate, plan, folder),
                seconds=parse_seconds(seconds),
                pattern=pattern,
                replicas=replicas,
                plan=plan,
                technique=technique,
                kill=kill,
                seed=seed,
            )
            record = run(folder, asked, corrections=self._learnt(), progress=self.progress)
        return self._keep("rehearse", msgspec.structs.replace(record, model=self.workload.info()))

    def _rehearsed_plan(self, rate: Rate | None, p99: Seconds | None, technique: str, *, needed: bool) -> Plan | None:
        if rate is not None and p99 is not None:
            return self._plan_for(rate, p99, None, technique)
        plan = self._last(Plan)
        if plan is not None and rate is None and plan.technique == technique and plan.feasible:
            return plan
        if needed:
            raise InputError("there is no plan to run", help="give rate and p99, for example --rate 400 --p99 50ms, or plan first; or name a bundle")
        return None

    @staticmethod
    def _rate_of_replica(rate: Rate | None, plan: Plan | None, folder: Path) -> Number:
        if plan is not None:
            share = plan.target.requests_per_s.value * (1 + plan.target.headroom) / plan.replicas.value
            inputs = [("requests_per_s", plan.target.requests_per_s), ("replicas", plan.replicas)]
            return derived(share, "request/s", "the planned rate over the replicas", inputs)
        if rate is not None:
            return Number(value=parse_rate(rate), unit="request/s", source="user", method="asked for")
        from ..bundle import promised_rate

        return promised_rate(folder)

    @contextlib.contextmanager
    def _bundle_to_run(self, named: str | None, plan: Plan | None, technique: str) -> Iterator[Path]:
        """The folder that was named, else the last one that was written for this plan, else a new one that is gone afterwards."""
        if named is not None:
            yield Path(named)
            return
        assert plan is not None  # one is needed where no bundle is named
        written = self._last(Bundle)
        if written is not None and _was_written_for(written, plan):
            yield Path(written.folder)
            return
        with tempfile.TemporaryDirectory(prefix="aimass-rehearsal-") as scratch:
            folder = Path(scratch) / "bundle"
            self._write_bundle(folder, technique, plan=plan, spec=self._make_spec(plan, name=None, image=None), calibrate=False)
            yield folder


def _was_written_for(bundle: Bundle, plan: Plan) -> bool:
    """Whether a bundle that is there serves the planned model with the planned batching."""
    from ..bundle import is_bundle
    from ..serving.config import load_config

    if not is_bundle(bundle.folder) or bundle.model.digest != plan.model.digest:
        return False
    config = load_config(Path(bundle.folder))
    return (config.max_batch_size, config.max_wait_s) == (plan.max_batch_size.value, plan.max_wait.value)
