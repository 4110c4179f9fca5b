"""Recorded steps: which networks have them, and that a replayed step is the step."""

import signal
from pathlib import Path

import pytest
import torch
from torch import nn

import lab.training
from lab.data import Augment, Dataset, loaders_from
from lab.graphs import replayable
from lab.interrupts import Interrupted
from lab.loaders import checked_batch
from lab.optim import OPTIMIZERS
from lab.recipes import Recipe
from lab.training import fit
from model import Net

CUDA = torch.device("cuda")
needs_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


class Derived(Net):
    pass


@pytest.fixture
def nvidia(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")


@pytest.mark.usefixtures("nvidia")
def test_only_our_own_networks_on_an_nvidia_gpu_have_recorded_steps(monkeypatch):
    assert replayable(Net(), CUDA)
    assert not replayable(Net(), torch.device("cpu"))
    assert not replayable(Derived(), CUDA)
    assert not replayable(nn.Sequential(Net()), CUDA)
    monkeypatch.setattr(torch.version, "cuda", None)  # AMD's GPUs go by the same name
    assert not replayable(Net(), CUDA)


@pytest.mark.usefixtures("nvidia")
@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward", "full_backward_pre"])
def test_a_network_with_a_hook_has_no_recorded_steps_since_a_replay_would_not_call_it(kind):
    net = Net()
    handle = getattr(net.output, f"register_{kind}_hook")(lambda *_: None)
    assert not replayable(net, CUDA)
    handle.remove()
    assert replayable(net, CUDA)


def trained(data: Dataset, recipe: Recipe, checkpoint: Path | None = None):
    torch.manual_seed(0)
    net = Net(width=0.25)
    train_loader, test_loader = loaders_from(data, recipe.batch_size, augment=Augment.course(), device=CUDA)
    options = {"device": CUDA, "dtype": torch.float32, "progress": False}
    history = fit(net, train_loader, test_loader, recipe, checkpoint=checkpoint, **options)
    return net, history


@needs_a_gpu
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_replayed_steps_train_as_steps_taken_anew(small, monkeypatch, optimizer):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    lr = {"muon": 0.1, "sgd": 0.05, "adamw": 0.005}[optimizer]
    recipe = Recipe(epochs=1, optimizer=optimizer, lr=lr, l1=1e-5, l2=1e-4, batch_size=100)
    replayed, _ = trained(small, recipe)
    monkeypatch.setattr(lab.training, "replayable", lambda net, device: False)
    anew, _ = trained(small, recipe)
    torch.testing.assert_close(replayed.state_dict(), anew.state_dict(), rtol=1e-2, atol=1e-3)


@needs_a_gpu
def test_a_step_is_recorded_for_each_size_of_images(small, monkeypatch):
    counts = []

    class Counted(lab.training.Replay):
        def __call__(self, *arguments):
            counts.append(len(self.recorded))
            return super().__call__(*arguments)

    monkeypatch.setattr(lab.training, "Replay", Counted)
    trained(small, Recipe(epochs=2, batch_size=100, image_sizes=((0, 0.75), (0.5, 1))))
    assert counts == [0] * 4 + [1] * 5 + [1] * 4 + [2] * 5
    # Steps 2 to 4 of each size load libraries, and the first of an epoch is checked.


@needs_a_gpu
def test_a_run_stopped_within_an_epoch_on_a_gpu_goes_on(small, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    recipe = Recipe(epochs=2, batch_size=100)
    whole, _ = trained(small, recipe)
    steps = []

    def stop(*_):
        steps.append(0)
        if len(steps) == 15:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(lab.training, "checked_batch", lambda batch: stop() or checked_batch(batch))
        with pytest.raises(Interrupted):
            trained(small, recipe, tmp_path / "checkpoint")
    resumed, _ = trained(small, recipe, tmp_path / "checkpoint")
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=1e-2, atol=1e-2)


@needs_a_gpu
def test_after_a_run_with_recorded_steps_the_optimizer_has_its_own_numbers(small, monkeypatch):
    made = []
    make = Recipe.make_optimizer
    monkeypatch.setattr(
        Recipe, "make_optimizer", lambda recipe, net: made.append(make(recipe, net)) or made[-1]
    )
    trained(small, Recipe(epochs=3, batch_size=60))
    for group in made[0].param_groups:
        assert isinstance(group["lr"], float)
        assert not group.get("capturable", False)
