"""lab/costs.py: what is measured of a network, and what follows from the times."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from lab import costs
from lab.experiment import Experiment
from lab.recipes import Recipe
from model import Net, describe

RECIPE = Recipe(epochs=1, batch_size=8, net={"width": 0.25})
ARMS = [
    Experiment("a", RECIPE),
    Experiment("a again", replace(RECIPE, lr=0.5)),
    Experiment("b", RECIPE, norm="group"),
]


A = costs.network_key(ARMS[0])


@pytest.fixture(scope="module")
def measured():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(costs, "BATCH", 8)
        patch.setattr(costs, "PRODUCTS", (64,))
        return costs.measure(ARMS, device="cpu", dtype="float32", rounds=1, seconds=0.0)


def test_each_network_is_measured_once_and_every_arm_has_its_cost(measured, tmp_path):
    assert [*measured["train"]] == [*measured["forward"]] == [A, costs.network_key(ARMS[2])]
    found = costs.costs(measured, ARMS)
    assert found["a"] == found["a again"] != found["b"]
    costs.write(measured, tmp_path)
    assert costs.read(tmp_path) == measured
    assert costs.read(tmp_path / "none") is None


def test_a_cost_is_the_median_for_an_image_and_the_share_of_the_fastest_product(measured):
    made = measured | {
        "batch_size": 8,
        "train": {A: [3.0, 1.0, 2.0]},
        "forward": {A: [0.5, 0.4, 0.6]},
        "product": {"100": [1.0, 0.5], "200": [8.0]},  # 4e6 and 2e6 operations a second
        "flops": {A: 2_000_000},
        "memory": {A: 77},
    }
    # All its steps are on images of 32 pixels: 6,250 steps of 2 seconds.
    assert costs.costs(made, ARMS)["a"] == costs.Cost(2.5e5, 6.25e4, 77, 0.25, 12_500)
    assert "b" not in costs.costs(made, ARMS)


def test_the_time_of_a_training_counts_each_image_size_by_its_share(measured):
    arm = Experiment("small first", replace(RECIPE, epochs=3, image_sizes=((0.0, 0.75), (0.6, 1.0))))
    made = measured | {"batch_size": 8, "train": {A: [3.0, 1.0, 2.0]}}
    assert math.isnan(costs.costs(made, [arm])[arm.label].run_seconds)  # the smaller size was not timed
    made["train at 24 pixels"] = {A: [1.0]}
    seconds = 3 * 6_250 * (0.6 * 1.0 + 0.4 * 2.0)
    assert costs.costs(made, [arm])[arm.label].run_seconds == pytest.approx(seconds)
    other = replace(arm, recipe=replace(arm.recipe, batch_size=5))  # whose steps were not timed
    found = costs.costs(made, [other])[arm.label]
    assert math.isnan(found.run_seconds)
    assert math.isnan(found.train_microseconds)
    assert math.isnan(found.share_of_peak)
    assert (found.forward_microseconds, found.memory) == costs.costs(made, [arm])[arm.label][1:3]


def test_a_step_is_timed_at_every_size_of_the_recipe(monkeypatch):
    monkeypatch.setattr(costs, "BATCH", 8)
    monkeypatch.setattr(costs, "PRODUCTS", (64,))
    arm = Experiment("small first", replace(RECIPE, image_sizes=((0.0, 0.5), (0.6, 0.75))))
    found = costs.measure([arm], device="cpu", dtype="float32", rounds=1, seconds=0.0)
    assert all(found[key][A][0] > 0 for key in ("train", "train at 16 pixels", "train at 24 pixels"))
    assert costs.costs(found, [arm])["small first"].run_seconds > 0


def test_the_flops_of_a_step_are_three_times_the_macs_twice_without_the_images_gradient(measured):
    rows = describe(Net(width=0.25))
    assert measured["flops"][A] == 2 * 8 * (3 * rows.total_macs - rows[0].macs)


def test_the_memory_is_that_of_the_maps_that_gradients_need():
    one = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU())
    # Of each image the input, 3 x 32 x 32, and the output of the ReLU, 16 x 32 x 32, in float32.
    assert costs.saved_bytes(one, torch.float32) == 4 * 19 * 32 * 32
    assert costs.saved_bytes(Net(width=0.5), torch.float32) > 1.5 * costs.saved_bytes(
        Net(width=0.25), torch.float32
    )


def test_a_file_that_is_no_measurement_is_named(tmp_path):
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(ValueError, match=r"x\.json is not a measurement of costs"):
        costs.read(tmp_path)
