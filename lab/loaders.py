"""What a run needs to know of its loaders, ours or anybody's, and how it makes them repeat themselves."""

from __future__ import annotations

import hashlib
import random
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FunctionType, GeneratorType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lab.data import Loader, as_integer

# ---- Random states ---------------------------------------------------------------------------------


@contextmanager
def random_states_kept(device: torch.device) -> Iterator[None]:
    """Put back the global random states of torch (CPU and `device`), NumPy and Python at the end."""
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()
    gpus = torch.cuda.get_rng_state_all() if device.type == "cuda" or torch.cuda.is_initialized() else []
    mps = torch.mps.get_rng_state() if device.type == "mps" else None
    try:
        yield
    finally:
        torch.set_rng_state(before[0])
        np.random.set_state(before[1])
        random.setstate(before[2])
        if gpus:
            torch.cuda.set_rng_state_all(gpus)
        if mps is not None:
            torch.mps.set_rng_state(mps)


def epoch_seed(seed: int, epoch: int) -> int:
    """The seed of everything random in an epoch, in [0, 2 ** 64)."""
    return ((seed + 1) * 1_000_003 + epoch) % 2**64


def rewind(loader, seed: int, epoch: int) -> None:
    """Make what follows a function of `seed` and `epoch` only, whatever ran before.

    Seeds torch, NumPy and Python, and every generator found in the loader, its samplers and its data set;
    tells each of these the epoch if it has `set_epoch`; and ends persistent workers, whose random states
    cannot be set, so that new ones start. This is what makes a resumed run equal to an unbroken one.
    """
    value = epoch_seed(seed, epoch)
    torch.manual_seed(value)
    np.random.seed(value % 2**32)
    random.seed(value)
    if isinstance(loader, Loader):
        loader.seed, loader.epoch = seed, epoch
        return
    for number, generator in enumerate(_generators(loader)):
        _reseed(generator, (value + number) % 2**64)
    for part in _parts(loader):
        if callable(getattr(part, "set_epoch", None)):
            part.set_epoch(epoch)
    if getattr(loader, "persistent_workers", False):
        loader._iterator = None


@contextmanager
def loader_kept(loader) -> Iterator[None]:
    """Put back a loader's seed and epoch, those of its samplers, and its generators' states at the end."""
    numbers = [
        (part, name, vars(part)[name])
        for part in _parts(loader)
        for name in ("seed", "epoch")
        if name in getattr(part, "__dict__", {})
    ]
    states = [(generator, _state(generator)) for generator in _generators(loader)]
    try:
        yield
    finally:
        for part, name, number in numbers:
            setattr(part, name, number)
        for generator, state in states:
            _set_state(generator, state)


Generator = torch.Generator | np.random.Generator | np.random.RandomState | random.Random
MOST = 64  # elements of a container that is searched; a longer one holds data


def _parts(loader) -> list:
    """The loader, its samplers and its data set, each once."""
    batches = getattr(loader, "batch_sampler", None)
    parts = [loader, getattr(loader, "sampler", None), batches]
    parts += [getattr(batches, "sampler", None), getattr(loader, "dataset", None)]
    return list({id(part): part for part in parts if part is not None}.values())


def _generators(loader) -> list[Generator]:
    """Every random generator that can be reached from the loader's attributes, in a fixed order."""
    found: list[Generator] = []
    seen: set[int] = set()
    waiting: deque[tuple[Any, int]] = deque([(loader, 0)])
    while waiting:
        thing, depth = waiting.popleft()
        if id(thing) in seen or depth > 6:
            continue
        seen.add(id(thing))
        if isinstance(thing, Generator):
            found.append(thing)
        elif isinstance(thing, dict):
            waiting.extend((part, depth + 1) for part in thing.values() if len(thing) <= MOST)
        elif isinstance(thing, list | tuple | set):
            waiting.extend((part, depth + 1) for part in thing if len(thing) <= MOST)
        elif not isinstance(thing, Tensor | np.ndarray | type | ModuleType | FunctionType):
            waiting.extend((part, depth + 1) for part in getattr(thing, "__dict__", {}).values())
    return found


def _reseed(generator: Generator, seed: int) -> None:
    if isinstance(generator, torch.Generator):
        generator.manual_seed(seed)
    elif isinstance(generator, np.random.Generator):
        bits: Any = generator.bit_generator
        bits.state = type(bits)(seed).state
    else:
        generator.seed(seed % 2**32)


def _state(generator: Generator):
    if isinstance(generator, random.Random):
        return generator.getstate()
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    return generator.get_state()


def _set_state(generator: Generator, state) -> None:
    if isinstance(generator, random.Random):
        generator.setstate(state)
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    else:
        generator.set_state(state)


# ---- Descriptions ----------------------------------------------------------------------------------


def seed_of(seed, loader) -> int:
    """The seed of a run: `seed`, or if None the loader's own, or 0 if it has none.

    Any integer: Python's, NumPy's or a torch seed. Raises ValueError for anything else.
    """
    if seed is None:
        return loader.seed if isinstance(loader, Loader) else 0
    return as_integer("seed", seed)


def batches_of(loader) -> int:
    """The number of batches in an epoch. Raises ValueError if the loader does not know it, or has none."""
    try:
        batches = len(loader)
    except TypeError as error:
        raise ValueError(
            f"{type(loader).__name__} has no len(), and the schedule needs the number of batches in "
            "an epoch: wrap the loader in a class with __len__, or give a list of batches"
        ) from error
    if batches < 1:
        raise ValueError("the loader yields no batch")
    return batches


def describe_loader(loader, seed: int) -> dict[str, Any]:
    """What a loader yields, as plain data that identifies it.

    Ours is described in full. For anybody's: its type, length, batch size, sampler and data set, and a
    digest of its first batch at `seed`, which is drawn so that the loader and the random states stay as
    they were.
    """
    if isinstance(loader, Loader):
        return loader.describe()
    sized = hasattr(loader, "__len__")
    sampler, dataset = getattr(loader, "sampler", None), getattr(loader, "dataset", None)
    batch = first_batch(loader, seed)
    return {
        "loader": type(loader).__name__,
        "batches": batches_of(loader) if sized else None,
        "batch_size": len(batch[1]),
        "sampler": None if sampler is None else type(sampler).__name__,
        "dataset": None if dataset is None else type(dataset).__name__,
        "first_batch": _digest(batch),
    }


def repeats_itself(loader, seed: int) -> bool:
    """Whether two draws of the first batch from the same seed are equal."""
    if isinstance(loader, Loader):
        return True
    return _digest(first_batch(loader, seed)) == _digest(first_batch(loader, seed))


def first_batch(loader, seed: int) -> tuple[Tensor, Tensor]:
    """The first batch of epoch 0 at `seed`; the loader and the random states stay as they were.

    A DataLoader's workers are not started: its batch is put together in this process.
    """
    if isinstance(loader, GeneratorType):
        raise ValueError("the loader is a generator, which can be read only once: give a list of its batches")
    attributes = dict(getattr(loader, "__dict__", {}))  # a loader may count its passes, say
    with random_states_kept(torch.device("cpu")), loader_kept(loader):
        rewind(loader, seed, 0)
        batch = next(iter(_without_workers(loader)), None)
        if attributes:
            loader.__dict__.clear()
            loader.__dict__.update(attributes)
    if batch is None:
        raise ValueError("the loader yields no batch")
    if not isinstance(batch, tuple | list) or [isinstance(part, Tensor) for part in batch] != [True, True]:
        kinds = [type(part).__name__ for part in batch] if isinstance(batch, tuple | list) else [batch]
        raise ValueError(f"the loader's first batch holds {kinds}: expected two tensors, images and labels")
    images, labels = batch
    return images, labels


def _without_workers(loader) -> Iterable:
    if not isinstance(loader, torch.utils.data.DataLoader) or loader.num_workers == 0:
        return loader
    if loader.batch_sampler is None or isinstance(loader.dataset, torch.utils.data.IterableDataset):
        return loader
    torch.empty((), dtype=torch.int64).random_(generator=loader.generator)  # the workers' seed
    collate = loader.collate_fn
    return (collate([loader.dataset[index] for index in indices]) for indices in loader.batch_sampler)


def _digest(batch: tuple[Tensor, Tensor]) -> str:
    found = hashlib.sha256()
    for tensor in batch:
        found.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]
