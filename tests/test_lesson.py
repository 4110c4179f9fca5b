"""lab/lesson.py: pictures with their texts."""

import base64

import matplotlib.pyplot as plt
import nbformat
import pytest
from bs4 import BeautifulSoup
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from nbconvert import HTMLExporter

import lab
from lab.lesson import show


@pytest.fixture(autouse=True)
def shell():
    """Without a shell, display prints only."""
    yield InteractiveShell.instance()
    InteractiveShell.clear_instance()


@pytest.mark.parametrize("of", ["figure", "axes"])
def test_a_picture_is_written_shown_with_its_text_and_closed(tmp_path, of):
    figure, ax = plt.subplots()
    ax.plot([0, 1], [0, 1])
    with capture_output() as captured:
        path = show(figure if of == "figure" else ax, tmp_path / "new" / "a.png", "A rising line.")
    (output,) = captured.outputs
    assert base64.b64decode(output.data["image/png"]) == path.read_bytes()
    assert output.data["text/plain"] == "A rising line."
    assert output.metadata == {"image/png": {"alt": "A rising line."}}
    assert captured.stdout == "A rising line.\n"
    assert not plt.fignum_exists(figure.number)


def test_the_page_has_the_text_in_place_of_the_picture():
    def shown(metadata):
        data = {"image/png": "aGVsbG8=", "text/plain": "in words"}
        return nbformat.v4.new_code_cell(
            outputs=[nbformat.v4.new_output("display_data", data, metadata=metadata)]
        )

    text = 'Rising "lines" & <more>.'
    cells = [shown({"image/png": {"alt": text}}), shown({})]
    exporter = HTMLExporter(template_name="page", extra_template_basedirs=list(lab.__path__))
    page, _ = exporter.from_notebook_node(nbformat.v4.new_notebook(cells=cells))
    told, untold = BeautifulSoup(page, "html.parser").find_all("img")
    assert told["alt"] == text
    assert untold["alt"] == "No description has been provided for this image"


@pytest.mark.parametrize("alt", ["", "  ", None])
def test_a_picture_without_a_text_is_refused(tmp_path, alt):
    with pytest.raises(ValueError, match="alt="):
        show(plt.figure(), tmp_path / "a.png", alt)
    assert not list(tmp_path.iterdir())
    plt.close("all")
