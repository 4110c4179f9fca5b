"""Schematics: what the convolution techniques read, and what the normalizations average over."""

from __future__ import annotations

import math
import textwrap
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Polygon, Rectangle

from lab.checks import as_choice
from lab.figures.common import (
    FAINT,
    INK,
    NORM_COLOURS,
    PALE,
    TECHNIQUE_COLOURS,
    figure_of,
    new_axes,
    readable,
    styled,
    suptitle,
)

# ---- Techniques ------------------------------------------------------------------------------------

SIDE, SPACE, MAPS = 7, 1.4, 3  # side of a map in pixels, space between two maps, maps (channels) per row
LEVELS = {"input": 24.0, "between": 12.0, "output": 0.0}  # lower edge of each row of maps
WIDTH = MAPS * SIDE + (MAPS - 1) * SPACE  # of one technique
PITCH = WIDTH + 6  # from one technique to the next
LABELS, MARGIN = 9, 5  # room to the left of the first technique; what is wider than a PITCH for each
EXAMPLE = 64  # channels in and out, for the number of weights

Taps = tuple[tuple[int, int], ...]  # (row, column) of the marked pixels of a map
WINDOW: Taps = tuple((row, column) for row in (2, 3, 4) for column in (2, 3, 4))
WIDE: Taps = tuple((row, column) for row in (1, 3, 5) for column in (1, 3, 5))
LARGE: Taps = tuple((row, column) for row in range(1, 6) for column in range(1, 6))
FAR: Taps = tuple((row, column) for row in range(-1, 8) for column in range(-1, 8))  # past the map
CENTRE: Taps = ((3, 3),)


class _Step(NamedTuple):
    """One convolution: the taps it reads in maps of one level, and the values it writes in another's."""

    text: str
    start: str  # a level
    taps: Taps
    sources: tuple[int, ...]  # maps
    end: str
    written: Taps
    targets: tuple[int, ...]  # one for each source, or one for all


class _Technique(NamedTuple):
    """A technique: its name, the formula for its weights, how many these are, and its convolutions."""

    name: str
    formula: str
    weights: int
    steps: tuple[_Step, ...]


ALL, ONE = (0, 1, 2), (1,)
DENSE, SPLIT = EXAMPLE * EXAMPLE * 9, EXAMPLE * 9 + EXAMPLE * EXAMPLE
_GATED = _Step("2. gated pointwise pair: 1 x 1, all channels", "between", CENTRE, ALL, "output", CENTRE, ONE)
SCHEMATICS = (
    _Technique(
        "standard",
        "k²·C·C'",
        DENSE,
        (_Step("k x k, all channels at once", "input", WINDOW, ALL, "output", CENTRE, ONE),),
    ),
    _Technique(
        "dilated",
        "k²·C·C'",
        DENSE,
        (_Step("k x k, dilation 2, all channels", "input", WIDE, ALL, "output", CENTRE, ONE),),
    ),
    _Technique(
        "depthwise_separable",
        "k²·C + C·C'",
        SPLIT,
        (
            _Step("1. depthwise: k x k, each channel alone", "input", WINDOW, ALL, "between", CENTRE, ALL),
            _Step("2. pointwise: 1 x 1, all channels", "between", CENTRE, ALL, "output", CENTRE, ONE),
        ),
    ),
    _Technique(
        "blueprint_separable",
        "C·C' + k²·C'",
        SPLIT,
        (
            _Step("1. pointwise: 1 x 1, all channels", "input", WINDOW, ALL, "between", WINDOW, ONE),
            _Step("2. depthwise: k x k, each channel alone", "between", WINDOW, ONE, "output", CENTRE, ONE),
        ),
    ),
    _Technique(
        "gated_separable",
        "k²·C + 2·C·C' + C'²",
        EXAMPLE * 9 + 3 * EXAMPLE * EXAMPLE,
        (
            _Step("1. depthwise: k x k, each channel alone", "input", WINDOW, ALL, "between", CENTRE, ALL),
            _GATED,
        ),
    ),
    _Technique(
        "gated_multi_scale",
        "5·k²·C/4 + 2·C·C' + C'²",
        EXAMPLE // 4 * 5 * 9 + 3 * EXAMPLE * EXAMPLE,
        (
            _Step("", "input", WINDOW, (0,), "between", CENTRE, (0,)),
            _Step("1. depthwise, at three scales", "input", LARGE, (1,), "between", CENTRE, (1,)),
            _Step("", "input", FAR, (2,), "between", CENTRE, (2,)),
            _GATED,
        ),
    ),
)
USUAL = ("standard", "dilated", "depthwise_separable", "blueprint_separable")


@styled
def plot_techniques(*names: str, ax: Axes | None = None) -> Figure:
    """Draw a schematic of the techniques: the taps (pixels by channels) that one output value reads.

    The kernel has k = 3 pixels. Below each technique is its number of weights from C to C' channels.

    names: "standard", "dilated" (dilation 2), "depthwise_separable", "blueprint_separable",
    "gated_separable", "gated_multi_scale" (without the channels that it keeps), drawn from left to right;
    the first four if none is given. Raises ValueError for another name.
    """
    techniques = {technique.name: technique for technique in SCHEMATICS}
    shown = [techniques[as_choice("technique", name, techniques)] for name in names or USUAL]
    share = (len(shown) * PITCH + MARGIN) / (len(USUAL) * PITCH + MARGIN)
    ax = new_axes(ax, 14 * share, 6.2 if len(shown) >= len(USUAL) else 5.4)
    for number, technique in enumerate(shown):
        _draw_technique(ax, number * PITCH, technique)
    for text, level in (("input\nC channels", "input"), ("output\nC' channels", "output")):
        ax.text(-1.5, LEVELS[level] + SIDE / 2, text, ha="right", va="center", fontsize=10)
    right = len(shown) * PITCH + MARGIN - LABELS
    ax.set(xlim=(-LABELS, right), ylim=(-6, LEVELS["input"] + SIDE + 4), aspect="equal")
    ax.axis("off")
    title = "What one output value reads: the marked pixels of the maps, one map a channel"
    ax.set_title(textwrap.fill(title, 40 * len(shown)), fontsize=13 if len(shown) > 1 else 11)
    return figure_of(ax)


def _draw_technique(ax: Axes, left: float, technique: _Technique) -> None:
    middle = left + WIDTH / 2
    colour = TECHNIQUE_COLOURS[technique.name]
    used = {"input", "output"} | {level for step in technique.steps for level in (step.start, step.end)}
    for level in sorted(used):
        for place in range(MAPS):
            _draw_map(ax, *_corner(left, level, place))
    for step in technique.steps:
        for source in step.sources:
            target = source if len(step.targets) == len(step.sources) else step.targets[0]
            _draw_funnel(ax, left, step, source, target, colour)
    for step in technique.steps:
        for place in step.sources:
            _draw_taps(ax, *_corner(left, step.start, place), step.taps, colour)
        for place in step.targets:
            _draw_taps(ax, *_corner(left, step.end, place), step.written, colour)
        height = (LEVELS[step.start] + LEVELS[step.end] + SIDE) / 2
        box = {"facecolor": "white", "edgecolor": "none", "boxstyle": "round,pad=0.2"}
        if step.text:
            ax.text(middle, height, step.text, ha="center", va="center", fontsize=9, bbox=box)
    name = technique.name.replace("_", "-")
    top = LEVELS["input"] + SIDE
    ax.text(middle, top + 1.6, name, ha="center", fontsize=13, fontweight="bold", color=readable(colour))
    ax.text(middle, -2.8, technique.formula, ha="center", fontsize=14, color=INK)
    example = f"{technique.weights:,} weights for k = 3, C = C' = {EXAMPLE}"
    ax.text(middle, -4.8, example, ha="center", fontsize=9, color=FAINT)


def _corner(left: float, level: str, place: int) -> tuple[float, float]:
    return left + place * (SIDE + SPACE), LEVELS[level]


def _draw_map(ax: Axes, x: float, y: float) -> None:
    ax.add_patch(Rectangle((x, y), SIDE, SIDE, facecolor="white", edgecolor=FAINT, linewidth=1, zorder=1))
    steps = range(1, SIDE)
    lines = [[(x + step, y), (x + step, y + SIDE)] for step in steps]
    lines += [[(x, y + step), (x + SIDE, y + step)] for step in steps]
    ax.add_collection(LineCollection(lines, colors=PALE, linewidths=0.8, zorder=1.1))


def _draw_taps(ax: Axes, x: float, y: float, taps: Taps, colour: str) -> None:
    for row, column in taps:
        place = (x + column, y + SIDE - 1 - row)
        ax.add_patch(Rectangle(place, 1, 1, facecolor=colour, edgecolor="white", linewidth=0.8, zorder=3))


def _draw_funnel(ax: Axes, left: float, step: _Step, source: int, target: int, colour: str) -> None:
    """Draw a pale shape from the lower edge of the taps to the upper edge of the written values."""

    def edge(level: str, place: int, taps: Taps, *, lower: bool) -> tuple[float, float, float]:
        x, y = _corner(left, level, place)
        rows, columns = [row for row, _ in taps], [column for _, column in taps]
        height = y + SIDE - (max(rows) + 1 if lower else min(rows))
        return x + min(columns), x + max(columns) + 1, height

    x0, x1, y0 = edge(step.start, source, step.taps, lower=True)
    x2, x3, y1 = edge(step.end, target, step.written, lower=False)
    shape = [(x0, y0), (x1, y0), (x3, y1), (x2, y1)]
    ax.add_patch(Polygon(shape, facecolor=colour, edgecolor="none", alpha=0.22, zorder=2))


# ---- Normalizations --------------------------------------------------------------------------------

CUBE = (4, 6, 5)  # images N, channels C, and pixels H·W, reduced to a few
DEPTH = np.array([0.55, 0.45])  # of one image, drawn to the back
RIGHT, UP = np.array([1.0, 0.0]), np.array([0.0, 1.0])
GROUPS = 2
NORMALIZATIONS = (  # name, marked images and channels, axes of one mean, how many means
    ("batch", 4, 1, "N, H, W", "C"),
    ("layer", 1, 6, "C, H, W", "N"),
    ("group", 1, 6 // GROUPS, "C/G, H, W", "N·G"),
    ("instance", 1, 1, "H, W", "N·C"),
)


@styled
def plot_normalizations(*names: str) -> Figure:
    """Draw a schematic of batch, layer, group and instance normalization on a batch (N, C, H·W).

    The coloured cells share one mean and one variance. Below each panel are the axes over which these are
    taken, and how many of them there are (G groups, here 2).

    names: "batch", "layer", "group", "instance", drawn from left to right; all four if none is given. Raises
    ValueError for another name.

    Source: after figure 2 of Wu and He, "Group Normalization", arXiv 1803.08494.
    """
    known = {row[0]: row for row in NORMALIZATIONS}
    shown = [known[as_choice("normalization", name, known)] for name in names or known]
    size = (13 / len(NORMALIZATIONS) * len(shown), 4.2 if len(shown) > 1 else 4.5)
    figure, axes = plt.subplots(1, len(shown), figsize=size, layout="constrained", squeeze=False)
    _, channels, pixels = CUBE
    width, height = np.array([channels, pixels]) + CUBE[0] * DEPTH
    for ax, (name, marked_images, marked_channels, over, means) in zip(axes[0], shown, strict=True):
        _draw_cube(ax, NORM_COLOURS[name], marked_images, marked_channels)
        _name_axes(ax)
        text = f"one mean and variance over {over}\n{means} of each"
        ax.text(width / 2, -1.5, text, ha="center", va="top", linespacing=1.5)
        ax.set_title(name, fontsize=13, fontweight="bold", color=readable(NORM_COLOURS[name]))
        ax.set(xlim=(-1.2, width + 0.6), ylim=(-3.1, height + 0.3), aspect="equal")
        ax.axis("off")
    text = "the coloured cells share one mean and one variance"
    suptitle(figure, f"Normalizations: {text}" if len(shown) > 1 else text.capitalize())
    return figure


def _draw_cube(ax: Axes, colour: str, marked_images: int, marked_channels: int) -> None:
    """Draw the visible faces of the batch, with the given numbers of images and channels marked."""
    images, channels, pixels = CUBE
    # Each face: its origin, its two edges, its size in cells along them, and how many cells are marked.
    for origin, first, second, shape, marked in (
        ((0, 0), RIGHT, UP, (channels, pixels), (marked_channels, pixels)),
        ((0, pixels), RIGHT, DEPTH, (channels, images), (marked_channels, marked_images)),
        ((channels, 0), DEPTH, UP, (images, pixels), (marked_images, pixels)),
    ):
        for i, j in np.ndindex(*shape):
            # Channels are marked from the right, images from the front, pixels all.
            across = i >= shape[0] - marked[0] if first is RIGHT else i < marked[0]
            inside = across and j < marked[1]
            corner = np.array(origin) + i * first + j * second
            cell = [corner, corner + first, corner + first + second, corner + second]
            face, edge = (colour, "white") if inside else ("white", INK)
            ax.add_patch(Polygon(cell, facecolor=face, edgecolor=edge, linewidth=0.7))


def _name_axes(ax: Axes) -> None:
    """Write C, H·W and N beside the edges of the batch."""
    images, channels, pixels = CUBE
    ax.text(channels / 2, -0.35, "C [channels]", ha="center", va="top")
    ax.text(-0.35, pixels / 2, "H·W [pixels]", ha="right", va="center", rotation=90)
    x, y = np.array([channels, 0]) + images * DEPTH / 2 + (0.3, -0.25)
    slope = math.degrees(math.atan2(DEPTH[1], DEPTH[0]))
    along = {"rotation": slope, "rotation_mode": "anchor"}
    ax.text(x, y, "N [images]", ha="center", va="center", **along)
