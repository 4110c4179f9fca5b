"""Labels beside what they name: at the ends of lines, and beside points."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.text import Annotation

from lab.figures.common import figure_of, readable, wrapped

if TYPE_CHECKING:
    from matplotlib.typing import ColorType


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


class Beside(NamedTuple):
    """A label of a point: its text and colour, and the point's place (x, y) and half-width in y, in data."""

    text: str
    colour: ColorType
    place: tuple[float, float]
    half: float = 0.0


Box = tuple[float, float, float, float]  # left, right, lower and upper edge, in points

MARK, AWAY = 5.0, 3.0  # half the side of a marker, and the space from it to its label, in points
SMALLEST, LARGEST = 5.0, 8.0  # font sizes


def label_points(ax: Axes, labels: Sequence[Beside]) -> None:
    """Write each label beside its point, moved up or down if it would lie on another label or on a point.

    The Axes must have their final limits and size. Long names are wrapped. If the labels do not all fit, they
    get smaller; a label that is not next to its point is joined to it by a dotted line.
    """
    scale = 72 / figure_of(ax).dpi
    frame = ax.get_window_extent()
    inside = (frame.x0 * scale, frame.x1 * scale, frame.y0 * scale, frame.y1 * scale)
    places = [tuple(ax.transData.transform(label.place) * scale) for label in labels]
    bars = [
        abs(float(np.diff(ax.transData.transform([(1, 0), (1, label.half)])[:, 1])[0])) for label in labels
    ]
    taken = [_around(x, y, MARK, MARK) for x, y in places]
    taken += [_around(x, y, 2, bar * scale) for (x, y), bar in zip(places, bars, strict=True)]
    order = sorted(range(len(labels)), key=lambda number: -places[number][1])
    texts = [
        ax.annotate(wrapped(label.text, 22), label.place, color=readable(label.colour)) for label in labels
    ]
    chosen: dict[int, Box] = {}
    for size in np.arange(LARGEST, SMALLEST - 0.1, -1):
        chosen.clear()
        for number in order:
            texts[number].set_fontsize(size)
            extent = texts[number].get_window_extent()
            half = (extent.width * scale / 2 + 1, extent.height * scale / 2)
            others = [*chosen.values()]
            chosen[number] = _best_box(places[number], half, inside, others, taken)
        if not any(_overlap(one, other) for one, other in combinations(chosen.values(), 2)):
            break
    for number, text in enumerate(texts):
        _move(ax, text, places[number], chosen[number], labels[number].colour)


def _around(x: float, y: float, half_width: float, half_height: float) -> Box:
    return x - half_width, x + half_width, y - half_height, y + half_height


def _overlap(one: Box, other: Box) -> float:
    """Return the area that two boxes share."""
    width = min(one[1], other[1]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[2], other[2])
    return max(width, 0.0) * max(height, 0.0)


def _best_box(
    place: Sequence[float],
    half: tuple[float, float],
    inside: Box,
    labels: Sequence[Box],
    points: Sequence[Box],
) -> Box:
    """Find the place of a label near its point: to the right, to the left, or above or below it."""
    (x, y), (width, height) = place, half
    beside = MARK + AWAY + width
    middle = min(max(x, inside[0] + width), inside[1] - width)
    best, least = _around(x + beside, y, width, height), np.inf
    for shift in np.arange(0, inside[3] - inside[2], 2):
        if shift > least:  # farther boxes cost more
            break
        for dx, extra in ((beside, 0.0), (-beside, 1.0), (middle - x, 2.0)):
            for dy in (shift, -shift):
                box = _around(x + dx, y + dy, width, height)
                out = max(inside[0] - box[0], box[1] - inside[1], inside[2] - box[2], box[3] - inside[3], 0)
                hidden = sum(_overlap(box, each) for each in labels)
                covered = sum(_overlap(box, each) for each in points)
                cost = shift + extra + 100 * out + 100 * hidden + 10 * covered
                if cost < least:
                    best, least = box, cost
    return best


def _move(ax: Axes, text: Annotation, place: Sequence[float], box: Box, colour: ColorType) -> None:
    """Put a label into its box, and join it to its point if it is not beside it."""
    (x, y), (left, right, lower, upper) = place, box
    text.set(
        ha="center", va="center", multialignment="left" if left > x else "right" if right < x else "center"
    )
    text.xyann = ((left + right) / 2 - x, (lower + upper) / 2 - y)
    text.anncoords = "offset points"
    near = (min(max(x, left), right), min(max(y, lower), upper))  # of the box, nearest to the point
    if np.hypot(near[0] - x, near[1] - y) > MARK + AWAY + 2:
        start = (near[0] - x, near[1] - y)
        line = {
            "arrowstyle": "-",
            "color": colour,
            "linewidth": 0.8,
            "linestyle": ":",
            "shrinkA": 0,
            "shrinkB": 4,
        }
        ax.annotate("", (text.xy), start, textcoords="offset points", arrowprops=line)
