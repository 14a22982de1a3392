"""Pages of the web: WARC and WET files to documents, HTML to text.

Records are cut from the stream at the next record's first line, not after the bytes their header promises, because both
well-kept libraries lose the rest of a file to one lying Content-Length, and neither notices that a file's end is missing.
FastWARC then reads each record: it is fast, and decodes HTTP transfer and content encodings.

Extraction is the slowest step of the kit, so its result is kept in a folder that the caller gives: a file is extracted
once, whoever asks. It runs in a child process, because lxml is C code that reads whatever the web wrote: a page that hangs,
crashes or fills the memory ends the child and is lost; the next page gets another child. (datatrove's sandbox notices a
crash after seconds, forgets why, and outlives a parent that is killed.) Run as a program, this file is the child.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import json
import pickle
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from trait_kit.engine.files import TraitError, atomic_path, digest, maker_of
from trait_kit.engine.readers import SKIPPED, UNREADABLE, Part, Reject, clean, torn
from trait_kit.engine.streams import Gap, Source, TooLong, blocks, documents_in, format_of, split

PAGE_BYTES = 8_000_000  # a larger response is not parsed
_RULES = 2  # raised whenever the same file would give other documents
_HEADER_BYTES, _CHILD_MEMORY, _PART_ROWS = 1 << 16, 4 << 30, 500
_RECORD = re.compile(rb"\nWARC/(?=[01]\.\d+\r?\n[\w-]+:)")  # where one begins behind another
_HEADER = re.compile(rb"(?:WARC/)?[01]\.\d+(\r?\n.*?\n\r?\n)", re.DOTALL)  # of a record, its version apart
_NO_TEXT, _TOO_LARGE = f"{SKIPPED}no main text", f"{SKIPPED}larger than {PAGE_BYTES // 1_000_000} MB"
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


def serve(seconds_per_page: float) -> None:
    """Answer each pickled (page, url, charset) with a line of JSON, until the input ends."""
    import logging

    import trafilatura  # noqa: F401  before the first page's clock runs

    logging.disable(logging.CRITICAL)
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_CHILD_MEMORY, _CHILD_MEMORY))
    with contextlib.suppress(EOFError):
        while page := pickle.load(sys.stdin.buffer):
            signal.setitimer(signal.ITIMER_REAL, seconds_per_page)  # ends the process, whatever it is doing
            try:
                answer = {"text": extract(*page)}
            except (Exception, RecursionError, MemoryError) as error:
                answer = {"error": type(error).__name__}
            signal.setitimer(signal.ITIMER_REAL, 0)
            print(json.dumps(answer), flush=True)


class Sandbox:
    """`extract` in a child process that a page may hang or crash: that page is lost, the next ones are not."""

    def __init__(self, seconds_per_page: float, program: Sequence[str]) -> None:
        self._seconds, self._command = seconds_per_page, [sys.executable, *program, str(seconds_per_page)]
        self._child: subprocess.Popen[bytes] | None = None

    def text(self, *page: bytes | str) -> tuple[str, str]:
        """(text, "") or ("", the reason why there is none)."""
        pipe = subprocess.PIPE
        self._child = self._child or subprocess.Popen(self._command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL)
        try:
            pickle.dump(page, self._child.stdin)
            self._child.stdin.flush()
            answer = json.loads(self._child.stdout.readline())
        except (BrokenPipeError, ValueError):  # the answer breaks off
            code = self._child.wait()
            self.close()
            late = f"took the parser more than {self._seconds:g} s"
            return "", f"{UNREADABLE}: its HTML {late if code == -signal.SIGALRM else f'crashed the parser ({code})'}"
        if "error" in answer:
            return "", f"{UNREADABLE}: its HTML cannot be parsed ({answer['error']})"
        text = _written(answer["text"]).strip()
        return text, "" if text else _NO_TEXT

    def close(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.communicate()
            self._child = None


# Records


class Page(NamedTuple):
    """A record: what a document needs, or why it gives none (`reason`); both empty for records that hold no page."""

    id: str = ""
    url: str = ""
    text: str = ""
    html: bytes = b""
    charset: str = ""
    reason: str = ""


def read_web(
    source: Source, cache: Path, seconds_per_page: float = 10.0, program: Sequence[str] = ("-m", "trait_kit.engine.web")
) -> Iterator[Part]:
    """The documents of a WARC file (from `cache` where they are) or of a WET file, whose texts need no extraction."""
    tables = _tables(source.name, Sandbox(seconds_per_page, program))
    key = digest([source.content, source.bytes, _RULES, _extractor(), seconds_per_page, PAGE_BYTES, program])
    path = cache / f"{key[:32]}.parquet"
    if format_of(source.name)[0] == ".warc":
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


def _extractor() -> str:
    """Its version; TraitError where one of the libraries is not installed."""
    try:
        return version("fastwarc") and version("trafilatura")
    except PackageNotFoundError as error:
        raise TraitError(
            f"WARC and WET files are read with FastWARC and trafilatura, and {error.name} is not installed. "
            "Run: pip install 'trait-kit[web]'"
        ) from None


def _tables(name: str, sandbox: Sandbox) -> Iterator[pa.Table]:
    """One row a document or loss (`reason`), up to _PART_ROWS at a time."""
    found: list[dict] = []
    with contextlib.closing(sandbox):
        for row, piece in enumerate(split(blocks(name), _RECORD.split, PAGE_BYTES + _HEADER_BYTES), 1):
            if isinstance(piece, Gap):
                found.append(torn(name, row - 1, piece)._asdict())
                continue
            page = _page(piece)
            if page.html:
                text, reason = sandbox.text(page.html, page.url, page.charset)
                page = page._replace(text=text, reason=reason)
            if page.text or page.reason:
                records = documents_in(name, piece.bytes) if isinstance(piece, TooLong) and page.reason != _TOO_LARGE else 1
                fields = {name: getattr(page, name) or None for name in ("id", "text", "url", "reason")}
                found.append({**fields, "row": row, "records": max(records, 1)})
            if len(found) == _PART_ROWS:
                yield pa.Table.from_pylist(found, _KEPT)
                found = []
    yield pa.Table.from_pylist(found, _KEPT)


def _page(piece: bytes | TooLong) -> Page:
    """What one record holds, its length checked against what its header promises."""
    from fastwarc.warc import ArchiveIterator, WarcRecordType

    data = piece.head if isinstance(piece, TooLong) else piece
    head = _HEADER.match(data)
    record = b"WARC/1.0" + head[1] + data[head.end() :] if head else b""
    try:
        found = next(ArchiveIterator(io.BytesIO(record), parse_http=False, strict_mode=False), None)
        if found is None:
            return Page(reason=f"{UNREADABLE}: not a WARC record")
        if found.record_type not in (WarcRecordType.response, WarcRecordType.conversion):
            return Page()
        headers = {name.lower(): value for name, value in found.headers.items()}
        length = headers.get("content-length", "")
        length = int(length) if re.fullmatch(r"[0-9]{1,18}", length) else -1
        if isinstance(piece, TooLong) and length > PAGE_BYTES:
            return Page(reason=_TOO_LARGE)
        body = data[head.end() :]
        if not 0 <= length <= len(body) or body[length:].strip(b"\r\n"):
            return Page(reason=f"{UNREADABLE}: its Content-Length does not fit")
        url = _written(headers.get("warc-target-uri", "").strip("<>"))
        page = Page(id=_written(headers.get("warc-record-id", "")) or url, url=url)
        if found.record_type == WarcRecordType.conversion:
            text = body[:length].decode().strip()
            return page._replace(text=text, reason="" if text else _NO_TEXT)
        found.parse_http(strict_mode=False, auto_decode="all")
        status = found.http_headers.status_code if found.http_headers else None
        kind = re.match(r"[\w/+.-]*", (found.http_headers.get("Content-Type") or "").strip().lower())[0] if status else ""
        html = found.reader.read(PAGE_BYTES + 1)
    except (OSError, ValueError) as error:
        return Page(reason=f"{UNREADABLE}: its text or HTTP message ({type(error).__name__})")
    if status != 200:
        return page._replace(reason=f"{SKIPPED}HTTP status {status or 'missing'}")
    begins = html.lstrip(b"\xef\xbb\xbf\xff\xfe\0 \t\r\n")[:1]
    if kind not in ("", "text/html", "application/xhtml+xml") or (not kind and begins != b"<"):
        return page._replace(reason=f"{SKIPPED}not HTML: {kind[:40] or 'no content type'}")
    if len(html) > PAGE_BYTES or not html.strip():
        return page._replace(reason=_NO_TEXT if len(html) <= PAGE_BYTES else _TOO_LARGE)
    return page._replace(html=html, charset=found.http_charset or "")


def _written(value: str) -> str:
    """Without half surrogate pairs, which no file can hold."""
    return value.encode("utf-8", "replace").decode()


if __name__ == "__main__":
    serve(float(sys.argv[1]))
