"""lab/folder.py: a folder of pictures as a data set, against torchvision's ImageFolder."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_cifar10 import unprivileged
from torchvision.datasets import ImageFolder
from torchvision.transforms import CenterCrop, Compose, PILToTensor, Resize

import lab.folder
from lab.data import load_dataset, loaders_from, pooled_statistics
from lab.folder import read_folder

SQUARED = Compose([Resize(32), CenterCrop(32), PILToTensor()])


def photograph(seed: int, width: int = 40, height: int = 40) -> Image.Image:
    """Smooth enough for resizing, and different everywhere."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def fill(place: Path, count: int, first: int = 0) -> None:
    """Put `count` PNGs into a folder; they are called 0.png, 1.png and so on, and are all different."""
    place.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        photograph(first + number).save(place / f"{number}.png")


@pytest.fixture
def flowers(tmp_path) -> Path:
    """Two classes of five and ten pictures."""
    place = tmp_path / "flowers"
    fill(place / "tulip", 10)
    fill(place / "rose", 5, first=100)
    return place


def pixels(*paths: Path) -> torch.Tensor:
    return torch.stack([SQUARED(Image.open(path).convert("RGB")) for path in paths])


# ---- Which pictures --------------------------------------------------------------------------------


def test_a_folder_with_train_and_test_is_read_as_torchvision_s_imagefolder_reads_it(tmp_path):
    sizes = [(40, 40), (32, 32), (50, 33), (33, 50), (7, 90), (90, 7), (10, 12), (333, 200)]
    places = [
        tmp_path / part / name for part in ("train", "test") for name in ("b", "a/deep/er", "a", "C", "c")
    ]
    for first, place in enumerate(places):
        place.mkdir(parents=True, exist_ok=True)
        for number, (width, height) in enumerate(sizes):
            ending = ("png", "JPG", "bmp", "webp")[number % 4]
            photograph(100 * first + number, width, height).save(place / f"{number}.{ending}")
    (tmp_path / "train" / "a" / "notes.txt").write_text("not a picture")
    found = read_folder(tmp_path)
    for part, images, labels in (
        ("train", found.train_images, found.train_labels),
        ("test", found.test_images, found.test_labels),
    ):
        theirs = ImageFolder(tmp_path / part, SQUARED)
        assert found.classes == tuple(theirs.classes) == ("C", "a", "b", "c")
        assert labels.tolist() == theirs.targets
        assert torch.equal(images, torch.stack([image for image, _ in theirs]))
    assert (found.train_images.dtype, found.train_labels.dtype) == (torch.uint8, torch.int64)


def test_without_test_pictures_every_fifth_of_each_class_is_held_out(flowers):
    rose, tulip = ([flowers / name / f"{n}.png" for n in range(10)] for name in ("rose", "tulip"))
    held_out = [rose[4], tulip[4], tulip[9]]
    kept = [*rose[:4], *tulip[:4], *tulip[5:9]]
    for _ in range(2):
        found = read_folder(flowers)
        assert found.classes == ("rose", "tulip")
        assert found.train_labels.tolist() == [0] * 4 + [1] * 8
        assert found.test_labels.tolist() == [0, 1, 1]
        assert torch.equal(found.train_images, pixels(*kept))
        assert torch.equal(found.test_images, pixels(*held_out))


def test_a_class_of_fewer_than_five_pictures_has_none_held_out(flowers):
    fill(flowers / "daisy", 4, first=200)
    found = read_folder(flowers)
    assert found.train_labels.tolist() == [0] * 4 + [1] * 4 + [2] * 8
    assert found.test_labels.tolist() == [1, 2, 2]


def test_training_pictures_in_train_alone_are_held_out_from(flowers, tmp_path):
    flowers.rename(tmp_path / "train")
    (tmp_path / "extra").mkdir()
    found = read_folder(tmp_path)
    assert found.classes == ("rose", "tulip")
    assert (len(found.train_labels), len(found.test_labels)) == (12, 3)


@pytest.mark.parametrize(
    ("parts", "taken"), [(("test",), "test"), (("val",), "val"), (("val", "test"), "test")]
)
def test_test_pictures_are_in_test_or_else_in_val(flowers, tmp_path, parts, taken):
    flowers.rename(tmp_path / "train")
    for number, part in enumerate(parts):
        fill(tmp_path / part / "tulip", 1, first=300 + number)
    found = read_folder(tmp_path)
    assert len(found.train_labels) == 15
    assert found.test_labels.tolist() == [1]
    assert torch.equal(found.test_images, pixels(tmp_path / taken / "tulip" / "0.png"))


def test_a_class_may_be_called_train(tmp_path):
    for name in ("car", "test", "train"):
        fill(tmp_path / name, 5)
    assert read_folder(tmp_path).classes == ("car", "test", "train")


def test_what_begins_with_a_dot_or_has_another_ending_is_skipped(flowers):
    expected = read_folder(flowers)
    fill(flowers / ".ipynb_checkpoints", 3)
    fill(flowers / "rose" / ".cache", 3)
    for name in (".DS_Store", "._0.png", "Thumbs.db", "0.txt", "0.png.part"):
        (flowers / "rose" / name).write_text("not a picture")
    (flowers / "readme.png").write_text("not in the folder of a class")
    assert all(map(torch.equal, read_folder(flowers)[1:], expected[1:]))


def test_links_are_followed_and_a_loop_of_them_ends(flowers, tmp_path):
    expected = read_folder(flowers)
    (flowers / "rose" / "all").symlink_to("..")  # which leads to itself, and to the other classes
    (flowers / "rose" / "up").symlink_to(".")
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "tulip").symlink_to(flowers / "tulip")
    fill(linked / "rose", 5, first=100)
    assert all(map(torch.equal, read_folder(linked)[1:], expected[1:]))
    assert len(read_folder(flowers).train_labels) > len(expected.train_labels)


# ---- What of a picture -----------------------------------------------------------------------------


def test_the_middle_of_a_picture_counts(tmp_path):
    wide = Image.new("RGB", (96, 64), (255, 0, 0))
    wide.paste((0, 255, 0), (16, 0, 80, 64))  # the middle 64 columns
    for name, image in (("wide", wide), ("high", wide.transpose(Image.Transpose.ROTATE_90))):
        (tmp_path / name).mkdir()
        for number in range(5):
            image.save(tmp_path / name / f"{number}.png")
    found = read_folder(tmp_path)
    inner = found.train_images[:, :, 2:-2, 2:-2]  # at the edge, antialiasing mixes some red in
    assert torch.equal(inner, torch.tensor([0, 255, 0], dtype=torch.uint8).view(1, 3, 1, 1).expand_as(inner))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_a_picture_of_any_mode_counts_as_its_colours(flowers, mode):
    ending = "jpg" if mode == "CMYK" else "png"
    path = flowers / "rose" / f"00.{ending}"
    photograph(7).convert(mode).save(path)
    assert torch.equal(read_folder(flowers).train_images[1], pixels(path)[0])


def test_a_photograph_is_rotated_as_its_exif_data_say(flowers):
    lying = photograph(7, 60, 40)
    upright = lying.transpose(Image.Transpose.ROTATE_270)
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise
    lying.save(flowers / "rose" / "00.png", exif=exif)
    expected = SQUARED(upright)
    assert torch.equal(read_folder(flowers).train_images[1], expected)


@pytest.mark.parametrize("size", [(1, 30_000), (30_000, 1)])
def test_of_a_very_long_picture_only_the_middle_is_resized(flowers, monkeypatch, size):
    ramp = np.linspace(0, 255, 30_000).round().astype(np.uint8).reshape(size[::-1])
    Image.fromarray(ramp).save(flowers / "rose" / "00.png")
    resized = []
    real = lab.folder._resized
    monkeypatch.setattr(lab.folder, "_resized", lambda image: resized.append(image.size) or real(image))
    image = read_folder(flowers).train_images[1]
    assert max(map(max, resized)) == 100
    assert image.unique().tolist() in ([127], [128], [127, 128])


# ---- As a data set ---------------------------------------------------------------------------------


def test_a_folder_is_a_data_set_with_its_own_name_classes_and_statistics(flowers, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    found = read_folder(flowers)
    shares = found.train_images.double() / 255
    for name in (str(flowers), "flowers", "./flowers/", "~/flowers"):
        data = load_dataset(f"folder:{name}")
        assert (data.name, data.classes) == ("folder flowers", ("rose", "tulip"))
        assert torch.equal(data.train_images, found.train_images)
        assert torch.equal(data.test_labels, found.test_labels)
        assert data.mean == pytest.approx(shares.mean((0, 2, 3)).tolist(), abs=6e-5)
        assert data.std == pytest.approx(shares.std((0, 2, 3), correction=0).tolist(), abs=6e-5)
        assert (data.mean, data.std) == pooled_statistics(found.train_images)
    loader, _ = loaders_from(data, 50, augment=False, device="cpu")
    ((images, _),) = loader
    assert images.mean((0, 2, 3)).tolist() == pytest.approx([0] * 3, abs=1e-3)
    assert images.std((0, 2, 3), correction=0).tolist() == pytest.approx([1] * 3, abs=1e-3)


# ---- What is refused -------------------------------------------------------------------------------


def nowhere(place: Path) -> None:
    pass


def a_file(place: Path) -> None:
    place.touch()


def an_empty_folder(place: Path) -> None:
    place.mkdir()


def a_loop(place: Path) -> None:
    place.symlink_to(place.name)


def pictures_without_classes(place: Path) -> None:
    fill(place, 5)


def one_class(place: Path) -> None:
    fill(place / "rose", 5)


def a_class_without_pictures(place: Path) -> None:
    fill(place / "rose", 5)
    (place / "tulip").mkdir()
    (place / "tulip" / "0.heic").touch()


def no_pictures_at_all(place: Path) -> None:
    for name in ("rose", "tulip"):
        (place / name).mkdir(parents=True)


def few_pictures(place: Path) -> None:
    fill(place / "rose", 4)
    fill(place / "tulip", 1)


def an_unknown_class_in_test(place: Path) -> None:
    for name in ("rose", "tulip"):
        fill(place / "train" / name, 1)
    for name in ("rose", "daisy", "lily"):
        fill(place / "test" / name, 1)


def a_test_folder_without_classes(place: Path) -> None:
    for name in ("rose", "tulip"):
        fill(place / "train" / name, 1)
    fill(place / "test", 1)


def a_name_with_a_line_break(place: Path) -> None:
    fill(place / "rose", 5)
    fill(place / "tu\nlip", 5)


REFUSED = {
    nowhere: (FileNotFoundError, "PLACE is missing: expected a folder of pictures"),
    a_file: (NotADirectoryError, "PLACE is not a folder: expected a folder of pictures"),
    a_loop: (OSError, "PLACE cannot be read: Too many levels of symbolic links"),
    an_empty_folder: (ValueError, "PLACE holds no picture in a subfolder; expected one for each class; "),
    no_pictures_at_all: (ValueError, "PLACE holds no picture in a subfolder; expected one for each class; "),
    pictures_without_classes: (ValueError, "PLACE holds no picture in a subfolder; expected one for each"),
    one_class: (ValueError, "PLACE has a single subfolder, 'rose': expected one for each class"),
    a_class_without_pictures: (
        ValueError,
        "PLACE has folders without a picture: 'tulip'; the names of pictures end in .jpg, .jpeg, .png",
    ),
    few_pictures: (ValueError, "PLACE has fewer than 5 pictures of each class, so that none is held out"),
    an_unknown_class_in_test: (
        ValueError,
        f"PLACE{os.sep}test has classes that PLACE{os.sep}train lacks: 'daisy', 'lily'",
    ),
    a_test_folder_without_classes: (ValueError, f"PLACE{os.sep}test holds no picture in the folders of the"),
    a_name_with_a_line_break: (ValueError, r"PLACE has a folder 'tu\nlip': the name of a class must be"),
}


@pytest.mark.parametrize(
    ("make", "expected"), REFUSED.items(), ids=lambda value: getattr(value, "__name__", "")
)
def test_a_folder_that_is_no_data_set_is_an_error_that_names_it_and_what_is_wrong(tmp_path, make, expected):
    kind, told = expected
    place = tmp_path / "place"
    make(place)
    with pytest.raises(kind) as error:
        load_dataset(f"folder:{place}")
    assert str(error.value).startswith(told.replace("PLACE", str(place)))
    assert len(str(error.value).splitlines()) == 1


def test_a_folder_without_permission_is_named(open_place):
    for name in ("rose", "tulip"):
        fill(open_place / name, 5)
    (open_place / "tulip").chmod(0)
    with (
        unprivileged(),
        pytest.raises(OSError, match=f"{open_place}/tulip cannot be read: Permission denied"),
    ):
        read_folder(open_place)


def test_each_picture_that_cannot_be_read_is_named_with_the_reason(flowers, monkeypatch):
    rose = flowers / "rose"
    (rose / "0.png").write_bytes((rose / "0.png").read_bytes()[:200])
    (rose / "1.png").write_text("not a picture")
    (rose / "2.png").unlink()
    (rose / "2.png").symlink_to("nothing")
    Image.new("I;16", (32, 32)).save(rose / "3.png")
    (rose / "4.png").unlink()
    os.mkfifo(rose / "4.png")
    photograph(1, 50, 50).save(flowers / "tulip" / "3.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000)  # the error comes above twice as many
    monkeypatch.setattr("warnings.warn", lambda *_, **__: None)  # Pillow's, from half of that on
    with pytest.raises(OSError, match="pictures cannot be read") as error:
        read_folder(flowers)
    first, *lines = str(error.value).splitlines()
    assert first == f"{flowers}: 6 of 15 pictures cannot be read:"
    reasons = dict(line.strip().split(" ", 1) for line in lines)
    assert [Path(name).name for name in reasons] == ["0.png", "1.png", "2.png", "3.png", "3.png", "4.png"]
    for name, reason in (
        ("rose/0.png", "is damaged or cannot be read"),
        ("rose/1.png", "is not an image, or of a kind that Pillow cannot read"),
        ("rose/2.png", "is not a file"),
        ("rose/3.png", "is of mode 'I;16': expected 8 bits per channel"),
        ("rose/4.png", "is not a file"),
        ("tulip/3.png", "is too large: Image size (2500 pixels) exceeds limit of 2000 pixels"),
    ):
        assert reasons[str(flowers / name)].startswith(reason)


def test_of_very_many_pictures_that_cannot_be_read_the_first_are_named(flowers):
    for path in flowers.rglob("*.png"):
        path.write_text("not a picture")
    with pytest.raises(OSError, match="15 of 15 pictures cannot be read") as error:
        read_folder(flowers)
    lines = str(error.value).splitlines()
    assert len(lines) == 12
    assert lines[-1] == "  and 5 more"


def test_more_pictures_than_fit_into_memory_are_refused_before_any_is_read(flowers, monkeypatch):
    needed = 15 * 3 * 3 * 32 * 32
    monkeypatch.setattr(lab.folder, "available_memory", lambda: needed)
    read_folder(flowers)
    monkeypatch.setattr(lab.folder, "available_memory", lambda: needed - 1)
    monkeypatch.setattr(lab.folder, "_pixels", lambda file: pytest.fail("it has begun to read"))
    with pytest.raises(ValueError, match=r"flowers holds 15 pictures, which take 0\.000138 GB of memory"):
        read_folder(flowers)
    monkeypatch.undo()
    monkeypatch.setattr(lab.folder, "available_memory", lambda: None)  # the system does not say
    read_folder(flowers)


def test_it_works_without_stderr(flowers, monkeypatch):
    monkeypatch.setattr("sys.stderr", None)
    assert len(read_folder(flowers).train_labels) == 12
