"""lab/demo.py: what the page shows of a picture. Gradio itself is optional, and stood in for here."""

import types

import numpy as np
import pytest
from matplotlib import pyplot as plt
from PIL import Image

from lab import demo
from lab.commands import main
from model import PRETRAINED, Net


class GradioError(Exception):
    def __init__(self, message, duration=10):
        super().__init__(message)


@pytest.fixture
def gradio(monkeypatch):
    """A module that keeps what it is called with."""
    module = types.SimpleNamespace(Error=GradioError, launched=[])

    def component(*arguments, **options):
        return arguments, options

    def interface(function, inputs, outputs, **options):
        module.interface = function, inputs, outputs, options
        return types.SimpleNamespace(launch=lambda **where: module.launched.append(where))

    module.File = module.Dropdown = module.Label = module.Plot = component
    module.Interface = interface
    monkeypatch.setattr(demo, "import_module", {"gradio": module}.__getitem__)
    return module


@pytest.fixture
def photo(tmp_path):
    pixels = np.random.default_rng(0).integers(256, size=(48, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return str(tmp_path / "photo.png")


def test_a_picture_gets_its_likeliest_classes_and_a_map(photo):
    plt.close("all")  # those of other tests
    shares, figure = demo.looked_at(photo, "minute")
    expected = Net.from_pretrained("minute").likeliest(photo, 3)
    assert [*shares.items()] == [(found.label, found.confidence) for found in expected]
    assert expected[0].label in figure.axes[0].get_title()
    assert plt.get_fignums() == []  # a page that runs for days does not keep them


def test_the_page_offers_every_network_and_looks_at_what_is_dropped(gradio, photo):
    demo.page()
    look, (_, choice), _, options = gradio.interface
    assert choice[0][0] == [*PRETRAINED]
    assert options["analytics_enabled"] is False
    assert look(photo, "minute")[0] == demo.looked_at(photo, "minute")[0]


def test_what_is_no_picture_is_said_on_the_page(gradio, tmp_path):
    demo.page()
    look = gradio.interface[0]
    text = tmp_path / "notes.txt"
    text.write_text("no picture")
    with pytest.raises(GradioError, match=r"^notes\.txt is not an image"):
        look(str(text), "minute")
    with pytest.raises(GradioError, match="Drop a picture first"):
        look(None, "minute")


def test_the_command_serves_the_page_on_this_machine_only(gradio):
    assert main(["demo", "--port", "7999"]) == 0
    assert gradio.launched == [{"server_name": "127.0.0.1", "server_port": 7999}]


def test_without_gradio_the_command_says_how_to_get_it(monkeypatch, capsys):
    def no_gradio(name):
        raise ImportError(name)

    monkeypatch.setattr(demo, "import_module", no_gradio)
    assert main(["demo"]) == 2
    assert capsys.readouterr().err == "error: the demo needs Gradio: pip install gradio\n"
