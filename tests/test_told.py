"""What README and the notebook say about the studies: the sentences, with the figures of the records."""

import json
import re
from functools import cache
from pathlib import Path

import pytest

from lab.costs import costs
from lab.findings import last_epoch
from lab.grid import Side
from lab.statistics import Estimate
from lab.studies import STUDIES, measured, published

HERE = Path(__file__).resolve().parent.parent
OPTIMIZERS = ("muon", "sgd", "adamw")
NORMS = ("batch", "layer", "group")
NUMBERS = ("", "first", "second", "third", "fourth")
NORMS_OF_TECHNIQUES = (*NORMS, "instance", "none")


def one_line(text: str) -> str:
    return " ".join(text.split())


@cache
def said(place: str) -> str:
    text = (HERE / place).read_text(encoding="utf-8")
    if place.endswith(".ipynb"):
        cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown"]
        text = "\n".join("".join(cell["source"]) for cell in cells)
    return one_line(text)


@cache
def difference(study: str, one: Side, other: Side) -> Estimate:
    """The difference in accuracy between two arms that the study compares."""
    for family in STUDIES[study].families:
        if (one, other) in family.pairs:
            return STUDIES[study].differences(family, published())[one, other]
    raise ValueError(f"{study} does not compare {one} with {other}")


def lower_from(study: str, *pairs: tuple[str, str]) -> int:
    """The first epoch from which on the first of each pair is lower than the other by more than chance."""
    found = []
    for pair in pairs:
        (family,) = [family for family in STUDIES[study].families if pair in family.pairs]
        epochs = STUDIES[study].differences_by_epoch(family, published())[pair]
        found.append(1 + max((n for n, each in enumerate(epochs, 1) if each.mean + each.half > 0), default=0))
    assert len(set(found)) == 1, f"not from the same epoch on: {dict(zip(pairs, found, strict=True))}"
    return found[0]


def above(study: str, one: Side, other: Side) -> str:
    """By how many points `one` is above `other`, which has to be more than chance."""
    found = difference(study, one, other)
    assert found.mean > found.half, f"{one} is not above {other}: {found}"
    return points(found)


def below(study: str, one: Side, other: Side) -> str:
    found = difference(study, one, other)
    assert -found.mean > found.half, f"{one} is not below {other}: {found}"
    return points(found._replace(mean=-found.mean))


def unknown(study: str, one: str, other: str) -> str:
    """A difference that was not measured, with its sign."""
    found = difference(study, one, other)
    assert found.holds_zero, f"{one} differs from {other}: {found}"
    return f"{100 * found.mean:+.1f} ± {100 * found.half:.1f}"


def points(found: Estimate) -> str:
    return f"{100 * found.mean:.1f} ± {100 * found.half:.1f}"


def span(study: str, *pairs: tuple[str, str]) -> str:
    """From the least to the most of several differences, all more than chance and upwards."""
    found = [difference(study, *pair) for pair in pairs]
    assert all(each.mean > each.half for each in found)
    means = sorted(100 * each.mean for each in found)
    return f"{means[0]:.1f} to {means[-1]:.1f}"


def losses(study: str, *pairs: tuple[str, str]) -> str:
    """From the least to the most of several differences, all more than chance and downwards, in points."""
    found = [difference(study, *pair) for pair in pairs]
    assert all(-each.mean > each.half for each in found)
    means = sorted(-100 * each.mean for each in found)
    return f"{means[0]:.1f} to {means[-1]:.1f}"


def accuracy(study: str, label: str) -> str:
    found = STUDIES[study].accuracy(label, published())
    assert found is not None
    return f"{100 * found.mean:.1f} %"


def times(study: str, one: str, other: str) -> str:
    """The time of a training step, as a multiple of another's."""
    found = costs(measured().costs or {}, STUDIES[study].arms)
    return f"{found[one].train_microseconds / found[other].train_microseconds:.1f}"


def percent(study: str, one: str, other: str) -> str:
    """By how much a training step takes longer or less long than another, in percent."""
    found = costs(measured().costs or {}, STUDIES[study].arms)
    return f"{abs(100 * (found[one].train_microseconds / found[other].train_microseconds - 1)):.0f} %"


def peak(study: str, label: str) -> str:
    return f"{100 * costs(measured().costs or {}, STUDIES[study].arms)[label].share_of_peak:.0f} %"


def seconds() -> str:
    """The least and the most time that a training in equal time takes."""
    found = costs(measured().costs or {}, STUDIES[TIMED].arms).values()
    times = sorted(each.run_seconds for each in found)
    return f"{times[0]:.0f} to {times[-1]:.0f} s"


def weak(study: str, labels: list[str], maps: int = 496) -> list[int]:
    """Weak maps of the arms' networks, over all seeds of the study, from the fewest to the most."""
    runs = [run for label in labels for run in STUDIES[study].results(published())[label]]
    looks = [measured().inside[run.path.stem] for run in runs if run.path is not None]
    assert len(looks) >= 5 * len(labels)
    assert {look.maps for look in looks} == {maps}
    return sorted(look.weak for look in looks)


def model(norm: str = "batch", optimizer: str = "muon") -> str:
    return f"mixed-{norm}-{optimizer}"


def arm(conv: str, ending: str = "") -> str:
    return f"{conv}-batch-muon{ending}"


B, D, S = "blueprint_separable", "depthwise_separable", "standard"
WIDE, SAME, TIMED = "techniques", "techniques-at-equal-size", "techniques-in-equal-time"
AFTER = "-depthwise-after-a-standard-row"
STRIDE, FLAT, RISING = (arm("mixed", ending) for ending in ("-stride", "-rates-2-2-2", "-rates-1-2-3"))


def sized(conv: str) -> str:
    """An arm of equal size: the mixed network has that size as it is."""
    return arm(conv, "" if conv == "mixed" else "-equal-size")


def timed(conv: str) -> str:
    return arm(conv, "-equal-time")


def after(optimizer: str) -> str:
    return f"{model('batch', optimizer)}-activation-after-the-sum"


def muon() -> tuple[str, str, str]:
    """Muon above SGD and above AdamW with batch norm, and above both with the other norms."""
    others = [(model(norm), model(norm, name)) for norm in NORMS[1:] for name in OPTIMIZERS[1:]]
    one, other = (above("models", model(), model("batch", name)) for name in OPTIMIZERS[1:])
    return one, other, span("models", *others)


def batch_norm() -> tuple[str, str, str]:
    """Batch norm above layer and above group norm with Muon, and above both with the other optimizers."""
    others = [(model(norm, name), model("batch", name)) for norm in NORMS[1:] for name in OPTIMIZERS[1:]]
    one, other = (below("models", model(norm), model()) for norm in NORMS[1:])
    return one, other, losses("models", *others)


def small_batches() -> tuple[str, str]:
    """With batches of 8 instead of 256: what batch, layer and group norm lose or gain, and the lead left."""
    small = {norm: model(norm) + "-batches-of-8" for norm in NORMS}
    lost = below("batch-sizes", small["batch"], model())
    layer, group = (above("batch-sizes", small[norm], model(norm)) for norm in NORMS[1:])
    over_layer, over_group = (below("batch-sizes", small[norm], small["batch"]) for norm in NORMS[1:])
    changes = f"{lost} points, while layer norm gains {layer} and group norm {group}"
    return changes, f"{over_layer} and {over_group}"


def gained(study: str) -> str:
    """The points that the last epoch adds, from the arm with the fewest to that with the most."""
    least, most = re.findall(r"[+-]\d+\.\d", last_epoch(STUDIES[study], published()))
    return f"{float(least):.1f} to {float(most):.1f} points"


def shrunk() -> str:
    """By how much batches of 8 shrink the lead of batch norm over layer and over group norm."""
    changes = {norm: (model(norm) + "-batches-of-8", model(norm)) for norm in NORMS}
    one, other = (below("batch-sizes", changes["batch"], changes[norm]) for norm in NORMS[1:])
    return f"{one} and {other}"


def of_penalties() -> dict[str, str]:
    """By how many points each penalty that changes the accuracy with batch norm changes it."""
    study = STUDIES["penalties"]
    pairs = {one.removeprefix("mixed-batch-"): (one, other) for one, other in study.pairs}
    found = {name: difference("penalties", *pair) for name, pair in pairs.items()}
    assert all(each.holds_zero for name, each in found.items() if "decay" in name)
    for best in ("sgd-L1-6.4e-05", "sgd-L2-0.00016", "adamw-L2-4e-05"):
        kind = best[: best.index("L") + 2]
        assert found[best].mean == max(each.mean for name, each in found.items() if name.startswith(kind))
    known = {name: each for name, each in found.items() if not each.holds_zero}
    return {
        name: (above if each.mean > 0 else below)("penalties", *pairs[name]) for name, each in known.items()
    }


def readme() -> list[str]:
    penalties = of_penalties()
    sgd, adamw, both = muon()
    layer, group, others = batch_norm()
    changes, lead = small_batches()
    most = weak("models", [model(norm) for norm in NORMS])[-1]
    return [
        f"**Muon** is {sgd} points above SGD and {adamw} above AdamW with batch norm, and {both} above them "
        "with layer and group norm.",
        f"The best L1 penalty gives SGD {penalties['sgd-L1-6.4e-05']} points with batch norm, the best L2 "
        f"penalty AdamW {penalties['adamw-L2-4e-05']}; weight decay nothing measurable.",
        f"**Batch norm** is {layer} points above layer norm and {group} above group norm with Muon, {others} "
        "with the other optimizers",
        f"With batches of 8 instead of 256 it loses {changes}; it stays ahead by {lead}.",
        f"with batches of 256 and Muon, at most {most} of 496.",
        f"is {below(WIDE, arm(B), arm(S))} points below it, **mixed** a third, and is "
        f"{below(WIDE, arm('mixed'), arm(S))} below;",
        f"(eight to ten epochs, {seconds()}) they are {below(TIMED, timed(B), timed(S))} and "
        f"{below(TIMED, timed('mixed'), timed(S))} below.",
        f"With at most 92,538 weights each they are {above(SAME, sized(B), sized(S))} and "
        f"{above(SAME, sized('mixed'), sized(S))} *above* it; their steps take "
        f"{times(SAME, sized(B), sized(S))} and {times(SAME, sized('mixed'), sized(S))} times as long.",
        f"**Depthwise-separable** is {below(WIDE, arm(D), arm(S))} below standard; a standard first row "
        f"gives it back {above('additions', arm('mixed', AFTER), arm(D))}.",
        f"**Dilated** is {below(WIDE, arm('dilated'), arm(S))} below at the same size; instead of a third "
        f"stride, at the same receptive field, it is {above('dilation-or-stride', FLAT, STRIDE)} above, for "
        f"{times('dilation-or-stride', FLAT, STRIDE)} times the time.",
    ]


def notebook() -> list[str]:
    sgd, adamw, both = muon()
    layer, group, others = batch_norm()
    changes, lead = small_batches()
    by_norm = {norm: (f"dilated-{norm}-muon", f"standard-{norm}-muon") for norm in NORMS_OF_TECHNIQUES}
    assert all(difference(WIDE, *by_norm[norm]).holds_zero for norm in ("layer", "group"))
    separable = [(f"{conv}-none-muon", f"{conv}-batch-muon") for conv in (B, D)]
    penalty = unknown("course-models", model("group", "sgd") + "-L1-6.4e-05", model("group", "sgd"))
    l2 = unknown("course-models", model("layer", "adamw") + "-L2-4e-05", model("layer", "adamw"))
    penalties = of_penalties()
    tens = sorted(run.accuracy[-1] for run in STUDIES["penalties"].results(published())["mixed-batch-sgd"])
    most = weak("models", [model(norm) for norm in NORMS])[-1]
    against = {name: [(model(norm, name), model("batch", name)) for norm in NORMS[1:]] for name in OPTIMIZERS}
    layer_pair, group_pair = against["muon"]
    assert lower_from("models", layer_pair) == 4  # the last
    suppressed = weak("models", [model("layer", "adamw")])
    assert weak("models", [model()])[-1] == 0
    after_sum = unknown("additions", after("sgd"), model("batch", "sgd"))
    return [
        # What made the difference
        f"With batch norm, Muon is {sgd} points above SGD and {adamw} above AdamW; with layer and group norm "
        f"by more, {both}. Batch norm is {layer} points above layer norm and {group} above group norm "
        f"with Muon, and {others} above them with the other optimizers.",
        f"With SGD it leads both from the {NUMBERS[lower_from('models', *against['sgd'])]} epoch on, with "
        f"AdamW from the {NUMBERS[lower_from('models', *against['adamw'])]}. With Muon it leads group norm "
        f"from the {NUMBERS[lower_from('models', group_pair)]} epoch on, and layer norm in the last only",
        f"the ten that the study `penalties` has of it, {100 * tens[0]:.1f} to {100 * tens[-1]:.1f} %.",
        f"with L1 in group norm and SGD {penalty} points, with L2 in layer norm and AdamW {l2}",
        f"SGD {penalties['sgd-L1-6.4e-05']} points with L1 (`6.4e-5`) and {penalties['sgd-L2-0.00016']} "
        f"with L2 (`1.6e-4`), AdamW {penalties['adamw-L2-4e-05']} with L2 (`4e-5`). Too much harms: "
        f"`2.56e-4` of L1 costs AdamW {penalties['adamw-L1-0.000256']}. With AdamW's own weight decay no "
        "difference was measured",
        f"it loses {changes}. It stays ahead of both, by {lead}: its lead shrinks by {shrunk()}",
        f"the last epoch still adds {gained('models')}.",
        f"there are at most {most} with the others",
        f"Layer norm with AdamW has the most, {suppressed[0]} to {suppressed[-1]},",
        f"No difference was measured: after it, SGD has {after_sum} points and Muon "
        f"{unknown('additions', after('muon'), model())}",
        # Which technique is worth its cost
        f"the standard network is the most accurate, {accuracy(WIDE, arm(S))}, and the largest. The mixed "
        f"one has a third of its weights, and is {below(WIDE, arm('mixed'), arm(S))} points below it. "
        f"Dilating every row that keeps the size of its map costs {below(WIDE, *by_norm['batch'])} points",
        f"with instance norm it costs {below(WIDE, *by_norm['instance'])}, without a norm "
        f"{below(WIDE, *by_norm['none'])}, and with layer and group norm no difference was measured.",
        f"Blueprint-separable is {below(WIDE, arm(B), arm(S))} points below standard, depthwise-separable "
        f"{below(WIDE, arm(D), arm(S))},",
        f"with a standard one it gains {above('additions', arm('mixed', AFTER), arm(D))} points",
        f"costs another {below('additions', arm('mixed', '-dilated-blind'), arm('dilated'))}.",
        f"Blueprint-separable is {above(SAME, sized(B), sized(S))} points above standard, and mixed "
        f"{above(SAME, sized('mixed'), sized(S))};",
        f"Between the first two it is {above(SAME, sized(B), sized('mixed'))}.",
        f"takes {times(SAME, sized(B), sized(S))} times as long as the standard one's, and that of the mixed "
        f"network {times(SAME, sized('mixed'), sized(S))} times.",
        f"takes about the same time, {seconds()}",
        f"the wide standard network comes first again, {accuracy(TIMED, timed(S))}. Mixed is "
        f"{below(TIMED, timed('mixed'), timed(S))} points below it, dilated "
        f"{below(TIMED, timed('dilated'), timed(S))}, blueprint-separable {below(TIMED, timed(B), timed(S))} "
        f"and depthwise-separable {below(TIMED, timed(D), timed(S))}.",
        f"gain {above('dilation-or-stride', FLAT, STRIDE)} points at the same receptive field, and the step "
        f"takes {times('dilation-or-stride', FLAT, STRIDE)} times as long. Dilations of 1, 2, 3 instead of "
        f"2, 2, 2 gain another {above('dilation-or-stride', RISING, FLAT)}",
        f"its step takes {percent(WIDE, arm(B), arm(S))} longer; the depthwise-separable one's takes "
        f"{percent(WIDE, arm(D), arm(S))} less.",
        f"reach {peak(WIDE, arm(B))} of what the processor can multiply, where the standard network reaches "
        f"{peak(WIDE, arm(S))}.",
        f"with no normalization {losses(WIDE, *separable)} points, the standard one "
        f"{below(WIDE, 'standard-none-muon', arm(S))}.",
        # Findings
        f"With batch norm, Muon is {sgd} points above SGD and {adamw} above AdamW. With Muon, batch norm is "
        f"{layer} above layer norm and {group} above group norm.",
        f"it loses {changes}; it is still ahead of them, by {lead} (study `batch-sizes`).",
        f"no effect on accuracy was measured ({penalty} points); with batch norm and SGD it gains "
        f"{penalties['sgd-L1-6.4e-05']}.",
        f"is {below(WIDE, arm(B), arm(S))} points below standard. The same two steps in the other order, "
        f"depthwise-separable, are {below(WIDE, arm(D), arm(S))} below it. With at most 92,538 "
        f"parameters each, blueprint-separable is {above(SAME, sized(B), sized(S))} points above standard "
        f"and its step takes {times(SAME, sized(B), sized(S))} times as long; mixed is "
        f"{above(SAME, sized('mixed'), sized(S))} above it. In equal time standard is first; "
        f"mixed is {below(TIMED, timed('mixed'), timed(S))} below.",
        f"gain {above('dilation-or-stride', FLAT, STRIDE)} points, and their step takes "
        f"{times('dilation-or-stride', FLAT, STRIDE)} times as long. Dilations of 1, 2, 3 instead of 2, 2, 2 "
        f"gain another {above('dilation-or-stride', RISING, FLAT)} (ten seeds",
    ]


PLACES = {"README.md": readme, "S7_Convolution_Techniques.ipynb": notebook}


@pytest.mark.parametrize("place", PLACES)
def test_what_is_told_of_the_studies_has_the_figures_of_the_records(place):
    text = said(place)
    assert [sentence for sentence in PLACES[place]() if sentence not in text] == []
