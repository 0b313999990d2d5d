"""Sizes, times and rates as people write them, and back.

Sizes are binary (`4M`, `4MB` and `4MiB` are the same number), as in the reference.
A bare number takes the unit that the flag documents. Errors are `ValueError` whose
text is the rule that was broken; who asked adds the name of the value and the mend.
"""

from __future__ import annotations

import math
import re

# Patterns are compiled when they are used: a start needs few of them, or none.
_ANY_CASE = re.IGNORECASE | re.ASCII
_SIZE = r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[kmgtpe]?)(?P<tail>i?b)?"
_SHIFTS = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40, "p": 50, "e": 60}
_TIME = r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(us|µs|ms|s|m|h|d)"
_PLAIN = r"[0-9]+(\.[0-9]*)?|\.[0-9]+"
_SECONDS = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_RATE = r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[kmgt]?)(?:bps|bit/s)?"
_MBPS = {"k": 1e-3, "": 1.0, "m": 1.0, "g": 1e3, "t": 1e6}

MAX_BYTES = (1 << 63) - 1


def parse_bytes(text: str, unit: str = "") -> int:
    """Return the number of bytes that `text` names.

    Args:
        text: A number with an optional unit: `512K`, `300M`, `4MiB`, `1.5G`, `4096B`.
        unit: Unit of a bare number, one of `K M G T P E`; "" means bytes.

    Raises:
        ValueError: The text is no size, or no whole number of bytes below 2^63.
    """
    match = re.fullmatch(_SIZE, text.strip(), _ANY_CASE)
    if match is None:
        raise ValueError("is not a size (a number and one of B K M G T P)")
    letter = match["unit"] or ("" if match["tail"] else unit)
    size = _exact(match["number"], 1 << _SHIFTS[letter.lower()])
    if size > MAX_BYTES:
        raise ValueError("is too large for a size (limit 2^63-1 bytes)")
    return size


def _exact(number: str, factor: int) -> int:
    """Return `number` times `factor`, which must come out whole."""
    whole, _, fraction = number.partition(".")
    size, rest = divmod(int(whole + fraction) * factor, int("1" + "0" * len(fraction)))
    if rest:
        raise ValueError("is not a whole number of bytes")
    return size


def format_bytes(size: int) -> str:
    """Return the shortest exact form, which `parse_bytes` reads back: 300M, 4G, 1000B."""
    for letter in "EPTGMK":
        shift = _SHIFTS[letter.lower()]
        if size and size % (1 << shift) == 0:
            return f"{size >> shift}{letter}"
    return f"{size}B" if size else "0"


def show_bytes(size: float) -> str:
    """Return a rounded form for people: 3.4 MiB."""
    for name in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {name}" if name == "B" else f"{size:.1f} {name}"
        size /= 1024
    return f"{size:.1f} PiB"


def parse_seconds(text: str) -> float:
    """Return the seconds that `text` names: `12`, `0.5`, `500ms`, `1m30s`, `1h`.

    Raises:
        ValueError: The text is no length of time.
    """
    text = text.strip()
    if re.fullmatch(_PLAIN, text):
        return float(text)
    parts = re.findall(_TIME, text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError("is not a time (such as 500ms, 1s, 1m30s or 1h)")
    return math.fsum(float(number) * _SECONDS[unit] for number, unit in parts)


def format_seconds(seconds: float) -> str:
    """Return the shortest form that `parse_seconds` reads back: 1s, 500ms, 10m, 12s."""
    if seconds and seconds < 1:
        return f"{format_number(seconds * 1000)}ms"
    for unit in ("d", "h", "m"):
        if seconds and seconds % _SECONDS[unit] == 0:
            return f"{seconds / _SECONDS[unit]:.0f}{unit}"
    return f"{format_number(seconds)}s"


def format_number(value: float) -> str:
    """Return a number without exponent and without zeros behind the point."""
    return str(value) if isinstance(value, int) else f"{value:.9f}".rstrip("0").rstrip(".")


def parse_mbps(text: str) -> int:
    """Return a bandwidth in Mbit/s; a bare number is Mbit/s, `K M G T` are decimal.

    Raises:
        ValueError: The text is no bandwidth, or no whole number of Mbit/s.
    """
    match = re.fullmatch(_RATE, text.strip(), _ANY_CASE)
    if match is None:
        raise ValueError("is not a bandwidth (Mbit/s, or a number and one of M G T)")
    rate = float(match["number"]) * _MBPS[match["unit"].lower()]
    if rate != int(rate):
        raise ValueError("is not a whole number of Mbit/s")
    return int(rate)
