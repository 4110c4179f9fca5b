"""Results: one JSON file a run, and what several runs say together."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from lab.recipes import completed
from lab.training import History

# Student's t, two-sided 95 %, by degrees of freedom: scipy.stats.t.ppf(0.975, df).
_T95 = (math.nan, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean of `values` and the half-width of its 95 % confidence interval over runs.

    Student's t on the sample; nan for a single value, which says nothing about its spread.
    """
    if not values:
        raise ValueError("no values: expected at least one")
    freedom = len(values) - 1
    if freedom == 0:
        return values[0], math.nan
    return statistics.fmean(values), _t95(freedom) * statistics.stdev(values) / math.sqrt(len(values))


def _t95(freedom: int) -> float:
    return _T95[min(freedom, len(_T95) - 1)]  # beyond the table somewhat too wide


def load_results(folder: str | Path) -> list[History]:
    """Every History below `folder`, by name and seed; FileNotFoundError where there is none.

    What lies in a folder named bench is no run, but what the benchmark measured, and is passed over.
    """
    paths = [path for path in sorted(Path(folder).rglob("*.json")) if path.parent.name != "bench"]
    histories = [History.load(path) for path in paths]
    if not histories:
        raise FileNotFoundError(f"no result (*.json) below {folder}")
    return sorted(histories, key=lambda history: (history.name, history.seed))


def report(histories: Iterable[History]) -> str:
    """Markdown tables, a row an experiment: its seeds, last-epoch accuracy, and median training times.

    Runs that were evaluated on held-out training images have a table of their own. The second accuracy
    averages each image's logits with its mirror image's (test-time augmentation), where that was measured.
    The second time is peak-normalized, as `History.peak_tflop`. Where runs of one name differ in their
    number format, as those of different processors do, it stands beside each seed. Below a table of
    several seeds stands how much the seed alone changes a run.

    Raises ValueError where runs of one name differ in recipe or parameters, or are of the same seed.
    """
    parts: dict[str, dict[tuple[str, str], list[History]]] = {}
    for history in histories:
        groups = parts.setdefault(history.evaluated_on, {})
        groups.setdefault((history.name, history.dataset), []).append(history)
    return "\n\n".join(
        block
        for part in sorted(parts)
        for block in (_table(part, parts[part]), _chance(parts[part]))
        if block
    )


def _table(part: str, groups: dict[tuple[str, str], list[History]]) -> str:
    lines = [
        "| experiment | data | parameters | epochs | seeds "
        f"| {part} accuracy, % | with flips, % | time, s | at peak, TFLOP |",
        "| --- | --- | ---: | ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    for (name, dataset), runs in groups.items():
        kinds = [(completed(run.recipe), run.parameters) for run in runs]
        if any(kind != kinds[0] for kind in kinds):
            raise ValueError(f"the runs named {name!r} differ in recipe or parameters; name them apart")
        seeds = [run.seed for run in runs]
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"the runs named {name!r} are of the seeds {seeds}: each may be there once")
        seconds = statistics.median(run.train_seconds for run in runs)
        tflop = statistics.median(run.peak_tflop for run in runs)
        lines.append(
            f"| {name} | {dataset} | {runs[0].parameters:,} | {runs[0].epochs} "
            f"| {_seeds(runs)} "
            f"| {_percent([run.test_accuracy[-1] for run in runs])} "
            f"| {_percent([run.test_accuracy_flips for run in runs])} | {seconds:.0f} | {tflop:.1f} |"
        )
    return "\n".join(lines)


def _chance(groups: dict[tuple[str, str], list[History]]) -> str:
    """The standard deviation over seeds, pooled over the experiments, and what it means for two runs."""
    accuracies = [[100 * run.test_accuracy[-1] for run in runs] for runs in groups.values()]
    several = [each for each in accuracies if len(each) > 1]
    freedom = sum(len(each) - 1 for each in several)
    if not freedom:
        return ""
    squares = sum((len(each) - 1) * statistics.variance(each) for each in several)
    deviation = math.sqrt(squares / freedom)
    apart = _t95(freedom) * math.sqrt(2) * deviation
    return (
        f"Another seed changes the accuracy by {deviation:.2f} points (standard deviation, pooled over the "
        f"rows of several seeds, {freedom} degrees of freedom): two single runs of one recipe differ by up "
        f"to {apart:.1f} points at 95 %."
    )


def _seeds(runs: Sequence[History]) -> str:
    formats = [run.machine.get("dtype") for run in runs]
    if len(set(formats)) == 1:
        return ", ".join(str(run.seed) for run in runs)
    return ", ".join(f"{run.seed} ({dtype})" for run, dtype in zip(runs, formats, strict=True))


def _percent(accuracies: Sequence[float | None]) -> str:
    if None in accuracies:
        return ""
    mean, half = interval([100 * accuracy for accuracy in accuracies])
    return f"{mean:.2f}" if math.isnan(half) else f"{mean:.2f} ± {half:.2f}"
