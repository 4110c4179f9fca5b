"""Every picture: arrays, tensors and histories in, Axes or Figure out. Figures know no networks.

The plots of data are in images, curves, errors, receptive_field, explain, comparison, study and benchmark,
the drawings without data in schematics, and what they share in common and labels. Drawing leaves
Matplotlib's settings unchanged.

A figure is one of pyplot's: a notebook shows it at the end of the cell, and plt.show() in a window. In a
script that cannot show figures only the newest five stay open, so that many calls do not fill the memory; the
others can still be saved.
"""

from lab.figures.benchmark import plot_bench
from lab.figures.common import (
    NORM_COLOURS,
    OTHER_COLOURS,
    OTHER_MARKERS,
    STYLE,
    TECHNIQUE_COLOURS,
    TECHNIQUE_MARKERS,
    colours,
    markers,
    save,
)
from lab.figures.comparison import plot_comparison
from lab.figures.curves import plot_curves, plot_range_test
from lab.figures.errors import plot_confusion, plot_misclassified
from lab.figures.explain import (
    plot_activation_maps,
    plot_effective_field,
    plot_footprints,
    plot_kernel,
)
from lab.figures.images import plot_augmentations, plot_prediction, plot_samples
from lab.figures.receptive_field import plot_field_growth, plot_receptive_field
from lab.figures.schematics import EXAMPLE, plot_normalizations, plot_techniques
from lab.figures.study import (
    plot_bands,
    plot_changes,
    plot_costs,
    plot_differences,
    plot_frontier,
    plot_grid,
)

__all__ = [
    "EXAMPLE",
    "NORM_COLOURS",
    "OTHER_COLOURS",
    "OTHER_MARKERS",
    "STYLE",
    "TECHNIQUE_COLOURS",
    "TECHNIQUE_MARKERS",
    "colours",
    "markers",
    "plot_activation_maps",
    "plot_augmentations",
    "plot_bands",
    "plot_bench",
    "plot_changes",
    "plot_comparison",
    "plot_confusion",
    "plot_costs",
    "plot_curves",
    "plot_differences",
    "plot_effective_field",
    "plot_field_growth",
    "plot_footprints",
    "plot_frontier",
    "plot_grid",
    "plot_kernel",
    "plot_misclassified",
    "plot_normalizations",
    "plot_prediction",
    "plot_range_test",
    "plot_receptive_field",
    "plot_samples",
    "plot_techniques",
    "save",
]
