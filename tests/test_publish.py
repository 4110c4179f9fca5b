"""lab/publish.py: one call sets the address of a published copy, and changes nothing else."""

import difflib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from lab.publish import NOTEBOOK, _known_addresses, publish

HERE = Path(__file__).resolve().parent.parent
FILES = (NOTEBOOK, "README.md", "CITATION.cff")

README = """# A title

Run `python -m lab publish OWNER/NAME` once.

    git clone https://github.com/OWNER/NAME
    git clone https://github.com/OWNER/NAME.git copy

`torch.hub.load("OWNER/NAME", "net")`, or `torch.hub.load("OWNER/NAME:v0.2.0", "net")`, or
`torch.hub.load("path/to/checkout", "net", source="local")`. Compare `torch.hub.load("other/net", "net")`,
https://github.com/other/net and https://github.com/OWNER/NAME-2.
"""
CITATION = "cff-version: 1.2.0\ntitle: A title\nauthors:\n  - name: somebody\n"
TITLE = ["# A title\n", "\n", 'It is a "small" café.']
FIRST_CODE = ["# set it here\n", 'REPOSITORY = ""\n', "import os"]


def badge(address: str) -> str:
    return (
        "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
        f"(https://colab.research.google.com/github/{address}/blob/main/{NOTEBOOK})"
    )


def cells(title=TITLE, code=FIRST_CODE) -> list[dict]:
    """A notebook's cells: a title, code, and one of each with text that looks like the places to edit."""
    return [
        {"cell_type": "markdown", "metadata": {}, "source": title},
        {"cell_type": "code", "metadata": {}, "source": code, "outputs": [], "execution_count": 1},
        {"cell_type": "markdown", "metadata": {}, "source": ["# Another title\n", "\n", badge("other/net")]},
        {
            "cell_type": "code",
            "metadata": {},
            "source": ['REPOSITORY = "kept"\n', "print(REPOSITORY)"],
            "outputs": [{"output_type": "stream", "name": "stdout", "text": ['REPOSITORY = ""\n']}],
            "execution_count": 2,
        },
    ]


def write(folder: Path, cells: list[dict], readme=README, citation=CITATION, **style) -> None:
    notebook = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    text = json.dumps(notebook, **({"indent": 1, "ensure_ascii": False} | style)) + "\n"
    for name, content in zip(FILES, (text, readme, citation), strict=True):
        (folder / name).write_bytes(content.encode())


def read(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


def sources(folder: Path) -> list[list[str]]:
    return [cell["source"] for cell in json.loads((folder / NOTEBOOK).read_bytes())["cells"]]


STYLES = {
    "as Jupyter writes": {},
    "four spaces, ASCII only": {"indent": 4, "ensure_ascii": True},
    "on one line": {"indent": None},
    "without spaces": {"indent": None, "separators": (",", ":")},
}


@pytest.mark.parametrize("style", STYLES.values(), ids=STYLES)
def test_the_notebook_is_what_its_own_writer_gives_with_the_two_places_set(tmp_path, style):
    write(tmp_path, cells(), **style)
    publish("ada/conv", tmp_path)
    found = (tmp_path / NOTEBOOK).read_bytes()
    title = ["# A title\n", "\n", badge("ada/conv") + "\n", "\n", 'It is a "small" café.']
    code = ["# set it here\n", 'REPOSITORY = "https://github.com/ada/conv"\n', "import os"]
    write(tmp_path, cells(title, code), **style)
    assert found == (tmp_path / NOTEBOOK).read_bytes()


@pytest.mark.parametrize(
    ("title", "expected"),
    [
        (["# Only a title"], ["# Only a title\n", "\n", badge("ada/conv")]),
        (["# Only a title\n"], ["# Only a title\n", "\n", badge("ada/conv")]),
        (['# A "title"\n', "text"], ['# A "title"\n', "\n", badge("ada/conv") + "\n", "text"]),
        (
            ["# A title\n", "\n", badge("OWNER/REPOSITORY") + "\n", "\n", "text"],
            ["# A title\n", "\n", badge("ada/conv") + "\n", "\n", "text"],
        ),
    ],
)
def test_the_badge_is_below_the_title_of_the_notebook(tmp_path, title, expected):
    write(tmp_path, cells(title))
    publish("ada/conv", tmp_path)
    found = sources(tmp_path)
    assert found[0] == expected
    assert found[2:] == [cell["source"] for cell in cells()[2:]]


def test_the_address_may_have_a_comment_and_be_in_a_cell_kept_as_one_string(tmp_path):
    write(tmp_path, cells(code="import os\nREPOSITORY = \"\"  # set by 'publish'\nprint()"))
    publish("ada/conv", tmp_path)
    assert sources(tmp_path)[1] == (
        "import os\nREPOSITORY = \"https://github.com/ada/conv\"  # set by 'publish'\nprint()"
    )


def test_readme_gets_the_badge_and_the_address_in_its_examples_only(tmp_path):
    write(tmp_path, cells())
    publish("ada/conv", tmp_path)
    expected = README.replace("# A title\n", f"# A title\n\n{badge('ada/conv')}\n")
    expected = expected.replace('load("OWNER/NAME', 'load("ada/conv')
    expected = re.sub(r"github\.com/OWNER/NAME(?!-2)", "github.com/ada/conv", expected)
    assert (tmp_path / "README.md").read_text() == expected
    assert "publish OWNER/NAME" in expected


def test_the_citation_gets_the_address_as_its_repository(tmp_path):
    write(tmp_path, cells())
    publish("ada/conv", tmp_path)
    expected = CITATION + 'repository-code: "https://github.com/ada/conv"\n'
    assert (tmp_path / "CITATION.cff").read_text() == expected


def test_windows_line_ends_are_kept(tmp_path):
    write(tmp_path, cells(), README.replace("\n", "\r\n"), CITATION.replace("\n", "\r\n"))
    notebook = (tmp_path / NOTEBOOK).read_bytes().replace(b"\n", b"\r\n")
    (tmp_path / NOTEBOOK).write_bytes(notebook)
    publish("ada/conv", tmp_path)
    publish("bob/net", tmp_path)
    found = read(tmp_path)
    write(tmp_path, cells())
    publish("bob/net", tmp_path)
    assert found == {name: text.replace(b"\n", b"\r\n") for name, text in read(tmp_path).items()}


@pytest.mark.parametrize("address", ["bob/net", "ada/conv2", "a/b"])
def test_another_address_replaces_the_first_as_if_it_had_been_the_only_one(tmp_path, address):
    write(tmp_path, cells())
    publish(address, tmp_path)
    direct = read(tmp_path)
    write(tmp_path, cells())
    publish("ada/conv", tmp_path)
    publish(address, tmp_path)
    assert read(tmp_path) == direct


def test_the_same_address_again_changes_nothing_and_says_so(tmp_path, capsys):
    write(tmp_path, cells())
    assert publish("ada/conv", tmp_path)
    before = read(tmp_path)
    capsys.readouterr()
    assert publish("ada/conv", tmp_path) == []
    assert read(tmp_path) == before
    assert capsys.readouterr().out == "nothing to change: the address is already ada/conv\n"


def test_what_changed_is_printed_line_by_line_with_its_file(tmp_path, capsys):
    write(tmp_path, cells())
    changes = publish("ada/conv", tmp_path)
    assert capsys.readouterr().out.splitlines() == changes
    assert f"README.md: {badge('ada/conv')}" in changes
    assert 'CITATION.cff: repository-code: "https://github.com/ada/conv"' in changes
    assert [line.split(":")[0] for line in changes] == [NOTEBOOK] * 2 + ["README.md"] * 4 + ["CITATION.cff"]


@pytest.mark.parametrize(
    "address",
    [
        "",
        "ada",
        "ada/",
        "/conv",
        "ada/conv/more",
        "https://github.com/ada/conv",
        "ada/conv.git",
        "ada/..",
        "ada/con v",
        'ada/conv"',
        "ada_l/conv",
        "ada/conv\n",
        "a" * 40 + "/conv",
    ],
)
def test_an_address_of_another_form_is_an_error_that_names_it_and_the_form(tmp_path, address):
    write(tmp_path, cells())
    before = read(tmp_path)
    with pytest.raises(ValueError, match="must have the form OWNER/NAME") as error:
        publish(address, tmp_path)
    assert f"address={address!r}" in str(error.value)
    assert read(tmp_path) == before


def test_the_placeholder_is_not_an_address(tmp_path):
    write(tmp_path, cells())
    with pytest.raises(ValueError, match="'OWNER/NAME' is a placeholder"):
        publish("OWNER/NAME", tmp_path)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"cells": cells(code=["import os"])}, "expected one line REPOSITORY"),
        ({"cells": cells(code=['REPOSITORY = ""\n', 'REPOSITORY = ""'])}, "expected one line REPOSITORY"),
        ({"cells": cells(title=["no title"])}, "expected a title"),
        ({"cells": cells()[1:2]}, "expected a markdown cell"),
        ({"cells": []}, "expected a code cell"),
        ({"cells": cells(), "readme": "no title\n"}, "README.md: expected a title"),
    ],
)
def test_if_a_place_is_missing_no_file_is_written(tmp_path, changed, said):
    write(tmp_path, **changed)
    before = read(tmp_path)
    with pytest.raises(ValueError, match=said):
        publish("ada/conv", tmp_path)
    assert read(tmp_path) == before


# ---- The project's own files -----------------------------------------------------------------------


def copied(folder: Path) -> Path:
    for name in FILES:
        shutil.copy(HERE / name, folder)
    return folder


def test_the_real_files_get_the_address_and_keep_every_other_line(tmp_path):
    before = read(copied(tmp_path))
    # This checkout may be a published copy, with an address of its own.
    old_addresses = _known_addresses({name: text.decode() for name, text in before.items()})
    publish("somebody-else/her.conv_net", tmp_path)
    for name, text in read(tmp_path).items():
        old, new = before[name].decode().splitlines(), text.decode().splitlines()
        changes = list(difflib.unified_diff(old, new, n=0))[2:]
        added = [line[1:] for line in changes if line.startswith("+") and line[1:].strip(' "\\n,')]
        removed = [line[1:] for line in changes if line.startswith("-")]
        assert 1 <= len(added) <= 6
        assert all("somebody-else/her.conv_net" in line for line in added)
        for line in removed:
            assert 'REPOSITORY = \\"\\"' in line or any(address in line for address in old_addresses)


def test_the_real_notebook_stays_valid_and_differs_in_two_places(tmp_path):
    before = nbformat.read(copied(tmp_path) / NOTEBOOK, as_version=4)
    publish("ada/conv", tmp_path)
    after = nbformat.read(tmp_path / NOTEBOOK, as_version=4)
    nbformat.validate(after)
    differing = [
        (old, new) for old, new in zip(before.cells, after.cells, strict=True) if old.source != new.source
    ]
    (title, titled), (code, coded) = differing
    assert titled.source.splitlines()[:3] == [title.source.splitlines()[0], "", badge("ada/conv")]
    assert coded.source == re.sub(
        '^REPOSITORY = ".*?"', 'REPOSITORY = "https://github.com/ada/conv"', code.source, flags=re.MULTILINE
    )
    for old, new in differing:
        old.source = new.source
    assert before == after


def repository() -> str:
    """The address that the notebook has; empty as committed."""
    notebook = nbformat.read(HERE / NOTEBOOK, as_version=4)
    code = next(cell.source for cell in notebook.cells if cell.cell_type == "code")
    (address,) = re.findall('^REPOSITORY = "(.*?)"', code, re.MULTILINE)
    return address


def test_readme_has_a_badge_only_if_the_address_is_set():
    badges = re.findall(
        r"https://colab\.research\.google\.com/github/([^/]+/[^/]+)/", (HERE / "README.md").read_text()
    )
    assert [f"https://github.com/{address}" for address in badges] == ([repository()] if repository() else [])


def test_the_citation_has_the_license_s_authors_and_a_repository_only_if_the_address_is_set():
    lines = (HERE / "CITATION.cff").read_text().splitlines()
    (authors,) = re.findall(r"Copyright \(c\) \d+ (.*)", (HERE / "LICENSE").read_text())
    assert f"  - name: {authors}" in lines
    assert {"license: MIT", "title: Convolution techniques on CIFAR-10"} <= set(lines)
    assert any(re.fullmatch(r"version: \d+\.\d+\.\d+", line) for line in lines)
    addresses = [line for line in lines if line.startswith("repository-code")]
    assert addresses == ([f'repository-code: "{repository()}"'] if repository() else [])


def test_a_published_copy_passes_the_checks_of_its_notebook_and_its_lint(tmp_path):
    checkout = tmp_path / "copy"
    subprocess.run(["git", "clone", "--quiet", str(HERE), str(checkout)], check=True)
    publish("ada-lovelace/a-repository-with-quite-a-long-name", checkout)
    ruff = [sys.executable, "-m", "ruff", "check", "--quiet", "."]
    linted = subprocess.run(ruff, cwd=checkout, capture_output=True, text=True)
    assert linted.returncode == 0, linted.stdout
    tests = ["tests/test_publish.py", "tests/test_notebook.py"]
    quick = "not published_copy and not readme_shows and not as_in_colab"
    command = [sys.executable, "-m", "pytest", "-q", *tests, "-k", quick]
    tested = subprocess.run(command, cwd=checkout, capture_output=True, text=True)
    assert tested.returncode == 0, tested.stdout
