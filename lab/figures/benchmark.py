"""The benchmark's measurements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import LogLocator

from lab.figures.common import FAINT, INK, PALE, TECHNIQUE_COLOURS, styled, suptitle, titled

GROWTH = {  # axis: its label, what a step's work is proportional to, and the power of the axis in it
    "batch size": ("batch size [images]", "the batch size", 1),
    "width": ("width [factor on the channels]", "the width squared", 2),
    "image size": ("image size [pixels a side]", "the pixels", 2),
}

Work = tuple[float, Sequence[float]]  # its amount, and the seconds that it took in each round


@styled
def plot_bench(result: Mapping[str, Any]) -> Figure:
    """Show the benchmark: throughput, share of the peak, every pair, and how the time of a step grows.

    result: as `lab.bench.bench` returns it, times in seconds. Bars, cells and points are medians over the
    rounds; whiskers and shaded bands span all rounds.
    """
    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.12)
    figure, axes = plt.subplots(2, 3, figsize=(15, 8.6), layout=layout)
    plan, host = result["plan"], result["machine"]
    batch = plan["batch_size"]
    training = {name: (plan["batches"] * batch, times) for name, times in result["training"].items()}
    main = result["summary"]
    _draw_bars(axes[0, 0], training, main["conventional_images_per_second"], "{:.1f} x")
    axes[0, 0].set(title=f"training, batches of {batch} images", xlabel="loop", ylabel="speed [images/s]")
    _draw_bars(axes[0, 1], _gflops(result), max(main["peak_gflops"].values()), "{:.0%}")
    axes[0, 1].set(title="share of the best format's peak", xlabel="work", ylabel="speed [GFLOP/s]")
    _draw_pairs(axes[0, 2], result["pairs"][host["dtype"]])
    axes[0, 2].set_title(f"step on {batch} images in {host['dtype']} [ms]")
    for ax, (axis, times) in zip(axes[1], result["growth"].items(), strict=True):
        _draw_growth(ax, times, *GROWTH[axis])
    low, high = zip(*(ax.get_ylim() for ax in axes[1]), strict=True)
    for ax in axes[1]:
        ax.set(ylim=(min(low), max(high)), ylabel="time of a training step [ms]")  # one scale for the three
    where = f"{host['processor']}, {host['device']}, {host['threads']} threads, torch {host['torch']}"
    suptitle(figure, titled("the benchmark", result["dataset"], where))
    return figure


def _gflops(result: Mapping[str, Any]) -> dict[str, Work]:
    """Collect the matrix products, each format at its fastest size, and the training step."""
    works: dict[str, Work] = {}
    for dtype, sizes in result["matmul"].items():
        by_size = [(2e-9 * int(size) ** 3, times) for size, times in sizes.items()]
        works[f"matrix product, {dtype}"] = max(by_size, key=lambda work: work[0] / float(np.median(work[1])))
    step = result["step"]
    seconds = step["seconds"][result["chosen"]["format"]]
    return works | {f"training step, {step['recipe']}": (1e-9 * step["flops"], seconds)}


def _draw_bars(ax: Axes, works: Mapping[str, Work], whole: float, share: str) -> None:
    """Draw a bar of the median speed for each work, a whisker over all rounds, and the share of `whole`."""
    medians = [amount / float(np.median(times)) for amount, times in works.values()]
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


def _draw_pairs(ax: Axes, pairs: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    """Draw a cell with the milliseconds of a step for each pair of normalization and convolution."""
    norms, convs = list(pairs), list(next(iter(pairs.values())))
    cells = np.array([[1e3 * np.median(pairs[norm][conv]) for conv in convs] for norm in norms])
    # Logarithmic, so that one slow pair does not hide the differences between the others.
    scale = LogNorm(cells.min(), max(cells.max(), 1.01 * cells.min()))
    ax.imshow(cells, norm=scale, cmap="Oranges", aspect="auto")
    for row, column in np.ndindex(cells.shape):
        value = cells[row, column]
        colour = "white" if scale(value) > 0.7 else INK
        ax.text(column, row, _number(float(value)), ha="center", va="center", color=colour)
    ax.set_xticks(range(len(convs)), [conv.replace("_", "-\n") for conv in convs])
    ax.set_yticks(range(len(norms)), norms)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set(xlabel="convolution", ylabel="normalization")


def _draw_growth(ax: Axes, times: Mapping[str, Sequence[float]], label: str, work: str, power: int) -> None:
    """Draw the milliseconds of a step against the size that grows, on logarithmic axes.

    The dashed line through the last point has the same speed everywhere.
    """
    x = np.array([float(value) for value in times])
    values = [1e3 * np.asarray(each) for each in times.values()]
    middle = np.array([np.median(each) for each in values])
    colour = TECHNIQUE_COLOURS["standard"]
    low, high = [each.min() for each in values], [each.max() for each in values]
    ax.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
    ax.plot(x, middle, marker="o", color=colour)
    ax.plot(x, middle[-1] * (x / x[-1]) ** power, color=FAINT, linestyle="--", linewidth=1, zorder=1)
    for place, value in zip(x.tolist(), middle.tolist(), strict=True):
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


def _number(value: float) -> str:
    """Write a number in few characters."""
    return f"{value:,.0f}" if value >= 9.95 else f"{value:.1f}"
