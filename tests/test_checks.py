import numpy as np
import pytest
import torch

from lab.checks import as_integer, as_number, as_switch

BIG = 2**200 + 7


@pytest.mark.parametrize(
    "value",
    [3, np.int64(3), np.uint8(3), np.array(3), torch.tensor(3), torch.tensor(3, dtype=torch.uint8)],
    ids=repr,
)
def test_any_kind_of_integer_becomes_a_python_int(value):
    integer = as_integer("n", value)
    assert type(integer) is int
    assert integer == 3


@pytest.mark.parametrize(
    "value", [BIG, -BIG, np.uint64(2**64 - 1), 15_068_445_919_487_744_991]
)  # as torch.initial_seed() gives
def test_an_integer_keeps_its_value_at_any_size(value):
    assert as_integer("n", value) == int(value)


@pytest.mark.parametrize("value", [3.0, "3", None, True, np.float64(3), np.True_, torch.tensor(3.0), [3]])
def test_what_is_not_an_integer_is_refused_with_its_name_and_value(value):
    with pytest.raises(ValueError, match="n=") as error:
        as_integer("n", value)
    assert str(error.value) == f"n={value!r} must be an integer"


def test_an_integer_out_of_range_is_refused_with_the_range():
    assert [as_integer("n", value, 1, 3) for value in (1, 3)] == [1, 3]
    with pytest.raises(ValueError, match="n=0 must be an integer of at least 1"):
        as_integer("n", 0, 1)
    for value in (0, 4):
        with pytest.raises(ValueError, match=f"n={value} must be an integer from 1 to 3"):
            as_integer("n", value, 1, 3)


@pytest.mark.parametrize("value", [0, 1, 0.5, np.float32(0.5), np.int64(1)])
def test_a_number_of_any_kind_becomes_a_python_number(value):
    number = as_number("x", value, 0, 1)
    assert type(number) in (int, float)
    assert number == value


@pytest.mark.parametrize("value", [-0.1, 1.1, np.inf, np.nan, True, np.False_, "1", None, [0.5], 1j])
def test_what_is_not_a_number_in_range_is_refused_with_its_name_and_value(value):
    with pytest.raises(ValueError, match="x=") as error:
        as_number("x", value, 0, 1)
    assert str(error.value) == f"x={value!r} must be a number from 0 to 1"


def test_a_switch_is_true_or_false():
    assert [as_switch("x", value) for value in (True, np.False_)] == [True, False]
    assert type(as_switch("x", np.True_)) is bool
    for value in (1, 0, "no", None, 0.1):
        with pytest.raises(ValueError, match=f"x={value!r} must be True or False"):
            as_switch("x", value)
