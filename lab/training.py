"""The loops: `train` and `test` an epoch, `evaluate` every image, `fit` a whole run.

They take any `nn.Module` that maps images to logits, and any iterable of (images, labels).
"""

from __future__ import annotations

import copy
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from lab.checks import as_integer, as_number, as_switch
from lab.data import Loader
from lab.fast import fast_layers
from lab.loaders import (
    batch_shape,
    batches_of,
    describe_loader,
    loader_kept,
    random_states_kept,
    repeats_itself,
    rewind,
    seed_of,
)
from lab.machine import keep_freed_memory, machine, matmul_rate, number_format, pick_device
from lab.metrics import accuracy_of
from lab.optim import is_weight
from lab.recipes import Recipe
from lab.records import Checkpoint, History, describe_network, weights_digest
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
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    layout: torch.memory_format = torch.channels_last,
    scaler: torch.amp.GradScaler | None = None,
) -> tuple[float, float]:
    """Train for one epoch; returns the mean loss and the accuracy, in [0, 1], over the images seen.

    Labels are classes (N,), or probabilities (N, classes), of which the likeliest counts. loss: maps logits
    (N, classes) and labels to a mean. l1, l2: penalties, times the sum of |w| or w ** 2 over the weights,
    not biases or norms; the loss returned does not include them. before_step: called with the index of each
    batch before its step, to set learning rates, for example; if it returns a number, the images are
    resized by this factor on their sides. device: None is the device of `net`. dtype: what convolutions
    compute in; None finds the faster format for this network by timing, once a process (`fastest_format`).
    layout: of the images in memory. scaler: scales the loss for float16, so that small gradients do not
    vanish, and skips a step that overflows; None makes one if the format is float16.

    All parts of the network are in training mode during the epoch; their modes are restored afterwards. As
    any training does, this draws from torch's random state and advances the loader's epoch. From the first
    call on, this process keeps the memory that it frees (`keep_freed_memory`).
    """
    device = _device_of(net, device)
    dtype = None if dtype is None else number_format(device, dtype)
    keep_freed_memory()
    weights = [p for p in net.parameters() if is_weight(p)] if l1 or l2 else []
    loss_sum = torch.zeros((), device=device)
    correct = torch.zeros((), device=device, dtype=torch.long)
    seen = 0
    with _modes_kept(net), fast_layers(net, device), _no_autocast(device):
        net.train()
        for index, (images, labels) in enumerate(loader):
            if dtype is None:
                dtype = _training_format(net, loader, images.shape, device)
            scaler = scaler or grad_scaler(device, dtype)
            factor = before_step(index) if before_step else None
            images = _resized(_moved(images, device, layout), factor)
            labels = _targets(labels).to(device, non_blocking=True)
            with _autocast(device, dtype):
                logits = net(images)
            logits = logits.float()
            value = loss(logits, labels)
            total = value
            if l1:
                total = total + l1 * sum(weight.abs().sum() for weight in weights)
            if l2:
                total = total + l2 * sum(weight.square().sum() for weight in weights)
            optimizer.zero_grad(set_to_none=True)
            _step(total, optimizer, scaler)
            # Summed on the device, so that nothing here waits for a GPU.
            loss_sum += value.detach() * len(labels)
            classes = labels if labels.ndim == 1 else labels.argmax(1)
            correct += (logits.detach().argmax(1) == classes).sum()
            seen += len(labels)
    if seen == 0:
        raise ValueError("the loader yields no batch")
    return loss_sum.item() / seen, correct.item() / seen


def grad_scaler(device: torch.device, dtype: torch.dtype) -> torch.amp.GradScaler | None:
    """Torch's loss scaling for float16, whose numbers end at 6e-8; None for the other formats."""
    return torch.amp.GradScaler(device.type) if dtype == torch.float16 else None


def _step(loss: Tensor, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler | None) -> None:
    if scaler is None:
        loss.backward()
        optimizer.step()
    else:
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()


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
    ValueError for a wrong `flips` or `sure`, and if the loader yields no batch.
    """
    as_switch("flips", flips)
    sure = as_number("sure", sure, 0, 1)
    device = _device_of(net, device)
    dtype = known_format(net, device) if dtype is None else number_format(device, dtype)
    logits, labels = [], []
    with random_states_kept(device), loader_kept(loader), _modes_kept(net), fast_layers(net, device):
        net.eval()
        # no_grad, not inference_mode: tensors that a loader caches here must remain usable for training.
        with torch.no_grad(), _no_autocast(device), _autocast(device, dtype):
            for batch, batch_labels in loader:
                images = _moved(batch, device, layout)
                batch_logits = net(images).float()
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
    is the hardware's (`number_format`), so that the labels do not depend on what was timed before.

    Source: Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network", arXiv 1503.02531.
    """
    if not isinstance(loader, Loader):
        raise ValueError(f"loader: expected a Loader of this project, not {type(loader).__name__}")
    plain = Loader(loader.images, loader.labels, batch_size=500)
    dtype = number_format(_device_of(teacher, device), dtype)
    logits, _ = evaluate(teacher, plain, flips=True, device=device, dtype=dtype)
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
    layout: as for `evaluate`.
    """
    logits, labels = evaluate(net, loader, device=device, dtype=dtype, layout=layout)
    return F.cross_entropy(logits, labels).item(), accuracy_of(logits, labels)


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


def _autocast(device: torch.device, dtype: torch.dtype):
    if dtype == torch.float32:
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
    given format and a fixed number. checkpoint: a file written after every epoch; if it is there and
    `resume` is set, the run resumes from it and ends as if it had never stopped. progress: show a bar.
    measure_peak: time a large matrix product after every epoch, for `History.peak_tflop`. name: of the
    experiment, shown in the bar and kept in the History; the network's class if empty.

    Afterwards the network is on `device`, in its own memory format and modes, without gradients; random
    states and loaders are as they were, except that persistent workers start anew every epoch.

    Raises ValueError before the first step if something cannot work or be saved, or if the checkpoint is
    from another run, that is if anything differs that `History.identity` lists (the file is not changed).
    Warns if that run began from other weights, or if it is seen that resuming cannot be exact.
    """
    _check(recipe, train_loader, test_loader, name, layout, threads)
    device = pick_device(device)
    seed, batches = seed_of(seed, train_loader), batches_of(train_loader)
    with random_states_kept(device), loader_kept(train_loader), _modes_kept(net):
        new, shape = _new_history(net, train_loader, test_loader, recipe, seed, name, device)
        form = {"shape": shape, "steps": recipe.epochs * batches, "threads": threads}
        chosen = _format(net, new, device, dtype, layout, checkpoint if resume else None, **form)
        with _laid_out(net, device, chosen.layout), threads_for(net, device, chosen, **form) as pace:
            new.machine["threads"] = pace.most
            compute = {"device": device, **chosen._asdict()}
            optimizer, scaler = recipe.make_optimizer(net), grad_scaler(device, chosen.dtype)
            schedule = _Schedule(recipe, optimizer, batches, pace)
            store = None if checkpoint is None else Checkpoint(checkpoint, net, optimizer, scaler)
            history = new if store is None else _resumed(store, new, net, train_loader, resume)
            with schedule.bar(history, progress) as bar:
                for epoch in range(history.epochs, recipe.epochs):
                    rewind(train_loader, seed, epoch, net)
                    options = {"before_step": schedule.before_steps_of(epoch, bar), "scaler": scaler}
                    _train_epoch(history, net, train_loader, optimizer, recipe, options | compute)
                    schedule.end_epoch(history)
                    if measure_peak:
                        history.gflops.append(matmul_rate(device, chosen.dtype))
                    if test_loader is not None:
                        _test_epoch(history, net, test_loader, **compute)
                    bar.set_postfix(_shown(history) | schedule.unused_threads())
                    if store is not None:
                        store.save(history)
            if test_loader is not None:
                _test_flips(history, net, test_loader, **compute)
    return history


def _format(
    net,
    new: History,
    device,
    dtype,
    layout: str | None,
    checkpoint,
    *,
    shape,
    steps: int,
    threads: int | None,
) -> Format:
    """The number format and layout of a run. `new` gets them, and the times by which they were chosen."""
    before = {} if checkpoint is None else Checkpoint.machine_in(checkpoint)
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


def _train_epoch(history: History, net, loader, optimizer, recipe: Recipe, options: dict) -> None:
    smoothed = partial(F.cross_entropy, label_smoothing=recipe.label_smoothing)
    began = time.perf_counter()
    loss, accuracy = train(net, loader, optimizer, loss=smoothed, l1=recipe.l1, l2=recipe.l2, **options)
    history.seconds.append(time.perf_counter() - began)
    history.train_loss.append(loss)
    history.train_accuracy.append(accuracy)
    history.lr.append(optimizer.param_groups[0]["lr"])


def _test_epoch(history: History, net, loader, **compute) -> None:
    loss, accuracy = test(net, loader, **compute)
    history.loss.append(loss)
    history.accuracy.append(accuracy)


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
        as_integer("threads", threads, 1)
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


def _resumed(store: Checkpoint, new: History, net: nn.Module, train_loader, resume: bool) -> History:
    """The History to continue, from the checkpoint or `new`; checks first that it can be saved."""
    history = store.resume(new) if resume else new
    before = history.machine
    changed = {name: value for name, value in new.machine.items() if before.get(name, value) != value}
    if len(history.threads) < history.epochs:  # made before the numbers were recorded; they were fixed then
        history.threads = [[before["threads"]]] * history.epochs
    if changed and history.epochs < history.recipe["epochs"]:
        history.machine.setdefault("continued_on", []).append(changed)
    if history.start != new.start:
        warnings.warn(
            f"{store.path} began from other weights than this network has, and its own replace them; to "
            "begin from the same ones, seed torch before making the network; for another run, give another "
            "file",
            stacklevel=3,
        )
    if history.epochs == history.recipe["epochs"]:
        return history
    store.rehearse(history)
    reasons = []
    if not repeats_itself(train_loader, new.seed, new.data["train"]):
        kind = type(train_loader).__name__
        reasons.append(f"{kind} does not repeat its batches when torch, NumPy and random are seeded alike")
    if unsaved := [name for name, _ in net.named_buffers() if name not in net.state_dict()]:
        reasons.append(f"the network's buffers {unsaved} are not in its state_dict")
    if reasons:
        warnings.warn(f"a resumed run will not equal an unbroken one: {'; '.join(reasons)}", stacklevel=3)
    return history


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

    def bar(self, history: History, show: bool) -> tqdm:
        self.name = history.name
        # Plain text needs no widgets, so a saved notebook stays valid; without a stderr nothing is shown.
        return tqdm(
            total=self.recipe.epochs * self.steps,
            initial=history.epochs * self.steps,
            disable=not show or sys.stderr is None,
            mininterval=0.5 if sys.stderr and sys.stderr.isatty() else 2,  # seconds; a notebook keeps all
        )

    def before_steps_of(self, epoch: int, bar: tqdm) -> Callable[[int], float | None]:
        """The function that `train` calls before each step of `epoch`."""
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
