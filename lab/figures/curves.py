"""Loss and accuracy by epoch, and the loss by learning rate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from lab.checks import as_number
from lab.figures.common import (
    FAINT,
    PALE,
    colours,
    figure_of,
    markers,
    new_axes,
    styled,
    suptitle,
    titled,
)
from lab.figures.labels import label_lines

if TYPE_CHECKING:
    from lab.records import History

MARKED = 12  # markers of a line at most
SHOWN = 1.3  # times the largest first loss of a range test; higher ones are not shown


@styled
def plot_curves(histories: Mapping[str, History], *, dataset: str | None = None) -> Figure:
    """Plot loss and accuracy by epoch, in training and in evaluation: four panels, a line for each model.

    The two panels of losses share a scale, and so do those of accuracies.

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
    figure, axes = plt.subplots(2, 2, figsize=(12, 7.4), sharey="row", layout=layout)
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


@styled
def plot_range_test(
    results: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    chosen: Mapping[str, float] | None = None,
    *,
    dataset: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Plot the loss against the learning rate, on a logarithmic axis: a line for each range test.

    results: from a name to what `range_test` returned for it, the rates and the smoothed losses in nats.
    chosen: from such a name to the rate that was chosen for it, which is marked. dataset: for the title.
    Losses far above the one at the lowest rates, when nothing is learned, are left out (SHOWN): they would
    make all others look alike. Raises ValueError for no results, for lists that are empty or of different
    lengths or hold NaN, for rates that do not grow from above 0, and for a chosen rate that is on no line.
    """
    if not isinstance(results, Mapping) or not results:
        raise ValueError(
            f"results={results!r}: expected a dictionary from names to (rates, losses), not empty"
        )
    lines = {name: _checked_line(name, *pair) for name, pair in results.items()}
    chosen = {name: _checked_rate(name, lr, lines) for name, lr in (chosen or {}).items()}
    top = SHOWN * max(losses[0] for _, losses in lines.values())
    palette, marks = colours(lines), markers(lines)
    ax = new_axes(ax, 8, 4.6)
    for name, line in lines.items():
        lrs, losses = _cut(*line, top)
        every = max(1, len(lrs) // 8)
        style = {"marker": marks[name], "markevery": every, "markersize": 4.5}
        ax.plot(lrs, losses, color=palette[name], label=name, **style)
    for name, lr in chosen.items():
        lrs, losses = lines[name]
        loss = min(np.interp(np.log(lr), np.log(lrs), losses), top)
        ax.scatter([lr], [loss], s=150, marker="*", color=palette[name], edgecolor="black", zorder=3)
    if chosen:
        key = ax.scatter([], [], s=150, marker="*", color="white", edgecolor="black")
        ax.legend([key], ["chosen rate"], loc="lower left", frameon=False)
    ax.set(xscale="log", xlabel="learning rate", ylabel="smoothed training loss [nats]")
    if any((losses > top).any() for _, losses in lines.values()):
        ax.set_ylim(top=top)
    ax.set_title(titled("", dataset, "loss while the learning rate grows"))
    ax.grid(color=PALE, linewidth=0.8)
    ax.set_axisbelow(True)
    figure_of(ax).draw_without_rendering()  # the layout gives the axes their height, which the labels need
    label_lines(ax)
    return ax


def _checked_line(name: str, rates, losses) -> tuple[np.ndarray, np.ndarray]:
    lrs, values = np.asarray(rates, float), np.asarray(losses, float)
    if lrs.ndim != 1 or lrs.shape != values.shape or not len(lrs):
        raise ValueError(
            f"results[{name!r}] has rates and losses of shapes {lrs.shape} and {values.shape}: expected two "
            "lists of one length, at least 1"
        )
    if not (lrs[0] > 0 and (np.diff(lrs) > 0).all()):
        raise ValueError(f"results[{name!r}] has rates that do not grow from above 0")
    if not np.isfinite([lrs, values]).all():
        raise ValueError(f"results[{name!r}] has NaN or infinite numbers, which range_test never returns")
    return lrs, values


def _checked_rate(name: str, lr: float, lines: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> float:
    if name not in lines:
        raise ValueError(f"chosen has {name!r}: expected names of lines, {', '.join(map(repr, lines))}")
    lrs, _ = lines[name]
    return as_number(f"chosen[{name!r}]", lr, lrs[0], lrs[-1])


def _cut(lrs: np.ndarray, losses: np.ndarray, top: float) -> tuple[np.ndarray, np.ndarray]:
    """The line up to where it leaves the panel at the top for good."""
    last = int(np.flatnonzero(losses <= top)[-1])  # there is one: the first loss is below the top
    if last == len(lrs) - 1:
        return lrs, losses
    share = (top - losses[last]) / (losses[last + 1] - losses[last])
    end = lrs[last] * (lrs[last + 1] / lrs[last]) ** share
    return np.append(lrs[: last + 1], end), np.append(losses[: last + 1], top)


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
        ax.tick_params(left=False, labelleft=False)
        ax.text(0.5, 0.5, "not measured", transform=ax.transAxes, ha="center", color=FAINT)
