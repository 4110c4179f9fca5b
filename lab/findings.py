"""What the studies found: their tables and sentences, all computed from the records of the runs."""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Mapping, Sequence

from lab.costs import Cost, costs
from lab.grid import Family, Records, Side, Study, best_of
from lab.maps import Inside
from lab.measurements import Labels, Measurements
from lab.pictures import NOTHING, differences_by_class, in_words, pictures, same_epochs
from lab.records import History, processor_name
from lab.statistics import Estimate
from lab.studies import difference_title, titles
from lab.tables import Table
from model import describe

# ---- Tables ----------------------------------------------------------------------------------------


def arms_table(study: Study, records: Records, beside: Measurements = NOTHING) -> Table:
    """A row for each arm with a run: its best rate and how it was found, accuracy with interval, and size.

    The accuracy is that of the test images after the last epoch, with one view of each: the mean over the
    seeds, with the 95 % interval that allows for seeds and images. beside: for columns with the time and
    memory that an image costs, and with what was seen inside the trained networks.
    """
    head = ("arm", "rate", "rates tried", "held out, %", "epochs", "seeds", "test accuracy, %")
    head += ("training accuracy, %", "parameters", "MACs of an image", "receptive field")
    named, results, rows = titles(study.arms), study.results(records), []
    spent = costs(beside.costs, study.arms) if beside.costs else {}
    if spent:
        head += ("training, µs an image", "forward, µs an image", "memory, kB an image", "share of peak, %")
        head += ("a training, s",)
    looks = {label: _looks(runs, beside.inside) for label, runs in results.items()}
    if any(looks.values()):
        head += ("weak maps", "small weights, %")
    for arm in study.arms:
        if not (runs := results[arm.label]):
            continue
        trials, _ = study.search(arm, records)
        best, network = best_of(trials), describe(arm.network())
        rows.append(
            (
                named[arm.label],
                f"{best.lr:g}",
                ", ".join(f"{trial.lr:g}" for trial in trials),
                f"{100 * best.accuracy:.1f}",
                str(arm.recipe.epochs),
                _seeds(runs),
                _percent(study.accuracy(arm.label, records)),
                _training(runs),
                f"{network.total_parameters:,}",
                f"{network.total_macs:,}",
                str(network[-1].receptive_field),
                *(_spent(spent.get(arm.label)) if spent else ()),
                *(_seen(looks[arm.label]) if any(looks.values()) else ()),
            )
        )
    return Table(head, tuple(rows))


def _spent(cost: Cost | None) -> tuple[str, ...]:
    if cost is None:
        return ("",) * len(Cost._fields)
    figures = (
        cost.train_microseconds,
        cost.forward_microseconds,
        1e-3 * cost.memory,
        100 * cost.share_of_peak,
        cost.run_seconds,
    )
    return tuple("" if math.isnan(figure) else f"{figure:.0f}" for figure in figures)


def _looks(runs: Iterable[History], inside: Mapping[str, Inside]) -> list[Inside]:
    stems = [run.path.stem for run in runs if run.path is not None]
    return [inside[stem] for stem in stems if stem in inside]


def _seen(looks: Sequence[Inside]) -> tuple[str, str]:
    """Weak maps of all maps, from the fewest to the most over the seeds; the mean share of small weights."""
    if not looks:
        return "", ""
    weak = sorted(look.weak for look in looks)
    counts = " to ".join(map(str, dict.fromkeys((weak[0], weak[-1]))))
    return f"{counts} of {looks[0].maps}", f"{100 * sum(look.small for look in looks) / len(looks):.1f}"


def differences_table(
    study: Study, records: Records, family: str | None = None, labels: Labels | None = None
) -> Table:
    """A row for each comparison: the difference in test accuracy, its interval, and what it says.

    family: the name of one, for its comparisons only. labels: of the test images, for a column with the class
    whose accuracy changed most, whose interval allows for having picked it among all of them; then there is
    also one with the machines of the runs. Raises ValueError for an unknown family.
    """
    names = [each.name for each in study.families]
    if family is not None and family not in names:
        choices = ", ".join(map(repr, names))
        raise ValueError(f"unknown family={family!r} of the study {study.name!r}; choose from {choices}")
    rows = []
    for each in study.families:
        if family not in (None, each.name):
            continue
        most = {} if labels is None else _most_changed(study, each, records, labels)
        machines = {} if labels is None else _machines(study, each, records)
        rows += [
            (
                difference_title(study.arms, *pair),
                each.name,
                _points(found),
                str(found.seeds),
                verdict(found),
                *([] if labels is None else [most[pair], machines[pair]]),
            )
            for pair, found in study.differences(each, records).items()
        ]
    head: tuple[str, ...] = ("comparison", "question", "difference, points", "seeds", "")
    if labels is not None:
        head += ("class that changed most, points", "machine")
    return Table(head, tuple(rows))


def _most_changed(
    study: Study, family: Family, records: Records, labels: Labels
) -> dict[tuple[Side, Side], str]:
    by_class = differences_by_class(study, family, records, labels)
    found = {}
    for pair in by_class[0]:
        changes = [each[pair] for each in by_class]
        number = max(range(len(changes)), key=lambda index: abs(changes[index].mean))
        found[pair] = f"{labels.classes[number]} {_points(changes[number])}"
    return found


def _machines(study: Study, family: Family, records: Records) -> dict[tuple[Side, Side], str]:
    """On which processors the runs of each pair were made, and whether those of a seed are from several."""
    found = {}
    for pair, by_seed in study.compared(family, records).items():
        seeds = [{run.processor for side in sides for run in side.values()} for sides in by_seed.values()]
        mixed = any(len(processors) > 1 for processors in seeds)
        found[pair] = ", ".join(sorted(set().union(*seeds))) + (", not the same for both" if mixed else "")
    return found


def epochs_table(study: Study, records: Records) -> Table:
    """The comparisons epoch by epoch, with intervals over the seeds only: who learns faster, and how long."""
    found = [
        (difference_title(study.arms, one, other), [_points(each) for each in epochs])
        for family in study.families
        for (one, other), epochs in study.differences_by_epoch(family, records).items()
    ]
    most = max((len(epochs) for _, epochs in found), default=0)
    head = ("comparison, points", *(f"epoch {number + 1}" for number in range(most)))
    return Table(head, tuple((name, *epochs, *[""] * (most - len(epochs))) for name, epochs in found))


def again_table(study: Study, records: Records, told: Container[str] = ()) -> Table:
    """A row for each arm and machine that trained it again: whether it came out the same there.

    told: labels of arms that have a row elsewhere, and need none.
    """
    named = titles(study.arms)
    rows = [
        (named[label], processor, _points(found), str(found.seeds), verdict(found))
        for (label, processor), found in study.differences_again(records).items()
        if label not in told
    ]
    return Table(("arm", "again on", "difference, points", "seeds", ""), tuple(rows))


def verdict(found: Estimate) -> str:
    """What an interval says about a difference."""
    if math.isnan(found.half):
        return "interval not known"
    return "no difference measured" if found.holds_zero else "higher" if found.mean > 0 else "lower"


def _seeds(runs: list[History]) -> str:
    diverged = sum(bool(run.diverged) for run in runs)
    return f"{len(runs)}, {diverged} diverged" if diverged else str(len(runs))


def _training(runs: list[History]) -> str:
    found = [run.train_accuracy[-1] for run in runs if not run.diverged]
    return f"{100 * sum(found) / len(found):.1f}" if found else ""


def _percent(found: Estimate | None) -> str:
    if found is None:
        return ""
    half = "" if math.isnan(found.half) else f" ± {100 * found.half:.2f}"
    return f"{100 * found.mean:.2f}{half}"


def _points(found: Estimate) -> str:
    half = "" if math.isnan(found.half) else f" ± {100 * found.half:.1f}"
    return f"{100 * found.mean:+.1f}{half}"


# ---- Sentences -------------------------------------------------------------------------------------


def sentences(study: Study, records: Records) -> list[str]:
    """What each comparison says, in a sentence."""
    return [
        _sentence(difference_title(study.arms, one, other), found)
        for family in study.families
        for (one, other), found in study.differences(family, records).items()
    ]


def _sentence(title: str, found: Estimate) -> str:
    """The difference that `title` names, in points of test accuracy, and what it says."""
    runs = f"{found.seeds} {'seed' if found.seeds == 1 else 'seeds'}"
    told = f"{title}: {_points(found)} points ({runs})"
    return f"{told}, {verdict(found)}." if found.holds_zero else f"{told}."


def last_epoch(study: Study, records: Records) -> str:
    """How much test accuracy still changed in the last epoch: the least and the most of the arms' means."""
    changes = []
    for runs in study.results(records).values():
        gains = [run.accuracy[-1] - run.accuracy[-2] for run in runs if len(run.accuracy) > 1]
        if gains:
            changes.append(100 * sum(gains) / len(gains))
    if not changes:
        return ""
    return (
        "From the epoch before the last to the last, the accuracy of the arms changes by "
        f"{min(changes):+.1f} to {max(changes):+.1f} points."
    )


# ---- The page --------------------------------------------------------------------------------------


def page(studies: Mapping[str, Study], records: Records, beside: Measurements = NOTHING) -> str:
    """The studies as a Markdown page: question, tables and pictures of each that is complete."""
    parts = [INTRODUCTION]
    if beside.costs:
        host = beside.costs["machine"]
        parts.append(
            f"Times and memory were measured on {processor_name(host)}, {host['threads']} threads, in "
            f"{host['dtype']}, on batches of {beside.costs['batch_size']} images of {beside.costs['side']} "
            "pixels a side: of a training step for an image, of classifying one, and the memory that the "
            "backward pass needs for one. The share of peak is that of the step in the rate of the fastest "
            "product of large matrices there. The time of a training counts each size of image that its "
            "recipe has. The trainings themselves were made several at once, and took longer. What was not "
            "timed, trainings with other batches, is blank."
        )
    told: set[str] = set()
    for study in studies.values():
        compared = differences_table(study, records, labels=beside.labels)
        if study.missing(records) or not compared.rows:
            continue
        runs = [run for several in study.results(records).values() for run in several]
        parts += [
            f"## {study.name}",
            study.question,
            f"From {len(runs)} runs on all training images, {_made_on(runs)}, at rates that were searched "
            f"{_made_on(_searched(study, records))}. {in_words(study, records)}",
            arms_table(study, records, beside).markdown(),
            compared.markdown(),
            *_by_epoch(study, records),
            *_again(study, records, told),
            *(f"![{study.name}, {name}]({name}.png)" for name in pictures(study, records, beside)),
        ]
        told |= {arm.label for arm in study.arms}
    if begun := [study.name for study in studies.values() if study.missing(records)]:
        parts.append(f"Not complete yet, and therefore not shown: {', '.join(begun)}.")
    return "\n\n".join(parts) + "\n"


def _by_epoch(study: Study, records: Records) -> Iterable[str]:
    if same_epochs(study.arms):  # or the same epoch would be another part of the schedule
        yield "The same after each epoch, with intervals over the seeds only:"
        yield epochs_table(study, records).markdown()
        yield from filter(None, [last_epoch(study, records)])


def _again(study: Study, records: Records, told: Container[str]) -> Iterable[str]:
    if (compared := again_table(study, records, told)).rows:
        yield "Runs of these arms were made again, on another machine. The accuracy above minus that one:"
        yield compared.markdown()


def _searched(study: Study, records: Records) -> list[History]:
    """The runs that the rates were chosen from."""
    tried = ((arm, trial) for arm in study.arms for trial in study.search(arm, records)[0])
    runs = (study.trial(arm, trial.lr, seed) for arm, trial in tried for seed in range(trial.seeds))
    return [found for run in runs if (found := records.find(run))]


def _made_on(runs: Iterable[History]) -> str:
    return " and ".join(sorted({f"on {run.processor} in {run.machine.get('dtype')}" for run in runs}))


INTRODUCTION = """# The studies

What each convolution technique, each normalization and each optimizer gives on CIFAR-10. Made by `python -m
lab findings --write` from the records in this folder, one for each run; `python -m lab study NAME` trains
what is missing.

- Every arm has its own learning rate, found by the same search: the rate it starts from, half of it and
  twice it, each trained once on 45,000 images and judged on the other 5,000 training images; then further
  in the direction of the best until that has a worse one on both sides. Rates within a point of the best
  are tried with two more seeds, each with other held-out images, and the mean of the three decides.
- With that rate it is trained on all 50,000 training images, with five seeds that all arms share; ten
  where two arms that are compared are closer than half a point. The test images are looked at after the
  last epoch, one view of each.
- An arm is trained for four epochs, if its table does not give more, which ranks techniques, and is far
  from the best that each can do.
- Held out: the accuracy at the best rate on the images that the search keeps from training. The intervals
  do not allow for the choice of the rate.
- An interval (95 %) allows for both chances, other seeds and other test images. A difference is taken seed
  by seed and image by image; the intervals of one question hold together with 95 % (Bonferroni). If an
  interval holds zero, no difference was measured, which does not mean that there is none. Where two
  studies make the same comparison, the one with more comparisons in its question has the wider interval.
- A difference is taken between runs on one machine, where both arms have such: if need be between runs that
  were made again, which the table of arms does not count. The last column of the table of comparisons names
  the machines, and says where the two arms have none in common.
- Weak maps: maps behind an activation with less than a tenth of the median strength in their layer, on
  1,000 test images. Small weights: those below a tenth of the typical size in their layer (its root mean
  square); of normally distributed weights these are 8 %."""
