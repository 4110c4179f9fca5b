"""The notebook: as committed, and executed as Colab does, alone in an empty folder."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from lab.report import overview
from lab.study import load_results

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


def test_every_cell_with_a_picture_shows_it_and_says_what_it_shows(notebook):
    drawing = [cell for cell in code_cells(notebook) if "show(" in cell.source]
    assert len(drawing) >= 11
    for cell in drawing:
        shown = [output for output in cell.outputs if "image/png" in output.get("data", {})]
        assert shown, cell.source
        for output in shown:  # for readers who cannot see it
            assert len(output.metadata["image/png"]["alt"]) > 20
            assert output.data["text/plain"] == output.metadata["image/png"]["alt"]


def test_its_contents_name_every_section(notebook):
    first = notebook.cells[0].source
    sections = re.findall(r"^## (.+)$", "\n".join(c.source for c in notebook.cells[1:]), flags=re.MULTILINE)
    assert re.findall(r"\]\(#([^)]+)\)", first) == [section.replace(" ", "-") for section in sections]


def test_its_progress_is_not_shown_as_an_error(notebook):
    streams = {o.name for cell in code_cells(notebook) for o in cell.outputs if o.output_type == "stream"}
    assert streams == {"stdout"}


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
    expected = {"model", "utils"}
    assert expected <= imported <= {*expected, "torch", "google", *sys.stdlib_module_names}


def test_its_table_is_that_of_the_published_records(notebook):
    printed = "".join(o.get("text", "") for cell in code_cells(notebook) for o in cell.outputs)
    runs = load_results(HERE / "results" / "notebook")
    assert len(runs) == 5
    for run in runs:
        (line,) = overview({run.name: run}).splitlines()[1:]
        words = line.split()
        assert any(row.split() == words for row in printed.splitlines()), line


def test_the_minutes_that_it_took_are_those_of_the_page_about_speed(notebook):
    printed = "".join(o.get("text", "") for cell in code_cells(notebook) for o in cell.outputs)
    (minutes,) = re.findall(r"^(\d+) min since the first cell$", printed, flags=re.MULTILINE)
    page = (HERE / "docs" / "speed.md").read_text()
    (row,) = re.findall(r"^\| the whole notebook \|.*$", page, flags=re.MULTILINE)
    (processor,) = re.findall(r"^CIFAR-10, seed 0, .*?(EPYC|Xeon)", printed, flags=re.MULTILINE)
    assert f"| {minutes} min, {processor}" in row


def test_the_networks_that_it_compares_were_trained_in_one_number_format():
    runs = load_results(HERE / "results" / "notebook")
    assert len({run.machine["dtype"] for run in runs}) == 1


def test_the_pictures_it_wrote_are_there(notebook):
    for name in ("samples", "curves", "confusion", "misclassified_1", "kernel"):
        assert (HERE / "images" / f"{name}.png").stat().st_size > 10_000


def bootstrapped(notebook, folder) -> subprocess.CompletedProcess:
    source = re.sub(
        r'^REPOSITORY = ".*"', 'REPOSITORY = ""', code_cells(notebook)[0].source, flags=re.MULTILINE
    )
    script = source + "\nprint(os.getcwd())"
    return subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True)


def test_alone_without_an_address_it_says_what_is_missing_and_what_to_do(notebook, tmp_path):
    ended = bootstrapped(notebook, tmp_path)
    assert ended.returncode == 1
    for said in (str(tmp_path.resolve()), "model.py, utils.py, lab", "REPOSITORY", "papermill: --cwd FOLDER"):
        assert said in ended.stderr
    (tmp_path / "model.py").touch()
    assert "does not contain utils.py, lab," in bootstrapped(notebook, tmp_path).stderr


@pytest.mark.parametrize("start", [".", "runs/notebook"])
def test_it_finds_the_project_from_its_folder_and_from_one_inside(notebook, tmp_path, start):
    (tmp_path / "lab").mkdir()
    (tmp_path / "model.py").touch()
    (tmp_path / "utils.py").touch()
    (tmp_path / start).mkdir(parents=True, exist_ok=True)
    before = sorted(tmp_path.rglob("*"))
    ended = bootstrapped(notebook, tmp_path / start)
    assert Path(ended.stdout.strip()) == tmp_path.resolve()
    assert sorted(tmp_path.rglob("*")) == before


def status(checkout: Path) -> str:
    command = ["git", "status", "--porcelain"]
    return subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=True).stdout


# In the notebook's own process, to which pytest's filters do not reach. One is allowed, as in pyproject.toml.
WARNINGS_ARE_ERRORS = """\
import warnings
warnings.simplefilter("error")
warnings.filterwarnings("ignore", ".*deprecated - use", DeprecationWarning)
"""
PICTURES = {"curves.png", "misclassified_3.png", "techniques_compared.png"}


@pytest.mark.filterwarnings("ignore")  # warnings of the Jupyter client are not ours to mend
def test_in_its_quick_setting_it_runs_as_in_colab_without_a_warning(notebook, tmp_path, monkeypatch):
    source = tmp_path / "source.git"
    subprocess.run(["git", "clone", "--quiet", "--bare", str(HERE), str(source)], check=True)
    alone = nbformat.read(NOTEBOOK, as_version=4)
    bootstrap = code_cells(alone)[0]
    bootstrap.source = re.sub(
        r'^REPOSITORY = ".*"', f"REPOSITORY = {str(source)!r}", bootstrap.source, flags=re.MULTILINE
    )
    assert str(source) in bootstrap.source
    bootstrap.source = WARNINGS_ARE_ERRORS + bootstrap.source
    tagged(alone, "parameters").source += '\nQUICK, DATASET, DEVICE = True, "stand-in", "cpu"'
    folder = tmp_path / "colab"
    folder.mkdir()
    monkeypatch.delenv("PYTHONPATH", raising=False)
    NotebookClient(alone, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()

    test_every_cell_with_a_picture_shows_it_and_says_what_it_shows(alone)
    printed = json.dumps([cell.outputs for cell in code_cells(alone)])
    assert "STAND-IN (not CIFAR-10): 1,000 training and 1,000 test images" in printed
    assert {path.name for path in (folder / "source" / "runs").rglob("*.png")} >= PICTURES
    assert status(folder / "source") == ""


def test_the_command_of_readme_shows_how_far_it_is_and_leaves_the_checkout_as_it_was(tmp_path, monkeypatch):
    checkout = tmp_path / "checkout"
    subprocess.run(["git", "clone", "--quiet", str(HERE), str(checkout)], check=True)
    (command,) = re.findall(r"-r requirements\.txt && (mkdir .*)", (HERE / "README.md").read_text())
    command = command.replace(".venv/bin/", f"{Path(sys.executable).parent}/")
    quick = "papermill -p QUICK True -p DATASET stand-in -p DEVICE cpu"
    monkeypatch.delenv("PYTHONPATH", raising=False)
    ended = subprocess.run(
        command.replace("papermill", quick, 1), shell=True, cwd=checkout, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert "Executing" in ended.stderr  # cells
    assert "group norm, SGD, L1-limit-1000 epoch 1/1" in ended.stderr  # epochs within a cell
    written = {path.name for path in (checkout / "runs" / "notebook").iterdir()}
    names = {f"S7_Convolution_Techniques.{ending}" for ending in ("ipynb", "html")}
    assert written >= PICTURES | names | {
        "blueprint_separable-batch-muon-limit-1000-seed100.json",
        "prediction.png",
    }
    assert status(checkout) == ""
