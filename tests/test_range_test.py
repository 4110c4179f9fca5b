"""lab/range_test.py: the learning-rate range test, against the same steps by hand."""

import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from global_state import unchanged
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lab.data import Augment, Loader, loaders_from
from lab.optim import OPTIMIZERS
from lab.range_test import GROWN, SMOOTHING, range_test
from lab.recipes import Recipe
from lab.records import weights_digest
from lab.training import Diverged
from model import Net

IMAGES = torch.randn(10, 3, 16, 16, generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 2, 2, 2, 2])
BATCHES = [*zip(IMAGES.split(4), LABELS.split(4), strict=True)]  # of 4, 4 and 2 images
SGD = Recipe(optimizer="sgd", lr=0.1, momentum=0.9, weight_decay=1e-3, label_smoothing=0.1, l2=1e-3)


def small_net(seed=0) -> Net:
    torch.manual_seed(seed)
    return Net(width=0.25, num_classes=3)


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 3))


def by_hand(net, batches, recipe, rates) -> list[float]:
    """The losses of a step at each rate, which has the same ratio to every group's as the recipe's has."""
    net = copy.deepcopy(net).train()
    optimizer = recipe.make_optimizer(net)
    peaks, losses = [group["lr"] for group in optimizer.param_groups], []
    for step, lr in enumerate(rates):
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = lr / recipe.lr * peak
        images, labels = batches[step % len(batches)]
        loss = F.cross_entropy(net(images), labels, label_smoothing=recipe.label_smoothing)
        losses.append(loss.item())
        weights = [parameter for parameter in net.parameters() if parameter.ndim >= 2]
        total = loss + sum(
            recipe.l1 * weight.abs().sum() + recipe.l2 * (weight**2).sum() for weight in weights
        )
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    return losses


def smoothed(losses: list[float]) -> list[float]:
    """Each the mean of those up to it, in which every step back counts SMOOTHING times as much."""
    means = []
    for last in range(len(losses)):
        shares = [SMOOTHING ** (last - step) for step in range(last + 1)]
        means.append(sum(s * loss for s, loss in zip(shares, losses, strict=False)) / sum(shares))
    return means


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_losses_are_those_of_steps_at_growing_rates_smoothed(optimizer):
    recipe = replace(SGD, optimizer=optimizer, lr_rest=0.03, l1=1e-4)
    lrs, losses = range_test(small_net(), BATCHES, recipe, 1e-3, 1.0, 7)
    rates = [10 ** (-3 + step / 2) for step in range(7)]
    assert lrs == pytest.approx(rates)
    assert losses == pytest.approx(smoothed(by_hand(small_net(), BATCHES, recipe, rates)), rel=1e-3)


def test_it_ends_once_the_loss_has_grown_to_four_times_its_minimum():
    lrs, losses = range_test(linear(), BATCHES, SGD, 1e-4, 1e4, 200)
    assert len(lrs) == len(losses) < 200
    assert losses[-1] >= GROWN * min(losses)
    assert all(loss < GROWN * min(losses[: n + 1]) for n, loss in enumerate(losses[:-1]))
    whole, _ = range_test(linear(), BATCHES, SGD, 1e-4, 1e-3, 200)
    assert len(whole) == 200
    assert (whole[0], whole[-1]) == pytest.approx((1e-4, 1e-3))


class Exploding(nn.Module):
    """Logits that are not finite from a step on."""

    def __init__(self, step: int):
        super().__init__()
        self.inner, self.left = linear(), step

    def forward(self, images):
        self.left -= 1
        return self.inner(images) * (1 if self.left >= 0 else math.inf)


def test_it_ends_before_a_loss_that_is_not_finite():
    net = Exploding(5)
    lrs, losses = range_test(net, BATCHES, SGD, steps=20)
    assert len(lrs) == len(losses) == 5
    assert all(map(math.isfinite, losses))
    assert net.left == 5
    with pytest.raises(Diverged, match="the loss is nan"):
        range_test(Exploding(0), BATCHES, SGD)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_network_loader_and_everything_global_are_left_as_they_were(small, optimizer):
    loader, _ = loaders_from(small, 32, limit=100, device="cpu")
    loader.epoch = 3
    net = Net(width=0.25).eval()
    net.c1.train()
    net(next(iter(loader))[0]).sum().backward()
    before, epoch = weights_digest(net), loader.epoch
    modes = [module.training for module in net.modules()]
    gradients = [parameter.grad.clone() for parameter in net.parameters()]
    with unchanged():
        first = range_test(net, loader, Recipe(optimizer=optimizer), steps=6)
    assert weights_digest(net) == before
    assert [module.training for module in net.modules()] == modes
    assert all(map(torch.equal, gradients, (parameter.grad for parameter in net.parameters())))
    assert loader.epoch == epoch
    loader.epoch = 0
    torch.manual_seed(5)
    assert range_test(net, loader, Recipe(optimizer=optimizer), steps=6) == first


def test_the_batches_are_those_of_one_epoch_after_another(small):
    pixels, labels = small.train_images[:9], small.train_labels[:9]
    drawn = []

    class Noting(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(3 * 32 * 32, 10)

        def forward(self, images):
            drawn.append(images.clone())
            return self.inner(images.flatten(1))

    def loader() -> Loader:
        return Loader(pixels, labels, batch_size=4, augment=Augment(), shuffle=True, seed=2)

    range_test(Noting(), loader(), SGD, 1e-6, 1e-4, 7)
    expected, same = [], loader()
    for _ in range(3):
        expected += [images for images, _ in same]
    assert all(map(torch.equal, drawn, expected[:7]))
    assert len(drawn) == 7


def test_a_foreign_loader_is_passed_over_again_and_needs_no_length():
    class Unmeasured:
        def __iter__(self):
            return iter(BATCHES)

    expected = range_test(linear(), BATCHES, SGD, steps=10)
    assert range_test(linear(), Unmeasured(), SGD, steps=10) == expected
    theirs = DataLoader(TensorDataset(IMAGES, LABELS), 4)
    assert range_test(linear(), theirs, SGD, steps=10) == expected


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"net": "Net"}, "net is of type str: expected a torch.nn.Module"),
        ({"recipe": "default"}, "recipe is of type str: expected a Recipe; RECIPES has the named ones"),
        ({"recipe": replace(SGD, lr=0)}, "the recipe's learning rate is 0"),
        ({"lowest": 0}, "lowest=0 must be a number above 0"),
        ({"lowest": 1.0, "highest": 1.0}, r"highest=1\.0 must be a number above 1"),
        ({"highest": math.inf}, "highest=inf must be a number above 0.0001"),
        ({"steps": 1}, "steps=1 must be an integer of at least 2"),
        ({"loader": []}, "the loader yields no batch"),
        ({"loader": iter(BATCHES)}, "the loader yields no batch, when it is passed over again"),
        ({"loader": [(IMAGES, LABELS + 1)]}, "labels from 1 to 3: expected classes from 0 to 2"),
        ({"net": nn.Flatten()}, "Flatten has no parameter to train"),
    ],
)
def test_what_cannot_work_is_refused(arguments, told):
    with pytest.raises(ValueError, match=told):
        range_test(**{"net": linear(), "loader": BATCHES, "recipe": SGD} | arguments)
