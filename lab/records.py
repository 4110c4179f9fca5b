"""Records: what a run was and how it went, as one JSON file, read with checks."""

from __future__ import annotations

import ast
import base64
import hashlib
import inspect
import json
import math
import operator
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lab.files import write_whole
from lab.recipes import Recipe
from lab.schema import (
    Check,
    check_plain,
    dict_of,
    fields,
    json_bytes,
    list_of,
    must_be,
    number,
    optional,
    read_json,
    shortened,
)

PARTS = ("test", "validation")  # what a run can be evaluated on


@dataclass
class History:
    """What a run was and how it went; each list has one entry per epoch.

    Losses are mean cross-entropies: in training with the recipe's label smoothing or against its teacher,
    on the augmented images, while the network changes. Accuracies are in [0, 1]. `lr` is the rate of the
    epoch's last step. `seconds` times the training steps with their augmentation and the search for the
    number of threads, without evaluations, the teacher's part and the search for the number format. `gflops`
    is the rate of a large matrix product in the run's number format, measured after the epoch, if it was
    measured. `threads` are the numbers of threads used in the epoch. `timed` are the microseconds per image
    of a training step in each number format and layout, if they were timed.

    `evaluated_on` is "test", or "validation" if the run was evaluated on held-out training images: its
    figures are in the lists of that name, and the lists of the other name are empty. The accuracy "with
    flips" averages each image's logits with those of its mirror image, after the last epoch.

    `right` says which of the evaluated images were right after the last epoch, with one view of each;
    `rights` unpacks it. `diverged` says why a run ended early, because a loss or a weight was not finite.

    `recipe` is what was really done: its batch size and augmentation are those of the loader. `data` says
    what the loaders yielded, `network` what was trained, and `start` identifies its weights before the
    first step. The last three, and `right`, are empty in records older than they are.
    """

    name: str  # of the experiment; runs that differ only in the seed share it
    dataset: str
    parameters: int
    recipe: dict[str, Any]
    seed: int
    machine: dict[str, Any]
    train_loss: list[float] = field(default_factory=list)
    train_accuracy: list[float] = field(default_factory=list)
    test_loss: list[float] = field(default_factory=list)
    test_accuracy: list[float] = field(default_factory=list)
    validation_loss: list[float] = field(default_factory=list)
    validation_accuracy: list[float] = field(default_factory=list)
    lr: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    gflops: list[float] = field(default_factory=list)
    threads: list[list[int]] = field(default_factory=list)
    timed: dict[str, float] = field(default_factory=dict)
    test_accuracy_flips: float | None = None
    validation_accuracy_flips: float | None = None
    evaluated_on: str = "test"
    data: dict[str, Any] = field(default_factory=dict)
    network: dict[str, Any] = field(default_factory=dict)
    start: str = ""
    right: dict[str, Any] = field(default_factory=dict)  # "images", their number, and "bits", in base 64
    diverged: str = ""

    def __post_init__(self):
        self.path: Path | None = None  # the file that it was read from; not part of the record
        if self.evaluated_on not in PARTS:
            raise ValueError(f"evaluated_on={self.evaluated_on!r} must be one of {', '.join(PARTS)}")

    @property
    def epochs(self) -> int:
        """Epochs done."""
        return len(self.train_loss)

    @property
    def loss(self) -> list[float]:
        """The losses on the part that the run was evaluated on."""
        return self.test_loss if self.evaluated_on == "test" else self.validation_loss

    @property
    def accuracy(self) -> list[float]:
        """The accuracies on the part that the run was evaluated on, in [0, 1]."""
        return self.test_accuracy if self.evaluated_on == "test" else self.validation_accuracy

    @property
    def accuracy_flips(self) -> float | None:
        """The accuracy with flips on the part that the run was evaluated on; None if not measured."""
        return self.test_accuracy_flips if self.evaluated_on == "test" else self.validation_accuracy_flips

    @property
    def is_complete(self) -> bool:
        """Whether all epochs of the recipe are done, or it is known that they cannot be."""
        return bool(self.diverged) or self.epochs == Recipe.from_dict(self.recipe).epochs

    def rights(self) -> np.ndarray:
        """Which of the evaluated images were right after the last epoch, in the loader's order: bool (N,).

        Raises ValueError if that was not recorded.
        """
        if not self.right:
            raise ValueError(f"{self.name} seed {self.seed}: its record does not say which images were right")
        return _unpacked(self.right)

    def set_rights(self, right: Tensor) -> None:
        """Keep which of the evaluated images were right, bool (N,)."""
        bits = np.packbits(right.cpu().numpy()).tobytes()
        self.right = {"images": len(right), "bits": base64.b64encode(bits).decode()}

    @property
    def processor(self) -> str:
        """What computed: the processor and its instructions, or the GPU; empty if that was not recorded."""
        return processor_name(self.machine)

    @property
    def train_seconds(self) -> float:
        """Seconds of all training steps so far."""
        return sum(self.seconds)

    @property
    def peak_tflop(self) -> float:
        """Peak-normalized time, in TFLOP: what large matrix products could have computed in the same time.

        nan unless the rate was measured after every epoch.
        """
        if len(self.gflops) != len(self.seconds):
            return math.nan
        return 1e-3 * sum(map(operator.mul, self.seconds, self.gflops))

    def drop_epoch(self) -> None:
        """Remove the figures of the last epoch."""
        epochs, self.right = self.epochs, {}
        for values in vars(self).values():
            if isinstance(values, list) and len(values) == epochs:
                values.pop()

    def summary(self) -> dict[str, Any]:
        """The run in a line: the figures of the last epoch, never the best ones."""
        return {
            "name": self.name,
            "dataset": self.dataset,
            f"{self.evaluated_on}_accuracy": self.accuracy[-1] if self.accuracy else None,
            "train_seconds": round(self.train_seconds, 2),
            "parameters": self.parameters,
            "epochs": self.epochs,
            "seed": self.seed,
        }

    def identity(self) -> dict[str, Any]:
        """What decides the result, as plain data; runs with the same identity are the same run."""
        names = ("name", "seed", "dataset", "parameters", "network", "evaluated_on", "data")
        return {
            **_plain({name: getattr(self, name) for name in names}),
            "recipe": Recipe.from_dict(self.recipe).to_dict(),
            "dtype": self.machine.get("dtype"),
        }

    def difference(self, other: History) -> str:
        """Describe the first field of the identity that differs, as "seed 0, not 1"; empty if none does."""
        return _difference(self.identity(), other.identity())

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as a JSON record holds it.

        Raises ValueError, naming the field, for what `from_dict` would refuse, such as a loss of nan.
        """
        try:
            record = _plain(asdict(self))
            _check_record(record)
        except (TypeError, ValueError) as error:
            raise ValueError(f"the History of {self.name!r} could not be read again: {error}") from error
        return record

    def save(self, path: str | Path) -> Path:
        """Write the record as JSON. The folder is made; an existing file is replaced whole or not at all.

        Raises ValueError, and writes nothing, for what `load` would refuse.
        """
        try:
            content = json_bytes(self.to_dict())
        except ValueError as error:
            raise ValueError(f"{path} was not written: {error}") from error
        return write_whole(path, content)

    @classmethod
    def load(cls, path: str | Path) -> History:
        """Read what `save` wrote. Raises ValueError, naming the file and what is wrong, for anything else."""
        try:
            record = read_json(path)
        except ValueError as error:
            raise _no_record(path, error) from error
        history = cls.from_dict(record, path)
        history.path = Path(path)
        return history

    @classmethod
    def from_dict(cls, record: Any, source: str | Path = "the data") -> History:
        """The History that `to_dict` wrote, now or in an older version.

        Raises ValueError for anything else, naming `source`, the field, its value and what was expected.
        """
        try:
            _check_record(record)
        except (TypeError, ValueError) as error:
            raise _no_record(source, error) from error
        return cls(**record)


# ---- What a record holds ---------------------------------------------------------------------------

MOST_TOLD = 600  # characters of a reason: a recipe's error holds the whole value
TEXT = must_be(
    "a string of at most 500 printable characters",
    lambda value: isinstance(value, str) and len(value) <= 500 and value.isprintable(),
)
AMOUNT, SHARE, COUNT = number(), number(0, 1), number(1, whole=True)

REQUIRED = ("name", "dataset", "parameters", "recipe", "seed", "machine")  # in records of every age
FIELDS: dict[str, Check] = {
    "name": TEXT,
    "dataset": TEXT,
    "parameters": number(whole=True),
    "recipe": fields({}),  # `Recipe` checks what is in it
    "seed": must_be("an integer", lambda value: type(value) is int),
    "machine": fields(
        dict.fromkeys(("device", "processor", "instructions", "dtype", "layout"), TEXT) | {"threads": COUNT}
    ),
    "train_loss": list_of(AMOUNT),
    "train_accuracy": list_of(SHARE),
    "test_loss": list_of(AMOUNT),
    "test_accuracy": list_of(SHARE),
    "validation_loss": list_of(AMOUNT),
    "validation_accuracy": list_of(SHARE),
    "lr": list_of(AMOUNT),
    "seconds": list_of(AMOUNT),
    "gflops": list_of(AMOUNT),
    "threads": list_of(list_of(COUNT)),
    "timed": dict_of(AMOUNT),
    "test_accuracy_flips": optional(SHARE),
    "validation_accuracy_flips": optional(SHARE),
    "evaluated_on": must_be(f"one of {', '.join(PARTS)}", PARTS.__contains__),
    "data": dict_of(fields({"images": optional(COUNT)})),
    "network": fields({}),
    "start": TEXT,
    "right": fields({"images": COUNT, "bits": must_be("a string", lambda value: isinstance(value, str))}),
    "diverged": TEXT,
}


def _no_record(source: str | Path, error: Exception) -> ValueError:
    return ValueError(f"{source} is not the record of a run: {str(error)[:MOST_TOLD]}")


def _check_record(record: Any) -> None:
    """Raise ValueError, with the field, its value and what was expected, unless it is the record of a run."""
    if not isinstance(record, dict):
        raise ValueError(f"expected a dictionary, not {type(record).__name__}")
    check_plain(record)
    fields(FIELDS, REQUIRED)("", record)
    try:
        planned = Recipe.from_dict(record["recipe"]).epochs
    except ValueError as error:
        raise ValueError(f"in its recipe, {error}") from error
    epochs = len(record.get("train_loss", ()))
    if epochs > planned:
        raise ValueError(f"train_loss has length {epochs}: expected at most {planned}, the recipe's epochs")
    part = record.get("evaluated_on", PARTS[0])
    for name, allowed in _lengths(record, epochs, part).items():
        if (length := len(record.get(name, ()))) not in allowed:
            expected = " or ".join(map(str, sorted({min(allowed), max(allowed)})))
            raise ValueError(
                f"{name} has length {length}: expected {expected}, since train_loss has {epochs} and the "
                f"run was evaluated on {part}"
            )

    if record.get("right"):
        _check_rights(record["right"], record.get(f"{part}_accuracy"))


def _check_rights(right: Mapping[str, Any], accuracy: Sequence[float] | None) -> None:
    try:
        found = _unpacked(right)
    except (KeyError, ValueError) as error:
        raise ValueError(f"right={shortened(dict(right))} is not one bit for each image: {error}") from error
    if not accuracy or abs(found.mean() - accuracy[-1]) > 1e-6:
        raise ValueError(
            f"right has {int(found.sum())} of {len(found)} images: not the accuracy of the last epoch"
        )


def _unpacked(right: Mapping[str, Any]) -> np.ndarray:
    content = base64.b64decode(right["bits"], validate=True)
    if len(content) != math.ceil(right["images"] / 8):
        raise ValueError(f"{len(content)} bytes for {right['images']} images")
    return np.unpackbits(np.frombuffer(content, np.uint8), count=right["images"]).astype(bool)


def _lengths(record: Mapping[str, Any], epochs: int, evaluated_on: str) -> dict[str, Sequence[int]]:
    """How many entries each list may have: one for each epoch; none if it was not measured."""
    always, measured = (epochs,), (0, epochs)
    allowed: dict[str, Sequence[int]] = dict.fromkeys(("train_accuracy", "lr", "seconds"), always)
    allowed |= {"threads": measured, "gflops": range(epochs + 1)}  # a resumed run may measure the rate anew
    for part in PARTS:
        allowed[f"{part}_loss"] = measured if part == evaluated_on else (0,)
        allowed[f"{part}_accuracy"] = (len(record.get(f"{part}_loss", ())),)
    return allowed


def processor_name(machine: Mapping[str, Any]) -> str:
    """The processor in a record's `machine`, in short, with its instructions if they were recorded."""
    if machine.get("device", "cpu") not in ("cpu", "mps"):
        return str(machine["device"])
    name = re.sub(r"\((R|TM)\)| Processor", "", str(machine.get("processor", ""))).strip()
    return f"{name} ({machine['instructions']})" if "instructions" in machine else name


def _plain(value):
    return json.loads(json.dumps(value))  # a tuple and the list that a file has for it are equal


def _difference(here: dict, there: dict) -> str:
    for name in here:
        if here[name] != there[name]:
            one, other = _changed(here[name], there[name])
            return f"{name} {one!r}, not {other!r}"
    return ""


def _changed(here, there):
    """Both values, without what is equal inside dictionaries."""
    if not (isinstance(here, dict) and isinstance(there, dict)):
        return here, there
    names = [name for name in here | there if here.get(name) != there.get(name)]
    pairs = {name: _changed(here.get(name), there.get(name)) for name in names}
    return {name: one for name, (one, _) in pairs.items()}, {name: two for name, (_, two) in pairs.items()}


def describe_network(net: nn.Module) -> dict[str, Any]:
    """What identifies a network apart from its weights, as plain data.

    Its class; its `config`, if it has one of plain data; and digests of its structure (modules, shapes,
    frozen parts), of the code of its own classes (if Python finds the source), and of its plain attributes.
    Hooks and the values of closures are not seen.
    """
    tensors = [*net.named_parameters(), *net.named_buffers()]
    shapes = [(name, tuple(tensor.shape), str(tensor.dtype)) for name, tensor in tensors]
    frozen = [name for name, parameter in net.named_parameters() if not parameter.requires_grad]
    # The text tells layer, group and instance norm apart, whose tensors are alike.
    structure = (re.sub(r" at 0x[0-9a-f]+", "", str(net)), shapes, frozen)
    own = [(name, module) for name, module in net.named_modules() if not _is_torchs(type(module))]
    plain = (int, float, str, bool, tuple)
    attributes = [
        (name, key, value)
        for name, module in own
        for key, value in vars(module).items()
        if isinstance(value, plain) and key != "training"
    ]
    try:
        config = json.loads(json.dumps(getattr(net, "config", None), allow_nan=False))
    except (TypeError, ValueError):
        config = None
    return {
        "class": type(net).__name__,
        "config": config,
        "structure": _short_hash(structure),
        "code": _short_hash(sorted({_source(type(module)) for _, module in own})),
        "attributes": _short_hash(attributes),
    }


def _is_torchs(kind: type) -> bool:
    return kind.__module__.partition(".")[0] in ("torch", "torchvision")


def _source(kind: type) -> str:
    """The code of a class without comments and layout; empty if Python does not find it."""
    try:
        return ast.unparse(ast.parse(textwrap.dedent(inspect.getsource(kind))))
    except (OSError, TypeError, SyntaxError):
        return ""


def _short_hash(value) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]


def weights_digest(net: nn.Module) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of all parameters and buffers."""
    found = hashlib.sha256()
    for tensor in net.state_dict().values():
        if isinstance(tensor, torch.Tensor):
            found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]
