"""Bytes per second over network interfaces, and between this process and storage."""

from __future__ import annotations

from ..records import NetworkReading, StorageReading
from .base import Reasons, Sources, measured, why_unreadable
from .cpu import stalled


class NetworkReader:
    """Reads the interfaces of this process's network namespace; rates are means since the last reading."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._before = self._counts(Reasons())

    def read(self, elapsed_s: float, reasons: Reasons) -> tuple[NetworkReading, ...]:
        """Read them now; interfaces over which nothing ever went are left out."""
        before, self._before = self._before, self._counts(reasons)
        found = []
        for interface, (received, sent) in self._before.items():
            if interface not in before:
                reasons.add(f"network.{interface}", "the interface is new: there is no rate yet")
                continue
            down, up = received - before[interface][0], sent - before[interface][1]
            if down < 0 or up < 0:
                reasons.add(f"network.{interface}", "its counters started again: the interface was replaced")
            elif received or sent:
                method = "/proc/self/net/dev, this process's network namespace"
                found.append(
                    NetworkReading(interface=interface, receive=measured(down / elapsed_s, "B/s", method), transmit=measured(up / elapsed_s, "B/s", method))
                )
        if not found:
            reasons.add("network", "no interface of this process's network namespace has carried anything yet")
        return tuple(found)

    def _counts(self, reasons: Reasons) -> dict[str, tuple[int, int]]:
        """Bytes received and sent by interface."""
        path = self._sources.proc / "self" / "net" / "dev"
        try:
            pairs = [line.partition(":") for line in path.read_text().splitlines() if ":" in line]
            words = {name.strip(): rest.split() for name, _, rest in pairs}
            return {name: (int(fields[0]), int(fields[8])) for name, fields in words.items()}
        except (OSError, ValueError, IndexError) as error:
            reasons.add("network", why_unreadable(error, path))
            return {}


class StorageReader:
    """Reads what this process fetched from storage and wrote to it; rates are means since the last reading."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._before = self._counts(Reasons())

    def read(self, elapsed_s: float, reasons: Reasons) -> StorageReading:
        """Read it now."""
        before, self._before = self._before, self._counts(reasons)
        wait = stalled(self._sources, "io", reasons)
        if before is None or self._before is None:
            return StorageReading(stalled=wait)
        read, written = (max(0, after - first) / elapsed_s for first, after in zip(before, self._before, strict=True))
        method = "/proc/self/io"
        return StorageReading(read=measured(read, "B/s", method), write=measured(written, "B/s", method), stalled=wait)

    def _counts(self, reasons: Reasons) -> tuple[int, int] | None:
        path = self._sources.proc / "self" / "io"
        try:
            fields = dict(line.split(": ") for line in path.read_text().splitlines())
            return int(fields["read_bytes"]), int(fields["write_bytes"])
        except (OSError, ValueError, KeyError) as error:
            reasons.add("storage", why_unreadable(error, path))
            return None
