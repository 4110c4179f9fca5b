"""lab/grid.py: the search for a rate, what is missing of a study, and carrying it out."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import lab.grid
from lab.data import CIFAR_10, STAND_IN
from lab.experiment import Experiment
from lab.grid import Records, Study, Trial, best_of, carry_out
from lab.recipes import Recipe
from lab.records import History
from lab.studies import STUDIES

SHORT = Recipe(epochs=1, batch_size=64, lr=0.1, net={"width": 0.25})
QUIET = {"device": "cpu", "progress": False, "dtype": "float32"}


def an_arm(label="a", norm="batch", recipe=SHORT) -> Experiment:
    return Experiment(label, recipe, norm=norm, dataset="stand-in", limit=128)


def a_study(*arms, **fields) -> Study:
    return Study("mine", "What is better?", arms or (an_arm(),), **{"seeds": 2, "held_out": 50} | fields)


def pretend(folder, run: Experiment, accuracy: float = 0.5, **changes) -> None:
    """Write the record that the run would leave."""
    part = "validation" if run.validation else "test"
    figures = {f"{part}_loss": [1.0], f"{part}_accuracy": [accuracy], "evaluated_on": part}
    lists = {name: [1.0] for name in ("train_loss", "train_accuracy", "lr", "seconds")}
    values = {
        "name": run.name,
        "dataset": STAND_IN,
        "parameters": 5,
        "recipe": run.recipe.to_dict(),
        "seed": run.seed,
        "machine": {},
        "network": {"config": {"norm": run.norm, "conv": run.conv}},
    }
    History(**values | lists | figures | changes).save(folder / f"{run.stem}.json")


def searched(folder, study: Study, accuracies: dict[float, float]) -> list[float]:
    """The rates that the study's search tries with its first seed, if they give these accuracies."""
    tried = []
    while trials := study.search(study.arms[0], Records(folder))[1]:
        for trial in trials:
            tried += [trial.recipe.lr] if trial.seed == 0 else []
            pretend(folder, trial, accuracies[trial.recipe.lr])
    return tried


# ---- The search ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accuracies", "tried", "best"),
    [
        ({0.05: 0.1, 0.1: 0.3, 0.2: 0.2}, [0.05, 0.1, 0.2], 0.1),
        ({0.05: 0.1, 0.1: 0.2, 0.2: 0.3, 0.4: 0.2}, [0.05, 0.1, 0.2, 0.4], 0.2),
        ({0.0125: 0.1, 0.025: 0.4, 0.05: 0.3, 0.1: 0.2, 0.2: 0.1}, [0.05, 0.1, 0.2, 0.025, 0.0125], 0.025),
        ({0.025: 0.2, 0.05: 0.3, 0.1: 0.3, 0.2: 0.3}, [0.05, 0.1, 0.2, 0.025], 0.05),  # the lowest of equals
    ],
)
def test_a_search_goes_on_until_the_best_rate_has_a_worse_one_on_both_sides(
    tmp_path, accuracies, tried, best
):
    study = a_study()
    assert searched(tmp_path, study, accuracies) == tried
    trials, _ = study.search(study.arms[0], Records(tmp_path))
    assert best_of(trials).lr == best
    assert [trial.lr for trial in trials] == sorted(accuracies)


def test_rates_that_one_run_cannot_tell_apart_are_tried_with_more_seeds_and_their_mean_decides(tmp_path):
    study = a_study()
    (arm,) = study.arms
    first = {0.05: 0.3, 0.1: 0.508, 0.2: 0.5, 0.4: 0.3}
    for lr in (0.05, 0.1, 0.2):
        pretend(tmp_path, study.trial(arm, lr), first[lr])
    missing = study.search(arm, Records(tmp_path))[1]
    assert [(run.recipe.lr, run.seed) for run in missing] == [(0.1, 1), (0.1, 2), (0.2, 1), (0.2, 2)]
    assert {run.validation for run in missing} == {50}
    for run in missing:  # all below what the worst rate had with the first seed's images
        pretend(tmp_path, run, {0.1: 0.1, 0.2: 0.2}[run.recipe.lr])
    missing = study.search(arm, Records(tmp_path))[1]
    assert [(run.recipe.lr, run.seed) for run in missing] == [(0.4, 0)]  # the better one is at the edge now
    pretend(tmp_path, missing[0], first[0.4])
    trials, missing = study.search(arm, Records(tmp_path))
    assert missing == []
    assert trials == [
        Trial(0.05, 0.3),
        Trial(0.1, 0.236, 3),
        Trial(0.2, pytest.approx(0.3), 3),
        Trial(0.4, 0.3),
    ]
    assert best_of(trials).lr == 0.2
    assert {run.recipe.lr for run in study.runs(arm, Records(tmp_path))} == {0.2}


def test_rates_that_differ_by_more_are_not_tried_again(tmp_path):
    study = a_study()
    assert searched(tmp_path, study, {0.05: 0.3, 0.1: 0.511, 0.2: 0.5}) == [0.05, 0.1, 0.2]


def test_a_search_that_finds_no_difference_ends(tmp_path):
    tried = searched(tmp_path, a_study(), dict.fromkeys((0.1 * 2.0**power for power in range(-9, 9)), 0.1))
    assert len(tried) == lab.grid.MOST_TRIALS


def test_a_rate_at_which_the_run_diverged_is_the_worst(tmp_path):
    study = a_study()
    (arm,) = study.arms
    for lr, accuracy in ((0.05, 0.1), (0.1, 0.2)):
        pretend(tmp_path, study.trial(arm, lr), accuracy)
    none = {name: [] for name in ("train_loss", "train_accuracy", "lr", "seconds")}
    none |= {"validation_loss": [], "validation_accuracy": [], "diverged": "the loss is nan"}
    pretend(tmp_path, study.trial(arm, 0.2), **none)
    trials, missing = study.search(arm, Records(tmp_path))
    assert trials == [Trial(0.05, 0.1), Trial(0.1, 0.2), Trial(0.2, 0.0)]
    assert missing == []


def test_rates_are_tried_on_held_out_images_with_one_seed_and_runs_use_all_images(tmp_path):
    study = a_study()
    trials = study.missing(Records(tmp_path))
    assert [(run.validation, run.seed, run.recipe.lr) for run in trials] == [
        (50, 0, 0.05),
        (50, 0, 0.1),
        (50, 0, 0.2),
    ]
    searched(tmp_path, study, {0.05: 0.1, 0.1: 0.3, 0.2: 0.2})
    runs = study.missing(Records(tmp_path))
    assert [(run.validation, run.seed, run.recipe.lr, run.name) for run in runs] == [
        (0, 0, 0.1, "a-limit-128"),
        (0, 1, 0.1, "a-limit-128"),
    ]
    pretend(tmp_path, runs[0])
    assert study.missing(Records(tmp_path)) == [runs[1]]


def test_searches_come_first_and_then_one_seed_of_every_arm_after_the_other(tmp_path):
    study = a_study(an_arm("a"), an_arm("b"), an_arm("c"))
    for arm in study.arms[:2]:
        for lr, accuracy in ((0.05, 0.1), (0.1, 0.3), (0.2, 0.2)):
            pretend(tmp_path, study.trial(arm, lr), accuracy)
    found = [(run.label, run.seed) for run in study.missing(Records(tmp_path))]
    assert found[:3] == [("c-lr-0.05", 0), ("c-lr-0.1", 0), ("c-lr-0.2", 0)]
    assert found[3:] == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]


# ---- Records ---------------------------------------------------------------------------------------


def test_an_unfinished_record_is_none(tmp_path):
    run = an_arm(recipe=replace(SHORT, epochs=3))
    pretend(tmp_path, run)
    assert Records(tmp_path).find(run) is None


def test_the_first_folder_with_a_record_counts(tmp_path):
    for name, accuracy in (("one", 0.1), ("two", 0.2)):
        pretend(tmp_path / name, an_arm(), accuracy)
    found = Records(tmp_path / "none", tmp_path / "two", tmp_path / "one").find(an_arm())
    assert found is not None
    assert found.accuracy == [0.2]


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (an_arm(norm="group"), "'norm': 'batch'.*not .*'norm': 'group'"),
        (an_arm(recipe=replace(SHORT, lr=0.3)), r"recipe \{'lr': 0.1\}, not \{'lr': 0.3\}"),
    ],
)
def test_the_record_of_another_experiment_is_refused(tmp_path, other, said):
    pretend(tmp_path, an_arm())
    with pytest.raises(ValueError, match=f"(?s)a-limit-128-seed0.json is the record of another.*{said}"):
        Records(tmp_path).find(other)


def test_a_record_of_another_data_set_is_refused(tmp_path):
    pretend(tmp_path, an_arm(), dataset=CIFAR_10)
    with pytest.raises(ValueError, match=r"'dataset': 'CIFAR-10'.*not .*'dataset': 'STAND-IN"):
        Records(tmp_path).find(an_arm())
    assert Records(tmp_path).find(replace(an_arm(), dataset="auto")) is not None


# ---- Wrong studies ---------------------------------------------------------------------------------


def test_a_wrong_study_is_refused():
    with pytest.raises(ValueError, match="two arms of the study 'mine' are labelled 'a'"):
        a_study(an_arm(), an_arm(norm="group"))
    with pytest.raises(ValueError, match="the study 'mine' has no arm"):
        Study("mine", "?", ())
    with pytest.raises(ValueError, match="seeds=0"):
        a_study(seeds=0)
    with pytest.raises(ValueError, match="held_out=0"):
        a_study(held_out=0)
    with pytest.raises(ValueError, match=r"arm.*Experiment"):
        a_study("a")
    with pytest.raises(ValueError, match="unknown arm 'z' of the study 'mine'; choose from 'a'"):
        a_study()["z"]


def test_arms_of_one_label_are_the_same_in_all_our_studies():
    found = {}
    for study in STUDIES.values():
        for arm in study.arms:
            assert found.setdefault(arm.label, arm) == arm


@pytest.mark.parametrize("name", STUDIES)
def test_every_arm_of_our_studies_can_be_built_and_is_searched_from_its_rate(name, tmp_path):
    study = STUDIES[name]
    assert study.name == name
    with torch.device("meta"):
        for arm in study.arms:
            arm.network()
    assert len(study.missing(Records(tmp_path))) == 3 * len(study.arms)


def test_what_is_left_counts_the_runs_after_a_search(tmp_path):
    study = a_study(an_arm(), an_arm("b"), seeds=2)
    assert len(study.left(Records(tmp_path))) == 2 * (3 + 2)
    searched(tmp_path, study, {0.05: 0.1, 0.1: 0.3, 0.2: 0.2})  # of the first arm
    assert len(study.left(Records(tmp_path))) == 2 + (3 + 2)


# ---- Carrying it out -------------------------------------------------------------------------------


def test_a_study_is_carried_out_and_not_again(tmp_path):
    study = a_study(an_arm(), an_arm("b", norm="layer"))
    records = carry_out([study], tmp_path, **QUIET)
    assert study.missing(records) == []
    results = study.results(records)
    assert {label: [run.seed for run in runs] for label, runs in results.items()} == {
        "a": [0, 1],
        "b": [0, 1],
    }
    assert {run.evaluated_on for runs in results.values() for run in runs} == {"test"}
    assert all(run.rights().mean() == pytest.approx(run.accuracy[-1]) for run in results["a"])
    written = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    carry_out([study], tmp_path, **QUIET)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == written


def test_published_records_are_not_trained_again(tmp_path):
    study = a_study(seeds=1)
    searched(tmp_path, study, {0.05: 0.1, 0.1: 0.3, 0.2: 0.2})
    carry_out([study], tmp_path / "out", published=tmp_path, **QUIET)
    assert sorted(path.name for path in (tmp_path / "out").glob("*.json")) == ["a-limit-128-seed0.json"]


def test_runs_that_diverge_do_not_end_a_study(tmp_path):
    study = a_study(an_arm(norm="none", recipe=replace(SHORT, optimizer="sgd", lr=60.0)), seeds=1)
    records = carry_out([study], tmp_path, **QUIET)
    trials, missing = study.search(study.arms[0], records)
    assert missing == []
    assert min(trial.accuracy for trial in trials) == 0 < best_of(trials).accuracy


def _die(experiment, out, options):
    """In the place of `_history`: the worker of one run dies, once."""
    mark = out / "died"
    if experiment.label == "b-lr-0.1" and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    pretend(out, experiment, 0.9 if experiment.recipe.lr == 0.1 else 0.5)
    return History.load(out / f"{experiment.stem}.json")


def test_a_worker_that_dies_loses_its_own_run_only(tmp_path, monkeypatch):
    monkeypatch.setattr("lab.study._history", _die)
    study = a_study(an_arm(), an_arm("b"), seeds=1)
    monkeypatch.setattr(lab.grid, "process_pool", lambda count: ProcessPoolExecutor(count))
    carry_out([study], tmp_path, processes=2, **QUIET)
    assert (tmp_path / "died").exists()
    assert study.missing(Records(tmp_path)) == []


KILLED = """
import sys
from lab.experiment import Experiment
from lab.grid import Study, carry_out
from lab.recipes import Recipe

if __name__ == "__main__":
    recipe = Recipe(epochs=1, batch_size=64, lr=0.1, net={"width": 0.25})
    arms = [Experiment(name, recipe, norm=name, dataset="stand-in", limit=128) for name in ("batch", "layer")]
    study = Study("mine", "?", arms, seeds=2, more_seeds=0, held_out=50)
    options = {"device": "cpu", "progress": False, "dtype": "float32"}
    carry_out([study], sys.argv[1], processes=int(sys.argv[2]), **options)
"""


def test_a_study_that_is_killed_goes_on_with_what_is_missing(tmp_path):
    script, out = tmp_path / "script.py", tmp_path / "out"
    script.write_text(KILLED)
    command = [sys.executable, script, out, "2"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as begun:
        while len(done := [*out.glob("*.json")]) < 2:
            assert begun.poll() is None, "it ended before it was killed"
            time.sleep(0.05)
        begun.kill()
    kept = {path: path.stat().st_mtime_ns for path in done}
    command[-1] = "1"
    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr[-1000:]
    assert {path: path.stat().st_mtime_ns for path in done} == kept
    names = [path.name for path in out.glob("*.json") if "-lr-" not in path.name]
    assert sorted(names) == [
        f"{norm}-limit-128-seed{seed}.json" for norm in ("batch", "layer") for seed in (0, 1)
    ]
