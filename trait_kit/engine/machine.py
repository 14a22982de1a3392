"""What a result was made with and on: code (computed from the source), packages, cores, memory, speed; quiet libraries."""

import ast
import importlib.metadata
import logging
import os
import platform
import re
import resource
import subprocess
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil

from trait_kit.engine.files import content, digest

PACKAGE = Path(__file__).resolve().parents[1]
ROOT = PACKAGE.parent
_DATA = {".yaml", ".yml", ".jinja", ".txt", ".tsv", ".css"}


def provenance() -> dict[str, Any]:
    needed = [
        re.match(r"[\w-]+", each)[0] for each in importlib.metadata.requires("trait-kit") if ";" not in each
    ]
    return {
        "trait_kit": importlib.metadata.version("trait-kit"),
        "git_commit": _git_commit(),
        "packages": {package: importlib.metadata.version(package) for package in needed},
        "machine": hardware_line(),
    }


def hardware_line() -> str:
    import torch

    cores = len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else os.cpu_count()
    memory = f"{psutil.virtual_memory().total / 2**30:.1f} GB"
    gpus = ", ".join(map(torch.cuda.get_device_name, range(torch.cuda.device_count()))) or "no GPU"
    return f"{cores} cores, {memory}, {gpus} | {platform.machine()} | Python {platform.python_version()}"


def matrix_rate(precision: str) -> float:
    """FLOP/s of a large square matrix product on the processor."""
    import torch
    from torch.utils.benchmark import Timer

    side = 1_024
    left, right = (torch.randn(side, side, dtype=getattr(torch, precision)) for _ in range(2))
    timer = Timer("left @ right", globals={"left": left, "right": right}, num_threads=torch.get_num_threads())
    return 2 * side**3 / timer.blocked_autorange(min_run_time=0.1).median


def peak_memory_gb() -> float:
    """Of this process or the largest of its ended children, in GiB."""
    unit = 2**30 if sys.platform == "darwin" else 2**20  # bytes there, KiB elsewhere
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return max(usage.ru_maxrss for usage in usages) / unit


def quiet_libraries() -> None:
    """No progress bars and advice of libraries, which would bury what the notebook says; before torch is imported.

    OpenMP's threads are to sleep while they wait: spinning makes everything several times slower as soon as another
    process wants a core.
    """
    bars = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    threads = {"OMP_WAIT_POLICY": "passive", "TOKENIZERS_PARALLELISM": "false"}
    for name, value in {"TRANSFORMERS_VERBOSITY": "error", **bars, **threads}.items():
        os.environ.setdefault(name, value)
    for name in ("transformers", "datasets", "lm_eval", "numba", "httpx"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)


def _git_commit() -> str | None:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        return subprocess.check_output(command, text=True, stderr=subprocess.DEVNULL, timeout=20).strip()
    except (OSError, subprocess.SubprocessError):
        return None


def code_digest(*entries: str, without: Iterable[str] = ()) -> str:
    return digest([[str(path.relative_to(ROOT)), content(path)] for path in closure(*entries, without=without)])


def closure(*entries: str, without: Iterable[str] = ()) -> list[Path]:
    """The files that the modules `entries` (or the modules of functions so named) are made of, imports included.

    Imports count wherever they stand, and data files beside a module that it names in a string. Modules `without` are
    left out, with what only they import: they watch a result.
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
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)  # what starts a child process names a module
    return found


def _module(name: str) -> Path | None:
    first, *rest = name.split(".")
    if first != PACKAGE.name or not all(part.isidentifier() for part in rest):
        return None
    path = PACKAGE.joinpath(*rest)
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def _data_beside(path: Path, named: set[str]) -> Iterable[Path]:
    """The data files beside a module that are named, with or without suffix, or lie in a folder that is."""
    for file in path.parent.rglob("*"):
        if file.suffix in _DATA:
            within = file.relative_to(path.parent)
            folders = [
                folder for folder in within.parents[:-1] if not (path.parent / folder / "__init__.py").exists()
            ]
            if named & {str(within), str(within.with_suffix("")), *map(str, folders)}:
                yield file
