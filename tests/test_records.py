"""lab/records.py: what a record holds, how it is read, and what tells two runs apart."""

import json
import math
from dataclasses import asdict, replace

import pytest
import torch
from torch import nn

from lab.recipes import Recipe
from lab.records import History, describe_network, weights_digest


def a_history(**changes) -> History:
    values = {
        "name": "N",
        "dataset": "D",
        "parameters": 5,
        "recipe": Recipe().to_dict(),
        "seed": 7,
        "machine": {"cpus": 2, "dtype": "float32"},
    }
    return History(**values | changes)


# ---- History ---------------------------------------------------------------------------------------


def test_peak_normalized_time_is_seconds_times_the_rate_of_their_epoch():
    assert a_history(seconds=[2.0, 3.0], gflops=[100.0, 200.0]).peak_tflop == pytest.approx(0.8)
    assert math.isnan(a_history(seconds=[2.0, 3.0], gflops=[]).peak_tflop)
    assert math.isnan(a_history(seconds=[2.0, 3.0], gflops=[200.0]).peak_tflop)


@pytest.mark.parametrize("part", ["test", "validation"])
def test_the_summary_shows_the_last_epoch_not_the_best_and_says_what_was_evaluated(part):
    figures = {f"{part}_accuracy": [0.5, 0.9, 0.4], "evaluated_on": part}
    history = a_history(train_loss=[1.0, 2.0, 3.0], seconds=[1.25, 2.5, 3.0], **figures)
    assert history.summary() == {
        "name": "N",
        "dataset": "D",
        f"{part}_accuracy": 0.4,
        "train_seconds": 6.75,
        "parameters": 5,
        "epochs": 3,
        "seed": 7,
    }


def test_loss_and_accuracy_are_those_of_the_part_evaluated():
    history = a_history(
        test_loss=[1.0],
        test_accuracy=[0.1],
        test_accuracy_flips=0.2,
        validation_loss=[2.0],
        validation_accuracy=[0.3],
        validation_accuracy_flips=0.4,
    )
    assert (history.loss, history.accuracy, history.accuracy_flips) == ([1.0], [0.1], 0.2)
    held_out = replace(history, evaluated_on="validation")
    assert (held_out.loss, held_out.accuracy, held_out.accuracy_flips) == ([2.0], [0.3], 0.4)
    with pytest.raises(ValueError, match=r"evaluated_on='train'.*test, validation"):
        a_history(evaluated_on="train")


def test_a_history_is_read_as_it_was_written(tmp_path):
    history = a_history(train_loss=[1.0], data={"train": {"images": 3, "augment": None}}, start="abc")
    path = history.save(tmp_path / "new" / "folder" / "run.json")
    assert History.load(path) == history
    assert json.loads(path.read_text())["recipe"]["lr"] == Recipe().lr
    assert [file.name for file in path.parent.iterdir()] == ["run.json"]


def test_saving_what_json_cannot_hold_leaves_the_old_file_whole(tmp_path):
    path = a_history(train_loss=[1.0]).save(tmp_path / "run.json")
    before = path.read_bytes()
    with pytest.raises(TypeError):
        a_history(train_loss=[object()]).save(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["run.json"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[]", "expected a dictionary"),
        ("{", "Expecting"),
        ('{"a": 1}', "'a'"),
        (json.dumps(asdict(a_history()) | {"recipe": {"epochs": 0}}), "epochs=0"),
        (json.dumps(asdict(a_history()) | {"recipe": []}), "recipe="),
        (json.dumps(asdict(a_history()) | {"evaluated_on": "train"}), "'train'"),
    ],
)
def test_what_is_not_a_record_is_refused_by_file_name(tmp_path, content, said):
    (tmp_path / "other.json").write_text(content)
    with pytest.raises(ValueError, match=rf"other\.json is not the record of a run: .*{said}"):
        History.load(tmp_path / "other.json")


# ---- What tells runs apart -------------------------------------------------------------------------

DATA = {"train": {"images": 500, "digest": "a"}, "test": {"images": 100, "digest": "b"}}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": 8}, "seed 7, not 8"),
        ({"name": "M"}, "name 'N', not 'M'"),
        ({"recipe": Recipe(lr=0.5).to_dict()}, "recipe {'lr': 0.15}, not {'lr': 0.5}"),
        ({"machine": {"dtype": "bfloat16"}}, "dtype 'float32', not 'bfloat16'"),
        ({"parameters": 6}, "parameters 5, not 6"),
        (
            {"network": {"class": "Net", "structure": "y"}},
            "network {'structure': 'x'}, not {'structure': 'y'}",
        ),
        (
            {"data": DATA | {"train": {"images": 5_000, "digest": "c"}}},
            "data {'train': {'images': 500, 'digest': 'a'}}, not {'train': {'images': 5000, 'digest': 'c'}}",
        ),
    ],
)
def test_the_first_difference_is_named_with_both_values(changes, said):
    history = a_history(data=DATA, network={"class": "Net", "structure": "x"})
    assert history.difference(replace(history, **changes)) == said


def test_figures_processor_tuples_and_lists_do_not_distinguish_runs():
    history = a_history(data={"train": {"size": [1, 2]}})
    same = replace(history, train_loss=[1.0], machine={"cpus": 9, "dtype": "float32"}, start="other")
    assert history.difference(replace(same, data={"train": {"size": (1, 2)}})) == ""


def test_an_older_record_has_the_same_recipe():
    old = a_history()
    old.recipe = {name: value for name, value in old.recipe.items() if name not in ("temperature", "teacher")}
    assert old.difference(a_history()) == ""


# ---- Networks --------------------------------------------------------------------------------------


def network(norm: nn.Module | None = None) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), norm or nn.BatchNorm2d(4))


def test_a_network_is_distinguished_from_one_with_other_modules_shapes_or_frozen_parts():
    frozen = network()
    frozen[0].weight.requires_grad_(False)
    others = [network(nn.GroupNorm(1, 4)), network(nn.GroupNorm(2, 4)), frozen, network(nn.Conv2d(4, 4, 1))]
    found = [describe_network(each)["structure"] for each in (network(), *others)]
    assert len({*found}) == 5
    assert describe_network(network()) == describe_network(network())
    assert describe_network(network())["class"] == "Sequential"


def test_the_digest_of_weights_sees_values_and_buffers_and_not_the_memory_format():
    net, other = network(), network()
    assert weights_digest(net) == weights_digest(other.to(memory_format=torch.channels_last))
    with torch.no_grad():
        other[0].weight[0, 0, 0, 0] += 1e-6
    assert weights_digest(net) != weights_digest(other)
    net(torch.randn(2, 3, 8, 8))
    assert weights_digest(net) != weights_digest(network())
