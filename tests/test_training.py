"""lab/training.py: an epoch, an evaluation and a whole run, against hand formulas."""

import gc
import json
import linecache
import math
import random
import re
import signal
import sys
import types
from dataclasses import asdict, replace
from functools import partial

import matplotlib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from global_state import unchanged
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

import lab.training
from lab.checkpoints import NotSaved, read_checkpoint
from lab.data import Augment, Loader, denormalize, loaders_from, normalize, stand_in
from lab.interrupts import Interrupted
from lab.machine import number_format
from lab.metrics import accuracy_of
from lab.optim import OPTIMIZERS, Muon
from lab.recipes import RECIPES, Recipe
from lab.records import History, describe_network
from lab.training import Diverged, distilled, evaluate, fit, train
from model import CONVS, NORMS, MultiScale, Net

EXACT = {"device": "cpu", "dtype": torch.float32}
QUIET = {"progress": False} | EXACT
EVERY = {"measure_peak": True} | QUIET


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


IMAGES = torch.randn(10, 3, 16, 16, generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 2, 2, 2, 2])


def linear(seed=0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 3))


def ten(**options) -> DataLoader:
    """Ten images in batches of 4, 4 and 2."""
    return DataLoader(TensorDataset(IMAGES, LABELS), **{"batch_size": 4} | options)


def uint8_loader() -> Loader:
    """Twelve images in batches of 5, 5 and 2, shuffled and augmented."""
    pixels = torch.randint(256, (12, 3, 16, 16), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    return Loader(pixels, torch.arange(12) % 3, batch_size=5, augment=Augment(), shuffle=True)


def small_net(norm="batch", seed=0, **options) -> Net:
    torch.manual_seed(seed)
    return Net(norm, **{"width": 0.25, "num_classes": 3} | options)


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    return all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))


# ---- An epoch --------------------------------------------------------------------------------------


def test_the_training_figures_count_an_uneven_last_batch_by_its_images():
    net = linear()
    logits = net(IMAGES)
    still = torch.optim.SGD(net.parameters(), lr=0.0)
    loss, accuracy = train(net, ten(), still, **EXACT)
    assert loss == pytest.approx(F.cross_entropy(logits, LABELS).item(), rel=1e-6)
    assert accuracy == (logits.argmax(1) == LABELS).sum().item() / 10
    batches = [F.cross_entropy(*pair) for pair in zip(logits.split(4), LABELS.split(4), strict=True)]
    assert loss != pytest.approx(sum(batches).item() / 3, rel=1e-3)  # the two differ here


def test_labels_may_be_probabilities_of_the_classes():
    net, twin = linear(), linear()
    sure = TensorDataset(IMAGES, F.one_hot(LABELS, 3).float())
    by_class = train(net, ten(), torch.optim.SGD(net.parameters(), lr=0.1), **EXACT)
    by_share = train(twin, DataLoader(sure, 4), torch.optim.SGD(twin.parameters(), lr=0.1), **EXACT)
    assert by_share == pytest.approx(by_class, rel=1e-5)
    for one, other in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one, other)

    shares = torch.rand(10, 3).softmax(1)
    logits = net(IMAGES)
    still = torch.optim.SGD(net.parameters(), lr=0.0)
    loss, accuracy = train(net, DataLoader(TensorDataset(IMAGES, shares), 4), still, **EXACT)
    assert loss == pytest.approx(-(shares * logits.log_softmax(1)).sum(1).mean().item(), rel=1e-5)
    assert accuracy == pytest.approx((logits.argmax(1) == shares.argmax(1)).float().mean().item())


def test_a_teacher_gives_the_probabilities_of_each_image_as_it_is_and_mirrored():
    loader = uint8_loader()
    teacher = small_net()
    taught = distilled(loader, teacher, 2.0, **EXACT)
    teacher.eval()
    images = normalize(loader.images)
    with torch.no_grad():
        logits = (teacher(images) + teacher(images.flip(3))) / 2
    expected = (logits / 2).softmax(1)
    torch.testing.assert_close(taught.labels, expected)
    assert loader.labels.dtype == torch.int64  # the loader itself stays what it was
    loader.epoch = taught.epoch = 3
    for (images, classes), (same, probabilities) in zip(loader, taught, strict=True):
        assert torch.equal(images, same)
        places = [(expected - row).abs().sum(1).argmin().item() for row in probabilities]
        assert loader.labels[places].equal(classes)


def test_a_recipe_with_a_teacher_is_not_trained_on_plain_labels():
    recipe = Recipe(epochs=1, teacher=Recipe(epochs=1), temperature=2.0)
    for loader in (ten(), uint8_loader()):
        with pytest.raises(ValueError, match=r"distilled\(.*teacher=None"):
            fit(small_net(), loader, None, recipe, **QUIET)
    history = fit(small_net(), distilled(uint8_loader(), small_net(), 2.0), None, recipe, **QUIET)
    assert history.recipe["teacher"] == recipe.teacher.to_dict()


def test_the_test_figures_count_an_uneven_last_batch_by_its_images():
    net = linear()
    logits = net(IMAGES)
    loss, accuracy = lab.training.test(net, ten(), **EXACT)
    assert loss == pytest.approx(F.cross_entropy(logits, LABELS).item(), rel=1e-6)
    assert accuracy == pytest.approx((logits.argmax(1) == LABELS).sum().item() / 10, rel=1e-6)


def test_an_epoch_is_a_step_a_batch_by_hand():
    net, twin = linear(), linear()
    train(net, ten(), torch.optim.SGD(net.parameters(), lr=0.1), **EXACT)
    for images, labels in zip(IMAGES.split(4), LABELS.split(4), strict=True):
        loss = F.cross_entropy(twin(images), labels)
        gradients = torch.autograd.grad(loss, list(twin.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(twin.parameters(), gradients, strict=True):
                parameter -= 0.1 * gradient
    torch.testing.assert_close(list(net.parameters()), list(twin.parameters()))


def test_training_uses_the_training_mode_and_testing_does_not():
    seen = []
    net = nn.Sequential(nn.BatchNorm2d(3), linear())
    net.register_forward_hook(lambda module, *_: seen.append((module.training, torch.is_grad_enabled())))
    train(net.eval(), ten(), torch.optim.SGD(net.parameters(), lr=0.0), **EXACT)
    lab.training.test(net, ten(), **EXACT)
    assert seen == [(True, True)] * 3 + [(False, False)] * 3


def test_gradients_through_float16_are_those_of_float32_and_would_vanish_unscaled():
    def gradient(dtype, scaler=None):
        net = small_net("none")
        options = {"loss": partial(_faint, factor=1e-5), "dtype": dtype, "scaler": scaler}
        train(net, [(IMAGES, LABELS)], torch.optim.SGD(net.parameters(), lr=0.0), **options)
        return net.c1[0].conv.weight.grad

    exact = gradient(torch.float32)
    assert (gradient(torch.float16) - exact).norm() < 0.05 * exact.norm()
    unscaled = torch.amp.GradScaler("cpu", init_scale=1.0)
    assert (gradient(torch.float16, unscaled) - exact).norm() > 0.2 * exact.norm()


def test_a_step_that_overflows_float16_is_skipped_and_the_next_is_not():
    net = small_net("none")
    start = [parameter.clone() for parameter in net.parameters()]
    scaler, sgd = torch.amp.GradScaler("cpu", init_scale=1024.0), torch.optim.SGD(net.parameters(), lr=0.1)
    factors = iter((1e9, 1.0))
    options = {"dtype": torch.float16, "scaler": scaler}
    train(net, [(IMAGES, LABELS)], sgd, loss=lambda *pair: _faint(*pair, factor=next(factors)), **options)
    assert all(map(torch.equal, net.parameters(), start))
    assert scaler.get_scale() == 512
    train(net, [(IMAGES, LABELS)], sgd, loss=lambda *pair: _faint(*pair, factor=next(factors)), **options)
    assert not torch.equal(net.output.weight, start[-2])


def _faint(logits, labels, factor):
    return factor * F.cross_entropy(logits, labels)


def test_a_custom_loss_is_used():
    net = linear()
    expected = (net(IMAGES) ** 2).mean().item()
    still = torch.optim.SGD(net.parameters(), lr=0.0)
    loss, _ = train(net, ten(), still, loss=lambda logits, labels: logits.square().mean(), **EXACT)
    assert loss == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("l1", "l2"), [(0.3, 0.0), (0.0, 0.2), (0.3, 0.2)])
@pytest.mark.parametrize("norm", ["batch", "none"])
def test_penalties_pull_weights_and_neither_biases_nor_norms(norm, l1, l2):
    net = small_net(norm)
    for parameter in net.parameters():
        nn.init.normal_(parameter)
    start = [p.detach().clone() for p in net.parameters()]
    step = torch.optim.SGD(net.parameters(), lr=0.1)
    nothing = {"loss": lambda logits, labels: (logits * 0).sum()}
    loss, _ = train(net, ten(batch_size=10), step, l1=l1, l2=l2, **nothing, **EXACT)
    assert loss == 0  # the figure is without the penalty
    for before, after in zip(start, net.parameters(), strict=True):
        pull = l1 * before.sign() + 2 * l2 * before if before.ndim == 4 else torch.zeros_like(before)
        torch.testing.assert_close(after.detach(), before - 0.1 * pull)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (16, 48), (20, 17)])
def test_before_each_step_its_index_is_told_and_the_sides_are_scaled_as_asked(height, width):
    net, told, seen = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3)), [], []
    net.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    images = torch.randn(10, 3, height, width)

    def before_step(index):
        told.append(index)
        return (None, 1.0, 1.5)[index]

    still = torch.optim.SGD(net.parameters(), lr=0.0)
    train(net, DataLoader(TensorDataset(images, LABELS), 4), still, before_step=before_step, **EXACT)
    assert told == [0, 1, 2]
    assert torch.equal(seen[0], images[:4])
    assert torch.equal(seen[1], images[4:8])
    size = (round(1.5 * height), round(1.5 * width))
    expected = F.interpolate(images[8:], size=size, mode="bilinear", antialias=True)
    torch.testing.assert_close(seen[2], expected)


@pytest.mark.parametrize("training", [True, False])
def test_training_puts_the_mode_of_every_part_back(training):
    net = small_net().train(training)
    net.c2.train(not training)
    modes = [module.training for module in net.modules()]
    train(net, ten(), torch.optim.SGD(net.parameters(), lr=0.0), **EXACT)
    assert [module.training for module in net.modules()] == modes


def test_a_teacher_sees_images_normalized_by_the_statistics_of_their_data_set():
    mean, std = (0.5, 0.25, 0.125), (0.25, 0.125, 0.0625)
    plain = uint8_loader()
    loader = Loader(plain.images, plain.labels, batch_size=5, mean=mean, std=std)
    teacher = small_net().eval()
    images = normalize(plain.images, mean, std)
    with torch.no_grad():
        expected = ((teacher(images) + teacher(images.flip(-1))) / 2).softmax(1)
    taught = distilled(loader, teacher, **EXACT)
    torch.testing.assert_close(taught.labels, expected)
    assert (taught.mean, taught.std) == (mean, std)


# ---- An evaluation ---------------------------------------------------------------------------------


def test_evaluate_gives_every_logit_and_label_in_order():
    net = linear()
    logits, labels = evaluate(net, ten(), **EXACT)
    torch.testing.assert_close(logits, net(IMAGES).detach())
    assert torch.equal(labels, LABELS)
    assert logits.dtype == torch.float32
    assert labels.dtype == torch.int64


def test_labels_may_be_probabilities_in_testing_too():
    net, shares = linear(), torch.rand(10, 3).softmax(1)
    loader = DataLoader(TensorDataset(IMAGES, shares), 4)
    logits, labels = evaluate(net, loader, **EXACT)
    torch.testing.assert_close(labels, shares)
    loss, accuracy = lab.training.test(net, loader, **EXACT)
    assert loss == pytest.approx(-(shares * logits.log_softmax(1)).sum(1).mean().item(), rel=1e-5)
    assert accuracy == pytest.approx((logits.argmax(1) == shares.argmax(1)).float().mean().item())
    history = fit(net, loader, loader, Recipe(epochs=1, optimizer="sgd", lr=0.0), **QUIET)
    assert history.test_loss == pytest.approx([loss], rel=1e-5)


def test_evaluate_leaves_random_states_and_the_loader_s_epoch_as_they_were():
    loader = uint8_loader()
    loader.epoch = 5
    before = torch.get_rng_state()
    for each in (loader, ten(shuffle=True)):
        evaluate(linear_without_seed(), each, **EXACT)
    assert torch.equal(torch.get_rng_state(), before)
    assert loader.epoch == 5


def linear_without_seed() -> nn.Module:
    with torch.random.fork_rng():
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 3))


def test_evaluate_averages_the_logits_of_each_image_and_its_mirror_image():
    net = linear()
    logits, labels = evaluate(net, ten(), flips=True, **EXACT)
    mirrored = IMAGES[:, :, :, torch.arange(15, -1, -1)]
    torch.testing.assert_close(logits, (net(IMAGES) + net(mirrored)).detach() / 2)
    assert not torch.allclose(logits, net(IMAGES))  # the two differ here
    assert torch.equal(labels, LABELS)


def test_evaluate_averages_only_the_images_that_the_network_is_unsure_of():
    net = linear()
    once, _ = evaluate(net, ten(), **EXACT)
    confidences = once.softmax(1).amax(1)
    sure = confidences.median().item()
    twice, _ = evaluate(net, ten(), flips=True, **EXACT)
    seen = []
    net.register_forward_hook(lambda _, inputs, out: seen.append(len(out)))
    some, _ = evaluate(net, ten(), flips=True, sure=sure, **EXACT)
    unsure = confidences < sure
    assert 0 < unsure.sum() < len(unsure)
    torch.testing.assert_close(some, torch.where(unsure[:, None], twice, once))
    assert sum(seen) == len(once) + unsure.sum()
    assert torch.equal(evaluate(net, ten(), flips=True, sure=0.0, **EXACT)[0], once)
    assert torch.equal(evaluate(net, ten(), sure=sure, **EXACT)[0], once)


class Cached(nn.Module):
    """Returns logits that it keeps."""

    def __init__(self):
        super().__init__()
        self.kept = torch.randn(len(IMAGES), 3)

    def forward(self, images):
        return self.kept[: len(images)]


def test_averaging_does_not_change_what_the_network_returned():
    net = Cached()
    before = net.kept.clone()
    loader = DataLoader(TensorDataset(IMAGES, LABELS), len(IMAGES))
    evaluate(net, loader, flips=True, sure=0.9, **EXACT)
    assert torch.equal(net.kept, before)


def test_a_stream_without_a_length_can_be_trained_on():
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(zip(IMAGES, LABELS, strict=True))

    net = linear()
    loss, _ = train(net, DataLoader(Stream(), 4), torch.optim.SGD(net.parameters(), lr=0.01))
    assert math.isfinite(loss)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"flips": "no"}, "flips='no' must be True or False"),
        ({"flips": 1}, "flips=1 must be True or False"),
        ({"flips": True, "sure": 1.5}, "sure=1.5 must be a number from 0 to 1"),
        ({"flips": True, "sure": float("nan")}, "sure=nan must be a number from 0 to 1"),
    ],
)
def test_wrong_views_are_refused_by_name(options, said):
    with pytest.raises(ValueError, match=said):
        evaluate(linear(), ten(), **options, **EXACT)


def test_accuracy_is_the_share_of_images_right():
    logits = torch.tensor([[0.0, 1.0], [2.0, 1.0], [0.0, 3.0], [5.0, 4.0]])
    assert accuracy_of(logits, torch.tensor([1, 1, 1, 0])) == 0.75


def test_what_evaluate_gives_can_be_used_like_any_tensor():
    logits, labels = evaluate(linear(), ten(), **EXACT)
    assert not logits.requires_grad
    assert not logits.is_inference()
    assert not labels.is_inference()


@pytest.mark.parametrize("training", [True, False])
def test_evaluate_puts_the_mode_of_every_part_back(training):
    net = small_net().train(training)
    net.c2.train(not training)  # a part frozen by its user
    modes = [module.training for module in net.modules()]
    evaluate(net, ten(), **EXACT)
    assert [module.training for module in net.modules()] == modes


def test_evaluate_restores_the_mode_if_the_loader_raises():
    def broken():
        yield IMAGES, LABELS
        raise OSError("unplugged")

    net = small_net()
    with pytest.raises(OSError, match="unplugged"):
        evaluate(net, broken(), **EXACT)
    assert net.training


def test_evaluate_changes_no_weight_statistic_or_gradient():
    net = small_net()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    evaluate(net, ten(), **EXACT)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_a_data_set_that_caches_what_it_made_can_be_evaluated_and_then_trained_on():
    class Lazy:
        made: tuple = ()

        def __iter__(self):
            self.made = self.made or ((IMAGES * 2, LABELS.clone()),)
            return iter(self.made)

    net, loader = linear(), Lazy()
    evaluate(net, loader, **EXACT)
    loss, _ = train(net, loader, torch.optim.SGD(net.parameters(), lr=0.0), **EXACT)
    assert loss == pytest.approx(F.cross_entropy(net(IMAGES * 2), LABELS).item(), rel=1e-6)


@pytest.mark.parametrize("loop", [evaluate, lab.training.test])
def test_an_empty_loader_is_an_error(loop):
    with pytest.raises(ValueError, match="no batch"):
        loop(linear(), [], **EXACT)
    net = linear()
    with pytest.raises(ValueError, match="no batch"):
        train(net, [], torch.optim.SGD(net.parameters(), lr=0.1), **EXACT)


def test_a_wrong_device_or_number_format_is_an_error_that_says_it():
    with pytest.raises(ValueError, match="'abacus'"):
        evaluate(linear(), ten(), device="abacus")
    with pytest.raises(ValueError, match="int8"):
        evaluate(linear(), ten(), dtype=torch.int8)


# ---- One batch -------------------------------------------------------------------------------------


@pytest.mark.parametrize("conv", CONVS)
@pytest.mark.parametrize("norm", NORMS)
def test_one_batch_can_be_overfitted(norm, conv):
    images, labels = torch.randn(16, 3, 16, 16), torch.arange(16) % 4
    net = Net(norm, conv, width=0.5, num_classes=4)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.003, weight_decay=0.0)
    for _ in range(60):  # most need about 20
        loss, accuracy = train(net, [(images, labels)], optimizer, **EXACT)
        if accuracy == 1.0 and loss < 0.7:  # 1.39, the logarithm of 4, by chance
            return
    pytest.fail(f"after 60 steps the loss is {loss:.2f} and the accuracy {accuracy:.0%}")


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_one_batch_can_be_overfitted_by_every_optimizer(optimizer):
    lr = {"muon": 0.1, "sgd": 0.1, "adamw": 0.03}[optimizer]
    recipe = Recipe(epochs=30, optimizer=optimizer, lr=lr, lr_rest=0.05, schedule="constant")
    history = fit(small_net(), ten(batch_size=10), None, recipe, **QUIET)
    assert history.train_accuracy[-1] == 1.0
    assert history.train_loss[-1] < history.train_loss[0] / 3


# ---- A whole run -----------------------------------------------------------------------------------

SHORT = Recipe(
    epochs=4,
    batch_size=32,
    optimizer="muon",
    lr=0.1,
    lr_rest=0.01,
    momentum=0.6,
    schedule="linear",
    augment=Augment(),
)


def ours(small) -> tuple[Loader, ...]:
    return loaders_from(small, 32, limit=80, device="cpu")


def ours_mixed(small) -> tuple[Loader, ...]:
    return loaders_from(small, 32, augment=Augment(colour=0.2, mixup=0.5), limit=80, device="cpu")


def theirs(small) -> tuple[DataLoader, ...]:
    images, labels = small.train_images[:80].float() / 255 - 0.5, small.train_labels[:80]
    return tuple(DataLoader(TensorDataset(images, labels), 32, shuffle=shuffle) for shuffle in (True, False))


def theirs_with_a_generator(small) -> tuple[DataLoader, ...]:
    images, labels = small.train_images[:80].float() / 255 - 0.5, small.train_labels[:80]
    data = TensorDataset(images, labels)
    return (
        DataLoader(data, 32, shuffle=True, generator=torch.Generator().manual_seed(5)),
        DataLoader(data, 32),
    )


def ten_classes(seed=0, norm="batch") -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(Net(norm, width=0.25), nn.Dropout(0.1))  # dropout draws random numbers too


def run(small, loaders=ours, recipe=SHORT, *, seed=0, net=None, **options):
    net = net or ten_classes()
    return net, fit(net, *loaders(small), recipe, seed=seed, **EVERY | options)


def without_seconds(history: History) -> dict:
    return {name: value for name, value in asdict(history).items() if name not in ("seconds", "gflops")}


@pytest.mark.parametrize("loaders", [ours, theirs, theirs_with_a_generator])
def test_the_same_seed_ends_in_the_same_bits_and_another_seed_does_not(small, loaders):
    (net, history), (again, same), (other, differs) = (run(small, loaders, seed=s) for s in (1, 1, 2))
    assert without_seconds(history) == without_seconds(same)
    assert same_weights(net, again)
    assert history.train_loss != differs.train_loss
    assert not same_weights(net, other)


def test_a_run_does_not_depend_on_what_its_loader_did_before(small):
    used = ours(small)
    for _ in range(3):
        next(iter(used[0]))
    net, _ = run(small, lambda _: used)
    assert same_weights(net, run(small)[0])


def test_the_history_says_what_ran(small):
    net, history = run(small, seed=3)
    assert history.dataset == small.name
    assert history.parameters == sum(p.numel() for p in net.parameters())
    assert history.recipe == SHORT.to_dict()
    assert history.data == {"train": ours(small)[0].describe(), "test": ours(small)[1].describe()}
    assert history.network["class"] == "Sequential"
    assert history.seed == 3
    assert history.name == "Sequential"
    assert run(small, name="mine", recipe=replace(SHORT, epochs=1))[1].name == "mine"
    assert history.epochs == 4
    lists = ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "lr", "seconds", "gflops")
    assert [len(getattr(history, name)) for name in lists] == [4] * 7
    assert history.validation_loss == history.validation_accuracy == []
    assert {"device", "threads", "torch", "python", "dtype"} <= set(history.machine)
    assert history.machine["dtype"] == "float32"
    assert history.train_seconds == sum(history.seconds) > 0
    assert min(history.gflops) > 0


def test_the_last_figures_are_those_of_the_network_as_it_ends(small):
    _, test_loader = ours(small)
    net, history = run(small)
    loss, accuracy = lab.training.test(net, test_loader, **EXACT)
    assert history.test_loss[-1] == loss
    assert history.test_accuracy[-1] == accuracy


def test_without_a_test_loader_nothing_is_tested(small):
    history = fit(ten_classes(), ours(small)[0], None, SHORT, **QUIET)
    assert history.test_accuracy == history.test_loss == []
    assert history.epochs == 4
    assert history.summary()["test_accuracy"] is None


def test_testing_does_not_change_the_training(small):
    untested = ten_classes()
    fit(untested, ours(small)[0], None, SHORT, **QUIET)
    assert same_weights(untested, run(small)[0])


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_label_smoothing_is_in_the_training_loss_and_not_in_the_test_loss(smoothing):
    net = linear()
    logits = net(IMAGES)
    recipe = Recipe(epochs=1, optimizer="sgd", lr=0.0, label_smoothing=smoothing)
    history = fit(net, ten(), ten(), recipe, **QUIET)
    # Spread evenly over the three classes, and the rest on the label.
    log = logits.log_softmax(1)
    expected = -(1 - smoothing) * log[torch.arange(10), LABELS] - smoothing * log.mean(1)
    assert history.train_loss == pytest.approx([expected.mean().item()], rel=1e-5)
    assert history.test_loss == pytest.approx([F.cross_entropy(logits, LABELS).item()], rel=1e-5)


@pytest.mark.parametrize("penalty", ["l1", "l2"])
def test_the_recipe_s_penalty_shrinks_the_weights(penalty):
    recipe = Recipe(epochs=3, optimizer="sgd", lr=0.01, momentum=0.0)
    ends = []
    for strength in (0.0, 0.1):
        net = linear()
        fit(net, ten(), None, replace(recipe, **{penalty: strength}), **QUIET)
        ends.append(net[1].weight.abs().sum())
    assert ends[1] < ends[0]


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_recorded_rate_is_that_of_each_epoch_s_last_step(schedule, optimizer):
    recipe = Recipe(epochs=2, optimizer=optimizer, lr=0.01, schedule=schedule, warmup=0.25)
    history = fit(small_net(), ten(), None, recipe, **QUIET)
    assert history.lr == pytest.approx([0.01 * recipe.lr_factor(step / 6) for step in (2, 5)])


def test_every_group_of_an_optimizer_follows_the_schedule(monkeypatch):
    rates = []

    def noted(net, **_):
        class Noted(torch.optim.SGD):
            def step(self, closure=None):
                rates.append([group["lr"] for group in self.param_groups])

        weight, bias = net.parameters()
        return Noted([{"params": [weight], "lr": 1.0}, {"params": [bias], "lr": 0.1}])

    monkeypatch.setitem(OPTIMIZERS, "sgd", noted)
    fit(linear(), ten(), None, Recipe(epochs=2, optimizer="sgd", schedule="linear", warmup=0), **QUIET)
    expected = [rate for step in range(6) for rate in (1 - step / 6, 0.1 * (1 - step / 6))]
    assert [rate for step in rates for rate in step] == pytest.approx(expected)


def test_image_sizes_resize_what_the_network_sees(small):
    seen = []
    net = ten_classes()
    net.register_forward_pre_hook(lambda module, inputs: seen.append((module.training, *inputs[0].shape[2:])))
    recipe = replace(SHORT, epochs=2, image_sizes=((0.0, 0.5), (0.34, 0.75), (0.6, 1.0)))
    run(small, recipe=recipe, net=net)
    trained = [size for training, *size in seen if training]
    assert trained == [[16, 16]] * 3 + [[24, 24]] + [[32, 32]] * 2  # at 0, 1/6 and 1/3; 1/2; 2/3 and 5/6
    assert {tuple(size) for training, *size in seen if not training} == {(32, 32)}


def test_any_module_and_loader_are_fitted():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))
    net(IMAGES)
    recipe = Recipe(epochs=15, optimizer="adamw", lr=0.01)
    history = fit(net, ten(shuffle=True), ten(), recipe, **QUIET)
    assert history.test_accuracy[-1] == 1.0
    assert history.test_loss[-1] < history.test_loss[0]


def test_fit_takes_what_the_processor_has_if_no_number_format_is_given(small):
    history = fit(ten_classes(), *ours(small), replace(SHORT, epochs=1), device="cpu", progress=False)
    assert history.machine["dtype"] == str(number_format(torch.device("cpu"))).removeprefix("torch.")
    assert 0 < history.train_loss[0] < 10


# ---- What makes it fast ----------------------------------------------------------------------------


@pytest.mark.parametrize("conv", CONVS)
@pytest.mark.parametrize("norm", NORMS)
def test_maps_and_gradients_keep_layout_and_number_format_through_the_network(norm, conv):
    net = Net(norm, conv, width=0.5).to(memory_format=torch.channels_last)
    seen, gradients, parts = [], [], []
    joined = {
        branch[-1]
        for module in net.modules()
        if isinstance(module, MultiScale)
        for branch in module.children()
    }

    def watch(module, _inputs, output):
        seen.append(output)
        # A branch gets its channels of the gradient of the joined map, without a copy.
        output.register_hook((parts if module in joined else gradients).append)

    for module in net.modules():
        if module is not net.output and not list(module.children()):
            module.register_forward_hook(watch)
    train(net, [(torch.randn(8, 3, 32, 32), torch.arange(8))], optimizer_of(net), dtype=torch.bfloat16)
    assert len(seen) == len(gradients + parts) >= 3 * 8  # convolution, norm and activation of eight blocks
    assert {maps.dtype for maps in seen + gradients + parts} == {torch.bfloat16}
    if norm in ("group", "instance"):
        gradients, parts = [], []  # channels first, as the faster way through these leaves them
    assert all(maps.is_contiguous(memory_format=torch.channels_last) for maps in seen + gradients)
    assert all(maps.stride(1) == 1 for maps in parts)


def optimizer_of(net):
    return torch.optim.SGD(net.parameters(), lr=0.1)


class Reads(TorchDispatchMode):
    """Counts what makes a GPU's host wait: a number read from a tensor, a shape that depends on values."""

    WAITING = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function in self.WAITING
        return function(*args, **kwargs or {})


@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
def test_no_step_reads_a_number_back_from_the_device(small, optimizer, monkeypatch):
    # Labels that are on a CPU are checked in every batch, which makes nothing wait.
    monkeypatch.setattr("lab.training.check_label_values", lambda *_: None)

    def reads(images):
        loader, _ = loaders_from(small, 100, augment=Augment.course(), limit=images, device="cpu")
        net = Net(width=0.25)
        weights = [parameter for parameter in net.parameters() if parameter.ndim > 1]
        made = optimizer_of(net) if optimizer == "sgd" else Muon(weights, lr=0.1, momentum=0.6)
        with Reads() as mode:
            train(net, loader, made, before_step=lambda index: 0.75, **EXACT)
        return mode.count

    assert reads(100) == reads(500) > 0  # the epoch's loss and accuracy alone are read


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_no_step_waits_for_the_gpu(small, optimizer):
    loader, _ = loaders_from(small, 100, augment=Augment.course(), device="cuda")
    net = Net(width=0.25).to("cuda")

    def watch(index):  # all steps but the first, which sets up, and the last, after which figures are read
        torch.cuda.set_sync_debug_mode("error" if 0 < index < len(loader) - 1 else "default")
        return 0.75

    try:
        train(net, loader, Recipe(optimizer=optimizer).make_optimizer(net), before_step=watch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_tensors_held_do_not_grow_over_the_epochs(small):
    train_loader, test_loader = loaders_from(small, 100, limit=200, device="cpu")
    held = []

    class Weighed:
        name = small.name

        def __iter__(self):
            gc.collect()
            # not the subclasses without memory of their own that an export to ONNX may have left behind
            tensors = [thing for thing in gc.get_objects() if type(thing) in (torch.Tensor, nn.Parameter)]
            held.append(sum(tensor.nbytes for tensor in tensors))
            return iter(test_loader)

    fit(Net(width=0.25), train_loader, Weighed(), Recipe(epochs=4), **QUIET)
    assert held[1] == held[2] == held[3]


# ---- What is recorded ------------------------------------------------------------------------------


def test_fit_records_the_accuracy_with_flips_of_the_trained_network(small):
    loaders = loaders_from(small, 100, device="cpu")
    net = small_net()
    net.output = nn.Conv2d(24, 10, 1)
    history = fit(net, *loaders, Recipe(epochs=1), **QUIET)
    expected = accuracy_of(*evaluate(net, loaders[1], flips=True, **EXACT))
    assert history.test_accuracy_flips == expected
    assert fit(net, loaders[0], None, Recipe(epochs=1), **QUIET).test_accuracy_flips is None


# ---- Checkpoints -----------------------------------------------------------------------------------


def killed(small, loaders, path, step, net=None):
    """Begin a run and interrupt it before the given training step."""
    net, steps = net or ten_classes(), []

    def interrupt(module, inputs):
        if module.training:
            if len(steps) == step:
                raise KeyboardInterrupt
            steps.append(1)

    handle = net.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(small, loaders, net=net, checkpoint=path)
    handle.remove()


@pytest.mark.parametrize("step", [3, 7])  # of 12: as an epoch begins, and within one
@pytest.mark.parametrize("loaders", [ours, ours_mixed, theirs, theirs_with_a_generator])
def test_a_killed_run_that_is_resumed_ends_in_the_bits_of_one_that_never_stopped(
    small, tmp_path, loaders, step
):
    straight, history = run(small, loaders)
    path = tmp_path / "new" / "run.pt"
    killed(small, loaders, path, step)
    resumed, again = run(small, loaders, checkpoint=path)
    assert without_seconds(again) == without_seconds(history)
    assert len(again.seconds) == 4
    assert same_weights(resumed, straight)


def test_a_run_killed_in_its_first_epoch_starts_anew(small, tmp_path):
    path = tmp_path / "run.pt"
    killed(small, ours, path, 2)
    assert not path.exists()
    assert same_weights(run(small, checkpoint=path)[0], run(small)[0])


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_resuming_takes_up_the_state_of_every_optimizer(small, tmp_path, optimizer):
    recipe = replace(SHORT, optimizer=optimizer, lr=0.01, momentum=0.9, schedule="constant")
    straight, _ = run(small, recipe=recipe)
    net, calls = ten_classes(), []

    def interrupt(module, inputs):
        calls.append(1)
        if module.training and len(calls) > 8:  # three steps and three test batches an epoch
            raise KeyboardInterrupt

    handle = net.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(small, recipe=recipe, net=net, checkpoint=tmp_path / "run.pt")
    handle.remove()
    resumed, _ = run(small, recipe=recipe, checkpoint=tmp_path / "run.pt")
    assert same_weights(resumed, straight)


def test_a_finished_run_is_read_and_not_trained_again(small, tmp_path):
    net, history = run(small, checkpoint=tmp_path / "run.pt")
    again, same = run(small, checkpoint=tmp_path / "run.pt")
    assert same == history
    assert same_weights(again, net)


def test_without_resume_a_run_starts_anew_and_replaces_the_checkpoint(small, tmp_path):
    path = tmp_path / "run.pt"
    run(small, checkpoint=path, seed=1)
    _, history = run(small, checkpoint=path, seed=2, resume=False)
    assert history.epochs == 4
    assert torch.load(path, weights_only=True)["history"]["seed"] == 2


def test_a_checkpoint_is_plain_tensors_and_numbers(small, tmp_path):
    path = tmp_path / "run.pt"
    net, history = run(small, checkpoint=path)
    state = torch.load(path, weights_only=True)
    assert all(torch.equal(state["net"][name], tensor) for name, tensor in net.state_dict().items())
    history.test_accuracy_flips = None  # measured once the last epoch is done
    assert json.dumps(state["history"]) == json.dumps(asdict(history))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["run.pt", "run.pt.previous"]


def half(small) -> tuple[Loader, ...]:
    return loaders_from(small, 32, limit=40, device="cpu")


def coarser(small) -> tuple[Loader, ...]:
    return loaders_from(small, 40, limit=80, device="cpu")


def unaugmented(small) -> tuple[Loader, ...]:
    return loaders_from(small, 32, limit=80, device="cpu", augment=False)


def held_out(small) -> tuple[Loader, ...]:
    return loaders_from(small, 32, limit=80, device="cpu", validation=20)[:2]


def other_test_images(small) -> tuple[Loader, ...]:
    return ours(small)[0], half(small)[1]


def frozen() -> nn.Module:
    net = ten_classes()
    net[0].c1.requires_grad_(False)
    return net


MISMATCHES = {
    "seed 0, not 1": {"seed": 1},
    r"recipe \{'lr': 0.1\}, not \{'lr': 0.2\}": {"recipe": replace(SHORT, lr=0.2)},
    "parameters": {"net": lambda: nn.Sequential(Net(width=0.5), nn.Dropout(0.1))},
    "network": {"net": frozen},
    "name": {"name": "another"},
    "dataset": {"loaders": theirs},
    r"data \{'train': \{'images': 80,.*not \{'train': \{'images': 40": {"loaders": half},
    r"data \{'test': \{'images': 80,": {"loaders": other_test_images},
    r"data \{'train': \{'batch_size': 32": {"loaders": coarser},
    r"data \{'train': \{'augment': \{'flip': True, 'shift': 4": {"loaders": unaugmented},
    "evaluated_on 'test', not 'validation'": {"loaders": held_out},
    "--dtype float32": {"dtype": torch.bfloat16},
}


def refused(small, path, match, **options):
    """Resume what cannot be resumed; the file and the network have to stay as they were."""
    file = path.read_bytes()
    net = options.pop("net", ten_classes)()
    before = [tensor.clone() for tensor in net.state_dict().values()]
    with pytest.raises(ValueError, match=match) as error:
        run(small, net=net, checkpoint=path, **options)
    assert str(path) in str(error.value)
    assert path.read_bytes() == file
    assert all(map(torch.equal, before, net.state_dict().values()))


@pytest.fixture(scope="module")
def finished(small, tmp_path_factory):
    path = tmp_path_factory.mktemp("finished") / "run.pt"
    run(small, checkpoint=path)
    return path


@pytest.mark.parametrize("what", MISMATCHES)
def test_a_checkpoint_of_another_run_is_refused_and_left_alone(small, finished, what):
    refused(small, finished, what, **MISMATCHES[what])


@pytest.mark.parametrize("norm", ["layer", "instance"])
def test_a_checkpoint_of_another_norm_with_as_many_parameters_is_refused(small, tmp_path, norm):
    run(small, net=ten_classes(norm="group"), checkpoint=tmp_path / "run.pt")
    refused(small, tmp_path / "run.pt", "network", net=lambda: ten_classes(norm=norm))


def test_a_checkpoint_without_the_network_s_statistics_is_refused(small, tmp_path):
    run(small, net=ten_classes(norm="group"), checkpoint=tmp_path / "run.pt")
    refused(small, tmp_path / "run.pt", "network", net=lambda: ten_classes(norm="batch"))


@pytest.mark.parametrize("content", ["rubbish", "half", "empty", "foreign"])
def test_a_file_that_is_no_checkpoint_is_refused_and_left_alone(small, finished, tmp_path, content):
    path = tmp_path / "run.pt"
    if content == "foreign":
        torch.save({"weights": torch.zeros(3)}, path)
    else:
        whole = finished.read_bytes()
        path.write_bytes({"rubbish": b"rubbish", "half": whole[: len(whole) // 2], "empty": b""}[content])
    refused(small, path, "checkpoint")


def test_a_run_of_another_loader_of_the_same_kind_is_refused(small, tmp_path):
    def loaders(images, labels, batch_size=32):
        return lambda _: (DataLoader(TensorDataset(images, labels), batch_size, shuffle=True), None)

    images, labels = small.train_images[:96].float() / 255, small.train_labels[:96]
    path = tmp_path / "run.pt"
    run(small, loaders(images[:80], labels[:80]), checkpoint=path)
    refused(small, path, "first_batch", loaders=loaders(images[16:], labels[16:]))
    refused(small, path, "batch_size", loaders=loaders(images[:80], labels[:80], 16))


def test_the_checkpoint_of_a_short_run_is_not_handed_back_for_a_long_one(tmp_path):
    recipe, path = Recipe(epochs=1), tmp_path / "a.pt"
    data = stand_in(600, 100)
    options = {"checkpoint": path} | QUIET
    fit(small_net(num_classes=10), *loaders_from(data, limit=50, device="cpu"), recipe, **options)
    with pytest.raises(ValueError, match=r"'images': 50.*not .*'images': 500"):
        fit(small_net(num_classes=10), *loaders_from(data, limit=500, device="cpu"), recipe, **options)


def test_a_teacher_s_labels_identify_the_teacher_and_its_temperature(small, tmp_path):
    recipe = replace(SHORT, teacher=Recipe(epochs=1), temperature=2.0)
    torch.manual_seed(5)
    teachers = [Net(width=0.25), Net(width=0.25)]

    def taught(teacher, temperature=2.0):
        return lambda _: (distilled(ours(small)[0], teacher, temperature, **EXACT), ours(small)[1])

    path = tmp_path / "run.pt"
    run(small, taught(teachers[0]), recipe, checkpoint=path)
    _, history = run(small, taught(teachers[0]), recipe, checkpoint=path)
    assert history.data["train"]["temperature"] == 2.0
    refused(small, path, "'teacher'", loaders=taught(teachers[1]), recipe=recipe)
    hotter = replace(recipe, temperature=3.0)
    refused(small, path, "'temperature': 2.0", loaders=taught(teachers[0], 3.0), recipe=hotter)
    with pytest.raises(ValueError, match=r"temperature=2\.0, the loader temperature=3\.0"):
        run(small, taught(teachers[0], 3.0), recipe)


def test_going_on_from_a_run_that_began_from_other_weights_warns(small, tmp_path):
    run(small, recipe=replace(SHORT, epochs=1), checkpoint=tmp_path / "run.pt")
    with pytest.warns(UserWarning, match="began from other weights"):
        run(small, recipe=replace(SHORT, epochs=1), net=ten_classes(seed=9), checkpoint=tmp_path / "run.pt")


@pytest.mark.parametrize("source", ["numpy", "random", "own", "sampler", "persistent workers"])
def test_a_run_resumes_exactly_whatever_its_loader_draws_from(small, tmp_path, source):
    class Noisy(torch.utils.data.Dataset):
        def __init__(self):
            self.generator = np.random.default_rng(3)

        def __len__(self):
            return 80

        def __getitem__(self, index):
            draw = {"random": random.random, "own": self.generator.random}.get(source, np.random.rand)
            return small.train_images[index].float() / 255 - 0.5 * draw(), small.train_labels[index]

    def loaders(_):
        options = {"shuffle": True}
        if source == "sampler":
            options = {"sampler": RandomSampler(range(80), generator=torch.Generator().manual_seed(4))}
        if source == "persistent workers":
            options |= {"num_workers": 1, "persistent_workers": True}
        return DataLoader(Noisy(), 32, **options), None

    straight, history = run(small, loaders)
    killed(small, loaders, tmp_path / "run.pt", 7)
    resumed, again = run(small, loaders, checkpoint=tmp_path / "run.pt")
    assert same_weights(resumed, straight)
    assert again.train_loss == history.train_loss


def test_a_loader_that_cannot_be_repeated_warns_before_training_if_a_checkpoint_is_kept(small, tmp_path):
    class Unseeded(TensorDataset):
        def __getitem__(self, index):
            images, labels = super().__getitem__(index)
            return images + random.SystemRandom().random(), labels

    loader = DataLoader(Unseeded(IMAGES, LABELS), 5)
    with pytest.warns(UserWarning, match="will not equal an unbroken one"):
        fit(small_net(), loader, None, Recipe(epochs=1), checkpoint=tmp_path / "run.pt", **QUIET)
    fit(small_net(), loader, None, Recipe(epochs=1), **QUIET)


def test_float16_resumes_with_its_loss_scale(small, tmp_path):
    options = {"recipe": replace(SHORT, optimizer="sgd", lr=0.01), "dtype": torch.float16}
    straight, _ = run(small, **options)
    net, steps = ten_classes(), []

    def interrupt(module, inputs):
        steps.append(module.training)
        if sum(steps) > 7:
            raise KeyboardInterrupt

    net.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(small, net=net, checkpoint=tmp_path / "run.pt", **options)
    state = torch.load(tmp_path / "run.pt", weights_only=True)
    state["scaler"]["scale"] = 2.0**40  # overflows float16, so steps are skipped until it has shrunk
    torch.save(state, tmp_path / "scaled.pt")
    resumed, _ = run(small, checkpoint=tmp_path / "run.pt", **options)
    assert same_weights(resumed, straight)
    scaled, _ = run(small, checkpoint=tmp_path / "scaled.pt", **options)
    assert not same_weights(scaled, straight)


# ---- What is called after every epoch --------------------------------------------------------------


class Failed(Exception):
    """What a callback of these tests raises."""


def failing_after(epochs: int, seen: list[int]):
    def on_epoch(history: History) -> None:
        seen.append(history.epochs)
        if history.epochs == epochs:
            raise Failed("the disk of the plots is full")

    return on_epoch


def test_after_every_epoch_the_history_so_far_is_handed_over_with_its_test_figures(small):
    seen = []
    net, history = run(small, on_epoch=seen.append)
    assert [each.epochs for each in seen] == [1, 2, 3, 4]
    for each in seen:
        for name in ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "lr", "seconds", "gflops"):
            assert getattr(each, name) == getattr(history, name)[: each.epochs]
    assert (seen[0].name, seen[0].recipe) == (history.name, history.recipe)
    assert same_weights(net, run(small)[0])


def test_whatever_is_done_after_an_epoch_the_run_and_its_record_stay_the_same(small):
    net = ten_classes()

    def meddles(history: History) -> None:
        history.test_loss.append(math.nan)
        history.recipe["epochs"] = 0
        torch.manual_seed(3)
        np.random.seed(3)
        random.seed(3)
        net.eval()

    found, history = run(small, net=net, on_epoch=meddles)
    straight, expected = run(small)
    assert without_seconds(history) == without_seconds(expected)
    assert same_weights(found, straight)


@pytest.mark.parametrize("share", [math.inf, -1])  # saved after every epoch; and only when it must be
@pytest.mark.parametrize("epochs", [1, 2, 4])
def test_what_goes_wrong_after_an_epoch_loses_nothing(small, tmp_path, monkeypatch, epochs, share):
    monkeypatch.setattr("lab.checkpoints.SAVE_SHARE", share)
    seen, path = [], tmp_path / "run.pt"
    with pytest.raises(Failed, match="the disk of the plots is full"):
        run(small, checkpoint=path, on_epoch=failing_after(epochs, seen))
    assert read_checkpoint(path).history.epochs == epochs
    net, history = run(small, checkpoint=path, on_epoch=lambda history: seen.append(history.epochs))
    assert seen == [1, 2, 3, 4]  # each epoch once
    straight, expected = run(small)
    assert without_seconds(history) == without_seconds(expected)
    assert same_weights(net, straight)


def test_what_goes_wrong_after_an_epoch_leaves_the_network_as_it_was_trained(small):
    net = ten_classes()
    with pytest.raises(Failed):
        run(small, net=net, on_epoch=failing_after(2, []))
    stopped = ten_classes()
    with pytest.raises(KeyboardInterrupt):
        run(small, net=stopped, on_epoch=lambda history: history.epochs < 2 or interrupt())
    assert same_weights(net, stopped)
    assert net.training
    assert all(parameter.grad is None for parameter in net.parameters())


def interrupt():
    raise KeyboardInterrupt


def test_an_epoch_in_which_a_stop_was_asked_for_is_handed_over_and_not_repeated(small, tmp_path):
    seen, path = [], tmp_path / "run.pt"

    def stopped(history: History) -> None:
        seen.append(history.epochs)
        if history.epochs == 2:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted, match="stopped after 2 of 4 epochs"):
        run(small, checkpoint=path, on_epoch=stopped)
    run(small, checkpoint=path, on_epoch=lambda history: seen.append(history.epochs))
    assert seen == [1, 2, 3, 4]
    run(small, checkpoint=path, on_epoch=lambda history: pytest.fail("a finished run has no epoch left"))


def test_an_epoch_that_diverged_is_not_handed_over(small):
    net, seen = ten_classes(), []

    def spoiled(history: History) -> None:
        seen.append(history.epochs)
        with torch.no_grad():
            next(net.parameters()).fill_(math.inf)

    with pytest.raises(Diverged):
        run(small, net=net, on_epoch=spoiled)
    assert seen == [1]


def test_on_a_full_disk_the_error_has_history_and_network_although_the_callback_failed(
    small, tmp_path, monkeypatch
):
    def full(*arguments, **options):
        raise OSError("No space left on device")

    def fails_on_a_full_disk(history: History) -> None:
        monkeypatch.setattr("lab.checkpoints.write_whole", full)
        raise Failed

    with pytest.warns(UserWarning, match="No space left"), pytest.raises(NotSaved) as error:
        run(small, checkpoint=tmp_path / "run.pt", on_epoch=fails_on_a_full_disk)
    assert error.value.history.epochs == 1
    assert isinstance(error.value.__cause__.__context__, Failed)


def test_tensorboard_gets_loss_and_accuracy_of_every_epoch(small, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path)) as writer:

        def write(history: History) -> None:
            writer.add_scalar("loss/train", history.train_loss[-1], history.epochs)
            writer.add_scalar("loss/test", history.test_loss[-1], history.epochs)
            writer.add_scalar("accuracy/test", history.test_accuracy[-1], history.epochs)

        _, history = run(small, on_epoch=write)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    for name, values in (
        ("loss/train", history.train_loss),
        ("loss/test", history.test_loss),
        ("accuracy/test", history.test_accuracy),
    ):
        assert [event.step for event in events.Scalars(name)] == [1, 2, 3, 4]
        assert [event.value for event in events.Scalars(name)] == pytest.approx(values, rel=1e-6)


# ---- A run is not handed back for another ----------------------------------------------------------

PIXELS, CLASSES = (
    torch.randn(160, 3, 16, 16, generator=torch.Generator().manual_seed(3)),
    torch.arange(160) % 3,
)
LATER = CLASSES.clone()
LATER[100:] = 0


def loaders_of(images=PIXELS, labels=CLASSES, test_labels=CLASSES, **options):
    test_loader = DataLoader(TensorDataset(PIXELS, test_labels), 32)
    return DataLoader(TensorDataset(images, labels), 32, **options), test_loader


class Halved(torch.utils.data.Dataset):
    """Images that are halved one by one; it holds arrays and lists, as torchvision's data sets do."""

    def __init__(self, targets):
        self.data, self.targets = PIXELS.numpy(), targets.tolist()

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return torch.from_numpy(self.data[index]) / 2, self.targets[index]


BATCHES = [(PIXELS[start : start + 2], CLASSES[start : start + 2]) for start in range(0, 160, 2)]

OTHERS = {
    "later labels": (loaders_of(), loaders_of(labels=LATER), "content"),
    "later test labels": (loaders_of(), loaders_of(test_labels=LATER), "'test': {'content'"),
    "fewer images, as many batches": (loaders_of(), loaders_of(PIXELS[:150], CLASSES[:150]), "'images': 160"),
    "later order": (
        loaders_of(sampler=[*range(160)]),
        loaders_of(sampler=[*range(32), *range(159, 31, -1)]),
        "order",
    ),
    "later targets of a data set of its own": (
        (DataLoader(Halved(CLASSES), 32), None),
        (DataLoader(Halved(LATER), 32), None),
        "content",
    ),
    "a later batch of a list": ((BATCHES, None), ([*BATCHES[:-1], BATCHES[0]], None), "content"),
    "workers": (loaders_of(), loaders_of(num_workers=1), "'workers': 0"),
}


@pytest.mark.parametrize("what", OTHERS)
def test_a_foreign_loader_that_differs_anywhere_is_another_run(tmp_path, what):
    one, other, said = OTHERS[what]
    recipe, options = Recipe(epochs=1, optimizer="sgd", lr=0.01), {"checkpoint": tmp_path / "a.pt"} | QUIET
    first = fit(small_net(), *one, recipe, **options)
    assert fit(small_net(), *one, recipe, **options) == first
    with pytest.raises(ValueError, match=re.escape(said)):
        fit(small_net(), *other, recipe, **options)


def own_class(factor, activation="relu"):
    namespace = {"nn": nn, "F": F, "factor": factor}
    source = f"""
class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3 * 16 * 16, 3)
        self.factor = factor

    def forward(self, images):
        return self.factor * F.{activation}(self.linear(images.flatten(1)))
"""
    file = f"<{activation}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    exec(compile(source, file, "exec"), namespace)
    torch.manual_seed(0)
    kind = namespace["Own"]
    kind.__module__ = f"own_{activation}"
    sys.modules[kind.__module__] = types.ModuleType(kind.__module__)
    sys.modules[kind.__module__].__file__ = file
    return kind()


@pytest.mark.parametrize(
    ("other", "said"), [((1.0, "gelu"), "'code'"), ((2.0, "relu"), "'attributes'")], ids=["code", "attribute"]
)
def test_a_network_with_other_code_or_attributes_is_another_run(tmp_path, other, said):
    recipe, options = Recipe(epochs=1, optimizer="sgd", lr=0.01), {"checkpoint": tmp_path / "a.pt"} | QUIET
    fit(own_class(1.0), *loaders_of(), recipe, **options)
    fit(own_class(1.0), *loaders_of(), recipe, **options)
    with pytest.raises(ValueError, match=said):
        fit(own_class(*other), *loaders_of(), recipe, **options)


def test_an_address_in_a_module_s_text_does_not_make_it_another():
    class Shown(nn.Linear):
        def extra_repr(self):
            return f"{object()}"

    assert describe_network(Shown(2, 3)) == describe_network(Shown(2, 3))


def test_a_loader_of_a_subclass_is_known_by_what_it_yields(small, tmp_path):
    class Mixed(Loader):
        share = 0.2

        def __iter__(self):
            for images, labels in super().__iter__():
                yield images + self.share * images.flip(0), labels

    def loaders(share):
        loader = Mixed(small.train_images[:80], small.train_labels[:80], batch_size=32, shuffle=True)
        loader.share = share
        return lambda _: (loader, None)

    run(small, loaders(0.2), recipe=replace(SHORT, epochs=1), checkpoint=tmp_path / "a.pt")
    run(small, loaders(0.2), recipe=replace(SHORT, epochs=1), checkpoint=tmp_path / "a.pt")
    other = {"loaders": loaders(0.3), "recipe": replace(SHORT, epochs=1)}
    refused(small, tmp_path / "a.pt", "first_batch", **other)


class Around:
    """Anybody's wrapper around one of our loaders."""

    def __init__(self, loader):
        self.inner = loader

    def __len__(self):
        return len(self.inner)

    def __iter__(self):
        return ((images * 0.5, labels) for images, labels in self.inner)


def test_a_wrapped_loader_follows_the_seed_and_is_left_as_it_was(small):
    inner = ours(small)[0]
    inner.epoch = 7
    (net, _), (same, _), (other, _) = (run(small, lambda _: (Around(inner), None), seed=s) for s in (1, 1, 2))
    assert same_weights(net, same)
    assert not same_weights(net, other)
    assert (inner.seed, inner.epoch) == (0, 7)


def test_set_epoch_is_called_in_samplers_and_data_sets_inside_others(small):
    class Curriculum(TensorDataset):
        def __init__(self, *tensors):
            super().__init__(*tensors)
            self.told, self.stage = (), None

        def set_epoch(self, epoch):
            self.told, self.stage = (*self.told, epoch), epoch

    inner = Curriculum(IMAGES, LABELS)
    nested = torch.utils.data.ConcatDataset([torch.utils.data.Subset(inner, range(10))])
    fit(small_net(), DataLoader(nested, 5), None, Recipe(epochs=2), **QUIET)
    assert inner.told[-2:] == (0, 1)
    assert inner.stage is None  # as before the run


@pytest.mark.parametrize("seed", [0, 3])
def test_the_first_images_that_a_network_sees_are_those_of_epoch_0(small, seed):
    seen, net, loaders = [], ten_classes(), ours(small)
    net.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].clone()))
    fit(net, *loaders, replace(SHORT, epochs=1), seed=seed, **QUIET)
    loaders[0].seed, loaders[0].epoch = seed, 0
    assert torch.equal(seen[0], next(iter(loaders[0]))[0])


def test_seeds_that_torch_would_take_for_the_same_are_different_runs(small):
    nets = [run(small, recipe=replace(SHORT, epochs=1), seed=seed)[0] for seed in (0, 2**32, 2**64)]
    assert not same_weights(nets[0], nets[1])
    assert not same_weights(nets[0], nets[2])


# ---- What is recorded, and what is refused ---------------------------------------------------------


def test_the_network_in_the_record_is_the_one_that_was_trained(small):
    recipe = replace(RECIPES["minute"], epochs=1)
    torch.manual_seed(0)
    history = fit(Net(width=0.25), *ours(small), recipe, **QUIET)
    assert history.network["config"]["width"] == 0.25
    assert history.recipe["net"] == {"stages": history.network["config"]["stages"]}
    assert history.recipe["net"] != recipe.to_dict()["net"]
    foreign = fit(small_net_of(10), *ours(small), recipe, **QUIET)
    assert foreign.recipe["net"] == {}


def small_net_of(classes) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(Net(width=0.25, num_classes=classes))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_caller_s_autocast_changes_nothing(small, dtype):
    net, _ = run(small, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16):
        inside, _ = run(small, dtype=dtype)
        logits, _ = evaluate(inside, ours(small)[1], device="cpu", dtype=dtype)
    assert same_weights(net, inside)
    assert torch.equal(logits, evaluate(net, ours(small)[1], device="cpu", dtype=dtype)[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_step_in_a_narrow_format_starts_from_the_weights_after_the_last(dtype):
    net, steps = small_net("none"), []

    def note(conv, inputs, maps):
        with torch.autocast("cpu", enabled=False):
            expected = F.conv2d(inputs[0].float(), conv.weight, conv.bias, stride=2, padding=1)
        steps.append((conv.weight.detach().clone(), maps.detach().float(), expected.detach()))

    net.c1[0].conv.register_forward_hook(note)
    sgd = torch.optim.SGD(net.parameters(), lr=0.05)
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0) if dtype == torch.float16 else None
    train(net, [(IMAGES, LABELS)] * 3, sgd, device="cpu", dtype=dtype, scaler=scaler)
    for _, maps, expected in steps:
        assert (maps - expected).norm() < 0.02 * expected.norm()
    moved = (steps[2][0] - steps[0][0]).norm() / steps[0][0].norm()
    assert moved > 0.05  # so old weights would show


@pytest.mark.parametrize("labels", [F.one_hot(LABELS, 3), LABELS.int()], ids=["one-hot integers", "int32"])
def test_labels_may_be_integers_of_any_kind(labels):
    loader = DataLoader(TensorDataset(IMAGES, labels), 4)
    recipe = Recipe(epochs=1, optimizer="sgd", lr=0.0)
    history = fit(linear(), loader, loader, recipe, **QUIET)
    expected = fit(linear(), ten(), ten(), recipe, **QUIET)
    assert history.train_loss == pytest.approx(expected.train_loss, rel=1e-6)
    assert history.test_loss == pytest.approx(expected.test_loss, rel=1e-6)
    assert history.test_accuracy == expected.test_accuracy


def test_training_images_are_not_recorded_as_test_images(small):
    loader, _ = ours(small)
    with pytest.raises(ValueError, match="test_loader yields training images"):
        fit(ten_classes(), loader, loader, SHORT, **QUIET)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_training_without_gradients_is_refused_and_leaves_the_network_as_it_was(mode):
    net = small_net()
    with mode(), pytest.raises(ValueError, match="needs gradients"):
        fit(net, ten(), None, Recipe(epochs=1), **QUIET)
    assert not any(parameter.is_inference() for parameter in net.parameters())


def test_a_network_with_nothing_to_train_is_refused():
    refused_at_once("Net has no parameter to train", net=small_net().requires_grad_(False))


def test_test_batches_that_can_be_read_only_once_are_refused():
    batches = iter([(IMAGES, LABELS)])
    with pytest.raises(ValueError, match="list_iterator, which can be read only once"):
        fit(small_net(), ten(), batches, Recipe(epochs=1), **QUIET)
    assert torch.equal(next(batches)[0], IMAGES)


def test_a_distilled_loader_is_one_of_ours():
    with pytest.raises(ValueError, match="expected a Loader of this project, not DataLoader"):
        distilled(ten(), small_net(), **EXACT)


def test_a_run_that_goes_on_elsewhere_says_so(small, tmp_path, monkeypatch):
    killed(small, ours, tmp_path / "run.pt", 7)
    here = lab.training.machine(torch.device("cpu"))
    monkeypatch.setattr(lab.training, "machine", lambda _: here | {"processor": "abacus", "beads": 99})
    with pytest.warns(UserWarning, match="its weights will differ in the last bits"):
        _, history = run(small, checkpoint=tmp_path / "run.pt", threads=here["threads"] + 1)
    assert history.machine["processor"] == here["processor"]
    # What the first machine did not record is not known to have changed.
    assert history.machine["continued_on"] == [{"processor": "abacus", "threads": here["threads"] + 1}]


def test_what_is_not_saved_is_said_before_training(tmp_path):
    net = small_net()
    net.register_buffer("mood", torch.zeros(1), persistent=False)
    with pytest.warns(UserWarning, match=r"buffers \['mood'\] are not in its state_dict"):
        fit(net, ten(), None, Recipe(epochs=1), checkpoint=tmp_path / "run.pt", **QUIET)


def test_a_generator_in_the_network_follows_the_seed(small, tmp_path):
    class Shaken(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.generator = ten_classes(), torch.Generator().manual_seed(1)

        def forward(self, images):
            return self.net(images) + 0.1 * torch.randn(1, generator=self.generator)

    straight, history = run(small, net=Shaken())
    killed(small, ours, tmp_path / "run.pt", 7, net=Shaken())
    resumed, again = run(small, net=Shaken(), checkpoint=tmp_path / "run.pt")
    assert again.train_loss == history.train_loss
    assert same_weights(resumed, straight)


def test_workers_that_make_their_own_generators_serve_a_run(small):
    class Own(TensorDataset):
        generator = None

        def __getitem__(self, index):
            images, labels = super().__getitem__(index)
            return images + self.generator.random(), labels

    loader = DataLoader(Own(IMAGES.double(), LABELS), 5, num_workers=1, worker_init_fn=own_generator)
    histories = [fit(linear().double(), loader, None, Recipe(epochs=2), **QUIET) for _ in range(2)]
    assert histories[0].train_loss == histories[1].train_loss


def own_generator(_):
    info = torch.utils.data.get_worker_info()
    info.dataset.generator = np.random.default_rng(info.seed)


def test_weights_come_back_to_the_memory_they_share_and_gradients_are_cleared(small):
    net = small_net(num_classes=10)
    addresses = [parameter.data_ptr() for parameter in net.parameters()]
    fit(net, *ours(small), replace(SHORT, epochs=1), **QUIET)
    assert [parameter.data_ptr() for parameter in net.parameters()] == addresses
    assert all(parameter.grad is None for parameter in net.parameters())


# ---- What cannot work is refused before the first step ---------------------------------------------


def refused_at_once(match, net=None, loader=None, recipe=None, **options):
    net = net or small_net()
    net.register_forward_pre_hook(lambda *_: pytest.fail("a step was taken"))
    with pytest.raises(ValueError, match=match):
        fit(net, loader or ten(), None, recipe or Recipe(epochs=1), **QUIET | options)


def test_a_wrong_recipe_name_or_seed_is_refused():
    refused_at_once("recipe='default'.*must be a Recipe", recipe="default")
    refused_at_once("name=3", name=3)
    refused_at_once(r"seed=1\.5", seed=1.5)


def test_what_cannot_be_called_after_an_epoch_is_refused():
    refused_at_once("on_epoch='print' must be a callable that takes a History, or None", on_epoch="print")


def test_a_loader_without_a_length_is_refused():
    refused_at_once(r"generator has no len\(\)", loader=(pair for pair in [(IMAGES, LABELS)]))


def test_what_cannot_be_saved_is_refused(tmp_path):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = linear()

        def forward(self, images):
            return self.linear(images)

        def get_extra_state(self):
            return Odd

        def set_extra_state(self, state): ...

    refused_at_once("could not be saved", net=Odd(), checkpoint=tmp_path / "a.pt")
    refused_at_once("is a folder", checkpoint=tmp_path)
    (tmp_path / "file").touch()
    refused_at_once("is not a folder", checkpoint=tmp_path / "file" / "a.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("seed", [np.int64(3), np.uint8(3), torch.tensor(3), 2**70, -3, 2**64 - 1])
def test_a_seed_is_any_integer_and_its_run_can_be_read_again(small, tmp_path, seed):
    recipe = replace(SHORT, epochs=1)
    net, history = run(small, recipe=recipe, seed=seed, checkpoint=tmp_path / "run.pt")
    assert history.seed == int(seed)
    history.save(tmp_path / "run.json")
    assert History.load(tmp_path / "run.json") == history
    again, same = run(small, recipe=recipe, seed=int(seed), checkpoint=tmp_path / "run.pt")
    assert same == history
    assert same_weights(net, again)


# ---- The record says what was really done ----------------------------------------------------------


def test_batch_size_and_augmentation_in_the_record_are_the_loader_s(small):
    loader, test_loader = loaders_from(small, 64, limit=80, augment=Augment.course(), device="cpu")
    history = fit(ten_classes(), loader, test_loader, Recipe(epochs=1), **QUIET)
    assert history.recipe == Recipe(epochs=1, batch_size=64, augment=Augment.course()).to_dict()
    foreign = fit(small_net(), ten(), None, Recipe(epochs=1), **QUIET)
    assert foreign.recipe == Recipe(epochs=1, batch_size=4, augment=None).to_dict()


def test_without_a_seed_the_loader_s_own_counts(small):
    own = loaders_from(small, 32, limit=80, device="cpu", seed=5)
    net, history = run(small, lambda _: own, seed=None)
    assert history.seed == 5
    other, _ = run(small, ours, seed=5)
    assert same_weights(net, other)
    assert not same_weights(net, run(small, ours, seed=0)[0])


def test_held_out_figures_are_recorded_as_validation(small):
    loaders = held_out(small)
    net, history = run(small, lambda _: loaders, recipe=replace(SHORT, epochs=2))
    assert history.evaluated_on == "validation"
    assert history.test_loss == history.test_accuracy == []
    assert history.test_accuracy_flips is None
    assert history.validation_accuracy[-1] == lab.training.test(net, loaders[1], **EXACT)[1]
    assert len(history.validation_loss) == 2
    flipped = accuracy_of(*evaluate(net, loaders[1], flips=True, **EXACT))
    assert history.validation_accuracy_flips == flipped
    assert history.summary()["validation_accuracy"] == history.validation_accuracy[-1]


def test_the_matrix_product_is_measured_only_if_asked_for(small):
    assert run(small, measure_peak=False)[1].gflops == []
    assert len(run(small)[1].gflops) == 4


# ---- Schedules and sizes ---------------------------------------------------------------------------


def test_a_loader_with_more_batches_than_it_says_stays_at_the_end_of_the_schedule(monkeypatch):
    class Longer(list):
        def __len__(self):
            return 2

    rates = []
    original = torch.optim.SGD.step

    def step(self, closure=None):
        rates.append(self.param_groups[0]["lr"])
        return original(self, closure)

    monkeypatch.setattr(torch.optim.SGD, "step", step)
    recipe = Recipe(epochs=2, optimizer="sgd", lr=1.0, momentum=0.0)
    with pytest.warns(UserWarning, match=r"len\(\) is 2, but it yielded 3 batches"):
        fit(linear(), Longer([(IMAGES, LABELS)] * 3), None, recipe, **QUIET)
    assert rates == pytest.approx([1.0, 0.75, 0.5, 0.5, 0.25, 0.0])


@pytest.mark.parametrize(
    ("size", "smaller"), [((64, 64), (48, 48)), ((24, 96), (18, 72)), ((32, 32), (24, 24))]
)
def test_image_sizes_are_shares_of_the_images_own_and_their_shape_stays(size, smaller):
    seen = set()
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    net.register_forward_pre_hook(lambda module, inputs: seen.add((module.training, *inputs[0].shape[2:])))
    loader = DataLoader(TensorDataset(torch.randn(10, 3, *size), LABELS), 5)
    fit(net, loader, loader, replace(RECIPES["default"], epochs=1), **QUIET)
    assert seen == {(True, *smaller), (False, *size)} or seen == {
        (True, *smaller),
        (True, *size),
        (False, *size),
    }


# ---- Nothing of the caller's is changed ------------------------------------------------------------


@pytest.mark.parametrize("seed", [None, 4])
def test_fit_leaves_every_global_state_as_it_was(small, seed):
    net, loaders = small_net_unseeded(), loaders_from(small, 100, limit=200, device="cpu")
    settings = dict(matplotlib.rcParams)
    with unchanged():
        fit(net, *loaders, replace(SHORT, epochs=1), **QUIET | {"seed": seed})
    assert dict(matplotlib.rcParams) == settings


def test_testing_and_distilling_leave_every_global_state_as_it_was(small):
    net, (loader, _) = ten_classes(), ours(small)
    with unchanged():
        evaluate(net, loader, flips=True, **EXACT)
        evaluate(net, theirs(small)[0], **EXACT)
        lab.training.test(net, loader, **EXACT)
        distilled(loader, net, **EXACT)


def test_training_draws_from_torch_s_random_state_and_changes_no_other_global_state(small):
    net, (loader, _) = ten_classes(), ours(small)
    still = torch.optim.SGD(net.parameters(), lr=0.0)
    with torch.random.fork_rng(), unchanged():
        state = torch.get_rng_state()
        train(net, loader, still, **EXACT)
        assert not torch.equal(torch.get_rng_state(), state)  # dropout
        torch.set_rng_state(state)
    assert loader.epoch == 1


def small_net_unseeded() -> Net:
    with torch.random.fork_rng():
        return Net(width=0.25)


def test_a_random_search_draws_new_values_after_every_run(small):
    loaders, drawn = ours(small), []
    for _ in range(3):
        drawn.append((float(torch.rand(())), float(np.random.rand()), random.random()))
        fit(ten_classes_unseeded(), *loaders, replace(SHORT, epochs=1), **QUIET)
    assert len(set(drawn)) == 3


def ten_classes_unseeded() -> nn.Module:
    return nn.Sequential(Net(width=0.25), nn.Dropout(0.1))


def test_an_exception_leaves_states_modes_layout_and_loader_as_they_were(small):
    net, (loader, _) = small_net(num_classes=10), ours(small)
    net.c1.eval()
    loader.seed, loader.epoch = 5, 2
    state = torch.get_rng_state()
    strides = [parameter.stride() for parameter in net.parameters()]
    modes = [module.training for module in net.modules()]
    net.register_forward_pre_hook(interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit(net, loader, None, SHORT, **QUIET | {"seed": 1})
    assert torch.equal(torch.get_rng_state(), state)
    assert (loader.seed, loader.epoch) == (5, 2)
    assert [parameter.stride() for parameter in net.parameters()] == strides
    assert [module.training for module in net.modules()] == modes
    assert not [module for module in net.modules() if "forward" in vars(module)]


def interrupted(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize("training", [True, False])
def test_after_a_run_modes_memory_format_and_loader_are_the_user_s(small, training):
    net, loaders = small_net(num_classes=10).train(training), ours(small)
    net.c2.train(not training)
    loaders[0].seed, loaders[0].epoch = 5, 2
    strides = [parameter.stride() for parameter in net.parameters()]
    modes = [module.training for module in net.modules()]
    fit(net, *loaders, replace(SHORT, epochs=1), **QUIET | {"seed": 1})
    assert [parameter.stride() for parameter in net.parameters()] == strides
    assert [module.training for module in net.modules()] == modes
    assert (loaders[0].seed, loaders[0].epoch, loaders[1].epoch) == (5, 2, 0)
    vector = nn.utils.parameters_to_vector(net.parameters())
    assert len(vector) == sum(parameter.numel() for parameter in net.parameters())
    assert all(tensor.is_contiguous() for tensor in net.state_dict().values())


def test_a_network_that_is_channels_last_stays_so(small):
    net = small_net(num_classes=10).to(memory_format=torch.channels_last)
    fit(net, *ours(small), replace(SHORT, epochs=1), **QUIET)
    assert net.c1[1].conv.weight.is_contiguous(memory_format=torch.channels_last)


def test_a_loader_used_in_inference_mode_serves_training_after(small):
    loaders = ours(small)
    with torch.inference_mode():
        for _ in loaders[1]:
            pass
        evaluate(ten_classes(), loaders[1], **EXACT)
    fit(ten_classes(), *loaders, replace(SHORT, epochs=1), **QUIET)
    images = torch.zeros(1, 3, 4, 4, requires_grad=True)
    denormalize(images).sum().backward()
    assert images.grad is not None


# ---- The bar ---------------------------------------------------------------------------------------


def test_the_bar_shows_name_epoch_loss_accuracy_and_time_left(small, capsys):
    _, history = run(small, progress=True, name="mine")
    shown = capsys.readouterr().err
    assert "mine epoch 1/4" in shown
    assert "mine epoch 4/4" in shown
    assert "12/12" in shown
    assert f"train loss={history.train_loss[-1]:.3f}" in shown
    assert f"test loss={history.test_loss[-1]:.3f}" in shown
    assert f"accuracy={history.train_accuracy[-1]:.1%}" in shown
    assert f"test accuracy={history.test_accuracy[-1]:.1%}" in shown
    assert "<" in shown  # elapsed < left


def test_nothing_is_written_to_stdout_and_without_progress_nothing_to_stderr(small, capsys):
    run(small, progress=True)
    assert capsys.readouterr().out == ""
    run(small, progress=False)
    assert capsys.readouterr() == ("", "")


def test_a_run_needs_no_terminal_and_no_stderr(small, monkeypatch):
    expected, _ = run(small)
    monkeypatch.setattr(sys, "stderr", None)
    net, history = run(small, progress=True)
    assert history.epochs == 4
    assert same_weights(net, expected)


def test_a_resumed_bar_starts_where_the_run_stood(small, tmp_path, capsys):
    killed(small, ours, tmp_path / "run.pt", 7)
    capsys.readouterr()
    run(small, checkpoint=tmp_path / "run.pt", progress=True)
    shown = capsys.readouterr().err
    assert "6/12" in shown
    assert "epoch 3/4" in shown
    assert "epoch 1/4" not in shown
