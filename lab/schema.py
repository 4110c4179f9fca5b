"""Plain data in files: standard JSON of a bounded size, and checks of its shape, described as tables."""

from __future__ import annotations

import json
import reprlib
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from functools import reduce
from pathlib import Path
from typing import Any

# Far above what a record needs (some 200 bytes and a dozen values an epoch, ten levels), and read in seconds.
MOST_BYTES = 16_000_000
MOST_VALUES = 2_000_000
DEEPEST = 32  # levels of lists and dictionaries
LONGEST = 100  # digits of an integer
LARGEST = 1e100  # the magnitude of a number: sums and products of two such numbers are finite

CONTAINERS = (dict, list, tuple)
Check = Callable[
    [str, Any], None
]  # of a value with a name: raises ValueError with both, and what is expected

_short = reprlib.Repr()
_short.maxlevel, _short.maxlist, _short.maxtuple, _short.maxdict, _short.maxstring = 2, 3, 3, 3, 40


def shortened(value: Any) -> str:
    """The repr of `value`, cut to one line of a few hundred characters at most."""
    return _short.repr(value)


# ---- Files -----------------------------------------------------------------------------------------


def read_json(path: str | Path) -> Any:
    """The plain data in a JSON file.

    Raises ValueError, which says what is wrong with the file and does not name it, for more than MOST_BYTES,
    for anything but standard JSON in UTF-8, for a key that occurs twice, and as `check_plain` does; OSError
    if the file cannot be read.
    """
    path = Path(path)
    if path.exists() and not path.is_file():  # reading a pipe would wait for its writer
        raise ValueError("it is a folder" if path.is_dir() else "it is not a regular file")
    with path.open("rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ValueError(f"it is larger than {MOST_BYTES:,} bytes")
    if not content:
        raise ValueError("it is empty")
    try:
        value = json.loads(content.decode(), parse_int=_integer, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError(f"it is nested in more than {DEEPEST} levels") from None
    check_plain(value)  # refuses NaN and Infinity by name, which Python's reader takes
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        ((key, _),) = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {shortened(key)} occurs twice")
    return found


def _integer(digits: str) -> int:
    if len(digits) > LONGEST:
        raise ValueError(f"it contains an integer of {len(digits):,} digits")
    return int(digits)


def json_bytes(value: Any) -> bytes:
    """`value` as the JSON file that `read_json` reads.

    Raises ValueError for numbers that are not finite, and for a file too large to be read.
    """
    content = (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()
    if len(content) > MOST_BYTES:
        raise ValueError(f"it would be larger than {MOST_BYTES:,} bytes")
    return content


# ---- Checks ----------------------------------------------------------------------------------------


def check_plain(value: Any) -> None:
    """Raise ValueError, naming the part, unless `value` is plain data: what standard JSON can hold.

    Its numbers are finite and at most LARGEST, its keys strings; it has at most DEEPEST levels and
    MOST_VALUES values.
    """
    if not isinstance(value, CONTAINERS) and not _is_scalar(value):
        raise ValueError(f"{shortened(value)} is not plain data")
    count = 0
    level: list[tuple[tuple[str | int, ...], Any]] = [((), value)] if isinstance(value, CONTAINERS) else []
    for _ in range(DEEPEST):
        deeper = []
        for path, container in level:
            count += len(container)
            if count > MOST_VALUES:
                raise ValueError(f"it holds more than {MOST_VALUES:,} values")
            for key, part in container.items() if isinstance(container, dict) else enumerate(container):
                if isinstance(container, dict) and not isinstance(key, str):
                    name = reduce(_inside, path, "") or "it"
                    raise ValueError(f"{name} has the key {shortened(key)}: expected strings as keys")
                if isinstance(part, CONTAINERS):
                    deeper.append(((*path, key), part))
                elif not _is_scalar(part):
                    name = reduce(_inside, (*path, key), "")
                    raise ValueError(f"{name}={shortened(part)} must be plain data, and finite")
        if not deeper:
            return
        level = deeper
    raise ValueError(f"it is nested in more than {DEEPEST} levels")


def _is_scalar(value: Any) -> bool:
    if isinstance(value, int | float):
        return -LARGEST <= value <= LARGEST
    return value is None or isinstance(value, str)


def _inside(name: str, key: str | int) -> str:
    written = str(key) if isinstance(key, int) else shortened(key)
    return f"{name}[{written}]" if name else written.strip("'\"")


def must_be(expected: str, right: Callable[[Any], bool]) -> Check:
    """The check that `right` holds for a value; `expected` says which values these are."""

    def check(name: str, value: Any) -> None:
        if not right(value):
            raise ValueError(f"{name}={shortened(value)} must be {expected}")

    return check


def number(least: float = 0, most: float = LARGEST, *, whole: bool = False) -> Check:
    """The check for a number from `least` to `most`, an integer if `whole`; True and False are none."""
    kind = int if whole else (int, float)
    range_ = f"from {least:g} to {most:g}" if most < LARGEST else f"of at least {least:g}"
    return must_be(
        f"{'an integer' if whole else 'a number'} {range_}",
        lambda value: isinstance(value, kind) and not isinstance(value, bool) and least <= value <= most,
    )


def optional(check: Check) -> Check:
    """The check for None or what `check` takes."""

    def check_optional(name: str, value: Any) -> None:
        if value is not None:
            check(name, value)

    return check_optional


def list_of(check: Check) -> Check:
    """The check for a list, each entry of which `check` takes."""
    is_list = must_be("a list", lambda value: isinstance(value, list))

    def check_list(name: str, value: Any) -> None:
        is_list(name, value)
        for index, part in enumerate(value):
            check(f"{name}[{index}]", part)

    return check_list


def dict_of(check: Check) -> Check:
    """The check for a dictionary, each value of which `check` takes."""

    def check_dict(name: str, value: Any) -> None:
        _is_dict(name, value)
        for key, part in value.items():
            check(_inside(name, key), part)

    return check_dict


def fields(known: Mapping[str, Check], required: Collection[str] | None = None) -> Check:
    """The check for a dictionary whose `known` keys, if they are there, have values as their checks say.

    required: keys that must be there; if given, no key may be there that is not known.
    """

    def check_fields(name: str, value: Any) -> None:
        _is_dict(name, value)
        if required is not None:
            if unknown := [key for key in value if key not in known]:
                raise ValueError(f"unknown field {shortened(unknown[0])}; the fields are {', '.join(known)}")
            if missing := [key for key in required if key not in value]:
                raise ValueError(f"the field {missing[0]!r} is missing")
        for key, check in known.items():
            if key in value:
                check(_inside(name, key), value[key])

    return check_fields


_is_dict = must_be("a dictionary", lambda value: isinstance(value, dict))
