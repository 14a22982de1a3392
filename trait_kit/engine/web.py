"""Pages of the web: WARC and WET files to documents, HTML to text.

Records are cut from the stream at the next record's first line, not after the bytes their header promises, because both
well-kept libraries lose the rest of a file to one lying Content-Length, and neither notices that a file's end is missing.
FastWARC then reads each record: it is fast, and decodes HTTP transfer and content encodings.

Extraction is the slowest step of the kit, so its result is kept in a folder that the caller gives: a file is extracted
once, whoever asks. It runs in a child process (datatrove's sandbox), because lxml is C code that reads whatever the web
wrote: a page that hangs, crashes or fills the memory ends the child and is lost; the next page gets another child.
"""

from __future__ import annotations

import codecs
import contextlib
import ctypes
import io
import re
import signal
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from loguru import logger

from trait_kit.engine.files import TraitError, atomic_path, digest, maker_of
from trait_kit.engine.readers import SKIPPED, UNREADABLE, Part, Reject, clean, torn
from trait_kit.engine.streams import FORMATS, Gap, Source, TooLong, blocks, format_of, split

PAGE_BYTES = 8_000_000  # a larger response is not parsed
_RULES = 2  # raised whenever the same file would give other documents
_HEADER_BYTES, _PART_ROWS = 1 << 16, 500
_RECORD = re.compile(rb"\nWARC/(?=[01]\.\d+\r?\n[\w-]+:)")  # where one begins behind another
_HEADER = re.compile(rb"(?:WARC/)?[01]\.\d+(\r?\n.*?\n\r?\n)", re.DOTALL)  # of a record, its version apart
_NO_RECORD = f"{UNREADABLE}: not a WARC record"
_NO_TEXT, _TOO_LARGE = f"{SKIPPED}: no main text", f"{SKIPPED}: larger than {PAGE_BYTES // 1_000_000} MB"
_KEPT = pa.schema(
    dict.fromkeys(("id", "text", "url", "reason"), pa.string()) | dict.fromkeys(("row", "records"), pa.int64())
)
_BOMS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
_META = re.compile(rb"<meta[^>]{0,500}?charset\s*=\s*[\"']?\s*([\w:.-]{1,40})", re.IGNORECASE)
# What a label means on the web (WHATWG Encoding Standard): browsers read the larger encoding, and pages rely on it.
_MEANT = {"iso8859-1": "cp1252", "ascii": "cp1252", "shift_jis": "cp932", "gb2312": "gb18030", "gbk": "gb18030"}
_MEANT |= {"euc_kr": "cp949", "iso8859-9": "cp1254", "tis-620": "cp874", "big5": "big5hkscs"}


# HTML to text


def extract(page: bytes, url: str, charset: str = "") -> str:
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
    names = [name for mark, name in _BOMS if page.startswith(mark)][:1]
    for name in filter(None, [*names, charset, meta[1].decode("ascii") if meta else "", "utf-8"]):
        with contextlib.suppress(LookupError, ValueError, TypeError):
            known = codecs.lookup(name).name
            if isinstance(text := page.decode(_MEANT.get(known, known)), str):
                return text
    return page


def _guarded(*page: Any) -> str | Exception:
    """`extract` in the child; an alarm ends a child that nobody has asked for a minute."""
    signal.alarm(0)
    try:
        with contextlib.suppress(AttributeError, OSError):
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # Linux: a child ends with its parent, whose lock it has inherited
        return extract(*page)
    except Exception as error:
        return ValueError(type(error).__name__)
    finally:
        signal.alarm(60)


# Records


class Page(NamedTuple):
    """A record: what a document needs, or why it gives none (`reason`); both empty for records that hold no page."""

    reason: str = ""
    id: str = ""
    url: str = ""
    text: str = ""
    html: bytes = b""
    charset: str = ""


def read_web(source: Source, cache: Path, seconds_per_page: float = 10.0) -> Iterator[Part]:
    """The documents of a WARC file (from `cache` where they are) or of a WET file, whose texts need no extraction."""
    try:
        libraries = [version("fastwarc"), version("trafilatura")]
    except PackageNotFoundError as error:
        raise TraitError(f"Web archives need {error.name}, which is not installed: pip install 'trait-kit[web]'") from None
    tables = _tables(source.name, seconds_per_page)
    if format_of(source.name)[0] == ".warc":
        key = digest([source.content, source.bytes, _RULES, libraries, seconds_per_page, PAGE_BYTES])
        path = cache / f"{key[:32]}.parquet"
        with maker_of(path):
            if not path.exists():
                with atomic_path(path) as temporary, pq.ParquetWriter(temporary, _KEPT, compression="zstd") as writer:
                    for table in tables:
                        writer.write_table(table)
        tables = (pa.table(batch) for batch in pq.ParquetFile(path).iter_batches(_PART_ROWS))
    for table in tables:
        lost = table.filter(table["reason"].is_valid()).select(["row", "reason", "records"]).to_pylist()
        kept = table.filter(table["reason"].is_null())
        yield clean(kept, kept["row"].to_numpy(), source.name, rejected=[Reject(source.name, **row) for row in lost])


def _tables(name: str, seconds_per_page: float) -> Iterator[pa.Table]:
    """One row a document or loss (`reason`), up to _PART_ROWS at a time."""
    import trafilatura  # noqa: F401  children inherit it
    from datatrove.pipeline.extractors.base import ExtractorSandbox

    logger.disable("datatrove.pipeline.extractors")
    found: list[dict[str, Any]] = []
    with ExtractorSandbox(seconds_per_page, (b"", "", "")) as sandbox:
        for row, piece in enumerate(split(blocks(name), _RECORD.split, PAGE_BYTES + _HEADER_BYTES), 1):
            if isinstance(piece, Gap):
                found.append(torn(name, row - 1, piece)._asdict())
                continue
            page = _page(piece)
            if page.html:
                page = _extracted(page, sandbox)
            if page.text or page.reason:
                size = piece.bytes if isinstance(piece, TooLong) else len(piece)
                records = max(size // FORMATS[format_of(name)[0]], 1) if page.reason == _NO_RECORD else 1
                fields = {name: getattr(page, name) or None for name in ("id", "text", "url", "reason")}
                found.append({**fields, "row": row, "records": records})
            if len(found) >= _PART_ROWS:
                yield pa.Table.from_pylist(found, _KEPT)
                found = []
    yield pa.Table.from_pylist(found, _KEPT)


def _extracted(page: Page, sandbox: Any) -> Page:
    try:
        text = _written(sandbox.process_document((page.html, page.url, page.charset), _guarded)).strip()
        return page._replace(text=text, reason="" if text else _NO_TEXT)
    except TimeoutError:
        reason = f"took the parser more than {sandbox.timeout:g} s"
    except EOFError:
        reason = "crashed the parser"
    except ValueError as error:
        reason = f"cannot be parsed ({error})"
    return page._replace(reason=f"{UNREADABLE}: its HTML {reason}")


def _page(piece: bytes | TooLong) -> Page:
    """What one record holds, its length checked against what its header promises."""
    from fastwarc.warc import ArchiveIterator, WarcRecordType

    data = piece.head if isinstance(piece, TooLong) else piece
    head = _HEADER.match(data)
    body = data[head.end() :] if head else b""
    try:
        record = io.BytesIO(b"WARC/1.0" + re.sub(rb"\r?\n", b"\r\n", head[1]) + body if head else b"")
        found = next(ArchiveIterator(record, parse_http=False, strict_mode=False), None)
        if found is None:
            return Page(_NO_RECORD)
        if found.record_type not in (WarcRecordType.response, WarcRecordType.conversion):
            return Page()
        headers = {name.lower(): _written(value) for name, value in found.headers.items()}
        length = headers.get("content-length", "")
        length = int(length) if re.fullmatch(r"[0-9]{1,18}", length) else -1
        if isinstance(piece, TooLong) and length > PAGE_BYTES:
            return Page(_TOO_LARGE)
        if not 0 <= length <= len(body) or body[length:].strip(b"\r\n"):
            return Page(f"{UNREADABLE}: its Content-Length does not fit")
        url = headers.get("warc-target-uri", "").strip("<>")
        page = Page("", headers.get("warc-record-id") or url, url)
        if found.record_type == WarcRecordType.conversion:
            text = body[:length].decode().strip()
            return page._replace(text=text, reason="" if text else _NO_TEXT)
        found.parse_http(strict_mode=False, auto_decode="all")
        http, html = found.http_headers, found.reader.read(PAGE_BYTES + 1)
    except (OSError, ValueError) as error:
        return Page(f"{UNREADABLE}: its text or HTTP message ({type(error).__name__})")
    if not http or not http.status_code:
        return Page(f"{UNREADABLE if 'http' in headers.get('content-type', '') else SKIPPED}: no HTTP response")
    if http.status_code != 200:
        return Page(f"{SKIPPED}: HTTP status {http.status_code}")
    kind = re.match(r"[\w/+.-]*", (http.get("Content-Type") or "").strip().lower())[0]
    begins = html.lstrip(b"\xef\xbb\xbf\xff\xfe\0 \t\r\n")[:1]
    if kind not in ("", "text/html", "application/xhtml+xml") or (not kind and begins not in (b"<", b"")):
        return Page(f"{SKIPPED}: not HTML: {kind[:40] or 'no content type'}")
    if len(html) > PAGE_BYTES or not html.strip():
        return Page(_TOO_LARGE if html.strip() else _NO_TEXT)
    return page._replace(html=html, charset=found.http_charset or "")


def _written(value: str) -> str:
    """Without half surrogate pairs, which no file can hold."""
    return value.encode("utf-8", "replace").decode()
