"""The same seed gives the same weights, to the last bit, in every pair and number format."""

import itertools
import json
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from lab.data import Augment, Loader
from lab.recipes import Recipe
from lab.records import weights_digest
from lab.training import fit
from model import CONVS, NORMS, Net

HERE = Path(__file__).resolve().parent
DTYPES = ("float32", "bfloat16")
RUNS = list(itertools.product(NORMS, CONVS, DTYPES))


def trained(norm: str, conv: str, dtype: str, seed: int = 0) -> str:
    """The digest of the weights after an epoch of two steps, on one thread, of 12 images."""
    pixels = torch.randint(256, (12, 3, 16, 16), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    options = {"batch_size": 6, "augment": Augment.course(), "shuffle": True}
    torch.manual_seed(seed)
    net = Net(norm, conv, width=0.25)
    fit(
        net,
        Loader(pixels, torch.arange(12) % 10, **options),
        None,
        Recipe(epochs=1, label_smoothing=0.1),
        seed=seed,
        device="cpu",
        dtype=getattr(torch, dtype),
        threads=1,
        progress=False,
    )
    return weights_digest(net)


def all_trained() -> dict[str, str]:
    with quickly():
        return {" ".join(run): trained(*run) for run in RUNS}


@contextmanager
def quickly():
    """Records are not looked at here, and describing the network takes most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lab.training.describe_network", lambda net: {"config": net.config})
        yield


@pytest.fixture(scope="module")
def in_a_fresh_process() -> dict[str, str]:
    """What the same runs give in another process."""
    code = "import json, test_same_seed; print(json.dumps(test_same_seed.all_trained()))"
    paths = f"import sys; sys.path[:0] = {[str(HERE), str(HERE.parent)]!r}; "
    ended = subprocess.run([sys.executable, "-c", paths + code], capture_output=True, text=True, check=True)
    return json.loads(ended.stdout)


@pytest.mark.parametrize(("norm", "conv", "dtype"), RUNS)
def test_a_seed_gives_the_same_weights_again_and_in_a_fresh_process(norm, conv, dtype, in_a_fresh_process):
    with quickly():
        first = trained(norm, conv, dtype)
        assert trained(norm, conv, dtype, seed=1) != first
        torch.rand(7)
        assert trained(norm, conv, dtype) == first
    assert in_a_fresh_process[f"{norm} {conv} {dtype}"] == first
