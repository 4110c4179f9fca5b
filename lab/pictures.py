"""The pictures of the studies, drawn from their records."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lab import figures
from lab.costs import costs
from lab.data import CIFAR_10
from lab.experiment import Experiment
from lab.grid import Family, Records, Side, Study, best_of
from lab.measurements import Labels, Measurements
from lab.statistics import Estimate
from lab.studies import OPTIMIZER_NAMES, difference_title, norm_name, titles
from model import describe

NOTHING = Measurements()


def pictures(
    study: Study, records: Records, beside: Measurements = NOTHING
) -> dict[str, Callable[[], Figure | Axes]]:
    """What a study has to show: what draws each picture, by its name. None before the study is complete.

    beside: for accuracy against measured time, and for accuracy class by class.
    """
    if study.missing(records) or not study.pairs:
        return {}
    found: dict[str, Callable[[], Figure | Axes]] = {}
    if _is_grid(study.arms):
        found["grid"] = partial(grid_picture, study, records)
        found["curves"] = partial(curves_picture, study, records)
    if len({arm.conv for arm in study.arms}) > 2:
        found["costs"] = partial(costs_picture, study, records, beside.costs)
    if beside.costs and len(_techniques(study)) > 1 and _compares_techniques(study):
        found["compared"] = partial(compared_picture, study, records, beside.costs)
    found["differences"] = partial(differences_picture, study, records)
    if beside.labels is not None:
        found["classes"] = partial(classes_picture, study, records, beside.labels)
    return {f"{study.name}-{kind}": draw for kind, draw in found.items()}


def differences_picture(study: Study, records: Records) -> Axes:
    """Each comparison of a study with its interval."""
    rows = [
        {
            "name": difference_title(study.arms, one, other),
            "difference": found.mean,
            "low": found.mean - found.half,
            "high": found.mean + found.half,
            "seeds": found.seeds,
        }
        for family in study.families
        for (one, other), found in study.differences(family, records).items()
    ]
    return figures.plot_differences(rows, dataset=CIFAR_10, title=study.name)


def _axes_of(arm: Experiment) -> tuple[str, str]:
    return arm.conv, OPTIMIZER_NAMES.get(arm.recipe.optimizer, arm.recipe.optimizer)


def _is_grid(arms: Sequence[Experiment]) -> bool:
    """Whether the arms are every pair of several normalizations and several techniques or optimizers."""
    cells = {(arm.norm, *_axes_of(arm)) for arm in arms}
    norms, others = {cell[0] for cell in cells}, {cell[1:] for cell in cells}
    return len(cells) == len(arms) == len(norms) * len(others) and len(norms) > 1 and len(others) > 1


def grid_picture(study: Study, records: Records) -> Axes:
    """Accuracies by normalization and technique, or optimizer, with the best rate in each cell."""
    varied = 0 if len({arm.conv for arm in study.arms}) > 1 else 1
    cells = {(arm.norm, _axes_of(arm)[varied]): arm for arm in study.arms}
    norms, others = ([*dict.fromkeys(key[index] for key in cells)] for index in (0, 1))
    values, halves = np.full((2, len(others), len(norms)), np.nan)
    notes = [["" for _ in norms] for _ in others]
    for (norm, other), arm in cells.items():
        place = others.index(other), norms.index(norm)
        if (found := study.accuracy(arm.label, records)) is not None:
            values[place], halves[place] = found.mean, found.half
        notes[place[0]][place[1]] = f"lr {best_of(study.search(arm, records)[0]).lr:g}"
    return figures.plot_grid(
        values,
        halves,
        others,
        [norm_name(norm) for norm in norms],
        notes=notes,
        dataset=CIFAR_10,
        title="each pair at its best rate",
        xlabel="normalization",
        ylabel=("technique", "optimizer")[varied],
    )


def curves_picture(study: Study, records: Records) -> Axes:
    """Accuracy by epoch, of the arms that differ from the first in the normalization only."""
    first = study.arms[0]
    shown = {arm.label: arm for arm in study.arms if _axes_of(arm) == _axes_of(first)}
    results = study.results(records)
    curves = {
        norm_name(arm.norm): [run.accuracy for run in results[label] if not run.diverged]
        for label, arm in shown.items()
    }
    curves = {name: np.array(runs) for name, runs in curves.items() if runs}
    title = f"{first.conv} network with {_axes_of(first)[1]}"
    return figures.plot_bands(curves, dataset=CIFAR_10, title=title)


def same_epochs(arms: Iterable[Experiment]) -> bool:
    """Whether the arms are trained for the same number of epochs."""
    return len({arm.recipe.epochs for arm in arms}) <= 1


def _techniques(study: Study) -> list[Experiment]:
    """The arms that differ from the first in the technique only, or also in what fits it into a budget."""
    first = _without_technique(study.arms[0])
    return [arm for arm in study.arms if _without_technique(arm) == first]


def _without_technique(arm: Experiment) -> Experiment:
    """The arm without its technique, and without the width and the epochs that may go with it."""
    options = {name: value for name, value in arm.recipe.net.items() if name != "width"}
    return replace(arm, label="any", conv="standard", recipe=replace(arm.recipe, net=options, epochs=1))


def _compares_techniques(study: Study) -> bool:
    return _is_grid(study.arms) or len(_techniques(study)) == len(study.arms)


def compared_picture(study: Study, records: Records, measured: Mapping[str, Any]) -> Figure:
    """Accuracy, size and training time of each technique with the normalization of the first arm."""
    spent, rows, shown = costs(measured, study.arms), [], _techniques(study)
    for arm in shown:
        found, cost, network = (
            study.accuracy(arm.label, records),
            spent.get(arm.label),
            describe(arm.network()),
        )
        if found is not None and cost is not None:
            row = {"name": arm.conv, "accuracy": found.mean, "half": found.half}
            row |= {"parameters": network.total_parameters, "macs": network.total_macs}
            row["microseconds"] = cost.train_microseconds
            if not same_epochs(shown) and not math.isnan(cost.run_seconds):
                row["seconds"] = cost.run_seconds
            rows.append(row)
    epochs = sorted({arm.recipe.epochs for arm in shown})
    length = " to ".join(map(str, dict.fromkeys((epochs[0], epochs[-1]))))
    length += " epoch" if length == "1" else " epochs"
    title = f"{study.name.replace('-', ' ')}, with {norm_name(shown[0].norm)}, {length}"
    return figures.plot_comparison(rows, dataset=CIFAR_10, title=title)


def in_words(study: Study, records: Records, labels: Iterable[str] | None = None) -> str:
    """The arms with the highest and the lowest accuracy, for readers who cannot see a picture.

    labels: of these arms only. Empty before all their runs are there.
    """
    named = titles(study.arms)
    found = {named[label]: study.accuracy(label, records) for label in labels or named}
    means = {name: 100 * each.mean for name, each in found.items() if each is not None}
    if len(means) < len(found):
        return ""
    best, worst = max(means, key=means.__getitem__), min(means, key=means.__getitem__)
    return f"The highest is {best} with {means[best]:.1f} %, the lowest {worst} with {means[worst]:.1f} %."


def costs_picture(study: Study, records: Records, measured: Mapping[str, Any] | None = None) -> Figure:
    """Accuracy against parameters, multiply-accumulates and measured time: a point for each arm."""
    named = titles(study.arms)
    points = [_point(study, arm, named[arm.label], records, measured) for arm in study.arms]
    return figures.plot_costs([*filter(None, points)], dataset=CIFAR_10, title=study.name)


def budgets_picture(
    studies: Mapping[str, Study], records: Records, measured: Mapping[str, Any] | None = None
) -> Figure:
    """Accuracy against cost of each technique, with the normalization of the first arm, in several studies.

    studies: by what each holds equal, such as "equal width".
    """
    points = [
        _point(study, arm, equal, records, measured)
        for equal, study in studies.items()
        for arm in _techniques(study)
    ]
    norm = norm_name(next(iter(studies.values())).arms[0].norm)
    title = f"techniques with {norm}, at {' and '.join(studies)}"
    return figures.plot_costs([*filter(None, points)], dataset=CIFAR_10, title=title)


def _point(
    study: Study, arm: Experiment, name: str, records: Records, measured: Mapping[str, Any] | None
) -> dict[str, Any] | None:
    """What `plot_costs` draws of an arm; None before its runs are there."""
    found = study.accuracy(arm.label, records)
    if found is None:
        return None
    network, cost = describe(arm.network()), costs(measured, [arm]).get(arm.label) if measured else None
    technique = "a table of its own" if "stages" in arm.recipe.net else arm.conv
    point = {"name": name, "technique": technique, "norm": norm_name(arm.norm)}
    point |= {"accuracy": found.mean, "half": found.half, "parameters": network.total_parameters}
    return point | {"macs": network.total_macs, "microseconds": cost.train_microseconds if cost else np.nan}


def classes_picture(study: Study, records: Records, labels: Labels) -> Axes:
    """How the accuracy of each class differs in the pairs of the study's first question."""
    by_class = differences_by_class(study, study.families[0], records, labels)
    named = {pair: difference_title(study.arms, *pair) for pair in by_class[0]}
    changes = {name: np.array([each[pair].mean for each in by_class]) for pair, name in named.items()}
    halves = {name: np.array([each[pair].half for each in by_class]) for pair, name in named.items()}
    title = f"{study.name}, {study.families[0].name}"
    return figures.plot_changes(labels.classes, changes, halves, dataset=CIFAR_10, title=title)


def differences_by_class(
    study: Study, family: Family, records: Records, labels: Labels
) -> list[dict[tuple[Side, Side], Estimate]]:
    """What `Study.differences` finds for the test images of each class alone.

    The intervals hold together over all pairs and classes (Bonferroni).
    """
    count = len(labels.classes)
    return [study.differences(family, records, labels.labels == number, count) for number in range(count)]
