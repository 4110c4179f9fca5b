"""lab/trials.py: what the trials change, and the table of their records."""

import math
import shutil

import pytest

from lab.commands import HERE, main
from lab.recipes import RECIPES, Recipe
from lab.records import History
from lab.study import load_results
from lab.trials import TRIALS, trials, trials_table
from model import Net

RECORDS = HERE / "results" / "trials"


def history(change: str, seed: int, accuracy: float, processor: str = "A") -> History:
    (run, *_) = trials("minute", [change])
    machine = {"processor": processor}
    made = History(run.name, "CIFAR-10", 1, run.recipe.to_dict(), seed, machine, evaluated_on="validation")
    made.train_loss = [1.0] * run.recipe.epochs
    made.validation_accuracy = [0.1] * (run.recipe.epochs - 1) + [accuracy]
    return made


@pytest.mark.parametrize("recipe", TRIALS)
def test_each_trial_differs_from_the_others_and_holds_images_out(recipe):
    runs = trials(recipe)
    assert len({str(run.recipe.to_dict()) for run in runs}) == len(TRIALS[recipe]) == len(runs) / 2
    assert {run.validation for run in runs} == {5_000}
    assert {run.seed for run in runs} == {0, 1}
    for run in runs:
        Net(**run.recipe.net)


def test_the_first_trial_of_minute_is_the_recipe():
    assert trials("minute")[0].recipe == RECIPES["minute"]


def test_an_unknown_recipe_or_change_is_named_with_the_choices():
    with pytest.raises(ValueError, match=r"unknown recipe 'lunch'; choose one of 'minute'"):
        trials("lunch")
    with pytest.raises(ValueError, match=r"unknown changes \['lr 9'\]; choose from 'as it is', 'lr 0.11'"):
        trials("minute", ["lr 9"])


def test_a_difference_is_between_the_same_seeds_on_the_same_processor():
    runs = [history("as it is", 0, 0.80), history("as it is", 1, 0.84), history("as it is", 0, 0.10, "B")]
    runs += [history("lr 0.2", 0, 0.81), history("lr 0.2", 1, 0.86)]
    runs += [history("cosine", 0, 0.80), history("cosine", 1, 0.83), history("cosine", 2, 0.99)]
    table = trials_table("minute", iter(runs))
    cells = {row[0] + row[1]: row[2:] for row in table.rows}
    assert list(cells) == ["as it isA", "as it isB", "lr 0.2A", "cosineA"]
    assert cells["as it isA"] == ("2", "82.00", "", "1.00")
    # The differences are 1 and 2, 0 and -1: pooled variance 0.5 with 2 degrees of freedom, t = 4.303.
    half = 4.303 * math.sqrt(0.5 / 2)
    assert cells["lr 0.2A"] == ("2", "83.50", f"+1.50 ± {half:.2f}", "1.00")
    assert cells["cosineA"][:3] == ("3", "87.33", f"-0.50 ± {half:.2f}")


def test_a_run_that_is_not_finished_or_has_another_recipe_is_left_out():
    stopped, other = history("lr 0.2", 0, 0.9), history("cosine", 0, 0.9)
    stopped.train_loss.pop()
    other.recipe["lr"] = 0.01
    assert len(trials_table("minute", [history("as it is", 0, 0.80), stopped, other]).rows) == 1


def test_an_interval_is_left_out_where_no_change_has_two_seeds():
    runs = [history("as it is", 0, 0.80), history("lr 0.2", 0, 0.81)]
    assert trials_table("minute", runs).rows[1][4] == "+1.00"


def test_the_arithmetic_follows_from_epochs_and_pixels():
    def cost(change: str) -> float:
        (row,) = trials_table("minute", [history(change, 0, 0.5)]).rows
        return float(row[-1])

    usual = 0.6 * 0.75**2 + 0.4
    assert cost("32 pixels throughout") == pytest.approx(1 / usual, abs=0.005)
    assert cost("24 pixels for 0.5 of the steps") == pytest.approx((0.5 * 0.75**2 + 0.5) / usual, abs=0.005)
    assert cost("batches of 512, lr 0.2, 7 epochs") == pytest.approx(7 / 6, abs=0.005)


@pytest.mark.parametrize("recipe", TRIALS)
def test_every_trial_has_records_of_two_seeds_with_its_recipe(recipe):
    for run in trials(recipe):
        found = [each for each in load_results(RECORDS) if (each.name, each.seed) == (run.name, run.seed)]
        assert found, run.name
        for record in found:
            assert Recipe.from_dict(record.recipe) == run.recipe
            assert record.dataset == "CIFAR-10"


def test_the_page_has_the_tables_of_the_records():
    page = (RECORDS / "README.md").read_text()
    histories = load_results(RECORDS)
    for recipe in TRIALS:
        assert trials_table(recipe, histories).markdown() in page


def test_the_command_trains_what_is_asked_for_and_prints_the_table(capsys, tmp_path, monkeypatch):
    asked = []

    def run_all(runs, out, *, executor, **options):
        asked.append(runs)
        shutil.copy(RECORDS / f"{runs[0].stem}.json", out)

    monkeypatch.setattr("lab.commands.run_all", run_all)
    command = ["trials", "minute", "--out", str(tmp_path)]
    assert main([*command, "--only", "as it is", "--seeds", "3", "--dtype", "float32"]) == 0
    (runs,) = asked
    assert [(run.seed, run.dtype, run.validation) for run in runs] == [
        (n, "float32", 5_000) for n in range(3)
    ]
    printed = capsys.readouterr().out
    assert printed.splitlines()[1].startswith("as it is")
    assert main([*command, "--table"]) == 0  # trains nothing
    assert (capsys.readouterr().out, len(asked)) == (printed, 1)
