"""The loops: `train` and `test` an epoch, `evaluate` every image, `fit` a whole run.

They take any `nn.Module` that maps images to logits, and any iterable of (images, labels).
"""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from lab.checkpoints import ADVICE, Checkpoint, Partial, Saved, all_finite, read_checkpoint
from lab.checks import MOST_WORKERS, as_integer, as_number, as_switch, check_label_values, check_type
from lab.data import Loader
from lab.fast import fast_layers
from lab.files import held
from lab.graphs import Replay, replayable
from lab.interrupts import Interrupted, Stop, deferred
from lab.loaders import (
    Rest,
    all_random_states,
    batch_shape,
    batches_of,
    checked_batch,
    describe_loader,
    loader_kept,
    random_states_kept,
    repeats_itself,
    rewind,
    seed_of,
)
from lab.machine import keep_freed_memory, machine, matmul_rate, number_format, pick_device
from lab.metrics import accuracy_of, right
from lab.optim import is_weight
from lab.progress import progress_stream
from lab.recipes import Recipe
from lab.records import History, describe_network, weights_digest
from lab.tuning import FEW_STEPS, LAYOUTS, Format, Threads, fastest_format, known_format, threads_for

Batches = Iterable[tuple[Tensor, Tensor]]

# ---- One epoch -------------------------------------------------------------------------------------


def train(
    net: nn.Module,
    loader: Batches,
    optimizer: torch.optim.Optimizer,
    *,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    l1: float = 0.0,
    l2: float = 0.0,
    before_step: Callable[[int], float | None] | None = None,
    after_step: Callable[[], object] | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    layout: torch.memory_format = torch.channels_last,
    scaler: torch.amp.GradScaler | None = None,
    done: Partial | None = None,
    replay: Replay | None = None,
) -> tuple[float, float]:
    """Train for one epoch; returns the mean loss and the accuracy, in [0, 1], over the images seen.

    Labels are classes (N,), or probabilities (N, classes), of which the likeliest counts. loss: maps logits
    (N, classes) and labels to a mean. l1, l2: penalties, times the sum of |w| or w ** 2 over the weights,
    not biases or norms; the loss returned does not include them. before_step: called with the index of each
    batch before its step, to set learning rates, for example; if it returns a number, the images are
    resized by this factor on their sides. after_step: called after each step, before the next batch is
    drawn. device: None is the device of `net`. dtype: what convolutions
    compute in; None finds the faster format for this network by timing, once a process (`fastest_format`).
    layout: of the images in memory. scaler: scales the loss for float16, so that small gradients do not
    vanish, and skips a step that overflows; None makes one if the format is float16. done: the part of the
    epoch that was trained before, of which `loader` yields the rest; it is updated after each step. replay:
    records the steps on an NVIDIA GPU and replays them, for a network and a loss that compute the same for
    every batch; one for all epochs of a run.

    Raises Diverged, before the step, if the loss is not finite (on a GPU, after up to CHECK_EVERY steps).

    All parts of the network are in training mode during the epoch; their modes are restored afterwards. As
    any training does, this draws from torch's random state and advances the loader's epoch. From the first
    call on, this process keeps the memory that it frees (`keep_freed_memory`).

    Raises ValueError for a wrong argument and, before the step, for a batch of another kind
    (`checked_batch`), for labels outside the classes of the logits and for rows that are not probabilities.
    The values of labels that are on a GPU are checked in the first batch only: reading them makes it wait.
    """
    _check_call(net, layout)
    check_type("optimizer", optimizer, torch.optim.Optimizer, "a torch.optim.Optimizer")
    l1, l2 = as_number("l1", l1, 0), as_number("l2", l2, 0)
    device = _device_of(net, device)
    dtype = None if dtype is None else number_format(device, dtype)
    keep_freed_memory()
    done = done or Partial.start(device)
    finite = _Finite(device, optimizer)
    step = _Step(net, optimizer, loss, l1, l2, device, dtype, scaler)
    with _modes_kept(net), fast_layers(net, device), _no_autocast(device):
        net.train()
        for index, batch in enumerate(loader, done.batches):
            images, labels = checked_batch(batch)
            if step.dtype is None:
                step.dtype = _training_format(net, loader, images.shape, device)
            step.scaler = step.scaler or grad_scaler(device, step.dtype)
            factor = before_step(index) if before_step else None
            images = _resized(_moved(images, device, layout), factor)
            if replay is not None and index and labels.device.type == device.type:
                total, value, correct = replay(step.whole, images, _targets(labels))
                finite.check(total.clone(), index)
            else:
                value, correct = step.checked(images, labels, finite, index)
            done.loss += value * len(labels)
            done.correct += correct
            done.images += len(labels)
            done.batches += 1
            if after_step is not None:
                after_step()
        finite.check_all()
    if done.images == 0:
        raise ValueError("the loader yields no batch")
    return done.loss.item() / done.images, done.correct.item() / done.images


@dataclass
class _Step:
    """A step of training, in its parts."""

    net: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Callable[[Tensor, Tensor], Tensor]
    l1: float
    l2: float
    device: torch.device
    dtype: torch.dtype | None
    scaler: torch.amp.GradScaler | None

    def __post_init__(self):
        penalized = self.l1 or self.l2
        self.weights = [p for p in self.net.parameters() if is_weight(p)] if penalized else []

    def logits(self, images: Tensor, labels: Tensor) -> Tensor:
        with _autocast(self.device, self.dtype):
            logits = self.net(images)
        return _checked_logits(logits, labels)

    def losses(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The loss with the penalties, and without."""
        value = total = self.loss(logits, targets)
        if self.l1:
            total = total + self.l1 * sum(weight.abs().sum() for weight in self.weights)
        if self.l2:
            total = total + self.l2 * sum(weight.square().sum() for weight in self.weights)
        return total, value

    def update(self, total: Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        if self.scaler is None:
            total.backward()
            self.optimizer.step()
        else:
            self.scaler.scale(total).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()

    def checked(self, images: Tensor, labels: Tensor, finite: _Finite, index: int) -> tuple[Tensor, Tensor]:
        """The step, with a look at labels and losses. Returns the loss, and how many images were right."""
        logits = self.logits(images, labels)
        if index == 0 or labels.device.type == "cpu":
            check_label_values(labels, logits.shape[1])
        targets = _targets(labels).to(self.device, non_blocking=True)
        total, value = self.losses(logits, targets)
        finite.check(total.detach(), index)
        self.update(total)
        return value.detach(), _correct(logits, targets)

    def whole(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The step, without looking at its numbers. Returns the two losses, and how many were right."""
        logits = self.logits(images, targets)
        total, value = self.losses(logits, targets)
        self.update(total)
        return total.detach(), value.detach(), _correct(logits, targets)


def _correct(logits: Tensor, targets: Tensor) -> Tensor:
    classes = targets if targets.ndim == 1 else targets.argmax(1)
    return (logits.detach().argmax(1) == classes).sum()


CHECK_EVERY = 50  # steps on a GPU, which would otherwise wait for the number of every step


class Diverged(ArithmeticError):
    """A loss or a weight is not finite.

    `step` is its index in the epoch, if it is known. `fit` adds `epoch`, and `history`, up to it.
    """

    def __init__(self, what: str, loss: float, lr: float, step: int | None = None):
        """what: "loss", or the part whose loss it is. lr: the learning rate at that step."""
        super().__init__(what, loss, lr, step)
        self.what, self.loss, self.lr, self.step = what, loss, lr, step
        self.epoch: int | None = None
        self.history: History | None = None

    def __str__(self) -> str:
        places = [] if self.step is None else [f"step {self.step + 1}"]
        places += [] if self.epoch is None else [f"epoch {self.epoch + 1}"]
        return (
            f"the {self.what} is {self.loss} in {' of '.join(places)}, with a learning rate of "
            f"{self.lr:.3g}; try a lower learning rate, a longer warmup, or float32, and look for images and "
            "labels that are not finite"
        )


class _Finite:
    """Checks that losses are finite: each at once on a CPU, several at a time elsewhere."""

    def __init__(self, device: torch.device, optimizer: torch.optim.Optimizer):
        self.every = 1 if device.type == "cpu" else CHECK_EVERY
        self.optimizer = optimizer
        self.waiting: list[tuple[Tensor, int]] = []

    def check(self, loss: Tensor, step: int) -> None:
        self.waiting.append((loss, step))
        if len(self.waiting) >= self.every:
            self.check_all()

    def check_all(self) -> None:
        """Raises Diverged for the first loss that is not finite."""
        losses = torch.stack([loss for loss, _ in self.waiting]).tolist() if self.waiting else []
        for loss, (_, step) in zip(losses, self.waiting, strict=True):
            if not math.isfinite(loss):
                raise Diverged("loss", loss, learning_rate(self.optimizer), step)
        self.waiting.clear()


def learning_rate(optimizer: torch.optim.Optimizer) -> float:
    """The rate of the first group of parameters, which is the one that a recipe names."""
    return float(optimizer.param_groups[0]["lr"])


def grad_scaler(device: torch.device, dtype: torch.dtype) -> torch.amp.GradScaler | None:
    """Torch's loss scaling for float16, whose numbers end at 6e-8; None for the other formats."""
    return torch.amp.GradScaler(device.type) if dtype == torch.float16 else None


def evaluate(
    net: nn.Module,
    loader: Batches,
    *,
    flips: bool = False,
    sure: float = 1.0,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    layout: torch.memory_format = torch.channels_last,
) -> tuple[Tensor, Tensor]:
    """The float logits (N, classes) and the labels of every image, in the loader's order, on the CPU.

    Labels are classes (N,) or probabilities (N, classes), as the loader yields them. flips: average the
    logits of each image and its mirror image, or, with `sure` below 1, only of images whose likeliest class
    has a smaller probability than that. device: None is the device of `net`. dtype: None is the format
    found for training such a network, or the hardware's. layout: of the images in memory.
    The modes of the network, the random states and the loader's epoch are as before at the end. Raises
    ValueError for a wrong argument, for a batch of another kind (`checked_batch`), and if the loader yields
    none. The values of the labels are not checked: images without a label can have any.
    """
    _check_call(net, layout)
    as_switch("flips", flips)
    sure = as_number("sure", sure, 0, 1)
    device = _device_of(net, device)
    dtype = known_format(net, device) if dtype is None else number_format(device, dtype)
    logits, labels = [], []
    with random_states_kept(device), loader_kept(loader), _modes_kept(net), fast_layers(net, device):
        net.eval()
        # no_grad, not inference_mode: tensors that a loader caches here must remain usable for training.
        with torch.no_grad(), _no_autocast(device), _autocast(device, dtype):
            for batch in loader:
                images, batch_labels = checked_batch(batch)
                images = _moved(images, device, layout)
                batch_logits = _checked_logits(net(images), batch_labels)
                if flips and sure == 1:
                    batch_logits = (batch_logits + net(images.flip(-1)).float()) / 2
                elif flips and (unsure := batch_logits.softmax(1).amax(1) < sure).any():
                    both = (batch_logits[unsure] + net(images[unsure].flip(-1)).float()) / 2
                    # Not in place: the logits may be a tensor that the network still needs.
                    batch_logits = batch_logits.index_put((unsure,), both)
                logits.append(batch_logits)
                labels.append(_targets(batch_labels))
    if not logits:
        raise ValueError("the loader yields no batch")
    return torch.cat(logits).cpu(), torch.cat(labels).cpu()


def distilled(
    loader: Loader,
    teacher: nn.Module,
    temperature: float = 1.0,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> Loader:
    """A copy of `loader` with the teacher's probabilities (N, classes) as labels.

    They are the softmax of its logits, divided by `temperature`, averaged over each image and its mirror
    image, without other augmentation: a single pass over the images. device: as for `evaluate`. dtype: None
    is the hardware's (`number_format`), so that the labels do not depend on what was timed before. Raises
    ValueError for a wrong argument, and for a teacher that gives NaN or infinite logits.

    Source: Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network", arXiv 1503.02531.
    """
    if not isinstance(loader, Loader):
        raise ValueError(f"loader: expected a Loader of this project, not {type(loader).__name__}")
    check_type("teacher", teacher, nn.Module, "a torch.nn.Module")
    temperature = as_number("temperature", temperature, 0, above=True)
    plain = Loader(loader.images, loader.labels, batch_size=500, mean=loader.mean, std=loader.std)
    dtype = number_format(_device_of(teacher, device), dtype)
    logits, _ = evaluate(teacher, plain, flips=True, device=device, dtype=dtype)
    if not logits.isfinite().all():
        wrong = int((~logits.isfinite()).any(1).sum())
        raise ValueError(f"the teacher gives NaN or infinite logits for {wrong} of {len(logits)} images")
    copied = copy.copy(loader)
    copied.labels = (logits / temperature).softmax(1).to(loader.labels.device)
    # The last bits of the probabilities depend on the processor; what they come from does not.
    copied.source = {
        "digest": loader.digest(),
        "teacher": weights_digest(teacher),
        "temperature": temperature,
    }
    return copied


def test(
    net: nn.Module,
    loader: Batches,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    layout: torch.memory_format = torch.channels_last,
) -> tuple[float, float]:
    """Mean cross-entropy and accuracy, in [0, 1], over the images of `loader`; trains nothing.

    Labels are classes (N,) or probabilities (N, classes), of which the likeliest counts. device, dtype,
    layout: as for `evaluate`. An image with a NaN among its logits counts as wrong. Raises ValueError as
    `evaluate` does, for labels outside the classes of the logits, and for rows that are not probabilities.
    """
    logits, labels = _tested(net, loader, device=device, dtype=dtype, layout=layout)
    return F.cross_entropy(logits, labels).item(), accuracy_of(logits, labels)


def _tested(net: nn.Module, loader: Batches, **compute) -> tuple[Tensor, Tensor]:
    logits, labels = evaluate(net, loader, **compute)
    check_label_values(labels, logits.shape[1])
    return logits, labels


def _device_of(net: nn.Module, device: str | torch.device | None) -> torch.device:
    if device is not None:
        return pick_device(device)
    return next((parameter.device for parameter in net.parameters()), torch.device("cpu"))


def _training_format(net, loader, shape: torch.Size, device: torch.device) -> torch.dtype:
    try:
        batches = len(loader)
    except TypeError:  # it has no length, or does not know it
        batches = 0
    if batches < FEW_STEPS:
        return known_format(net, device)
    return fastest_format(net, shape, device, (torch.channels_last,)).format.dtype


def _moved(images: Tensor, device: torch.device, layout: torch.memory_format) -> Tensor:
    layout = layout if images.ndim == 4 else torch.preserve_format
    return images.to(device, non_blocking=True, memory_format=layout)


def _targets(labels: Tensor) -> Tensor:
    """Labels as cross_entropy takes them: classes (N,) in int64, or probabilities (N, classes) in float."""
    if labels.ndim == 1:
        return labels.long()
    return labels if labels.is_floating_point() else labels.float()


def _resized(images: Tensor, factor: float | None) -> Tensor:
    """Images whose sides are `factor` times as long, in whole pixels; their shape stays."""
    if factor is None:
        return images
    size = [max(1, round(factor * side)) for side in images.shape[2:]]
    if size == [*images.shape[2:]]:
        return images
    return F.interpolate(images, size=size, mode="bilinear", antialias=True)


def _autocast(device: torch.device, dtype: torch.dtype | None):
    if dtype in (None, torch.float32):
        return nullcontext()
    # Without the cache of cast weights: inside another autocast context it would outlive the step, and the
    # network would go on computing with the weights as they were.
    return torch.autocast(device.type, dtype, cache_enabled=False)


def _no_autocast(device: torch.device):
    """Leaves the number format to us, also if the caller has turned another one on."""
    return torch.autocast(device.type, enabled=False)


@contextmanager
def _modes_kept(net: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in net.modules()}
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _check_call(net: nn.Module, layout: torch.memory_format) -> None:
    check_type("net", net, nn.Module, "a torch.nn.Module")
    check_type("layout", layout, torch.memory_format, "a torch.memory_format, such as torch.channels_last")


def _checked_logits(logits: Tensor, labels: Tensor) -> Tensor:
    """The logits in float32. Raises ValueError unless they are (N, classes), for as many images as labels."""
    count = len(labels)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != count:
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"the network gave {found} for {count} images: expected logits ({count}, classes)")
    return logits.float()


# ---- A whole run -----------------------------------------------------------------------------------


def fit(
    net: nn.Module,
    train_loader: Batches,
    test_loader: Batches | None,
    recipe: Recipe,
    *,
    seed: int | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    layout: str | None = None,
    threads: int | None = None,
    checkpoint: str | Path | None = None,
    resume: bool = True,
    progress: bool = True,
    measure_peak: bool = False,
    on_epoch: Callable[[History], object] | None = None,
    name: str = "",
) -> History:
    """Train `net` by `recipe`, testing after every epoch, and return the History; `net` is changed.

    train_loader: needs a len(). Its batch size and augmentation count, and go into the record, whatever
    the recipe says of them. test_loader: None to test nothing; if it has an attribute `part` that is
    "validation", its figures are recorded as those of held-out images. seed: any integer, for the data's
    order, the augmentation and dropout; None is the loader's own, or 0. The weights are the network's own,
    so seed torch before making it. device: None picks CUDA or MPS if available. dtype, layout: what
    convolutions compute in, and a name in LAYOUTS; without a dtype, they are those of the checkpoint, or what
    `fastest_format` finds by timing; with one, the layout is by default channels_last. threads: None is
    torch's number, or fewer while the machine is busy (`Threads`); results are equal to the last bit for a
    given format and a fixed number. checkpoint: a file written after an epoch (if that takes at most
    SAVE_SHARE of the time), in a long epoch every SAVE_EVERY seconds, when the run is stopped, and at its
    end; if it is there and `resume` is set, the run resumes from it and ends as if it had never stopped.
    progress: show a bar.
    measure_peak: time a large matrix product after every epoch, for `History.peak_tflop`. on_epoch: called
    with a copy of the History after every epoch that this call trains, once it is tested and before it is
    saved; so after a kill it may see an epoch twice, and misses none. If it raises anything, all that was
    trained is saved first, and the same call goes on with the next epoch. Its time is in no figure. name: of
    the experiment, shown in the bar and kept in the History; the network's class if empty.

    Afterwards the network is on `device`, in its own memory format and modes, without gradients; random
    states and loaders are as they were, except that persistent workers start anew every epoch.

    Raises ValueError before the first step if something cannot work or be saved, or if the checkpoint is
    from another run, that is if anything differs that `History.identity` lists (the file is not changed).
    Warns if that run began from other weights, if it is seen that resuming cannot be exact, and if the
    newest checkpoint is damaged, so that the run resumes from the one before it.

    Raises Interrupted, which is a KeyboardInterrupt, if it is stopped (Ctrl-C, Jupyter's stop button,
    SIGTERM): after the step, with everything saved, the History in the error and the network as it is.
    Raises Diverged if a loss or a weight is not finite; OSError if another process uses the checkpoint; and
    NotSaved, an OSError, if the end of the run could not be saved, as on a full disk.
    """
    check_type("net", net, nn.Module, "a torch.nn.Module")
    for switch, value in (("resume", resume), ("progress", progress), ("measure_peak", measure_peak)):
        as_switch(switch, value)
    _check(recipe, train_loader, test_loader, name, layout, threads)
    if on_epoch is not None and not callable(on_epoch):
        raise ValueError(f"on_epoch={on_epoch!r} must be a callable that takes a History, or None")
    device = pick_device(device)
    seed, batches = seed_of(seed, train_loader), batches_of(train_loader)
    alone = nullcontext() if checkpoint is None else held(checkpoint)
    with alone, random_states_kept(device), loader_kept(train_loader), _modes_kept(net), deferred() as stop:
        saved = read_checkpoint(checkpoint) if checkpoint is not None and resume else None
        new, shape = _new_history(net, train_loader, test_loader, recipe, seed, name, device)
        form = {"shape": shape, "steps": recipe.epochs * batches, "threads": threads}
        chosen = _format(net, new, device, dtype, layout, saved, **form)
        with _laid_out(net, device, chosen.layout), threads_for(net, device, chosen, **form) as pace:
            new.machine["threads"] = pace.most
            optimizer, scaler = recipe.make_optimizer(net), grad_scaler(device, chosen.dtype)
            schedule = _Schedule(recipe, optimizer, batches, pace)  # while the rates are at their peak
            store = None if checkpoint is None else Checkpoint(checkpoint, net, optimizer, scaler)
            history, begun = _resumed(store, saved, new, net, train_loader)
            begun = begun and begun.to(device)
            compute = {"device": device, **chosen._asdict()}
            options = {"l1": recipe.l1, "l2": recipe.l2, "scaler": scaler} | compute
            if scaler is None and replayable(net, device):
                options["replay"] = Replay(optimizer)
            then = {"resume": resume, "on_epoch": on_epoch, "options": options}
            training = _Training(net, train_loader, recipe, history, schedule, store, stop, **then)
            with schedule.bar(history, begun, progress) as bar:
                for epoch in range(history.epochs, recipe.epochs):
                    training.epoch(epoch, begun, bar)
                    begun = None
                    if measure_peak:
                        history.gflops.append(matmul_rate(device, chosen.dtype))
                    if test_loader is not None:
                        _test_epoch(history, net, test_loader, **compute)
                    bar.set_postfix(_shown(history) | schedule.unused_threads())
                    training.end_epoch()
            if test_loader is not None:
                _test_flips(history, net, test_loader, **compute)
            if store is not None:
                store.finish(history)
            training.stop_if_asked(0)
    return history


def _format(
    net,
    new: History,
    device,
    dtype,
    layout: str | None,
    saved: Saved | None,
    *,
    shape,
    steps: int,
    threads: int | None,
) -> Format:
    """The number format and layout of a run. `new` gets them, and the times by which they were chosen."""
    before = {} if saved is None else saved.history.machine
    if dtype is None and before.get("dtype") in ("float32", "bfloat16", "float16"):
        dtype = getattr(torch, before["dtype"])
        layout = layout or (before["layout"] if before.get("layout") in LAYOUTS else None)
    layouts = LAYOUTS if layout is None else {layout: LAYOUTS[layout]}
    if dtype is not None:
        chosen = Format(number_format(device, dtype), next(iter(layouts.values())))
    elif steps < FEW_STEPS:
        chosen = Format(known_format(net, device), next(iter(layouts.values())))
    else:
        found = fastest_format(net, shape, device, tuple(layouts.values()), threads)
        chosen, new.timed = found.format, dict(found.microseconds)
    new.machine |= dict(zip(("dtype", "layout"), str(chosen).split(), strict=True))
    return chosen


@dataclass
class _Training:
    """The epochs of a run, and how they are saved and stopped: between two steps."""

    net: nn.Module
    loader: Batches
    recipe: Recipe
    history: History
    schedule: _Schedule
    store: Checkpoint | None
    stop: Stop
    resume: bool  # whether the same call goes on from the checkpoint
    on_epoch: Callable[[History], object] | None
    options: dict[str, Any]  # for `train`

    def epoch(self, epoch: int, begun: Partial | None, bar: tqdm) -> None:
        """Train the epoch, or the rest of it if it was begun, and add its figures to the History."""
        rewind(self.loader, self.history.seed, epoch, self.net)
        done = begun or Partial.start(self.options["device"])
        earlier, began = done.seconds, time.perf_counter()

        def after_step() -> None:
            done.seconds = earlier + time.perf_counter() - began
            if self.stop.number or (self.store is not None and self.store.due):
                self._check_weights(done.batches - 1)
                self._save(done)
                self.stop_if_asked(done.batches)

        try:
            loss, accuracy = train(
                self.net,
                Rest(self.loader, self.net, done.batches, done.states) if done.batches else self.loader,
                self.schedule.optimizer,
                loss=_loss(self.recipe),
                before_step=self.schedule.before_steps_of(epoch, done.batches, bar),
                after_step=after_step,
                done=done,
                **self.options,
            )
        except Diverged as error:
            error.epoch, error.history = epoch, self.history
            raise
        except Exception as error:
            # Ctrl-C also reaches the worker processes of a loader, and ends them.
            if self.stop.number:
                raise self._interrupted(done.batches) from error
            raise
        self.history.seconds.append(earlier + time.perf_counter() - began)
        self.history.train_loss.append(loss)
        self.history.train_accuracy.append(accuracy)
        self.history.lr.append(learning_rate(self.schedule.optimizer))
        self.schedule.end_epoch(self.history)

    def end_epoch(self) -> None:
        """Report and save an epoch that has gone well, and stop the run if that was asked for meanwhile."""
        try:
            self._check_figures()
        except Diverged as error:
            self.history.drop_epoch()
            error.epoch, error.history = self.history.epochs, self.history
            raise
        if self.on_epoch is not None:
            self._report(self.on_epoch)
        last = self.history.epochs == self.recipe.epochs
        if self.store is not None and (last or self.stop.number or self.store.cheap):
            self.store.save(self.history)
        self.stop_if_asked(0)

    def _report(self, on_epoch: Callable[[History], object]) -> None:
        try:
            on_epoch(copy.deepcopy(self.history))  # whatever is done to it, the record stays right
        except BaseException:  # also the second Ctrl-C
            if self.store is not None:
                self.store.save(self.history)
                self.store.finish(self.history)
            raise

    def _check_figures(self) -> None:
        if self.history.loss and not math.isfinite(self.history.loss[-1]):
            raise Diverged(f"{self.history.evaluated_on} loss", self.history.loss[-1], self.history.lr[-1])
        self._check_weights(None)

    def _check_weights(self, step: int | None) -> None:
        """Raise Diverged if a weight is not finite: such a network must not replace a good one."""
        if not all_finite(self.net.parameters()):
            worst = sum(float(weight.detach().abs().sum()) for weight in self.net.parameters())  # inf or nan
            raise Diverged("sum of the weights", worst, learning_rate(self.schedule.optimizer), step)

    def _save(self, done: Partial) -> None:
        if self.store is not None:
            done.threads = sorted(self.schedule.threads.used)
            done.states = all_random_states(self.loader, self.net, self.options["device"])
            self.store.save(self.history, done)

    def stop_if_asked(self, batches: int) -> None:
        """Raise Interrupted if a signal asked for it. batches: those of the epoch that was begun."""
        if self.stop.number:
            raise self._interrupted(batches)

    def _interrupted(self, batches: int) -> Interrupted:
        place = f"after {self.history.epochs} of {self.recipe.epochs} epochs"
        if batches:
            place += f" and {batches} of {self.schedule.steps} steps"
        end = "nothing is saved, since it has no checkpoint"
        if self.store is not None:
            saved = self.store.failure is None
            call = "the same call goes on" if self.resume else "with resume=True (without --fresh) it goes on"
            end = f"{call} from {self.store.path}" if saved else str(self.store.failure)
        return Interrupted(f"{self.history.name} stopped {place}; {end}", self.history, self.stop.number)


def _loss(recipe: Recipe) -> Callable[[Tensor, Tensor], Tensor]:
    return partial(F.cross_entropy, label_smoothing=recipe.label_smoothing)


def _test_epoch(history: History, net, loader, **compute) -> None:
    logits, labels = _tested(net, loader, **compute)
    history.loss.append(F.cross_entropy(logits, labels).item())
    history.accuracy.append(accuracy_of(logits, labels))
    history.set_rights(right(logits, labels))


def _test_flips(history: History, net, loader, **compute) -> None:
    accuracy = accuracy_of(*evaluate(net, loader, flips=True, **compute))
    setattr(history, f"{history.evaluated_on}_accuracy_flips", accuracy)


def _check(recipe: Recipe, train_loader, test_loader, name: str, layout: str | None, threads) -> None:
    if not isinstance(recipe, Recipe):
        raise ValueError(f"recipe={recipe!r} must be a Recipe; RECIPES has the named ones")
    if not isinstance(name, str):
        raise ValueError(f"name={name!r} must be a string")
    if layout not in (None, *LAYOUTS):
        raise ValueError(f"unknown layout {layout!r}; choose one of {', '.join(map(repr, LAYOUTS))}")
    if threads is not None:
        as_integer("threads", threads, 1, MOST_WORKERS)
    if torch.is_inference_mode_enabled() or not torch.is_grad_enabled():
        raise ValueError(
            "training needs gradients: call fit outside torch.no_grad() and torch.inference_mode()"
        )
    if getattr(test_loader, "part", "") == "train":
        raise ValueError("test_loader yields training images: give test images or held-out images, or None")
    source = getattr(train_loader, "source", None) or {}
    if recipe.teacher is not None and source.get("temperature") != recipe.temperature:
        found = f"temperature={source['temperature']}" if "temperature" in source else "other labels"
        raise ValueError(
            f"the recipe has a teacher and temperature={recipe.temperature}, the loader {found}; give "
            "the loader distilled(loader, net, recipe.temperature), with `net` trained by recipe.teacher, or "
            "the recipe dataclasses.replace(recipe, teacher=None)"
        )


def _new_history(
    net, train_loader, test_loader, recipe, seed, name, device
) -> tuple[History, tuple[int, ...]]:
    """What the run is, before its first epoch, apart from the number format; and the shape of a batch."""
    part = "validation" if getattr(test_loader, "part", "") == "validation" else "test"
    data = {"train": describe_loader(train_loader, seed)}
    shape = batch_shape(train_loader, data["train"].pop("shape", ()))
    if test_loader is not None:
        data[part] = describe_loader(test_loader, seed)
        data[part].pop("shape", None)
    network, dataset = describe_network(net), getattr(train_loader, "name", "")
    # What is really done. Of a foreign loader the augmentation is not known, and of a foreign network that it
    # was built with the recipe's options.
    config = network["config"] or {}
    done = {
        "batch_size": data["train"]["batch_size"],
        "augment": data["train"].get("augment"),
        "temperature": data["train"].get("temperature", recipe.temperature),
        "net": {option: config[option] for option in recipe.net if option in config},
    }
    history = History(
        name=name or type(net).__name__,
        dataset=dataset if dataset and isinstance(dataset, str) else type(train_loader).__name__,
        parameters=sum(parameter.numel() for parameter in net.parameters()),
        recipe=recipe.to_dict() | done,
        seed=seed,
        machine=machine(device),
        evaluated_on=part,
        data=data,
        network=network,
        start=weights_digest(net),
    )
    return history, shape


def _resumed(
    store: Checkpoint | None, saved: Saved | None, new: History, net: nn.Module, train_loader
) -> tuple[History, Partial | None]:
    """The History to continue, and the epoch that was begun; checks first that the run can be saved."""
    history, begun = new, None
    if store is not None and saved is not None:
        history, begun = saved.history, saved.partial
        if difference := history.difference(new):
            advice = _advice(difference, history)
            raise ValueError(f"checkpoint {store.path} is from another run, with {difference}; {advice}")
        store.restore(saved)
        _note_machine(history, new)
        if history.start != new.start:
            warnings.warn(
                f"{store.path} began from other weights than this network has, and its own replace them; to "
                "begin from the same ones, seed torch before making the network; for another run, give "
                "another file",
                stacklevel=3,
            )
    if store is None or history.epochs == history.recipe["epochs"]:
        return history, begun
    store.rehearse(history)
    reasons = []
    if not repeats_itself(train_loader, new.seed, new.data["train"]):
        kind = type(train_loader).__name__
        reasons.append(f"{kind} does not repeat its batches when torch, NumPy and random are seeded alike")
    if unsaved := [name for name, _ in net.named_buffers() if name not in net.state_dict()]:
        reasons.append(f"the network's buffers {unsaved} are not in its state_dict")
    if reasons:
        warnings.warn(f"a resumed run will not equal an unbroken one: {'; '.join(reasons)}", stacklevel=3)
    return history, begun


def _advice(difference: str, history: History) -> str:
    if not difference.startswith("dtype"):
        return ADVICE
    dtype = history.machine.get("dtype")
    return f"to go on, give dtype=torch.{dtype} (--dtype {dtype}); {ADVICE}"


def _note_machine(history: History, new: History) -> None:
    """Record on what a resumed run goes on, and say so if that changes its result."""
    before = history.machine
    if len(history.threads) < history.epochs:  # made before the numbers were recorded; they were fixed then
        history.threads = [[before["threads"]]] * history.epochs
    changed = {name: value for name, value in new.machine.items() if before.get(name, value) != value}
    if not changed or history.epochs == history.recipe["epochs"]:
        return
    history.machine.setdefault("continued_on", []).append(changed)
    if "threads" in changed:
        first, now = before["threads"], changed["threads"]
        warnings.warn(
            f"{history.name} was begun with {first} threads and goes on with {now}: its weights will differ "
            "in the last bits from those of an unbroken run; to avoid that, give "
            f"threads={first} (--threads {first})",
            stacklevel=4,
        )


@contextmanager
def _laid_out(net: nn.Module, device: torch.device, layout: torch.memory_format) -> Iterator[None]:
    """The network on `device` in the layout; at the end in its own memory, without gradients."""
    before = [(parameter, parameter.data) for parameter in net.parameters() if parameter.ndim == 4]
    strides = {name: buffer.stride() for name, buffer in net.named_buffers() if buffer.ndim == 4}
    net.to(device).to(memory_format=layout)
    try:
        yield
    finally:
        net.zero_grad(set_to_none=True)  # they have the other memory format
        for parameter, data in before:
            same = data.device == parameter.device  # then the same memory, which others may share
            parameter.data = data.copy_(parameter.data) if same else _strided(parameter.data, data.stride())
        for name, buffer in net.named_buffers():
            if name in strides:
                buffer.data = _strided(buffer.data, strides[name])


def _strided(tensor: Tensor, stride: tuple[int, ...]) -> Tensor:
    return torch.empty_strided(tensor.shape, stride, dtype=tensor.dtype, device=tensor.device).copy_(tensor)


class _Schedule:
    """Sets learning rates, image sizes and threads before each step, and counts the steps of an epoch."""

    def __init__(self, recipe: Recipe, optimizer: torch.optim.Optimizer, steps: int, threads: Threads):
        self.recipe, self.optimizer, self.steps, self.threads = recipe, optimizer, steps, threads
        self.peak = [group["lr"] for group in optimizer.param_groups]
        self.taken = 0  # steps of this epoch
        self.name = ""

    def bar(self, history: History, begun: Partial | None, show: bool) -> tqdm:
        self.name = history.name
        if begun is not None:
            self.threads.used.update(begun.threads)
        stream = progress_stream()
        # Plain text needs no widgets, so a saved notebook stays valid.
        return tqdm(
            total=self.recipe.epochs * self.steps,
            initial=history.epochs * self.steps + (0 if begun is None else begun.batches),
            disable=not show or stream is None,
            file=stream,
            mininterval=0.5 if stream and stream.isatty() else 2,  # seconds; a notebook keeps all
        )

    def before_steps_of(self, epoch: int, taken: int, bar: tqdm) -> Callable[[int], float | None]:
        """The function that `train` calls before each step of `epoch`, of which `taken` were taken before."""
        self.taken = taken
        bar.set_description(f"{self.name} epoch {epoch + 1}/{self.recipe.epochs}")

        def before_step(index: int) -> float | None:
            # A loader with more batches than its len() stays at the end of the epoch.
            done = (epoch * self.steps + min(index, self.steps)) / (self.recipe.epochs * self.steps)
            for group, lr in zip(self.optimizer.param_groups, self.peak, strict=True):
                group["lr"] = lr * self.recipe.lr_factor(done)
            self.taken = index + 1
            bar.update()
            scale = self.recipe.image_scale(done)
            before = self.threads.count
            self.threads.before_step(1.0 if scale is None else scale)
            if self.threads.count != before:
                bar.set_postfix(self.unused_threads())
            return scale

        return before_step

    def unused_threads(self) -> dict[str, str]:
        """What the bar says of the number of threads, if it is smaller than it could be."""
        used, most = self.threads.count, self.threads.most
        return {"threads": f"{used} of {most}"} if used < most else {}

    def end_epoch(self, history: History) -> None:
        """Record the threads used, and warn if the loader did not yield as many batches as it said."""
        self.threads.pause()
        history.threads.append(sorted(self.threads.used))
        self.threads.used = set()
        if self.taken != self.steps:
            warnings.warn(
                f"the loader's len() is {self.steps}, but it yielded {self.taken} batches; learning rate and "
                "image size followed its len()",
                stacklevel=3,
            )


def _shown(history: History) -> dict[str, str]:
    """The last epoch's figures, as the bar shows them."""
    shown = {"train loss": f"{history.train_loss[-1]:.3f}", "accuracy": f"{history.train_accuracy[-1]:.1%}"}
    if history.loss:
        part = history.evaluated_on
        shown[f"{part} loss"] = f"{history.loss[-1]:.3f}"
        shown[f"{part} accuracy"] = f"{history.accuracy[-1]:.1%}"
    return shown
