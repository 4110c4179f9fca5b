"""The faster layers against torch's own: values, gradients, dtype and layout; and that they come and go."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from lab.fast import fast_layers


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def replaced(net):
    """The names of the modules whose `forward` is an attribute of the instance."""
    return [name for name, module in net.named_modules() if "forward" in vars(module)]


def depthwise(kernel_size=3, stride=1, dilation=1, bias=False, channels=6):
    padding = dilation * (kernel_size - 1) // 2
    return nn.Conv2d(channels, channels, kernel_size, stride, padding, dilation, groups=channels, bias=bias)


def results(layer, images, upstream):
    """The output, and the gradients of the images and of each parameter."""
    layer.zero_grad()
    given = images.clone(memory_format=torch.preserve_format).requires_grad_()
    output = layer(given)
    output.backward(upstream)
    return [output, given.grad, *(parameter.grad for parameter in layer.parameters())]


def assert_agrees(layer, images):
    upstream = torch.randn_like(layer(images))
    expected = results(layer, images, upstream)
    with fast_layers(layer, "cpu"):
        assert replaced(layer) == [""]
        found = results(layer, images, upstream)
        with torch.no_grad():
            torch.testing.assert_close(layer(images), expected[0])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


# ---- Values and gradients --------------------------------------------------------------------------


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("groups", [2, 4, 16])
def test_the_faster_group_norm_has_the_values_and_gradients_of_torchs(groups, channels_last):
    norm = nn.GroupNorm(groups, 16).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert_agrees(norm, torch.randn(3, 16, 5, 6).double().contiguous(memory_format=layout))


@pytest.mark.parametrize("shape", [(5, 16), (5, 16, 7), (2, 16, 3, 4, 5)])
def test_the_faster_group_norm_takes_what_torchs_takes(shape):
    images = torch.randn(shape[1], shape[0], *shape[2:]).transpose(0, 1)
    assert not images.is_contiguous()
    assert_agrees(nn.GroupNorm(4, 16), images)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (3, 1), (1, 2), (1, 3), (2, 2)])
def test_the_faster_depthwise_convolution_has_the_values_and_gradients_of_torchs(
    stride, dilation, kernel_size, bias
):
    if (stride, dilation) == (1, 1):
        kernel_size += 4  # a small one is fast as it is
    conv = depthwise(kernel_size, stride, dilation, bias).double()
    images = torch.randn(3, 6, 11, 14).double()  # neither stride nor dilation divides the sizes
    assert_agrees(conv, images)
    assert_agrees(conv, images[0])  # a single image, without a batch


@pytest.mark.parametrize(
    ("kernel_size", "dilation", "size"), [(3, 3, (6, 6)), (5, 2, (4, 9)), (3, 4, (8, 3))]
)
def test_a_dilated_convolution_never_walks_maps_smaller_than_its_kernel(
    monkeypatch, kernel_size, dilation, size
):
    conv, images = depthwise(kernel_size, 1, dilation).double(), torch.randn(2, 6, *size).double()
    assert_agrees(conv, images)
    walked, convolve = [], F.conv2d

    def spy(maps, *arguments, **options):
        walked.append(min(maps.shape[2:]))
        return convolve(maps, *arguments, **options)

    monkeypatch.setattr("lab.fast.F.conv2d", spy)
    with fast_layers(nn.Sequential(conv), "cpu"):
        conv(images)
    assert len(walked) == 1
    assert walked[0] >= kernel_size


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": (3, 5), "padding": (2, 6), "dilation": (2, 3)},
        {"kernel_size": (1, 5), "padding": (0, 4), "dilation": (1, 2)},
        {"kernel_size": 3, "padding": "same", "dilation": 2},
        {"kernel_size": (3, 1), "padding": (0, 3), "stride": (2, 1)},
        {"kernel_size": 4, "padding": 1, "stride": 2, "dilation": 3},
        {"kernel_size": 3, "padding": 1, "stride": 2, "padding_mode": "circular"},
    ],
    ids=str,
)
def test_layers_that_are_not_square_agree_too(options):
    assert_agrees(nn.Conv2d(6, 6, groups=6, **options).double(), torch.randn(2, 6, 13, 16).double())


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize(
    "layer",
    [
        *(depthwise(stride=2), depthwise(dilation=2), depthwise(stride=2, dilation=2)),
        *(depthwise(7), depthwise(7, dilation=2), nn.GroupNorm(3, 6)),
    ],
    ids=str,
)
def test_the_faster_layers_keep_dtype_and_layout(layer, autocast):
    maps = torch.randn(2, 6, 12, 12).contiguous(memory_format=torch.channels_last)
    layer.to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        expected = layer(maps)
        with fast_layers(layer, "cpu"):
            output = layer(maps)
    assert output.dtype == expected.dtype
    assert output.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(output, expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    "layer",
    [depthwise(stride=2), depthwise(dilation=2), depthwise(5), depthwise(5, dilation=2), nn.GroupNorm(3, 6)],
    ids=str,
)
def test_layers_in_bfloat16_stay_in_bfloat16(layer):
    layer, maps = layer.bfloat16(), torch.randn(2, 6, 12, 12).bfloat16()
    with fast_layers(layer, "cpu"):
        output, *gradients = results(layer, maps, torch.ones_like(layer(maps)))
    assert {tensor.dtype for tensor in (output, *gradients)} == {torch.bfloat16}


def test_a_network_of_torchvision_keeps_its_values_and_gradients():
    net = torchvision.models.mobilenet_v2(dropout=0.0).double()
    images = torch.randn(2, 3, 64, 64).double()
    upstream = torch.randn(2, 1000).double()
    expected = results(net, images, upstream)
    strided = [
        name
        for name, module in net.named_modules()
        if isinstance(module, nn.Conv2d) and module.groups > 1 and module.stride == (2, 2)
    ]
    with fast_layers(net, "cpu"):
        assert replaced(net) == strided
        found = results(net, images, upstream)
    assert len(strided) == 4
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


# ---- Which layers, and for how long ----------------------------------------------------------------


class Own(nn.GroupNorm):
    """A subclass, whose `forward` may be anything."""


@pytest.mark.parametrize(
    "layer",
    [
        depthwise(),
        nn.Conv2d(6, 6, 3, stride=2, padding=1),
        nn.Conv2d(6, 12, 3, stride=2, padding=1, groups=6),
        nn.Conv2d(1, 1, 3, stride=2, padding=1),
        nn.Conv2d(6, 6, 3, padding=1, dilation=2, groups=6),
        nn.Conv2d(6, 6, 2, padding=1, dilation=2, groups=6),
        nn.Conv2d(6, 6, 3, padding=2, dilation=2, groups=6, padding_mode="circular"),
        nn.Conv1d(6, 6, 3, stride=2, groups=6),
        nn.GroupNorm(1, 6),
        nn.BatchNorm2d(6),
        Own(3, 6),
    ],
    ids=str,
)
def test_other_layers_are_left_alone(layer):
    with fast_layers(layer, "cpu"):
        assert replaced(layer) == []


def small():
    return nn.Sequential(depthwise(stride=2), nn.Sequential(depthwise(dilation=2), nn.GroupNorm(3, 6)))


def test_the_layers_are_replaced_within_the_context_only():
    net = small()
    with fast_layers(net, "cpu"):
        assert replaced(net) == ["0", "1.0", "1.1"]
    assert replaced(net) == []


def test_an_exception_ends_it_too():
    net = small()
    with pytest.raises(KeyboardInterrupt), fast_layers(net, torch.device("cpu")):
        raise KeyboardInterrupt
    assert replaced(net) == []


def test_another_device_changes_nothing():
    net = small()
    with fast_layers(net, "cuda"), fast_layers(net, torch.device("meta")):
        assert replaced(net) == []


def test_one_context_within_another_ends_with_the_outer_one():
    net = small()
    with fast_layers(net, "cpu"):
        with fast_layers(net, "cpu"):
            assert len(replaced(net)) == 3
        assert len(replaced(net)) == 3
    assert replaced(net) == []


def test_a_forward_that_somebody_else_replaced_is_left_alone():
    def before(x):
        return x + 1

    def within(x):
        return x + 2

    net = small()
    net[0].forward = before
    with fast_layers(net, "cpu"):
        assert net[0].forward is before
        net[1][0].forward = within
    assert net[0].forward is before
    assert net[1][0].forward is within
    assert replaced(net) == ["0", "1.0"]


def test_hooks_run_and_copies_compute_the_same():
    net, images = small(), torch.randn(2, 6, 9, 9)
    seen = []
    net[0].register_forward_hook(lambda *_: seen.append(1))
    with fast_layers(net, "cpu"):
        output = net(images)
        for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(small_copy(net)))):
            assert torch.equal(other(images), output)
            assert other[1][0].forward.args[0] is other[1][0]  # not a layer of the original
    assert seen == [1, 1]


def small_copy(net):
    other = copy.deepcopy(net)
    other[0]._forward_hooks.clear()  # a lambda cannot be pickled
    return other
