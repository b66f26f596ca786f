"""Matrix products timed alone: for few rows a library changes its kernel from one batch size to the next, and no line foresees that."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from ..tracing.trace import Trace
from .families import Awake

FEW_ROWS = 128
"""With more rows than this, time grows evenly with them."""

LARGEST_WEIGHT_BYTES = 2**28
LARGEST_INPUT_BYTES = 2**28

PROBE_S = 0.003
"""Seconds for one product at one batch size; the best call counts, because other load only slows it down."""

FEWEST_CALLS = 5

MOST_TURNS = 4
LEAST_GAIN = 0.03
"""Products are timed in turns until a turn improves their best times together by no more than this share."""

MOST_PROBES = 90
"""Products timed for one curve at most; what is beyond them is taken for even."""


@dataclass(frozen=True)
class Product:
    """``x[rows, inner] @ weight[inner, columns]``."""

    rows: int
    inner: int
    columns: int
    dtype: torch.dtype

    @property
    def fits(self) -> bool:
        """Whether it is small enough to be tried out."""
        item = self.dtype.itemsize
        return self.inner * self.columns * item <= LARGEST_WEIGHT_BYTES and self.rows * self.inner * item <= LARGEST_INPUT_BYTES


def products_of(trace: Trace) -> dict[int, Product]:
    """Two-dimensional products of a trace, by the number of their row."""
    found = {}
    for i, row in enumerate(trace.rows):
        dtype = getattr(torch, row.dtype, None)
        if row.family != "gemm" or len(row.shape) != 2 or not row.flops or not isinstance(dtype, torch.dtype):
            continue
        rows, columns = row.shape
        inner, remainder = divmod(row.flops, 2 * rows * columns) if rows and columns else (0, 1)
        if inner and not remainder:
            found[i] = Product(rows, inner, columns, dtype)
    return found


class ProductTimer:
    """Times the products of a call at any batch size; times that do not settle, because the machine is busy, are not used.

    Args:
        device: Where; only on a CPU is anything timed, because a GPU's launches hide such products.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._known: dict[Product, float] = {}
        self._restless: set[Product] = set()

    def seconds(self, traces: tuple[Trace, ...]) -> list[float]:
        """Time of the products in each of several traces of one model: of those that have few rows in the smallest of them."""
        nothing = [0.0] * len(traces)
        names = [[row.op for row in trace.rows] for trace in traces]
        if self._device.type != "cpu" or any(other != names[0] for other in names):
            return nothing
        products = [products_of(trace) for trace in traces]
        common = [i for i in products[0] if all(i in p and p[i].fits for p in products)]
        few = [i for i in common if min(p[i].rows for p in products) < FEW_ROWS]
        wanted = {p[i] for p in products for i in few} - self._known.keys()
        if len(self._known) + len(wanted) > MOST_PROBES:
            return nothing
        self._time_all(wanted)
        if any(p[i] in self._restless for p in products for i in few):
            return nothing
        return [sum(self._known[p[i]] for i in few) for p in products]

    def _time_all(self, products: set[Product]) -> None:
        """Time them in turns until a turn finds no better times, or give them up as restless."""
        if not products:
            return
        in_order = sorted(products, key=lambda p: (p.inner, p.columns, p.rows))
        awake = Awake()
        with torch.inference_mode():
            best = [_time(product) for product in in_order]
            for _ in range(MOST_TURNS - 1):
                before, best = sum(best), [min(seconds, _time(product)) for seconds, product in zip(best, in_order, strict=True)]
                if awake.starved:  # then all are slow alike, and settle
                    self._restless |= products
                    break
                if sum(best) > (1 - LEAST_GAIN) * before:
                    break
            else:
                self._restless |= products
        self._known |= dict(zip(in_order, best, strict=True))


def _time(product: Product) -> float:
    """Best seconds of one product: processor time where one thread computes it, so that other load is left out."""
    # Not zeros: those come from pages that the system shares until they are written, and reading them costs nothing.
    x = torch.full((product.rows, product.inner), 0.5, dtype=product.dtype)
    weight = torch.full((product.columns, product.inner), 0.5, dtype=product.dtype)
    linear, clock = torch.nn.functional.linear, time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    linear(x, weight)
    best, calls, deadline = float("inf"), 0, time.perf_counter() + PROBE_S
    while calls < FEWEST_CALLS or time.perf_counter() < deadline:
        start = clock()
        linear(x, weight)
        best = min(best, clock() - start)
        calls += 1
    return best
