"""The pictures of a study: what is drawn equals what was given, and no label lies on another."""

import math
from itertools import combinations

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.text import Annotation, Text

from lab import figures
from lab.figures.common import NEUTRAL, NEUTRAL_MARKER, luminance
from lab.figures.study import _log_ticks, _plain

NAMED = {"dataset": "STAND-IN (not CIFAR-10)"}
LONG = "blueprint_separable, first row standard"
nan = math.nan


@pytest.fixture(autouse=True)
def no_display():
    plt.switch_backend("Agg")
    yield
    plt.close("all")


def colour_of(line):
    return to_hex(line.get_color()).upper()


def written(ax):
    return [text.get_text() for text in ax.texts if text.get_text()]


def boxes(ax):
    """The places of all texts in the Axes, without the lines that join them to something."""
    ax.figure.draw_without_rendering()
    return [Text.get_window_extent(text) for text in ax.texts if text.get_text()]


def interval(container):
    """The ends of the interval of an errorbar, along its axis; None if it has none."""
    bars = container[2][0].get_segments()
    if not bars or not np.isfinite(bars[0]).all():
        return None
    along = 1 if container.has_yerr else 0
    return sorted(bars[0][:, along].tolist())


# ---- Costs -----------------------------------------------------------------------------------------


def point(technique="standard", **changes):
    costs = {"parameters": 50_000, "macs": 5e6, "microseconds": 200.0}
    return {"name": technique, "technique": technique, "accuracy": 0.844, "half": 0.003} | costs | changes


def test_costs_are_drawn_where_they_are():
    points = [
        point(),
        point("mixed", parameters=93_000, macs=2e7, microseconds=350.5, accuracy=0.9, half=nan),
    ]
    figure = figures.plot_costs(points, **NAMED)
    assert len(figure.axes) == 3
    for ax, key in zip(figure.axes, ("parameters", "macs", "microseconds"), strict=True):
        assert ax.get_xscale() == "log"
        marks = [line for line in ax.lines if line.get_marker() in figures.TECHNIQUE_MARKERS.values()]
        for line, each in zip(marks, points, strict=True):
            np.testing.assert_allclose(line.get_xydata(), [[each[key], 100 * each["accuracy"]]])
            assert colour_of(line) == figures.TECHNIQUE_COLOURS[each["technique"]]
            assert line.get_marker() == figures.TECHNIQUE_MARKERS[each["technique"]]
        first, second = ax.containers
        assert interval(first) == pytest.approx([84.1, 84.7])
        assert not second.has_yerr
        assert written(ax) == ["standard", "mixed"]
        assert not ax.xaxis.get_minorticklocs().size
        assert len({axis.get_ylim() for axis in figure.axes}) == 1
    labels = [ax.get_xlabel() for ax in figure.axes]
    assert labels == ["parameters [number]", "MACs [number per image]", "training time [µs per image]"]
    assert figure.axes[0].get_ylabel() == "test accuracy [%]"


@pytest.mark.parametrize("time", [{"microseconds": nan}, "missing"])
def test_a_panel_without_points_is_left_out_and_one_with_some_names_the_others(time):
    untimed = point("mixed")
    del untimed["microseconds"]
    if time != "missing":
        untimed |= time
    assert len(figures.plot_costs([untimed], **NAMED).axes) == 2
    figure = figures.plot_costs([untimed, point("dilated")], **NAMED)
    assert [ax.get_title() for ax in figure.axes] == ["", "", "not measured: mixed"]
    assert [len(written(ax)) for ax in figure.axes] == [2, 2, 1]


def test_an_unknown_technique_is_neutral():
    figure = figures.plot_costs([point("wavelet")], **NAMED)
    (line,) = [line for line in figure.axes[0].lines if line.get_marker() == NEUTRAL_MARKER]
    assert colour_of(line) == NEUTRAL.upper()


def test_norms_are_the_labels_where_they_tell_points_apart():
    points = [
        point(technique, norm=norm, accuracy=0.8 + 0.01 * place)
        for technique in ("standard", "mixed")
        for place, norm in enumerate(("batch", "layer"))
    ]
    figure = figures.plot_costs(points, **NAMED)
    assert written(figure.axes[0]) == ["batch", "layer"] * 2
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["standard", "mixed"]
    alike = figures.plot_costs([each | {"norm": "batch"} for each in points[::2]], **NAMED)
    assert written(alike.axes[0]) == ["standard", "mixed"]
    assert not alike.legends


@pytest.mark.parametrize("dpi", [90, 240])
def test_no_label_of_a_point_lies_on_another_or_on_a_point(dpi):
    points = [
        point(
            name=f"{LONG} {number}", accuracy=0.8 + 0.002 * number, parameters=50_000 + 40_000 * (number % 3)
        )
        for number in range(9)
    ]
    figure = figures.plot_costs(points, **NAMED)
    figure.set_dpi(dpi)
    for ax in figure.axes:
        found = boxes(ax)
        assert len(found) == len(points)
        assert not any(one.overlaps(other) for one, other in combinations(found, 2))
        frame = ax.get_window_extent()
        for box in found:
            assert frame.x0 - 2 <= box.x0 < box.x1 <= frame.x1 + 2
            assert frame.y0 - 2 <= box.y0 < box.y1 <= frame.y1 + 2
        for each in points:
            key = ("parameters", "macs", "microseconds")[figure.axes.index(ax)]
            x, y = ax.transData.transform((each[key], 100 * each["accuracy"]))
            assert not any(box.contains(x, y) for box in found)


def test_no_label_hides_another_point_or_its_interval():
    points = [
        point("standard", name="left"),
        point("mixed", name="right", parameters=60_000, half=0.04),
        point("dilated", name="far", parameters=900_000),
    ]
    ax = figures.plot_costs(points, **NAMED).axes[0]
    left, right, _ = boxes(ax)
    x, _ = ax.transData.transform((60_000, 84.4))
    assert left.x1 < x - 3
    assert right.x0 > x + 3


def test_a_label_stands_beside_its_point_and_is_joined_to_it_if_it_had_to_move():
    alone = figures.plot_costs([point()], **NAMED).axes[0]
    (box,) = boxes(alone)
    x, y = alone.transData.transform((50_000, 84.4))
    assert (box.y0 + box.y1) / 2 == pytest.approx(y, abs=2)
    assert 0 < box.x0 - x < 20
    assert not joined(alone)
    crowd = figures.plot_costs([point(name=f"run {number}") for number in range(8)], **NAMED).axes[0]
    assert joined(crowd)


def joined(ax):
    return [text for text in ax.texts if isinstance(text, Annotation) and text.arrow_patch is not None]


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (31e3, 4e6, ["0.1M", "0.3M", "1M", "3M"]),
        (600, 150e3, ["1k", "10k", "0.1M"]),
        (33e3, 600e3, ["50k", "0.1M", "0.2M", "0.5M"]),
        (190, 430, ["200", "300", "400"]),
        (0.9e9, 4e9, ["1G", "1.5G", "2G", "3G", "4G"]),
        (57e3, 139e3, ["60k", "70k", "80k", "90k", "0.1M"]),
        (1, 1e9, ["1", "100", "10k", "1M", "100M"]),
    ],
)
def test_ticks_are_plain_numbers(low, high, ticks):
    assert [_plain(tick) for tick in _log_ticks(low, high)] == ticks


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"accuracy": 84.4}, r"points\[0\]\['accuracy'\]=84.4 must be a number from 0 to 1"),
        ({"half": -0.1}, r"points\[0\]\['half'\]=-0.1 must be"),
        ({"half": None}, r"points\[0\]\['half'\]=None must be"),
        ({"parameters": 0}, r"points\[0\]\['parameters'\]=0 must be a number above 0"),
        ({"macs": nan}, r"points\[0\]\['macs'\]=nan"),
        ({"microseconds": 0.0}, r"points\[0\]\['microseconds'\]=0.0"),
    ],
)
def test_costs_refuse_impossible_numbers(change, message):
    with pytest.raises(ValueError, match=message):
        figures.plot_costs([point() | change], **NAMED)


def test_costs_refuse_other_things():
    with pytest.raises(ValueError, match=r"points=\[\]: expected a list of dictionaries, not empty"):
        figures.plot_costs([], **NAMED)
    with pytest.raises(ValueError, match=r"points\[0\] lacks \['half', 'parameters'\]"):
        figures.plot_costs([{k: v for k, v in point().items() if k not in ("half", "parameters")}], **NAMED)
    with pytest.raises(ValueError, match=r"points\[0\] is of type str"):
        figures.plot_costs(["standard"], **NAMED)


# ---- The frontier ----------------------------------------------------------------------------------


def a_network(**changes):
    return {"name": "a", "parameters": 50_000, "accuracy": 0.9, "ours": True} | changes


def test_the_frontier_tells_ours_from_others_and_what_was_chosen_on_test_images():
    points = [
        a_network(half=0.01),
        a_network(name="b", ours=False),
        a_network(name="c", ours=False, on_test=True),
    ]
    points = [point | {"parameters": 50_000 * 2**number} for number, point in enumerate(points)]
    ax = figures.plot_frontier(points, **NAMED)
    marks = {line.get_xdata()[0]: line for line in ax.get_lines() if line.get_marker() in ("o", "s")}
    ours, other, chosen = (marks[50_000 * 2**number] for number in range(3))
    assert (ours.get_marker(), other.get_marker(), chosen.get_marker()) == ("s", "o", "o")
    assert colour_of(ours) != colour_of(other) == colour_of(chosen)
    assert (other.get_markerfacecolor(), chosen.get_markerfacecolor()) == (other.get_color(), "white")
    assert interval(ax.containers[0]) == pytest.approx([89, 91])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        "ours",
        "others",
        "others, chosen on the test images",
    ]
    assert written(ax) == ["a", "b", "c"]
    assert NAMED["dataset"] in ax.get_title()


@pytest.mark.parametrize(
    ("points", "named"),
    [
        ([], r"points=\[\]"),
        ([{"name": "a", "parameters": 1, "accuracy": 0.9}], "ours"),
        ([a_network(accuracy=94.4)], r"points\[0\]\['accuracy'\]=94.4"),
        ([a_network(), a_network(parameters=0)], r"points\[1\]\['parameters'\]=0"),
        ([a_network(half=-1)], r"points\[0\]\['half'\]=-1"),
    ],
)
def test_points_of_the_frontier_that_cannot_be_drawn_are_named(points, named):
    with pytest.raises(ValueError, match=named):
        figures.plot_frontier(points, **NAMED)


# ---- Grid ------------------------------------------------------------------------------------------


def test_a_grid_shows_values_half_widths_and_notes():
    values, halves = [[0.844, 0.5], [nan, 0.7]], [[0.003, nan], [nan, 0.01]]
    notes = [["lr 0.12", ""], ["diverged", "lr 0.2"]]
    own = plt.subplots()[1]
    ax = figures.plot_grid(
        values, halves, ["batch", "none"], ["mixed", "standard"], notes=notes, ax=own, **NAMED
    )
    assert ax is own
    cells = {}
    for text in ax.texts:
        cells.setdefault(text.xy, []).append(text.get_text())
    assert cells == {
        (0, 0): ["84.4 ± 0.3", "lr 0.12"],
        (1, 0): ["50.0"],
        (0, 1): ["\N{EN DASH}", "diverged"],
        (1, 1): ["70.0 ± 1.0", "lr 0.2"],
    }
    np.testing.assert_allclose(ax.images[0].get_array().filled(-1), [[84.4, 50], [-1, 70]])
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("technique", "normalization")
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["mixed", "standard"]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["batch", "none"]
    bar = next(each for each in ax.figure.axes if each is not ax)
    assert bar.get_ylabel() == "test accuracy [%]"


def test_the_texts_of_a_grid_can_be_read_on_their_cells():
    values = np.linspace(0.1, 0.9, 48).reshape(6, 8)
    rows, columns = [f"row {n}" for n in range(6)], [f"column {n}" for n in range(8)]
    ax = figures.plot_grid(values, values * 0, rows, columns, **NAMED, xlabel="a", ylabel="b")
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("a", "b")
    for text in ax.texts:
        column, row = text.xy
        shades = (
            luminance(tuple(ax.images[0].to_rgba(100 * values[row, column]))),
            luminance(text.get_color()),
        )
        assert (max(shades) + 0.05) / (min(shades) + 0.05) >= 3.5  # WCAG asks 3 of large text
    assert len({text.get_color() for text in ax.texts}) == 2


def test_long_names_of_a_grid_are_complete_and_apart():
    names = [LONG, LONG.replace("blueprint", "depthwise"), "dilated", "mixed", "standard"]
    values = np.full((5, 5), 0.8)
    ax = figures.plot_grid(values, values * 0, names, names, **NAMED)
    ax.figure.draw_without_rendering()
    for ticks in (ax.get_xticklabels(), ax.get_yticklabels()):
        flat = ["".join(tick.get_text().split()) for tick in ticks]
        assert flat == [name.replace(" ", "") for name in names]
        found = [tick.get_window_extent() for tick in ticks]
        assert not any(one.overlaps(other) for one, other in combinations(found, 2))


def test_a_grid_refuses_what_does_not_fit():
    def grid(values=((0.5,),), halves=((0.1,),), rows=("a",), columns=("b",), **options):
        figures.plot_grid(values, halves, rows, columns, **NAMED, **options)

    with pytest.raises(ValueError, match=r"values of shape \(1, 2\): expected \(1, 1\)"):
        grid(values=[[0.5, 0.6]])
    with pytest.raises(ValueError, match=r"halves of shape \(1,\): expected \(1, 1\)"):
        grid(halves=[0.1])
    with pytest.raises(ValueError, match="values contain 50: expected numbers from 0 to 1"):
        grid(values=[[50]])
    with pytest.raises(ValueError, match=r"halves contain -0\.1"):
        grid(halves=[[-0.1]])
    with pytest.raises(ValueError, match="values of type <U1"):
        grid(values=[["a"]])
    with pytest.raises(ValueError, match="values are all nan"):
        grid(values=[[nan]])
    with pytest.raises(ValueError, match="0 rows and 1 columns"):
        grid(values=np.zeros((0, 1)), rows=[])
    with pytest.raises(ValueError, match=r"notes have rows of lengths \[2\]: expected \(1, 1\)"):
        grid(notes=[["a", "b"]])


# ---- Bands -----------------------------------------------------------------------------------------


def test_bands_are_means_and_ranges_over_seeds():
    curves = {"standard": [[0.1, 0.4, 0.5], [0.3, 0.5, 0.9]], LONG: np.array([[0.2, 0.3]])}
    ax = figures.plot_bands(curves, **NAMED)
    first, second = ax.lines
    np.testing.assert_allclose(first.get_xydata(), [[1, 20], [2, 45], [3, 70]])
    np.testing.assert_allclose(second.get_xydata(), [[1, 20], [2, 30]])
    assert colour_of(first) == figures.TECHNIQUE_COLOURS["standard"]
    assert first.get_marker() == figures.TECHNIQUE_MARKERS["standard"]
    assert first.get_linestyle() != second.get_linestyle()
    edges = ax.collections[0].get_paths()[0].vertices
    for epoch, (low, high) in enumerate([(10, 30), (40, 50), (50, 90)], 1):
        at = edges[edges[:, 0] == epoch, 1]
        assert (at.min(), at.max()) == pytest.approx((low, high))
    assert written(ax) == ["standard", LONG]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("epoch", "test accuracy [%]")
    assert all(tick == round(tick) for tick in ax.get_xticks())


def test_labels_of_equal_bands_do_not_overlap():
    ax = figures.plot_bands({f"{LONG} {number}": [[0.5, 0.6]] for number in range(10)}, **NAMED)
    found = boxes(ax)
    assert len(found) == 10
    assert not any(one.overlaps(other) for one, other in combinations(found, 2))


def test_bands_refuse_what_does_not_fit():
    with pytest.raises(ValueError, match=r"curves={}: expected a dictionary"):
        figures.plot_bands({}, **NAMED)
    with pytest.raises(ValueError, match=r"curves\['a'\] of shape \(2,\): expected \(seeds, epochs\)"):
        figures.plot_bands({"a": [0.5, 0.6]}, **NAMED)
    with pytest.raises(ValueError, match=r"curves\['a'\] of shape \(0, 3\)"):
        figures.plot_bands({"a": np.zeros((0, 3))}, **NAMED)
    with pytest.raises(ValueError, match=r"curves\['a'\] contain nan: expected numbers from 0 to 1"):
        figures.plot_bands({"a": [[0.5, nan]]}, **NAMED)


# ---- Differences -----------------------------------------------------------------------------------


def row(difference=0.016, low=0.012, high=0.02, seeds=10, name="standard - mixed"):
    return {"name": name, "difference": difference, "low": low, "high": high, "seeds": seeds}


def test_differences_have_their_intervals_and_figures():
    rows = [
        row(),
        row(-0.002, -0.006, 0.002, 1, name="dilated"),
        row(-0.062, -0.07, -0.05, 5, name="dilated"),
        row(-0.0001, nan, nan, 2, name=LONG + " - mixed"),
    ]
    ax = figures.plot_differences(rows, **NAMED)
    assert written(ax) == [
        "+1.6 ± 0.4 (10 seeds)",
        "\N{MINUS SIGN}0.2 ± 0.4 (1 seed)",
        "\N{MINUS SIGN}6.2, \N{MINUS SIGN}7.0 to \N{MINUS SIGN}5.0 (5 seeds)",
        "+0.0 (2 seeds)",
    ]
    assert [container.has_xerr for container in ax.containers] == [True, True, True, False]
    ends = [[1.2, 2.0], [-0.6, 0.2], [-7, -5]]
    for container, end in zip(ax.containers, ends, strict=False):
        assert interval(container) == pytest.approx(end)
    marks = [container[0] for container in ax.containers]
    np.testing.assert_allclose([line.get_xdata()[0] for line in marks], [1.6, -0.2, -6.2, -0.01])
    assert [to_hex(line.get_markerfacecolor()) == "#ffffff" for line in marks] == [False, True, False, True]
    dilated = figures.TECHNIQUE_COLOURS["dilated"]
    assert [colour_of(line) == dilated for line in marks] == [False, False, True, False]
    flat = ["".join(tick.get_text().split()) for tick in ax.get_yticklabels()]
    assert flat == [each["name"].replace(" ", "") for each in rows]
    top, bottom = (ax.transData.transform((0, place))[1] for place in (0, 1))
    assert top > bottom  # the first row is the uppermost
    assert ax.get_xlabel() == "difference [points of test accuracy]"


def test_zero_is_in_the_picture_of_differences():
    ax = figures.plot_differences([row(0.3, 0.29, 0.31)], unit="points", **NAMED)
    low, high = ax.get_xlim()
    assert low < 0 < 31 < high
    assert ax.lines[0].get_xdata() == [0, 0]
    assert ax.get_xlabel() == "difference [points]"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (row(1.6), r"rows\[0\]\['difference'\]=1.6 must be a number from -1 to 1"),
        (row(low=0.018), r"rows\[0\]: difference=0.016 with low=0.018 and high=0.02: expected it between"),
        (row(low=nan), r"low=nan and high=0.02: expected it between them, or both nan"),
        (row(seeds=0), r"rows\[0\]\['seeds'\]=0 must be an integer of at least 1"),
        ({"name": "a"}, r"rows\[0\] lacks \['difference', 'low', 'high', 'seeds'\]"),
    ],
)
def test_differences_refuse_what_does_not_fit(wrong, message):
    with pytest.raises(ValueError, match=message):
        figures.plot_differences([wrong], **NAMED)


# ---- Changes ---------------------------------------------------------------------------------------

CLASSES = ["cat", "dog", "frog"]


def test_changes_are_sorted_by_the_largest_magnitude():
    changes = {"dilated": [0.01, -0.05, 0.02], LONG: [0.01, 0.0, -0.03]}
    halves = {"dilated": [0.02, 0.01, nan], LONG: [0.005] * 3}
    ax = figures.plot_changes(CLASSES, changes, halves, **NAMED)
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["dog", "frog", "cat"]
    marks = [container[0] for container in ax.containers]
    np.testing.assert_allclose([line.get_xdata()[0] for line in marks], [-5, 2, 1, 0, -3, 1])
    rows = [round(float(line.get_ydata()[0])) for line in marks]
    assert rows == [0, 1, 2, 0, 1, 2]
    assert len({float(line.get_ydata()[0]) for line in marks}) == 6
    hollow = [to_hex(line.get_markerfacecolor()) == "#ffffff" for line in marks]
    assert hollow == [False, True, True, True, False, False]
    assert [interval(ax.containers[place]) for place in (0, 3)] == [
        pytest.approx([-6, -4]),
        pytest.approx([-0.5, 0.5]),
    ]
    assert not ax.containers[1].has_xerr
    assert {line.get_marker() for line in marks[:3]} == {figures.TECHNIQUE_MARKERS["dilated"]}
    assert len({line.get_marker() for line in marks}) == 2
    legend = ["".join(text.get_text().split()) for text in ax.get_legend().get_texts()]
    assert legend == ["dilated", LONG.replace(" ", "")]


def test_changes_refuse_what_does_not_fit():
    good = {"a": [0.1, 0.2, 0.3]}

    def changes(classes=CLASSES, given=good, halves=good):
        figures.plot_changes(classes, given, halves, **NAMED)

    with pytest.raises(ValueError, match="classes is empty"):
        changes(classes=[])
    with pytest.raises(ValueError, match=r"changes={}: expected a dictionary"):
        changes(given={})
    with pytest.raises(ValueError, match=r"changes\['a'\] of shape \(2,\): expected \(3,\)"):
        changes(given={"a": [0.1, 0.2]})
    with pytest.raises(ValueError, match=r"changes\['a'\] contain -2: expected numbers from -1 to 1"):
        changes(given={"a": [0.1, -2, 0]})
    with pytest.raises(ValueError, match=r"changes\['a'\] contain nan"):
        changes(given={"a": [0.1, nan, 0]})
    with pytest.raises(ValueError, match=r"halves of \['b'\]: expected the same names as changes, \['a'\]"):
        changes(halves={"b": [0, 0, 0]})
    with pytest.raises(ValueError, match=r"halves\['a'\] contain -0\.1: expected numbers from 0 to 1"):
        changes(halves={"a": [-0.1, 0, 0]})
