"""Checks of arguments: each returns the value in its plain form, or raises an error that names it."""

from __future__ import annotations

import operator
from numbers import Integral, Real
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


def as_number(name: str, value: Any, least: float, most: float) -> float:
    """`value` as a Python number: a real number from `least` to `most`, of Python or NumPy.

    Raises ValueError, with `name`, the value and the range, for anything else (True, False and nan included).
    """
    real = isinstance(value, Real) and not isinstance(value, bool | np.bool_)
    if not real or not least <= float(value) <= most:
        raise ValueError(f"{name}={value!r} must be a number from {least:g} to {most:g}")
    return int(value) if isinstance(value, Integral) else float(value)


def as_switch(name: str, value: Any) -> bool:
    """`value` as a Python bool: True or False, of Python or NumPy. Raises ValueError for anything else."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name}={value!r} must be True or False")
    return bool(value)
