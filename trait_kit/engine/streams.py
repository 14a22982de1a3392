"""Bytes of files wherever they lie: found by path, URL or glob, known by content, decompressed, cut into lines or records.

Damage is a value here, not an exception: a `Gap` stands where the rest of a file could not be decompressed. A file that
cannot be had at all (missing, no permission, the network is down) is an error, because the next attempt may succeed.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO, NamedTuple

import fsspec
import pyarrow as pa

from trait_kit.engine.files import TraitError

# what is read, and about how many bytes on disk a document of it takes; compressed, 2.5 times fewer
FORMATS = {".parquet": 1_500, ".jsonl": 3_000, ".ndjson": 3_000, ".json": 3_000, ".warc": 60_000, ".wet": 6_000}
_TAGS = ("ETag", "etag", "blob_id", "md5Hash", "content_md5")  # what stores call the digest of a file
_BLOCK, _UNPACKED = 1 << 22, 1 << 16  # bytes read at once; decompressed at once, which is what damage costs before it
_WHOLE, _PIECES, _PIECE, _HEAD = 1 << 24, 16, 1 << 16, 1 << 12
_CHECK = "Check the address, the network, and the credentials that its store asks for."


class Source(NamedTuple):
    """A file of a corpus: path or URL, size in bytes (0 unknown), and a digest that changes when its content does."""

    name: str
    bytes: int
    content: str


class Gap(NamedTuple):
    """Damage: `lost` compressed bytes (0 where the end is missing) behind `good` usable ones."""

    lost: int
    good: int
    reason: str


class TooLong(NamedTuple):
    """A line or record of more bytes than anybody holds in memory: how many, and how it begins."""

    bytes: int
    head: bytes


def is_url(name: str) -> bool:
    return "://" in name


def format_of(name: str) -> tuple[str, str]:
    """(key of FORMATS, packing) that say how a file is read, empty where nothing does; `A.JSON.GZ`: (".json", ".gz")."""
    path = (re.split(r"[?#]", name, maxsplit=1)[0] if is_url(name) else name).lower()
    packing = next((ending for ending in (".gz", ".zst") if path.endswith(ending)), "")
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
    except ImportError as error:
        raise TraitError(f"{spec} needs a package that is not installed: {error}") from error
    except Exception as error:  # every store has its own: no credentials, no such host, forbidden, a protocol misspelt
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
    """A file known by the digest that its store keeps; else by all its bytes, or 16 pieces of one larger than 16 MB."""
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
        for piece in range(_PIECES if size > _WHOLE else 0):
            stream.seek(piece * (size - _PIECE) // (_PIECES - 1))
            digest.update(stream.read(_PIECE))
        if size <= _WHOLE:
            digest.update(stream.read(_WHOLE))
    return Source(name, size, digest.hexdigest())


def open_file(name: str) -> BinaryIO:
    try:
        return fsspec.open(name, "rb").open() if is_url(name) else open(name, "rb")
    except Exception as error:
        raise unreadable(name, error) from error


def unreadable(name: str, error: Exception) -> TraitError:
    what = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
    return TraitError(f"{name} cannot be read: {what}. Check the path, the permissions and the network, then run again.")


def blocks(name: str) -> Iterator[bytes | Gap]:
    """The decompressed bytes of a file, some megabytes at a time, and a Gap if the rest could not be had."""
    packing = format_of(name)[1]
    with open_file(name) as stream:
        try:
            if not packing:
                yield from iter(lambda: stream.read(_BLOCK), b"")
                return
            plain = pa.CompressedInputStream(pa.PythonFile(stream, "r"), {".gz": "gzip", ".zst": "zstd"}[packing])
            try:
                yield from iter(lambda: plain.read(_UNPACKED), b"")
            except OSError as error:
                if error.errno:
                    raise
                good = stream.tell()
                yield Gap(sum(map(len, iter(lambda: stream.read(_BLOCK), b""))), good, str(error))
        except Exception as error:
            raise unreadable(name, error) from error


def split(stream: Iterable[bytes | Gap], cut: Callable[[bytes], list[bytes]], most: int) -> Iterator[bytes | Gap | TooLong]:
    """The pieces that `cut` makes, each at most `most` bytes; what a Gap cut in two is lost with it."""
    rest, long = b"", TooLong(0, b"")  # `long`: the piece that is too long and being passed over
    for block in stream:
        if isinstance(block, Gap):
            cut_off = (long.bytes + len(rest)) // 3  # not yet a piece, and compressed before
            yield Gap(block.lost + cut_off, max(block.good - cut_off, 1), block.reason)
            return
        pieces = cut(rest + block)
        rest = pieces.pop()
        for piece in pieces:
            yield _longer(long, piece) if long.bytes or len(piece) > most else piece
            long = TooLong(0, b"")
        if len(rest) > most:
            long, rest = _longer(long, rest), rest[-_HEAD:]
    if rest or long.bytes:
        yield _longer(long, rest) if long.bytes or len(rest) > most else rest


def _longer(long: TooLong, more: bytes) -> TooLong:
    return TooLong(long.bytes + len(more), long.head or more[:_HEAD])
