"""Checks of arguments: each returns the value in its plain form, or raises an error that names it."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np


def as_integer(name: str, value: Any, least: int | None = None, most: int | None = None) -> int:
    """`value` as a Python int: a Python or NumPy integer, or an integer tensor with one element.

    Raises ValueError, with `name`, the value and what was expected, for anything else (True and False
    included), and for an integer below `least` or above `most`.
    """
    expected = "an integer"
    if least is not None:
        expected += f" of at least {least}" if most is None else f" from {least} to {most}"
    try:
        integer = None if isinstance(value, bool | np.bool_) else operator.index(value)
    except TypeError:
        integer = None
    if integer is None or (least is not None and integer < least) or (most is not None and integer > most):
        raise ValueError(f"{name}={value!r} must be {expected}")
    return integer
