"""lab/records.py: what a record holds, how it is read, and what tells two runs apart."""

import json
import math
from dataclasses import MISSING, fields, replace
from pathlib import Path

import pytest
import torch
from torch import nn

from lab import schema
from lab.recipes import Recipe
from lab.records import FIELDS, REQUIRED, History, describe_network, weights_digest

HERE = Path(__file__).resolve().parent.parent


def a_history(**changes) -> History:
    """A History whose other lists are as long as `train_loss`."""
    epochs = len(changes.get("train_loss", ()))
    values = {
        "name": "N",
        "dataset": "D",
        "parameters": 5,
        "recipe": Recipe().to_dict(),
        "seed": 7,
        "machine": {"cpus": 2, "dtype": "float32"},
        "train_accuracy": [0.5] * epochs,
        "lr": [0.1] * epochs,
        "seconds": [1.0] * epochs,
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


RIGHT = torch.tensor([True, False, True, True, False, False, False, False, True])


def test_which_images_were_right_is_kept_bit_by_bit(tmp_path):
    history = a_history(train_loss=[1.0], test_loss=[1.0], test_accuracy=[4 / 9])
    with pytest.raises(ValueError, match="N seed 7: its record does not say"):
        history.rights()
    history.set_rights(RIGHT)
    read = History.load(history.save(tmp_path / "run.json"))
    assert read.rights().tolist() == RIGHT.tolist()
    read.drop_epoch()
    assert read.right == {}


@pytest.mark.parametrize(
    ("right", "said"),
    [
        ({"images": 9}, "'bits'"),
        ({"images": 9, "bits": "?"}, "base64|padding"),
        ({"images": 17, "bits": "sIA="}, "2 bytes for 17 images"),
        ({"images": 9, "bits": "AAA="}, "right has 0 of 9 images: not the accuracy"),
        ({"images": 0, "bits": ""}, r"'images'\]=0"),
    ],
)
def test_a_record_whose_right_images_cannot_be_is_refused(right, said):
    history = a_history(train_loss=[1.0], test_loss=[1.0], test_accuracy=[4 / 9], right=right)
    with pytest.raises(ValueError, match=said):
        history.to_dict()


def test_a_run_is_complete_after_its_last_epoch_or_if_it_diverged():
    one = Recipe(epochs=1).to_dict()
    assert not a_history(recipe=one).is_complete
    assert a_history(recipe=one, train_loss=[1.0]).is_complete
    assert a_history(recipe=one, diverged="the loss is nan").is_complete


def test_a_history_is_read_as_it_was_written(tmp_path):
    history = a_history(train_loss=[1.0], data={"train": {"images": 3, "augment": None}}, start="abc")
    path = history.save(tmp_path / "new" / "folder" / "run.json")
    assert History.load(path) == history
    assert json.loads(path.read_text())["recipe"]["lr"] == Recipe().lr
    assert [file.name for file in path.parent.iterdir()] == ["run.json"]


def test_a_history_knows_the_file_that_it_was_read_from_and_no_record_has_it(tmp_path):
    history = a_history(train_loss=[1.0])
    path = history.save(tmp_path / "run.json")
    assert (history.path, History.load(path).path) == (None, path)
    assert "path" not in History.load(path).to_dict()


# ---- What a record may hold ------------------------------------------------------------------------


def test_every_field_has_a_check_and_is_required_if_it_has_no_default():
    assert [*FIELDS] == [each.name for each in fields(History)]
    without = [e.name for e in fields(History) if e.default is MISSING and e.default_factory is MISSING]
    assert [*REQUIRED] == without


def test_the_published_records_of_every_age_are_read_and_can_be_written_again(tmp_path):
    others = {"bench", "labels", "networks"}  # folders of what is no record
    paths = [path for path in (HERE / "results").rglob("*.json") if not others & {*path.parts}]
    assert len(paths) >= 170
    for path in paths:
        history = History.load(path)
        done = history.epochs == history.recipe["epochs"] == len(history.accuracy)
        assert done or history.diverged, path
        assert History.load(history.save(tmp_path / "again.json")) == history, path


def complete(**changes) -> History:
    """A run of two epochs with every figure."""
    figures = {"train_loss": [1.0, 0.5], "test_loss": [1.0, 0.5], "test_accuracy": [0.5, 0.75]}
    rest = {"gflops": [200.0] * 2, "threads": [[1, 2], [2]], "timed": {"float32 channels_last": 3.5}}
    data = {"train": {"images": 100, "shape": [1, 2]}, "test": {"images": None}}
    return a_history(**figures | rest | {"data": data, "test_accuracy_flips": 0.8} | changes)


WRONG = [  # a field, a value and what is said of them
    ({"name": 5}, "name=5 must be a string"),
    ({"name": None}, "name=None must be a string"),
    ({"name": "a\nb"}, r"name='a\\nb' must be a string of at most 500 printable characters"),
    ({"name": "\x1b[2J"}, "printable"),
    ({"name": "\ud800"}, "printable"),
    ({"name": "a" * 501}, "at most 500"),
    ({"dataset": ["CIFAR-10"]}, "dataset="),
    ({"parameters": -1}, "parameters=-1 must be an integer of at least 0"),
    ({"parameters": 1e9}, "parameters=1000000000.0 must be an integer"),
    ({"parameters": True}, "parameters=True must be an integer"),
    ({"recipe": []}, r"recipe=\[\] must be a dictionary"),
    ({"recipe": {"epochs": 0}}, "in its recipe, epochs=0 must be an integer of at least 1"),
    ({"recipe": {"epoch": 1}}, r"unknown fields \['epoch'\] of a recipe"),
    ({"recipe": {"optimizer": {}}}, "in its recipe, unknown optimizer {}"),
    ({"recipe": {"augment": {"flips": True}}}, "flips"),
    ({"recipe": {"epochs": 1}}, "train_loss has length 2: expected at most 1, the recipe's epochs"),
    ({"seed": "0"}, "seed='0' must be an integer"),
    ({"seed": 0.5}, "seed=0.5 must be an integer"),
    ({"seed": 10**101}, "seed=1000.* must be plain data, and finite"),
    ({"machine": "cpu"}, "machine='cpu' must be a dictionary"),
    ({"machine": {"dtype": 16}}, r"machine\['dtype'\]=16 must be a string"),
    ({"machine": {"threads": 0}}, r"machine\['threads'\]=0 must be an integer of at least 1"),
    ({"train_loss": "12"}, "train_loss='12' must be a list"),
    ({"train_loss": [1.0, "a"]}, r"train_loss\[1\]='a' must be a number of at least 0"),
    ({"train_loss": [1.0, -0.1]}, r"train_loss\[1\]=-0.1 must be a number of at least 0"),
    ({"train_loss": [1.0, math.nan]}, r"train_loss\[1\]=nan must be plain data, and finite"),
    ({"train_loss": [1.0]}, "train_accuracy has length 2: expected 1, since train_loss has 1"),
    ({"train_accuracy": [0.5, 85.0]}, r"train_accuracy\[1\]=85.0 must be a number from 0 to 1"),
    ({"train_accuracy": [0.5]}, "train_accuracy has length 1: expected 2"),
    ({"test_loss": [1.0, math.inf]}, r"test_loss\[1\]=inf must be plain data, and finite"),
    ({"test_loss": [1.0]}, "test_loss has length 1: expected 0 or 2"),
    ({"test_accuracy": [0.5, -0.5]}, r"test_accuracy\[1\]=-0.5 must be a number from 0 to 1"),
    ({"test_accuracy": []}, "test_accuracy has length 0: expected 2"),
    ({"validation_loss": [1.0, 1.0]}, "validation_loss has length 2: expected 0, .* evaluated on test"),
    ({"validation_accuracy": [0.5, None]}, r"validation_accuracy\[1\]=None must be a number"),
    ({"lr": [0.1, -0.1]}, r"lr\[1\]=-0.1 must be a number of at least 0"),
    ({"lr": [0.1]}, "lr has length 1: expected 2"),
    ({"seconds": [1.0, -1.0]}, r"seconds\[1\]=-1.0 must be a number of at least 0"),
    ({"seconds": {"0": 1.0}}, r"seconds={'0': 1.0} must be a list"),
    ({"seconds": [1.0] * 3}, "seconds has length 3: expected 2"),
    ({"gflops": [200.0, -200.0]}, r"gflops\[1\]=-200.0 must be a number of at least 0"),
    ({"gflops": [200.0] * 3}, "gflops has length 3: expected 0 or 2"),
    ({"threads": [2, 2]}, r"threads\[0\]=2 must be a list"),
    ({"threads": [[2], [0]]}, r"threads\[1\]\[0\]=0 must be an integer of at least 1"),
    ({"threads": [[2]]}, "threads has length 1: expected 0 or 2"),
    ({"timed": {"float32": "fast"}}, r"timed\['float32'\]='fast' must be a number"),
    ({"timed": []}, r"timed=\[\] must be a dictionary"),
    ({"test_accuracy_flips": 80}, "test_accuracy_flips=80 must be a number from 0 to 1"),
    ({"validation_accuracy_flips": "0.8"}, "validation_accuracy_flips='0.8' must be a number"),
    ({"data": []}, r"data=\[\] must be a dictionary"),
    ({"data": {"train": 5}}, r"data\['train'\]=5 must be a dictionary"),
    ({"data": {"test": {"images": 0}}}, r"data\['test'\]\['images'\]=0 must be an integer of at least 1"),
    ({"network": "Net"}, "network='Net' must be a dictionary"),
    ({"network": {"config": [[[math.inf]]]}}, r"network\['config'\]\[0\]\[0\]\[0\]=inf must be plain data"),
    ({"start": None}, "start=None must be a string"),
]


@pytest.mark.parametrize(("changes", "said"), WRONG, ids=lambda value: str(value)[:40])
def test_a_wrong_value_is_named_and_refused_where_it_is_read_and_where_it_is_written(tmp_path, changes, said):
    record = complete().to_dict() | changes
    (tmp_path / "run.json").write_text(json.dumps(record, allow_nan=True))
    refused = rf"run\.json is not the record of a run: .*({said}|an integer of)"
    with pytest.raises(ValueError, match=refused) as caught:
        History.load(tmp_path / "run.json")
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=f"here is not the record of a run: .*({said})"):
        History.from_dict(record, "here")
    with pytest.raises(ValueError, match=rf"new\.json was not written: .*({said})"):
        replace(complete(), **changes).save(tmp_path / "new.json")
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


@pytest.mark.parametrize("value", ["train", "", None, 5, ["test"], {}])
def test_a_run_is_evaluated_on_test_or_validation_images(value):
    with pytest.raises(ValueError, match=r"evaluated_on=.* must be one of test, validation"):
        History.from_dict(complete().to_dict() | {"evaluated_on": value})


@pytest.mark.parametrize("name", FIELDS)
def test_a_record_may_lack_only_what_older_records_lack(name):
    figures = ("train_loss", "train_accuracy", "lr", "seconds", "test_loss", "test_accuracy")
    record = complete().to_dict()
    del record[name]
    if name not in (*REQUIRED, *figures):
        assert History.from_dict(record).epochs == 2
        return
    with pytest.raises(ValueError, match=f"{name}' is missing|has length .: expected"):
        History.from_dict(record)


def test_a_record_with_an_unknown_field_or_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="unknown field 'optimiser'; the fields are name, dataset, "):
        History.from_dict(complete().to_dict() | {"optimiser": "muon"})
    for other in (None, 5, "a", [complete().to_dict()]):
        with pytest.raises(ValueError, match=f"expected a dictionary, not {type(other).__name__}"):
            History.from_dict(other)


@pytest.mark.parametrize(
    "changes",
    [
        {"test_loss": [], "test_accuracy": [], "test_accuracy_flips": None},  # tested on nothing
        {"gflops": []},
        {"gflops": [200.0]},  # the rate was asked for when the run was resumed
        {"threads": []},
        {"recipe": Recipe(epochs=2).to_dict()},
        {"seed": -(2**70)},
        {"parameters": 0},
        {"machine": {"continued_on": [{"threads": 1}]}},
        {"train_loss": [0.0, 0]},
        {"train_accuracy": [0, 1]},
    ],
)
def test_what_a_run_may_lack_or_hold_is_read(changes):
    history = replace(complete(), **changes)
    assert History.from_dict(history.to_dict()) == history


def test_a_history_that_is_being_made_is_not_checked():
    history = a_history()
    history.train_loss.append(math.nan)
    assert math.isnan(replace(history, seconds=[-1.0]).train_loss[0])


def test_saving_what_cannot_be_read_leaves_the_old_file_whole(tmp_path, monkeypatch):
    path = a_history(train_loss=[1.0]).save(tmp_path / "run.json")
    before = path.read_bytes()
    for value in (object(), math.nan, -1.0):
        with pytest.raises(ValueError, match=r"run\.json was not written"):
            a_history(train_loss=[value]).save(path)
    monkeypatch.setattr(schema, "MOST_BYTES", 100)
    with pytest.raises(ValueError, match=r"run\.json was not written: it would be larger than 100 bytes"):
        a_history(train_loss=[1.0]).save(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["run.json"]


def long(epochs: int) -> dict:
    """The record of a run of so many epochs."""
    lists = ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "lr", "seconds")
    rest = {"recipe": Recipe(epochs=epochs).to_dict(), "gflops": [], "threads": []}
    return {name: [0.5] * epochs for name in lists} | rest


def json_of(**changes) -> bytes:
    return json.dumps(complete().to_dict() | changes).encode()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (lambda: b"[]", "expected a dictionary"),
        (lambda: b"{", "Expecting"),
        (lambda: b'{"a": 1}', "unknown field 'a'"),
        (lambda: b"", "it is empty"),
        (lambda: b"\xff", "can't decode byte"),
        (lambda: b"[" * 1_000_000, "nested in more than 32 levels"),
        (lambda: b'{"name": "' + b"a" * 100_000_000 + b'"}', "larger than 16,000,000 bytes"),
        (lambda: json_of(**long(1_000_000)), "larger than 16,000,000 bytes"),
        (lambda: json_of(name="a" * 10**7), "name='aaa.*' must be a string"),
        (lambda: json_of(network={"a": [0] * 3_000_000}), "2,000,000 values"),
        (lambda: json_of(recipe={"net": "a" * 10**7}), "in its recipe, net='aaa"),
    ],
)
def test_a_damaged_or_hostile_file_is_refused_by_name_in_a_line(tmp_path, content, said):
    (tmp_path / "other.json").write_bytes(content())
    with pytest.raises(ValueError, match=rf"other\.json is not the record of a run: .*{said}") as caught:
        History.load(tmp_path / "other.json")
    assert len(str(caught.value)) < 1_500
    assert "\n" not in str(caught.value)


def test_a_record_of_a_hundred_thousand_epochs_is_read(tmp_path):
    (tmp_path / "run.json").write_bytes(json_of(**long(100_000)))
    assert History.load(tmp_path / "run.json").epochs == 100_000


def test_a_folder_is_not_the_record_of_a_run(tmp_path):
    (tmp_path / "run.json").mkdir()
    with pytest.raises(ValueError, match=r"run\.json is not the record of a run: it is a folder"):
        History.load(tmp_path / "run.json")


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
