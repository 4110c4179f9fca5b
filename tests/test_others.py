"""lab/others.py: the networks of others, and ours beside them."""

import math
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from test_study import record

from lab.commands import main
from lab.others import MOST_PARAMETERS, OTHERS, Network, frontier_picture, frontier_table, others, own
from lab.records import History
from lab.study import load_results

HERE = Path(__file__).resolve().parent.parent
HEAD = "name,parameters,test accuracy [%],training,chosen on the test images,source\n"


def finished(name: str, accuracy: float, seed: int = 0, **changes) -> History:
    lists = {key: [1.0] for key in ("train_loss", "train_accuracy", "lr", "seconds", "test_loss")}
    figures = {"test_accuracy": [accuracy], "evaluated_on": "test"}
    return record(seed, name, **{"parameters": 100_000} | lists | figures | changes)


def test_the_networks_of_others_are_read_as_they_are_listed(tmp_path):
    path = tmp_path / "others.csv"
    path.write_text(HEAD + '"a, wide",97530,94.4,200 epochs,no,https://a.b\nc,80000,92,,yes,https://c.d\n')
    found = [each._replace(accuracy=round(each.accuracy, 9), half=0.0) for each in others(path)]
    assert found == [
        Network("a, wide", 97_530, 0.944, 0.0, "200 epochs", False, "https://a.b"),
        Network("c", 80_000, 0.92, 0.0, "", True, "https://c.d"),
    ]


@pytest.mark.parametrize(
    "line",
    [
        "a,97530,94.4,x,no",
        "a,many,94.4,x,no,y",
        "a,97530,944,x,no,y",
        "a,97530,94.4,x,perhaps,y",
        "a,0,9,x,no,y",
    ],
)
def test_a_line_that_is_not_a_network_is_named(tmp_path, line):
    path = tmp_path / "others.csv"
    path.write_text(f"{HEAD}b,80000,92,,yes,https://c.d\n{line}\n")
    with pytest.raises(ValueError, match=r"others.csv, line 3: "):
        others(path)


def test_ours_are_the_named_recipes_with_the_mean_of_the_processor_with_most_seeds():
    runs = [
        finished("minute-batch-mixed", 0.85 + 0.01 * seed, seed, machine={"processor": "P"})
        for seed in (0, 1)
    ]
    runs += [
        finished("minute-batch-mixed", 0.5, machine={"processor": "Q"}),
        finished("coffee-batch-mixed", 0.9),
        finished("coffee-batch-mixed-held-out-5000", 0.1),
        finished("mine-batch-mixed", 0.99),
        finished("frontier-batch-mixed", 0.2, dataset="STAND-IN (not CIFAR-10)"),
        finished("teacher-batch-mixed", 0.93, parameters=MOST_PARAMETERS),
    ]
    found = {each.name: each for each in own(runs)}
    assert found.keys() == {"minute", "coffee"}
    assert found["minute"].accuracy == pytest.approx(0.855)
    assert found["minute"].half == pytest.approx(12.706 * 0.00707 / math.sqrt(2), rel=1e-3)
    assert (found["minute"].training, found["coffee"].training) == (
        "1 epochs, mean of 2 runs",
        "1 epochs, 1 run",
    )
    assert math.isnan(found["coffee"].half)


def test_the_published_table_and_picture_are_those_of_the_records_and_the_list():
    page = (HERE / "results" / "README.md").read_text(encoding="utf-8")
    assert frontier_table(load_results(HERE / "results")).markdown() in page
    assert "](frontier.png)" in page
    assert (HERE / "results" / "frontier.png").is_file()


def test_the_command_prints_every_network_and_draws_the_picture(tmp_path, capsys):
    assert main(["frontier", "--picture", str(tmp_path / "frontier.png")]) == 0
    printed = capsys.readouterr().out
    assert all(each.name in printed and each.source in printed for each in others(OTHERS))
    assert (tmp_path / "frontier.png").is_file()


def test_every_network_is_a_point_at_its_size_and_accuracy():
    plt.switch_backend("Agg")
    ax = frontier_picture([finished("minute-batch-mixed", 0.85)])
    drawn = [place for line in ax.get_lines() for place in zip(*line.get_data(), strict=True)]
    places = {(int(x), round(float(y), 6)) for x, y in drawn}
    assert places == {(each.parameters, round(100 * each.accuracy, 6)) for each in others()} | {
        (100_000, 85.0)
    }
    plt.close("all")
