"""lab/tuning.py: the format and the number of threads are those that were timed faster."""

import copy
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import lab.tuning
from lab.data import loaders_from
from lab.fast import fast_layers
from lab.machine import number_format
from lab.recipes import Recipe
from lab.training import evaluate, fit, train
from lab.tuning import (
    FEW_STEPS,
    LAYOUTS,
    Choice,
    Format,
    Step,
    Threads,
    fastest_format,
    known_format,
    threads_for,
)
from model import CONVS, NORMS, Net

CPU = torch.device("cpu")
SHAPE = (8, 3, 32, 32)
HERE = Path(__file__).resolve().parent.parent
FORMATS = [Format(dtype, layout) for dtype in (torch.bfloat16, torch.float32) for layout in LAYOUTS.values()]
LONG = Recipe(epochs=5, batch_size=16, net={"width": 0.25})  # 50 steps on 160 images


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch):
    monkeypatch.setattr(lab.tuning, "_chosen", {})
    monkeypatch.setattr(lab.tuning, "_latest", {})


@pytest.fixture
def every_format(monkeypatch):
    """A processor that computes both number formats, whichever this one is."""
    monkeypatch.setattr(lab.tuning, "number_format", lambda device, dtype=None: dtype or torch.bfloat16)
    monkeypatch.setattr(lab.tuning, "_bfloat16_is_computed", lambda: True)


def taking(monkeypatch, seconds) -> list[tuple[Format, int]]:
    """Makes a step in each format take these seconds, or raise; returns the list of the steps taken."""
    steps = []

    def timed(step):
        steps.append((step.format, len(step.images)))
        found = seconds[step.format]
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(Step, "seconds", timed)
    return steps


def small_net(norm="batch", conv="mixed") -> Net:
    torch.manual_seed(0)
    return Net(norm, conv, width=0.25)


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


# ---- The format ------------------------------------------------------------------------------------


@pytest.mark.parametrize("fastest", FORMATS, ids=str)
def test_the_format_is_the_one_that_was_timed_faster(fastest, every_format, monkeypatch):
    taking(monkeypatch, {each: 0.009 if each == fastest else 0.010 for each in FORMATS})
    choice = fastest_format(small_net(), SHAPE, CPU)
    assert choice.format == fastest
    assert choice.microseconds == {str(each): 1125.0 if each == fastest else 1250.0 for each in FORMATS}


def test_formats_that_are_about_equal_give_the_first_so_that_noise_does_not_decide(every_format, monkeypatch):
    taking(monkeypatch, dict(zip(FORMATS, (0.0100, 0.0099, 0.0098, 0.0098), strict=True)))
    assert fastest_format(small_net(), SHAPE, CPU).format == FORMATS[0]


def test_a_slow_format_is_dropped_after_a_few_images(every_format, monkeypatch):
    steps = taking(monkeypatch, dict(zip(FORMATS, (0.01, 0.02, 0.01, 0.011), strict=True)))
    assert FORMATS[1] not in dict.fromkeys(fastest_format(small_net(), (64, 3, 32, 32), CPU).microseconds)
    assert (FORMATS[1], 16) in steps
    assert (FORMATS[1], 64) not in steps


def test_a_format_that_the_network_cannot_compute_in_is_left_out(every_format, monkeypatch):
    taking(
        monkeypatch,
        dict.fromkeys(FORMATS[:2], RuntimeError("no bfloat16 here")) | dict.fromkeys(FORMATS[2:], 9.0),
    )
    assert fastest_format(small_net(), SHAPE, CPU).format == FORMATS[2]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("seconds", [0.001, 0.02, 0.2, 1.0])  # of a step on 16 images
def test_timing_ends_within_two_seconds_and_times_every_format(seconds, threads, every_format, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    now = [0.0]

    def timed(step):
        took = seconds * len(step.images) / 16 * (1 if step.format == FORMATS[3] else 1.4)
        now[0] += took
        return took

    monkeypatch.setattr(Step, "seconds", timed)
    monkeypatch.setattr(lab.tuning.time, "perf_counter", lambda: now[0])
    choice = fastest_format(small_net(), (256, 3, 32, 32), CPU)
    assert choice.format == FORMATS[3]
    assert len(choice.microseconds) == 4
    assert now[0] <= (2.0 if seconds < 1 else 2.5)  # warming up on 16 and on 4 images alone takes a second


def test_a_format_is_found_once_a_process_for_each_network_and_shape(every_format, monkeypatch):
    steps = taking(monkeypatch, dict.fromkeys(FORMATS, 0.01))
    net = small_net()
    first = fastest_format(net, SHAPE, CPU)
    done = len(steps)
    assert fastest_format(copy.deepcopy(net), SHAPE, CPU) is first
    assert len(steps) == done
    fastest_format(net, (4, *SHAPE[1:]), CPU)
    assert len(steps) > done
    done = len(steps)
    fastest_format(small_net("group"), SHAPE, CPU)
    assert len(steps) > done


def test_timing_changes_nothing():
    net = small_net()
    net.register_forward_hook(lambda *_: pytest.fail("the user's hook was called"))
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    state = torch.get_rng_state()
    assert set(fastest_format(net, SHAPE, CPU).microseconds) <= set(map(str, FORMATS))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert net.training
    assert all(parameter.is_contiguous() for parameter in net.parameters())


def test_a_timing_given_a_number_of_threads_uses_only_that(every_format, monkeypatch, two_threads):
    used = set()
    monkeypatch.setattr(Step, "seconds", lambda step: used.add(torch.get_num_threads()) or 0.01)
    fastest_format(small_net(), SHAPE, CPU, threads=1)
    assert used == {2, 1}  # the first steps only find out how many images are few
    used.clear()
    fastest_format(small_net(), SHAPE, CPU, threads=2)
    assert used == {2}


def test_what_is_recorded_is_a_copy_of_what_is_kept(small, every_format, monkeypatch):
    taking(monkeypatch, dict.fromkeys(FORMATS, 0.01))
    short_run(small).timed.clear()
    assert short_run(small).timed


class Locked(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = small_net()

    def forward(self, images):
        return self.body(images)

    def __deepcopy__(self, memo):
        raise RuntimeError("cannot be copied")


class Picky(nn.Module):
    """Refuses random images."""

    def __init__(self):
        super().__init__()
        self.body = small_net()

    def forward(self, images):
        raise ValueError("not my images")


@pytest.mark.parametrize("net", [Locked, Picky])
def test_a_network_that_cannot_be_timed_gets_the_hardwares_format(net):
    assert fastest_format(net(), SHAPE, CPU) == Choice(Format(number_format(CPU)), {})


def test_a_step_uses_the_fast_layers_and_the_format(monkeypatch):
    seen = []
    net = small_net("group", "depthwise_separable")
    step = Step(net, SHAPE, CPU, Format(torch.bfloat16, torch.contiguous_format))
    step.net.output.register_forward_hook(lambda _, maps, out: seen.append((out.dtype, out.is_contiguous())))
    replaced = []
    monkeypatch.setattr(
        lab.tuning, "fast_layers", lambda *arguments: replaced.append(arguments) or fast_layers(*arguments)
    )
    assert 0 < step.seconds() < 10
    assert seen == [(torch.bfloat16, True)]
    assert replaced == [(step.net, CPU)]


@pytest.mark.parametrize("conv", CONVS)
@pytest.mark.parametrize("norm", NORMS)
def test_every_pair_can_be_timed(norm, conv, monkeypatch):
    monkeypatch.setattr(lab.tuning, "SECONDS", 0.1)
    assert len(fastest_format(small_net(norm, conv), SHAPE, CPU).microseconds) in (1, 2, 3, 4)


def test_without_bfloat16_instructions_only_float32_is_tried():
    code = """
import torch
from lab.tuning import fastest_format
from model import Net
print(sorted(fastest_format(Net(width=0.25), (8, 3, 32, 32), torch.device("cpu")).microseconds))
"""
    simulated = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | simulated,
        cwd=HERE,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "bfloat16" not in done.stdout
    assert "float32 channels_last" in done.stdout


# ---- The format of a run ---------------------------------------------------------------------------


def short_run(small, recipe=LONG, **options):
    loader, test_loader = loaders_from(small, recipe.batch_size, device="cpu", limit=160)
    return fit(small_net(), loader, test_loader, recipe, device="cpu", progress=False, **options)


def test_a_run_takes_the_format_timed_faster_and_records_the_times(small, every_format, monkeypatch):
    taking(monkeypatch, {each: 0.01 if each == FORMATS[3] else 0.012 for each in FORMATS})
    history = short_run(small)
    assert (history.machine["dtype"], history.machine["layout"]) == ("float32", "channels_first")
    assert history.timed == {str(each): 625.0 if each == FORMATS[3] else 750.0 for each in FORMATS}


def test_a_short_run_and_one_in_a_given_format_time_nothing(small, monkeypatch):
    monkeypatch.setattr(Step, "seconds", lambda step: pytest.fail("a step was timed"))
    short = Recipe(epochs=1, batch_size=16, net={"width": 0.25})
    assert short.epochs * 10 < FEW_STEPS
    assert short_run(small, short).timed == {}
    given = short_run(small, dtype=torch.float32, threads=torch.get_num_threads() + 1)
    assert (given.timed, given.machine["dtype"], given.machine["layout"]) == ({}, "float32", "channels_last")
    assert given.machine["threads"] == torch.get_num_threads() + 1
    assert given.threads == [[torch.get_num_threads() + 1]] * 5
    given = short_run(small, short, dtype=torch.float32, layout="channels_first")
    assert given.machine["layout"] == "channels_first"


def test_wrong_layouts_and_threads_are_refused_by_name(small):
    with pytest.raises(
        ValueError, match=r"unknown layout 'NHWC'; choose one of 'channels_last', 'channels_first'"
    ):
        short_run(small, layout="NHWC")
    with pytest.raises(ValueError, match="threads=0 must be an integer from 1 to"):
        short_run(small, threads=0)


def test_the_layout_changes_only_rounding(small):
    runs = [short_run(small, dtype=torch.float32, layout=layout) for layout in LAYOUTS]
    assert runs[0].train_loss == pytest.approx(runs[1].train_loss, rel=0.05)
    assert runs[0].train_loss[0] == pytest.approx(runs[1].train_loss[0], rel=1e-3)


def test_a_resumed_run_keeps_the_format_of_its_checkpoint(small, every_format, monkeypatch, tmp_path):
    path = tmp_path / "run.checkpoint"
    taking(monkeypatch, {each: 0.01 if each == FORMATS[3] else 0.02 for each in FORMATS})

    class Stop(Exception):
        pass

    loader, _ = loaders_from(small, 16, device="cpu", limit=160)

    def stopping(*arguments):
        if len(stopping.done) == 25:
            raise Stop
        stopping.done.append(arguments)

    stopping.done = []
    net = small_net()
    hook = net.register_forward_pre_hook(stopping)
    with pytest.raises(Stop):
        fit(net, loader, None, LONG, device="cpu", progress=False, checkpoint=path)
    hook.remove()
    taking(monkeypatch, {each: 0.01 if each == FORMATS[0] else 0.02 for each in FORMATS})
    monkeypatch.setattr(lab.tuning, "_chosen", {})
    with pytest.warns(UserWarning, match="began from other weights"):
        history = fit(net, loader, None, LONG, device="cpu", progress=False, checkpoint=path)
    assert history.epochs == 5
    assert (history.machine["dtype"], history.machine["layout"]) == ("float32", "channels_first")


def test_train_and_evaluate_use_the_format_that_was_found(small, every_format, monkeypatch):
    taking(monkeypatch, {each: 0.01 if each.dtype == torch.float32 else 0.02 for each in FORMATS})
    net, seen = small_net(), set()
    net.output.register_forward_hook(lambda _, inputs, output: seen.add(output.dtype))
    loader, _ = loaders_from(small, 10, device="cpu", limit=500)
    assert known_format(net, CPU) == torch.bfloat16
    train(net, loader, torch.optim.SGD(net.parameters(), lr=0.01))
    assert seen == {torch.float32}
    assert known_format(net, CPU) == torch.float32
    seen.clear()
    evaluate(net, loader)
    assert seen == {torch.float32}


# ---- Threads ---------------------------------------------------------------------------------------

IDLE = {1: 0.145, 2: 0.085}
BUSY = {1: 0.141, 2: 0.280}
CROWDED = {1: 0.142, 2: 1.4}  # beside another training
SLOW = {1: 0.290, 2: 0.170}  # all of it at half the clock rate


class Machine:
    """A clock, and steps that take as long as the state of the machine says."""

    def __init__(self, states, most=2, jitter=0.0):
        self.now, self.count, self.jitter = 0.0, most, jitter
        self.states = states  # pairs (time from which, seconds by number of threads)
        self.threads = Threads(most, self.timed, lambda: self.now, self.apply)
        self.generator = torch.Generator().manual_seed(0)

    def apply(self, count):
        self.count = count

    def seconds(self, count):
        state = next(state for begin, state in reversed(self.states) if self.now >= begin)
        noise = self.jitter * torch.rand((), generator=self.generator).item()
        return state[count] * (1 + noise)

    def timed(self, count):
        assert self.count == count
        took = 0.9 * self.seconds(count)  # no optimizer, no data
        self.now += took
        return took

    def run(self, until, scale=1.0):
        """Steps taken until then."""
        steps = 0
        while self.now < until:
            self.threads.before_step(scale)
            self.now += self.seconds(self.count) * scale**2
            steps += 1
        return steps


@pytest.mark.parametrize("jitter", [0.0, 0.15])
def test_an_idle_machine_uses_all_threads_and_loses_little(jitter):
    machine = Machine([(0, IDLE)], jitter=jitter)
    steps = machine.run(100)
    assert machine.count == 2
    assert machine.threads.used == {2}
    assert steps * 0.085 * (1 + jitter / 2) > 97


@pytest.mark.parametrize("state", [BUSY, CROWDED])
@pytest.mark.parametrize("begins", [0, 30])
def test_beside_other_work_a_step_takes_at_most_1_8_times_the_idle_one(state, begins):
    machine = Machine([(0, IDLE), (begins, state)])
    machine.run(begins)
    before = machine.now
    machine.run(before + 20)  # it takes some steps to notice
    assert machine.count == 1
    began = machine.now
    steps = machine.run(began + 300)
    assert (machine.now - began) / steps < 1.8 * 0.085
    assert machine.threads.used == ({1, 2} if begins else {1})


def test_when_the_machine_is_idle_again_all_threads_come_back():
    machine = Machine([(0, IDLE), (30, BUSY), (90, IDLE)])
    machine.run(90)
    assert machine.count == 1
    machine.run(140)
    assert machine.count == 2


def test_a_machine_that_is_only_slower_keeps_its_threads():
    machine = Machine([(0, IDLE), (30, SLOW)])
    steps = machine.run(130)
    assert machine.count == 2
    assert steps > 0.97 * (30 / 0.085 + 100 / 0.170)


def test_larger_images_are_not_taken_for_a_busy_machine():
    machine = Machine([(0, IDLE)])
    machine.run(20, scale=0.5)
    searches = []
    machine.threads._timed = lambda count: searches.append(count) or machine.timed(count)
    machine.run(40, scale=0.75)
    machine.run(60, scale=1.0)
    assert searches == []


def test_many_threads_are_halved_as_long_as_that_is_faster():
    busy = {16: 0.9, 8: 0.5, 4: 0.3, 2: 0.35, 1: 0.6}
    machine = Machine([(0, busy), (60, {16: 0.1, 8: 0.15, 4: 0.3, 2: 0.35, 1: 0.6})], most=16)
    machine.run(60)
    assert machine.count == 4
    machine.run(300)
    assert machine.count == 16


def test_a_pause_is_not_taken_for_a_slow_step():
    machine = Machine([(0, IDLE)])
    machine.run(10)
    machine.threads._timed = lambda count: pytest.fail("it searched")
    for _ in range(20):
        machine.threads.pause()
        machine.now += 5.0
        machine.run(machine.now + 0.3)
    assert machine.count == 2


def test_short_epochs_are_enough_to_notice_and_to_come_back():
    machine = Machine([(0, IDLE), (30, BUSY), (90, IDLE)])
    counts = []
    for end in (30, 90, 150):
        while machine.now < end:
            for _ in range(3):
                machine.threads.before_step()
                machine.now += machine.seconds(machine.count)
            machine.threads.pause()
            machine.now += 0.5  # a test
        counts.append(machine.count)
    assert counts == [2, 1, 2]


def test_a_copy_that_fails_later_leaves_the_number_as_it_is():
    machine = Machine([(0, IDLE), (30, BUSY)])
    machine.run(30)

    def failing(count):
        raise MemoryError("no room for the copy")

    machine.threads._timed = failing
    machine.run(60)
    assert machine.count == 2


def test_a_fixed_number_is_kept_and_torchs_own_comes_back():
    before = torch.get_num_threads()
    with threads_for(small_net(), CPU, FORMATS[1], SHAPE, 1000, threads=3) as threads:
        assert torch.get_num_threads() == threads.count == 3
        for _ in range(10):
            threads.before_step()
        assert threads.used == {3}
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("net", [Locked, Picky])
def test_a_network_that_cannot_be_timed_keeps_all_threads(net, two_threads):
    with threads_for(net(), CPU, FORMATS[1], SHAPE, 1000) as threads:
        threads.before_step()
        assert threads.count == 2


@pytest.mark.parametrize(("seconds", "used"), [({1: 0.1, 2: 0.3}, 1), ({1: 0.3, 2: 0.1}, 2)])
def test_a_run_uses_the_number_of_threads_timed_faster_and_records_it(
    small, two_threads, monkeypatch, seconds, used
):
    monkeypatch.setattr(Step, "seconds", lambda step: seconds[torch.get_num_threads()])
    seen = set()
    loader, _ = loaders_from(small, 16, device="cpu", limit=160)
    net = small_net()
    net.register_forward_hook(lambda *_: seen.add(torch.get_num_threads()))
    history = fit(net, loader, None, LONG, device="cpu", dtype=torch.float32, progress=False)
    assert seen == {used}
    assert history.threads == [[used]] * 5
    assert history.machine["threads"] == 2
    assert torch.get_num_threads() == 2


def test_the_bar_says_that_the_machine_is_busy(small, two_threads, monkeypatch, capsys):
    monkeypatch.setattr(Step, "seconds", lambda step: 0.1 * torch.get_num_threads())
    loader, _ = loaders_from(small, 16, device="cpu", limit=160)
    fit(small_net(), loader, None, LONG, device="cpu", dtype=torch.float32)
    assert "threads=1 of 2" in capsys.readouterr().err


def test_fixed_threads_give_equal_bits_and_so_do_all_threads_of_an_idle_machine(
    small, two_threads, monkeypatch
):
    monkeypatch.setattr(Step, "seconds", lambda step: {1: 0.2, 2: 0.1}[torch.get_num_threads()])
    options = {"dtype": torch.float32}
    free, fixed = short_run(small, **options), short_run(small, **options, threads=2)
    assert free.train_loss == fixed.train_loss
    assert math.isfinite(free.train_loss[-1])
