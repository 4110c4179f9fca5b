"""How to compute on the machine at hand: number format, memory layout and threads, found by timing.

What is timed is a training step of a copy of the network on random images, so that the network's own steps
are never experiments: timing changes nothing in a run until it leads to another choice. Results in one format
and with one number of threads are equal to the last bit; with another they differ in the last bits.
"""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from lab.checks import as_integer
from lab.fast import fast_layers
from lab.loaders import random_states_kept
from lab.machine import clocked, keep_freed_memory, number_format
from lab.records import describe_network

LAYOUTS = {"channels_last": torch.channels_last, "channels_first": torch.contiguous_format}
SECONDS = 2.0  # that timing the formats may take, about
FEW_IMAGES = 16  # in the first round, after which slow formats are dropped
DROPPED = 1.5  # times the fastest in the first round
ROUNDS = 4  # of timings with a whole batch
CLEARLY = 0.97  # times the step in the first format: what another must beat to be preferred


class Format(NamedTuple):
    """The number format of convolutions, and the order of a map's values in memory."""

    dtype: torch.dtype
    layout: torch.memory_format = torch.channels_last

    def __str__(self) -> str:
        layout = next(name for name, layout in LAYOUTS.items() if layout == self.layout)
        return f"{str(self.dtype).removeprefix('torch.')} {layout}"

    @classmethod
    def named(cls, text: str) -> Format:
        """The format whose text this is, such as "bfloat16 channels_last"."""
        dtype, layout = text.split()
        return cls(getattr(torch, dtype), LAYOUTS[layout])


class Choice(NamedTuple):
    """The format chosen for a network, and the microseconds per image of a step in each that was timed."""

    format: Format
    microseconds: dict[str, float]


_chosen: dict[tuple, Choice] = {}  # in this process
_latest: dict[tuple, Format] = {}


def fastest_format(
    net: nn.Module,
    shape: Sequence[int],
    device: torch.device,
    layouts: Sequence[torch.memory_format] = tuple(LAYOUTS.values()),
    threads: int | None = None,
) -> Choice:
    """The format in which a training step of `net` on images of `shape` (N, C, H, W) is fastest.

    On a CPU, found once a process for each such network and shape, by timing with `threads`, or with torch's
    number, or with fewer on a busy machine. This takes about two seconds, more only if a step on a single
    image is slow, and leaves the network, its gradients and the random states as they are. On a GPU, and for
    a network that cannot be copied or run on random images, the format is the one that the hardware is made
    for (`number_format`), with channels last, and nothing is timed.
    """
    network = describe_network(net)["structure"], str(device)
    key = (*network, tuple(shape), tuple(layouts), threads or torch.get_num_threads())
    if key not in _chosen:
        _chosen[key] = _timed(net, tuple(shape), device, layouts, threads)
    _latest[network] = _chosen[key].format
    return _chosen[key]


def known_format(net: nn.Module, device: torch.device) -> torch.dtype:
    """The number format found for training such a network in this process; without it, the hardware's."""
    if _latest and (known := _latest.get((describe_network(net)["structure"], str(device)))):
        return known.dtype
    return number_format(device)


def _timed(net: nn.Module, shape: tuple[int, ...], device: torch.device, layouts, threads) -> Choice:
    hardware = number_format(device)
    formats = [Format(hardware, layout) for layout in layouts]
    if torch.float32 != hardware:
        formats += [Format(torch.float32, layout) for layout in layouts]
    elif device.type == "cpu" and _bfloat16_is_computed():
        formats += [Format(torch.bfloat16, layout) for layout in layouts]
    if device.type != "cpu" or len(formats) == 1:
        return Choice(formats[0], {})
    end = time.perf_counter() + SECONDS
    few = _few(net, shape, device, formats)
    if few is None:
        return Choice(formats[0], {})
    # The machine may be busy: then threads that wait for each other would drown the differences.
    with threads_for(net, device, formats[0], few, FEW_STEPS, threads) as pace:
        pace.search(0.5)
        times = _times(net, few, device, formats, end, rounds=2)
        kept = [each for each in times if times[each] <= DROPPED * min(times.values())]
        took = sum(times[each] for each in kept) * shape[0] / few[0]  # a round with whole batches, about
        # As many images as there is time for: on few, the order of the formats can be another.
        images = min(shape[0], int(shape[0] * (end - time.perf_counter()) / (3 * took))) if took else 0
        if len(kept) > 1 and images > few[0]:
            more = _times(net, (images, *shape[1:]), device, kept, end, ROUNDS)
            if len(more) == len(kept):
                times, few = more, (images, *shape[1:])
    if not times:
        return Choice(formats[0], {})
    quickest = min(times, key=lambda each: times[each])
    chosen = quickest if times[quickest] < CLEARLY * times[kept[0]] else kept[0]
    return Choice(chosen, {str(each): round(1e6 * times[each] / few[0], 1) for each in times})


def _few(net, shape: tuple[int, ...], device, formats: Iterable[Format]) -> tuple[int, ...] | None:
    """The shape of so few images that a step is short beside SECONDS; None if no step can be timed."""
    for each in formats:
        try:
            images = min(FEW_IMAGES // 4, shape[0])
            step = Step(net, (images, *shape[1:]), device, each)
            step.seconds()  # warms up
            took = step.seconds()
        except Exception:  # anybody's network: it may refuse to be copied, or random images, or a format
            continue
        short = SECONDS / 20
        few = min(FEW_IMAGES, shape[0]) if took <= short / 4 else images if took <= short else 1
        return few, *shape[1:]
    return None


def _bfloat16_is_computed() -> bool:
    """Whether oneDNN computes bfloat16 at all here; else torch has a reference implementation only."""
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _times(
    net: nn.Module, shape: tuple[int, ...], device, formats: Sequence[Format], end: float, rounds: int
) -> dict[Format, float]:
    """Seconds of a step in each format, the best of several rounds, one after the other in each round.

    The first round warms up and counts only if time is too short for another before `end`. Formats that fail
    are left out.
    """
    steps = {}
    for each in formats:
        try:
            steps[each] = Step(net, shape, device, each)
        except Exception:  # anybody's network: it may refuse to be copied
            return {}
    times: dict[Format, list[float]] = {}
    for round_ in range(rounds + 1):
        for each, step in steps.items():
            if round_ and time.perf_counter() + times[each][-1] > end:
                continue
            try:
                times.setdefault(each, []).append(step.seconds())
            except Exception:  # a number format that it cannot compute in
                times[each] = [math.inf]
    best = {each: min(found[1:] or found) for each, found in times.items()}
    return {each: seconds for each, seconds in best.items() if math.isfinite(seconds)}


class Step:
    """A training step, without the optimizer's part, of a copy of a network on random images."""

    def __init__(self, net: nn.Module, shape: Sequence[int], device: torch.device, format: Format):
        self.device, self.format = device, format
        memo: dict[int, Any] = {}  # hooks are the user's, and are not copied
        for module in net.modules():
            for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
                memo[id(getattr(module, hooks))] = OrderedDict()
        self.net = copy.deepcopy(net, memo).to(device).to(memory_format=format.layout).train()
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(*shape, generator=generator, dtype=torch.float32, device="cpu")
        self.images = images.to(
            device, memory_format=format.layout if len(shape) == 4 else torch.preserve_format
        )

    def seconds(self) -> float:
        """Take a step, and return its seconds."""
        keep_freed_memory()
        with random_states_kept(self.device), fast_layers(self.net, self.device), torch.enable_grad():
            return clocked(self._once, self.device)

    def _once(self) -> None:
        dtype = self.format.dtype
        with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32, cache_enabled=False):
            logits = self.net(self.images)
        logits.float().square().mean().backward()
        self.net.zero_grad(set_to_none=True)


# ---- Threads ---------------------------------------------------------------------------------------

RECENT = 5  # steps whose median is compared with what is usual
SLOWER = 1.3  # times what is usual: then something else has begun to use the processor
FASTER = 0.95  # times the present step: what another number of threads must beat
PAUSE = 4.0  # seconds at least between two searches
SHARE = 1 / 30  # of the time, which searches may take
FEW_STEPS = 50  # a run with fewer is over before a search has paid


class Threads:
    """The number of threads of a run on a CPU: as many as torch has, or fewer on a busy machine.

    Beside another program, at the end of every operation all threads wait for the one that had to share its
    core, and a single thread is faster. So when steps become clearly longer than they were, a step is timed
    with half as many threads, and the faster number is kept; now and then, while threads are unused, a step
    is timed with twice as many. The searches take at most about a thirtieth of the time.
    """

    def __init__(
        self,
        most: int,
        timed: Callable[[int], float] | None,
        clock: Callable[[], float] = time.perf_counter,
        apply: Callable[[int], None] = torch.set_num_threads,
    ):
        """most: threads at most. timed: seconds of a step with that many threads; None fixes the number."""
        self.most = self.count = most
        self.used: set[int] = set()  # numbers of threads in the steps since it was last emptied
        self._timed, self._clock, self._apply = timed, clock, apply
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._usual = math.inf  # seconds of a step
        self._scale = 1.0
        self._began: float | None = None  # the step
        self._next = -math.inf  # the time of the next search

    def before_step(self, scale: float = 1.0) -> None:
        """To be called before each step. scale: the factor on the sides of its images."""
        now = self._clock()
        if self._next == -math.inf:
            self.search(0.5)
        if self._began is not None:
            self._recent.append(now - self._began)
        if scale != self._scale:  # larger images may take longer, in proportion to their pixels
            self._usual *= max(1.0, (scale / self._scale) ** 2)
            self._scale = scale
            self._recent.clear()
        if len(self._recent) == RECENT:
            typical = statistics.median(self._recent)
            if typical <= SLOWER * self._usual:
                self._usual = min(self._usual, typical)
            elif now >= self._next:
                self.search(0.5)
        if self.count < self.most and self._clock() >= self._next:
            self.search(2)
        self.used.add(self.count)
        self._began = self._clock()

    def pause(self) -> None:
        """What follows is not a step."""
        self._began = None

    def search(self, factor: float) -> None:
        """Change the number of threads by `factor` as long as a step becomes faster."""
        if self._timed is None:
            return
        began = self._clock()
        try:
            while True:
                other = min(int(factor * self.count), self.most)
                if other in (0, self.count) or not self._beats(other, self._timed):
                    break
                self.count = other
        except Exception:  # the copy that is timed is anybody's network; the run itself goes on
            self._timed = None
        self._apply(self.count)
        self._usual = math.inf
        self._recent.clear()
        now = self._clock()
        self._next = now + max(PAUSE, (now - began) / SHARE)

    def _beats(self, other: int, timed: Callable[[int], float]) -> bool:
        times: dict[int, list[float]] = {self.count: [], other: []}
        for _ in range(3):  # the first warms up
            for count, found in times.items():
                self._apply(count)
                found.append(timed(count))
            ratio = times[other][0] / times[self.count][0]
            if not 0.5 <= ratio <= 2:  # clear at once
                return ratio < 1
        return min(times[other][1:]) < FASTER * min(times[self.count][1:])


@contextmanager
def threads_for(
    net: nn.Module,
    device: torch.device,
    format: Format,
    shape: Sequence[int],
    steps: int,
    threads: int | None = None,
) -> Iterator[Threads]:
    """The number of threads in the context: `threads`, or found by timing. At the end it is as before.

    net, device, format, shape: what trains, as for `fastest_format`. steps: of the run; one with few steps
    keeps torch's number.
    """
    before = torch.get_num_threads()
    adapts = threads is None and device.type == "cpu" and before > 1 and steps >= FEW_STEPS
    most = before if threads is None else as_integer("threads", threads, 1)
    pace = Threads(most, _step_timer(net, shape, device, format) if adapts else None)
    try:
        torch.set_num_threads(most)
        yield pace
    finally:
        torch.set_num_threads(before)


def _step_timer(net, shape, device, format: Format) -> Callable[[int], float] | None:
    try:
        step = Step(net, shape, device, format)
        step.seconds()
    except Exception:  # anybody's network: it may refuse to be copied
        return None
    return lambda count: step.seconds()
