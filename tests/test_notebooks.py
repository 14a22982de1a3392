"""The notebooks as files: what a reader, papermill and git rely on."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from trait_kit import params
from trait_kit.explore.saving import same_to_git
from trait_kit.runs import SECTION, STEPS

ROOT = Path(__file__).parent.parent
NOTEBOOKS = {name: nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4) for name in STEPS}


def code_cells(book):
    return [cell for cell in book.cells if cell.cell_type == "code"]


def parameters(name: str) -> dict:
    (cell,) = [cell for cell in code_cells(NOTEBOOKS[name]) if "parameters" in cell.metadata.get("tags", [])]
    assert all(isinstance(node, ast.Assign) for node in ast.parse(cell.source).body)
    return {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(cell.source).body}


def test_the_six_notebooks_are_there_and_no_other():
    assert {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")} == set(STEPS)


@pytest.mark.parametrize("name", STEPS)
def test_the_parameters_cell_names_the_demo_and_knobs_that_are_as_the_experiment_says(name):
    values = parameters(name)
    assert values.pop("experiment") == "params/demo.yaml"
    assert values.pop("run_dir") is None
    assert values.keys() <= params.SECTIONS[SECTION[name]].model_fields.keys()
    assert set(values.values()) <= {None}


@pytest.mark.parametrize("name", STEPS)
def test_papermill_sees_every_parameter_with_its_comment(name):
    import papermill

    inferred = papermill.inspect_notebook(str(ROOT / "notebooks" / f"{name}.ipynb"))
    assert inferred.keys() == parameters(name).keys()
    assert [key for key, parameter in inferred.items() if not parameter["help"]] == []


@pytest.mark.parametrize("name", STEPS)
def test_notebook_is_clean_and_keeps_to_the_house_style(name):
    book = NOTEBOOKS[name]
    nbformat.validate(book)
    assert book.metadata.kernelspec.name == "python3"
    assert "papermill" not in book.metadata
    cells = code_cells(book)
    assert len(cells) <= 14
    for cell in cells:
        assert cell.get("id")
        assert not cell.outputs
        assert cell.execution_count is None
        lines = cell.source.splitlines()
        assert len(lines) <= 12, cell.source
        assert not any(line.lstrip().startswith(("def ", "class ", "!", "%")) for line in lines)
    assert book.cells[0].cell_type == "markdown"
    assert book.cells[0].source.startswith(f"# {name[:2]} ·")
    assert any("hange this" in cell.source for cell in book.cells if cell.cell_type == "markdown")


def test_the_filter_of_make_gives_back_the_committed_notebook_after_a_run_by_hand(tmp_path):
    path = ROOT / "notebooks" / "01_domain_classifier.ipynb"
    book = nbformat.read(path, as_version=4)
    book.metadata["language_info"] = {"name": "python", "version": "3.12.1", "mimetype": "text/x-python"}
    cell = code_cells(book)[0]
    cell.execution_count, cell.outputs = 7, [nbformat.v4.new_output("stream", text="secret\n")]
    cell.metadata["execution"] = {"iopub.execute_input": "2026-01-01T00:00:00Z"}
    options = re.search(r'/nbstripout ([^"]+)"', (ROOT / "Makefile").read_text())[1].split()
    command = [sys.executable, "-m", "nbstripout", *options]
    cleaned = subprocess.run(
        command, input=nbformat.writes(book).encode(), capture_output=True, check=True
    ).stdout
    assert cleaned.decode().strip() == path.read_text().strip()


def test_git_sees_a_notebook_that_was_only_looked_at_as_unchanged(tmp_path):
    options = re.search(r'/nbstripout ([^"]+)"', (ROOT / "Makefile").read_text())[1]
    path = tmp_path / "looked.ipynb"

    def git(*arguments: str) -> str:
        given = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org", *arguments]
        return subprocess.run(given, cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    def saved(source: str) -> str:
        output = nbformat.v4.new_output("stream", text="secret\n")
        cell = nbformat.v4.new_code_cell(source, id="one", outputs=[output], execution_count=3)
        nbformat.write(nbformat.v4.new_notebook(cells=[cell]), path)
        same_to_git(os_path=str(path), model={"type": "notebook"}, contents_manager=None)
        return git("status", "--porcelain")

    git("init", "-q")
    git("config", "filter.nbstripout.clean", f"{sys.executable} -m nbstripout {options}")
    (tmp_path / ".gitattributes").write_text("*.ipynb filter=nbstripout\n")
    assert "?? looked.ipynb" in saved("1 + 1")  # nothing is added that git did not know
    git("add", "-A")
    git("commit", "-qm", "all")
    for _ in range(2):
        assert saved("1 + 1") == ""
    assert "secret" not in git("show", "HEAD:looked.ipynb")
    assert saved("1 + 2") == " M looked.ipynb\n"
    assert git("diff", "--cached") == ""
