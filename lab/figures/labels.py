"""Labels beside what they name: at the ends of lines, and beside points."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from lab.figures.common import figure_of, readable


def label_lines(ax: Axes) -> None:
    """Label each line at its end, right of the Axes, moved up or down if two labels would overlap."""
    points = {line: np.column_stack(line.get_data()) for line in ax.lines}
    finite = {line: xy[np.isfinite(xy[:, 1])] for line, xy in points.items()}
    ends = {line: xy[-1] for line, xy in finite.items() if len(xy)}
    if not ends:
        return
    ax.set_ylim(ax.get_ylim())
    to_axes = ax.transData + ax.transAxes.inverted()
    heights = to_axes.transform(np.array([*ends.values()]))[:, 1]
    height = ax.get_window_extent().height * 72 / figure_of(ax).dpi  # in points, like the font size
    size = float(np.clip(height / (1.35 * len(ends)), 5, 9))
    places = spread(heights, 1.35 * size / height)
    for (line, end), place in zip(ends.items(), places, strict=True):
        ax.annotate(
            str(line.get_label()),
            xy=end,
            xytext=(1.03, place),
            textcoords="axes fraction",
            va="center",
            fontsize=size,
            color=readable(line.get_color()),
            arrowprops={
                "arrowstyle": "-",
                "color": line.get_color(),
                "linewidth": 1,
                "linestyle": ":",  # not part of the measured line
                "shrinkA": 1,
                "shrinkB": 0,
                "relpos": (0, 0.5),
            },
            annotation_clip=False,
        )


def spread(
    places: Sequence[float] | np.ndarray, gap: float, low: float = 0.0, high: float = 1.0
) -> np.ndarray:
    """Move `places` to be at least `gap` apart, in their order, in [low, high].

    The sum of the squared moves is the smallest possible.
    """
    order = np.argsort(places, kind="stable")
    blocks: list[tuple[float, int]] = []  # neighbours that touch: place of the first, and how many
    for rank, index in enumerate(order):
        place, count = float(places[index]) - rank * gap, 1
        while blocks and blocks[-1][0] > place:
            before, others = blocks.pop()
            place, count = (place * count + before * others) / (count + others), count + others
        blocks.append((place, count))
    first = np.repeat([place for place, _ in blocks], [count for _, count in blocks])
    room = max(high - gap * (len(order) - 1), low)
    moved = np.empty(len(order))
    moved[order] = first.clip(low, room) + gap * np.arange(len(order))
    return moved
