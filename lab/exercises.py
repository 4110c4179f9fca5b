"""The notebook's exercises: whether an answer is right, found by computing it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch

from lab.checks import as_choice, as_integer, as_number
from lab.explain import footprint
from lab.grid import STEP, best_of
from lab.studies import MODELS, published
from model import NORMS, STAGES, Net, conv_block, count_parameters, describe

CHANNELS = 32, 96  # input and output
SUM = 9  # of three dilations: they read 19x19 pixels
FIELD = 75  # pixels
BUDGET = 50_000  # parameters
FACTOR = 4.0  # so far below the best, a learning rate is still right


class Exercise(NamedTuple):
    """A question of the notebook, and what judges an answer to it: a hint, or None if it is right.

    The judge raises TypeError or ValueError for anything that cannot be an answer.
    """

    expected: str  # what an answer is
    judge: Callable[[Any], str | None]


def check_answer(number: int, answer: Any) -> None:
    """Say whether the answer to an exercise is right, or give a hint; None says what to enter.

    Raises ValueError for an unknown number.
    """
    if number not in EXERCISES:
        raise ValueError(f"unknown exercise {number!r}; choose from {', '.join(map(str, EXERCISES))}")
    exercise = EXERCISES[number]
    if answer is None:
        print(f"Exercise {number}: set `answer` to {exercise.expected}, and run this cell again.")
        return
    try:
        hint = exercise.judge(answer)
    except (TypeError, ValueError) as error:
        hint = f"expected {exercise.expected} ({error})"
    print(f"Exercise {number}: {answer!r} is " + ("right." if hint is None else f"not right yet: {hint}."))


def _weights(answer: Any) -> str | None:
    block = conv_block(*CHANNELS, conv="depthwise_separable")
    depthwise, pointwise = 9 * CHANNELS[0], CHANNELS[0] * CHANNELS[1]
    assert isinstance(block.conv, torch.nn.Module)
    weights = as_integer("weights", answer)
    if weights == count_parameters(block.conv):
        return None
    halves = {depthwise: "that is the depthwise half alone", pointwise: "that is the pointwise half alone"}
    return halves.get(weights, "count k² C for the depthwise half and C C' for the pointwise half")


def _rates(answer: Any) -> str | None:
    rates = [
        as_integer("dilation", each, 1) for each in (answer if isinstance(answer, Iterable) else [answer])
    ]
    if len(rates) != 3 or sum(rates) != SUM:
        raise ValueError(f"{rates} are not three with the sum {SUM}")
    left_out = int((footprint(rates) == 0).sum())
    return f"they leave out {left_out} of {footprint(rates).numel()} pixels" if left_out else None


def _dilation(answer: Any) -> str | None:
    first, *others = STAGES[-1]
    found = describe(Net(stages=[*STAGES[:-1], [first._replace(dilation=answer), *others]]))
    return None if (size := found[-1].receptive_field) == FIELD else f"it sees {size} pixels"


def _norms(answer: Any) -> str | None:
    named = {as_choice("norm", name, NORMS) for name in ([answer] if isinstance(answer, str) else answer)}
    wrong = named ^ {norm for norm in NORMS if _keeps_logits(Net(norm))}
    if not wrong:
        return None
    told = "would have to change; what becomes of mean and deviation when x is doubled?"
    return f"{len(wrong)} of the five {told}"


def _keeps_logits(net: Net) -> bool:
    """Whether an image with twice the contrast has the same logits, but for epsilon."""
    image = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        once, twice = net.eval()(image), net(2 * image)
    return bool((once - twice).abs().max() < 0.1 * once.abs().max())


def _width(answer: Any) -> str | None:
    count = count_parameters(Net(conv="blueprint_separable", width=answer))
    best = count_parameters(Net.within(BUDGET, conv="blueprint_separable"))
    if count > BUDGET:
        return f"it has {count:,} parameters, too many"
    return None if count == best else f"it has {count:,} parameters, and more are allowed"


def _lr(answer: Any) -> str | None:
    lr = as_number("lr", answer, 0.0, above=True)
    best = best_of(MODELS.search(MODELS["mixed-batch-sgd"], published())[0]).lr
    if best / FACTOR <= lr <= best * STEP:  # a rate that is too high does more harm
        return None
    return "it is far too low" if lr < best else "it is too high"


EXERCISES: dict[int, Exercise] = {
    1: Exercise("a number of weights", _weights),
    2: Exercise(f"three dilations of sum {SUM}, such as (3, 3, 3)", _rates),
    3: Exercise("a dilation, such as 2", _dilation),
    4: Exercise(f"a set of some of {', '.join(NORMS)}", _norms),
    5: Exercise("a width, such as 1.25", _width),
    6: Exercise("a learning rate, such as 0.001", _lr),
}
