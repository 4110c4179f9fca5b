"""The checkpoint that a run resumes from: written whole, verified when read, and kept in two generations."""

from __future__ import annotations

import io
import time
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lab.files import write_whole
from lab.records import History
from model import check_archive

FORMAT = 3
READABLE = (2, 3)  # 2 holds whole epochs only
MOST_PICKLED = 2**24  # bytes beside the tensors: enough for thousands of tensors and epochs
SAVE_EVERY = 45.0  # seconds; with the time for a step and for saving, at most a minute of work is lost
SAVE_SHARE = 0.01  # of the time, at most, goes into saving after an epoch
ADVICE = (
    "to start again and replace it, give resume=False (--fresh on the command line); to keep it, give "
    "another file (--out or --name)"
)


@dataclass
class Partial:
    """A part of an epoch: the batches trained, and what its figures are made of."""

    loss: Tensor  # () summed over the images
    correct: Tensor  # () int64
    batches: int = 0
    images: int = 0
    seconds: float = 0.0
    threads: list[int] = field(default_factory=list)  # numbers of threads used
    states: dict[str, Any] = field(default_factory=dict)  # random states before the next batch is drawn

    @classmethod
    def start(cls, device: torch.device) -> Partial:
        """Nothing trained yet. The sums are on the device, so that nothing waits for a GPU."""
        return cls(torch.zeros((), device=device), torch.zeros((), device=device, dtype=torch.long))

    def to(self, device: torch.device) -> Partial:
        """The same, with its sums on the device: those of a checkpoint are on the CPU."""
        return replace(self, loss=self.loss.to(device), correct=self.correct.to(device))


@dataclass(frozen=True)
class Saved:
    """What a checkpoint holds. `source` is the file that was read: the newest, or the one before."""

    path: Path
    source: Path
    state: dict[str, Any]
    history: History
    partial: Partial | None  # the epoch that was begun, if any


class NotSaved(OSError):
    """A run ended, and its newest state is not on the disk. `history` and `net` are what it came to."""

    history: History
    net: nn.Module


class Checkpoint:
    """The file that a run resumes from: network, optimizer, History, and the part of an epoch since.

    The file before the newest is kept beside it, with the ending `.previous`.
    """

    def __init__(
        self,
        path: str | Path,
        net: nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler | None = None,
    ):
        self.path = Path(path)
        self.net, self.optimizer, self.scaler = net, optimizer, scaler
        self.failure: OSError | None = None  # the last one, if the newest state is not on the disk
        self._good = True  # whether the newest file, if there is one, can be read
        self._saved = time.monotonic()
        self._cost = 0.0  # seconds that it took to save the last time

    @property
    def cheap(self) -> bool:
        """Whether saving now takes at most SAVE_SHARE of the time since the state was saved."""
        return self._cost <= SAVE_SHARE * (time.monotonic() - self._saved)

    @property
    def due(self) -> bool:
        """Whether so much time has passed that the state should be saved."""
        return time.monotonic() - self._saved >= SAVE_EVERY

    def save(self, history: History, partial: Partial | None = None) -> None:
        """Write the state, whole or not at all. If that fails, warns, and `finish` raises."""
        began = time.monotonic()
        try:
            # A damaged file does not take the place of the one before it.
            keep = previous(self.path) if self._good else None
            write_whole(self.path, self._content(history, partial), keep=keep)
        except OSError as error:
            if self.failure is None:
                warnings.warn(f"{error}; the run goes on in memory", stacklevel=2)
            self.failure = error
        else:
            self.failure, self._good = None, True
        self._saved = time.monotonic()
        self._cost = self._saved - began

    def finish(self, history: History) -> None:
        """Try once more if the end of the run is not on the disk. Raises NotSaved if it fails again."""
        if self.failure is not None:
            self.save(history)
        if self.failure is not None:
            error = NotSaved(f"the run is not saved: {self.failure}")
            error.history, error.net = history, self.net
            raise error from self.failure

    def rehearse(self, history: History) -> None:
        """Find out before the first step whether the file can be written and read again.

        Raises ValueError if it cannot, saying why; leaves no file.
        """
        try:
            began = time.monotonic()
            content = self._content(history, None)
            write_whole(self.path.with_name(f"{self.path.name}.trial"), content).unlink()
            self._cost = time.monotonic() - began
            _check_archive(content)
            torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises whatever the state leads to
            raise ValueError(f"the run could not be saved to {self.path}: {error}") from error

    def restore(self, saved: Saved) -> None:
        """Load the state into network, optimizer and scaler. Raises ValueError if it does not fit them."""
        self._good = saved.source == self.path
        try:
            self.net.load_state_dict(saved.state["net"])
            self.optimizer.load_state_dict(saved.state["optimizer"])
            if self.scaler is not None and saved.state["scaler"]:
                self.scaler.load_state_dict(saved.state["scaler"])
        except Exception as error:  # torch raises whatever the state leads to
            told = shorten(str(error), 300, placeholder=" ...")  # and in one line
            raise ValueError(f"{saved.source} does not fit this run: {told}; {ADVICE}") from error
        if not all_finite(self.net.parameters()):
            raise ValueError(f"{saved.source} holds weights that are not finite; {ADVICE}")

    def _content(self, history: History, partial: Partial | None) -> bytes:
        state = {
            "format": FORMAT,
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "history": history.to_dict(),
            "partial": None if partial is None else _without_arrays(asdict(partial)),
        }
        content = io.BytesIO()
        torch.save(state, content)
        return content.getvalue()


def previous(path: Path) -> Path:
    """Where the checkpoint before the newest is kept."""
    return path.with_name(f"{path.name}.previous")


def read_checkpoint(path: str | Path) -> Saved | None:
    """What the checkpoint holds, or, with a warning, the one before if it is damaged; None without a file.

    Raises ValueError if there is a file, and none that can be read; also for a file of a later version, and
    for one that may not be read, which are not damaged.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"checkpoint={str(path)!r} is a folder; give a file")
    reasons = {}
    for file in (path, previous(path)):
        try:
            saved = Saved(path, file, *_read(file))
        except FileNotFoundError:
            reasons[file] = "missing"
        except (_LaterVersion, OSError) as error:
            raise ValueError(f"{file} cannot be read: {error}; {ADVICE}") from error
        except Exception as error:  # torch raises whatever the bytes happen to lead to
            # The text of torch's error may advise to execute what the file holds.
            told = str(error) if type(error) is ValueError else f"it is damaged ({type(error).__name__})"
            reasons[file] = told
        else:
            if reasons:
                warnings.warn(f"{path}: {reasons[path]}; the run goes on from {file}", stacklevel=3)
            return saved
    if set(reasons.values()) == {"missing"}:
        return None
    told = "; ".join(f"{file}: {reason}" for file, reason in reasons.items() if reason != "missing")
    raise ValueError(f"{path} is not a checkpoint that this version can read: {told}; {ADVICE}")


class _LaterVersion(ValueError):
    pass


def _read(path: Path) -> tuple[dict[str, Any], History, Partial | None]:
    if path.exists() and not path.is_file():
        raise ValueError("it is not a regular file")
    content = path.read_bytes()
    _check_archive(content)
    state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    if isinstance(state["format"], int) and state["format"] > FORMAT:
        raise _LaterVersion(f"its format is {state['format']}, and this version reads up to {FORMAT}")
    if state["format"] not in READABLE:
        raise ValueError(f"its format is {state['format']}, not {FORMAT}")
    if missing := {"net", "optimizer", "scaler", "history"} - state.keys():
        raise ValueError(f"it lacks {', '.join(sorted(missing))}")
    if any(tensor.numel() * tensor.element_size() > len(content) for tensor in _tensors(state)):
        raise ValueError("a tensor is larger than the file")  # a stride of 0 repeats an element
    begun = state.get("partial")
    partial = None if begun is None else Partial(**begun | {"states": _with_arrays(begun["states"])})
    return state, History.from_dict(state["history"]), partial


def _check_archive(content: bytes) -> None:
    """Raises ValueError if the file is damaged, or would take far more memory than it has bytes."""
    check_archive(content, kinds=("ComplexFloat", "ComplexDouble"), most=MOST_PICKLED)


def _tensors(value) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _tensors(part)


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no tensor holds NaN or an infinite number."""
    found = [tensor.isfinite().all() for tensor in tensors]
    return bool(torch.stack(found).all()) if found else True


def _without_arrays(value):
    """Plain data and tensors, as a file can hold them: an array becomes a dictionary with a tensor."""
    if isinstance(value, np.ndarray):
        return {"array": torch.from_numpy(value.astype(np.int64)), "dtype": str(value.dtype)}
    if isinstance(value, dict):
        return {key: _without_arrays(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_without_arrays, value))
    return value


def _with_arrays(value):
    """The inverse of `_without_arrays`."""
    if isinstance(value, dict) and value.keys() == {"array", "dtype"}:
        return value["array"].numpy().astype(value["dtype"])
    if isinstance(value, dict):
        return {key: _with_arrays(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_with_arrays, value))
    return value
