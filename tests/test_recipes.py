"""lab/recipes.py: recipes as plain data."""

import dataclasses
import json
import math
import re

import numpy as np
import pytest
from torch import nn

from lab.data import Augment
from lab.optim import OPTIMIZERS, SCHEDULES
from lab.recipes import RECIPES, Recipe
from model import Net, describe

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
        ({"image_sizes": ((1.5, 1.0),)}, ["image_sizes=((1.5, 1.0),)", "share of the steps"]),
        ({"image_sizes": ((0.5, 0),)}, ["image_sizes=((0.5, 0),)", "above 0"]),
        ({"image_sizes": ((0.5, 24),)}, ["image_sizes=((0.5, 24),)", "at most 4", "0.75"]),
        ({"image_sizes": (24,)}, ["image_sizes=(24,)", "pairs"]),
        ({"image_sizes": ((0.5, 1.0), (0.0, 0.5))}, ["image_sizes=((0.5, 1.0), (0.0, 0.5))", "rising"]),
        ({"augment": "no"}, ["augment='no'", "an Augment or None"]),
        ({"net": 3}, ["net=3", "dictionary of plain data"]),
        ({"net": {"width": float("nan")}}, ["net={'width': nan}", "dictionary of plain data"]),
        ({"optimizer": {}}, ["unknown optimizer {}", "'muon'"]),
        ({"net": {"activation": nn.SiLU}}, ["net=", "SiLU", "plain data"]),
        ({"label_smoothing": True}, ["label_smoothing=True", "number"]),
        ({"batch_size": True}, ["batch_size=True", "integer"]),
    ],
    ids=str,
)
def test_a_wrong_value_is_an_error_that_names_it_and_what_is_allowed(options, said):
    with pytest.raises(ValueError, match=re.escape(said[0])) as error:
        Recipe(**options)
    assert [word for word in said if word not in str(error.value)] == []


def test_a_recipe_is_plain_data_as_json_holds_it():
    recipe = Recipe(image_sizes=((0, 0.5), (0.5, 1)), augment=Augment.course(), net={"width": 2})
    plain = recipe.to_dict()
    assert json.loads(json.dumps(plain)) == plain
    assert plain["augment"]["cutout"] == 16
    assert plain["image_sizes"] == [[0, 0.5], [0.5, 1]]
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


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_schedule_ends_at_its_end(schedule):
    recipe = Recipe(schedule=schedule, warmup=0.2)
    assert recipe.lr_factor(1.5) == recipe.lr_factor(1.0) == pytest.approx(EXPECTED[schedule][-1], abs=1e-12)


@pytest.mark.parametrize(
    ("progress", "scale"),
    [(0.0, None), (0.19, None), (0.2, 0.5), (0.49, 0.5), (0.5, 0.75), (0.8, 1.0), (0.99, 1.0)],
)
def test_the_image_scale_is_that_of_the_last_share_reached(progress, scale):
    assert Recipe(image_sizes=((0.2, 0.5), (0.5, 0.75), (0.8, 1.0))).image_scale(progress) == scale


def test_without_image_sizes_images_keep_theirs():
    assert Recipe(image_sizes=()).image_scale(0.5) is None


@pytest.mark.parametrize(
    ("sizes", "shares"),
    [
        ((), {1.0: 1.0}),
        (((0.0, 0.5), (0.25, 0.75), (0.75, 0.5)), {0.5: 0.5, 0.75: 0.5}),
        (((0.25, 0.5),), {1.0: 0.25, 0.5: 0.75}),  # before the first share the images keep their size
    ],
)
def test_each_image_size_has_its_share_of_the_steps(sizes, shares):
    assert Recipe(image_sizes=sizes).size_shares() == shares


# ---- Records of recipes ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_read_as_it_was_written(name):
    assert Recipe.from_dict(json.loads(json.dumps(RECIPES[name].to_dict()))) == RECIPES[name]


def test_a_field_that_did_not_exist_yet_has_its_default():
    old = RECIPES["frontier"].to_dict()
    del old["lr_rest"], old["label_smoothing"], old["teacher"]["temperature"]
    recipe = Recipe.from_dict(old)
    assert recipe.difference(RECIPES["frontier"]) == ({"lr_rest": 0.01}, {"lr_rest": 0.02})
    assert recipe.difference(recipe) == ({}, {})


def test_image_sizes_in_pixels_are_read_as_shares_of_32():
    old = Recipe().to_dict() | {"image_sizes": [[0.0, 24], [0.6, 32]]}
    assert Recipe.from_dict(old).image_sizes == ((0.0, 0.75), (0.6, 1.0))


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"momenta": 1}, "momenta"),
        ({"epochs": 0}, "epochs=0"),
        ([], r"recipe=\[\]"),
        ({"image_sizes": 3}, "not the record"),
    ],
)
def test_what_is_not_the_record_of_a_recipe_is_refused(record, said):
    with pytest.raises(ValueError, match=said):
        Recipe.from_dict(record)


def test_numpy_s_numbers_are_kept_as_python_s():
    recipe = Recipe(epochs=np.int64(3), batch_size=np.int32(64), lr=np.float32(0.5), l1=np.float64(1e-5))
    assert recipe == Recipe(epochs=3, batch_size=64, lr=0.5, l1=1e-5)
    assert {type(value) for value in (recipe.epochs, recipe.batch_size, recipe.lr)} == {int, float}
    assert json.loads(json.dumps(recipe.to_dict()))["epochs"] == 3


def test_lists_and_tuples_make_the_same_recipe():
    listed = Recipe(image_sizes=[[0.0, 0.5]], net={"stages": [[[8, "standard", 1]]]})
    assert listed == Recipe(image_sizes=((0.0, 0.5),), net={"stages": (((8, "standard", 1),),)})


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_optimizer_of_a_recipe_has_its_numbers(optimizer):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 2))
    recipe = Recipe(optimizer=optimizer, lr=0.3, lr_rest=0.2, momentum=0.7, weight_decay=0.1)
    made = recipe.make_optimizer(net)
    assert made.param_groups[0]["lr"] == 0.3
    assert made.param_groups[-1]["lr"] == (0.2 if optimizer == "muon" else 0.3)
    assert 0.1 in [group.get("weight_decay") for group in made.param_groups]
    if optimizer != "adamw":
        assert made.param_groups[0]["momentum"] == 0.7


# ---- The named recipes -----------------------------------------------------------------------------

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
