"""SI values as people read and write them: ``0.0123`` s <-> ``12.3 ms``."""

from __future__ import annotations

import math
import numbers
import re

from .errors import InputError

_DECIMAL = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_BINARY = ((2**50, "Pi"), (2**40, "Ti"), (2**30, "Gi"), (2**20, "Mi"), (2**10, "Ki"))
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_BYTES = {
    "": 1, "B": 1, "k": 1e3, "kB": 1e3, "KB": 1e3, "M": 1e6, "MB": 1e6, "G": 1e9, "GB": 1e9, "T": 1e12, "TB": 1e12,
    "Ki": 2**10, "KiB": 2**10, "Mi": 2**20, "MiB": 2**20, "Gi": 2**30, "GiB": 2**30, "Ti": 2**40, "TiB": 2**40,
}  # fmt: skip
HIGHEST_RATE = 1e9
"""Per second; more is a slip of the pen, and simulating it would not end."""
LARGEST_COUNT, LARGEST_AMOUNT, LARGEST_BURST, LONGEST_S = 10**9, 1e12, 1000, 1e9
"""What is more is a slip of the pen, too, and would end in an overflow somewhere."""
_QUANTITY = re.compile(r"^\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*([a-zA-Zµ/%]*)\s*$")


def _significant(value: float, digits: int = 3) -> str:
    """Format with `digits` significant digits, without exponent and without losing integer digits."""
    if value == 0:
        return "0"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}"


def format_seconds(value: float) -> str:
    """``0.0123`` -> ``12.3 ms``."""
    size = abs(value)
    if size == 0:
        return "0 s"
    if size < 1e-6:
        return f"{_significant(value * 1e9)} ns"
    if size < 1e-3:
        return f"{_significant(value * 1e6)} µs"
    if size < 1:
        return f"{_significant(value * 1e3)} ms"
    if size < 120:
        return f"{_significant(value)} s"
    return f"{_significant(value / 60)} min" if size < 7200 else f"{_significant(value / 3600)} h"


def format_bytes(value: float) -> str:
    """``438_000_000`` -> ``418 MiB``: powers of two, as the operating system and the drivers report them."""
    for factor, prefix in _BINARY:
        if abs(value) >= factor:
            return f"{_significant(value / factor)} {prefix}B"
    return f"{_significant(value)} B"


def format_decimal(value: float, unit: str) -> str:
    """``22.4e9, "FLOP"`` -> ``22.4 GFLOP``: powers of ten."""
    for factor, prefix in _DECIMAL:
        if abs(value) >= factor:
            return f"{_significant(value / factor)} {prefix}{unit}".rstrip()
    return f"{_significant(value)} {unit}".rstrip()


_COUNTED = {"item", "request", "replica", "core", "device", "node", "worker", "parameter", "layer", "op", "token", "point"}


def format_count(value: float, unit: str) -> str:
    """``3, "replica"`` -> ``3 replicas``; ``47902.3, "item/s"`` -> ``47,900 items/s``; millions are shortened."""
    noun, slash, per = unit.partition("/")
    words = f"{noun}{'' if value == 1 and not slash else 's'}{slash}{per}"
    whole = float(value).is_integer()
    if slash and not whole:  # a rate, which nobody counted or typed: further digits would promise what was not measured
        value = float(f"{value:.3g}")
    if abs(value) >= 1e6:
        return f"{format_decimal(value, '')} {words}"
    return f"{value:,.0f} {words}" if whole else f"{_significant(value)} {words}"


def format_quantity(value: float, unit: str) -> str:
    """Format `value` of SI `unit` for people."""
    if unit.partition("/")[0] in _COUNTED:
        return format_count(value, unit)
    if unit == "s":
        return format_seconds(value)
    if unit == "B":
        return format_bytes(value)
    if unit == "B/s":
        return f"{format_bytes(value)}/s"
    if unit == "ratio":
        return _significant(value) if value == 0 or abs(value) >= 1e-4 else f"{value:.2e}"
    if unit in ("s/FLOP", "s/B"):
        return f"{format_seconds(1e9 * value)}/G{unit[2:]}"
    if unit == "USD/item":
        return f"{_significant(1e6 * value)} USD per million items"
    if unit == "USD" and 0 < abs(value) < 1:
        return f"{_significant(value, 2)} USD"
    if unit.startswith("USD"):
        return f"{value:,.2f} {unit}"
    return format_decimal(value, unit)


def format_share(value: float, *, decimals: int | None = None) -> str:
    """``0.498`` -> ``50 %``, ``0.043`` -> ``4.3 %``, ``0.99996`` -> ``99.99 %``: a part of a whole, which is only called 100 % where it is all of it.

    Args:
        value: 1 is the whole.
        decimals: Digits behind the point; as many as tell something if not given.
    """
    if 0.995 <= value < 1:
        return f"{math.floor(1e4 * value) / 100:.2f} %"
    if decimals is not None:
        return f"{100 * value:.{decimals}f} %"
    if value == 0:
        return "0 %"
    if abs(value) < 0.0005:
        return "< 0.1 %"
    return f"{100 * value:.0f} %" if abs(value) >= 0.0995 else f"{100 * value:.1f} %"


def parse_seconds(text: str | float) -> float:
    """``"50ms"`` -> ``0.05``; a bare number is seconds.

    Raises:
        InputError: not a positive time.
    """
    time_s = _parse(text, _SECONDS, "s", "a time such as 50ms, 0.05s or 0.05 (seconds)")
    if time_s > LONGEST_S:
        raise InputError(f"{text!r} is longer than {LONGEST_S:g} s, 30 years")
    return time_s


def parse_latency(text: str | float) -> float:
    """``"50ms"`` -> ``0.05``, as `parse_seconds`; but a bare number of 1 or more, which some mean in milliseconds, is asked back.

    Raises:
        InputError: not a positive time, or one that could be either.
    """
    time_s = parse_seconds(text)
    bare = _plain(text)
    if bare is not None and bare >= 1:
        raise InputError(f"{text!r} could be {bare:g}ms or {bare:g}s: give it with its unit")
    return time_s


def parse_bytes(text: str | float) -> float:
    """``"2GiB"`` -> ``2147483648.0``; a bare number is bytes.

    Raises:
        InputError: not a positive size.
    """
    return _parse(text, _BYTES, "B", "a size such as 512MiB, 16GB or 1e9 (bytes)")


def parse_rate(text: str | float) -> float:
    """``"400"``, ``"400/s"`` or ``"24000/min"`` -> ``400.0`` per second.

    Raises:
        InputError: not a positive rate, or one that nothing on earth has.
    """
    scales = {"": 1.0, "/s": 1.0, "/min": 1 / 60, "/m": 1 / 60, "/h": 1 / 3600}
    rate = _parse(text, scales, "", "a rate such as 400 (requests per second) or 24000/min")
    if rate > HIGHEST_RATE:
        raise InputError(f"{text!r} is more than {HIGHEST_RATE:,.0f} per second", help="give what comes in one second; for other times 24000/min or 1e6/h")
    return rate


def parse_bandwidth(text: str | float) -> float:
    """``"10Gbit/s"`` or ``"1.25GB/s"`` -> ``1.25e9`` bytes per second, one direction; a bare number is bytes per second.

    Raises:
        InputError: not a positive bandwidth.
    """
    scales = {f"{size}/s": float(factor) for size, factor in _BYTES.items() if size.endswith("B")}
    scales |= {f"{prefix}bit/s": factor / 8 for prefix, factor in (("", 1.0), ("k", 1e3), ("M", 1e6), ("G", 1e9), ("T", 1e12))}
    return _parse(text, scales, "B/s", "a bandwidth such as 10Gbit/s, 1.25GB/s or 1.25e9 (bytes per second)")


def parse_count(text: str | int) -> int:
    """``"8"`` -> ``8``.

    Raises:
        InputError: not a whole number of at least 1, or more than anybody counts one by one.
    """
    number = _plain(text)
    if number is None or not number.is_integer() or number < 1:
        raise InputError(f"{text!r} is not a whole number of at least 1")
    if number > LARGEST_COUNT:
        raise InputError(f"{text!r} is more than {LARGEST_COUNT:,}")
    return int(number)


def parse_burst(text: str | float) -> float:
    """``"4"`` -> ``4.0``: the rate of bursts over the rate between them.

    Raises:
        InputError: not a number from 1 to 1000.
    """
    number = _plain(text)
    if number is None or not 1 <= number <= LARGEST_BURST:
        help = "1 is a Poisson stream; 4 has bursts of four times the rate"
        raise InputError(f"{text!r} is not a number from 1 to {LARGEST_BURST}", help=help)
    return number


def parse_seed(text: str | int) -> int:
    """``"7"`` -> ``7``.

    Raises:
        InputError: not a whole number that every generator of random numbers takes.
    """
    number = _plain(text)
    if number is None or not number.is_integer() or not 0 <= number < 2**32:
        raise InputError(f"{text!r} is not a whole number from 0 to {2**32 - 1}")
    return int(number)


def parse_amount(text: str | float) -> float:
    """``"0.5"`` -> ``0.5``.

    Raises:
        InputError: not a number, below 0, or more than there is of anything.
    """
    number = _plain(text)
    if number is None or not 0 <= number <= LARGEST_AMOUNT:
        raise InputError(f"{text!r} is not a number of at least 0" + (f" and at most {LARGEST_AMOUNT:g}" if number and number > 0 else ""))
    return number


def parse_share(text: str | float) -> float:
    """``"0.005"`` or ``"0.5%"`` -> ``0.005``: relative to something, 0 or more.

    Raises:
        InputError: not such a number.
    """
    number = _relative(text)
    if number is None or not 0 <= number <= LARGEST_AMOUNT:
        raise InputError(f"{text!r} is not a share of at least 0", help="0.01 and 1% are the same")
    return number


def parse_part(text: str | float) -> float:
    """``"0.99"`` or ``"99%"`` -> ``0.99``.

    Raises:
        InputError: not a number above 0 and at most 1.
    """
    number = _relative(text)
    if number is None or not 0 < number <= 1:
        raise InputError(f"{text!r} is not a number above 0 and at most 1", help="0.99 and 99% are the same")
    return number


def _relative(text: str | float) -> float | None:
    """A number that may be given in percent; None if it is none."""
    if isinstance(text, str) and text.strip().endswith("%"):
        number = _plain(text.strip()[:-1])
        return None if number is None else number / 100
    return _plain(text)


def _plain(text: str | float) -> float | None:
    """A number without a unit; None if it is none."""
    if isinstance(text, bool) or not isinstance(text, (str, numbers.Real)):
        return None
    try:
        return float(text)
    except (ValueError, OverflowError):
        return None


def _parse(text: str | float, scales: dict[str, float], bare: str, wanted: str) -> float:
    if isinstance(text, bool):
        raise InputError(f"{text!r} is not {wanted}")
    match = _QUANTITY.match(str(text))
    scale = scales.get(match[2] or bare) if match else None
    if match is None or scale is None:
        raise InputError(f"{text!r} is not {wanted}", help=f"known suffixes: {', '.join(s for s in scales if s)}")
    value = float(match[1]) * scale
    if not (math.isfinite(value) and value > 0):
        raise InputError(f"{text!r} is not {wanted}: it must be greater than 0")
    return value
