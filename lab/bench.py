"""The benchmark: what this machine can do, and what training makes of it.

Whatever is compared takes turns, one timing a round, so that a machine that is busy elsewhere, too, slows
all of it alike. Figures are medians over the rounds; every single time is kept in the result, in seconds.
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode
from torchvision import transforms
from tqdm import tqdm

from lab.data import MEAN, STAND_IN, STD, Dataset, load_dataset, loaders_from
from lab.machine import clocked, machine, number_format, pick_device, synchronize
from lab.recipes import OPTIMIZERS, RECIPES, Recipe
from lab.training import fit, train
from model import CONVS, NORMS, Net


@dataclass(frozen=True)
class Plan:
    """How much is measured; as it comes, three minutes on two idle processor cores."""

    rounds: int = 5  # timings of each thing; odd, so that the median is one of them
    limit: float = 400.0  # seconds; on a slower or busy machine there are fewer rounds, but at least one
    seconds: float = 0.3  # that a timing lasts, about: a thousand times what the loop around it costs
    sizes: tuple[int, ...] = (1024, 2048, 4096)  # rows of square matrices
    batch_size: int = 256  # images, where it is not what is varied
    batches: int = 20  # in a round of training
    starts: int = 3  # processes started for the time of the first step
    batch_sizes: tuple[int, ...] = (64, 128, 256, 512, 1024)
    widths: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0)
    image_sizes: tuple[int, ...] = (16, 24, 32, 48, 64)  # pixels


FULL = Plan()
QUICK = Plan(  # shows that it works, no more
    rounds=1,
    seconds=0.0,
    sizes=(64, 128),
    batch_size=32,
    batches=2,
    starts=1,
    batch_sizes=(16, 32),
    widths=(0.5, 1.0),
    image_sizes=(16, 24),
)
FASTEST = "minute"  # the recipe whose step is held against the peak
GPU_SIZES = (8192, 16384)  # rows, besides: a GPU is at its peak there, and a CPU needs a minute

# ---- Clocks ----------------------------------------------------------------------------------------


def repeated(work: Callable[[int], object], device: torch.device, seconds: float) -> Callable[[], float]:
    """A timing of `work`, which takes a number of repetitions: the seconds of one, over about `seconds`.

    One goes before them, untimed: it brings back what other work drove out of the caches (oneDNN
    compiles its kernels, and keeps a thousand).
    """

    def timing() -> float:
        count = max(1, round(seconds / clocked(lambda: work(1), device)))
        return clocked(lambda: work(count), device) / count

    return timing


def alternate(tasks: Mapping[tuple, Callable[[], float]], rounds: int, limit: float = math.inf) -> dict:
    """The seconds that each task returns, one a round; the tasks take turns: a, b, a, b.

    Nested by the parts of the keys: those of ("pairs", "batch", "mixed") are at ["pairs"]["batch"]["mixed"].
    No round but the first begins that would, being as long as those before, end after `limit` seconds.
    """
    times: dict = {}
    began = time.perf_counter()
    with tqdm(total=rounds * len(tasks), disable=sys.stderr is None) as bar:
        for done in range(rounds):
            if done and (time.perf_counter() - began) * (done + 1) / done > limit:
                break
            for (*path, last), task in tasks.items():
                bar.set_description(" ".join((*path, last)))
                inner = times
                for part in path:
                    inner = inner.setdefault(part, {})
                inner.setdefault(last, []).append(task())
                bar.update()
    return times


# ---- What is timed ---------------------------------------------------------------------------------


def product(size: int, dtype: torch.dtype, device: torch.device) -> Callable[[int], None]:
    """Work for `repeated`: the product of two (size, size) matrices."""
    a, b = torch.randn(2, size, size, device=device).to(dtype)
    out = torch.empty_like(a)

    def work(count: int) -> None:
        for _ in range(count):
            torch.mm(a, b, out=out)

    return work


def step(net: nn.Module, recipe: Recipe, batch_size: int, device: torch.device, size: int = 32) -> Callable:
    """Work for `repeated`: a training step on a batch that lies there, size x size pixels."""
    net.to(device, memory_format=torch.channels_last)
    optimizer = OPTIMIZERS[recipe.optimizer](net, recipe)
    images = torch.randn(batch_size, 3, size, size, generator=torch.Generator().manual_seed(0))
    images = images.to(device, memory_format=torch.channels_last)
    labels = torch.arange(batch_size, device=device) % 10
    return lambda count: train(net, [(images, labels)] * count, optimizer, device=device)


def step_flops(net: nn.Module, images: Tensor) -> int:
    """Floating-point operations, two a multiply-accumulate, of a batch's forward and backward pass.

    Those of convolutions and matrix products, as is usual, without the optimizer's. images: (N, C, H, W).
    """
    # torch's own formula counts the weight gradient of a grouped convolution `groups` times.
    backward = {torch.ops.aten.convolution_backward: _backward_flops}
    with FlopCounterMode(display=False, custom_mapping=backward) as counter:
        net(images).sum().backward()
    net.zero_grad()
    return counter.get_total_flops()


def _backward_flops(gradient_shape, _images_shape, weight_shape, *more, out_shape=None) -> int:
    wants_input, wants_weight, _ = more[-1]  # each costs what the forward pass does
    forward = 2 * gradient_shape[0] * math.prod(gradient_shape[2:]) * math.prod(weight_shape)
    return forward * (wants_input + wants_weight)


class Pictures(torch.utils.data.Dataset):
    """Training images one at a time through torchvision's transforms, as its CIFAR10 gives them."""

    def __init__(self, data: Dataset):
        self.pixels = np.ascontiguousarray(data.train_images.permute(0, 2, 3, 1).numpy())  # (N, 32, 32, 3)
        self.labels = data.train_labels.tolist()
        moved = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]
        self.transform = transforms.Compose([*moved, transforms.ToTensor(), transforms.Normalize(MEAN, STD)])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[index])), self.labels[index]


QUEUE = 5  # batches, untimed: two workers have two ready each, and one more is taken


def conventional(net: nn.Module, data: Dataset, plan: Plan, device: torch.device) -> Callable[[], float]:
    """A timing of `plan.batches` training steps as course notebooks take them.

    Two workers, float32, the default memory layout, SGD. The clock starts when the workers' queue has been
    drawn on for a while, so that it sees the middle of an epoch and not its beginning. (It profits from
    the memory that `train` has this process keep, which a notebook of its own would not have.)
    """
    pictures, net = Pictures(data), net.to(device)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    options = {"shuffle": True, "num_workers": 2, "pin_memory": device.type == "cuda"}

    def timing() -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of one core for two workers; of forking a process with threads
            batches = iter(DataLoader(pictures, plan.batch_size, **options))
        notebook_loop(net, islice(batches, QUEUE), optimizer, device)
        return clocked(lambda: notebook_loop(net, islice(batches, plan.batches), optimizer, device), device)

    return timing


def notebook_loop(net: nn.Module, batches: Iterable, optimizer, device: torch.device) -> None:
    """The loop of a course notebook, which asks for the loss after every step."""
    net.train()
    total = 0.0
    for images, labels in batches:
        images, labels = images.to(device), labels.to(device)
        optimizer.zero_grad()
        loss = F.cross_entropy(net(images), labels)
        loss.backward()
        optimizer.step()
        total += loss.item()


def ours(net: nn.Module, data: Dataset, recipe: Recipe, plan: Plan, device: torch.device) -> Callable:
    """A timing of `plan.batches` training steps as `fit` takes them, from its very first."""
    images = plan.batches * plan.batch_size
    loader, _ = loaders_from(data, plan.batch_size, augment=recipe.augment, limit=images, device=device)
    recipe = replace(recipe, epochs=1)
    return lambda: fit(net, loader, None, recipe, device=device, progress=False).train_seconds


# ---- A process of its own --------------------------------------------------------------------------

CHILD = """
import time; began = time.perf_counter()
import sys, utils
from lab.bench import start
start(began, *sys.argv[1:])
"""


def started(dataset: str, root: str | Path | None, device: torch.device) -> tuple[float, int | None]:
    """Of a new process: seconds from its first import to its first step's end, and bytes held at most."""
    paths = [str(Path(__file__).resolve().parent.parent), os.environ.get("PYTHONPATH", "")]
    child = subprocess.run(
        [sys.executable, "-c", CHILD, dataset, str(root or ""), str(device)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return tuple(json.loads(child.stdout.splitlines()[-1]))


def start(began: float, dataset: str, root: str, device: str) -> None:
    """What that process does; it prints the two figures as JSON."""
    recipe = RECIPES[FASTEST]
    device = pick_device(device)
    data = load_dataset(dataset, root or None)
    options = {"augment": recipe.augment, "device": device}
    loader, _ = loaders_from(data, recipe.batch_size, **options)
    net = Net(**recipe.net).to(device, memory_format=torch.channels_last)
    train(net, [next(iter(loader))], OPTIMIZERS[recipe.optimizer](net, recipe))
    synchronize(device)
    seconds = time.perf_counter() - began
    # A few batches more, at full size, and a test: memory does not grow after that.
    few = loaders_from(data, recipe.batch_size, limit=4 * recipe.batch_size, **options)
    fit(net, *few, replace(recipe, epochs=1, image_sizes=()), device=device, progress=False)
    print(json.dumps([seconds, peak_memory()]))


def peak_memory() -> int | None:
    """Bytes of main memory that this process has held at most; None where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024  # kilobytes elsewhere


# ---- The whole -------------------------------------------------------------------------------------


def bench(plan: Plan = FULL, dataset: str = "auto", root: str | Path | None = None, device=None) -> dict:
    """Measure everything; returns plain data, as the JSON file holds it, every time in seconds.

    dataset, root: as for `load_dataset`. device: None picks CUDA or MPS where there is one.
    """
    device = pick_device(device)
    data = load_dataset(dataset, root)
    # First, while this process is small: on Linux the memory of a new one counts from that of its parent.
    again = "stand-in" if data.name == STAND_IN else dataset
    bar = tqdm(range(plan.starts), "start", disable=sys.stderr is None)
    seconds, sizes = zip(*(started(again, root, device) for _ in bar), strict=True)
    recipe = RECIPES[FASTEST]
    net, batch_size = Net(**recipe.net), recipe.batch_size
    flops = step_flops(net, torch.zeros(batch_size, 3, 32, 32))
    works = _products(plan, device) | {("step", "seconds"): step(net, recipe, batch_size, device)}
    works |= _steps(plan, RECIPES["default"], device)
    tasks = {key: repeated(work, device, plan.seconds) for key, work in works.items()}
    tasks |= _trainings(plan, RECIPES["default"], data, device)
    times = alternate(tasks, plan.rounds, plan.limit)
    times["step"] |= {"recipe": FASTEST, "batch_size": batch_size, "flops": flops}
    result = {
        "dataset": data.name,
        "machine": machine(device) | {"dtype": _name(number_format(device))},
        "plan": json.loads(json.dumps(asdict(plan))),  # tuples become the lists that JSON has
        "start": {"seconds": list(seconds), "bytes": list(sizes)},
        **times,
    }
    return result | {"summary": summary(result)}


def _products(plan: Plan, device: torch.device) -> dict[tuple, Callable]:
    dtypes = dict.fromkeys((torch.float32, number_format(device)))
    sizes = plan.sizes + (GPU_SIZES if device.type == "cuda" and plan is not QUICK else ())
    return {("matmul", _name(dtype), str(n)): product(n, dtype, device) for dtype in dtypes for n in sizes}


def _steps(plan: Plan, recipe: Recipe, device: torch.device) -> dict[tuple, Callable]:
    def works(axis: str, values: Iterable, make: Callable) -> dict[tuple, Callable]:
        return {("growth", axis, str(value)): make(value) for value in values}

    batch = plan.batch_size
    pairs = [(norm, conv) for norm in NORMS for conv in CONVS]
    return (
        {("pairs", *pair): step(Net(*pair), recipe, batch, device) for pair in pairs}
        | works("batch size", plan.batch_sizes, lambda n: step(Net(), recipe, n, device))
        | works("width", plan.widths, lambda n: step(Net(width=n), recipe, batch, device))
        | works("image size", plan.image_sizes, lambda n: step(Net(), recipe, batch, device, n))
    )


def _trainings(plan: Plan, recipe: Recipe, data: Dataset, device: torch.device) -> dict[tuple, Callable]:
    same = replace(recipe, image_sizes=())  # as many pixels as the conventional one works on
    return {
        ("training", "conventional"): conventional(Net(), data, plan, device),
        ("training", "ours"): ours(Net(), data, same, plan, device),
        ("training", "ours, sizes as scheduled"): ours(Net(), data, recipe, plan, device),
    }


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# ---- What it comes to ------------------------------------------------------------------------------


def rates(result: Mapping) -> dict[str, dict[str, dict[str, float]]]:
    """What the times in `result` say, by their medians: a table a title, a row a name, a figure a column."""
    plan, growth = result["plan"], result["growth"]
    batch = plan["batch_size"]

    def converted(rows: Mapping, figure: Callable[[float, str], float]) -> dict[str, dict[str, float]]:
        return {
            row: {column: figure(median(times), column) for column, times in columns.items()}
            for row, columns in rows.items()
        }

    return {
        "training [images/s]": converted({"": result["training"]}, lambda s, _: plan["batches"] * batch / s),
        "matrix product, by size [GFLOP/s]": converted(result["matmul"], lambda s, n: 2e-9 * int(n) ** 3 / s),
        f"step of {batch} images [ms]": converted(result["pairs"], lambda s, _: 1e3 * s),
        f"step of {batch} images [images/s]": converted(result["pairs"], lambda s, _: batch / s),
    } | {f"step, by {axis} [ms]": converted({"": growth[axis]}, lambda s, _: 1e3 * s) for axis in growth}


def summary(result: Mapping) -> dict:
    """The main figures, from the times in `result`: medians, and ratios of medians."""
    training, products, *_ = rates(result).values()
    conventional, ours, scheduled = training[""].values()
    peaks = {dtype: max(sizes.values()) for dtype, sizes in products.items()}
    dtype, memory = result["machine"]["dtype"], result["start"]["bytes"]
    step_gflops = 1e-9 * result["step"]["flops"] / median(result["step"]["seconds"])
    return {
        "dataset": result["dataset"],
        "dtype": dtype,
        "conventional_images_per_second": conventional,
        "ours_images_per_second": ours,
        "ratio": ours / conventional,
        "ratio_sizes_as_scheduled": scheduled / conventional,
        "peak_float32_gflops": peaks["float32"],
        "peak_gflops": peaks[dtype],
        "step_gflops": step_gflops,
        "share_of_peak": step_gflops / peaks[dtype],
        "peak_memory_bytes": None if None in memory else max(memory),
        "first_step_seconds": median(result["start"]["seconds"]),
    }


def table(result: Mapping) -> str:
    """The result as text."""
    host, main = result["machine"], result["summary"]
    where = f"{host['processor']}, {host['device']}, {host['threads']} threads, torch {host['torch']}"
    named = {name.replace("_", " "): {"": figure} for name, figure in main.items()}
    tables = {**rates(result), f"recipe of the step: {result['step']['recipe']}": named}
    where += f"; medians of {len(result['step']['seconds'])} rounds"
    return "\n\n".join([where, *(_aligned(title, rows) for title, rows in tables.items())])


def markdown(result: Mapping) -> str:
    """The main figures and the times of the pairs as two Markdown tables, the way README.md shows them."""
    host, main = result["machine"], result["summary"]
    figures = {
        "conventional recipe, images/s": main["conventional_images_per_second"],
        "ours, images/s": main["ours_images_per_second"],
        "ours, times the conventional": main["ratio"],
        "the same, image sizes as scheduled": main["ratio_sizes_as_scheduled"],
        "matrix product in float32, GFLOP/s": main["peak_float32_gflops"],
        f"matrix product in {host['dtype']}, GFLOP/s": main["peak_gflops"],
        f"training step of `{result['step']['recipe']}`, GFLOP/s": main["step_gflops"],
        "its share of the peak, %": 100 * main["share_of_peak"],
        "memory of the process at most, GB": main["peak_memory_bytes"] and 1e-9 * main["peak_memory_bytes"],
        "from the first import to the first step's end, s": main["first_step_seconds"],
    }
    rounds = f"medians of {len(result['step']['seconds'])} rounds"
    where = f"{host['processor']}, {host['device']}, {host['threads']} threads, {rounds}"
    rows = [(where, ""), *((name, _written(figure)) for name, figure in figures.items())]
    pairs = rates(result)[title := f"step of {result['plan']['batch_size']} images [ms]"]
    grid = [(title, *pairs["batch"]), *((norm, *map(_written, row.values())) for norm, row in pairs.items())]
    return f"{_markdown(rows)}\n\n{_markdown(grid)}"


def _markdown(rows: Iterable[Iterable[str]]) -> str:
    head, *body = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([head, "| --- |" + " ---: |" * (head.count("|") - 2), *body])


def _aligned(title: str, rows: Mapping[str, Mapping[str, float | str | None]]) -> str:
    lines = [[title, *next(iter(rows.values()))]]
    lines += [[name, *map(_written, row.values())] for name, row in rows.items()]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
        for line in lines
    )


def _written(figure: float | str | None) -> str:
    if figure is None or isinstance(figure, str):
        return figure or "not known"
    return f"{figure:.3g}" if figure < 1000 else f"{figure:,.0f}"


def write(result: Mapping, folder: str | Path) -> Path:
    """Write the result as JSON, named after machine and data set; returns the path."""
    host = result["machine"]
    words = f"{host['device']} {host['processor']} {host['threads']} threads {result['dataset']}"
    path = Path(folder) / (re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-") + ".json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    return path
