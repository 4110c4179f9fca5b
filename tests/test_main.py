"""The command line: `python -m lab`."""

import dataclasses
import functools
import json
import re
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from lab.commands import main
from lab.data import STAND_IN_CLASSES, load_dataset, loaders_from, stand_in
from lab.download import DownloadFailed
from lab.experiment import ABLATIONS, PREPROCESSING, Experiment
from lab.grid import Family, Study, carry_out
from lab.interrupts import Interrupted, Terminated
from lab.recipes import RECIPES, Recipe
from lab.records import History
from lab.report import assess
from model import Net

HERE = Path(__file__).resolve().parent.parent
BENCH = HERE / "results" / "bench"


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


def test_help_shows_defaults_that_say_something(capsys):
    with pytest.raises(SystemExit):
        run(capsys, "train", "--help")
    shown = capsys.readouterr().out
    assert "(default: runs)" in shown
    assert "(default: None)" not in shown


def test_held_out_images_are_not_called_test_images(capsys, tmp_path):
    _, out, _ = train(capsys, tmp_path, "--validation", 100)
    summary = json.loads(out.splitlines()[-1])
    assert "test_accuracy" not in summary
    assert summary["name"] == "default-batch-mixed-held-out-100-limit-300"
    assert 0 <= summary["validation_accuracy"] <= 1


def test_an_experiment_is_named_as_asked_in_its_files_and_its_record(capsys, tmp_path):
    train(capsys, tmp_path, "--name", "mine", "--dtype", "float32", "--seed", 2)
    history = History.load(tmp_path / "mine-limit-300-seed2.json")
    assert (history.name, history.machine["dtype"], history.seed) == ("mine-limit-300", "float32", 2)


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
    def refuse(place, source):
        raise DownloadFailed("no network")

    monkeypatch.setattr("lab.data.download", refuse)
    monkeypatch.delenv("CIFAR10_ROOT", raising=False)
    monkeypatch.chdir(tmp_path)
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
        assert history.validation_accuracy == [accuracy]
        assert history.test_accuracy == []


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
    assert net.metadata == history.to_dict()


def test_evaluate_of_another_data_set_than_that_of_the_training_warns(capsys):
    status, out, err = run(capsys, "evaluate", "minute", "--dataset", "stand-in")
    assert status == 0
    assert "STAND-IN" in json.loads(out.splitlines()[-1])["dataset"]
    assert "the figures say nothing" in err


@pytest.mark.parametrize(
    ("name", "told"),
    [("frontiers", "'minute'"), ("nowhere.pt", "'minute'"), ("README.md", "README.md is not")],
)
def test_evaluate_of_an_unknown_name_or_file_is_an_error_line_and_status_2(capsys, name, told):
    status, _, err = run(capsys, "evaluate", name)
    assert status == 2
    assert told in err


def test_evaluate_of_weights_that_are_not_finite_is_an_error_line_and_status_2(capsys, tmp_path):
    net = Net(width=0.25)
    net.preprocessing, net.classes = PREPROCESSING, STAND_IN_CLASSES
    path = net.save(tmp_path / "net.pt")
    content = torch.load(path, weights_only=True)
    content["state"]["c3.0.conv.weight"][0] = float("nan")
    torch.save(content, path)
    status, out, err = run(capsys, "evaluate", path, "--dataset", "stand-in")
    assert (status, out) == (2, "")
    assert err.startswith(f"error: {path} ")
    assert "c3.0.conv.weight holds NaN or infinite numbers" in err


def test_evaluate_compares_the_classes_and_not_the_kind_of_their_sequence(capsys, tmp_path):
    net = Net(width=0.25)
    net.preprocessing, net.classes = PREPROCESSING, [*STAND_IN_CLASSES]
    status, _, err = run(capsys, "evaluate", net.save(tmp_path / "net.pt"), "--dataset", "stand-in")
    assert status == 0
    assert "say nothing" not in err


@pytest.fixture
def patterns(tmp_path) -> Path:
    """A folder of 30 PNGs in three classes, in train and test."""
    data = stand_in(60, 30)
    place = tmp_path / "patterns"
    for part, images, labels in (
        ("train", data.train_images, data.train_labels),
        ("test", data.test_images, data.test_labels),
    ):
        for number in (labels < 3).nonzero().flatten().tolist():
            path = place / part / "abc"[labels[number]] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images[number].permute(1, 2, 0).numpy()).save(path)
    return place


def test_a_folder_of_pictures_is_trained_on_evaluated_and_predicted(capsys, tmp_path, patterns):
    out = tmp_path / "out"
    dataset = ("--dataset", f"folder:{patterns}")
    status, printed, _ = run(capsys, "train", *dataset, "--epochs", 1, "--out", out, "--dtype", "float32")
    summary = json.loads(printed.splitlines()[-1])
    assert status == 0
    assert (summary["name"], summary["dataset"]) == ("default-batch-mixed-patterns", "folder patterns")
    path = out / "default-batch-mixed-patterns-seed0.pt"
    status, printed, err = run(capsys, "evaluate", path, *dataset)
    assert (status, err) == (0, "")
    assert json.loads(printed.splitlines()[-1])["test_accuracy"] == summary["test_accuracy"]
    assert [line.split()[0] for line in printed.splitlines()[:4]] == ["a", "b", "c", "all"]
    status, printed, _ = run(capsys, "predict", next(patterns.rglob("*.png")), "--name", path)
    (found,) = json.loads(printed.splitlines()[-1])["pictures"]
    assert sorted(each["label"] for each in found["predictions"]) == ["a", "b", "c"]


def test_a_network_with_fewer_classes_than_the_data_set_is_not_evaluated_on_it(capsys, tmp_path, patterns):
    net = Net(width=0.25, num_classes=2)
    net.preprocessing, net.classes = PREPROCESSING, ("a", "b")
    path = net.save(tmp_path / "net.pt")
    status, out, err = run(capsys, "evaluate", path, "--dataset", f"folder:{patterns}")
    assert (status, out) == (2, "")
    assert err == f"error: {path} tells 2 classes apart, and folder patterns has 3\n"


def test_an_unknown_data_set_or_folder_is_an_error_with_the_choices(capsys, tmp_path):
    with pytest.raises(SystemExit) as stopped:
        train(capsys, tmp_path, "--dataset", "mnist")
    assert stopped.value.code == 2
    assert "unknown dataset 'mnist'; choose one of 'auto', 'cifar10', 'cifar100'" in capsys.readouterr().err
    status, _, err = train(capsys, tmp_path, "--dataset", f"folder:{tmp_path / 'nowhere'}")
    assert (status, err) == (2, f"error: {tmp_path / 'nowhere'} is missing: expected a folder of pictures\n")


@pytest.fixture
def pictures(tmp_path) -> list[Path]:
    paths = [tmp_path / "one.png", tmp_path / "two.jpg"]
    for path, colour in zip(paths, [(200, 90, 10), (0, 60, 200)], strict=True):
        Image.new("RGB", (50, 40), colour).save(path)
    return paths


def test_predict_averages_flips_if_it_is_asked_to(capsys, pictures):
    net, (path, *_) = Net.from_pretrained("frontier"), pictures
    for options, expected in (
        (("--flips",), net.likeliest(path, flips=True)),
        (("--flips", "--sure", "0"), net.likeliest(path)),
    ):
        status, out, _ = run(capsys, "predict", path, *options)
        found = json.loads(out.splitlines()[-1])["pictures"][0]["predictions"]
        assert (status, [tuple(each.values()) for each in found]) == (0, expected)
    assert run(capsys, "predict", path, "--flips", "--sure", "2")[0] == 2


def test_predict_prints_the_likeliest_classes_of_each_file_and_ends_with_a_json_line(capsys, pictures):
    status, out, err = run(capsys, "predict", *pictures)
    *lines, last = out.splitlines()
    assert (status, err) == (0, "")
    summary = json.loads(last)
    assert summary["name"] == "frontier"
    net = Net.from_pretrained("frontier")
    expected = []
    for path, found in zip(pictures, summary["pictures"], strict=True):
        likeliest = net.likeliest(path, 3)
        assert found["file"] == str(path)
        assert [tuple(each.values()) for each in found["predictions"]] == likeliest
        expected += [str(path), *(f"  {label:<16} {100 * share:7.2f}%" for label, share in likeliest)]
    assert lines == expected


def test_predict_takes_any_network_and_any_number_of_classes(capsys, tmp_path, pictures):
    net = Net(width=0.25, num_classes=2)
    net.preprocessing, net.classes = PREPROCESSING, ("cat", "dog")
    path = net.save(tmp_path / "net.pt")
    for count, least in ((1, 1), (2, 2), (7, 2)):
        status, out, _ = run(capsys, "predict", pictures[0], "--name", path, "--count", count)
        (found,) = json.loads(out.splitlines()[-1])["pictures"]
        assert (status, len(found["predictions"])) == (0, least)
    assert json.loads(out.splitlines()[-1])["name"] == str(path)
    status, out, _ = run(capsys, "predict", *pictures, "--name", "minute", "--count", 10)
    (found, _) = json.loads(out.splitlines()[-1])["pictures"]
    assert sum(each["confidence"] for each in found["predictions"]) == pytest.approx(1)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("missing.png",), "missing.png is missing"),
        (("text.png",), "text.png is not an image, or of a kind that Pillow cannot read"),
        ((".",), ". is not a file"),
        (("--count", 0), "count=0 must be an integer of at least 1"),
        (("--name", "backyard"), "'backyard' is neither a file nor one of the names 'batch-norm-muon', "),
        (("--name", "text.png"), "text.png is not a file that Net.save wrote"),
    ],
)
def test_a_picture_or_network_that_cannot_be_used_is_an_error_line_and_status_2(
    capsys, tmp_path, monkeypatch, pictures, more, told
):
    monkeypatch.chdir(tmp_path)
    Path("text.png").write_text("no picture")
    status, _, err = run(capsys, "predict", pictures[0], *more)
    assert status == 2
    assert err.startswith(f"error: {told}")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("content", ["{", '{"a": 1}', "[]"])
def test_report_names_a_file_that_is_no_record(capsys, tmp_path, content):
    (tmp_path / "other.json").write_text(content)
    status, _, err = run(capsys, "report", tmp_path)
    assert status == 2
    assert "other.json is not the record of a run" in err


def loop(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(path.name)


def nested(path: Path) -> None:
    path.unlink(missing_ok=True)
    if path.suffix == ".json":
        path.write_bytes(b"[" * 100_000)
    else:
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("archive/data.pkl", b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".")


@pytest.mark.parametrize("spoil", [loop, nested])
@pytest.mark.parametrize("ending", [".json", ".pt", ".checkpoint"])
def test_a_loop_of_links_and_what_is_nested_too_deeply_are_an_error_line(capsys, tmp_path, spoil, ending):
    path = tmp_path / f"mine-limit-300-seed0{ending}"
    spoil(path)
    if ending == ".checkpoint":
        status, out, err = train(capsys, tmp_path, "--name", "mine")
    else:
        command = ("report", tmp_path) if ending == ".json" else ("evaluate", path)
        status, out, err = run(capsys, *command)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert str(path) in err
    assert len(err.splitlines()) == 1
    assert len(err) < 1000


def test_a_data_folder_that_is_a_loop_of_links_is_an_error_that_names_it(capsys, tmp_path, monkeypatch):
    monkeypatch.delenv("CIFAR10_ROOT", raising=False)
    monkeypatch.chdir(tmp_path)
    loop(tmp_path / "root")
    status, _, err = run(capsys, "evaluate", "minute", "--dataset", "cifar10", "--root", tmp_path / "root")
    assert status == 2
    assert f"{tmp_path / 'root'}" in err
    assert "symbolic links" in err
    assert "Traceback" not in err


def test_report_prints_the_table_of_a_folder(capsys, tmp_path):
    train(capsys, tmp_path)
    status, out, _ = run(capsys, "report", tmp_path)
    assert status == 0
    assert "| default-batch-mixed-limit-300 | STAND-IN (not CIFAR-10) |" in out


def test_report_prints_the_figures_of_the_benchmark_too(capsys, tmp_path, monkeypatch):
    train(capsys, tmp_path)
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "abacus.json").write_text('{"machine": "abacus"}')
    monkeypatch.setattr("lab.report.bench_markdown", lambda results: f"measured on {results[-1]['machine']}")
    assert run(capsys, "report", tmp_path)[1].endswith("\n\nmeasured on abacus\n")


@pytest.mark.parametrize(("reader", "lines"), [("head -1", 1), ("true", 0)])
def test_report_ends_quietly_when_its_reader_has_seen_enough(reader, lines):
    command = f"{sys.executable} -m lab report | {reader}"
    ended = subprocess.run(command, shell=True, cwd=HERE, capture_output=True, text=True)
    assert len(ended.stdout.splitlines()) == lines
    assert (ended.returncode, ended.stderr) == (0, "")


def test_the_benchmark_writes_to_a_folder_that_report_reads_and_nothing_tracked(
    capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    train(capsys, "runs")
    monkeypatch.setattr("lab.bench.bench", lambda *_: json.loads(next(BENCH.glob("*.json")).read_text()))
    assert run(capsys, "bench", "--quick")[0] == 0
    assert run(capsys, "bench")[0] == 0
    names = {path.name for path in (tmp_path / "runs" / "bench").iterdir()}
    assert {"bench.png", "bench-quick.png"} < names
    (tmp_path / "runs" / "bench" / "cpu-quick.json").write_text("{}")  # says nothing about the machine
    status, out, _ = run(capsys, "report", "runs")
    assert status == 0
    assert "default-batch-mixed-limit-300" in out
    assert out.count("matrix product in float32") == 1


@pytest.mark.parametrize("option", ["--out", "--images"])
def test_a_folder_that_takes_no_file_is_found_out_before_the_benchmark(capsys, tmp_path, monkeypatch, option):
    monkeypatch.setattr("lab.bench.bench", lambda *_: pytest.fail("it has begun to measure"))
    (tmp_path / "file").touch()
    folders = {"--out": tmp_path / "out", "--images": tmp_path / "images"} | {option: tmp_path / "file"}
    status, _, err = run(capsys, "bench", *sum(folders.items(), ()))
    assert status == 2
    assert err == f"error: {tmp_path / 'file'} cannot be written: File exists\n"


@pytest.mark.parametrize("command", ["train", "ladder", "ablate"])
def test_a_folder_that_takes_no_file_is_found_out_before_the_training(capsys, tmp_path, monkeypatch, command):
    monkeypatch.setattr("lab.experiment.fit", lambda *_, **__: pytest.fail("it has begun to train"))
    monkeypatch.setattr("lab.commands.load_dataset", lambda *_: load_dataset("stand-in"))
    (tmp_path / "file").touch()
    more = () if command == "ladder" else ("--dataset", "stand-in", "--limit", 100)
    more += ("--validation", 50) if command == "ablate" else ()
    status, _, err = run(capsys, command, "--out", tmp_path / "file", *more)
    assert status == 2
    assert f"{tmp_path / 'file'} is not a folder" in err


def test_several_seeds_give_a_line_each(capsys, tmp_path):
    status, out, _ = train(capsys, tmp_path, "--seed", 3, 4, "--threads", 1)
    assert status == 0
    assert [json.loads(line)["seed"] for line in out.splitlines()] == [3, 4]
    assert {path.stem[-1] for path in tmp_path.iterdir()} == {"3", "4"}
    assert History.load(next(tmp_path.glob("*seed3.json"))).machine["threads"] == 1


def test_the_ladder_trains_its_runs_one_after_another_and_prints_the_table(capsys, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("lab.commands.load_dataset", lambda *arguments: arguments)
    monkeypatch.setattr(
        "lab.commands.run_all", lambda experiments, out, **options: asked.append((experiments, out, options))
    )
    monkeypatch.setattr("lab.commands.ladder_table", lambda histories: "the table")
    assert run(capsys, "ladder", "--only", "minute", "--out", tmp_path) == (0, "the table\n", "")
    ((experiments, out, options),) = asked
    assert [(each.label, each.seed) for each in experiments] == [("minute-batch-mixed", n) for n in range(5)]
    assert out == tmp_path
    assert options == {"data": ("cifar10", None), "device": None, "threads": None}


def test_the_ladder_passes_format_and_threads_on(capsys, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("lab.commands.load_dataset", lambda *arguments: arguments)
    monkeypatch.setattr(
        "lab.commands.run_all",
        lambda experiments, out, **options: asked.append((experiments[0].dtype, options["threads"])),
    )
    monkeypatch.setattr("lab.commands.ladder_table", lambda histories: "the table")
    run(capsys, "ladder", "--only", "minute", "--out", tmp_path, "--dtype", "float32", "--threads", 1)
    assert asked == [("float32", 1)]


@pytest.mark.parametrize(
    ("stop", "told", "expected"),
    [
        (KeyboardInterrupt(), "stopped", 130),
        (KeyboardInterrupt("one stopped after 1 of 2 epochs"), "one stopped after 1 of 2 epochs", 130),
        (Interrupted("one stopped", History("one", "", 1, {}, 0, {}), signal.SIGTERM), "one stopped", 143),
        (Terminated("stopped"), "stopped", 143),
    ],
)
def test_what_is_stopped_ends_with_a_line_and_the_status_of_the_signal(
    capsys, monkeypatch, stop, told, expected
):
    def stopped(*arguments, **options):
        raise stop

    monkeypatch.setattr("lab.commands.report_folder", stopped)
    assert run(capsys, "report") == (expected, "", f"\n{told}\n")


def test_publish_sets_the_address_given(capsys, monkeypatch):
    monkeypatch.setattr("lab.publish.publish", lambda address: print(f"README.md: {address}"))
    assert run(capsys, "publish", "OWNER/NAME") == (0, "README.md: OWNER/NAME\n", "")


# ---- Studies ---------------------------------------------------------------------------------------


def a_small_study(monkeypatch) -> Study:
    recipe = Recipe(epochs=1, batch_size=64, lr=0.1, net={"width": 0.25})
    arms = [Experiment(norm, recipe, norm=norm, dataset="stand-in", limit=128) for norm in ("batch", "group")]
    families = [Family("norms", (("batch", "group"),))]
    study = Study("small", "Which norm?", arms, families, seeds=1, more_seeds=0, held_out=50)
    monkeypatch.setattr("lab.commands.STUDIES", {"small": study})
    return study


def test_a_study_is_trained_once_and_its_tables_are_printed_and_written(capsys, tmp_path, monkeypatch):
    a_small_study(monkeypatch)
    asked = (
        "study",
        "small",
        "--processes",
        1,
        "--out",
        tmp_path,
        "--csv",
        tmp_path / "csv",
        "--device",
        "cpu",
    )
    status, out, error = run(capsys, *asked)
    assert status == 0
    assert "small: Which norm?" in out
    assert re.search(r"batch minus group +norms +[+-]\d+\.\d +1 +interval not known", out)
    assert "runs can be trained now" in error
    assert sorted(path.name for path in (tmp_path / "csv").iterdir()) == [
        "small-differences.csv",
        "small.csv",
    ]
    status, again, error = run(capsys, *asked)
    assert (status, again, error) == (0, out, "")
    status, out, _ = run(capsys, "findings", tmp_path, "--write")
    assert "batch minus group: " in out
    assert "## small" in (tmp_path / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("again", [False, True])
def test_what_is_published_is_trained_again_only_when_asked(capsys, tmp_path, monkeypatch, again):
    study = a_small_study(monkeypatch)
    published = tmp_path / "published"
    carry_out([study], published, device="cpu", progress=False)
    monkeypatch.setattr("lab.commands.PUBLISHED", published)
    out = tmp_path / "out"
    asked = ("study", "small", "--processes", 1, "--out", out, "--device", "cpu")
    assert run(capsys, *asked, *(["--again"] if again else []))[0] == 0
    records = [path.name for path in out.glob("*.json")]
    assert sorted(records) == (sorted(path.name for path in published.glob("*.json")) if again else [])


def test_a_study_that_is_unknown_and_a_folder_that_is_none_are_errors(capsys, tmp_path):
    with pytest.raises(SystemExit):
        run(capsys, "study", "nothing")
    assert "'nothing' (choose from" in capsys.readouterr().err
    status, _, error = run(capsys, "findings", tmp_path / "none")
    assert (status, error) == (
        2,
        f"error: {tmp_path / 'none'} is not a folder; give one with records (*.json)\n",
    )
