"""Whether the number format and layout found by timing are the fastest, measured again with more patience."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from lab.files import write_whole
from lab.machine import file_stem, machine, pick_device
from lab.recipes import COMPARED, RECIPES
from lab.schema import json_bytes
from lab.tables import Table
from lab.tuning import LAYOUTS, Format, Step, fastest_format
from model import NORMS, Net

BATCH = 256  # images
ROUNDS = 7  # of timings, after one that warms up
FORMATS = [Format(dtype, layout) for dtype in (torch.bfloat16, torch.float32) for layout in LAYOUTS.values()]


def networks() -> dict[str, dict[str, Any]]:
    """The options of the networks that are measured: each norm with each of COMPARED, and every recipe's."""
    pairs = {f"{norm}, {conv}": {"norm": norm, "conv": conv} for norm in NORMS for conv in COMPARED}
    return pairs | {name: recipe.net for name, recipe in RECIPES.items() if recipe.net}


def measure(
    chosen: Mapping[str, Mapping[str, Any]],
    *,
    device: str | torch.device | None = None,
    batch_size: int = BATCH,
    rounds: int = ROUNDS,
) -> dict[str, Any]:
    """For each network the format that `fastest_format` chooses, and the seconds of steps in every format.

    chosen: options of `Net`, by a name. A step is forward and backward on images of 32x32 pixels; in each
    round all formats take turns. Returns plain data.
    """
    device, shape = pick_device(device), (batch_size, 3, 32, 32)
    found: dict[str, Any] = {}
    for name, options in tqdm(chosen.items(), "formats", disable=sys.stderr is None):
        net = Net(**options)
        choice = str(fastest_format(net, shape, device).format)
        steps = {str(each): Step(net, shape, device, each) for each in FORMATS}
        times: dict[str, list[float]] = {each: [] for each in steps}
        for round_ in range(rounds + 1):
            for each, step in steps.items():
                seconds = step.seconds()
                if round_:
                    times[each].append(seconds)
        found[name] = {"chosen": choice, "seconds": times}
    return {"machine": machine(device), "batch_size": batch_size, "networks": found}


def table(result: Mapping[str, Any]) -> Table:
    """A row for each network: the median step in each format, and the chosen one's against the best one's."""
    formats = [str(each) for each in FORMATS]
    rows = []
    for name, found in result["networks"].items():
        medians = {each: statistics.median(found["seconds"][each]) for each in formats}
        cells = [f"{1e3 * medians[each]:.1f}" for each in formats]
        rows.append((name, found["chosen"], *cells, f"{_ratio(found):.3f}"))
    head = ("network", "chosen", *(f"{each}, ms" for each in formats), "chosen / best")
    return Table(head, tuple(rows))


def worst(result: Mapping[str, Any]) -> float:
    """The largest ratio of the step in the chosen format to that in the best one."""
    return max(map(_ratio, result["networks"].values()))


def _ratio(found: Mapping[str, Any]) -> float:
    medians = {each: statistics.median(times) for each, times in found["seconds"].items()}
    return medians[found["chosen"]] / min(medians.values())


def write(result: Mapping[str, Any], folder: str | Path) -> Path:
    """Write what was measured as JSON, named after the machine; returns the path."""
    return write_whole(Path(folder) / f"{file_stem(result['machine'])}.json", json_bytes(result))


def only(names: Iterable[str] | None) -> dict[str, dict[str, Any]]:
    """The networks of these names; None is all. Raises ValueError for an unknown one."""
    known = networks()
    chosen = list(known if names is None else names)
    if unknown := [name for name in chosen if name not in known]:
        raise ValueError(f"unknown networks {unknown}; choose from {', '.join(map(repr, known))}")
    return {name: known[name] for name in chosen}
