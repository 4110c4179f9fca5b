"""Files from elsewhere: `Net.load` names each one in a clear error, executes nothing and fills no memory."""

import io
import json
import pickle
import re
import resource
import struct
import time
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from lab.experiment import PREPROCESSING
from model import Net

STAGES = (((16, "standard", 2),), ((16, "dilated", 1),))
SECONDS = 2.0  # far more than a refusal takes, and far less than building what a file asks for


@pytest.fixture(scope="module")
def content(tmp_path_factory) -> dict:
    """What the file of a small network holds."""
    torch.manual_seed(0)
    net = Net(stages=STAGES)
    net.preprocessing = PREPROCESSING
    return torch.load(net.save(tmp_path_factory.mktemp("net") / "net.pt"), weights_only=True)


def written(content: dict, path: Path) -> Path:
    """Save as torch does, but every list and tuple by itself, so that it may be in the file many times."""
    plain = {name: part for name, part in content.items() if name != "state"}
    torch.save(json.loads(json.dumps(plain)) | {"state": content["state"]}, path)
    return path


def refused(path: Path) -> str:
    """Load the file; returns the message of the error, which comes at once and without much memory."""
    before, start = peak(), time.perf_counter()
    with pytest.raises(ValueError, match=re.escape(path.name)) as error:
        Net.load(path)
    assert time.perf_counter() - start < SECONDS
    assert peak() - before < 100  # MB
    assert len(str(error.value)) < 10_000
    return str(error.value)


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# ---- Configurations that ask for more than the file holds --------------------------------------------


@pytest.mark.parametrize(
    ("part", "changes", "told"),
    [
        ("config", {"width": 1e6}, "out_channels=16000000 must be an integer"),
        ("config", {"width": 200.0}, "size mismatch"),
        ("config", {"width": 1e300}, r"width=1e\+300 must be a number above 0"),
        ("config", {"width": float("nan")}, "width=nan must be a number above 0"),
        ("config", {"num_classes": 10**9}, "num_classes=1000000000 must be an integer"),
        ("config", {"num_classes": 10**6}, "size mismatch"),
        ("config", {"in_channels": 10**6}, "size mismatch"),
        ("config", {"stages": [[(8, "standard", 1)] * 900]}, "more rows than the file has tensors"),
        ("config", {"stages": [[(8, "standard", 1)]] * 30_000}, "more than 1000 rows"),
        ("config", {"stages": [[(-8, "standard", 1)]]}, "channels=-8 must be an integer"),
        ("config", {"stages": [[(10**9, "standard", 1)]]}, "channels=1000000000 must be an integer"),
        ("config", {"stages": 5}, "stages=5: expected a sequence of stages"),
        ("config", {"norm": "x" * 10_000_000}, "one pickle of at most 2,097,152 bytes"),
        ("preprocessing", (100_000, (0.5,) * 3, (0.5,) * 3), "size=100000 must be .* at most 4096"),
        ("preprocessing", (32, (0.5,) * 3, (float("inf"),) * 3), "finite numbers"),
        ("metadata", [0] * 3_000_000, "one pickle of at most 2,097,152 bytes"),
    ],
)
def test_a_file_that_asks_for_more_than_it_holds_is_refused_at_once(tmp_path, content, part, changes, told):
    changed = content[part] | changes if isinstance(changes, dict) else changes
    assert re.search(told, refused(written(content | {part: changed}, tmp_path / "large.pt")))


@pytest.mark.parametrize(
    "tensor",
    [torch.zeros(1).expand(10**9), torch.zeros(1).expand(10**6, 10**6)],
    ids=["a stride of 0", "two strides of 0"],
)
def test_a_tensor_that_unfolds_to_more_than_the_file_is_refused(tmp_path, content, tensor):
    torch.save(content | {"state": content["state"] | {"output.bias": tensor}}, tmp_path / "unfolding.pt")
    assert "tensors are larger than the file" in refused(tmp_path / "unfolding.pt")


# ---- Numbers that are none ---------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["c1.0.conv.weight", "c2.0.norm.running_var", "output.bias"])
def test_nan_and_infinite_numbers_are_refused_with_the_name_of_the_tensor(tmp_path, content, name, value):
    tensor = content["state"][name].clone()
    tensor.flatten()[-1] = value
    torch.save(content | {"state": content["state"] | {name: tensor}}, tmp_path / "nan.pt")
    assert f"{name} holds NaN or infinite numbers" in refused(tmp_path / "nan.pt")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_network_with_nan_is_not_written(tmp_path, dtype):
    net = Net(stages=STAGES).to(dtype)
    path = net.save(tmp_path / "net.pt")
    before = path.read_bytes()
    with torch.no_grad():
        net.c1[0].norm.weight[3] = float("nan")
    with pytest.raises(ValueError, match=r"not written.*c1\.0\.norm\.weight holds NaN or infinite numbers"):
        net.save(path)
    with pytest.raises(ValueError, match=r"c1\.0\.norm\.weight"):
        net.save(tmp_path / "folder" / "other.pt")
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["net.pt"]


# ---- Archives ----------------------------------------------------------------------------------------


def archive(path: Path, parts: dict[str, bytes], compression=zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, part in parts.items():
            file.writestr(name, part)
    return path


def parts_of(content: dict) -> dict[str, bytes]:
    saved = io.BytesIO()
    torch.save(content, saved)
    with zipfile.ZipFile(saved) as file:
        return {name: file.read(name) for name in file.namelist()}


def test_an_archive_that_another_program_packed_is_still_read(tmp_path, content):
    # So that the next tests fail for what they change, and not for the way the file was packed.
    net = Net.load(archive(tmp_path / "packed.pt", parts_of(content)))
    assert torch.equal(net.output.weight, content["state"]["output.weight"])


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_bomb_is_refused_unopened(tmp_path, content, compression):
    parts = parts_of(content) | {"net/data/0": bytes(20_000_000)}
    path = archive(tmp_path / "bomb.pt", parts, compression)
    assert path.stat().st_size < 1_000_000
    assert "its parts are compressed" in refused(path)


@pytest.mark.parametrize("parts", [{}, {"archive/data/0": b"1"}, {"a/data.pkl": b"N.", "b/data.pkl": b"N."}])
def test_an_archive_without_one_pickle_is_refused(tmp_path, parts):
    assert "must hold one pickle" in refused(archive(tmp_path / "other.pt", parts))


def test_parts_that_overlap_are_refused(tmp_path, content):
    """Many entries of the table of contents point at one stored part."""
    path = archive(tmp_path / "overlapping.pt", {"archive/data/0": bytes(100_000)})
    whole = path.read_bytes()
    start, end = whole.index(b"PK\x01\x02"), whole.index(b"PK\x05\x06")
    entry = whole[start:end]
    entries = b"".join(entry.replace(b"data/0", f"data/{n}".encode()) for n in range(10))
    counts = struct.pack("<HHLL", 10, 10, len(entries), start)
    path.write_bytes(whole[:start] + entries + whole[end : end + 8] + counts + whole[end + 20 :])
    assert "or larger than the file" in refused(path)


def test_a_part_that_claims_to_be_huge_is_refused(tmp_path, content):
    path = archive(tmp_path / "claiming.pt", parts_of(content))
    whole = bytearray(path.read_bytes())
    place = whole.index(b"PK\x01\x02")
    whole[place + 20 : place + 28] = struct.pack("<LL", 4_000_000_000, 4_000_000_000)
    path.write_bytes(whole)
    assert "or larger than the file" in refused(path)


@pytest.mark.parametrize("second", ["archive/data.pkl", "archive/DATA.PKL"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_parts_of_one_name_are_refused(tmp_path, content, second):
    path = archive(tmp_path / "double.pt", parts_of(content))
    with zipfile.ZipFile(path, "a") as file:
        file.writestr(second, b"other")
    assert "two of its parts have the same name" in refused(path)


# ---- Pickles -----------------------------------------------------------------------------------------


class Calls:
    """What a pickle can ask for: to call something with arguments."""

    def __init__(self, function, *arguments):
        self.made = function, arguments

    def __reduce__(self):
        return self.made


def lists_of_lists(depth: int = 60) -> list:
    value: list = []
    for _ in range(depth):
        value = [value, value]
    return value


def tuples_of_tuples(depth: int = 60) -> bytes:
    """A dictionary whose key is a tuple of tuples, which to hash takes 2 ** depth steps."""
    pairs = b"".join(b"h" + bytes([n]) + b"\x86q" + bytes([n + 1]) for n in range(depth))
    return b"\x80\x02})\x85q\x00" + pairs + b"K\x01s."


COPIED = {number: number for number in range(1_000)}
PICKLES = {
    "a program": lambda: pickle.dumps(Calls(exec, "raise SystemExit('executed')"), 2),
    "a system call": lambda: pickle.dumps(Calls(__import__("os").system, "exit 1"), 2),
    "an array of any size": lambda: pickle.dumps(Calls(bytearray, 3 * 10**8), 2),
    "a tensor of any size": lambda: pickle.dumps(Calls(torch.Tensor, 10**8), 2),
    "a storage of any size": lambda: pickle.dumps(Calls(torch.UntypedStorage, 10**9), 2),
    "copies of a dictionary": lambda: pickle.dumps([Calls(OrderedDict, COPIED) for _ in range(2)], 2),
    "lists of lists": lambda: pickle.dumps(lists_of_lists(), 2),
    "keys of tuples": tuples_of_tuples,
    "very many lists": lambda: b"\x80\x02" + b"]" * 3_000_000 + b".",
    "nested lists": lambda: b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
    "a long string that is not there": lambda: b"\x80\x02X\xff\xff\xff\xffshort.",
    "a long array that is not there": lambda: b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b".",
    "nothing": lambda: b"",
    "no end": lambda: b"\x80\x02}",
    "an empty stack": lambda: b"\x80\x02.",
    "another protocol": lambda: pickle.dumps({"format": 1}, 4),
}


@pytest.mark.parametrize("name", PICKLES)
def test_a_hostile_pickle_is_refused_and_not_executed(tmp_path, content, name):
    parts = parts_of(content)
    folder = next(iter(parts)).partition("/")[0]
    parts[f"{folder}/data.pkl"] = PICKLES[name]()
    told = refused(archive(tmp_path / "hostile.pt", parts))
    assert "weights_only" not in told
    if "program" in name or "call" in name or "any size" in name:
        assert "it holds GLOBAL" in told
    if "copies" in name or "of lists" in name or "of tuples" in name:
        assert "is in it twice" in told


@pytest.mark.parametrize("size", [10**6, 10**10])
def test_a_tensor_larger_than_its_part_is_refused(tmp_path, content, size):
    parts = parts_of({"tensor": torch.zeros(7_777)})
    (name,) = [name for name in parts if name.endswith("data.pkl")]
    number = b"Ma\x1e"  # 7,777, once in the storage and once in the tensor's size
    assert parts[name].count(number) == 2
    larger = pickle.dumps(size, 2)[2:-1]
    for changed in (parts[name].replace(number, larger), parts[name].replace(number, larger, 1)):
        refused(archive(tmp_path / "beyond.pt", parts | {name: changed}))


def test_a_file_is_not_read_by_a_torch_that_may_execute_it(tmp_path, content, monkeypatch):
    torch.save(content, tmp_path / "net.pt")
    monkeypatch.setattr(torch, "load", None)
    for version in ("2.5.1", "2.6.0", "2.9.1+cu130"):
        monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion(version))
        with pytest.raises(RuntimeError, match=rf"torch {re.escape(version)} .*install torch 2\.10 or later"):
            Net.load(tmp_path / "net.pt")
