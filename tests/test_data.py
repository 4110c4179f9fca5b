"""lab/data.py: where the data comes from, how it is augmented, and in which order it comes."""

import copy
import hashlib
import importlib.util
import json
import math
import os
import pickle
import re
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tiny_cifar100
import torch
import torch.nn.functional as F
import torchvision.transforms.functional as TF
from global_state import unchanged
from tiny_cifar10 import CONTENTS, FILES, HOSTILE, expect, unprivileged, write
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.data import DataLoader
from torchvision.datasets import CIFAR10, CIFAR100
from torchvision.transforms import InterpolationMode

import lab.data
import lab.download
from lab.data import (
    MEAN,
    STAND_IN,
    STD,
    Augment,
    Dataset,
    ImageDataset,
    Loader,
    _recoloured,
    _sharpened,
    augmented,
    cifar10_loaders,
    denormalize,
    epoch_seed,
    generator_from,
    load_dataset,
    loaders_from,
    mixed,
    normalize,
    pooled_statistics,
    seed_bits,
    split,
    stand_in,
    tensor_digest,
)
from lab.download import FOLDER, DownloadFailed


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """No network, no CIFAR10_ROOT or CIFAR100_ROOT, and a working folder without data."""

    def refused(place, source):
        raise DownloadFailed(f"It could not be downloaded to {place}: no network in the tests")

    monkeypatch.setattr(lab.data, "download", refused)
    for name in ("CIFAR10_ROOT", "CIFAR100_ROOT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def quick_stand_in(monkeypatch, small):
    monkeypatch.setattr(lab.data, "stand_in", lambda: small)
    return small


@pytest.fixture(scope="module")
def real(cifar10_root) -> Dataset:
    return load_dataset("cifar10", cifar10_root)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(count, size=32):
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator(1))


CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

# ---- Seeds -----------------------------------------------------------------------------------------

BIG = 2**200 + 7


def test_small_seeds_are_kept_and_others_become_other_32_bits():
    assert [seed_bits(seed) for seed in (0, 5, 2**32 - 1)] == [0, 5, 2**32 - 1]
    others = [-1, -2, 2**32, 2**32 + 5, 2**64, BIG, -BIG]
    assert len({seed_bits(seed) for seed in (0, 5, *others)}) == 9
    assert all(0 <= seed_bits(seed) < 2**32 for seed in others)
    drawn = {torch.rand((), generator=generator_from(seed_bits(seed))).item() for seed in (0, *others)}
    assert len(drawn) == 8


def test_an_epoch_has_its_own_seed():
    assert epoch_seed(0, 0) == 1_000_003
    assert epoch_seed(2, 5) == 3_000_014
    assert epoch_seed(2**64, 0) == (seed_bits(2**64) + 1) * 1_000_003


SEEDS = [np.int64(7), np.uint8(7), torch.tensor(7)]


@pytest.mark.parametrize("seed", SEEDS, ids=repr)
def test_equal_seeds_of_any_kind_give_equal_data(small, seed):
    assert torch.equal(stand_in(20, 10, seed).train_images, stand_in(20, 10, 7).train_images)
    assert torch.equal(split(UNEVEN, 50, seed)[1], split(UNEVEN, 50, 7)[1])
    loader, plain = of(small, seed), of(small, 7)
    for _ in range(2):
        assert all(map(torch.equal, batches(loader), batches(plain)))


@pytest.mark.parametrize(
    "seed", [-1, 15_068_445_919_487_744_991, BIG]
)  # the second as torch.initial_seed() gives
def test_any_integer_is_a_seed_and_another_one_gives_other_data(small, seed):
    one, again, other = (batches(of(small, value)) for value in (seed, seed, seed + 1))
    assert all(map(torch.equal, one, again))
    assert not torch.equal(one[0], other[0])


def test_a_seed_set_later_may_be_of_any_kind_too(small):
    loader, plain = of(small, 0), of(small, 7)
    loader.seed, loader.epoch = np.int64(7), np.int64(0)
    assert all(map(torch.equal, batches(loader), batches(plain)))
    assert loader.epoch == 1
    assert type(loader.epoch) is int


@pytest.mark.parametrize("seed", [0.5, "0", None, torch.tensor(0.5)])
def test_a_seed_that_is_not_an_integer_is_refused(small, seed):
    for call in (lambda: of(small, seed), lambda: stand_in(20, 10, seed), lambda: split(UNEVEN, 50, seed)):
        with pytest.raises(ValueError, match="seed=") as error:
            call()
        assert str(error.value) == f"seed={seed!r} must be an integer"


def test_a_loader_keeps_plain_integers(small):
    loader = Loader(small.test_images, small.test_labels, batch_size=np.int64(64), seed=np.int64(3))
    assert (loader.batch_size, loader.seed) == (64, 3)
    assert type(loader.batch_size) is type(loader.seed) is int


def test_sizes_may_be_numpy_integers(small):
    numpy, plain = (
        loaders_from(small, of(64), validation=of(20), limit=of(100), device="cpu") for of in (np.int64, int)
    )
    for one, other in zip(numpy, plain, strict=True):
        assert all(map(torch.equal, batches(one), batches(other)))


@pytest.mark.parametrize(
    ("seed", "expected"), [(0, "bd56eff84889afe7"), (1, "ed8cb1d3944b4139"), (12345, "d94349bac1a325b5")]
)
def test_a_small_seed_gives_the_batches_that_published_runs_had(seed, expected):
    """Computed when the published runs were made: pixels rounded to bytes, then labels, batch by batch."""
    augment = Augment(cutout=8)
    loader = Loader(noise(50), torch.arange(50), batch_size=20, shuffle=True, seed=seed, augment=augment)
    sha256 = hashlib.sha256()
    for images, labels in loader:
        sha256.update((denormalize(images) * 255).round().to(torch.uint8).contiguous().numpy().tobytes())
        sha256.update(labels.numpy().tobytes())
    assert sha256.hexdigest()[:16] == expected


# ---- CIFAR-10 --------------------------------------------------------------------------------------


@pytest.mark.real_data
def test_the_constants_are_those_of_all_training_pixels(real):
    pixels = real.train_images.double().div_(255)
    assert [round(value.item(), 4) for value in pixels.mean((0, 2, 3))] == list(MEAN)
    assert [round(value.item(), 4) for value in pixels.std((0, 2, 3))] == list(STD)


@pytest.mark.real_data
def test_cifar10_has_its_classes_evenly(real):
    assert real.name == "CIFAR-10"
    assert real.classes == CLASSES
    assert real.train_labels.bincount().tolist() == [5_000] * 10
    assert real.test_labels.bincount().tolist() == [1_000] * 10
    assert real.train_images.shape == (50_000, 3, 32, 32)
    assert real.test_images.shape == (10_000, 3, 32, 32)
    assert real.train_images.dtype == real.test_images.dtype == torch.uint8
    assert real.train_labels.dtype == real.test_labels.dtype == torch.int64


@pytest.mark.real_data
def test_channels_rows_and_columns_are_those_of_torchvision(real, cifar10_root):
    pixels, label = CIFAR10(cifar10_root, train=False)[123]
    image = TF.pil_to_tensor(pixels)
    assert torch.equal(real.test_images[123], image)
    assert real.test_labels[123] == label


@pytest.mark.real_data
@pytest.mark.parametrize("damaged", ["data_batch_3", "test_batch", "batches.meta"])
def test_one_changed_bit_of_cifar10_is_an_error_that_names_the_file(tmp_path, cifar10_root, damaged):
    copy = tmp_path / "copy" / FOLDER
    copy.mkdir(parents=True)
    for name in FILES:
        (copy / name).symlink_to(cifar10_root / FOLDER / name)
    content = bytearray((copy / damaged).read_bytes())
    content[50] ^= 1
    (copy / damaged).unlink()
    (copy / damaged).write_bytes(content)
    with pytest.raises(FileNotFoundError) as error:
        load_dataset("auto", copy.parent)
    assert re.findall(r"(\S+) is damaged", str(error.value)) == [str(copy / damaged)]


@pytest.mark.usefixtures("quick_stand_in")
def test_cifar10_does_not_fall_back_and_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("CIFAR10_ROOT", str(tmp_path / "from_environment"))
    with pytest.raises(FileNotFoundError) as error:
        load_dataset("cifar10", tmp_path / "from_argument")
    message = str(error.value)
    for place in (tmp_path / "from_argument", tmp_path / "from_environment", Path("data")):
        assert str(place / FOLDER) in message
    for word in ("root=", "CIFAR10_ROOT", "data_batch_1", "test_batch", "batches.meta", "no network"):
        assert word in message


def test_auto_falls_back_with_a_banner_and_a_name_that_says_so(quick_stand_in):
    with pytest.warns(UserWarning, match="!!! *\n!! THIS IS NOT CIFAR-10") as warned:
        data = load_dataset("auto")
    assert data is quick_stand_in
    assert data.name == STAND_IN
    assert "not CIFAR-10" in STAND_IN
    assert len(warned) == 1
    assert warned[0].filename == __file__
    assert "CIFAR10_ROOT" in str(warned[0].message)


def test_the_stand_in_is_returned_without_a_search_or_a_warning(quick_stand_in, monkeypatch):
    monkeypatch.setattr(lab.data, "SOURCES", None)
    monkeypatch.setattr(lab.data, "download", None)
    assert load_dataset("stand-in") is quick_stand_in


@pytest.mark.parametrize(
    "dataset", ["", "CIFAR10", "cifar-100", "folder", "Folder:x", "/x", None, 10, ["auto"]]
)
def test_what_is_no_dataset_is_an_error_with_the_choices(dataset):
    with pytest.raises(ValueError, match=r"unknown dataset .*'cifar100', 'stand-in', or 'folder:PATH'"):
        load_dataset(dataset)


def test_a_folder_without_a_path_is_an_error():
    with pytest.raises(ValueError, match="dataset='folder:' lacks the path of a folder"):
        load_dataset("folder:")


def test_an_unknown_dataset_is_an_error_with_the_choices():
    with pytest.raises(
        ValueError, match="'mnist'; choose one of 'auto', 'cifar10', 'cifar100', 'stand-in', or"
    ):
        load_dataset("mnist")


# ---- Its places and its files, on a data set of 12 images -------------------------------------------


@pytest.fixture
def tiny(monkeypatch):
    """The data set of tests/tiny_cifar10.py in CIFAR-10's place."""
    expect(monkeypatch)


def snapshot(place: Path) -> list[tuple]:
    return [
        (path.name, path.lstat().st_mode, path.lstat().st_mtime_ns, path.lstat().st_size)
        for path in sorted(place.rglob("*"))
    ]


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    ("present", "expected"),
    [
        (("argument", "environment", "data"), "argument"),
        (("environment", "data"), "environment"),
        (("data",), "data"),
        ((), None),
    ],
)
def test_the_argument_comes_before_the_environment_before_data(monkeypatch, tmp_path, present, expected):
    for place in present:
        write(tmp_path / place)
    read, asked = lab.data.read_checked, []
    monkeypatch.setattr(
        lab.data, "read_checked", lambda path, source: asked.append(path) or read(path, source)
    )
    monkeypatch.setattr(lab.data, "download", lambda place, _: asked.append(place) or write(place))
    monkeypatch.setenv("CIFAR10_ROOT", str(tmp_path / "environment"))
    data = load_dataset("cifar10", tmp_path / "argument")
    assert (data.name, data.classes) == ("CIFAR-10", CLASSES)
    folder = tmp_path / (expected or "argument") / FOLDER
    downloaded = [] if expected else [tmp_path / "argument"]
    assert [path.absolute() for path in asked] == [*downloaded, *(folder / name for name in FILES)]


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(("environment", "expected"), [("environment", "environment"), (None, "data")])
def test_without_any_data_it_is_downloaded_to_the_first_place(monkeypatch, tmp_path, environment, expected):
    monkeypatch.setattr(lab.data, "download", lambda place, _: write(place))
    if environment:
        monkeypatch.setenv("CIFAR10_ROOT", str(tmp_path / environment))
    assert load_dataset("cifar10").test_labels.tolist() == [5, 6]
    assert [path.name for path in tmp_path.iterdir()] == [expected]


@pytest.mark.usefixtures("tiny")
def test_images_and_labels_are_those_of_the_files_in_order(tmp_path):
    write(tmp_path)
    data = load_dataset("cifar10", tmp_path)
    batches = [pickle.loads(content) for name, content in CONTENTS.items() if name != "batches.meta"]
    pixels = np.stack([row.reshape(3, 32, 32) for batch in batches for row in batch["data"]])
    assert torch.equal(torch.cat([data.train_images, data.test_images]), torch.from_numpy(pixels))
    assert data.train_labels.tolist() == [0, 1, 1, 2, 2, 3, 3, 4, 4, 5]
    assert data.test_labels.tolist() == [5, 6]


def replaced(path: Path) -> None:
    path.write_bytes(HOSTILE)


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def lengthened(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def enormous(path: Path) -> None:
    os.truncate(path, 2**40)  # a terabyte, of which nothing is on the disk


def gone(path: Path) -> None:
    path.unlink()


def instead(make):
    def damage(path: Path) -> None:
        path.unlink()
        make(path)

    return damage


MD5_DIFFERS = r"is damaged: its [\d,]+ bytes have the MD5 [0-9a-f]{32}, not [0-9a-f]{32}"
DAMAGE = {
    "a flipped bit": (flipped, MD5_DIFFERS),
    "a byte less": (truncated, MD5_DIFFERS),
    "a byte more": (lengthened, MD5_DIFFERS),
    "no byte": (emptied, r"is damaged: its 0 bytes have"),
    "a pickle that runs code": (replaced, MD5_DIFFERS),
    "a terabyte": (enormous, "has 1,099,511,627,776 bytes, too many"),
    "missing": (gone, "is missing"),
    "a folder": (instead(Path.mkdir), "is a folder, not a file"),
    "a pipe that nobody writes to": (instead(os.mkfifo), "is not a regular file"),
    "a link to nothing": (instead(lambda path: path.symlink_to("nothing")), "is missing"),
    "a link to itself": (
        instead(lambda path: path.symlink_to(path.name)),
        "cannot be read: Too many levels of symbolic links",
    ),
}


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(("damage", "reason"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_named_with_what_is_wrong_and_nothing_is_changed(name, damage, reason, tmp_path):
    folder = write(tmp_path / "mine")
    damage(folder / name)
    before = snapshot(tmp_path)
    for dataset in ("cifar10", "auto"):
        with pytest.raises(FileNotFoundError) as error:
            load_dataset(dataset, tmp_path / "mine")
        (named,) = [line for line in str(error.value).splitlines() if FOLDER in line and "FOLDER" not in line]
        assert re.fullmatch(f"  {re.escape(str(folder / name))} {reason}.*", named)
        for advice in ("replace the files", "delete or rename the folder", "root=FOLDER", "CIFAR10_ROOT"):
            assert advice in str(error.value)
    assert snapshot(tmp_path) == before


@pytest.mark.usefixtures("tiny")
def test_of_many_damaged_files_each_is_named(tmp_path):
    folder = write(tmp_path)
    kinds = [DAMAGE[kind] for kind in DAMAGE if kind not in ("a byte more", "no byte")]
    for name, (damage, _) in zip(FILES, kinds, strict=False):
        damage(folder / name)
    with pytest.raises(FileNotFoundError) as error:
        load_dataset("cifar10", tmp_path)
    for name, (_, reason) in zip(FILES, kinds, strict=False):
        assert re.search(f"{FOLDER}/{name} {reason}", str(error.value))


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("name", FILES)
def test_a_file_without_permission_is_named(name, open_place, monkeypatch):
    monkeypatch.chdir(open_place)
    folder = write(open_place)
    (folder / name).chmod(0)
    with unprivileged(), pytest.raises(FileNotFoundError) as error:
        load_dataset("auto", open_place)
    assert f"  {folder / name} cannot be read: Permission denied" in str(error.value)
    assert str(error.value).count("cannot be read") == 1


@pytest.mark.usefixtures("tiny")
def test_an_empty_folder_is_damaged_and_not_downloaded_over(tmp_path):
    (tmp_path / FOLDER).mkdir()
    with pytest.raises(FileNotFoundError) as error:
        load_dataset("auto", tmp_path)
    assert str(error.value).count("is missing") == 7
    assert list((tmp_path / FOLDER).iterdir()) == []


@pytest.mark.usefixtures("tiny")
def test_a_read_only_folder_works(open_place):
    folder = write(open_place)
    for path in (*folder.iterdir(), folder, open_place):
        path.chmod(path.stat().st_mode & ~0o222)
    before = snapshot(open_place)
    with unprivileged():
        assert load_dataset("cifar10", open_place).test_labels.tolist() == [5, 6]
    assert snapshot(open_place) == before


def unreadable(place: Path) -> None:
    write(place)
    place.chmod(0)


def unreadable_inside(place: Path) -> None:
    write(place).chmod(0)


def in_a_loop(place: Path) -> None:
    place.symlink_to(place.name)


def in_a_file(place: Path) -> None:
    place.write_text("not a folder")


def damaged(place: Path) -> None:
    flipped(write(place) / "batches.meta")


FAULTS = {
    unreadable: f"  root/{FOLDER} cannot be read: Permission denied",
    unreadable_inside: f"  root/{FOLDER}/data_batch_1 cannot be read: Permission denied",
    in_a_loop: f"  root/{FOLDER} cannot be read: Too many levels of symbolic links",
    damaged: f"  root/{FOLDER}/batches.meta is damaged",
}


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(("make", "fault"), FAULTS.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_a_bad_place_does_not_end_the_search_and_is_told(make, fault, monkeypatch, open_place):
    monkeypatch.chdir(open_place)
    make(Path("root"))
    with unprivileged(), pytest.raises(FileNotFoundError) as error:
        load_dataset("auto", "root")
    assert fault in str(error.value)
    write(Path("data"))
    with unprivileged(), pytest.warns(UserWarning, match=f"taken from data/{FOLDER}") as warned:
        assert load_dataset("auto", "root").test_labels.tolist() == [5, 6]
    assert fault in str(warned[0].message)
    assert warned[0].filename == __file__


@pytest.mark.usefixtures("tiny")
def test_a_place_without_data_does_not_end_the_search(tmp_path):
    in_a_file(tmp_path / "file")
    write(tmp_path / "data")
    for root in ("file", "nowhere", ""):
        assert load_dataset("cifar10", root).test_labels.tolist() == [5, 6]


# ---- CIFAR-100, on a data set of 8 images ------------------------------------------------------------


@pytest.fixture
def tiny100(monkeypatch):
    """The data set of tests/tiny_cifar100.py in CIFAR-100's place."""
    tiny_cifar100.expect(monkeypatch)


@pytest.mark.usefixtures("tiny100")
def test_cifar100_is_read_as_torchvision_reads_it(monkeypatch, tmp_path):
    tiny_cifar100.write(tmp_path)
    data = load_dataset("cifar100", tmp_path)
    known = lab.download.SOURCES["cifar100"]
    monkeypatch.setattr(CIFAR100, "train_list", [*map(list, known.train.items())])
    monkeypatch.setattr(CIFAR100, "test_list", [*map(list, known.test.items())])
    monkeypatch.setattr(CIFAR100, "meta", CIFAR100.meta | {"md5": known.meta["meta"]})
    for train, images, labels in (
        (True, data.train_images, data.train_labels),
        (False, data.test_images, data.test_labels),
    ):
        theirs = CIFAR100(tmp_path, train)
        assert labels.tolist() == theirs.targets
        assert torch.equal(images, torch.from_numpy(theirs.data).permute(0, 3, 1, 2))
        assert data.classes == tuple(theirs.classes) == tuple(tiny_cifar100.FINE)
    assert (data.name, data.train_images.dtype, data.train_labels.dtype) == (
        "CIFAR-100",
        torch.uint8,
        torch.int64,
    )


@pytest.mark.usefixtures("tiny100")
def test_cifar100_is_normalized_by_the_statistics_of_its_own_training_images(tmp_path):
    tiny_cifar100.write(tmp_path)
    data = load_dataset("cifar100", tmp_path)
    shares = tiny_cifar100.pixels("train") / 255
    assert data.mean == pytest.approx(shares.mean((0, 2, 3)), abs=6e-5)
    assert data.std == pytest.approx(shares.std((0, 2, 3)), abs=6e-5)
    assert data.mean != MEAN


def test_cifar100_s_files_are_those_of_torchvision():
    known = lab.download.SOURCES["cifar100"]
    assert known.files == {
        "train": "16019d7e3df5f24257cddd939b257f8d",
        "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
        "meta": "7973b15100ade9c7d40fb424638fde48",
    }
    assert (known.folder, known.archive_md5) == ("cifar-100-python", "eb9058c3a382ffc7106e4002c42a8d85")
    assert known.urls[0] == "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"
    assert all(url.startswith("https://") for url in known.urls)


@pytest.mark.usefixtures("tiny", "tiny100")
@pytest.mark.parametrize(
    ("present", "expected"),
    [(("argument", "environment", "data"), "argument"), (("environment", "data"), "environment"), ((), None)],
)
def test_cifar100_is_looked_for_in_its_own_places_beside_cifar10(monkeypatch, tmp_path, present, expected):
    for place in (*present, "elsewhere"):
        tiny_cifar100.write(tmp_path / place)
    for place in ("argument", "environment"):
        write(tmp_path / place)
    read, asked = lab.data.read_checked, []
    monkeypatch.setattr(
        lab.data, "read_checked", lambda path, source: asked.append(path) or read(path, source)
    )
    fetched = []
    monkeypatch.setattr(
        lab.data, "download", lambda place, source: fetched.append(source.name) or tiny_cifar100.write(place)
    )
    monkeypatch.setenv("CIFAR10_ROOT", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("CIFAR100_ROOT", str(tmp_path / "environment"))
    data = load_dataset("cifar100", tmp_path / "argument")
    assert data.test_labels.tolist() == [3, 98, 42]
    folder = tmp_path / (expected or "argument") / "cifar-100-python"
    assert asked == [folder / name for name in ("train", "test", "meta")]
    assert fetched == ([] if expected else ["CIFAR-100"])
    assert load_dataset("cifar10", tmp_path / "argument").test_labels.tolist() == [5, 6]


@pytest.mark.usefixtures("tiny100", "quick_stand_in")
def test_cifar100_does_not_fall_back_and_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("CIFAR100_ROOT", str(tmp_path / "from_environment"))
    with pytest.raises(FileNotFoundError, match=r"^CIFAR-100 was not found") as error:
        load_dataset("cifar100", tmp_path / "from_argument")
    message = str(error.value)
    for place in (tmp_path / "from_argument", tmp_path / "from_environment", Path("data")):
        assert str(place / "cifar-100-python") in message
    for word in ("root=", "CIFAR100_ROOT", "CIFAR100_URL", "train, test and meta", "no network"):
        assert word in message
    assert "CIFAR-10 " not in message
    assert "CIFAR10_" not in message


@pytest.mark.usefixtures("tiny100")
@pytest.mark.parametrize("name", ["train", "test", "meta"])
@pytest.mark.parametrize(("damage", "reason"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_of_cifar100_is_named_and_nothing_is_changed(name, damage, reason, tmp_path):
    folder = tiny_cifar100.write(tmp_path / "mine")
    damage(folder / name)
    before = snapshot(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"^CIFAR-100 was found, but damaged") as error:
        load_dataset("cifar100", tmp_path / "mine")
    assert re.search(f"  {re.escape(str(folder / name))} {reason}", str(error.value))
    assert "CIFAR100_ROOT" in str(error.value)
    assert snapshot(tmp_path) == before


# ---- The stand-in ----------------------------------------------------------------------------------

TENSORS = ("train_images", "train_labels", "test_images", "test_labels")


def test_the_stand_in_follows_from_its_seed():
    one, again, other = stand_in(200, 50, seed=3), stand_in(200, 50, seed=3), stand_in(200, 50, seed=4)
    for tensor in TENSORS:
        assert torch.equal(getattr(one, tensor), getattr(again, tensor))
        assert not torch.equal(getattr(one, tensor), getattr(other, tensor))


def test_making_the_stand_in_leaves_torch_s_random_state_alone():
    state = torch.get_rng_state()
    stand_in(20, 10)
    assert torch.equal(state, torch.get_rng_state())


def test_the_stand_in_has_cifar10_s_shape_and_ten_balanced_classes(small):
    assert small.train_images.shape == (1_000, 3, 32, 32)
    assert small.test_images.shape == (500, 3, 32, 32)
    assert small.train_images.dtype == small.test_images.dtype == torch.uint8
    assert small.train_labels.dtype == small.test_labels.dtype == torch.int64
    assert small.train_labels.bincount().tolist() == [100] * 10
    assert small.test_labels.bincount().tolist() == [50] * 10
    assert len(set(small.classes)) == 10


def test_no_test_image_of_the_stand_in_is_a_training_image(small):
    images = torch.cat([small.train_images, small.test_images]).flatten(1)
    assert len(images.unique(dim=0)) == 1_500


# ---- Normalization ---------------------------------------------------------------------------------


def test_normalize_subtracts_the_mean_and_divides_by_the_deviation():
    images = noise(4)
    expected = TF.normalize(images.float() / 255, MEAN, STD)
    torch.testing.assert_close(normalize(images), expected)
    assert normalize(images).dtype == torch.float32


def test_denormalize_inverts_normalize_for_every_pixel_value():
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    assert torch.equal((denormalize(normalize(images)) * 255).round().to(torch.uint8), images)


def test_denormalize_stays_between_0_and_1():
    pixels = denormalize(torch.tensor([-100.0, 100.0]).view(1, 1, 1, 2).expand(1, 3, 1, 2))
    assert pixels.unique().tolist() == [0.0, 1.0]


@pytest.fixture
def fresh(monkeypatch):
    """A copy of lab.data on which nothing has been called, so that it cannot have kept a tensor yet."""
    spec = importlib.util.spec_from_file_location("fresh_data", lab.data.__file__)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "fresh_data", module)
    spec.loader.exec_module(module)
    return module


def there_and_back(module) -> Tensor:
    return module.denormalize(module.normalize(noise(2, 8)))


def test_a_gradient_can_be_taken_after_iterating_under_inference_mode(fresh):
    with torch.inference_mode():
        loader = fresh.Loader(noise(4), torch.arange(4), batch_size=2, augment=fresh.Augment.course())
        batches(loader)
        there_and_back(fresh)
    images = torch.zeros(1, 3, 2, 2, requires_grad=True)  # 0 is the mean: nothing is clamped
    fresh.denormalize(images).sum().backward()
    torch.testing.assert_close(images.grad, torch.tensor(STD).view(1, 3, 1, 1).expand(1, 3, 2, 2))


def test_a_loader_made_under_inference_mode_gives_batches_to_train_on():
    with torch.inference_mode():
        loader = numbered(10, augment=Augment.course())
        loader.labels = F.one_hot(loader.labels, 10).float()
        items = loader.dataset
    weight = torch.ones(3, requires_grad=True)
    for images, labels in [*loader, *DataLoader(items, batch_size=10)]:
        loss = (images.mean((2, 3)) * weight).sum() * labels.sum()
        (gradient,) = torch.autograd.grad(loss, weight)
        torch.testing.assert_close(gradient, images.mean((2, 3)).sum(0) * 10)


def test_fake_tensors_leave_nothing_behind(fresh):
    with FakeTensorMode():
        fake = fresh.denormalize(fresh.normalize(torch.zeros(2, 3, 8, 8, dtype=torch.uint8)))
        assert fake.shape == (2, 3, 8, 8)
    real = there_and_back(fresh)
    assert type(real) is Tensor
    torch.testing.assert_close(real, noise(2, 8).float() / 255)


def test_another_device_leaves_nothing_behind(fresh):
    assert fresh.normalize(torch.zeros(2, 3, 8, 8, dtype=torch.uint8, device="meta")).device.type == "meta"
    torch.testing.assert_close(there_and_back(fresh), noise(2, 8).float() / 255)


def test_vmap_gives_what_a_loop_gives_and_leaves_nothing_behind(fresh):
    images = noise(6, 8).view(2, 3, 3, 8, 8)
    normalized = torch.func.vmap(fresh.normalize)(images)
    assert torch.equal(normalized, torch.stack([fresh.normalize(part) for part in images]))
    torch.testing.assert_close(torch.func.vmap(fresh.denormalize)(normalized), images.float() / 255)


def test_denormalize_can_be_differentiated_by_torch_func_and_then_by_autograd(fresh):
    zeros, std = torch.zeros(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    gradient = torch.func.grad(lambda images: fresh.denormalize(images).sum())
    torch.testing.assert_close(torch.func.vmap(gradient)(zeros.expand(2, 3, 1, 1)), std.expand(2, 3, 1, 1))
    images = zeros.clone().requires_grad_()
    fresh.denormalize(images).sum().backward()
    torch.testing.assert_close(images.grad, std)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_default_type_changes_no_image(small, dtype):
    expected = batches(of(small))
    made = stand_in(20, 10).train_images
    torch.set_default_dtype(dtype)
    try:
        found = batches(of(small))
        again = stand_in(20, 10).train_images
    finally:
        torch.set_default_dtype(torch.float32)
    assert found[0].dtype == torch.float32
    assert all(map(torch.equal, found, expected))
    assert torch.equal(again, made)


def test_the_default_device_changes_no_image(small):
    expected = batches(of(small))
    made = stand_in(20, 10).train_images
    with torch.device("meta"):  # holds no numbers, so that anything made there would fail
        found = list(of(small))
        again = stand_in(20, 10).train_images
    assert all(map(torch.equal, map(torch.cat, zip(*found, strict=True)), expected))
    assert torch.equal(again, made)


OTHER = (0.5, 0.25, 0.125), (0.25, 0.125, 0.0625)  # mean and deviation of another data set


def test_the_statistics_of_another_data_set_normalize_as_torchvision_does():
    images = noise(4)
    expected = TF.normalize(images.double() / 255, *OTHER)
    found = normalize(images, *OTHER)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(normalize(images[0], *OTHER), found[0])
    torch.testing.assert_close(denormalize(found, *OTHER), images / 255)
    assert not torch.equal(normalize(images), found)


def test_pooled_statistics_are_those_of_all_pixels():
    images = noise(6_000, size=4) // torch.tensor([1, 2, 5]).view(3, 1, 1)
    shares = images.to(torch.uint8).double() / 255
    mean, std = pooled_statistics(images.to(torch.uint8))
    assert list(mean) == [round(value, 4) for value in shares.mean((0, 2, 3)).tolist()]
    assert list(std) == [round(value, 4) for value in shares.std((0, 2, 3), correction=0).tolist()]


def test_the_deviation_of_one_colour_can_still_divide():
    images = torch.full((3, 3, 8, 8), 51, dtype=torch.uint8)
    assert pooled_statistics(images) == ((0.2,) * 3, (0.0039,) * 3)
    assert normalize(images, *pooled_statistics(images)).abs().max() < 1e-4


@pytest.mark.real_data
def test_cifar10_s_pooled_statistics_are_the_constants(real):
    assert pooled_statistics(real.train_images) == (MEAN, STD)
    assert (real.mean, real.std) == (MEAN, STD)


# ---- Augmentation ----------------------------------------------------------------------------------


def moved_one(image: Tensor, mirrored: bool, dx: int, dy: int) -> Tensor:
    """One image moved by slicing its reflected copy, then mirrored."""
    height, width = image.shape[1:]
    big = F.pad(image.float()[None], (16, 16, 16, 16), mode="reflect")[0]
    part = big[:, 16 + dy : 16 + dy + height, 16 + dx : 16 + dx + width]
    return (part.flip(2) if mirrored else part).to(image.dtype)


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_moved_is_a_slice_of_the_reflected_image_then_mirrored(memory):
    images = noise(60).contiguous(memory_format=memory)
    dx, dy = torch.randint(-16, 17, (2, 60), generator=generator())
    mirrored = torch.arange(60) % 2 == 1
    expected = [moved_one(*row) for row in zip(images, mirrored, dx.tolist(), dy.tolist(), strict=True)]
    assert torch.equal(lab.data._moved(images, mirrored, dx, dy), torch.stack(expected))


def test_moved_moves_rows_by_dy_and_columns_by_dx():
    images, no = noise(1), torch.tensor([False])
    right = lab.data._moved(images, no, torch.tensor([2]), torch.tensor([0]))
    down = lab.data._moved(images, no, torch.tensor([0]), torch.tensor([3]))
    assert torch.equal(right[..., :-2], images[..., 2:])
    assert torch.equal(down[..., :-3, :], images[..., 3:, :])


def warped(images, mirrored, dx=0, dy=0, scale=1.0, degrees=0.0):
    full = [torch.full((len(images),), float(value)) for value in (dx, dy, scale, math.radians(degrees))]
    return lab.data._warped(images, torch.full((len(images),), mirrored), *full)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize(("dx", "dy"), [(0, 0), (3, -2), (-4, 4)])
def test_a_warp_without_scale_and_rotation_is_the_move(mirrored, dx, dy):
    images = noise(2)
    args = [torch.full((2,), value) for value in (mirrored, dx, dy)]
    inner = (..., slice(4, 28), slice(4, 28))  # at the border, the one repeats the edge and the other not
    moved = lab.data._moved(images, *args)[inner].float()
    torch.testing.assert_close(warped(images.float(), mirrored, dx, dy)[inner], moved, atol=0.02, rtol=0)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize(("scale", "degrees"), [(1.2, 0), (0.9, 0), (1.0, 10), (1.0, -10), (1.1, 15)])
def test_a_warp_scales_and_rotates_as_torchvision_does(scale, degrees, mirrored):
    images = noise(3).float()
    expected = TF.affine(
        images, -degrees, [0, 0], scale, [0.0, 0.0], interpolation=InterpolationMode.BILINEAR
    )
    inner = (..., slice(8, 24), slice(8, 24))  # what comes from beyond the border is filled otherwise
    if mirrored:
        expected = expected.flip(3)
    torch.testing.assert_close(
        warped(images, mirrored, 0, 0, scale, degrees)[inner], expected[inner], atol=0.05, rtol=0
    )


@pytest.mark.parametrize(("height", "width"), [(24, 96), (96, 24), (33, 65)])
def test_a_warp_of_an_image_that_is_not_square_rotates_it_without_distortion(height, width):
    images = torch.zeros(1, 3, height, width)
    images[..., height // 4 : -(height // 4), width // 4 : -(width // 4)] = 1.0
    images = TF.gaussian_blur(images, [7, 7])  # smooth, so that sampling differs little
    expected = TF.affine(images, -30, [0, 0], 1.1, [0.0, 0.0], interpolation=InterpolationMode.BILINEAR)
    middle = min(height, width) // 4  # around the centre nothing comes from beyond the border
    inner = (
        ...,
        slice(height // 2 - middle, height // 2 + middle),
        slice(width // 2 - middle, width // 2 + middle),
    )
    found = warped(images, False, scale=1.1, degrees=30)
    torch.testing.assert_close(found[inner], expected[inner], atol=0.02, rtol=0)


@pytest.mark.parametrize("augment", [Augment(), Augment.course(), Augment(rotate=180, cutout=32)])
@pytest.mark.parametrize("size", [(5, 40), (40, 5), (64, 64), (17, 100)])
def test_images_of_any_size_keep_their_size_and_range(size, augment):
    images = torch.randint(0, 256, (20, 3, *size), dtype=torch.uint8, generator=generator(1))
    batch = augmented(images, augment, generator())
    assert batch.shape == images.shape
    low, high = normalize(images).aminmax()
    assert batch.min() >= low - 1e-4
    assert batch.max() <= high + 1e-4


def test_shifts_of_an_image_that_is_not_square_are_slices_of_its_reflection():
    images = torch.randint(0, 256, (40, 3, 20, 50), dtype=torch.uint8, generator=generator(1))
    dx, dy = torch.randint(-16, 17, (2, 40), generator=generator())
    mirrored = torch.arange(40) % 2 == 1
    expected = [moved_one(*row) for row in zip(images, mirrored, dx.tolist(), dy.tolist(), strict=True)]
    assert torch.equal(lab.data._moved(images, mirrored, dx, dy), torch.stack(expected))


@pytest.mark.parametrize("augment", [Augment(), Augment.course(), Augment(shift=5)])
@pytest.mark.parametrize("size", [(4, 32), (32, 4), (1, 1)])
def test_an_image_smaller_than_the_shift_is_refused_with_both_sizes(size, augment):
    said = f"shift={augment.shift} is too large for images of {size[0]}x{size[1]} pixels"
    with pytest.raises(ValueError, match=said):
        augmented(torch.zeros(2, 3, *size, dtype=torch.uint8), augment, generator())


def test_an_image_just_larger_than_the_shift_is_moved_to_its_own_pixels():
    images = torch.arange(2_000).view(-1, 1, 1, 1).expand(2_000, 3, 5, 5) % 250
    batch = denormalize(augmented(images.to(torch.uint8), Augment(), generator()))
    assert torch.equal((batch * 255).round().long(), images)


def test_a_single_pixel_works_without_a_shift():
    images = noise(4, 1)
    assert torch.equal(augmented(images, Augment(shift=0), generator()), normalize(images))


def test_a_factor_above_1_enlarges():
    images = torch.zeros(1, 3, 32, 32)
    images[..., 12:20, 12:20] = 1.0  # 64 pixels
    assert warped(images, False, scale=1.5)[0, 0].sum().item() == pytest.approx(64 * 1.5**2, rel=0.02)


def test_beyond_the_border_the_image_is_mirrored_not_black():
    images = torch.full((1, 3, 32, 32), 7.0)
    torch.testing.assert_close(warped(images, False, dx=9, dy=-9, scale=0.7, degrees=30), images)


COORDINATES = torch.stack(  # a pixel says where it comes from: (8 * column, 8 * row, 0)
    [
        8 * torch.arange(32).expand(32, 32),
        8 * torch.arange(32).view(32, 1).expand(32, 32),
        torch.zeros(32, 32),
    ]
).to(torch.uint8)


def places(batch, row, column):
    """Columns and rows that the pixel at (row, column) of each image came from."""
    pixels = (denormalize(batch)[:, :2, row, column] * 255 / 8).round().long()
    return pixels[:, 0], pixels[:, 1]


def test_shifts_are_drawn_evenly_from_minus_to_plus_the_most():
    images = COORDINATES.expand(9_000, 3, 32, 32)[:, :, 8:24, 8:24]
    columns, rows = places(augmented(images, Augment(flip=False, shift=4), generator()), 8, 8)
    for offsets in (columns - 16, rows - 16):
        assert sorted(offsets.unique().tolist()) == list(range(-4, 5))
        counts = (offsets + 4).bincount()  # 1,000 each, standard deviation 30
        assert ((counts - 1_000).abs() < 150).all()
    assert abs(torch.corrcoef(torch.stack([columns, rows]).float())[0, 1]) < 0.05


def test_half_of_the_images_are_mirrored():
    images = COORDINATES.expand(2_000, 3, 32, 32)
    columns, rows = places(augmented(images, Augment(shift=0), generator()), 5, 3)
    assert set(columns.tolist()) == {3, 28}
    assert set(rows.tolist()) == {5}
    assert 900 < (columns == 28).sum() < 1_100


def test_which_images_are_mirrored_can_be_given():
    images, mirrored = noise(6), torch.tensor([True, False, False, True, True, False])
    batch = augmented(images, Augment(shift=0), generator(), mirrored)
    expected = torch.where(mirrored.view(-1, 1, 1, 1), images.flip(3), images)
    assert torch.equal(batch, normalize(expected))


def test_scale_and_rotation_stay_within_their_limits_and_come_close_to_them():
    square = torch.zeros(400, 3, 32, 32, dtype=torch.uint8)
    square[..., 12:20, 12:20] = 255
    batch = denormalize(augmented(square, Augment(flip=False, shift=0, scale=0.25), generator()))
    factors = (batch[:, 0].sum((1, 2)) / 64).sqrt()
    assert 0.74 < factors.min() < 0.80
    assert 1.20 < factors.max() < 1.26

    ray = torch.zeros(400, 3, 32, 32, dtype=torch.uint8)
    ray[..., 15:17, 16:] = 255  # from the centre to the right
    batch = denormalize(augmented(ray, Augment(flip=False, shift=0, rotate=30), generator()))[:, 0]
    batch = batch[:, 6:26, 6:26]  # its centre of mass gives its direction
    axis = torch.arange(20) - 9.5
    angles = torch.atan2((batch.sum(2) * axis).sum(1), (batch.sum(1) * axis).sum(1)).rad2deg()
    assert -31 < angles.min() < -26
    assert 26 < angles.max() < 31


def test_augment_none_only_normalizes():
    images = noise(4)
    assert torch.equal(augmented(images, Augment.none(), generator()), normalize(images))


def test_the_images_of_a_batch_are_augmented_differently():
    images = noise(1).expand(64, 3, 32, 32)
    for augment in (Augment(), Augment.course()):
        batch = augmented(images, augment, generator())
        assert len(batch.flatten(1).unique(dim=0)) > 40


@pytest.mark.parametrize("augment", [Augment(), Augment.course(), Augment(sharpness=0.5, colour=0.3)])
def test_augmentation_depends_only_on_the_generator_and_leaves_the_images_alone(augment):
    images = noise(16)
    kept = images.clone()
    one = augmented(images, augment, generator(5))
    assert torch.equal(one, augmented(images, augment, generator(5)))
    assert not torch.equal(one, augmented(images, augment, generator(6)))
    assert torch.equal(images, kept)
    assert one.dtype == torch.float32


@pytest.mark.parametrize("side", [1, 5, 16])
def test_cutout_is_one_square_of_the_mean_cut_off_at_the_border(side):
    images = torch.full((1_000, 3, 32, 32), 255, dtype=torch.uint8)
    batch = augmented(images, Augment(flip=False, shift=0, cutout=side), generator())
    assert set(batch.unique().tolist()) == {0.0, *normalize(images[:1]).unique().tolist()}
    cut = batch == 0
    assert torch.equal(cut.any(1), cut.all(1))  # all three channels
    cut = cut[:, 0]
    rows, columns = cut.any(2), cut.any(1)
    assert torch.equal(cut, rows.unsqueeze(2) & columns.unsqueeze(1))  # a rectangle
    assert rows.sum(1).max() == columns.sum(1).max() == side
    assert cut.sum((1, 2)).min() >= (side // 2) ** 2  # its centre is in the image
    for line in (rows, columns):  # without a gap
        assert (line[:, 1:] != line[:, :-1]).sum(1).max() <= 2
    if side > 1:
        assert cut.any(0).all()  # anywhere, corners included


def test_a_cutout_is_shown_in_the_mean_colour():
    images = torch.full((1, 3, 32, 32), 255, dtype=torch.uint8)
    batch = augmented(images, Augment(flip=False, shift=0, cutout=32), generator())
    colour = denormalize(batch)[0][:, (batch[0] == 0).all(0)][:, 0]
    torch.testing.assert_close(colour, torch.tensor(MEAN))


def test_greyscale_gives_three_channels_the_luma_of_rec_601():
    images = noise(8)
    batch = augmented(images, Augment(flip=False, shift=0, greyscale=1.0), generator())
    red, green, blue = (images.float() / 255).unbind(1)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    torch.testing.assert_close(denormalize(batch), luma.unsqueeze(1).expand(8, 3, 32, 32))


def test_greyscale_applies_to_its_share_of_the_images():
    images = noise(1_000, 16)
    batch = denormalize(augmented(images, Augment(flip=False, shift=0, greyscale=0.3), generator()))
    grey = (batch - batch.mean(1, keepdim=True)).abs().amax((1, 2, 3)) < 1e-4
    assert 250 < grey.sum() < 350
    assert torch.equal(batch[~grey], denormalize(normalize(images[~grey])))


FACTORS = torch.tensor([0.7, 1.0, 1.2, 0.9])


def muted(count: int) -> Tensor:  # in [0.3, 0.6], where no factor above leads out of [0, 1]
    return 0.3 + 0.3 * noise(count, 16).float() / 255


def test_colours_change_as_torchvision_changes_them():
    images = muted(4)
    brightness, contrast, saturation = FACTORS, FACTORS.roll(1), FACTORS.roll(2)
    for image, ours, *factors in zip(
        images,
        _recoloured(images, brightness, contrast, saturation),
        brightness,
        contrast,
        saturation,
        strict=True,
    ):
        steps = zip((TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation), factors, strict=True)
        for adjust, factor in steps:
            image = adjust(image, factor.item())
        torch.testing.assert_close(ours, image, rtol=0, atol=2e-4)  # torchvision's luma has four digits


def test_an_image_is_sharpened_as_torchvision_sharpens_it():
    images = muted(4)
    for image, ours, factor in zip(images, _sharpened(images, FACTORS), FACTORS, strict=True):
        expected = TF.adjust_sharpness(image, factor.item())  # leaves the border as it is
        torch.testing.assert_close(ours[:, 1:-1, 1:-1], expected[:, 1:-1, 1:-1])
    level = torch.full((2, 3, 8, 8), 0.4)
    torch.testing.assert_close(_sharpened(level, torch.tensor([0.0, 2.0])), level)  # the border included


@pytest.mark.parametrize("step", ["sharpness", "colour"])
def test_colour_and_sharpness_stay_in_range_and_are_each_image_s_own(step):
    images = noise(1).expand(64, 3, 32, 32)
    batch = denormalize(augmented(images, Augment(flip=False, shift=0, **{step: 1.0}), generator()))
    assert batch.min() >= 0
    assert batch.max() <= 1
    assert len(batch.flatten(1).unique(dim=0)) == 64
    weak = denormalize(augmented(images, Augment(flip=False, shift=0, **{step: 0.01}), generator()))
    plain = denormalize(normalize(images))
    assert 0 < (weak - plain).abs().max() < 0.03 < (batch - plain).abs().max()


def test_the_course_s_augmentation_has_all_its_steps():
    course = Augment.course()
    assert course.flip
    assert course.cutout == 16
    assert min(course.shift, course.scale, course.rotate, course.greyscale) > 0


@pytest.mark.parametrize("flip", ["no", 0.1, 1, None])
def test_a_flip_is_on_or_off_and_not_a_share(flip):
    with pytest.raises(ValueError, match=f"flip={flip!r} must be True or False"):
        Augment(flip=flip)


@pytest.mark.parametrize(
    ("name", "value", "most"),
    [
        ("shift", -1, 16),
        ("shift", 17, 16),
        ("scale", 1.0, 0.9),
        ("rotate", 181, 180),
        ("cutout", 33, 32),
        ("greyscale", 1.1, 1),
        ("greyscale", math.nan, 1),
        ("sharpness", 1.1, 1),
        ("colour", -0.1, 1),
        ("mixup", 11, 10),
        ("cutout", "16", 32),
        ("rotate", None, 180),
        ("shift", 1.5, 16),
        ("cutout", 3.7, 32),
        ("scale", True, 0.9),
    ],
)
def test_a_wrong_augmentation_is_an_error_with_its_limits(name, value, most):
    with pytest.raises(ValueError, match=f"{name}={value!r} must be an? (number|integer) from 0 to {most}"):
        Augment(**{name: value})


def test_an_augmentation_keeps_plain_numbers():
    augment = Augment(
        flip=np.True_,
        shift=np.int64(2),
        scale=np.float32(0.5),
        rotate=np.float64(10),
        cutout=np.uint8(8),
        greyscale=0,
        mixup=np.float32(0.25),
    )
    assert augment == Augment(True, 2, 0.5, 10, 8, 0, 0, 0, 0.25)
    values = vars(augment).values()
    assert [type(value) for value in values] == [bool, int, float, float, int, int, float, float, float]


@pytest.mark.parametrize(
    "augment", [Augment.none(), Augment(), Augment(rotate=10, scale=0.1), Augment.course()]
)
def test_other_statistics_change_the_normalization_of_augmented_images_and_nothing_else(augment):
    ours = augmented(noise(20), augment, generator(3))
    theirs = augmented(noise(20), augment, generator(3), mean=OTHER[0], std=OTHER[1])
    filled = (ours == 0).all(1, keepdim=True) & (theirs == 0).all(1, keepdim=True)  # cut out: the mean
    pixels, same = (ours * value(STD) + value(MEAN)), (theirs * value(OTHER[1]) + value(OTHER[0]))
    torch.testing.assert_close(pixels.where(~filled, 0), same.where(~filled, 0), rtol=0, atol=1e-5)
    assert filled.any() == bool(augment.cutout)


def value(channels) -> Tensor:  # (3, 1, 1)
    return torch.tensor(channels).view(3, 1, 1)


# ---- Splits ----------------------------------------------------------------------------------------

UNEVEN = torch.tensor([0] * 600 + [1] * 300 + [2] * 90 + [3] * 10)[
    torch.randperm(1_000, generator=generator())
]


@pytest.mark.parametrize("held_out", [1, 10, 100, 333, 999])
def test_a_split_is_disjoint_complete_and_stratified(held_out):
    kept, out = split(UNEVEN, held_out, seed=0)
    assert len(out) == held_out
    assert sorted(torch.cat([kept, out]).tolist()) == list(range(1_000))
    proportion = UNEVEN.bincount() * held_out / 1_000
    assert ((UNEVEN[out].bincount(minlength=4) - proportion).abs() <= 1).all()


def test_the_same_seed_holds_out_the_same_images_and_another_seed_others():
    out = split(UNEVEN, 200, seed=1)[1]
    assert torch.equal(out, split(UNEVEN, 200, seed=1)[1])
    other = split(UNEVEN, 200, seed=2)[1]
    assert len(set(out.tolist()) & set(other.tolist())) < 100  # 40 by chance


def test_every_image_can_be_held_out():
    seen = torch.cat([split(UNEVEN[:100], 50, seed=seed)[1] for seed in range(20)])
    assert len(seen.unique()) == 100


def test_zero_images_can_be_held_out():
    kept, out = split(UNEVEN, 0, seed=0)
    assert kept.tolist() == list(range(1_000))
    assert out.tolist() == []


@pytest.mark.parametrize("held_out", [-1, 1_000, 1_001, 10.0, "10", None])
def test_a_wrong_number_held_out_is_an_error_with_the_limits(held_out):
    with pytest.raises(ValueError, match=f"held_out={held_out!r} must be an integer from 0 to 999"):
        split(UNEVEN, held_out, seed=0)


# ---- Loaders ---------------------------------------------------------------------------------------


def numbered(count=103, **options) -> Loader:
    """Images whose pixels and label are the image's number."""
    numbers = torch.arange(count)
    images = numbers.to(torch.uint8).view(-1, 1, 1, 1).expand(count, 3, 32, 32)
    return Loader(images, numbers, **{"batch_size": 32, "shuffle": True} | options)


def order(loader) -> list[int]:
    return torch.cat([labels for _, labels in loader]).tolist()


def batches(loader) -> tuple[Tensor, Tensor]:
    images, labels = zip(*loader, strict=True)
    return torch.cat(images), torch.cat(labels)


@pytest.mark.parametrize("augment", [None, Augment(), Augment.course()])
def test_labels_stay_with_their_images(augment):
    for images, labels in numbered(augment=augment):
        assert images.dtype == torch.float32
        assert labels.dtype == torch.int64
        filled = denormalize(images).mul(255).round().amax((1, 2, 3))
        if augment is None or not augment.cutout:
            assert torch.equal(filled.long(), labels)
        else:  # cut out or not, some pixels are left
            pixels = denormalize(images).mul(255).round()[:, 0].flatten(1).long()
            assert (pixels == labels.view(-1, 1)).any(1).all()


@pytest.mark.parametrize(
    ("count", "sizes"), [(103, [32, 32, 32, 7]), (96, [32] * 3), (5, [5]), (33, [32, 1])]
)
def test_the_last_batch_is_smaller_and_len_counts_it(count, sizes):
    loader = numbered(count)
    assert len(loader) == len(sizes)
    assert [len(labels) for _, labels in loader] == sizes


def test_every_image_comes_once_per_epoch_in_a_new_order():
    loader = numbered()
    epochs = [order(loader) for _ in range(3)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(103))] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert tuple(range(103)) not in {tuple(epoch) for epoch in epochs}


def test_without_shuffling_the_order_is_the_data_s():
    loader = numbered(shuffle=False)
    assert order(loader) == order(loader) == list(range(103))


def of(small, seed=0, augment=None) -> Loader:
    augment = augment or Augment.course()
    return loaders_from(small, 64, augment=augment, limit=200, device="cpu", seed=seed)[0]


def test_the_same_seed_gives_the_same_batches_and_another_seed_others(small):
    one, again, other = (batches(of(small, seed)) for seed in (7, 7, 8))
    assert all(map(torch.equal, one, again))
    assert not torch.equal(one[0], other[0])
    assert not torch.equal(one[1], other[1])


def test_epochs_differ_in_augmentation_too(small):
    loader = of(small)
    first, second = batches(loader), batches(loader)
    first, second = (images[labels.argsort(stable=True)] for images, labels in (first, second))
    assert not torch.equal(first, second)


def test_a_loader_whose_epoch_is_set_continues_where_another_stopped(small):
    straight, resumed = of(small), of(small)
    for _ in range(2):
        batches(straight)
    assert straight.epoch == 2
    resumed.epoch = 2
    assert all(map(torch.equal, batches(straight), batches(resumed)))


def test_loading_leaves_torch_s_random_state_alone(small):
    state = torch.get_rng_state()
    batches(of(small))
    assert torch.equal(state, torch.get_rng_state())


def test_mixed_images_and_labels_have_the_same_shares():
    images = torch.tensor([0.0, 10.0, 100.0]).view(3, 1, 1, 1).expand(3, 3, 2, 2)
    shares = torch.tensor([1.0, 0.75, 0.5])
    both, labels = mixed(images, torch.eye(3), shares)
    assert both[:, 0, 0, 0].tolist() == [0, 7.5, 55]
    assert both.shape == images.shape
    assert labels.tolist() == [[1, 0, 0], [0.25, 0.75, 0], [0, 0.5, 0.5]]


def test_mixup_mixes_each_image_with_another_by_the_larger_share_of_a_beta_distribution():
    count = 4_000
    levels = torch.arange(count) % 10  # an image's level is ten times its class
    images = (10 * levels).to(torch.uint8).view(-1, 1, 1, 1).expand(count, 3, 16, 16)
    options = {"batch_size": 64, "shuffle": True, "classes": tuple("abcdefghij")}
    loader = Loader(images, levels, augment=Augment(flip=False, shift=0, mixup=0.4), **options)
    pixels, labels = batches(loader)
    assert (pixels.dtype, labels.dtype, labels.shape) == (torch.float32, torch.float32, (count, 10))
    torch.testing.assert_close(labels.sum(1), torch.ones(count))
    shown = 255 * denormalize(pixels)[:, 0, 0, 0]
    torch.testing.assert_close(shown, 10 * labels @ torch.arange(10.0), rtol=0, atol=1e-3)
    share = labels.amax(1)[(labels > 0).sum(1) == 2].double()  # without those of a pair of one class
    assert share.min() >= 0.5
    larger = np.random.default_rng(0).beta(0.4, 0.4, 100_000)
    assert share.mean() == pytest.approx(np.maximum(larger, 1 - larger).mean(), abs=0.01)
    _, classes = batches(Loader(images, levels, augment=Augment(flip=False, shift=0), **options))
    sure = labels.amax(1) > 0.51
    assert torch.equal(labels.argmax(1)[sure], classes[sure])
    again = Loader(images, levels, augment=Augment(flip=False, shift=0, mixup=0.4), **options)
    assert torch.equal(batches(again)[1], labels)
    assert not torch.equal(batches(again)[1].amax(1), labels.amax(1))


def test_mixup_mixes_probabilities_too_and_needs_to_know_the_classes():
    images, augment = noise(8), Augment(mixup=1.0)
    probabilities = torch.eye(4).repeat(2, 1)
    _, labels = batches(Loader(images, probabilities, batch_size=8, augment=augment))
    torch.testing.assert_close(labels.sum(1), torch.ones(8))
    assert (labels.amax(1) < 1).any()
    with pytest.raises(ValueError, match="give `classes`"):
        Loader(images, torch.arange(8) % 4, batch_size=8, augment=augment)


def test_an_image_is_mirrored_in_every_second_epoch():
    count = 200
    loader = Loader(
        COORDINATES.expand(count, 3, 32, 32),
        torch.arange(count),
        batch_size=64,
        augment=Augment(shift=0),
        shuffle=True,
    )

    def mirrored():
        images, labels = batches(loader)
        return (places(images, 0, 0)[0] == 31)[labels.argsort()]

    first, second, third = mirrored(), mirrored(), mirrored()
    assert torch.equal(second, ~first)
    assert torch.equal(third, first)
    assert 60 < first.sum() < 140


def test_iterating_a_loader_leaves_its_data_alone(small):
    kept = small.train_images.clone()
    batches(of(small))
    assert torch.equal(small.train_images, kept)


def by_sum(images):
    """The same images, sorted by their sums."""
    return images[images.double().sum((1, 2, 3)).argsort()]


def test_train_and_test_loaders_contain_their_parts(small):
    train, test = loaders_from(small, 300, augment=False, device="cpu")
    images, labels = batches(test)
    assert torch.equal(images, normalize(small.test_images))  # in order, unaugmented
    assert torch.equal(labels, small.test_labels)
    images, labels = batches(train)
    assert not torch.equal(labels, small.train_labels)  # shuffled
    assert torch.equal(by_sum(images), by_sum(normalize(small.train_images)))
    assert train.name == test.name == STAND_IN
    assert train.classes == small.classes


def test_true_is_the_default_augmentation_and_false_is_none(small):
    assert loaders_from(small, augment=True, device="cpu")[0].augment == Augment()
    assert loaders_from(small, augment=False, device="cpu")[0].augment == Augment.none()
    assert loaders_from(small, augment=Augment.course(), device="cpu")[0].augment == Augment.course()
    assert loaders_from(small, augment=True, device="cpu")[1].augment == Augment.none()


def test_a_validation_set_is_held_out_of_the_training_images(quick_stand_in):
    loaders = cifar10_loaders(64, dataset="stand-in", validation=100, device="cpu", seed=3)
    train, validation, test = loaders
    kept, held_out = split(quick_stand_in.train_labels, 100, seed=3)
    assert torch.equal(train.images, quick_stand_in.train_images[kept])
    assert torch.equal(validation.images, quick_stand_in.train_images[held_out])
    assert torch.equal(test.images, quick_stand_in.test_images)
    assert validation.labels.bincount().tolist() == [10] * 10
    assert torch.equal(batches(validation)[0], normalize(quick_stand_in.train_images[held_out]))


@pytest.mark.usefixtures("quick_stand_in")
def test_without_a_validation_set_there_are_two_loaders():
    assert len(cifar10_loaders(64, dataset="stand-in", device="cpu")) == 2


@pytest.mark.usefixtures("quick_stand_in")
def test_a_limit_takes_the_same_number_from_every_class():
    train, test = cifar10_loaders(64, dataset="stand-in", limit=100, device="cpu")
    assert train.labels.bincount().tolist() == [10] * 10
    assert test.labels.bincount().tolist() == [10] * 10
    train, validation, test = cifar10_loaders(64, dataset="stand-in", limit=100, validation=20, device="cpu")
    assert [len(loader.labels) for loader in (train, validation, test)] == [80, 20, 100]


def test_loaders_do_not_fall_back_if_cifar10_is_requested():
    with pytest.raises(FileNotFoundError, match="CIFAR10_ROOT"):
        cifar10_loaders(64, dataset="cifar10")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch_size": 0}, "batch_size=0 must be an integer of at least 1"),
        ({"batch_size": 2.5}, "batch_size=2.5 must be"),
        ({"validation": -1}, "validation=-1 must be an integer from 0 to 999"),
        ({"validation": 1_000}, "validation=1000 must be an integer from 0 to 999"),
        ({"validation": True}, "validation=True must be an integer from 0 to 999"),
        ({"validation": 100, "limit": 100}, "validation=100 must be an integer from 0 to 99"),
        ({"seed": "0"}, "seed='0' must be an integer"),
        ({"limit": 0}, "limit=0 must be an integer of at least 1"),
        ({"limit": -3}, "limit=-3 must be"),
        ({"limit": 2.5}, "limit=2.5 must be"),
        ({"limit": "all"}, "limit='all' must be"),
        ({"augment": "course"}, "augment='course' must be an Augment, True or False"),
        ({"augment": None}, "augment=None must be"),
        ({"device": "abacus"}, "device='abacus' is not available"),
    ],
)
def test_a_wrong_option_of_the_loaders_is_an_error_that_names_it(small, options, said):
    with pytest.raises(ValueError, match=said):
        loaders_from(small, **{"device": "cpu"} | options)


@pytest.mark.parametrize(
    ("images", "labels", "said"),
    [
        (torch.zeros(4, 3, 32, 32), torch.zeros(4).long(), "torch.float32 .*expected uint8"),
        (torch.zeros(4, 1, 32, 32).byte(), torch.zeros(4).long(), r"\(4, 1, 32, 32\): expected uint8"),
        (torch.zeros(4, 32, 32).byte(), torch.zeros(4).long(), r"\(4, 32, 32\): expected uint8"),
        (torch.zeros(4, 3, 32, 32).byte(), torch.zeros(5).long(), "4 images and 5 labels"),
        (torch.zeros(0, 3, 32, 32).byte(), torch.zeros(0).long(), "0 images: expected at least one"),
    ],
)
def test_a_loader_says_what_is_wrong_with_its_tensors(images, labels, said):
    with pytest.raises(ValueError, match=said):
        Loader(images, labels, batch_size=2)


@pytest.mark.real_data
def test_a_held_out_part_of_cifar10_has_every_class_alike(real):
    kept, held_out = split(real.train_labels, 5_000, seed=0)
    assert real.train_labels[held_out].bincount().tolist() == [500] * 10
    assert real.train_labels[kept].bincount().tolist() == [4_500] * 10


def test_a_loader_normalizes_by_the_statistics_of_its_data_set(small):
    data = replace(small, mean=OTHER[0], std=OTHER[1])
    for loader, images in zip(
        loaders_from(data, 100, augment=False, device="cpu"),
        (data.train_images, data.test_images),
        strict=True,
    ):
        assert (loader.mean, loader.std) == OTHER
        loader.shuffle = False
        assert torch.equal(batches(loader)[0], normalize(images, *OTHER))
        assert torch.equal(loader.dataset[7][0], normalize(images[7], *OTHER))


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"mean": (0.5, 0.5)}, "must be three numbers, one for each channel"),
        ({"std": 0.5}, "std=0.5 must be three numbers, one for each channel"),
        ({"std": (0.5, 0.0, 0.5)}, "std=0.0 must be a number from 0 to 1, above 0"),
        ({"mean": (0.5, 125, 0.5)}, "mean=125 must be a number from 0 to 1"),
        ({"mean": (0.5, float("nan"), 0.5)}, "mean=nan must be a number from 0 to 1"),
    ],
)
def test_statistics_that_are_none_are_refused(fields, told):
    for make in (partial(Loader, batch_size=2), ImageDataset):
        with pytest.raises(ValueError, match=re.escape(told)):
            make(noise(2), torch.arange(2), **fields)


# ---- The images one by one -------------------------------------------------------------------------


def test_the_dataset_of_a_loader_has_each_image_normalized_with_its_label(small):
    loader = of(small)
    items = loader.dataset
    assert isinstance(items, torch.utils.data.Dataset)
    assert len(items) == 200
    for index in (0, 7, 199, -1):
        image, label = items[index]
        assert torch.equal(image, normalize(loader.images)[index])
        assert label.dtype == torch.int64
        assert label.item() == loader.labels[index].item()
    assert items.classes == small.classes
    assert items.targets == loader.labels.tolist()
    assert type(items.targets[0]) is int


def test_the_dataset_ends_as_a_sequence_does():
    items = numbered(3).dataset
    assert [int(label) for _, label in items] == [0, 1, 2]
    with pytest.raises(IndexError):
        items[3]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_dataloader_reads_the_dataset_with_and_without_workers(small, workers):
    loader = loaders_from(small, 64, device="cpu", limit=100)[1]
    read = DataLoader(loader.dataset, batch_size=64, num_workers=workers)
    assert all(map(torch.equal, batches(read), batches(loader)))


def test_the_dataset_keeps_probabilities_as_labels():
    labels = torch.rand(4, 10, generator=generator()).softmax(1)
    items = Loader(noise(4), labels, batch_size=2).dataset
    assert torch.equal(items[2][1], labels[2])
    assert items.targets == labels.tolist()


def test_reading_an_item_gives_no_access_to_the_loader_s_own_data():
    loader = numbered(4)
    image, label = loader.dataset[2]
    image += 1
    label += 1
    assert torch.equal(loader.dataset[2][0], normalize(loader.images)[2])
    assert loader.labels.tolist() == [0, 1, 2, 3]


def test_the_dataset_is_made_once_and_anew_for_other_labels():
    loader = numbered(4)
    assert loader.dataset is loader.dataset
    other = copy.copy(loader)
    other.labels = loader.labels + 5
    assert other.dataset.targets == [5, 6, 7, 8]
    assert loader.dataset.targets == [0, 1, 2, 3]


# ---- Digests and descriptions ----------------------------------------------------------------------


def test_the_digest_is_the_sha_256_of_types_shapes_and_values():
    images, labels = noise(5, 7), torch.arange(5)
    sha256 = hashlib.sha256(b"torch.uint8 (5, 3, 7, 7)\n" + images.permute(0, 2, 3, 1).numpy().tobytes())
    sha256.update(b"torch.int64 (5,)\n" + labels.numpy().tobytes())
    assert Loader(images, labels, batch_size=2).digest() == sha256.hexdigest()[:16]
    assert tensor_digest(images, labels) == sha256.hexdigest()[:16]


def test_the_digest_does_not_depend_on_the_memory_format():
    images = noise(5)
    digest = tensor_digest(images)
    assert tensor_digest(images.contiguous(memory_format=torch.channels_last)) == digest
    assert tensor_digest(images.repeat(1, 1, 1, 2)[..., :32]) == digest
    loader = Loader(images, torch.arange(5), batch_size=2)
    kept = loader.digest()
    loader.images = images.contiguous()
    assert loader.digest() == kept


def test_the_digest_does_not_depend_on_batches_order_and_augmentation():
    images, labels = noise(5), torch.arange(5)
    one = Loader(images, labels, batch_size=2)
    other = Loader(
        images, labels, batch_size=3, seed=9, shuffle=True, augment=Augment(), name="a", part="train"
    )
    assert one.digest() == other.digest()


def changed_pixel(images, labels):
    images = images.clone()
    images[4, 2, 31, 31] ^= 1
    return images, labels


@pytest.mark.parametrize(
    "change",
    [
        changed_pixel,
        lambda images, labels: (images, labels.flip(0)),
        lambda images, labels: (images, labels.to(torch.int32)),
        lambda images, labels: (images[:4], labels[:4]),
        lambda images, labels: (images.flip(0), labels),
        lambda images, labels: (images.flip(1), labels),
        lambda images, labels: (images.transpose(2, 3), labels),
        lambda images, labels: (images.view(5, 3, 16, 64), labels),
    ],
)
def test_the_digest_changes_with_the_data(change):
    images, labels = noise(5), torch.arange(5)
    before = Loader(images, labels, batch_size=2).digest()
    assert Loader(*change(images, labels), batch_size=2).digest() != before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.bool])
def test_tensors_of_any_type_have_a_digest(dtype):
    tensors = torch.tensor([0.0, 1.0]).to(dtype), torch.tensor(1.0).to(dtype)
    assert tensor_digest(*tensors) == tensor_digest(*[tensor.clone() for tensor in tensors])
    assert tensor_digest(*tensors) != tensor_digest(*reversed(tensors))
    assert tensor_digest(torch.ones(2, requires_grad=True)) == tensor_digest(torch.ones(2))


@pytest.mark.real_data
def test_cifar10_has_the_digests_that_records_show(real):
    train, test = loaders_from(real, device="cpu")
    assert [train.digest(), test.digest()] == ["ff6ce0b492c9b03e", "e9fa06c489653531"]


def test_the_description_of_a_loader_is_plain_data_that_says_what_decides_its_batches(small):
    loader = of(small, augment=Augment(scale=np.float64(0.1)))
    description = loader.describe()
    assert description == {
        "loader": "Loader",
        "name": STAND_IN,
        "part": "train",
        "images": 200,
        "batch_size": 64,
        "shuffle": True,
        "augment": {
            "flip": True,
            "shift": 4,
            "scale": 0.1,
            "rotate": 0.0,
            "cutout": 0,
            "greyscale": 0.0,
        },
        "digest": loader.digest(),
    }
    assert json.loads(json.dumps(description)) == description
    later = {
        "sharpness": 0.5,
        "colour": 0.1,
        "mixup": 0.2,
    }  # which came later, and change no older description
    assert of(small, augment=Augment(**later)).describe()["augment"].items() >= later.items()


def test_describing_a_loader_changes_none_of_its_batches(small):
    described, plain = of(small), of(small)
    for _ in range(2):
        described.describe()
        assert len(described.dataset) == 200
        assert all(map(torch.equal, batches(described), batches(plain)))
    assert (described.epoch, described.seed) == (2, 0)


def test_a_description_has_statistics_only_if_they_are_not_cifar10_s(small):
    loader = of(small)
    assert not {"mean", "std"} & loader.describe().keys()
    other = loaders_from(replace(small, mean=OTHER[0], std=OTHER[1]), 64, limit=200, device="cpu")[
        0
    ].describe()
    assert (other.pop("mean"), other.pop("std")) == ([*OTHER[0]], [*OTHER[1]])
    assert other == loaders_from(small, 64, limit=200, device="cpu")[0].describe()
    assert json.loads(json.dumps(other)) == other


# ---- Global state ----------------------------------------------------------------------------------

CALLS = {
    "generator_from": lambda small: generator_from(3).initial_seed() == 3,
    "stand_in": lambda small: stand_in(20, 10).train_labels.bincount().tolist() == [2] * 10,
    "split": lambda small: len(split(UNEVEN, 50, 0)[1]) == 50,
    "normalize": lambda small: math.isclose(
        normalize(torch.zeros(1, 3, 1, 1).byte())[0, 0].item(), -MEAN[0] / STD[0], rel_tol=1e-6
    ),
    "denormalize": lambda small: math.isclose(
        denormalize(torch.zeros(1, 3, 1, 1))[0, 0].item(), MEAN[0], rel_tol=1e-6
    ),
    "augmented": lambda small: augmented(noise(4), Augment.course(), generator()).shape == (4, 3, 32, 32),
    "Loader": lambda small: torch.equal(batches(of(small))[1].bincount(), torch.tensor([20] * 10)),
    "Loader.dataset": lambda small: int(numbered().dataset[5][1]) == 5,
    "Loader.digest": lambda small: numbered().digest() == numbered().digest(),
    "Loader.describe": lambda small: numbered().describe()["images"] == 103,
    "loaders_from": lambda small: (
        [len(loader) for loader in loaders_from(small, 500, device="cpu")] == [2, 1]
    ),
    "load_dataset": lambda small: load_dataset("stand-in") is small,
    "cifar10_loaders": lambda small: len(cifar10_loaders(500, dataset="stand-in", device="cpu")[0]) == 2,
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_call_gives_its_result_and_leaves_global_state_alone(quick_stand_in, call):
    with unchanged():
        assert call(quick_stand_in)
