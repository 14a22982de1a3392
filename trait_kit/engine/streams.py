"""Bytes of files wherever they lie: found by path, URL or glob, opened, decompressed, cut into lines or records.

Damage is a value here, not an exception: a `Gap` stands in the stream where bytes could not be decompressed. Gzip files
often are many members one after another (a WARC file has one a record), so reading goes on at the next member; what
follows the damage in a single member, or in a zstd stream, is lost. Some damage gzip notices only by the checksum at the
member's end: the garbled lines before it are rejected one by one, and the loss is then estimated too low. A file that
cannot be read at all (missing, no permission, the network is down) is an error, because the next attempt may succeed.
"""

from __future__ import annotations

import glob
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import pyarrow as pa

from trait_kit.engine.files import TraitError

WARC_SUFFIXES = (".warc", ".warc.gz", ".wet", ".wet.gz")
SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz", ".jsonl.zst", *WARC_SUFFIXES)
_STAMPS = ("ETag", "etag", "blob_id", "mtime", "LastModified", "last_modified", "last_commit", "created")
_READ, _BLOCK = 1 << 16, 1 << 22  # compressed bytes read at once: what one damaged place costs; decompressed at once
_MEMBER = re.compile(rb"\x1f\x8b\x08[\x00-\x1f].{4}[\x00\x02\x04][\x00-\x0d\xff]", re.DOTALL)  # a gzip member's first bytes
_MEMBER_BYTES = 10
_HEAD = 1 << 12
_RECORD_END = b"\r\n\r\n"  # of WARC: the record before a Gap is whole; a line never ends like that


class Source(NamedTuple):
    """A file of a corpus: path or URL, size in bytes (0 unknown), and what changes when it is written again."""

    name: str
    bytes: int
    stamp: str | int


class Gap(NamedTuple):
    """Damage: `lost` compressed bytes were skipped (0 where the end is missing) after `good` usable ones."""

    lost: int
    good: int
    reason: str


class TooLong(NamedTuple):
    """A line or record of more than `most` bytes, which nobody holds in memory, and how it begins."""

    most: int
    head: bytes


def is_url(name: str) -> bool:
    return "://" in name


def find(spec: str) -> list[Source]:
    """The files of a path, URL or glob in the order of their names; TraitError if there is none that can be read."""
    found = _find_remote(spec) if is_url(spec) else _find_local(spec)
    for source in found:
        if not _path(source.name).endswith(SUFFIXES):
            raise TraitError(
                f"{source.name}: documents are read from {', '.join(SUFFIXES)} files. Convert it, or narrow the glob."
            )
    return found


def _path(name: str) -> str:
    return re.split(r"[?#]", name, maxsplit=1)[0] if is_url(name) else name


def suffix(name: str) -> str:
    """The suffix that says how a file is read: the longest of SUFFIXES that its name ends with."""
    return max((end for end in SUFFIXES if _path(name).endswith(end)), key=len)


def _find_local(spec: str) -> list[Source]:
    path = Path(spec).expanduser()
    if path.is_dir():
        raise TraitError(f"{spec} is a folder. Name its files with a glob, for instance '{spec.rstrip('/')}/*.parquet'.")
    names = [str(path)] if path.is_file() else sorted(glob.glob(str(path), recursive=True))
    files = [Path(name) for name in names if Path(name).is_file()]
    if not files:
        raise TraitError(f"No file matches {spec}. Relative paths start at {Path.cwd()}; demo corpora start with 'demo:'.")
    return [Source(str(file), stat.st_size, stat.st_mtime_ns) for file in files for stat in [file.stat()]]


def _find_remote(spec: str) -> list[Source]:
    import fsspec

    try:
        files, path = fsspec.core.url_to_fs(spec)
        if glob.has_magic(path) and not spec.startswith(("http://", "https://")):
            infos = [info for _, info in sorted(files.glob(path, detail=True).items()) if info["type"] == "file"]
        else:
            infos = [files.info(path)] if files.exists(path) else []
    except ImportError as error:
        raise TraitError(f"{spec} needs a package that is not installed: {error}") from error
    except Exception as error:  # every store has its own: no credentials, no such host, forbidden, a protocol misspelt
        raise TraitError(f"{spec} cannot be listed ({type(error).__name__}: {error}). {_CHECK}") from error
    if not infos:
        raise TraitError(f"No file matches {spec}. {_CHECK}")
    stamps = [next((str(info[name]) for name in _STAMPS if info.get(name)), "") for info in infos]
    return [
        Source(files.unstrip_protocol(info["name"]), info.get("size") or 0, stamp)
        for info, stamp in zip(infos, stamps, strict=True)
    ]


_CHECK = "Check the address, the network, and the credentials that its store asks for."


def open_file(name: str) -> BinaryIO:
    try:
        if is_url(name):
            import fsspec

            return fsspec.open(name, "rb").open()
        return Path(name).open("rb")
    except Exception as error:
        raise unreadable(name, error) from error


def unreadable(name: str, error: Exception) -> TraitError:
    what = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
    return TraitError(f"{name} cannot be read: {what}. Check the path, the permissions and the network, then run again.")


def is_transient(error: Exception) -> bool:
    """Whether an error is the machine's or the network's (another attempt may succeed) and not the file's."""
    return bool(getattr(error, "errno", None)) or isinstance(error, TimeoutError)


def blocks(name: str) -> Iterator[bytes | Gap]:
    """The decompressed bytes of a file, a few megabytes at a time, with a Gap wherever some could not be had."""
    path = _path(name)
    with open_file(name) as stream:
        try:
            if path.endswith(".gz"):
                yield from _gunzip(stream)
            elif path.endswith(".zst"):
                yield from _unzstd(stream)
            else:
                yield from iter(lambda: stream.read(_BLOCK), b"")
        except Exception as error:
            raise unreadable(name, error) from error


def _gunzip(stream: BinaryIO) -> Iterator[bytes | Gap]:
    inflate, reason, good, lost = None, "", 0, 0
    buffer = stream.read(_READ)
    while buffer:
        if reason:  # look for the next member
            start = _MEMBER.search(buffer)
            skip = start.start() if start else max(len(buffer) - _MEMBER_BYTES + 1, 0)
            lost, buffer = lost + skip, buffer[skip:]
            if start is None:
                more = stream.read(_READ)
                lost += 0 if more else len(buffer)
                buffer = buffer + more if more else b""
                continue
            yield Gap(lost, good, reason)
            reason, lost = "", 0
        inflate = inflate or zlib.decompressobj(31)
        before = len(buffer)
        try:
            data = inflate.decompress(buffer, _BLOCK)
        except zlib.error as error:
            inflate, reason, lost, buffer = None, str(error), 1, buffer[1:]
            continue
        if data:
            yield data
        buffer = inflate.unconsumed_tail
        if inflate.eof:
            inflate, buffer = None, inflate.unused_data.lstrip(b"\0")
        good += before - len(buffer)
        buffer = buffer or stream.read(_READ)
    if reason:
        yield Gap(lost, good, reason)
    elif inflate is not None:
        if rest := inflate.flush():
            yield rest
        if not inflate.eof:
            yield Gap(0, good, "the end is missing")


def _unzstd(stream: BinaryIO) -> Iterator[bytes | Gap]:
    try:
        size = stream.seek(0, 2)
        stream.seek(0)
    except (OSError, ValueError):  # a web server that cannot seek: the loss is then not estimated
        size = 0
    plain = pa.CompressedInputStream(pa.PythonFile(stream, "r"), "zstd")
    try:
        while data := plain.read(_READ):
            yield data
    except OSError as error:
        if is_transient(error):
            raise
        good = stream.tell()
        yield Gap(max(size - good, 0), good, str(error))


def split(stream: Iterable[bytes | Gap], separator: bytes, most: int) -> Iterator[bytes | Gap | TooLong]:
    """The pieces between separators, each at most `most` bytes; what a Gap cut in two is lost with it."""
    rest, head = b"", b""  # `head`: of the piece that is too long and being passed over
    for block in stream:
        if isinstance(block, Gap):
            if rest.endswith(_RECORD_END) and not head:
                yield rest
            yield block
            rest = head = b""
            continue
        pieces = (rest + block).split(separator)
        rest = pieces.pop()
        for piece in pieces:
            yield TooLong(most, head or piece[:_HEAD]) if head or len(piece) > most else piece
            head = b""
        if len(rest) > most:
            head, rest = head or rest[:_HEAD], rest[len(rest) - len(separator) + 1 :]
    if rest or head:
        yield TooLong(most, head or rest[:_HEAD]) if head or len(rest) > most else rest
