"""A folder of pictures as a data set, laid out as torchvision's ImageFolder expects it.

    flowers/rose/1.jpg                  a subfolder for each class, with its pictures, also in folders below
    flowers/tulip/a.png                 it; every fifth picture of a class is held out as a test image

    flowers/train/rose/1.jpg            or the same in train/ and in test/ (or val/): then nothing is held out
    flowers/test/rose/2.jpg

Classes and pictures are in the order of their names. What begins with a dot is skipped, as are files whose
name does not end in one of ENDINGS.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms import CenterCrop, Compose, Resize
from tqdm import tqdm

from lab.machine import available_memory

SIDE = 32  # pixels
ENDINGS = IMG_EXTENSIONS  # in any case
HELD_OUT = 5  # every fifth picture of a class, without a folder of test images
COPIES = 3  # of the images: the data set, its part for training, and the loader's, with channels last
TOLD = 10  # pictures that cannot be read; the others are only counted
LONGEST = 100  # times its short side; of a longer picture only the middle is looked at


class Folder(NamedTuple):
    """The pictures in a folder: images are uint8 (N, 3, 32, 32), labels int64 (N,)."""

    classes: tuple[str, ...]
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


Files = dict[str, list[Path]]  # from a class to its pictures


def read_folder(path: str | Path) -> Folder:
    """Read every picture in a folder: RGB, its shorter side resized to 32 pixels, cropped to the middle.

    Resizing is bilinear with antialiasing. A picture is rotated as its EXIF orientation says, and its
    transparency is dropped. Shows a progress bar on stderr if that takes more than two seconds.

    Raises OSError if the folder is missing or a picture cannot be read, naming each; ValueError if it is
    not laid out as expected, and if the pictures would not fit into memory.
    """
    path = Path(path).expanduser()
    train, test = _parts(path)
    classes = tuple(train)
    count = sum(map(len, (*train.values(), *test.values())))
    needed, available = COPIES * count * 3 * SIDE**2, available_memory()
    if available is not None and needed > available:
        raise ValueError(
            f"{path} holds {count:,} pictures, which take {needed / 1e9:,.3g} GB of memory as a data set: "
            f"{available / 1e9:,.3g} GB are available"
        )
    images = _images([file for part in (train, test) for files in part.values() for file in files], path)
    labels = [
        torch.tensor([classes.index(name) for name, files in part.items() for _ in files], device="cpu")
        for part in (train, test)
    ]
    first = len(labels[0])
    return Folder(classes, images[:first], labels[0], images[first:], labels[1])


# ---- Which files -----------------------------------------------------------------------------------


def _parts(path: Path) -> tuple[Files, Files]:
    """The files of the training and of the test images, by class."""
    inside = _subfolders(path)
    # A class may be called "train", too; then there are pictures in it, and no classes.
    if "train" not in inside or not _subfolders(path / "train"):
        return _held_out(path, _by_class(path))
    train = _by_class(path / "train")
    part = next((path / name for name in ("test", "val") if name in inside), None)
    if part is None:
        return _held_out(path / "train", train)
    test = {name: files for name, files in _by_class(part, whole=False).items() if files}
    if unknown := [name for name in test if name not in train]:
        raise ValueError(f"{part} has classes that {path / 'train'} lacks: {_listed(unknown)}")
    if not test:
        raise ValueError(f"{part} holds no picture in the folders of the classes; {_expected()}")
    return train, test


def _held_out(path: Path, files: Files) -> tuple[Files, Files]:
    train = {name: [f for n, f in enumerate(own, 1) if n % HELD_OUT] for name, own in files.items()}
    test = {name: own[HELD_OUT - 1 :: HELD_OUT] for name, own in files.items() if len(own) >= HELD_OUT}
    if not test:
        raise ValueError(
            f"{path} has fewer than {HELD_OUT} pictures of each class, so that none is held out as a test "
            "image; give more, or folders train and test"
        )
    return train, test


def _by_class(part: Path, whole: bool = True) -> Files:
    """The pictures in each subfolder. whole: at least two classes, each with a picture."""
    files = {name: _pictures(part / name) for name in _subfolders(part)}
    if wrong := [name for name in files if not name.isprintable()]:
        raise ValueError(f"{part} has a folder {wrong[0]!r}: the name of a class must be printable")
    if not whole:
        return files
    if not any(files.values()):
        raise ValueError(
            f"{part} holds no picture in a subfolder; expected one for each class; {_expected()}"
        )
    if len(files) < 2:
        raise ValueError(f"{part} has a single subfolder, {next(iter(files))!r}: expected one for each class")
    if empty := [name for name, own in files.items() if not own]:
        raise ValueError(f"{part} has folders without a picture: {_listed(empty)}; {_expected()}")
    return files


def _expected() -> str:
    return f"the names of pictures end in {', '.join(ENDINGS)}"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - TOLD:,} more" if len(names) > TOLD else ""
    return ", ".join(map(repr, names[:TOLD])) + more


def _subfolders(path: Path) -> list[str]:
    """The names of the folders in it, sorted."""
    try:
        with os.scandir(path) as entries:
            return sorted(each.name for each in entries if each.name[0] != "." and each.is_dir())
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing: expected a folder of pictures") from None
    except NotADirectoryError:
        raise NotADirectoryError(f"{path} is not a folder: expected a folder of pictures") from None
    except OSError as error:
        raise OSError(f"{path} cannot be read: {error.strerror or error}") from error


def _pictures(folder: Path) -> list[Path]:
    """The pictures in the folder and in those below it, in the order of their names."""

    def refuse(error: OSError) -> None:
        raise OSError(f"{error.filename} cannot be read: {error.strerror or error}") from error

    found: list[Path] = []
    seen: set[str] = set()  # a link may lead to a folder above it
    for place, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        seen.add(os.path.realpath(place))
        inside = (name for name in sorted(folders) if name[0] != ".")
        folders[:] = [name for name in inside if os.path.realpath(os.path.join(place, name)) not in seen]
        chosen = (name for name in sorted(names) if name[0] != "." and name.lower().endswith(ENDINGS))
        found += [Path(place, name) for name in chosen]
    return found


# ---- Their pixels ----------------------------------------------------------------------------------


class _Unreadable(Exception):
    """A picture that cannot be read; the message says why."""


def _images(files: Sequence[Path], path: Path) -> Tensor:  # uint8 (N, 3, 32, 32)
    images = torch.empty(len(files), 3, SIDE, SIDE, dtype=torch.uint8, device="cpu")
    faults = []
    Image.init()  # loads Pillow's formats before there are threads
    bar = tqdm(total=len(files), desc=f"reading {path.name}", unit=" images", delay=2, disable=not sys.stderr)
    with ThreadPoolExecutor() as threads, bar:  # Pillow decodes without Python's lock
        for number, pixels in enumerate(threads.map(_pixels, files)):
            if isinstance(pixels, _Unreadable):
                faults.append(f"  {files[number]} {pixels}")
            else:
                images[number] = torch.from_numpy(pixels).permute(2, 0, 1)
            bar.update()
    if faults:
        more = [f"  and {len(faults) - TOLD:,} more"] if len(faults) > TOLD else []
        told = f"{path}: {len(faults):,} of {len(files):,} pictures cannot be read:"
        raise OSError("\n".join([told, *faults[:TOLD], *more]))
    return images


def _pixels(file: Path) -> np.ndarray | _Unreadable:  # uint8 (32, 32, 3)
    try:
        if not file.is_file():  # reading a pipe would wait for ever
            return _Unreadable("is not a file" if os.path.lexists(file) else "is missing")
        with Image.open(file) as image:
            if image.mode in ("I", "F") or image.mode.startswith("I;"):
                return _Unreadable(f"is of mode {image.mode!r}: expected 8 bits per channel")
            return _squared(ImageOps.exif_transpose(image).convert("RGB"))
    except UnidentifiedImageError:
        return _Unreadable("is not an image, or of a kind that Pillow cannot read")
    except Image.DecompressionBombError as error:
        return _Unreadable(f"is too large: {error}")
    except Exception as error:  # its type depends on the format
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        return _Unreadable(f"is damaged or cannot be read ({reason})")


_resized = Compose([Resize(SIDE), CenterCrop(SIDE)])


def _squared(image: Image.Image) -> np.ndarray:
    longest = LONGEST * min(image.size)
    if max(image.size) > longest:  # resized whole, it would have more pixels than fit into memory
        width, height = (min(side, longest) for side in image.size)
        left, top = (image.width - width) // 2, (image.height - height) // 2
        image = image.crop((left, top, left + width, top + height))
    return np.array(_resized(image))  # a copy, which torch may write to
