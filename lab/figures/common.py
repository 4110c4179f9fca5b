"""What the figures share: style, colours, titles, input checks, and writing to a file."""

from __future__ import annotations

import re
import textwrap
import weakref
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.registry import BackendFilter, backend_registry
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

from lab.metrics import Array, as_array

if TYPE_CHECKING:
    from matplotlib.typing import ColorType, RcKeyType

P = ParamSpec("P")
R = TypeVar("R")

KEPT = 5  # a script that draws two or three and then saves them by plt.gcf() finds them all
CANNOT_SHOW = backend_registry.list_builtin(BackendFilter.NON_INTERACTIVE)
_opened: list[weakref.ref[Figure]] = []  # by the plot functions, the newest last

INK, FAINT, PALE = "#222222", "#8a8a8a", "#e4e4e4"
WRONG = "#B3400E"

# They differ for every kind of colour vision, and in CIELAB lightness by 9 or more, so in grey, too; a test
# measures it. The orange and the green are Okabe and Ito's: jfly.uni-koeln.de/color
TECHNIQUE_COLOURS: dict[str, str] = {
    "standard": "#153C60",
    "dilated": "#E69F00",
    "depthwise_separable": "#009E73",
    "blueprint_separable": "#AA3FBF",
    "mixed": "#A11D1D",
    "gated_separable": "#B8CCF5",
    "gated_multi_scale": "#330011",
}
TECHNIQUE_MARKERS: dict[str, str] = {
    "standard": "o",
    "dilated": "D",
    "depthwise_separable": "^",
    "blueprint_separable": "v",
    "mixed": "s",
    "gated_separable": "8",
    "gated_multi_scale": "H",
}
NEUTRAL, NEUTRAL_MARKER = "#555555", "p"  # of a technique that is not in the tables
# Paul Tol's "muted", personal.sron.nl/~pault
NORM_COLOURS: dict[str, str] = {
    "batch": "#332288",
    "layer": "#88CCEE",
    "group": "#117733",
    "instance": "#882255",
    "none": "#999933",
}
# The first four: Okabe and Ito's
OTHER_COLOURS = ("#0072B2", "#CC79A7", "#D55E00", "#56B4E9", "#666666", "#5D4037", "#000000")
OTHER_MARKERS = ("X", "P", "<", "*", ">", "d", "p", "h")  # one more than colours, so that pairs repeat late

STYLE: dict[RcKeyType, Any] = {
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


@contextmanager
def _style() -> Iterator[None]:
    """Apply STYLE for a while, then restore the caller's settings.

    Only the settings in STYLE are restored. Matplotlib's own rc_context would also undo the interactive
    mode that Jupyter's backend turns on with the first figure, and no later figure would be shown.
    """
    before: dict[RcKeyType, Any] = {key: matplotlib.rcParams[key] for key in STYLE}
    matplotlib.rcParams.update(STYLE)
    try:
        yield
    finally:
        matplotlib.rcParams.update(before)


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Decorate a plot function: it draws in our style, and no figure stays open that nobody needs.

    After an error no new figure stays open. pyplot keeps every figure until it is closed, so that it can be
    shown. Under a backend that cannot show any, such as Agg in a script without a display, the function
    therefore closes all figures of such functions but the KEPT newest. A closed figure can still be saved.
    """

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> R:
        before = plt.get_fignums()
        with _style():
            try:
                result = draw(*args, **kwargs)
            except BaseException:
                for number in set(plt.get_fignums()).difference(before):
                    plt.close(number)
                raise
        opened = set(plt.get_fignums()).difference(before)
        if opened and matplotlib.get_backend().lower() in CANNOT_SHOW:
            _opened.append(weakref.ref(plt.gcf()))
            older = [figure for each in _opened[:-KEPT] if (figure := each()) is not None]
            for figure in older:
                plt.close(figure)
            del _opened[:-KEPT]
        return result

    return drawn


def colours(names: Iterable[str]) -> dict[str, str]:
    """Choose a colour for each name. Techniques and normalizations have fixed colours.

    Case, spaces and hyphens do not matter; "batch norm, Muon" begins with a normalization and has its colour,
    if it is the first name that does. Any other name gets a colour that follows from the name. If another
    name of the same picture already has that colour, it gets the next free one.
    """
    fixed, names = dict(TECHNIQUE_COLOURS | NORM_COLOURS), list(names)
    for name in names:
        norm = _key(name.split(",")[0]).removesuffix("_norm")
        if norm in NORM_COLOURS and NORM_COLOURS[norm] not in (fixed.get(_key(each)) for each in names):
            fixed[_key(name)] = NORM_COLOURS[norm]
    return _chosen(names, fixed, OTHER_COLOURS)


def markers(names: Iterable[str]) -> dict[str, str]:
    """Choose a Matplotlib marker for each name, as `colours` does; techniques have fixed markers."""
    return _chosen(names, TECHNIQUE_MARKERS, OTHER_MARKERS)


def _chosen(names: Iterable[str], fixed: Mapping[str, str], others: Sequence[str]) -> dict[str, str]:
    chosen: dict[str, str] = {}
    for name in names:
        start = zlib.crc32(_key(name).encode())
        turns = [others[(start + turn) % len(others)] for turn in range(len(others))]
        free = (value for value in turns if value not in chosen.values())
        chosen[name] = fixed.get(_key(name)) or next(free, turns[0])
    return chosen


def technique_style(name: str) -> tuple[str, str]:
    """Return the colour and the marker of a technique; neutral ones for any other name."""
    key = _key(name)
    return TECHNIQUE_COLOURS.get(key, NEUTRAL), TECHNIQUE_MARKERS.get(key, NEUTRAL_MARKER)


def _key(name: str) -> str:
    return name.strip().lower().replace(" ", "_").replace("-", "_")


def luminance(colour: ColorType) -> float:
    """Return the relative luminance of a colour, from 0 (black) to 1 (white).

    Source: WCAG 2.2, www.w3.org/TR/WCAG22/#dfn-relative-luminance.
    """
    values = np.array(to_rgb(colour))
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


def readable(colour: ColorType) -> str:
    """Darken a colour for text on white, until their contrast is 4.5 to 1, as WCAG 2.2 asks of text."""
    rgb = np.array(to_rgb(colour))
    while 1.05 / (luminance(tuple(rgb)) + 0.05) < 4.5:
        rgb *= 0.95
    return to_hex(tuple(rgb))


def wrapped(name: str, width: int) -> str:
    """Break a name into lines of about `width` characters, after a space, a hyphen or a "_"."""
    lines = [""]
    for part in re.findall(r"[^ _-]+[ _-]?|[ _-]", name):
        if lines[-1] and len(lines[-1]) + len(part.rstrip()) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(line.rstrip() for line in lines)


def titled(title: str, dataset: str | None, text: str = "") -> str:
    """Join the parts of a title that are not empty: "dataset, title: text"."""
    return ": ".join(filter(None, (", ".join(filter(None, (dataset, title))), text)))


def suptitle(figure: Figure, text: str) -> None:
    """Write the figure's title, wrapped to the figure's width."""
    points = figure.get_figwidth() * 72
    figure.suptitle(textwrap.fill(text, max(int(points / (13 * 0.6)), 20)), color=INK)


def new_axes(ax: Axes | None, width: float, height: float) -> Axes:
    """Return `ax`, or the Axes of a new figure if it is None; width and height in inches."""
    return ax or plt.subplots(figsize=(width, height), layout="constrained")[1]


def figure_of(ax: Axes) -> Figure:
    """Return the figure that holds `ax`; ValueError if it was removed from its figure."""
    figure = ax.get_figure(root=True)
    if figure is None:
        raise ValueError("the Axes belong to no figure: they were removed")
    return figure


def pictures(images: Array, name: str = "images") -> np.ndarray:
    """Check images and return them as imshow takes them, (N, H, W, 3).

    images: (N, 3, H, W), uint8 or float in [0, 1]. Raises ValueError for other shapes, types or ranges.
    """
    array = as_array(images, name)
    if array.ndim != 4 or array.shape[1] != 3 or array.size == 0:
        raise ValueError(f"{name} of shape {array.shape}: expected (N, 3, H, W) with at least one image")
    if array.dtype != np.uint8:
        if not np.issubdtype(array.dtype, np.floating):
            raise ValueError(f"{name} of type {array.dtype}: expected uint8, or float in [0, 1]")
        low, high = array.min(), array.max()
        if not (low >= -1e-3 and high <= 1 + 1e-3):  # written so that NaN fails, too
            raise ValueError(
                f"{name} from {low:.3g} to {high:.3g}: expected float in [0, 1]; "
                "denormalize normalized images first"
            )
        array = array.clip(0, 1)
    return array.transpose(0, 2, 3, 1)


def save(figure_or_axes: Figure | Axes, path: str | Path, *, dpi: float = 120) -> Path:
    """Write a figure, or the figure that holds the Axes, as PNG, and return the path.

    The picture is cropped to its content. Missing folders are created. Equal figures give equal files: the
    file does not record the time or the software. dpi: pixels per inch. Raises ValueError for a path that
    does not end in .png.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"path={str(path)!r}: expected a name that ends in .png")
    figure = figure_or_axes if isinstance(figure_or_axes, Figure) else figure_of(figure_or_axes)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _style():
        figure.savefig(
            path, format="png", dpi=dpi, bbox_inches="tight", facecolor="white", metadata={"Software": None}
        )
    return path
