"""lab/maps.py: weak maps and small weights, counted by hand."""

import pytest
import torch
from torch import nn

from lab.maps import inside, map_strengths, small_weights
from model import Net


def test_the_strength_of_a_map_is_its_root_mean_square():
    conv = nn.Conv2d(3, 2, 1, bias=False)
    nn.init.zeros_(conv.weight)
    conv.weight.data[0, 0], conv.weight.data[1, 1] = 1.0, 0.05
    net = nn.Sequential(conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    images = torch.rand(300, 3, 4, 4)
    (found,) = map_strengths(net, images)
    expected = [images[:, 0].square().mean().sqrt(), 0.05 * images[:, 1].square().mean().sqrt()]
    assert found.tolist() == pytest.approx([float(value) for value in expected])


def test_maps_far_below_the_median_of_their_layer_are_weak():
    conv = nn.Conv2d(1, 5, 1, bias=False)
    conv.weight.data.copy_(torch.tensor([1.0, 1.0, 1.0, 0.11, 0.09]).view(5, 1, 1, 1))
    net = nn.Sequential(conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    found = inside(net, torch.rand(4, 1, 8, 8))
    assert (found.maps, found.weak) == (5, 1)


def test_our_network_has_496_maps_and_stays_as_it_was():
    net = Net().train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    images, state = torch.randn(8, 3, 32, 32), torch.random.get_rng_state()
    assert inside(net, images).maps == 496
    assert net.training
    assert not any(module._forward_hooks for module in net.modules())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_eight_percent_of_normal_weights_are_small_in_every_layer():
    layers = [scale * torch.randn(400, 500) for scale in (0.01, 1.0, 30.0)]
    assert small_weights(layers) == pytest.approx(0.0797, abs=0.002)
    assert small_weights([torch.tensor([[0.0, 0.0, 0.0, 1.0]]), torch.ones(5)]) == 0.75


def test_a_network_without_what_is_looked_at_is_refused():
    with pytest.raises(ValueError, match=r"Flatten has no nn\.ReLU"):
        map_strengths(nn.Flatten(), torch.zeros(1, 3, 4, 4))
    with pytest.raises(ValueError, match="no weight"):
        small_weights([torch.ones(3)])
