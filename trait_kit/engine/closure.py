"""Which code shapes a result: the files of this package that some modules import, computed from their source.

A hand-kept list of folders is wrong the day after it is written. Here imports are followed wherever they stand, also
inside functions, and a module brings the data files beside it that it names in a string ('prompts', 'concepts').
"""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]  # the folder that holds the package
PACKAGE = Path(__file__).resolve().parents[1]
_DATA = {".yaml", ".yml", ".jinja", ".txt", ".tsv", ".css"}


def code_digest(*entries: str, without: Iterable[str] = ()) -> str:
    """Hex SHA-256 of the files of the `closure`: another value where any code changed that shapes the result."""
    hashes = [
        [str(path.relative_to(ROOT)), _sha256(path, path.stat().st_mtime_ns)] for path in closure(*entries, without=without)
    ]
    return hashlib.sha256(repr(hashes).encode()).hexdigest()


def closure(*entries: str, without: Iterable[str] = ()) -> list[Path]:
    """The files that the modules `entries` (or the modules of the functions so named) are made of, imports included.

    `without` names modules that are left out, with what only they import: those that watch a result and do not shape it.
    """
    files: set[Path] = set()
    waiting = [entry if _file(entry) else entry.rpartition(".")[0] for entry in entries]
    seen = set(without)
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        if path := _file(name):
            files |= {path, *_data_beside(path)}
            waiting += _imports(path.read_text(encoding="utf-8"))
    return sorted(files)


def _imports(source: str) -> list[str]:
    """Modules of this package that the source imports, or names in a string, as what starts a child process does."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:  # a module, or a function of one
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
    return [name for name in found if name.split(".")[0] == PACKAGE.name and _file(name)]


def _file(name: str) -> Path | None:
    if not all(part.isidentifier() for part in name.split(".")):
        return None
    path = ROOT.joinpath(*name.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def _data_beside(path: Path) -> Iterable[Path]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    for there in path.parent.iterdir():
        if there.is_dir() and there.name in names and not (there / "__init__.py").exists():
            yield from (file for file in sorted(there.rglob("*")) if file.suffix in _DATA)
        elif there.suffix in _DATA and (there.name in names or there.stem in names):
            yield there


@functools.cache
def _sha256(path: Path, changed: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
