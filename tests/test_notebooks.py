"""The notebooks as files: what a reader, papermill and git rely on."""

from pathlib import Path

import nbformat
import pytest

from trait_kit import params
from trait_kit.runs import STEPS

ROOT = Path(__file__).parent.parent
NOTEBOOKS = {name: nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4) for name in STEPS}


def code_cells(book):
    return [cell for cell in book.cells if cell.cell_type == "code"]


def test_the_six_notebooks_are_there_and_no_other():
    assert {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")} == set(STEPS)


@pytest.mark.parametrize("name", STEPS)
def test_parameters_cell_has_the_demo_values_of_its_section(name):
    """Open it, run all cells, and it does what `make demo` does: so the cell's values are those of demo.yaml."""
    (cell,) = [cell for cell in code_cells(NOTEBOOKS[name]) if "parameters" in cell.metadata.get("tags", [])]
    values: dict = {}
    exec(cell.source, {}, values)
    section = STEPS[name].section
    demo = getattr(params.load(ROOT / "params" / "demo.yaml"), section)
    assert params.validate(section, values, name) == demo
    assert set(values) == set(type(demo).model_fields)


@pytest.mark.parametrize("name", STEPS)
def test_papermill_sees_every_parameter_with_its_comment(name):
    import papermill

    inferred = papermill.inspect_notebook(str(ROOT / "notebooks" / f"{name}.ipynb"))
    assert set(inferred) == set(params.SECTIONS[STEPS[name].section].model_fields)
    assert [key for key, parameter in inferred.items() if not parameter["help"]] == []


@pytest.mark.parametrize("name", STEPS)
def test_notebook_is_clean_and_keeps_to_the_house_style(name):
    book = NOTEBOOKS[name]
    nbformat.validate(book)
    assert book.metadata.kernelspec.name == "python3"
    assert "papermill" not in book.metadata
    cells = code_cells(book)
    assert len(cells) <= 13
    for cell in cells:
        assert cell.get("id")
        assert not cell.outputs
        assert cell.execution_count is None
        lines = cell.source.splitlines()
        if "parameters" in cell.metadata.get("tags", []):
            continue
        assert len(lines) <= 14, cell.source
        assert not any(line.lstrip().startswith(("def ", "class ", "!", "%")) for line in lines)
    assert book.cells[0].cell_type == "markdown"
    assert book.cells[0].source.startswith(f"# {name[:2]} ·")
