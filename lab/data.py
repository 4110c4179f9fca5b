"""A data set in memory as one uint8 tensor; batches are augmented whole, with random parameters per image.

Sections: seeds, the data set (CIFAR-10, its stand-in or another), augmentation, loaders.

Random numbers and constants are float32 on a stated device, whatever torch's default dtype and device are.
"""

from __future__ import annotations

import hashlib
import math
import os
import pickle
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
import torch
import torch.nn.functional as F
import torch.utils.data
from torch import Tensor

from lab.checks import (
    as_choice,
    as_integer,
    as_number,
    as_switch,
    as_tensor,
    check_label_kind,
    check_label_values,
    check_pixels,
    check_type,
)
from lab.download import SOURCES, DamagedFile, DownloadFailed, Source, download, read_checked
from lab.folder import read_folder
from lab.machine import pick_device

# Of CIFAR-10, pooled over all pixels of the 50,000 training images, in [0, 1]:
#   pixels = train_images.double() / 255; pixels.mean((0, 2, 3)); pixels.std((0, 2, 3))
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's "L"

# ---- Seeds -----------------------------------------------------------------------------------------


def seed_bits(seed: int) -> int:
    """The seed if it has at most 32 bits, which is all that torch uses on a CPU; else 32 bits of a hash."""
    if 0 <= seed < 2**32:
        return seed
    return int.from_bytes(hashlib.sha256(str(seed).encode()).digest()[:4], "little")


def epoch_seed(seed: int, epoch: int) -> int:
    """The seed of everything random in an epoch, in [0, 2 ** 64): another for every seed and epoch."""
    return ((seed_bits(seed) + 1) * 1_000_003 + epoch) % 2**64


def generator_from(seed: int, device: str | torch.device = "cpu") -> torch.Generator:
    """A new generator on `device`, seeded with `seed`, which is in [0, 2 ** 64)."""
    return torch.Generator(device).manual_seed(seed)


# ---- The data set ----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images and labels in memory.

    name: "CIFAR-10", "STAND-IN (not CIFAR-10)", "CIFAR-100" or "folder NAME"; figures and records show it.
    train_images, test_images: uint8 (N, 3, 32, 32). train_labels, test_labels: int64 (N,).
    mean, std: of each channel, in [0, 1], by which loaders normalize the images.
    """

    name: str
    classes: tuple[str, ...]
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD


DATASETS = ("auto", "cifar10", "cifar100", "stand-in")
IN_FOLDER = "folder:"  # and the path of a folder of pictures
CIFAR_10, CIFAR_100 = SOURCES["cifar10"].name, SOURCES["cifar100"].name
STAND_IN = "STAND-IN (not CIFAR-10)"


def as_dataset(dataset: Any) -> str:
    """`dataset`, if `load_dataset` takes it. Raises ValueError, with the choices, if it does not."""
    if not isinstance(dataset, str) or not (dataset in DATASETS or dataset.startswith(IN_FOLDER)):
        choices = ", ".join(map(repr, DATASETS))
        raise ValueError(f"unknown dataset {dataset!r}; choose one of {choices}, or '{IN_FOLDER}PATH'")
    if dataset == IN_FOLDER:
        raise ValueError(f"dataset={dataset!r} lacks the path of a folder: expected '{IN_FOLDER}PATH'")
    return str(dataset)


def folder_of(dataset: str) -> str:
    """The name of the folder of pictures that `dataset` asks for; empty for any other data set."""
    if not dataset.startswith(IN_FOLDER):
        return ""
    path = os.path.abspath(os.path.expanduser(dataset[len(IN_FOLDER) :]))
    return "".join(letter if letter.isprintable() else "?" for letter in os.path.basename(path) or path)


def load_dataset(dataset: str = "auto", root: str | Path | None = None) -> Dataset:
    """CIFAR-10 from `root`, `$CIFAR10_ROOT` or `./data`; if none has it, it is downloaded to the first.

    dataset: "cifar10" raises FileNotFoundError if the data can be neither found nor downloaded. "auto"
    then warns loudly and returns the stand-in. "stand-in" always returns the stand-in. "cifar100" is
    CIFAR-100 with its 100 fine classes, found and downloaded as "cifar10" is, and looked for in
    `$CIFAR100_ROOT`. "folder:PATH" is a folder of pictures with a subfolder for each class, see
    `lab/folder.py`, for which `root` does not count.
    root: the folder that contains `cifar-10-batches-py` (or `cifar-100-python`).

    The first whole copy is used, with a warning if an earlier place has a damaged or unreadable one. If
    no copy is whole but one is there, "cifar10" and "auto" both raise FileNotFoundError, which names each
    bad file. Nothing is downloaded then, and a folder that is there is never written to.

    Raises ValueError for an unknown `dataset`, and what `read_folder` raises.
    """
    dataset = as_dataset(dataset)
    if dataset == "stand-in":
        return stand_in()
    if dataset.startswith(IN_FOLDER):
        found = read_folder(dataset[len(IN_FOLDER) :])
        return Dataset(f"folder {folder_of(dataset)}", *found, *pooled_statistics(found.train_images))
    source = SOURCES["cifar10" if dataset == "auto" else dataset]
    places = [Path(place) for place in (root, os.environ.get(f"{source.variable}_ROOT"), "data") if place]
    try:
        return _find(places, source)
    except _NotFound as absent:
        try:
            download(places[0], source)
        except DownloadFailed as error:
            message = f"{absent}\n{error}\n{_advice(source)}"
            if dataset != "auto":
                raise FileNotFoundError(message) from error
            warnings.warn(_banner(message), stacklevel=2)
            return stand_in()
        return _find(places, source)


def pooled_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel over all pixels, in [0, 1], to four decimals.

    images: uint8 (N, 3, H, W). They are computed in whole numbers, so every machine finds the same. The
    deviation is that of one step of 255 at least, since it divides the pixels.
    """
    counts = torch.zeros(3, 256, dtype=torch.long, device="cpu")
    for part in images.cpu().split(5_000):
        counts += torch.stack([part[:, channel].flatten().bincount(minlength=256) for channel in range(3)])
    values = torch.arange(256, device="cpu")
    pixels = int(counts[0].sum())
    sums, squares = ((counts * power).sum(1).tolist() for power in (values, values**2))
    mean = tuple(round(one / pixels / 255, 4) for one in sums)
    deviations = (math.sqrt(pixels * two - one**2) / pixels for one, two in zip(sums, squares, strict=True))
    return mean, tuple(round(max(each, 1.0) / 255, 4) for each in deviations)


def _advice(source: Source) -> str:
    images, meta = [*source.train, *source.test], ", ".join(source.meta)
    files = f"{', '.join(images)} and {meta}"
    return f"""Do one of these:
  - try again later
  - set the environment variable {source.variable}_URL to another address of its archive
  - pass root=FOLDER, where FOLDER/{source.folder} contains {files}
  - set the environment variable {source.variable}_ROOT to that FOLDER
  - unpack {source.urls[0] if source.urls else "its archive"} into ./data"""


class _NotFound(FileNotFoundError):
    """None of the places has the data set's folder."""


class _Damaged(Exception):
    """The data set's folder is there, but not whole or not readable; the message names each fault."""


def _find(places: list[Path], source: Source) -> Dataset:
    """The first whole copy. Raises _NotFound if there is none at all, FileNotFoundError if none is whole."""
    name, faults = source.name, []
    for place in places:
        try:
            data = _read(place / source.folder, source)
        except _Damaged as error:
            faults.append(str(error))
            continue
        if data:
            if faults:
                taken = (
                    f"{name} is taken from {place / source.folder}, because of faults in an earlier place."
                )
                warnings.warn("\n".join([taken, *faults]), stacklevel=3)
            return data
    if not faults:
        looked_in = ", ".join(str(place / source.folder) for place in places)
        raise _NotFound(f"{name} was not found. Looked in: {looked_in}")
    raise FileNotFoundError(
        "\n".join([f"{name} was found, but damaged or not readable.", *faults])
        + "\nNothing was changed, and nothing is downloaded over a folder that is there. Do one of these:\n"
        "  - replace the files named above\n"
        f"  - delete or rename the folder; then {name} is downloaded again\n"
        f"  - pass root=FOLDER, or set the environment variable {source.variable}_ROOT to FOLDER, where "
        f"FOLDER/{source.folder} is a whole copy"
    )


def _read(folder: Path, source: Source) -> Dataset | None:
    """The copy in `folder`, or None if that folder does not exist. Raises _Damaged."""
    try:
        folder.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:  # no permission, or a link that leads to itself
        raise _Damaged(f"  {folder} cannot be read: {error.strerror}") from error
    contents, faults = {}, []
    for name in source.files:
        try:
            contents[name] = pickle.loads(read_checked(folder / name, source), encoding="latin1")
        except DamagedFile as error:
            faults.append(f"  {folder / name} {error}")
    if faults:
        raise _Damaged("\n".join(faults))

    def part(files: Iterable[str]) -> tuple[Tensor, Tensor]:
        batches = [contents[name] for name in files]
        pixels = np.concatenate([batch["data"] for batch in batches]).reshape(-1, 3, 32, 32)
        labels = [label for batch in batches for label in batch[source.labels]]
        return torch.from_numpy(pixels), torch.tensor(labels, device="cpu")

    (meta,) = source.meta
    train = part(source.train)
    statistics = (MEAN, STD) if source.name == CIFAR_10 else pooled_statistics(train[0])
    return Dataset(
        source.name, tuple(contents[meta][source.classes]), *train, *part(source.test), *statistics
    )


def _banner(reason: str) -> str:
    line = "!" * 88
    return (
        f"\n{line}\n!! THIS IS NOT CIFAR-10. What follows runs on a generated stand-in of the same shape.\n"
        f"!! Its results say nothing about CIFAR-10.\n{line}\n{reason}\n{line}"
    )


STAND_IN_CLASSES = tuple(
    f"{size} {pattern}"
    for pattern in ("rows", "columns", "checks", "rings", "spots")
    for size in ("fine", "coarse")
)


def stand_in(train: int = 50_000, test: int = 10_000, seed: SupportsIndex = 0) -> Dataset:
    """Ten classes of noisy two-coloured patterns in CIFAR-10's shape; the same seed gives the same images.

    Pattern, scale, colours, phase and noise are drawn per image. Flips, small rotations and greyscale
    keep the class. A small network learns the classes within a minute.
    """
    generator = generator_from(seed_bits(as_integer("seed", seed)))
    images, labels = [], []
    with torch.device("cpu"):
        for count in (train, test):
            label = torch.arange(count) % 10
            label = label[torch.randperm(count, generator=generator)]
            images.append(torch.cat([_patterns(part, generator) for part in label.split(5_000)]))
            labels.append(label)
    return Dataset(STAND_IN, STAND_IN_CLASSES, images[0], labels[0], images[1], labels[1])


def _patterns(labels: Tensor, generator: torch.Generator) -> Tensor:  # (N,) -> uint8 (N, 3, 32, 32)
    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(len(labels), *shape, generator=generator, dtype=torch.float32)

    axis = torch.linspace(-1, 1, 32, dtype=torch.float32)
    x, y = axis.view(1, 1, 32), axis.view(1, 32, 1)
    waves = math.pi * torch.where(labels % 2 == 0, uniform(5.0, 7.0), uniform(2.0, 3.0)).view(-1, 1, 1)
    rows = torch.sin(waves * y + uniform(0, 2 * math.pi, 1, 1))
    columns = torch.sin(waves * x + uniform(0, 2 * math.pi, 1, 1))
    radius = ((x - uniform(-0.5, 0.5, 1, 1)) ** 2 + (y - uniform(-0.5, 0.5, 1, 1)) ** 2).sqrt()
    kinds = torch.stack(
        [rows.expand(-1, 32, 32), columns.expand(-1, 32, 32), rows * columns, torch.sin(waves * radius)]
        + [torch.minimum(rows, columns)]
    )  # (5, N, 32, 32)
    pattern = kinds[labels // 2, torch.arange(len(labels))].unsqueeze(1)  # (N, 1, 32, 32) in [-1, 1]
    colour, contrast = uniform(0.3, 0.7, 3, 1, 1), uniform(-0.3, 0.3, 3, 1, 1)
    noise = 0.12 * torch.randn(len(labels), 3, 32, 32, generator=generator, dtype=torch.float32)
    return ((colour + contrast * pattern + noise) * 255).clamp(0, 255).to(torch.uint8)


def split(labels: Tensor, held_out: SupportsIndex, seed: SupportsIndex) -> tuple[Tensor, Tensor]:
    """Indices of a training part and a held-out part of `labels`: disjoint, stratified by class.

    labels: int64 (N,). held_out: number of held-out images, from 0 to N - 1. The same seed gives the same
    parts. The number of held-out images of a class differs from its share by at most one.

    Raises ValueError for labels of another shape, for a `held_out` out of range, and for a `seed` that is not
    an integer.
    """
    if as_tensor("labels", labels).ndim != 1 or len(labels) == 0:
        raise ValueError(f"labels of shape {tuple(labels.shape)}: expected classes (N,), at least one")
    count = len(labels)
    held_out = as_integer("held_out", held_out, 0, count - 1)
    generator = generator_from(seed_bits(as_integer("seed", seed)))
    order = torch.randperm(count, generator=generator, device="cpu")
    by_class = order[labels[order].argsort(stable=True)]
    # Every (N / held_out)-th image of the list sorted by class: as even over classes as can be.
    chosen = torch.zeros(count, dtype=torch.bool, device="cpu")
    chosen[by_class[torch.arange(held_out, device="cpu") * count // max(held_out, 1)]] = True
    return (~chosen).nonzero().squeeze(1), chosen.nonzero().squeeze(1)


# ---- Augmentation ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Augment:
    """The augmentation of training images; every image of a batch draws its own parameters.

    A field of 0 or False switches its step off; `Augment.none()` switches all of them off. Raises
    ValueError for a value out of range.
    """

    flip: bool = True  # mirror half of the images left-right
    shift: int = 4  # pixels at most, each way; the image is reflected at its border
    scale: float = 0.0  # factor in [1 - scale, 1 + scale]
    rotate: float = 0.0  # degrees at most, each way
    cutout: int = 0  # pixels, side of one square filled with the data set's mean
    greyscale: float = 0.0  # share of the images
    sharpness: float = 0.0  # factor on the difference from a smoothed image, in [1 - this, 1 + this]
    colour: float = 0.0  # factors on brightness, contrast and saturation, in [1 - this, 1 + this]
    mixup: float = 0.0  # alpha: both parameters of the Beta distribution of the shares of two mixed images

    def __post_init__(self):
        plain: dict[str, Any] = {"flip": as_switch("flip", self.flip)}
        for name, most in (("shift", 16), ("cutout", 32)):
            value = getattr(self, name)
            whole = isinstance(value, float) and value.is_integer()  # 2.0, as older records may have it
            plain[name] = as_integer(name, int(value) if whole else value, 0, most)
        for name, most in (
            ("scale", 0.9),
            ("rotate", 180),
            ("greyscale", 1),
            ("sharpness", 1),
            ("colour", 1),
            ("mixup", 10),
        ):
            plain[name] = as_number(name, getattr(self, name), 0, most)
        for name, value in plain.items():  # records and checkpoints hold plain numbers only, not NumPy's
            object.__setattr__(self, name, value)

    @classmethod
    def none(cls) -> Augment:
        """No augmentation."""
        return cls(flip=False, shift=0)

    @classmethod
    def course(cls) -> Augment:
        """The strict variant's augmentation: flip; shift, scale, rotate; one 16x16 cutout; greyscale."""
        return cls(scale=0.1, rotate=10, cutout=16, greyscale=0.1)

    def describe(self) -> dict[str, Any]:
        """Every step's parameter. Those that came later only if they are on: a run keeps its description."""
        later = {"sharpness", "colour", "mixup"}
        return {name: value for name, value in asdict(self).items() if value or name not in later}


def normalize(images: Tensor, mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> Tensor:
    """uint8 (N, 3, H, W) to float32 with the mean mapped to 0 and the deviation to 1.

    A single image (3, H, W) is taken as well. mean, std: of each channel, in [0, 1]; CIFAR-10's pooled ones
    by default. Raises ValueError for another type or number of channels.
    """
    check_pixels(images if as_tensor("images", images).ndim != 3 else images[None])
    centre, spread = _per_channel(mean, images.device), _per_channel(std, images.device)
    return torch.addcmul(-centre / spread, images.float(), 1 / (255 * spread))  # one pass over the images


def denormalize(images: Tensor, mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> Tensor:
    """Normalized (N, 3, H, W) back to float in [0, 1], for showing. mean, std: those of `normalize`.

    Raises ValueError for integers, which are not normalized.
    """
    if not as_tensor("images", images).is_floating_point():
        raise ValueError(f"images of {images.dtype}: expected normalized floating-point images")
    centre, spread = _per_channel(mean, images.device), _per_channel(std, images.device)
    return (images * spread + centre).clamp(0, 1)


def _per_channel(values: Sequence[float], device: torch.device) -> Tensor:  # (3, 1, 1)
    # Made anew for every call: a kept tensor would carry inference mode, fake tensors or functorch levels
    # into the next one. Filled on the device: a GPU would wait for a copy from the host.
    fills = [torch.full((1, 1, 1), value, dtype=torch.float32, device=device) for value in values]
    return torch.cat(fills)


def augmented(
    images: Tensor,
    augment: Augment,
    generator: torch.Generator,
    mirrored: Tensor | None = None,
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
) -> Tensor:
    """A batch, augmented and normalized: uint8 (N, 3, H, W) to float32 (N, 3, H, W).

    Each image draws its own parameters from `generator`, which must be on the images' device. All steps but
    mixup, which changes the labels as well: `Loader` does that.
    mirrored: bool (N,), which images to mirror if `augment.flip` is set; drawn if None. mean, std: as for
    `normalize`.

    Raises ValueError for images of another shape or type, if they are too small for `augment.shift`, and
    for an `augment` that is not an Augment.
    """
    check_pixels(images)
    check_type("augment", augment, Augment, "an Augment")
    count, device = len(images), images.device
    height, width = images.shape[2:]
    if augment.shift >= min(height, width):
        raise ValueError(
            f"shift={augment.shift} is too large for images of {height}x{width} pixels: it must be less "
            "than their height and width"
        )

    def draw(low: float, high: float) -> Tensor:  # (N,)
        return low + (high - low) * torch.rand(count, generator=generator, dtype=torch.float32, device=device)

    if not augment.flip:
        mirrored = torch.zeros(count, dtype=torch.bool, device=device)
    elif mirrored is None:
        mirrored = draw(0, 1) < 0.5
    dx = draw(-augment.shift - 0.5, augment.shift + 0.5).round()  # whole pixels, all equally likely
    dy = draw(-augment.shift - 0.5, augment.shift + 0.5).round()
    if augment.scale or augment.rotate:
        scale = draw(1 - augment.scale, 1 + augment.scale)
        angle = draw(-augment.rotate, augment.rotate) * (math.pi / 180)
        batch = _warped(normalize(images, mean, std), mirrored, dx, dy, scale, angle)
    elif augment.flip or augment.shift:
        batch = normalize(_moved(images, mirrored, dx.long(), dy.long()), mean, std)
    else:
        batch = normalize(images, mean, std)
    if augment.sharpness or augment.colour:
        centre, spread = _per_channel(mean, device), _per_channel(std, device)
        pixels = batch * spread + centre
        if augment.sharpness:
            pixels = _sharpened(pixels, draw(1 - augment.sharpness, 1 + augment.sharpness))
        if augment.colour:
            pixels = _recoloured(pixels, *(draw(1 - augment.colour, 1 + augment.colour) for _ in range(3)))
        batch = (pixels - centre) / spread
    if augment.greyscale:
        grey = (draw(0, 1) < augment.greyscale).view(-1, 1, 1, 1)
        centre, spread = _per_channel(mean, device), _per_channel(std, device)
        batch = torch.where(grey, (_luminance(batch * spread + centre) - centre) / spread, batch)
    if augment.cutout:
        batch = batch.masked_fill(_square(batch, augment.cutout, draw), 0.0)  # 0 is the mean, once normalized
    return batch


def _moved(images: Tensor, mirrored: Tensor, dx: Tensor, dy: Tensor) -> Tensor:
    """Mirror and shift by whole pixels, reflected at the border: one gather over the batch's pixels."""
    count, channels, height, width = images.shape

    def source(size: int, offset: Tensor) -> Tensor:  # (N, size), the index that each pixel comes from
        place = (torch.arange(size, device=images.device) + offset.view(-1, 1)).abs()
        return (size - 1) - ((size - 1) - place).abs()

    rows, columns = source(height, dy), source(width, dx)
    columns = torch.where(mirrored.view(-1, 1), columns.flip(1), columns)
    first = torch.arange(count, device=images.device).view(-1, 1, 1) * (height * width)
    flat = (first + rows.unsqueeze(2) * width + columns.unsqueeze(1)).view(-1)
    pixels = images.permute(0, 2, 3, 1).reshape(-1, channels)  # a view if channels are last in memory
    return pixels.index_select(0, flat).view(count, height, width, channels).permute(0, 3, 1, 2)


def _warped(images: Tensor, mirrored: Tensor, dx: Tensor, dy: Tensor, scale: Tensor, angle: Tensor) -> Tensor:
    """Mirror, shift by pixels, scale and rotate about the centre; bilinear, reflected at the border."""
    height, width = images.shape[2:]
    cos, sin = angle.cos() / scale, angle.sin() / scale
    sign = 1 - 2 * mirrored.to(cos.dtype)
    # The inverse map, from a place in the new image to its source, both in [-1, 1]. Rotation mixes the two
    # axes, whose units differ if the image is not square.
    theta = torch.stack(
        [
            torch.stack([cos * sign, -sin * (height / width), dx * (2 / width)], 1),
            torch.stack([sin * sign * (width / height), cos, dy * (2 / height)], 1),
        ],
        1,
    )  # (N, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def _luminance(pixels: Tensor) -> Tensor:  # (N, 3, H, W) in [0, 1] -> (N, 1, H, W)
    return (pixels * _per_channel(LUMA, pixels.device)).sum(1, keepdim=True)


def _sharpened(pixels: Tensor, factor: Tensor) -> Tensor:
    """Multiply each pixel's difference from its 3x3 surroundings, where it counts five times."""
    weights = torch.ones(3, 3, device=pixels.device, dtype=pixels.dtype)
    weights[1, 1] = 5
    kernel = (weights / weights.sum()).expand(pixels.shape[1], 1, 3, 3)
    smooth = F.conv2d(F.pad(pixels, (1, 1, 1, 1), mode="replicate"), kernel, groups=pixels.shape[1])
    return torch.lerp(smooth, pixels, factor.view(-1, 1, 1, 1)).clamp(0, 1)


def _recoloured(pixels: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor) -> Tensor:
    """Multiply an image by `brightness`, its difference from its mean luminance, and that from its greys."""
    brightness, contrast, saturation = (each.view(-1, 1, 1, 1) for each in (brightness, contrast, saturation))
    pixels = pixels * brightness
    grey = _luminance(pixels)
    mean = grey.mean((2, 3), keepdim=True)
    grey, pixels = (torch.lerp(mean, each, contrast) for each in (grey, pixels))
    return torch.lerp(grey, pixels, saturation).clamp(0, 1)


def mixed(images: Tensor, probabilities: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """Mix each image (N, ...), and its probabilities (N, classes), with the one before it in the batch.

    shares: in [0, 1], (N,), what stays of each image; the first is mixed with the last.

    Source: Zhang et al., "mixup: Beyond Empirical Risk Minimization", arXiv 1710.09412.
    """
    stays = shares.to(images.dtype).view(-1, *[1] * (images.ndim - 1))
    return (
        torch.lerp(images.roll(1, 0), images, stays),
        torch.lerp(probabilities.roll(1, 0), probabilities, shares.to(probabilities.dtype).view(-1, 1)),
    )


def _square(batch: Tensor, side: int, draw: Callable[[float, float], Tensor]) -> Tensor:
    """bool (N, 1, H, W): one square per image, its centre anywhere in the image, cut off at the border."""
    height, width = batch.shape[2:]

    def inside(size: int) -> Tensor:  # (N, size)
        start = draw(0, size).floor() - side // 2
        place = torch.arange(size, device=batch.device)
        return (place >= start.view(-1, 1)) & (place < start.view(-1, 1) + side)

    return (inside(height).unsqueeze(2) & inside(width).unsqueeze(1)).unsqueeze(1)


# ---- Loaders ---------------------------------------------------------------------------------------

LOADER_PARTS = ("", "train", "validation", "test")  # of a data set; "" says nothing


def _statistics(name: str, values: Sequence[float]) -> tuple[float, ...]:
    """Three plain numbers in [0, 1]; those of "std" are above 0. Raises ValueError for anything else."""
    try:
        numbers = tuple(float(as_number(name, value, 0, 1, above=name == "std")) for value in values)
    except TypeError:
        numbers = ()
    if len(numbers) != 3:
        raise ValueError(f"{name}={values!r} must be three numbers, one for each channel")
    return numbers


class Loader:
    """Batches of (images, labels) from a uint8 tensor in memory: float32 (N, 3, H, W), and labels as given.

    With `augment.mixup` the labels are probabilities (N, classes), of which the image's own is the largest.

    Each image appears once per epoch; the last batch may be smaller. Order and augmentation depend only on
    `seed` and `epoch`, the number of passes begun: a loader whose `epoch` is set continues where another
    stopped. With flips, an image is mirrored in every second epoch.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        batch_size: SupportsIndex,
        augment: Augment | None = None,
        shuffle: bool = False,
        seed: SupportsIndex = 0,
        name: str = "",
        part: str = "",
        classes: tuple[str, ...] = (),
        mean: Sequence[float] = MEAN,
        std: Sequence[float] = STD,
    ):
        """images: uint8 (N, 3, H, W); labels: int64 (N,), or probabilities (N, classes). Both are on one
        device; the batches come from it.

        seed: any integer.
        name, part ("train", "validation" or "test"), classes: from the data set, for figures and records.
        mean, std: of the data set, as for `normalize`.

        Raises ValueError for images of another shape or type, for no image, for labels that do not fit the
        images or `classes`, and for any other argument of another kind.
        """
        check_pixels(images)
        check_label_kind(labels, len(images))
        if len(images) == 0:
            raise ValueError("0 images: expected at least one")
        if images.device != labels.device:
            raise ValueError(f"images on {images.device} and labels on {labels.device}: expected one device")
        check_label_values(labels, len(classes) or None)
        if augment is not None:
            check_type("augment", augment, Augment, "an Augment, such as Augment(), or None")
        if augment is not None and augment.mixup and labels.ndim == 1 and not classes:
            raise ValueError(
                "mixup makes probabilities of the labels: give `classes`, the name of each class"
            )
        check_type("name", name, str, "a string")
        self.images = images.contiguous(memory_format=torch.channels_last)
        self.labels = labels
        self.batch_size = as_integer("batch_size", batch_size, least=1)
        self.augment = augment or Augment.none()
        self.shuffle = as_switch("shuffle", shuffle)
        self.seed = as_integer("seed", seed)
        self.name = name
        self.part = as_choice("part", part, LOADER_PARTS)
        self.classes = classes
        self.mean, self.std = _statistics("mean", mean), _statistics("std", std)
        self.epoch = 0
        self.source: dict[str, Any] | None = None  # for labels that were computed: what they come from
        self._dataset: tuple[tuple[Tensor, Tensor, tuple[str, ...]], ImageDataset] | None = None

    def __len__(self) -> int:
        """Number of batches."""
        return math.ceil(len(self.images) / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        device, count = self.images.device, len(self.images)
        seed, epoch = as_integer("seed", self.seed), as_integer("epoch", self.epoch)
        generator = generator_from(seed_bits(seed), device)
        odd = torch.rand(count, generator=generator, dtype=torch.float32, device=device) < 0.5
        mirrored = odd ^ bool(epoch % 2)
        generator = generator_from(epoch_seed(seed, epoch), device)
        self.epoch = epoch + 1
        if self.shuffle:
            order = torch.randperm(count, generator=generator, device=device)
        else:
            order = torch.arange(count, device=device)
        shares = np.random.default_rng(epoch_seed(seed, epoch)) if self.augment.mixup else None
        for batch in order.split(min(self.batch_size, count)):  # torch takes 64 bits
            images = augmented(
                self.images[batch], self.augment, generator, mirrored[batch], self.mean, self.std
            )
            yield self._mixed(images, self.labels[batch], shares) if shares else (images, self.labels[batch])

    def _mixed(self, images: Tensor, labels: Tensor, shares: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Mixed in shares of which the larger is the image's own."""
        share = shares.beta(self.augment.mixup, self.augment.mixup, len(images))
        larger = torch.from_numpy(np.maximum(share, 1 - share).astype(np.float32)).to(images.device)
        if labels.ndim == 1:
            labels = F.one_hot(labels, len(self.classes)).float()
        return mixed(images, labels, larger)

    @property
    def dataset(self) -> ImageDataset:
        """The same images one by one, without augmentation and in the order of `images`."""
        source = self.images, self.labels, self.classes
        if self._dataset is None or any(a is not b for a, b in zip(self._dataset[0], source, strict=True)):
            # Kept: it copies images on a GPU.
            self._dataset = source, ImageDataset(*source, mean=self.mean, std=self.std)
        return self._dataset[1]

    def digest(self) -> str:
        """`tensor_digest` of images and labels: the same on every device and in every memory format."""
        return tensor_digest(self.images, self.labels)

    def describe(self) -> dict[str, Any]:
        """Everything that determines the batches except seed and epoch, as plain JSON data."""
        return {
            "loader": type(self).__name__,
            "name": self.name,
            "part": self.part,
            "images": len(self.images),
            "batch_size": self.batch_size,
            "shuffle": bool(self.shuffle),
            "augment": self.augment.describe(),
            **(self.source or {"digest": self.digest()}),
            # Not for CIFAR-10's, so that its runs are what they were before there were others.
            **({} if (self.mean, self.std) == (MEAN, STD) else {"mean": [*self.mean], "std": [*self.std]}),
        }


class ImageDataset(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """Images and labels as a map-style data set, for example for `torch.utils.data.DataLoader`.

    Item i is (image, label): the normalized image, float32 (3, H, W), and its label, int64 () or
    probabilities (classes,). Both are on the CPU, so that worker processes can read them from a loader
    on a GPU. `targets` is the list of all labels, as in torchvision's data sets.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        classes: tuple[str, ...] = (),
        *,
        mean: Sequence[float] = MEAN,
        std: Sequence[float] = STD,
    ):
        """images: uint8 (N, 3, H, W); labels: int64 (N,), or probabilities (N, classes).

        mean, std: as for `normalize`.
        """
        self.images, self.labels, self.classes = images.cpu(), labels.cpu(), classes
        self.mean, self.std = _statistics("mean", mean), _statistics("std", std)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return normalize(self.images[index], self.mean, self.std), self.labels[index].clone()

    @property
    def targets(self) -> list:
        """The labels as Python numbers, or lists of probabilities."""
        return self.labels.tolist()


def tensor_digest(*tensors: Tensor) -> str:
    """The first 16 hex digits of the SHA-256 of the tensors' dtypes, shapes and values.

    It does not depend on device and memory format. The values of a 4-dimensional tensor (N, C, H, W) are
    read in the order N, H, W, C, in which the images of a `Loader` are in memory: 50,000 images take
    0.14 s on one core, half as long as with a transposition.
    """
    sha256 = hashlib.sha256()
    for tensor in tensors:
        sha256.update(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode())
        values = tensor.detach().cpu()
        if values.ndim == 4:
            values = values.permute(0, 2, 3, 1)
        sha256.update(values.contiguous().view(-1).view(torch.uint8).numpy().data)
    return sha256.hexdigest()[:16]


def cifar10_loaders(
    batch_size: SupportsIndex = 256,
    root: str | Path | None = None,
    *,
    dataset: str = "auto",
    augment: Augment | bool = True,
    validation: SupportsIndex = 0,
    limit: SupportsIndex | None = None,
    device: str | torch.device | None = None,
    seed: SupportsIndex = 0,
) -> tuple[Loader, ...]:
    """(train, test) loaders, or (train, validation, test) if `validation` images are held out.

    root, dataset: as for `load_dataset`. augment: for the training images only; True is `Augment()`,
    False is none. validation: number of training images to hold out, stratified by class; the same seed
    holds out the same ones. limit: at most this many training and this many test images, stratified too.
    device: where the data is kept and the batches come from; None picks CUDA or MPS if available.
    seed: any integer, as for `Loader`.

    Raises ValueError for a bad number and FileNotFoundError as `load_dataset` does.
    """
    data = load_dataset(dataset, root)
    return loaders_from(
        data, batch_size, augment=augment, validation=validation, limit=limit, device=device, seed=seed
    )


def loaders_from(
    data: Dataset,
    batch_size: SupportsIndex = 256,
    *,
    augment: Augment | bool = True,
    validation: SupportsIndex = 0,
    limit: SupportsIndex | None = None,
    device: str | torch.device | None = None,
    seed: SupportsIndex = 0,
) -> tuple[Loader, ...]:
    """As `cifar10_loaders`, from a data set that is already in memory."""
    check_type("data", data, Dataset, "a Dataset, as load_dataset returns it")
    if isinstance(augment, bool):
        augment = Augment() if augment else Augment.none()
    if not isinstance(augment, Augment):
        raise ValueError(f"augment={augment!r} must be an Augment, True or False")
    device = pick_device(device)

    def loader(part: str, images: Tensor, labels: Tensor, augment: Augment | None = None) -> Loader:
        return Loader(
            images.to(device),
            labels.to(device),
            batch_size=batch_size,
            augment=augment,
            shuffle=part == "train",
            seed=seed,
            name=data.name,
            part=part,
            classes=data.classes,
            mean=data.mean,
            std=data.std,
        )

    train_images, train_labels = _limited(data.train_images, data.train_labels, limit)
    validation = as_integer("validation", validation, 0, len(train_labels) - 1)
    kept, held_out = split(train_labels, validation, seed)
    loaders = [loader("train", train_images[kept], train_labels[kept], augment)]
    if validation:
        loaders.append(loader("validation", train_images[held_out], train_labels[held_out]))
    loaders.append(loader("test", *_limited(data.test_images, data.test_labels, limit)))
    return tuple(loaders)


def _limited(images: Tensor, labels: Tensor, limit: SupportsIndex | None) -> tuple[Tensor, Tensor]:
    if limit is None:
        return images, labels
    limit = as_integer("limit", limit, least=1)
    if limit >= len(labels):
        return images, labels
    chosen = split(labels, limit, seed=0)[1]
    return images[chosen], labels[chosen]
