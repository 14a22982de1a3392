"""Which code shapes a result: the files of this package that some modules import, computed from their source.

A hand-kept list of folders is wrong the day after it is written. Here imports are followed wherever they stand, also
inside functions, and a module brings the data files beside it that it names in a string ('prompts', 'concepts').
"""

import ast
from collections.abc import Iterable
from pathlib import Path

from trait_kit.engine.files import content, digest

PACKAGE = Path(__file__).resolve().parents[1]
ROOT = PACKAGE.parent
_DATA = {".yaml", ".yml", ".jinja", ".txt", ".tsv", ".css"}


def code_digest(*entries: str, without: Iterable[str] = ()) -> str:
    """Hex SHA-256 of the files of the `closure`: another value where any code changed that shapes the result."""
    return digest([[str(path.relative_to(ROOT)), content(path)] for path in closure(*entries, without=without)])


def closure(*entries: str, without: Iterable[str] = ()) -> list[Path]:
    """The files that the modules `entries` (or the modules of the functions so named) are made of, imports included.

    `without` names modules that are left out, with what only they import: those that watch a result and do not shape
    it.
    """
    files: set[Path] = set()
    seen = set(without)
    waiting = {entry if _module(entry) else entry.rpartition(".")[0] for entry in entries}
    while waiting := waiting - seen:
        name = waiting.pop()
        seen.add(name)
        if path := _module(name):
            named = _named(path)
            files |= {path, *_data_beside(path, named)}
            waiting |= named
    return sorted(files)


def _named(path: Path) -> set[str]:
    """What a source file imports, modules and their members, and its strings: what starts a child process names one."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
    return found


def _module(name: str) -> Path | None:
    """The file of a module of this package."""
    first, *rest = name.split(".")
    if first != PACKAGE.name or not all(part.isidentifier() for part in rest):
        return None
    path = PACKAGE.joinpath(*rest)
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def _data_beside(path: Path, named: set[str]) -> Iterable[Path]:
    """The data files beside a module that are named, with or without their suffix, or lie in a folder that is."""
    for file in path.parent.rglob("*"):
        if file.suffix in _DATA:
            within = file.relative_to(path.parent)
            folders = [folder for folder in within.parents[:-1] if not (path.parent / folder / "__init__.py").exists()]
            if named & {str(within), str(within.with_suffix("")), *map(str, folders)}:
                yield file
