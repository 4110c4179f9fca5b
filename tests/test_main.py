"""The command line: `python -m lab`."""

import functools
import json

import pytest

from lab.__main__ import main
from lab.data import stand_in
from lab.training import History


@pytest.fixture(autouse=True, scope="module")
def made_once():
    """The stand-in, made once for all tests of this file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lab.data.stand_in", functools.cache(stand_in))
        yield


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    status = main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def train(capsys, out, *more: object) -> tuple[int, str, str]:
    arguments = ("train", "--dataset", "stand-in", "--limit", 300, "--epochs", 1, "--out", out, *more)
    return run(capsys, *arguments)


def test_train_ends_with_a_json_line_and_leaves_history_and_weights(capsys, tmp_path):
    status, out, _ = train(capsys, tmp_path, "--seed", 3, "--norm", "layer", "--conv", "dilated")
    summary = json.loads(out.splitlines()[-1])
    assert status == 0
    assert (summary["seed"], summary["epochs"], summary["norm"]) == (3, 1, "layer")
    assert summary["dataset"] == "STAND-IN (not CIFAR-10)"
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".pt"]
    history = History.load(next(tmp_path.glob("*.json")))
    assert history.test_accuracy[-1] == summary["test_accuracy"]
    assert history.parameters == summary["parameters"]
    assert history.dataset == summary["dataset"]


def test_held_out_images_are_not_called_test_images(capsys, tmp_path):
    _, out, _ = train(capsys, tmp_path, "--validation", 100)
    summary = json.loads(out.splitlines()[-1])
    assert "test_accuracy" not in summary
    assert summary["name"] == "default-batch-mixed-held-out-limit-300"
    assert 0 <= summary["validation_accuracy"] <= 1


def test_an_experiment_is_named_as_asked_in_its_files_and_its_record(capsys, tmp_path):
    train(capsys, tmp_path, "--name", "mine", "--dtype", "float32", "--seed", 2)
    history = History.load(tmp_path / "mine-limit-300-seed2.json")
    assert (history.name, history.machine["dtype"]) == ("mine-limit-300", "float32")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--device", "abacus"), "abacus"),
        (("--validation", 300), "300"),
        (("--epochs", 0), "epochs=0"),
        (("--dataset", "cifar10", "--root", "nowhere"), "CIFAR10_ROOT"),
    ],
)
def test_bad_input_is_an_error_line_and_status_2(capsys, tmp_path, monkeypatch, arguments, told):
    def refuse(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("lab.data.CIFAR10.download", refuse)
    status, _, err = train(capsys, tmp_path, *arguments)
    assert status == 2
    assert "error:" in err
    assert told in err


def test_unknown_names_list_the_choices(capsys, tmp_path):
    with pytest.raises(SystemExit):
        train(capsys, tmp_path, "--norm", "spectral")
    assert "instance" in capsys.readouterr().err


def test_report_prints_the_table_of_a_folder(capsys, tmp_path):
    train(capsys, tmp_path)
    status, out, _ = run(capsys, "report", tmp_path)
    assert status == 0
    assert "| default-batch-mixed-limit-300 | STAND-IN (not CIFAR-10) |" in out


def test_report_prints_the_figures_of_the_benchmark_too(capsys, tmp_path, monkeypatch):
    train(capsys, tmp_path)
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "abacus.json").write_text('{"machine": "abacus"}')
    monkeypatch.setattr("lab.bench.markdown", lambda result: f"measured on {result['machine']}")
    assert run(capsys, "report", tmp_path)[1].endswith("\n\nmeasured on abacus\n")
