"""The checkpoint that a run resumes from: written whole, verified when read, and kept in two generations."""

from __future__ import annotations

import io
import time
import warnings
import zipfile
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lab.files import write_whole
from lab.records import History

FORMAT = 3
READABLE = (2, 3)  # 2 holds whole epochs only
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
    """What a checkpoint holds."""

    path: Path
    state: dict[str, Any]
    history: History

    @property
    def partial(self) -> Partial | None:
        """The epoch that was begun, if any."""
        held = self.state.get("partial")
        return None if held is None else Partial(**held | {"states": _with_arrays(held["states"])})


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
            write_whole(self.path, self._content(history, partial), keep=previous(self.path))
        except OSError as error:
            if self.failure is None:
                warnings.warn(f"{error}; the run goes on in memory", stacklevel=2)
            self.failure = error
        else:
            self.failure = None
        self._saved = time.monotonic()
        self._cost = self._saved - began

    def finish(self) -> None:
        """Raises OSError if the state that was saved last is not on the disk."""
        if self.failure is not None:
            raise OSError(f"the run is not saved: {self.failure}") from self.failure

    def rehearse(self, history: History) -> None:
        """Find out before the first step whether the file can be written and read again.

        Raises ValueError if it cannot, saying why; leaves no file.
        """
        try:
            began = time.monotonic()
            content = self._content(history, None)
            write_whole(self.path.with_name(f"{self.path.name}.trial"), content).unlink()
            self._cost = time.monotonic() - began
            torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises whatever the state leads to
            raise ValueError(f"the run could not be saved to {self.path}: {error}") from error

    def restore(self, saved: Saved) -> None:
        """Load the state into network, optimizer and scaler."""
        self.net.load_state_dict(saved.state["net"])
        self.optimizer.load_state_dict(saved.state["optimizer"])
        if self.scaler is not None and saved.state["scaler"]:
            self.scaler.load_state_dict(saved.state["scaler"])

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

    Raises ValueError if there is a file, and no file that can be read.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"checkpoint={str(path)!r} is a folder; give a file")
    reasons = []
    for file in (path, previous(path)):
        try:
            saved = Saved(path, *_read(file))
        except FileNotFoundError:
            reasons.append("missing")
        except Exception as error:  # torch raises whatever the bytes happen to lead to
            # The text of torch's error may advise to execute what the file holds.
            told = str(error) if type(error) is ValueError else f"it is damaged ({type(error).__name__})"
            reasons.append(told)
        else:
            if reasons:
                warnings.warn(f"{path}: {reasons[0]}; the run goes on from {file}", stacklevel=3)
            return saved
    if reasons == ["missing", "missing"]:
        return None
    raise ValueError(f"{path} is not a checkpoint that this version can read: {reasons[0]}; {ADVICE}")


def _read(path: Path) -> tuple[dict[str, Any], History]:
    content = path.read_bytes()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        damaged = archive.testzip()  # torch.load does not compare the checksums in the file
    if damaged is not None:
        raise ValueError(f"it is damaged: the checksum of its part {damaged} does not match")
    state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    if state["format"] not in READABLE:
        raise ValueError(f"its format is {state['format']}, not {FORMAT}")
    return state, History.from_dict(state["history"])


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
