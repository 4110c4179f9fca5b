"""A data set of 12 images in CIFAR-10's files, its archive, and servers that send it well and badly."""

import gzip
import hashlib
import io
import os
import pickle
import socket
import socketserver
import tarfile
import threading
from collections.abc import Callable
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import lab.download
from lab.download import FOLDER, SOURCES

FILES = [*SOURCES["cifar10"].files]
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def _files() -> dict[str, bytes]:
    files = {}
    for first, name in enumerate(name for name in FILES if name != "batches.meta"):
        pixels = np.random.default_rng(first).integers(0, 256, (2, 3072), dtype=np.uint8)
        batch = {"data": pixels, "labels": [first, first + 1]}
        files[name] = pickle.dumps(batch, protocol=2)
    files["batches.meta"] = pickle.dumps({"label_names": CLASSES}, protocol=2)
    return files


CONTENTS = _files()  # name: bytes


class _Runs:
    def __reduce__(self):
        return os.mkdir, ("a_pickle_ran_this",)


HOSTILE = pickle.dumps(_Runs())  # whoever unpickles it makes a folder


def write(place: Path) -> Path:
    """Put the whole data set into `place`; returns its folder."""
    folder = place / FOLDER
    folder.mkdir(parents=True)
    for name, content in CONTENTS.items():
        (folder / name).write_bytes(content)
    return folder


def regular(name: str, content: bytes) -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    return member, content


def members(contents: dict[str, bytes] = CONTENTS) -> list[tuple[tarfile.TarInfo, bytes]]:
    """As in CIFAR-10's own archive: the folder, its files, and one that is not needed."""
    folder = tarfile.TarInfo(FOLDER)
    folder.type, folder.mode = tarfile.DIRTYPE, 0o755
    files = [regular(f"{FOLDER}/{name}", content) for name, content in contents.items()]
    return [(folder, b""), *files, regular(f"{FOLDER}/readme.html", b"<html>")]


def packed(members: list[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for member, content in members:
            archive.addfile(member, io.BytesIO(content))
    return gzip.compress(buffer.getvalue(), mtime=0)  # the same bytes in every process


ARCHIVE = packed(members())


def expect(patch: pytest.MonkeyPatch, archive: bytes = ARCHIVE) -> None:
    """Make lab.download expect this archive and these files instead of CIFAR-10's, from no address."""
    change(
        patch,
        **{
            part: {
                name: hashlib.md5(CONTENTS[name]).hexdigest() for name in getattr(SOURCES["cifar10"], part)
            }
            for part in ("train", "test", "meta")
        },
        archive_md5=hashlib.md5(archive).hexdigest(),
        archive_bytes=len(archive),
        urls=(),
    )
    patch.setattr(lab.download, "MOST_SENT", 2 * len(archive))


def change(patch: pytest.MonkeyPatch, **fields) -> None:
    """Change what lab.download knows of CIFAR-10."""
    patch.setitem(SOURCES, "cifar10", replace(SOURCES["cifar10"], **fields))


@contextmanager
def serving(behave: Callable[[socket.socket, str], None]):
    """A server on this machine: `behave(connection, path)` answers each request. Yields its address."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            with suppress(ConnectionError):  # the client has had enough
                request = self.request.recv(2**16)
                while request.startswith(b"GET") and not request.endswith(b"\r\n\r\n"):
                    request += self.request.recv(2**16)
                path = request.split()[1].decode() if request.startswith(b"GET") else ""
                behave(self.request, path)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = False  # server_close() waits for them

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def unprivileged():
    """As a user without root's rights, if it is root who runs the tests."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
