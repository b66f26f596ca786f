"""Puts replicas on nodes: the largest first, each where the least is left over."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .problem import EPS, Node, Option, Placed, Problem

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

_FREE = 4.0
"""What taking a free device counts more than room on one that is used already, which leaves at most 2."""


class Rooms:
    """What is left on the nodes of one type while they are filled; all are looked at together, as there may be thousands."""

    def __init__(self, node: Node) -> None:
        import numpy as np

        self.node = node
        self.held: list[Counter[tuple[int, int]]] = []
        """By node: how many replicas of which option on which device, -1 for none."""
        self.lots: dict[str, int] = {"": 0}
        self._cores, self._memory = np.empty(0), np.empty(0)
        self._lot = np.empty((0, node.devices), dtype=int)
        self._compute, self._device_memory = np.empty((0, node.devices)), np.empty((0, node.devices))

    def open(self) -> int:
        """Begin one more node and return its place."""
        import numpy as np

        if len(self.held) == len(self._cores):
            more = max(8, len(self._cores))
            self._cores = np.concatenate([self._cores, np.full(more, self.node.cores)])
            self._memory = np.concatenate([self._memory, np.full(more, self.node.memory)])
            shape = (more, self.node.devices)
            self._lot = np.concatenate([self._lot, np.zeros(shape, dtype=int)])
            self._compute = np.concatenate([self._compute, np.ones(shape)])
            self._device_memory = np.concatenate([self._device_memory, np.ones(shape)])
        self.held.append(Counter())
        return len(self.held) - 1

    def tightest(self, option: Option) -> int | None:
        """The node on which one more replica leaves the least over; None where it fits on none."""
        import numpy as np

        if not self.held:
            return None
        now = slice(0, len(self.held))
        cores, memory = self._cores[now] - option.cores, self._memory[now] - option.memory
        fits = (cores >= -EPS) & (memory >= -EPS * max(1.0, option.memory))
        over = np.zeros(len(self.held))
        for left, of in ((cores, self.node.cores), (memory, self.node.memory)):
            if 0 < of < math.inf:
                over += left / of
        if option.lot:
            device = self._by_device(option, now)
            if not self.node.devices:
                return None
            least = device.min(axis=1)
            fits &= np.isfinite(least)
            over += np.where(np.isfinite(least), least, 0.0)
        over += (self._lot[now] == 0).sum(axis=1)  # devices that are free are for those who need them
        best = int(np.where(fits, over, np.inf).argmin())
        return best if fits[best] else None

    def add(self, k: int, place: int, option: Option) -> None:
        """Put a replica of the option at `place` on node `k`, where it fits."""
        self._cores[k] -= option.cores
        self._memory[k] -= option.memory
        device = -1
        if option.lot:
            device = int(self._by_device(option, slice(k, k + 1))[0].argmin())
            self._lot[k, device] = self.lots.setdefault(option.lot, len(self.lots))
            self._compute[k, device] -= option.compute
            self._device_memory[k, device] -= option.device_memory
        self.held[k][place, device] += 1

    def _by_device(self, option: Option, rooms: slice) -> Array:
        """By node and device: what is left on it, more where it is free, infinite where it cannot take the replica."""
        import numpy as np

        lot = self._lot[rooms]
        compute, memory = self._compute[rooms] - option.compute, self._device_memory[rooms] - option.device_memory
        fits = ((lot == 0) | (lot == self.lots.get(option.lot, -1))) & (compute >= -EPS) & (memory >= -EPS)
        return np.where(fits, compute + memory + _FREE * (lot == 0), np.inf)


def size_of(option: Option, node: Node) -> float:
    """Share of a node that a replica takes, by what it takes most of: at 1 / n at most n fit."""
    parts = [option.cores / node.cores, option.memory / node.memory]
    if option.lot:
        parts.append(option.device / node.devices if node.devices else math.inf)
    return max(parts)


def fits_alone(option: Option, node: Node) -> bool:
    """Whether one replica fits on an empty node."""
    return size_of(option, node) <= 1 + EPS and (not option.lot or option.device <= 1 + EPS)


def pack(problem: Problem, chosen: Sequence[int | None], replicas: Sequence[int], *, limited: bool) -> tuple[list[Placed], list[int]]:
    """Put replicas on as few nodes as best fit decreasing finds.

    Args:
        problem: The question.
        chosen: Option of each model.
        replicas: How many of each.
        limited: Whether counts and budget hold; replicas that find no place are then left out.

    Returns:
        The nodes, and the replicas of each model that have a place.
    """
    rooms: dict[int, Rooms] = {}
    wanted = [(i, o, problem.options[o]) for i, o in enumerate(chosen) if o is not None and replicas[i]]
    wanted.sort(key=lambda entry: -size_of(entry[2], problem.nodes[entry[2].node]))
    placed = [0] * len(chosen)
    spent = 0.0
    for i, place, option in wanted:
        node = problem.nodes[option.node]
        here = rooms.setdefault(option.node, Rooms(node))
        for _ in range(replicas[i]):
            k = here.tightest(option)
            if k is None:
                if limited and (len(here.held) >= node.count or spent + node.price > problem.budget + EPS):
                    break
                k = here.open()
                spent += node.price
            here.add(k, place, option)
            placed[i] += 1
    nodes = [(n, held) for n, each in sorted(rooms.items()) for held in each.held]
    return [Placed(node=n, replicas=tuple((o, device, count) for (o, device), count in sorted(held.items()))) for n, held in nodes], placed
