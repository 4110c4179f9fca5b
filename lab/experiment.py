"""An experiment: everything that decides a result, as one frozen object; and `run`, which carries it out."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lab.checkpoints import NotSaved
from lab.checks import as_choice, as_integer, check_type
from lab.data import (
    CIFAR_100,
    MEAN,
    STAND_IN,
    STD,
    Augment,
    Dataset,
    Loader,
    as_dataset,
    folder_of,
    load_dataset,
    loaders_from,
)
from lab.files import held
from lab.interrupts import Interrupted
from lab.loaders import random_states_kept
from lab.machine import pick_device
from lab.recipes import RECIPES, Recipe
from lab.records import History
from lab.training import Diverged, distilled, fit
from model import CONVS, NORMS, Net, Preprocessing

PUBLISHED = Path(__file__).resolve().parent.parent / "results" / "frontier"  # has the published teacher
PREPROCESSING = Preprocessing(32, MEAN, STD)  # for the networks that are trained here on CIFAR-10
DTYPES = ("float32", "bfloat16", "float16")
MAX_STEM = 255 - 64  # bytes: file systems allow 255 for a name, and a file being written has a long ending


@dataclass(frozen=True)
class Experiment:
    """Everything that decides a result. Raises ValueError for a wrong value, naming it and the choices."""

    label: str  # what tables and files call it, apart from held-out images, limit and seed
    recipe: Recipe = field(default_factory=lambda: RECIPES["default"])
    norm: str = "batch"  # a name in NORMS
    conv: str = "mixed"  # a name in CONVS
    seed: int = 0  # for weights, data order, augmentation and held-out images
    dataset: str = "auto"  # as `load_dataset` takes it
    validation: int = 0  # training images held out; if any, the run is evaluated on them only
    limit: int | None = None  # at most this many training and this many test images
    dtype: str | None = None  # number format; None is the fastest on the processor, found by timing

    def __post_init__(self):
        if not isinstance(self.label, str) or not re.search(r"\w", self.label):
            raise ValueError(f"label={self.label!r} must be a string with a letter or digit")
        if re.search(r"[/\\]", self.label) or not self.label.isprintable():
            raise ValueError(
                f"label={self.label!r} must be a name in one line, not a path; the folder is `out` (--out)"
            )
        if not isinstance(self.recipe, Recipe):
            raise ValueError(f"recipe={self.recipe!r} must be a Recipe; RECIPES has the named ones")
        for name, choices in (("norm", NORMS), ("conv", CONVS), ("dtype", DTYPES)):
            if name != "dtype" or self.dtype is not None:
                object.__setattr__(self, name, as_choice(name, getattr(self, name), choices))
        object.__setattr__(self, "dataset", as_dataset(self.dataset))
        object.__setattr__(self, "seed", as_integer("seed", self.seed))
        object.__setattr__(self, "validation", as_integer("validation", self.validation, 0))
        if self.limit is not None:
            object.__setattr__(self, "limit", as_integer("limit", self.limit, 1))
        if (size := len(self.stem.encode())) > MAX_STEM:
            label = self.label if len(self.label) <= 40 else self.label[:40] + "..."
            raise ValueError(
                f"label={label!r} makes file names of {size} bytes before their endings: at most {MAX_STEM}, "
                "with data set, held-out images, limit and seed"
            )

    @classmethod
    def named(
        cls, recipe: str, *, label: str | None = None, epochs: int | None = None, **options
    ) -> Experiment:
        """The experiment with the recipe of that name, for `epochs` instead of the recipe's own.

        label: by default made from recipe, norm and conv. options: the other fields.
        """
        recipe = as_choice("recipe", recipe, RECIPES)
        chosen = RECIPES[recipe] if epochs is None else replace(RECIPES[recipe], epochs=epochs)
        if label is not None:
            return cls(label, chosen, **options)
        made = cls(recipe, chosen, **options)
        return replace(made, label=_label(recipe, made.norm, made.conv))

    @property
    def name(self) -> str:
        """What a record calls it: experiments of this name differ only in the seed and the number format."""
        name = self.label
        if other := "cifar100" if self.dataset == "cifar100" else folder_of(self.dataset):
            name += f"-{other}"
        if self.validation:  # figures from held-out images must not be taken for test figures
            name += f"-held-out-{self.validation}"
        return name if self.limit is None else f"{name}-limit-{self.limit}"

    @property
    def stem(self) -> str:
        """The name of its files, without the ending."""
        words = re.sub(r"[^\w.]+", "-", self.name).strip("-")
        return f"{words}-seed{self.seed}"

    @property
    def teacher(self) -> Experiment | None:
        """The experiment that trains the teacher of the recipe: one for all seeds.

        Which images are held out depends on the seed, so then each seed needs its own teacher.
        """
        recipe = self.recipe.teacher
        if recipe is None:
            return None
        usual = recipe.epochs == RECIPES["teacher"].epochs  # an ablation's is shorter, and kept apart
        return replace(
            self,
            label=_label("teacher" if usual else f"teacher-{recipe.epochs}-epochs", "batch", "mixed"),
            recipe=recipe,
            norm="batch",
            conv="mixed",
            seed=self.seed if self.validation else 0,
        )

    def loaders(self, data: Dataset, device: torch.device) -> tuple[Loader, Loader]:
        """The training images, and those to evaluate on: the held-out ones if any, else the test images."""
        if not self._fits(data):
            raise ValueError(
                f"the experiment asks for dataset={self.dataset!r}, and the data set is {data.name}"
            )
        train_loader, evaluation, *_ = loaders_from(
            data,
            self.recipe.batch_size,
            augment=True if self.recipe.augment is None else self.recipe.augment,
            validation=self.validation,
            limit=self.limit,
            device=device,
            seed=self.seed,
        )
        return train_loader, evaluation

    def _fits(self, data: Dataset) -> bool:
        """Whether the data set can be the one that is asked for; "auto" takes any."""
        if folder := folder_of(self.dataset):
            return data.name == f"folder {folder}"
        if self.dataset == "cifar100":
            return data.name == CIFAR_100
        return self.dataset != "cifar10" or data.name not in (STAND_IN, CIFAR_100)

    def network(self, num_classes: int = 10) -> Net:
        """The untrained network, its weights drawn from the seed; torch's random state stays as it was.

        num_classes: of the data set, unless the recipe's options of the network say another number.
        """
        options: dict[str, Any] = {"num_classes": num_classes} | self.recipe.net
        with random_states_kept(torch.device("cpu")):
            torch.manual_seed(self.seed % 2**64)
            return Net(self.norm, self.conv, **options)


def _label(recipe: str, norm: str, conv: str) -> str:
    return f"{recipe}-{norm}-{conv}"


class Run(NamedTuple):
    """The result of an experiment."""

    net: Net
    history: History


def run(
    experiment: Experiment,
    out: str | Path = "runs",
    *,
    data: Dataset | None = None,
    root: str | Path | None = None,
    device: str | torch.device | None = None,
    threads: int | None = None,
    resume: bool = True,
    progress: bool = True,
    on_epoch: Callable[[History], object] | None = None,
) -> Run:
    """Train the experiment's network, or resume from its checkpoint, and return the network and its History.

    The folder `out` gets `STEM.json`, the record; `STEM.pt`, the network, for `Net.load`; and
    `STEM.checkpoint`, from which the same call resumes, and which tells it that the run is finished
    (`resume=False` starts again). data: a data set in memory, if it has been loaded before. root, device:
    as for `cifar10_loaders`. threads: as for `fit`. on_epoch: as for `fit`, and not called for a teacher.
    The teacher of the recipe is looked for in `out`, then among the published results; if neither has it, it
    is trained first.

    Raises what `fit` raises, and FileNotFoundError if the data set is asked for and cannot be found. In an
    Interrupted, `net` is the network as it was when it was stopped.
    """
    check_type("experiment", experiment, Experiment, "an Experiment")
    out, device = Path(out), pick_device(device)
    data = data or load_dataset(experiment.dataset, root)
    with held(out / f"{experiment.stem}.checkpoint"):
        options = {"threads": threads, "resume": resume, "progress": progress}
        return _run(experiment, out, data, device, on_epoch, **options)


def _run(experiment: Experiment, out: Path, data: Dataset, device: torch.device, on_epoch, **options) -> Run:
    """options: threads, resume and progress, as for `run`."""
    train_loader, evaluation = experiment.loaders(data, device)
    dtype = getattr(torch, experiment.dtype) if experiment.dtype else None
    net = experiment.network(len(data.classes) or 10)
    height, width = data.train_images.shape[2:]
    net.preprocessing = Preprocessing(height, data.mean, data.std) if height == width else None
    net.classes = data.classes
    _rehearse(net, out, experiment.stem)
    if experiment.teacher is not None:
        teacher = _teacher(experiment.teacher, out, train_loader, data=data, device=device, **options)
        teacher = teacher.to(device)
        train_loader = distilled(train_loader, teacher, experiment.recipe.temperature, dtype=dtype)
    try:
        history = fit(
            net,
            train_loader,
            evaluation,
            experiment.recipe,
            seed=experiment.seed,
            device=device,
            dtype=dtype,
            checkpoint=out / f"{experiment.stem}.checkpoint",
            measure_peak=True,
            on_epoch=on_epoch,
            name=experiment.name,
            **options,
        )
    except Interrupted as stop:
        stop.net = net
        raise
    except Diverged as error:
        if error.history is not None:
            error.history.diverged = str(error)
            error.history.save(out / f"{experiment.stem}.json")
        raise
    except NotSaved as error:  # the record and the network need less room than the checkpoint
        with suppress(OSError):
            error.history.save(out / f"{experiment.stem}.json")
            net.save(out / f"{experiment.stem}.pt", error.history.to_dict())
        raise
    history.save(out / f"{experiment.stem}.json")
    net.save(out / f"{experiment.stem}.pt", history.to_dict())
    return Run(net, history)


def train_teacher(
    experiment: Experiment,
    out: str | Path = "runs",
    *,
    data: Dataset | None = None,
    root: str | Path | None = None,
    device: str | torch.device | None = None,
    **options,
) -> None:
    """Train the teacher of the experiment's recipe, if there is one and it is not found as `run` says.

    The arguments are those of `run`.
    """
    if experiment.teacher is not None:
        data = data or load_dataset(experiment.dataset, root)
        loader, _ = experiment.loaders(data, pick_device(device))
        _teacher(experiment.teacher, Path(out), loader, data=data, device=device, **options)


def _rehearse(net: Net, out: Path, stem: str) -> None:
    """Find out before the training whether record and network can be saved. Raises ValueError if not."""
    for ending in (".json", ".pt"):
        if (out / f"{stem}{ending}").is_dir():
            raise ValueError(f"{out / stem}{ending} is a folder; give another folder for the results (--out)")
    net.save(out / f"{stem}.pt.trial").unlink()


def _teacher(experiment: Experiment, out: Path, loader: Loader, **options) -> Net:
    """The trained teacher. One from another training is skipped, and never replaced."""
    own, published = (folder / f"{experiment.stem}.pt" for folder in (out, PUBLISHED))
    differences = {path: _difference(path, experiment, loader) for path in (own, published) if path.exists()}
    path = next((path for path, difference in differences.items() if not difference), own)
    if path not in differences:
        run(experiment, out, **options)
    elif differences[path]:
        raise ValueError(
            f"the teacher {path} is from another training, with {differences[path]}; give another folder "
            "(--out), or remove the file"
        )
    print(f"learning from {path}", file=sys.stderr)
    return Net.load(path)


def _difference(path: Path, experiment: Experiment, loader: Loader) -> str:
    """How the training that the file records differs from the experiment on these data; empty if not."""
    net = Net.load(path)
    try:
        made = History.from_dict(net.metadata, "its metadata")
    except ValueError as error:
        return f"no record of it: {error}"
    built = net.config["norm"], net.config["conv"]
    if built != (experiment.norm, experiment.conv):
        return f"norm and conv {built}, not {(experiment.norm, experiment.conv)}"
    if made.dataset != loader.name:
        return f"dataset {made.dataset!r}, not {loader.name!r}"
    digest = made.data.get("train", {}).get("digest")
    if digest not in (None, loader.digest()):
        return "other training images"
    here, there = Recipe.from_dict(made.recipe).difference(experiment.recipe)
    return f"recipe {here}, not {there}" if here else ""


# ---- Ablations: what each choice of a frontier recipe gives ----------------------------------------


def without_teacher(recipe: Recipe, **changes) -> Recipe:
    """The recipe on smoothed labels instead of a teacher's, with `changes` to its fields."""
    return replace(recipe, **{"teacher": None, "temperature": 1.0, "label_smoothing": 0.1} | changes)


def with_teacher(recipe: Recipe) -> Recipe:
    """The recipe with its teacher, trained for as many epochs as the network itself."""
    if recipe.teacher is None:
        raise ValueError("the recipe has no teacher")
    return replace(recipe, teacher=replace(recipe.teacher, epochs=recipe.epochs))


def _changed_augment(recipe: Recipe, **changes) -> Recipe:
    return without_teacher(recipe, augment=replace(recipe.augment or Augment.none(), **changes))


def _first_row_strided(recipe: Recipe) -> Recipe:
    ((channels, conv, _), *rows), *stages = recipe.net["stages"]
    return without_teacher(recipe, net={"stages": (((channels, conv, 2), *rows), *stages)})


def _no_dilation(recipe: Recipe) -> Recipe:
    stages = tuple(
        tuple(
            (channels, "standard" if conv == "dilated" else conv, stride) for channels, conv, stride in rows
        )
        for rows in recipe.net["stages"]
    )
    return without_teacher(recipe, net={"stages": stages})


ABLATIONS: dict[str, Callable[[Recipe], Recipe]] = {
    "labels": without_teacher,
    "teacher": with_teacher,
    # At lr 0.4 `frontier-small` learned nothing (11.1 % held out, 8 epochs).
    "sgd": partial(without_teacher, optimizer="sgd", lr=0.1, momentum=0.9, weight_decay=5e-4),
    "32-pixels": partial(without_teacher, image_sizes=()),
    "no-label-smoothing": partial(without_teacher, label_smoothing=0.0),
    "no-cutout": partial(_changed_augment, cutout=0),
    "no-shift": partial(_changed_augment, shift=0),
    "first-row-strided": _first_row_strided,
    "no-dilation": _no_dilation,
}


def ablations(
    recipe: str, *, epochs: int = 8, only: Iterable[str] | None = None, validation: int = 5_000, **options
) -> dict[str, Experiment]:
    """For each change in ABLATIONS (or `only` these), the shortened recipe with this one change.

    validation: training images held out, since choices are made on them. options: as for `Experiment`.
    Raises ValueError for an unknown change, and if no image is held out.
    """
    if validation < 1:
        raise ValueError(f"validation={validation}: choices are made on held-out images, at least 1")
    chosen = list(ABLATIONS if only is None else only)
    if unknown := [change for change in chosen if change not in ABLATIONS]:
        raise ValueError(f"unknown changes {unknown}; choose from {', '.join(map(repr, ABLATIONS))}")
    whole = Experiment.named(recipe, label=recipe, epochs=epochs, validation=validation, **options)
    return {
        change: replace(
            whole, label=f"{recipe}-{epochs}-epochs-{change}", recipe=ABLATIONS[change](whole.recipe)
        )
        for change in chosen
    }
