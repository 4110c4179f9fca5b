"""The same jobs without a notebook: `python -m lab train --help`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import torch

from lab.data import DATASETS, load_dataset, loaders_from
from lab.machine import pick_device
from lab.recipes import RECIPES
from lab.study import load_results, report
from lab.training import fit
from model import CONVS, NORMS, Net


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m lab", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    _add_train(commands)
    _add_report(commands)
    _add_bench(commands)
    options = parser.parse_args(arguments)
    try:
        return options.run(options)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _add_train(commands) -> None:
    parser = commands.add_parser(
        "train",
        help="train a network by a named recipe",
        description="Train a network by a named recipe. The last line printed is a JSON object; the folder "
        "gets the history, the weights and, while it runs, a checkpoint from which the same command goes on.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--recipe", choices=RECIPES, default="default")
    parser.add_argument("--norm", choices=NORMS, default="batch", help="normalization")
    parser.add_argument("--conv", choices=CONVS, default="mixed", help="convolution technique")
    parser.add_argument("--seed", type=int, default=0, help="of weights, data order and augmentation")
    parser.add_argument("--epochs", type=int, help="instead of the recipe's")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder for the results")
    parser.add_argument("--name", help="of the experiment; made of recipe, norm and conv by default")
    _add_data_and_device(parser)
    parser.add_argument(
        "--validation", type=int, default=0, help="hold out so many training images and test on them instead"
    )
    parser.add_argument("--limit", type=int, help="at most so many training and test images")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="by default as the processor has it"
    )
    parser.add_argument("--fresh", action="store_true", help="start anew where a checkpoint is there")
    parser.set_defaults(run=_train)


def _add_data_and_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dataset", choices=DATASETS, default="auto")
    parser.add_argument("--root", type=Path, help="the folder that holds cifar-10-batches-py")
    parser.add_argument("--device", help="cuda, mps or cpu; the first that there is by default")


def _train(options: argparse.Namespace) -> int:
    recipe = RECIPES[options.recipe]
    if options.epochs is not None:
        recipe = dataclasses.replace(recipe, epochs=options.epochs)
    device = pick_device(options.device)
    train_loader, *held_out, test_loader = loaders_from(
        load_dataset(options.dataset, options.root),
        recipe.batch_size,
        augment=recipe.augment,
        validation=options.validation,
        limit=options.limit,
        device=device,
        seed=options.seed,
    )
    torch.manual_seed(options.seed)
    net = Net(options.norm, options.conv, **recipe.net)
    name = options.name or f"{options.recipe}-{options.norm}-{options.conv}"
    if held_out:  # these are no test figures, and must not be taken for such
        name += "-held-out"
    if options.limit is not None:
        name += f"-limit-{options.limit}"
    run = f"{name}-seed{options.seed}"
    checkpoint = options.out / f"{run}.checkpoint.pt"
    history = fit(
        net,
        train_loader,
        held_out[0] if held_out else test_loader,
        recipe,
        seed=options.seed,
        device=device,
        dtype=options.dtype and getattr(torch, options.dtype),
        checkpoint=checkpoint,
        resume=not options.fresh,
        name=name,
    )
    history.save(options.out / f"{run}.json")
    torch.save(net.state_dict(), options.out / f"{run}.pt")
    checkpoint.unlink()
    summary = {"recipe": options.recipe, "norm": options.norm, "conv": options.conv} | history.summary()
    if held_out:
        summary["validation_accuracy"] = summary.pop("test_accuracy")
    print(json.dumps(summary))
    return 0


def _add_report(commands) -> None:
    parser = commands.add_parser(
        "report",
        help="the table of results, computed from the files",
        description="Print the table of results that README.md shows, computed from one JSON file a run: "
        "the mean over the seeds with its 95 %% confidence interval, last epoch, one view of each image; "
        "and those of the benchmark.",
    )
    parser.add_argument("folder", nargs="?", type=Path, default=Path("results"))
    parser.set_defaults(run=_report)


def _report(options: argparse.Namespace) -> int:
    print(report(load_results(options.folder)))
    for path in sorted((options.folder / "bench").glob("*.json")):
        from lab import bench  # here alone, for it imports much

        print("\n" + bench.markdown(json.loads(path.read_text())))
    return 0


def _add_bench(commands) -> None:
    parser = commands.add_parser(
        "bench",
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
    parser.set_defaults(run=_bench)


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
