"""README.md: its table comes from the files, its links lead somewhere, its example runs."""

import json
import re
import subprocess
import sys
from pathlib import Path

from lab import bench
from lab.study import load_results, report

HERE = Path(__file__).resolve().parent.parent
README = (HERE / "README.md").read_text()


def test_the_table_of_results_is_what_the_files_say():
    table = report(load_results(HERE / "results"))
    assert table in README, "the files in results/ have changed: put what `python -m lab report` prints here"


def test_the_figures_of_the_benchmark_are_what_its_files_say():
    names = re.findall(r"results/bench/[\w-]+\.json", README)
    assert names
    for name in names:
        assert bench.markdown(json.loads((HERE / name).read_text())) in README


def test_links_and_pictures_are_there():
    targets = re.findall(r"\]\(([^)#:]+)\)", README)
    assert len(targets) >= 4
    for target in targets:
        assert (HERE / target).exists(), target


def test_the_example_runs_where_model_py_is_alone(tmp_path):
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (tmp_path / "model.py").write_text((HERE / "model.py").read_text())
    example += "\nassert logits.shape == (8, 7)\n"
    subprocess.run([sys.executable, "-c", example], cwd=tmp_path, check=True, capture_output=True)
