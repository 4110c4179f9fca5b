"""The loops: `train` and `test` an epoch, `evaluate` every image, `fit` a whole run.

They take any `nn.Module` that maps images to logits and any iterable of (images, labels) with a len().
"""

from __future__ import annotations

import copy
import json
import math
import operator
import os
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from lab.data import Loader
from lab.machine import keep_freed_memory, machine, matmul_rate, number_format, pick_device
from lab.recipes import OPTIMIZERS, Recipe, differing, is_weight

# ---- One epoch -------------------------------------------------------------------------------------


def train(
    net: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor]],
    optimizer: torch.optim.Optimizer,
    *,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    l1: float = 0.0,
    l2: float = 0.0,
    before_step: Callable[[int], int | None] | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[float, float]:
    """Train for one epoch; returns the mean loss and the accuracy, in [0, 1], over the images seen.

    The labels of a batch are classes (N,), or probabilities (N, classes), the likeliest of which counts
    for the accuracy. loss: from logits (N, classes) and labels to a mean. l1, l2: penalties, times the
    sum of |w| or w ** 2 over the weights, not biases or norms; the loss returned is without them.
    before_step: called with the index of each batch before its step, to set learning rates, say; where
    it returns a number of pixels, the images are resized to it. device: None is the one that `net` is
    on. dtype: what convolutions compute in; None follows the processor. From the first call on, this
    process keeps the memory that it frees (`keep_freed_memory`).
    """
    device = _device_of(net, device)
    dtype = number_format(device, dtype)
    keep_freed_memory()
    weights = [p for p in net.parameters() if is_weight(p)] if l1 or l2 else []
    loss_sum = torch.zeros((), device=device)
    correct = torch.zeros((), device=device, dtype=torch.long)
    seen = 0
    net.train()
    for index, (images, labels) in enumerate(loader):
        size = before_step(index) if before_step else None
        images, labels = _moved(images, device), labels.to(device, non_blocking=True)
        if size is not None and images.shape[2:] != (size, size):
            images = F.interpolate(images, size=(size, size), mode="bilinear", antialias=True)
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
        if dtype == torch.float16:
            _backward_scaled(total, net)
        else:
            total.backward()
        optimizer.step()
        # Summed on the device: nothing here waits for a GPU.
        loss_sum += value.detach() * len(labels)
        classes = labels if labels.ndim == 1 else labels.argmax(1)
        correct += (logits.detach().argmax(1) == classes).sum()
        seen += len(labels)
    if seen == 0:
        raise ValueError("the loader yields no batch")
    return loss_sum.item() / seen, correct.item() / seen


LOSS_SCALE = 1024.0  # float16 has no numbers below 6e-8, where the maps' gradients of a mean over a batch lie


def _backward_scaled(loss: Tensor, net: nn.Module) -> None:
    """As `loss.backward()`, with everything between LOSS_SCALE times as large, out of float16's lower end.

    What is too large for its upper end counts as 0, so that a single step cannot end the training.
    """
    (loss * LOSS_SCALE).backward()
    for parameter in net.parameters():
        if parameter.grad is not None:
            parameter.grad.mul_(1 / LOSS_SCALE).nan_to_num_(0.0, 0.0, 0.0)


def evaluate(
    net: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor]],
    *,
    flips: bool = False,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """The logits (N, classes), float, and labels (N,) of every image, in the loader's order, on the CPU.

    flips: average the logits of each image and of its mirror image. device: None is the one that `net`
    is on. dtype: as for `train`. The network's mode is put back.
    """
    device = _device_of(net, device)
    dtype = number_format(device, dtype)
    modes = {module: module.training for module in net.modules()}
    logits, labels = [], []
    net.eval()
    try:
        # no_grad, not inference_mode: what a loader makes and keeps meanwhile has to serve training too.
        with torch.no_grad(), _autocast(device, dtype):
            for batch, batch_labels in loader:
                images = _moved(batch, device)
                batch_logits = net(images).float()
                if flips:
                    batch_logits = (batch_logits + net(images.flip(-1)).float()) / 2
                logits.append(batch_logits)
                labels.append(batch_labels)
    finally:
        for module, mode in modes.items():
            module.training = mode
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
    """A copy of `loader` whose labels are the teacher's probabilities (N, classes), to learn in their place.

    They are the softmax of its logits, divided by `temperature`, for each image and its mirror image,
    averaged, without other augmentation: a single pass over the images. device, dtype: as for `train`.

    Source: Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network", arXiv 1503.02531.
    """
    plain = Loader(loader.images, loader.labels, batch_size=500)
    logits, _ = evaluate(teacher, plain, flips=True, device=device, dtype=dtype)
    copied = copy.copy(loader)
    copied.labels = (logits / temperature).softmax(1).to(loader.labels.device)
    return copied


def test(
    net: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor]],
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[float, float]:
    """Mean cross-entropy and accuracy, in [0, 1], over the images of `loader`; trains nothing."""
    logits, labels = evaluate(net, loader, device=device, dtype=dtype)
    return F.cross_entropy(logits, labels).item(), accuracy_of(logits, labels)


def accuracy_of(logits: Tensor, labels: Tensor) -> float:
    """The share of the images, in [0, 1], whose largest of the logits (N, classes) is its label's (N,)."""
    return (logits.argmax(1) == labels).double().mean().item()


def _device_of(net: nn.Module, device) -> torch.device:
    if device is not None:
        return pick_device(device)
    return next((parameter.device for parameter in net.parameters()), torch.device("cpu"))


def _moved(images: Tensor, device: torch.device) -> Tensor:
    layout = torch.channels_last if images.ndim == 4 else torch.preserve_format
    return images.to(device, non_blocking=True, memory_format=layout)


def _autocast(device: torch.device, dtype: torch.dtype):
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)


# ---- A whole run -----------------------------------------------------------------------------------


@dataclass
class History:
    """What a run was and how it went; the lists have an entry an epoch.

    Losses are mean cross-entropies (the training one with the recipe's label smoothing or against its
    teacher, on the augmented images, while the network changes), accuracies in [0, 1], `lr` that of the
    epoch's last step, `seconds` those of the training steps with their augmentation, evaluations and
    the teacher's part not counted, `gflops` the rate of a large matrix product in the run's number
    format, measured after the epoch.
    `test_accuracy_flips` is that of the last epoch with each image's logits and its mirror image's
    averaged (test-time augmentation); None where that was not measured. `evaluated_on` is "validation"
    where the test figures are those of held-out training images.
    """

    name: str  # of the experiment; runs that differ in the seed alone share it
    dataset: str
    parameters: int
    recipe: dict
    seed: int
    machine: dict
    train_loss: list[float] = field(default_factory=list)
    train_accuracy: list[float] = field(default_factory=list)
    test_loss: list[float] = field(default_factory=list)
    test_accuracy: list[float] = field(default_factory=list)
    lr: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    gflops: list[float] = field(default_factory=list)
    test_accuracy_flips: float | None = None
    evaluated_on: str = "test"

    @property
    def epochs(self) -> int:
        """Epochs done."""
        return len(self.train_loss)

    @property
    def train_seconds(self) -> float:
        """Seconds of all training steps so far."""
        return sum(self.seconds)

    @property
    def peak_tflop(self) -> float:
        """Peak-normalized time, in TFLOP: what large matrix products would have computed meanwhile.

        nan for a record whose epochs were not all measured.
        """
        if len(self.gflops) != len(self.seconds):
            return math.nan
        return 1e-3 * sum(map(operator.mul, self.seconds, self.gflops))

    def summary(self) -> dict:
        """The run in a line: the last epoch's figures, never the best ones."""
        return {
            "name": self.name,
            "dataset": self.dataset,
            "test_accuracy": self.test_accuracy[-1] if self.test_accuracy else None,
            "train_seconds": round(self.train_seconds, 2),
            "parameters": self.parameters,
            "epochs": self.epochs,
            "seed": self.seed,
        }

    def difference(self, other: History) -> str:
        """In what the two are of different experiments, as "seed 0, not 1"; empty where they are of the same.

        They are of the same where name, parameters, seed, data set, recipe, number format and the images
        evaluated on are.
        """
        for what in ("name", "parameters", "seed", "dataset", "evaluated_on", "recipe", "dtype"):
            here, there = (
                each.machine.get("dtype") if what == "dtype" else _as_json(getattr(each, what))
                for each in (self, other)
            )
            if what == "recipe":
                here, there = differing(here, there)
            if here != there:
                return f"{what} {here!r}, not {there!r}"
        return ""

    def save(self, path: str | Path) -> Path:
        """Write as JSON; the folder is made, and a file that is there is replaced whole or not at all."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        part.write_text(json.dumps(asdict(self), indent=1) + "\n")
        os.replace(part, path)
        return path

    @classmethod
    def load(cls, path: str | Path) -> History:
        """Read what `save` wrote; ValueError for anything else."""
        try:
            return cls(**json.loads(Path(path).read_text()))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path} is no record of a run: {error}") from error


def _as_json(value):  # a tuple and the list that a file has for it are the same
    return json.loads(json.dumps(value))


def fit(
    net: nn.Module,
    train_loader: Iterable[tuple[Tensor, Tensor]],
    test_loader: Iterable[tuple[Tensor, Tensor]] | None,
    recipe: Recipe,
    *,
    seed: int = 0,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    checkpoint: str | Path | None = None,
    resume: bool = True,
    progress: bool = True,
    name: str = "",
) -> History:
    """Train `net` by `recipe`, testing after every epoch, and return the History; `net` is changed.

    test_loader: None to test nothing. seed: of the data's order, the augmentation and dropout; the
    weights are `net`'s own, so seed torch before making it. device: None picks CUDA or MPS where there
    is one. dtype: what convolutions compute in; None follows the processor. checkpoint: a file written
    after every epoch; where it is there and `resume` is set, the run goes on from it and ends as if it
    had never stopped. progress: show a bar. name: of the experiment, shown in the bar and kept in the
    History; the network's class where empty.

    Raises ValueError where the recipe has a teacher and the loader's labels are not from one (see
    `distilled`); and where the checkpoint is of another experiment (name, parameters, seed, data set,
    recipe or number format), and leaves it alone.
    """
    if recipe.teacher is not None and getattr(getattr(train_loader, "labels", None), "ndim", 0) != 2:
        raise ValueError(
            "the recipe has a teacher, and the labels are no probabilities: give as the loader "
            "distilled(loader, net, recipe.temperature), net being trained by recipe.teacher; or as the "
            "recipe dataclasses.replace(recipe, teacher=None)"
        )
    device = pick_device(device)
    dtype = number_format(device, dtype)
    # Faster in float32 as well: a step takes 0.76 of the time of channels first (0.88 with AVX2 alone).
    net.to(device, memory_format=torch.channels_last)
    optimizer = OPTIMIZERS[recipe.optimizer](net, recipe)
    peak = [group["lr"] for group in optimizer.param_groups]
    history = History(
        name=name or type(net).__name__,
        dataset=getattr(train_loader, "name", "") or type(train_loader).__name__,
        parameters=sum(parameter.numel() for parameter in net.parameters()),
        recipe=recipe.to_dict(),
        seed=seed,
        machine=machine(device) | {"dtype": str(dtype).removeprefix("torch.")},
        evaluated_on=getattr(test_loader, "part", "") or "test",
    )
    if checkpoint is not None and resume and Path(checkpoint).exists():
        history = _resumed(Path(checkpoint), net, optimizer, history)
    steps = len(train_loader)
    bar = _bar(recipe.epochs * steps, history.epochs * steps, progress)

    with bar:
        for epoch in range(history.epochs, recipe.epochs):
            _rewind(train_loader, seed, epoch)

            def before_step(index: int, epoch: int = epoch) -> int | None:
                done = (epoch * steps + index) / (recipe.epochs * steps)
                for group, lr in zip(optimizer.param_groups, peak, strict=True):
                    group["lr"] = lr * recipe.lr_factor(done)
                bar.update()
                return recipe.image_size(done)

            bar.set_description(f"{history.name} epoch {epoch + 1}/{recipe.epochs}")
            started = time.perf_counter()
            loss, accuracy = train(
                net,
                train_loader,
                optimizer,
                loss=partial(F.cross_entropy, label_smoothing=recipe.label_smoothing),
                l1=recipe.l1,
                l2=recipe.l2,
                before_step=before_step,
                device=device,
                dtype=dtype,
            )
            history.seconds.append(time.perf_counter() - started)
            history.gflops.append(matmul_rate(device, dtype))
            history.train_loss.append(loss)
            history.train_accuracy.append(accuracy)
            history.lr.append(optimizer.param_groups[0]["lr"])
            shown = {"train loss": f"{loss:.3f}", "accuracy": f"{accuracy:.1%}"}
            if test_loader is not None:
                test_loss, test_accuracy = test(net, test_loader, device=device, dtype=dtype)
                history.test_loss.append(test_loss)
                history.test_accuracy.append(test_accuracy)
                shown |= {"test loss": f"{test_loss:.3f}", "test accuracy": f"{test_accuracy:.1%}"}
            bar.set_postfix(shown)
            if checkpoint is not None:
                _save_checkpoint(Path(checkpoint), net, optimizer, history)
    if test_loader is not None:
        history.test_accuracy_flips = accuracy_of(
            *evaluate(net, test_loader, flips=True, device=device, dtype=dtype)
        )
    return history


def _bar(total: int, done: int, progress: bool) -> tqdm:
    # Plain text, so that it needs no widgets and a saved notebook stays valid; silent without a stderr.
    return tqdm(
        total=total,
        initial=done,
        disable=not progress or sys.stderr is None,
        mininterval=0.5 if sys.stderr and sys.stderr.isatty() else 2,  # seconds; a notebook keeps them all
    )


def _rewind(loader, seed: int, epoch: int) -> None:
    """The epoch's data follows from seed and epoch alone, whatever ran before: so a run can be resumed."""
    torch.manual_seed((seed + 1) * 1_000_003 + epoch)
    if isinstance(getattr(loader, "generator", None), torch.Generator):  # a DataLoader's own
        loader.generator.manual_seed((seed + 1) * 1_000_003 + epoch)
    if hasattr(loader, "seed") and hasattr(loader, "epoch"):
        loader.seed, loader.epoch = seed, epoch


def _save_checkpoint(path: Path, net: nn.Module, optimizer: torch.optim.Optimizer, history: History) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    state = {
        "net": net.state_dict(),
        "modules": str(net),  # layer, group and instance norm have the same tensors
        "optimizer": optimizer.state_dict(),
        "history": asdict(history),
    }
    torch.save(state, part)
    os.replace(part, path)  # whole or not at all, whenever the machine stops


def _resumed(path: Path, net: nn.Module, optimizer: torch.optim.Optimizer, new: History) -> History:
    advice = (
        "to start anew and replace it, resume=False (on the command line --fresh); to keep it, another file "
        "(--out, --name)"
    )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        old, modules = History(**state["history"]), state["modules"]
    except Exception as error:  # torch raises whatever the bytes happen to lead to
        raise ValueError(f"{path} is no checkpoint of this program ({error!r}); {advice}") from error
    if difference := old.difference(new):
        if difference.startswith("dtype"):
            dtype = old.machine.get("dtype")
            advice = f"to go on, dtype=torch.{dtype} (on the command line --dtype {dtype}); {advice}"
        raise ValueError(f"checkpoint {path} is of {difference}; {advice}")
    if modules != str(net):
        raise ValueError(f"checkpoint {path} is of another network than this one; {advice}")
    net.load_state_dict(state["net"])
    optimizer.load_state_dict(state["optimizer"])
    return old
