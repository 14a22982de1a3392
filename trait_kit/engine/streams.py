"""Bytes of files wherever they lie: found by path, URL or glob, known by content, decompressed, cut into lines.

Damage is an exception of its own, `Damaged`, which readers turn into a counted loss. A file that cannot be had at all
(missing, no permission, the network is down) is a TraitError, because the next attempt may succeed.
"""

import contextlib
import glob
import hashlib
import io
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO, NamedTuple

import fsspec
import pyarrow as pa

from trait_kit.engine.files import TraitError

# what is read, and about how many bytes on disk a document of it takes; compressed, 2.5 times fewer
FORMATS = {".parquet": 1_500, ".jsonl": 3_000, ".ndjson": 3_000, ".json": 3_000, ".warc": 60_000, ".wet": 6_000}
_PACKINGS = {".gz": "gzip", ".zst": "zstd"}
_TAGS = ("ETag", "etag", "blob_id", "md5Hash", "content_md5")  # what stores call the digest of a file
_STEP = 1 << 12  # bytes read or decompressed at once, which is what damage costs before it
_PIECES, _PIECE = 16, 1 << 20  # bytes of a file by which it is known, the whole of one up to 16 MB
_CHECK = "Check the address, the network, and the credentials that its store asks for."


class Source(NamedTuple):
    """A file of a corpus: path or URL, size in bytes (0 unknown), and a digest that changes when its content does."""

    name: str
    bytes: int
    content: str


class Damaged(Exception):
    """The rest of a file cannot be decompressed or understood: `lost` bytes of it, behind `good` ones."""

    lost, good = 0, 1


class Steps:
    """A stream that is read by small steps, and tells how far, which decompressing ones don't know and FastWARC asks."""

    closed = False

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._read = stream, 0

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(min(size, _STEP) if size >= 0 else size)
        self._read += len(data)
        return data

    def tell(self) -> int:
        return self._read


def is_url(name: str) -> bool:
    return "://" in name


def format_of(name: str) -> tuple[str, str]:
    """(key of FORMATS, packing) that say how a file is read, empty where nothing does; `A.JSON.GZ`: (".json", ".gz")."""
    path = (re.split(r"[?#]", name, maxsplit=1)[0] if is_url(name) else name).lower()
    packing = next((ending for ending in _PACKINGS if path.endswith(ending)), "")
    return next((ending for ending in FORMATS if path.removesuffix(packing).endswith(ending)), ""), packing


def documents_in(name: str, size: int) -> int:
    """About how many documents so many bytes of a file hold."""
    kind, packing = format_of(name)
    return int(size * (2.5 if packing else 1) / FORMATS[kind])


def find(spec: str) -> list[Source]:
    """The files of a path, URL or glob in the order of their names; TraitError if there is none that can be read."""
    path = os.path.expanduser(spec)
    try:
        store, inner = fsspec.core.url_to_fs(path)
        infos = [store.info(inner)] if store.exists(inner) else []
        if not infos and glob.has_magic(inner) and not path.startswith(("http://", "https://")):
            infos = [info for _, info in sorted(store.glob(inner, detail=True).items()) if info["type"] == "file"]
    except Exception as error:  # every store has its own: no package, credentials or host, forbidden, a protocol misspelt
        raise TraitError(f"{spec} cannot be listed ({type(error).__name__}: {error}). {_CHECK}") from error
    if not infos:
        where = _CHECK if is_url(spec) else f"Relative paths start at {os.getcwd()}; demo corpora start with 'demo:'."
        raise TraitError(f"No file matches {spec}. {where}")
    if infos[0]["type"] == "directory":
        raise TraitError(f"{spec} is a folder. Name its files with a glob, for instance '{spec.rstrip('/')}/*.parquet'.")
    named = store.unstrip_protocol if is_url(path) else str if os.path.isabs(path) else os.path.relpath
    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(lambda info: _source(named(info["name"]), info), infos))


def _source(name: str, info: dict) -> Source:
    """A file known by the digest that its store keeps; else by 16 MB of its bytes, here and there."""
    if not format_of(name)[0]:
        known = ", ".join(FORMATS)
        raise TraitError(
            f"{name}: documents are read from {known} files, also .gz and .zst. Convert it, or narrow the glob."
        )
    size = info.get("size") or 0
    if tag := next((str(info[key]) for key in _TAGS if info.get(key)), ""):
        return Source(name, size, tag)
    digest = hashlib.sha256()
    with open_file(name) as stream:
        for piece in range(_PIECES):
            if size > _PIECES * _PIECE:
                stream.seek(piece * (size - _PIECE) // (_PIECES - 1))
            digest.update(stream.read(_PIECE))
    return Source(name, size, digest.hexdigest())


def open_file(name: str) -> BinaryIO:
    try:
        return fsspec.open(name, "rb").open() if is_url(name) else open(name, "rb")
    except Exception as error:  # every store has its own
        raise unreadable(name, error) from error


def unreadable(name: str, error: Exception) -> TraitError:
    what = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
    return TraitError(f"{name} cannot be read: {what}. Check the path, the permissions and the network, then run again.")


@contextlib.contextmanager
def arrow_damage(name: str) -> Iterator[None]:
    """Damaged for what Arrow says of a file's bytes; TraitError for what the system or the network refuses."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        if getattr(error, "errno", None):
            raise unreadable(name, error) from error
        raise Damaged((str(error).strip().splitlines() or [type(error).__name__])[0]) from error


@contextlib.contextmanager
def reading(name: str) -> Iterator[BinaryIO]:
    """The decompressed bytes of a file; Damaged where the rest of them cannot be had."""
    packing = format_of(name)[1]
    with open_file(name) as stream:
        packed = Steps(stream)
        try:
            with arrow_damage(name):
                plain = pa.CompressedInputStream(pa.PythonFile(packed, "r"), _PACKINGS[packing]) if packing else None
                yield io.BufferedReader(plain, _STEP) if plain else stream
        except Damaged as damage:
            damage.good = packed.tell()
            damage.lost = sum(map(len, iter(lambda: stream.read(1 << 22), b"")))
            raise


def lines(name: str, most: int) -> Iterator[bytes]:
    """The lines of a file; of a longer one a little more than `most` bytes."""
    with reading(name) as stream:
        while line := stream.readline(most + 1):
            yield line
            while len(line) > most and not line.endswith(b"\n"):
                line = stream.readline(most + 1)
