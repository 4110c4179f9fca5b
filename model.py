"""Convolution techniques in one small network: `Net`, its blocks and its arithmetic.

Needs torch alone, so the file can be copied beside any notebook and imported there:

    from model import Net, describe
    net = Net("batch", "mixed")            # normalization, convolution technique
    print(describe(net))                   # a row per convolution: shapes, receptive field, cost

    net = Net.from_pretrained("minute")    # trained, with minute.pt of weights/ beside this file
    print(net.predict(image))              # the class of a PIL image, and how sure the network is

The sections, from top to bottom: convolution techniques, normalizations, the block that joins them,
the network, its files, images for a trained one, and its arithmetic (parameters, multiply-accumulates,
receptive field).
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import zipfile
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# ---- Convolution techniques ------------------------------------------------------------------------
# Each maps (N, in_channels, H, W) to (N, out_channels, ceil(H / stride), ceil(W / stride)).


def standard(in_channels, out_channels, *, kernel_size=3, stride=1, dilation=1, bias=False) -> nn.Module:
    """The dense convolution: every output channel reads every input channel at every tap."""
    return _conv2d(in_channels, out_channels, kernel_size, stride, dilation, bias=bias)


def dilated(in_channels, out_channels, *, kernel_size=3, stride=1, dilation=2, bias=False) -> nn.Module:
    """The dense convolution with its taps `dilation` pixels apart: a wider view for the same weights.

    Source: Yu and Koltun, "Multi-Scale Context Aggregation by Dilated Convolutions", arXiv 1511.07122.
    """
    return _conv2d(in_channels, out_channels, kernel_size, stride, dilation, bias=bias)


def depthwise_separable(
    in_channels, out_channels, *, kernel_size=3, stride=1, dilation=1, bias=False
) -> nn.Module:
    """Depthwise, then pointwise: each channel is filtered alone, then a 1x1 convolution mixes channels.

    Source: Howard et al., "MobileNets", arXiv 1704.04861 (here with nothing between the two).
    """
    block = nn.Sequential()
    block.add_module(
        "depthwise", _conv2d(in_channels, in_channels, kernel_size, stride, dilation, in_channels)
    )
    block.add_module("pointwise", _conv2d(in_channels, out_channels, 1, bias=bias))
    return block


def blueprint_separable(
    in_channels, out_channels, *, kernel_size=3, stride=1, dilation=1, bias=False
) -> nn.Module:
    """Pointwise, then depthwise: channels are mixed first, then each output channel is filtered alone.

    Source: Haase and Amthor, "Rethinking Depthwise Separable Convolutions", arXiv 2003.13549 (BSConv-U).
    """
    block = nn.Sequential()
    block.add_module("pointwise", _conv2d(in_channels, out_channels, 1))
    block.add_module(
        "depthwise",
        _conv2d(out_channels, out_channels, kernel_size, stride, dilation, out_channels, bias=bias),
    )
    return block


def mixed(in_channels, out_channels, *, kernel_size=3, stride=1, dilation=1, bias=False) -> nn.Module:
    """Each technique where it pays, the rule that the rows of `STAGES` follow.

    Dilated where a dilation above 1 is asked for; depthwise-separable where it would make more than 64
    channels, for there a dense kernel costs the most weights; standard elsewhere.
    """
    technique = dilated if dilation > 1 else depthwise_separable if out_channels > 64 else standard
    return technique(
        in_channels, out_channels, kernel_size=kernel_size, stride=stride, dilation=dilation, bias=bias
    )


def _conv2d(in_channels, out_channels, kernel_size, stride=1, dilation=1, groups=1, bias=False) -> nn.Conv2d:
    if groups == in_channels == out_channels > 1:
        return DepthwiseConv2d(in_channels, kernel_size, stride, dilation, bias)
    padding = dilation * (kernel_size - 1) // 2  # what keeps the size at stride 1, for an odd kernel
    return nn.Conv2d(
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups=groups, bias=bias
    )


class DepthwiseConv2d(nn.Conv2d):
    """Each channel filtered alone, padded to keep the size at stride 1; fast to train, strided or dilated.

    In bfloat16, oneDNN has a fast backward pass for the plain one alone. A strided one takes a fifth of
    the time in float32, and a dilated one a ninth where it is done as a plain one on more, smaller maps
    (32 channels, 32x32; 128 channels, 8x8; batches of 256; two cores of an AMD Zen 4).
    """

    def __init__(
        self, channels: int, kernel_size: int, stride: int = 1, dilation: int = 1, bias: bool = False
    ):
        padding = dilation * (kernel_size - 1) // 2
        super().__init__(
            channels, channels, kernel_size, stride, padding, dilation, groups=channels, bias=bias
        )

    def forward(self, x: Tensor) -> Tensor:  # (N, C, H, W) -> (N, C, ceil(H / stride), ceil(W / stride))
        if x.device.type != "cpu" or not torch.is_grad_enabled():
            return super().forward(x)
        if self.stride != (1, 1):
            return self._in_float32(x)
        return super().forward(x) if self.dilation == (1, 1) else self._by_phases(x)

    def _in_float32(self, x: Tensor) -> Tensor:
        narrow = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        wide = torch.promote_types(x.dtype, torch.float32)
        with torch.autocast("cpu", enabled=False):
            bias = None if self.bias is None else self.bias.to(wide)
            return self._conv_forward(x.to(wide), self.weight.to(wide), bias).to(narrow)

    def _by_phases(self, x: Tensor) -> Tensor:
        """On the pixels at the same place of every `dilation` x `dilation`: there the taps are neighbours."""
        (down, across), (height, width) = self.dilation, x.shape[2:]
        x = F.pad(x, (0, -width % across, 0, -height % down)).permute(0, 2, 3, 1)  # (N, H, W, C)
        shape = (len(x), x.shape[1] // down, down, x.shape[2] // across, across, x.shape[3])
        maps = x.reshape(shape).permute(0, 2, 4, 1, 3, 5).flatten(0, 2).permute(0, 3, 1, 2)
        padding = [side // 2 for side in self.kernel_size]
        maps = F.conv2d(maps, self.weight, self.bias, padding=padding, groups=self.groups)
        maps = maps.permute(0, 2, 3, 1).unflatten(0, (len(x), down, across)).permute(0, 3, 1, 4, 2, 5)
        return maps.reshape(x.shape).permute(0, 3, 1, 2)[:, :, :height, :width]


CONVS: dict[str, Callable[..., nn.Module]] = {
    "standard": standard,
    "dilated": dilated,
    "depthwise_separable": depthwise_separable,
    "blueprint_separable": blueprint_separable,
    "mixed": mixed,
}

# ---- Normalizations --------------------------------------------------------------------------------
# Each maps a number of channels to a module that keeps the shape (N, C, H, W).


def batch_norm(channels: int) -> nn.Module:
    """Each channel over the batch: statistics over (N, H, W). Ioffe and Szegedy, arXiv 1502.03167."""
    return nn.BatchNorm2d(channels)


def layer_norm(channels: int) -> nn.Module:
    """Each image over all its channels: statistics over (C, H, W), affine per channel. arXiv 1607.06450."""
    return nn.GroupNorm(1, channels)


class GroupNorm(nn.GroupNorm):
    """torch's GroupNorm, faster on a CPU where a channels-last map has several groups.

    torch walks such a map a channel at a time; turning it to channels first and back costs far less.
    """

    def forward(self, x: Tensor) -> Tensor:  # (N, C, H, W) -> (N, C, H, W)
        if x.device.type != "cpu" or self.num_groups == 1 or x.is_contiguous():
            return super().forward(x)
        return super().forward(x.contiguous()).contiguous(memory_format=torch.channels_last)


def group_norm(channels: int, groups: int = 8) -> nn.Module:
    """Each image in `groups` groups of channels: statistics over (C / groups, H, W). arXiv 1803.08494.

    Raises ValueError when `groups` does not divide `channels`.
    """
    _positive_int("groups", groups)
    if channels % groups:
        raise ValueError(
            f"groups={groups} does not divide channels={channels}; it divides for "
            f"groups in {[g for g in range(1, channels + 1) if channels % g == 0]}"
        )
    return GroupNorm(groups, channels)


def instance_norm(channels: int) -> nn.Module:
    """Each channel of each image alone: statistics over (H, W), affine. arXiv 1607.08022."""
    return GroupNorm(channels, channels)  # a group for each channel


def no_norm(channels: int) -> nn.Module:
    """No normalization: the convolution before it carries a bias instead."""
    return nn.Identity()


NORMS: dict[str, Callable[..., nn.Module]] = {
    "batch": batch_norm,
    "layer": layer_norm,
    "group": group_norm,
    "instance": instance_norm,
    "none": no_norm,
}

# ---- The block -------------------------------------------------------------------------------------


class Residual(nn.Sequential):
    """`x + block(x)`, for a block that keeps the shape. He et al., arXiv 1512.03385."""

    def forward(self, x: Tensor) -> Tensor:  # (N, C, H, W) -> (N, C, H, W)
        return x + super().forward(x)


def conv_block(
    in_channels: int,
    out_channels: int,
    *,
    conv: str | Callable[..., nn.Module] = "standard",
    norm: str | Callable[[int], nn.Module] = "batch",
    kernel_size: int = 3,
    stride: int = 1,
    dilation: int | None = None,
    groups: int | None = None,
    residual: bool = False,
    activation: Callable[[], nn.Module] = nn.ReLU,
) -> nn.Sequential:
    """A convolution of the named technique, its normalization and its activation.

    Maps (N, in_channels, H, W) to (N, out_channels, ceil(H / stride), ceil(W / stride)); the children
    are named conv, norm and act. The convolution has a bias only where no normalization follows.

    conv: a name in CONVS, or a callable of the same signature. norm: a name in NORMS, or a callable
    from channels to a module. dilation: distance of the taps in pixels; None is the technique's own, 2
    for "dilated" and 1 for the others. groups: for norm="group" alone, the number of groups (8).
    residual: add the input to the output, for a block that keeps the shape.

    Raises ValueError for an unknown name, an even kernel, a size, stride or dilation below 1, and a
    residual block that changes the shape.
    """
    _positive_int("in_channels", in_channels)
    _positive_int("out_channels", out_channels)
    _positive_int("kernel_size", kernel_size)
    _positive_int("stride", stride)
    if kernel_size % 2 == 0:
        raise ValueError(f"kernel_size={kernel_size} is even; only an odd kernel (1, 3, 5, ...) has a centre")
    shape = {"kernel_size": kernel_size, "stride": stride}
    if dilation is not None:
        _positive_int("dilation", dilation)
        shape["dilation"] = dilation
    make_conv = _lookup("conv", conv, CONVS)
    make_norm = _lookup("norm", norm, NORMS)
    if groups is not None:
        if make_norm is not group_norm:
            raise ValueError(f"groups={groups!r} goes with norm='group' alone, and norm={norm!r} was given")
        make_norm = partial(group_norm, groups=groups)
    if residual and (in_channels != out_channels or stride != 1):
        raise ValueError(
            f"a residual block keeps the shape; in_channels={in_channels}, out_channels={out_channels} "
            f"and stride={stride} do not"
        )
    block = Residual() if residual else nn.Sequential()
    block.add_module("conv", make_conv(in_channels, out_channels, **shape, bias=make_norm is no_norm))
    block.add_module("norm", make_norm(out_channels))
    block.add_module("act", activation())
    return block


def _lookup(kind: str, value, registry: dict[str, Callable]) -> Callable:
    if callable(value):
        return value
    if not isinstance(value, str) or value not in registry:
        raise ValueError(f"unknown {kind} {value!r}; choose one of {', '.join(map(repr, registry))}")
    return registry[value]


def _positive_int(name: str, value) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}={value!r} must be an integer of at least 1")


# ---- The network -----------------------------------------------------------------------------------


class Row(NamedTuple):
    """A row of the network's table: one convolution block."""

    channels: int  # output channels at width 1
    conv: str = "standard"  # its technique in the "mixed" network
    stride: int = 1


# The strict variant of the course: C1 to C4, receptive field above 52, fewer than 100,000 parameters.
STAGES: tuple[tuple[Row, ...], ...] = (
    (Row(32, stride=2), Row(32)),
    (Row(48, stride=2), Row(48)),
    (Row(48, "dilated"),),
    (Row(96, "depthwise_separable"),) * 3,
)

MIN_IMAGE_SIZE = 16  # pixels; below it the last map is too small to normalize
CHANNEL_STEP = 8  # widths are scaled in steps of 8 channels, so that 2, 4 or 8 groups divide them

# The trained networks: the SHA-256 of each file weights/NAME.pt.
PRETRAINED: dict[str, str] = {
    "batch-norm-muon": "22f826583c67e1e9c30f85541d65c66aadbbd7980ddc8a2c705cb6ad76974c2f",
    "layer-norm-adamw-l2": "b30803afa6b68bd2fcfadc7ae0fee9f438e21c7ca00d5b1e21c012b3f483a5ba",
    "group-norm-sgd-l1": "91deb33e764d71c1b99f84da35e57bbf8b6898c484fa05e489f96a692e645488",
    "minute": "baada075247487e7d180dae29c39b3fef6b46ffa2e179cd799841e55af18c7ab",
    "frontier": "a01e033a5cfbd7429397bf98f544cb4f5d720b20d51d121f6c143a4f1196c400",
    "frontier-small": "cec237b38b29af526fbe6aad8992bea2641f57d83d749c036b3331089b1422b1",
}
FORMAT = 1  # of the files that Net.save writes


class Preprocessing(NamedTuple):
    """What a trained network takes: the size of its images, and the statistics that normalize them."""

    size: int  # pixels, the side of a square
    mean: tuple[float, ...]  # per channel, of pixels in [0, 1]
    std: tuple[float, ...]


class Prediction(NamedTuple):
    """The likeliest class of an image, and its softmax, in [0, 1]."""

    label: str
    confidence: float


class Net(nn.Module):
    """Stages C1 to C4 of convolution blocks, a 1x1 convolution to the classes, global average pooling.

    Maps float images (N, in_channels, H, W), H and W at least 16 pixels, to logits (N, num_classes).
    `Net()` keeps the strict rules of the course: fewer than 100,000 parameters, a receptive field above
    52 pixels, depthwise-separable and dilated convolutions, no pooling but the global average, and no
    linear layer after it. Every (norm, conv) pair has the same topology: rows, channels, strides and
    skip connections; the pair changes the normalization or the convolution alone.

    norm: a name in NORMS, or a callable from channels to a module.
    conv: a name in CONVS, or a callable of the same signature, for every row; "mixed" takes the
        technique that each row of the table names.
    width: factor on the channels of every row, rounded down to a multiple of 8.
    groups: for norm="group" alone, the number of groups (8).
    stages: the table, a sequence of stages, each a sequence of `Row` (channels, conv, stride).
    activation: a callable that makes the activation.

    Attributes: `config`, these arguments, as a file holds them; and, None until they are set or loaded,
    `preprocessing` and `classes` (a name for each output), which `transform` and `predict` go by, and
    `metadata`, where a trained network comes from.

    Raises ValueError for names, numbers or tables it does not know, saying what is allowed.
    """

    def __init__(
        self,
        norm: str | Callable[[int], nn.Module] = "batch",
        conv: str | Callable[..., nn.Module] = "mixed",
        *,
        num_classes: int = 10,
        in_channels: int = 3,
        width: float = 1.0,
        groups: int | None = None,
        stages=STAGES,
        activation: Callable[[], nn.Module] = nn.ReLU,
    ):
        super().__init__()
        _positive_int("num_classes", num_classes)
        _positive_int("in_channels", in_channels)
        _lookup("conv", conv, CONVS)
        if not any(stages):
            raise ValueError(f"stages={stages!r} must hold at least one row")
        if not isinstance(width, (int, float)) or not 0 < width < float("inf"):
            raise ValueError(f"width={width!r} must be a finite number above 0")
        self.in_channels = channels = in_channels
        for number, rows in enumerate(stages, 1):
            stage = nn.Sequential()
            for row in (Row(*row) for row in rows):
                out_channels = scaled(row.channels, width)
                block = conv_block(
                    channels,
                    out_channels,
                    conv=row.conv if conv == "mixed" else conv,
                    norm=norm,
                    stride=row.stride,
                    groups=groups,
                    residual=row.stride == 1 and out_channels == channels,
                    activation=activation,
                )
                stage.append(block)
                channels = out_channels
            self.add_module(f"c{number}", stage)
        self.output = nn.Conv2d(channels, num_classes, 1)
        self._initialize()
        self.preprocessing: Preprocessing | None = None
        self.classes: tuple[str, ...] | None = None
        self.metadata: dict | None = None
        self.config = {
            "norm": norm,
            "conv": conv,
            "num_classes": num_classes,
            "in_channels": in_channels,
            "width": width,
            "groups": groups,
            "stages": tuple(tuple(tuple(Row(*row)) for row in rows) for rows in stages),
        }
        if activation is not nn.ReLU:
            self.config["activation"] = activation

    @classmethod
    def within(cls, budget: int, *, conv="mixed", norm="batch", **options) -> Net:
        """The widest such network with at most `budget` parameters (options as for `Net`, but width).

        Raises ValueError when even the narrowest one has more.
        """
        _positive_int("budget", budget)
        if "width" in options:
            raise ValueError("Net.within finds the width; give a budget or a width, not both")
        rows = [Row(*row) for stage in options.get("stages", STAGES) for row in stage]

        def size(width: float) -> int:
            with torch.device("meta"):  # counted without allocating anything
                return count_parameters(cls(norm, conv, width=width, **options))

        least = size(1e-9)
        if least > budget:
            raise ValueError(
                f"budget={budget} is too small: the narrowest such network has {least} parameters"
            )
        ceiling = 1.0
        while size(ceiling) <= budget:
            ceiling *= 2
        # The only widths at which any row gains channels.
        widths = sorted(
            {
                multiple / row.channels
                for row in rows
                for multiple in range(CHANNEL_STEP, int(row.channels * ceiling) + 1, CHANNEL_STEP)
            }
        )
        return cls(norm, conv, width=widths[bisect_right(widths, budget, key=size) - 1], **options)

    @classmethod
    def from_pretrained(cls, name: str, folder: str | Path | None = None) -> Net:
        """The trained network `name`, a key of PRETRAINED, in evaluation mode, on the CPU.

        Its file NAME.pt is looked for in `folder`; where None, in weights/ beside this file, beside this
        file, in ./weights/ and in the working directory. How the network is built, what it takes and what
        its classes are called (`transform`, `predict`) is read from it.

        Raises ValueError for an unknown name and for a file whose SHA-256 is not the one in PRETRAINED,
        FileNotFoundError where there is no file.
        """
        if not isinstance(name, str) or name not in PRETRAINED:
            raise ValueError(f"unknown name {name!r}; choose one of {', '.join(map(repr, PRETRAINED))}")
        here = Path(__file__).parent
        places = [Path(folder)] if folder is not None else [here / "weights", here, Path("weights"), Path()]
        places = [*dict.fromkeys(place.resolve() for place in places)]
        path = next((place / f"{name}.pt" for place in places if (place / f"{name}.pt").is_file()), None)
        if path is None:
            raise FileNotFoundError(
                f"no {name}.pt in {', '.join(map(str, places))}; "
                "copy it there from the project's weights/, or give its folder"
            )
        content = path.read_bytes()
        found = hashlib.sha256(content).hexdigest()
        if found != PRETRAINED[name]:
            raise ValueError(
                f"{path} is damaged, or of another version than this model.py: its SHA-256 is {found}, "
                f"not {PRETRAINED[name]}; copy both again from the project"
            )
        return cls._loaded(content, path)

    @classmethod
    def load(cls, path: str | Path) -> Net:
        """The network that `save` wrote to `path`, in evaluation mode, in float32, on the CPU.

        Raises ValueError for a file that `save` did not write, or whose parts do not have their checksums,
        and OSError for one that cannot be read. Nothing in the file is executed.
        """
        return cls._loaded(Path(path).read_bytes(), path)

    @classmethod
    def _loaded(cls, content: bytes, path: str | Path) -> Net:
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                damaged = archive.testzip()  # torch.load passes over the checksums in the file
            saved = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises whatever the bytes happen to lead to
            raise ValueError(
                f"{path} is no file that Net.save wrote, or is damaged ({type(error).__name__})"
            ) from error
        if damaged is not None:
            raise ValueError(f"{path} is damaged: its part {damaged} does not have the checksum that it had")
        if not isinstance(saved, dict) or not isinstance(saved.get("format"), int):
            raise ValueError(f"{path} is no file that Net.save wrote: it does not say of which format it is")
        if saved["format"] != FORMAT:
            raise ValueError(f"{path} is of format {saved['format']}; this model.py reads format {FORMAT}")
        try:
            net = cls(**saved["config"])
            net.load_state_dict(saved["state"])
            if saved["preprocessing"] is not None:
                net.preprocessing = _checked(Preprocessing(*saved["preprocessing"]), net.in_channels)
            if saved["classes"] is not None:
                net.classes = _checked_names(saved["classes"])
            net.metadata = saved["metadata"]
        except Exception as error:  # whatever it is that the file has in the place of a part
            raise ValueError(f"{path} does not fit this model.py: {error}") from error
        return net.eval()

    def save(self, path: str | Path, metadata: dict | None = None) -> Path:
        """Write the network to one file, all that `load` needs, and return its path.

        The file holds how the network is built, its tensors in their dtype (half of it after `half()`; what
        `load` makes of them is float32), `preprocessing`, `classes` and `metadata`, plain data on where it
        comes from (None keeps the network's own). A file that is there is replaced whole or not at all.

        Raises ValueError, and writes nothing, where `load` could not make the same of it: where the network
        was built with a callable or changed after it was built, or the metadata is no plain data.
        """
        state = {name: value.detach().cpu().clone() for name, value in self.state_dict().items()}
        plain = {
            "preprocessing": self.preprocessing and tuple(self.preprocessing),
            "classes": self.classes,
            "metadata": self.metadata if metadata is None else metadata,
        }
        for where, value in _not_plain({"config": self.config} | plain):
            raise ValueError(f"{where}={value!r} is of {type(value).__name__}, which a file cannot hold")
        saved = {"format": FORMAT, "config": self.config, "state": state} | plain
        content = io.BytesIO()
        torch.save(saved, content)
        path = Path(path)
        try:
            again = type(self)._loaded(content.getvalue(), path)
        except ValueError as error:
            raise ValueError(f"not written, for it could not be loaded again: {error}") from error
        if str(again) != str(self):
            raise ValueError(f"{path} not written, for the network was changed after it was built")
        if path.is_dir():
            raise ValueError(f"{path} is a folder; give a file")
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        part.write_bytes(content.getvalue())
        os.replace(part, path)
        return path

    def transform(self, images) -> Tensor:
        """What a trained network takes, (N, 3, size, size), normalized, of its dtype and on its device.

        images: a PIL image, a list of them, or uint8 (3, H, W) or (N, 3, H, W), of any size. What is not
        of the network's size is resized to it, bilinear with antialiasing, and not cropped, so that a long
        image is squeezed. A PIL image is turned as its EXIF orientation says; transparency is dropped.

        Raises ValueError for anything else, and where the network has no `preprocessing` or does not take
        three channels; OSError for a PIL image whose file cannot be read to its end.
        """
        if self.preprocessing is None:
            raise ValueError(
                "this network does not say what it takes: set its preprocessing, a Preprocessing"
            )
        if self.in_channels != 3:
            raise ValueError(f"pictures have 3 channels; this network takes in_channels={self.in_channels}")
        size, mean, std = self.preprocessing
        like = self.output.weight
        mean, std = (torch.tensor(value, device=like.device).view(-1, 1, 1) for value in (mean, std))
        pixels = torch.cat([_resized(batch.to(like.device), size) for batch in _batches(images)])
        return torch.addcmul(-mean / std, pixels, 1 / (255 * std)).to(like.dtype)

    def predict(self, images) -> list[Prediction]:
        """The likeliest class of each image, with its confidence; images: as for `transform`.

        The network computes in evaluation mode, and its mode is put back.

        Raises what `transform` does, and ValueError where `classes` does not name every output and where
        the logits are no finite numbers.
        """
        if self.classes is None or len(self.classes) != self.output.out_channels:
            raise ValueError(
                f"classes={self.classes!r} must name the {self.output.out_channels} outputs of the network"
            )
        inputs = self.transform(images)
        with _evaluating(self), torch.no_grad():
            logits = torch.cat([self(part) for part in inputs.split(256)]).float()
        if not logits.isfinite().all():
            raise ValueError(
                "the logits are no finite numbers: the weights are damaged, or their training diverged"
            )
        confidences, numbers = logits.softmax(1).max(1)
        pairs = zip(numbers.tolist(), confidences.tolist(), strict=True)
        return [Prediction(self.classes[number], confidence) for number, confidence in pairs]

    def features(self, images: Tensor) -> Tensor:
        """The last map before the global average: (N, C, H, W) -> (N, num_classes, H', W')."""
        self._check(images)
        maps = images
        for stage in self.children():
            maps = stage(maps)
        return maps

    def forward(self, images: Tensor) -> Tensor:  # (N, C, H, W) -> (N, num_classes)
        return self.features(images).mean((2, 3))

    def _check(self, images: Tensor) -> None:
        if images.ndim != 4:
            raise ValueError(f"images of shape {tuple(images.shape)}: expected (N, {self.in_channels}, H, W)")
        if images.shape[1] != self.in_channels:
            raise ValueError(
                f"images of shape {tuple(images.shape)} have {images.shape[1]} channels; "
                f"this network takes in_channels={self.in_channels}"
            )
        if min(images.shape[2:]) < MIN_IMAGE_SIZE:
            raise ValueError(
                f"images of {images.shape[2]}x{images.shape[3]} pixels; at least "
                f"{MIN_IMAGE_SIZE}x{MIN_IMAGE_SIZE} are needed"
            )

    def _initialize(self) -> None:
        """He et al., arXiv 1502.01852; the classes start nearly equal, whatever the features' scale."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.output.weight, std=0.01)


def scaled(channels: int, width: float) -> int:
    """`channels * width` rounded down to a multiple of CHANNEL_STEP, and at least that."""
    return max(CHANNEL_STEP, int(channels * width + 1e-9) // CHANNEL_STEP * CHANNEL_STEP)


# ---- Its files -------------------------------------------------------------------------------------


def _not_plain(value, where: str = "") -> Iterator[tuple[str, object]]:
    """What in `value` is none of the types that a file holds, with the way to it, as metadata['a'][0]."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _not_plain(key, f"the key {key!r} of {where}")
            yield from _not_plain(part, f"{where}[{key!r}]" if where else key)
    elif isinstance(value, (list, tuple)):
        for number, part in enumerate(value):
            yield from _not_plain(part, f"{where}[{number}]")
    elif type(value) not in (str, int, float, bool, type(None)):
        yield where, value


def _checked(preprocessing: Preprocessing, channels: int) -> Preprocessing:
    size, mean, std = preprocessing
    if not isinstance(size, int) or size < MIN_IMAGE_SIZE:
        raise ValueError(f"size={size!r} must be an integer of at least {MIN_IMAGE_SIZE}")
    for name, value in (("mean", mean), ("std", std)):
        if (
            not isinstance(value, (list, tuple))
            or len(value) != channels
            or not all(isinstance(number, (int, float)) and math.isfinite(number) for number in value)
        ):
            raise ValueError(f"{name}={value!r} must be {channels} finite numbers, one a channel")
    if min(std) <= 0:
        raise ValueError(f"std={std!r} must be above 0")
    return preprocessing


def _checked_names(classes) -> tuple[str, ...]:
    if not isinstance(classes, (list, tuple)) or not all(isinstance(name, str) for name in classes):
        raise ValueError(f"classes={classes!r} must be a sequence of names, or None")
    return tuple(classes)


# ---- Images for a trained network ------------------------------------------------------------------


@contextmanager
def _evaluating(net: nn.Module) -> Iterator[None]:
    """In evaluation mode, after which the mode of every part is put back."""
    modes = {module: module.training for module in net.modules()}
    net.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _batches(images) -> Iterable[Tensor]:  # of uint8 (N, 3, H, W)
    if isinstance(images, Tensor):
        batch = images.unsqueeze(0) if images.ndim == 3 else images
        if batch.dtype != torch.uint8 or batch.ndim != 4 or batch.shape[1] != 3 or not batch.numel():
            raise ValueError(
                f"images of {images.dtype} {tuple(images.shape)}: expected uint8 (3, H, W) or (N, 3, H, W), "
                "none of them 0"
            )
        return batch.split(32)  # large images take four times their memory while they are resized
    several = images if isinstance(images, (list, tuple)) else [images]
    wrong = [type(image).__name__ for image in several if not hasattr(image, "getexif")]
    if wrong or not several:
        found = f"images of {wrong[0]}" if wrong else f"images={images!r}"
        raise ValueError(f"{found}: expected a PIL image, a list of them, or a single uint8 tensor")
    return map(_pixels, several)


def _pixels(image) -> Tensor:  # a PIL image to uint8 (1, 3, H, W)
    from PIL import ImageOps  # where an image is one of its, Pillow is there

    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        raise ValueError(f"images of mode {image.mode!r}: expected 8 bits a channel, as of mode 'RGB'")
    if 0 in image.size:
        raise ValueError(f"images of {image.width}x{image.height} pixels: expected none of them 0")
    rgb = ImageOps.exif_transpose(image).convert("RGB")
    pixels = torch.frombuffer(bytearray(rgb.tobytes()), dtype=torch.uint8)
    return pixels.view(1, rgb.height, rgb.width, 3).permute(0, 3, 1, 2)


def _resized(batch: Tensor, size: int) -> Tensor:  # uint8 (N, 3, H, W) -> float (N, 3, size, size), to 255
    pixels = batch.float()
    if pixels.shape[2:] == (size, size):
        return pixels
    return F.interpolate(pixels, size=(size, size), mode="bilinear", antialias=True)


# ---- Arithmetic ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ConvRow:
    """One convolution of a network, as `describe` lists it."""

    name: str
    kind: str  # "standard", "dilated", "depthwise", "dilated depthwise", "grouped" or "pointwise"
    kernel_size: int  # pixels
    stride: int  # pixels of its input map
    dilation: int  # pixels of its input map
    output_shape: tuple[int, int, int]  # (C, H, W)
    receptive_field: int  # pixels of the image
    parameters: int  # weights and bias of the convolution
    macs: int  # multiply-accumulates an image


class Description(list):
    """A list of ConvRow that prints as a table, in a terminal and in a notebook."""

    COLUMNS = (
        *("name", "kind", "kernel", "stride", "dilation"),
        *("output", "receptive field", "parameters", "MACs"),
    )

    def __init__(self, rows, total_parameters: int):
        super().__init__(rows)
        self.total_parameters = total_parameters
        self.total_macs = sum(row.macs for row in self)

    def _cells(self) -> list[tuple[str, ...]]:
        cells = [
            (
                row.name,
                row.kind,
                f"{row.kernel_size}x{row.kernel_size}",
                str(row.stride),
                str(row.dilation),
                "x".join(map(str, row.output_shape)),
                str(row.receptive_field),
                f"{row.parameters:,}",
                f"{row.macs:,}",
            )
            for row in self
        ]
        others = self.total_parameters - sum(row.parameters for row in self)
        blank = ("",) * 6
        cells.append(("not in a convolution", *blank, f"{others:,}", ""))
        cells.append(("total", *blank, f"{self.total_parameters:,}", f"{self.total_macs:,}"))
        return cells

    def __str__(self) -> str:
        lines = [self.COLUMNS, *self._cells()]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        pad = [str.ljust, str.ljust, *[str.rjust] * (len(widths) - 2)]
        return "\n".join(
            "  ".join(
                align(cell, width) for align, cell, width in zip(pad, line, widths, strict=True)
            ).rstrip()
            for line in lines
        )

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{column}</th>" for column in self.COLUMNS)
        body = "".join(
            "<tr>" + "".join(f"<td>{cell}</td>" for cell in line) + "</tr>" for line in self._cells()
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def describe(net: nn.Module, image_size: int = 32) -> Description:
    """A `ConvRow` per 2-D convolution of `net`, in the order in which one image runs through them.

    image_size: pixels, of a square image. The receptive field is that of a chain of convolutions, where
    skip connections add nothing; it grows by (kernel - 1) * dilation * (product of the strides before).
    The network is left as it was, its mode and statistics included.
    """
    convs = {module: name for name, module in net.named_modules() if isinstance(module, nn.Conv2d)}
    if not convs:
        raise ValueError(f"{type(net).__name__} has no Conv2d to describe")
    _positive_int("image_size", image_size)
    rows: list[ConvRow] = []
    field, jump = 1, 1  # receptive field, and distance of neighbouring units, in pixels of the image

    def record(module: nn.Conv2d, inputs, output: Tensor) -> None:
        nonlocal field, jump
        (kernel, *_), (stride, *_), (dilation, *_) = module.kernel_size, module.stride, module.dilation
        field += (kernel - 1) * dilation * jump
        jump *= stride
        rows.append(
            ConvRow(
                name=convs[module],
                kind=_kind(module),
                kernel_size=kernel,
                stride=stride,
                dilation=dilation,
                output_shape=tuple(output.shape[1:]),
                receptive_field=field,
                parameters=count_parameters(module),
                macs=module.weight.numel() * output.shape[2] * output.shape[3],
            )
        )

    first = next(iter(convs))
    image = torch.zeros(1, first.in_channels, image_size, image_size).to(first.weight)
    handles = [module.register_forward_hook(record) for module in convs]
    try:
        with _evaluating(net), torch.no_grad():
            net(image)
    finally:
        for handle in handles:
            handle.remove()
    return Description(rows, count_parameters(net))


def _kind(conv: nn.Conv2d) -> str:
    if conv.kernel_size == (1, 1):
        return "pointwise"
    spread = "dilated" if conv.dilation != (1, 1) else ""
    depth = "depthwise" if conv.groups == conv.in_channels > 1 else "grouped" if conv.groups > 1 else ""
    return f"{spread} {depth}".strip() or "standard"


def receptive_field(net: nn.Module) -> int:
    """Side, in pixels of the image, of the square that one unit of the last convolution's map can see."""
    return describe(net)[-1].receptive_field


def count_parameters(net: nn.Module) -> int:
    """Number of parameters, trainable or not: the sum of the sizes of all parameter tensors."""
    return sum(parameter.numel() for parameter in net.parameters())
