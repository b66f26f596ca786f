"""The verbs that change copies of the model and measure them beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from ..errors import InputError
from ..recipe import read_recipe
from ..records import HeldVariants, Recipe, SearchResult, TrialResult
from ..units import parse_seconds
from ..verbs import Amount, Bytes, Count, Latency, Seconds, Seed, Share, verb
from .base import StudyState

if TYPE_CHECKING:
    from .searched import StudySearch


class Trying(StudyState):
    """The verbs that change copies of the model and measure them beside it."""

    _search: StudySearch | None = None

    @verb
    def trial(
        self,
        technique: str,
        *,
        batch: tuple[int, ...] | None = None,
        threads: Count | None = None,
        instances: Count = 1,
        option: dict[str, str] | None = None,
        seconds: Seconds = 6.0,
    ) -> TrialResult:
        """Try a technique, or a recipe of several, on a copy of the model, side by side with the original.

        The copy stays in memory, to be called like the model: `study.variant(...)`. The technique 'none' changes nothing and is the control.

        Args:
            technique: What to try: a name such as bf16 or int8_dynamic, a recipe such as 'low_rank(ratio=0.5) + int8_dynamic', or its .yaml or .json file.
            batch: Items per call, each with a verdict of its own; may be repeated. As many as the example inputs hold if not given.
            threads: Threads of one call, on the CPU; as many as torch is set to if not given.
            instances: Callers at the same time, in this process.
            option: Field of a single technique, as name=value; may be repeated.
            seconds: Time to spend on the comparison; changing the copy and compiling come on top.
        """
        from ..trial import run_trial

        recipe = _with_options(read_recipe(technique), option)
        variant = self._variant_of(recipe)
        try:
            result = run_trial(
                self.workload, recipe, variant=variant, batch_sizes=batch, threads=threads, instances=instances, budget_s=parse_seconds(seconds),
                progress=self.progress,
            )  # fmt: skip
        except BaseException:
            if variant is not self._variants.get(recipe.name):
                variant.release()  # the notebook keeps the traceback, and with it this frame
            raise
        self._take_over(variant)
        return self._keep("trial", result)

    @verb
    def release(self, name: str | None = None) -> HeldVariants:
        """Forget a copy that a trial or a search made, and give its memory back; the model itself is not touched.

        It cannot be called any more; a new trial makes it again. What is left in memory comes back.

        Args:
            name: The recipe that was tried; all copies if not given.

        Raises:
            InputError: this study did not try it, or released it.
        """
        for one in list(self._variants) if name is None else [self._tried(name).name]:
            self._release(one)
        return self.variants

    @verb
    def search(
        self,
        *,
        recipe: tuple[str, ...] | None = None,
        dtype: tuple[str, ...] | None = None,
        runtime: tuple[str, ...] | None = None,
        batch: tuple[int, ...] | None = None,
        threads: tuple[Count, ...] | None = None,
        instances: tuple[Count, ...] | None = None,
        device: tuple[str, ...] | None = None,
        vary: dict[str, str] | None = None,
        space: str | None = None,
        objective: tuple[str, ...] | None = None,
        max_drop: Share | None = None,
        p99: Latency | None = None,
        memory: Bytes | None = None,
        size: Bytes | None = None,
        cost: Amount | None = None,
        price: dict[str, str] | None = None,
        sampler: str = "guided",
        trials: Count | None = None,
        seconds: Seconds = 60.0,
        seed: Seed = 0,
        resume: bool = False,
    ) -> SearchResult:
        """Search recipes, types, runtimes and ways of calling together, under limits, and mark what no other beats.

        Every setting is measured beside the original. The best is kept in memory, to be called like the model: `study.variant(...)`. What was
        found until now is `study.best_so_far`; an interrupt keeps it. Several processes may search at once: each begins with the same arguments
        and resume, and no setting is decided twice.

        Args:
            recipe: Recipe to try, such as 'low_rank(ratio=0.5) + int8_dynamic'; may be repeated. Those worth a look if not given, with types, runtimes and
                batch sizes.
            dtype: Type to cast to: float32, bfloat16 or float16; may be repeated.
            runtime: What runs it: eager, or a last step such as compile or onnxruntime; may be repeated.
            batch: Items per call; may be repeated.
            threads: Threads of one call; may be repeated.
            instances: Callers at the same time; may be repeated.
            device: Device to consider; may be repeated. For those that are not here, speed is predicted for every recipe that was measured here.
            vary: Values of an option, as STEP.option=value,value: recover.learning_rate=1e-4,3e-4; may be repeated.
            space: A .yaml or .json file with the dimensions: a mapping of names to lists of values.
            objective: What to make large or small: throughput, speedup, latency, latency_p99, drop, dissimilarity, size, memory or cost; may be
                repeated, and the first decides what is best. Throughput and quality if not given.
            max_drop: Largest loss of the metric, or of the outputs' similarity where there is no metric: 0.005 or 0.5%.
            p99: Largest 99th percentile of a call's latency, such as 20ms.
            memory: Most memory for the weights, such as 512MiB.
            size: Most bytes of the weights on disk.
            cost: Highest cost of a million items, in USD; needs a price.
            price: Price of a device, as name=USD per hour; may be repeated.
            sampler: How to choose the next setting: guided, tpe, gp, nsga2, cma_es, random or grid.
            trials: Most settings to try.
            seconds: Time to spend in all; the setting that is being tried then is finished, unless its copy is still being made. No copy gets more
                than a fifth of the time to be made, or ten seconds where that is more.
            seed: Of samplers that draw lots.
            resume: Go on with the newest search of this model over the same space, whoever began it. Settings at which the machine was too busy to
                tell are tried again.
        """
        self.workload.require_weights("load them; predict --technique tells without weights what a technique would do")
        from .searched import SearchRequest, StudySearch, limits_of, open_session, read_vary

        counts = {"batch_size": batch, "threads": threads, "instances": instances}
        words = {"recipe": recipe, "dtype": dtype, "runtime": runtime, "device": device}
        limits, time_s = limits_of(max_drop, p99, memory, size, cost), parse_seconds(seconds)
        request = SearchRequest({**words, **counts, **read_vary(vary)}, space, objective, limits, price, sampler, seed, time_s, resume)
        with open_session(self.workload, max_drop) as session:
            self._search = StudySearch(self.workload, request, session, self.store, self._environment_device())
            result = self._search.run(seconds=time_s, trials=trials, progress=self.progress)
            best = self._search.best_recipe(result)
            variant = None if best is None else session.take(best)
            if variant is not None:
                self._take_over(variant)
        return self._keep("search", result)

    @property
    def best_so_far(self) -> SearchResult | None:
        """What the newest search of this study found until now, while it runs too; None where there was none."""
        return None if self._search is None else self._search.result()


def _with_options(recipe: Recipe, options: dict[str, str] | None) -> Recipe:
    """The recipe with `options` set in its only step.

    Raises:
        InputError: it has none or several steps, or its technique has no such option or value.
    """
    if not options:
        return recipe
    if len(recipe.steps) != 1:
        raise InputError(
            f"options were given apart from the recipe {recipe.name!r}, which has {len(recipe.steps)} steps",
            help="write them into the step they belong to: 'low_rank(ratio=0.5) + int8_dynamic'",
        )
    (step,) = recipe.steps
    return read_recipe(msgspec.structs.replace(recipe, steps=(msgspec.structs.replace(step, options={**step.options, **options}),)))
