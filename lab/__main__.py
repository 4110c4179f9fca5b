"""The same jobs without a notebook: `python -m lab train --help`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from lab.data import DATASETS, load_dataset, loaders_from
from lab.machine import pick_device
from lab.recipes import ABLATIONS, RECIPES, Recipe, differing
from lab.study import load_results, report
from lab.training import History, distilled, fit
from lab.weights import PREPROCESSING, assess, card, files
from model import CONVS, NORMS, PRETRAINED, Net, count_parameters

RESULTS = Path(__file__).resolve().parent.parent / "results"
PUBLISHED = RESULTS / "frontier"  # where the teacher of the published networks lies


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m lab", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    _add_train(commands)
    _add_ablate(commands)
    _add_evaluate(commands)
    _add_card(commands)
    _add_report(commands)
    _add_bench(commands)
    options = parser.parse_args(arguments)
    try:
        return options.run(options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _command(commands, name: str, run: Callable, *, help: str, description: str) -> argparse.ArgumentParser:
    """A command's parser, which shows the defaults; `run` maps the parsed options to the exit status."""
    parser = commands.add_parser(
        name, help=help, description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.set_defaults(run=run)
    return parser


def _add_train(commands) -> None:
    parser = _command(
        commands,
        "train",
        _train,
        help="train a network by a named recipe",
        description="Train a network by a named recipe. The last line printed is a JSON object; the folder "
        "gets the history, the network and, after every epoch, a checkpoint, from which the same command "
        "goes on, and which shows it that the run is done.",
    )
    parser.add_argument("--recipe", choices=RECIPES, default="default", help="how to train, and what network")
    parser.add_argument("--epochs", type=int, help="instead of the recipe's")
    parser.add_argument("--name", help="of the experiment; made of recipe, norm and conv by default")
    parser.add_argument("--norm", choices=NORMS, default="batch", help="normalization")
    parser.add_argument("--conv", choices=CONVS, default="mixed", help="convolution technique")
    _add_run(parser)


def _add_run(parser: argparse.ArgumentParser, validation: int = 0) -> None:
    parser.add_argument("--seed", type=int, default=0, help="of weights, data order and augmentation")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder for the results")
    _add_data_and_device(parser)
    parser.add_argument(
        "--validation",
        type=int,
        default=validation,
        help="hold out so many training images and test on them instead",
    )
    parser.add_argument("--limit", type=int, help="at most so many training and test images")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="by default as the processor has it"
    )
    parser.add_argument("--fresh", action="store_true", help="start anew where a checkpoint is there")


def _add_data_and_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dataset", choices=DATASETS, default="auto", help="auto: the stand-in as a last resort"
    )
    parser.add_argument("--root", type=Path, help="the folder that holds cifar-10-batches-py")
    parser.add_argument("--device", help="cuda, mps or cpu; the first that there is by default")


def _train(options: argparse.Namespace) -> int:
    recipe = RECIPES[options.recipe]
    if options.epochs is not None:
        recipe = dataclasses.replace(recipe, epochs=options.epochs)
    name = options.name or f"{options.recipe}-{options.norm}-{options.conv}"
    history = _run(recipe, _name(name, options), options)
    summary = {"recipe": options.recipe, "norm": options.norm, "conv": options.conv} | history.summary()
    if options.validation:
        summary["validation_accuracy"] = summary.pop("test_accuracy")
    print(json.dumps(summary))
    return 0


def _name(experiment: str, options: argparse.Namespace) -> str:
    if options.validation:  # these are no test figures, and must not be taken for such
        experiment += f"-held-out-{options.validation}"
    return experiment if options.limit is None else f"{experiment}-limit-{options.limit}"


def _run(recipe: Recipe, name: str, options: argparse.Namespace) -> History:
    """Train, or go on from the checkpoint, and save the History and the network."""
    device = pick_device(options.device)
    options.out.mkdir(parents=True, exist_ok=True)
    dtype = options.dtype and getattr(torch, options.dtype)
    train_loader, *held_out, test_loader = loaders_from(
        load_dataset(options.dataset, options.root),
        recipe.batch_size,
        augment=recipe.augment,
        validation=options.validation,
        limit=options.limit,
        device=device,
        seed=options.seed,
    )
    if recipe.teacher is not None:
        teacher = _teacher(recipe.teacher, train_loader.name, options).to(device)
        train_loader = distilled(train_loader, teacher, recipe.temperature, dtype=dtype)
    torch.manual_seed(options.seed)
    net = Net(options.norm, options.conv, **recipe.net)
    run = f"{name}-seed{options.seed}"
    checkpoint = options.out / f"{run}.checkpoint"
    history = fit(
        net,
        train_loader,
        held_out[0] if held_out else test_loader,
        recipe,
        seed=options.seed,
        device=device,
        dtype=dtype,
        checkpoint=checkpoint,
        resume=not options.fresh,
        name=name,
    )
    history.save(options.out / f"{run}.json")
    net.preprocessing, net.classes = PREPROCESSING, train_loader.classes
    net.save(options.out / f"{run}.pt", dataclasses.asdict(history))
    return history


def _teacher(recipe: Recipe, dataset: str, options: argparse.Namespace) -> Net:
    """The trained network that a run learns from: one for all seeds, trained where there is none yet.

    It is looked for in the folder of the run, then among the results, which hold the one of the published
    runs; one of another training is passed over, and never replaced. Where images are held out, which ones
    depends on the seed, so that each needs a teacher of its own.
    """
    seed = options.seed if options.validation else 0
    options = argparse.Namespace(**vars(options) | {"norm": "batch", "conv": "mixed", "seed": seed})
    usual = recipe.epochs == RECIPES["teacher"].epochs  # an ablation's is shorter, and kept apart
    name = _name(f"{'teacher' if usual else f'teacher-{recipe.epochs}-epochs'}-batch-mixed", options)
    own, published = (folder / f"{name}-seed{seed}.pt" for folder in (options.out, PUBLISHED))
    there = [path for path in (own, published) if path.exists()]
    differences = {path: _other_training(Net.load(path), dataset, recipe) for path in there}
    path = next((path for path in there if not differences[path]), own)
    if path not in differences:
        _run(recipe, name, options)
    elif differences[path]:
        raise ValueError(f"the teacher {path} is of {differences[path]}; give another --out, or remove it")
    print(f"learning from {path}", file=sys.stderr)
    return Net.load(path)


def _other_training(net: Net, dataset: str, recipe: Recipe) -> str:
    """In what a network was trained otherwise, as its file says; empty where on this data by this recipe."""
    made = net.metadata or {}
    here, there = differing(made.get("recipe", {}), recipe.to_dict())
    if made.get("dataset") != dataset:
        return f"dataset {made.get('dataset')!r}, not {dataset!r}"
    return f"recipe {here}, not {there}" if here or there else ""


def _add_ablate(commands) -> None:
    parser = _command(
        commands,
        "ablate",
        _ablate,
        help="on held-out images, what each choice of a frontier recipe gives",
        description="Train by the recipe, shortened: on smoothed labels, without its teacher (`labels`); "
        "with a teacher that is trained first and is shortened likewise (`teacher`); and in each of the "
        "other runs as in `labels`, but for one thing. This on what is left of the training images when "
        "some are held out, and tested on those. A run whose checkpoint is in the folder goes on from there. "
        "The last line printed is a JSON object. On two cores all runs of `frontier` take an hour or two, "
        "those of `frontier-small` half of that.",
    )
    parser.add_argument(
        "--recipe",
        choices=("frontier", "frontier-small"),
        default="frontier",
        help="what to shorten and change",
    )
    parser.add_argument("--epochs", type=int, default=8, help="of each run")
    parser.add_argument(
        "--only", nargs="+", choices=ABLATIONS, default=list(ABLATIONS), help="these runs alone"
    )
    _add_run(parser, validation=5_000)
    parser.set_defaults(norm="batch", conv="mixed")  # what the recipe was chosen with


def _ablate(options: argparse.Namespace) -> int:
    if options.validation < 1:
        raise ValueError(f"validation={options.validation}: choices are made on held-out images, at least 1")
    accuracies = {}
    for change in options.only:
        recipe = ABLATIONS[change](dataclasses.replace(RECIPES[options.recipe], epochs=options.epochs))
        name = f"{options.recipe}-{options.epochs}-epochs-{change}"
        history = _run(recipe, _name(name, options), options)
        accuracies[change] = history.test_accuracy[-1]
    summary = {
        "recipe": options.recipe,
        "dataset": history.dataset,
        "seed": options.seed,
        "epochs": options.epochs,
        "validation": options.validation,
    }
    print(json.dumps(summary | {"validation_accuracy": accuracies}))
    return 0


def _add_evaluate(commands) -> None:
    parser = _command(
        commands,
        "evaluate",
        _evaluate,
        help="run a trained network on the test images",
        description="Run a trained network on the test images, in float32, one view of each. Prints its "
        "accuracy in each class and in all, and as the last line a JSON object.",
    )
    parser.add_argument("name", help=f"one of {', '.join(PRETRAINED)}; or a file (.pt) that train left")
    _add_data_and_device(parser)


def _evaluate(options: argparse.Namespace) -> int:
    device = pick_device(options.device)
    if options.name in PRETRAINED:
        net = Net.from_pretrained(options.name)
    elif Path(options.name).is_file():
        net = Net.load(options.name)
    else:
        raise ValueError(
            f"{options.name!r} is no file, and none of the names {', '.join(map(repr, PRETRAINED))}"
        )
    data = load_dataset(options.dataset, options.root)
    if net.classes not in (None, data.classes):
        print(
            f"warning: the classes of {data.name} are not those that {options.name} was trained on; "
            "what follows says nothing about it",
            file=sys.stderr,
        )
    net.to(device)
    found = assess(net, data.test_images, data.test_labels, data.classes)
    for label, accuracy in found.class_accuracies.items():
        print(f"{label:<16} {accuracy:8.2%}")
    print(f"{'all':<16} {found.accuracy:8.2%}")
    print(f"{'all, with flips':<16} {found.accuracy_flips:8.2%}  (averaged with the mirror image)")
    for true, predicted, count in found.confusions[:5]:
        print(f"{true} predicted as {predicted}: {count} images")
    summary = {
        "name": options.name,
        "test_accuracy": found.accuracy,
        "test_accuracy_flips": found.accuracy_flips,
        "parameters": count_parameters(net),
        "dataset": data.name,
    }
    print(json.dumps(summary))
    return 0


def _add_card(commands) -> None:
    parser = _command(
        commands,
        "card",
        _card,
        help="the tables of weights/README.md, computed from the files",
        description="Print the tables of weights/README.md, computed from its files and the test images.",
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
        help="the table of results, computed from the files",
        description="Print the table of results that README.md shows, computed from one JSON file a run: "
        "the mean over the seeds with its 95 % confidence interval, last epoch, one view of each image; "
        "and those of the benchmark.",
    )
    parser.add_argument("folder", nargs="?", type=Path, default=RESULTS, help="where the files lie")


def _report(options: argparse.Namespace) -> int:
    print(report(load_results(options.folder)))
    for path in sorted((options.folder / "bench").glob("*.json")):
        from lab import bench  # here alone, for it imports much

        print("\n" + bench.markdown(json.loads(path.read_text())))
    return 0


def _add_bench(commands) -> None:
    parser = _command(
        commands,
        "bench",
        _bench,
        help="measure this machine, and what training makes of it",
        description="Measure, in turns: matrix products, the conventional notebook recipe against ours, every"
        " (norm, conv) pair, the growth of a step with batch size, width and image size, the share of the "
        "peak; besides, memory and the time to the first step. Prints a table and, as the last line, a JSON "
        "object; every time goes to a JSON file, and a picture is drawn. Takes three to seven minutes.",
    )
    parser.add_argument("--quick", action="store_true", help="in seconds: shows that it works, no more")
    _add_data_and_device(parser)
    parser.add_argument("--out", type=Path, help="folder for the JSON file: results/bench, runs where quick")
    parser.add_argument("--images", type=Path, help="folder for the picture: images, runs where quick")


def _bench(options: argparse.Namespace) -> int:
    from lab import bench, figures  # Matplotlib above all, which no other job here waits for

    plan = bench.QUICK if options.quick else bench.FULL
    result = bench.bench(plan, options.dataset, options.root, options.device)
    out, images = (Path("runs"),) * 2 if options.quick else (Path("results/bench"), Path("images"))
    bench.write(result, options.out or out)
    figures.save(figures.plot_bench(result), (options.images or images) / "bench.png")
    print(bench.table(result))
    print(json.dumps(result["summary"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
