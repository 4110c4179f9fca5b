"""lab/exercises.py: right answers are accepted, wrong ones get a hint, and nothing stops the notebook."""

import pytest

from lab.exercises import BUDGET, EXERCISES, check_answer
from lab.grid import best_of
from lab.studies import MODELS, published
from model import Net

BEST = best_of(MODELS.search(MODELS["mixed-batch-sgd"], published())[0]).lr
WIDTH = Net.within(BUDGET, conv="blueprint_separable").config["width"]


@pytest.mark.parametrize(
    ("number", "answer"),
    [
        (1, 9 * 32 + 32 * 96),
        (2, (1, 3, 5)),
        (2, [5, 3, 1]),
        (3, 3),
        (4, {"layer", "group", "instance"}),
        (4, ["instance", "group", "layer"]),
        (5, WIDTH),
        (6, BEST),
        (6, BEST / 3),
        (6, BEST * 2),
    ],
)
def test_a_right_answer_is_right(number, answer, capsys):
    check_answer(number, answer)
    assert capsys.readouterr().out == f"Exercise {number}: {answer!r} is right.\n"


@pytest.mark.parametrize(
    ("number", "answer", "hint"),
    [
        (1, 288, "that is the depthwise half alone"),
        (1, 3072, "that is the pointwise half alone"),
        (1, 27_648, "count k² C for the depthwise half"),
        (2, (3, 3, 3), "they leave out "),
        (2, (1, 1, 2), "expected three dilations"),
        (2, 3, "expected three dilations of sum 9, such as (3, 3, 3) ([3] are not three with the sum 9)"),
        (2, "abc", "(dilation='a' must be an integer"),
        (3, 2, "it sees 67 pixels"),
        (3, 0, "expected a dilation"),
        (4, {"layer", "group", "instance", "none"}, "1 of the five would have to change"),
        (4, "batch", "4 of the five would have to change; what becomes of mean"),
        (4, {"bath"}, "expected a set of some of batch, layer"),
        (5, 10, " parameters, too many"),
        (5, 0.5, "and more are allowed"),
        (5, "wide", "expected a width"),
        (6, BEST / 10, "it is far too low"),
        (6, BEST * 3, "it is too high"),
        (6, "fast", "expected a learning rate, such as 0.001 (lr='fast' must be "),
        (1, "many", "expected a number of weights (weights='many' must be an integer)"),
    ],
)
def test_a_wrong_answer_gets_a_hint(number, answer, hint, capsys):
    check_answer(number, answer)
    told = capsys.readouterr().out
    assert told.startswith(f"Exercise {number}: {answer!r} is not right yet: ")
    assert hint in told


@pytest.mark.parametrize("number", EXERCISES)
def test_without_an_answer_it_is_said_what_one_would_be(number, capsys):
    check_answer(number, None)
    assert EXERCISES[number].expected in capsys.readouterr().out


def test_an_unknown_exercise_is_an_error_with_the_choices():
    with pytest.raises(ValueError, match="unknown exercise 7; choose from 1, 2, 3, 4, 5, 6"):
        check_answer(7, 1)
