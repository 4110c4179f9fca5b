"""Trained weights: what the networks of weights/ do on the test images, and the tables of their card."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lab.data import MEAN, STD
from lab.metrics import accuracy_of, confusion_matrix
from lab.training import evaluate
from model import PRETRAINED, Net, Preprocessing, count_parameters, receptive_field

FOLDER = Path(__file__).resolve().parent.parent / "weights"
PREPROCESSING = Preprocessing(32, MEAN, STD)  # of the networks that are trained here


@dataclass(frozen=True)
class Evaluation:
    """What a network did on images with labels; accuracies in [0, 1]."""

    accuracy: float
    accuracy_flips: float  # each image's logits and its mirror image's averaged
    class_accuracies: dict[str, float]
    confusions: tuple[tuple[str, str, int], ...]  # true class, predicted class, images; most first, none of 0


def assess(net: Net, images: Tensor, labels: Tensor, classes: Sequence[str]) -> Evaluation:
    """What `net` does on uint8 `images` (N, 3, H, W) of the classes `labels` (N,), through `net.transform`.

    In float32, so that the figures are the same on any machine, but for ties within rounding.

    Raises ValueError where the network has another number of outputs than there are classes.
    """
    if net.output.out_channels != len(classes):
        raise ValueError(
            f"the network has {net.output.out_channels} outputs, the data {len(classes)} classes"
        )

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for part, part_labels in zip(images.split(250), labels.split(250), strict=True):
            yield net.transform(part), part_labels

    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        logits, _ = evaluate(net, batches(), dtype=torch.float32)
        averaged, _ = evaluate(net, batches(), flips=True, dtype=torch.float32)
    counts = torch.from_numpy(confusion_matrix(labels, logits.argmax(1), len(classes)))
    right = counts.diagonal()
    wrong = counts - right.diag()
    true, predicted = wrong.nonzero(as_tuple=True)
    order = wrong[true, predicted].argsort(descending=True, stable=True)
    pairs = zip(true[order].tolist(), predicted[order].tolist(), strict=True)
    return Evaluation(
        accuracy=accuracy_of(logits, labels),
        accuracy_flips=accuracy_of(averaged, labels),
        class_accuracies=dict(zip(classes, (right / counts.sum(1)).tolist(), strict=True)),
        confusions=tuple((classes[row], classes[column], int(wrong[row, column])) for row, column in pairs),
    )


def card(images: Tensor, labels: Tensor, classes: Sequence[str]) -> str:
    """Markdown: of every network in PRETRAINED how it was trained, and what it does on the images given.

    images: uint8 (N, 3, H, W); labels: (N,).
    """
    lines = [
        "| name | norm, conv | parameters | receptive field | trained as | epochs | seed | data "
        "| test accuracy, % | with flips, % | most frequent confusions |",
        "| --- | --- | ---: | ---: | --- | ---: | ---: | --- | ---: | ---: | --- |",
    ]
    for name in PRETRAINED:
        net = Net.from_pretrained(name, FOLDER)
        found, made = assess(net, images, labels, classes), net.metadata
        taught = ", with a teacher" if made["recipe"].get("teacher") else ""
        confusions = "; ".join(
            f"{true} as {predicted} {count}" for true, predicted, count in found.confusions[:3]
        )
        lines.append(
            f"| `{name}` | {net.config['norm']}, {net.config['conv']} | {count_parameters(net):,} "
            f"| {receptive_field(net)} | {made['name']}{taught} "
            f"| {made['recipe']['epochs']} | {made['seed']} | {made['dataset']} "
            f"| {100 * found.accuracy:.2f} | {100 * found.accuracy_flips:.2f} | {confusions} |"
        )
    return "\n".join(lines)


def files() -> str:
    """Markdown: the files of weights/, their sizes and their SHA-256."""
    lines = ["| file | bytes | SHA-256 |", "| --- | ---: | --- |"]
    for name in PRETRAINED:
        content = (FOLDER / f"{name}.pt").read_bytes()
        lines.append(f"| `{name}.pt` | {len(content):,} | `{hashlib.sha256(content).hexdigest()}` |")
    return "\n".join(lines)
