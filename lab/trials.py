"""Trials: what the short recipes were chosen from, one or two changes each, on held-out training images."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from lab.checks import as_choice, as_integer
from lab.experiment import Experiment
from lab.recipes import MINUTE_STAGES, RECIPES, Recipe
from lab.records import History
from lab.statistics import pooled_deviation, student_t
from lab.tables import Table
from model import describe

HELD_OUT = 5_000  # training images, others for each seed
BASE = "as it is"  # what the table calls the recipe without a change

_FIRST, _, _DILATED, _LAST = MINUTE_STAGES
_DENSE = ((64, "standard", 2), (64, "standard", 1))  # a dense row fewer than the recipe has


def _sizes(*pairs: tuple[float, int]) -> dict[str, Any]:
    """From these shares of the steps on, images of so many pixels."""
    return {"image_sizes": tuple((share, pixels / 32) for share, pixels in pairs)}


def _stages(*stages) -> dict[str, Any]:
    return {"net": {"stages": stages}}


def _wide(channels: int) -> dict[str, Any]:
    return _stages(_FIRST, _DENSE, _DILATED, ((channels, "depthwise_separable", 1),) * 2)


def _coffee(first: int, second: int) -> dict[str, Any]:
    rows = ((first, "standard", 2), (first, "standard", 1), (first, "standard", 1))
    dense = ((second, "standard", 2), (second, "standard", 1))
    return _stages(rows, dense, ((second, "dilated", 1),), ((128, "depthwise_separable", 1),) * 2)


_LATE = _sizes((0.0, 16), (0.3, 24), (0.8, 32))

# Of each recipe the changes that were tried, by name. The others are compared with the first.
TRIALS: dict[str, dict[str, dict[str, Any]]] = {
    "minute": {
        BASE: {},
        "lr 0.11": {"lr": 0.11},
        "lr 0.2": {"lr": 0.2},
        "lr_rest 0.01": {"lr_rest": 0.01},
        "lr_rest 0.04": {"lr_rest": 0.04},
        "momentum 0.7": {"momentum": 0.7},
        "momentum 0.8": {"momentum": 0.8},
        "cosine": {"schedule": "cosine"},
        "batches of 128": {"batch_size": 128},
        "batches of 512, lr 0.2, 7 epochs": {"batch_size": 512, "lr": 0.2, "epochs": 7},
        "32 pixels throughout": {"image_sizes": ()},
        "24 pixels for 0.5 of the steps": _sizes((0.0, 24), (0.5, 32)),
        "24 pixels for 0.75 of the steps": _sizes((0.0, 24), (0.75, 32)),
        "16 pixels for 0.25 of the steps": _sizes((0.0, 16), (0.25, 24), (0.65, 32)),
        "16 pixels for 0.3 of the steps, 7 epochs": _sizes((0.0, 16), (0.3, 24), (0.7, 32)) | {"epochs": 7},
        "32 pixels for the last 0.2, from 20 pixels on, 7 epochs": _sizes((0.0, 20), (0.4, 24), (0.8, 32))
        | {"epochs": 7},
        "32 pixels for the last 0.2, from 16 pixels on, 7 epochs": _LATE | {"epochs": 7},
        "a dense row fewer, 7 epochs": _stages(_FIRST, _DENSE, _DILATED, _LAST) | {"epochs": 7},
        "a dense row fewer, sizes as above, 8 epochs": _stages(_FIRST, _DENSE, _DILATED, _LAST)
        | _LATE
        | {"epochs": 8},
        "a dense row fewer, two separable rows of 160, sizes as above, 7 epochs": _wide(160)
        | _LATE
        | {"epochs": 7},
        "a dense row fewer, three separable rows": _stages(_FIRST, _DENSE, _DILATED, _LAST * 3),
        "dense rows dilated": _stages(
            _FIRST, ((64, "standard", 2), (64, "dilated", 1), (64, "dilated", 1)), _DILATED, _LAST
        ),
    },
    "coffee": {
        "rows of 48 and 64 channels": {"epochs": 24},
        "rows of 40 and 72 channels": {"epochs": 24} | _coffee(40, 72),
        "rows of 32 and 80 channels": {"epochs": 24} | _coffee(32, 80),
    },
}


def trials(recipe: str, only: Iterable[str] | None = None, *, seeds: int = 2, **options) -> list[Experiment]:
    """The runs of the trials of a recipe, or of `only` these, for each seed.

    options: as for `Experiment`. Raises ValueError for an unknown recipe or change, naming the choices.
    """
    changes = TRIALS[as_choice("recipe", recipe, TRIALS)]
    chosen = list(changes if only is None else only)
    if unknown := [change for change in chosen if change not in changes]:
        raise ValueError(f"unknown changes {unknown}; choose from {', '.join(map(repr, changes))}")
    options.setdefault("validation", HELD_OUT)
    return [
        Experiment(f"{recipe}, {change}", replace(RECIPES[recipe], **changes[change]), seed=seed, **options)
        for change in chosen
        for seed in range(as_integer("seeds", seeds, 1))
    ]


def trials_table(recipe: str, histories: Iterable[History]) -> Table:
    """The trials of a recipe whose finished runs are among `histories`: accuracies on held-out images, and
    what changed them.

    A difference is the mean over the seeds that both have, in points, on the same processor, with a 95 %
    interval from the spread of all differences in the table, pooled: two seeds alone say little. Arithmetic:
    multiply-accumulates of the whole training, as a share of those in the first row.
    """
    first, *_ = TRIALS[as_choice("recipe", recipe, TRIALS)]
    histories = [each for each in histories if each.epochs == each.recipe["epochs"] and each.accuracy]
    runs: dict[tuple[str, str], dict[int, History]] = {}
    for change in TRIALS[recipe]:
        (named, *_) = trials(recipe, [change])
        for history in histories:
            if history.name == named.name and Recipe.from_dict(history.recipe) == named.recipe:
                runs.setdefault((change, history.processor), {})[history.seed] = history
    differences = {
        (change, processor): [
            100 * (run.accuracy[-1] - runs[first, processor][seed].accuracy[-1])
            for seed, run in own.items()
            if seed in runs.get((first, processor), {})
        ]
        for (change, processor), own in runs.items()
        if change != first
    }
    deviation, freedom = pooled_deviation(differences.values())
    rows = []
    for (change, processor), own in runs.items():
        accuracies = [100 * run.accuracy[-1] for run in own.values()]
        cells = [change, processor, str(len(own)), f"{statistics.fmean(accuracies):.2f}", "", ""]
        if found := differences.get((change, processor)):
            half = student_t(freedom) * deviation / math.sqrt(len(found)) if freedom else math.nan
            cells[4] = f"{statistics.fmean(found):+.2f}" + ("" if math.isnan(half) else f" ± {half:.2f}")
        cells[5] = f"{_arithmetic(recipe, change) / _arithmetic(recipe, first):.2f}"
        rows.append(tuple(cells))
    head = ("change", "processor", "seeds", "held-out accuracy, %", "difference, points", "arithmetic")
    return Table(head, tuple(rows))


def _arithmetic(recipe: str, change: str) -> float:
    (run, *_) = trials(recipe, [change])
    pixels = sum(share * scale**2 for scale, share in run.recipe.size_shares().items())
    return run.recipe.epochs * pixels * describe(run.network()).total_macs
