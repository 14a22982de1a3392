"""Bytes of files wherever they lie: found by path, URL, glob or folder, known by content, decompressed, cut into lines.

Readers turn `Damaged` into a counted loss. A file that cannot be had at all (missing, no permission, the network is down)
is a TraitError, because the next attempt may succeed.
"""

import codecs
import contextlib
import glob
import hashlib
import importlib.util
import io
import json
import logging
import math
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, NamedTuple

import fsspec
import pyarrow as pa
from resiliparse.parse.encoding import detect_encoding, map_encoding_to_html5

from trait_kit.engine.files import TraitError, read_yaml

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_KNOWN = read_yaml(Path(__file__).with_name("streams.yaml"))
FORMATS, _TAGS, _LARGER = (_KNOWN[name] for name in ("formats", "tags", "larger_encodings"))
_PACKINGS = {  # Arrow's zstd knows no window of more than 128 MB
    ".gz": lambda stream: pa.CompressedInputStream(pa.PythonFile(stream, "r"), "gzip"),
    ".zst": lambda stream: zstd.ZstdFile(stream, options={zstd.DecompressionParameter.window_log_max: 31}),
}
_STEP = 1 << 12  # bytes read or decompressed at once, which damage costs before it
LINE_BYTES = 32_000_000  # of a longer line little more is read
_PIECES, _PIECE = 16, 1 << 20  # bytes of a file by which it is known: all of up to 16 MB
_CHECK = "Check the address, the network, and the credentials that its store asks for."

log = logging.getLogger(__name__)
_said: set[str] = set()


class Source(NamedTuple):
    """A file of a corpus: path or URL, size in bytes (0 unknown), a digest that changes with its content."""

    name: str
    bytes: int
    content: str


class Damaged(Exception):
    """The rest of a file cannot be decompressed or understood: `lost` bytes, behind `good` ones."""

    good = 1

    def __init__(self, what: str, lost: int = 0) -> None:
        super().__init__(what)
        self.lost = lost


class Steps:
    """A stream read by small steps, which tells how far: a decompressing one does not know."""

    closed = False

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._read = stream, 0

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(min(size, _STEP) if size >= 0 else size)
        self._read += len(data)
        return data

    def tell(self) -> int:
        return self._read


def say(name: str, encoding: str) -> None:
    """Tell how a file is read that is no UTF-8, of many the first."""
    if encoding not in _said:
        _said.add(encoding)
        log.warning("%s is read as %s, and so are files like it.", name, encoding)


def is_url(name: str) -> bool:
    return "://" in name


def format_of(name: str) -> tuple[str, str]:
    """(key of FORMATS, packing) of a file or empty: (".json", ".gz") of `A.JSON.GZ`."""
    path = (re.split(r"[?#]", name, maxsplit=1)[0] if is_url(name) else name).lower()
    packing = next((ending for ending in _PACKINGS if path.endswith(ending)), "")
    return next((ending for ending in FORMATS if path.removesuffix(packing).endswith(ending)), ""), packing


def is_document(name: str) -> bool:
    return FORMATS.get(format_of(name)[0]) == math.inf


def documents_in(name: str, size: int, found: int = 0, good: int = 1) -> int:
    """About how many documents so many bytes of a file hold: as the `found` in `good` bytes, else as its kind."""
    kind, packing = format_of(name)
    return size * found // good if found else int(size * (2.5 if packing else 1) / FORMATS[kind])


def find(spec: str) -> list[Source]:
    """The files of a path, URL, glob or folder in the order of their names; TraitError if none can be read.

    Of a folder those that can be read, at any depth, not hidden; which are passed over is said.
    """
    path = os.path.expanduser(spec)
    try:
        store, inner = fsspec.core.url_to_fs(path)
        inside = {inner: store.info(inner)} if store.exists(inner) else {}
        folder = bool(inside) and inside[inner]["type"] == "directory"
        if folder:
            inside = store.find(inner, detail=True)
        elif not inside and glob.has_magic(inner) and not path.startswith(("http://", "https://")):
            inside = store.glob(inner, detail=True)
    except Exception as error:  # every store has its own
        raise TraitError(f"{spec} cannot be listed ({type(error).__name__}: {error}). {_CHECK}") from error
    names = [name for name in sorted(inside) if inside[name]["type"] != "directory"]
    if folder or "/." not in inner:  # no hidden ones unasked
        names = [name for name in names if "/." not in name.removeprefix(inner)]
    if not names:
        here = f"Relative paths start at {os.getcwd()}; demo corpora start with 'demo:'."
        raise TraitError(f"No file matches {spec}. {_CHECK if is_url(spec) else here}")
    names = _readable(spec, names) if folder else names
    named = store.unstrip_protocol if is_url(path) else str if os.path.isabs(path) else os.path.relpath

    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(lambda name: _source(named(name), inside[name]), names))


def _readable(spec: str, names: list[str]) -> list[str]:
    passed = Counter(os.path.splitext(name)[1] or "no ending" for name in names if not format_of(name)[0])
    kinds = ", ".join(f"{count} {kind}" for kind, count in passed.most_common(5))
    if passed:
        log.warning("%s: %d of its %d files are passed over (%s).", spec, passed.total(), len(names), kinds)
    if passed.total() == len(names):
        raise TraitError(f"{spec} is a folder without files that can be read: {', '.join(FORMATS)}.")
    return [name for name in names if format_of(name)[0]]


def _source(name: str, info: dict) -> Source:
    """A file known by its store's digest, else by 16 MB of its bytes."""
    if not format_of(name)[0]:
        raise TraitError(
            f"{name}: documents are read from {', '.join(FORMATS)}, also .gz and .zst. Convert it, or narrow the glob."
        )
    if format_of(name)[0] == ".pdf" and not importlib.util.find_spec("pypdf"):
        raise TraitError(f"{name}: to read PDF files, pip install 'trait-kit[pdf]'.")
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
    return TraitError(
        f"{name} cannot be read: {what}. Check the path, the permissions and the network, then run again."
    )


@contextlib.contextmanager
def arrow_damage(name: str) -> Iterator[None]:
    """Damaged for what Arrow says of bytes; TraitError for what the system or the network refuses."""
    try:
        yield
    except (pa.ArrowException, zstd.ZstdError, EOFError, OSError) as error:
        if getattr(error, "errno", None):
            raise unreadable(name, error) from error
        raise Damaged((str(error).strip().splitlines() or [type(error).__name__])[0]) from error


@contextlib.contextmanager
def reading(name: str) -> Iterator[io.BufferedReader]:
    """The decompressed bytes of a file; Damaged where the rest cannot be had."""
    unpacked = _PACKINGS.get(format_of(name)[1])
    with open_file(name) as stream:
        try:
            with arrow_damage(name):
                raw, step = (unpacked(Steps(stream)), _STEP) if unpacked else (stream, _PIECE)
                yield io.BufferedReader(raw, step)
        except Damaged as damage:
            damage.good = max(stream.tell(), 1)
            damage.lost += sum(map(len, iter(lambda: stream.read(1 << 22), b"")))
            raise


# Text


def decode(page: bytes, charset: str = "") -> str:
    """A page by its byte order mark, the header's `charset`, its HTML meta, its bytes."""
    encoding = encoding_of(page, charset, detect_encoding(page, from_html_meta=True))
    return page.decode(encoding, "replace").removeprefix("\ufeff")


def encoding_of(data: bytes, *said: str) -> str:
    """How a text that begins so is encoded: by its byte order mark, the first name `said` that fits, its bytes."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    even, odd = (b"\0" in data and data[start::2].count(0) > len(data) / 5 for start in (0, 1))
    by_zeros = ["utf-16-be" if even else "utf-16-le"] * (even != odd)
    for guess in ("utf-8",) if data.startswith(codecs.BOM_UTF8) else (*said, *by_zeros, "utf-8"):
        with contextlib.suppress(LookupError, TypeError, ValueError):
            name = map_encoding_to_html5(guess, False)
            codecs.getincrementaldecoder(_LARGER.get(name, name))().decode(data)
            return _LARGER.get(name, name)
    found, text = map_encoding_to_html5(detect_encoding(data), False), data.decode("utf-8", "replace")
    if found == "utf-8" and 2 * text.count("\ufffd") < sum(mark > "\x7f" for mark in text):
        return "utf-8"  # with broken letters
    return "cp1252" if found in ("utf-8", "windows-1252", "iso8859-15") else _LARGER.get(found, found)


def lines(name: str, strict: bool = False) -> Iterator[str]:
    """The lines of a file, or the values of its JSON array.

    Decoded as the first ones look, or else as cp1252; if `strict`, as UTF-8 with surrogates. If not, JSON may also be rows
    by id, or one list beside other things ({'version': 1, 'data': [...]}).
    """
    with reading(name) as file:  # else it is closed
        stream = file
        head = b"".join(stream.peek(_STEP).splitlines(keepends=True)[:50])
        encoding = encoding_of(head)
        if encoding.startswith("utf-16"):
            say(name, encoding)
            head, encoding = stream.read().decode(encoding, "replace").encode(), "utf-8"
            stream = io.BytesIO(head)
        encoding = "utf-8" if strict else encoding
        if encoding != "utf-8":
            say(name, encoding)

        def decoded(line: bytes) -> str:
            try:
                return line.decode(encoding, "surrogateescape" if strict else "strict").removeprefix("\ufeff")
            except UnicodeDecodeError:
                say(name, f"{encoding}, with lines of cp1252")
                return line.decode("cp1252", "replace")

        array = head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")
        kind = format_of(name)[0]
        if (array and kind not in (".csv", ".tsv")) or (kind == ".json" and not strict):
            data = stream.read()
            try:
                values = json.loads(decoded(data))
                if isinstance(values, dict):
                    lists = [value for value in values.values() if isinstance(value, list)]
                    values = lists[0] if len(lists) == 1 else [{"id": key, **row} for key, row in values.items()]
                yield from map(json.dumps, values)
            except (ValueError, TypeError, RecursionError) as error:
                if array and kind == ".json":
                    raise Damaged(f"no JSON array: {error}", len(data)) from error
                stream = io.BytesIO(data)
        while line := stream.readline(LINE_BYTES):
            yield decoded(line)
            while len(line) == LINE_BYTES and not line.endswith(b"\n"):
                line = stream.readline(LINE_BYTES)
