"""Results: intervals, and the table computed from the files."""

import dataclasses
import math

import pytest

from lab.recipes import Recipe
from lab.study import interval, load_results, report
from lab.training import History


def history(seed: int, accuracy: float, seconds: float = 10.0, name: str = "a", epochs: int = 2) -> History:
    return History(
        name=name,
        dataset="CIFAR-10",
        parameters=1234,
        recipe=Recipe(epochs=epochs).to_dict(),
        seed=seed,
        machine={},
        train_loss=[1.0] * epochs,
        train_accuracy=[0.5] * epochs,
        test_loss=[1.0] * epochs,
        test_accuracy=[0.99] * (epochs - 1) + [accuracy],
        lr=[0.1] * epochs,
        seconds=[seconds / epochs] * epochs,
        gflops=[200.0] * epochs,
    )


def test_interval_is_students_t():
    # For 1, 2, 3: mean 2, standard deviation 1, t(0.975, 2) = 4.3027.
    mean, half = interval([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert half == pytest.approx(4.3027 / math.sqrt(3), abs=1e-3)


def test_interval_of_many_runs_is_no_narrower_than_students_t():
    values = [float(n) for n in range(12)]  # t(0.975, 11) = 2.2010, standard deviation sqrt(13)
    assert interval(values)[1] >= 2.2010 * math.sqrt(13) / math.sqrt(12)


def test_interval_of_one_run_is_unknown_and_of_none_an_error():
    mean, half = interval([0.5])
    assert mean == 0.5
    assert math.isnan(half)
    with pytest.raises(ValueError, match="at least one"):
        interval([])


def test_report_takes_the_last_epoch_of_every_seed_and_the_median_time(tmp_path):
    for seed, accuracy, seconds in ((1, 0.82, 30.0), (0, 0.80, 10.0), (2, 0.84, 11.0)):
        history(seed, accuracy, seconds).save(tmp_path / "deep" / f"{seed}.json")
    row = report(load_results(tmp_path)).splitlines()[2]
    assert row == "| a | CIFAR-10 | 1,234 | 2 | 0, 1, 2 | 82.00 ± 4.97 |  | 11 | 2.2 |"


def test_report_shows_the_accuracy_with_flips_where_every_run_measured_it():
    runs = [
        dataclasses.replace(history(seed, 0.8), test_accuracy_flips=flips)
        for seed, flips in enumerate((0.81, 0.83))
    ]
    assert "| 80.00 ± 0.00 | 82.00 ± 12.71 | 10 |" in report(runs)
    assert "| 80.00 ± 0.00 |  | 10 |" in report([*runs, history(2, 0.8)])


def test_held_out_runs_have_a_table_of_their_own():
    held_out = dataclasses.replace(history(0, 0.9), evaluated_on="validation")
    test, trials = report([held_out, history(0, 0.8)]).split("\n\n")
    assert "test accuracy" in test
    assert "validation accuracy" in trials
    assert "| 80.00 |" in test.splitlines()[-1]
    assert "| 90.00 |" in trials.splitlines()[-1]
    assert "test" not in report([held_out])


def test_runs_of_one_name_must_be_of_one_recipe():
    other = dataclasses.replace(history(1, 0.8), recipe=Recipe(lr=0.5).to_dict())
    with pytest.raises(ValueError, match="'a' differ in recipe"):
        report([history(0, 0.8), other])


def test_seeds_in_different_number_formats_are_one_row_that_names_them():
    runs = [
        dataclasses.replace(history(seed, 0.8), machine={"dtype": dtype})
        for seed, dtype in enumerate(("bfloat16", "float32"))
    ]
    assert "| 0 (bfloat16), 1 (float32) | 80.00 ± 0.00 |" in report(runs)
    assert "| 0 | 80.00 |" in report(runs[:1])


def test_a_record_from_before_a_field_was_there_is_of_the_same_recipe():
    old = history(1, 0.8)
    del old.recipe["temperature"], old.recipe["teacher"]
    assert "| 0, 1 |" in report([history(0, 0.8), old])


def test_a_seed_counts_once():
    with pytest.raises(ValueError, match=r"'a' are of the seeds \[0, 1, 0\]"):
        report([history(0, 0.8), history(1, 0.8), history(0, 0.9)])


def test_the_spread_over_seeds_is_pooled_over_the_experiments():
    # Variances 2 (1 degree of freedom) and 1 (2), a single run none: (2 + 2 * 1) / 3, t(0.975, 3) = 3.182.
    runs = [history(seed, accuracy) for seed, accuracy in enumerate((0.80, 0.82))]
    runs += [history(seed, accuracy, name="b") for seed, accuracy in enumerate((0.7, 0.71, 0.72))]
    said = report([*runs, history(0, 0.1, name="c")]).splitlines()[-1]
    assert f"by {math.sqrt(4 / 3):.2f} points" in said
    assert "3 degrees of freedom" in said
    assert f"up to {3.182 * math.sqrt(2 * 4 / 3):.1f} points at 95 %" in said
    assert "degrees of freedom" not in report([history(0, 0.8)])


def test_what_the_benchmark_wrote_is_no_run(tmp_path):
    history(0, 0.8).save(tmp_path / "0.json")
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "cpu.json").write_text('{"dataset": "CIFAR-10", "pairs": {}}')
    assert [run.seed for run in load_results(tmp_path)] == [0]
    with pytest.raises(FileNotFoundError, match="bench"):
        load_results(tmp_path / "bench")


def test_a_folder_without_results_is_an_error_that_names_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        load_results(tmp_path)
