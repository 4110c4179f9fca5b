"""Studies: several experiments at once, records read from a folder and grouped, and statistics over them."""

import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import lab.experiment
import lab.study
from lab.data import stand_in
from lab.experiment import Experiment
from lab.recipes import RECIPES, Recipe
from lab.records import History
from lab.study import (
    LADDER,
    by_experiment,
    ladder_experiments,
    load_results,
    pretrained_runs,
    process_pool,
    run_all,
    run_each,
)
from model import Net

HERE = Path(__file__).resolve().parent.parent


def record(seed: int = 0, name: str = "a", **changes) -> History:
    required = {"dataset": "CIFAR-10", "parameters": 1234, "recipe": Recipe().to_dict(), "machine": {}}
    return History(**{"name": name, "seed": seed} | required | changes)


# ---- Records ---------------------------------------------------------------------------------------


def test_records_are_read_from_all_folders_below_and_sorted_by_name_processor_and_seed(tmp_path):
    made = [("b", "P", 0), ("a", "Q", 1), ("a", "P", 10), ("a", "P", 2), ("a", "Q", 0)]
    for number, (name, processor, seed) in enumerate(made):
        run = record(seed, name)
        run.machine = run.machine | {"processor": processor}
        run.save(tmp_path / "deep" / f"{number}.json")
    found = [(run.name, run.processor, run.seed) for run in load_results(tmp_path)]
    assert found == [("a", "P", 2), ("a", "P", 10), ("a", "Q", 0), ("a", "Q", 1), ("b", "P", 0)]


def test_trials_are_read_only_if_they_are_asked_for(tmp_path):
    record(0).save(tmp_path / "a.json")
    record(1, "b").save(tmp_path / "trials" / "deep" / "b.json")
    record(1, "c").save(tmp_path / "study" / "c.json")
    assert [each.name for each in load_results(tmp_path)] == ["a"]
    assert [each.name for each in load_results(tmp_path / "trials")] == ["b"]
    assert [each.name for each in load_results(tmp_path / "study")] == ["c"]


def test_a_folder_named_bench_is_skipped(tmp_path):
    record().save(tmp_path / "0.json")
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "cpu.json").write_text('{"dataset": "CIFAR-10", "pairs": {}}')
    assert [run.seed for run in load_results(tmp_path)] == [0]
    with pytest.raises(FileNotFoundError, match="bench"):
        load_results(tmp_path / "bench")


def test_a_result_of_the_benchmark_in_another_folder_is_skipped(tmp_path):
    record().save(tmp_path / "a.json")
    for path in (HERE / "results" / "bench").glob("*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    assert len([*tmp_path.iterdir()]) >= 3
    assert [run.seed for run in load_results(tmp_path)] == [0]


def test_a_folder_without_records_is_an_error_that_names_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        load_results(tmp_path)


@pytest.mark.parametrize("kind", ["missing", "a file", "a loop of links"])
def test_what_is_not_a_folder_is_an_error_that_names_it(tmp_path, kind):
    place = tmp_path / "place"
    if kind == "a file":
        record().save(place)
    elif kind == "a loop of links":
        place.symlink_to(place.name)
    with pytest.raises(NotADirectoryError, match=f"{place} is not a folder; give one with records"):
        load_results(place)


def test_a_record_that_is_a_loop_of_links_is_an_error_that_names_it(tmp_path):
    record().save(tmp_path / "a.json")
    (tmp_path / "loop.json").symlink_to("loop.json")
    with pytest.raises(OSError, match=r"symbolic links: .*loop\.json"):
        load_results(tmp_path)


def test_a_json_file_that_is_not_a_record_is_an_error_that_names_it(tmp_path):
    record().save(tmp_path / "a.json")
    for content in ('{"a": 1}', "{", "[]", '{"plan": {}, "summary": {}}'):
        (tmp_path / "other.json").write_text(content)
        with pytest.raises(ValueError, match=r"other\.json is not the record of a run"):
            load_results(tmp_path)


def test_published_figures_from_held_out_images_are_not_stored_as_test_figures():
    runs = [run for run in load_results(HERE / "results") if run.evaluated_on == "validation"]
    assert runs
    for run in runs:
        assert len(run.validation_loss) == len(run.validation_accuracy) == run.epochs
        assert run.validation_accuracy_flips > 0
        assert (run.test_loss, run.test_accuracy, run.test_accuracy_flips) == ([], [], None)


# ---- Runs of one experiment ------------------------------------------------------------------------


def test_runs_are_grouped_by_name_and_data_set_in_the_order_given():
    runs = [record(1), record(0, "b"), record(0), record(0, dataset="other")]
    assert by_experiment(runs) == {
        ("a", "CIFAR-10", ""): [runs[0], runs[2]],
        ("b", "CIFAR-10", ""): [runs[1]],
        ("a", "other", ""): [runs[3]],
    }


def test_a_seed_may_occur_only_once():
    with pytest.raises(ValueError, match="two of the runs named 'a' have the seed 0: each seed may occur"):
        by_experiment([record(0), record(1), record(0)])


def test_runs_that_do_not_belong_together_are_named_by_their_files(tmp_path):
    paths = [record(seed).save(tmp_path / f"{name}.json") for seed, name in ((0, "a"), (1, "b"), (0, "c"))]
    with pytest.raises(
        ValueError, match=rf"seed 0 \({paths[0]}, {paths[2]}\): each seed may occur only once"
    ):
        by_experiment(load_results(tmp_path))
    record(2, recipe=Recipe(lr=0.5).to_dict()).save(paths[2])
    with pytest.raises(ValueError, match=rf"differ \({paths[0]}, {paths[2]}\): recipe"):
        by_experiment(load_results(tmp_path))


def described(digest: str = "0123", **changes) -> dict:
    """The data and network of a record, as a run on our loaders describes them."""
    train = {"loader": "Loader", "part": "train", "images": 50_000, "digest": digest}
    return {"data": {"train": train | changes}, "network": {"class": "Net", "structure": "abcd"}}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"recipe": Recipe(lr=0.5).to_dict()}, "recipe {'lr': 0.15}, not {'lr': 0.5}"),
        ({"parameters": 1235}, "parameters 1234, not 1235"),
        (described("4567"), "data {'train': {'digest': '0123'}}, not {'train': {'digest': '4567'}}"),
        (described(images=500), "data {'train': {'images': 50000}}, not {'train': {'images': 500}}"),
        ({"network": {"class": "Net", "structure": "dcba"}}, "network {'structure': 'abcd'}, not"),
    ],
)
def test_runs_of_one_name_that_differ_are_an_error_that_names_the_difference(changes, told):
    first, other = record(0, **described()), record(7, **described() | changes)
    with pytest.raises(ValueError, match=f"'a' with seeds 0 and 7 differ: {re.escape(told)}"):
        by_experiment([first, other])


def test_runs_on_different_processors_are_told_apart():
    old = {"device": "cpu", "processor": "Intel(R) Xeon(R) Processor"}
    machines = [old, old | {"instructions": "AVX512"}, old | {"instructions": "AVX512 AMX"}]
    machines += [{"device": "NVIDIA H100", "processor": "Abacus(TM)"}]
    groups = by_experiment(record(0, machine=machine) for machine in machines)
    names = ["Intel Xeon", "Intel Xeon (AVX512)", "Intel Xeon (AVX512 AMX)", "NVIDIA H100"]
    assert [processor for *_, processor in groups] == names
    assert [run.processor for (run,) in groups.values()] == names


def test_runs_of_one_name_may_differ_in_seed_and_number_format():
    runs = [record(seed, machine={"dtype": d}) for seed, d in enumerate(("bfloat16", "float32"))]
    assert by_experiment(runs) == {("a", "CIFAR-10", ""): runs}


def test_a_record_without_data_and_network_is_compared_by_the_rest():
    old = record(0)
    runs = [old, record(1, **described()), record(2, **described())]
    assert len(by_experiment(runs)["a", "CIFAR-10", ""]) == 3
    with pytest.raises(ValueError, match="seeds 1 and 3 differ: data"):  # found in spite of the older one
        by_experiment([*runs, record(3, **described("4567"))])


def test_an_older_record_has_the_same_recipe_if_its_missing_fields_do_nothing():
    recipe = Recipe(image_sizes=((0.0, 0.75), (0.6, 1.0)))
    old = json.loads(json.dumps(recipe.to_dict()))
    del old["temperature"], old["teacher"]
    old["image_sizes"] = [[0.0, 24], [0.6, 32]]  # pixels
    runs = [record(0, recipe=recipe.to_dict()), record(1, recipe=old)]
    assert len(by_experiment(runs)["a", "CIFAR-10", ""]) == 2


def test_held_out_images_and_their_teacher_may_follow_from_the_seed():
    runs = [
        record(seed, evaluated_on="validation", **described(digest, source={"teacher": digest}))
        for seed, digest in enumerate(("0123", "4567"))
    ]
    assert len(by_experiment(runs)["a", "CIFAR-10", ""]) == 2
    with pytest.raises(ValueError, match=r"images"):
        by_experiment([*runs, record(2, evaluated_on="validation", **described(images=500))])


def test_the_first_batch_of_a_foreign_loader_may_follow_from_the_seed():
    def batches(batch: str) -> dict:
        return {
            "data": {"train": {"loader": "DataLoader", "first_batch": batch}},
            "network": {"class": "Net"},
        }

    assert (
        len(by_experiment([record(0, **batches("01")), record(1, **batches("23"))])["a", "CIFAR-10", ""]) == 2
    )


def test_runs_as_fit_records_them_are_one_experiment(small):
    from lab.data import loaders_from
    from lab.training import fit
    from model import Net

    recipe = Recipe(epochs=1, batch_size=64)
    runs = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        train, validation, _ = loaders_from(small, 64, validation=100, limit=200, device="cpu", seed=seed)
        net = Net(width=0.25)
        runs.append(fit(net, train, validation, recipe, device="cpu", progress=False, name="a"))
    assert runs[0].data != runs[1].data
    assert [*by_experiment(runs).values()] == [runs]
    shorter = dataclasses.replace(runs[1], recipe=Recipe(epochs=2, batch_size=64).to_dict())
    with pytest.raises(ValueError, match=r"recipe \{'epochs': 1\}, not \{'epochs': 2\}"):
        by_experiment([runs[0], shorter])


# ---- Several experiments ---------------------------------------------------------------------------

SMALL = Recipe(epochs=1, batch_size=64, net={"width": 0.25})


def small_experiments(seeds=(0, 1), **fields) -> list[Experiment]:
    fields = {"dataset": "stand-in", "dtype": "float32", "limit": 128} | fields
    return [Experiment("small", SMALL, seed=seed, **fields) for seed in seeds]


def test_runs_in_a_pool_of_processes_equal_runs_one_after_another(tmp_path, monkeypatch):
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the pool
    try:
        alone = run_all(small_experiments(), tmp_path / "alone", device="cpu", progress=False)
        with process_pool(2) as executor:
            pooled = run_all(small_experiments(), tmp_path / "pool", executor=executor, device="cpu")
    finally:
        torch.set_num_threads(before)
    assert [history.seed for history in pooled] == [0, 1]
    for one, other in zip(alone, pooled, strict=True):
        assert one.difference(other) == ""
        assert (one.train_loss, one.test_accuracy) == (other.train_loss, other.test_accuracy)
        assert other.machine["threads"] == 1
    assert sorted(path.name for path in (tmp_path / "alone").iterdir()) == sorted(
        path.name for path in (tmp_path / "pool").iterdir()
    )


@pytest.mark.parametrize("way", [run_all, run_each, "a worker's turn"])
def test_runs_on_the_same_data_load_them_once(tmp_path, monkeypatch, way):
    loads = []

    def load(dataset, root=None):
        loads.append(dataset)
        return stand_in(64, 32, seed=len(loads))

    monkeypatch.setattr(lab.study, "load_dataset", load)
    monkeypatch.setattr(lab.study, "_loaded", {})
    first, second = small_experiments()
    third = dataclasses.replace(second, label="third", dataset="auto")
    options = {"device": "cpu", "threads": 1}
    if callable(way):
        way([first, second, third], tmp_path, progress=False, **options)
    else:
        for experiment in (first, second, third):
            lab.study._history(experiment, tmp_path, options)
    assert loads == ["stand-in", "auto"]
    digests = {
        History.load(tmp_path / f"{each.stem}.json").data["train"]["digest"]: each.dataset
        for each in (first, second, third)
    }
    assert sorted(digests.values()) == ["auto", "stand-in"]  # each on its own


def test_a_pool_shares_the_threads_equally(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    made = []
    monkeypatch.setattr(
        "lab.study.ProcessPoolExecutor", lambda count, **options: made.append((count, options))
    )
    process_pool(3)
    process_pool(16)
    assert [(count, options["initargs"]) for count, options in made] == [(3, (2,)), (16, (1,))]
    with pytest.raises(ValueError, match="processes=0 must be an integer from 1 to"):
        process_pool(0)


def test_a_failed_run_is_raised_after_the_others_are_done(tmp_path):
    (tmp_path / "small-limit-128-seed0.json").mkdir(parents=True)
    with ThreadPoolExecutor(1) as executor, pytest.raises(ValueError, match=r"seed0\.json is a folder"):
        run_all(small_experiments(), tmp_path, executor=executor, device="cpu", progress=False)
    assert History.load(tmp_path / "small-limit-128-seed1.json").epochs == 1
    with pytest.raises(ValueError, match=r"seed0\.json is a folder"):
        run_all(small_experiments((0, 2)), tmp_path, device="cpu", progress=False)
    assert History.load(tmp_path / "small-limit-128-seed2.json").epochs == 1


def test_threads_of_one_process_take_turns(tmp_path):
    alone = run_all(small_experiments((0, 1, 2)), tmp_path / "alone", device="cpu", progress=False)
    with ThreadPoolExecutor(3) as executor:
        several = run_all(small_experiments((0, 1, 2)), tmp_path / "threads", executor=executor, device="cpu")
    assert [history.train_loss for history in several] == [history.train_loss for history in alone]


def test_a_teacher_that_several_runs_need_is_trained_once_and_first(tmp_path, monkeypatch):
    learner = dataclasses.replace(SMALL, teacher=dataclasses.replace(SMALL, batch_size=32))
    fields = {"dataset": "stand-in", "dtype": "float32", "limit": 128}
    experiments = [Experiment("learner", learner, seed=seed, **fields) for seed in (0, 1)]
    begun = []
    fit = lab.experiment.fit
    monkeypatch.setattr(
        lab.experiment, "fit", lambda *args, **options: begun.append(options["name"]) or fit(*args, **options)
    )
    with ThreadPoolExecutor(2) as executor:
        run_all(experiments, tmp_path, executor=executor, device="cpu", progress=False)
    assert begun == ["teacher-1-epochs-batch-mixed-limit-128", "learner-limit-128", "learner-limit-128"]


PARENT = """
import sys, time, torch
from lab.study import process_pool
if __name__ == "__main__":
    with process_pool(1) as executor:
        print(executor.submit(torch.get_num_threads).result(), *executor._processes, flush=True)
        executor.submit(time.sleep, 600)
"""


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are looked up in /proc")
def test_a_worker_ends_when_the_process_that_asked_for_it_is_killed(tmp_path):
    (tmp_path / "parent.py").write_text(PARENT)
    command, paths = [sys.executable, tmp_path / "parent.py"], {"PYTHONPATH": str(HERE)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | paths) as parent:
        _, worker = parent.stdout.readline().split()
        assert Path("/proc", worker).is_dir()
        parent.kill()
    end = time.monotonic() + 20
    while Path("/proc", worker).is_dir() and "zombie" not in Path("/proc", worker, "status").read_text():
        assert time.monotonic() < end, "the worker is still running"
        time.sleep(0.1)


def test_two_experiments_with_the_same_files_are_refused_before_the_first(tmp_path):
    with pytest.raises(ValueError, match=r"small-limit-128-seed1\.json: give them different labels or seeds"):
        run_all(small_experiments((0, 1, 1)), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_finished_runs_are_not_trained_again(tmp_path):
    first = run_all(small_experiments(), tmp_path, device="cpu", progress=False)
    again = run_all(small_experiments((0, 1, 2)), tmp_path, device="cpu", progress=False)
    assert [history.seconds for history in again[:2]] == [history.seconds for history in first]
    assert again[2].seed == 2


def test_published_networks_stand_for_the_runs_that_made_them():
    made = Net.from_pretrained("minute")
    experiment = Experiment("minute-batch-mixed", RECIPES["minute"])
    (label, (net, history)), *others = pretrained_runs([experiment]).items()
    assert (label, others) == ("minute-batch-mixed", [])
    assert history == History.from_dict(made.metadata)
    assert all(map(torch.equal, net.state_dict().values(), made.state_dict().values()))
    with pytest.raises(ValueError, match=r"of mine, seed 3: there are .*minute-batch-mixed, seed 0"):
        pretrained_runs([Experiment("mine", seed=3)])


# ---- The ladder ------------------------------------------------------------------------------------


def test_the_ladder_has_every_seed_of_every_rung_or_of_those_asked_for():
    every = ladder_experiments()
    assert [experiment.stem for experiment in every] == [
        f"{rung.recipe}-batch-mixed-seed{seed}" for rung in LADDER for seed in range(rung.seeds)
    ]
    assert all(experiment.recipe == RECIPES[experiment.label.split("-")[0]] for experiment in every)
    chosen = ladder_experiments(["coffee"], dataset="cifar10", validation=10)
    assert [(each.label, each.seed, each.validation) for each in chosen] == [
        ("coffee-batch-mixed", seed, 10) for seed in range(3)
    ]
    with pytest.raises(ValueError, match=r"unknown rungs \['tea'\]; choose from 'minute', 'coffee', 'lunch'"):
        ladder_experiments(["tea"])
