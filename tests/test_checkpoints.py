"""lab/checkpoints.py: what a checkpoint holds, and what becomes of a damaged one."""

import errno
import os
import random
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

import lab.checkpoints
from lab.checkpoints import Checkpoint, NotSaved, Partial, all_finite, previous, read_checkpoint
from lab.files import held
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
    said = r"run\.checkpoint: (it is damaged|the checksum).*from .*run\.checkpoint\.previous"
    with pytest.warns(UserWarning, match=said):
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
    with pytest.raises(
        ValueError, match=r"run\.checkpoint is not .*(damaged|checksum).*resume=False"
    ) as error:
        read_checkpoint(path)
    assert "weights_only" not in str(error.value)
    assert path.read_bytes() == previous(path).read_bytes() == content


def test_a_damaged_checkpoint_never_takes_the_place_of_the_good_one_before(path):
    first, _ = saved_twice(path)
    path.write_bytes(path.read_bytes()[:-100])
    net, optimizer = trained()
    store = Checkpoint(path, net, optimizer)
    with pytest.warns(UserWarning, match="goes on from"):
        store.restore(read_checkpoint(path))
    optimizer.step()
    store.save(reached(1.0, 0.5))
    assert read_checkpoint(path).history.epochs == 2
    path.unlink()
    with pytest.warns(UserWarning, match="missing; the run goes on from"):
        saved = read_checkpoint(path)
    Checkpoint(path, net, optimizer).restore(saved)
    assert weights_digest(net) == first
    store.save(reached(1.0, 0.5))
    store.save(reached(1.0, 0.5, 0.25))  # from now on, the newest one is kept again
    assert read_checkpoint(previous(path)).history.epochs == 2


def test_a_checkpoint_of_a_later_version_is_refused_instead_of_replaced_by_the_one_before(path):
    saved_twice(path)
    state = torch.load(path, weights_only=True)
    torch.save(state | {"format": 4}, path)
    with pytest.raises(ValueError, match=r"run\.checkpoint cannot be read: its format is 4, .* up to 3; to"):
        read_checkpoint(path)


def test_a_checkpoint_that_may_not_be_read_is_not_replaced_by_the_one_before(path, monkeypatch):
    saved_twice(path)

    def refuse(self):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(type(path), "read_bytes", refuse)
    with pytest.raises(ValueError, match=r"run\.checkpoint cannot be read: .*Permission denied"):
        read_checkpoint(path)


def test_a_loop_of_links_is_named_and_starting_again_replaces_it(path):
    path.parent.mkdir()
    path.symlink_to(path.name)
    with held(path), pytest.raises(ValueError, match=r"cannot be read: .*symbolic links.*resume=False"):
        read_checkpoint(path)
    Checkpoint(path, *trained()).save(reached(1.0))
    assert read_checkpoint(path).history.epochs == 1


@pytest.mark.parametrize("part", ["net", "optimizer", "scaler", "history"])
def test_a_checkpoint_that_lacks_a_part_says_which(path, part):
    Checkpoint(path, *trained()).save(reached(1.0))
    state = torch.load(path, weights_only=True)
    del state[part]
    torch.save(state, path)
    with pytest.raises(ValueError, match=rf"run\.checkpoint: it lacks {part}; to start again"):
        read_checkpoint(path)


def test_a_pipe_is_refused_instead_of_waited_for(path):
    path.parent.mkdir()
    os.mkfifo(path)
    with pytest.raises(ValueError, match="not a regular file"):
        read_checkpoint(path)


# ---- Checkpoints from elsewhere ----------------------------------------------------------------------


def parts_of(path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as file:
        return {name: file.read(name) for name in file.namelist()}


def packed(path, parts: dict[str, bytes], compression=zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, part in parts.items():
            file.writestr(name, part)


def test_a_compressed_checkpoint_is_refused_unopened(path):
    Checkpoint(path, *trained()).save(reached(1.0))
    parts = parts_of(path)
    packed(path, parts)
    assert read_checkpoint(path).history.epochs == 1  # it is not refused for who packed it
    packed(path, parts | {"archive/data/99": bytes(20_000_000)}, zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="its parts are compressed, or larger than the file"):
        read_checkpoint(path)


BOMBS = {
    "a program": b"\x80\x02c__builtin__\nexec\n(X\x01\x00\x00\x001tR.",
    "an array of any size": b"\x80\x02c__builtin__\nbytearray\nJ\xff\xff\xff\x7f\x85R.",
    "a list of one list, twice": b"\x80\x02]q\x00(]q\x01h\x01e.",
    "a pair of one pair, twice": b"\x80\x02K\x01K\x02\x86q\x01h\x01\x86q\x02h\x02\x86.",
    "a pair of texts, twice": b"\x80\x02X\x01\x00\x00\x001K\x02\x86q\x01h\x01\x86.",
    "nested lists": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
    "more than history and states need": b"\x80\x02X\xff\xff\xff\x01" + bytes(2**25 - 1) + b".",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_checkpoint_that_would_fill_the_memory_is_refused(path, name):
    Checkpoint(path, *trained()).save(reached(1.0))
    packed(path, parts_of(path) | {"archive/data.pkl": BOMBS[name]})
    with pytest.raises(ValueError, match="is not a checkpoint that this version can read") as error:
        read_checkpoint(path)
    told = {"a program": "holds GLOBAL", "an array": "holds GLOBAL", "a list": "in it twice"}
    told |= {"a pair": "in it twice", "more": "one pickle of at most"}
    assert all(text in str(error.value) for start, text in told.items() if name.startswith(start))


def test_numbers_that_two_groups_share_are_no_bomb(path):
    net = network()
    groups = [{"params": [each]} for each in net.parameters()]
    optimizer = torch.optim.AdamW(groups, betas=(0.8, 0.9))
    Checkpoint(path, net, optimizer).save(reached(1.0))
    assert {group["betas"] for group in read_checkpoint(path).state["optimizer"]["param_groups"]} == {
        (0.8, 0.9)
    }


def test_a_tensor_that_unfolds_to_more_than_the_file_is_refused(path):
    Checkpoint(path, *trained()).save(reached(1.0))
    state = torch.load(path, weights_only=True)
    state["optimizer"]["state"][0]["momentum_buffer"] = torch.zeros(1).expand(10**9)
    torch.save(state, path)
    with pytest.raises(ValueError, match="a tensor is larger than the file"):
        read_checkpoint(path)


def test_a_state_that_no_file_may_hold_is_found_out_in_the_rehearsal(path):
    class Counting(torch.optim.SGD):
        def state_dict(self):
            return super().state_dict() | {"seen": bytearray(3)}

    net = network()
    with pytest.raises(ValueError, match=r"could not be saved to .*: it holds GLOBAL .*bytearray"):
        Checkpoint(path, net, Counting(net.parameters(), lr=0.1)).rehearse(reached())


def test_a_checkpoint_of_another_network_or_optimizer_is_an_error_that_names_it(path):
    Checkpoint(path, *trained()).save(reached(1.0))
    saved = read_checkpoint(path)
    other = nn.Linear(2, 2)
    sgd = torch.optim.SGD(other.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"run\.checkpoint does not fit this run: .*resume=False"):
        Checkpoint(path, other, sgd).restore(saved)
    net = network()
    one_group_more = torch.optim.SGD([{"params": [each]} for each in net.parameters()], lr=0.1)
    with pytest.raises(ValueError, match=r"run\.checkpoint does not fit this run: "):
        Checkpoint(path, net, one_group_more).restore(saved)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_not_restored(path, value):
    net, optimizer = trained()
    with torch.no_grad():
        net[0].weight[0, 0, 0, 0] = value
    Checkpoint(path, net, optimizer).save(reached(1.0))
    with pytest.raises(ValueError, match=r"run\.checkpoint holds weights that are not finite; to start"):
        Checkpoint(path, *trained()).restore(read_checkpoint(path))


def test_all_finite_looks_at_every_number_of_every_kind_of_tensor():
    whole = torch.tensor([2**40])
    assert all_finite([])
    assert all_finite([whole])
    assert all_finite([whole, torch.tensor([1.0, -2.0])])
    assert not all_finite([torch.ones(2), torch.tensor([1.0, float("nan")])])
    assert not all_finite([torch.tensor([[1.0], [-float("inf")]]), torch.ones(2)])


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
            store.finish(reached(1.0, 0.5))
        with pytest.raises(NotSaved) as error:
            store.finish(reached(1.0, 0.5, 0.25))
    assert error.value.history == reached(1.0, 0.5, 0.25)
    assert error.value.net is store.net
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]
    store.finish(reached(1.0, 0.5, 0.25))  # tries again, and there is space again
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
