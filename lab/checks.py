"""Checks of arguments: each returns the value in its plain form, or raises an error that names it."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

# ---- Numbers, switches and names -------------------------------------------------------------------

MOST_WORKERS = 4096  # threads or processes: more than machines have, and fewer than what makes torch fail


def as_integer(name: str, value: Any, least: int | None = None, most: int | None = None) -> int:
    """`value` as a Python int: a Python or NumPy integer, or an integer tensor with one element.

    Raises ValueError, with `name`, the value and what was expected, for anything else (True and False
    included), and for an integer below `least` or above `most`.
    """
    expected = "an integer"
    if least is not None:
        expected += f" of at least {least}" if most is None else f" from {least} to {most}"
    truth = _is_bool(value) or (isinstance(value, Tensor) and value.dtype == torch.bool)
    try:
        integer = None if truth else operator.index(value)
    except TypeError:
        integer = None
    if integer is None or (least is not None and integer < least) or (most is not None and integer > most):
        raise ValueError(f"{name}={value!r} must be {expected}")
    return integer


def as_number(
    name: str, value: Any, least: float, most: float = math.inf, *, above: bool = False, below: bool = False
) -> float:
    """`value` as a Python number: a finite real number from `least` to `most`, of Python or NumPy.

    above, below: without `least`, or `most`, itself. Raises ValueError, with `name`, the value and the range,
    for anything else (True, False and nan included).
    """
    if most == math.inf:
        expected = f"above {least:g}" if above else f"of at least {least:g}"
    else:
        expected = f"from {least:g} to {most:g}"
        expected += f", above {least:g}" * above + f", below {most:g}" * below
    try:
        number = float(value) if isinstance(value, Real) and not _is_bool(value) else math.nan
    except OverflowError:  # an integer that no float can hold
        number = math.inf
    low = number > least if above else number >= least
    high = number < most if below else number <= most
    if not (low and high and math.isfinite(number)):
        raise ValueError(f"{name}={value!r} must be a number {expected}")
    return int(value) if isinstance(value, Integral) else number


def as_switch(name: str, value: Any) -> bool:
    """`value` as a Python bool: True or False, of Python or NumPy. Raises ValueError for anything else."""
    if not _is_bool(value):
        raise ValueError(f"{name}={value!r} must be True or False")
    return bool(value)


def as_choice(name: str, value: Any, choices: Iterable[str]) -> str:
    """`value` as a Python string, if it is one of `choices`. Raises ValueError, with them, if it is not."""
    choices = list(choices)
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"unknown {name} {value!r}; choose one of {', '.join(map(repr, choices))}")
    return str(value)


def check_type(name: str, value: Any, kind: type, expected: str) -> None:
    """Raise ValueError unless `value` is of that kind. expected: what the message says it must be."""
    if not isinstance(value, kind):
        raise ValueError(f"{name} is of type {type(value).__name__}: expected {expected}")


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool | np.bool_)


# ---- Images and labels -----------------------------------------------------------------------------

SUM_WITHIN = 1e-3  # of 1, for the probabilities of an image


def as_tensor(name: str, value: Any) -> Tensor:
    """`value`, if it is a tensor. Raises ValueError for anything else, saying how to make one of an array."""
    if isinstance(value, np.ndarray):
        raise ValueError(
            f"{name} are a NumPy array of {value.dtype} {value.shape}: expected a tensor; give "
            f"torch.from_numpy({name})"
        )
    if not isinstance(value, Tensor):
        raise ValueError(f"{name} are of type {type(value).__name__}: expected a tensor")
    return value


def check_pixels(images: Any) -> None:
    """Raise ValueError, saying what to do, unless `images` are a uint8 tensor (N, 3, H, W)."""
    images = as_tensor("images", images)
    shape = tuple(images.shape)
    if images.dtype == torch.uint8 and images.ndim == 4 and shape[1] == 3:
        return
    advice = ""
    if images.dtype != torch.uint8:
        advice = "; pixels are whole numbers from 0 to 255"
    elif images.ndim == 4 and shape[3] == 3:
        advice = "; images.permute(0, 3, 1, 2) puts the channels there"
    elif images.ndim == 4 and shape[1] == 1:
        advice = "; images.expand(-1, 3, -1, -1) makes three channels of one"
    raise ValueError(f"images of {images.dtype} {shape}: expected uint8 (N, 3, H, W){advice}")


def check_label_kind(labels: Any, count: int) -> None:
    """Raise ValueError unless `labels` are a tensor with the label of each of `count` images.

    They are classes, integers (N,), or probabilities (N, classes). Only shape and type are looked at.
    """
    labels = as_tensor("labels", labels)
    found = f"labels of {labels.dtype} {tuple(labels.shape)}"
    if labels.ndim not in (1, 2):
        raise ValueError(f"{found}: expected classes ({count},), or probabilities ({count}, classes)")
    if len(labels) != count:
        raise ValueError(f"{count} images and {len(labels)} labels: expected the same number")
    if labels.is_complex() or (labels.ndim == 1 and labels.is_floating_point()):
        raise ValueError(
            f"{found}: expected classes as integers ({count},); labels.long() makes them of whole numbers"
        )


def check_label_values(labels: Tensor, num_classes: int | None = None) -> None:
    """Raise ValueError for a label outside the classes, and for rows that are not probabilities.

    labels: as `check_label_kind` lets pass. num_classes: None if it is not known. Reads the values, for which
    the host waits if the labels are on a GPU.
    """
    if labels.numel() == 0:
        return
    if labels.ndim == 1:
        low, high = (int(end) for end in labels.long().aminmax())
        if low < 0 or (num_classes is not None and high >= num_classes):
            limit = "0 upwards" if num_classes is None else f"0 to {num_classes - 1}"
            raise ValueError(f"labels from {low} to {high}: expected classes from {limit}")
        return
    shape = tuple(labels.shape)
    if num_classes is not None and shape[1] != num_classes:
        raise ValueError(
            f"labels of {labels.dtype} {shape}: expected classes ({shape[0]},) from 0 to {num_classes - 1}, "
            f"or probabilities ({shape[0]}, {num_classes})"
        )
    narrow = labels.is_floating_point() and labels.element_size() < 4  # its rounding alone adds up to more
    shares = labels.float()
    wrong = ~((shares.sum(1) - 1).abs() <= (10 * SUM_WITHIN if narrow else SUM_WITHIN)) | (shares < 0).any(1)
    if wrong.any():
        row = int(wrong.int().argmax())
        raise ValueError(
            f"labels {shape} are not probabilities: row {row} has the sum {float(shares[row].sum()):g} and "
            f"the smallest number {float(shares[row].min()):g}; expected numbers of at least 0 whose sum is 1"
        )
