"""lab/int8.py: networks in 8-bit integers, beside float32."""

import dataclasses
import json
import shutil
from pathlib import Path
from statistics import median

import pytest
import torch

from lab import int8
from lab.commands import main
from lab.data import stand_in
from model import PRETRAINED, Net

HERE = Path(__file__).resolve().parent.parent
PUBLISHED = HERE / "results" / "bench" / "int8"
RESULT = {
    "test_images": 2_000,
    "networks": {
        "a": {
            "parameters": 1_234,
            "float32": {"bytes": 9_999, "right": 1_801, "seconds": [0.002, 0.9, 0.001]},
            "int8": {"bytes": 3_333, "right": 1_799, "seconds": [0.0007, 0.0001, 0.0009]},
        }
    },
}
exports = pytest.mark.filterwarnings("ignore")  # of the exporter, about itself


@pytest.fixture(autouse=True)
def packages():
    for package in int8.PACKAGES:
        pytest.importorskip(package)


@pytest.fixture(scope="module")
def pictures():
    data = stand_in(train=600, test=300)
    return dataclasses.replace(data, name="CIFAR-10")


@exports
@pytest.mark.parametrize("name", ["minute", "layer-norm-adamw-l2", "group-norm-sgd-l1"])
def test_a_file_in_integers_is_small_and_gives_nearly_the_same_logits(name, pictures, tmp_path):
    net = Net.from_pretrained(name)
    images = net.transform(pictures.test_images)
    expected = net(images).detach()
    wide = int8.to_onnx(net.train(), tmp_path / "new" / "wide.onnx")
    narrow = int8.quantize(net, pictures.train_images[:128], tmp_path / "narrow.onnx")
    assert net.training
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["narrow.onnx"]
    assert narrow.stat().st_size < wide.stat().st_size / 2
    torch.testing.assert_close(int8.Session(wide)(images), expected, rtol=0, atol=1e-4)
    logits = int8.Session(narrow)(images)
    assert logits.dtype == torch.float32
    error = (logits - expected).square().mean().sqrt() / expected.std()
    assert 0 < error < 0.15
    torch.testing.assert_close(int8.Session(narrow)(images[:1]), logits[:1], rtol=0, atol=1e-4)


@exports
def test_the_networks_are_counted_on_the_test_images_and_timed(pictures, tmp_path):
    net = Net.from_pretrained("minute")
    result = int8.measure({"one": net, "two": Net.from_pretrained("minute")}, pictures, tmp_path, rounds=2)
    files = {f"{name}-{form}.onnx" for name in ("one", "two") for form in ("float32", "int8")}
    assert {path.name for path in tmp_path.iterdir()} == files
    images = net.transform(pictures.test_images)
    for name, form in ((name, form) for name in ("one", "two") for form in ("float32", "int8")):
        found = result["networks"][name][form]
        path = tmp_path / f"{name}-{form}.onnx"
        right = (int8.Session(path)(images).argmax(1) == pictures.test_labels).sum()
        assert found["bytes"] == path.stat().st_size
        assert found["right"] == int(right)
        assert len(found["seconds"]) == 2
        assert 0 < min(found["seconds"]) < 1
    assert result["test_images"] == 300
    assert result["machine"]["threads"] == 1
    assert {*int8.PACKAGES, "processor"} <= result["machine"].keys()


def test_the_table_has_medians_in_milliseconds_and_accuracies_in_percent():
    (row,) = int8.table(RESULT).rows
    assert row == ("a", "1,234", "9,999", "3,333", "90.05", "89.95", "2.00", "0.70")


@exports
def test_the_command_leaves_files_and_prints_their_table(pictures, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("lab.commands.load_dataset", lambda *_: pictures)
    measure = int8.measure
    monkeypatch.setattr(int8, "measure", lambda *a: measure(*a, rounds=1))
    shutil.copy(HERE / "weights" / "minute.pt", tmp_path / "mine.pt")
    out = tmp_path / "out"
    assert main(["int8", str(tmp_path / "mine.pt"), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    (path,) = out.glob("*.json")
    assert {"mine-float32.onnx", "mine-int8.onnx"} <= {path.name for path in out.iterdir()}
    assert printed == f"{int8.table(json.loads(path.read_text()))}\n"
    assert main(["int8", "--table", "--out", str(out)]) == 0
    assert printed in capsys.readouterr().out


def test_a_missing_package_is_an_error_that_says_what_to_install(tmp_path, monkeypatch, capsys, pictures):
    def missing(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(int8, "import_module", missing)
    monkeypatch.setattr("lab.commands.load_dataset", lambda *_: pictures)
    assert main(["int8", "minute", "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.endswith("pip install onnx onnxscript onnxruntime\n")
    with pytest.raises(ImportError, match="pip install onnx"):
        int8.to_onnx(Net(width=0.25), tmp_path / "a.onnx")
    assert not (tmp_path / "a.onnx").exists()


def test_two_networks_with_the_same_files_are_refused(tmp_path, capsys):
    assert main(["int8", "minute", "minute", "--out", str(tmp_path)]) == 2
    assert "minute minute: two of these would write the same files" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "[]", '{"networks": {"a": {}}}', '{"networks": 3}'])
def test_a_file_of_another_kind_is_named(content, tmp_path, capsys):
    assert main(["int8", "--table", "--out", str(tmp_path)]) == 2
    assert f"no measurement (*.json) in {tmp_path}" in capsys.readouterr().err
    (tmp_path / "a.json").write_text(content)
    assert main(["int8", "--table", "--out", str(tmp_path)]) == 2
    assert "a.json is not a measurement of `python -m lab int8`" in capsys.readouterr().err


def test_the_card_shows_what_was_measured_of_the_published_networks():
    card = (HERE / "weights" / "README.md").read_text(encoding="utf-8")
    results = int8.read(PUBLISHED)
    for result in results:
        assert int8.table(result).markdown() in card
        assert result["machine"]["processor"] in card
        assert [*result["networks"]] == [*PRETRAINED]
        forms = [(found["float32"], found["int8"]) for found in result["networks"].values()]
        sizes = [round(100 * narrow["bytes"] / wide["bytes"]) for wide, narrow in forms]
        times = [round(100 * median(narrow["seconds"]) / median(wide["seconds"])) for wide, narrow in forms]
        changes = [(narrow["right"] - wide["right"]) / 100 for wide, narrow in forms]
        told = " ".join(card.split())
        assert f"takes {min(sizes)} to {max(sizes)} % of the bytes" in told
        assert f"and {min(times)} to {max(times)} % of the time" in told
        assert f"changes by {min(changes):+.2f} to {max(changes):+.2f} points" in card
        for name, found in result["networks"].items():
            (row,) = [line for line in card.splitlines() if line.startswith(f"| `{name}` ")]
            accuracy = float(row.split("|")[9])  # of one view, in percent, by torch
            # Another library's rounding may turn an image whose two likeliest classes are nearly equal.
            assert 100 * found["float32"]["right"] / 10_000 == pytest.approx(accuracy, abs=0.021)
