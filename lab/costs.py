"""What the arms of a study cost: time, memory and arithmetic of a network, measured on an idle machine."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lab.bench import Key, Work, alternate, product, repeated, step, step_flops
from lab.experiment import Experiment
from lab.fast import fast_layers
from lab.files import write_whole
from lab.loaders import random_states_kept
from lab.machine import file_stem, machine, number_format, pick_device
from lab.schema import json_bytes, read_json
from lab.training import evaluate
from lab.tuning import Format
from model import Net

BATCH = 256  # images
SIDE = 32  # pixels
TRAINING_IMAGES = 50_000  # of CIFAR-10, on which the arms are trained
PRODUCTS = (2048, 4096)  # rows of square matrices: the fastest product is the peak


class Cost(NamedTuple):
    """What a network costs for an image, in training and to classify it."""

    train_microseconds: float  # nan for a training with other batches than those that were timed
    forward_microseconds: float
    memory: int  # bytes of activations that the backward pass needs
    share_of_peak: float  # of the rate of a large matrix product, in [0, 1], in training; nan likewise
    run_seconds: float = math.nan  # of a training as the arm's recipe has it; nan where not all was measured


def measure(
    arms: Iterable[Experiment],
    *,
    device: str | torch.device | None = None,
    dtype: str | None = None,
    rounds: int = 9,
    seconds: float = 0.3,
) -> dict[str, Any]:
    """Time a training step and a forward pass of each arm's network, on 256 images of 32x32 pixels.

    The training step also on images of the other sizes that the recipes train with. All take turns, in one
    number format, with large matrix products. dtype: None is the one that the hardware is made for. seconds:
    of a timing, about. Returns every time in seconds, as plain data, by network.
    """
    device = pick_device(device)
    format_ = number_format(device, None if dtype is None else getattr(torch, dtype))
    networks = {network_key(arm): arm for arm in arms}
    with random_states_kept(device):
        works: dict[Key, Work] = {("product", str(n)): product(n, format_, device) for n in PRODUCTS}
        for network, arm in networks.items():
            for side in {SIDE, *map(_side, arm.recipe.size_shares())}:
                works[_training(side), network] = step(
                    arm.network(), arm.recipe, BATCH, device, side, form=Format(format_)
                )
            works["forward", network] = _forward(arm.network(), device, format_)
        times = alternate({key: repeated(work, device, seconds) for key, work in works.items()}, rounds)
        images = torch.zeros(BATCH, 3, SIDE, SIDE)
        flops = {network: step_flops(arm.network(), images) for network, arm in networks.items()}
        memory = {network: saved_bytes(arm.network(), format_) for network, arm in networks.items()}
    host = machine(device) | {"dtype": str(format_).removeprefix("torch.")}
    return {"machine": host, "batch_size": BATCH, "side": SIDE, **times, "flops": flops, "memory": memory}


def _side(scale: float) -> int:
    """Pixels a side, with this factor on the images' sides."""
    return max(1, round(SIDE * scale))


def _training(side: int) -> str:
    """The name under which the times of training steps on images of that size are kept."""
    return "train" if side == SIDE else f"train at {side} pixels"


def network_key(arm: Experiment) -> str:
    """What decides the network of an arm: technique, normalization and options."""
    return f"{arm.conv} {arm.norm} {arm.recipe.net or ''}".strip()


def _forward(net: Net, device: torch.device, dtype: torch.dtype) -> Work:
    net.to(device).to(memory_format=torch.channels_last)
    images = torch.randn(BATCH, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    batch = images.to(device, memory_format=torch.channels_last), torch.zeros(BATCH, dtype=torch.long)
    return lambda count: evaluate(net, [batch] * count, device=device, dtype=dtype)


def saved_bytes(net: nn.Module, dtype: torch.dtype) -> int:
    """Bytes for each further image that a forward pass keeps for the backward pass.

    Counted on the CPU, as the network computes there: each piece of memory once.
    """
    net = net.to("cpu").to(memory_format=torch.channels_last).train()
    return (_saved(net, dtype, 16) - _saved(net, dtype, 8)) // 8


def _saved(net: nn.Module, dtype: torch.dtype, images: int) -> int:
    kept: dict[int, int] = {}
    held = []  # so that no memory is used again, and counted as the same

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        held.append(tensor)
        return tensor

    batch = torch.zeros(images, 3, SIDE, SIDE).to(memory_format=torch.channels_last)
    cast = torch.autocast("cpu", dtype, enabled=dtype != torch.float32)
    with fast_layers(net, "cpu"), cast, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        net(batch)
    return sum(kept.values())


def write(result: Mapping[str, Any], folder: str | Path) -> Path:
    """Write what was measured as JSON, named after the machine; returns the path."""
    host = result["machine"]
    return write_whole(Path(folder) / f"{file_stem(host, host['dtype'])}.json", json_bytes(result))


def costs(result: Mapping[str, Any], arms: Iterable[Experiment]) -> dict[str, Cost]:
    """The costs of the arms whose networks were measured, by label: medians over the rounds."""
    count = result["batch_size"]
    peak = max(2 * int(n) ** 3 / min(times) for n, times in result["product"].items())
    found = {}
    for arm in arms:
        if (network := network_key(arm)) in result["train"]:
            timed = arm.recipe.batch_size == count
            train = statistics.median(result["train"][network]) if timed else math.nan
            forward = statistics.median(result["forward"][network])
            share = result["flops"][network] / train / peak
            memory = result["memory"][network]
            seconds = arm.recipe.epochs * TRAINING_IMAGES / count * _step(result, arm) if timed else math.nan
            found[arm.label] = Cost(1e6 * train / count, 1e6 * forward / count, memory, share, seconds)
    return found


def _step(result: Mapping[str, Any], arm: Experiment) -> float:
    """The mean time of a training step in seconds, over the sizes of the recipe; nan if one was not timed."""
    network, seconds = network_key(arm), 0.0
    for scale, share in arm.recipe.size_shares().items():
        times = result.get(_training(_side(scale)), {}).get(network, [math.nan])
        seconds += share * statistics.median(times)
    return seconds


def read(folder: str | Path) -> dict[str, Any] | None:
    """What was measured, from the first file in the folder; None if there is none.

    Raises ValueError, naming the file, for one that cannot be read.
    """
    path = next(iter(sorted(Path(folder).glob("*.json"))), None)
    if path is None:
        return None
    try:
        return read_json(path)
    except ValueError as error:
        raise ValueError(f"{path} is not a measurement of costs: {error}") from error
