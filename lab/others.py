"""The frontier: accuracy against size, of the networks here and of public networks from elsewhere."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes

from lab import figures
from lab.checks import as_choice, as_integer, as_number
from lab.data import CIFAR_10
from lab.recipes import RECIPES
from lab.records import History
from lab.statistics import interval
from lab.study import by_experiment
from lab.tables import Table

OTHERS = Path(__file__).resolve().parent.parent / "results" / "others.csv"
MOST_PARAMETERS = 500_000  # of a network of the frontier


class Network(NamedTuple):
    """A network and its accuracy on CIFAR-10's test images, with one view of each."""

    name: str
    parameters: int
    accuracy: float  # in [0, 1]
    half: float = math.nan  # half-width of the 95 % interval over seeds
    training: str = ""
    on_test: bool = False  # whether the epoch, or anything else, was chosen on the test images
    source: str = ""  # an address; empty for the networks of this project


def others(path: str | Path = OTHERS) -> list[Network]:
    """The networks from elsewhere, as the file lists them.

    Raises ValueError, naming file and line, for a line that is not a network.
    """
    networks = []
    with Path(path).open(encoding="utf-8", newline="") as file:
        lines = csv.reader(file)
        next(lines, None)  # the names of the columns
        for line in lines:
            try:
                name, parameters, percent, training, on_test, source = line
                networks.append(
                    Network(
                        name,
                        as_integer("parameters", int(parameters), 1),
                        as_number("accuracy", float(percent), 0, 100) / 100,
                        training=training,
                        on_test=as_choice("chosen on the test images", on_test, ("yes", "no")) == "yes",
                        source=source,
                    )
                )
            except ValueError as error:
                raise ValueError(f"{path}, line {lines.line_num}: {error}") from error
    return networks


def own(histories: Iterable[History]) -> list[Network]:
    """The networks of this project: one for each named recipe, from the processor with the most seeds."""
    most: dict[str, list[History]] = {}
    for (name, dataset, _), runs in by_experiment(histories).items():
        recipe = name.removesuffix("-batch-mixed")
        small = runs[0].parameters < MOST_PARAMETERS and recipe != name and recipe in RECIPES
        tested = dataset == CIFAR_10 and runs[0].evaluated_on == "test"
        if small and tested and len(runs) > len(most.get(recipe, [])):
            most[recipe] = runs
    networks = []
    for recipe, runs in most.items():
        mean, half = interval([run.accuracy[-1] for run in runs])
        count = "1 run" if len(runs) == 1 else f"mean of {len(runs)} runs"
        networks.append(Network(recipe, runs[0].parameters, mean, half, f"{runs[0].epochs} epochs, {count}"))
    return networks


def frontier_table(histories: Iterable[History]) -> Table:
    """A row for each network of fewer than MOST_PARAMETERS, ours and others, the smallest first.

    histories: records of this project.
    """
    networks = sorted([*own(histories), *others()], key=lambda each: (each.parameters, -each.accuracy))
    head = ("network", "parameters", "test accuracy, %", "training", "chosen on test images", "source")
    return Table(head, tuple(_row(each) for each in networks))


def _row(network: Network) -> tuple[str, ...]:
    half = "" if math.isnan(network.half) else f" ± {100 * network.half:.2f}"
    return (
        network.name if network.source else f"`{network.name}`",
        f"{network.parameters:,}",
        f"{100 * network.accuracy:.2f}{half}",
        network.training,
        "yes" if network.on_test else "",
        network.source or "here",
    )


def frontier_picture(histories: Iterable[History]) -> Axes:
    """Accuracy against parameters: ours, and others."""
    points = [each._asdict() | {"ours": not each.source} for each in [*own(histories), *others()]]
    return figures.plot_frontier(points, dataset=CIFAR_10)
