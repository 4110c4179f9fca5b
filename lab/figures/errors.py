"""Errors: misclassified images and the confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lab.checks import as_integer
from lab.figures.common import INK, WRONG, figure_of, new_axes, pictures, styled, suptitle, titled
from lab.figures.images import image_grid
from lab.metrics import Array, as_array, confusion_matrix, hard_labels


@styled
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
    """Show misclassified images, the most confidently wrong first, each with its true and predicted class.

    images: as shown, uint8 or float in [0, 1], (N, 3, H, W). labels: class numbers (N,) or probabilities
    (N, classes), which count as their argmax. logits: (N, classes). count: the most images to show. The
    confidence is the softmax of the predicted class, in percent. If every image is classified correctly,
    the figure says so. Raises ValueError for other shapes, types or ranges.
    """
    shown = pictures(images)
    true = hard_labels(labels, len(classes), len(shown))
    scores = _checked_logits(logits, (len(shown), len(classes)))
    as_integer("count", count, 1)
    as_integer("columns", columns, 1)
    predicted = scores.argmax(1)
    # The softmax's largest entry is 1 / (1 + rest); the rest keeps the order even if 1 + rest rounds to 1.
    rest = np.exp(np.sort(scores - scores.max(1, keepdims=True), axis=1)[:, :-1]).sum(1)
    wrong = np.flatnonzero(predicted != true)
    first = wrong[np.argsort(rest[wrong], kind="stable")][:count].tolist()
    found = f"{len(wrong):,} of {len(shown):,} images misclassified"
    if not first:
        figure, ax = plt.subplots(figsize=(7, 1.2), layout="constrained")
        ax.axis("off")
        ax.text(0.5, 0.5, "Every image is classified correctly.", ha="center", va="center", fontsize=12)
        suptitle(figure, titled(title, dataset, found))
        return figure
    figure, axes = image_grid(len(first), columns, lines=3)
    for ax, index in zip(axes, first, strict=True):
        ax.imshow(shown[index], interpolation="nearest")
        ax.set_title(f"true: {classes[int(true[index])]}", fontsize=8, pad=3)
        text = f"pred.: {classes[int(predicted[index])]}\n{100 / (1 + rest[index]):.1f} %"
        ax.set_xlabel(text, fontsize=8, labelpad=2, color=WRONG)
    chosen = "all, by confidence" if len(first) == len(wrong) else f"the {len(first)} most confident"
    if len(first) == len(shown):  # somebody has chosen them
        found, chosen = f"{len(shown):,} misclassified images", "by confidence"
    suptitle(figure, titled(title, dataset, f"{found}; shown: {chosen}"))
    return figure


def _checked_logits(logits: Array, shape: tuple[int, int]) -> np.ndarray:
    scores = as_array(logits, "logits").astype(np.float64)
    if scores.shape != shape:
        raise ValueError(f"logits of shape {scores.shape}: expected {shape}, (images, classes)")
    if not np.isfinite(scores).all():
        raise ValueError("logits contain NaN or infinity: expected finite numbers")
    return scores


@styled
def plot_confusion(
    labels: Array,
    predictions: Array,
    classes: Sequence[str],
    *,
    dataset: str,
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Draw the confusion matrix with its counts; errors are coloured by their share of the true class.

    labels: class numbers (N,), indices of `classes`, or probabilities (N, classes), which count as their
    argmax. predictions: class numbers (N,). Rows are true classes, columns predicted ones. The diagonal has
    its own colour scale, because it would drown the errors. Raises ValueError for other shapes.
    """
    counts = confusion_matrix(labels, predictions, len(classes))
    share = 100 * counts / counts.sum(1, keepdims=True).clip(1)
    diagonal = np.eye(len(classes), dtype=bool)
    most = max(float(share[~diagonal].max(initial=0)), 1.0)
    ax = new_axes(ax, 8.2, 7)
    # A wider range than the shares have keeps the diagonal pale.
    hits = np.ma.masked_array(share, ~diagonal)
    ax.imshow(hits, cmap="Blues", vmin=0, vmax=250, interpolation="nearest")
    errors = np.ma.masked_array(share, diagonal)
    image = ax.imshow(errors, cmap="Oranges", vmin=0, vmax=most, interpolation="nearest")
    _write_counts(ax, counts, dark=(share > 0.6 * most) & ~diagonal)
    ticks = range(len(classes))
    ax.set_xticks(ticks, classes, rotation=45, ha="right", rotation_mode="anchor")
    ax.set_yticks(ticks, classes)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_xticks(np.arange(0.5, len(classes) - 1), minor=True)
    ax.set_yticks(np.arange(0.5, len(classes) - 1), minor=True)
    ax.grid(which="minor", color="white", linewidth=1.5)
    ax.tick_params(which="minor", length=0)
    bar = figure_of(ax).colorbar(image, ax=ax, shrink=0.7, pad=0.02)
    bar.set_label("errors: share of the true class [%]")
    bar.outline.set_visible(False)
    right = f"{np.trace(counts) / counts.sum():.2%} of {counts.sum():,} images right".replace("%", " %")
    ax.set(xlabel="predicted class", ylabel="true class")
    ax.set_title(titled(title, dataset, right), pad=10)
    return ax


def _write_counts(ax: Axes, counts: np.ndarray, dark: np.ndarray) -> None:
    """Write each count into its cell, in white if the cell is dark."""
    for row, column in np.ndindex(counts.shape):
        value = counts[row, column]
        ax.text(
            column,
            row,
            f"{value}",
            ha="center",
            va="center",
            fontsize=9,
            fontweight="bold" if row == column else "normal",
            color="white" if dark[row, column] else INK if value else "#b0b0b0",
        )
