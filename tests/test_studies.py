"""lab/studies.py: what the arms of our studies are."""

from dataclasses import replace

import pytest
import torch

from lab import costs
from lab.experiment import Experiment
from lab.grid import Study
from lab.records import History
from lab.studies import (
    ADDITIONS,
    BASE,
    BATCH_SIZES,
    BUDGET,
    COMPARED,
    DILATION_OR_STRIDE,
    EQUAL_SIZE,
    EQUAL_TIME,
    MODELS,
    OPTIMIZERS,
    PUBLISHED,
    STUDIES,
    TECHNIQUES,
    WIDTHS,
    arm,
    difference_title,
    titles,
)
from lab.study import load_results
from model import NORMS, Net, count_parameters, describe, receptive_field


def changed(one: Experiment, other: Experiment) -> set[str]:
    """The fields of experiment and recipe that differ."""
    fields = {
        name for name in ("norm", "conv", "dataset", "limit") if getattr(one, name) != getattr(other, name)
    }
    return fields | set(one.recipe.difference(other.recipe)[0])


def test_arms_of_the_grid_differ_in_technique_and_normalization_only():
    first = TECHNIQUES.arms[0]
    assert {(each.conv, each.norm) for each in TECHNIQUES.arms} == {(c, n) for c in COMPARED for n in NORMS}
    assert all(changed(first, each) <= {"norm", "conv"} for each in TECHNIQUES.arms)


def test_every_comparison_of_the_grids_changes_one_thing():
    for study, name in ((TECHNIQUES, ""), (EQUAL_SIZE, "")):
        for one, other in study.pairs:
            assert changed(study[one], study[other]) - {"net"} in ({"norm"}, {"conv"}), (one, other, name)
    for one, other in MODELS.pairs:
        rate = {"lr", "momentum", "warmup"}  # chosen for each optimizer
        assert changed(MODELS[one], MODELS[other]) - rate in ({"norm"}, {"optimizer"}), (one, other)


def test_every_pair_of_the_grid_is_compared_with_standard_convolution_and_with_batch_norm():
    pairs = {(TECHNIQUES[one].conv, TECHNIQUES[one].norm) for one, _ in TECHNIQUES.pairs}
    assert pairs == {(c, n) for c in COMPARED for n in NORMS} - {("standard", "batch")}
    against = {(TECHNIQUES[other].conv, TECHNIQUES[other].norm) for _, other in TECHNIQUES.pairs}
    assert against == {("standard", n) for n in NORMS} | {(c, "batch") for c in COMPARED}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("conv", WIDTHS)
def test_arms_of_equal_size_are_the_widest_within_the_budget(conv, norm):
    with torch.device("meta"):
        assert Net.within(BUDGET, conv=conv, norm=norm).config["width"] == WIDTHS[conv]
    network = EQUAL_SIZE[f"{conv}-{norm}-muon-equal-size"].network()
    assert count_parameters(network) <= BUDGET == count_parameters(Net())


def test_arms_of_equal_time_take_the_same_time_as_measured():
    measured = costs.read(PUBLISHED / "bench")
    found = costs.costs(measured, EQUAL_TIME.arms)
    seconds = [found[each.label].run_seconds for each in EQUAL_TIME.arms]
    assert max(seconds) < 1.1 * min(seconds)


def test_the_ways_to_grow_the_receptive_field_have_equal_fields_and_sizes():
    networks = [each.network() for each in DILATION_OR_STRIDE.arms]
    assert {receptive_field(net) for net in networks} == {75}
    assert {count_parameters(net) for net in networks} == {BUDGET}
    rates = [[row.dilation for row in describe(net) if row.kind.endswith("depthwise")] for net in networks]
    assert rates == [[1, 1, 1], [2, 2, 2], [1, 2, 3]]


def test_additions_change_what_they_say():
    first = {each.label: describe(each.network()) for each in ADDITIONS.arms}
    after = first["mixed-batch-muon-depthwise-after-a-standard-row"]
    assert [row.kind for row in after[:3]] == ["standard", "depthwise", "pointwise"]
    assert [row.kind for row in first["mixed-batch-muon-blueprint-after-a-standard-row"][:3]] == [
        "standard",
        "pointwise",
        "depthwise",
    ]
    assert {row.kind for row in first["mixed-batch-muon-dilated-blind"]} == {"dilated", "pointwise"}


def test_warmup_and_the_rate_of_adam_beside_muon_are_the_best_of_their_trials():
    trials = PUBLISHED.parent / "trials"
    muon = [History.load(path) for path in PUBLISHED.glob("mixed-batch-muon-lr-*-held-out-5000-seed0.json")]
    best = dict.fromkeys(OPTIMIZERS, (0.0, 0.0))  # held-out accuracy, warmup
    for run in (*load_results(trials / "warmup"), *muon):
        optimizer = run.recipe["optimizer"]
        if run.name.startswith(f"mixed-batch-{optimizer}"):
            best[optimizer] = max(best[optimizer], (run.accuracy[-1], run.recipe["warmup"]))
    assert {name: warmup for name, (_, warmup) in best.items()} == {
        name: options.get("warmup", 0.0) for name, options in OPTIMIZERS.items()
    }
    rates = [(run.accuracy[-1], run.recipe["lr_rest"]) for run in load_results(trials / "batches-of-8")]
    assert len(rates) == 3
    small = [each.recipe for each in BATCH_SIZES.arms if each.recipe.batch_size == 8]
    assert {recipe.lr_rest for recipe in small} == {max(rates)[1]}


def test_titles_name_what_differs():
    found = titles([arm(), arm(norm="none"), arm("dilated", optimizer="sgd")])
    assert [*found.values()] == [
        "mixed, batch norm, Muon",
        "mixed, no norm, Muon",
        "dilated, batch norm, SGD",
    ]
    found = titles([arm(), arm(label="rates-1-2-3")])
    assert [*found.values()] == ["mixed, batch norm, Muon", "rates 1 2 3"]
    own = titles([Experiment("mine", BASE), Experiment("my other", replace(BASE, lr=0.3))])
    assert own == {"mine": "mine", "my other": "my other"}


def test_a_difference_is_called_after_what_changed_and_what_both_share():
    arms = [arm(conv, norm) for conv in ("standard", "dilated") for norm in ("batch", "none")]
    labels = [each.label for each in arms]
    assert difference_title(arms, labels[2], labels[0]) == "dilated minus standard (batch norm)"
    assert difference_title(arms, labels[3], labels[2]) == "no norm minus batch norm (dilated)"
    arms = [arm(), arm(label="rates-1-2-3")]
    assert difference_title(arms, arms[1].label, arms[0].label) == "rates 1 2 3 minus the base"


def test_a_difference_between_differences_names_what_changed_once_or_both_in_brackets():
    arms = [arm(norm=norm, label=label) for norm in ("batch", "group") for label in ("", "small")]
    batch, small_batch, group, small_group = (each.label for each in arms)
    found = difference_title(arms, (small_batch, batch), (small_group, group))
    assert found == "small minus the base: batch norm minus group norm"
    found = difference_title(arms, (small_batch, batch), (small_batch, small_group))
    assert found == "[small minus the base (batch norm)] minus [batch norm minus group norm (small)]"


@pytest.mark.parametrize("name", STUDIES)
def test_titles_are_unique(name):
    named = titles(STUDIES[name].arms)
    assert len(set(named.values())) == len(named) == len(STUDIES[name].arms)


def test_a_reader_declares_a_study_in_a_few_lines():
    study = Study("kernels", "Is a wider net better?", [arm(), arm(label="wide", net={"width": 1.5})])
    assert [each.label for each in study.arms] == ["mixed-batch-muon", "mixed-batch-muon-wide"]


def test_a_title_keeps_the_exponent_of_a_strength():
    named = titles(STUDIES["course-models"].arms)
    assert named["mixed-layer-adamw-L2-4e-05"] == "layer norm, AdamW, L2 4e-05"
    assert named["mixed-group-sgd-L1-0.000256"] == "group norm, SGD, L1 0.000256"
