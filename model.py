"""Convolution techniques in one small network: `Net`, its blocks and its arithmetic.

Needs only torch, so the file can be copied beside any notebook:

    from model import Net, describe
    net = Net("batch", "mixed")            # normalization, convolution technique
    print(describe(net))                   # one row per convolution: shape, receptive field, cost

    net = Net.from_pretrained("minute")    # trained weights: minute.pt from weights/, beside this file
    print(net.predict(image))              # class and confidence for a PIL image

The sections, from top to bottom:

    Convolution techniques  CONVS: standard, dilated, depthwise_separable, blueprint_separable, mixed,
                            gated_separable, gated_multi_scale
    Normalizations          NORMS: batch_norm, layer_norm, group_norm, instance_norm, no_norm
    The block               conv_block: a convolution, its normalization, its activation; Residual
    Helpers                 what several sections use: names, integers, evaluation mode
    Files                   PRETRAINED, and the part of Net that saves and loads
    Images                  Preprocessing, Prediction, and the part of Net that handles images
    The network             Row and STAGES, the table; Net: layers, forward, features, within
    Arithmetic              describe (parameters, multiply-accumulates), receptive_field

To follow the network itself, read the first three sections and "The network".
"""

from __future__ import annotations

import hashlib
import io
import math
import operator
import os
import pickletools
import threading
import zipfile
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from numbers import Real
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# ---- Convolution techniques ------------------------------------------------------------------------
# Each maps (N, in_channels, H, W) to (N, out_channels, ceil(H / stride), ceil(W / stride)).


def standard(in_channels, out_channels, *, kernel_size=3, stride=1, dilation=1, bias=False) -> nn.Module:
    """Dense convolution: every output channel reads every input channel at every tap."""
    return _conv2d(in_channels, out_channels, kernel_size, stride, dilation, bias=bias)


def dilated(in_channels, out_channels, *, kernel_size=3, stride=1, dilation=2, bias=False) -> nn.Module:
    """Dense convolution with taps `dilation` pixels apart: a wider view for the same number of weights.

    Source: Yu and Koltun, "Multi-Scale Context Aggregation by Dilated Convolutions", arXiv 1511.07122.
    """
    return _conv2d(in_channels, out_channels, kernel_size, stride, dilation, bias=bias)


def depthwise_separable(
    in_channels, out_channels, *, kernel_size=3, stride=1, dilation=1, bias=False
) -> nn.Module:
    """Depthwise, then pointwise: filters each channel separately, then mixes channels with a 1x1 convolution.

    Source: Howard et al., "MobileNets", arXiv 1704.04861 (here without a norm or activation between the two).
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
    """Pointwise, then depthwise: mixes channels first, then filters each output channel separately.

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
    """Each technique where it is worth its cost, which is the rule that the rows of `STAGES` follow.

    Dilated if `dilation` is above 1. Depthwise-separable for more than 64 output channels, because a dense
    kernel costs the most weights there. Standard otherwise.
    """
    technique = dilated if dilation > 1 else depthwise_separable if out_channels > 64 else standard
    return technique(
        in_channels, out_channels, kernel_size=kernel_size, stride=stride, dilation=dilation, bias=bias
    )


def gated_separable(
    in_channels, out_channels, *, kernel_size=3, stride=1, dilation=1, bias=False
) -> nn.Module:
    """Depthwise, then a gated pointwise pair: what one 1x1 convolution lets through, the other computes.

    Source of the gate: Dauphin et al., "Language Modeling with Gated Convolutional Networks", arXiv
    1612.08083.
    """
    depthwise = _conv2d(in_channels, in_channels, kernel_size, stride, dilation, in_channels)
    return Gated(depthwise, GatedPointwise(in_channels, out_channels, bias))


def gated_multi_scale(
    in_channels, out_channels, *, kernel_size=3, stride=1, dilation=1, bias=False
) -> nn.Module:
    """Depthwise at three scales, as in MultiScale, then a gated pointwise pair."""
    depthwise = MultiScale(in_channels, kernel_size, stride, dilation)
    return Gated(depthwise, GatedPointwise(in_channels, out_channels, bias))


class Gated(nn.Sequential):
    """`pointwise(depthwise(x))`, which a block takes apart: the gate is its activation, behind the norm."""

    depthwise: nn.Module
    pointwise: nn.Module

    def __init__(self, depthwise: nn.Module, pointwise: nn.Module):
        super().__init__()
        self.depthwise, self.pointwise = depthwise, pointwise


class GatedPointwise(nn.Module):
    """`output(value(x) * sigmoid(gate(x)))`, of three 1x1 convolutions."""

    def __init__(self, in_channels: int, out_channels: int, bias: bool = False):
        super().__init__()
        self.value = _conv2d(in_channels, out_channels, 1)
        self.gate = _conv2d(in_channels, out_channels, 1)
        self.output = _conv2d(out_channels, out_channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:  # (N, in_channels, H, W) -> (N, out_channels, H, W)
        return self.output(self.value(x) * self.gate(x).sigmoid())


class MultiScale(nn.Module):
    """Filters each channel separately: a quarter of them at each of three scales. The last quarter is kept.

    `near` is one depthwise convolution. `far` is two, which together see 2 * kernel_size - 1 taps in each
    direction, and `farthest` is two, of which the taps of the second are kernel_size times as far apart, so
    that they see kernel_size ** 2. Channels left over by a division by 4 go to the first scales.
    """

    def __init__(self, channels: int, kernel_size: int = 3, stride: int = 1, dilation: int = 1):
        super().__init__()
        self.in_channels, self.stride = channels, stride
        self.parts = [(channels + 3 - number) // 4 for number in range(4)]
        spreads = {"near": (1,), "far": (1, 1), "farthest": (1, kernel_size)}  # between taps, times dilation
        for (name, factors), part in zip(spreads.items(), self.parts, strict=False):
            if part:
                steps = [1] * (len(factors) - 1) + [stride]
                convs = [
                    _conv2d(part, part, kernel_size, step, dilation * factor, part)
                    for step, factor in zip(steps, factors, strict=True)
                ]
                self.add_module(name, nn.Sequential(*convs))

    def forward(self, x: Tensor) -> Tensor:  # (N, C, H, W) -> (N, C, ceil(H / stride), ceil(W / stride))
        parts = x.split(self.parts, 1)
        maps = [branch(parts[number]) for number, branch in enumerate(self.children())]
        if self.parts[-1]:
            # Windows of one pixel: slices with a step would give the gradient another memory layout.
            maps.append(parts[-1] if self.stride == 1 else F.avg_pool2d(parts[-1], 1, self.stride))
        return torch.cat(maps, 1)


def _conv2d(in_channels, out_channels, kernel_size, stride=1, dilation=1, groups=1, bias=False) -> nn.Conv2d:
    padding = dilation * (kernel_size - 1) // 2  # keeps the size at stride 1, for an odd kernel
    return nn.Conv2d(
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups=groups, bias=bias
    )


CONVS: dict[str, Callable[..., nn.Module]] = {
    "standard": standard,
    "dilated": dilated,
    "depthwise_separable": depthwise_separable,
    "blueprint_separable": blueprint_separable,
    "mixed": mixed,
    "gated_separable": gated_separable,
    "gated_multi_scale": gated_multi_scale,
}

# ---- Normalizations --------------------------------------------------------------------------------
# Each maps a number of channels to a module that keeps the shape (N, C, H, W).


def batch_norm(channels: int) -> nn.Module:
    """Each channel over the batch: statistics over (N, H, W). Ioffe and Szegedy, arXiv 1502.03167."""
    return nn.BatchNorm2d(channels)


def layer_norm(channels: int) -> nn.Module:
    """Each image over all its channels: statistics over (C, H, W), affine per channel. arXiv 1607.06450."""
    return nn.GroupNorm(1, channels)


GROUPS = 8  # of channels, in group norm


def group_norm(channels: int, groups: int = GROUPS) -> nn.Module:
    """Each image in `groups` groups of channels: statistics over (C / groups, H, W). arXiv 1803.08494.

    Raises ValueError if `groups` does not divide `channels`.
    """
    groups = _integer("groups", groups)
    if channels % groups:
        choices = [number for number in range(1, channels + 1) if channels % number == 0]
        raise ValueError(f"groups={groups} does not divide channels={channels}; choose one of {choices}")
    return nn.GroupNorm(groups, channels)


def instance_norm(channels: int) -> nn.Module:
    """Each channel of each image separately: statistics over (H, W), affine. arXiv 1607.08022."""
    return nn.GroupNorm(channels, channels)  # one group per channel


def no_norm(channels: int) -> nn.Module:
    """No normalization: the convolution before it has a bias instead."""
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

    def forward(self, input: Tensor) -> Tensor:  # (N, C, H, W) -> (N, C, H, W)
        return input + super().forward(input)


class PostActivation(nn.Sequential):
    """`act(x + norm(conv(x)))`, for a block that keeps the shape: the activation comes after the sum.

    That is the order in the first residual networks. He et al., arXiv 1512.03385.
    """

    conv: nn.Module
    norm: nn.Module
    act: nn.Module

    def forward(self, input: Tensor) -> Tensor:  # (N, C, H, W) -> (N, C, H, W)
        return self.act(input + self.norm(self.conv(input)))


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
    post_activation: bool = False,
    activation: Callable[[], nn.Module] = nn.ReLU,
) -> nn.Sequential:
    """A convolution of the named technique, its normalization and its activation.

    Maps (N, in_channels, H, W) to (N, out_channels, ceil(H / stride), ceil(W / stride)). The children
    are named conv, norm and act. The convolution has a bias only if no normalization follows. Of a gated
    technique, conv is the depthwise step and act the gated pair, instead of `activation`.

    conv: a name in CONVS, or a callable with the same signature. norm: a name in NORMS, or a callable
    from channels to a module. dilation: distance between taps in pixels; None is the technique's own, 2
    for "dilated" and 1 for the others. groups: number of groups, only for norm="group" (default 8); a
    gated technique, whose norm has in_channels, takes their greatest common divisor. residual: add the input
    to the output, for a block that keeps the shape. post_activation: in a residual block, add it before the
    activation.

    Raises ValueError for an unknown name, an even kernel, a size, stride or dilation that is not an integer
    from 1 to MOST, and a residual block that changes the shape.
    """
    in_channels, out_channels = _integer("in_channels", in_channels), _integer("out_channels", out_channels)
    stride = _integer("stride", stride)
    shape = {"kernel_size": _integer("kernel_size", kernel_size), "stride": stride}
    if dilation is not None:
        shape["dilation"] = _integer("dilation", dilation)
    make_conv = _named("conv", conv, CONVS)
    make_norm = _named("norm", norm, NORMS)
    if shape["kernel_size"] % 2 == 0:
        raise ValueError(f"kernel_size={kernel_size} is even; only an odd kernel (1, 3, 5, ...) has a centre")
    if groups is not None and make_norm is not group_norm:
        raise ValueError(f"groups={groups!r} is only for norm='group', not for norm={norm!r}")
    for switch, value in (("residual", residual), ("post_activation", post_activation)):
        if not isinstance(value, bool):
            raise ValueError(f"{switch}={value!r} must be True or False")
    if not callable(activation) or isinstance(activation, nn.Module):
        raise ValueError(f"{activation=} must be a callable that makes a module, such as nn.ReLU")
    if residual and (in_channels != out_channels or stride != 1):
        raise ValueError(
            f"a residual block keeps the shape; {in_channels=}, {out_channels=}, {stride=} do not"
        )
    kind = nn.Sequential if not residual else PostActivation if post_activation else Residual
    block = kind()
    made = make_conv(in_channels, out_channels, **shape, bias=make_norm is no_norm)
    if isinstance(made, Gated):
        made, normalized, act = made.depthwise, in_channels, made.pointwise
        if make_norm is group_norm:  # the three channels of an image are one group
            groups = math.gcd(groups or GROUPS, in_channels)
    else:
        normalized, act = out_channels, activation()
    block.add_module("conv", made)
    block.add_module("norm", make_norm(normalized, **({} if groups is None else {"groups": groups})))
    block.add_module("act", act)
    return block


# ---- Helpers ---------------------------------------------------------------------------------------


def _named(kind: str, value, registry: dict):
    """The entry `value` of `registry`; a callable stands for itself, but a module makes none."""
    if callable(value) and not isinstance(value, nn.Module):
        return value
    if not isinstance(value, str) or value not in registry:
        raise ValueError(f"unknown {kind} {value!r}; choose one of {', '.join(map(repr, registry))}")
    return registry[value]


MOST = 1_000_000  # of channels, classes or pixels: a larger number is a mistake and would fill the memory


def _integer(name: str, value, least: int = 1, most: int = MOST) -> int:
    """`value` as a Python integer. It may be one from NumPy or torch, which a file cannot hold."""
    try:
        integer = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        integer = None
    if integer is None or not least <= integer <= most:
        raise ValueError(f"{name}={value!r} must be an integer of at least {least} and at most {most}")
    return integer


def _plain_name(value):
    """A NumPy string as a Python string, and anything else unchanged."""
    return str(value) if isinstance(value, str) else value


@contextmanager
def _evaluating(net: nn.Module) -> Iterator[None]:
    """Switch to evaluation mode, and restore the mode of every module at the end."""
    modes = {module: module.training for module in net.modules()}
    net.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


# ---- Files -----------------------------------------------------------------------------------------

# The trained networks: the SHA-256 of each file weights/NAME.pt.
PRETRAINED: dict[str, str] = {
    "batch-norm-muon": "4289d10c5903fd7830ea5579ff1dcd24c1b0ed0ea3a93a3af5de6c3af55ab5e6",
    "layer-norm-adamw-l2": "6def135b478508a7597c5763dbb6bfdd97ed289194d71249c33833f49b5162ce",
    "group-norm-sgd-l1": "9d56ed4b5204b5dd0b429c770caf06fd69d833ad47826458d0bbf6e2b46155f9",
    "minute": "baada075247487e7d180dae29c39b3fef6b46ffa2e179cd799841e55af18c7ab",
    "frontier": "a01e033a5cfbd7429397bf98f544cb4f5d720b20d51d121f6c143a4f1196c400",
    "frontier-small": "cec237b38b29af526fbe6aad8992bea2641f57d83d749c036b3331089b1422b1",
}
FORMAT = 1  # version of the files that Net.save writes
SAFE_TORCH = "2.10"  # an earlier torch.load can execute a file: CVE-2025-32434, CVE-2026-24747
MOST_PICKLED = 2**21  # bytes of a file beside its tensors: enough for 1,000 rows and the metadata

_Loaded = TypeVar("_Loaded", bound="_Files")


class _Files(nn.Module):
    """The part of `Net` that saves and loads: its tensors, and the attributes below except `in_channels`."""

    in_channels: int
    config: dict
    preprocessing: Preprocessing | None
    classes: tuple[str, ...] | None
    metadata: dict | None

    @classmethod
    def from_pretrained(cls: type[_Loaded], name: str, folder: str | Path | None = None) -> _Loaded:
        """Load the trained network `name`, a key of PRETRAINED, in evaluation mode, on the CPU.

        Looks for NAME.pt in `folder`. If that is None, looks in weights/ beside this file, beside this
        file, in ./weights/ and in the working directory, in this order. The file also says how the network
        is built, and holds what `transform` and `predict` need.

        Raises ValueError for an unknown name, and for a file whose SHA-256 differs from the one in
        PRETRAINED; FileNotFoundError if the file is missing.
        """
        checksum = _named("name", name, PRETRAINED)
        here = Path(__file__).parent
        places = [Path(folder)] if folder is not None else [here / "weights", here, Path("weights"), Path()]
        places = [*dict.fromkeys(Path(os.path.realpath(place)) for place in places)]
        path = next((place / f"{name}.pt" for place in places if (place / f"{name}.pt").is_file()), None)
        if path is None:
            looked = ", ".join(map(str, places))
            raise FileNotFoundError(f"no {name}.pt in {looked}; copy it from the project's weights/")
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != checksum:
            raise ValueError(f"{path} is damaged, or for another model.py: its SHA-256 is not {checksum}")
        return cls._loaded(content, path)

    @classmethod
    def load(cls: type[_Loaded], path: str | Path) -> _Loaded:
        """Load the network that `save` wrote to `path`, in evaluation mode, in float32, on the CPU.

        Executes nothing from the file, takes no more memory than a small multiple of its size, and draws no
        random numbers.

        Raises ValueError for a file that `save` did not write, whose checksums do not match, or that holds
        NaN or infinite numbers; OSError for one that cannot be read; RuntimeError below torch 2.10.
        """
        if Path(path).exists() and not Path(path).is_file():  # reading a pipe would wait for ever
            raise ValueError(f"{path} is not a file")
        return cls._loaded(Path(path).read_bytes(), path)

    @classmethod
    def _loaded(cls: type[_Loaded], content: bytes, path: str | Path) -> _Loaded:
        if torch.__version__ < SAFE_TORCH:
            raise RuntimeError(
                f"torch {torch.__version__} may execute {path}: install torch {SAFE_TORCH} or later"
            )
        try:
            check_archive(content)
            saved = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except (
            Exception
        ) as error:  # its type depends on the bytes, and torch's text may advise to execute them
            why = error if type(error) is ValueError else type(error).__name__
            raise ValueError(f"{path} is not a file that Net.save wrote, or is damaged: {why}") from error
        try:
            if saved["format"] != FORMAT:
                raise ValueError(f"its format is {saved['format']}, and this model.py reads format {FORMAT}")
            state = saved["state"]
            if sum(tensor.numel() * tensor.element_size() for tensor in state.values()) > len(content):
                raise ValueError("its tensors are larger than the file")  # a stride of 0 repeats an element
            if sum(map(len, _table(saved["config"]["stages"]))) > len(state):
                raise ValueError("its table has more rows than the file has tensors")
            with torch.device("meta"):  # takes no memory and draws no random numbers
                net = cls(**saved["config"])
            state = {name: _own(name, tensor) for name, tensor in state.items()}
            net.load_state_dict(state, assign=True)
            if any(tensor.is_meta for tensor in (*net.parameters(), *net.buffers())):
                raise ValueError("the network has a non-persistent buffer, which is not in the file")
            if saved["preprocessing"] is not None:
                net.preprocessing = _checked(Preprocessing(*saved["preprocessing"]), net.in_channels)
            net.classes = _checked_names(saved["classes"])
            net.metadata = saved["metadata"]
        except Exception as error:  # its type depends on what the file holds
            raise ValueError(f"{path} does not fit this {cls.__name__}: {error}") from error
        return net.eval()

    def save(self, path: str | Path, metadata: dict | None = None) -> Path:
        """Write the network to one file with everything that `load` needs, and return its path.

        The file holds how the network is built, its tensors in their dtype (so `net.half()` makes a file of
        half the size; `load` always returns float32), `preprocessing`, `classes` and `metadata`: plain
        data that says where the network comes from (None keeps the network's own). An existing file is
        replaced as a whole or not at all.

        Raises ValueError, and writes nothing, if `load` could not rebuild the network: if it was built with
        a callable or changed after it was built, if it holds NaN or infinite numbers, or if the metadata is
        not plain data.
        """
        path = Path(path)
        plain = {
            "config": self.config,
            "preprocessing": self.preprocessing and _checked(self.preprocessing, self.in_channels),
            "classes": _checked_names(self.classes),
            "metadata": self.metadata if metadata is None else metadata,
        }
        plain = {name: _plain(value, name) for name, value in plain.items()}
        state = {
            key: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            for key, tensor in self.state_dict().items()
        }
        content = io.BytesIO()
        torch.save({"format": FORMAT, "config": plain["config"], "state": state} | plain, content)
        try:
            again = type(self)._loaded(content.getvalue(), path)
        except ValueError as error:
            raise ValueError(f"not written, because it could not be loaded again: {error}") from error
        # The number of parameters also differs if two modules share one.
        if str(again) != str(self) or count_parameters(again) != count_parameters(self):
            raise ValueError(f"{path} not written, because the network was changed after it was built")
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.part")
        try:
            with part.open("wb") as file:
                file.write(content.getvalue())
                file.flush()
                os.fsync(file.fileno())  # on the disk before it takes the name
            os.replace(part, path)
        except OSError as error:
            size = len(content.getvalue())
            reason = error.strerror or str(error)
            raise OSError(f"could not write {path}, which needs {size:,} bytes: {reason}") from error
        finally:
            part.unlink(missing_ok=True)
        return path


# The instructions and names in a pickle of torch.save that holds nothing but plain data and tensors.
_OPCODES = {*"\x80}]qrhj(XJKM\x8aGN\x88\x89)\x85\x86\x87taesucQRb."}
_NUMBERS = {"BINFLOAT", "BININT", "BININT1", "BININT2", "NONE", "NEWTRUE", "NEWFALSE"}
_KINDS = ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
_NAMES = {
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    *(f"torch {k}Storage" for k in _KINDS),
}


def check_archive(content: bytes, *, kinds: Iterable[str] = (), most: int = MOST_PICKLED) -> None:
    """Refuse a damaged file, and one that `torch.load` would need far more memory for than it has bytes.

    Compressed parts may unpack to any size. A few bytes of a pickle can ask for an array of any size, or for
    lists that each hold the one before many times. kinds: storages that may be in it beside those of a
    network. most: the bytes of its pickle. Raises ValueError, and whatever the bytes lead `zipfile` to.
    """
    names = _NAMES | {f"torch {kind}Storage" for kind in kinds}
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        parts = archive.infolist()
        if any(part.compress_type for part in parts) or sum(part.file_size for part in parts) > len(content):
            raise ValueError("its parts are compressed, or larger than the file")
        if len({part.filename.lower() for part in parts}) < len(parts):
            raise ValueError("two of its parts have the same name")
        if damaged := archive.testzip():  # torch.load does not compare the checksums in the file
            raise ValueError(f"the checksum of its part {damaged} does not match")
        pickles = [part for part in parts if part.filename.lower().endswith(".pkl")]
        if len(pickles) != 1 or pickles[0].file_size > most:
            raise ValueError(f"beside tensors it must hold one pickle of at most {most:,} bytes")
        pickled = archive.read(pickles[0])
    last = ["", "", ""]  # the last three instructions
    small = set()  # the numbered values that may be in it twice: strings, names and pairs of numbers
    for opcode, value, _ in pickletools.genops(pickled):
        if opcode.code not in _OPCODES or (opcode.name == "GLOBAL" and value not in names):
            raise ValueError(f"it holds {opcode.name} {value!r:.100}, not only tensors and plain data")
        if opcode.name.endswith("GET") and value not in small:
            raise ValueError("a list, tuple or dictionary is in it twice")
        if opcode.name.endswith("PUT"):
            pair = last[2] == "TUPLE2" and _NUMBERS.issuperset(last[:2])
            (small.add if pair or last[2] in ("BINUNICODE", "GLOBAL") else small.discard)(value)
        else:
            last = [*last[1:], opcode.name]


def _own(name: str, tensor: Tensor) -> Tensor:
    """A copy that is contiguous and shares no memory; in float32, except for counters."""
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    own = tensor.detach().to(dtype, copy=True, memory_format=torch.contiguous_format)
    if not own.isfinite().all():
        raise ValueError(f"{name} holds NaN or infinite numbers: training diverged, or the file is damaged")
    return own


def _plain(value, where: str):
    """A copy of plain data that shares no part; a ValueError with the path to anything else in it."""
    if isinstance(value, dict):
        return {
            _plain(key, f"a key of {where}"): _plain(part, f"{where}[{key!r}]") for key, part in value.items()
        }
    if isinstance(value, (list, tuple)):
        parts = [_plain(part, f"{where}[{number}]") for number, part in enumerate(value)]
        return parts if isinstance(value, list) else tuple(parts)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where}={value!r} must be finite")
    if type(value) not in (str, int, float, bool, type(None)):
        raise ValueError(f"{where}={value!r} is a {type(value).__name__}, which a file cannot hold")
    return value


def _checked(preprocessing: Preprocessing, channels: int) -> Preprocessing:
    """The preprocessing with plain numbers, or a ValueError if `transform` could not use it."""
    size, mean, std = preprocessing
    size = _integer("size", size, MIN_IMAGE_SIZE, MAX_IMAGE_SIZE)
    mean, std = tuple(map(float, mean)), tuple(map(float, std))
    finite = all(map(math.isfinite, (*mean, *std))) and min(std, default=0) > 0
    if not finite or not len(mean) == len(std) == channels:
        raise ValueError(f"{mean=} and {std=} must be {channels} finite numbers each, std above 0")
    return Preprocessing(size, mean, std)


def _checked_names(classes) -> tuple[str, ...] | None:
    if classes is None:
        return None
    if isinstance(classes, str) or not all(isinstance(name, str) for name in classes):
        raise ValueError(f"classes={classes!r} must be a sequence of names, or None")
    return tuple(map(str, classes))


# ---- Images ----------------------------------------------------------------------------------------


class Preprocessing(NamedTuple):
    """What a trained network takes: the size of its images, and the statistics that normalize them."""

    size: int  # pixels, the side of a square
    mean: tuple[float, ...]  # per channel, for pixels in [0, 1]
    std: tuple[float, ...]


class Prediction(NamedTuple):
    """The likeliest class of an image, and its softmax probability in [0, 1]."""

    label: str
    confidence: float


class _Images(nn.Module):
    """The part of `Net` that takes pictures, by the attributes below."""

    preprocessing: Preprocessing | None
    classes: tuple[str, ...] | None

    def transform(self, images) -> Tensor:
        """Turn pictures into what the network takes: normalized (N, 3, size, size), its dtype and device.

        images: a picture, an iterable of them, or a uint8 tensor (3, H, W) or (N, 3, H, W), of any size. A
        picture is a PIL image, or a path or a binary file object of one, which Pillow opens. An
        image of another size than the network's is resized, bilinear with antialiasing, without
        cropping, so a long image is squeezed. A PIL image is rotated as its EXIF orientation says, and its
        transparency is dropped.

        A picture is resized in strips, so that a large one takes little memory beside its own. Pillow keeps
        the pixels of every file that it has read: for many files pass their paths, which are opened one
        after another, or a generator of images. It opens none above 179 megapixels, unless
        PIL.Image.MAX_IMAGE_PIXELS is set to more.

        Raises ValueError for anything else, for a file above that limit, and if the network has no
        `preprocessing`; OSError for a file that is missing, damaged, or not an image. Errors name the file.
        """
        if self.preprocessing is None:
            raise ValueError("this network does not know what it takes: set net.preprocessing")
        like = next(self.parameters())
        size, *statistics = self.preprocessing
        mean, std = (torch.tensor(value, device=like.device).view(-1, 1, 1) for value in statistics)
        pixels = _joined((_resized(strips, size, like.device) for strips in _pictures(images)), 0)
        return torch.addcmul(-mean / std, pixels, 1 / (255 * std)).to(like.dtype)

    def predict(self, images, *, flips: bool = False, sure: float = 1.0) -> list[Prediction]:
        """The likeliest class of each image, with its confidence. images: see `transform`.

        flips: average the logits of each image and its mirror image, or, with `sure` below 1, only of images
        whose confidence is smaller than that. Computes in evaluation mode, and restores the mode of every
        module at the end.

        Raises what `transform` raises, and ValueError for another `flips` or `sure`, if `classes` does not
        name every output, or if the logits are not finite.
        """
        likeliest = self._confidences(images, flips, sure).max(1)
        return self._named(likeliest.indices, likeliest.values)

    def likeliest(self, image, count: int = 3, *, flips: bool = False, sure: float = 1.0) -> list[Prediction]:
        """The `count` likeliest classes of one image, the likeliest first; all, if it has no more classes.

        image: a single one of those that `transform` takes. flips, sure: as for `predict`. Raises what
        `predict` raises, and ValueError for another number of images, and for a `count` that is not an
        integer of at least 1.
        """
        count = _integer("count", count)
        confidences = self._confidences(image, flips, sure)
        if len(confidences) != 1:
            raise ValueError(f"{len(confidences)} images: expected one")
        ranked = confidences[0].sort(descending=True, stable=True)
        return self._named(ranked.indices[:count], ranked.values[:count])

    def _confidences(self, images, flips: bool = False, sure: float = 1.0) -> Tensor:  # (N, num_classes)
        if not isinstance(flips, bool) or not isinstance(sure, Real) or not 0 <= sure <= 1:
            raise ValueError(f"{flips=} must be True or False, and {sure=} a number from 0 to 1")
        inputs = self.transform(images)
        together = max(1, 2**18 // max(1, inputs[:1, 0].numel()))  # 256 images of 32 pixels a side
        with _evaluating(self), torch.no_grad():
            logits = torch.cat([self(part) for part in inputs.split(together)]).float()
            if flips:
                unsure = logits.softmax(1).amax(1) < sure if sure < 1 else torch.ones(len(logits)).bool()
                for index in unsure.nonzero().flatten().split(together):
                    logits[index] = (logits[index] + self(inputs[index].flip(-1)).float()) / 2
        classes = self.classes
        if classes is None or len(classes) != logits.shape[1]:
            raise ValueError(f"classes={classes!r} must name the {logits.shape[1]} outputs of the network")
        if not logits.isfinite().all():
            raise ValueError("the logits are not finite: the weights are damaged, or training diverged")
        return logits.softmax(1)

    def _named(self, numbers: Tensor, confidences: Tensor) -> list[Prediction]:
        names = list(self.classes or ())
        pairs = zip(numbers.tolist(), confidences.tolist(), strict=True)
        return [Prediction(names[number], confidence) for number, confidence in pairs]


PIXELS = 2**21  # turned into floats at once: 25 MB, and as much again to resize them


def _pictures(images) -> Iterator[Iterable[Tensor]]:
    """Groups of pictures of one size, in strips of rows from top to bottom: uint8 (N, 3, h, W)."""
    if isinstance(images, Tensor):
        batch = images.unsqueeze(0) if images.ndim == 3 else images
        if batch.dtype != torch.uint8 or batch.ndim != 4 or batch.shape[1] != 3:
            raise ValueError(
                f"images of {images.dtype} {tuple(images.shape)}: expected uint8 (3, H, W) or (N, 3, H, W)"
            )
        for part in batch.split(_fitting(batch.shape[2] * batch.shape[3])):
            yield part.split(_fitting(batch.shape[3]), dim=2)
        return
    several = (
        isinstance(images, Iterable) and not isinstance(images, dict | bytes) and not _is_picture(images)
    )
    for picture in images if several else [images]:
        if not _is_picture(picture):
            raise ValueError(
                f"images of type {type(picture).__name__}: expected a PIL image, a path, a binary file, an "
                "iterable of these, or a single uint8 tensor"
            )
        yield _strips(picture)


def _fitting(pixels: int) -> int:  # images, or rows, of so many pixels
    return max(1, PIXELS // max(1, pixels))


def _is_picture(value) -> bool:
    return hasattr(value, "getexif") or isinstance(value, str | os.PathLike) or hasattr(value, "read")


def _strips(picture) -> Iterator[Tensor]:  # uint8 (1, 3, h, W)
    if hasattr(picture, "getexif"):
        yield from _strips_of(picture, getattr(picture, "filename", ""))
        return
    name = picture if isinstance(picture, str | os.PathLike) else getattr(picture, "name", "")
    name = str(name) if isinstance(name, str | os.PathLike) else ""  # of an open file it may be a number
    with _opened(picture, name or "the file") as image:
        yield from _strips_of(image, name)


def _opened(file, name: str):
    """The PIL image in a file, not read yet. name: for errors."""
    from PIL import Image, UnidentifiedImageError

    if isinstance(file, io.TextIOBase):
        raise ValueError(f"{name} is open as text: open it with mode 'rb'")
    if not hasattr(file, "read") and Path(file).exists() and not Path(file).is_file():
        raise OSError(f"{name} is not a file")  # reading a pipe would wait for ever
    try:
        return Image.open(file)
    except FileNotFoundError:
        raise FileNotFoundError(f"{name} is missing") from None
    except UnidentifiedImageError as error:
        raise OSError(f"{name} is not an image, or of a kind that Pillow cannot read") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name} is too large: {error}") from error
    except Exception as error:  # its type depends on the format
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        raise OSError(f"{name} is damaged or cannot be read ({reason})") from error


def _strips_of(image, name: str) -> Iterator[Tensor]:  # a PIL image
    from PIL import ImageOps  # only for its own images, so Pillow is installed

    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        raise ValueError(
            f"{name or 'image'} of mode {image.mode!r}: expected 8 bits per channel, such as mode 'RGB'"
        )
    try:
        image.load()
        if (
            image.getexif().get(0x0112, 1) != 1
        ):  # its orientation; exif_transpose copies an upright image, too
            image = ImageOps.exif_transpose(image)
    except Exception as error:  # its type depends on the format
        raise OSError(
            f"{name or 'the image'} is damaged or cannot be read ({type(error).__name__}: {error})"
        ) from error
    if max(image.size) > 2**16:  # a single row or column may have a hundred million pixels
        image = image.convert("RGB").reduce(tuple(max(1, side // 2**15) for side in image.size))
    rows = _fitting(image.width)
    for top in range(0, image.height, rows):
        rgb = image.crop((0, top, image.width, min(top + rows, image.height))).convert("RGB")
        pixels = torch.frombuffer(bytearray(rgb.tobytes()), dtype=torch.uint8)
        yield pixels.view(1, rgb.height, rgb.width, 3).permute(0, 3, 1, 2)


def _resized(strips: Iterable[Tensor], size: int, device: torch.device) -> Tensor:
    """Maps the strips of pictures to float (N, 3, size, size), in [0, 255]."""
    # Bilinear resizing is separable: first the width of each strip, then the height of the whole.
    narrow = (_interpolated(strip.to(device).float(), strip.shape[2], size) for strip in strips)
    return _interpolated(_joined(narrow, 2), size, size)


def _joined(parts: Iterator[Tensor], dim: int) -> Tensor:
    """torch.cat. In a list, each part would keep the far larger memory beside it from being used again."""
    joined = next(parts, None)
    if joined is None:
        raise ValueError("images is empty: expected at least one")
    count = joined.shape[dim]
    for part in parts:
        while count + part.shape[dim] > joined.shape[dim]:
            joined = torch.cat([joined, torch.empty_like(joined)], dim)
        joined.narrow(dim, count, part.shape[dim]).copy_(part)
        count += part.shape[dim]
    return joined.narrow(dim, 0, count)


def _interpolated(pixels: Tensor, height: int, width: int) -> Tensor:
    if pixels.shape[2:] == (height, width):
        return pixels
    return F.interpolate(pixels, size=(height, width), mode="bilinear", antialias=True)


# ---- The network -----------------------------------------------------------------------------------


class Row(NamedTuple):
    """A row of the network's table: one convolution block."""

    channels: int  # output channels at width 1
    conv: str = "standard"  # its technique in the "mixed" network
    stride: int = 1
    dilation: int | None = None  # in the "mixed" network; None is the technique's own


# The strict variant of the course: C1 to C4, receptive field above 52, fewer than 100,000 parameters.
STAGES: tuple[tuple[Row, ...], ...] = (
    (Row(32, stride=2), Row(32)),
    (Row(48, stride=2), Row(48)),
    (Row(48, "dilated"),),
    (Row(96, "depthwise_separable"),) * 3,
)

MIN_IMAGE_SIZE = 16  # pixels; below it the last map is too small to normalize
MAX_IMAGE_SIZE = (
    4096  # pixels; the first map of such an image takes 0.5 GB, and `transform` makes no larger one
)
MOST_ROWS = 1_000  # of a table
CHANNEL_STEP = 8  # widths are scaled in steps of 8 channels, so that 2, 4 or 8 groups divide them


class Net(_Files, _Images):
    """Stages C1 to C4 of convolution blocks, a 1x1 convolution to the classes, global average pooling.

    Maps float images (N, in_channels, H, W), H and W at least 16 pixels, to logits (N, num_classes).
    `Net()` keeps the strict rules of the course: fewer than 100,000 parameters, a receptive field above
    52 pixels, depthwise-separable and dilated convolutions, no pooling except the global average, and no
    linear layer after it. Every (norm, conv) pair has the same topology: rows, channels, strides and
    skip connections. The pair changes only the normalization or the convolution.

    norm: a name in NORMS, or a callable from channels to a module.
    conv: a name in CONVS, or a callable with the same signature, for every row; "mixed" uses the
        technique, and the dilation, that each row of the table names. "dilated" leaves rows with a stride
        standard: such a row would skip pixels, and three quarters of the image would never be read.
    width: factor above 0 on the channels of every row, rounded down to a multiple of 8.
    groups: number of groups, only for norm="group" (default 8).
    stages: the table, a sequence of stages, each a sequence of `Row` (channels, conv, stride, dilation), at
        most 1,000 rows in all.
    post_activation: in blocks with a skip connection, the activation comes after the sum.
    activation: a callable that makes the activation.

    Attributes: `config`, these arguments as plain data. `preprocessing` and `classes` (a name for each
    output) are what `transform` and `predict` use, and `metadata` says where a trained network comes
    from; they are None until they are set or loaded.

    A module that a subclass or a user adds takes no part in `forward` and `features` by itself.

    Raises ValueError for names, numbers or tables that are not allowed, and says what is allowed.
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
        post_activation: bool = False,
        activation: Callable[[], nn.Module] = nn.ReLU,
    ):
        super().__init__()
        num_classes = _integer("num_classes", num_classes)
        self.in_channels = channels = _integer("in_channels", in_channels)
        groups = None if groups is None else _integer("groups", groups)
        norm, conv, table = _plain_name(norm), _plain_name(conv), _table(stages)
        if not any(table):
            raise ValueError(f"stages={stages!r} must hold at least one row")
        if isinstance(width, bool) or not isinstance(width, Real) or not 0 < width <= MOST:
            raise ValueError(f"{width=} must be a number above 0 and at most {MOST}")
        width = float(width)
        for number, rows in enumerate(table, 1):
            stage = nn.Sequential()
            for row in rows:
                out_channels = _integer(f"at {width=}, out_channels", scaled(row.channels, width))
                block = conv_block(
                    channels,
                    out_channels,
                    conv=_technique(conv, row),
                    norm=norm,
                    stride=row.stride,
                    dilation=row.dilation if conv == "mixed" else None,
                    groups=groups,
                    residual=row.stride == 1 and out_channels == channels,
                    post_activation=post_activation,
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
            "in_channels": self.in_channels,
            "width": width,
            "groups": groups,
            # A row without a dilation of its own as in files from before rows had one.
            "stages": tuple(
                tuple(tuple(row)[: 3 if row.dilation is None else 4] for row in rows) for rows in table
            ),
        }
        if post_activation:
            self.config["post_activation"] = True
        if activation is not nn.ReLU:
            self.config["activation"] = activation

    @classmethod
    def within(cls, budget: int, *, conv="mixed", norm="batch", **options) -> Net:
        """The widest such network with at most `budget` parameters. options: those of `Net`, except width.

        Draws only the random numbers that building this network draws.

        Raises ValueError if even the narrowest network has more parameters.
        """
        budget = _integer("budget", budget, most=10**9)
        table = options["stages"] = _table(options.get("stages", STAGES))

        def size(width: float) -> int:
            with torch.device("meta"):  # counts without memory or random numbers
                return count_parameters(cls(norm, conv, width=width, **options))

        least = size(1e-9)
        if least > budget:
            raise ValueError(f"budget={budget} is too small: the narrowest network has {least} parameters")
        ceiling, widest = 1.0, MOST / max(row.channels for rows in table for row in rows)
        while ceiling < widest and size(ceiling) <= budget:
            ceiling = min(2 * ceiling, widest)
        # Only at these widths does a row gain channels.
        widths = sorted(
            {
                multiple / row.channels
                for rows in table
                for row in rows
                for multiple in range(CHANNEL_STEP, int(row.channels * ceiling) + 1, CHANNEL_STEP)
            }
        )
        return cls(norm, conv, width=widths[bisect_right(widths, budget, key=size) - 1], **options)

    def features(self, images: Tensor) -> Tensor:
        """The last map before the global average: (N, C, H, W) -> (N, num_classes, H', W')."""
        _check_shape(images, self.in_channels)
        maps = images
        for number in range(1, len(self.config["stages"]) + 1):
            maps = getattr(self, f"c{number}")(maps)
        return self.output(maps)

    def forward(self, images: Tensor) -> Tensor:  # (N, C, H, W) -> (N, num_classes)
        return self.features(images).mean((2, 3))

    def _initialize(self) -> None:
        """He et al., arXiv 1502.01852. The classes start nearly equal, whatever the scale of the features."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.output.weight, std=0.01)


def _technique(conv, row: Row):
    """The technique of a row in a network of the technique `conv`."""
    if conv == "mixed":
        return row.conv
    return "standard" if conv == "dilated" and row.stride > 1 else conv


def scaled(channels: int, width: float) -> int:
    """`channels * width` rounded down to a multiple of CHANNEL_STEP, and at least that."""
    return max(CHANNEL_STEP, int(channels * width + 1e-9) // CHANNEL_STEP * CHANNEL_STEP)


def _table(stages) -> tuple[tuple[Row, ...], ...]:
    """The table as rows of plain values."""

    def plain(channels, conv, stride, dilation) -> Row:
        _named("conv", conv, CONVS)
        dilation = None if dilation is None else _integer("dilation", dilation)
        return Row(_integer("channels", channels), _plain_name(conv), _integer("stride", stride), dilation)

    try:
        table = [[Row(*row) for row in islice(rows, MOST_ROWS + 1)] for rows in islice(stages, MOST_ROWS + 1)]
    except TypeError as error:  # something that is not a sequence, or a row of another length
        raise ValueError(
            f"{stages=}: expected a sequence of stages, each a sequence of rows "
            "(channels, conv, stride, dilation)"
        ) from error
    if len(table) > MOST_ROWS or sum(map(len, table)) > MOST_ROWS:
        raise ValueError(f"stages has more than {MOST_ROWS} rows")
    return tuple(tuple(plain(*row) for row in rows) for rows in table)


def _check_shape(images: Tensor, channels: int) -> None:
    # While tracing and exporting, a shape stands for many. torch.fx passes a proxy.
    tracing = torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
    if tracing or torch.compiler.is_exporting() or type(images).__module__.startswith("torch.fx"):
        return
    if not isinstance(images, Tensor) or not images.is_floating_point():
        kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"images of {kind}: expected a float tensor, as `transform` makes it")
    if images.ndim != 4 or images.shape[1] != channels or min(images.shape[2:]) < MIN_IMAGE_SIZE:
        raise ValueError(
            f"images of shape {tuple(images.shape)}: expected (N, {channels}, H, W), "
            f"with H and W of at least {MIN_IMAGE_SIZE} pixels"
        )


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
    macs: int  # multiply-accumulates per image


class Description(list[ConvRow]):
    """A list of ConvRow that prints as a table, in a terminal and in a notebook."""

    COLUMNS = (
        *("name", "kind", "kernel", "stride", "dilation"),
        *("output", "receptive field", "parameters", "MACs"),
    )

    def __init__(self, rows: Iterable[ConvRow], total_parameters: int):
        super().__init__(rows)
        self.total_parameters = total_parameters
        self.total_macs = sum(row.macs for row in self)

    def _cells(self) -> list[tuple[str, ...]]:
        cells: list[tuple[str, ...]] = [
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
    """One `ConvRow` per 2-D convolution of `net`, in the order in which an image passes through them.

    image_size: pixels, the side of a square image. The receptive field is the one of a chain of
    convolutions, where skip connections add nothing: each convolution adds (kernel - 1) * dilation *
    (product of the strides before it), and a MultiScale what its widest branch adds. Leaves the network, its
    mode and its statistics, and torch's random state as they were.

    Raises ValueError if `net` has no 2-D convolution, and for an image_size that is not from 1 to 4096.
    """
    modules = net.named_modules() if isinstance(net, nn.Module) else []
    convs = {module: name for name, module in modules if isinstance(module, nn.Conv2d)}
    if not convs:
        raise ValueError(f"{type(net).__name__} has no Conv2d to describe")
    image_size = _integer("image_size", image_size, most=MAX_IMAGE_SIZE)
    rows: list[ConvRow] = []
    splits = [module for module in net.modules() if isinstance(module, MultiScale)]
    branches = [branch for module in splits for branch in module.children()]
    field, jump = 1, 1  # receptive field and distance between neighbouring units, in pixels of the image
    start, ends = (1, 1), [(1, 1)]  # both, before the MultiScale that an image is in, and behind its branches

    def record(module: nn.Conv2d, inputs, output: Tensor) -> None:
        nonlocal field, jump
        kernel, stride, dilation = module.kernel_size[0], module.stride[0], module.dilation[0]
        _, channels, height, width = output.shape
        field += (kernel - 1) * dilation * jump
        jump *= stride
        rows.append(
            ConvRow(
                name=convs[module],
                kind=_kind(module),
                kernel_size=kernel,
                stride=stride,
                dilation=dilation,
                output_shape=(channels, height, width),
                receptive_field=field,
                parameters=count_parameters(module),
                macs=module.weight.numel() * height * width,
            )
        )

    def split(module: MultiScale, inputs) -> None:
        nonlocal start, ends
        start, ends = (field, jump), []

    def end(module: nn.Module, inputs, output: Tensor) -> None:
        nonlocal field, jump
        ends.append((field, jump))
        field, jump = start

    def join(module: MultiScale, inputs, output: Tensor) -> None:
        nonlocal field, jump
        field, jump = max(ends)

    first = next(module for module in net.modules() if isinstance(module, nn.Conv2d | MultiScale))
    image = torch.zeros(1, first.in_channels, image_size, image_size).to(next(iter(convs)).weight)
    handles = [module.register_forward_hook(record) for module in convs]
    handles += [module.register_forward_pre_hook(split) for module in splits]
    handles += [module.register_forward_hook(end) for module in branches]
    handles += [module.register_forward_hook(join) for module in splits]
    devices = [image.device] if image.device.type == "cuda" else []
    try:
        # A network may draw random numbers in evaluation mode too.
        with _evaluating(net), torch.no_grad(), torch.random.fork_rng(devices):
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
