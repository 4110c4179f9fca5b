"""model.py against PyTorch's own functions and hand formulas."""

import json
import math
import re
import shutil
import subprocess
import sys
from functools import cache, partial
from itertools import pairwise, repeat
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import model
from model import (
    CONVS,
    NORMS,
    STAGES,
    Net,
    Row,
    conv_block,
    count_parameters,
    describe,
    receptive_field,
)

PAIRS = [(norm, conv) for norm in NORMS for conv in CONVS]
EPS = 1e-5  # torch's default in all its normalizations


def same(actual, expected, tolerance=1e-5):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


# ---- The contract ----------------------------------------------------------------------------------


def test_the_default_network_keeps_the_strict_rules():
    net = Net()
    kinds = [row.kind for row in describe(net)]
    assert count_parameters(net) < 100_000
    assert receptive_field(net) > 52
    assert sum("depthwise" in kind for kind in kinds) >= 2
    assert "dilated" in kinds
    pools = (nn.modules.pooling._MaxPoolNd, nn.modules.pooling._AvgPoolNd, nn.AdaptiveAvgPool2d)
    assert not [m for m in net.modules() if isinstance(m, (nn.Linear, nn.AdaptiveMaxPool2d, *pools))]


def test_each_depthwise_convolution_of_the_default_network_is_followed_by_a_pointwise_one():
    kinds = [row.kind for row in describe(Net())]
    after = [following for kind, following in pairwise(kinds) if "depthwise" in kind]
    assert after
    assert set(after) == {"pointwise"}


def test_the_default_network_is_batch_and_mixed_in_four_stages_and_an_output():
    children = [name for name, _ in Net().named_children()]
    assert children == ["c1", "c2", "c3", "c4", "output"]
    assert str(Net()) == str(Net("batch", "mixed"))


def test_the_logits_are_the_mean_of_the_last_map():
    net, images = Net().eval(), torch.randn(2, 3, 32, 32)
    maps = net.output(net.c4(net.c3(net.c2(net.c1(images)))))
    same(net(images), maps.sum((2, 3)) / (maps.shape[2] * maps.shape[3]))
    same(net.features(images), maps)


@pytest.mark.parametrize(("norm", "conv"), PAIRS)
def test_a_network_consists_of_torchs_own_layers(norm, conv):
    net = Net(norm, conv, width=0.5)
    layers = {type(module) for module in net.modules() if list(module.parameters(recurse=False))}
    norms = {"batch": {nn.BatchNorm2d}, "none": set()}
    assert layers == {nn.Conv2d} | norms.get(norm, {nn.GroupNorm})


ALONE = """
import json, random, sys
import torch
before = set(sys.modules)
state, python_state = torch.get_rng_state(), random.getstate()
import model
clean = torch.equal(state, torch.get_rng_state()) and python_state == random.getstate()
new = sorted({name.partition(".")[0] for name in set(sys.modules) - before})
foreign = [name for name in new if name not in sys.stdlib_module_names and name not in ("model", "torch")]
shape = list(model.Net()(torch.zeros(2, 3, 32, 32)).shape)
print("MARK" + json.dumps([clean, foreign, shape, model.__file__]))
"""


def test_a_copy_in_an_empty_folder_imports_only_torch_and_changes_nothing(tmp_path):
    shutil.copy(model.__file__, tmp_path)
    run = subprocess.run(
        [sys.executable, "-c", ALONE], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("MARK"), "importing printed something"
    clean, foreign, shape, file = json.loads(run.stdout.removeprefix("MARK"))
    assert clean
    assert foreign == []
    assert shape == [2, 10]
    assert Path(file).resolve().parent == tmp_path.resolve()


# ---- Normalizations --------------------------------------------------------------------------------


def standardized(x, dims):
    mean = x.mean(dims, keepdim=True)
    return (x - mean) / ((x - mean).square().mean(dims, keepdim=True) + EPS).sqrt()


def grouped(x, groups):
    return standardized(x.reshape(len(x), groups, -1), (2,)).view(x.shape)


FORMULAS = {
    "batch": lambda x: standardized(x, (0, 2, 3)),
    "layer": lambda x: standardized(x, (1, 2, 3)),
    "group": lambda x: grouped(x, 8),
    "instance": lambda x: standardized(x, (2, 3)),
    "none": lambda x: x,
}


def uneven(channels=16):  # each image, channel and pixel has a mean and scale of its own
    return torch.randn(3, channels, 5, 7) * torch.rand(3, channels, 1, 1) * 4 + torch.randn(3, channels, 1, 1)


def with_affine(norm):
    """Give a norm random scales and offsets; returns them, (1, C, 1, 1) each."""
    if not list(norm.parameters()):
        return 1.0, 0.0
    nn.init.uniform_(norm.weight, 0.5, 2.0)
    nn.init.uniform_(norm.bias, -1.0, 1.0)
    return norm.weight.detach().view(1, -1, 1, 1), norm.bias.detach().view(1, -1, 1, 1)


def test_every_norm_has_a_formula_in_this_file():
    assert set(FORMULAS) == set(NORMS)


@pytest.mark.parametrize("name", NORMS)
def test_a_norm_equals_its_formula_with_a_scale_and_offset_per_channel(name):
    norm, x = NORMS[name](16), uneven()
    scale, offset = with_affine(norm)
    same(norm(x), FORMULAS[name](x) * scale + offset)


@pytest.mark.parametrize("name", sorted(set(NORMS) - {"none"}))
def test_a_norm_has_a_scale_and_an_offset_per_channel(name):
    assert [tuple(p.shape) for p in NORMS[name](16).parameters()] == [(16,), (16,)]


@pytest.mark.parametrize("groups", [1, 2, 4, 16])
def test_the_number_of_groups_can_be_chosen(groups):
    x = uneven()
    same(model.group_norm(16, groups)(x), grouped(x, groups))


@pytest.mark.parametrize("name", sorted(set(NORMS) - {"batch"}))
def test_only_batch_norm_looks_at_other_images_and_differs_in_evaluation(name):
    norm, x = NORMS[name](16), uneven()
    same(norm(x)[:1], norm(x[:1]))
    same(norm.eval()(x), norm.train()(x))


def test_batch_norm_evaluates_with_running_statistics():
    norm, x = NORMS["batch"](16), uneven()
    norm(x)  # momentum 0.1, from mean 0 and variance 1
    mean = 0.1 * x.mean((0, 2, 3)).view(1, -1, 1, 1)
    variance = (0.9 + 0.1 * x.var((0, 2, 3), unbiased=True)).view(1, -1, 1, 1)
    same(norm.eval()(x), (x - mean) / (variance + EPS).sqrt())


# ---- Convolution techniques ------------------------------------------------------------------------


def tapped(x, weight, stride, dilation, bias=None):
    """A convolution by its definition: the sum over the taps of the shifted images, zero outside."""
    kernel = weight.shape[-1]
    margin = dilation * (kernel - 1) // 2
    padded = F.pad(x, (margin,) * 4)
    height, width = x.shape[2:]
    out = 0.0
    for row in range(kernel):
        for column in range(kernel):
            y, z = row * dilation, column * dilation
            part = padded[:, :, y : y + height : stride, z : z + width : stride]
            out = out + torch.einsum("nchw,oc->nohw", part, weight[:, :, row, column])
    return out if bias is None else out + bias.view(1, -1, 1, 1)


def per_channel(x, weight, stride, dilation):
    """Filters each channel with its own kernel."""
    parts = [tapped(x[:, c : c + 1], weight[c : c + 1], stride, dilation) for c in range(len(weight))]
    return torch.cat(parts, 1)


def mixing(x, weight):
    return torch.einsum("nchw,oc->nohw", x, weight[:, :, 0, 0])


def at_three_scales(x, filters, stride, dilation):
    """Filters each quarter of the channels with the kernels of its scale, and keeps the last quarter."""
    *parts, kept = x.tensor_split(4, 1)  # gives what is left over to the first, one channel each
    maps = []
    for part, branch in zip(parts, filters.children(), strict=False):
        *first, last = [conv.weight for conv in branch]
        for weight in first:
            part = per_channel(part, weight, 1, dilation)
        wider = last.shape[-1] if branch is getattr(filters, "farthest", None) else 1
        maps.append(per_channel(part, last, stride, wider * dilation))
    return torch.cat([*maps, kept[:, :, ::stride, ::stride]], 1)


def gated(x, pair):
    let_through = mixing(x, pair.gate.weight).sigmoid()
    return tapped(mixing(x, pair.value.weight) * let_through, pair.output.weight, 1, 1, pair.output.bias)


def convolved(conv, x, stride, dilation):
    """What `conv` should compute, from its weights and the definition of its technique."""
    bias = next((p for name, p in conv.named_parameters() if name.endswith("bias")), None)
    for part in conv.children() if isinstance(conv, nn.Sequential) else [conv]:
        if isinstance(part, model.GatedPointwise):
            return gated(x, part)
        if isinstance(part, model.MultiScale):
            x = at_three_scales(x, part, stride, dilation)
        elif part.groups > 1:
            x = per_channel(x, part.weight, stride, dilation)
        elif part.kernel_size == (1, 1):
            x = mixing(x, part.weight)
        else:
            x = tapped(x, part.weight, stride, dilation)
    return x if bias is None else x + bias.view(1, -1, 1, 1)


GATED = ("gated_separable", "gated_multi_scale")
STRUCTURES = {  # (children, weight shapes) from 6 to 10 channels, kernel 3
    "standard": ([], [(10, 6, 3, 3)]),
    "dilated": ([], [(10, 6, 3, 3)]),
    "depthwise_separable": (["depthwise", "pointwise"], [(6, 1, 3, 3), (10, 6, 1, 1)]),
    "blueprint_separable": (["pointwise", "depthwise"], [(10, 6, 1, 1), (10, 1, 3, 3)]),
    "mixed": ([], [(10, 6, 3, 3)]),
    "gated_separable": (
        ["depthwise", "pointwise"],
        [(6, 1, 3, 3), (10, 6, 1, 1), (10, 6, 1, 1), (10, 10, 1, 1)],
    ),
    "gated_multi_scale": (
        ["depthwise", "pointwise"],
        [
            *[(2, 1, 3, 3)] * 3,
            *[(1, 1, 3, 3)] * 2,
            *[(10, 6, 1, 1)] * 2,
            (10, 10, 1, 1),
        ],
    ),
}


@pytest.mark.parametrize("name", CONVS)
def test_a_technique_consists_of_its_convolutions_in_order(name):
    conv = CONVS[name](6, 10)
    children, shapes = STRUCTURES[name]
    assert [child for child, _ in conv.named_children()] == children
    assert [tuple(p.shape) for p in conv.parameters()] == shapes


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("kernel_size", "stride", "dilation"), [(3, 1, 1), (5, 2, 1), (3, 1, 2), (3, 2, 3), (1, 1, 1)]
)
@pytest.mark.parametrize("name", CONVS)
def test_a_technique_equals_the_sum_over_its_taps(name, kernel_size, stride, dilation, bias):
    conv = CONVS[name](6, 10, kernel_size=kernel_size, stride=stride, dilation=dilation, bias=bias)
    for parameter in conv.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(2, 6, 11, 8)
    same(conv(x), convolved(conv, x, stride, dilation), 1e-4)


def test_depthwise_separable_is_a_grouped_convolution_then_a_1x1():
    conv, x = model.depthwise_separable(6, 10, stride=2, dilation=2), torch.randn(2, 6, 12, 9)
    alone = F.conv2d(x, conv.depthwise.weight, stride=2, padding=2, dilation=2, groups=6)
    same(conv(x), F.conv2d(alone, conv.pointwise.weight))


def test_blueprint_separable_is_a_1x1_then_a_grouped_convolution():
    conv, x = model.blueprint_separable(6, 10, stride=2, dilation=2), torch.randn(2, 6, 12, 9)
    mixed = F.conv2d(x, conv.pointwise.weight)
    same(conv(x), F.conv2d(mixed, conv.depthwise.weight, stride=2, padding=2, dilation=2, groups=10))


@pytest.mark.parametrize("dilation", [1, 2, 3])
@pytest.mark.parametrize("kernel_size", [3, 5])
def test_dilation_is_a_kernel_stuffed_with_zeros(kernel_size, dilation):
    conv, x = model.dilated(4, 5, kernel_size=kernel_size, dilation=dilation), torch.randn(2, 4, 16, 13)
    side = (kernel_size - 1) * dilation + 1
    stuffed = torch.zeros(5, 4, side, side)
    stuffed[:, :, ::dilation, ::dilation] = conv.weight.detach()
    same(conv(x), F.conv2d(x, stuffed, padding=side // 2))


def test_dilated_is_dilated_by_two_and_keeps_kernel_and_output_size():
    dilated, standard = model.dilated(4, 5), model.standard(4, 5)
    assert dilated.dilation == (2, 2)
    assert standard.dilation == (1, 1)
    assert dilated.weight.shape == standard.weight.shape
    assert dilated(torch.zeros(1, 4, 9, 14)).shape == (1, 5, 9, 14)


@pytest.mark.parametrize(
    ("out_channels", "dilation", "technique"),
    [
        (64, 1, "standard"),
        (65, 1, "depthwise_separable"),
        (8, 1, "standard"),
        (8, 2, "dilated"),
        (200, 2, "dilated"),
    ],
)
def test_mixed_picks_by_dilation_then_by_channels(out_channels, dilation, technique):
    expected = CONVS[technique](16, out_channels, dilation=dilation)
    assert str(model.mixed(16, out_channels, dilation=dilation)) == str(expected)


@pytest.mark.parametrize("row", [row for rows in STAGES for row in rows], ids=str)
def test_every_row_of_the_table_is_what_mixed_would_pick(row):
    picked = model.mixed(8, row.channels, stride=row.stride, dilation=2 if row.conv == "dilated" else 1)
    assert str(picked) == str(CONVS[row.conv](8, row.channels, stride=row.stride))


@pytest.mark.parametrize("norm", NORMS)
def test_the_mixed_network_uses_the_technique_of_each_row(norm):
    rows = [Row(*row) for rows in STAGES for row in rows]
    blocks = [block for stage in list(Net(norm).children())[:-1] for block in stage]
    for row, block in zip(rows, blocks, strict=True):
        made = CONVS[row.conv](conv_in(block), row.channels, stride=row.stride, bias=norm == "none")
        assert str(block.conv) == str(made)


def conv_in(block):
    return next(m for m in block.conv.modules() if isinstance(m, nn.Conv2d)).in_channels


# ---- The block -------------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize(("norm", "conv"), PAIRS)
def test_a_block_is_convolution_norm_activation(norm, conv, stride):
    block = conv_block(16, 24, conv=conv, norm=norm, stride=stride)
    for parameter in block.conv.parameters():
        nn.init.normal_(parameter)
    scale, offset = with_affine(block.norm)
    x = torch.randn(4, 16, 13, 10)
    maps = convolved(block.conv, x, stride, 2 if conv == "dilated" else 1)
    assert maps.shape[2:] == (math.ceil(13 / stride), math.ceil(10 / stride))
    assert [name for name, _ in block.named_children()] == ["conv", "norm", "act"]
    normalized = FORMULAS[norm](maps) * scale + offset
    same(block(x), gated(normalized, block.act) if conv in GATED else normalized.clamp(min=0), 1e-3)


@pytest.mark.parametrize(("norm", "conv"), PAIRS)
def test_the_convolution_has_a_bias_only_if_no_norm_follows(norm, conv):
    block = conv_block(6, 16, conv=conv, norm=norm)  # six channels of a gated technique are two groups
    technique = block.act.output if conv in GATED else block.conv
    biases = [tuple(p.shape) for name, p in technique.named_parameters() if name.endswith("bias")]
    assert biases == ([(16,)] if norm == "none" else [])


@pytest.mark.parametrize(("norm", "conv"), PAIRS)
def test_a_residual_block_adds_its_input(norm, conv):
    block = conv_block(16, 16, conv=conv, norm=norm, residual=True)
    x = torch.randn(2, 16, 8, 8)
    same(block(x), x + block.act(block.norm(block.conv(x))))


@pytest.mark.parametrize("conv", GATED)
def test_a_gated_block_normalizes_what_it_reads_in_fewer_groups_where_channels_are_few(conv):
    def groups(in_channels, **options):
        return conv_block(in_channels, 32, conv=conv, norm="group", **options).norm.num_groups

    assert [groups(channels) for channels in (3, 12, 16)] == [1, 4, 8]
    assert [groups(channels, groups=6) for channels in (3, 16, 48)] == [3, 2, 6]


def test_a_block_accepts_dilation_kernel_groups_activation_and_callables():
    assert conv_block(4, 8, dilation=3).conv.dilation == (3, 3)
    assert conv_block(4, 8, conv="dilated").conv.dilation == (2, 2)
    assert conv_block(4, 8, kernel_size=5).conv.kernel_size == (5, 5)
    assert conv_block(4, 12, norm="group", groups=3).norm.num_groups == 3
    assert isinstance(conv_block(4, 8, activation=nn.SiLU).act, nn.SiLU)
    own = conv_block(4, 8, conv=model.blueprint_separable, norm=partial(nn.GroupNorm, 2))
    assert hasattr(own.conv, "depthwise")
    assert own.norm.num_groups == 2


# ---- The network -----------------------------------------------------------------------------------


def topology(net):
    """(class, stride, output shape) of every block, and of the output."""
    seen = []

    def note(module, inputs, output):
        jump = inputs[0].shape[2] // output.shape[2]
        seen.append((type(module).__name__, jump, tuple(output.shape)))

    for stage in list(net.children())[:-1]:
        for block in stage:
            block.register_forward_hook(note)
    net.output.register_forward_hook(note)
    with torch.no_grad():
        net.eval()(torch.randn(1, 3, 32, 32))
    return seen


@pytest.mark.parametrize("width", [0.5, 1.0])
@pytest.mark.parametrize(("norm", "conv"), PAIRS)
def test_every_pair_has_the_same_topology(norm, conv, width):
    assert topology(Net(norm, conv, width=width)) == topology(Net("batch", "standard", width=width))


@pytest.mark.parametrize("conv", CONVS)
def test_the_norm_changes_no_convolution_weight(conv):
    def convs(norm):
        return [(r.name, r.kind, r.macs) for r in describe(Net(norm, conv))]

    assert all(convs(norm) == convs("batch") for norm in NORMS)


def test_a_row_has_a_skip_connection_exactly_if_it_keeps_the_shape():
    rows = [Row(*row) for rows in STAGES for row in rows]
    before = [3, *(row.channels for row in rows)]
    expected = [row.stride == 1 and row.channels == c for row, c in zip(rows, before, strict=False)]
    blocks = [block for stage in list(Net().children())[:-1] for block in stage]
    assert [isinstance(block, model.Residual) for block in blocks] == expected


def pixels_read(net: Net) -> int:
    """The pixels of a 32x32 image that the logits depend on."""
    image = torch.randn(1, 3, 32, 32, requires_grad=True)
    net.eval()(image).square().sum().backward()
    return int((image.grad.abs().sum(1) > 0).sum())


@pytest.mark.parametrize("conv", CONVS)
def test_every_technique_reads_every_pixel(conv):
    assert pixels_read(Net("none", conv)) == 1024


def test_the_dilated_technique_leaves_strided_rows_standard():
    kinds = [(row.kind, row.stride) for row in describe(Net(conv="dilated"))][:-1]
    assert all(kind == ("standard" if stride == 2 else "dilated") for kind, stride in kinds)


def test_a_table_that_dilates_strided_rows_reads_a_quarter_of_the_pixels():
    rows = [[row._replace(conv="dilated") for row in rows] for rows in STAGES]
    net = Net("none", stages=rows)
    assert {row.kind for row in describe(net)} == {"dilated", "pointwise"}
    assert pixels_read(net) == 256


def test_a_row_can_have_a_dilation_of_its_own_which_only_the_mixed_network_uses(tmp_path):
    stages = (((8, "dilated", 2, 3), (8, "standard", 1, 2), (8, "dilated")),)
    net = Net(stages=stages)
    assert [row.dilation for row in describe(net)] == [3, 2, 2, 1]
    assert net.config["stages"] == (((8, "dilated", 2, 3), (8, "standard", 1, 2), (8, "dilated", 1)),)
    assert [row.dilation for row in describe(Net(conv="standard", stages=stages))] == [1, 1, 1, 1]
    assert str(Net.load(net.save(tmp_path / "net.pt"))) == str(net)


def test_with_post_activation_the_sum_comes_before_the_activation(tmp_path):
    block = conv_block(4, 4, residual=True, post_activation=True).eval()
    x = torch.randn(2, 4, 5, 5)
    same(block(x), (x + block.norm(block.conv(x))).relu())
    usual = conv_block(4, 4, residual=True).eval()
    usual.load_state_dict(block.state_dict())
    same(usual(x), x + block.norm(block.conv(x)).relu())
    net = Net(post_activation=True, width=0.25).eval()
    assert sum(isinstance(module, model.PostActivation) for module in net.modules()) == 5
    images = torch.randn(2, 3, 32, 32)
    same(Net.load(net.save(tmp_path / "net.pt"))(images), net(images))
    assert "post_activation" not in Net().config  # so that older records and checkpoints still fit


@pytest.mark.parametrize("size", [(16, 16), (16, 47), (33, 17), (64, 20)])
@pytest.mark.parametrize(("norm", "conv"), PAIRS)
def test_any_image_of_at_least_16x16_pixels_is_accepted(norm, conv, size):
    net = Net(norm, conv, width=0.25)
    assert net(torch.randn(2, 3, *size)).isfinite().all()
    assert net(torch.randn(2, 3, *size)).shape == (2, 10)


@pytest.mark.parametrize(("in_channels", "num_classes"), [(1, 10), (3, 1), (4, 100)])
def test_channels_and_classes_can_be_chosen(in_channels, num_classes):
    net = Net(in_channels=in_channels, num_classes=num_classes, width=0.25)
    assert net(torch.randn(2, in_channels, 16, 16)).shape == (2, num_classes)
    assert net.output.out_channels == num_classes


@pytest.mark.parametrize("width", [0.01, 0.25, 0.7, 1.0, 1.25, 2])
def test_channels_are_rounded_down_to_a_multiple_of_eight(width):
    for channels in (32, 48, 96):
        expected = max(8, math.floor(round(channels * width, 6) / 8) * 8)
        assert model.scaled(channels, width) == expected


@pytest.mark.parametrize("integer", [np.int64, np.uint8, torch.tensor])
def test_integers_from_numpy_and_torch_count_as_pythons(integer):
    stages = (((integer(16), "standard", integer(2)),), ((integer(24), np.str_("dilated")),))
    options = {"num_classes": integer(7), "in_channels": integer(4), "groups": integer(4)}
    net = Net(np.str_("group"), width=np.float32(0.5), stages=stages, **options)
    plain = Net(
        "group",
        width=0.5,
        num_classes=7,
        in_channels=4,
        groups=4,
        stages=((Row(16, stride=2),), (Row(24, "dilated"),)),
    )
    assert str(net) == str(plain)
    assert repr(net.config) == repr(plain.config)  # repr tells np.int64(7) from 7
    made = conv_block(integer(4), integer(8), kernel_size=integer(5), stride=integer(2), dilation=integer(1))
    assert str(made) == str(conv_block(4, 8, kernel_size=5, stride=2, dilation=1))
    assert str(describe(net, integer(32))) == str(describe(net, 32))


def test_the_same_seed_makes_the_same_weights_and_another_seed_others():
    def weight(seed):
        torch.manual_seed(seed)
        return Net().state_dict()["c1.0.conv.weight"]

    assert torch.equal(weight(1), weight(1))
    assert not torch.equal(weight(1), weight(2))


# ---- Extensions ------------------------------------------------------------------------------------


class WithHead(Net):
    """A network whose head maps the logits to two numbers."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.head = nn.Conv2d(self.output.out_channels, 2, 1)

    def forward(self, images):
        return self.head(super().forward(images)[:, :, None, None])[:, :, 0, 0]


def test_a_head_of_a_subclass_is_applied_only_by_its_own_forward():
    net, images = WithHead(width=0.5).eval(), torch.randn(2, 3, 32, 32)
    maps = net.output(net.c4(net.c3(net.c2(net.c1(images)))))
    same(net.features(images), maps)
    same(net(images), net.head(maps.mean((2, 3), keepdim=True))[:, :, 0, 0])


@pytest.mark.parametrize("name", ["extra", "c5"])
def test_a_module_that_a_user_adds_is_not_applied(name):
    net, images = Net(width=0.5).eval(), torch.randn(2, 3, 32, 32)
    logits, maps = net(images), net.features(images)
    net.add_module(name, nn.Conv2d(10, 10, 1))
    assert torch.equal(net(images), logits)
    assert torch.equal(net.features(images), maps)


def test_a_stage_that_a_user_replaces_is_applied():
    net, images = Net(width=0.5).eval(), torch.randn(2, 3, 32, 32)
    net.c4, net.output = nn.Identity(), nn.Identity()
    same(net(images), net.c3(net.c2(net.c1(images))).mean((2, 3)))


def test_describe_lists_the_convolution_of_a_head():
    table = describe(WithHead())
    assert [row.name for row in table] == [*(row.name for row in describe(Net())), "head"]
    assert (table[-1].output_shape, table[-1].macs) == ((2, 1, 1), 20)
    assert table.total_parameters == count_parameters(Net()) + 22


def test_within_counts_the_parameters_of_a_head():
    exact = count_parameters(Net()) + 22
    assert str(WithHead.within(exact)) == str(WithHead())
    assert count_parameters(WithHead.within(exact - 1)) < exact


# ---- Errors ----------------------------------------------------------------------------------------

GIVEN_AND_CHOICES = [
    (lambda: conv_block(4, 8, norm="btach"), ["'btach'", *map(repr, NORMS)]),
    (lambda: conv_block(4, 8, conv="fancy"), ["'fancy'", *map(repr, CONVS)]),
    (lambda: conv_block(4, 8, conv=None), ["None", *map(repr, CONVS)]),
    (lambda: Net("btach"), ["'btach'", *map(repr, NORMS)]),
    (lambda: Net(conv="fancy"), ["'fancy'", *map(repr, CONVS)]),
    (lambda: Net(["batch"]), ["['batch']", *map(repr, NORMS)]),
    (lambda: Net(stages=((Row(8, "fancy"),),)), ["'fancy'", *map(repr, CONVS)]),
    (lambda: conv_block(4, 8, kernel_size=4), ["kernel_size=4", "odd"]),
    (lambda: conv_block(4, 8, kernel_size=0), ["kernel_size=0", "at least 1"]),
    (lambda: conv_block(4, 8, kernel_size=-3), ["kernel_size=-3", "at least 1"]),
    (lambda: conv_block(4, 8, stride=0), ["stride=0", "at least 1"]),
    (lambda: conv_block(4, 8, dilation=0), ["dilation=0", "at least 1"]),
    (lambda: conv_block(4, 8, conv="dilated", dilation=-1), ["dilation=-1", "at least 1"]),
    (lambda: conv_block(0, 8), ["in_channels=0", "at least 1"]),
    (lambda: conv_block(4, 0), ["out_channels=0", "at least 1"]),
    (lambda: conv_block(4, 10, norm="group", groups=4), ["groups=4", "channels=10", "[1, 2, 5, 10]"]),
    (lambda: conv_block(4, 12, norm="group"), ["groups=8", "channels=12"]),
    (lambda: conv_block(4, 8, norm="group", groups=0), ["groups=0", "at least 1"]),
    (lambda: conv_block(4, 8, norm="batch", groups=4), ["groups=4", "'group'", "'batch'"]),
    (lambda: Net("layer", groups=4), ["groups=4", "'group'", "'layer'"]),
    (lambda: Net("group", groups=5), ["groups=5", f"channels={STAGES[0][0].channels}"]),
    (lambda: conv_block(4, 8, residual=True), ["in_channels=4", "out_channels=8"]),
    (lambda: conv_block(8, 8, stride=2, residual=True), ["stride=2"]),
    (lambda: Net(width=0), ["width=0", "above 0"]),
    (lambda: Net(width=-1.5), ["width=-1.5", "above 0"]),
    (lambda: Net(width=math.nan), ["width=nan", "above 0"]),
    (lambda: Net(width=math.inf), ["width=inf", "above 0"]),
    (lambda: Net(num_classes=0), ["num_classes=0", "at least 1"]),
    (lambda: Net(in_channels=0), ["in_channels=0", "at least 1"]),
    (lambda: Net(stages=((Row(0),),)), ["channels=0", "at least 1"]),
    (lambda: Net(stages=((), ())), ["stages=((), ())", "at least one row"]),
    (lambda: Net.within(100_000, stages=()), ["stages=()", "at least one row"]),
    (lambda: Net.within(0), ["budget=0", "at least 1"]),
    (lambda: Net.within(-5), ["budget=-5", "at least 1"]),
    (lambda: Net.within(10**12), ["budget=1000000000000", "at most 1000000000"]),
    (lambda: Net.within(1e5), ["budget=100000.0", "an integer"]),
    (lambda: Net.within("many"), ["budget='many'", "an integer"]),
    (lambda: Net.within(100_000, conv="fancy"), ["'fancy'", *map(repr, CONVS)]),
    (lambda: Net()(torch.zeros(1, 3, 15, 32)), ["(1, 3, 15, 32)", "16 pixels"]),
    (lambda: Net()(torch.zeros(1, 3, 32, 8)), ["(1, 3, 32, 8)", "16 pixels"]),
    (lambda: Net()(torch.zeros(3, 32, 32)), ["(3, 32, 32)", "(N, 3, H, W)"]),
    (lambda: Net()(torch.zeros(1, 1, 3, 32, 32)), ["(1, 1, 3, 32, 32)", "(N, 3, H, W)"]),
    (lambda: Net()(torch.zeros(1, 1, 32, 32)), ["(1, 1, 32, 32)", "(N, 3, H, W)"]),
    (lambda: describe(nn.Linear(2, 2)), ["Linear", "Conv2d"]),
    (lambda: describe(Net(), 0), ["image_size=0", "at least 1"]),
    (lambda: describe(Net(), 8), ["(1, 3, 8, 8)", "16 pixels"]),
    (lambda: describe(Net(), 5_000), ["image_size=5000", "at most 4096"]),
    (lambda: describe(Net(), 32.0), ["image_size=32.0", "an integer"]),
    (lambda: describe(Net), ["type", "Conv2d"]),
    (lambda: receptive_field("net"), ["str", "Conv2d"]),
    (lambda: receptive_field(None), ["NoneType", "Conv2d"]),
    *(
        (partial(Net, **{name: value}), [f"{name}={value!r}", "integer of at least 1 and at most 1000000"])
        for name in ("num_classes", "in_channels", "groups")
        for value in (True, 3.0, math.nan, "3", -1, 10**7, 2**70, [3], np.float32(3), torch.tensor(2.5))
    ),
    *(
        (
            partial(conv_block, 8, 8, norm="group", **{name: value}),
            [f"{name}={value!r}", "integer of at least 1"],
        )
        for name in ("kernel_size", "stride", "dilation", "groups")
        for value in (True, 3.0, "3", (3, 3), -1, 2**70, torch.tensor([3, 3]))
    ),
    (lambda: conv_block(4.0, 8), ["in_channels=4.0", "an integer"]),
    (lambda: conv_block(4, None), ["out_channels=None", "an integer"]),
    (lambda: conv_block(4, 8, kernel_size=None), ["kernel_size=None", "an integer"]),
    (lambda: conv_block(8, 8, residual="no"), ["residual='no'", "True or False"]),
    (lambda: conv_block(8, 8, residual=1), ["residual=1", "True or False"]),
    (lambda: Net(post_activation="yes"), ["post_activation='yes'", "True or False"]),
    (lambda: conv_block(4, 8, activation="relu"), ["activation='relu'", "nn.ReLU"]),
    (lambda: conv_block(4, 8, activation=None), ["activation=None", "nn.ReLU"]),
    (lambda: Net(activation=nn.SiLU()), ["activation=SiLU()", "nn.ReLU"]),
    (lambda: conv_block(4, 8, norm=nn.BatchNorm2d(8)), ["BatchNorm2d(8", *map(repr, NORMS)]),
    (lambda: conv_block(4, 8, conv=nn.Conv2d(4, 8, 3)), ["Conv2d(4, 8", *map(repr, CONVS)]),
    (lambda: conv_block(4, 8, norm=True), ["True", *map(repr, NORMS)]),
    *(
        (partial(Net, width=value), [f"width={value!r}", "a number above 0"])
        for value in (True, "1", None, [1.0], -math.inf, np.float64(math.nan), 10**400, 1e7, 1j)
    ),
    (lambda: Net(width=1e5), ["width=100000.0", "out_channels=3200000", "at most 1000000"]),
    *(
        (partial(Net, stages=value), [f"stages={value!r}", "a sequence of stages, each a sequence of rows"])
        for value in (None, 32, [32], [[32, 48]], [[()]], [[(8, "standard", 1, 1, 1)]], STAGES[0])
    ),
    *(
        (partial(Net, stages=[[row]]), [said, "at least 1"])
        for row, said in [
            ((-8, "standard", 1), "channels=-8"),
            ((0,), "channels=0"),
            ((8.0, "standard", 1), "channels=8.0"),
            ((True, "standard", 1), "channels=True"),
            ((8, "standard", 0), "stride=0"),
            ((8, "standard", 1, 0), "dilation=0"),
            ((8, "standard", -2), "stride=-2"),
            ((8, "standard", "2"), "stride='2'"),
            ((8, "standard", None), "stride=None"),
            ((2**70,), f"channels={2**70}"),
        ]
    ),
    (lambda: Net(stages=[[(8, "fancy", 1)]], conv="standard"), ["'fancy'", *map(repr, CONVS)]),
    (lambda: Net(stages=[[(8, 1, "standard")]]), ["unknown conv 1", *map(repr, CONVS)]),
    (lambda: Net(stages=["abc"]), ["channels='a'", "an integer"]),
    (lambda: Net(stages=[["abc"]]), ["unknown conv 'b'", *map(repr, CONVS)]),
    (lambda: Net(stages=[[(8,)] * 1_001]), ["more than 1000 rows"]),
    (lambda: Net(stages=[[(8,)]] * 1_001), ["more than 1000 rows"]),
    (lambda: Net(stages=repeat([(8,)])), ["more than 1000 rows"]),
    (lambda: Net(stages=repeat(())), ["more than 1000 rows"]),
    (lambda: Net(stages=[repeat((8,))]), ["more than 1000 rows"]),
    (lambda: Net.within(10_000, stages=[[(8, "standard")], 7]), ["stages=", "a sequence of rows"]),
    (lambda: Net()(np.zeros((1, 3, 32, 32), np.float32)), ["images of ndarray", "float tensor", "transform"]),
    (lambda: Net()([[0.0]]), ["images of list", "float tensor"]),
    (lambda: Net()(None), ["images of NoneType", "float tensor"]),
    (lambda: Net()(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)), ["images of torch.uint8", "transform"]),
    (lambda: Net()(torch.zeros(1, 3, 32, 32).long()), ["images of torch.int64", "float tensor"]),
]


GIVEN = [f"{said[0]} {number}" for number, (_, said) in enumerate(GIVEN_AND_CHOICES)]


@pytest.mark.parametrize(("wrong", "said"), GIVEN_AND_CHOICES, ids=GIVEN)
def test_an_error_says_what_was_given_and_what_is_allowed(wrong, said):
    with pytest.raises(ValueError, match=re.escape(said[0])) as error:
        wrong()
    assert [word for word in said if word not in str(error.value)] == []


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Net.within(100_000, width=2),
        lambda: Net(size=3),
        lambda: conv_block(4),
    ],
)
def test_an_argument_too_many_or_too_few_is_a_type_error(wrong):
    with pytest.raises(TypeError, match="argument"):
        wrong()


ONCE = {
    "a generator of lists": lambda: (list(rows) for rows in SMALL),
    "a generator of generators": lambda: ((tuple(row) for row in rows) for rows in SMALL),
    "a list of generators of generators": lambda: [
        ((value for value in row) for row in rows) for rows in SMALL
    ],
    "iterators": lambda: iter([iter(rows) for rows in SMALL]),
    "arrays": lambda: np.array(SMALL, dtype=object),
}


@pytest.mark.parametrize("kind", ONCE)
def test_a_table_that_can_be_read_only_once_is_read_whole(kind):
    assert str(Net(stages=ONCE[kind]())) == str(Net(stages=SMALL))
    assert Net(stages=ONCE[kind]()).config == Net(stages=SMALL).config
    assert str(Net.within(10_000, stages=ONCE[kind]())) == str(Net.within(10_000, stages=SMALL))


# ---- The widest network ----------------------------------------------------------------------------

SMALL = ((Row(24, stride=2),), (Row(40, "dilated", 2),), (Row(40, "depthwise_separable"),))


@cache
def sizes_on_a_grid(conv):
    # A row gains 8 channels at multiples of 1/3 or 1/5, which are all on this grid.
    with torch.device("meta"):
        return [count_parameters(Net(conv=conv, stages=SMALL, width=k / 15)) for k in range(1, 75)]


@pytest.mark.parametrize("budget", [3_000, 9_999, 10_000, 15_000])
@pytest.mark.parametrize("conv", CONVS)
def test_within_finds_the_same_as_trying_every_width(conv, budget):
    sizes = sizes_on_a_grid(conv)
    assert max(sizes) > budget
    found = count_parameters(Net.within(budget, conv=conv, stages=SMALL))
    assert found == max(size for size in sizes if size <= budget)


@pytest.mark.parametrize(("norm", "budget"), [("batch", 100_000), ("none", 50_000)])
def test_within_is_as_wide_as_the_budget_allows(norm, budget):
    found = count_parameters(Net.within(budget, norm=norm))
    with torch.device("meta"):
        sizes = [count_parameters(Net(norm, width=k / 48)) for k in range(16, 80)]
    assert max(sizes) > budget
    assert max(size for size in sizes if size <= budget) <= found <= budget


def test_within_allows_its_exact_size_but_not_one_parameter_less():
    exact = count_parameters(Net.within(50_000))
    assert count_parameters(Net.within(exact)) == exact
    assert count_parameters(Net.within(exact - 1)) < exact


def test_within_makes_the_same_network_as_its_width():
    size = count_parameters(Net())
    torch.manual_seed(3)
    found = Net.within(size)
    torch.manual_seed(3)
    made = Net()
    assert str(found) == str(made)
    same_weights = all(map(torch.equal, found.parameters(), made.parameters()))
    assert same_weights, "counting parameters drew random numbers"


def test_within_draws_only_the_numbers_that_building_the_network_draws():
    size = count_parameters(Net())
    torch.manual_seed(3)
    Net.within(size)
    after = torch.get_rng_state()
    torch.manual_seed(3)
    Net()
    assert torch.equal(torch.get_rng_state(), after)


def test_within_stops_at_the_most_channels_that_a_row_may_have():
    tiny = ((Row(8, "depthwise_separable"),),)
    with torch.device("meta"):
        net = Net.within(10**9, norm="none", stages=tiny)
    assert net.output.in_channels == 1_000_000


def test_within_takes_numpys_integers():
    assert str(Net.within(np.int64(50_000))) == str(Net.within(50_000))


def test_a_budget_below_the_narrowest_network_is_an_error_that_gives_its_size():
    narrowest = count_parameters(Net(width=0.001))
    assert count_parameters(Net.within(narrowest)) == narrowest
    with pytest.raises(ValueError, match=rf"budget={narrowest - 1} .*{narrowest} parameters"):
        Net.within(narrowest - 1)


# ---- Arithmetic ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("norm", "conv"), PAIRS)
def test_parameters_are_the_sum_over_tensors(norm, conv):
    net = Net(norm, conv)
    total = sum(math.prod(tensor.shape) for tensor in dict(net.named_parameters()).values())
    table = describe(net)
    in_convs = sum(p.numel() for m in net.modules() if isinstance(m, nn.Conv2d) for p in m.parameters())
    assert count_parameters(net) == table.total_parameters == total
    assert sum(row.parameters for row in table) == in_convs


@pytest.mark.parametrize("size", [17, 32])
@pytest.mark.parametrize("conv", CONVS)
def test_macs_are_half_of_torchs_flops(conv, size):
    net = Net("none", conv).eval()
    with FlopCounterMode(display=False) as counter:
        net(torch.zeros(1, 3, size, size))
    assert 2 * describe(net, size).total_macs == counter.get_total_flops()


def seen_by_one_unit(net, size):
    """(height, width) of the part of the image that the middle unit of the last map has a gradient for."""
    net = net.double().eval()
    for parameter in net.parameters():  # all positive, so nothing cancels and no ReLU blocks
        nn.init.uniform_(parameter, 0.5, 1.0)
    image = torch.ones(1, 3, size, size, dtype=torch.double, requires_grad=True)
    maps = net.features(image)
    maps[0, 0, maps.shape[2] // 2, maps.shape[3] // 2].backward()
    rows, columns = (image.grad[0].abs().sum(0).sum(dim).nonzero() for dim in (1, 0))
    assert min(rows.min(), columns.min()) > 0, "the image is too small"
    assert max(rows.max(), columns.max()) < size - 1, "the image is too small"
    return (rows.max() - rows.min() + 1).item(), (columns.max() - columns.min() + 1).item()


@pytest.mark.parametrize("conv", CONVS)
def test_the_receptive_field_is_the_extent_of_the_input_gradient(conv):
    field = receptive_field(Net(conv=conv))
    assert seen_by_one_unit(Net("none", conv, width=0.25), 2 * field + 16) == (field, field)


def test_the_receptive_field_of_another_table_is_the_extent_of_the_input_gradient():
    stages = ((Row(8, "dilated", 3), Row(8)), (Row(16, "blueprint_separable", 2), Row(16, "dilated")))
    net = Net("none", stages=stages)
    # Kernel 3: 2 * dilation * (product of strides before) a row.
    field = 1 + 2 * 2 * 1 + 2 * 1 * 3 + 2 * 1 * 3 + 2 * 2 * 6
    assert receptive_field(net) == field
    assert seen_by_one_unit(net, 2 * field + 16) == (field, field)


def test_describe_is_right_about_each_row_of_a_small_network():
    net = nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1, bias=False),
        nn.Conv2d(8, 8, 5, stride=2, padding=2, groups=8),
        nn.Conv2d(8, 6, 3, padding=4, dilation=4, groups=2),
        nn.Conv2d(6, 6, 3, padding=2, dilation=2, groups=6),
        nn.Conv2d(6, 5, 3, padding=2, dilation=2),
        nn.Conv2d(5, 2, 1),
    )
    rows = [tuple(vars(row).values()) for row in describe(net, 20)]
    assert rows == [
        # name, kind, kernel, stride, dilation, output, field, parameters, MACs
        ("0", "standard", 3, 1, 1, (8, 20, 20), 3, 288, 288 * 400),
        ("1", "depthwise", 5, 2, 1, (8, 10, 10), 7, 208, 200 * 100),
        ("2", "dilated grouped", 3, 1, 4, (6, 10, 10), 23, 222, 216 * 100),
        ("3", "dilated depthwise", 3, 1, 2, (6, 10, 10), 31, 60, 54 * 100),
        ("4", "dilated", 3, 1, 2, (5, 10, 10), 39, 275, 270 * 100),
        ("5", "pointwise", 1, 1, 1, (2, 10, 10), 39, 12, 10 * 100),
    ]


def test_describe_follows_the_image_not_the_order_of_definition():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Conv2d(3, 3, 1)
            self.first = nn.Conv2d(3, 3, 3)

        def forward(self, x):
            return self.last(self.first(x))

    assert [row.name for row in describe(Backwards())] == ["first", "last"]


@pytest.mark.parametrize("training", [True, False])
def test_describe_leaves_modes_buffers_gradients_and_hooks_as_they_were(training):
    net = Net().train(training)
    net.c2.train(not training)  # a part frozen by its user
    modes = [module.training for module in net.modules()]
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    state = torch.get_rng_state()
    describe(net)
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    assert not any(module._forward_hooks for module in net.modules())
    assert torch.equal(state, torch.get_rng_state())


def test_describe_leaves_the_random_state_as_it_was_if_the_network_draws_numbers():
    class Noisy(nn.Conv2d):
        def forward(self, x):
            return super().forward(x + torch.rand_like(x))

    net = Noisy(3, 4, 3)
    state = torch.get_rng_state()
    assert describe(net)[0].output_shape == (4, 30, 30)
    assert torch.equal(state, torch.get_rng_state())


def test_describe_leaves_modes_and_hooks_as_they_were_if_the_network_raises():
    net = Net()
    with pytest.raises(ValueError, match=r"\(1, 3, 8, 8\)"):
        describe(net, 8)
    assert all(module.training for module in net.modules())
    assert not any(module._forward_hooks for module in net.modules())


def test_the_table_prints_names_fields_and_totals():
    table = describe(Net())
    for text in (str(table), table._repr_html_()):
        assert f"{table.total_parameters:,}" in text
        assert f"{table.total_macs:,}" in text
        for row in table:
            assert row.name in text
            assert f"{row.parameters:,}" in text
    assert str(table).splitlines()[-1].split()[0] == "total"
    assert len(str(table).splitlines()) == len(table) + 3  # the head, the other parameters, the total
