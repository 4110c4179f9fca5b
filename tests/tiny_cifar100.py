"""A data set of 8 images in CIFAR-100's files, and its archive."""

import hashlib
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_cifar10 import packed, regular

from lab.download import SOURCES

FOLDER = SOURCES["cifar100"].folder
FINE = [f"fine {number}" for number in range(100)]
COARSE = [f"coarse {number}" for number in range(20)]
LABELS = {"train": [99, 0, 42, 42, 7], "test": [3, 98, 42]}  # fine ones


def _files() -> dict[str, bytes]:
    files = {}
    for seed, (name, labels) in enumerate(LABELS.items()):
        batch = {
            "filenames": [f"{label}.png" for label in labels],
            "batch_label": f"{name} batch 1 of 1",
            "fine_labels": labels,
            "coarse_labels": [label // 5 for label in labels],
            "data": np.random.default_rng(seed).integers(0, 256, (len(labels), 3072), dtype=np.uint8),
        }
        files[name] = pickle.dumps(batch, protocol=2)
    meta = {"fine_label_names": FINE, "coarse_label_names": COARSE}
    return files | {"meta": pickle.dumps(meta, protocol=2)}


CONTENTS = _files()  # name: bytes
ARCHIVE = packed([regular(f"{FOLDER}/{name}", content) for name, content in CONTENTS.items()])


def pixels(name: str) -> np.ndarray:  # uint8 (N, 3, 32, 32)
    return pickle.loads(CONTENTS[name])["data"].reshape(-1, 3, 32, 32)


def write(place: Path) -> Path:
    """Put the whole data set into `place`; returns its folder."""
    folder = place / FOLDER
    folder.mkdir(parents=True)
    for name, content in CONTENTS.items():
        (folder / name).write_bytes(content)
    return folder


def expect(patch: pytest.MonkeyPatch, *urls: str) -> None:
    """Make lab.download expect this archive and these files instead of CIFAR-100's, from these addresses."""
    md5 = {name: hashlib.md5(content).hexdigest() for name, content in CONTENTS.items()}
    tiny = replace(
        SOURCES["cifar100"],
        train={"train": md5["train"]},
        test={"test": md5["test"]},
        meta={"meta": md5["meta"]},
        archive_md5=hashlib.md5(ARCHIVE).hexdigest(),
        archive_bytes=len(ARCHIVE),
        urls=urls,
    )
    patch.setitem(SOURCES, "cifar100", tiny)
