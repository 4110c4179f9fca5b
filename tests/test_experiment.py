"""lab/experiment.py: what an experiment is called, what it trains, what it leaves, and its teacher."""

import dataclasses
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import lab.experiment
from lab.data import STAND_IN, Dataset, load_dataset, pooled_statistics, split, stand_in
from lab.experiment import ABLATIONS, PREPROCESSING, Experiment, ablations, run
from lab.recipes import RECIPES, Recipe
from lab.records import History, describe_network
from lab.training import Diverged, distilled, evaluate, fit
from model import Net

HERE = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")
QUIET = {"device": "cpu", "progress": False}
SHORT = Recipe(epochs=1, batch_size=64, net={"width": 0.25})


def an_experiment(label="mine", recipe=SHORT, **fields) -> Experiment:
    return Experiment(label, recipe, **{"dataset": "stand-in", "dtype": "float32", "limit": 200} | fields)


# ---- What it is ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "name", "stem"),
    [
        ({}, "batch norm, Muon", "batch-norm-Muon-seed0"),
        ({"seed": 3}, "batch norm, Muon", "batch-norm-Muon-seed3"),
        ({"validation": 50}, "batch norm, Muon-held-out-50", "batch-norm-Muon-held-out-50-seed0"),
        ({"limit": 9}, "batch norm, Muon-limit-9", "batch-norm-Muon-limit-9-seed0"),
    ],
)
def test_names_follow_from_the_fields(fields, name, stem):
    experiment = Experiment("batch norm, Muon", **fields)
    assert (experiment.name, experiment.stem) == (name, stem)


def test_a_named_experiment_is_called_after_recipe_norm_and_conv_or_as_asked():
    experiment = Experiment.named("minute", norm="layer", conv="dilated", epochs=2, seed=4)
    assert experiment.name == "minute-layer-dilated"
    assert experiment.recipe == replace(RECIPES["minute"], epochs=2)
    assert Experiment.named("minute", label="mine").name == "mine"
    with pytest.raises(ValueError, match=r"unknown recipe 'hour'.*'minute'"):
        Experiment.named("hour")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"label": ""}, "label=''"),
        ({"label": 3}, "label=3"),
        ({"recipe": "minute"}, "recipe='minute'.*RECIPES"),
        ({"norm": "spectral"}, "unknown norm 'spectral'.*'instance'"),
        ({"conv": "deformable"}, "unknown conv 'deformable'.*'mixed'"),
        ({"dataset": "imagenet"}, "unknown dataset 'imagenet'.*'stand-in'"),
        ({"dtype": "int8"}, "unknown dtype 'int8'.*'bfloat16'"),
        ({"seed": 0.5}, "seed=0.5"),
        ({"norm": ["batch"]}, "unknown norm"),
        ({"validation": -1}, "validation=-1 must be an integer of at least 0"),
        ({"validation": 2.5}, "validation=2.5"),
        ({"limit": 0}, "limit=0 must be an integer of at least 1"),
        ({"limit": "a"}, "limit='a'"),
    ],
)
def test_a_wrong_field_is_an_error_with_the_choices(fields, said):
    with pytest.raises(ValueError, match=said):
        Experiment(**{"label": "mine"} | fields)


def test_an_experiment_is_frozen_and_its_seed_a_python_integer():
    experiment = an_experiment(seed=np.int64(3))
    assert type(experiment.seed) is int
    with pytest.raises(dataclasses.FrozenInstanceError):
        experiment.seed = 4


def test_the_network_follows_from_the_seed_and_leaves_torch_s_random_state_alone():
    before = torch.get_rng_state()
    one, same, other = (an_experiment(seed=seed).network() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    by_hand = Net("batch", "mixed", width=0.25)
    torch.set_rng_state(before)
    assert all(map(torch.equal, one.state_dict().values(), by_hand.state_dict().values()))
    assert all(map(torch.equal, one.state_dict().values(), same.state_dict().values()))
    assert not torch.equal(one.output.weight, other.output.weight)


def test_the_loaders_are_the_training_images_and_those_to_evaluate_on(small):
    train_loader, test_loader = an_experiment(limit=None).loaders(small, CPU)
    assert (len(train_loader.labels), len(test_loader.labels)) == (1_000, 500)
    assert (train_loader.part, test_loader.part) == ("train", "test")
    assert (train_loader.batch_size, train_loader.augment) == (64, SHORT.augment)
    train_loader, held_out = an_experiment(limit=None, validation=100, seed=2).loaders(small, CPU)
    kept, held = split(small.train_labels, 100, seed=2)
    assert torch.equal(train_loader.images, small.train_images[kept])
    assert torch.equal(held_out.images, small.train_images[held])
    assert (train_loader.part, held_out.part) == ("train", "validation")
    with pytest.raises(ValueError, match=r"dataset='cifar10'.*STAND-IN"):
        an_experiment(dataset="cifar10").loaders(small, CPU)


# ---- A run -----------------------------------------------------------------------------------------


def test_a_run_leaves_record_network_and_checkpoint_and_returns_what_they_hold(small, tmp_path):
    experiment = an_experiment(norm="group", seed=3)
    net, history = run(experiment, tmp_path, data=small, **QUIET)
    files = {path.suffix: path for path in tmp_path.iterdir()}
    assert {path.stem for path in files.values()} == {"mine-limit-200-seed3"}
    assert {*files} == {".json", ".pt", ".checkpoint"}
    assert History.load(files[".json"]) == history
    assert (history.name, history.seed, history.dataset) == ("mine-limit-200", 3, STAND_IN)
    assert history.data["train"]["images"] == 200
    assert len(history.gflops) == 1
    again = Net.load(files[".pt"])
    assert again.metadata == history.to_dict()
    assert again.preprocessing == PREPROCESSING
    assert again.classes == small.classes
    assert all(map(torch.equal, net.state_dict().values(), again.state_dict().values()))
    _, loader = experiment.loaders(small, CPU)
    logits, labels = evaluate(again, loader, device="cpu", dtype=torch.float32)
    assert (logits.argmax(1) == labels).double().mean().item() == history.test_accuracy[-1]


def test_a_run_leaves_random_states_alone_and_does_not_depend_on_them(small, tmp_path):
    torch.manual_seed(11)
    before = torch.get_rng_state()
    one, _ = run(an_experiment(), tmp_path / "one", data=small, **QUIET)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(12)
    other, _ = run(an_experiment(), tmp_path / "other", data=small, **QUIET)
    assert all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))


def test_a_finished_run_is_not_trained_again_nor_handed_back_for_another(small, tmp_path, monkeypatch):
    first = run(an_experiment(), tmp_path, data=small, **QUIET).history
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr("lab.training.train", None)
        assert run(an_experiment(), tmp_path, data=small, **QUIET).history == first
    longer = an_experiment(recipe=replace(SHORT, epochs=2))
    with pytest.raises(ValueError, match=r"recipe \{'epochs': 1\}, not \{'epochs': 2\}"):
        run(longer, tmp_path, data=small, **QUIET)
    other_data = replace(small, train_images=255 - small.train_images)
    with pytest.raises(ValueError, match=r"data \{'train': \{'digest'"):
        run(an_experiment(), tmp_path, data=other_data, **QUIET)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert run(longer, tmp_path, data=small, resume=False, **QUIET).history.epochs == 2


def test_other_norm_or_conv_is_another_run(small, tmp_path):
    run(an_experiment(), tmp_path, data=small, **QUIET)
    with pytest.raises(ValueError, match=r"'norm': 'batch'.*not.*'norm': 'layer'"):
        run(an_experiment(norm="layer"), tmp_path, data=small, **QUIET)


def test_the_network_of_larger_images_takes_larger_images(tmp_path):
    data = stand_in(60, 20)
    larger = replace(
        data,
        train_images=data.train_images.repeat_interleave(2, 2).repeat_interleave(2, 3),
        test_images=data.test_images.repeat_interleave(2, 2).repeat_interleave(2, 3),
    )
    net, _ = run(an_experiment(limit=None), tmp_path, data=larger, **QUIET)
    assert net.preprocessing.size == 64
    assert net.transform(larger.test_images).shape == (20, 3, 64, 64)


@pytest.mark.parametrize("ending", [".json", ".pt"])
def test_what_cannot_be_written_is_refused_before_training(small, tmp_path, monkeypatch, ending):
    monkeypatch.setattr("lab.training.train", None)
    (tmp_path / f"mine-limit-200-seed0{ending}").mkdir()
    with pytest.raises(ValueError, match="is a folder"):
        run(an_experiment(), tmp_path, data=small, **QUIET)
    with pytest.raises(ValueError, match="classes"):
        run(an_experiment("other"), tmp_path, data=replace(small, classes=tuple(range(10))), **QUIET)
    assert len([*tmp_path.iterdir()]) == 1


def test_experiments_can_be_kept_in_a_set():
    assert len({an_experiment(), an_experiment(), an_experiment(seed=1)}) == 2


def test_labels_in_any_script_have_files_of_their_own():
    stems = {Experiment(label).stem for label in ("\u00e9", "\u00fc", "a b", "a, b: c")}
    assert stems == {"\u00e9-seed0", "\u00fc-seed0", "a-b-seed0", "a-b-c-seed0"}


def test_the_data_set_is_loaded_if_none_is_given(tmp_path, monkeypatch):
    monkeypatch.setattr("lab.data.stand_in", lambda: stand_in(300, 100))
    history = run(an_experiment(limit=None), tmp_path, **QUIET).history
    assert history.data["train"]["images"] == 300


def test_an_error_after_an_epoch_loses_nothing_of_the_run(small, tmp_path):
    longer, seen = an_experiment(recipe=replace(SHORT, epochs=3)), []

    def fails_once(history: History) -> None:
        seen.append((history.name, history.epochs))
        if len(seen) == 2:
            raise RuntimeError("once")

    with pytest.raises(RuntimeError, match="once"):
        run(longer, tmp_path, data=small, on_epoch=fails_once, **QUIET)
    net, history = run(longer, tmp_path, data=small, on_epoch=fails_once, **QUIET)
    assert seen == [("mine-limit-200", epoch) for epoch in (1, 2, 3)]
    straight, _ = run(longer, tmp_path / "straight", data=small, **QUIET)
    assert all(map(torch.equal, net.state_dict().values(), straight.state_dict().values()))
    assert history.epochs == 3


# ---- Other data sets -------------------------------------------------------------------------------


def three_classes() -> Dataset:
    """Three of the stand-in's classes, as if they came from a folder called patterns."""
    data = stand_in(300, 90)
    parts = []
    for images, labels in ((data.train_images, data.train_labels), (data.test_images, data.test_labels)):
        parts += [images[labels < 3], labels[labels < 3]]
    return Dataset("folder patterns", ("a", "b", "c"), *parts, *pooled_statistics(parts[0]))


def test_names_say_the_data_set_unless_it_is_cifar10_or_stands_in_for_it():
    names = {
        dataset: an_experiment(dataset=dataset, limit=None, validation=5).stem
        for dataset in ("auto", "cifar10", "stand-in", "cifar100", "folder:my data/Some Flowers/")
    }
    assert names == {
        "auto": "mine-held-out-5-seed0",
        "cifar10": "mine-held-out-5-seed0",
        "stand-in": "mine-held-out-5-seed0",
        "cifar100": "mine-cifar100-held-out-5-seed0",
        "folder:my data/Some Flowers/": "mine-Some-Flowers-held-out-5-seed0",
    }


def test_a_network_for_other_classes_has_an_output_for_each_and_predicts_as_it_was_tested(tmp_path):
    data = three_classes()
    experiment = an_experiment(dataset="folder:patterns", limit=None)
    net, history = run(experiment, tmp_path, data=data, **QUIET)
    assert net.config["num_classes"] == 3
    assert (history.dataset, history.name) == ("folder patterns", "mine-patterns")
    again = Net.load(tmp_path / "mine-patterns-seed0.pt")
    assert (again.classes, again.preprocessing) == (("a", "b", "c"), (32, data.mean, data.std))
    predicted = [again.classes.index(each.label) for each in again.predict(data.test_images)]
    right = (torch.tensor(predicted) == data.test_labels).double().mean().item()
    assert right == pytest.approx(history.test_accuracy[-1], abs=0.02)
    assert History.load(tmp_path / "mine-patterns-seed0.json").data["train"]["std"] == [*data.std]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        by_hand = Net("batch", "mixed", width=0.25, num_classes=3)
    assert all(map(torch.equal, experiment.network(3).state_dict().values(), by_hand.state_dict().values()))


def test_a_teacher_of_other_classes_is_trained_on_them(tmp_path):
    data = three_classes()
    run(an_experiment(dataset="folder:patterns", recipe=TAUGHT, limit=None), tmp_path, data=data, **QUIET)
    (stem,) = teacher_files(tmp_path)
    assert stem == "teacher-1-epochs-batch-mixed-patterns-seed0"
    teacher = Net.load(tmp_path / f"{stem}.pt")
    assert teacher.config["num_classes"] == 3
    assert teacher.preprocessing.std == data.std


@pytest.mark.parametrize(
    ("dataset", "name"),
    [
        ("cifar10", STAND_IN),
        ("cifar10", "CIFAR-100"),
        ("cifar100", "CIFAR-10"),
        ("cifar100", STAND_IN),
        ("folder:photos", "CIFAR-10"),
        ("folder:photos", "folder pictures"),
    ],
)
def test_another_data_set_than_the_one_asked_for_is_refused(small, tmp_path, dataset, name):
    with pytest.raises(
        ValueError, match=rf"asks for dataset='{dataset}', and the data set is {re.escape(name)}"
    ):
        run(an_experiment(dataset=dataset), tmp_path, data=replace(small, name=name), **QUIET)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.real_data
def test_an_experiment_on_cifar10_is_what_the_records_say_that_are_older_than_the_other_data_sets(
    cifar10_root,
):
    published = History.load(HERE / "results" / "ladder" / "minute-batch-mixed-seed1.json")
    experiment = Experiment.named("minute", seed=1, dataset="cifar10")
    data = load_dataset("cifar10", cifar10_root)
    train_loader, test_loader = experiment.loaders(data, CPU)
    assert (experiment.name, data.name) == (published.name, published.dataset)
    assert {"train": train_loader.describe(), "test": test_loader.describe()} == published.data
    found = describe_network(experiment.network(len(data.classes)))
    for part in ("class", "config", "structure"):
        assert found[part] == published.network[part]


# ---- Teachers --------------------------------------------------------------------------------------

TAUGHT = replace(SHORT, teacher=replace(SHORT, lr=0.12), temperature=2.0)


def teacher_files(folder):
    return sorted(path.stem for path in folder.glob("teacher*.pt"))


def test_the_teacher_is_an_experiment_for_all_seeds_or_for_each_where_images_are_held_out():
    usual = replace(TAUGHT, teacher=RECIPES["teacher"])
    teacher = an_experiment(recipe=usual, norm="group", conv="dilated", seed=4).teacher
    assert teacher == an_experiment("teacher-batch-mixed", RECIPES["teacher"])
    teacher = an_experiment(recipe=TAUGHT, seed=4, validation=50).teacher
    assert teacher.stem == "teacher-1-epochs-batch-mixed-held-out-50-limit-200-seed4"
    assert an_experiment().teacher is None


def test_a_teacher_is_trained_once_and_teaches_every_seed(small, tmp_path):
    for seed in (1, 2):
        run(an_experiment(recipe=TAUGHT, seed=seed, norm="group"), tmp_path, data=small, **QUIET)
    assert teacher_files(tmp_path) == ["teacher-1-epochs-batch-mixed-limit-200-seed0"]
    made = History.from_dict(Net.load(tmp_path / f"{teacher_files(tmp_path)[0]}.pt").metadata)
    assert Recipe.from_dict(made.recipe) == TAUGHT.teacher


def test_the_epochs_of_a_teacher_are_not_handed_over(small, tmp_path):
    seen = []
    run(an_experiment(recipe=TAUGHT), tmp_path, data=small, on_epoch=seen.append, **QUIET)
    assert [history.name for history in seen] == ["mine-limit-200"]
    assert teacher_files(tmp_path)


def test_what_cannot_be_saved_or_built_is_refused_before_the_teacher_is_trained(small, tmp_path):
    taught = an_experiment(recipe=TAUGHT)
    (tmp_path / f"{taught.stem}.json").mkdir()
    with pytest.raises(ValueError, match="is a folder; give another folder"):
        run(taught, tmp_path, data=small, **QUIET)
    unbuilt = replace(taught, recipe=replace(TAUGHT, net={"width": -1}))
    with pytest.raises(ValueError, match="width=-1"):
        run(unbuilt, tmp_path, data=small, **QUIET)
    assert teacher_files(tmp_path) == []


def test_a_run_learns_the_probabilities_of_its_teacher_at_its_temperature(small, tmp_path, monkeypatch):
    learned = {}

    def watched(net, loader, test_loader, recipe, **options):
        learned[options["name"]] = loader
        return fit(net, loader, test_loader, recipe, **options)

    monkeypatch.setattr(lab.experiment, "fit", watched)
    run(an_experiment(recipe=TAUGHT), tmp_path, data=small, **QUIET)
    teacher = Net.load(tmp_path / f"{teacher_files(tmp_path)[0]}.pt")
    plain = learned["teacher-1-epochs-batch-mixed-limit-200"]
    expected = distilled(plain, teacher, 2.0, device="cpu", dtype=torch.float32).labels
    found = learned["mine-limit-200"].labels
    torch.testing.assert_close(found, expected)
    assert (expected - 0.1).abs().max() > 0.01


def test_a_teacher_without_the_record_of_its_training_is_refused_by_name(small, tmp_path):
    path = tmp_path / "teacher-1-epochs-batch-mixed-limit-200-seed0.pt"
    net = an_experiment(recipe=TAUGHT).teacher.network()
    for metadata in (None, {"name": "made here", "seed": 0}, {"data": {"train": 5}}):
        net.save(path, metadata)
        with pytest.raises(ValueError, match=rf"{path} is from another training, with no record of it"):
            run(an_experiment(recipe=TAUGHT), tmp_path, data=small, **QUIET)


def test_the_published_teacher_is_taken_if_it_fits_and_none_is_in_the_folder(
    small, tmp_path, monkeypatch, capsys
):
    published, own = tmp_path / "published", tmp_path / "own"
    run(an_experiment(recipe=TAUGHT), published, data=small, **QUIET)
    monkeypatch.setattr(lab.experiment, "PUBLISHED", published)
    capsys.readouterr()
    run(an_experiment(recipe=TAUGHT, seed=1), own, data=small, **QUIET)
    assert f"learning from {published}" in capsys.readouterr().err
    assert teacher_files(own) == []
    other = replace(TAUGHT, teacher=replace(TAUGHT.teacher, lr=0.01))
    run(an_experiment("other", recipe=other), own, data=small, **QUIET)
    assert f"learning from {own}" in capsys.readouterr().err
    # The one in the folder is from another training now: it is passed over, and stays.
    before = (own / f"{teacher_files(own)[0]}.pt").read_bytes()
    run(an_experiment(recipe=TAUGHT, seed=2), own, data=small, **QUIET)
    assert f"learning from {published}" in capsys.readouterr().err
    assert (own / f"{teacher_files(own)[0]}.pt").read_bytes() == before


def test_a_teacher_has_not_seen_the_images_that_are_held_out(small, tmp_path):
    for held_out, seed in ((50, 0), (60, 0), (60, 1)):
        run(an_experiment(recipe=TAUGHT, validation=held_out, seed=seed), tmp_path, data=small, **QUIET)
    assert teacher_files(tmp_path) == [
        "teacher-1-epochs-batch-mixed-held-out-50-limit-200-seed0",
        "teacher-1-epochs-batch-mixed-held-out-60-limit-200-seed0",
        "teacher-1-epochs-batch-mixed-held-out-60-limit-200-seed1",
    ]


def test_a_fresh_start_trains_the_teacher_again(small, tmp_path):
    run(an_experiment(recipe=TAUGHT), tmp_path, data=small, **QUIET)
    path = tmp_path / f"{teacher_files(tmp_path)[0]}.pt"
    path.unlink()
    checkpoint = path.with_suffix(".checkpoint")
    before = checkpoint.stat().st_mtime_ns
    run(an_experiment(recipe=TAUGHT), tmp_path, data=small, resume=False, **QUIET)
    assert checkpoint.stat().st_mtime_ns > before


def test_a_teacher_of_another_norm_is_refused(small, tmp_path):
    teacher = an_experiment(recipe=TAUGHT).teacher
    run(replace(teacher, norm="layer"), tmp_path, data=small, **QUIET)
    with pytest.raises(ValueError, match=r"norm and conv \('layer', 'mixed'\), not \('batch', 'mixed'\)"):
        run(an_experiment(recipe=TAUGHT), tmp_path, data=small, **QUIET)


def mirrored(data: Dataset) -> Dataset:
    return replace(data, train_images=data.train_images.flip(3))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"recipe": replace(TAUGHT, teacher=replace(TAUGHT.teacher, lr=0.01))},
            r"recipe \{'lr': 0.12\}, not",
        ),
        ({"data": lambda data: replace(data, name="X")}, "dataset 'STAND-IN.*not 'X'"),
        ({"data": mirrored}, "other training images"),
    ],
    ids=["recipe", "data set", "images"],
)
def test_a_teacher_from_another_training_is_refused(small, tmp_path, change, said):
    run(an_experiment(recipe=TAUGHT), tmp_path, data=small, **QUIET)
    data = change.get("data", lambda data: data)(small)
    experiment = an_experiment("other", recipe=change.get("recipe", TAUGHT))
    with pytest.raises(ValueError, match=rf"teacher-1-epochs.*is from another training, with {said}"):
        run(experiment, tmp_path, data=data, **QUIET)


# ---- Ablations -------------------------------------------------------------------------------------


def test_the_ablations_are_experiments_on_held_out_images():
    chosen = ablations("frontier-small", epochs=2, only=["labels", "sgd"], seed=3, validation=100)
    assert list(chosen) == ["labels", "sgd"]
    assert chosen["sgd"].name == "frontier-small-2-epochs-sgd-held-out-100"
    assert chosen["sgd"].recipe == ABLATIONS["sgd"](replace(RECIPES["frontier-small"], epochs=2))
    assert {each.seed for each in chosen.values()} == {3}
    assert list(ablations("frontier")) == list(ABLATIONS)
    with pytest.raises(ValueError, match="validation=0"):
        ablations("frontier", validation=0)
    with pytest.raises(ValueError, match=r"\['lr'\].*'no-cutout'"):
        ablations("frontier", only=["lr"])


def test_the_teacher_of_an_ablation_is_as_short_and_kept_apart():
    teacher = ablations("frontier", epochs=2, only=["teacher"], validation=100)["teacher"].teacher
    assert teacher.recipe == replace(RECIPES["teacher"], epochs=2)
    assert teacher.stem == "teacher-2-epochs-batch-mixed-held-out-100-seed0"


FRONTIERS = ("frontier", "frontier-small")


@pytest.mark.parametrize("name", FRONTIERS)
@pytest.mark.parametrize("change", ABLATIONS)
def test_an_ablation_changes_one_thing(name, change):
    recipe, labels = (ABLATIONS[each](RECIPES[name]).to_dict() for each in (change, "labels"))
    differ = {key for key, value in recipe.items() if value != labels[key]}
    if change == "teacher":
        # Its probabilities take the place of smoothed labels.
        assert differ == {"teacher", "temperature", "label_smoothing"}
    elif change == "sgd":
        assert differ == {"optimizer", "lr", "momentum", "weight_decay"}  # each has numbers of its own
    else:
        assert len(differ) == (change != "labels")


@pytest.mark.parametrize("name", FRONTIERS)
def test_the_ablations_are_of_the_recipe_but_for_its_teacher_and_length(name):
    recipe = dataclasses.replace(RECIPES[name], epochs=3)
    labels = dataclasses.replace(recipe, teacher=None, temperature=1.0, label_smoothing=0.1)
    assert ABLATIONS["labels"](recipe) == labels
    teacher = dataclasses.replace(recipe.teacher, epochs=3)
    assert ABLATIONS["teacher"](recipe) == dataclasses.replace(recipe, teacher=teacher)


@pytest.mark.parametrize("name", FRONTIERS)
def test_the_ablations_of_the_network_change_what_they_are_called_after(name):
    def rows(change):
        return [row for stage in ABLATIONS[change](RECIPES[name]).net["stages"] for row in stage]

    whole, strided, plain = (rows(change) for change in ("labels", "first-row-strided", "no-dilation"))
    assert strided == [(*whole[0][:2], 2), *whole[1:]]
    changed = [(old, new) for old, new in zip(whole, plain, strict=True) if old != new]
    assert [(old[1], new[1]) for old, new in changed] == [("dilated", "standard")]
    assert all((old[0], old[2]) == (new[0], new[2]) for old, new in changed)


# ---- What a run says of its images, and of its end -------------------------------------------------


def test_a_record_says_which_images_were_right(tmp_path):
    experiment = an_experiment()
    data = stand_in(300, 100)
    net, history = run(experiment, tmp_path, data=data, **QUIET)
    _, test_loader = experiment.loaders(data, CPU)
    logits, labels = evaluate(net, test_loader, dtype=torch.float32)
    assert history.rights().tolist() == (logits.argmax(1) == labels).tolist()


def test_a_run_that_diverges_leaves_a_record_that_says_so(tmp_path):
    recipe = replace(SHORT, optimizer="sgd", lr=1e30, epochs=2)
    experiment = an_experiment(recipe=recipe, norm="none")
    with pytest.raises(Diverged):
        run(experiment, tmp_path, data=stand_in(300, 100), **QUIET)
    history = History.load(tmp_path / f"{experiment.stem}.json")
    assert history.is_complete
    assert history.diverged.startswith("the loss is")
    assert history.epochs < 2
