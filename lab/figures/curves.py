"""Loss and accuracy by epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from lab.figures.common import FAINT, PALE, colours, markers, styled, suptitle, titled
from lab.figures.labels import label_lines

if TYPE_CHECKING:
    from lab.records import History

MARKED = 12  # markers of a line at most


@styled
def plot_curves(histories: Mapping[str, History], *, dataset: str | None = None) -> Figure:
    """Plot loss and accuracy by epoch, in training and in evaluation: four panels, a line for each model.

    histories: from a model's name to its History. All must be evaluated on the same part of the data, test
    or validation, and the panels show that part. Its lists may be empty, for a run that was not evaluated.
    dataset: a name for the title; None takes the one of the histories. Losses are mean cross-entropies in
    nats; accuracies are shown in percent. Raises ValueError for no histories, for a history without epochs
    or with lists of different lengths, and for histories that differ in their data set or in the part.
    """
    part, measured_on = _common_data(histories)
    panels = (  # attribute, title, vertical axis, factor
        ("train_loss", "training loss", "cross-entropy [nats]", 1),
        (f"{part}_loss", f"{part} loss", "cross-entropy [nats]", 1),
        ("train_accuracy", "training accuracy", "accuracy [%]", 100),
        (f"{part}_accuracy", f"{part} accuracy", "accuracy [%]", 100),
    )
    for name, history in histories.items():
        lengths = {attribute: len(getattr(history, attribute)) for attribute, *_ in panels}
        epochs = lengths["train_loss"]
        if not epochs or any(n != epochs and (n or a.startswith("train_")) for a, n in lengths.items()):
            raise ValueError(f"history {name!r} has lists of lengths {lengths}: expected one entry per epoch")
    layout = ConstrainedLayoutEngine(wspace=0.04, hspace=0.05)
    figure, axes = plt.subplots(2, 2, figsize=(12, 7.4), layout=layout)
    most = max(len(history.train_loss) for history in histories.values())
    for ax, (attribute, title, label, factor) in zip(axes.flat, panels, strict=True):
        lists = {name: getattr(history, attribute) for name, history in histories.items()}
        _draw_lines(ax, {name: factor * np.asarray(values, float) for name, values in lists.items()}, most)
        ax.set(title=title, xlabel="epoch", ylabel=label)
    suptitle(figure, titled("", dataset or measured_on, "loss and accuracy by epoch"))
    figure.draw_without_rendering()  # the layout gives the axes their height, which the labels need
    for ax in axes.flat:
        label_lines(ax)
    return figure


def _common_data(histories: Mapping[str, History]) -> tuple[str, str]:
    """Return the part of the data that all histories were evaluated on, and the name of their data set."""
    if not isinstance(histories, Mapping) or not histories:
        raise ValueError(f"histories={histories!r}: expected a dictionary from names to Histories, not empty")
    parts = {name: history.evaluated_on for name, history in histories.items()}
    if len(set(parts.values())) > 1:
        each = ", ".join(f"{name!r} on {part}" for name, part in parts.items())
        raise ValueError(f"histories are evaluated on different images ({each}): plot each kind separately")
    datasets = sorted({history.dataset for history in histories.values()})
    if len(datasets) > 1:
        raise ValueError(f"histories of different data sets {datasets}: expected one data set in a figure")
    return next(iter(parts.values())), datasets[0]


def _draw_lines(ax: Axes, curves: Mapping[str, np.ndarray], most: int) -> None:
    """Draw a line for each curve that is not empty; `most` epochs set the range of the horizontal axis."""
    palette, marks = colours(curves), markers(curves)
    for name, values in curves.items():
        if len(values):
            epochs = np.arange(1, len(values) + 1)
            every = math.ceil(len(values) / MARKED)
            look = {"color": palette[name], "marker": marks[name], "markersize": 6, "markevery": every}
            ax.plot(epochs, values, label=name, **look)
    margin = 0.03 * (most - 1) or 0.5
    ax.set_xlim(1 - margin, most + margin)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    ax.grid(color=PALE, linewidth=0.8)
    ax.set_axisbelow(True)
    if not ax.lines:
        ax.set_yticks([])
        ax.text(0.5, 0.5, "not measured", transform=ax.transAxes, ha="center", color=FAINT)
