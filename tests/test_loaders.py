"""lab/loaders.py: descriptions, seeds and states of anybody's loaders."""

import contextlib
import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, RandomSampler, TensorDataset

from lab.data import Augment, Loader, epoch_seed
from lab.loaders import (
    batches_of,
    describe_loader,
    first_batch,
    loader_kept,
    random_states_kept,
    repeats_itself,
    rewind,
    seed_of,
)

CPU = torch.device("cpu")
IMAGES = torch.randn(12, 3, 16, 16, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(12) % 3


def ours(seed=0, **options) -> Loader:
    pixels = (IMAGES * 40 + 128).clamp(0, 255).to(torch.uint8)
    options = {"augment": Augment(), "shuffle": True} | options
    return Loader(pixels, LABELS, batch_size=5, seed=seed, **options)


def theirs(images=IMAGES, **options) -> DataLoader:
    return DataLoader(TensorDataset(images, LABELS), **{"batch_size": 5, "shuffle": True} | options)


class Noisy(Dataset):
    """Adds noise from the random source named to each image."""

    def __init__(self, source: str):
        self.source = source
        self.own = np.random.default_rng(7)
        self.torchs = torch.Generator().manual_seed(7)
        self.pythons = random.Random(7)

    def __len__(self):
        return 12

    def __getitem__(self, index):
        noise = {
            "numpy": lambda: np.random.rand(),
            "random": lambda: random.random(),
            "torch": lambda: torch.rand(()).item(),
            "own numpy": lambda: self.own.random(),
            "own torch": lambda: torch.rand((), generator=self.torchs).item(),
            "own random": lambda: self.pythons.random(),
            "system": lambda: random.SystemRandom().random(),
        }[self.source]()
        return IMAGES[index] + noise, index % 3


SEEDED = ["numpy", "random", "torch", "own numpy", "own torch", "own random"]


def states():
    return torch.get_rng_state().tolist(), repr(np.random.get_state()), random.getstate()


# ---- Random states ---------------------------------------------------------------------------------


def test_random_states_are_put_back_also_after_an_exception():
    before = states()
    with contextlib.suppress(RuntimeError), random_states_kept(CPU):
        torch.rand(3), np.random.rand(), random.random()
        raise RuntimeError
    assert states() == before


def test_the_seed_of_an_epoch_is_within_64_bits_and_simple_for_small_seeds():
    assert epoch_seed(0, 0) == 1_000_003
    assert epoch_seed(2, 5) == 3_000_014
    for seed in (2**70, -5, torch.initial_seed()):
        assert 0 <= epoch_seed(seed, 3) < 2**64
    assert epoch_seed(2**70, 3) != epoch_seed(2**70 + 1, 3)


@pytest.mark.parametrize("source", SEEDED)
@pytest.mark.parametrize("workers", [{}, {"num_workers": 1}, {"num_workers": 1, "persistent_workers": True}])
def test_a_rewound_loader_repeats_the_epoch_and_another_epoch_differs(source, workers):
    def epoch(number):
        rewind(loader, 3, number)
        return torch.cat([images for images, _ in loader])

    loader = DataLoader(Noisy(source), 5, shuffle=True, **workers)
    with random_states_kept(CPU):
        first, second, again = epoch(0), epoch(1), epoch(0)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


def test_a_rewound_loader_does_not_depend_on_what_ran_before():
    one, other = (theirs(generator=torch.Generator().manual_seed(seed)) for seed in (5, 6))
    other_batches = iter(other)
    next(other_batches)
    with random_states_kept(CPU):
        batches = []
        for loader in (one, other):
            rewind(loader, 1, 2)
            batches.append(torch.cat([images for images, _ in loader]))
    assert torch.equal(*batches)


def test_every_part_with_set_epoch_is_told_the_epoch():
    class Sampler(RandomSampler):
        told = ()

        def set_epoch(self, epoch):
            self.told += (epoch,)

    sampler = Sampler(LABELS)
    loader = theirs(shuffle=False, sampler=sampler)
    loader.dataset.set_epoch = lambda epoch: told.append(epoch)
    told = []
    with random_states_kept(CPU):
        rewind(loader, 0, 4)
        rewind(loader, 0, 5)
    assert sampler.told == (4, 5)
    assert told == [4, 5]


def test_a_loader_s_generators_seed_and_epoch_are_put_back():
    generator = torch.Generator().manual_seed(5)
    loader, own = theirs(generator=generator), ours(seed=5)
    own.epoch = 3
    before = generator.get_state()
    noisy = DataLoader(Noisy("own numpy"), 5)
    state = noisy.dataset.own.bit_generator.state
    with random_states_kept(CPU):
        for each in (loader, own, noisy):
            with loader_kept(each):
                rewind(each, 0, 0)
                list(each)
    assert torch.equal(generator.get_state(), before)
    assert (own.seed, own.epoch) == (5, 3)
    assert noisy.dataset.own.bit_generator.state == state


def test_each_generator_gets_a_seed_of_its_own_however_deep_it_is():
    class Holder:
        def __init__(self, part):
            self.part = part

    deep = Holder([Holder({"a": torch.Generator()})])
    loader = DataLoader(Noisy("own torch"), 5, shuffle=True, generator=torch.Generator())
    loader.dataset.more = deep
    with random_states_kept(CPU):
        rewind(loader, 1, 2)
    found = [loader.generator, loader.dataset.torchs, deep.part[0].part["a"]]
    assert len({generator.initial_seed() for generator in found}) == 3
    assert loader.generator.initial_seed() == epoch_seed(1, 2)


# ---- Descriptions ----------------------------------------------------------------------------------


def test_the_seed_is_the_one_given_or_the_loader_s_own_or_0():
    assert seed_of(3, ours(seed=5)) == 3
    assert seed_of(None, ours(seed=5)) == 5
    assert seed_of(None, theirs()) == 0
    assert type(seed_of(np.int64(3), theirs())) is int


@pytest.mark.parametrize("seed", [1.5, "1", [1]])
def test_a_seed_that_is_not_an_integer_is_refused(seed):
    with pytest.raises(ValueError, match="seed="):
        seed_of(seed, theirs())


def test_the_number_of_batches_must_be_known_and_not_0():
    class Stream:
        def __iter__(self):
            yield IMAGES, LABELS

    assert batches_of(theirs()) == 3
    with pytest.raises(ValueError, match=r"Stream has no len\(\)"):
        batches_of(Stream())
    with pytest.raises(ValueError, match="no batch"):
        batches_of([])


@pytest.mark.parametrize("workers", [0, 1])
def test_the_first_batch_is_that_of_the_first_epoch_and_drawing_it_disturbs_nothing(workers):
    generator = torch.Generator().manual_seed(5)
    loader = theirs(generator=generator, num_workers=workers)
    before, generators = states(), generator.get_state()
    images, labels = first_batch(loader, 3)
    assert states() == before
    assert torch.equal(generator.get_state(), generators)
    with random_states_kept(CPU):
        rewind(loader, 3, 0)
        expected = next(iter(loader))
    assert torch.equal(images, expected[0])
    assert torch.equal(labels, expected[1])


def test_a_loader_that_counts_its_passes_does_not_count_this_one():
    class Counted:
        passes = 0

        def __len__(self):
            return 1

        def __iter__(self):
            self.passes += 1
            yield IMAGES, LABELS

    loader = Counted()
    loader.passes = 2
    describe_loader(loader, 0)
    assert loader.passes == 2


def test_a_foreign_loader_is_described_by_type_length_sampler_and_first_batch():
    found = describe_loader(theirs(), 0)
    assert (found["loader"], found["batches"], found["batch_size"]) == ("DataLoader", 3, 5)
    assert (found["sampler"], found["dataset"]) == ("RandomSampler", "TensorDataset")
    assert describe_loader(theirs(), 0) == found
    seeded = [theirs(generator=torch.Generator().manual_seed(seed)) for seed in (8, 9)]
    assert describe_loader(seeded[0], 0) == describe_loader(seeded[1], 0)
    others = [theirs(IMAGES + 0.001), theirs(batch_size=4), theirs(shuffle=False)]
    assert all(describe_loader(each, 0) != found for each in others)
    assert describe_loader(theirs(), 1)["first_batch"] != found["first_batch"]


def test_our_loader_is_described_by_what_it_holds_and_does():
    found = describe_loader(ours(), 0)
    assert found["digest"] == ours().digest()
    assert (found["images"], found["batch_size"], found["shuffle"]) == (12, 5, True)
    assert found["augment"]["shift"] == 4


@pytest.mark.parametrize("source", [*SEEDED, "system"])
def test_a_loader_repeats_itself_unless_it_draws_from_what_cannot_be_seeded(source):
    loader = DataLoader(Noisy(source), 5, shuffle=True)
    assert repeats_itself(loader, 0, describe_loader(loader, 0)) == (source != "system")


def test_a_generator_is_refused_before_its_first_batch_is_lost():
    batches = (pair for pair in [(IMAGES, LABELS)])
    with pytest.raises(ValueError, match="read only once"):
        describe_loader(batches, 0)
    assert torch.equal(next(batches)[0], IMAGES)


@pytest.mark.parametrize(
    ("batch", "kinds"),
    [
        ((IMAGES, [0, 1]), r"\['Tensor', 'list'\]"),
        (("images", LABELS), r"\['str', 'Tensor'\]"),
        ((IMAGES, LABELS, LABELS), r"\['Tensor', 'Tensor', 'Tensor'\]"),
        (3, r"\['int'\]"),
    ],
)
def test_a_batch_that_is_not_a_pair_of_tensors_is_refused(batch, kinds):
    with pytest.raises(ValueError, match=f"holds {kinds}: expected two tensors"):
        first_batch([batch], 0)
