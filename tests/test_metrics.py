"""Metrics: the values equal counts by hand or by PyTorch, and wrong inputs are refused."""

import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lab.metrics import accuracy_of, confusion_matrix, hard_labels

# Each form of the labels 0, 2, 1, 1 of three classes.
NUMBERS = torch.tensor([0, 2, 1, 1])
PROBABILITIES = torch.tensor([[0.6, 0.3, 0.1], [0.0, 0.4, 0.6], [0.3, 0.4, 0.3], [0.0, 1.0, 0.0]])
FORMS = {
    "class numbers": NUMBERS,
    "int32": NUMBERS.int(),
    "one-hot": F.one_hot(NUMBERS),
    "probabilities": PROBABILITIES,
    "float64": PROBABILITIES.double(),
    "bfloat16": PROBABILITIES.bfloat16(),
    "with gradient": PROBABILITIES.clone().requires_grad_(),
}


@pytest.mark.parametrize("form", FORMS)
def test_accuracy_is_the_share_of_correct_images(form):
    logits = torch.tensor([[5.0, -1, 0], [9, -3, 2], [0, 1, 0.5], [-4, -1, -2]])  # predicts 0, 0, 1, 1
    assert accuracy_of(logits, FORMS[form]) == 0.75
    assert accuracy_of(logits.roll(1, 0), FORMS[form]) == 0.25  # predicts 1, 0, 0, 1


def test_accuracy_takes_the_first_of_equal_probabilities():
    labels = torch.tensor([[0.5, 0.5, 0], [0, 0.5, 0.5]])
    assert accuracy_of(torch.eye(3)[:2], labels) == 1
    np.testing.assert_array_equal(hard_labels(labels, 3), [0, 1])


@pytest.mark.parametrize("shape", [(4, 1), (4, 2), (3,), (1, 3), ()])
def test_accuracy_refuses_labels_of_another_shape(shape):
    with pytest.raises(ValueError, match=r"expected \(4,\) class numbers or \(4, 3\) probabilities"):
        accuracy_of(torch.ones(4, 3), torch.ones(shape))


def test_confusion_matrix_equals_counts():
    by_hand = confusion_matrix(torch.tensor([0, 0, 0, 1, 2]), torch.tensor([0, 1, 1, 1, 0]), 3)
    np.testing.assert_array_equal(by_hand, [[1, 2, 0], [0, 1, 0], [1, 0, 0]])
    assert by_hand.dtype == np.int64
    generator = torch.Generator().manual_seed(0)
    labels, predictions = torch.randint(0, 10, (2, 1000), generator=generator)
    oracle = torch.zeros(10, 10, dtype=torch.long)
    oracle.index_put_((labels, predictions), torch.tensor(1), accumulate=True)
    np.testing.assert_array_equal(confusion_matrix(labels, predictions, 10), oracle)


@pytest.mark.parametrize("form", FORMS)
def test_confusion_matrix_counts_probabilities_as_their_largest_class(form):
    expected = [[0, 1, 0], [1, 1, 0], [1, 0, 0]]  # by hand from the labels 0, 2, 1, 1
    np.testing.assert_array_equal(confusion_matrix(FORMS[form], [1, 0, 0, 1], 3), expected)
    if form not in ("bfloat16", "with gradient"):
        np.testing.assert_array_equal(confusion_matrix(FORMS[form].numpy(), [1, 0, 0, 1], 3), expected)
        np.testing.assert_array_equal(confusion_matrix(FORMS[form].tolist(), [1, 0, 0, 1], 3), expected)


def test_close_probabilities_in_float64_are_not_rounded_to_a_tie():
    labels = torch.tensor([[0.5 - 1e-12, 0.5 + 1e-12]], dtype=torch.float64)
    np.testing.assert_array_equal(hard_labels(labels, 2), [1])
    assert accuracy_of(torch.tensor([[0.0, 1.0]]), labels) == 1


def test_a_teachers_bfloat16_outputs_are_probabilities():
    logits = torch.randn(50, 1000, generator=torch.Generator().manual_seed(0))
    teacher = logits.bfloat16().softmax(1)
    np.testing.assert_array_equal(hard_labels(teacher, 1000), teacher.argmax(1))


def test_predictions_are_class_numbers_only():
    for predictions in (torch.eye(2), torch.eye(2).long(), [[0.2, 0.8], [0.7, 0.3]]):
        with pytest.raises(ValueError, match=r"predictions of shape \(2, 2\).*pass their argmax\(1\)"):
            confusion_matrix([0, 1], predictions, 2)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 2], "labels from 0 to 2: expected class numbers from 0 to 1"),
        ([-1, 1], "labels from -1 to 1"),
        ([0.0, 1.0], r"labels of shape \(2,\) and type float64: expected \(N,\) integers"),
        ([], "N at least 1"),
        (np.empty((0, 2)), "N at least 1"),
        (torch.eye(3), r"labels of shape \(3, 3\): expected \(N,\) class numbers or \(N, 2\) probabilities"),
        ([[0], [1]], r"or \(N, 2\) probabilities"),
        ([[2.0, -1.0], [0.5, 0.5]], "labels of shape .* are not probabilities"),
        ([[1.0, 1.0], [0.5, 0.5]], "are not probabilities"),
        ([[float("nan"), 1.0], [0.5, 0.5]], "are not probabilities"),
        ([[float("inf"), 1.0], [0.5, 0.5]], "are not probabilities"),
        ([[0, 1], [1]], "labels is not an array"),
        (torch.zeros(2, 2, 1), "expected .* integers"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        confusion_matrix(labels, [0, 1], 2)


def test_confusion_matrix_refuses_other_sizes():
    with pytest.raises(ValueError, match="predictions of length 1: expected 2"):
        confusion_matrix([0, 1], [0], 2)
    with pytest.raises(ValueError, match="predictions from 0 to 2"):
        confusion_matrix([0, 1], [0, 2], 2)
    for size in (0, True, 2.0):
        with pytest.raises(ValueError, match="num_classes="):
            confusion_matrix([0, 1], [0, 1], size)


def test_metrics_need_neither_matplotlib_nor_a_network():
    code = "import sys, lab.metrics; print({'matplotlib', 'torchvision', 'model'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
