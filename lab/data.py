"""CIFAR-10 in memory: one uint8 tensor, whole batches augmented at once with parameters per image.

Sections: the data set (CIFAR-10 or its stand-in), augmentation, loaders.
"""

from __future__ import annotations

import math
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.datasets import CIFAR10

from lab.machine import pick_device

# Pooled over all pixels of the 50,000 training images, in [0, 1]:
#   pixels = train_images.double() / 255; pixels.mean((0, 2, 3)); pixels.std((0, 2, 3))
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's "L"

FOLDER = CIFAR10.base_folder  # "cifar-10-batches-py"
DOWNLOAD_TIMEOUT = 30  # seconds without a byte, after which a download counts as failed

# ---- The data set ----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images and labels in memory.

    name: "CIFAR-10" or "STAND-IN (not CIFAR-10)"; every figure and record carries it.
    train_images, test_images: uint8 (N, 3, 32, 32). train_labels, test_labels: int64 (N,).
    """

    name: str
    classes: tuple[str, ...]
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


DATASETS = ("auto", "cifar10", "stand-in")
STAND_IN = "STAND-IN (not CIFAR-10)"


def load_dataset(dataset: str = "auto", root: str | Path | None = None) -> Dataset:
    """CIFAR-10 from `root`, `$CIFAR10_ROOT` or `./data`, downloaded to the first of them where it is in none.

    dataset: "cifar10" raises FileNotFoundError where it can be neither found nor fetched; "auto" then
    warns loudly and returns the stand-in; "stand-in" returns the stand-in without looking.
    root: the folder that holds `cifar-10-batches-py`.
    """
    if dataset not in DATASETS:
        raise ValueError(f"unknown dataset {dataset!r}; choose one of {', '.join(map(repr, DATASETS))}")
    if dataset == "stand-in":
        return stand_in()
    try:
        return _cifar10(root)
    except FileNotFoundError as error:
        if dataset == "cifar10":
            raise
        warnings.warn(_banner(str(error)), stacklevel=2)
        return stand_in()


def _cifar10(root: str | Path | None) -> Dataset:
    places = [Path(place) for place in (root, os.environ.get("CIFAR10_ROOT"), "data") if place]
    home = next((place for place in places if (place / FOLDER).is_dir()), None)
    try:
        with _socket_timeout(DOWNLOAD_TIMEOUT):
            # torchvision compares every file with its MD5, and downloads where one is missing or differs.
            train = CIFAR10(home or places[0], train=True, download=True)
        test = CIFAR10(home or places[0], train=False)
    except (OSError, RuntimeError) as error:  # no network, a broken download, a folder not writable
        state = (
            f"found in {home}, but damaged (a file is missing, or its MD5 differs)" if home else "not found"
        )
        raise FileNotFoundError(
            f"CIFAR-10 was {state}, and the download to {home or places[0]} failed: {error}\n"
            f"Looked in: {', '.join(str(place / FOLDER) for place in places)}\n"
            "What to do, any of these:\n"
            f"  - give root=FOLDER, where FOLDER/{FOLDER} holds data_batch_1 to data_batch_5, test_batch "
            "and batches.meta\n"
            "  - set the environment variable CIFAR10_ROOT to that FOLDER\n"
            f"  - unpack {CIFAR10.url} into ./data"
        ) from error
    return Dataset(
        "CIFAR-10",
        tuple(train.classes),
        _channels_first(train.data),
        torch.tensor(train.targets),
        _channels_first(test.data),
        torch.tensor(test.targets),
    )


def _channels_first(pixels: np.ndarray) -> Tensor:  # (N, 32, 32, 3) -> (N, 3, 32, 32), the memory as it lies
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _banner(reason: str) -> str:
    line = "!" * 88
    return (
        f"\n{line}\n!! THIS IS NOT CIFAR-10. What follows runs on a generated stand-in of the same shape,\n"
        f"!! and no figure of it says anything about CIFAR-10.\n{line}\n{reason}\n{line}"
    )


STAND_IN_CLASSES = tuple(
    f"{size} {pattern}"
    for pattern in ("rows", "columns", "checks", "rings", "spots")
    for size in ("fine", "coarse")
)


def stand_in(train: int = 50_000, test: int = 10_000, seed: int = 0) -> Dataset:
    """Ten classes of noisy two-coloured patterns, the same for the same seed, in CIFAR-10's shape.

    Patterns, scales, colours, phases and noise are drawn per image; the classes survive flips, small
    rotations and greyscale, and a small network learns them within a minute.
    """
    generator = torch.Generator().manual_seed(seed)
    images, labels = [], []
    for count in (train, test):
        label = torch.arange(count) % 10
        label = label[torch.randperm(count, generator=generator)]
        images.append(torch.cat([_patterns(part, generator) for part in label.split(5_000)]))
        labels.append(label)
    return Dataset(STAND_IN, STAND_IN_CLASSES, images[0], labels[0], images[1], labels[1])


def _patterns(labels: Tensor, generator: torch.Generator) -> Tensor:  # (N,) -> uint8 (N, 3, 32, 32)
    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(len(labels), *shape, generator=generator)

    axis = torch.linspace(-1, 1, 32)
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
    noise = 0.12 * torch.randn(len(labels), 3, 32, 32, generator=generator)
    return ((colour + contrast * pattern + noise) * 255).clamp(0, 255).to(torch.uint8)


def split(labels: Tensor, held_out: int, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of a training and a held-out part of `labels`, disjoint, each class in its proportion.

    labels: int64 (N,). held_out: number of images held out, from 0 to N - 1. The same seed gives the
    same parts; no class gives more than one image above another's proportion.
    """
    if not isinstance(held_out, int) or not 0 <= held_out < len(labels):
        raise ValueError(f"images to hold out: {held_out!r} must be an integer from 0 to {len(labels) - 1}")
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    by_class = order[labels[order].argsort(stable=True)]
    # Every (N / held_out)-th image of the list sorted by class: as even over classes as can be.
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    chosen[by_class[torch.arange(held_out) * len(labels) // max(held_out, 1)]] = True
    return (~chosen).nonzero().squeeze(1), chosen.nonzero().squeeze(1)


# ---- Augmentation ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Augment:
    """What is done to a training image; every image of a batch draws its own parameters.

    Zeroed fields switch a step off. `Augment.none()` switches all off.
    """

    flip: bool = True  # mirror left-right for half of the images
    shift: int = 4  # pixels at most, each way; the border is mirrored
    scale: float = 0.0  # factor in [1 - scale, 1 + scale]
    rotate: float = 0.0  # degrees at most, each way
    cutout: int = 0  # pixels, side of one square filled with the data set's mean
    greyscale: float = 0.0  # share of the images

    def __post_init__(self):
        for name, most in (("shift", 16), ("scale", 0.9), ("rotate", 180), ("cutout", 32), ("greyscale", 1)):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not 0 <= value <= most:
                raise ValueError(f"{name}={value!r} must be a number from 0 to {most}")

    @classmethod
    def none(cls) -> Augment:
        """Nothing at all."""
        return cls(flip=False, shift=0)

    @classmethod
    def course(cls) -> Augment:
        """The strict variant's: flip; shift, scale, rotate; one 16x16 cutout; greyscale."""
        return cls(scale=0.1, rotate=10, cutout=16, greyscale=0.1)


def normalize(images: Tensor) -> Tensor:
    """uint8 (N, 3, H, W) to float of CIFAR-10's pooled mean 0 and standard deviation 1."""
    mean, std = _per_channel(MEAN, images.device), _per_channel(STD, images.device)
    return torch.addcmul(-mean / std, images.float(), 1 / (255 * std))  # one pass over the images


def denormalize(images: Tensor) -> Tensor:
    """Normalized (N, 3, H, W) back to float in [0, 1], as pictures want it."""
    mean, std = _per_channel(MEAN, images.device), _per_channel(STD, images.device)
    return (images * std + mean).clamp(0, 1)


@cache  # a GPU would wait for each copy
def _per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:  # (3, 1, 1)
    return torch.tensor(values, device=device).view(3, 1, 1)


def augmented(
    images: Tensor, augment: Augment, generator: torch.Generator, mirrored: Tensor | None = None
) -> Tensor:
    """A batch, augmented and normalized: uint8 (N, 3, H, W) to float (N, 3, H, W).

    Each image has parameters of its own, drawn from `generator`, which lives on the images' device.
    mirrored: bool (N,), which images to mirror where `augment.flip` is set; drawn where None.
    """
    count, device = len(images), images.device

    def draw(low: float, high: float) -> Tensor:  # (N,)
        return low + (high - low) * torch.rand(count, generator=generator, device=device)

    if not augment.flip:
        mirrored = torch.zeros(count, dtype=torch.bool, device=device)
    elif mirrored is None:
        mirrored = draw(0, 1) < 0.5
    dx = draw(-augment.shift - 0.5, augment.shift + 0.5).round()  # whole pixels, all equally likely
    dy = draw(-augment.shift - 0.5, augment.shift + 0.5).round()
    if augment.scale or augment.rotate:
        scale = draw(1 - augment.scale, 1 + augment.scale)
        angle = draw(-augment.rotate, augment.rotate) * (math.pi / 180)
        batch = _warped(normalize(images), mirrored, dx, dy, scale, angle)
    elif augment.flip or augment.shift:
        batch = normalize(_moved(images, mirrored, dx.long(), dy.long()))
    else:
        batch = normalize(images)
    if augment.greyscale:
        grey = (draw(0, 1) < augment.greyscale).view(-1, 1, 1, 1)
        mean, std, luma = (_per_channel(values, device) for values in (MEAN, STD, LUMA))
        batch = torch.where(grey, (((batch * std + mean) * luma).sum(1, keepdim=True) - mean) / std, batch)
    if augment.cutout:
        batch = batch.masked_fill(_square(batch, augment.cutout, draw), 0.0)  # 0 is the mean, once normalized
    return batch


def _moved(images: Tensor, mirrored: Tensor, dx: Tensor, dy: Tensor) -> Tensor:
    """Mirrored and moved by whole pixels, the border reflected: one gather over the batch's pixels."""
    count, channels, height, width = images.shape

    def source(size: int, offset: Tensor) -> Tensor:  # (N, size), the pixel that each pixel is taken from
        place = (torch.arange(size, device=images.device) + offset.view(-1, 1)).abs()
        return (size - 1) - ((size - 1) - place).abs()

    rows, columns = source(height, dy), source(width, dx)
    columns = torch.where(mirrored.view(-1, 1), columns.flip(1), columns)
    first = torch.arange(count, device=images.device).view(-1, 1, 1) * (height * width)
    flat = (first + rows.unsqueeze(2) * width + columns.unsqueeze(1)).view(-1)
    pixels = images.permute(0, 2, 3, 1).reshape(-1, channels)  # a view where the memory is channels last
    return pixels.index_select(0, flat).view(count, height, width, channels).permute(0, 3, 1, 2)


def _warped(images: Tensor, mirrored: Tensor, dx: Tensor, dy: Tensor, scale: Tensor, angle: Tensor) -> Tensor:
    """Mirrored, moved by pixels, scaled and rotated about the centre, bilinear, the border reflected."""
    height, width = images.shape[2:]
    cos, sin = angle.cos() / scale, angle.sin() / scale
    sign = torch.where(mirrored, -1.0, 1.0)
    # The inverse map: from a place in the new image to its source, both in [-1, 1].
    theta = torch.stack(
        [
            torch.stack([cos * sign, -sin, dx * (2 / width)], 1),
            torch.stack([sin * sign, cos, dy * (2 / height)], 1),
        ],
        1,
    )  # (N, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def _square(batch: Tensor, side: int, draw) -> Tensor:
    """bool (N, 1, H, W): one square an image, cut at the border where its centre lies near it."""
    height, width = batch.shape[2:]

    def inside(size: int) -> Tensor:  # (N, size)
        start = draw(0, size).floor() - side // 2
        place = torch.arange(size, device=batch.device)
        return (place >= start.view(-1, 1)) & (place < start.view(-1, 1) + side)

    return (inside(height).unsqueeze(2) & inside(width).unsqueeze(1)).unsqueeze(1)


# ---- Loaders ---------------------------------------------------------------------------------------


class Loader:
    """Batches of (images, labels) from a uint8 tensor in memory: float (N, 3, H, W), labels as given.

    Every image comes once an epoch, the last batch being smaller where they do not divide. Shuffling
    and augmentation follow from `seed` and `epoch`, the number of passes begun, alone: a loader whose
    `epoch` is set goes on where another stood. With flips, an image is mirrored in every second epoch.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        batch_size: int,
        augment: Augment | None = None,
        shuffle: bool = False,
        seed: int = 0,
        name: str = "",
        part: str = "",
        classes: tuple[str, ...] = (),
    ):
        """images: uint8 (N, 3, H, W); labels: int64 (N,), or probabilities (N, classes), on the same device,
        which the batches keep.

        name, part ("train", "validation" or "test"), classes: of the data set, carried along for figures
        and records.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images of {images.dtype} {tuple(images.shape)}: expected uint8 (N, 3, H, W)")
        if len(images) != len(labels) or len(images) == 0:
            raise ValueError(f"{len(images)} images and {len(labels)} labels: expected as many, at least one")
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size={batch_size!r} must be an integer of at least 1")
        self.images = images.contiguous(memory_format=torch.channels_last)
        self.labels = labels
        self.batch_size = batch_size
        self.augment = augment or Augment.none()
        self.shuffle = shuffle
        self.seed = seed
        self.name = name
        self.part = part
        self.classes = classes
        self.epoch = 0

    def __len__(self) -> int:
        """Number of batches."""
        return math.ceil(len(self.images) / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        device, count = self.images.device, len(self.images)
        generator = torch.Generator(device)
        generator.manual_seed(self.seed)
        odd = torch.rand(count, generator=generator, device=device) < 0.5
        mirrored = odd ^ bool(self.epoch % 2)
        generator.manual_seed((self.seed + 1) * 1_000_003 + self.epoch)
        self.epoch += 1
        if self.shuffle:
            order = torch.randperm(count, generator=generator, device=device)
        else:
            order = torch.arange(count, device=device)
        for batch in order.split(self.batch_size):
            yield augmented(self.images[batch], self.augment, generator, mirrored[batch]), self.labels[batch]


def cifar10_loaders(
    batch_size: int = 256,
    root: str | Path | None = None,
    *,
    dataset: str = "auto",
    augment: Augment | bool = True,
    validation: int = 0,
    limit: int | None = None,
    device: str | torch.device | None = None,
    seed: int = 0,
) -> tuple[Loader, ...]:
    """(train, test) loaders, or (train, validation, test) where `validation` images are held out.

    root, dataset: as for `load_dataset`. augment: for the training images alone; True is `Augment()`,
    False none. validation: number of training images held out, the same for the same seed, each class
    in its proportion. limit: at most so many training and so many test images, of every class alike.
    device: where the data lives and the batches come from; None picks CUDA or MPS where there is one.

    Raises ValueError for bad numbers and FileNotFoundError as `load_dataset` does.
    """
    data = load_dataset(dataset, root)
    return loaders_from(
        data, batch_size, augment=augment, validation=validation, limit=limit, device=device, seed=seed
    )


def loaders_from(
    data: Dataset,
    batch_size: int = 256,
    *,
    augment: Augment | bool = True,
    validation: int = 0,
    limit: int | None = None,
    device: str | torch.device | None = None,
    seed: int = 0,
) -> tuple[Loader, ...]:
    """As `cifar10_loaders`, from a data set that is already in memory."""
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
        )

    train_images, train_labels = _limited(data.train_images, data.train_labels, limit)
    kept, held_out = split(train_labels, validation, seed)
    loaders = [loader("train", train_images[kept], train_labels[kept], augment)]
    if validation:
        loaders.append(loader("validation", train_images[held_out], train_labels[held_out]))
    loaders.append(loader("test", *_limited(data.test_images, data.test_labels, limit)))
    return tuple(loaders)


def _limited(images: Tensor, labels: Tensor, limit: int | None) -> tuple[Tensor, Tensor]:
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise ValueError(f"limit={limit!r} must be None or an integer of at least 1")
    if limit is None or limit >= len(labels):
        return images, labels
    chosen = split(labels, limit, seed=0)[1]
    return images[chosen], labels[chosen]
