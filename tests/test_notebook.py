"""The notebook: as committed, and executed as Colab does, alone in an empty folder."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

HERE = Path(__file__).resolve().parent.parent
NOTEBOOK = HERE / "S7_Convolution_Techniques.ipynb"


@pytest.fixture(scope="module")
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def code_cells(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tagged(notebook, tag: str):
    (cell,) = [cell for cell in notebook.cells if tag in cell.metadata.get("tags", [])]
    return cell


def test_it_is_committed_executed_in_order_without_error_or_widget_state(notebook):
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [o for cell in cells for o in cell.outputs if o.output_type == "error"]
    assert "widgets" not in notebook.metadata
    nbformat.validate(notebook)


def test_it_was_executed_on_cifar10(notebook):
    printed = "".join(o.get("text", "") for cell in code_cells(notebook) for o in cell.outputs)
    assert "CIFAR-10: 50,000 training and 10,000 test images" in printed
    assert "STAND-IN" not in printed


def test_every_cell_that_saves_a_picture_shows_it(notebook):
    drawing = [cell for cell in code_cells(notebook) if "save(" in cell.source and "plot_" in cell.source]
    assert len(drawing) >= 9
    for cell in drawing:
        assert [o for o in cell.outputs if "image/png" in o.get("data", {})], cell.source


def test_its_cells_hold_no_classes_and_no_functions(notebook):
    for cell in code_cells(notebook):
        for node in ast.walk(ast.parse(cell.source)):
            assert not isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.Lambda)), cell.source


def test_it_imports_model_and_utils_and_no_lab(notebook):
    imported = {
        (node.module or "").split(".")[0] if isinstance(node, ast.ImportFrom) else alias.name.split(".")[0]
        for cell in code_cells(notebook)
        for node in ast.walk(ast.parse(cell.source))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    }
    assert {"model", "utils"} <= imported <= {"model", "utils", "torch", *sys.stdlib_module_names}


def test_the_pictures_it_wrote_are_there(notebook):
    for name in ("samples", "curves", "confusion", "misclassified_1", "techniques_compared"):
        assert (HERE / "images" / f"{name}.png").stat().st_size > 10_000


def test_alone_without_an_address_it_says_what_to_do(notebook, tmp_path):
    bootstrap = code_cells(notebook)[0].source
    ended = subprocess.run([sys.executable, "-c", bootstrap], cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 1
    assert "REPOSITORY" in ended.stderr
    assert "checkout" in ended.stderr


def test_beside_model_py_the_bootstrap_cell_does_nothing(notebook, tmp_path):
    (tmp_path / "model.py").touch()
    script = code_cells(notebook)[0].source + "\nprint(os.getcwd())"
    ended = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert Path(ended.stdout.strip()) == tmp_path.resolve()
    assert [path.name for path in tmp_path.iterdir()] == ["model.py"]


@pytest.mark.filterwarnings("ignore")  # those of the Jupyter client are not ours to mend
def test_it_runs_as_in_colab_from_an_empty_folder_with_its_quick_setting(notebook, tmp_path, monkeypatch):
    source = tmp_path / "source.git"
    subprocess.run(["git", "clone", "--quiet", "--bare", str(HERE), str(source)], check=True)
    alone = nbformat.read(NOTEBOOK, as_version=4)
    bootstrap = code_cells(alone)[0]
    assert 'REPOSITORY = ""' in bootstrap.source
    bootstrap.source = bootstrap.source.replace('REPOSITORY = ""', f"REPOSITORY = {str(source)!r}")
    tagged(alone, "parameters").source += '\nQUICK, DATASET, DEVICE = True, "stand-in", "cpu"'
    folder = tmp_path / "colab"
    folder.mkdir()
    monkeypatch.delenv("PYTHONPATH", raising=False)
    NotebookClient(alone, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()

    test_every_cell_that_saves_a_picture_shows_it(alone)
    printed = json.dumps([cell.outputs for cell in code_cells(alone)])
    assert "STAND-IN (not CIFAR-10): 1,000 training and 1,000 test images" in printed
    checkout = folder / "source"
    written = {path.name for path in (checkout / "runs").rglob("*.png")}
    assert {"curves.png", "misclassified_3.png", "techniques_compared.png"} <= written
    unchanged = subprocess.run(
        ["git", "status", "--porcelain"], cwd=checkout, capture_output=True, text=True, env=os.environ
    )
    assert unchanged.stdout == ""  # a quick run replaces none of the committed pictures and results
