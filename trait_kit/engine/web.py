"""Pages of the web: WARC and WET files to documents, HTML to text with trafilatura.

Records are cut from the stream at the next record's first line, not after the bytes their header promises, because both
well-kept libraries lose the rest of a file to one lying Content-Length: FastWARC stops, or reads a too long record to
the end of the file; warcio stops as well where the length is negative, no number or too short for its headers, refuses
files that are one gzip member, and neither notices that a file's end is missing. FastWARC then reads each record: it is
the faster, decodes HTTP transfer and content encodings, and its charset is one that Python knows.

Extraction is the slowest step of the kit (10 to 40 ms a page), so its result is kept in the cache folder, in numbered
parts: a WARC file is extracted once, whoever asks, and one that was interrupted goes on after its last whole part.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import re
import signal
import struct
import subprocess
import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from trait_kit.engine.files import TraitError, atomic_path, digest, maker_of, read_json, write_json
from trait_kit.engine.records import PART_BYTES, Part, cut_off, documents_table, records_in
from trait_kit.engine.streams import Gap, Source, TooLong, blocks, split, suffix
from trait_kit.engine.wheels import cache_dir

PAGE_BYTES = 8_000_000  # a larger response is not parsed
SKIPPED = "skipped: "  # an ordinary page without text to read, no loss
_RULES = 1  # raised whenever the same file would give other documents
_PART_RECORDS, _HTML_BYTES = 2_000, 1 << 26  # a part ends after either; Common Crawl has three records a page
_HEADER_BYTES = 1 << 16
_FIRST_LINE = b"WARC/1."
_WORKER = Path(__file__).with_name("html_worker.py")
_NAMES = re.compile(r"[^\w/+.-]+")
_TOO_LARGE = f"{SKIPPED}larger than {PAGE_BYTES // 1_000_000} MB"
_EXTRACTED = pa.schema(
    [
        *(("id", pa.string()), ("url", pa.string()), ("text", pa.string()), ("row", pa.int64())),
        *(("reason", pa.string()), ("records", pa.int64()), ("damage", pa.bool_())),
    ]
)


class Page(NamedTuple):
    """A record: what a document needs, or why it gives none (`reason`); both empty for records that hold no page."""

    id: str = ""
    url: str = ""
    text: str = ""
    html: bytes = b""
    charset: str = ""
    reason: str = ""


class Sandbox:
    """HTML to text in a child process that a page may hang or crash: that page is lost, the next ones are not."""

    def __init__(self, seconds_per_page: float, worker: Path = _WORKER) -> None:
        self._seconds, self._worker = seconds_per_page, worker
        self._process: subprocess.Popen[bytes] | None = None

    def text(self, page: Page) -> tuple[str, str]:
        """(text, "") or ("", the reason why there is none)."""
        if self._process is None:
            command = [sys.executable, "-P", str(self._worker)]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
            self._process = subprocess.Popen(command, **pipes)
        charset = page.charset.encode()
        try:
            head = struct.pack("<fIQ", self._seconds, len(charset), len(page.html))
            self._process.stdin.write(head + charset + page.html)
            self._process.stdin.flush()
            (length,) = struct.unpack("<Q", self._process.stdout.read(8))
            answer = self._process.stdout.read(length)
            if len(answer) < length:
                raise BrokenPipeError
        except (struct.error, BrokenPipeError):
            code = self._process.wait()
            self.close()
            if code == -signal.SIGALRM:
                return "", f"its HTML took the parser more than {self._seconds:g} s"
            return "", f"its HTML crashed the parser (exit code {code})"
        if answer[:1] != b"+":
            return "", f"its HTML cannot be parsed ({answer[1:].decode()})"
        text = answer[1:].decode().strip()
        return (text, "") if text else ("", f"{SKIPPED}no main text")

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
            self._process = None


def read_web(source: Source, *, seconds_per_page: float = 10.0, worker: Path = _WORKER) -> Iterator[Part]:
    """The documents of a WARC file (from the cache where they are) or of a WET file, whose texts need no extraction."""
    if suffix(source.name).startswith(".wet"):
        _need_libraries()
        for _, rows in itertools.groupby(_records(source.name, PART_BYTES), key=itemgetter(0)):
            yield _part(_documents(rows, None), source.name)
        return
    folder = cache_dir() / "extracted" / _cache_key(source, seconds_per_page, worker)
    finished = folder / "finished.json"
    paths = [_part_path(folder, number) for number in range(read_json(finished)["parts"])] if finished.exists() else []
    if finished.exists() and all(path.exists() for path in paths):
        for path in paths:
            yield _part(pq.read_table(path), source.name)
        return
    parts = 0
    for number, rows in itertools.groupby(_records(source.name, _HTML_BYTES), key=itemgetter(0)):
        path = _part_path(folder, number)
        if not path.exists():
            with maker_of(folder / "parts"):
                if not path.exists():
                    _extract(rows, path, seconds_per_page, worker)
        yield _part(pq.read_table(path), source.name)
        parts = number + 1
    write_json(finished, {"file": source.name, "parts": parts})


def _records(name: str, part_bytes: int) -> Iterator[tuple[int, int, bytes | Gap | TooLong]]:
    """(part, row, record): a part is cut after so many bytes or records, the same however often the file is read."""
    part = row = records = size = 0
    for piece in split(blocks(name), b"\r\n\r\n" + _FIRST_LINE, PAGE_BYTES + _HEADER_BYTES):
        if records >= _PART_RECORDS or size >= part_bytes:
            part, records, size = part + 1, 0, 0
        if isinstance(piece, Gap):
            yield part, row, piece
            continue
        row, records = row + 1, records + 1
        size += len(piece) if isinstance(piece, bytes) else 0
        yield part, row, piece


def _page(piece: bytes | TooLong) -> Page:
    """What one record holds, its length checked against what its header promises."""
    from fastwarc.warc import ArchiveIterator, WarcRecordType

    record = piece.head if isinstance(piece, TooLong) else piece
    record = record if record.startswith(_FIRST_LINE) else _FIRST_LINE + record
    head = record.find(b"\r\n\r\n") + 4
    try:
        found = next(ArchiveIterator(io.BytesIO(record), parse_http=False), None)
    except OSError:
        found = None
    if found is None or head < 4:
        return Page(reason="not a WARC record")
    if found.record_type not in (WarcRecordType.response, WarcRecordType.conversion):
        return Page()
    try:
        headers = {name.lower(): value for name, value in found.headers.items()}
        length = headers.get("content-length", "")
        if not re.fullmatch(r"[0-9]{1,18}", length):
            return Page(reason="its Content-Length is no length")
        if isinstance(piece, TooLong) and int(length) > PAGE_BYTES:
            return Page(reason=_TOO_LARGE)
        if int(length) > len(record) - head or record[head + int(length) :].strip(b"\r\n"):
            return Page(reason="its Content-Length does not fit")
        url = _clean(headers.get("warc-target-uri", "").strip("<>"))
        page = Page(id=_clean(headers.get("warc-record-id", "")) or url, url=url)
        if found.record_type == WarcRecordType.conversion:
            text = found.reader.read().decode().strip()
            return page._replace(text=text, reason="" if text else f"{SKIPPED}no main text")
        return _html(found, page)
    except UnicodeDecodeError:
        return Page(reason="text is not UTF-8")
    except (OSError, ValueError) as error:
        return Page(reason=f"its HTTP message cannot be read ({type(error).__name__})")


def _html(found: Any, page: Page) -> Page:
    found.parse_http(auto_decode="all")
    if found.http_headers is None or found.http_headers.status_code is None:
        return Page(reason=f"{SKIPPED}no HTTP response")
    if found.http_headers.status_code != 200:
        return Page(reason=f"{SKIPPED}HTTP status {found.http_headers.status_code}")
    kind = (found.http_content_type or "").lower()
    if kind not in ("", "text/html", "application/xhtml+xml"):
        return Page(reason=f"{SKIPPED}not HTML: {_NAMES.sub('', kind)[:40]}")
    body = found.reader.read(PAGE_BYTES + 1)
    if len(body) > PAGE_BYTES:
        return Page(reason=_TOO_LARGE)
    if not kind and body.lstrip()[:1] != b"<":
        return Page(reason=f"{SKIPPED}not HTML: no content type")
    if not body.strip():
        return Page(reason=f"{SKIPPED}no main text")
    return page._replace(html=body, charset=found.http_charset or "")


def _clean(value: str) -> str:
    return value.encode("utf-8", "replace").decode()


def _cache_key(source: Source, seconds_per_page: float, worker: Path) -> str:
    extractor = _need_libraries()
    name = source.name.rsplit("/", 1)[-1]
    return digest([name, source.bytes, source.stamp, _RULES, extractor, seconds_per_page, PAGE_BYTES, worker.name])[:32]


def _need_libraries() -> str:
    """The extractor's version; TraitError where one of the libraries is not installed."""
    try:
        version("fastwarc")
        return version("trafilatura")
    except PackageNotFoundError as error:
        raise TraitError(
            f"WARC and WET files are read with FastWARC and trafilatura, and {error.name} is not installed. "
            "Run: pip install 'trait-kit[web]'"
        ) from None


def _part_path(folder: Path, number: int) -> Path:
    return folder / f"part-{number:05d}.parquet"


def _extract(rows: Iterable[tuple[int, int, Any]], path: Path, seconds_per_page: float, worker: Path) -> None:
    for left in path.parent.glob(".part-*.tmp-*"):  # of a process that was killed: this one holds the lock
        left.unlink(missing_ok=True)
    sandbox = Sandbox(seconds_per_page, worker)
    try:
        table = _documents(rows, sandbox)
    finally:
        sandbox.close()
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def _documents(rows: Iterable[tuple[int, int, bytes | Gap | TooLong]], sandbox: Sandbox | None) -> pa.Table:
    """One row a document, rejected record (`reason`) or stretch of damage (`damage`)."""
    found: list[dict[str, Any]] = []
    for _, row, piece in rows:
        if isinstance(piece, Gap):
            found.append({"row": row, "reason": piece.reason, "records": records_in(piece, row), "damage": True})
            continue
        page = _page(piece)
        if page.html and sandbox is not None:
            text, reason = sandbox.text(page)
            page = page._replace(text=text, reason=reason)
        if page.text:
            found.append({"id": page.id or None, "url": page.url or None, "text": page.text, "row": row})
        elif page.reason:
            found.append({"row": row, "reason": page.reason, "records": 1, "damage": False})
    return pa.Table.from_pylist(found, _EXTRACTED)


def _part(table: pa.Table, origin: str) -> Part:
    lost = table.filter(table["reason"].is_valid()).select(["row", "reason", "records", "damage"]).to_pylist()
    kept = table.filter(table["reason"].is_null())
    damage = {
        index: cut_off(origin, row["row"], row["records"], row["reason"], "record")
        for index, row in enumerate(lost)
        if row["damage"]
    }
    rejected = [
        damage[index].reject if row["damage"] else (origin, row["row"], row["reason"], row["records"])
        for index, row in enumerate(lost)
    ]
    columns = {name: kept[name].combine_chunks() for name in ("id", "text", "url")}
    columns["source"] = pa.nulls(kept.num_rows, pa.string())
    return Part(documents_table(columns, kept["row"].combine_chunks(), origin), rejected, tuple(damage.values()))
