"""lab/explain.py: what a network looks at, against formulas by hand."""

from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from global_state import unchanged
from torch import nn

from lab.explain import class_activation_maps
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
