"""Trained weights: saved and loaded, what is refused, pictures in and predictions out, the hub, the card."""

import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as TF

import model
from lab.data import MEAN, STD, load_dataset, loaders_from, normalize
from lab.study import load_results
from lab.weights import card, evaluated, pictures
from model import PRETRAINED, Net, Pictures

HERE = Path(__file__).resolve().parent.parent
CLASSES = tuple("abcdefghij")
STAGES = [[(16, "standard", 2)], [(16, "dilated")], [(24, "depthwise_separable", 2)]]


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """A small network, saved and registered as "small": the network and its file."""
    torch.manual_seed(0)
    net = Net("group", "mixed", groups=4, width=0.5, num_classes=10, stages=STAGES)
    net.pictures = pictures(CLASSES)
    path = net.save(tmp_path / "weights" / "small.pt", {"name": "made here", "seed": 0})
    monkeypatch.setitem(model.PRETRAINED, "small", hashlib.sha256(path.read_bytes()).hexdigest())
    return net.eval(), path


def photographs(*shape: int) -> torch.Tensor:
    """uint8 (N, 3, H, W), smooth enough to be resized, and different everywhere."""
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
        assert loaded.pictures == Pictures(32, MEAN, STD, CLASSES)
        assert loaded.about == {"name": "made here", "seed": 0}
        assert loaded.options == net.options


def test_batch_statistics_are_saved_too(tmp_path):
    torch.manual_seed(0)
    net = Net(width=0.25)
    net(3 + torch.randn(8, 3, 32, 32))
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(Net.load(net.save(tmp_path / "net.pt"))(images), net.eval()(images))


def test_a_loaded_network_can_be_saved_again(saved, tmp_path):
    again = Net.load(Net.load(saved[1]).save(tmp_path / "again.pt", {"seed": 1}))
    assert again.pictures == saved[0].pictures
    assert again.about == {"seed": 1}


@pytest.mark.parametrize(
    "options",
    [{"norm": torch.nn.BatchNorm2d}, {"stages": [[(16, model.dilated, 1)]]}, {"activation": torch.nn.SiLU}],
)
def test_what_a_file_cannot_hold_is_said_and_nothing_is_written(tmp_path, options):
    with pytest.raises(ValueError, match=r"callable.*file"):
        Net(**options).save(tmp_path / "net.pt")
    assert not list(tmp_path.iterdir())


def test_an_unknown_name_lists_the_names(saved):
    with pytest.raises(ValueError, match=r"'large'.*'small'"):
        Net.from_pretrained("large")


def test_a_missing_file_says_where_it_was_looked_for(saved, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"small\.pt.*elsewhere"):
        Net.from_pretrained("small", tmp_path / "elsewhere")


@pytest.mark.parametrize("change", ["a bit", "the end", "everything"])
def test_a_damaged_file_is_refused(saved, change):
    content = bytearray(saved[1].read_bytes())
    content[len(content) // 2] ^= 1
    saved[1].write_bytes(
        {"a bit": content, "the end": saved[1].read_bytes()[:-100], "everything": b""}[change]
    )
    with pytest.raises(ValueError, match=r"small\.pt is damaged.*SHA-256"):
        Net.from_pretrained("small", saved[1].parent)


class Bomb:
    def __reduce__(self):
        return exec, ("raise SystemExit('executed')",)


@pytest.mark.parametrize("content", [b"no weights", [1, 2], {"options": {}}, Bomb()])
def test_a_foreign_file_is_refused_and_not_executed(tmp_path, content):
    path = tmp_path / "foreign.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=r"foreign\.pt is no file that Net\.save wrote"):
        Net.load(path)


def test_a_file_of_another_network_is_refused(saved, tmp_path):
    content = torch.load(saved[1], weights_only=True)
    content["options"]["width"] = 1.0
    torch.save(content, tmp_path / "mixed up.pt")
    with pytest.raises(ValueError, match="size mismatch"):
        Net.load(tmp_path / "mixed up.pt")


# ---- Pictures in, predictions out ------------------------------------------------------------------


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
    expected = normalize(TF.resize(batch.float(), [32, 32], antialias=True))
    torch.testing.assert_close(saved[0].transform(batch), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_a_pil_image_of_any_mode_counts_as_its_colours(saved, mode):
    image = Image.fromarray(photographs(1, 32, 32)[0].permute(1, 2, 0).numpy()).convert(mode)
    pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    assert torch.equal(saved[0].transform(image), saved[0].transform(pixels))


@pytest.mark.parametrize(
    "wrong",
    [
        torch.rand(1, 3, 32, 32),
        torch.zeros(1, 32, 32, 3, dtype=torch.uint8),
        torch.zeros(32, 32, dtype=torch.uint8),
        torch.zeros(0, 3, 32, 32, dtype=torch.uint8),
        np.zeros((32, 32, 3), dtype=np.uint8),
        "cat.png",
        [],
        None,
    ],
)
def test_what_is_no_picture_is_refused(saved, wrong):
    with pytest.raises(ValueError, match=r"pictures of .*expected"):
        saved[0].transform(wrong)


def test_a_network_without_pictures_says_so():
    with pytest.raises(ValueError, match="pictures"):
        Net().predict(photographs(1, 32, 32))


def test_predictions_are_the_likeliest_classes_and_their_softmax(saved):
    net, batch = saved[0], photographs(300, 20, 20)
    found = net.predict(batch)
    softmax = torch.softmax(net(net.transform(batch)), 1)
    assert [name for name, _ in found] == [CLASSES[number] for number in softmax.argmax(1)]
    assert [each.confidence for each in found] == pytest.approx(softmax.amax(1).tolist(), abs=1e-6)


def test_predicting_uses_running_statistics_and_puts_the_mode_back():
    torch.manual_seed(0)
    net = Net(width=0.25)
    net.pictures = pictures(CLASSES)
    net.c1.eval()
    batch = photographs(4, 32, 32)
    found = net.predict(batch)
    assert net.training
    assert not net.c1.training
    assert net.c2.training
    assert net.eval().predict(batch) == found
    assert net.c2[0].norm.num_batches_tracked == 0


# ---- Elsewhere -------------------------------------------------------------------------------------


def test_model_py_and_the_file_are_enough(tmp_path):
    shutil.copy(HERE / "model.py", tmp_path)
    shutil.copy(HERE / "weights" / "minute.pt", tmp_path)
    program = (
        "import sys, torch; from model import Net; net = Net.from_pretrained('minute')\n"
        "assert not {'lab', 'utils', 'torchvision'} & {*sys.modules}\n"
        "print(net.predict(torch.zeros(3, 90, 60, dtype=torch.uint8))[0].name)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() in Net.from_pretrained("minute").pictures.classes


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


def test_the_hub_takes_no_architecture_with_pretrained_weights():
    with pytest.raises(ValueError, match="'minute'"):
        torch.hub.load(str(HERE), "net", source="local", pretrained="minute", num_classes=7)
    with pytest.raises(ValueError, match=r"'minutes'.*'minute'"):
        torch.hub.load(str(HERE), "net", source="local", pretrained="minutes")


# ---- The evaluation and the card -------------------------------------------------------------------


def test_an_evaluation_counts_what_is_right_and_what_is_taken_for_what(small):
    _, loader = loaders_from(small, device="cpu")
    torch.manual_seed(0)
    net = Net(width=0.25).eval()
    with torch.no_grad():
        images = normalize(small.test_images)
        logits = torch.cat([net(part) for part in images.split(100)])
        mirrored = torch.cat([net(part) for part in images.flip(3).split(100)])
    taken, flipped = logits.argmax(1), (logits + mirrored).argmax(1)
    found = evaluated(net, loader)
    right = taken == small.test_labels
    assert found.dataset == small.name
    assert found.test_accuracy == pytest.approx(right.double().mean().item())
    assert found.test_accuracy_flips == pytest.approx((flipped == small.test_labels).double().mean().item())
    for number, name in enumerate(small.classes):
        of_class = right[small.test_labels == number].double().mean().item()
        assert found.class_accuracies[name] == pytest.approx(of_class)
    wrong = {}
    for true, predicted in zip(small.test_labels.tolist(), taken.tolist(), strict=True):
        if true != predicted:
            wrong[true, predicted] = wrong.get((true, predicted), 0) + 1
    assert found.confusions[0][2] == max(wrong.values())
    for true, predicted, count in found.confusions:
        assert count == wrong.get((small.classes.index(true), small.classes.index(predicted)), 0)


def test_the_published_networks_are_these():
    assert "minute" in PRETRAINED
    assert len([name for name in PRETRAINED if "norm" in name]) == 3
    assert {f"{name}.pt" for name in PRETRAINED} == {path.name for path in (HERE / "weights").glob("*.pt")}


@pytest.mark.parametrize("name", PRETRAINED)
def test_a_published_network_is_small_and_what_its_record_says(name):
    path = HERE / "weights" / f"{name}.pt"
    assert path.stat().st_size <= 1_000_000
    net = Net.from_pretrained(name)
    (record,) = (
        history
        for history in load_results(HERE / "results")
        if (history.name, history.seed) == (net.about["name"], net.about["seed"])
    )
    assert json.loads(json.dumps(net.about)) == asdict(record)
    assert model.count_parameters(net) == record.parameters
    assert net.pictures.classes[3] == "cat"


@pytest.mark.real_data
def test_the_card_is_what_the_files_and_the_test_images_say(cifar10_root):
    _, loader = loaders_from(load_dataset("cifar10", cifar10_root), device="cpu")
    assert card(loader) in (HERE / "weights" / "README.md").read_text()
