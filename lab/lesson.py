"""What the notebook shows: pictures with a text in place of each, for those who cannot see it."""

from __future__ import annotations

import base64
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lab.figures import save
from lab.figures.common import figure_of


def show(figure: Figure | Axes, path: str | Path, alt: str) -> Path:
    """Write a figure as PNG, display the file in a notebook, and return its path; the figure is closed.

    alt: what the picture shows, in a sentence. It is printed below the picture, and takes its place for
    readers who cannot see it: as the output's plain text, and in a page that nbconvert makes with the
    template in lab/page. Raises ValueError for an empty text, and as `save` does.
    """
    if not isinstance(alt, str) or not alt.strip():
        raise ValueError(f"alt={alt!r} must be a text that says what the picture shows")
    written = save(figure, path)
    plt.close(figure if isinstance(figure, Figure) else figure_of(figure))
    try:
        from IPython.display import display  # a notebook has it
    except ImportError:
        return written
    content = base64.b64encode(written.read_bytes()).decode()
    display({"image/png": content, "text/plain": alt}, raw=True, metadata={"image/png": {"alt": alt}})
    print(alt)
    return written
