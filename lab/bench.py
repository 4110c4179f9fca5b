"""The benchmark: what this machine can do, and how fast networks train on it. It only measures.

Things that are compared take turns, one timing per round, so that other work on the machine slows all of
them alike. The result holds every single time, in seconds; figures are medians over the rounds.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode
from torchvision import transforms
from tqdm import tqdm

from lab.data import MEAN, STAND_IN, STD, Dataset, Loader, load_dataset, loaders_from
from lab.experiment import Experiment
from lab.files import write_whole
from lab.loaders import random_states_kept
from lab.machine import clocked, file_stem, machine, number_format, pick_device, synchronize
from lab.recipes import COMPARED, RECIPES, Recipe
from lab.report import BFLOAT16_MATH, bench_summary
from lab.schema import json_bytes
from lab.study import process_pool, run_all
from lab.training import fit, train
from lab.tuning import FEW_STEPS, LAYOUTS, Format, fastest_format, threads_for
from model import NORMS, Net


@dataclass(frozen=True)
class Plan:
    """How much is measured; the default takes ten to fifteen minutes on two idle processor cores."""

    rounds: int = 3  # timings of each task; odd, so that the median is one of them
    limit: float = 400.0  # seconds; a slow or busy machine does fewer rounds, but at least one
    seconds: float = 0.3  # duration of a timing, about: a thousand times the cost of the loop around it
    sizes: tuple[int, ...] = (1024, 2048, 4096)  # rows of square matrices
    batch_size: int = 256  # images, unless the batch size is what varies
    batches: int = 20  # in a round of training
    starts: int = 3  # processes started to time the first step
    batch_sizes: tuple[int, ...] = (64, 128, 256, 512, 1024)
    widths: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0)
    image_sizes: tuple[int, ...] = (16, 24, 32, 48, 64)  # pixels
    company_rounds: int = 3  # trainings alone and in company
    company_seconds: float = 9.0  # of such a training, of which the second half counts
    pool_epochs: int = 2  # of each of the runs that are made one after another and at once
    pool_images: int | None = None  # in each of them; None: all


FULL = Plan()
QUICK = Plan(  # only shows that the benchmark works
    rounds=1,
    seconds=0.0,
    sizes=(64, 128),
    batch_size=32,
    batches=2,
    starts=1,
    batch_sizes=(16, 32),
    widths=(0.5, 1.0),
    image_sizes=(16, 24),
    company_rounds=1,
    company_seconds=0.5,
    pool_epochs=1,
    pool_images=320,
)
FASTEST = "minute"  # the recipe whose training step is compared with the peak
GPU_SIZES = (8192, 16384)  # further rows for a GPU, which reaches its peak there; a CPU would take a minute

Work = Callable[[int], object]  # does something that many times
Timing = Callable[[], float]  # returns seconds
Key = tuple[str, ...]  # where the times are kept in the result

# ---- Clocks ----------------------------------------------------------------------------------------


def repeated(work: Work, device: torch.device, seconds: float) -> Timing:
    """A timing of one repetition of `work`, averaged over about `seconds`.

    Runs one untimed warm-up, so that caches and compiled kernels are hot (oneDNN keeps a thousand of them).
    """

    def timing() -> float:
        count = max(1, round(seconds / clocked(lambda: work(1), device)))
        return clocked(lambda: work(count), device) / count

    return timing


def alternate(tasks: Mapping[Key, Timing], rounds: int, limit: float = math.inf) -> dict[str, Any]:
    """The seconds that each task returns, one per round; the tasks take turns: a, b, a, b.

    The result is nested by the parts of the keys: ("growth", "width", "1.0") is at
    ["growth"]["width"]["1.0"]. After the first round, a round starts only if it would end within `limit`
    seconds, going by the previous ones.
    """
    times: dict[str, Any] = {}
    began = time.perf_counter()
    with tqdm(total=rounds * len(tasks), disable=sys.stderr is None) as bar:
        for done in range(rounds):
            if done and (time.perf_counter() - began) * (done + 1) / done > limit:
                break
            for (*path, last), task in tasks.items():
                bar.set_description(shorten(" ".join((*path, last)), 50, placeholder=" ..."))
                inner = times
                for part in path:
                    inner = inner.setdefault(part, {})
                inner.setdefault(last, []).append(task())
                bar.update()
    return times


# ---- Tasks -----------------------------------------------------------------------------------------


def product(size: int, dtype: torch.dtype, device: torch.device) -> Work:
    """The product of two (size, size) matrices."""
    a, b = torch.randn(2, size, size, device=device).to(dtype)
    out = torch.empty_like(a)

    def work(count: int) -> None:
        for _ in range(count):
            torch.mm(a, b, out=out)

    return work


def step(
    net: nn.Module,
    recipe: Recipe,
    batch_size: int,
    device: torch.device,
    size: int = 32,
    *,
    form: Format,
) -> Work:
    """A training step on a batch of size x size pixels that is already on the device."""
    net.to(device).to(memory_format=form.layout)
    optimizer = recipe.make_optimizer(net)
    batch = _batch(batch_size, device, form, size)
    options = {"device": device, **form._asdict()}
    return lambda count: train(net, [batch] * count, optimizer, **options)


def optimizer_step(net: nn.Module, recipe: Recipe, device: torch.device) -> Work:
    """The optimizer's part of a training step: its gradients are those of a single batch."""
    net.to(device).to(memory_format=torch.channels_last)
    optimizer = recipe.make_optimizer(net)
    net(torch.zeros(2, 3, 32, 32, device=device)).square().mean().backward()

    def work(count: int) -> None:
        for _ in range(count):
            optimizer.step()

    return work


def with_bfloat16_math(work: Work, count: int) -> None:
    """The same, while oneDNN rounds the factors in its convolutions and matrix products to bfloat16."""
    kinds = [getattr(torch.backends.mkldnn, kind) for kind in ("conv", "matmul")]
    before = [kind.fp32_precision for kind in kinds]
    try:
        for kind in kinds:
            kind.fp32_precision = "bf16"
        work(count)
    finally:
        for kind, precision in zip(kinds, before, strict=True):
            kind.fp32_precision = precision


def _batch(batch_size: int, device: torch.device, form: Format, size: int = 32) -> tuple[Tensor, Tensor]:
    images = torch.randn(batch_size, 3, size, size, generator=torch.Generator().manual_seed(0))
    images = images.to(device, memory_format=form.layout)
    return images, torch.arange(batch_size, device=device) % 10


def step_flops(net: nn.Module, images: Tensor) -> int:
    """Floating-point operations of a batch's forward and backward pass, two per multiply-accumulate.

    Counts convolutions and matrix products, as is usual, and not the optimizer. images: (N, C, H, W).
    """
    # torch's own formula counts the weight gradient of a grouped convolution `groups` times.
    backward = {torch.ops.aten.convolution_backward: _backward_flops}
    with FlopCounterMode(display=False, custom_mapping=backward) as counter:
        net(images).sum().backward()
    net.zero_grad()
    return counter.get_total_flops()


def _backward_flops(gradient_shape, _images_shape, weight_shape, *more, out_shape=None) -> int:
    wants_input, wants_weight, _ = more[-1]  # each costs as much as the forward pass
    forward = 2 * gradient_shape[0] * math.prod(gradient_shape[2:]) * math.prod(weight_shape)
    return forward * (wants_input + wants_weight)


class Pictures(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Training images, one at a time through torchvision's transforms, as its CIFAR10 yields them."""

    def __init__(self, data: Dataset):
        self.pixels = np.ascontiguousarray(data.train_images.permute(0, 2, 3, 1).numpy())  # (N, 32, 32, 3)
        self.labels = data.train_labels.tolist()
        moved = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]
        fixed = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
        self.transform: Callable[[Image.Image], Tensor] = transforms.Compose([*moved, *fixed])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[index])), self.labels[index]


QUEUE = 5  # untimed batches: two workers prepare two each in advance, and one more is taken


def conventional(net: nn.Module, data: Dataset, plan: Plan, device: torch.device) -> Timing:
    """A timing of `plan.batches` training steps as a course notebook does them.

    Two workers, float32, the default memory layout, SGD. The clock starts once the workers' queue has been
    emptied, so that it sees the middle of an epoch and not its beginning. (The loop profits from the freed
    memory that `train` makes this process keep; a notebook of its own would not.)
    """
    pictures, net = Pictures(data), net.to(device)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)

    def timing() -> float:
        with warnings.catch_warnings():
            # About more workers than cores, and about forking a process that has threads.
            warnings.simplefilter("ignore")
            loader = DataLoader(
                pictures, plan.batch_size, shuffle=True, num_workers=2, pin_memory=device.type == "cuda"
            )
            batches = iter(loader)
        notebook_loop(net, islice(batches, QUEUE), optimizer, device)
        return clocked(lambda: notebook_loop(net, islice(batches, plan.batches), optimizer, device), device)

    return timing


def notebook_loop(
    net: nn.Module, batches: Iterable, optimizer: torch.optim.Optimizer, device: torch.device
) -> None:
    """The loop of a course notebook, which reads the loss after every step."""
    net.train()
    total = 0.0
    for images, labels in batches:
        images, labels = images.to(device), labels.to(device)
        optimizer.zero_grad()
        loss = F.cross_entropy(net(images), labels)
        loss.backward()
        optimizer.step()
        total += loss.item()


def ours(
    net: nn.Module, data: Dataset, recipe: Recipe, plan: Plan, device: torch.device, form: Format
) -> Timing:
    """A timing of the first `plan.batches` training steps of `fit`."""
    loader, *_ = _loaders(data, recipe, plan.batch_size, device, limit=plan.batches * plan.batch_size)
    recipe = replace(recipe, epochs=1)
    dtype, layout = str(form).split()
    options = {"device": device, "dtype": getattr(torch, dtype), "layout": layout, "progress": False}
    return lambda: fit(net, loader, None, recipe, **options).train_seconds


def _loaders(
    data: Dataset, recipe: Recipe, batch_size: int, device: torch.device, limit: int | None = None
) -> tuple[Loader, ...]:
    augment = True if recipe.augment is None else recipe.augment
    return loaders_from(data, batch_size, augment=augment, limit=limit, device=device)


# ---- A new process ---------------------------------------------------------------------------------

CHILD = """
import time; began = time.perf_counter()
import sys, utils
from lab.bench import start
start(began, *sys.argv[1:])
"""


def started(dataset: str, root: str | Path | None, device: torch.device) -> tuple[float, int | None]:
    """Start a new process that trains: its seconds from the first import to the end of the first training
    step, and the most bytes of memory that it held, None if unknown.
    """
    child = subprocess.run(
        [sys.executable, "-c", CHILD, dataset, str(root or ""), str(device)],
        env=_environment(),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    seconds, peak = json.loads(child.stdout.splitlines()[-1])
    return seconds, peak


def _environment() -> dict[str, str]:
    paths = [str(Path(__file__).resolve().parent.parent), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


def start(began: float, dataset: str, root: str, device_name: str) -> None:
    """Entry point of the child process: train, and print both figures as JSON."""
    recipe = RECIPES[FASTEST]
    device = pick_device(device_name)
    data = load_dataset(dataset, root or None)
    loader, *_ = _loaders(data, recipe, recipe.batch_size, device)
    net = Net(**recipe.net).to(device).to(memory_format=torch.channels_last)
    train(net, [next(iter(loader))], recipe.make_optimizer(net))
    synchronize(device)
    seconds = time.perf_counter() - began
    # A few more batches, at full size, and a test: memory does not grow after that.
    few, test = _loaders(data, recipe, recipe.batch_size, device, limit=4 * recipe.batch_size)
    fit(net, few, test, replace(recipe, epochs=1, image_sizes=()), device=device, progress=False)
    print(json.dumps([seconds, peak_memory()]))


def peak_memory() -> int | None:
    """The most bytes of main memory that this process has held; None if the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024  # kilobytes elsewhere


# ---- Kernels ---------------------------------------------------------------------------------------

CHANNELS, SIDE = 64, 16  # of the maps that each kernel gets


def _conv(kernel_size=3, **options) -> nn.Conv2d:
    padding = options.get("dilation", 1) * (kernel_size - 1) // 2
    return nn.Conv2d(CHANNELS, CHANNELS, kernel_size, padding=padding, bias=False, **options)


# Each layer, and its like: a plainer layer on the same maps, with as much work or more, which it should not
# take much longer than.
KERNELS: dict[str, tuple[Callable[[], nn.Module], str | None]] = {
    "convolution 3x3": (_conv, None),
    "convolution 3x3, dilated": (partial(_conv, dilation=2), "convolution 3x3"),
    "convolution 3x3, 8 groups": (partial(_conv, groups=8), "convolution 3x3"),
    "convolution 1x1": (partial(_conv, 1), None),
    "depthwise 3x3": (partial(_conv, groups=CHANNELS), None),
    "depthwise 3x3, strided": (partial(_conv, groups=CHANNELS, stride=2), "depthwise 3x3"),
    "depthwise 3x3, dilated": (partial(_conv, groups=CHANNELS, dilation=2), "depthwise 3x3"),
    "depthwise 7x7": (partial(_conv, 7, groups=CHANNELS), None),
    "batch norm": (partial(nn.BatchNorm2d, CHANNELS), None),
    "batch norm, 56 channels": (partial(nn.BatchNorm2d, 56), "batch norm"),
    "layer norm": (partial(nn.GroupNorm, 1, CHANNELS), "batch norm"),
    "group norm": (partial(nn.GroupNorm, 8, CHANNELS), "batch norm"),
}


def kernel(layer: nn.Module, batch_size: int, device: torch.device, form: Format) -> Work:
    """The forward and backward pass of torch's own layer, without our faster implementations."""
    dtype, layer = form.dtype, layer.to(device).to(memory_format=form.layout)
    channels = layer.in_channels if isinstance(layer, nn.Conv2d) else next(layer.parameters()).numel()
    maps = torch.randn(batch_size, int(channels), SIDE, SIDE, device=device).to(dtype)
    maps = maps.contiguous(memory_format=form.layout).requires_grad_()
    inputs = [maps, *layer.parameters()]

    def work(count: int) -> None:
        for _ in range(count):
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32, cache_enabled=False):
                out = layer(maps)
            torch.autograd.grad(out, inputs, torch.ones_like(out))

    return work


# ---- In company ------------------------------------------------------------------------------------

COMPANIONS = {  # programs that say when they are running, and run until they are ended
    "busy process": "print('ready', flush=True)\nwhile True: pass",
    "second training": "from lab.bench import accompany; accompany({form!r})",
}


def paced(net: nn.Module, seconds: float, form: Format, plan: Plan, threads: int | None) -> float:
    """The mean seconds of a training step in the second half of so many seconds, on the CPU.

    threads: as for `fit`. Finding the number of threads counts only if it goes on after the first half.
    """
    device = torch.device("cpu")
    net = net.to(memory_format=form.layout)
    optimizer = RECIPES["default"].make_optimizer(net)
    batch, begun = _batch(plan.batch_size, device, form), [time.perf_counter()]
    end = begun[0] + seconds

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        while time.perf_counter() < end or len(begun) < 4:
            yield batch

    with threads_for(net, device, form, tuple(batch[0].shape), FEW_STEPS, threads) as pace:

        def before_step(index: int) -> None:
            pace.before_step()
            begun.append(time.perf_counter())

        train(net, batches(), optimizer, before_step=before_step, **form._asdict())
    half = [moment for moment in begun if moment >= begun[-1] - seconds / 2 or moment in begun[-2:]]
    return (half[-1] - half[0]) / (len(half) - 1)


def accompany(form: str) -> None:
    """Entry point of the second training: train until the process is ended."""
    print("ready", flush=True)
    paced(Net(), math.inf, Format.named(form), FULL, None)


@contextmanager
def companion(name: str, form: Format) -> Iterator[None]:
    """One of COMPANIONS, running in a process of its own within the context."""
    code = COMPANIONS[name].format(form=str(form))
    with subprocess.Popen(
        [sys.executable, "-c", code], env=_environment(), stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            if process.stdout is None or process.stdout.readline() != "ready\n":
                raise RuntimeError(f"the {name} did not start")
            yield
        finally:
            process.kill()


def company(plan: Plan, form: Format) -> dict[str, list[float]]:
    """The seconds of a training step on the CPU, alone and beside other work, one per round.

    "all threads" fixes their number; otherwise the training finds it.
    """
    most = torch.get_num_threads()
    cases: dict[str, tuple[str | None, int | None]] = {
        "alone, all threads": (None, most),
        "alone": (None, None),
    }
    for name in ("busy process", "second training"):
        cases |= {f"beside a {name}, all threads": (name, most), f"beside a {name}": (name, None)}
    times: dict[str, list[float]] = {case: [] for case in cases}
    bar = tqdm(total=plan.company_rounds * len(cases), desc="in company", disable=sys.stderr is None)
    for _ in range(plan.company_rounds):
        for case, (name, threads) in cases.items():
            with companion(name, form) if name else nullcontext():
                times[case].append(paced(Net(), plan.company_seconds, form, plan, threads))
            bar.update()
    bar.close()
    return times


def two_at_once(plan: Plan, dataset: str, root: str | Path | None, form: Format) -> dict[str, list[float]]:
    """The seconds that two runs take on the CPU, one per round, with loading and testing: one after another
    here, with the threads that are found by timing, and at once in a process pool, which has half of the
    threads for each.

    Both have made a short run before, so that no process starts in that time. Empty with a single thread.
    """
    if torch.get_num_threads() < 2:
        return {}
    recipe = replace(RECIPES["default"], epochs=plan.pool_epochs)
    same: dict[str, Any] = {"dataset": dataset, "limit": plan.pool_images, "dtype": _name(form.dtype)}
    runs = [Experiment("run", recipe, seed=seed, **same) for seed in (0, 1)]
    short = [replace(run, limit=plan.batch_size, label="short") for run in runs]
    times: dict[str, list[float]] = {"one after another": [], "two at once": []}
    with tempfile.TemporaryDirectory() as folder, process_pool(2) as pool:
        options = {"root": root, "device": "cpu", "progress": False, "resume": False}
        cases = [*zip(times, (None, pool), strict=True)]
        for _, executor in cases:
            run_all(short, folder, executor=executor, **options)
        for _ in tqdm(range(plan.company_rounds), "two runs", disable=sys.stderr is None):
            for case, executor in cases:
                began = time.perf_counter()
                run_all(runs, folder, executor=executor, **options)
                times[case].append(time.perf_counter() - began)
    return times


# ---- Where the time goes ---------------------------------------------------------------------------

PARTS = {  # of a step, by what the names of torch's operations contain
    "convolution": ("conv",),
    "normalization": ("batch_norm", "group_norm", "layer_norm"),
    "resizing": ("upsample", "interpolate"),
    "activation": ("relu", "threshold"),
    "copies": ("copy", "clone", "cat", "contiguous", "empty", "resize", "fill", "zero"),
}
REST = "other operations"  # sums, pooling, the loss
LOADER, OPTIMIZER = "augmentation", "optimizer"


def parts(
    net: nn.Module, data: Dataset, recipe: Recipe, plan: Plan, device: torch.device, form: Format
) -> dict[str, float]:
    """The share of the time of `plan.batches` steps that each part takes, in [0, 1], from torch's profiler.

    The sizes of the images change as in the recipe. "Python" is the time between operations, which the
    profiler itself makes longer.
    """
    net = net.to(device).to(memory_format=form.layout)
    loader, *_ = _loaders(data, recipe, recipe.batch_size, device, limit=plan.batches * recipe.batch_size)
    optimizer = recipe.make_optimizer(net)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        following = iter(loader)
        for _ in range(len(loader)):
            with record_function(LOADER):
                batch = next(following)
            yield batch

    def epoch() -> None:
        scale = partial(_scale, recipe, len(loader))
        train(net, batches(), optimizer, before_step=scale, device=device, **form._asdict())

    epoch()  # warms up
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        seconds = clocked(epoch, device)
    found = dict.fromkeys((*PARTS, REST, LOADER, OPTIMIZER), 0.0)
    for event in profiler.events() or ():
        found[_part(event)] += 1e-6 * event.self_cpu_time_total / seconds
    return found | {"Python": max(0.0, 1 - sum(found.values()))}


def _scale(recipe: Recipe, batches: int, index: int) -> float | None:
    return recipe.image_scale(index / batches)


def _part(event) -> str:
    own, each = event.name, event
    while each is not None:
        if each.name == LOADER or each.name.startswith("Optimizer.step"):
            return LOADER if each.name == LOADER else OPTIMIZER
        each = each.cpu_parent
    return next((part for part, names in PARTS.items() if any(name in own for name in names)), REST)


# ---- The whole benchmark ---------------------------------------------------------------------------


def bench(
    plan: Plan = FULL,
    dataset: str = "auto",
    root: str | Path | None = None,
    device: str | torch.device | None = None,
) -> dict[str, Any]:
    """Measure everything; returns plain data, as the JSON file holds it, with all times in seconds.

    dataset, root: as for `load_dataset`. device: None picks CUDA or MPS if available. The random states
    are as before at the end. Like `train`, this makes the process keep freed memory.
    """
    device = pick_device(device)
    with random_states_kept(device):
        data = load_dataset(dataset, root)
        # First, while this process is small: on Linux the memory of a child counts from that of its parent.
        again = "stand-in" if data.name == STAND_IN else dataset
        bar = tqdm(range(plan.starts), "start", disable=sys.stderr is None)
        seconds, sizes = zip(*(started(again, root, device) for _ in bar), strict=True)
        recipe = RECIPES[FASTEST]
        net, batch_size = Net(**recipe.net), recipe.batch_size
        flops = step_flops(net, torch.zeros(batch_size, 3, 32, 32))
        shape = (batch_size, 3, 32, 32)
        began = time.perf_counter()
        chosen = fastest_format(net, shape, device)
        search = time.perf_counter() - began
        form = chosen.format
        dtypes = list(dict.fromkeys((torch.float32, number_format(device), form.dtype)))
        works = _products(plan, dtypes, device)
        for each in (Format(dtype, layout) for dtype in dtypes for layout in LAYOUTS.values()):
            fresh = Net(**recipe.net)
            works["step", "seconds", str(each)] = step(fresh, recipe, batch_size, device, form=each)
        works["step", "optimizer"] = optimizer_step(Net(**recipe.net), recipe, device)
        if device.type == "cpu" and hasattr(torch.backends.mkldnn, "conv"):  # from PyTorch 2.9 on
            usual = step(Net(**recipe.net), recipe, batch_size, device, form=Format(torch.float32))
            works["step", "seconds", BFLOAT16_MATH] = partial(with_bfloat16_math, usual)
        works |= _steps(plan, RECIPES["default"], dtypes, form, device)
        tasks = {key: repeated(work, device, plan.seconds) for key, work in works.items()}
        tasks |= _trainings(plan, RECIPES["default"], data, device, form)
        times = alternate(tasks, plan.rounds, plan.limit)
        times["search"] = {"format": [search]}
        if device.type == "cpu":
            times["search"]["threads"] = [
                _search_of_threads(Net(), (plan.batch_size, *shape[1:]), device, form)
                for _ in range(plan.rounds)
            ]
        times["company"] = company(plan, form) if device.type == "cpu" else {}
        times["two runs"] = two_at_once(plan, again, root, form) if device.type == "cpu" else {}
        times["parts"] = parts(Net(**recipe.net), data, recipe, plan, device, form)
    times["step"] |= {"recipe": FASTEST, "batch_size": batch_size, "flops": flops}
    result = {
        "dataset": data.name,
        "machine": machine(device) | {"dtype": _name(form.dtype)},
        "plan": json.loads(json.dumps(asdict(plan))),  # tuples become the lists that JSON has
        "start": {"seconds": list(seconds), "bytes": list(sizes)},
        "like": {name: like for name, (_, like) in KERNELS.items()},
        "chosen": {"format": str(chosen.format), "microseconds": chosen.microseconds},
        **times,
    }
    return result | {"summary": bench_summary(result)}


def _search_of_threads(net: nn.Module, shape, device: torch.device, form: Format) -> float:
    """The seconds that the first search for a number of threads takes, which every longer run begins with."""
    began = time.perf_counter()
    with threads_for(net, device, form, shape, FEW_STEPS) as pace:
        pace.before_step()
    return time.perf_counter() - began


def _products(plan: Plan, dtypes: Iterable[torch.dtype], device: torch.device) -> dict[Key, Work]:
    sizes = plan.sizes + (GPU_SIZES if device.type == "cuda" and plan is not QUICK else ())
    return {("matmul", _name(dtype), str(n)): product(n, dtype, device) for dtype in dtypes for n in sizes}


def _steps(
    plan: Plan, recipe: Recipe, dtypes: Iterable[torch.dtype], form: Format, device: torch.device
) -> dict[Key, Work]:
    def works(axis: str, values: Iterable, make: Callable[[Any], Work]) -> dict[Key, Work]:
        return {("growth", axis, str(value)): make(value) for value in values}

    batch, forms = plan.batch_size, [form._replace(dtype=dtype) for dtype in dtypes]
    pairs: dict[Key, Work] = {
        ("pairs", _name(each.dtype), norm, conv): step(Net(norm, conv), recipe, batch, device, form=each)
        for each in forms
        for norm in NORMS
        for conv in COMPARED
    }
    kernels: dict[Key, Work] = {
        ("kernels", _name(each.dtype), name): kernel(make(), batch, device, each)
        for each in forms
        for name, (make, _) in KERNELS.items()
    }
    made = partial(step, recipe=recipe, device=device, form=form)
    return (
        pairs
        | kernels
        | works("batch size", plan.batch_sizes, lambda n: made(Net(), batch_size=n))
        | works("width", plan.widths, lambda n: made(Net(width=n), batch_size=batch))
        | works("image size", plan.image_sizes, lambda n: made(Net(), batch_size=batch, size=n))
    )


def _trainings(
    plan: Plan, recipe: Recipe, data: Dataset, device: torch.device, form: Format
) -> dict[Key, Timing]:
    same = replace(recipe, image_sizes=())  # as many pixels as in the conventional loop
    return {
        ("training", "conventional"): conventional(Net(), data, plan, device),
        ("training", "ours"): ours(Net(), data, same, plan, device, form),
        ("training", "ours, sizes as scheduled"): ours(Net(), data, recipe, plan, device, form),
    }


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def write(result: Mapping[str, Any], folder: str | Path) -> Path:
    """Write the result as JSON, named after machine, data set and, if it is that, quick; returns the path."""
    quick = result["plan"] == json.loads(json.dumps(asdict(QUICK)))
    name = file_stem(result["machine"], result["dataset"], *(["quick"] if quick else []))
    return write_whole(Path(folder) / f"{name}.json", json_bytes(result))
