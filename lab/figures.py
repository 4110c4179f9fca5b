"""Every picture: arrays, tensors and histories in, Axes or Figure out. It knows no networks.

Sections: style and colours, pictures of images, curves, errors, the receptive field, comparison,
the benchmark, schematics, and writing to a file. The style is set in a context around each function, so
that nothing of Matplotlib's own settings changes.
"""

from __future__ import annotations

import math
import textwrap
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LogNorm, to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Polygon, Rectangle
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator
from torch import Tensor

if TYPE_CHECKING:
    from lab.training import History

Array = np.ndarray | Tensor

# ---- Style and colours -----------------------------------------------------------------------------

INK, FAINT, PALE = "#222222", "#8a8a8a", "#e4e4e4"
WRONG = "#B3400E"

# Okabe and Ito's palette, told apart with any kind of colour vision: jfly.uni-koeln.de/color
TECHNIQUE_COLOURS: dict[str, str] = {
    "standard": "#0072B2",
    "dilated": "#E69F00",
    "depthwise_separable": "#009E73",
    "blueprint_separable": "#CC79A7",
    "mixed": "#D55E00",
}
# The rest: Paul Tol's "muted", personal.sron.nl/~pault
NORM_COLOURS: dict[str, str] = {
    "batch": "#332288",
    "layer": "#88CCEE",
    "group": "#117733",
    "instance": "#882255",
    "none": "#999933",
}
OTHER_COLOURS = ("#44AA99", "#AA4499", "#DDCC77", "#CC6677", "#666666", "#56B4E9", "#5D4037", "#000000")

STYLE = {
    "font.family": "DejaVu Sans",  # comes with Matplotlib, so a picture is the same on every machine
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.titlesize": 11,
    "axes.labelsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "figure.dpi": 110,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "figure.titlesize": 13,
}


def _styled(draw: Callable) -> Callable:
    """The style holds while the function runs, and no longer."""

    @wraps(draw)
    def drawn(*arguments, **options):
        with matplotlib.rc_context(STYLE):
            drawing = draw(*arguments, **options)
            interactive = matplotlib.is_interactive()
        # In Jupyter the first figure sets this; undone with the context, it would be the last one shown.
        matplotlib.interactive(interactive)
        return drawing

    return drawn


def colours(names: Iterable[str]) -> dict[str, str]:
    """A colour for each name: its own where it is a technique's or a normalization's, a stable one elsewhere.

    Case, spaces and hyphens do not matter. A name of neither kind has a colour that follows from the name,
    and gives way to the next free one where another such name of the same picture has it already.
    """
    fixed = TECHNIQUE_COLOURS | NORM_COLOURS
    chosen: dict[str, str] = {}
    for name in names:
        key = name.strip().lower().replace(" ", "_").replace("-", "_")
        start = zlib.crc32(key.encode())
        turns = [OTHER_COLOURS[(start + turn) % len(OTHER_COLOURS)] for turn in range(len(OTHER_COLOURS))]
        free = (colour for colour in turns if colour not in chosen.values())
        chosen[name] = fixed.get(key) or next(free, turns[0])
    return chosen


def _readable(colour: str) -> str:  # a darker shade, for text on white
    return to_hex([0.7 * part for part in to_rgb(colour)])


def _titled(title: str, dataset: str | None, text: str = "") -> str:
    return ": ".join(filter(None, (", ".join(filter(None, (dataset, title))), text)))


def _suptitle(figure: Figure, text: str) -> None:
    points = figure.get_figwidth() * 72
    figure.suptitle(textwrap.fill(text, max(int(points / (13 * 0.6)), 20)), color=INK)


def _array(values, name: str) -> np.ndarray:
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        values = (values.float() if values.is_floating_point() else values).numpy()
    try:
        return np.asarray(values)
    except ValueError as error:
        raise ValueError(f"{name} is no array: {error}") from error


def _pictures(images: Array, name: str = "images") -> np.ndarray:
    """(N, 3, H, W), uint8 or float in [0, 1], to (N, H, W, 3), as imshow takes it."""
    array = _array(images, name)
    if array.ndim != 4 or array.shape[1] != 3 or array.size == 0:
        raise ValueError(f"{name} of shape {array.shape}: expected (N, 3, H, W) with at least one image")
    if array.dtype != np.uint8:
        if not np.issubdtype(array.dtype, np.floating):
            raise ValueError(f"{name} of type {array.dtype}: expected uint8, or float in [0, 1]")
        low, high = array.min(), array.max()
        if not (low >= -1e-3 and high <= 1 + 1e-3):  # written so that NaN fails, too
            raise ValueError(
                f"{name} from {low:.3g} to {high:.3g}: expected float in [0, 1]; "
                "normalized images are to be denormalized first"
            )
        array = array.clip(0, 1)
    return array.transpose(0, 2, 3, 1)


def _indices(values: Array, name: str, num_classes: int, count: int | None = None) -> np.ndarray:
    """Class numbers (N,), int64, checked."""
    array = _array(values, name)
    if array.ndim != 1 or len(array) == 0 or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(
            f"{name} of shape {array.shape} and type {array.dtype}: "
            "expected (N,) integers, N at least 1 (of logits, take argmax(1))"
        )
    if count is not None and len(array) != count:
        raise ValueError(f"{name} of length {len(array)}: expected {count}, one for each image")
    if array.min() < 0 or array.max() >= num_classes:
        raise ValueError(
            f"{name} from {array.min()} to {array.max()}: expected class numbers from 0 to {num_classes - 1}"
        )
    return array.astype(np.int64)


def _positive(name: str, value: int) -> None:
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}={value!r}: expected an integer of at least 1")


def _new_axes(ax: Axes | None, width: float, height: float) -> Axes:
    return ax or plt.subplots(figsize=(width, height), layout="constrained")[1]


# ---- Images ----------------------------------------------------------------------------------------

CELL = 1.15  # inches, side of a small picture with its margin
LINE = 0.15  # inches, height of a line of its caption


def _grid(count: int, columns: int, lines: int) -> tuple[Figure, list[Axes]]:
    """A figure with `count` places for pictures, `columns` side by side, each with a caption of `lines`."""
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    size = (max(columns * CELL, 6), rows * (CELL + lines * LINE) + 0.5)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03, hspace=0.02, wspace=0.02)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    for ax in axes.flat[count:]:
        ax.remove()
    return figure, list(axes.flat[:count])


@_styled
def plot_samples(
    images: Array, labels: Array, classes: Sequence[str], *, dataset: str, columns: int = 10
) -> Figure:
    """A grid of pictures, each under the name of its class.

    images: uint8 or float in [0, 1], (N, 3, H, W). labels: integers (N,), indices of `classes`. columns:
    pictures in a row. Raises ValueError for other shapes, types or ranges.
    """
    pictures = _pictures(images)
    labels = _indices(labels, "labels", len(classes), len(pictures))
    _positive("columns", columns)
    figure, axes = _grid(len(pictures), columns, lines=1)
    for ax, picture, label in zip(axes, pictures, labels, strict=True):
        ax.imshow(picture, interpolation="nearest")
        ax.set_title(classes[label], fontsize=9, pad=3)
    _suptitle(figure, _titled("", dataset, f"{len(pictures)} image" + "s" * (len(pictures) > 1)))
    return figure


@_styled
def plot_augmentations(originals: Array, versions: Array, *, dataset: str) -> Figure:
    """A row for each image: the original, then its augmented versions.

    originals: (N, 3, H, W); versions: (N, K, 3, H, W); both uint8 or float in [0, 1]. Raises ValueError for
    other shapes, types or ranges.
    """
    pictures = _pictures(originals, "originals")
    versions = _array(versions, "versions")
    if versions.ndim != 5 or len(versions) != len(pictures) or versions.shape[2] != 3 or versions.size == 0:
        raise ValueError(
            f"versions of shape {versions.shape}: expected ({len(pictures)}, K, 3, H, W), K at least 1"
        )
    count = versions.shape[1]
    augmented = _pictures(versions.reshape(-1, *versions.shape[2:]), "versions")
    figure, axes = _grid(len(pictures) * (count + 1), count + 1, lines=0)
    for place, ax in enumerate(axes):
        row, column = divmod(place, count + 1)
        ax.imshow(
            pictures[row] if column == 0 else augmented[row * count + column - 1], interpolation="nearest"
        )
        if column == 0:
            ax.spines[:].set(visible=True, color=INK, linewidth=2.5)
        if row == 0:
            ax.set_title("original" if column == 0 else f"version {column}", fontsize=9, pad=5)
    _suptitle(figure, _titled("", dataset, f"{len(pictures)} images, {count} augmented versions of each"))
    return figure


# ---- Curves ----------------------------------------------------------------------------------------

PANELS = (  # attribute of a History, title, axis, factor
    ("train_loss", "training loss", "cross-entropy [nats]", 1),
    ("test_loss", "test loss", "cross-entropy [nats]", 1),
    ("train_accuracy", "training accuracy", "accuracy [%]", 100),
    ("test_accuracy", "test accuracy", "accuracy [%]", 100),
)
MARKED = 12  # epochs up to which every one has a marker


@_styled
def plot_curves(histories: Mapping[str, History], *, dataset: str | None = None) -> Figure:
    """Loss and accuracy, in training and in test, against the epoch: four panels, a line for each model.

    histories: from a model's name to its History; test lists may be empty, for a run without a test set.
    dataset: None is that of the histories. Losses are mean cross-entropies in nats, accuracies are shown
    in percent. Raises ValueError where there are none, where one has no epoch or lists of different
    lengths, and where they are of different data sets.
    """
    if not isinstance(histories, Mapping) or not histories:
        raise ValueError(f"histories={histories!r}: expected a dictionary from names to Histories, not empty")
    for name, history in histories.items():
        lengths = {attribute: len(getattr(history, attribute)) for attribute, *_ in PANELS}
        epochs = lengths["train_loss"]
        optional = ("test_loss", "test_accuracy")
        if not epochs or any(n != epochs and (n or a not in optional) for a, n in lengths.items()):
            raise ValueError(f"history {name!r} has lists of lengths {lengths}: expected one entry an epoch")
    datasets = sorted({history.dataset for history in histories.values()})
    if len(datasets) > 1:
        raise ValueError(f"histories of different data sets {datasets}: expected one data set in a figure")
    palette = colours(histories)
    figure, axes = plt.subplots(2, 2, figsize=(12, 7.4), layout="constrained")
    figure.get_layout_engine().set(wspace=0.04, hspace=0.05)
    most = max(len(history.train_loss) for history in histories.values())
    for ax, (attribute, title, label, factor) in zip(axes.flat, PANELS, strict=True):
        for name, history in histories.items():
            values = np.asarray(getattr(history, attribute), dtype=float) * factor
            if len(values):
                marker = "o" if len(values) <= MARKED else None
                epochs = np.arange(1, len(values) + 1)
                ax.plot(epochs, values, marker=marker, markersize=4, color=palette[name], label=name)
        ax.set(title=title, xlabel="epoch", ylabel=label)
        margin = 0.03 * (most - 1) or 0.5
        ax.set_xlim(1 - margin, most + margin)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        ax.grid(color=PALE, linewidth=0.8)
        ax.set_axisbelow(True)
        if not ax.lines:
            ax.set_yticks([])
            ax.text(0.5, 0.5, "not measured", transform=ax.transAxes, ha="center", color=FAINT)
    _suptitle(figure, _titled("", dataset or datasets[0], "loss and accuracy by epoch"))
    figure.draw_without_rendering()  # the layout gives the axes their height, which the labels need
    for ax in axes.flat:
        _label_lines(ax)
    return figure


def _label_lines(ax: Axes) -> None:
    """Each line's label at its end, right of the axes, moved up or down where two would overlap."""
    lines = [line for line in ax.lines if np.isfinite(line.get_ydata()).any()]
    if not lines:
        return
    ax.set_ylim(ax.get_ylim())
    ends = [np.column_stack(line.get_data())[np.isfinite(line.get_ydata())][-1] for line in lines]
    to_axes = ax.transData + ax.transAxes.inverted()
    heights = to_axes.transform(ends)[:, 1]
    points = ax.get_window_extent().height * 72 / ax.get_figure(root=True).dpi
    size = float(np.clip(points / (1.35 * len(lines)), 5, 9))
    places = _spread(heights, 1.35 * size / points)
    for line, end, place in zip(lines, ends, places, strict=True):
        ax.annotate(
            line.get_label(),
            xy=end,
            xytext=(1.03, place),
            textcoords="axes fraction",
            va="center",
            fontsize=size,
            color=_readable(line.get_color()),
            arrowprops={
                "arrowstyle": "-",
                "color": line.get_color(),
                "linewidth": 1,
                "linestyle": ":",  # no part of the measured line
                "shrinkA": 1,
                "shrinkB": 0,
                "relpos": (0, 0.5),
            },
            annotation_clip=False,
        )


def _spread(places, gap: float, low: float = 0.0, high: float = 1.0) -> np.ndarray:
    """`places` moved as little as can be (in squares) to be `gap` apart, in their order, in [low, high]."""
    order = np.argsort(places, kind="stable")
    blocks: list[tuple[float, int]] = []  # of neighbours that touch: place of the first, and how many
    for rank, index in enumerate(order):
        place, count = places[index] - rank * gap, 1
        while blocks and blocks[-1][0] > place:
            before, others = blocks.pop()
            place, count = (place * count + before * others) / (count + others), count + others
        blocks.append((place, count))
    first = np.repeat([place for place, _ in blocks], [count for _, count in blocks])
    room = max(high - gap * (len(order) - 1), low)
    spread = np.empty(len(order))
    spread[order] = first.clip(low, room) + gap * np.arange(len(order))
    return spread


# ---- Errors ----------------------------------------------------------------------------------------


@_styled
def plot_misclassified(
    images: Array,
    labels: Array,
    logits: Array,
    classes: Sequence[str],
    *,
    dataset: str,
    count: int = 20,
    title: str = "",
    columns: int = 10,
) -> Figure:
    """Misclassified images, the most confidently wrong first, each over its true and predicted class.

    images: as shown, uint8 or float in [0, 1], (N, 3, H, W). labels: integers (N,). logits: (N, classes).
    count: pictures at most. The confidence is the softmax of the predicted class, in percent. Where every
    image is classified correctly, the figure says so. Raises ValueError for other shapes, types or ranges.
    """
    pictures = _pictures(images)
    labels = _indices(labels, "labels", len(classes), len(pictures))
    logits = _array(logits, "logits").astype(np.float64)
    _positive("count", count)
    _positive("columns", columns)
    if logits.shape != (len(pictures), len(classes)):
        raise ValueError(
            f"logits of shape {logits.shape}: expected ({len(pictures)}, {len(classes)}), (images, classes)"
        )
    if not np.isfinite(logits).all():
        raise ValueError("logits hold NaN or infinity: expected finite numbers")
    predictions = logits.argmax(1)
    # The softmax's largest entry is 1 / (1 + rest); the rest keeps an order where 1 + rest rounds to 1.
    rest = np.exp(np.sort(logits - logits.max(1, keepdims=True), axis=1)[:, :-1]).sum(1)
    wrong = np.flatnonzero(predictions != labels)
    shown = wrong[np.argsort(rest[wrong], kind="stable")][:count]
    found = f"{len(wrong):,} of {len(pictures):,} images misclassified"
    if len(shown) == 0:
        figure, ax = plt.subplots(figsize=(7, 1.2), layout="constrained")
        ax.axis("off")
        ax.text(0.5, 0.5, "Every image is classified correctly.", ha="center", va="center", fontsize=12)
        _suptitle(figure, _titled(title, dataset, found))
        return figure
    figure, axes = _grid(len(shown), columns, lines=3)
    for ax, index in zip(axes, shown, strict=True):
        ax.imshow(pictures[index], interpolation="nearest")
        ax.set_title(f"true: {classes[labels[index]]}", fontsize=8, pad=3)
        ax.set_xlabel(
            f"pred.: {classes[predictions[index]]}\n{100 / (1 + rest[index]):.1f} %",
            fontsize=8,
            labelpad=2,
            color=WRONG,
        )
    chosen = "all, by" if len(shown) == len(wrong) else f"the {len(shown)} of highest"
    _suptitle(figure, _titled(title, dataset, f"{found}; shown: {chosen} softmax confidence"))
    return figure


def confusion_matrix(labels: Array, predictions: Array, num_classes: int) -> np.ndarray:
    """Counts, int64 (num_classes, num_classes): rows are the true classes, columns the predicted ones.

    labels, predictions: integers (N,) from 0 to num_classes - 1. Raises ValueError for others.
    """
    _positive("num_classes", num_classes)
    labels = _indices(labels, "labels", num_classes)
    predictions = _indices(predictions, "predictions", num_classes, len(labels))
    counts = np.bincount(labels * num_classes + predictions, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


@_styled
def plot_confusion(
    labels: Array,
    predictions: Array,
    classes: Sequence[str],
    *,
    dataset: str,
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """The confusion matrix with its counts; errors coloured by their share of the true class.

    labels, predictions: integers (N,), indices of `classes`. Rows are true classes, columns predicted ones.
    The diagonal has a scale of its own, for it would drown the errors. Raises ValueError for other shapes.
    """
    counts = confusion_matrix(labels, predictions, len(classes))
    share = 100 * counts / counts.sum(1, keepdims=True).clip(1)
    diagonal = np.eye(len(classes), dtype=bool)
    errors = np.ma.masked_array(share, diagonal)
    most = max(float(share[~diagonal].max(initial=0)), 1.0)
    ax = _new_axes(ax, 8.2, 7)
    hits = np.ma.masked_array(share, ~diagonal)
    # A wider range than the shares have keeps the diagonal pale.
    ax.imshow(hits, cmap="Blues", vmin=0, vmax=250, interpolation="nearest")
    image = ax.imshow(errors, cmap="Oranges", vmin=0, vmax=most, interpolation="nearest")
    for row, column in np.ndindex(counts.shape):
        value, own = counts[row, column], row == column
        dark = not own and share[row, column] > 0.6 * most
        ax.text(
            column,
            row,
            f"{value}",
            ha="center",
            va="center",
            fontsize=9,
            fontweight="bold" if own else "normal",
            color="white" if dark else INK if value else "#b0b0b0",
        )
    ticks = range(len(classes))
    ax.set_xticks(ticks, classes, rotation=45, ha="right", rotation_mode="anchor")
    ax.set_yticks(ticks, classes)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_xticks(np.arange(0.5, len(classes) - 1), minor=True)
    ax.set_yticks(np.arange(0.5, len(classes) - 1), minor=True)
    ax.grid(which="minor", color="white", linewidth=1.5)
    ax.tick_params(which="minor", length=0)
    bar = ax.figure.colorbar(image, ax=ax, shrink=0.7, pad=0.02)
    bar.set_label("errors: share of the true class [%]")
    bar.outline.set_visible(False)
    right = f"{np.trace(counts) / counts.sum():.2%} of {counts.sum():,} images right".replace("%", " %")
    ax.set(xlabel="predicted class", ylabel="true class")
    ax.set_title(_titled(title, dataset, right), pad=10)
    return ax


# ---- Receptive field -------------------------------------------------------------------------------

DECADES = 4  # of gradient magnitude, below the largest, that have a colour


@_styled
def plot_receptive_field(
    gradient: Array,
    receptive_field: int,
    *,
    title: str = "",
    dataset: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """What one output unit really looks at: the gradient's magnitude, and the field that theory allows.

    gradient: (H, W), of the unit with respect to the image; its absolute value is shown relative to the
    largest, on a logarithmic scale. receptive_field: pixels, side of the square outlined. The square lies on
    the bounding box of the non-zero gradient; where the border of the image cuts the box on one side, the
    square goes on beyond the border, and where it cannot be told, it is centred on the box. Raises
    ValueError for another shape, and where the gradient is zero everywhere or not finite.

    Source: Luo et al., "Understanding the Effective Receptive Field", arXiv 1701.04128.
    """
    magnitude = np.abs(_array(gradient, "gradient").astype(np.float64))
    if magnitude.ndim != 2 or magnitude.size == 0:
        raise ValueError(f"gradient of shape {magnitude.shape}: expected (H, W)")
    if not np.isfinite(magnitude).all() or not magnitude.any():
        raise ValueError("gradient is zero everywhere or not finite: expected finite numbers, some not zero")
    _positive("receptive_field", receptive_field)
    height, width = magnitude.shape
    top = _field_start(np.flatnonzero(magnitude.any(1)), receptive_field, height)
    left = _field_start(np.flatnonzero(magnitude.any(0)), receptive_field, width)

    ax = _new_axes(ax, 6.4, 5.4)
    image = ax.imshow(
        np.ma.masked_equal(magnitude / magnitude.max(), 0),
        norm=LogNorm(10**-DECADES, 1, clip=True),
        cmap="viridis",
        interpolation="nearest",
    )
    frame = {"fill": False, "linewidth": 1}
    ax.add_patch(Rectangle((-0.5, -0.5), width, height, **frame, edgecolor=FAINT))
    outline = Rectangle(
        (left - 0.5, top - 0.5),
        receptive_field,
        receptive_field,
        fill=False,
        edgecolor="#D55E00",
        linewidth=2,
    )
    outline.set_path_effects([patheffects.Stroke(linewidth=4, foreground="white"), patheffects.Normal()])
    ax.add_patch(outline)
    margin = 1.5
    ax.set_xlim(min(-0.5, left - 0.5) - margin, max(width, left + receptive_field) - 0.5 + margin)
    ax.set_ylim(max(height, top + receptive_field) - 0.5 + margin, min(-0.5, top - 0.5) - margin)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    bar = ax.figure.colorbar(image, ax=ax, shrink=0.85, pad=0.02, extend="min")
    bar.set_label("gradient magnitude, relative to the largest")
    ax.set(xlabel="column [pixels]", ylabel="row [pixels]")
    side = f"{receptive_field} x {receptive_field} pixels"
    ax.set_title("\n".join(filter(None, (_titled(title, dataset), f"outlined: receptive field, {side}"))))
    return ax


def _field_start(seen: np.ndarray, side: int, size: int) -> float:
    """First row (or column) of the field, from those with a gradient and the size of the image."""
    first, last = int(seen[0]), int(seen[-1])
    if last - first + 1 < side and (first == 0) != (last == size - 1):
        return last - side + 1 if first == 0 else first
    return (first + last + 1 - side) / 2


# ---- Comparison ------------------------------------------------------------------------------------

QUANTITIES = (  # key, axis, factor, how a value is written
    ("accuracy", "test accuracy [%]", 100, lambda value: f"{value:.2f} %"),
    ("parameters", "parameters [number]", 1, lambda value: f"{value:,.0f}"),
    ("macs", "MACs [number per image]", 1, lambda value: EngFormatter(places=2)(value)),
    ("seconds", "training time [s]", 1, lambda value: f"{value:,.1f} s"),
)


@_styled
def plot_comparison(rows: Sequence[Mapping], *, dataset: str) -> Figure:
    """Techniques side by side: bars of accuracy, parameters, multiply-accumulates and training time.

    rows: from top to bottom, each with "name", "accuracy" (in [0, 1], shown in percent), "parameters",
    "macs" (for an image) and "seconds" (of training). Raises ValueError where there are none, where a key
    is missing, and for a negative or infinite number.
    """
    rows = list(rows)
    if not rows:
        raise ValueError("rows is empty: expected a dictionary for each technique")
    keys = [key for key, *_ in QUANTITIES]
    for number, row in enumerate(rows):
        if missing := [key for key in ("name", *keys) if key not in row]:
            raise ValueError(f"rows[{number}] lacks {missing}: expected the keys name, {', '.join(keys)}")
        for key in keys:
            if not 0 <= row[key] < math.inf or (key == "accuracy" and row[key] > 1):
                allowed = "a share in [0, 1]" if key == "accuracy" else "a finite number, at least 0"
                raise ValueError(f"rows[{number}][{key!r}]={row[key]!r}: expected {allowed}")
    names = [row["name"] for row in rows]
    palette = colours(names)
    figure, axes = plt.subplots(
        1, len(QUANTITIES), figsize=(13, 1.4 + 0.42 * len(rows)), sharey=True, layout="constrained"
    )
    places = np.arange(len(rows))
    for ax, (key, label, factor, written) in zip(axes, QUANTITIES, strict=True):
        values = [row[key] * factor for row in rows]
        bars = ax.barh(places, values, color=[palette[name] for name in names], height=0.7)
        ax.bar_label(bars, labels=[written(value) for value in values], padding=4, fontsize=9)
        ax.set_xlim(0, (max(values) or 1) * 1.42)  # room for the values
        ax.set_xlabel(label)
        if key == "accuracy":
            ax.set_xticks(range(0, 101, 25))
            ax.set_xlim(0, 142)
        else:
            ax.xaxis.set_major_locator(MaxNLocator(4))
        if max(values) >= 1000:
            ax.xaxis.set_major_formatter(EngFormatter(sep=" "))
        ax.tick_params(axis="y", length=0)
        ax.grid(axis="x", color=PALE, linewidth=0.8)
        ax.set_axisbelow(True)
        ax.spines["left"].set_visible(False)
    axes[0].set_yticks(places, names)
    axes[0].set_ylim(len(rows) - 0.4, -0.6)
    axes[0].set_ylabel("technique")
    _suptitle(figure, _titled("", dataset, "techniques compared"))
    return figure


# ---- The benchmark ---------------------------------------------------------------------------------

GROWTH = {  # axis: its label, and what the work of a step goes with: its name, and the power of the axis
    "batch size": ("batch size [images]", "the batch size", 1),
    "width": ("width [factor on the channels]", "the width squared", 2),
    "image size": ("image size [pixels a side]", "the pixels", 2),
}


@_styled
def plot_bench(result: Mapping) -> Figure:
    """What the benchmark measured: throughput, peak and share, every pair, and how the time of a step grows.

    result: as `lab.bench.bench` returns it, times in seconds. Bars, cells and points are medians over the
    rounds; whiskers and shaded bands span all rounds.
    """
    figure, axes = plt.subplots(2, 3, figsize=(15, 8.6), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.12)
    plan, host = result["plan"], result["machine"]
    batch = plan["batch_size"]
    training = {name: (plan["batches"] * batch, times) for name, times in result["training"].items()}
    main = result["summary"]
    _bars(axes[0, 0], training, main["conventional_images_per_second"], "{:.1f} x")
    axes[0, 0].set(title=f"training, batches of {batch} images", xlabel="loop", ylabel="speed [images/s]")
    _bars(axes[0, 1], _gflops(result), main["peak_gflops"], "{:.0%}")
    axes[0, 1].set(title=f"share of the peak in {host['dtype']}", xlabel="work", ylabel="speed [GFLOP/s]")
    _pairs(axes[0, 2], result["pairs"])
    axes[0, 2].set_title(f"time of a training step on {batch} images [ms]")
    for ax, (axis, times) in zip(axes[1], result["growth"].items(), strict=True):
        _growth(ax, times, *GROWTH[axis])
    low, high = zip(*(ax.get_ylim() for ax in axes[1]), strict=True)
    for ax in axes[1]:
        ax.set(ylim=(min(low), max(high)), ylabel="time of a training step [ms]")  # one scale for the three
    where = f"{host['processor']}, {host['device']}, {host['threads']} threads, torch {host['torch']}"
    _suptitle(figure, _titled("the benchmark", result["dataset"], where))
    return figure


Work = tuple[float, Sequence[float]]  # its amount, and the seconds that it took in each round


def _gflops(result: Mapping) -> dict[str, Work]:
    """The matrix products, each format at its fastest size, and the training step."""
    works = {}
    for dtype, sizes in result["matmul"].items():
        by_size = [(2e-9 * int(size) ** 3, times) for size, times in sizes.items()]
        works[f"matrix product, {dtype}"] = max(by_size, key=lambda work: work[0] / np.median(work[1]))
    step = result["step"]
    return works | {f"training step, {step['recipe']}": (1e-9 * step["flops"], step["seconds"])}


def _bars(ax: Axes, works: Mapping[str, Work], whole: float, share: str) -> None:
    """A bar of the median speed for each work, with a whisker over all rounds and the share of `whole`."""
    medians = [amount / np.median(times) for amount, times in works.values()]
    ends = [(amount / max(times), amount / min(times)) for amount, times in works.values()]
    span = [(m - low, high - m) for m, (low, high) in zip(medians, ends, strict=True)]
    colour = [FAINT] * (len(medians) - 1) + [TECHNIQUE_COLOURS["standard"]]
    names = [name.replace(", ", ",\n") for name in works]
    bars = ax.bar(names, medians, yerr=np.transpose(span), color=colour, ecolor=INK, capsize=4, width=0.6)
    texts = [f"{m:,.0f}\n{share.format(m / whole)}".replace("%", " %") for m in medians]
    ax.bar_label(bars, texts, padding=4)
    ax.set_ylim(0, 1.25 * max(high for _, high in ends))  # room for the texts
    ax.tick_params(axis="x", length=0)
    ax.yaxis.set_major_formatter("{x:,.0f}")
    ax.grid(axis="y", color=PALE, linewidth=0.8)
    ax.set_axisbelow(True)


def _pairs(ax: Axes, pairs: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    norms, convs = list(pairs), list(next(iter(pairs.values())))
    cells = np.array([[1e3 * np.median(pairs[norm][conv]) for conv in convs] for norm in norms])
    # Logarithmic, so that one slow pair leaves the others their differences.
    scale = LogNorm(cells.min(), max(cells.max(), 1.01 * cells.min()))
    ax.imshow(cells, norm=scale, cmap="Oranges", aspect="auto")
    for row, column in np.ndindex(cells.shape):
        value = cells[row, column]
        colour = "white" if scale(value) > 0.7 else INK
        ax.text(column, row, _number(value), ha="center", va="center", color=colour)
    ax.set_xticks(range(len(convs)), [conv.replace("_", "-\n") for conv in convs])
    ax.set_yticks(range(len(norms)), norms)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set(xlabel="convolution", ylabel="normalization")


def _growth(ax: Axes, times: Mapping[str, Sequence[float]], label: str, work: str, power: int) -> None:
    """Milliseconds against what grows, both logarithmic; dashed, the line of equal speed through the last."""
    x = np.array([float(value) for value in times])
    values = [1e3 * np.asarray(each) for each in times.values()]
    middle = np.array([np.median(each) for each in values])
    colour = TECHNIQUE_COLOURS["standard"]
    low, high = [each.min() for each in values], [each.max() for each in values]
    ax.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
    ax.plot(x, middle, marker="o", color=colour)
    ax.plot(x, middle[-1] * (x / x[-1]) ** power, color=FAINT, linestyle="--", linewidth=1, zorder=1)
    for place, value in zip(x, middle, strict=True):
        near = {"xytext": (-3, 7), "textcoords": "offset points", "ha": "right", "fontsize": 9}
        ax.annotate(_number(value), (place, value), **near)
    ax.set(xscale="log", yscale="log", xlabel=label, title=f"dashed: in proportion to {work}")
    ax.set_xticks(x, list(times))
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.minorticks_off()
    ax.margins(0.12)
    ax.yaxis.set_major_formatter("{x:,.0f}")
    ax.grid(color=PALE, linewidth=0.8)
    ax.set_axisbelow(True)


def _number(value: float) -> str:  # short, for a place where there is little room
    return f"{value:,.0f}" if value >= 9.95 else f"{value:.1f}"


# ---- Schematics ------------------------------------------------------------------------------------

SIDE, SPACE, MAPS = 7, 1.4, 3  # pixels of a map's side, space between two maps, maps (channels) in a row
LEVELS = {"input": 24.0, "between": 12.0, "output": 0.0}  # lower edge of a row of maps
PITCH = MAPS * SIDE + (MAPS - 1) * SPACE + 6  # from one technique to the next
EXAMPLE = 64  # channels in and out, for which the weights are counted

Taps = tuple[tuple[int, int], ...]  # (row, column) of the pixels of a map that are marked
WINDOW: Taps = tuple((row, column) for row in (2, 3, 4) for column in (2, 3, 4))
WIDE: Taps = tuple((row, column) for row in (1, 3, 5) for column in (1, 3, 5))
CENTRE: Taps = ((3, 3),)


class _Step(NamedTuple):
    """One convolution: the taps it reads in maps of one level, and the values it writes in another's."""

    text: str
    start: str  # a level
    taps: Taps
    sources: tuple[int, ...]  # maps
    end: str
    written: Taps
    targets: tuple[int, ...]  # as many as the sources, or one for all


ALL, ONE = (0, 1, 2), (1,)
DENSE, SPLIT = EXAMPLE * EXAMPLE * 9, EXAMPLE * 9 + EXAMPLE * EXAMPLE
SCHEMATICS: tuple[tuple[str, str, int, tuple[_Step, ...]], ...] = (  # technique, formula, weights, steps
    (
        "standard",
        "k²·C·C'",
        DENSE,
        (_Step("k x k, all channels at once", "input", WINDOW, ALL, "output", CENTRE, ONE),),
    ),
    (
        "dilated",
        "k²·C·C'",
        DENSE,
        (_Step("k x k, dilation 2, all channels", "input", WIDE, ALL, "output", CENTRE, ONE),),
    ),
    (
        "depthwise_separable",
        "k²·C + C·C'",
        SPLIT,
        (
            _Step("1. depthwise: k x k, each channel alone", "input", WINDOW, ALL, "between", CENTRE, ALL),
            _Step("2. pointwise: 1 x 1, all channels", "between", CENTRE, ALL, "output", CENTRE, ONE),
        ),
    ),
    (
        "blueprint_separable",
        "C·C' + k²·C'",
        SPLIT,
        (
            _Step("1. pointwise: 1 x 1, all channels", "input", WINDOW, ALL, "between", WINDOW, ONE),
            _Step("2. depthwise: k x k, each channel alone", "between", WINDOW, ONE, "output", CENTRE, ONE),
        ),
    ),
)


@_styled
def plot_techniques(*, ax: Axes | None = None) -> Figure:
    """A schematic of the techniques: the taps, pixels by channels, that one output value reads.

    From left to right the standard, dilated (dilation 2), depthwise-separable and blueprint-separable
    convolution with a kernel of k = 3 pixels; below each its number of weights from C to C' channels.
    """
    ax = _new_axes(ax, 14, 6.2)
    for number, (technique, formula, weights, steps) in enumerate(SCHEMATICS):
        left = number * PITCH
        middle = left + (PITCH - 6) / 2
        colour = TECHNIQUE_COLOURS[technique]
        for level in {"input", "output"} | {level for step in steps for level in (step.start, step.end)}:
            for place in range(MAPS):
                _draw_map(ax, *_corner(left, level, place))
        for step in steps:
            for source in step.sources:
                target = source if len(step.targets) == len(step.sources) else step.targets[0]
                _draw_funnel(ax, left, step, source, target, colour)
        for step in steps:
            for level, taps, places in (
                (step.start, step.taps, step.sources),
                (step.end, step.written, step.targets),
            ):
                for place in places:
                    _draw_taps(ax, *_corner(left, level, place), taps, colour)
            height = (LEVELS[step.start] + LEVELS[step.end] + SIDE) / 2
            box = {"facecolor": "white", "edgecolor": "none", "boxstyle": "round,pad=0.2"}
            ax.text(middle, height, step.text, ha="center", va="center", fontsize=9, bbox=box)
        name = technique.replace("_", "-")
        top = LEVELS["input"] + SIDE
        ax.text(middle, top + 1.6, name, ha="center", fontsize=13, fontweight="bold", color=_readable(colour))
        ax.text(middle, -2.8, formula, ha="center", fontsize=14, color=INK)
        example = f"{weights:,} weights for k = 3, C = C' = {EXAMPLE}"
        ax.text(middle, -4.8, example, ha="center", fontsize=9, color=FAINT)
    for text, level in (("input\nC channels", "input"), ("output\nC' channels", "output")):
        ax.text(-1.5, LEVELS[level] + SIDE / 2, text, ha="right", va="center", fontsize=10)
    ax.set(xlim=(-9, len(SCHEMATICS) * PITCH - 4), ylim=(-6, LEVELS["input"] + SIDE + 4), aspect="equal")
    ax.axis("off")
    ax.set_title("What one output value reads: the marked pixels of the maps, one map a channel", fontsize=13)
    return ax.get_figure(root=True)


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
    """A pale shape from the lower edge of the taps to the upper edge of what is written."""

    def edge(level: str, place: int, taps: Taps, *, lower: bool) -> tuple[float, float, float]:
        x, y = _corner(left, level, place)
        rows, columns = [row for row, _ in taps], [column for _, column in taps]
        height = y + SIDE - (max(rows) + 1 if lower else min(rows))
        return x + min(columns), x + max(columns) + 1, height

    x0, x1, y0 = edge(step.start, source, step.taps, lower=True)
    x2, x3, y1 = edge(step.end, target, step.written, lower=False)
    shape = [(x0, y0), (x1, y0), (x3, y1), (x2, y1)]
    ax.add_patch(Polygon(shape, facecolor=colour, edgecolor="none", alpha=0.22, zorder=2))


CUBE = (4, 6, 5)  # images N, channels C, and pixels H·W drawn as few
GROUPS = 2
NORMALIZATIONS = (  # name, marked images and channels, axes of one mean, how many means
    ("batch", 4, 1, "N, H, W", "C"),
    ("layer", 1, 6, "C, H, W", "N"),
    ("group", 1, 6 // GROUPS, "C/G, H, W", "N·G"),
    ("instance", 1, 1, "H, W", "N·C"),
)


@_styled
def plot_normalizations() -> Figure:
    """A schematic of batch, layer, group and instance normalization on a batch (N, C, H·W).

    The coloured cells share one mean and one variance; below each panel the axes over which these are
    taken, and how many of them there are (G groups, here 2).

    Source: after figure 2 of Wu and He, "Group Normalization", arXiv 1803.08494.
    """
    figure, axes = plt.subplots(1, len(NORMALIZATIONS), figsize=(13, 4.2), layout="constrained")
    images, channels, pixels = CUBE
    depth = np.array([0.55, 0.45])  # of one image, drawn to the back

    for ax, (name, marked_images, marked_channels, over, means) in zip(axes, NORMALIZATIONS, strict=True):
        colour = NORM_COLOURS[name]
        # Each visible face: its origin, its two edges in cells, and how many cells, from the end, are marked.
        right, up = np.array([1.0, 0.0]), np.array([0.0, 1.0])
        for origin, first, second, shape, marked in (
            ((0, 0), right, up, (channels, pixels), (marked_channels, pixels)),
            ((0, pixels), right, depth, (channels, images), (marked_channels, marked_images)),
            ((channels, 0), depth, up, (images, pixels), (marked_images, pixels)),
        ):
            for i, j in np.ndindex(*shape):
                # Channels are marked from the right, images from the front, pixels all.
                across = i >= shape[0] - marked[0] if first is right else i < marked[0]
                inside = across and (j < marked[1])
                corner = np.array(origin) + i * first + j * second
                cell = [corner, corner + first, corner + first + second, corner + second]
                face, edge = (colour, "white") if inside else ("white", INK)
                ax.add_patch(Polygon(cell, facecolor=face, edgecolor=edge, linewidth=0.7))
        back = images * depth
        ax.text(channels / 2, -0.35, "C [channels]", ha="center", va="top")
        ax.text(-0.35, pixels / 2, "H·W [pixels]", ha="right", va="center", rotation=90)
        slope = math.degrees(math.atan2(depth[1], depth[0]))
        ax.text(
            *(np.array([channels, 0]) + back / 2 + (0.3, -0.25)),
            "N [images]",
            ha="center",
            va="center",
            rotation=slope,
            rotation_mode="anchor",
        )
        ax.text(
            (channels + back[0]) / 2,
            -1.5,
            f"one mean and variance over {over}\n{means} of each",
            ha="center",
            va="top",
            linespacing=1.5,
        )
        ax.set_title(name, fontsize=13, fontweight="bold", color=_readable(colour))
        ax.set(xlim=(-1.2, channels + back[0] + 0.6), ylim=(-3.1, pixels + back[1] + 0.3), aspect="equal")
        ax.axis("off")
    _suptitle(figure, "Normalizations: the coloured cells share one mean and one variance")
    return figure


# ---- Files -----------------------------------------------------------------------------------------


def save(figure_or_axes: Figure | Axes, path: str | Path, *, dpi: float = 120) -> Path:
    """Write a figure, or the one that holds the Axes, as PNG, cut to its content; returns the path.

    The folder is made. Equal figures give equal files: nothing of the time or the software is written.
    dpi: pixels an inch. Raises ValueError for a path that does not end in .png.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"path={str(path)!r}: expected a name that ends in .png")
    figure = figure_or_axes if isinstance(figure_or_axes, Figure) else figure_or_axes.get_figure(root=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        figure.savefig(
            path, format="png", dpi=dpi, bbox_inches="tight", facecolor="white", metadata={"Software": None}
        )
    return path
