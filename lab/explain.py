"""What a network looks at: the places that speak for a class, and the pixels that its units and logits read.

Each function takes any network, ours or another, and leaves it as it was: its modes, buffers and gradients,
and the random states. What is measured, is measured in evaluation mode unless the docstring says otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from lab.checks import as_integer, as_number, as_tensor, check_type
from lab.loaders import random_states_kept
from lab.metrics import Array, as_array, class_numbers
from lab.training import _device_of, _modes_kept, _no_autocast

TOGETHER = 50  # images of which the maps and gradients of a whole network are kept at a time

# ---- The network while it is looked at -------------------------------------------------------------


@contextmanager
def _looking(net: nn.Module) -> Iterator[torch.device]:
    """Evaluation mode and gradients in float32, also where the caller has turned them off."""
    check_type("net", net, nn.Module, "a torch.nn.Module")
    device = _device_of(net, None)
    with random_states_kept(device), _modes_kept(net), _no_autocast(device):
        net.eval()
        with torch.inference_mode(False), torch.enable_grad():
            yield device


class _Maps:
    """Calls the network once and keeps its last maps: 4-D tensors, with more than one place if there are any.

    entered: the map that enters the last convolution or linear layer, if that layer sees one; otherwise the
    last map. last: the last map that a module returned.
    """

    def __init__(self, net: nn.Module, images: Tensor):
        self.entered: Tensor | None = None
        self.last: Tensor | None = None
        handles = []
        try:
            for module in net.modules():
                handles.append(module.register_forward_hook(self._left))
                if isinstance(module, nn.Conv2d | nn.Linear):
                    handles.append(module.register_forward_pre_hook(self._entered))
            self.output = net(images)
        finally:
            for handle in handles:
                handle.remove()
        if self.last is None:
            raise ValueError(f"no module of {type(net).__name__} returns a map (N, C, H, W)")

    def _entered(self, _module: nn.Module, inputs: tuple[Any, ...]) -> None:
        found = inputs[0] if inputs else None
        self.entered = found if _is_map(found) and _is_wide(found) else None

    def _left(self, _module: nn.Module, _inputs, output: Any) -> None:
        if _is_map(output) and (self.last is None or _is_wide(output) >= _is_wide(self.last)):
            self.last = output


def _is_map(value: Any) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and value.ndim == 4


def _is_wide(maps: Tensor) -> bool:
    return maps.shape[2:].numel() > 1


def _own(images: Tensor, device: torch.device) -> Tensor:
    """A copy of the images on `device` that has a gradient, so that everything computed from it has one."""
    return images.detach().to(device, copy=True).requires_grad_()


def _logits(net: nn.Module, output: Any, count: int) -> Tensor:
    if isinstance(output, Tensor) and output.ndim == 2 and len(output) == count:
        return output
    found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    raise ValueError(f"{type(net).__name__} returns {found}: expected logits ({count}, classes)")


def _prepared(images: Any) -> Tensor:
    images = as_tensor("images", images)
    if not images.is_floating_point() or images.ndim != 4 or images.numel() == 0:
        raise ValueError(
            f"images of {images.dtype} {tuple(images.shape)}: expected prepared float images (N, C, H, W), "
            "at least one"
        )
    return images


# ---- Which places speak for a class ----------------------------------------------------------------


def class_activation_maps(net: nn.Module, images: Tensor, classes: Array | None = None) -> Tensor:
    """How much each place of the last map speaks for a class: (N, h, w), on the CPU.

    images: prepared float images (N, C, H, W). classes: a class number for each image, (N,); None is the
    class that the network predicts. A positive number speaks for the class, a negative one against it.

    At each place, the sum over channels of activation times gradient of the class's logit, times the number
    of places: if what follows the map is linear, the mean over the places is what it adds to the logit. The
    map is the one that enters the last convolution or linear layer, or if none enters it, because the places
    were averaged before, the last one with more than one place. It follows that for

    - a convolution whose places are averaged, as in our Net, the mean over places is the logit without the
      bias; if the convolution is 1x1, the result is `net.features(images)[n, class]` without the bias,
    - an average over places and then a linear layer, the result is the class activation map of Zhou et al.,
      arXiv 1512.04150: the sum over channels of activation times the layer's weight.

    For other networks it is Grad-CAM (Selvaraju et al., arXiv 1610.02391) with each place's own gradient
    instead of the average over the places, and with the negative numbers.

    Raises ValueError for other images or classes, and for a network that has no map or no logits.
    """
    images = _prepared(images)
    with _looking(net) as device:
        found = []
        for start in range(0, len(images), TOGETHER):
            part = slice(start, start + TOGETHER)
            seen = _Maps(net, _own(images[part], device))
            logits = _logits(net, seen.output, len(images[part]))
            if classes is None:
                chosen = logits.argmax(1)
            else:
                numbers = class_numbers(classes, "classes", logits.shape[1], len(images))
                chosen = torch.from_numpy(numbers)[part].to(device)
            maps = seen.last if seen.entered is None else seen.entered
            assert maps is not None  # _Maps has checked it
            score = logits.gather(1, chosen[:, None]).sum()  # images do not depend on each other here
            (gradient,) = torch.autograd.grad(score, maps)
            spoken = (maps.detach() * gradient).sum(1) * maps.shape[2:].numel()
            found.append(spoken.float().cpu())
    return torch.cat(found)


# ---- What is read ----------------------------------------------------------------------------------


def effective_receptive_field(
    net: nn.Module, image_size: int = 64, images: int = 16, seed: int = 0
) -> Tensor:
    """How strongly the central unit of the last map depends on each pixel: (H, W), float64, with the sum 1.

    The magnitude of the gradient with respect to the pixels, averaged over their channels and over `images`
    images of normal noise. The gradient is that of a sum of the unit's channels whose weights are drawn for
    each image: it does not vanish if all channels always add up to the same number. The map is the last one
    with more than one place. The field is cut off at the border if the image is smaller than it.

    image_size: side of the images in pixels. Raises ValueError for other numbers, for a network that has no
    map, and if no pixel has an influence.

    Source: Luo et al., "Understanding the Effective Receptive Field", arXiv 1701.04128.
    """
    with _looking(net) as device:
        noise = _noise(net, image_size, images, seed)
        pixels = _own(noise, device)
        maps = _Maps(net, pixels).last
        assert maps is not None  # _Maps has checked it
        unit = maps[:, :, maps.shape[2] // 2, maps.shape[3] // 2]
        field = _magnitude(unit, pixels, seed).mean((0, 1))
    if not 0 < float(field.sum()) < float("inf"):
        raise ValueError(
            f"the central unit of {type(net).__name__} has a gradient that is zero everywhere or not finite"
        )
    return field / field.sum()


def field_radius(field: Array, share: float = 0.5) -> float:
    """Radius, in pixels, of the smallest circle around the centre of mass that holds this share.

    field: (H, W), as from `effective_receptive_field`. A pixel is inside if its centre is. share: above 0, at
    most 1. Raises ValueError for other values.
    """
    share = as_number("share", share, 0, 1, above=True)
    values = as_array(field, "field").astype(np.float64)
    if values.ndim != 2 or not np.isfinite(values).all() or (values < 0).any() or not values.any():
        raise ValueError(
            f"field of shape {values.shape}: expected finite numbers (H, W) of at least 0, some not 0"
        )
    values = values / values.sum()
    rows, columns = np.indices(values.shape)
    distance = np.hypot(rows - (rows * values).sum(), columns - (columns * values).sum()).ravel()
    order = distance.argsort()
    inside = values.ravel()[order].cumsum() >= share - 1e-9  # their sum may be 1 - 1e-16
    return float(distance[order][inside.argmax()])


def pixels_read(net: nn.Module, image_size: int = 32) -> Tensor:
    """On which pixels the logits depend at all: bool (H, W).

    Measured by the gradients of the logits at 16 images of normal noise: a pixel is read if one of them is
    not exactly zero. image_size: side of the images in pixels. Raises ValueError for other numbers, and for
    a network that has no logits.
    """
    with _looking(net) as device:
        noise = _noise(net, image_size, 16, seed=0)
        pixels = _own(noise, device)
        logits = _logits(net, net(pixels), len(pixels))
        return (_magnitude(logits, pixels, seed=0) > 0).any(0).any(0)


def footprint(dilations: Sequence[int], kernel_size: int = 3) -> Tensor:
    """How many paths lead from each pixel of the input to one output of stacked convolutions: int64 (S, S).

    dilations: of each convolution, in pixels between its taps; all have stride 1 and the same kernel. S is
    the side of the receptive field. A pixel with 0 paths is never read: the rates 2, 2, 2 leave such holes,
    1, 2, 3 do not. Raises ValueError for other numbers, and for more paths than an int64 can count.

    Source: Wang et al., "Understanding Convolution for Semantic Segmentation", arXiv 1702.08502.
    """
    kernel_size = as_integer("kernel_size", kernel_size, 1)
    rates = [as_integer("dilation", rate, 1) for rate in dilations]
    if kernel_size ** (2 * len(rates)) > torch.iinfo(torch.int64).max:
        raise ValueError(
            f"{len(rates)} convolutions of kernel_size={kernel_size} have more paths than an int64 can count"
        )
    line = np.ones(1, dtype=np.int64)  # paths along a row; those along a column are the same
    for rate in rates:
        taps = np.zeros(rate * (kernel_size - 1) + 1, dtype=np.int64)
        taps[::rate] = 1
        line = np.convolve(line, taps)
    return torch.from_numpy(np.outer(line, line))


def _noise(net: nn.Module, image_size: int, count: int, seed: int) -> Tensor:
    """Images (count, C, H, W), with the `in_channels` of the network's first part that has them, or 3."""
    side = as_integer("image_size", image_size, 1)
    count = as_integer("images", count, 1)
    known = (getattr(module, "in_channels", None) for module in net.modules())
    channels = next((number for number in known if isinstance(number, int)), 3)
    dtype = next((parameter.dtype for parameter in net.parameters()), torch.float32)
    return torch.randn(count, channels, side, side, generator=_generator(seed)).to(dtype)


def _magnitude(units: Tensor, pixels: Tensor, seed: int) -> Tensor:
    """Magnitude of the gradient of a random sum of each image's `units` (N, C): (N, C, H, W), on the CPU."""
    weights = torch.randn(units.shape, generator=_generator(seed)).to(units)
    (gradient,) = torch.autograd.grad((units * weights).sum(), pixels)
    return gradient.abs().double().cpu()


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(as_integer("seed", seed, 0, 2**63 - 1))


# ---- What an image's logits depend on beside the image ----------------------------------------------


def alone_and_together(net: nn.Module, images: Tensor) -> dict[str, float]:
    """By how much the logits of the first image change when the others are computed with it.

    images: prepared float images (N, C, H, W), at least two. Returns the largest difference between the
    logits alone and together in each mode, {"training": ..., "evaluation": ...}. In training mode, batch
    normalization makes it large, because the statistics are those of the batch. In evaluation mode it is
    near 0; rounding may depend on the size of the batch. The dropout of torch.nn is off in both, since its
    random masks would count; other modules that draw random numbers do so.

    Raises ValueError for other images, and for a network that has no logits; torch raises it if a batch
    normalization finds a single number per channel in one image.
    """
    images = _prepared(images)
    if len(images) < 2:
        raise ValueError(f"images of shape {tuple(images.shape)}: expected at least two")
    with _looking(net) as device, _buffers_kept(net), torch.no_grad():
        images = images.to(device)

        def difference() -> float:
            alone, together = (_logits(net, net(part), len(part)) for part in (images[:1], images))
            return float((alone[0] - together[0]).abs().max())

        evaluation = difference()
        for module in net.modules():
            module.training = not isinstance(module, _DropoutNd)
        return {"training": difference(), "evaluation": evaluation}


@contextmanager
def _buffers_kept(net: nn.Module) -> Iterator[None]:
    """Restore the values of all buffers, such as the running statistics."""
    before = [(buffer, buffer.clone()) for buffer in net.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, values in before:
                buffer.copy_(values)
