"""A study of techniques: accuracy against its cost, grids, bands over seeds, differences and changes.

Accuracies and differences are shares, in [0, 1] and [-1, 1], and shown in percent and in points. nan stands
for what was not measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from lab.checks import as_integer, as_number
from lab.figures.common import (
    FAINT,
    INK,
    NEUTRAL,
    NORM_COLOURS,
    PALE,
    TECHNIQUE_COLOURS,
    colours,
    figure_of,
    luminance,
    markers,
    new_axes,
    styled,
    suptitle,
    technique_style,
    titled,
    wrapped,
)
from lab.figures.labels import Beside, label_lines, label_points
from lab.metrics import Array, as_array

WIDTH = 10.0  # inches of each figure
MARKED = 12  # markers of a line at most
MOST_TICKS = 6  # of a logarithmic axis
LINES = ("-", "--", "-.", (0, (1, 1)), (0, (6, 1, 1, 1, 1, 1)))  # styles, in turn

# ---- Costs -----------------------------------------------------------------------------------------

COSTS = (  # key, horizontal axis
    ("parameters", "parameters [number]"),
    ("macs", "MACs [number per image]"),
    ("microseconds", "training time [µs per image]"),
)


@styled
def plot_costs(points: Sequence[Mapping[str, Any]], *, dataset: str, title: str = "") -> Figure:
    """Show accuracy against parameters, multiply-accumulates and training time, each on a logarithmic axis.

    points: each with "name", "technique", "accuracy" and "half" (the half-width of its 95 % interval), both
    in [0, 1], "parameters", "macs" (per image), "microseconds" (of training per image) and, if it is to be
    shown, "norm". half and microseconds may be nan, and microseconds may be missing; a panel without points
    is left out. A technique has one colour and one marker; one that is not known has neutral ones. Beside
    each point is its name, or, if norms tell the points of a technique apart, its norm. A legend names the
    techniques then, and if points share a name. Raises ValueError for no points, for a missing key, and for
    a number out of its range.
    """
    checked = _checked_points(points)
    drawn = [(key, label) for key, label in COSTS if any(math.isfinite(point[key]) for point in checked)]
    figure, panels = plt.subplots(
        1, len(drawn), figsize=(WIDTH, 4.8), sharey=True, squeeze=False, layout="constrained"
    )
    shown = _label_key(checked)
    for ax, (key, label) in zip(panels.flat, drawn, strict=True):
        _draw_points(ax, checked, key)
        ax.set_xlabel(label)
    panels.flat[0].set_ylabel("test accuracy [%]")
    lows, highs = zip(*(_ends(point) for point in checked), strict=True)
    room = 0.12 * (max(highs) - min(lows)) or 1.0  # for labels
    panels.flat[0].set_ylim(min(lows) - room, max(highs) + room)
    if shown == "norm" or len({point["name"] for point in checked}) < len(checked):
        _technique_legend(figure, [point["technique"] for point in checked])
    suptitle(figure, titled(title, dataset, "test accuracy and its cost, with 95 % intervals"))
    figure.draw_without_rendering()  # the layout gives the axes their size, which the labels need
    for ax, (key, _) in zip(panels.flat, drawn, strict=True):
        _label_panel(ax, checked, shown, key)
    return figure


def _checked_points(points: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    checked = []
    keys = ("name", "technique", "accuracy", "half", "parameters", "macs")
    for number, point in enumerate(_rows("points", points, keys)):
        known = {key: str(point[key]) for key in ("name", "technique")}
        known["norm"] = str(point.get("norm") or "")
        where = f"points[{number}]"
        accuracy = as_number(f"{where}['accuracy']", point["accuracy"], 0, 1)
        half = _or_nan(f"{where}['half']", point["half"], 0, 1)
        costs = {
            key: as_number(f"{where}[{key!r}]", point[key], 0, above=True) for key in ("parameters", "macs")
        }
        time = _or_nan(f"{where}['microseconds']", point.get("microseconds", math.nan), 0, above=True)
        checked.append(known | costs | {"accuracy": accuracy, "half": half, "microseconds": time})
    return checked


def _ends(point: Mapping[str, Any]) -> tuple[float, float]:
    """Return the ends of a point's interval, in percent."""
    half = 0 if math.isnan(point["half"]) else point["half"]
    return 100 * (point["accuracy"] - half), 100 * (point["accuracy"] + half)


def _label_key(points: Sequence[Mapping[str, Any]]) -> str:
    """Choose the labels: "norm" if the normalizations tell the points of a technique apart, or "name"."""
    pairs = {(point["technique"], point["norm"]) for point in points}
    techniques = {point["technique"] for point in points}
    by_norm = all(point["norm"] for point in points) and len(pairs) == len(points) > len(techniques)
    return "norm" if by_norm else "name"


def _draw_points(ax: Axes, points: Sequence[Mapping[str, Any]], key: str) -> None:
    """Draw a panel of the points that have this cost, and say which have not."""
    known = [point for point in points if math.isfinite(point[key])]
    for point in known:
        colour, marker = technique_style(point["technique"])
        error = None if math.isnan(point["half"]) else 100 * point["half"]
        place = (point[key], 100 * point["accuracy"])
        ax.errorbar(*place, yerr=error, linestyle="none", color=colour, capsize=3)
        look = {"marker": marker, "markersize": 7, "markeredgecolor": "white", "markeredgewidth": 0.6}
        ax.plot(*place, linestyle="none", color=colour, **look)
    costs = [point[key] for point in known]
    low, high = min(costs) / 1.5, max(costs) * 1.5
    ticks = _log_ticks(low, high)
    ax.set(xscale="log", xlim=(low, high))
    ax.set_xticks(ticks, [_plain(tick) for tick in ticks])
    ax.minorticks_off()
    ax.grid(color=PALE, linewidth=0.8)
    ax.set_axisbelow(True)
    if absent := [point["name"] for point in points if not math.isfinite(point[key])]:
        ax.set_title(wrapped("not measured: " + ", ".join(absent), 40), fontsize=8, color=FAINT)


def _label_panel(ax: Axes, points: Sequence[Mapping[str, Any]], shown: str, key: str) -> None:
    labels = []
    for point in points:
        if math.isfinite(point[key]):
            half = 0 if math.isnan(point["half"]) else 100 * point["half"]
            colour, _ = technique_style(point["technique"])
            labels.append(Beside(point[shown], colour, (point[key], 100 * point["accuracy"]), half))
    label_points(ax, labels)


def _technique_legend(figure: Figure, techniques: Sequence[str]) -> None:
    handles = []
    for name in dict.fromkeys(techniques):
        colour, marker = technique_style(name)
        look = {"color": colour, "marker": marker, "markersize": 8, "linestyle": "none"}
        handles.append(Line2D([], [], label=name, **look))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 5), frameon=False)


def _log_ticks(low: float, high: float) -> list[float]:
    """Choose plain numbers from `low` to `high`: three or more, the fewest that the steps below give.

    Where these are more than MOST_TICKS, only every second, third and so on.
    """
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7), np.arange(1, 10, 0.5).tolist()):
        ticks = [step * 10.0**decade for decade in decades for step in steps]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) >= 3:
            break
    return ticks[:: math.ceil(len(ticks) / MOST_TICKS)]


def _plain(value: float) -> str:
    """Write a number of an axis in few characters: 200, 50k, 0.5M, 2G."""
    for least, factor, letter in ((1e9, 1e9, "G"), (1e5, 1e6, "M"), (1e3, 1e3, "k")):
        if value >= least * (1 - 1e-9):
            return f"{value / factor:g}{letter}"
    return f"{value:g}"


# ---- The frontier ----------------------------------------------------------------------------------


OURS = ("ours", TECHNIQUE_COLOURS["mixed"], "s")  # name, colour, marker
OTHERS = ("others", TECHNIQUE_COLOURS["standard"], "o")


@styled
def plot_frontier(
    points: Sequence[Mapping[str, Any]], *, dataset: str, title: str = "", ax: Axes | None = None
) -> Axes:
    """Draw accuracy against parameters, on a logarithmic axis: our networks, and those of others.

    points: each with "name", "parameters", "accuracy" in [0, 1], and "ours", whether it is one of ours; it
    may have "half", the half-width of the accuracy's interval, and "on_test", whether anything was chosen on
    the test images: then its marker is hollow. Raises ValueError for no points, for a missing key, and for a
    number out of its range.
    """
    ax = new_axes(ax, WIDTH, 5.6)
    labels, seen = [], []
    for number, point in enumerate(_rows("points", points, ("name", "parameters", "accuracy", "ours"))):
        where = f"points[{number}]"
        place = (
            as_number(f"{where}['parameters']", point["parameters"], 0, above=True),
            100 * as_number(f"{where}['accuracy']", point["accuracy"], 0, 1),
        )
        half = 100 * _or_nan(f"{where}['half']", point.get("half", math.nan), 0, 1)
        kind, colour, marker = OURS if point["ours"] else OTHERS
        hollow = bool(point.get("on_test"))
        error = None if math.isnan(half) else half
        ax.errorbar(*place, yerr=error, linestyle="none", color=colour, capsize=3)
        face = "white" if hollow else colour
        look = {"color": colour, "marker": marker, "markersize": 8, "markerfacecolor": face}
        ax.plot(*place, linestyle="none", **look)
        seen.append((f"{kind}, chosen on the test images" if hollow else kind, look))
        labels.append(Beside(str(point["name"]), colour, place, 0 if error is None else half))
    costs = [label.place[0] for label in labels]
    low, high = min(costs) / 1.4, max(costs) * 1.4
    ticks = _log_ticks(low, high)
    ax.set(xscale="log", xlim=(low, high), xlabel="parameters [number]", ylabel="test accuracy [%]")
    ax.set_xticks(ticks, [_plain(tick) for tick in ticks])
    ax.minorticks_off()
    ax.margins(y=0.08)
    ax.grid(color=PALE, linewidth=0.8)
    ax.set_axisbelow(True)
    handles = [Line2D([], [], label=kind, linestyle="none", **look) for kind, look in dict(seen).items()]
    ax.legend(handles=handles, loc="lower right", frameon=False)
    _title(ax, title, dataset, "test accuracy, one view, against size")
    figure_of(ax).draw_without_rendering()  # the layout gives the axes their size, which the labels need
    label_points(ax, labels)
    return ax


# ---- Grid ------------------------------------------------------------------------------------------


@styled
def plot_grid(
    values: Array,
    halves: Array,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    notes: Sequence[Sequence[str]] | None = None,
    dataset: str,
    title: str = "",
    label: str = "test accuracy [%]",
    xlabel: str | None = None,
    ylabel: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw a heat map of accuracies: in each cell its accuracy, half-width and note.

    values: (rows, columns), in [0, 1]; nan where nothing was measured, which is a cell with a dash. halves:
    (rows, columns), the half-widths of their 95 % intervals, or nan. rows, columns: names. notes: a text for
    each cell, such as its learning rate. label: of the colours. xlabel, ylabel: what columns and rows are;
    None says so for techniques and normalizations. Raises ValueError for other shapes and ranges, and if all
    values are nan.
    """
    rows, columns = list(map(str, rows)), list(map(str, columns))
    shape = (len(rows), len(columns))
    if not all(shape):
        raise ValueError(f"{shape[0]} rows and {shape[1]} columns: expected at least one of each")
    accuracies = 100 * _shares("values", values, shape, 0, missing=True)
    widths = 100 * _shares("halves", halves, shape, 0, missing=True)
    if np.isnan(accuracies).all():
        raise ValueError("values are all nan: expected at least one accuracy")
    if notes is not None and [len(row) for row in notes] != [shape[1]] * shape[0]:
        raise ValueError(f"notes have rows of lengths {[len(row) for row in notes]}: expected {shape}")
    ax = new_axes(ax, min(2.6 + 1.4 * shape[1], WIDTH), 1.9 + 0.62 * shape[0])
    low, high = np.nanmin(accuracies), np.nanmax(accuracies)
    scale = Normalize(low, max(high, low + 0.1))
    image = ax.imshow(np.ma.masked_invalid(accuracies), cmap="cividis", norm=scale, aspect="auto")
    shades = image.to_rgba(accuracies)  # (rows, columns, 4)
    ax.set_facecolor(PALE)  # of the cells without a value
    for row, column in np.ndindex(shape):
        value, half = float(accuracies[row, column]), float(widths[row, column])
        note = "" if notes is None else str(notes[row][column])
        dark = not math.isnan(value) and luminance(tuple(shades[row, column])) < 0.183
        _write_cell(ax, (column, row), _cell_text(value, half), note, "white" if dark else INK)
    _name_grid(ax, rows, columns)
    ax.set_xlabel(_kind(columns) if xlabel is None else xlabel)
    ax.set_ylabel(_kind(rows) if ylabel is None else ylabel)
    bar = figure_of(ax).colorbar(image, ax=ax, pad=0.02, aspect=30)
    bar.set_label(label)
    bar.outline.set_visible(False)
    _title(ax, title, dataset, "mean ± half-width of the 95 % interval")
    return ax


def _cell_text(value: float, half: float) -> str:
    if math.isnan(value):
        return "\N{EN DASH}"
    return f"{value:.1f}" if math.isnan(half) else f"{value:.1f} ± {half:.1f}"


def _write_cell(ax: Axes, place: tuple[int, int], text: str, note: str, colour: str) -> None:
    """Write the text into the cell, in its middle or above the note."""
    lines = [(text, 10, 1 if note else 0)] + [(note, 8, -8)] * bool(note)
    for line, size, up in lines:
        look = {"fontsize": size, "color": colour, "ha": "center", "va": "bottom" if up == 1 else "center"}
        ax.annotate(line, place, (0, up), textcoords="offset points", **look)


def _name_grid(ax: Axes, rows: Sequence[str], columns: Sequence[str]) -> None:
    ax.set_xticks(range(len(columns)), [wrapped(name, 14) for name in columns])
    ax.set_yticks(range(len(rows)), [wrapped(name, 24) for name in rows])
    ax.set_xticks(np.arange(0.5, len(columns) - 1), minor=True)
    ax.set_yticks(np.arange(0.5, len(rows) - 1), minor=True)
    ax.grid(which="minor", color="white", linewidth=2)
    ax.tick_params(which="both", length=0)
    ax.spines[:].set_visible(False)


def _kind(names: Sequence[str]) -> str:
    """Say what these are, if all are techniques or all are normalizations."""
    kinds = {"technique": TECHNIQUE_COLOURS, "normalization": NORM_COLOURS}
    return next((kind for kind, known in kinds.items() if known.keys() >= set(names)), "")


# ---- Bands -----------------------------------------------------------------------------------------


@styled
def plot_bands(
    curves: Mapping[str, Array],
    *,
    dataset: str,
    title: str = "",
    ylabel: str = "test accuracy [%]",
    ax: Axes | None = None,
) -> Axes:
    """Draw accuracy by epoch: a line of the means over seeds, and a band from the lowest to the highest seed.

    curves: from a name to the accuracies, (seeds, epochs), in [0, 1]. Each name has a colour, a marker and a
    line style, and is written at the end of its line. Raises ValueError for no curves, and for other shapes
    and ranges.
    """
    shares = {}
    for name, values in _named("curves", curves).items():
        shares[name] = 100 * _shares(f"curves[{name!r}]", values, ("seeds", "epochs"), 0)
    ax = new_axes(ax, WIDTH, 5.2)
    palette, marks = colours(shares), markers(shares)
    for number, (name, values) in enumerate(shares.items()):
        epochs = np.arange(1, values.shape[1] + 1)
        look: dict[str, Any] = {"color": palette[name], "linestyle": LINES[number % len(LINES)]}
        look |= {"marker": marks[name], "markersize": 6, "markevery": math.ceil(len(epochs) / MARKED)}
        ax.fill_between(epochs, values.min(0), values.max(0), color=palette[name], alpha=0.18, linewidth=0)
        ax.plot(epochs, values.mean(0), label=name, **look)
    most = max(values.shape[1] for values in shares.values())
    margin = 0.03 * (most - 1) or 0.5
    ax.set(xlim=(1 - margin, most + margin), xlabel="epoch", ylabel=ylabel)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    ax.grid(color=PALE, linewidth=0.8)
    ax.set_axisbelow(True)
    _title(ax, title, dataset, "means and range over seeds")
    figure_of(ax).draw_without_rendering()  # the layout gives the axes their height, which the labels need
    label_lines(ax)
    return ax


# ---- Differences -----------------------------------------------------------------------------------


@styled
def plot_differences(
    rows: Sequence[Mapping[str, Any]],
    *,
    dataset: str,
    title: str = "",
    unit: str = "points of test accuracy",
    ax: Axes | None = None,
) -> Axes:
    """Draw a forest plot: a row for each difference, with its interval, and its figures at the right.

    rows: from top to bottom, each with "name", "difference", and the ends "low" and "high" of its interval,
    all in [-1, 1], and "seeds". low and high may be nan. Where the interval holds zero, or there is none, the
    marker is hollow and grey. A difference is shown in points, which are hundredths. Raises ValueError for no
    rows, for a missing key, for a number out of its range, and for a difference outside its interval.
    """
    checked = _checked_differences(rows)
    ax = new_axes(ax, WIDTH, 1.5 + 0.42 * len(checked))
    ax.axvline(0, color=INK, linewidth=1, zorder=1)
    for place, row in enumerate(checked):
        colour, marker = technique_style(row["name"])
        known = not math.isnan(row["low"])
        ends = [100 * (row["difference"] - row["low"]), 100 * (row["high"] - row["difference"])]
        sure = known and not row["low"] <= 0 <= row["high"]
        _draw_interval(ax, 100 * row["difference"], place, ends if known else None, colour, marker, sure=sure)
        beside = {"transform": ax.get_yaxis_transform(), "va": "center", "color": INK if sure else NEUTRAL}
        ax.text(1.02, place, _difference_text(row), fontsize=9, **beside)
    ax.set_yticks(range(len(checked)), [wrapped(row["name"], 40) for row in checked])
    _finish_rows(ax, len(checked))
    ax.set(xlabel=f"difference [{unit}]", ylabel="comparison")
    _title(ax, title, dataset, "differences; grey and hollow: the interval holds zero")
    return ax


def _checked_differences(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    checked = []
    for number, row in enumerate(_rows("rows", rows, ("name", "difference", "low", "high", "seeds"))):
        where = f"rows[{number}]"
        difference = as_number(f"{where}['difference']", row["difference"], -1, 1)
        low, high = (_or_nan(f"{where}[{key!r}]", row[key], -math.inf) for key in ("low", "high"))
        if math.isnan(low) != math.isnan(high) or low > difference or high < difference:
            raise ValueError(
                f"{where}: difference={difference!r} with low={low!r} and high={high!r}: expected it between "
                "them, or both nan"
            )
        seeds = as_integer(f"{where}['seeds']", row["seeds"], 1)
        numbers = {"difference": difference, "low": low, "high": high, "seeds": seeds}
        checked.append({"name": str(row["name"])} | numbers)
    return checked


def _difference_text(row: Mapping[str, Any]) -> str:
    """Write "+1.6 ± 0.4 (10 seeds)", or the ends of an interval that is not symmetric."""
    seeds = f"{row['seeds']} seed{'s' * (row['seeds'] > 1)}"
    difference, low, high = (_signed(row[key]) for key in ("difference", "low", "high"))
    if math.isnan(row["low"]):
        return f"{difference} ({seeds})"
    below, above = row["difference"] - row["low"], row["high"] - row["difference"]
    if abs(below - above) >= 0.001:
        return f"{difference}, {low} to {high} ({seeds})"
    return f"{difference} ± {50 * (below + above):.1f} ({seeds})"


def _signed(difference: float) -> str:
    """Write a difference in points, with its sign; never "-0.0"."""
    return f"{round(100 * difference, 1) + 0.0:+.1f}".replace("-", "\N{MINUS SIGN}")


# ---- Changes ---------------------------------------------------------------------------------------


@styled
def plot_changes(
    classes: Sequence[str],
    changes: Mapping[str, Array],
    halves: Mapping[str, Array],
    *,
    dataset: str,
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Show how the accuracy of each class changes: a row for each class, the largest change at the top.

    classes: names. changes: from the name of a change to its differences in accuracy, (classes,), in
    [-1, 1]. halves: from the same names to the half-widths of their 95 % intervals, (classes,), or nan. Each
    name has a colour and a marker, hollow where the interval holds zero. Raises ValueError for no classes,
    no changes, and other names, shapes and ranges.
    """
    classes = list(map(str, classes))
    if not classes:
        raise ValueError("classes is empty: expected the names of the classes")
    shape = (len(classes),)
    points = {
        name: 100 * _shares(f"changes[{name!r}]", values, shape, -1)
        for name, values in _named("changes", changes).items()
    }
    if not isinstance(halves, Mapping) or halves.keys() != points.keys():
        found = list(halves) if isinstance(halves, Mapping) else halves
        raise ValueError(f"halves of {found!r}: expected the same names as changes, {list(points)}")
    widths = {
        name: 100 * _shares(f"halves[{name!r}]", halves[name], shape, 0, missing=True) for name in points
    }
    order = np.argsort(-np.abs([*points.values()]).max(0), kind="stable").tolist()
    ax = new_axes(ax, WIDTH, 1.5 + len(classes) * max(0.36, 0.17 * len(points)))
    for place in range(1, len(classes), 2):
        ax.axhspan(place - 0.5, place + 0.5, color=PALE, alpha=0.5, linewidth=0, zorder=0)
    ax.axvline(0, color=INK, linewidth=1, zorder=1)
    palette, marks = colours(points), markers(points)
    for number, name in enumerate(points):
        shift = 0.8 * ((number + 0.5) / len(points) - 0.5)  # the names of a class stand below each other
        for place, index in enumerate(order):
            value, half = float(points[name][index]), float(widths[name][index])
            ends = None if math.isnan(half) else [half, half]
            sure = abs(value) > half
            _draw_interval(
                ax, value, place + shift, ends, palette[name], marks[name], sure=sure, other=palette[name]
            )
    ax.set_yticks(range(len(classes)), [classes[index] for index in order])
    _finish_rows(ax, len(classes))
    handles = [
        Line2D([], [], label=wrapped(name, 22), color=palette[name], marker=marks[name], markersize=7)
        for name in points
    ]
    ax.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=9)
    ax.set(xlabel="change of accuracy [points]", ylabel="class")
    _title(ax, title, dataset, "change by class; hollow: the 95 % interval holds zero")
    return ax


# ---- What they share -------------------------------------------------------------------------------


def _draw_interval(
    ax: Axes,
    value: float,
    place: float,
    ends: Sequence[float] | None,
    colour: str,
    marker: str,
    *,
    sure: bool,
    other: str = FAINT,
) -> None:
    """Draw a value in its row with its interval; hollow and in the `other` colour if it is not sure."""
    error = None if ends is None else [[ends[0]], [ends[1]]]
    shade = colour if sure else other
    look = {"color": shade, "marker": marker, "markersize": 7, "markerfacecolor": shade if sure else "white"}
    ax.errorbar(value, place, xerr=error, linestyle="none", capsize=3, **look)


def _finish_rows(ax: Axes, count: int) -> None:
    ax.set_ylim(count - 0.4, -0.6)  # the first row is the uppermost
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.grid(axis="x", color=PALE, linewidth=0.8)
    ax.set_axisbelow(True)


def _title(ax: Axes, title: str, dataset: str, text: str) -> None:
    ax.set_title(wrapped(titled(title, dataset, text), 80), pad=10)


def _rows(name: str, rows: Any, keys: Sequence[str]) -> Sequence[Mapping[str, Any]]:
    """Check that `rows` are mappings with these keys, and at least one."""
    if isinstance(rows, str | Mapping) or not isinstance(rows, Sequence) or not rows:
        raise ValueError(f"{name}={rows!r}: expected a list of dictionaries, not empty")
    for number, row in enumerate(rows):
        _require(f"{name}[{number}]", row, keys)
    return rows


def _require(name: str, row: Any, keys: Sequence[str]) -> None:
    if not isinstance(row, Mapping):
        raise ValueError(f"{name} is of type {type(row).__name__}: expected a dictionary")
    if missing := [key for key in keys if key not in row]:
        raise ValueError(f"{name} lacks {missing}: expected the keys {', '.join(keys)}")


def _named(name: str, values: Any) -> Mapping[str, Any]:
    if not isinstance(values, Mapping) or not values:
        raise ValueError(f"{name}={values!r}: expected a dictionary from names to arrays, not empty")
    return values


def _or_nan(name: str, value: Any, least: float, most: float = math.inf, **options: bool) -> float:
    """Check a number as `as_number` does, but let nan pass."""
    if isinstance(value, float | np.floating) and math.isnan(value):
        return math.nan
    return as_number(name, value, least, most, **options)


def _shares(
    name: str, values: Array, shape: tuple[int | str, ...], least: float, *, missing: bool = False
) -> np.ndarray:
    """Check an array of shares from `least` to 1 and return it as float64.

    shape: its lengths; a length that is not known is a word for the message. missing: whether nan may occur.
    """
    array = as_array(values, name)
    pairs = zip(shape, array.shape, strict=False)
    fits = array.ndim == len(shape) and all(isinstance(want, str) or want == found for want, found in pairs)
    if not fits or array.size == 0:
        expected = ", ".join(map(str, shape)) + "," * (len(shape) == 1)
        raise ValueError(f"{name} of shape {array.shape}: expected ({expected})")
    if not (np.issubdtype(array.dtype, np.floating) or np.issubdtype(array.dtype, np.integer)):
        raise ValueError(f"{name} of type {array.dtype}: expected numbers from {least:g} to 1")
    array = array.astype(np.float64)
    right = (array >= least) & (array <= 1)
    if not (right | np.isnan(array) if missing else right).all():
        wrong = array[~right][0]
        raise ValueError(f"{name} contain {wrong:g}: expected numbers from {least:g} to 1")
    return array
