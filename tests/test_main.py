"""The command line: `python -m lab`."""

import dataclasses
import functools
import json

import pytest
import torch

from lab.__main__ import main
from lab.data import STAND_IN_CLASSES, load_dataset, loaders_from, stand_in
from lab.recipes import ABLATIONS, RECIPES
from lab.training import History, distilled, fit
from lab.weights import PREPROCESSING, assess
from model import Net


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
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".checkpoint", ".json", ".pt"]
    history = History.load(next(tmp_path.glob("*.json")))
    assert history.test_accuracy[-1] == summary["test_accuracy"]
    assert history.parameters == summary["parameters"]
    assert history.dataset == summary["dataset"]


def test_held_out_images_are_not_called_test_images(capsys, tmp_path):
    _, out, _ = train(capsys, tmp_path, "--validation", 100)
    summary = json.loads(out.splitlines()[-1])
    assert "test_accuracy" not in summary
    assert summary["name"] == "default-batch-mixed-held-out-100-limit-300"
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


def test_a_finished_run_is_not_trained_again_nor_replaced_by_another(capsys, tmp_path, monkeypatch):
    _, out, _ = train(capsys, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr("lab.training.train", None)
        assert train(capsys, tmp_path)[1].splitlines()[-1] == out.splitlines()[-1]
    status, _, err = train(capsys, tmp_path, "--epochs", 2)
    assert status == 2
    assert "{'epochs': 1}, not {'epochs': 2}" in err
    assert "--fresh" in err
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    status, out, _ = train(capsys, tmp_path, "--epochs", 2, "--fresh")
    assert status == 0
    assert json.loads(out.splitlines()[-1])["epochs"] == 2


def test_unknown_names_list_the_choices(capsys, tmp_path):
    with pytest.raises(SystemExit):
        train(capsys, tmp_path, "--norm", "spectral")
    assert "instance" in capsys.readouterr().err


@pytest.fixture
def taught(monkeypatch):
    """The recipe `default`, which learns from a teacher of one epoch meanwhile."""
    teacher = dataclasses.replace(RECIPES["default"], epochs=1)
    recipe = dataclasses.replace(RECIPES["default"], teacher=teacher, temperature=2.0)
    monkeypatch.setitem(RECIPES, "default", recipe)
    monkeypatch.setitem(RECIPES, "teacher", teacher)
    return recipe


def test_a_teacher_is_trained_once_and_teaches_every_seed(capsys, tmp_path, taught):
    status, out, _ = train(capsys, tmp_path, "--norm", "group", "--seed", 1)
    assert status == 0
    assert json.loads(out.splitlines()[-1])["seed"] == 1
    path = tmp_path / "teacher-batch-mixed-limit-300-seed0.pt"
    assert Net.load(path).metadata["recipe"] == taught.teacher.to_dict()
    written = path.stat().st_mtime_ns
    train(capsys, tmp_path, "--norm", "group", "--seed", 2)
    assert path.stat().st_mtime_ns == written
    assert len([*tmp_path.glob("teacher*.pt")]) == 1


def test_a_run_learns_the_probabilities_of_its_teacher_at_its_temperature(
    capsys, tmp_path, monkeypatch, taught
):
    learned = {}

    def watched(net, loader, test_loader, recipe, **options):
        learned[options["name"]] = loader
        return fit(net, loader, test_loader, recipe, **options)

    monkeypatch.setattr("lab.__main__.fit", watched)
    train(capsys, tmp_path, "--dtype", "float32")
    teacher = Net.load(tmp_path / "teacher-batch-mixed-limit-300-seed0.pt")
    plain = learned["teacher-batch-mixed-limit-300"]
    expected = distilled(plain, teacher, 2.0, device="cpu", dtype=torch.float32).labels.cpu()
    found = learned["default-batch-mixed-limit-300"].labels.cpu()
    torch.testing.assert_close(found, expected)
    assert (expected - 0.1).abs().max() > 0.01


def test_the_published_teacher_is_taken_where_it_fits_and_none_is_in_the_folder(
    capsys, tmp_path, monkeypatch, taught
):
    published, own, other = (tmp_path / name for name in ("published", "own", "other"))
    train(capsys, published)
    monkeypatch.setattr("lab.__main__.PUBLISHED", published)
    path = next(published.glob("teacher*.pt"))
    for out, expected in ((published, path), (own, path)):
        status, _, err = train(capsys, out, "--seed", 1)
        assert status == 0
        assert f"learning from {expected}" in err
    assert not [*own.glob("teacher*")]
    longer = dataclasses.replace(taught, teacher=dataclasses.replace(taught.teacher, lr=0.01))
    with monkeypatch.context() as patch:
        patch.setattr("lab.__main__.PUBLISHED", tmp_path)
        patch.setitem(RECIPES, "default", longer)
        train(capsys, own, "--name", "longer")
    before = {path: path.read_bytes() for path in own.glob("teacher*")}
    status, _, err = train(capsys, own, "--seed", 2)
    assert status == 0
    assert f"learning from {path}" in err
    assert {path: path.read_bytes() for path in own.glob("teacher*")} == before
    monkeypatch.setitem(RECIPES, "default", longer)
    status, _, err = train(capsys, other)
    assert status == 0
    assert f"learning from {other / path.name}" in err


def test_a_teacher_has_not_seen_the_images_that_are_held_out(capsys, tmp_path, taught):
    for held_out, seed in ((50, 0), (100, 0), (100, 1)):
        train(capsys, tmp_path, "--validation", held_out, "--seed", seed)
    assert {path.stem for path in tmp_path.glob("teacher*.pt")} == {
        "teacher-batch-mixed-held-out-50-limit-300-seed0",
        "teacher-batch-mixed-held-out-100-limit-300-seed0",
        "teacher-batch-mixed-held-out-100-limit-300-seed1",
    }


def test_the_teacher_of_another_recipe_or_data_set_is_refused(capsys, tmp_path, monkeypatch, taught):
    train(capsys, tmp_path)
    other = dataclasses.replace(taught, teacher=dataclasses.replace(taught.teacher, lr=0.01))
    monkeypatch.setitem(RECIPES, "default", other)
    status, _, err = train(capsys, tmp_path)
    assert status == 2
    assert "teacher-batch-mixed-limit-300-seed0.pt is of recipe {'lr': 0.12}, not {'lr': 0.01}" in err
    monkeypatch.setitem(RECIPES, "default", taught)
    monkeypatch.setattr(
        "lab.data.stand_in", functools.cache(lambda: dataclasses.replace(stand_in(), name="X"))
    )
    status, _, err = train(capsys, tmp_path)
    assert status == 2
    assert "dataset" in err


def ablate(capsys, out, *more: object) -> tuple[int, str, str]:
    arguments = ("ablate", "--dataset", "stand-in", "--limit", 300, "--validation", 100, "--epochs", 1)
    return run(capsys, *arguments, "--out", out, "--only", "labels", "sgd", *more)


def test_ablate_changes_one_thing_at_a_time_on_held_out_images(capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(RECIPES, "frontier-small", RECIPES["default"])
    status, out, _ = ablate(capsys, tmp_path, "--recipe", "frontier-small")
    assert status == 0
    summary = json.loads(out.splitlines()[-1])
    assert (summary["recipe"], summary["epochs"], summary["validation"]) == ("frontier-small", 1, 100)
    assert [*summary["validation_accuracy"]] == ["labels", "sgd"]
    for change, accuracy in summary["validation_accuracy"].items():
        run_name = f"frontier-small-1-epochs-{change}-held-out-100-limit-300"
        history = History.load(tmp_path / f"{run_name}-seed0.json")
        expected = ABLATIONS[change](dataclasses.replace(RECIPES["default"], epochs=1))
        assert history.recipe == expected.to_dict()
        assert history.test_accuracy == [accuracy]
        assert history.evaluated_on == "validation"


def test_ablate_shortens_the_teacher_and_takes_no_other_for_it(capsys, tmp_path, monkeypatch, taught):
    monkeypatch.setitem(RECIPES, "frontier", dataclasses.replace(taught, epochs=3))
    monkeypatch.setitem(RECIPES, "teacher", dataclasses.replace(taught.teacher, epochs=2))
    arguments = ("ablate", "--dataset", "stand-in", "--limit", 300, "--validation", 100, "--epochs", 1)
    status, _, _ = run(capsys, *arguments, "--out", tmp_path, "--only", "teacher")
    assert status == 0
    path = tmp_path / "teacher-1-epochs-batch-mixed-held-out-100-limit-300-seed0.pt"
    assert Net.load(path).metadata["recipe"] == taught.teacher.to_dict()


def test_ablate_trains_nothing_twice_and_takes_no_other_run_for_its_own(capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(RECIPES, "frontier", RECIPES["default"])
    _, out, _ = ablate(capsys, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("lab.training.train", None)
        assert ablate(capsys, tmp_path)[1].splitlines()[-1] == out.splitlines()[-1]
    monkeypatch.setitem(RECIPES, "frontier", dataclasses.replace(RECIPES["default"], lr=0.01))
    status, _, err = ablate(capsys, tmp_path)
    assert status == 2
    assert "recipe" in err


def test_ablate_does_not_choose_on_test_images(capsys, tmp_path):
    status, _, err = ablate(capsys, tmp_path, "--validation", 0)
    assert status == 2
    assert "validation=0" in err
    assert not list(tmp_path.iterdir())


def test_evaluate_prints_every_class_and_ends_with_a_json_line(capsys, tmp_path):
    _, trained, _ = train(capsys, tmp_path, "--dtype", "float32")
    (path,) = tmp_path.glob("*.pt")
    status, out, _ = run(capsys, "evaluate", path, "--dataset", "stand-in")
    summary = json.loads(out.splitlines()[-1])
    assert status == 0
    assert summary["name"] == str(path)
    assert summary["dataset"] == "STAND-IN (not CIFAR-10)"
    assert summary["parameters"] == json.loads(trained.splitlines()[-1])["parameters"]
    shares = dict(line.rsplit(maxsplit=1) for line in out.splitlines() if line.endswith("%"))
    classes = [float(shares[name].rstrip("%")) for name in STAND_IN_CLASSES]
    assert float(shares["all"].rstrip("%")) == pytest.approx(100 * summary["test_accuracy"], abs=0.005)
    assert sum(classes) / 10 == pytest.approx(100 * summary["test_accuracy"], abs=0.01)


def test_what_train_left_does_on_its_test_images_what_its_record_says(capsys, tmp_path):
    train(capsys, tmp_path, "--dtype", "float32", "--norm", "group")
    net = Net.load(next(tmp_path.glob("*.pt")))
    (history,) = [History.load(path) for path in tmp_path.glob("*.json")]
    _, loader = loaders_from(load_dataset("stand-in"), limit=300, device="cpu")
    found = assess(net, loader.images, loader.labels, loader.classes)
    assert (found.accuracy, found.accuracy_flips) == pytest.approx(
        (history.test_accuracy[-1], history.test_accuracy_flips), abs=0.004
    )
    assert net.metadata == dataclasses.asdict(history)


def test_evaluate_of_another_data_set_than_that_of_the_training_warns(capsys):
    status, out, err = run(capsys, "evaluate", "minute", "--dataset", "stand-in")
    assert status == 0
    assert "STAND-IN" in json.loads(out.splitlines()[-1])["dataset"]
    assert "says nothing" in err


@pytest.mark.parametrize(
    ("name", "told"),
    [("frontiers", "'minute'"), ("nowhere.pt", "'minute'"), ("README.md", "no file that Net.save wrote")],
)
def test_evaluate_of_an_unknown_name_or_file_is_an_error_line_and_status_2(capsys, name, told):
    status, _, err = run(capsys, "evaluate", name)
    assert status == 2
    assert told in err


def test_evaluate_compares_the_classes_and_not_the_kind_of_their_sequence(capsys, tmp_path):
    net = Net(width=0.25)
    net.preprocessing, net.classes = PREPROCESSING, [*STAND_IN_CLASSES]
    status, _, err = run(capsys, "evaluate", net.save(tmp_path / "net.pt"), "--dataset", "stand-in")
    assert status == 0
    assert "says nothing" not in err


@pytest.mark.parametrize("content", ["{", '{"a": 1}', "[]"])
def test_report_names_a_file_that_is_no_record(capsys, tmp_path, content):
    (tmp_path / "other.json").write_text(content)
    status, _, err = run(capsys, "report", tmp_path)
    assert status == 2
    assert "other.json is no record of a run" in err


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
