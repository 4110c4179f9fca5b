"""The receptive field: how it grows, and the gradient that was measured in the square that theory allows."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib import colormaps, patheffects
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from lab.checks import as_integer
from lab.figures.common import FAINT, figure_of, new_axes, pictures, styled, titled
from lab.metrics import Array, as_array

DECADES = 4  # of gradient magnitude, below the largest, that have a colour


@styled
def plot_receptive_field(
    gradient: Array,
    receptive_field: int,
    *,
    title: str = "",
    dataset: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Show what one output unit really looks at: the gradient's magnitude and the theoretical field.

    gradient: (H, W), the derivative of the unit with respect to the image. Its absolute value is shown
    relative to the largest, on a logarithmic scale. receptive_field: side of the outlined square in pixels.
    The square is placed on the bounding box of the non-zero gradient. If the image's border cuts the box on
    one side, the square extends beyond that border; if its place is not known, it is centred on the box.
    Raises ValueError for another shape, and for a gradient that is zero everywhere or not finite.

    Source: Luo et al., "Understanding the Effective Receptive Field", arXiv 1701.04128.
    """
    magnitude = np.abs(as_array(gradient, "gradient").astype(np.float64))
    if magnitude.ndim != 2 or magnitude.size == 0:
        raise ValueError(f"gradient of shape {magnitude.shape}: expected (H, W)")
    if not np.isfinite(magnitude).all() or not magnitude.any():
        raise ValueError("gradient is zero everywhere or not finite: expected finite numbers, some not zero")
    as_integer("receptive_field", receptive_field, 1)
    height, width = magnitude.shape
    top = _field_start(np.flatnonzero(magnitude.any(1)), receptive_field, height)
    left = _field_start(np.flatnonzero(magnitude.any(0)), receptive_field, width)

    ax = new_axes(ax, 6.4, 5.4)
    image = ax.imshow(
        np.ma.masked_equal(magnitude / magnitude.max(), 0),
        norm=LogNorm(10**-DECADES, 1, clip=True),
        cmap="viridis",
        interpolation="nearest",
    )
    border = Rectangle((-0.5, -0.5), width, height, fill=False, linewidth=1, edgecolor=FAINT)
    ax.add_patch(border)
    _draw_outline(ax, left, top, receptive_field)
    margin = 1.5
    ax.set_xlim(min(-0.5, left - 0.5) - margin, max(width, left + receptive_field) - 0.5 + margin)
    ax.set_ylim(max(height, top + receptive_field) - 0.5 + margin, min(-0.5, top - 0.5) - margin)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    bar = figure_of(ax).colorbar(image, ax=ax, shrink=0.85, pad=0.02, extend="min")
    bar.set_label("gradient magnitude, relative to the largest")
    ax.set(xlabel="column [pixels]", ylabel="row [pixels]")
    side = f"{receptive_field} x {receptive_field} pixels"
    ax.set_title("\n".join(filter(None, (titled(title, dataset), f"outlined: receptive field, {side}"))))
    return ax


@styled
def plot_field_growth(
    image: Array, fields: Mapping[str, int], *, dataset: str | None = None, ax: Axes | None = None
) -> Axes:
    """Show how the receptive field grows: nested squares around the middle of an image, one for each layer.

    image: uint8 or float in [0, 1], (3, H, W). fields: from a layer's name to the side of its receptive field
    in pixels, from the first layer to the last. Raises ValueError for another shape, type or range, and for
    no layer.
    """
    (shown,) = pictures(as_array(image, "image")[None], "image")
    if not fields:
        raise ValueError("fields is empty: expected at least one layer with its receptive field")
    sides = {name: as_integer(f"fields[{name!r}]", side, 1) for name, side in fields.items()}
    ax = new_axes(ax, 8.2, 5.4)
    height, width = shown.shape[:2]
    ax.imshow(shown, interpolation="nearest", extent=(-width / 2, width / 2, height / 2, -height / 2))
    shades = colormaps["viridis"](np.linspace(0, 0.85, len(sides)))
    for (name, side), shade in zip(sides.items(), shades, strict=True):
        square = Rectangle((-side / 2, -side / 2), side, side, fill=False, edgecolor=shade, linewidth=2)
        square.set_path_effects([patheffects.Stroke(linewidth=4, foreground="white"), patheffects.Normal()])
        square.set_label(f"{name}: {side} x {side} pixels")
        ax.add_patch(square)
    edge = max(height, width, *sides.values()) / 2 + 1.5
    ax.set(xlim=(-edge, edge), ylim=(edge, -edge), aspect="equal")
    ax.set(xlabel="column, from the middle [pixels]", ylabel="row, from the middle [pixels]")
    ax.legend(loc="upper left", bbox_to_anchor=(1.02, 1), frameon=False)
    ax.set_title(titled("", dataset, "what one unit of each layer reads"))
    return ax


def _draw_outline(ax: Axes, left: float, top: float, side: int) -> None:
    """Outline the square whose first column and row are given, with a white rim to stand out."""
    place = (left - 0.5, top - 0.5)
    outline = Rectangle(place, side, side, fill=False, edgecolor="#D55E00", linewidth=2)
    outline.set_path_effects([patheffects.Stroke(linewidth=4, foreground="white"), patheffects.Normal()])
    ax.add_patch(outline)


def _field_start(seen: np.ndarray, side: int, size: int) -> float:
    """Find the field's first row (or column) from those with a gradient and the size of the image."""
    first, last = int(seen[0]), int(seen[-1])
    if last - first + 1 < side and (first == 0) != (last == size - 1):
        return last - side + 1 if first == 0 else first
    return (first + last + 1 - side) / 2
