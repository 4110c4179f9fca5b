"""What predictions are worth: accuracy and the confusion matrix, and the checks of their inputs.

Labels are class numbers (N,) or probabilities (N, classes), such as one-hot vectors, mixup targets or a
teacher's outputs. Probabilities count as their argmax.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from lab.checks import as_integer

Array = ArrayLike | Tensor


def accuracy_of(logits: Tensor, labels: Tensor) -> float:
    """Return the share of images, in [0, 1], whose largest logit is that of the label.

    logits: (N, classes); an image with a NaN among them counts as wrong. labels: class numbers (N,) or
    probabilities (N, classes). Raises ValueError for labels of another shape.
    """
    return right(logits, labels).double().mean().item()


def right(logits: Tensor, labels: Tensor) -> Tensor:
    """Whether the largest logit of each image is that of its label: bool (N,). As for `accuracy_of`."""
    if labels.shape == logits.shape:
        labels = labels.argmax(1)
    elif labels.shape != logits.shape[:1]:
        raise ValueError(
            f"labels of shape {tuple(labels.shape)}: expected {tuple(logits.shape[:1])} class numbers "
            f"or {tuple(logits.shape)} probabilities"
        )
    return (logits.argmax(1) == labels) & ~logits.isnan().any(1)  # argmax takes NaN for the largest


def confusion_matrix(labels: Array, predictions: Array, num_classes: int) -> np.ndarray:
    """Count each pair of true class (row) and predicted class (column): int64 (num_classes, num_classes).

    labels: class numbers (N,) from 0 to num_classes - 1, or probabilities (N, num_classes). predictions:
    class numbers (N,). Raises ValueError for other shapes, types or ranges.
    """
    as_integer("num_classes", num_classes, 1)
    true = hard_labels(labels, num_classes)
    predicted = class_numbers(predictions, "predictions", num_classes, len(true))
    counts = np.bincount(true * num_classes + predicted, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


def hard_labels(labels: Array, num_classes: int, count: int | None = None) -> np.ndarray:
    """Return labels as class numbers, int64 (N,).

    labels: class numbers (N,) or probabilities (N, num_classes). count: the number of images, if it is
    known. Raises ValueError for other shapes, types or ranges.
    """
    array = as_array(labels, "labels")
    if array.ndim == 2:
        if array.shape[1] != num_classes:
            raise ValueError(
                f"labels of shape {array.shape}: expected (N,) class numbers "
                f"or (N, {num_classes}) probabilities"
            )
        # One percent is room for bfloat16, and logits passed by mistake miss it. NaN fails as well.
        if not ((array >= 0).all() and np.allclose(array.sum(1, dtype=np.float64), 1, atol=0.01)):
            raise ValueError(
                f"labels of shape {array.shape} are not probabilities: "
                "expected rows of non-negative numbers that sum to 1"
            )
        array = array.argmax(1)
    return class_numbers(array, "labels", num_classes, count)


def class_numbers(values: Array, name: str, num_classes: int, count: int | None = None) -> np.ndarray:
    """Check class numbers (N,) from 0 to num_classes - 1 and return them as int64.

    count: the number of images, if it is known. Raises ValueError for other shapes, types or ranges.
    """
    array = as_array(values, name)
    if array.ndim != 1 or len(array) == 0 or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(
            f"{name} of shape {array.shape} and type {array.dtype}: "
            "expected (N,) integers, N at least 1 (for logits, pass their argmax(1))"
        )
    if count is not None and len(array) != count:
        raise ValueError(f"{name} of length {len(array)}: expected {count}, one for each image")
    if array.min() < 0 or array.max() >= num_classes:
        raise ValueError(
            f"{name} from {array.min()} to {array.max()}: expected class numbers from 0 to {num_classes - 1}"
        )
    return array.astype(np.int64)


def as_array(values: Array, name: str) -> np.ndarray:
    """Convert a tensor (any device, with or without gradient), an array or a list to a NumPy array."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        if values.is_floating_point() and values.element_size() < 4:
            values = values.float()  # NumPy has no bfloat16
        values = values.numpy()
    try:
        return np.asarray(values)
    except ValueError as error:
        raise ValueError(f"{name} is not an array: {error}") from error
