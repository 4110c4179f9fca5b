"""Pictures of images: samples, their augmentations, and what a network says of one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from lab.checks import as_integer, as_number
from lab.figures.common import INK, TECHNIQUE_COLOURS, pictures, styled, suptitle, titled
from lab.metrics import Array, as_array, hard_labels

CELL = 1.15  # inches, side of a small picture with its margin
LINE = 0.15  # inches, height of a line of its caption


@styled
def plot_samples(
    images: Array, labels: Array, classes: Sequence[str], *, dataset: str, columns: int = 10
) -> Figure:
    """Show a grid of images, each under the name of its class.

    images: uint8 or float in [0, 1], (N, 3, H, W). labels: class numbers (N,), indices of `classes`, or
    probabilities (N, classes), which count as their argmax. columns: images per row. Raises ValueError for
    other shapes, types or ranges.
    """
    shown = pictures(images)
    numbers = hard_labels(labels, len(classes), len(shown))
    as_integer("columns", columns, 1)
    figure, axes = image_grid(len(shown), columns, lines=1)
    for ax, picture, number in zip(axes, shown, numbers, strict=True):
        ax.imshow(picture, interpolation="nearest")
        ax.set_title(classes[int(number)], fontsize=9, pad=3)
    suptitle(figure, titled("", dataset, f"{len(shown)} image" + "s" * (len(shown) > 1)))
    return figure


@styled
def plot_augmentations(
    originals: Array, versions: Array, names: Sequence[str] | None = None, *, dataset: str
) -> Figure:
    """Show a row for each image: the original, then its augmented versions.

    originals: (N, 3, H, W); versions: (N, K, 3, H, W); both uint8 or float in [0, 1]. names: what is written
    above each of the K columns; None numbers them. Raises ValueError for other shapes, types or ranges.
    """
    shown = pictures(originals, "originals")
    array = as_array(versions, "versions")
    if array.ndim != 5 or len(array) != len(shown) or array.shape[2] != 3 or array.size == 0:
        raise ValueError(
            f"versions of shape {array.shape}: expected ({len(shown)}, K, 3, H, W), K at least 1"
        )
    count = array.shape[1]
    augmented = pictures(array.reshape(-1, *array.shape[2:]), "versions")
    names = [f"version {number}" for number in range(1, count + 1)] if names is None else list(names)
    if len(names) != count:
        raise ValueError(f"names of length {len(names)}: expected {count}, one for each version")
    figure, axes = image_grid(len(shown) * (count + 1), count + 1, lines=0)
    for place, ax in enumerate(axes):
        row, column = divmod(place, count + 1)
        ax.imshow(shown[row] if column == 0 else augmented[row * count + column - 1], interpolation="nearest")
        if column == 0:
            ax.spines[:].set(visible=True, color=INK, linewidth=2.5)
        if row == 0:
            ax.set_title("original" if column == 0 else names[column - 1], fontsize=9, pad=5)
    suptitle(figure, titled("", dataset, f"{len(shown)} images, {count} augmented versions of each"))
    return figure


@styled
def plot_prediction(image: Array, likeliest: Sequence[tuple[str, float]], *, title: str = "") -> Figure:
    """Show an image, and beside it the likeliest classes with their confidence as bars.

    image: uint8 or float in [0, 1], (3, H, W). likeliest: names and confidences in [0, 1], from the top down.
    Raises ValueError for another shape, type or range, and for no class.
    """
    (shown,) = pictures(as_array(image, "image")[None], "image")
    if not likeliest:
        raise ValueError("likeliest is empty: expected at least one name with its confidence")
    names = [name for name, _ in likeliest]
    shares = [100 * as_number(f"the confidence of {name!r}", share, 0, 1) for name, share in likeliest]
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(7, 2.6), layout="constrained", gridspec_kw={"width_ratios": (1, 1.6)}
    )
    left.imshow(shown, interpolation="nearest")
    left.set_axis_off()
    bars = right.barh(range(len(names)), shares, color=TECHNIQUE_COLOURS["standard"], height=0.6)
    right.bar_label(bars, labels=[f"{share:.1f} %" for share in shares], padding=5)
    right.set_yticks(range(len(names)), names)
    right.set(xlim=(0, 125), xticks=range(0, 101, 25), ylim=(len(names) - 0.4, -0.6))
    right.set(xlabel="confidence [%]", ylabel="class")
    right.tick_params(axis="y", length=0)
    suptitle(figure, title)
    return figure


def image_grid(count: int, columns: int, lines: int) -> tuple[Figure, list[Axes]]:
    """Make a figure with `count` places for images, `columns` per row, each with a caption of `lines`."""
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    size = (max(columns * CELL, 6), rows * (CELL + lines * LINE) + 0.5)
    layout = ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.03, hspace=0.02, wspace=0.02)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout=layout)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    for ax in axes.flat[count:]:
        ax.remove()
    return figure, list(axes.flat[:count])
