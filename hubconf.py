"""The entry for `torch.hub.load(REPOSITORY, "net", pretrained="minute")`."""

import hashlib as _hashlib
import importlib.util as _importlib
import sys as _sys
from pathlib import Path as _Path

dependencies = ["torch"]


def _model():
    """model.py of this folder, under a name of its own: the process may have another module named model."""
    path = _Path(__file__).resolve().with_name("model.py")
    name = f"cifar10_convolution_techniques_{_hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"
    if name not in _sys.modules:
        spec = _importlib.spec_from_file_location(name, path)
        module = _importlib.module_from_spec(spec)
        _sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del _sys.modules[name]
            raise
    return _sys.modules[name]


def net(*arguments, pretrained=None, **options):
    """A trained `Net`, `pretrained` being one of the names in weights/README.md; or, without, a new one.

    Positional arguments and options are those of `Net`, for a new one alone. Raises ValueError where a
    trained one is given any, and for an unknown name, listing the names.
    """
    model = _model()
    if pretrained is None or pretrained is False:
        return model.Net(*arguments, **options)
    if arguments or options:
        raise ValueError(f"pretrained={pretrained!r} says how the network is built; give no more with it")
    return model.Net.from_pretrained(pretrained, _Path(__file__).resolve().parent / "weights")
