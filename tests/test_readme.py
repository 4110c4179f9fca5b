"""README.md and its pages: tables come from the files, links lead somewhere, examples run."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

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
        *HERE.glob("*/README.md"),
    )
}


def test_the_readme_is_short_and_leads_to_every_page():
    assert len(README.splitlines()) <= 150
    linked = {target for target in re.findall(r"\]\(([^)#:]+)\)", README) if target.endswith(".md")}
    assert linked | {"README.md"} >= set(PAGES)


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


@pytest.mark.parametrize("page", PAGES)
def test_links_and_pictures_are_there(page):
    for target in re.findall(r"\]\(([^)#:]+)\)", PAGES[page]):
        assert ((HERE / page).parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES)
def test_the_examples_are_python(page):
    for example in re.findall(r"```py(?:thon)?\n(.*?)```", PAGES[page], re.DOTALL):
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
