"""README.md: its table comes from the files, its links lead somewhere, its example runs."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lab.report import bench_markdown, ladder_table, report
from lab.study import load_results
from model import Net

HERE = Path(__file__).resolve().parent.parent
README = (HERE / "README.md").read_text()


def test_the_table_of_results_is_what_the_files_say():
    table = report(load_results(HERE / "results"))
    assert ladder_table(load_results(HERE / "results")) in README
    assert table in README, "the files in results/ have changed: put what `python -m lab report` prints here"


def test_the_figures_of_the_benchmark_are_what_its_files_say():
    paths = sorted((HERE / "results" / "bench").glob("*.json"))
    assert paths
    assert bench_markdown([json.loads(path.read_text()) for path in paths]) in README


def test_links_and_pictures_are_there():
    targets = re.findall(r"\]\(([^)#:]+)\)", README)
    assert len(targets) >= 4
    for target in targets:
        assert (HERE / target).exists(), target


def test_the_examples_run_where_model_py_and_the_file_are_alone(tmp_path):
    new, trained = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    shutil.copy(HERE / "model.py", tmp_path)
    shutil.copy(HERE / "weights" / "minute.pt", tmp_path)
    for example, shape in ((new, (8, 7)), (trained, (2, 10))):
        example += f"\nassert logits.shape == {shape}\n"
        subprocess.run([sys.executable, "-c", example], cwd=tmp_path, check=True, capture_output=True)


@pytest.mark.filterwarnings("ignore")  # of the exporter, about itself
@pytest.mark.parametrize("name", ["frontier", "layer-norm-adamw-l2", "group-norm-sgd-l1"])
def test_the_line_of_onnx_writes_one_file_that_gives_what_torch_gives(name, tmp_path, monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    (export,) = re.findall(r"```py\n(torch\.onnx\.export.*?)```", README, re.DOTALL)
    net = Net.from_pretrained(name)
    monkeypatch.chdir(tmp_path)
    exec(export, {"torch": torch, "net": net})
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]
    session = onnxruntime.InferenceSession("net.onnx")
    torch.manual_seed(0)
    for images in (torch.randn(1, 3, 32, 32), torch.randn(5, 3, 32, 32)):
        (logits,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), net(images).detach(), rtol=0, atol=2e-5)
