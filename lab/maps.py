"""What is inside a trained network: feature maps that are nearly silent, and weights that are nearly zero."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lab.optim import is_weight
from lab.training import evaluate

WEAK = 0.1  # of the median strength of the maps in the same layer
SMALL = 0.1  # of the root mean square of the weights in the same layer; of normal weights 8 % are smaller


class Inside(NamedTuple):
    """Counts over all layers of a network."""

    maps: int
    weak: int  # maps whose strength is below WEAK times the median of their layer
    small: float  # share of the convolution weights below SMALL times the root mean square of their layer


def inside(net: nn.Module, images: Tensor) -> Inside:
    """Count weak maps and small weights of `net`, on prepared float images (N, C, H, W).

    A map is an output channel of an activation (nn.ReLU); its strength is the root mean square over images
    and places. The network, its modes and the random states stay as they were. Raises ValueError if it has no
    nn.ReLU, or no weight.
    """
    strengths = map_strengths(net, images)
    weak = sum(int((layer < WEAK * layer.median()).sum()) for layer in strengths)
    return Inside(sum(map(len, strengths)), weak, small_weights(net.parameters()))


def map_strengths(net: nn.Module, images: Tensor) -> list[Tensor]:
    """For each nn.ReLU of the network, in the order of computation, the strength of each map: (channels,).

    Raises ValueError if it has no nn.ReLU.
    """
    activations = [module for module in net.modules() if isinstance(module, nn.ReLU)]
    if not activations:
        raise ValueError(f"{type(net).__name__} has no nn.ReLU, whose output is looked at")
    squares: dict[nn.Module, Tensor] = {}
    counts: dict[nn.Module, int] = {}

    def look(module: nn.Module, _inputs, output: Tensor) -> None:
        summed = output.detach().double().square().sum((0, 2, 3)).cpu()
        squares[module] = squares.get(module, 0) + summed
        counts[module] = counts.get(module, 0) + output.numel() // output.shape[1]

    handles = [module.register_forward_hook(look) for module in activations]
    try:
        parts = images.split(250)
        evaluate(net, ((part, torch.zeros(len(part)).long()) for part in parts), dtype=torch.float32)
    finally:
        for handle in handles:
            handle.remove()
    return [(square / counts[module]).sqrt() for module, square in squares.items()]


def small_weights(parameters: Iterable[Tensor]) -> float:
    """The share, in [0, 1], of convolution weights that are small beside those of their layer.

    Raises ValueError without any weight.
    """
    layers = [parameter.detach() for parameter in parameters if is_weight(parameter)]
    if not layers:
        raise ValueError("no weight of a convolution or a linear layer")
    small = sum(int((w.abs() < SMALL * w.square().mean().sqrt()).sum()) for w in layers)
    return small / sum(math.prod(w.shape) for w in layers)
