"""Trained weights: what the networks of weights/ do on the test images, and the tables of their card."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lab.data import MEAN, STD, Loader
from lab.training import accuracy_of, evaluate
from model import PRETRAINED, Net, Pictures, count_parameters

FOLDER = Path(__file__).resolve().parent.parent / "weights"


def pictures(classes: Sequence[str]) -> Pictures:
    """What networks trained here take: CIFAR-10's size and normalization."""
    return Pictures(32, MEAN, STD, tuple(classes))


@dataclass(frozen=True)
class Evaluation:
    """What a network did on a test set; accuracies in [0, 1]."""

    dataset: str
    test_accuracy: float
    test_accuracy_flips: float  # each image's logits and its mirror image's averaged
    class_accuracies: dict[str, float]
    confusions: tuple[tuple[str, str, int], ...]  # true class, predicted class, images; most first


def evaluated(net: Net, loader: Loader) -> Evaluation:
    """`net` on the images of `loader`, in float32, so that a figure does not depend on the processor."""
    logits, labels = evaluate(net, loader, dtype=torch.float32)
    flipped, _ = evaluate(net, loader, flips=True, dtype=torch.float32)
    count = len(loader.classes)
    pairs = torch.bincount(labels * count + logits.argmax(1), minlength=count**2).view(count, count)
    right = pairs.diagonal()
    wrong = pairs - right.diag()
    order = wrong.flatten().argsort(descending=True, stable=True).tolist()
    return Evaluation(
        dataset=loader.name,
        test_accuracy=accuracy_of(logits, labels),
        test_accuracy_flips=accuracy_of(flipped, labels),
        class_accuracies=dict(zip(loader.classes, (right / pairs.sum(1)).tolist(), strict=True)),
        confusions=tuple(
            (loader.classes[place // count], loader.classes[place % count], int(wrong.flatten()[place]))
            for place in order
        ),
    )


def card(loader: Loader) -> str:
    """Markdown tables of every network in PRETRAINED: what it is, what it does on `loader`, its file."""
    lines = [
        "| name | network | parameters | run, seed "
        "| test accuracy, % | with flips, % | most frequent confusions |",
        "| --- | --- | ---: | --- | ---: | ---: | --- |",
    ]
    files = ["| file | bytes | SHA-256 |", "| --- | ---: | --- |"]
    for name in PRETRAINED:
        net = Net.from_pretrained(name, FOLDER)
        found = evaluated(net, loader)
        confusions = ", ".join(f"{true} as {taken} {n}" for true, taken, n in found.confusions[:3])
        lines.append(
            f"| `{name}` | {net.options['norm']}, {net.options['conv']} | {count_parameters(net):,} "
            f"| {net.about['name']}, {net.about['seed']} | {100 * found.test_accuracy:.2f} "
            f"| {100 * found.test_accuracy_flips:.2f} | {confusions} |"
        )
        content = (FOLDER / f"{name}.pt").read_bytes()
        files.append(f"| `{name}.pt` | {len(content):,} | `{hashlib.sha256(content).hexdigest()}` |")
    return "\n".join([*lines, "", *files])
