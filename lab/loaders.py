"""Describes and reseeds data loaders, ours and other people's, so that runs can be reproduced."""

from __future__ import annotations

import hashlib
import random
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from lab.checks import as_integer, check_label_kind
from lab.data import Loader, epoch_seed, tensor_digest

# ---- Random states ---------------------------------------------------------------------------------


def random_states(device: torch.device) -> dict[str, Any]:
    """The global random states of torch (CPU and `device`), NumPy and Python."""
    gpus = device.type == "cuda" or torch.cuda.is_initialized()
    return {
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state(),
        "python": random.getstate(),
        "cuda": torch.cuda.get_rng_state_all() if gpus else [],
        "mps": torch.mps.get_rng_state() if device.type == "mps" else None,
    }


def set_random_states(states: dict[str, Any]) -> None:
    """Set what `random_states` returned."""
    torch.set_rng_state(states["torch"])
    np.random.set_state(states["numpy"])
    random.setstate(states["python"])
    if states["cuda"]:
        torch.cuda.set_rng_state_all(states["cuda"])
    if states["mps"] is not None:
        torch.mps.set_rng_state(states["mps"])


@contextmanager
def random_states_kept(device: torch.device) -> Iterator[None]:
    """Restore the global random states of torch (CPU and `device`), NumPy and Python on exit."""
    before = random_states(device)
    try:
        yield
    finally:
        set_random_states(before)


def all_random_states(loader, net: nn.Module, device: torch.device) -> dict[str, Any]:
    """The global random states, and those of every generator that can be found in loader and network."""
    generators = [*_generators(loader), *_generators(net)]
    return random_states(device) | {"generators": [_state(generator) for generator in generators]}


class Rest:
    """The batches of an epoch after the first `done`, with the random states that were kept before them.

    The first batches are drawn again and dropped, so that the loader is where it was.
    """

    def __init__(self, loader, net: nn.Module, done: int, states: dict[str, Any]):
        self.loader, self.net, self.done, self.states = loader, net, done, states

    def __len__(self) -> int:
        return max(0, len(self.loader) - self.done)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        batches = iter(self.loader)
        deque(islice(batches, self.done), maxlen=0)
        set_random_states(self.states)
        generators = [*_generators(self.loader), *_generators(self.net)]
        for generator, state in zip(generators, self.states["generators"], strict=True):
            _set_state(generator, state)
        yield from batches


def rewind(loader, seed: int, epoch: int, net: nn.Module | None = None) -> None:
    """Reseed everything, so that the epoch depends only on `seed` and `epoch`.

    Seeds torch, NumPy and Python, and every generator that can be found in the loader, its samplers and
    data sets, and the network; tells each part of the loader that has `set_epoch` the epoch; and ends
    persistent workers, whose random states cannot be set, so that new ones start. This is what makes a
    resumed run equal to an unbroken one.
    """
    value = epoch_seed(seed, epoch)
    torch.manual_seed(value)
    np.random.seed(value % 2**32)
    random.seed(value)
    for number, generator in enumerate([*_generators(loader), *_generators(net)]):
        _reseed(generator, (value + number) % 2**64)
    for part in _parts(loader):
        if isinstance(part, Loader):
            part.seed, part.epoch = seed, epoch
        elif callable(getattr(part, "set_epoch", None)):
            part.set_epoch(epoch)
        if isinstance(part, DataLoader) and part.persistent_workers:
            part._iterator = None


@contextmanager
def loader_kept(loader) -> Iterator[None]:
    """Restore the seeds and epochs of a loader and its parts, and its generators' states, on exit."""
    numbers = [(part, name, value) for part in _parts(loader) for name, value in _counters(part).items()]
    states = [(generator, _state(generator)) for generator in _generators(loader)]
    try:
        yield
    finally:
        for part, name, value in numbers:
            setattr(part, name, value)
        for generator, state in states:
            _set_state(generator, state)


def _counters(part) -> dict[str, Any]:
    """A part's seed and epoch; if it is told the epoch, all its plain attributes, since any may hold it."""
    attributes = getattr(part, "__dict__", {})
    if hasattr(part, "set_epoch"):
        return {name: value for name, value in attributes.items() if isinstance(value, int | float | None)}
    return {name: attributes[name] for name in ("seed", "epoch") if name in attributes}


Generator = torch.Generator | np.random.Generator | np.random.RandomState | random.Random
MOST = 64  # elements of a container that is searched; a longer one holds data


def _reachable(thing) -> Iterator[Any]:
    """The object and all objects that can be reached from its attributes, each once, in a fixed order."""
    seen: set[int] = set()
    waiting: deque[tuple[Any, int]] = deque([(thing, 0)])
    while waiting:
        thing, depth = waiting.popleft()
        if id(thing) in seen or depth > 6:
            continue
        seen.add(id(thing))
        yield thing
        if isinstance(thing, dict):
            parts = list(thing.values())
        elif isinstance(thing, list | tuple | set):
            parts = list(thing) if len(thing) <= MOST else []
        elif isinstance(thing, Tensor | np.ndarray | Generator | type | ModuleType | FunctionType):
            parts = []
        else:
            parts = list(getattr(thing, "__dict__", {}).values())
        if not isinstance(thing, dict) or len(parts) <= MOST:
            waiting.extend((part, depth + 1) for part in parts)


def _parts(loader) -> list:
    """The loader, and the loaders, samplers and data sets in it."""
    kinds = (Loader, DataLoader, Sampler, Dataset)
    parts = [part for part in _reachable(loader) if isinstance(part, kinds) or hasattr(part, "set_epoch")]
    return parts if parts and parts[0] is loader else [loader, *parts]


def _generators(thing) -> list[Generator]:
    """Every random generator that can be reached, apart from the system's, which has no state."""
    found = [part for part in _reachable(thing) if isinstance(part, Generator)]
    return [generator for generator in found if not isinstance(generator, random.SystemRandom)]


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
            f"{type(loader).__name__} has no len(), but the schedule needs the batches in an epoch; "
            "wrap the loader in a class with __len__, or give a list of batches"
        ) from error
    if batches < 1:
        raise ValueError("the loader yields no batch")
    return batches


def describe_loader(loader, seed: int) -> dict[str, Any]:
    """What a loader yields, as plain data that identifies it.

    Ours is described in full. For any other loader: type, length, batch size, workers; type and length of
    the data set, and a digest of what it holds in memory; the sampler, and a digest of the first epoch's
    order; and a digest of the first batch. These are drawn at `seed` so that the loader and the random
    states stay as they were. Later batches that are read from files, say, are not covered.
    """
    if type(loader) is Loader:
        return loader.describe()
    described = loader.describe() if isinstance(loader, Loader) else {}
    batch = first_batch(loader, seed)
    sampler, dataset = getattr(loader, "sampler", None), getattr(loader, "dataset", None)
    if isinstance(loader, list | tuple):
        content = [part for each in loader for part in each if isinstance(part, Tensor)]
    else:
        content = [] if isinstance(loader, Loader) else _held(loader if dataset is None else dataset)
    return {
        **described,
        "loader": type(loader).__name__,
        "batches": len(loader) if hasattr(loader, "__len__") and not _is_stream(loader) else None,
        "batch_size": len(batch[1]),
        "shape": list(batch[0].shape),
        "workers": getattr(loader, "num_workers", 0),
        "sampler": None if sampler is None else type(sampler).__name__,
        "order": _order_digest(loader, seed),
        "dataset": None if dataset is None else type(dataset).__name__,
        "images": len(dataset) if hasattr(dataset, "__len__") else None,  # pyright: ignore[reportArgumentType]
        "content": tensor_digest(*content),
        "first_batch": tensor_digest(*batch),
    }


def batch_shape(loader, described: Sequence[int]) -> tuple[int, ...]:
    """The shape of a whole batch of images, (N, C, H, W). described: the shape in a foreign description."""
    if isinstance(loader, Loader):
        return min(loader.batch_size, len(loader.images)), *loader.images.shape[1:]
    return tuple(described)


def repeats_itself(loader, seed: int, described: dict[str, Any]) -> bool:
    """Whether another draw of the first batch from the same seed equals the one in the description."""
    return type(loader) is Loader or tensor_digest(*first_batch(loader, seed)) == described["first_batch"]


def first_batch(loader, seed: int) -> tuple[Tensor, Tensor]:
    """The first batch of epoch 0 at `seed`; the loader and the random states stay as they were."""
    if hasattr(loader, "__next__") and type(loader).__module__ in ("builtins", "itertools"):
        raise ValueError(
            f"the loader is a {type(loader).__name__}, which can be read only once; give a list of batches"
        )
    with _undisturbed(loader):
        rewind(loader, seed, 0)
        batch = next(iter(loader), None)
    if batch is None:
        raise ValueError("the loader yields no batch")
    return checked_batch(batch)


def checked_batch(batch) -> tuple[Tensor, Tensor]:
    """Images and labels of a batch that any loader yields.

    Raises ValueError unless they are two tensors: floating-point images (N, ...); and integer classes (N,)
    or probabilities (N, classes). The values are not looked at.
    """
    parts = list(batch) if isinstance(batch, tuple | list) else [batch]
    if [isinstance(part, Tensor) for part in parts] != [True, True]:
        kinds = [type(part).__name__ for part in parts]
        advice = "; torch.from_numpy makes a tensor of an array" * ("ndarray" in kinds)
        raise ValueError(f"a batch holds {kinds}: expected two tensors, images and labels{advice}")
    images, labels = parts
    found = f"images of {images.dtype} {tuple(images.shape)}"
    if not images.is_floating_point():
        raise ValueError(
            f"{found}: expected floating-point images; normalize(images) makes them of uint8 pixels"
        )
    if images.ndim == 0 or len(images) == 0:
        raise ValueError(f"{found}: expected (N, ...), with at least one image")
    check_label_kind(labels, len(images))
    return images, labels


@contextmanager
def _undisturbed(loader) -> Iterator[None]:
    """Restore random states, generators, and all attributes of the loader and its parts on exit."""
    attributes = [
        (part.__dict__, dict(part.__dict__)) for part in _parts(loader) if hasattr(part, "__dict__")
    ]
    with random_states_kept(torch.device("cpu")), loader_kept(loader):
        try:
            yield
        finally:
            for own, before in attributes:
                own.clear()
                own.update(before)


def _is_stream(loader) -> bool:
    return isinstance(getattr(loader, "dataset", None), torch.utils.data.IterableDataset)


def _order_digest(loader, seed: int) -> str | None:
    """A digest of the indices in the first epoch's batches; None if the loader does not go by indices."""
    if not isinstance(loader, DataLoader) or _is_stream(loader):
        return None
    with _undisturbed(loader):
        rewind(loader, seed, 0)
        torch.empty((), dtype=torch.int64).random_(generator=loader.generator)  # a pass draws this first
        order = list(loader.sampler if loader.batch_sampler is None else loader.batch_sampler)
    return hashlib.sha256(repr(order).encode()).hexdigest()[:16]


def _held(thing) -> Iterator[Tensor]:
    """The tensors, arrays and lists of numbers that a data set holds in memory, those inside it included."""
    for part in _reachable(thing):
        if isinstance(part, Tensor):
            yield part
        elif isinstance(part, np.ndarray) and part.dtype.kind in "biuf":
            yield torch.from_numpy(np.ascontiguousarray(part))
        elif isinstance(part, list | tuple) and part and all(isinstance(each, int | float) for each in part):
            yield torch.tensor(part, dtype=torch.float64)
