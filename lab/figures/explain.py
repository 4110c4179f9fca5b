"""What a network looks at: maps of a class, effective receptive fields, and footprints of dilated kernels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from lab.checks import as_integer
from lab.figures.common import FAINT, INK, pictures, styled, suptitle, titled, wrapped
from lab.metrics import Array, as_array

OUTLINE = "#D55E00"  # Okabe and Ito's vermilion
COLUMNS = 4  # panels in a row


@styled
def plot_activation_maps(images: Array, maps: Array, titles: Sequence[str], *, dataset: str) -> Figure:
    """Show each image, and below it the same image in grey under the map of what speaks for a class.

    images: uint8 or float in [0, 1], (N, 3, H, W). maps: (N, h, w), stretched over the image; each has its
    own scale, since those of other classes cannot be compared. titles: one for each image. Raises ValueError
    for other shapes, types or ranges.
    """
    shown = pictures(images)
    values = as_array(maps, "maps").astype(np.float64)
    if values.ndim != 3 or len(values) != len(shown) or values.size == 0 or not np.isfinite(values).all():
        raise ValueError(f"maps of shape {values.shape}: expected finite numbers ({len(shown)}, h, w)")
    if len(titles) != len(shown):
        raise ValueError(f"titles of length {len(titles)}: expected {len(shown)}, one for each image")
    columns = min(len(shown), 6)
    blocks = math.ceil(len(shown) / columns)
    width = max(1.35 * columns, 5.5)
    captions = [wrapped(title, 18) for title in titles]
    lines = max(caption.count("\n") for caption in captions)  # below the first
    height = (2.9 + 0.16 * lines) * blocks + 1.0
    layout = ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.07, hspace=0.02, wspace=0.02)
    figure, axes = plt.subplots(2 * blocks, columns, figsize=(width, height), squeeze=False, layout=layout)
    for ax in axes.flat:
        ax.set_axis_off()
    heat = None
    for index, (picture, each, caption) in enumerate(zip(shown, values, captions, strict=True)):
        block, column = divmod(index, columns)
        above, below = axes[2 * block, column], axes[2 * block + 1, column]
        above.imshow(picture, interpolation="nearest")
        above.set_title(caption, fontsize=9, pad=3)
        heat = _overlay(below, picture, each)
    assert heat is not None  # there is at least one image
    bar = figure.colorbar(heat, ax=list(axes.flat), location="bottom", aspect=40, shrink=0.7, pad=0.02)
    bar.set_ticks([-1, 0, 1], labels=["against", "0", "for"])
    bar.set_label("what the place says of the class, relative to the map's largest magnitude")
    suptitle(figure, titled("", dataset, "which places speak for the class"))
    return figure


def _overlay(ax: Axes, picture: np.ndarray, values: np.ndarray):
    """Draw a grey image under its map, which is the more transparent the smaller its magnitude."""
    share = values / (np.abs(values).max() or 1)
    height, width = picture.shape[:2]
    grey = picture.astype(np.float64).mean(2) / (255 if picture.dtype == np.uint8 else 1)
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    ax.imshow(grey, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    return ax.imshow(
        share,
        cmap="PuOr_r",
        vmin=-1,
        vmax=1,
        alpha=0.25 + 0.55 * np.abs(share),
        extent=extent,
        interpolation="nearest",
    )


@styled
def plot_kernel(image: Array, kernel: Array, result: Array, *, dataset: str) -> Figure:
    """Show what one kernel does: a channel of an image, the kernel's numbers, and the channel that results.

    image: (H, W). kernel: (k, k), at most 9 pixels wide. result: (H', W'); orange is above 0 in kernel and
    result, violet below. Raises ValueError for other shapes, and for NaN or infinity.
    """
    planes = {
        name: _checked_plane(name, values)
        for name, values in (("image", image), ("kernel", kernel), ("result", result))
    }
    weights = planes["kernel"]
    if max(weights.shape) > 9:
        raise ValueError(f"kernel of shape {weights.shape}: expected at most 9 x 9 numbers")
    figure, axes = _panels("planes", 3)
    bars = ("pixel [value]", "weight [number]", "sum of weight x pixel [value]")
    for ax, (name, values), bar in zip(axes, planes.items(), bars, strict=True):
        most = np.abs(values).max() or 1
        if name == "image":
            drawn = ax.imshow(values, interpolation="nearest", cmap="gray")
        else:
            drawn = ax.imshow(values, interpolation="nearest", cmap="PuOr_r", vmin=-most, vmax=most)
        ax.set_title(name)
        figure.colorbar(drawn, ax=ax, location="bottom", shrink=0.85, pad=0.03).set_label(bar)
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_locator(MaxNLocator(4, integer=True))
        ax.set_xlabel("column [pixels]")
    for row, column in np.ndindex(weights.shape):
        text = axes[1].text(column, row, f"{weights[row, column]:.3g}", ha="center", va="center")
        text.set_path_effects([patheffects.Stroke(linewidth=2.5, foreground="white"), patheffects.Normal()])
    axes[0].set_ylabel("row [pixels]")
    suptitle(figure, titled("", dataset, "one kernel at work"))
    return figure


def _checked_plane(name: str, values: Array) -> np.ndarray:
    array = as_array(values, name).astype(np.float64)
    if array.ndim != 2 or array.size == 0 or not np.isfinite(array).all():
        raise ValueError(f"{name} of shape {array.shape}: expected finite numbers (H, W)")
    return array


@styled
def plot_effective_field(
    fields: Mapping[str, Array], *, receptive_field: int | None = None, image_size: int = 32
) -> Figure:
    """Show effective receptive fields on a linear scale, around the centre of the images.

    fields: by name, (H, W), as from `effective_receptive_field`, each shown relative to its largest value.
    The solid outline is an image of `image_size` pixels in the centre, the dashed one a square of
    `receptive_field` pixels, the side of the field in theory. Raises ValueError for no field, and for other
    shapes or numbers.
    """
    as_integer("image_size", image_size, 1)
    if receptive_field is not None:
        as_integer("receptive_field", receptive_field, 1)
    arrays = {name: _checked_field(name, field) for name, field in fields.items()}
    figure, axes = _panels("fields", len(arrays))
    image = None
    for ax, (name, field) in zip(axes, arrays.items(), strict=True):
        height, width = field.shape
        extent = (-width / 2, width / 2, height / 2, -height / 2)
        image = ax.imshow(
            field / field.max(), cmap="viridis", vmin=0, vmax=1, extent=extent, interpolation="nearest"
        )
        _outline(ax, image_size, "-", f"image, {image_size} x {image_size} pixels")
        if receptive_field is not None:
            _outline(ax, receptive_field, "--", f"field in theory, {receptive_field} x {receptive_field}")
        side = max(image_size, receptive_field or 0, width, height) / 2 + 1
        ax.set(xlim=(-side, side), ylim=(side, -side), title=wrapped(name, 24))
    _label(figure, axes, "column, from the centre [pixels]", "row, from the centre [pixels]")
    assert image is not None  # there is at least one field
    bar = figure.colorbar(image, ax=axes, shrink=0.8, pad=0.02)
    bar.set_label("gradient magnitude,\nrelative to the largest")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(2, len(axes)), frameon=False)
    return figure


def _checked_field(name: str, field: Array) -> np.ndarray:
    values = as_array(field, f"fields[{name!r}]").astype(np.float64)
    if values.ndim != 2 or not np.isfinite(values).all() or (values < 0).any() or not values.any():
        raise ValueError(
            f"fields[{name!r}] of shape {values.shape}: expected finite numbers (H, W) of at least 0, some "
            "not 0"
        )
    return values


def _outline(ax: Axes, side: int, style: str, label: str) -> None:
    outline = Rectangle((-side / 2, -side / 2), side, side, fill=False, edgecolor=OUTLINE, linewidth=1.8)
    outline.set(linestyle=style, label=label)
    outline.set_path_effects([patheffects.Stroke(linewidth=3.6, foreground="white"), patheffects.Normal()])
    ax.add_patch(outline)


@styled
def plot_footprints(footprints: Mapping[str, Array]) -> Figure:
    """Show how many paths lead from each pixel to one output; a pixel that is never read stays white.

    footprints: by name, integers (S, S), as from `footprint`, each shown relative to its largest number; or
    0 and 1, for read or not. A pixel has the same size in all of them. Raises ValueError for none, and for
    other shapes or numbers.
    """
    arrays = {name: _checked_footprint(name, paths) for name, paths in footprints.items()}
    figure, axes = _panels("footprints", len(arrays))
    largest = max(map(len, arrays.values())) / 2
    image = None
    for ax, (name, paths) in zip(axes, arrays.items(), strict=True):
        half = len(paths) / 2
        image = ax.imshow(
            np.ma.masked_equal(paths / paths.max(), 0),
            cmap="viridis",
            vmin=0,
            vmax=1,
            extent=(-half, half, half, -half),
            interpolation="nearest",
        )
        ax.add_patch(Rectangle((-half, -half), 2 * half, 2 * half, fill=False, edgecolor=FAINT, linewidth=1))
        read = f"{np.count_nonzero(paths)} of {paths.size} pixels read"
        ax.set(xlim=(-largest - 0.5, largest + 0.5), ylim=(largest + 0.5, -largest - 0.5))
        ax.set_title(f"{wrapped(name, 24)}\n{read}")
    _label(figure, axes, "column, from the centre [pixels]", "row, from the centre [pixels]")
    if image is not None and max(paths.max() for paths in arrays.values()) > 1:
        bar = figure.colorbar(image, ax=axes, shrink=0.8, pad=0.02)
        bar.set_label("ways from the pixel to the output,\nrelative to the most; white: none")
    return figure


def _checked_footprint(name: str, paths: Array) -> np.ndarray:
    values = as_array(paths, f"footprints[{name!r}]")
    whole = np.issubdtype(values.dtype, np.integer)
    square = values.ndim == 2 and values.shape[0] == values.shape[1]
    if not whole or not square or values.size == 0 or values.min() < 0 or values.max() < 1:
        raise ValueError(
            f"footprints[{name!r}] of shape {values.shape} and type {values.dtype}: expected integers (S, S) "
            "of at least 0, some not 0"
        )
    return values


def _panels(name: str, count: int) -> tuple[Figure, list[Axes]]:
    """Make a figure of `count` square panels, COLUMNS in a row."""
    if not count:
        raise ValueError(f"{name} are empty: expected at least one, by name")
    columns = min(count, COLUMNS)
    rows = math.ceil(count / columns)
    size = (2.7 * columns + 1.2, 2.9 * rows + 0.6)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for ax in axes.flat[count:]:
        ax.remove()
    return figure, list(axes.flat[:count])


def _label(figure: Figure, axes: list[Axes], x: str, y: str) -> None:
    """Whole numbers at the ticks, and one label for all axes of a direction."""
    for ax in axes:
        ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        ax.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    figure.supxlabel(x, fontsize=10, color=INK)
    figure.supylabel(y, fontsize=10, color=INK)
