"""The learning-rate range test: which rates a network can be trained with, from a few steps of each."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial
from itertools import count

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lab.checks import as_integer, as_number, check_type
from lab.loaders import loader_kept, random_states_kept, rewind, seed_of
from lab.recipes import Recipe
from lab.training import Batches, Diverged, learning_rate, train

SMOOTHING = 0.9  # share of the loss before in the smoothed one: an average over some ten steps
GROWN = 4.0  # times the smallest smoothed loss, at which the test ends


def range_test(
    net: nn.Module,
    loader: Batches,
    recipe: Recipe,
    lowest: float = 1e-4,
    highest: float = 10.0,
    steps: int = 100,
) -> tuple[list[float], list[float]]:
    """Learning rates, and the smoothed training loss at each, while the rate grows with every step.

    A copy of `net` is trained for up to `steps` steps with the recipe's optimizer, loss and penalties, in
    float32, on its device, on images of full size. The rate grows by the same factor from step to step, from
    `lowest` to `highest`; the rates of other groups of parameters, such as Muon's `lr_rest`, keep their ratio
    to it. The loss of a step is that before its update, and is smoothed by an exponential moving average
    without its bias towards 0. The test ends early once that is GROWN times its minimum, and before a loss
    that is not finite. A tenth of the rate at which the loss is smallest is a good one to try.

    loader: as for `fit`, but without need of a len(); it is passed over again until there are enough batches.
    Network, loader and random states are left as they were. The same seed of the loader gives the same again.

    Raises ValueError for a wrong argument, for a recipe whose rate is 0, and what `train` raises for a wrong
    batch; Diverged if the first loss is not finite.

    Source: Smith, "Cyclical Learning Rates for Training Neural Networks", arXiv 1506.01186.
    """
    check_type("net", net, nn.Module, "a torch.nn.Module")
    check_type("recipe", recipe, Recipe, "a Recipe; RECIPES has the named ones")
    lowest = as_number("lowest", lowest, 0, above=True)
    highest = as_number("highest", highest, lowest, above=True)
    steps = as_integer("steps", steps, 2)
    seed = seed_of(None, loader)
    copied = copy.deepcopy(net)
    optimizer = recipe.make_optimizer(copied)
    if not (peak := learning_rate(optimizer)):
        raise ValueError("the recipe's learning rate is 0: expected a rate, to which the others have a ratio")
    ratios = [group["lr"] / peak for group in optimizer.param_groups]
    loss = partial(F.cross_entropy, label_smoothing=recipe.label_smoothing)
    options = {"loss": loss, "l1": recipe.l1, "l2": recipe.l2, "dtype": torch.float32}
    lrs: list[float] = []
    losses: list[float] = []
    average = 0.0
    with random_states_kept(next(copied.parameters()).device), loader_kept(loader):
        for step, batch in zip(range(steps), _endless(loader, seed, copied), strict=False):
            lr = lowest * (highest / lowest) ** (step / (steps - 1))
            for group, ratio in zip(optimizer.param_groups, ratios, strict=True):
                group["lr"] = lr * ratio
            try:
                found, _ = train(copied, [batch], optimizer, **options)
            except Diverged:
                if not losses:
                    raise
                break
            average = SMOOTHING * average + (1 - SMOOTHING) * found
            lrs.append(lr)
            losses.append(average / (1 - SMOOTHING ** (step + 1)))
            if losses[-1] >= GROWN * min(losses):
                break
    return lrs, losses


def _endless(loader: Batches, seed: int, net: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    for epoch in count():
        rewind(loader, seed, epoch, net)
        empty = True
        for batch in loader:
            empty = False
            yield batch
        if empty:
            raise ValueError("the loader yields no batch" + ", when it is passed over again" * (epoch > 0))
