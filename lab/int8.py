"""Trained networks in 8-bit integers, by way of ONNX: the file, and what it costs and saves.

Needs onnx, onnxscript and onnxruntime, which nothing else here does.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from lab.bench import Key, Work, alternate, repeated
from lab.data import Dataset
from lab.files import write_whole
from lab.machine import file_stem, machine
from lab.schema import json_bytes, read_json
from lab.tables import Table
from model import Net, count_parameters

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
CALIBRATION = 512  # images, the first of the training set, on which the range of every map is found
BATCH = 64  # images
ROUNDS = 9  # of timings
SECONDS = 0.2  # of a timing, about


def to_onnx(net: Net, path: str | Path) -> Path:
    """Write `net` as an ONNX file in float32, for any number of images of its size; returns the path.

    Raises ImportError if one of the packages is missing.
    """
    check_packages()
    size = 32 if net.preprocessing is None else net.preprocessing.size
    images = torch.zeros(2, net.in_channels, size, size)
    with TemporaryDirectory() as folder:  # the exporter writes piece by piece
        made = Path(folder) / "net.onnx"
        torch.onnx.export(
            copy.deepcopy(net).cpu().eval(),
            (images,),
            made,
            dynamic_shapes=[{0: "N"}],
            external_data=False,
            verbose=False,
        )
        return write_whole(path, made.read_bytes())


def quantize(net: Net, images: Tensor, path: str | Path) -> Path:
    """Write `net` as an ONNX file in 8-bit integers, which still takes and gives float32; returns the path.

    images: uint8 (N, 3, H, W), such as the first 512 training images, prepared by `net.transform`. On them
    the smallest and the largest number of every map are found, between which 256 steps are spread. The
    weights of each output channel have steps of their own.

    Raises ImportError if one of the packages is missing, and what `net.transform` raises.

    Source: Jacob et al., arXiv 1712.05877.
    """
    check_packages()
    quantization = import_module("onnxruntime.quantization")
    shapes = import_module("onnxruntime.quantization.shape_inference")
    batches = iter(net.transform(images).split(BATCH))

    class Batches(quantization.CalibrationDataReader):
        def get_next(self) -> dict[str, Any] | None:
            batch = next(batches, None)
            return None if batch is None else {name: batch.cpu().numpy()}

    with TemporaryDirectory() as folder:
        wide, fused, narrow = (Path(folder) / f"{part}.onnx" for part in ("wide", "fused", "narrow"))
        name = Session(to_onnx(net, wide)).input
        shapes.quant_pre_process(wide, fused, skip_symbolic_shape=True)
        quantization.quantize_static(
            fused,
            narrow,
            Batches(),
            op_types_to_quantize=[
                "Conv",
                "Relu",
                "Add",
            ],  # not normalizations, whose statistics need more digits
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,  # processors multiply it with signed weights
        )
        return write_whole(path, narrow.read_bytes())


def check_packages() -> None:
    """Raises ImportError, and says how to install them, if a package is missing."""
    try:
        for package in PACKAGES:
            import_module(package)
    except ImportError as error:
        raise ImportError(f"ONNX needs other packages: pip install {' '.join(PACKAGES)}") from error


class Session:
    """A network in an ONNX file, on one processor thread."""

    def __init__(self, path: str | Path):
        """Raises ImportError if onnxruntime is missing."""
        check_packages()
        onnxruntime = import_module("onnxruntime")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.input = self.session.get_inputs()[0].name

    def __call__(self, images: Tensor) -> Tensor:  # normalized (N, 3, H, W) -> logits (N, classes)
        return torch.from_numpy(self.session.run(None, {self.input: images.cpu().numpy()})[0])


def measure(
    nets: Mapping[str, Net], data: Dataset, folder: str | Path, *, rounds: int = ROUNDS
) -> dict[str, Any]:
    """Compare networks in float32 and in 8-bit integers, both by onnxruntime, on one thread.

    Leaves NAME-float32.onnx and NAME-int8.onnx in the folder. For each network: the bytes of both files, how
    many test images each gets right, and the seconds that one image takes, one at a time, by rounds in which
    all take turns. Returns plain data.
    """
    check_packages()
    found: dict[str, dict[str, Any]] = {}
    works: dict[Key, Work] = {}
    for name, net in nets.items():
        paths = {form: Path(folder) / f"{name}-{form}.onnx" for form in ("float32", "int8")}
        to_onnx(net, paths["float32"])
        quantize(net, data.train_images[:CALIBRATION], paths["int8"])
        found[name] = {"parameters": count_parameters(net)}
        for form, path in paths.items():
            session = Session(path)
            found[name][form] = {"bytes": path.stat().st_size, "right": _right(session, net, data)}
            works[name, form] = _repeat(session, net.transform(data.test_images[:1]))
    cpu = torch.device("cpu")
    times = alternate({key: repeated(work, cpu, SECONDS) for key, work in works.items()}, rounds)
    for name, forms in times.items():
        for form, seconds in forms.items():
            found[name][form]["seconds"] = seconds
    host = machine(cpu) | {"threads": 1} | {name: version(name) for name in PACKAGES}
    return {"machine": host, "test_images": len(data.test_images), "networks": found}


def _right(session: Session, net: Net, data: Dataset) -> int:
    """How many test images the network in the file gets right."""
    batches = zip(data.test_images.split(BATCH), data.test_labels.split(BATCH), strict=True)
    return sum(int((session(net.transform(images)).argmax(1) == labels).sum()) for images, labels in batches)


def _repeat(session: Session, image: Tensor) -> Work:
    def work(count: int) -> None:
        for _ in range(count):
            session(image)

    return work


def table(result: Mapping[str, Any]) -> Table:
    """A row for each network: size, test accuracy and time in both formats."""
    head = ("network", "parameters")
    head += tuple(f"{form} {what}" for what in ("bytes", "accuracy, %", "ms") for form in ("float32", "INT8"))
    images = result["test_images"]
    rows = []
    for name, found in result["networks"].items():
        forms = [found[form] for form in ("float32", "int8")]
        rows.append(
            (
                name,
                f"{found['parameters']:,}",
                *(f"{form['bytes']:,}" for form in forms),
                *(f"{100 * form['right'] / images:.2f}" for form in forms),
                *(f"{1e3 * statistics.median(form['seconds']):.2f}" for form in forms),
            )
        )
    return Table(head, tuple(rows))


def write(result: Mapping[str, Any], folder: str | Path) -> Path:
    """Write what was measured as JSON, named after the machine; returns the path."""
    return write_whole(Path(folder) / f"{file_stem(result['machine'])}.json", json_bytes(result))


def read(folder: str | Path) -> list[dict[str, Any]]:
    """What was measured on each machine, from the files in the folder.

    Raises FileNotFoundError if there is none, and ValueError, naming the file, for one of another kind.
    """
    paths = sorted(Path(folder).glob("*.json"))
    if not paths:
        raise FileNotFoundError(f"no measurement (*.json) in {folder}")
    results = []
    for path in paths:
        try:
            result = read_json(path)
            table(result)  # for its errors
        except Exception as error:  # whatever the first wrong part leads to
            raise ValueError(
                f"{path} is not a measurement of `python -m lab int8`: {error!r:.200}"
            ) from error
        results.append(result)
    return results
