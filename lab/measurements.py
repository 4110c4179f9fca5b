"""What is known beside the records of a study: costs, the classes of the test images, and looks inside."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from lab import costs
from lab.data import Dataset
from lab.files import write_whole
from lab.grid import Records, Study
from lab.maps import Inside, inside
from lab.schema import json_bytes, read_json
from model import Net

LABELS = Path("labels") / "cifar-10.json"  # in the folder of the records
INSIDE = Path("networks") / "inside.json"
LOOKED_AT = 1_000  # test images

Read = TypeVar("Read")


@dataclass(frozen=True)
class Measurements:
    """What tables and pictures use beside the records; each part may be missing."""

    costs: Mapping[str, Any] | None = None  # as `lab.costs.measure` returned it
    labels: Labels | None = None
    inside: Mapping[str, Inside] = field(default_factory=dict)  # by the stem of the run

    @classmethod
    def load(cls, folder: str | Path) -> Measurements:
        """Read what the folder of the records holds. Raises ValueError, naming it, for a wrong file."""
        folder = Path(folder)
        looks = _read(folder / INSIDE, "looks inside networks", _looks)
        return cls(costs.read(folder / "bench"), Labels.load(folder / LABELS), looks or {})


def _looks(record: dict) -> dict[str, Inside]:
    return {stem: Inside(**found) for stem, found in record.items()}


def _read(path: str | Path, what: str, made: Callable[[dict], Read]) -> Read | None:
    if not Path(path).exists():
        return None
    try:
        return made(read_json(path))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} does not hold {what}: {error!r}") from error


def look_inside(
    studies: Iterable[Study],
    records: Records,
    networks: str | Path,
    data: Dataset,
    known: Mapping[str, Inside] | None = None,
) -> dict[str, Inside]:
    """Look inside the trained networks of the studies' finished runs, on the first test images of `data`.

    networks: the folder with their files. known: earlier looks, which are kept for runs without a file there.
    Runs with neither are left out.
    """
    runs = (run for study in studies for runs in study.all_runs(records).values() for run in runs)
    found = {}
    for stem in dict.fromkeys(run.stem for run in runs):
        path = Path(networks) / f"{stem}.pt"
        if path.exists():
            net = Net.load(path)
            found[stem] = inside(net, net.transform(data.test_images[:LOOKED_AT]))
        elif known and stem in known:
            found[stem] = known[stem]
    return found


def save_looks(found: Mapping[str, Inside], folder: str | Path) -> Path:
    """Write what `look_inside` found to where `Measurements.load` reads it."""
    record = {stem: found[stem]._asdict() for stem in sorted(found)}
    return write_whole(Path(folder) / INSIDE, json_bytes(record))


class Labels(NamedTuple):
    """The classes of the test images, in their order."""

    classes: tuple[str, ...]
    labels: np.ndarray  # class numbers (images,)

    @classmethod
    def load(cls, path: str | Path) -> Labels | None:
        """Read what `save` wrote; None if the file is missing. Raises ValueError for anything else."""
        return _read(path, "the labels of images", cls._from_record)

    @classmethod
    def _from_record(cls, record: dict) -> Labels:
        labels = np.array([int(digit, 36) for digit in record["labels"]])
        return cls(tuple(map(str, record["classes"])), labels)

    def save(self, path: str | Path) -> Path:
        """Write classes and labels as JSON, a character for each image."""
        digits = "0123456789abcdefghijklmnopqrstuvwxyz"
        text = "".join(digits[label] for label in self.labels)
        return write_whole(path, json_bytes({"classes": list(self.classes), "labels": text}))
