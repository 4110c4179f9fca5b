"""Figures: what is drawn equals what was given, and nothing outside the figure changes."""

import gc
import itertools
import math
import subprocess
import sys
import weakref
from itertools import combinations, pairwise
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from nbclient import NotebookClient

from lab import figures
from lab.figures.common import readable, wrapped
from lab.figures.labels import spread

HERE = Path(__file__).resolve().parent.parent
DATASET = "STAND-IN (not CIFAR-10)"
CLASSES = ("cat", "dog", "frog")


@pytest.fixture(autouse=True)
def no_display_and_no_settings_changed():
    plt.switch_backend("Agg")
    before = matplotlib.rcParams.copy()
    yield
    assert matplotlib.rcParams == before
    plt.close("all")


def history(epochs=3, dataset=DATASET, shift=0.0, part="test"):
    """What plot_curves reads of a History; `part` is what it was evaluated on, "test" or "validation"."""
    steps = [step / 100 + shift for step in range(epochs)]
    return SimpleNamespace(
        dataset=dataset,
        evaluated_on=part,
        train_loss=[2 - step for step in steps],
        train_accuracy=[0.5 + step for step in steps],
        **{
            f"{part}_loss": [2.1 - step for step in steps],
            f"{part}_accuracy": [0.4 + step for step in steps],
        },
    )


RISING = [0.001, 0.01, 0.1, 1.0], [2.0, 1.5, 1.0, 9.0]  # a range test


def pictures(count):  # uint8, pixels all different
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=generator)


def comparison_rows():
    return [
        {"name": "standard", "accuracy": 0.875, "parameters": 1234, "macs": 5_600_000, "microseconds": 12.3},
        {"name": "mixed", "accuracy": 0.9, "parameters": 93_322, "macs": 910, "microseconds": 0},
    ]


def shown(ax):
    return np.asarray(ax.images[0].get_array())


def hwc(image):
    return image.permute(1, 2, 0).numpy()


def texts(figure):
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def bench_result():
    pairs = {norm: {conv: [0.1, 0.3, 0.2] for conv in ("standard", "mixed")} for norm in ("batch", "none")}
    pairs["none"]["mixed"] = [1.5, 1.5, 9.0]
    return {
        "dataset": DATASET,
        "machine": {"processor": "abacus", "device": "cpu", "threads": 2, "torch": "2", "dtype": "bfloat16"},
        "plan": {"batches": 10, "batch_size": 100},
        "training": {"conventional": [2.0, 4.0, 1.0], "ours": [0.4, 0.6]},
        "matmul": {"float32": {"1000": [0.1, 0.2, 0.1]}, "bfloat16": {"1000": [0.04, 0.01, 0.05]}},
        "step": {
            "recipe": "minute",
            "batch_size": 256,
            "flops": 6_000_000_000,
            "seconds": {"bfloat16 channels_first": [0.2, 0.3, 0.1], "float32 channels_last": [9.0]},
        },
        "chosen": {"format": "bfloat16 channels_first"},
        "pairs": {"bfloat16": pairs},
        "growth": {
            "batch size": {"64": [0.02, 0.03, 0.04], "256": [0.1, 0.1, 0.1]},
            "width": {"0.5": [0.05] * 3, "1.0": [0.1] * 3},
            "image size": {"16": [0.025] * 3, "32": [0.1] * 3},
        },
        "summary": {
            "peak_gflops": {"float32": 20.0, "bfloat16": 50.0},
            "conventional_images_per_second": 500.0,
        },
    }


def cost_points():
    costs = {"accuracy": 0.8, "half": 0.01, "parameters": 1000, "macs": 1e6}
    return [{"name": name, "technique": name} | costs for name in ("standard", "mixed")]


def frontier_points():
    return [{"name": "minute", "parameters": 1000, "accuracy": 0.8, "ours": True}]


def difference_rows():
    return [{"name": "mixed - standard", "difference": 0.01, "low": -0.01, "high": 0.03, "seeds": 3}]


def all_figures():
    images, labels = pictures(4), torch.tensor([0, 1, 2, 0])
    logits = torch.eye(3)[torch.tensor([1, 1, 0, 0])]
    gradient = np.pad(np.ones((3, 3)), 2)
    named = {"dataset": DATASET}
    return {
        "samples": figures.plot_samples(images, labels, CLASSES, **named),
        "augmentations": figures.plot_augmentations(images, torch.stack([images] * 2, 1), **named),
        "curves": figures.plot_curves({"standard": history(), "mixed": history(shift=0.1)}),
        "misclassified": figures.plot_misclassified(images, labels, logits, CLASSES, **named),
        "none misclassified": figures.plot_misclassified(
            images, labels, torch.eye(3)[labels], CLASSES, **named
        ),
        "confusion": figures.plot_confusion(labels, logits.argmax(1), CLASSES, **named).figure,
        "range test": figures.plot_range_test({"sgd": RISING}, **named).figure,
        "receptive field": figures.plot_receptive_field(gradient, 3, **named).figure,
        "comparison": figures.plot_comparison(comparison_rows(), **named),
        "prediction": figures.plot_prediction(images[0], [("cat", 0.9)], title=DATASET),
        "field growth": figures.plot_field_growth(images[0], {"a": 3}, **named).figure,
        "kernel": figures.plot_kernel(gradient, np.eye(3), -gradient, **named),
        "benchmark": figures.plot_bench(bench_result()),
        "costs": figures.plot_costs(cost_points(), **named),
        "frontier": figures.plot_frontier(frontier_points(), **named).figure,
        "grid": figures.plot_grid([[0.5]], [[0.1]], ["batch"], ["mixed"], **named).figure,
        "bands": figures.plot_bands({"mixed": [[0.1, 0.2], [0.3, 0.4]]}, **named).figure,
        "differences": figures.plot_differences(difference_rows(), **named).figure,
        "changes": figures.plot_changes(CLASSES, {"a": [0, 0.1, 0]}, {"a": [0, 0, 0]}, **named).figure,
    }


def test_every_figure_of_data_names_its_data_set_in_the_title():
    for name, figure in all_figures().items():
        titles = [figure.get_suptitle(), *(ax.get_title() for ax in figure.axes)]
        assert any(DATASET in " ".join(title.split()) for title in titles), name


def test_every_axis_with_ticks_has_a_label():
    for name, figure in all_figures().items():
        for ax in figure.axes:
            if ax.get_label() == "<colorbar>":
                label = ax.get_ylabel() or ax.get_xlabel()
                assert label.endswith(("[%]", "largest", "[value]", "[number]")), name
            elif len(ax.get_xticks()) and ax.axison:
                assert ax.get_xlabel(), name
                assert ax.get_ylabel() or ax is not figure.axes[0], name


# ---- The caller's settings ----------------------------------------------------------------------------


def labelled(count=4):
    return pictures(count), torch.arange(count) % 3


# For each plot function a call that draws, and one that is refused.
CALLS = {
    "plot_activation_maps": (
        lambda: figures.plot_activation_maps(pictures(2), torch.ones(2, 4, 4), "ab", dataset=DATASET),
        lambda: figures.plot_activation_maps(pictures(2), torch.ones(3, 4, 4), "ab", dataset=DATASET),
    ),
    "plot_augmentations": (
        lambda: figures.plot_augmentations(pictures(2), torch.stack([pictures(2)] * 2, 1), dataset=DATASET),
        lambda: figures.plot_augmentations(pictures(2), pictures(2), dataset=DATASET),
    ),
    "plot_bands": (
        lambda: figures.plot_bands({"mixed": [[0.1, 0.2]]}, dataset=DATASET),
        lambda: figures.plot_bands({}, dataset=DATASET),
    ),
    "plot_bench": (lambda: figures.plot_bench(bench_result()), lambda: figures.plot_bench({})),
    "plot_changes": (
        lambda: figures.plot_changes(CLASSES, {"a": [0, 0.1, 0]}, {"a": [0, 0, 0]}, dataset=DATASET),
        lambda: figures.plot_changes(CLASSES, {"a": [0, 0.1, 0]}, {}, dataset=DATASET),
    ),
    "plot_comparison": (
        lambda: figures.plot_comparison(comparison_rows(), dataset=DATASET),
        lambda: figures.plot_comparison([], dataset=DATASET),
    ),
    "plot_confusion": (
        lambda: figures.plot_confusion([0, 1], [0, 1], CLASSES, dataset=DATASET),
        lambda: figures.plot_confusion([0, 9], [0, 1], CLASSES, dataset=DATASET),
    ),
    "plot_costs": (
        lambda: figures.plot_costs(cost_points(), dataset=DATASET),
        lambda: figures.plot_costs([], dataset=DATASET),
    ),
    "plot_curves": (lambda: figures.plot_curves({"a": history()}), lambda: figures.plot_curves({})),
    "plot_differences": (
        lambda: figures.plot_differences(difference_rows(), dataset=DATASET),
        lambda: figures.plot_differences([{}], dataset=DATASET),
    ),
    "plot_effective_field": (
        lambda: figures.plot_effective_field({"a": torch.ones(4, 4)}),
        lambda: figures.plot_effective_field({"a": torch.zeros(4, 4)}),
    ),
    "plot_footprints": (
        lambda: figures.plot_footprints({"a": torch.ones(3, 3).long()}),
        lambda: figures.plot_footprints({}),
    ),
    "plot_prediction": (
        lambda: figures.plot_prediction(torch.rand(3, 8, 8), [("cat", 0.9)]),
        lambda: figures.plot_prediction(torch.rand(3, 8, 8), [("cat", 9)]),
    ),
    "plot_field_growth": (
        lambda: figures.plot_field_growth(torch.rand(3, 8, 8), {"a": 3}),
        lambda: figures.plot_field_growth(torch.rand(3, 8, 8), {"a": 0}),
    ),
    "plot_kernel": (
        lambda: figures.plot_kernel(*[torch.ones(3, 3)] * 3, dataset=DATASET),
        lambda: figures.plot_kernel(*[torch.ones(3)] * 3, dataset=DATASET),
    ),
    "plot_frontier": (
        lambda: figures.plot_frontier(frontier_points(), dataset=DATASET),
        lambda: figures.plot_frontier([], dataset=DATASET),
    ),
    "plot_grid": (
        lambda: figures.plot_grid([[0.5]], [[0.1]], ["batch"], ["mixed"], dataset=DATASET),
        lambda: figures.plot_grid([[50]], [[0.1]], ["batch"], ["mixed"], dataset=DATASET),
    ),
    "plot_misclassified": (
        lambda: figures.plot_misclassified(*labelled(), torch.eye(3)[[0, 0, 0, 0]], CLASSES, dataset=DATASET),
        lambda: figures.plot_misclassified(*labelled(), torch.eye(3), CLASSES, dataset=DATASET),
    ),
    "plot_normalizations": (figures.plot_normalizations, lambda: figures.plot_normalizations("bath")),
    "plot_range_test": (
        lambda: figures.plot_range_test({"sgd": RISING}, {"sgd": 0.02}),
        lambda: figures.plot_range_test({"sgd": RISING}, {"muon": 0.02}),
    ),
    "plot_receptive_field": (
        lambda: figures.plot_receptive_field(torch.ones(4, 4), 3),
        lambda: figures.plot_receptive_field(torch.zeros(4, 4), 3),
    ),
    "plot_samples": (
        lambda: figures.plot_samples(*labelled(), CLASSES, dataset=DATASET),
        lambda: figures.plot_samples(*labelled(), CLASSES[:1], dataset=DATASET),
    ),
    "plot_techniques": (figures.plot_techniques, lambda: figures.plot_techniques(ax="left")),
}


@pytest.fixture(params=[False, True], ids=["batch mode", "interactive"])
def own_settings(request):
    """The caller has an open figure, and other values for our settings and a few more."""
    own = {name: "pink" for name in figures.STYLE if name.endswith("color")}
    own |= {"font.family": ["serif"], "font.size": 17.0, "axes.spines.top": True, "figure.dpi": 50}
    own |= {"image.cmap": "gray", "savefig.dpi": 33, "interactive": request.param}
    plt.close("all")  # those of other tests
    with matplotlib.rc_context(own):
        yield plt.figure()


@pytest.mark.parametrize("name", [name for name in dir(figures) if name.startswith("plot_")])
@pytest.mark.parametrize("how", ["draws", "is refused", "fails while it draws"])
def test_a_plot_function_leaves_the_callers_settings_unchanged(name, how, own_settings, monkeypatch):
    def state():
        return matplotlib.rcParams.copy(), matplotlib.get_backend(), matplotlib.is_interactive()

    draw, refuse = CALLS[name]
    before = state()
    if how == "draws":
        drawing = draw()
        opened = {figure.number for figure in [getattr(drawing, "figure", drawing)]}
    else:
        opened = set()
        if how == "fails while it draws":

            def no_room(*args, **kwargs):
                raise MemoryError

            monkeypatch.setattr(Figure, "add_subplot", no_room)
        with pytest.raises((ValueError, TypeError, KeyError, AttributeError, MemoryError)):
            (refuse if how == "is refused" else draw)()
    assert state() == before
    assert set(plt.get_fignums()) == opened | {own_settings.number}
    if how != "draws":
        assert plt.gcf() is own_settings


def test_many_figures_do_not_pile_up_where_none_can_be_shown(tmp_path):
    own = plt.figure()
    drawn = [figures.plot_samples(*labelled(), CLASSES, dataset=DATASET) for _ in range(60)]
    assert plt.get_fignums() == [own.number, *(figure.number for figure in drawn[-5:])]
    assert plt.gcf() is drawn[-1]
    first, last = (figures.save(drawn[n], tmp_path / f"{n}.png").read_bytes() for n in (0, 59))
    assert first == last  # a closed figure is drawn as an open one
    gone = weakref.ref(drawn[0])
    del drawn
    gc.collect()
    assert gone() is None


def test_drawing_on_the_callers_axes_closes_nothing():
    own = [plt.subplots()[1] for _ in range(8)]
    for ax in own:
        figures.plot_confusion([0, 1], [0, 1], CLASSES, dataset=DATASET, ax=ax)
    assert plt.get_fignums() == [ax.figure.number for ax in own]
    for _ in range(8):
        figures.plot_normalizations()
    assert plt.get_fignums()[:8] == [ax.figure.number for ax in own]


def test_a_figure_that_its_user_closed_is_not_missed():
    own = plt.figure()
    for _ in range(10):
        plt.close(figures.plot_normalizations())
        gc.collect()
    assert plt.get_fignums() == [own.number]


def test_where_figures_can_be_shown_all_stay_open(monkeypatch):
    monkeypatch.setattr(matplotlib, "get_backend", lambda: "TkAgg")
    for _ in range(8):
        figures.plot_normalizations()
    assert len(plt.get_fignums()) == 8


IN_A_CELL = {  # code, and how many pictures the cell shows
    "from utils import *; images, labels = torch.zeros(2, 3, 8, 8), [0, 1]": 0,
    "plot_confusion(labels, labels, 'ab', dataset='cats')": 1,
    "plot_samples(images, labels, 'ab', dataset='cats');": 1,
    "save(plot_samples(images, labels, 'ab', dataset='cats'), 'samples.png');": 1,
    "figure = plot_normalizations()\nsave(figure, 'normalizations.png')": 1,
    "for _ in range(8):\n    plot_normalizations()": 8,
    "import matplotlib.pyplot as plt; print(plt.get_fignums())": 0,
}


@pytest.mark.filterwarnings("ignore")  # warnings of the Jupyter client are not ours to mend
def test_a_notebook_shows_each_figure_once_and_keeps_none(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    monkeypatch.delenv("MPLBACKEND", raising=False)
    cells = [nbformat.v4.new_code_cell(code) for code in ["import torch", *IN_A_CELL]]
    notebook = nbformat.v4.new_notebook(cells=cells)
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    pictures = [sum("image/png" in each.get("data", {}) for each in cell.outputs) for cell in cells[1:]]
    assert dict(zip(IN_A_CELL, pictures, strict=True)) == IN_A_CELL
    assert cells[-1].outputs[0].text == "[]\n"


def test_saving_leaves_the_callers_settings_unchanged(own_settings, tmp_path):
    before = matplotlib.rcParams.copy()
    figures.save(own_settings, tmp_path / "a.png")
    with pytest.raises(OSError, match=r"a\.png"):
        figures.save(own_settings, tmp_path / "a.png" / "b.png")
    assert matplotlib.rcParams == before


def test_interactive_mode_stays_on_if_the_first_figure_turns_it_on(monkeypatch):
    subplots = plt.subplots

    def first_figure_in_jupyter(*args, **kwargs):
        matplotlib.interactive(True)
        return subplots(*args, **kwargs)

    monkeypatch.setattr(plt, "subplots", first_figure_in_jupyter)
    with matplotlib.rc_context({"interactive": False}):
        figures.plot_curves({"a": history()})
        assert matplotlib.is_interactive()


# ---- Colours ---------------------------------------------------------------------------------------


def test_a_technique_has_the_same_colour_in_every_picture():
    from model import CONVS, NORMS

    assert figures.TECHNIQUE_COLOURS.keys() == figures.TECHNIQUE_MARKERS.keys() == CONVS.keys()
    assert figures.NORM_COLOURS.keys() == NORMS.keys()
    names = [*figures.TECHNIQUE_COLOURS]
    curves = figures.plot_curves({name: history() for name in names})
    for ax in curves.axes:
        assert {line.get_label(): to_hex(line.get_color()).upper() for line in ax.lines} == (
            figures.TECHNIQUE_COLOURS
        )
        assert {line.get_label(): line.get_marker() for line in ax.lines} == figures.TECHNIQUE_MARKERS
    rows = [comparison_rows()[0] | {"name": name} for name in reversed(names)]
    for ax in figures.plot_comparison(rows, dataset=DATASET).axes[1:]:
        bars = [to_hex(bar.get_facecolor()).upper() for bar in ax.patches]
        assert bars == [figures.TECHNIQUE_COLOURS[name] for name in reversed(names)]
        for bar, line, name in zip(ax.patches, ax.lines, reversed(names), strict=True):
            assert line.get_marker() == figures.TECHNIQUE_MARKERS[name]
            assert to_hex(line.get_color()).upper() == figures.TECHNIQUE_COLOURS[name]
            middle = bar.get_y() + bar.get_height() / 2
            np.testing.assert_allclose(line.get_xydata(), [[bar.get_width(), middle]])
    schematics = figures.plot_techniques(*(name for name in names if name != "mixed"))
    drawn = {to_hex(patch.get_facecolor()).upper() for patch in schematics.axes[0].patches}
    assert drawn >= {colour for name, colour in figures.TECHNIQUE_COLOURS.items() if name != "mixed"}


# What is seen without one kind of cone, in linear RGB: Machado, Oliveira and Fernandes, "A Physiologically-
# based Model for Simulation of Color Vision Deficiency", 2009, at severity 1.
SEEN = {
    "normal": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.01182, 0.04294, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.3039],
    ],
}
TO_XYZ = [
    [0.4124564, 0.3575761, 0.1804375],
    [0.2126729, 0.7151522, 0.072175],
    [0.0193339, 0.119192, 0.9503041],
]


def lab_of(colour, seen):
    """CIELAB (lightness from 0 to 100, a, b) of a colour under the white of sRGB."""
    values = np.array(to_rgb(colour))
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    x, y, z = (np.array(TO_XYZ) @ np.clip(np.array(SEEN[seen]) @ linear, 0, 1)) / (0.95047, 1, 1.08883)
    f = [np.cbrt(v) if v > 216 / 24389 else (24389 / 27 * v + 16) / 116 for v in (x, y, z)]
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("seen", SEEN)
def test_techniques_differ_for_every_colour_vision_and_in_grey(seen):
    places = [lab_of(colour, seen) for colour in figures.TECHNIQUE_COLOURS.values()]
    assert all(np.linalg.norm(one - other) >= 25 for one, other in combinations(places, 2))
    if seen == "normal":
        lightness = sorted(place[0] for place in places)
        assert all(darker + 9 <= lighter for darker, lighter in pairwise(lightness))
        assert len(set(figures.TECHNIQUE_MARKERS.values())) == len(places)
        assert not set(figures.TECHNIQUE_MARKERS.values()) & set(figures.OTHER_MARKERS)


def test_text_in_a_readable_colour_has_contrast_and_no_less_light_than_needed():
    for colour in [*figures.TECHNIQUE_COLOURS.values(), *figures.OTHER_COLOURS, "#FFFFFF"]:
        before, after = (lab_of(each, "normal")[0] for each in (colour, readable(colour)))
        # A contrast of 4.5 on white is a luminance of 1.05 / 4.5 - 0.05 = 0.183, a lightness of 49.9.
        assert after == pytest.approx(before, abs=0.5) if before <= 49.8 else 46.5 <= after <= 50


def test_names_are_wrapped_but_complete():
    assert (
        wrapped("blueprint_separable, first row standard", 20) == "blueprint_separable,\nfirst row standard"
    )
    assert wrapped("depthwise-separable", 12) == "depthwise-\nseparable"
    assert wrapped("unbreakableword", 5) == "unbreakableword"


def test_a_name_that_begins_with_a_normalization_has_its_colour_once():
    names = ["batch norm, Muon", "group norm", "layer norm, a", "layer norm, b", "no norm"]
    palette = figures.colours(names)
    expected = [figures.NORM_COLOURS[norm] for norm in ("batch", "group", "layer")]
    assert [palette[name] for name in names[:3]] == expected
    assert len(set(palette.values())) == 5
    both = figures.colours(["layer norm, a", "layer"])
    assert both["layer"] == figures.NORM_COLOURS["layer"] != both["layer norm, a"]


def test_other_names_have_stable_and_different_markers():
    names = ["run 1", "run 2", "Depthwise-separable"]
    marks = figures.markers(names)
    assert marks["Depthwise-separable"] == figures.TECHNIQUE_MARKERS["depthwise_separable"]
    assert len(set(marks.values())) == len(names)
    assert figures.markers(["run 1"])["run 1"] == marks["run 1"]


def test_other_names_have_stable_and_different_colours():
    names = ["run 1", "run 2", "standard", "Depthwise-separable", "batch"]
    palette = figures.colours(names)
    assert palette["standard"] == figures.TECHNIQUE_COLOURS["standard"]
    assert palette["Depthwise-separable"] == figures.TECHNIQUE_COLOURS["depthwise_separable"]
    assert palette["batch"] == figures.NORM_COLOURS["batch"]
    assert len(set(palette.values())) == len(names)
    assert figures.colours(["standard", "run 1"])["run 1"] == palette["run 1"]
    others = [f"other {number}" for number in range(len(figures.OTHER_COLOURS))]
    assert set(figures.colours(others).values()) == set(figures.OTHER_COLOURS)
    assert len(figures.colours([f"{number}" for number in range(40)])) == 40


# ---- Images ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["uint8", "float", "array"])
def test_samples_are_shown_as_they_are(kind):
    images, labels = pictures(5), torch.tensor([2, 0, 1, 1, 0])
    given = {"uint8": images, "float": images / 255, "array": images.numpy()}[kind]
    figure = figures.plot_samples(given, labels, CLASSES, dataset=DATASET, columns=2)
    assert len(figure.axes) == 5
    for ax, image, label in zip(figure.axes, images, labels, strict=True):
        expected = hwc(image) / 255 if kind == "float" else hwc(image)
        np.testing.assert_allclose(shown(ax), expected, rtol=1e-6)
        assert ax.images[0].origin == "upper"
        assert ax.images[0].get_interpolation() == "nearest"
        assert ax.get_title() == CLASSES[label]
        assert len(ax.get_xticks()) == len(ax.get_yticks()) == 0
    assert figure.axes[0].get_subplotspec().get_gridspec().get_geometry() == (3, 2)


def test_augmentations_are_rows_with_the_original_first():
    originals = pictures(2)
    versions = torch.stack([originals.flip(3), originals.flip(2), 255 - originals], 1)  # (2, 3, 3, 8, 8)
    figure = figures.plot_augmentations(originals, versions, dataset=DATASET)
    expected = [image for row in range(2) for image in (originals[row], *versions[row])]
    assert len(figure.axes) == len(expected)
    for ax, image in zip(figure.axes, expected, strict=True):
        np.testing.assert_array_equal(shown(ax), hwc(image))
    assert [ax.get_title() for ax in figure.axes[:4]] == ["original", "version 1", "version 2", "version 3"]
    named = figures.plot_augmentations(originals, versions, ["a", "b", "c"], dataset=DATASET)
    assert [ax.get_title() for ax in named.axes[:4]] == ["original", "a", "b", "c"]
    with pytest.raises(ValueError, match="names of length 1: expected 3"):
        figures.plot_augmentations(originals, versions, ["a"], dataset=DATASET)


@pytest.mark.parametrize("kind", ["one-hot", "mixup", "array"])
def test_samples_are_named_by_the_largest_probability(kind):
    labels = torch.tensor([2, 0, 1])
    soft = 0.6 * F.one_hot(labels, 3) + 0.4 * F.one_hot(labels.roll(1), 3)
    given = {"one-hot": F.one_hot(labels, 3), "mixup": soft, "array": soft.numpy()}[kind]
    figure = figures.plot_samples(pictures(3), given, CLASSES, dataset=DATASET)
    assert [ax.get_title() for ax in figure.axes] == ["frog", "cat", "dog"]


def test_images_of_the_wrong_kind_are_refused():
    labels = torch.tensor([0, 1])

    def samples(images, labels=labels, **options):
        figures.plot_samples(images, labels, CLASSES, dataset=DATASET, **options)

    with pytest.raises(ValueError, match=r"images of shape \(2, 8, 8, 3\): expected \(N, 3, H, W\)"):
        samples(pictures(2).permute(0, 2, 3, 1))
    with pytest.raises(ValueError, match="at least one image"):
        samples(pictures(0))
    with pytest.raises(ValueError, match="denormalize normalized images first"):
        samples(torch.randn(2, 3, 8, 8))
    with pytest.raises(ValueError, match="expected float in"):
        samples(torch.full((2, 3, 8, 8), torch.nan))
    with pytest.raises(ValueError, match="expected uint8"):
        samples(pictures(2).long())
    with pytest.raises(ValueError, match="labels of length 2: expected 3"):
        samples(pictures(3))
    with pytest.raises(ValueError, match="labels from 0 to 3: expected class numbers from 0 to 2"):
        samples(pictures(2), torch.tensor([0, 3]))
    with pytest.raises(ValueError, match=r"expected .* integers"):
        samples(pictures(2), torch.tensor([0.0, 1.0]))
    with pytest.raises(ValueError, match=r"labels of shape \(2, 2\): .* or \(N, 3\) probabilities"):
        samples(pictures(2), torch.eye(2))
    with pytest.raises(ValueError, match="labels of length 2: expected 3"):
        samples(pictures(3), torch.eye(3)[:2])
    with pytest.raises(ValueError, match="columns=0"):
        samples(pictures(2), columns=0)
    with pytest.raises(ValueError, match=r"versions of shape \(3, 1, 3, 8, 8\): expected \(2, K, 3, H, W\)"):
        figures.plot_augmentations(pictures(2), pictures(3).unsqueeze(1), dataset=DATASET)


# ---- Curves ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["test", "validation"])
def test_curves_hold_the_histories_values(part):
    histories = {"standard": history(3, part=part), "mixed": history(5, shift=0.1, part=part)}
    figure = figures.plot_curves(histories)
    titles = ["training loss", f"{part} loss", "training accuracy", f"{part} accuracy"]
    assert [ax.get_title() for ax in figure.axes] == titles
    for ax, (attribute, factor) in zip(
        figure.axes,
        [("train_loss", 1), (f"{part}_loss", 1), ("train_accuracy", 100), (f"{part}_accuracy", 100)],
        strict=True,
    ):
        assert [line.get_label() for line in ax.lines] == list(histories)
        for line, run in zip(ax.lines, histories.values(), strict=True):
            np.testing.assert_array_equal(line.get_xdata(), range(1, len(run.train_loss) + 1))
            np.testing.assert_allclose(line.get_ydata(), np.array(getattr(run, attribute)) * factor)
        assert {text.get_text() for text in ax.texts} == set(histories)
        assert ax.get_xlabel() == "epoch"
        assert ax.get_ylabel() == ("accuracy [%]" if factor == 100 else "cross-entropy [nats]")
        assert all(tick == round(tick) for tick in ax.get_xticks())


def test_curves_of_validation_ignore_empty_test_lists():
    run = history(part="validation")
    run.test_loss, run.test_accuracy = [], []
    figure = figures.plot_curves({"mixed": run})
    assert "not measured" not in texts(figure)
    np.testing.assert_allclose(figure.axes[1].lines[0].get_ydata(), run.validation_loss)


def test_labels_of_equal_curves_do_not_overlap():
    figure = figures.plot_curves({f"run {number}": history() for number in range(12)})
    figure.draw_without_rendering()
    for ax in figure.axes:
        extents = [Text.get_window_extent(text) for text in ax.texts]  # without the lines to the curves
        boxes = sorted(extents, key=lambda box: box.y0)
        assert len(boxes) == 12
        assert all(lower.y1 <= upper.y0 for lower, upper in pairwise(boxes))


def test_curves_of_one_epoch_without_test_or_with_divergence():
    figure = figures.plot_curves({"mixed": history(1)}, dataset="CIFAR-10")
    assert "CIFAR-10" in figure.get_suptitle()
    assert all(ax.lines[0].get_marker() == figures.TECHNIQUE_MARKERS["mixed"] for ax in figure.axes)
    assert [tick for tick in figure.axes[0].get_xticks() if 0.5 <= tick <= 1.5] == [1.0]
    untested = history()
    untested.test_loss, untested.test_accuracy = [], []
    assert texts(figures.plot_curves({"mixed": untested})).count("not measured") == 2
    diverged = history()
    diverged.train_loss = [2.0, float("nan"), float("inf")]
    assert figures.plot_curves({"mixed": diverged}).axes[0].texts[0].xy == pytest.approx((1, 2.0))


def test_histories_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"histories=.* not empty"):
        figures.plot_curves({})
    with pytest.raises(ValueError, match="history 'a' has lists"):
        figures.plot_curves({"a": history(0)})
    with pytest.raises(ValueError, match="different data sets"):
        figures.plot_curves({"a": history(), "b": history(dataset="CIFAR-10")})
    with pytest.raises(ValueError, match=r"\('a' on test, 'b' on validation\)"):
        figures.plot_curves({"a": history(), "b": history(part="validation")})
    short = history()
    short.test_loss = short.test_loss[:1]
    with pytest.raises(ValueError, match="'test_loss': 1"):
        figures.plot_curves({"a": short})


# ---- Range tests -----------------------------------------------------------------------------------


def test_a_range_test_holds_the_losses_by_rate_each_line_with_its_own_marker():
    results = {"muon": ([0.01, 0.1, 1.0], [2.0, 1.0, 2.5]), "sgd": ([0.02, 0.2], [2.2, 2.1])}
    ax = figures.plot_range_test(results)
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "linear")
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("learning rate", "smoothed training loss [nats]")
    assert [line.get_label() for line in ax.lines] == ["muon", "sgd"]
    for line, (lrs, losses) in zip(ax.lines, results.values(), strict=True):
        np.testing.assert_array_equal(line.get_xdata(), lrs)
        np.testing.assert_array_equal(line.get_ydata(), losses)
    assert len({line.get_marker() for line in ax.lines}) == 2
    assert {text.get_text() for text in ax.texts} == {"muon", "sgd"}
    assert ax.get_legend() is None


def test_the_chosen_rates_are_marked_on_their_lines():
    ax = figures.plot_range_test({"sgd": RISING, "muon": RISING}, {"sgd": 0.01, "muon": 10**-1.5})
    stars = [tuple(each.get_offsets()[0]) for each in ax.collections if len(each.get_offsets())]
    assert stars == [pytest.approx((0.01, 1.5)), pytest.approx((10**-1.5, 1.25))]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["chosen rate"]
    colours = [to_hex(each.get_facecolor()[0]) for each in ax.collections if len(each.get_offsets())]
    assert colours == [to_hex(line.get_color()) for line in ax.lines]


def test_a_line_ends_where_its_loss_has_grown_beyond_what_says_anything():
    ax = figures.plot_range_test({"sgd": RISING, "flat": (RISING[0], [2.0] * 4)}, {"sgd": 0.9})
    top = 1.3 * 2.0
    assert ax.get_ylim()[1] == pytest.approx(top)
    lrs, losses = ax.lines[0].get_data()
    np.testing.assert_allclose(losses, [2.0, 1.5, 1.0, top])
    np.testing.assert_allclose(
        lrs, [0.001, 0.01, 0.1, 0.1 * 10 ** ((top - 1) / (9 - 1))]
    )  # on a straight line
    assert ax.collections[0].get_offsets()[0].tolist() == pytest.approx([0.9, top])
    assert figures.plot_range_test({"sgd": ([0.1, 1], [1.0, 1.2])}).get_ylim()[1] < 1.3


def test_a_range_test_is_drawn_into_the_axes_given():
    figure, (_, right) = plt.subplots(1, 2)
    assert figures.plot_range_test({"sgd": RISING}, ax=right) is right
    assert plt.get_fignums() == [figure.number]


@pytest.mark.parametrize(
    ("results", "chosen", "told"),
    [
        ({}, None, r"results=\{\}: expected a dictionary"),
        ([RISING], None, "expected a dictionary"),
        (
            {"sgd": ([0.1], [1.0, 2.0])},
            None,
            r"of shapes \(1,\) and \(2,\): expected two lists of one length",
        ),
        ({"sgd": ([], [])}, None, "of one length, at least 1"),
        ({"sgd": ([0.0, 0.1], [1.0, 2.0])}, None, "rates that do not grow from above 0"),
        ({"sgd": ([0.2, 0.1], [1.0, 2.0])}, None, "rates that do not grow from above 0"),
        ({"sgd": ([0.1, 0.2], [1.0, float("nan")])}, None, "has NaN or infinite numbers"),
        ({"sgd": RISING}, {"adam": 0.1}, "chosen has 'adam': expected names of lines, 'sgd'"),
        ({"sgd": RISING}, {"sgd": 2.0}, r"chosen\['sgd'\]=2.0 must be a number from 0.001 to 1"),
        ({"sgd": RISING}, {"sgd": "0.1"}, r"chosen\['sgd'\]='0.1' must be a number"),
    ],
)
def test_range_tests_that_cannot_be_drawn_are_refused(results, chosen, told):
    with pytest.raises(ValueError, match=told):
        figures.plot_range_test(results, chosen)


def test_labels_move_as_little_as_possible():
    np.testing.assert_allclose(spread([0.5, 0.5], 0.2), [0.4, 0.6])
    np.testing.assert_allclose(spread([0.9, 0.1, 0.5], 0.2), [0.9, 0.1, 0.5])
    np.testing.assert_allclose(spread([0.0, 0.0, 0.9], 0.2), [0.0, 0.2, 0.9])
    np.testing.assert_allclose(spread([1.0, 1.0], 0.2), [0.8, 1.0])


# ---- Errors ----------------------------------------------------------------------------------------


def misclassified_case():
    labels = torch.tensor([0, 1, 2, 0, 1])
    probabilities = torch.tensor(
        [[0.6, 0.3, 0.1], [0.7, 0.2, 0.1], [0.05, 0.9, 0.05], [0.2, 0.3, 0.5], [0.1, 0.8, 0.1]]
    )
    return pictures(5), labels, probabilities.log() + 3  # wrong: 1 with 70 %, 2 with 90 %, 3 with 50 %


def test_mistakes_that_somebody_has_chosen_are_not_counted_as_a_share():
    images, labels, logits = misclassified_case()
    wrong = logits.argmax(1) != labels
    figure = figures.plot_misclassified(images[wrong], labels[wrong], logits[wrong], CLASSES, dataset=DATASET)
    title = " ".join(figure.get_suptitle().split())
    assert title == f"{DATASET}: 3 misclassified images; shown: by confidence"


@pytest.mark.parametrize("soft", [False, True], ids=["class numbers", "probabilities"])
@pytest.mark.parametrize("count", [20, 2])
def test_misclassified_shows_the_most_confident_errors_first(count, soft):
    images, labels, logits = misclassified_case()
    if soft:
        labels = 0.8 * F.one_hot(labels, 3) + 0.2 / 3
    figure = figures.plot_misclassified(
        images, labels, logits, CLASSES, dataset=DATASET, count=count, title="mixed"
    )
    expected = [
        (2, "true: frog", "pred.: dog\n90.0 %"),
        (1, "true: dog", "pred.: cat\n70.0 %"),
        (3, "true: cat", "pred.: frog\n50.0 %"),
    ]
    assert len(figure.axes) == min(count, 3)
    for ax, (index, true, predicted) in zip(figure.axes, expected, strict=False):
        np.testing.assert_array_equal(shown(ax), hwc(images[index]))
        assert (ax.get_title(), ax.get_xlabel()) == (true, predicted)
    title = " ".join(figure.get_suptitle().split())
    assert "3 of 5 images misclassified" in title
    assert "mixed" in title
    assert ("the 2 most confident" if count == 2 else "all, by confidence") in title


def test_confidences_that_round_to_one_keep_their_order():
    logits = torch.tensor([[60.0, 0, 0], [80.0, 0, 0], [70.0, 0, 0]])
    images = pictures(3)
    figure = figures.plot_misclassified(images, torch.tensor([1, 1, 1]), logits, CLASSES, dataset=DATASET)
    for ax, index in zip(figure.axes, [1, 2, 0], strict=True):
        np.testing.assert_array_equal(shown(ax), hwc(images[index]))


def test_the_figure_says_if_nothing_is_misclassified():
    labels = torch.tensor([0, 1])
    figure = figures.plot_misclassified(pictures(2), labels, torch.eye(3)[:2], CLASSES, dataset=DATASET)
    assert "Every image is classified correctly." in texts(figure)
    assert "0 of 2 images misclassified" in figure.get_suptitle()


def test_misclassified_refuses_inputs_that_do_not_fit():
    images, labels, logits = misclassified_case()
    with pytest.raises(ValueError, match=r"logits of shape \(5, 2\): expected \(5, 3\)"):
        figures.plot_misclassified(images, labels, logits[:, :2], CLASSES, dataset=DATASET)
    with pytest.raises(ValueError, match="labels of length 1: expected 5"):
        figures.plot_misclassified(images, labels[:1], logits, CLASSES, dataset=DATASET)
    with pytest.raises(ValueError, match="NaN"):
        figures.plot_misclassified(images, labels, logits * torch.nan, CLASSES, dataset=DATASET)
    with pytest.raises(ValueError, match="count=0"):
        figures.plot_misclassified(images, labels, logits, CLASSES, dataset=DATASET, count=0)


@pytest.mark.parametrize("soft", [False, True], ids=["class numbers", "probabilities"])
def test_confusion_draws_counts_and_shares_on_the_given_axes(soft):
    labels, predictions = torch.tensor([0, 0, 0, 0, 1]), [0, 1, 1, 1, 1]
    if soft:
        labels = 0.8 * F.one_hot(labels, 3) + 0.2 / 3
    own = plt.subplots()[1]
    ax = figures.plot_confusion(labels, predictions, CLASSES, dataset=DATASET, title="mixed", ax=own)
    assert ax is own
    cells = {text.get_position(): text.get_text() for text in ax.texts}  # (column, row)
    assert {place: cells[place] for place in [(0, 0), (1, 0), (1, 1), (2, 2)]} == {
        (0, 0): "1",
        (1, 0): "3",
        (1, 1): "1",
        (2, 2): "0",
    }
    errors = ax.images[1].get_array()  # in percent of the true class, the diagonal masked
    assert errors[0, 1] == 75
    assert errors.mask.tolist() == np.eye(3, dtype=bool).tolist()
    assert ax.get_title() == f"{DATASET}, mixed: 40.00 % of 5 images right"
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("predicted class", "true class")
    assert [label.get_text() for label in ax.get_yticklabels()] == list(CLASSES)


def test_confusion_refuses_logits_as_predictions():
    with pytest.raises(ValueError, match=r"predictions of shape \(3, 3\).*pass their argmax\(1\)"):
        figures.plot_confusion([0, 1, 2], torch.eye(3), CLASSES, dataset=DATASET)


# ---- Receptive field, comparison, schematics, files ------------------------------------------------


def outline(ax):
    square = [patch for patch in ax.patches if isinstance(patch, Rectangle)][-1]
    return *square.get_xy(), square.get_width(), square.get_height()


@pytest.mark.parametrize(
    ("rows", "columns", "side", "expected"),
    [
        ((2, 7), (3, 8), 5, (2.5, 1.5)),  # the box is the field
        ((0, 4), (6, 10), 5, (5.5, -1.5)),  # cut at the upper and at the right border
        ((0, 10), (0, 10), 14, (-2.5, -2.5)),  # larger than the image: centred
        ((3, 6), (3, 6), 5, (1.5, 1.5)),  # less than the field was reached: centred
    ],
)
def test_receptive_field_is_placed_on_the_gradient(rows, columns, side, expected):
    gradient = torch.zeros(10, 10)
    gradient[slice(*rows), slice(*columns)] = -2.0
    gradient[rows[0], columns[0]] = 1.0
    ax = figures.plot_receptive_field(gradient, side, title="mixed", dataset=DATASET)
    x, y, width, height = outline(ax)
    assert (x, y) == expected
    assert width == height == side
    np.testing.assert_allclose(ax.images[0].get_array().filled(0), gradient.abs() / 2)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("column [pixels]", "row [pixels]")
    assert f"{side} x {side} pixels" in ax.get_title()
    left, right = ax.get_xlim()
    assert left < x < x + side < right


def test_receptive_field_refuses_other_inputs():
    with pytest.raises(ValueError, match=r"gradient of shape \(3, 4, 4\): expected \(H, W\)"):
        figures.plot_receptive_field(torch.ones(3, 4, 4), 3)
    with pytest.raises(ValueError, match="zero everywhere"):
        figures.plot_receptive_field(torch.zeros(4, 4), 3)
    with pytest.raises(ValueError, match="receptive_field=0"):
        figures.plot_receptive_field(torch.ones(4, 4), 0)


def test_a_kernel_is_shown_with_its_numbers_and_what_it_gives():
    image, kernel = torch.rand(6, 5), torch.tensor([[1.0, 0.0], [0.25, -2.0]])
    figure = figures.plot_kernel(image, kernel, torch.full((5, 4), -3.0), dataset=DATASET)
    first, middle, last = figure.axes[:3]
    assert np.allclose(first.images[0].get_array(), image)
    assert [text.get_text() for text in middle.texts] == ["1", "0", "0.25", "-2"]
    assert (last.images[0].get_array() == -3).all()
    assert last.images[0].get_clim() == (-3, 3)
    for wrong, told in ((torch.ones(10, 10), "at most 9 x 9"), (torch.full((2, 2), math.nan), "finite")):
        with pytest.raises(ValueError, match=told):
            figures.plot_kernel(image, wrong, image, dataset=DATASET)


def test_a_prediction_has_a_bar_for_each_class_beside_the_image():
    image = pictures(1)[0]
    left, right = figures.plot_prediction(image, [("cat", 0.75), ("dog", 0.2)], title="what").axes
    np.testing.assert_array_equal(shown(left), hwc(image))
    assert [bar.get_width() for bar in right.patches] == pytest.approx([75, 20])
    assert [text.get_text() for text in right.texts] == ["75.0 %", "20.0 %"]
    assert [label.get_text() for label in right.get_yticklabels()] == ["cat", "dog"]
    with pytest.raises(ValueError, match="likeliest is empty"):
        figures.plot_prediction(image, [])
    with pytest.raises(ValueError, match=r"image of shape \(1, 8, 8\)|image of shape \(1, 1, 8, 8\)"):
        figures.plot_prediction(image[:1], [("cat", 0.75)])


def test_receptive_fields_are_squares_around_the_middle_of_the_image():
    image = pictures(1)[0]
    ax = figures.plot_field_growth(image, {"first": 3, "second": 21}, dataset=DATASET)
    np.testing.assert_array_equal(shown(ax), hwc(image))
    boxes = [(square.get_x(), square.get_y(), square.get_width()) for square in ax.patches]
    assert boxes == [(-1.5, -1.5, 3), (-10.5, -10.5, 21)]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        "first: 3 x 3 pixels",
        "second: 21 x 21 pixels",
    ]
    assert ax.get_xlim() == (-12, 12)
    with pytest.raises(ValueError, match="fields is empty"):
        figures.plot_field_growth(image, {})


def test_comparison_bars_are_the_values():
    figure = figures.plot_comparison(comparison_rows(), dataset=DATASET)
    drawn = [[bar.get_width() for bar in ax.patches] for ax in figure.axes[1:]]
    assert drawn == [[1234, 93_322], [5_600_000, 910], [12.3, 0]]
    marked = [[line.get_xdata()[0] for line in ax.lines[:2]] for ax in figure.axes]
    assert marked == [[87.5, 90], *drawn]
    low, high = figure.axes[0].get_xlim()
    assert 85 < low < 87.5
    assert 90 < high < 95
    written = [[text.get_text() for text in ax.texts] for ax in figure.axes]
    assert written == [["87.50 %", "90.00 %"], ["1,234", "93,322"], ["5.60 M", "910.00"], ["12 µs", "0 µs"]]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["standard", "mixed"]
    top, bottom = (figure.axes[0].transData.transform((0, place))[1] for place in (0, 1))
    assert top > bottom  # the first row is the uppermost


def test_comparison_shows_the_time_of_whole_trainings_only_if_all_have_one():
    rows = [row | {"seconds": seconds} for row, seconds in zip(comparison_rows(), (70, 81.6), strict=True)]
    ax = figures.plot_comparison(rows, dataset=DATASET).axes[-1]
    assert ax.get_xlabel() == "time of a training [s]"
    assert [text.get_text() for text in ax.texts] == ["70 s", "82 s"]
    del rows[1]["seconds"]
    ax = figures.plot_comparison(rows, dataset=DATASET).axes[-1]
    assert ax.get_xlabel() == "training time [µs per image]"


def test_comparison_shows_intervals_where_they_are_known():
    rows = [row | {"half": 0.0125} for row in comparison_rows()]
    ax = figures.plot_comparison(rows, dataset=DATASET, title="mine").axes[0]
    assert [text.get_text() for text in ax.texts] == ["87.5 ± 1.2 %", "90.0 ± 1.2 %"]
    (lines,) = [drawn for drawn in ax.collections if len(drawn.get_segments()) == 2]
    assert lines.get_segments()[0][:, 0].tolist() == [86.25, 88.75]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"accuracy": 87.5}, r"rows\[0\]\['accuracy'\]=87.5: expected a share in \[0, 1\]"),
        ({"accuracy": None}, r"rows\[0\]\['accuracy'\]=None: expected a share"),
        ({"microseconds": "12"}, r"rows\[0\]\['microseconds'\]='12': expected a finite number"),
        ({"microseconds": -1}, r"rows\[0\]\['microseconds'\]=-1"),
        ({"macs": float("nan")}, r"rows\[0\]\['macs'\]=nan"),
    ],
)
def test_comparison_refuses_impossible_numbers(change, message):
    with pytest.raises(ValueError, match=message):
        figures.plot_comparison([comparison_rows()[0] | change], dataset=DATASET)
    with pytest.raises(ValueError, match="rows is empty"):
        figures.plot_comparison([], dataset=DATASET)
    with pytest.raises(ValueError, match=r"rows\[0\] lacks \['parameters', 'macs', 'microseconds'\]"):
        figures.plot_comparison([{"name": "a", "accuracy": 0.5}], dataset=DATASET)


def test_bench_shows_medians_of_the_raw_times():
    rates, speeds, pairs, *growth = figures.plot_bench(bench_result()).axes
    # 10 batches of 100 images in 2 and 0.5 seconds; 2 GFLOP in 0.1 and 0.04, and 6 in 0.2 seconds.
    assert [bar.get_height() for bar in rates.patches] == pytest.approx([500, 2000])
    assert [text.get_text() for text in rates.texts] == ["500\n1.0 x", "2,000\n4.0 x"]
    assert [bar.get_height() for bar in speeds.patches] == pytest.approx([20, 50, 30])
    assert [text.get_text() for text in speeds.texts] == ["20\n40 %", "50\n100 %", "30\n60 %"]
    np.testing.assert_allclose(shown(pairs), [[200, 200], [200, 1500]])
    assert [text.get_text() for text in pairs.texts] == ["200", "200", "200", "1,500"]
    assert [tick.get_text() for tick in pairs.get_yticklabels()] == ["batch", "none"]
    for ax, (x, milliseconds) in zip(
        growth, [([64, 256], [30, 100]), ([0.5, 1], [50, 100]), ([16, 32], [25, 100])], strict=True
    ):
        np.testing.assert_allclose(ax.lines[0].get_data(), [x, milliseconds])
        assert ax.lines[1].get_ydata()[-1] == pytest.approx(100)  # of equal speed, through the last
        assert ax.lines[1].get_ydata()[0] == pytest.approx(25)
    assert len({ax.get_ylim() for ax in growth}) == 1


def test_techniques_state_the_true_numbers_of_weights():
    from model import CONVS, count_parameters

    formulas = {
        "standard": "k²·C·C'",
        "dilated": "k²·C·C'",
        "depthwise_separable": "k²·C + C·C'",
        "blueprint_separable": "C·C' + k²·C'",
        "gated_separable": "k²·C + 2·C·C' + C'²",
        "gated_multi_scale": "5·k²·C/4 + 2·C·C' + C'²",
    }
    own = plt.subplots()[1]
    assert figures.plot_techniques(*formulas, ax=own) is own.figure
    written = texts(own.figure)
    for technique, formula in formulas.items():
        weights = count_parameters(CONVS[technique](figures.EXAMPLE, figures.EXAMPLE))
        assert technique.replace("_", "-") in written
        assert formula in written
        assert f"{weights:,} weights for k = 3, C = C' = {figures.EXAMPLE}" in written


def test_normalizations_mark_the_cells_of_one_mean():
    figure = figures.plot_normalizations()
    # Cells of the front (C x H·W), top (C x N) and right (N x H·W) face, of N, C, H·W = 4, 6, 5.
    expected = {"batch": 5 + 4 + 20, "layer": 30 + 6 + 5, "group": 15 + 3 + 5, "instance": 5 + 1 + 5}
    for ax in figure.axes:
        name = ax.get_title()
        marked = [to_hex(patch.get_facecolor()).upper() == figures.NORM_COLOURS[name] for patch in ax.patches]
        assert sum(marked) == expected.pop(name)
        assert {"C [channels]", "N [images]", "H·W [pixels]"} <= {text.get_text() for text in ax.texts}
    assert not expected


TECHNIQUES = ("standard", "dilated", "depthwise_separable", "blueprint_separable")
NORMALIZATIONS = ("batch", "layer", "group", "instance")


def test_schematics_show_what_was_asked_for_in_that_order():
    figure = figures.plot_techniques("dilated", "standard")
    places = {text.get_text(): text.get_position()[0] for text in figure.axes[0].texts}
    assert places["dilated"] < places["standard"]
    assert not {"depthwise-separable", "blueprint-separable"} & set(places)
    figure = figures.plot_normalizations("layer", "batch")
    assert [ax.get_title() for ax in figure.axes] == ["layer", "batch"]
    colours = {to_hex(patch.get_facecolor()).upper() for patch in figure.axes[0].patches}
    assert colours == {figures.NORM_COLOURS["layer"], "#FFFFFF"}


def test_schematics_without_names_show_the_usual_four(tmp_path):
    for draw, names in (
        (figures.plot_techniques, TECHNIQUES),
        (figures.plot_normalizations, NORMALIZATIONS),
    ):
        without, named = (
            figures.save(draw(), tmp_path / "a.png"),
            figures.save(draw(*names), tmp_path / "b.png"),
        )
        assert without.read_bytes() == named.read_bytes()


def test_schematics_refuse_names_that_they_cannot_draw():
    with pytest.raises(ValueError, match="unknown technique 'mixed'; choose one of 'standard', 'dilated', "):
        figures.plot_techniques("standard", "mixed")
    with pytest.raises(ValueError, match="unknown normalization 'none'; choose one of 'batch', 'layer', "):
        figures.plot_normalizations("none")


@pytest.mark.parametrize(
    ("draw", "name"),
    [(figures.plot_techniques, name) for name in (*TECHNIQUES, "gated_separable", "gated_multi_scale")]
    + [(figures.plot_normalizations, name) for name in NORMALIZATIONS],
)
def test_the_texts_of_a_single_schematic_do_not_touch(draw, name):
    figure = draw(name)
    figure.draw_without_rendering()
    axes = figure.axes
    drawn = [*figure.texts, *(text for ax in axes for text in (*ax.texts, ax.title) if text.get_text())]
    # One text is slanted: its box holds more than its letters.
    boxes = [text.get_window_extent() for text in drawn if text.get_rotation() in (0, 90)]
    assert len(boxes) >= 5
    for one, other in itertools.combinations(boxes, 2):
        assert not one.overlaps(other)
    width = figure.bbox.width
    assert all(box.x0 >= 0 and box.x1 <= width for box in boxes)


def test_saved_files_are_equal_for_equal_figures(tmp_path):
    def draw():
        return figures.plot_confusion([0, 1, 2], [0, 1, 1], CLASSES, dataset=DATASET)

    first = figures.save(draw(), tmp_path / "new" / "folder" / "a.png")
    second = figures.save(draw().figure, tmp_path / "b.png")
    assert first == tmp_path / "new" / "folder" / "a.png"
    assert first.read_bytes() == second.read_bytes()
    assert first.read_bytes().startswith(b"\x89PNG")
    assert b"Software" not in first.read_bytes()
    image = plt.imread(first)
    assert image[0, 0, :3].tolist() == [1, 1, 1]
    assert figures.save(draw(), tmp_path / "large.png", dpi=240).stat().st_size > first.stat().st_size
    with pytest.raises(ValueError, match=r"ends in \.png"):
        figures.save(draw(), tmp_path / "a.pdf")


def test_an_axes_without_a_figure_is_refused(tmp_path):
    ax = plt.subplots()[1]
    ax.remove()
    with pytest.raises(ValueError, match="the Axes belong to no figure"):
        figures.save(ax, tmp_path / "a.png")


def test_figures_import_no_networks_and_open_no_figure():
    code = (
        "import sys, lab.figures, matplotlib.pyplot as plt\n"
        "print({'model', 'lab.training', 'lab.records'} & {*sys.modules}, plt.get_fignums())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set() []"
