"""Files that are written whole or not at all, and that one process at a time may write."""

from __future__ import annotations

import glob
import os
import platform
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout


def write_whole(path: str | Path, content: bytes, *, keep: Path | None = None) -> Path:
    """Write a file so that a reader sees the old content or the new, never a part; returns the path.

    The content is on the disk before it replaces the old one, so that this also holds after a power cut.
    Missing folders are made. keep: where the old file is moved to, if there is one.

    Raises OSError if it cannot be written, with the path and the bytes that it needs; the old file remains.
    """
    path = Path(path)
    part = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if keep is not None and path.exists():
            os.replace(path, keep)
        os.replace(part, path)
        _sync_folder(path.parent)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(f"could not write {path}, which needs {len(content):,} bytes: {reason}") from error
    finally:
        with suppress(OSError):  # of a folder that could not be made
            part.unlink(missing_ok=True)
    return path


def check_writable(folder: str | Path) -> None:
    """Make the folder if need be. Raises OSError, with its path and the reason, if it takes no file."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise OSError(f"{folder} cannot be written: {error.strerror or error}") from error


def _sync_folder(folder: Path) -> None:
    """Put the new name on the disk, too, if the system can do that for a folder."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)


_held: set[tuple[Path, int]] = set()  # paths, and the thread of this process that holds each


@contextmanager
def held(path: str | Path) -> Iterator[None]:
    """Let no other process or thread hold `path` meanwhile; and clear what killed processes left beside it.

    The file itself need not exist; a file of its name and `.lock` says who holds it. A thread that holds a
    path may hold it again. Does nothing on a file system without locks.

    Raises OSError if another one holds it, saying who.
    """
    path = Path(os.path.realpath(path))  # unlike `Path.resolve`, takes a loop of links
    mine = path, threading.get_ident()
    if mine in _held:
        yield
        return
    sign = path.with_name(f"{path.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise ValueError(f"{path} cannot be written: {path.parent} is not a folder") from None
    holder = _text(sign)  # before it is opened for locking, which may empty it
    lock = FileLock(sign, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise OSError(
            f"{path} is in use by {holder or 'another process'}; wait for it, or give another folder or name"
        ) from None
    except (OSError, NotImplementedError):
        yield
        return
    _held.add(mine)
    try:
        with suppress(OSError):  # such as on a full disk; it is only what others are told
            sign.write_text(f"process {os.getpid()} on {platform.node()}")
        _clear(path)
        yield
    finally:
        _held.discard(mine)
        sign.unlink(missing_ok=True)  # still locked, so that nobody removes the sign of another
        lock.release()


ENDINGS = (".json", ".pt")  # of the files of a run, beside its checkpoint


def _clear(path: Path) -> None:
    """Remove the temporary files of killed processes: of this file, and of those that belong to it."""
    for ending in {path.suffix, *ENDINGS}:
        name = glob.escape(f"{path.stem}{ending}")
        for pattern in ("[0-9]*.part", "trial", "trial.[0-9]*.part"):
            for part in path.parent.glob(f"{name}.{pattern}"):
                part.unlink(missing_ok=True)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""
