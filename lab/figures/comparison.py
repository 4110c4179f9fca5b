"""Techniques side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from lab.figures.common import PALE, colours, markers, styled, suptitle, titled

QUANTITIES = (  # key, axis, factor, how a value is written
    ("accuracy", "test accuracy [%]", 100, str),
    ("parameters", "parameters [number]", 1, lambda value: f"{value:,.0f}"),
    ("macs", "MACs [number per image]", 1, lambda value: EngFormatter(places=2)(value)),
    ("microseconds", "training time [µs per image]", 1, lambda value: f"{value:,.0f} µs"),
)
# In place of the last one, where every row has it.
WHOLE = ("seconds", "time of a training [s]", 1, lambda value: f"{value:,.0f} s")


@styled
def plot_comparison(
    rows: Sequence[Mapping[str, Any]], *, dataset: str, title: str = "techniques compared"
) -> Figure:
    """Compare techniques: their accuracies, and bars of parameters, multiply-accumulates and training time.

    At each accuracy and at the end of each bar is the marker of its technique. The axis of the accuracies
    begins near the lowest.

    rows: from top to bottom, each with "name", "accuracy" (in [0, 1], shown in percent), "parameters",
    "macs" (per image) and "microseconds" (of training per image); it may have "half", the half-width of the
    accuracy's interval. "seconds" in every row, the time of a whole training, takes the place of
    "microseconds". Raises ValueError for no rows, for a missing key, and for a negative or infinite number.
    """
    rows = list(rows)
    whole = bool(rows) and all(WHOLE[0] in row for row in rows)
    quantities = (*QUANTITIES[:-1], WHOLE) if whole else QUANTITIES
    _check_rows(rows, [key for key, *_ in quantities])
    names = [row["name"] for row in rows]
    palette, marks = colours(names), markers(names)
    figure, axes = plt.subplots(
        1, len(quantities), figsize=(13, 1.4 + 0.42 * len(rows)), sharey=True, layout="constrained"
    )
    places = np.arange(len(rows))
    for ax, (key, label, factor, written) in zip(axes, quantities, strict=True):
        values = [row[key] * factor for row in rows]
        for place, name, value in zip(places, names, values, strict=True):
            look = {"color": palette[name], "marker": marks[name], "markeredgecolor": "white"}
            ax.plot([value], [place], linestyle="none", markersize=9, clip_on=False, zorder=4, **look)
        if key == "accuracy":
            _draw_accuracies(ax, values, [100 * row.get("half", math.nan) for row in rows])
        else:
            bars = ax.barh(places, values, color=[palette[name] for name in names], height=0.7)
            ax.bar_label(bars, labels=[written(value) for value in values], padding=8, fontsize=9)
            ax.set_xlim(0, (max(values) or 1) * 1.42)
            ax.xaxis.set_major_locator(MaxNLocator(4))
            if max(values) >= 1000:
                ax.xaxis.set_major_formatter(EngFormatter(sep=" "))
        ax.set_xlabel(label)
        ax.tick_params(axis="y", length=0)
        ax.grid(axis="x", color=PALE, linewidth=0.8)
        ax.set_axisbelow(True)
        ax.spines["left"].set_visible(False)
    axes[0].set_yticks(places, names)
    axes[0].set_ylim(len(rows) - 0.4, -0.6)
    axes[0].set_ylabel("technique")
    suptitle(figure, titled("", dataset, title))
    return figure


def _check_rows(rows: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> None:
    if not rows:
        raise ValueError("rows is empty: expected a dictionary for each technique")
    for number, row in enumerate(rows):
        if missing := [key for key in ("name", *keys) if key not in row]:
            raise ValueError(f"rows[{number}] lacks {missing}: expected the keys name, {', '.join(keys)}")
        for key in keys:
            positive = isinstance(row[key], Real) and 0 <= row[key] < math.inf
            if not positive or (key == "accuracy" and row[key] > 1):
                allowed = "a share in [0, 1]" if key == "accuracy" else "a finite number, at least 0"
                raise ValueError(f"rows[{number}][{key!r}]={row[key]!r}: expected {allowed}")


def _draw_accuracies(ax: Axes, values: Sequence[float], halves: Sequence[float]) -> None:
    """Draw the intervals, write each accuracy beside its own, and leave room for that."""
    ends = [0.0 if math.isnan(half) else half for half in halves]
    ax.errorbar(values, range(len(values)), xerr=ends, fmt="none", ecolor="black", capsize=3, zorder=3)
    for place, (value, half, end) in enumerate(zip(values, halves, ends, strict=True)):
        text = f"{value:.2f} %" if math.isnan(half) else f"{value:.1f} ± {half:.1f} %"
        offset = {"xytext": (8, 0), "textcoords": "offset points", "va": "center", "fontsize": 9}
        ax.annotate(text, (value + end, place), **offset)
    low = min(value - end for value, end in zip(values, ends, strict=True))
    high = max(value + end for value, end in zip(values, ends, strict=True))
    room = (high - low) or 1.0
    ax.set_xlim(low - 0.1 * room, high + 0.75 * room)
    ax.xaxis.set_major_locator(MaxNLocator(4))
