"""Set the address of a published copy everywhere that shows it: notebook, README.md and CITATION.cff."""

from __future__ import annotations

import difflib
import json
import re
from pathlib import Path

from lab.files import write_whole

NOTEBOOK = "S7_Convolution_Techniques.ipynb"
ROOT = Path(__file__).resolve().parent.parent

PLACEHOLDERS = {"OWNER/NAME", "OWNER/REPOSITORY"}  # as committed, and in the notebook of older versions
# An account has letters, digits and hyphens; a repository also has dots and underscores.
ADDRESS = r"[A-Za-z0-9][A-Za-z0-9-]{0,38}/[A-Za-z0-9._-]{1,100}"

SITE = "https://github.com/"
COLAB = "https://colab.research.google.com/github/"
BADGE = (
    "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
    f"({COLAB}{{}}/blob/main/{NOTEBOOK})"
)
BADGE_ADDRESS = re.compile(rf"(?<=\({re.escape(COLAB)}){ADDRESS}(?=/blob/[^)\s]+/{re.escape(NOTEBOOK)})")
# The value in a line of a cell. A cell's source is JSON: quotes and newlines are escaped.
REPOSITORY = re.compile(r'(?<=["n]REPOSITORY = \\")[^"\\]*(?=\\")')
CITED = re.compile(r'^repository-code:[ \t]*"?([^"\s]*)"?[ \t]*(?=\r?$)', re.MULTILINE)


def publish(address: str, root: str | Path = ROOT) -> list[str]:
    """Set `address`, "OWNER/NAME" on GitHub, in the files below `root`; print and return the changed lines.

    The notebook gets the address as REPOSITORY in its first code cell, and a Colab badge below its title;
    README.md gets the badge, and the address in `torch.hub.load("OWNER/NAME` and
    `https://github.com/OWNER/NAME`; CITATION.cff gets `repository-code`. A previous address is replaced.
    Nothing else in the files changes, and no file is written unless all of them can be edited.

    Raises ValueError for an address of another form, and if a file lacks the place to edit.
    """
    if not re.fullmatch(ADDRESS, address) or address.endswith((".git", "/.", "/..")):
        raise ValueError(f"address={address!r} must have the form OWNER/NAME, as in {SITE}OWNER/NAME")
    if address in PLACEHOLDERS:
        raise ValueError(f"address={address!r} is a placeholder: give the owner and name of your repository")
    root = Path(root)
    before = {name: (root / name).read_bytes().decode() for name in (NOTEBOOK, "README.md", "CITATION.cff")}
    known = _known_addresses(before)
    after = {
        NOTEBOOK: _notebook(before[NOTEBOOK], address),
        "README.md": _readme(before["README.md"], address, known),
        "CITATION.cff": _citation(before["CITATION.cff"], address),
    }
    changes = []
    for name, text in after.items():
        if text != before[name]:
            write_whole(root / name, text.encode())
            changes += [f"{name}: {line}" for line in _added(before[name], text)]
    print("\n".join(changes) if changes else f"nothing to change: the address is already {address}")
    return changes


def _known_addresses(texts: dict[str, str]) -> set[str]:
    """The placeholders, and the addresses that earlier calls set."""
    start, end = _first_cell(texts[NOTEBOOK], "code")
    pages = REPOSITORY.findall(texts[NOTEBOOK][start:end]) + CITED.findall(texts["CITATION.cff"])
    addresses = [page.removeprefix(SITE) for page in pages if page.startswith(SITE)]
    return {*PLACEHOLDERS, *addresses, *BADGE_ADDRESS.findall(texts["README.md"])}


def _notebook(text: str, address: str) -> str:
    # Edits the file's own characters: written anew, its other bytes could change too.
    start, end = _first_cell(text, "code")
    cell, places = REPOSITORY.subn(SITE + address, text[start:end])
    if places != 1:
        raise ValueError(f'{NOTEBOOK}: expected one line REPOSITORY = "..." in the first code cell')
    text = text[:start] + cell + text[end:]
    start, end = _first_cell(text, "markdown")
    cell, places = BADGE_ADDRESS.subn(address, text[start:end])
    if not places:
        cell = _badge_in_cell(cell, BADGE.format(address))
    return text[:start] + cell + text[end:]


def _first_cell(text: str, kind: str) -> tuple[int, int]:
    """Where the first cell of a kind starts and ends in the notebook's text."""
    decoder = json.JSONDecoder()
    cells = re.search(r'"cells":\s*\[\s*', text)
    end = cells.end() if cells else len(text)
    while text.startswith("{", end):
        start = end
        cell, end = decoder.raw_decode(text, start)
        if cell["cell_type"] == kind:
            return start, end
        while text[end] in ", \t\r\n":
            end += 1
    raise ValueError(f"{NOTEBOOK}: expected a {kind} cell")


def _badge_in_cell(cell: str, badge: str) -> str:
    """A markdown cell, as JSON, with the badge as a paragraph after its first line, the title."""
    title = re.search(
        r'(?P<head>"source":\s*\[(?P<gap>\s*)"# (?:[^"\\]|\\.)*?)(?:\\n)?"(?P<comma>,\s*)?', cell
    )
    if not title:
        raise ValueError(f"{NOTEBOOK}: expected a title, # ..., as first line of the first markdown cell")
    comma = title["comma"] or f",{title['gap']}"  # with the file's own white space
    end = f'\\n"{comma}' if title["comma"] else '"'
    paragraph = f'{title["head"]}\\n"{comma}"\\n"{comma}"{badge}{end}'
    return cell[: title.start()] + paragraph + cell[title.end() :]


def _readme(text: str, address: str, known: set[str]) -> str:
    # Only known addresses: README.md may name other people's repositories too.
    olds = "|".join(re.escape(old) for old in sorted(known, key=len, reverse=True))
    text = re.sub(rf'(?<=torch\.hub\.load\(["\'])(?:{olds})(?=["\':])', address, text)
    text = re.sub(rf"(?<={re.escape(SITE)})(?:{olds})(?![\w-]|\.(?!git\b)\w)", address, text)
    text, places = BADGE_ADDRESS.subn(address, text)
    if places:
        return text
    newline = "\r\n" if "\r\n" in text else "\n"
    text, places = re.subn(
        r"\A(# [^\r\n]*)", lambda title: f"{title[1]}{newline * 2}{BADGE.format(address)}", text
    )
    if not places:
        raise ValueError("README.md: expected a title, # ..., as first line")
    return text


def _citation(text: str, address: str) -> str:
    line = f'repository-code: "{SITE}{address}"'
    text, places = CITED.subn(line, text)
    if places:
        return text
    newline = "\r\n" if "\r\n" in text else "\n"
    return f"{text.rstrip()}{newline}{line}{newline}"


def _added(before: str, after: str) -> list[str]:
    lines = list(difflib.unified_diff(before.splitlines(), after.splitlines(), n=0))[2:]  # no file names
    return [line[1:].strip() for line in lines if line.startswith("+") and line[1:].strip(' "\\n,')]
