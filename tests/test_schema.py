"""lab/schema.py: which JSON is read, in bounded time and memory, and what a check says."""

import math
import os

import pytest

from lab import schema
from lab.schema import check_plain, dict_of, fields, json_bytes, list_of, must_be, number, optional, read_json

VALUE = {"a": [1, -2.5, True, None, "ü"], "b": {"c": []}}


# ---- Files -----------------------------------------------------------------------------------------


def test_what_is_written_is_read(tmp_path):
    (tmp_path / "a.json").write_bytes(json_bytes(VALUE))
    assert read_json(tmp_path / "a.json") == VALUE


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (lambda: b"", "it is empty"),
        (lambda: b"{", "Expecting property name"),
        (lambda: b'{"a": 1} 2', "Extra data"),
        (lambda: b"\xff\xfe{}", "can't decode byte 0xff"),
        (lambda: '{"a": 1}'.encode("utf-16"), "can't decode byte 0xff"),
        (lambda: b'{"a": NaN}', "a=nan must be plain data, and finite"),
        (lambda: b"[Infinity]", "0=inf must be plain data, and finite"),
        (lambda: b"[-Infinity]", "0=-inf must be plain data, and finite"),
        (lambda: b'{"a": [0, 1e999]}', r"a\[1\]=inf must be plain data, and finite"),
        (lambda: b"[1e101]", r"0=1e\+101 must be plain data"),
        (lambda: b"1" * 5_000, "an integer of 5,000 digits"),
        (lambda: b'{"a": 1, "b": 2, "a": 1}', "the key 'a' occurs twice"),
        (lambda: b"[" * 40 + b"]" * 40, "nested in more than 32 levels"),
        (lambda: b"[" * 1_000_000, "nested in more than 32 levels"),
        (lambda: b'{"a":' * 1_000_000, "nested in more than 32 levels"),
        (lambda: b"[" + b"0," * 2_000_000 + b"0]", "more than 2,000,000 values"),
        (lambda: b'"' + b"a" * 100_000_000 + b'"', "larger than 16,000,000 bytes"),
    ],
)
def test_json_that_is_damaged_hostile_or_not_standard_is_refused(tmp_path, content, said):
    (tmp_path / "a.json").write_bytes(content())
    with pytest.raises(ValueError, match=said) as caught:
        read_json(tmp_path / "a.json")
    assert len(str(caught.value)) < 300


def test_a_file_of_a_terabyte_is_not_read_to_its_end(tmp_path):
    with (tmp_path / "a.json").open("wb") as file:
        file.truncate(10**12)  # a hole takes no space on the disk
    with pytest.raises(ValueError, match="larger than"):
        read_json(tmp_path / "a.json")


def test_a_folder_and_a_pipe_are_not_read(tmp_path):
    (tmp_path / "a.json").mkdir()
    with pytest.raises(ValueError, match="it is a folder"):
        read_json(tmp_path / "a.json")
    os.mkfifo(tmp_path / "b.json")
    with pytest.raises(ValueError, match="it is not a regular file"):
        read_json(tmp_path / "b.json")
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "c.json")


def test_nothing_is_written_that_could_not_be_read(monkeypatch):
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_bytes([math.nan])
    monkeypatch.setattr(schema, "MOST_BYTES", 10)
    with pytest.raises(ValueError, match="larger than 10 bytes"):
        json_bytes(["a" * 10])


# ---- Plain data ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (object(), "is not plain data"),
        (math.nan, "nan is not plain data"),
        ({"a": {"b": [{}, {1, 2}]}}, r"a\['b'\]\[1\]={1, 2} must be plain data"),
        ({"a": 10**101}, "a=1000.* must be plain data"),
        ({"a": {5: 1}}, "a has the key 5: expected strings as keys"),
        ({b"a": 1}, "it has the key b'a': expected strings as keys"),
        ({"a" * 1_000: b""}, "a{10,}.*=b'' must be plain data"),
    ],
)
def test_what_json_cannot_hold_is_refused_by_name(value, said):
    with pytest.raises(ValueError, match=said) as caught:
        check_plain(value)
    assert len(str(caught.value)) < 300


def test_lists_within_themselves_are_refused():
    endless: list = []
    endless.append(endless)
    with pytest.raises(ValueError, match="nested in more than 32 levels"):
        check_plain(endless)
    laughs: list = ["ha"]
    for _ in range(20):  # a few bytes in a pickle, 10 ** 20 values
        laughs = [laughs] * 10
    with pytest.raises(ValueError, match="more than 2,000,000 values"):
        check_plain(laughs)


def test_thirty_two_levels_are_allowed():
    value: list = []
    for _ in range(31):
        value = [value]
    check_plain(value)
    with pytest.raises(ValueError, match="more than 32"):
        check_plain([value])


# ---- Checks ----------------------------------------------------------------------------------------

SHARES = {"x": list_of(number(0, 1)), "y": optional(number(1, whole=True)), "z": dict_of(list_of(number()))}


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"x": [0, 0.5, 1], "y": None, "z": {"a": []}}, None),
        ({"x": [], "y": 3}, None),
        ({"y": 1}, "the field 'x' is missing"),
        ({"x": [], "w": 1}, "unknown field 'w'; the fields are x, y, z"),
        ({"x": "abc"}, "x='abc' must be a list"),
        ({"x": [0.5, 85.0]}, r"x\[1\]=85.0 must be a number from 0 to 1"),
        ({"x": [True]}, r"x\[0\]=True must be a number"),
        ({"x": [math.nan]}, r"x\[0\]=nan must be a number"),
        ({"x": [], "y": 0}, "y=0 must be an integer of at least 1"),
        ({"x": [], "y": 1.0}, "y=1.0 must be an integer of at least 1"),
        ({"x": [], "z": {"a": [0, -1]}}, r"z\['a'\]\[1\]=-1 must be a number of at least 0"),
        ({"x": [], "z": {"a": [math.inf]}}, r"z\['a'\]\[0\]=inf must be a number of at least 0"),
        ({"x": [], "z": []}, r"z=\[\] must be a dictionary"),
        ({"x": ["a" * 1_000_000] * 1_000}, "must be a number from 0 to 1"),
        ({"x": {f"{number}": "a" * 1_000 for number in range(1_000)}}, "must be a list"),
    ],
)
def test_a_table_of_checks_names_the_wrong_part_and_what_is_expected(value, said):
    if said is None:
        fields(SHARES, required=["x"])("", value)
        return
    with pytest.raises(ValueError, match=said) as caught:
        fields(SHARES, required=["x"])("", value)
    assert len(str(caught.value)) < 400


def test_fields_without_a_list_of_required_ones_may_be_missing_and_others_there():
    check = fields({"x": must_be("a string", lambda value: isinstance(value, str))})
    check("it", {"w": 1})
    with pytest.raises(ValueError, match=r"it\['x'\]=1 must be a string"):
        check("it", {"x": 1})
