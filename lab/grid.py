"""Studies: arms that are compared, each at its own best learning rate and over several seeds.

A study is data. What is missing of it follows from the records in a folder, so it can be stopped at any
moment, continued anywhere, and enlarged later. An arm that occurs in several studies is trained once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lab.checks import as_integer, check_type
from lab.data import CIFAR_10, STAND_IN
from lab.experiment import Experiment
from lab.progress import progress_stream
from lab.recipes import Recipe
from lab.records import History
from lab.statistics import Estimate, estimate, interval
from lab.study import process_pool, run_all
from lab.training import Diverged

HELD_OUT = 5_000  # training images on which rates are chosen
STEP = 2.0  # the factor between neighbouring rates
MOST_TRIALS = 9  # rates of one arm, after which the search ends
NEAR = 0.01  # behind the best accuracy, in [0, 1]: rates so near to it are tried with more seeds
CLOSE = 0.005  # a difference in accuracy, in [0, 1], for which more seeds are needed
DATASET_NAMES = {"cifar10": CIFAR_10, "stand-in": STAND_IN}  # what records call them
AGAIN = "again"  # in a folder of records, what has those of the same runs from other machines, a folder each
LOST = 3  # times that workers may die, one after another without a run that ends


class Trial(NamedTuple):
    """A learning rate that was tried, and the mean accuracy on held-out images, in [0, 1].

    A run that diverged has accuracy 0.
    """

    lr: float
    accuracy: float
    seeds: int = 1


Side = str | tuple[str, str]  # the accuracy of an arm, or the difference between two, by label


class Family(NamedTuple):
    """Comparisons that answer one question: pairs of arms, whose intervals hold together with 95 %.

    The difference is that of the first one's accuracy minus the other's. A side that is itself a pair of arms
    stands for their difference, so that differences can be compared, too.
    """

    name: str
    pairs: tuple[tuple[Side, Side], ...]


@dataclass(frozen=True)
class Study:
    """Arms to be compared. `recipe.lr` of an arm is where the search for its rate begins.

    The search is the same for every arm: its rate, half of it and twice it, each trained once, with seed 0,
    and evaluated on held-out training images; then further in the direction of the best rate until that has a
    worse one on both sides, or MOST_TRIALS were tried. Rates within NEAR of the best are trained with
    `trial_seeds` seeds, each with its own held-out images, since one run cannot tell them apart; their mean
    decides. With the best rate the arm is trained on all training images, once for each seed. Arms of a pair
    that are closer than CLOSE get `more_seeds`.

    Raises ValueError for a wrong value, for two arms with the same label, and for a pair of unknown arms.
    """

    name: str
    question: str
    arms: Sequence[Experiment]
    families: Sequence[Family] = ()
    seeds: int = 5
    more_seeds: int = 10
    held_out: int = HELD_OUT
    trial_seeds: int = 3

    def __post_init__(self):
        object.__setattr__(self, "arms", tuple(self.arms))
        object.__setattr__(self, "families", tuple(self.families))
        for arm in self.arms:
            check_type("arm", arm, Experiment, "an Experiment")
        labels = [arm.label for arm in self.arms]
        if not labels:
            raise ValueError(f"the study {self.name!r} has no arm")
        if twice := next((label for label in labels if labels.count(label) > 1), None):
            raise ValueError(f"two arms of the study {self.name!r} are labelled {twice!r}")
        as_integer("seeds", self.seeds, 1)
        as_integer("more_seeds", self.more_seeds, 0)
        as_integer("held_out", self.held_out, 1)
        as_integer("trial_seeds", self.trial_seeds, 1)
        for side in {side for family in self.families for pair in family.pairs for side in pair}:
            for label in _labels(side):
                self[label]  # raises for an unknown one

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """All pairs of arms that are compared; not those of differences."""
        pairs = [pair for family in self.families for pair in family.pairs]
        return [(one, other) for one, other in pairs if isinstance(one, str) and isinstance(other, str)]

    def __getitem__(self, label: str) -> Experiment:
        """The arm of that label. Raises ValueError for an unknown one."""
        for arm in self.arms:
            if arm.label == label:
                return arm
        labels = ", ".join(repr(arm.label) for arm in self.arms)
        raise ValueError(f"unknown arm {label!r} of the study {self.name!r}; choose from {labels}")

    def trial(self, arm: Experiment, lr: float, seed: int = 0) -> Experiment:
        """The run that tries the rate `lr`."""
        recipe = replace(arm.recipe, lr=lr)
        label = f"{arm.label}-lr-{lr:g}"
        return replace(arm, label=label, recipe=recipe, seed=seed, validation=self.held_out)

    def search(self, arm: Experiment, records: Records) -> tuple[list[Trial], list[Experiment]]:
        """The rates tried so far, in order, and the trials that are still to be made; none at its end."""
        rates = [arm.recipe.lr / STEP, arm.recipe.lr, arm.recipe.lr * STEP]
        while True:
            trials, missing = self._tried(arm, rates, 1, records)
            if missing:
                return trials, missing
            best = best_of(trials)
            if best.lr not in (rates[0], rates[-1]):
                near = [trial.lr for trial in trials if trial.accuracy >= best.accuracy - NEAR]
                again, missing = self._tried(arm, near if len(near) > 1 else [], self.trial_seeds, records)
                sure = {trial.lr: trial for trial in again}
                trials = [sure.get(trial.lr, trial) for trial in trials]
                best = best_of(trials)
                if missing:
                    return trials, missing
            if best.lr not in (rates[0], rates[-1]) or len(rates) == MOST_TRIALS:
                return trials, []
            rates = [best.lr / STEP, *rates] if best.lr == rates[0] else [*rates, best.lr * STEP]

    def _tried(
        self, arm: Experiment, rates: Iterable[float], seeds: int, records: Records
    ) -> tuple[list[Trial], list[Experiment]]:
        """The rates all of whose seeds are done, and the runs that others lack."""
        trials, missing = [], []
        for rate in rates:
            experiments = [self.trial(arm, rate, seed) for seed in range(seeds)]
            found = [records.find(experiment) for experiment in experiments]
            missing += [each for each, record in zip(experiments, found, strict=True) if record is None]
            done = [record for record in found if record is not None]
            if len(done) == seeds:
                accuracies = [0.0 if record.diverged else record.accuracy[-1] for record in done]
                trials.append(Trial(rate, float(np.mean(accuracies)), seeds))
        return trials, missing

    def runs(self, arm: Experiment, records: Records) -> list[Experiment]:
        """The runs of an arm, at its best rate, one for each seed; none while the search goes on."""
        return self.all_runs(records)[arm.label]

    def all_runs(self, records: Records) -> dict[str, list[Experiment]]:
        """The runs of each arm, by its label, as `runs` has them."""
        pairs = self.close(records) if self.more_seeds > self.seeds else []
        close = {label for pair in pairs for label in pair}
        return {
            arm.label: self._seeded(arm, records, self.more_seeds if arm.label in close else self.seeds)
            for arm in self.arms
        }

    def _seeded(self, arm: Experiment, records: Records, seeds: int) -> list[Experiment]:
        trials, missing = self.search(arm, records)
        if missing:
            return []
        recipe = replace(arm.recipe, lr=best_of(trials).lr)
        return [replace(arm, recipe=recipe, seed=seed) for seed in range(seeds)]

    def close(self, records: Records) -> list[tuple[str, str]]:
        """The pairs whose first `seeds` runs are all done, and closer together than CLOSE."""
        means = {}
        for label in {label for pair in self.pairs for label in pair}:
            done = [records.find(run) for run in self._seeded(self[label], records, self.seeds)]
            accuracies = [record.accuracy[-1] for record in done if record and not record.diverged]
            if done and len(accuracies) == self.seeds:
                means[label] = float(np.mean(accuracies))
        return [
            (one, other)
            for one, other in self.pairs
            if one in means and other in means and abs(means[one] - means[other]) < CLOSE
        ]

    def missing(self, records: Records) -> list[Experiment]:
        """What can be trained next: trials of searches that go on, and runs of arms whose rate is known."""
        found, runs = [], self.all_runs(records)
        for arm in self.arms:
            _, trials = self.search(arm, records)
            found += trials or [run for run in runs[arm.label] if records.find(run) is None]
        return sorted(found, key=lambda run: (not run.validation, run.seed))  # searches, then seed by seed

    def left(self, records: Records) -> set[str]:
        """The names of all runs that are missing, as far as that is known.

        An arm whose search goes on will have as many runs as the study has seeds, at a rate that is not known
        yet; more of either may follow.
        """
        found = {run.stem for run in self.missing(records)}
        for arm in self.arms:
            if self.search(arm, records)[1]:
                found |= {replace(arm, seed=seed).stem for seed in range(self.seeds)}
        return found

    def results(self, records: Records) -> dict[str, list[History]]:
        """The finished runs of each arm, by its label."""
        runs = self.all_runs(records)
        return {label: [found for run in runs[label] if (found := records.find(run))] for label in runs}

    def accuracy(self, label: str, records: Records) -> Estimate | None:
        """The test accuracy of an arm, in [0, 1], over its runs that did not diverge; None without one."""
        runs = self.results(records)[self[label].label]
        found = [_rights(run) for run in runs if not run.diverged]
        return estimate(np.stack(found)) if found else None

    def compared(
        self, family: Family, records: Records
    ) -> dict[tuple[Side, Side], dict[int, tuple[dict[str, History], dict[str, History]]]]:
        """For each pair of a family the runs to compare: by seed, those of both sides, by label of the arm.

        All of a seed are from one machine and in one number format where there are such, if need be those
        that were made again; where there are none, at least those of a difference that is a side. Runs that
        diverged and pairs without a common seed are left out.
        """
        made: dict[str, dict[int, list[History]]] = {}
        for label, runs in self.all_runs(records).items():
            versions = {
                run.seed: [each for each in records.versions(run) if not each.diverged] for run in runs
            }
            made[label] = {seed: found for seed, found in versions.items() if found}
        chosen = {}
        for one, other in family.pairs:
            labels = _labels(one) + _labels(other)
            if seeds := [seed for seed in made[labels[0]] if all(seed in made[label] for label in labels)]:
                chosen[one, other] = {
                    seed: _alike(one, other, {label: made[label][seed] for label in labels}) for seed in seeds
                }
        return chosen

    def differences(
        self, family: Family, records: Records, images: np.ndarray | None = None, parts: int = 1
    ) -> dict[tuple[Side, Side], Estimate]:
        """For each pair of a family the difference in test accuracy, over the seeds that its arms have.

        Of the runs that `compared` gives, paired by seed, and their images one by one. The intervals of the
        family hold together with 95 % (Bonferroni). images: bool (images,), those that count; None is all.
        parts: into so many parts of the images the question is divided, whose intervals hold together, too.
        """
        confidence = 1 - 0.05 / (len(family.pairs) * parts)
        found = {}
        for (one, other), by_seed in self.compared(family, records).items():
            values = np.stack(
                [_side(one, here, _rights) - _side(other, there, _rights) for here, there in by_seed.values()]
            )
            found[one, other] = estimate(values if images is None else values[:, images], confidence)
        return found

    def differences_again(self, records: Records) -> dict[tuple[str, str], Estimate]:
        """For each arm that was trained again, and each machine: the accuracy in the record that comes first
        minus that in the one from the machine.

        Paired by seed and image, with intervals that hold together, as in `differences`.
        """
        pairs: dict[tuple[str, str], list[np.ndarray]] = {}
        for label, runs in self.all_runs(records).items():
            for first, *again in filter(None, map(records.versions, runs)):
                for run in again:
                    if not (first.diverged or run.diverged):
                        values = _rights(first) - _rights(run)
                        pairs.setdefault((label, run.processor), []).append(values)
        return {key: estimate(np.stack(values), 1 - 0.05 / len(pairs)) for key, values in pairs.items()}

    def differences_by_epoch(
        self, family: Family, records: Records
    ) -> dict[tuple[Side, Side], list[Estimate]]:
        """For each pair of a family the difference in test accuracy after each epoch both arms have.

        Of the runs that `compared` gives, paired by seed; the intervals are over seeds only, and hold
        together as in `differences`.
        """
        confidence = 1 - 0.05 / len(family.pairs)
        found = {}
        for (one, other), by_seed in self.compared(family, records).items():
            curves = [
                _minus(_side(one, here, _curve), _side(other, there, _curve)).tolist()
                for here, there in by_seed.values()
            ]
            epochs = zip(*curves, strict=False)
            found[one, other] = [Estimate(*interval(values, confidence), len(curves)) for values in epochs]
        return found


def _labels(side: Side) -> tuple[str, ...]:
    return (side,) if isinstance(side, str) else side


def _alike(
    one: Side, other: Side, versions: Mapping[str, Sequence[History]]
) -> tuple[dict[str, History], dict[str, History]]:
    """Of each arm of both sides one of its runs, from one machine where there is one that has all."""
    if found := _on_one_machine(_labels(one) + _labels(other), versions):
        return found, found
    here, there = (
        _on_one_machine(_labels(side), versions) or {label: versions[label][0] for label in _labels(side)}
        for side in (one, other)
    )
    return here, there


def _on_one_machine(
    labels: Sequence[str], versions: Mapping[str, Sequence[History]]
) -> dict[str, History] | None:
    """A run for each label, all from the same machine: the first one of the first label that has them."""
    for machine in map(made_on, versions[labels[0]]):
        found = {label: [run for run in versions[label] if made_on(run) == machine] for label in labels}
        if all(found.values()):
            return {label: runs[0] for label, runs in found.items()}
    return None


def made_on(run: History) -> tuple[str, str]:
    """The processor and the number format of a run."""
    return run.processor, str(run.machine.get("dtype"))


def _side(side: Side, runs: Mapping[str, History], values: Callable[[History], np.ndarray]) -> np.ndarray:
    """The values of an arm's run, or the difference between those of two."""
    return _minus(*(values(runs[label]) for label in side)) if isinstance(side, tuple) else values(runs[side])


def _minus(here: np.ndarray, there: np.ndarray) -> np.ndarray:
    """The difference, as far as both reach."""
    length = min(len(here), len(there))
    return here[:length] - there[:length]


def _rights(run: History) -> np.ndarray:
    """Whether each test image was right, as numbers (images,)."""
    return run.rights().astype(np.int8)


def _curve(run: History) -> np.ndarray:
    """The test accuracy after each epoch."""
    return np.array(run.accuracy)


def best_of(trials: Iterable[Trial]) -> Trial:
    """The best of the trials with the most seeds: the highest accuracy; of equal ones the lowest rate."""
    return max(trials, key=lambda trial: (trial.seeds, trial.accuracy, -trial.lr))


class Records:
    """The records in folders, by the name of their file. Those of the first folder come first.

    The folders in their folders AGAIN have those of the same runs that were made again, each on one machine.
    """

    def __init__(self, *folders: str | Path):
        self.folders = [Path(folder) for folder in folders]
        self._read: dict[Path, History] = {}
        self._compared: dict[Path, Experiment] = {}  # those whose record was found to be theirs

    def find(self, experiment: Experiment) -> History | None:
        """The record of a run that is complete; None if there is none.

        Raises ValueError if the file of that name has the record of another experiment.
        """
        paths = (folder / f"{experiment.stem}.json" for folder in self.folders)
        path = next((path for path in paths if path in self._read or path.exists()), None)
        return self._load(path, experiment) if path else None

    def versions(self, experiment: Experiment) -> list[History]:
        """The record of a run, as `find` gives it, then those of the same run that was made again.

        Raises ValueError as `find` does.
        """
        if (first := self.find(experiment)) is None:
            return []
        paths = [folder / f"{experiment.stem}.json" for folder in self._again]
        return [first, *filter(None, (self._load(path, experiment) for path in paths if path.exists()))]

    @cached_property
    def _again(self) -> list[Path]:
        return [path for folder in self.folders for path in sorted((folder / AGAIN).glob("*/"))]

    def _load(self, path: Path, experiment: Experiment) -> History | None:
        if (known := self._read.get(path)) is None:
            known = History.load(path)
            if not known.is_complete:
                return None
            self._read[path] = known
        if self._compared.get(path) != experiment:
            if difference := _difference(experiment, known):
                raise ValueError(
                    f"{known.path} is the record of another experiment, with {difference}; give another "
                    "folder, or another label"
                )
            self._compared[path] = experiment
        return known


def _difference(experiment: Experiment, record: History) -> str:
    """How the run in the record differs from the experiment; empty if it does not."""
    config = record.network.get("config") or {}
    found = {"norm": config.get("norm"), "conv": config.get("conv"), "seed": record.seed}
    asked = {"norm": experiment.norm, "conv": experiment.conv, "seed": experiment.seed}
    if experiment.dataset in DATASET_NAMES:  # "auto" is whatever was found
        found["dataset"], asked["dataset"] = record.dataset, DATASET_NAMES[experiment.dataset]
    if found != asked:
        return f"{found}, not {asked}"
    here, there = Recipe.from_dict(record.recipe).difference(experiment.recipe)
    return f"recipe {here}, not {there}" if here else ""


def carry_out(
    studies: Iterable[Study],
    out: str | Path,
    *,
    published: str | Path | None = None,
    processes: int = 1,
    executor: Executor | None = None,
    dtype: str | None = None,
    **options,
) -> Records:
    """Train what is missing of the studies, and return the records; it can be stopped at any moment.

    out: the folder of records, networks and checkpoints. published: another folder with records, which are
    not trained again. executor: any of concurrent.futures; without one, a pool of that many `processes`, or
    this process. dtype: the number format; None is the fastest, found by timing. options: those of `run`. A
    worker that dies loses its own run only. A run that diverges is recorded as such.

    Raises ValueError if a file in a folder has the record of another experiment.
    """
    studies = list(studies)
    records = Records(out, *([] if published is None else [published]))
    lost, done, began = 0, 0, time.monotonic()
    while todo := _unique(run for study in studies for run in study.missing(records)):
        left = len(set().union(*(study.left(records) for study in studies)))
        pace = f", about {left * (time.monotonic() - began) / done / 60:.0f} minutes" if done else ""
        print(f"{len(todo)} runs can be trained now, of {left} or more{pace}", file=progress_stream())
        with _workers(executor, processes, len(todo)) as workers:
            try:
                run_all([replace(run, dtype=dtype) for run in todo], out, executor=workers, **options)
                lost = 0
            except Diverged as error:
                print(error, file=progress_stream())
            except BrokenExecutor:
                ended = any(records.find(run) for run in todo)
                lost = 1 if ended else lost + 1
                if executor is not None or lost > LOST:
                    raise
        done += sum(records.find(run) is not None for run in todo)
    return records


def _unique(runs: Iterable[Experiment]) -> list[Experiment]:
    found = {run.stem: run for run in runs}
    return list(found.values())


@contextmanager
def _workers(executor: Executor | None, processes: int, runs: int) -> Iterator[Executor | None]:
    if executor is not None or processes == 1:
        yield executor
    else:
        with process_pool(min(processes, max(2, runs))) as pool:
            yield pool
