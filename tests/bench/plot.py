"""Curves of a result as a picture; needs the extra `bench` (matplotlib)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

_PANELS = (
    (r"(create) among (\d+) /s", "create in a directory of n entries", "/s"),
    (r"(stat) among (\d+) /s", "stat in a directory of n entries", "/s"),
    (r"(create), (\d+) programs /s", "create by n programs at once", "/s"),
    (r"(create), (\d+) ms to Redis /s", "create, n ms to Redis", "/s"),
    (r"(rename), (\d+) ms to Redis /s", "rename, n ms to Redis", "/s"),
)


def plot(figures: dict[str, dict[str, Any]], stalls: dict[str, list[float]], path: Path) -> None:
    """Write a picture of the scaling curves and the stalls."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(13, 7))
    for axis, (pattern, title, unit) in zip(axes.flat, _PANELS, strict=False):
        for who, style in (("jfsd", "o-"), ("juicefs", "s--")):
            points = sorted(
                (int(match[2]), row[who])
                for name, row in figures.items()
                if (match := re.fullmatch(pattern, name))
            )
            if points:
                axis.plot(*zip(*points, strict=True), style, label=who)
        axis.set_title(title)
        axis.set_ylabel(unit)
        axis.set_ylim(bottom=0)
        if "Redis" not in title:
            axis.set_xscale("log")
        axis.legend()
    axis = axes.flat[-1]
    for place, (who, values) in enumerate(stalls.items()):
        axis.bar(place, sorted(values)[len(values) // 2], label=who)
        axis.plot([place] * len(values), values, "k.")
    axis.set_xticks(range(len(stalls)), list(stalls))
    axis.set_title("longest wait around a planned restart")
    axis.set_ylabel("ms")
    figure.tight_layout()
    figure.savefig(path, dpi=90)
