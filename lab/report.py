"""Everything that is printed as a table: results, the card of the trained weights, the benchmark."""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lab.metrics import accuracy_of, confusion_matrix
from lab.records import History
from lab.study import (
    binomial_half_width,
    by_experiment,
    interval,
    load_results,
    pooled_deviation,
    student_t,
)
from lab.training import evaluate
from model import PRETRAINED, Net, count_parameters, receptive_field

WEIGHTS = Path(__file__).resolve().parent.parent / "weights"

# ---- Tables ----------------------------------------------------------------------------------------


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]], alignments: str) -> str:
    """A Markdown table. alignments: "l" or "r" for each column."""
    rule = [{"l": "---", "r": "---:"}[letter] for letter in alignments]
    cells = [[cell.replace("|", r"\|") for cell in row] for row in (head, *rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (cells[0], rule, *cells[1:]))


def text_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in plain text: the first column aligned left, the others right."""
    lines = [head, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
        for line in lines
    )


# ---- Results ---------------------------------------------------------------------------------------


def report_folder(folder: str | Path) -> str:
    """The report on the records below `folder`, then the tables of the benchmark's results in `folder`/bench.

    Raises FileNotFoundError if there is no record, and ValueError for a file that is neither.
    """
    tables = [report(load_results(folder))]
    for path in sorted((Path(folder) / "bench").glob("*.json")):
        if path.stem.endswith("-quick"):  # its figures mean nothing
            continue
        try:
            tables.append(bench_markdown(json.loads(path.read_text())))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is not a result of the benchmark: {error!r}") from error
    return "\n\n".join(tables)


def report(histories: Iterable[History]) -> str:
    """Markdown tables with a row per experiment: seeds, accuracy of the last epoch, median training times.

    Runs evaluated on held-out training images have their own table. The second accuracy averages each
    image's logits with those of its mirror image. The second time is peak-normalized, see
    `History.peak_tflop`. A cell is empty unless all its runs have the figure. If the number format differs
    between the runs of a row, it is given beside each seed. Below a table in which an experiment has
    several seeds, a sentence says how much the seed changes the accuracy.

    Raises ValueError if runs with the same name do not belong together, see `by_experiment`.
    """
    parts: dict[str, list[History]] = {}
    for history in histories:
        parts.setdefault(history.evaluated_on, []).append(history)
    blocks = []
    for part in sorted(parts):
        groups = by_experiment(parts[part])
        blocks += [_results(part, groups), _seed_effect(groups.values())]
    return "\n\n".join(filter(None, blocks))


def _results(part: str, groups: Mapping[tuple[str, str], Sequence[History]]) -> str:
    head = ["experiment", "data", "parameters", "epochs", "seeds"]
    head += [f"{part} accuracy, %", "with flips, %", "time, s", "at peak, TFLOP"]
    rows = [
        [
            name,
            dataset,
            f"{runs[0].parameters:,}",
            str(runs[0].epochs),
            _seeds(runs),
            _percent([_last_accuracy(run) for run in runs]),
            _percent([run.accuracy_flips for run in runs]),
            _median([run.train_seconds for run in runs], ".0f"),
            _median([run.peak_tflop for run in runs], ".1f"),
        ]
        for (name, dataset), runs in groups.items()
    ]
    return markdown_table(head, rows, "llrrlrrrr")


def _seed_effect(groups: Iterable[Sequence[History]]) -> str:
    """How far two runs that differ in the seed are apart; empty if no experiment has several seeds."""
    accuracies = [[_last_accuracy(run) for run in runs] for runs in groups]
    deviation, freedom = pooled_deviation(
        [[100 * accuracy for accuracy in each if accuracy is not None] for each in accuracies]
    )
    if not freedom:
        return ""
    apart = student_t(freedom) * math.sqrt(2) * deviation
    return (
        f"Another seed changes the accuracy by {deviation:.2f} points (standard deviation, pooled over the "
        f"rows with several seeds, {freedom} {'degree' if freedom == 1 else 'degrees'} of freedom): in 95 % "
        f"of cases, two runs of one recipe differ by at most {apart:.2f} points."
    )


def _last_accuracy(run: History) -> float | None:
    return run.accuracy[-1] if run.accuracy else None


def _seeds(runs: Sequence[History]) -> str:
    formats = [run.machine.get("dtype") for run in runs]
    if len(set(formats)) == 1:
        return ", ".join(str(run.seed) for run in runs)
    return ", ".join(f"{run.seed} ({dtype})" for run, dtype in zip(runs, formats, strict=True))


def _percent(accuracies: Sequence[float | None]) -> str:
    measured = [100 * accuracy for accuracy in accuracies if accuracy is not None]
    if len(measured) < len(accuracies):
        return ""
    mean, half = interval(measured)
    return f"{mean:.2f}" if math.isnan(half) else f"{mean:.2f} ± {half:.2f}"


def _median(values: Sequence[float], digits: str) -> str:
    return "" if any(map(math.isnan, values)) else f"{statistics.median(values):{digits}}"


def overview(histories: Mapping[str, History]) -> str:
    """A plain-text table with a row per run: the figures of its last epoch.

    The interval after the accuracy is the 95 % uncertainty from the number of images evaluated; another
    seed adds to it.
    """
    head = ["", "accuracy, %", "training accuracy, %", "loss", "parameters", "epochs", "seconds"]
    rows = []
    for name, run in histories.items():
        accuracy, images = run.accuracy[-1], run.data[run.evaluated_on]["images"]
        interval_ = f"{100 * accuracy:.2f} ± {100 * binomial_half_width(accuracy, images):.2f}"
        figures = [interval_, f"{100 * run.train_accuracy[-1]:.2f}", f"{run.loss[-1]:.3f}"]
        rows.append([name, *figures, f"{run.parameters:,}", str(run.epochs), f"{run.train_seconds:.0f}"])
    return text_table(head, rows)


# ---- The card of the trained weights ---------------------------------------------------------------


@dataclass(frozen=True)
class Evaluation:
    """How a network classifies images with labels; accuracies are in [0, 1]."""

    accuracy: float
    accuracy_flips: float  # the logits of each image averaged with those of its mirror image
    class_accuracies: dict[str, float]
    confusions: tuple[tuple[str, str, int], ...]  # (true class, predicted class, images), most frequent first


def assess(net: Net, images: Tensor, labels: Tensor, classes: Sequence[str]) -> Evaluation:
    """Evaluate `net` on `images`, uint8 (N, 3, H, W), prepared by `net.transform`.

    labels: class numbers (N,) or probabilities (N, classes), of which the likeliest counts. Computed in
    float32, so that another machine gives the same figures except for ties within rounding.

    Raises ValueError if the network does not have one output for each of the `classes`.
    """
    if net.output.out_channels != len(classes):
        raise ValueError(
            f"the network has {net.output.out_channels} outputs, the data {len(classes)} classes"
        )

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for part, part_labels in zip(images.split(250), labels.split(250), strict=True):
            yield net.transform(part), part_labels

    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        logits, labels_seen = evaluate(net, batches(), dtype=torch.float32)
        averaged, _ = evaluate(net, batches(), flips=True, dtype=torch.float32)
    counts = torch.from_numpy(confusion_matrix(labels_seen, logits.argmax(1), len(classes)))
    names, right = dict(enumerate(classes)), counts.diagonal()
    wrong = counts - right.diag()
    true, predicted = wrong.nonzero(as_tuple=True)
    order = wrong[true, predicted].argsort(descending=True, stable=True)
    pairs = zip(true[order].tolist(), predicted[order].tolist(), strict=True)
    return Evaluation(
        accuracy=accuracy_of(logits, labels_seen),
        accuracy_flips=accuracy_of(averaged, labels_seen),
        class_accuracies=dict(zip(classes, (right / counts.sum(1)).tolist(), strict=True)),
        confusions=tuple((names[row], names[column], int(wrong[row, column])) for row, column in pairs),
    )


def card(images: Tensor, labels: Tensor, classes: Sequence[str]) -> str:
    """A Markdown table of the networks in PRETRAINED: how each was trained and how it classifies the images.

    images, labels, classes: as for `assess`.
    """
    head = ["name", "norm, conv", "parameters", "receptive field", "trained as", "epochs", "seed", "data"]
    head += ["test accuracy, %", "with flips, %", "most frequent confusions"]
    rows = []
    for name in PRETRAINED:
        net = Net.from_pretrained(name, WEIGHTS)
        found, made = assess(net, images, labels, classes), History.from_dict(net.metadata or {})
        confusions = [f"{true} as {predicted} {count}" for true, predicted, count in found.confusions[:3]]
        rows.append(
            [
                f"`{name}`",
                f"{net.config['norm']}, {net.config['conv']}",
                f"{count_parameters(net):,}",
                str(receptive_field(net)),
                made.name + (", with a teacher" if made.recipe.get("teacher") else ""),
                str(made.epochs),
                str(made.seed),
                made.dataset,
                f"{100 * found.accuracy:.2f}",
                f"{100 * found.accuracy_flips:.2f}",
                "; ".join(confusions),
            ]
        )
    return markdown_table(head, rows, "llrrlrrlrrl")


def files() -> str:
    """A Markdown table of the files of trained weights, their sizes and their SHA-256."""
    rows = []
    for name in PRETRAINED:
        content = (WEIGHTS / f"{name}.pt").read_bytes()
        rows.append([f"`{name}.pt`", f"{len(content):,}", f"`{hashlib.sha256(content).hexdigest()}`"])
    return markdown_table(["file", "bytes", "SHA-256"], rows, "lrl")


# ---- The benchmark ---------------------------------------------------------------------------------


def bench_rates(result: Mapping[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    """The medians of the times in `result`, as times or speeds: {title: {row: {column: figure}}}."""
    plan, growth = result["plan"], result["growth"]
    batch = plan["batch_size"]

    def converted(rows: Mapping, figure: Callable[[float, str], float]) -> dict[str, dict[str, float]]:
        return {
            row: {column: figure(statistics.median(times), column) for column, times in columns.items()}
            for row, columns in rows.items()
        }

    return {
        "training [images/s]": converted({"": result["training"]}, lambda s, _: plan["batches"] * batch / s),
        "matrix product, by size [GFLOP/s]": converted(result["matmul"], lambda s, n: 2e-9 * int(n) ** 3 / s),
        f"step of {batch} images [ms]": converted(result["pairs"], lambda s, _: 1e3 * s),
        f"step of {batch} images [images/s]": converted(result["pairs"], lambda s, _: batch / s),
    } | {f"step, by {axis} [ms]": converted({"": growth[axis]}, lambda s, _: 1e3 * s) for axis in growth}


def bench_summary(result: Mapping[str, Any]) -> dict[str, Any]:
    """The main figures of the benchmark, from the times in `result`: medians, and ratios of medians."""
    training, products, *_ = bench_rates(result).values()
    conventional, ours, scheduled = training[""].values()
    peaks = {dtype: max(sizes.values()) for dtype, sizes in products.items()}
    dtype, memory = result["machine"]["dtype"], result["start"]["bytes"]
    step_gflops = 1e-9 * result["step"]["flops"] / statistics.median(result["step"]["seconds"])
    return {
        "dataset": result["dataset"],
        "dtype": dtype,
        "conventional_images_per_second": conventional,
        "ours_images_per_second": ours,
        "ratio": ours / conventional,
        "ratio_sizes_as_scheduled": scheduled / conventional,
        "peak_float32_gflops": peaks["float32"],
        "peak_gflops": peaks[dtype],
        "step_gflops": step_gflops,
        "share_of_peak": step_gflops / peaks[dtype],
        "peak_memory_bytes": None if None in memory else max(memory),
        "first_step_seconds": statistics.median(result["start"]["seconds"]),
    }


def bench_text(result: Mapping[str, Any]) -> str:
    """All figures of the benchmark as tables in plain text."""
    host = result["machine"]
    where = f"{host['processor']}, {host['device']}, {host['threads']} threads, torch {host['torch']}"
    main = {name.replace("_", " "): {"": figure} for name, figure in result["summary"].items()}
    tables = {**bench_rates(result), f"recipe of the step: {result['step']['recipe']}": main}
    blocks = [f"{where}; {_rounds(result)}"]
    for title, rows in tables.items():
        head = [title, *next(iter(rows.values()))]
        blocks.append(text_table(head, [[row, *map(_number, cells.values())] for row, cells in rows.items()]))
    return "\n\n".join(blocks)


def bench_markdown(result: Mapping[str, Any]) -> str:
    """The main figures of the benchmark and the times of the pairs as two Markdown tables."""
    host, main = result["machine"], result["summary"]
    memory = main["peak_memory_bytes"]
    figures = {
        "conventional recipe, images/s": main["conventional_images_per_second"],
        "ours, images/s": main["ours_images_per_second"],
        "speed-up": main["ratio"],
        "speed-up with progressive image sizes": main["ratio_sizes_as_scheduled"],
        "matrix product in float32, GFLOP/s": main["peak_float32_gflops"],
        f"matrix product in {host['dtype']}, GFLOP/s": main["peak_gflops"],
        f"training step of `{result['step']['recipe']}`, GFLOP/s": main["step_gflops"],
        f"share of the {host['dtype']} peak, %": 100 * main["share_of_peak"],
        "peak memory of the process, GB": None if memory is None else 1e-9 * memory,
        "time to the end of the first step, imports included, s": main["first_step_seconds"],
    }
    where = f"{host['processor']}, {host['device']}, {host['threads']} threads, {_rounds(result)}"
    rows = [[name, _number(figure)] for name, figure in figures.items()]
    title = f"step of {result['plan']['batch_size']} images [ms]"
    pairs = bench_rates(result)[title]
    convs = list(next(iter(pairs.values())))
    steps = [[norm, *map(_number, times.values())] for norm, times in pairs.items()]
    return "\n\n".join(
        [
            markdown_table([where, ""], rows, "lr"),
            markdown_table([title, *convs], steps, "l" + "r" * len(convs)),
        ]
    )


def _rounds(result: Mapping[str, Any]) -> str:
    rounds = len(result["step"]["seconds"])
    return f"medians of {rounds} rounds" if rounds > 1 else "one round"


def _number(figure: float | str | None) -> str:
    """Three digits, or all of them before the point."""
    if figure is None or isinstance(figure, str):
        return figure or "not known"
    return f"{figure:.3g}" if figure < 1000 else f"{figure:,.0f}"
