"""What the tests share: real CIFAR-10 if it is available, and a small data set for all other tests."""

import math
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lab.data import Dataset, stand_in
from lab.download import FOLDER

HERE = Path(__file__).resolve().parent.parent

# Of its tables hypothesis would make a folder in the tree, already while tests are collected.
os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", str(Path(tempfile.gettempdir()) / "hypothesis"))

# What a shell leaves to a command: another environment that is active, about which IPython warns, and Ctrl-C
# ignored, if the command runs in the background.
os.environ.pop("VIRTUAL_ENV", None)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

if "PYTEST_XDIST_WORKER" in os.environ:  # several processes of several threads would wait for each other
    os.environ["OMP_NUM_THREADS"] = "1"  # for what the tests start
    torch.set_num_threads(1)


def _cifar10_root() -> Path | None:
    places = [os.environ.get("CIFAR10_ROOT"), HERE.parent / "shared", HERE / "data"]
    return next((Path(place) for place in places if place and (Path(place) / FOLDER).is_dir()), None)


@pytest.fixture(autouse=True, scope="session")
def small_products():
    """Runs measure the rate of a matrix product after every epoch; here it need not be a large one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lab.machine.MATMUL_SIZE", {"cuda": 64, "other": 64})
        yield


@pytest.fixture(autouse=True, scope="session")
def saved_after_every_epoch():
    """Epochs are so short here that most would not be saved."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lab.checkpoints.SAVE_SHARE", math.inf)
        yield


@pytest.fixture(scope="session")
def cifar10_root() -> Path:
    """The folder that holds CIFAR-10; the test is skipped where there is none."""
    root = _cifar10_root()
    if root is None:
        pytest.skip(f"no CIFAR-10 here: set CIFAR10_ROOT to the folder that holds {FOLDER}")
    return root.resolve()


@pytest.fixture(scope="session")
def small() -> Dataset:
    """A stand-in of 1,000 training and 500 test images."""
    return stand_in(1_000, 500)


@pytest.fixture
def open_place() -> Iterator[Path]:
    """A temporary folder that every user can enter, unlike pytest's own; what is in it may be locked."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)
        os.chmod(name, 0o755)
        for parent, folders, _ in os.walk(name):
            for folder in folders:
                os.chmod(os.path.join(parent, folder), 0o755)
