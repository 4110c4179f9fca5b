"""The entry for `torch.hub.load(REPOSITORY, "net", pretrained="minute")`."""

import functools as _functools
import hashlib as _hashlib
import importlib.util as _importlib
import sys as _sys
from pathlib import Path as _Path
from typing import Any as _Any

import torch.hub as _hub

dependencies = ["torch"]

_FOLDER = _Path(__file__).resolve().parent


def _model():
    """Import model.py from this folder under a private name, so another module may be called model."""
    path = _FOLDER / "model.py"
    name = f"cifar10_convolution_techniques_{_hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"
    if name not in _sys.modules:
        spec = _importlib.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise ImportError(f"cannot import {path}")
        module = _importlib.module_from_spec(spec)
        _sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del _sys.modules[name]
            raise
        kinds: list[_Any] = [value for value in vars(module).values() if isinstance(value, type)]
        for kind in kinds:
            if kind.__module__ == name:
                kind.__reduce_ex__ = _reduce
    return _sys.modules[name]


def _reduce(self, protocol):
    """As object.__reduce_ex__, for a class whose module another process cannot import by its name."""
    made = object.__reduce_ex__(self, max(protocol, 2))
    _, (kind, *arguments), *state = made
    # A subclass is defined elsewhere, and is found by its own name.
    return made if "__reduce_ex__" not in vars(kind) else (_New(kind), tuple(arguments), *state)


class _New:
    """Makes an empty object of the class; unpickled elsewhere, it gets the class through torch.hub."""

    def __init__(self, kind):
        self.kind = kind

    def __call__(self, *arguments):
        return self.kind.__new__(self.kind, *arguments)

    def __reduce__(self):
        entry = _functools.partial(_hub.load, str(_FOLDER), "_new", self.kind.__name__, source="local")
        return entry.__reduce__()


def _new(name, *arguments):
    """An empty object of the class `name` of model.py, which draws no random numbers."""
    return _New(getattr(_model(), name))(*arguments)


def net(*arguments, pretrained=None, **options):
    """A new `Net`, or the trained one named `pretrained` (the names are in weights/README.md).

    Positional arguments and options are those of `Net`, and only for a new one. Raises ValueError if a
    trained one is given any, and for an unknown name, listing the names.
    """
    model = _model()
    if pretrained is None or pretrained is False:
        return model.Net(*arguments, **options)
    if arguments or options:
        raise ValueError(
            f"pretrained={pretrained!r} already says how the network is built; pass nothing else"
        )
    return model.Net.from_pretrained(pretrained, _FOLDER / "weights")
