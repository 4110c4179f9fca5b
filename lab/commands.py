"""Command line: train, evaluate and measure without the notebook. See `python -m lab train --help`."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from lab import costs, formats, int8
from lab.data import Dataset, as_dataset, load_dataset
from lab.experiment import ABLATIONS, DTYPES, Experiment, ablations, run
from lab.files import check_writable, write_whole
from lab.grid import Records, carry_out
from lab.machine import pick_device
from lab.measurements import LABELS, Labels, Measurements, look_inside, save_looks
from lab.recipes import RECIPES
from lab.report import SURE, assess, bench_text, card, files, ladder_table, report_folder
from lab.studies import PUBLISHED, STUDIES
from lab.study import LADDER, ladder_experiments, load_results, process_pool, run_all
from lab.trials import TRIALS, trials, trials_table
from model import CONVS, NORMS, PRETRAINED, Net, count_parameters

HERE = Path(__file__).resolve().parent.parent


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m lab", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for add in (
        _add_train,
        _add_ladder,
        _add_study,
        _add_findings,
        _add_ablate,
        _add_trials,
        _add_evaluate,
        _add_predict,
        _add_int8,
        _add_demo,
        _add_card,
        _add_report,
        _add_frontier,
        _add_bench,
        _add_formats,
        _add_publish,
    ):
        add(commands)
    options = parser.parse_args(arguments)
    try:
        status = options.run(options)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # the reader closed the pipe, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError, ArithmeticError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"\n{str(stop) or 'stopped'}", file=sys.stderr)
        return 128 + getattr(stop, "number", signal.SIGINT)  # as shells count


class _Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the defaults that say something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


def _command(commands, name: str, run: Callable, *, help: str, description: str) -> argparse.ArgumentParser:
    """A command's parser, which shows the defaults; `run` maps the parsed options to the exit status."""
    parser = commands.add_parser(name, help=help, description=description, formatter_class=_Formatter)
    parser.set_defaults(run=run)
    return parser


def _dataset(text: str) -> str:
    try:
        return as_dataset(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _add_data_and_device(parser: argparse.ArgumentParser) -> None:
    _add_data(parser)
    parser.add_argument("--device", help="cuda, mps or cpu; by default the first that is available")


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dataset",
        type=_dataset,
        default="auto",
        help="auto (CIFAR-10, the stand-in as a last resort), cifar10, cifar100, stand-in; or folder:PATH, a "
        "folder of pictures with a subfolder for each class, which may be in folders train and test",
    )
    parser.add_argument(
        "--root", type=Path, help="the folder that holds cifar-10-batches-py (or cifar-100-python)"
    )


# ---- Training --------------------------------------------------------------------------------------


def _add_train(commands) -> None:
    parser = _command(
        commands,
        "train",
        _train,
        help="train a network by a named recipe",
        description="Train a network by a named recipe. The last lines printed are one JSON object per run. "
        "The folder gets the record, the network and, after every epoch, a checkpoint, from which the same "
        "command continues; a finished run is not trained again.",
    )
    parser.add_argument("--recipe", choices=RECIPES, default="default", help="how to train, and what network")
    parser.add_argument("--epochs", type=int, help="instead of the recipe's")
    parser.add_argument("--name", help="name of the experiment; by default made from recipe, norm and conv")
    parser.add_argument("--norm", choices=NORMS, default="batch", help="normalization")
    parser.add_argument("--conv", choices=CONVS, default="mixed", help="convolution technique")
    parser.add_argument("--processes", type=int, default=1, help="runs at once, if there are several seeds")
    _add_run(parser, seeds="+")


def _add_run(parser: argparse.ArgumentParser, validation: int = 0, seeds: str | None = None) -> None:
    parser.add_argument(
        "--seed",
        type=int,
        nargs=seeds,
        default=[0] if seeds else 0,
        help="for weights, data order and augmentation" + "; one run for each" * bool(seeds),
    )
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder for the results")
    _add_data_and_device(parser)
    parser.add_argument(
        "--validation",
        type=int,
        default=validation,
        help="hold out this many training images and evaluate on them instead of the test images",
    )
    parser.add_argument("--limit", type=int, help="at most this many training and test images")
    _add_format_and_threads(parser)
    parser.add_argument("--fresh", action="store_true", help="start again even if there is a checkpoint")


def _add_format_and_threads(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dtype", choices=DTYPES, help="by default the fastest here, found by timing")
    parser.add_argument("--threads", type=int, help="by default all, or fewer while the machine is busy")


def _train(options: argparse.Namespace) -> int:
    experiments = [
        Experiment.named(
            options.recipe,
            label=options.name,
            epochs=options.epochs,
            norm=options.norm,
            conv=options.conv,
            seed=seed,
            **_fields(options),
        )
        for seed in options.seed
    ]
    first = {"recipe": options.recipe, "norm": options.norm, "conv": options.conv}
    with process_pool(options.processes) if options.processes != 1 else nullcontext() as executor:
        for history in run_all(experiments, executor=executor, **_settings(options)):
            print(json.dumps(first | history.summary(), allow_nan=False))
    return 0


def _fields(options: argparse.Namespace) -> dict:
    """What the options say about an experiment, apart from recipe and seed."""
    return {name: getattr(options, name) for name in ("dataset", "validation", "limit", "dtype")}


def _settings(options: argparse.Namespace) -> dict:
    """What the options say about how an experiment is carried out."""
    return {
        "out": options.out,
        "root": options.root,
        "device": options.device,
        "threads": options.threads,
        "resume": not options.fresh,
    }


def _add_ladder(commands) -> None:
    parser = _command(
        commands,
        "ladder",
        _ladder,
        help="measure how long this machine takes to reach each accuracy",
        description="Train every rung of the ladder with its seeds, one run after another, because their "
        "times count, and print a table. Runs that are finished are not trained again. For times that can be "
        "compared, nothing else should run on the machine.",
    )
    names = [rung.recipe for rung in LADDER]
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="only these rungs")
    parser.add_argument("--out", type=Path, default=Path("runs/ladder"), help="folder for the results")
    parser.add_argument("--root", type=Path, help="the folder that holds cifar-10-batches-py")
    parser.add_argument("--device", help="cuda, mps or cpu; by default the first that is available")
    _add_format_and_threads(parser)


def _ladder(options: argparse.Namespace) -> int:
    data = load_dataset("cifar10", options.root)
    experiments = ladder_experiments(options.only, dataset="cifar10", dtype=options.dtype)
    settings = {name: getattr(options, name) for name in ("device", "threads")}
    print(ladder_table(run_all(experiments, options.out, data=data, **settings)))
    return 0


def _add_study(commands) -> None:
    parser = _command(
        commands,
        "study",
        _study,
        help="compare techniques, normalizations and optimizers, each at its best rate",
        description="Train what is missing of these studies: for each arm a search for its learning rate on "
        "held-out images, then a run for each seed. Runs with a record in the folder, or in the published "
        "results, are not trained again (with --again, only those in the folder); stopped at any moment, the "
        "same command goes on. At the end a table is printed for each study. A run takes about a minute on "
        "one processor core.",
    )
    parser.add_argument("names", nargs="+", choices=STUDIES, metavar="NAME", help=", ".join(STUDIES))
    parser.add_argument("--out", type=Path, default=Path("runs/study"), help="folder for the results")
    parser.add_argument("--root", type=Path, help="the folder that holds cifar-10-batches-py")
    parser.add_argument("--device", help="cuda, mps or cpu; by default the first that is available")
    parser.add_argument("--dtype", choices=DTYPES, help="by default the fastest here, found by timing")
    parser.add_argument("--csv", type=Path, help="a folder for the tables as CSV files")
    parser.add_argument(
        "--measure",
        action="store_true",
        help="train nothing; measure what each arm costs, on an idle machine, and keep it in OUT/bench",
    )
    parser.add_argument(
        "--again", action="store_true", help="train also what the published results have, to compare"
    )
    parser.add_argument(
        "--processes",
        type=int,
        default=os.cpu_count() or 1,
        help="runs at once, with an equal share of the threads; by default one for each core",
    )


def _study(options: argparse.Namespace) -> int:
    from lab.findings import arms_table, differences_table  # Matplotlib is slow to import

    if options.csv is not None:  # before hours of training
        check_writable(options.csv)
    studies = [STUDIES[name] for name in options.names]
    settings = {name: getattr(options, name) for name in ("device", "dtype")}
    if options.measure:
        arms = [arm for study in studies for arm in study.arms]
        costs.write(costs.measure(arms, **settings), options.out / "bench")
        records = Records(options.out, PUBLISHED)
    else:
        settings |= {"root": options.root, "processes": options.processes}
        published = None if options.again else PUBLISHED
        records = carry_out(studies, options.out, published=published, **settings)
    beside = Measurements.load(options.out if options.measure else PUBLISHED)
    for study in studies:
        tables = {"": arms_table(study, records, beside), "-differences": differences_table(study, records)}
        print(f"{study.name}: {study.question}", *tables.values(), "", sep="\n\n")
        if options.csv is not None:
            for ending, table in tables.items():
                table.to_csv(options.csv / f"{study.name}{ending}.csv")
    return 0


def _add_findings(commands) -> None:
    parser = _command(
        commands,
        "findings",
        _findings,
        help="say what the studies found",
        description="Print the sentences that follow from the records of the studies: for each comparison "
        "the difference in test accuracy, with its interval.",
    )
    parser.add_argument(
        "folder", nargs="?", type=Path, default=PUBLISHED, help="folder of the records of the studies"
    )
    parser.add_argument(
        "--write", action="store_true", help="also write the page README.md and its pictures into the folder"
    )
    parser.add_argument(
        "--networks",
        type=Path,
        help="a folder with trained networks: look inside them, on test images, and keep what is found, with "
        "what is known of others",
    )
    parser.add_argument("--root", type=Path, help="the folder that holds cifar-10-batches-py")


def _findings(options: argparse.Namespace) -> int:
    from lab.figures import save  # Matplotlib is slow to import
    from lab.findings import page, sentences
    from lab.pictures import pictures

    if not options.folder.is_dir():
        raise NotADirectoryError(f"{options.folder} is not a folder; give one with records (*.json)")
    records = Records(options.folder)
    for study in STUDIES.values():
        if told := sentences(study, records):
            state = " (not complete)" if study.missing(records) else ""
            print(f"{study.name}{state}: {study.question}", *told, "", sep="\n")
    if options.networks is not None:
        data = load_dataset("cifar10", options.root)
        Labels(data.classes, data.test_labels.numpy()).save(options.folder / LABELS)
        known = Measurements.load(options.folder).inside
        looks = look_inside(STUDIES.values(), records, options.networks, data, known)
        save_looks(looks, options.folder)
    if options.write:
        beside = Measurements.load(options.folder)
        write_whole(options.folder / "README.md", page(STUDIES, records, beside).encode())
        for study in STUDIES.values():
            for name, draw in pictures(study, records, beside).items():
                save(draw(), options.folder / f"{name}.png")
    return 0


def _add_ablate(commands) -> None:
    parser = _command(
        commands,
        "ablate",
        _ablate,
        help="measure on held-out images what each choice of a frontier recipe gives",
        description="Train by the shortened recipe: on smoothed labels, without its teacher (`labels`); with "
        "a teacher that is trained first and shortened likewise (`teacher`); and with one change to `labels` "
        "in each of the other runs. All are trained on the images that remain when some are held out, and "
        "evaluated on those. A run whose checkpoint is in the folder continues from it. The last line "
        "printed is a JSON object. On two cores all runs of `frontier` take an hour or two, those of "
        "`frontier-small` half of that.",
    )
    parser.add_argument(
        "--recipe",
        choices=("frontier", "frontier-small"),
        default="frontier",
        help="what to shorten and change",
    )
    parser.add_argument("--epochs", type=int, default=8, help="epochs of each run")
    parser.add_argument(
        "--only", nargs="+", choices=ABLATIONS, default=list(ABLATIONS), help="only these runs"
    )
    _add_run(parser, validation=5_000)


def _ablate(options: argparse.Namespace) -> int:
    chosen = ablations(
        options.recipe, epochs=options.epochs, only=options.only, seed=options.seed, **_fields(options)
    )
    histories = {
        change: run(experiment, **_settings(options)).history for change, experiment in chosen.items()
    }
    summary = {
        "recipe": options.recipe,
        "dataset": next(iter(histories.values())).dataset,
        "seed": options.seed,
        "epochs": options.epochs,
        "validation": options.validation,
        "validation_accuracy": {change: history.accuracy[-1] for change, history in histories.items()},
    }
    print(json.dumps(summary, allow_nan=False))
    return 0


def _add_trials(commands) -> None:
    parser = _command(
        commands,
        "trials",
        _trials,
        help="try on held-out images what a short recipe was chosen from",
        description="Train a recipe with one or two changes each, on the training images that remain when "
        "some are held out, and compare them on those. Runs that are finished are not trained again. Prints "
        "a table of the runs in the folder.",
    )
    parser.add_argument("recipe", choices=TRIALS, help="whose changes to try")
    parser.add_argument("--only", nargs="+", metavar="CHANGE", help="only these, such as 'lr 0.2'")
    parser.add_argument("--seeds", type=int, default=2, help="runs of each")
    parser.add_argument("--processes", type=int, default=1, help="runs at once")
    parser.add_argument("--out", type=Path, default=Path("runs/trials"), help="folder for the results")
    parser.add_argument("--table", action="store_true", help="train nothing, only print the table")
    _add_data_and_device(parser)
    _add_format_and_threads(parser)


def _trials(options: argparse.Namespace) -> int:
    fields = {"dataset": options.dataset, "dtype": options.dtype}
    runs = trials(options.recipe, options.only, seeds=options.seeds, **fields)
    if not options.table:
        settings = {name: getattr(options, name) for name in ("root", "device", "threads")}
        with process_pool(options.processes) if options.processes != 1 else nullcontext() as executor:
            run_all(runs, options.out, executor=executor, **settings)
    print(trials_table(options.recipe, load_results(options.out)))
    return 0


# ---- Trained networks ------------------------------------------------------------------------------


def _add_evaluate(commands) -> None:
    parser = _command(
        commands,
        "evaluate",
        _evaluate,
        help="run a trained network on the test images",
        description="Run a trained network on the test images, in float32, one view of each. Prints its "
        "accuracy in each class and overall; the last line is a JSON object.",
    )
    parser.add_argument("name", help=NETWORK)
    _add_data_and_device(parser)


NETWORK = f"one of {', '.join(PRETRAINED)}; or a file (.pt) that train wrote"


def _network(name: str) -> Net:
    if name in PRETRAINED:
        return Net.from_pretrained(name)
    if Path(name).is_file():
        return Net.load(name)
    raise ValueError(f"{name!r} is neither a file nor one of the names {', '.join(map(repr, PRETRAINED))}")


def _check_classes(name: str, net: Net, data: Dataset) -> None:
    """Raise ValueError if the network has too few outputs for the data, and warn if it has others."""
    if (outputs := net.config["num_classes"]) < len(data.classes):
        raise ValueError(f"{name} tells {outputs} classes apart, and {data.name} has {len(data.classes)}")
    if net.classes not in (None, data.classes):
        print(
            f"warning: the classes of {data.name} are not those that {name} was trained on; "
            "the figures say nothing about it",
            file=sys.stderr,
        )


def _evaluate(options: argparse.Namespace) -> int:
    device = pick_device(options.device)
    net = _network(options.name)
    data = load_dataset(options.dataset, options.root)
    _check_classes(options.name, net, data)
    net.to(device)
    found = assess(net, data.test_images, data.test_labels, data.classes)
    for label, accuracy in found.class_accuracies.items():
        print(f"{label:<16} {accuracy:8.2%}")
    print(f"{'all':<16} {found.accuracy:8.2%}")
    print(f"{'all, with flips':<16} {found.accuracy_flips:8.2%}  (averaged with the mirror image)")
    share = f"{found.unsure:.0%} of the images, with a confidence below {SURE}"
    print(f"{'all, flips':<16} {found.accuracy_unsure:8.2%}  (averaged only for the unsure: {share})")
    for true, predicted, count in found.confusions[:5]:
        print(f"{true} predicted as {predicted}: {count} images")
    summary = {
        "name": options.name,
        "test_accuracy": found.accuracy,
        "test_accuracy_flips": found.accuracy_flips,
        "test_accuracy_flips_where_unsure": found.accuracy_unsure,
        "parameters": count_parameters(net),
        "dataset": data.name,
    }
    print(json.dumps(summary, allow_nan=False))
    return 0


def _add_predict(commands) -> None:
    parser = _command(
        commands,
        "predict",
        _predict,
        help="say what is on pictures",
        description="Say what is on pictures: prints the likeliest classes of each file, best first, "
        "with the network's confidence; the last line is a JSON object. A network knows only the classes it "
        "was trained on, and names one of them for any picture.",
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="a picture of any size, such as a JPEG")
    parser.add_argument("--name", default="frontier", help=NETWORK)
    parser.add_argument("--count", type=int, default=3, help="how many classes of each picture")
    parser.add_argument("--flips", action="store_true", help="average each picture and its mirror image")
    parser.add_argument(
        "--sure", type=float, default=1.0, help="average only where the confidence is below this, from 0 to 1"
    )


def _predict(options: argparse.Namespace) -> int:
    net = _network(options.name)
    found = []
    for file in options.files:
        likeliest = net.likeliest(file, options.count, flips=options.flips, sure=options.sure)
        print(file)
        for label, confidence in likeliest:
            print(f"  {label:<16} {confidence:8.2%}")
        found.append({"file": file, "predictions": [prediction._asdict() for prediction in likeliest]})
    print(json.dumps({"name": options.name, "pictures": found}, allow_nan=False))
    return 0


def _add_int8(commands) -> None:
    parser = _command(
        commands,
        "int8",
        _int8,
        help="write trained networks in 8-bit integers, and compare them with float32",
        description="Write each network as an ONNX file in float32 and one in 8-bit integers, and compare "
        "their sizes, their accuracies on the test images and their times for one image, on one thread. "
        "Prints a table; every time goes to a JSON file. Needs other packages: pip install "
        f"{' '.join(int8.PACKAGES)}.",
    )
    parser.add_argument("names", nargs="*", default=list(PRETRAINED), metavar="NAME", help=NETWORK)
    parser.add_argument("--out", type=Path, default=Path("runs/int8"), help="folder for all files")
    parser.add_argument(
        "--table", action="store_true", help="only print the tables of the files in the folder"
    )
    _add_data(parser)


def _int8(options: argparse.Namespace) -> int:
    if options.table:
        for result in int8.read(options.out):
            print(f"{result['machine']['processor']}, one thread", int8.table(result), "", sep="\n\n")
        return 0
    check_writable(options.out)
    nets = {Path(name).stem: _network(name) for name in options.names}
    if len(nets) < len(options.names):
        raise ValueError(f"{' '.join(options.names)}: two of these would write the same files")
    data = load_dataset(options.dataset, options.root)
    for name, net in nets.items():
        _check_classes(name, net, data)
    try:
        result = int8.measure(nets, data, options.out)
    except ImportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    int8.write(result, options.out)
    print(int8.table(result))
    return 0


def _add_demo(commands) -> None:
    parser = _command(
        commands,
        "demo",
        _demo,
        help="open a page on which to drop pictures",
        description="Serve a page, on this machine only, on which one drops a picture and sees the three "
        "likeliest classes and the places that speak for the first. Needs Gradio: pip install gradio.",
    )
    parser.add_argument("--port", type=int, help="of the page; by default the first that is free from 7860")


def _demo(options: argparse.Namespace) -> int:
    import matplotlib as mpl

    from lab.demo import page  # Matplotlib is slow to import

    mpl.use("agg")  # the pictures are drawn outside the main thread
    try:
        made = page()
    except ImportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    made.launch(server_name="127.0.0.1", server_port=options.port)
    return 0


# ---- Tables ----------------------------------------------------------------------------------------


def _add_card(commands) -> None:
    parser = _command(
        commands,
        "card",
        _card,
        help="print the tables of weights/README.md",
        description="Print the tables of weights/README.md, computed from the weights and the test images.",
    )
    parser.add_argument("--root", type=Path, help="the folder that holds cifar-10-batches-py")


def _card(options: argparse.Namespace) -> int:
    data = load_dataset("cifar10", options.root)
    print(card(data.test_images, data.test_labels, data.classes))
    print("\n" + files())
    return 0


def _add_report(commands) -> None:
    parser = _command(
        commands,
        "report",
        _report,
        help="print the tables of results",
        description="Print the tables of results that README.md shows, computed from one JSON file per run: "
        "the mean over the seeds with its 95 % confidence interval, last epoch, one view of each image; "
        "unfinished and untested runs are listed below; and the figures of the benchmark.",
    )
    parser.add_argument(
        "folder", nargs="?", type=Path, default=HERE / "results", help="folder of the records"
    )


def _report(options: argparse.Namespace) -> int:
    print(report_folder(options.folder))
    return 0


def _add_frontier(commands) -> None:
    parser = _command(
        commands,
        "frontier",
        _frontier,
        help="compare our networks with those of others, by size and accuracy",
        description="Print a table of networks of fewer than 500,000 parameters and their accuracy on "
        "CIFAR-10: ours, from the records in results/, and those of others, from results/others.csv, with "
        "their sources.",
    )
    parser.add_argument("--picture", type=Path, help="also draw it, into this PNG file")


def _frontier(options: argparse.Namespace) -> int:
    from lab.figures import save  # Matplotlib is slow to import
    from lab.others import frontier_picture, frontier_table

    histories = load_results(HERE / "results")
    print(frontier_table(histories))
    if options.picture is not None:
        save(frontier_picture(histories), options.picture)
    return 0


# ---- The benchmark, and publishing -----------------------------------------------------------------


def _add_bench(commands) -> None:
    parser = _command(
        commands,
        "bench",
        _bench,
        help="measure the speed of this machine, and how much of it training uses",
        description="Measure, interleaved: matrix products, the conventional notebook recipe against ours, "
        "every (norm, conv) pair, how a step grows with batch size, width and image size, the share of the "
        "peak, in every format; the parts of a step; the searches for format and threads; a step beside a "
        "busy process and beside a second training; two runs at once; also memory, the time to the first "
        "step, and kernels that are much slower than they should be. Prints a table and, as the last line, a "
        "JSON object; every time goes to a JSON file, and a picture is drawn. Takes ten to fifteen minutes, "
        "in which nothing else should run.",
    )
    parser.add_argument("--quick", action="store_true", help="take seconds, only to show that it works")
    parser.add_argument(
        "--dataset",
        choices=("auto", "cifar10", "stand-in"),
        default="auto",
        help="auto: the stand-in as a last resort",
    )
    parser.add_argument("--root", type=Path, help="the folder that holds cifar-10-batches-py")
    parser.add_argument("--device", help="cuda, mps or cpu; by default the first that is available")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="folder for the JSON file")
    parser.add_argument("--images", type=Path, default=Path("runs/bench"), help="folder for the picture")


def _bench(options: argparse.Namespace) -> int:
    from lab import bench, figures  # Matplotlib is slow to import, and no other command needs it

    for folder in (options.out, options.images):  # before minutes of measuring
        check_writable(folder)
    plan = bench.QUICK if options.quick else bench.FULL
    result = bench.bench(plan, options.dataset, options.root, options.device)
    bench.write(result, options.out)
    figures.save(figures.plot_bench(result), options.images / f"bench{'-quick' * options.quick}.png")
    print(bench_text(result))
    print(json.dumps(result["summary"], allow_nan=False))
    return 0


def _add_formats(commands) -> None:
    parser = _command(
        commands,
        "formats",
        _formats,
        help="check that the number format found by timing is the fastest",
        description="Choose the number format and memory layout of every (norm, conv) pair and of every "
        "recipe's network, as training does, in about two seconds each; then time steps in every format with "
        "more patience. Prints a table, and last a JSON object with the largest ratio of the step in the "
        "chosen format to that in the best one. Takes some minutes; nothing else should run on the machine.",
    )
    parser.add_argument(
        "--only", nargs="+", metavar="NETWORK", help="only these, such as 'batch, mixed' minute"
    )
    parser.add_argument("--device", help="cuda, mps or cpu; by default the first that is available")
    parser.add_argument("--out", type=Path, default=Path("runs/formats"), help="folder for the JSON file")


def _formats(options: argparse.Namespace) -> int:
    check_writable(options.out)
    result = formats.measure(formats.only(options.only), device=options.device)
    formats.write(result, options.out)
    print(formats.table(result))
    print(json.dumps({"worst": formats.worst(result)}))
    return 0


def _add_publish(commands) -> None:
    parser = _command(
        commands,
        "publish",
        _publish,
        help="set the address of the repository in all files",
        description="Set the address of the repository at GitHub at once in the notebook, its Colab badge, "
        "README.md and CITATION.cff.",
    )
    parser.add_argument("address", help="OWNER/NAME")


def _publish(options: argparse.Namespace) -> int:
    from lab.publish import publish

    publish(options.address)
    return 0
