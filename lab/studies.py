"""The studies of this project: what each convolution, each normalization and each optimizer gives."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lab.experiment import Experiment
from lab.grid import Family, Records, Side, Study
from lab.measurements import Measurements
from lab.recipes import COMPARED, RECIPES, Recipe
from model import NORMS, STAGES, Row

PUBLISHED = Path(__file__).resolve().parent.parent / "results" / "study"


def published() -> Records:
    """The records of the published runs."""
    return Records(PUBLISHED)


def measured() -> Measurements:
    """What was measured beside the published runs: what each arm costs, and what its networks look like."""
    return Measurements.load(PUBLISHED)


# Short enough that hundreds of runs are possible on two cores, and long enough to rank techniques.
BASE = replace(RECIPES["default"], epochs=4)
COURSE_NORMS = ("batch", "layer", "group")

# Where each search begins; lr_rest stays that of the recipe. The warmup is the better of 0 and 0.2: held out,
# seed 0, mixed, batch norm, each at the best rate tried, Muon has 82.2 and 81.2 %, SGD 67.4 and 74.9 %, AdamW
# 72.9 and 75.7 % (records in results/trials/warmup).
OPTIMIZERS: dict[str, dict] = {
    "muon": {"optimizer": "muon", "lr": 0.12},
    "sgd": {"optimizer": "sgd", "lr": 0.4, "momentum": 0.9, "warmup": 0.2},
    "adamw": {"optimizer": "adamw", "lr": 0.02, "warmup": 0.2},
}
OPTIMIZER_NAMES = {"muon": "Muon", "sgd": "SGD", "adamw": "AdamW"}


def arm(
    conv: str = "mixed", norm: str = "batch", optimizer: str = "muon", label: str = "", **changes
) -> Experiment:
    """An arm: the base with another technique, normalization or optimizer, and `changes` to the recipe.

    label: says what was changed, and is added to the names of the other three.
    """
    recipe: Recipe = replace(BASE, **(OPTIMIZERS[optimizer] | changes))
    name = "-".join(filter(None, (conv, norm, optimizer, label)))
    return Experiment(name, recipe, norm=norm, conv=conv, dataset="cifar10")


def titles(arms: Iterable[Experiment]) -> dict[str, str]:
    """What a table calls each arm, by its label: the parts of the name in which the arms differ."""
    parts = {arm.label: _parts(arm) for arm in arms}
    differ = [len(set(column)) > 1 for column in zip(*parts.values(), strict=True)]
    return {
        label: ", ".join(part for part, shown in zip(named, differ, strict=True) if part and shown)
        or ", ".join(filter(None, named))
        for label, named in parts.items()
    }


def difference_title(arms: Iterable[Experiment], one: Side, other: Side) -> str:
    """What a table calls the difference between two arms: what each has alone, then what they share.

    one, other: labels. What all the arms share is left out. For a difference between differences, both in
    brackets, or once what changed in both, then what each shares.
    """
    arms = list(arms)
    if isinstance(one, str) and isinstance(other, str):
        changed, shared = _difference(arms, one, other)
        return f"{changed} ({shared})" if shared else changed
    if not isinstance(one, str) and not isinstance(other, str):
        (changed, *first), (changed_too, *second) = (_difference(arms, *side) for side in (one, other))
        if changed == changed_too and first != second:
            return f"{changed}: {' minus '.join(first + second)}"
    named = (
        titles(arms)[side] if isinstance(side, str) else difference_title(arms, *side)
        for side in (one, other)
    )
    return " minus ".join(f"[{name}]" for name in named)


def _difference(arms: Sequence[Experiment], one: str, other: str) -> tuple[str, str]:
    """What each of two arms has alone, and what they share of that in which the arms differ."""
    parts = {arm.label: _parts(arm) for arm in arms}
    differ = [len(set(column)) > 1 for column in zip(*parts.values(), strict=True)]
    pairs = [
        pair for pair, told in zip(zip(parts[one], parts[other], strict=True), differ, strict=True) if told
    ]
    own = [", ".join(pair[side] for pair in pairs if pair[0] != pair[1] and pair[side]) for side in (0, 1)]
    shared = ", ".join(here for here, there in pairs if here == there and here)
    return f"{own[0] or 'the base'} minus {own[1] or 'the base'}", shared


def _parts(arm: Experiment) -> tuple[str, str, str, str]:
    prefix = "-".join((arm.conv, arm.norm, arm.recipe.optimizer))
    rest = arm.label.removeprefix(prefix)
    if rest == arm.label:  # a reader's own name
        return "", "", "", arm.label
    technique = "" if "stages" in arm.recipe.net else arm.conv  # a table of its own has several
    rest = re.sub(r"(?<!\de)-", " ", rest.strip("-"))  # the minus of an exponent stays
    return technique, norm_name(arm.norm), OPTIMIZER_NAMES[arm.recipe.optimizer], rest


def norm_name(norm: str) -> str:
    """What tables call a normalization."""
    return "no norm" if norm == "none" else f"{norm} norm"


def _stages(rows: Iterable[Sequence[Row]]) -> dict:
    """The options of a network with this table, as plain data."""
    return {
        "stages": tuple(
            tuple(tuple(row)[: 3 + (row.dilation is not None)] for row in stage) for stage in rows
        )
    }


def _everywhere(conv: str, first: str | None = None) -> dict:
    """A table with one technique in every row, strided or not; `first`: the technique of the first row."""
    rows = [[row._replace(conv=conv) for row in stage] for stage in STAGES]
    if first is not None:
        rows[0][0] = rows[0][0]._replace(conv=first)
    return _stages(rows)


def _against(first: str, others: Iterable[str]) -> tuple[tuple[str, str], ...]:
    return tuple((other, first) for other in others if other != first)


# ---- The course's models, taken apart --------------------------------------------------------------

_MODELS = {(norm, name): arm("mixed", norm, name) for norm in COURSE_NORMS for name in OPTIMIZERS}

MODELS = Study(
    "models",
    "What do normalization and optimizer give in the course's network, each pair at its best rate?",
    [*_MODELS.values()],
    [
        Family(
            f"optimizers with {norm} norm",
            tuple((_MODELS[norm, "muon"].label, _MODELS[norm, other].label) for other in ("sgd", "adamw")),
        )
        for norm in COURSE_NORMS
    ]
    + [
        Family(
            f"normalizations with {OPTIMIZER_NAMES[name]}",
            _against(_MODELS["batch", name].label, [_MODELS[norm, name].label for norm in COURSE_NORMS]),
        )
        for name in OPTIMIZERS
    ],
)

# ---- Penalties -------------------------------------------------------------------------------------

# Strengths a factor of four apart. L1 and L2 are added to the loss, over all convolution weights; decay is
# AdamW's, decoupled from the gradient. Muon keeps the norm of the weights, so that none of them acts there.
STRENGTHS = {
    "l1": (4e-6, 1.6e-5, 6.4e-5, 2.56e-4),
    "l2": (1e-5, 4e-5, 1.6e-4),
    "weight_decay": (0.01, 0.04, 0.16),
}
PENALTY_NAMES = {"l1": "L1", "l2": "L2", "weight_decay": "decay"}


def _penalized(norm: str, optimizer: str, *penalties: str) -> tuple[list[Experiment], list[Family]]:
    """An arm for each strength of each penalty, and their comparison with the arm that has none."""
    without, arms, families = _MODELS[norm, optimizer], [], []
    for penalty in penalties:
        name = PENALTY_NAMES[penalty]
        several = []
        for strength in STRENGTHS[penalty]:
            changes: dict[str, Any] = {penalty: strength}
            several.append(arm(norm=norm, optimizer=optimizer, label=f"{name}-{strength:g}", **changes))
        arms += several
        named = f"{name} with {norm_name(norm)} and {OPTIMIZER_NAMES[optimizer]}"
        families.append(Family(named, _against(without.label, [each.label for each in several])))
    return [without, *arms], families


_L2_ARMS, _L2_FAMILIES = _penalized("layer", "adamw", "l2")
_L1_ARMS, _L1_FAMILIES = _penalized("group", "sgd", "l1")

COURSE_MODELS = Study(
    "course-models",
    "How strong can the penalties of the course's second and third model be?",
    [*_L2_ARMS, *_L1_ARMS],
    [*_L2_FAMILIES, *_L1_FAMILIES],
)

_SGD_ARMS, _SGD_FAMILIES = _penalized("batch", "sgd", "l1", "l2")
_ADAMW_ARMS, _ADAMW_FAMILIES = _penalized("batch", "adamw", "l1", "l2", "weight_decay")

PENALTIES = Study(
    "penalties",
    "What do penalties give, one added at a time to a network with batch norm?",
    [*_SGD_ARMS, *_ADAMW_ARMS],
    [*_SGD_FAMILIES, *_ADAMW_FAMILIES],
)

# ---- Techniques and normalizations -----------------------------------------------------------------

_GRID = {(conv, norm): arm(conv, norm) for norm in NORMS for conv in COMPARED}


def _families(grid: dict[tuple[str, str], Experiment], norms: Iterable[str] = NORMS) -> list[Family]:
    """Every technique against the standard one, and every normalization against batch norm."""
    labels = {key: arm.label for key, arm in grid.items()}
    norms = list(norms)
    by_norm = [
        Family(
            f"techniques with {norm_name(norm)}",
            _against(labels["standard", norm], [labels[conv, norm] for conv in COMPARED]),
        )
        for norm in norms
    ]
    by_conv = [
        Family(
            f"normalizations with {conv} convolution",
            _against(labels[conv, "batch"], [labels[conv, norm] for norm in norms]),
        )
        for conv in COMPARED
    ]
    return by_norm + (by_conv if len(norms) > 1 else [])


TECHNIQUES = Study(
    "techniques",
    "Which convolution technique and which normalization, at equal width?",
    [*_GRID.values()],
    _families(_GRID),
)

BUDGET = 92_538  # parameters of the mixed network
# Net.within(BUDGET, conv=conv, norm=norm).config["width"], the same for every norm.
WIDTHS = {"standard": 7 / 12, "dilated": 7 / 12, "depthwise_separable": 5 / 3, "blueprint_separable": 19 / 12}

_EQUAL = {
    (conv, norm): arm(conv, norm, label="equal-size", net={"width": WIDTHS[conv]})
    if conv in WIDTHS
    else _GRID[conv, norm]
    for norm in NORMS
    for conv in COMPARED
}

EQUAL_SIZE = Study(
    "techniques-at-equal-size",
    f"Which convolution technique and which normalization, with at most {BUDGET:,} parameters?",
    [*_EQUAL.values()],
    [
        *_families(_EQUAL),
        Family(
            "the two best at equal size",
            ((_EQUAL["blueprint_separable", "batch"].label, _EQUAL["mixed", "batch"].label),),
        ),
    ],
)

# So many epochs take about the same time, with the smaller images that come first: timed one after another on
# one thread of a Xeon, 146, 147, 146, 152 and 146 s.
EPOCHS = {"standard": 8, "dilated": 8, "depthwise_separable": 10, "blueprint_separable": 8, "mixed": 10}

_TIMED = {conv: arm(conv, label="equal-time", epochs=epochs) for conv, epochs in EPOCHS.items()}

EQUAL_TIME = Study(
    "techniques-in-equal-time",
    "Which convolution technique, in equal training time?",
    [*_TIMED.values()],
    [
        Family(
            "techniques in equal time",
            _against(_TIMED["standard"].label, [each.label for each in _TIMED.values()]),
        )
    ],
)

# ---- What explains the differences -----------------------------------------------------------------

_FIRST = {
    conv: arm(label=f"{conv.split('_')[0]}-after-a-standard-row", net=_everywhere(conv, "standard"))
    for conv in ("depthwise_separable", "blueprint_separable")
}
_BLIND = arm(label="dilated-blind", net=_everywhere("dilated"))
_POST = {
    name: arm(optimizer=name, label="activation-after-the-sum", net={"post_activation": True})
    for name in ("muon", "sgd")
}

ADDITIONS = Study(
    "additions",
    "What explains the differences: the first row, blind pixels, the place of the activation?",
    [
        *(_GRID[conv, "batch"] for conv in COMPARED),
        _MODELS["batch", "sgd"],
        *_FIRST.values(),
        _BLIND,
        *_POST.values(),
    ],
    [
        Family(
            "a standard first row", tuple((_FIRST[conv].label, _GRID[conv, "batch"].label) for conv in _FIRST)
        ),
        Family("dilated strided rows", ((_BLIND.label, _GRID["dilated", "batch"].label),)),
        Family(
            "the activation after the sum",
            tuple((_POST[name].label, _MODELS["batch", name].label) for name in _POST),
        ),
    ],
)

# ---- Dilation against stride -----------------------------------------------------------------------


def _last_rows(third: Row, dilations: Sequence[int | None]) -> dict:
    """The table with another third stage, and these dilations in the three rows of the last."""
    last = [STAGES[3][0]._replace(dilation=dilation) for dilation in dilations]
    return _stages([*STAGES[:2], [third], last])


_STRIDE = arm(label="stride", net=_last_rows(Row(48, stride=2), (None,) * 3))
_DILATION = arm(label="rates-2-2-2", net=_last_rows(Row(48), (2, 2, 2)))
_RISING = arm(label="rates-1-2-3", net=_last_rows(Row(48), (1, 2, 3)))

DILATION_OR_STRIDE = Study(
    "dilation-or-stride",
    "What replaces max-pooling at an equal receptive field of 75 pixels, and which rates leave no holes?",
    [_STRIDE, _DILATION, _RISING],
    [
        Family("dilation against stride", ((_DILATION.label, _STRIDE.label),)),
        Family("rates 1, 2, 3 against 2, 2, 2", ((_RISING.label, _DILATION.label),)),
    ],
)

# ---- Batch size ------------------------------------------------------------------------------------

# With batches of 8, what Adam trains gets a smaller rate, too: held out, batch norm, one seed, a rate of
# 0.01 for it gives 80.6 %, 0.002 gives 81.6 and 0.0005 80.6 % (records in results/trials/batches-of-8).
_SMALL = {
    norm: arm(norm=norm, label="batches-of-8", batch_size=8, lr=0.03, lr_rest=0.002) for norm in COURSE_NORMS
}

BATCH_SIZES = Study(
    "batch-sizes",
    "Does batch norm need large batches (arXiv 1803.08494)? Where nothing is said, batches have 256 images.",
    [*(_MODELS[norm, "muon"] for norm in COURSE_NORMS), *_SMALL.values()],
    [
        Family(
            "batches of 8 against 256",
            tuple((_SMALL[norm].label, _MODELS[norm, "muon"].label) for norm in COURSE_NORMS),
        ),
        Family(
            "whether batch norm loses more",
            tuple(
                (
                    (_SMALL["batch"].label, _MODELS["batch", "muon"].label),
                    (_SMALL[norm].label, _MODELS[norm, "muon"].label),
                )
                for norm in COURSE_NORMS
                if norm != "batch"
            ),
        ),
        Family(
            "batches of 256",
            tuple(
                _against(
                    _MODELS["batch", "muon"].label, [_MODELS[norm, "muon"].label for norm in COURSE_NORMS]
                )
            ),
        ),
        Family(
            "batches of 8",
            tuple(_against(_SMALL["batch"].label, [_SMALL[norm].label for norm in COURSE_NORMS])),
        ),
    ],
)

STUDIES: dict[str, Study] = {
    study.name: study
    for study in (
        MODELS,
        COURSE_MODELS,
        PENALTIES,
        TECHNIQUES,
        ADDITIONS,
        DILATION_OR_STRIDE,
        EQUAL_SIZE,
        EQUAL_TIME,
        BATCH_SIZES,
    )
}
