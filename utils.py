"""The notebook's toolbox: what it imports from `lab`, gathered in one place."""

from lab.data import (
    DATASETS,
    MEAN,
    STD,
    Augment,
    Dataset,
    Loader,
    augmented,
    cifar10_loaders,
    denormalize,
    load_dataset,
    loaders_from,
    normalize,
    stand_in,
)
from lab.exercises import check_answer
from lab.experiment import Experiment, Run, run
from lab.explain import (
    alone_and_together,
    class_activation_maps,
    effective_receptive_field,
    field_radius,
    footprint,
    pixels_read,
)
from lab.figures import (
    plot_activation_maps,
    plot_augmentations,
    plot_comparison,
    plot_confusion,
    plot_curves,
    plot_effective_field,
    plot_field_growth,
    plot_footprints,
    plot_kernel,
    plot_misclassified,
    plot_normalizations,
    plot_prediction,
    plot_range_test,
    plot_receptive_field,
    plot_samples,
    plot_techniques,
    save,
)
from lab.findings import arms_table, differences_table, epochs_table
from lab.grid import Family, Records, Study, carry_out
from lab.lesson import show
from lab.machine import machine, number_format, pick_device
from lab.maps import small_weights
from lab.metrics import confusion_matrix
from lab.optim import OPTIMIZERS, SCHEDULES
from lab.pictures import budgets_picture, in_words
from lab.pictures import pictures as study_pictures
from lab.range_test import range_test
from lab.recipes import RECIPES, Recipe
from lab.records import History
from lab.report import overview
from lab.studies import STUDIES, arm, measured, published
from lab.study import pretrained_runs, run_each
from lab.training import distilled, evaluate, fit, test, train

__all__ = [
    "DATASETS",
    "MEAN",
    "OPTIMIZERS",
    "RECIPES",
    "SCHEDULES",
    "STD",
    "STUDIES",
    "Augment",
    "Dataset",
    "Experiment",
    "Family",
    "History",
    "Loader",
    "Recipe",
    "Records",
    "Run",
    "Study",
    "alone_and_together",
    "arm",
    "arms_table",
    "augmented",
    "budgets_picture",
    "carry_out",
    "check_answer",
    "cifar10_loaders",
    "class_activation_maps",
    "confusion_matrix",
    "denormalize",
    "differences_table",
    "distilled",
    "effective_receptive_field",
    "epochs_table",
    "evaluate",
    "field_radius",
    "fit",
    "footprint",
    "in_words",
    "load_dataset",
    "loaders_from",
    "machine",
    "measured",
    "normalize",
    "number_format",
    "overview",
    "pick_device",
    "pixels_read",
    "plot_activation_maps",
    "plot_augmentations",
    "plot_comparison",
    "plot_confusion",
    "plot_curves",
    "plot_effective_field",
    "plot_field_growth",
    "plot_footprints",
    "plot_kernel",
    "plot_misclassified",
    "plot_normalizations",
    "plot_prediction",
    "plot_range_test",
    "plot_receptive_field",
    "plot_samples",
    "plot_techniques",
    "pretrained_runs",
    "published",
    "range_test",
    "run",
    "run_each",
    "save",
    "show",
    "small_weights",
    "stand_in",
    "study_pictures",
    "test",
    "train",
]
