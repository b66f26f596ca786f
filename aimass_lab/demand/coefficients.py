"""α, β and ε: device-seconds for each FLOP, byte and launch, fitted to operators that were timed, with the error on those held out."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import msgspec
import torch

from ..environment import LoadMeter, read_environment
from ..errors import InputError, MissingPackageError
from ..records import Number, Quality, Unit
from ..records.resources import Coefficients, FormName
from ..tracing.rows import Row
from .blocks import Block, measure_blocks
from .operators import FAR, Sample, cache_bytes, family_of_row, measure_operators

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

FORMULAS: tuple[FormName, ...] = ("per family", "roofline", "additive")

HELD_OUT, SPLITS = 0.3, 20
"""Share of the configurations that a fit does not see, and how often another share is drawn."""

LAUNCH_S = (8e-6, 2e-6, 20e-6)
"""Of one operator on a GPU that was never attached, as expected, at least and at most: assumed, from eager PyTorch on several generations."""


@dataclass(frozen=True)
class Fit:
    """Coefficients of one device, and what they are worth."""

    all: Coefficients
    """One set for every operator: the additive form."""
    roofline: Coefficients
    """The same under the larger of arithmetic and traffic."""
    families: Mapping[str, Coefficients]
    family_error: Number | None
    """Median held-out error of the form with coefficients by family; None where nothing was fitted."""
    cache: int
    """Bytes beyond which the traffic of some families costs more."""
    network_errors: Mapping[FormName, Number] = field(default_factory=dict)
    """By form: median error on small networks that no fit saw; the interval holds all of them, with their sign."""

    def seconds(self, form: FormName, rows: Sequence[Row]) -> float:
        """Device-seconds of a call by one of the formulas."""
        return {"additive": self.additive_s, "roofline": self.roofline_s, "per family": self.by_family_s}[form](rows)

    def additive_s(self, rows: Sequence[Row]) -> float:
        """Device-seconds of a call by one set of coefficients: α·C + β·S + ε·launches."""
        return sum(_seconds(self.all, row) for row in rows)

    def by_family_s(self, rows: Sequence[Row]) -> float:
        """Device-seconds of a call by the coefficients of each operator's family."""
        return sum(_seconds(self.families.get(family_of_row(row, self.cache), self.all), row) for row in rows)

    def roofline_s(self, rows: Sequence[Row]) -> float:
        """Device-seconds of a call by the larger of arithmetic and traffic, operator by operator."""
        c = self.roofline
        return sum(max(c.alpha.value * row.flops, c.beta.value * (row.bytes_read + row.bytes_written)) + c.epsilon.value for row in rows)


def _seconds(c: Coefficients, row: Row) -> float:
    return c.alpha.value * row.flops + c.beta.value * (row.bytes_read + row.bytes_written) + c.epsilon.value


def fit_coefficients(device: torch.device, dtype: torch.dtype, *, progress: Callable[[float, str], None] | None = None) -> Fit:
    """Measure operators on the attached device and fit their coefficients: some four seconds, once per process and set-up.

    Non-negative least squares of the relative error (each configuration weighs 1/T), reweighted towards its median
    (Lawson & Hanson, Solving Least Squares Problems, 1974, ch. 23; iteratively reweighted). A cancelled measurement
    leaves nothing behind.

    Args:
        device: The attached device.
        dtype: What the model computes in; float32 stands in for types without a matrix product.
        progress: Called now and then with the share that is done and what comes next.

    Raises:
        MissingPackageError: SciPy is not installed.
    """
    floating = dtype if dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64) else torch.float32
    environment = read_environment(device).id
    key = (environment, str(device), floating)
    if key not in _known:
        with LoadMeter() as load:
            samples = measure_operators(device, floating, progress=progress)
            blocks = measure_blocks(device, floating)
        quality: Quality = "noisy" if load.noisy else "ok"
        fit = fit_samples(samples, environment=environment, quality=quality, cache=cache_bytes(device))
        _known[key] = check_on_blocks(fit, blocks, between=device.type == "cpu")
    return _known[key]


_known: dict[tuple[str, str, torch.dtype], Fit] = {}


def fit_samples(samples: Sequence[Sample], *, environment: str | None, quality: Quality, cache: int) -> Fit:
    """Fit every form to timed operators.

    Args:
        samples: At least four of every family.
        environment: The `Environment.id` they were measured in.
        quality: Of the measurement.
        cache: As `Fit` has it.
    """
    maker = _Maker(environment, quality)
    groups = {family: [s for s in samples if s.family == family] for family in sorted({s.family for s in samples})}
    families = {family: maker.make(family, group, _nnls, _additive) for family, group in groups.items()}
    pooled = [error for family in groups for error in maker.errors[family]]
    return Fit(
        all=maker.make("all", samples, _nnls, _additive),
        roofline=maker.make("all, roofline", samples, _fit_roofline, _roofline),
        families=families,
        family_error=maker.error(pooled, len(samples)),
        cache=cache,
    )


def check_on_blocks(fit: Fit, blocks: Sequence[Block], *, between: bool) -> Fit:
    """Add what passes between operators, as tiny networks show it, to every ε, and hold the result against the other networks.

    Args:
        fit: To single operators.
        blocks: Networks, some of them tiny.
        between: Operators wait for the Python before them; a GPU that lags behind its host does not.
    """
    rest = [(block.seconds - fit.by_family_s(block.rows)) / len(block.rows) for block in blocks if block.tiny]
    added = max(0.0, statistics.median(rest)) if between and rest else 0.0
    if added:
        families = {family: _slower(coefficients, added) for family, coefficients in fit.families.items()}
        fit = replace(fit, all=_slower(fit.all, added), roofline=_slower(fit.roofline, added), families=families)
    return replace(fit, network_errors={form: _network_error(fit, form, [block for block in blocks if not block.tiny]) for form in FORMULAS})


def _network_error(fit: Fit, form: FormName, blocks: Sequence[Block]) -> Number:
    errors, alpha = [fit.seconds(form, block.rows) / block.seconds - 1 for block in blocks], fit.all.alpha
    return Number(
        value=statistics.median(map(abs, errors)), unit="ratio", source="measured", method=f"median error on {len(errors)} small networks, not fitted",
        interval=(min(errors), max(errors)), interval_kind="all of them, with their sign", n=len(errors), environment=alpha.environment, quality=alpha.quality,
    )  # fmt: skip


def _slower(coefficients: Coefficients, seconds: float) -> Coefficients:
    """The same with `seconds` more for each operator."""
    epsilon = coefficients.epsilon
    ends = None if epsilon.interval is None else (epsilon.interval[0] + seconds, epsilon.interval[1] + seconds)
    method = f"{epsilon.method}, and {seconds * 1e6:.1f} us from one operator to the next in tiny networks"
    return msgspec.structs.replace(coefficients, epsilon=msgspec.structs.replace(epsilon, value=epsilon.value + seconds, interval=ends, method=method))


class _Maker:
    """Coefficients as records, with their spread over the splits."""

    def __init__(self, environment: str | None, quality: Quality) -> None:
        self.environment, self.quality = environment, quality
        self.errors: dict[str, list[float]] = {}
        """By name: of every operator each time that a fit did not see it."""

    def make(self, name: str, samples: Sequence[Sample], fit: _FitFunction, predict: _PredictFunction) -> Coefficients:
        import numpy as np

        features, times = _arrays(samples)
        found = fit(features, times)
        others, errors = _held_out(features, times, fit, predict)
        low, high = np.minimum(others.min(0), found), np.maximum(others.max(0), found)
        units: tuple[Unit, Unit, Unit] = ("s/FLOP", "s/B", "s")
        alpha, beta, epsilon = (self._number(float(found[i]), unit, len(samples), (float(low[i]), float(high[i]))) for i, unit in enumerate(units))
        self.errors[name] = errors
        return Coefficients(family=name, alpha=alpha, beta=beta, epsilon=epsilon, held_out_error=self.error(errors, len(samples)))

    def _number(self, value: float, unit: Unit, n: int, interval: tuple[float, float]) -> Number:
        return Number(
            value=value, unit=unit, source="measured", method=f"non-negative least squares of the relative error of {n} operator configurations",
            interval=interval, interval_kind=f"over {SPLITS} fits without 30 % of them", n=n, environment=self.environment, quality=self.quality,
        )  # fmt: skip

    def error(self, errors: Sequence[float], n: int) -> Number:
        """Median of held-out errors; the interval holds nine in ten of them."""
        import numpy as np

        low, middle, high = np.percentile(errors, (5, 50, 95))
        return Number(
            value=float(middle), unit="ratio", source="measured", method=f"median error on the 30 % that a fit did not see, {SPLITS} draws",
            interval=(float(low), float(high)), interval_kind="p5-p95 of single operators", n=n, environment=self.environment, quality=self.quality,
        )  # fmt: skip


_FitFunction = Callable[["Array", "Array"], "Array"]
_PredictFunction = Callable[["Array", "Array"], "Array"]


def _arrays(samples: Sequence[Sample]) -> tuple[Array, Array]:
    import numpy as np

    return np.array([[s.flops, s.bytes_moved, s.launches] for s in samples], float), np.array([s.seconds for s in samples])


def _splits(count: int) -> list[tuple[list[int], list[int]]]:
    """Indices that a fit sees, and those it does not."""
    import random

    made = []
    for seed in range(SPLITS):
        order = list(range(count))
        random.Random(seed).shuffle(order)
        held = max(1, round(HELD_OUT * count))
        made.append((order[held:], order[:held]))
    return made


def _held_out(features: Array, times: Array, fit: _FitFunction, predict: _PredictFunction) -> tuple[Array, list[float]]:
    """Coefficients of every fit to a part, and its relative errors on the rest."""
    import numpy as np

    found, errors = [], []
    for kept, held in _splits(len(times)):
        found.append(fit(features[kept], times[kept]))
        errors += abs(predict(found[-1], features[held]) / times[held] - 1).tolist()
    return np.array(found), errors


def _additive(coefficients: Array, features: Array) -> Array:
    return features @ coefficients


def _roofline(coefficients: Array, features: Array) -> Array:
    import numpy as np

    return np.maximum(coefficients[0] * features[:, 0], coefficients[1] * features[:, 1]) + coefficients[2] * features[:, 2]


def _nnls(features: Array, times: Array) -> Array:
    """Non-negative coefficients with the least relative errors; outliers count less from round to round."""
    import numpy as np

    try:
        from scipy.optimize import nnls
    except ImportError:
        raise MissingPackageError("scipy", "fitting coefficients") from None

    scale = features.max(0)
    scale[scale == 0] = 1
    weights = 1 / times
    for _ in range(12):
        found, _residual = nnls(features / scale * weights[:, None], times * weights)
        errors = abs(features / scale @ found / times - 1)
        # Towards the least sum of absolute errors; below 2 % an error is the clock's.
        weights = 1 / times / np.sqrt(np.maximum(errors, 0.02))
    return np.asarray(found / scale)


def _fit_roofline(features: Array, times: Array) -> Array:
    """Three coefficients of the roofline with the least sum of relative errors, from the additive ones on."""
    import numpy as np
    from scipy.optimize import minimize

    start = np.maximum(_nnls(features, times), [1e-14, 1e-13, 1e-9])
    found = minimize(
        lambda logs: float(np.mean(abs(_roofline(np.exp(logs), features) / times - 1))), np.log(start), method="Nelder-Mead", options={"maxiter": 150}
    )
    return np.asarray(np.exp(found.x))


def rated_coefficients(name: str, flops_per_s: Number, bytes_per_s: Number, cache: int) -> Fit:
    """Coefficients of a device that was never attached: the inverse of its catalogue figures, which no operator quite reaches."""
    how = f"1 over the rate of {name} in the catalogue, not measured here"

    def inverse(rate: Number, unit: Unit) -> Number:
        return Number(value=1 / rate.value, unit=unit, source="datasheet", method=how)

    launch = Number(
        value=LAUNCH_S[0],
        unit="s",
        source="assumed",
        method="usual time of one eager launch",
        interval=LAUNCH_S[1:],
        interval_kind="least and most, assumed too",
    )
    made = Coefficients(family="all", alpha=inverse(flops_per_s, "s/FLOP"), beta=inverse(bytes_per_s, "s/B"), epsilon=launch)
    return Fit(all=made, roofline=made, families={}, family_error=None, cache=cache)


COEFFICIENTS: dict[str, Unit] = {"alpha": "s/FLOP", "beta": "s/B", "gamma": "s/B", "epsilon": "s"}


def parse_coefficients(given: Mapping[str, str | float] | None) -> dict[str, Number]:
    """Read coefficients that the user gives, in seconds per FLOP, byte and launch.

    Raises:
        InputError: a name that is no coefficient, or a value that is no number of 0 or more.
    """
    made: dict[str, Number] = {}
    for name, text in (given or {}).items():
        if name not in COEFFICIENTS:
            raise InputError(f"there is no coefficient {name!r}", help=f"there are: {', '.join(COEFFICIENTS)}")
        try:
            value = float(text)
            number = Number(value=value, unit=COEFFICIENTS[name], source="user", method="given")
        except ValueError:
            raise InputError(f"the coefficient {name}={text!r} is not a number", help="seconds per FLOP, byte or launch, such as 1.3e-11") from None
        if value < 0:
            raise InputError(f"the coefficient {name}={text!r} is negative", help="more work takes no less time")
        made[name] = number
    return made


def given_coefficients(given: Mapping[str, Number], cache: int) -> Fit:
    """The user's own coefficients, the same for every operator; what is not given is 0 and so leaves its part out."""
    zero = {unit: Number(value=0.0, unit=unit, source="user", method="not given, so left out") for unit in ("s/FLOP", "s/B", "s")}
    made = Coefficients(family="all", alpha=given.get("alpha", zero["s/FLOP"]), beta=given.get("beta", zero["s/B"]), epsilon=given.get("epsilon", zero["s"]))
    return Fit(all=made, roofline=made, families={}, family_error=None, cache=cache)


__all__ = ["FAR", "Fit", "fit_coefficients", "fit_samples", "given_coefficients", "parse_coefficients", "rated_coefficients"]
