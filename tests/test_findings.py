"""lab/findings.py: the tables and sentences of a study, and that what is published equals the records."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lab.costs import BATCH, SIDE, costs, network_key
from lab.data import load_dataset
from lab.experiment import Experiment
from lab.findings import (
    again_table,
    arms_table,
    differences_table,
    epochs_table,
    last_epoch,
    page,
    sentences,
    verdict,
)
from lab.grid import AGAIN, Family, Records, Study
from lab.maps import Inside
from lab.measurements import LABELS, Labels, Measurements
from lab.recipes import Recipe
from lab.records import History
from lab.statistics import Estimate, estimate, interval
from lab.studies import PUBLISHED, STUDIES
from model import Net, count_parameters

HERE = Path(__file__).resolve().parent.parent
IMAGES = 1_000
RECIPE = Recipe(epochs=1, lr=0.1, net={"width": 0.25})
ARMS = [
    Experiment(label, RECIPE, norm=norm) for label, norm in (("a", "batch"), ("b", "group"), ("c", "layer"))
]
STUDY = Study("mine", "Which?", ARMS, [Family("norms", (("a", "b"), ("a", "c")))], seeds=3, more_seeds=0)


def right(seed: int, share: float) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random(IMAGES) < share)


def finished(folder: Path, run: Experiment, share: float) -> History:
    part = "validation" if run.validation else "test"
    found = right(10 * run.seed + ord(run.label[0]), share)
    epochs = run.recipe.epochs
    accuracy = [float(found.double().mean())] * epochs
    figures = {f"{part}_loss": [1.0] * epochs, f"{part}_accuracy": accuracy, "evaluated_on": part}
    values = {"train_loss": 1.0, "train_accuracy": 0.5, "lr": 0.1, "seconds": 1.0}
    lists = {name: [value] * epochs for name, value in values.items()}
    history = History(
        name=run.name,
        dataset="CIFAR-10",
        parameters=5,
        recipe=run.recipe.to_dict(),
        seed=run.seed,
        machine={"processor": "P", "dtype": "float32"},
        network={"config": {"norm": run.norm, "conv": run.conv}},
        **lists,
        **figures,
    )
    history.set_rights(found)
    history.save(folder / f"{run.stem}.json")
    return history


@pytest.fixture
def records(tmp_path) -> Records:
    """Arm a is much better than b and no different from c."""
    shares = {"a": 0.8, "b": 0.6, "c": 0.8}
    for arm in STUDY.arms:
        for lr, share in ((0.05, 0.3), (0.1, 0.5), (0.2, 0.4)):
            finished(tmp_path, STUDY.trial(arm, lr), share)
    while missing := STUDY.missing(Records(tmp_path)):
        for run in missing:
            finished(tmp_path, run, shares[run.label])
    return Records(tmp_path)


def test_the_table_of_arms_shows_rates_accuracy_and_size(records):
    table = arms_table(STUDY, records)
    row = dict(zip(table.head, table.rows[0], strict=True))
    found = STUDY.accuracy("a", records)
    assert row["arm"] == "a"
    assert (row["rate"], row["rates tried"], row["seeds"]) == ("0.1", "0.05, 0.1, 0.2", "3")
    assert row["epochs"] == "1"
    assert row["test accuracy, %"] == f"{100 * found.mean:.2f} ± {100 * found.half:.2f}"
    assert row["training accuracy, %"] == "50.0"
    assert row["parameters"] == f"{count_parameters(Net(width=0.25)):,}"


def test_measured_costs_have_columns_of_their_own(records):
    times = {"train": {network_key(ARMS[0]): [0.0256]}, "forward": {network_key(ARMS[0]): [0.00256]}}
    host = {"device": "cpu", "processor": "P", "threads": 2, "dtype": "float32"}
    counts = {"flops": {network_key(ARMS[0]): 512_000}, "memory": {network_key(ARMS[0]): 12_345}}
    measured = (
        {"machine": host, "batch_size": BATCH, "side": SIDE, "product": {"100": [0.05]}} | times | counts
    )
    table = arms_table(STUDY, records, Measurements(measured))
    row = dict(zip(table.head, table.rows[0], strict=True))
    assert (row["training, µs an image"], row["forward, µs an image"]) == ("100", "10")
    assert (row["memory, kB an image"], row["share of peak, %"]) == ("12", "50")
    assert row["a training, s"] == "5"  # an epoch of 50,000 images
    assert table.rows[1][-5:] == ("", "", "", "", "")
    # No recipe trains so few pixels, and this one was not timed.
    other = replace(ARMS[0], recipe=replace(RECIPE, image_sizes=((0.0, 0.5),)))
    assert math.isnan(costs(measured, [other])["a"].run_seconds)
    assert "measured on P, 2 threads, in float32" in page({"mine": STUDY}, records, Measurements(measured))


def test_what_was_seen_inside_the_networks_has_columns_of_its_own(records):
    seen = {"a-seed0": Inside(20, 3, 0.1), "a-seed2": Inside(20, 0, 0.2), "c-seed1": Inside(20, 1, 0.3)}
    table = arms_table(STUDY, records, Measurements(inside=seen))
    assert table.head[-2:] == ("weak maps", "small weights, %")
    assert [row[-2:] for row in table.rows] == [("0 to 3 of 20", "15.0"), ("", ""), ("1 of 20", "30.0")]


def test_a_difference_is_paired_by_seed_and_image_and_corrected_for_the_comparisons(records):
    family = STUDY.families[0]
    found = STUDY.differences(family, records)["a", "b"]
    runs = STUDY.results(records)
    pairs = zip(runs["a"], runs["b"], strict=True)
    values = np.stack([one.rights().astype(int) - other.rights().astype(int) for one, other in pairs])
    assert found == estimate(values, 1 - 0.05 / 2)


def test_differences_are_compared_seed_by_seed_and_image_by_image(records):
    pair = (("a", "b"), ("c", "b"))
    study = replace(STUDY, families=[Family("which is further above", (pair,))])
    rights = {
        label: [run.rights().astype(int) for run in runs] for label, runs in study.results(records).items()
    }
    values = np.stack([(a - b) - (c - b) for a, b, c in zip(*(rights[x] for x in "abc"), strict=True)])
    assert study.differences(study.families[0], records) == {pair: estimate(values)}
    (epochs,) = study.differences_by_epoch(study.families[0], records).values()
    assert [each.mean for each in epochs] == [pytest.approx(values.mean())]
    assert study.close(records) == []  # more seeds are for arms
    assert differences_table(study, records).rows[0][0] == "[a minus b] minus [c minus b]"
    with pytest.raises(ValueError, match="unknown arm 'd'"):
        replace(STUDY, families=[Family("wrong", ((("a", "d"), ("c", "b")),))])


def test_differences_epoch_by_epoch_have_intervals_over_the_seeds(records):
    family = STUDY.families[0]
    found = STUDY.differences_by_epoch(family, records)["a", "b"]
    runs = STUDY.results(records)
    values = [one.accuracy[0] - other.accuracy[0] for one, other in zip(runs["a"], runs["b"], strict=True)]
    mean, half = interval(values, 1 - 0.05 / 2)
    assert found == [Estimate(mean, half, 3)]
    table = epochs_table(STUDY, records)
    assert table.head == ("comparison, points", "epoch 1")
    assert table.rows[0] == ("a minus b", f"{100 * mean:+.1f} ± {100 * half:.1f}")


def test_a_difference_that_is_noise_is_called_that(records):
    table = differences_table(STUDY, records)
    assert [row[-1] for row in table.rows] == ["higher", "no difference measured"]
    first, second = sentences(STUDY, records)
    found = STUDY.differences(STUDY.families[0], records)["a", "b"]
    assert first == f"a minus b: +{100 * found.mean:.1f} ± {100 * found.half:.1f} points (3 seeds)."
    assert second.startswith("a minus c: ")
    assert second.endswith(" points (3 seeds), no difference measured.")


def test_the_differences_of_one_question_can_be_asked_for(records):
    families = [*STUDY.families, Family("other", (("b", "c"),))]
    study = Study("mine", "Which?", ARMS, families, seeds=3, more_seeds=0)
    assert len(differences_table(study, records).rows) == 3
    assert [row[0] for row in differences_table(study, records, "other").rows] == ["b minus c"]
    with pytest.raises(ValueError, match="unknown family='none' of the study 'mine'; choose from 'norms'"):
        differences_table(study, records, "none")


def test_the_class_that_changed_most_is_told_with_an_interval_for_all_classes_and_pairs(records):
    labels = Labels(("cat", "dog"), np.arange(IMAGES) // 700)  # 700 cats, 300 dogs
    runs = STUDY.results(records)
    found = {}
    for name, images in (("cat", labels.labels == 0), ("dog", labels.labels == 1)):
        pairs = zip(runs["a"], runs["b"], strict=True)
        values = np.stack([one.rights() * 1 - other.rights() for one, other in pairs])
        found[name] = estimate(values[:, images], 1 - 0.05 / (2 * 2))  # two pairs, two classes
    name = max(found, key=lambda each: abs(found[each].mean))
    mean, half, _ = found[name]
    table = differences_table(STUDY, records, labels=labels)
    assert table.head[-2:] == ("class that changed most, points", "machine")
    assert table.rows[0][-2:] == (f"{name} {100 * mean:+.1f} ± {100 * half:.1f}", "P")
    assert table.rows[0][:-2] == differences_table(STUDY, records).rows[0]


def test_epochs_are_compared_only_where_all_arms_have_as_many(records, tmp_path):
    assert "The same after each epoch" in page({"mine": STUDY}, records)
    longer = replace(ARMS[1], recipe=replace(RECIPE, epochs=2))
    study = Study("mine", "Which?", [ARMS[0], longer], [Family("b", (("a", "b"),))], seeds=3, more_seeds=0)
    folder = tmp_path / "other"
    while missing := study.missing(Records(folder)):
        for run in missing:
            finished(folder, run, {0.05: 0.3, 0.1: 0.5, 0.2: 0.4}[run.recipe.lr])
    found = page({"mine": study}, Records(folder))
    assert "## mine" in found
    assert "after each epoch" not in found


def test_the_change_in_the_last_epoch_is_that_of_the_arms_means(tmp_path):
    arms = [replace(each, recipe=replace(RECIPE, epochs=3)) for each in ARMS[:2]]
    study = Study("mine", "Which?", arms, [Family("b", (("a", "b"),))], seeds=2, more_seeds=0)
    while missing := study.missing(Records(tmp_path)):
        for run in missing:
            history = finished(tmp_path, run, 0.5)
            if not run.validation:
                last = history.test_accuracy[-1]
                gain = {"a": 0.01, "b": 0.05}[run.label] + 0.02 * run.seed  # 0.02 and 0.06 on average
                history.test_accuracy = [0.1, last - gain, last]
                history.save(tmp_path / f"{run.stem}.json")
    assert last_epoch(study, Records(tmp_path)).endswith("of the arms changes by +2.0 to +6.0 points.")
    assert last_epoch(STUDY, Records(tmp_path / "none")) == ""


def test_a_difference_downwards_and_one_seed_are_said():
    assert verdict(Estimate(-0.02, 0.01, 5)) == "lower"
    assert verdict(Estimate(-0.02, math.nan, 1)) == "interval not known"


def test_what_has_no_run_is_in_no_table_and_not_on_the_page(tmp_path):
    empty = Records(tmp_path)
    assert arms_table(STUDY, empty).rows == ()
    assert differences_table(STUDY, empty).rows == ()
    assert sentences(STUDY, empty) == []
    found = page({"mine": STUDY}, empty)
    assert "## mine" not in found
    assert found.endswith("Not complete yet, and therefore not shown: mine.\n")


def test_the_page_has_the_tables_of_a_study_and_its_number_of_runs(records):
    found = page({"mine": STUDY}, records)
    assert (
        "## mine\n\nWhich?\n\nFrom 9 runs on all training images, on P in float32, at rates that were "
        "searched on P in float32. The highest is " in found
    )
    assert arms_table(STUDY, records).markdown() in found
    assert differences_table(STUDY, records).markdown() in found


def made_again(folder, name, processor, run, share):
    """A record of the same run from another machine, in the folder of that machine."""
    there = folder / AGAIN / name
    there.mkdir(parents=True, exist_ok=True)
    history = finished(there, run, share)
    history.machine["processor"] = processor
    history.save(there / f"{run.stem}.json")
    return history


def test_runs_that_were_made_again_elsewhere_are_compared_with_these(records, tmp_path):
    assert "made again, on another" not in page({"mine": STUDY}, records)
    found = {seed: made_again(tmp_path, "q", "Q", STUDY.runs(ARMS[0], records)[seed], 0.3) for seed in (0, 2)}
    again = Records(tmp_path)
    runs = {run.seed: run for run in STUDY.results(again)["a"]}
    values = [runs[seed].rights() * 1 - there.rights() for seed, there in found.items()]
    expected = estimate(np.stack(values), 0.95)  # a single comparison
    assert STUDY.differences_again(again) == {("a", "Q"): expected}
    assert again_table(STUDY, again).rows == (
        ("a", "Q", f"+{100 * expected.mean:.1f} ± {100 * expected.half:.1f}", "2", "higher"),
    )
    told = page({"mine": STUDY}, again)
    assert "made again, on another machine. The accuracy above minus that one:" in told


def test_a_difference_is_taken_on_one_machine_if_both_arms_have_runs_there(records, tmp_path):
    """P has both arms; then b moves to Q, where a was made again for seed 1 only."""
    (family,) = [each for each in STUDY.families if ("a", "b") in each.pairs]
    runs = {label: {run.seed: run for run in each} for label, each in STUDY.results(records).items()}
    moved = {}
    for run in STUDY.runs(STUDY["b"], records):
        history = finished(tmp_path, run, 0.5)
        history.machine["processor"] = "Q"
        history.save(tmp_path / f"{run.stem}.json")
        moved[run.seed] = history
    there = made_again(tmp_path, "q", "Q", STUDY.runs(STUDY["a"], records)[1], 0.9)
    made_again(tmp_path, "r", "R", STUDY.runs(STUDY["a"], records)[0], 0.1)  # b was not made there
    found = STUDY.compared(family, Records(tmp_path))["a", "b"]
    machines = {seed: [run.processor for run in here.values()] for seed, (here, _) in found.items()}
    assert {seed: sorted(names) for seed, names in machines.items()} == {0: ["P"], 1: ["Q", "Q"], 2: ["P"]}
    values = [runs["a"][seed].rights() * 1 - moved[seed].rights() for seed in (0, 2)]
    values.insert(1, there.rights() * 1 - moved[1].rights())
    confidence = 1 - 0.05 / len(family.pairs)
    assert STUDY.differences(family, Records(tmp_path))["a", "b"] == estimate(np.stack(values), confidence)
    labels = Labels(("cat", "dog"), np.arange(IMAGES) // 700)
    rows = differences_table(STUDY, Records(tmp_path), labels=labels).rows
    assert [row[-1] for row in rows] == ["P, Q, not the same for both", "P"]


def test_arms_closer_than_half_a_point_get_more_seeds(tmp_path):
    study = Study("mine", "Which?", ARMS, STUDY.families, seeds=2, more_seeds=4)
    shares = {"a": 0.8, "b": 0.6, "c": 0.8}
    for arm in study.arms:
        for lr, share in ((0.05, 0.3), (0.1, 0.5), (0.2, 0.4)):
            finished(tmp_path, study.trial(arm, lr), share)
    assert {run.seed for run in study.missing(Records(tmp_path))} == {0, 1}
    same = right(0, 0.8)
    for run in study.missing(Records(tmp_path)):
        history = finished(tmp_path, run, shares[run.label])
        if run.label != "b":
            history.test_accuracy = [float(same.double().mean())]
            history.set_rights(same)
            history.save(tmp_path / f"{run.stem}.json")
    records = Records(tmp_path)
    assert study.close(records) == [("a", "c")]
    assert [(run.label, run.seed) for run in study.missing(records)] == [
        ("a", 2),
        ("c", 2),
        ("a", 3),
        ("c", 3),
    ]


# ---- What is published -----------------------------------------------------------------------------


def test_the_published_page_is_what_the_records_give():
    published = (PUBLISHED / "README.md").read_text(encoding="utf-8")
    assert published == page(STUDIES, Records(PUBLISHED), Measurements.load(PUBLISHED))


def test_every_published_record_belongs_to_a_study():
    records = Records(PUBLISHED)
    stems = set()
    for study in STUDIES.values():
        for arm in study.arms:
            trials, _ = study.search(arm, records)
            stems |= {
                study.trial(arm, trial.lr, seed).stem for trial in trials for seed in range(trial.seeds)
            }
            stems |= {run.stem for run in study.runs(arm, records)}
    assert {path.stem for path in PUBLISHED.glob("*.json")} <= stems


@pytest.mark.real_data
def test_the_published_labels_are_those_of_the_test_images(cifar10_root):
    data = load_dataset("cifar10", cifar10_root)
    labels = Labels.load(PUBLISHED / LABELS)
    assert labels.classes == data.classes
    assert labels.labels.tolist() == data.test_labels.tolist()


def test_every_picture_of_the_published_page_is_there_and_no_other():
    named = set(re.findall(r"\]\(([^)]+\.png)\)", (PUBLISHED / "README.md").read_text(encoding="utf-8")))
    assert named == {path.name for path in PUBLISHED.glob("*.png")}


def said() -> dict[str, str]:
    """What README says in its findings, and the notebook in its text."""
    readme = (HERE / "README.md").read_text(encoding="utf-8").split("## Findings\n")[1].split("\n## ")[0]
    notebook = json.loads((HERE / "S7_Convolution_Techniques.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "markdown"]
    return {"README.md": readme, "the notebook": "\n".join(cells)}


@pytest.mark.parametrize("place", ["README.md", "the notebook"])
def test_every_interval_that_is_told_is_one_of_a_published_study(place):
    told = re.findall(r"\d+\.\d+ ± \d+\.\d+", said()[place])
    # Of the page with the tables of all complete studies, which another test compares with the records.
    text = (PUBLISHED / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"^Runs of these arms were made again.*?^!", "", text, flags=re.DOTALL | re.MULTILINE)
    known = set(re.findall(r"\d+\.\d+ ± \d+\.\d+", text))
    assert len(told) >= 4
    assert [interval for interval in told if interval not in known] == []
