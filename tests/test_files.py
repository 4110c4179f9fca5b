"""lab/files.py: files are written whole or not at all, and one process at a time holds a run."""

import errno
import multiprocessing
import os
import stat
import threading
from pathlib import Path

import pytest

import lab.files
from lab.files import check_writable, held, write_whole

SPAWN = multiprocessing.get_context("spawn")


def _write_often(path, letter, times):
    for _ in range(times):
        write_whole(path, letter * 100_000)


def test_two_processes_may_write_one_file_and_a_reader_sees_one_of_them_whole(tmp_path):
    path = write_whole(tmp_path / "file", b"a" * 100_000)
    writers = [SPAWN.Process(target=_write_often, args=(path, letter, 100)) for letter in (b"a", b"b")]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        content = path.read_bytes()
        assert len(content) == 100_000
        assert content == content[:1] * 100_000
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert os.listdir(tmp_path) == ["file"]


def test_the_old_content_is_kept_where_that_is_asked_for(tmp_path):
    path, kept = tmp_path / "file", tmp_path / "file.previous"
    write_whole(path, b"1", keep=kept)
    assert not kept.exists()
    write_whole(path, b"2", keep=kept)
    write_whole(path, b"3", keep=kept)
    assert (path.read_bytes(), kept.read_bytes()) == (b"3", b"2")


def test_the_content_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    calls = []
    real_sync, real_replace = os.fsync, os.replace

    def sync(descriptor):
        state = os.fstat(descriptor)
        calls.append(("sync", "folder" if stat.S_ISDIR(state.st_mode) else state.st_size))
        real_sync(descriptor)

    def replace(source, target):
        calls.append(("replace", Path(target).name))
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", replace)
    write_whole(tmp_path / "file", b"12345")
    assert calls == [("sync", 5), ("replace", "file"), ("sync", "folder")]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_says_what_is_needed(tmp_path, monkeypatch, call):
    path = write_whole(tmp_path / "file", b"old")

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match=r"file, which needs 1,000 bytes: No space left on device"):
        write_whole(path, b"n" * 1000)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def _hold(path, entered, leave):
    with held(path):
        entered.set()
        leave.wait(60)


def test_a_second_process_is_told_who_holds_a_path_and_may_have_it_afterwards(tmp_path):
    entered, leave = SPAWN.Event(), SPAWN.Event()
    process = SPAWN.Process(target=_hold, args=(tmp_path / "x.checkpoint", entered, leave))
    process.start()
    assert entered.wait(60)
    for _ in range(2):  # trying does not remove the sign
        said = rf"x\.checkpoint is in use by process {process.pid} on "
        with pytest.raises(OSError, match=said), held(tmp_path / "x.checkpoint"):
            pass
    with held(tmp_path / "y.checkpoint"):
        pass
    leave.set()
    process.join()
    with held(tmp_path / "x.checkpoint"):
        pass
    assert os.listdir(tmp_path) == []


def test_a_path_held_by_a_killed_process_is_free_and_its_temporary_files_are_cleared(tmp_path):
    entered, leave = SPAWN.Event(), SPAWN.Event()
    process = SPAWN.Process(target=_hold, args=(tmp_path / "x.checkpoint", entered, leave))
    process.start()
    assert entered.wait(60)
    process.kill()
    process.join()
    left = [
        "x.checkpoint.12-34.part",
        "x.json.12-34.part",
        "x.pt.12.part",
        "x.pt.trial",
        "x.pt.trial.12.part",
    ]
    others = ["x.checkpoint.previous", "x.pt", "x.y.checkpoint.12-34.part", "y.json.12-34.part", "x.part"]
    for name in left + others:
        (tmp_path / name).touch()
    with held(tmp_path / "x.checkpoint"):
        assert sorted(os.listdir(tmp_path)) == sorted([*others, "x.checkpoint.lock"])
    assert sorted(os.listdir(tmp_path)) == sorted(others)


def _refused(path, errors):
    try:
        with held(path):
            pass
    except OSError as error:
        errors.append(str(error))


def test_a_thread_may_hold_a_path_again_and_another_thread_may_not(tmp_path):
    errors = []
    with held(tmp_path / "x"):
        with held(tmp_path / ".." / tmp_path.name / "x"):
            pass
        thread = threading.Thread(target=_refused, args=(tmp_path / "x", errors))
        thread.start()
        thread.join()
    assert f"in use by process {os.getpid()}" in errors[0]


def test_a_path_is_held_also_if_there_is_no_space_to_say_by_whom(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with held(tmp_path / "x"):
        thread = threading.Thread(target=_refused, args=(tmp_path / "x", found := []))
        thread.start()
        thread.join()
    assert "x is in use by another process" in found[0]
    assert os.listdir(tmp_path) == []


def test_a_loop_of_links_is_held_like_any_path(tmp_path):
    (tmp_path / "x").symlink_to("x")
    with held(tmp_path / "x"):
        pass


@pytest.mark.parametrize("kind", ["a file", "a loop of links", "below a file"])
def test_a_folder_that_takes_no_file_is_named_with_the_reason(tmp_path, kind):
    place = tmp_path / "place"
    if kind == "a loop of links":
        place.symlink_to(place.name)
    else:
        place.write_bytes(b"")
    place = place / "folder" if kind == "below a file" else place
    with pytest.raises(OSError, match=f"^{place} cannot be written: (File exists|Not a directory)$"):
        check_writable(place)


def test_a_folder_that_takes_files_is_made_and_nothing_in_it_is_touched(tmp_path):
    check_writable(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []
    (tmp_path / "trial").write_text("mine")
    check_writable(tmp_path)
    assert (tmp_path / "trial").read_text() == "mine"


def test_on_a_file_system_without_locks_a_path_is_held_all_the_same(tmp_path, monkeypatch):
    class NoLocks(lab.files.FileLock):
        def acquire(self, *arguments, **options):
            raise NotImplementedError

    monkeypatch.setattr(lab.files, "FileLock", NoLocks)
    with held(tmp_path / "x"):
        pass
    assert os.listdir(tmp_path) == []
