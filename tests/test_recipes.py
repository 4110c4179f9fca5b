"""lab/recipes.py: recipes as data, schedules, and optimizers against torch's own."""

import copy
import dataclasses
import json
import math
import re

import pytest
import torch
from torch import nn

from lab.data import Augment
from lab.recipes import (
    ABLATIONS,
    OPTIMIZERS,
    RECIPES,
    SCHEDULES,
    Muon,
    Recipe,
    completed,
    differing,
    is_weight,
    orthogonalized,
)
from model import Net, describe


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


# ---- Recipes ---------------------------------------------------------------------------------------


def test_a_recipe_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Recipe().lr = 1.0


def test_a_variant_is_a_replacement_and_leaves_the_original_alone():
    recipe = Recipe()
    variant = dataclasses.replace(recipe, epochs=recipe.epochs + 1)
    assert variant.epochs == recipe.epochs + 1
    assert dataclasses.replace(variant, epochs=recipe.epochs) == recipe == Recipe()


def test_a_replacement_is_validated():
    with pytest.raises(ValueError, match="epochs=0"):
        dataclasses.replace(Recipe(), epochs=0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"optimizer": "adam"}, ["'adam'", *map(repr, OPTIMIZERS)]),
        ({"optimizer": None}, ["None", *map(repr, OPTIMIZERS)]),
        ({"schedule": "steps"}, ["'steps'", *map(repr, SCHEDULES)]),
        ({"epochs": 0}, ["epochs=0", "at least 1"]),
        ({"epochs": 1.5}, ["epochs=1.5", "integer"]),
        ({"batch_size": -1}, ["batch_size=-1", "at least 1"]),
        ({"lr": -0.1}, ["lr=-0.1", "at least 0"]),
        ({"lr": math.nan}, ["lr=nan", "at least 0"]),
        ({"lr": math.inf}, ["lr=inf", "at least 0"]),
        ({"lr_rest": "0.1"}, ["lr_rest='0.1'", "number"]),
        ({"weight_decay": -1}, ["weight_decay=-1", "at least 0"]),
        ({"l1": -1e-5}, ["l1=-1e-05", "at least 0"]),
        ({"l2": None}, ["l2=None", "number"]),
        ({"momentum": 1.0}, ["momentum=1.0", "below 1"]),
        ({"momentum": -0.1}, ["momentum=-0.1", "from 0"]),
        ({"warmup": 1}, ["warmup=1", "below 1"]),
        ({"label_smoothing": 1.5}, ["label_smoothing=1.5", "below 1"]),
        ({"temperature": 0.0}, ["temperature=0.0", "above 0"]),
        ({"teacher": "frontier"}, ["teacher='frontier'", "a Recipe or None"]),
        ({"image_sizes": ((1.5, 32),)}, ["image_sizes=((1.5, 32),)", "(share, pixels)"]),
        ({"image_sizes": ((0.5, 0),)}, ["image_sizes=((0.5, 0),)", "(share, pixels)"]),
        ({"image_sizes": (24,)}, ["image_sizes=(24,)", "(share, pixels)"]),
        ({"image_sizes": ((0.5, 32), (0.0, 16))}, ["image_sizes=((0.5, 32), (0.0, 16))"]),
    ],
    ids=str,
)
def test_a_wrong_value_is_an_error_that_names_it_and_what_is_allowed(options, said):
    with pytest.raises(ValueError, match=re.escape(said[0])) as error:
        Recipe(**options)
    assert [word for word in said if word not in str(error.value)] == []


def test_a_recipe_is_plain_data_as_json_holds_it():
    recipe = Recipe(image_sizes=((0, 16), (0.5, 32)), augment=Augment.course(), net={"width": 2})
    plain = recipe.to_dict()
    assert json.loads(json.dumps(plain)) == plain
    assert plain["augment"]["cutout"] == 16
    assert plain["image_sizes"] == [[0, 16], [0.5, 32]]
    assert plain["net"] == {"width": 2}
    assert set(plain) == {field.name for field in dataclasses.fields(Recipe)}


# ---- Schedules -------------------------------------------------------------------------------------

EXPECTED = {  # at 0, a quarter, half and the end
    "constant": (1.0, 1.0, 1.0, 1.0),
    "linear": (1.0, 0.75, 0.5, 0.0),
    "cosine": (1.0, (1 + math.sqrt(0.5)) / 2, 0.5, 0.0),
}


def test_every_schedule_has_its_values_here():
    assert set(EXPECTED) == set(SCHEDULES)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_schedule_has_its_values(schedule):
    recipe = Recipe(schedule=schedule, warmup=0.0)
    factors = [recipe.lr_factor(progress) for progress in (0.0, 0.25, 0.5, 1.0)]
    assert factors == pytest.approx(EXPECTED[schedule], abs=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_warmup_climbs_from_0_and_the_schedule_takes_the_rest(schedule):
    recipe = Recipe(schedule=schedule, warmup=0.2)
    climb = [recipe.lr_factor(progress) for progress in (0.0, 0.05, 0.1, 0.2)]
    assert climb == pytest.approx([0.0, 0.25, 0.5, 1.0])
    rest = [recipe.lr_factor(progress) for progress in (0.4, 0.6, 1.0)]
    assert rest == pytest.approx(EXPECTED[schedule][1:], abs=1e-12)


@pytest.mark.parametrize(
    ("progress", "pixels"),
    [(0.0, None), (0.19, None), (0.2, 16), (0.49, 16), (0.5, 24), (0.8, 32), (0.99, 32)],
)
def test_the_image_size_is_that_of_the_last_share_reached(progress, pixels):
    assert Recipe(image_sizes=((0.2, 16), (0.5, 24), (0.8, 32))).image_size(progress) == pixels


def test_without_image_sizes_images_stay_as_they_come():
    assert Recipe(image_sizes=()).image_size(0.5) is None


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
    optimizer = OPTIMIZERS["sgd"](net, Recipe(optimizer="sgd", lr=0.1, momentum=0.7))
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
    optimizer = OPTIMIZERS["sgd"](net, Recipe(optimizer="sgd", lr=0.5, momentum=0.0))
    same_gradients(net)
    optimizer.step()
    expected = [p - 0.5 * q.grad for p, q in zip(start, net.parameters(), strict=True)]
    torch.testing.assert_close(list(net.parameters()), expected)


def test_adamw_is_torch_s():
    net, twin = copies()
    ours = OPTIMIZERS["adamw"](net, Recipe(optimizer="adamw", lr=0.01, weight_decay=0.0))
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
    made = OPTIMIZERS[optimizer](
        net, Recipe(optimizer=optimizer, lr=0.1, lr_rest=0.1, weight_decay=0.5, momentum=0.0)
    )
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
    made = OPTIMIZERS["adamw"](net, Recipe(optimizer="adamw", lr=0.1, weight_decay=0.5))
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
    made = OPTIMIZERS[optimizer](net, Recipe(optimizer=optimizer))
    held = [id(p) for group in made.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in net.parameters())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_frozen_parameters_and_those_without_a_gradient_stay(optimizer):
    net = network()
    net[0].weight.requires_grad_(False)
    start = [p.detach().clone() for p in net.parameters()]
    made = OPTIMIZERS[optimizer](net, Recipe(optimizer=optimizer, lr=0.1, lr_rest=0.1))
    net[4].bias.grad = torch.ones(4)
    made.step()
    changed = [not torch.equal(a, b) for a, b in zip(start, net.parameters(), strict=True)]
    assert changed == [False] * (len(start) - 1) + [True]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_an_optimizer_takes_a_network_of_one_layer(optimizer):
    net = nn.Linear(3, 2)
    made = OPTIMIZERS[optimizer](net, Recipe(optimizer=optimizer, lr=0.1, lr_rest=0.1))
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
    ours = OPTIMIZERS["muon"](net, Recipe(optimizer="muon", lr=0.3, lr_rest=0.02, momentum=0.6))
    oracle = torch.optim.Adam(twin.parameters(), lr=0.02, betas=ours.param_groups[-1]["betas"])
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
    recipe = Recipe(optimizer=optimizer, lr=0.1, lr_rest=0.05)
    straight = OPTIMIZERS[optimizer](net, recipe)
    for _ in range(2):
        same_gradients(net)
        straight.step()
    twin.load_state_dict(net.state_dict())
    resumed = OPTIMIZERS[optimizer](twin, recipe)
    resumed.load_state_dict(copy.deepcopy(straight.state_dict()))
    same_gradients(net, twin)
    straight.step()
    resumed.step()
    assert all(map(torch.equal, net.parameters(), twin.parameters()))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_zero_grad_forgets_every_gradient(optimizer):
    net = network()
    same_gradients(net)
    OPTIMIZERS[optimizer](net, Recipe(optimizer=optimizer)).zero_grad(set_to_none=True)
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


STRICT = ("default", "frontier-small")


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "teacher"])
def test_the_network_of_every_named_recipe_keeps_the_rules_usual_or_strict(name):
    rows = describe(Net(**RECIPES[name].net))
    parameters, field, separable = (100_000, 52, 2) if name in STRICT else (200_000, 44, 1)
    assert rows.total_parameters < parameters
    assert rows[-1].receptive_field > field
    kinds = [row.kind for row in rows]
    assert any(kind.startswith("dilated") for kind in kinds)
    assert sum(kind.endswith("depthwise") for kind in kinds) >= separable


def test_recipes_of_records_differ_in_what_differs_and_not_in_what_was_not_there_yet():
    old = RECIPES["frontier"].to_dict()
    del old["lr_rest"], old["label_smoothing"], old["teacher"]["temperature"]
    assert completed(old) == RECIPES["frontier"].to_dict() | {"lr_rest": 0.01}
    assert differing(old, RECIPES["frontier"].to_dict()) == ({"lr_rest": 0.01}, {"lr_rest": 0.02})
    assert differing(old, old) == ({}, {})
    assert differing(old, old | {"momenta": 1}) == ({"momenta": None}, {"momenta": 1})


FRONTIERS = ("frontier", "frontier-small")


@pytest.mark.parametrize("name", FRONTIERS)
@pytest.mark.parametrize("change", ABLATIONS)
def test_an_ablation_changes_one_thing(name, change):
    recipe, labels = (ABLATIONS[each](RECIPES[name]).to_dict() for each in (change, "labels"))
    differ = {key for key, value in recipe.items() if value != labels[key]}
    if change == "teacher":
        # Its probabilities take the place of smoothed labels.
        assert differ == {"teacher", "temperature", "label_smoothing"}
    elif change == "sgd":
        assert differ == {"optimizer", "lr", "momentum", "weight_decay"}  # each has numbers of its own
    else:
        assert len(differ) == (change != "labels")


@pytest.mark.parametrize("name", FRONTIERS)
def test_the_ablations_are_of_the_recipe_but_for_its_teacher_and_length(name):
    recipe = dataclasses.replace(RECIPES[name], epochs=3)
    labels = dataclasses.replace(recipe, teacher=None, temperature=1.0, label_smoothing=0.1)
    assert ABLATIONS["labels"](recipe) == labels
    teacher = dataclasses.replace(recipe.teacher, epochs=3)
    assert ABLATIONS["teacher"](recipe) == dataclasses.replace(recipe, teacher=teacher)


@pytest.mark.parametrize("name", FRONTIERS)
def test_the_ablations_of_the_network_change_what_they_are_called_after(name):
    def rows(change):
        return [row for stage in ABLATIONS[change](RECIPES[name]).net["stages"] for row in stage]

    whole, strided, plain = (rows(change) for change in ("labels", "first-row-strided", "no-dilation"))
    assert strided == [(*whole[0][:2], 2), *whole[1:]]
    changed = [(old, new) for old, new in zip(whole, plain, strict=True) if old != new]
    assert [(old[1], new[1]) for old, new in changed] == [("dilated", "standard")]
    assert all((old[0], old[2]) == (new[0], new[2]) for old, new in changed)
