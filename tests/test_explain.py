"""lab/explain.py: what a network looks at, against formulas by hand."""

import math
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from global_state import unchanged
from torch import nn

from lab.explain import (
    alone_and_together,
    class_activation_maps,
    effective_receptive_field,
    field_radius,
    footprint,
    pixels_read,
)
from model import Net


def images_of(size=16, count=3):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def small_net(norm="batch"):
    """A narrow network in which nothing is zero: random biases, and statistics that were once updated."""
    torch.manual_seed(0)
    net = Net(norm, width=0.25)
    nn.init.normal_(net.output.weight)
    nn.init.normal_(net.output.bias)
    net.train()(torch.randn(8, 3, 16, 16))
    return net


class Averaged(nn.Module):
    """A convolution, a functional activation and average, and a linear layer."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.linear = nn.Linear(6, 4)

    def forward(self, images):
        return self.linear(F.relu(self.conv(images), inplace=True).mean((2, 3)))


KINDS = pytest.mark.parametrize("kind", ["plain", "frozen", "without gradients"])


@contextmanager
def left_alone(kind):
    """Yield a network, and fail if the block changes anything of it, or of the global state."""
    net = small_net()
    net(images_of()).square().sum().backward()
    net.c1[0].norm.eval()  # its mode differs from that of the others
    net.requires_grad_(kind != "frozen")
    modes = {name: module.training for name, module in net.named_modules()}
    values = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    gradients = [parameter.grad.clone() for parameter in net.parameters()]
    with torch.set_grad_enabled(kind != "without gradients"), unchanged():
        yield net
    assert modes == {name: module.training for name, module in net.named_modules()}
    assert all(torch.equal(tensor, values[name]) for name, tensor in net.state_dict().items())
    assert all(torch.equal(p.grad, grad) for p, grad in zip(net.parameters(), gradients, strict=True))
    assert not any(module._forward_hooks | module._forward_pre_hooks for module in net.modules())


# ---- Class activation maps -------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
def test_of_our_network_it_is_the_class_map_without_the_bias(norm):
    net, images = small_net(norm).eval(), images_of(32)
    features = net.features(images).detach()
    expected = features - net.output.bias.detach()[:, None, None]
    rows = torch.arange(3)
    for classes in ([0, 9, 4], torch.tensor([2, 2, 7])):
        found = class_activation_maps(net, images, classes)
        torch.testing.assert_close(found, expected[rows, torch.as_tensor(classes)])
    predicted = features.mean((2, 3)).argmax(1)
    torch.testing.assert_close(class_activation_maps(net, images), expected[rows, predicted])


def test_of_an_average_and_a_linear_layer_it_is_the_formula_of_zhou():
    torch.manual_seed(0)
    net, images = Averaged(), images_of()
    maps = F.relu(F.conv2d(images, net.conv.weight, net.conv.bias)).detach()
    expected = torch.einsum("nchw,nc->nhw", maps, net.linear.weight.detach()[[3, 0, 1]])
    torch.testing.assert_close(class_activation_maps(net, images, [3, 0, 1]), expected)
    pooled = nn.Sequential(net.conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), net.linear)
    torch.testing.assert_close(class_activation_maps(pooled, images, [3, 0, 1]), expected)


def test_of_a_flat_map_it_is_each_places_own_part_of_the_logit():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 5, 3, stride=4), nn.Flatten(), nn.Linear(5 * 16, 2, bias=False))
    images = images_of()
    maps, weight = net[0](images).detach(), net[2].weight.detach().view(2, 5, 4, 4)
    found = class_activation_maps(net, images, [1, 1, 0])
    torch.testing.assert_close(found, 16 * (maps * weight[[1, 1, 0]]).sum(1))
    torch.testing.assert_close(
        found.mean((1, 2)), net(images).detach().gather(1, torch.tensor([[1], [1], [0]]))[:, 0]
    )


def test_many_images_are_explained_in_parts():
    net, images = small_net(), images_of(count=53)
    whole = class_activation_maps(net, images, torch.arange(53) % 10)
    torch.testing.assert_close(whole[50:], class_activation_maps(net, images[50:], [0, 1, 2]))


@KINDS
def test_activation_maps_leave_the_network_as_it_was(kind):
    with left_alone(kind) as net:
        class_activation_maps(net, images_of())


def test_images_made_in_inference_mode_are_explained_in_inference_mode():
    net = small_net()
    with torch.inference_mode():
        found = class_activation_maps(net, images_of().clone())
    torch.testing.assert_close(found, class_activation_maps(net, images_of()))


def test_what_cannot_be_explained_is_refused():
    net, images = small_net(), images_of()
    with pytest.raises(ValueError, match=r"expected prepared float images \(N, C, H, W\)"):
        class_activation_maps(net, images[0])
    with pytest.raises(ValueError, match=r"uint8"):
        class_activation_maps(net, images.byte())
    with pytest.raises(ValueError, match=r"classes .*10"):
        class_activation_maps(net, images, [0, 1, 10])
    with pytest.raises(ValueError, match=r"Conv2d returns \(3, 1, 16, 16\): expected logits \(3, classes\)"):
        class_activation_maps(nn.Conv2d(3, 1, 1), images)
    flat = nn.Sequential(nn.Flatten(), nn.Linear(768, 2))
    with pytest.raises(ValueError, match=r"no module of Sequential returns a map"):
        class_activation_maps(flat, images)
    with pytest.raises(ValueError, match=r"net is of type str"):
        class_activation_maps("net", images)


# ---- Effective receptive field ---------------------------------------------------------------------


def convolution(*shape, weight=None, **options):
    conv = nn.Conv2d(*shape, bias=False, **options)
    if weight is not None:
        conv.weight.data.copy_(torch.as_tensor(weight))
    return conv


def test_the_field_of_equal_weights_is_uniform():
    field = effective_receptive_field(convolution(1, 1, 3, weight=0.7, padding=1), image_size=9)
    expected = torch.zeros(9, 9, dtype=torch.float64)
    expected[3:6, 3:6] = 1 / 9
    torch.testing.assert_close(field, expected)


def test_the_field_is_the_mean_magnitude_of_the_weights():
    torch.manual_seed(0)
    conv = convolution(3, 1, 3)
    field = effective_receptive_field(conv, image_size=7, images=2)
    weight = conv.weight.detach()[0].abs().mean(0).double()
    torch.testing.assert_close(field[2:5, 2:5], weight / weight.sum())
    assert field.sum() == pytest.approx(1)


def test_the_field_of_two_layers_is_that_of_the_unit_after_both():
    two = nn.Sequential(
        convolution(1, 1, 3, weight=1.0, padding=1), convolution(1, 1, 3, weight=1.0, padding=1)
    )
    field = effective_receptive_field(two, image_size=9, images=1)
    paths = torch.tensor([0, 0, 1, 2, 3, 2, 1, 0, 0]).double()
    torch.testing.assert_close(field, paths[:, None] * paths / 81)


def test_channels_that_add_up_to_nothing_have_a_field():
    opposite = convolution(1, 2, 3, weight=torch.tensor([1.0, -1.0]).view(2, 1, 1, 1), padding=1)
    field = effective_receptive_field(opposite, image_size=5)
    torch.testing.assert_close(field[1:4, 1:4], torch.full((3, 3), 1 / 9).double())


def test_the_field_of_a_network_follows_from_the_seed_alone():
    net = small_net()
    first = effective_receptive_field(net, 32, 2, seed=1)
    torch.randn(3)
    assert torch.equal(first, effective_receptive_field(net, 32, 2, seed=1))
    assert not torch.equal(first, effective_receptive_field(net, 32, 2, seed=2))


@KINDS
def test_measuring_what_is_read_leaves_the_network_as_it_was(kind):
    with left_alone(kind) as net:
        effective_receptive_field(net, 32, 2)
        pixels_read(net, 16)


def test_fields_that_cannot_be_measured_are_refused():
    with pytest.raises(ValueError, match="zero everywhere or not finite"):
        effective_receptive_field(convolution(1, 1, 3, weight=0.0), 9)
    with pytest.raises(ValueError, match="image_size=0 must be an integer of at least 1"):
        effective_receptive_field(small_net(), 0)
    with pytest.raises(ValueError, match=r"images=1\.5 must be"):
        effective_receptive_field(small_net(), images=1.5)
    with pytest.raises(ValueError, match="seed=-1 must be"):
        effective_receptive_field(small_net(), seed=-1)


def test_the_radius_holds_the_share():
    uniform = torch.zeros(9, 9)
    uniform[1:4, 5:8] = 1  # its centre is not that of the image
    assert field_radius(uniform, 1 / 9) == pytest.approx(0)
    assert field_radius(uniform, 0.5) == pytest.approx(1)  # 5 of 9 pixels
    assert field_radius(uniform, 0.6) == pytest.approx(2**0.5)
    assert field_radius(uniform, 1) == pytest.approx(2**0.5)


def test_the_radius_of_a_normal_field_is_that_of_rayleigh():
    rows, columns = torch.meshgrid(torch.arange(101) - 50.0, torch.arange(101) - 50.0, indexing="ij")
    field = torch.exp(-(rows**2 + columns**2) / (2 * 10**2))
    assert field_radius(field) == pytest.approx(10 * (2 * math.log(2)) ** 0.5, abs=0.1)


@pytest.mark.parametrize("field", [torch.ones(3), torch.zeros(3, 3), -torch.ones(3, 3), [[1.0, math.nan]]])
def test_what_is_no_field_has_no_radius(field):
    with pytest.raises(ValueError, match="field of shape"):
        field_radius(field)


@pytest.mark.parametrize("share", [0, 1.1, "half"])
def test_a_share_is_above_0_and_at_most_1(share):
    with pytest.raises(ValueError, match="share="):
        field_radius(torch.ones(3, 3), share)


# ---- Pixels read -----------------------------------------------------------------------------------


def with_logits(*layers):
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def test_a_dilated_convolution_with_a_stride_reads_a_quarter_of_the_pixels():
    read = pixels_read(with_logits(convolution(3, 4, 3, stride=2, padding=2, dilation=2)), 12)
    expected = torch.zeros(12, 12, dtype=torch.bool)
    expected[::2, ::2] = True
    assert torch.equal(read, expected)


def test_without_padding_the_last_pixels_are_not_read():
    read = pixels_read(with_logits(convolution(1, 4, 3, stride=3), nn.ReLU()), 11)
    assert read[:9, :9].all()
    assert not read[9:].any()
    assert not read[:, 9:].any()


def test_our_network_reads_every_pixel():
    assert pixels_read(small_net()).shape == (32, 32)
    assert pixels_read(small_net()).all()


def test_a_network_without_logits_is_refused():
    with pytest.raises(ValueError, match=r"expected logits \(16, classes\)"):
        pixels_read(nn.Conv2d(3, 1, 1))


# ---- Footprints ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dilations", "kernel_size"), [((2, 2, 2), 3), ((1, 2, 3), 3), ((3, 1), 2), ((4,), 5)]
)
def test_a_footprint_is_the_gradient_of_stacked_convolutions_of_ones(dilations, kernel_size):
    side = 1 + (kernel_size - 1) * sum(dilations)
    pixels = torch.zeros(1, 1, side, side, dtype=torch.float64, requires_grad=True)
    maps, ones = pixels, torch.ones(1, 1, kernel_size, kernel_size, dtype=torch.float64)
    for dilation in dilations:
        maps = F.conv2d(maps, ones, dilation=dilation)
    maps.sum().backward()
    assert maps.shape == (1, 1, 1, 1)
    assert torch.equal(footprint(dilations, kernel_size), pixels.grad[0, 0].long())


def test_equal_rates_leave_holes_and_growing_ones_do_not():
    holes = footprint([2, 2, 2])
    assert torch.equal(holes[:, 0], torch.tensor([1, 0, 3, 0, 6, 0, 7, 0, 6, 0, 3, 0, 1]))
    assert not holes[1::2].any()
    assert (footprint([1, 2, 3]) > 0).all()
    assert footprint([]).tolist() == [[1]]


def test_footprints_that_cannot_be_counted_are_refused():
    with pytest.raises(ValueError, match="dilation=0 must be an integer of at least 1"):
        footprint([1, 0])
    with pytest.raises(ValueError, match="kernel_size=0 must be"):
        footprint([1], 0)
    assert footprint([1] * 19).sum() == 9**19
    with pytest.raises(ValueError, match="20 convolutions of kernel_size=3 have more paths"):
        footprint([1] * 20)


# ---- Alone and together ----------------------------------------------------------------------------


def test_batch_normalization_lets_the_other_images_count_in_training_only():
    norm = nn.BatchNorm2d(1, eps=1e-12)
    net = nn.Sequential(norm, nn.Flatten(), nn.Linear(2, 1, bias=False))
    nn.init.ones_(net[2].weight)
    images = torch.tensor([[1.0, 3.0], [5.0, 7.0]]).view(2, 1, 1, 2)
    # Alone they become -1 and 1. Together, with mean 4 and variance 5, they become -3 and -1 over its root.
    found = alone_and_together(net, images)
    assert found == {"training": pytest.approx(4 / 5**0.5), "evaluation": 0}


@pytest.mark.parametrize("norm", ["layer", "group", "instance", "none"])
def test_no_other_normalization_lets_the_other_images_count(norm):
    found = alone_and_together(small_net(norm), images_of())
    assert max(found.values()) < 1e-4
    assert alone_and_together(small_net("batch"), images_of())["training"] > 0.1


def test_dropout_does_not_count():
    net = nn.Sequential(nn.Dropout(), nn.Flatten(), nn.Linear(3 * 256, 2))
    assert max(alone_and_together(net, images_of()).values()) < 1e-4


@KINDS
def test_statistics_updated_in_training_are_restored(kind):
    with left_alone(kind) as net:
        alone_and_together(net, images_of())


def test_one_image_has_no_others():
    with pytest.raises(ValueError, match=r"\(1, 3, 16, 16\): expected at least two"):
        alone_and_together(small_net(), images_of(count=1))
