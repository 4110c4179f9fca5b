"""Studies: several experiments, carried out one after another or at once, and what their records say."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, as_completed, wait
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from lab.checks import MOST_WORKERS, as_integer
from lab.data import Dataset, load_dataset
from lab.experiment import Experiment, Run, run, train_teacher
from lab.interrupts import Interrupted, ignored, terminable
from lab.progress import progress_stream
from lab.records import History
from lab.schema import read_json
from model import PRETRAINED, Net

# ---- Runs ------------------------------------------------------------------------------------------


def run_all(
    experiments: Iterable[Experiment],
    out: str | Path = "runs",
    *,
    executor: Executor | None = None,
    progress: bool = True,
    **options,
) -> list[History]:
    """Carry out experiments, as `run` does, and return their Histories in the order given.

    executor: any of concurrent.futures, such as `process_pool(2)`; None runs them here, one after another.
    Threads of one process take turns, since they share torch's random state. options: those of `run`. Runs
    that are finished are not trained again, so after an interruption the same call continues. If a run fails,
    the others are carried out first. Teachers that several runs need are trained before them.

    Raises ValueError if two experiments would write the same files, and whatever the first failed run raised.
    """
    experiments = list(experiments)
    stems = Counter(experiment.stem for experiment in experiments)
    if twice := [stem for stem, count in stems.items() if count > 1]:
        raise ValueError(
            f"several experiments would write {twice[0]}.json: give them different labels or seeds"
        )
    if executor is None:
        return _in_turn(experiments, out, progress=progress, **options)
    out = Path(out).absolute()  # a worker may have another current folder
    if options.get("root") is not None:
        options["root"] = Path(options["root"]).absolute()
    with_teacher = {each.teacher.stem: each for each in experiments if each.teacher is not None}
    futures: list[Future] = []
    try:
        with terminable():
            futures = [executor.submit(_prepared, each, out, options) for each in with_teacher.values()]
            wait(futures)
            futures = [executor.submit(_history, experiment, out, options) for experiment in experiments]
            stream = progress_stream()
            hidden = not progress or stream is None
            bar = tqdm(as_completed(futures), "runs", len(futures), disable=hidden, file=stream)
            for future in bar:
                if not future.exception():
                    bar.set_postfix_str(future.result().name)
    except BaseException:  # such as Ctrl-C
        for future in futures:
            future.cancel()
        _stop_workers(executor)
        raise
    return [future.result() for future in futures]


def _stop_workers(executor: Executor) -> None:
    """Ask the processes of a pool to end: a run that is under way saves its state first."""
    for process in (getattr(executor, "_processes", None) or {}).values():
        process.terminate()


def run_each(experiments: Iterable[Experiment], out: str | Path = "runs", **options) -> dict[str, Run]:
    """Carry out experiments that are to be compared, one after another; returns the Runs by label.

    All that leave the number format open compute in that of the first. If it is stopped (Jupyter's stop
    button, Ctrl-C), it returns what there is, the run that was stopped included if it has trained an epoch,
    and says so; the same call goes on. options: those of `run`.

    Raises ValueError for a single Experiment.
    """
    if isinstance(experiments, Experiment):
        raise ValueError("experiments: expected several Experiments, such as a list; `run` carries out one")
    runs: dict[str, Run] = {}
    loaded: Loaded = {}
    dtype = None
    for experiment in experiments:
        try:
            same_format = replace(experiment, dtype=experiment.dtype or dtype)
            done = run(same_format, out, **_with_data(experiment, options, loaded))
            runs[experiment.label] = done
            dtype = dtype or done.history.machine["dtype"]
        except KeyboardInterrupt as stop:
            # It may have been the teacher's training.
            if isinstance(stop, Interrupted) and stop.history.epochs and stop.history.name == experiment.name:
                runs[experiment.label] = Run(stop.net, stop.history)
            told = str(stop) or "stopped before the training"
            print(f"\n{told}. Cells below this one go on with what there is.", file=sys.stderr)
            break
    return runs


def pretrained_runs(
    experiments: Iterable[Experiment], device: str | torch.device | None = None
) -> dict[str, Run]:
    """The Runs of experiments whose networks are in `weights/`, by label, without training anything.

    The records are those in the files of the weights. device: where the networks are put; None is the CPU.

    Raises ValueError for an experiment that has none, naming those that are there.
    """
    known = {}
    for name in PRETRAINED:
        net = Net.from_pretrained(name)
        history = History.from_dict(net.metadata, name)
        known[history.name, history.seed] = Run(net.to(device or "cpu"), history)
    runs = {}
    for experiment in experiments:
        key = experiment.name, experiment.seed
        if key not in known:
            there = "; ".join(f"{name}, seed {seed}" for name, seed in known)
            raise ValueError(f"no trained network of {key[0]}, seed {key[1]}: there are {there}")
        runs[experiment.label] = known[key]
    return runs


def _in_turn(experiments: Iterable[Experiment], out: str | Path, **options) -> list[History]:
    histories, errors = [], []
    loaded: Loaded = {}
    for experiment in experiments:
        try:
            histories.append(run(experiment, out, **_with_data(experiment, options, loaded)).history)
        except Exception as error:
            errors.append(error)
    if errors:
        raise errors[0]
    return histories


Loaded = dict[tuple[str, Any], Dataset]  # by `dataset` and `root`; one at most

_turn = threading.Lock()  # of the runs in this process
_loaded: Loaded | None = None  # in a process of a pool, what its last run trained on


def _with_data(experiment: Experiment, options: dict, loaded: Loaded | None) -> dict:
    """`options` with the data set of the experiment, which is kept in `loaded` for the next."""
    if loaded is None or options.get("data") is not None:
        return options
    key = experiment.dataset, options.get("root")
    if key not in loaded:
        loaded.clear()
        loaded[key] = load_dataset(*key)
    return options | {"data": loaded[key]}


@contextmanager
def _ended_by_a_stop() -> Iterator[None]:
    """End this process, if it is one of a pool, after a run that was stopped.

    It would wait for more work, and not hear of the signal again.
    """
    try:
        yield
    except Interrupted as stop:
        if multiprocessing.parent_process() is not None:
            os._exit(128 + stop.number)
        raise


def _history(experiment: Experiment, out: str | Path, options: dict) -> History:
    with _turn, _ended_by_a_stop():
        return run(experiment, out, progress=False, **_with_data(experiment, options, _loaded)).history


def _prepared(experiment: Experiment, out: str | Path, options: dict) -> None:
    with _turn, _ended_by_a_stop():
        train_teacher(experiment, out, progress=False, **_with_data(experiment, options, _loaded))


def process_pool(processes: int) -> ProcessPoolExecutor:
    """New processes for `run_all`, which share this process's number of threads equally.

    Several processes of one thread each do more runs in an hour than one after another with all threads,
    because small steps leave threads waiting for each other. They begin by importing the main script, which
    therefore needs its `if __name__ == "__main__":`. They end with this process.
    """
    processes = as_integer("processes", processes, 1, MOST_WORKERS)
    return ProcessPoolExecutor(
        processes,
        mp_context=multiprocessing.get_context("spawn"),  # a fork of a process with threads can hang
        initializer=_start_worker,
        initargs=(max(1, torch.get_num_threads() // processes),),
    )


def _start_worker(threads: int) -> None:
    global _loaded
    _loaded = {}
    torch.set_num_threads(threads)
    tqdm.set_lock(threading.RLock())  # its own is one between processes, which an ended process would leak
    signal.signal(signal.SIGINT, ignored)  # a worker that waits is ended by this process, without a traceback
    threading.Thread(target=_end_with_parent, daemon=True).start()


SAVING = 20.0  # seconds that a run gets to save its state


def _end_with_parent() -> None:
    """Otherwise a run would go on after its parent process was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)  # a run that is under way saves its state first
        time.sleep(SAVING)
        os._exit(1)


# ---- The ladder ------------------------------------------------------------------------------------


class Rung(NamedTuple):
    """A recipe of the ladder, and the mean test accuracy, in [0, 1], that its runs are to reach."""

    recipe: str
    accuracy: float
    seeds: int


LADDER = (Rung("minute", 0.85, 5), Rung("coffee", 0.90, 3), Rung("lunch", 0.93, 3))


def ladder_experiments(rungs: Iterable[str] | None = None, **options) -> list[Experiment]:
    """The runs of the ladder, or of these rungs: how long this machine takes to reach each accuracy.

    options: those of `Experiment`, except the seed. Raises ValueError for an unknown rung.
    """
    chosen = [rung.recipe for rung in LADDER] if rungs is None else list(rungs)
    known = {rung.recipe: rung for rung in LADDER}
    if unknown := [name for name in chosen if name not in known]:
        raise ValueError(f"unknown rungs {unknown}; choose from {', '.join(map(repr, known))}")
    return [
        Experiment.named(name, seed=seed, **options) for name in chosen for seed in range(known[name].seeds)
    ]


# ---- Records ---------------------------------------------------------------------------------------


ASIDE = {"trials", "study", "bench"}  # folders with something other than published runs of a recipe


def load_results(folder: str | Path) -> list[History]:
    """Every record below `folder`, sorted by name, processor and seed; each knows the `path` of its file.

    Skips what is in folders named bench, which hold timings, results of the benchmark elsewhere, and, unless
    they are asked for, the folders named trials, with what recipes were chosen from, and study, with hundreds
    of runs that have their own tables. Raises FileNotFoundError if there is no
    record, NotADirectoryError if the folder is missing, and ValueError, naming it, for any other JSON file.
    """
    paths = [
        path
        for path in sorted(Path(folder).rglob("*.json"))
        if path.parent.name != "bench" and not ASIDE & {*path.relative_to(folder).parts}
    ]
    histories = []
    for path in paths:
        try:
            histories.append(History.load(path))
        except ValueError:
            if not _is_benchmark(path):
                raise
    if not Path(folder).is_dir():
        raise NotADirectoryError(f"{folder} is not a folder; give one with records (*.json)")
    if not histories:
        raise FileNotFoundError(f"no result (*.json) below {folder}")
    return sorted(histories, key=lambda history: (history.name, history.processor, history.seed))


def _is_benchmark(path: Path) -> bool:
    try:
        found = read_json(path)
    except ValueError:
        return False
    return isinstance(found, dict) and {"machine", "plan", "summary"} <= found.keys()


def by_experiment(histories: Iterable[History]) -> dict[tuple[str, str, str], list[History]]:
    """The runs of each experiment, by its name, data set and processor, in the order given.

    Raises ValueError if two runs of one experiment have the same seed, or differ in more than the seed and
    the number format; it names their files, if they were read from files. Records from before data and
    network were recorded are compared without them.
    """
    groups: dict[tuple[str, str, str], list[History]] = {}
    for history in histories:
        groups.setdefault((history.name, history.dataset, history.processor), []).append(history)
    for (name, *_), runs in groups.items():
        first = {run.seed: run for run in reversed(runs)}
        if twice := [run for run in runs if first[run.seed] is not run]:
            raise ValueError(
                f"two of the runs named {name!r} have the seed {twice[0].seed}"
                f"{_files(first[twice[0].seed], twice[0])}: each seed may occur only once"
            )
        complete = next((each for each in runs if each.data and each.network), runs[0])
        for other in runs:
            if difference := _difference(complete, other):
                raise ValueError(
                    f"the runs named {name!r} with seeds {complete.seed} and {other.seed} differ"
                    f"{_files(complete, other)}: {difference}; give them different names"
                )
    return groups


def _files(*runs: History) -> str:
    """Where the runs were read from, in parentheses; empty if they were not."""
    paths = [str(run.path) for run in runs if run.path is not None]
    return f" ({', '.join(paths)})" if paths else ""


SEEDED = ("first_batch", "order")  # what follows from the seed in the description of a loader
SEEDED_HELD_OUT = (*SEEDED, "digest", "teacher")  # the same if images are held out: the seed chooses them


def _difference(one: History, other: History) -> str:
    """The first field that differs, of those that runs of one experiment share; empty if none does."""
    missing: dict[str, dict] = {
        name: {} for name in ("data", "network") if not (getattr(one, name) and getattr(other, name))
    }
    return _unseeded(one, missing).difference(_unseeded(other, missing))


def _unseeded(run: History, missing: dict[str, dict]) -> History:
    seeded = SEEDED_HELD_OUT if run.evaluated_on == "validation" else SEEDED
    return replace(run, **{"seed": 0, "machine": {}, "data": _without(run.data, seeded)} | missing)


def _without(tree, names: Sequence[str]):
    if not isinstance(tree, dict):
        return tree
    return {key: _without(value, names) for key, value in tree.items() if key not in names}
