"""The house stays thin: lines a chapter, imports that only go down, knobs, parameter cells. `make lint` runs this."""

import ast
import functools
from collections import defaultdict
from pathlib import Path

import nbformat
import pytest

from trait_kit import params

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "trait_kit"
CEILINGS = {  # lines of Python: what the house is to be
    "spine": 2_300,
    "selection": 1_500,
    "passages": 1_500,
    "training": 1_500,
    "evaluation": 1_500,
    "figures": 1_500,
    "explore": 600,
    "own_domain": 600,  # new and check
    "judging": 800,  # answers and numbers
    "engine": 2_700,
    "reading": 1_500,  # documents and rows, from files and archives
}
WHOLE, LONGEST_FILE = 13_000, 400
# the first version's 1,078,992 bytes and 14,521 statements in 22,468 lines
BYTES_A_LINE, STATEMENTS_A_LINE = 48.03, 0.647
FLOORS = [  # a module imports from its own chapter and from lower floors
    {"engine"},
    {"params", "reading"},
    {"judging"},
    {"fields", "demo", "models", "tables", "tasks"},
    {"selection", "passages"},
    {"runs"},
    {"training", "evaluation"},
    {"figures"},
    {"explore"},
    {"pipeline"},
    {"own_domain"},
    {"cli"},
]
FILES = sorted(PACKAGE.rglob("*.py"))


def chapter(path: Path) -> str:
    """The chapter of a file: its folder, or the module itself on the spine."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


def room(path: Path) -> str:
    return "spine" if path.parent == PACKAGE else chapter(path)


@functools.cache
def imported(path: Path) -> set[str]:
    """Dotted names under trait_kit that a file imports, wherever it does."""
    found = set()
    tree = ast.parse(path.read_text())
    typed = [
        node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    for_types = {id(inner) for node in typed for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "trait_kit":
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("trait_kit.")}
    return {name.removeprefix("trait_kit.") for name in found}


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n")


def test_no_chapter_and_no_file_is_over_its_ceiling():
    counted = defaultdict(int)
    for path in FILES:
        counted[room(path)] += lines(path)
    print(dict(counted), sum(counted.values()))
    over = {name: count for name, count in counted.items() if count > CEILINGS[name]}
    assert not over, f"chapters over their ceiling: {over}"
    assert sum(counted.values()) <= WHOLE
    assert [path.name for path in FILES if lines(path) > LONGEST_FILE] == []


def test_the_ceilings_are_not_met_by_denser_lines():
    total = sum(lines(path) for path in FILES)
    statements = sum(
        isinstance(node, ast.stmt) for path in FILES for node in ast.walk(ast.parse(path.read_text()))
    )
    assert sum(path.stat().st_size for path in FILES) / total <= BYTES_A_LINE
    assert statements / total <= STATEMENTS_A_LINE


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_only_go_down(path):
    level = {name: number for number, names in enumerate(FLOORS) for name in names}
    here = chapter(path)
    if here == "__init__":
        return
    for name in imported(path):
        there = name.split(".")[0]
        if there in level and there != here:
            same_floor_of_the_spine = level[there] == level[here] and path.parent == PACKAGE
            assert level[there] < level[here] or same_floor_of_the_spine, f"{here} imports {name}"


def test_no_circle_of_imports():
    names = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in FILES}
    graph = {name: {other for other in names if any(i == other or i.startswith(f"{other}.") for i in imported(path))}
             for name, path in names.items() if path.name != "__init__.py"}  # fmt: skip
    seen: dict[str, int] = {}

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert seen.get(name) != 1, f"a circle: {' -> '.join((*trail, name))}"
        if name in seen:
            return
        seen[name] = 1
        for other in graph.get(name, ()):
            if other != name:
                visit(other, (*trail, name))
        seen[name] = 2

    for name in graph:
        visit(name, ())


def test_there_are_few_knobs():
    knobs = {field for model in params.SECTIONS.values() for field in model.model_fields}
    own = sum(
        len(set(model.model_fields) - set(params.Common.model_fields)) for model in params.SECTIONS.values()
    )
    print(len(knobs), own + len(params.Common.model_fields))
    assert len(knobs) <= 85


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_parameters_cell_has_few_lines(path):
    book = nbformat.read(path, as_version=4)
    (cell,) = [cell for cell in book.cells if "parameters" in cell.metadata.get("tags", [])]
    assert len(cell.source.splitlines()) <= 12
