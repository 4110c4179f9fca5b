"""The studies of this project: what each convolution, each normalization and each optimizer gives."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lab.experiment import Experiment
from lab.grid import Study
from lab.recipes import RECIPES, Recipe
from model import CONVS, NORMS, STAGES

PUBLISHED = Path(__file__).resolve().parent.parent / "results" / "study"

# Short enough that hundreds of runs are possible on two cores, and long enough to rank techniques.
BASE = replace(RECIPES["default"], epochs=4)

# Where each search begins. lr_rest stays that of the recipe.
OPTIMIZERS: dict[str, dict] = {
    "muon": {"optimizer": "muon", "lr": 0.12},
    "sgd": {"optimizer": "sgd", "lr": 0.2, "momentum": 0.9},
    "adamw": {"optimizer": "adamw", "lr": 0.02},
}


def arm(
    conv: str = "mixed", norm: str = "batch", optimizer: str = "muon", label: str = "", **changes
) -> Experiment:
    """An arm: the base with another technique, normalization or optimizer, and `changes` to the recipe.

    label: added to that of the other three.
    """
    recipe: Recipe = replace(BASE, **(OPTIMIZERS[optimizer] | changes))
    name = "-".join(filter(None, (conv, norm, optimizer, label)))
    return Experiment(name, recipe, norm=norm, conv=conv, dataset="cifar10")


def _all(conv: str, first: str | None = None) -> dict:
    """A table with this technique in every row; `first`: the technique of the first row."""
    rows = [[row._replace(conv=conv) for row in stage] for stage in STAGES]
    if first is not None:
        rows[0][0] = rows[0][0]._replace(conv=first)
    return {"stages": tuple(tuple((row.channels, row.conv, row.stride) for row in stage) for stage in rows)}


MODELS = Study(
    "models",
    "What do normalization and optimizer give, each pair at its best rate?",
    [arm("mixed", norm, optimizer) for norm in ("batch", "layer", "group") for optimizer in OPTIMIZERS],
)
TECHNIQUES = Study(
    "techniques",
    "Which convolution technique and which normalization, at equal width?",
    [arm(conv, norm) for norm in NORMS for conv in CONVS],
)
ADDITIONS = Study(
    "additions",
    "What explains the differences between techniques?",
    [
        arm("standard"),
        arm("depthwise_separable"),
        arm("blueprint_separable"),
        arm("dilated"),
        arm(label="depthwise-first-standard", net=_all("depthwise_separable", "standard")),
        arm(label="blueprint-first-standard", net=_all("blueprint_separable", "standard")),
        arm(label="dilated-blind", net=_all("dilated")),
        arm(),
        arm(label="post-activation", net={"post_activation": True}),
        arm(optimizer="sgd"),
        arm(optimizer="sgd", label="post-activation", net={"post_activation": True}),
    ],
)

STUDIES: dict[str, Study] = {study.name: study for study in (MODELS, TECHNIQUES, ADDITIONS)}
