"""lab/optim.py: schedules, and optimizers against torch's own and hand formulas."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn

from lab.optim import OPTIMIZERS, SCHEDULES, Combined, Muon, is_weight, orthogonalized

COS = (1 + math.sqrt(0.5)) / 2


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def network() -> nn.Module:
    """Two hidden convolutions with norms, and an output."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 6, 3),
        nn.GroupNorm(2, 6),
        nn.Conv2d(6, 4, 1),
    )


def copies():
    net, twin = network(), network()
    twin.load_state_dict(net.state_dict())
    return net, twin


def same_gradients(*nets):
    for parameters in zip(*(net.parameters() for net in nets), strict=True):
        gradient = torch.randn_like(parameters[0])
        for parameter in parameters:
            parameter.grad = gradient.clone()


def make(name, net, *, lr=0.15, lr_rest=0.01, momentum=0.6, weight_decay=0.0):
    return OPTIMIZERS[name](net, lr=lr, lr_rest=lr_rest, momentum=momentum, weight_decay=weight_decay)


# ---- Schedules -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [("constant", (1.0, 1.0, 1.0, 1.0)), ("linear", (1.0, 0.75, 0.5, 0.0)), ("cosine", (1.0, COS, 0.5, 0.0))],
)
def test_a_schedule_has_its_values_at_0_a_quarter_half_and_the_end(schedule, expected):
    assert [SCHEDULES[schedule](progress) for progress in (0.0, 0.25, 0.5, 1.0)] == pytest.approx(expected)


# ---- Optimizers ------------------------------------------------------------------------------------


def test_weights_are_those_of_convolutions_and_linear_layers():
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.InstanceNorm2d(4, affine=True), nn.Linear(4, 2)
    )
    names = [name for name, parameter in net.named_parameters() if is_weight(parameter)]
    assert names == ["0.weight", "3.weight"]


def test_sgd_is_nesterov_s_step_by_hand():
    net = network()
    start = [p.detach().clone() for p in net.parameters()]
    velocity = [torch.zeros_like(p) for p in start]
    optimizer = make("sgd", net, lr=0.1, momentum=0.7)
    for _ in range(3):
        same_gradients(net)
        for index, parameter in enumerate(net.parameters()):
            velocity[index] = 0.7 * velocity[index] + parameter.grad
            start[index] -= 0.1 * (parameter.grad + 0.7 * velocity[index])
        optimizer.step()
    torch.testing.assert_close(list(net.parameters()), start)


def test_sgd_without_momentum_follows_the_gradient():
    net = network()
    start = [p.detach().clone() for p in net.parameters()]
    optimizer = make("sgd", net, lr=0.5, momentum=0.0)
    same_gradients(net)
    optimizer.step()
    expected = [p - 0.5 * q.grad for p, q in zip(start, net.parameters(), strict=True)]
    torch.testing.assert_close(list(net.parameters()), expected)


def test_adamw_is_torch_s():
    net, twin = copies()
    ours = make("adamw", net, lr=0.01, weight_decay=0.0)
    oracle = torch.optim.AdamW(twin.parameters(), lr=0.01, weight_decay=0.0)
    for _ in range(3):
        same_gradients(net, twin)
        ours.step()
        oracle.step()
    torch.testing.assert_close(list(net.parameters()), list(twin.parameters()))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_weight_decay_shrinks_weights_and_nothing_else(optimizer):
    net = network()
    start = [p.detach().clone() for p in net.parameters()]
    made = make(optimizer, net, lr=0.1, lr_rest=0.1, weight_decay=0.5, momentum=0.0)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    made.step()
    *_, output, _bias = net.parameters()
    torch.testing.assert_close(output, start[-2] * (1 - 0.1 * 0.5))  # a weight that every optimizer decays
    for before, after in zip(start, net.parameters(), strict=True):
        if not is_weight(before):
            assert torch.equal(before, after)
        elif optimizer != "muon":  # which keeps the norm of hidden weights
            torch.testing.assert_close(after, before * (1 - 0.1 * 0.5))


def test_weight_decay_of_adamw_is_decoupled_from_the_momentum():
    net = network()
    start = [p.detach().clone() for p in net.parameters()]
    made = make("adamw", net, lr=0.1, weight_decay=0.5)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for _ in range(3):
        made.step()
    weights = [(p, q) for p, q in zip(start, net.parameters(), strict=True) if is_weight(p)]
    for before, after in weights:
        torch.testing.assert_close(after, before * (1 - 0.1 * 0.5) ** 3)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_parameter_is_in_one_group_once(optimizer):
    net = network()
    made = make(optimizer, net)
    held = [id(p) for group in made.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in net.parameters())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_frozen_parameters_and_those_without_a_gradient_stay(optimizer):
    net = network()
    net[0].weight.requires_grad_(False)
    start = [p.detach().clone() for p in net.parameters()]
    made = make(optimizer, net, lr=0.1, lr_rest=0.1)
    net[4].bias.grad = torch.ones(4)
    made.step()
    changed = [not torch.equal(a, b) for a, b in zip(start, net.parameters(), strict=True)]
    assert changed == [False] * (len(start) - 1) + [True]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_an_optimizer_takes_a_network_of_one_layer(optimizer):
    net = nn.Linear(3, 2)
    made = make(optimizer, net, lr=0.1, lr_rest=0.1)
    before = net.weight.detach().clone()
    same_gradients(net)
    made.step()
    assert not torch.equal(before, net.weight)


# ---- Muon ------------------------------------------------------------------------------------------


def conditioned(rows, columns):
    """A random matrix with singular values from 1 to 2, and its singular vectors."""
    left, _, right = torch.linalg.svd(torch.randn(rows, columns), full_matrices=False)
    values = torch.linspace(1, 2, min(rows, columns))
    return left @ values.diag() @ right, left @ right


@pytest.mark.parametrize(("rows", "columns"), [(16, 16), (8, 27), (48, 432), (96, 9), (40, 16)])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_orthogonalized_has_singular_values_near_1_and_the_same_singular_vectors(rows, columns, scale):
    matrix, nearest = conditioned(rows, columns)
    result = orthogonalized(matrix * scale)
    assert result.shape == matrix.shape
    values = torch.linalg.svdvals(result)
    assert values.min() > 0.5
    assert values.max() < 1.3
    alignment = (result * nearest).sum() / (result.norm() * nearest.norm())
    assert alignment > 0.97
    # U^T result V is diagonal: nothing but the singular values has changed.
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    inside = left.T @ result @ right.T
    torch.testing.assert_close(inside, inside.diag().diag(), atol=1e-4, rtol=0)


def test_orthogonalized_iterates_the_quintic_on_singular_values():
    matrix, _ = conditioned(6, 10)
    values = torch.linalg.svdvals(matrix.double())
    values = values / values.norm()
    for _ in range(2):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    result = torch.linalg.svdvals(orthogonalized(matrix.double(), steps=2))
    torch.testing.assert_close(result, values.sort(descending=True).values, atol=1e-5, rtol=0)


def test_orthogonalized_of_zero_is_zero():
    assert torch.equal(orthogonalized(torch.zeros(3, 5)), torch.zeros(3, 5))


def test_muon_treats_hidden_weights_and_leaves_the_rest_to_adam_at_its_own_rate():
    net, twin = copies()
    ours = make("muon", net, lr=0.3, lr_rest=0.02, momentum=0.6)
    oracle = torch.optim.Adam(twin.parameters(), lr=0.02, betas=(0.9, 0.95))
    for _ in range(3):
        same_gradients(net, twin)
        ours.step()
        oracle.step()
    agree = {
        name: torch.allclose(p, q, atol=1e-6)
        for (name, p), q in zip(net.named_parameters(), twin.parameters(), strict=True)
    }
    assert {name for name, equal in agree.items() if not equal} == {"0.weight", "2.weight"}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_an_optimizer_whose_state_is_loaded_goes_on_where_it_stood(optimizer):
    net, twin = copies()
    straight = make(optimizer, net, lr=0.1, lr_rest=0.05)
    for _ in range(2):
        same_gradients(net)
        straight.step()
    twin.load_state_dict(net.state_dict())
    resumed = make(optimizer, twin, lr=0.1, lr_rest=0.05)
    resumed.load_state_dict(copy.deepcopy(straight.state_dict()))
    same_gradients(net, twin)
    straight.step()
    resumed.step()
    assert all(map(torch.equal, net.parameters(), twin.parameters()))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_zero_grad_forgets_every_gradient(optimizer):
    net = network()
    same_gradients(net)
    make(optimizer, net).zero_grad(set_to_none=True)
    assert all(parameter.grad is None for parameter in net.parameters())


def test_muon_steps_by_the_orthogonal_momentum_from_a_weight_of_norm_sqrt_out_channels():
    conv = nn.Conv2d(4, 9, 3, bias=False)
    optimizer = Muon([conv.weight], lr=0.2, momentum=0.6)
    weight, velocity = conv.weight.detach().clone(), torch.zeros_like(conv.weight)
    for _ in range(3):
        conv.weight.grad = torch.randn_like(conv.weight)
        velocity = 0.6 * velocity + conv.weight.grad
        update = orthogonalized((conv.weight.grad + 0.6 * velocity).reshape(9, 36)).view(9, 4, 3, 3)
        weight = weight * 3.0 / weight.square().sum().sqrt() - 0.2 * update
        optimizer.step()
        torch.testing.assert_close(conv.weight.detach(), weight)


def test_muon_s_step_has_the_learning_rate_s_size_whatever_the_gradient_s():
    steps = []
    for scale in (1e-4, 1e4):
        torch.manual_seed(1)
        conv = nn.Conv2d(4, 9, 3, bias=False)
        with torch.no_grad():
            conv.weight.mul_(3.0 / conv.weight.norm())
        before = conv.weight.detach().clone()
        conv.weight.grad = torch.randn_like(conv.weight) * scale
        Muon([conv.weight], lr=0.2, momentum=0.6).step()
        steps.append(conv.weight.detach() - before)
    torch.testing.assert_close(steps[0], steps[1], atol=1e-4, rtol=1e-3)
    assert 0.2 * 3 * 0.5 < steps[0].norm() < 0.2 * 3 * 1.3  # nine singular values near 1


def test_muon_moves_a_weight_that_is_all_zero():
    weight = nn.Parameter(torch.zeros(4, 6))
    weight.grad = torch.randn(4, 6)
    Muon([weight], lr=0.1, momentum=0.5).step()
    torch.testing.assert_close(weight.detach(), -0.1 * orthogonalized(1.5 * weight.grad))


# ---- Optimizers as torch's tools use them ----------------------------------------------------------


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_is_torch_s(optimizer):
    assert isinstance(make(optimizer, network()), torch.optim.Optimizer)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_step_with_a_closure_evaluates_it_with_gradients_and_returns_its_loss(optimizer):
    net, twin = copies()
    images = torch.randn(4, 3, 8, 8)
    ours, by_hand = make(optimizer, net), make(optimizer, twin)

    def closure():
        ours.zero_grad()
        loss = net(images).square().mean()
        loss.backward()
        return loss

    expected = twin(images).square().mean()
    expected.backward()
    by_hand.step()
    assert ours.step(closure).item() == pytest.approx(expected.item())
    assert all(map(torch.equal, net.parameters(), twin.parameters()))


def test_muon_by_itself_evaluates_its_closure_too():
    weight = nn.Parameter(torch.ones(2, 3))
    optimizer = Muon([weight], lr=0.1, momentum=0.5)

    def closure():
        weight.grad = torch.ones(2, 3)
        return torch.tensor(7.0)

    assert optimizer.step(closure) == 7.0
    assert not torch.equal(weight, torch.ones(2, 3))


def test_one_cycle_moves_the_rates_and_the_momentum_of_every_group():
    optimizer = make("muon", network(), lr=0.1, lr_rest=0.02, momentum=0.6)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=[0.1, 0.02, 0.02],
        total_steps=10,
        div_factor=10.0,
        base_momentum=0.5,
        max_momentum=0.7,
    )
    same = [group for part in optimizer.parts for group in part.param_groups]
    assert [group["lr"] for group in same] == pytest.approx([0.01, 0.002, 0.002])
    assert same[0]["momentum"] == 0.7
    for _ in range(2):  # the peak is after 30 % of the steps
        optimizer.step()
        scheduler.step()
    assert [group["lr"] for group in same] == pytest.approx([0.1, 0.02, 0.02])
    assert same[0]["momentum"] == pytest.approx(0.5)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_grad_scaler_skips_a_step_that_overflowed_and_takes_the_next(optimizer):
    net, twin = copies()
    ours, by_hand = make(optimizer, net), make(optimizer, twin)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    images, start = torch.randn(4, 3, 8, 8), [parameter.clone() for parameter in net.parameters()]
    scaler.scale(net(images).square().mean()).backward()
    net[0].weight.grad[0, 0, 0, 0] = torch.inf
    scaler.step(ours)
    scaler.update()
    assert all(map(torch.equal, net.parameters(), start))
    assert scaler.get_scale() == 2.0
    ours.zero_grad()
    twin(images)  # as the network has, for its running statistics
    scaler.scale(net(images).square().mean()).backward()
    scaler.step(ours)
    twin(images).square().mean().backward()
    by_hand.step()
    torch.testing.assert_close(list(net.parameters()), list(twin.parameters()))


@pytest.mark.parametrize("again", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_a_copied_combination_trains_its_own_network_and_its_parts_share_its_state(again):
    net = network()
    optimizer = make("muon", net)
    same_gradients(net)
    optimizer.step()
    twin, copied = again((net, optimizer))
    same_gradients(net, twin)
    optimizer.step()
    copied.step()
    assert all(map(torch.equal, net.parameters(), twin.parameters()))
    assert all(part.state is copied.state for part in copied.parts)
    held = [id(group) for part in copied.parts for group in part.param_groups]
    assert held == [id(group) for group in copied.param_groups]


def test_a_rate_set_after_loading_a_state_counts_for_every_part():
    net = network()
    optimizer = make("muon", net)
    same_gradients(net)
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    before = [parameter.clone() for parameter in list(net.parameters())[1:2]]  # a norm's, which Adam trains
    same_gradients(net)
    optimizer.step()
    assert all(map(torch.equal, list(net.parameters())[1:2], before))


def test_a_group_that_is_added_later_is_trained_by_the_last_part():
    net, late = network(), nn.Parameter(torch.ones(3))
    optimizer = make("muon", net, lr=0.5, lr_rest=0.02)
    optimizer.add_param_group({"params": [late], "weight_decay": 0.0})
    late.grad = torch.ones(3)
    optimizer.step()
    torch.testing.assert_close(late.detach(), torch.full((3,), 0.98))  # Adam's first step is its rate


def test_a_network_of_one_layer_can_be_scheduled_too():
    optimizer = make("muon", nn.Linear(3, 2), lr_rest=0.02)
    torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.02, total_steps=4, base_momentum=0.8, max_momentum=0.9
    )
    assert {group["betas"] for group in optimizer.param_groups} == {(0.9, 0.95)}


@pytest.mark.parametrize(
    ("shape", "options", "said"),
    [
        ((3, 4), {"lr": -1.0}, "lr=-1.0"),
        ((3, 4), {"momentum": 1.0}, "momentum=1.0"),
        ((3,), {}, "two dimensions"),
    ],
)
def test_muon_refuses_what_it_is_not_for(shape, options, said):
    with pytest.raises(ValueError, match=said):
        Muon([nn.Parameter(torch.ones(shape))], **options)


def test_combining_no_optimizers_is_an_error():
    with pytest.raises(ValueError, match="at least one"):
        Combined()
