"""The pictures of what a network looks at: what is drawn equals what was given, and no text overlaps."""

from itertools import combinations

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.patches import Rectangle
from matplotlib.text import Text

import utils
from lab import figures
from lab.explain import footprint
from lab.figures import plot_activation_maps, plot_effective_field, plot_footprints

DATASET = "STAND-IN (not CIFAR-10)"


@pytest.fixture(autouse=True)
def no_display_and_no_settings_changed():
    plt.switch_backend("Agg")
    before = matplotlib.rcParams.copy()
    yield
    assert matplotlib.rcParams == before
    plt.close("all")


def images_of(count):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=generator)


def field_of(size, sigma=3.0):
    places = np.arange(size) - (size - 1) / 2
    line = np.exp(-((places / sigma) ** 2))
    return np.outer(line, line)


def panels(figure):
    return [ax for ax in figure.axes if ax.images]


def bar(figure):
    return next(ax for ax in figure.axes if not ax.images and ax.axison)


def sides(ax):
    """The sides of the outlines, and their styles."""
    outlines = [patch for patch in ax.patches if isinstance(patch, Rectangle)]
    for outline in outlines:
        assert outline.get_width() == outline.get_height() == -2 * outline.get_x() == -2 * outline.get_y()
    return [(outline.get_width(), outline.get_linestyle()) for outline in outlines]


def not_drawn(ax):
    """The texts of ticks that Matplotlib keeps and does not draw: without an axis, or beyond its ends."""
    for axis in (ax.xaxis, ax.yaxis):
        low, high = sorted(axis.get_view_interval())
        for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
            if not ax.axison or not low <= tick.get_loc() <= high:
                yield from (tick.label1, tick.label2)


def check_no_text_lies_on_another(figure):
    figure.draw_without_rendering()
    hidden = {id(text) for ax in figure.axes for text in not_drawn(ax)}
    found = [text for text in figure.findobj(Text) if text.get_visible() and id(text) not in hidden]
    boxes = [(text.get_text(), text.get_window_extent()) for text in found if text.get_text().strip()]
    for (first, one), (second, other) in combinations(boxes, 2):
        assert not one.overlaps(other), f"{first!r} lies on {second!r}"
    for text, box in boxes:
        assert box.x0 >= 0, f"{text!r} is cut off"
        assert box.x1 <= figure.bbox.width, f"{text!r} is cut off"


# ---- Activation maps -------------------------------------------------------------------------------


def test_each_map_lies_on_its_image():
    images = images_of(8)
    maps = torch.linspace(-1, 2, 8 * 4).view(8, 2, 2)
    figure = plot_activation_maps(images, maps, [f"class {n}" for n in range(8)], dataset=DATASET)
    drawn = panels(figure)
    assert len(drawn) == 16
    above, below = [ax for ax in drawn if len(ax.images) == 1], [ax for ax in drawn if len(ax.images) == 2]
    assert [ax.get_title() for ax in above] == [f"class {n}" for n in range(8)]
    for index, (one, other) in enumerate(zip(above, below, strict=True)):
        np.testing.assert_array_equal(one.images[0].get_array(), images[index].permute(1, 2, 0))
        grey, heat = other.images
        np.testing.assert_allclose(grey.get_array(), images[index].double().mean(0) / 255)
        np.testing.assert_allclose(heat.get_array(), maps[index] / maps[index].abs().max(), rtol=1e-6)
        assert heat.get_extent() == grey.get_extent() == [-0.5, 7.5, 7.5, -0.5]
        assert heat.get_clim() == (-1, 1)
        figure.draw_without_rendering()
        assert other.get_position().y1 < one.get_position().y0
        assert other.get_position().x0 == pytest.approx(one.get_position().x0)
    assert DATASET in figure.get_suptitle()


def test_a_map_of_zeros_is_drawn_as_zeros():
    figure = plot_activation_maps(images_of(1), torch.zeros(1, 2, 2), ["cat"], dataset=DATASET)
    assert not np.asarray(panels(figure)[1].images[1].get_array()).any()


@pytest.mark.parametrize("count", [1, 2, 7])
def test_no_text_of_the_maps_lies_on_another(count):
    titles = ["airplane, not automobile"] * count
    check_no_text_lies_on_another(
        plot_activation_maps(images_of(count), torch.rand(count, 4, 4), titles, dataset=DATASET)
    )


def test_maps_that_do_not_belong_to_the_images_are_refused():
    with pytest.raises(ValueError, match=r"maps of shape \(3, 2, 2\): expected finite numbers \(2, h, w\)"):
        plot_activation_maps(images_of(2), torch.zeros(3, 2, 2), ["a", "b"], dataset=DATASET)
    with pytest.raises(ValueError, match="titles of length 1: expected 2"):
        plot_activation_maps(images_of(2), torch.zeros(2, 2, 2), ["a"], dataset=DATASET)


# ---- Effective receptive fields --------------------------------------------------------------------


def test_fields_are_drawn_on_a_linear_scale_around_the_centre():
    fields = {"one": field_of(64), "other": 5 * field_of(33)}
    figure = plot_effective_field(fields, receptive_field=59)
    for ax, (name, field) in zip(panels(figure), fields.items(), strict=True):
        (image,) = ax.images
        np.testing.assert_allclose(image.get_array(), field / field.max())
        half = len(field) / 2
        assert image.get_extent() == [-half, half, half, -half]
        assert (image.norm.vmin, image.norm.vmax, image.norm(0.25)) == (0, 1, 0.25)
        assert ax.get_title() == name
        assert sides(ax) == [(32, "-"), (59, "--")]
        assert ax.get_xlim()[1] > max(half, 29.5)
    written = [text.get_text() for text in figure.legends[0].get_texts()]
    assert written == ["image, 32 x 32 pixels", "field in theory, 59 x 59"]
    assert "gradient magnitude" in bar(figure).get_ylabel()


def test_without_a_field_in_theory_only_the_image_is_outlined():
    figure = plot_effective_field({"one": torch.from_numpy(field_of(20))}, image_size=24)
    assert sides(panels(figure)[0]) == [(24, "-")]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_no_text_of_the_fields_lies_on_another(count):
    fields = {f"blueprint_separable, first row standard {n}": field_of(64) for n in range(count)}
    check_no_text_lies_on_another(plot_effective_field(fields, receptive_field=59))


def test_what_is_no_field_is_refused():
    with pytest.raises(ValueError, match="fields are empty"):
        plot_effective_field({})
    for wrong in (np.zeros((3, 3)), np.ones(3), -np.ones((3, 3)), np.full((2, 2), np.nan)):
        with pytest.raises(ValueError, match=r"fields\['a'\] of shape"):
            plot_effective_field({"a": wrong})
    with pytest.raises(ValueError, match="image_size=0"):
        plot_effective_field({"a": field_of(5)}, image_size=0)
    with pytest.raises(ValueError, match="receptive_field=0"):
        plot_effective_field({"a": field_of(5)}, receptive_field=0)


# ---- Footprints ------------------------------------------------------------------------------------


def test_pixels_that_are_not_read_stay_white():
    figure = plot_footprints({"holes": footprint([2, 2]), "none": footprint([1, 1])})
    holes, none = panels(figure)
    array = holes.images[0].get_array()
    np.testing.assert_array_equal(array.mask, footprint([2, 2]).numpy() == 0)
    np.testing.assert_allclose(array.filled(0), footprint([2, 2]) / 9)
    assert holes.get_title() == "holes\n25 of 81 pixels read"
    assert none.get_title() == "none\n25 of 25 pixels read"
    assert none.images[0].get_extent() == [-2.5, 2.5, 2.5, -2.5]
    assert holes.get_xlim() == none.get_xlim() == (-5, 5)  # a pixel has one size


@pytest.mark.parametrize("count", [1, 3])
def test_no_text_of_the_footprints_lies_on_another(count):
    rates = [[2, 2, 2], [1, 2, 3], [1, 1, 1]][:count]
    check_no_text_lies_on_another(plot_footprints({f"rates {rate}": footprint(rate) for rate in rates}))


def test_only_numbers_of_paths_have_a_scale():
    read = (footprint([2, 2]) > 0).long()
    assert len(plot_footprints({"counted": footprint([2, 2]), "read": read}).axes) == 3
    assert len(plot_footprints({"read": read}).axes) == 1


def test_what_is_no_footprint_is_refused():
    with pytest.raises(ValueError, match="footprints are empty"):
        plot_footprints({})
    for wrong in (np.zeros((3, 3), int), np.ones((2, 3), int), np.ones((3, 3)), -np.ones((3, 3), int)):
        with pytest.raises(ValueError, match=r"footprints\['a'\] of shape"):
            plot_footprints({"a": wrong})


def test_the_notebooks_toolbox_has_them():
    for name in ("plot_activation_maps", "plot_effective_field", "plot_footprints"):
        assert name in utils.__all__
        assert getattr(utils, name) is getattr(figures, name)
