"""lab/checkpoints.py: what a checkpoint holds, and what becomes of a damaged one."""

import errno
import os
import random

import numpy as np
import pytest
import torch
from torch import nn

import lab.checkpoints
from lab.checkpoints import Checkpoint, Partial, previous, read_checkpoint
from lab.loaders import Rest, all_random_states
from lab.recipes import Recipe
from lab.records import History, weights_digest


def reached(*losses: float, **changes) -> History:
    """The History of a run after as many epochs as there are losses."""
    epochs = len(losses)
    values = {
        "name": "N",
        "dataset": "D",
        "parameters": 5,
        "recipe": Recipe().to_dict(),
        "seed": 7,
        "machine": {"cpus": 2, "dtype": "float32"},
        "train_loss": list(losses),
        "train_accuracy": [0.5] * epochs,
        "lr": [0.1] * epochs,
        "seconds": [1.0] * epochs,
        "threads": [[1]] * epochs,
    }
    return History(**values | changes)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "folder" / "run.checkpoint"


def trained() -> tuple[nn.Module, torch.optim.Optimizer]:
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    net(torch.randn(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    return net, optimizer


def saved_twice(path) -> tuple[str, str]:
    """A run saved after one epoch, and after two; the digests of the weights."""
    net, optimizer = trained()
    store = Checkpoint(path, net, optimizer)
    store.save(reached(1.0))
    first = weights_digest(net)
    optimizer.step()
    store.save(reached(1.0, 0.5))
    return first, weights_digest(net)


def test_a_checkpoint_restores_network_optimizer_and_history(path):
    net, optimizer = trained()
    history = reached(1.0)
    Checkpoint(path, net, optimizer).save(history)
    other = network()
    fresh = torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9)
    saved = read_checkpoint(path)
    assert saved.history == history
    assert saved.partial is None
    Checkpoint(path, other, fresh).restore(saved)
    assert weights_digest(other) == weights_digest(net)
    states = zip(optimizer.state.values(), fresh.state.values(), strict=True)
    assert all(torch.equal(one["momentum_buffer"], two["momentum_buffer"]) for one, two in states)


def test_a_begun_epoch_is_kept_with_its_sums_and_random_states(path):
    class Drawing(nn.Module):
        def __init__(self):
            super().__init__()
            self.generators = [np.random.default_rng(1), np.random.RandomState(2), random.Random(3)]
            self.generators += [torch.Generator().manual_seed(4), np.random.Generator(np.random.Philox(5))]

    def drawn(net):
        here = [torch.rand(2).tolist(), np.random.rand(2).tolist(), random.random()]
        default, state, python, torchs, philox = net.generators
        own = [default.random(), state.rand(), python.random(), philox.random()]
        return [*here, *own, torch.rand(1, generator=torchs).item()]

    source, net = Drawing(), network()
    drawn(source)
    cpu = torch.device("cpu")
    partial = Partial.start(cpu)
    partial.loss += 0.1
    partial.batches, partial.images, partial.seconds, partial.threads = 3, 96, 1.5, [1, 2]
    partial.states = all_random_states([], source, cpu)
    Checkpoint(path, net, torch.optim.SGD(net.parameters(), lr=0.1)).save(reached(), partial)
    expected = drawn(source)
    again = read_checkpoint(path).partial
    assert torch.equal(again.loss, partial.loss)
    assert (again.batches, again.images, again.seconds, again.threads) == (3, 96, 1.5, [1, 2])
    assert list(Rest([1, 2, 3, 4], source, 3, again.states)) == [4]
    assert drawn(source) == expected


def test_the_sums_of_an_epoch_that_was_begun_go_to_the_device_of_the_run():
    partial = Partial.start(torch.device("cpu"))
    partial.batches = 3
    moved = partial.to(torch.device("meta"))
    assert moved.loss.device.type == moved.correct.device.type == "meta"
    assert moved.batches == 3


def test_without_a_file_there_is_nothing_to_resume(path):
    assert read_checkpoint(path) is None


def test_a_rehearsal_leaves_nothing_behind_and_an_existing_file_alone(path):
    store = Checkpoint(path, *trained())
    store.rehearse(reached())
    assert not os.listdir(path.parent)
    store.save(reached())
    before = path.read_bytes()
    store.rehearse(reached(1.0))
    assert path.read_bytes() == before
    with pytest.raises(ValueError, match="could not be saved"):
        store.rehearse(reached(name=object()))
    assert os.listdir(path.parent) == [path.name]


def test_a_checkpoint_of_whole_epochs_from_before_is_read_and_an_older_one_refused_as_that(path):
    Checkpoint(path, *trained()).save(reached(1.0))
    state = torch.load(path, weights_only=True)
    del state["partial"]
    torch.save(state | {"format": 2}, path)
    saved = read_checkpoint(path)
    assert (saved.history.epochs, saved.partial) == (1, None)
    torch.save(state | {"format": 1}, path)
    with pytest.raises(ValueError, match=r"run\.checkpoint is not a checkpoint .*format is 1, not 3"):
        read_checkpoint(path)


def flipped(content: bytes) -> bytes:
    """One bit of a weight flipped, which torch.load does not notice."""
    net, _ = trained()
    weight = next(net.parameters()).detach().numpy().tobytes()[:16]
    place = content.index(weight) + 3
    return content[:place] + bytes([content[place] ^ 64]) + content[place + 1 :]


DAMAGES = {
    "a flipped bit in a weight": flipped,
    "truncated": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "rubbish": lambda content: b"rubbish" * 1000,
}


def test_a_flipped_bit_is_one_that_torch_does_not_notice(path):
    Checkpoint(path, *trained()).save(reached())
    whole = torch.load(path, weights_only=True)["net"]
    path.write_bytes(flipped(path.read_bytes()))
    damaged = torch.load(path, weights_only=True)["net"]
    assert [name for name in whole if not torch.equal(whole[name], damaged[name])] == [next(iter(whole))]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_replaced_by_the_one_before_with_a_warning_that_names_both(path, damage):
    torch.manual_seed(0)
    saved_twice(path)
    Checkpoint(path, *trained()).save(reached(1.0, 0.5))
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    with pytest.warns(UserWarning, match=r"run\.checkpoint: it is damaged.*from .*run\.checkpoint\.previous"):
        saved = read_checkpoint(path)
    assert saved.history.train_loss == [1.0, 0.5]


def test_a_missing_checkpoint_is_replaced_by_the_one_before(path):
    first, _ = saved_twice(path)
    path.unlink()  # as a kill between the two renames leaves it
    with pytest.warns(UserWarning, match=r"run\.checkpoint: missing; the run goes on from .*\.previous"):
        saved = read_checkpoint(path)
    net, optimizer = trained()
    Checkpoint(path, net, optimizer).restore(saved)
    assert weights_digest(net) == first


@pytest.mark.parametrize("damage", DAMAGES)
def test_if_both_are_damaged_the_error_says_so_and_both_stay(path, damage):
    Checkpoint(path, *trained()).save(reached())
    content = DAMAGES[damage](path.read_bytes())
    for file in (path, previous(path)):
        file.write_bytes(content)
    with pytest.raises(ValueError, match=r"run\.checkpoint is not .*damaged.*resume=False") as error:
        read_checkpoint(path)
    assert "weights_only" not in str(error.value)
    assert path.read_bytes() == previous(path).read_bytes() == content


def test_a_foreign_file_is_refused_without_torch_s_advice_to_execute_it(path):
    path.parent.mkdir()
    torch.save(trained()[0], path)  # a whole module, as a pickle
    with pytest.raises(ValueError, match="is not a checkpoint") as error:
        read_checkpoint(path)
    assert "weights_only" not in str(error.value)


def test_on_a_full_disk_the_state_before_stays_and_the_end_says_what_is_missing(path, monkeypatch):
    store = Checkpoint(path, *trained())
    store.save(reached(1.0))
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.warns(UserWarning, match=r"run\.checkpoint, which needs .* bytes: No space.*in memory"):
            store.save(reached(1.0, 0.5))
        store.save(reached(1.0, 0.5, 0.25))  # says it once
        with pytest.raises(OSError, match=r"is not saved: could not write .*No space left on device"):
            store.finish()
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]
    store.save(reached(1.0, 0.5, 0.25))  # there is space again
    store.finish()
    assert read_checkpoint(path).history.epochs == 3


def test_a_state_is_due_once_it_is_as_old_as_may_be_lost(path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(lab.checkpoints.time, "monotonic", lambda: now[0])
    store = Checkpoint(path, *trained())
    now[0] += lab.checkpoints.SAVE_EVERY - 0.1
    assert not store.due
    now[0] += 0.2
    assert store.due
    store.save(reached())
    assert not store.due


def test_after_an_epoch_the_state_is_saved_only_if_that_takes_a_hundredth_of_the_time(path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(lab.checkpoints, "SAVE_SHARE", 0.01)
    monkeypatch.setattr(lab.checkpoints.time, "monotonic", lambda: now[0])
    real = lab.checkpoints.write_whole

    def slow(*arguments, **options):
        now[0] += 0.25
        return real(*arguments, **options)

    monkeypatch.setattr(lab.checkpoints, "write_whole", slow)
    store = Checkpoint(path, *trained())
    store.rehearse(reached())  # which finds out what saving takes
    now[0] += 20
    assert not store.cheap
    now[0] += 10
    assert store.cheap
    store.save(reached(1.0))
    assert not store.cheap
    now[0] += 26
    assert store.cheap
