"""Faster CPU implementations of some layers, active during a training or an evaluation: `fast_layers`.

A network consists of torch's own layers, so every tool understands it. torch computes some of them slowly
on a CPU: depthwise convolutions that are strided, dilated or larger than 3x3, in training, and normalizations
over several groups on channels-last maps. `fast_layers` replaces how these compute, and puts everything back
at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@contextmanager
def fast_layers(net: nn.Module, device: str | torch.device) -> Iterator[None]:
    """Within the context, compute the slow layers of `net` in a faster way, on a CPU; elsewhere do nothing.

    Gives an instance attribute `forward` to each depthwise `nn.Conv2d` with a stride or a dilation above 1
    or a kernel above 3x3, and to each `nn.GroupNorm` with more than one group, and removes it at the end,
    also after an exception. Values and gradients agree with torch's up to rounding; dtype and shape are the
    same. Does not touch subclasses, nor modules whose `forward` somebody else has replaced. A copy of the
    network that is made within the context keeps the faster way.
    """
    ours: list[tuple[nn.Module, Callable]] = []
    try:
        for module in net.modules() if torch.device(device).type == "cpu" else ():
            faster = _faster(module)
            if faster is not None and "forward" not in vars(module):
                forward = partial(faster, module)
                module.forward = forward
                ours.append((module, forward))
        yield
    finally:
        for module, forward in ours:
            if vars(module).get("forward") is forward:
                del module.forward


def _faster(module: nn.Module) -> Callable[..., Tensor] | None:
    if type(module) is nn.GroupNorm and module.num_groups > 1:
        return group_norm
    if type(module) is not nn.Conv2d or not module.groups == module.in_channels == module.out_channels > 1:
        return None
    large = max(module.kernel_size) > 3
    if module.stride != (1, 1) or (large and module.dilation == (1, 1)):
        return wide_depthwise
    sides = zip(module.kernel_size, module.dilation, strict=True)
    keeps_size = module.padding in ("same", tuple(dilation * (side - 1) // 2 for side, dilation in sides))
    odd = all(side % 2 == 1 for side in module.kernel_size)
    if module.dilation != (1, 1) and odd and keeps_size and module.padding_mode == "zeros":
        return dilated_depthwise
    return None


def group_norm(norm: nn.GroupNorm, x: Tensor) -> Tensor:  # (N, C, H, W) -> (N, C, H, W)
    """Channels first, and back: torch walks a channels-last map one channel at a time, which costs more."""
    if x.device.type != "cpu" or x.ndim != 4 or x.is_contiguous():
        return nn.GroupNorm.forward(norm, x)
    maps = nn.GroupNorm.forward(norm, x.contiguous())
    return maps.contiguous(memory_format=torch.channels_last)


def wide_depthwise(conv: nn.Conv2d, x: Tensor) -> Tensor:  # (N, C, H, W) -> (N, C, H', W')
    """In float32: oneDNN has no fast bfloat16 backward pass for a stride, nor for kernels above 3x3.

    With 32 channels, 32x32 pixels and batches of 256 it takes five times as long with a stride, measured on
    two cores of an AMD Zen 4, and with 48 channels and 7x7 pixels 2.6 times as long, on an Intel Xeon.
    """
    if x.device.type != "cpu" or not torch.is_grad_enabled():
        return nn.Conv2d.forward(conv, x)
    return _wide(conv, x, conv._conv_forward)


def _wide(conv: nn.Conv2d, x: Tensor, convolve: Callable[[Tensor, Tensor, Tensor | None], Tensor]) -> Tensor:
    """`convolve` of `x`, the weight and the bias in float32 at least, as the format that is asked for."""
    narrow = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    wide = torch.promote_types(x.dtype, torch.float32)
    with torch.autocast("cpu", enabled=False):
        bias = None if conv.bias is None else conv.bias.to(wide)
        return convolve(x.to(wide), conv.weight.to(wide), bias).to(narrow)


def dilated_depthwise(conv: nn.Conv2d, x: Tensor) -> Tensor:  # (N, C, H, W) -> (N, C, H, W)
    """As an undilated convolution on smaller maps, which has a fast backward pass; takes a ninth of the time.

    A dilation of 2 reads only every second pixel in each direction. So the pixels at the same place in
    every 2x2 form a map of their own, on which the taps are neighbours.

    Measured with 128 channels, 8x8 pixels, batches of 256, on two cores of an AMD Zen 4.
    """
    if x.device.type != "cpu" or x.ndim != 4 or not torch.is_grad_enabled():
        return nn.Conv2d.forward(conv, x)
    (down, across), (height, width) = conv.dilation, x.shape[2:]
    # Maps that are smaller than the kernel are computed ten times as slowly, so these are made as large.
    high, wide = (
        step * max(side, -(-length // step))
        for side, step, length in zip(conv.kernel_size, conv.dilation, (height, width), strict=True)
    )
    x = F.pad(x, (0, wide - width, 0, high - height)).permute(0, 2, 3, 1)  # (N, H, W, C)
    shape = (len(x), x.shape[1] // down, down, x.shape[2] // across, across, x.shape[3])
    maps = x.reshape(shape).permute(0, 2, 4, 1, 3, 5).flatten(0, 2).permute(0, 3, 1, 2)
    padding = [side // 2 for side in conv.kernel_size]
    convolve = partial(F.conv2d, padding=padding, groups=conv.groups)
    large = max(conv.kernel_size) > 3
    maps = _wide(conv, maps, convolve) if large else convolve(maps, conv.weight, conv.bias)
    maps = maps.permute(0, 2, 3, 1).unflatten(0, (len(x), down, across)).permute(0, 3, 1, 4, 2, 5)
    maps = maps.reshape(x.shape).permute(0, 3, 1, 2)[:, :, :height, :width]
    return maps.contiguous(memory_format=torch.channels_last)  # a copy, if pixels were added
