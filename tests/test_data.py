"""lab/data.py: where the data comes from, what is done to it, and in which order it comes."""

import math
import shutil
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torch.nn.functional as F
import torchvision.transforms.functional as TF
from torch import Tensor
from torchvision.transforms import InterpolationMode

import lab.data
from lab.data import (
    FOLDER,
    MEAN,
    STAND_IN,
    STD,
    Augment,
    Dataset,
    Loader,
    augmented,
    cifar10_loaders,
    denormalize,
    load_dataset,
    loaders_from,
    normalize,
    split,
    stand_in,
)


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """No network, no CIFAR10_ROOT, and a working folder without data."""

    def refused(*args, **kwargs):
        raise URLError("no network in the tests")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", refused)
    monkeypatch.delenv("CIFAR10_ROOT", raising=False)
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
    pixels, label = lab.data.CIFAR10(cifar10_root, train=False)[123]
    image = TF.pil_to_tensor(pixels)
    assert torch.equal(real.test_images[123], image)
    assert real.test_labels[123] == label


@pytest.mark.real_data
@pytest.mark.parametrize("damaged", ["data_batch_3", "test_batch", "batches.meta"])
def test_a_damaged_copy_is_refused(tmp_path, cifar10_root, damaged):
    copy = tmp_path / "copy" / FOLDER
    copy.mkdir(parents=True)
    for file in (cifar10_root / FOLDER).iterdir():
        if file.name == damaged:
            shutil.copyfile(file, copy / damaged)
        else:
            (copy / file.name).symlink_to(file)
    with open(copy / damaged, "r+b") as file:
        file.seek(50)
        byte = file.read(1)[0]
        file.seek(50)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(FileNotFoundError, match="damaged") as error:
        load_dataset("cifar10", copy.parent)
    assert str(copy.parent) in str(error.value)


def test_a_folder_of_rubbish_is_refused_and_left_alone(tmp_path):
    (tmp_path / "rubbish" / FOLDER).mkdir(parents=True)
    file = tmp_path / "rubbish" / FOLDER / "data_batch_1"
    file.write_bytes(b"rubbish")
    with pytest.raises(FileNotFoundError, match=r"found in .*rubbish, but damaged"):
        load_dataset("cifar10", tmp_path / "rubbish")
    assert file.read_bytes() == b"rubbish"


@pytest.mark.usefixtures("quick_stand_in")
def test_cifar10_refuses_to_fall_back_and_says_what_to_do(monkeypatch, tmp_path):
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


def test_stand_in_is_taken_without_looking_or_warning(quick_stand_in, monkeypatch):
    monkeypatch.setattr(lab.data, "CIFAR10", None)
    assert load_dataset("stand-in") is quick_stand_in


def test_an_unknown_dataset_is_an_error_with_the_choices():
    with pytest.raises(ValueError, match="'mnist'; choose one of 'auto', 'cifar10', 'stand-in'"):
        load_dataset("mnist")


class FakeCIFAR10:
    """Takes torchvision's place; notes the folders it is asked for."""

    url = lab.data.CIFAR10.url
    asked: list
    classes = ("a", "b")
    data = torch.zeros(2, 32, 32, 3, dtype=torch.uint8).numpy()
    targets = (0, 1)

    def __init__(self, root, train, download=False):
        self.asked.append(Path(root))


@pytest.mark.parametrize(
    ("present", "expected"),
    [
        (("argument", "environment", "data"), "argument"),
        (("environment", "data"), "environment"),
        (("data",), "data"),
        ((), "argument"),  # where it is downloaded to
    ],
)
def test_the_argument_comes_before_the_environment_before_data(monkeypatch, tmp_path, present, expected):
    for place in present:
        (tmp_path / place / FOLDER).mkdir(parents=True)
    monkeypatch.setattr(FakeCIFAR10, "asked", [], raising=False)
    monkeypatch.setattr(lab.data, "CIFAR10", FakeCIFAR10)
    monkeypatch.setenv("CIFAR10_ROOT", str(tmp_path / "environment"))
    assert load_dataset("cifar10", tmp_path / "argument").name == "CIFAR-10"
    assert {place.absolute() for place in FakeCIFAR10.asked} == {tmp_path / expected}


@pytest.mark.parametrize(("environment", "expected"), [("environment", "environment"), (None, "data")])
def test_without_any_data_it_is_fetched_to_the_first_place(monkeypatch, tmp_path, environment, expected):
    monkeypatch.setattr(FakeCIFAR10, "asked", [], raising=False)
    monkeypatch.setattr(lab.data, "CIFAR10", FakeCIFAR10)
    if environment:
        monkeypatch.setenv("CIFAR10_ROOT", str(tmp_path / environment))
    load_dataset("cifar10")
    assert {place.absolute() for place in FakeCIFAR10.asked} == {tmp_path / expected}


# ---- The stand-in ----------------------------------------------------------------------------------

TENSORS = ("train_images", "train_labels", "test_images", "test_labels")


def test_the_stand_in_follows_from_its_seed():
    one, again, other = stand_in(200, 50, seed=3), stand_in(200, 50, seed=3), stand_in(200, 50, seed=4)
    for tensor in TENSORS:
        assert torch.equal(getattr(one, tensor), getattr(again, tensor))
        assert not torch.equal(getattr(one, tensor), getattr(other, tensor))


def test_making_the_stand_in_leaves_torch_s_own_random_numbers_alone():
    state = torch.get_rng_state()
    stand_in(20, 10)
    assert torch.equal(state, torch.get_rng_state())


def test_the_stand_in_has_cifar10_s_form_and_ten_balanced_classes(small):
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


def test_scale_and_rotation_stay_within_their_limits_and_reach_towards_both():
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


def test_the_images_of_a_batch_are_treated_differently():
    images = noise(1).expand(64, 3, 32, 32)
    for augment in (Augment(), Augment.course()):
        batch = augmented(images, augment, generator())
        assert len(batch.flatten(1).unique(dim=0)) > 40


@pytest.mark.parametrize("augment", [Augment(), Augment.course()])
def test_augmentation_follows_from_the_generator_and_leaves_the_images_alone(augment):
    images = noise(16)
    kept = images.clone()
    one = augmented(images, augment, generator(5))
    assert torch.equal(one, augmented(images, augment, generator(5)))
    assert not torch.equal(one, augmented(images, augment, generator(6)))
    assert torch.equal(images, kept)
    assert one.dtype == torch.float32


@pytest.mark.parametrize("side", [1, 5, 16])
def test_cutout_is_one_square_of_the_mean_cut_at_the_border(side):
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


def test_the_filling_of_a_cutout_is_shown_as_the_mean_colour():
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


def test_greyscale_takes_its_share_of_the_images():
    images = noise(1_000, 16)
    batch = denormalize(augmented(images, Augment(flip=False, shift=0, greyscale=0.3), generator()))
    grey = (batch - batch.mean(1, keepdim=True)).abs().amax((1, 2, 3)) < 1e-4
    assert 250 < grey.sum() < 350
    assert torch.equal(batch[~grey], denormalize(normalize(images[~grey])))


def test_the_course_s_augmentation_has_all_its_steps():
    course = Augment.course()
    assert course.flip
    assert course.cutout == 16
    assert min(course.shift, course.scale, course.rotate, course.greyscale) > 0


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
        ("cutout", "16", 32),
        ("rotate", None, 180),
    ],
)
def test_a_wrong_augmentation_is_an_error_with_its_limits(name, value, most):
    with pytest.raises(ValueError, match=f"{name}={value!r} must be a number from 0 to {most}"):
        Augment(**{name: value})


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


def test_the_same_seed_holds_the_same_images_out_and_another_seed_others():
    out = split(UNEVEN, 200, seed=1)[1]
    assert torch.equal(out, split(UNEVEN, 200, seed=1)[1])
    other = split(UNEVEN, 200, seed=2)[1]
    assert len(set(out.tolist()) & set(other.tolist())) < 100  # 40 by chance


def test_every_image_can_be_held_out():
    seen = torch.cat([split(UNEVEN[:100], 50, seed=seed)[1] for seed in range(20)])
    assert len(seen.unique()) == 100


def test_nothing_can_be_held_out():
    kept, out = split(UNEVEN, 0, seed=0)
    assert kept.tolist() == list(range(1_000))
    assert out.tolist() == []


@pytest.mark.parametrize("held_out", [-1, 1_000, 1_001, 10.0, "10", None])
def test_a_wrong_number_held_out_is_an_error_with_the_limits(held_out):
    with pytest.raises(ValueError, match=f"{held_out!r} must be an integer from 0 to 999"):
        split(UNEVEN, held_out, seed=0)


# ---- Loaders ---------------------------------------------------------------------------------------


def numbered(count=103, **options) -> Loader:
    """Images filled with their own number, which is their label too."""
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


def test_every_image_comes_once_an_epoch_in_another_order_each():
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


def test_a_loader_whose_epoch_is_set_goes_on_where_another_stood(small):
    straight, resumed = of(small), of(small)
    for _ in range(2):
        batches(straight)
    assert straight.epoch == 2
    resumed.epoch = 2
    assert all(map(torch.equal, batches(straight), batches(resumed)))


def test_loading_leaves_torch_s_own_random_numbers_alone(small):
    state = torch.get_rng_state()
    batches(of(small))
    assert torch.equal(state, torch.get_rng_state())


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
    """The same images in an order of their own."""
    return images[images.double().sum((1, 2, 3)).argsort()]


def test_train_and_test_loaders_hold_their_parts(small):
    train, test = loaders_from(small, 300, augment=False, device="cpu")
    images, labels = batches(test)
    assert torch.equal(images, normalize(small.test_images))  # in order, unaugmented
    assert torch.equal(labels, small.test_labels)
    images, labels = batches(train)
    assert not torch.equal(labels, small.train_labels)  # shuffled
    assert torch.equal(by_sum(images), by_sum(normalize(small.train_images)))
    assert train.name == test.name == STAND_IN
    assert train.classes == small.classes


def test_true_is_the_default_augmentation_and_false_none(small):
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
def test_a_limit_takes_as_many_of_every_class():
    train, test = cifar10_loaders(64, dataset="stand-in", limit=100, device="cpu")
    assert train.labels.bincount().tolist() == [10] * 10
    assert test.labels.bincount().tolist() == [10] * 10
    train, validation, test = cifar10_loaders(64, dataset="stand-in", limit=100, validation=20, device="cpu")
    assert [len(loader.labels) for loader in (train, validation, test)] == [80, 20, 100]


def test_loaders_refuse_to_fall_back_where_cifar10_is_asked_for():
    with pytest.raises(FileNotFoundError, match="CIFAR10_ROOT"):
        cifar10_loaders(64, dataset="cifar10")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch_size": 0}, "batch_size=0 must be an integer of at least 1"),
        ({"batch_size": 2.5}, "batch_size=2.5 must be"),
        ({"validation": -1}, "-1 must be an integer from 0 to 999"),
        ({"validation": 1_000}, "1000 must be an integer from 0 to 999"),
        ({"validation": 100, "limit": 100}, "100 must be an integer from 0 to 99"),
        ({"limit": 0}, "limit=0 must be None or an integer of at least 1"),
        ({"limit": -3}, "limit=-3 must be"),
        ({"limit": 2.5}, "limit=2.5 must be"),
        ({"limit": "all"}, "limit='all' must be"),
        ({"augment": "course"}, "augment='course' must be an Augment, True or False"),
        ({"augment": None}, "augment=None must be"),
        ({"device": "abacus"}, "device='abacus' is not to be had here"),
    ],
)
def test_a_wrong_option_of_the_loaders_is_an_error_that_says_it(small, options, said):
    with pytest.raises(ValueError, match=said):
        loaders_from(small, **{"device": "cpu"} | options)


@pytest.mark.parametrize(
    ("images", "labels", "said"),
    [
        (torch.zeros(4, 3, 32, 32), torch.zeros(4).long(), "torch.float32 .*expected uint8"),
        (torch.zeros(4, 1, 32, 32).byte(), torch.zeros(4).long(), r"\(4, 1, 32, 32\): expected uint8"),
        (torch.zeros(4, 32, 32).byte(), torch.zeros(4).long(), r"\(4, 32, 32\): expected uint8"),
        (torch.zeros(4, 3, 32, 32).byte(), torch.zeros(5).long(), "4 images and 5 labels"),
        (torch.zeros(0, 3, 32, 32).byte(), torch.zeros(0).long(), "0 images and 0 labels"),
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
