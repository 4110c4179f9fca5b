"""lab/pictures.py: what is drawn of a study, and when."""

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from test_findings import IMAGES, RECIPE, finished

from lab.costs import BATCH, network_key
from lab.experiment import Experiment
from lab.figures.common import figure_of
from lab.grid import Family, Records, Study, best_of
from lab.measurements import Labels, Measurements
from lab.pictures import budgets_picture, in_words, pictures
from model import Net, count_parameters

CONVS, NORMS = ("standard", "dilated", "mixed"), ("batch", "none")
ARMS = [Experiment(f"{conv} {norm}", RECIPE, norm=norm, conv=conv) for conv in CONVS for norm in NORMS]
PAIRS = tuple((f"{conv} batch", "standard batch") for conv in CONVS[1:])
STUDY = Study("mine", "Which?", ARMS, [Family("techniques", PAIRS)], seeds=4, more_seeds=0)


@pytest.fixture(scope="module")
def records(tmp_path_factory) -> Records:
    folder = tmp_path_factory.mktemp("records")
    while missing := STUDY.missing(Records(folder)):
        for run in missing:
            best = 0.1 if run.norm == "batch" else 0.2
            finished(folder, run, 0.5 if run.recipe.lr == best else 0.4)
    return Records(folder)


def texts(drawn: Axes | Figure) -> list[str]:
    figure = drawn if isinstance(drawn, Figure) else figure_of(drawn)
    return [text.get_text() for ax in figure.axes for text in ax.texts]


def test_a_study_that_is_not_complete_has_no_picture(tmp_path):
    assert pictures(STUDY, Records(tmp_path)) == {}


def test_every_kind_of_picture_that_fits_is_drawn(records):
    assert [*pictures(STUDY, records)] == ["mine-grid", "mine-curves", "mine-costs", "mine-differences"]


def test_the_grid_shows_each_accuracy_with_its_interval_and_rate(records):
    shown = texts(pictures(STUDY, records)["mine-grid"]())
    for arm in ARMS:
        found = STUDY.accuracy(arm.label, records)
        assert any(f"{100 * found.mean:.1f} ± {100 * found.half:.1f}" in text for text in shown)
    rates = {best_of(STUDY.search(arm, records)[0]).lr for arm in ARMS}
    assert rates == {0.1, 0.2}
    assert all(any(f"lr {rate:g}" in text for text in shown) for rate in rates)


def test_the_curves_are_those_of_the_first_technique(records):
    ax = pictures(STUDY, records)["mine-curves"]()
    assert {"batch norm", "no norm"} <= {line.get_label() for line in ax.get_lines()}
    runs = STUDY.results(records)["standard batch"]
    (line,) = (line for line in ax.get_lines() if line.get_label() == "batch norm")
    assert line.get_ydata()[-1] == pytest.approx(25 * sum(run.accuracy[-1] for run in runs))


def test_the_best_and_the_worst_arm_are_told_in_words(records, tmp_path):
    means = {label: 100 * STUDY.accuracy(label, records).mean for label in ("standard batch", "mixed batch")}
    best, worst = sorted(means, key=means.__getitem__, reverse=True)
    assert in_words(STUDY, records, means) == (
        f"The highest is {best} with {means[best]:.1f} %, the lowest {worst} with {means[worst]:.1f} %."
    )
    assert in_words(STUDY, Records(tmp_path)) == ""


def test_costs_are_those_of_the_networks(records):
    figure = pictures(STUDY, records)["mine-costs"]()
    places = {float(line.get_xdata()[0]) for line in figure.axes[0].get_lines() if len(line.get_xdata()) == 1}
    assert count_parameters(Net("batch", "dilated", width=0.25)) in places
    assert len(figure.axes) == 2  # no time was measured


def test_techniques_at_several_budgets_are_in_one_picture(records):
    measured = measured_costs(ARMS).costs
    figure = budgets_picture({"equal width": STUDY, "equal size": STUDY}, records, measured)
    assert len(figure.axes) == 3
    told = [text for text in texts(figure) if text.startswith("equal")]
    assert sorted(told) == sorted(["equal size", "equal width"] * len(CONVS) * 3)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [*CONVS]
    places = [line.get_xdata()[0] for line in figure.axes[2].get_lines() if len(line.get_xdata()) == 1]
    assert {*map(float, places)} == {100.0}
    assert "techniques with batch norm, at equal width and equal size" in figure.get_suptitle()


def measured_costs(arms) -> Measurements:
    """25.6 ms of training for every network, which are 100 µs an image."""
    keys = [network_key(arm) for arm in arms]
    times = {"train": {key: [0.0256] for key in keys}, "forward": {key: [0.00256] for key in keys}}
    counts = {"flops": dict.fromkeys(keys, 512_000), "memory": dict.fromkeys(keys, 12_345)}
    return Measurements({"machine": {}, "batch_size": BATCH, "product": {"100": [0.05]}} | times | counts)


def test_techniques_are_compared_with_the_first_norm_and_at_measured_time(records):
    figure = pictures(STUDY, records, measured_costs(ARMS))["mine-compared"]()
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [*CONVS]
    found = STUDY.accuracy("mixed batch", records)
    assert f"{100 * found.mean:.1f} ± {100 * found.half:.1f} %" in texts(figure)
    assert texts(figure)[-1] == "100 µs"
    assert figure.get_suptitle() == "CIFAR-10: mine, with batch norm, 1 epoch"


def test_techniques_are_also_compared_at_a_width_and_a_length_of_their_own(tmp_path):
    sizes = {"standard": (0.25, 3), "dilated": (0.25, 2), "mixed": (0.5, 2)}
    arms = [
        Experiment(conv, replace(RECIPE, net={"width": width}, epochs=epochs), conv=conv)
        for conv, (width, epochs) in sizes.items()
    ]
    other = Experiment("other", replace(RECIPE, net={"width": 0.25, "post_activation": True}))
    families = [Family("techniques", (("mixed", "standard"), ("dilated", "standard")))]
    study = Study("budget", "Which?", arms, families, seeds=1, more_seeds=0)
    while missing := study.missing(Records(tmp_path)):
        for run in missing:
            finished(tmp_path, run, 0.5 if run.recipe.lr == 0.1 else 0.4)
    drawn = pictures(study, Records(tmp_path), measured_costs(arms))
    figure = drawn["budget-compared"]()
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [*sizes]
    assert f"{count_parameters(Net(width=0.5)):,}" in texts(figure)
    assert figure.get_suptitle() == "CIFAR-10: budget, with batch norm, 2 to 3 epochs"
    several = Study("several", "Which?", [*arms, other], families, seeds=1, more_seeds=0)
    while missing := several.missing(Records(tmp_path)):
        for run in missing:
            finished(tmp_path, run, 0.5 if run.recipe.lr == 0.1 else 0.4)
    assert "several-compared" not in pictures(several, Records(tmp_path), measured_costs(arms))


def test_differences_are_drawn_with_their_figures(records):
    shown = texts(pictures(STUDY, records)["mine-differences"]())
    (found, *_) = STUDY.differences(STUDY.families[0], records).values()
    expected = f"{abs(100 * found.mean):.1f} ± {100 * found.half:.1f}"
    assert any(expected in text for text in shown)


def test_the_accuracy_of_a_class_is_that_of_its_images(records):
    labels = Labels(("cat", "dog"), np.arange(IMAGES) % 2)
    ax = pictures(STUDY, records, Measurements(labels=labels))["mine-classes"]()
    dogs = STUDY.differences(STUDY.families[0], records, labels.labels == 1)["mixed batch", "standard batch"]
    runs = STUDY.results(records)
    pairs = zip(runs["mixed batch"], runs["standard batch"], strict=True)
    expected = np.mean([one.rights()[1::2].mean() - other.rights()[1::2].mean() for one, other in pairs])
    assert dogs.mean == pytest.approx(expected)
    places = [x for line in ax.get_lines() for x in np.atleast_1d(line.get_xdata())]
    assert any(x == pytest.approx(100 * expected) for x in places)
