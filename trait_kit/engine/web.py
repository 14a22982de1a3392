"""Pages of the web: WARC and WET files to documents, HTML to text.

Records are cut here, with a look at what stands behind each, because both well-kept libraries lose the rest of a file to
one lying Content-Length without a word. FastWARC then reads each record: it is fast, and decodes HTTP encodings.

Extraction is the slowest step of the kit, so its result is kept in a folder that the caller gives: a file is extracted
once, whoever asks. It runs in a child process (datatrove's sandbox), because lxml is C code that reads whatever the web
wrote: a page that hangs, crashes or fills the memory ends the child and is lost; the next page gets another child.
"""

import codecs
import contextlib
import ctypes
import functools
import io
import itertools
import re
import signal
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
from loguru import logger

from trait_kit.engine.files import TraitError, digest, made_once
from trait_kit.engine.readers import SKIPPED, UNREADABLE, Part, Reject, clean, torn
from trait_kit.engine.streams import FORMATS, Damaged, Source, format_of, reading

PAGE_BYTES = 8_000_000  # a larger response is not parsed
_RULES = 3  # raised whenever the same file would give other documents
_LINE, _PART_ROWS = 1 << 16, 500
_LENGTH = re.compile(rb"^content-length:\s*(\d{1,12})\s*$", re.IGNORECASE | re.MULTILINE)
_KEPT = pa.schema(
    dict.fromkeys(("id", "text", "url", "reason"), pa.string()) | dict.fromkeys(("row", "records"), pa.int64())
)
_META = re.compile(rb"<meta[^>]{0,500}?charset\s*=\s*[\"']?\s*([\w:.-]{1,40})", re.IGNORECASE)
# What a label means on the web (WHATWG Encoding Standard): browsers read the larger encoding, and pages rely on it.
_MEANT = {"iso8859-1": "cp1252", "ascii": "cp1252", "shift_jis": "cp932", "gb2312": "gb18030", "gbk": "gb18030"}
_MEANT |= {"euc_kr": "cp949", "iso8859-9": "cp1254", "tis-620": "cp874", "big5": "big5hkscs"}


class _NoDocument(Exception):
    """Why a page is none."""


# HTML to text


def extract(page: bytes, charset: str = "") -> str:
    """The main text of a page, tables kept and comments left out; empty if there is none. `charset`: the HTTP header's."""
    import trafilatura

    # no `deduplicate`: it remembers paragraphs across pages, so a page's text would depend on the pages before it
    html = _decode(page, charset)
    return trafilatura.extract(html, include_comments=False, include_tables=True, deduplicate=False) or ""


def _decode(page: bytes, charset: str) -> str | bytes:
    """The page as text: by its byte order mark, the HTTP header, the HTML meta, UTF-8; else as it is, to be guessed.

    A name that is wrong (unknown, or the bytes do not fit) is passed over, because headers and pages often are.
    """
    meta = _META.search(page[:4096])
    mark = "utf-16" if page[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
    for name in filter(None, (mark, charset, meta and meta[1].decode("ascii"), "utf-8-sig")):
        with contextlib.suppress(LookupError, ValueError, TypeError):
            known = codecs.lookup(name).name
            if isinstance(text := page.decode(_MEANT.get(known, known)), str):
                return text
    return page


def _guarded(*page: Any) -> str | Exception:
    """`extract` in the child; no half surrogate pairs, which no file can hold."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # Linux: a child ends with its parent, whose lock it has inherited
    try:
        return extract(*page).encode("utf-8", "replace").decode()
    except Exception as error:
        return ValueError(type(error).__name__)


def _text(sandbox: Any, *page: Any) -> str:
    """The text that the child extracts."""
    try:
        return sandbox.process_document(page, _guarded)
    except TimeoutError:
        reason = f"took the parser more than {sandbox.timeout:g} s"
    except EOFError:
        reason = "crashed the parser"
    except ValueError as error:
        reason = f"cannot be parsed ({error})"
    raise _NoDocument(f"{UNREADABLE}: its HTML {reason}")


# Records


def read_web(source: Source, cache: Path, seconds_per_page: float = 10.0) -> Iterator[Part]:
    """The documents of a WARC file (from `cache` where they are) or of a WET file, whose texts need no extraction."""
    try:
        libraries = [version("fastwarc"), version("trafilatura")]
    except PackageNotFoundError as error:
        raise TraitError(f"Web archives need {error.name}, which is not installed: pip install 'trait-kit[web]'") from None
    tables = _tables(source.name, seconds_per_page)
    if format_of(source.name)[0] == ".warc":
        key = digest([source.content, source.bytes, _RULES, libraries, seconds_per_page, PAGE_BYTES])
        path = made_once(cache / f"{key[:32]}.parquet", functools.partial(_write, tables))
        tables = (pa.table(batch) for batch in pq.ParquetFile(path).iter_batches(_PART_ROWS))
    for table in tables:
        lost = table.filter(table["reason"].is_valid()).select(["row", "reason", "records"]).to_pylist()
        kept = table.filter(table["reason"].is_null())
        yield clean(kept, kept["row"].to_numpy(), source.name, rejected=[Reject(source.name, **row) for row in lost])


def _write(tables: Iterator[pa.Table], path: Path) -> None:
    with pq.ParquetWriter(path, _KEPT, compression="zstd") as writer:
        for table in tables:
            writer.write_table(table)


def _tables(name: str, seconds_per_page: float) -> Iterator[pa.Table]:
    """One row a document or loss (`reason`), up to _PART_ROWS at a time."""
    rows = _rows(name, seconds_per_page)
    while found := list(itertools.islice(rows, _PART_ROWS)):
        yield pa.Table.from_pylist(found, _KEPT)


def _rows(name: str, seconds_per_page: float) -> Iterator[dict[str, Any]]:
    import trafilatura  # noqa: F401  children inherit it
    from datatrove.pipeline.extractors.base import ExtractorSandbox

    logger.disable("datatrove.pipeline.extractors")
    row = size = 0
    try:
        with ExtractorSandbox(seconds_per_page, (b"", "")) as sandbox, reading(name) as stream:
            for row, piece in enumerate(_records(stream), 1):
                if isinstance(piece, int):  # by the size of those before, or of usual ones
                    records = max(piece // (size // row or FORMATS[format_of(name)[0]]), 1)
                    document = {"reason": f"{UNREADABLE}: no WARC record of the length that it states", "records": records}
                else:
                    document = _document(piece, sandbox)
                    size += len(piece)
                if document:
                    yield {**document, "row": row}
    except Damaged as damage:
        yield torn(name, row, damage)._asdict()


def _records(stream: BinaryIO) -> Iterator[bytes | int]:
    """WARC records; how many bytes hold none, or one that is not as long as it says, up to the next record's first line."""
    passed = 0
    try:
        while line := stream.readline(_LINE):
            if not line.startswith(b"WARC/"):
                passed += len(line.strip(b"\r\n"))
                continue
            if passed:
                yield passed
            head = [line]
            while len(head) < 100 and (line := stream.readline(_LINE)).strip():
                head.append(line.strip(b"\r\n") + b"\r\n")
            length = _LENGTH.search(b"".join(head))
            missing = int(length[1]) if length else 0
            more = body = stream.read(min(missing, PAGE_BYTES + _LINE))
            while more and (missing := missing - len(more)):
                more = stream.read(min(missing, PAGE_BYTES))
            whole = length and not missing and not stream.readline(_LINE).strip()
            passed = 0 if whole else sum(map(len, head)) + len(body)
            if whole:
                yield b"".join([*head, b"\r\n", body, b"\r\n\r\n"])
    except OSError:
        if passed:
            yield passed
        raise
    if passed:
        yield passed


def _document(piece: bytes, sandbox: Any) -> dict[str, Any] | None:
    """The document of a record that holds a page, or the reason why it is none."""
    from fastwarc.warc import ArchiveIterator, WarcRecordType

    reason = f"{SKIPPED}: no main text"
    try:
        record = next(ArchiveIterator(io.BytesIO(piece), parse_http=False, strict_mode=False))
        if record.record_type not in (WarcRecordType.conversion, WarcRecordType.response):
            return None
        is_text = record.record_type == WarcRecordType.conversion
        text = record.reader.read().decode() if is_text else _text(sandbox, *_html(record))
        if text := text.strip():
            url = record.headers.get("WARC-Target-URI", "").strip("<>")
            return {"id": record.headers.get("WARC-Record-ID") or url, "url": url, "text": text}
    except _NoDocument as error:
        reason = str(error)
    except (OSError, ValueError, StopIteration) as error:
        reason = f"{UNREADABLE}: its text or HTTP message ({type(error).__name__})"
    return {"reason": reason, "records": 1}


def _html(record: Any) -> tuple[bytes, str]:
    """What `extract` takes, of a response that is a page."""
    is_http = "http" in record.headers.get("Content-Type", "")
    record.parse_http(strict_mode=False, auto_decode="all")
    http, html = record.http_headers, record.reader.read(PAGE_BYTES + 1)
    if not http or not http.status_code:
        raise _NoDocument(f"{UNREADABLE if is_http else SKIPPED}: no HTTP response")
    if http.status_code != 200:
        raise _NoDocument(f"{SKIPPED}: HTTP status {http.status_code}")
    kind = re.match(r"[\w/+.-]*", (http.get("Content-Type") or "").strip().lower())[0]
    begins = html.lstrip(b"\xef\xbb\xbf\xff\xfe\0 \t\r\n")[:1]
    if kind not in ("", "text/html", "application/xhtml+xml") or (not kind and begins not in (b"<", b"")):
        raise _NoDocument(f"{SKIPPED}: not HTML: {kind[:40] or 'no content type'}")
    if len(html) > PAGE_BYTES:
        raise _NoDocument(f"{SKIPPED}: larger than {PAGE_BYTES // 1_000_000} MB")
    return html, record.http_charset or ""
