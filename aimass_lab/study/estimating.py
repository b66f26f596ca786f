"""The verbs that predict without running the model, or beyond what was run."""

from __future__ import annotations

from typing import Literal

from ..network.strategies import Strategy
from ..records import ORIGINAL, Demand, NetworkDemand, Prediction, ResourceDemand, SequenceDemand
from ..units import parse_rate, parse_seconds
from ..verbs import Amount, Bandwidth, Count, Part, Rate, Seconds, verb
from .base import StudyState


class Estimating(StudyState):
    """The verbs that predict without running the model, or beyond what was run."""

    @verb
    def demand(
        self,
        *,
        batch: int | None = None,
        device: str | None = None,
        training: bool = False,
        optimizer: Literal["adamw", "sgd", "none"] = "adamw",
        length: tuple[Count, ...] | None = None,
        calibrate: bool = False,
    ) -> Demand:
        """Estimate FLOPs, bytes, memory and network demand without running the model.

        After a profile, memory on the same device is calibrated on what was measured.

        Args:
            batch: Items per call; as many as the example inputs hold if not given.
            device: Device to estimate for: an attached one (cpu, cuda:0) or a name of the catalogue.
            training: Estimate a training step too.
            optimizer: Optimizer of that step: adamw, sgd or none.
            length: Sequence length to estimate memory and latency at as well; may be repeated.
            calibrate: Run the model at two batch sizes, so that memory at all others is known to about one percent.
        """
        from ..demand import estimate_demand

        profile = self._profiles.get(ORIGINAL) if device in (None, self._environment_device()) else None
        demand = estimate_demand(
            self.workload,
            batch_size=batch,
            device=device,
            training=training,
            optimizer=optimizer,
            lengths=length or (),
            measured=profile.ladder if profile else (),
            calibrate=calibrate,
            progress=self.progress,
        )
        return self._keep("demand", demand)

    @verb
    def network(
        self,
        *,
        rate: Rate | None = None,
        bandwidth: Bandwidth | None = None,
        egress_price: Amount | None = None,
        replicas: Count = 1,
        parallel: Strategy = "none",
        ranks: Count = 1,
        ranks_per_node: Count | None = None,
        batch: int | None = None,
        device: str | None = None,
        seconds: Seconds = 2.0,
    ) -> NetworkDemand:
        """Estimate what the model puts on networks: requests, copies, roll-outs, traffic between devices.

        Messages are those of the Open Inference Protocol in JSON, binary REST and gRPC; the time to write
        and read them is measured on the code that the service runs.

        Args:
            rate: Requests per second, such as 400 or 24000/min; then also bytes per second, share of the link and cost.
            bandwidth: One direction of a machine's network link, such as 10Gbit/s or 1.25GB/s; 10Gbit/s if not given.
            egress_price: USD per GB that leaves, as your provider bills it; none is built in.
            replicas: Machines that new weights are rolled out to.
            parallel: How devices share a training step.
            ranks: Devices that share it.
            ranks_per_node: Devices in one machine; up to 8 if not given.
            batch: Items per call on one device; as many as the example inputs hold if not given.
            device: An attached device (cpu, cuda:0) or a name of the catalogue; where the model is if not given.
            seconds: Time to spend on measuring.
        """
        from ..network import estimate_network, make_scenario
        from ..wire import runtime_bytes, server_codecs

        scenario = make_scenario(
            rate=rate, bandwidth=bandwidth, egress_price=egress_price, replicas=replicas,
            parallel=parallel, ranks=ranks, ranks_per_node=ranks_per_node, device=device,
        )  # fmt: skip
        demand = estimate_network(
            self.workload,
            scenario,
            batch_size=batch,
            codecs=server_codecs,
            runtime_bytes=runtime_bytes(),
            budget_s=parse_seconds(seconds),
            progress=self.progress,
        )
        return self._keep("network", demand)

    @verb
    def sequence(
        self, *, new: Count, prompt: Count | None = None, batch: int | None = None, device: str | None = None, rate: Rate | None = None
    ) -> SequenceDemand:
        """Estimate what generating sequences asks for: prefill, every token after it, the cache, tokens per second.

        Args:
            new: Tokens made of each sequence.
            prompt: Tokens of one prompt; as many as the example inputs hold if not given.
            batch: Sequences made side by side; as many as the example inputs hold if not given.
            device: Device to estimate for: an attached one (cpu, cuda:0) or a name of the catalogue.
            rate: Sequences asked for per second; then also what the cache holds at that rate, and how many devices it keeps busy.
        """
        from ..demand.sequence import estimate_sequence

        demand = estimate_sequence(
            self.workload,
            new_tokens=new,
            prompt_tokens=prompt,
            batch_size=batch,
            device=device,
            requests_per_s=None if rate is None else parse_rate(rate),
            progress=self.progress,
        )
        return self._keep("sequence", demand)

    @verb
    def resources(
        self,
        *,
        rate: Rate,
        utilization: Part = 0.7,
        batch: int | None = None,
        device: str | None = None,
        jobs: Count | None = None,
        coefficient: dict[str, str] | None = None,
    ) -> ResourceDemand:
        """Say what a request rate asks for in FLOP/s, bytes and bytes/s, and how many devices that keeps busy.

        The coefficients are fitted to operators timed on this machine, which takes some seconds the first time;
        where the model was profiled, its measured times go before the formulas.

        Args:
            rate: Requests per second, such as 400 or 24000/min.
            utilization: Highest share of its time that a device should be busy.
            batch: Items per call; as many as the example inputs hold if not given.
            device: Device to estimate for: an attached one (cpu, cuda:0) or a name of the catalogue.
            jobs: Requests that the time to schedule and finish them is asked of; those of one second if not given.
            coefficient: Your own, as alpha, beta, gamma or epsilon=SECONDS per FLOP, byte, network byte or launch; may be repeated.
        """
        from ..demand.resources import Measured, estimate_resources
        from ..wire import server_codecs

        profile = self._profiles.get(ORIGINAL) if device in (None, self._environment_device()) else None
        demand = estimate_resources(
            self.workload,
            requests_per_s=parse_rate(rate),
            utilization=utilization,
            batch_size=batch,
            device=device,
            jobs=jobs,
            measured=None if profile is None else Measured(profile.ladder, profile.environment.threads),
            codecs=server_codecs,
            coefficients=coefficient,
            progress=self.progress,
        )
        return self._keep("resources", demand)

    @verb
    def predict(self, *, batch: tuple[int, ...] | None = None, device: str | None = None, technique: str = ORIGINAL) -> Prediction:
        """Predict latency, throughput and memory at batch sizes that were not measured, each with its band and basis.

        On the attached device the newest profile is interpolated, and made first if there is none. On a device of
        the catalogue the operators are held against its rates. Every prediction is kept and scored once the same
        point is measured.

        Args:
            batch: Items per call; may be repeated. If not given, sizes between and beyond the measured ones.
            device: Attached device or name of the catalogue; where the model is if not given.
            technique: What the model would be changed by, a technique or a recipe: measured if a trial made that copy, else a predicted effect.
        """
        from ..prediction.by_rates import predict_by_rates
        from ..prediction.effects import DTYPES
        from ..prediction.predict import predict_from_profile, with_effect

        sizes = tuple(batch or ())
        here = device in (None, self._environment_device()) and self.workload.torch_device.type != "meta"
        technique = self._recipe(DTYPES.get(technique, technique)).name
        tried = technique in self._variants
        base = ORIGINAL if technique != ORIGINAL and not (here and tried) else technique
        if here:
            profile = self._measured_profile(base)
            prediction = predict_from_profile(self._served(base), profile, batch_sizes=sizes, technique=base)
        else:
            prediction = predict_by_rates(self.workload, device=device, batch_sizes=sizes)
        return self._keep("predict", prediction if base == technique else with_effect(prediction, self.workload, technique))
