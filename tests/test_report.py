"""What is printed: tables of results, the card of the trained weights, and the benchmark's figures."""

import dataclasses
import json
import math
import re
import time
from collections import Counter
from pathlib import Path

import pytest
import torch

import model
from lab import bench, report
from lab.commands import main
from lab.data import STD, load_dataset, loaders_from, normalize
from lab.experiment import PREPROCESSING, PUBLISHED
from lab.recipes import RECIPES, Recipe
from lab.records import History
from lab.studies import COMPARED
from lab.study import load_results
from lab.tables import markdown_table
from lab.training import fit
from model import NORMS, PRETRAINED, Net, Preprocessing, describe

HERE = Path(__file__).resolve().parent.parent
CARD = (HERE / "weights" / "README.md").read_text()


# ---- Results ---------------------------------------------------------------------------------------


def history(
    seed: int, accuracy: float, seconds: float = 10.0, name: str = "a", part: str = "test", epochs: int = 2
) -> History:
    figures = {f"{part}_loss": [1.0] * epochs, f"{part}_accuracy": [0.99] * (epochs - 1) + [accuracy]}
    return History(
        name=name,
        dataset="CIFAR-10",
        parameters=1234,
        recipe=Recipe(epochs=epochs).to_dict(),
        seed=seed,
        machine={},
        train_loss=[1.0] * epochs,
        train_accuracy=[0.5] * epochs,
        lr=[0.1] * epochs,
        seconds=[seconds / epochs] * epochs,
        gflops=[200.0] * epochs,
        evaluated_on=part,
        **figures,
    )


def test_a_row_has_the_last_epoch_of_every_seed_and_the_median_times():
    runs = [history(0, 0.80, 10.0), history(1, 0.82, 30.0), history(2, 0.84, 11.0)]
    head, rule, row, *_ = report.report(runs).splitlines()
    assert head == (
        "| experiment | data | processor | parameters | epochs | seeds | test accuracy, % | with flips, % "
        "| time, s | at peak, TFLOP |"
    )
    assert rule == "| --- | --- | --- | ---: | ---: | --- | ---: | ---: | ---: | ---: |"
    # Standard deviation 2, t(0.975, 2) = 4.3027: 4.3027 * 2 / sqrt(3) = 4.97. 11 s at 200 GFLOP/s: 2.2 TFLOP.
    assert row == "| a | CIFAR-10 |  | 1,234 | 2 | 0, 1, 2 | 82.00 ± 4.97 |  | 11 | 2.2 |"


def test_the_accuracy_with_flips_is_shown_if_every_run_has_it():
    runs = [
        dataclasses.replace(history(seed, 0.8), test_accuracy_flips=flips)
        for seed, flips in enumerate((0.81, 0.83))
    ]
    assert "| 80.00 ± 0.00 | 82.00 ± 12.71 | 10 |" in report.report(runs)
    assert "| 80.00 ± 0.00 |  | 10 |" in report.report([*runs, history(2, 0.8)])


def test_a_run_without_a_measured_peak_has_an_empty_cell():
    for gflops in ([], [200.0]):
        run = dataclasses.replace(history(2, 0.8), gflops=gflops)
        assert report.report([run]).splitlines()[-1] == (
            "| a | CIFAR-10 |  | 1,234 | 2 | 2 | 80.00 |  | 10 |  |"
        )


LEFT_OUT = "Runs in no table, because they are unfinished or untested:"


def test_a_run_that_is_unfinished_or_untested_is_in_no_mean_and_listed_below():
    runs = [history(0, 0.8), history(1, 0.82)]
    part = {name: [0.1] for name in ("train_loss", "train_accuracy", "lr", "seconds", "gflops")}
    others = [
        dataclasses.replace(history(2, 0.1), test_loss=[1.0], test_accuracy=[0.1], **part),
        dataclasses.replace(history(3, 0.1), test_loss=[], test_accuracy=[]),
        dataclasses.replace(history(4, 0.1, part="validation"), validation_loss=[], validation_accuracy=[]),
        dataclasses.replace(history(0, 0.1), **{name: [] for name in (*part, "test_loss", "test_accuracy")}),
    ]
    listed = [
        LEFT_OUT,
        "",
        "- a seed 2: 1 of 2 epochs",
        "- a seed 3: no test figures",
        "- a seed 4: no validation figures",
        "- a seed 0: 0 of 2 epochs",
    ]
    assert report.report([*others, *runs]) == "\n\n".join([report.report(runs), "\n".join(listed)])
    assert report.report(others) == "\n".join(listed)
    assert LEFT_OUT not in report.report(runs)


def test_an_unfinished_or_untested_run_of_the_ladder_is_in_no_mean():
    runs = [rung(0, 0.84), rung(1, 0.86)]
    short = rung(2, 0.1, train_loss=[1.0])
    untested = rung(3, 0.1, test_loss=[], test_accuracy=[])
    assert report.ladder_table([*runs, short, untested]) == report.ladder_table(runs)
    assert report.ladder_table([short, untested]) == ""


def test_runs_evaluated_on_held_out_images_have_a_table_of_their_own():
    held_out = history(0, 0.9, part="validation")
    test, trials = report.report([held_out, history(0, 0.8)]).split("\n\n")
    assert "test accuracy" in test
    assert "validation accuracy" in trials
    assert "| 80.00 |" in test.splitlines()[-1]
    assert "| 90.00 |" in trials.splitlines()[-1]
    assert "test" not in report.report([held_out])


def test_the_accuracy_with_flips_on_held_out_images_is_shown_too():
    run = dataclasses.replace(history(0, 0.9, part="validation"), validation_accuracy_flips=0.91)
    assert "| 90.00 | 91.00 |" in report.report([run])


def rung(seed: int, accuracy: float, **changes) -> History:
    machine = {"device": "cpu", "processor": "abacus", "instructions": "beads", "dtype": "float32"}
    own = {"name": "minute-batch-mixed", "recipe": RECIPES["minute"].to_dict(), "machine": machine}
    whole = history(seed, accuracy, 10.0 + seed, epochs=RECIPES["minute"].epochs)
    return dataclasses.replace(whole, **own | changes)


def test_the_ladder_has_a_row_for_each_processor_with_its_intervals_and_medians():
    old = {"dtype": "bfloat16"}
    head, _, row, other = report.ladder_table(
        iter([rung(0, 0.84, threads=[[2], [1, 2]]), rung(1, 0.86), rung(2, 0.88), rung(0, 0.8, machine=old)])
    ).splitlines()
    assert head.startswith(
        "| rung | processor | format | threads | seeds | test accuracy, % | to reach, % | time, s |"
    )
    # Standard deviation 2: as above. 11 s at 200 GFLOP/s.
    macs = describe(Net(**RECIPES["minute"].net)).total_macs
    assert row == (
        "| minute | abacus (beads) | float32 | 1 to 2 | 3 | 86.00 ± 4.97 | 85.0 | 11.0 | 200 | 2.2 | 1,234 "
        f"| {macs:,} |"
    )
    assert other.startswith("| minute |  | bfloat16 |  | 1 | 80.00 | 85.0 | 10.0 |")


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "mine"},
        {"dataset": "STAND-IN (not CIFAR-10)"},
        {"evaluated_on": "validation"},
        {"recipe": Recipe(epochs=2).to_dict()},  # the recipe as it was
    ],
)
def test_the_ladder_has_only_runs_of_its_recipes_as_they_are_now(changes):
    assert report.ladder_table([rung(0, 0.9, **changes)]) == ""


def test_runs_of_one_name_that_differ_are_refused():
    other = dataclasses.replace(history(1, 0.8), recipe=Recipe(epochs=2, lr=0.5).to_dict())
    with pytest.raises(ValueError, match="'a' with seeds 0 and 1 differ: recipe"):
        report.report([history(0, 0.8), other])


def test_seeds_in_different_number_formats_are_one_row_that_names_them():
    runs = [
        dataclasses.replace(history(seed, 0.8), machine={"dtype": dtype})
        for seed, dtype in enumerate(("bfloat16", "float32"))
    ]
    assert "| 0 (bfloat16), 1 (float32) | 80.00 ± 0.00 |" in report.report(runs)
    assert "| 0 | 80.00 |" in report.report(runs[:1])


def test_the_effect_of_the_seed_is_pooled_over_the_experiments():
    # Variances 2 with 1 degree of freedom and 1 with 2: (2 + 2 * 1) / 3, t(0.975, 3) = 3.1824.
    runs = [history(seed, accuracy) for seed, accuracy in enumerate((0.80, 0.82))]
    runs += [history(seed, accuracy, name="b") for seed, accuracy in enumerate((0.7, 0.71, 0.72))]
    said = report.report([*runs, history(0, 0.1, name="c")]).splitlines()[-1]
    assert f"by {math.sqrt(4 / 3):.2f} points" in said
    assert "3 degrees of freedom" in said
    assert f"at most {3.1824 * math.sqrt(2 * 4 / 3):.2f} points" in said
    assert "freedom" not in report.report([history(0, 0.8)])


def test_the_effect_of_the_seed_is_right_beyond_ten_degrees_of_freedom():
    accuracies = [80.0, 81.0] * 8 + [80.0]
    mean = sum(accuracies) / 17
    deviation = math.sqrt(sum((each - mean) ** 2 for each in accuracies) / 16)
    said = report.report([history(seed, each / 100) for seed, each in enumerate(accuracies)])
    assert "16 degrees of freedom" in said
    assert f"at most {2.1199 * math.sqrt(2) * deviation:.2f} points" in said


def test_the_report_on_a_folder_has_the_benchmark_below_the_results(tmp_path, measured):
    history(0, 0.8).save(tmp_path / "deep" / "0.json")
    assert report.report_folder(tmp_path) == report.report([history(0, 0.8)])
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "cpu.json").write_text(json.dumps(measured))
    expected = [report.report([history(0, 0.8)]), report.bench_markdown([measured])]
    assert report.report_folder(tmp_path) == "\n\n".join(expected)


@pytest.mark.parametrize("content", ["{", '{"machine": {}}', "[]"])
def test_a_file_that_is_not_a_result_of_the_benchmark_is_named(tmp_path, content):
    history(0, 0.8).save(tmp_path / "0.json")
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "cpu.json").write_text(content)
    with pytest.raises(ValueError, match=r"cpu\.json is not a result of the benchmark"):
        report.report_folder(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda result: result.pop("plan"),
        lambda result: result.update(summary=[]),
        lambda result: result["summary"].update(peak_gflops=5),
        lambda result: result["summary"].update(ratio=math.nan),
        lambda result: result["training"].update(ours=[]),
        lambda result: result["training"].update(ours=[0]),
        lambda result: result["machine"].update(processor="\ud800"),
        lambda result: result["pairs"].clear(),
    ],
)
def test_a_damaged_result_of_the_benchmark_is_named_in_a_line(capsys, tmp_path, measured, change):
    history(0, 0.8).save(tmp_path / "0.json")
    change(measured)
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "cpu.json").write_text(json.dumps(measured))
    assert main(["report", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{tmp_path / 'bench' / 'cpu.json'} is not a result of the benchmark: " in line


# ---- Records of every shape ------------------------------------------------------------------------

KINDS = {  # of three ages: before threads and loaders were recorded, on held-out images, and the newest
    "old": "minute/minute-batch-mixed-seed0.json",
    "held out": "trials/minute-as-it-is-held-out-5000-seed0.json",
    "new": "notebook/batch-norm-Muon-seed0.json",
}
OTHERS = (None, "text", -1, 0.5, 1e9, math.nan, math.inf, True, [], {}, ["a", "b"], [[1]], {"a": {"b": 1}})


DELETED = object()


def changed(record: dict, path: tuple[str, ...], value) -> dict:
    """A copy of a record with another value at the path, or without it."""
    copy = parent = json.loads(json.dumps(record))
    for key in path[:-1]:
        parent = parent[key]
    if value is DELETED:
        del parent[path[-1]]
    else:
        parent[path[-1]] = value
    return copy


def changes_of(record: dict):
    """What is wrong with a copy of a record, and the copy: in its fields and those of its dictionaries."""
    inner = [(name, key) for name, value in record.items() if isinstance(value, dict) for key in value]
    for path in [*((name,) for name in record), *inner]:
        old = record[path[0]] if len(path) == 1 else record[path[0]][path[1]]
        values = {"deleted": DELETED, "nested": [old]} | {f"= {other!r}": other for other in OTHERS}
        if isinstance(old, list) and old:
            values |= {f"cut to {count}": old[:count] for count in (0, 1, len(old) - 1)}
            values |= {f"[0] = {other!r}": [other, *old[1:]] for other in OTHERS}
        for what, value in values.items():
            yield f"{'/'.join(path)} {what}", changed(record, path, value)
    lists = [name for name, value in record.items() if isinstance(value, list)]
    for count in (0, 1):
        yield f"all lists cut to {count}", record | {name: record[name][:count] for name in lists}


NUMBERS = (", %", ", s", "TFLOP", "GFLOP/s", "parameters", "epochs", "MACs of an image")  # ends of titles


def wrong_cells(report: str) -> list[str]:
    """The cells of its Markdown tables with anything but a finite number, or with an impossible accuracy."""
    wrong, head = [], []
    for line in report.splitlines():
        cells = line[2:-2].split(" | ") if line.startswith("|") else []
        if not head or not cells:
            head = cells
        for title, cell in zip(head, cells, strict=True):
            if cells is not head and set(cell) - set("-:") and title.endswith(NUMBERS):
                values = [float(number) for number in cell.replace(",", "").split(" ± ")]
                possible = not title.endswith(", %") or 0 <= values[0] <= 100
                if not all(map(math.isfinite, values)) or not possible:
                    wrong.append(f"{title}: {cell}")
    return wrong


def test_wrong_cells_are_seen():
    table = markdown_table(["name", "accuracy, %", "time, s"], [["a", "85.0 ± 1", "1,000"]], "lrr")
    assert wrong_cells(f"{table}\n\n{table}") == []
    for cells in (["a", "8500.0", ""], ["a", "50 ± nan", ""], ["a", "50", "inf"], ["a", "-1", "5"]):
        assert len(wrong_cells(markdown_table(["name", "accuracy, %", "time, s"], [cells], "lrr"))) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_is_changed_in_a_record_the_report_is_right_or_names_the_file(kind, capsys, tmp_path):
    record = json.loads((HERE / "results" / KINDS[kind]).read_text())
    path = tmp_path / "changed.json"
    tried, failed = 0, []
    for done, other in changes_of(record):
        path.write_text(json.dumps(other))
        try:
            status = main(["report", str(tmp_path)])
        except Exception as error:
            status = repr(error)
        out, err = capsys.readouterr()
        tried += 1
        if status == 0:
            failed += [f"{done}: {wrong}" for wrong in wrong_cells(out)]
        elif status != 2 or out or len(err.splitlines()) != 1 or str(path) not in err:
            failed.append(f"{done}: {status} {err}")
    assert tried > 100
    assert not failed, f"{len(failed)} of {tried} changes: " + "\n".join(failed)


def test_a_thousand_records_make_a_table_in_seconds(tmp_path):
    record = History.load(HERE / "results" / KINDS["new"])
    for number in range(1_000):
        run = dataclasses.replace(record, name=f"run {number // 5}", seed=number % 5)
        run.save(tmp_path / f"{number}.json")
    began = time.perf_counter()
    table = report.report_folder(tmp_path)
    assert time.perf_counter() - began < 20
    assert table.count(f"| 0, 1, 2, 3, 4 | {100 * record.accuracy[-1]:.2f} ± 0.00 |") == 200


def test_the_record_of_a_run_that_was_never_tested_is_read_and_listed(small, capsys, tmp_path):
    loader, *_ = loaders_from(small, 64, limit=128, device="cpu")
    run = fit(Net(width=0.25), loader, None, Recipe(epochs=1), device="cpu", progress=False, name="mine")
    run.save(tmp_path / "mine.json")
    assert main(["report", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{LEFT_OUT}\n\n- mine seed 0: no test figures\n"
    assert report.overview({"mine": run}).splitlines()[1].split()[:3] == [
        "mine",
        f"{100 * run.train_accuracy[0]:.2f}",
        f"{run.parameters:,}",
    ]


def test_the_overview_has_empty_cells_for_what_a_run_lacks():
    whole = dataclasses.replace(history(0, 0.8), data={"test": {"images": 10_000}})
    lists = ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "lr", "seconds")
    runs = {
        "whole": whole,
        "older": history(0, 0.8),
        "untested": dataclasses.replace(whole, test_loss=[], test_accuracy=[]),
        "stopped": dataclasses.replace(whole, recipe=Recipe(epochs=3).to_dict()),
        "begun": dataclasses.replace(whole, **{name: [] for name in lists}),
    }
    assert report.overview(runs) == (
        "          test accuracy, %  training accuracy, %  test loss  parameters  epochs  training, s\n"
        "whole         80.00 ± 0.78                 50.00      1.000       1,234       2           10\n"
        "older                80.00                 50.00      1.000       1,234       2           10\n"
        "untested                                   50.00                  1,234       2           10\n"
        "stopped       80.00 ± 0.78                 50.00      1.000       1,234  2 of 3           10\n"
        "begun                                                             1,234  0 of 2            0"
    )
    held_out = {"held out": history(0, 0.8, part="validation")}
    assert report.overview(held_out).startswith("          validation accuracy, %  ")
    assert report.overview(runs | held_out).startswith("           accuracy, %  ")


# ---- The card of the trained weights ---------------------------------------------------------------


def test_an_evaluation_counts_what_is_right_and_what_is_predicted_as_what(small):
    torch.manual_seed(0)
    net = Net(width=0.25).eval()
    net.preprocessing = PREPROCESSING
    with torch.no_grad():
        images = normalize(small.test_images)
        logits, mirrored = net(images), net(images.flip(3))
    predicted, flipped = logits.argmax(1), (logits + mirrored).argmax(1)
    found = report.assess(net, small.test_images, small.test_labels, small.classes)
    right = predicted == small.test_labels
    assert found.accuracy == right.double().mean().item()
    assert found.accuracy_flips == (flipped == small.test_labels).double().mean().item()
    unsure = logits.softmax(1).amax(1) < report.SURE
    where_unsure = torch.where(unsure, flipped, predicted)
    assert found.accuracy_unsure == (where_unsure == small.test_labels).double().mean().item()
    assert found.unsure == unsure.double().mean().item()
    for number, label in enumerate(small.classes):
        of_class = right[small.test_labels == number].double().mean().item()
        assert found.class_accuracies[label] == pytest.approx(of_class)
    pairs = zip(small.test_labels.tolist(), predicted.tolist(), strict=True)
    wrong = Counter((small.classes[row], small.classes[column]) for row, column in pairs if row != column)
    assert {(row, column): count for row, column, count in found.confusions} == wrong
    counts = [count for _, _, count in found.confusions]
    assert counts == sorted(counts, reverse=True)


def test_an_evaluation_takes_probabilities_as_labels(small):
    torch.manual_seed(0)
    net = Net(width=0.25)
    net.preprocessing = PREPROCESSING
    images, labels = small.test_images[:100], small.test_labels[:100]
    smoothed = 0.9 * torch.nn.functional.one_hot(labels, 10) + 0.01
    assert report.assess(net, images, smoothed, small.classes) == report.assess(
        net, images, labels, small.classes
    )


def test_an_evaluation_uses_the_preprocessing_of_the_network(small):
    net = Net(width=0.25)
    net.preprocessing = PREPROCESSING
    darker = Preprocessing(32, (0.9, 0.9, 0.9), STD)
    torch.manual_seed(0)
    net(torch.randn(64, 3, 32, 32))
    data = (small.test_images, small.test_labels, small.classes)
    before = report.assess(net, *data)
    net.preprocessing = darker
    assert report.assess(net, *data) != before


def test_an_evaluation_needs_as_many_classes_as_outputs(small):
    net = Net(width=0.25, num_classes=12)
    net.preprocessing = PREPROCESSING
    with pytest.raises(ValueError, match=r"12 outputs.*10 classes"):
        report.assess(net, small.test_images, small.test_labels, small.classes)


def test_the_published_networks_have_their_files():
    assert {"minute", "frontier", "frontier-small"} <= {*PRETRAINED}
    assert len([name for name in PRETRAINED if "norm" in name]) == 3
    assert {f"{name}.pt" for name in PRETRAINED} == {path.name for path in (HERE / "weights").glob("*.pt")}


@pytest.mark.parametrize("name", PRETRAINED)
def test_a_published_network_is_small_and_agrees_with_its_record(name):
    path = HERE / "weights" / f"{name}.pt"
    assert path.stat().st_size <= 1_000_000
    net = Net.from_pretrained(name)
    made = History.from_dict(net.metadata)
    records = {(record.name, record.seed): record for record in load_results(HERE / "results")}
    record = records[made.name, made.seed]
    assert model.count_parameters(net) == record.parameters
    assert Recipe.from_dict(made.recipe) == Recipe.from_dict(record.recipe)
    # Running the notebook again replaces its record, and on another machine the last digits differ.
    assert made.test_accuracy[-1] == pytest.approx(record.test_accuracy[-1], abs=0.02)
    assert net.classes[3] == "cat"


@pytest.mark.parametrize("name", ["frontier", "frontier-small"])
def test_the_published_teacher_is_from_the_training_that_the_recipes_ask_for(name):
    made = History.from_dict(Net.load(PUBLISHED / "teacher-batch-mixed-seed0.pt").metadata)
    assert Recipe.from_dict(made.recipe) == RECIPES[name].teacher
    assert made == History.load(PUBLISHED / "teacher-batch-mixed-seed0.json")
    assert (made.dataset, made.evaluated_on) == ("CIFAR-10", "test")


def test_the_card_lists_the_files_as_they_are():
    assert report.files() in CARD


@pytest.mark.real_data
def test_the_card_agrees_with_the_files_and_the_test_images(cifar10_root):
    data = load_dataset("cifar10", cifar10_root)
    assert report.card(data.test_images, data.test_labels, data.classes) in CARD


@pytest.mark.real_data
def test_evaluate_prints_the_accuracy_on_the_card(cifar10_root, capsys):
    assert main(["evaluate", "minute", "--root", str(cifar10_root)]) == 0
    printed = capsys.readouterr().out.splitlines()
    summary = json.loads(printed[-1])
    assert summary["parameters"] == 150_058
    assert (summary["name"], summary["dataset"]) == ("minute", "CIFAR-10")
    assert f"| {100 * summary['test_accuracy']:.2f} | {100 * summary['test_accuracy_flips']:.2f} |" in next(
        line for line in CARD.splitlines() if line.startswith("| `minute` |")
    )


# ---- The benchmark ---------------------------------------------------------------------------------


@pytest.fixture
def measured() -> dict:
    """A published result of the benchmark."""
    return json.loads(
        (HERE / "results" / "bench" / "cpu-amd-epyc-avx512-bf16-2-threads-cifar-10.json").read_text()
    )


def test_the_main_figures_are_medians_of_the_raw_times(measured):
    assert report.bench_summary(measured) == measured["summary"]
    result = {
        "dataset": "CIFAR-10",
        "machine": {"dtype": "bfloat16"},
        "plan": {"batches": 10, "batch_size": 100},
        "start": {"seconds": [9.0, 4.0, 5.0], "bytes": [100, 300, 200]},
        "training": {
            "conventional": [2.0, 9.0, 1.0],
            "ours": [0.5, 0.1, 0.5],
            "ours, sizes as scheduled": [0.25, 0.25, 3.0],
        },
        # 2 * 1000 ** 3 operations are 2 GFLOP, 2 * 500 ** 3 a quarter.
        "matmul": {
            "float32": {"500": [0.01, 0.01, 9.0], "1000": [0.1, 0.2, 0.1]},
            "bfloat16": {"500": [0.01, 0.01, 9.0], "1000": [0.04, 0.01, 0.05]},
        },
        "step": {
            "recipe": "minute",
            "batch_size": 256,
            "flops": 6_000_000_000,
            "optimizer": [0.003, 0.002, 0.001],
            "seconds": {
                "float32 channels_last": [0.5, 0.4, 0.6],
                "bfloat16 channels_last": [0.2, 0.3, 0.1],
                "bfloat16 channels_first": [0.1, 0.1, 0.2],
            },
        },
        "chosen": {"format": "bfloat16 channels_last"},
        "pairs": {"bfloat16": {"batch": {"mixed": [0.1, 0.3, 0.2]}}},
        "growth": {"width": {"1.0": [0.1, 0.3, 0.2]}},
        "kernels": {
            "float32": {"dense": [0.1, 0.2, 0.1], "dilated": [0.2, 0.2, 0.1]},
            "bfloat16": {"dense": [0.1, 0.1, 0.1], "dilated": [0.5, 0.3, 0.5]},
        },
        "like": {"dense": None, "dilated": "dense"},
        "company": {
            "alone, all threads": [0.2, 0.2, 0.2],
            "alone": [0.2, 0.3, 0.1],
            "beside a busy process, all threads": [0.6, 0.5, 0.9],
            "beside a busy process": [0.3, 0.3, 0.5],
            "beside a second training, all threads": [2.0, 1.0, 4.0],
            "beside a second training": [0.4, 0.3, 0.4],
        },
        "two runs": {"one after another": [2.0, 2.5, 9.0], "two at once": [2.0, 1.0, 2.0]},
        "search": {"format": [1.5], "threads": [0.2, 0.5, 0.6]},
        "parts": {"convolution": 0.5, "Python": 0.5},
    }
    summary = report.bench_summary(result)
    assert summary.pop("slow_kernels") == [
        "dilated, bfloat16: 5.0 times as long as dense",
        "dilated, bfloat16: 2.5 times as long as in float32",
    ]
    assert summary.pop("peak_gflops") == pytest.approx({"float32": 25.0, "bfloat16": 50.0})
    steps = {
        "float32 channels_last": 500.0,
        "bfloat16 channels_last": 200.0,
        "bfloat16 channels_first": 100.0,
    }
    assert summary.pop("step_milliseconds") == pytest.approx(steps)
    assert summary == pytest.approx(
        {
            "dataset": "CIFAR-10",
            "dtype": "bfloat16",
            "conventional_images_per_second": 500.0,
            "ours_images_per_second": 2000.0,
            "ratio": 4.0,
            "ratio_sizes_as_scheduled": 8.0,
            "step_gflops": 30.0,
            "share_of_peak": 0.6,
            "idle_ratio": 1.0,
            "busy_ratio": 1.5,
            "busy_ratio_all_threads": 3.0,
            "second_ratio": 2.0,
            "second_ratio_all_threads": 10.0,
            "search_seconds": 2.0,
            "optimizer_milliseconds": 2.0,
            "two_at_once_ratio": 1.25,
            "peak_memory_bytes": 300,
            "first_step_seconds": 5.0,
        }
    )
    rates = report.bench_rates(result)
    assert rates["step of 100 images, bfloat16 [ms]"] == {"batch": {"mixed": pytest.approx(200)}}
    assert rates["step of minute [ms]"] == {"": pytest.approx(steps)}
    assert rates["part of a step [%]"] == {"convolution": {"": 50.0}, "Python": {"": 50.0}}
    assert rates["two runs [s]"] == {"": {"one after another": 2.5, "two at once": 2.0}}
    assert rates["kernel [ms]"]["dilated"] == {"float32": pytest.approx(200), "bfloat16": pytest.approx(500)}
    assert rates["step in company [ms]"]["alone"] == {"": pytest.approx(200)}
    assert rates["step, by width [ms]"] == {"": {"1.0": pytest.approx(200)}}
    result["chosen"] = {"format": "bfloat16 channels_first"}
    assert report.bench_summary(result)["share_of_peak"] == pytest.approx(1.2)
    result["start"]["bytes"] = [None, None, None]
    assert report.bench_summary(result)["peak_memory_bytes"] is None


def test_the_markdown_has_the_main_figures_and_every_pair(measured):
    other = json.loads(json.dumps(measured))
    other["machine"]["processor"] = "abacus"
    tables = [table.splitlines() for table in report.bench_markdown([measured, other]).split("\n\n")]
    figures, pairs, others = tables
    assert figures[0] == "|  | AMD EPYC (AVX512 bf16), 2 threads | abacus (AVX512 bf16), 2 threads |"
    assert "| speed-up | 3.04 | 3.04 |" in figures
    assert "| peak memory of the process, GB | 1.28 | 1.28 |" in figures
    assert (
        "| step beside a busy process, between searches, times idle | not measured | not measured |"
        in figures
    )
    assert "| training step of `minute`, bfloat16 channels_last, ms | 72 | 72 |" in figures
    assert "| of the time of a step: convolution, % | not measured | not measured |" in figures
    other["parts"] = dict.fromkeys((*bench.PARTS, bench.REST, bench.LOADER, bench.OPTIMIZER, "Python"), 0.125)
    assert "| of the time of a step: augmentation and resizing, % | 25 |" in report.bench_markdown([other])
    title = "AMD EPYC (AVX512 bf16), 2 threads: step of 256 images, bfloat16 [ms]"
    assert pairs[0] == f"| {title} | " + " | ".join(COMPARED) + " |"
    assert others[2:] == pairs[2:]
    assert pairs[2] == "| batch | 104 | 114 | 44.9 | 61.5 | 64.1 |"
    assert [row.split(" | ")[0] for row in pairs[2:]] == [f"| {norm}" for norm in NORMS]
    measured["summary"]["peak_memory_bytes"] = None
    assert "| peak memory of the process, GB | not measured |" in report.bench_markdown([measured])


def test_the_text_has_every_figure(measured):
    head, *tables = report.bench_text(measured).split("\n\n")
    assert head == "AMD EPYC (AVX512 bf16), cpu, 2 threads, torch 2.15.0+cu132; medians of 5 rounds"
    titles = [*report.bench_rates(measured), "recipe of the step: minute"]
    assert [table[: len(title)] for table, title in zip(tables, titles, strict=True)] == titles
    products = tables[1].splitlines()
    assert [line.split()[-3:] for line in products] == [
        ["1024", "2048", "4096"],
        ["167", "161", "166"],
        ["397", "386", "388"],
    ]
    assert len({len(line) for line in products}) == 1  # the columns end at the same place
    assert "peak memory bytes               1,282,580,480" in tables[-1].splitlines()


# ---- README's own tables ---------------------------------------------------------------------------


def test_the_summary_has_of_each_experiment_the_fastest_cpu(monkeypatch):
    monkeypatch.setattr(report, "SUMMARY", ("fast-batch-mixed", "other", "not there"))
    name = "fast-batch-mixed"
    runs = [history(seed, 0.8, 9.0, name) for seed in (0, 1)]
    new = {"machine": {"processor": "New"}}
    runs += [dataclasses.replace(history(seed, 0.9, 4.0, name), **new) for seed in (0, 1)]
    gpu = {"machine": {"processor": "New", "device": "NVIDIA H200"}}
    runs += [dataclasses.replace(history(seed, 0.9, 1.0, name), **gpu) for seed in (0, 1)]
    runs += [history(0, 0.7, name="other"), history(0, 0.6, name="unasked")]
    lines = report.summary_table(runs).splitlines()[2:]
    assert len(lines) == 2
    assert re.match(r"\| fast \| [\d,]+ \| \d+ \| 2 \| 90\.00 ± 0\.00 \| 4 \| New \|", lines[0])
    assert lines[1].startswith("| other |")


def test_the_short_ladder_has_the_same_rows_and_fewer_columns():
    runs = load_results(HERE / "results" / "ladder")
    whole, short = report.ladder_table(runs).splitlines(), report.ladder_table(runs, short=True).splitlines()
    assert len(whole) == len(short)
    column = [cell.strip() for cell in whole[0].split("|")].index("time, s")
    for line, fewer in zip(whole[2:], short[2:], strict=True):
        assert line.split("|")[1] == fewer.split("|")[1]
        assert line.split("|")[column].strip() == fewer.split("|")[-2].strip()
    assert report.ladder_table([], short=True) == ""


def test_the_aims_of_speed_have_the_figures_of_the_records():
    page = (HERE / "docs" / "speed.md").read_text()
    rows = {
        re.split(r" \| |, step of", line)[0].removeprefix("| "): line
        for line in page.splitlines()
        if line[:2] == "| "
    }
    stems = {"xeon": "intel-r-xeon-r-processor-avx512-bf16-amx", "epyc": "amd-epyc-avx512-bf16"}
    stems["plain"] = f"{stems['xeon']}-onednn-max-cpu-isa-avx512-core-bf16"
    measured = {
        name: json.loads((HERE / f"results/bench/cpu-{stem}-2-threads-cifar-10.json").read_text())["summary"]
        for name, stem in stems.items()
    }
    xeon, epyc, plain = measured["xeon"], measured["epyc"], measured["plain"]
    ladder = report.ladder_table(load_results(HERE / "results" / "ladder")).splitlines()
    seconds = {
        line.split(" | ")[0].removeprefix("| "): float(line.split(" | ")[7])
        for line in ladder
        if "Xeon" in line
    }
    shares = {name: f"{100 * summary['share_of_peak']:.0f} %" for name, summary in measured.items()}
    expected = {
        "a step beside a busy process": f"{xeon['busy_ratio']:.2f}, Xeon; {plain['busy_ratio']:.2f} without",
        "a step beside a second training": f"{xeon['second_ratio']:.2f}, Xeon; {plain['second_ratio']:.2f} ",
        "what that costs when idle": f"{xeon['search_seconds']:.1f} s of searches",
        "two runs at once in a process pool": f"{xeon['two_at_once_ratio']:.2f}, Xeon; "
        f"{plain['two_at_once_ratio']:.2f} without",
        "share of the best format's peak": f"{shares['epyc']} on the EPYC, {shares['xeon']} on the Xeon, "
        f"{shares['plain']} without",
        "against the conventional recipe, same sizes": f"{plain['ratio']:.2f} and {epyc['ratio']:.2f}; "
        f"{xeon['ratio']:.2f} on the Xeon",
        "`minute`: 85.0 %, 5 seeds": f"{seconds['minute']:.0f} s on the Xeon",
        "`coffee`: 90.0 %, 3 seeds": f"{seconds['coffee']:.0f} s, Xeon",
        "`lunch`: 93.0 %, 3 seeds": f"{seconds['lunch'] / 60:.0f} min on one thread",
    }
    for what, figure in expected.items():
        assert figure in rows[what], what
