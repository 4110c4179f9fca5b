"""Results: one JSON file a run, and what several runs say together."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

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
    t = _T95[min(freedom, len(_T95) - 1)]  # for more runs somewhat too wide
    return statistics.fmean(values), t * statistics.stdev(values) / math.sqrt(len(values))


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
    number format, as those of different processors do, it stands beside each seed.

    Raises ValueError where runs of one name differ in recipe or parameters.
    """
    parts: dict[str, list[History]] = {}
    for history in histories:
        parts.setdefault(history.evaluated_on, []).append(history)
    return "\n\n".join(_table(part, parts[part]) for part in sorted(parts))


def _table(part: str, histories: Iterable[History]) -> str:
    groups: dict[tuple[str, str], list[History]] = {}
    for history in histories:
        groups.setdefault((history.name, history.dataset), []).append(history)
    lines = [
        "| experiment | data | parameters | epochs | seeds "
        f"| {part} accuracy, % | with flips, % | time, s | at peak, TFLOP |",
        "| --- | --- | ---: | ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    for (name, dataset), runs in groups.items():
        kinds = [(run.recipe, run.parameters) for run in runs]
        if any(kind != kinds[0] for kind in kinds):
            raise ValueError(f"the runs named {name!r} differ in recipe or parameters; name them apart")
        seconds = statistics.median(run.train_seconds for run in runs)
        tflop = statistics.median(run.peak_tflop for run in runs)
        lines.append(
            f"| {name} | {dataset} | {runs[0].parameters:,} | {runs[0].epochs} "
            f"| {_seeds(runs)} "
            f"| {_percent([run.test_accuracy[-1] for run in runs])} "
            f"| {_percent([run.test_accuracy_flips for run in runs])} | {seconds:.0f} | {tflop:.1f} |"
        )
    return "\n".join(lines)


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
