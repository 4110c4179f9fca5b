"""Trained weights: saved and loaded, what is refused, pictures in and predictions out, the hub."""

import errno
import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as TF

import model
from lab.data import MEAN, STD, normalize
from lab.experiment import PREPROCESSING
from model import PRETRAINED, Net, Preprocessing

HERE = Path(__file__).resolve().parent.parent
CLASSES = tuple("abcdefghij")
STAGES = [[(16, "standard", 2)], [(16, "dilated")], [(24, "depthwise_separable", 2)]]


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """A small network that is saved and registered as "small": the network and its file."""
    torch.manual_seed(0)
    net = Net("group", "mixed", groups=4, width=0.5, num_classes=10, stages=STAGES)
    net.preprocessing, net.classes = PREPROCESSING, CLASSES
    path = net.save(tmp_path / "weights" / "small.pt", {"name": "made here", "seed": 0})
    monkeypatch.setitem(model.PRETRAINED, "small", hashlib.sha256(path.read_bytes()).hexdigest())
    return net.eval(), path


def photographs(*shape: int) -> torch.Tensor:
    """uint8 (N, 3, H, W), smooth enough for resizing, and different everywhere."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(shape[0], 3, 6, 6, generator=generator)
    return (torch.nn.functional.interpolate(coarse, size=shape[1:], mode="bicubic").clamp(0, 1) * 255).byte()


# ---- Files -----------------------------------------------------------------------------------------


def test_what_was_saved_is_loaded_without_naming_its_architecture(saved):
    net, path = saved
    images = torch.randn(2, 3, 32, 32)
    for loaded in (Net.load(path), Net.from_pretrained("small", path.parent)):
        assert str(loaded) == str(net)
        assert not loaded.training
        assert torch.equal(loaded(images), net(images))
        assert loaded.preprocessing == Preprocessing(32, MEAN, STD)
        assert loaded.classes == CLASSES
        assert loaded.metadata == {"name": "made here", "seed": 0}
        assert loaded.config == net.config


def test_batch_statistics_are_saved_too(tmp_path):
    torch.manual_seed(0)
    net = Net(width=0.25)
    net(3 + torch.randn(8, 3, 32, 32))
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(Net.load(net.save(tmp_path / "net.pt"))(images), net.eval()(images))


def test_a_loaded_network_can_be_saved_again(saved, tmp_path):
    net = Net.load(saved[1])
    assert net.save(tmp_path / "again.pt").read_bytes() == saved[1].read_bytes()
    assert Net.load(net.save(tmp_path / "other.pt", {"seed": 1})).metadata == {"seed": 1}


WAYS = {
    "load": lambda net, path: Net.load(path),
    "from_pretrained": lambda net, path: Net.from_pretrained("small", path.parent),
    "save": lambda net, path: net.save(path),
}


@pytest.mark.parametrize("way", WAYS)
def test_loading_and_saving_leave_the_random_state_as_it_was(saved, way):
    state = torch.get_rng_state()
    WAYS[way](*saved)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_loaded_network_is_ready_for_training_in_float32(saved, tmp_path, dtype):
    net = saved[0].to(dtype=dtype, memory_format=torch.channels_last)
    path = net.save(tmp_path / "net.pt")
    torch.set_default_dtype(torch.float64)
    try:
        loaded = Net.load(path)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in loaded.parameters())
    found = [*loaded.parameters(), *loaded.buffers()]
    assert {(tensor.dtype, tensor.device.type) for tensor in found} == {(torch.float32, "cpu")}
    assert all(tensor.is_contiguous() for tensor in found)
    assert len({tensor.untyped_storage().data_ptr() for tensor in found}) == len(found)
    assert all(map(torch.equal, loaded.parameters(), (parameter.float() for parameter in net.parameters())))


@pytest.mark.parametrize(
    "options",
    [{"norm": torch.nn.BatchNorm2d}, {"stages": [[(16, model.dilated, 1)]]}, {"activation": torch.nn.SiLU}],
)
def test_a_network_built_with_a_callable_is_not_written(tmp_path, options):
    with pytest.raises(ValueError, match=rf"^config\['{next(iter(options))}'\].*=<.*a file cannot hold"):
        Net(**options).save(tmp_path / "net.pt")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("metadata", "told"),
    [
        ({"accuracy": np.float64(0.5)}, r"metadata\['accuracy'\]=.*float64"),
        ({"runs": [{"seed": torch.tensor(0)}]}, r"metadata\['runs'\]\[0\]\['seed'\]=tensor\(0\)"),
        ({("a", b"b"): 1}, r"key of metadata\[1\]=b'b'"),
        ({"loss": [0.5, float("nan")]}, r"metadata\['loss'\]\[1\]=nan must be finite"),
        ({"loss": float("-inf")}, r"metadata\['loss'\]=-inf must be finite"),
    ],
)
def test_metadata_that_is_not_plain_data_is_named(saved, metadata, told):
    with pytest.raises(ValueError, match=told):
        saved[0].save(saved[1], metadata)


def silu(net: Net) -> None:
    net.c1[0].activation = torch.nn.SiLU()


def undilated(net: Net) -> None:
    net.c2[0].conv.dilation = net.c2[0].conv.padding = (1, 1)


def activated(net: Net) -> None:
    net.add_module("extra", torch.nn.SiLU())


@pytest.mark.parametrize("change", [silu, undilated, activated])
def test_a_network_whose_layers_were_changed_is_not_written(saved, change):
    net, path = saved
    before, content = str(net), path.read_bytes()
    change(net)
    assert str(net) != before
    with pytest.raises(ValueError, match="changed after it was built"):
        net.save(path)
    assert path.read_bytes() == content


def extended(net: Net) -> None:
    net.add_module("extra", torch.nn.Linear(10, 2))


def masked(net: Net) -> None:
    net.register_buffer("mask", torch.ones(10))


@pytest.mark.parametrize(("change", "told"), [(extended, r"extra\.weight"), (masked, "mask")])
def test_a_network_with_a_tensor_that_its_class_does_not_make_is_not_written(saved, change, told):
    net, path = saved
    content = path.read_bytes()
    change(net)
    with pytest.raises(ValueError, match=rf"not written(.|\n)*Unexpected key\(s\) .*{told}"):
        net.save(path)
    assert path.read_bytes() == content


class WithHead(Net):
    """A network with a head that a file can describe."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.head = torch.nn.Linear(self.output.out_channels, 2)

    def forward(self, images):
        return self.head(super().forward(images))


class Tied(WithHead):
    """A head whose two layers share their weights, which a file does not say."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.head = torch.nn.Sequential(torch.nn.Linear(10, 10), torch.nn.Linear(10, 10))
        self.head[1].weight = self.head[0].weight


class Scaled(Net):
    """A network with a buffer that is not in its state."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.register_buffer("scale", torch.ones(1), persistent=False)


class Needing(Net):
    """A network with an argument that is not in its config."""

    def __init__(self, needed, **options):
        super().__init__(**options)


def test_a_subclass_is_saved_and_loaded_with_its_head(tmp_path):
    torch.manual_seed(0)
    net, images = WithHead(width=0.25).eval(), torch.randn(2, 3, 32, 32)
    net.preprocessing, net.classes = PREPROCESSING, ("animal", "vehicle")
    path = net.save(tmp_path / "net.pt")
    loaded = WithHead.load(path)
    assert type(loaded) is WithHead
    assert torch.equal(loaded(images), net(images))
    batch = photographs(2, 32, 32)
    labels = [net.classes[number] for number in net(net.transform(batch)).argmax(1)]
    assert [each.label for each in loaded.predict(batch)] == labels
    with pytest.raises(ValueError, match=r"does not fit this Net(.|\n)*head\.weight"):
        Net.load(path)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Tied(width=0.25), "changed after it was built"),
        (lambda: Scaled(width=0.25), "non-persistent buffer"),
        (lambda: Needing(1, width=0.25), "needed"),
    ],
)
def test_a_subclass_that_a_file_cannot_describe_is_not_written(tmp_path, make, told):
    with pytest.raises(ValueError, match=f"not written.*{told}"):
        make().save(tmp_path / "net.pt")
    assert not list(tmp_path.iterdir())


def test_metadata_may_hold_a_part_twice(saved, tmp_path):
    part = [1, (2, {"a": 3.0})]
    metadata = {"first": part, "again": [part, part], "empty": [(), {}, None]}
    loaded = Net.load(saved[0].save(tmp_path / "twice.pt", metadata)).metadata
    assert repr(loaded) == repr(metadata)
    assert loaded["first"] is not loaded["again"][0]


def test_numbers_from_numpy_are_saved_as_plain_ones(saved, tmp_path):
    net, _ = saved
    net.preprocessing = Preprocessing(np.int64(32), np.array(MEAN), np.array(STD))
    net.classes = np.array(CLASSES)
    loaded = Net.load(net.save(tmp_path / "again.pt"))
    assert repr(loaded.preprocessing) == repr(Preprocessing(32, MEAN, STD))  # it tells np.int64(32) from 32
    assert repr(loaded.classes) == repr(CLASSES)


@pytest.mark.parametrize(
    ("attribute", "value", "told"),
    [
        ("classes", "abcdefghij", "classes='abcdefghij'"),
        ("classes", [*range(10)], r"classes=\[0, 1"),
        ("preprocessing", Preprocessing(0, MEAN, STD), "size=0"),
        ("preprocessing", Preprocessing(15, MEAN, STD), "size=15 .* at least 16"),
        ("preprocessing", Preprocessing(4097, MEAN, STD), "size=4097 .* at most 4096"),
        ("preprocessing", Preprocessing(32, MEAN[:2], STD), r"mean=.* 3 finite numbers"),
        ("preprocessing", Preprocessing(32, MEAN, ()), r"std=.* 3 finite numbers"),
        ("preprocessing", Preprocessing(32, MEAN, (float("nan"), 1.0, 1.0)), r"std=.* 3 finite numbers"),
        ("preprocessing", Preprocessing(32, MEAN, (0.2, 0.0, 0.2)), r"std=\(0\.2, 0\.0, 0\.2\) .*above 0"),
    ],
)
def test_what_predict_could_not_use_is_not_written(saved, attribute, value, told):
    content = saved[1].read_bytes()
    setattr(saved[0], attribute, value)
    with pytest.raises(ValueError, match=told):
        saved[0].save(saved[1])
    assert saved[1].read_bytes() == content


def test_half_precision_makes_half_the_file_and_is_loaded_as_float32(saved, tmp_path):
    net, path = saved
    images = torch.randn(8, 3, 32, 32)
    expected = net(images)
    half = net.half().save(tmp_path / "half.pt")
    parameters = model.count_parameters(net)
    assert half.stat().st_size < path.stat().st_size - 1.9 * parameters
    loaded = Net.load(half)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    torch.testing.assert_close(loaded(images), expected, rtol=0.02, atol=0.02)


def test_saving_to_a_folder_is_an_error_and_leaves_no_file(saved):
    folder = saved[1].parent
    with pytest.raises(OSError, match="weights"):
        saved[0].save(folder)
    assert os.listdir(folder.parent) == ["weights"]
    assert os.listdir(folder) == ["small.pt"]


def test_on_a_full_disk_the_old_file_stays_and_the_error_says_what_is_needed(saved, monkeypatch):
    net, path = saved
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    told = rf"could not write {path}, which needs [1-9][\d,]+ bytes: No space left on device"
    with pytest.raises(OSError, match=told):
        net.save(path)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path):
    os.mkfifo(tmp_path / "net.pt")
    with pytest.raises(ValueError, match=r"net\.pt is not a file"):
        Net.load(tmp_path / "net.pt")


def test_a_loop_of_links_is_an_error_that_names_it(tmp_path):
    loop = tmp_path / "minute.pt"
    loop.symlink_to(loop.name)
    with pytest.raises(OSError, match=rf"symbolic links: '{loop}'"):
        Net.load(loop)
    with pytest.raises(FileNotFoundError, match=rf"no minute\.pt in {tmp_path}"):
        Net.from_pretrained("minute", tmp_path)
    folder = tmp_path / "folder"
    folder.symlink_to(folder.name)
    with pytest.raises(FileNotFoundError, match=rf"no minute\.pt in {folder}"):
        Net.from_pretrained("minute", folder)


def test_a_network_that_could_not_be_loaded_again_does_not_replace_a_file(saved):
    net, path = saved
    before = path.read_bytes()
    net.output = torch.nn.Conv2d(16, 3, 1)
    with pytest.raises(ValueError, match=r"not written(.|\n)*size mismatch"):
        net.save(path)
    assert path.read_bytes() == before
    assert [each.name for each in path.parent.iterdir()] == ["small.pt"]


def test_an_unknown_name_lists_the_names(saved):
    for wrong in ("large", "", None, ["small"]):
        with pytest.raises(ValueError, match=f"unknown name {re.escape(repr(wrong))}") as error:
            Net.from_pretrained(wrong)
        assert [name for name in ("small", *PRETRAINED) if repr(name) not in str(error.value)] == []


def test_the_error_for_a_missing_file_lists_the_folders(saved, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"small\.pt.*elsewhere"):
        Net.from_pretrained("small", tmp_path / "elsewhere")
    shutil.copy(HERE / "model.py", tmp_path)
    program = "import sys; sys.path.insert(0, '.'); from model import Net; Net.from_pretrained('minute')"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert f"no minute.pt in {tmp_path / 'weights'}, {tmp_path};" in done.stderr


@pytest.mark.parametrize("change", ["a bit", "the end", "everything"])
def test_a_damaged_file_is_refused(saved, change):
    content = bytearray(saved[1].read_bytes())
    content[len(content) // 2] ^= 1
    saved[1].write_bytes(
        {"a bit": content, "the end": saved[1].read_bytes()[:-100], "everything": b""}[change]
    )
    with pytest.raises(ValueError, match=r"small\.pt is damaged.*SHA-256"):
        Net.from_pretrained("small", saved[1].parent)


def test_load_compares_a_file_with_its_own_checksums(saved):
    path, content = saved[1], saved[1].read_bytes()
    tensor = saved[0].output.weight.detach().numpy().tobytes()
    place = content.index(tensor)
    path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    with pytest.raises(ValueError, match=r"small\.pt .*is damaged: the checksum of its part .*/data/\d+ "):
        Net.load(path)


class Bomb:
    def __reduce__(self):
        return exec, ("raise SystemExit('executed')",)


@pytest.mark.parametrize(
    "content",
    [b"no weights", [1, 2], {"options": {}}, torch.ones(2), {"format": torch.ones(2)}, Bomb()],
    ids=["bytes", "list", "other keys", "tensor", "other format", "program"],
)
def test_a_foreign_file_is_refused_and_not_executed(tmp_path, content):
    path = tmp_path / "foreign.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    told = r"foreign\.pt (is not a file that Net\.save wrote|does not fit this Net)"
    with pytest.raises(ValueError, match=told) as error:
        Net.load(path)
    assert "weights_only" not in str(error.value)  # torch advises to execute the file


def test_a_file_of_another_network_is_refused(saved, tmp_path):
    content = torch.load(saved[1], weights_only=True)
    content["config"]["width"] = 1.0
    torch.save(content, tmp_path / "mixed up.pt")
    with pytest.raises(ValueError, match=r"mixed up\.pt does not fit(.|\n)*size mismatch"):
        Net.load(tmp_path / "mixed up.pt")


@pytest.mark.parametrize(
    ("part", "value"), [("state", {1: 2}), ("state", 1), ("config", None), ("preprocessing", 7)]
)
def test_a_file_with_a_part_of_another_kind_is_refused(saved, tmp_path, part, value):
    torch.save(torch.load(saved[1], weights_only=True) | {part: value}, tmp_path / "odd.pt")
    with pytest.raises(ValueError, match=r"odd\.pt does not fit"):
        Net.load(tmp_path / "odd.pt")


def test_a_file_in_a_later_format_is_refused(saved, tmp_path):
    content = torch.load(saved[1], weights_only=True)
    torch.save(content | {"format": 2}, tmp_path / "later.pt")
    with pytest.raises(ValueError, match=r"later\.pt does not fit.*format is 2.*reads format 1"):
        Net.load(tmp_path / "later.pt")


# ---- Images -----------------------------------------------------------------------------------------


def test_pictures_of_its_size_are_normalized_as_in_training(saved):
    batch = photographs(3, 32, 32)
    assert torch.equal(saved[0].transform(batch), normalize(batch))


def test_a_pil_image_and_its_pixels_give_the_same(saved):
    (pixels,) = photographs(1, 40, 50)
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    expected = saved[0].transform(pixels)
    assert expected.shape == (1, 3, 32, 32)
    assert torch.equal(saved[0].transform(image), expected)
    assert torch.equal(saved[0].transform([image, image]), expected.repeat(2, 1, 1, 1))


@pytest.mark.parametrize("size", [(100, 64), (20, 28), (32, 48)])
def test_other_sizes_are_resized_as_torchvision_does(saved, size):
    batch = photographs(2, *size)
    resized = TF.resize(batch.float(), [32, 32], antialias=True)
    expected = TF.normalize(resized / 255, MEAN, STD)
    torch.testing.assert_close(saved[0].transform(batch), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_a_pil_image_of_any_mode_counts_as_its_colours(saved, mode):
    image = Image.fromarray(photographs(1, 32, 32)[0].permute(1, 2, 0).numpy()).convert(mode)
    pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    assert torch.equal(saved[0].transform(image), saved[0].transform(pixels))


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (torch.rand(1, 3, 32, 32), r"images of torch\.float32 \(1, 3, 32, 32\)"),
        (torch.zeros(1, 32, 32, 3, dtype=torch.uint8), r"images of torch\.uint8 \(1, 32, 32, 3\)"),
        (torch.zeros(32, 32, dtype=torch.uint8), r"images of torch\.uint8 \(32, 32\)"),
        (np.zeros((32, 32, 3), dtype=np.uint8), "images of type ndarray"),
        ([], "images is empty"),
        ([Image.new("RGB", (32, 32)), None], "images of type NoneType"),
        ([np.zeros((32, 32, 3), dtype=np.uint8)], "images of type ndarray"),
        (b"cat.png", "images of type bytes"),
        ((image for image in ()), "images is empty"),
        ({"cat": 1}, "images of type dict"),
        (7, "images of type int"),
        ([torch.zeros(3, 32, 32, dtype=torch.uint8)], "images of type Tensor.*a single uint8 tensor"),
        (None, "images of type NoneType"),
    ],
)
def test_anything_but_pictures_is_refused(saved, wrong, told):
    with pytest.raises(ValueError, match=told) as error:
        saved[0].transform(wrong)
    assert "expected" in str(error.value)


def test_a_network_for_grey_images_refuses_pictures():
    net = Net(in_channels=1)
    net.preprocessing, net.classes = Preprocessing(32, (0.5,), (0.5,)), CLASSES
    with pytest.raises(ValueError, match=r"\(N, 1, H, W\)"):
        net.predict(photographs(1, 32, 32))


def test_no_images_have_no_predictions(saved):
    assert saved[0].predict(photographs(1, 32, 32)[:0]) == []


def test_predict_averages_the_mirror_image_of_all_or_only_of_unsure_images(saved):
    net, images = saved[0], photographs(300, 32, 32)
    inputs = net.transform(images)
    with torch.no_grad():
        once = net.eval()(inputs)
        twice = (once + net(inputs.flip(-1))) / 2

    def labels_and_confidences(logits) -> list[tuple[str, float]]:
        confidences, numbers = logits.softmax(1).max(1)
        return [(net.classes[n], c) for n, c in zip(numbers.tolist(), confidences.tolist(), strict=True)]

    def same(found, expected) -> bool:
        return all(a == c and b == pytest.approx(d) for (a, b), (c, d) in zip(found, expected, strict=True))

    sure = once.softmax(1).amax(1).median().item()
    some = torch.where((once.softmax(1).amax(1) < sure)[:, None], twice, once)
    assert same(net.predict(images), labels_and_confidences(once))
    assert same(net.predict(images, flips=True), labels_and_confidences(twice))
    assert same(net.predict(images, flips=True, sure=sure), labels_and_confidences(some))
    assert not same(labels_and_confidences(some), labels_and_confidences(once))
    for wrong in ({"flips": "no"}, {"flips": 1}, {"sure": 1.5}, {"sure": float("nan")}, {"sure": "0.9"}):
        with pytest.raises(ValueError, match="must be True or False, and sure="):
            net.predict(images[:1], **wrong)


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_a_pil_image_with_more_than_8_bits_per_channel_is_refused(saved, mode):
    with pytest.raises(ValueError, match=f"mode '{mode}'.*8 bits"):
        saved[0].transform(Image.new(mode, (32, 32)))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "HSV", "LAB"])
@pytest.mark.parametrize("size", [(1, 1), (1, 10_000), (10_000, 1), (200, 3)])
def test_a_picture_of_one_colour_of_any_mode_and_shape_has_that_colour(saved, mode, size):
    own = {"1": 1, "LAB": (160, 30, 90)}  # modes to which Pillow would dither, or not convert
    if mode in own:
        image = Image.new(mode, size, own[mode])
    else:
        image = Image.new("RGB", size, (200, 100, 50)).convert(mode)
    colour = torch.tensor(image.convert("RGB").getpixel((0, 0)), dtype=torch.uint8)
    expected = normalize(colour.view(1, 3, 1, 1).expand(1, 3, 32, 32))
    torch.testing.assert_close(saved[0].transform(image), expected, rtol=1e-5, atol=1e-5)


def normalized(whole: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (MEAN, STD))
    return torch.addcmul(-mean / std, whole, 1 / (255 * std))


@pytest.mark.parametrize("size", [(480, 640), (640, 480), (37, 2000), (5, 7), (1200, 1600)])
def test_pictures_of_ordinary_size_are_resized_in_one_go_to_the_last_bit(saved, size):
    (pixels,) = photographs(1, *size)
    whole = torch.nn.functional.interpolate(
        pixels[None].float(), size=(32, 32), mode="bilinear", antialias=True
    )
    assert torch.equal(saved[0].transform(pixels), normalized(whole))
    assert torch.equal(
        saved[0].transform(Image.fromarray(pixels.permute(1, 2, 0).numpy())), normalized(whole)
    )


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (1000, 7), (7, 1000), (64, 64)])
def test_a_picture_resized_in_strips_is_the_same(saved, size, monkeypatch):
    batch = photographs(3, *size)
    images = [Image.fromarray(pixels.permute(1, 2, 0).numpy()) for pixels in batch]
    expected = saved[0].transform(batch)
    monkeypatch.setattr(model, "PIXELS", 1_000)
    torch.testing.assert_close(saved[0].transform(batch), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(saved[0].transform(images), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(1, 200_000), (200_000, 1)])
def test_a_picture_of_very_many_rows_or_columns_is_averaged_first(saved, size):
    rows = np.linspace(0, 255, 200_000).round().astype(np.uint8)
    image = Image.fromarray(rows.reshape(size[::-1])).convert("RGB")
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    expected = saved[0].transform(pixels)
    torch.testing.assert_close(saved[0].transform(image), expected, rtol=0, atol=0.02)  # 1 in 255


MEMORY = """
import resource, sys, torch
from PIL import Image
from model import Net
torch.set_num_threads(1)
Image.MAX_IMAGE_PIXELS = None
net = Net.from_pretrained("minute")
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
net.predict(Image.new("RGB", (100, 100)))
{make}
before = peak()
print(len(net.predict(images)), peak() - before)
"""


@pytest.mark.parametrize(
    ("make", "count", "most"),
    [
        ('images = Image.new("RGB", (10_000, 10_000))', 1, 250),
        ('images = Image.new("L", (1, 20_000_000))', 1, 250),
        ('images = (Image.new("RGB", (500, 400)) for _ in range(1_000))', 1_000, 150),
        ("images = torch.zeros(3, 10_000, 10_000, dtype=torch.uint8)", 1, 250),
        ("images = torch.zeros(100, 3, 1_000, 1_000, dtype=torch.uint8)", 100, 250),
    ],
    ids=["10,000 pixels a side", "a column of pixels", "1,000 photos", "a large tensor", "a large batch"],
)
def test_predicting_takes_little_memory_beside_the_pictures(make, count, most):
    program = MEMORY.format(make=make)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=HERE, capture_output=True, text=True, check=True
    )
    found, megabytes = done.stdout.split()
    assert int(found) == count
    assert float(megabytes) < most


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_truncated_file_is_an_error_that_names_it(saved, tmp_path, kind, share):
    generator = np.random.default_rng(0)
    image = Image.fromarray(generator.integers(0, 256, (90, 70, 3), dtype=np.uint8))
    path = tmp_path / f"cut.{kind.lower()}"
    image.save(path, kind)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    told = "decoder" if kind == "WEBP" else rf"{path.name} is damaged .*truncated"  # WebP is read when opened
    with pytest.raises(OSError, match=told), Image.open(path) as picture:
        saved[0].transform(picture)


def test_a_photograph_is_rotated_as_its_exif_data_say(saved):
    upright = Image.fromarray(photographs(1, 40, 30)[0].permute(1, 2, 0).numpy())
    lying = upright.transpose(Image.Transpose.ROTATE_90)
    lying.getexif()[0x0112] = 6  # orientation: rotate by 90 degrees clockwise
    assert torch.equal(saved[0].transform(lying), saved[0].transform(upright))


def test_predicting_needs_preprocessing_and_a_name_for_each_class(saved):
    batch = photographs(1, 32, 32)
    with pytest.raises(ValueError, match="preprocessing"):
        Net().transform(batch)
    saved[0].classes = None
    with pytest.raises(ValueError, match=r"classes=None.*10 outputs"):
        saved[0].predict(batch)
    saved[0].classes = CLASSES[:9]
    with pytest.raises(ValueError, match="10 outputs"):
        saved[0].predict(batch)


def test_no_class_is_predicted_if_a_logit_is_not_finite(saved):
    with torch.no_grad():
        saved[0].output.bias[3] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        saved[0].predict(photographs(2, 32, 32))


def test_a_network_in_another_dtype_predicts_the_same(saved):
    batch = photographs(4, 32, 32)
    expected = saved[0].predict(batch)
    found = saved[0].double().predict(batch)
    assert [each.label for each in found] == [each.label for each in expected]


def test_predictions_are_the_likeliest_classes_and_their_softmax(saved):
    net, batch = saved[0], photographs(300, 20, 20)
    found = net.predict(batch)
    softmax = torch.softmax(net(net.transform(batch)), 1)
    assert [each.label for each in found] == [CLASSES[number] for number in softmax.argmax(1)]
    assert [each.confidence for each in found] == pytest.approx(softmax.amax(1).tolist(), abs=1e-6)


def test_predicting_uses_running_statistics_and_restores_the_mode():
    torch.manual_seed(0)
    net = Net(width=0.25)
    net.preprocessing, net.classes = PREPROCESSING, CLASSES
    net.c1.eval()
    batch = photographs(4, 32, 32)
    found = net.predict(batch)
    assert net.training
    assert not net.c1.training
    assert net.c2.training
    assert net.eval().predict(batch) == found
    assert net.c2[0].norm.num_batches_tracked == 0


# ---- Pictures in files -------------------------------------------------------------------------------


@pytest.fixture
def picture(tmp_path) -> Path:
    """A PNG, which keeps every pixel, of 40 by 50 pixels."""
    path = tmp_path / "a cat.png"
    Image.fromarray(photographs(1, 40, 50)[0].permute(1, 2, 0).numpy()).save(path)
    return path


def test_a_path_or_an_open_file_of_a_picture_counts_as_the_picture(saved, picture):
    net = saved[0]
    (pixels,) = photographs(1, 40, 50)
    expected = net.predict(pixels)
    content = picture.read_bytes()
    assert net.predict(picture) == net.predict(str(picture)) == expected
    with picture.open("rb") as file, picture.open("rb") as unread:
        file.seek(10)
        assert net.predict(file) == net.predict(file) == expected
        assert not file.closed
        mixed = [picture, str(picture), unread, io.BytesIO(content), Image.open(io.BytesIO(content))]
        assert net.predict(mixed) == net.predict(iter(mixed)) == 5 * expected
        assert torch.equal(net.transform(mixed), net.transform(pixels).expand(5, 3, 32, 32))


def test_a_file_that_can_only_be_read_once_and_forwards_is_a_picture_too(saved, picture):
    with zipfile.ZipFile(picture.with_suffix(".zip"), "w") as archive:
        archive.write(picture, "cat.png")
    with zipfile.ZipFile(picture.with_suffix(".zip")) as archive, archive.open("cat.png") as member:
        assert saved[0].predict(member) == saved[0].predict(picture)
    receiving, sending = os.pipe()
    with os.fdopen(sending, "wb") as file:
        file.write(picture.read_bytes())
    with os.fdopen(receiving, "rb") as file:
        assert saved[0].predict(file) == saved[0].predict(picture)


def a_folder(path: Path) -> None:
    path.mkdir()


def a_text(path: Path) -> None:
    path.write_text("not a picture")


def nothing(path: Path) -> None:
    path.touch()


def half_a_picture(path: Path) -> None:
    Image.fromarray(photographs(1, 90, 70)[0].permute(1, 2, 0).numpy()).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def a_deep_picture(path: Path) -> None:
    Image.new("I;16", (32, 32)).save(path)


def a_loop(path: Path) -> None:
    path.symlink_to(path)


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


UNREADABLE = [
    (None, FileNotFoundError, "is missing"),
    (a_folder, OSError, "is not a file"),
    (a_pipe, OSError, "is not a file"),
    (a_loop, OSError, "is damaged or cannot be read .*symbolic links"),
    (a_text, OSError, "is not an image, or of a kind that Pillow cannot read"),
    (nothing, OSError, "is not an image, or of a kind that Pillow cannot read"),
    (half_a_picture, OSError, "is damaged or cannot be read .*truncated"),
    (a_deep_picture, ValueError, "of mode 'I;16': expected 8 bits per channel"),
]


@pytest.mark.parametrize(("make", "kind", "told"), UNREADABLE)
def test_a_file_that_cannot_be_predicted_is_an_error_that_names_it_and_says_why(
    saved, picture, tmp_path, make, kind, told
):
    path = tmp_path / "wrong.png"
    if make is not None:
        make(path)
    for images in (path, str(path), [picture, path]):
        with pytest.raises(kind, match=f"{re.escape(str(path))} {told}") as error:
            saved[0].predict(images)
        assert len(str(error.value).splitlines()) == 1
    if make in (a_text, nothing, half_a_picture, a_deep_picture):
        with path.open("rb") as file, pytest.raises(kind, match=f"{re.escape(str(path))} {told}"):
            saved[0].predict(file)
        with pytest.raises(kind, match=f"(the file|the image|image) {told}"):
            saved[0].predict(io.BytesIO(path.read_bytes()))


def test_a_file_with_more_pixels_than_pillow_opens_is_an_error_that_names_it(saved, picture, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 999)  # the error comes at twice as many
    with pytest.raises(ValueError, match=rf"{re.escape(str(picture))} is too large: .*2000 pixels.*1998"):
        saved[0].predict(picture)


def test_a_file_that_is_open_as_text_or_closed_is_refused(saved, picture):
    with picture.open() as file, pytest.raises(ValueError, match=r"cat\.png is open as text: .*'rb'"):
        saved[0].predict(file)
    with picture.open("rb") as file:
        pass
    with pytest.raises(OSError, match=r"cat\.png .*closed file"):
        saved[0].predict(file)


def test_the_files_of_a_list_are_opened_one_after_another(saved, picture, monkeypatch):
    opened, most = [], []
    real = Image.open

    def counting(file):
        most.append(sum(image.fp is not None for image in opened))
        opened.append(real(file))
        return opened[-1]

    monkeypatch.setattr(Image, "open", counting)
    saved[0].predict([picture] * 5)
    assert most == [0] * 5
    assert opened[-1].fp is None


def test_the_likeliest_classes_of_an_image_are_ranked_by_their_softmax(saved, picture):
    net = saved[0]
    softmax = torch.softmax(net(net.transform(picture)), 1)[0].tolist()
    ranked = sorted(zip(CLASSES, softmax, strict=True), key=lambda pair: -pair[1])
    for count, expected in ((1, ranked[:1]), (3, ranked[:3]), (10, ranked), (11, ranked)):
        found = net.likeliest(picture, count)
        assert [each.label for each in found] == [label for label, _ in expected]
        assert [each.confidence for each in found] == pytest.approx([value for _, value in expected])
    assert net.likeliest(picture) == net.likeliest(Image.open(picture), 3)
    assert net.likeliest(picture, 1) == net.predict(picture)
    assert sum(each.confidence for each in net.likeliest(picture, 10)) == pytest.approx(1)


def test_the_likeliest_classes_are_those_of_one_image(saved, picture):
    for count in (0, -1, 1.5, True, "3"):
        with pytest.raises(ValueError, match=f"count={count!r} must be an integer"):
            saved[0].likeliest(picture, count)
    for images, number in (([picture, picture], 2), (photographs(3, 32, 32)[:0], 0)):
        with pytest.raises(ValueError, match=f"{number} images: expected one"):
            saved[0].likeliest(images)


# ---- Elsewhere -------------------------------------------------------------------------------------


def test_model_py_and_a_file_are_enough(tmp_path):
    shutil.copy(HERE / "model.py", tmp_path)
    shutil.copy(HERE / "weights" / "minute.pt", tmp_path)
    program = (
        "import sys, torch; from model import Net; net = Net.from_pretrained('minute')\n"
        "assert not {'lab', 'utils', 'torchvision'} & {*sys.modules}\n"
        "print(net.predict(torch.zeros(3, 90, 60, dtype=torch.uint8))[0].label)"
    )
    (tmp_path / "elsewhere").mkdir()
    program = "import sys; sys.path.insert(0, sys.argv[1])\n" + program
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        cwd=tmp_path / "elsewhere",
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() in Net.from_pretrained("minute").classes


@pytest.mark.parametrize("place", [".", "weights"])
def test_a_file_in_the_working_directory_is_found(saved, tmp_path, monkeypatch, place):
    (tmp_path / "work" / place).mkdir(parents=True)
    shutil.move(saved[1], tmp_path / "work" / place)
    monkeypatch.chdir(tmp_path / "work")
    assert str(Net.from_pretrained("small")) == str(saved[0])


def test_the_hub_works_beside_other_modules_of_the_same_names(tmp_path):
    for name in ("model", "utils"):
        (tmp_path / f"{name}.py").write_text("mine = True\n")
    program = (
        "import model, utils, sys, torch\n"
        "net = torch.hub.load(sys.argv[1], 'net', source='local', pretrained='minute')\n"
        "new = torch.hub.load(sys.argv[1], 'net', 'group', source='local', num_classes=7)\n"
        "import model as again\n"
        "assert again.mine and utils.mine and sys.modules['model'] is model\n"
        "image = torch.ones(1, 3, 32, 32)\n"
        "print(net(image).tolist(), new(image).shape[1])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(HERE)], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    expected = Net.from_pretrained("minute")(torch.ones(1, 3, 32, 32)).tolist()
    assert done.stdout.strip() == f"{expected} 7"


def test_the_hub_refuses_an_architecture_with_pretrained_weights():
    with pytest.raises(ValueError, match="'minute'"):
        torch.hub.load(str(HERE), "net", source="local", pretrained="minute", num_classes=7)
    for wrong in ("minutes", "", True):
        with pytest.raises(ValueError, match=f"{wrong!r}.*'minute'"):
            torch.hub.load(str(HERE), "net", source="local", pretrained=wrong)


def test_the_hub_forgets_a_module_whose_import_failed(tmp_path):
    shutil.copy(HERE / "hubconf.py", tmp_path)
    (tmp_path / "model.py").write_text("raise RuntimeError('not to be imported')")
    modules = {*sys.modules}
    for _ in range(2):
        with pytest.raises(RuntimeError, match="not to be imported"):
            torch.hub.load(str(tmp_path), "net", source="local")
    assert not [name for name in {*sys.modules} - modules if name.startswith("cifar10")]
