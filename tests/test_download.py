"""lab/download.py: whatever servers, archives, disks and other processes do, nothing is left half-done."""

import errno
import gzip
import os
import re
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from pathlib import Path

import pytest
import tiny_cifar100
from global_state import unchanged
from tiny_cifar10 import (
    ARCHIVE,
    CONTENTS,
    HOSTILE,
    change,
    expect,
    members,
    packed,
    regular,
    serving,
    unprivileged,
)

import lab.data
import lab.download
from lab.data import STAND_IN, load_dataset
from lab.download import FOLDER, SOURCES, DownloadFailed, download

HERE = Path(__file__).resolve().parent
URLS, LOCK, UNPACKED = SOURCES["cifar10"].urls, SOURCES["cifar10"].lock, SOURCES["cifar10"].unpacked
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
SETTINGS = (
    "CIFAR10_ROOT",
    "CIFAR10_URL",
    "CIFAR100_ROOT",
    "CIFAR100_URL",
    *PROXIES,
    *(name.upper() for name in PROXIES),
)


@pytest.fixture(autouse=True)
def tiny(monkeypatch, tmp_path, small):
    """The tiny data set, a quick stand-in, and a working folder without data."""
    expect(monkeypatch)
    monkeypatch.setattr(lab.download, "LEAST_SPEED", 1_000)
    monkeypatch.setattr(lab.data, "stand_in", lambda: small)
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def fetch(place: Path) -> None:
    download(place, SOURCES["cifar10"])


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def left_in(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir() if path.name != LOCK) if place.exists() else []


def assert_whole(place: Path) -> None:
    assert left_in(place) == [FOLDER]
    assert files_in(place / FOLDER) == CONTENTS


# ---- Servers ---------------------------------------------------------------------------------------


def head(length: int | None = len(ARCHIVE), status: str = "200 OK", **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in headers.items())]
    lines += [f"Content-Length: {length}"] if length is not None else []
    return "\r\n".join([*lines, "", ""]).encode()


CHUNKED = head(None, **{"Transfer-Encoding": "chunked"})


def chunk(content: bytes) -> bytes:
    return f"{len(content):x}\r\n".encode() + content + b"\r\n"


def says(*parts: bytes):
    def behave(connection, path):
        for part in parts:
            connection.sendall(part)

    return behave


def drips(start: bytes, drop: bytes, every: float = 0.02):
    """Never stalls, never ends: `drop` after `drop`, until the client gives up."""

    def behave(connection, path):
        connection.sendall(start)
        while True:
            connection.sendall(drop)
            time.sleep(every)

    return behave


def floods(start: bytes, drop: bytes):
    return drips(start, drop, every=0.0)


def hangs_after(start: bytes):
    """Sends `start`, then nothing until the client closes the connection."""

    def behave(connection, path):
        connection.sendall(start)
        connection.settimeout(10)
        while connection.recv(2**16):
            pass

    return behave


def resets(connection, path):
    connection.sendall(head() + ARCHIVE[:500])
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    connection.close()


def redirects(to: str):
    return says(head(0, "302 Found", Location=to))


def redirects_to_the_archive(connection, path):
    connection.sendall(head() + ARCHIVE if path == "/there" else head(0, "302 Found", Location="/there"))


def pieces(size: int, every: float = 0.0):
    def behave(connection, path):
        connection.sendall(head())
        for start in range(0, len(ARCHIVE), size):
            connection.sendall(ARCHIVE[start : start + size])
            time.sleep(every)

    return behave


HTML = b"<html>Please log in to the network</html>"

GOOD = {
    "with its length": says(head() + ARCHIVE),
    "without its length": says(head(None) + ARCHIVE),
    "by HTTP 1.0": says(b"HTTP/1.0 200 OK\r\n\r\n" + ARCHIVE),
    "in chunks": says(CHUNKED, chunk(ARCHIVE[:999]), chunk(ARCHIVE[999:]), b"0\r\n\r\n"),
    "in pieces": pieces(100),
    "slowly, but fast enough": pieces(len(ARCHIVE) // 25, every=0.02),
    "after a redirect": redirects_to_the_archive,
}

SLOW = r"sent [\d,]+ bytes a second; at least 1,000 are needed"

BAD = {
    "500": (says(head(0, "500 Internal Server Error")), "answered 500 Internal Server Error"),
    "404 with a page": (says(head(len(HTML), "404 Not Found") + HTML), "answered 404 Not Found"),
    "403": (says(head(0, "403 Forbidden")), "answered 403 Forbidden"),
    "an HTML page": (
        says(head(len(HTML), **{"Content-Type": "text/html; charset=utf-8"}) + HTML),
        f"offered {len(HTML)} bytes of text/html, not {len(ARCHIVE):,}",
    ),
    "an HTML page without its length": (
        says(head(None, **{"Content-Type": "text/html"}) + HTML),
        f"sent {len(HTML)} bytes of text/html, not {len(ARCHIVE):,}",
    ),
    "an HTML page in chunks": (says(CHUNKED, chunk(HTML), b"0\r\n\r\n"), f"sent {len(HTML)} bytes of"),
    "wrong bytes": (says(head() + ARCHIVE[:-1] + b"x"), "sent a file with the MD5 .*, not"),
    "nothing at all": (says(), "Remote end closed connection without response"),
    "an empty file": (says(head(0)), "offered 0 bytes"),
    "no HTTP": (says(b"SSH-2.0-OpenSSH_9.6\r\n"), "sent no valid HTTP.*SSH-2.0-OpenSSH_9.6"),
    "bytes that are no text": (says(bytes(range(256)) * 4), "sent no valid HTTP"),
    "a header that is no header": (says(b"HTTP/1.1 200 OK\r\n" + b"x" * 70_000), "sent no valid HTTP"),
    "cut off": (says(head() + ARCHIVE[:500]), f"sent 500 bytes of text/plain, not {len(ARCHIVE):,}"),
    "cut off in the first line": (says(b"HTTP/1."), "sent no valid HTTP"),
    "cut off in a chunk": (says(CHUNKED + chunk(ARCHIVE)[:500]), "was cut off .*IncompleteRead"),
    "cut off between chunks": (says(CHUNKED + chunk(ARCHIVE[:500])), "was cut off .*IncompleteRead"),
    "chunks without sizes": (says(CHUNKED + b"many\r\n" + ARCHIVE), "sent no valid HTTP, or was cut off"),
    "a reset": (resets, "reset by peer"),
    "silence": (hangs_after(b""), "sent nothing for 0.3 seconds"),
    "silence in the headers": (hangs_after(head()[:30]), "sent nothing for 0.3 seconds"),
    "silence in the file": (hangs_after(head() + ARCHIVE[:500]), "sent nothing for 0.3 seconds"),
    "silence in a chunk": (hangs_after(CHUNKED + chunk(ARCHIVE)[:500]), "sent nothing for 0.3 seconds"),
    "a trickle": (drips(head(), b"x"), SLOW),
    "a trickle of the first line": (drips(b"HTTP/1.1 200 ", b"x"), SLOW),
    "a trickle of headers": (drips(b"HTTP/1.1 200 OK\r\n", b"A: b\r\n"), SLOW),
    "a trickle of chunks": (drips(CHUNKED, chunk(b"x")), SLOW),
    "a trickle of a chunk's size": (drips(CHUNKED + b"1;", b"x"), SLOW),
    "no end": (floods(head(None), b"x" * 2**14), "sent more than .* bytes"),
    "no end of chunks": (floods(CHUNKED, chunk(b"x" * 2**14)), "sent more than .* bytes"),
    "no end of a redirect": (floods(head(None, "302 Found", Location="/"), b"x" * 2**14), "sent more than"),
    "no end of headers": (floods(b"HTTP/1.1 200 OK\r\n", b"A: b\r\n" * 50), "sent no valid HTTP"),
    "a redirect loop": (redirects("/again"), "answered 302 .*infinite loop"),
    "a redirect to a file": (redirects("file:///etc/passwd"), "answered 302 .*not allowed"),
    "a redirect to nowhere": (redirects("http://127.0.0.1:1/"), "Connection refused"),
    "a redirect without an address": (says(head(0, "302 Found")), "answered 302 Found"),
}

ADDRESSES = {
    "http://127.0.0.1:1/x": "Connection refused",
    "http://nowhere.invalid/x": "Name or service not known",
    "http:///x": "no host given",
    "http://127.0.0.1:port/x": "nonnumeric port",
    "http://[::1/x": "Invalid IPv6 URL",
    "cifar-10-python.tar.gz": "unknown url type",
    "ftp://127.0.0.1/x": "unknown url type: ftp",
    "file:///etc/passwd": "unknown url type: file",
}


def assert_it_fails_clearly(place: Path, url: str, reason: str) -> None:
    with pytest.raises(FileNotFoundError) as error:
        load_dataset("cifar10", place)
    message = str(error.value)
    assert re.search(f"^  {re.escape(url)}: .*{reason}", message, re.MULTILINE), message
    assert f"downloaded to {place}, where nothing of it is left" in message
    assert all(advice in message for advice in ("root=", "CIFAR10_ROOT", "CIFAR10_URL"))
    assert left_in(place) == []


@pytest.mark.parametrize("behave", GOOD.values(), ids=GOOD)
def test_the_data_arrives_whole_from_a_server_that_sends_it(behave, monkeypatch, tmp_path):
    with serving(behave) as url:
        monkeypatch.setenv("CIFAR10_URL", url)
        data = load_dataset("cifar10", tmp_path / "new" / "place")
    assert data.name == "CIFAR-10"
    assert data.train_labels.tolist() == [0, 1, 1, 2, 2, 3, 3, 4, 4, 5]
    assert data.test_labels.tolist() == [5, 6]
    assert_whole(tmp_path / "new" / "place")


@pytest.mark.parametrize(("behave", "reason"), BAD.values(), ids=BAD)
def test_a_server_that_does_anything_else_is_an_error_that_says_what_and_the_next_one_is_asked(
    behave, reason, monkeypatch, tmp_path
):
    if "sent nothing" in reason:
        monkeypatch.setattr(lab.download, "STALLED", 0.3)
    if reason == SLOW:
        monkeypatch.setattr(lab.download, "SPEED_WINDOW", 0.15)
    with serving(behave) as bad, serving(GOOD["with its length"]) as good, unchanged():
        change(monkeypatch, urls=(bad,))
        assert_it_fails_clearly(tmp_path / "place", bad, reason)
        change(monkeypatch, urls=(bad, good))
        fetch(tmp_path / "place")
    assert_whole(tmp_path / "place")


@pytest.mark.parametrize(("url", "reason"), ADDRESSES.items(), ids=ADDRESSES)
def test_an_address_that_leads_nowhere_is_an_error_that_says_why(url, reason, monkeypatch, tmp_path):
    found = socket.getaddrinfo

    def unknown(host, *arguments, **options):
        if host == "nowhere.invalid":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return found(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    change(monkeypatch, urls=(url,))
    assert_it_fails_clearly(tmp_path / "place", url, reason)


def test_https_to_a_server_without_it_is_an_error_that_says_so(monkeypatch, tmp_path):
    with serving(says(head() + ARCHIVE)) as url:
        url = url.replace("http:", "https:")
        change(monkeypatch, urls=(url,))
        assert_it_fails_clearly(tmp_path / "place", url, "SSL")


def test_every_address_is_tried_in_order_and_every_failure_told(monkeypatch, tmp_path):
    asked = []

    def refuse(connection, path):
        asked.append(path)
        connection.sendall(head(0, f"50{len(asked)} Broken"))

    with serving(refuse) as url:
        change(monkeypatch, urls=(f"{url}/official", f"{url}/mirror"))
        monkeypatch.setenv("CIFAR10_URL", f"{url}/mine {url}/other")
        with pytest.raises(DownloadFailed) as error:
            fetch(tmp_path)
    assert asked == ["/mine", "/other", "/official", "/mirror"]
    reasons = [f"  {url}{path}: answered 50{number} Broken" for number, path in enumerate(asked, 1)]
    assert str(error.value).splitlines()[1:] == reasons


def test_the_official_address_comes_before_its_mirrors():
    assert URLS[0] == "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
    assert len(URLS) == 3
    assert all(url.startswith("https://") for url in URLS)


def test_auto_warns_with_what_happened_and_returns_the_stand_in(monkeypatch, tmp_path):
    with serving(BAD["cut off in a chunk"][0]) as url:
        change(monkeypatch, urls=(url,))
        with pytest.warns(UserWarning, match="THIS IS NOT CIFAR-10") as warned:
            assert load_dataset("auto", tmp_path).name == STAND_IN
    assert f"{url}: sent no valid HTTP, or was cut off" in str(warned[0].message)
    assert warned[0].filename == __file__


def test_a_proxy_of_the_environment_is_used(monkeypatch, tmp_path):
    asked = []

    def proxy(connection, path):
        asked.append(path)
        connection.sendall(head() + ARCHIVE)

    with serving(proxy) as url:
        monkeypatch.setenv("http_proxy", url)
        change(monkeypatch, urls=("http://nowhere.invalid/x",))
        fetch(tmp_path)
    assert asked == ["http://nowhere.invalid/x"]
    assert_whole(tmp_path)


def test_a_bar_on_stderr_shows_host_and_size(monkeypatch, tmp_path, capsys):
    with serving(says(head() + ARCHIVE)) as url:
        change(monkeypatch, urls=(url,))
        fetch(tmp_path)
    out, err = capsys.readouterr()
    assert out == ""
    assert "127.0.0.1" in err
    assert "100%" in err


def test_it_works_without_stderr(monkeypatch, tmp_path):
    with serving(says(head() + ARCHIVE)) as url:
        change(monkeypatch, urls=(url,))
        monkeypatch.setattr(sys, "stderr", None)
        fetch(tmp_path)
    assert_whole(tmp_path)


def test_cifar100_is_downloaded_by_the_same_means(monkeypatch, tmp_path, capsys):
    archive, asked = tiny_cifar100.ARCHIVE, []

    def behave(connection, path):
        asked.append(path)
        content = archive if path == "/mine" else archive[:-1] + b"x"
        connection.sendall(head(len(archive)) + content)

    with serving(behave) as url:
        tiny_cifar100.expect(monkeypatch, f"{url}/official")
        with pytest.raises(FileNotFoundError, match=f"{url}/official: sent a file with the MD5") as error:
            load_dataset("cifar100", tmp_path)
        assert "CIFAR100_URL to another address of its archive\n" in str(error.value)
        assert os.listdir(tmp_path) == [".cifar-100-download.lock"]
        monkeypatch.setenv("CIFAR100_URL", f"{url}/mine")
        data = load_dataset("cifar100", tmp_path)
    assert asked == ["/official", "/mine"]
    assert (data.name, data.test_labels.tolist()) == ("CIFAR-100", [3, 98, 42])
    assert files_in(tmp_path / "cifar-100-python") == tiny_cifar100.CONTENTS
    assert sorted(os.listdir(tmp_path)) == [".cifar-100-download.lock", "cifar-100-python"]


# ---- Archives --------------------------------------------------------------------------------------


def special(name: str, kind: bytes, to: str = "") -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, to
    return member, b""


def without(name: str) -> list[tuple[tarfile.TarInfo, bytes]]:
    return [member for member in members() if member[0].name != f"{FOLDER}/{name}"]


def huge() -> bytes:
    """A header that claims a terabyte."""
    member, _ = regular(f"{FOLDER}/data_batch_1", b"")
    member.size = 10**12
    return gzip.compress(member.tobuf())


LINKS = (tarfile.SYMTYPE, tarfile.LNKTYPE)
SPECIAL = {"a link": tarfile.SYMTYPE, "a hard link": tarfile.LNKTYPE, "a device": tarfile.CHRTYPE}
SPECIAL |= {"a block device": tarfile.BLKTYPE, "a pipe": tarfile.FIFOTYPE, "a folder": tarfile.DIRTYPE}

REFUSED = {
    f"{kind} in a file's place": (
        packed([special(f"{FOLDER}/test_batch", code, "/etc/passwd"), *without("test_batch")]),
        "lacks test_batch",
    )
    for kind, code in SPECIAL.items()
} | {
    "a file of a terabyte": (huge(), "has a file of 1,000,000,000,000 bytes"),
    "a pickle that runs code": (
        packed(members(CONTENTS | {"data_batch_1": HOSTILE})),
        "has another data_batch_1",
    ),
    "class names that run code": (
        packed(members(CONTENTS | {"batches.meta": HOSTILE})),
        "has another batches.meta",
    ),
    "no class names": (packed(without("batches.meta")), "lacks batches.meta"),
    "no file": (packed([]), "lacks data_batch_1, .*batches.meta"),
    "files outside the folder": (
        packed([regular(f"x/{FOLDER}/{name}", content) for name, content in CONTENTS.items()]),
        "lacks data_batch_1",
    ),
    "half of it": (ARCHIVE[: len(ARCHIVE) // 2], "is damaged"),
    "no archive": (HTML, "is damaged"),
    "another compression": (b"BZh9" + ARCHIVE, "is damaged"),
}


@pytest.mark.parametrize(("archive", "reason"), REFUSED.values(), ids=REFUSED)
def test_a_hostile_or_damaged_archive_is_refused_even_if_it_has_the_right_md5(
    archive, reason, monkeypatch, tmp_path
):
    expect(monkeypatch, archive)
    with serving(says(head(len(archive)) + archive)) as url:
        change(monkeypatch, urls=(url,))
        assert_it_fails_clearly(tmp_path / "place", url, f"its archive {reason}")
    assert [path.name for path in tmp_path.iterdir()] == ["place"]


def test_only_the_files_of_the_data_set_are_unpacked(monkeypatch, tmp_path):
    outside = [f"../{name}" for name in ("a", f"{FOLDER}/b")] + [f"{FOLDER}/../c", str(tmp_path / "d"), "e"]
    extra = [regular(name, b"x") for name in [*outside, f"{FOLDER}/f", f"{FOLDER}/g/data_batch_1"]]
    extra += [special(f"{FOLDER}/link", kind, "/etc/passwd") for kind in LINKS]
    archive = packed([*extra, *members()])
    expect(monkeypatch, archive)
    with serving(says(head(len(archive)) + archive)) as url:
        change(monkeypatch, urls=(url,))
        fetch(tmp_path / "place")
    assert_whole(tmp_path / "place")
    assert [path.name for path in tmp_path.iterdir()] == ["place"]


def test_an_archive_with_another_md5_is_never_opened(monkeypatch, tmp_path):
    monkeypatch.setattr(tarfile, "open", None)
    with serving(says(head() + ARCHIVE[:-1] + b"x")) as url:
        change(monkeypatch, urls=(url,))
        assert_it_fails_clearly(tmp_path / "place", url, "sent a file with the MD5")


# ---- Disks -----------------------------------------------------------------------------------------


def test_a_folder_that_cannot_be_written_is_an_error_that_names_it(open_place, monkeypatch):
    monkeypatch.chdir(open_place)
    open_place.chmod(0o555)
    with unprivileged(), pytest.raises(FileNotFoundError) as error:
        load_dataset("cifar10", open_place)
    told = f"{open_place}, which cannot be written: Permission denied. The download needs 360 MB there."
    assert told in str(error.value)
    assert list(open_place.iterdir()) == []


def test_a_file_in_the_folder_s_place_is_an_error_that_names_it(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileNotFoundError, match="file, which cannot be written: File exists"):
        load_dataset("cifar10", tmp_path / "file")
    with pytest.raises(FileNotFoundError, match="place, which cannot be written: Not a directory"):
        load_dataset("cifar10", tmp_path / "file" / "place")
    assert (tmp_path / "file").read_text() == "mine"


def full(*arguments, **options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("when", ["downloading", "unpacking", "renaming"])
def test_a_full_disk_is_an_error_that_says_what_is_needed_and_nothing_is_left(when, monkeypatch, tmp_path):
    if when == "downloading":
        if not os.path.exists("/dev/full"):
            pytest.skip("no /dev/full here")
        monkeypatch.setattr(tempfile, "TemporaryFile", lambda dir: open("/dev/full", "wb"))  # noqa: SIM115
    else:
        monkeypatch.setattr(os, {"unpacking": "fsync", "renaming": "rename"}[when], full)
    asked = []

    def behave(connection, path):
        asked.append(path)
        connection.sendall(head() + ARCHIVE)

    with serving(behave) as url:
        change(monkeypatch, urls=(url, url))
        with pytest.raises(FileNotFoundError, match="No space left on device") as error:
            load_dataset("cifar10", tmp_path / "place")
    assert "The download needs 360 MB there. Nothing of it is left." in str(error.value)
    assert left_in(tmp_path / "place") == []
    assert len(asked) == 1, "another address would not help"


def test_files_and_folder_get_the_usual_permissions(monkeypatch, tmp_path):
    with serving(says(head() + ARCHIVE)) as url:
        change(monkeypatch, urls=(url,))
        fetch(tmp_path / "place")
    usual = tmp_path / "usual"
    usual.mkdir()
    (usual / "file").touch()
    assert (tmp_path / "place" / FOLDER).stat().st_mode == usual.stat().st_mode
    for path in (tmp_path / "place" / FOLDER).iterdir():
        assert path.stat().st_mode == (usual / "file").stat().st_mode


def test_a_folder_that_is_there_is_not_touched(monkeypatch, tmp_path):
    (tmp_path / FOLDER).mkdir()
    monkeypatch.setattr(lab.download, "_transfer", None)
    fetch(tmp_path)
    assert list((tmp_path / FOLDER).iterdir()) == []


# ---- Several processes -----------------------------------------------------------------------------

NURSERY = """
import os, sys
from pathlib import Path
import pytest, tiny_cifar10
tiny_cifar10.expect(pytest.MonkeyPatch())
from lab.data import load_dataset
for line in sys.stdin:
    if pid := os.fork():
        print(pid, flush=True)
        continue
    place, os.environ["CIFAR10_URL"] = line.split()
    try:
        outcome = load_dataset("cifar10", Path(place)).test_labels.tolist()
    except BaseException as error:
        outcome = repr(error)
    os.write(1, f"{outcome}\\n".encode())  # in one piece: all processes share the pipe
    os._exit(0)
"""


class Nursery:
    """A process of its own that has imported everything and starts others, which load the data set."""

    def __init__(self):
        path = os.pathsep.join([str(HERE), str(HERE.parent)])
        environment = {name: value for name, value in os.environ.items() if name not in SETTINGS}
        self.process = subprocess.Popen(
            [sys.executable, "-c", NURSERY],
            env=environment | {"PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def start(self, place: Path, url: str) -> int:
        """Start a process that cannot end yet; returns its number."""
        self.process.stdin.write(f"{place} {url}\n")
        return int(self.process.stdout.readline())

    def outcome(self) -> str:
        """What the next process that ends says."""
        return self.process.stdout.readline().strip()


@pytest.fixture(scope="module")
def nursery():
    made = Nursery()
    yield made
    made.process.communicate()


class Halting:
    """Sends half of the archive, and the rest once `go` is set; counts the downloads."""

    def __init__(self):
        self.count, self.halfway, self.go = 0, threading.Event(), threading.Event()

    def __call__(self, connection, path):
        self.count += 1
        middle = len(ARCHIVE) // 2
        connection.sendall(head() + ARCHIVE[:middle])
        self.halfway.set()
        assert self.go.wait(60)
        connection.sendall(ARCHIVE[middle:])


def test_of_four_processes_one_downloads_and_all_get_the_data(nursery, tmp_path):
    server = Halting()
    with serving(server) as url:
        for _ in range(4):
            nursery.start(tmp_path, url)
        assert server.halfway.wait(60)
        server.go.set()
        assert [nursery.outcome() for _ in range(4)] == ["[5, 6]"] * 4
    assert server.count == 1
    assert_whole(tmp_path)


def test_if_the_process_that_downloads_is_killed_the_one_that_waits_takes_over(nursery, tmp_path):
    server = Halting()
    with serving(server) as url:
        first = nursery.start(tmp_path, url)
        assert server.halfway.wait(60)
        nursery.start(tmp_path, url)
        os.kill(first, signal.SIGKILL)
        server.go.set()
        assert nursery.outcome() == "[5, 6]"
    assert server.count == 2
    assert_whole(tmp_path)


def test_a_download_that_was_killed_is_done_again_and_its_remains_are_cleared(nursery, monkeypatch, tmp_path):
    server = Halting()
    with serving(server) as url:
        process = nursery.start(tmp_path, url)
        assert server.halfway.wait(60)
        os.kill(process, signal.SIGKILL)
        server.go.set()
        assert left_in(tmp_path) == [UNPACKED]
        assert left_in(tmp_path / UNPACKED) == []
        (tmp_path / UNPACKED / "test_batch").write_bytes(b"of a process killed while unpacking")
        monkeypatch.setenv("CIFAR10_URL", url)
        assert load_dataset("cifar10", tmp_path).test_labels.tolist() == [5, 6]
    assert server.count == 2
    assert_whole(tmp_path)


def test_a_download_that_is_interrupted_leaves_nothing(monkeypatch, tmp_path):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    with serving(says(head() + ARCHIVE)) as url:
        change(monkeypatch, urls=(url,))
        with monkeypatch.context() as patch:
            patch.setattr(lab.download, "_unpack", interrupt)
            with pytest.raises(KeyboardInterrupt):
                fetch(tmp_path)
        assert left_in(tmp_path) == []
        fetch(tmp_path)
    assert_whole(tmp_path)


def test_a_process_that_waits_says_so_and_finds_what_the_other_one_fetched(monkeypatch, tmp_path, capsys):
    server = Halting()
    with serving(server) as url:
        change(monkeypatch, urls=(url,))
        threads = [threading.Thread(target=fetch, args=(tmp_path,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        assert server.halfway.wait(60)
        deadline = time.monotonic() + 60
        err = ""
        while "waiting for it" not in err and time.monotonic() < deadline:
            err += capsys.readouterr().err
            time.sleep(0.01)
        server.go.set()
        for thread in threads:
            thread.join()
    assert f"Another process is downloading CIFAR-10 to {tmp_path}: waiting for it." in err
    assert server.count == 1
    assert_whole(tmp_path)
