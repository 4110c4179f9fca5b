"""Recipes: everything about a training run but the data and the seed, as plain data.

A variant of a recipe is `dataclasses.replace(recipe, ...)`. An unusual number has its reason beside it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import torch.optim
from torch import nn

from lab.checks import as_choice, as_integer, as_number
from lab.data import Augment
from lab.optim import OPTIMIZERS, SCHEDULES

LEGACY_SIDE = 32  # pixels; the side of the images whose older records give `image_sizes` in pixels


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Raises ValueError for a value out of range, naming the value and the choices.
    """

    epochs: int = 8
    batch_size: int = 256  # images; like `augment`, used when the loader is made
    augment: Augment | None = field(default_factory=Augment)  # None: left to the loader
    optimizer: str = "muon"  # a name in OPTIMIZERS
    lr: float = 0.15  # the peak
    lr_rest: float = 0.01  # muon only: the rate of Adam, which trains all but hidden convolutions
    momentum: float = 0.6  # sgd and muon; see Muon for why it is so low
    weight_decay: float = 0.0  # of the optimizer, for weights only; Muon's hidden weights keep their norm
    schedule: str = "linear"  # a name in SCHEDULES
    warmup: float = 0.0  # share of the steps in which lr climbs from 0
    label_smoothing: float = 0.0  # share of the label spread over all classes
    l1: float = 0.0  # times the sum of |w|, added to the loss; over weights, not biases or norms
    l2: float = 0.0  # times the sum of w ** 2, likewise
    # Pairs: from this share of the steps on, this factor on the sides of the images.
    image_sizes: tuple[tuple[float, float], ...] = ()
    net: dict[str, Any] = field(default_factory=dict)  # options of the network that it was chosen with
    teacher: Recipe | None = None  # trains the network whose probabilities replace the labels
    temperature: float = 1.0  # divides the teacher's logits

    def __post_init__(self):
        # NumPy's numbers are taken as well, and kept as Python's, which a record can hold.
        plain: dict[str, Any] = {
            "optimizer": as_choice("optimizer", self.optimizer, OPTIMIZERS),
            "schedule": as_choice("schedule", self.schedule, SCHEDULES),
            "temperature": as_number("temperature", self.temperature, 0, above=True),
            "image_sizes": _checked_sizes(self.image_sizes),
            "net": _checked_options(self.net),
        }
        for name in ("epochs", "batch_size"):
            plain[name] = as_integer(name, getattr(self, name), 1)
        for name in ("lr", "lr_rest", "weight_decay", "l1", "l2"):
            plain[name] = as_number(name, getattr(self, name), 0)
        for name in ("momentum", "warmup", "label_smoothing"):
            plain[name] = as_number(name, getattr(self, name), 0, 1, below=True)
        if not isinstance(self.augment, Augment | None):
            raise ValueError(f"augment={self.augment!r} must be an Augment or None")
        if not isinstance(self.teacher, Recipe | None):
            raise ValueError(f"teacher={self.teacher!r} must be a Recipe or None")
        for name, value in plain.items():
            object.__setattr__(self, name, value)

    def lr_factor(self, progress: float) -> float:
        """The factor on `lr` after the share `progress` of the steps; past the last step, that of the end."""
        progress = min(progress, 1.0)
        if progress < self.warmup:
            return progress / self.warmup
        return SCHEDULES[self.schedule]((progress - self.warmup) / (1 - self.warmup))

    def image_scale(self, progress: float) -> float | None:
        """The factor on the images' sides after the share `progress` of the steps; None leaves them."""
        return next((scale for share, scale in reversed(self.image_sizes) if progress >= share), None)

    def size_shares(self) -> dict[float, float]:
        """The share of the steps that is made with each factor on the images' sides; the shares sum to 1."""
        starts = [*self.image_sizes]
        if not starts or starts[0][0] > 0:
            starts.insert(0, (0.0, 1.0))
        ends = [share for share, _ in starts[1:]] + [1.0]
        shares: dict[float, float] = {}
        for (start, scale), end in zip(starts, ends, strict=True):
            shares[scale] = shares.get(scale, 0.0) + end - start
        return shares

    def make_optimizer(self, net: nn.Module) -> torch.optim.Optimizer:
        """The optimizer for the parameters of `net`, at the peak of its learning rates.

        Raises ValueError if no parameter can be trained.
        """
        if not any(parameter.requires_grad for parameter in net.parameters()):
            raise ValueError(f"{type(net).__name__} has no parameter to train: none requires a gradient")
        return OPTIMIZERS[self.optimizer](
            net,
            lr=self.lr,
            lr_rest=self.lr_rest,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as a JSON record holds it."""
        record = asdict(self)
        record["augment"] = None if self.augment is None else self.augment.describe()
        record["teacher"] = None if self.teacher is None else self.teacher.to_dict()
        return json.loads(json.dumps(record))  # tuples become the lists that JSON has

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Recipe:
        """The recipe that `to_dict` wrote; a field that is missing has its default.

        Fields that were added later default to doing nothing, so older records keep their meaning. They
        give `image_sizes` in pixels, for images of 32 pixels.

        Raises ValueError for an unknown field and for a wrong value.
        """
        if not isinstance(record, dict):
            raise ValueError(f"recipe={record!r} must be a dictionary")
        names = [each.name for each in fields(cls)]
        if unknown := [name for name in record if name not in names]:
            raise ValueError(f"unknown fields {unknown} of a recipe; they are {', '.join(names)}")
        values = _tupled(record)
        try:
            if isinstance(values.get("augment"), dict):
                values["augment"] = Augment(**values["augment"])
            if values.get("teacher") is not None:
                values["teacher"] = cls.from_dict(record["teacher"])
            if "image_sizes" in values:
                values["image_sizes"] = _relative_sizes(values["image_sizes"])
        except TypeError as error:
            raise ValueError(f"not the record of a recipe: {error}") from error
        return cls(**values)

    def __hash__(self) -> int:
        # Without `net`, a dictionary. A number's text would not do: 1 and 1.0 make equal recipes.
        return hash(tuple(value for name, value in vars(self).items() if name != "net"))

    def difference(self, other: Recipe) -> tuple[dict[str, Any], dict[str, Any]]:
        """The fields that differ: their values here, and in `other`."""
        here, there = self.to_dict(), other.to_dict()
        names = [name for name in here if here[name] != there[name]]
        return {name: here[name] for name in names}, {name: there[name] for name in names}


MAX_SCALE = 4.0  # the largest factor on the images' sides; anything above it is a number of pixels


def _checked_sizes(sizes) -> tuple[tuple[float, float], ...]:
    try:
        pairs = tuple(
            (as_number("share", share, 0, 1), as_number("factor", scale, 0, MAX_SCALE, above=True))
            for share, scale in sizes
        )
    except (TypeError, ValueError):
        pairs = None
    if pairs is None or [share for share, _ in pairs] != sorted(share for share, _ in pairs):
        raise ValueError(
            f"image_sizes={sizes!r}: expected pairs (share of the steps, factor on the image's sides), with "
            f"shares rising from 0 to 1 and factors above 0 and at most {MAX_SCALE:g}; 0.75 trains images of "
            "32 pixels at 24"
        )
    return pairs


def _relative_sizes(sizes):
    """Image sizes of a record as factors; unchanged if they are factors, or no sizes at all."""
    try:
        if not any(size > MAX_SCALE for _, size in sizes):
            return sizes
        return tuple((share, pixels / LEGACY_SIDE) for share, pixels in sizes)
    except ValueError:  # not pairs, which the recipe refuses
        return sizes


def _checked_options(net) -> dict[str, Any]:
    try:
        options = _tupled({**net})
        plain = _tupled(json.loads(json.dumps(options, allow_nan=False)))
        reason = "" if plain == options else "it does not come back from JSON as it was"
    except (TypeError, ValueError, RecursionError) as error:
        plain, reason = {}, str(error)
    if reason:
        raise ValueError(f"net={net!r} must be a dictionary of plain data: {reason}")
    return plain


def _tupled(value: Any) -> Any:
    """Plain data with tuples for JSON's lists, as a recipe has them."""
    if isinstance(value, dict):
        return {key: _tupled(part) for key, part in value.items()}
    return tuple(map(_tupled, value)) if isinstance(value, list | tuple) else value


# The techniques, names in CONVS, that the studies and the benchmark compare with each other.
COMPARED = ("standard", "dilated", "depthwise_separable", "blueprint_separable", "mixed")

# ---- The named recipes -----------------------------------------------------------------------------

# Tables of rows within the usual rules: fewer than 200,000 parameters, receptive field above 44.
MINUTE_STAGES = (
    ((32, "standard", 2), (32, "standard", 1)),
    ((64, "standard", 2), (64, "standard", 1), (64, "standard", 1)),
    ((64, "dilated", 1),),
    ((128, "depthwise_separable", 1),),
)
# For longer training: more computation at 16x16 pixels.
COFFEE_STAGES = (
    ((48, "standard", 2), (48, "standard", 1), (48, "standard", 1)),
    ((64, "standard", 2), (64, "standard", 1)),
    ((64, "dilated", 1),),
    ((128, "depthwise_separable", 1),) * 2,
)
# For the highest accuracy at this size: dense rows at 32x32 and 16x16 pixels, where each weight is used most
# often, and separable rows at 8x8, where most weights are.
FRONTIER_STAGES = (
    ((32, "standard", 1), (32, "standard", 1), (32, "dilated", 1)),
    ((64, "standard", 2), (64, "standard", 1), (64, "standard", 1)),
    ((128, "depthwise_separable", 2), (128, "depthwise_separable", 1)),
    ((128, "depthwise_separable", 1),) * 3,
)
# The same within the strict rules: fewer than 100,000 parameters, receptive field above 52.
FRONTIER_SMALL_STAGES = (
    ((32, "standard", 1), (32, "standard", 1)),
    ((40, "standard", 2), (40, "standard", 1), (40, "dilated", 1)),
    ((96, "depthwise_separable", 2), (96, "depthwise_separable", 1)),
    ((96, "depthwise_separable", 1),) * 3,
)

# Not bound by the rules: it teaches the networks above and does not change their size.
TEACHER_STAGES = (
    ((32, "standard", 1), (32, "standard", 1)),
    ((128, "standard", 2), (128, "standard", 1), (128, "standard", 1)),
    ((256, "standard", 2), (256, "standard", 1)),
)

# Rows of 48 and 64 channels, of 40 and 72 and of 32 and 80 were tried (results/trials). Multiples of 16 are
# the fastest. Part of the time that this saves is spent on two more epochs, without a trial.
COFFEE = Recipe(
    epochs=26,
    lr=0.07,
    lr_rest=0.02,
    augment=Augment(shift=4),
    label_smoothing=0.1,
    image_sizes=((0.0, 0.75), (0.6, 1.0)),
    net={"stages": COFFEE_STAGES},
)

# More epochs, and cutout, than it needs to fit the training images: a teacher that is too sure of them has
# little to teach. No label smoothing: it would hide how similar the classes are.
TEACHER = replace(
    COFFEE,
    epochs=32,
    lr=0.1,
    augment=Augment(shift=4, cutout=8),
    label_smoothing=0.0,
    net={"stages": TEACHER_STAGES},
)

# Table, teacher and rate were chosen on held-out images in trials of which no records were kept, so that they
# prove nothing here. The number of epochs was not tried.
FRONTIER = replace(
    TEACHER, epochs=100, lr=0.07, net={"stages": FRONTIER_STAGES}, teacher=TEACHER, temperature=2.0
)

# `frontier` as far as it comes in 40 minutes on two cores: without the teacher, which takes longer than that,
# and with 16 pixels for the first quarter of the steps. None of this was tried beforehand.
LUNCH = replace(
    FRONTIER,
    epochs=88,
    label_smoothing=0.1,
    image_sizes=((0.0, 0.5), (0.25, 0.75), (0.6, 1.0)),
    teacher=None,
    temperature=1.0,
)

# What `minute` and the widths of `coffee` were chosen from, on 5,000 held-out training images with two seeds
# each, is in results/trials: `python -m lab trials minute` makes the runs again.
RECIPES: dict[str, Recipe] = {
    # The strict network in minutes. The study `models` found the same rate for it, with 4 epochs.
    "default": Recipe(
        epochs=8,
        lr=0.12,
        augment=Augment(shift=2),  # so short a training underfits anyway
        label_smoothing=0.1,
        image_sizes=((0.0, 0.75), (0.6, 1.0)),  # a step at 24 pixels costs 0.65 of one at 32
    ),
    # The sixth epoch was added because earlier networks had shown that the test images are about 1 point
    # harder than the held-out ones: this length owes something to test figures.
    "minute": Recipe(
        epochs=6,
        lr=0.15,
        lr_rest=0.02,
        augment=Augment(shift=2),
        label_smoothing=0.1,
        image_sizes=((0.0, 0.75), (0.6, 1.0)),
        net={"stages": MINUTE_STAGES},
    ),
    "coffee": COFFEE,
    "lunch": LUNCH,
    "frontier": FRONTIER,
    "frontier-small": replace(FRONTIER, epochs=120, net={"stages": FRONTIER_SMALL_STAGES}),
    "teacher": TEACHER,
}
