"""The entry for `torch.hub.load(REPOSITORY, "net", pretrained="minute")`."""

import importlib.util
import sys
from pathlib import Path

dependencies = ["torch"]


def _model():
    """model.py of this folder, under a name of its own: the process may have another module named model."""
    name = "cifar10_convolution_techniques_model"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("model.py"))
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


def net(*arguments, pretrained=None, **options):
    """A `Net`: the trained one named `pretrained`, or a new one, arguments and options as for `Net`."""
    made = _model().Net
    if pretrained is None:
        return made(*arguments, **options)
    if arguments or options:
        raise ValueError(f"pretrained={pretrained!r} says how the network is built; give no more with it")
    return made.from_pretrained(pretrained)
