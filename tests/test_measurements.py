"""lab/measurements.py: what is kept beside the records of a study."""

import numpy as np
import pytest

from lab.data import stand_in
from lab.experiment import Experiment
from lab.grid import Records, Study, carry_out
from lab.maps import Inside, inside
from lab.measurements import INSIDE, LOOKED_AT, Labels, Measurements, look_inside, save_looks
from lab.recipes import Recipe
from model import Net


def test_an_empty_folder_has_no_measurements(tmp_path):
    assert Measurements.load(tmp_path) == Measurements(None, None, {})


def test_labels_are_read_as_they_were_written(tmp_path):
    labels = Labels(("cat", "dog"), np.array([1, 0, 1]))
    read = Labels.load(labels.save(tmp_path / "new" / "labels.json"))
    assert (read.classes, read.labels.tolist()) == (("cat", "dog"), [1, 0, 1])
    assert Labels.load(tmp_path / "none.json") is None
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(ValueError, match=r"bad.json does not hold the labels"):
        Labels.load(tmp_path / "bad.json")


def test_networks_of_finished_runs_are_looked_at_and_the_looks_are_kept(tmp_path):
    recipe = Recipe(epochs=1, batch_size=64, lr=0.1, net={"width": 0.25})
    arm = Experiment("a", recipe, dataset="stand-in", limit=128)
    study = Study("mine", "?", [arm], seeds=1, more_seeds=0, held_out=50)
    records = carry_out([study], tmp_path, device="cpu", dtype="float32", progress=False)
    data = stand_in(200, 1_200)
    found = look_inside([study], records, tmp_path, data)
    net = Net.load(tmp_path / "a-limit-128-seed0.pt")
    assert found == {"a-limit-128-seed0": inside(net, net.transform(data.test_images[:LOOKED_AT]))}
    save_looks(found, tmp_path)
    assert Measurements.load(tmp_path).inside == found
    assert look_inside([study], Records(tmp_path), tmp_path / "none", data) == {}
    # A run whose file is not at hand keeps what was seen of it; of other runs nothing is kept.
    earlier = {"a-limit-128-seed0": Inside(1, 2, 0.5), "of no study": Inside(3, 4, 0.5)}
    kept = {"a-limit-128-seed0": Inside(1, 2, 0.5)}
    assert look_inside([study], records, tmp_path / "none", data, earlier) == kept
    assert look_inside([study], records, tmp_path, data, earlier) == found


def test_a_file_with_other_looks_is_named(tmp_path):
    save_looks({"a": Inside(1, 2, 0.5)}, tmp_path)
    (tmp_path / INSIDE).write_text('{"a": {"maps": 3}}')
    with pytest.raises(ValueError, match=r"inside.json does not hold looks inside networks"):
        Measurements.load(tmp_path)
