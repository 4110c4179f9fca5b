"""lab/statistics.py: intervals over seeds, over images, and over both."""

import math
import statistics

import numpy as np
import pytest

from lab.statistics import binomial_half_width, estimate, interval, pooled_deviation, student_t


@pytest.mark.parametrize(
    ("freedom", "expected"),
    [(1, 12.7062), (2, 4.3027), (3, 3.1824), (10, 2.2281), (11, 2.2010), (16, 2.1199), (1000, 1.9623)],
)
def test_t_is_that_of_published_tables(freedom, expected):
    assert student_t(freedom) == pytest.approx(expected, abs=5e-5)


def test_t_depends_on_the_confidence_and_tends_to_the_normal_distribution():
    assert student_t(16, 0.99) == pytest.approx(2.9208, abs=5e-5)
    assert student_t(1e9) == pytest.approx(statistics.NormalDist().inv_cdf(0.975), abs=1e-6)


@pytest.mark.parametrize(
    ("freedom", "confidence"), [(0, 0.95), (-1, 0.95), (math.nan, 0.95), (3, 0), (3, 1), (3, 95)]
)
def test_t_outside_its_range_is_an_error(freedom, confidence):
    with pytest.raises(ValueError, match=r"must be positive.*between 0 and 1"):
        student_t(freedom, confidence)


def test_an_interval_is_students_t_times_the_standard_error():
    mean, half = interval([1.0, 2.0, 3.0])  # standard deviation 1, t(0.975, 2) = 4.3027
    assert mean == 2.0
    assert half == pytest.approx(4.3027 / math.sqrt(3), abs=1e-4)
    values = [float(n) for n in range(17)]  # standard deviation sqrt(25.5), t(0.975, 16) = 2.1199
    assert interval(values)[1] == pytest.approx(2.1199 * math.sqrt(25.5 / 17), abs=1e-4)


def test_the_interval_of_one_value_is_unknown_and_of_none_an_error():
    mean, half = interval([0.5])
    assert mean == 0.5
    assert math.isnan(half)
    with pytest.raises(ValueError, match="at least one"):
        interval([])


def test_the_deviation_is_pooled_over_groups_with_different_means():
    # Variances 2 with 1 degree of freedom and 1 with 2; a single value has none.
    deviation, freedom = pooled_deviation([[80.0, 82.0], [70.0, 71.0, 72.0], [10.0]])
    assert deviation == pytest.approx(math.sqrt((1 * 2 + 2 * 1) / 3))
    assert freedom == 3


def test_the_deviation_of_single_values_is_unknown():
    deviation, freedom = pooled_deviation([[80.0], [70.0], []])
    assert math.isnan(deviation)
    assert freedom == 0


def test_an_interval_takes_an_array():
    assert interval(np.array([1.0, 2.0, 3.0])) == interval([1.0, 2.0, 3.0])


def test_the_interval_of_a_share_is_that_of_its_standard_error():
    assert binomial_half_width(0.5, 100) == pytest.approx(1.96 * 0.05)
    assert binomial_half_width(1.0, 100) == 0


# ---- Seeds and images together ---------------------------------------------------------------------


def table(generator, seeds: int, images: int, by_seed: float, by_image: float, rest: float) -> np.ndarray:
    """Values (seeds, images) with a true mean of 0 and these standard deviations of the three parts."""
    return (
        by_seed * generator.standard_normal((seeds, 1))
        + by_image * generator.standard_normal((1, images))
        + rest * generator.standard_normal((seeds, images))
    )


def test_if_only_the_seed_matters_the_interval_is_that_of_the_runs():
    means = [0.1, 0.2, 0.4]
    found = estimate(np.repeat(np.array(means)[:, None], 500, 1))
    mean, half = interval(means)
    assert found.mean == pytest.approx(mean)
    assert found.half == pytest.approx(half, rel=1e-6)
    assert found.seeds == 3


def test_if_only_the_image_matters_the_interval_is_that_of_the_images():
    values = np.random.default_rng(0).integers(0, 2, 1000).astype(float)
    found = estimate(np.repeat(values[None], 4, 0))
    assert found.half == pytest.approx(student_t(999) * values.std(ddof=1) / math.sqrt(1000), rel=1e-6)


def test_both_chances_add_up():
    values = table(np.random.default_rng(1), 40, 500, 0.02, 0.4, 0.1)
    seeds, images = 0.02**2 / 40, 0.4**2 / 500
    assert estimate(values).half == pytest.approx(2 * math.sqrt(seeds + images), rel=0.15)


@pytest.mark.parametrize(
    "parts", [(0.01, 0.2, 0.3), (0.03, 0.1, 0.3), (0.0, 0.3, 0.3), (0.05, 0.0, 0.3), (0, 0, 0.3)]
)
def test_at_least_95_percent_of_the_intervals_contain_the_true_mean(parts):
    generator = np.random.default_rng(2)
    found = [estimate(table(generator, 5, 200, *parts)) for _ in range(600)]
    assert statistics.fmean(abs(each.mean) <= each.half for each in found) > 0.93


def test_an_interval_has_a_bound_where_neither_seed_nor_image_matters():
    generator = np.random.default_rng(4)
    found = [estimate(table(generator, 5, 200, 0, 0, 0.3), 0.999) for _ in range(600)]
    error = 0.3 / math.sqrt(5 * 200)
    assert max(each.half for each in found) < 3 * student_t(4, 0.999) * error


def test_a_higher_confidence_widens_the_interval_and_one_seed_has_none():
    values = table(np.random.default_rng(3), 5, 100, 0.1, 0.2, 0.3)
    assert estimate(values, 0.99).half > 1.2 * estimate(values).half
    alone = estimate(values[:1])
    assert math.isnan(alone.half)
    assert alone.holds_zero


def test_an_interval_that_ends_at_zero_holds_it():
    assert estimate(np.array([[1.0, 1.0], [1.0, 1.0]])).holds_zero is False
    assert estimate(np.array([[0.0, 0.0], [0.0, 0.0]])).holds_zero is True


@pytest.mark.parametrize("shape", [(5,), (0, 3), (3, 1)])
def test_values_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"expected \(seeds, images\)"):
        estimate(np.zeros(shape))
