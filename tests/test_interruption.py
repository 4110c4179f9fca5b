"""A run that is stopped anywhere and started again ends as the run that was never stopped."""

import json
import math
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

import lab.checkpoints
import lab.files
import lab.records
import lab.training
from lab.checkpoints import NotSaved, previous, read_checkpoint
from lab.data import loaders_from, stand_in
from lab.experiment import Experiment, run
from lab.interrupts import Interrupted, Terminated, terminable
from lab.recipes import Recipe
from lab.records import History, weights_digest
from lab.study import run_each
from lab.training import Diverged, fit
from model import Net

HERE = Path(__file__).resolve().parent.parent
RECIPE = Recipe(epochs=3, batch_size=16, label_smoothing=0.1)
QUIET = {"device": "cpu", "dtype": torch.float32, "threads": 1, "progress": False}
TIMES = ("seconds", "gflops")  # differ from run to run


def dropout_net(seed=0) -> nn.Module:
    """Draws random numbers in every step, besides those of the loader."""
    torch.manual_seed(seed)
    return nn.Sequential(Net(width=0.25), nn.Dropout(0.1))


def trained(path=None, data=None, net=None, **options) -> tuple[nn.Module, History]:
    """Train on 200 images, 13 steps an epoch."""
    net = net or dropout_net()
    train_loader, test_loader = loaders_from(data or stand_in(200, 50), RECIPE.batch_size, device="cpu")
    return net, fit(net, train_loader, test_loader, RECIPE, checkpoint=path, **QUIET | options)


def figures(history: History) -> dict:
    return {name: value for name, value in history.to_dict().items() if name not in TIMES}


@pytest.fixture(scope="module")
def data():
    return stand_in(200, 50)


@pytest.fixture(scope="module")
def unbroken(data):
    net, history = trained(data=data)
    return weights_digest(net), figures(history)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.checkpoint"


@pytest.fixture
def every_step(monkeypatch):
    """Save after every step."""
    monkeypatch.setattr(lab.checkpoints, "SAVE_EVERY", 0.0)


def at_step(net: nn.Module, number: int, act) -> nn.Module:
    """The network, which calls `act` in the forward pass of the training step of this number, from 0."""
    steps = []

    def hook(module, inputs):
        if module.training:
            if len(steps) == number:
                act()
            steps.append(1)

    net.register_forward_pre_hook(hook)
    return net


# ---- Killed ----------------------------------------------------------------------------------------


def _train_in_process(folder: Path, ready) -> None:
    torch.set_num_threads(1)
    lab.checkpoints.SAVE_EVERY = 0.0
    net = at_step(dropout_net(), 0, ready.set)
    _, history = trained(folder / "run.checkpoint", net=net)
    (folder / "result").write_text(json.dumps([weights_digest(net), figures(history)]))


def test_a_run_killed_at_20_random_moments_ends_in_the_bits_of_one_that_never_stopped(tmp_path, unbroken):
    context = multiprocessing.get_context("forkserver")  # a child begins with everything imported
    context.set_forkserver_preload(["lab.experiment"])
    moments = random.Random(0)
    places = set()
    longest = 0.06  # seconds; a step, which saves, takes some 0.02 s
    for _ in range(20):
        ready = context.Event()
        process = context.Process(target=_train_in_process, args=(tmp_path, ready))
        process.start()
        while process.is_alive() and not ready.wait(0.1):
            pass
        process.join(moments.uniform(0.0, longest))
        process.kill()
        process.join()
        known = len(places)
        if (tmp_path / "run.checkpoint").exists():
            saved = read_checkpoint(tmp_path / "run.checkpoint")
            places.add((saved.history.epochs, saved.partial.batches if saved.partial else 0))
        if len(places) == known:  # a busy machine takes longer for a step
            longest *= 1.25
    assert len(places) > 2  # it went on from several steps, of which a busy machine takes few
    process = context.Process(target=_train_in_process, args=(tmp_path, ready))
    process.start()
    process.join()
    weights, history = json.loads((tmp_path / "result").read_text())
    assert weights == unbroken[0]
    assert history == json.loads(json.dumps(unbroken[1]))
    assert not [file.name for file in tmp_path.iterdir() if file.suffix in (".part", ".lock", ".trial")]


class Killed(BaseException):
    """Stands for the end of the process: nothing is caught or cleaned up after it."""


@pytest.mark.parametrize("call", range(5))
@pytest.mark.usefixtures("every_step")
def test_a_run_killed_while_a_checkpoint_is_written_goes_on(data, path, unbroken, monkeypatch, call):
    """Before each of the system calls once there is a checkpoint: sync; sync, rename, rename, sync."""
    calls = []

    def dying(real):
        def called(*arguments):
            if calls or path.exists():
                calls.append(1)
            if len(calls) == call + 1:
                raise Killed
            return real(*arguments)

        return called

    with monkeypatch.context() as patch:
        for name in ("fsync", "replace"):
            patch.setattr(os, name, dying(getattr(os, name)))
        with pytest.raises(Killed):
            trained(path, data)
    assert path.exists() == (call != 3)  # the old one is renamed, the new one is not
    assert previous(path).exists() == (call >= 3)
    said = pytest.warns(UserWarning, match="missing; the run goes on from") if call == 3 else nullcontext()
    with said:
        net, history = trained(path, data)
    assert (weights_digest(net), figures(history)) == unbroken


@pytest.mark.usefixtures("every_step")
def test_the_newest_checkpoint_damaged_the_run_goes_on_from_the_one_before(data, path, unbroken):
    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(path, data, at_step(dropout_net(), 17, stop))
    assert read_checkpoint(path).partial.batches == 4
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.warns(UserWarning, match="it is damaged.*goes on from"):
        net, history = trained(path, data)
    assert (weights_digest(net), figures(history)) == unbroken
    assert previous(path).exists()


# ---- Stopped by a signal ---------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("step", [0, 12, 13, 20])  # the first, the last of an epoch, the next, and within one
def test_a_signal_stops_a_run_after_the_step_with_nothing_lost(data, path, unbroken, number, step):
    net = at_step(dropout_net(), step, lambda: signal.raise_signal(number))
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match=r"the same call goes on from .*run\.checkpoint") as stopped:
        trained(path, data, net)
    assert signal.getsignal(number) == before
    assert stopped.value.number == number
    saved = read_checkpoint(path)
    done = saved.history.epochs * 13 + (saved.partial.batches if saved.partial else 0)
    assert done == step + 1
    assert stopped.value.history.epochs == saved.history.epochs
    again, history = trained(path, data)
    assert (weights_digest(again), figures(history)) == unbroken


def test_a_signal_during_the_last_test_stops_the_run_with_nothing_lost(data, path, unbroken, monkeypatch):
    real = lab.training._test_flips

    def stopping(*arguments, **compute):
        signal.raise_signal(signal.SIGINT)
        real(*arguments, **compute)

    with monkeypatch.context() as patch:
        patch.setattr(lab.training, "_test_flips", stopping)
        with pytest.raises(Interrupted, match="stopped after 3 of 3 epochs; the same call goes on from"):
            trained(path, data)
    net, history = trained(path, data)
    assert (weights_digest(net), figures(history)) == unbroken


def test_a_stopped_run_that_was_to_start_again_says_how_to_go_on(data, path):
    net = at_step(dropout_net(), 2, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(Interrupted, match=r"steps; with resume=True \(without --fresh\) it goes on from"):
        trained(path, data, net, resume=False)


def test_a_second_ctrl_c_stops_at_once(data, path):
    def twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as stopped:
        trained(path, data, at_step(dropout_net(), 5, twice))
    assert not isinstance(stopped.value, Interrupted)


def test_without_a_checkpoint_a_stopped_run_leaves_the_network_and_the_history(data):
    net = at_step(dropout_net(), 14, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(
        Interrupted, match="after 1 of 3 epochs and 2 of 13 steps; nothing is saved"
    ) as stopped:
        trained(None, data, net)
    assert stopped.value.history.epochs == 1
    assert len(stopped.value.history.test_accuracy) == 1
    assert weights_digest(net) != weights_digest(dropout_net())


def test_a_signal_that_the_program_handles_itself_is_left_to_it(data, path):
    seen = []
    before = signal.signal(signal.SIGTERM, lambda *_: seen.append(1))
    try:
        net = at_step(dropout_net(), 5, lambda: signal.raise_signal(signal.SIGTERM))
        trained(path, data, net)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == [1]


def test_a_run_in_another_thread_trains_without_handlers(data):
    found = []
    thread = threading.Thread(target=lambda: found.append(trained(None, data)[1]))
    thread.start()
    thread.join()
    assert found[0].epochs == 3


def test_a_stopped_cell_returns_the_runs_so_far_and_running_it_again_goes_on(
    data, tmp_path, monkeypatch, capsys
):
    recipe = Recipe(epochs=2, batch_size=16)
    experiments = [
        Experiment(label, recipe, norm="none", dataset="stand-in") for label in ("one", "two", "three")
    ]
    options = {"data": data, "device": "cpu", "threads": 1, "progress": False}
    straight = run_each(experiments, tmp_path / "straight", **options)
    real, epochs = lab.training._test_epoch, []

    def stopping(*arguments, **compute):
        epochs.append(1)
        real(*arguments, **compute)
        if len(epochs) == 3:  # the first of the second run
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(lab.training, "_test_epoch", stopping)
    runs = run_each(experiments, tmp_path / "stopped", **options)
    assert [(label, found.history.epochs) for label, found in runs.items()] == [("one", 2), ("two", 1)]
    assert "two stopped after 1 of 2 epochs; the same call goes on" in capsys.readouterr().err
    assert weights_digest(runs["two"].net) != weights_digest(straight["two"].net)
    runs = run_each(experiments, tmp_path / "stopped", **options)
    assert [*runs] == ["one", "two", "three"]
    for label, found in runs.items():
        assert weights_digest(found.net) == weights_digest(straight[label].net)


def test_the_teacher_s_run_is_not_taken_for_the_one_that_was_asked_for(data, tmp_path, monkeypatch, capsys):
    teacher = Recipe(epochs=2, batch_size=16)
    recipe = Recipe(epochs=1, batch_size=16, teacher=teacher)
    real = lab.training._test_epoch

    def stopping(*arguments, **compute):
        real(*arguments, **compute)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(lab.training, "_test_epoch", stopping)
    experiment = Experiment("pupil", recipe, norm="none", dataset="stand-in")
    options = {"data": data, "device": "cpu", "threads": 1, "progress": False}
    assert run_each([experiment], tmp_path, **options) == {}
    assert "stopped after 1 of 2 epochs" in capsys.readouterr().err


def test_a_cell_that_is_stopped_before_the_training_says_so(monkeypatch, capsys):
    def stopped(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("lab.study.run", stopped)
    assert run_each([Experiment("one", Recipe())]) == {}
    told = "\nstopped before the training. Cells below this one go on with what there is.\n"
    assert capsys.readouterr().err == told


def command(*arguments, **options):
    words = ("train", "--dataset", "stand-in", "--recipe", "minute", "--dtype", "float32", *arguments)
    return subprocess.Popen(
        [sys.executable, "-m", "lab", *words],
        cwd=HERE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        **options,
    )


def test_ctrl_c_on_the_command_line_prints_a_line_and_the_status_is_that_of_the_signal(tmp_path):
    process = command("--out", str(tmp_path))
    shown = ""
    while "it/s" not in shown:  # the bar moves: it trains
        shown += process.stderr.read(1)
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=120)
    assert process.returncode == 130
    assert rest.strip().splitlines()[-1].startswith("minute-batch-mixed stopped after 0 of 6 epochs and ")
    assert "Traceback" not in rest
    assert [file.name for file in tmp_path.iterdir()] == ["minute-batch-mixed-seed0.checkpoint"]


def test_ctrl_c_while_modules_are_imported_prints_a_line_and_no_traceback():
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", "lab", "report"],
        cwd=HERE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while " torch." not in process.stderr.readline():  # of torch there are a thousand
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=120)
    said = [line for line in rest.splitlines() if line and not line.startswith("import time")]
    assert (process.returncode, said) == (130, ["stopped"])


def pool(folder: Path) -> subprocess.Popen:
    """Three runs on two processes; returns once two train."""
    seeds = ("--processes", "2", "--seed", "0", "1", "2")
    process = command("--out", str(folder), *seeds, start_new_session=True)
    while len(list(folder.glob("*.lock"))) < 2:
        assert process.poll() is None
        time.sleep(0.1)
    time.sleep(3)
    return process


POOL = [f"minute-batch-mixed-seed{seed}.checkpoint" for seed in (0, 1)]


def test_ctrl_c_on_a_pool_stops_its_runs_with_everything_saved_and_without_tracebacks(tmp_path):
    process = pool(tmp_path)
    os.killpg(process.pid, signal.SIGINT)
    _, rest = process.communicate(timeout=120)
    assert process.returncode == 130
    assert rest.strip().splitlines()[-1] == "stopped"
    assert "Traceback" not in rest
    assert sorted(file.name for file in tmp_path.iterdir()) == POOL


def test_a_request_to_end_a_pool_stops_its_runs_with_everything_saved(tmp_path):
    process = pool(tmp_path)
    process.terminate()  # it alone, as a scheduler does
    _, rest = process.communicate(timeout=120)
    assert process.returncode == 143
    assert "Traceback" not in rest
    assert rest.strip().splitlines()[-1] == "stopped"
    assert sorted(file.name for file in tmp_path.iterdir()) == POOL


def test_the_runs_of_a_pool_that_is_killed_save_their_states_and_end(tmp_path):
    process = pool(tmp_path)
    process.kill()
    process.communicate(timeout=120)  # which waits until its children have closed the pipe, too
    assert sorted(file.name for file in tmp_path.iterdir()) == POOL


def test_a_request_to_end_is_left_to_a_program_that_handles_it_and_to_other_threads():
    def own(number, frame):
        raise AssertionError

    before = signal.signal(signal.SIGTERM, own)
    try:
        with terminable():
            assert signal.getsignal(signal.SIGTERM) == own
    finally:
        signal.signal(signal.SIGTERM, before)
    with pytest.raises(Terminated), terminable():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before
    seen = []

    def elsewhere():
        with terminable():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [before]


# ---- Long epochs, full disks, two processes --------------------------------------------------------


def test_the_state_is_saved_at_the_end_and_as_often_as_it_is_due_and_costs_little(data, path, monkeypatch):
    saved = []
    real = lab.checkpoints.Checkpoint.save

    def save(self, history, partial=None):
        real(self, history, partial)
        saved.append(partial and partial.batches)

    monkeypatch.setattr(lab.checkpoints.Checkpoint, "save", save)
    trained(path, data)
    assert saved == [None] * 3
    saved.clear()
    monkeypatch.setattr(lab.checkpoints, "SAVE_SHARE", 0.0)  # no time for it
    trained(path, data, resume=False)
    assert saved == [None]  # the end
    saved.clear()
    monkeypatch.setattr(lab.checkpoints, "SAVE_EVERY", 0.0)
    trained(path, data, resume=False)
    assert saved == [*range(1, 14)] * 3 + [None]


def test_a_full_disk_does_not_end_a_run_before_its_end(data, path, unbroken, monkeypatch):
    real = lab.checkpoints.write_whole

    def full(target, content, **options):
        if target == path and path.exists():
            raise OSError(f"could not write {target}, which needs {len(content):,} bytes: No space left")
        return real(target, content, **options)

    monkeypatch.setattr(lab.checkpoints, "write_whole", full)
    net = dropout_net()
    with (
        pytest.warns(UserWarning, match="No space left; the run goes on in memory"),
        pytest.raises(OSError, match=r"not saved: could not write .*run\.checkpoint, which needs .* bytes"),
    ):
        trained(path, data, net)
    assert weights_digest(net) == unbroken[0]
    assert read_checkpoint(path).history.epochs == 1


ONE = Experiment("one", Recipe(epochs=1, batch_size=16), norm="none", dataset="stand-in")


def full_for(monkeypatch, *endings: str) -> None:
    """Let the disk be too full for files with these endings."""

    def write(real, target, content, **options):
        if target.suffix in endings:
            raise OSError(f"could not write {target}, which needs {len(content):,} bytes: No space left")
        return real(target, content, **options)

    for module in (lab.checkpoints, lab.records):
        monkeypatch.setattr(module, "write_whole", partial(write, module.write_whole))


def not_saved(folder: Path, data) -> NotSaved:
    said = pytest.warns(UserWarning, match="No space left")
    with said, pytest.raises(NotSaved, match=r"not saved: could not write .*one-seed0\.checkpoint") as error:
        run(ONE, folder, data=data, device="cpu", threads=1, progress=False)
    return error.value


def test_on_a_disk_too_full_for_the_checkpoint_record_and_network_are_saved(data, tmp_path, monkeypatch):
    full_for(monkeypatch, ".checkpoint")
    error = not_saved(tmp_path, data)
    history, net = History.load(tmp_path / "one-seed0.json"), Net.load(tmp_path / "one-seed0.pt")
    assert history.epochs == 1
    assert weights_digest(net) == weights_digest(error.net)
    assert net.metadata == history.to_dict()
    assert len(list(tmp_path.iterdir())) == 2


def test_on_a_disk_too_full_for_anything_the_error_names_the_checkpoint(data, tmp_path, monkeypatch):
    full_for(monkeypatch, ".checkpoint", ".json")
    assert not_saved(tmp_path, data).history.epochs == 1
    assert list(tmp_path.iterdir()) == []


def test_a_second_process_on_the_same_run_is_told_so_and_harms_nothing(data, path, unbroken):
    other = dropout_net()

    def second():
        with pytest.raises(OSError, match=rf"in use by process {os.getpid()}"):
            thread_result.append(trained(path, data, other))

    thread_result = []

    def in_between():
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()

    net, history = trained(path, data, at_step(dropout_net(), 15, in_between))
    assert thread_result == []
    assert (weights_digest(net), figures(history)) == unbroken


def test_going_on_with_another_number_of_threads_is_said(data, path):
    net = at_step(dropout_net(), 14, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(Interrupted):
        trained(path, data, net)
    with pytest.warns(UserWarning, match=r"with 1 threads and goes on with 2: .*threads=1 \(--threads 1\)"):
        _, history = trained(path, data, threads=2)
    assert history.threads == [[1], [1, 2], [2]]
    assert history.machine["continued_on"] == [{"threads": 2}]


# ---- A loss that is not finite ---------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_the_run_at_that_step_and_the_last_good_checkpoint_stays(data, path):
    net = dropout_net()
    with torch.no_grad():
        at_step(net, 15, lambda: net[0].output.weight.data.fill_(float("nan")))
    with pytest.raises(
        Diverged, match=r"the loss is nan in step 3 of epoch 2, with a learning rate of"
    ) as error:
        trained(path, data, net)
    assert error.value.history.epochs == 1
    saved = read_checkpoint(path)
    assert (saved.history.epochs, saved.partial) == (1, None)
    assert all(tensor.isfinite().all() for tensor in saved.state["net"].values())


def test_a_rate_that_is_far_too_high_ends_in_an_error_and_no_network_of_nan_is_saved(data, tmp_path):
    recipe = Recipe(epochs=3, batch_size=16, optimizer="sgd", lr=1e6)
    experiment = Experiment("wild", recipe, norm="none", dataset="stand-in")
    with pytest.raises(Diverged, match="try a lower learning rate"):
        run(experiment, tmp_path, data=data, device="cpu", threads=1, progress=False)
    assert not list(tmp_path.glob("*.pt"))
    record = History.load(tmp_path / "wild-seed0.json")  # a study counts it as a rate that does not train
    assert (record.epochs, record.is_complete) == (0, True)
    assert "try a lower learning rate" in record.diverged


def ruined_at(net: nn.Module, number: int) -> nn.Module:
    """The network, whose gradients are infinite from the training step of this number on, from 0."""
    weight = net[0].output.weight
    return at_step(net, number, lambda: weight.register_hook(lambda grad: grad * math.inf))


def signalled_at(net: nn.Module, number: int) -> nn.Module:
    return at_step(net, number, lambda: signal.raise_signal(signal.SIGINT))


def finite(saved) -> bool:
    return all(tensor.isfinite().all() for tensor in saved.state["net"].values())


def test_weights_that_are_ruined_in_the_step_in_which_a_run_is_stopped_are_not_saved(data, path):
    net = signalled_at(ruined_at(dropout_net(), 15), 15)
    told = r"the sum of the weights is (nan|inf) in step 3 of epoch 2, with a learning rate of"
    with pytest.raises(Diverged, match=told) as error:
        trained(path, data, net)
    assert error.value.history.epochs == 1
    saved = read_checkpoint(path)
    assert (saved.history.epochs, saved.partial, finite(saved)) == (1, None, True)


@pytest.mark.usefixtures("every_step")
def test_weights_that_are_ruined_are_not_saved_when_it_is_time_to_save(data, path):
    with pytest.raises(Diverged, match="the sum of the weights is"):
        trained(path, data, ruined_at(dropout_net(), 15))
    saved = read_checkpoint(path)
    assert (saved.partial.batches, finite(saved)) == (2, True)


def test_weights_that_are_ruined_in_the_last_step_of_an_epoch_end_the_run(data, path):
    net = ruined_at(dropout_net(), 25)
    train_loader, _ = loaders_from(data, RECIPE.batch_size, device="cpu")
    with pytest.raises(Diverged, match=r"the sum of the weights is (nan|inf) in epoch 2, with") as error:
        fit(net, train_loader, None, RECIPE, checkpoint=path, **QUIET)
    assert error.value.history.epochs == 1
    assert (read_checkpoint(path).history.epochs, finite(read_checkpoint(path))) == (1, True)


def test_a_test_loss_that_is_not_finite_stops_the_run_too(data, path, monkeypatch):
    labels = torch.arange(20) % 10
    logits = torch.zeros(20, 10).scatter_(1, labels[:, None], -math.inf)
    monkeypatch.setattr(lab.training, "evaluate", lambda *arguments, **options: (logits, labels))
    with pytest.raises(Diverged, match="the test loss is inf in epoch 1") as error:
        trained(path, data)
    assert not path.exists()
    history = error.value.history
    assert history.epochs == 0
    assert History.load(history.save(path.with_name("record.json"))) == history  # what can be read again


def test_a_loss_that_is_checked_later_is_named_by_its_own_step():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    finite = lab.training._Finite(torch.device("cuda"), optimizer)  # does not need one
    losses = [1.0] * 60
    losses[30] = losses[40] = math.nan
    *earlier, last = range(lab.training.CHECK_EVERY)
    for step in earlier:
        finite.check(torch.tensor(losses[step]), step)
    with pytest.raises(Diverged, match=r"step 31, with a learning rate of 0\.5") as error:
        finite.check(torch.tensor(losses[last]), last)
    assert error.value.step == 30
    rest = lab.training._Finite(torch.device("cuda"), optimizer)
    rest.check(torch.tensor(math.inf), 7)
    with pytest.raises(Diverged, match="the loss is inf in step 8"):
        rest.check_all()
