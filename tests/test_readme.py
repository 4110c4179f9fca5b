"""README.md and its pages: tables come from the files, links lead somewhere, examples run."""

import itertools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch

from lab import formats
from lab.figures.schematics import NORMALIZATIONS, SCHEMATICS
from lab.report import bench_markdown, ladder_table, report, summary_table
from lab.study import load_results
from model import Net

HERE = Path(__file__).resolve().parent.parent
README = (HERE / "README.md").read_text(encoding="utf-8")
PAGES = {
    path.relative_to(HERE).as_posix(): path.read_text(encoding="utf-8")
    for path in (
        HERE / "README.md",
        HERE / "CONTRIBUTING.md",
        *HERE.glob("docs/*.md"),
        *HERE.glob("[!.]*/README.md"),  # not that of pytest's cache
        *HERE.glob("results/*/README.md"),
    )
}
LINK = re.compile(r"\]\(([^)\s]+)\)")
EXAMPLE = re.compile(r"```py(?:thon)?\n(.*?)```", re.DOTALL)


def prose(text: str) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    found: list[str] = []
    for heading in re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        name = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        numbered = (f"{name}-{number}" for number in itertools.count(1))
        found.append(name if name not in found else next(each for each in numbered if each not in found))
    return set(found)


def missing(page: str, text: str) -> list[str]:
    """The links and pictures of a page that lead to no file of the project, or to no heading of a page."""
    wrong = []
    for target in LINK.findall(prose(text)):
        name, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target):
            continue  # another site
        path = (HERE / page).parent / name if name else HERE / page
        if not path.exists() or (
            anchor and anchor not in anchors(text if not name else path.read_text(encoding="utf-8"))
        ):
            wrong.append(target)
    return wrong


def tables(text: str) -> list[str]:
    """The tables of a page, each with its head."""
    return re.findall(r"(?:^\|.*\|\n)+", prose(text), re.MULTILINE)


def test_the_readme_is_short_and_leads_to_every_page():
    assert len(README.splitlines()) <= 150
    linked = {target.partition("#")[0] for target in LINK.findall(prose(README))}
    assert linked | {"README.md"} >= set(PAGES)


def test_the_readme_shows_each_technique_and_each_normalization():
    drawn = [technique.name for technique in SCHEMATICS] + [row[0] for row in NORMALIZATIONS]
    places = [README.find(f"](images/{name}.png)") for name in drawn]
    assert -1 not in places
    assert places == sorted(places)


def test_the_example_of_contributing_draws_the_single_pictures(tmp_path, monkeypatch):
    (example,) = EXAMPLE.findall(PAGES["CONTRIBUTING.md"])
    monkeypatch.chdir(tmp_path)
    exec(example, {})
    drawn = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png")}
    assert drawn == {f"images/{technique.name}.png" for technique in SCHEMATICS} | {
        f"images/{row[0]}.png" for row in NORMALIZATIONS
    }
    assert drawn <= set(LINK.findall(README))
    # Two beside each other, with a space, in a column of 830 pixels: that of GitHub in a window of 1,280.
    for name in drawn:
        assert plt.imread(HERE / name).shape[1] <= 410
        assert abs(plt.imread(HERE / name).shape[1] - plt.imread(tmp_path / name).shape[1]) <= 10


def test_the_tables_of_results_are_what_the_files_say():
    histories = load_results(HERE / "results")
    assert summary_table(histories) in README
    assert ladder_table(histories, short=True) in README
    assert ladder_table(histories) in PAGES["docs/speed.md"]
    said = "the files in results/ have changed: put what `python -m lab report` prints into results/README.md"
    assert report(histories) in PAGES["results/README.md"], said


def test_the_figures_of_the_benchmark_are_what_its_files_say():
    paths = sorted((HERE / "results" / "bench").glob("*.json"))
    assert paths
    assert bench_markdown([json.loads(path.read_text()) for path in paths]) in PAGES["docs/speed.md"]


def test_how_good_the_chosen_formats_are_is_what_the_file_says():
    paths = [*(HERE / "results" / "bench" / "formats").glob("*.json")]
    assert paths
    for path in paths:
        measured = json.loads(path.read_text())
        ratios = [float(row[-1]) for row in formats.table(measured).rows]
        best = sum(ratio == 1 for ratio in ratios)
        assert measured["networks"].keys() == formats.networks().keys()
        assert formats.worst(measured) <= 1.05
        told = f"the one chosen was the fastest for {best} of {len(ratios)} networks"
        assert told in PAGES["docs/speed.md"]


@pytest.mark.parametrize("page", PAGES)
def test_links_pictures_and_anchors_are_there(page):
    assert missing(page, PAGES[page]) == []


def test_links_that_lead_nowhere_are_found():
    text = """# A `page`, of two
## Same
## Same
[a](#a-page-of-two) [b](#same-1) [c](docs/use.md#onnx) [d](https://pytorch.org/nowhere#x)
![e](images/group.png)
[f](#same-2) [g](docs/use.md#nothing) [h](docs/nothing.md) ![i](images/nothing.png)
```
[j](nothing)
```
"""
    wrong = ["#same-2", "docs/use.md#nothing", "docs/nothing.md", "images/nothing.png"]
    assert missing("README.md", text) == wrong


@pytest.mark.parametrize("page", PAGES)
def test_nothing_but_a_table_is_drawn_as_one(page):
    # GitHub takes the line after a table for its last row, and one right before it away from it.
    lines = prose(PAGES[page]).splitlines()
    for line, following in itertools.pairwise(lines):
        assert line.startswith("|") == following.startswith("|") or not (line and following), (
            line,
            following,
        )


def test_each_table_has_one_home():
    found = [table for text in PAGES.values() for table in tables(text)]
    assert len(found) > 10
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("page", PAGES)
def test_the_examples_are_python(page):
    for example in EXAMPLE.findall(PAGES[page]):
        compile(example, page, "exec")


@pytest.mark.parametrize(("page", "shapes"), [("README.md", [(2, 10)]), ("docs/use.md", [(8, 7), (2, 10)])])
def test_the_examples_run_where_model_py_and_the_file_are_alone(page, shapes, tmp_path):
    examples = re.findall(r"```python\n(.*?)```", PAGES[page], re.DOTALL)
    shutil.copy(HERE / "model.py", tmp_path)
    shutil.copy(HERE / "weights" / "minute.pt", tmp_path)
    for example, shape in zip(examples, shapes, strict=True):
        example += f"\nassert logits.shape == {shape}\n"
        subprocess.run([sys.executable, "-c", example], cwd=tmp_path, check=True, capture_output=True)


@pytest.mark.filterwarnings("ignore")  # of the exporter, about itself
@pytest.mark.parametrize("name", ["frontier", "layer-norm-adamw-l2", "group-norm-sgd-l1"])
def test_the_line_of_onnx_writes_one_file_that_gives_what_torch_gives(name, tmp_path, monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    (export,) = re.findall(r"```py\n(torch\.onnx\.export.*?)```", PAGES["docs/use.md"], re.DOTALL)
    net = Net.from_pretrained(name)
    monkeypatch.chdir(tmp_path)
    exec(export, {"torch": torch, "net": net})
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]
    session = onnxruntime.InferenceSession("net.onnx")
    torch.manual_seed(0)
    for images in (torch.randn(1, 3, 32, 32), torch.randn(5, 3, 32, 32)):
        (logits,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), net(images).detach(), rtol=0, atol=2e-5)
