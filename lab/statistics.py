"""Statistics: intervals of means over seeds, over images, and over both; differences between paired runs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np


class Estimate(NamedTuple):
    """A mean over runs, with its confidence interval: mean - half to mean + half."""

    mean: float
    half: float  # nan for a single run
    seeds: int

    @property
    def holds_zero(self) -> bool:
        """Whether the interval contains 0, or is not known."""
        return not abs(self.mean) > self.half


def estimate(values: np.ndarray, confidence: float = 0.95) -> Estimate:
    """The mean of `values` (seeds, images) over both, with an interval that allows for both chances.

    values: for each run and each image, whether it was right (0 or 1), or the difference between two arms
    (-1, 0 or 1). Other seeds and other images would give another mean. Its variance is that of a table with
    two random factors, (MS_seeds + MS_images - MS_rest) / (seeds * images), with degrees of freedom by
    Satterthwaite (1946), but no fewer than one factor alone has: where the sum nearly cancels they fall
    towards 0, and the interval grows without bounds. Since a mean square of few seeds can be small by chance,
    the half-width is at least that from the seeds alone, and that from the images alone. It is nan for a
    single seed.

    Raises ValueError unless there are at least one seed and two images.
    """
    values = np.asarray(values, float)
    if values.ndim != 2 or values.shape[0] < 1 or values.shape[1] < 2:
        raise ValueError(f"values of shape {values.shape}: expected (seeds, images), at least (1, 2)")
    seeds, images = values.shape
    mean = float(values.mean())
    if seeds == 1:
        return Estimate(mean, math.nan, 1)
    by_seed, by_image = values.mean(1), values.mean(0)
    squares = np.array(
        [
            images * ((by_seed - mean) ** 2).sum(),
            seeds * ((by_image - mean) ** 2).sum(),
            ((values - by_seed[:, None] - by_image + mean) ** 2).sum(),
        ]
    )
    freedom = np.array([seeds - 1, images - 1, (seeds - 1) * (images - 1)])
    parts = squares / freedom / (seeds * images)  # mean squares, as parts of the variance of the mean
    halves = [student_t(freedom[index], confidence) * math.sqrt(parts[index]) for index in (0, 1)]
    both = parts[0] + parts[1] - parts[2]
    if both > 0:
        satterthwaite = both**2 / (parts**2 / freedom).sum()
        halves.append(student_t(max(satterthwaite, freedom.min()), confidence) * math.sqrt(both))
    return Estimate(mean, max(halves), seeds)


def interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """The mean of `values` and the half-width of its confidence interval.

    The interval is Student's t for independent, normally distributed values. The half-width is nan for a
    single value, which says nothing about the spread. Raises ValueError without any value.
    """
    if len(values) == 0:
        raise ValueError("no values: expected at least one")
    freedom = len(values) - 1
    if freedom == 0:
        return values[0], math.nan
    t = student_t(freedom, confidence)
    return statistics.fmean(values), t * statistics.stdev(values) / math.sqrt(len(values))


def binomial_half_width(share: float, count: int) -> float:
    """The half-width of the 95 % interval of a share of `count` independent cases (normal approximation)."""
    return 1.96 * math.sqrt(share * (1 - share) / count)


def student_t(freedom: float, confidence: float = 0.95) -> float:
    """The value that the magnitude of Student's t does not exceed with probability `confidence`.

    freedom: degrees of freedom. Raises ValueError unless it is positive and `confidence` is in (0, 1).
    """
    if not freedom > 0 or not 0 < confidence < 1:
        raise ValueError(
            f"freedom={freedom!r} must be positive, and confidence={confidence!r} between 0 and 1"
        )
    from scipy.special import stdtrit  # takes 0.2 s to import, which training does not need

    return float(stdtrit(freedom, (1 + confidence) / 2))


def pooled_deviation(groups: Iterable[Sequence[float]]) -> tuple[float, int]:
    """The standard deviation within groups, pooled over them, and its degrees of freedom.

    Groups may have different means. The deviation is nan, with 0 degrees of freedom, if no group has two
    values.
    """
    several = [group for group in groups if len(group) > 1]
    freedom = sum(len(group) - 1 for group in several)
    if not freedom:
        return math.nan, 0
    squares = sum((len(group) - 1) * statistics.variance(group) for group in several)
    return math.sqrt(squares / freedom), freedom
