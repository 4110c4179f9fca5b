"""Everything that is printed as a table: results, the card of the trained weights, the benchmark."""

from __future__ import annotations

import hashlib
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lab.data import CIFAR_10
from lab.metrics import accuracy_of, confusion_matrix
from lab.recipes import RECIPES, Recipe
from lab.records import MOST_TOLD, History, processor_name
from lab.schema import read_json
from lab.statistics import binomial_half_width, interval, pooled_deviation, student_t
from lab.study import LADDER, by_experiment, ladder_experiments, load_results
from lab.tables import markdown_table, text_table
from lab.training import evaluate
from lab.tuning import LAYOUTS
from model import PRETRAINED, Net, count_parameters, describe, receptive_field

BFLOAT16_MATH = "float32 channels_last, bfloat16 products"  # oneDNN rounds the factors
WEIGHTS = Path(__file__).resolve().parent.parent / "weights"

# ---- Results ---------------------------------------------------------------------------------------


def report_folder(folder: str | Path) -> str:
    """The ladder and the report on the records below `folder`, and the benchmark's results in `folder`/bench.

    Raises FileNotFoundError without any record, and ValueError for a file that is neither.
    """
    histories = load_results(folder)
    tables = [*filter(None, [ladder_table(histories)]), report(histories)]
    results: list[Mapping[str, Any]] = []
    for path in sorted((Path(folder) / "bench").glob("*.json")):
        if path.stem.endswith("-quick"):  # its figures mean nothing
            continue
        try:
            result = read_json(path)
            bench_markdown([result]).encode()  # for its errors
        except Exception as error:  # whatever the first wrong part leads to
            reason = repr(error)[:MOST_TOLD]
            raise ValueError(f"{path} is not a result of the benchmark: {reason}") from error
        results.append(result)
    return "\n\n".join([*tables, *([bench_markdown(results)] if results else [])])


def report(histories: Iterable[History]) -> str:
    """Markdown tables with a row per experiment: seeds, accuracy of the last epoch, median training times.

    Runs evaluated on held-out training images have their own table. The second accuracy averages each
    image's logits with those of its mirror image. The second time is peak-normalized, see
    `History.peak_tflop`. A cell is empty unless all its runs have the figure. If the number format differs
    between the runs of a row, it is given beside each seed. Below a table in which an experiment has
    several seeds, a sentence says how much the seed changes the accuracy. Runs that are not finished or have
    no figures on the test or held-out images are in no row, but listed at the end.

    Raises ValueError if runs with the same name do not belong together, see `by_experiment`.
    """
    parts: dict[str, list[History]] = {}
    left_out = []
    for history in histories:
        if reason := _shortfall(history):
            left_out.append(f"- {history.name} seed {history.seed}: {reason}")
        else:
            parts.setdefault(history.evaluated_on, []).append(history)
    blocks = []
    for part in sorted(parts):
        groups = by_experiment(parts[part])
        blocks += [_results(part, groups), _seed_effect(groups.values())]
    if left_out:
        blocks.append(
            "\n".join(["Runs in no table, because they are unfinished or untested:", "", *left_out])
        )
    return "\n\n".join(filter(None, blocks))


def _shortfall(run: History) -> str:
    """What keeps a run out of the means; empty if it is finished and evaluated."""
    epochs = Recipe.from_dict(run.recipe).epochs
    if run.epochs < epochs:
        return f"{run.epochs} of {epochs} epochs"
    return "" if run.accuracy else f"no {run.evaluated_on} figures"


SHORT = ("rung", "processor", "seeds", "test accuracy, %", "to reach, %", "time, s")  # columns of the ladder
SUMMARY = (  # the experiments that README shows first
    *("batch norm, Muon", "layer norm, AdamW, L2", "group norm, SGD, L1"),
    *("minute-batch-mixed", "frontier-small-batch-mixed", "frontier-batch-mixed"),
)


def summary_table(histories: Iterable[History]) -> str:
    """The experiments of SUMMARY as a narrow Markdown table: of each the CPU with the shortest time.

    Accuracy, seeds and time are as in `report`. Experiments without a finished run on a CPU are left out.
    """
    done = [run for run in histories if not _shortfall(run) and run.evaluated_on == "test" and _on_cpu(run)]
    groups = by_experiment([run for run in done if run.name in SUMMARY])
    rows = []
    for name in SUMMARY:
        fitting = [runs for (label, *_), runs in groups.items() if label == name]
        if fitting:
            runs = min(fitting, key=lambda runs: statistics.median(run.train_seconds for run in runs))
            accuracy = _percent([run.accuracy[-1] for run in runs])
            seconds = _median([run.train_seconds for run in runs], ".0f")
            words = name.removesuffix("-batch-mixed"), f"{runs[0].parameters:,}", str(runs[0].epochs)
            rows.append([*words, str(len(runs)), accuracy, seconds, runs[0].processor])
    head = ["network", "parameters", "epochs", "seeds", "test accuracy, %", "time, s", "processor"]
    return markdown_table(head, rows, "lrrrrrl")


def _on_cpu(run: History) -> bool:
    return run.machine.get("device", "cpu") == "cpu"


def ladder_table(histories: Iterable[History], *, short: bool = False) -> str:
    """The ladder as a Markdown table: how long each processor takes to which accuracy; empty without a run.

    A row has the finished runs of a recipe as it is now, on one processor, on the whole training set and all
    test images of CIFAR-10: the numbers of threads used, the mean accuracy over the seeds with its 95 %
    interval, the medians of the training seconds (see `History`), of the rate of a large matrix product in
    the same runs, and of the product of both. short: only rung, processor, seeds, accuracy and time.
    """
    head = ["rung", "processor", "format", "threads", "seeds", "test accuracy, %", "to reach, %", "time, s"]
    head += ["matrix product, GFLOP/s", "at peak, TFLOP", "parameters", "MACs of an image"]
    histories, rows = list(histories), []
    for rung in LADDER:
        recipe, (experiment, *_) = RECIPES[rung.recipe], ladder_experiments([rung.recipe])
        own = [
            run
            for run in histories
            if (run.name, run.dataset, run.evaluated_on) == (experiment.name, CIFAR_10, "test")
            and Recipe.from_dict(run.recipe) == recipe
            and not _shortfall(run)
        ]
        macs = describe(experiment.network()).total_macs if own else 0
        rows += [
            [
                rung.recipe,
                processor,
                ", ".join(sorted({run.machine.get("dtype", "") for run in runs})),
                _threads(runs),
                str(len(runs)),
                _percent([run.accuracy[-1] for run in runs]),
                f"{100 * rung.accuracy:.1f}",
                _median([run.train_seconds for run in runs], ".1f"),
                _median([_rate(run) for run in runs], ".0f"),
                _median([run.peak_tflop for run in runs], ".1f"),
                f"{runs[0].parameters:,}",
                f"{macs:,}",
            ]
            for (*_, processor), runs in by_experiment(own).items()
        ]
    if not rows:
        return ""
    alignments = "lllrrrrrrrrr"
    if short:
        chosen = [head.index(column) for column in SHORT]
        head, *rows = [[line[index] for index in chosen] for line in (head, *rows)]
        alignments = "".join(alignments[index] for index in chosen)
    return markdown_table(head, rows, alignments)


def _rate(run: History) -> float:
    """The mean rate of a large matrix product, in GFLOP/s; nan unless it was measured after every epoch."""
    return statistics.fmean(run.gflops) if len(run.gflops) == run.epochs else math.nan


def _threads(runs: Iterable[History]) -> str:
    """The numbers of threads that the runs used: "2", or "1 to 2" if other work took part of the machine."""
    used = [counts for run in runs for counts in run.threads or [[run.machine.get("threads")]]]
    known = sorted({count for counts in used for count in counts if count is not None})
    return " to ".join(map(str, dict.fromkeys((known[0], known[-1])))) if known else ""


def _results(part: str, groups: Mapping[tuple[str, str, str], Sequence[History]]) -> str:
    head = ["experiment", "data", "processor", "parameters", "epochs", "seeds"]
    head += [f"{part} accuracy, %", "with flips, %", "time, s", "at peak, TFLOP"]
    rows = [
        [
            name,
            dataset,
            processor,
            f"{runs[0].parameters:,}",
            str(runs[0].epochs),
            _seeds(runs),
            _percent([run.accuracy[-1] for run in runs]),
            _percent([run.accuracy_flips for run in runs]),
            _median([run.train_seconds for run in runs], ".0f"),
            _median([run.peak_tflop for run in runs], ".1f"),
        ]
        for (name, dataset, processor), runs in groups.items()
    ]
    return markdown_table(head, rows, "lllrrlrrrr")


def _seed_effect(groups: Iterable[Sequence[History]]) -> str:
    """How far two runs that differ in the seed are apart; empty if no experiment has several seeds."""
    deviation, freedom = pooled_deviation([[100 * run.accuracy[-1] for run in runs] for runs in groups])
    if not freedom:
        return ""
    apart = student_t(freedom) * math.sqrt(2) * deviation
    return (
        f"Another seed changes the accuracy by {deviation:.2f} points (standard deviation, pooled over the "
        f"rows with several seeds, {freedom} {'degree' if freedom == 1 else 'degrees'} of freedom): in 95 % "
        f"of cases, two runs of one recipe differ by at most {apart:.2f} points."
    )


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

    The interval after the accuracy is the 95 % uncertainty from the number of images evaluated, if that was
    recorded; another seed adds to it. A cell is empty if the run does not have the figure; an unfinished run
    has the epochs done "of" those of its recipe. Seconds are those of training alone.
    """
    parts = {run.evaluated_on for run in histories.values()}
    of = f"{parts.pop()} " if len(parts) == 1 else ""
    figures = [f"{of}accuracy, %", "training accuracy, %", f"{of}loss"]
    head = ["", *figures, "parameters", "epochs", "training, s"]
    rows = []
    for name, run in histories.items():
        epochs = Recipe.from_dict(run.recipe).epochs
        accuracy, images = _last(run.accuracy, ".2f", 100), run.data.get(run.evaluated_on, {}).get("images")
        if accuracy and images:
            accuracy += f" ± {100 * binomial_half_width(run.accuracy[-1], images):.2f}"
        figures = [accuracy, _last(run.train_accuracy, ".2f", 100), _last(run.loss, ".3f")]
        done = str(run.epochs) if run.epochs == epochs else f"{run.epochs} of {epochs}"
        rows.append([name, *figures, f"{run.parameters:,}", done, f"{run.train_seconds:.0f}"])
    return text_table(head, rows)


def _last(values: Sequence[float], digits: str, factor: float = 1) -> str:
    return f"{factor * values[-1]:{digits}}" if values else ""


# ---- The card of the trained weights ---------------------------------------------------------------


SURE = 0.9  # confidence from which one view is enough


@dataclass(frozen=True)
class Evaluation:
    """How a network classifies images with labels; accuracies are in [0, 1]."""

    accuracy: float
    accuracy_flips: float  # the logits of each image averaged with those of its mirror image
    accuracy_unsure: float  # the same, only of the images with a confidence below SURE
    unsure: float  # the share of these images
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

    def logits_of(mirrored: bool) -> tuple[Tensor, Tensor]:
        prepared = (
            (net.transform(part).flip(-1) if mirrored else net.transform(part), part_labels)
            for part, part_labels in zip(images.split(250), labels.split(250), strict=True)
        )
        return evaluate(net, prepared, dtype=torch.float32)

    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        logits, labels_seen = logits_of(mirrored=False)
        averaged = (logits + logits_of(mirrored=True)[0]) / 2  # as `evaluate(..., flips=True)`
    unsure = logits.softmax(1).amax(1) < SURE  # as `evaluate(..., flips=True, sure=SURE)` chooses
    counts = torch.from_numpy(confusion_matrix(labels_seen, logits.argmax(1), len(classes)))
    names, right = dict(enumerate(classes)), counts.diagonal()
    wrong = counts - right.diag()
    true, predicted = wrong.nonzero(as_tuple=True)
    order = wrong[true, predicted].argsort(descending=True, stable=True)
    pairs = zip(true[order].tolist(), predicted[order].tolist(), strict=True)
    return Evaluation(
        accuracy=accuracy_of(logits, labels_seen),
        accuracy_flips=accuracy_of(averaged, labels_seen),
        accuracy_unsure=accuracy_of(torch.where(unsure[:, None], averaged, logits), labels_seen),
        unsure=unsure.double().mean().item(),
        class_accuracies=dict(zip(classes, (right / counts.sum(1)).tolist(), strict=True)),
        confusions=tuple((names[row], names[column], int(wrong[row, column])) for row, column in pairs),
    )


def card(images: Tensor, labels: Tensor, classes: Sequence[str]) -> str:
    """A Markdown table of the networks in PRETRAINED: how each was trained and how it classifies the images.

    images, labels, classes: as for `assess`.
    """
    head = ["name", "norm, conv", "parameters", "receptive field", "trained as", "epochs", "seed", "data"]
    head += ["test accuracy, %", "with flips, %", "with flips where unsure, % (share, %)"]
    head += ["most frequent confusions"]
    rows = []
    for name in PRETRAINED:
        net = Net.from_pretrained(name, WEIGHTS)
        found = assess(net, images, labels, classes)
        made = History.from_dict(net.metadata, WEIGHTS / f"{name}.pt")
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
                f"{100 * found.accuracy_unsure:.2f} ({100 * found.unsure:.0f})",
                "; ".join(confusions),
            ]
        )
    return markdown_table(head, rows, "llrrlrrlrrrl")


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

    def milliseconds(seconds: float, _: str) -> float:
        return 1e3 * seconds

    tables = {
        "training [images/s]": converted({"": result["training"]}, lambda s, _: plan["batches"] * batch / s),
        "matrix product, by size [GFLOP/s]": converted(result["matmul"], lambda s, n: 2e-9 * int(n) ** 3 / s),
        f"step of {result['step']['recipe']} [ms]": converted({"": result["step"]["seconds"]}, milliseconds),
    }
    for dtype, pairs in result["pairs"].items():
        tables[f"step of {batch} images, {dtype} [ms]"] = converted(pairs, milliseconds)
    for axis, times in growth.items():
        tables[f"step, by {axis} [ms]"] = converted({"": times}, milliseconds)
    if result.get("kernels"):
        by_kernel: dict[str, dict[str, list[float]]] = {}
        for dtype, kernels in result["kernels"].items():
            for name, times in kernels.items():
                by_kernel.setdefault(name, {})[dtype] = times
        tables["kernel [ms]"] = converted(by_kernel, milliseconds)
    if result.get("company"):
        rows = {case: {"": times} for case, times in result["company"].items()}
        tables["step in company [ms]"] = converted(rows, milliseconds)
    for name in ("two runs", "search"):
        if result.get(name):
            tables[f"{name} [s]"] = converted({"": result[name]}, lambda seconds, _: seconds)
    if result.get("parts"):
        tables["part of a step [%]"] = {part: {"": 100 * share} for part, share in result["parts"].items()}
    return tables


SLOW = 2.0  # times what a kernel should take, from where it is named


def slow_kernels(result: Mapping[str, Any]) -> list[str]:
    """A line for each kernel that takes much longer than its like, or than in float32."""
    times = {
        dtype: {name: 1e3 * statistics.median(seconds) for name, seconds in kernels.items()}
        for dtype, kernels in result.get("kernels", {}).items()
    }
    lines = []
    for dtype, kernels in times.items():
        for name, taken in kernels.items():
            like = result["like"][name]
            if like is not None and taken > SLOW * kernels[like]:
                lines.append(f"{name}, {dtype}: {taken / kernels[like]:.1f} times as long as {like}")
            if dtype != "float32" and taken > SLOW * times["float32"][name]:
                lines.append(
                    f"{name}, {dtype}: {taken / times['float32'][name]:.1f} times as long as in float32"
                )
    return lines


def bench_summary(result: Mapping[str, Any]) -> dict[str, Any]:
    """The main figures of the benchmark, from the times in `result`: medians, and ratios of medians."""
    training, products, steps, *_ = bench_rates(result).values()
    conventional, ours, scheduled = training[""].values()
    peaks = {dtype: max(sizes.values()) for dtype, sizes in products.items()}
    dtype, memory = result["machine"]["dtype"], result["start"]["bytes"]
    step_gflops = 1e-6 * result["step"]["flops"] / steps[""][result["chosen"]["format"]]
    company = {case: statistics.median(times) for case, times in result.get("company", {}).items()}

    def ratio(case: str, to: str) -> float | None:
        return company[case] / company[to] if company else None

    two = {case: statistics.median(times) for case, times in result.get("two runs", {}).items()}
    search, optimizer = result.get("search"), result["step"].get("optimizer")
    return {
        "dataset": result["dataset"],
        "dtype": dtype,
        "conventional_images_per_second": conventional,
        "ours_images_per_second": ours,
        "ratio": ours / conventional,
        "ratio_sizes_as_scheduled": scheduled / conventional,
        "peak_gflops": peaks,
        "step_milliseconds": steps[""],
        "step_gflops": step_gflops,
        "share_of_peak": step_gflops / max(peaks.values()),
        "idle_ratio": ratio("alone", "alone, all threads"),
        "busy_ratio": ratio("beside a busy process", "alone, all threads"),
        "busy_ratio_all_threads": ratio("beside a busy process, all threads", "alone, all threads"),
        "second_ratio": ratio("beside a second training", "alone, all threads"),
        "second_ratio_all_threads": ratio("beside a second training, all threads", "alone, all threads"),
        "optimizer_milliseconds": 1e3 * statistics.median(optimizer) if optimizer else None,
        "search_seconds": sum(map(statistics.median, search.values())) if search else None,
        "two_at_once_ratio": two["one after another"] / two["two at once"] if two else None,
        "peak_memory_bytes": None if None in memory else max(memory),
        "first_step_seconds": statistics.median(result["start"]["seconds"]),
        "slow_kernels": slow_kernels(result),
    }


def bench_text(result: Mapping[str, Any]) -> str:
    """All figures of the benchmark as tables in plain text."""
    host, summary = result["machine"], result["summary"]
    where = f"{processor_name(host)}, {host['device']}, {host['threads']} threads, torch {host['torch']}"
    main = {
        name.replace("_", " "): {"": figure}
        for name, figure in summary.items()
        if not isinstance(figure, dict | list)
    }
    blocks = [f"{where}; {_rounds(result)}"]
    for title, rows in {
        **bench_rates(result),
        f"recipe of the step: {result['step']['recipe']}": main,
    }.items():
        head = [title, *next(iter(rows.values()))]
        blocks.append(text_table(head, [[row, *map(_number, cells.values())] for row, cells in rows.items()]))
    return "\n\n".join([*blocks, *(["\n".join(summary["slow_kernels"])] if summary["slow_kernels"] else [])])


def bench_markdown(results: Sequence[Mapping[str, Any]]) -> str:
    """Markdown tables: the main figures with a column for each result; then the pairs, a table for each.

    The times of the pairs are those of the number format that was chosen on the machine.
    """
    columns = [_main_figures(result) for result in results]
    rows = [[name, *(_number(column[name]) for column in columns)] for name in columns[0]]
    heads = [
        f"{processor_name(result['machine'])}, {result['machine']['threads']} threads" for result in results
    ]
    tables = [markdown_table(["", *heads], rows, "l" + "r" * len(results))]
    for result, head in zip(results, heads, strict=True):
        dtype = result["machine"]["dtype"]
        pairs = bench_rates(result)[f"step of {result['plan']['batch_size']} images, {dtype} [ms]"]
        convs = list(next(iter(pairs.values())))
        steps = [[norm, *map(_number, times.values())] for norm, times in pairs.items()]
        title = f"{head}: step of {result['plan']['batch_size']} images, {dtype} [ms]"
        tables.append(markdown_table([title, *convs], steps, "l" + "r" * len(convs)))
    return "\n\n".join(tables)


def _main_figures(result: Mapping[str, Any]) -> dict[str, float | str | None]:
    main, recipe = result["summary"], result["step"]["recipe"]
    memory, peaks, steps = main["peak_memory_bytes"], main["peak_gflops"], main["step_milliseconds"]
    return {
        "format chosen": result["chosen"]["format"]
        + ("" if result["chosen"]["microseconds"] else ", not timed"),
        "conventional recipe, images/s": main["conventional_images_per_second"],
        "ours, images/s": main["ours_images_per_second"],
        "speed-up": main["ratio"],
        "speed-up with progressive image sizes": main["ratio_sizes_as_scheduled"],
        "matrix product in float32, GFLOP/s": peaks.get("float32"),
        "matrix product in bfloat16, GFLOP/s": peaks.get("bfloat16"),
        **{f"training step of `{recipe}`, {name}, ms": steps.get(name) for name in STEP_FORMATS},
        "the chosen one's share of the best format's peak, %": 100 * main["share_of_peak"],
        "its optimizer alone, ms": main["optimizer_milliseconds"],
        **{f"of the time of a step: {part}, %": share for part, share in _parts(result).items()},
        "to find the format, once a process, and the threads, s": main["search_seconds"],
        "step when idle, threads found by timing, times all threads": main["idle_ratio"],
        "step beside a busy process, between searches, times idle": main["busy_ratio"],
        "the same with all threads": main["busy_ratio_all_threads"],
        "step beside a second training, between searches, times idle": main["second_ratio"],
        "the same with all threads each": main["second_ratio_all_threads"],
        "runs an hour, two at once in a process pool, times one after another": main["two_at_once_ratio"],
        "peak memory of the process, GB": None if memory is None else 1e-9 * memory,
        "time to the end of the first step, imports included, s": main["first_step_seconds"],
    }


STEP_FORMATS = [f"{dtype} {layout}" for dtype in ("float32", "bfloat16") for layout in LAYOUTS]
STEP_FORMATS += [BFLOAT16_MATH]
STEP_PARTS = {  # what a table shows of them
    "convolution": ("convolution",),
    "normalization": ("normalization",),
    "optimizer": ("optimizer",),
    "augmentation and resizing": ("augmentation", "resizing"),
    "copies": ("copies",),
    "activations": ("activation",),
    "everything else": ("other operations", "Python"),
}


def _parts(result: Mapping[str, Any]) -> dict[str, float | None]:
    shares = result.get("parts")
    return {
        part: 100 * sum(shares[name] for name in names) if shares else None
        for part, names in STEP_PARTS.items()
    }


def _rounds(result: Mapping[str, Any]) -> str:
    rounds = len(result["training"]["ours"])
    return f"medians of {rounds} rounds" if rounds > 1 else "one round"


def _number(figure: float | str | None) -> str:
    """Three digits, or all of them before the point."""
    if figure is None or isinstance(figure, str):
        return figure or "not measured"
    return f"{figure:.3g}" if figure < 999.5 else f"{figure:,.0f}"
