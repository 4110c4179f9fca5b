"""The demo: a page in the browser on which one drops a picture, and sees what a network makes of it."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from lab.data import denormalize
from lab.explain import class_activation_maps
from lab.figures import plot_activation_maps
from model import PRETRAINED, Net

COUNT = 3  # classes that are shown


def looked_at(picture: str | Path, name: str = "frontier") -> tuple[dict[str, float], Figure]:
    """The likeliest classes with the network's confidence, and the picture of what speaks for the first.

    picture: the path of an image file. name: a key of PRETRAINED. Raises what `Net.predict` and
    `Net.from_pretrained` raise.
    """
    net = Net.from_pretrained(name)
    likeliest = net.likeliest(picture, COUNT)
    prepared = net.transform(picture)
    assert net.preprocessing is not None  # transform has used it
    shown = denormalize(prepared, net.preprocessing.mean, net.preprocessing.std)
    maps = class_activation_maps(net, prepared)
    figure = plot_activation_maps(shown, maps, [likeliest[0].label], dataset=name)
    plt.close(figure)  # pyplot would keep every one
    return dict(likeliest), figure


def page() -> Any:
    """The page, a gradio.Interface. Raises ImportError if Gradio is not installed."""
    try:
        gradio = import_module("gradio")
    except ImportError as error:
        raise ImportError("the demo needs Gradio: pip install gradio") from error

    def look(picture: str | None, name: str):
        if picture is None:
            raise gradio.Error("Drop a picture first.", duration=None)
        try:
            return looked_at(picture, name)
        except (ValueError, OSError) as error:
            told = str(error).replace(picture, Path(picture).name)  # it is a copy in a folder of Gradio's
            raise gradio.Error(told, duration=None) from error

    return gradio.Interface(
        look,
        [
            gradio.File(file_types=["image"], label="A picture of any size"),  # it is read here, not there
            gradio.Dropdown([*PRETRAINED], value="frontier", label="Network"),
        ],
        [gradio.Label(num_top_classes=COUNT, label="Likeliest classes"), gradio.Plot(show_label=False)],
        title="Convolution techniques on CIFAR-10",
        description="The networks know ten classes only, and take everything for one of these: "
        "airplane, automobile, bird, cat, deer, dog, frog, horse, ship and truck.",
        flagging_mode="never",
        analytics_enabled=False,  # Gradio would report each start to its makers
    )
