"""lab/formats.py: the check that the chosen format is the fastest."""

import json

import pytest

from lab import formats
from lab.commands import main
from lab.recipes import COMPARED, RECIPES
from model import NORMS, Net

RESULT = {
    "networks": {
        "a": {"chosen": "x", "seconds": {"x": [2.0, 9.0, 2.0], "y": [1.0, 1.0, 5.0]}},
        "b": {"chosen": "y", "seconds": {"x": [2.0, 2.0, 2.0], "y": [1.0, 1.0, 5.0]}},
    }
}


def test_the_worst_ratio_is_that_of_medians_to_the_best():
    assert formats.worst(RESULT) == 2.0
    assert formats.worst({"networks": {"b": RESULT["networks"]["b"]}}) == 1.0


def test_every_pair_and_every_recipe_is_measured():
    found = formats.networks()
    assert {name for name in found if ", " in name} == {
        f"{norm}, {conv}" for norm in NORMS for conv in COMPARED
    }
    assert {name for name in found if ", " not in name} == {name for name in RECIPES if RECIPES[name].net}
    Net(**found["layer, dilated"])


def test_the_command_prints_a_table_and_the_worst_and_leaves_a_file(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "networks", lambda: {"tiny": {"width": 0.25}, "other": {}})
    measure = formats.measure
    monkeypatch.setattr(formats, "measure", lambda *a, **o: measure(*a, **o, batch_size=4, rounds=1))
    assert main(["formats", "--only", "tiny", "--out", str(tmp_path), "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (path,) = tmp_path.glob("*.json")
    result = json.loads(path.read_text())
    assert [*result["networks"]] == ["tiny"]
    assert len(result["networks"]["tiny"]["seconds"]) == 4
    assert json.loads(lines[-1]) == {"worst": formats.worst(result)}
    assert lines[:-1] == str(formats.table(result)).splitlines()


def test_an_unknown_network_is_an_error_with_the_choices(capsys, tmp_path):
    assert main(["formats", "--only", "nothing", "--out", str(tmp_path)]) == 2
    assert "unknown networks ['nothing']; choose from 'batch, standard'" in capsys.readouterr().err
    with pytest.raises(ValueError, match="unknown networks"):
        formats.only(["x"])
